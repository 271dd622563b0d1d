//! What the endpoint checks of the codecs: CodecPrivate against its codec id, and the framing of a block. Pure.
//!
//! The service itself takes any CodecPrivate and fails later, in playback. Here a wrong one is refused at once, because
//! finding the producer's mistakes is what this endpoint is for.

/// H.264 and H.265 NAL unit types.
mod nal {
    pub(super) const AVC_IDR: u8 = 5;
    pub(super) const AVC_SPS: u8 = 7;
    pub(super) const AVC_PPS: u8 = 8;
    pub(super) const HEVC_IRAP: std::ops::RangeInclusive<u8> = 16..=21;
    pub(super) const HEVC_VPS: u8 = 32;
    pub(super) const HEVC_SPS: u8 = 33;
    pub(super) const HEVC_PPS: u8 = 34;
}

/// How the blocks of a track are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// H.264 NAL units behind lengths of so many bytes.
    Avc(usize),
    /// H.265 NAL units behind lengths of so many bytes.
    Hevc(usize),
    /// Nothing that is checked.
    Opaque,
}

/// Whether a block can be decoded without those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decodable {
    /// It has an IDR (H.264) or IRAP (H.265) picture.
    Alone,
    /// It has none.
    WithOthers,
    /// The codec does not tell.
    Unknown,
}

/// Checks the CodecPrivate of `codec_id` and tells how blocks are framed.
///
/// # Errors
/// What is wrong with it.
pub fn check_private(codec_id: &str, private: Option<&[u8]>) -> Result<Framing, String> {
    let need = || private.ok_or_else(|| format!("{codec_id} has no CodecPrivate"));
    let checked = match codec_id {
        "V_MPEG4/ISO/AVC" => avcc(need()?).map(Framing::Avc),
        "V_MPEGH/ISO/HEVC" => hvcc(need()?).map(Framing::Hevc),
        "A_MS/ACM" => wave_format(need()?).map(|()| Framing::Opaque),
        "V_MS/VFW/FOURCC" if need()?.len() < 40 => Err("BITMAPINFOHEADER is short".into()),
        aac if aac == "A_AAC" || aac.starts_with("A_AAC/") => {
            audio_specific_config(need()?).map(|()| Framing::Opaque)
        }
        _ => Ok(Framing::Opaque),
    };
    checked.map_err(|reason| format!("CodecPrivate of {codec_id}: {reason}"))
}

/// Checks that the NAL units of a block add up to it.
///
/// # Errors
/// What is wrong with it.
pub fn check_block(framing: Framing, block: &[u8]) -> Result<Decodable, String> {
    let (width, header) = match framing {
        Framing::Avc(width) => (width, 1),
        Framing::Hevc(width) => (width, 2),
        Framing::Opaque if block.is_empty() => return Err("the block is empty".into()),
        Framing::Opaque => return Ok(Decodable::Unknown),
    };
    let mut decodable = Decodable::WithOthers;
    let mut rest = block;
    while !rest.is_empty() {
        let at = block.len() - rest.len();
        let (length, tail) = rest
            .split_at_checked(width)
            .ok_or_else(|| format!("the length of a NAL unit is cut off at byte {at}"))?;
        let length = length
            .iter()
            .fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        let (unit, tail) = tail.split_at_checked(length).ok_or_else(|| {
            format!(
                "a NAL unit of {length} bytes at byte {at} is longer than the {} that are left",
                tail.len()
            )
        })?;
        if unit.len() < header {
            return Err(format!("a NAL unit of {length} bytes at byte {at}"));
        }
        if unit[0] & 0x80 != 0 {
            return Err(format!(
                "forbidden_zero_bit is set in the NAL unit at byte {at}"
            ));
        }
        let alone = match framing {
            Framing::Avc(_) => avc_type(unit) == nal::AVC_IDR,
            _ => nal::HEVC_IRAP.contains(&hevc_type(unit)),
        };
        if alone {
            decodable = Decodable::Alone;
        }
        rest = tail;
    }
    if block.is_empty() {
        return Err("the block is empty".into());
    }
    Ok(decodable)
}

fn avc_type(unit: &[u8]) -> u8 {
    unit[0] & 0x1F
}

fn hevc_type(unit: &[u8]) -> u8 {
    unit[0] >> 1 & 0x3F
}

/// Takes `N` bytes off the front.
fn take<'a, const N: usize>(rest: &mut &'a [u8], what: &str) -> Result<&'a [u8; N], String> {
    let (head, tail) = rest
        .split_first_chunk()
        .ok_or_else(|| format!("cut off in {what}"))?;
    *rest = tail;
    Ok(head)
}

/// Takes a parameter set behind its 16-bit length.
fn take_set<'a>(rest: &mut &'a [u8], what: &str) -> Result<&'a [u8], String> {
    let length = usize::from(u16::from_be_bytes(*take(rest, what)?));
    let (set, tail) = rest
        .split_at_checked(length)
        .filter(|(set, _)| set.len() > 2)
        .ok_or_else(|| format!("{what} of {length} bytes does not fit"))?;
    *rest = tail;
    Ok(set)
}

/// AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1); the width of NAL lengths.
fn avcc(private: &[u8]) -> Result<usize, String> {
    let mut rest = private;
    let [version, profile, compatibility, level, lengths, sets] = *take(&mut rest, "the header")?;
    if version != 1 {
        return Err(format!("configurationVersion is {version}, not 1"));
    }
    let width = width(lengths)?;
    let sets = sets & 0x1F;
    if sets == 0 {
        return Err("no SPS".into());
    }
    for _ in 0..sets {
        let sps = take_set(&mut rest, "the SPS")?;
        if avc_type(sps) != nal::AVC_SPS {
            return Err(format!("a NAL unit of type {} for SPS", avc_type(sps)));
        }
        if sps.get(1..4) != Some(&[profile, compatibility, level][..]) {
            return Err("profile, compatibility and level are not those of the SPS".into());
        }
    }
    let [sets] = *take(&mut rest, "the number of PPS")?;
    if sets == 0 {
        return Err("no PPS".into());
    }
    for _ in 0..sets {
        let pps = take_set(&mut rest, "the PPS")?;
        if avc_type(pps) != nal::AVC_PPS {
            return Err(format!("a NAL unit of type {} for PPS", avc_type(pps)));
        }
    }
    // The high profiles have chroma format, bit depths and SPS extensions here; most writers leave them out.
    if !rest.is_empty() && (rest.len() < 4 || matches!(profile, 66 | 77 | 88)) {
        return Err(format!("{} bytes too many", rest.len()));
    }
    Ok(width)
}

/// HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, 8.3.3.1); the width of NAL lengths.
fn hvcc(private: &[u8]) -> Result<usize, String> {
    let mut rest = private;
    let head: &[u8; 23] = take(&mut rest, "the header")?;
    if head[0] != 1 {
        return Err(format!("configurationVersion is {}, not 1", head[0]));
    }
    let width = width(head[21])?;
    let mut found = Vec::new();
    for _ in 0..head[22] {
        let [kind, high, low] = *take(&mut rest, "an array")?;
        let kind = kind & 0x3F;
        for _ in 0..u16::from_be_bytes([high, low]) {
            let set = take_set(&mut rest, "a parameter set")?;
            if hevc_type(set) != kind {
                return Err(format!(
                    "a NAL unit of type {} in the array of type {kind}",
                    hevc_type(set)
                ));
            }
            // The SPS: 2 bytes of NAL header, a byte of VPS id and sub-layers, 12 bytes of profile, tier and level.
            if kind == nal::HEVC_SPS && unescape(set).get(3..15) != Some(&head[1..13]) {
                return Err("profile, tier and level are not those of the SPS".into());
            }
            found.push(kind);
        }
    }
    for (kind, name) in [
        (nal::HEVC_VPS, "VPS"),
        (nal::HEVC_SPS, "SPS"),
        (nal::HEVC_PPS, "PPS"),
    ] {
        if !found.contains(&kind) {
            return Err(format!("no {name}"));
        }
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes too many", rest.len()));
    }
    Ok(width)
}

/// `lengthSizeMinusOne` in the low bits: 0, 1 or 3.
fn width(byte: u8) -> Result<usize, String> {
    match byte & 3 {
        2 => Err("lengthSizeMinusOne is 2".into()),
        less_one => Ok(usize::from(less_one) + 1),
    }
}

/// Without emulation prevention: `00 00 03` becomes `00 00`.
fn unescape(unit: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(unit.len());
    let mut zeros = 0;
    for &byte in unit {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        plain.push(byte);
    }
    plain
}

/// AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1).
fn audio_specific_config(private: &[u8]) -> Result<(), String> {
    let [first, second, ..] = *private else {
        return Err("shorter than 2 bytes".into());
    };
    let (object_type, frequency) = (first >> 3, (first & 7) << 1 | second >> 7);
    if object_type == 0 {
        return Err("audio object type is 0".into());
    }
    match frequency {
        0..=12 => Ok(()),
        15 if private.len() >= 5 => Ok(()),
        _ => Err(format!("sampling frequency index {frequency}")),
    }
}

