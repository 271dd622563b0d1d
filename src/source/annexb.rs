//! Frames from standard input, a FIFO or a regular file, in Annex B framing.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tracing::info;

use super::{Error, Packet, Read, Source, Wait};
use crate::clock::Clock;
use crate::codec::{self, Event, FrameRate, PictureInfo, Splitter};
use crate::frame::Codec;

/// Bytes taken with one read, at most. A frame of 4 Mbit/s takes one or two, and what is read beyond it has to be held.
const READ_BYTES: usize = 16 * 1024;

/// Where the bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Standard input: a pipe, or a file that the shell opened.
    Stdin,
    /// A FIFO or a regular file.
    Path(PathBuf),
    /// Somebody's connection.
    Client,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("standard input"),
            Self::Path(path) => path.display().fmt(f),
            Self::Client => f.write_str("the client's media"),
        }
    }
}

/// What the user said of the media.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The codec; else it is told from the stream.
    pub codec: Option<Codec>,
    /// Gives frames their times. Else a pipe's frames get their arrival time, and a regular file has the rate of its SPS.
    pub fps: Option<FrameRate>,
    /// Larger access units are dropped.
    pub max_unit_bytes: usize,
    /// Nothing is held back until its time: for what was recorded before.
    pub fast: bool,
}

/// When a frame is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// When it comes: it is of that moment.
    Arrival,
    /// When its time has come: the media was stored.
    Due,
    /// When it is asked for: the media was stored.
    Fast,
}

impl When {
    fn of(stored: bool, options: Options) -> Self {
        match (options.fast, stored) {
            (true, _) => Self::Fast,
            (false, true) => Self::Due,
            (false, false) => Self::Arrival,
        }
    }
}

/// A [`Source`] of Annex B. A pipe is live; a regular file is played in real time.
///
/// A FIFO without a writer brings nothing; when its writers have come and gone, it is at its end.
#[derive(Debug)]
pub struct AnnexB {
    place: Place,
    file: File,
    /// A regular file: always readable.
    regular: bool,
    when: When,
    clock: Clock,
    splitter: Splitter,
    timing: Timing,
    /// What the first SPS said.
    picture_info: Option<PictureInfo>,
    /// A unit was dropped, and none was handed on since.
    discontinuity: bool,
    ended: bool,
}

