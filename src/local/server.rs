//! Accepts connections, checks who calls, and answers. IO.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header, request};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::acks::FragmentNumber;
use super::api::{self, ApiError, Settle, Store};
use super::io::{Ending, Io, Tap, Wire, finish};
use super::put_media::{self, Session};
use super::recording::Recorder;
use super::scenario::{Action, Break, Scenario, Settings};
use super::sigv4::{self, Credential, Payload, Presented};
use super::view::Journal;
use super::{Durations, Limits};
use crate::chain;
use crate::clock::Clock;

/// Control requests are a few hundred bytes; 50 tags in full length are below 100 kB.
const MAX_REQUEST: usize = 256 << 10;

/// After the client went away the media task only has to notice.
const MEDIA_END: Duration = Duration::from_secs(5);

/// What all connections share.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) clock: Clock,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    /// Where the endpoint listens.
    pub(super) address: SocketAddr,
    /// Where clients are to reach it, when that is not where they reach it now.
    pub(super) advertise: Option<String>,
    pub(super) region: Option<String>,
    pub(super) credentials: Vec<Credential>,
    pub(super) limits: Limits,
    pub(super) durations: Durations,
    pub(super) journal: Journal,
    pub(super) store: Mutex<Store>,
    pub(super) scenario: Mutex<Scenario>,
    pub(super) recorder: Arc<Mutex<Recorder>>,
    pub(super) counters: Mutex<Counters>,
    /// A PutMedia connection has let go of its stream.
    pub(super) released: Notify,
    pub(super) outages: mpsc::UnboundedSender<Duration>,
}

/// What is counted over all connections.
#[derive(Debug, Default)]
pub(super) struct Counters {
    connections: u64,
    fragments: u64,
    last_number: u128,
}

/// The guard of `mutex`. A panic elsewhere has been reported by then and leaves nothing half done here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Service {
    /// The origin, as far as the endpoint itself knows it.
    pub(super) fn url(&self) -> String {
        self.advertise
            .clone()
            .unwrap_or_else(|| format!("{}://{}", self.scheme, self.address))
    }

    /// The origin for whoever sent `headers`: the way by which they came, be it a name, a certificate's or a proxy's.
    fn origin(&self, headers: &HeaderMap) -> String {
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        match (&self.advertise, host) {
            (None, Some(host)) => format!("{}://{host}", self.scheme),
            _ => self.url(),
        }
    }

    pub(super) fn settings(&self) -> Settings {
        lock(&self.scenario).settings()
    }

    /// The server's time, wrong by what the scenario says.
    pub(super) fn wall(&self) -> Duration {
        let skew = self.settings().clock_skew;
        let wall = self.clock.wall();
        let by = Duration::from_secs(skew.unsigned_abs());
        if skew < 0 {
            wall.saturating_sub(by)
        } else {
            wall + by
        }
    }

    /// Number of the next PutMedia connection.
    pub(super) fn next_connection(&self) -> u64 {
        let mut counters = lock(&self.counters);
        counters.connections += 1;
        counters.connections
    }

    /// How many fragments have begun with this one, and its number.
    pub(super) fn next_fragment(&self) -> (u64, FragmentNumber) {
        let by_time = self.clock.wall().as_millis() * 1_000_000_000;
        let mut counters = lock(&self.counters);
        counters.fragments += 1;
        // The time makes numbers grow from run to run, the counter within one.
        counters.last_number = by_time.max(counters.last_number + 1);
        (
            counters.fragments,
            FragmentNumber::new(counters.last_number),
        )
    }

    fn seconds(&self) -> i64 {
        i64::try_from(self.wall().as_secs()).unwrap_or(i64::MAX)
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Body {
    /// A JSON object.
    Whole(Option<Bytes>),
    /// Acknowledgements, each piece a chunk, until the sender is dropped.
    Acks(mpsc::Receiver<Bytes>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match self.get_mut() {
            Self::Whole(data) => Poll::Ready(data.take()),
            Self::Acks(pieces) => pieces.poll_recv(cx),
        };
        data.map(|data| data.map(|data| Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Whole(data) => {
                http_body::SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64))
            }
            Self::Acks(_) => http_body::SizeHint::default(),
        }
    }
}

