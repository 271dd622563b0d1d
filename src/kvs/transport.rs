//! One PutMedia connection on the wire: TCP, TLS, the request, its answer.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;

use super::ack::AckParser;
use super::failure::{self, Failure, FailureKind};
use super::service_clock::ServiceClock;
use super::session::Event;
use super::upload::UploadBody;
use crate::chain;
use crate::codes::Code;
use crate::ring::ConnectionId;

/// What the kernel may hold of what was handed to it, in bytes (it doubles the number for its own book-keeping). Enough for
/// 10 Mbit/s over 100 ms; what is in there is neither in the ring's hands nor the service's.
const SEND_BUFFER_BYTES: usize = 128 * 1024;

/// What of it may not be on its way yet: a write that succeeds means that bytes have left. On a slow link this, and not the
/// send buffer, is what stands between the ring and the wire: 0.4 s at 300 kbit/s.
const UNSENT_BYTES: u32 = 16 * 1024;

/// What HTTP and TLS may hold each, before a write is held back: a frame of 4 Mbit/s goes out with one system call.
const LAYER_BYTES: usize = 32 * 1024;

/// The largest error answer that is read, in bytes.
const MAX_ERROR_BYTES: usize = 16 * 1024;

/// What control gives a connection to start with: headers are signed at the last moment.
#[derive(Debug)]
pub struct Start {
    /// All headers, signed.
    pub headers: HeaderMap,
    /// Where the media comes from.
    pub body: UploadBody,
}

/// What a connection needs to know.
#[derive(Debug, Clone)]
pub struct Route {
    /// Which.
    pub id: ConnectionId,
    /// Origin of the data endpoint, as the service gave it.
    pub origin: String,
    /// Whom to trust.
    pub tls: Arc<ClientConfig>,
    /// For how long the peer's kernel may leave what was sent unacknowledged (TCP_USER_TIMEOUT): a host that is gone
    /// without a word is noticed in the middle of a fragment too, where the service owes no acknowledgement.
    pub patience: Duration,
    /// Learns from the answer's `Date`.
    pub clock: ServiceClock,
    /// Where a handle of the socket is left.
    pub sockets: Sockets,
}

/// Handles of the sockets of all connections: they end also when the thread that owns them cannot end them any more.
#[derive(Debug, Clone, Default)]
pub struct Sockets(Arc<Mutex<Vec<(ConnectionId, OwnedFd)>>>);

impl Sockets {
    /// Ends all connections at once.
    pub fn shut_down(&self) {
        for (_, socket) in self.open().drain(..) {
            // The peer may have ended it.
            let _ = SockRef::from(&socket).shutdown(Shutdown::Both);
        }
    }

    fn enter(&self, id: ConnectionId, stream: &TcpStream) -> io::Result<Entry> {
        let handle = stream.as_fd().try_clone_to_owned()?;
        self.open().push((id, handle));
        Ok(Entry {
            sockets: self.clone(),
            id,
        })
    }

