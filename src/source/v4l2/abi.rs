//! What the kernel is asked, as bytes: ioctl numbers, structs, and the [`Kernel`] that answers. The layouts of
//! `v4l2_buffer` are in `layout`, the controls in `control`.
//!
//! The crate `v4l` has these calls too, but it unwraps what drivers report (a card name that the kernel cut in the middle
//! of a character, a colour space that it has not heard of), and it knows `v4l2_buffer` in one layout only. Here nothing
//! that a driver says can end the process, and a scripted kernel can stand in for a device.

use std::fmt;
use std::io;
use std::mem::{offset_of, size_of};
use std::ops::Deref;
use std::ptr;
use std::time::Duration;

use rustix::ioctl::{Direction, Opcode, opcode};
use v4l::FourCC;
use v4l::capability::Flags;
use v4l::v4l_sys::{
    V4L2_CAP_DEVICE_CAPS, v4l2_capability, v4l2_captureparm, v4l2_fmtdesc, v4l2_format, v4l2_fract,
    v4l2_frmivalenum, v4l2_frmsizeenum, v4l2_pix_format, v4l2_pix_format_mplane,
    v4l2_plane_pix_format, v4l2_requestbuffers, v4l2_streamparm,
};

use super::layout::{Layout, Plane};
use crate::source::Wait;

pub(super) const MEMORY_MMAP: u32 = 1;
/// `v4l2_captureparm.capability`: the frame interval can be set.
const TIMEPERFRAME: u32 = 0x1000;

/// The size of the largest argument, `v4l2_format` on a 64-bit machine.
const LARGEST: usize = 208;

/// The numbers of the calls, from `linux/videodev2.h`.
pub(super) mod number {
    pub const QUERYCAP: u8 = 0;
    pub const ENUM_FMT: u8 = 2;
    pub const G_FMT: u8 = 4;
    pub const S_FMT: u8 = 5;
    pub const REQBUFS: u8 = 8;
    pub const QUERYBUF: u8 = 9;
    pub const QBUF: u8 = 15;
    pub const DQBUF: u8 = 17;
    pub const STREAMON: u8 = 18;
    pub const STREAMOFF: u8 = 19;
    pub const G_PARM: u8 = 21;
    pub const S_PARM: u8 = 22;
    pub const G_CTRL: u8 = 27;
    pub const S_CTRL: u8 = 28;
    pub const QUERYCTRL: u8 = 36;
    pub const ENUM_FRAMESIZES: u8 = 74;
    pub const ENUM_FRAMEINTERVALS: u8 = 75;
}

/// An open device node: the driver behind it, or a script in the tests.
pub(super) trait Kernel: Send {
    /// A buffer of the driver in our address space.
    type Map: Deref<Target = [u8]> + Send;

    /// The layouts of `v4l2_buffer` that this kernel may know, the likely one first.
    const LAYOUTS: &'static [Layout];

    /// `ioctl(2)`. Calls that a signal interrupted are repeated.
    fn call(&self, call: &mut Call) -> io::Result<()>;

    /// `mmap(2)` of a buffer, for reading.
    fn map(&self, offset: u32, length: u32) -> io::Result<Self::Map>;

    /// `poll(2)` for a filled buffer.
    fn wait(&self, wait: Wait<'_>) -> io::Result<Readiness>;
}

/// What `poll(2)` said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// The time is over, or a signal came.
    Nothing,
    /// A buffer can be taken.
    Buffer,
    /// POLLERR, POLLHUP or POLLNVAL: there will be no buffer. Some drivers set POLLIN beside them.
    Failed,
}

/// How a driver wants to be spoken to about pictures. Encoded video has one plane either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Planes {
    /// VIDEO_CAPTURE.
    Single,
    /// VIDEO_CAPTURE_MPLANE: most encoders of camera chips.
    Multi,
}

impl Planes {
    /// What a node with these abilities wants. One that can do both is spoken to in the simpler way.
    pub(super) fn of(flags: Flags) -> Self {
        if flags.contains(Flags::VIDEO_CAPTURE_MPLANE) && !flags.contains(Flags::VIDEO_CAPTURE) {
            Self::Multi
        } else {
            Self::Single
        }
    }

