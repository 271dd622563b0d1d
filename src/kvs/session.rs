//! The session: a stream's life across connections. It decides which call comes next, when to open, rotate, rewind and
//! wait; control does it.
//!
//! ```text
//!   Credentials -> Endpoint -> (Tag) -> Open -> Start -> .. ACKs .. -> done
//!       ^            |   ^               |        |
//!       |            v   |               |        |
//!       |      (Create -> Describe)      |        |
//!       '------- wait (backoff) <--------'--------'
//! ```
//!
//! Whoever has a data endpoint has all that streaming needs. DescribeStream is asked until a stream that is created is ACTIVE,
//! when a failure says that the stream is gone or not ACTIVE, and, beside a connection that goes on meanwhile, when a fragment
//! is RECEIVED and not PERSISTED: the stream may be one that retains nothing.
//!
//! What is known (credentials, that the stream is ACTIVE, its endpoint) is kept until a failure casts doubt on it; the next step
//! is always the first that is missing. Connections have a life of their own:
//!
//! ```text
//!   Opening -> Ready -> Head -> Streaming -> Draining -> gone
//!   TCP, TLS    waits    200?    media, ACKs   last ACKs
//! ```
//!
//! At a rotation the new connection waits in Ready until the old one's body has ended at a fragment boundary: the service
//! allows one PutMedia for a stream.

mod deadlines;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ack::{Ack, AckKind};
use super::failure::{self, Failure, FailureKind, Pace, Verdict};
use crate::backoff::Backoff;
use crate::codes::Code;
use crate::frame::Timecode;
use crate::ring::ConnectionId;

/// The session's durations and permissions.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether a missing stream is created.
    pub create: bool,
    /// Whether the stream is to be tagged.
    pub tag: bool,
    /// Whether a failure that only somebody's action can cure ends the session as long as nothing was ever streamed: for a
    /// file. A camera goes on trying.
    pub give_up: bool,
    /// How long any other failure is tried again before nothing was ever streamed: for a file, which would wait for ever.
    /// `None`: a camera goes on trying.
    pub patience: Option<Duration>,
    /// For a call's answer.
    pub call_timeout: Duration,
    /// For credentials: they may take a program to be run.
    pub credentials_timeout: Duration,
    /// For TCP and TLS to be up.
    pub connect_timeout: Duration,
    /// For the head of the answer after the request's.
    pub head_timeout: Duration,
    /// For the first acknowledgement of what was sent, and for bytes to move while there are any to send. While they move
    /// slowly an acknowledgement may take longer, up to `confirm_timeout`.
    pub progress_timeout: Duration,
    /// For a fragment that was sent whole to be confirmed.
    pub confirm_timeout: Duration,
    /// Between two looks at a stream that is being created; and how long a fragment may be RECEIVED and not PERSISTED before
    /// the stream is looked at.
    pub poll: Duration,
    /// For a stream that is being created to be ACTIVE.
    pub active_timeout: Duration,
    /// How long a data endpoint is used before it is asked for again.
    pub endpoint_age: Duration,
    /// How long a connection lives at most; up to a tenth less, by chance, so that cameras do not rotate in step.
    pub connection_age: Duration,
    /// A connection is rotated this long before its credentials expire.
    pub credential_margin: Duration,
    /// The range of the wait after the second failure in a row, doubling from there.
    pub first_wait: Duration,
    /// The longest wait between tries.
    pub longest_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            create: true,
            tag: false,
            give_up: false,
            patience: None,
            call_timeout: Duration::from_secs(4),
            credentials_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(5),
            progress_timeout: Duration::from_secs(5),
            confirm_timeout: Duration::from_secs(20),
            // The service allows 5 DescribeStream a second and stream.
            poll: Duration::from_secs(1),
            active_timeout: Duration::from_secs(30),
            // The developer guide asks for a fresh endpoint about every 45 minutes.
            endpoint_age: Duration::from_mins(40),
            // The service ends a connection after 45 minutes (ERROR ACK 4003).
            connection_age: Duration::from_mins(40),
            credential_margin: Duration::from_mins(3),
            first_wait: Duration::from_millis(250),
            longest_wait: Duration::from_secs(30),
        }
    }
}

impl Settings {
    /// How long `call` may take.
    pub fn limit(&self, call: Call) -> Duration {
        match call {
            Call::Credentials => self.credentials_timeout,
            _ => self.call_timeout,
        }
    }
}

/// Credentials are used for at least this long before better ones are asked for, however soon they end.
const LEAST_CREDENTIAL_USE: Duration = Duration::from_secs(30);

/// A step that takes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// Credentials from whoever provides them.
    Credentials,
    /// DescribeStream.
    Describe,
    /// CreateStream.
    Create,
    /// TagStream.
    Tag,
    /// GetDataEndpoint for PUT_MEDIA.
    Endpoint,
}

