//! Real video arrives whole: what x264 and x265 have made is streamed from files, FIFOs and standard input, and the
//! recording decodes to the same frames as the source, all of them, once each, in order.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use kvs_producer_app::app::Exit;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{Program, Run, h264_type, h265_type, missing, nal_units};
use Codec::{H264, H265};

/// Whether ffmpeg can make and decode the clips.
fn tools() -> bool {
    let encoders = Command::new("ffmpeg")
        .args(["-v", "error", "-encoders"])
        .output();
    let encoders = encoders.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let usable = encoders.is_ok_and(|list| list.contains("libx264") && list.contains("libx265"));
    if !usable {
        missing(
            "ffmpeg",
            "it makes the clips with x264 and x265, and decodes what was recorded",
        );
    }
    usable
}

/// The output of a tool that must find nothing wrong.
#[track_caller]
fn checked<A: AsRef<OsStr>>(tool: &str, args: impl IntoIterator<Item = A>) -> String {
    let output: Output = Command::new(tool)
        .args(args)
        .output()
        .expect("the tool runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && complaint.is_empty(),
        "{tool}: {said}{complaint}"
    );
    said
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codec {
    H264,
    H265,
}

/// What a clip is made with. B-frames are always off.
#[derive(Debug, Clone, Copy)]
struct Clip {
    codec: Codec,
    size: &'static str,
    frames: usize,
    /// Frames from a key frame to the next.
    gop: usize,
    /// More for `-x264-params` or `-x265-params`.
    params: &'static str,
    pixels: &'static str,
}

impl Clip {
    const fn new(codec: Codec, gop: usize, params: &'static str) -> Self {
        Self {
            codec,
            size: "320x240",
            frames: 150,
            gop,
            params,
            pixels: "yuv420p",
        }
    }

    /// The clip, which is made once and kept among the build's files.
    fn make(self) -> Vec<u8> {
        let Self {
            codec,
            size,
            frames,
            gop,
            params,
            pixels,
        } = self;
        let (encoder, option, format, more) = match codec {
            Codec::H264 => ("libx264", "-x264-params", "h264", ""),
            Codec::H265 => ("libx265", "-x265-params", "hevc", ":log-level=error"),
        };
        let params = format!("bframes=0:scenecut=0:keyint={gop}:min-keyint={gop}{more}{params}");
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let path = dir
            .join(format!("{size} {frames} {pixels} {params}.{format}").replace(['/', ':'], " "));
        if !path.exists() {
            let scratch = tempfile::NamedTempFile::new_in(dir).expect("a file for the clip");
            let source = format!("testsrc2=size={size}:rate=25");
            let frames = frames.to_string();
            let mut ffmpeg = Command::new("ffmpeg");
            ffmpeg.args([
                "-v",
                "error",
                "-y",
                "-f",
                "lavfi",
                "-i",
                &source,
                "-frames:v",
                &frames,
            ]);
            ffmpeg.args([
                "-pix_fmt",
                pixels,
                "-c:v",
                encoder,
                "-preset",
                "ultrafast",
                option,
                &params,
            ]);
            let made = ffmpeg
                .args(["-f", format])
                .arg(scratch.path())
                .output()
                .expect("ffmpeg runs");
            assert!(
                made.status.success(),
                "{self:?}: {}",
                String::from_utf8_lossy(&made.stderr)
            );
            // Another test may be making the same: each sees it whole.
            scratch.persist(&path).expect("a name for the clip");
        }
        fs::read(path).expect("the clip")
    }

    /// How many fragments it becomes at `fps`: a group of pictures, or as many as make a second.
    fn fragments(self, fps: usize) -> usize {
        let gops = fps.div_ceil(self.gop);
        self.frames.div_ceil(gops * self.gop)
    }
}

/// Hashes of the decoded pictures, in order.
#[track_caller]
fn decoded(path: &Path) -> Vec<String> {
    let mut args: Vec<&OsStr> = ["-v", "error", "-i"].map(OsStr::new).into();
    args.push(path.as_os_str());
    // Every frame once, whatever its time.
    args.extend(["-fps_mode", "passthrough", "-f", "framemd5", "-"].map(OsStr::new));
    let hashes = checked("ffmpeg", args);
    let lines = hashes.lines().filter(|line| !line.starts_with('#'));
    let hash = |line: &str| line.rsplit(',').next().map(|hash| hash.trim().to_owned());
    lines.filter_map(hash).collect()
}

/// The same of Annex B.
#[track_caller]
fn decoded_clip(clip: &[u8]) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), clip).expect("written");
    decoded(file.path())
}

