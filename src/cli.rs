//! What was typed, and what it means.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_smithy_types::DateTime;
use clap::{ArgAction, Parser, ValueEnum};

use crate::app::{Config, Device, ReportTo};
use crate::codec::FrameRate;
use crate::frame::{Codec, Dimensions};
use crate::kvs::aws;
use crate::kvs::credentials::{Provider, iot, refresh};
use crate::kvs::session::Settings;
use crate::log::Format;
use crate::operate::export::Export;
use crate::operate::socket::Place;
use crate::ring::{MIN_BUDGET_BYTES, WhenFull};
use crate::source::capture;
use crate::source::v4l2::{self, Profile};

/// Streams H.264 or H.265 from a camera, a pipe or a file to Amazon Kinesis Video Streams.
///
/// `kvsProducerApp my-camera 600` streams the first camera that encodes to the stream my-camera for ten minutes.
#[derive(Debug, Parser)]
#[command(
    name = "kvsProducerApp",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Args {
    /// Another thing than streaming.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Name of the stream: 1 to 256 letters, digits, and _ . -
    #[arg(env = "KVS_CHANNEL", value_parser = channel)]
    pub channel: Option<String>,

    /// Seconds to stream; 0 or none = until stopped
    #[arg(env = "KVS_DURATION", default_value_t = 0)]
    pub duration: u64,

    /// How.
    #[command(flatten)]
    pub stream: StreamArgs,
}

/// What is streamed, where to, and how: the options of streaming, and of the commands that need to know the same.
#[derive(Debug, clap::Args)]
pub struct StreamArgs {
    /// Where the video comes from: a camera (/dev/video0, a path under /dev/v4l/by-id, or a piece of its name), "-" for
    /// H.264 or H.265 Annex B on standard input, the path of a FIFO or file of the same, or "demo" for the built-in clip (in
    /// builds with the feature `local`). Without it the first camera that encodes
    #[arg(short = 'D', long, value_name = "SOURCE", env = "KVS_DEVICE")]
    pub device: Option<OsString>,

    /// Memory for media: KiB, or with K or M behind the number; at least 512
    #[arg(short = 'B', long, value_name = "SIZE", env = "KVS_BUFFER", default_value = "2048", value_parser = buffer)]
    pub buffer: usize,

    /// What to take from a camera that has both, else H.264; codec of a pipe or file, where its first bytes do not tell
    #[arg(long, env = "KVS_CODEC")]
    pub codec: Option<CodecArg>,

    /// Frames a second, like 25 or 30000/1001: asked of a camera, told of a pipe or file. Without it a camera keeps its
    /// own, frames from a pipe have the time they arrive at, and a file has the rate that its stream tells
    #[arg(long, value_name = "N", env = "KVS_FPS")]
    pub fps: Option<FrameRate>,

    /// Size of the camera's picture, like 1280x720; else the one it has
    #[arg(long, value_name = "WxH", env = "KVS_SIZE", value_parser = size)]
    pub size: Option<Dimensions>,

    /// Bits a second that the camera encodes at, like 2M or 800K; else its own
    #[arg(long, value_name = "BITS", env = "KVS_BITRATE", value_parser = bitrate)]
    pub bitrate: Option<u32>,

    /// Seconds from one key frame of the camera to the next, 0.1 to 19; else 2, where the camera can be told
    #[arg(long, value_name = "SECONDS", env = "KVS_GOP", value_parser = gop)]
    pub gop: Option<Duration>,

    /// Profile that the camera encodes in; else its own
    #[arg(long, env = "KVS_PROFILE")]
    pub profile: Option<ProfileArg>,

    /// End when the camera is lost, with exit code 3; else it is waited for
    #[arg(long, env = "KVS_EXIT_ON_CAMERA_LOSS")]
    pub exit_on_camera_loss: bool,

    /// What to do when the buffer is full: drop the oldest fragments (cameras and pipes do), or wait (files do)
    #[arg(long, env = "KVS_WHEN_FULL")]
    pub when_full: Option<WhenFullArg>,

    /// AWS region; else AWS_REGION, AWS_DEFAULT_REGION or the AWS profile says
    #[arg(long, env = "KVS_REGION", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub region: Option<String>,

