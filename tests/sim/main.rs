//! The pure core in virtual time: ring, request body, session and acknowledgement parser under random schedules of faults,
//! against a model of the service.
//!
//! A schedule follows from its seed. `KVS_SIM_SEED=n` runs that one and prints what happened; `KVS_SIM_SCHEDULES=n` runs so
//! many, from `KVS_SIM_FIRST=n` on. One that fails is made smaller before it is shown.

mod camera;
mod mkv;
mod schedule;
mod service;
mod world;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use schedule::Schedule;
use world::Tally;

/// Schedules that plain `cargo test` runs: under a minute in a debug build on two slow cores.
const SCHEDULES: u64 = 3000;

/// Runs until nothing smaller fails, at most.
const SHRINK_RUNS: usize = 400;

#[test]
fn nothing_is_lost_under_random_faults() {
    if let Some(seed) = number("KVS_SIM_SEED") {
        let plan = Schedule::new(seed);
        let mut trace = Vec::new();
        let result = attempt(&plan, Some(&mut trace));
        println!("{plan:#?}\n{}\n{result:?}", trace.join("\n"));
        return result.map(drop).expect("the schedule fails");
    }
    let schedules = number("KVS_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let first = number("KVS_SIM_FIRST").unwrap_or(0);
    let schedules = first + schedules;
    let next = AtomicU64::new(first);
    let failed = AtomicBool::new(false);
    let frames = AtomicU64::new(0);
    let confirmed = AtomicU64::new(0);
    let connections = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || -> Result<(), Box<(Schedule, String)>> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= schedules || failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let plan = Schedule::new(seed);
            match attempt(&plan, None) {
                Ok(tally) => {
                    frames.fetch_add(tally.counts.captured.frames, Ordering::Relaxed);
                    confirmed.fetch_add(tally.confirmed, Ordering::Relaxed);
                    connections.fetch_add(tally.connections, Ordering::Relaxed);
                }
                Err(why) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(Box::new((plan, why)));
                }
            }
        }
    };
    let failure = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .find_map(|worker| worker.join().expect("panics are caught inside").err())
    });
    if let Some(failure) = failure {
        let (plan, why) = *failure;
        panic!("{}", explain(plan, why));
    }
    println!(
        "{} schedules: {} frames captured, {} persisted, {} connections",
        schedules - first,
        frames.into_inner(),
        confirmed.into_inner(),
        connections.into_inner()
    );
}

#[test]
fn nothing_is_lost_in_a_day_with_a_fault_every_few_minutes() {
    let plan = Schedule::day(number("KVS_SIM_SEED").unwrap_or(24));
    assert!(plan.must_lose_nothing());
    match attempt(&plan, None) {
        Ok(tally) => {
            assert!(tally.connections > 50, "{tally:?}");
            assert!(tally.confirmed > 70_000, "{tally:?}");
        }
        Err(why) => panic!("{}", explain(plan, why)),
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number in the environment variable"))
}

/// A run; a panic of the core is a failure like any other.
fn attempt(plan: &Schedule, trace: Option<&mut Vec<String>>) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| world::run(plan, trace)))
        .unwrap_or_else(|panic| Err(format!("a panic: {}", message(panic.as_ref()))))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

/// Makes the schedule smaller while it fails, and says what is left.
fn explain(plan: Schedule, why: String) -> String {
    let (mut smallest, mut last) = (plan, why);
    let first = last.clone();
    let mut runs = 0;
    'smaller: while runs < SHRINK_RUNS {
        for plan in smallest.smaller() {
            runs += 1;
            if let Err(why) = attempt(&plan, None) {
                (smallest, last) = (plan, why);
                continue 'smaller;
            }
            if runs >= SHRINK_RUNS {
                break;
            }
        }
        break;
    }
    let mut trace = Vec::new();
    let _ = attempt(&smallest, Some(&mut trace));
    let tail = trace.len().saturating_sub(120);
    format!(
        "KVS_SIM_SEED={} fails: {first}\n\nwhat is left of it: {smallest:#?}\n\nfails: {last}\n\nits end:\n{}",
        smallest.seed,
        trace[tail..].join("\n")
    )
}
