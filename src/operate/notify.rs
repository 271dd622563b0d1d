//! Tells the service manager how the producer is: sd_notify(3), over its datagram socket.
//!
//! READY is the first PERSISTED fragment, and until then the start is given more time: a camera that is unplugged at boot is
//! no reason to start again. The watchdog is fed as long as [`Health::is_alive`] says so.

use std::fmt::Write as _;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use super::health::{Health, State};
use crate::detail;

/// While it starts or stops the service manager is asked for so much more time, again and again.
const MORE_TIME: Duration = Duration::from_mins(1);

/// How often.
const ASK_EVERY: Duration = Duration::from_secs(20);

/// The longest status: it is one line of `systemctl status`.
const MOST_STATUS_BYTES: usize = 300;

/// What was told so far. Pure.
#[derive(Debug)]
pub struct Notices {
    ready: bool,
    stopping: bool,
    status: String,
    /// Half of what the watchdog waits.
    watchdog: Option<Duration>,
    fed: Option<Instant>,
    asked: Option<Instant>,
}

impl Notices {
    /// For a service manager whose watchdog waits so long.
    pub fn new(watchdog: Option<Duration>) -> Self {
        Self {
            ready: false,
            stopping: false,
            status: String::new(),
            watchdog: watchdog.map(|wait| wait / 2),
            fed: None,
            asked: None,
        }
    }

    /// When something is to be told again for time's sake alone.
    pub fn due(&self) -> Option<Instant> {
        let waiting = !self.ready || self.stopping;
        let ask = self.asked.filter(|_| waiting).map(|at| at + ASK_EVERY);
        let feed = self.fed.zip(self.watchdog).map(|(at, every)| at + every);
        [ask, feed].into_iter().flatten().min()
    }

    /// What is to be told now: lines of `NAME=value`.
    pub fn look(&mut self, now: Instant, health: &Health, alive: bool) -> Option<String> {
        let mut lines = String::new();
        if !self.ready && health.persisted_ago.is_some() {
            self.ready = true;
            lines.push_str("READY=1\n");
        }
        if !self.stopping && health.state == State::Draining {
            self.stopping = true;
            lines.push_str("STOPPING=1\n");
        }
        let waiting = !self.ready || self.stopping;
        if waiting && is_due(self.asked, now, ASK_EVERY) {
            self.asked = Some(now);
            let _ = writeln!(lines, "EXTEND_TIMEOUT_USEC={}", MORE_TIME.as_micros());
        }
        let status = one_line(&health.to_string());
        if status != self.status {
            let _ = writeln!(lines, "STATUS={status}");
            self.status = status;
        }
        if let Some(every) = self.watchdog
            && alive
            && is_due(self.fed, now, every)
        {
            self.fed = Some(now);
            lines.push_str("WATCHDOG=1\n");
        }
        (!lines.is_empty()).then_some(lines)
    }
}

fn is_due(last: Option<Instant>, now: Instant, every: Duration) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= every)
}

fn one_line(text: &str) -> String {
    let end = text.floor_char_boundary(MOST_STATUS_BYTES);
    text[..end].replace(['\n', '\r'], " ")
}

/// The service manager's socket.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    notices: Notices,
}

impl Manager {
    /// The one that the environment names, if there is one.
    pub fn from_environment() -> Option<Self> {
        let text = |name: &str| std::env::var(name).ok();
        let place = text("NOTIFY_SOCKET").filter(|place| !place.is_empty())?;
        // WATCHDOG_PID names a shell where the service is a pipeline: who answers does not matter to it then.
        let watchdog: Option<u64> = text("WATCHDOG_USEC").and_then(|usec| usec.parse().ok());
        let watchdog = watchdog.filter(|usec| *usec > 0).map(Duration::from_micros);
        match connect(&place) {
            Ok(socket) => Some(Self {
                socket,
                notices: Notices::new(watchdog),
            }),
            Err(error) => {
                detail!(%error, place, "the service manager cannot be told anything");
                None
            }
        }
    }

    /// [`Notices::due`].
    pub fn due(&self) -> Option<Instant> {
        self.notices.due()
    }

