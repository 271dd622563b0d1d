//! A panic costs a thread, not the ring and not the run. Panics are a process's own, so the producer is a child of the test:
//! this test program once more, with a single test to run.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kvs_producer_app::app::{Device, Error, Exit, Open, ReportTo, Summary, run_with};
use kvs_producer_app::chain;
use kvs_producer_app::local::Options;
use kvs_producer_app::log;
use kvs_producer_app::source::{self, Read, Source, Wait};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::rig::{FastCamera, STREAM, assert_whole, config, endpoint};

/// Frames that a camera delivers before it panics.
const BEFORE: usize = 75;

/// What the child is told.
const URL: &str = "KVS_TEST_VICTIM_URL";
const REPORT: &str = "KVS_TEST_VICTIM_REPORT";
const KIND: &str = "KVS_TEST_VICTIM_KIND";

/// Panics on the thread that logs `at`, after `spared` times.
struct Bomb {
    at: &'static str,
    spared: usize,
    every: bool,
    seen: AtomicUsize,
}

struct Says(&'static str, bool);

impl Visit for Says {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.1 |= field.name() == "message" && format!("{value:?}") == self.0;
    }
}

impl<S: Subscriber> Layer<S> for Bomb {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut says = Says(self.at, false);
        event.record(&mut says);
        if says.1 {
            let seen = self.seen.fetch_add(1, Ordering::Relaxed);
            let goes_off = seen == self.spared || (self.every && seen > self.spared);
            assert!(!goes_off, "the fault that the test wants");
        }
    }
}

/// What a camera does in the middle of a group of pictures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trick {
    Panic,
    /// Ask the process to end.
    Terminate,
}

/// A camera that does so once.
struct Faulty {
    camera: FastCamera,
    read: usize,
    trick: Trick,
}

impl Source for Faulty {
    fn describe(&self) -> String {
        "a camera that hits a fault".into()
    }

    fn is_live(&self) -> bool {
        self.camera.is_live()
    }

    fn read(&mut self, wait: Wait<'_>) -> Result<Read<'_>, source::Error> {
        if self.read == BEFORE {
            assert!(
                self.trick == Trick::Terminate,
                "the fault that the test wants"
            );
            kill_process(getpid(), Signal::TERM).expect("it runs");
        }
        self.read += 1;
        self.camera.read(wait)
    }
}

#[test]
#[ignore = "the others run it, in a process of its own"]
fn victim() {
    let of = |name| std::env::var(name).expect("whoever runs this test says");
    let kind = of(KIND);
    let bomb = Bomb {
        at: match kind.as_str() {
            "camera" | "file" => "nothing that is ever said",
            // It is said while the plan is locked, and so stays locked.
            "locked" => "stopping: sending what is left; once more ends at once",
            _ => "fragment persisted",
        },
        spared: usize::from(kind != "locked"),
        every: kind == "always",
        seen: AtomicUsize::new(0),
    };
    tracing_subscriber::registry()
        .with(log::filter(Level::DEBUG))
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr))
        .with(bomb)
        .init();
    let mut config = config(&of(URL));
    config.report = Some(ReportTo::File(of(REPORT).into()));
    if kind == "camera" {
        // A character device, as cameras are.
        config.device = Device::Path("/dev/null".into());
    }
    let openings = AtomicUsize::new(0);
    let frames = if kind == "always" { 500 } else { 250 };
    let openers = move || {
        let first = openings.fetch_add(1, Ordering::Relaxed) == 0;
        let trick = match kind.as_str() {
            "camera" | "file" if first => Some(Trick::Panic),
            "locked" => Some(Trick::Terminate),
            _ => None,
        };
        let open: Open = Box::new(move || {
            let camera = FastCamera::new(frames, Duration::from_millis(4));
            let read = 0;
            match trick {
                Some(trick) => Ok(Box::new(Faulty {
                    camera,
                    read,
                    trick,
                })),
                None => Ok(Box::new(camera)),
            }
        });
        Ok(open)
    };
    let conclude = |result: Result<Summary, Error>| match result {
        Ok(summary) => summary.exit,
        Err(error) => {
            eprintln!("{}", chain(&error));
            error.exit()
        }
    };
    std::process::exit(run_with(config, openers, conclude) as i32);
}