impl AnnexB {
    /// Opens the input. A FIFO is opened whether it has a writer or not.
    ///
    /// # Errors
    /// When it cannot be opened, or is nothing that video can be read from.
    pub fn open(place: Place, options: Options, clock: Clock) -> Result<Self, Error> {
        let opened = match &place {
            Place::Stdin => io::stdin().as_fd().try_clone_to_owned(),
            // Not to wait for a FIFO's first writer here.
            Place::Path(path) => rustix::fs::open(
                path,
                OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(io::Error::from),
            Place::Client => Err(io::ErrorKind::NotFound.into()),
        };
        match opened {
            Ok(fd) => Self::new(place, fd, options, clock),
            Err(error) => Err(io_error("cannot open", &place, error)),
        }
    }

    /// Media that somebody sends over a connection: `first` has come already. Whoever sends waits until it is taken.
    ///
    /// # Errors
    /// When the connection cannot be read from.
    pub fn from_client(
        first: &[u8],
        rest: OwnedFd,
        options: Options,
        clock: Clock,
    ) -> Result<Self, Error> {
        let mut source = Self::new(Place::Client, rest, options, clock)?;
        source.when = When::of(true, options);
        source.timing = Timing::new(source.when, options.fps);
        source.splitter.push(first);
        Ok(source)
    }

    fn new(place: Place, fd: OwnedFd, options: Options, clock: Clock) -> Result<Self, Error> {
        let file = File::from(fd);
        let kind = match file.metadata() {
            Ok(metadata) => metadata.file_type(),
            Err(error) => return Err(io_error("cannot open", &place, error)),
        };
        let unusable = if kind.is_dir() {
            Some("is a directory; give a V4L2 device, a FIFO, or a file of H.264 or H.265 Annex B")
        } else if kind.is_block_device() {
            Some("is a disk; give a V4L2 device, a FIFO, or a file of H.264 or H.265 Annex B")
        } else if file.is_terminal() {
            Some("is a terminal; pipe H.264 or H.265 Annex B into it")
        } else {
            None
        };
        if let Some(reason) = unusable {
            return Err(Error::Unusable {
                place: place.to_string(),
                reason: reason.to_owned(),
            });
        }
        let when = When::of(kind.is_file(), options);
        Ok(Self {
            place,
            file,
            regular: kind.is_file(),
            when,
            clock,
            splitter: Splitter::new(options.codec, options.max_unit_bytes),
            timing: Timing::new(when, options.fps),
            picture_info: None,
            discontinuity: false,
            ended: false,
        })
    }

    /// Reads once, waiting for bytes. `false` when none came.
    fn fill(&mut self, wait: Wait<'_>) -> Result<bool, Error> {
        match self.read_some(wait) {
            Ok(Some(0)) => {
                self.ended = true;
                self.splitter.finish();
                Ok(true)
            }
            Ok(Some(_)) => {
                self.timing.arrived(self.clock.monotonic());
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(io_error("reading from", &self.place, error)),
        }
    }

    /// Bytes read into the splitter, 0 at the end; `None` when there are none now.
    fn read_some(&mut self, wait: Wait<'_>) -> io::Result<Option<usize>> {
        // A FIFO that had no writer yet brings nothing. Only poll(2) tells that from the end: a read has 0 for both.
        if !self.regular && wait.readable(self.file.as_fd())?.is_empty() {
            return Ok(None);
        }
        let file = &mut self.file;
        match self.splitter.fill(READ_BYTES, |room| file.read(room)) {
            Ok(len) => Ok(Some(len)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What the splitter found, for the caller.
    fn hand_on(&mut self, event: Event, codec: Codec) -> Read<'_> {
        let picture = match event {
            Event::Unit { picture } => picture,
            Event::Dropped { reason, bytes } => {
                if reason == codec::DropReason::TooLarge {
                    self.discontinuity = true;
                    // Its time passes without it.
                    self.timing.stamp(self.clock.monotonic(), true);
                }
                return Read::Dropped { reason, bytes };
            }
        };
        if self.picture_info.is_none() {
            self.picture_info = codec::picture_info(codec, self.splitter.unit());
            if let Some(info) = self.picture_info {
                self.settle_rate(info);
            }
        }
        let at = self.timing.stamp(self.clock.monotonic(), picture);
        let discontinuity = self.discontinuity;
        if picture {
            self.discontinuity = false;
        }
        Read::Packet(Packet {
            codec,
            data: self.splitter.unit(),
            at,
            discontinuity,
        })
    }

    /// Takes a file's rate from its first SPS, when the user gave none.
    fn settle_rate(&mut self, info: PictureInfo) {
        let Timing::Unknown = self.timing else { return };
        let rate = info.frame_rate.unwrap_or(FrameRate::FPS_25);
        let from = match info.frame_rate {
            Some(_) => "the SPS",
            None => "no timing in the SPS, so the default; --fps sets another",
        };
        let pace = if self.when == When::Fast {
            "as fast as it is taken"
        } else {
            "in real time"
        };
        info!(place = %self.place, %rate, from, "file is played {pace}");
        self.timing = Timing::at_rate(rate, self.when == When::Due);
    }
}

impl Source for AnnexB {
    fn describe(&self) -> String {
        let kind = if self.regular { "file" } else { "pipe" };
        let Some(codec) = self.splitter.codec() else {
            return format!("{} ({kind}): codec not known yet", self.place);
        };
        let size = self.picture_info.and_then(|info| info.dimensions);
        let size = size.map_or(String::new(), |size| {
            format!(" {}x{}", size.width, size.height)
        });
        let rate = match &self.timing {
            Timing::Rate { rate, .. } => format!(" at {rate}"),
            Timing::Arrival { .. } | Timing::Unknown => String::new(),
        };
        format!("{} ({kind}): {codec}{size}{rate}", self.place)
    }

    fn is_live(&self) -> bool {
        self.when == When::Arrival
    }

    fn read(&mut self, wait: Wait<'_>) -> Result<Read<'_>, Error> {
        loop {
            wait.sleep(self.timing.until_due(self.clock.monotonic()));
            if !self.timing.until_due(self.clock.monotonic()).is_zero() {
                return Ok(Read::Nothing);
            }
            let found = self.splitter.advance().map_err(|error| Error::Unusable {
                place: self.place.to_string(),
                reason: error.to_string(),
            })?;
            match (found, self.splitter.codec()) {
                (Some(event), Some(codec)) => return Ok(self.hand_on(event, codec)),
                _ if self.ended => return Ok(Read::End),
                // Also in the middle of a unit that has no end.
                _ if wait.is_over() => return Ok(Read::Nothing),
                _ => {}
            }
            if !self.fill(wait)? {
                return Ok(Read::Nothing);
            }
        }
    }
}

fn io_error(action: &'static str, place: &Place, source: io::Error) -> Error {
    Error::Io {
        action,
        place: place.to_string(),
        source,
    }
}

/// Gives the units their times.
#[derive(Debug)]
enum Timing {
    /// A unit's time is that of its first bytes, which came with the last bytes of the unit before it.
    Arrival {
        began: Option<Duration>,
        latest: Duration,
    },
    /// The first picture is at `start`, and each one after it a frame later.
    Rate {
        rate: FrameRate,
        /// Units are held back until they are due.
        paced: bool,
        start: Option<Duration>,
        index: u64,
    },
    /// A regular file before its first SPS: nothing of it can be decoded, so nothing is waited for.
    Unknown,
}

impl Timing {
    fn new(when: When, fps: Option<FrameRate>) -> Self {
        match fps {
            Some(rate) => Self::at_rate(rate, when == When::Due),
            None if when != When::Arrival => Self::Unknown,
            None => Self::Arrival {
                began: None,
                latest: Duration::ZERO,
            },
        }
    }

    fn at_rate(rate: FrameRate, paced: bool) -> Self {
        Self::Rate {
            rate,
            paced,
            start: None,
            index: 0,
        }
    }

    /// How long the next unit is held back.
    fn until_due(&self, now: Duration) -> Duration {
        match self {
            Self::Rate {
                rate,
                paced: true,
                start: Some(start),
                index,
            } => (*start + rate.time_of(*index)).saturating_sub(now),
            _ => Duration::ZERO,
        }
    }

    /// Bytes came.
    fn arrived(&mut self, now: Duration) {
        if let Self::Arrival { began, latest } = self {
            began.get_or_insert(now);
            *latest = now;
        }
    }

    /// The time of the unit that was found `now`; the next picture's is later by a frame.
    fn stamp(&mut self, now: Duration, picture: bool) -> Duration {
        match self {
            Self::Arrival { began, latest } => began.replace(*latest).unwrap_or(now),
            Self::Rate {
                rate, start, index, ..
            } => {
                let at = *start.get_or_insert(now) + rate.time_of(*index);
                *index += u64::from(picture);
                at
            }
            Self::Unknown => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;
    use crate::codec::DropReason;

    const CLIP: &[u8] = include_bytes!("../../tests/data/demo.h264");

    fn options() -> Options {
        Options {
            codec: None,
            fps: None,
            max_unit_bytes: 1 << 20,
            fast: false,
        }
    }

    fn fast() -> Options {
        Options {
            fps: FrameRate::new(1000, 1),
            ..options()
        }
    }

    fn file(dir: &Path, name: &str, bytes: &[u8]) -> Place {
        let path = dir.join(name);
        fs::write(&path, bytes).expect("writing a test file");
        Place::Path(path)
    }

    fn open(place: &Place, options: Options) -> AnnexB {
        AnnexB::open(place.clone(), options, Clock).expect("opening a test file")
    }

    /// What [`Source::read`] brought, without the loan.
    #[derive(Debug, PartialEq, Eq)]
    enum Brought {
        Packet {
            data: Vec<u8>,
            at: Duration,
            discontinuity: bool,
        },
        Dropped(DropReason),
        Nothing,
        End,
    }

    fn read(source: &mut AnnexB) -> Brought {
        match source.read(Wait::briefly()).expect("a readable source") {
            Read::Packet(Packet {
                data,
                at,
                discontinuity,
                ..
            }) => Brought::Packet {
                data: data.to_vec(),
                at,
                discontinuity,
            },
            Read::Dropped { reason, .. } => Brought::Dropped(reason),
            Read::Nothing => Brought::Nothing,
            Read::End => Brought::End,
        }
    }

    /// Bytes and times of all packets up to the end.
    fn packets(source: &mut AnnexB) -> Vec<(Vec<u8>, Duration)> {
        let mut packets = Vec::new();
        loop {
            match read(source) {
                Brought::Packet { data, at, .. } => packets.push((data, at)),
                Brought::End => return packets,
                Brought::Nothing => {}
                Brought::Dropped(reason) => panic!("{reason}"),
            }
        }
    }

    /// The message of a source that cannot be opened or read.
    fn refusal(place: &Place, options: Options) -> String {
        let mut source = match AnnexB::open(place.clone(), options, Clock) {
            Ok(source) => source,
            Err(error) => return crate::chain(&error).to_string(),
        };
        loop {
            match source.read(Wait::briefly()) {
                Err(error) => return crate::chain(&error).to_string(),
                Ok(Read::End) => panic!("no error up to the end"),
                Ok(_) => {}
            }
        }
    }

    #[test]
    fn a_file_is_played_whole_in_real_time_at_the_given_rate() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut source = open(&file(dir.path(), "clip", CLIP), fast());
        let before = Clock.monotonic();
        let packets = packets(&mut source);
        assert!(Clock.monotonic() >= before + Duration::from_millis(249));
        assert_eq!(packets.len(), 250);
        let start = packets[0].1;
        for (index, (_, at)) in (0..).zip(&packets) {
            assert_eq!(*at, start + Duration::from_millis(index));
        }
        assert_eq!(
            packets
                .into_iter()
                .flat_map(|(data, _)| data)
                .collect::<Vec<_>>(),
            CLIP
        );
        assert!(!source.is_live());
        let description = source.describe();
        assert!(
            description.ends_with("clip (file): H.264 640x360 at 1000/1"),
            "{description}"
        );
    }

    #[test]
    fn a_file_has_the_rate_of_its_sps_and_waiting_for_a_frame_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let clip = file(dir.path(), "clip", CLIP);
        let mut source = open(&clip, options());
        let Brought::Packet { at: first, .. } = read(&mut source) else {
            panic!("a packet")
        };
        let Brought::Packet { at: second, .. } = read(&mut source) else {
            panic!("a packet")
        };
        assert_eq!(second, first + Duration::from_millis(40));

        let mut source = open(
            &clip,
            Options {
                fps: FrameRate::new(1, 60),
                ..options()
            },
        );
        assert!(matches!(read(&mut source), Brought::Packet { .. }));
        let before = Clock.monotonic();
        assert_eq!(read(&mut source), Brought::Nothing);
        let after = Clock.monotonic();
        assert!(after >= before + Wait::BRIEF && after < before + Wait::BRIEF * 3);
    }

    #[test]
    fn a_fifo_waits_for_its_first_writer_and_ends_with_its_last() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("making a FIFO");
        let mut source = open(&Place::Path(path.clone()), options());
        assert!(source.is_live());
        assert_eq!(read(&mut source), Brought::Nothing);

        let mut writer = OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("opening a FIFO");
        assert_eq!(read(&mut source), Brought::Nothing);
        writer
            .write_all(&CLIP[..20_000])
            .expect("writing to a FIFO");
        let Brought::Packet { data, .. } = read(&mut source) else {
            panic!("a packet")
        };
        assert!(CLIP.starts_with(&data));
        drop(writer);
        assert!(!packets(&mut source).is_empty());
        assert_eq!(read(&mut source), Brought::End);
    }

    #[test]
    fn frames_of_a_pipe_have_the_time_of_their_first_bytes_or_the_given_rate() {
        let picture = [0, 0, 0, 1, 0x65, 0x88, 0x84, 0x80];
        let run = |options| {
            let (reader, mut writer) = io::pipe().expect("a pipe");
            let mut source =
                AnnexB::new(Place::Stdin, reader.into(), options, Clock).expect("a pipe is fine");
            let mut sent = Vec::new();
            let mut times = Vec::new();
            for _ in 0..3 {
                sent.push(Clock.monotonic());
                writer.write_all(&picture).expect("room in the pipe");
                if let Brought::Packet { at, .. } = read(&mut source) {
                    times.push(at);
                }
            }
            drop(writer);
            times.extend(packets(&mut source).into_iter().map(|(_, at)| at));
            (sent, times)
        };
        let (sent, times) = run(options());
        assert_eq!(times.len(), 3);
        for (sent, at) in sent.iter().zip(&times) {
            assert!(
                sent <= at && *at < *sent + Duration::from_millis(200),
                "{sent:?} {at:?}"
            );
        }
        let (_, times) = run(Options {
            fps: FrameRate::new(50, 1),
            ..options()
        });
        assert_eq!(times[1], times[0] + Duration::from_millis(20));
        assert_eq!(times[2], times[0] + Duration::from_millis(40));
    }

    #[test]
    fn a_frame_too_large_is_told_and_the_next_is_a_discontinuity() {
        let dir = tempfile::tempdir().expect("a directory");
        let picture = [0, 0, 0, 1, 0x65, 0x88, 0x84, 0x80];
        let large = [&picture[..], &[5; 100]].concat();
        let place = file(
            dir.path(),
            "large",
            &[&large[..], &picture, &picture].concat(),
        );
        let mut source = open(
            &place,
            Options {
                max_unit_bytes: 50,
                ..fast()
            },
        );
        assert_eq!(read(&mut source), Brought::Dropped(DropReason::TooLarge));
        for discontinuous in [true, false] {
            let Brought::Packet { discontinuity, .. } = read(&mut source) else {
                panic!("a packet")
            };
            assert_eq!(discontinuity, discontinuous);
        }
        assert_eq!(read(&mut source), Brought::End);
    }

    #[test]
    fn a_last_unit_that_is_cut_off_still_comes() {
        let dir = tempfile::tempdir().expect("a directory");
        let cut = &CLIP[..CLIP.len() - 100];
        let packets = packets(&mut open(&file(dir.path(), "cut", cut), fast()));
        assert_eq!(packets.len(), 250);
        assert!(cut.ends_with(&packets[249].0));
    }

    #[test]
    fn what_cannot_be_played_is_refused_in_one_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut garbage = vec![0xA5; 2 << 20];
        garbage[..4].copy_from_slice(b"what");
        let cases = [
            (
                file(dir.path(), "empty", b""),
                "empty: is empty: there is no video in it",
            ),
            (
                file(dir.path(), "garbage", &garbage),
                "no start code (00 00 01) in the first",
            ),
            (
                file(dir.path(), "mp4", b"\0\0\0\x20ftypisom"),
                "this looks like an MP4 file",
            ),
            (
                Place::Path(dir.path().join("none")),
                "No such file or directory",
            ),
            (Place::Path(dir.path().to_owned()), "is a directory"),
            (Place::Path("/dev/null".into()), "/dev/null: is empty"),
        ];
        for (place, expected) in cases {
            let message = refusal(&place, options());
            assert!(message.contains(expected), "{message}");
            assert!(message.contains(&place.to_string()), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
        let clip = file(dir.path(), "clip", CLIP);
        let message = refusal(
            &clip,
            Options {
                codec: Some(Codec::H265),
                ..options()
            },
        );
        assert!(message.contains("this is H.264, not H.265"), "{message}");
    }

    #[test]
    fn a_file_that_may_not_be_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = file(dir.path(), "secret", CLIP);
        let Place::Path(path) = &place else {
            panic!("a path")
        };
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).expect("own file");
        // The superuser may read everything.
        if File::open(path).is_err() {
            let message = refusal(&place, options());
            assert!(message.contains("cannot open"), "{message}");
            assert!(message.contains("Permission denied"), "{message}");
        }
    }
}
