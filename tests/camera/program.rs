//! The program itself: `kvsProducerApp` streams from the camera to its own endpoint, and the recording holds every frame.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use kvs_producer_app::clock::Clock;
use kvs_producer_app::frame::Codec;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::rig::{Clip, Feeder, given};
use crate::usb::UsbCamera;

/// The longest that these tests wait for a word of the program: this machine is emulated, and its host busy.
const PATIENCE: Duration = Duration::from_mins(1);

/// It is put beside the test.
fn program() -> PathBuf {
    std::env::current_exe()
        .unwrap()
        .with_file_name("kvsProducerApp")
}

/// The program while it runs.
struct Program {
    child: Child,
    log: Receiver<String>,
    seen: Vec<String>,
    recordings: Option<TempDir>,
}

/// What it came to.
struct Outcome {
    status: ExitStatus,
    report: Value,
    log: Vec<String>,
    recordings: TempDir,
}

impl Program {
    /// Starts it with these arguments beside `--local` and `--report`.
    fn start(arguments: &[&str]) -> Self {
        let recordings = tempfile::tempdir().unwrap();
        let mut child = Command::new(program())
            .arg("--local")
            .arg(recordings.path())
            .args(["--report", "-"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (line, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let listen = move || {
            for text in stderr.lines() {
                let text = text.unwrap();
                println!("    {text}");
                if line.send(text).is_err() {
                    break;
                }
            }
        };
        thread::Builder::new().spawn(listen).unwrap();
        Self {
            child,
            log,
            seen: Vec::new(),
            recordings: Some(recordings),
        }
    }

    /// Waits until the log has a line with `word` in it, which it had not before.
    #[track_caller]
    fn says(&mut self, word: &str) {
        loop {
            let Ok(line) = self.log.recv_timeout(PATIENCE) else {
                panic!("never said {word:?}; it said {:#?}", self.seen);
            };
            self.seen.push(line);
            if self.seen.last().unwrap().contains(word) {
                return;
            }
        }
    }

    /// Asks it to end, and waits for that.
    fn stop(self) -> Outcome {
        rustix::process::kill_process(self.pid(), Signal::TERM).unwrap();
        self.end()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for its end.
    fn end(mut self) -> Outcome {
        let mut report = String::new();
        let stdout = self.child.stdout.take().unwrap();
        BufReader::new(stdout).read_to_string(&mut report).unwrap();
        let status = self.child.wait().unwrap();
        self.seen.extend(self.log.iter());
        Outcome {
            status,
            report: serde_json::from_str(&report).unwrap_or_default(),
            log: std::mem::take(&mut self.seen),
            recordings: self.recordings.take().unwrap(),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A test that failed: the program would keep the camera from the next. One that ended is no process any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    /// Fails unless all that came from the first key frame on is persisted; how many frames that is.
    #[track_caller]
    fn assert_persisted(&self) -> usize {
        assert_eq!(self.status.code(), Some(0), "{:#?}", self.log);
        let frames = |of: &Value| of["frames"].as_u64().unwrap();
        let dropped = &self.report["dropped"];
        assert_eq!(
            frames(dropped),
            frames(&dropped["by_reason"]["before_key_frame"]),
            "{dropped}"
        );
        let persisted = frames(&self.report["persisted"]);
        assert_eq!(
            frames(&self.report["captured"]),
            persisted + frames(dropped)
        );
        usize::try_from(persisted).unwrap()
    }

    /// The channel's recordings, one after the other.
    fn recording(&self, channel: &str) -> Vec<u8> {
        let directory = self.recordings.path().join(channel);
        let mut files: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        files
            .iter()
            .flat_map(|file| fs::read(file).unwrap())
            .collect()
    }
}

/// The most that can stand between two frames: a cluster's head, a tag, or another file's header.
const BETWEEN: usize = 4096;

/// Which frames of the clip the recording holds, in its order. It holds nothing else.
fn frames_in(recording: &[u8], clip: &Clip) -> Vec<usize> {
    const HEAD: usize = 32;
    let payloads = clip.payloads();
    let mut heads: HashMap<&[u8], Vec<usize>> = HashMap::new();
    for (index, payload) in payloads.iter().enumerate() {
        heads.entry(&payload[..HEAD]).or_default().push(index);
    }
    let frame_at = |at: usize| {
        let rest = &recording[at..];
        let candidates = heads.get(rest.get(..HEAD)?)?;
        candidates
            .iter()
            .copied()
            .find(|index| rest.starts_with(&payloads[*index]))
    };
    let mut frames = Vec::new();
    let mut at = 0;
    while at < recording.len() {
        let next = (at..recording.len().min(at + BETWEEN)).find_map(|at| Some((at, frame_at(at)?)));
        let Some((start, index)) = next else {
            let left = recording.len() - at;
            assert!(
                left < BETWEEN,
                "{left} bytes after {} frames are no frame",
                frames.len()
            );
            break;
        };
        frames.push(index);
        at = start + payloads[index].len();
    }
    frames
}

/// Where the next frame is not the clip's next one, which begins anew after its last.
fn breaks(frames: &[usize], clip: &Clip) -> Vec<(usize, usize)> {
    let pairs = frames.windows(2).map(|pair| (pair[0], pair[1]));
    pairs
        .filter(|(one, next)| (one + 1) % clip.units.len() != *next)
        .collect()
}

/// Streams the clip for some seconds; every frame that the program counts is in the recording, once, in order.
fn stream(path: &Path, clip: &Clip, arguments: &[&str], channel: &str) {
    let _feeder = Feeder::start(path, clip);
    let mut all = arguments.to_vec();
    all.extend([channel, "8"]);
    let outcome = Program::start(&all).end();
    let persisted = outcome.assert_persisted();
    let fps = clip.fps as usize;
    // At least this much after the start, which takes longest, and the first key frame, which takes up to two seconds.
    assert!(persisted > 3 * fps, "{persisted} frames");
    let recording = outcome.recording(channel);
    let frames = frames_in(&recording, clip);
    assert_eq!(frames.len(), persisted, "frames in the recording");
    assert_eq!(breaks(&frames, clip), []);
}

#[test]
fn the_program_streams_h264() {
    let Some(path) = given("KVS_TEST_CAMERA") else {
        return;
    };
    let device = path.to_str().unwrap();
    stream(&path, &Clip::small(Codec::H264), &["-D", device], "cam");
}

#[test]
fn the_program_streams_h265() {
    let Some(path) = given("KVS_TEST_CAMERA") else {
        return;
    };
    let device = path.to_str().unwrap();
    stream(&path, &Clip::small(Codec::H265), &["-D", device], "cam");
}

#[test]
fn the_program_streams_720p() {
    let Some(path) = given("KVS_TEST_CAMERA") else {
        return;
    };
    let device = path.to_str().unwrap();
    stream(&path, &Clip::large(Codec::H264), &["-D", device], "cam");
}

/// The cameras' nodes: the loopback devices that the tests feed.
fn cameras() -> Option<(PathBuf, PathBuf)> {
    Some((given("KVS_TEST_CAMERA")?, given("KVS_TEST_SECOND_CAMERA")?))
}

#[test]
fn a_camera_is_found_by_its_name_and_without_a_word() {
    let Some((path, _)) = cameras() else {
        return;
    };
    let clip = Clip::small(Codec::H264);
    stream(&path, &clip, &["-D", "CAM0"], "cam");
    stream(&path, &clip, &[], "cam");
}

#[test]
fn two_cameras_stream_at_once() {
    let Some((first, second)) = cameras() else {
        return;
    };
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

/// The program's list of nodes, by their paths.
fn devices() -> BTreeMap<String, Value> {
    let listed = Command::new(program())
        .args(["devices", "--json"])
        .output()
        .unwrap();
    assert!(listed.status.success(), "{listed:?}");
    let Value::Array(devices) = serde_json::from_slice(&listed.stdout).unwrap() else {
        panic!("an array");
    };
    let path = |device: &Value| device["path"].as_str().unwrap().to_owned();
    devices
        .into_iter()
        .map(|device| (path(&device), device))
        .collect()
}

#[test]
fn devices_lists_what_the_nodes_are_and_who_has_them() {
    let Some((path, second)) = cameras() else {
        return;
    };
    let raw = given("KVS_TEST_RAW_CAMERA").unwrap();
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
    let holder = format!("kvsProducerApp ({})", program.child.id());
    assert!(
        camera["why_not"].as_str().unwrap().contains(&holder),
        "{camera}"
    );
    assert!(
        camera["held_by"]
            .as_array()
            .unwrap()
            .contains(&holder.into()),
        "{camera}"
    );
    program.stop();
    let text = Command::new(self::program())
        .arg("devices")
        .output()
        .unwrap();
    println!("{}", String::from_utf8(text.stdout).unwrap());
}

#[test]
fn a_camera_that_goes_away_is_waited_for_and_streams_on_when_it_is_back() {
    let Some((path, _)) = cameras() else {
        return;
    };
    let clip = Clip::small(Codec::H264);
    let feeder = Feeder::start(&path, &clip);
    let mut program = Program::start(&["-D", path.to_str().unwrap(), "cam"]);
    program.says("capturing from");
    thread::sleep(Duration::from_secs(6));
    drop(feeder);
    program.says("the camera is lost");
    thread::sleep(Duration::from_secs(10));
    let _feeder = Feeder::start(&path, &clip);
    let back = Clock.now();
    program.says("the camera is back");
    let took = Clock.now() - back;
    assert!(took < Duration::from_secs(5), "back after {took:?}");
    thread::sleep(Duration::from_secs(6));
    let outcome = program.stop();
    assert_resumed(&outcome, &clip);
}

#[test]
fn a_camera_that_stalls_for_long_streams_on() {
    let Some((path, _)) = cameras() else {
        return;
    };
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
fn a_usb_camera_that_is_unplugged_is_found_again_under_another_number() {
    if cameras().is_none() {
        return;
    }
    let clip = Clip::small(Codec::H264);
    let (camera, node) = UsbCamera::plug();
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
    let (_camera, again) = UsbCamera::plug();
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

/// Before and after an interruption the recording has whole groups of pictures, and all that is counted as persisted.
fn assert_resumed(outcome: &Outcome, clip: &Clip) {
    // Frames between the return and the first key frame depend on what was lost.
    assert!(
        matches!(outcome.status.code(), Some(0 | 9)),
        "{:#?}",
        outcome.log
    );
    let frames = |of: &Value| usize::try_from(of["frames"].as_u64().unwrap()).unwrap();
    let dropped = &outcome.report["dropped"]["by_reason"];
    let harmless = frames(&dropped["before_key_frame"]) + frames(&dropped["camera_gap"]);
    assert_eq!(frames(&outcome.report["dropped"]), harmless, "{dropped}");
    assert!(harmless <= 4 * clip.fps as usize, "{dropped}");
    let persisted = frames(&outcome.report["persisted"]);
    let held = frames_in(&outcome.recording("cam"), clip);
    assert_eq!(held.len(), persisted, "frames in the recording");
    let breaks = breaks(&held, clip);
    let gop = 2 * clip.fps as usize;
    assert!(
        breaks.len() <= 1 && breaks.iter().all(|(_, next)| next.is_multiple_of(gop)),
        "one interruption at most, and then a key frame, not {breaks:?}"
    );
    assert!(persisted > 6 * clip.fps as usize, "{persisted} frames");
}

#[test]
fn the_program_ends_when_the_camera_is_lost_if_it_is_told_to() {
    let Some((path, _)) = cameras() else {
        return;
    };
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
fn the_program_ends_with_3_when_the_camera_is_missing() {
    if given("KVS_TEST_CAMERA").is_none() {
        return;
    }
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