struct Ended {
    status: ExitStatus,
    said: String,
    report: Value,
}

/// Runs the victim to its end.
async fn run(url: &str, kind: &str) -> Ended {
    let dir = tempfile::tempdir().expect("a directory");
    let report = dir.path().join("report.json");
    let (url, kind, path) = (url.to_owned(), kind.to_owned(), report.clone());
    let output = tokio::task::spawn_blocking(move || start(&url, &kind, &path));
    let output = output.await.expect("it does not panic");
    Ended {
        status: output.status,
        said: String::from_utf8_lossy(&output.stderr).into_owned(),
        report: std::fs::read(&report)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default(),
    }
}

fn start(url: &str, kind: &str, report: &Path) -> std::process::Output {
    let this = std::env::current_exe().expect("this test program");
    Command::new("timeout")
        .args(["-s", "KILL", "60"])
        .arg(this)
        .args(["--exact", "--ignored", "--nocapture", "panics::victim"])
        .env(URL, url)
        .env(KIND, kind)
        .env(REPORT, report)
        .stdin(Stdio::null())
        .output()
        .expect("it has started before")
}

#[tokio::test]
async fn a_panic_of_the_network_side_costs_its_connections_only() {
    let endpoint = endpoint(Options::default()).await;
    let ended = run(&endpoint.url(), "network").await;
    assert_eq!(ended.status.code(), Some(0), "{}", ended.said);
    assert!(
        ended.said.contains("the fault that the test wants"),
        "{}",
        ended.said
    );
    assert_whole(&endpoint.view().state(), 250);
    assert_eq!(ended.report["persisted"]["frames"], 250);
    assert_eq!(ended.report["connections"], 2, "{}", ended.said);
}

#[tokio::test]
async fn a_panic_while_reading_opens_the_camera_anew() {
    let endpoint = endpoint(Options::default()).await;
    let ended = run(&endpoint.url(), "camera").await;
    assert_eq!(ended.status.code(), Some(0), "{}", ended.said);
    assert_eq!(ended.report["persisted"]["frames"], BEFORE + 250);
    let view = endpoint.view();
    let state = view.state();
    let frames = state
        .persisted(STREAM)
        .map(|fragment| fragment.frames.len());
    assert_eq!(frames.sum::<usize>(), BEFORE + 250);
}

#[tokio::test]
async fn a_panic_while_reading_what_is_no_camera_ends_the_media_there() {
    let endpoint = endpoint(Options::default()).await;
    let ended = run(&endpoint.url(), "file").await;
    assert_eq!(
        ended.status.code(),
        Some(Exit::NoSource as i32),
        "{}",
        ended.said
    );
    assert_whole(&endpoint.view().state(), BEFORE);
    let failure = ended.report["failure"].as_str().unwrap_or_default();
    assert!(failure.contains("a fault of this program"), "{failure}");
}

#[tokio::test]
async fn a_fault_that_leaves_a_lock_behind_ends_the_program_and_does_not_hang_it() {
    let endpoint = endpoint(Options::default()).await;
    let ended = run(&endpoint.url(), "locked").await;
    assert_eq!(
        ended.status.code(),
        Some(Exit::Internal as i32),
        "{}",
        ended.said
    );
    assert!(ended.said.contains("does not come up"), "{}", ended.said);
}

#[tokio::test]
async fn a_fault_that_comes_again_and_again_ends_the_program() {
    let endpoint = endpoint(Options::default()).await;
    let ended = run(&endpoint.url(), "always").await;
    assert_eq!(
        ended.status.code(),
        Some(Exit::Internal as i32),
        "{}",
        ended.said
    );
    assert!(ended.said.contains("one fault too many"), "{}", ended.said);
}
