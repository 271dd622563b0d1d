//! What travels through the program: frames, their times, and what a track is.

use std::fmt;
use std::ops::{AddAssign, Sub};
use std::time::Duration;

use bytes::Bytes;

/// Counts the frames of a run from 0; never reused, so that a gap is a subtraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FrameId(pub u64);

impl fmt::Display for FrameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// When a frame was captured: milliseconds on CLOCK_MONOTONIC, which never steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MediaTime(pub u64);

impl MediaTime {
    /// The millisecond that `time` on CLOCK_MONOTONIC lies in.
    pub fn from_monotonic(time: Duration) -> Self {
        Self(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Start of a fragment as KVS names it: milliseconds since the Unix epoch, growing within a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timecode(pub u64);

impl fmt::Display for Timecode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How the video is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// ITU-T H.264, AVC.
    H264,
    /// ITU-T H.265, HEVC.
    H265,
}

impl Codec {
    /// The KVS media type (RFC 6184, RFC 7798 registered `video/H264`, `video/H265`; KVS wants lower case).
    pub fn media_type(self) -> &'static str {
        match self {
            Self::H264 => "video/h264",
            Self::H265 => "video/h265",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::H264 => "H.264",
            Self::H265 => "H.265",
        })
    }
}

/// Width and height of the picture in pixels, after cropping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dimensions {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

/// What the Tracks element says of the video. A new value means a new connection: Tracks occurs once in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackInfo {
    /// The codec.
    pub codec: Codec,
    /// avcC (ISO/IEC 14496-15, 5.3.3) or hvcC (8.3.3).
    pub codec_private: Bytes,
    /// Size of the picture, when the SPS could be read.
    pub dimensions: Option<Dimensions>,
}

/// What a camera lost before its frames came to us. None of it counts as captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CameraLosses {
    /// Frames that the driver counted and did not hand out, because there was no free buffer.
    pub dropped_by_driver: u64,
    /// Buffers marked as damaged, or longer than they can be.
    pub damaged: u64,
    /// Buffers without a frame: empty, or left over from before the stream began. Nothing is lost with them.
    pub void: u64,
}

impl CameraLosses {
    /// Frames that are not there.
    pub fn frames(self) -> u64 {
        self.dropped_by_driver + self.damaged
    }
}

impl AddAssign for CameraLosses {
    fn add_assign(&mut self, more: Self) {
        self.dropped_by_driver += more.dropped_by_driver;
        self.damaged += more.damaged;
        self.void += more.void;
    }
}

impl Sub for CameraLosses {
    type Output = Self;

    /// What came after `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self {
            dropped_by_driver: self.dropped_by_driver - earlier.dropped_by_driver,
            damaged: self.damaged - earlier.damaged,
            void: self.void - earlier.void,
        }
    }
}

/// The bytes of one frame in the framing that goes out (NAL units behind 4-byte lengths), lent in parts so that the ring
/// makes the only copy.
pub trait Payload {
    /// Bytes in all parts together.
    fn len(&self) -> usize;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `sink` with each part in order. The parts' lengths add up to [`Self::len`].
    fn for_each_part(&self, sink: &mut dyn FnMut(&[u8]));
}

impl Payload for [u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn for_each_part(&self, sink: &mut dyn FnMut(&[u8])) {
        sink(self);
    }
}
