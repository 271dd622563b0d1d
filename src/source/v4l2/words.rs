//! Plain words for what can be wrong with a camera: what it is, the likely cause, what to do.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::io::Errno;
use v4l::FourCC;
use v4l::capability::Flags;

use super::abi::Capabilities;
use super::camera;
use crate::frame::Codec;
use crate::source::Error;

pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn unusable(path: &str, reason: impl Into<String>) -> Error {
    Error::Unusable {
        place: path.to_owned(),
        reason: reason.into(),
    }
}

/// Looks at what stands at `path` before it is opened.
pub(super) fn check_path(path: &str) -> Result<(), Error> {
    let metadata = fs::metadata(path).map_err(|error| cannot_open(path, error))?;
    let kind = metadata.file_type();
    if kind.is_char_device() {
        return Ok(());
    }
    let kind = if kind.is_dir() {
        "a directory"
    } else if kind.is_file() {
        "a regular file"
    } else {
        "no character device"
    };
    Err(unusable(
        path,
        format!("not a video device but {kind}; {}", instead(&video_nodes())),
    ))
}

/// The node is there or not, and did not let itself be opened.
pub(super) fn cannot_open(path: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => unusable(path, absent(&video_nodes())),
        io::ErrorKind::PermissionDenied => unusable(path, Access::of(path).advice()),
        _ if is(&error, Errno::NXIO) || is(&error, Errno::NODEV) => unusable(
            path,
            "the node is there but no device is behind it: plug the camera in again, or load its driver",
        ),
        _ => refused("opening", path, error),
    }
}

fn absent(present: &[String]) -> String {
    format!("there is no such device; {}", instead(present))
}

fn instead(present: &[String]) -> String {
    if present.is_empty() {
        "this machine has no /dev/video* at all: plug a camera in or load its driver, and in a container hand the \
         device in"
            .to_owned()
    } else {
        format!(
            "this machine has {}: choose one with -D",
            present.join(", ")
        )
    }
}

/// Of several nodes none can be used; this one comes nearest.
pub(super) fn none_usable(path: &Path, reason: &str, nodes: usize) -> Error {
    let others = match nodes {
        1 => String::new(),
        _ => format!("; `kvsProducerApp devices` tells of all {nodes} nodes"),
    };
    unusable(&path.display().to_string(), format!("{reason}{others}"))
}

/// No card has this in its name.
pub(super) fn no_such_card(name: &str, cards: &[String]) -> Error {
    let there = if cards.is_empty() {
        "this machine has no camera that could be asked for its name".to_owned()
    } else {
        format!("this machine has {}", cards.join(", "))
    };
    let reason = format!("No such file, and no camera with this in its name; {there}");
    unusable(name, reason)
}

/// There is nothing to choose from.
pub(super) fn no_node() -> Error {
    unusable("no camera", instead(&[]))
}

/// The camera that was captured from is not there.
pub(super) fn away(path: &Path) -> Error {
    let reason = "the camera is not there: it was unplugged, or its driver is gone";
    unusable(&path.display().to_string(), reason)
}

/// The video nodes of this machine, in the order of their numbers.
pub(super) fn video_nodes() -> Vec<String> {
    let mut numbers: Vec<u32> = fs::read_dir("/dev")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_prefix("video")?.parse().ok()
        })
        .collect();
    numbers.sort_unstable();
    numbers
        .into_iter()
        .map(|number| format!("/dev/video{number}"))
        .collect()
}

/// What decides on who may open a node.
#[derive(Debug, Default)]
struct Access {
    /// Name of the group that owns the node, unless that is root's.
    group: Option<String>,
    /// Whether the group may read and write.
    group_may: bool,
    /// Name of the user that the process runs as.
    user: Option<String>,
    root: bool,
}

impl Access {
    fn of(path: &str) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let metadata = fs::metadata(path).ok();
        let gid = metadata
            .as_ref()
            .map(MetadataExt::gid)
            .filter(|gid| *gid != 0);
        let name = |file, id: Option<u32>| name_of(&fs::read_to_string(file).ok()?, id?);
        Self {
            group: name("/etc/group", gid),
            group_may: metadata.is_some_and(|metadata| metadata.mode() & 0o060 == 0o060),
            user: name("/etc/passwd", Some(uid)),
            root: uid == 0,
        }
    }

    fn advice(&self) -> String {
        match (&self.group, &self.user) {
            _ if self.root => "not permitted, not even to root: the container, or the service manager's rules \
                on devices, keep it from this program; allow it there"
                .to_owned(),
            (Some(group), user) if self.group_may => format!(
                "not permitted: it belongs to the group {group}; run `usermod -aG {group} {}` as root and log in \
                 again",
                user.as_deref().unwrap_or("<user>")
            ),
            _ => "not permitted: only root may use it; give it to a group with a udev rule, or run `chgrp video` \
                and `chmod 660` on it as root"
                .to_owned(),
        }
    }
}

