//! Whatever is typed, streamed in or configured: one clear line, the right exit code, an end.

use std::io::Write;
use std::time::Duration;

use kvs_producer_app::app::Exit;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{CLIP, Endpoint, Program, Run, annex_b, h264_type, nal_units};

/// Runs a program that is to fail: it says one line beside its log, with all of `words` in it.
#[track_caller]
fn fails(program: Program, exit: Exit, words: &[&str]) {
    one_line(&program.run().expect(exit), words);
}

#[track_caller]
fn one_line(run: &Run, words: &[&str]) {
    let said = run.said();
    let [line] = said[..] else {
        panic!("not one line: {said:#?}\n{}", run.stderr);
    };
    eprintln!("{line}");
    assert!(line.starts_with("kvsProducerApp: "), "{line}");
    for word in words {
        assert!(line.contains(word), "no {word:?} in: {line}");
    }
}

/// Streams `media` from a file called "clip", as fast as the program plays it.
fn file(media: impl AsRef<[u8]>) -> Program {
    Program::local(["--device=clip", "--fps=1000", "cam"]).file("clip", media)
}

/// Streams what is fed to standard input.
fn pipe() -> Program {
    Program::local(["--device=-", "cam"])
}

/// The clip without the NAL units of some types.
fn without(types: &[u8]) -> Vec<u8> {
    let units = nal_units(CLIP).into_iter();
    annex_b(units.filter(|unit| !types.contains(&h264_type(unit))))
}

fn garbage() -> Vec<u8> {
    // No zero, and so no start code.
    (1..=255).cycle().take(300_000).collect()
}

// ---- media ----

#[test]
fn garbage_is_no_video() {
    let words = ["not H.264 or H.265", "clip"];
    fails(file(garbage()), Exit::NoSource, &words);
    let run = pipe().feed_all(&garbage()).expect(Exit::NoSource);
    one_line(&run, &["not H.264 or H.265", "standard input"]);
    assert!(!run.report()["failure"].is_null(), "{}", run.report());
}

#[test]
fn nothing_is_no_video() {
    fails(file(""), Exit::NoSource, &["clip", "is empty"]);
    fails(pipe(), Exit::NoSource, &["standard input", "is empty"]);
    let run = pipe().feed_all(&[]).expect(Exit::NoSource);
    one_line(&run, &["standard input", "is empty"]);
}

#[test]
fn a_path_must_lead_to_video() {
    let missing = Program::local(["--device=clip.h264", "cam"]);
    fails(missing, Exit::NoSource, &["clip.h264", "No such file"]);
    let camera = Program::local(["--device=/dev/video-none", "cam"]);
    fails(
        camera,
        Exit::NoSource,
        &["/dev/video-none", "no such device"],
    );
    let directory = Program::local(["--device=/", "cam"]);
    fails(directory, Exit::NoSource, &["/", "is a directory"]);
}

#[test]
fn a_container_is_told_by_its_name() {
    let mp4 = [
        b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41".as_slice(),
        &[7; 4000],
    ]
    .concat();
    fails(file(&mp4), Exit::NoSource, &["MP4", "ffmpeg -i"]);
    one_line(&pipe().feed_all(&mp4).expect(Exit::NoSource), &["MP4"]);
}

#[test]
fn nothing_can_be_streamed_without_parameter_sets() {
    let media = without(&[7, 8]);
    fails(
        file(&media),
        Exit::NoMedia,
        &["nothing could be streamed", "SPS"],
    );
    one_line(&pipe().feed_all(&media).expect(Exit::NoMedia), &["SPS"]);
}

#[test]
fn nothing_can_be_streamed_without_a_key_frame() {
    let media = without(&[5]);
    let words = ["nothing could be streamed", "no key frame"];
    fails(file(&media), Exit::NoMedia, &words);
    one_line(&pipe().feed_all(&media).expect(Exit::NoMedia), &words);
}

#[test]
fn a_stream_may_end_in_the_middle_of_anything() {
    let last = CLIP.len() - nal_units(CLIP).last().expect("there are some").len();
    // In its last slice; behind that one's first byte; in its start code.
    for (end, frames) in [
        (CLIP.len() - 10, 250),
        (last + 1, 249),
        (last, 249),
        (last - 2, 249),
    ] {
        let run = file(&CLIP[..end]).run().expect(Exit::Persisted);
        let persisted = &run.report()["persisted"]["frames"];
        assert!(
            persisted == frames || persisted == 250,
            "{end}: {persisted}"
        );
    }
}

