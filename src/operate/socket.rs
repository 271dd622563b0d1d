//! The control socket of a running producer: who may ask, how long, how many at once. What is asked is answered elsewhere.
//!
//! A socket is a file that outlives its process, so it proves nothing. What does is a lock on the file beside it, which the
//! kernel gives back however the holder ends: whoever has the lock owns the channel on this machine and replaces whatever
//! socket is there.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::protocol::{Answer, Lines, MOST_REQUEST_BYTES, Refusal, Request, answer_line};
use crate::codes::Code;
use crate::detail;

/// Where producers that a service manager starts have their sockets.
const SYSTEM_DIRECTORY: &str = "/run/kvsProducerApp";

/// Clients that are served at once, some kilobytes each. The others wait in the kernel's queue: a hundred answers a second
/// are no effort.
const MOST_CLIENTS: usize = 16;

/// Clients that wait to be served; more have to wait in their `connect`.
const BACKLOG: i32 = 1024;

/// For a client to send its next request, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Requests that wait for the program: it answers one after the other.
const QUEUE: usize = 4;

/// The longest path that an address has room for (`sockaddr_un`, less the byte that ends it).
const MOST_PATH_BYTES: usize = 107;

/// What is in the way of a control socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another producer on this machine streams to the channel.
    #[error(
        "another producer{} streams to {channel:?} already (its lock is {}): stop it with `kvsProducerApp stop {channel}`, or give --no-control",
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        .lock.display()
    )]
    Taken {
        /// Name of the stream.
        channel: String,
        /// Its process, as it wrote it down.
        pid: Option<u32>,
        /// What it holds.
        lock: PathBuf,
    },
    /// Something that is no socket is in its place.
    #[error("{} is no socket: give another place for it with --control", .0.display())]
    NotASocket(PathBuf),
    /// The path is longer than an address can be.
    #[error("{} is too long for a socket's path, which has at most {MOST_PATH_BYTES} bytes", .0.display())]
    TooLong(PathBuf),
    /// The operating system refused.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// `"create"`, `"lock"`.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Its word.
        source: io::Error,
    },
}

/// Where a producer's socket is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Place {
    /// In the first directory of [`directories`] that can be used.
    #[default]
    Usual,
    /// There.
    At(PathBuf),
    /// Nowhere.
    Nowhere,
}

/// The directories that a producer may have its socket in, the best first: the one that systemd has made for the service
/// (`RuntimeDirectory=`), the system's, and that of the user's session.
pub fn directories() -> Vec<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    // systemd separates several with colons; ours has one.
    let service = named("RUNTIME_DIRECTORY").map(PathBuf::from);
    let session = named("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("kvsProducerApp"));
    let system = PathBuf::from(SYSTEM_DIRECTORY);
    service.into_iter().chain([system]).chain(session).collect()
}

/// Where sockets are looked for: [`directories`], and those of the services below the system's.
pub fn looked_in() -> Vec<PathBuf> {
    let mut all = directories();
    let services = fs::read_dir(SYSTEM_DIRECTORY).into_iter().flatten();
    let services = services.filter_map(|entry| Some(entry.ok()?.path()));
    all.extend(services.filter(|path| path.is_dir()));
    all
}

/// A channel's socket in `directory`. A channel that is too long for a path goes by its start and a hash.
pub fn path_in(directory: &Path, channel: &str) -> PathBuf {
    let path = directory.join(format!("{channel}.sock"));
    if path.as_os_str().len() <= MOST_PATH_BYTES {
        return path;
    }
    // FNV-1a, 64 bits.
    let hash = channel
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    // Channels are ASCII.
    let start = &channel[..channel.len().min(24)];
    directory.join(format!("{start}-{hash:016x}.sock"))
}

/// A request on its way to the program.
#[derive(Debug)]
pub struct Asked {
    /// What is wanted.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
    /// The client's connection, for a request that media follows.
    pub media: Option<Media>,
}

