//! A KVS-compatible service on loopback: control plane and PutMedia over real HTTP, for demos and tests.
//!
//! ```text
//! server ──► sigv4 ──► api (streams)
//!    │
//!    └─► put_media ──► media, codec (rules) ──► recording
//!             │                                   │
//!             └──────◄── acks ◄── scenario ◄──────┘        view: what tests see
//! ```
//!
//! It shares no media code with the daemon: Matroska is read by a library crate and signatures are checked by a second
//! implementation, so that each side checks the other. The first connection, call and fragment is number 1.
//!
//! Rules that only hold here are stricter than the service: a CodecPrivate that does not fit its codec, NAL units that do
//! not add up, and Matroska elements that no KVS producer sends are INVALID_MKV_DATA.

pub mod acks;
pub mod api;
pub mod codec;
pub mod command;
pub mod date;
mod io;
pub mod media;
mod put_media;
pub mod recording;
pub mod scenario;
mod server;
pub mod sigv4;
pub mod view;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::clock::Clock;
use crate::shutdown::Shutdown;
use api::Store;
use recording::Recorder;
use scenario::Scenario;
use server::{Counters, Service, lock};
use view::{History, Journal, View};

pub use media::Limits;
pub use sigv4::{Credential, Validity};

/// Why the endpoint does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; is another program using the port?")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The address can be reached from elsewhere.
    #[error(
        "{0} is not a loopback address; the endpoint is for tests and takes no other without --allow-remote"
    )]
    NotLoopback(SocketAddr),
    /// A rule of the scenario can never apply.
    #[error(transparent)]
    Scenario(#[from] scenario::Error),
    /// Nothing can be recorded.
    #[error(transparent)]
    Recording(#[from] recording::Error),
}

/// Who may reach the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Programs on this machine.
    #[default]
    Loopback,
    /// Whoever can reach the address.
    Anyone,
}

/// How the endpoint runs. The default records nothing and behaves well, on any free port of 127.0.0.1.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Whether other than loopback addresses are allowed.
    pub reach: Reach,
    /// Where recordings go; `None` records nothing.
    pub directory: Option<PathBuf>,
    /// What goes wrong.
    pub scenario: Scenario,
    /// With it the endpoint speaks TLS. It must not offer HTTP/2.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// The access keys that are known; by default the three built-in ones: valid, temporary, expired.
    pub credentials: Vec<Credential>,
    /// The region that requests must be signed for; `None` takes any.
    pub region: Option<String>,
    /// What GetDataEndpoint tells. `None` tells the host by which the client came, so that names and proxies just work.
    pub advertise: Option<String>,
    /// What the media may be.
    pub limits: Limits,
    /// How long things take.
    pub durations: Durations,
    /// How much the view shows.
    pub history: History,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            reach: Reach::default(),
            directory: None,
            scenario: Scenario::default(),
            tls: None,
            credentials: vec![
                Credential::default(),
                Credential::temporary(),
                Credential::expired(),
            ],
            region: None,
            advertise: None,
            limits: Limits::default(),
            durations: Durations::default(),
            history: History::default(),
        }
    }
}

/// How long things take. The default is the service's, where it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durations {
    /// A new stream is CREATING.
    pub creating: Duration,
    /// A changed stream is UPDATING.
    pub updating: Duration,
    /// A deleted stream is DELETING.
    pub deleting: Duration,
    /// Between two IDLE acknowledgements. The service does not say; ours is 5 s.
    pub idle_ack: Duration,
    /// Without media, until the response ends.
    pub idle_close: Duration,
    /// A PutMedia connection lives.
    pub connection_age: Duration,
    /// A PutMedia request waits for another one on the stream to end before it is refused.
    pub takeover: Duration,
}

impl Default for Durations {
    fn default() -> Self {
        Self {
            creating: Duration::ZERO,
            updating: Duration::ZERO,
            deleting: Duration::ZERO,
            idle_ack: Duration::from_secs(5),
            idle_close: Duration::from_secs(30),
            connection_age: Duration::from_mins(45),
            takeover: Duration::from_millis(200),
        }
    }
}

/// A running endpoint. Dropping it ends every connection.
#[derive(Debug)]
pub struct Endpoint {
    service: Arc<Service>,
    tasks: JoinSet<()>,
}

impl Endpoint {
    /// Starts to listen. Runs in the calling runtime, which may have one thread only.
    ///
    /// # Errors
    /// When the address, the directory or the scenario cannot be used.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let listen = options.listen;
        if options.reach == Reach::Loopback && !listen.ip().is_loopback() {
            return Err(Error::NotLoopback(listen));
        }
        options.scenario.check()?;
        let recorder = Recorder::new(options.directory)?;
        let failed = |source| Error::Listen {
            address: listen,
            source,
        };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let scheme = match options.tls {
            None => "http",
            Some(_) => "https",
        };
        let (outages, outage_orders) = mpsc::unbounded_channel();
        let service = Arc::new(Service {
            clock: Clock,
            scheme,
            address,
            advertise: options.advertise,
            region: options.region,
            credentials: options.credentials,
            limits: options.limits,
            durations: options.durations,
            journal: Journal::new(options.history),
            store: Mutex::new(Store::default()),
            scenario: Mutex::new(options.scenario),
            recorder: Arc::new(Mutex::new(recorder)),
            counters: Mutex::new(Counters::default()),
            released: Notify::new(),
            outages,
        });
        let mut tasks = JoinSet::new();
        let tls = options.tls.map(TlsAcceptor::from);
        tasks.spawn(server::accept(
            Arc::clone(&service),
            listener,
            address,
            tls,
            outage_orders,
        ));
        Ok(Self { service, tasks })
    }

    /// The origin, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        self.service.url()
    }

    /// What happens at the endpoint.
    pub fn view(&self) -> View {
        self.service.journal.view()
    }

    /// Replaces the scenario; the default one ends all misbehaviour to come. Counts of calls, connections and fragments go
    /// on.
    ///
    /// # Errors
    /// When a rule can never apply.
    pub fn follow(&self, scenario: Scenario) -> Result<(), scenario::Error> {
        scenario.check()?;
        *lock(&self.service.scenario) = scenario;
        Ok(())
    }

    /// Goes away at once for `length`: every connection ends and new ones are refused, as when a server restarts.
    pub fn go_away(&self, length: Duration) {
        let _ = self.service.outages.send(length); // no receiver: the endpoint is gone for good
    }

    /// Serves until `shutdown`, then ends every connection.
    pub async fn serve_until(mut self, mut shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.wait() => {}
            _ = self.tasks.join_next() => {}
        }
        self.tasks.shutdown().await;
    }
}
