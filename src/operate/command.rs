//! The commands for a running producer, as they are typed.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tracing::Level;

use super::client::{self, Client};
use super::protocol::{Request, level_of};
use super::socket::Place;
use super::words;
use crate::app::Exit;
use crate::codes::Code;

/// Between two looks of `status --watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// How much longer than a look the end of a producer, or of a connection, may take: the longest `--grace`.
const END_PATIENCE: Duration = Duration::from_hours(24);

/// Commands for a running producer.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// How the producer of a channel is; exit code 12 when it is not healthy
    Status {
        /// Which producer.
        #[command(flatten)]
        producer: Producer,
        /// Again every second, until Ctrl-C
        #[arg(long)]
        watch: bool,
        /// As Prometheus text
        #[arg(long, conflicts_with = "json")]
        prometheus: bool,
    },
    /// How full its buffer is: available, used and total, in bytes and seconds, and the largest frame that fits
    Buffer {
        /// Which producer.
        #[command(flatten)]
        producer: Producer,
    },
    /// End it well: what is held is sent, and its last PERSISTED awaited
    Stop {
        /// Which producer.
        #[command(flatten)]
        producer: Producer,
    },
    /// Begin anew: connections are closed, what is held is thrown away, the next key frame is the first
    Reset {
        /// Which producer.
        #[command(flatten)]
        producer: Producer,
        /// Close the connections only, and go on from the last confirmed fragment
        #[arg(long)]
        keep_buffer: bool,
    },
    /// End it at once, without sending what is held
    Free {
        /// Which producer.
        #[command(flatten)]
        producer: Producer,
    },
    /// Stop uploading, after the fragment under way; the buffer keeps the newest media
    Pause {
        /// Which producer.
        #[command(flatten)]
        producer: Producer,
    },
    /// Go on uploading, from the oldest media that the buffer holds
    Resume {
        /// Which producer.
        #[command(flatten)]
        producer: Producer,
    },
    /// Change how much it logs
    Log {
        /// Which producer.
        #[command(flatten)]
        producer: Producer,
        /// error, warn, info, debug or trace
        #[arg(value_parser = level_of)]
        level: Level,
    },
    /// What an error code means, and what to do
    Explain {
        /// Like KVS-E4004; without one all are listed
        #[arg(value_parser = code)]
        code: Option<Code>,
    },
}

/// Which producer, and how its answer is shown.
#[derive(Debug, Clone, clap::Args)]
pub struct Producer {
    /// Name of its stream
    #[arg(env = "KVS_CHANNEL")]
    pub channel: String,
    /// Where its socket is, if it was started with --control
    #[arg(long, value_name = "PATH", env = "KVS_CONTROL")]
    pub control: Option<PathBuf>,
    /// Show the answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The producer did not do it.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// Nobody takes what there is to say.
    #[error("cannot write to standard output")]
    Print(#[source] io::Error),
}

impl Error {
    /// What the exit code says of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Client(error) => match error.code() {
                Code::NOT_YOURS => Exit::NotPermitted,
                Code::NO_PRODUCER | Code::NO_ANSWER => Exit::NoProducer,
                Code::SOURCE => Exit::NoSource,
                _ => Exit::Internal,
            },
            Self::Print(_) => Exit::Internal,
        }
    }

    /// For `explain`.
    pub fn code(&self) -> Code {
        match self {
            Self::Client(error) => error.code(),
            Self::Print(_) => Code::SYSTEM,
        }
    }
}

