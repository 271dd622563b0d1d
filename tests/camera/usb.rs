//! A USB camera, played by a process of its own: raw-gadget is the device, dummy_hcd the cable and uvcvideo, as everywhere,
//! the driver. Ending the process pulls the plug.
//!
//! It offers H.264 (UVC 1.1, frame-based) and MJPEG in the size of its clip over a bulk endpoint, at 15 and 30 frames a
//! second.

use std::env;
use std::ffi::c_void;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use kvs_producer_app::clock::Clock;
use kvs_producer_app::frame::Codec;
use rustix::ioctl::{Direction, Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use crate::rig::Clip;

/// Set in the process that is the camera, to the picture that it takes.
const PLAY: &str = "KVS_TEST_PLAY_USB";

/// What it delivers.
#[derive(Debug, Clone, Copy)]
pub enum Takes {
    /// 640x480 at 15 frames a second.
    Small,
    /// 1280x720 at 30.
    Large,
}

/// What it calls itself.
const PRODUCT: &str = "Gate Camera";

/// The camera while it is plugged in.
pub struct UsbCamera {
    process: Child,
}

impl UsbCamera {
    /// Plugs it in; its node comes with it.
    pub fn plug(takes: Takes) -> (Self, PathBuf) {
        let before = nodes();
        let process = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "usb::the_process_that_is_a_usb_camera",
                "--include-ignored",
                "--nocapture",
            ])
            .env(PLAY, format!("{takes:?}"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let camera = Self { process };
        let deadline = Clock.now() + Duration::from_mins(1);
        while Clock.now() < deadline {
            if let Some(node) = nodes().into_iter().find(|node| !before.contains(node)) {
                return (camera, node);
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("no node appeared for the USB camera");
    }
}

impl Drop for UsbCamera {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The nodes for its pictures, not for its metadata.
fn nodes() -> Vec<PathBuf> {
    let of_camera = |directory: &Path| {
        let read = |file| fs::read_to_string(directory.join(file)).unwrap_or_default();
        read("name").contains(PRODUCT) && read("index").trim() == "0"
    };
    fs::read_dir("/sys/class/video4linux")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|directory| of_camera(directory))
        .map(|directory| Path::new("/dev").join(directory.file_name().unwrap()))
        .filter(|node| node.exists())
        .collect()
}

#[test]
#[ignore = "is a process that another test starts"]
fn the_process_that_is_a_usb_camera() {
    let clip = match env::var(PLAY).as_deref() {
        Ok("Small") => Clip::small(Codec::H264),
        Ok("Large") => Clip::large(Codec::H264),
        _ => return println!("only a process that a test starts does this"),
    };
    Gadget::open(clip).unwrap().run();
}

/// Streaming goes over this endpoint, in packets of 512 bytes.
const ENDPOINT: [u8; 9] = [7, 5, 0x81, 2, 0x00, 0x02, 0, 0, 0];

/// In 100 ns, as UVC counts: 15 and 30 frames a second.
const INTERVALS: [u32; 2] = [666_666, 333_333];

const LONGEST_FRAME: u32 = 614_400;

fn device_descriptor() -> Vec<u8> {
    // USB 2.0; class for interface associations; ids of pid.codes for tests; strings 1, 2, 3; one configuration.
    vec![
        18, 1, 0x00, 0x02, 0xEF, 2, 1, 64, 0x09, 0x12, 0x01, 0x00, 0x00, 0x01, 1, 2, 3, 1,
    ]
}

/// UVC 1.1, sections 3.7 and 3.9; the frame-based payload's specification, section 3.1.
fn configuration_descriptor(clip: &Clip) -> Vec<u8> {
    let short = |number: u32| u16::try_from(number).unwrap().to_le_bytes();
    let frame_head = |subtype: u8| {
        let mut bytes = vec![34, 0x24, subtype, 1, 0];
        bytes.extend(short(clip.width));
        bytes.extend(short(clip.height));
        bytes.extend([0, 0, 1, 0, 0, 0, 100, 0]); // bits a second, least and most
        bytes
    };
    let intervals = || INTERVALS.into_iter().flat_map(u32::to_le_bytes);
    let colour = [6, 0x24, 0x0D, 1, 1, 4];

    let mut formats = vec![28, 0x24, 0x10, 1, 1];
    formats.extend(*b"H264\0\0\x10\0\x80\0\0\xAA\0\x38\x9B\x71");
    formats.extend([16, 1, 0, 0, 0, 0, 1]); // variable size
    formats.extend(frame_head(0x11));
    formats.extend(interval_of(clip).to_le_bytes());
    formats.extend([2, 0, 0, 0, 0]);
    formats.extend(intervals());
    formats.extend(colour);
    formats.extend([11, 0x24, 0x06, 2, 1, 1, 1, 0, 0, 0, 0]);
    formats.extend(frame_head(0x07));
    formats.extend(LONGEST_FRAME.to_le_bytes());
    formats.extend(INTERVALS[1].to_le_bytes());
    formats.push(2);
    formats.extend(intervals());
    formats.extend(colour);

    let mut interfaces = vec![8, 11, 0, 2, 0x0E, 3, 0, 2]; // they belong together
    interfaces.extend([9, 4, 0, 0, 0, 0x0E, 1, 0, 0]); // control
    interfaces.extend([13, 0x24, 1, 0x10, 0x01, 40, 0, 0x00, 0x6C, 0xDC, 0x02, 1, 1]);
    interfaces.extend([
        18, 0x24, 2, 1, 0x01, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0,
    ]); // lens
    interfaces.extend([9, 0x24, 3, 2, 0x01, 0x01, 0, 1, 0]); // to USB
    interfaces.extend([9, 4, 1, 0, 1, 0x0E, 2, 0, 0]); // streaming
    let length = u16::try_from(15 + formats.len()).unwrap().to_le_bytes();
    interfaces.extend([
        15, 0x24, 1, 2, length[0], length[1], 0x81, 0, 2, 0, 0, 0, 1, 0, 0,
    ]);
    interfaces.extend(formats);
    interfaces.extend(&ENDPOINT[..7]);

    let length = u16::try_from(9 + interfaces.len()).unwrap().to_le_bytes();
    let mut all = vec![9, 2, length[0], length[1], 2, 1, 0, 0x80, 50];
    all.extend(interfaces);
    all
}

fn string_descriptor(index: u8) -> Option<Vec<u8>> {
    let mut bytes = vec![0, 3];
    match index {
        0 => bytes.extend([0x09, 0x04]), // English
        1..=3 => {
            let text = ["Maker", PRODUCT, "0815"][usize::from(index) - 1];
            bytes.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
        }
        _ => return None,
    }
    bytes[0] = u8::try_from(bytes.len()).unwrap();
    Some(bytes)
}

fn interval_of(clip: &Clip) -> u32 {
    INTERVALS[usize::from(clip.fps == 30)]
}

/// What is negotiated: the probe and commit controls (UVC 1.1, section 4.3.1.1).
fn stream_settings(format: u8, interval: u32) -> Vec<u8> {
    let mut block = vec![0; 34];
    block[0] = 1;
    (block[2], block[3]) = (format, 1);
    block[4..8].copy_from_slice(&interval.to_le_bytes());
    block[18..22].copy_from_slice(&LONGEST_FRAME.to_le_bytes());
    block[22..26].copy_from_slice(&16_384_u32.to_le_bytes());
    block
}

// `linux/usb/raw_gadget.h`.
const INIT: Opcode = opcode::from_components(Direction::Write, b'U', 0, 257);
const RUN: Opcode = opcode::from_components(Direction::None, b'U', 1, 0);
const EVENT_FETCH: Opcode = opcode::from_components(Direction::Read, b'U', 2, 8);
const EP0_WRITE: Opcode = opcode::from_components(Direction::Write, b'U', 3, 8);
const EP0_READ: Opcode = opcode::from_components(Direction::ReadWrite, b'U', 4, 8);
const EP_ENABLE: Opcode = opcode::from_components(Direction::Write, b'U', 5, 9);
const EP_WRITE: Opcode = opcode::from_components(Direction::Write, b'U', 7, 8);
const CONFIGURE: Opcode = opcode::from_components(Direction::None, b'U', 9, 0);
const VBUS_DRAW: Opcode = opcode::from_components(Direction::Write, b'U', 10, 4);
const EP0_STALL: Opcode = opcode::from_components(Direction::None, b'U', 12, 0);

/// `USB_RAW_EVENT_CONTROL`.
const CONTROL: u32 = 2;
/// `USB_RAW_IO_FLAGS_ZERO`: an empty packet ends what would otherwise end with a full one.
const END: u16 = 1;
/// Bytes of the frame in one transfer: with its header of two bytes it must be less than a page.
const CHUNK: usize = 4000;

struct Pass {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: What the pointer or number is, `Gadget::ioctl` answers for.
#[expect(unsafe_code, reason = "raw-gadget has no safe interface")]
unsafe impl Ioctl for Pass {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(output)
    }
}

#[derive(Clone)]
struct Gadget {
    file: Arc<File>,
    clip: Arc<Clip>,
    /// The present frame interval, in 100 ns.
    interval: Arc<AtomicU32>,
}

impl Gadget {
    fn open(clip: Clip) -> io::Result<Self> {
        let gadget = Self {
            file: Arc::new(
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open("/dev/raw-gadget")?,
            ),
            interval: Arc::new(AtomicU32::new(interval_of(&clip))),
            clip: Arc::new(clip),
        };
        let mut init = vec![0; 257];
        init[..9].copy_from_slice(b"dummy_udc");
        init[128..139].copy_from_slice(b"dummy_udc.0");
        init[256] = 3; // USB_SPEED_HIGH
        gadget.ioctl(INIT, &mut init)?;
        gadget.number(RUN, 0)?;
        Ok(gadget)
    }

    #[expect(unsafe_code, reason = "raw-gadget has no safe interface")]
    fn ioctl(&self, opcode: Opcode, argument: &mut [u8]) -> io::Result<i32> {
        let argument = argument.as_mut_ptr().cast();
        // SAFETY: Each of the calls is made with an argument of its size; those with data behind a header have as much as
        // the header says.
        let result = unsafe { ioctl(&*self.file, Pass { opcode, argument }) };
        Ok(result?)
    }

    #[expect(unsafe_code, reason = "raw-gadget has no safe interface")]
    fn number(&self, opcode: Opcode, number: usize) -> io::Result<i32> {
        let argument = std::ptr::without_provenance_mut(number);
        // SAFETY: These calls take a number, and follow no pointer.
        let result = unsafe { ioctl(&*self.file, Pass { opcode, argument }) };
        Ok(result?)
    }

    /// `usb_raw_ep_io` with its data.
    fn transfer(
        &self,
        opcode: Opcode,
        endpoint: u16,
        flags: u16,
        data: &[u8],
    ) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(8 + data.len());
        bytes.extend(endpoint.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_ne_bytes());
        bytes.extend(data);
        self.ioctl(opcode, &mut bytes)?;
        Ok(bytes.split_off(8))
    }

    /// Answers the host until the process is killed.
    fn run(&self) {
        let mut settings = stream_settings(1, interval_of(&self.clip));
        let mut endpoint = None;
        let mut streams = false;
        loop {
            let mut event = [0; 16];
            event[4] = 8;
            self.ioctl(EVENT_FETCH, &mut event).unwrap();
            if u32::from_ne_bytes(event[..4].try_into().unwrap()) != CONTROL {
                continue;
            }
            let [kind, request, value, selector, _, _, low, high] = event[8..].try_into().unwrap();
            let length = usize::from(u16::from_le_bytes([low, high]));
            let answer = |bytes: Option<Vec<u8>>| match bytes {
                Some(mut bytes) => {
                    bytes.truncate(length);
                    self.transfer(EP0_WRITE, 0, 0, &bytes).map(|_| ())
                }
                None => self.number(EP0_STALL, 0).map(|_| ()),
            };
            let take = || self.transfer(EP0_READ, 0, 0, &vec![0; length]);
            let result = match (kind, request, selector) {
                (0x80, 6, 1) => answer(Some(device_descriptor())),
                (0x80, 6, 2) => answer(Some(configuration_descriptor(&self.clip))),
                (0x80, 6, 3) => answer(string_descriptor(value)),
                (0x80, 6, 6) => answer(Some(vec![10, 6, 0x00, 0x02, 0xEF, 2, 1, 64, 1, 0])),
                // SET_CONFIGURATION
                (0x00, 9, _) => {
                    let handle = self.ioctl(EP_ENABLE, &mut ENDPOINT.clone()).unwrap();
                    endpoint = Some(u16::try_from(handle).unwrap());
                    self.number(VBUS_DRAW, 50).unwrap();
                    self.number(CONFIGURE, 0).unwrap();
                    take().map(|_| ())
                }
                // SET_INTERFACE
                (0x01, 11, _) => take().map(|_| ()),
                // GET_CUR, GET_MIN, GET_MAX, GET_DEF; GET_LEN; GET_INFO
                (0xA1, 0x81..=0x83 | 0x87, 1 | 2) => answer(Some(settings.clone())),
                (0xA1, 0x85, 1 | 2) => answer(Some(vec![34, 0])),
                (0xA1, 0x86, 1 | 2) => answer(Some(vec![3])),
                // SET_CUR
                (0x21, 1, 1 | 2) => take().map(|wanted| {
                    let interval = u32::from_le_bytes(wanted[4..8].try_into().unwrap());
                    let interval = *INTERVALS
                        .iter()
                        .find(|own| **own == interval)
                        .unwrap_or(&INTERVALS[0]);
                    settings = stream_settings(wanted[2].clamp(1, 2), interval);
                    self.interval.store(interval, Ordering::Relaxed);
                    if let (2, false, Some(endpoint)) = (selector, streams, endpoint) {
                        streams = true;
                        let gadget = self.clone();
                        thread::Builder::new()
                            .spawn(move || gadget.stream(endpoint))
                            .unwrap();
                    }
                }),
                _ => answer(None),
            };
            // The host may have turned to something else meanwhile.
            drop(result);
        }
    }

    /// The clip over and over, and of each frame the last piece half an interval after the others. While nobody reads, the
    /// write waits, which may be in the middle of a frame.
    fn stream(&self, endpoint: u16) {
        let mut due = Clock.now();
        let mut parity = 0;
        for unit in self.clip.units.iter().cycle() {
            let interval = Duration::from_nanos(100) * self.interval.load(Ordering::Relaxed);
            let chunks = unit.chunks(CHUNK).count();
            for (index, chunk) in unit.chunks(CHUNK).enumerate() {
                let last = if index + 1 == chunks { 2 } else { 0 };
                if last != 0 && index != 0 {
                    // It is encoded while it is sent.
                    thread::sleep(interval / 2);
                }
                // End of header, end of frame, frame id (UVC 1.1, section 2.4.3.3).
                let mut payload = vec![2, 0x80 | last | parity];
                payload.extend(chunk);
                if self.transfer(EP_WRITE, endpoint, END, &payload).is_err() {
                    thread::sleep(Duration::from_millis(100));
                }
            }
            parity ^= 1;
            due += interval;
            let now = Clock.now();
            due = due.max(now);
            thread::sleep(due.duration_since(now));
        }
    }
}