impl Call {
    /// All of them, in the order of the metrics.
    pub const ALL: [Self; 5] = [
        Self::Credentials,
        Self::Describe,
        Self::Create,
        Self::Tag,
        Self::Endpoint,
    ];

    /// Its label in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Describe => "describe_stream",
            Self::Create => "create_stream",
            Self::Tag => "tag_stream",
            Self::Endpoint => "get_data_endpoint",
        }
    }
}

/// What a call brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Credentials, good until then; for ever where that is not known.
    Credentials(Option<Instant>),
    /// The stream is there.
    Described {
        /// Whether its status is ACTIVE, or UPDATING, which takes media as well.
        active: bool,
        /// Whether it is being deleted.
        deleting: bool,
        /// DataRetentionInHours; 0 means that nothing is ever PERSISTED.
        retention_hours: u32,
    },
    /// The stream is being created, or was there already.
    Created,
    /// It has the tags.
    Tagged,
    /// The origin for PutMedia.
    Endpoint(String),
}

/// Why a request body ended; always at a fragment boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BodyEnd {
    /// It was asked to: rotation.
    Asked,
    /// The next fragment has other parameter sets or another size: it needs another header.
    TrackChanged,
    /// The camera has fallen silent: the service would close an idle connection.
    Silent,
    /// The source is at its end and all was sent.
    Closed,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Time has passed, or the ring has changed.
    Tick,
    /// A call has ended.
    Replied(Call, Result<Reply, Failure>),
    /// What is known now of the end of the credentials: a clock that was wrong when they came may have been put right.
    CredentialsEnd(Option<Instant>),
    /// TCP and TLS are up.
    Opened(ConnectionId),
    /// The service has answered 200.
    Accepted(ConnectionId),
    /// The body has handed over the start of a fragment.
    Begun(ConnectionId, Timecode),
    /// The body has handed over the last byte of a fragment.
    Sent(ConnectionId, Timecode),
    /// The kernel takes no more bytes: what it holds has to leave first.
    Held(ConnectionId),
    /// The kernel took bytes that had to wait: some have left.
    Moved(ConnectionId),
    /// The body is at its end.
    BodyEnded(ConnectionId, BodyEnd),
    /// An acknowledgement.
    Ack(ConnectionId, Ack),
    /// It could not be opened, was refused, broke, or the answer ended. Nothing of it is left.
    Lost(ConnectionId, Failure),
    /// The source is at its end or was stopped: until the time given what is held may still be sent.
    Drain(Instant),
    /// Somebody wants nothing to be uploaded for now: the fragment under way is the last.
    Pause,
    /// Somebody wants it to go on.
    Resume,
    /// Somebody wants new connections.
    Reset(Reset),
    /// End now.
    Abort,
}

/// What somebody wants to begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// The connections: what is not confirmed is sent again.
    Connections,
    /// Everything: what is held is thrown away, and the stream is looked at as at the start.
    All,
}

/// What surrounds an event.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The time.
    pub at: Instant,
    /// Whether a frame waits to be handed over.
    pub unsent: bool,
    /// Whether the source is at its end and nothing is left in the ring.
    pub done: bool,
    /// By chance, in `0.0..1.0`.
    pub jitter: f64,
}

/// Something for control to do. All of them are done before the next event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the call and bring its reply.
    Call(Call),
    /// Bring TCP and TLS up to this origin.
    Open(ConnectionId, String),
    /// Sign and send the request's head and let the body follow.
    Start(ConnectionId),
    /// End the body at the next fragment boundary.
    Finish(ConnectionId),
    /// Drop the connection, now. No event follows.
    Close(ConnectionId),
    /// Send again what the connection carried and nobody confirmed.
    Rewind(ConnectionId),
    /// The fragment leaves the ring: it is safe.
    Confirm(Timecode),
    /// The fragment leaves the ring: it is refused.
    Refuse(Timecode),
    /// All that the ring holds is thrown away.
    Discard,
    /// Something for the log.
    Note(Note),
}

/// Something for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A call or connection failed; the next try comes after the wait.
    Failed(Failure, Duration),
    /// The stream was not there and is being created.
    Creating,
    /// The stream is there but not ACTIVE yet.
    WaitingForActive,
    /// DescribeStream is not permitted: the stream is taken for one that takes media.
    DescribeNotPermitted,
    /// Fragments are RECEIVED and never PERSISTED: the stream is taken for one that retains nothing.
    NothingRetained,
    /// The tags could not be set; streaming goes on.
    NotTagged(Failure),
    /// Media flows.
    Streaming(ConnectionId),
    /// A new connection is being prepared; why.
    Rotating(ConnectionId, &'static str),
    /// The service refused a fragment.
    FragmentRefused(Timecode, String),
}

