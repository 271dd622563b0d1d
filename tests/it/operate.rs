//! The commands, from the shell, against a producer that runs and against none.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kvs_producer_app::app::Exit;
use kvs_producer_app::operate::client;
use kvs_producer_app::operate::protocol::{Put, Request};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{CLIP, Endpoint, Program, Run, Running};

/// A running producer of the built-in clip, with a control socket.
struct Producer {
    running: Running,
    socket: PathBuf,
    _dir: TempDir,
}

impl Producer {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("control");
        let mut running = producer(&socket).start();
        running.wait_for("fragment persisted");
        Self {
            running,
            socket,
            _dir: dir,
        }
    }

    /// Runs a command for it.
    fn command(&self, line: &str) -> Run {
        command(&self.socket, line).run()
    }

    /// The answer of a command that is carried out.
    #[track_caller]
    fn answer(&self, line: &str) -> Value {
        let run = self
            .command(&format!("{line} --json"))
            .expect(Exit::Persisted);
        serde_json::from_str(&run.stdout).expect("JSON")
    }

    fn status(&self) -> Value {
        client::ask(&self.socket, &Request::Status, None)
            .map(Value::Object)
            .expect("it answers")
    }

    /// Waits until its status is like that.
    #[track_caller]
    fn wait_until(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..400 {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{}\n{}", self.status(), self.running.output());
    }
}

/// A producer of the built-in clip that is to listen at `socket`.
fn producer(socket: &Path) -> Program {
    Program::local(["--device=demo", "cam"])
        .env("KVS_NO_CONTROL", "false")
        .env("KVS_CONTROL", socket)
}

fn command(socket: &Path, line: &str) -> Program {
    Program::new(line.split(' ')).env("KVS_CONTROL", socket)
}

fn persisted(status: &Value) -> u64 {
    status["persisted"]["frames"].as_u64().expect("a number")
}

#[test]
fn a_producer_tells_how_it_is_in_words_in_json_and_for_prometheus() {
    let producer = Producer::start();
    let run = producer.command("status cam").expect(Exit::Persisted);
    assert!(
        run.stdout.starts_with("cam: streaming, healthy\n"),
        "{}",
        run.stdout
    );
    let status = producer.answer("status cam");
    assert_eq!(status["camera"]["opened"], 1, "{status}");
    assert_eq!(status["acks"]["error"], 0, "{status}");
    assert!(status["acks"]["persisted"].as_u64() >= Some(1), "{status}");
    assert!(status["calls"]["create_stream"]["count"] == 1, "{status}");
    assert!(
        status["latency"]["to_persisted"]["count"].as_u64() >= Some(1),
        "{status}"
    );
    let run = producer
        .command("status cam --prometheus")
        .expect(Exit::Persisted);
    let healthy = "kvs_producer_healthy{channel=\"cam\"} 1\n";
    assert!(run.stdout.contains(healthy), "{}", run.stdout);

    let buffer = producer.answer("buffer cam");
    let bytes = |name: &str| buffer[name].as_u64().expect("a number");
    assert_eq!(
        bytes("available_bytes") + bytes("used_bytes"),
        bytes("total_bytes")
    );
    assert!(
        (1_900_000..=2048 * 1024).contains(&bytes("total_bytes")),
        "{buffer}"
    );
    let run = producer.command("buffer cam").expect(Exit::Persisted);
    assert!(run.stdout.contains("2.0 MiB available"), "{}", run.stdout);
}

#[test]
fn stop_waits_until_all_is_persisted_and_says_so() {
    let producer = Producer::start();
    let answer = producer.answer("stop cam");
    let report = &answer["report"];
    assert_eq!(
        report["persisted"]["frames"], report["captured"]["frames"],
        "{report}"
    );
    let run = producer.running.finish().expect(Exit::Persisted);
    assert_eq!(run.report()["persisted"], report["persisted"]);
    assert!(
        !producer.socket.exists(),
        "the socket goes with its producer"
    );
}

