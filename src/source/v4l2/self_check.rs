//! `kvsProducerApp self-check`: whether the calls that this binary makes are those that kernels for its processor know.
//!
//! A wrong number or size is a camera that cannot be opened, and nobody can tell why. The compiler checks the numbers, on
//! every target; here the calls themselves are looked at as they leave, and the system calls behind them are made. No camera
//! is needed for it, so that a binary for another processor can be checked under an emulator.

use std::cell::RefCell;
use std::io;
use std::mem::size_of;
use std::path::Path;

use rustix::io::Errno;
use rustix::ioctl::{Direction, Opcode, opcode};
use v4l::FourCC;
use v4l::v4l_sys::{
    v4l2_capability, v4l2_control, v4l2_fmtdesc, v4l2_format, v4l2_frmivalenum, v4l2_frmsizeenum,
    v4l2_queryctrl, v4l2_requestbuffers, v4l2_streamparm,
};

use super::abi::{self, Call, Interval, Kernel, Picture, Planes, Readiness, number};
use super::control;
use super::layout::Layout;
use super::node::Node;
use super::words;
use crate::shutdown;
use crate::source::Wait;

/// A call: its name, its argument, and the number that the kernel's header comes out at.
struct Known {
    name: &'static str,
    direction: Direction,
    number: u8,
    size: usize,
    header: Opcode,
}

const fn known(
    name: &'static str,
    direction: Direction,
    number: u8,
    size: usize,
    header: u32,
) -> Known {
    // MIPS, PowerPC and SPARC write 1 for what the others write 2, and the reverse; 3 is both for all.
    let swaps = cfg!(any(
        target_arch = "mips",
        target_arch = "mips64",
        target_arch = "powerpc",
        target_arch = "powerpc64",
        target_arch = "sparc64"
    ));
    let swapped = swaps && !matches!(direction, Direction::ReadWrite);
    let header = if swapped {
        header ^ 0xC000_0000
    } else {
        header
    };
    Known {
        name,
        direction,
        number,
        size,
        header: header as Opcode,
    }
}

const LONG: bool = cfg!(target_pointer_width = "64");

/// The calls whose arguments are of one size on a machine.
const KNOWN: [Known; 14] = {
    use Direction::{Read, ReadWrite, Write};
    let format = size_of::<v4l2_format>();
    let parameters = size_of::<v4l2_streamparm>();
    let control = size_of::<v4l2_control>();
    let stream = size_of::<u32>();
    let (get_format, set_format) = if LONG {
        (0xC0D0_5604, 0xC0D0_5605)
    } else {
        (0xC0CC_5604, 0xC0CC_5605)
    };
    [
        known(
            "QUERYCAP",
            Read,
            number::QUERYCAP,
            size_of::<v4l2_capability>(),
            0x8068_5600,
        ),
        known(
            "ENUM_FMT",
            ReadWrite,
            number::ENUM_FMT,
            size_of::<v4l2_fmtdesc>(),
            0xC040_5602,
        ),
        known("G_FMT", ReadWrite, number::G_FMT, format, get_format),
        known("S_FMT", ReadWrite, number::S_FMT, format, set_format),
        known(
            "REQBUFS",
            ReadWrite,
            number::REQBUFS,
            size_of::<v4l2_requestbuffers>(),
            0xC014_5608,
        ),
        known("STREAMON", Write, number::STREAMON, stream, 0x4004_5612),
        known("STREAMOFF", Write, number::STREAMOFF, stream, 0x4004_5613),
        known("G_PARM", ReadWrite, number::G_PARM, parameters, 0xC0CC_5615),
        known("S_PARM", ReadWrite, number::S_PARM, parameters, 0xC0CC_5616),
        known("G_CTRL", ReadWrite, number::G_CTRL, control, 0xC008_561B),
        known("S_CTRL", ReadWrite, number::S_CTRL, control, 0xC008_561C),
        known(
            "QUERYCTRL",
            ReadWrite,
            number::QUERYCTRL,
            size_of::<v4l2_queryctrl>(),
            0xC044_5624,
        ),
        known(
            "ENUM_FRAMESIZES",
            ReadWrite,
            number::ENUM_FRAMESIZES,
            size_of::<v4l2_frmsizeenum>(),
            0xC02C_564A,
        ),
        known(
            "ENUM_FRAMEINTERVALS",
            ReadWrite,
            number::ENUM_FRAMEINTERVALS,
            size_of::<v4l2_frmivalenum>(),
            0xC034_564B,
        ),
    ]
};

/// Those about a buffer, in each layout of it that kernels for this machine may have.
const BUFFERS: &[[Known; 3]] = {
    const fn about(size: usize, headers: [u32; 3]) -> [Known; 3] {
        let both = Direction::ReadWrite;
        [
            known("QUERYBUF", both, number::QUERYBUF, size, headers[0]),
            known("QBUF", both, number::QBUF, size, headers[1]),
            known("DQBUF", both, number::DQBUF, size, headers[2]),
        ]
    }
    let narrow_time = [0xC044_5609, 0xC044_560F, 0xC044_5611];
    if LONG {
        &[about(
            Layout::LONG.size,
            [0xC058_5609, 0xC058_560F, 0xC058_5611],
        )]
    } else if cfg!(target_arch = "x86") {
        &[
            about(
                Layout::WIDE_TIME_X86.size,
                [0xC04C_5609, 0xC04C_560F, 0xC04C_5611],
            ),
            about(Layout::NARROW_TIME.size, narrow_time),
        ]
    } else {
        &[
            about(
                Layout::WIDE_TIME.size,
                [0xC050_5609, 0xC050_560F, 0xC050_5611],
            ),
            about(Layout::NARROW_TIME.size, narrow_time),
        ]
    }
};