/// How the session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All that was captured and could be sent is confirmed.
    Done,
    /// The time to drain is over, or somebody wanted an end at once.
    OutOfTime(Option<Failure>),
    /// Going on is pointless.
    GaveUp(Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    /// Nobody has said anything: it is taken for there.
    Presumed,
    /// DescribeStream has to tell.
    Unknown,
    Missing,
    /// Being created, since when and when to look again.
    Pending {
        since: Instant,
        look: Instant,
    },
    Active,
}

/// What DescribeStream says that the stream retains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retention {
    /// It was not asked, or has not answered.
    Unsaid,
    /// It is not permitted.
    Forbidden,
    /// What is sent: it is PERSISTED.
    Media,
    /// Nothing: RECEIVED is enough.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Nothing,
    Buffering,
    Received,
}

/// A fragment on a connection that is not confirmed.
#[derive(Debug)]
struct InFlight {
    timecode: Timecode,
    begun: Instant,
    sent: Option<Instant>,
    level: Level,
    /// When it came to that.
    since: Instant,
}

impl InFlight {
    /// Whether the service has all of it, and has not said that it is stored.
    fn is_received(&self) -> bool {
        self.level == Level::Received && self.sent.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Opening,
    Ready,
    Head,
    Streaming,
    Draining,
}

#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    phase: Phase,
    since: Instant,
    /// When it is rotated: for its age, or before that because its credentials end.
    rotate_at: Instant,
    ages_at: Instant,
    /// When the credentials that it was opened with end.
    until: Option<Instant>,
    finishing: bool,
    last_ack: Instant,
    /// Since when a write stands still.
    held: Option<Instant>,
    /// When bytes last left that had to wait: until then what was sent later was still here.
    moved: Option<Instant>,
    in_flight: VecDeque<InFlight>,
}

/// What has happened at least once.
#[derive(Debug, Clone, Copy, Default)]
struct Ever {
    /// The service has answered 200.
    accepted: bool,
    /// A fragment was confirmed.
    confirmed: bool,
    /// By PERSISTED.
    persisted: bool,
}

/// Credentials at hand.
#[derive(Debug, Clone, Copy)]
struct Granted {
    since: Instant,
    until: Option<Instant>,
}

/// See the module. Pure: it is told the time and what happened, and says what to do.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    credentials: Option<Granted>,
    stream: Stream,
    retention: Retention,
    /// DescribeStream is under way, whoever waits for it.
    describing: bool,
    /// It failed beside a connection, and is not asked again before.
    look_after: Option<Instant>,
    tagged: bool,
    endpoint: Option<(String, Instant)>,
    /// Any other call that is under way.
    call: Option<Call>,
    connections: Vec<Connection>,
    next_connection: u64,
    backoff: Backoff,
    wait: Option<Instant>,
    drain: Option<Instant>,
    paused: bool,
    ever: Ever,
    /// When the first failure was.
    failing_since: Option<Instant>,
    last_failure: Option<Failure>,
    actions: VecDeque<Action>,
    outcome: Option<Outcome>,
}

impl Session {
    /// A session that knows nothing yet. The first [`Event::Tick`] starts it.
    pub fn new(settings: Settings) -> Self {
        let backoff = Backoff::new(settings.first_wait, settings.longest_wait);
        Self {
            settings,
            credentials: None,
            stream: Stream::Presumed,
            retention: Retention::Unsaid,
            describing: false,
            look_after: None,
            tagged: false,
            endpoint: None,
            call: None,
            connections: Vec::new(),
            next_connection: 0,
            backoff,
            wait: None,
            drain: None,
            paused: false,
            ever: Ever::default(),
            failing_since: None,
            last_failure: None,
            actions: VecDeque::new(),
            outcome: None,
        }
    }

    /// For a session that takes over from one that is gone: its first connection bears this number.
    #[must_use]
    pub fn numbered_from(mut self, connection: ConnectionId) -> Self {
        self.next_connection = connection.0;
        self
    }

