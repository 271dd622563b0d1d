//! A camera chip: `encoder.c` is its driver, multi-planar and with the controls of an encoder, as the kernel's own are. What
//! it encodes comes from here.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvs_producer_app::clock::Clock;
use kvs_producer_app::frame::Codec;

use crate::program::{Outcome, Program, breaks, devices, frames_in};
use crate::rig::{Clip, given};

/// A byte that makes the driver have an accident, see `encoder.c`.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Accident {
    NoBuffer = b'd',
    Damaged = b'e',
    Empty = b'z',
}

/// The encoder while it works. It makes a key frame when it is asked to, and else only two seconds after the last.
struct Chip {
    stop: Arc<AtomicBool>,
    accidents: Sender<Accident>,
    thread: Option<JoinHandle<()>>,
}

/// How often a key frame was asked for, ever.
fn asked(feed: &File) -> u32 {
    let mut text = [0; 16];
    let length = feed.read_at(&mut text, 0).unwrap();
    let text = std::str::from_utf8(&text[..length]).unwrap();
    text.trim().parse().unwrap()
}

impl Chip {
    fn start(clip: &Clip) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (accidents, happen) = channel();
        let (stopped, clip) = (Arc::clone(&stop), clip.clone());
        let feed = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/encoder-feed")
            .unwrap();
        let encode = move || Self::encode(feed, &clip, &stopped, &happen);
        Self {
            stop,
            accidents,
            thread: Some(thread::Builder::new().spawn(encode).unwrap()),
        }
    }

    fn encode(mut feed: File, clip: &Clip, stop: &AtomicBool, accidents: &Receiver<Accident>) {
        let gop = 2 * clip.fps as usize;
        let interval = Duration::from_secs(1) / clip.fps;
        let mut due = Clock.now();
        let mut heard = asked(&feed);
        // Until somebody asks, and after an accident, it has only what decodes from an earlier key frame.
        let mut lost = true;
        let mut next: usize = 1;
        while !stop.load(Ordering::Relaxed) {
            let asked = asked(&feed);
            if asked != heard {
                heard = asked;
                lost = false;
                next = next.next_multiple_of(gop) % clip.units.len();
            }
            if let Ok(accident) = accidents.try_recv() {
                feed.write_all(&[accident as u8]).unwrap();
                lost |= !matches!(accident, Accident::Empty);
            } else {
                feed.write_all(&clip.units[next]).unwrap();
                next = (next + 1) % clip.units.len();
            }
            if lost && next.is_multiple_of(gop) {
                next = (next + clip.units.len() - gop + 1) % clip.units.len();
            }
            due += interval;
            thread::sleep(due.saturating_duration_since(Clock.now()));
        }
    }

    fn has(&self, accident: Accident) {
        self.accidents.send(accident).unwrap();
    }
}

impl Drop for Chip {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            let result = result.expect("it is taken once");
            result.expect("the encoder ended well");
        }
    }
}

/// The recording has all that is counted as persisted, and after each of so many interruptions begins with a key frame.
#[track_caller]
fn assert_recorded(outcome: &Outcome, clip: &Clip, interruptions: usize) {
    let recorded = frames_in(&outcome.service.recordings("chip").concat(), clip);
    let persisted = outcome.report["persisted"]["frames"].as_u64().unwrap();
    assert_eq!(recorded.len() as u64, persisted);
    assert!(
        recorded.len() > 5 * clip.fps as usize,
        "{} frames",
        recorded.len()
    );
    let gop = 2 * clip.fps as usize;
    let breaks = breaks(&recorded, clip);
    assert!(
        recorded[0].is_multiple_of(gop),
        "begins with {}",
        recorded[0]
    );
    assert!(
        breaks.len() <= interruptions && breaks.iter().all(|(_, next)| next.is_multiple_of(gop)),
        "{breaks:?}"
    );
}