    /// Hours that the service keeps the media, 0 to 87600; only used when the stream is created, and then 24 without it
    #[arg(long, value_name = "HOURS", env = "KVS_RETENTION",
          value_parser = clap::value_parser!(u32).range(0..=87_600))]
    pub retention: Option<u32>,

    /// Tag for the stream; may be given more than once, or with commas in KVS_TAG
    #[arg(long = "tag", value_name = "K=V", env = "KVS_TAG", value_delimiter = ',', value_parser = tag)]
    pub tags: Vec<(String, String)>,

    /// KMS key that the service encrypts the media with; only used when the stream is created
    #[arg(long, value_name = "KEY", env = "KVS_KMS_KEY")]
    pub kms_key: Option<String>,

    /// Do not create the stream when it is missing
    #[arg(long, env = "KVS_NO_CREATE")]
    pub no_create: bool,

    /// PEM file of a CA to trust beside the built-in ones; else AWS_KVS_CACERT_PATH or SSL_CERT_FILE says
    #[arg(long, value_name = "FILE", env = "KVS_CA_FILE")]
    pub ca_file: Option<PathBuf>,

    /// Host of the credentials provider of AWS IoT, for a camera that has a certificate in place of keys; with the four that
    /// follow, else AWS_IOT_CORE_CREDENTIAL_ENDPOINT, .._CERT, .._PRIVATE_KEY, .._ROLE_ALIAS and .._THING_NAME say
    #[arg(long, value_name = "HOST", env = "KVS_IOT_ENDPOINT")]
    pub iot_endpoint: Option<String>,

    /// PEM file of the certificate of the thing
    #[arg(long, value_name = "FILE", env = "KVS_IOT_CERT")]
    pub iot_cert: Option<PathBuf>,

    /// PEM file of its private key
    #[arg(long, value_name = "FILE", env = "KVS_IOT_KEY")]
    pub iot_key: Option<PathBuf>,

    /// Name of the role alias that the credentials are for
    #[arg(long, value_name = "ALIAS", env = "KVS_IOT_ROLE_ALIAS")]
    pub iot_role_alias: Option<String>,

    /// Name of the thing that the certificate is attached to
    #[arg(long, value_name = "THING", env = "KVS_IOT_THING")]
    pub iot_thing: Option<String>,

    /// File with one line that somebody else keeps up to date: CREDENTIALS, key id, secret; or CREDENTIALS, key id, end in
    /// ISO 8601, secret, session token
    #[arg(long, value_name = "FILE", env = "KVS_CREDENTIAL_FILE")]
    pub credential_file: Option<PathBuf>,

    /// Seconds that may pass at the end until everything is persisted; and, for a file, until the service is first reached
    #[arg(long, value_name = "SECONDS", env = "KVS_GRACE", default_value_t = 30,
          value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub grace: u64,

    /// Where the Unix socket for commands is; else below /run/kvsProducerApp, or below $XDG_RUNTIME_DIR where that cannot be
    /// written to
    #[arg(long, value_name = "PATH", env = "KVS_CONTROL")]
    pub control: Option<PathBuf>,

    /// Take no commands, and do not look whether another producer streams to the channel
    #[arg(long, env = "KVS_NO_CONTROL")]
    pub no_control: bool,

    /// Write metrics in Prometheus's text format to this file every 15 s, for node_exporter
    #[arg(long, value_name = "FILE", env = "KVS_METRICS_FILE")]
    pub metrics_file: Option<PathBuf>,

    /// Serve metrics at http://127.0.0.1:PORT/metrics
    #[arg(long, value_name = "PORT", env = "KVS_METRICS_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub metrics_port: Option<u16>,

    /// Where one JSON object with the results goes at the end: a file, or "-" for standard output
    #[arg(long, value_name = "FILE", env = "KVS_REPORT")]
    pub report: Option<OsString>,

    /// Say more; twice for everything
    #[arg(short, long, action = ArgAction::Count, env = "KVS_VERBOSE")]
    pub verbose: u8,

    /// Say less; twice for errors only
    #[arg(short, long, action = ArgAction::Count, env = "KVS_QUIET")]
    pub quiet: u8,

    /// How the log is written
    #[arg(long, env = "KVS_LOG_FORMAT", default_value = "text")]
    pub log_format: FormatArg,

    /// Stream to a KVS-compatible service inside this process; with DIR it records what it gets under DIR/CHANNEL/
    #[cfg(feature = "local")]
    #[arg(long, value_name = "DIR", env = "KVS_LOCAL", num_args = 0..=1)]
    pub local: Option<Option<PathBuf>>,

    /// How the service of --local misbehaves: a JSON file
    #[cfg(feature = "local")]
    #[arg(long, value_name = "FILE", env = "KVS_SCENARIO", requires = "local")]
    pub scenario: Option<PathBuf>,
}

