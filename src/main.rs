//! Parse, start the log, run, turn the outcome into an exit code.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::thread::{self, JoinHandle};

use clap::Parser;
use clap::error::ErrorKind;
use kvs_producer_app::app::{self, Config, Error, Exit, Summary};
use kvs_producer_app::chain;
#[cfg(feature = "local")]
use kvs_producer_app::cli::log_level;
use kvs_producer_app::cli::{Args, Command, StreamArgs};
use kvs_producer_app::codes::Code;
#[cfg(feature = "local")]
use kvs_producer_app::local::command;
#[cfg(feature = "local")]
use kvs_producer_app::log::Format;
use kvs_producer_app::operate::doctor::{self, Check};
use kvs_producer_app::operate::protocol::Put;
use kvs_producer_app::operate::{create, put};
use kvs_producer_app::ring::DropReason;
use kvs_producer_app::source::v4l2::devices::{self, Device};
use kvs_producer_app::source::v4l2::self_check;
use rustix::process::{Resource, Rlimit, setrlimit};
use tracing::Level;

/// Camera builds bring an allocator of their own: those of the static C libraries (musl's, and zig's in its place) round up
/// to a power of two or keep a page range for each size and thread, which is 0.15 MB more at 4 Mbit/s.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Enough for a build that is not optimized as well.
const ARGUMENTS_STACK_BYTES: usize = 2 * 1024 * 1024;

fn main() -> ExitCode {
    no_core_dumps();
    let args = match arguments() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are no errors; clap knows where each belongs.
            let _ = error.print();
            let asked = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            return code(if asked { Exit::Persisted } else { Exit::Usage });
        }
    };
    match run(args) {
        Ok(exit) => code(exit),
        Err(Failed { exit, message }) => {
            eprintln!("kvsProducerApp: {message}");
            code(exit)
        }
    }
}

/// What is asked for. To describe all that can be takes 100 kB of stack, which a thread gives back when it ends, and the main
/// thread never.
fn arguments() -> Result<Args, clap::Error> {
    let thread = thread::Builder::new()
        .name("arguments".into())
        .stack_size(ARGUMENTS_STACK_BYTES)
        .spawn(Args::try_parse);
    match thread.map(JoinHandle::join) {
        Ok(Ok(args)) => args,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        // There may be no more threads: who streams will say so.
        Err(_) => Args::try_parse(),
    }
}

/// Why nothing was streamed.
struct Failed {
    exit: Exit,
    message: String,
}

fn run(mut args: Args) -> Result<Exit, Failed> {
    match args.command.take() {
        None => stream(args),
        Some(Command::Devices { json }) => list_devices(json),
        Some(Command::SelfCheck) => match self_check::run() {
            Ok(text) => print(&format!("{text}\n")),
            Err(message) => Err(Failed {
                exit: Exit::Internal,
                message: format!("self-check: {message}"),
            }),
        },
        Some(Command::Create {
            channel,
            stream,
            json,
        }) => create(*stream, channel, json),
        Some(Command::Doctor {
            channel,
            stream,
            json,
        }) => examine(*stream, channel, json),
        Some(Command::Put {
            channel,
            media,
            start,
            fast,
            stream,
            json,
        }) => {
            let put = Put {
                fast,
                start,
                fps: stream.fps,
            };
            self::put(*stream, channel, media, put, json)
        }
        Some(Command::Operate(command)) => command.run().map_err(|error| Failed {
            exit: error.exit(),
            message: format!("{} [{}]", chain(&error), error.code()),
        }),
        #[cfg(feature = "pages")]
        Some(Command::Pages { dir }) => match kvs_producer_app::operate::pages::write(&dir) {
            Ok(()) => Ok(Exit::Persisted),
            Err(error) => Err(Failed {
                exit: Exit::Internal,
                message: format!("cannot write to {}: {error}", dir.display()),
            }),
        },
        #[cfg(feature = "local")]
        Some(Command::LocalEndpoint(options)) => {
            kvs_producer_app::log::start(
                log_level(args.stream.verbose, args.stream.quiet),
                Format::Text,
            );
            let run = app::until_signal(|shutdown| command::run(options, shutdown));
            let run = app::block_on(run).and_then(|run| run);
            let run = run.map_err(|error| Failed {
                exit: Exit::Internal,
                message: chain(&error).to_string(),
            })?;
            let usage = |error| Failed {
                exit: Exit::Usage,
                message: chain(&error).to_string(),
            };
            run.map(|()| Exit::Persisted).map_err(usage)
        }
    }
}

fn list_devices(json: bool) -> Result<Exit, Failed> {
    let devices = devices::all();
    let text = if json {
        let devices: Vec<_> = devices.iter().map(Device::json).collect();
        format!("{:#}\n", serde_json::Value::from(devices))
    } else if devices.is_empty() {
        "there is no /dev/video* here: plug a camera in or load its driver\n".to_owned()
    } else {
        let devices: Vec<_> = devices.iter().map(ToString::to_string).collect();
        devices.join("\n")
    };
    print(&text)
}

