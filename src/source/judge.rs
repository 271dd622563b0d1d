//! What really arrives, whatever the encoder was told: its groups of pictures and its bitrate, and whether service and
//! ring can do with them. Pure.

use std::fmt;
use std::time::Duration;

use crate::frame::MediaTime;
use crate::report::megabytes;
use crate::ring::{MAX_FRAGMENT, MIN_FRAGMENT};

/// How long a stream is watched before it is described: a few groups of pictures.
const WATCH: Duration = Duration::from_secs(10);

/// What is worth telling, each once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Remark {
    /// For the log: what the stream is like.
    Measured {
        /// The mean time from key frame to key frame.
        gop: Duration,
        /// Of the payload.
        bits_per_second: u64,
    },
    /// The service takes no fragment of this length.
    GopTooLong {
        /// From key frame to key frame.
        gop: Duration,
    },
    /// While one fragment is sent there must be room for the next.
    RingTooSmall {
        /// Payload of the largest fragment so far.
        fragment_bytes: u64,
        /// Payload memory of the ring.
        ring_bytes: u64,
    },
}

impl Remark {
    /// Whether something should be done about it.
    pub fn is_warning(self) -> bool {
        !matches!(self, Self::Measured { .. })
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Measured {
                gop,
                bits_per_second,
            } => write!(
                f,
                "a key frame comes every {:.1} s, and {} Mbit/s in all",
                gop.as_secs_f32(),
                megabytes(bits_per_second)
            ),
            Self::GopTooLong { gop } => write!(
                f,
                "key frames come {:.0} s apart, and the service takes no fragment over 20 s: what comes after {} s is \
                 dropped; set a shorter key-frame interval, with --gop or at the camera",
                gop.as_secs_f32(),
                MAX_FRAGMENT.as_secs()
            ),
            Self::RingTooSmall {
                fragment_bytes,
                ring_bytes,
            } => write!(
                f,
                "the buffer of {} MB cannot hold two fragments of {} MB: give a --buffer of {}K or more, or set a shorter \
                 key-frame interval or a lower bitrate",
                megabytes(ring_bytes),
                megabytes(fragment_bytes),
                (2 * fragment_bytes).div_ceil(1024)
            ),
        }
    }
}

/// Watches the frames that are stored.
#[derive(Debug)]
pub struct Judge {
    ring_bytes: u64,
    /// Where the watching began, and the bytes since then, up to the last key frame.
    began: Option<MediaTime>,
    bytes: u64,
    groups: u32,
    /// The group that has not ended.
    group: Option<Group>,
    /// Whole groups that are a fragment together, as the ring joins them.
    fragment: Option<Group>,
    measured: bool,
    too_long: bool,
    too_large: bool,
}

#[derive(Debug, Clone, Copy)]
struct Group {
    began: MediaTime,
    bytes: u64,
}

impl Group {
    fn lasts(self, until: MediaTime) -> Duration {
        Duration::from_millis(until.0.saturating_sub(self.began.0))
    }
}

impl Judge {
    /// For a ring with so much memory for payload.
    pub fn new(ring_bytes: usize) -> Self {
        Self {
            ring_bytes: ring_bytes as u64,
            began: None,
            bytes: 0,
            groups: 0,
            group: None,
            fragment: None,
            measured: false,
            too_long: false,
            too_large: false,
        }
    }

    /// Something was lost: the group that has not ended tells nothing, nor does the time around it.
    pub fn gap(&mut self) {
        self.group = None;
        self.fragment = None;
        self.began = None;
        self.bytes = 0;
        self.groups = 0;
    }

    /// A frame was stored.
    pub fn frame(&mut self, at: MediaTime, len: usize, key: bool) -> Option<Remark> {
        let mut remark = None;
        if key {
            if let Some(group) = self.group.take() {
                remark = self.group_ended(group, at);
            }
            self.began.get_or_insert(at);
            self.group = Some(Group {
                began: at,
                bytes: 0,
            });
        }
        self.group.as_mut()?.bytes += len as u64;
        remark
    }

