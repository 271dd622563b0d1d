//! H.265 (ITU-T Rec. H.265): NAL unit types, the sequence parameter set, and hvcC.

use super::bits::BitReader;
use super::{FrameRate, Kind, Role, SetKind, cropped};
use crate::frame::Dimensions;

/// Bytes of the NAL unit header (7.3.1.2).
pub(super) const HEADER_LEN: usize = 2;

/// `nal_unit_type` of a NAL unit of the base layer; `None` for another layer's, and for a header that no standard knows.
fn base_layer_type([first, second]: [u8; HEADER_LEN]) -> Option<u8> {
    let forbidden = first & 0x80 != 0;
    let layer = (first & 1) << 5 | second >> 3;
    let temporal_id_plus1 = second & 7;
    (!forbidden && layer == 0 && temporal_id_plus1 != 0).then_some(first >> 1)
}

/// Where the NAL unit that begins with `nal` stands between pictures (7.4.2.4.4). `None` asks for more bytes.
pub(super) fn role(nal: &[u8]) -> Option<Role> {
    let header = *nal.first_chunk()?;
    Some(match base_layer_type(header) {
        Some(0..=9 | 16..=21) => match nal.get(HEADER_LEN)? {
            0x80.. => Role::FirstSlice, // first_slice_segment_in_pic_flag
            _ => Role::Slice,
        },
        Some(32..=35 | 39 | 41..=44 | 48..=55) => Role::Opening,
        Some(36 | 37) => Role::End,
        _ => Role::Inside,
    })
}

/// What `nal` is for the parser; `None` for bytes that are no NAL unit.
pub(super) fn kind(nal: &[u8]) -> Option<Kind> {
    let header = *nal.first_chunk()?;
    if header[0] & 0x80 != 0 {
        return None;
    }
    Some(match base_layer_type(header) {
        Some(0..=9) => Kind::Slice { key: false },
        Some(16..=21) => Kind::Slice { key: true },
        Some(32) => Kind::Set(SetKind::Vps),
        Some(33) => Kind::Set(SetKind::Sps),
        Some(34) => Kind::Set(SetKind::Pps),
        Some(35) => Kind::Delimiter,
        _ => Kind::Other,
    })
}

/// `slice_pic_parameter_set_id` of a key frame's first slice segment (7.3.6.1).
pub(super) fn slice_pps_id(nal: &[u8]) -> Option<u8> {
    let mut bits = BitReader::new(nal.get(HEADER_LEN..)?);
    bits.flag()?; // first_slice_segment_in_pic_flag
    bits.flag()?; // no_output_of_prior_pics_flag
    u8::try_from(bits.ue()?).ok()
}

/// `vps_video_parameter_set_id` (7.3.2.1), 0 to 15.
pub(super) fn vps_id(nal: &[u8]) -> Option<u8> {
    Some(nal.get(HEADER_LEN)? >> 4)
}

/// Ids of a PPS and of the SPS that it refers to (7.3.2.3.1).
pub(super) fn pps_ids(nal: &[u8]) -> Option<(u8, u8)> {
    let mut bits = BitReader::new(nal.get(HEADER_LEN..)?);
    let id = u8::try_from(bits.ue()?).ok()?;
    let sps = u8::try_from(bits.ue()?).ok()?;
    (id < 64 && sps < 16).then_some((id, sps))
}

/// The fields of a sequence parameter set (7.3.2.2.1) that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sps {
    /// `sps_seq_parameter_set_id`, 0 to 15.
    pub id: u8,
    /// `sps_video_parameter_set_id`, 0 to 15.
    pub vps_id: u8,
    /// `sps_max_sub_layers_minus1` + 1, 1 to 7.
    pub temporal_layers: u8,
    /// `sps_temporal_id_nesting_flag`.
    pub temporal_id_nested: bool,
    /// The general part of profile_tier_level (7.3.3), up to and with general_level_idc, emulation prevention removed.
    pub profile_tier_level: [u8; 12],
    /// Chroma format and bit depths.
    pub sample_format: Option<SampleFormat>,
    /// Size of the picture after cropping.
    pub dimensions: Option<Dimensions>,
    /// Frame rate by the VUI's timing information.
    pub frame_rate: Option<FrameRate>,
}

