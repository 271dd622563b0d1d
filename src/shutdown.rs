//! Trigger and Shutdown: dropping the trigger stops everything that holds the shutdown.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Dropping it asks every [`Shutdown`] to end.
#[derive(Debug)]
pub struct Trigger {
    /// Held for its drop; `None` once that has begun.
    held: Option<watch::Sender<()>>,
    bell: Arc<Bell>,
}

/// Tells a task, or the capture thread, that it has to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown {
    trigger: watch::Receiver<()>,
    bell: Arc<Bell>,
}

/// Wakes threads that sleep; what they sleep for is the watch.
#[derive(Debug, Default)]
struct Bell {
    mutex: Mutex<()>,
    rung: Condvar,
}

/// A trigger and the shutdown it works on.
pub fn pair() -> (Trigger, Shutdown) {
    let (sender, trigger) = watch::channel(());
    let bell = Arc::<Bell>::default();
    let held = Some(sender);
    (
        Trigger {
            held,
            bell: Arc::clone(&bell),
        },
        Shutdown { trigger, bell },
    )
}

impl Drop for Trigger {
    fn drop(&mut self) {
        self.held = None;
        // Whoever has looked, and is about to sleep, holds the mutex until it does.
        drop(self.bell.mutex.lock());
        self.bell.rung.notify_all();
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
        let mutex = &self.bell.mutex;
        let mutex = mutex.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is under the mutex that a panic could have left half done.
        let _ = self
            .bell
            .rung
            .wait_timeout_while(mutex, time, |()| !self.requested());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_the_trigger_is_seen_by_every_clone() {
        let (trigger, shutdown) = pair();
        let clone = shutdown.clone();
        assert!(!shutdown.requested() && !clone.requested());
        drop(trigger);
        assert!(shutdown.requested() && clone.requested());
        shutdown.sleep(Duration::from_hours(1)); // returns at once
    }

    #[test]
    fn a_sleep_lasts_as_long_as_it_was_asked_to_or_until_the_trigger_is_dropped() {
        let (trigger, shutdown) = pair();
        let clock = crate::clock::Clock;
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

    #[tokio::test]
    async fn wait_ends_when_the_trigger_is_dropped() {
        let (trigger, mut shutdown) = pair();
        drop(trigger);
        shutdown.wait().await;
    }
}
