//! The core without network: H.264 of a camera's sizes through splitter, codec, ring and framing.
//!
//! ```text
//! cargo bench --bench core                       frames and bytes a second, part by part and together
//! cargo bench --bench core -- ring --frames 500  one part, so many frames: what tests/bench/instructions counts
//! ```

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Body as _;
use kvs_producer_app::codec::{Event as Found, Parser, Splitter, Unit};
use kvs_producer_app::frame::{Codec, MediaTime, Payload, Timecode, TrackInfo};
use kvs_producer_app::kvs::ack::AckParser;
use kvs_producer_app::kvs::session::Event;
use kvs_producer_app::kvs::upload::{Handle, UploadBody};
use kvs_producer_app::mkv::Fragmenter;
use kvs_producer_app::ring::shared::{Reader, Writer, share};
use kvs_producer_app::ring::{ConnectionId, NewFrame, Push, Ring, WhenFull};
use kvs_producer_app::shutdown::{self, Shutdown, Trigger};
use tokio::sync::mpsc;

/// Frames in a group of pictures: 2 s at 25/s.
const GROUP: usize = 50;

/// A key frame, and the others: 3.8 Mbit/s at 25/s.
const KEY_BYTES: usize = 95_000;
const OTHER_BYTES: usize = 17_449;

/// `-B` of the default set-up.
const BUDGET_BYTES: usize = 2 * 1024 * 1024;

/// What a source reads at once.
const READ_BYTES: usize = 16 * 1024;

/// How long each part is timed.
const TIMED_FOR: Duration = Duration::from_secs(1);

type Part = (&'static str, fn(&Clip) -> Box<dyn FnMut(usize) + '_>);

/// Each is fed with one frame at a time, given by its number.
const PARTS: [Part; 7] = [
    ("split", split),
    ("parse", parse),
    ("ring", ring),
    ("fragmenter", fragmenter),
    ("upload", upload),
    ("ack", ack),
    ("all", all),
];

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let clip = Clip::new();
    match (words.next(), words.next(), words.next()) {
        (None, ..) => {
            print!("{}", table(&clip));
            ExitCode::SUCCESS
        }
        (Some(name), Some(option), Some(frames)) if option == "--frames" => {
            let part = PARTS.iter().find(|part| part.0 == name);
            let (Some((_, part)), Ok(frames)) = (part, frames.parse()) else {
                return usage();
            };
            let mut run = part(&clip);
            (0..frames).for_each(&mut *run);
            ExitCode::SUCCESS
        }
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    let names = PARTS.map(|part| part.0).join("|");
    eprintln!("core [({names}) --frames N]");
    ExitCode::FAILURE
}

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures time that passes"
)]
fn table(clip: &Clip) -> String {
    let mut text = format!("{:12}{:>12}{:>10}\n", "part", "frames/s", "MB/s");
    for (name, part) in PARTS {
        let mut run = part(clip);
        // Until all tables have their size.
        (0..10 * GROUP).for_each(&mut *run);
        let start = Instant::now();
        let mut frames = 10 * GROUP;
        while start.elapsed() < TIMED_FOR {
            (frames..frames + GROUP).for_each(&mut *run);
            frames += GROUP;
        }
        let seconds = start.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        let (rate, frame_bytes) = (
            (frames - 10 * GROUP) as f64 / seconds,
            clip.bytes.len() as f64 / GROUP as f64,
        );
        let _ = writeln!(
            text,
            "{name:12}{rate:>12.0}{:>10.0}",
            rate * frame_bytes / 1e6
        );
    }
    text
}

/// One group of pictures in Annex B.
struct Clip {
    bytes: Vec<u8>,
    /// Where each access unit ends.
    ends: Vec<usize>,
    track: Arc<TrackInfo>,
}

