//! H.264 (ITU-T Rec. H.264): NAL unit types, the sequence parameter set, and avcC.

use super::bits::BitReader;
use super::{FrameRate, Kind, Role, SetKind, cropped};
use crate::frame::Dimensions;

/// Bytes of the NAL unit header (7.3.1).
pub(super) const HEADER_LEN: usize = 1;

/// Where the NAL unit that begins with `nal` stands between pictures (7.4.1.2.3). `None` asks for more bytes.
///
/// A picture begins at a slice with `first_mb_in_slice` 0, which is how cameras and all common encoders order their
/// slices. Arbitrary slice order and redundant pictures (baseline profile only) are not told apart, and each field of a
/// field pair is a unit of its own, as 7.4.1.2.4 has it.
pub(super) fn role(nal: &[u8]) -> Option<Role> {
    let header = *nal.first()?;
    if header & 0x80 != 0 {
        return Some(Role::Inside);
    }
    Some(match header & 0x1F {
        // ue(v) 0 is the single bit 1, and no emulation prevention byte can stand before it.
        1 | 2 | 5 => match nal.get(HEADER_LEN)? {
            0x80.. => Role::FirstSlice,
            _ => Role::Slice,
        },
        3 | 4 => Role::Slice,
        6..=9 | 14..=18 => Role::Opening,
        10 | 11 => Role::End,
        _ => Role::Inside,
    })
}

/// What `nal` is for the parser; `None` for bytes that are no NAL unit.
pub(super) fn kind(nal: &[u8]) -> Option<Kind> {
    let header = *nal.first()?;
    if header & 0x80 != 0 {
        return None;
    }
    Some(match header & 0x1F {
        1..=4 => Kind::Slice { key: false },
        5 => Kind::Slice { key: true },
        7 => Kind::Set(SetKind::Sps),
        8 => Kind::Set(SetKind::Pps),
        9 => Kind::Delimiter,
        _ => Kind::Other,
    })
}

/// `pic_parameter_set_id` of a slice (7.3.3).
pub(super) fn slice_pps_id(nal: &[u8]) -> Option<u8> {
    let mut bits = BitReader::new(nal.get(HEADER_LEN..)?);
    bits.ue()?; // first_mb_in_slice
    bits.ue()?; // slice_type
    u8::try_from(bits.ue()?).ok()
}

/// Ids of a PPS and of the SPS that it refers to (7.3.2.2).
pub(super) fn pps_ids(nal: &[u8]) -> Option<(u8, u8)> {
    let mut bits = BitReader::new(nal.get(HEADER_LEN..)?);
    let id = u8::try_from(bits.ue()?).ok()?;
    Some((id, sps_id(&mut bits)?))
}

/// `seq_parameter_set_id`, 0 to 31.
fn sps_id(bits: &mut BitReader) -> Option<u8> {
    let id = u8::try_from(bits.ue()?).ok()?;
    (id < 32).then_some(id)
}

/// The fields of a sequence parameter set (7.3.2.1.1) that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sps {
    /// `seq_parameter_set_id`, 0 to 31.
    pub id: u8,
    /// Size of the picture after cropping.
    pub dimensions: Option<Dimensions>,
    /// Frame rate by the VUI's timing information.
    pub frame_rate: Option<FrameRate>,
}

impl Sps {
    /// Reads the NAL unit `nal`, header byte included.
    ///
    /// Lenient, since cameras write odd ones: what cannot be read is `None` in the result, and bytes after the fields are
    /// not looked at. Only without an id there is no result.
    pub fn parse(nal: &[u8]) -> Option<Self> {
        let mut bits = BitReader::new(nal.get(HEADER_LEN..)?);
        let profile = bits.byte()?;
        bits.skip(16)?; // constraint flags, level_idc
        let mut sps = Self {
            id: sps_id(&mut bits)?,
            dimensions: None,
            frame_rate: None,
        };
        sps.dimensions = dimensions(&mut bits, profile);
        if sps.dimensions.is_some() {
            sps.frame_rate = vui_frame_rate(&mut bits);
        }
        Some(sps)
    }
}

