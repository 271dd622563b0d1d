//! What was typed, and what it means.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};

use crate::app::{Config, Device, ReportTo};
use crate::codec::FrameRate;
use crate::frame::Codec;
use crate::kvs::aws;
use crate::kvs::session::Settings;
use crate::log::Format;
use crate::ring::{MIN_BUDGET_BYTES, WhenFull};
use crate::source::capture;

/// Streams H.264 or H.265 from a camera, a pipe or a file to Amazon Kinesis Video Streams.
///
/// `kvsProducerApp my-camera 600` streams /dev/video0 to the stream my-camera for ten minutes.
#[derive(Debug, Parser)]
#[command(
    name = "kvsProducerApp",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Args {
    /// Another thing than streaming.
    #[cfg(feature = "local")]
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Name of the stream: 1 to 256 letters, digits, and _ . -
    #[arg(env = "KVS_CHANNEL", value_parser = channel)]
    pub channel: Option<String>,

    /// Seconds to stream; 0 or none = until stopped
    #[arg(env = "KVS_DURATION", default_value_t = 0)]
    pub duration: u64,

    /// Where the video comes from: a camera (/dev/video0), "-" for H.264 or H.265 Annex B on standard input, the path of a
    /// FIFO or file of the same, or "demo" for the built-in clip (in builds with the feature `local`)
    #[arg(
        short = 'D',
        long,
        value_name = "SOURCE",
        env = "KVS_DEVICE",
        default_value = "/dev/video0"
    )]
    pub device: OsString,

    /// Memory for media: KiB, or with K or M behind the number; at least 512
    #[arg(short = 'B', long, value_name = "SIZE", env = "KVS_BUFFER", default_value = "2048", value_parser = buffer)]
    pub buffer: usize,

    /// Codec of a pipe or file, where its first bytes do not tell
    #[arg(long, env = "KVS_CODEC")]
    pub codec: Option<CodecArg>,

    /// Frames a second of a pipe or file, like 25 or 30000/1001. Without it frames from a pipe have the time they arrive at,
    /// and a file has the rate that its stream tells
    #[arg(long, value_name = "N", env = "KVS_FPS")]
    pub fps: Option<FrameRate>,

    /// What to do when the buffer is full: drop the oldest fragments (cameras and pipes do), or wait (files do)
    #[arg(long, env = "KVS_WHEN_FULL")]
    pub when_full: Option<WhenFullArg>,

    /// AWS region; else AWS_REGION, AWS_DEFAULT_REGION or the AWS profile says
    #[arg(long, env = "KVS_REGION", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub region: Option<String>,

    /// Hours that the service keeps the media, 0 to 87600; only used when the stream is created
    #[arg(long, value_name = "HOURS", env = "KVS_RETENTION", default_value_t = 24,
          value_parser = clap::value_parser!(u32).range(0..=87_600))]
    pub retention: u32,

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

    /// Seconds that may pass at the end until everything is persisted
    #[arg(long, value_name = "SECONDS", env = "KVS_GRACE", default_value_t = 30)]
    pub grace: u64,

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
#[cfg(feature = "local")]
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run the KVS-compatible service by itself, for other producers to be pointed at
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

impl Args {
    /// What the arguments mean for streaming.
    ///
    /// # Errors
    /// One line for what was typed and makes no sense.
    pub fn into_config(self) -> Result<Config, String> {
        let channel = self
            .channel
            .ok_or("no stream name: kvsProducerApp <CHANNEL> [DURATION]")?;
        let device = device(self.device)?;
        let finite = matches!(&device, Device::Path(path) if path.is_file());
        let settings = Settings {
            create: !self.no_create,
            tag: !self.tags.is_empty(),
            give_up: finite,
            ..Settings::default()
        };
        Ok(Config {
            device,
            duration: (self.duration > 0).then(|| Duration::from_secs(self.duration)),
            buffer_bytes: self.buffer,
            codec: self.codec.map(|codec| match codec {
                CodecArg::H264 => Codec::H264,
                CodecArg::H265 => Codec::H265,
            }),
            fps: self.fps,
            when_full: self.when_full.map(|when| match when {
                WhenFullArg::Drop => WhenFull::Drop,
                WhenFullArg::Wait => WhenFull::Wait,
            }),
            aws: aws::Options {
                stream: channel,
                region: self.region,
                endpoint: None,
                credentials: None,
                retention_hours: self.retention,
                kms_key: self.kms_key,
                tags: self.tags,
            },
            ca_file: self.ca_file.or_else(aws::ca_file_from_environment),
            session: settings,
            silence: capture::SILENCE,
            grace: Duration::from_secs(self.grace),
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
        _ => Ok(Device::Path(device.into())),
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
        assert_eq!(config.device, Device::Path("/dev/video0".into()));
        assert_eq!(
            (config.buffer_bytes, config.when_full),
            (2 * 1024 * 1024, None)
        );
    }
}