/// Fails unless the recordings are sound and hold the frames of `clips`, and the report tells the same.
#[track_caller]
fn arrived(run: &Run, clips: &[&[u8]]) -> usize {
    let sent: Vec<String> = clips.iter().flat_map(|clip| decoded_clip(clip)).collect();
    let recordings = run.recordings("camera");
    let got: Vec<String> = recordings.iter().flat_map(|file| decoded(file)).collect();
    assert!(!sent.is_empty());
    // Thousands of hashes would hide what differs.
    let differs = sent.iter().zip(&got).position(|(sent, got)| sent != got);
    assert_eq!(
        (got.len(), differs),
        (sent.len(), None),
        "frames, first that differs"
    );
    let clusters = recordings.iter().map(|file| sound(file)).sum();

    let report = run.report();
    for what in ["captured", "sent", "persisted"] {
        assert_eq!(report[what]["frames"], sent.len(), "{what}: {report}");
    }
    assert_eq!(report["captured"]["bytes"], report["persisted"]["bytes"]);
    assert_eq!(report["dropped"]["frames"], 0, "{report}");
    assert_eq!(report["fragments_persisted"], clusters, "{report}");
    assert!(report["failure"].is_null(), "{report}");
    clusters
}

/// Fails where a tool finds a fault in the recording. Returns its number of clusters.
#[track_caller]
fn sound(recording: &Path) -> usize {
    let args = |args: &[&'static str]| {
        let args = args.iter().copied().map(OsStr::new);
        args.chain([recording.as_os_str()]).collect::<Vec<_>>()
    };
    let probe = [
        "-v",
        "error",
        "-of",
        "csv=p=0",
        "-show_entries",
        "stream=width,height",
    ];
    let size = checked("ffprobe", args(&probe)).trim().replace(',', "x");
    if Command::new("mkvmerge").arg("--version").output().is_err() {
        missing("mkvtoolnix", "it reads the recordings as Matroska");
        let bytes = fs::read(recording).expect("the recording");
        return bytes
            .windows(4)
            .filter(|id| *id == [0x1F, 0x43, 0xB6, 0x75])
            .count();
    }
    let identified = checked("mkvmerge", args(&["-J"]));
    let identified: serde_json::Value = serde_json::from_str(&identified).expect("JSON");
    for complaints in ["errors", "warnings"] {
        assert_eq!(
            identified[complaints],
            serde_json::json!([]),
            "{identified}"
        );
    }
    // The header says what the pictures are.
    assert_eq!(
        identified["tracks"][0]["properties"]["pixel_dimensions"],
        size
    );
    // This reads every block. Status 1 is a warning.
    let copy = tempfile::NamedTempFile::new().expect("a temporary file");
    let output = copy.path().to_str().expect("a plain path").to_owned();
    let copy_args = ["--quiet", "--output", &output].map(OsStr::new);
    checked(
        "mkvmerge",
        copy_args.into_iter().chain([recording.as_os_str()]),
    );
    let elements = checked("mkvinfo", args(&["--all"]));
    let cluster = |line: &&str| line.trim_end() == "|+ Cluster";
    elements.lines().filter(cluster).count()
}

/// How the program gets a clip.
#[derive(Debug, Clone, Copy)]
enum Way {
    File,
    Pipe,
    Fifo,
}

/// Streams `clip` at `fps`.
fn stream(clip: &[u8], way: Way, fps: &str, args: &[&str]) -> Run {
    let program = args
        .iter()
        .fold(Program::local(["--fps", fps, "camera"]), Program::arg);
    match way {
        Way::File => program.arg("--device=clip").file("clip", clip).run(),
        Way::Pipe => program.arg("--device=-").feed_all(clip),
        Way::Fifo => {
            let fifo = program.dir().join("fifo");
            mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a FIFO");
            let mut running = program.arg("--device=fifo").start();
            running.wait_for("capturing from fifo");
            // Opening waits for a reader, which is there.
            let mut writer = File::options().write(true).open(&fifo).expect("the FIFO");
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    // The reader says what is wrong with it.
                    let _ = writer.write_all(clip);
                });
                running.finish()
            })
        }
    }
}