/// The name with this number in a file like /etc/group or /etc/passwd (group(5), passwd(5)).
fn name_of(file: &str, id: u32) -> Option<String> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    })
}

/// VIDIOC_QUERYCAP failed.
pub(super) fn not_a_camera(path: &str, error: io::Error) -> Error {
    if is(&error, Errno::NOTTY) || is(&error, Errno::INVAL) {
        unusable(
            path,
            format!("not a video device; {}", instead(&video_nodes())),
        )
    } else {
        refused("opening", path, error)
    }
}

/// Refuses nodes that do not capture pictures into memory that can be mapped.
pub(super) fn check_node(path: &str, capabilities: &Capabilities) -> Result<(), Error> {
    let Capabilities { card, flags, .. } = capabilities;
    let has = |flag| flags.contains(flag);
    let reason = if has(Flags::VIDEO_CAPTURE) || has(Flags::VIDEO_CAPTURE_MPLANE) {
        if has(Flags::STREAMING) {
            return Ok(());
        }
        format!("{card} has no streaming, only read(), which this program does not use")
    } else if has(Flags::VIDEO_M2M) || has(Flags::VIDEO_M2M_MPLANE) {
        format!(
            "{card} is a codec, which turns frames into others, and not a camera; name the camera with -D"
        )
    } else if has(Flags::META_CAPTURE) {
        format!(
            "this is the node of {card} for metadata; the pictures come from another, usually the one before it"
        )
    } else if has(Flags::VIDEO_OUTPUT) || has(Flags::VIDEO_OUTPUT_MPLANE) {
        format!(
            "{card} takes video and gives none; if it is a loopback device, start first what feeds it"
        )
    } else {
        format!("{card} does not capture video; name another node with -D")
    };
    Err(unusable(path, reason))
}

/// No format of the camera is one that can be streamed, or not the one that was asked for.
pub(super) fn no_encoder(
    path: &str,
    driver: &str,
    offered: &[FourCC],
    wanted: Option<Codec>,
) -> Error {
    let list = if offered.is_empty() {
        "no format at all".to_owned()
    } else {
        names(offered)
    };
    let lacks = wanted.map_or("neither H.264 nor H.265".to_owned(), |codec| {
        format!("no {codec}")
    });
    let advice = if offered
        .iter()
        .any(|fourcc| camera::codec(*fourcc).is_some())
    {
        "leave --codec out to take what it has".to_owned()
    } else if needs_libcamera(driver, offered) {
        "this is a bare sensor, which only libcamera can make a picture of: rpicam-vid -t 0 --inline -g 60 -o - | \
         kvsProducerApp -D - <CHANNEL>"
            .to_owned()
    } else {
        pipe(path)
    };
    unusable(
        path,
        format!("the camera encodes {lacks}, it offers {list}; {advice}"),
    )
}

/// The driver accepted the call and chose another format.
pub(super) fn format_refused(path: &str, wanted: Codec, got: FourCC) -> Error {
    unusable(
        path,
        format!(
            "the driver lists {wanted} and stays with {}; if another program feeds or uses this device, end that \
             first",
            name(got)
        ),
    )
}

pub(super) fn no_buffers(path: &str) -> Error {
    unusable(
        path,
        "the driver has no buffers for us: memory for cameras (CMA) is used up; end what uses the camera or its \
         encoder, or give more with the kernel's argument cma=",
    )
}

/// Any call that failed while the camera was set up.
pub(super) fn refused(action: &'static str, path: &str, error: io::Error) -> Error {
    if is(&error, Errno::BUSY) {
        unusable(path, busy(&holders(path)))
    } else if is(&error, Errno::NOMEM) {
        no_buffers(path)
    } else if is(&error, Errno::NOSPC) {
        unusable(
            path,
            "the USB bus has no bandwidth left: give the camera a port of its own, or end what uses another camera there",
        )
    } else {
        Error::Io {
            action,
            place: path.to_owned(),
            source: error,
        }
    }
}

pub(super) fn busy(holders: &[String]) -> String {
    if holders.is_empty() {
        "busy: another program is capturing from it; find it with `fuser -v` as root and end it"
            .to_owned()
    } else {
        format!(
            "busy: in use by {}; end that, or choose another camera with -D",
            holders.join(", ")
        )
    }
}

