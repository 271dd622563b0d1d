//! The program itself: `kvsProducerApp` streams from the camera to its own endpoint, and the recording holds every frame.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use kvs_producer_app::frame::Codec;
use memchr::memmem;
use serde_json::Value;
use tempfile::TempDir;

use crate::rig::{Clip, Feeder, given};

/// The longest that these tests wait for a word of the program: this machine is emulated, and its host busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program while it runs.
struct Program {
    child: Child,
    log: Receiver<String>,
    seen: Vec<String>,
    recordings: TempDir,
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
        let program = std::env::current_exe()
            .unwrap()
            .with_file_name("kvsProducerApp");
        let recordings = tempfile::tempdir().unwrap();
        let mut child = Command::new(program)
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
        thread::spawn(move || {
            for text in stderr.lines() {
                let text = text.unwrap();
                println!("    {text}");
                if line.send(text).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            log,
            seen: Vec::new(),
            recordings,
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
            log: self.seen,
            recordings: self.recordings,
        }
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

/// How many frames of the clip the recording holds in a row, beginning with one of its key frames, at most `most`.
fn frames_in_a_row(recording: &[u8], payloads: &[Vec<u8>], gop: usize, most: usize) -> usize {
    let from = |first: usize| {
        let mut rest = recording;
        let mut found = 0;
        for payload in payloads.iter().cycle().skip(first).take(most) {
            let Some(at) = memmem::find(rest, payload) else {
                break;
            };
            // Frames follow each other with a block's few bytes between them, or a cluster's, a tag's and a header's.
            if found > 0 && at > 2048 {
                break;
            }
            rest = &rest[at + payload.len()..];
            found += 1;
        }
        found
    };
    (0..payloads.len())
        .step_by(gop)
        .map(from)
        .max()
        .unwrap_or(0)
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
    let found = frames_in_a_row(&recording, &clip.payloads(), 2 * fps, persisted);
    assert_eq!(found, persisted, "frames in the recording");
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
