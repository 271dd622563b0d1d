//! Element ids and variable-size integers (RFC 8794), as far as a live stream needs them.

/// An element id as it stands in the stream, marker bits included (RFC 8794 section 5).
pub(super) type Id = u32;

/// EBML size "unknown" in one byte: the element ends where its parent's next child begins (RFC 8794 section 6.2).
pub(super) const UNKNOWN_SIZE: u8 = 0xFF;

/// Appends an id: its own marker bits say how many bytes it has.
pub(super) fn id(out: &mut Vec<u8>, id: Id) {
    let bytes = id.to_be_bytes();
    let skip = bytes.iter().take_while(|&&byte| byte == 0).count();
    out.extend_from_slice(&bytes[skip..]);
}

/// The size as eight bytes: a marker and 56 bits.
pub(super) fn size8(size: u64) -> [u8; 8] {
    (size | 1 << 56).to_be_bytes()
}

/// Appends a size in as few bytes as hold it; all bits set is reserved for "unknown" (RFC 8794 section 6).
pub(super) fn size_shortest(out: &mut Vec<u8>, size: usize) {
    let size = size as u64;
    let width = (1..8_usize)
        .find(|width| size < (1 << (7 * width)) - 1)
        .unwrap_or(8);
    let marked = size | 1 << (7 * width);
    out.extend_from_slice(&marked.to_be_bytes()[8 - width..]);
}

/// Appends an element with its size in as few bytes as hold it.
pub(super) fn element(out: &mut Vec<u8>, element: Id, data: &[u8]) {
    id(out, element);
    size_shortest(out, data.len());
    out.extend_from_slice(data);
}

/// Appends an element whose size takes eight bytes.
pub(super) fn element8(out: &mut Vec<u8>, element: Id, data: &[u8]) {
    id(out, element);
    out.extend_from_slice(&size8(data.len() as u64));
    out.extend_from_slice(data);
}

/// Appends an element whose size takes four bytes.
pub(super) fn element4(out: &mut Vec<u8>, element: Id, data: &[u8]) {
    id(out, element);
    let size = u32::try_from(data.len()).expect("headers are far below 2^28 bytes");
    out.extend_from_slice(&(size | 1 << 28).to_be_bytes());
    out.extend_from_slice(data);
}

/// Appends an element whose size takes two bytes.
pub(super) fn element2(out: &mut Vec<u8>, element: Id, data: &[u8]) {
    id(out, element);
    let size = u16::try_from(data.len()).expect("Info is far below 2^14 bytes");
    out.extend_from_slice(&(size | 1 << 14).to_be_bytes());
    out.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortest_sizes_leave_the_reserved_value_out() {
        for (size, expected) in [
            (0, &[0x80][..]),
            (126, &[0xFE]),
            (127, &[0x40, 0x7F]), // one byte of all ones would be "unknown"
            (16_382, &[0x7F, 0xFE]),
            (16_383, &[0x20, 0x3F, 0xFF]),
        ] {
            let mut out = Vec::new();
            size_shortest(&mut out, size);
            assert_eq!(out, expected, "size {size}");
        }
    }
}