    fn open(&self) -> MutexGuard<'_, Vec<(ConnectionId, OwnedFd)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket's place in [`Sockets`], for as long as it is open.
#[derive(Debug)]
struct Entry {
    sockets: Sockets,
    id: ConnectionId,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let id = self.id;
        self.sockets.open().retain(|(other, _)| *other != id);
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Lives as long as the connection: reports everything to `events`, the last being [`Event::Lost`]. Dropping it closes the
/// connection at once.
pub async fn run(
    route: Route,
    start: oneshot::Receiver<Start>,
    events: mpsc::UnboundedSender<Event>,
) {
    let id = route.id;
    let failure = drive(&route, start, &events).await;
    // Control is gone only when the program ends.
    let _ = events.send(Event::Lost(id, failure));
}

async fn drive(
    route: &Route,
    start: oneshot::Receiver<Start>,
    events: &mpsc::UnboundedSender<Event>,
) -> Failure {
    let stream = match connect(route, events).await {
        Ok(stream) => stream,
        Err(failure) => return failure,
    };
    let (mut sender, connection) = match http1::Builder::new()
        .max_buf_size(LAYER_BYTES)
        .handshake::<_, UploadBody>(TokioIo::new(stream))
        .await
    {
        Ok(both) => both,
        Err(error) => return broken(&error),
    };
    let _ = events.send(Event::Opened(route.id));
    tokio::pin!(connection);

    let start = tokio::select! {
        result = &mut connection => return ended(result),
        start = start => match start {
            Ok(start) => start,
            Err(_) => return Failure::new(FailureKind::Network, "the connection was not needed"),
        },
    };
    let mut request = Request::new(start.body);
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = Uri::from_static("/putMedia");
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = start.headers;

    let exchange = async {
        let response = match sender.send_request(request).await {
            Ok(response) => response,
            Err(error) => return broken(&error),
        };
        route.clock.hear(response.headers());
        if response.status() == http::StatusCode::OK {
            let _ = events.send(Event::Accepted(route.id));
            read_acks(route.id, response.into_body(), events).await
        } else {
            refusal(response).await
        }
    };
    tokio::pin!(exchange);
    // The exchange goes on for a moment after the connection is done: what was read last is still in it.
    let mut running = true;
    loop {
        tokio::select! {
            biased;
            failure = &mut exchange => return failure,
            _ = &mut connection, if running => running = false,
        }
    }
}

async fn read_acks(
    id: ConnectionId,
    body: Incoming,
    events: &mpsc::UnboundedSender<Event>,
) -> Failure {
    let mut parser = AckParser::default();
    let mut body = std::pin::pin!(body);
    loop {
        match std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
            Some(Ok(frame)) => {
                let bytes = frame.into_data().unwrap_or_default();
                parser.push(&bytes, |ack| match ack {
                    Ok(ack) => {
                        let _ = events.send(Event::Ack(id, ack));
                    }
                    Err(error) => {
                        tracing::warn!(connection = %id, %error, "acknowledgement skipped");
                    }
                });
            }
            Some(Err(error)) => return broken(&error),
            None => return Failure::new(FailureKind::Network, "the service ended the connection"),
        }
    }
}

/// An answer other than 200.
async fn refusal(response: http::Response<Incoming>) -> Failure {
    let (head, body) = response.into_parts();
    let text = error_text(body).await;
    let error = error_name(&head.headers);
    let said: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let message = ["message", "Message"]
        .iter()
        .find_map(|key| said[*key].as_str())
        .map(failure::words)
        .unwrap_or_default();
    let status = head.status.as_u16();
    let kind = failure::of_answer(status, error, message);
    let request = header(&head.headers, &["x-amzn-requestid", "x-amz-requestid"]);
    let mut text = format!("PutMedia was refused with {status} {error}");
    for (before, part) in [(": ", message), ("; request id ", request)] {
        if !part.is_empty() {
            text.push_str(before);
            text.push_str(part);
        }
    }
    Failure::new(kind, text).with_code(Code::of_answer(status, error, message))
}

/// The exception's name: `x-amzn-ErrorType` may go on with a colon and an address.
fn error_name(headers: &HeaderMap) -> &str {
    let value = header(headers, &["x-amzn-errortype", "x-amz-errortype"]);
    value
        .split(':')
        .next()
        .unwrap_or_default()
        .rsplit('#')
        .next()
        .unwrap_or_default()
}

fn header<'a>(headers: &'a HeaderMap, names: &[&str]) -> &'a str {
    names
        .iter()
        .find_map(|name| headers.get(*name)?.to_str().ok())
        .unwrap_or_default()
}

async fn error_text(body: Incoming) -> Vec<u8> {
    let mut text = Vec::new();
    let mut body = std::pin::pin!(body);
    while let Some(Ok(frame)) =
        std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await
    {
        text.extend_from_slice(&frame.into_data().unwrap_or_else(|_| Bytes::new()));
        if text.len() > MAX_ERROR_BYTES {
            break;
        }
    }
    text
}

