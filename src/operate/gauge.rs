//! What only two looks at a producer tell: rates, when the last frame came, how often it became tight. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::metrics::{Buffer, Pressure, Rates};
use crate::status::{Look, Overflow, Turn};

/// Rates are those of the last looks up to this far back.
const WINDOW: Duration = Duration::from_secs(10);

/// What is looked at more often is not kept.
const LEAST_SPACING: Duration = Duration::from_millis(500);

/// The ring is tight when it has no more than this share of it to give, in percent, and not any more from twice that on.
const TIGHT_PERCENT: usize = 5;

/// See the module.
#[derive(Debug, Default)]
pub struct Gauge {
    looks: VecDeque<Look>,
    last_frame: Option<Instant>,
    pressure: Pressure,
    overflow: Overflow,
    tight: bool,
    late: bool,
}

impl Gauge {
    /// Takes a look; says when an episode of overflow begins or ends.
    pub fn look(&mut self, now: &Look) -> Option<Turn> {
        let before = self
            .looks
            .back()
            .map_or(0, |look| look.counts.captured.frames);
        if now.counts.captured.frames > before {
            self.last_frame = Some(now.at);
        }
        let last_but_one = self.looks.iter().nth_back(1);
        if last_but_one.is_some_and(|one| now.at.saturating_duration_since(one.at) < LEAST_SPACING)
        {
            self.looks.pop_back();
        }
        self.looks.push_back(*now);
        while self.looks.len() > 2 && now.at.saturating_duration_since(self.looks[0].at) > WINDOW {
            self.looks.pop_front();
        }
        self.press(now);
        let turn = self.overflow.look(now);
        self.pressure.overflow += u64::from(turn == Some(Turn::Began));
        turn
    }

    /// Whether frames are being given up.
    pub fn overflows(&self) -> bool {
        self.overflow.goes_on()
    }

    /// When the source brought a frame that was seen.
    pub fn last_frame(&self) -> Option<Instant> {
        self.last_frame
    }

    /// How often it became tight.
    pub fn pressure(&self) -> Pressure {
        self.pressure
    }

    /// What flows.
    pub fn rates(&self) -> Rates {
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else {
            return Rates::default();
        };
        let seconds = last.at.saturating_duration_since(first.at).as_secs_f64();
        if seconds <= 0.0 {
            return Rates::default();
        }
        let per_second = |before: u64, after: u64| {
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let amount = after.saturating_sub(before) as f64;
            amount / seconds
        };
        let (before, after) = (&first.counts, &last.counts);
        let sent = |counts: &crate::ring::Counts| counts.sent.bytes + counts.resent.bytes;
        Rates {
            frames: per_second(before.captured.frames, after.captured.frames),
            captured_bits: 8.0 * per_second(before.captured.bytes, after.captured.bytes),
            sent_bits: 8.0 * per_second(sent(before), sent(after)),
        }
    }

    /// The ring at this look.
    pub fn buffer(&self, now: &Look, largest_frame_bytes: usize) -> Buffer {
        let fill = &now.fill;
        let until_newest = |from: Option<crate::frame::MediaTime>| {
            let ms = from
                .zip(fill.newest)
                .map_or(0, |(from, newest)| newest.0.saturating_sub(from.0));
            Duration::from_millis(ms)
        };
        Buffer {
            total_bytes: fill.total_bytes,
            available_bytes: fill.available_bytes,
            unsent_bytes: fill.unsent_bytes,
            held: until_newest(fill.oldest),
            unsent: until_newest(fill.oldest_unsent),
            capacity: self.capacity(fill.total_bytes),
            fragments: fill.fragments,
            largest_frame_bytes,
        }
    }

