//! Starts, owns and ends the parts: the capture thread, control, the timer, the signals.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[cfg(feature = "local")]
use aws_credential_types::Credentials;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{Level, info, warn};

use crate::clock::Clock;
use crate::codec::FrameRate;
use crate::frame::Codec;
use crate::kvs::aws::{self, Aws};
use crate::kvs::control::{Control, Order, Status};
use crate::kvs::failure::FailureKind;
use crate::kvs::session::{Outcome, Settings};
use crate::kvs::tls;
use crate::log;
use crate::report::Report;
use crate::ring::shared::{Reader, share};
use crate::ring::{DropReason, Ring, WhenFull};
use crate::shutdown::{self, Trigger};
use crate::source::annexb::{AnnexB, Place};
use crate::source::capture::{self, Policy};
use crate::source::v4l2::{self, Finder, Which};
use crate::source::{self, Source};
use crate::status::{Line, Look, Overflow, Turn};

/// Stack of the capture thread: it parses NAL units and makes system calls, nothing deep.
const CAPTURE_STACK_BYTES: usize = 128 * 1024;

/// A source that was told to end looks up at least every [`source::POLL`]; one that has not by then hangs.
const HUNG_AFTER: Duration = Duration::from_secs(2);

/// How often the status line is drawn.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// How often a log line says how it goes, where nobody watches.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// Everything that a run needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the media comes from.
    pub device: Device,
    /// How long to stream; `None`: until stopped.
    pub duration: Option<Duration>,
    /// Budget for media.
    pub buffer_bytes: usize,
    /// Codec of pipes and files, where they do not tell.
    pub codec: Option<Codec>,
    /// Frame rate of pipes and files.
    pub fps: Option<FrameRate>,
    /// What is wanted of a camera.
    pub camera: v4l2::Options,
    /// Whether the run ends when the camera is lost; else it is waited for.
    pub exit_on_camera_loss: bool,
    /// What happens when the ring is full; `None`: as it suits the source.
    pub when_full: Option<WhenFull>,
    /// Which stream, where.
    pub aws: aws::Options,
    /// A CA beside the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// The session's durations and permissions.
    pub session: Settings,
    /// How long a source may be silent before its fragment is closed.
    pub silence: Duration,
    /// How long the end may take until everything is persisted.
    pub grace: Duration,
    /// Where the report goes as JSON; `None`: one line in the log.
    pub report: Option<ReportTo>,
    /// How the log is written.
    pub log_format: log::Format,
    /// How much is logged.
    pub log_level: Level,
    /// The service inside this process.
    #[cfg(feature = "local")]
    pub local: Option<Local>,
}

/// Where the media comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// Standard input.
    Stdin,
    /// A V4L2 node, a FIFO or a file.
    Path(PathBuf),
    /// The first camera that can be used.
    AnyCamera,
    /// The first camera that can be used with this in its card's name.
    NamedCamera(String),
    /// The built-in clip.
    #[cfg(feature = "local")]
    Demo,
}

/// Where the JSON report goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportTo {
    /// Standard output.
    Stdout,
    /// A file, written at the end.
    File(PathBuf),
}

/// The service inside this process.
#[cfg(feature = "local")]
#[derive(Debug, Clone, Default)]
pub struct Local {
    /// Where it records; `None`: it does not.
    pub directory: Option<PathBuf>,
    /// How it misbehaves.
    pub scenario: Option<PathBuf>,
}

