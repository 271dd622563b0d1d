//! One PutMedia request: its headers, and the media and acknowledgements that follow. IO, but for [`Request`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until, timeout, timeout_at};
use tracing::{debug, info, warn};

use super::acks::{Ack, AckError, EventType, FragmentNumber, Outbox};
use super::api::{ApiError, Status, Stream};
use super::io::{Ending, Wire};
use super::media::{self, Fragment, Keep, Reader, TimecodeType, Violation};
use super::recording::{Stored, StreamId};
use super::scenario::{Action, Break, FragmentPlace};
use super::server::{Service, lock};
use super::view::{Closed, FragmentView, History};
use crate::chain;

/// Pieces of acknowledgements on their way to the socket. When the client does not read them, its body is not read either.
const ACK_PIECES: usize = 256;

/// How long a break waits for what was acknowledged before it to go out.
const FLUSH: Duration = Duration::from_millis(500);

/// What the headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    stream: Name,
    times: TimecodeType,
    start_ms: Option<u64>,
    acks: bool,
    /// The client waits for `100 Continue`.
    waits: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Name(String),
    Arn(String),
}

impl Request {
    /// Reads and checks the headers.
    pub(super) fn parse(headers: &HeaderMap) -> Result<Self, ApiError> {
        let text = |name: &str| match headers.get(name) {
            None => Ok(None),
            Some(value) => value
                .to_str()
                .map(Some)
                .map_err(|_| ApiError::argument(format!("{name} is not ASCII"))),
        };
        let chunked = text("transfer-encoding")?.is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
        if !chunked {
            return Err(ApiError::argument("transfer-encoding must be chunked"));
        }
        let stream = match (text("x-amzn-stream-name")?, text("x-amzn-stream-arn")?) {
            (Some(name), None) => Name::Name(name.to_owned()),
            (None, Some(arn)) => Name::Arn(arn.to_owned()),
            _ => {
                return Err(ApiError::argument(
                    "exactly one of x-amzn-stream-name and x-amzn-stream-arn is needed",
                ));
            }
        };
        let start_ms = match text("x-amzn-producer-start-timestamp")? {
            None => None,
            Some(text) => Some(parse_timestamp(text).ok_or_else(|| {
                let message = format!(
                    "x-amzn-producer-start-timestamp {text:?} is not seconds with three decimals"
                );
                ApiError::argument(message)
            })?),
        };
        let times = match (text("x-amzn-fragment-timecode-type")?, start_ms) {
            (Some("ABSOLUTE"), _) => TimecodeType::Absolute,
            (Some("RELATIVE"), Some(start_ms)) => TimecodeType::Relative { start_ms },
            (Some("RELATIVE"), None) => {
                return Err(ApiError::argument(
                    "RELATIVE timecodes need x-amzn-producer-start-timestamp",
                ));
            }
            _ => {
                return Err(ApiError::argument(
                    "x-amzn-fragment-timecode-type must be ABSOLUTE or RELATIVE",
                ));
            }
        };
        let acks = match text("x-amzn-fragment-acknowledgment-required")? {
            None | Some("1") => true,
            Some("0") => false,
            Some(_) => {
                return Err(ApiError::argument(
                    "x-amzn-fragment-acknowledgment-required must be 0 or 1",
                ));
            }
        };
        Ok(Self {
            stream,
            times,
            start_ms,
            acks,
            waits: headers.contains_key("expect"),
        })
    }
}

/// Seconds with exactly three decimals, as milliseconds.
fn parse_timestamp(text: &str) -> Option<u64> {
    let (seconds, millis) = text.split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(seconds) || !digits(millis) || millis.len() != 3 {
        return None;
    }
    let seconds: u64 = seconds.parse().ok()?;
    seconds.checked_mul(1000)?.checked_add(millis.parse().ok()?)
}

/// The hold of a connection on its stream; dropping it lets go.
#[derive(Debug)]
struct Claim {
    service: Arc<Service>,
    stream: String,
    connection: u64,
}