/// How samples are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleFormat {
    /// 0 monochrome, 1 4:2:0, 2 4:2:2, 3 4:4:4.
    pub chroma_format_idc: u8,
    /// Bits of a luma sample less 8, 0 to 7.
    pub bit_depth_luma_minus8: u8,
    /// Bits of a chroma sample less 8, 0 to 7.
    pub bit_depth_chroma_minus8: u8,
}

impl Sps {
    /// Reads the NAL unit `nal`, header bytes included.
    ///
    /// Lenient: what cannot be read is `None` in the result, and bytes after the fields are not looked at. Only without
    /// profile, level and id there is no result.
    pub fn parse(nal: &[u8]) -> Option<Self> {
        let mut bits = BitReader::new(nal.get(HEADER_LEN..)?);
        let vps_id = u8::try_from(bits.bits(4)?).ok()?;
        let sub_layers_minus1 = bits.bits(3)?;
        let temporal_id_nested = bits.flag()?;
        let mut profile_tier_level = [0; 12];
        for byte in &mut profile_tier_level {
            *byte = bits.byte()?;
        }
        skip_sub_layers(&mut bits, sub_layers_minus1)?;
        let id = u8::try_from(bits.ue()?).ok().filter(|&id| id < 16)?;
        let mut sps = Self {
            id,
            vps_id,
            // The standard's limit; hvcC has 3 bits for it.
            temporal_layers: u8::try_from(sub_layers_minus1 + 1).ok()?.min(7),
            temporal_id_nested,
            profile_tier_level,
            sample_format: None,
            dimensions: None,
            frame_rate: None,
        };
        sps.read_picture(&mut bits);
        if sps.sample_format.is_some() {
            sps.frame_rate = frame_rate(&mut bits, sub_layers_minus1);
        }
        Some(sps)
    }

    /// Reads from behind the id up to the bit depths.
    fn read_picture(&mut self, bits: &mut BitReader) -> Option<()> {
        let chroma_format_idc = u8::try_from(bits.ue()?).ok().filter(|&idc| idc <= 3)?;
        let separate_planes = chroma_format_idc == 3 && bits.flag()?;
        let width = bits.ue()?;
        let height = bits.ue()?;
        let mut window = [0; 4];
        if bits.flag()? {
            for side in &mut window {
                *side = bits.ue()?;
            }
        }
        // SubWidthC and SubHeightC, table 6-1.
        let unit = match (chroma_format_idc, separate_planes) {
            (1, _) => (2, 2),
            (2, _) => (2, 1),
            _ => (1, 1),
        };
        self.dimensions = cropped((width, height), window, unit);
        let mut depth_minus8 = || u8::try_from(bits.ue()?).ok().filter(|&depth| depth <= 7);
        self.sample_format = Some(SampleFormat {
            chroma_format_idc,
            bit_depth_luma_minus8: depth_minus8()?,
            bit_depth_chroma_minus8: depth_minus8()?,
        });
        Some(())
    }
}

/// The sub-layers' part of profile_tier_level (7.3.3).
fn skip_sub_layers(bits: &mut BitReader, sub_layers_minus1: u32) -> Option<()> {
    if sub_layers_minus1 == 0 {
        return Some(());
    }
    let mut lengths = 0;
    for layer in 0..8 {
        let profile_present = bits.flag()?; // for layers that are not, both are reserved_zero_2bits
        let level_present = bits.flag()?;
        if layer < sub_layers_minus1 {
            lengths += 88 * u32::from(profile_present) + 8 * u32::from(level_present);
        }
    }
    bits.skip(lengths)
}