/// Why a run could not start, or had to end. Its message is the line that is shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CA file is of no use.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// Region or endpoint make no sense.
    #[error(transparent)]
    Aws(#[from] aws::Error),
    /// The source cannot be opened, or failed.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The operating system refused a thread or a signal handler.
    #[error("cannot set up {what}")]
    System {
        /// What.
        what: &'static str,
        /// Its word.
        source: std::io::Error,
    },
    /// The report has no place: told at the start, when there is still something to be done about it.
    #[error("cannot write a report to {}", .path.display())]
    ReportPlace {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The report cannot be written.
    #[error("cannot write the report to {}", .path.display())]
    Report {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The capture thread has panicked: a fault of this program.
    #[error("the capture thread ended without a word; this is a fault of this program")]
    Capture,
    /// The service inside this process could not start.
    #[cfg(feature = "local")]
    #[error(transparent)]
    Local(#[from] crate::local::command::Error),
}

/// The program's exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All that came from the first key frame on is persisted.
    Persisted = 0,
    /// A fault of this program or of its surroundings.
    Internal = 1,
    /// Wrong usage: an option, the region, the endpoint, the CA file.
    Usage = 2,
    /// No camera, no such file, or it failed.
    NoSource = 3,
    /// No credentials, or they do not permit it.
    NotPermitted = 4,
    /// It ended with media that is not persisted: the network or the service was away.
    Unsent = 5,
    /// Nothing that could be streamed came from the source.
    NoMedia = 6,
    /// The service's certificate is not accepted.
    Untrusted = 7,
    /// The service will not take it: no such stream, a limit of the account, its KMS key, a setting.
    Refused = 8,
    /// Everything was sent, but for frames that had to be dropped on the way; the report has them by reason.
    Dropped = 9,
}

/// How a run ended.
#[derive(Debug)]
pub struct Summary {
    /// What the program's exit code says.
    pub exit: Exit,
    /// What it came to.
    pub report: Report,
}

/// Streams until the media ends, the time is over or a signal comes, and sends what is left.
///
/// # Errors
/// When the run could not start.
pub async fn run(config: Config) -> Result<Summary, Error> {
    if let Some(ReportTo::File(path)) = &config.report {
        check_place(path)?;
    }
    let open = opener(&config, Clock);
    run_from(config, open).await
}

/// As [`run`], with a source of one's own in place of the config's device. `open` is called on the capture thread.
///
/// # Errors
/// When the run could not start.
pub async fn run_from(
    config: Config,
    open: impl FnMut() -> Result<Box<dyn Source>, source::Error> + Send + 'static,
) -> Result<Summary, Error> {
    let clock = Clock;
    let started = clock.now();
    let tls = tls::client_config(config.ca_file.as_deref())?;
    let mut signals = Signals::new()?;
    #[cfg_attr(
        not(feature = "local"),
        expect(unused_mut, reason = "only --local changes them")
    )]
    let mut aws_options = config.aws.clone();
    #[cfg(feature = "local")]
    let _endpoint = match &config.local {
        Some(local) => Some(start_local(local, &mut aws_options).await?),
        None => None,
    };
    let stream = aws_options.stream.clone();
    let aws = Aws::load(aws_options, &tls, clock).await?;

    let (writer, ring) = share(Ring::new(config.buffer_bytes));
    let (trigger, shutdown) = shutdown::pair();
    let (ended, capture) = oneshot::channel();
    let policy = Policy {
        when_full: config.when_full,
        silence: config.silence,
        reopen: is_camera(&config.device) && !config.exit_on_camera_loss,
    };
    std::thread::Builder::new()
        .name("capture".into())
        .stack_size(CAPTURE_STACK_BYTES)
        .spawn(move || {
            let result = capture::run(open, writer, policy, clock, &shutdown);
            // Nobody listens only when the program ends at once.
            let _ = ended.send(result);
        })
        .map_err(|source| Error::System {
            what: "the capture thread",
            source,
        })?;

    info!(
        stream,
        place = aws.place(),
        "streaming to Kinesis Video Streams"
    );
    let control = Control::new(
        config.session.clone(),
        aws,
        tls,
        ring.clone(),
        clock,
        config.codec,
    );
    let status = control.status();
    let (orders, received) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(control.run(received));

    let run = Run {
        clock,
        started,
        ring: ring.clone(),
        status: status.clone(),
        orders,
        grace: config.grace,
    };
    let (outcome, failed) = run
        .conduct(&mut signals, capture, trigger, config.duration, &mut tasks)
        .await?;

    log::end_status();
    let counts = ring.with(|ring| {
        ring.abandon();
        ring.counts()
    });
    let failure = match (&failed, &outcome) {
        (Some(error), _) => Some(crate::chain(error).to_string()),
        (None, Outcome::GaveUp(failure)) => Some(failure.message.clone()),
        (None, Outcome::OutOfTime(failure)) => {
            failure.as_ref().map(|failure| failure.message.clone())
        }
        (None, Outcome::Done) => None,
    };
    let connections = status.borrow().connections;
    let report = Report {
        stream,
        counts,
        connections,
        duration: clock.now() - started,
        failure,
    };
    let exit = exit(&report, failed.as_ref(), &outcome);
    publish(&report, config.report.as_ref())?;
    #[cfg(feature = "local")]
    if let Some(directory) = config
        .local
        .as_ref()
        .and_then(|local| local.directory.as_ref())
    {
        info!(
            "the recording is in {}",
            directory.join(&report.stream).display()
        );
    }
    Ok(Summary { exit, report })
}