#[test]
fn free_ends_at_once_and_says_what_is_lost() {
    let producer = Producer::start();
    // A fragment is always under way.
    let run = producer.command("free cam").expect(Exit::Unsent);
    assert!(run.stdout.contains("not_sent_in_time"), "{}", run.stdout);
    producer.running.finish().expect(Exit::Unsent);
}

#[test]
fn pause_ends_the_connection_in_order_and_resume_sends_what_was_kept() {
    let producer = Producer::start();
    assert_eq!(producer.answer("pause cam")["paused"], true);
    let paused = producer.status();
    assert_eq!(paused["state"], "paused");
    assert_eq!(paused["connections"]["open"], 0);
    assert_eq!(paused["connections"]["opened"], 1);
    std::thread::sleep(Duration::from_millis(1500));
    let later = producer.status();
    assert_eq!(persisted(&later), persisted(&paused), "nothing is uploaded");
    assert!(later["captured"]["frames"].as_u64() > paused["captured"]["frames"].as_u64());
    // Once more is no error.
    assert_eq!(producer.answer("pause cam")["paused"], true);

    assert_eq!(producer.answer("resume cam")["paused"], false);
    let kept = later["captured"]["frames"].as_u64().expect("a number");
    producer.wait_until(|status| persisted(status) >= kept);
    let answer = producer.answer("stop cam");
    let report = &answer["report"];
    assert_eq!(
        report["persisted"]["frames"], report["captured"]["frames"],
        "{report}"
    );
    producer.running.finish().expect(Exit::Persisted);
}

#[test]
fn a_paused_producer_that_is_stopped_sends_what_it_kept() {
    let producer = Producer::start();
    producer.answer("pause cam");
    std::thread::sleep(Duration::from_secs(1));
    let answer = producer.answer("stop cam");
    let report = &answer["report"];
    assert_eq!(
        report["persisted"]["frames"], report["captured"]["frames"],
        "{report}"
    );
    assert_eq!(report["connections"], 2);
}

#[test]
fn reset_closes_the_connection_and_keeps_the_buffer_where_it_is_told_to() {
    let producer = Producer::start();
    let answer = producer.answer("reset cam --keep-buffer");
    assert_eq!(answer["discarded"]["frames"], 0, "{answer}");
    producer.wait_until(|status| status["connections"]["opened"] == 2);
    let answer = producer.answer("stop cam");
    let report = &answer["report"];
    assert_eq!(
        report["persisted"]["frames"], report["captured"]["frames"],
        "{report}"
    );
    assert!(report["resent"]["frames"].as_u64() > Some(0), "{report}");
}

#[test]
fn reset_throws_away_what_is_held_counts_it_and_begins_with_a_key_frame() {
    let producer = Producer::start();
    // While it is paused it holds something.
    producer.answer("pause cam");
    std::thread::sleep(Duration::from_millis(500));
    let answer = producer.answer("reset cam");
    let discarded = answer["discarded"]["frames"].as_u64().expect("a number");
    assert!(discarded > 5, "{answer}");
    producer.answer("resume cam");
    let before = persisted(&producer.status());
    producer.wait_until(|status| persisted(status) > before);
    let run = producer.command("stop cam").expect(Exit::Persisted);
    assert!(run.stdout.contains("on_order"), "{}", run.stdout);
    let report = producer.running.finish().expect(Exit::Persisted).report();
    let on_order = report["dropped"]["by_reason"]["on_order"]["frames"].as_u64();
    assert!(on_order >= Some(discarded), "{report}");
    assert_eq!(report["dropped"]["frames"].as_u64(), on_order, "{report}");
}

#[test]
fn the_log_level_changes_while_it_runs() {
    let producer = Producer::start();
    let answer = producer.answer("log cam error");
    assert_eq!(answer["level"], "error");
    let log = producer.running.output();
    producer.answer("reset cam --keep-buffer");
    assert_eq!(producer.running.output(), log, "nothing more is said");
    let answer = producer.answer("log cam info");
    assert_eq!(
        (&answer["was"], &answer["level"]),
        (&"error".into(), &"info".into())
    );
    producer.answer("reset cam --keep-buffer");
    assert!(producer.running.output().len() > log.len());
}

