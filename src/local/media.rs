//! Reads the body of a PutMedia request as it arrives and checks every rule that the service has for it. Pure.
//!
//! The Matroska is read by `ebml-iterable` with the element table of `webm-iterable`, so that the producer's own writer
//! is checked by somebody else. Elements that no KVS producer sends (SeekHead, Cues, BlockGroup, Void, ..) are refused.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use ebml_iterable::TagDecoder;
use webm_iterable::matroska_spec::{Master, MatroskaSpec as Tag};

use super::acks::AckError;
use super::codec::{self, Decodable, Framing};

/// EBML header, Info and Tracks together: three CodecPrivate of 1 MiB, and some room.
const HEADER_BYTES: usize = 4 << 20;

/// Marks the end of a fragment.
const END_OF_FRAGMENT: &str = "AWS_KINESISVIDEO_END_OF_FRAGMENT";

/// Names in the reserved space that producers may use, each once in a fragment.
const EVENT_TAGS: [&str; 3] = [
    "AWS_KINESISVIDEO_IMAGE_GENERATION",
    "AWS_KINESISVIDEO_IMAGE_PREFIX",
    "AWS_KINESISVIDEO_NOTIFICATION",
];

/// Times outside are no producer's: before 2010 (40 years and 10 leap days), or more than a day ahead.
const EARLIEST: Duration = Duration::from_hours(350_640);
const AHEAD: Duration = Duration::from_hours(24);

/// What the service allows. The default is what it documents, but for the rates, which are not enforced: tests run
/// faster than real time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in a fragment.
    pub fragment_bytes: usize,
    /// Between the first and the last frame of a fragment.
    pub fragment_duration: Duration,
    /// Between the beginnings of two fragments. The service says one second.
    pub shortest_fragment: Option<Duration>,
    /// The service says 5.
    pub fragments_per_second: Option<usize>,
    /// Tracks in a stream.
    pub tracks: usize,
    /// Tags in a fragment, the end mark not counted.
    pub tags: usize,
    /// Calls of one operation on one stream. The service says 5.
    pub calls_per_second: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            fragment_bytes: 50_000_000,
            fragment_duration: Duration::from_secs(20),
            shortest_fragment: None,
            fragments_per_second: None,
            tracks: 3,
            tags: 10,
            calls_per_second: None,
        }
    }
}

/// What `x-amzn-fragment-timecode-type` says of the timecodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimecodeType {
    /// They count from the Unix epoch.
    Absolute,
    /// They count from this time since the Unix epoch, in milliseconds.
    Relative {
        /// The value of `x-amzn-producer-start-timestamp`.
        start_ms: u64,
    },
}

/// What of a frame is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Its payload as well.
    Payload,
    /// Only what is said of it.
    Description,
}

/// A broken rule: the connection is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}: {reason}")]
pub struct Violation {
    /// What the ERROR says.
    pub error: AckError,
    /// What exactly is wrong, for the log.
    pub reason: String,
}

impl Violation {
    fn new(error: AckError, reason: impl Into<String>) -> Self {
        Self {
            error,
            reason: reason.into(),
        }
    }

    fn mkv(reason: impl Into<String>) -> Self {
        Self::new(AckError::INVALID_MKV, reason)
    }
}

/// What has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A cluster has begun and told its timecode.
    Begun {
        /// As sent, in units of the time scale.
        timecode: u64,
    },
    /// A fragment is whole.
    Ended(Fragment),
}

/// A whole fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// The cluster's timecode as sent, in units of the time scale.
    pub timecode: u64,
    /// The frames in the order in which they came.
    pub frames: Vec<Frame>,
    /// Its tags but the end mark.
    pub tags: Vec<(String, String)>,
    /// Its bytes as they came: the cluster, the tags behind it, and those before it if it is the first.
    pub raw: Bytes,
    /// What stands before the first fragment of the connection.
    pub header: Header,
}

/// What stands before the first fragment: enough, together with fragments, for a playable file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// EBML header, Segment's start, Info and Tracks as they came.
    pub raw: Bytes,
    /// The Tracks element as it came: fragments with equal tracks can share a file.
    pub tracks: Bytes,
    /// Nanoseconds in a unit of timecode.
    pub scale_ns: u64,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The track's number.
    pub track: u64,
    /// Presentation time since the Unix epoch, in milliseconds.
    pub at_ms: u64,
    /// Whether the block says that it is a key frame.
    pub key: bool,
    /// Bytes of its payload.
    pub bytes: usize,
    /// The payload, where it is kept.
    pub payload: Option<Bytes>,
}

/// The body of one PutMedia request, pushed in as it comes, in any cut.
#[derive(Debug)]
pub struct Reader {
    limits: Limits,
    times: TimecodeType,
    keep: Keep,
    bytes: Incoming,
    stage: Stage,
    info: Option<u64>,
    tracks: Vec<Track>,
    header: Option<Header>,
    tracks_raw: Bytes,
    fragment: Option<Open>,
    /// Tags that came before the first cluster, for the first fragment.
    early_tags: Vec<(String, String)>,
    /// Timecode of the fragment before, and the latest time of its frames, in units.
    previous: Option<(u64, i128)>,
    starts: Vec<Instant>,
    /// A broken rule stays broken.
    broken: Option<Violation>,
}

/// Where in the stream the reader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Before the EBML header.
    Start,
    /// The EBML header is read.
    Ebml,
    /// In the Segment, before the first cluster.
    Header,
    /// In or behind a cluster whose fragment is open.
    Fragment,
    /// Behind an end mark: only a cluster may come.
    Between,
}