    /// `enum v4l2_buf_type`.
    pub(super) fn buffer_type(self) -> u32 {
        match self {
            Self::Single => 1,
            Self::Multi => 9,
        }
    }
}

/// One ioctl with its argument.
///
/// Made in this module's files only. The one address that the kernel follows in any of the arguments is that of `plane`,
/// which is a part of the call. That is what makes [`Kernel::call`] safe for any of them.
pub(super) struct Call {
    opcode: Opcode,
    argument: Argument,
    /// The plane of a multi-planar buffer, and where in the argument its address belongs.
    plane: Option<(usize, Plane)>,
}

/// Aligned as the strictest of the structs.
#[repr(C, align(8))]
struct Argument([u8; LARGEST]);

impl Call {
    pub(super) fn new(direction: Direction, number: u8, size: usize) -> Self {
        assert!(size <= LARGEST, "an argument is larger than the largest");
        Self {
            opcode: opcode::from_components(direction, b'V', number, size),
            argument: Argument([0; LARGEST]),
            plane: None,
        }
    }

    /// A call about something that is named by the type of its buffers.
    fn about(planes: Planes, type_at: usize, number: u8, size: usize) -> Self {
        let mut call = Self::new(Direction::ReadWrite, number, size);
        call.put_u32(type_at, planes.buffer_type());
        call
    }

    /// Gives the call a plane, whose address the kernel will find at `at`.
    pub(super) fn with_plane(mut self, at: usize) -> Self {
        self.plane = Some((at, Plane::default()));
        self
    }

    /// The plane of a multi-planar buffer.
    pub(super) fn plane(&mut self) -> Option<&mut Plane> {
        self.plane.as_mut().map(|(_, plane)| plane)
    }

    /// Writes the plane's address to its place. It holds until the call is moved.
    pub(super) fn point_at_plane(&mut self) {
        if let Some((at, plane)) = &mut self.plane {
            let address = ptr::from_mut(plane).expose_provenance().to_ne_bytes();
            self.argument.0[*at..*at + address.len()].copy_from_slice(&address);
        }
    }

    /// The low byte of the ioctl's number, one of [`number`].
    #[cfg(test)]
    pub(super) fn number(&self) -> u8 {
        self.opcode.to_le_bytes()[0]
    }

    /// The ioctl's number; the size of the argument is a part of it.
    pub(super) fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The argument, at least as long as the opcode says.
    pub(super) fn argument(&mut self) -> &mut [u8; LARGEST] {
        &mut self.argument.0
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes(at))
    }

    pub(super) fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_ne_bytes());
    }

    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.argument.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.argument.0[at..at + N]
            .try_into()
            .expect("the slice has N bytes")
    }

    /// A string that ends at a zero byte or at the field's end, where the kernel may have cut a character in two.
    pub(super) fn text(&self, at: usize, length: usize) -> String {
        let field = &self.argument.0[at..at + length];
        let end = field
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end])
            .trim_end_matches(char::REPLACEMENT_CHARACTER)
            .replace(char::is_control, " ")
            .trim()
            .to_owned()
    }
}

/// Who the device is and what its node can do.
#[derive(Debug, Clone)]
pub(super) struct Capabilities {
    /// "uvcvideo".
    pub(super) driver: String,
    /// For people: "HD Pro Webcam C920".
    pub(super) card: String,
    /// Where it is plugged in: "usb-0000:00:14.0-2".
    pub(super) bus: String,
    /// What this node can do, where the driver tells the node's abilities from the whole device's.
    pub(super) flags: Flags,
}

/// VIDIOC_QUERYCAP.
pub(super) fn capabilities(kernel: &impl Kernel) -> io::Result<Capabilities> {
    let mut call = Call::new(
        Direction::Read,
        number::QUERYCAP,
        size_of::<v4l2_capability>(),
    );
    kernel.call(&mut call)?;
    let device = call.u32(offset_of!(v4l2_capability, capabilities));
    let node = call.u32(offset_of!(v4l2_capability, device_caps));
    Ok(Capabilities {
        driver: call.text(offset_of!(v4l2_capability, driver), 16),
        card: call.text(offset_of!(v4l2_capability, card), 32),
        bus: call.text(offset_of!(v4l2_capability, bus_info), 32),
        flags: Flags::from(if device & V4L2_CAP_DEVICE_CAPS == 0 {
            device
        } else {
            node
        }),
    })
}

