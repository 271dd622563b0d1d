//! H.264 and H.265 as byte streams: access units, NAL units, parameter sets, and what MKV needs to know of them.
//!
//! ```text
//! bytes in any portions ──► Splitter ──► access unit ──► Parser ──► AccessUnit: payload, key frame, track
//! ```
//!
//! All of it is pure. A driver that delivers whole access units goes to the [`Parser`] directly.

mod annexb;
mod bits;
mod detect;
pub mod h264;
pub mod h265;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::annexb::Role;
pub use self::annexb::{DropReason, Event, Splitter};
use self::bits::BitReader;
pub use self::detect::{Container, Error as DetectError, LIMIT_BYTES};
use crate::frame::{Codec, Dimensions, Payload, TrackInfo};

/// Why an access unit cannot be streamed. The next one is parsed as if it had not been there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No start code, or nothing behind it.
    #[error(
        "no NAL unit in an access unit of {len} bytes: the source delivers something else than Annex B, or damage"
    )]
    NoNalUnit {
        /// Bytes of the unit.
        len: usize,
    },
    /// A key frame that nobody could decode. Counted as "no parameter sets"; frames are dropped up to the next key frame.
    #[error(
        "key frame, but no {missing} for it so far: let the encoder repeat its parameter sets with each key frame"
    )]
    NoParameterSets {
        /// The first that is missing.
        missing: SetKind,
    },
}

/// The kinds of parameter sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKind {
    /// Video parameter set, H.265 only.
    Vps,
    /// Sequence parameter set.
    Sps,
    /// Picture parameter set.
    Pps,
}

impl fmt::Display for SetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vps => "VPS",
            Self::Sps => "SPS",
            Self::Pps => "PPS",
        })
    }
}

/// What a NAL unit is for the parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Slice { key: bool },
    Set(SetKind),
    Delimiter,
    Other,
}

/// Reads the access units of one stream, and keeps its parameter sets.
///
/// The sets are kept by kind and id, wherever in the stream they come; the newest counts. They are looked at when a key
/// frame needs them, so that a change is seen at the key frame that it comes with.
#[derive(Debug)]
pub struct Parser {
    codec: Codec,
    /// NAL units of the last unit; kept for its memory.
    nals: Vec<Range<usize>>,
    sets: Sets,
    track: Option<Arc<TrackInfo>>,
    /// The SPS and the state of the sets that `track` was made of.
    track_of: Option<(u8, u64)>,
}

/// What [`Parser::parse`] found.
#[derive(Debug)]
pub enum Unit<'a> {
    /// A picture.
    Picture(AccessUnit<'a>),
    /// Parameter sets, which are kept, or messages; nothing to stream.
    NoPicture,
}

/// One picture, in the framing of MKV: each NAL unit behind its 4-byte length.
///
/// Trailing zeros, empty NAL units and access unit delimiters are left out; parameter sets and SEI stay.
#[derive(Clone)]
pub struct AccessUnit<'a> {
    unit: &'a [u8],
    nals: &'a [Range<usize>],
    len: usize,
    track: Option<&'a Arc<TrackInfo>>,
}

impl Parser {
    /// A parser that knows no parameter sets yet.
    pub fn new(codec: Codec) -> Self {
        Self {
            codec,
            nals: Vec::new(),
            sets: Sets::default(),
            track: None,
            track_of: None,
        }
    }

    /// The codec of the stream.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Reads one access unit in Annex B framing.
    ///
    /// # Errors
    /// When there is nothing in it, or a key frame's parameter sets did not come.
    pub fn parse<'a>(&'a mut self, unit: &'a [u8]) -> Result<Unit<'a>, Error> {
        self.nals.clear();
        let mut empty = true;
        let mut len = 0;
        let mut picture = false;
        let mut key_slice = None;
        for range in annexb::nal_ranges(unit) {
            let nal = &unit[range.clone()];
            let kind = match self.codec {
                Codec::H264 => h264::kind(nal),
                Codec::H265 => h265::kind(nal),
            };
            let Some(kind) = kind else { continue };
            empty = false;
            match kind {
                Kind::Slice { key } => {
                    picture = true;
                    if key && key_slice.is_none() {
                        key_slice = Some(nal);
                    }
                }
                Kind::Set(kind) => self.sets.keep(self.codec, kind, nal),
                Kind::Delimiter => continue,
                Kind::Other => {}
            }
            len += LENGTH_LEN + nal.len();
            self.nals.push(range);
        }
        if empty {
            return Err(Error::NoNalUnit { len: unit.len() });
        }
        if !picture {
            return Ok(Unit::NoPicture);
        }
        if let Some(slice) = key_slice {
            self.update_track(slice)?;
        }
        Ok(Unit::Picture(AccessUnit {
            unit,
            nals: &self.nals,
            len,
            track: self.track.as_ref().filter(|_| key_slice.is_some()),
        }))
    }

