//! Tells H.264 from H.265, and either from what is no Annex B stream at all.

use std::fmt;

use super::annexb::{START_CODE_LEN, find_start_code};
use crate::frame::Codec;

/// How much of a stream is looked at before it counts as unknown. The parameter sets come in front of the first key
/// frame, which is in the first seconds of any live stream.
pub const LIMIT_BYTES: usize = 1 << 20;

/// The input cannot be streamed, or not under the codec that was named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There was not one byte.
    #[error("is empty: there is no video in it")]
    Empty,
    /// It starts like a file of another kind.
    #[error(
        "not H.264 or H.265 Annex B: this looks like {0}; take the video out of it with: \
         ffmpeg -i INPUT -map 0:v:0 -c copy {flags}-", flags = .0.flags()
    )]
    Container(Container),
    /// There was no start code anywhere.
    #[error(
        "not H.264 or H.265 Annex B: no start code (00 00 01) in the first {len} bytes; \
         check what writes it, or convert it with ffmpeg -f h264"
    )]
    NoStartCode {
        /// Bytes looked at.
        len: usize,
    },
    /// There were start codes, but nothing behind them tells the codec.
    #[error(
        "not H.264 or H.265 Annex B as far as can be told: {start_codes} start codes in the first {len} bytes, but no \
         parameter set or slice of either behind them; name the codec with --codec if it is one of the two"
    )]
    Undecided {
        /// Start codes seen.
        start_codes: usize,
        /// Bytes looked at.
        len: usize,
    },
    /// The stream contradicts what was said of it.
    #[error("this is {found}, not {told}: leave out --codec, or name the right one")]
    Contradiction {
        /// The codec that was named.
        told: Codec,
        /// The codec of the parameter sets in the stream.
        found: Codec,
    },
}

/// First byte of each packet of a transport stream, and the packet's length (ITU-T H.222.0, 2.4.3.2).
const TS_SYNC: u8 = 0x47;
const TS_PACKET_LEN: usize = 188;

/// Files that people pipe in by mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// ISO base media: MP4, QuickTime.
    Mp4,
    /// Matroska, WebM.
    Matroska,
    /// MPEG-2 transport stream.
    MpegTs,
    /// MPEG-1 and MPEG-2 program stream.
    MpegPs,
    /// AVI.
    Avi,
    /// Flash video.
    Flv,
    /// JPEG, or JPEG after JPEG.
    Jpeg,
}

impl Container {
    /// Bytes that [`Self::of`] wants to see of a stream with this head, so that more do not change its mind.
    fn head_len(head: &[u8]) -> usize {
        match head {
            [TS_SYNC, ..] => TS_PACKET_LEN + 1,
            _ => 8,
        }
    }

    /// By its first bytes; the transport stream's sync byte must come back after a packet.
    fn of(head: &[u8]) -> Option<Self> {
        match head {
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => Some(Self::Mp4),
            [0x1A, 0x45, 0xDF, 0xA3, ..] => Some(Self::Matroska),
            [TS_SYNC, ..] if head.get(TS_PACKET_LEN) == Some(&TS_SYNC) => Some(Self::MpegTs),
            [0, 0, 1, 0xBA, ..] => Some(Self::MpegPs),
            [b'R', b'I', b'F', b'F', ..] => Some(Self::Avi),
            [b'F', b'L', b'V', 1, ..] => Some(Self::Flv),
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            _ => None,
        }
    }

    /// What ffmpeg needs to write Annex B out of it.
    fn flags(self) -> &'static str {
        match self {
            Self::Mp4 | Self::Matroska | Self::Flv => "-bsf:v h264_mp4toannexb -f h264 ",
            Self::MpegTs | Self::MpegPs | Self::Avi => "-f h264 ",
            // Motion JPEG has to be encoded anew: the later -c wins.
            Self::Jpeg => "-c:v libx264 -bf 0 -f h264 ",
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mp4 => "an MP4 file",
            Self::Matroska => "a Matroska or WebM file",
            Self::MpegTs => "an MPEG transport stream",
            Self::MpegPs => "an MPEG program stream",
            Self::Avi => "an AVI file",
            Self::Flv => "a Flash video file",
            Self::Jpeg => "JPEG",
        })
    }
}

