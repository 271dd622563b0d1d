//! One run, from the first look at its configuration to its report: the capture thread, control, the timer, the signals.
//!
//! A [`Course`] is what outlives a thread that panics ([`crate::survive`]): the ring and all that was decided so far. The
//! network side, everything that needs a runtime, can be started anew on it.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{Level, info, warn};

use crate::app::{self, Config, Error, Open, Signals, Summary};
use crate::chain;
use crate::clock::Clock;
use crate::codes::Code;
use crate::detail;
use crate::kvs::aws::{self, Aws};
use crate::kvs::control::{Control, Means, Order, Status};
use crate::kvs::session::{Outcome, Reset};
use crate::kvs::tls;
use crate::kvs::transport::Sockets;
use crate::log;
use crate::operate::desk::{self, Asker, Desk, Next, Upload, refuse};
use crate::operate::export;
use crate::operate::gauge::Gauge;
use crate::operate::health::{Facts, Health};
use crate::operate::metrics::{Buffer, Camera, Metrics};
use crate::operate::notify::Manager;
use crate::operate::protocol::{self, Put, Request};
use crate::operate::put;
use crate::operate::socket::{Asked, Media, Server};
use crate::repeats::Repeats;
use crate::report::Report;
use crate::ring::Ring;
use crate::ring::shared::{Reader, Writer};
use crate::shutdown::{self, Shutdown, Trigger};
use crate::source;
use crate::source::capture::{self, News, Policy};
use crate::status::{Line, Look, Turn};

/// Name of the capture thread.
pub const CAPTURE: &str = "capture";

/// Name of the thread that reads what somebody puts into the stream.
pub const PUT: &str = "put";

/// Stack of either: it parses NAL units and makes system calls, nothing deep.
const CAPTURE_STACK_BYTES: usize = 128 * 1024;

/// A source that was told to end looks up at least every [`source::LOOK_EVERY`]; one that has not by then hangs.
const HUNG_AFTER: Duration = Duration::from_secs(2);

/// How often the status line is drawn, and how it goes is looked at while something happens.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// How often a log line says how it goes, where nobody watches: `status` tells whoever wants to know.
const LOG_EVERY: Duration = Duration::from_mins(10);

/// For those who wait for the end to take their answer.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long somebody may hold the ring's lock, at the very most: the copy of a large frame on a busy board.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// How often a lost thread looks whether another has taken over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

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
    /// Uploading is stopped, because somebody wants it so.
    paused: bool,
    /// Somebody puts media into the stream, and has its connection for so long.
    putting: bool,
    /// When uploading was last resumed.
    resumed: Option<Instant>,
}

impl Plan {
    /// Whether the run is at its end, and nothing but what is held is sent.
    fn ends(&self) -> bool {
        self.trigger.is_none() || self.drain.is_some()
    }

    fn end_capture(&mut self, now: Instant) {
        self.trigger = None;
        self.hung_at.get_or_insert(now + HUNG_AFTER);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Course {
    config: Config,
    part: Part,
    /// Where a program that embeds this one asks.
    asks: Mutex<Option<Asks>>,
    clock: Clock,
    started: Instant,
    tls: Arc<ClientConfig>,
    ring: Reader,
    shutdown: Shutdown,
    captured: watch::Sender<Option<Captured>>,
    status: watch::Sender<Status>,
    sockets: Sockets,
    plan: Mutex<Plan>,
    news: watch::Sender<News>,
    gauge: Mutex<Gauge>,
    server: OnceLock<Server>,
    manager: Mutex<Option<Manager>>,
    /// The run of what is being put into the stream.
    beside: Beside,
    /// What leads to the service.
    options: Mutex<Option<aws::Options>>,
    /// Whether an overflow began, or ended, lately.
    repeats: Mutex<Repeats<bool>>,
    /// Turns that the network side has taken.
    turns: AtomicU32,
}

/// What a run is to its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All of it: signals and the service manager are its own.
    Program,
    /// Something that is put into the stream of another run.
    Put,
    /// Somebody else's.
    Embedded,
}

impl Part {
    /// Name of the capture thread.
    fn thread(self) -> &'static str {
        match self {
            Self::Program => CAPTURE,
            Self::Put => PUT,
            Self::Embedded => "kvs-capture",
        }
    }
}

