//! The capture loop: frames from a source into the ring. Runs on a thread of its own, because cameras block.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use super::judge::Judge;
use super::timeline::{Pace, Timeline};
use super::{Error, Packet, Read, Source, Wait};
use crate::backoff::Backoff;
use crate::chain;
use crate::clock::Clock;
use crate::codec::{self, Parser, Unit};
use crate::detail;
use crate::frame::{CameraLosses, MediaTime, Payload as _};
use crate::repeats::Repeats;
use crate::ring::shared::Writer;
use crate::ring::{DropReason, NewFrame, Push, WhenFull};
use crate::shutdown::Shutdown;

/// [`Policy::silence`] for the real service.
pub const SILENCE: Duration = Duration::from_secs(20);

/// After how long without a decodable key frame somebody is told.
const KEY_FRAME_PATIENCE: Duration = Duration::from_secs(10);

/// The longest wait before a lost camera is tried again.
const LONGEST_REOPEN_WAIT: Duration = Duration::from_secs(2);

/// How often a key frame is asked for while none comes: an encoder needs its time to make one.
const ASK_AGAIN: Duration = Duration::from_secs(1);

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

/// How the source is, for whoever watches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct News {
    /// How often it was opened.
    pub opened: u64,
    /// How often it was lost.
    pub lost: u64,
    /// Why no frame comes now.
    pub trouble: Option<String>,
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
    news: watch::Sender<News>,
) -> Result<End, Error> {
    let judge = Judge::new(writer.capacity());
    Capture {
        open,
        writer,
        policy,
        when_full: WhenFull::Drop,
        clock,
        timeline: Timeline::new(Pace::Live),
        parser: None,
        episode: None,
        judge,
        opened_before: false,
        needs_key: None,
        counted: CameraLosses::default(),
        news,
        repeats: Repeats::default(),
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
    judge: Judge,
    /// Whether this is not the first opening.
    opened_before: bool,
    /// Nothing can be stored before the next key frame, which is to be asked for at this time.
    needs_key: Option<Instant>,
    /// What the present opening of the source has lost, as far as the ring was told.
    counted: CameraLosses,
    news: watch::Sender<News>,
    repeats: Repeats<Line>,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Stored,
    /// It holds no picture.
    NoPicture,
    Dropped,
}

/// How one opening of the source ended.
enum Ended {
    For(End),
    Source(Error),
}

/// Lines that may repeat themselves.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Lost(String),
    Back,
    Dropped(DropReason),
    TakenAgain(DropReason),
}

impl<O: FnMut() -> Result<Box<dyn Source>, Error>> Capture<O> {
    fn run(mut self, shutdown: &Shutdown) -> Result<End, Error> {
        let mut source = (self.open)()?;
        self.news.send_modify(|news| news.opened += 1);
        let mut backoff = Backoff::new(Duration::from_millis(250), LONGEST_REOPEN_WAIT);
        info!("capturing from {}", source.describe());
        loop {
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
            let mut delivered = false;
            let error = match self.read_all(source.as_mut(), &mut delivered, shutdown) {
                Ended::For(end) => return Ok(end),
                Ended::Source(error) if !self.policy.reopen => return Err(error),
                Ended::Source(error) => error,
            };
            drop(source);
            self.news.send_modify(|news| {
                news.lost += 1;
                news.trouble = Some(chain(&error).to_string());
            });
            self.writer.fall_silent();
            self.judge.gap();
            if delivered {
                backoff.reset();
            }
            let Some(again) = self.reopen(error, &mut backoff, shutdown) else {
                return Ok(End::Shutdown);
            };
            source = again;
            detail!("opened {} again", source.describe());
            self.parser = None;
        }
    }

    /// Opens the source again, as often as it takes; `None` when the shutdown came first.
    fn reopen(
        &mut self,
        mut error: Error,
        backoff: &mut Backoff,
        shutdown: &Shutdown,
    ) -> Option<Box<dyn Source>> {
        loop {
            let wait = backoff.next_wait(self.clock.jitter());
            let why = chain(&error).to_string();
            if self.is_news(Line::Lost(why.clone())) {
                warn!(error = why, "the camera is lost, will be opened again");
            } else {
                detail!(
                    error = why,
                    retry_in_s = wait.as_secs_f32(),
                    "still no camera"
                );
            }
            shutdown.sleep(wait);
            if shutdown.requested() {
                return None;
            }
            match (self.open)() {
                Ok(source) => {
                    self.news.send_modify(|news| news.opened += 1);
                    return Some(source);
                }
                Err(again) => {
                    self.trouble(Some(chain(&again).to_string()));
                    error = again;
                }
            }
        }
    }