/// Looks at the head of a stream as it grows.
#[derive(Debug)]
pub(super) struct Detector {
    told: Option<Codec>,
    /// Where the search for start codes goes on.
    scan: usize,
    start_codes: usize,
    /// Slices that can only be one of the two, for streams whose parameter sets do not come.
    h264_slices: usize,
    h265_slices: usize,
}

impl Detector {
    pub(super) fn new(told: Option<Codec>) -> Self {
        Self {
            told,
            scan: 0,
            start_codes: 0,
            h264_slices: 0,
            h265_slices: 0,
        }
    }

    /// `head` is the stream from its first byte on, longer than at the call before; `end` says that no more will come.
    /// `None` asks for more.
    pub(super) fn decide(&mut self, head: &[u8], end: bool) -> Result<Option<Codec>, Error> {
        if !end && head.len() < Container::head_len(head) {
            return Ok(None);
        }
        if let Some(container) = Container::of(head) {
            return Err(Error::Container(container));
        }
        // The two bytes behind a start code are needed with it.
        let mut searched = head.len().saturating_sub(START_CODE_LEN - 1);
        while let Some(at) = find_start_code(head, self.scan) {
            let nal = &head[at + START_CODE_LEN..];
            let Some(&[first, second]) = nal.first_chunk() else {
                searched = at;
                break;
            };
            self.scan = at + START_CODE_LEN;
            self.start_codes += 1;
            match (self.told, self.sign(first, second)) {
                (Some(told), Some(found)) if told != found => {
                    return Err(Error::Contradiction { told, found });
                }
                (None, None) => {}
                (told, found) => return Ok(told.or(found)),
            }
        }
        self.scan = self.scan.max(searched);
        if !end && head.len() < LIMIT_BYTES {
            return Ok(None);
        }
        self.conclude(head.len()).map(Some)
    }

    /// The codec, when the NAL unit that begins with these two bytes is a parameter set or a delimiter of one.
    ///
    /// A header of H.265's base layer has an even first byte and 1 to 7 as its second. H.264's slices, SPS and delimiter
    /// are odd; its PPS has a second byte above 7 with any id in use. Its SEI (06) looks like H.265, and is no sign.
    fn sign(&mut self, first: u8, second: u8) -> Option<Codec> {
        match (first, second) {
            (0x40 | 0x42 | 0x44 | 0x46 | 0x26 | 0x28 | 0x2A, 1) => Some(Codec::H265),
            (0x27 | 0x47 | 0x67 | 0x25 | 0x45 | 0x65 | 0x09, _) | (0x28 | 0x48 | 0x68, 8..) => {
                Some(Codec::H264)
            }
            (0x01 | 0x21 | 0x41 | 0x61, _) => {
                self.h264_slices += 1;
                None
            }
            (0x00 | 0x02 | 0x04 | 0x08 | 0x0A | 0x0C | 0x0E | 0x10 | 0x12, 1..=7) => {
                self.h265_slices += 1;
                None
            }
            _ => None,
        }
    }

