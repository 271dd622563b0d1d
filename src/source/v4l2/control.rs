//! Single controls: the encoder's settings, each by its id. Enumerating them is never needed, and nothing that a driver
//! says of its controls can do harm.

use std::io;
use std::mem::{offset_of, size_of};

use rustix::ioctl::Direction;
use v4l::v4l_sys::{v4l2_control, v4l2_queryctrl};

use super::abi::{Call, Kernel, number};

/// From `linux/v4l2-controls.h`.
pub(super) mod id {
    const CODEC_BASE: u32 = 0x0099_0900;
    pub const B_FRAMES: u32 = CODEC_BASE + 202;
    pub const GOP_SIZE: u32 = CODEC_BASE + 203;
    pub const BITRATE_MODE: u32 = CODEC_BASE + 206;
    pub const BITRATE: u32 = CODEC_BASE + 207;
    pub const REPEAT_SEQ_HEADER: u32 = CODEC_BASE + 226;
    pub const FORCE_KEY_FRAME: u32 = CODEC_BASE + 229;
    pub const H264_I_PERIOD: u32 = CODEC_BASE + 358;
    pub const H264_LEVEL: u32 = CODEC_BASE + 359;
    pub const H264_PROFILE: u32 = CODEC_BASE + 363;
    pub const HEVC_PROFILE: u32 = CODEC_BASE + 615;
    pub const HEVC_LEVEL: u32 = CODEC_BASE + 616;
}

// `enum v4l2_ctrl_type`.
const INTEGER: u32 = 1;
const BOOLEAN: u32 = 2;
const MENU: u32 = 3;
const BUTTON: u32 = 4;
const INTEGER_MENU: u32 = 9;

// `v4l2_queryctrl.flags`.
const DISABLED: u32 = 0x0001;
const READ_ONLY: u32 = 0x0004;

/// What a control takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) least: i32,
    pub(super) most: i32,
    /// At least 1.
    pub(super) step: i32,
    pub(super) default: i32,
    pub(super) read_only: bool,
}

impl Control {
    /// The value nearest to `wanted` that the control says it takes.
    pub(super) fn fit(&self, wanted: i32) -> i32 {
        // A driver that has its ends the wrong way round.
        let (least, most) = (self.least.min(self.most), self.most.max(self.least));
        let value = wanted.clamp(least, most);
        let beyond = (i64::from(value) - i64::from(least)) % i64::from(self.step);
        let fitted = i64::from(value) - beyond;
        i32::try_from(fitted).unwrap_or(value)
    }
}

/// VIDIOC_QUERYCTRL. `None` when the driver has no such control, or one of a type that has no single number.
pub(super) fn query(kernel: &impl Kernel, id: u32) -> Option<Control> {
    let mut call = Call::new(
        Direction::ReadWrite,
        number::QUERYCTRL,
        size_of::<v4l2_queryctrl>(),
    );
    call.put_u32(offset_of!(v4l2_queryctrl, id), id);
    kernel.call(&mut call).ok()?;
    let flags = call.u32(offset_of!(v4l2_queryctrl, flags));
    let kind = call.u32(offset_of!(v4l2_queryctrl, type_));
    let known = matches!(kind, INTEGER | BOOLEAN | MENU | BUTTON | INTEGER_MENU);
    let number = |at| call.u32(at).cast_signed();
    (known && flags & DISABLED == 0).then(|| Control {
        least: number(offset_of!(v4l2_queryctrl, minimum)),
        most: number(offset_of!(v4l2_queryctrl, maximum)),
        step: number(offset_of!(v4l2_queryctrl, step)).max(1),
        default: number(offset_of!(v4l2_queryctrl, default_value)),
        read_only: flags & READ_ONLY != 0,
    })
}

/// VIDIOC_G_CTRL.
pub(super) fn get(kernel: &impl Kernel, id: u32) -> io::Result<i32> {
    let mut call = control(number::G_CTRL, id, 0);
    kernel.call(&mut call)?;
    Ok(call.u32(offset_of!(v4l2_control, value)).cast_signed())
}

/// VIDIOC_S_CTRL, which the kernel translates for drivers that know extended controls only. It does not say what became
/// of the value.
pub(super) fn set(kernel: &impl Kernel, id: u32, value: i32) -> io::Result<()> {
    kernel.call(&mut control(number::S_CTRL, id, value))
}

fn control(number: u8, id: u32, value: i32) -> Call {
    let mut call = Call::new(Direction::ReadWrite, number, size_of::<v4l2_control>());
    call.put_u32(offset_of!(v4l2_control, id), id);
    call.put_u32(offset_of!(v4l2_control, value), value.cast_unsigned());
    call
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_fitted_into_what_the_control_takes() {
        let control = Control {
            least: 25_000,
            most: 10_000_000,
            step: 25_000,
            default: 0,
            read_only: false,
        };
        assert_eq!(control.fit(1_000_000), 1_000_000);
        assert_eq!(control.fit(1_010_000), 1_000_000);
        assert_eq!(control.fit(0), 25_000);
        assert_eq!(control.fit(i32::MAX), 10_000_000);
        let odd = Control {
            least: 5,
            most: i32::MIN,
            step: i32::MAX,
            ..control
        };
        assert_eq!(odd.fit(7), i32::MIN + i32::MAX);
    }
}
