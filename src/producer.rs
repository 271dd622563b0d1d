//! For those who embed the producer in a program of their own: [`Producer`] and [`Stream`].
//!
//! ```no_run
//! use kvs_producer_app::frame::Codec;
//! use kvs_producer_app::producer::{Frame, Producer};
//!
//! # fn next_access_unit() -> Option<Vec<u8>> { None }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Credentials and region come from the environment, as AWS users know them.
//! let mut producer = Producer::new("front-door")?;
//! producer.config().buffer_bytes = 4 * 1024 * 1024;
//! let stream = producer.create()?;
//! while let Some(unit) = next_access_unit() {
//!     stream.put_frame(&Frame {
//!         codec: Codec::H264,
//!         data: &unit, // one access unit in Annex B framing
//!         at: None,    // captured now
//!     })?;
//! }
//! println!("{} s behind", stream.metrics()?["buffer"]["unsent_s"]);
//! let summary = stream.stop()?;
//! println!("{}", summary.report);
//! # Ok(())
//! # }
//! ```
//!
//! It blocks where it says so, needs no runtime of the caller's, and leaves signals alone. The log goes to whatever `tracing`
//! subscriber the program has.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser as _;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

use crate::app::{self, Config, Summary};
use crate::cli::Args;
use crate::clock::Clock;
use crate::course::Course;
use crate::frame::Codec;
use crate::operate::create;
use crate::operate::protocol::{Refusal, Request};
use crate::operate::socket::{Asked, Place, Server};
use crate::source::{self, Packet, Read, Source, Wait};

/// Frames on their way to the capture thread, which takes them as fast as they can be copied: less than a second of video.
const QUEUED_FRAMES: usize = 16;

/// The network side's thread.
const STACK_BYTES: usize = 1024 * 1024;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The channel, or a variable of the environment, makes no sense.
    #[error("{0}")]
    Usage(String),
    /// There is no such stream, and it could not be created.
    #[error(transparent)]
    Create(#[from] create::Error),
    /// The run could not start, or go on.
    #[error(transparent)]
    App(#[from] app::Error),
    /// There is no thread for it.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The producer would not.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The stream is at its end: see what [`Stream::stop`] says.
    #[error("the stream has ended")]
    Ended,
}

/// A producer that has not started.
#[derive(Debug, Clone)]
pub struct Producer {
    config: Config,
}

/// One access unit.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// How it is encoded.
    pub codec: Codec,
    /// Its NAL units in Annex B framing; key frames with their parameter sets.
    pub data: &'a [u8],
    /// When it was captured, on CLOCK_MONOTONIC; `None`: now. Times rise, by 10 s at most.
    pub at: Option<Duration>,
}

/// A stream that frames are put into.
#[derive(Debug)]
pub struct Stream {
    frames: SyncSender<Owned>,
    asks: mpsc::Sender<Asked>,
    run: JoinHandle<Result<Summary, app::Error>>,
}

#[derive(Debug)]
struct Owned {
    codec: Codec,
    data: Vec<u8>,
    at: Duration,
}

impl Producer {
    /// A producer for `channel`, with the settings that the program's own environment variables (`KVS_BUFFER`, ..) give.
    ///
    /// # Errors
    /// When the name or a variable makes no sense.
    pub fn new(channel: &str) -> Result<Self, Error> {
        let args = Args::try_parse_from(["kvsProducerApp", "--", channel]);
        let args = args.map_err(|error| Error::Usage(error.to_string()))?;
        let mut config = args.into_config().map_err(Error::Usage)?;
        config.duration = None;
        config.report = None;
        config.control = Place::Nowhere;
        Ok(Self { config })
    }

    /// All settings. The device is not looked at: frames come from [`Stream::put_frame`].
    pub fn config(&mut self) -> &mut Config {
        &mut self.config
    }

