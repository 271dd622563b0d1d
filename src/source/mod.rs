//! Where frames come from: the [`Source`] trait and the loop that moves its frames into the ring.

pub mod annexb;
pub mod capture;
#[cfg(feature = "local")]
pub mod demo;
pub mod judge;
pub mod timeline;
pub mod v4l2;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::clock::Clock;
use crate::codec::DropReason;
use crate::frame::{CameraLosses, Codec};
use crate::shutdown::Shutdown;

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
    /// Nothing for as long as it could wait; the caller looks at the shutdown and reads again.
    Nothing,
    /// The media is at its end and there will be no more.
    End,
}

/// How often a source looks at the shutdown that can wait neither for a descriptor nor by [`Wait::sleep`].
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a [`Source::read`] may block. A source without frames, for hours maybe, is not to wake the thread.
#[derive(Debug, Clone, Copy)]
pub struct Wait<'a> {
    /// Until this is requested.
    pub shutdown: &'a Shutdown,
    /// Until then, where something is due.
    pub until: Option<Instant>,
}

impl Wait<'_> {
    /// The same, and not beyond `at`.
    #[must_use]
    pub fn up_to(self, at: Instant) -> Self {
        Self {
            until: Some(self.until.map_or(at, |until| until.min(at))),
            ..self
        }
    }

    /// Whether that is over.
    pub fn is_over(&self) -> bool {
        self.shutdown.requested() || self.left().is_some_and(|left| left.is_zero())
    }

    /// Blocks for `time`, as far as it may.
    pub fn sleep(&self, time: Duration) {
        self.shutdown
            .sleep(self.left().map_or(time, |left| left.min(time)));
    }

    /// For a source that waits by other means: how long until it has to look whether that is over.
    pub fn nap(&self) -> Duration {
        self.left().map_or(LOOK_EVERY, |left| left.min(LOOK_EVERY))
    }

    /// Blocks until `fd` can be read from or has failed. Nothing when that is over before, or a signal comes.
    ///
    /// # Errors
    /// The operating system's.
    pub fn readable(&self, fd: BorrowedFd<'_>) -> io::Result<PollFlags> {
        self.shutdown.poll(Some(fd), self.left())
    }

    fn left(&self) -> Option<Duration> {
        self.until
            .map(|until| until.saturating_duration_since(Clock.now()))
    }
}

#[cfg(test)]
impl Wait<'static> {
    /// What [`Self::briefly`] comes to.
    pub const BRIEF: Duration = Duration::from_millis(200);

    /// Not for long, and no shutdown comes.
    pub fn briefly() -> Self {
        use crate::shutdown::{self, Trigger};
        static NEVER: std::sync::OnceLock<(Trigger, Shutdown)> = std::sync::OnceLock::new();
        let never = NEVER.get_or_init(|| shutdown::pair().expect("descriptors are left"));
        Self {
            shutdown: &never.1,
            until: Some(Clock.now() + Self::BRIEF),
        }
    }
}

/// A camera, a pipe or a file. Lives on the capture thread and may block there, as long as [`Wait`] says.
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
    fn read(&mut self, wait: Wait<'_>) -> Result<Read<'_>, Error>;
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