/// Starts the service inside this process and leads `aws` to it.
#[cfg(feature = "local")]
async fn start_local(
    local: &Local,
    aws: &mut aws::Options,
) -> Result<crate::local::Endpoint, Error> {
    use crate::local::command::{self, Error};
    use crate::local::{Credential, Endpoint, Options, view::History};
    let options = Options {
        directory: local.directory.clone(),
        scenario: command::scenario(local.scenario.clone())?,
        history: History::Recent,
        ..Options::default()
    };
    let endpoint = Endpoint::start(options).await.map_err(Error::Start)?;
    let known = Credential::default();
    let credentials = Credentials::new(
        known.access_key_id,
        known.secret_access_key,
        None,
        None,
        "local",
    );
    aws.endpoint = Some(endpoint.url());
    aws.credentials = Some(credentials);
    // The endpoint is of every region.
    aws.region.get_or_insert_with(|| "us-west-2".into());
    Ok(endpoint)
}

/// What `run` holds while it goes on.
struct Run {
    clock: Clock,
    started: Instant,
    ring: Reader,
    status: watch::Receiver<Status>,
    orders: mpsc::UnboundedSender<Order>,
    grace: Duration,
}

impl Run {
    async fn conduct(
        &self,
        signals: &mut Signals,
        mut capture: oneshot::Receiver<Result<capture::End, source::Error>>,
        trigger: Trigger,
        duration: Option<Duration>,
        tasks: &mut JoinSet<Outcome>,
    ) -> Result<(Outcome, Option<source::Error>), Error> {
        let mut trigger = Some(trigger);
        let mut signalled = false;
        let mut capturing = true;
        // Set when the source is told to end: a driver or a dead network file may keep the thread for ever.
        let mut hung_at = None;
        let mut failed = None;
        let end = tokio::time::sleep(duration.unwrap_or(Duration::MAX));
        tokio::pin!(end);
        let watched = log::is_watched() && tracing::enabled!(Level::INFO);
        let mut ticks = tokio::time::interval(STATUS_EVERY);
        let mut before = self.look();
        let mut logged = before;
        let mut overflow = Overflow::default();
        loop {
            tokio::select! {
                biased;
                () = signals.next() => {
                    if signalled {
                        warn!("ending at once");
                        let _ = self.orders.send(Order::Abort);
                    } else {
                        signalled = true;
                        trigger = None;
                        hung_at.get_or_insert(self.clock.now() + HUNG_AFTER);
                        info!("stopping: sending what is left; once more ends at once");
                    }
                }
                () = &mut end, if trigger.is_some() && duration.is_some() => {
                    info!("the time is over: sending what is left");
                    trigger = None;
                    hung_at.get_or_insert(self.clock.now() + HUNG_AFTER);
                }
                result = &mut capture, if capturing => {
                    capturing = false;
                    match result {
                        Ok(Ok(capture::End::Media)) => info!("the media is at its end: sending what is left"),
                        Ok(Ok(capture::End::Shutdown)) => {}
                        Ok(Err(error)) => failed = Some(error),
                        Err(_) => return Err(Error::Capture),
                    }
                    let _ = self.orders.send(Order::Drain(self.clock.now() + self.grace));
                }
                Some(outcome) = tasks.join_next() => {
                    // A panic of control is the one that ends the program: nobody is left to decide.
                    let outcome = outcome.map_err(|error| Error::System {
                        what: "control",
                        source: std::io::Error::other(error),
                    })?;
                    return Ok((outcome, failed));
                }
                _ = ticks.tick() => {
                    let now = self.look();
                    if capturing && hung_at.is_some_and(|at| now.at >= at) {
                        hung_at = None;
                        warn!("the source does not answer: going on without it");
                        self.ring.with(Ring::close);
                        let _ = self.orders.send(Order::Drain(now.at + self.grace));
                    }
                    tell(overflow.look(&now));
                    if watched {
                        log::show_status(&Line::between(self.started, &before, &now).to_string());
                    } else if now.at - logged.at >= LOG_EVERY {
                        info!("{}", Line::between(self.started, &logged, &now));
                        logged = now;
                    }
                    before = now;
                }
            }
        }
    }

