//! A camera that streams: what was agreed with the driver, and its buffers going round.

use std::fmt;
use std::io;
use std::thread;
use std::time::Duration;

use tracing::{debug, warn};
use v4l::FourCC;

use super::abi::{self, Filled, Interval, Kernel, Layout, Picture, Readiness};
use super::{Losses, Options, words};
use crate::clock::Clock;
use crate::frame::Codec;
use crate::source::{Error, POLL, Packet, Read};

/// Buffers asked for. Eight are a quarter of a second at 30 frames a second, for a busy single processor; where memory
/// for cameras is scarce, drivers give fewer.
const BUFFERS: u32 = 8;

/// How long to leave a driver alone that said "ready" and had nothing, so that it does not eat the processor.
const BREATH: Duration = Duration::from_millis(10);

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
            write!(f, " at {}/{}", interval.denominator, interval.numerator)?;
        }
        Ok(())
    }
}

/// A capturing device behind some [`Kernel`].
pub(super) struct Camera<K: Kernel> {
    place: String,
    format: Format,
    layout: &'static Layout,
    buffers: Vec<K::Map>,
    /// The buffer that the last packet pointed into.
    lent: Option<u32>,
    ledger: Ledger,
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
        let place = format!("{path} ({})", capabilities.card);

        let picture = choose(&kernel, path, options)?;
        let interval = settle_interval(&kernel, &place, options);
        let format = Format {
            interval,
            ..picture
        };
        let (layout, buffers) = set_up_buffers(&kernel, path)?;
        abi::stream_on(&kernel)
            .map_err(|error| words::refused("starting the stream of", path, error))?;
        Ok(Self {
            place,
            format,
            layout,
            buffers,
            lent: None,
            ledger: Ledger {
                longest_frame: format.picture.longest_frame as usize,
                ..Ledger::default()
            },
            clock,
            kernel,
        })
    }

    pub(super) fn describe(&self) -> String {
        format!("{}: {}", self.place, self.format)
    }

    pub(super) fn losses(&self) -> Losses {
        self.ledger.losses
    }

    /// See [`crate::source::Source::read`].
    pub(super) fn read(&mut self) -> Result<Read<'_>, Error> {
        if let Some(index) = self.lent.take() {
            self.give_back(index)?;
        }
        let Some((filled, length)) = self.next_frame()? else {
            return Ok(Read::Nothing);
        };
        self.lent = Some(filled.index);
        Ok(Read::Packet(Packet {
            codec: self.format.codec,
            data: &self.buffers[filled.index as usize][..length],
            at: filled.captured.unwrap_or_else(|| self.clock.monotonic()),
            discontinuity: self.ledger.take_discontinuity(),
        }))
    }

    /// Takes buffers until one holds a frame; its length comes with it. `None` after [`POLL`].
    fn next_frame(&mut self) -> Result<Option<(Filled, usize)>, Error> {
        let deadline = self.clock.now() + POLL;
        loop {
            let left = deadline.saturating_duration_since(self.clock.now());
            match self.kernel.wait(left).map_err(|error| self.lost(error))? {
                Readiness::Nothing => return Ok(None),
                // Unplugged, or the driver gave up. What it may still hand out is no picture.
                Readiness::Failed => {
                    return Err(self.lost(rustix::io::Errno::NODEV.into()));
                }
                Readiness::Buffer => {}
            }
            match self.layout.dequeue(&self.kernel) {
                Ok(filled) => {
                    let mapped = self.mapped(&filled)?;
                    if let Some(length) = self.ledger.judge(&filled, mapped) {
                        return Ok(Some((filled, length)));
                    }
                    self.give_back(filled.index)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    thread::sleep(BREATH.min(left));
                }
                Err(error) => return Err(self.lost(error)),
            }
            if self.clock.now() >= deadline {
                return Ok(None);
            }
        }
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
            .queue(&self.kernel, index)
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
        // A camera that went away has stopped by itself, and closing the node stops any other.
        let _ = abi::stream_off(&self.kernel);
    }
}