/// The processes that have `path` open, as far as we may see: `"ffmpeg (1234)"`.
pub(super) fn holders(path: &str) -> Vec<String> {
    let Ok(node) = fs::canonicalize(path) else {
        return Vec::new();
    };
    let holds = |process: &Path| {
        fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == node))
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|process| {
            let pid: u32 = process.file_name().to_str()?.parse().ok()?;
            if pid == std::process::id() || !holds(&process.path()) {
                return None;
            }
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            Some(format!("{} ({pid})", name.trim_end()))
        })
        .collect()
}

/// Whether what comes is what the sensor's cells have measured, or the driver is known to stand before an image
/// processor that only libcamera steers.
fn needs_libcamera(driver: &str, offered: &[FourCC]) -> bool {
    const DRIVERS: [&str; 8] = [
        "unicam",
        "rp1-cfe",
        "bcm2835-isp",
        "pispbe",
        "ipu3-cio2",
        "isys",
        "rkisp1",
        "qcom-camss",
    ];
    // Bayer patterns in 8 to 16 bits, packed and not, by `linux/videodev2.h`.
    let is_bayer = |fourcc: &FourCC| {
        matches!(
            &fourcc.repr,
            b"BA81"
                | b"GBRG"
                | b"GRBG"
                | b"RGGB"
                | b"BYR2"
                | [
                    b'B' | b'G' | b'R',
                    b'G' | b'B' | b'A' | b'R',
                    b'1',
                    b'0' | b'2' | b'4' | b'6'
                ]
                | [
                    b'p',
                    b'B' | b'G' | b'g' | b'R',
                    b'A' | b'C' | b'E' | b'F',
                    b'A' | b'C' | b'E' | b'F'
                ]
        )
    };
    DRIVERS.contains(&driver) || (!offered.is_empty() && offered.iter().all(is_bayer))
}

/// The way out for a camera that does not encode.
fn pipe(path: &str) -> String {
    format!(
        "encode in software: ffmpeg -f v4l2 -i {path} -c:v libx264 -preset ultrafast -tune zerolatency \
         -pix_fmt yuv420p -g 60 -f h264 - | kvsProducerApp -D - <CHANNEL>, or: gst-launch-1.0 -q v4l2src device={path} ! \
         decodebin ! videoconvert ! x264enc tune=zerolatency key-int-max=60 ! \
         video/x-h264,stream-format=byte-stream,profile=main ! fdsink | kvsProducerApp -D - <CHANNEL>"
    )
}