const _: () = {
    const fn check(known: &Known) {
        let ours = opcode::from_components(known.direction, b'V', known.number, known.size);
        assert!(
            ours == known.header,
            "an ioctl's number is not the kernel's"
        );
    }
    let mut nth = 0;
    while nth < KNOWN.len() {
        check(&KNOWN[nth]);
        nth += 1;
    }
    let mut nth = 0;
    while nth < 3 * BUFFERS.len() {
        check(&BUFFERS[nth / 3][nth % 3]);
        nth += 1;
    }
};

/// Notes what is asked, and answers nothing.
#[derive(Default)]
struct Witness {
    asked: RefCell<Vec<Opcode>>,
}

impl Kernel for Witness {
    type Map = Vec<u8>;

    const LAYOUTS: &'static [Layout] = Layout::OF_THIS_MACHINE;

    fn call(&self, call: &mut Call) -> io::Result<()> {
        self.asked.borrow_mut().push(call.opcode());
        Err(Errno::INVAL.into())
    }

    fn map(&self, _: u32, _: u32) -> io::Result<Vec<u8>> {
        Err(Errno::INVAL.into())
    }

    fn wait(&self, _: Wait<'_>) -> io::Result<Readiness> {
        Ok(Readiness::Nothing)
    }
}

/// The numbers of all calls, as they leave, in the order of `KNOWN` and then `BUFFERS`.
fn made() -> Vec<Opcode> {
    let witness = Witness::default();
    let planes = Planes::Multi;
    let fourcc = FourCC::new(b"H264");
    let picture = Picture {
        fourcc,
        width: 0,
        height: 0,
        longest_frame: 0,
    };
    let interval = Interval {
        numerator: 1,
        denominator: 1,
    };
    // What is answered is of no interest: it is an error each time.
    let _ = abi::capabilities(&witness);
    let _ = abi::formats(&witness, planes);
    let _ = abi::picture(&witness, planes);
    let _ = abi::set_picture(&witness, planes, picture);
    let _ = abi::request_buffers(&witness, planes, 0);
    let _ = abi::stream_on(&witness, planes);
    let _ = abi::stream_off(&witness, planes);
    let _ = abi::interval(&witness, planes);
    let _ = abi::set_interval(&witness, planes, interval);
    let _ = control::get(&witness, control::id::BITRATE);
    let _ = control::set(&witness, control::id::BITRATE, 1);
    let _ = control::query(&witness, control::id::BITRATE);
    let _ = abi::sizes(&witness, fourcc);
    let _ = abi::intervals(&witness, fourcc, (0, 0));
    for layout in Layout::OF_THIS_MACHINE {
        let _ = layout.query(&witness, planes, 0);
        let _ = layout.queue(&witness, planes, 0);
        let _ = layout.dequeue(&witness, planes);
    }
    witness.asked.into_inner()
}

/// Makes the system calls that a camera takes, on devices that are everywhere.
fn touch() -> Result<(), String> {
    /// Of a mapping: more than a page, and no whole number of them.
    const LENGTH: u32 = 100_000;
    let on = |path: &str| {
        Node::open(Path::new(path)).map_err(|error| format!("{path} cannot be opened: {error}"))
    };
    match abi::capabilities(&on("/dev/null")?) {
        Err(error) if words::is(&error, Errno::NOTTY) => {}
        // An emulator's word for a call that it does not pass on.
        Err(error) if words::is(&error, Errno::NOSYS) => {}
        Err(error) => {
            return Err(format!("/dev/null answers VIDIOC_QUERYCAP with: {error}"));
        }
        Ok(_) => return Err("/dev/null answers VIDIOC_QUERYCAP".to_owned()),
    }
    let (_trigger, shutdown) = shutdown::pair().map_err(|error| error.to_string())?;
    let wait = Wait {
        shutdown: &shutdown,
        until: None,
    };
    match on("/dev/null")?.wait(wait) {
        Ok(Readiness::Buffer) => {}
        Ok(readiness) => return Err(format!("poll of /dev/null says {readiness:?}")),
        Err(error) => return Err(format!("poll of /dev/null fails: {error}")),
    }
    match on("/dev/zero")?.map(0, LENGTH) {
        Ok(map) if map.len() == LENGTH as usize && map.iter().all(|byte| *byte == 0) => Ok(()),
        Ok(_) => Err("memory of /dev/zero is not zero".to_owned()),
        Err(error) => Err(format!("/dev/zero cannot be mapped: {error}")),
    }
}

/// Checks this binary. The text is for people.
///
/// # Errors
/// What does not fit, in one line.
pub fn run() -> Result<String, String> {
    let known: Vec<&Known> = KNOWN.iter().chain(BUFFERS.iter().flatten()).collect();
    let made = made();
    if made.len() != known.len() {
        return Err(format!(
            "{} calls were made, not {}",
            made.len(),
            known.len()
        ));
    }
    for (made, known) in made.iter().zip(&known) {
        if *made != known.header {
            let Known { name, header, .. } = known;
            return Err(format!(
                "VIDIOC_{name} is made as {made:#x}; the kernel knows {header:#x}"
            ));
        }
    }
    touch()?;
    let sizes: Vec<_> = Layout::OF_THIS_MACHINE
        .iter()
        .map(|layout| layout.size.to_string())
        .collect();
    Ok(format!(
        "{}: {} ioctl numbers are the kernel's, a v4l2_buffer has {} bytes; ioctl, poll and mmap work",
        std::env::consts::ARCH,
        known.len(),
        sizes.join(" or ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_binary_is_sound() {
        let said = run().unwrap();
        assert!(said.starts_with(std::env::consts::ARCH), "{said}");
    }
}
