//! One run, from the first look at its configuration to its report: the capture thread, control, the timer, the signals.
//!
//! A [`Course`] is what outlives a thread that panics ([`crate::survive`]): the ring and all that was decided so far. The
//! network side, everything that needs a runtime, can be started anew on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{Level, info, warn};

use crate::app::{self, Config, Error, Open, Signals, Summary};
use crate::chain;
use crate::clock::Clock;
use crate::kvs::aws::Aws;
use crate::kvs::control::{Control, Means, Order, Status};
use crate::kvs::session::Outcome;
use crate::kvs::tls;
use crate::kvs::transport::Sockets;
use crate::log;
use crate::report::Report;
use crate::ring::Ring;
use crate::ring::shared::{Reader, Writer};
use crate::shutdown::{self, Shutdown, Trigger};
use crate::source;
use crate::source::capture::{self, Policy};
use crate::status::{Line, Look, Overflow, Turn};

/// Name of the capture thread.
pub const CAPTURE: &str = "capture";

/// Its stack: it parses NAL units and makes system calls, nothing deep.
const CAPTURE_STACK_BYTES: usize = 128 * 1024;

/// A source that was told to end looks up at least every [`crate::source::PIPE_POLL`]; one that has not by then hangs.
const HUNG_AFTER: Duration = Duration::from_secs(2);

/// How often the status line is drawn.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// How often a log line says how it goes, where nobody watches.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// How long somebody may hold the ring's lock, at the very most: the copy of a large frame on a busy board.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// How capturing ended.
#[derive(Debug, Clone)]
enum Captured {
    /// In order.
    Ended(capture::End),
    /// By a failure.
    Failed(String),
}

/// What was decided so far.
#[derive(Debug, Default)]
struct Plan {
    /// Dropping it ends the capture.
    trigger: Option<Trigger>,
    /// When it is dropped because the time is over.
    ends_at: Option<Instant>,
    /// Whether a signal has come: the next one ends at once.
    signalled: bool,
    /// Set when the source is told to end: a driver or a dead network file may keep the thread for ever.
    hung_at: Option<Instant>,
    /// Until when what is held may still be sent, once the media is at its end.
    drain: Option<Instant>,
}