    fn read_all(
        &mut self,
        source: &mut dyn Source,
        delivered: &mut bool,
        shutdown: &Shutdown,
    ) -> Ended {
        let mut last_packet = self.clock.now();
        let mut silent = false;
        let mut waiting_for_key = Some(last_packet);
        let reopened = std::mem::replace(&mut self.opened_before, true);
        self.needs_key = Some(last_packet);
        self.counted = CameraLosses::default();
        while !shutdown.requested() {
            self.ask_for_key_frame(source);
            let silent_at = last_packet + self.policy.silence;
            let wait = Wait {
                shutdown,
                until: (!silent).then_some(silent_at),
            };
            match source.read(wait) {
                Ok(Read::Packet(mut packet)) => {
                    // What an earlier opening brought is no reference for this one.
                    packet.discontinuity |= !*delivered;
                    if silent || !*delivered {
                        self.trouble(None);
                    }
                    silent = false;
                    last_packet = self.clock.now();
                    let taken = self.take_in(packet, shutdown);
                    if !*delivered && reopened && self.is_news(Line::Back) {
                        info!("the camera is back: {}", source.describe());
                    }
                    *delivered = true;
                    match taken {
                        Some(Taken::Stored) => {
                            waiting_for_key = None;
                            self.needs_key = None;
                        }
                        Some(Taken::Dropped) => self.need_key_frame(),
                        Some(Taken::NoPicture) => {}
                        None => break,
                    }
                }
                Ok(Read::Dropped { reason, bytes }) => self.dropped(reason, bytes),
                Ok(Read::Nothing) => {}
                Ok(Read::End) => return Ended::For(End::Media),
                Err(error) => {
                    self.count_losses(source);
                    return Ended::Source(error);
                }
            }
            self.count_losses(source);
            let now = self.clock.now();
            if !silent && now - last_packet >= self.policy.silence {
                silent = true;
                warn!(
                    silent_for_s = self.policy.silence.as_secs(),
                    "no frame comes from {}",
                    source.describe()
                );
                self.trouble(Some(format!("no frame comes from {}", source.describe())));
                self.writer.fall_silent();
                self.need_key_frame();
            }
            if !silent && waiting_for_key.is_some_and(|since| now - since > KEY_FRAME_PATIENCE) {
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

    /// Whether this is worth a line, and not the same again.
    fn is_news(&mut self, line: Line) -> bool {
        self.repeats.say(line, self.clock.now()).is_some()
    }

    fn trouble(&self, trouble: Option<String>) {
        self.news.send_if_modified(|news| {
            let before = std::mem::replace(&mut news.trouble, trouble);
            before != news.trouble
        });
    }

    /// Something is lost: what follows is of no use before a key frame.
    fn need_key_frame(&mut self) {
        self.judge.gap();
        if self.needs_key.is_none() {
            self.needs_key = Some(self.clock.now());
        }
    }

    /// Tells the ring what was lost since the last time.
    fn count_losses(&mut self, source: &dyn Source) {
        let losses = source.losses();
        if losses != self.counted {
            self.writer.camera_lost(losses - self.counted);
            self.counted = losses;
        }
    }

    fn ask_for_key_frame(&mut self, source: &mut dyn Source) {
        let now = self.clock.now();
        if self.needs_key.is_some_and(|due| due <= now) {
            source.want_key_frame();
            self.needs_key = Some(now + ASK_AGAIN);
        }
    }

    /// Takes in one packet; `None` when the shutdown came first.
    fn take_in(&mut self, packet: Packet<'_>, shutdown: &Shutdown) -> Option<Taken> {
        let arrived = self.clock.monotonic();
        let parser = match &mut self.parser {
            Some(parser) if parser.codec() == packet.codec => parser,
            other => other.insert(Parser::new(packet.codec)),
        };
        let frame = match parser.parse(packet.data) {
            Ok(Unit::NoPicture) => return Some(Taken::NoPicture),
            Ok(Unit::Picture(frame)) => frame,
            Err(error) => {
                let reason = match error {
                    codec::Error::NoParameterSets { .. } => DropReason::NoParameterSets,
                    codec::Error::NoNalUnit { .. } => DropReason::CameraGap,
                };
                let reason = self.writer.drop_frame(packet.data.len(), reason);
                self.tell(reason, &error);
                return Some(Taken::Dropped);
            }
        };
        let new = NewFrame {
            at: self.timeline.place(packet.at, arrived),
            key: frame.key(),
            discontinuity: packet.discontinuity,
            track: frame.track(),
        };
        let (at, key, len) = (new.at, new.key, frame.len());
        match self.writer.push(new, &frame, self.when_full, shutdown)? {
            Push::Stored(_) => {
                if packet.discontinuity {
                    self.judge.gap();
                }
                self.judge(at, len, key);
                if let Some((reason, count)) = self.episode.take()
                    && self.is_news(Line::TakenAgain(reason))
                {
                    info!(
                        reason = reason.name(),
                        frames = count,
                        "frames are taken again"
                    );
                }
                Some(Taken::Stored)
            }
            Push::Dropped(_, reason) => {
                self.tell(reason, &reason.explanation());
                Some(Taken::Dropped)
            }
            Push::Full => Some(Taken::Dropped),
        }
    }

    fn judge(&mut self, at: MediaTime, len: usize, key: bool) {
        match self.judge.frame(at, len, key) {
            Some(remark) if remark.is_warning() && self.when_full == WhenFull::Drop => {
                warn!("{remark}");
            }
            Some(remark) => info!("{remark}"),
            None => {}
        }
    }

    /// Bytes that the source could make no frame of.
    fn dropped(&mut self, reason: codec::DropReason, bytes: usize) {
        match reason {
            codec::DropReason::NoStartCode => {
                detail!(bytes, "bytes without a start code are skipped");
            }
            codec::DropReason::TooLarge => {
                let reason = DropReason::FrameTooLarge;
                let reason = self.writer.drop_frame(bytes, reason);
                self.tell(reason, &reason.explanation());
                self.need_key_frame();
            }
        }
    }

    /// Says once for an episode why frames are dropped.
    fn tell(&mut self, reason: DropReason, why: &dyn std::fmt::Display) {
        match &mut self.episode {
            Some((same, count)) if *same == reason => *count += 1,
            episode => {
                *episode = Some((reason, 1));
                if reason == DropReason::BeforeKeyFrame || !self.is_news(Line::Dropped(reason)) {
                    detail!(reason = reason.name(), "frames are dropped: {why}");
                } else {
                    warn!(reason = reason.name(), "frames are dropped: {why}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::time::{ClockId, clock_gettime};

    use super::*;
    use crate::codec::{Event, Splitter};
    use crate::frame::Codec;
    use crate::ring::shared::share;
    use crate::ring::{MIN_BUDGET_BYTES, Ring};
    use crate::shutdown;

    /// Delivers nothing, and is gone after `reads`.
    struct Leaving {
        reads: u32,
    }

    impl Source for Leaving {
        fn describe(&self) -> String {
            "a camera that goes away".into()
        }

        fn read(&mut self, _: Wait<'_>) -> Result<Read<'_>, Error> {
            self.reads = self.reads.checked_sub(1).ok_or_else(gone)?;
            Ok(Read::Nothing)
        }
    }

    fn gone() -> Error {
        Error::Unusable {
            place: "the test's camera".into(),
            reason: "it is away".into(),
        }
    }

    fn news() -> watch::Sender<News> {
        watch::channel(News::default()).0
    }

    fn policy() -> Policy {
        Policy {
            when_full: None,
            silence: SILENCE,
            reopen: true,
        }
    }

    #[test]
    fn waiting_for_a_camera_takes_no_processor_time() {
        let (writer, _reader) = share(Ring::new(MIN_BUDGET_BYTES));
        let (trigger, shutdown) = shutdown::pair().expect("descriptors are left");
        let mut opened = 0;
        let open = || {
            opened += 1;
            match opened {
                1 => Ok(Box::new(Leaving { reads: 3 }) as Box<dyn Source>),
                _ => Err(gone()),
            }
        };
        let time = Duration::from_secs(3);
        let used = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(time);
                drop(trigger);
            });
            let before = clock_gettime(ClockId::ThreadCPUTime);
            let (news, told) = watch::channel(News::default());
            let end = run(open, writer, policy(), Clock, &shutdown, news).unwrap();
            assert_eq!(end, End::Shutdown);
            let told = told.borrow();
            assert_eq!((told.opened, told.lost), (1, 1));
            assert!(
                told.trouble.as_ref().unwrap().contains("it is away"),
                "{told:?}"
            );
            clock_gettime(ClockId::ThreadCPUTime) - before
        });
        let used = Duration::try_from(used).unwrap();
        assert!(used < time / 50, "{used:?} of {time:?}");
        assert!((4..10).contains(&opened), "opened {opened} times");
    }

    /// Loses a frame before each read, and is gone after two.
    struct Losing {
        reads: u64,
    }

    impl Source for Losing {
        fn describe(&self) -> String {
            "a camera that loses frames".into()
        }

        fn losses(&self) -> CameraLosses {
            CameraLosses {
                dropped_by_driver: self.reads,
                damaged: 1,
                void: 0,
            }
        }

        fn read(&mut self, _: Wait<'_>) -> Result<Read<'_>, Error> {
            self.reads += 1;
            if self.reads < 3 {
                Ok(Read::Nothing)
            } else {
                Err(gone())
            }
        }
    }

    #[test]
    fn what_every_opening_of_a_camera_loses_is_counted() {
        let (writer, reader) = share(Ring::new(MIN_BUDGET_BYTES));
        let (trigger, shutdown) = shutdown::pair().expect("descriptors are left");
        let mut trigger = Some(trigger);
        let mut opened = 0;
        let open = || {
            opened += 1;
            if opened > 2 {
                trigger = None;
                return Err(gone());
            }
            Ok(Box::new(Losing { reads: 0 }) as Box<dyn Source>)
        };
        run(open, writer, policy(), Clock, &shutdown, news()).unwrap();
        let lost = CameraLosses {
            dropped_by_driver: 6,
            damaged: 2,
            void: 0,
        };
        assert_eq!(reader.with(|ring| ring.counts()).camera, lost);
    }

    /// Counts how often it is asked for a key frame, and has none.
    struct Keyless<'a> {
        asked: &'a AtomicU32,
    }

    impl Source for Keyless<'_> {
        fn describe(&self) -> String {
            "a camera without key frames".into()
        }

        fn want_key_frame(&mut self) {
            self.asked.fetch_add(1, Ordering::Relaxed);
        }

        fn read(&mut self, _: Wait<'_>) -> Result<Read<'_>, Error> {
            std::thread::sleep(Duration::from_millis(10));
            Ok(Read::Packet(Packet {
                codec: Codec::H264,
                data: &[0, 0, 0, 1, 0x41, 0x9A],
                at: Clock.monotonic(),
                discontinuity: false,
            }))
        }
    }

    #[test]
    fn a_key_frame_is_asked_for_at_the_start_and_once_a_second_until_it_comes() {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let (writer, _reader) = share(Ring::new(MIN_BUDGET_BYTES));
        let (trigger, shutdown) = shutdown::pair().expect("descriptors are left");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(1500));
                drop(trigger);
            });
            let open = || Ok(Box::new(Keyless { asked: &ASKED }) as Box<dyn Source>);
            run(open, writer, policy(), Clock, &shutdown, news()).unwrap();
        });
        assert_eq!(ASKED.load(Ordering::Relaxed), 2);
    }

