//! What the encoder is told: the controls that matter for a stream of fragments, and what the driver made of them.

use std::time::Duration;

use super::abi::{Interval, Kernel, Picture};
use super::control::{self, id};
use super::{Options, Profile};
use crate::detail;
use crate::frame::Codec;

/// From key frame to key frame, where nothing else is asked for.
pub(super) const DEFAULT_GOP: Duration = Duration::from_secs(2);

/// V4L2_MPEG_VIDEO_BITRATE_MODE_CBR.
const CONSTANT_BITRATE: i32 = 1;

// What people ask for.
const BITRATE: &str = "bitrate";
const INTERVAL: &str = "key-frame interval";
const PROFILE: &str = "profile";

/// The controls that `kvsProducerApp devices` shows.
pub(super) const SHOWN: [(&str, u32); 11] = [
    ("bitrate", id::BITRATE),
    ("bitrate_mode", id::BITRATE_MODE),
    ("gop_size", id::GOP_SIZE),
    ("h264_i_period", id::H264_I_PERIOD),
    ("b_frames", id::B_FRAMES),
    ("repeat_sequence_header", id::REPEAT_SEQ_HEADER),
    ("force_key_frame", id::FORCE_KEY_FRAME),
    ("h264_profile", id::H264_PROFILE),
    ("h264_level", id::H264_LEVEL),
    ("hevc_profile", id::HEVC_PROFILE),
    ("hevc_level", id::HEVC_LEVEL),
];

/// One thing to be set.
#[derive(Debug)]
struct Setting {
    /// For people.
    name: &'static str,
    /// A value in their words.
    say: fn(i32) -> String,
    /// The controls for it; drivers have one or the other.
    ids: &'static [u32],
    /// The value, and what else would do where the driver refuses it.
    values: Vec<i32>,
    /// Whether a larger value than this is fine too.
    at_least: bool,
    /// Whether somebody asked for it: then what comes of it matters to them.
    asked: bool,
}

/// What is to be set, in order: the level last, because drivers check it against the others.
fn settings(
    options: &Options,
    codec: Codec,
    picture: Picture,
    interval: Option<Interval>,
) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut set = |name, ids, values, at_least, asked| {
        settings.push(Setting {
            name,
            say: match (name, codec) {
                (INTERVAL, _) => |frames| format!("{frames} frames"),
                (BITRATE, _) => |bits| format!("{bits} bit/s"),
                (PROFILE, Codec::H264) => h264_profile,
                _ => |value| value.to_string(),
            },
            ids,
            values,
            at_least,
            asked,
        });
    };
    if let Some(bitrate) = options.bitrate {
        let bitrate = i32::try_from(bitrate).unwrap_or(i32::MAX);
        let mode = vec![CONSTANT_BITRATE];
        set("bitrate mode", &[id::BITRATE_MODE], mode, false, false);
        set(BITRATE, &[id::BITRATE], vec![bitrate], false, true);
    }
    let gop = options.gop.unwrap_or(DEFAULT_GOP);
    let frames = frames_in(gop, interval);
    let ids: &[u32] = match codec {
        Codec::H264 => &[id::H264_I_PERIOD, id::GOP_SIZE],
        Codec::H265 => &[id::GOP_SIZE],
    };
    let asked = options.gop.is_some();
    set(INTERVAL, ids, vec![frames], false, asked);
    // A block of Matroska for KVS is one frame in decoding order, and its time must rise.
    set("B-frames", &[id::B_FRAMES], vec![0], false, false);
    // So that each fragment can be decoded by itself.
    let repeat: &[u32] = &[id::REPEAT_SEQ_HEADER];
    set("repeated parameter sets", repeat, vec![1], false, false);
    let (profile, level): (&[u32], &[u32]) = match codec {
        Codec::H264 => (&[id::H264_PROFILE], &[id::H264_LEVEL]),
        Codec::H265 => (&[id::HEVC_PROFILE], &[id::HEVC_LEVEL]),
    };
    if let Some(wanted) = options.profile {
        let values = profile_values(wanted, codec);
        set(PROFILE, profile, values, false, true);
    }
    if let Some(least) = least_level(codec, picture, interval) {
        set("level", level, vec![least], true, false);
    }
    settings
}

