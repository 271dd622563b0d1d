//! Virtual time, the network, and control's part: carries out the session's actions as `kvs::control` does.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Body as _;
use kvs_producer_app::clock::Clock;
use kvs_producer_app::frame::Timecode;
use kvs_producer_app::kvs::ack::AckParser;
use kvs_producer_app::kvs::failure::{Failure, FailureKind, Pace};
use kvs_producer_app::kvs::session::{Action, Call, Event, Note, Now, Outcome, Reply, Session};
use kvs_producer_app::kvs::upload::{Handle, UploadBody};
use kvs_producer_app::ring::shared::{Reader, Writer, share};
use kvs_producer_app::ring::{ConnectionId, Counts, DropReason, Ring};
use tokio::sync::mpsc;

use crate::camera::{BOOT_MS, Camera};
use crate::schedule::{Fault, Schedule, Trick, Trouble};
use crate::service::{Down, Mood, Out, Service, Step, Stream};

/// What a run came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub counts: Counts,
    pub connections: u64,
    pub confirmed: u64,
}

/// Something that will happen.
#[derive(Debug)]
enum What {
    Shoot,
    Called(Call),
    Opened(ConnectionId),
    Broken(ConnectionId, Failure),
    Depart(ConnectionId),
    Arrive(ConnectionId, Up),
    Down(ConnectionId, Down),
    Service(Step),
    Fault(usize),
    Resume,
    Abort,
}

/// What goes up a connection.
#[derive(Debug)]
enum Up {
    Head {
        expired: bool,
        endpoint: u32,
    },
    Bytes(Vec<Bytes>),
    /// The chunked body's end.
    Terminator,
    /// The end of the connection without it.
    Fin,
}

impl Up {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(parts) => parts.iter().map(Bytes::len).sum(),
            _ => 0,
        }
    }
}

/// Why a frame may leave the ring that was stored in it.
const GIVEN_UP: [DropReason; 4] = [
    DropReason::RingFull,
    DropReason::Refused,
    DropReason::OnOrder,
    DropReason::NotSentInTime,
];

/// The waker of a body: the body is polled only when it was woken, so a lost wake-up shows.
#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[expect(clippy::struct_excessive_bools, reason = "what has happened to it")]
struct Link {
    endpoint: u32,
    handle: Handle,
    body: Option<UploadBody>,
    /// It has said that it takes no more frames; some of its bytes may be on their way.
    body_ended: bool,
    woken: Arc<Woken>,
    /// The client has let it go, or has been told that it is lost.
    closed: bool,
    opened: bool,
    queue: VecDeque<Up>,
    buffered: usize,
    /// The kernel takes no more, and the session knows.
    held: bool,
    departing: bool,
    /// No byte gets through any more, in either direction.
    black: bool,
    /// Since when, where the client cannot know.
    dead_since: Option<Duration>,
    cut_after: Option<(usize, u64)>,
    parser: AckParser,
    /// Acknowledgements do not overtake each other.
    down_at: Duration,
}

struct Entry(Duration, u64, What);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub struct World<'a> {
    plan: &'a Schedule,
    rng: fastrand::Rng,
    base: Instant,
    now: Duration,
    queue: BinaryHeap<Reverse<Entry>>,
    entries: u64,
    session: Session,
    ring: Reader,
    writer: Option<Writer>,
    sender: mpsc::UnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
    links: BTreeMap<ConnectionId, Link>,
    /// Under way: DescribeStream, and any one other.
    calling: Vec<Call>,
    service: Service,
    camera: Camera,
    wall_ms: i64,
    clock_stepped: bool,
    expires: Option<Duration>,
    endpoint: u32,
    drain: Option<Duration>,
    aborted: bool,
    confirmed: BTreeMap<u64, Vec<u64>>,
    last_confirm: Duration,
    /// Faults that have begun and may go on.
    struck: Vec<Fault>,
    /// Whether one of the connections that the session closed for the event at hand was dead.
    closed_dead: bool,
    /// Until when nobody can expect progress: the latest end of a fault, seen so far.
    trouble: Duration,
    idle_ticks: u32,
    /// Events since time went on.
    events_now: u32,
    trace: Option<Vec<String>>,
}

type Checked = Result<(), String>;

/// Runs a schedule. `trace` collects what happens.
pub fn run(plan: &Schedule, trace: Option<&mut Vec<String>>) -> Result<Tally, String> {
    let mut world = World::new(plan, trace.is_some());
    let result = world.run();
    if let (Some(into), Some(lines)) = (trace, world.trace.take()) {
        *into = lines;
    }
    result
}