#[test]
fn every_command_says_that_no_producer_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    for line in [
        "status cam",
        "status cam --json",
        "status cam --prometheus --watch",
        "buffer cam",
        "stop cam",
        "reset cam",
        "reset cam --keep-buffer",
        "free cam",
        "pause cam",
        "resume cam",
        "log cam debug",
    ] {
        let run = command(&dir.path().join("none"), line).run();
        let run = run.expect(Exit::NoProducer);
        let said = run.said();
        assert_eq!(said.len(), 1, "{line}: {said:?}");
        assert!(said[0].contains("KVS-E601"), "{line}: {said:?}");
        assert_eq!(run.stdout, "", "{line}");
    }
    // Without a path the usual places are named.
    let run = Program::new(["status", "no-such-channel"]).run();
    let run = run.expect(Exit::NoProducer);
    assert!(run.stderr.contains("/run/kvsProducerApp"), "{}", run.stderr);
}

#[test]
fn what_makes_no_sense_is_refused_before_anybody_is_asked() {
    for line in [
        "status",
        "log cam",
        "log cam loud",
        "reset cam --drop",
        "explain KVS-E7",
    ] {
        Program::new(line.split(' ')).run().expect(Exit::Usage);
    }
}

#[test]
fn a_second_producer_of_a_channel_is_refused_and_the_first_streams_on() {
    let producer = Producer::start();
    let second = self::producer(&producer.socket).run().expect(Exit::Taken);
    let said = second.said();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("KVS-E605") && said[0].contains("process"),
        "{said:?}"
    );
    producer.command("stop cam").expect(Exit::Persisted);
}

#[test]
fn what_a_killed_producer_leaves_behind_keeps_nobody_out() {
    let Producer {
        running,
        socket,
        _dir,
    } = Producer::start();
    running.signal(Signal::KILL);
    drop(running);
    assert!(socket.exists());
    command(&socket, "status cam")
        .run()
        .expect(Exit::NoProducer);
    let mut next = producer(&socket).start();
    next.wait_for("fragment persisted");
    command(&socket, "stop cam").run().expect(Exit::Persisted);
    next.finish().expect(Exit::Persisted);
}

#[test]
fn hundreds_who_ask_and_some_who_hang_cost_no_frame() {
    let producer = Producer::start();
    let hanging: Vec<_> = (0..8)
        .map(|_| UnixStream::connect(&producer.socket).expect("connects"))
        .collect();
    let mut garbage = UnixStream::connect(&producer.socket).expect("connects");
    garbage.write_all(&[0x80; 10_000]).expect("is taken");
    std::thread::scope(|scope| {
        for _ in 0..300 {
            scope.spawn(|| {
                client::ask(&producer.socket, &Request::Status, None).expect("is served")
            });
        }
    });
    let mut answer = String::new();
    let _ = garbage.read_to_string(&mut answer);
    assert!(answer.contains("KVS-E603"), "{answer}");
    drop(hanging);
    let answer = producer.answer("stop cam");
    let report = &answer["report"];
    assert_eq!(
        report["persisted"]["frames"], report["captured"]["frames"],
        "{report}"
    );
    assert_eq!(report["connections"], 1, "{report}");
}