/// Other things than streaming.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the cameras of this machine: what they are, what they can do, and whether they can be used
    Devices {
        /// As a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Check that this binary speaks to cameras as kernels for this machine understand it; no camera is needed
    SelfCheck,
    /// Create the stream and wait until it is ACTIVE; one that is there is left as it is, but for more retention and tags
    /// where they are asked for
    Create {
        /// Name of the stream
        #[arg(env = "KVS_CHANNEL", value_parser = channel)]
        channel: String,
        /// How.
        #[command(flatten)]
        stream: Box<StreamArgs>,
        /// Show the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Look at everything that streaming needs, with the options of streaming; exit code 12 when something is missing
    Doctor {
        /// Name of the stream
        #[arg(env = "KVS_CHANNEL", value_parser = channel)]
        channel: String,
        /// How.
        #[command(flatten)]
        stream: Box<StreamArgs>,
        /// Show the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Put recorded media into the stream: through the producer that runs for it, which makes room for so long, or by
    /// itself where none runs. Paced by what the service confirms; nothing is dropped
    Put {
        /// Name of the stream
        #[arg(env = "KVS_CHANNEL", value_parser = channel)]
        channel: String,
        /// A file of H.264 or H.265 Annex B, or "-" for standard input
        media: OsString,
        /// When its first frame was captured: 2025-01-02T03:04:05Z, or seconds since 1970; else now
        #[arg(long, value_name = "TIME", value_parser = start)]
        start: Option<Duration>,
        /// As fast as the service takes it, and not at the media's own pace; its times would lie in the future without
        /// --start
        #[arg(long, requires = "start")]
        fast: bool,
        /// How.
        #[command(flatten)]
        stream: Box<StreamArgs>,
        /// Show the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// What a running producer is asked.
    #[command(flatten)]
    Operate(crate::operate::command::Command),
    /// Write man pages and shell completions to a directory
    #[cfg(feature = "pages")]
    #[command(hide = true)]
    Pages {
        /// Where to
        dir: PathBuf,
    },
    /// Run the KVS-compatible service by itself, for other producers to be pointed at
    #[cfg(feature = "local")]
    LocalEndpoint(crate::local::command::LocalEndpointArgs),
}

/// See [`Codec`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CodecArg {
    /// H.264, AVC
    H264,
    /// H.265, HEVC
    H265,
}

/// See [`Profile`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ProfileArg {
    /// Constrained baseline
    Baseline,
    /// Main
    Main,
    /// High
    High,
}

/// See [`WhenFull`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum WhenFullArg {
    /// The oldest whole fragments go
    Drop,
    /// Reading waits
    Wait,
}

/// See [`Format`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FormatArg {
    /// Lines to read
    Text,
    /// One JSON object a line
    Json,
}

/// DataRetentionInHours of a stream that is created, where nobody says.
const DEFAULT_RETENTION_HOURS: u32 = 24;

impl Args {
    /// What the arguments mean for streaming.
    ///
    /// # Errors
    /// One line for what was typed and makes no sense.
    pub fn into_config(self) -> Result<Config, String> {
        let channel = self
            .channel
            .ok_or("no stream name: kvsProducerApp <CHANNEL> [DURATION]")?;
        let mut config = self.stream.into_config(channel)?;
        config.duration = (self.duration > 0).then(|| Duration::from_secs(self.duration));
        Ok(config)
    }
}