/// How many frames were of no use, for this reason.
fn dropped(outcome: &Outcome, reason: &str) -> u64 {
    let dropped = &outcome.report["dropped"]["by_reason"][reason]["frames"];
    dropped.as_u64().unwrap()
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_camera_chip_is_told_what_is_asked_and_streams() {
    let path = given("KVS_TEST_CHIP_CAMERA");
    let path = path.to_str().unwrap();
    let clip = Clip::small(Codec::H264);
    let before = &devices()[path];
    assert_eq!(
        (&before["usable"], &before["codec"], &before["card"]),
        (&true.into(), &"H.264".into(), &"Chip Camera".into())
    );
    let _chip = Chip::start(&clip);
    let asked = [
        ["--size", "640x480"],
        ["--fps", "15"],
        ["--bitrate", "8M"],
        ["--gop", "2"],
        ["--profile", "high"],
    ]
    .concat();
    let arguments = [&["-D", "chip", "chip", "10"], asked.as_slice()].concat();
    let mut program = Program::start(&arguments);
    program.says(&format!(
        "capturing from {path} (Chip Camera): H.264 640x480 at 15/1"
    ));
    let controls = devices()[path]["controls"].clone();
    for (name, value) in [
        ("bitrate", 4_000_000),
        ("bitrate_mode", 1),
        ("h264_i_period", 30),
        ("b_frames", 0),
        ("repeat_sequence_header", 1),
        ("h264_profile", 2),
        // 2.2: what 640x480 at 15 frames a second takes.
        ("h264_level", 7),
    ] {
        assert_eq!(controls[name]["value"], value, "{name}: {controls:#}");
    }
    let outcome = program.end();
    outcome.assert_persisted();
    assert_recorded(&outcome, &clip, 0);
    // What the driver made of it otherwise is said, once, plainly.
    let said = "does not do all that is asked: bitrate is 4000000 bit/s, not 8000000 bit/s; profile is main, not high";
    let lines = outcome.log.iter().filter(|line| line.contains(said));
    assert_eq!(lines.count(), 1, "{:#?}", outcome.log);
    // The first fragment came at once: half a second is for this machine.
    assert!(dropped(&outcome, "before_key_frame") < 8);
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_camera_chip_that_has_both_gives_h265_when_that_is_asked() {
    let path = given("KVS_TEST_CHIP_CAMERA");
    let path = path.to_str().unwrap();
    let clip = Clip::small(Codec::H265);
    let _chip = Chip::start(&clip);
    let arguments = ["--codec", "h265", "--size", "640x480", "--fps", "15"];
    let arguments = [&["-D", path, "chip", "8"], arguments.as_slice()].concat();
    let mut program = Program::start(&arguments);
    program.says(&format!(
        "capturing from {path} (Chip Camera): H.265 640x480 at 15/1"
    ));
    // Not asked for, and so not spoken of: this encoder has an interval for H.264 alone.
    let outcome = program.end();
    outcome.assert_persisted();
    assert_recorded(&outcome, &clip, 0);
    let complains = outcome
        .log
        .iter()
        .any(|line| line.contains("all that is asked"));
    assert!(!complains, "{:#?}", outcome.log);
}

#[cfg(target_pointer_width = "32")]
#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_kernel_that_does_not_know_buffers_with_64_bit_time_streams() {
    const OLD: &str = "/sys/module/encoder/parameters/old";
    let path = given("KVS_TEST_CHIP_CAMERA");
    let clip = Clip::small(Codec::H264);
    let _chip = Chip::start(&clip);
    for (old, layout) in [("Y", "layout=68"), ("N", "layout=80")] {
        std::fs::write(OLD, old).unwrap();
        let arguments = ["-v", "--size", "640x480", "--fps", "15", "-D"];
        let arguments = [&arguments, [path.to_str().unwrap(), "chip", "8"].as_slice()].concat();
        let outcome = Program::start(&arguments).end();
        outcome.assert_persisted();
        assert_recorded(&outcome, &clip, 0);
        let mapped = outcome
            .log
            .iter()
            .find(|line| line.contains("buffers mapped"));
        assert!(mapped.unwrap().contains(layout), "{mapped:?}");
    }
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn what_a_camera_chip_loses_is_counted_and_a_key_frame_asked_for() {
    let path = given("KVS_TEST_CHIP_CAMERA");
    let clip = Clip::small(Codec::H264);
    let encoder = Chip::start(&clip);
    let arguments = [
        "--size",
        "640x480",
        "--fps",
        "15",
        "-D",
        path.to_str().unwrap(),
        "chip",
    ];
    let program = Program::start(&arguments);
    program.streams_on(1);
    thread::sleep(Duration::from_secs(3));
    for accident in [Accident::NoBuffer, Accident::Empty, Accident::Damaged] {
        encoder.has(accident);
        thread::sleep(Duration::from_millis(2500));
    }
    let outcome = program.stop();
    // The report tells of it.
    assert_eq!(outcome.status.code(), Some(9), "{:#?}", outcome.log);
    let camera = &outcome.report["camera"];
    assert_eq!(
        (
            &camera["dropped_by_driver"],
            &camera["damaged"],
            &camera["void"]
        ),
        (&1.into(), &1.into(), &1.into()),
        "{camera}"
    );
    assert_recorded(&outcome, &clip, 2);
    // Twice there is a gap, each ended by a key frame that was asked for, within half a second.
    let in_gaps = dropped(&outcome, "camera_gap");
    assert!((2..16).contains(&in_gaps), "{in_gaps} frames");
}
