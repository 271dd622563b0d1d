//! Doubling waits, bounded; the jitter comes in as an argument.

use std::time::Duration;

/// Waits between tries: none before the first, then full jitter in a range that doubles up to a cap.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// The range of the wait after the second failure in a row is `first`, after the third twice that, and so on, up to
    /// `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            failures: 0,
        }
    }

    /// How long to wait after another failure. `jitter` in `0.0..1.0` picks from the range.
    ///
    /// The first try after a success comes at once: most interruptions are a closed connection.
    pub fn next_wait(&mut self, jitter: f64) -> Duration {
        let failures = self.failures;
        self.failures = failures.saturating_add(1);
        if failures == 0 {
            return Duration::ZERO;
        }
        let doubled = self
            .first
            .saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
        // Not all of the range: a wait of nearly nothing would hammer a service that is struggling.
        doubled
            .min(self.cap)
            .mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }

    /// Failures in a row so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// A success: the next failure is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_start_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..6).map(|_| backoff.next_wait(1.0).as_millis()).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1000]);
        backoff.reset();
        assert_eq!(backoff.next_wait(1.0), Duration::ZERO);
    }

    #[test]
    fn jitter_takes_away_up_to_half_and_years_of_failures_do_no_harm() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        backoff.next_wait(0.0);
        assert_eq!(backoff.next_wait(0.0), Duration::from_millis(50));
        backoff.failures = u32::MAX;
        assert_eq!(backoff.next_wait(1.0), Duration::from_secs(30));
    }
}
