//! What a run is told, how it begins, and what its exit code says. [`crate::course`] is the run itself.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

#[cfg(feature = "local")]
use aws_credential_types::Credentials;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{Level, info};

use crate::clock::Clock;
use crate::codec::FrameRate;
use crate::codes::Code;
use crate::course::{Beside, Course};
use crate::frame::Codec;
use crate::kvs::aws;
use crate::kvs::failure::FailureKind;
use crate::kvs::session::{Outcome, Settings};
use crate::kvs::tls;
use crate::log;
use crate::operate::export::Export;
use crate::operate::socket;
use crate::report::Report;
use crate::ring::{DropReason, WhenFull};
#[cfg(feature = "local")]
use crate::shutdown;
use crate::source::annexb::{AnnexB, Place};
use crate::source::v4l2::{self, Finder, Leftover, Which};
use crate::source::{self, Source};
use crate::survive::{self, Conclude};

/// Everything that a run needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the media comes from.
    pub device: Device,
    /// How long to stream; `None`: until stopped.
    pub duration: Option<Duration>,
    /// When the first frame was captured, since the Unix epoch, for media that is not of the moment; `None`: when it comes.
    pub start: Option<Duration>,
    /// Whether pipes and files are read as fast as the service takes them.
    pub fast: bool,
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
    /// Where commands are taken.
    pub control: socket::Place,
    /// Where metrics go besides.
    pub export: Export,
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
    /// The channel is another producer's, or its control socket has no place.
    #[error(transparent)]
    Control(#[from] socket::Error),
    /// The service inside this process could not start.
    #[cfg(feature = "local")]
    #[error(transparent)]
    Local(#[from] crate::local::command::Error),
}

impl Error {
    /// Which text explains it.
    pub fn code(&self) -> Code {
        match self {
            Self::Tls(_) | Self::Aws(_) => Code::USAGE,
            Self::Source(_) => Code::SOURCE,
            Self::Control(socket::Error::Taken { .. }) => Code::TAKEN,
            #[cfg(feature = "local")]
            Self::Local(_) => Code::USAGE,
            Self::System { .. }
            | Self::Control(_)
            | Self::ReportPlace { .. }
            | Self::Report { .. } => Code::SYSTEM,
        }
    }

    /// What the program's exit code says of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Tls(_) | Self::Aws(_) | Self::ReportPlace { .. } => Exit::Usage,
            Self::Source(_) => Exit::NoSource,
            Self::Control(socket::Error::Taken { .. }) => Exit::Taken,
            Self::Control(_) => Exit::Usage,
            #[cfg(feature = "local")]
            Self::Local(_) => Exit::Usage,
            Self::System { .. } | Self::Report { .. } => Exit::Internal,
        }
    }
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
    /// Of commands: no producer runs for the channel, or it does not answer.
    NoProducer = 10,
    /// Another producer on this machine streams to the channel.
    Taken = 11,
    /// Of `status` and `doctor`: the producer is not healthy, a check failed.
    Unhealthy = 12,
}

impl Exit {
    /// What the exit code says of a failure.
    pub fn of_failure(kind: FailureKind) -> Self {
        match kind {
            FailureKind::NoCredentials
            | FailureKind::BadCredentials
            | FailureKind::NotPermitted => Self::NotPermitted,
            FailureKind::Untrusted => Self::Untrusted,
            FailureKind::StreamLimit | FailureKind::Key | FailureKind::Invalid => Self::Refused,
            _ => Self::Unsent,
        }
    }

    /// The exit code with this number.
    pub fn of(number: Option<u64>) -> Option<Self> {
        let all = [
            Self::Persisted,
            Self::Internal,
            Self::Usage,
            Self::NoSource,
            Self::NotPermitted,
            Self::Unsent,
            Self::NoMedia,
            Self::Untrusted,
            Self::Refused,
            Self::Dropped,
            Self::NoProducer,
            Self::Taken,
            Self::Unhealthy,
        ];
        all.into_iter()
            .find(|exit| Some(u64::from(*exit as u8)) == number)
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Summary {
    /// What the program's exit code says.
    pub exit: Exit,
    /// What it came to.
    pub report: Report,
}

/// What opens the source, again and again. Called on the capture thread.
pub type Open = Box<dyn FnMut() -> Result<Box<dyn Source>, source::Error> + Send>;

/// Streams until the media ends, the time is over or a signal comes, and sends what is left. For a process of its own: it
/// survives panics ([`crate::survive`]). `conclude` says how it ended, and may have to on another thread.
pub fn run(config: Config, conclude: Conclude) -> Exit {
    let (of, leftover) = (config.clone(), Leftover::default());
    let openers = move || {
        leftover.stop()?;
        Ok(opener(&of, Clock, &leftover))
    };
    run_with(config, openers, conclude)
}

/// As [`run`], with sources of one's own in place of the config's device: `openers` is asked again for a capture thread
/// that takes over from one that was lost.
pub fn run_with(
    config: Config,
    openers: impl Fn() -> Result<Open, source::Error> + Send + Sync + 'static,
    conclude: Conclude,
) -> Exit {
    let run = || {
        let course = Arc::new(Course::new(config)?);
        let open = openers()?;
        survive::arm(Arc::clone(&course), openers, conclude);
        block_on(course.run(open))?
    };
    conclude(run())
}

/// Streams from a source of one's own, as a part of a larger program: panics are left to that.
///
/// # Errors
/// When the run could not start.
pub async fn run_from(
    config: Config,
    open: impl FnMut() -> Result<Box<dyn Source>, source::Error> + Send + 'static,
) -> Result<Summary, Error> {
    let course = Arc::new(Course::new(config)?);
    course.run(Box::new(open)).await
}

/// As [`run_from`], beside another run of this process, which keeps it in `beside`: it has a capture thread of another name.
pub(crate) async fn run_beside(
    config: Config,
    open: impl FnMut() -> Result<Box<dyn Source>, source::Error> + Send + 'static,
    beside: &Beside,
) -> Result<Summary, Error> {
    let course = Arc::new(Course::beside(config)?);
    *beside.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&course));
    course.run(Box::new(open)).await
}