/// Reads from behind `seq_parameter_set_id` up to `vui_parameters_present_flag`.
fn dimensions(bits: &mut BitReader, profile: u8) -> Option<Dimensions> {
    let mut chroma_format_idc = 1;
    let mut separate_planes = false;
    if has_chroma_fields(profile) {
        chroma_format_idc = bits.ue()?;
        if chroma_format_idc == 3 {
            separate_planes = bits.flag()?;
        }
        bits.ue()?; // bit_depth_luma_minus8
        bits.ue()?; // bit_depth_chroma_minus8
        bits.flag()?; // qpprime_y_zero_transform_bypass_flag
        if bits.flag()? {
            let lists = if chroma_format_idc == 3 { 12 } else { 8 };
            for list in 0..lists {
                if bits.flag()? {
                    skip_scaling_list(bits, if list < 6 { 16 } else { 64 })?;
                }
            }
        }
    }
    bits.ue()?; // log2_max_frame_num_minus4
    match bits.ue()? {
        0 => {
            bits.ue()?; // log2_max_pic_order_cnt_lsb_minus4
        }
        1 => {
            bits.flag()?; // delta_pic_order_always_zero_flag
            bits.se()?; // offset_for_non_ref_pic
            bits.se()?; // offset_for_top_to_bottom_field
            for _ in 0..bits.ue()?.min(255) {
                bits.se()?;
            }
        }
        _ => {}
    }
    bits.ue()?; // max_num_ref_frames
    bits.flag()?; // gaps_in_frame_num_value_allowed_flag
    let width_in_mbs = bits.ue()?.checked_add(1)?;
    let height_in_map_units = bits.ue()?.checked_add(1)?;
    let frame_mbs_only = bits.flag()?;
    if !frame_mbs_only {
        bits.flag()?; // mb_adaptive_frame_field_flag
    }
    bits.flag()?; // direct_8x8_inference_flag
    let fields = if frame_mbs_only { 1 } else { 2 };
    let width = width_in_mbs.checked_mul(16)?;
    let height = height_in_map_units.checked_mul(16 * fields)?;
    let mut crop = [0; 4];
    if bits.flag()? {
        for side in &mut crop {
            *side = bits.ue()?;
        }
    }
    // CropUnitX and CropUnitY, 7-19 to 7-22.
    let (unit_x, unit_y) = match (chroma_format_idc, separate_planes) {
        (1, _) => (2, 2 * fields),
        (2, _) => (2, fields),
        _ => (1, fields),
    };
    cropped((width, height), crop, (unit_x, unit_y))
}

/// Reads `vui_parameters_present_flag` and the VUI (E.1.1) up to the timing information.
fn vui_frame_rate(bits: &mut BitReader) -> Option<FrameRate> {
    if !bits.flag()? {
        return None;
    }
    super::skip_vui_head(bits)?;
    if !bits.flag()? {
        return None;
    }
    let num_units_in_tick = bits.bits(32)?;
    let time_scale = bits.bits(32)?;
    // A tick is a field's time.
    FrameRate::new(time_scale.into(), u64::from(num_units_in_tick) * 2)
}

/// Whether an SPS of `profile_idc` has chroma_format_idc and what follows it.
fn has_chroma_fields(profile_idc: u8) -> bool {
    matches!(
        profile_idc,
        100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135
    )
}

/// scaling_list (7.3.2.1.1.1).
fn skip_scaling_list(bits: &mut BitReader, size: u32) -> Option<()> {
    let mut last = 8;
    let mut next = 8;
    for _ in 0..size {
        if next != 0 {
            // Wraps only for values that no list may have.
            next = i32::wrapping_add(last, bits.se()?).rem_euclid(256);
        }
        if next != 0 {
            last = next;
        }
    }
    Some(())
}

/// The AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1.2) of these parameter sets, each a NAL unit as it stood
/// in the stream. Profile and level are those of `active`.
///
/// The four bytes at the end that the standard wants for the High profiles (chroma format, bit depths, SPS extensions)
/// are left out, as the service's own producers do: players cope, and golden bytes stay comparable with theirs.
pub(super) fn avcc<'a>(
    active: &[u8],
    sps: impl Iterator<Item = &'a [u8]>,
    pps: impl Iterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let mut record = vec![1]; // configurationVersion
    record.extend(active.iter().skip(HEADER_LEN).take(3)); // profile, compatibility, level
    record.push(0xFC | 3); // 4-byte lengths
    // numOfSequenceParameterSets has 5 bits, numOfPictureParameterSets 8: all ids but one fit.
    append_sets(&mut record, 0xE0, 31, sps);
    append_sets(&mut record, 0, 255, pps);
    record
}