/// How long somebody lets a file wait for room after its time, before they stop the program.
const PATIENCE_MS: u64 = 200_000;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl<'a> World<'a> {
    fn new(plan: &'a Schedule, trace: bool) -> Self {
        let (writer, ring) = share(Ring::new(plan.ring_bytes));
        let (sender, events) = mpsc::unbounded_channel();
        let mut world = Self {
            plan,
            rng: fastrand::Rng::with_seed(plan.seed ^ 0x5EED),
            base: Clock.now(),
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            entries: 0,
            session: Session::new(plan.settings()),
            ring,
            writer: Some(writer),
            sender,
            events,
            links: BTreeMap::new(),
            calling: Vec::new(),
            service: Service::new(plan),
            camera: Camera::new(plan),
            wall_ms: plan.wall_ms,
            clock_stepped: false,
            expires: None,
            endpoint: 0,
            drain: None,
            aborted: false,
            confirmed: BTreeMap::new(),
            last_confirm: Duration::ZERO,
            struck: Vec::new(),
            closed_dead: false,
            trouble: Duration::ZERO,
            idle_ticks: 0,
            events_now: 0,
            trace: trace.then(Vec::new),
        };
        world.later(ms(0), What::Shoot);
        for (index, fault) in plan.faults.iter().enumerate() {
            world.later(ms(fault.at_ms), What::Fault(index));
        }
        if let Some(at) = plan.abort_ms {
            world.later(ms(at), What::Abort);
        }
        world
    }

    fn run(&mut self) -> Result<Tally, String> {
        self.settle(Event::Tick)?;
        self.quiesce()?;
        while self.session.outcome().is_none() {
            self.next()?;
            self.quiesce()?;
            self.look()?;
        }
        self.verdict()
    }

    fn later(&mut self, after: Duration, what: What) {
        self.entries += 1;
        let entry = Entry(self.now + after, self.entries, what);
        self.queue.push(Reverse(entry));
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let at = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:9.3} {}", at.as_secs_f64(), line()));
        }
    }

    /// Time goes on to whatever comes first.
    fn next(&mut self) -> Checked {
        let deadline = self
            .session
            .deadline()
            .map(|at| at.saturating_duration_since(self.base));
        let next = self.queue.peek().map(|Reverse(entry)| entry.0);
        match (deadline, next) {
            (Some(at), next) if next.is_none_or(|next| at <= next) => {
                if at <= self.now {
                    self.idle_ticks += 1;
                    if self.idle_ticks > 5 {
                        return Err("the session's deadline does not move: a busy loop".into());
                    }
                } else {
                    self.time_goes_on();
                    // Timers have a granularity of 1 ms.
                    self.now =
                        ms(u64::try_from(at.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
                            .max(self.now);
                }
                self.settle(Event::Tick)
            }
            (_, Some(_)) => {
                let Reverse(Entry(at, _, what)) = self.queue.pop().expect("just seen");
                if at > self.now {
                    self.time_goes_on();
                }
                self.now = self.now.max(at);
                self.happen(what)
            }
            _ => Err("the session waits for nothing: a dead stream".into()),
        }
    }

    fn time_goes_on(&mut self) {
        self.idle_ticks = 0;
        self.events_now = 0;
    }

    /// What follows at once: events that were sent, bodies that were woken, a frame that control waits for.
    fn quiesce(&mut self) -> Checked {
        let mut rounds = 0;
        loop {
            self.pump_all();
            if let Ok(event) = self.events.try_recv() {
                self.settle(event)?;
                continue;
            }
            let unsent = self.session.awaits_media() && self.ring.with(|ring| ring.has_unsent());
            if !unsent {
                return Ok(());
            }
            rounds += 1;
            if rounds > 10 {
                return Err("the session waits for media that is there: a busy loop".into());
            }
            self.settle(Event::Tick)?;
        }
    }

    // ---- control's part ----

    fn settle(&mut self, event: Event) -> Checked {
        if event != Event::Tick {
            self.note(|| format!("{event:?}"));
        }
        self.events_now += 1;
        if self.events_now > 5000 {
            return Err("events without end, and no time passes: a busy loop".into());
        }
        if let Event::BodyEnded(id, _) = &event
            && let Some(link) = self.links.get_mut(id)
        {
            link.body_ended = true;
        }
        let mut next = Some(event);
        let mut rounds = 0;
        while let Some(event) = next.take() {
            rounds += 1;
            if rounds > 50 {
                return Err("every tick brings another action: a busy loop".into());
            }
            let now = self.surroundings();
            self.session.handle(event, now);
            self.closed_dead = false;
            while let Some(action) = self.session.next_action() {
                if !matches!(action, Action::Note(_)) {
                    next = Some(Event::Tick);
                }
                self.perform(action)?;
            }
        }
        Ok(())
    }

    fn surroundings(&mut self) -> Now {
        let (unsent, done) = self.ring.with(|ring| (ring.has_unsent(), ring.is_done()));
        Now {
            at: self.base + self.now,
            unsent,
            done,
            jitter: self.rng.f64(),
        }
    }

    fn perform(&mut self, action: Action) -> Checked {
        self.note(|| format!("    -> {action:?}"));
        match action {
            Action::Call(call) => self.call(call),
            Action::Open(id, origin) => self.open(id, &origin),
            Action::Start(id) => self.start(id),
            Action::Finish(id) => {
                if let Some(link) = self.links.get(&id).filter(|link| !link.closed) {
                    link.handle.finish(&self.ring);
                }
                Ok(())
            }
            Action::Close(id) => self.close(id),
            Action::Rewind(id) => {
                self.ring.with(|ring| ring.rewind(id));
                Ok(())
            }
            Action::Confirm(timecode) => self.confirm(timecode),
            Action::Refuse(timecode) => {
                let refused = self.ring.with(|ring| ring.refuse_fragment(timecode));
                refused
                    .map(drop)
                    .ok_or_else(|| format!("refused fragment {timecode} is not in the ring"))
            }
            Action::Discard => {
                self.ring.with(Ring::discard);
                Ok(())
            }
            Action::Note(Note::Failed(failure, _)) => self.failed(&failure),
            Action::Note(_) => Ok(()),
        }
    }

    fn call(&mut self, call: Call) -> Checked {
        let beside = |other: &Call| (*other == Call::Describe) != (call == Call::Describe);
        if !self.calling.iter().all(beside) {
            let under_way = &self.calling;
            return Err(format!(
                "{call:?} is called while {under_way:?} are under way"
            ));
        }
        self.calling.push(call);
        if call == Call::Describe && self.plan.needs_no_look() {
            return Err("a stream is looked at where the data endpoint is enough".into());
        }
        let latency = ms(2 * self.plan.latency_ms + self.rng.u64(1..60));
        let after = if self.is(|trouble| matches!(trouble, Trouble::BlackHole { .. })) {
            self.plan.settings().limit(call)
        } else {
            latency
        };
        self.later(after, What::Called(call));
        Ok(())
    }

    fn open(&mut self, id: ConnectionId, origin: &str) -> Checked {
        let endpoint = origin.parse().map_err(|_| format!("origin {origin:?}"))?;
        let link = Link {
            endpoint,
            handle: Handle::default(),
            body: None,
            body_ended: false,
            woken: Arc::default(),
            closed: false,
            opened: false,
            queue: VecDeque::new(),
            buffered: 0,
            held: false,
            departing: false,
            black: false,
            dead_since: None,
            cut_after: None,
            parser: AckParser::default(),
            down_at: Duration::ZERO,
        };
        if self.links.insert(id, link).is_some() {
            return Err(format!("connection {id} is opened twice"));
        }
        let after = ms(4 * self.plan.latency_ms + self.rng.u64(1..20));
        self.later(after, What::Opened(id));
        Ok(())
    }

    fn start(&mut self, id: ConnectionId) -> Checked {
        let media_ms = BOOT_MS + self.millis();
        let wall_ms = self.wall_ms + i64::try_from(self.millis()).expect("small");
        let link = self
            .links
            .get_mut(&id)
            .filter(|link| link.opened)
            .ok_or_else(|| format!("connection {id} is started and not open"))?;
        let anchor = wall_ms - i64::try_from(media_ms).expect("small");
        self.ring.with(|ring| ring.set_anchor(anchor));
        if link.closed {
            // Its Lost is on the way.
            return Ok(());
        }
        let body = UploadBody::new(
            id,
            self.ring.clone(),
            link.handle.clone(),
            self.sender.clone(),
        );
        link.body = Some(body);
        // One that died while it waited shows only now.
        link.dead_since = link.dead_since.map(|_| self.now);
        link.woken.0.store(true, Ordering::Relaxed);
        let head = Up::Head {
            expired: self.expires.is_some_and(|expires| self.now >= expires),
            endpoint: link.endpoint,
        };
        link.queue.push_back(head);
        self.depart(id);
        Ok(())
    }

    fn close(&mut self, id: ConnectionId) -> Checked {
        let orderly = self.rng.bool();
        let link = self
            .links
            .get_mut(&id)
            .ok_or_else(|| format!("connection {id} is closed and was never opened"))?;
        if link.closed {
            return Ok(());
        }
        link.closed = true;
        link.body = None;
        self.closed_dead |= link.black;
        if orderly {
            // The kernel still delivers what it has, from memory of its own.
            for up in &mut link.queue {
                if let Up::Bytes(parts) = up {
                    for part in parts {
                        *part = Bytes::copy_from_slice(part);
                    }
                }
            }
            link.queue.push_back(Up::Fin);
            self.depart(id);
        } else {
            // Unread answers make it a reset.
            link.queue.clear();
            self.forget(id, ms(self.plan.latency_ms));
        }
        Ok(())
    }

    /// The service learns after a while that a connection is gone.
    fn forget(&mut self, id: ConnectionId, after: Duration) {
        self.later(after, What::Service(Step::Gone(id)));
    }

    fn confirm(&mut self, timecode: Timecode) -> Checked {
        let confirmed = self
            .ring
            .with(|ring| ring.confirm(timecode))
            .ok_or_else(|| format!("confirmed fragment {timecode} is not in the ring"))?;
        let stored = self
            .service
            .recording
            .get(&timecode.0)
            .ok_or_else(|| format!("confirmed fragment {timecode} is not stored"))?;
        if confirmed.amount.frames != stored.len() as u64 {
            return Err(format!(
                "fragment {timecode} has {} frames and {} are stored",
                confirmed.amount.frames,
                stored.len()
            ));
        }
        let bytes: usize = stored
            .iter()
            .map(|&id| self.camera.shots[usize::try_from(id).expect("checked on arrival")].len)
            .sum();
        if confirmed.amount.bytes != bytes as u64 {
            return Err(format!("fragment {timecode}: {bytes} bytes are stored"));
        }
        if self.confirmed.insert(timecode.0, stored.clone()).is_some() {
            return Err(format!("fragment {timecode} is confirmed twice"));
        }
        self.last_confirm = self.now;
        Ok(())
    }

    // ---- the network ----

    fn millis(&self) -> u64 {
        u64::try_from(self.now.as_millis()).expect("virtual time is short")
    }

    /// Whether a fault of this kind is going on.
    fn is(&self, which: impl Fn(&Trouble) -> bool) -> bool {
        self.find(|trouble| which(trouble).then_some(())).is_some()
    }

    fn find<T>(&self, which: impl Fn(&Trouble) -> Option<T>) -> Option<T> {
        self.going_on().find_map(|fault| which(&fault.trouble))
    }

    fn going_on(&self) -> impl Iterator<Item = &Fault> {
        let now = self.millis();
        let going_on = move |fault: &&Fault| now < fault.at_ms + fault.lasting_ms;
        self.struck.iter().filter(going_on)
    }

    fn mood(&self) -> Mood {
        Mood {
            now_ms: self.millis(),
            mute: self.is(|trouble| *trouble == Trouble::Mute),
            no_persist: self.is(|trouble| *trouble == Trouble::NoPersist),
            double: self.is(|trouble| *trouble == Trouble::Double),
            refuse: self.find(|trouble| match trouble {
                Trouble::RefusePut(kind) => Some(*kind),
                _ => None,
            }),
        }
    }

    /// For how long nothing moves yet.
    fn frozen_for(&self) -> Option<Duration> {
        self.going_on()
            .filter(|fault| fault.trouble == Trouble::Freeze)
            .map(|fault| ms(fault.at_ms + fault.lasting_ms).saturating_sub(self.now))
            .max()
    }

    fn pump_all(&mut self) {
        let ids: Vec<_> = self
            .youngest()
            .filter(|(_, link)| {
                link.body.is_some()
                    && link.buffered < self.plan.send_buffer
                    && link.woken.0.load(Ordering::Relaxed)
            })
            .map(|(&id, _)| id)
            .collect();
        for id in ids {
            self.pump(id);
        }
    }

    /// The links that may be alive: with more than these something else would have failed.
    fn youngest(&self) -> impl Iterator<Item = (&ConnectionId, &Link)> {
        self.links.iter().rev().take(4)
    }

    /// The HTTP client asks the body for what it can write.
    fn pump(&mut self, id: ConnectionId) {
        let room = self.plan.send_buffer;
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let Some(body) = link.body.as_mut() else {
            return;
        };
        let waker = Waker::from(Arc::clone(&link.woken));
        let mut context = Context::from_waker(&waker);
        // What leaves within 200 ms leaves together.
        let together = usize::try_from(self.plan.bandwidth / 5).expect("small");
        let (mut parts, mut len) = (Vec::new(), 0);
        let mut ended = false;
        while link.buffered < room {
            match Pin::new(&mut *body).poll_frame(&mut context) {
                Poll::Ready(Some(frame)) => {
                    let mut bytes = frame.expect("infallible").into_data().expect("data");
                    link.buffered += bytes.len();
                    // A slow link takes a large part bit by bit.
                    while bytes.len() > together.max(4096) {
                        let first = bytes.split_to(together.max(4096));
                        parts.push(first);
                        link.queue.push_back(Up::Bytes(std::mem::take(&mut parts)));
                        len = 0;
                    }
                    if len + bytes.len() > together && !parts.is_empty() {
                        link.queue.push_back(Up::Bytes(std::mem::take(&mut parts)));
                        len = 0;
                    }
                    len += bytes.len();
                    parts.push(bytes);
                }
                Poll::Ready(None) => {
                    ended = true;
                    break;
                }
                Poll::Pending => {
                    link.woken.0.store(false, Ordering::Relaxed);
                    break;
                }
            }
        }
        if !parts.is_empty() {
            link.queue.push_back(Up::Bytes(parts));
        }
        if ended {
            link.body = None;
            link.queue.push_back(Up::Terminator);
        }
        if link.buffered >= room && !link.held {
            link.held = true;
            let _ = self.sender.send(Event::Held(id));
        }
        self.depart(id);
    }

    /// The next of what is queued goes onto the wire.
    fn depart(&mut self, id: ConnectionId) {
        let slow = self
            .find(|trouble| match trouble {
                Trouble::Slow { by } => Some(*by),
                _ => None,
            })
            .unwrap_or(1);
        let bandwidth = (self.plan.bandwidth / u64::from(slow)).max(1);
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let Some(first) = link.queue.front().filter(|_| !link.departing) else {
            return;
        };
        link.departing = true;
        let time = Duration::from_micros(first.len() as u64 * 1_000_000 / bandwidth);
        self.later(time, What::Depart(id));
    }

    fn departed(&mut self, id: ConnectionId) {
        if let Some(after) = self.frozen_for() {
            return self.later(after, What::Depart(id));
        }
        let latency = ms(self.plan.latency_ms);
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.departing = false;
        if link.black {
            return;
        }
        let Some(mut up) = link.queue.pop_front() else {
            return;
        };
        link.buffered -= up.len().min(link.buffered);
        if link.held {
            // Some of what waited behind the kernel's buffer moves up; the rest is held again.
            let _ = self.sender.send(Event::Moved(id));
            link.held = link.buffered >= self.plan.send_buffer;
            if link.held {
                let _ = self.sender.send(Event::Held(id));
            }
        }
        let mut cut = None;
        if let (Up::Bytes(parts), Some((left, linger))) = (&mut up, &mut link.cut_after) {
            for part in parts.iter_mut() {
                part.truncate(*left);
                *left -= part.len();
            }
            if *left == 0 {
                cut = Some(*linger);
            }
        }
        self.later(latency, What::Arrive(id, up));
        match cut {
            Some(linger_ms) => self.cut(id, ms(linger_ms), "reset by peer"),
            None => self.depart(id),
        }
    }

    /// The connection breaks: the client sees it at once, the service later.
    fn cut(&mut self, id: ConnectionId, linger: Duration, why: &str) {
        let latency = ms(self.plan.latency_ms);
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.queue.clear();
        link.black = true;
        self.forget(id, latency + linger);
        self.trouble = self.trouble.max(self.now + latency + linger);
        self.lose(id, Failure::new(FailureKind::Network, why));
    }

    /// The client is told that it has lost the connection.
    fn lose(&mut self, id: ConnectionId, failure: Failure) {
        let Some(link) = self.links.get_mut(&id).filter(|link| !link.closed) else {
            return;
        };
        link.closed = true;
        link.body = None;
        self.sender
            .send(Event::Lost(id, failure))
            .expect("the world has the receiver");
    }

    fn arrive(&mut self, id: ConnectionId, up: Up) -> Checked {
        let mood = self.mood();
        let out = match up {
            Up::Head { expired, endpoint } => {
                let good = if expired {
                    Err(FailureKind::BadCredentials)
                } else if endpoint != self.endpoint {
                    Err(FailureKind::WrongEndpoint)
                } else {
                    Ok(())
                };
                self.service.head(id, good, mood)
            }
            Up::Bytes(parts) => {
                let mut out = Vec::new();
                for part in parts {
                    out.extend(self.service.bytes(
                        id,
                        &part,
                        &self.camera.shots,
                        mood,
                        &mut self.rng,
                    )?);
                }
                out
            }
            Up::Terminator => self.service.terminator(id, mood, &mut self.rng)?,
            Up::Fin => self.service.step(Step::Gone(id), mood, &mut self.rng)?,
        };
        self.carry_out(out);
        Ok(())
    }

    fn carry_out(&mut self, out: Vec<Out>) {
        for out in out {
            match out {
                Out::Later(after, step) => self.later(after, What::Service(step)),
                Out::Say(id, Down::Bytes(bytes)) => {
                    // Proxies split and merge.
                    let cut = match self.rng.u8(..) {
                        0..40 => self.rng.usize(..bytes.len()),
                        _ => 0,
                    };
                    let (first, second) = bytes.split_at(cut);
                    for piece in [first, second] {
                        if !piece.is_empty() {
                            self.say(id, Down::Bytes(piece.to_vec()));
                        }
                    }
                }
                Out::Say(id, down) => self.say(id, down),
            }
        }
    }

    fn say(&mut self, id: ConnectionId, down: Down) {
        let late = self
            .find(|trouble| match trouble {
                Trouble::Late { ms } => Some(*ms),
                _ => None,
            })
            .unwrap_or(0);
        let after = ms(self.plan.latency_ms + late + self.rng.u64(..8));
        let now = self.now;
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.down_at = link.down_at.max(now + after);
        let after = link.down_at.saturating_sub(now);
        self.later(after, What::Down(id, down));
    }

    fn down(&mut self, id: ConnectionId, down: Down) {
        if let Some(after) = self.frozen_for() {
            return self.later(after, What::Down(id, down));
        }
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if link.closed || link.black {
            return;
        }
        match down {
            Down::Accept => drop(self.sender.send(Event::Accepted(id))),
            Down::Refuse(kind) => {
                link.queue.clear();
                link.black = true;
                self.lose(id, Failure::new(kind, "PutMedia was refused"));
            }
            Down::Bytes(bytes) => {
                let sender = &self.sender;
                link.parser.push(&bytes, |ack| {
                    let ack = ack.expect("the model's acknowledgements are well-formed");
                    drop(sender.send(Event::Ack(id, ack)));
                });
            }
            Down::End => {
                link.queue.clear();
                link.black = true;
                self.forget(id, Duration::ZERO);
                self.lose(
                    id,
                    Failure::new(FailureKind::Network, "the service ended the connection"),
                );
            }
        }
    }

    // ---- what happens ----

    fn happen(&mut self, what: What) -> Checked {
        match what {
            What::Shoot => return self.shoot(),
            What::Called(call) => {
                self.calling.retain(|&other| other != call);
                let reply = self.reply(call);
                return self.settle(Event::Replied(call, reply));
            }
            What::Opened(id) => self.opened(id),
            What::Broken(id, failure) => self.lose(id, failure),
            What::Depart(id) => self.departed(id),
            What::Arrive(id, up) => return self.arrive(id, up),
            What::Down(id, down) => self.down(id, down),
            What::Service(step) => {
                let mood = self.mood();
                let out = self.service.step(step, mood, &mut self.rng)?;
                self.carry_out(out);
            }
            What::Fault(index) => {
                self.strike(index);
                return self.order(index);
            }
            What::Resume => {
                self.ring.with(|ring| ring.set_paused(false));
                return self.settle(Event::Resume);
            }
            What::Abort => {
                self.aborted = true;
                return self.settle(Event::Abort);
            }
        }
        Ok(())
    }

    fn shoot(&mut self) -> Checked {
        let now_ms = self.millis();
        let Some(writer) = self.writer.as_mut() else {
            return Ok(());
        };
        let patience_ms = if self.camera.waits_for_room() {
            PATIENCE_MS
        } else {
            0
        };
        if now_ms < self.plan.length_ms + patience_ms {
            self.camera
                .step(self.plan, now_ms, writer, &self.ring, &mut self.rng);
            self.later(ms(self.plan.interval_ms), What::Shoot);
            return Ok(());
        }
        self.writer = None;
        let until = self.now + ms(self.plan.grace_ms);
        self.drain = Some(until);
        self.settle(Event::Drain(self.base + until))
    }

    fn opened(&mut self, id: ConnectionId) {
        let network = |why: &str| Failure::new(FailureKind::Network, why);
        if self.is(|trouble| matches!(trouble, Trouble::BlackHole { .. })) {
            // The kernel tries for longer than the session waits.
            return self.later(ms(60_000), What::Broken(id, network("timed out")));
        }
        if self.is(|trouble| matches!(trouble, Trouble::Down { .. })) {
            return self.lose(id, network("unreachable"));
        }
        if let Some(after) = self.frozen_for() {
            return self.later(after, What::Opened(id));
        }
        if let Some(link) = self.links.get_mut(&id).filter(|link| !link.closed) {
            link.opened = true;
            drop(self.sender.send(Event::Opened(id)));
        }
    }

    fn reply(&mut self, call: Call) -> Result<Reply, Failure> {
        let down =
            |trouble: &Trouble| matches!(trouble, Trouble::Down { .. } | Trouble::BlackHole { .. });
        let refused = |trouble: &Trouble| match trouble {
            Trouble::RefuseCalls(kind) => Some(*kind),
            _ => None,
        };
        if self.is(down) {
            return Err(Failure::new(FailureKind::Network, "no network"));
        }
        if let Some(kind) = self.find(refused) {
            return Err(Failure::new(kind, format!("{call:?} was refused")));
        }
        let now_ms = self.millis();
        if let Stream::Creating { ready_ms } = self.service.stream
            && now_ms >= ready_ms
        {
            self.service.stream = Stream::Active;
        }
        let missing = Failure::new(FailureKind::NotFound, "no such stream");
        match call {
            Call::Credentials => {
                self.expires = self.plan.credential_life_ms.map(|life| self.now + ms(life));
                Ok(Reply::Credentials(
                    self.expires.map(|until| self.base + until),
                ))
            }
            Call::Create => {
                if self.service.stream != Stream::Missing {
                    return Err(Failure::new(FailureKind::NotActive, "it is there"));
                }
                self.service.stream = Stream::Creating {
                    ready_ms: now_ms + self.rng.u64(..4000),
                };
                Ok(Reply::Created)
            }
            _ if self.service.stream == Stream::Missing => Err(missing),
            Call::Describe => Ok(Reply::Described {
                active: self.service.stream == Stream::Active,
                deleting: false,
                retention_hours: self.service.retention_hours,
            }),
            Call::Tag => Ok(Reply::Tagged),
            Call::Endpoint => Ok(Reply::Endpoint(self.endpoint.to_string())),
        }
    }

    fn strike(&mut self, index: usize) {
        let fault = self.plan.faults[index];
        self.note(|| format!("FAULT {fault:?}"));
        self.trouble = self.trouble.max(ms(fault.end_ms()));
        let now = self.millis();
        self.struck
            .retain(|fault| now < fault.at_ms + fault.lasting_ms);
        self.struck.push(fault);
        let carrier = self.session.current();
        match fault.trouble {
            Trouble::Cut { after, linger_ms } => {
                if let Some(link) = carrier.and_then(|id| self.links.get_mut(&id)) {
                    link.cut_after = Some((after, linger_ms));
                }
            }
            Trouble::BlackHole { linger_ms } => {
                let ids: Vec<_> = self.links.keys().copied().collect();
                // What is on its way arrives before the service sees that nothing more comes.
                let forgotten = ms((fault.lasting_ms + linger_ms).max(self.plan.latency_ms));
                for id in ids {
                    let link = self.links.get_mut(&id).expect("just listed");
                    if !link.black {
                        link.black = true;
                        link.dead_since = Some(self.now);
                        self.forget(id, forgotten);
                    }
                }
            }
            Trouble::Down { linger_ms } => {
                let ids: Vec<_> = self.links.keys().copied().collect();
                for id in ids {
                    if self.links[&id].opened && !self.links[&id].black {
                        self.cut(id, ms(linger_ms), "network is down");
                    }
                }
            }
            Trouble::LoseAck { dies_in_ms } => {
                if let Some(id) = self.service.lose_next() {
                    // It dies even where no PERSISTED was due meanwhile.
                    let failure = Failure::new(FailureKind::Network, "reset by peer");
                    self.later(ms(dies_in_ms), What::Broken(id, failure));
                    self.forget(id, ms(dies_in_ms + self.plan.latency_ms));
                }
            }
            Trouble::End => {
                let out = self.service.end();
                self.carry_out(out);
            }
            Trouble::Error { id, names } => {
                let out = self.service.error(id, names);
                self.carry_out(out);
            }
            Trouble::Delete => {
                let out = self.service.delete();
                self.carry_out(out);
            }
            Trouble::ClockStep { ms } => {
                self.wall_ms += ms;
                self.clock_stepped = true;
            }
            Trouble::Move => self.endpoint += 1,
            _ => {}
        }
    }

    /// Some faults are somebody's orders.
    fn order(&mut self, index: usize) -> Checked {
        let fault = self.plan.faults[index];
        match fault.trouble {
            Trouble::Pause => {
                self.later(ms(fault.lasting_ms), What::Resume);
                self.ring.with(|ring| ring.set_paused(true));
                self.settle(Event::Pause)
            }
            Trouble::Anew(what) => self.settle(Event::Reset(what)),
            _ => Ok(()),
        }
    }

    // ---- what must be true ----

    /// A connection is left for standing still only where a fault made it.
    fn failed(&self, failure: &Failure) -> Checked {
        // What a fault did to a fragment may show only when its time to be confirmed is over.
        let calm = self.now > self.trouble + self.plan.settings().confirm_timeout + ms(5000)
            || self.trouble.is_zero();
        if calm && !self.closed_dead && failure.kind == FailureKind::Stalled {
            return Err(format!(
                "a healthy connection is left: {}; the last trouble was over at {:?}",
                failure.message, self.trouble
            ));
        }
        Ok(())
    }

    /// After every step.
    fn look(&mut self) -> Checked {
        let (fill, counts) = self.ring.with(|ring| (ring.fill(), ring.counts()));
        if fill.total_bytes > self.plan.ring_bytes || fill.available_bytes > fill.total_bytes {
            return Err(format!("the ring's memory is off: {fill:?}"));
        }
        let gone = counts.persisted.frames + counts.dropped_in_all().frames;
        if counts.captured.frames < gone
            || counts.captured.frames > gone
                && self.confirmed.len() as u64 != counts.fragments_persisted
        {
            return Err(format!("the ring's counts are off: {counts:?}"));
        }
        let carrying = self
            .youngest()
            .filter(|(_, link)| link.body.is_some() && !link.body_ended)
            .count();
        if carrying > 1 {
            return Err("two bodies take frames".into());
        }
        if self.drain.is_some_and(|until| self.now > until + ms(5))
            && self.session.outcome().is_none()
        {
            return Err("the session goes on after its time to drain".into());
        }
        self.look_for_the_dead()?;
        self.look_for_life()
    }

    /// A connection whose service is gone without a word is left soon after the fragment that it carries is at its end.
    fn look_for_the_dead(&self) -> Checked {
        let still = |trick: &Trick| {
            matches!(
                trick,
                Trick::Stall { .. } | Trick::Lost { .. } | Trick::Time { .. }
            )
        };
        if self.plan.scenes.iter().any(|scene| still(&scene.trick)) {
            return Ok(());
        }
        let fragment = ms(self.camera.longest_gop_ms.min(19_000) + 1000 + self.plan.interval_ms);
        let settings = self.plan.settings();
        // A camera that waits for room may be unable to end its fragment, until an earlier one that is not confirmed tells.
        let full = if self.plan.waits {
            settings.confirm_timeout
        } else {
            Duration::ZERO
        };
        let bound = fragment + full + settings.progress_timeout.mul_f64(1.25) + ms(100);
        for (id, link) in self.youngest() {
            let carries = link.body.is_some() && !link.closed;
            if let Some(since) = link.dead_since.filter(|_| carries)
                && self.now > since + bound
            {
                return Err(format!("connection {id} is dead since {since:?}"));
            }
        }
        Ok(())
    }

    /// Some time after the last fault fragments are confirmed again, and go on to be.
    fn look_for_life(&self) -> Checked {
        let media_ends = ms(self.plan.length_ms);
        if !self.plan.must_recover() || self.now > media_ends || self.writer.is_none() {
            return Ok(());
        }
        let settings = self.plan.settings();
        let tricks = self.plan.scenes.iter().map(|scene| {
            let at = ms(scene.at_ms);
            match scene.trick {
                _ if at > self.now => Duration::ZERO,
                Trick::Stall { ms: time } | Trick::Lost { ms: time } => at + ms(time),
                _ => at,
            }
        });
        let trouble = self.trouble.max(tricks.max().unwrap_or_default());
        // A fault that only silence tells is noticed when its time is over.
        let notice = settings.confirm_timeout;
        let gop = ms(2 * self.camera.longest_gop_ms.min(19_000)).max(ms(2000));
        let bound = notice + settings.longest_wait + ms(5000) + gop + ms(4 * self.plan.persist_ms);
        let since = trouble.max(self.last_confirm);
        if self.now > since + bound {
            return Err(format!(
                "no fragment was confirmed since {since:?}, the last trouble ended at {trouble:?}"
            ));
        }
        Ok(())
    }

    fn verdict(&mut self) -> Result<Tally, String> {
        let outcome = self.session.outcome().expect("the caller saw it").clone();
        self.note(|| format!("{outcome:?}"));
        let done = self.ring.with(|ring| ring.is_done());
        match &outcome {
            Outcome::Done if !done => return Err("Done, and something is left".into()),
            Outcome::OutOfTime(_)
                if !self.aborted && self.drain.is_none_or(|until| self.now < until) =>
            {
                return Err("OutOfTime before its time".into());
            }
            Outcome::GaveUp(failure)
                if failure.kind.pace() != Pace::Slow
                    || !self.confirmed.is_empty()
                    || !(self.plan.give_up || self.drain.is_some()) =>
            {
                return Err(format!("gave up for {failure:?}"));
            }
            _ => {}
        }
        self.ring.with(Ring::abandon);
        let counts = self.ring.with(|ring| ring.counts());
        let frames: u64 = self.confirmed.values().map(|ids| ids.len() as u64).sum();
        let shots = &self.camera.shots;
        if counts.captured.frames != shots.len() as u64
            || counts.captured.bytes != self.camera.bytes
        {
            return Err(format!("{} frames were captured: {counts:?}", shots.len()));
        }
        if counts.persisted.frames != frames
            || counts.fragments_persisted != self.confirmed.len() as u64
        {
            return Err(format!("{frames} frames were confirmed: {counts:?}"));
        }
        let dropped = counts.dropped_in_all();
        if counts.captured.frames != counts.persisted.frames + dropped.frames
            || counts.captured.bytes != counts.persisted.bytes + dropped.bytes
        {
            return Err(format!(
                "captured is not persisted and dropped together: {counts:?}"
            ));
        }
        self.reasons_are_true(&counts)?;
        self.recording_is_in_order()?;
        let unconfirmed = self
            .service
            .recording
            .iter()
            .filter(|(timecode, _)| !self.confirmed.contains_key(timecode))
            .map(|(_, ids)| ids.len() as u64)
            .sum::<u64>();
        let given_up = GIVEN_UP
            .iter()
            .map(|&reason| counts.dropped_for(reason).frames)
            .sum::<u64>();
        if unconfirmed > given_up {
            return Err(format!(
                "the service has {unconfirmed} frames that were neither confirmed nor given up ({given_up} were)"
            ));
        }
        // Giving up is for a stream that never worked, when the source is at its end.
        let had_a_chance = !matches!(outcome, Outcome::GaveUp(_));
        let complete = given_up == 0 && outcome == Outcome::Done;
        if self.plan.must_lose_nothing() && had_a_chance && !complete {
            return Err(format!(
                "nothing had to be lost, and the outcome is {outcome:?} with {counts:?}"
            ));
        }
        let connections = self.session.connections_opened();
        if connections != self.links.len() as u64 {
            return Err(format!(
                "{connections} connections, {} were opened",
                self.links.len()
            ));
        }
        Ok(Tally {
            counts,
            connections,
            confirmed: frames,
        })
    }

    /// Every frame that was dropped is counted for the reason that its camera was told, or was given up later.
    fn reasons_are_true(&self, counts: &Counts) -> Checked {
        for reason in DropReason::ALL {
            let pushed = self
                .camera
                .shots
                .iter()
                .filter(|shot| shot.dropped == Some(reason))
                .count() as u64;
            let counted = counts.dropped_for(reason).frames;
            let later = GIVEN_UP.contains(&reason);
            if counted < pushed || (counted > pushed && !later) {
                return Err(format!(
                    "{reason:?}: {pushed} were dropped, {counted} counted"
                ));
            }
        }
        Ok(())
    }

    /// The recording, sorted by timecode, is in order, and frames have their distances.
    fn recording_is_in_order(&self) -> Checked {
        let shots = &self.camera.shots;
        let mut last: Option<(u64, u64)> = None;
        let offsets: Vec<_> = self.recording_offsets();
        for (timecode, ids) in &self.service.recording {
            let first_at = shots[usize::try_from(ids[0]).expect("checked on arrival")].at;
            for &id in ids {
                let time = timecode + shots[usize::try_from(id).expect("checked on arrival")].at
                    - first_at;
                if last.is_some_and(|last| last.0 >= time || last.1 >= id) {
                    return Err(format!(
                        "frame {id} at {time} of fragment {timecode} comes after (time, frame) {last:?}"
                    ));
                }
                last = Some((time, id));
            }
        }
        // Where the wall clock does not step, nothing is moved; but nothing is named before 1970.
        let moved = self.clock_stepped || self.service.recording.contains_key(&0);
        if !moved && offsets.iter().any(|&offset| offset != offsets[0]) {
            return Err(format!(
                "fragments are named {offsets:?} ms after their capture"
            ));
        }
        Ok(())
    }

    fn recording_offsets(&self) -> Vec<i64> {
        let shots = &self.camera.shots;
        self.service
            .recording
            .iter()
            .map(|(timecode, ids)| {
                let at = shots[usize::try_from(ids[0]).expect("checked on arrival")].at;
                i64::try_from(*timecode).expect("small") - i64::try_from(at).expect("small")
            })
            .collect()
    }
}
