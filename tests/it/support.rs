//! Runs the program as a user would: the real binary, in a directory of its own, with an environment of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::canary;
use kvs_producer_app::app::Exit;
use kvs_producer_app::clock::Clock;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// A program that has not ended after this has hung: it is killed, and the test fails.
const LIMIT: Duration = Duration::from_secs(40);

/// Between two looks at what a process does.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What the program is to be started with.
pub struct Program {
    command: Command,
    dir: TempDir,
}

impl Program {
    /// The program with these arguments. It sees no AWS configuration of this machine, and no instance metadata.
    pub fn new<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvsProducerApp"));
        command
            .args(args)
            .env_clear()
            .env("HOME", dir.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            // Many stream to one channel at once.
            .env("KVS_NO_CONTROL", "true")
            // All that can be said is said, and searched for secrets.
            .env("KVS_VERBOSE", "2")
            .current_dir(dir.path())
            .stdin(Stdio::null());
        Self { command, dir }
    }

    /// Streams to the endpoint in the process, recording below `recordings` and reporting to `report.json`.
    pub fn local<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Self {
        let mut program = Self::new(["--local", "recordings", "--report", "report.json"]);
        program.command.args(args);
        program
    }

    /// Where it runs; files may be put there.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file in its directory, to be named by `name` alone.
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.dir.path().join(name), content).expect("a file for the program");
        self
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn envs<'a>(mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.command.envs(variables);
        self
    }

    /// What standard input is; without it, /dev/null.
    pub fn stdin(mut self, input: impl Into<Stdio>) -> Self {
        self.command.stdin(input);
        self
    }

    /// Starts it. Its output goes to files: nobody has to read it for the program to go on.
    pub fn start(mut self) -> Running {
        let output =
            |name| File::create(self.dir.path().join(name)).expect("a file for the output");
        self.command
            .stdout(output("stdout"))
            .stderr(output("stderr"));
        let child = self.command.spawn().expect("the program starts");
        Running {
            child: KilledOnDrop(child),
            dir: self.dir,
            deadline: Clock.now() + LIMIT,
        }
    }

    /// Runs it to its end.
    pub fn run(self) -> Run {
        self.start().finish()
    }

    /// Runs it to its end while `write` fills its standard input, a pipe.
    pub fn feed(self, write: impl FnOnce(&mut ChildStdin) -> std::io::Result<()> + Send) -> Run {
        let mut running = self.stdin(Stdio::piped()).start();
        let mut pipe = running
            .child
            .0
            .stdin
            .take()
            .expect("standard input is a pipe");
        thread::scope(|scope| {
            scope.spawn(move || {
                // The program may end before it has read everything: it says why.
                let _ = write(&mut pipe);
            });
            running.finish()
        })
    }

    /// Runs it to its end with `input` on standard input, a pipe.
    pub fn feed_all(self, input: &[u8]) -> Run {
        self.feed(|pipe| pipe.write_all(input))
    }
}

/// The program while it runs. It is killed when this is dropped.
pub struct Running {
    child: KilledOnDrop,
    dir: TempDir,
    deadline: Instant,
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // Both fail when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Waits until `text` stands in its output.
    pub fn wait_for(&mut self, text: &str) {
        let mut ended = None;
        while !self.output().contains(text) {
            let output = self.output();
            assert!(ended.is_none(), "it ended without {text:?}:\n{output}");
            ended = self.look(text);
        }
    }

    /// All that it has written so far.
    pub fn output(&self) -> String {
        written(&self.dir, "stdout") + &written(&self.dir, "stderr")
    }

    /// How often its threads have waited for something, and gone on, so far.
    pub fn wakeups(&self) -> u64 {
        let threads = format!("/proc/{}/task", self.child.0.id());
        let threads = fs::read_dir(threads).expect("a running program");
        let of = |thread: std::io::Result<fs::DirEntry>| {
            let path = thread.expect("a thread").path().join("status");
            let status = fs::read_to_string(path).expect("a thread that goes on");
            let mut lines = status.lines();
            let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let count: u64 = count
                .expect("Linux tells")
                .trim()
                .parse()
                .expect("a number");
            count
        };
        threads.map(of).sum()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.0.id())
            .ok()
            .and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), signal).expect("a running program");
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Run {
        let status = loop {
            if let Some(status) = self.look("its end") {
                break status;
            }
        };
        let output = self.output();
        let code = status.code();
        let run = Run {
            code: code.unwrap_or_else(|| panic!("it did not end by itself, {status}:\n{output}")),
            stdout: written(&self.dir, "stdout"),
            stderr: written(&self.dir, "stderr"),
            dir: self.dir,
        };
        canary::assert_none_in(&run.stderr, "the log");
        // The endpoint's own command tells its keys: they open nothing else.
        if !run.stdout.starts_with("AWS_ENDPOINT_URL") {
            canary::assert_none_in(&run.stdout, "the output");
        }
        run
    }

    /// Whether it has ended, a little later.
    fn look(&mut self, awaited: &str) -> Option<ExitStatus> {
        let output = self.output();
        assert!(
            Clock.now() < self.deadline,
            "waited {LIMIT:?} for {awaited:?}:\n{output}"
        );
        thread::sleep(LOOK_EVERY);
        self.child.0.try_wait().expect("a child of this process")
    }
}