    fn look(&self) -> Look {
        let (counts, fill) = self.ring.with(|ring| (ring.counts(), ring.fill()));
        let status = self.status.borrow();
        Look {
            at: self.clock.now(),
            media: self.clock.media(),
            counts,
            fill,
            connections: status.connections,
            streaming: status.streaming,
            last_persisted: status.last_persisted.map(|(timecode, _)| timecode),
        }
    }
}

/// Runs something until SIGINT or SIGTERM asks it to shut down.
///
/// # Errors
/// When the signal handlers cannot be set up.
#[cfg(feature = "local")]
pub async fn until_signal<T, F: Future<Output = T>>(
    run: impl FnOnce(shutdown::Shutdown) -> F,
) -> Result<T, Error> {
    let mut signals = Signals::new()?;
    let (trigger, shutdown) = shutdown::pair();
    let mut trigger = Some(trigger);
    let run = run(shutdown);
    tokio::pin!(run);
    loop {
        tokio::select! {
            result = &mut run => return Ok(result),
            () = signals.next() => drop(trigger.take()),
        }
    }
}

fn tell(turn: Option<Turn>) {
    match turn {
        Some(Turn::Began) => warn!(
            "the buffer is full and the oldest fragments are given up: the network does not keep up with the camera"
        ),
        Some(Turn::Ended { frames, lasted }) => {
            info!(
                frames,
                lasted_s = lasted.as_secs(),
                "the buffer has room again; so many frames were given up"
            );
        }
        None => {}
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let listen = |kind| {
            signal(kind).map_err(|source| Error::System {
                what: "the signal handlers",
                source,
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn is_camera(device: &Device) -> bool {
    use std::os::unix::fs::FileTypeExt;
    match device {
        Device::AnyCamera | Device::NamedCamera(_) => true,
        Device::Path(path) => path
            .metadata()
            .is_ok_and(|data| data.file_type().is_char_device()),
        Device::Stdin => false,
        #[cfg(feature = "local")]
        Device::Demo => false,
    }
}

/// What opens the source, again and again.
fn opener(
    config: &Config,
    clock: Clock,
) -> impl FnMut() -> Result<Box<dyn Source>, source::Error> + Send + 'static {
    enum From {
        Camera(Box<Finder>),
        Bytes(Place),
        #[cfg(feature = "local")]
        Demo,
    }
    let camera = |which| From::Camera(Box::new(Finder::new(which, config.camera.clone(), clock)));
    let mut from = match &config.device {
        Device::Stdin => From::Bytes(Place::Stdin),
        #[cfg(feature = "local")]
        Device::Demo => From::Demo,
        Device::Path(path) if is_pipe_or_file(path) => From::Bytes(Place::Path(path.clone())),
        Device::Path(path) => camera(Which::At(path.clone())),
        Device::AnyCamera => camera(Which::First),
        Device::NamedCamera(name) => camera(Which::Named(name.clone())),
    };
    let pipe = source::annexb::Options {
        codec: config.codec,
        fps: config.fps,
        max_unit_bytes: config.buffer_bytes,
    };
    move || {
        Ok(match &mut from {
            From::Camera(finder) => Box::new(finder.open()?),
            From::Bytes(place) => Box::new(AnnexB::open(place.clone(), pipe, clock)?),
            #[cfg(feature = "local")]
            From::Demo => Box::new(source::demo::Demo::new(clock)),
        })
    }
}

fn is_pipe_or_file(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    match path.metadata() {
        Ok(data) => data.is_file() || data.is_dir() || data.file_type().is_fifo(),
        // Whoever gave it meant a file.
        Err(error) => error.kind() == io::ErrorKind::NotFound && !path.starts_with("/dev"),
    }
}

/// What the exit code says.
fn exit(report: &Report, failed: Option<&source::Error>, outcome: &Outcome) -> Exit {
    let counts = &report.counts;
    let lost = |reasons: &[DropReason]| {
        reasons
            .iter()
            .any(|&reason| counts.dropped_for(reason).frames > 0)
    };
    let failure = match outcome {
        Outcome::GaveUp(failure) => Some(failure),
        Outcome::OutOfTime(failure) => failure.as_ref(),
        Outcome::Done => None,
    };
    match (failed, failure.map(|failure| failure.kind)) {
        (Some(_), _) => Exit::NoSource,
        (
            None,
            Some(
                FailureKind::NoCredentials
                | FailureKind::BadCredentials
                | FailureKind::NotPermitted,
            ),
        ) => Exit::NotPermitted,
        (None, Some(FailureKind::Untrusted)) => Exit::Untrusted,
        (None, Some(FailureKind::StreamLimit | FailureKind::Key | FailureKind::Invalid)) => {
            Exit::Refused
        }
        (None, Some(_)) => Exit::Unsent,
        (None, None) if *outcome != Outcome::Done || lost(&[DropReason::NotSentInTime]) => {
            Exit::Unsent
        }
        (None, None) if counts.sent.frames == 0 => Exit::NoMedia,
        (None, None)
            if lost(&[
                DropReason::RingFull,
                DropReason::Refused,
                DropReason::FrameTooLarge,
                DropReason::FragmentLimit,
                DropReason::NoParameterSets,
                DropReason::CameraGap,
            ]) =>
        {
            Exit::Dropped
        }
        (None, None) => Exit::Persisted,
    }
}

/// Fails where no report can be written. What is there stays until the end.
fn check_place(report: &Path) -> Result<(), Error> {
    let opened = OpenOptions::new().create(true).append(true).open(report);
    opened.map(drop).map_err(|source| Error::ReportPlace {
        path: report.to_owned(),
        source,
    })
}

fn publish(report: &Report, to: Option<&ReportTo>) -> Result<(), Error> {
    let write = |path: PathBuf, result: std::io::Result<()>| {
        result.map_err(|source| Error::Report { path, source })
    };
    match to {
        None => info!("{report}"),
        Some(ReportTo::Stdout) => {
            write(
                "standard output".into(),
                writeln!(std::io::stdout(), "{}", report.json()),
            )?;
        }
        Some(ReportTo::File(path)) => {
            write(
                path.clone(),
                std::fs::write(path, format!("{}\n", report.json())),
            )?;
        }
    }
    Ok(())
}
