//! Trigger and Shutdown: dropping the trigger stops everything that holds the shutdown.

use std::time::Duration;

use tokio::sync::watch;

/// Dropping it asks every [`Shutdown`] to end.
#[derive(Debug)]
pub struct Trigger(#[expect(dead_code, reason = "held for its drop")] watch::Sender<()>);

/// Tells a task, or the capture thread, that it has to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<()>);

/// A trigger and the shutdown it works on.
pub fn pair() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(());
    (Trigger(sender), Shutdown(receiver))
}

impl Shutdown {
    /// Whether the trigger is gone. Never waits.
    pub fn requested(&self) -> bool {
        self.0.has_changed().is_err()
    }

    /// Waits until the trigger is gone.
    pub async fn wait(&mut self) {
        while self.0.changed().await.is_ok() {}
    }

    /// Blocks the calling thread for `time`, or until the trigger is gone, looked at every 50 ms.
    ///
    /// For the capture thread, which has no runtime.
    pub fn sleep(&self, time: Duration) {
        const STEP: Duration = Duration::from_millis(50);
        let mut left = time;
        while !left.is_zero() && !self.requested() {
            let step = left.min(STEP);
            std::thread::sleep(step);
            left -= step;
        }
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

    #[tokio::test]
    async fn wait_ends_when_the_trigger_is_dropped() {
        let (trigger, mut shutdown) = pair();
        drop(trigger);
        shutdown.wait().await;
    }
}
