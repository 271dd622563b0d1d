//! Frames to Matroska (RFC 9559), in the shape that KVS takes: one header for a connection, a cluster of unknown size for a
//! fragment, a SimpleBlock for a frame.
//!
//! ```text
//! EBML | Segment (unknown size) | Info | Tracks                    header()
//!   Cluster (unknown size) | Timecode | Position                   begin_fragment()
//!     SimpleBlock ..                                               block()
//!   Tags AWS_KINESISVIDEO_END_OF_FRAGMENT                          END_OF_FRAGMENT, where a fragment is closed on purpose
//! ```
//!
//! Only the framing is made here. The payload follows a block's bytes as it lies in the ring.

mod ebml;

use bytes::{BufMut, Bytes, BytesMut};

use crate::frame::{Codec, Timecode, TrackInfo};

/// The EBML header: Matroska version 2, ids of up to 4 bytes, sizes of up to 8.
const EBML_HEADER: [u8; 40] = [
    0x1A, 0x45, 0xDF, 0xA3, 0xA3, // EBML, 35 bytes
    0x42, 0x86, 0x81, 0x01, // EBMLVersion 1
    0x42, 0xF7, 0x81, 0x01, // EBMLReadVersion 1
    0x42, 0xF2, 0x81, 0x04, // EBMLMaxIDLength 4
    0x42, 0xF3, 0x81, 0x08, // EBMLMaxSizeLength 8
    0x42, 0x82, 0x88, b'm', b'a', b't', b'r', b'o', b's', b'k', b'a', // DocType
    0x42, 0x87, 0x81, 0x02, // DocTypeVersion 2
    0x42, 0x85, 0x81, 0x02, // DocTypeReadVersion 2
];

const SEGMENT: ebml::Id = 0x1853_8067;
const INFO: ebml::Id = 0x1549_A966;
const SEGMENT_UID: ebml::Id = 0x73A4;
const TIMECODE_SCALE: ebml::Id = 0x2A_D7B1;
const TITLE: ebml::Id = 0x7BA9;
const MUXING_APP: ebml::Id = 0x4D80;
const WRITING_APP: ebml::Id = 0x5741;
const TRACKS: ebml::Id = 0x1654_AE6B;
const TRACK_ENTRY: ebml::Id = 0xAE;
const TRACK_NUMBER: ebml::Id = 0xD7;
const TRACK_UID: ebml::Id = 0x73C5;
const TRACK_TYPE: ebml::Id = 0x83;
const NAME: ebml::Id = 0x536E;
const CODEC_ID: ebml::Id = 0x86;
const VIDEO: ebml::Id = 0xE0;
const PIXEL_WIDTH: ebml::Id = 0xB0;
const PIXEL_HEIGHT: ebml::Id = 0xBA;
const CODEC_PRIVATE: ebml::Id = 0x63A2;
const TAGS: ebml::Id = 0x1254_C367;
const TAG: ebml::Id = 0x7373;
const SIMPLE_TAG: ebml::Id = 0x67C8;
const TAG_NAME: ebml::Id = 0x45A3;
const TAG_STRING: ebml::Id = 0x4487;

/// A unit of all times in the stream, in nanoseconds: 1 ms.
const TIMECODE_SCALE_NS: u64 = 1_000_000;

const TRACK_TYPE_VIDEO: u8 = 1;

/// The only track. Playback wants the video in track 1.
const VIDEO_TRACK: u8 = 1;

/// What the header says made the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Title of the segment.
    pub title: String,
    /// MuxingApp and WritingApp.
    pub app: String,
    /// Name of the video track, at most 32 characters.
    pub track: String,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            title: "kvsProducerApp".into(),
            app: concat!("kvsProducerApp ", env!("CARGO_PKG_VERSION")).into(),
            track: "kvs_video_track".into(),
        }
    }
}