/// Streams the clip as `edit` leaves it; frame and fragment counts are those of the clip.
#[track_caller]
fn arrives(clip: Clip, way: Way, edit: fn(&[u8]) -> Vec<u8>) {
    if !tools() {
        return;
    }
    let bytes = edit(&clip.make());
    let run = stream(&bytes, way, "100", &[]).expect(Exit::Persisted);
    assert_eq!(decoded_clip(&bytes).len(), clip.frames);
    assert_eq!(arrived(&run, &[&bytes]), clip.fragments(100));
}

fn unchanged(clip: &[u8]) -> Vec<u8> {
    clip.to_vec()
}

/// Every parameter set comes once, and start codes have three bytes.
fn bare(clip: &[u8], is_parameter_set: fn(&[u8]) -> bool) -> Vec<u8> {
    let mut seen = HashSet::new();
    let units = nal_units(clip).into_iter();
    let once = units.filter(|unit| !is_parameter_set(unit) || seen.insert(*unit));
    once.flat_map(|unit| [&[0, 0, 1], unit].concat()).collect()
}

fn bare_h264(clip: &[u8]) -> Vec<u8> {
    bare(clip, |unit| matches!(h264_type(unit), 7 | 8))
}

fn bare_h265(clip: &[u8]) -> Vec<u8> {
    bare(clip, |unit| matches!(h265_type(unit), 32..=34))
}

#[test]
fn h264_of_short_gops_in_a_file() {
    arrives(Clip::new(H264, 12, ""), Way::File, unchanged);
}

#[test]
fn h264_of_four_slices_with_aud_in_a_pipe() {
    arrives(Clip::new(H264, 25, ":slices=4:aud=1"), Way::Pipe, unchanged);
}

#[test]
fn h264_of_four_slices_with_one_key_frame_in_a_fifo() {
    arrives(Clip::new(H264, 250, ":slices=4"), Way::Fifo, unchanged);
}

#[test]
fn h264_with_its_headers_once_and_short_start_codes() {
    arrives(Clip::new(H264, 25, ":slices=4"), Way::File, bare_h264);
}

#[test]
fn h264_with_aud_and_its_headers_once_in_a_pipe() {
    arrives(Clip::new(H264, 12, ":aud=1"), Way::Pipe, bare_h264);
}

#[test]
fn h264_of_ten_bits_interlaced_and_of_an_odd_size() {
    let clip = Clip {
        size: "322x246",
        pixels: "yuv422p10le",
        ..Clip::new(H264, 25, ":tff=1")
    };
    arrives(clip, Way::File, unchanged);
}

#[test]
fn h265_of_short_gops_in_a_pipe() {
    arrives(Clip::new(H265, 12, ":slices=1"), Way::Pipe, unchanged);
}

#[test]
fn h265_of_four_slices_with_aud_in_a_file() {
    arrives(Clip::new(H265, 25, ":slices=4:aud=1"), Way::File, unchanged);
}

#[test]
fn h265_with_one_key_frame_in_a_fifo() {
    arrives(Clip::new(H265, 250, ":slices=4"), Way::Fifo, unchanged);
}

#[test]
fn h265_of_open_gops_with_its_headers_once_and_short_start_codes() {
    arrives(
        Clip::new(H265, 25, ":open-gop=1:repeat-headers=1"),
        Way::File,
        bare_h265,
    );
}

#[test]
fn h265_of_closed_gops_with_aud_and_its_headers_once_in_a_pipe() {
    let params = ":open-gop=0:repeat-headers=1:aud=1";
    arrives(Clip::new(H265, 12, params), Way::Pipe, bare_h265);
}

#[test]
fn h265_of_ten_bits_and_of_an_odd_size() {
    let clip = Clip {
        size: "322x246",
        pixels: "yuv420p10le",
        ..Clip::new(H265, 25, "")
    };
    arrives(clip, Way::File, unchanged);
}

/// Sizes alternate in the middle of a stream: each has a recording of its own.
#[track_caller]
fn sizes_change(codec: Codec, way: Way) {
    if !tools() {
        return;
    }
    let small = Clip {
        frames: 50,
        ..Clip::new(codec, 25, "")
    };
    let large = Clip {
        size: "352x288",
        ..small
    };
    let (small, large) = (small.make(), large.make());
    let run = stream(&[&small[..], &large, &small].concat(), way, "100", &[]);
    let run = run.expect(Exit::Persisted);
    arrived(&run, &[&small, &large, &small]);
    assert_eq!(run.recordings("camera").len(), 3);
    assert_eq!(run.report()["connections"], 3);
}