/// Bytes that follow a request.
#[derive(Debug)]
pub struct Media {
    /// What came together with the request.
    pub first: Vec<u8>,
    /// Where the rest comes from: reading blocks.
    pub rest: net::UnixStream,
}

/// The socket of a channel. Dropping it takes the file away.
#[derive(Debug)]
pub struct Server {
    listener: net::UnixListener,
    path: PathBuf,
    /// Clients with a request that has no answer yet.
    busy: watch::Sender<usize>,
    /// Held for its lock.
    _lock: File,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.retire();
    }
}

/// A client has a request that has no answer yet, as long as this lives.
struct Busy(watch::Sender<usize>);

impl Busy {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Server {
    /// Takes the channel and opens its socket. `None` where there is to be none, or no directory for it.
    ///
    /// # Errors
    /// When another producer has the channel, or the place that was asked for cannot be used.
    pub fn open(place: &Place, channel: &str) -> Result<Option<Self>, Error> {
        match place {
            Place::Nowhere => Ok(None),
            Place::At(path) => Self::bind(path, channel).map(Some),
            Place::Usual => {
                let mut last = None;
                for directory in directories() {
                    if let Err(error) = make_directory(&directory) {
                        last = Some(error);
                        continue;
                    }
                    match Self::bind(&path_in(&directory, channel), channel) {
                        Err(error @ Error::Io { .. }) => last = Some(error),
                        done => return done.map(Some),
                    }
                }
                // Whoever did not ask for a socket can do without one.
                if let Some(error) = last {
                    detail!(error = %crate::chain(&error), "no control socket");
                }
                Ok(None)
            }
        }
    }

    /// Takes the channel and opens its socket at `path`.
    ///
    /// # Errors
    /// When another producer has it, or the operating system refuses.
    pub fn bind(path: &Path, channel: &str) -> Result<Self, Error> {
        let lock = lock(path, channel)?;
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(Error::NotASocket(path.to_owned()));
            }
            // Nobody is behind it: that would have the lock.
            Ok(_) => fs::remove_file(path).map_err(|source| io_error("replace", path, source))?,
            Err(_) => {}
        }
        if path.as_os_str().len() > MOST_PATH_BYTES {
            return Err(Error::TooLong(path.to_owned()));
        }
        let listener = listen(path).map_err(|source| io_error("create", path, source))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            busy: watch::channel(0).0,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A queue for [`Self::serve`].
    pub fn queue() -> (mpsc::Sender<Asked>, mpsc::Receiver<Asked>) {
        mpsc::channel(QUEUE)
    }

    /// Serves clients for ever: one request after the other goes to `asks`. Whoever takes over from a thread that was lost
    /// may serve again.
    ///
    /// # Errors
    /// When the runtime does not take the socket.
    pub async fn serve(&self, asks: mpsc::Sender<Asked>) -> io::Result<Infallible> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if clients.len() < MOST_CLIENTS => match accepted {
                    Ok((stream, _)) => {
                        clients.spawn(serve_client(stream, asks.clone(), self.busy.clone()));
                    }
                    // No file descriptor is left: clients that end give some back.
                    Err(error) => {
                        detail!(%error, "a client of the control socket is kept waiting");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = clients.join_next() => {}
            }
        }
    }

    /// Waits until every request has its answer, while somebody serves.
    pub async fn quiet(&self) {
        // The sender lives as long as this.
        let _ = self.busy.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Takes the file away. The lock's file stays: taking it away would let two hold it.
    pub fn retire(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    Error::Io {
        action,
        path,
        source,
    }
}

fn make_directory(directory: &Path) -> Result<(), Error> {
    match fs::create_dir(directory) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(io_error("create", directory, source))
        }
        _ => Ok(()),
    }
}

/// Takes the lock beside the socket, and writes down who has it.
fn lock(path: &Path, channel: &str) -> Result<File, Error> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let path = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| io_error("create", &path, source))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // Without the number the line is as clear.
            let _ = file.take(16).read_to_string(&mut text);
            return Err(Error::Taken {
                channel: channel.to_owned(),
                pid: text.trim().parse().ok(),
                lock: path,
            });
        }
        Err(error) => return Err(io_error("lock", &path, error.into())),
    }
    // For people; nothing depends on it.
    let _ = file.set_len(0);
    let _ = writeln!(file, "{}", std::process::id());
    Ok(file)
}