#[test]
fn the_service_manager_is_told_when_it_is_ready_how_it_is_and_when_it_stops() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("notify");
    let manager = UnixDatagram::bind(&place).expect("binds");
    manager
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a time-out");
    let running = Program::local(["--device=demo", "cam"])
        .env("NOTIFY_SOCKET", &place)
        .env("WATCHDOG_USEC", "1000000")
        .start();
    let mut told = String::new();
    let mut wait_for = |line: &str| {
        let mut bytes = [0; 1024];
        while !told.lines().any(|told| told == line) {
            let len = manager.recv(&mut bytes).unwrap_or_else(|error| {
                panic!("{error} while waiting for {line} after:\n{told}");
            });
            told.push_str(std::str::from_utf8(&bytes[..len]).expect("text"));
        }
        told.clone()
    };
    let before = wait_for("READY=1");
    assert!(before.contains("EXTEND_TIMEOUT_USEC="), "{before}");
    assert!(!before.contains("STOPPING"), "{before}");
    wait_for("STATUS=streaming");
    wait_for("WATCHDOG=1");
    running.signal(Signal::TERM);
    wait_for("STOPPING=1");
    running.finish().expect(Exit::Persisted);
}

#[test]
fn codes_are_explained() {
    let run = Program::new(["explain", "e4501"])
        .run()
        .expect(Exit::Persisted);
    assert!(
        run.stdout.starts_with("KVS-E4501: KMS_KEY_DISABLED\n"),
        "{}",
        run.stdout
    );
    let run = Program::new(["explain"]).run().expect(Exit::Persisted);
    assert_eq!(
        run.stdout.lines().count(),
        kvs_producer_app::codes::Code::all().count()
    );
}

#[test]
fn a_place_for_the_socket_that_cannot_be_is_told_at_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("notes");
    fs::write(&file, "mine").expect("written");
    for socket in [&file, &dir.path().join("none/control")] {
        let run = producer(socket).run().expect(Exit::Usage);
        let name = socket
            .file_name()
            .and_then(|name| name.to_str())
            .expect("ASCII");
        assert!(run.said()[0].contains(name), "{:?}", run.said());
    }
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "mine");
}

/// Runs `create` against an endpoint.
fn create(endpoint: &Endpoint, line: &str) -> Program {
    let variables = endpoint.variables();
    let variables = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    Program::new(["create"])
        .args(line.split(' '))
        .envs(variables)
}

#[test]
fn create_makes_a_stream_and_says_what_it_finds_the_next_time() {
    let endpoint = Endpoint::start::<&str>([]);
    let run = create(&endpoint, "cam --tag site=gate")
        .run()
        .expect(Exit::Persisted);
    assert!(
        run.stdout.starts_with("cam: created, ACTIVE\n"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains("keeps media for 24 h"),
        "{}",
        run.stdout
    );
    let run = create(&endpoint, "cam").run().expect(Exit::Persisted);
    assert!(
        run.stdout.starts_with("cam: was there already, ACTIVE\n"),
        "{}",
        run.stdout
    );
    let answer = |line: &str| -> Value {
        let run = create(&endpoint, line)
            .arg("--json")
            .run()
            .expect(Exit::Persisted);
        serde_json::from_str(&run.stdout).expect("JSON")
    };
    let raised = answer("cam --retention 48");
    assert_eq!(raised["retention_hours"], 48, "{raised}");
    assert_eq!(raised["raised_from_hours"], 24, "{raised}");
    let kept = answer("cam --retention 1");
    assert_eq!(kept["retention_hours"], 48, "{kept}");
    assert_eq!(kept["raised_from_hours"], Value::Null, "{kept}");
    assert_eq!(answer("other --retention 0")["retention_hours"], 0);
}

#[test]
fn create_says_why_it_cannot() {
    let endpoint = Endpoint::start::<&str>([]);
    for (program, exit, code) in [
        (
            create(&endpoint, "cam").env("AWS_SECRET_ACCESS_KEY", "wrong"),
            Exit::NotPermitted,
            "KVS-E426",
        ),
        (
            create(&endpoint, "cam").env("AWS_ACCESS_KEY_ID", ""),
            Exit::NotPermitted,
            "KVS-E304",
        ),
        (
            create(&endpoint, "cam").env("AWS_ENDPOINT_URL_KINESIS_VIDEO", "http://127.0.0.1:9"),
            Exit::Unsent,
            "KVS-E301",
        ),
        (
            create(&endpoint, "a/b"),
            Exit::Usage,
            "cannot be in a stream's name",
        ),
    ] {
        let run = program.run().expect(exit);
        assert!(run.stderr.contains(code), "{}", run.stderr);
        assert_eq!(run.stdout, "");
    }
}

/// `put` without a producer, to the service inside the process.
fn put(line: &str) -> Program {
    Program::new(line.split(' ')).args(["--local", "recordings", "--report", "report.json"])
}

/// The frames of the built-in clip.
const CLIP_FRAMES: u64 = 250;

#[test]
fn put_uploads_by_itself_where_no_producer_runs_with_the_times_it_is_given() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = Program::new([
        "put",
        "cam",
        "clip",
        "--fast",
        "--start",
        "2025-01-02T03:04:05Z",
    ])
    .args(["--local", "recordings", "--report", "report.json"])
    .env("KVS_NO_CONTROL", "false")
    .env("KVS_CONTROL", dir.path().join("control"))
    .file("clip", CLIP)
    .run()
    .expect(Exit::Persisted);
    let report = run.report();
    assert_eq!(report["persisted"]["frames"], CLIP_FRAMES, "{report}");
    // 10 s of media in less.
    assert!(report["duration_s"].as_f64() < Some(8.0), "{report}");
    assert!(has_fragment(&run, 1_735_787_045_000));
    assert!(has_fragment(&run, 1_735_787_053_000));
}