async fn connect(
    route: &Route,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<Box<dyn Stream>, Failure> {
    let origin = &route.origin;
    let bad = || {
        let message = format!("the data endpoint {origin:?} is no http or https address");
        Failure::new(FailureKind::WrongEndpoint, message)
    };
    let uri: Uri = origin.parse().map_err(|_| bad())?;
    let host = uri
        .host()
        .ok_or_else(bad)?
        .trim_start_matches('[')
        .trim_end_matches(']');
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(bad()),
    };
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = tcp(host, port, route.patience).await?;
    let entry = route.sockets.enter(route.id, &stream).map_err(|error| {
        let message = format!("cannot keep a handle of the socket to {host}:{port}: {error}");
        Failure::new(FailureKind::Network, message)
    })?;
    let tcp = Watched {
        stream,
        _entry: entry,
        connection: route.id,
        events: events.clone(),
        held: false,
    };
    if !secure {
        return Ok(Box::new(tcp));
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|_| bad())?;
    let stream = TlsConnector::from(Arc::clone(&route.tls))
        .connect_with(name, tcp, |tls| tls.set_buffer_limit(Some(LAYER_BYTES)))
        .await;
    stream
        .map(|stream| Box::new(stream) as Box<dyn Stream>)
        .map_err(|error| tls_failure(host, &error))
}

async fn tcp(host: &str, port: u16, patience: Duration) -> Result<TcpStream, Failure> {
    let network = |what: &str, error: &io::Error| {
        Failure::new(
            FailureKind::Network,
            format!("{what} {host}:{port}: {error}"),
        )
    };
    let addresses = lookup_host((host, port))
        .await
        .map_err(|error| network("cannot resolve", &error))?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                tune(&stream, patience)
                    .map_err(|error| network("cannot set up the socket to", &error))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(network("cannot connect to", &last))
}

fn tune(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    // A frame goes out when it is there.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    // The kernel counts from the first time that it sends something again, 0.2 to 1 s after it was sent.
    socket.set_tcp_user_timeout(Some(patience * 4 / 5))
}

/// A socket that tells when the kernel holds a write back, and when it takes bytes again.
struct Watched {
    stream: TcpStream,
    _entry: Entry,
    connection: ConnectionId,
    events: mpsc::UnboundedSender<Event>,
    held: bool,
}

impl Watched {
    fn note(&mut self, written: &Poll<io::Result<usize>>) {
        let event = match written {
            Poll::Pending if !self.held => Event::Held(self.connection),
            Poll::Ready(Ok(_)) if self.held => Event::Moved(self.connection),
            _ => return,
        };
        self.held = written.is_pending();
        // Control is gone only when the program ends.
        let _ = self.events.send(event);
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn tls_failure(host: &str, error: &io::Error) -> Failure {
    let certificate = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .filter(|inner| matches!(inner, rustls::Error::InvalidCertificate(_)));
    match certificate {
        Some(reason) => Failure::new(FailureKind::Untrusted, untrusted(host, reason)),
        None => Failure::new(
            FailureKind::Network,
            format!("TLS with {host} failed: {error}"),
        ),
    }
}

/// What is wrong with a certificate, and what to do.
pub(super) fn untrusted(host: &str, reason: &rustls::Error) -> String {
    use rustls::CertificateError as C;
    let advice = match reason {
        rustls::Error::InvalidCertificate(
            C::NotValidYet | C::NotValidYetContext { .. } | C::Expired | C::ExpiredContext { .. },
        ) => "is this machine's clock right?",
        rustls::Error::InvalidCertificate(
            C::NotValidForName | C::NotValidForNameContext { .. },
        ) => "is the endpoint's address right?",
        _ => "if it is of your own CA, give its certificate with --ca-file",
    };
    format!("the certificate of {host} is not accepted: {reason}; {advice}")
}

fn ended(result: Result<(), hyper::Error>) -> Failure {
    match result {
        Ok(()) => Failure::new(FailureKind::Network, "the service closed the connection"),
        Err(error) => broken(&error),
    }
}

fn broken(error: &hyper::Error) -> Failure {
    Failure::new(
        FailureKind::Network,
        format!("the connection broke: {}", chain(error)),
    )
}
