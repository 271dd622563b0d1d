//! Trigger and Shutdown: dropping the trigger stops everything that holds the shutdown.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, write};
use tokio::sync::watch;

use crate::clock::Clock;

/// Dropping it asks every [`Shutdown`] to end.
#[derive(Debug)]
pub struct Trigger {
    /// Held for its drop; `None` once that has begun.
    held: Option<watch::Sender<()>>,
    bell: Arc<OwnedFd>,
}

/// Tells a task, or the capture thread, that it has to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown {
    trigger: watch::Receiver<()>,
    /// An eventfd(2) that can be read from once the trigger is gone, and nobody does: for threads that wait in poll(2).
    bell: Arc<OwnedFd>,
}

/// A trigger and the shutdown it works on.
///
/// # Errors
/// When the process may have no more descriptors.
pub fn pair() -> io::Result<(Trigger, Shutdown)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
    let (sender, trigger) = watch::channel(());
    let held = Some(sender);
    let rings = Trigger {
        held,
        bell: Arc::clone(&bell),
    };
    Ok((rings, Shutdown { trigger, bell }))
}

impl Drop for Trigger {
    fn drop(&mut self) {
        self.held = None;
        // It fails only where it was written to a very great number of times.
        let _ = write(&self.bell, &1_u64.to_ne_bytes());
    }
}

impl Shutdown {
    /// Whether the trigger is gone. Never waits.
    pub fn requested(&self) -> bool {
        self.trigger.has_changed().is_err()
    }

    /// Waits until the trigger is gone.
    pub async fn wait(&mut self) {
        while self.trigger.changed().await.is_ok() {}
    }

    /// Blocks the calling thread for `time`, or until the trigger is gone.
    ///
    /// For the capture thread, which has no runtime.
    pub fn sleep(&self, time: Duration) {
        let until = Clock.now() + time;
        while !self.requested() {
            let left = until.saturating_duration_since(Clock.now());
            // A failure costs a turn.
            if left.is_zero() || self.poll(None, Some(left)).is_err() {
                break;
            }
        }
    }

    /// Blocks the calling thread until `fd` can be read from or has failed, `time` is over, a signal comes, or the trigger is
    /// gone. What poll(2) says of `fd`: nothing, unless it was the first.
    ///
    /// # Errors
    /// The operating system's.
    pub fn poll(
        &self,
        fd: Option<BorrowedFd<'_>>,
        time: Option<Duration>,
    ) -> io::Result<PollFlags> {
        let time = time.map(Timespec::try_from).transpose();
        let time = time.map_err(|_| Errno::INVAL)?;
        let bell = self.bell.as_fd();
        // Without a descriptor the bell stands for it.
        let of = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = [of(bell), of(fd.unwrap_or(bell))];
        match poll(&mut fds, time.as_ref()) {
            Ok(_) => Ok(fds[1].revents()),
            Err(Errno::INTR) => Ok(PollFlags::empty()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_the_trigger_is_seen_by_every_clone() {
        let (trigger, shutdown) = pair().expect("descriptors are left");
        let clone = shutdown.clone();
        assert!(!shutdown.requested() && !clone.requested());
        drop(trigger);
        assert!(shutdown.requested() && clone.requested());
        shutdown.sleep(Duration::from_hours(1)); // returns at once
    }

    #[test]
    fn a_sleep_lasts_as_long_as_it_was_asked_to_or_until_the_trigger_is_dropped() {
        let (trigger, shutdown) = pair().expect("descriptors are left");
        let clock = Clock;
        let time = Duration::from_millis(20);
        let start = clock.now();
        shutdown.sleep(time);
        assert!(clock.now() - start >= time);
        std::thread::scope(|scope| {
            scope.spawn(|| shutdown.sleep(Duration::from_hours(1)));
            std::thread::sleep(time);
            drop(trigger);
        });
    }

    #[test]
    fn a_descriptor_is_waited_for_until_it_can_be_read_or_the_trigger_is_dropped() {
        let (trigger, shutdown) = pair().expect("descriptors are left");
        let (reader, writer) = io::pipe().expect("a pipe");
        let poll = |time| {
            let flags = shutdown.poll(Some(reader.as_fd()), time);
            flags.expect("poll(2) takes a pipe")
        };
        assert!(poll(Some(Duration::ZERO)).is_empty());
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(poll(None).is_empty()));
            std::thread::sleep(Duration::from_millis(20));
            drop(trigger);
        });
        drop(writer);
        assert!(poll(None).contains(PollFlags::HUP));
    }

    #[tokio::test]
    async fn wait_ends_when_the_trigger_is_dropped() {
        let (trigger, mut shutdown) = pair().expect("descriptors are left");
        drop(trigger);
        shutdown.wait().await;
    }
}