impl StreamArgs {
    /// What the arguments mean for `channel`, without an end.
    ///
    /// # Errors
    /// One line for what was typed and makes no sense.
    pub fn into_config(self, channel: String) -> Result<Config, String> {
        let device = self.device.map_or(Ok(Device::AnyCamera), device)?;
        let codec = self.codec.map(|codec| match codec {
            CodecArg::H264 => Codec::H264,
            CodecArg::H265 => Codec::H265,
        });
        let camera = v4l2::Options {
            codec,
            fps: self.fps,
            size: self.size,
            bitrate: self.bitrate,
            gop: self.gop,
            profile: self.profile.map(|profile| match profile {
                ProfileArg::Baseline => Profile::Baseline,
                ProfileArg::Main => Profile::Main,
                ProfileArg::High => Profile::High,
            }),
        };
        let inputs = iot::Inputs {
            endpoint: self.iot_endpoint,
            certificate: self.iot_cert,
            key: self.iot_key,
            role_alias: self.iot_role_alias,
            thing: self.iot_thing,
        };
        let provider =
            Provider::choose(inputs, self.credential_file, |name| std::env::var_os(name))
                .map_err(|error| error.to_string())?;
        let finite = matches!(&device, Device::Path(path) if path.is_file());
        let grace = Duration::from_secs(self.grace);
        let settings = Settings {
            create: !self.no_create,
            tag: !self.tags.is_empty(),
            give_up: finite,
            patience: finite.then_some(grace),
            ..Settings::default()
        };
        Ok(Config {
            device,
            duration: None,
            start: None,
            fast: false,
            buffer_bytes: self.buffer,
            codec,
            fps: self.fps,
            camera,
            exit_on_camera_loss: self.exit_on_camera_loss,
            when_full: self.when_full.map(|when| match when {
                WhenFullArg::Drop => WhenFull::Drop,
                WhenFullArg::Wait => WhenFull::Wait,
            }),
            aws: aws::Options {
                stream: channel,
                region: self.region,
                endpoint: None,
                credentials: None,
                provider,
                refresh: refresh::Settings::default(),
                retention_hours: self.retention.unwrap_or(DEFAULT_RETENTION_HOURS),
                kms_key: self.kms_key,
                tags: self.tags,
            },
            ca_file: self.ca_file.or_else(aws::ca_file_from_environment),
            session: settings,
            silence: capture::SILENCE,
            grace,
            control: match self.control {
                _ if self.no_control => Place::Nowhere,
                Some(path) => Place::At(path),
                None => Place::Usual,
            },
            export: Export {
                file: self.metrics_file,
                port: self.metrics_port,
            },
            report: self.report.map(|place| match place.to_str() {
                Some("-") => ReportTo::Stdout,
                _ => ReportTo::File(place.into()),
            }),
            log_format: match self.log_format {
                FormatArg::Text => Format::Text,
                FormatArg::Json => Format::Json,
            },
            log_level: log_level(self.verbose, self.quiet),
            #[cfg(feature = "local")]
            local: self.local.map(|directory| crate::app::Local {
                directory,
                scenario: self.scenario,
            }),
        })
    }
}

/// The log level for so many -v and -q.
pub fn log_level(verbose: u8, quiet: u8) -> tracing::Level {
    use tracing::Level;
    match i16::from(verbose) - i16::from(quiet) {
        2.. => Level::TRACE,
        1 => Level::DEBUG,
        0 => Level::INFO,
        -1 => Level::WARN,
        _ => Level::ERROR,
    }
}

fn device(device: OsString) -> Result<Device, String> {
    match device.to_str() {
        Some("-") => Ok(Device::Stdin),
        #[cfg(feature = "local")]
        Some("demo") => Ok(Device::Demo),
        #[cfg(not(feature = "local"))]
        Some("demo") => Err("this build has no demo clip: build it with --features local".into()),
        Some("") => Err("the source is empty: give a camera like /dev/video0, or -".into()),
        // A bare word is a file where there is one, and a camera's name where not.
        Some(word) if !word.contains('/') && !Path::new(word).exists() => {
            Ok(Device::NamedCamera(word.to_owned()))
        }
        _ => Ok(Device::Path(device.into())),
    }
}