impl Plan {
    fn end_capture(&mut self, now: Instant) {
        self.trigger = None;
        self.hung_at.get_or_insert(now + HUNG_AFTER);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Course {
    config: Config,
    clock: Clock,
    started: Instant,
    tls: Arc<ClientConfig>,
    ring: Reader,
    shutdown: Shutdown,
    captured: watch::Sender<Option<Captured>>,
    status: watch::Sender<Status>,
    sockets: Sockets,
    plan: Mutex<Plan>,
}

/// What the network side has before anything is captured.
pub struct Network {
    signals: Signals,
    aws: Aws,
    #[cfg(feature = "local")]
    _endpoint: Option<crate::local::Endpoint>,
}

/// Tells how capturing ended, also when nobody else does.
struct Ending(watch::Sender<Option<Captured>>);

impl Ending {
    fn tell(&self, captured: Captured) {
        self.0.send_if_modified(|told| {
            let first = told.is_none();
            told.get_or_insert(captured);
            first
        });
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.tell(Captured::Failed(FAULT.into()));
    }
}

const FAULT: &str = "capturing hit a fault of this program; please report it";

impl Course {
    /// A run that has not begun. Takes the ring's memory.
    ///
    /// # Errors
    /// When the CA file or the report's place is of no use.
    pub fn new(config: Config) -> Result<Self, Error> {
        let clock = Clock;
        if let Some(app::ReportTo::File(path)) = &config.report {
            app::check_place(path)?;
        }
        let tls = tls::client_config(config.ca_file.as_deref())?;
        let (trigger, shutdown) = shutdown::pair();
        Ok(Self {
            clock,
            started: clock.now(),
            tls,
            ring: Reader::new(Ring::new(config.buffer_bytes)),
            shutdown,
            captured: watch::channel(None).0,
            status: watch::channel(Status::default()).0,
            sockets: Sockets::default(),
            plan: Mutex::new(Plan {
                trigger: Some(trigger),
                ..Plan::default()
            }),
            config,
        })
    }

    /// Streams until the media ends, the time is over or a signal comes, and sends what is left. `open` is called on the
    /// capture thread.
    ///
    /// # Errors
    /// When the run could not start.
    pub async fn run(self: Arc<Self>, open: Open) -> Result<Summary, Error> {
        let network = self.network().await?;
        self.capture(open, self.ring.writer())?;
        lock(&self.plan).ends_at = self
            .config
            .duration
            .and_then(|duration| self.clock.now().checked_add(duration));
        self.stream(network).await
    }

    /// Goes on where a network side was lost: its connections end, and what they carried is sent again.
    ///
    /// # Errors
    /// When the network side cannot start again.
    pub async fn go_on(self: Arc<Self>) -> Result<Summary, Error> {
        self.sockets.shut_down();
        let again = self.ring.with(Ring::rewind_all);
        info!(fragments = again, "starting the network side anew");
        let network = self.network().await?;
        self.stream(network).await
    }

    /// Goes on where the capture thread was lost, with a new one, which `open`s the camera anew. What is no camera cannot
    /// be opened in the middle: then the media is at its end, as it is where the camera cannot be had back.
    pub fn capture_again(&self, open: Result<Open, source::Error>) {
        let writer = self.ring.writer();
        let again = match open {
            _ if !self.policy().reopen => Err(FAULT.into()),
            Ok(open) => {
                info!("opening the camera anew");
                self.ring.with(Ring::fall_silent);
                let started = self.capture(open, writer);
                started.map_err(|error| chain(&error).to_string())
            }
            Err(error) => Err(chain(&error).to_string()),
        };
        if let Err(why) = again {
            // The writer, dropped by now or in a moment, has closed the ring.
            Ending(self.captured.clone()).tell(Captured::Failed(why));
        }
    }

    /// Whether a thread that is lost has left the ring alone: its lock can be had.
    pub fn has_ring(&self) -> bool {
        let until = self.clock.now() + LOCK_PATIENCE;
        loop {
            if self.ring.is_free() {
                return true;
            }
            if self.clock.now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn policy(&self) -> Policy {
        let config = &self.config;
        Policy {
            when_full: config.when_full,
            silence: config.silence,
            reopen: app::is_camera(&config.device) && !config.exit_on_camera_loss,
        }
    }

    fn capture(&self, open: Open, writer: Writer) -> Result<(), Error> {
        let (policy, clock, shutdown) = (self.policy(), self.clock, self.shutdown.clone());
        let ending = Ending(self.captured.clone());
        std::thread::Builder::new()
            .name(CAPTURE.into())
            .stack_size(CAPTURE_STACK_BYTES)
            .spawn(move || {
                let result = capture::run(open, writer, policy, clock, &shutdown);
                ending.tell(match result {
                    Ok(end) => Captured::Ended(end),
                    Err(error) => Captured::Failed(chain(&error).to_string()),
                });
            })
            .map(drop)
            .map_err(|source| Error::System {
                what: "the capture thread",
                source,
            })
    }

    async fn network(&self) -> Result<Network, Error> {
        let signals = Signals::new()?;
        #[cfg_attr(
            not(feature = "local"),
            expect(unused_mut, reason = "only --local changes them")
        )]
        let mut options = self.config.aws.clone();
        #[cfg(feature = "local")]
        let endpoint = match &self.config.local {
            Some(local) => Some(app::start_local(local, &mut options).await?),
            None => None,
        };
        let aws = Aws::load(options, &self.tls, self.clock).await?;
        Ok(Network {
            signals,
            aws,
            #[cfg(feature = "local")]
            _endpoint: endpoint,
        })
    }

    async fn stream(&self, network: Network) -> Result<Summary, Error> {
        let Network {
            mut signals, aws, ..
        } = network;
        info!(
            stream = self.config.aws.stream,
            place = aws.place(),
            "streaming to Kinesis Video Streams"
        );
        let control = Control::new(Means {
            settings: self.config.session.clone(),
            aws,
            tls: Arc::clone(&self.tls),
            ring: self.ring.clone(),
            clock: self.clock,
            codec: self.config.codec,
            status: self.status.clone(),
            sockets: self.sockets.clone(),
        });
        let (orders, received) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(control.run(received));
        let outcome = self.conduct(&mut signals, &orders, &mut tasks).await?;
        log::end_status();
        self.conclude(&outcome)
    }

    async fn conduct(
        &self,
        signals: &mut Signals,
        orders: &mpsc::UnboundedSender<Order>,
        tasks: &mut JoinSet<Outcome>,
    ) -> Result<Outcome, Error> {
        let mut captured = self.captured.subscribe();
        let mut capturing = lock(&self.plan).drain.is_none();
        if let Some(until) = lock(&self.plan).drain {
            let _ = orders.send(Order::Drain(until));
        }
        let watched = log::is_watched() && tracing::enabled!(Level::INFO);
        let mut ticks = tokio::time::interval(STATUS_EVERY);
        let mut before = self.look();
        let mut logged = before;
        let mut overflow = Overflow::default();
        loop {
            let ends_at = {
                let plan = lock(&self.plan);
                plan.ends_at.filter(|_| plan.trigger.is_some())
            };
            let end = async {
                match ends_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = signals.next() => self.signalled(orders),
                () = end => {
                    info!("the time is over: sending what is left");
                    lock(&self.plan).end_capture(self.clock.now());
                }
                _ = captured.wait_for(Option::is_some), if capturing => {
                    capturing = false;
                    if matches!(&*self.captured.borrow(), Some(Captured::Ended(capture::End::Media))) {
                        info!("the media is at its end: sending what is left");
                    }
                    self.drain(orders);
                }
                Some(outcome) = tasks.join_next() => {
                    return outcome.map_err(|error| Error::System {
                        what: "control",
                        source: std::io::Error::other(error),
                    });
                }
                _ = ticks.tick() => {
                    let now = self.look();
                    if capturing && lock(&self.plan).hung_at.take_if(|at| now.at >= *at).is_some() {
                        warn!("the source does not answer: going on without it");
                        self.ring.with(Ring::close);
                        self.drain(orders);
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

    fn signalled(&self, orders: &mpsc::UnboundedSender<Order>) {
        let mut plan = lock(&self.plan);
        if plan.signalled {
            warn!("ending at once");
            let _ = orders.send(Order::Abort);
        } else {
            plan.signalled = true;
            plan.end_capture(self.clock.now());
            info!("stopping: sending what is left; once more ends at once");
        }
    }

    fn drain(&self, orders: &mpsc::UnboundedSender<Order>) {
        let until = *lock(&self.plan)
            .drain
            .get_or_insert_with(|| self.clock.now() + self.config.grace);
        let _ = orders.send(Order::Drain(until));
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

    fn conclude(&self, outcome: &Outcome) -> Result<Summary, Error> {
        let config = &self.config;
        let counts = self.ring.with(|ring| {
            ring.abandon();
            ring.counts()
        });
        let failed = match &*self.captured.borrow() {
            Some(Captured::Failed(why)) => Some(why.clone()),
            _ => None,
        };
        let no_source = failed.is_some();
        let failure = failed.or_else(|| match outcome {
            Outcome::GaveUp(failure) => Some(failure.message.clone()),
            Outcome::OutOfTime(failure) => failure.as_ref().map(|failure| failure.message.clone()),
            Outcome::Done => None,
        });
        let report = Report {
            stream: config.aws.stream.clone(),
            counts,
            connections: self.status.borrow().connections,
            duration: self.clock.now() - self.started,
            failure,
        };
        let exit = app::exit(&report, no_source, outcome);
        app::publish(&report, config.report.as_ref())?;
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

/// The guard of `mutex`. What is behind it is whole after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn a_ring_whose_lock_nobody_gives_back_is_lost() {
        let config = crate::cli::Args::parse_from(["kvsProducerApp", "cam"]).into_config();
        let course = Course::new(config.expect("a channel is enough")).expect("no CA file");
        assert!(course.has_ring());
        course.ring.with(|_| assert!(!course.has_ring()));
        assert!(course.has_ring());
    }
}