    /// How much media so many bytes hold at the present rate.
    fn capacity(&self, bytes: usize) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let bits = 8.0 * bytes as f64;
        let seconds = bits / self.rates().captured_bits;
        Duration::try_from_secs_f64(seconds).ok()
    }

    fn press(&mut self, now: &Look) {
        let fill = &now.fill;
        let free_percent = fill.available_bytes * 100 / fill.total_bytes.max(1);
        let limit = if self.tight {
            2 * TIGHT_PERCENT
        } else {
            TIGHT_PERCENT
        };
        let tight = free_percent <= limit;
        self.pressure.storage += u64::from(tight && !self.tight);
        self.tight = tight;

        let behind = now.behind();
        let late = self
            .capacity(fill.total_bytes)
            .is_some_and(|all| behind > all / 2);
        self.pressure.latency += u64::from(late && !self.late);
        self.late = late;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::frame::MediaTime;
    use crate::ring::{Amount, Counts, Fill};

    /// A look after so many seconds of 25 frames and 50,000 bytes each.
    fn look(start: Instant, second: u64, available_bytes: usize) -> Look {
        let captured = Amount {
            frames: second * 25,
            bytes: second * 50_000,
        };
        Look {
            at: start + Duration::from_secs(second),
            media: MediaTime(second * 1000),
            counts: Counts {
                captured,
                sent: captured,
                ..Counts::default()
            },
            fill: Fill {
                total_bytes: 1_000_000,
                available_bytes,
                oldest_unsent: None,
                unsent_bytes: 0,
                oldest: None,
                newest: None,
                fragments: 0,
            },
            connections: 1,
            streaming: true,
            last_persisted: None,
        }
    }

    #[test]
    fn rates_are_those_of_the_last_ten_seconds() {
        let start = Clock.now();
        let mut gauge = Gauge::default();
        assert_eq!(gauge.rates(), Rates::default());
        for second in 0..100 {
            gauge.look(&look(start, second, 500_000));
        }
        let rates = gauge.rates();
        assert!((rates.frames - 25.0).abs() < 0.01, "{rates:?}");
        assert!((rates.captured_bits - 400_000.0).abs() < 1.0, "{rates:?}");
        let buffer = gauge.buffer(&look(start, 100, 500_000), 1);
        assert_eq!(buffer.capacity.map(|all| all.as_secs()), Some(20));
        assert_eq!(gauge.last_frame(), Some(start + Duration::from_secs(99)));
        // The camera stops: the frame rate goes down to nothing, and nobody divides by it.
        for second in 100..120 {
            let mut still = look(start, second, 500_000);
            still.counts = look(start, 99, 0).counts;
            gauge.look(&still);
        }
        assert_eq!(gauge.rates(), Rates::default());
        assert_eq!(gauge.capacity(1), None);
        assert_eq!(gauge.last_frame(), Some(start + Duration::from_secs(99)));
    }

    #[test]
    fn whoever_asks_all_the_time_changes_no_rate_and_fills_no_memory() {
        let start = Clock.now();
        let mut gauge = Gauge::default();
        for tenth in 0..600 {
            let mut now = look(start, tenth / 10, 500_000);
            now.at += Duration::from_millis(100 * (tenth % 10));
            gauge.look(&now);
        }
        assert!(gauge.looks.len() <= 30, "{}", gauge.looks.len());
        let rates = gauge.rates();
        assert!((rates.frames - 25.0).abs() < 3.0, "{rates:?}");
    }

    #[test]
    fn rates_are_nothing_at_the_next_look_after_a_long_time_without_frames() {
        let start = Clock.now();
        let mut gauge = Gauge::default();
        for second in 0..20 {
            gauge.look(&look(start, second, 500_000));
        }
        let mut late = look(start, 19, 500_000);
        late.at += Duration::from_mins(5);
        gauge.look(&late);
        assert!(gauge.rates().frames < 0.1, "{:?}", gauge.rates());
        assert_eq!(gauge.last_frame(), Some(start + Duration::from_secs(19)));
    }

    #[test]
    fn a_ring_that_is_full_for_long_is_one_episode() {
        let start = Clock.now();
        let mut gauge = Gauge::default();
        let free = [500, 50, 10, 51, 99, 111, 60, 50, 0];
        for (second, kilobytes) in (0..).zip(free) {
            gauge.look(&look(start, second, kilobytes * 1000));
        }
        assert_eq!(gauge.pressure().storage, 2);
    }

    #[test]
    fn late_is_later_than_half_of_what_the_ring_holds() {
        let start = Clock.now();
        let mut gauge = Gauge::default();
        // The ring holds 20 s.
        for (second, behind) in [(1, 0), (2, 10), (3, 11), (4, 12), (5, 0), (6, 11)] {
            let mut now = look(start, second, 500_000);
            now.media = MediaTime(100_000);
            now.fill.oldest_unsent = Some(MediaTime(100_000 - behind * 1000));
            gauge.look(&now);
        }
        assert_eq!(gauge.pressure().latency, 2);
    }
}