/// What a connection's body begins with: EBML header, Segment, Info and Tracks.
///
/// `segment_uid` tells the connections of a stream apart; any random value.
pub fn header(track: &TrackInfo, segment_uid: [u8; 16], names: &Names) -> Bytes {
    let mut info = Vec::with_capacity(128);
    ebml::element(&mut info, SEGMENT_UID, &segment_uid);
    ebml::element(&mut info, TIMECODE_SCALE, &TIMECODE_SCALE_NS.to_be_bytes());
    ebml::element(&mut info, TITLE, names.title.as_bytes());
    ebml::element(&mut info, MUXING_APP, names.app.as_bytes());
    ebml::element(&mut info, WRITING_APP, names.app.as_bytes());

    let mut entry = Vec::with_capacity(256);
    ebml::element(&mut entry, TRACK_NUMBER, &[VIDEO_TRACK]);
    ebml::element(&mut entry, TRACK_UID, &u64::from(VIDEO_TRACK).to_be_bytes());
    ebml::element(&mut entry, TRACK_TYPE, &[TRACK_TYPE_VIDEO]);
    ebml::element(&mut entry, NAME, names.track.as_bytes());
    ebml::element(&mut entry, CODEC_ID, codec_id(track.codec).as_bytes());
    if let Some(video) = video(track) {
        ebml::element4(&mut entry, VIDEO, &video);
    }
    ebml::element(&mut entry, CODEC_PRIVATE, &track.codec_private);
    let mut tracks = Vec::with_capacity(entry.len() + 8);
    ebml::element4(&mut tracks, TRACK_ENTRY, &entry);

    let mut out = EBML_HEADER.to_vec();
    ebml::id(&mut out, SEGMENT);
    out.push(ebml::UNKNOWN_SIZE);
    ebml::element2(&mut out, INFO, &info);
    ebml::element4(&mut out, TRACKS, &tracks);
    out.into()
}

/// PixelWidth and PixelHeight, when they are known and fit their two bytes.
fn video(track: &TrackInfo) -> Option<Vec<u8>> {
    let dimensions = track.dimensions?;
    let width = u16::try_from(dimensions.width).ok()?;
    let height = u16::try_from(dimensions.height).ok()?;
    let mut video = Vec::with_capacity(8);
    ebml::element(&mut video, PIXEL_WIDTH, &width.to_be_bytes());
    ebml::element(&mut video, PIXEL_HEIGHT, &height.to_be_bytes());
    Some(video)
}

fn codec_id(codec: Codec) -> &'static str {
    match codec {
        Codec::H264 => "V_MPEG4/ISO/AVC",
        Codec::H265 => "V_MPEGH/ISO/HEVC",
    }
}

/// One fragment metadata tag: it belongs to the fragment whose cluster comes before it.
pub fn tag(name: &str, value: &str) -> Bytes {
    let mut simple = Vec::with_capacity(name.len() + value.len() + 20);
    ebml::element8(&mut simple, TAG_NAME, name.as_bytes());
    ebml::element8(&mut simple, TAG_STRING, value.as_bytes());
    let mut tag = Vec::with_capacity(simple.len() + 10);
    ebml::element8(&mut tag, SIMPLE_TAG, &simple);
    let mut tags = Vec::with_capacity(tag.len() + 10);
    ebml::element8(&mut tags, TAG, &tag);
    let mut out = Vec::with_capacity(tags.len() + 12);
    ebml::element8(&mut out, TAGS, &tags);
    out.into()
}

/// Makes the service close and persist the fragment now, in place of waiting for the next cluster.
pub fn end_of_fragment() -> Bytes {
    tag("AWS_KINESISVIDEO_END_OF_FRAGMENT", "")
}

/// Makes the framing of clusters and blocks. Their bytes are cut from one buffer that is used again, so a frame costs no
/// allocation.
#[derive(Debug, Default)]
pub struct Fragmenter {
    scratch: BytesMut,
    /// A cluster's bytes, to go out together with its first block's.
    cluster: Option<Timecode>,
}

/// The framing of some hundred frames; taken again when those have left.
const SCRATCH_BYTES: usize = 4096;

impl Fragmenter {
    /// A new cluster: its bytes come out with the first block.
    pub fn begin_fragment(&mut self, timecode: Timecode) {
        self.cluster = Some(timecode);
    }

