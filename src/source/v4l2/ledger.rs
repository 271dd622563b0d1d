//! Which of a driver's buffers hold frames, and what was lost between them. Pure.

use std::time::Duration;

use tracing::warn;

use super::layout::Filled;
use crate::frame::CameraLosses;

/// Tells frames from what is none, and keeps count of what was lost.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// See [`Picture::longest_frame`](super::abi::Picture); 0 from drivers that leave the field empty.
    longest_frame: usize,
    /// When the stream was started, on the clock of the frames' times.
    started: Duration,
    /// How many more buffers may be from before that: all that there are, until one is not.
    may_be_old: usize,
    /// Whether there was a buffer.
    begun: bool,
    sequence: Option<u32>,
    discontinuity: bool,
    losses: CameraLosses,
    /// How often something was lost.
    occasions: u64,
}

impl Ledger {
    /// For a stream that starts now, with so many buffers for frames of at most so many bytes.
    pub(super) fn new(started: Duration, buffers: usize, longest_frame: usize) -> Self {
        Self {
            longest_frame,
            started,
            may_be_old: buffers,
            ..Self::default()
        }
    }

    /// The length of the frame in a buffer of `mapped` bytes, or `None` when the buffer holds no frame.
    pub(super) fn judge(&mut self, filled: &Filled, mapped: usize) -> Option<usize> {
        let end = filled.bytes_used as usize;
        let length = end.saturating_sub(filled.data_offset as usize);
        // More bytes than the buffer has: whatever the driver meant, the frame is not whole.
        let damaged = filled.error || end > mapped;
        // Encoders hand out empty buffers at a stream's start and end, and for frames that they skipped. A first buffer
        // that is full to the brim is what v4l2loopback still has from an earlier feeder.
        let brim = match self.longest_frame {
            0 => mapped,
            longest => longest.min(mapped),
        };
        let first = !std::mem::replace(&mut self.begun, true);
        let full = first && length >= brim;
        // v4l2loopback begins with the last frame that it has, however old.
        let old = filled
            .captured
            .is_some_and(|captured| captured < self.started);
        self.may_be_old = if old {
            self.may_be_old.saturating_sub(1)
        } else {
            0
        };
        let left_over = full || (old && self.may_be_old > 0);
        if left_over && !damaged {
            // Nobody has lost what came between it and the start.
            self.losses.void += 1;
            return None;
        }
        self.follow(filled.sequence, damaged || length == 0);
        if damaged {
            self.losses.damaged += 1;
            self.lose();
            None
        } else if length == 0 {
            self.losses.void += 1;
            None
        } else {
            Some(length)
        }
    }

    /// Counts the frames between the last buffer and this one.
    fn follow(&mut self, sequence: u32, void: bool) {
        let step = self
            .sequence
            .map_or(1, |last| sequence.wrapping_sub(last).cast_signed());
        // The number in a void buffer may be void too: an unplugged camera's is 0.
        if step > 0 || !void {
            self.sequence = Some(sequence);
        }
        // A number that stands still is a driver that does not count; one that falls, a driver that began anew.
        if step > 1 {
            self.losses.dropped_by_driver += u64::from(step.unsigned_abs()) - 1;
            self.lose();
        }
    }

    /// The stream was stopped and started: what comes decodes from its own first key frame on.
    pub(super) fn begin_anew(&mut self, started: Duration, buffers: usize) {
        self.started = started;
        self.may_be_old = buffers;
        self.begun = false;
        self.sequence = None;
        self.discontinuity = true;
    }

    fn lose(&mut self) {
        self.discontinuity = true;
        let CameraLosses {
            dropped_by_driver,
            damaged,
            void,
        } = self.losses;
        self.occasions += 1;
        // At the first, the second, the fourth ..: a camera that damages every other frame must not flood the log.
        if self.occasions.is_power_of_two() {
            warn!(dropped_by_driver, damaged, void, "the camera loses frames");
        }
    }

    pub(super) fn losses(&self) -> CameraLosses {
        self.losses
    }

    /// Whether something was lost since this was asked last.
    pub(super) fn take_discontinuity(&mut self) -> bool {
        std::mem::take(&mut self.discontinuity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);
    const BUFFERS: usize = 8;
    /// Bytes in a buffer, and the most that a frame takes of it.
    const MAPPED: usize = 64;
    const LONGEST: usize = 63;

    /// A whole frame of 5 bytes.
    fn frame(sequence: u32) -> Filled {
        Filled {
            index: 0,
            data_offset: 0,
            bytes_used: 5,
            error: false,
            sequence,
            captured: Some(START + Duration::from_secs(1)),
        }
    }

    /// The length of each frame, `None` for what is none, and what was lost in the end.
    fn judge(filled: impl IntoIterator<Item = Filled>) -> (Vec<Option<usize>>, CameraLosses) {
        let mut ledger = Ledger::new(START, BUFFERS, LONGEST);
        let judge = |filled: Filled| ledger.judge(&filled, MAPPED);
        (filled.into_iter().map(judge).collect(), ledger.losses())
    }

    fn losses(dropped_by_driver: u64, damaged: u64, void: u64) -> CameraLosses {
        CameraLosses {
            dropped_by_driver,
            damaged,
            void,
        }
    }

    #[test]
    fn a_buffer_longer_than_itself_is_damaged() {
        let long = Filled {
            bytes_used: 65,
            ..frame(0)
        };
        assert_eq!(
            judge([long, frame(1)]),
            (vec![None, Some(5)], losses(0, 1, 0))
        );
    }

    #[test]
    fn a_first_buffer_that_is_full_is_left_over_and_a_later_one_is_not() {
        let full = |sequence| Filled {
            bytes_used: 63,
            ..frame(sequence)
        };
        let lengths = vec![None, Some(5), Some(63)];
        assert_eq!(
            judge([full(0), frame(1), full(2)]),
            (lengths, losses(0, 0, 1))
        );
    }

    #[test]
    fn first_buffers_from_before_the_start_are_left_over() {
        let old = |sequence| Filled {
            captured: Some(Duration::from_secs(99)),
            ..frame(sequence)
        };
        let lengths = vec![None, None, Some(5), Some(5)];
        let filled = [old(3), old(4), frame(50), old(51)];
        assert_eq!(judge(filled), (lengths, losses(0, 0, 2)));
        // A driver whose times have nothing to do with ours is believed after as many as it can have had.
        let (lengths, _) = judge((0..20).map(old));
        assert_eq!(lengths.iter().flatten().count(), 13);
    }

    #[test]
    fn a_gap_in_the_driver_s_count_is_a_loss() {
        let mut ledger = Ledger::new(START, BUFFERS, LONGEST);
        let gaps = [7, 8, 12, 13].map(|sequence| {
            ledger.judge(&frame(sequence), MAPPED);
            ledger.take_discontinuity()
        });
        assert_eq!(gaps, [false, false, true, false]);
        assert_eq!(ledger.losses(), losses(3, 0, 0));
    }

    #[test]
    fn a_count_that_stands_still_starts_anew_or_wraps_is_none() {
        let (_, lost) = judge([0, 0, 0, u32::MAX, 0, 1, 2, 0, 1].map(frame));
        assert_eq!(lost, losses(0, 0, 0));
        // The void buffers of a camera that is being unplugged are numbered 0.
        let unplugged = Filled {
            error: true,
            bytes_used: 0,
            ..frame(0)
        };
        let (_, lost) = judge([frame(500), unplugged, frame(501)]);
        assert_eq!(lost, losses(0, 1, 0));
    }
}
