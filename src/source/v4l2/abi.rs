//! What the kernel is asked, as bytes: ioctl numbers, struct layouts, and the [`Kernel`] that answers.
//!
//! The crate `v4l` has these calls too, but it unwraps what drivers report (a card name that the kernel cut in the middle
//! of a character, a colour space that it has not heard of), and it knows `v4l2_buffer` in one layout only. Here nothing
//! that a driver says can end the process, and a scripted kernel can stand in for a device.

use std::io;
use std::mem::{offset_of, size_of};
use std::ops::Deref;
use std::time::Duration;

use rustix::ioctl::{Direction, Opcode, opcode};
use v4l::FourCC;
use v4l::capability::Flags;
use v4l::v4l_sys::{
    V4L2_BUF_FLAG_ERROR, V4L2_BUF_FLAG_TIMESTAMP_MASK, V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC,
    V4L2_CAP_DEVICE_CAPS, v4l2_buffer, v4l2_capability, v4l2_captureparm, v4l2_fmtdesc,
    v4l2_format, v4l2_fract, v4l2_pix_format, v4l2_requestbuffers, v4l2_streamparm,
};

const BUF_TYPE_VIDEO_CAPTURE: u32 = 1;
const MEMORY_MMAP: u32 = 1;
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
    fn wait(&self, timeout: Duration) -> io::Result<Readiness>;
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

/// One ioctl with its argument.
///
/// Made in this file only, and none of its arguments holds an address that the kernel would follow: buffers are
/// memory-mapped and single-planar. That is what makes [`Kernel::call`] safe for any of them.
pub(super) struct Call {
    opcode: Opcode,
    argument: Argument,
}

/// Aligned as the strictest of the structs.
#[repr(C, align(8))]
struct Argument([u8; LARGEST]);

impl Call {
    fn new(direction: Direction, number: u8, size: usize) -> Self {
        assert!(size <= LARGEST, "an argument is larger than the largest");
        Self {
            opcode: opcode::from_components(direction, b'V', number, size),
            argument: Argument([0; LARGEST]),
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

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.argument.0[at..at + N]
            .try_into()
            .expect("the slice has N bytes")
    }

    /// A string that ends at a zero byte or at the field's end, where the kernel may have cut a character in two.
    fn text(&self, at: usize, length: usize) -> String {
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
    /// For people: "HD Pro Webcam C920".
    pub(super) card: String,
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
        card: call.text(offset_of!(v4l2_capability, card), 32),
        flags: Flags::from(if device & V4L2_CAP_DEVICE_CAPS == 0 {
            device
        } else {
            node
        }),
    })
}