/// Reads from behind the bit depths to the VUI's timing information.
fn frame_rate(bits: &mut BitReader, sub_layers_minus1: u32) -> Option<FrameRate> {
    let log2_max_poc_lsb = bits.ue()?.checked_add(4)?;
    let first_sub_layer = if bits.flag()? { 0 } else { sub_layers_minus1 };
    for _ in first_sub_layer..=sub_layers_minus1 {
        skip_ue(bits, 3)?; // max_dec_pic_buffering, max_num_reorder, max_latency_increase
    }
    skip_ue(bits, 6)?; // sizes of coding and transform blocks, transform hierarchy depths
    if bits.flag()? && bits.flag()? {
        skip_scaling_list_data(bits)?;
    }
    bits.skip(2)?; // amp_enabled_flag, sample_adaptive_offset_enabled_flag
    if bits.flag()? {
        bits.skip(8)?; // PCM bit depths
        skip_ue(bits, 2)?;
        bits.flag()?; // pcm_loop_filter_disabled_flag
    }
    skip_short_term_ref_pic_sets(bits)?;
    if bits.flag()? {
        for _ in 0..bits.ue()?.min(32) {
            bits.skip(log2_max_poc_lsb.min(16))?;
            bits.flag()?; // used_by_curr_pic_lt_sps_flag
        }
    }
    bits.skip(2)?; // sps_temporal_mvp_enabled_flag, strong_intra_smoothing_enabled_flag
    if !bits.flag()? {
        return None;
    }
    vui_frame_rate(bits)
}

/// The VUI (E.2.1) up to the timing information.
fn vui_frame_rate(bits: &mut BitReader) -> Option<FrameRate> {
    super::skip_vui_head(bits)?;
    bits.skip(3)?; // neutral_chroma_indication_flag, field_seq_flag, frame_field_info_present_flag
    if bits.flag()? {
        skip_ue(bits, 4)?; // default display window
    }
    if !bits.flag()? {
        return None;
    }
    let num_units_in_tick = bits.bits(32)?;
    let time_scale = bits.bits(32)?;
    FrameRate::new(time_scale.into(), num_units_in_tick.into())
}

fn skip_ue(bits: &mut BitReader, count: u32) -> Option<()> {
    for _ in 0..count {
        bits.ue()?;
    }
    Some(())
}

/// scaling_list_data (7.3.4).
fn skip_scaling_list_data(bits: &mut BitReader) -> Option<()> {
    for size_id in 0..4 {
        let matrices = if size_id == 3 { 2 } else { 6 };
        for _ in 0..matrices {
            if !bits.flag()? {
                bits.ue()?; // scaling_list_pred_matrix_id_delta
                continue;
            }
            if size_id > 1 {
                bits.se()?; // scaling_list_dc_coef_minus8
            }
            skip_ue(bits, 64.min(1 << (4 + (size_id << 1))))?; // as long as the se(v) they are
        }
    }
    Some(())
}

/// num_short_term_ref_pic_sets and the sets (7.3.7).
fn skip_short_term_ref_pic_sets(bits: &mut BitReader) -> Option<()> {
    /// Pictures in one set, and sets in an SPS, by the standard's limits (7.4.8, 7.4.3.2.1).
    const MAX_PICTURES: u32 = 16;
    const MAX_SETS: u32 = 64;

    let sets = bits.ue().filter(|&sets| sets <= MAX_SETS)?;
    let mut pictures = 0; // NumDeltaPocs of the set before
    for index in 0..sets {
        if index > 0 && bits.flag()? {
            bits.flag()?; // delta_rps_sign
            bits.ue()?; // abs_delta_rps_minus1
            let mut kept = 0;
            for _ in 0..=pictures {
                let used_by_curr_pic = bits.flag()?;
                let use_delta = used_by_curr_pic || bits.flag()?;
                kept += u32::from(use_delta);
            }
            pictures = kept;
        } else {
            let negative = bits.ue().filter(|&count| count <= MAX_PICTURES)?;
            let positive = bits.ue().filter(|&count| count <= MAX_PICTURES)?;
            pictures = negative + positive;
            for _ in 0..pictures {
                bits.ue()?; // delta_poc_minus1
                bits.flag()?; // used_by_curr_pic
            }
        }
    }
    Some(())
}

