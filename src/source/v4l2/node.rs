//! The device node: the one place where the project is `unsafe`.

#![expect(
    unsafe_code,
    reason = "ioctl, and memory that is shared with a driver, have no safe interface"
)]

use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::io::{Errno, FdFlags, fcntl_setfd, retry_on_intr};
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::abi::{Call, Kernel, Readiness};
use super::layout::Layout;
use crate::source::Wait;

/// An open device node, non-blocking. Clones are the same opening of it; the last one closes it.
#[derive(Clone)]
pub(super) struct Node {
    device: Arc<v4l::Device>,
}

impl Node {
    /// Opens the node for reading and writing, which is what drivers want for streaming.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let node = Self {
            device: Arc::new(v4l::Device::with_path(path)?),
        };
        fcntl_setfd(node.fd(), FdFlags::CLOEXEC)?;
        Ok(node)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `device` owns the descriptor, never hands it over, and closes it when it is dropped; the borrow of
        // `self` keeps it from being dropped before.
        unsafe { BorrowedFd::borrow_raw(self.device.handle().fd()) }
    }
}

impl Kernel for Node {
    type Map = Map;

    const LAYOUTS: &'static [Layout] = Layout::OF_THIS_MACHINE;

    fn call(&self, call: &mut Call) -> io::Result<()> {
        // SAFETY: The argument is at least as long as the opcode says, so the driver writes within it. The one address in
        // it that the driver follows is that of the call's plane, which lives as long, and the argument says that one
        // plane is there.
        retry_on_intr(|| unsafe { ioctl::ioctl(self.fd(), Pass(call)) })?;
        Ok(())
    }

    fn map(&self, offset: u32, length: u32) -> io::Result<Map> {
        let length = length as usize;
        // SAFETY: The kernel chooses an address where nothing is mapped.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                self.fd(),
                offset.into(),
            )
        }?;
        let address = NonNull::new(address.cast()).ok_or(Errno::NOMEM)?;
        Ok(Map { address, length })
    }

    fn wait(&self, wait: Wait<'_>) -> io::Result<Readiness> {
        let said = wait.readable(self.fd())?;
        let failed = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        Ok(if said.is_empty() {
            Readiness::Nothing
        } else if said.intersects(failed) {
            Readiness::Failed
        } else {
            Readiness::Buffer
        })
    }
}

/// Hands a [`Call`] to `rustix`.
struct Pass<'a>(&'a mut Call);

// SAFETY: `as_ptr` points to an argument that is as long as the opcode says, and stays borrowed meanwhile; nothing is
// read through the pointer afterwards.
unsafe impl Ioctl for Pass<'_> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.0.opcode()
    }

    fn as_ptr(&mut self) -> *mut c_void {
        // Now that the call does not move any more.
        self.0.point_at_plane();
        self.0.argument().as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// A driver's buffer, mapped for reading until it is dropped.
///
/// Its bytes stand still only between DQBUF and QBUF; the one that looks at them is `camera.rs`, and only then.
pub(super) struct Map {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: The mapping belongs to the process and not to a thread, and this is its only owner.
unsafe impl Send for Map {}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: The mapping has this address and length until it is dropped, every byte of it can be read, and the
        // driver, having given the buffer back, writes none of them.
        unsafe { slice::from_raw_parts(self.address.as_ptr(), self.length) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: This is the mapping's address and length, and references to its bytes borrow `self`.
        // It can only fail for arguments that are no mapping, and then there is nothing left to do.
        let _ = unsafe { munmap(self.address.as_ptr().cast(), self.length) };
    }
}