/// Finds the encoded format and sets it; the size stays as the driver has it.
fn choose(kernel: &impl Kernel, path: &str, options: &Options) -> Result<Format, Error> {
    let offered = abi::formats(kernel)
        .map_err(|error| words::refused("listing the formats of", path, error))?;
    let (fourcc, codec) = ENCODED
        .iter()
        .map(|&(fourcc, codec)| (FourCC::new(&fourcc), codec))
        .find(|(fourcc, codec)| {
            options.codec.is_none_or(|wanted| wanted == *codec) && offered.contains(fourcc)
        })
        .ok_or_else(|| words::no_encoder(path, &offered, options.codec))?;
    let now = abi::picture(kernel)
        .map_err(|error| words::refused("reading the format of", path, error))?;
    let picture = abi::set_picture(kernel, Picture { fourcc, ..now })
        .map_err(|error| words::refused("setting the format of", path, error))?;
    if picture.fourcc != fourcc {
        return Err(words::format_refused(path, codec, picture.fourcc));
    }
    Ok(Format {
        codec,
        picture,
        interval: None,
    })
}

/// Sets the frame rate when one is asked for. A driver that keeps its own is no reason to give up: frames carry their
/// times.
fn settle_interval(kernel: &impl Kernel, place: &str, options: &Options) -> Option<Interval> {
    if let Some(fps) = options.fps {
        let wanted = Interval {
            numerator: 1,
            denominator: fps.get(),
        };
        match abi::set_interval(kernel, wanted) {
            Ok(Some(got))
                if u64::from(got.denominator)
                    == u64::from(got.numerator) * u64::from(fps.get()) =>
            {
                return Some(got);
            }
            Ok(Some(got)) => {
                let got_fps = format!("{}/{}", got.denominator, got.numerator);
                warn!(place, wanted = %fps, got = got_fps, "the camera has another frame rate");
                return Some(got);
            }
            Ok(None) => warn!(place, wanted = %fps, "the camera's frame rate cannot be set"),
            Err(error) => {
                warn!(place, wanted = %fps, %error, "the camera refused the frame rate");
            }
        }
    }
    abi::interval(kernel).ok().flatten()
}

/// Has the driver make buffers, maps them all and queues them all.
fn set_up_buffers<K: Kernel>(
    kernel: &K,
    path: &str,
) -> Result<(&'static Layout, Vec<K::Map>), Error> {
    let refused = |error| words::refused("getting buffers from", path, error);
    let count = abi::request_buffers(kernel, BUFFERS).map_err(refused)?;
    if count == 0 {
        return Err(words::no_buffers(path));
    }
    let layout = find_layout(kernel).map_err(refused)?;
    // A driver may give more than was asked for, never so many that memory is at stake: the kernel's limit was 32, and
    // is 1024 at most.
    let mut buffers = Vec::with_capacity(count as usize);
    for index in 0..count {
        let (offset, length) = layout.query(kernel, index).map_err(refused)?;
        buffers.push(kernel.map(offset, length).map_err(refused)?);
    }
    for index in 0..count {
        layout.queue(kernel, index).map_err(refused)?;
    }
    debug!(path, count, layout = layout.size, "buffers mapped");
    Ok((layout, buffers))
}

/// The layout of `v4l2_buffer` that the kernel understands: ENOTTY is its word for an ioctl number that it has not.
fn find_layout<K: Kernel>(kernel: &K) -> io::Result<&'static Layout> {
    let mut unknown = rustix::io::Errno::NOTTY.into();
    for layout in K::LAYOUTS {
        match layout.query(kernel, 0) {
            Ok(_) => return Ok(layout),
            Err(error) if words::is(&error, rustix::io::Errno::NOTTY) => unknown = error,
            Err(error) => return Err(error),
        }
    }
    Err(unknown)
}

/// Tells frames from what is none, and keeps count of what was lost.
#[derive(Debug, Default)]
struct Ledger {
    /// See [`Picture::longest_frame`]; 0 from drivers that leave the field empty.
    longest_frame: usize,
    sequence: Option<u32>,
    discontinuity: bool,
    losses: Losses,
    /// How often something was lost.
    occasions: u64,
}