fn listen(path: &Path) -> io::Result<net::UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux gives the file the socket's own mode, so there is no moment in which others could connect.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Whether a process of this user may give orders: root, and whoever the producer runs as.
fn may_ask(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

async fn serve_client(
    mut stream: UnixStream,
    asks: mpsc::Sender<Asked>,
    busy: watch::Sender<usize>,
) {
    if !may_ask(&stream) {
        let message = "the control socket is for the producer's own user and for root";
        let refusal = Err(Refusal::new(Code::NOT_YOURS, message));
        let line = answer_line(&refusal);
        let _ = timeout(PATIENCE, stream.write_all(line.as_bytes())).await;
        return;
    }
    let mut lines = Lines::new(MOST_REQUEST_BYTES);
    // A client that hangs, or is gone, is left alone.
    while let Ok(Some(line)) = timeout(PATIENCE, read_line(&mut stream, &mut lines)).await {
        let _busy = Busy::new(&busy);
        let request = match line {
            Ok(line) => Request::parse(&line),
            Err(refusal) => Err(refusal),
        };
        match request {
            Ok(request @ Request::Put(_)) => return put(stream, lines, request, &asks).await,
            Ok(request) => {
                let answer = ask(&asks, request, None).await;
                if !send(&mut stream, &answer).await {
                    return;
                }
            }
            // What follows garbage is garbage.
            Err(refusal) => {
                send(&mut stream, &Err(refusal)).await;
                return;
            }
        }
    }
}

/// The next line, or why there is none; `None` when the client has said all it wanted.
async fn read_line(stream: &mut UnixStream, lines: &mut Lines) -> Option<Result<Vec<u8>, Refusal>> {
    let mut bytes = [0; 1024];
    loop {
        match lines.next_line() {
            Ok(Some(line)) => return Some(Ok(line)),
            Ok(None) => {}
            Err(error) => {
                let refusal = Refusal::new(Code::MALFORMED_REQUEST, error.to_string());
                return Some(Err(refusal));
            }
        }
        match stream.read(&mut bytes).await {
            Ok(0) | Err(_) => return None,
            Ok(len) => lines.push(&bytes[..len]),
        }
    }
}

/// Hands the connection over together with the request, for the media that follows.
async fn put(stream: UnixStream, lines: Lines, request: Request, asks: &mpsc::Sender<Asked>) {
    let handed = stream.into_std().and_then(|stream| {
        stream.set_nonblocking(false)?;
        let rest = stream.try_clone()?;
        Ok((stream, rest))
    });
    let Ok((stream, rest)) = handed else { return };
    let media = Media {
        first: lines.into_rest(),
        rest,
    };
    let answer = ask(asks, request, Some(media)).await;
    // A refused client may still be sending: it hears of it when its bytes are not taken any more.
    let _ = stream.shutdown(std::net::Shutdown::Read);
    let sent = stream
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(stream));
    if let Ok(mut stream) = sent {
        send(&mut stream, &answer).await;
    }
}

async fn ask(asks: &mpsc::Sender<Asked>, request: Request, media: Option<Media>) -> Answer {
    let (answer, answered) = oneshot::channel();
    let asked = Asked {
        request,
        answer,
        media,
    };
    let ending = || Refusal::new(Code::NOT_NOW, "the producer is ending");
    asks.send(asked).await.map_err(|_| ending())?;
    answered.await.unwrap_or_else(|_| Err(ending()))
}

