//! The memory of the program that is shipped, on the machine that it is for.

use std::fs;
use std::thread;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::program::{self, Program};
use crate::rig::given;
use crate::service::Service;

/// What a program for 32 bits may have resident at most, in kB.
const MOST_KB: u64 = 4000;

/// H.264 of 3.8 Mbit/s over TLS, with a buffer of 2 MiB: as `tests/bench/footprint` has it.
#[test]
#[ignore = "needs cameras: tests/camera/run has them"]
fn the_program_has_no_more_resident_than_a_small_camera_can_spare() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let ca = tempfile::NamedTempFile::new().unwrap();
    fs::write(ca.path(), made.cert.pem()).unwrap();
    let clip = given("KVS_TEST_CLIPS").join("footprint.h264");
    let arguments = [
        "-D",
        clip.to_str().unwrap(),
        "-B",
        "2048",
        "--ca-file",
        ca.path().to_str().unwrap(),
        "cam",
    ];
    let mut program = Program::start_with(Service::secure(server), &arguments);
    program.says("streaming connection");
    let pid = program.pid().as_raw_nonzero();
    let mut resident = Vec::new();
    // Once it has ended there is a report, and no memory.
    while let Some(now) = Resident::of(pid.get()) {
        resident.push(now);
        thread::sleep(Duration::from_millis(500));
    }
    let outcome = program.end();
    outcome.assert_persisted();
    let peak = resident.last().unwrap().peak;
    // A host that is busy for a moment lets more be held, which is not what this is about.
    resident.sort_unstable_by_key(|one| one.now);
    let Resident { now, anonymous, .. } = resident[resident.len() / 2];
    println!("    resident: {now} kB, {anonymous} kB of it no file's; {peak} kB at most");
    let bits = fs::read(program::path()).unwrap()[4] * 32; // EI_CLASS
    assert!(bits == 64 || now <= MOST_KB, "{now} kB");
}

/// In kB (proc(5), status).
struct Resident {
    now: u64,
    anonymous: u64,
    peak: u64,
}

impl Resident {
    /// Of a process that runs.
    fn of(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        Some(Self {
            now: field("VmRSS:")?,
            anonymous: field("RssAnon:")?,
            peak: field("VmHWM:")?,
        })
    }
}
