//! A scripted driver: says what real ones say rarely.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::mem::offset_of;
use std::time::Duration;

use rustix::io::Errno;
use v4l::FourCC;
use v4l::capability::Flags;
use v4l::v4l_sys::{
    V4L2_CAP_DEVICE_CAPS, v4l2_capability, v4l2_captureparm, v4l2_fmtdesc, v4l2_format,
    v4l2_pix_format, v4l2_requestbuffers, v4l2_streamparm,
};

use super::abi::{Call, Kernel, Layout, Picture, Readiness, number};

/// Bytes in each of its buffers.
pub(super) const BUFFER_LENGTH: usize = 64;

/// What all bytes of the buffer with this index are.
pub(super) fn content(index: u8) -> u8 {
    0xA0 + index
}

/// What happens at the camera next.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// The oldest queued buffer comes back, with these fields; the time in seconds and microseconds.
    Filled {
        bytes_used: u32,
        flags: u32,
        sequence: u32,
        at: (i32, i32),
    },
    /// `poll` says ready and DQBUF says EAGAIN.
    Again,
    /// `poll` says ready and DQBUF fails.
    Errno(Errno),
    /// `poll` says POLLERR, now and from then on.
    Failed,
}

/// The driver. Its fields are what it is at the start of a test; after the last step it has no more frames.
pub(super) struct Fake {
    /// At most 32 bytes.
    pub(super) card: Vec<u8>,
    /// What the node can do; the device it belongs to can do all that cameras do.
    pub(super) flags: Flags,
    pub(super) formats: Vec<[u8; 4]>,
    pub(super) picture: Cell<Picture>,
    /// Whether S_FMT does what it is told.
    pub(super) obeys: bool,
    /// How many buffers REQBUFS gives, whatever is asked for.
    pub(super) buffers: u32,
    /// Which of [`Fake::LAYOUTS`] it understands; for the others it says ENOTTY.
    pub(super) layout: usize,
    interval: Cell<(u32, u32)>,
    refused: RefCell<Vec<(u8, Errno)>>,
    steps: RefCell<VecDeque<Step>>,
    always: Cell<Option<Step>>,
    queue: RefCell<VecDeque<u32>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            card: b"Fake Camera".to_vec(),
            flags: Flags::VIDEO_CAPTURE | Flags::STREAMING,
            formats: vec![*b"YUYV", *b"HEVC", *b"H264"],
            picture: Cell::new(Picture {
                fourcc: FourCC::new(b"YUYV"),
                width: 1280,
                height: 720,
                longest_frame: u32::try_from(BUFFER_LENGTH).expect("a small number") - 1,
            }),
            obeys: true,
            buffers: 8,
            layout: 0,
            interval: Cell::new((1, 30)),
            refused: RefCell::default(),
            steps: RefCell::default(),
            always: Cell::default(),
            queue: RefCell::default(),
        }
    }
}

impl Fake {
    pub(super) fn with(self, steps: impl IntoIterator<Item = Step>) -> Self {
        self.steps.borrow_mut().extend(steps);
        self
    }

    /// This step after all others, without end.
    pub(super) fn for_ever(&self, step: Step) {
        self.always.set(Some(step));
    }

    /// Answers the call with an error.
    pub(super) fn refusing(self, number: u8, errno: Errno) -> Self {
        self.refuse(number, errno);
        self
    }

    /// From now on.
    pub(super) fn refuse(&self, number: u8, errno: Errno) {
        self.refused.borrow_mut().push((number, errno));
    }

    /// Buffers that are with the driver.
    pub(super) fn queued(&self) -> usize {
        self.queue.borrow().len()
    }

    /// Steps still to come.
    pub(super) fn left(&self) -> usize {
        self.steps.borrow().len()
    }

    fn next(&self) -> Option<Step> {
        self.steps.borrow().front().copied().or(self.always.get())
    }

    fn dequeue(&self, layout: &Layout, call: &mut Call) -> Result<(), Errno> {
        let step = self.next();
        self.steps.borrow_mut().pop_front();
        match step {
            Some(Step::Filled {
                bytes_used,
                flags,
                sequence,
                at,
            }) => {
                let index = self.queue.borrow_mut().pop_front();
                let index = index.expect("the camera keeps at least one buffer queued");
                layout.answer_dequeue(call, [index, bytes_used, flags, sequence], at);
                Ok(())
            }
            Some(Step::Errno(errno)) => Err(errno),
            Some(Step::Again | Step::Failed) | None => Err(Errno::AGAIN),
        }
    }