#[derive(Debug)]
struct Track {
    number: u64,
    video: bool,
    framing: Framing,
}

/// A fragment under way.
#[derive(Debug, Default)]
struct Open {
    timecode: Option<u64>,
    frames: Vec<Frame>,
    /// Earliest and latest time of its frames, in units.
    span: Option<(i128, i128)>,
    tags: Vec<(String, String)>,
}

/// The bytes that were not yet decoded, and those that were but belong to what is under way.
struct Incoming {
    decoder: TagDecoder<Tag>,
    undecoded: BytesMut,
    pending: BytesMut,
    /// Offset of `pending` in the body.
    start: usize,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("start", &self.start)
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

impl Incoming {
    fn new() -> Self {
        let masters = [
            Tag::Ebml(Master::Start),
            Tag::Info(Master::Start),
            Tag::Tracks(Master::Start),
            Tag::Tags(Master::Start),
        ];
        let mut decoder = TagDecoder::new(&masters);
        // The reader counts bytes itself, with the service's own answer to too many.
        decoder.set_max_allowable_tag_size(None);
        Self {
            decoder,
            undecoded: BytesMut::new(),
            pending: BytesMut::new(),
            start: 0,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.undecoded.extend_from_slice(bytes);
        self.pending.extend_from_slice(bytes);
    }

    /// What came before `offset` and was not taken yet.
    fn take_until(&mut self, offset: usize) -> Bytes {
        let taken = self.pending.split_to(offset - self.start);
        self.start = offset;
        taken.freeze()
    }
}

impl Reader {
    /// For a request with these headers.
    pub fn new(limits: Limits, times: TimecodeType, keep: Keep) -> Self {
        Self {
            limits,
            times,
            keep,
            bytes: Incoming::new(),
            stage: Stage::Start,
            info: None,
            tracks: Vec::new(),
            header: None,
            tracks_raw: Bytes::new(),
            fragment: None,
            early_tags: Vec::new(),
            previous: None,
            starts: Vec::new(),
            broken: None,
        }
    }

    /// Takes the next bytes and adds to `events` what they bring. `now` is for the rate of fragments, `wall` (since the
    /// Unix epoch) for what a sane clock can show.
    ///
    /// # Errors
    /// The first rule that is broken, also on every later call; the events before it are good.
    pub fn push(
        &mut self,
        bytes: &[u8],
        now: Instant,
        wall: Duration,
        events: &mut Vec<Event>,
    ) -> Result<(), Violation> {
        self.unbroken()?;
        self.bytes.push(bytes);
        let result = self.decode(now, wall, events);
        self.remember(result)
    }

    /// The body is at its end: the last fragment is whole.
    ///
    /// # Errors
    /// When the body ends within an element, or the last fragment breaks a rule.
    pub fn finish(&mut self, events: &mut Vec<Event>) -> Result<(), Violation> {
        self.unbroken()?;
        let result = self.end_of_body(events);
        self.remember(result)
    }

    /// Timecode of the fragment under way.
    pub fn timecode(&self) -> Option<u64> {
        self.fragment.as_ref()?.timecode
    }

    fn unbroken(&self) -> Result<(), Violation> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    fn remember(&mut self, result: Result<(), Violation>) -> Result<(), Violation> {
        self.broken = result.as_ref().err().cloned();
        result
    }

    fn decode(
        &mut self,
        now: Instant,
        wall: Duration,
        events: &mut Vec<Event>,
    ) -> Result<(), Violation> {
        loop {
            let next = self.bytes.decoder.decode(&mut self.bytes.undecoded);
            let Some(next) = next.map_err(|error| Violation::mkv(error.to_string()))? else {
                break;
            };
            self.element(next.tag, next.offset, now, wall, events)?;
        }
        let pending = self.bytes.pending.len();
        match self.stage {
            Stage::Fragment if pending > self.limits.fragment_bytes => Err(self.too_large()),
            Stage::Start | Stage::Ebml | Stage::Header | Stage::Between
                if pending > HEADER_BYTES =>
            {
                Err(Violation::mkv(format!("{pending} bytes without a cluster")))
            }
            _ => Ok(()),
        }
    }

    fn end_of_body(&mut self, events: &mut Vec<Event>) -> Result<(), Violation> {
        if !self.bytes.undecoded.is_empty() {
            return Err(Violation::mkv("the body ends within an element"));
        }
        let end = self.bytes.decoder.position();
        match self.stage {
            Stage::Start | Stage::Between => Ok(()),
            Stage::Ebml | Stage::Header => {
                Err(Violation::mkv("the body ends before the first cluster"))
            }
            Stage::Fragment => self.end_fragment(end, events),
        }
    }

    fn too_large(&self) -> Violation {
        let reason = format!("more than {} bytes", self.limits.fragment_bytes);
        Violation::new(AckError::FRAGMENT_SIZE, reason)
    }

