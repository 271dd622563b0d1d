//! Reads the Matroska that a request body brings, cut anywhere. Knows nothing of the crate's writer.

use std::ops::Range;

/// What was found; a block's payload is a range of [`Parser::bytes`], good until the next call.
#[derive(Debug, PartialEq, Eq)]
pub enum Element {
    /// EBML header, Segment, Info and Tracks are complete: the track's CodecPrivate.
    Header(Vec<u8>),
    /// A cluster with this timecode begins.
    Cluster(u64),
    /// A SimpleBlock.
    Block {
        offset: i16,
        key: bool,
        payload: Range<usize>,
    },
    /// The tag that closes a fragment on purpose.
    EndOfFragment,
}

#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "what has been seen")]
pub struct Parser {
    bytes: Vec<u8>,
    at: usize,
    seen_ebml: bool,
    seen_segment: bool,
    seen_tracks: bool,
    in_cluster: bool,
}

const EBML: u32 = 0x1A45_DFA3;
const SEGMENT: u32 = 0x1853_8067;
const INFO: u32 = 0x1549_A966;
const TRACKS: u32 = 0x1654_AE6B;
const TRACK_ENTRY: u32 = 0xAE;
const CODEC_PRIVATE: u32 = 0x63A2;
const CLUSTER: u32 = 0x1F43_B675;
const TIMECODE: u32 = 0xE7;
const POSITION: u32 = 0xA7;
const SIMPLE_BLOCK: u32 = 0xA3;
const TAGS: u32 = 0x1254_C367;

const UNKNOWN: u64 = u64::MAX;

impl Parser {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.at == self.bytes.len() {
            self.bytes.clear();
            self.at = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// The next element, or `None` when more bytes are needed.
    pub fn next(&mut self) -> Result<Option<Element>, String> {
        loop {
            let Some((id, size, head)) = element(&self.bytes[self.at..]) else {
                return Ok(None);
            };
            if size == UNKNOWN {
                self.at += head;
                self.enter(id)?;
                continue;
            }
            let start = self.at + head;
            let end = start + usize::try_from(size).map_err(|error| error.to_string())?;
            if end > self.bytes.len() {
                return Ok(None);
            }
            self.at = end;
            if let Some(found) = self.sized(id, start..end)? {
                return Ok(Some(found));
            }
        }
    }

    fn enter(&mut self, id: u32) -> Result<(), String> {
        match id {
            SEGMENT if self.seen_ebml && !self.seen_segment => self.seen_segment = true,
            CLUSTER if self.seen_tracks => self.in_cluster = true,
            _ => {
                return Err(format!(
                    "element {id:#x} of unknown size in the wrong place"
                ));
            }
        }
        Ok(())
    }

    fn sized(&mut self, id: u32, data: Range<usize>) -> Result<Option<Element>, String> {
        let bytes = &self.bytes[data.clone()];
        match id {
            EBML if !self.seen_ebml => self.seen_ebml = true,
            INFO if self.seen_segment && !self.seen_tracks => {}
            TRACKS if self.seen_segment && !self.seen_tracks => {
                self.seen_tracks = true;
                let entry = child(bytes, TRACK_ENTRY).ok_or("Tracks without TrackEntry")?;
                let private = child(entry, CODEC_PRIVATE).ok_or("a track without CodecPrivate")?;
                return Ok(Some(Element::Header(private.to_vec())));
            }
            TIMECODE if self.in_cluster => {
                return Ok(Some(Element::Cluster(
                    bytes
                        .iter()
                        .fold(0, |value, &byte| value << 8 | u64::from(byte)),
                )));
            }
            POSITION if self.in_cluster => {}
            SIMPLE_BLOCK if self.in_cluster => {
                let [0x81, high, low, flags, ..] = *bytes else {
                    return Err("a SimpleBlock without track 1, time and flags".into());
                };
                return Ok(Some(Element::Block {
                    offset: i16::from_be_bytes([high, low]),
                    key: flags & 0x80 != 0,
                    payload: data.start + 4..data.end,
                }));
            }
            TAGS if self.seen_tracks => {
                self.in_cluster = false;
                let name = b"AWS_KINESISVIDEO_END_OF_FRAGMENT";
                if bytes.windows(name.len()).any(|window| window == name) {
                    return Ok(Some(Element::EndOfFragment));
                }
            }
            _ => return Err(format!("element {id:#x} in the wrong place")),
        }
        Ok(None)
    }
}

/// The data of the first child `id`.
fn child(mut bytes: &[u8], id: u32) -> Option<&[u8]> {
    loop {
        let (found, size, head) = element(bytes)?;
        let end = head + usize::try_from(size).ok()?;
        if found == id {
            return bytes.get(head..end);
        }
        bytes = bytes.get(end..)?;
    }
}

/// Id, size and the bytes that both take.
fn element(bytes: &[u8]) -> Option<(u32, u64, usize)> {
    let (id, id_len) = number(bytes, 4, false)?;
    let (size, size_len) = number(&bytes[id_len..], 8, true)?;
    Some((u32::try_from(id).ok()?, size, id_len + size_len))
}

/// A variable-size integer (RFC 8794 section 4), with or without its marker.
fn number(bytes: &[u8], longest: usize, value: bool) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let len = first.leading_zeros() as usize + 1;
    assert!(len <= longest, "a variable-size integer of {len} bytes");
    let all = bytes.get(..len)?;
    let marked = all
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte));
    let ones = (1 << (7 * len)) - 1;
    let plain = marked & ones;
    match value {
        false => Some((marked, len)),
        true if plain == ones => Some((UNKNOWN, len)),
        true => Some((plain, len)),
    }
}