/// WAVEFORMATEX of A-law or mu-law.
fn wave_format(private: &[u8]) -> Result<(), String> {
    let mut rest = private;
    let tag = u16::from_le_bytes(*take(&mut rest, "the format tag")?);
    let channels = u16::from_le_bytes(*take(&mut rest, "the channels")?);
    let rate = u32::from_le_bytes(*take(&mut rest, "the rate")?);
    let bytes_per_second = u32::from_le_bytes(*take(&mut rest, "the bytes per second")?);
    let block_align = u16::from_le_bytes(*take(&mut rest, "the block align")?);
    let bits = u16::from_le_bytes(*take(&mut rest, "the bits per sample")?);
    let extra = u16::from_le_bytes(*take(&mut rest, "the size of the extra part")?);
    if !matches!(tag, 6 | 7) {
        return Err(format!(
            "format tag {tag} is neither A-law (6) nor mu-law (7)"
        ));
    }
    if channels == 0 || block_align != channels || bits != 8 {
        return Err("channels, block align and bits do not go together".into());
    }
    if rate == 0 || rate.checked_mul(u32::from(channels)) != Some(bytes_per_second) {
        return Err("rate and bytes per second do not go together".into());
    }
    if rest.len() != usize::from(extra) {
        return Err(format!(
            "{} bytes behind the format, not {extra}",
            rest.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::samples::{AVCC, HVCC, WAVE_A_LAW, bytes};

    const AVC: &str = "V_MPEG4/ISO/AVC";
    const HEVC: &str = "V_MPEGH/ISO/HEVC";

    #[test]
    fn private_data_of_the_check_vectors_is_good() {
        assert_eq!(check_private(AVC, Some(&bytes(AVCC))), Ok(Framing::Avc(4)));
        assert_eq!(
            check_private(HEVC, Some(&bytes(HVCC))),
            Ok(Framing::Hevc(4))
        );
        let opaque = [
            ("A_MS/ACM", bytes(WAVE_A_LAW)),
            ("A_AAC", bytes("1210")),
            ("A_AAC/MPEG4/MAIN", bytes("1408")),
            ("V_MS/VFW/FOURCC", vec![0; 40]),
            ("V_VP8", Vec::new()),
        ];
        for (id, private) in opaque {
            assert_eq!(
                check_private(id, Some(&private)),
                Ok(Framing::Opaque),
                "{id}"
            );
        }
        // The extension of the high profiles.
        let extended = bytes(&format!("{AVCC}fdf8f800"));
        assert_eq!(check_private(AVC, Some(&extended)), Ok(Framing::Avc(4)));
    }

    #[test]
    fn every_cut_of_a_record_is_refused() {
        for (id, private) in [(AVC, AVCC), (HEVC, HVCC), ("A_MS/ACM", WAVE_A_LAW)] {
            let whole = bytes(private);
            assert!(check_private(id, None).is_err());
            for cut in 0..whole.len() {
                assert!(
                    check_private(id, Some(&whole[..cut])).is_err(),
                    "{id} {cut}"
                );
            }
        }
    }

    #[test]
    fn wrong_records_are_refused_with_the_reason() {
        let changed = |private: &str, at: usize, to: u8| {
            let mut private = bytes(private);
            private[at] = to;
            private
        };
        let cases = [
            (AVC, changed(AVCC, 0, 0), "configurationVersion"),
            (AVC, changed(AVCC, 3, 0x1F), "not those of the SPS"),
            (AVC, changed(AVCC, 4, 0xFE), "lengthSizeMinusOne"),
            (AVC, changed(AVCC, 5, 0xE0), "no SPS"),
            (AVC, changed(AVCC, 8, 0x68), "type 8 for SPS"),
            (AVC, bytes(&format!("{AVCC}00")), "too many"),
            (HEVC, changed(HVCC, 12, 0), "not those of the SPS"),
            (HEVC, changed(HVCC, 22, 1), "no SPS"),
            (HEVC, changed(HVCC, 23, 0x21), "in the array of type 33"),
            ("A_AAC", bytes("0210"), "object type"),
            ("A_AAC", bytes("1690"), "frequency"),
            ("A_AAC", bytes("12"), "shorter"),
            ("A_MS/ACM", changed(WAVE_A_LAW, 0, 1), "format tag"),
            ("A_MS/ACM", changed(WAVE_A_LAW, 8, 1), "bytes per second"),
            ("A_MS/ACM", changed(WAVE_A_LAW, 14, 0), "bits"),
            ("V_MS/VFW/FOURCC", vec![0; 39], "BITMAPINFOHEADER"),
        ];
        for (id, private, reason) in cases {
            let error = check_private(id, Some(&private)).unwrap_err();
            assert!(error.contains(reason), "{error} lacks {reason:?}");
        }
    }

    #[test]
    fn nal_units_must_add_up() {
        let block = |text: &str| check_block(Framing::Avc(4), &bytes(text));
        assert_eq!(block("0000000465888400"), Ok(Decodable::Alone));
        assert_eq!(
            block("00000002093000000003419a02"),
            Ok(Decodable::WithOthers)
        );
        for wrong in [
            "",
            "000000",
            "00000000",
            "0000000565888400",
            "0000000165ff",
            "00000001e5",
        ] {
            assert!(block(wrong).is_err(), "{wrong}");
        }
        // Annex B framing reads as a length of 1.
        assert!(block("0000000165888400").is_err());

        let hevc = |text: &str| check_block(Framing::Hevc(2), &bytes(text));
        assert_eq!(hevc("00032601af"), Ok(Decodable::Alone));
        assert_eq!(hevc("00030201d0"), Ok(Decodable::WithOthers));
        assert!(hevc("000126").is_err());

        assert_eq!(check_block(Framing::Opaque, &[1]), Ok(Decodable::Unknown));
        assert!(check_block(Framing::Opaque, &[]).is_err());
    }

    #[test]
    fn emulation_prevention_is_taken_out() {
        assert_eq!(
            unescape(&bytes("000003000003010000")),
            bytes("00000000010000")
        );
    }
}