/// Whether a fragment of this time was recorded.
fn has_fragment(run: &Run, timecode_ms: u64) -> bool {
    // Timecode (RFC 9559 section 5.1.3.1) of its cluster.
    let id = timecode_ms.to_be_bytes();
    let timecode = [&[0xE7, 0x88][..], &id].concat();
    let mut files = run.recordings("cam").into_iter();
    files.any(|file| {
        let bytes = fs::read(file).expect("a recording");
        bytes
            .windows(timecode.len())
            .any(|window| window == timecode)
    })
}

#[test]
fn put_from_standard_input_drops_nothing_and_keeps_the_medias_pace() {
    let run = put("put cam - --fps 100")
        .env("KVS_BUFFER", "512K")
        .feed_all(CLIP)
        .expect(Exit::Persisted);
    let report = run.report();
    assert_eq!(report["persisted"]["frames"], CLIP_FRAMES, "{report}");
}

#[test]
fn put_goes_through_the_running_producer_which_goes_on_afterwards() {
    let producer = Producer::start();
    let run = command(
        &producer.socket,
        "put cam clip --fast --start 1735787045 --json",
    )
    .env("KVS_NO_CONTROL", "false")
    .file("clip", CLIP)
    .run()
    .expect(Exit::Persisted);
    let answer: Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(
        answer["report"]["persisted"]["frames"], CLIP_FRAMES,
        "{answer}"
    );
    let before = persisted(&producer.status());
    producer.wait_until(|status| persisted(status) > before && status["state"] == "streaming");
    let answer = producer.answer("stop cam");
    let report = &answer["report"];
    assert_eq!(
        report["persisted"]["frames"], report["captured"]["frames"],
        "{report}"
    );
    assert_eq!(report["connections"], 2, "{report}");
    let run = producer.running.finish().expect(Exit::Persisted);
    assert!(has_fragment(&run, 1_735_787_045_000));
}

#[test]
fn one_puts_at_a_time_and_a_client_that_goes_ends_its_own() {
    let producer = Producer::start();
    let mut hanging = UnixStream::connect(&producer.socket).expect("connects");
    let put = Request::Put(Put::default());
    hanging.write_all(put.line().as_bytes()).expect("is taken");
    producer.wait_until(|status| status["state"] == "paused" && status["connections"]["open"] == 0);
    let run = command(&producer.socket, "put cam clip")
        .env("KVS_NO_CONTROL", "false")
        .file("clip", CLIP)
        .run()
        .expect(Exit::Internal);
    assert!(run.stderr.contains("KVS-E608"), "{}", run.stderr);
    drop(hanging);
    producer.wait_until(|status| status["state"] == "streaming");
    producer.command("stop cam").expect(Exit::Persisted);
}