/// Accepts connections for ever. An outage closes them all, and the listener, for a while.
pub(super) async fn accept(
    service: Arc<Service>,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    mut outages: mpsc::UnboundedReceiver<Duration>,
) {
    let mut listener = listener;
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            Some(length) = outages.recv() => {
                info!(?length, "local endpoint is away");
                drop(listener);
                connections.shutdown().await;
                sleep(length).await;
                listener = bind_again(address).await;
                continue;
            }
        };
        match accepted {
            Ok((socket, peer)) => {
                let number = service.journal.update(|state| {
                    state.accepted += 1;
                    state.accepted
                });
                let (service, tls) = (Arc::clone(&service), tls.clone());
                connections.spawn(async move {
                    if let Err(error) = serve(service, socket, tls, number).await {
                        debug!(%peer, error = %chain(&error), "connection failed");
                    }
                });
            }
            Err(error) => {
                warn!(error = %error, "cannot accept a connection; trying again in 100 ms");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn bind_again(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                warn!(%address, error = %error, "cannot listen again; trying again in 100 ms");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(
    service: Arc<Service>,
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    number: u64,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = socket.into_std()?;
    // A second hold on the socket: it outlives TLS and hyper, to end the connection in the way that is asked for.
    let spare = socket.try_clone()?;
    let socket = TcpStream::from_std(socket)?;
    let wire = Arc::new(Wire::new());
    let actions = lock(&service.scenario).on_accept(number);
    let ending = {
        let serving = async {
            perform_on(&wire, &actions).await;
            let tap = Tap {
                socket,
                wire: &wire,
            };
            match tls {
                None => exchange(&service, &wire, tap).await,
                Some(acceptor) => match acceptor.accept(tap).await {
                    Ok(stream) => exchange(&service, &wire, stream).await,
                    Err(error) => debug!(error = %error, "TLS handshake failed"),
                },
            }
        };
        tokio::select! {
            biased;
            ending = wire.ended() => ending,
            () = serving => Ending::Fin,
        }
    };
    finish(spare, ending).await
}

/// What a scenario does to a fresh connection or call, as far as the connection goes.
async fn perform_on(wire: &Wire, actions: &[Action]) {
    for action in actions {
        match action {
            Action::Delay(delay) => sleep(*delay).await,
            Action::Break(how) => {
                match how {
                    Break::Cut => wire.end(Ending::Fin),
                    Break::Reset => wire.end(Ending::Reset),
                    Break::Stall | Break::BlackHole => wire.stall(),
                }
                std::future::pending::<()>().await;
            }
            _ => {}
        }
    }
}

/// The media tasks of one connection.
type Tasks = Arc<Mutex<JoinSet<()>>>;

/// Serves requests until the client closes the connection.
async fn exchange<S>(service: &Arc<Service>, wire: &Arc<Wire>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let tasks = Tasks::default();
    let answer = service_fn(|request| {
        let call = Call {
            service: Arc::clone(service),
            wire: Arc::clone(wire),
            tasks: Arc::clone(&tasks),
        };
        async move { Ok::<_, Infallible>(call.answer(request).await) }
    });
    let served = http1::Builder::new()
        .serve_connection(Io::new(stream), answer)
        .await;
    if let Err(error) = served {
        debug!(error = %chain(&error), "HTTP connection ended early");
    }
    let mut tasks = std::mem::take(&mut *lock(&tasks));
    let ended = async { while tasks.join_next().await.is_some() {} };
    if timeout(MEDIA_END, ended).await.is_err() {
        warn!("a media task did not end with its connection");
    }
}

/// One request.
struct Call {
    service: Arc<Service>,
    wire: Arc<Wire>,
    tasks: Tasks,
}

impl Call {
    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let operation = api::operation_at(&path);
        let answered = match operation {
            Some(operation) => self.operation(operation, request).await,
            None => Err(ApiError::bad(
                "UnknownOperationException",
                format!("nothing is served at {path}"),
            )),
        };
        let mut response = answered.unwrap_or_else(|error| {
            let operation = operation.unwrap_or(&path);
            debug!(operation, error = %error, "call refused");
            self.service.journal.error(operation, &error);
            refusal(&error)
        });
        let headers = response.headers_mut();
        let date = super::date::http(self.service.seconds());
        for (name, value) in [
            (header::DATE, date),
            (header::CONTENT_TYPE, "application/json".to_owned()),
            (
                header::HeaderName::from_static("x-amzn-requestid"),
                request_id(),
            ),
        ] {
            let value = HeaderValue::try_from(value).expect("ASCII");
            headers.insert(name, value);
        }
        response
    }

    async fn operation(
        &self,
        operation: &'static str,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let number = self.service.journal.call(operation);
        let actions = lock(&self.service.scenario).on_call(operation, number);
        for action in &actions {
            match action {
                Action::Refuse(error) => return Err(error.clone()),
                Action::Outage(length) => {
                    let _ = self.service.outages.send(*length); // the receiver lives as long as the listener
                    std::future::pending::<()>().await;
                }
                action => perform_on(&self.wire, std::slice::from_ref(action)).await,
            }
        }
        let (head, body) = request.into_parts();
        if head.method != http::Method::POST {
            let message = format!("{} is not POST", head.method);
            return Err(ApiError::bad("UnknownOperationException", message));
        }
        if operation == "PutMedia" {
            self.verify(&head, Payload::Endless)?;
            return self.put_media(&head.headers, body).await;
        }
        let body = Limited::new(body, MAX_REQUEST).collect().await;
        let body = body
            .map_err(|error| ApiError::bad("SerializationException", error.to_string()))?
            .to_bytes();
        let region = self.verify(&head, Payload::Whole(&body))?;
        let origin = self.service.origin(&head.headers);
        let context = self.context(&region, &origin);
        let answer = lock(&self.service.store).call(operation, &body, context)?;
        Ok(Response::new(Body::Whole(Some(answer.to_string().into()))))
    }

    fn verify(&self, head: &request::Parts, payload: Payload<'_>) -> Result<String, ApiError> {
        let presented = Presented {
            method: &head.method,
            path: head.uri.path(),
            query: head.uri.query(),
            headers: &head.headers,
            payload,
        };
        let service = &self.service;
        let region = service.region.as_deref();
        let region = sigv4::verify(presented, &service.credentials, region, service.seconds())?;
        Ok(region)
    }

    fn context<'a>(&self, region: &'a str, url: &'a str) -> api::Context<'a> {
        let service = &self.service;
        let durations = service.durations;
        api::Context {
            now: service.clock.now(),
            wall: service.wall(),
            region,
            url,
            settle: Settle {
                creating: service.settings().creating.unwrap_or(durations.creating),
                updating: durations.updating,
                deleting: durations.deleting,
            },
            calls_per_second: service.limits.calls_per_second,
        }
    }

    async fn put_media(
        &self,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Body>, ApiError> {
        let request = put_media::Request::parse(headers)?;
        let (session, acks) = Session::open(&self.service, &self.wire, request, body).await?;
        lock(&self.tasks).spawn(session.run());
        Ok(Response::new(Body::Acks(acks)))
    }
}

fn refusal(error: &ApiError) -> Response<Body> {
    // Who refuses shows: the layer that checks signatures names its exception and no more, and says `message`; the
    // service proper puts a URL behind the name, and says `Message`.
    let (key, kind) = match error.status {
        StatusCode::FORBIDDEN => ("message", error.exception.clone()),
        _ => (
            "Message",
            format!(
                "{}:http://internal.amazon.com/coral/com.amazonaws.kinesisvideo.v20170930/",
                error.exception
            ),
        ),
    };
    let body = json!({ key: error.message }).to_string();
    let mut response = Response::new(Body::Whole(Some(body.into())));
    *response.status_mut() = error.status;
    if let Ok(kind) = HeaderValue::try_from(kind) {
        response.headers_mut().insert("x-amzn-errortype", kind);
    }
    response
}

/// A random UUID.
fn request_id() -> String {
    let id = format!("{:032x}", fastrand::u128(..));
    format!(
        "{}-{}-{}-{}-{}",
        &id[..8],
        &id[8..12],
        &id[12..16],
        &id[16..20],
        &id[20..]
    )
}