    /// Makes the track that of the key frame with this slice. It stays as it is unless something in it changed.
    fn update_track(&mut self, slice: &[u8]) -> Result<(), Error> {
        let sps_id = self.sets.active_sps(self.codec, slice)?;
        let made_of = Some((sps_id, self.sets.changes));
        if self.track_of != made_of {
            let track = self.sets.track(self.codec, sps_id);
            if self.track.as_deref() != Some(&track) {
                self.track = Some(Arc::new(track));
            }
            self.track_of = made_of;
        }
        Ok(())
    }
}

impl<'a> AccessUnit<'a> {
    /// Whether decoding can begin here: H.264 IDR, H.265 IRAP. A recovery point is no key frame.
    pub fn key(&self) -> bool {
        self.track.is_some()
    }

    /// The track as of this picture, at key frames. A new one is another `Arc` and another value.
    pub fn track(&self) -> Option<&'a Arc<TrackInfo>> {
        self.track
    }
}

impl Payload for AccessUnit<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn for_each_part(&self, sink: &mut dyn FnMut(&[u8])) {
        for range in self.nals {
            let nal = &self.unit[range.clone()];
            let len = u32::try_from(nal.len()).expect("no access unit has 4 GiB");
            sink(&len.to_be_bytes());
            sink(nal);
        }
    }
}

impl fmt::Debug for AccessUnit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessUnit")
            .field("len", &self.len)
            .field("nals", &self.nals.len())
            .field("key", &self.key())
            .finish()
    }
}

/// Bytes of the length before each NAL unit.
const LENGTH_LEN: usize = 4;

/// Larger than any parameter set in use (the largest have full scaling lists, 2 KiB), so that a damaged stream cannot
/// fill the memory: all ids of a codec together stay near 1 MiB, which is also KVS's limit of CodecPrivate.
const MAX_SET_BYTES: usize = 4096;

/// The parameter sets of a stream by id.
#[derive(Debug, Default)]
struct Sets {
    vps: BTreeMap<u8, Set>,
    sps: BTreeMap<u8, Set>,
    pps: BTreeMap<u8, Set>,
    /// Counts the sets that were new or other than before.
    changes: u64,
}

#[derive(Debug)]
struct Set {
    /// The NAL unit as it stood in the stream.
    nal: Vec<u8>,
    /// Id of the set that this one refers to: an SPS's VPS, a PPS's SPS.
    refers_to: u8,
}

impl Sets {
    /// Keeps a set in the place of the one before with its id. One whose id cannot be read is no use to a decoder either.
    fn keep(&mut self, codec: Codec, kind: SetKind, nal: &[u8]) {
        let ids = match (codec, kind) {
            (Codec::H264, SetKind::Vps) => None,
            (Codec::H264, SetKind::Sps) => h264::Sps::parse(nal).map(|sps| (sps.id, 0)),
            (Codec::H264, SetKind::Pps) => h264::pps_ids(nal),
            (Codec::H265, SetKind::Vps) => h265::vps_id(nal).map(|id| (id, 0)),
            (Codec::H265, SetKind::Sps) => h265::Sps::parse(nal).map(|sps| (sps.id, sps.vps_id)),
            (Codec::H265, SetKind::Pps) => h265::pps_ids(nal),
        };
        let Some((id, refers_to)) = ids.filter(|_| nal.len() <= MAX_SET_BYTES) else {
            return;
        };
        let known = match kind {
            SetKind::Vps => &mut self.vps,
            SetKind::Sps => &mut self.sps,
            SetKind::Pps => &mut self.pps,
        };
        if known.get(&id).is_none_or(|set| set.nal != nal) {
            let nal = nal.to_vec();
            known.insert(id, Set { nal, refers_to });
            self.changes += 1;
        }
    }