fn written(dir: &TempDir, name: &str) -> String {
    let bytes = fs::read(dir.path().join(name)).expect("the program's output");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How a run ended.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    dir: TempDir,
}

impl Run {
    /// Fails unless it ended with this exit code.
    #[track_caller]
    pub fn expect(self, exit: Exit) -> Self {
        let (stdout, stderr) = (&self.stdout, &self.stderr);
        assert_eq!(self.code, exit as i32, "{exit:?}\n{stdout}{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        self
    }

    /// The JSON report of [`Program::local`].
    pub fn report(&self) -> Value {
        let text = fs::read_to_string(self.dir.path().join("report.json"));
        serde_json::from_str(&text.expect("a report")).expect("the report is JSON")
    }

    /// What [`Program::local`] has recorded, in the order of time.
    pub fn recordings(&self, channel: &str) -> Vec<PathBuf> {
        let dir = self.dir.path().join("recordings").join(channel);
        let files = fs::read_dir(dir).expect("the recording");
        let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
        files.sort();
        files
    }

    /// What stands on standard error beside the log.
    pub fn said(&self) -> Vec<&str> {
        // A line of the log begins with the time: 2025-01-02T03:04:05.678901Z.
        let logged = |line: &str| line.starts_with("20") && line.get(26..27) == Some("Z");
        let lines = self.stderr.lines();
        lines.filter(|line| !logged(line)).collect()
    }
}

/// The service as a process of its own.
pub struct Endpoint {
    running: Running,
}

impl Endpoint {
    /// Starts it on a free port.
    pub fn start<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Self {
        Self::of(
            Program::new(["local-endpoint", "--listen", "127.0.0.1:0"]),
            args,
        )
    }

    /// The same from a program that has files to be named in `args`.
    pub fn of<A: AsRef<OsStr>>(program: Program, args: impl IntoIterator<Item = A>) -> Self {
        let program = args.into_iter().fold(program, Program::arg);
        let mut running = program.start();
        // The last of the lines that it prints.
        running.wait_for("AWS_REGION=");
        Self { running }
    }

    /// The variables with which a producer finds it and may stream to it.
    pub fn variables(&self) -> Vec<(String, String)> {
        let lines = written(&self.running.dir, "stdout");
        let lines = lines.lines().filter_map(|line| line.split_once('='));
        lines
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    pub fn url(&self) -> String {
        let mut variables = self.variables().into_iter();
        let url = variables.find(|(name, _)| name == "AWS_ENDPOINT_URL_KINESIS_VIDEO");
        url.expect("it prints its address").1
    }
}

/// Whether a tool that only tests need may be left out where it is missing: not where KVS_TEST_TOOLS is "required".
pub fn missing(tool: &str, why: &str) {
    let required = std::env::var("KVS_TEST_TOOLS").is_ok_and(|value| value == "required");
    assert!(!required, "{tool} is needed: {why}");
    eprintln!("NOT TESTED, there is no {tool}: {why}");
}

/// The built-in clip: 250 frames of H.264 in five groups of pictures.
pub const CLIP: &[u8] = include_bytes!("../data/demo.h264");

/// The NAL units of Annex B, without their start codes.
pub fn nal_units(stream: &[u8]) -> Vec<&[u8]> {
    let starts: Vec<usize> = (0..stream.len().saturating_sub(2))
        .filter(|&at| stream[at..at + 3] == [0, 0, 1])
        .collect();
    let ends = starts.iter().skip(1).copied().chain([stream.len()]);
    let units = starts.iter().zip(ends).map(|(&start, end)| {
        let unit = &stream[start + 3..end];
        // The first byte of the next start code, or padding.
        let zeros = unit.iter().rev().take_while(|&&byte| byte == 0).count();
        &unit[..unit.len() - zeros]
    });
    units.collect()
}

/// NAL units behind start codes of four bytes.
pub fn annex_b<'a>(units: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let units = units.into_iter();
    units
        .flat_map(|unit| [&[0, 0, 0, 1], unit].concat())
        .collect()
}

/// nal_unit_type of H.264 (ITU-T H.264, section 7.3.1).
pub fn h264_type(unit: &[u8]) -> u8 {
    unit[0] & 0x1F
}

/// nal_unit_type of H.265 (ITU-T H.265, section 7.3.1.2).
pub fn h265_type(unit: &[u8]) -> u8 {
    unit[0] >> 1 & 0x3F
}
