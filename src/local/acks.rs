//! Acknowledgements: their text, the table of ERROR ids, and how a scenario reshapes them on their way out. Pure.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

/// `EventType` of an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// The first bytes of the fragment have arrived.
    Buffering,
    /// The whole fragment has arrived.
    Received,
    /// The fragment is stored.
    Persisted,
    /// Nothing has arrived for a while.
    Idle,
    /// The connection is refused or at its end.
    Error,
}

impl EventType {
    /// The word on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Buffering => "BUFFERING",
            Self::Received => "RECEIVED",
            Self::Persisted => "PERSISTED",
            Self::Idle => "IDLE",
            Self::Error => "ERROR",
        }
    }

    /// The type that `name` stands for on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::Buffering,
            Self::Received,
            Self::Persisted,
            Self::Idle,
            Self::Error,
        ]
        .into_iter()
        .find(|event| event.name() == name)
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The service's name of a fragment: 47 decimal digits, growing within a stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentNumber(String);

impl FragmentNumber {
    /// The number with `counter` in its last 33 digits; a counter that grows gives numbers that grow.
    pub fn new(counter: u128) -> Self {
        Self(format!("91343852333181{counter:033}"))
    }
}

impl fmt::Display for FragmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `ErrorId` and `ErrorCode` of an ERROR acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AckError {
    /// The number, such as 4004.
    pub id: u32,
    /// The name that goes with it.
    pub code: Cow<'static, str>,
}

impl AckError {
    const fn new(id: u32, code: &'static str) -> Self {
        Self {
            id,
            code: Cow::Borrowed(code),
        }
    }

    /// More bytes than a fragment may have.
    pub const FRAGMENT_SIZE: Self = Self::new(4001, "MAX_FRAGMENT_SIZE_REACHED");
    /// A longer time than a fragment may span.
    pub const FRAGMENT_DURATION: Self = Self::new(4002, "MAX_FRAGMENT_DURATION_REACHED");
    /// The connection is too old.
    pub const CONNECTION_DURATION: Self = Self::new(4003, "MAX_CONNECTION_DURATION_REACHED");
    /// A fragment that does not begin after the end of the one before.
    pub const TIMECODE_LESSER: Self = Self::new(4004, "FRAGMENT_TIMECODE_LESSER_THAN_PREVIOUS");
    /// More tracks than a stream may have.
    pub const TRACKS: Self = Self::new(4005, "MORE_THAN_ALLOWED_TRACKS_FOUND");
    /// Not Matroska, or not the Matroska that the service takes.
    pub const INVALID_MKV: Self = Self::new(4006, "INVALID_MKV_DATA");
    /// A time that no producer's clock can show.
    pub const PRODUCER_TIMESTAMP: Self = Self::new(4007, "INVALID_PRODUCER_TIMESTAMP");
    /// The stream is gone, not there yet, or being deleted.
    pub const STREAM_NOT_ACTIVE: Self = Self::new(4008, "STREAM_NOT_ACTIVE");
    /// Too many tags in a fragment, or too long ones.
    pub const METADATA_LIMIT: Self = Self::new(4009, "FRAGMENT_METADATA_LIMIT_REACHED");
    /// A block of a track that Tracks does not declare.
    pub const TRACK_MISMATCH: Self = Self::new(4010, "TRACK_NUMBER_MISMATCH");
    /// A declared track without a frame in the fragment.
    pub const FRAMES_MISSING: Self = Self::new(4011, "FRAMES_MISSING_FOR_TRACK");
    /// A tag whose name is empty or reserved.
    pub const INVALID_METADATA: Self = Self::new(4012, "INVALID_FRAGMENT_METADATA");
    /// A fragment that is too short. The guide names it without a number; this one is ours.
    pub const MIN_DURATION: Self = Self::new(4013, "MIN_FRAGMENT_DURATION_REACHED");
    /// Too many fragments in a second. Neither name nor number is documented; these are ours.
    pub const FRAGMENT_RATE: Self = Self::new(4014, "MAX_FRAGMENT_RATE_REACHED");
    /// The fragment could not be stored.
    pub const ARCHIVAL: Self = Self::new(5001, "ARCHIVAL_ERROR");

    /// Those that only a scenario brings about.
    const SCRIPTED: [Self; 10] = [
        Self::new(4000, "STREAM_READ_ERROR"),
        Self::new(4500, "KMS_KEY_ACCESS_DENIED"),
        Self::new(4501, "KMS_KEY_DISABLED"),
        Self::new(4502, "KMS_KEY_VALIDATION_ERROR"),
        Self::new(4503, "KMS_KEY_UNAVAILABLE"),
        Self::new(4504, "KMS_KEY_INVALID_USAGE"),
        Self::new(4505, "KMS_KEY_INVALID_STATE"),
        Self::new(4506, "KMS_KEY_NOT_FOUND"),
        Self::new(4507, "STREAM_DELETED"),
        Self::new(5000, "INTERNAL_ERROR"),
    ];

