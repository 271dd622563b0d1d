//! The camera source on real V4L2 drivers. `tests/camera/run` boots machines that have them and runs this there, with the
//! program that is shipped beside it; anywhere else these tests are ignored.
//!
//! The camera is mostly a v4l2loopback device: each test feeds it a clip, and what comes out must be the same bytes.

mod encoder;
mod memory;
mod program;
mod rig;
mod scenarios;
mod service;
mod usb;

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kvs_producer_app::clock::Clock;
use kvs_producer_app::frame::{CameraLosses, Codec};
use kvs_producer_app::shutdown;
use kvs_producer_app::source::v4l2::{Leftover, Options, V4l2};
use kvs_producer_app::source::{Read, Source, Wait};
use v4l::Device;

use crate::rig::{Clip, camera, given, write};

/// Plays the clip into the device, its first frame again and again until `watched`.
fn feed(device: &mut Device, clip: &Clip, watched: &AtomicBool) {
    let mut play = |unit: &[u8]| {
        write(device, unit);
        thread::sleep(Duration::from_secs(1) / clip.fps);
    };
    // Bounded, so that a camera that does not start fails the test and does not hang it.
    for _ in 0..clip.fps * 20 {
        if watched.load(Ordering::Relaxed) {
            break;
        }
        play(&clip.units[0]);
    }
    for unit in &clip.units[1..] {
        play(unit);
    }
}

/// What the camera delivers up to a frame that equals `last`; the repeated first frame only once.
fn record(camera: &mut V4l2, first: &[u8], last: &[u8], watched: &AtomicBool) -> Vec<Vec<u8>> {
    let clock = Clock;
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let mut before = Duration::ZERO;
    let mut silence = 0;
    let (_trigger, shutdown) = shutdown::pair().unwrap();
    while frames.last().is_none_or(|frame| frame != last) {
        let wait = Wait {
            shutdown: &shutdown,
            until: Some(clock.now() + Duration::from_millis(200)),
        };
        let Read::Packet(packet) = camera.read(wait).unwrap() else {
            silence += 1;
            assert!(
                silence < 50,
                "the camera fell silent after {} frames",
                frames.len()
            );
            continue;
        };
        silence = 0;
        watched.store(true, Ordering::Relaxed);
        assert!(
            packet.at > before,
            "time went from {before:?} to {:?}",
            packet.at
        );
        assert!(packet.at <= clock.monotonic());
        assert!(!packet.discontinuity, "a gap before frame {}", frames.len());
        before = packet.at;
        if frames.len() != 1 || packet.data != first {
            frames.push(packet.data.to_vec());
        }
    }
    frames
}

/// Every frame that goes in comes out, once, in order, the same bytes.
fn play_through(clip: impl FnOnce() -> Clip, options: &Options, description: &str) {
    let path = given("KVS_TEST_CAMERA");
    let clip = &clip();
    let mut device = camera(&path, clip);
    let units = &clip.units;
    let watched = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| feed(&mut device, clip, &watched));
        let mut camera = V4l2::open(&path, options, Clock).unwrap();
        assert_eq!(
            camera.describe(),
            format!("{} (cam0): {description}", path.display())
        );
        let frames = record(&mut camera, &units[0], &units[units.len() - 1], &watched);
        assert_eq!(frames.len(), units.len());
        let changed = frames
            .iter()
            .zip(units)
            .position(|(frame, unit)| frame != unit);
        assert_eq!(
            changed.map(|n| (n, frames[n].len(), units[n].len())),
            None,
            "frame, its length, the clip's"
        );
        let CameraLosses {
            dropped_by_driver,
            damaged,
            ..
        } = camera.losses();
        assert_eq!((dropped_by_driver, damaged), (0, 0));
    });
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn h264_comes_through_byte_for_byte() {
    let small = || Clip::small(Codec::H264);
    play_through(small, &Options::default(), "H.264 640x480 at 15/1");
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn h265_comes_through_byte_for_byte() {
    let options = Options {
        codec: Some(Codec::H265),
        ..Options::default()
    };
    let large = || Clip::large(Codec::H265);
    play_through(large, &options, "H.265 1280x720 at 30/1");
}

/// Set where a test runs once more, in a process of its own.
const AGAIN: &str = "KVS_TEST_AGAIN";

fn in_another_process() -> bool {
    env::var_os(AGAIN).is_some()
}

/// The same test once more.
fn in_process(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "--include-ignored", test])
        .env(AGAIN, "1");
    command
}