/// A count with `reserved` bits above it, then each of at most `limit` sets behind its 16-bit length.
fn append_sets<'a>(
    record: &mut Vec<u8>,
    reserved: u8,
    limit: usize,
    sets: impl Iterator<Item = &'a [u8]>,
) {
    let count_at = record.len();
    record.push(reserved);
    for set in sets.take(limit) {
        record[count_at] += 1;
        super::append_with_length(record, set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::bits::writer::{BitWriter, hex};

    /// SPSs as x264 wrote them, with the size and rate that ffprobe reported for the streams.
    const SPS: &[(&str, u32, u32, &str)] = &[
        // 10 bit
        (
            "676e001fa6cb405217f1126022000003000200000300f01e306540",
            642,
            362,
            "60/1",
        ),
        (
            "6742c028da01e0089f97011000000300100000030320f1832a",
            1920,
            1080,
            "25/1",
        ),
        (
            "6742c00bda093f8888c04400000fa40003a9803c50aa80",
            130,
            98,
            "30000/1001",
        ),
        (
            "6742c020da01581879bc0440000003004000000c83c60ca8",
            1366,
            768,
            "25/1",
        ),
        // 4:2:2
        (
            "677a0015bcb40a8cf1117808800000030080000032078b1750",
            322,
            182,
            "50/1",
        ),
        // 4:4:4, odd on both sides
        (
            "67f4000d919681519e108cffc0b500f0c4000003000400000300c03c50aa80",
            321,
            181,
            "24/1",
        ),
        // monochrome
        (
            "6764000af2d0588f1f3e02d90000030001000003001e0f1226a0",
            162,
            122,
            "15/1",
        ),
        // interlaced
        (
            "674d401ef405a126c044000003000400000300c87c50aa80",
            720,
            576,
            "25/1",
        ),
        (
            "674d401ef40521078888c044000003000400000300c87c50aa80",
            642,
            484,
            "25/1",
        ),
        // extended aspect ratio, overscan, colours, chroma location
        (
            "6742c01eda02d049bff0011000bb5010101a5000000300100000030320f162ea",
            720,
            576,
            "25/1",
        ),
    ];

    #[test]
    fn size_and_rate_are_those_that_ffprobe_reports() {
        for &(bytes, width, height, rate) in SPS {
            let sps = Sps::parse(&hex(bytes)).expect("an SPS");
            assert_eq!(
                sps.dimensions,
                Some(Dimensions { width, height }),
                "{bytes}"
            );
            assert_eq!(
                sps.frame_rate.map(|rate| rate.to_string()).as_deref(),
                Some(rate),
                "{bytes}"
            );
            assert_eq!(sps.id, 0);
        }
    }

    #[test]
    fn scaling_lists_and_order_count_type_1_are_passed_over() {
        let mut bits = BitWriter::default();
        bits.u(8, 100).u(16, 40); // High, level 4
        bits.ue(31).ue(1).ue(0).ue(0).u(1, 0); // id, chroma format, depths, bypass
        bits.u(1, 1); // scaling matrix:
        bits.u(1, 1).se(-8); // a list of 16 that ends at once, next scale being 0
        bits.u(5, 0);
        bits.u(1, 1); // one of 64 to its end
        for _ in 0..32 {
            bits.se(3).se(-3);
        }
        bits.u(1, 0);
        bits.ue(4); // frame_num
        bits.ue(1).u(1, 0).se(-2).se(1).ue(2).se(5).se(-5); // order count
        bits.ue(4).u(1, 0).ue(79).ue(33).u(1, 0).u(1, 1).u(1, 1); // 1280 x 1088, fields
        bits.u(1, 1).ue(1).ue(2).ue(0).ue(2); // crop 6 across, 8 down
        bits.u(1, 1)
            .u(4, 0)
            .u(1, 1)
            .u(32, 1001)
            .u(32, 120_000)
            .u(1, 1); // VUI: 59.94
        let sps = Sps::parse(&bits.nal(&[0x67])).expect("an SPS");
        let expected = Sps {
            id: 31,
            dimensions: Some(Dimensions {
                width: 1274,
                height: 1080,
            }),
            frame_rate: FrameRate::new(60_000, 1001),
        };
        assert_eq!(sps, expected);
    }

    #[test]
    fn a_cut_or_senseless_sps_still_gives_its_id() {
        let whole = hex(SPS[0].0);
        for len in 0..whole.len() {
            let sps = Sps::parse(&whole[..len]);
            assert_eq!(sps.is_some(), len >= 5, "{len} bytes");
        }
        // All the width is cropped away.
        let mut bits = BitWriter::default();
        bits.u(8, 66)
            .u(16, 40)
            .ue(0)
            .ue(0)
            .ue(2)
            .ue(1)
            .u(1, 0)
            .ue(0)
            .ue(0)
            .u(1, 1)
            .u(1, 1);
        bits.u(1, 1).ue(4).ue(4).ue(0).ue(0).u(1, 0);
        let sps = Sps::parse(&bits.nal(&[0x67])).expect("an SPS");
        assert_eq!((sps.id, sps.dimensions), (0, None));
    }

    #[test]
    fn avcc_is_that_of_the_reference_producer() {
        let sps = hex("67640028acd940780227e5c04400000fa40003a983c60c6580");
        let pps = hex("68ebe3cb22c0");
        let record = avcc(&sps, [&*sps].into_iter(), [&*pps].into_iter());
        let expected =
            "01640028ffe1001967640028acd940780227e5c04400000fa40003a983c60c658001000668ebe3cb22c0";
        assert_eq!(record, hex(expected));
        let dimensions = Sps::parse(&sps).expect("an SPS").dimensions;
        assert_eq!(
            dimensions,
            Some(Dimensions {
                width: 1920,
                height: 1080
            })
        );
    }

    #[test]
    fn avcc_holds_all_ids_as_far_as_its_counts_go() {
        let sps = hex(SPS[1].0);
        let record = avcc(
            &sps,
            vec![&*sps; 32].into_iter(),
            vec![&[0x68, 0xEE][..]; 256].into_iter(),
        );
        assert_eq!(record[5], 0xE0 | 31);
        let pps_count_at = 6 + 31 * (2 + sps.len());
        assert_eq!(record[pps_count_at], 255);
        assert_eq!(record.len(), pps_count_at + 1 + 255 * 4);
    }
}