/// Beyond what any driver lists; one that never says EINVAL must not hold us.
const LONGEST_LIST: u32 = 256;

/// Asks for entry 0, 1, 2 .. of a list until the driver says EINVAL, which is how it ends.
fn list<T>(mut entry: impl FnMut(u32) -> io::Result<T>) -> io::Result<Vec<T>> {
    let mut entries = Vec::new();
    for index in 0..LONGEST_LIST {
        match entry(index) {
            Ok(entry) => entries.push(entry),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    Ok(entries)
}

/// VIDIOC_ENUM_FMT: what the node can capture, in the driver's order.
pub(super) fn formats(kernel: &impl Kernel, planes: Planes) -> io::Result<Vec<FourCC>> {
    list(|index| {
        let mut call = Call::about(
            planes,
            offset_of!(v4l2_fmtdesc, type_),
            number::ENUM_FMT,
            size_of::<v4l2_fmtdesc>(),
        );
        call.put_u32(offset_of!(v4l2_fmtdesc, index), index);
        kernel.call(&mut call)?;
        Ok(FourCC::from(
            call.u32(offset_of!(v4l2_fmtdesc, pixelformat)),
        ))
    })
}

/// The sizes of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Exactly {
        width: u32,
        height: u32,
    },
    /// Whatever lies between, in steps.
    Between {
        least: (u32, u32),
        most: (u32, u32),
    },
}

/// The discriminant of `v4l2_frmsizeenum` and `v4l2_frmivalenum`.
const DISCRETE: u32 = 1;