/// What `V4l2::open` says to this path.
fn refusal(path: &Path) -> String {
    match V4l2::open(path, &Options::default(), Clock) {
        Ok(camera) => panic!("opened: {}", camera.describe()),
        Err(error) => kvs_producer_app::chain(&error).to_string(),
    }
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_camera_without_encoder_is_refused_with_what_it_offers() {
    let path = given("KVS_TEST_RAW_CAMERA");
    let said = refusal(&path);
    assert!(
        said.contains("neither H.264 nor H.265, it offers ") && said.contains("YUYV"),
        "{said}"
    );
    assert!(said.contains("ffmpeg -f v4l2 -i "), "{said}");
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_multi_planar_camera_without_encoder_is_listed_and_refused_with_what_it_offers() {
    let path = given("KVS_TEST_RAW_PLANAR_CAMERA");
    let said = refusal(&path);
    // NM12, which has its planes apart, is among what it offers in that way only.
    let listed = &program::devices()[path.to_str().unwrap()];
    let formats = listed["formats"].as_array().unwrap();
    let planar = formats.iter().find(|format| format["fourcc"] == "NM12");
    let size = &planar.unwrap()["sizes"][0];
    assert!(
        size["width"].as_u64() > Some(0) && size["fps"][0].as_f64() > Some(0.0),
        "{size}"
    );
    assert_eq!(listed["usable"], false);
    let offered = said.contains("neither H.264 nor H.265, it offers YUYV");
    assert!(
        offered && said.contains(listed["why_not"].as_str().unwrap()),
        "{said}"
    );
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_camera_in_use_is_refused() {
    let path = given("KVS_TEST_CAMERA");
    let _device = camera(&path, &Clip::small(Codec::H264));
    let first = V4l2::open(&path, &Options::default(), Clock).unwrap();
    let said = refusal(&path);
    assert!(said.contains("busy: "), "{said}");
    drop(first);
    V4l2::open(&path, &Options::default(), Clock).unwrap();
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_camera_that_a_lost_thread_keeps_can_be_had_back() {
    // What is left behind ends with its process, so that the next test has the camera.
    if !in_another_process() {
        let mut process = in_process("a_camera_that_a_lost_thread_keeps_can_be_had_back");
        assert!(process.status().unwrap().success());
        return;
    }
    let path = given("KVS_TEST_CAMERA");
    let _device = camera(&path, &Clip::small(Codec::H264));
    let leftover = Leftover::default();
    let open = || V4l2::open_entered(&path, &Options::default(), Clock, &leftover).unwrap();
    // So does a thread that panics and is left where it stands.
    std::mem::forget(open());
    let said = refusal(&path);
    assert!(said.contains("busy: "), "{said}");
    leftover.stop().unwrap();
    drop(open());
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_loopback_device_that_nobody_feeds_is_refused() {
    let path = given("KVS_TEST_CAMERA");
    let said = refusal(&path);
    assert!(said.contains("start first what feeds it"), "{said}");
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn an_absent_node_is_refused_with_those_that_are_there() {
    let path = given("KVS_TEST_CAMERA");
    let said = refusal(Path::new("/dev/video99"));
    assert!(
        said.contains("there is no such device; this machine has "),
        "{said}"
    );
    assert!(said.contains(path.to_str().unwrap()), "{said}");
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_forbidden_camera_is_refused_with_the_group_that_may() {
    let path = given("KVS_TEST_CAMERA");
    if in_another_process() {
        let said = refusal(&path);
        assert!(
            said.contains("not permitted: ") && said.contains("`usermod -aG video nobody`"),
            "{said}"
        );
        return;
    }
    let mut nobody = in_process("a_forbidden_camera_is_refused_with_the_group_that_may");
    assert!(nobody.uid(65534).gid(65534).status().unwrap().success());
}

#[test]
fn a_device_that_is_no_camera_is_refused() {
    let said = refusal(Path::new("/dev/null"));
    assert!(
        said.starts_with("/dev/null: not a video device; "),
        "{said}"
    );
}
