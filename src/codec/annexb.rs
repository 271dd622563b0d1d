//! The byte stream format (H.264 and H.265, annex B): start codes, and the cut into access units.

use std::fmt;
use std::ops::Range;

use super::detect::{Detector, Error};
use super::{h264, h265};
use crate::frame::Codec;

/// By how much the buffer grows, in bytes.
const GROWTH_BYTES: usize = 16 * 1024;

/// Bytes of a start code, `00 00 01`. The zero that may stand before it belongs to what came before, or to nothing.
pub(super) const START_CODE_LEN: usize = 3;

/// Index of the first start code that begins at `from` or later.
pub(super) fn find_start_code(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from + START_CODE_LEN - 1;
    // In compressed video a 1 is rarer than a 0, and stands at the end.
    while let Some(step) = memchr::memchr(1, bytes.get(at..)?) {
        at += step;
        if bytes[at - 2] == 0 && bytes[at - 1] == 0 {
            return Some(at + 1 - START_CODE_LEN);
        }
        at += 1;
    }
    None
}

/// Where the NAL units of `unit` stand: without start codes and trailing zeros, and without empty ones.
pub(super) fn nal_ranges(unit: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut next = find_start_code(unit, 0);
    std::iter::from_fn(move || {
        loop {
            let start = next? + START_CODE_LEN;
            next = find_start_code(unit, start);
            let padded = &unit[start..next.unwrap_or(unit.len())];
            let len = padded
                .iter()
                .rposition(|&byte| byte != 0)
                .map_or(0, |last| last + 1);
            if len > 0 {
                return Some(start..start + len);
            }
        }
    })
}

/// What [`Splitter::advance`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A whole access unit, which [`Splitter::unit`] lends.
    Unit {
        /// Whether there is a picture in it; without, it holds parameter sets or messages only.
        picture: bool,
    },
    /// Bytes that are in no unit.
    Dropped {
        /// Why.
        reason: DropReason,
        /// How many.
        bytes: usize,
    },
}

/// Why the splitter gave up bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// They stood before the first start code, or between an end of sequence and the next start code.
    NoStartCode,
    /// They were a unit larger than the maximum.
    TooLarge,
}

impl fmt::Display for DropReason {
    /// As the report names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoStartCode => "no start code",
            Self::TooLarge => "frame too large",
        })
    }
}

/// Cuts a byte stream, which comes in any portions, into access units.
///
/// [`fill`](Self::fill) or [`push`](Self::push) takes bytes, then [`advance`](Self::advance) is called until it has no more.
/// A unit is whole as soon as the next one's first bytes are here, or at an end of sequence.
///
/// Holds at most the maximum unit, or the [`LIMIT_BYTES`](super::LIMIT_BYTES) of a stream whose codec is not known yet,
/// and one push, in a buffer that grows to what that needs. It is reused, so that in the steady state nothing is allocated.
#[derive(Debug)]
pub struct Splitter {
    max_unit_bytes: usize,
    /// What was known of the codec before the stream.
    told: Option<Codec>,
    /// `Err` until the stream has shown what it is.
    codec: Result<Codec, Detector>,
    /// Up to `end`: what came; from `start` on: what is not handed out yet.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Where the search for start codes goes on: no start code begins between `start` and here, but those of the NAL
    /// units that are known to be in the current unit.
    scan: usize,
    state: State,
    /// Bytes of the current unit or gap that are no longer in the buffer.
    shed: usize,
    /// The unit handed out last.
    unit: Range<usize>,
    /// No more will come.
    finished: bool,
}

/// What the bytes from `start` on are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing yet: before the first start code, or behind an end of sequence.
    Between {
        /// There was something else than zeros.
        garbage: bool,
    },
    /// The beginning of a unit.
    Inside { picture: bool },
    /// The beginning of a unit that is too large.
    Skipping,
}

/// What a NAL unit's first bytes say of where it stands in its access unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Behind a picture it begins the next unit: a delimiter, a parameter set, a message in front of a picture.
    Opening,
    /// The first slice of a picture.
    FirstSlice,
    /// A further slice.
    Slice,
    /// End of sequence or of stream: the last of its unit.
    End,
    /// Belongs to the unit that it stands in.
    Inside,
}