fn print(text: &str) -> Result<Exit, Failed> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads it has seen enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failed {
            exit: Exit::Internal,
            message: format!("cannot write to standard output: {error}"),
        }),
        _ => Ok(Exit::Persisted),
    }
}

fn stream(args: Args) -> Result<Exit, Failed> {
    let config = args.into_config().map_err(|message| Failed {
        exit: Exit::Usage,
        message,
    })?;
    kvs_producer_app::log::start(config.log_level, config.log_format);
    Ok(app::run(config, conclude))
}

/// What `args` mean for `channel`.
fn config(args: StreamArgs, channel: String) -> Result<Config, Failed> {
    args.into_config(channel).map_err(|message| Failed {
        exit: Exit::Usage,
        message,
    })
}

fn examine(args: StreamArgs, channel: String, json: bool) -> Result<Exit, Failed> {
    let mut config = config(args, channel)?;
    // What goes wrong is said by the checks.
    config.log_level = config.log_level.min(Level::ERROR);
    kvs_producer_app::log::start(config.log_level, config.log_format);
    let told = &mut |check: &Check| {
        if !json {
            // Whoever reads it may have seen enough.
            let _ = print(&format!("{check}\n"));
        }
    };
    let checks = doctor::run(&config, told).map_err(|error| Failed {
        exit: error.exit(),
        message: chain(&error).to_string(),
    })?;
    if json {
        print(&format!("{:#}\n", doctor::json(&checks)))?;
    }
    Ok(doctor::exit(&checks))
}

/// Through the producer that runs, or else by itself.
fn put(
    args: StreamArgs,
    channel: String,
    media: OsString,
    how: Put,
    json: bool,
) -> Result<Exit, Failed> {
    let args = StreamArgs {
        device: Some(media),
        ..args
    };
    let config = config(args, channel)?;
    kvs_producer_app::log::start(config.log_level, config.log_format);
    let config = put::config(&config, how, json);
    match put::through_producer(&config, how, json) {
        Ok(Some(exit)) => Ok(exit),
        Ok(None) => Ok(app::run(config, conclude)),
        Err(error) => Err(Failed {
            exit: error.exit(),
            message: format!("{} [{}]", chain(&error), error.code()),
        }),
    }
}

fn create(args: StreamArgs, channel: String, json: bool) -> Result<Exit, Failed> {
    let retention = args.retention;
    let config = config(args, channel)?;
    kvs_producer_app::log::start(config.log_level, config.log_format);
    let failed = |error: create::Error| Failed {
        exit: error.exit(),
        message: format!("{} [{}]", chain(&error), error.code()),
    };
    let created = create::run(&config, retention).map_err(failed)?;
    print(&if json {
        format!("{}\n", created.json())
    } else {
        created.to_string()
    })
}

/// Says how a run ended.
fn conclude(result: Result<Summary, Error>) -> Exit {
    let (exit, complaint) = match result {
        Ok(summary) => (summary.exit, complaint(&summary)),
        Err(error) => {
            let complaint = format!("{} [{}]", chain(&error), error.code());
            (error.exit(), Some(complaint))
        }
    };
    if let Some(complaint) = complaint {
        eprintln!("kvsProducerApp: {complaint}");
    }
    exit
}

/// What went wrong, in one line.
fn complaint(summary: &Summary) -> Option<String> {
    if let Some(failure) = &summary.report.failure {
        let code = summary.report.code.map(|code| format!(" [{code}]"));
        return Some(format!("{failure}{}", code.unwrap_or_default()));
    }
    let counts = &summary.report.counts;
    let nothing = summary.exit == Exit::NoMedia;
    // Joining a stream in the middle costs a few frames, and is no complaint where others came.
    let of = |reason: &DropReason| match reason {
        DropReason::BeforeKeyFrame | DropReason::OnOrder if !nothing => 0,
        reason => counts.dropped_for(*reason).frames,
    };
    // The reason that cost most.
    let reason = DropReason::ALL.into_iter().max_by_key(of);
    let why = match reason.filter(|reason| of(reason) > 0) {
        None => "no frame came from the source",
        Some(DropReason::BeforeKeyFrame) => "no key frame came from the source",
        Some(reason) => reason.explanation(),
    };
    match summary.exit {
        Exit::Persisted => None,
        Exit::NoMedia => Some(format!(
            "nothing could be streamed: {why} [{}]",
            Code::NO_MEDIA
        )),
        _ if counts.dropped_in_all().frames == 0 => None,
        _ => Some(format!(
            "{} of {} frames were dropped: {why} [{}]",
            counts.dropped_in_all().frames,
            counts.captured.frames,
            Code::DROPPED
        )),
    }
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}

/// Memory holds credentials and video: a crash leaves none of it on a disk.
fn no_core_dumps() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Lowering a limit is always permitted.
    let _ = setrlimit(Resource::Core, none);
}