/// The clip with a first key frame of 700 000 bytes.
fn with_a_huge_frame(clip: &[u8]) -> Vec<u8> {
    let mut units: Vec<Vec<u8>> = nal_units(clip).into_iter().map(<[u8]>::to_vec).collect();
    let key = units.iter_mut().find(|unit| h264_type(unit) == 5);
    key.expect("a key frame").resize(700_000, 0x55);
    annex_b(units.iter().map(Vec::as_slice))
}

#[test]
fn a_frame_larger_than_the_ring_is_dropped_with_its_group_and_nothing_else() {
    let run = file(with_a_huge_frame(CLIP)).arg("-B512").run();
    let run = run.expect(Exit::Dropped);
    one_line(&run, &["50 of 250 frames", "--buffer"]);
    let report = run.report();
    assert_eq!(report["persisted"]["frames"], 200, "{report}");
    assert_eq!(
        report["dropped"]["by_reason"]["frame_too_large"]["frames"], 50,
        "{report}"
    );
}

#[test]
fn frames_that_are_all_larger_than_the_ring_are_told_as_that() {
    let second_key = nal_units(CLIP).into_iter().enumerate();
    let second_key = second_key.filter(|(_, unit)| h264_type(unit) == 5).nth(1);
    let (second_key, _) = second_key.expect("five key frames");
    let group = annex_b(nal_units(CLIP).into_iter().take(second_key - 2));
    let program = file(with_a_huge_frame(&group)).arg("-B512");
    fails(
        program,
        Exit::NoMedia,
        &["nothing could be streamed", "--buffer"],
    );
}

// ---- where results go ----

#[test]
fn a_recording_that_cannot_be_written_is_told_at_the_start() {
    let program = Program::new(["--local=/dev/null/below", "--device=demo", "cam"]);
    fails(
        program,
        Exit::Usage,
        &["recording directory", "/dev/null/below"],
    );
}

#[test]
fn a_report_that_cannot_be_written_is_told_at_the_start() {
    // The demo has no end: only a refusal at the start has.
    let program = Program::new([
        "--local",
        "--report=/dev/null/below",
        "--device=demo",
        "cam",
    ]);
    fails(program, Exit::Usage, &["report", "/dev/null/below"]);
}

#[test]
fn the_report_goes_to_standard_output_alone() {
    let run = Program::new([
        "--local",
        "--report=-",
        "--device=clip",
        "--fps=1000",
        "cam",
    ]);
    let run = run.file("clip", CLIP).run().expect(Exit::Persisted);
    let report: Value =
        serde_json::from_str(&run.stdout).expect("one JSON object and nothing else");
    assert_eq!(report["persisted"]["frames"], 250);
    assert!(run.said().is_empty(), "{:?}", run.said());
}

#[test]
fn every_line_of_a_json_log_is_json() {
    let run = file(CLIP)
        .args(["--log-format=json", "-vv"])
        .run()
        .expect(Exit::Persisted);
    assert!(run.stderr.lines().count() > 3);
    for line in run.stderr.lines() {
        let entry: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(
            entry["timestamp"].is_string() && entry["message"].is_string(),
            "{line}"
        );
    }
}

// ---- the way to the service ----

/// A program that streams a file to the service that `variables` lead to.
fn away(variables: &[(&str, &str)]) -> Program {
    Program::new(["--fps=1000", "cam"])
        .file("clip", CLIP)
        .env("KVS_DEVICE", "clip")
        .env("AWS_REGION", "us-west-2")
        .envs(variables.iter().copied())
}

const KEY: (&str, &str) = ("AWS_ACCESS_KEY_ID", "AKIALOCALENDPOINT001");
const SECRET: (&str, &str) = (
    "AWS_SECRET_ACCESS_KEY",
    "localEndpointSecretKeyOpensNothingElse00",
);
const URL: &str = "AWS_ENDPOINT_URL_KINESIS_VIDEO";

#[test]
fn a_region_must_be_named_and_look_like_one() {
    fails(
        away(&[("AWS_REGION", "")]),
        Exit::Usage,
        &["AWS region", "--region"],
    );
    for wrong in ["a b", "mars", "us-west-2.evil.example", "US-WEST-2"] {
        let program = away(&[]).args(["--region", wrong]);
        fails(program, Exit::Usage, &[wrong, "region", "us-west-2"]);
    }
}

