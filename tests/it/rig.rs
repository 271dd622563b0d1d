//! A producer and an endpoint in one process, and a camera that runs faster than time.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use aws_credential_types::Credentials;
use kvs_producer_app::app::{self, Config, Device, Error, Summary};
use kvs_producer_app::codec::{Event, Parser, Splitter, Unit};
use kvs_producer_app::frame::{Codec, Payload};
use kvs_producer_app::kvs::aws;
use kvs_producer_app::kvs::credentials::{Provider, refresh};
use kvs_producer_app::kvs::session::Settings;
use kvs_producer_app::local::view::{History, State};
use kvs_producer_app::local::{Credential, Endpoint, Options};
use kvs_producer_app::log::Format;
use kvs_producer_app::operate::export::Export;
use kvs_producer_app::operate::socket::Place;
use kvs_producer_app::source::capture;
use kvs_producer_app::source::v4l2;
use kvs_producer_app::source::{self, Packet, Read, Source, Wait};

use crate::canary;

/// Name of the stream in these tests.
pub const STREAM: &str = "camera-1";

/// Between two frames of the camera, in its own time.
pub const SPACING: Duration = Duration::from_millis(40);

/// A run that takes longer hangs. The longest outage is 40 s.
const LIMIT: Duration = Duration::from_mins(3);

/// The built-in clip: five groups of 50 frames.
const CLIP: &[u8] = include_bytes!("../data/demo.h264");

/// An endpoint that keeps payloads.
pub async fn endpoint(options: Options) -> Endpoint {
    let options = Options {
        history: History::Payloads,
        ..options
    };
    Endpoint::start(options)
        .await
        .expect("a free port on loopback")
}

/// What leads a producer to `url`, with short waits.
pub fn config(url: &str) -> Config {
    let known = Credential::default();
    Config {
        device: Device::Demo,
        duration: None,
        start: None,
        fast: false,
        buffer_bytes: 4 * 1024 * 1024,
        codec: None,
        fps: None,
        camera: v4l2::Options::default(),
        exit_on_camera_loss: false,
        when_full: None,
        aws: aws::Options {
            stream: STREAM.into(),
            region: Some("us-west-2".into()),
            endpoint: Some(url.into()),
            credentials: Some(Credentials::new(
                known.access_key_id,
                known.secret_access_key,
                None,
                None,
                "test",
            )),
            provider: Provider::default(),
            refresh: refresh::Settings::default(),
            retention_hours: 24,
            kms_key: None,
            tags: Vec::new(),
        },
        ca_file: None,
        session: Settings {
            poll: Duration::from_millis(20),
            first_wait: Duration::from_millis(50),
            longest_wait: Duration::from_millis(400),
            progress_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(2),
            head_timeout: Duration::from_secs(1),
            confirm_timeout: Duration::from_secs(4),
            ..Settings::default()
        },
        silence: capture::SILENCE,
        grace: Duration::from_secs(20),
        control: Place::Nowhere,
        export: Export::default(),
        report: None,
        log_format: Format::Text,
        log_level: tracing::Level::TRACE,
        local: None,
    }
}

/// The access units of the clip.
pub fn clip() -> Vec<Vec<u8>> {
    let mut splitter = Splitter::new(Some(Codec::H264), CLIP.len());
    splitter.push(CLIP);
    splitter.finish();
    let mut units = Vec::new();
    while let Some(event) = splitter.advance().expect("the clip is H.264") {
        if matches!(event, Event::Unit { .. }) {
            units.push(splitter.unit().to_vec());
        }
    }
    units
}

/// What a unit is on the wire: its NAL units behind their lengths.
pub fn payload(unit: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match Parser::new(Codec::H264).parse(unit) {
        Ok(Unit::Picture(picture)) => {
            picture.for_each_part(&mut |part| bytes.extend_from_slice(part));
        }
        // A parser that has not seen the parameter sets refuses key frames only: the clip's carry theirs.
        other => panic!("a picture, not {other:?}"),
    }
    bytes
}

