//! Capture times that hold: what drivers and pipes report, made to rise.

use std::time::Duration;

use crate::frame::MediaTime;

/// A longer step between two frames is no spacing but a clock that jumped, or a camera that was away.
const LONGEST_STEP: Duration = Duration::from_secs(10);

/// Places frames on CLOCK_MONOTONIC. A source's own spacing is kept as long as its times rise by reasonable steps; where
/// they stand still, run back or jump, the frame's arrival counts and the source's spacing goes on from there.
#[derive(Debug)]
pub struct Timeline {
    pace: Pace,
    last: Option<Last>,
}

/// Whether a source's frames are of the moment when they arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Yes: times that stray from the arrival by more than ten seconds give way to it.
    Live,
    /// No: a file may be read slower than its frames are spaced, and keeps their spacing.
    Stored,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    /// As reported.
    at: Duration,
    /// Where it was placed.
    placed: Duration,
}

impl Timeline {
    /// A timeline that has seen no frame.
    pub fn new(pace: Pace) -> Self {
        Self { pace, last: None }
    }

    /// Where a frame that the source dates `at` and that came at `arrived` belongs.
    pub fn place(&mut self, at: Duration, arrived: Duration) -> MediaTime {
        let placed = match self.last {
            None if at.abs_diff(arrived) <= LONGEST_STEP => at,
            None => arrived,
            Some(last) => match at.checked_sub(last.at) {
                Some(step) if !step.is_zero() && self.holds(last.placed + step, step, arrived) => {
                    last.placed + step
                }
                _ => arrived.max(last.placed),
            },
        };
        self.last = Some(Last { at, placed });
        MediaTime::from_monotonic(placed)
    }

    fn holds(&self, placed: Duration, step: Duration, arrived: Duration) -> bool {
        step <= LONGEST_STEP
            && (self.pace == Pace::Stored || placed.abs_diff(arrived) <= LONGEST_STEP)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);
    const FRAME: Duration = Duration::from_millis(40);

    #[test]
    fn a_live_source_whose_rate_is_not_what_it_says_stays_near_the_present() {
        let mut timeline = Timeline::new(Pace::Live);
        // Said to be 30/s and comes at 15/s, after an hour's pause.
        for frame in 0..3000 {
            let at = 100 * S + frame * S / 30;
            let arrived = 3700 * S + frame * S / 15;
            let placed = timeline.place(at, arrived);
            let off = placed.0.abs_diff(MediaTime::from_monotonic(arrived).0);
            assert!(off <= 10_000, "frame {frame} is {off} ms off");
        }
    }

    #[test]
    fn regular_times_are_kept_however_late_the_frames_arrive() {
        let mut timeline = Timeline::new(Pace::Stored);
        for frame in 0..100 {
            let at = 100 * S + frame * FRAME;
            assert_eq!(
                timeline.place(at, at + frame * FRAME),
                MediaTime::from_monotonic(at)
            );
        }
    }

    #[test]
    fn times_of_another_clock_keep_their_spacing_from_the_first_arrival_on() {
        let mut timeline = Timeline::new(Pace::Live);
        assert_eq!(timeline.place(S, 500 * S), MediaTime(500_000));
        assert_eq!(timeline.place(S + FRAME, 501 * S), MediaTime(500_040));
    }

    #[test]
    fn times_that_stand_still_run_back_or_jump_give_way_to_the_arrival() {
        for second in [100 * S, 50 * S, Duration::ZERO, 4000 * S] {
            let mut timeline = Timeline::new(Pace::Live);
            timeline.place(100 * S, 100 * S);
            assert_eq!(
                timeline.place(second, 100 * S + FRAME),
                MediaTime(100_040),
                "{second:?}"
            );
            assert_eq!(
                timeline.place(second + FRAME, 101 * S),
                MediaTime(100_080),
                "goes on from {second:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn times_never_run_back(times in proptest::collection::vec((any::<u32>(), 0_u64..1000), 1..200)) {
            let mut timeline = Timeline::new(Pace::Live);
            let mut arrived = Duration::from_secs(1000);
            let mut last = MediaTime(0);
            for (at, later) in times {
                arrived += Duration::from_millis(later);
                let placed = timeline.place(Duration::from_millis(u64::from(at)), arrived);
                prop_assert!(placed >= last);
                last = placed;
            }
        }
    }
}