impl Clip {
    /// Noise behind real parameter sets: compressed video has no pattern either. The same in every run.
    fn new() -> Self {
        const SETS: &[u8] = &[
            0, 0, 0, 1, 0x67, 0x64, 0x00, 0x28, 0xAC, 0xD9, 0x40, 0x78, 0x02, 0x27, 0xE5, 0xC0,
            0x44, 0x00, 0x00, 0x0F, 0xA4, 0x00, 0x03, 0xA9, 0x83, 0xC6, 0x0C, 0x65,
            0x80, // SPS
            0, 0, 0, 1, 0x68, 0xEB, 0xE3, 0xCB, 0x22, 0xC0, // PPS
        ];
        let mut random = fastrand::Rng::with_seed(2026);
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for index in 0..GROUP {
            let start = bytes.len();
            // first_mb_in_slice 0, then slice_type and pic_parameter_set_id 0.
            let len = if index == 0 {
                bytes.extend_from_slice(SETS);
                bytes.extend_from_slice(&[0, 0, 0, 1, 0x65, 0x88, 0x84]);
                KEY_BYTES
            } else {
                bytes.extend_from_slice(&[0, 0, 0, 1, 0x41, 0x9A, 0x02]);
                OTHER_BYTES
            };
            while bytes.len() < start + len {
                let byte = random.u8(..);
                // The encoder's emulation prevention.
                if byte <= 3 && bytes.ends_with(&[0, 0]) {
                    bytes.push(3);
                }
                bytes.push(byte);
            }
            bytes.push(0x80);
            ends.push(bytes.len());
        }
        let mut parser = Parser::new(Codec::H264);
        let Ok(Unit::Picture(key)) = parser.parse(&bytes[..ends[0]]) else {
            panic!("the clip begins with a picture")
        };
        let track = Arc::clone(key.track().expect("the first picture is a key frame"));
        Self { bytes, ends, track }
    }

    fn unit(&self, frame: usize) -> &[u8] {
        let index = frame % GROUP;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[index]]
    }

    fn new_frame(&self, frame: usize) -> NewFrame<'_> {
        let key = frame.is_multiple_of(GROUP);
        NewFrame {
            at: MediaTime(frame as u64 * 40),
            key,
            discontinuity: false,
            track: key.then_some(&self.track),
        }
    }
}

/// Bytes to access units.
fn split(clip: &Clip) -> Box<dyn FnMut(usize) + '_> {
    let mut splitter = Splitter::new(Some(Codec::H264), BUDGET_BYTES);
    Box::new(move |frame| {
        for bytes in clip.unit(frame).chunks(READ_BYTES) {
            splitter.push(bytes);
            while let Ok(Some(found)) = splitter.advance() {
                assert!(matches!(found, Found::Unit { picture: true }));
                black_box(splitter.unit());
            }
        }
    })
}

/// Access units to NAL units behind their lengths.
fn parse(clip: &Clip) -> Box<dyn FnMut(usize) + '_> {
    let mut parser = Parser::new(Codec::H264);
    Box::new(move |frame| {
        let Ok(Unit::Picture(picture)) = parser.parse(clip.unit(frame)) else {
            panic!("the clip has pictures only")
        };
        picture.for_each_part(&mut |part| {
            black_box(part);
        });
    })
}

/// Into the ring, out of it, confirmed a fragment later.
fn ring(clip: &Clip) -> Box<dyn FnMut(usize) + '_> {
    let mut ring = Ring::new(BUDGET_BYTES);
    let mut parts = VecDeque::new();
    let mut sent = VecDeque::new();
    Box::new(move |frame| {
        let stored = ring.push(clip.new_frame(frame), clip.unit(frame), WhenFull::Drop);
        assert!(matches!(stored, Push::Stored(_)), "{stored:?}");
        if ring.finish().is_some() && sent.len() > 1 {
            let oldest = sent.pop_front().expect("there are two");
            assert!(ring.confirm(oldest).is_some());
        }
        if let Some((_, timecode)) = ring.begin(ConnectionId(0)) {
            sent.push_back(timecode);
        }
        assert!(ring.take_frame(&mut parts).is_some());
        parts.clear();
    })
}