/// Whether the client took it.
async fn send(stream: &mut UnixStream, answer: &Answer) -> bool {
    let line = answer_line(answer);
    matches!(
        timeout(PATIENCE, stream.write_all(line.as_bytes())).await,
        Ok(Ok(()))
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::Map;

    use super::super::client::{self, Client};
    use super::*;
    use crate::clock::Clock;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    /// Answers every `buffer` with a number of its own, and `pause` never.
    async fn answer_all(mut asks: mpsc::Receiver<Asked>) {
        let mut kept = Vec::new();
        for number in 0_u64.. {
            let Some(asked) = asks.recv().await else {
                return;
            };
            if asked.request == Request::Pause {
                kept.push(asked);
                continue;
            }
            let fields = Map::from_iter([("number".to_owned(), number.into())]);
            let _ = asked.answer.send(Ok(fields));
        }
    }

    /// Runs `act` on a thread of its own while a server at a path serves.
    async fn served<T: Send + 'static>(act: impl FnOnce(PathBuf) -> T + Send + 'static) -> T {
        let dir = directory();
        let path = dir.path().join("cam.sock");
        let server = Server::bind(&path, "cam").expect("binds");
        let (asks, asked) = Server::queue();
        let acting = tokio::task::spawn_blocking(move || act(path));
        tokio::select! {
            ended = server.serve(asks) => unreachable!("it serves for ever: {ended:?}"),
            () = answer_all(asked) => unreachable!("the queue stays open"),
            result = acting => result.expect("no panic"),
        }
    }

    #[tokio::test]
    async fn only_its_user_may_open_the_file() {
        let dir = directory();
        let path = dir.path().join("cam.sock");
        let server = Server::bind(&path, "cam").expect("binds");
        for name in ["cam.sock", "cam.sock.lock"] {
            let found = fs::metadata(dir.path().join(name)).expect("is there");
            assert_eq!(found.permissions().mode() & 0o777, 0o600, "{name}");
        }
        drop(server);
        assert!(!path.exists(), "the socket goes with its producer");
    }

    #[tokio::test]
    async fn a_second_producer_is_refused_and_told_by_whom() {
        let dir = directory();
        let path = dir.path().join("cam.sock");
        let first = Server::bind(&path, "cam").expect("binds");
        let error = Server::bind(&path, "cam").expect_err("taken");
        let line = error.to_string();
        let pid = format!("(process {})", std::process::id());
        assert!(line.contains(&pid) && !line.contains('\n'), "{line}");
        assert!(path.exists(), "the first one's socket stays");
        drop(first);
        Server::bind(&path, "cam").expect("free again");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let dir = directory();
        let path = dir.path().join("cam.sock");
        drop(net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists(), "a listener leaves its file behind");
        drop(Server::bind(&path, "cam").expect("replaces it"));

        fs::write(&path, "somebody's notes").expect("written");
        let error = Server::bind(&path, "cam").expect_err("no socket");
        assert!(matches!(error, Error::NotASocket(_)), "{error}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_is_an_error_with_the_path_in_it() {
        let dir = directory();
        let long = dir.path().join("x".repeat(120));
        let error = Server::bind(&long, "cam").expect_err("too long");
        assert!(matches!(error, Error::TooLong(_)), "{error}");
        let missing = dir.path().join("none/cam.sock");
        let error = Server::bind(&missing, "cam").expect_err("no directory");
        assert!(crate::chain(&error).to_string().contains("No such file"));
    }

    #[test]
    fn a_long_channel_has_a_path_of_its_own() {
        let directory = Path::new(SYSTEM_DIRECTORY);
        let short = path_in(directory, "cam");
        assert_eq!(short, Path::new("/run/kvsProducerApp/cam.sock"));
        let one = path_in(directory, &format!("{}1", "c".repeat(255)));
        let other = path_in(directory, &format!("{}2", "c".repeat(255)));
        assert!(one != other && one.as_os_str().len() <= MOST_PATH_BYTES);
    }

    #[tokio::test]
    async fn a_thousand_at_once_are_all_answered() {
        const CLIENTS: usize = 1000;
        let numbers = served(|path| {
            let ask = |_| client::ask(&path, &Request::Buffer, None);
            std::thread::scope(|scope| {
                let clients: Vec<_> = (0..CLIENTS)
                    .map(|index| {
                        std::thread::Builder::new()
                            .stack_size(64 * 1024)
                            .spawn_scoped(scope, move || ask(index))
                            .expect("a thread")
                    })
                    .collect();
                let numbers = clients.into_iter().map(|client| {
                    let answer = client.join().expect("no panic");
                    answer.expect("is served")["number"].as_u64()
                });
                numbers.collect::<std::collections::HashSet<_>>()
            })
        });
        assert_eq!(
            numbers.await.len(),
            CLIENTS,
            "each has an answer of its own"
        );
    }

    #[tokio::test]
    async fn garbage_is_answered_and_the_next_client_is_served() {
        served(|path| {
            let long = vec![b'x'; MOST_REQUEST_BYTES + 2];
            for garbage in [&b"\x00\xff\n"[..], b"GET / HTTP/1.1\r\n\r\n", &long] {
                let mut stream = net::UnixStream::connect(&path).expect("connects");
                stream.write_all(garbage).expect("is taken");
                let mut answer = String::new();
                // What was not read makes the kernel reset the connection behind the answer.
                let _ = stream.read_to_string(&mut answer);
                assert!(answer.contains("KVS-E603"), "{answer}");
            }
            client::ask(&path, &Request::Buffer, None).expect("is served");
        })
        .await;
    }

    #[tokio::test]
    async fn one_connection_asks_again_and_again() {
        served(|path| {
            let mut client = Client::connect(&path).expect("connects");
            for number in 0..3 {
                let answer = client.ask(&Request::Buffer, None).expect("is served");
                assert_eq!(answer["number"], number);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn clients_that_hang_are_left_and_keep_nobody_out() {
        served(|path| {
            let start = Clock.now();
            let hanging: Vec<_> = (0..MOST_CLIENTS)
                .map(|_| net::UnixStream::connect(&path).expect("connects"))
                .collect();
            let mut half = &hanging[0];
            half.write_all(b"{\"v\":1,").expect("is taken");
            client::ask(&path, &Request::Buffer, None).expect("is served");
            let waited = Clock.now() - start;
            assert!(waited < PATIENCE * 2, "{waited:?}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_producer_that_ends_says_so() {
        let dir = directory();
        let path = dir.path().join("cam.sock");
        let server = Server::bind(&path, "cam").expect("binds");
        let (asks, asked) = Server::queue();
        drop(asked);
        let acting =
            tokio::task::spawn_blocking(move || client::ask(&path, &Request::Status, None));
        let answer = tokio::select! {
            ended = server.serve(asks) => unreachable!("it serves for ever: {ended:?}"),
            answer = acting => answer.expect("no panic"),
        };
        let error = answer.expect_err("is refused").to_string();
        assert!(error.contains("is ending"), "{error}");
    }

    #[tokio::test]
    async fn media_behind_a_request_arrives_whole() {
        let dir = directory();
        let path = dir.path().join("cam.sock");
        let server = Server::bind(&path, "cam").expect("binds");
        let (asks, mut asked) = Server::queue();
        let sent: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        let media = sent.clone();
        let acting = tokio::task::spawn_blocking(move || {
            client::put(
                &path,
                &Request::Put(super::super::protocol::Put::default()),
                &mut &media[..],
            )
        });
        let taking = async {
            let asked = asked.recv().await.expect("a request");
            let Media { first, mut rest } = asked.media.expect("media");
            let got = tokio::task::spawn_blocking(move || {
                let mut got = first;
                rest.read_to_end(&mut got).expect("reads");
                got
            });
            let got = got.await.expect("no panic");
            let fields = Map::from_iter([("bytes".to_owned(), got.len().into())]);
            asked.answer.send(Ok(fields)).expect("waits");
            got
        };
        let answered = async { tokio::join!(taking, acting) };
        let (got, answer) = tokio::select! {
            ended = server.serve(asks) => unreachable!("it serves for ever: {ended:?}"),
            both = answered => both,
        };
        assert!(got == sent, "{} bytes", got.len());
        let answer = answer.expect("no panic").expect("is answered");
        assert_eq!(answer["bytes"], sent.len());
    }
}
