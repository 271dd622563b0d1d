//! A panic costs the thread it happens on, and what that thread held; not the ring, and not the run.
//!
//! Camera builds abort on a panic: tables to unwind the stack would be a fifth of the program. What runs before the abort is
//! the panic hook, on the thread that is lost. This one never returns: the thread is left where it stands, with all it
//! holds, and a fresh one goes on ([`Course::go_on`], [`Course::capture_again`]). It works the same where a build unwinds.

use std::panic::{self, PanicHookInfo};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, Thread, ThreadId};
use std::time::Duration;

use tracing::error;

use crate::app::{self, Error, Exit, Open, Summary};
use crate::course::{CAPTURE, Course, PUT};
use crate::source;

/// Name of the thread that the network side goes on with; the first is the one that arms.
const NETWORK: &str = "network";

/// Its stack. What is not touched takes no memory.
const NETWORK_STACK_BYTES: usize = 1024 * 1024;

/// How many threads may be lost. What they held stays with them, a few hundred kilobytes each; and what goes wrong again
/// and again is better started afresh.
const MOST: u32 = 4;

/// How long a fresh network side may take to come up: longer than the calls that it begins with. One that waits for a lock
/// which the lost thread holds never does.
const PATIENCE: Duration = Duration::from_secs(20);

/// What to do once the run is over, on whichever thread: say how, and with which code to exit.
pub type Conclude = fn(Result<Summary, Error>) -> Exit;

/// What a lost thread did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Network,
    Capture,
    /// It reads what somebody puts into the stream.
    Put,
    /// Names are resolved on such: whoever waits for one gives up by its deadline.
    Other,
}

impl Role {
    fn of(thread: &Thread, first: ThreadId) -> Self {
        match thread.name() {
            _ if thread.id() == first => Self::Network,
            Some(NETWORK) => Self::Network,
            Some(CAPTURE) => Self::Capture,
            Some(PUT) => Self::Put,
            _ => Self::Other,
        }
    }
}

/// From now on a panic on this thread, which the network side is to run on, or on one of `course`'s own costs that thread
/// only. `openers` make what opens the source for a capture thread.
pub fn arm(
    course: Arc<Course>,
    openers: impl Fn() -> Result<Open, source::Error> + Send + Sync + 'static,
    conclude: Conclude,
) {
    let first = thread::current().id();
    let lost = AtomicU32::new(0);
    panic::set_hook(Box::new(move |info| {
        let current = thread::current();
        let role = Role::of(&current, first);
        tell(info, current.name());
        if role != Role::Other {
            if lost.fetch_add(1, Ordering::Relaxed) >= MOST {
                give_up("that was one fault too many");
            }
            if !course.has_ring() {
                give_up("what the buffer holds is lost with it");
            }
        }
        match role {
            Role::Network => {
                go_on(Arc::clone(&course), conclude);
                if !course.comes_up(PATIENCE) {
                    give_up("the network side does not come up again");
                }
            }
            Role::Capture => course.capture_again(openers()),
            Role::Put => course.put_is_lost(),
            Role::Other => {}
        }
        loop {
            thread::park();
        }
    }));
}

fn tell(info: &PanicHookInfo<'_>, thread: Option<&str>) {
    let message = info.payload_as_str().unwrap_or("without a word");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    error!(
        thread,
        place, "a fault of this program, please report it: {message}"
    );
}

fn give_up(why: &str) -> ! {
    error!("{why}: the program ends, for its supervisor to start it again");
    process::exit(Exit::Internal as i32)
}

/// Starts the network side on a thread of its own, which ends the process once the run is over.
fn go_on(course: Arc<Course>, conclude: Conclude) {
    let started = thread::Builder::new()
        .name(NETWORK.into())
        .stack_size(NETWORK_STACK_BYTES)
        .spawn(move || {
            let result = app::block_on(course.go_on()).and_then(|result| result);
            process::exit(conclude(result) as i32)
        });
    if started.is_err() {
        give_up("there is no thread to go on with");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The role of a thread with this name.
    fn role(name: &str) -> Role {
        let first = thread::current().id();
        thread::Builder::new()
            .name(name.into())
            .spawn(move || Role::of(&thread::current(), first))
            .expect("a thread")
            .join()
            .expect("it does not panic")
    }

    #[test]
    fn every_thread_of_ours_has_a_role() {
        let current = thread::current();
        assert_eq!(Role::of(&current, current.id()), Role::Network);
        assert_eq!(role(NETWORK), Role::Network);
        assert_eq!(role(CAPTURE), Role::Capture);
        assert_eq!(role(PUT), Role::Put);
        assert_eq!(role("tokio-runtime-worker"), Role::Other);
    }
}