    /// Id of the SPS that a key frame's slice uses, when all sets that it needs are there.
    fn active_sps(&self, codec: Codec, slice: &[u8]) -> Result<u8, Error> {
        let missing = |missing| Error::NoParameterSets { missing };
        let pps_id = match codec {
            Codec::H264 => h264::slice_pps_id(slice),
            Codec::H265 => h265::slice_pps_id(slice),
        };
        let pps = match pps_id {
            Some(id) => self.pps.get(&id),
            // A slice header out of order does not make the sets wrong.
            None => self.pps.values().next(),
        };
        // Most streams without a PPS have no SPS either, and that one is asked for first.
        let first = if self.sps.is_empty() {
            SetKind::Sps
        } else {
            SetKind::Pps
        };
        let sps_id = pps.ok_or(missing(first))?.refers_to;
        let sps = self.sps.get(&sps_id).ok_or(missing(SetKind::Sps))?;
        if codec == Codec::H265 && !self.vps.contains_key(&sps.refers_to) {
            return Err(missing(SetKind::Vps));
        }
        Ok(sps_id)
    }

    /// The track of a key frame that uses the SPS `sps_id`, which is known.
    fn track(&self, codec: Codec, sps_id: u8) -> TrackInfo {
        let active = &self.sps[&sps_id].nal;
        let [vps, sps, pps] =
            [&self.vps, &self.sps, &self.pps].map(|sets| sets.values().map(|set| &*set.nal));
        let (codec_private, dimensions) = match codec {
            Codec::H264 => (
                h264::avcc(active, sps, pps),
                h264::Sps::parse(active).and_then(|sps| sps.dimensions),
            ),
            Codec::H265 => {
                let active = h265::Sps::parse(active).expect("only a set that parses is kept");
                (h265::hvcc(&active, vps, sps, pps), active.dimensions)
            }
        };
        TrackInfo {
            codec,
            codec_private: Bytes::from(codec_private),
            dimensions,
        }
    }
}

/// Appends a parameter set behind its 16-bit length, as avcC and hvcC want it.
fn append_with_length(record: &mut Vec<u8>, set: &[u8]) {
    let len = u16::try_from(set.len()).expect("MAX_SET_BYTES bounds what is kept");
    record.extend(len.to_be_bytes());
    record.extend(set);
}

/// The size that is left of `(width, height)` when `crop`, in units of `unit`, is taken from left, right, top and bottom.
/// `None` when that is nothing, or more than any level allows.
fn cropped((width, height): (u32, u32), crop: [u32; 4], unit: (u32, u32)) -> Option<Dimensions> {
    /// Above any level of the two standards; PixelWidth would hold more.
    const MAX_SIDE: u32 = 0xFFFF;

    let [left, right, top, bottom] = crop;
    let across = left.checked_add(right)?.checked_mul(unit.0)?;
    let down = top.checked_add(bottom)?.checked_mul(unit.1)?;
    let width = width.checked_sub(across)?;
    let height = height.checked_sub(down)?;
    ((1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height))
        .then_some(Dimensions { width, height })
}

/// Passes over the fields that the VUI begins with in both standards (H.264 E.1.1, H.265 E.2.1): aspect ratio, overscan,
/// video signal, chroma sample locations.
fn skip_vui_head(bits: &mut BitReader) -> Option<()> {
    const EXTENDED_SAR: u8 = 255;

    if bits.flag()? && bits.byte()? == EXTENDED_SAR {
        bits.skip(32)?; // sar_width, sar_height
    }
    if bits.flag()? {
        bits.flag()?; // overscan_appropriate_flag
    }
    if bits.flag()? {
        bits.skip(4)?; // video_format, video_full_range_flag
        if bits.flag()? {
            bits.skip(24)?; // colour description
        }
    }
    if bits.flag()? {
        bits.ue()?; // chroma sample location, top field
        bits.ue()?; // and bottom field
    }
    Some(())
}

/// What an SPS says of the pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PictureInfo {
    /// Size after cropping.
    pub dimensions: Option<Dimensions>,
    /// Pictures a second.
    pub frame_rate: Option<FrameRate>,
}

/// What the first SPS in the access unit `unit` says; `None` without one.
pub fn picture_info(codec: Codec, unit: &[u8]) -> Option<PictureInfo> {
    annexb::nal_ranges(unit)
        .map(|range| &unit[range])
        .find_map(|nal| match codec {
            Codec::H264 if h264::kind(nal) == Some(Kind::Set(SetKind::Sps)) => {
                h264::Sps::parse(nal).map(|sps| (sps.dimensions, sps.frame_rate))
            }
            Codec::H265 if h265::kind(nal) == Some(Kind::Set(SetKind::Sps)) => {
                h265::Sps::parse(nal).map(|sps| (sps.dimensions, sps.frame_rate))
            }
            _ => None,
        })
        .map(|(dimensions, frame_rate)| PictureInfo {
            dimensions,
            frame_rate,
        })
}

