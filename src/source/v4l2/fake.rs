//! A scripted driver: says what real ones say rarely.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::offset_of;

use rustix::io::Errno;
use v4l::FourCC;
use v4l::capability::Flags;
use v4l::v4l_sys::{
    V4L2_BUF_FLAG_QUEUED, V4L2_CAP_DEVICE_CAPS, v4l2_capability, v4l2_captureparm, v4l2_control,
    v4l2_fmtdesc, v4l2_format, v4l2_queryctrl, v4l2_requestbuffers, v4l2_streamparm,
};

use super::abi::{Call, Kernel, Picture, Planes, Readiness, number};
use super::control::id;
use super::layout::Layout;
use crate::source::Wait;

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
    /// The driver loses its oldest buffer, and has no frame.
    Misplaced,
    /// No frame until the stream is started anew; the steps then go on.
    Stalled,
}

/// One of its controls.
#[derive(Debug, Clone, Copy)]
pub(super) struct FakeControl {
    /// `enum v4l2_ctrl_type`.
    pub(super) kind: u32,
    pub(super) range: (i32, i32),
    pub(super) value: i32,
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
    /// Where the data of multi-planar buffers begin.
    pub(super) data_offset: u32,
    interval: Cell<(u32, u32)>,
    controls: RefCell<BTreeMap<u32, FakeControl>>,
    /// STREAMONs so far.
    pub(super) starts: Cell<u32>,
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
            data_offset: 0,
            interval: Cell::new((1, 30)),
            controls: RefCell::default(),
            starts: Cell::default(),
            refused: RefCell::default(),
            steps: RefCell::default(),
            always: Cell::default(),
            queue: RefCell::default(),
        }
    }
}

impl Fake {
    /// One with the controls of a Raspberry Pi's encoder, as far as they matter.
    pub(super) fn encoder() -> Self {
        let controls = [
            (id::BITRATE, 1, (25_000, 25_000_000), 10_000_000),
            (id::BITRATE_MODE, 3, (0, 1), 0),
            (id::H264_I_PERIOD, 1, (0, i32::MAX), 60),
            (id::B_FRAMES, 1, (0, 4), 2),
            (id::REPEAT_SEQ_HEADER, 2, (0, 1), 0),
            (id::FORCE_KEY_FRAME, 4, (0, 0), 0),
            (id::H264_PROFILE, 3, (0, 4), 4),
            (id::H264_LEVEL, 3, (0, 15), 8),
        ];
        let control = |(id, kind, range, value)| (id, FakeControl { kind, range, value });
        Self {
            controls: RefCell::new(controls.into_iter().map(control).collect()),
            ..Self::default()
        }
    }

    /// Value of a control that is there.
    pub(super) fn control(&self, id: u32) -> i32 {
        self.controls.borrow()[&id].value
    }

    pub(super) fn change_control(&self, id: u32, change: impl FnOnce(&mut FakeControl)) {
        change(
            self.controls
                .borrow_mut()
                .get_mut(&id)
                .expect("it is there"),
        );
    }

    fn planes(&self) -> Planes {
        Planes::of(self.flags)
    }

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
                let fields = [index, bytes_used, flags, sequence];
                layout.answer_dequeue(call, fields, self.data_offset, at);
                Ok(())
            }
            Some(Step::Errno(errno)) => Err(errno),
            Some(_) | None => Err(Errno::AGAIN),
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
            number::G_FMT | number::S_FMT => {
                self.check_type(call.u32(offset_of!(v4l2_format, type_)))?;
                if call.number() == number::S_FMT && self.obeys {
                    self.picture.set(Picture {
                        longest_frame: self.picture.get().longest_frame,
                        ..Picture::read(call, self.planes())
                    });
                }
                self.picture.get().write(call, self.planes());
            }
            number::G_PARM | number::S_PARM => {
                let parm = offset_of!(v4l2_streamparm, parm);
                let at = parm + offset_of!(v4l2_captureparm, timeperframe);
                if call.number() == number::S_PARM && self.obeys {
                    self.interval.set((call.u32(at), call.u32(at + 4)));
                }
                call.put_u32(parm + offset_of!(v4l2_captureparm, capability), 0x1000);
                call.put_u32(at, self.interval.get().0);
                call.put_u32(at + 4, self.interval.get().1);
            }
            number::REQBUFS => {
                self.check_type(call.u32(offset_of!(v4l2_requestbuffers, type_)))?;
                call.put_u32(offset_of!(v4l2_requestbuffers, count), self.buffers);
            }
            number::QUERYCTRL | number::G_CTRL | number::S_CTRL => {
                return self.answer_control(call);
            }
            number::QUERYBUF | number::QBUF | number::DQBUF => {
                let layout = Self::LAYOUTS.get(self.layout).ok_or(Errno::NOTTY)?;
                if call.opcode() != layout.call(call.number(), self.planes(), 0).opcode() {
                    return Err(Errno::NOTTY);
                }
                let (index, kind) = (call.u32(0), call.u32(4));
                self.check_type(kind)?;
                match call.number() {
                    number::QUERYBUF => {
                        let length = u32::try_from(BUFFER_LENGTH).expect("a small number");
                        let queued = self.queue.borrow().contains(&index);
                        let flags = if queued { V4L2_BUF_FLAG_QUEUED } else { 0 };
                        layout.answer_query(call, index, length, flags);
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
            number::STREAMON => {
                self.check_type(call.u32(0))?;
                self.starts.set(self.starts.get() + 1);
                let mut steps = self.steps.borrow_mut();
                if self.starts.get() > 1 && matches!(steps.front(), Some(Step::Stalled)) {
                    steps.pop_front();
                }
            }
            number::STREAMOFF => self.queue.borrow_mut().clear(),
            _ => return Err(Errno::NOTTY),
        }
        Ok(())
    }

    /// EINVAL for buffers of another type.
    fn check_type(&self, kind: u32) -> Result<(), Errno> {
        let own = kind == self.planes().buffer_type();
        own.then_some(()).ok_or(Errno::INVAL)
    }

    fn answer_control(&self, call: &mut Call) -> Result<(), Errno> {
        let mut controls = self.controls.borrow_mut();
        // The id is the first field of both structs.
        let control = controls.get_mut(&call.u32(0)).ok_or(Errno::INVAL)?;
        let (least, most) = control.range;
        let value_at = offset_of!(v4l2_control, value);
        match call.number() {
            number::QUERYCTRL => {
                call.put_u32(offset_of!(v4l2_queryctrl, type_), control.kind);
                for (at, value) in [
                    (offset_of!(v4l2_queryctrl, minimum), least),
                    (offset_of!(v4l2_queryctrl, maximum), most),
                    (offset_of!(v4l2_queryctrl, step), 1),
                ] {
                    call.put_u32(at, value.cast_unsigned());
                }
            }
            number::G_CTRL => call.put_u32(value_at, control.value.cast_unsigned()),
            // A button has no value; this one counts.
            _ if control.kind == 4 => control.value += 1,
            _ if self.obeys => control.value = call.u32(value_at).cast_signed().clamp(least, most),
            _ => {}
        }
        Ok(())
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

    fn wait(&self, _: Wait<'_>) -> io::Result<Readiness> {
        if let Some(Step::Misplaced) = self.next() {
            self.steps.borrow_mut().pop_front();
            self.queue.borrow_mut().pop_front();
        }
        Ok(match self.next() {
            None | Some(Step::Stalled) => Readiness::Nothing,
            Some(Step::Failed) => Readiness::Failed,
            Some(_) => Readiness::Buffer,
        })
    }
}