#[test]
fn a_file_does_not_wait_for_credentials() {
    let words = ["no AWS credentials", "AWS_ACCESS_KEY_ID"];
    fails(
        away(&[(URL, "http://127.0.0.1:1")]),
        Exit::NotPermitted,
        &words,
    );
}

#[test]
fn credentials_that_are_refused_end_it_with_the_services_word() {
    let endpoint = Endpoint::start([""; 0]);
    let url = (URL, &*endpoint.url());
    let unknown = away(&[url, ("AWS_ACCESS_KEY_ID", "AKIANOBODY"), SECRET]);
    fails(
        unknown,
        Exit::NotPermitted,
        &["UnrecognizedClientException", "\"cam\""],
    );
    let wrong = away(&[url, KEY, ("AWS_SECRET_ACCESS_KEY", "wrong")]);
    fails(wrong, Exit::NotPermitted, &["InvalidSignatureException"]);
    let expired = away(&[
        url,
        ("AWS_ACCESS_KEY_ID", "ASIALOCALENDPOINT003"),
        SECRET,
        ("AWS_SESSION_TOKEN", "localEndpointExpiredToken"),
    ]);
    fails(expired, Exit::NotPermitted, &["ExpiredTokenException"]);
}

#[test]
fn a_pipe_keeps_trying_until_it_ends() {
    let endpoint = Endpoint::start([""; 0]);
    let run = away(&[
        (URL, &endpoint.url()),
        KEY,
        ("AWS_SECRET_ACCESS_KEY", "wrong"),
    ]);
    let run = run.args(["--device=-"]).feed(|pipe| {
        pipe.write_all(CLIP)?;
        std::thread::sleep(Duration::from_millis(500));
        pipe.write_all(CLIP)
    });
    let run = run.expect(Exit::NotPermitted);
    one_line(&run, &["InvalidSignatureException"]);
    assert!(
        run.stderr.contains("the media is at its end"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_file_gives_up_on_a_service_that_it_never_reaches() {
    let nobody = ("http://nosuchhost.invalid", "nosuchhost.invalid");
    let closed = ("http://127.0.0.1:1", "127.0.0.1:1");
    for (url, word) in [nobody, closed] {
        let program = away(&[(URL, url), KEY, SECRET]).arg("--grace=1");
        fails(program, Exit::Unsent, &["cannot reach", word]);
        // More than the ring holds: the file waits, and its end never comes.
        let program = away(&[(URL, url), KEY, SECRET]).args(["--grace=1", "-B512"]);
        let program = program.file("clip", CLIP.repeat(8));
        fails(program, Exit::Unsent, &["cannot reach", word]);
    }
}

#[test]
fn an_endpoint_must_be_an_address() {
    for wrong in ["nonsense", "ftp://127.0.0.1", "http://"] {
        let program = away(&[(URL, wrong), KEY, SECRET]);
        fails(program, Exit::Usage, &["endpoint", wrong, "http"]);
    }
}

/// An endpoint that speaks TLS with a certificate of its own, and that certificate.
fn tls_endpoint() -> (Endpoint, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]);
    let made = made.expect("a certificate");
    let program = Program::new(["local-endpoint", "--listen=127.0.0.1:0"])
        .file("cert.pem", made.cert.pem())
        .file("key.pem", made.signing_key.serialize_pem());
    let endpoint = Endpoint::of(program, ["--tls-cert=cert.pem", "--tls-key=key.pem"]);
    (endpoint, made.cert.pem())
}

#[test]
fn only_a_trusted_certificate_is_accepted() {
    let (endpoint, ca) = tls_endpoint();
    let url = endpoint.url();
    let program = || away(&[(URL, &url), KEY, SECRET, ("AWS_REGION", "us-west-2")]);
    fails(program(), Exit::Untrusted, &[&url, "certificate"]);
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]);
    let other = other.expect("a certificate").cert.pem();
    let wrong = program().file("ca.pem", other).arg("--ca-file=ca.pem");
    fails(wrong, Exit::Untrusted, &[&url, "certificate"]);
    for variable in ["KVS_CA_FILE", "AWS_KVS_CACERT_PATH", "SSL_CERT_FILE"] {
        let right = program().file("ca.pem", &ca).env(variable, "ca.pem");
        right.run().expect(Exit::Persisted);
    }
}

