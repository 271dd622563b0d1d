//! The capture loop: frames from a source into the ring. Runs on a thread of its own, because cameras block.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tracing::{debug, info, warn};

use super::timeline::{Pace, Timeline};
use super::{Error, Packet, Read, Source};
use crate::backoff::Backoff;
use crate::chain;
use crate::clock::Clock;
use crate::codec::{self, Parser, Unit};
use crate::ring::shared::Writer;
use crate::ring::{DropReason, NewFrame, Push, WhenFull};
use crate::shutdown::Shutdown;

/// [`Policy::silence`] for the real service.
pub const SILENCE: Duration = Duration::from_secs(20);

/// After how long without a decodable key frame somebody is told.
const KEY_FRAME_PATIENCE: Duration = Duration::from_secs(10);

/// The longest wait before a lost camera is tried again.
const LONGEST_REOPEN_WAIT: Duration = Duration::from_secs(2);

/// How the loop ended, other than by an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The media was at its end.
    Media,
    /// It was told to.
    Shutdown,
}

/// What to do in trouble.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// When the ring is full; else the source's kind decides: a live one drops, any other waits.
    pub when_full: Option<WhenFull>,
    /// How long a source may be silent before the fragment it is in is closed: the service ends a connection that has been
    /// idle for 30 s and loses a fragment that was not closed.
    pub silence: Duration,
    /// Whether a source that fails is opened again: a camera is, a file is not.
    pub reopen: bool,
}

/// Moves frames until the media ends or the shutdown comes. Dropping the writer at the end closes the ring.
///
/// # Errors
/// When the source cannot be opened the first time, or fails and is not to be reopened. What was captured stays in the ring.
pub fn run(
    open: impl FnMut() -> Result<Box<dyn Source>, Error>,
    writer: Writer,
    policy: Policy,
    clock: Clock,
    shutdown: &Shutdown,
) -> Result<End, Error> {
    Capture {
        open,
        writer,
        policy,
        when_full: WhenFull::Drop,
        clock,
        timeline: Timeline::new(Pace::Live),
        parser: None,
        episode: None,
    }
    .run(shutdown)
}

struct Capture<O> {
    open: O,
    writer: Writer,
    policy: Policy,
    when_full: WhenFull,
    clock: Clock,
    timeline: Timeline,
    parser: Option<Parser>,
    /// Why frames are being dropped, and since when: one line in the log for each episode.
    episode: Option<(DropReason, u64)>,
}

/// A panic while reading; the log has its words.
fn fault(source: &dyn Source) -> Error {
    Error::Unusable {
        place: source.describe(),
        reason: "reading it hit a fault of this program; please report it".into(),
    }
}

/// How one opening of the source ended.
enum Ended {
    For(End),
    Source(Error),
}

impl<O: FnMut() -> Result<Box<dyn Source>, Error>> Capture<O> {
    fn run(mut self, shutdown: &Shutdown) -> Result<End, Error> {
        let mut source = (self.open)()?;
        let mut backoff = Backoff::new(Duration::from_millis(250), LONGEST_REOPEN_WAIT);
        loop {
            info!("capturing from {}", source.describe());
            let by_kind = if source.is_live() {
                WhenFull::Drop
            } else {
                WhenFull::Wait
            };
            self.when_full = self.policy.when_full.unwrap_or(by_kind);
            self.timeline = Timeline::new(if source.is_live() {
                Pace::Live
            } else {
                Pace::Stored
            });
            let before = self.clock.now();
            // A fault in reading one camera's data must not take the ring, and what is in it, along.
            let read = AssertUnwindSafe(|| self.read_all(source.as_mut(), shutdown));
            let error = match catch_unwind(read)
                .unwrap_or_else(|_| Ended::Source(fault(source.as_ref())))
            {
                Ended::For(end) => return Ok(end),
                Ended::Source(error) if !self.policy.reopen => return Err(error),
                Ended::Source(error) => error,
            };
            drop(source);
            self.writer.fall_silent();
            if self.clock.now() - before > LONGEST_REOPEN_WAIT {
                backoff.reset();
            }
            let mut error = error;
            source = loop {
                let wait = backoff.next_wait(self.clock.jitter());
                warn!(error = %chain(&error), retry_in_s = wait.as_secs_f32(), "the camera is lost, will be opened again");
                shutdown.sleep(wait);
                if shutdown.requested() {
                    return Ok(End::Shutdown);
                }
                match (self.open)() {
                    Ok(source) => break source,
                    Err(again) => error = again,
                }
            };
            self.parser = None;
        }
    }