    /// Delivers the built-in clip with times that make no sense, and of every so many frames one is cut short.
    struct Patchy {
        units: Splitter,
        index: usize,
        every: usize,
    }

    impl Source for Patchy {
        fn describe(&self) -> String {
            "a camera that cuts frames short".into()
        }

        fn read(&mut self, _: Wait<'_>) -> Result<Read<'_>, Error> {
            if !matches!(self.units.advance(), Ok(Some(Event::Unit { .. }))) {
                return Ok(Read::End);
            }
            self.index += 1;
            let unit = self.units.unit();
            let now = Clock.monotonic();
            Ok(Read::Packet(Packet {
                codec: Codec::H264,
                data: if self.index.is_multiple_of(self.every) {
                    &unit[..3]
                } else {
                    unit
                },
                at: match self.index % 7 {
                    0 => Duration::ZERO,
                    1 => now + Duration::from_hours(1),
                    2 => now / 2,
                    _ => now,
                },
                discontinuity: false,
            }))
        }
    }

    #[test]
    fn short_frames_cost_what_depends_on_them_and_no_more() {
        // 250 frames in groups of 50.
        for (every, stored) in [(1000, 250), (100, 248), (2, 5)] {
            let (writer, reader) = share(Ring::new(2 * MIN_BUDGET_BYTES));
            let (_trigger, shutdown) = shutdown::pair().expect("descriptors are left");
            let open = || {
                let clip = include_bytes!("../../tests/data/demo.h264");
                let mut units = Splitter::new(Some(Codec::H264), clip.len());
                units.push(clip);
                units.finish();
                let index = 0;
                Ok(Box::new(Patchy {
                    units,
                    index,
                    every,
                }) as Box<dyn Source>)
            };
            let end = run(open, writer, policy(), Clock, &shutdown, news()).unwrap();
            assert_eq!(end, End::Media);
            let counts = reader.with(|ring| ring.counts());
            let dropped = counts.dropped_for(DropReason::CameraGap).frames;
            assert_eq!(counts.captured.frames, 250);
            assert_eq!(counts.captured.frames - dropped, stored, "every {every}");
            assert_eq!(counts.dropped_in_all().frames, dropped);
        }
    }
}