    fn element(
        &mut self,
        tag: Tag,
        offset: usize,
        now: Instant,
        wall: Duration,
        events: &mut Vec<Event>,
    ) -> Result<(), Violation> {
        match tag {
            Tag::Ebml(Master::Full(children)) if self.stage == Stage::Start => {
                self.stage = Stage::Ebml;
                check_ebml(&children)
            }
            Tag::Segment(Master::Start) if self.stage == Stage::Ebml => {
                self.stage = Stage::Header;
                Ok(())
            }
            Tag::Segment(Master::Start) => Err(Violation::mkv("more than one Segment")),
            Tag::Info(Master::Full(children))
                if self.stage == Stage::Header && self.info.is_none() =>
            {
                self.info = Some(time_scale(&children)?);
                Ok(())
            }
            Tag::Tracks(Master::Full(entries))
                if self.stage == Stage::Header && self.tracks.is_empty() =>
            {
                let whole =
                    offset - self.bytes.start..self.bytes.decoder.position() - self.bytes.start;
                self.tracks_raw = Bytes::copy_from_slice(&self.bytes.pending[whole]);
                self.tracks = read_tracks(&entries, &self.limits)?;
                Ok(())
            }
            Tag::Cluster(Master::Start) => self.cluster(offset, now, events),
            Tag::Timestamp(timecode) => self.timestamp(timecode, wall, events),
            Tag::SimpleBlock(block) => self.block(block),
            Tag::Tags(Master::Full(tags)) => self.tags(&tags, offset, events),
            // `Position` and `PrevSize` say nothing that is needed; ends follow from the next beginning.
            Tag::Position(_)
            | Tag::PrevSize(_)
            | Tag::Cluster(Master::End)
            | Tag::Segment(Master::End) => Ok(()),
            other => Err(Violation::mkv(format!(
                "{} at byte {offset} is not allowed here",
                element_name(&other)
            ))),
        }
    }

    fn cluster(
        &mut self,
        offset: usize,
        now: Instant,
        events: &mut Vec<Event>,
    ) -> Result<(), Violation> {
        match self.stage {
            Stage::Start | Stage::Ebml => {
                return Err(Violation::mkv("a Cluster outside a Segment"));
            }
            Stage::Header => self.end_header(offset)?,
            Stage::Fragment => self.end_fragment(offset, events)?,
            Stage::Between => {}
        }
        self.stage = Stage::Fragment;
        self.fragment = Some(Open {
            tags: std::mem::take(&mut self.early_tags),
            ..Open::default()
        });
        if let Some(most) = self.limits.fragments_per_second {
            self.starts
                .retain(|start| now.duration_since(*start) < Duration::from_secs(1));
            self.starts.push(now);
            if self.starts.len() > most {
                let reason = format!("more than {most} fragments in a second");
                return Err(Violation::new(AckError::FRAGMENT_RATE, reason));
            }
        }
        Ok(())
    }

    /// The header ends where the first Cluster, or Tags before it, begins.
    fn end_header(&mut self, offset: usize) -> Result<(), Violation> {
        if self.header.is_some() {
            return Ok(());
        }
        let scale_ns = self
            .info
            .ok_or_else(|| Violation::mkv("media before Info"))?;
        if self.tracks.is_empty() {
            return Err(Violation::mkv("media before Tracks"));
        }
        self.header = Some(Header {
            raw: self.bytes.take_until(offset),
            tracks: self.tracks_raw.clone(),
            scale_ns,
        });
        Ok(())
    }

    fn timestamp(
        &mut self,
        timecode: u64,
        wall: Duration,
        events: &mut Vec<Event>,
    ) -> Result<(), Violation> {
        let at_ms = self.to_ms(i128::from(timecode))?;
        let open = self.open()?;
        if open.timecode.replace(timecode).is_some() {
            return Err(Violation::mkv("a Cluster with two Timecodes"));
        }
        events.push(Event::Begun { timecode });
        if !is_of_this_time(at_ms, wall) {
            let reason = format!("timecode {timecode} is not of this time");
            return Err(Violation::new(AckError::PRODUCER_TIMESTAMP, reason));
        }
        if let Some((begun, latest)) = self.previous {
            if i128::from(timecode) <= latest {
                let reason = format!("{timecode} is not after {latest}, the frame before");
                return Err(Violation::new(AckError::TIMECODE_LESSER, reason));
            }
            let span = self.span_of(i128::from(timecode) - i128::from(begun));
            if (self.limits.shortest_fragment).is_some_and(|shortest| span < shortest) {
                let reason = format!("the fragment before is {span:?} long");
                return Err(Violation::new(AckError::MIN_DURATION, reason));
            }
        }
        Ok(())
    }

    fn block(&mut self, block: Vec<u8>) -> Result<(), Violation> {
        let (track, offset, flags, payload) = parse_block(block)?;
        if flags & 0x06 != 0 {
            return Err(Violation::mkv("a block with lacing"));
        }
        let key = flags & 0x80 != 0;
        let Some(declared) = self.tracks.iter().find(|known| known.number == track) else {
            let reason = format!("a block of track {track}");
            return Err(Violation::new(AckError::TRACK_MISMATCH, reason));
        };
        let (framing, video) = (declared.framing, declared.video);
        let decodable = codec::check_block(framing, &payload).map_err(Violation::mkv)?;

        let open = self.open()?;
        let Some(timecode) = open.timecode else {
            return Err(Violation::mkv("a block before the Cluster's Timecode"));
        };
        let first = !open.frames.iter().any(|frame| frame.track == track);
        if first && video && !(key && decodable != Decodable::WithOthers) {
            return Err(Violation::mkv(
                "the first video frame of the fragment is not a key frame",
            ));
        }
        let time = i128::from(timecode) + i128::from(offset);
        let (earliest, latest) = open.span.unwrap_or((time, time));
        let span = (earliest.min(time), latest.max(time));
        open.span = Some(span);
        if let Some((_, previous)) = self.previous
            && time <= previous
        {
            let reason = format!("a frame at {time} is not after {previous}, the fragment before");
            return Err(Violation::new(AckError::TIMECODE_LESSER, reason));
        }
        let length = self.span_of(span.1 - span.0);
        if length > self.limits.fragment_duration {
            let reason = format!("the fragment is {length:?} long");
            return Err(Violation::new(AckError::FRAGMENT_DURATION, reason));
        }
        let frame = Frame {
            track,
            at_ms: self.to_ms(time)?,
            key,
            bytes: payload.len(),
            payload: (self.keep == Keep::Payload).then_some(payload),
        };
        self.open()?.frames.push(frame);
        Ok(())
    }

