//! What to do about a camera that delivers nothing: one rung after the other, each a little harder on it. Pure.

use std::time::{Duration, Instant};

/// The shortest silence that means something: encoders may hold frames back for a moment.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rung {
    /// Give the driver the buffers that it should have and has not.
    Requeue,
    /// Stream off and on.
    Restart,
    /// Close the node and open it again.
    Reopen,
}

/// Where on the ladder a camera stands. Every frame leads back to the ground.
#[derive(Debug)]
pub(super) struct Ladder {
    patience: Duration,
    /// The last frame, or the start.
    since: Instant,
    /// Rungs climbed since then.
    climbed: u32,
    /// Whether a frame has come at all: to begin, cameras need longer.
    begun: bool,
}

impl Ladder {
    /// At the start of a stream with `interval` between two frames, as far as it is known.
    pub(super) fn new(interval: Option<Duration>, now: Instant) -> Self {
        Self {
            patience: LEAST_PATIENCE.max(3 * interval.unwrap_or_default()),
            since: now,
            climbed: 0,
            begun: false,
        }
    }

    #[cfg(test)]
    pub(super) fn with_patience(patience: Duration, now: Instant) -> Self {
        Self {
            patience,
            ..Self::new(None, now)
        }
    }

    /// A frame came.
    pub(super) fn delivered(&mut self, now: Instant) {
        self.since = now;
        self.climbed = 0;
        self.begun = true;
    }

    /// Whether a frame has come at all.
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// How long no frame has come.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// When the next rung is due.
    pub(super) fn due(&self) -> Instant {
        let patience = self.patience * if self.begun { 1 } else { 2 };
        self.since + patience * (self.climbed + 1)
    }

    /// The rung that is due by now, once.
    pub(super) fn silent(&mut self, now: Instant) -> Option<Rung> {
        if now < self.due() {
            return None;
        }
        self.climbed += 1;
        Some(match self.climbed {
            1 => Rung::Requeue,
            2 => Rung::Restart,
            _ => Rung::Reopen,
        })
    }

    /// The driver reports an error: buffers alone will not help.
    pub(super) fn failed(&mut self) -> Rung {
        self.climbed = self.climbed.max(1) + 1;
        if self.climbed == 2 {
            Rung::Restart
        } else {
            Rung::Reopen
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const MS: Duration = Duration::from_millis(1);

    /// The rungs of 20 s, looked at every 100 ms, with their times.
    fn climb(ladder: &mut Ladder, start: Instant) -> Vec<(u128, Rung)> {
        (0..200)
            .map(|tick| tick * 100 * MS)
            .filter_map(|after| Some((after.as_millis(), ladder.silent(start + after)?)))
            .take(3)
            .collect()
    }

    #[test]
    fn a_silent_camera_is_requeued_then_restarted_then_reopened() {
        let start = Clock.now();
        let mut ladder = Ladder::new(Some(33 * MS), start);
        ladder.delivered(start);
        let rungs = [
            (2000, Rung::Requeue),
            (4000, Rung::Restart),
            (6000, Rung::Reopen),
        ];
        assert_eq!(climb(&mut ladder, start), rungs);
        // A frame leads back to the ground.
        ladder.delivered(start);
        assert_eq!(climb(&mut ladder, start), rungs);
    }

    #[test]
    fn patience_is_three_frames_and_twice_that_for_the_first() {
        let start = Clock.now();
        let mut ladder = Ladder::new(Some(1000 * MS), start);
        assert_eq!(climb(&mut ladder, start)[0], (6000, Rung::Requeue));
        ladder.delivered(start);
        assert_eq!(climb(&mut ladder, start)[0], (3000, Rung::Requeue));
    }

    #[test]
    fn a_camera_that_fails_is_restarted_once_between_two_frames() {
        let mut ladder = Ladder::new(None, Clock.now());
        assert_eq!(ladder.failed(), Rung::Restart);
        assert_eq!(ladder.failed(), Rung::Reopen);
        ladder.delivered(Clock.now());
        assert_eq!(ladder.failed(), Rung::Restart);
    }
}