/// The HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, 8.3.3.1.2) of these parameter sets, each a NAL unit as it stood
/// in the stream. Profile, level and sample format are those of `active`.
///
/// The arrays are not marked complete: the same sets also stand in the stream.
pub(super) fn hvcc<'a>(
    active: &Sps,
    vps: impl ExactSizeIterator<Item = &'a [u8]>,
    sps: impl ExactSizeIterator<Item = &'a [u8]>,
    pps: impl ExactSizeIterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let format = active.sample_format.unwrap_or(SampleFormat {
        chroma_format_idc: 1,
        bit_depth_luma_minus8: 0,
        bit_depth_chroma_minus8: 0,
    });
    let mut record = vec![1]; // configurationVersion
    record.extend(active.profile_tier_level);
    record.extend([
        0xF0,
        0x00, // min_spatial_segmentation_idc: not known
        0xFC, // parallelismType: not known
        0xFC | format.chroma_format_idc,
        0xF8 | format.bit_depth_luma_minus8,
        0xF8 | format.bit_depth_chroma_minus8,
        0x00,
        0x00, // avgFrameRate: not known
        // constantFrameRate not known, 4-byte lengths
        active.temporal_layers << 3 | u8::from(active.temporal_id_nested) << 2 | 3,
        3, // numOfArrays
    ]);
    append_array(&mut record, 32, vps);
    append_array(&mut record, 33, sps);
    append_array(&mut record, 34, pps);
    record
}