/// A time in seconds since the Unix epoch, or as RFC 3339 has it.
fn start(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().or_else(|_| {
        let time = DateTime::from_str(text, aws_smithy_types::date_time::Format::DateTime);
        time.map(|time| time.as_secs_f64())
            .map_err(|_| "a time is written 2025-01-02T03:04:05Z, or in seconds since 1970")
    })?;
    // The service names a fragment by milliseconds, and media is not older than video.
    if !(0.0..1e11).contains(&seconds) {
        return Err("that is no time since 1970".into());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range is checked, and the value is rounded"
    )]
    Ok(Duration::from_millis((seconds * 1000.0).round() as u64))
}

fn size(text: &str) -> Result<Dimensions, String> {
    let (width, height) = text
        .split_once(['x', 'X'])
        .and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)))
        .ok_or("a size is written WIDTHxHEIGHT: 1280x720")?;
    let allowed = 16..=16_384;
    if allowed.contains(&width) && allowed.contains(&height) {
        Ok(Dimensions { width, height })
    } else {
        Err("width and height are 16 to 16384".into())
    }
}

fn bitrate(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    let number: f64 = digits
        .parse()
        .map_err(|_| "a bitrate is a number of bits a second, or ends in K or M: 800K, 2M, 2.5M")?;
    let bits = (number * unit).round();
    if (10e3..=1e9).contains(&bits) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range is checked, and the value is rounded"
        )]
        Ok(bits as u32)
    } else {
        Err("a bitrate is 10K to 1000M bits a second".into())
    }
}

fn gop(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "the time between key frames is a number of seconds: 2, 0.5")?;
    if (0.1..=19.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("0.1 to 19: the service takes no fragment over 20 s".into())
    }
}

fn channel(text: &str) -> Result<String, String> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
    if text.is_empty() || text.len() > 256 {
        return Err("a stream's name has 1 to 256 characters".into());
    }
    match text.chars().find(|&letter| !allowed(letter)) {
        Some(letter) => Err(format!(
            "{letter:?} cannot be in a stream's name: use letters, digits, and _ . -"
        )),
        None => Ok(text.to_owned()),
    }
}

fn buffer(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1024),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1024 * 1024),
        _ => (text, 1024),
    };
    let number: usize = digits
        .parse()
        .map_err(|_| "a size is a number of KiB, or ends in K or M: 2048, 512K, 4M")?;
    let bytes = number
        .checked_mul(unit)
        .filter(|&bytes| bytes <= MAX_BUFFER_BYTES);
    let bytes = bytes.ok_or_else(|| format!("at most {} MiB", MAX_BUFFER_BYTES / 1024 / 1024))?;
    if bytes < MIN_BUDGET_BYTES {
        let least = MIN_BUDGET_BYTES / 1024;
        return Err(format!(
            "at least {least} KiB: two fragments of a small camera must fit"
        ));
    }
    Ok(bytes)
}

/// What the 32 bits of a frame's length and the address space of a small board allow.
const MAX_BUFFER_BYTES: usize = 1024 * 1024 * 1024;