impl Splitter {
    /// A splitter for one stream of `codec`, or of the codec that the stream turns out to have. Units above
    /// `max_unit_bytes`, start codes included, are dropped.
    pub fn new(codec: Option<Codec>, max_unit_bytes: usize) -> Self {
        Self {
            max_unit_bytes,
            told: codec,
            codec: Err(Detector::new(codec)),
            buffer: Vec::new(),
            start: 0,
            end: 0,
            scan: 0,
            state: State::Between { garbage: false },
            shed: 0,
            unit: 0..0,
            finished: false,
        }
    }

    /// The codec, once the stream has shown it.
    pub fn codec(&self) -> Option<Codec> {
        self.codec.as_ref().ok().copied()
    }

    /// Takes the stream's next bytes. Not after [`Self::finish`].
    pub fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Has `read` put the stream's next bytes, `max` at most, where they are needed, and say how many there are. Not after
    /// [`Self::finish`].
    ///
    /// # Errors
    /// Those of `read`: then nothing came.
    pub fn fill<E>(
        &mut self,
        max: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let room = self.room(max);
        let len = read(room)?.min(room.len());
        self.end += len;
        Ok(len)
    }

    /// Where the next `len` bytes go.
    fn room(&mut self, len: usize) -> &mut [u8] {
        self.unit = 0..0;
        // At most once a unit, since room comes from units that were handed out.
        if self.end + len > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.scan -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
        // Not to twice the size, as it would by itself: it has to hold one access unit and what was read with it.
        if self.end + len > self.buffer.len() {
            let growth = (self.end + len - self.buffer.len()).max(GROWTH_BYTES);
            self.buffer.reserve_exact(growth);
            self.buffer.resize(self.buffer.len() + growth, 0);
        }
        &mut self.buffer[self.end..self.end + len]
    }

    /// Says that the stream is at its end: what is left comes out of [`Self::advance`].
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// The access unit of the last [`Event::Unit`], until the next [`Self::push`].
    pub fn unit(&self) -> &[u8] {
        &self.buffer[self.unit.clone()]
    }

    /// Looks for the next unit in what was pushed. `None` asks for more bytes, or is the end of a finished stream.
    ///
    /// # Errors
    /// When the stream is not Annex B, or not of a known codec. What was pushed is gone then, and the next push begins a
    /// new stream.
    pub fn advance(&mut self) -> Result<Option<Event>, Error> {
        let codec = match &mut self.codec {
            Ok(codec) => *codec,
            Err(detector) => match detector.decide(&self.buffer[..self.end], self.finished) {
                Ok(None) => return Ok(None),
                Ok(Some(codec)) => {
                    self.codec = Ok(codec);
                    codec
                }
                Err(error) => {
                    *self = Self::new(self.told, self.max_unit_bytes);
                    return Err(error);
                }
            },
        };
        Ok(self.split(codec))
    }

    fn split(&mut self, codec: Codec) -> Option<Event> {
        while let Some(at) = find_start_code(&self.buffer[..self.end], self.scan) {
            let nal = &self.buffer[at + START_CODE_LEN..self.end];
            let (role, header_len) = match codec {
                Codec::H264 => (h264::role(nal), h264::HEADER_LEN),
                Codec::H265 => (h265::role(nal), h265::HEADER_LEN),
            };
            let Some(role) = role.or(self.finished.then_some(Role::Inside)) else {
                self.scan = at;
                self.shed_surplus();
                return None;
            };
            self.scan = at + START_CODE_LEN;
            let event = self.enter(role, at, header_len);
            if event.is_some() {
                return event;
            }
        }
        // The last two bytes may be the beginning of a start code.
        let searched = self.end.saturating_sub(START_CODE_LEN - 1);
        self.scan = self.scan.max(searched);
        if self.finished {
            return self.close(self.end);
        }
        self.shed_surplus();
        None
    }

    /// Takes in the NAL unit whose start code is at `at`.
    fn enter(&mut self, role: Role, at: usize, header_len: usize) -> Option<Event> {
        // The zero of a 4-byte start code goes with it.
        let boundary = match self.buffer[self.start..at] {
            [.., 0] => at - 1,
            _ => at,
        };
        // Looked at here too, so that the outcome does not hang on how the bytes were cut.
        if matches!(self.state, State::Inside { .. })
            && self.bytes_to(boundary) > self.max_unit_bytes
        {
            self.state = State::Skipping;
        }
        let slice = matches!(role, Role::FirstSlice | Role::Slice);
        match (self.state, role) {
            (State::Between { .. }, Role::End) => {
                // It ends nothing, and is in no unit.
                let event = self.close(boundary);
                self.start = at + START_CODE_LEN + header_len;
                self.scan = self.start;
                event
            }
            (State::Between { .. }, _)
            | (
                State::Inside { picture: true } | State::Skipping,
                Role::Opening | Role::FirstSlice,
            ) => {
                let event = self.close(boundary);
                self.state = State::Inside { picture: slice };
                event
            }
            (State::Inside { picture: true } | State::Skipping, Role::End) => {
                self.scan = at + START_CODE_LEN + header_len;
                self.close(self.scan)
            }
            (State::Inside { picture }, _) => {
                self.state = State::Inside {
                    picture: picture || slice,
                };
                None
            }
            (State::Skipping, _) => None,
        }
    }