/// Frames a second as a reduced fraction, between one a minute and 1000 a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRate {
    numerator: u32,
    denominator: u32,
}

impl FrameRate {
    /// 25 frames a second.
    pub const FPS_25: Self = Self {
        numerator: 25,
        denominator: 1,
    };

    /// `numerator` frames in `denominator` seconds; `None` out of the range.
    pub fn new(numerator: u64, denominator: u64) -> Option<Self> {
        let (mut divisor, mut rest) = (numerator, denominator);
        while rest != 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        let rate = Self {
            numerator: u32::try_from(numerator.checked_div(divisor)?).ok()?,
            denominator: u32::try_from(denominator.checked_div(divisor)?).ok()?,
        };
        let (frames, seconds) = (u64::from(rate.numerator), u64::from(rate.denominator));
        (seconds > 0 && frames * 60 >= seconds && frames <= seconds * 1000).then_some(rate)
    }

    /// Frames in [`Self::denominator`] seconds.
    pub fn numerator(self) -> u32 {
        self.numerator
    }

    /// Seconds that [`Self::numerator`] frames take.
    pub fn denominator(self) -> u32 {
        self.denominator
    }

    /// When frame `index` is due, from frame 0. Rounded down; no error adds up.
    pub fn time_of(self, index: u64) -> Duration {
        let nanos = u128::from(index) * u128::from(self.denominator) * 1_000_000_000
            / u128::from(self.numerator);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for FrameRate {
    /// `25/1`, `30000/1001`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.numerator, self.denominator)
    }
}

/// The text is no frame rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no frame rate: give frames a second like 25, 29.97 or 30000/1001, at most 1000")]
pub struct ParseFrameRateError(String);

impl FromStr for FrameRate {
    type Err = ParseFrameRateError;