/// The first formats of a list, which may be long, and how many more.
pub(super) fn names(fourccs: &[FourCC]) -> String {
    const MOST: usize = 12;
    let first: Vec<String> = fourccs.iter().take(MOST).copied().map(name).collect();
    match fourccs.len().saturating_sub(MOST) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

pub(super) fn name(fourcc: FourCC) -> String {
    fourcc.repr.escape_ascii().to_string().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_node_names_those_that_are_there() {
        let nodes = ["/dev/video0".to_owned(), "/dev/video1".to_owned()];
        assert_eq!(
            absent(&nodes),
            "there is no such device; this machine has /dev/video0, /dev/video1: choose one with -D"
        );
        assert!(absent(&[]).contains("plug a camera in"));
        let error = check_path("/dev/video-that-is-not")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("/dev/video-that-is-not: there is no such device; "),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_device_is_called_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("clip.h264");
        fs::write(&file, b"").unwrap();
        let say = |path: &Path| check_path(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(say(&file).contains("not a video device but a regular file"));
        assert!(say(directory.path()).contains("but a directory"));
        assert!(check_path("/dev/null").is_ok()); // its driver is asked next
    }

    #[test]
    fn a_forbidden_node_names_the_group_that_may() {
        let mut access = Access {
            group: Some("video".to_owned()),
            group_may: true,
            user: Some("alice".to_owned()),
            root: false,
        };
        assert_eq!(
            access.advice(),
            "not permitted: it belongs to the group video; run `usermod -aG video alice` as root and log in again"
        );
        access.user = None;
        assert!(access.advice().contains("`usermod -aG video <user>`"));
        access.group_may = false;
        assert!(access.advice().contains("udev"));
        access.root = true;
        assert!(access.advice().contains("container"));
    }

    #[test]
    fn names_are_found_by_number() {
        let groups = "root:x:0:\nbroken\nvideo:x:44:alice,bob\n";
        assert_eq!(name_of(groups, 44).as_deref(), Some("video"));
        assert_eq!(name_of(groups, 0).as_deref(), Some("root"));
        assert_eq!(name_of(groups, 4), None);
    }

    #[test]
    fn a_busy_node_names_who_has_it() {
        let holders = ["ffmpeg (12)".to_owned()];
        assert!(busy(&holders).starts_with("busy: in use by ffmpeg (12); "));
        assert!(busy(&[]).contains("fuser"));
        let error = refused("opening", "/dev/null", Errno::BUSY.into());
        assert!(
            error.to_string().starts_with("/dev/null: busy: "),
            "{error}"
        );
    }

    #[test]
    fn the_path_of_every_process_that_holds_a_node_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("held");
        let held = fs::File::create(&file).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdin(held)
            .spawn()
            .unwrap();
        let found = holders(file.to_str().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [format!("sleep ({})", child.id())]);
    }

    #[test]
    fn each_kind_of_node_is_told_apart() {
        let say = |flags| {
            let capabilities = Capabilities {
                driver: "driver".to_owned(),
                card: "Card".to_owned(),
                bus: "bus".to_owned(),
                flags,
            };
            check_node("/dev/video7", &capabilities).map_err(|error| error.to_string())
        };
        assert_eq!(say(Flags::VIDEO_CAPTURE | Flags::STREAMING), Ok(()));
        assert_eq!(say(Flags::VIDEO_CAPTURE_MPLANE | Flags::STREAMING), Ok(()));
        let refused = |flags, word: &str| {
            let error = say(flags).unwrap_err();
            assert!(
                error.starts_with("/dev/video7: ") && error.contains(word),
                "{error}"
            );
        };
        refused(Flags::VIDEO_CAPTURE, "no streaming");
        refused(Flags::VIDEO_M2M_MPLANE | Flags::STREAMING, "codec");
        refused(Flags::META_CAPTURE | Flags::STREAMING, "metadata");
        refused(
            Flags::VIDEO_OUTPUT | Flags::STREAMING,
            "start first what feeds it",
        );
        refused(Flags::RADIO, "does not capture");
    }

    #[test]
    fn a_camera_without_encoder_gets_a_line_to_type() {
        let raw = [
            FourCC::new(b"YUYV"),
            FourCC::new(b"MJPG"),
            FourCC::new(b"Y8\xff "),
        ];
        let error = no_encoder("/dev/video0", "uvcvideo", &raw, None).to_string();
        assert!(
            error.contains("neither H.264 nor H.265, it offers YUYV, MJPG, Y8\\xff; "),
            "{error}"
        );
        assert!(error.contains("ffmpeg -f v4l2 -i /dev/video0 "), "{error}");
        assert!(error.contains("v4l2src device=/dev/video0 "), "{error}");
        assert!(!error.contains("libcamera"), "{error}");
        let bare = [FourCC::new(b"pRAA"), FourCC::new(b"BG10")];
        let error = no_encoder("/dev/video0", "sensor", &bare, None).to_string();
        assert!(error.contains("libcamera"), "{error}");
        let error = no_encoder("/dev/video0", "unicam", &raw, None).to_string();
        assert!(error.contains("rpicam-vid"), "{error}");
        let error = no_encoder("/dev/video0", "vivid", &[], None).to_string();
        assert!(!error.contains("libcamera"), "{error}");
        let error = no_encoder(
            "/dev/video0",
            "",
            &[FourCC::new(b"H264")],
            Some(Codec::H265),
        )
        .to_string();
        assert!(
            error.contains("no H.265, it offers H264; leave --codec out"),
            "{error}"
        );
    }

    #[test]
    fn long_lists_of_formats_are_cut() {
        let all = [FourCC::new(b"YUYV"); 14];
        assert_eq!(names(&all[..2]), "YUYV, YUYV");
        assert!(names(&all).ends_with("YUYV, YUYV and 2 more"));
    }

    #[test]
    fn every_message_is_one_line() {
        let path = "/dev/video0";
        let errors = [
            cannot_open(path, Errno::NODEV.into()),
            cannot_open(path, Errno::ACCESS.into()),
            not_a_camera(path, Errno::NOTTY.into()),
            refused("opening", path, Errno::NOMEM.into()),
            refused("opening", path, Errno::NOSPC.into()),
            format_refused(path, Codec::H264, FourCC::new(b"YUYV")),
        ];
        for error in errors {
            assert!(
                !error.to_string().contains(['\n', '\t']) && !error.to_string().contains("  "),
                "{error}"
            );
        }
    }
}