    fn tags(
        &mut self,
        tags: &[Tag],
        offset: usize,
        events: &mut Vec<Event>,
    ) -> Result<(), Violation> {
        let mut end = false;
        for (name, value) in simple_tags(tags)? {
            if name == END_OF_FRAGMENT {
                end = true;
                continue;
            }
            let (limits, known) = (self.limits.tags, self.known_tags()?);
            check_tag(&name, &value, known)?;
            known.push((name, value));
            if known.len() > limits {
                let reason = format!("more than {limits} tags");
                return Err(Violation::new(AckError::METADATA_LIMIT, reason));
            }
        }
        match self.stage {
            Stage::Header if end => Err(Violation::mkv("an end of fragment before any fragment")),
            Stage::Header => self.end_header(offset),
            Stage::Fragment if end => {
                self.end_fragment(self.bytes.decoder.position(), events)?;
                self.stage = Stage::Between;
                Ok(())
            }
            Stage::Fragment => Ok(()),
            Stage::Start | Stage::Ebml | Stage::Between => {
                Err(Violation::mkv("Tags that belong to no fragment"))
            }
        }
    }

    /// The tags of the fragment that new ones belong to.
    fn known_tags(&mut self) -> Result<&mut Vec<(String, String)>, Violation> {
        match self.stage {
            Stage::Header => Ok(&mut self.early_tags),
            _ => self.open().map(|open| &mut open.tags),
        }
    }

    /// Ends the fragment at `offset`. One that breaks a rule stays open, so that the ERROR can name it.
    fn end_fragment(&mut self, offset: usize, events: &mut Vec<Event>) -> Result<(), Violation> {
        let size = offset - self.bytes.start;
        let too_large = size > self.limits.fragment_bytes;
        let open = self
            .fragment
            .as_ref()
            .ok_or_else(|| Violation::mkv("the end of a fragment that did not begin"))?;
        let timecode = open
            .timecode
            .ok_or_else(|| Violation::mkv("a Cluster without a Timecode"))?;
        let has_frame = |track: &&Track| open.frames.iter().any(|f| f.track == track.number);
        if let Some(track) = self.tracks.iter().find(|track| !has_frame(track)) {
            let reason = format!("track {} has no frame", track.number);
            return Err(Violation::new(AckError::FRAMES_MISSING, reason));
        }
        if too_large {
            return Err(self.too_large());
        }
        let raw = self.bytes.take_until(offset);
        let open = self.fragment.take().expect("found above");
        self.previous = open.span.map(|(_, latest)| (timecode, latest));
        events.push(Event::Ended(Fragment {
            timecode,
            frames: open.frames,
            tags: open.tags,
            raw,
            header: self.header.clone().expect("set at the first cluster"),
        }));
        Ok(())
    }

    fn open(&mut self) -> Result<&mut Open, Violation> {
        self.fragment
            .as_mut()
            .ok_or_else(|| Violation::mkv("media outside a Cluster"))
    }

    /// A time in units as milliseconds since the Unix epoch.
    fn to_ms(&self, units: i128) -> Result<u64, Violation> {
        let base = match self.times {
            TimecodeType::Absolute => 0,
            TimecodeType::Relative { start_ms } => i128::from(start_ms),
        };
        let scale = i128::from(self.scale_ns());
        u64::try_from(base + units * scale / 1_000_000).map_err(|_| {
            let reason = format!("a time of {units} units");
            Violation::new(AckError::PRODUCER_TIMESTAMP, reason)
        })
    }