/// Frames in a group of pictures of this length, at least one.
fn frames_in(gop: Duration, interval: Option<Interval>) -> i32 {
    // A driver that does not tell its rate most likely does 30 frames a second.
    let interval = interval.map_or(Duration::from_secs(1) / 30, Interval::duration);
    let frames = (gop.as_secs_f64() / interval.as_secs_f64()).round();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the cast saturates, and the control's own bounds are narrower"
    )]
    let frames = frames as i32;
    frames.max(1)
}

/// Entries of the profile's menu, the preferred one first.
fn profile_values(profile: Profile, codec: Codec) -> Vec<i32> {
    match (codec, profile) {
        // V4L2_MPEG_VIDEO_H264_PROFILE_CONSTRAINED_BASELINE, which is what encoders mean by _BASELINE.
        (Codec::H264, Profile::Baseline) => vec![1, 0],
        (Codec::H264, Profile::Main) => vec![2],
        (Codec::H264, Profile::High) => vec![4],
        // V4L2_MPEG_VIDEO_HEVC_PROFILE_MAIN is all there is for 8 bits a sample.
        (Codec::H265, _) => vec![0],
    }
}

/// The word for an entry of H.264's menu of profiles.
fn h264_profile(entry: i32) -> String {
    match entry {
        0 => "baseline".to_owned(),
        1 => "constrained baseline".to_owned(),
        2 => "main".to_owned(),
        3 => "extended".to_owned(),
        4 => "high".to_owned(),
        _ => format!("number {entry} of V4L2's"),
    }
}

/// The lowest entry of the level's menu that allows this size and rate; `None` beyond the tables.
fn least_level(codec: Codec, picture: Picture, interval: Option<Interval>) -> Option<i32> {
    /// Macroblocks a second and a frame, and the menu's entry (ITU-T H.264, table A-1).
    const H264: [(u64, u64, i32); 12] = [
        (1_485, 99, 0),
        (6_000, 396, 3),
        (11_880, 396, 4),
        (20_250, 1_620, 7),
        (40_500, 1_620, 8),
        (108_000, 3_600, 9),
        (216_000, 5_120, 10),
        (245_760, 8_192, 11),
        (522_240, 8_704, 13),
        (589_824, 22_080, 14),
        (983_040, 36_864, 15),
        (2_073_600, 36_864, 16),
    ];
    /// Luma samples a second and a picture, and the menu's entry (ITU-T H.265, tables A.8 and A.9).
    const H265: [(u64, u64, i32); 10] = [
        (552_960, 36_864, 0),
        (3_686_400, 122_880, 1),
        (7_372_800, 245_760, 2),
        (16_588_800, 552_960, 3),
        (33_177_600, 983_040, 4),
        (66_846_720, 2_228_224, 5),
        (133_693_440, 2_228_224, 6),
        (267_386_880, 8_912_896, 7),
        (534_773_760, 8_912_896, 8),
        (1_069_547_520, 8_912_896, 9),
    ];
    let (width, height) = (u64::from(picture.width), u64::from(picture.height));
    let (table, size): (&[_], _) = match codec {
        Codec::H264 => (&H264, width.div_ceil(16) * height.div_ceil(16)),
        Codec::H265 => (&H265, width * height),
    };
    let (numerator, denominator) = interval.map_or((1, 30), |interval| {
        (interval.numerator.into(), interval.denominator.into())
    });
    let rate = (size * denominator).div_ceil(numerator);
    table
        .iter()
        .find(|(most_rate, most_size, _)| rate <= *most_rate && size <= *most_size)
        .map(|(_, _, entry)| *entry)
}