    /// Takes in what happened. What to do about it comes from [`Self::next_action`].
    pub fn handle(&mut self, event: Event, now: Now) {
        if self.outcome.is_some() {
            return;
        }
        match event {
            Event::Tick => {}
            Event::Replied(call, reply) => self.replied(call, reply, now),
            Event::CredentialsEnd(until) => {
                if let Some(granted) = &mut self.credentials {
                    granted.until = until;
                }
            }
            Event::Opened(id) => self.opened(id, now),
            Event::Accepted(id) => self.accepted(id, now),
            Event::Begun(id, timecode) => {
                if let Some(connection) = self.connection(id) {
                    let in_flight = InFlight {
                        timecode,
                        begun: now.at,
                        sent: None,
                        level: Level::Nothing,
                        since: now.at,
                    };
                    connection.in_flight.push_back(in_flight);
                }
            }
            Event::Sent(id, timecode) => {
                if let Some(fragment) = self.in_flight(id, timecode) {
                    fragment.sent = Some(now.at);
                }
            }
            Event::Held(id) => {
                if let Some(connection) = self.connection(id) {
                    connection.held = Some(now.at);
                }
            }
            Event::Moved(id) => {
                if let Some(connection) = self.connection(id) {
                    connection.held = None;
                    connection.moved = Some(now.at);
                }
            }
            Event::BodyEnded(id, _) => self.body_ended(id, now),
            Event::Ack(id, ack) => self.acknowledged(id, ack, now),
            Event::Lost(id, failure) => self.lost(id, failure, now),
            Event::Drain(until) => {
                self.drain = Some(until);
                self.paused = false;
            }
            Event::Pause => self.pause(),
            Event::Resume => {
                self.paused = false;
                self.wait = None;
            }
            Event::Reset(what) => self.reset(what),
            Event::Abort => self.end(Outcome::OutOfTime(self.last_failure.clone())),
        }
        self.watch(now);
        self.advance(now);
        self.start_ready(now);
        if self.look_beside().is_some_and(|at| now.at >= at) {
            self.describe();
        }
    }