    /// The error that the service documents under `id`.
    pub fn known(id: u32) -> Option<Self> {
        let enforced = [
            Self::FRAGMENT_SIZE,
            Self::FRAGMENT_DURATION,
            Self::CONNECTION_DURATION,
            Self::TIMECODE_LESSER,
            Self::TRACKS,
            Self::INVALID_MKV,
            Self::PRODUCER_TIMESTAMP,
            Self::STREAM_NOT_ACTIVE,
            Self::METADATA_LIMIT,
            Self::TRACK_MISMATCH,
            Self::FRAMES_MISSING,
            Self::INVALID_METADATA,
            Self::ARCHIVAL,
        ];
        enforced
            .into_iter()
            .chain(Self::SCRIPTED)
            .find(|error| error.id == id)
    }
}

impl fmt::Display for AckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.code)
    }
}

/// One acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// What it says.
    pub event: EventType,
    /// The cluster's timecode as it was sent. An IDLE has none, an ERROR outside a fragment neither.
    pub timecode: Option<u64>,
    /// The fragment's number, where the timecode is one.
    pub number: Option<FragmentNumber>,
    /// Of an ERROR.
    pub error: Option<AckError>,
}

impl Ack {
    /// BUFFERING, RECEIVED or PERSISTED of a fragment.
    pub fn of(event: EventType, timecode: u64, number: FragmentNumber) -> Self {
        Self {
            event,
            timecode: Some(timecode),
            number: Some(number),
            error: None,
        }
    }

    /// An IDLE.
    pub fn idle() -> Self {
        Self {
            event: EventType::Idle,
            timecode: None,
            number: None,
            error: None,
        }
    }

    /// An ERROR, of `fragment` where one was under way.
    pub fn error(error: AckError, fragment: Option<(u64, FragmentNumber)>) -> Self {
        let (timecode, number) = fragment.unzip();
        Self {
            event: EventType::Error,
            timecode,
            number,
            error: Some(error),
        }
    }