    fn read_all(&mut self, source: &mut dyn Source, shutdown: &Shutdown) -> Ended {
        let mut last_packet = self.clock.now();
        let mut silent = false;
        let mut waiting_for_key = Some(last_packet);
        let mut first = true;
        while !shutdown.requested() {
            match source.read() {
                Ok(Read::Packet(mut packet)) => {
                    // What an earlier opening brought is no reference for this one.
                    packet.discontinuity |= first;
                    first = false;
                    silent = false;
                    last_packet = self.clock.now();
                    match self.take_in(packet, shutdown) {
                        Some(true) => waiting_for_key = None,
                        Some(false) => {}
                        None => break,
                    }
                }
                Ok(Read::Dropped { reason, bytes }) => self.dropped(reason, bytes),
                Ok(Read::Nothing) => {}
                Ok(Read::End) => return Ended::For(End::Media),
                Err(error) => return Ended::Source(error),
            }
            let now = self.clock.now();
            if !silent && now - last_packet > self.policy.silence {
                silent = true;
                warn!(
                    silent_for_s = self.policy.silence.as_secs(),
                    "no frame comes from {}",
                    source.describe()
                );
                self.writer.fall_silent();
            }
            if waiting_for_key.is_some_and(|since| now - since > KEY_FRAME_PATIENCE) {
                waiting_for_key = None;
                warn!(
                    "no decodable key frame from {} for {} s: is the encoder's key-frame interval (GOP) too long?",
                    source.describe(),
                    KEY_FRAME_PATIENCE.as_secs()
                );
            }
        }
        Ended::For(End::Shutdown)
    }

    /// Takes in one packet: whether a frame was stored; `None` when the shutdown came first.
    fn take_in(&mut self, packet: Packet<'_>, shutdown: &Shutdown) -> Option<bool> {
        let arrived = self.clock.monotonic();
        let parser = match &mut self.parser {
            Some(parser) if parser.codec() == packet.codec => parser,
            other => other.insert(Parser::new(packet.codec)),
        };
        let frame = match parser.parse(packet.data) {
            Ok(Unit::NoPicture) => return Some(false),
            Ok(Unit::Picture(frame)) => frame,
            Err(error) => {
                let reason = match error {
                    codec::Error::NoParameterSets { .. } => DropReason::NoParameterSets,
                    codec::Error::NoNalUnit { .. } => DropReason::CameraGap,
                };
                self.writer.drop_frame(packet.data.len(), reason);
                self.tell(reason, &error);
                return Some(false);
            }
        };
        let new = NewFrame {
            at: self.timeline.place(packet.at, arrived),
            key: frame.key(),
            discontinuity: packet.discontinuity,
            track: frame.track(),
        };
        match self.writer.push(new, &frame, self.when_full, shutdown)? {
            Push::Stored(_) => {
                if let Some((reason, count)) = self.episode.take() {
                    info!(
                        reason = reason.name(),
                        frames = count,
                        "frames are taken again"
                    );
                }
                Some(true)
            }
            Push::Dropped(_, reason) => {
                self.tell(reason, &reason.explanation());
                Some(false)
            }
            Push::Full => Some(false),
        }
    }

    /// Bytes that the source could make no frame of.
    fn dropped(&mut self, reason: codec::DropReason, bytes: usize) {
        match reason {
            codec::DropReason::NoStartCode => {
                debug!(bytes, "bytes without a start code are skipped");
            }
            codec::DropReason::TooLarge => {
                let reason = DropReason::FrameTooLarge;
                self.writer.drop_frame(bytes, reason);
                self.tell(reason, &reason.explanation());
            }
        }
    }

    /// Says once for an episode why frames are dropped.
    fn tell(&mut self, reason: DropReason, why: &dyn std::fmt::Display) {
        match &mut self.episode {
            Some((same, count)) if *same == reason => *count += 1,
            episode => {
                *episode = Some((reason, 1));
                if reason == DropReason::BeforeKeyFrame {
                    debug!("{why}");
                } else {
                    warn!(reason = reason.name(), "frames are dropped: {why}");
                }
            }
        }
    }
}
