//! A camera that streams: what was agreed with the driver, and its buffers going round.

use std::fmt;
use std::io;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use tracing::info;
use v4l::FourCC;

use super::abi::{self, Interval, Kernel, Picture, Planes, Readiness};
use super::control;
use super::ladder::{Ladder, Rung};
use super::layout::{Filled, Layout};
use super::ledger::Ledger;
use super::{Options, settings, words};
use crate::clock::Clock;
use crate::detail;
use crate::frame::{CameraLosses, Codec, Dimensions};
use crate::source::{Error, Packet, Read, Wait};

/// Buffers asked for. Eight are a quarter of a second at 30 frames a second, for a busy single processor; where memory
/// for cameras is scarce, drivers give fewer.
const BUFFERS: u32 = 8;

/// How long to leave a driver alone that said "ready" and had nothing, so that it does not eat the processor.
const BREATH: Duration = Duration::from_millis(10);

/// How long the node of a camera that was unplugged stays open. Linux wakes us before it has taken the device apart, and a
/// node that is closed meanwhile may take the kernel along: seen on 6.1 with uvcvideo, where media_device_unregister_entity
/// then uses what has just been freed.
const UNPLUGGING: Duration = Duration::from_millis(500);

/// The pixel formats that hold Annex B, in order of preference: H.264 plays everywhere. `H265` is what kernels of some
/// camera chips call HEVC.
const ENCODED: [([u8; 4], Codec); 3] = [
    (*b"H264", Codec::H264),
    (*b"HEVC", Codec::H265),
    (*b"H265", Codec::H265),
];

/// How the bytes of this pixel format are encoded, when they are Annex B.
pub(super) fn codec(fourcc: FourCC) -> Option<Codec> {
    ENCODED
        .iter()
        .find_map(|(name, codec)| (fourcc.repr == *name).then_some(*codec))
}

/// The format to take of those that are offered.
pub(super) fn preferred(offered: &[FourCC], wanted: Option<Codec>) -> Option<(FourCC, Codec)> {
    ENCODED
        .iter()
        .map(|&(fourcc, codec)| (FourCC::new(&fourcc), codec))
        .find(|(fourcc, codec)| {
            wanted.is_none_or(|wanted| wanted == *codec) && offered.contains(fourcc)
        })
}

/// What was agreed with the driver.
#[derive(Debug, Clone, Copy)]
struct Format {
    codec: Codec,
    picture: Picture,
    /// `None` when the driver does not say.
    interval: Option<Interval>,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Picture { width, height, .. } = self.picture;
        write!(f, "{} {width}x{height}", self.codec)?;
        if let Some(interval) = self.interval {
            write!(f, " at {interval}")?;
        }
        Ok(())
    }
}

/// A capturing device behind some [`Kernel`].
pub(super) struct Camera<K: Kernel> {
    place: String,
    format: Format,
    /// What was asked for and is otherwise, for people.
    remarks: Vec<String>,
    planes: Planes,
    layout: &'static Layout,
    buffers: Vec<K::Map>,
    /// The buffer that the last packet pointed into.
    lent: Option<u32>,
    ledger: Ledger,
    ladder: Ladder,
    /// Whether the driver makes key frames when it is asked to.
    makes_key_frames: bool,
    clock: Clock,
    // Last, so that the buffers are unmapped before the node is closed.
    kernel: K,
}

impl<K: Kernel> Camera<K> {
    /// Negotiates the format and starts the stream. On an error the node is closed again.
    pub(super) fn start(
        kernel: K,
        path: &str,
        options: &Options,
        clock: Clock,
    ) -> Result<Self, Error> {
        let capabilities =
            abi::capabilities(&kernel).map_err(|error| words::not_a_camera(path, error))?;
        words::check_node(path, &capabilities)?;
        let planes = Planes::of(capabilities.flags);

        let mut remarks = Vec::new();
        let offered = abi::formats(&kernel, planes)
            .map_err(|error| words::refused("listing the formats of", path, error))?;
        let (fourcc, codec) = preferred(&offered, options.codec).ok_or_else(|| {
            words::no_encoder(path, &capabilities.driver, &offered, options.codec)
        })?;
        let size = options.size;
        let picture = set_format(&kernel, planes, path, (fourcc, codec), size, &mut remarks)?;
        let interval = settle_interval(&kernel, planes, options, &mut remarks);
        remarks.extend(settings::apply(&kernel, options, codec, picture, interval));
        let (layout, buffers) = set_up_buffers(&kernel, planes, path)?;
        let (started, count) = (clock.monotonic(), buffers.len());
        abi::stream_on(&kernel, planes)
            .map_err(|error| words::refused("starting the stream of", path, error))?;
        Ok(Self {
            place: format!("{path} ({})", capabilities.card),
            format: Format {
                codec,
                picture,
                interval,
            },
            remarks,
            planes,
            layout,
            buffers,
            lent: None,
            ledger: Ledger::new(started, count, picture.longest_frame as usize),
            ladder: Ladder::new(interval.map(Interval::duration), clock.now()),
            makes_key_frames: control::query(&kernel, control::id::FORCE_KEY_FRAME).is_some(),
            clock,
            kernel,
        })
    }