    /// Size of what is open, were it to end at `end`.
    fn bytes_to(&self, end: usize) -> usize {
        self.shed + (end - self.start)
    }

    /// Closes what is open at `end`, and goes on from there.
    fn close(&mut self, end: usize) -> Option<Event> {
        let bytes = self.bytes_to(end);
        let event = match self.state {
            State::Between { garbage } => {
                (garbage || self.is_garbage(end)).then_some(Event::Dropped {
                    reason: DropReason::NoStartCode,
                    bytes,
                })
            }
            State::Inside { picture } if bytes <= self.max_unit_bytes => {
                self.unit = self.start..end;
                Some(Event::Unit { picture })
            }
            State::Inside { .. } | State::Skipping => Some(Event::Dropped {
                reason: DropReason::TooLarge,
                bytes,
            }),
        };
        self.start = end;
        self.shed = 0;
        self.state = State::Between { garbage: false };
        event
    }

    /// Whether there is more than padding between the units.
    fn is_garbage(&self, end: usize) -> bool {
        self.buffer[self.start..end].iter().any(|&byte| byte != 0)
    }

    /// Gives up the bytes before the search position that no unit will be made of.
    fn shed_surplus(&mut self) {
        // The byte before may be the zero of a start code.
        let keep = self.scan.saturating_sub(1).max(self.start);
        match self.state {
            State::Between { garbage } => {
                let garbage = garbage || self.is_garbage(keep);
                self.state = State::Between { garbage };
            }
            State::Inside { .. } if self.bytes_to(keep) > self.max_unit_bytes => {
                self.state = State::Skipping;
            }
            State::Inside { .. } => return,
            State::Skipping => {}
        }
        self.shed = self.bytes_to(keep);
        self.start = keep;
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// All events of `stream` cut into portions of the given sizes, repeated; units as their bytes.
    fn events(codec: Codec, max_unit_bytes: usize, stream: &[u8], cuts: &[usize]) -> Vec<Found> {
        let mut splitter = Splitter::new(Some(codec), max_unit_bytes);
        let mut found = Vec::new();
        let mut rest = stream;
        for &cut in cuts.iter().cycle() {
            let (portion, after) = rest.split_at(cut.clamp(1, rest.len().max(1)).min(rest.len()));
            rest = after;
            splitter.push(portion);
            drain(&mut splitter, &mut found);
            if rest.is_empty() {
                break;
            }
        }
        splitter.finish();
        drain(&mut splitter, &mut found);
        assert_eq!(splitter.advance(), Ok(None), "nothing comes after the end");
        found
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Found {
        Unit(Vec<u8>, bool),
        Dropped(DropReason, usize),
    }

    fn drain(splitter: &mut Splitter, found: &mut Vec<Found>) {
        while let Some(event) = splitter.advance().expect("the codec was named") {
            found.push(match event {
                Event::Unit { picture } => Found::Unit(splitter.unit().to_vec(), picture),
                Event::Dropped { reason, bytes } => Found::Dropped(reason, bytes),
            });
        }
    }

    fn unit(bytes: &[u8]) -> Found {
        Found::Unit(bytes.to_vec(), true)
    }

    /// Checks the events for one push, for single bytes and for two uneven cuts.
    #[track_caller]
    fn check(codec: Codec, max_unit_bytes: usize, stream: &[u8], expected: &[Found]) {
        for cuts in [&[stream.len()][..], &[1], &[2, 3], &[7, 1, 4]] {
            assert_eq!(
                events(codec, max_unit_bytes, stream, cuts),
                expected,
                "cuts {cuts:?}"
            );
        }
    }

    #[test]
    fn start_codes_are_found_wherever_they_stand() {
        let bytes = [0, 0, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0, 2, 0, 0, 1];
        let all: Vec<_> = (0..=bytes.len() + 3)
            .map(|from| find_start_code(&bytes, from))
            .collect();
        let expected = [
            [Some(0); 1].to_vec(),
            [Some(4); 4].to_vec(),
            [Some(13); 9].to_vec(),
            [None; 6].to_vec(),
        ];
        assert_eq!(all, expected.concat());
    }

    #[test]
    fn nal_units_come_without_padding_and_empty_ones_not_at_all() {
        let unit = [
            9, 9, 0, 0, 1, 0x67, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0x65, 0, 0, 3, 1, 0, 0, 0, 0, 0, 1,
        ];
        let nals: Vec<_> = nal_ranges(&unit).map(|range| &unit[range]).collect();
        assert_eq!(nals, [&[0x67, 1][..], &[0x65, 0, 0, 3, 1]]);
    }

    #[test]
    fn pictures_are_cut_at_first_slices_with_and_without_delimiters() {
        let first = [0, 0, 0, 1, 0x65, 0x88, 5, 0, 0, 1, 0x65, 0x40, 6]; // two slices
        let second = [0, 0, 1, 0x41, 0x9A, 7, 0, 0]; // trailing zeros
        let third = [
            0, 0, 0, 1, 0x09, 0xF0, 0, 0, 1, 0x06, 5, 1, 0, 0, 0, 1, 0x41, 0x9A, 8,
        ];
        let stream = [&first[..], &second, &third].concat();
        check(
            Codec::H264,
            100,
            &stream,
            &[unit(&first), unit(&second), unit(&third)],
        );
    }

    #[test]
    fn h265_prefixes_begin_a_unit_and_suffixes_end_one() {
        let first = [
            0, 0, 0, 1, 0x40, 1, 1, 0, 0, 1, 0x26, 1, 0xAF, 0, 0, 1, 0x26, 1, 0x60, 0, 0, 1, 0x50,
            1, 2,
        ];
        let second = [0, 0, 0, 1, 0x4E, 1, 3, 0, 0, 1, 0x02, 1, 0xD0];
        // Another layer's slice, which is no picture of ours.
        let third = [0, 0, 1, 0x02, 1, 0xD1, 0, 0, 1, 0x02, 9, 0xD1];
        let stream = [&first[..], &second, &third].concat();
        check(
            Codec::H265,
            100,
            &stream,
            &[unit(&first), unit(&second), unit(&third)],
        );
    }

    #[test]
    fn a_unit_comes_out_with_the_first_bytes_of_the_next() {
        let mut splitter = Splitter::new(Some(Codec::H264), 100);
        splitter.push(&[0, 0, 1, 0x65, 0x88, 5, 0, 0, 0, 1]);
        assert_eq!(splitter.advance(), Ok(None));
        splitter.push(&[0x09]);
        assert_eq!(splitter.advance(), Ok(Some(Event::Unit { picture: true })));
        assert_eq!(splitter.unit(), [0, 0, 1, 0x65, 0x88, 5]);
        assert_eq!(splitter.advance(), Ok(None));
    }

    #[test]
    fn an_end_of_sequence_ends_its_unit_at_once() {
        let mut splitter = Splitter::new(Some(Codec::H264), 100);
        splitter.push(&[0, 0, 1, 0x65, 0x88, 5, 0, 0, 1, 0x0A]);
        assert_eq!(splitter.advance(), Ok(Some(Event::Unit { picture: true })));
        assert_eq!(splitter.unit(), [0, 0, 1, 0x65, 0x88, 5, 0, 0, 1, 0x0A]);

        // An end of stream behind it is in no unit; neither is padding, and garbage is told.
        let first = [0, 0, 1, 0x65, 0x88, 5, 0, 0, 1, 0x0A];
        let second = [0, 0, 0, 1, 0x67, 6, 0, 0, 1, 0x65, 0x88, 7, 0, 0, 1, 0x0B];
        let third = [0, 0, 1, 0x65, 0x88, 8];
        let stream = [
            &first[..],
            &[0, 0, 1, 0x0B, 0, 0],
            &second,
            &[1, 2, 3],
            &third,
        ]
        .concat();
        let garbage = Found::Dropped(DropReason::NoStartCode, 3);
        check(
            Codec::H264,
            100,
            &stream,
            &[unit(&first), unit(&second), garbage, unit(&third)],
        );
    }

    #[test]
    fn garbage_in_front_is_told_and_padding_is_not() {
        let picture = [0, 0, 0, 1, 0x65, 0x88, 5];
        let stream = [&[0, 0, 0][..], &picture].concat();
        check(Codec::H264, 100, &stream, &[unit(&picture)]);
        let stream = [&[7, 0, 1, 0, 9][..], &picture].concat();
        let garbage = Found::Dropped(DropReason::NoStartCode, 5);
        check(Codec::H264, 100, &stream, &[garbage, unit(&picture)]);
    }

    #[test]
    fn what_holds_no_picture_is_told_apart() {
        let stream = [0, 0, 1, 0x67, 5, 0, 0, 1, 0x68, 6];
        check(
            Codec::H264,
            100,
            &stream,
            &[Found::Unit(stream.to_vec(), false)],
        );
    }

    #[test]
    fn a_unit_above_the_maximum_is_dropped_and_the_next_is_whole() {
        let fits = [&[0, 0, 1, 0x65, 0x88][..], &[5; 15]].concat();
        let above = [
            &[0, 0, 1, 0x41, 0x9A][..],
            &[6; 8],
            &[0, 0, 1, 0x41, 0x40],
            &[6; 30],
        ]
        .concat();
        let stream = [&fits[..], &above, &fits, &above].concat();
        let dropped = || Found::Dropped(DropReason::TooLarge, above.len());
        check(
            Codec::H264,
            20,
            &stream,
            &[unit(&fits), dropped(), unit(&fits), dropped()],
        );

        // A message that is too large takes nothing with it but itself.
        let message = [&[0, 0, 1, 0x06][..], &[5; 40]].concat();
        let stream = [&message[..], &fits].concat();
        let dropped = Found::Dropped(DropReason::TooLarge, message.len());
        check(Codec::H264, 20, &stream, &[dropped, unit(&fits)]);
    }

    #[test]
    fn bytes_that_are_read_into_the_buffer_are_those_that_are_pushed() {
        let pictures = [&[0, 0, 1, 0x41, 0x9A][..], &[5; 70]].concat().repeat(20);
        let mut splitter = Splitter::new(Some(Codec::H264), 1000);
        let mut found = Vec::new();
        let mut rest = &pictures[..];
        while !rest.is_empty() {
            assert_eq!(splitter.fill(16, |_| Err("nothing")), Err("nothing"));
            let left = rest.len();
            let read = splitter.fill(64, |room| io::Read::read(&mut rest, &mut room[..23]));
            assert_eq!(read.ok(), Some(left.min(23)));
            drain(&mut splitter, &mut found);
        }
        splitter.finish();
        drain(&mut splitter, &mut found);
        assert_eq!(found, events(Codec::H264, 1000, &pictures, &[100]));
        assert_eq!(found.len(), 20);
    }

    #[test]
    fn memory_stays_bounded_and_is_reused() {
        const MAX: usize = 10_000;
        let mut splitter = Splitter::new(Some(Codec::H264), MAX);
        let picture = [&[0, 0, 1, 0x41, 0x9A][..], &[5; 3000]].concat();
        let mut capacity = 0;
        for round in 0..300 {
            splitter.push(&picture);
            while splitter.advance() != Ok(None) {}
            if round == 10 {
                capacity = splitter.buffer.capacity();
            }
        }
        assert_eq!(splitter.buffer.capacity(), capacity);
        for _ in 0..1000 {
            splitter.push(&[5; 1000]);
            assert_eq!(splitter.advance(), Ok(None));
            assert!(
                splitter.buffer.capacity() <= MAX + 3005 + GROWTH_BYTES,
                "{}",
                splitter.buffer.capacity()
            );
        }
        splitter.push(&picture);
        let Ok(Some(Event::Dropped {
            reason: DropReason::TooLarge,
            bytes,
        })) = splitter.advance()
        else {
            panic!("what was skipped is told");
        };
        assert_eq!(bytes, 1_000_000 + picture.len());
    }

    #[test]
    fn after_an_error_a_new_stream_begins() {
        let mut splitter = Splitter::new(None, 100);
        splitter.push(b"\0\0\0\x20ftypisom");
        assert!(splitter.advance().is_err());
        let picture = [0, 0, 1, 0x65, 0x88, 5];
        splitter.push(&picture);
        splitter.finish();
        assert_eq!(splitter.advance(), Ok(Some(Event::Unit { picture: true })));
        assert_eq!(
            (splitter.unit(), splitter.codec()),
            (&picture[..], Some(Codec::H264))
        );
    }
}