#[test]
fn put_says_what_is_wrong_with_its_media() {
    let put = |line: &str| put(line).file("noise", vec![7; 9000]);
    let run = put("put cam missing").run().expect(Exit::NoSource);
    assert!(run.stderr.contains("missing"), "{}", run.stderr);
    let run = put("put cam noise").run().expect(Exit::NoSource);
    assert!(run.stderr.contains("not H.264 or H.265"), "{}", run.stderr);
    put("put cam noise --fast").run().expect(Exit::Usage);
    put("put cam noise --start yesterday")
        .run()
        .expect(Exit::Usage);

    let producer = Producer::start();
    let run = command(&producer.socket, "put cam noise")
        .env("KVS_NO_CONTROL", "false")
        .file("noise", vec![7; 9000])
        .run()
        .expect(Exit::NoSource);
    assert!(
        run.stdout.contains("not H.264 or H.265"),
        "{}{}",
        run.stdout,
        run.stderr
    );
    producer.wait_until(|status| status["state"] == "streaming");
}

/// What `doctor` finds.
fn doctor(program: Program) -> (Vec<(String, Option<bool>)>, Run) {
    let run = program.arg("--json").run();
    let checks: Value = serde_json::from_str(&run.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", run.stdout, run.stderr));
    let checks = checks.as_array().expect("a list").iter().map(|check| {
        let name = check["check"].as_str().expect("a name");
        (name.to_owned(), check["good"].as_bool())
    });
    (checks.collect(), run)
}

#[test]
fn doctor_finds_nothing_where_all_is_well_and_disturbs_nobody() {
    let endpoint = Endpoint::start::<&str>([]);
    create(&endpoint, "cam").run().expect(Exit::Persisted);
    let well = examine(&endpoint, "cam -D demo --bitrate 1M");
    let (checks, run) = doctor(well);
    let run = run.expect(Exit::Persisted);
    let bad = checks.iter().filter(|(_, good)| *good == Some(false));
    assert_eq!(bad.count(), 0, "{}", run.stdout);
    for name in [
        "camera",
        "DNS",
        "credentials",
        "clock",
        "stream",
        "endpoint",
        "buffer",
        "memory",
    ] {
        assert!(
            checks.contains(&(name.to_owned(), Some(true))),
            "{name}: {}",
            run.stdout
        );
    }
    let permissions = checks
        .iter()
        .filter(|check| check.0 == "permission")
        .count();
    assert_eq!(permissions, 3, "{}", run.stdout);
    let run = examine(&endpoint, "cam -D demo")
        .run()
        .expect(Exit::Persisted);
    assert!(
        run.stdout
            .contains("✓ stream      ACTIVE, keeps media for 24 h\n"),
        "{}",
        run.stdout
    );
}

/// `doctor` against an endpoint.
fn examine(endpoint: &Endpoint, line: &str) -> Program {
    let variables = endpoint.variables();
    let variables = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    Program::new(["doctor"])
        .args(line.split(' '))
        .envs(variables)
}

#[test]
fn doctor_finds_what_is_wrong() {
    let endpoint = Endpoint::start::<&str>([]);
    for (program, name) in [
        (examine(&endpoint, "cam -D /dev/video-none"), "camera"),
        (examine(&endpoint, "cam -D missing/clip"), "camera"),
        (examine(&endpoint, "cam -D demo --no-create"), "stream"),
        (examine(&endpoint, "cam -D demo --bitrate 30M"), "buffer"),
        (
            examine(&endpoint, "cam -D demo").env("AWS_ACCESS_KEY_ID", ""),
            "credentials",
        ),
        (
            examine(&endpoint, "cam -D demo").env("AWS_SECRET_ACCESS_KEY", "wrong"),
            "stream",
        ),
        (
            examine(&endpoint, "cam -D demo")
                .env("AWS_ENDPOINT_URL_KINESIS_VIDEO", "http://127.0.0.1:9"),
            "network",
        ),
        (
            examine(&endpoint, "cam -D demo").env(
                "AWS_ENDPOINT_URL_KINESIS_VIDEO",
                "https://no-such-host.invalid",
            ),
            "DNS",
        ),
    ] {
        let (checks, run) = doctor(program);
        let run = run.expect(Exit::Unhealthy);
        assert!(
            checks.contains(&(name.to_owned(), Some(false))),
            "{name}: {}",
            run.stdout
        );
    }
    // A stream that is to be created is no fault.
    examine(&endpoint, "cam -D demo")
        .run()
        .expect(Exit::Persisted);
}

#[test]
fn metrics_are_served_on_loopback_and_written_to_a_file() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("bound");
    drop(free);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("cam.prom");
    let mut running = Program::local(["--device=demo", "cam"])
        .args(["--metrics-port", &address.port().to_string()])
        .arg("--metrics-file")
        .arg(&file)
        .start();
    running.wait_for("fragment persisted");
    let ask = |what: &str| {
        let mut stream = TcpStream::connect(address).expect("connects");
        let request = format!("GET {what} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        answer
    };
    let answer = ask("/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("\nkvs_producer_healthy{channel=\"cam\"} 1\n"),
        "{answer}"
    );
    assert!(ask("/secrets").starts_with("HTTP/1.1 404"));
    running.signal(Signal::TERM);
    running.finish().expect(Exit::Persisted);
    let text = fs::read_to_string(&file).expect("written at the end at the latest");
    assert!(
        text.contains("kvs_producer_state{channel=\"cam\",state=\"draining\"} 1\n"),
        "{text}"
    );
}

#[test]
fn lines_for_the_journal_have_their_priority_and_no_time() {
    // What systemd sets for a stream that leads to its journal.
    let script = "JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec \"$0\" --local -D demo --no-control cam 1";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_kvsProducerApp")])
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .output()
        .expect("a shell");
    assert!(output.status.success(), "{output:?}");
    let log = String::from_utf8(output.stderr).expect("text");
    assert!(log.lines().count() > 3, "{log}");
    for line in log.lines() {
        assert!(line.starts_with("<6>") || line.starts_with("<4>"), "{line}");
    }
    assert!(log.contains("<6>streaming connection=1\n"), "{log}");
}

#[test]
fn another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT TESTED: only root can be somebody else");
        return;
    }
    let producer = Producer::start();
    let dir = producer.socket.parent().expect("a directory");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("ours");
    // The program stands where only root can go.
    let program = dir.join("program");
    fs::copy(env!("CARGO_BIN_EXE_kvsProducerApp"), &program).expect("a copy");
    let ask = || {
        let output = Command::new(&program)
            .args(["status", "cam"])
            .env("KVS_CONTROL", &producer.socket)
            .current_dir("/")
            .uid(65_534)
            .gid(65_534)
            .output()
            .expect("it runs");
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(
            output.status.code(),
            Some(Exit::NotPermitted as i32),
            "{said}"
        );
        said
    };
    assert!(ask().contains("KVS-E606"));
    // Whoever opens the file to all has not opened the producer.
    fs::set_permissions(&producer.socket, fs::Permissions::from_mode(0o666)).expect("ours");
    assert!(ask().contains("KVS-E606"));
    producer.command("stop cam").expect(Exit::Persisted);
}

#[test]
fn a_full_disk_is_said_and_costs_no_media() {
    let run = Program::new(["put", "cam", "clip", "--fast", "--start", "1735787045"])
        .args(["--local", "recordings", "--report", "/dev/full"])
        .file("clip", CLIP)
        .run()
        .expect(Exit::Internal);
    let said = run.said();
    assert!(
        said[0].contains("/dev/full") && said[0].contains("No space left"),
        "{said:?}"
    );
    assert!(has_fragment(&run, 1_735_787_045_000));
}