/// VIDIOC_ENUM_FRAMESIZES. Empty from drivers that do not say.
pub(super) fn sizes(kernel: &impl Kernel, fourcc: FourCC) -> Vec<Size> {
    let mut through = false;
    let sizes = list(|index| {
        // Anything but single sizes is one entry.
        if through {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut call = Call::new(
            Direction::ReadWrite,
            number::ENUM_FRAMESIZES,
            size_of::<v4l2_frmsizeenum>(),
        );
        call.put_u32(offset_of!(v4l2_frmsizeenum, index), index);
        call.put_u32(offset_of!(v4l2_frmsizeenum, pixel_format), fourcc.into());
        kernel.call(&mut call)?;
        let field = |nth: usize| call.u32(offset_of!(v4l2_frmsizeenum, __bindgen_anon_1) + 4 * nth);
        through = call.u32(offset_of!(v4l2_frmsizeenum, type_)) != DISCRETE;
        Ok(if through {
            // The least and the most of each, and the steps.
            Size::Between {
                least: (field(0), field(3)),
                most: (field(1), field(4)),
            }
        } else {
            Size::Exactly {
                width: field(0),
                height: field(1),
            }
        })
    });
    sizes.unwrap_or_default()
}

/// VIDIOC_ENUM_FRAMEINTERVALS; of a range its two ends. Empty from drivers that do not say.
pub(super) fn intervals(
    kernel: &impl Kernel,
    fourcc: FourCC,
    (width, height): (u32, u32),
) -> Vec<Interval> {
    let mut through = false;
    let intervals = list(|index| {
        if through {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut call = Call::new(
            Direction::ReadWrite,
            number::ENUM_FRAMEINTERVALS,
            size_of::<v4l2_frmivalenum>(),
        );
        call.put_u32(offset_of!(v4l2_frmivalenum, index), index);
        call.put_u32(offset_of!(v4l2_frmivalenum, pixel_format), fourcc.into());
        call.put_u32(offset_of!(v4l2_frmivalenum, width), width);
        call.put_u32(offset_of!(v4l2_frmivalenum, height), height);
        kernel.call(&mut call)?;
        let at = offset_of!(v4l2_frmivalenum, __bindgen_anon_1);
        through = call.u32(offset_of!(v4l2_frmivalenum, type_)) != DISCRETE;
        let ends = if through { 2 } else { 1 };
        Ok((0..ends)
            .filter_map(|end| Interval::read(&call, at + end * size_of::<v4l2_fract>()))
            .collect::<Vec<_>>())
    });
    intervals.unwrap_or_default().concat()
}

/// What the driver delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Picture {
    pub(super) fourcc: FourCC,
    pub(super) width: u32,
    pub(super) height: u32,
    /// The longest frame that fits into a buffer, in bytes. The driver's choice: not sent by [`set_picture`].
    pub(super) longest_frame: u32,
}

/// Where the fields of a picture lie within `v4l2_format`.
struct PictureFields {
    width: usize,
    height: usize,
    fourcc: usize,
    longest_frame: usize,
}

impl Planes {
    fn picture_fields(self) -> PictureFields {
        let at = offset_of!(v4l2_format, fmt);
        match self {
            Self::Single => PictureFields {
                width: at + offset_of!(v4l2_pix_format, width),
                height: at + offset_of!(v4l2_pix_format, height),
                fourcc: at + offset_of!(v4l2_pix_format, pixelformat),
                longest_frame: at + offset_of!(v4l2_pix_format, sizeimage),
            },
            Self::Multi => PictureFields {
                width: at + offset_of!(v4l2_pix_format_mplane, width),
                height: at + offset_of!(v4l2_pix_format_mplane, height),
                fourcc: at + offset_of!(v4l2_pix_format_mplane, pixelformat),
                longest_frame: at
                    + offset_of!(v4l2_pix_format_mplane, plane_fmt)
                    + offset_of!(v4l2_plane_pix_format, sizeimage),
            },
        }
    }

    /// Where the number of planes is, for the multi-planar way.
    fn plane_count(self) -> Option<usize> {
        let at = offset_of!(v4l2_format, fmt) + offset_of!(v4l2_pix_format_mplane, num_planes);
        (self == Self::Multi).then_some(at)
    }
}

impl Picture {
    pub(super) fn read(call: &Call, planes: Planes) -> Self {
        let fields = planes.picture_fields();
        Self {
            fourcc: FourCC::from(call.u32(fields.fourcc)),
            width: call.u32(fields.width),
            height: call.u32(fields.height),
            longest_frame: call.u32(fields.longest_frame),
        }
    }

    pub(super) fn write(&self, call: &mut Call, planes: Planes) {
        let fields = planes.picture_fields();
        call.put_u32(fields.fourcc, self.fourcc.into());
        call.put_u32(fields.width, self.width);
        call.put_u32(fields.height, self.height);
        call.put_u32(fields.longest_frame, self.longest_frame);
        if let Some(at) = planes.plane_count() {
            call.put(at, &[1]);
        }
    }
}

fn about_format(planes: Planes, number: u8) -> Call {
    let type_at = offset_of!(v4l2_format, type_);
    Call::about(planes, type_at, number, size_of::<v4l2_format>())
}

/// VIDIOC_G_FMT.
pub(super) fn picture(kernel: &impl Kernel, planes: Planes) -> io::Result<Picture> {
    let mut call = about_format(planes, number::G_FMT);
    kernel.call(&mut call)?;
    Ok(Picture::read(&call, planes))
}

/// VIDIOC_S_FMT. What comes back is what the driver made of it, which may be anything.
pub(super) fn set_picture(
    kernel: &impl Kernel,
    planes: Planes,
    picture: Picture,
) -> io::Result<Picture> {
    let mut call = about_format(planes, number::S_FMT);
    let wanted = Picture {
        longest_frame: 0,
        ..picture
    };
    wanted.write(&mut call, planes);
    kernel.call(&mut call)?;
    Ok(Picture::read(&call, planes))
}

/// Time from frame to frame: `numerator / denominator` seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) numerator: u32,
    pub(super) denominator: u32,
}