#[test]
fn a_server_that_speaks_something_else_is_no_endpoint() {
    let (endpoint, _) = tls_endpoint();
    let plain = endpoint.url().replace("https:", "http:");
    let program = away(&[(URL, &plain), KEY, SECRET]).arg("--grace=1");
    fails(program, Exit::Unsent, &[&plain, "http or https"]);
    let endpoint = Endpoint::start([""; 0]);
    let tls = endpoint.url().replace("http:", "https:");
    let program = away(&[(URL, &tls), KEY, SECRET]).arg("--grace=1");
    fails(program, Exit::Unsent, &[&tls, "http or https"]);
}

#[test]
fn a_ca_file_must_hold_a_certificate() {
    let missing = Program::new(["--ca-file=none.pem", "cam"]);
    fails(
        missing,
        Exit::Usage,
        &["CA file", "none.pem", "No such file"],
    );
    let garbage = Program::new(["--ca-file=ca.pem", "cam"]).file("ca.pem", "hello");
    fails(
        garbage,
        Exit::Usage,
        &["CA file", "ca.pem", "BEGIN CERTIFICATE"],
    );
}

#[test]
fn no_secret_is_ever_written() {
    let endpoint = Endpoint::start([""; 0]);
    let token = "localEndpointSessionToken";
    let variables = [
        (URL, &*endpoint.url()),
        ("AWS_ACCESS_KEY_ID", "ASIALOCALENDPOINT002"),
        SECRET,
        ("AWS_SESSION_TOKEN", token),
    ];
    let good = away(&variables).arg("-vv").run().expect(Exit::Persisted);
    let refused = [
        variables[0],
        variables[1],
        SECRET,
        ("AWS_SESSION_TOKEN", "other-token"),
    ];
    let refused = away(&refused).arg("-vv").run().expect(Exit::NotPermitted);
    for run in [good, refused] {
        let output = run.stdout + &run.stderr;
        for secret in [SECRET.1, token, "other-token", "Signature=", "Credential="] {
            assert!(!output.contains(secret), "{secret} in\n{output}");
        }
    }
}

// ---- the command line ----