impl Ledger {
    /// The length of the frame in a buffer of `mapped` bytes, or `None` when the buffer holds no frame.
    fn judge(&mut self, filled: &Filled, mapped: usize) -> Option<usize> {
        let length = filled.bytes_used as usize;
        // More bytes than the buffer has: whatever the driver meant, the frame is not whole.
        let damaged = filled.error || length > mapped;
        // Encoders hand out empty buffers at a stream's start and end, and for frames that they skipped. A first buffer
        // that is full to the brim is what v4l2loopback still has from an earlier feeder.
        let brim = match self.longest_frame {
            0 => mapped,
            longest => longest.min(mapped),
        };
        let left_over = self.sequence.is_none() && length >= brim;
        let void = length == 0 || left_over;
        self.follow(filled.sequence, damaged || void);
        if damaged {
            self.losses.damaged += 1;
            self.lose();
            None
        } else if void {
            self.losses.void += 1;
            None
        } else {
            Some(length)
        }
    }

    /// Counts the frames between the last buffer and this one.
    fn follow(&mut self, sequence: u32, void: bool) {
        let step = self
            .sequence
            .map_or(1, |last| sequence.wrapping_sub(last).cast_signed());
        // The number in a void buffer may be void too: an unplugged camera's is 0.
        if step > 0 || !void {
            self.sequence = Some(sequence);
        }
        // A number that stands still is a driver that does not count; one that falls, a driver that began anew.
        if step > 1 {
            self.losses.dropped_by_driver += u64::from(step.unsigned_abs()) - 1;
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.discontinuity = true;
        let Losses {
            dropped_by_driver,
            damaged,
            void,
        } = self.losses;
        self.occasions += 1;
        // At the first, the second, the fourth ..: a camera that damages every other frame must not flood the log.
        if self.occasions.is_power_of_two() {
            warn!(dropped_by_driver, damaged, void, "the camera loses frames");
        }
    }

    fn take_discontinuity(&mut self) -> bool {
        std::mem::take(&mut self.discontinuity)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use rustix::io::Errno;
    use v4l::capability::Flags;
    use v4l::v4l_sys::{
        V4L2_BUF_FLAG_ERROR as DAMAGED, V4L2_BUF_FLAG_TIMESTAMP_COPY as COPIED,
        V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC as MONOTONIC,
    };

    use super::super::abi::number;
    use super::super::fake::{BUFFER_LENGTH, Fake, Step, content};
    use super::*;

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
            at: (1, 500_000),
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
        match camera.read().unwrap() {
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
            fps: NonZeroU32::new(25),
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
            fps: NonZeroU32::new(25),
            ..Options::default()
        };
        let fake = Fake::default().refusing(number::S_PARM, Errno::NOTTY);
        let camera = Camera::start(fake, "/dev/video0", &options, Clock).unwrap();
        assert!(camera.describe().ends_with(" at 30/1"));
        let fake = Fake::default().refusing(number::G_PARM, Errno::NOTTY);
        assert!(start(fake).unwrap().describe().ends_with("H.264 1280x720"));
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
        assert_eq!(camera.losses(), Losses::default());
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
    fn a_buffer_longer_than_itself_is_damaged() {
        let too_long = u32::try_from(BUFFER_LENGTH + 1).unwrap();
        let mut camera = start(Fake::default().with([void(0, too_long, 0), frame(1)])).unwrap();
        assert_eq!(read(&mut camera).map(|frame| frame.2), Some(true));
        assert_eq!(camera.losses().damaged, 1);
    }

    #[test]
    fn empty_buffers_are_dropped_and_nothing_is_lost_with_them() {
        let mut camera = start(Fake::default().with([void(0, 0, 0), frame(1)])).unwrap();
        assert_eq!(read(&mut camera).map(|frame| frame.2), Some(false));
        assert_eq!(camera.losses().void, 1);
    }

    #[test]
    fn a_first_buffer_that_is_full_is_left_over_and_a_later_one_is_not() {
        let full = void(0, u32::try_from(BUFFER_LENGTH - 1).unwrap(), 0);
        let mut camera = start(Fake::default().with([full, frame(1), full])).unwrap();
        assert_eq!(read(&mut camera), Some((5, content(1), false)));
        assert_eq!(
            read(&mut camera),
            Some((BUFFER_LENGTH - 1, content(2), false))
        );
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
    fn a_gap_in_the_driver_s_count_is_a_loss() {
        let mut camera =
            start(Fake::default().with([frame(7), frame(8), frame(12), frame(13)])).unwrap();
        let gaps: Vec<_> = (0..4).map(|_| read(&mut camera).unwrap().2).collect();
        assert_eq!(gaps, [false, false, true, false]);
        assert_eq!(camera.losses().dropped_by_driver, 3);
    }

    #[test]
    fn a_count_that_stands_still_starts_anew_or_wraps_is_none() {
        let steps = [0, 0, 0, u32::MAX, 0, 1, 2, 0, 1].map(frame);
        let mut camera = start(Fake::default().with(steps)).unwrap();
        for _ in 0..9 {
            assert_eq!(read(&mut camera).map(|frame| frame.2), Some(false));
        }
        // The void buffers of a camera that is being unplugged are numbered 0.
        let steps = [frame(500), void(DAMAGED, 0, 0), frame(501)];
        let mut camera = start(Fake::default().with(steps)).unwrap();
        while read(&mut camera).is_some() {}
        assert_eq!(camera.losses().dropped_by_driver, 0);
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
            stamped(MONOTONIC, (1, 500_000)),
            stamped(MONOTONIC, (0, 0)),
            stamped(0, (1, 0)),
            stamped(COPIED, (1, 0)),
            stamped(MONOTONIC, (-1, 0)),
        ];
        let mut camera = start(Fake::default().with(steps)).unwrap();
        let before = Clock.monotonic();
        let mut times = Vec::new();
        while let Read::Packet(packet) = camera.read().unwrap() {
            times.push(packet.at);
        }
        let after = Clock.monotonic();
        assert_eq!(times.len(), 5);
        assert_eq!(times[0], Duration::from_millis(1500));
        assert!(
            times[1..].iter().all(|at| (before..=after).contains(at)),
            "{times:?}"
        );
    }

    #[test]
    fn a_driver_with_nothing_to_give_neither_holds_us_nor_eats_the_processor() {
        let mut camera = start(Fake::default().with((0..1000).map(|_| Step::Again))).unwrap();
        let before = Clock.now();
        assert_eq!(read(&mut camera), None);
        let took = Clock.now() - before;
        assert!(took >= POLL && took < POLL * 5, "{took:?}");
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
        assert!(Clock.now() - before < POLL * 5);
    }

    #[test]
    fn an_unplugged_camera_is_an_error() {
        for last in [
            Step::Failed,
            Step::Errno(Errno::NODEV),
            Step::Errno(Errno::IO),
        ] {
            let mut camera = start(Fake::default().with([frame(0), last])).unwrap();
            assert!(read(&mut camera).is_some());
            let error = camera.read().unwrap_err().to_string();
            assert_eq!(error, "lost the camera /dev/video0 (Fake Camera)");
        }
        let fake = Fake::default().with([frame(0)]);
        let mut camera = start(fake).unwrap();
        assert!(read(&mut camera).is_some());
        camera.kernel.refuse(number::QBUF, Errno::NODEV);
        camera.kernel.refuse(number::STREAMOFF, Errno::NODEV);
        assert!(camera.read().is_err());
    }

    #[test]
    fn the_layout_that_the_kernel_understands_is_found() {
        for (index, layout) in Fake::LAYOUTS.iter().enumerate() {
            let mut fake = Fake::default();
            fake.layout = index;
            let mut camera = start(fake.with([frame(3), frame(5)])).unwrap();
            assert_eq!(camera.layout, layout);
            let Read::Packet(packet) = camera.read().unwrap() else {
                panic!("no frame with {layout:?}");
            };
            assert_eq!(packet.at, Duration::from_millis(1500));
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