    /// A difference in units; beyond what a duration can hold, the longest there is.
    fn span_of(&self, units: i128) -> Duration {
        let nanos = units.max(0).saturating_mul(i128::from(self.scale_ns()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn scale_ns(&self) -> u64 {
        self.info.unwrap_or(1_000_000)
    }
}

/// Whether a producer's clock can show `at_ms` (milliseconds since the Unix epoch) when ours shows `wall`.
pub fn is_of_this_time(at_ms: u64, wall: Duration) -> bool {
    (EARLIEST..=wall + AHEAD).contains(&Duration::from_millis(at_ms))
}

/// Checks what the EBML header says of the document.
fn check_ebml(children: &[Tag]) -> Result<(), Violation> {
    let kind = children.iter().find_map(|child| match child {
        Tag::DocType(kind) => Some(kind.as_str()),
        _ => None,
    });
    match kind {
        Some("matroska" | "webm") => Ok(()),
        other => Err(Violation::mkv(format!(
            "DocType is {other:?}, not matroska"
        ))),
    }
}

/// The time scale in nanoseconds; 100 ns to 1 s are allowed.
fn time_scale(children: &[Tag]) -> Result<u64, Violation> {
    let scale = children.iter().find_map(|child| match child {
        Tag::TimestampScale(scale) => Some(*scale),
        _ => None,
    });
    // The default value of the element (RFC 9559, section 5.1.2.9).
    let scale = scale.unwrap_or(1_000_000);
    if (100..=1_000_000_000).contains(&scale) {
        Ok(scale)
    } else {
        Err(Violation::mkv(format!("TimecodeScale is {scale} ns")))
    }
}

fn read_tracks(entries: &[Tag], limits: &Limits) -> Result<Vec<Track>, Violation> {
    let mut tracks: Vec<Track> = Vec::new();
    for entry in entries {
        let Tag::TrackEntry(Master::Full(entry)) = entry else {
            return Err(Violation::mkv("Tracks holds something else than entries"));
        };
        let track = read_track(entry)?;
        if tracks.iter().any(|known| known.number == track.number) {
            return Err(Violation::mkv(format!("two tracks {}", track.number)));
        }
        tracks.push(track);
    }
    if tracks.is_empty() {
        return Err(Violation::mkv("Tracks is empty"));
    }
    if tracks.len() > limits.tracks {
        let reason = format!("{} tracks", tracks.len());
        return Err(Violation::new(AckError::TRACKS, reason));
    }
    Ok(tracks)
}

fn read_track(entry: &[Tag]) -> Result<Track, Violation> {
    let (mut number, mut uid, mut kind) = (0, 0, 0);
    let (mut codec_id, mut private) = (None, None);
    for child in entry {
        match child {
            Tag::TrackNumber(value) => number = *value,
            Tag::TrackUID(value) => uid = *value,
            Tag::TrackType(value) => kind = *value,
            Tag::CodecID(value) => codec_id = Some(value.as_str()),
            Tag::CodecPrivate(value) => private = Some(value.as_slice()),
            Tag::ContentEncodings(_) => {
                return Err(Violation::mkv("a track that is compressed or encrypted"));
            }
            _ => {}
        }
    }
    let fault = if number == 0 {
        Some("a track without a TrackNumber")
    } else if uid == 0 {
        Some("a track without a TrackUID")
    } else if !matches!(kind, 1 | 2) {
        Some("a track that is neither video nor audio")
    } else {
        None
    };
    if let Some(fault) = fault {
        return Err(Violation::mkv(fault));
    }
    let codec_id = codec_id.ok_or_else(|| Violation::mkv("a track without a CodecID"))?;
    Ok(Track {
        number,
        video: kind == 1,
        framing: codec::check_private(codec_id, private).map_err(Violation::mkv)?,
    })
}

/// Track, time, flags and payload of a SimpleBlock (RFC 9559, section 10.2).
fn parse_block(block: Vec<u8>) -> Result<(u64, i16, u8, Bytes), Violation> {
    let width = block
        .first()
        .map_or(0, |first| first.leading_zeros() as usize + 1);
    let short = || Violation::mkv("a block that is shorter than its head");
    if width > 8 {
        return Err(Violation::mkv("a block with a broken track number"));
    }
    let (number, rest) = block.split_at_checked(width).ok_or_else(short)?;
    let [high, low, flags, ..] = *rest else {
        return Err(short());
    };
    let number = number
        .iter()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    let number = number & !(1 << (7 * width)); // without the marker bit
    let payload = Bytes::from(block).split_off(width + 3);
    Ok((number, i16::from_be_bytes([high, low]), flags, payload))
}

/// Names and values of all SimpleTags.
fn simple_tags(tags: &[Tag]) -> Result<Vec<(String, String)>, Violation> {
    let mut pairs = Vec::new();
    for tag in tags {
        let Tag::Tag(Master::Full(children)) = tag else {
            return Err(Violation::mkv("Tags holds something else than Tag"));
        };
        for child in children {
            let Tag::SimpleTag(Master::Full(fields)) = child else {
                continue; // Targets
            };
            let (mut name, mut value) = (None, String::new());
            for field in fields {
                match field {
                    Tag::TagName(text) => name = Some(text.clone()),
                    Tag::TagString(text) => value.clone_from(text),
                    _ => {}
                }
            }
            let name = name.ok_or_else(|| Violation::mkv("a SimpleTag without a TagName"))?;
            pairs.push((name, value));
        }
    }
    Ok(pairs)
}

fn check_tag(name: &str, value: &str, known: &[(String, String)]) -> Result<(), Violation> {
    let event = EVENT_TAGS.contains(&name);
    if name.is_empty() || (name.starts_with("AWS") && !event) {
        let reason = format!("the tag name {name:?} is empty or reserved");
        return Err(Violation::new(AckError::INVALID_METADATA, reason));
    }
    if event && known.iter().any(|(other, _)| other == name) {
        let reason = format!("{name} twice in a fragment");
        return Err(Violation::new(AckError::INVALID_METADATA, reason));
    }
    if name.len() > 128 || value.len() > 256 {
        let reason = format!("the tag {name:?} is too long");
        return Err(Violation::new(AckError::METADATA_LIMIT, reason));
    }
    Ok(())
}

/// Name of the element, without what it holds.
fn element_name(tag: &Tag) -> String {
    let text = format!("{tag:?}");
    text.split(['(', ' ']).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::local::samples::*;

    const T0: u64 = 1_735_787_045_007;
    const WALL: Duration = Duration::from_secs(1_735_787_101);

    fn reader() -> Reader {
        Reader::new(Limits::default(), TimecodeType::Absolute, Keep::Payload)
    }

    /// Pushes `body` in pieces of `cut` bytes and ends it.
    fn read_cut(
        mut reader: Reader,
        body: &[u8],
        cut: usize,
    ) -> (Vec<Event>, Result<(), Violation>) {
        let mut events = Vec::new();
        for piece in body.chunks(cut) {
            let pushed = reader.push(piece, Clock.now(), WALL, &mut events);
            if pushed.is_err() {
                return (events, pushed);
            }
        }
        let finished = reader.finish(&mut events);
        (events, finished)
    }

    fn read(body: &[u8]) -> (Vec<Event>, Result<(), Violation>) {
        read_cut(reader(), body, body.len().max(1))
    }

    fn error_of(parts: &[Vec<u8>]) -> AckError {
        read(&parts.concat()).1.unwrap_err().error
    }

    fn fragments(events: &[Event]) -> Vec<&Fragment> {
        let fragments = events.iter().filter_map(|event| match event {
            Event::Ended(fragment) => Some(fragment),
            Event::Begun { .. } => None,
        });
        fragments.collect()
    }

    #[test]
    fn two_fragments_in_any_cut() {
        let parts = [
            header(),
            fragment(T0),
            tag("site", "gate-3"),
            fragment(T0 + 2000),
            end_of_fragment(),
        ];
        let body = parts.concat();
        let (events, result) = read(&body);
        assert_eq!(result, Ok(()));
        let whole = fragments(&events);
        assert_eq!(whole.len(), 2);
        assert_eq!((whole[0].timecode, whole[1].timecode), (T0, T0 + 2000));
        let [key, delta] = &whole[0].frames[..] else {
            panic!("{:?}", whole[0].frames)
        };
        assert_eq!((key.at_ms, key.key, key.bytes), (T0, true, 8));
        assert_eq!((delta.at_ms, delta.key, delta.bytes), (T0 + 40, false, 13));
        assert_eq!(key.payload.as_deref(), Some(&bytes("0000000465888400")[..]));
        assert_eq!(whole[0].tags, [("site".to_owned(), "gate-3".to_owned())]);
        assert_eq!(whole[0].header.raw, header());
        assert_eq!(whole[0].header.tracks, tracks(&[video_entry(AVCC)]));
        assert_eq!(whole[0].raw, parts[1..3].concat());
        assert_eq!(whole[1].raw, parts[3..].concat());
        for cut in 1..64 {
            assert_eq!(
                read_cut(reader(), &body, cut),
                (events.clone(), Ok(())),
                "{cut}"
            );
        }
    }

    #[test]
    fn fragment_ends_with_the_mark_and_not_a_byte_later() {
        let mut reader = reader();
        let mut events = Vec::new();
        let body = [header(), fragment(T0), end_of_fragment()].concat();
        let (last, most) = body.split_last().unwrap();
        reader.push(most, Clock.now(), WALL, &mut events).unwrap();
        assert_eq!(events, [Event::Begun { timecode: T0 }]);
        reader
            .push(&[*last], Clock.now(), WALL, &mut events)
            .unwrap();
        assert_eq!(fragments(&events).len(), 1);
        assert_eq!(reader.timecode(), None);
    }

    #[test]
    fn known_sizes_are_as_good() {
        let body = [bytes("e7880000019424f8608f"), key(0)].concat();
        let cluster = [
            &bytes("1f43b675")[..],
            &(0x1000_0000 | u32::try_from(body.len()).unwrap()).to_be_bytes(),
            &body,
        ]
        .concat();
        let (events, result) = read(&[header(), cluster].concat());
        assert_eq!(result, Ok(()));
        assert_eq!(fragments(&events)[0].timecode, T0);
    }

    #[test]
    fn tags_before_the_first_cluster_belong_to_it() {
        let (events, result) =
            read(&[header(), tag("a", "1"), fragment(T0), tag("b", "2")].concat());
        assert_eq!(result, Ok(()));
        let fragments = fragments(&events);
        assert_eq!(fragments[0].tags.len(), 2);
        assert_eq!(fragments[0].header.raw, header());
        assert!(fragments[0].raw.starts_with(&tag("a", "1")));
    }

    #[test]
    fn relative_timecodes_count_from_the_start_header() {
        let relative = Reader::new(
            Limits::default(),
            TimecodeType::Relative { start_ms: T0 },
            Keep::Description,
        );
        let (events, result) = read_cut(relative, &[header(), fragment(0)].concat(), 7);
        assert_eq!(result, Ok(()));
        let frame = &fragments(&events)[0].frames[1];
        assert_eq!((frame.at_ms, &frame.payload), (T0 + 40, &None));
    }

    #[test]
    fn order_of_elements() {
        let mkv = AckError::INVALID_MKV;
        let cases = [
            vec![b"not matroska at all".to_vec()],
            vec![fragment(T0)],
            vec![header(), header()],
            vec![header(), fragment(T0), header()],
            vec![header(), fragment(T0), tracks(&[video_entry(AVCC)])],
            vec![header(), tracks(&[video_entry(AVCC)])],
            vec![ebml(), info(), fragment(T0)],
            vec![ebml(), tracks(&[video_entry(AVCC)]), fragment(T0)],
            vec![ebml(), info(), tracks(&[])],
            vec![header(), end_of_fragment()],
            vec![header(), fragment(T0), end_of_fragment(), end_of_fragment()],
            vec![header(), fragment(T0), end_of_fragment(), tag("a", "b")],
            vec![header(), fragment(T0), end_of_fragment(), delta(80)],
            vec![header(), cluster(T0), key(0), vec![0xE7, 0x81, 0]],
            vec![header(), vec![0x1F, 0x43, 0xB6, 0x75, 0xFF], key(0)],
            vec![header(), vec![0x1F, 0x43, 0xB6, 0x75, 0xFF], fragment(T0)],
            vec![header(), fragment(T0), bytes("1c53bb6b80")], // Cues
            vec![header(), fragment(T0), bytes("a080")],       // BlockGroup
            vec![header(), bytes("ec8100"), fragment(T0)],     // Void
            vec![header(), fragment(T0), bytes("a3")],         // cut within an element
            vec![header()],
        ];
        for (index, parts) in cases.iter().enumerate() {
            let (_, result) = read(&parts.concat());
            assert_eq!(result.unwrap_err().error, mkv, "case {index}");
        }
        assert_eq!(read(&[]).1, Ok(()), "no media is no fault");
    }

    #[test]
    fn header_rules() {
        let with = |entries: &[Vec<u8>]| vec![ebml(), info(), tracks(entries), fragment(T0)];
        let video = || video_entry(AVCC);
        let changed = |from: &str, to: &str| {
            let hex: String = video()
                .iter()
                .fold(String::new(), |s, b| format!("{s}{b:02x}"));
            assert!(hex.contains(from));
            bytes(&hex.replacen(from, to, 1))
        };
        let mkv = AckError::INVALID_MKV;
        assert_eq!(error_of(&with(&[video(), video()])), mkv);
        assert_eq!(error_of(&with(&[changed("d78101", "d78100")])), mkv);
        assert_eq!(
            error_of(&with(&[changed(
                "73c5880000000000000001",
                "73c5880000000000000000"
            )])),
            mkv
        );
        assert_eq!(error_of(&with(&[changed("838101", "838111")])), mkv);
        assert_eq!(error_of(&with(&[changed("0164", "0064")])), mkv);
        let numbered = |n: u8| changed("d78101", &format!("d781{n:02x}"));
        let four = [numbered(1), numbered(2), numbered(3), numbered(4)];
        assert_eq!(error_of(&with(&four)), AckError::TRACKS);

        let scale = |text: &str| {
            let mut info = info();
            let at = info
                .windows(3)
                .position(|w| w == [0x2A, 0xD7, 0xB1])
                .unwrap()
                + 4;
            info[at..at + 8].copy_from_slice(&bytes(text));
            info
        };
        for wrong in ["0000000000000063", "000000003b9aca01"] {
            let parts = [ebml(), scale(wrong), tracks(&[video()]), fragment(T0)];
            assert_eq!(error_of(&parts), mkv);
        }
        let mut other = ebml();
        let at = other.windows(8).position(|w| w == b"matroska").unwrap();
        other[at] = b'x';
        assert_eq!(error_of(&[other, info(), tracks(&[video()])]), mkv);
    }

    #[test]
    fn timecodes_rise_across_fragments() {
        let lesser = AckError::TIMECODE_LESSER;
        for next in [T0 - 1, T0, T0 + 40] {
            assert_eq!(error_of(&[header(), fragment(T0), fragment(next)]), lesser);
        }
        let good = [header(), fragment(T0), fragment(T0 + 41)].concat();
        assert_eq!(read(&good).1, Ok(()));
        // The cluster is later, one of its frames is not.
        let early = [cluster(T0 + 50), key(0), delta(-10)].concat();
        assert_eq!(error_of(&[header(), fragment(T0), early]), lesser);
    }

    #[test]
    fn times_must_be_of_this_time() {
        for wrong in [0, 40_000, T0 + 48 * 3_600_000, u64::MAX] {
            let error = error_of(&[header(), fragment(wrong)]);
            assert_eq!(error, AckError::PRODUCER_TIMESTAMP, "{wrong}");
        }
    }

    #[test]
    fn duration_and_size() {
        let at_20_s = [cluster(T0), key(0), delta(20_000)].concat();
        assert_eq!(read(&[header(), at_20_s].concat()).1, Ok(()));
        let longer = [cluster(T0), key(0), delta(20_001)].concat();
        assert_eq!(error_of(&[header(), longer]), AckError::FRAGMENT_DURATION);

        let small = || {
            let limits = Limits {
                fragment_bytes: 60,
                ..Limits::default()
            };
            Reader::new(limits, TimecodeType::Absolute, Keep::Description)
        };
        let body = [header(), fragment(T0), fragment(T0 + 100)].concat();
        for cut in [1, 50, body.len()] {
            let (events, result) = read_cut(small(), &body, cut);
            assert_eq!(result.unwrap_err().error, AckError::FRAGMENT_SIZE, "{cut}");
            assert_eq!(events, [Event::Begun { timecode: T0 }]);
        }
        // A block that only claims to be large is not waited for.
        let claim = [header(), cluster(T0), bytes("a3 01ffffffffffff00")].concat();
        let (_, result) = read_cut(small(), &[claim, vec![0; 100]].concat(), 10);
        assert_eq!(result.unwrap_err().error, AckError::FRAGMENT_SIZE);
    }

    #[test]
    fn rates_are_checked_when_asked_for() {
        let limits = Limits {
            shortest_fragment: Some(Duration::from_secs(1)),
            fragments_per_second: Some(2),
            ..Limits::default()
        };
        let reader = || Reader::new(limits.clone(), TimecodeType::Absolute, Keep::Description);
        let short = [header(), fragment(T0), fragment(T0 + 999)].concat();
        let error = read_cut(reader(), &short, 9).1.unwrap_err().error;
        assert_eq!(error, AckError::MIN_DURATION);
        let many = [
            header(),
            fragment(T0),
            fragment(T0 + 1000),
            fragment(T0 + 2000),
        ];
        let error = read_cut(reader(), &many.concat(), 9).1.unwrap_err().error;
        assert_eq!(error, AckError::FRAGMENT_RATE);
    }

    #[test]
    fn tracks_of_frames() {
        let two = || tracks(&[video_entry(AVCC), audio_entry()]);
        let audio = |offset| block(2, offset, 0x80, &[0x21, 0x10]);
        let start = || [ebml(), info(), two()].concat();
        let good = [start(), fragment(T0), audio(10), end_of_fragment()].concat();
        assert_eq!(read(&good).1, Ok(()));
        assert_eq!(error_of(&[start(), fragment(T0)]), AckError::FRAMES_MISSING);
        assert_eq!(
            error_of(&[start(), fragment(T0), block(3, 0, 0x80, &[1])]),
            AckError::TRACK_MISMATCH
        );
        // Audio that lags behind the next key frame.
        assert_eq!(
            error_of(&[start(), fragment(T0), audio(90), fragment(T0 + 80)]),
            AckError::TIMECODE_LESSER
        );
    }

    #[test]
    fn error_keeps_the_timecode_of_its_fragment() {
        let two = tracks(&[video_entry(AVCC), audio_entry()]);
        let mut reader = reader();
        let body = [ebml(), info(), two, fragment(T0), fragment(T0 + 100)].concat();
        let mut events = Vec::new();
        let error = reader.push(&body, Clock.now(), WALL, &mut events);
        assert!(error.is_err());
        assert_eq!(reader.timecode(), Some(T0));
        assert_eq!(reader.push(&[], Clock.now(), WALL, &mut events), error);
    }

    #[test]
    fn blocks() {
        let mkv = AckError::INVALID_MKV;
        let first = |block: Vec<u8>| error_of(&[header(), cluster(T0), block]);
        assert_eq!(first(delta(0)), mkv, "not flagged as a key frame");
        assert_eq!(
            first(block(1, 0, 0x80, &bytes("00000003419a02"))),
            mkv,
            "flagged, but it is none"
        );
        assert_eq!(
            first(block(1, 0, 0x82, &bytes("0000000465888400"))),
            mkv,
            "lacing"
        );
        assert_eq!(
            first(block(1, 0, 0x80, &bytes("0000000565888400"))),
            mkv,
            "NAL length"
        );
        assert_eq!(first(bytes("a38381 0000")), mkv, "short");
        assert_eq!(first(bytes("a380")), mkv, "empty");
        assert_eq!(first(bytes("a3850000000000")), mkv, "track number");
        assert_eq!(first(bytes("a3854101000080")), AckError::TRACK_MISMATCH);
    }

    #[test]
    fn metadata() {
        let with = |tags: Vec<Vec<u8>>| read(&[header(), fragment(T0), tags.concat()].concat()).1;
        let error = |tags| with(tags).unwrap_err().error;
        let many = |count: usize| (0..count).map(|i| tag(&format!("n{i}"), "v")).collect();
        let mut ten: Vec<Vec<u8>> = many(10);
        ten.push(end_of_fragment());
        assert_eq!(with(ten), Ok(()), "the end mark does not count");
        assert_eq!(error(many(11)), AckError::METADATA_LIMIT);
        let (long, longest) = ("x".repeat(129), "x".repeat(256));
        assert_eq!(with(vec![tag(&long[1..], &longest)]), Ok(()));
        assert_eq!(error(vec![tag(&long, "")]), AckError::METADATA_LIMIT);
        assert_eq!(
            error(vec![tag("n", &format!("{longest}x"))]),
            AckError::METADATA_LIMIT
        );
        for name in ["", "AWS", "AWS_mine", "AWS_KINESISVIDEO_FRAGMENT_NUMBER"] {
            assert_eq!(error(vec![tag(name, "")]), AckError::INVALID_METADATA);
        }
        let event = || tag("AWS_KINESISVIDEO_NOTIFICATION", "");
        assert_eq!(with(vec![event(), tag("k", "v")]), Ok(()));
        assert_eq!(error(vec![event(), event()]), AckError::INVALID_METADATA);
    }

    proptest::proptest! {
        /// Whatever arrives, in whatever cut: no panic, and the same events and the same verdict.
        #[test]
        fn damage_is_judged_alike_in_any_cut(
            damage in proptest::collection::vec((0_usize..800, proptest::prelude::any::<u8>()), 0..4),
            cuts in proptest::collection::vec(1_usize..90, 1..20),
        ) {
            let tags = [tag("site", "gate-3"), fragment(T0 + 2000), end_of_fragment()];
            let mut body = [header(), fragment(T0), tags.concat()].concat();
            for (at, to) in damage {
                let at = at % body.len();
                body[at] = to;
            }
            let limits = Limits { fragment_bytes: 4096, ..Limits::default() };
            let reader = || Reader::new(limits.clone(), TimecodeType::Absolute, Keep::Payload);
            let whole = read_cut(reader(), &body, body.len());
            let mut cut_reader = reader();
            let mut events = Vec::new();
            let mut result = Ok(());
            let mut rest = &body[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() || result.is_err() {
                    break;
                }
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                result = cut_reader.push(piece, Clock.now(), WALL, &mut events);
                rest = tail;
            }
            if result.is_ok() {
                result = cut_reader.finish(&mut events);
            }
            proptest::prop_assert_eq!((events, result), whole);
        }
    }
}