#[test]
fn wrong_usage_is_told_before_anything_is_done() {
    for (args, words) in [
        (
            &["cam", "--buffer=100"][..],
            &["--buffer", "at least 512 KiB"][..],
        ),
        (&["cam", "--buffer=2G"], &["--buffer", "K or M"]),
        (&["a b"], &["' '", "letters, digits"]),
        (&["cam", "--tag=novalue"], &["--tag", "KEY=VALUE"]),
        (&["cam", "--tag=aws:x=1"], &["--tag", "reserved"]),
        (&["cam", "--fps=0"], &["--fps", "no frame rate"]),
        (&["cam", "--fps=fast"], &["--fps", "30000/1001"]),
        (&["cam", "soon"], &["DURATION", "soon"]),
        (&["cam", "--retention=87601"], &["--retention", "87600"]),
        (&["cam", "--grace=99999999999"], &["--grace", "86400"]),
        (&["cam", "--codec=av1"], &["--codec", "h264"]),
        (&["cam", "--when-full=panic"], &["--when-full", "wait"]),
        (&["cam", "--log-format=xml"], &["--log-format", "json"]),
        (&["cam", "--scenario=x"], &["--local"]),
        (&["cam", "--no-such-option"], &["--no-such-option"]),
        (&[], &["CHANNEL"]),
    ] {
        let run = Program::new(args).run().expect(Exit::Usage);
        assert!(run.stdout.is_empty(), "{}", run.stdout);
        for word in words {
            assert!(run.stderr.contains(word), "no {word:?}: {}", run.stderr);
        }
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let help = Program::new(["--help"]).run().expect(Exit::Persisted);
    assert!(
        help.stdout.contains("--device") && help.stderr.is_empty(),
        "{}",
        help.stderr
    );
    let version = Program::new(["--version"]).run().expect(Exit::Persisted);
    let expected = concat!("kvsProducerApp ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(version.stdout, expected);
}

/// Every option and a value that only it can have caused.
#[test]
fn every_option_can_come_from_the_environment() {
    let good = [
        ("KVS_CHANNEL", "cam"),
        ("KVS_DURATION", "60"),
        ("KVS_DEVICE", "clip"),
        ("KVS_BUFFER", "512K"),
        ("KVS_CODEC", "h264"),
        ("KVS_FPS", "1000"),
        ("KVS_WHEN_FULL", "wait"),
        ("KVS_REGION", "eu-west-1"),
        ("KVS_RETENTION", "2"),
        ("KVS_TAG", "site=gate 3,made=here"),
        ("KVS_KMS_KEY", "alias/key"),
        ("KVS_NO_CREATE", "false"),
        ("KVS_CA_FILE", "ca.pem"),
        ("KVS_GRACE", "5"),
        ("KVS_REPORT", "report.json"),
        ("KVS_VERBOSE", "1"),
        ("KVS_QUIET", "0"),
        ("KVS_LOG_FORMAT", "json"),
        ("KVS_LOCAL", "recordings"),
        ("KVS_SCENARIO", "scenario.json"),
    ];
    let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a certificate");
    let program = || {
        Program::new([""; 0])
            .file("clip", CLIP)
            .file("ca.pem", ca.cert.pem())
            .file("scenario.json", r#"{"rules": []}"#)
            .envs(good)
    };
    let run = program().run().expect(Exit::Persisted);
    assert_eq!(run.report()["persisted"]["frames"], 250);
    assert_eq!(run.recordings("cam").len(), 1);
    assert!(
        run.stderr.starts_with('{') && run.stderr.contains("DEBUG"),
        "{}",
        run.stderr
    );

    for (variable, wrong, exit) in [
        ("KVS_CHANNEL", "a b", Exit::Usage),
        ("KVS_DURATION", "soon", Exit::Usage),
        ("KVS_DEVICE", "none", Exit::NoSource),
        ("KVS_BUFFER", "1", Exit::Usage),
        ("KVS_CODEC", "av1", Exit::Usage),
        ("KVS_FPS", "0", Exit::Usage),
        ("KVS_WHEN_FULL", "panic", Exit::Usage),
        ("KVS_REGION", "mars", Exit::Usage),
        ("KVS_RETENTION", "-1", Exit::Usage),
        ("KVS_TAG", "site", Exit::Usage),
        ("KVS_NO_CREATE", "true", Exit::Refused),
        ("KVS_CA_FILE", "clip", Exit::Usage),
        ("KVS_GRACE", "long", Exit::Usage),
        ("KVS_REPORT", "/dev/null/below", Exit::Usage),
        ("KVS_VERBOSE", "much", Exit::Usage),
        ("KVS_QUIET", "very", Exit::Usage),
        ("KVS_LOG_FORMAT", "xml", Exit::Usage),
        ("KVS_LOCAL", "/dev/null/below", Exit::Usage),
        ("KVS_SCENARIO", "clip", Exit::Usage),
    ] {
        eprintln!("{variable}={wrong}");
        program().env(variable, wrong).run().expect(exit);
    }
}

// ---- the end ----

#[test]
fn the_demo_runs_for_the_time_that_is_given() {
    let run = Program::local(["--device=demo", "cam", "2"])
        .run()
        .expect(Exit::Persisted);
    let report = run.report();
    let frames = report["persisted"]["frames"].as_u64().expect("a number");
    assert!((25..=75).contains(&frames), "{report}");
    assert!(report["duration_s"].as_f64() < Some(10.0), "{report}");
}

#[test]
fn a_signal_ends_it_well() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut running = Program::local(["--device=demo", "cam"]).start();
        running.wait_for("streaming connection=");
        running.signal(signal);
        let run = running.finish().expect(Exit::Persisted);
        let report = run.report();
        assert_eq!(report["captured"], report["persisted"], "{report}");
        assert!(report["persisted"]["frames"].as_u64() > Some(0), "{report}");
        assert_eq!(run.recordings("cam").len(), 1);
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    // Nothing is ever confirmed: without the second one it would take the grace.
    let when = r#"{"connection": {"from": 1}, "bytes": 1}"#;
    let scenario = format!(r#"{{"rules": [{{"when": {when}, "then": "black-hole"}}]}}"#);
    let program = Program::local([
        "--device=demo",
        "--scenario=scenario",
        "--grace=3600",
        "cam",
    ]);
    let mut running = program.file("scenario", scenario).start();
    running.wait_for("streaming connection=");
    running.signal(Signal::TERM);
    running.wait_for("once more ends at once");
    running.signal(Signal::TERM);
    let run = running.finish().expect(Exit::Unsent);
    assert_eq!(run.report()["persisted"]["frames"], 0);
}

#[test]
fn the_endpoint_ends_with_a_signal() {
    let mut running = Program::new(["local-endpoint", "--listen=127.0.0.1:0", "--dir=d"]).start();
    running.wait_for("AWS_REGION=");
    running.signal(Signal::INT);
    running.finish().expect(Exit::Persisted);
    let remote = Program::new(["local-endpoint", "--listen=0.0.0.0:0"]);
    fails(remote, Exit::Usage, &["0.0.0.0", "--allow-remote"]);
}
