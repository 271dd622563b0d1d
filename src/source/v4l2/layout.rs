//! `v4l2_buffer` in the layouts that kernels have of it, and the calls about buffers.

use std::io;
use std::mem::{offset_of, size_of};
use std::time::Duration;

use rustix::ioctl::Direction;
use v4l::v4l_sys::{
    V4L2_BUF_FLAG_DONE, V4L2_BUF_FLAG_ERROR, V4L2_BUF_FLAG_QUEUED, V4L2_BUF_FLAG_TIMESTAMP_MASK,
    V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC, v4l2_buffer, v4l2_plane,
};

use super::abi::{Call, Kernel, MEMORY_MMAP, Planes, number};

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

    pub(super) fn call(&self, number: u8, planes: Planes, index: u32) -> Call {
        let mut call = Call::new(Direction::ReadWrite, number, self.size);
        call.put_u32(INDEX, index);
        call.put_u32(TYPE, planes.buffer_type());
        call.put_u32(self.memory, MEMORY_MMAP);
        if planes == Planes::Single {
            return call;
        }
        // So many planes stand at the address; a driver with more says EINVAL.
        call.put_u32(self.length, 1);
        call.with_plane(self.offset)
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

    /// VIDIOC_QUERYBUF.
    pub(super) fn query(
        &self,
        kernel: &impl Kernel,
        planes: Planes,
        index: u32,
    ) -> io::Result<Place> {
        let mut call = self.call(number::QUERYBUF, planes, index);
        kernel.call(&mut call)?;
        let idle = call.u32(FLAGS) & (V4L2_BUF_FLAG_QUEUED | V4L2_BUF_FLAG_DONE) == 0;
        let (offset, length) = match call.plane() {
            None => (call.u32(self.offset), call.u32(self.length)),
            Some(plane) => (plane.u32(Plane::OFFSET), plane.u32(Plane::LENGTH)),
        };
        Ok(Place {
            offset,
            length,
            idle,
        })
    }

    /// VIDIOC_QBUF: gives the buffer to the driver.
    pub(super) fn queue(&self, kernel: &impl Kernel, planes: Planes, index: u32) -> io::Result<()> {
        kernel.call(&mut self.call(number::QBUF, planes, index))
    }

    /// VIDIOC_DQBUF: takes the oldest filled buffer from the driver.
    pub(super) fn dequeue(&self, kernel: &impl Kernel, planes: Planes) -> io::Result<Filled> {
        let mut call = self.call(number::DQBUF, planes, 0);
        kernel.call(&mut call)?;
        let flags = call.u32(FLAGS);
        let monotonic = flags & V4L2_BUF_FLAG_TIMESTAMP_MASK == V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
        let (data_offset, bytes_used) = match call.plane() {
            None => (0, call.u32(BYTES_USED)),
            Some(plane) => (plane.u32(Plane::DATA_OFFSET), plane.u32(Plane::BYTES_USED)),
        };
        Ok(Filled {
            index: call.u32(INDEX),
            data_offset,
            bytes_used,
            error: flags & V4L2_BUF_FLAG_ERROR != 0,
            sequence: call.u32(self.sequence),
            captured: self
                .timestamp(&call)
                .filter(|time| monotonic && !time.is_zero()),
        })
    }

    /// Writes what a driver would: for the scripted kernel.
    #[cfg(test)]
    pub(super) fn answer_query(&self, call: &mut Call, offset: u32, length: u32, flags: u32) {
        call.put_u32(FLAGS, flags);
        match call.plane() {
            None => {
                call.put_u32(self.offset, offset);
                call.put_u32(self.length, length);
            }
            Some(plane) => {
                plane.put_u32(Plane::OFFSET, offset);
                plane.put_u32(Plane::LENGTH, length);
            }
        }
    }

    /// Writes what a driver would: for the scripted kernel. In the multi-planar way the data begin at `data_offset`.
    #[cfg(test)]
    pub(super) fn answer_dequeue(
        &self,
        call: &mut Call,
        [index, bytes_used, flags, sequence]: [u32; 4],
        data_offset: u32,
        (seconds, micros): (i32, i32),
    ) {
        call.put_u32(INDEX, index);
        call.put_u32(FLAGS, flags);
        call.put_u32(self.sequence, sequence);
        match call.plane() {
            None => call.put_u32(BYTES_USED, bytes_used),
            Some(plane) => {
                plane.put_u32(Plane::DATA_OFFSET, data_offset);
                plane.put_u32(Plane::BYTES_USED, bytes_used + data_offset);
            }
        }
        if self.wide_time {
            call.put(self.timestamp, &i64::from(seconds).to_ne_bytes());
            call.put(self.timestamp + 8, &i64::from(micros).to_ne_bytes());
        } else {
            call.put(self.timestamp, &seconds.to_ne_bytes());
            call.put(self.timestamp + 4, &micros.to_ne_bytes());
        }
    }
}

/// `v4l2_plane`, as bytes.
#[repr(C, align(8))]
#[derive(Debug)]
pub(super) struct Plane([u8; size_of::<v4l2_plane>()]);

impl Plane {
    const BYTES_USED: usize = offset_of!(v4l2_plane, bytesused);
    const LENGTH: usize = offset_of!(v4l2_plane, length);
    const OFFSET: usize = offset_of!(v4l2_plane, m);
    const DATA_OFFSET: usize = offset_of!(v4l2_plane, data_offset);

    fn u32(&self, at: usize) -> u32 {
        let bytes = self.0[at..at + 4].try_into();
        u32::from_ne_bytes(bytes.expect("the slice has 4 bytes"))
    }

    #[cfg(test)]
    fn put_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
}

impl Default for Plane {
    fn default() -> Self {
        Self([0; size_of::<v4l2_plane>()])
    }
}

/// A buffer of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Where it is to be mapped from.
    pub(super) offset: u32,
    pub(super) length: u32,
    /// Neither queued nor filled: nobody will ever give it back.
    pub(super) idle: bool,
}

/// A buffer that the driver gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) index: u32,
    /// Where the frame begins: not at 0 behind a header, which only the multi-planar way has.
    pub(super) data_offset: u32,
    /// Bytes from the buffer's start, the header among them; the rest of it is left over from earlier frames.
    pub(super) bytes_used: u32,
    /// V4L2_BUF_FLAG_ERROR: the content may be damaged.
    pub(super) error: bool,
    /// Counts the frames that the driver saw, the dropped ones too. Some drivers leave it at 0.
    pub(super) sequence: u32,
    /// On CLOCK_MONOTONIC. `None` when the driver gave no time, or one on another clock or on none that it names.
    pub(super) captured: Option<Duration>,
}

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
    assert!(
        offset_of!(v4l2_plane, data_offset)
            == if cfg!(target_pointer_width = "64") {
                16
            } else {
                12
            }
    );
};
