//! The program itself, as it is shipped: `kvsProducerApp` streams from a camera to the local endpoint, and what is recorded
//! there can be compared with what went into the camera.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use kvs_producer_app::clock::Clock;
use kvs_producer_app::local::view::ConnectionView;
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::rig::{Clip, Feeder};
use crate::service::Service;

/// The longest that these tests wait for a word of the program: this machine is emulated, and its host busy.
const PATIENCE: Duration = Duration::from_mins(1);

/// It is put beside the test.
pub fn path() -> PathBuf {
    std::env::current_exe()
        .unwrap()
        .with_file_name("kvsProducerApp")
}

/// The program while it runs.
pub struct Program {
    child: Child,
    log: Receiver<String>,
    seen: Vec<String>,
    service: Option<Service>,
}

/// What it came to.
pub struct Outcome {
    pub status: ExitStatus,
    pub report: Value,
    pub log: Vec<String>,
    pub service: Service,
}

impl Program {
    /// Starts it with these arguments beside `--report`, and a service for it alone.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(Service::start(), arguments)
    }

    /// As [`Self::start`], with this service.
    pub fn start_with(service: Service, arguments: &[&str]) -> Self {
        let mut child = Command::new(path())
            .args(["--report", "-"])
            .args(arguments)
            .envs(service.environment())
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
            service: Some(service),
        }
    }

    /// Waits until the log has a line with `word` in it, which it had not before.
    #[track_caller]
    pub fn says(&mut self, word: &str) {
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

    /// Waits until a fragment has begun on so many connections.
    #[track_caller]
    pub fn streams_on(&self, connections: usize) {
        let deadline = Clock.now() + PATIENCE;
        loop {
            let state = self.service.as_ref().unwrap().state();
            let carry = |connection: &&ConnectionView| connection.fragments > 0;
            let carrying = state.connections.iter().filter(carry).count();
            if carrying >= connections {
                return;
            }
            drop(state);
            assert!(
                Clock.now() < deadline,
                "{carrying} connections, not {connections}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end, and waits for that.
    pub fn stop(self) -> Outcome {
        rustix::process::kill_process(self.pid(), Signal::TERM).unwrap();
        self.end()
    }

    /// Processor time that it has taken so far.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        // utime and stime are fields 14 and 15, in 1/100 s (proc(5)); these begin with field 3.
        let times = fields.split(' ').skip(11).take(2);
        let ticks: u64 = times.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for its end.
    pub fn end(mut self) -> Outcome {
        let mut report = String::new();
        let stdout = self.child.stdout.take().unwrap();
        BufReader::new(stdout).read_to_string(&mut report).unwrap();
        let status = self.child.wait().unwrap();
        self.seen.extend(self.log.iter());
        Outcome {
            status,
            report: serde_json::from_str(&report).unwrap_or_default(),
            log: std::mem::take(&mut self.seen),
            service: self.service.take().unwrap(),
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
    pub fn assert_persisted(&self) -> usize {
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
}

/// The most that can stand between two frames: a cluster's head, a tag, or another file's header.
const BETWEEN: usize = 4096;

/// Which frames of the clip the recording holds, in its order. It holds nothing else.
pub fn frames_in(recording: &[u8], clip: &Clip) -> Vec<usize> {
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
pub fn breaks(frames: &[usize], clip: &Clip) -> Vec<(usize, usize)> {
    let pairs = frames.windows(2).map(|pair| (pair[0], pair[1]));
    pairs
        .filter(|(one, next)| (one + 1) % clip.units.len() != *next)
        .collect()
}

/// Streams the clip for some seconds; every frame that the program counts is in the recording, once, in order.
pub fn stream(path: &Path, clip: &Clip, arguments: &[&str], channel: &str) -> Outcome {
    let _feeder = Feeder::start(path, clip);
    let mut all = arguments.to_vec();
    all.extend([channel, "8"]);
    let outcome = Program::start(&all).end();
    let persisted = outcome.assert_persisted();
    let fps = clip.fps as usize;
    // At least this much after the start, which takes longest, and the first key frame, which takes up to two seconds.
    assert!(persisted > 3 * fps, "{persisted} frames");
    let recording = outcome.service.recordings(channel).concat();
    let frames = frames_in(&recording, clip);
    assert_eq!(frames.len(), persisted, "frames in the recording");
    assert_eq!(breaks(&frames, clip), []);
    outcome
}

/// Before and after an interruption the recording has whole groups of pictures, and all that is counted as persisted.
pub fn assert_resumed(outcome: &Outcome, clip: &Clip) {
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
    let held = frames_in(&outcome.service.recordings("cam").concat(), clip);
    assert_eq!(held.len(), persisted, "frames in the recording");
    let breaks = breaks(&held, clip);
    let gop = 2 * clip.fps as usize;
    assert!(
        breaks.len() <= 1 && breaks.iter().all(|(_, next)| next.is_multiple_of(gop)),
        "one interruption at most, and then a key frame, not {breaks:?}"
    );
    assert!(persisted > 6 * clip.fps as usize, "{persisted} frames");
}

/// The first recording has the one clip, the second the other, both whole, and no connection carried both.
pub fn assert_changed(outcome: &Outcome, clips: [&Clip; 2]) {
    assert!(
        matches!(outcome.status.code(), Some(0 | 9)),
        "{:#?}",
        outcome.log
    );
    let recordings = outcome.service.recordings("cam");
    assert_eq!(recordings.len(), 2, "recordings");
    let held: Vec<_> = recordings
        .iter()
        .zip(clips)
        .map(|(recording, clip)| {
            let held = frames_in(recording, clip);
            assert!(held.len() > 3 * clip.fps as usize, "{} frames", held.len());
            assert!(held[0].is_multiple_of(2 * clip.fps as usize));
            assert_eq!(breaks(&held, clip), []);
            held.len()
        })
        .collect();
    let persisted = outcome.report["persisted"]["frames"].as_u64().unwrap();
    assert_eq!(held.iter().sum::<usize>() as u64, persisted);

    let state = outcome.service.state();
    let mut before = held[0];
    let mut connections = [BTreeSet::new(), BTreeSet::new()];
    for fragment in state.persisted("cam") {
        connections[usize::from(before == 0)].insert(fragment.connection);
        before = before.saturating_sub(fragment.frame_count);
    }
    let [first, second] = connections;
    assert!(
        !first.is_empty() && !second.is_empty() && first.is_disjoint(&second),
        "{first:?} and {second:?}"
    );
}

/// The program's list of nodes, by their paths.
pub fn devices() -> BTreeMap<String, Value> {
    let listed = Command::new(path())
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
