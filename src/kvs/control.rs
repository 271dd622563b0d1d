//! Carries out the session's actions: calls, connections, the ring's cursor. No decision is made here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::{error, info, warn};

use super::aws::Aws;
use super::failure::{Failure, FailureKind, Pace};
use super::meters::Meters;
use super::session::{Action, Call, Event, Note, Now, Outcome, Reset, Session, Settings};
use super::transport::{self, Route, Sockets, Start};
use super::upload::{Handle, UploadBody};
use crate::clock::Clock;
use crate::codes::Code;
use crate::detail;
use crate::frame::{Codec, MediaTime, Timecode};
use crate::repeats::Repeats;
use crate::ring::shared::Reader;
use crate::ring::{Amount, ConnectionId, Peek, Ring};

/// What the status line and the report want to know of the network side.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Connections opened so far.
    pub connections: u64,
    /// Whether the service has accepted the connection in use.
    pub streaming: bool,
    /// The fragment confirmed last, and when on our monotonic clock.
    pub last_persisted: Option<(Timecode, Instant)>,
    /// How long that one was.
    pub fragment: Duration,
    /// Whether there is no connection at all.
    pub idle: bool,
    /// What failed last, unless a fragment was confirmed since.
    pub failure: Option<Failure>,
    /// How far this machine's clock is behind the service's, in ms; `None` while nobody could say.
    pub clock_behind_ms: Option<i64>,
    /// What happened so far.
    pub meters: Meters,
    /// Wall clock less media clock in ms, for media whose time was given.
    anchor: Option<i64>,
}

/// What the application tells a running control task.
#[derive(Debug)]
pub enum Order {
    /// The source is at its end: send what is held, until then.
    Drain(Instant),
    /// Send nothing for now: [`Status::idle`] tells when the last connection is closed.
    Pause,
    /// Go on.
    Resume,
    /// Begin anew, and tell what that came to.
    Reset(Reset, oneshot::Sender<Anew>),
    /// End now.
    Abort,
}

/// What a reset came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Anew {
    /// Thrown away.
    pub discarded: Amount,
    /// Fragments that will be sent again.
    pub again: usize,
}

struct Live {
    abort: AbortHandle,
    origin: String,
    start: Option<oneshot::Sender<Start>>,
    body: Handle,
}

/// What control works with.
pub struct Means {
    /// The session's durations and permissions.
    pub settings: Settings,
    /// The control plane, credentials, the service's time.
    pub aws: Aws,
    /// Whom to trust.
    pub tls: Arc<ClientConfig>,
    /// What is to be sent.
    pub ring: Reader,
    /// The time.
    pub clock: Clock,
    /// What a missing stream is created for, where the media does not say.
    pub codec: Option<Codec>,
    /// When the first frame was captured, since the Unix epoch, for media that is not of the moment.
    pub start: Option<Duration>,
    /// What is told meanwhile. It outlives control: one that takes over counts on from it.
    pub status: watch::Sender<Status>,
    /// Where connections leave their sockets' handles.
    pub sockets: Sockets,
}

/// See the module.
pub struct Control {
    settings: Settings,
    session: Session,
    aws: Aws,
    tls: Arc<ClientConfig>,
    ring: Reader,
    clock: Clock,
    codec: Option<Codec>,
    start: Option<Duration>,
    events: mpsc::UnboundedReceiver<Event>,
    /// Given to calls, connections and bodies. At most a few events a fragment, and control does nothing else than read
    /// them, so the queue stays as short as it is unbounded.
    sender: mpsc::UnboundedSender<Event>,
    tasks: JoinSet<()>,
    live: HashMap<ConnectionId, Live>,
    status: watch::Sender<Status>,
    sockets: Sockets,
    /// What was given up or goes out again since the last order.
    anew: Anew,
    repeats: Repeats<Line>,
}