    /// Tells what is new. A manager that takes nothing is not waited for.
    pub fn tell(&mut self, now: Instant, health: &Health, alive: bool) {
        if let Some(lines) = self.notices.look(now, health, alive)
            && let Err(error) = self.socket.send(lines.as_bytes())
        {
            detail!(%error, "the service manager was not told");
        }
    }
}

/// `@name` is one in the abstract namespace (unix(7)).
fn connect(place: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match place.strip_prefix('@') {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(place)?,
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn health(state: State, persisted: bool) -> Health {
        Health {
            healthy: persisted,
            state,
            reason: String::new(),
            persisted_ago: persisted.then_some(Duration::ZERO),
            limit: Duration::from_secs(15),
        }
    }

    #[test]
    fn what_is_due_by_time_alone_is_more_time_until_it_is_ready_and_then_the_watchdogs_food() {
        let start = Clock.now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut notices = Notices::new(Some(Duration::from_mins(1)));
        assert_eq!(notices.due(), None, "the first look tells");
        notices.look(start, &health(State::Connecting, false), true);
        assert_eq!(notices.due(), Some(after(20)));
        notices.look(after(5), &health(State::Streaming, true), true);
        assert_eq!(notices.due(), Some(after(30)));
        let mut notices = Notices::new(None);
        notices.look(start, &health(State::Streaming, true), true);
        assert_eq!(notices.due(), None);
    }

    #[test]
    fn ready_is_the_first_persisted_fragment() {
        let start = Clock.now();
        let mut notices = Notices::new(None);
        let mut look = |second, state, persisted| {
            let now = start + Duration::from_secs(second);
            notices.look(now, &health(state, persisted), true)
        };
        assert_eq!(
            look(0, State::Connecting, false).as_deref(),
            Some("EXTEND_TIMEOUT_USEC=60000000\nSTATUS=connecting\n")
        );
        assert_eq!(look(10, State::Connecting, false), None);
        assert_eq!(
            look(20, State::Connecting, false).as_deref(),
            Some("EXTEND_TIMEOUT_USEC=60000000\n")
        );
        assert_eq!(
            look(21, State::Streaming, true).as_deref(),
            Some("READY=1\nSTATUS=streaming\n")
        );
        assert_eq!(look(100, State::Streaming, true), None);
        assert_eq!(
            look(101, State::Draining, true).as_deref(),
            Some("STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000\nSTATUS=draining\n")
        );
    }

    #[test]
    fn the_watchdog_is_fed_twice_in_its_time_and_starves_with_the_producer() {
        let start = Clock.now();
        let mut notices = Notices::new(Some(Duration::from_secs(30)));
        let streaming = health(State::Streaming, true);
        let mut fed = |second, alive| {
            let now = start + Duration::from_secs(second);
            let lines = notices.look(now, &streaming, alive).unwrap_or_default();
            lines.contains("WATCHDOG=1\n")
        };
        let times: Vec<_> = (0..60).filter(|second| fed(*second, true)).collect();
        assert_eq!(times, [0, 15, 30, 45]);
        assert!(!fed(60, false) && !fed(90, false));
        assert!(fed(91, true));
    }

    #[test]
    fn a_status_is_one_short_line() {
        let text = format!("a\nREADY=1\r{}", "\u{e9}".repeat(1000));
        let line = one_line(&text);
        assert!(line.len() <= MOST_STATUS_BYTES && !line.contains(['\n', '\r']));
    }

    #[test]
    fn both_kinds_of_addresses_are_reached() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let listening = UnixDatagram::bind(&path).expect("binds");
        let name = format!("kvs-producer-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let listening_too = UnixDatagram::bind_addr(&address).expect("binds");
        let place = path.to_str().expect("UTF-8").to_owned();
        for (place, listening) in [(place, listening), (format!("@{name}"), listening_too)] {
            connect(&place)
                .expect("connects")
                .send(b"READY=1\n")
                .expect("sends");
            let mut bytes = [0; 100];
            let len = listening.recv(&mut bytes).expect("receives");
            assert_eq!(&bytes[..len], b"READY=1\n");
        }
        assert!(connect("/none/notify").is_err());
    }
}