fn append_array<'a>(
    record: &mut Vec<u8>,
    nal_unit_type: u8,
    sets: impl ExactSizeIterator<Item = &'a [u8]>,
) {
    record.push(nal_unit_type);
    let count = u16::try_from(sets.len()).expect("ids below 64 keep the sets few");
    record.extend(count.to_be_bytes());
    for set in sets {
        super::append_with_length(record, set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::bits::writer::{BitWriter, hex};

    /// SPSs as x265 wrote them, with the size and rate that ffprobe reported for the streams, then chroma format and
    /// bits of a sample.
    const SPS: &[(&str, u32, u32, &str, u8, u8)] = &[
        (
            "420101016000000300900000030000030078a003c08010e5964a924caf016808000003000800000300c840",
            1920,
            1080,
            "25/1",
            1,
            8,
        ),
        (
            "42010101600000030090000003000003001ea0122071c44465ba4a4c2f01680800001f480003a98040",
            130,
            98,
            "30000/1001",
            1,
            8,
        ),
        (
            "420101016000000300900000030000030078a002b080301cde5ba4a4c2f0168080000003008000000c84",
            1366,
            768,
            "25/1",
            1,
            8,
        ),
        (
            "42010102200000030090000003000003005aa005220171c448d96e92930bc05a020000030002000003007810",
            642,
            362,
            "60/1",
            1,
            10,
        ),
        (
            "4201010408000003009d0800000300003cb00a880c1c445e5ba4a4c2f0168080000003008000001904",
            322,
            182,
            "50/1",
            2,
            8,
        ),
        (
            "4201010408000003009e0800000300003c9001510183842332dd252617ff816a01e1b4040000030004000003006020",
            321,
            181,
            "24/1",
            3,
            8,
        ),
        (
            "4201010408000003009fc800000300001ec0588081c7cf96e92930bc05b020000003002000000301e1",
            162,
            122,
            "15/1",
            0,
            8,
        ),
        // extended aspect ratio, overscan, colours, chroma location
        (
            "42010101600000030090000003000003005aa005a20090596e92930bffc0044002ed40404069040000030004000003006420",
            720,
            576,
            "25/1",
            1,
            8,
        ),
        // fields
        (
            "42010101600000030040000003000003005aa005a20090596e92930bc05a1a0000030002000003003210",
            720,
            576,
            "25/1",
            1,
            8,
        ),
        // five reference pictures
        (
            "42010101600000030090000003000003005da00280802d1659a92930bc05a02000000300200000030321",
            1280,
            720,
            "25/1",
            1,
            8,
        ),
    ];

    #[test]
    fn size_rate_and_format_are_those_that_ffprobe_reports() {
        for &(bytes, width, height, rate, chroma_format_idc, depth) in SPS {
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
            let format = SampleFormat {
                chroma_format_idc,
                bit_depth_luma_minus8: depth - 8,
                bit_depth_chroma_minus8: depth - 8,
            };
            assert_eq!(sps.sample_format, Some(format), "{bytes}");
        }
    }

    #[test]
    fn sub_layers_lists_and_reference_sets_are_passed_over() {
        let mut bits = BitWriter::default();
        bits.u(4, 5).u(3, 2).u(1, 0); // VPS 5, three sub-layers, not nested
        bits.u(8, 0x01)
            .u(32, 0x6000_0000)
            .u(32, 0x9000_0000)
            .u(16, 0)
            .u(8, 93);
        bits.u(2, 0b11).u(2, 0b01).u(12, 0); // the first with profile and level, the second with level
        bits.u(32, 1).u(32, 2).u(32, 3);
        bits.u(8, 60);
        bits.ue(15).ue(1).ue(1288).ue(728);
        bits.u(1, 1).ue(1).ue(3).ue(2).ue(2).ue(0).ue(0); // crop 8 x 8, 8 bit
        bits.ue(4).u(1, 1);
        for _ in 0..9 {
            bits.ue(2);
        }
        bits.ue(0).ue(2).ue(0).ue(3).ue(1).ue(1);
        bits.u(1, 1).u(1, 1); // scaling list data: each predicted, but one of 16 and one of 64 with its DC
        bits.u(1, 1);
        for _ in 0..16 {
            bits.se(-4);
        }
        bits.u(1, 0).ue(0);
        for _ in 0..10 {
            bits.u(1, 0).ue(1);
        }
        bits.u(1, 1).se(9);
        for _ in 0..64 {
            bits.se(1);
        }
        for _ in 0..7 {
            bits.u(1, 0).ue(0);
        }
        bits.u(2, 0b11).u(1, 1).u(8, 0x77).ue(0).ue(2).u(1, 1); // PCM
        bits.ue(3); // reference sets: two pictures, three out of the three possible, explicit again
        bits.ue(1).ue(1).ue(0).u(1, 1).ue(3).u(1, 0);
        bits.u(1, 1).u(1, 1).ue(0).u(1, 1).u(2, 0b01).u(1, 1);
        bits.u(1, 1)
            .u(1, 0)
            .ue(2)
            .u(1, 1)
            .u(2, 0b00)
            .u(2, 0b01)
            .u(1, 1);
        bits.u(1, 1).ue(2).u(8, 1).u(1, 1).u(8, 2).u(1, 0); // long-term pictures
        bits.u(2, 0).u(1, 1);
        bits.u(4, 0).u(3, 0).u(1, 1).ue(1).ue(1).ue(1).ue(1); // VUI with a display window
        bits.u(1, 1).u(32, 1001).u(32, 24_000).u(1, 0);
        let sps = Sps::parse(&bits.nal(&[0x42, 0x01])).expect("an SPS");
        let expected = Sps {
            id: 15,
            vps_id: 5,
            temporal_layers: 3,
            temporal_id_nested: false,
            profile_tier_level: [1, 0x60, 0, 0, 0, 0x90, 0, 0, 0, 0, 0, 93],
            sample_format: Some(SampleFormat {
                chroma_format_idc: 1,
                bit_depth_luma_minus8: 0,
                bit_depth_chroma_minus8: 0,
            }),
            dimensions: Some(Dimensions {
                width: 1280,
                height: 720,
            }),
            frame_rate: FrameRate::new(24_000, 1001),
        };
        assert_eq!(sps, expected);
    }

    #[test]
    fn a_cut_sps_never_panics_and_keeps_what_was_read() {
        let whole = hex(SPS[0].0);
        for len in 0..whole.len() {
            let sps = Sps::parse(&whole[..len]);
            assert_eq!(sps.is_some(), len >= 19, "{len} bytes");
            assert_eq!(
                sps.is_some_and(|sps| sps.dimensions.is_some()),
                len >= 24,
                "{len} bytes"
            );
        }
    }

    #[test]
    fn hvcc_has_the_profile_without_emulation_prevention_and_the_arrays_in_order() {
        let sps_bytes = hex(
            "420101016000000300b0000003000003005da003c08010e5965ba4a4c2f0168080000003008000000c84",
        );
        let sps = Sps::parse(&sps_bytes).expect("an SPS");
        let vps = hex("40010c01ffff");
        let (pps_0, pps_1) = (hex("4401c1"), hex("440152"));
        let record = hvcc(
            &sps,
            [&*vps].into_iter(),
            [&*sps_bytes].into_iter(),
            [&*pps_0, &*pps_1].into_iter(),
        );
        let head = hex("010160000000b000000000005df000fcfdf8f800000f03");
        let arrays = [
            &hex("2000010006")[..],
            &vps,
            &hex("210001002a"),
            &sps_bytes,
            &hex("2200020003"),
            &pps_0,
            &hex("0003"),
            &pps_1,
        ];
        assert_eq!(record, [&head[..], &arrays.concat()].concat());
    }
}