/// Where a run keeps the one that goes on beside it.
pub type Beside = Arc<Mutex<Option<Arc<Course>>>>;

/// Both ends of a queue of requests.
type Asks = (mpsc::Sender<Asked>, mpsc::Receiver<Asked>);

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
    /// A run that has not begun, with an empty ring.
    ///
    /// # Errors
    /// When the CA file or the report's place is of no use.
    pub fn new(config: Config) -> Result<Self, Error> {
        let clock = Clock;
        if let Some(app::ReportTo::File(path)) = &config.report {
            app::check_place(path)?;
        }
        let tls = tls::client_config(config.ca_file.as_deref())?;
        let (trigger, shutdown) = shutdown::pair().map_err(app::no_descriptor)?;
        Ok(Self {
            part: Part::Program,
            asks: Mutex::default(),
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
            news: watch::channel(News::default()).0,
            gauge: Mutex::default(),
            server: OnceLock::new(),
            manager: Mutex::default(),
            beside: Beside::default(),
            options: Mutex::default(),
            repeats: Mutex::default(),
            turns: AtomicU32::new(0),
            config,
        })
    }

    /// A run beside another one of this process: what happens to its capture thread is not the other's concern.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn beside(config: Config) -> Result<Self, Error> {
        let mut course = Self::new(config)?;
        course.part = Part::Put;
        Ok(course)
    }

    /// A run in somebody else's program, which asks it through `asks`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn embedded(config: Config, asks: Asks) -> Result<Self, Error> {
        let mut course = Self::new(config)?;
        course.part = Part::Embedded;
        course.asks = Mutex::new(Some(asks));
        Ok(course)
    }

    /// Streams until the media ends, the time is over or a signal comes, and sends what is left. `open` is called on the
    /// capture thread.
    ///
    /// # Errors
    /// When the run could not start.
    pub async fn run(self: Arc<Self>, open: Open) -> Result<Summary, Error> {
        let config = &self.config;
        if let Some(server) = Server::open(&config.control, &config.aws.stream)? {
            detail!(path = %server.path().display(), "commands are taken");
            let _ = self.server.set(server);
        }
        // One run tells the service manager how it is.
        if self.part == Part::Program {
            *lock(&self.manager) = Manager::from_environment();
        }
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
        // Whoever put media went with it.
        self.put_is_lost();
        lock(&self.plan).putting = false;
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

    /// Whether the network side, started anew, takes turns before `patience` is over.
    pub fn comes_up(&self, patience: Duration) -> bool {
        let before = self.turns.load(Ordering::Relaxed);
        let until = self.clock.now() + patience;
        while self.clock.now() < until {
            std::thread::sleep(LOOK_EVERY);
            // The first is taken before every lock was had once.
            if self.turns.load(Ordering::Relaxed).wrapping_sub(before) > 1 {
                return true;
            }
        }
        false
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
        let (ending, news) = (Ending(self.captured.clone()), self.news.clone());
        std::thread::Builder::new()
            .name(self.part.thread().into())
            .stack_size(CAPTURE_STACK_BYTES)
            .spawn(move || {
                let result = capture::run(open, writer, policy, clock, &shutdown, news);
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
        let signals = match self.part {
            Part::Program => Signals::new()?,
            Part::Put | Part::Embedded => Signals::default(),
        };
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
        *lock(&self.options) = Some(options.clone());
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
            start: self.config.start,
            status: self.status.clone(),
            sockets: self.sockets.clone(),
        });
        let (orders, received) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(control.run(received));
        let asks = lock(&self.asks).take();
        let (asks, asked) = asks.unwrap_or_else(Server::queue);
        let serving = async {
            tokio::select! {
                never = self.serve(asks.clone()) => never,
                never = self.export(asks.clone()) => never,
            }
        };
        tokio::pin!(serving);
        let mut desk = Desk::new(orders, asked);
        let outcome = tokio::select! {
            outcome = self.conduct(&mut signals, &mut desk, &mut tasks) => outcome?,
            never = &mut serving => match never {},
        };
        log::end_status();
        self.write_metrics();
        let concluded = self.conclude(&outcome);
        if let Ok(summary) = &concluded {
            desk.close(summary);
        }
        if let Some(server) = self.server.get() {
            // Whoever waits for the end hears of it.
            let heard = async {
                tokio::select! {
                    () = server.quiet() => {}
                    never = &mut serving => match never {},
                }
            };
            let _ = tokio::time::timeout(LAST_WORDS, heard).await;
            server.retire();
        }
        concluded
    }

    async fn serve(&self, asks: mpsc::Sender<Asked>) -> Infallible {
        if let Some(server) = self.server.get() {
            match server.serve(asks).await {
                Ok(never) => match never {},
                Err(error) => warn!(%error, "no commands are taken"),
            }
        }
        std::future::pending().await
    }

    async fn export(&self, asks: mpsc::Sender<Asked>) -> Infallible {
        if let Some(port) = self.config.export.port {
            match export::serve(port, asks).await {
                Ok(never) => match never {},
                Err(error) => warn!(%error, port, "no metrics are served"),
            }
        }
        std::future::pending().await
    }

    /// Writes the metrics to a file where that is wanted.
    fn write_metrics(&self) {
        let Some(path) = &self.config.export.file else {
            return;
        };
        if let Err(error) = export::write(path, &self.metrics().prometheus()) {
            warn!(%error, path = %path.display(), "the metrics are not written");
        }
    }

    async fn conduct(
        &self,
        signals: &mut Signals,
        desk: &mut Desk,
        tasks: &mut JoinSet<Outcome>,
    ) -> Result<Outcome, Error> {
        let mut captured = self.captured.subscribe();
        let mut status = self.status.subscribe();
        let mut capturing = lock(&self.plan).drain.is_none();
        if self.is_held() {
            desk.order(Order::Pause);
        }
        if let Some(until) = lock(&self.plan).drain {
            desk.order(Order::Drain(until));
        }
        let watched = log::is_watched() && tracing::enabled!(Level::INFO);
        let mut news = self.news.subscribe();
        let mut before = self.look();
        let (mut logged, mut written) = (before, before);
        // When to look again; and since when there is nothing new to see.
        let (mut due, mut calm) = (Some(before.at), before.at);
        loop {
            self.turns.fetch_add(1, Ordering::Relaxed);
            let ends_at = {
                let plan = lock(&self.plan);
                plan.ends_at.filter(|_| plan.trigger.is_some())
            };
            let soon = before.at + STATUS_EVERY;
            let asleep = due.is_none_or(|due| due > soon);
            tokio::select! {
                biased;
                () = signals.next() => self.signalled(desk),
                () = at(ends_at) => {
                    info!("the time is over: sending what is left");
                    lock(&self.plan).end_capture(self.clock.now());
                }
                how = end_of(&mut captured), if capturing => {
                    capturing = false;
                    if matches!(how, Some(Captured::Ended(capture::End::Media))) {
                        info!("the media is at its end: sending what is left");
                    }
                    self.drain(desk);
                }
                Some(outcome) = tasks.join_next() => {
                    return outcome.map_err(|error| Error::System {
                        what: "control",
                        source: std::io::Error::other(error),
                    });
                }
                Some(next) = desk.next() => match next {
                    Next::Asked(asked) => self.answer(asked, desk),
                    Next::Uploaded => self.put_is_over(desk),
                },
                Ok(()) = status.changed() => {
                    if status.borrow_and_update().idle {
                        self.idle(desk);
                    }
                }
                Ok(()) = news.changed() => {}
                () = self.ring.moved_on(&before.counts), if asleep => {}
                () = at(due) => {
                    let now = self.sample();
                    if capturing && lock(&self.plan).hung_at.take_if(|at| now.at >= *at).is_some() {
                        warn!("the source does not answer: going on without it");
                        self.ring.with(Ring::close);
                        self.drain(desk);
                    }
                    self.tell_manager(&now);
                    if now.at - written.at >= export::WRITE_EVERY {
                        self.write_metrics();
                        written = now;
                    }
                    if watched {
                        log::show_status(&Line::between(self.started, &before, &now).to_string());
                    } else if now.at - logged.at >= LOG_EVERY {
                        info!("{}", Line::between(self.started, &logged, &now));
                        logged = now;
                    }
                    let still = now.is_still(&before) && !lock(&self.gauge).overflows();
                    before = now;
                    if !still {
                        calm = now.at;
                    }
                    let again = now.at + STATUS_EVERY;
                    due = Some(again);
                    if still && !watched {
                        let hung_at = lock(&self.plan).hung_at.filter(|_| capturing);
                        let file = self.config.export.file.as_ref();
                        let dues = [
                            hung_at,
                            file.map(|_| written.at + export::WRITE_EVERY),
                            self.manager_due(&now, calm),
                            Some(logged.at + LOG_EVERY),
                        ];
                        due = dues.into_iter().flatten().min().map(|due| due.max(again));
                    }
                    continue;
                }
            }
            calm = self.clock.now();
            due = Some(due.map_or(soon, |due| due.min(soon)));
        }
    }

    /// Does what somebody asks for, or has it done.
    fn answer(&self, asked: Asked, desk: &mut Desk) {
        let Asked {
            request,
            answer,
            media,
        } = asked;
        let done = match request {
            Request::Status => self.metrics().json(),
            Request::Metrics => json!({ "prometheus": self.metrics().prometheus() }),
            Request::Buffer => self.buffer().json(),
            Request::Log(level) => match log::set_level(level) {
                Some(before) => json!({
                    "level": protocol::level_name(level),
                    "was": protocol::level_name(before),
                }),
                None => return refuse(answer, "the log is not this program's own"),
            },
            Request::Stop => {
                info!("stopping, as somebody wants it: sending what is left");
                let mut plan = lock(&self.plan);
                plan.signalled = true;
                plan.end_capture(self.clock.now());
                return desk.at_end(answer);
            }
            Request::Free => {
                warn!("ending at once, as somebody wants it");
                lock(&self.plan).end_capture(self.clock.now());
                desk.order(Order::Abort);
                return desk.at_end(answer);
            }
            Request::Pause | Request::Resume | Request::Reset { .. } | Request::Put(_)
                if lock(&self.plan).ends() =>
            {
                return refuse(
                    answer,
                    "the producer is ending: what it holds is being sent",
                );
            }
            Request::Pause => {
                info!(
                    "uploading is paused, as somebody wants it: the buffer keeps the newest media"
                );
                lock(&self.plan).paused = true;
                desk.order(Order::Pause);
                if !self.status.borrow().idle {
                    return desk.when_idle(answer);
                }
                desk::paused()
            }
            Request::Resume => {
                info!("uploading goes on, as somebody wants it");
                lock(&self.plan).paused = false;
                self.resume(desk);
                json!({ "paused": false })
            }
            Request::Reset { keep_buffer } => {
                info!(keep_buffer, "beginning anew, as somebody wants it");
                let what = if keep_buffer {
                    Reset::Connections
                } else {
                    Reset::All
                };
                return desk.reset(what, answer);
            }
            Request::Put(how) => return self.put(how, media, answer, desk),
        };
        desk::reply(answer, done);
    }

    /// Whether nothing is uploaded because somebody wants it so.
    fn is_held(&self) -> bool {
        let plan = lock(&self.plan);
        plan.paused || plan.putting
    }

    fn resume(&self, desk: &Desk) {
        if self.is_held() {
            return;
        }
        lock(&self.plan).resumed = Some(self.clock.now());
        desk.order(Order::Resume);
    }

    /// Has media put into the stream, as soon as its one connection is free.
    fn put(&self, how: Put, media: Option<Media>, answer: Asker, desk: &mut Desk) {
        let Some(media) = media else {
            return refuse(answer, "no media follows the request");
        };
        if std::mem::replace(&mut lock(&self.plan).putting, true) {
            return refuse(answer, "somebody else puts media into the stream just now");
        }
        info!("somebody puts media into the stream: uploading pauses for so long");
        desk.order(Order::Pause);
        let upload = Upload { how, media, answer };
        desk.put_when_idle(upload);
        if self.status.borrow().idle {
            self.idle(desk);
        }
    }

    /// No connection is left.
    fn idle(&self, desk: &mut Desk) {
        desk.idle();
        if let Some(upload) = desk.take_upload() {
            let options = lock(&self.options).clone();
            let options = options.unwrap_or_else(|| self.config.aws.clone());
            let config = put::of_client(&self.config, upload.how, options);
            desk.uploads(upload, config, Arc::clone(&self.beside));
        }
    }

    /// The thread that reads what is put is lost, and so is that: its run is told, and ends.
    pub fn put_is_lost(&self) {
        if let Some(lost) = lock(&self.beside).take() {
            lost.ring.with(Ring::close);
            Ending(lost.captured.clone()).tell(Captured::Failed(FAULT.into()));
        }
    }

    /// Media was put, or could not be: uploading goes on.
    fn put_is_over(&self, desk: &Desk) {
        info!("uploading goes on");
        lock(&self.beside).take();
        lock(&self.plan).putting = false;
        self.resume(desk);
    }

    fn buffer(&self) -> Buffer {
        let largest = self.ring.with(|ring| ring.largest_frame());
        let now = self.sample();
        lock(&self.gauge).buffer(&now, largest)
    }

    fn metrics(&self) -> Metrics {
        let now = self.sample();
        let (buffer, status) = (self.buffer(), self.status.borrow().clone());
        let camera = {
            let news = self.news.borrow();
            Camera {
                opened: news.opened,
                lost: news.lost,
            }
        };
        let (health, _) = self.health(&now);
        let gauge = lock(&self.gauge);
        Metrics {
            channel: self.config.aws.stream.clone(),
            health,
            uptime: now.at - self.started,
            counts: now.counts,
            buffer,
            pressure: gauge.pressure(),
            camera,
            rates: gauge.rates(),
            connections: status.connections,
            streaming: status.streaming,
            last_persisted_ms: status.last_persisted.map(|(timecode, _)| timecode.0),
            clock_behind_ms: status.clock_behind_ms,
            meters: status.meters,
            log_level: log::level().map_or("", protocol::level_name),
        }
    }

    /// How it is, and whether a service manager should take it for alive.
    fn health(&self, now: &Look) -> (Health, bool) {
        let (status, news) = (self.status.borrow(), self.news.borrow());
        let plan = lock(&self.plan);
        let facts = Facts {
            now: now.at,
            wall: self.clock.wall(),
            since: plan.resumed.unwrap_or(self.started),
            paused: plan.paused || plan.putting,
            draining: plan.ends(),
            last_frame: lock(&self.gauge).last_frame(),
            camera_trouble: news.trouble.as_deref(),
            streaming: status.streaming,
            failure: status.failure.as_ref(),
            last_persisted: status.last_persisted.map(|(_, at)| at),
            fragment: status.fragment,
            behind: now.behind(),
        };
        let health = Health::of(&facts);
        let alive = health.is_alive(&facts);
        (health, alive)
    }

    fn tell_manager(&self, now: &Look) {
        if let Some(manager) = lock(&self.manager).as_mut() {
            let (health, alive) = self.health(now);
            manager.tell(now.at, &health, alive);
        }
    }

    /// When the manager is to be told something although nothing happens, and nothing has since `calm`.
    fn manager_due(&self, now: &Look, calm: Instant) -> Option<Instant> {
        let due = lock(&self.manager).as_ref()?.due();
        let (health, _) = self.health(now);
        let calm_for = now.at - calm;
        // What time alone turns is told when it does. From then on it only lasts: that is told whenever it has doubled.
        let every = if calm_for > health.limit {
            calm_for
        } else {
            STATUS_EVERY
        };
        let again = now.at + every;
        Some(due.map_or(again, |due| due.min(again)))
    }

    fn tell(&self, turn: Option<Turn>) {
        let Some(turn) = turn else { return };
        let began = turn == Turn::Began;
        let Some(unsaid) = lock(&self.repeats).say(began, self.clock.now()) else {
            return;
        };
        let unsaid = (unsaid > 0).then_some(unsaid);
        match turn {
            Turn::Began => warn!(
                unsaid,
                "the buffer is full and the oldest fragments are given up: the network does not keep up with the camera"
            ),
            Turn::Ended { frames, lasted } => info!(
                frames,
                lasted_s = lasted.as_secs(),
                unsaid,
                "the buffer has room again; so many frames were given up"
            ),
        }
    }

    fn signalled(&self, desk: &Desk) {
        let mut plan = lock(&self.plan);
        if plan.signalled {
            warn!("ending at once");
            desk.order(Order::Abort);
        } else {
            plan.signalled = true;
            plan.end_capture(self.clock.now());
            info!("stopping: sending what is left; once more ends at once");
        }
    }

    fn drain(&self, desk: &Desk) {
        let until = *lock(&self.plan)
            .drain
            .get_or_insert_with(|| self.clock.now() + self.config.grace);
        desk.order(Order::Drain(until));
        self.tell_manager(&self.look());
    }

    /// A look that is remembered: rates are those between such.
    fn sample(&self) -> Look {
        let now = self.look();
        let turn = lock(&self.gauge).look(&now);
        self.tell(turn);
        now
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
        let given_up = match outcome {
            Outcome::GaveUp(failure) => Some(failure),
            Outcome::OutOfTime(failure) => failure.as_ref(),
            Outcome::Done => None,
        };
        let (failure, code) = match (failed, given_up) {
            (Some(why), _) => (Some(why), Some(Code::SOURCE)),
            (None, Some(failure)) => (Some(failure.message.clone()), Some(failure.code)),
            (None, None) => (None, None),
        };
        let report = Report {
            stream: config.aws.stream.clone(),
            counts,
            connections: self.status.borrow().connections,
            duration: self.clock.now() - self.started,
            failure,
            code,
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

/// Waits until capturing has ended. It hands out a copy: in a `select!` a borrowed value would be held until the arm is done,
/// and who borrows once more behind a writer that waits (the capture thread, on its way out) waits for ever.
async fn end_of(captured: &mut watch::Receiver<Option<Captured>>) -> Option<Captured> {
    captured.wait_for(Option::is_some).await.ok()?.clone()
}

/// Waits until then; for ever where that is never.
async fn at(when: Option<Instant>) {
    match when {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The guard of `mutex`. What is behind it is whole after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_ring_whose_lock_nobody_gives_back_is_lost() {
        let config = crate::cli::Args::parse_from(["kvsProducerApp", "cam"]).into_config();
        let course = Course::new(config.expect("a channel is enough")).expect("no CA file");
        assert!(course.has_ring());
        course.ring.with(|_| assert!(!course.has_ring()));
        assert!(course.has_ring());
    }

    /// The capture thread tells twice: when it ends, and when what it told with is dropped.
    #[test]
    fn whoever_tells_again_how_capturing_ended_is_in_nobodys_way() {
        for _ in 0..200 {
            let config = crate::cli::Args::parse_from(["kvsProducerApp", "cam"]).into_config();
            let course = Course::new(config.expect("a channel is enough")).expect("no CA file");
            let ending = Ending(course.captured.clone());
            let (concluded, conclusion) = std::sync::mpsc::channel();
            beside(move || {
                let _ = concluded.send(app::block_on(conduct(course)));
            });
            let over = Arc::new(AtomicBool::new(false));
            let done = Arc::clone(&over);
            beside(move || {
                while !done.load(Ordering::Relaxed) {
                    ending.tell(Captured::Ended(capture::End::Media));
                }
            });
            let outcome = conclusion.recv_timeout(Duration::from_secs(10));
            over.store(true, Ordering::Relaxed);
            let outcome = outcome.expect("it comes to an end").expect("a runtime");
            assert_eq!(outcome.expect("no task fails"), Outcome::Done);
        }
    }

    /// Conducts a run that sends nothing, until what is left is to be sent.
    async fn conduct(course: Course) -> Result<Outcome, Error> {
        let (orders, mut received) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while !matches!(received.recv().await, Some(Order::Drain(_))) {}
            Outcome::Done
        });
        let (_asks, asked) = Server::queue();
        let (mut signals, mut desk) = (Signals::default(), Desk::new(orders, asked));
        course.conduct(&mut signals, &mut desk, &mut tasks).await
    }

    /// On a thread that nobody has to wait for.
    fn beside(act: impl FnOnce() + Send + 'static) {
        let thread = std::thread::Builder::new().spawn(act);
        drop(thread.expect("a thread"));
    }

    #[test]
    fn what_is_put_ends_when_the_thread_that_reads_it_is_lost() {
        let config = || {
            let args = crate::cli::Args::parse_from(["kvsProducerApp", "cam"]);
            args.into_config().expect("a channel is enough")
        };
        let course = Course::new(config()).expect("no CA file");
        course.put_is_lost();
        let put = Arc::new(Course::beside(config()).expect("no CA file"));
        *lock(&course.beside) = Some(Arc::clone(&put));
        course.put_is_lost();
        assert!(put.ring.with(|ring| ring.is_done()));
        assert!(matches!(&*put.captured.borrow(), Some(Captured::Failed(_))));
        assert!(course.captured.borrow().is_none(), "the camera streams on");
    }
}
