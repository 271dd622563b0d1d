//! A link between the producer and the endpoint that can be made slow, dumb or dead: a TCP proxy on loopback.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvs_producer_app::clock::Clock;
use kvs_producer_app::kvs::ack::{AckKind, AckParser};
use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What the proxy's kernel takes in before the proxy reads, in bytes: a real link holds little, too.
const RECEIVE_BUFFER: usize = 16 * 1024;

/// How much of what a connection begins with is kept.
const HEAD_BYTES: usize = 16 * 1024;

/// What becomes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Bytes pass.
    Pass,
    /// They stay where they are, until the rules change.
    Hold,
    /// So many pass in a second.
    Rate(u32),
}

/// What becomes of new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// They are accepted.
    Open,
    /// Nobody listens: RST.
    Refuse,
    /// The SYN is swallowed.
    Swallow,
}

/// What the proxy does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// From the producer.
    pub up: Flow,
    /// To the producer.
    pub down: Flow,
    /// For new connections.
    pub door: Door,
    /// GetDataEndpoint's answer leads to a name that does not resolve (RFC 6761 section 6.4).
    pub misname: bool,
    /// Connections that are older are reset.
    generation: u64,
}

impl Rules {
    /// A link that does no harm.
    pub const GOOD: Self = Self {
        up: Flow::Pass,
        down: Flow::Pass,
        door: Door::Open,
        misname: false,
        generation: 0,
    };
}

/// What passed on one connection.
#[derive(Debug, Default, Clone)]
pub struct Passed {
    /// Bytes from the producer.
    pub up: u64,
    /// The first of them.
    head: Vec<u8>,
    /// When which fragment's PERSISTED went to the producer (without TLS).
    pub persisted: Vec<(Instant, u64)>,
    /// When the producer let it go, or it was over.
    pub ended: Option<Instant>,
}

