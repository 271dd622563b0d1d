//! A producer that has nothing to do sleeps, and is right when it is asked and awake when media comes.

use std::io::{PipeWriter, Write as _, pipe};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use kvs_producer_app::app::Exit;
use kvs_producer_app::operate::client;
use kvs_producer_app::operate::protocol::Request;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{CLIP, Endpoint, Program, Running};

/// For what is under way to come to its end.
const SETTLED: Duration = Duration::from_secs(4);

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(5);

/// How often it may wake meanwhile. It was seventeen times when it looked around once a second.
const WAKE_UPS: u64 = 2;

/// A producer that reads a pipe.
struct Producer {
    running: Running,
    pipe: PipeWriter,
    socket: PathBuf,
    endpoint: Endpoint,
    _dir: TempDir,
}

impl Producer {
    fn start() -> Self {
        Self::start_with([])
    }

    fn start_with<const N: usize>(environment: [(&str, &str); N]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("control");
        let endpoint = Endpoint::start::<&str>([]);
        let variables = endpoint.variables();
        let variables = variables.iter().map(|(name, value)| (&**name, &**value));
        let (reader, pipe) = pipe().expect("a pipe");
        let program = Program::new(["--device=-", "--fps=25", "cam"]).envs(variables);
        let program = program
            .env("KVS_NO_CONTROL", "false")
            .env("KVS_CONTROL", &socket);
        let mut running = program.envs(environment).stdin(reader).start();
        running.wait_for("capturing from");
        Self {
            running,
            pipe,
            socket,
            endpoint,
            _dir: dir,
        }
    }

    fn ask(&self, request: &Request) -> Value {
        let answer = client::ask(&self.socket, request, None);
        answer.map(Value::Object).expect("it answers")
    }

    fn sleeps(&self) {
        sleep(SETTLED);
        let before = self.running.wakeups();
        sleep(WATCHED);
        let times = self.running.wakeups() - before;
        let output = self.running.output();
        assert!(times <= WAKE_UPS, "it woke {times} times:\n{output}");
    }

    fn brings(&mut self) {
        self.pipe.write_all(CLIP).expect("it reads");
    }

    fn ends(self) {
        drop(self.pipe);
        self.running.finish().expect(Exit::Persisted);
        drop(self.endpoint);
    }
}

#[test]
fn a_pipe_that_brings_nothing_wakes_nobody() {
    let mut producer = Producer::start();
    producer.sleeps();
    let status = producer.ask(&Request::Status);
    assert_eq!(status["state"], "waiting-for-camera", "{status}");
    producer.brings();
    producer.running.wait_for("fragment persisted");
    producer.ends();
}

#[test]
fn a_watchdog_is_fed_while_nothing_comes() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("notify");
    let manager = UnixDatagram::bind(&place).expect("a socket");
    manager
        .set_read_timeout(Some(Duration::from_secs(8)))
        .expect("a bound");
    let place = place.to_str().expect("UTF-8");
    let producer = Producer::start_with([("NOTIFY_SOCKET", place), ("WATCHDOG_USEC", "10000000")]);
    let (mut fed, mut told) = (0, String::new());
    // The last time after more than 15 s, from when on it looks around less and less often.
    while fed < 5 {
        let mut buffer = [0; 1024];
        let length = manager.recv(&mut buffer).expect("it feeds the watchdog");
        let lines = String::from_utf8_lossy(&buffer[..length]);
        fed += lines.matches("WATCHDOG=1").count();
        told.push_str(&lines);
    }
    assert!(told.contains("STATUS=waiting-for-camera"), "{told}");
    drop(producer);
}

#[test]
fn a_producer_that_is_paused_wakes_nobody_and_knows_that_nothing_flows() {
    let mut producer = Producer::start();
    producer.brings();
    producer.running.wait_for("fragment persisted");
    let socket = producer.socket.clone();
    std::thread::scope(|scope| {
        let pause = || client::ask(&socket, &Request::Pause, None);
        scope.spawn(move || pause().expect("it pauses"));
        sleep(Duration::from_millis(200));
        // The fragment under way ends with the next key frame.
        producer.brings();
    });
    let flows = producer.ask(&Request::Status);
    assert_ne!(flows["fps"], 0.0, "it did just now: {flows}");
    producer.sleeps();
    // The looks that it rested on are older than ten seconds by then.
    sleep(Duration::from_secs(2));
    let status = producer.ask(&Request::Status);
    assert_eq!(status["state"], "paused", "{status}");
    for rate in ["fps", "captured_bits_per_s", "sent_bits_per_s"] {
        assert_eq!(status[rate], 0.0, "{rate}: {status}");
    }
    producer.ask(&Request::Resume);
    producer.ends();
}