    fn group_ended(&mut self, group: Group, at: MediaTime) -> Option<Remark> {
        self.groups += 1;
        self.bytes += group.bytes;
        let fragment = match self.fragment.take() {
            Some(fragment) => Group {
                bytes: fragment.bytes + group.bytes,
                ..fragment
            },
            None => group,
        };
        if fragment.lasts(at) < MIN_FRAGMENT {
            self.fragment = Some(fragment);
        } else if !self.too_large && 2 * fragment.bytes > self.ring_bytes {
            self.too_large = true;
            return Some(Remark::RingTooSmall {
                fragment_bytes: fragment.bytes,
                ring_bytes: self.ring_bytes,
            });
        }
        let gop = group.lasts(at);
        if !self.too_long && gop > MAX_FRAGMENT {
            self.too_long = true;
            return Some(Remark::GopTooLong { gop });
        }
        let watched = Group {
            began: self.began?,
            bytes: self.bytes,
        };
        let time = watched.lasts(at);
        if self.measured || time < WATCH {
            return None;
        }
        self.measured = true;
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Some(Remark::Measured {
            gop: time / self.groups,
            bits_per_second: watched.bytes * 8 * 1000 / millis,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The remarks on so many groups of frames 40 ms apart.
    fn judge(ring_bytes: usize, groups: u64, frames: u64, len: usize) -> Vec<Remark> {
        let mut judge = Judge::new(ring_bytes);
        (0..groups * frames)
            .filter_map(|index| judge.frame(MediaTime(5000 + index * 40), len, index % frames == 0))
            .collect()
    }

    #[test]
    fn a_good_stream_is_described_once() {
        let measured = Remark::Measured {
            gop: Duration::from_secs(2),
            bits_per_second: 2_000_000,
        };
        assert_eq!(judge(2 * 1024 * 1024, 20, 50, 10_000), [measured]);
        assert!(!measured.is_warning());
        assert_eq!(
            measured.to_string(),
            "a key frame comes every 2.0 s, and 2.0 Mbit/s in all"
        );
    }

    #[test]
    fn a_group_that_the_service_does_not_take_is_warned_of_once() {
        let [first, second] = judge(usize::MAX, 4, 525, 10)[..] else {
            panic!("two remarks");
        };
        let gop = Duration::from_secs(21);
        assert_eq!(first, Remark::GopTooLong { gop });
        assert!(first.is_warning() && !second.is_warning());
        assert!(first.to_string().contains("key frames come 21 s apart"));
    }

    #[test]
    fn a_ring_that_cannot_hold_two_fragments_is_warned_of_once() {
        let remarks = judge(524_288, 20, 50, 5300);
        assert_eq!(
            remarks[0],
            Remark::RingTooSmall {
                fragment_bytes: 265_000,
                ring_bytes: 524_288
            }
        );
        assert!(remarks[0].to_string().contains("--buffer of 518K or more"));
        assert_eq!(
            remarks.iter().filter(|remark| remark.is_warning()).count(),
            1
        );
        assert!(
            judge(524_288, 20, 50, 5200)
                .iter()
                .all(|remark| !remark.is_warning())
        );
        // Short groups share a fragment of a second.
        assert!(judge(524_288, 50, 5, 11_000)[0].is_warning());
        assert!(!judge(524_288, 60, 5, 10_000)[0].is_warning());
    }

    #[test]
    fn what_a_gap_interrupts_is_not_judged() {
        let mut judge = Judge::new(524_288);
        for start in [0, 100_000, 200_000] {
            assert_eq!(judge.frame(MediaTime(start), 10, true), None);
            judge.gap();
            assert_eq!(judge.frame(MediaTime(start + 50_000), 10, false), None);
        }
    }
}