    /// Reads `25`, `29.97` (as 2997/100) and `30000/1001`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = |text: &str| -> Option<u64> {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| plain)
        };
        let parse = || {
            if let Some((numerator, denominator)) = text.split_once('/') {
                return Self::new(digits(numerator)?, digits(denominator)?);
            }
            let Some((whole, decimals)) = text.split_once('.') else {
                return Self::new(digits(text)?, 1);
            };
            let scale = 10_u64.checked_pow(u32::try_from(decimals.len()).ok()?)?;
            let whole = digits(whole)?.checked_mul(scale)?;
            Self::new(whole.checked_add(digits(decimals)?)?, scale)
        };
        parse().ok_or_else(|| ParseFrameRateError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::bits::writer::{BitWriter, escaped, hex};
    use super::*;

    /// NAL units of a stream that x264 could have written: 640x480, then 130x98.
    mod avc {
        pub const SPS: &str = "6764001eacb201407b6022000003000200000300781e2c5c90";
        pub const SMALL_SPS: &str = "6742c00bda093f8888c04400000fa40003a9803c50aa80";
        pub const PPS: &str = "68ebe3cb22c0";
        pub const IDR: &str = "65888400";
        pub const P: &str = "419a02";
    }

    /// And x265: 130x98.
    mod hevc {
        pub const VPS: &str = "40010c01ffff0160000003009000000300000300";
        pub const SPS: &str =
            "42010101600000030090000003000003001ea0122071c44465ba4a4c2f01680800001f480003a98040";
        pub const PPS: &str = "4401c172b46240";
        pub const IDR: &str = "2601af09";
    }

    fn annexb(nals: &[&str]) -> Vec<u8> {
        nals.iter()
            .flat_map(|nal| [vec![0, 0, 0, 1], hex(nal)].concat())
            .collect()
    }

    fn payload(unit: &AccessUnit) -> Vec<u8> {
        let mut bytes = Vec::new();
        unit.for_each_part(&mut |part| bytes.extend_from_slice(part));
        assert_eq!(bytes.len(), unit.len());
        bytes
    }

    /// The track at the key frame that `nals` end with.
    #[track_caller]
    fn track(parser: &mut Parser, nals: &[&str]) -> Arc<TrackInfo> {
        match parser.parse(&annexb(nals)) {
            Ok(Unit::Picture(unit)) => Arc::clone(unit.track().expect("a key frame")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nal_units_go_behind_their_lengths_and_delimiters_go() {
        let mut parser = Parser::new(Codec::H264);
        track(&mut parser, &[avc::SPS, avc::PPS, avc::IDR]);
        let unit = [
            0, 0, 0, 1, 9, 0x30, 0, 0, 1, 0x41, 0x9A, 2, 0, 0, 0, 0, 1, 0, 0, 1, 6, 5, 0x80,
        ];
        let Ok(Unit::Picture(picture)) = parser.parse(&unit) else {
            panic!("a picture")
        };
        assert_eq!(
            payload(&picture),
            [0, 0, 0, 3, 0x41, 0x9A, 2, 0, 0, 0, 3, 6, 5, 0x80]
        );
        assert!(!picture.key());
    }

    #[test]
    fn parameter_sets_stay_in_the_key_frame_and_make_the_track() {
        let mut parser = Parser::new(Codec::H264);
        let unit = annexb(&[avc::SPS, avc::PPS, "65888480"]);
        let Ok(Unit::Picture(picture)) = parser.parse(&unit) else {
            panic!("a picture")
        };
        let (sps, pps) = (hex(avc::SPS), hex(avc::PPS));
        let framed = [
            &[0, 0, 0, 25],
            &sps[..],
            &[0, 0, 0, 6],
            &pps,
            &[0, 0, 0, 4, 0x65, 0x88, 0x84, 0x80],
        ];
        assert_eq!(payload(&picture), framed.concat());
        let expected = TrackInfo {
            codec: Codec::H264,
            codec_private: [&hex("0164001effe10019")[..], &sps, &[1, 0, 6], &pps]
                .concat()
                .into(),
            dimensions: Some(Dimensions {
                width: 640,
                height: 480,
            }),
        };
        assert_eq!(**picture.track().expect("a key frame"), expected);
    }

    #[test]
    fn repeated_sets_are_no_change_and_new_ones_are_seen_at_their_key_frame() {
        let mut parser = Parser::new(Codec::H264);
        let first = track(&mut parser, &[avc::SPS, avc::PPS, avc::IDR]);
        assert!(Arc::ptr_eq(
            &first,
            &track(&mut parser, &[avc::SPS, avc::PPS, avc::IDR])
        ));
        assert!(Arc::ptr_eq(&first, &track(&mut parser, &[avc::IDR])));

        // Sets in a unit before, or with a picture that is no key frame, wait for the key frame.
        assert!(matches!(
            parser.parse(&annexb(&[avc::SMALL_SPS])),
            Ok(Unit::NoPicture)
        ));
        let unit = annexb(&[avc::P]);
        assert!(matches!(parser.parse(&unit), Ok(Unit::Picture(unit)) if unit.track().is_none()));
        let second = track(&mut parser, &[avc::IDR]);
        assert_eq!(
            second.dimensions,
            Some(Dimensions {
                width: 130,
                height: 98
            })
        );

        // There and back between two key frames is no change.
        assert!(matches!(
            parser.parse(&annexb(&[avc::SPS, avc::SMALL_SPS])),
            Ok(Unit::NoPicture)
        ));
        assert!(Arc::ptr_eq(&second, &track(&mut parser, &[avc::IDR])));
    }

    #[test]
    fn the_slice_says_which_of_several_sets_is_active() {
        let mut parser = Parser::new(Codec::H264);
        // SPS 1, 176x144; PPS 1 of it.
        let mut sps = BitWriter::default();
        sps.u(8, 66)
            .u(16, 11)
            .ue(1)
            .ue(0)
            .ue(2)
            .ue(1)
            .u(1, 0)
            .ue(10)
            .ue(8)
            .u(3, 0b110)
            .u(1, 0);
        let sps = sps.nal(&[0x67]);
        let pps = BitWriter::default().ue(1).ue(1).u(8, 0xCE).nal(&[0x68]);
        let slice = BitWriter::default()
            .ue(0)
            .ue(7)
            .ue(1)
            .u(8, 0xAA)
            .nal(&[0x65]);
        let mut unit = annexb(&[avc::SPS, avc::PPS]);
        for nal in [&sps, &pps, &slice] {
            unit.extend([0, 0, 1]);
            unit.extend(nal);
        }
        let Ok(Unit::Picture(picture)) = parser.parse(&unit) else {
            panic!("a picture")
        };
        let info = picture.track().expect("a key frame");
        assert_eq!(
            info.dimensions,
            Some(Dimensions {
                width: 176,
                height: 144
            })
        );
        assert_eq!(info.codec_private[..6], [1, 66, 0, 11, 0xFF, 0xE2]);
        let zero = track(&mut parser, &[avc::IDR]);
        assert_eq!(
            zero.dimensions,
            Some(Dimensions {
                width: 640,
                height: 480
            })
        );
    }

    #[test]
    fn a_key_frame_without_its_sets_is_refused_until_they_come() {
        let refuse = |parser: &mut Parser, nals: &[&str], missing| {
            let error = parser.parse(&annexb(nals)).expect_err("a set is missing");
            assert_eq!(error, Error::NoParameterSets { missing });
        };
        let mut parser = Parser::new(Codec::H264);
        refuse(&mut parser, &[avc::IDR], SetKind::Sps);
        refuse(&mut parser, &[avc::PPS, avc::IDR], SetKind::Sps);
        track(&mut parser, &[avc::SPS, avc::IDR]);
        let mut parser = Parser::new(Codec::H264);
        refuse(&mut parser, &[avc::SPS, avc::IDR], SetKind::Pps);
        assert!(matches!(
            parser.parse(&annexb(&[avc::P])),
            Ok(Unit::Picture(_))
        ));
        track(&mut parser, &[avc::PPS, avc::IDR]);

        let mut parser = Parser::new(Codec::H265);
        refuse(
            &mut parser,
            &[hevc::SPS, hevc::PPS, hevc::IDR],
            SetKind::Vps,
        );
        let info = track(&mut parser, &[hevc::VPS, hevc::IDR]);
        assert_eq!(
            info.dimensions,
            Some(Dimensions {
                width: 130,
                height: 98
            })
        );
        assert_eq!(info.codec_private[..2], [1, 1]);
    }

    #[test]
    fn key_frames_are_idr_and_irap_and_nothing_else() {
        for (codec, sets, keys) in [
            (Codec::H264, &[avc::SPS, avc::PPS][..], 5..=5),
            (Codec::H265, &[hevc::VPS, hevc::SPS, hevc::PPS], 16..=21),
        ] {
            let last = if codec == Codec::H264 { 5 } else { 21 };
            for nal_unit_type in (0..=last).filter(|kind| codec == Codec::H265 || *kind > 0) {
                let mut parser = Parser::new(codec);
                let mut unit = annexb(sets);
                let header = match codec {
                    Codec::H264 => vec![0x60 | nal_unit_type],
                    Codec::H265 => vec![nal_unit_type << 1, 1],
                };
                unit.extend([&[0, 0, 1][..], &header, &[0xAF, 0x84, 0x80]].concat());
                let key = match parser.parse(&unit) {
                    Ok(Unit::Picture(unit)) => unit.key(),
                    Ok(Unit::NoPicture) => false,
                    Err(error) => panic!("{codec} {nal_unit_type}: {error}"),
                };
                assert_eq!(
                    key,
                    keys.contains(&nal_unit_type),
                    "{codec} {nal_unit_type}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_unit_is_an_error_and_the_next_one_parses() {
        let mut parser = Parser::new(Codec::H265);
        for bytes in [
            &[][..],
            &[1, 2, 3],
            &[0, 0, 1],
            &[0, 0, 1, 0x26],
            &[0, 0, 1, 0xFF, 1, 2],
        ] {
            let error = parser.parse(bytes).expect_err("no NAL unit in it");
            assert_eq!(error, Error::NoNalUnit { len: bytes.len() });
        }
        track(&mut parser, &[hevc::VPS, hevc::SPS, hevc::PPS, hevc::IDR]);
    }

    #[test]
    fn sets_too_large_or_unreadable_are_not_kept() {
        let mut parser = Parser::new(Codec::H264);
        let first = track(&mut parser, &[avc::SPS, avc::PPS, avc::IDR]);
        let huge = avc::SPS.to_owned() + &"ff".repeat(MAX_SET_BYTES);
        assert!(Arc::ptr_eq(
            &first,
            &track(&mut parser, &[&huge, "6764", "68", avc::IDR])
        ));
    }

    #[test]
    fn the_first_sps_tells_size_and_rate() {
        let unit = annexb(&["09f0", avc::SPS, avc::PPS, avc::IDR]);
        let expected = PictureInfo {
            dimensions: Some(Dimensions {
                width: 640,
                height: 480,
            }),
            frame_rate: FrameRate::new(30, 1),
        };
        assert_eq!(picture_info(Codec::H264, &unit), Some(expected));
        assert_eq!(picture_info(Codec::H264, &annexb(&[avc::P])), None);
        let unit = annexb(&[hevc::VPS, hevc::SPS]);
        let rate = picture_info(Codec::H265, &unit).and_then(|info| info.frame_rate);
        assert_eq!(rate, FrameRate::new(30_000, 1001));
    }

    #[test]
    fn frame_rates_are_read_and_keep_time() {
        for (text, numerator, denominator) in [
            ("25", 25, 1),
            ("29.97", 2997, 100),
            ("30000/1001", 30_000, 1001),
            ("12.50", 25, 2),
            ("1/60", 1, 60),
        ] {
            let rate: FrameRate = text.parse().expect("a frame rate");
            assert_eq!(
                (rate.numerator(), rate.denominator()),
                (numerator, denominator)
            );
        }
        for text in [
            "",
            "0",
            "-25",
            "25fps",
            "1001",
            "25/0",
            "0/0",
            "1/61",
            ".",
            "5.",
            "+5",
            "99999999999999999999.5",
        ] {
            let error = text.parse::<FrameRate>().expect_err("no frame rate");
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("'{text}' is no frame rate"))
            );
        }
        let ntsc = FrameRate::new(30_000, 1001).expect("a frame rate");
        assert_eq!(ntsc.time_of(30_000 * 3600), Duration::from_hours(1001));
        assert_eq!(ntsc.time_of(1), Duration::from_nanos(33_366_666));
        assert!(ntsc.time_of(u64::MAX) > Duration::from_secs(1 << 34));
    }

    /// One picture of a generated stream.
    #[derive(Debug, Clone)]
    #[expect(
        clippy::struct_excessive_bools,
        reason = "each is one independent choice of the generator"
    )]
    struct Picture {
        delimiter: bool,
        key: bool,
        message: bool,
        slices: usize,
        end: bool,
        long_codes: bool,
        trailing_zeros: usize,
        body: Vec<u8>,
    }

    impl Picture {
        fn any() -> impl Strategy<Value = Self> {
            let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
            // Small values, so that there is much to escape.
            let body = prop::collection::vec(prop_oneof![0_u8..4, any::<u8>()], 0..40);
            (
                flags,
                1..4_usize,
                prop::bool::weighted(0.1),
                0..4_usize,
                body,
            )
                .prop_map(
                    |((delimiter, key, message, long_codes), slices, end, trailing_zeros, body)| {
                        Self {
                            delimiter,
                            key,
                            message,
                            slices,
                            end,
                            long_codes,
                            trailing_zeros,
                            body,
                        }
                    },
                )
        }

        /// Its NAL units, and whether each stays in the payload.
        fn nals(&self, codec: Codec) -> Vec<(Vec<u8>, bool)> {
            let body = |head: &str| {
                let head = hex(head);
                let rest = escaped(self.body.iter().copied());
                // The bytes before the body are no zeros, and the last is none.
                [&head[..], &rest, &[0x80]].concat()
            };
            let (delimiter, message, first, further, end) = match (codec, self.key) {
                (Codec::H264, true) => ("09f0", "0605", "658884", "6544", "0a"),
                (Codec::H264, false) => ("09f0", "0605", "419a", "4144", "0a"),
                (Codec::H265, true) => ("460150", "4e0105", "2601af", "260144", "4801"),
                (Codec::H265, false) => ("460150", "4e0105", "0201d0", "020144", "4801"),
            };
            let mut nals = Vec::new();
            if self.delimiter {
                nals.push((hex(delimiter), false));
            }
            if self.key {
                let sets = match codec {
                    Codec::H264 => &[avc::SPS, avc::PPS][..],
                    Codec::H265 => &[hevc::VPS, hevc::SPS, hevc::PPS],
                };
                nals.extend(sets.iter().map(|set| (hex(set), true)));
            }
            if self.message {
                nals.push((body(message), true));
            }
            nals.push((body(first), true));
            nals.extend((1..self.slices).map(|_| (body(further), true)));
            if self.end {
                nals.push((hex(end), true));
            }
            for (nal, _) in &mut nals {
                while nal.last() == Some(&0) {
                    nal.pop();
                }
            }
            nals
        }

        fn write(&self, codec: Codec, stream: &mut Vec<u8>) {
            for (nal, _) in self.nals(codec) {
                stream.extend(if self.long_codes {
                    &[0, 0, 0, 1][..]
                } else {
                    &[0, 0, 1]
                });
                stream.extend(nal);
                stream.extend(vec![0; self.trailing_zeros]);
            }
        }

        fn payload(&self, codec: Codec) -> Vec<u8> {
            let kept = self.nals(codec).into_iter().filter(|(_, kept)| *kept);
            kept.flat_map(|(nal, _)| {
                let len = u32::try_from(nal.len()).expect("short");
                [len.to_be_bytes().to_vec(), nal].concat()
            })
            .collect()
        }
    }

    /// Cuts `stream` with `told` and parses all units: payload and key flag.
    fn read(
        codec: Codec,
        told: Option<Codec>,
        stream: &[u8],
        cuts: &[usize],
    ) -> Vec<(Vec<u8>, bool)> {
        let mut splitter = Splitter::new(told, 1 << 16);
        let mut parser = Parser::new(codec);
        let mut pictures = Vec::new();
        let mut cuts = cuts.iter().cycle();
        let mut rest = stream;
        loop {
            let cut = cuts.next().map_or(rest.len(), |&cut| cut.min(rest.len()));
            splitter.push(&rest[..cut]);
            rest = &rest[cut..];
            if rest.is_empty() {
                splitter.finish();
            }
            while let Some(event) = splitter.advance().expect("a stream of that codec") {
                let Event::Unit { picture } = event else {
                    panic!("{event:?}")
                };
                match parser.parse(splitter.unit()).expect("a unit") {
                    Unit::Picture(unit) => pictures.push((payload(&unit), unit.key())),
                    Unit::NoPicture => assert!(!picture),
                }
            }
            if rest.is_empty() {
                return pictures;
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_however_it_is_cut(
            h265: bool,
            told: bool,
            mut pictures in prop::collection::vec(Picture::any(), 1..12),
            cuts in prop::collection::vec(1..80_usize, 1..20),
        ) {
            let codec = if h265 { Codec::H265 } else { Codec::H264 };
            pictures[0].key = true;
            let mut stream = Vec::new();
            for picture in &pictures {
                picture.write(codec, &mut stream);
            }
            let expected: Vec<_> =
                pictures.iter().map(|picture| (picture.payload(codec), picture.key)).collect();
            let read = read(codec, told.then_some(codec), &stream, &cuts);
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn arbitrary_bytes_give_the_same_under_any_cut(
            h265: bool,
            bytes in prop::collection::vec(prop_oneof![3 => 0..2_u8, 1 => any::<u8>()], 0..400),
            cuts in prop::collection::vec(1..30_usize, 1..10),
        ) {
            let codec = if h265 { Codec::H265 } else { Codec::H264 };
            let run = |cuts: &[usize]| {
                let mut splitter = Splitter::new(Some(codec), 60);
                let mut parser = Parser::new(codec);
                let mut found = Vec::new();
                let mut rest = &bytes[..];
                for &cut in cuts.iter().cycle() {
                    let (portion, after) = rest.split_at(cut.min(rest.len()));
                    rest = after;
                    splitter.push(portion);
                    if rest.is_empty() {
                        splitter.finish();
                    }
                    loop {
                        match splitter.advance() {
                            Ok(Some(event)) => {
                                let unit = matches!(event, Event::Unit { .. }).then(|| splitter.unit());
                                found.push(format!("{event:?} {unit:?}"));
                                if let Some(unit) = unit {
                                    let _ = parser.parse(unit);
                                }
                            }
                            Ok(None) => break,
                            Err(error) => {
                                found.push(error.to_string());
                                return found;
                            }
                        }
                    }
                    if rest.is_empty() {
                        return found;
                    }
                }
                found
            };
            prop_assert_eq!(run(&cuts), run(&[usize::MAX]));
        }

        #[test]
        fn arbitrary_parameter_sets_never_panic(
            h265: bool,
            kind in 0..3_usize,
            payload in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            let (codec, header) = if h265 {
                (Codec::H265, [&[0x40, 1][..], &[0x42, 1], &[0x44, 1]][kind])
            } else {
                (Codec::H264, [&[0x67][..], &[0x68], &[0x65]][kind])
            };
            let nal = [&[0, 0, 1], header, &payload].concat();
            let mut parser = Parser::new(codec);
            let _ = parser.parse(&nal);
            let _ = picture_info(codec, &nal);
            let sets = match codec {
                Codec::H264 => annexb(&[avc::SPS, avc::PPS, avc::IDR]),
                Codec::H265 => annexb(&[hevc::VPS, hevc::SPS, hevc::PPS, hevc::IDR]),
            };
            prop_assert!(matches!(parser.parse(&sets), Ok(Unit::Picture(_))));
        }
    }
}
