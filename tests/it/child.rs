//! The program as a process of its own, for what one process cannot show: signals, limits, all that it writes.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use kvs_producer_app::clock::Clock;
use kvs_producer_app::local::Credential;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::rig::STREAM;

/// A program that runs for longer has hung.
const LIMIT: Duration = Duration::from_mins(1);

/// A running producer. It is killed when the test forgets it.
pub struct Producer {
    child: Child,
    dir: TempDir,
}

/// What it came to.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// What `--report` wrote; null where it did not.
    pub report: Value,
}

impl Producer {
    /// Streams the built-in clip to `url`. Of the environment it has only what is given here.
    pub fn start(url: &str, known: &Credential, arguments: &[&str]) -> Self {
        Self::start_in(&[], url, known, arguments)
    }

    /// The same, with another command in front, such as `ip netns exec`.
    pub fn start_in(front: &[&str], url: &str, known: &Credential, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str| fs::File::create(dir.path().join(name)).expect("a file");
        let program = env!("CARGO_BIN_EXE_kvsProducerApp");
        let mut line = front.iter().copied().chain([program]);
        let mut command = Command::new(line.next().expect("the program at least"));
        command
            .args(line)
            .args(["-D", "demo", "--report", "report.json", STREAM])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("AWS_ENDPOINT_URL_KINESIS_VIDEO", url)
            .env("AWS_REGION", "us-west-2")
            // Many stream to one channel at once.
            .env("KVS_NO_CONTROL", "true")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ACCESS_KEY_ID", &known.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &known.secret_access_key)
            .envs(
                known
                    .session_token
                    .iter()
                    .map(|token| ("AWS_SESSION_TOKEN", token)),
            )
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"));
        let child = command.spawn().expect("it starts");
        Self { child, dir }
    }

    /// A file of `/proc` about it.
    pub fn proc(&self, name: &str) -> Vec<u8> {
        let path: PathBuf = ["/proc", &self.child.id().to_string(), name]
            .iter()
            .collect();
        fs::read(path).expect("it runs")
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).expect("UTF-8")
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it runs");
    }

    /// Waits for its end.
    pub async fn end(mut self) -> Ended {
        let deadline = Clock.now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                break status;
            }
            assert!(Clock.now() < deadline, "it hangs:\n{}", self.stderr());
            sleep(Duration::from_millis(5)).await;
        };
        let read = |name: &str| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        Ended {
            status,
            stdout: read("stdout"),
            stderr: read("stderr"),
            report: serde_json::from_str(&read("report.json")).unwrap_or_default(),
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