    /// Finds the stream or creates it, waits until it is ACTIVE, and starts. Blocks for as long.
    ///
    /// # Errors
    /// When there is no such stream at the end, or no thread.
    pub fn create(self) -> Result<Stream, Error> {
        let config = self.config;
        if config.session.create {
            create::run(&config, None)?;
        }
        let (frames, fed) = sync_channel(QUEUED_FRAMES);
        let (asks, asked) = Server::queue();
        let course = Course::embedded(config, (asks.clone(), asked))?;
        let mut source = Some(Fed {
            frames: fed,
            now: None,
        });
        let open = move || match source.take() {
            Some(source) => Ok(Box::new(source) as Box<dyn Source>),
            None => Err(source::Error::Unusable {
                place: "the program's frames".into(),
                reason: "they can be taken once only".into(),
            }),
        };
        let run = std::thread::Builder::new()
            .name("kvs".into())
            .stack_size(STACK_BYTES)
            .spawn(move || app::block_on(Arc::new(course).run(Box::new(open)))?)
            .map_err(Error::Thread)?;
        Ok(Stream { frames, asks, run })
    }
}

impl Stream {
    /// Takes a frame into the buffer; copies it. Returns at once, unless the buffer is full and `config().when_full` says to
    /// wait. What comes before the first key frame is dropped and counted.
    ///
    /// # Errors
    /// When the stream has ended.
    pub fn put_frame(&self, frame: &Frame<'_>) -> Result<(), Error> {
        let owned = Owned {
            codec: frame.codec,
            data: frame.data.to_vec(),
            at: frame.at.unwrap_or_else(|| Clock.monotonic()),
        };
        self.frames.send(owned).map_err(|_| Error::Ended)
    }

    /// How it is, with all figures: the object that `status --json` shows.
    ///
    /// # Errors
    /// When the stream has ended.
    pub fn metrics(&self) -> Result<Value, Error> {
        self.ask(Request::Status).map(Value::Object)
    }

    /// Begins anew: closes the connections, and throws away what is held unless `keep_buffer`.
    ///
    /// # Errors
    /// When the stream has ended, or is ending.
    pub fn reset(&self, keep_buffer: bool) -> Result<(), Error> {
        self.ask(Request::Reset { keep_buffer }).map(drop)
    }

    /// Stops uploading after the fragment under way, and waits for that; the buffer keeps the newest frames. The fragment
    /// ends with the next key frame that is put, so another thread has to go on with that.
    ///
    /// # Errors
    /// When the stream has ended, or is ending.
    pub fn pause(&self) -> Result<(), Error> {
        self.ask(Request::Pause).map(drop)
    }

    /// Goes on uploading.
    ///
    /// # Errors
    /// When the stream has ended, or is ending.
    pub fn resume(&self) -> Result<(), Error> {
        self.ask(Request::Resume).map(drop)
    }

    /// Takes no more frames, sends what is held, waits for its last PERSISTED (for `config().grace` at most), and says what
    /// it came to.
    ///
    /// # Errors
    /// When the run could not start, or go on.
    pub fn stop(self) -> Result<Summary, Error> {
        let Self { frames, run, .. } = self;
        // No more will come: that is the end of the media.
        drop(frames);
        join(run)
    }

    /// Ends at once, without sending what is held, and says what is lost.
    ///
    /// # Errors
    /// When the run could not start, or go on.
    pub fn free(self) -> Result<Summary, Error> {
        // Where it has ended already, its summary tells.
        let _ = self.ask(Request::Free);
        join(self.run)
    }

    fn ask(&self, request: Request) -> Result<Map<String, Value>, Error> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            request,
            answer,
            media: None,
        };
        // The queue is that of a run which looks at it all the time.
        self.asks.blocking_send(asked).map_err(|_| Error::Ended)?;
        let answer = answered.blocking_recv().map_err(|_| Error::Ended)?;
        answer.map_err(Error::Refused)
    }
}

fn join(run: JoinHandle<Result<Summary, app::Error>>) -> Result<Summary, Error> {
    match run.join() {
        Ok(result) => Ok(result?),
        // A fault of this program: it goes on where the caller's own would.
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Frames that a program puts.
struct Fed {
    frames: Receiver<Owned>,
    now: Option<Owned>,
}

impl Source for Fed {
    fn describe(&self) -> String {
        "the program's frames".into()
    }

    fn read(&mut self, wait: Wait<'_>) -> Result<Read<'_>, source::Error> {
        match self.frames.recv_timeout(wait.nap()) {
            Ok(frame) => {
                let frame = self.now.insert(frame);
                Ok(Read::Packet(Packet {
                    codec: frame.codec,
                    data: &frame.data,
                    at: frame.at,
                    discontinuity: false,
                }))
            }
            Err(RecvTimeoutError::Timeout) => Ok(Read::Nothing),
            Err(RecvTimeoutError::Disconnected) => Ok(Read::End),
        }
    }
}