/// Runs `future` on this thread.
///
/// # Errors
/// When the operating system has no room for a runtime.
pub fn block_on<F: Future>(future: F) -> Result<F::Output, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Only names are resolved on it.
        .max_blocking_threads(2)
        .thread_stack_size(256 * 1024)
        .build()
        .map_err(|source| Error::System {
            what: "the runtime",
            source,
        })?;
    let output = runtime.block_on(future);
    // A name that is still being resolved is not waited for.
    runtime.shutdown_background();
    Ok(output)
}

/// Starts the service inside this process and leads `aws` to it.
#[cfg(feature = "local")]
pub(crate) async fn start_local(
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

/// There is none left for a [`shutdown::Shutdown`].
pub(crate) fn no_descriptor(source: io::Error) -> Error {
    Error::System {
        what: "a descriptor (eventfd)",
        source,
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
    let (trigger, shutdown) = shutdown::pair().map_err(no_descriptor)?;
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

/// SIGINT and SIGTERM; or none, where they are somebody else's.
#[derive(Default)]
pub(crate) struct Signals(Option<(Signal, Signal)>);

impl Signals {
    pub(crate) fn new() -> Result<Self, Error> {
        let listen = |kind| {
            signal(kind).map_err(|source| Error::System {
                what: "the signal handlers",
                source,
            })
        };
        let interrupt = listen(SignalKind::interrupt())?;
        let terminate = listen(SignalKind::terminate())?;
        Ok(Self(Some((interrupt, terminate))))
    }

    pub(crate) async fn next(&mut self) {
        match &mut self.0 {
            Some((interrupt, terminate)) => tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            },
            None => std::future::pending().await,
        }
    }
}

pub(crate) fn is_camera(device: &Device) -> bool {
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
fn opener(config: &Config, clock: Clock, leftover: &Leftover) -> Open {
    enum From {
        Camera(Box<Finder>),
        Bytes(Place),
        #[cfg(feature = "local")]
        Demo,
    }
    let camera = |which| {
        From::Camera(Box::new(Finder::new(
            which,
            config.camera.clone(),
            clock,
            leftover.clone(),
        )))
    };
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
        fast: config.fast,
    };
    Box::new(move || {
        Ok(match &mut from {
            From::Camera(finder) => Box::new(finder.open()?),
            From::Bytes(place) => Box::new(AnnexB::open(place.clone(), pipe, clock)?),
            #[cfg(feature = "local")]
            From::Demo => Box::new(source::demo::Demo::new(clock)),
        })
    })
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
pub(crate) fn exit(report: &Report, no_source: bool, outcome: &Outcome) -> Exit {
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
    match (no_source, failure.map(|failure| failure.kind)) {
        (true, _) => Exit::NoSource,
        (false, Some(kind)) => Exit::of_failure(kind),
        (false, None) if *outcome != Outcome::Done || lost(&[DropReason::NotSentInTime]) => {
            Exit::Unsent
        }
        (false, None) if counts.sent.frames == 0 => Exit::NoMedia,
        (false, None)
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
        (false, None) => Exit::Persisted,
    }
}

/// Fails where no report can be written. What is there stays until the end.
pub(crate) fn check_place(report: &Path) -> Result<(), Error> {
    let opened = OpenOptions::new().create(true).append(true).open(report);
    opened.map(drop).map_err(|source| Error::ReportPlace {
        path: report.to_owned(),
        source,
    })
}

pub(crate) fn publish(report: &Report, to: Option<&ReportTo>) -> Result<(), Error> {
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