fn tag(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a tag is written KEY=VALUE")?;
    let allowed = |letter: char| letter.is_alphanumeric() || " _.:/=+-@".contains(letter);
    if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 {
        return Err("a tag's key has 1 to 128 characters, its value at most 256".into());
    }
    if key.starts_with("aws:") {
        return Err("keys that start with aws: are reserved".into());
    }
    match text.chars().find(|&letter| !allowed(letter)) {
        Some(letter) => Err(format!(
            "{letter:?} cannot be in a tag: use letters, digits, blanks and _ . : / = + - @"
        )),
        None => Ok((key.to_owned(), value.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_option_has_an_environment_variable() {
        for argument in Args::command().get_arguments() {
            let name = argument.get_id().as_str();
            if matches!(name, "help" | "version") {
                continue;
            }
            let variable = argument.get_env().and_then(|name| name.to_str());
            assert!(
                variable.is_some_and(|variable| variable.starts_with("KVS_")),
                "{name}"
            );
        }
    }

    #[test]
    fn buffer_sizes_are_kib_unless_they_say_otherwise() {
        assert_eq!(buffer("2048"), Ok(2 * 1024 * 1024));
        assert_eq!(buffer("512K"), Ok(512 * 1024));
        assert_eq!(buffer("4M"), Ok(4 * 1024 * 1024));
        assert_eq!(buffer("4m"), Ok(4 * 1024 * 1024));
        for wrong in [
            "",
            "K",
            "511",
            "-1",
            "2.5M",
            "2G",
            "99999999999999999999",
            "9999999M",
        ] {
            assert!(buffer(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_source_is_a_path_or_a_piece_of_a_cameras_name() {
        let device = |text: &str| device(text.into()).expect("makes sense");
        assert_eq!(device("-"), Device::Stdin);
        for path in ["/dev/video7", "/dev/v4l/by-id/gate", "./clip", "Cargo.toml"] {
            assert_eq!(device(path), Device::Path(path.into()));
        }
        assert_eq!(device("HD Pro"), Device::NamedCamera("HD Pro".into()));
    }

    #[test]
    fn what_is_asked_of_a_camera_makes_sense() {
        let (width, height) = (1280, 720);
        assert_eq!(size("1280x720"), Ok(Dimensions { width, height }));
        for wrong in [
            "1280",
            "x720",
            "1280x",
            "1280*720",
            "0x720",
            "1280x99999",
            "-1x2",
        ] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(bitrate("800K"), Ok(800_000));
        assert_eq!(bitrate("2.5M"), Ok(2_500_000));
        assert_eq!(bitrate("1000000"), Ok(1_000_000));
        for wrong in ["", "M", "2G", "-1M", "9", "2000M", "NaN", "infM"] {
            assert!(bitrate(wrong).is_err(), "{wrong}");
        }
        assert_eq!(gop("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "0", "20", "-2", "2s", "NaN"] {
            assert!(gop(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn devices_is_a_command_and_not_a_stream() {
        let args = Args::try_parse_from(["kvsProducerApp", "devices", "--json"]).expect("parses");
        assert!(matches!(
            args.command,
            Some(Command::Devices { json: true })
        ));
    }

    #[test]
    fn a_start_is_a_time() {
        let ms = |text: &str| start(text).map(|time| time.as_millis());
        assert_eq!(ms("1735787045.007"), Ok(1_735_787_045_007));
        assert_eq!(ms("2025-01-02T03:04:05.007Z"), Ok(1_735_787_045_007));
        assert_eq!(ms("2025-01-02T03:04:05Z"), Ok(1_735_787_045_000));
        for wrong in [
            "",
            "yesterday",
            "-1",
            "NaN",
            "inf",
            "1e300",
            "2025-13-02T03:04:05Z",
        ] {
            assert!(start(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_stream_may_be_named_like_a_command() {
        let parse = |args: &[&str]| Args::try_parse_from(args).expect("parses");
        let args = parse(&["kvsProducerApp", "--retention", "1", "--", "status", "600"]);
        assert_eq!(args.channel.as_deref(), Some("status"));
        assert_eq!((args.duration, args.command.is_none()), (600, true));
        let args = parse(&["kvsProducerApp", "stop", "status"]);
        assert!(args.command.is_some() && args.channel.is_none());
    }

    #[test]
    fn stream_names_are_those_of_the_service() {
        assert!(channel("cam_1.front-door").is_ok() && channel(&"x".repeat(256)).is_ok());
        for wrong in ["", "a b", "a/b", "ä", &"x".repeat(257)] {
            assert!(channel(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tags_are_pairs() {
        assert_eq!(tag("site=gate=3"), Ok(("site".into(), "gate=3".into())));
        assert_eq!(tag("empty="), Ok(("empty".into(), String::new())));
        for wrong in ["site", "=3", "aws:x=1", "a;b=1"] {
            assert!(tag(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_shortest_command_line_is_enough() {
        let args = Args::try_parse_from(["kvsProducerApp", "my-camera", "600"]).expect("parses");
        let config = args.into_config().expect("makes sense");
        assert_eq!(config.aws.stream, "my-camera");
        assert_eq!(config.duration, Some(Duration::from_mins(10)));
        assert_eq!(config.device, Device::AnyCamera);
        assert_eq!(
            (config.buffer_bytes, config.when_full),
            (2 * 1024 * 1024, None)
        );
    }
}