impl Claim {
    /// Takes the stream. One connection may have it; when the old one is just ending, a short wait for that is as good
    /// as the service's own slackness.
    async fn take(service: &Arc<Service>, stream: &str, connection: u64) -> Result<Self, ApiError> {
        let deadline = tokio::time::Instant::now() + service.durations.takeover;
        loop {
            let released = service.released.notified();
            {
                let mut store = lock(&service.store);
                let known = store
                    .get(stream)
                    .ok_or_else(|| ApiError::not_found(stream))?;
                if known.live.is_none() {
                    known.live = Some(connection);
                    return Ok(Self {
                        service: Arc::clone(service),
                        stream: stream.to_owned(),
                        connection,
                    });
                }
            }
            if timeout_at(deadline, released).await.is_err() {
                return Err(ApiError::bad(
                    "ConnectionLimitExceededException",
                    format!("another PutMedia connection streams to {stream}"),
                ));
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut store = lock(&self.service.store);
        if let Some(stream) = store.get(&self.stream)
            && stream.live == Some(self.connection)
        {
            stream.live = None;
        }
        self.service.released.notify_waiters();
    }
}

/// Sees to it that the view learns how the connection ended, also when the task is dropped.
#[derive(Debug)]
struct Epilogue {
    service: Arc<Service>,
    connection: u64,
    closed: Closed,
}

impl Drop for Epilogue {
    fn drop(&mut self) {
        let closed = self.closed.clone();
        let journal = &self.service.journal;
        journal.connection(self.connection, |view| view.closed = Some(closed));
    }
}

/// A PutMedia connection under way.
pub(super) struct Session {
    service: Arc<Service>,
    wire: Arc<Wire>,
    stream: String,
    arn: String,
    number: u64,
    claim: Option<Claim>,
    request: Request,
    body: Incoming,
    /// What came while the answer was made.
    early: Option<Arrival>,
    acks: mpsc::Sender<Bytes>,
    outbox: Outbox,
    reader: Reader,
    bytes: u64,
    fragments: u64,
    current: Option<Current>,
    deaf: bool,
    started: Instant,
    last_data: Instant,
    last_idle: Instant,
    epilogue: Epilogue,
}

/// The fragment under way, or the one that was last.
#[derive(Debug, Clone)]
struct Current {
    timecode: u64,
    number: FragmentNumber,
    place: FragmentPlace,
}

/// What comes of a body: a frame, an error, or the end.
type Arrival = Option<Result<Frame<Bytes>, hyper::Error>>;

/// Going on, or the end.
type Step = Result<(), Closed>;

impl Session {
    /// Takes the stream for a request whose signature and headers are good.
    pub(super) async fn open(
        service: &Arc<Service>,
        wire: &Arc<Wire>,
        request: Request,
        mut body: Incoming,
    ) -> Result<(Self, mpsc::Receiver<Bytes>), ApiError> {
        let now = service.clock.now();
        let (stream, arn) = {
            let mut store = lock(&service.store);
            store.settle(now);
            let name = match &request.stream {
                Name::Name(name) => name.clone(),
                Name::Arn(arn) => store.name_of(arn).unwrap_or_else(|| arn.clone()),
            };
            let known = store.get(&name).ok_or_else(|| ApiError::not_found(&name))?;
            let arn = known.arn().to_owned();
            store.throttle(&name, "PutMedia", service.limits.calls_per_second, now)?;
            (name, arn)
        };
        let number = service.next_connection();
        let claim = Claim::take(service, &stream, number).await?;
        service.journal.opened(number, &stream);
        let mut epilogue = Epilogue {
            service: Arc::clone(service),
            connection: number,
            closed: Closed::Lost,
        };
        let late_refusal = lock(&service.scenario).late_refusal(number);
        if let Some((after, error)) = late_refusal {
            read_bytes(&mut body, after).await;
            epilogue.closed = Closed::Broken;
            return Err(error);
        }
        let early = if request.waits {
            ask_for(&mut body).await
        } else {
            None
        };
        info!(stream, connection = number, "PutMedia begins");
        let keep = match service.journal.history() {
            History::Payloads => Keep::Payload,
            History::Frames | History::Recent => Keep::Description,
        };
        let (acks, pieces) = mpsc::channel(ACK_PIECES);
        let session = Self {
            service: Arc::clone(service),
            wire: Arc::clone(wire),
            stream,
            arn,
            number,
            claim: Some(claim),
            reader: Reader::new(service.limits.clone(), request.times, keep),
            request,
            body,
            early,
            acks,
            outbox: Outbox::default(),
            bytes: 0,
            fragments: 0,
            current: None,
            deaf: false,
            started: now,
            last_data: now,
            last_idle: now,
            epilogue,
        };
        Ok((session, pieces))
    }

    /// Streams to the end.
    pub(super) async fn run(mut self) {
        let closed = loop {
            if let Err(closed) = self.step().await {
                break closed;
            }
        };
        debug!(
            stream = self.stream,
            connection = self.number,
            ?closed,
            "PutMedia ended"
        );
        self.epilogue.closed = closed;
    }

    async fn step(&mut self) -> Step {
        if self.bytes == 0 {
            self.check_start().await?;
        }
        self.send_due().await?;
        if let Some(early) = self.early.take() {
            return self.arrived(early).await;
        }
        let timer = sleep_until(self.next_timer().into());
        tokio::select! {
            frame = self.body.frame() => self.arrived(frame).await,
            () = timer => self.timer().await,
        }
    }

    /// What is wrong from the start, but is told in an acknowledgement.
    async fn check_start(&mut self) -> Step {
        self.check_stream().await?;
        if let Some(start_ms) = self.request.start_ms
            && !media::is_of_this_time(start_ms, self.service.wall())
        {
            let reason = format!("the start timestamp {start_ms} ms is not of this time");
            return self.refuse(AckError::PRODUCER_TIMESTAMP, reason).await;
        }
        Ok(())
    }

    async fn check_stream(&mut self) -> Step {
        let status = self.of_stream(Stream::status);
        match status {
            Some(Status::Active | Status::Updating) => Ok(()),
            status => {
                let reason = format!("the stream is {status:?}");
                self.refuse(AckError::STREAM_NOT_ACTIVE, reason).await
            }
        }
    }

    /// Asks the stream, if it is still the one that this connection began with.
    fn of_stream<T>(&self, ask: impl FnOnce(&Stream) -> T) -> Option<T> {
        let mut store = lock(&self.service.store);
        store.settle(self.service.clock.now());
        let stream = store.get(&self.stream)?;
        (stream.arn() == self.arn).then(|| ask(stream))
    }

    fn next_timer(&self) -> Instant {
        let durations = self.service.durations;
        let idle = self.last_idle.max(self.last_data) + durations.idle_ack;
        let times = [self.oldest(), self.last_data + durations.idle_close, idle];
        let times = times.into_iter().chain(self.outbox.due());
        times.min().expect("there are four of them")
    }

    /// When the connection is too old.
    fn oldest(&self) -> Instant {
        let most = self.service.durations.connection_age;
        self.started + self.service.settings().connection_age.unwrap_or(most)
    }

    async fn timer(&mut self) -> Step {
        let now = self.service.clock.now();
        let durations = self.service.durations;
        if now >= self.oldest() {
            let reason = "the connection is too old".to_owned();
            return self.refuse(AckError::CONNECTION_DURATION, reason).await;
        }
        if now >= self.last_data + durations.idle_close {
            // A fragment that was begun and not closed is lost: half of it, stored, would stand in the way of the whole one
            // when that is sent again.
            self.send_all().await?;
            return Err(Closed::Idle);
        }
        if now >= self.last_idle.max(self.last_data) + durations.idle_ack {
            self.last_idle = now;
            if !self.deaf && self.request.acks {
                self.queue(&Ack::idle(), &[]);
            }
        }
        Ok(())
    }

    async fn arrived(&mut self, frame: Arrival) -> Step {
        match frame {
            None => Err(self.end_of_body().await.err().unwrap_or(Closed::Completed)),
            Some(Err(_)) => Err(Closed::Lost),
            Some(Ok(frame)) => {
                let Ok(mut data) = frame.into_data() else {
                    return Ok(()); // trailers
                };
                self.last_data = self.service.clock.now();
                while !data.is_empty() {
                    let next = lock(&self.service.scenario).next_bytes(self.number, self.bytes);
                    let left = next.map_or(u64::MAX, |next| next - self.bytes);
                    let left = usize::try_from(left).unwrap_or(usize::MAX);
                    let piece = data.split_to(left.min(data.len()));
                    self.media(&piece).await?;
                }
                Ok(())
            }
        }
    }

    async fn media(&mut self, piece: &[u8]) -> Step {
        self.bytes += piece.len() as u64;
        let bytes = self.bytes;
        let journal = &self.service.journal;
        journal.connection(self.number, |view| view.bytes = bytes);
        if !self.deaf {
            let mut events = Vec::new();
            let (now, wall) = (self.service.clock.now(), self.service.wall());
            let pushed = self.reader.push(piece, now, wall, &mut events);
            self.events(events).await?;
            self.permit(pushed).await?;
        }
        let actions = lock(&self.service.scenario).on_bytes(self.number, self.bytes);
        for action in actions {
            self.perform(action).await?;
        }
        Ok(())
    }

    async fn end_of_body(&mut self) -> Step {
        if !self.deaf {
            let mut events = Vec::new();
            let finished = self.reader.finish(&mut events);
            self.events(events).await?;
            self.permit(finished).await?;
        }
        // The next connection may begin while the last acknowledgements of this one go out.
        self.claim = None;
        self.send_all().await
    }

    async fn permit(&mut self, result: Result<(), Violation>) -> Step {
        match result {
            Ok(()) => Ok(()),
            Err(Violation { error, reason }) => self.refuse(error, reason).await,
        }
    }

    async fn events(&mut self, events: Vec<media::Event>) -> Step {
        for event in events {
            match event {
                media::Event::Begun { timecode } => self.begun(timecode).await?,
                media::Event::Ended(fragment) => self.ended(fragment).await?,
            }
        }
        Ok(())
    }

    async fn begun(&mut self, timecode: u64) -> Step {
        self.fragments += 1;
        let (overall, number) = self.service.next_fragment();
        self.current = Some(Current {
            timecode,
            number,
            place: FragmentPlace {
                connection: self.number,
                index: self.fragments,
                overall,
            },
        });
        let fragments = self.fragments;
        let journal = &self.service.journal;
        journal.connection(self.number, |view| view.fragments = fragments);
        self.check_stream().await?;
        self.acknowledge(EventType::Buffering).await
    }

    async fn ended(&mut self, fragment: Fragment) -> Step {
        self.acknowledge(EventType::Received).await?;
        if self.deaf {
            return Ok(());
        }
        let Some(Current { number, .. }) = self.current.clone() else {
            return Ok(());
        };
        let retention_hours = self.of_stream(|stream| stream.retention_hours).unwrap_or(0);
        let mut view = FragmentView {
            number,
            timecode: fragment.timecode,
            connection: self.number,
            frame_count: fragment.frames.len(),
            bytes: fragment.raw.len(),
            tags: fragment.tags.clone(),
            frames: fragment.frames.clone(),
            persisted: retention_hours > 0,
            duplicate: false,
        };
        if retention_hours == 0 {
            self.service.journal.fragment(&self.stream, view);
            return Ok(());
        }
        match self.store(fragment).await {
            Ok(stored) => view.duplicate = stored == Stored::Already,
            Err(reason) => {
                warn!(
                    stream = self.stream,
                    error = reason,
                    "fragment not recorded"
                );
                return self.refuse(AckError::ARCHIVAL, reason).await;
            }
        }
        self.service.journal.fragment(&self.stream, view);
        self.acknowledge(EventType::Persisted).await
    }

    /// Writes the fragment on a thread that may block.
    async fn store(&self, fragment: Fragment) -> Result<Stored, String> {
        let recorder = Arc::clone(&self.service.recorder);
        let times = self.request.times;
        let stream = StreamId {
            name: self.stream.clone(),
            arn: self.arn.clone(),
        };
        let stored =
            tokio::task::spawn_blocking(move || lock(&recorder).store(&stream, times, &fragment));
        match stored.await {
            Ok(stored) => stored.map_err(|error| chain(&error).to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Says `event` of the current fragment, or does what the scenario wants instead.
    async fn acknowledge(&mut self, event: EventType) -> Step {
        let Some(current) = self.current.clone() else {
            return Ok(());
        };
        let actions = lock(&self.service.scenario).on_ack(current.place, event);
        let mut treatments = Vec::new();
        for action in actions {
            match action {
                Action::Treat(treatment) => treatments.push(treatment),
                Action::Delay(delay) => treatments.push(super::acks::Treatment::Delay(delay)),
                action => self.perform(action).await?,
            }
        }
        if !self.deaf && self.request.acks {
            let ack = Ack::of(event, current.timecode, current.number);
            self.queue(&ack, &treatments);
            self.send_due().await?;
        }
        Ok(())
    }

    fn queue(&mut self, ack: &Ack, treatments: &[super::acks::Treatment]) {
        if self.outbox.push(ack, treatments, self.service.clock.now()) {
            let journal = &self.service.journal;
            journal.connection(self.number, |view| view.acks.push(ack.clone()));
        }
    }

    /// Carries out what a scenario wants of the connection as a whole.
    async fn perform(&mut self, action: Action) -> Step {
        match action {
            Action::Break(Break::BlackHole) => {
                self.deaf = true;
                Ok(())
            }
            Action::Break(how) => {
                self.let_out().await;
                self.claim = None;
                match how {
                    Break::Cut => self.wire.end(Ending::Fin),
                    Break::Reset => self.wire.end(Ending::Reset),
                    Break::Stall | Break::BlackHole => self.wire.stall(),
                }
                Err(Closed::Broken)
            }
            Action::Outage(length) => {
                self.let_out().await;
                let _ = self.service.outages.send(length); // the receiver lives as long as the listener
                std::future::pending().await
            }
            Action::ErrorAck(error) => self.refuse(error, "the scenario says so".into()).await,
            _ => Ok(()),
        }
    }

    /// Sends an ERROR, and everything that waits before it: the end.
    async fn refuse(&mut self, error: AckError, reason: String) -> Step {
        info!(stream = self.stream, connection = self.number, %error, reason, "PutMedia refused");
        let open = self.current.clone();
        let fragment = open.map(|current| (current.timecode, current.number));
        self.queue(&Ack::error(error.clone(), fragment), &[]);
        self.claim = None;
        self.send_all().await?;
        Err(Closed::Refused(error, reason))
    }

    async fn send_due(&mut self) -> Step {
        while let Some(piece) = self.outbox.pop(self.service.clock.now()) {
            self.acks.send(piece).await.map_err(|_| Closed::Lost)?;
        }
        Ok(())
    }

    async fn send_all(&mut self) -> Step {
        self.outbox.flush(self.service.clock.now());
        self.send_due().await?;
        while let Some(due) = self.outbox.due() {
            sleep_until(due.into()).await;
            self.send_due().await?;
        }
        Ok(())
    }

    /// Waits until what was acknowledged has gone to the socket.
    async fn let_out(&mut self) {
        let sent = async {
            while self.acks.capacity() < self.acks.max_capacity() && !self.acks.is_closed() {
                sleep(Duration::from_millis(1)).await;
            }
            // The last piece has been taken; it is written in the same turn.
            tokio::task::yield_now().await;
        };
        let _ = timeout(FLUSH, sent).await; // a client that does not read gets no more
    }
}

/// Asks for the body and lets hyper have a turn: it says `100 Continue` when the body is wanted before the answer begins.
async fn ask_for(body: &mut Incoming) -> Option<Arrival> {
    tokio::select! {
        biased;
        frame = body.frame() => Some(frame),
        () = tokio::task::yield_now() => None,
    }
}

/// Reads `count` bytes of `body` and forgets them.
async fn read_bytes(body: &mut Incoming, count: u64) {
    let mut read = 0;
    while read < count
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn parse(pairs: &[(&'static str, &'static str)]) -> Result<Request, ApiError> {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        });
        Request::parse(&pairs.collect())
    }

    const NAME: (&str, &str) = ("x-amzn-stream-name", "camera");
    const ARN: (&str, &str) = ("x-amzn-stream-arn", "arn:x");
    const CHUNKED: (&str, &str) = ("transfer-encoding", "chunked");
    const ABSOLUTE: (&str, &str) = ("x-amzn-fragment-timecode-type", "ABSOLUTE");
    const RELATIVE: (&str, &str) = ("x-amzn-fragment-timecode-type", "RELATIVE");
    const START: (&str, &str) = ("x-amzn-producer-start-timestamp", "1735787045.007");
    const SILENT: (&str, &str) = ("x-amzn-fragment-acknowledgment-required", "0");

    #[test]
    fn headers_are_read() {
        let request = parse(&[NAME, CHUNKED, RELATIVE, START, SILENT]).unwrap();
        let start_ms = 1_735_787_045_007;
        assert_eq!(request.times, TimecodeType::Relative { start_ms });
        assert!(!request.acks);
        let request = parse(&[ARN, CHUNKED, ABSOLUTE]).unwrap();
        assert_eq!(request.stream, Name::Arn("arn:x".into()));
        assert!(request.acks);
    }

    #[test]
    fn wrong_headers_are_invalid_arguments() {
        let odd_acks = ("x-amzn-fragment-acknowledgment-required", "yes");
        let odd_type = ("x-amzn-fragment-timecode-type", "absolute");
        for wrong in [
            &[NAME, ABSOLUTE][..],
            &[CHUNKED, ABSOLUTE],
            &[NAME, ARN, CHUNKED, ABSOLUTE],
            &[NAME, CHUNKED],
            &[NAME, CHUNKED, odd_type],
            &[NAME, CHUNKED, RELATIVE],
            &[NAME, CHUNKED, ABSOLUTE, odd_acks],
        ] {
            let error = parse(wrong).unwrap_err();
            assert_eq!(error.exception, "InvalidArgumentException", "{wrong:?}");
        }
    }

    #[test]
    fn timestamp_has_exactly_three_decimals() {
        assert_eq!(parse_timestamp("1735787045.007"), Some(1_735_787_045_007));
        for wrong in [
            "1735787045",
            "1735787045.7",
            "1735787045.0070",
            ".007",
            "-1.007",
            "1.+07",
            "99999999999999999999.000",
            "18446744073709551615.000",
            "now",
        ] {
            assert_eq!(parse_timestamp(wrong), None, "{wrong}");
        }
    }
}