    pub(super) fn describe(&self) -> String {
        format!("{}: {}", self.place, self.format)
    }

    pub(super) fn remarks(&self) -> &[String] {
        &self.remarks
    }

    pub(super) fn losses(&self) -> CameraLosses {
        self.ledger.losses()
    }

    /// See [`crate::source::Source::want_key_frame`].
    pub(super) fn want_key_frame(&mut self) {
        if !self.makes_key_frames {
            return;
        }
        if let Err(error) = control::set(&self.kernel, control::id::FORCE_KEY_FRAME, 1) {
            self.makes_key_frames = false;
            detail!(place = self.place, %error, "the driver lists FORCE_KEY_FRAME and refuses it");
        }
    }

    /// See [`crate::source::Source::read`].
    pub(super) fn read(&mut self, wait: Wait<'_>) -> Result<Read<'_>, Error> {
        if let Some(index) = self.lent.take() {
            self.give_back(index)?;
            // Not when it came: what its reader did meanwhile is no silence of the camera.
            self.ladder.delivered(self.clock.now());
        }
        if let Some(rung) = self.ladder.silent(self.clock.now()) {
            let seconds = self.ladder.silence(self.clock.now()).as_secs();
            let error = format!("no frame for {seconds} s, and starting it anew did not help");
            self.climb(rung, io::Error::new(io::ErrorKind::TimedOut, error))?;
        }
        let wait = wait.up_to(self.ladder.due());
        let Some((filled, length)) = self.next_frame(wait)? else {
            return Ok(Read::Nothing);
        };
        self.lent = Some(filled.index);
        let start = filled.data_offset as usize;
        Ok(Read::Packet(Packet {
            codec: self.format.codec,
            data: &self.buffers[filled.index as usize][start..start + length],
            at: filled.captured.unwrap_or_else(|| self.clock.monotonic()),
            discontinuity: self.ledger.take_discontinuity(),
        }))
    }

    /// Takes buffers until one holds a frame; its length comes with it. `None` when `wait` is over.
    fn next_frame(&mut self, wait: Wait<'_>) -> Result<Option<(Filled, usize)>, Error> {
        let mut in_vain = 0;
        loop {
            match self.kernel.wait(wait).map_err(|error| self.lost(error))? {
                Readiness::Nothing => return Ok(None),
                Readiness::Failed => {
                    self.fail(io::Error::other("the driver reports an error (POLLERR)"))?;
                    return Ok(None);
                }
                Readiness::Buffer => {}
            }
            match self.layout.dequeue(&self.kernel, self.planes) {
                Ok(filled) => {
                    let mapped = self.mapped(&filled)?;
                    if let Some(length) = self.ledger.judge(&filled, mapped) {
                        return Ok(Some((filled, length)));
                    }
                    self.give_back(filled.index)?;
                    in_vain += 1;
                    // All of its buffers in a row, faster than a camera could fill them.
                    if in_vain > self.buffers.len() {
                        wait.sleep(BREATH);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait.sleep(BREATH);
                }
                // Gone, and no attempt brings it back.
                Err(error) if words::is(&error, Errno::NODEV) => return Err(self.lost(error)),
                Err(error) => {
                    self.fail(error)?;
                    return Ok(None);
                }
            }
            if wait.is_over() {
                return Ok(None);
            }
        }
    }

    /// The driver reports an error.
    fn fail(&mut self, error: io::Error) -> Result<(), Error> {
        let rung = self.ladder.failed();
        self.climb(rung, error)
    }

    /// Does what the ladder says; `why` is the error when that is to give up this opening.
    fn climb(&mut self, rung: Rung, why: io::Error) -> Result<(), Error> {
        match rung {
            Rung::Requeue => {
                detail!(
                    place = self.place,
                    "the camera is silent: looking for lost buffers"
                );
                self.requeue();
                Ok(())
            }
            Rung::Restart => {
                if self.ladder.begun() {
                    let place = &self.place;
                    info!(place, "the camera stalls: starting its stream anew");
                }
                self.restart().map_err(|error| self.lost(error))
            }
            Rung::Reopen => Err(self.lost(why)),
        }
    }

    /// Gives the driver those buffers that are neither with it nor with us.
    fn requeue(&self) {
        for index in self.indices() {
            let place = self.layout.query(&self.kernel, self.planes, index);
            if place.is_ok_and(|place| place.idle) {
                // What can be wrong with one buffer is wrong with the stream, which is started anew next.
                let _ = self.layout.queue(&self.kernel, self.planes, index);
            }
        }
    }

    /// Stream off and on.
    fn restart(&mut self) -> io::Result<()> {
        abi::stream_off(&self.kernel, self.planes)?;
        for index in self.indices() {
            self.layout.queue(&self.kernel, self.planes, index)?;
        }
        self.ledger
            .begin_anew(self.clock.monotonic(), self.buffers.len());
        abi::stream_on(&self.kernel, self.planes)?;
        Ok(())
    }

    fn indices(&self) -> impl Iterator<Item = u32> + use<K> {
        // As many as the driver said in 32 bits.
        (0..).take(self.buffers.len())
    }

    /// Length of the buffer's mapping.
    fn mapped(&self, filled: &Filled) -> Result<usize, Error> {
        let mapped = self.buffers.get(filled.index as usize).map(|map| map.len());
        mapped.ok_or_else(|| Error::Unusable {
            place: self.place.clone(),
            reason: format!(
                "the driver handed out buffer {} of {}, which is a fault in the driver",
                filled.index,
                self.buffers.len()
            ),
        })
    }

    fn give_back(&self, index: u32) -> Result<(), Error> {
        self.layout
            .queue(&self.kernel, self.planes, index)
            .map_err(|error| self.lost(error))
    }

    fn lost(&self, source: io::Error) -> Error {
        Error::Io {
            action: "lost the camera",
            place: self.place.clone(),
            source,
        }
    }
}

impl<K: Kernel> Drop for Camera<K> {
    fn drop(&mut self) {
        // Closing the node would stop the stream as well. Of interest is whether there is still something to be stopped.
        let stopped = abi::stream_off(&self.kernel, self.planes);
        if stopped.is_err_and(|error| words::is(&error, Errno::NODEV)) {
            thread::sleep(UNPLUGGING);
        }
    }
}

/// Sets the format, with the size that is asked for, or else the one that the driver has.
fn set_format(
    kernel: &impl Kernel,
    planes: Planes,
    path: &str,
    (fourcc, codec): (FourCC, Codec),
    size: Option<Dimensions>,
    remarks: &mut Vec<String>,
) -> Result<Picture, Error> {
    let now = abi::picture(kernel, planes)
        .map_err(|error| words::refused("reading the format of", path, error))?;
    let size = size.map(|size| (size.width, size.height));
    let (width, height) = size.unwrap_or((now.width, now.height));
    let wanted = Picture {
        fourcc,
        width,
        height,
        ..now
    };
    let picture = abi::set_picture(kernel, planes, wanted)
        .map_err(|error| words::refused("setting the format of", path, error))?;
    if picture.fourcc != fourcc {
        return Err(words::format_refused(path, codec, picture.fourcc));
    }
    if size.is_some_and(|size| size != (picture.width, picture.height)) {
        let Picture {
            width: w,
            height: h,
            ..
        } = picture;
        remarks.push(format!("size is {w}x{h}, not {width}x{height}"));
    }
    Ok(picture)
}

/// Sets the frame rate when one is asked for. A driver that keeps its own is no reason to give up: frames carry their
/// times.
fn settle_interval(
    kernel: &impl Kernel,
    planes: Planes,
    options: &Options,
    remarks: &mut Vec<String>,
) -> Option<Interval> {
    let now = || abi::interval(kernel, planes).ok().flatten();
    let Some(fps) = options.fps else {
        return now();
    };
    let wanted = Interval {
        numerator: fps.denominator(),
        denominator: fps.numerator(),
    };
    let got = match abi::set_interval(kernel, planes, wanted) {
        Ok(Some(got)) => Some(got),
        Ok(None) | Err(_) => now(),
    };
    match got {
        Some(got) if got.is(wanted) => {}
        Some(got) => remarks.push(format!("frame rate is {got}, not {wanted}")),
        None => remarks.push(format!("frame rate {wanted} cannot be set")),
    }
    got
}

/// Has the driver make buffers, maps them all and queues them all.
fn set_up_buffers<K: Kernel>(
    kernel: &K,
    planes: Planes,
    path: &str,
) -> Result<(&'static Layout, Vec<K::Map>), Error> {
    let refused = |error| words::refused("getting buffers from", path, error);
    let count = abi::request_buffers(kernel, planes, BUFFERS).map_err(refused)?;
    if count == 0 {
        return Err(words::no_buffers(path));
    }
    let layout = find_layout(kernel, planes).map_err(refused)?;
    // A driver may give more than was asked for, never so many that memory is at stake: the kernel's limit was 32, and
    // is 1024 at most.
    let mut buffers = Vec::with_capacity(count as usize);
    for index in 0..count {
        let place = layout.query(kernel, planes, index).map_err(refused)?;
        buffers.push(kernel.map(place.offset, place.length).map_err(refused)?);
    }
    for index in 0..count {
        layout.queue(kernel, planes, index).map_err(refused)?;
    }
    detail!(path, count, layout = layout.size, "buffers mapped");
    Ok((layout, buffers))
}

/// The layout of `v4l2_buffer` that the kernel understands: ENOTTY is its word for an ioctl number that it has not.
fn find_layout<K: Kernel>(kernel: &K, planes: Planes) -> io::Result<&'static Layout> {
    let mut unknown = Errno::NOTTY.into();
    for layout in K::LAYOUTS {
        match layout.query(kernel, planes, 0) {
            Ok(_) => return Ok(layout),
            Err(error) if words::is(&error, Errno::NOTTY) => unknown = error,
            Err(error) => return Err(error),
        }
    }
    Err(unknown)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use v4l::capability::Flags;
    use v4l::v4l_sys::{
        V4L2_BUF_FLAG_ERROR as DAMAGED, V4L2_BUF_FLAG_TIMESTAMP_COPY as COPIED,
        V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC as MONOTONIC,
    };

    use super::super::abi::number;
    use super::super::fake::{Fake, Step, content};
    use super::*;
    use crate::codec::FrameRate;

    /// Seconds on CLOCK_MONOTONIC that lie after the start of any test, and half a second more.
    const AFTER: i32 = 1_000_000_000;
    const START: Duration = Duration::from_millis(1_000_000_000_500);

    fn start(fake: Fake) -> Result<Camera<Fake>, Error> {
        Camera::start(fake, "/dev/video0", &Options::default(), Clock)
    }

    fn refusal(fake: Fake, options: &Options) -> String {
        match Camera::start(fake, "/dev/video0", options, Clock) {
            Ok(camera) => panic!("started: {}", camera.describe()),
            Err(error) => crate::chain(&error).to_string(),
        }
    }

    /// A whole frame of 5 bytes.
    fn frame(sequence: u32) -> Step {
        Step::Filled {
            bytes_used: 5,
            flags: MONOTONIC,
            sequence,
            at: (AFTER, 500_000),
        }
    }

    fn void(flags: u32, bytes_used: u32, sequence: u32) -> Step {
        Step::Filled {
            bytes_used,
            flags: MONOTONIC | flags,
            sequence,
            at: (0, 0),
        }
    }

    /// Length, first byte (the buffer's mark) and discontinuity of the next packet, `None` for nothing.
    fn read(camera: &mut Camera<Fake>) -> Option<(usize, u8, bool)> {
        match camera.read(Wait::briefly()).unwrap() {
            Read::Packet(packet) => {
                assert!(packet.data.iter().all(|byte| *byte == packet.data[0]));
                Some((packet.data.len(), packet.data[0], packet.discontinuity))
            }
            Read::Nothing => None,
            other @ (Read::Dropped { .. } | Read::End) => panic!("no camera says {other:?}"),
        }
    }

    #[test]
    fn a_camera_tells_what_was_agreed() {
        let camera = start(Fake::default()).unwrap();
        assert_eq!(
            camera.describe(),
            "/dev/video0 (Fake Camera): H.264 1280x720 at 30/1"
        );
        let options = Options {
            codec: Some(Codec::H265),
            fps: Some(FrameRate::FPS_25),
            ..Options::default()
        };
        let camera = Camera::start(Fake::default(), "/dev/video0", &options, Clock).unwrap();
        assert_eq!(
            camera.describe(),
            "/dev/video0 (Fake Camera): H.265 1280x720 at 25/1"
        );
    }

    #[test]
    fn a_frame_rate_that_the_driver_refuses_is_no_reason_to_stop() {
        let options = Options {
            fps: Some(FrameRate::FPS_25),
            ..Options::default()
        };
        let fake = Fake::default().refusing(number::S_PARM, Errno::NOTTY);
        let camera = Camera::start(fake, "/dev/video0", &options, Clock).unwrap();
        assert!(camera.describe().ends_with(" at 30/1"));
        assert_eq!(camera.remarks(), ["frame rate is 30/1, not 25/1"]);
        let fake = Fake::default().refusing(number::G_PARM, Errno::NOTTY);
        assert!(start(fake).unwrap().describe().ends_with("H.264 1280x720"));
    }

    #[test]
    fn the_size_that_is_asked_for_is_taken_or_what_is_had_is_said() {
        let options = Options {
            size: Some(Dimensions {
                width: 640,
                height: 480,
            }),
            ..Options::default()
        };
        let camera = Camera::start(Fake::default(), "/dev/video0", &options, Clock).unwrap();
        assert!(camera.describe().ends_with(": H.264 640x480 at 30/1"));
        assert_eq!(camera.remarks(), [""; 0]);

        let mut fake = Fake::default();
        fake.picture.get_mut().fourcc = FourCC::new(b"H264");
        fake.obeys = false;
        let camera = Camera::start(fake, "/dev/video0", &options, Clock).unwrap();
        assert!(camera.describe().ends_with(": H.264 1280x720 at 30/1"));
        assert_eq!(camera.remarks(), ["size is 1280x720, not 640x480"]);
    }

    #[test]
    fn a_multi_planar_camera_is_one_with_one_plane() {
        for layout in 0..Fake::LAYOUTS.len() {
            let mut fake = Fake::default();
            fake.flags = Flags::VIDEO_CAPTURE_MPLANE | Flags::STREAMING;
            fake.layout = layout;
            fake.data_offset = 3;
            let mut camera = start(fake.with((0..20).map(frame))).unwrap();
            assert!(camera.describe().ends_with(": H.264 1280x720 at 30/1"));
            for index in 0..20 {
                assert_eq!(read(&mut camera), Some((5, content(index % 8), false)));
            }
            assert_eq!(camera.losses(), CameraLosses::default());
        }
        // A header that is longer than what is used holds no frame.
        let mut fake = Fake::default();
        fake.flags = Flags::VIDEO_CAPTURE_MPLANE | Flags::STREAMING;
        fake.data_offset = u32::MAX - 100;
        let mut camera = start(fake.with([frame(0)])).unwrap();
        assert_eq!(read(&mut camera), None);
        assert_eq!(camera.losses().damaged, 1);
    }

    #[test]
    fn a_key_frame_is_asked_for_where_the_driver_makes_one() {
        let id = control::id::FORCE_KEY_FRAME;
        let mut camera = start(Fake::encoder()).unwrap();
        camera.want_key_frame();
        camera.want_key_frame();
        assert_eq!(camera.kernel.control(id), 2);
        camera.kernel.refuse(number::S_CTRL, Errno::BUSY);
        camera.want_key_frame();
        assert!(!camera.makes_key_frames);
        start(Fake::default()).unwrap().want_key_frame();
    }

    /// Reads until a frame or an error comes, at most 100 times.
    fn read_on(camera: &mut Camera<Fake>) -> Result<bool, String> {
        for _ in 0..100 {
            match camera.read(Wait::briefly()) {
                Ok(Read::Packet(packet)) => return Ok(packet.discontinuity),
                Ok(_) => thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(crate::chain(&error).to_string()),
            }
        }
        panic!("neither a frame nor an error");
    }

    fn impatient(fake: Fake) -> Camera<Fake> {
        let mut camera = start(fake).unwrap();
        let now: Instant = Clock.now();
        camera.ladder = Ladder::with_patience(Duration::from_millis(4), now);
        camera
    }

    #[test]
    fn a_buffer_that_the_driver_lost_is_given_to_it_again() {
        let mut fake = Fake::default();
        fake.buffers = 2;
        let mut camera = impatient(fake.with([frame(0), Step::Misplaced, frame(1)]));
        assert_eq!(read_on(&mut camera), Ok(false));
        let _ = camera.read(Wait::briefly()).unwrap();
        while camera.kernel.queued() < 2 {
            let _ = camera.read(Wait::briefly()).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(camera.kernel.starts.get(), 1);
    }

    #[test]
    fn a_stalled_driver_is_started_anew_and_the_next_frame_says_so() {
        let steps = [frame(7), Step::Stalled, frame(0), frame(1)];
        let mut camera = impatient(Fake::default().with(steps));
        assert_eq!(read_on(&mut camera), Ok(false));
        assert_eq!(read_on(&mut camera), Ok(true));
        assert_eq!(camera.kernel.starts.get(), 2);
        assert_eq!(read_on(&mut camera), Ok(false));
        assert_eq!(camera.losses(), CameraLosses::default());
        assert_eq!(camera.kernel.queued(), 7);
    }

    #[test]
    fn time_that_the_reader_takes_is_no_silence() {
        let mut camera = impatient(Fake::default().with([frame(0)]));
        assert_eq!(read_on(&mut camera), Ok(false));
        thread::sleep(Duration::from_millis(50));
        for _ in 0..3 {
            assert_eq!(read(&mut camera), None);
        }
        assert_eq!(camera.kernel.starts.get(), 1);
    }

    #[test]
    fn a_driver_that_stays_silent_is_given_up() {
        let silent = Fake::default();
        silent.for_ever(Step::Again);
        let mut camera = impatient(silent);
        let error = read_on(&mut camera).unwrap_err();
        assert!(error.contains("did not help"), "{error}");
        assert_eq!(camera.kernel.starts.get(), 2);
    }

    #[test]
    fn a_storm_of_errors_is_a_restart_and_then_the_end() {
        let storm = Fake::default().with([frame(0)]);
        storm.for_ever(Step::Failed);
        let mut camera = start(storm).unwrap();
        assert_eq!(read_on(&mut camera), Ok(false));
        let error = read_on(&mut camera).unwrap_err();
        assert!(error.contains("POLLERR"), "{error}");
        assert_eq!(camera.kernel.starts.get(), 2);
        // One that a restart ends is survived, again and again.
        let once = [Step::Errno(Errno::IO), frame(0)].repeat(5);
        let mut camera = start(Fake::default().with(once)).unwrap();
        for _ in 0..5 {
            assert_eq!(read_on(&mut camera), Ok(true));
        }
        assert_eq!(camera.kernel.starts.get(), 6);
    }

    #[test]
    fn one_damaged_buffer_in_a_hundred_costs_one_frame_in_a_hundred() {
        let steps = (0..1000).map(|n| match n % 100 {
            50 => void(DAMAGED, 3, n),
            _ => frame(n),
        });
        let mut camera = start(Fake::default().with(steps)).unwrap();
        let (mut frames, mut gaps) = (0, 0);
        while let Some((_, _, gap)) = read(&mut camera) {
            frames += 1;
            gaps += u32::from(gap);
        }
        assert_eq!((frames, gaps), (990, 10));
        assert_eq!(camera.losses().damaged, 10);
    }

    #[test]
    fn a_card_name_that_the_kernel_cut_in_two_does_no_harm() {
        let mut fake = Fake::default();
        fake.card = "摄像头摄像头摄像头摄像头".as_bytes()[..32].to_vec();
        let camera = start(fake).unwrap();
        assert!(
            camera
                .describe()
                .starts_with("/dev/video0 (摄像头摄像头摄像头摄): "),
            "{}",
            camera.describe()
        );
    }

    #[test]
    fn frames_are_cut_to_the_bytes_used_and_their_buffers_go_back() {
        let mut fake = Fake::default();
        fake.buffers = 2;
        let mut camera = start(fake.with((0..5).map(frame))).unwrap();
        for mark in [0, 1, 0, 1, 0] {
            assert_eq!(read(&mut camera), Some((5, content(mark), false)));
        }
        assert_eq!(read(&mut camera), None);
        assert_eq!(camera.kernel.queued(), 2);
        assert_eq!(camera.losses(), CameraLosses::default());
    }

    #[test]
    fn one_buffer_is_enough() {
        let mut fake = Fake::default();
        fake.buffers = 1;
        let mut camera = start(fake.with([frame(0), frame(1)])).unwrap();
        assert_eq!(read(&mut camera), Some((5, content(0), false)));
        assert_eq!(read(&mut camera), Some((5, content(0), false)));
    }

    #[test]
    fn damaged_buffers_are_dropped_and_the_next_frame_says_so() {
        let steps = [frame(0), void(DAMAGED, 5, 1), frame(2), frame(3)];
        let mut camera = start(Fake::default().with(steps)).unwrap();
        assert_eq!(read(&mut camera).map(|frame| frame.2), Some(false));
        assert_eq!(read(&mut camera).map(|frame| frame.2), Some(true));
        assert_eq!(read(&mut camera).map(|frame| frame.2), Some(false));
        assert_eq!(camera.losses().damaged, 1);
        assert_eq!(camera.losses().dropped_by_driver, 0);
    }

    #[test]
    fn empty_buffers_are_dropped_and_nothing_is_lost_with_them() {
        let mut camera = start(Fake::default().with([void(0, 0, 0), frame(1)])).unwrap();
        assert_eq!(read(&mut camera).map(|frame| frame.2), Some(false));
        assert_eq!(camera.losses().void, 1);
    }

    #[test]
    fn half_of_all_buffers_damaged_for_long_leaves_the_other_half() {
        let steps = (0..200).map(|n| {
            if n % 2 == 0 {
                frame(n)
            } else {
                void(DAMAGED, 0, n)
            }
        });
        let mut camera = start(Fake::default().with(steps)).unwrap();
        let mut frames = 0;
        while read(&mut camera).is_some() {
            frames += 1;
        }
        assert_eq!((frames, camera.losses().damaged), (100, 100));
        assert_eq!(camera.kernel.queued(), BUFFERS as usize);
    }

    #[test]
    fn times_are_kept_by_their_clock() {
        let stamped = |flags, at| Step::Filled {
            bytes_used: 1,
            flags,
            sequence: 0,
            at,
        };
        let steps = [
            stamped(MONOTONIC, (AFTER, 500_000)),
            stamped(MONOTONIC, (0, 0)),
            stamped(0, (1, 0)),
            stamped(COPIED, (1, 0)),
            stamped(MONOTONIC, (-1, 0)),
            stamped(MONOTONIC, (2_000_000_000, 0)),
            stamped(MONOTONIC, (1, 0)),
        ];
        let mut camera = start(Fake::default().with(steps)).unwrap();
        let before = Clock.monotonic();
        let mut times = Vec::new();
        while let Read::Packet(packet) = camera.read(Wait::briefly()).unwrap() {
            times.push(packet.at);
        }
        let after = Clock.monotonic();
        assert_eq!(times.len(), 7);
        assert_eq!(times[0], START);
        // Ahead of the present and backward: the capture loop's timeline makes sense of them.
        assert_eq!(times[5], Duration::from_secs(2_000_000_000));
        assert_eq!(times[6], Duration::from_secs(1));
        assert!(
            times[1..5].iter().all(|at| (before..=after).contains(at)),
            "{times:?}"
        );
    }

    #[test]
    fn a_driver_with_nothing_to_give_neither_holds_us_nor_eats_the_processor() {
        let mut camera = start(Fake::default().with((0..1000).map(|_| Step::Again))).unwrap();
        let before = Clock.now();
        assert_eq!(read(&mut camera), None);
        let took = Clock.now() - before;
        assert!(took >= Wait::BRIEF && took < Wait::BRIEF * 5, "{took:?}");
        let calls = 1000 - camera.kernel.left();
        assert!(calls <= 21, "asked {calls} times in {took:?}");
    }

    #[test]
    fn a_storm_of_void_buffers_ends_at_the_deadline() {
        let fake = Fake::default();
        fake.for_ever(void(DAMAGED, 0, 0));
        let mut camera = start(fake).unwrap();
        let before = Clock.now();
        assert_eq!(read(&mut camera), None);
        assert!(Clock.now() - before < Wait::BRIEF * 5);
    }

    #[test]
    fn an_unplugged_camera_is_an_error() {
        let unplugged = [frame(0), Step::Errno(Errno::NODEV)];
        let mut camera = start(Fake::default().with(unplugged)).unwrap();
        assert!(read(&mut camera).is_some());
        let error = camera.read(Wait::briefly()).unwrap_err().to_string();
        assert_eq!(error, "lost the camera /dev/video0 (Fake Camera)");
        // uvcvideo says POLLERR, and then that there is no device.
        let mut camera = start(Fake::default().with([Step::Failed])).unwrap();
        camera.kernel.refuse(number::STREAMOFF, Errno::NODEV);
        assert!(camera.read(Wait::briefly()).is_err());
        let fake = Fake::default().with([frame(0)]);
        let mut camera = start(fake).unwrap();
        assert!(read(&mut camera).is_some());
        camera.kernel.refuse(number::QBUF, Errno::NODEV);
        camera.kernel.refuse(number::STREAMOFF, Errno::NODEV);
        assert!(camera.read(Wait::briefly()).is_err());
        // The kernel is given time to take it apart.
        let before = Clock.now();
        drop(camera);
        assert!(Clock.now() - before >= UNPLUGGING);
    }

    #[test]
    fn the_layout_that_the_kernel_understands_is_found() {
        for (index, layout) in Fake::LAYOUTS.iter().enumerate() {
            let mut fake = Fake::default();
            fake.layout = index;
            let mut camera = start(fake.with([frame(3), frame(5)])).unwrap();
            assert_eq!(camera.layout, layout);
            let Read::Packet(packet) = camera.read(Wait::briefly()).unwrap() else {
                panic!("no frame with {layout:?}");
            };
            assert_eq!(packet.at, START);
            assert_eq!(packet.data, [content(0); 5]);
            assert_eq!(read(&mut camera), Some((5, content(1), true)));
        }
        let mut fake = Fake::default();
        fake.layout = usize::MAX;
        assert!(refusal(fake, &Options::default()).starts_with("getting buffers from /dev/video0"));
    }

    #[test]
    fn what_cannot_be_streamed_is_refused_in_words() {
        let options = Options::default();
        let mut raw = Fake::default();
        raw.formats = vec![*b"YUYV", *b"MJPG"];
        let said = refusal(raw, &options);
        assert!(
            said.contains("neither H.264 nor H.265, it offers YUYV, MJPG; "),
            "{said}"
        );

        let mut metadata = Fake::default();
        metadata.flags = Flags::META_CAPTURE | Flags::STREAMING;
        assert!(refusal(metadata, &options).contains("node of Fake Camera for metadata"));

        let mut stubborn = Fake::default();
        stubborn.picture.get_mut().fourcc = FourCC::new(b"YUYV");
        stubborn.obeys = false;
        let said = refusal(stubborn, &options);
        assert!(said.contains("lists H.264 and stays with YUYV"), "{said}");

        let mut empty = Fake::default();
        empty.buffers = 0;
        assert!(refusal(empty, &options).contains("CMA"));

        let errnos = [
            (number::QUERYCAP, Errno::NOTTY, "not a video device"),
            (number::S_FMT, Errno::BUSY, "busy"),
            (number::REQBUFS, Errno::BUSY, "busy"),
            (number::REQBUFS, Errno::NOMEM, "CMA"),
            (number::STREAMON, Errno::BUSY, "busy"),
            (number::STREAMON, Errno::NOSPC, "USB"),
            (
                number::STREAMON,
                Errno::IO,
                "starting the stream of /dev/video0",
            ),
        ];
        for (number, errno, word) in errnos {
            let said = refusal(Fake::default().refusing(number, errno), &options);
            assert!(said.contains(word), "{said}");
        }
    }
}