    /// By the slices alone, when one codec's are far more.
    fn conclude(&self, len: usize) -> Result<Codec, Error> {
        const FAR_MORE: usize = 4;
        if len == 0 {
            Err(Error::Empty)
        } else if self.start_codes == 0 {
            Err(Error::NoStartCode { len })
        } else if let Some(told) = self.told {
            Ok(told)
        } else if self.h264_slices > FAR_MORE * self.h265_slices {
            Ok(Codec::H264)
        } else if self.h265_slices > FAR_MORE * self.h264_slices {
            Ok(Codec::H265)
        } else {
            Err(Error::Undecided {
                start_codes: self.start_codes,
                len,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(told: Option<Codec>, stream: &[u8]) -> Result<Option<Codec>, Error> {
        let mut detector = Detector::new(told);
        for len in 0..stream.len() {
            if let Some(codec) = detector.decide(&stream[..len], false)? {
                return Ok(Some(codec));
            }
        }
        detector.decide(stream, true)
    }

    #[test]
    fn parameter_sets_tell_the_codec() {
        for (codec, stream) in [
            (Codec::H264, &[0, 0, 1, 0x67, 0x64, 0, 0x28][..]),
            (Codec::H264, &[0, 0, 0, 1, 0x09, 0xF0, 0, 0, 1, 0x67, 0x42]),
            (
                Codec::H264,
                &[0, 0, 1, 0x06, 0x05, 0x10, 0, 0, 1, 0x27, 0x4D, 0x40],
            ),
            (Codec::H264, &[0, 0, 1, 0x28, 0xEE, 0x3C]),
            (Codec::H265, &[0, 0, 1, 0x40, 0x01, 0x0C]),
            (Codec::H265, &[0, 0, 0, 1, 0x46, 0x01, 0x50]),
            (
                Codec::H265,
                &[0, 0, 1, 0x4E, 0x01, 0x05, 0, 0, 1, 0x42, 0x01, 0x01],
            ),
            (Codec::H265, &[0, 0, 1, 0x28, 0x01, 0xAF]),
        ] {
            assert_eq!(decide(None, stream), Ok(Some(codec)), "{stream:02X?}");
        }
    }

    #[test]
    fn a_stream_joined_in_the_middle_is_told_by_its_slices() {
        let h264 = [0, 0, 1, 0x41, 0x9A, 0x02].repeat(9);
        let h265 = [0, 0, 1, 0x02, 0x01, 0xD0].repeat(9);
        assert_eq!(decide(None, &h264), Ok(Some(Codec::H264)));
        assert_eq!(decide(None, &h265), Ok(Some(Codec::H265)));
        assert!(matches!(
            decide(None, &[h264, h265].concat()),
            Err(Error::Undecided {
                start_codes: 18,
                ..
            })
        ));
    }

    #[test]
    fn other_files_are_named() {
        let ts = [&[0x47][..], &[0xFF; 187]].concat().repeat(2);
        for (container, head) in [
            (Container::Mp4, &b"\0\0\0\x20ftypisom"[..]),
            (Container::Matroska, &[0x1A, 0x45, 0xDF, 0xA3, 0x9F]),
            (Container::MpegTs, &ts),
            (Container::MpegPs, &[0, 0, 1, 0xBA, 0x44]),
            (Container::Avi, b"RIFF\x24\0\0\0AVI "),
            (Container::Jpeg, &[0xFF, 0xD8, 0xFF, 0xE0]),
        ] {
            for told in [None, Some(Codec::H265)] {
                assert_eq!(decide(told, head), Err(Error::Container(container)));
            }
        }
        let message = Error::Container(Container::Mp4).to_string();
        assert!(message.contains("looks like an MP4 file"), "{message}");
        assert!(
            message.ends_with("-c copy -bsf:v h264_mp4toannexb -f h264 -"),
            "{message}"
        );
    }

    #[test]
    fn what_is_no_video_is_refused_at_the_limit_or_the_end() {
        assert_eq!(decide(None, &[]), Err(Error::Empty));
        assert_eq!(decide(None, b"hello"), Err(Error::NoStartCode { len: 5 }));
        let mut detector = Detector::new(Some(Codec::H264));
        let garbage = vec![0xA5; LIMIT_BYTES];
        assert_eq!(detector.decide(&garbage[1..], false), Ok(None));
        assert_eq!(
            detector.decide(&garbage, false),
            Err(Error::NoStartCode { len: LIMIT_BYTES })
        );
    }

    #[test]
    fn a_named_codec_is_believed_unless_the_stream_says_otherwise() {
        let slice = [0, 0, 1, 0x06, 0x01, 0x9A];
        assert_eq!(decide(Some(Codec::H264), &slice), Ok(Some(Codec::H264)));
        assert_eq!(decide(Some(Codec::H265), &slice), Ok(Some(Codec::H265)));
        assert_eq!(
            decide(Some(Codec::H265), &[0, 0, 1, 0x67, 0x64, 0, 0x28]),
            Err(Error::Contradiction {
                told: Codec::H265,
                found: Codec::H264
            })
        );
    }
}
