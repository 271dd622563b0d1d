//! The program on cameras that are fed, stall, go away and come back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use kvs_producer_app::clock::Clock;
use kvs_producer_app::frame::Codec;
use kvs_producer_app::local::view::Closed;
use kvs_producer_app::shutdown;
use kvs_producer_app::source::v4l2::{Options, V4l2};
use kvs_producer_app::source::{Read, Source as _, Wait};
use serde_json::Value;

use crate::program::{
    self, Program, assert_changed, assert_resumed, breaks, devices, frames_in, stream,
};
use crate::rig::{Clip, Feeder, given};
use crate::usb::{Takes, UsbCamera};

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn the_program_streams_h264() {
    stream_both(Codec::H264);
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn the_program_streams_h265() {
    stream_both(Codec::H265);
}

/// 640x480 at 15 frames a second, and 1280x720 at 30.
fn stream_both(codec: Codec) {
    let path = given("KVS_TEST_CAMERA");
    let device = path.to_str().unwrap();
    for clip in [Clip::small(codec), Clip::large(codec)] {
        stream(&path, &clip, &["-D", device], "cam");
    }
}

/// The cameras' nodes: the loopback devices that the tests feed.
fn cameras() -> (PathBuf, PathBuf) {
    (given("KVS_TEST_CAMERA"), given("KVS_TEST_SECOND_CAMERA"))
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_camera_is_found_by_its_name_and_without_a_word() {
    let path = given("KVS_TEST_CAMERA");
    let clip = Clip::small(Codec::H264);
    stream(&path, &clip, &["-D", "CAM0"], "cam");
    let outcome = stream(&path, &clip, &[], "cam");
    let named = format!("taking the camera {}", path.display());
    assert!(
        outcome.log.iter().any(|line| line.contains(&named)),
        "{:#?}",
        outcome.log
    );
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn two_cameras_stream_at_once() {
    let (first, second) = cameras();
    thread::scope(|scope| {
        let other = || {
            let device = second.to_str().unwrap();
            stream(&second, &Clip::small(Codec::H265), &["-D", device], "two");
        };
        scope.spawn(other);
        let device = first.to_str().unwrap();
        stream(&first, &Clip::small(Codec::H264), &["-D", device], "one");
    });
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn devices_lists_what_the_nodes_are_and_who_has_them() {
    let (path, second) = cameras();
    let raw = given("KVS_TEST_RAW_CAMERA");
    let of =
        |devices: &BTreeMap<String, Value>, path: &Path| devices[path.to_str().unwrap()].clone();
    let _feeder = Feeder::start(&path, &Clip::small(Codec::H264));
    let idle = devices();
    let camera = of(&idle, &path);
    assert_eq!(
        (&camera["usable"], &camera["codec"]),
        (&true.into(), &"H.264".into())
    );
    assert_eq!(
        (&camera["card"], &camera["driver"]),
        (&"cam0".into(), &"v4l2 loopback".into())
    );
    let size = &camera["formats"][0]["sizes"][0];
    assert_eq!(
        (&size["width"], &size["height"]),
        (&640.into(), &480.into())
    );
    assert_eq!(size["fps"][0], 15.0);
    let unfed = of(&idle, &second);
    assert_eq!(unfed["usable"], false);
    assert!(
        unfed["why_not"]
            .as_str()
            .unwrap()
            .contains("start first what feeds it")
    );
    let vivid = of(&idle, &raw);
    assert!(
        vivid["why_not"]
            .as_str()
            .unwrap()
            .contains("neither H.264 nor H.265")
    );
    assert!(vivid["formats"].as_array().unwrap().len() > 1);

    let mut program = Program::start(&["-D", path.to_str().unwrap(), "cam"]);
    program.says("capturing from");
    let camera = of(&devices(), &path);
    assert_eq!(camera["usable"], false);
    let holder = format!("kvsProducerApp ({})", program.pid().as_raw_nonzero());
    assert!(
        camera["why_not"].as_str().unwrap().contains(&holder),
        "{camera}"
    );
    assert!(
        camera["held_by"]
            .as_array()
            .unwrap()
            .contains(&holder.as_str().into()),
        "{camera}"
    );
    let refused = Program::start(&["-D", path.to_str().unwrap(), "cam", "-q"]).end();
    assert_eq!(refused.status.code(), Some(3), "{:#?}", refused.log);
    let [line] = refused.log.as_slice() else {
        panic!("one line, not {:#?}", refused.log);
    };
    let busy = format!("kvsProducerApp: {}: busy: in use by ", path.display());
    assert!(line.starts_with(&busy) && line.contains(&holder), "{line}");
    program.stop();
    let text = Command::new(program::path())
        .arg("devices")
        .output()
        .unwrap();
    println!("{}", String::from_utf8(text.stdout).unwrap());
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_camera_that_goes_away_is_waited_for_and_streams_on_when_it_is_back() {
    let path = given("KVS_TEST_CAMERA");
    let clip = Clip::small(Codec::H264);
    let feeder = Feeder::start(&path, &clip);
    let mut program = Program::start(&["-D", path.to_str().unwrap(), "cam"]);
    program.says("capturing from");
    thread::sleep(Duration::from_secs(6));
    drop(feeder);
    program.says("the camera is lost");
    // Waiting for it is almost no work, even on this emulated machine.
    let time = Duration::from_secs(20);
    let before = program.processor_time();
    thread::sleep(time);
    let used = program.processor_time().saturating_sub(before);
    println!("waiting for the camera took {used:?} of the processor in {time:?}");
    assert!(used < time / 50, "{used:?} of {time:?}");
    let _feeder = Feeder::start(&path, &clip);
    let back = Clock.now();
    program.says("the camera is back");
    let took = Clock.now() - back;
    assert!(took < Duration::from_secs(5), "back after {took:?}");
    thread::sleep(Duration::from_secs(6));
    let outcome = program.stop();
    assert_resumed(&outcome, &clip);
    // The service ends a connection that brings nothing for 30 s: it was let go before, in order.
    let state = outcome.service.state();
    assert_eq!(state.connections[0].closed, Some(Closed::Completed));
    assert!(state.connections.len() > 1);
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_camera_that_comes_back_with_another_codec_streams_on_in_a_new_connection() {
    let path = given("KVS_TEST_CAMERA");
    let (first, second) = (Clip::small(Codec::H264), Clip::large(Codec::H265));
    let feeder = Feeder::start(&path, &first);
    let mut program = Program::start(&["-D", path.to_str().unwrap(), "cam"]);
    program.streams_on(1);
    thread::sleep(Duration::from_secs(6));
    drop(feeder);
    program.says("the camera is lost");
    let _feeder = Feeder::start(&path, &second);
    let back = Clock.now();
    program.says("the camera is back: /dev/video10 (cam0): H.265 1280x720 at 30/1");
    program.streams_on(2);
    let took = Clock.now() - back;
    println!("streams on after {took:?}");
    assert!(took < Duration::from_secs(5), "streams on after {took:?}");
    thread::sleep(Duration::from_secs(6));
    assert_changed(&program.stop(), [&first, &second]);
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_camera_that_stalls_for_long_streams_on() {
    let path = given("KVS_TEST_CAMERA");
    let clip = Clip::small(Codec::H264);
    let feeder = Feeder::start(&path, &clip);
    let mut program = Program::start(&["-D", path.to_str().unwrap(), "cam"]);
    program.says("capturing from");
    thread::sleep(Duration::from_secs(6));
    feeder.pause(true);
    program.says("the camera stalls: starting its stream anew");
    program.says("the camera is lost");
    thread::sleep(Duration::from_secs(24));
    feeder.pause(false);
    let back = Clock.now();
    program.says("the camera is back");
    let took = Clock.now() - back;
    assert!(took < Duration::from_secs(5), "back after {took:?}");
    thread::sleep(Duration::from_secs(6));
    let outcome = program.stop();
    assert_resumed(&outcome, &clip);
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_usb_camera_that_is_unplugged_is_found_again_under_another_number() {
    let clip = Clip::small(Codec::H264);
    let (camera, node) = UsbCamera::plug(Takes::Small);
    let listed = devices()[node.to_str().unwrap()].clone();
    assert_eq!(
        (&listed["usable"], &listed["driver"]),
        (&true.into(), &"uvcvideo".into()),
        "{listed:#}"
    );
    assert_eq!(
        listed["formats"][0]["sizes"][0]["fps"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    // Its metadata has a node of its own.
    let metadata = devices().into_values().find(|device| {
        let why = device["why_not"].as_str().unwrap_or_default();
        why.contains("this is the node of Gate Camera: Gate Camera for metadata")
    });
    assert_eq!(metadata.unwrap()["driver"], "uvcvideo");
    let mut program = Program::start(&["-D", "gate", "--fps", "15", "--bitrate", "1M", "cam"]);
    // A USB camera has no encoder controls.
    program.says("does not do all that is asked: bitrate cannot be set");
    program.says(&format!("capturing from {}", node.display()));
    thread::sleep(Duration::from_secs(8));
    // While somebody has the old node open, its number is not given to another.
    let old = fs::File::open(&node).unwrap();
    drop(camera);
    program.says("the camera is lost");
    thread::sleep(Duration::from_secs(5));
    let (_camera, again) = UsbCamera::plug(Takes::Small);
    assert_ne!(again, node);
    let back = Clock.now();
    program.says(&format!(
        "the camera is back: {} ({}",
        again.display(),
        listed["card"].as_str().unwrap()
    ));
    let took = Clock.now() - back;
    assert!(took < Duration::from_secs(5), "back after {took:?}");
    drop(old);
    thread::sleep(Duration::from_secs(8));
    let outcome = program.stop();
    assert_resumed(&outcome, &clip);
}

/// A name under /dev/v4l/by-id, as udev would keep it.
struct Link {
    path: PathBuf,
}

impl Link {
    fn to(node: &Path) -> Self {
        let path = Path::new("/dev/v4l/by-id").join("usb-Maker_Gate_Camera_0815-video-index0");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(node, &path).unwrap();
        Self { path }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn a_usb_camera_that_comes_back_with_another_size_streams_on_in_a_new_connection() {
    let (camera, node) = UsbCamera::plug(Takes::Small);
    let link = Link::to(&node);
    let by_id = link.path.to_str().unwrap();
    assert_eq!(devices()[node.to_str().unwrap()]["identity"], by_id);
    let mut program = Program::start(&["-D", by_id, "cam"]);
    program.says(&format!("capturing from {by_id} "));
    program.streams_on(1);
    thread::sleep(Duration::from_secs(6));
    drop(link);
    drop(camera);
    program.says("the camera is lost");
    let (_camera, node) = UsbCamera::plug(Takes::Large);
    let link = Link::to(&node);
    let back = Clock.now();
    program.says(&format!("the camera is back: {} ", link.path.display()));
    program.streams_on(2);
    let took = Clock.now() - back;
    println!("streams on after {took:?}");
    assert!(took < Duration::from_secs(5), "streams on after {took:?}");
    thread::sleep(Duration::from_secs(6));
    let clips = [Clip::small(Codec::H264), Clip::large(Codec::H264)];
    assert_changed(&program.stop(), [&clips[0], &clips[1]]);
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn what_a_usb_camera_has_left_over_from_an_earlier_stream_is_not_streamed() {
    let (_camera, node) = UsbCamera::plug(Takes::Small);
    let path = node.to_str().unwrap();
    let clip = Clip::small(Codec::H264);
    // It is not told when a stream ends: the rest of the frame that it was sending comes first in the next.
    let watch = |frames: usize| {
        let mut camera = V4l2::open(&node, &Options::default(), Clock).unwrap();
        let deadline = Clock.now() + Duration::from_secs(20);
        let (_trigger, shutdown) = shutdown::pair().unwrap();
        let wait = Wait {
            shutdown: &shutdown,
            until: Some(deadline),
        };
        let mut units = Vec::new();
        while units.len() < frames && Clock.now() < deadline {
            if let Read::Packet(packet) = camera.read(wait).unwrap() {
                units.push(packet.data.to_vec());
            }
        }
        // Three quarters of an interval after the last: in the middle of the next.
        thread::sleep(Duration::from_secs(3) / (4 * clip.fps));
        units
    };
    let whole = |unit: &Vec<u8>| clip.units.contains(unit);
    assert!(watch(10).iter().all(whole));
    let again = watch(10);
    let rest = again[0].as_slice();
    assert!(!whole(&again[0]), "there was nothing left over");
    assert!(clip.units.iter().any(|unit| unit.ends_with(rest)));
    assert!(again[1..].iter().all(whole));

    // It is no frame, and no reason to complain, before the first key frame.
    let outcome = Program::start(&["-v", "-D", path, "cam", "8"]).end();
    let persisted = outcome.assert_persisted();
    let held = frames_in(&outcome.service.recordings("cam").concat(), &clip);
    assert_eq!(held.len(), persisted);
    assert_eq!(breaks(&held, &clip), []);
    let found = |word| outcome.log.iter().any(|line| line.contains(word));
    assert!(found("no NAL unit"), "{:#?}", outcome.log);
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn the_program_ends_when_the_camera_is_lost_if_it_is_told_to() {
    let path = given("KVS_TEST_CAMERA");
    let feeder = Feeder::start(&path, &Clip::small(Codec::H264));
    let device = path.to_str().unwrap();
    let mut program = Program::start(&["-D", device, "--exit-on-camera-loss", "cam"]);
    program.says("capturing from");
    thread::sleep(Duration::from_secs(5));
    drop(feeder);
    let outcome = program.end();
    assert_eq!(outcome.status.code(), Some(3), "{:#?}", outcome.log);
    let last = outcome.log.last().unwrap();
    assert!(
        last.starts_with("kvsProducerApp: lost the camera "),
        "{last}"
    );
    // What came before is there all the same.
    assert!(outcome.report["persisted"]["frames"].as_u64().unwrap() > 15);
}

#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn the_program_ends_with_3_when_the_camera_is_missing() {
    let outcome = Program::start(&["-D", "/dev/video99", "cam", "8", "-q"]).end();
    assert_eq!(outcome.status.code(), Some(3), "{:#?}", outcome.log);
    let [line] = outcome.log.as_slice() else {
        panic!("one line, not {:#?}", outcome.log);
    };
    assert!(
        line.starts_with("kvsProducerApp: /dev/video99: there is no such device; "),
        "{line}"
    );
}