    /// The next thing to do, oldest first.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to send [`Event::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        if self.outcome.is_some() {
            return None;
        }
        // While a call or a connection is under way it brings the next event; a pause ends by an event.
        let free = self.awaited().is_none() && !self.preparing() && !self.paused;
        let look = match self.stream {
            Stream::Pending { look, .. } => Some(look),
            _ => None,
        };
        let carrier = self.carrier();
        let next_step = match carrier {
            None => look,
            // Its head's answer, or the end of its body, brings the next event.
            Some(carrier) if carrier.phase == Phase::Head || carrier.finishing => None,
            // What is created anew waits for media, which the carrier's own deadlines look for.
            Some(_) if self.stream == Stream::Missing => None,
            Some(carrier) => look.max(Some(carrier.rotate_at)),
        };
        let next_step = next_step.max(self.wait).filter(|_| free);
        let dues = self
            .connections
            .iter()
            .filter_map(|connection| self.due(connection).map(|(due, _)| due));
        let beside = self.look_beside();
        [next_step, beside, self.drain, self.out_of_patience()]
            .into_iter()
            .flatten()
            .chain(dues)
            .min()
    }

    /// Whether only a frame in the ring makes a next step possible.
    pub fn awaits_media(&self) -> bool {
        self.outcome.is_none()
            && !self.paused
            && self.call.is_none()
            && self.wait.is_none()
            && (self.is_there() || self.stream == Stream::Missing)
            && self.carrier().is_none()
            && !self.preparing()
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Connections that were opened so far.
    pub fn connections_opened(&self) -> u64 {
        self.next_connection
    }

    /// The connection that carries media now, if there is one.
    pub fn current(&self) -> Option<ConnectionId> {
        self.carrier().map(|connection| connection.id)
    }

    /// Whether the service has accepted the connection that carries media now.
    pub fn is_streaming(&self) -> bool {
        self.carrier()
            .is_some_and(|connection| connection.phase == Phase::Streaming)
    }

    /// Whether there is no connection, not even one whose last acknowledgements are awaited.
    pub fn is_idle(&self) -> bool {
        self.connections.is_empty()
    }

    /// What failed last, unless a fragment was confirmed since.
    pub fn last_failure(&self) -> Option<&Failure> {
        self.last_failure.as_ref()
    }

    // ---- what happened ----

    fn replied(&mut self, call: Call, reply: Result<Reply, Failure>, now: Now) {
        let expected = match call {
            Call::Describe => std::mem::take(&mut self.describing),
            _ => self.call.take_if(|under_way| *under_way == call).is_some(),
        };
        if !expected {
            return;
        }
        match reply {
            Ok(Reply::Credentials(Some(until))) if until <= now.at => {
                let message =
                    "the credentials had expired when they came: is this machine's clock right?";
                self.fail(Failure::new(FailureKind::NoCredentials, message), now);
            }
            Ok(Reply::Credentials(until)) => {
                self.credentials = Some(Granted {
                    since: now.at,
                    until,
                });
                self.put_off_rotation(until, now);
            }
            Ok(Reply::Described {
                active,
                deleting,
                retention_hours,
            }) => {
                // The service is there; how long a stream takes to be ACTIVE is its own.
                self.failing_since = None;
                if retention_hours > 0 {
                    self.retention = Retention::Media;
                } else {
                    self.take_received_for_enough();
                }
                if self.is_there() {
                    // It was asked beside a connection, which tells by itself what else there is to know.
                } else if deleting {
                    let message = "the stream is being deleted: wait until it is gone, or stream to another name";
                    self.fail(Failure::new(FailureKind::NotActive, message), now);
                } else if active {
                    self.stream = Stream::Active;
                } else {
                    self.await_active(now);
                }
            }
            Ok(Reply::Created) => self.await_active(now),
            Ok(Reply::Tagged) => self.tagged = true,
            Ok(Reply::Endpoint(url)) => {
                if self.stream == Stream::Presumed {
                    self.stream = Stream::Active;
                    self.failing_since = None;
                }
                self.endpoint = Some((url, now.at));
            }
            Err(failure) => self.call_failed(call, failure, now),
        }
    }

    fn call_failed(&mut self, call: Call, failure: Failure, now: Now) {
        let unexpired = |granted: &Granted| granted.until.is_none_or(|until| now.at < until);
        match (call, failure.kind) {
            // Those at hand are good until they end, and used for a while before better ones are asked for again.
            (Call::Credentials, _) if self.credentials.as_ref().is_some_and(unexpired) => {
                if let Some(granted) = &mut self.credentials {
                    granted.since = now.at;
                    let until = granted.until;
                    self.put_off_rotation(until, now);
                }
                self.note(Note::Failed(failure, LEAST_CREDENTIAL_USE));
            }
            // GetDataEndpoint and PutMedia are all that ingest needs.
            (Call::Describe, FailureKind::NotPermitted) => {
                self.stream = Stream::Active;
                // Where nothing was ever PERSISTED and RECEIVED is all that came, nothing is retained.
                self.retention = Retention::Forbidden;
                self.note(Note::DescribeNotPermitted);
            }
            (Call::Describe, _) if self.is_there() => {
                self.look_after = Some(now.at + self.settings.poll);
                self.note(Note::Failed(failure, self.settings.poll));
            }
            (Call::Describe, FailureKind::NotFound) => self.missing(failure, now),
            (Call::Endpoint, FailureKind::NotFound) if self.stream == Stream::Presumed => {
                self.missing(failure, now);
            }
            (Call::Create, FailureKind::NotActive) => self.stream = Stream::Unknown,
            // Media matters more than tags.
            (Call::Tag, FailureKind::NotPermitted | FailureKind::Invalid) => {
                self.tagged = true;
                self.note(Note::NotTagged(failure));
            }
            _ => self.fail(failure, now),
        }
    }

    fn missing(&mut self, mut failure: Failure, now: Now) {
        if self.settings.create {
            self.stream = Stream::Missing;
            return;
        }
        failure.kind = FailureKind::Invalid;
        failure
            .message
            .push_str("; create it, or leave out --no-create");
        self.fail(failure, now);
    }

    /// A rotation for the credentials' sake is of no use where no better ones are to be had: what the service has taken goes
    /// on. Its age still ends it.
    fn put_off_rotation(&mut self, until: Option<Instant>, now: Now) {
        let better = |old| until.is_none_or(|new| new > old + LEAST_CREDENTIAL_USE / 6);
        if let Some(carrier) = self.carrier_mut()
            && carrier.until.is_some_and(|old| !better(old))
        {
            carrier.rotate_at = (now.at + LEAST_CREDENTIAL_USE).min(carrier.ages_at);
        }
    }

    fn await_active(&mut self, now: Now) {
        let since = if let Stream::Pending { since, .. } = self.stream {
            since
        } else {
            self.note(Note::WaitingForActive);
            now.at
        };
        if now.at.duration_since(since) > self.settings.active_timeout {
            let message = format!(
                "the stream is not ACTIVE after {} s",
                self.settings.active_timeout.as_secs()
            );
            self.fail(Failure::new(FailureKind::NotActive, message), now);
        } else {
            self.stream = Stream::Pending {
                since,
                look: now.at + self.settings.poll,
            };
        }
    }

    fn opened(&mut self, id: ConnectionId, now: Now) {
        let settings = &self.settings;
        let spread = (settings.connection_age / 10).mul_f64(now.jitter.clamp(0.0, 1.0));
        let by_age = now.at + settings.connection_age.saturating_sub(spread);
        // Credentials that are granted for less than the margin are still good: not a rotation after the other.
        let least = now.at + settings.connection_age.min(LEAST_CREDENTIAL_USE);
        let until = self.credentials.and_then(|granted| granted.until);
        let by_credentials = until.map(|until| {
            until
                .checked_sub(settings.credential_margin)
                .unwrap_or(now.at)
                .max(least)
        });
        let Some(connection) = self.connection(id) else {
            return;
        };
        connection.phase = Phase::Ready;
        connection.since = now.at;
        connection.rotate_at = by_credentials.map_or(by_age, |end| end.min(by_age));
        connection.ages_at = by_age;
        connection.until = until;
        if let Some(carrier) = self.carrier_mut()
            && !carrier.finishing
        {
            carrier.finishing = true;
            let carrier = carrier.id;
            self.actions.push_back(Action::Finish(carrier));
        }
    }

    fn accepted(&mut self, id: ConnectionId, now: Now) {
        let Some(connection) = self.connection(id) else {
            return;
        };
        if connection.phase == Phase::Head {
            connection.phase = Phase::Streaming;
            connection.since = now.at;
        }
        connection.last_ack = now.at;
        self.ever.accepted = true;
        self.note(Note::Streaming(id));
    }

    fn body_ended(&mut self, id: ConnectionId, now: Now) {
        if let Some(connection) = self.connection(id) {
            connection.phase = Phase::Draining;
            connection.since = now.at;
            self.drop_empty();
        }
    }

    /// What was prepared goes, what carries media ends at a fragment boundary.
    fn pause(&mut self) {
        if self.drain.is_some() {
            return;
        }
        self.paused = true;
        let actions = &mut self.actions;
        self.connections.retain_mut(|connection| {
            let prepared = connection.phase <= Phase::Ready;
            if prepared {
                actions.push_back(Action::Close(connection.id));
            } else if connection.phase < Phase::Draining && !connection.finishing {
                connection.finishing = true;
                actions.push_back(Action::Finish(connection.id));
            }
            !prepared
        });
    }

    fn reset(&mut self, what: Reset) {
        for connection in self.connections.drain(..) {
            self.actions.push_back(Action::Close(connection.id));
            if what == Reset::Connections && connection.phase > Phase::Ready {
                self.actions.push_back(Action::Rewind(connection.id));
            }
        }
        if what == Reset::All {
            self.actions.push_back(Action::Discard);
            self.stream = Stream::Presumed;
            self.retention = Retention::Unsaid;
            self.tagged = false;
            self.endpoint = None;
        }
        self.backoff.reset();
        self.wait = None;
        self.failing_since = None;
        self.last_failure = None;
    }

    fn acknowledged(&mut self, id: ConnectionId, ack: Ack, now: Now) {
        let retains = self.retention != Retention::Nothing;
        let Some(connection) = self.connection(id) else {
            return;
        };
        connection.last_ack = now.at;
        let level = match ack.kind {
            AckKind::Idle => return,
            AckKind::Error { id: error, code } => {
                return self.refused(id, error, &code, ack.timecode, now);
            }
            AckKind::Buffering => Level::Buffering,
            AckKind::Received => Level::Received,
            AckKind::Persisted => Level::Received,
        };
        let Some(timecode) = ack.timecode else { return };
        let confirmed =
            ack.kind == AckKind::Persisted || (ack.kind == AckKind::Received && !retains);
        let Some(index) = connection
            .in_flight
            .iter()
            .position(|fragment| fragment.timecode == timecode)
        else {
            return;
        };
        if confirmed && connection.in_flight[index].sent.is_some() {
            connection.in_flight.remove(index);
            self.ever.persisted |= ack.kind == AckKind::Persisted;
            self.confirmed(timecode);
        } else {
            let fragment = &mut connection.in_flight[index];
            if level > fragment.level {
                (fragment.level, fragment.since) = (level, now.at);
            }
        }
    }

    /// Nothing is retained: nothing more will be heard of what was RECEIVED.
    fn take_received_for_enough(&mut self) {
        self.retention = Retention::Nothing;
        let mut done = Vec::new();
        for connection in &mut self.connections {
            connection.in_flight.retain(|fragment| {
                let received = fragment.is_received();
                if received {
                    done.push(fragment.timecode);
                }
                !received
            });
        }
        for timecode in done {
            self.confirmed(timecode);
        }
    }

    fn confirmed(&mut self, timecode: Timecode) {
        self.actions.push_back(Action::Confirm(timecode));
        self.ever.confirmed = true;
        self.failing_since = None;
        self.backoff.reset();
        self.last_failure = None;
        self.drop_empty();
    }

    /// An ERROR acknowledgement: the connection is at its end.
    fn refused(
        &mut self,
        id: ConnectionId,
        error: u32,
        code: &str,
        timecode: Option<Timecode>,
        now: Now,
    ) {
        let (verdict, kind) = failure::of_error_ack(error, code);
        // Some errors name no fragment, or one that was never sent: then the one that the service was reading is meant.
        let oldest = self.connection(id).and_then(|connection| {
            let in_flight = &connection.in_flight;
            let reading = in_flight
                .iter()
                .find(|fragment| fragment.level < Level::Received);
            reading
                .or(in_flight.back())
                .map(|fragment| fragment.timecode)
        });
        let named = timecode.filter(|&timecode| self.in_flight(id, timecode).is_some());
        let message = format!("the service answered ERROR {error} {code}");
        if let (Verdict::Skip, Some(timecode)) = (verdict, named.or(oldest)) {
            self.actions.push_back(Action::Refuse(timecode));
            self.note(Note::FragmentRefused(timecode, message.clone()));
        }
        self.actions.push_back(Action::Close(id));
        let failure = Failure::new(kind, message).with_code(Code::of_error_ack(error, code));
        self.lost(id, failure, now);
    }

    fn lost(&mut self, id: ConnectionId, failure: Failure, now: Now) {
        let Some(index) = self
            .connections
            .iter()
            .position(|connection| connection.id == id)
        else {
            return;
        };
        let lost = self.connections.remove(index);
        // Where nothing is retained RECEIVED was the last word, and the answer has ended as it should.
        if self.wonders() && lost.in_flight.iter().any(InFlight::is_received) {
            self.describe();
        }
        match lost.phase {
            // The answer ends after the last acknowledgement.
            Phase::Draining if lost.in_flight.is_empty() => return,
            // It had carried nothing.
            Phase::Opening | Phase::Ready => {}
            Phase::Head | Phase::Streaming | Phase::Draining => {
                // What it carried goes out again, before anything later: whoever carries that has to stop first. One that
                // has not started is what goes on.
                for later in self.connections.extract_if(.., |connection| {
                    connection.id > id && connection.phase > Phase::Ready
                }) {
                    self.actions.push_back(Action::Close(later.id));
                    self.actions.push_back(Action::Rewind(later.id));
                }
                self.actions.push_back(Action::Rewind(id));
            }
        }
        self.fail(failure, now);
    }

    fn fail(&mut self, failure: Failure, now: Now) {
        let kind = failure.kind;
        let first = self.backoff.failures() == 0;
        if kind.wants_endpoint() {
            self.endpoint = None;
        }
        if kind.wants_describe() {
            self.stream = Stream::Unknown;
        }
        if self.retention == Retention::Forbidden {
            // By now it may be permitted.
            self.retention = Retention::Unsaid;
        }
        let used = |granted: Granted| now.at.duration_since(granted.since) >= LEAST_CREDENTIAL_USE;
        // Those that came just now are not cured by asking again.
        let proven = self.ever.accepted || self.credentials.is_some_and(used);
        if kind.wants_credentials() {
            self.credentials = None;
        }
        let hopeless = kind.pace() == Pace::Slow;
        let curable = first && kind.wants_credentials() && proven;
        let mut wait = self.backoff.next_wait(now.jitter);
        if kind == FailureKind::ConnectionLimit || kind == FailureKind::Throttled {
            // At once is too soon for a service that has not seen the last connection end.
            wait = wait.max(self.settings.first_wait);
        }
        if hopeless && !curable {
            wait = failure::SLOW_RETRY.min(self.settings.longest_wait);
        }
        self.note(Note::Failed(failure.clone(), wait));
        self.last_failure = Some(failure.clone());
        self.failing_since.get_or_insert(now.at);
        let over = self.settings.give_up || self.drain.is_some();
        if hopeless && !self.ever.confirmed && over {
            self.end(Outcome::GaveUp(failure));
        } else {
            self.wait = Some(now.at + wait);
        }
    }

    // ---- what comes next ----

    fn advance(&mut self, now: Now) {
        if self.outcome.is_some() || self.paused || self.call.is_some() || self.preparing() {
            return;
        }
        if self.wait.is_some_and(|until| now.at < until) {
            return;
        }
        self.wait = None;
        if let Some(carrier) = self.carrier() {
            // A connection that is still waiting for its 200 is not rotated.
            if carrier.finishing || carrier.phase == Phase::Head || now.at < carrier.rotate_at {
                return;
            }
        }
        if !self
            .credentials
            .is_some_and(|granted| self.is_good(granted, now))
        {
            return self.call(Call::Credentials);
        }
        match self.stream {
            Stream::Unknown => return self.describe(),
            // The media says what type it is created with.
            Stream::Missing if !now.unsent => return,
            Stream::Missing => {
                self.note(Note::Creating);
                return self.call(Call::Create);
            }
            Stream::Pending { look, .. } if now.at >= look => return self.describe(),
            Stream::Pending { .. } => return,
            Stream::Presumed | Stream::Active => {}
        }
        let age = self.settings.endpoint_age;
        let fresh = self
            .endpoint
            .as_ref()
            .filter(|(_, since)| now.at.duration_since(*since) < age);
        let Some((url, _)) = fresh.cloned() else {
            return self.call(Call::Endpoint);
        };
        if self.settings.tag && !self.tagged {
            return self.call(Call::Tag);
        }
        // Nothing to send yet: an idle PutMedia would be closed by the service.
        if self.carrier().is_none() && !now.unsent {
            return;
        }
        self.open(url, now);
    }

    /// Whether a connection may be opened with these credentials.
    fn is_good(&self, granted: Granted, now: Now) -> bool {
        let settings = &self.settings;
        let age = now.at.duration_since(granted.since);
        let margin = if age < LEAST_CREDENTIAL_USE / 6 {
            // There are no better ones to be had.
            Duration::ZERO
        } else if age < LEAST_CREDENTIAL_USE {
            // They have to last until the service has taken the connection.
            settings
                .credential_margin
                .min(settings.connect_timeout + settings.head_timeout)
        } else {
            settings.credential_margin
        };
        granted.until.is_none_or(|until| now.at + margin < until)
    }

    fn call(&mut self, call: Call) {
        self.call = Some(call);
        self.actions.push_back(Action::Call(call));
    }

    fn describe(&mut self) {
        if !std::mem::replace(&mut self.describing, true) {
            self.actions.push_back(Action::Call(Call::Describe));
        }
    }

    /// When to look what is retained, beside a connection: a fragment is RECEIVED and nothing was ever PERSISTED.
    fn look_beside(&self) -> Option<Instant> {
        if !self.wonders() || self.describing || !self.is_there() {
            return None;
        }
        let in_flight = self.connections.iter().flat_map(|one| &one.in_flight);
        let received = in_flight.filter(|fragment| fragment.is_received());
        let since = received.map(|fragment| fragment.since).min()?;
        Some(since + self.settings.poll).max(self.look_after)
    }

    /// Whether nobody has said, and nothing has shown, that anything is retained.
    fn wonders(&self) -> bool {
        self.retention == Retention::Unsaid && !self.ever.persisted
    }

    /// The call that the next step waits for.
    fn awaited(&self) -> Option<Call> {
        let describing = self.describing && !self.is_there();
        self.call.or(describing.then_some(Call::Describe))
    }

    /// Whether the stream takes media, as far as is known.
    fn is_there(&self) -> bool {
        matches!(self.stream, Stream::Presumed | Stream::Active)
    }

    fn open(&mut self, url: String, now: Now) {
        let id = ConnectionId(self.next_connection);
        self.next_connection += 1;
        if let Some(carrier) = self.carrier() {
            let why = if carrier.rotate_at < carrier.ages_at {
                "its credentials end"
            } else {
                "its age"
            };
            self.note(Note::Rotating(id, why));
        }
        self.connections.push(Connection {
            id,
            phase: Phase::Opening,
            since: now.at,
            rotate_at: now.at,
            ages_at: now.at,
            until: None,
            finishing: false,
            last_ack: now.at,
            held: None,
            moved: None,
            in_flight: VecDeque::new(),
        });
        self.actions.push_back(Action::Open(id, url));
    }

    /// A connection that is ready starts as soon as nobody else carries media.
    fn start_ready(&mut self, now: Now) {
        if self.carrier().is_some() {
            return;
        }
        let ready = self
            .connections
            .iter_mut()
            .find(|connection| connection.phase == Phase::Ready);
        if let Some(connection) = ready {
            connection.phase = Phase::Head;
            connection.since = now.at;
            connection.last_ack = now.at;
            let id = connection.id;
            self.actions.push_back(Action::Start(id));
        }
    }

    /// Closes connections whose body has ended and whose fragments are all confirmed.
    fn drop_empty(&mut self) {
        let actions = &mut self.actions;
        self.connections.retain(|connection| {
            let over = connection.phase == Phase::Draining && connection.in_flight.is_empty();
            if over {
                actions.push_back(Action::Close(connection.id));
            }
            !over
        });
    }

    fn end(&mut self, outcome: Outcome) {
        for connection in self.connections.drain(..) {
            self.actions.push_back(Action::Close(connection.id));
        }
        self.outcome = Some(outcome);
    }

    fn note(&mut self, note: Note) {
        self.actions.push_back(Action::Note(note));
    }

    fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections
            .iter_mut()
            .find(|connection| connection.id == id)
    }

    fn in_flight(&mut self, id: ConnectionId, timecode: Timecode) -> Option<&mut InFlight> {
        self.connection(id)?
            .in_flight
            .iter_mut()
            .find(|fragment| fragment.timecode == timecode)
    }

    /// The connection whose body takes frames from the ring.
    fn carrier(&self) -> Option<&Connection> {
        self.connections
            .iter()
            .find(|connection| matches!(connection.phase, Phase::Head | Phase::Streaming))
    }

    fn carrier_mut(&mut self) -> Option<&mut Connection> {
        self.connections
            .iter_mut()
            .find(|connection| matches!(connection.phase, Phase::Head | Phase::Streaming))
    }

    /// Whether a connection is on its way that has not started.
    fn preparing(&self) -> bool {
        self.connections
            .iter()
            .any(|connection| matches!(connection.phase, Phase::Opening | Phase::Ready))
    }
}

#[cfg(test)]
mod progress;
#[cfg(test)]
mod tests;