#[test]
fn h264_changes_its_size_in_a_file() {
    sizes_change(H264, Way::File);
}

#[test]
fn h265_changes_its_size_in_a_pipe() {
    sizes_change(H265, Way::Pipe);
}

#[test]
fn frames_of_a_file_have_the_times_of_their_rate() {
    if !tools() {
        return;
    }
    let run =
        stream(&Clip::new(H264, 25, "").make(), Way::File, "200", &[]).expect(Exit::Persisted);
    let recordings = run.recordings("camera");
    let probe = [
        "-v",
        "error",
        "-of",
        "csv=p=0",
        "-show_entries",
        "packet=pts",
    ];
    let recording = recordings[0].to_str().expect("a plain path");
    let times = checked("ffprobe", probe.into_iter().chain([recording]));
    let times: Vec<u64> = times
        .lines()
        .map(|time| time.trim_end_matches(',').parse().expect("a time in ms"))
        .collect();
    assert_eq!(times.len(), 150);
    assert!(
        times.is_sorted_by(|earlier, later| later - earlier == 5),
        "{times:?}"
    );
}

#[test]
fn a_pipe_may_be_cut_anywhere() {
    if !tools() {
        return;
    }
    for codec in [H264, H265] {
        let clip = Clip::new(codec, 12, ":slices=4:aud=1").make();
        let seed = fastrand::u64(..);
        eprintln!("portions of seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        // Without --fps frames have their arrival times.
        let run = Program::local(["--device", "-", "camera"]).feed(|pipe| {
            let mut rest = &clip[..];
            while !rest.is_empty() {
                // Many single bytes, some of it whole pipes full.
                let longest = 1 << random.u32(0..=16);
                let (portion, later) = rest.split_at(random.usize(1..=longest).min(rest.len()));
                pipe.write_all(portion)?;
                rest = later;
                if random.u32(0..100) == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            Ok(())
        });
        arrived(&run.expect(Exit::Persisted), &[&clip]);
    }
}

#[test]
fn nothing_is_lost_when_a_full_pipe_waits_for_a_service_that_is_away() {
    if !tools() {
        return;
    }
    let clip = Clip {
        frames: 250,
        ..Clip::new(H264, 12, "")
    };
    let bytes = clip.make();
    assert!(bytes.len() > 900 * 1024, "far more than the buffer holds");
    let scenario = r#"{"rules": [
        {"when": {"connection": 1, "fragment": 2, "ack": "RECEIVED"}, "then": {"outage_ms": 1500}},
        {"when": {"ack": "PERSISTED"}, "then": {"delay_ms": 300}}
    ]}"#;
    let args = [
        "--fps=100",
        "--when-full=wait",
        "-B512",
        "--device=-",
        "--scenario=scenario",
        "camera",
    ];
    let run = Program::local(args)
        .file("scenario", scenario)
        .feed_all(&bytes);
    let run = run.expect(Exit::Persisted);
    arrived(&run, &[&bytes]);
    assert!(
        run.report()["connections"].as_u64() > Some(1),
        "{}",
        run.report()
    );
}

#[test]
fn a_full_pipe_drops_whole_fragments_and_counts_them() {
    if !tools() {
        return;
    }
    let clip = Clip {
        frames: 250,
        ..Clip::new(H264, 12, "")
    }
    .make();
    let run = Program::local(["--fps=25", "-B512", "--device=-", "camera"]).feed_all(&clip);
    let run = run.expect(Exit::Dropped);
    let report = run.report();
    let count = |what: &str| report[what]["frames"].as_u64().expect("a number");
    assert_eq!(count("captured"), 250, "{report}");
    assert_eq!(
        report["dropped"]["frames"],
        report["dropped"]["by_reason"]["ring_full"]["frames"]
    );
    // What is there is there whole: each decodes to a picture of the source.
    let sent: HashSet<String> = decoded_clip(&clip).into_iter().collect();
    let recordings = run.recordings("camera");
    let got: Vec<String> = recordings.iter().flat_map(|file| decoded(file)).collect();
    assert_eq!(got.len() as u64, count("persisted"), "{report}");
    assert_eq!(count("persisted") + count("dropped"), 250, "{report}");
    assert!(got.iter().all(|hash| sent.contains(hash)));
}