    /// The JSON object and the line end behind it.
    pub fn line(&self) -> Vec<u8> {
        // By hand, because the order of the service's keys is not the alphabet's.
        let mut fields = vec![format!(r#""EventType":"{}""#, self.event)];
        if let Some(timecode) = self.timecode {
            fields.push(format!(r#""FragmentTimecode":{timecode}"#));
        }
        if let Some(number) = &self.number {
            fields.push(format!(r#""FragmentNumber":"{number}""#));
        }
        if let Some(error) = &self.error {
            let code = Value::from(error.code.as_ref());
            fields.push(format!(r#""ErrorCode":{code},"ErrorId":{}"#, error.id));
        }
        format!("{{{}}}\r\n", fields.join(",")).into_bytes()
    }
}

/// What a scenario does to an acknowledgement on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It and all behind it go out this much later.
    Delay(Duration),
    /// It never goes out.
    Withhold,
    /// It goes out a byte at a time, each in an HTTP chunk of its own.
    Split,
    /// It waits for the next one and goes out with it in one chunk.
    Merge,
    /// It goes out twice.
    Duplicate,
    /// It goes out behind the next one.
    Reorder,
}

/// Acknowledgements that wait for their time to go out.
#[derive(Debug, Default)]
pub struct Outbox {
    pieces: VecDeque<(Instant, Bytes)>,
    held: Option<Held>,
}

/// An acknowledgement that waits for the next one.
#[derive(Debug)]
enum Held {
    Merge(Vec<u8>),
    Reorder(Vec<u8>),
}

impl Outbox {
    /// Queues `ack`, shaped by `treatments`. Says whether it will go out at all.
    pub fn push(&mut self, ack: &Ack, treatments: &[Treatment], now: Instant) -> bool {
        if treatments.contains(&Treatment::Withhold) {
            return false;
        }
        let mut line = ack.line();
        if treatments.contains(&Treatment::Duplicate) {
            line = line.repeat(2);
        }
        // A connection is a queue: what is behind a late acknowledgement is late as well.
        let delay = treatments.iter().map(|treatment| match treatment {
            Treatment::Delay(delay) => *delay,
            _ => Duration::ZERO,
        });
        let due = now + delay.sum::<Duration>();
        let due = self.pieces.back().map_or(due, |(last, _)| due.max(*last));

        let behind = match self.held.take() {
            Some(Held::Merge(mut first)) => {
                first.append(&mut line);
                line = first;
                None
            }
            Some(Held::Reorder(first)) => Some(first),
            None => None,
        };
        if treatments.contains(&Treatment::Merge) {
            self.held = Some(Held::Merge(line));
        } else if treatments.contains(&Treatment::Reorder) {
            self.held = Some(Held::Reorder(line));
        } else if treatments.contains(&Treatment::Split) {
            let line = Bytes::from(line);
            let bytes = (0..line.len()).map(|at| (due, line.slice(at..=at)));
            self.pieces.extend(bytes);
        } else {
            self.pieces.push_back((due, line.into()));
        }
        if let Some(first) = behind {
            self.pieces.push_back((due, first.into()));
        }
        true
    }

    /// Lets go what waits for a next acknowledgement that will not come.
    pub fn flush(&mut self, now: Instant) {
        if let Some(Held::Merge(line) | Held::Reorder(line)) = self.held.take() {
            let due = self.pieces.back().map_or(now, |(last, _)| now.max(*last));
            self.pieces.push_back((due, line.into()));
        }
    }

    /// When the next piece may go out.
    pub fn due(&self) -> Option<Instant> {
        self.pieces.front().map(|(due, _)| *due)
    }

    /// The next piece whose time has come: one HTTP chunk.
    pub fn pop(&mut self, now: Instant) -> Option<Bytes> {
        let (due, _) = self.pieces.front()?;
        if *due > now {
            return None;
        }
        self.pieces.pop_front().map(|(_, piece)| piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn ack(event: EventType, timecode: u64) -> Ack {
        Ack::of(event, timecode, FragmentNumber::new(7))
    }

    fn out(outbox: &mut Outbox, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| outbox.pop(now))
            .map(|piece| String::from_utf8(piece.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn text_is_the_service_s() {
        let persisted = Ack::of(
            EventType::Persisted,
            1_663_277_247_152,
            FragmentNumber::new(432_511_524_306_419_788_296_366_724_229_586),
        );
        assert_eq!(
            String::from_utf8(persisted.line()).unwrap(),
            "{\"EventType\":\"PERSISTED\",\"FragmentTimecode\":1663277247152,\
             \"FragmentNumber\":\"91343852333181432511524306419788296366724229586\"}\r\n"
        );
        let fragment = Some((0, FragmentNumber::new(1)));
        let error = Ack::error(AckError::TIMECODE_LESSER, fragment);
        assert_eq!(
            String::from_utf8(error.line()).unwrap(),
            "{\"EventType\":\"ERROR\",\"FragmentTimecode\":0,\
             \"FragmentNumber\":\"91343852333181000000000000000000000000000000001\",\
             \"ErrorCode\":\"FRAGMENT_TIMECODE_LESSER_THAN_PREVIOUS\",\"ErrorId\":4004}\r\n"
        );
        assert_eq!(Ack::idle().line(), b"{\"EventType\":\"IDLE\"}\r\n");
    }

    #[test]
    fn fragment_numbers_have_47_digits_and_grow() {
        assert_eq!(FragmentNumber::new(9).to_string().len(), 47);
        assert!(FragmentNumber::new(9) < FragmentNumber::new(10));
    }

    #[test]
    fn every_documented_error_is_known_by_its_id() {
        let ids = (4000..=4012).chain(4500..=4507).chain(5000..=5001);
        for id in ids {
            assert_eq!(AckError::known(id).map(|error| error.id), Some(id));
        }
        assert_eq!(AckError::known(7), None);
    }

    #[test]
    fn delay_holds_back_what_is_behind_as_well() {
        let now = Clock.now();
        let second = Duration::from_secs(1);
        let mut outbox = Outbox::default();
        outbox.push(
            &ack(EventType::Buffering, 1),
            &[Treatment::Delay(second)],
            now,
        );
        outbox.push(&ack(EventType::Received, 1), &[], now);
        assert_eq!(outbox.due(), Some(now + second));
        assert!(out(&mut outbox, now).is_empty());
        let late = out(&mut outbox, now + second);
        assert!(late[0].contains("BUFFERING") && late[1].contains("RECEIVED"));
    }

    #[test]
    fn treatments_reshape() {
        let now = Clock.now();
        let mut outbox = Outbox::default();

        assert!(!outbox.push(&Ack::idle(), &[Treatment::Withhold], now));
        assert!(out(&mut outbox, now).is_empty());

        outbox.push(&Ack::idle(), &[Treatment::Split], now);
        let bytes = out(&mut outbox, now);
        assert!(bytes.iter().all(|piece| piece.len() == 1));
        assert_eq!(bytes.concat().into_bytes(), Ack::idle().line());

        outbox.push(&Ack::idle(), &[Treatment::Duplicate], now);
        assert_eq!(
            out(&mut outbox, now)
                .concat()
                .matches("\"EventType\":\"IDLE\"")
                .count(),
            2
        );

        outbox.push(&ack(EventType::Buffering, 1), &[Treatment::Merge], now);
        assert!(out(&mut outbox, now).is_empty(), "it waits for the next");
        outbox.push(&ack(EventType::Received, 1), &[], now);
        let merged = out(&mut outbox, now);
        assert_eq!(merged.len(), 1);
        assert!(merged[0].find("BUFFERING") < merged[0].find("RECEIVED"));

        outbox.push(&ack(EventType::Buffering, 1), &[Treatment::Reorder], now);
        outbox.push(&ack(EventType::Received, 1), &[], now);
        let turned = out(&mut outbox, now);
        assert!(turned[0].contains("RECEIVED") && turned[1].contains("BUFFERING"));

        outbox.push(&ack(EventType::Persisted, 1), &[Treatment::Reorder], now);
        outbox.flush(now);
        assert_eq!(out(&mut outbox, now).len(), 1);
    }
}