/// VIDIOC_ENUM_FMT: what the node can capture, in the driver's order.
pub(super) fn formats(kernel: &impl Kernel) -> io::Result<Vec<FourCC>> {
    /// Beyond what any driver has; one that never says EINVAL must not hold us.
    const MOST: u32 = 256;
    let mut formats = Vec::new();
    for index in 0..MOST {
        let mut call = Call::new(
            Direction::ReadWrite,
            number::ENUM_FMT,
            size_of::<v4l2_fmtdesc>(),
        );
        call.put_u32(offset_of!(v4l2_fmtdesc, index), index);
        call.put_u32(offset_of!(v4l2_fmtdesc, type_), BUF_TYPE_VIDEO_CAPTURE);
        match kernel.call(&mut call) {
            Ok(()) => formats.push(FourCC::from(
                call.u32(offset_of!(v4l2_fmtdesc, pixelformat)),
            )),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    Ok(formats)
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

/// Offset of a field of `v4l2_pix_format` within `v4l2_format`.
macro_rules! pix {
    ($field:ident) => {
        offset_of!(v4l2_format, fmt) + offset_of!(v4l2_pix_format, $field)
    };
}

/// VIDIOC_G_FMT.
pub(super) fn picture(kernel: &impl Kernel) -> io::Result<Picture> {
    let mut call = Call::new(
        Direction::ReadWrite,
        number::G_FMT,
        size_of::<v4l2_format>(),
    );
    call.put_u32(offset_of!(v4l2_format, type_), BUF_TYPE_VIDEO_CAPTURE);
    kernel.call(&mut call)?;
    Ok(read_picture(&call))
}

/// VIDIOC_S_FMT. What comes back is what the driver made of it, which may be anything.
pub(super) fn set_picture(kernel: &impl Kernel, picture: Picture) -> io::Result<Picture> {
    let mut call = Call::new(
        Direction::ReadWrite,
        number::S_FMT,
        size_of::<v4l2_format>(),
    );
    call.put_u32(offset_of!(v4l2_format, type_), BUF_TYPE_VIDEO_CAPTURE);
    call.put_u32(pix!(width), picture.width);
    call.put_u32(pix!(height), picture.height);
    call.put_u32(pix!(pixelformat), picture.fourcc.into());
    kernel.call(&mut call)?;
    Ok(read_picture(&call))
}

fn read_picture(call: &Call) -> Picture {
    Picture {
        fourcc: FourCC::from(call.u32(pix!(pixelformat))),
        width: call.u32(pix!(width)),
        height: call.u32(pix!(height)),
        longest_frame: call.u32(pix!(sizeimage)),
    }
}

/// Time from frame to frame: `numerator / denominator` seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) numerator: u32,
    pub(super) denominator: u32,
}

/// Offset of a field of `v4l2_captureparm` within `v4l2_streamparm`.
macro_rules! parm {
    ($field:ident) => {
        offset_of!(v4l2_streamparm, parm) + offset_of!(v4l2_captureparm, $field)
    };
}

/// VIDIOC_G_PARM. `None` when the driver does not know it, or not now.
pub(super) fn interval(kernel: &impl Kernel) -> io::Result<Option<Interval>> {
    let mut call = Call::new(
        Direction::ReadWrite,
        number::G_PARM,
        size_of::<v4l2_streamparm>(),
    );
    call.put_u32(offset_of!(v4l2_streamparm, type_), BUF_TYPE_VIDEO_CAPTURE);
    kernel.call(&mut call)?;
    Ok(read_interval(&call))
}

/// VIDIOC_S_PARM. `None` when the driver cannot set it; otherwise what it made of it.
pub(super) fn set_interval(
    kernel: &impl Kernel,
    interval: Interval,
) -> io::Result<Option<Interval>> {
    let mut call = Call::new(
        Direction::ReadWrite,
        number::S_PARM,
        size_of::<v4l2_streamparm>(),
    );
    call.put_u32(offset_of!(v4l2_streamparm, type_), BUF_TYPE_VIDEO_CAPTURE);
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
    Ok(read_interval(&call))
}

fn read_interval(call: &Call) -> Option<Interval> {
    let at = parm!(timeperframe);
    let interval = Interval {
        numerator: call.u32(at + offset_of!(v4l2_fract, numerator)),
        denominator: call.u32(at + offset_of!(v4l2_fract, denominator)),
    };
    (interval.numerator != 0 && interval.denominator != 0).then_some(interval)
}

/// VIDIOC_REQBUFS: how many of `count` buffers there are now.
pub(super) fn request_buffers(kernel: &impl Kernel, count: u32) -> io::Result<u32> {
    let mut call = Call::new(
        Direction::ReadWrite,
        number::REQBUFS,
        size_of::<v4l2_requestbuffers>(),
    );
    call.put_u32(offset_of!(v4l2_requestbuffers, count), count);
    call.put_u32(
        offset_of!(v4l2_requestbuffers, type_),
        BUF_TYPE_VIDEO_CAPTURE,
    );
    call.put_u32(offset_of!(v4l2_requestbuffers, memory), MEMORY_MMAP);
    kernel.call(&mut call)?;
    Ok(call.u32(offset_of!(v4l2_requestbuffers, count)))
}

/// VIDIOC_STREAMON.
pub(super) fn stream_on(kernel: &impl Kernel) -> io::Result<()> {
    stream(kernel, number::STREAMON)
}

/// VIDIOC_STREAMOFF.
pub(super) fn stream_off(kernel: &impl Kernel) -> io::Result<()> {
    stream(kernel, number::STREAMOFF)
}

fn stream(kernel: &impl Kernel, number: u8) -> io::Result<()> {
    let mut call = Call::new(Direction::Write, number, size_of::<u32>());
    call.put_u32(0, BUF_TYPE_VIDEO_CAPTURE);
    kernel.call(&mut call)
}

/// Where the fields of `v4l2_buffer` lie; its size is a part of the ioctl numbers.
///
/// It holds a `timeval`. On 32-bit machines the kernel therefore knows two of it: with 32-bit time, which kernels can be
/// built without, and with 64-bit time, since Linux 5.6. Which one the C library likes does not matter to the kernel, so
/// a static binary has to know both.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) size: usize,
    timestamp: usize,
    wide_time: bool,
    sequence: usize,
    memory: usize,
    offset: usize,
    length: usize,
}

const INDEX: usize = 0;
const TYPE: usize = 4;
const BYTES_USED: usize = 8;
const FLAGS: usize = 12;

impl Layout {
    /// 64-bit machines.
    pub(super) const LONG: Self = Self {
        size: 88,
        timestamp: 24,
        wide_time: true,
        sequence: 56,
        memory: 60,
        offset: 64,
        length: 72,
    };
    /// 32-bit machines, 64-bit time.
    pub(super) const WIDE_TIME: Self = Self {
        size: 80,
        timestamp: 24,
        wide_time: true,
        sequence: 56,
        memory: 60,
        offset: 64,
        length: 68,
    };
    /// The same on 32-bit x86, which aligns 64-bit integers to 4 bytes.
    pub(super) const WIDE_TIME_X86: Self = Self {
        size: 76,
        timestamp: 20,
        wide_time: true,
        sequence: 52,
        memory: 56,
        offset: 60,
        length: 64,
    };
    /// 32-bit machines, 32-bit time.
    pub(super) const NARROW_TIME: Self = Self {
        size: 68,
        timestamp: 20,
        wide_time: false,
        sequence: 44,
        memory: 48,
        offset: 52,
        length: 56,
    };

    /// What kernels for this machine know: the newer layout first, because it has no 2038 in it.
    pub(super) const OF_THIS_MACHINE: &'static [Self] = if cfg!(target_pointer_width = "64") {
        &[Self::LONG]
    } else if cfg!(target_arch = "x86") {
        &[Self::WIDE_TIME_X86, Self::NARROW_TIME]
    } else {
        &[Self::WIDE_TIME, Self::NARROW_TIME]
    };

    pub(super) fn call(&self, number: u8, index: u32) -> Call {
        let mut call = Call::new(Direction::ReadWrite, number, self.size);
        call.put_u32(INDEX, index);
        call.put_u32(TYPE, BUF_TYPE_VIDEO_CAPTURE);
        call.put_u32(self.memory, MEMORY_MMAP);
        call
    }

    fn timestamp(&self, call: &Call) -> Option<Duration> {
        let (seconds, micros) = if self.wide_time {
            (
                i64::from_ne_bytes(call.bytes(self.timestamp)),
                i64::from_ne_bytes(call.bytes(self.timestamp + 8)),
            )
        } else {
            (
                i32::from_ne_bytes(call.bytes(self.timestamp)).into(),
                i32::from_ne_bytes(call.bytes(self.timestamp + 4)).into(),
            )
        };
        let seconds = Duration::from_secs(u64::try_from(seconds).ok()?);
        seconds.checked_add(Duration::from_micros(u64::try_from(micros).ok()?))
    }

    /// VIDIOC_QUERYBUF: where the buffer is to be mapped from, and its length.
    pub(super) fn query(&self, kernel: &impl Kernel, index: u32) -> io::Result<(u32, u32)> {
        let mut call = self.call(number::QUERYBUF, index);
        kernel.call(&mut call)?;
        Ok((call.u32(self.offset), call.u32(self.length)))
    }

    /// VIDIOC_QBUF: gives the buffer to the driver.
    pub(super) fn queue(&self, kernel: &impl Kernel, index: u32) -> io::Result<()> {
        kernel.call(&mut self.call(number::QBUF, index))
    }

    /// VIDIOC_DQBUF: takes the oldest filled buffer from the driver.
    pub(super) fn dequeue(&self, kernel: &impl Kernel) -> io::Result<Filled> {
        let mut call = self.call(number::DQBUF, 0);
        kernel.call(&mut call)?;
        let flags = call.u32(FLAGS);
        let monotonic = flags & V4L2_BUF_FLAG_TIMESTAMP_MASK == V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
        Ok(Filled {
            index: call.u32(INDEX),
            bytes_used: call.u32(BYTES_USED),
            error: flags & V4L2_BUF_FLAG_ERROR != 0,
            sequence: call.u32(self.sequence),
            captured: self
                .timestamp(&call)
                .filter(|time| monotonic && !time.is_zero()),
        })
    }

    /// Writes what a driver would: for the scripted kernel.
    #[cfg(test)]
    pub(super) fn answer_query(&self, call: &mut Call, offset: u32, length: u32) {
        call.put_u32(self.offset, offset);
        call.put_u32(self.length, length);
    }

    /// Writes what a driver would: for the scripted kernel.
    #[cfg(test)]
    pub(super) fn answer_dequeue(
        &self,
        call: &mut Call,
        [index, bytes_used, flags, sequence]: [u32; 4],
        (seconds, micros): (i32, i32),
    ) {
        call.put_u32(INDEX, index);
        call.put_u32(BYTES_USED, bytes_used);
        call.put_u32(FLAGS, flags);
        call.put_u32(self.sequence, sequence);
        if self.wide_time {
            call.put(self.timestamp, &i64::from(seconds).to_ne_bytes());
            call.put(self.timestamp + 8, &i64::from(micros).to_ne_bytes());
        } else {
            call.put(self.timestamp, &seconds.to_ne_bytes());
            call.put(self.timestamp + 4, &micros.to_ne_bytes());
        }
    }
}