impl Command {
    /// Carries it out and prints what came of it.
    ///
    /// # Errors
    /// When nothing came of it.
    pub fn run(self) -> Result<Exit, Error> {
        match self {
            Self::Status {
                producer,
                watch,
                prometheus,
            } => status(&producer, watch, prometheus),
            Self::Buffer { producer } => {
                let answer = producer.ask(&Request::Buffer, None)?;
                producer.show(&answer, words::buffer)
            }
            Self::Stop { producer } => producer.end(&Request::Stop),
            Self::Free { producer } => producer.end(&Request::Free),
            Self::Reset {
                producer,
                keep_buffer,
            } => {
                let answer = producer.ask(&Request::Reset { keep_buffer }, None)?;
                producer.show(&answer, |answer| words::reset(answer, keep_buffer))
            }
            Self::Pause { producer } => {
                let answer = producer.ask(&Request::Pause, Some(END_PATIENCE))?;
                producer.show(&answer, |_| {
                    "paused: the connection is closed, the buffer keeps the newest media\n".into()
                })
            }
            Self::Resume { producer } => {
                let answer = producer.ask(&Request::Resume, None)?;
                producer.show(&answer, |_| "uploading goes on\n".into())
            }
            Self::Log { producer, level } => {
                let answer = producer.ask(&Request::Log(level), None)?;
                producer.show(&answer, |answer| {
                    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
                    format!(
                        "the log level is {}, it was {}\n",
                        text("level"),
                        text("was")
                    )
                })
            }
            Self::Explain { code } => explain(code),
        }
    }
}

impl Producer {
    fn place(&self) -> Place {
        self.control.clone().map_or(Place::Usual, Place::At)
    }

    fn ask(&self, request: &Request, patience: Option<Duration>) -> Result<Value, Error> {
        let path = client::find(&self.place(), &self.channel)?;
        Ok(client::ask(&path, request, patience).map(Value::Object)?)
    }

    fn show(&self, answer: &Value, words: impl FnOnce(&Value) -> String) -> Result<Exit, Error> {
        print(&if self.json {
            format!("{answer}\n")
        } else {
            words(answer)
        })?;
        Ok(Exit::Persisted)
    }

    /// Asks for the producer's end; the exit code is what its own is.
    fn end(&self, request: &Request) -> Result<Exit, Error> {
        let answer = self.ask(request, Some(END_PATIENCE))?;
        show_end(&answer, self.json, words::end)
    }
}

/// Shows what a run came to; the exit code is what its own is, or would be.
pub(super) fn show_end(
    answer: &Value,
    json: bool,
    words: impl FnOnce(&Value) -> String,
) -> Result<Exit, Error> {
    print(&if json {
        format!("{answer}\n")
    } else {
        words(answer)
    })?;
    Ok(Exit::of(answer["exit"].as_u64()).unwrap_or(Exit::Internal))
}

fn status(producer: &Producer, watch: bool, prometheus: bool) -> Result<Exit, Error> {
    let path = client::find(&producer.place(), &producer.channel)?;
    let mut client = Client::connect(&path)?;
    let request = if prometheus {
        Request::Metrics
    } else {
        Request::Status
    };
    // Each look in the place of the one before, where somebody is looking.
    let over = watch && io::stdout().is_terminal() && !producer.json && !prometheus;
    loop {
        let answer = Value::Object(client.ask(&request, None)?);
        if prometheus {
            print(answer["prometheus"].as_str().unwrap_or_default())?;
        } else {
            if over {
                print("\x1b[H\x1b[2J")?;
            }
            producer.show(&answer, words::status)?;
        }
        if !watch {
            return Ok(match answer["healthy"].as_bool() {
                Some(false) => Exit::Unhealthy,
                _ => Exit::Persisted,
            });
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

fn explain(code: Option<Code>) -> Result<Exit, Error> {
    let text = if let Some(code) = code {
        code.entry().to_string()
    } else {
        let line = |code: Code| format!("{code}  {}\n", code.entry().title);
        Code::all().map(line).collect::<Vec<_>>().concat()
    };
    print(&text)?;
    Ok(Exit::Persisted)
}

fn code(text: &str) -> Result<Code, String> {
    Code::of(text).ok_or_else(|| {
        "there is no such code: they are written KVS-E4004, and `explain` alone lists them".into()
    })
}

/// Whoever has read enough closes the pipe: that is no failure.
fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Print(error)),
        Err(_) => std::process::exit(Exit::Persisted as i32),
        Ok(()) => Ok(()),
    }
}
