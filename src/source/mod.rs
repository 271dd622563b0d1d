//! Where frames come from: the [`Source`] trait and the loop that moves its frames into the ring.

pub mod annexb;
pub mod capture;
#[cfg(feature = "local")]
pub mod demo;
pub mod judge;
pub mod timeline;
pub mod v4l2;

use std::io;
use std::time::Duration;

use crate::codec::DropReason;
use crate::frame::{CameraLosses, Codec};

/// One access unit, lent by the source until the next [`Source::read`].
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// How the bytes are encoded.
    pub codec: Codec,
    /// One whole access unit in Annex B framing (ITU-T H.264 and H.265, annex B).
    pub data: &'a [u8],
    /// When it was captured, on CLOCK_MONOTONIC ([`crate::clock::Clock::monotonic`]). May be wrong in any way: the
    /// capture loop repairs times that stand still, run back or jump.
    pub at: Duration,
    /// Something before this unit was lost: what follows decodes only from the next key frame on.
    pub discontinuity: bool,
}

/// What one [`Source::read`] brought.
#[derive(Debug)]
pub enum Read<'a> {
    /// A frame.
    Packet(Packet<'a>),
    /// Bytes that make no frame, to be counted. When a frame is lost with them, the next one is a discontinuity.
    Dropped {
        /// Why.
        reason: DropReason,
        /// How many.
        bytes: usize,
    },
    /// Nothing within [`POLL`] or [`PIPE_POLL`]; the caller looks at the shutdown and reads again.
    Nothing,
    /// The media is at its end and there will be no more.
    End,
}

/// The longest that a camera's [`Source::read`] may block, so that the capture loop sees a shutdown soon.
pub const POLL: Duration = Duration::from_millis(200);

/// The longest that one of a pipe or file may block. A camera always has frames; a pipe may have none for hours, and the
/// thread is not to be woken for nothing more often than this.
pub const PIPE_POLL: Duration = Duration::from_secs(1);

/// A camera, a pipe or a file. Lives on the capture thread and may block there, up to [`POLL`] or [`PIPE_POLL`].
pub trait Source: Send {
    /// For the log: which source, what it delivers. `"/dev/video0 (UVC Camera): H.264 1280x720 at 25/1"`.
    fn describe(&self) -> String;

    /// Whether frames come at their own pace: when the ring is full, a live source loses the oldest, any other waits.
    fn is_live(&self) -> bool {
        true
    }

    /// What was lost before it could be read, since the source was opened.
    fn losses(&self) -> CameraLosses {
        CameraLosses::default()
    }

    /// Asks for a key frame soon, where whatever encodes can be asked.
    fn want_key_frame(&mut self) {}

    /// The next access unit, in decoding order.
    ///
    /// # Errors
    /// When the source cannot go on; the capture loop then opens it anew.
    fn read(&mut self) -> Result<Read<'_>, Error>;
}

/// What can go wrong with a source. Each message says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Opening, configuring or reading the device, pipe or file failed in the operating system.
    #[error("{action} {place}")]
    Io {
        /// `"cannot open"`, `"reading from"`.
        action: &'static str,
        /// Path of the device or file, `"standard input"`.
        place: String,
        /// The operating system's word.
        source: io::Error,
    },
    /// The device or the media is not of a kind that can be streamed.
    #[error("{place}: {reason}")]
    Unusable {
        /// Path of the device or file, `"standard input"`.
        place: String,
        /// What is wrong, the likely cause, and what to do.
        reason: String,
    },
}