    /// What goes before a frame's payload of `len` bytes, `offset_ms` after the cluster's timecode.
    ///
    /// The offset is a signed 16-bit number on the wire (RFC 9559 section 10.2); the ring keeps fragments under 20 s.
    pub fn block(&mut self, offset_ms: u16, key: bool, len: usize) -> Bytes {
        const MAX: usize = 18 + 13;
        const TRACK_OFFSET_FLAGS: u64 = 4;
        if self.scratch.capacity() < MAX {
            self.scratch.reserve(SCRATCH_BYTES);
        }
        if let Some(timecode) = self.cluster.take() {
            self.scratch
                .put_slice(&[0x1F, 0x43, 0xB6, 0x75, ebml::UNKNOWN_SIZE]); // Cluster
            self.scratch.put_slice(&[0xE7, 0x88]); // Timecode
            self.scratch.put_u64(timecode.0);
            self.scratch.put_slice(&[0xA7, 0x81, 0x00]); // Position 0
        }
        self.scratch.put_u8(0xA3); // SimpleBlock
        self.scratch
            .put_slice(&ebml::size8(len as u64 + TRACK_OFFSET_FLAGS));
        self.scratch.put_u8(0x80 | VIDEO_TRACK);
        self.scratch.put_u16(offset_ms);
        self.scratch.put_u8(if key { 0x80 } else { 0 });
        self.scratch.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Dimensions;

    const AVCC: &str =
        "01640028ffe1001967640028acd940780227e5c04400000fa40003a983c60c658001000668ebe3cb22c0";

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write;
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes everything");
            text
        })
    }

    fn unhex(text: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex in the test");
        (0..text.len()).step_by(2).map(digit).collect()
    }

    /// The same names as the reference generator, so that the bytes can be compared with what it makes.
    fn reference() -> (TrackInfo, Names) {
        let track = TrackInfo {
            codec: Codec::H264,
            codec_private: unhex(AVCC).into(),
            dimensions: Some(Dimensions {
                width: 1920,
                height: 1080,
            }),
        };
        let names = Names {
            title: "Kinesis Video SDK".into(),
            app: "Kinesis Video SDK 1.1.0".into(),
            track: "kvs_video_track".into(),
        };
        (track, names)
    }

    #[test]
    fn the_header_is_the_reference_generators_byte_for_byte() {
        let (track, names) = reference();
        let uid = std::array::from_fn(|index| u8::try_from(index).expect("16 fit"));
        let expected = concat!(
            "1a45dfa3a34286810142f7810142f2810442f381084282886d6174726f736b6142878102",
            "42858102",
            "18538067ff",
            "1549a966406773a490000102030405060708090a0b0c0d0e0f2ad7b18800000000000f42407ba9914b696e6573697320566964656f20",
            "53444b4d80974b696e6573697320566964656f2053444b20312e312e305741974b696e6573697320566964656f2053444b20312e312e30",
            "1654ae6b10000073ae1000006ed7810173c5880000000000000001838101536e8f6b76735f766964656f5f747261636b868f565f4d5045",
            "47342f49534f2f415643e010000008b0820780ba82043863a2aa",
            "01640028ffe1001967640028acd940780227e5c04400000fa40003a983c60c658001000668ebe3cb22c0",
        );
        let header = header(&track, uid, &names);
        assert_eq!(hex(&header), expected);
        assert_eq!(header.len(), 277);
    }

    #[test]
    fn a_fragment_is_the_reference_generators_byte_for_byte() {
        let mut fragmenter = Fragmenter::default();
        fragmenter.begin_fragment(Timecode(1_735_787_045_007));
        let key = unhex("0000000465888400");
        let delta = unhex("000000020930")
            .into_iter()
            .chain(unhex("00000003419a02"))
            .collect::<Vec<_>>();
        let first = fragmenter.block(0, true, key.len());
        let second = fragmenter.block(40, false, delta.len());
        assert_eq!(
            hex(&first) + &hex(&key),
            concat!(
                "1f43b675ffe7880000019424f8608fa78100",
                "a3010000000000000c81000080",
                "0000000465888400"
            )
        );
        assert_eq!(
            hex(&second) + &hex(&delta),
            concat!(
                "a3010000000000001181002800",
                "000000020930",
                "00000003419a02"
            )
        );
    }

    #[test]
    fn tags_are_the_reference_generators_byte_for_byte() {
        assert_eq!(
            hex(&tag("site", "gate-3")),
            concat!(
                "1254c36701000000000000327373010000000000002867c8010000000000001e45a3010000000000000473697465",
                "44870100000000000006676174652d33"
            )
        );
        assert_eq!(
            hex(&end_of_fragment()),
            concat!(
                "1254c36701000000000000487373010000000000003e67c8010000000000003445a30100000000000020",
                "4157535f4b494e45534953564944454f5f454e445f4f465f465241474d454e54",
                "44870100000000000000"
            )
        );
    }

    #[test]
    fn unknown_or_huge_dimensions_are_left_out() {
        let (mut track, names) = reference();
        let with = header(&track, [0; 16], &names);
        track.dimensions = Some(Dimensions {
            width: 70_000,
            height: 1080,
        });
        let huge = header(&track, [0; 16], &names);
        track.dimensions = None;
        assert_eq!(huge, header(&track, [0; 16], &names));
        assert_eq!(with.len() - huge.len(), 13);
    }
}