/// The clip over and over: `frames` units, [`SPACING`] apart in their own time, `every` apart in ours.
pub struct FastCamera {
    units: Vec<Vec<u8>>,
    next: usize,
    frames: usize,
    every: Duration,
}

impl FastCamera {
    pub fn new(frames: usize, every: Duration) -> Self {
        Self {
            units: clip(),
            next: 0,
            frames,
            every,
        }
    }
}

impl Source for FastCamera {
    fn describe(&self) -> String {
        "a fast camera".into()
    }

    /// Its frames are not of the moment when they come.
    fn is_live(&self) -> bool {
        false
    }

    fn read(&mut self, _: Wait<'_>) -> Result<Read<'_>, source::Error> {
        if self.next == self.frames {
            return Ok(Read::End);
        }
        std::thread::sleep(self.every);
        let index = self.next;
        self.next += 1;
        let at = SPACING * u32::try_from(index).expect("few frames");
        let data = &self.units[index % self.units.len()];
        Ok(Read::Packet(Packet {
            codec: Codec::H264,
            data,
            at,
            discontinuity: false,
        }))
    }
}

/// A camera that delivers what the test pushes; it ends with its [`Shutter`].
pub struct HandCamera {
    units: Receiver<(Duration, Vec<u8>)>,
    now: VecDeque<Vec<u8>>,
}

/// The test's end of a [`HandCamera`].
pub type Shutter = Sender<(Duration, Vec<u8>)>;

pub fn hand_camera() -> (Shutter, HandCamera) {
    let (shutter, units) = channel();
    (
        shutter,
        HandCamera {
            units,
            now: VecDeque::new(),
        },
    )
}

impl Source for HandCamera {
    fn describe(&self) -> String {
        "a camera in the test's hands".into()
    }

    fn read(&mut self, wait: Wait<'_>) -> Result<Read<'_>, source::Error> {
        match self.units.recv_timeout(wait.nap()) {
            Ok((at, unit)) => {
                self.now.clear();
                self.now.push_back(unit);
                let data = &self.now[0];
                Ok(Read::Packet(Packet {
                    codec: Codec::H264,
                    data,
                    at,
                    discontinuity: false,
                }))
            }
            Err(RecvTimeoutError::Timeout) => Ok(Read::Nothing),
            Err(RecvTimeoutError::Disconnected) => Ok(Read::End),
        }
    }
}

/// Streams from `source` until it ends.
pub async fn stream(config: Config, source: impl Source + 'static) -> Result<Summary, Error> {
    let mut source = Some(Box::new(source) as Box<dyn Source>);
    let open = move || {
        source.take().ok_or_else(|| source::Error::Unusable {
            place: "the test's camera".into(),
            reason: "it is opened once only".into(),
        })
    };
    canary::watch();
    let run = app::run_from(config, open);
    let run = tokio::time::timeout(LIMIT, run).await.expect("a run ends");
    if let Ok(summary) = &run {
        let report = &summary.report;
        canary::assert_none_in(&format!("{report} {}", report.json()), "the report");
    }
    canary::assert_quiet();
    run
}

/// The service has exactly these frames of the clip, once each, in order, with the camera's spacing.
pub fn assert_whole(state: &State, frames: usize) {
    let mut fragments: Vec<_> = state.persisted(STREAM).collect();
    fragments.sort_by_key(|fragment| fragment.timecode);
    let got: Vec<_> = fragments
        .iter()
        .flat_map(|fragment| &fragment.frames)
        .collect();
    let units = clip();
    assert_eq!(got.len(), frames, "frames persisted");
    for (index, frame) in got.iter().enumerate() {
        assert!(
            frame.payload.as_deref() == Some(payload(&units[index % units.len()]).as_slice()),
            "payload of frame {index}"
        );
    }
    let times: Vec<_> = got.iter().map(|frame| frame.at_ms).collect();
    let spacing = u64::try_from(SPACING.as_millis()).expect("small");
    for (index, pair) in times.windows(2).enumerate() {
        assert_eq!(pair[1] - pair[0], spacing, "after frame {index}");
    }
}