    fn answer(&self, call: &mut Call) -> Result<(), Errno> {
        let refused = self.refused.borrow();
        if let Some((_, errno)) = refused.iter().find(|(number, _)| *number == call.number()) {
            return Err(*errno);
        }
        match call.number() {
            number::QUERYCAP => {
                call.put(offset_of!(v4l2_capability, card), &self.card);
                let device = Flags::VIDEO_CAPTURE | Flags::META_CAPTURE | Flags::STREAMING;
                let device = device.bits() | V4L2_CAP_DEVICE_CAPS;
                call.put_u32(offset_of!(v4l2_capability, capabilities), device);
                call.put_u32(offset_of!(v4l2_capability, device_caps), self.flags.bits());
            }
            number::ENUM_FMT => {
                let index = call.u32(offset_of!(v4l2_fmtdesc, index)) as usize;
                let format = self.formats.get(index).ok_or(Errno::INVAL)?;
                call.put(offset_of!(v4l2_fmtdesc, pixelformat), format);
            }
            number::G_FMT => self.put_picture(call),
            number::S_FMT => {
                let at = offset_of!(v4l2_format, fmt);
                if self.obeys {
                    self.picture.set(Picture {
                        longest_frame: self.picture.get().longest_frame,
                        fourcc: call
                            .u32(at + offset_of!(v4l2_pix_format, pixelformat))
                            .into(),
                        width: call.u32(at + offset_of!(v4l2_pix_format, width)),
                        height: call.u32(at + offset_of!(v4l2_pix_format, height)),
                    });
                }
                self.put_picture(call);
            }
            number::G_PARM | number::S_PARM => {
                let parm = offset_of!(v4l2_streamparm, parm);
                let at = parm + offset_of!(v4l2_captureparm, timeperframe);
                if call.number() == number::S_PARM {
                    self.interval.set((call.u32(at), call.u32(at + 4)));
                }
                call.put_u32(parm + offset_of!(v4l2_captureparm, capability), 0x1000);
                call.put_u32(at, self.interval.get().0);
                call.put_u32(at + 4, self.interval.get().1);
            }
            number::REQBUFS => call.put_u32(offset_of!(v4l2_requestbuffers, count), self.buffers),
            number::QUERYBUF | number::QBUF | number::DQBUF => {
                let layout = Self::LAYOUTS.get(self.layout).ok_or(Errno::NOTTY)?;
                if call.opcode() != layout.call(call.number(), 0).opcode() {
                    return Err(Errno::NOTTY);
                }
                let index = call.u32(0);
                match call.number() {
                    number::QUERYBUF => {
                        let length = u32::try_from(BUFFER_LENGTH).expect("a small number");
                        layout.answer_query(call, index, length);
                    }
                    number::QBUF => {
                        let mut queue = self.queue.borrow_mut();
                        if queue.contains(&index) || index >= self.buffers {
                            return Err(Errno::INVAL);
                        }
                        queue.push_back(index);
                    }
                    _ => return self.dequeue(layout, call),
                }
            }
            number::STREAMON | number::STREAMOFF => {}
            _ => return Err(Errno::NOTTY),
        }
        Ok(())
    }

    fn put_picture(&self, call: &mut Call) {
        let at = offset_of!(v4l2_format, fmt);
        let picture = self.picture.get();
        call.put_u32(
            at + offset_of!(v4l2_pix_format, pixelformat),
            picture.fourcc.into(),
        );
        call.put_u32(at + offset_of!(v4l2_pix_format, width), picture.width);
        call.put_u32(at + offset_of!(v4l2_pix_format, height), picture.height);
        let length = picture.longest_frame;
        call.put_u32(at + offset_of!(v4l2_pix_format, sizeimage), length);
    }
}

impl Kernel for Fake {
    type Map = Vec<u8>;

    const LAYOUTS: &'static [Layout] = &[
        Layout::LONG,
        Layout::WIDE_TIME,
        Layout::WIDE_TIME_X86,
        Layout::NARROW_TIME,
    ];

    fn call(&self, call: &mut Call) -> io::Result<()> {
        Ok(self.answer(call)?)
    }

    /// The offset that QUERYBUF gave is the buffer's index.
    fn map(&self, offset: u32, length: u32) -> io::Result<Vec<u8>> {
        let index = u8::try_from(offset).expect("few buffers");
        Ok(vec![content(index); length as usize])
    }

    fn wait(&self, _: Duration) -> io::Result<Readiness> {
        Ok(match self.next() {
            None => Readiness::Nothing,
            Some(Step::Failed) => Readiness::Failed,
            Some(_) => Readiness::Buffer,
        })
    }
}