impl Interval {
    /// `None` for what is no time.
    fn read(call: &Call, at: usize) -> Option<Self> {
        let interval = Self {
            numerator: call.u32(at + offset_of!(v4l2_fract, numerator)),
            denominator: call.u32(at + offset_of!(v4l2_fract, denominator)),
        };
        (interval.numerator != 0 && interval.denominator != 0).then_some(interval)
    }

    /// Whether it is as long as `other`, however both are written.
    pub(super) fn is(self, other: Self) -> bool {
        let cross = |a: u32, b: u32| u64::from(a) * u64::from(b);
        cross(self.numerator, other.denominator) == cross(other.numerator, self.denominator)
    }

    /// The same as frames a second.
    pub(super) fn fps(self) -> f64 {
        f64::from(self.denominator) / f64::from(self.numerator)
    }

    /// The same as time.
    pub(super) fn duration(self) -> Duration {
        Duration::from_secs(self.numerator.into()) / self.denominator
    }
}

impl fmt::Display for Interval {
    /// As a rate: `30/1`, `30000/1001`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.denominator, self.numerator)
    }
}

/// Offset of a field of `v4l2_captureparm` within `v4l2_streamparm`.
macro_rules! parm {
    ($field:ident) => {
        offset_of!(v4l2_streamparm, parm) + offset_of!(v4l2_captureparm, $field)
    };
}

fn about_parameters(planes: Planes, number: u8) -> Call {
    let type_at = offset_of!(v4l2_streamparm, type_);
    Call::about(planes, type_at, number, size_of::<v4l2_streamparm>())
}

/// VIDIOC_G_PARM. `None` when the driver does not know it, or not now.
pub(super) fn interval(kernel: &impl Kernel, planes: Planes) -> io::Result<Option<Interval>> {
    let mut call = about_parameters(planes, number::G_PARM);
    kernel.call(&mut call)?;
    Ok(Interval::read(&call, parm!(timeperframe)))
}

/// VIDIOC_S_PARM. `None` when the driver cannot set it; otherwise what it made of it.
pub(super) fn set_interval(
    kernel: &impl Kernel,
    planes: Planes,
    interval: Interval,
) -> io::Result<Option<Interval>> {
    let mut call = about_parameters(planes, number::S_PARM);
    let at = parm!(timeperframe);
    call.put_u32(at + offset_of!(v4l2_fract, numerator), interval.numerator);
    call.put_u32(
        at + offset_of!(v4l2_fract, denominator),
        interval.denominator,
    );
    kernel.call(&mut call)?;
    if call.u32(parm!(capability)) & TIMEPERFRAME == 0 {
        return Ok(None);
    }
    Ok(Interval::read(&call, at))
}

/// VIDIOC_REQBUFS: how many of `count` buffers there are now.
pub(super) fn request_buffers(kernel: &impl Kernel, planes: Planes, count: u32) -> io::Result<u32> {
    let mut call = Call::about(
        planes,
        offset_of!(v4l2_requestbuffers, type_),
        number::REQBUFS,
        size_of::<v4l2_requestbuffers>(),
    );
    call.put_u32(offset_of!(v4l2_requestbuffers, count), count);
    call.put_u32(offset_of!(v4l2_requestbuffers, memory), MEMORY_MMAP);
    kernel.call(&mut call)?;
    Ok(call.u32(offset_of!(v4l2_requestbuffers, count)))
}

/// VIDIOC_STREAMON.
pub(super) fn stream_on(kernel: &impl Kernel, planes: Planes) -> io::Result<()> {
    stream(kernel, planes, number::STREAMON)
}

/// VIDIOC_STREAMOFF: the driver gives up all buffers, filled or not.
pub(super) fn stream_off(kernel: &impl Kernel, planes: Planes) -> io::Result<()> {
    stream(kernel, planes, number::STREAMOFF)
}

fn stream(kernel: &impl Kernel, planes: Planes, number: u8) -> io::Result<()> {
    let mut call = Call::new(Direction::Write, number, size_of::<u32>());
    call.put_u32(0, planes.buffer_type());
    kernel.call(&mut call)
}

const _: () =
    assert!(size_of::<v4l2_format>() <= LARGEST && size_of::<v4l2_streamparm>() <= LARGEST);