/// A buffer that the driver gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) index: u32,
    /// Bytes from the buffer's start; the rest of it is left over from earlier frames.
    pub(super) bytes_used: u32,
    /// V4L2_BUF_FLAG_ERROR: the content may be damaged.
    pub(super) error: bool,
    /// Counts the frames that the driver saw, the dropped ones too. Some drivers leave it at 0.
    pub(super) sequence: u32,
    /// On CLOCK_MONOTONIC. `None` when the driver gave no time, or one on another clock or on none that it names.
    pub(super) captured: Option<Duration>,
}

// The numbers that the kernel's own header comes out at, except where MIPS, PowerPC and SPARC number differently.
#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "x86"
))]
const _: () = {
    const fn read_write(number: u8, size: usize) -> Opcode {
        opcode::from_components(Direction::ReadWrite, b'V', number, size)
    }
    let long = cfg!(target_pointer_width = "64");
    assert!(opcode::read::<v4l2_capability>(b'V', number::QUERYCAP) == 0x8068_5600);
    assert!(opcode::read_write::<v4l2_fmtdesc>(b'V', number::ENUM_FMT) == 0xC040_5602);
    let set_format = opcode::read_write::<v4l2_format>(b'V', number::S_FMT);
    assert!(set_format == if long { 0xC0D0_5605 } else { 0xC0CC_5605 });
    assert!(opcode::read_write::<v4l2_requestbuffers>(b'V', number::REQBUFS) == 0xC014_5608);
    assert!(opcode::write::<u32>(b'V', number::STREAMON) == 0x4004_5612);
    assert!(opcode::read_write::<v4l2_streamparm>(b'V', number::S_PARM) == 0xC0CC_5616);
    assert!(read_write(number::DQBUF, Layout::LONG.size) == 0xC058_5611);
    assert!(read_write(number::DQBUF, Layout::WIDE_TIME.size) == 0xC050_5611);
    assert!(read_write(number::DQBUF, Layout::NARROW_TIME.size) == 0xC044_5611);
};

// The bindings have one of the layouts, by the width of `long`.
const _: () = {
    let layout = if cfg!(target_pointer_width = "64") {
        Layout::LONG
    } else {
        Layout::NARROW_TIME
    };
    assert!(layout.size == size_of::<v4l2_buffer>());
    assert!(layout.timestamp == offset_of!(v4l2_buffer, timestamp));
    assert!(layout.sequence == offset_of!(v4l2_buffer, sequence));
    assert!(layout.memory == offset_of!(v4l2_buffer, memory));
    assert!(layout.offset == offset_of!(v4l2_buffer, m));
    assert!(layout.length == offset_of!(v4l2_buffer, length));
    assert!(BYTES_USED == offset_of!(v4l2_buffer, bytesused));
    assert!(FLAGS == offset_of!(v4l2_buffer, flags));
    assert!(size_of::<v4l2_format>() <= LARGEST && size_of::<v4l2_streamparm>() <= LARGEST);
};
