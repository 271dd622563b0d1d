//! The camera of these tests: a v4l2loopback device that is fed a clip.

use std::env;
use std::fs;
use std::io::Write as _;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvs_producer_app::clock::Clock;
use kvs_producer_app::codec::{Parser, Unit};
use kvs_producer_app::frame::{Codec, Payload as _};
use rustix::io::{FdFlags, fcntl_setfd};
use v4l::video::Output;
use v4l::video::output::Parameters;
use v4l::{Device, Format, FourCC};

/// The variable's path.
pub fn given(variable: &str) -> PathBuf {
    let path = env::var_os(variable);
    let path = path.unwrap_or_else(|| {
        panic!("there is no {variable}: tests/camera/run sets it, on a machine with cameras")
    });
    path.into()
}

/// Ten seconds of encoded video, with a key frame every two seconds.
#[derive(Clone)]
pub struct Clip {
    pub codec: Codec,
    pub width: u32,
    pub height: u32,
    pub fps: u32,
    /// One access unit each.
    pub units: Vec<Vec<u8>>,
}

impl Clip {
    pub fn small(codec: Codec) -> Self {
        Self::read(codec, 640, 480, 15)
    }

    pub fn large(codec: Codec) -> Self {
        Self::read(codec, 1280, 720, 30)
    }

    fn read(codec: Codec, width: u32, height: u32, fps: u32) -> Self {
        let directory = given("KVS_TEST_CLIPS");
        let (suffix, delimiter): (_, &[u8]) = match codec {
            Codec::H264 => ("h264", &[0, 0, 0, 1, 9]),
            Codec::H265 => ("h265", &[0, 0, 0, 1, 0x46, 1]),
        };
        let name = format!("{width}x{height}.{suffix}");
        let units = access_units(&fs::read(directory.join(&name)).unwrap(), delimiter);
        let expected = 10 * fps as usize;
        assert_eq!(units.len(), expected, "access units in {name}");
        Self {
            codec,
            width,
            height,
            fps,
            units,
        }
    }

    /// What the units are on the wire.
    pub fn payloads(&self) -> Vec<Vec<u8>> {
        let mut parser = Parser::new(self.codec);
        let payload = |unit: &Vec<u8>| {
            let mut bytes = Vec::new();
            match parser.parse(unit) {
                Ok(Unit::Picture(picture)) => {
                    picture.for_each_part(&mut |part| bytes.extend_from_slice(part));
                }
                other => panic!("a picture, not {other:?}"),
            }
            bytes
        };
        self.units.iter().map(payload).collect()
    }
}

/// The access units of an Annex B stream in which each begins with a delimiter.
fn access_units(stream: &[u8], delimiter: &[u8]) -> Vec<Vec<u8>> {
    let starts: Vec<usize> = (0..stream.len())
        .filter(|at| stream[*at..].starts_with(delimiter))
        .collect();
    let ends = starts.iter().copied().skip(1).chain([stream.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(start, end)| stream[*start..end].to_vec())
        .collect()
}

/// Makes the loopback device a camera that delivers the clip, for as long as the value lives. It is one from the first
/// frame on.
pub fn camera(path: &Path, clip: &Clip) -> Device {
    let fourcc = FourCC::new(match clip.codec {
        Codec::H264 => b"H264",
        Codec::H265 => b"HEVC",
    });
    let mut device = Device::with_path(path).unwrap();
    close_on_exec(&device);
    let format = Format::new(clip.width, clip.height, fourcc);
    let format = Output::set_format(&device, &format).unwrap();
    assert_eq!(
        (format.fourcc, format.width),
        (fourcc, clip.width),
        "the loopback device keeps its old format"
    );
    Output::set_params(&device, &Parameters::with_fps(clip.fps)).unwrap();
    device.write_all(&clip.units[0]).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let state = format!("/sys/devices/virtual/video4linux/{name}/state");
    for _ in 0..100 {
        if fs::read_to_string(&state).unwrap().trim() == "capture" {
            return device;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("{name} did not become a camera");
}

/// The programs that the tests start must not keep the camera alive.
#[expect(unsafe_code, reason = "v4l lends its descriptor as a number only")]
fn close_on_exec(device: &Device) {
    let handle = device.handle();
    // SAFETY: `handle` keeps the descriptor open for as long as it is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(handle.fd()) };
    fcntl_setfd(fd, FdFlags::CLOEXEC).unwrap();
}

/// Writes one frame.
pub fn write(device: &mut Device, unit: &[u8]) {
    let written = device.write(unit).unwrap();
    assert_eq!(written, unit.len(), "longer than the device's buffers");
}

/// A camera that plays its clip over and over, at its pace, until it is dropped.
pub struct Feeder {
    stop: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Feeder {
    pub fn start(path: &Path, clip: &Clip) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let paused = Arc::new(AtomicBool::new(false));
        let mut device = camera(path, clip);
        let (stopped, waits, clip) = (Arc::clone(&stop), Arc::clone(&paused), clip.clone());
        let play = move || {
            let interval = Duration::from_secs(1) / clip.fps;
            let mut due = Clock.now();
            // The first is in the device already.
            for unit in clip.units.iter().cycle().skip(1) {
                while waits.load(Ordering::Relaxed) && !stopped.load(Ordering::Relaxed) {
                    thread::sleep(interval);
                    due = Clock.now();
                }
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                write(&mut device, unit);
                due += interval;
                thread::sleep(due.saturating_duration_since(Clock.now()));
            }
        };
        let thread = thread::Builder::new().spawn(play).unwrap();
        Self {
            stop,
            paused,
            thread: Some(thread),
        }
    }

    /// Whether the camera is there and delivers nothing.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            result
                .expect("it is taken once")
                .expect("the feeder ended well");
        }
    }
}