impl Control {
    /// A control task that has not started.
    pub fn new(means: Means) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let first = ConnectionId(means.status.borrow().connections);
        let now = means.clock.now();
        means
            .status
            .send_modify(|status| status.meters.take_over(now));
        Self {
            session: Session::new(means.settings.clone()).numbered_from(first),
            settings: means.settings,
            aws: means.aws,
            tls: means.tls,
            ring: means.ring,
            clock: means.clock,
            codec: means.codec,
            start: means.start,
            events,
            sender,
            tasks: JoinSet::new(),
            live: HashMap::new(),
            status: means.status,
            sockets: means.sockets,
            anew: Anew::default(),
            repeats: Repeats::default(),
        }
    }

    /// Runs until the session has ended. `orders` may be closed: then nobody gives any.
    pub async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) -> Outcome {
        self.tasks.spawn(self.aws.clone().keep_credentials());
        self.settle(Event::Tick);
        loop {
            let mut reply = None;
            if let Some(outcome) = self.session.outcome() {
                return outcome.clone();
            }
            let deadline = self.session.deadline();
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                Some(order) = orders.recv() => self.take(order, &mut reply),
                Some(event) = self.events.recv() => event,
                () = timer => Event::Tick,
                () = self.ring.unsent(), if self.session.awaits_media() => Event::Tick,
                Some(done) = self.tasks.join_next() => {
                    // It has told what came of it, unless it has panicked. Where that has not ended the thread already, it
                    // ends the run: better than to wait for its word for ever.
                    if let Err(Ok(panic)) = done.map_err(JoinError::try_into_panic) {
                        std::panic::resume_unwind(panic);
                    }
                    Event::Tick
                }
            };
            self.settle(event);
            if let Some(reply) = reply {
                // Whoever asked may be gone.
                let _ = reply.send(self.anew);
            }
        }
    }

    /// What an order means for the session, and whom to tell what it came to.
    fn take(&mut self, order: Order, reply: &mut Option<oneshot::Sender<Anew>>) -> Event {
        self.anew = Anew::default();
        match order {
            Order::Drain(until) => {
                self.ring.with(|ring| ring.set_paused(false));
                Event::Drain(until)
            }
            Order::Pause => {
                self.ring.with(|ring| ring.set_paused(true));
                Event::Pause
            }
            Order::Resume => {
                self.ring.with(|ring| ring.set_paused(false));
                Event::Resume
            }
            Order::Reset(what, done) => {
                *reply = Some(done);
                Event::Reset(what)
            }
            Order::Abort => Event::Abort,
        }
    }

    /// Hands an event to the session and does all that it says. What that changes is handed over as a tick, until nothing
    /// is left to do.
    fn settle(&mut self, event: Event) {
        self.measure(&event);
        if let Event::Lost(id, _) = &event {
            self.live.remove(id);
        }
        if let Event::Opened(_) = &event {
            let now = self.now();
            self.session
                .handle(Event::CredentialsEnd(self.aws.credentials_end()), now);
        }
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let now = self.now();
            self.session.handle(event, now);
            while let Some(action) = self.session.next_action() {
                if !matches!(action, Action::Note(_)) {
                    next = Some(Event::Tick);
                }
                if let Some(event) = self.perform(action) {
                    // The session hears of it first: nothing else has happened meanwhile.
                    let now = self.now();
                    self.session.handle(event, now);
                }
            }
        }
        let connections = self.session.connections_opened();
        let streaming = self.session.is_streaming();
        let idle = self.session.is_idle();
        let failure = self.session.last_failure();
        let behind_ms = self.aws.clock().behind_ms();
        self.status.send_if_modified(|status| {
            let after = (connections, streaming, idle);
            let mut changed = (status.connections, status.streaming, status.idle) != after;
            (status.connections, status.streaming, status.idle) = after;
            status.clock_behind_ms = behind_ms;
            if status.failure.as_ref() != failure {
                status.failure = failure.cloned();
                changed = true;
            }
            changed
        });
    }

    /// Counts what happens. Nobody waits for that.
    fn measure(&self, event: &Event) {
        let to_wire = match event {
            Event::Begun(_, timecode) => self
                .ring
                .with(|ring| ring.captured_at(*timecode))
                .map(|captured| self.since(captured)),
            _ => None,
        };
        self.meter(|meters, now| {
            meters.observe(event, now);
            if let Some(latency) = to_wire {
                meters.to_wire.observe(latency);
            }
        });
    }

    fn meter(&self, count: impl FnOnce(&mut Meters, Instant)) {
        let now = self.clock.now();
        self.status.send_if_modified(|status| {
            count(&mut status.meters, now);
            false
        });
    }

    fn since(&self, captured: MediaTime) -> Duration {
        Duration::from_millis(self.clock.media().0.saturating_sub(captured.0))
    }

    fn now(&self) -> Now {
        let (unsent, done) = self.ring.with(|ring| (ring.has_unsent(), ring.is_done()));
        Now {
            at: self.clock.now(),
            unsent,
            done,
            jitter: self.clock.jitter(),
        }
    }

    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Call(call) => self.call(call),
            Action::Open(id, origin) => self.open(id, origin),
            Action::Start(id) => return self.start(id),
            Action::Finish(id) => {
                if let Some(live) = self.live.get(&id) {
                    live.body.finish(&self.ring);
                }
            }
            Action::Close(id) => {
                if let Some(live) = self.live.remove(&id) {
                    detail!(connection = %id, "connection closed");
                    live.abort.abort();
                    self.meter(|meters, now| meters.ended(id, now));
                }
            }
            Action::Rewind(id) => {
                let again = self.ring.with(|ring| ring.rewind(id));
                self.anew.again += again;
                if again > 0 {
                    self.log_again(id, again);
                }
            }
            Action::Confirm(timecode) => self.confirm(timecode),
            Action::Refuse(timecode) => {
                self.ring.with(|ring| ring.refuse_fragment(timecode));
            }
            Action::Discard => {
                let discarded = self.ring.with(Ring::discard);
                self.anew.discarded = discarded;
                info!(
                    frames = discarded.frames,
                    "what the buffer held is thrown away, as somebody wants it"
                );
            }
            Action::Note(note) => {
                if let Note::Failed(failure, _) = &note {
                    self.meter(|meters, _| meters.failed(failure));
                }
                self.log(&note);
            }
        }
        None
    }

    fn call(&mut self, call: Call) {
        let (aws, sender) = (self.aws.clone(), self.sender.clone());
        let codec = self.ring.with(|ring| match ring.peek() {
            Peek::Fragment(track) => Some(track.codec),
            _ => None,
        });
        let codec = codec.or(self.codec);
        let limit = self.settings.limit(call);
        self.meter(|meters, now| meters.calling(call, now));
        self.tasks.spawn(async move {
            let reply = aws.call(call, codec, limit).await;
            let _ = sender.send(Event::Replied(call, reply));
        });
    }

    fn open(&mut self, id: ConnectionId, origin: String) {
        detail!(connection = %id, origin, "connecting");
        self.meter(|meters, now| meters.opened(id, now));
        let (start, started) = oneshot::channel();
        let tls = Arc::clone(&self.tls);
        let route = Route {
            id,
            origin: origin.clone(),
            tls,
            clock: self.aws.clock().clone(),
            patience: self.settings.progress_timeout,
            sockets: self.sockets.clone(),
        };
        let abort = self
            .tasks
            .spawn(transport::run(route, started, self.sender.clone()));
        let body = Handle::default();
        self.live.insert(
            id,
            Live {
                abort,
                origin,
                start: Some(start),
                body,
            },
        );
    }

    fn start(&mut self, id: ConnectionId) -> Option<Event> {
        let live = self.live.get_mut(&id)?;
        // The wall clock is read here and nowhere else for media: frames keep the camera's spacing from now on.
        // Both clocks at once: what passes between them, like the signing, would be taken for a step of the wall clock.
        let (wall, media) = (self.aws.clock().now(), self.clock.media());
        let wall_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        let headers = match self.aws.put_media(&live.origin, Timecode(wall_ms)) {
            Ok(headers) => headers,
            Err(error) => {
                let failure = Failure::new(FailureKind::Invalid, crate::chain(&error).to_string());
                live.abort.abort();
                self.live.remove(&id);
                return Some(Event::Lost(id, failure));
            }
        };
        let (start, anchored) = (self.start, self.status.borrow().anchor);
        let anchor = self.ring.with(|ring| {
            let anchor = anchored.unwrap_or_else(|| match (start, ring.fill().oldest) {
                (Some(start), Some(first)) => {
                    between(u64::try_from(start.as_millis()).unwrap_or(u64::MAX), first)
                }
                _ => between(wall_ms, media),
            });
            ring.set_anchor(anchor);
            anchor
        });
        if self.start.is_some() {
            self.status.send_if_modified(|status| {
                status.anchor = Some(anchor);
                false
            });
        }
        let live = self.live.get_mut(&id)?;
        let body = UploadBody::new(
            id,
            self.ring.clone(),
            live.body.clone(),
            self.sender.clone(),
        );
        if let Some(start) = live.start.take() {
            // Where the connection is gone already, its Lost is on the way.
            let _ = start.send(Start { headers, body });
        }
        None
    }

    fn confirm(&mut self, timecode: Timecode) {
        let Some(fragment) = self.ring.with(|ring| ring.confirm(timecode)) else {
            return;
        };
        detail!(%timecode, frames = fragment.amount.frames, bytes = fragment.amount.bytes, "fragment persisted");
        let (at, latency) = (self.clock.now(), self.since(fragment.began));
        let lasted = fragment.ended.0.saturating_sub(fragment.began.0);
        self.status.send_modify(|status| {
            status.last_persisted = Some((timecode, at));
            status.fragment = Duration::from_millis(lasted);
            status.meters.to_persisted.observe(latency);
        });
    }

    /// Says what is worth a line; what repeats itself is counted.
    fn log(&mut self, note: &Note) {
        let now = self.clock.now();
        match note {
            Note::Failed(failure, wait) => {
                let (wait_s, code) = (wait.as_secs_f32(), failure.code);
                let message = &failure.message;
                match (
                    self.repeats.say(Line::Failed(code), now),
                    failure.kind.pace(),
                ) {
                    (None, _) => detail!(retry_in_s = wait_s, %code, "{message}"),
                    (Some(unsaid), Pace::Soon) => {
                        warn!(retry_in_s = wait_s, %code, unsaid = some(unsaid), "{message}");
                    }
                    (Some(unsaid), Pace::Slow) => {
                        error!(retry_in_s = wait_s, %code, unsaid = some(unsaid), "{message}");
                    }
                }
            }
            Note::Creating => info!("the stream is not there: creating it"),
            Note::WaitingForActive => info!("waiting until the stream is ACTIVE"),
            Note::DescribeNotPermitted => {
                info!(
                    "DescribeStream is not permitted: the stream is taken for one that takes media"
                );
            }
            Note::NothingRetained => {
                info!(
                    "nothing is ever PERSISTED: the stream is taken for one that retains nothing, and RECEIVED for enough"
                );
            }
            Note::NotTagged(failure) => {
                warn!(code = %failure.code, "the stream is not tagged: {}", failure.message);
            }
            Note::Streaming(connection) => match self.repeats.say(Line::Streaming, now) {
                None => detail!(%connection, "streaming"),
                Some(unsaid) => info!(%connection, unsaid = some(unsaid), "streaming"),
            },
            Note::Rotating(connection, why) => {
                info!(%connection, why, "preparing the next connection");
            }
            Note::FragmentRefused(timecode, why) => match self.repeats.say(Line::Refused, now) {
                None => detail!(fragment = %timecode, "a fragment is dropped because {why}"),
                Some(unsaid) => warn!(
                    fragment = %timecode,
                    unsaid = some(unsaid),
                    "a fragment is dropped because {why}"
                ),
            },
        }
    }

    fn log_again(&mut self, connection: ConnectionId, fragments: usize) {
        match self.repeats.say(Line::Again, self.clock.now()) {
            None => detail!(%connection, fragments, "will be sent again"),
            Some(unsaid) => {
                info!(%connection, fragments, unsaid = some(unsaid), "will be sent again");
            }
        }
    }
}

/// A time since the Unix epoch in ms, less the same moment on the media's clock.
fn between(wall_ms: u64, media: MediaTime) -> i64 {
    i64::try_from(wall_ms).unwrap_or(i64::MAX) - i64::try_from(media.0).unwrap_or(0)
}

/// Lines that may repeat themselves.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Failed(Code),
    Streaming,
    Again,
    Refused,
}

/// A field that is left out when there is nothing to count.
fn some(unsaid: u64) -> Option<u64> {
    (unsaid > 0).then_some(unsaid)
}