/// See the module.
pub struct Proxy {
    address: SocketAddr,
    rules: watch::Sender<Rules>,
    passed: Arc<Mutex<Vec<Passed>>>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// A link to `upstream`, an origin such as `http://127.0.0.1:40123`.
    pub fn to(upstream: &str) -> Self {
        let upstream: SocketAddr = upstream
            .rsplit('/')
            .next()
            .and_then(|address| address.parse().ok())
            .expect("an origin with an address");
        let listener = listen(0, 128).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let rules = watch::Sender::new(Rules::GOOD);
        let passed = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(
            listener,
            upstream,
            rules.subscribe(),
            Arc::clone(&passed),
        ));
        Self {
            address,
            rules,
            passed,
            _tasks: tasks,
        }
    }

    /// Where the producer has to go.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    /// Changes the rules; connections live on.
    pub fn set(&self, change: impl FnOnce(&mut Rules)) {
        self.rules.send_modify(change);
    }

    /// All is well again.
    pub fn heal(&self) {
        self.set(|rules| {
            *rules = Rules {
                generation: rules.generation,
                ..Rules::GOOD
            };
        });
    }

    /// Every connection ends with an RST on both sides, and the rules change.
    pub fn cut(&self, change: impl FnOnce(&mut Rules)) {
        self.set(|rules| {
            change(rules);
            rules.generation += 1;
        });
    }

    /// What passed, by connection.
    pub fn passed(&self) -> Vec<Passed> {
        self.passed.lock().expect("no test panics in it").clone()
    }

    /// The signatures of all requests that were seen (without TLS).
    pub fn signatures(&self) -> Vec<String> {
        let passed = self.passed();
        let texts = passed.iter().map(|one| String::from_utf8_lossy(&one.head));
        texts
            .flat_map(|text| {
                let after = text.split("Signature=").skip(1);
                after
                    .map(|rest| rest.chars().take(64).collect())
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// No fragment was confirmed, and sent again and confirmed once more. What arrived in the moment before a connection
    /// ended may not have been read.
    pub fn assert_nothing_confirmed_was_sent_again(&self) {
        let unread = Duration::from_millis(100);
        let passed = self.passed();
        let mut known = Vec::new();
        for connection in &passed {
            for (at, timecode) in &connection.persisted {
                assert!(
                    !known.contains(timecode),
                    "{timecode} was confirmed and sent again"
                );
                if connection.ended.is_none_or(|ended| *at + unread < ended) {
                    known.push(*timecode);
                }
            }
        }
    }
}

fn listen(port: u16, backlog: i32) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(backlog)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

async fn accept(
    listener: TcpListener,
    upstream: SocketAddr,
    mut rules: watch::Receiver<Rules>,
    passed: Arc<Mutex<Vec<Passed>>>,
) {
    let address = listener.local_addr().expect("it is bound");
    let mut listener = Some(listener);
    // Connections that nobody accepts fill the queue of a listener that takes one only.
    let mut fillers = Vec::new();
    let mut connections = JoinSet::new();
    loop {
        let door = rules.borrow_and_update().door;
        match door {
            Door::Refuse => drop(listener.take()),
            Door::Swallow if fillers.is_empty() => {
                drop(listener.take());
                listener = Some(listen(address.port(), 0).expect("the port is ours"));
                for _ in 0..2 {
                    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                    socket.set_nonblocking(true).expect("it can be");
                    // In progress, or swallowed already.
                    let _ = socket.connect(&address.into());
                    fillers.push(socket);
                }
            }
            Door::Swallow => {}
            Door::Open if !fillers.is_empty() || listener.is_none() => {
                fillers.clear();
                drop(listener.take());
                listener = Some(listen(address.port(), 128).expect("the port is ours"));
            }
            Door::Open => {}
        }
        tokio::select! {
            accepted = accept_one(listener.as_ref()), if door == Door::Open => {
                let Ok(client) = accepted else { continue };
                let number = {
                    let mut passed = passed.lock().expect("no test panics in it");
                    passed.push(Passed::default());
                    passed.len() - 1
                };
                connections.spawn(carry(client, upstream, rules.clone(), Arc::clone(&passed), number));
            }
            Some(_) = connections.join_next() => {}
            changed = rules.changed() => if changed.is_err() { return },
        }
    }
}

async fn accept_one(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

async fn carry(
    client: TcpStream,
    upstream: SocketAddr,
    mut rules: watch::Receiver<Rules>,
    passed: Arc<Mutex<Vec<Passed>>>,
    number: usize,
) {
    let generation = rules.borrow().generation;
    let note = |change: &dyn Fn(&mut Passed)| {
        change(&mut passed.lock().expect("no test panics in it")[number]);
    };
    let Ok(server) = TcpStream::connect(upstream).await else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let client_socket = client.as_fd().try_clone_to_owned().expect("a descriptor");
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut parser = AckParser::default();
    {
        let up = pump(
            &mut from_client,
            &mut to_server,
            rules.clone(),
            |rules| rules.up,
            |_, bytes| {
                note(&|passed| {
                    passed.up += bytes.len() as u64;
                    if passed.head.len() < HEAD_BYTES {
                        passed.head.extend_from_slice(bytes);
                    }
                });
            },
        );
        let down = pump(
            &mut from_server,
            &mut to_client,
            rules.clone(),
            |rules| rules.down,
            |rules, bytes| {
                if rules.misname {
                    rename(bytes);
                }
                // The rest of the answer is of no interest, and no acknowledgement.
                parser.push(bytes, |ack| {
                    if let Ok(ack) = ack
                        && ack.kind == AckKind::Persisted
                        && let Some(timecode) = ack.timecode
                    {
                        note(&|passed| passed.persisted.push((Clock.now(), timecode.0)));
                    }
                });
            },
        );
        let cut = async {
            let _ = rules.wait_for(|rules| rules.generation != generation).await;
        };
        // What comes for a producer that has hung up passes, and nobody reads it.
        let hung_up = async {
            while !hung_up(&client_socket) {
                sleep(Duration::from_millis(10)).await;
            }
            note(&|passed| passed.ended = Some(Clock.now()));
        };
        tokio::select! {
            _ = async { tokio::join!(up, down, hung_up) } => {}
            () = cut => {
                let _ = from_client.as_ref().set_zero_linger();
                let _ = from_server.as_ref().set_zero_linger();
            }
        }
    }
    note(&|passed| {
        passed.ended.get_or_insert(Clock.now());
    });
}

/// Whether the other side has closed the connection, however much of what it sent before is unread.
fn hung_up(socket: &OwnedFd) -> bool {
    let mut sockets = [PollFd::new(socket, PollFlags::RDHUP)];
    let now = Timespec::default();
    rustix::event::poll(&mut sockets, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// A name of the same length, so that the answer's length stays true.
fn rename(bytes: &mut [u8]) {
    let (good, bad) = (b"//127.0.0.1:", b"//x.invalid:");
    while let Some(at) = bytes.windows(good.len()).position(|bytes| bytes == good) {
        bytes[at..at + good.len()].copy_from_slice(bad);
    }
}

async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut rules: watch::Receiver<Rules>,
    pick: impl Fn(&Rules) -> Flow,
    mut look: impl FnMut(&Rules, &mut [u8]),
) {
    let mut buffer = vec![0; 8 * 1024];
    loop {
        let Some(now) = flowing(&mut rules, &pick).await else {
            return;
        };
        let most = match pick(&now) {
            Flow::Rate(_) => 1024,
            _ => buffer.len(),
        };
        let n = match from.read(&mut buffer[..most]).await {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        let Some(now) = flowing(&mut rules, &pick).await else {
            return;
        };
        look(&now, &mut buffer[..n]);
        if let Flow::Rate(rate) = pick(&now) {
            let n = u32::try_from(n).expect("less than the buffer");
            sleep(Duration::from_secs(1) * n / rate).await;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// The rules, once bytes are not held. `None` when the proxy is gone.
async fn flowing(
    rules: &mut watch::Receiver<Rules>,
    pick: impl Fn(&Rules) -> Flow,
) -> Option<Rules> {
    let rules = rules.wait_for(|rules| pick(rules) != Flow::Hold).await;
    rules.ok().map(|rules| *rules)
}