/// What Matroska puts before a frame.
fn fragmenter(clip: &Clip) -> Box<dyn FnMut(usize) + '_> {
    let mut fragmenter = Fragmenter::default();
    Box::new(move |frame| {
        let index = frame % GROUP;
        if index == 0 {
            fragmenter.begin_fragment(Timecode(frame as u64 * 40));
        }
        let offset_ms = u16::try_from(index * 40).expect("a group has 2 s");
        black_box(fragmenter.block(offset_ms, index == 0, clip.unit(frame).len()));
    })
}

/// What a connection takes its bytes from.
struct Line {
    writer: Writer,
    reader: Reader,
    body: std::pin::Pin<Box<UploadBody>>,
    events: mpsc::UnboundedReceiver<Event>,
    sent: VecDeque<Timecode>,
    shutdown: Shutdown,
    _trigger: Trigger,
}

impl Line {
    fn new() -> Self {
        let (writer, reader) = share(Ring::new(BUDGET_BYTES));
        let (sender, events) = mpsc::unbounded_channel();
        let body = UploadBody::new(ConnectionId(0), reader.clone(), Handle::default(), sender);
        let (trigger, shutdown) = shutdown::pair().expect("descriptors are left");
        Self {
            writer,
            reader,
            body: Box::pin(body),
            events,
            sent: VecDeque::new(),
            shutdown,
            _trigger: trigger,
        }
    }

    /// A frame in, its bytes out; a fragment is confirmed a fragment later.
    fn pass<P: Payload + ?Sized>(&mut self, frame: NewFrame<'_>, payload: &P) {
        let stored = self
            .writer
            .push(frame, payload, WhenFull::Drop, &self.shutdown);
        assert!(matches!(stored, Some(Push::Stored(_))), "{stored:?}");
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(part))) = self.body.as_mut().poll_frame(&mut context) {
            black_box(part.data_ref().map_or(0, Bytes::len));
        }
        while let Ok(event) = self.events.try_recv() {
            if let Event::Sent(_, timecode) = event {
                self.sent.push_back(timecode);
            }
        }
        if self.sent.len() > 1 {
            let oldest = self.sent.pop_front().expect("there are two");
            assert!(self.reader.with(|ring| ring.confirm(oldest)).is_some());
        }
    }
}

/// Ring and framing together, as the connection sees them.
fn upload(clip: &Clip) -> Box<dyn FnMut(usize) + '_> {
    let mut line = Line::new();
    Box::new(move |frame| line.pass(clip.new_frame(frame), clip.unit(frame)))
}

/// The acknowledgements of a fragment, spread over its frames.
fn ack(_: &Clip) -> Box<dyn FnMut(usize) + '_> {
    let mut parser = AckParser::default();
    let acks: String = ["BUFFERING", "RECEIVED", "PERSISTED"]
        .map(|kind| {
            format!(
                "{{\"EventType\":\"{kind}\",\"FragmentTimecode\":1735787045007,\
                 \"FragmentNumber\":\"91343852333181432392682062622220590765191907586\"}}\r\n"
            )
        })
        .concat();
    Box::new(move |frame| {
        if frame.is_multiple_of(GROUP) {
            parser.push(acks.as_bytes(), |ack| {
                black_box(ack).expect("these are well-formed");
            });
        }
    })
}

/// From a source's bytes to those of the request.
fn all(clip: &Clip) -> Box<dyn FnMut(usize) + '_> {
    let mut splitter = Splitter::new(Some(Codec::H264), BUDGET_BYTES);
    let mut parser = Parser::new(Codec::H264);
    let mut line = Line::new();
    let mut passed = 0;
    Box::new(move |frame| {
        for bytes in clip.unit(frame).chunks(READ_BYTES) {
            splitter.push(bytes);
            while let Ok(Some(_)) = splitter.advance() {
                let Ok(Unit::Picture(picture)) = parser.parse(splitter.unit()) else {
                    panic!("the clip has pictures only")
                };
                let new = NewFrame {
                    track: picture.track(),
                    ..clip.new_frame(passed)
                };
                line.pass(new, &picture);
                passed += 1;
            }
        }
    })
}
