//! Hand-made Matroska for this module's tests: the published check vectors, not our writer's output.

/// 1920x1080 High profile.
pub const AVCC: &str =
    "01640028ffe1001967640028acd940780227e5c04400000fa40003a983c60c658001000668ebe3cb22c0";

/// Main profile, level 3.1; VPS and PPS are only as long as they must be.
pub const HVCC: &str = concat!(
    "0101600000 00b000000000005df000fcfdf8f800000f03",
    "a00001000440010c01",
    "a10001001442010101600000 0300b0000003000003005da002",
    "a2000100044401c172",
);

/// WAVEFORMATEX of A-law, 8 kHz, mono.
pub const WAVE_A_LAW: &str = "06000100401f0000401f0000010008000000";

/// Bytes of the hex digits in `text`; blanks are for reading only.
pub fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    let pairs = digits.chunks(2);
    pairs
        .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap())
        .collect()
}

/// EBML header, Segment of unknown size, Info, Tracks with one H.264 track: the 277 bytes of the check vector.
pub fn header() -> Vec<u8> {
    [ebml(), info(), tracks(&[video_entry(AVCC)])].concat()
}

/// The EBML header and the Segment's start.
pub fn ebml() -> Vec<u8> {
    bytes(
        "1A45DFA3A3 42868101 42F78101 42F28104 42F38108 4282886D6174726F736B61 42878102 42858102
         18538067FF",
    )
}

/// Info with a time scale of 1 ms.
pub fn info() -> Vec<u8> {
    bytes(
        "1549a966406773a490000102030405060708090a0b0c0d0e0f2ad7b18800000000000f42407ba9914b696e6573697320566964656f20
         53444b4d80974b696e6573697320566964656f2053444b20312e312e305741974b696e6573697320566964656f2053444b20312e312e30",
    )
}

/// Tracks of `entries`.
pub fn tracks(entries: &[Vec<u8>]) -> Vec<u8> {
    let body = entries.concat();
    let size = 0x1000_0000 | u32::try_from(body.len()).unwrap();
    [&bytes("1654ae6b")[..], &size.to_be_bytes(), &body].concat()
}

/// Track 1, H.264, with this CodecPrivate of at most 126 bytes.
pub fn video_entry(private: &str) -> Vec<u8> {
    let private = bytes(private);
    let body = [
        &bytes(
            "d78101 73c5880000000000000001 838101 536e8f6b76735f766964656f5f747261636b
             868f565f4d504547342f49534f2f415643 e010000008b0820780ba820438 63a2",
        )[..],
        &[0x80 | u8::try_from(private.len()).unwrap()],
        &private,
    ]
    .concat();
    let size = 0x1000_0000 | u32::try_from(body.len()).unwrap();
    [&[0xAE][..], &size.to_be_bytes(), &body].concat()
}

/// Track 2, AAC, 44.1 kHz stereo: the check vector.
pub fn audio_entry() -> Vec<u8> {
    bytes(
        "ae10000041d7810273c5880000000000000002838102536e8f6b76735f617564696f5f747261636b8685415f414143
         e11000000db58840e58880000000009f810263a2821210",
    )
}

/// Start of a cluster of unknown size at `timecode`.
pub fn cluster(timecode: u64) -> Vec<u8> {
    let mut cluster = bytes("1f43b675ffe788");
    cluster.extend(timecode.to_be_bytes());
    cluster.extend(bytes("a78100"));
    cluster
}

/// SimpleBlock of `track`, `offset` ms into its cluster, with `flags` and `data`.
pub fn block(track: u8, offset: i16, flags: u8, data: &[u8]) -> Vec<u8> {
    let size = 0x0100_0000_0000_0000 | (data.len() as u64 + 4);
    let [high, low] = offset.to_be_bytes();
    [
        &[0xA3][..],
        &size.to_be_bytes(),
        &[0x80 | track, high, low, flags],
        data,
    ]
    .concat()
}

/// The key frame of the check vector.
pub fn key(offset: i16) -> Vec<u8> {
    block(1, offset, 0x80, &bytes("0000000465888400"))
}

/// The frame behind it.
pub fn delta(offset: i16) -> Vec<u8> {
    block(1, offset, 0, &bytes("00000002093000000003419a02"))
}

/// A cluster at `timecode` with a key frame and one 40 ms later: the check vector's first fragment.
pub fn fragment(timecode: u64) -> Vec<u8> {
    [cluster(timecode), key(0), delta(40)].concat()
}

/// Tags with one pair.
pub fn tag(name: &str, value: &str) -> Vec<u8> {
    let element = |id: &str, body: &[u8]| {
        let size = 0x0100_0000_0000_0000 | body.len() as u64;
        [&bytes(id)[..], &size.to_be_bytes(), body].concat()
    };
    let pair = [
        element("45a3", name.as_bytes()),
        element("4487", value.as_bytes()),
    ]
    .concat();
    element("1254c367", &element("7373", &element("67c8", &pair)))
}

/// The mark at the end of a fragment.
pub fn end_of_fragment() -> Vec<u8> {
    tag("AWS_KINESISVIDEO_END_OF_FRAGMENT", "")
}

#[test]
fn samples_are_the_check_vectors() {
    assert_eq!(header().len(), 277);
    let tag_vector = "1254c36701000000000000327373010000000000002867c8010000000000001e45a3010000000000000473697465
                      44870100000000000006676174652d33";
    assert_eq!(tag("site", "gate-3"), bytes(tag_vector));
    assert_eq!(
        cluster(1_735_787_045_007),
        bytes("1f43b675ffe7880000019424f8608fa78100")
    );
    assert_eq!(
        key(0),
        bytes("a3 010000000000000c 81 0000 80 00000004 65888400")
    );
}