/// Sets what is asked for and what a stream of fragments needs. Returns, for people, what was asked for and is otherwise.
pub(super) fn apply(
    kernel: &impl Kernel,
    options: &Options,
    codec: Codec,
    picture: Picture,
    interval: Option<Interval>,
) -> Vec<String> {
    settings(options, codec, picture, interval)
        .iter()
        .filter_map(|setting| {
            let remark = set(kernel, setting)?;
            detail!(setting = setting.name, remark, asked = setting.asked);
            setting.asked.then_some(remark)
        })
        .collect()
}

/// Sets one; a remark when the driver has it otherwise in the end.
fn set(kernel: &impl Kernel, setting: &Setting) -> Option<String> {
    let Setting { name, say, .. } = *setting;
    let wanted = setting.values[0];
    let mut result = None;
    for &id in setting.ids {
        let Some(control) = control::query(kernel, id) else {
            continue;
        };
        if setting.at_least && control::get(kernel, id).is_ok_and(|now| now >= wanted) {
            return None;
        }
        let taken = !control.read_only
            && setting
                .values
                .iter()
                .any(|value| control::set(kernel, id, control.fit(*value)).is_ok());
        let got = control::get(kernel, id).ok();
        match got {
            Some(got) if setting.values.contains(&got) => return None,
            // What cannot be read back was taken, or it was not.
            None if taken => return None,
            Some(got) => result = Some(format!("{name} is {}, not {}", say(got), say(wanted))),
            None => result = Some(format!("{name}: {} was refused", say(wanted))),
        }
    }
    Some(result.unwrap_or_else(|| format!("{name} cannot be set")))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use v4l::FourCC;

    use super::super::abi::number;
    use super::super::fake::Fake;
    use super::*;

    const RATE: Interval = Interval {
        numerator: 1,
        denominator: 25,
    };

    fn picture(width: u32, height: u32) -> Picture {
        Picture {
            fourcc: FourCC::new(b"H264"),
            width,
            height,
            longest_frame: 0,
        }
    }

    fn apply_to(fake: &Fake, options: &Options) -> Vec<String> {
        apply(fake, options, Codec::H264, picture(1280, 720), Some(RATE))
    }

    #[test]
    fn an_encoder_is_told_what_a_stream_of_fragments_needs() {
        let fake = Fake::encoder();
        assert_eq!(apply_to(&fake, &Options::default()), [""; 0]);
        assert_eq!(fake.control(id::H264_I_PERIOD), 50);
        assert_eq!(fake.control(id::B_FRAMES), 0);
        assert_eq!(fake.control(id::REPEAT_SEQ_HEADER), 1);
        // 3.1 is what 720p at 25/s takes; the encoder stood at 3.0.
        assert_eq!(fake.control(id::H264_LEVEL), 9);
        // Not asked for, and so left alone.
        assert_eq!(fake.control(id::BITRATE), 10_000_000);
        assert_eq!(fake.control(id::H264_PROFILE), 4);
    }

    #[test]
    fn a_level_that_is_high_enough_stays() {
        let fake = Fake::encoder();
        fake.change_control(id::H264_LEVEL, |control| control.value = 11);
        apply_to(&fake, &Options::default());
        assert_eq!(fake.control(id::H264_LEVEL), 11);
    }

    #[test]
    fn what_is_asked_for_is_set() {
        let fake = Fake::encoder();
        let options = Options {
            bitrate: Some(2_000_000),
            gop: Some(Duration::from_secs(4)),
            profile: Some(Profile::Baseline),
            ..Options::default()
        };
        assert_eq!(apply_to(&fake, &options), [""; 0]);
        assert_eq!(fake.control(id::BITRATE), 2_000_000);
        assert_eq!(fake.control(id::BITRATE_MODE), CONSTANT_BITRATE);
        assert_eq!(fake.control(id::H264_I_PERIOD), 100);
        assert_eq!(fake.control(id::H264_PROFILE), 1);
    }

    #[test]
    fn what_the_driver_clamps_ignores_refuses_or_lacks_is_said() {
        let options = Options {
            bitrate: Some(90_000_000),
            gop: Some(Duration::from_secs(1)),
            profile: Some(Profile::Main),
            ..Options::default()
        };
        let clamps = Fake::encoder();
        let said = apply_to(&clamps, &options);
        assert_eq!(said, ["bitrate is 25000000 bit/s, not 90000000 bit/s"]);

        let mut ignores = Fake::encoder();
        ignores.obeys = false;
        let said = apply_to(&ignores, &options).join("; ");
        assert!(
            said.contains("bitrate is 10000000 bit/s, not 90000000 bit/s"),
            "{said}"
        );
        assert!(
            said.contains("key-frame interval is 60 frames, not 25 frames"),
            "{said}"
        );
        assert!(said.contains("profile is high, not main"), "{said}");

        let refuses = Fake::encoder().refusing(number::S_CTRL, Errno::BUSY);
        let said = apply_to(&refuses, &options).join("; ");
        assert!(said.contains("profile is high, not main"), "{said}");
        let mute = Fake::encoder()
            .refusing(number::S_CTRL, Errno::BUSY)
            .refusing(number::G_CTRL, Errno::ACCESS);
        let said = apply_to(&mute, &options).join("; ");
        assert!(said.contains("profile: main was refused"), "{said}");

        let said = apply_to(&Fake::default(), &options).join("; ");
        assert_eq!(
            said,
            "bitrate cannot be set; key-frame interval cannot be set; profile cannot be set"
        );
        assert_eq!(apply_to(&Fake::default(), &Options::default()), [""; 0]);
    }

    #[test]
    fn controls_of_odd_types_are_left_alone() {
        let fake = Fake::encoder();
        for (kind, id) in [
            (5, id::BITRATE),
            (0x0100, id::H264_PROFILE),
            (u32::MAX, id::B_FRAMES),
        ] {
            fake.change_control(id, |control| control.kind = kind);
        }
        let options = Options {
            bitrate: Some(1_000_000),
            profile: Some(Profile::High),
            ..Options::default()
        };
        let said = apply_to(&fake, &options).join("; ");
        assert_eq!(said, "bitrate cannot be set; profile cannot be set");
        assert_eq!(fake.control(id::BITRATE), 10_000_000);
    }

    #[test]
    fn levels_are_those_of_the_standards() {
        let level = |codec, width, height, denominator| {
            let interval = Interval {
                numerator: 1,
                denominator,
            };
            least_level(codec, picture(width, height), Some(interval))
        };
        assert_eq!(level(Codec::H264, 176, 144, 15), Some(0)); // 1.0
        assert_eq!(level(Codec::H264, 640, 480, 30), Some(8)); // 3.0
        assert_eq!(level(Codec::H264, 1280, 720, 30), Some(9)); // 3.1
        assert_eq!(level(Codec::H264, 1920, 1080, 30), Some(11)); // 4.0
        assert_eq!(level(Codec::H264, 1920, 1080, 60), Some(13)); // 4.2
        assert_eq!(level(Codec::H264, 3840, 2160, 30), Some(15)); // 5.1
        assert_eq!(level(Codec::H265, 1920, 1080, 30), Some(5)); // 4
        assert_eq!(level(Codec::H265, 3840, 2160, 60), Some(8)); // 5.1
        assert_eq!(level(Codec::H264, 65_000, 65_000, 60), None);
    }

    #[test]
    fn a_group_of_pictures_is_counted_in_frames() {
        let ntsc = Interval {
            numerator: 1001,
            denominator: 30_000,
        };
        assert_eq!(frames_in(Duration::from_secs(2), Some(ntsc)), 60);
        assert_eq!(frames_in(Duration::from_secs(2), None), 60);
        assert_eq!(frames_in(Duration::from_millis(1), Some(RATE)), 1);
    }
}
