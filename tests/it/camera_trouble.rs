//! The camera falls silent, or reading it goes wrong: the stream goes on when it is back.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kvs_producer_app::app::{Device, Exit, run_from};
use kvs_producer_app::clock::Clock;
use kvs_producer_app::frame::Codec;
use kvs_producer_app::local::Options;
use kvs_producer_app::local::view::Closed;
use kvs_producer_app::source::{self, Packet, Read, Source, Wait};

use crate::rig::{SPACING, STREAM, clip, config, endpoint, hand_camera, stream};
use crate::support::missing;

#[tokio::test]
async fn silence_closes_the_fragment_and_lets_the_connection_go() {
    let endpoint = endpoint(Options::default()).await;
    let mut config = config(&endpoint.url());
    config.silence = Duration::from_millis(300);
    let (shutter, camera) = hand_camera();
    let units = clip();
    let push = move |range: std::ops::Range<usize>| {
        for index in range {
            let at = SPACING * u32::try_from(index).expect("few");
            shutter
                .send((at, units[index].clone()))
                .expect("the camera is there");
        }
    };
    let mut view = endpoint.view();
    let test = async move {
        push(0..75);
        let frames = |state: &kvs_producer_app::local::view::State| {
            state
                .persisted(STREAM)
                .map(|fragment| fragment.frame_count)
                .sum::<usize>()
        };
        view.wait_until(|state| frames(state) == 75).await;
        view.wait_until(|state| state.connections[0].closed == Some(Closed::Completed))
            .await;
        // What does not start with a key frame has lost its reference.
        push(75..100);
        push(100..150);
        view.wait_until(|state| state.connections.len() == 2).await;
        drop(push);
    };
    let (summary, ()) = tokio::join!(stream(config, camera), test);
    let summary = summary.expect("a run");
    assert_eq!(
        summary.report.counts.persisted.frames, 125,
        "{}",
        summary.report
    );
    assert_eq!(summary.exit, Exit::Dropped, "{}", summary.report);
}

/// Delivers its units, and is lost after them or at its end.
struct Visitor {
    units: Vec<Vec<u8>>,
    next: usize,
    began: Duration,
    comes_back: bool,
}

fn away() -> source::Error {
    source::Error::Unusable {
        place: "the test's camera".into(),
        reason: "it is away".into(),
    }
}

impl Source for Visitor {
    fn describe(&self) -> String {
        "a camera that is unplugged".into()
    }

    fn read(&mut self, _: Wait<'_>) -> Result<Read<'_>, source::Error> {
        let index = self.next;
        self.next += 1;
        let Some(data) = self.units.get(index) else {
            return if self.comes_back {
                Err(away())
            } else {
                Ok(Read::End)
            };
        };
        std::thread::sleep(Duration::from_millis(2));
        Ok(Read::Packet(Packet {
            codec: Codec::H264,
            data,
            at: self.began + SPACING * u32::try_from(index).expect("few"),
            discontinuity: false,
        }))
    }
}

/// The clip as an encoder of the next higher level would have made it.
fn another_level(mut units: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for unit in &mut units {
        // nal_unit_type 7: the SPS, whose third byte after its head is level_idc.
        let sps = unit
            .windows(5)
            .position(|bytes| bytes == [0, 0, 0, 1, 0x67]);
        if let Some(start) = sps {
            unit[start + 7] += 1;
        }
    }
    units
}

#[tokio::test]
async fn a_camera_that_comes_back_with_another_format_streams_on_in_a_new_connection() {
    let endpoint = endpoint(Options::default()).await;
    let mut config = config(&endpoint.url());
    config.device = Device::Path("/dev/null".into()); // a character device, as cameras are
    let mut opened = 0;
    let open = move || {
        opened += 1;
        let units = clip()[..100].to_vec();
        let (units, comes_back) = match opened {
            1 => (units, true),
            2 => return Err(away()),
            _ => (another_level(units), false),
        };
        Ok(Box::new(Visitor {
            units,
            next: 0,
            began: Clock.monotonic(),
            comes_back,
        }) as Box<dyn Source>)
    };
    let summary = run_from(config, open).await.expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_eq!(summary.report.counts.persisted.frames, 200);
    let view = endpoint.view();
    let state = view.state();
    let mut connections = [BTreeSet::new(), BTreeSet::new()];
    let mut frames = 0;
    for fragment in state.persisted(STREAM) {
        connections[frames / 100].insert(fragment.connection);
        frames += fragment.frame_count;
        assert!(frames.is_multiple_of(50), "a fragment of both");
    }
    let [before, after] = connections;
    assert!(before.is_disjoint(&after), "{before:?} and {after:?}");
    // The one before ended as it should.
    let closed = |number: &u64| {
        state
            .connection(*number)
            .expect("it was there")
            .closed
            .clone()
    };
    assert!(
        before
            .iter()
            .all(|number| closed(number) == Some(Closed::Completed))
    );
}

/// `tests/camera/run` as somebody without QEMU has it: with these tools only, through `start`.
fn run_of_camera_tests(start: &[&str], tools: &[&str]) -> Option<(bool, String)> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for tool in tools {
        let known = ["/usr/bin", "/bin", "/usr/local/bin"]
            .map(|place| Path::new(place).join(tool))
            .into_iter()
            .find(|path| path.exists());
        let Some(known) = known else {
            missing(tool, "tests/camera/run is a script for it");
            return None;
        };
        symlink(known, directory.path().join(tool)).expect("a link");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/camera/run");
    let done = Command::new(start[0])
        .args(&start[1..])
        .arg(script)
        .env_remove("KVS_TEST_TOOLS")
        .env("PATH", directory.path())
        .env("KVS_CAMERA_CACHE", directory.path().join("cache"))
        .output()
        .expect("it starts");
    Some((
        done.status.success(),
        String::from_utf8_lossy(&done.stdout).into_owned(),
    ))
}

#[test]
fn without_qemu_the_camera_tests_are_skipped_with_a_word() {
    let Some((passed, said)) = run_of_camera_tests(&["/usr/bin/env", "python3"], &["python3"])
    else {
        return;
    };
    assert!(passed, "{said}");
    assert!(
        said.starts_with("tests/camera: SKIPPED, no camera was tested: "),
        "{said}"
    );
    assert!(
        cfg!(not(target_arch = "x86_64")) || said.contains("qemu-system-x86_64"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn on_another_processor_the_camera_tests_are_skipped_with_a_word() {
    // The kernel says what it is told to say.
    let start = ["/usr/bin/env", "setarch", "i686", "python3"];
    let Some((passed, said)) = run_of_camera_tests(&start, &["setarch", "python3"]) else {
        return;
    };
    assert!(passed, "{said}");
    assert!(
        said.contains("SKIPPED, no camera was tested: ") && said.contains("this machine is i686"),
        "{said}"
    );
}
