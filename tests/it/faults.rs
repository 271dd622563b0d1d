//! The network and the service fail in every phase, over real sockets: nothing is lost that the ring can hold, and it goes
//! on by itself.
//!
//! Durations are a tenth of the real ones, outages and deadlines alike; with `KVS_TEST_LONG=1` they are the real ones.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use kvs_producer_app::app::{Config, Exit};
use kvs_producer_app::clock::Clock;
use kvs_producer_app::kvs::session::Settings;
use kvs_producer_app::local::api::ApiError;
use kvs_producer_app::local::scenario::{Action, Break, Nth, Scenario, Trigger};
use kvs_producer_app::local::view::State;
use kvs_producer_app::local::{Credential, Endpoint, Options};
use kvs_producer_app::ring::{DropReason, MIN_BUDGET_BYTES, WhenFull};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::NamedTempFile;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::child::Producer;
use crate::proxy::{Door, Flow, Proxy};
use crate::rig::{
    FastCamera, SPACING, STREAM, assert_whole, clip, config, endpoint, hand_camera, payload, stream,
};

/// Whether the durations are the real ones.
pub fn long() -> bool {
    std::env::var_os("KVS_TEST_LONG").is_some()
}

/// A real duration, or a tenth of it.
fn scaled(real: Duration) -> Duration {
    if long() { real } else { real / 10 }
}

/// The session's real settings, scaled.
fn settings() -> Settings {
    let real = Settings::default();
    Settings {
        call_timeout: scaled(real.call_timeout),
        credentials_timeout: scaled(real.credentials_timeout),
        connect_timeout: scaled(real.connect_timeout),
        head_timeout: scaled(real.head_timeout),
        progress_timeout: scaled(real.progress_timeout),
        confirm_timeout: scaled(real.confirm_timeout),
        poll: scaled(real.poll),
        first_wait: scaled(real.first_wait),
        longest_wait: scaled(real.longest_wait),
        ..real
    }
}

fn scaled_config(url: &str) -> Config {
    Config {
        session: settings(),
        // As a camera has it.
        when_full: Some(WhenFull::Drop),
        grace: Duration::from_mins(1),
        ..config(url)
    }
}

/// From the end of a fault to the next PERSISTED.
fn recovery() -> Duration {
    settings().longest_wait + scaled(Duration::from_secs(5))
}

/// Between two frames of the camera in our time: as many as a real one, or more where time is scaled.
fn pace() -> Duration {
    if long() {
        Duration::from_millis(40)
    } else {
        Duration::from_millis(15)
    }
}

/// Frames of a camera that runs for so long.
fn frames_in(time: Duration) -> usize {
    usize::try_from(time.as_millis() / pace().as_millis()).expect("few")
}

/// Where it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The data endpoint's name does not resolve.
    Resolve,
    /// Connections are refused.
    Connect,
    /// SYNs are swallowed.
    Syn,
    /// The TLS handshake stands still.
    Handshake,
    /// DescribeStream gets no answer.
    DescribeHangs,
    /// DescribeStream fails.
    DescribeFails,
    /// GetDataEndpoint gets no answer.
    EndpointHangs,
    /// PutMedia gets no head of an answer.
    Head,
    /// The connection breaks within a frame, and the server is gone.
    MidFrame,
    /// No byte passes any more, in either direction, and nobody says a word.
    BlackHole,
    /// No acknowledgement passes any more.
    Acks,
}

impl Phase {
    const ALL: [Self; 11] = [
        Self::Resolve,
        Self::Connect,
        Self::Syn,
        Self::Handshake,
        Self::DescribeHangs,
        Self::DescribeFails,
        Self::EndpointHangs,
        Self::Head,
        Self::MidFrame,
        Self::BlackHole,
        Self::Acks,
    ];

    /// What the endpoint does wrong from the start.
    fn scenario(self, length: Duration) -> Scenario {
        let each = |operation| Trigger::call(operation, Nth::Each);
        let rule = match self {
            Self::DescribeHangs => (each("DescribeStream"), Action::Delay(length)),
            Self::DescribeFails => (
                each("DescribeStream"),
                refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure"),
            ),
            Self::EndpointHangs => (each("GetDataEndpoint"), Action::Delay(length)),
            Self::Head => (each("PutMedia"), Action::Break(Break::Stall)),
            Self::MidFrame => (Trigger::bytes(1, 50_001), Action::Outage(length)),
            _ => return Scenario::default(),
        };
        Scenario::of([rule])
    }

    /// Lets it fail for `length`, and returns when that is over.
    async fn fail(self, endpoint: &Endpoint, proxy: &Proxy, length: Duration) {
        match self {
            Self::Resolve => proxy.set(|rules| rules.misname = true),
            Self::DescribeHangs | Self::DescribeFails | Self::EndpointHangs | Self::Head => {}
            _ => {
                endpoint
                    .view()
                    .wait_until(|state| {
                        let broken = state.connections.iter().any(|one| one.closed.is_some());
                        broken || (self != Self::MidFrame && state.persisted(STREAM).count() > 0)
                    })
                    .await;
                // The acknowledgement is still on its way.
                sleep(Duration::from_millis(50)).await;
            }
        }
        match self {
            Self::Connect => proxy.cut(|rules| rules.door = Door::Refuse),
            Self::Syn => proxy.cut(|rules| rules.door = Door::Swallow),
            Self::Handshake => proxy.cut(|rules| (rules.up, rules.down) = (Flow::Hold, Flow::Hold)),
            Self::BlackHole => proxy.set(|rules| (rules.up, rules.down) = (Flow::Hold, Flow::Hold)),
            Self::Acks => proxy.set(|rules| rules.down = Flow::Hold),
            _ => {}
        }
        sleep(length).await;
        endpoint
            .follow(Scenario::default())
            .expect("no rules are good rules");
        proxy.heal();
    }
}

fn refusal(status: StatusCode, error: &str) -> Action {
    Action::Refuse(ApiError::new(status, error, "as the test wants it"))
}

/// Streams through an outage: every frame arrives, and soon after its end.
async fn survives(phase: Phase, length: Duration) {
    let what = format!("{phase:?} for {length:?}");
    let secure = (phase == Phase::Handshake).then(|| Certificate::good("127.0.0.1"));
    let endpoint = endpoint(Options {
        scenario: phase.scenario(length),
        tls: secure.as_ref().map(Certificate::server),
        ..Options::default()
    })
    .await;
    let scheme = if secure.is_some() { "https" } else { "http" };
    let proxy = Proxy::to(&endpoint.url());
    let frames = frames_in(scaled(Duration::from_secs(20)) + length);
    let mut config = scaled_config(&proxy.url(scheme));
    config.ca_file = secure.as_ref().map(Certificate::ca_file);
    // TLS hides acknowledgements from the proxy; the endpoint knows when it made them.
    let confirmed = || match secure {
        None => proxy.passed().iter().map(|one| one.persisted.len()).sum(),
        Some(_) => endpoint.view().state().persisted(STREAM).count(),
    };
    let run = stream(config, FastCamera::new(frames, pace()));
    let fault = async {
        phase.fail(&endpoint, &proxy, length).await;
        let before: usize = confirmed();
        let recovered = async {
            while confirmed() == before {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let over = Clock.now();
        timeout(recovery(), recovered)
            .await
            .unwrap_or_else(|_| panic!("{what}: nothing is PERSISTED {:?} after", over.elapsed()));
    };
    let (summary, ()) = tokio::join!(run, fault);
    let summary = summary.expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{what}: {}", summary.report);
    assert_eq!(summary.report.counts.dropped_in_all().frames, 0, "{what}");
    assert_whole(&endpoint.view().state(), frames);
    proxy.assert_nothing_confirmed_was_sent_again();
}

async fn survive_everywhere(real: Duration) {
    let mut runs = JoinSet::new();
    for phase in Phase::ALL {
        runs.spawn(survives(phase, scaled(real)));
    }
    while let Some(run) = runs.join_next().await {
        run.expect("survived");
    }
}

#[tokio::test]
async fn a_second_without_the_service_in_every_phase() {
    survive_everywhere(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn ten_seconds_without_the_service_in_every_phase() {
    survive_everywhere(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn forty_seconds_without_the_service_in_every_phase() {
    survive_everywhere(Duration::from_secs(40)).await;
}

/// A camera of 157 kbit/s in real time: the less there is to send, the longer a send buffer hides that nothing gets through.
fn small_camera(time: Duration) -> FastCamera {
    let frames = usize::try_from(time.as_millis() / SPACING.as_millis()).expect("few");
    FastCamera::new(frames, SPACING)
}

/// Holds the producer's bytes, and the answers as well where `down` says so, and awaits the next connection.
async fn leaves_when_held(down: Flow) {
    let progress = scaled(Duration::from_secs(5)).max(Duration::from_secs(1));
    let endpoint = endpoint(Options::default()).await;
    let proxy = Proxy::to(&endpoint.url());
    let mut config = scaled_config(&proxy.url("http"));
    config.session.progress_timeout = progress;
    let camera = small_camera(progress * 2 + Duration::from_secs(4));
    let fault = async {
        let one = |state: &State| state.persisted(STREAM).count() == 1;
        endpoint.view().wait_until(one).await;
        let before = proxy.passed().len();
        proxy.set(|rules| (rules.up, rules.down) = (Flow::Hold, down));
        let since = Clock.now();
        while proxy.passed().len() == before {
            sleep(Duration::from_millis(5)).await;
        }
        let left_after = since.elapsed();
        proxy.heal();
        left_after
    };
    let (summary, left_after) = tokio::join!(stream(config, camera), fault);
    let summary = summary.expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    // The server's kernel goes on confirming bytes for a while: then it is the next fragment's BUFFERING that misses, and a
    // fragment begins every 2 s.
    let most = progress + Duration::from_millis(2_900);
    assert!(left_after < most, "{down:?}: left after {left_after:?}");
}

#[tokio::test]
async fn a_half_open_connection_is_left_in_time() {
    tokio::join!(leaves_when_held(Flow::Hold), leaves_when_held(Flow::Pass));
}

#[tokio::test]
async fn a_connection_that_is_merely_slow_is_not_left() {
    // 300 kbit/s and 5 s, or four times as much in a quarter of the time.
    let (rate, progress) = if long() {
        (37_500, Duration::from_secs(5))
    } else {
        (150_000, Duration::from_millis(1_250))
    };
    let endpoint = endpoint(Options::default()).await;
    let proxy = Proxy::to(&endpoint.url());
    proxy.set(|rules| rules.up = Flow::Rate(rate));
    let mut config = scaled_config(&proxy.url("http"));
    config.session.progress_timeout = progress;
    config.session.confirm_timeout = progress * 4;
    // Fragments of 390 kB, so that long times pass between two acknowledgements: 3 Mbit/s.
    let (shutter, camera) = hand_camera();
    let (units, frames) = (clip(), 1_500);
    for (index, unit) in units.iter().cycle().take(frames).enumerate() {
        let at = Duration::from_millis(2) * u32::try_from(index).expect("few");
        shutter
            .send((at, unit.clone()))
            .expect("the camera is there");
    }
    drop(shutter);
    let summary = stream(config, camera).await.expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_eq!(summary.report.connections, 1, "{}", summary.report);
    assert_eq!(summary.report.counts.resent.frames, 0);
    assert_eq!(summary.report.counts.persisted.frames, frames as u64);
}

#[tokio::test]
async fn an_uplink_slower_than_the_camera_loses_whole_oldest_fragments_and_counts_them() {
    let endpoint = endpoint(Options::default()).await;
    let proxy = Proxy::to(&endpoint.url());
    proxy.set(|rules| rules.up = Flow::Rate(100_000));
    let mut config = config(&proxy.url("http"));
    config.buffer_bytes = MIN_BUDGET_BYTES;
    config.when_full = Some(WhenFull::Drop);
    let frames = 1_500;
    let summary = stream(config, FastCamera::new(frames, Duration::from_millis(1)))
        .await
        .expect("a run");
    assert_eq!(summary.exit, Exit::Dropped, "{}", summary.report);
    let counts = summary.report.counts;
    let dropped = counts.dropped_for(DropReason::RingFull);
    assert_eq!(counts.dropped_in_all(), dropped, "{}", summary.report);
    assert_eq!(
        counts.captured.frames,
        counts.persisted.frames + dropped.frames
    );
    assert!(
        dropped.frames > 0 && dropped.frames % 50 == 0,
        "whole groups of pictures"
    );
    let view = endpoint.view();
    let state = view.state();
    let units = clip();
    let mut arrived = 0;
    let mut last = 0;
    for fragment in state.persisted(STREAM) {
        assert!(fragment.timecode > last, "in order");
        assert!(fragment.frames[0].key, "decodable from its first frame");
        for (index, frame) in fragment.frames.iter().enumerate() {
            assert!(frame.at_ms > last || index == 0);
            last = frame.at_ms;
        }
        // The clip's groups of pictures differ: a fragment is a run of frames out of it.
        let of_fragment = |start: usize| {
            fragment.frames.iter().enumerate().all(|(index, frame)| {
                let unit = &units[(start + index) % units.len()];
                frame.payload.as_deref() == Some(payload(unit).as_slice())
            })
        };
        assert!(
            (0..units.len()).step_by(50).any(of_fragment),
            "no frame is missing inside"
        );
        arrived += fragment.frame_count as u64;
    }
    assert_eq!(
        arrived, counts.persisted.frames,
        "what is counted is what is missing"
    );
}

#[tokio::test]
async fn a_refusal_in_mid_stream_is_one_more_connection() {
    // An expired token and a permission that was taken away look like this.
    for error in [
        "NotAuthorizedException",
        "ExpiredTokenException",
        "AccessDeniedException",
    ] {
        let scenario = Scenario::of([
            (Trigger::bytes(1, 150_000), Action::Break(Break::Reset)),
            (
                Trigger::bytes(2, 60_000),
                refusal(StatusCode::FORBIDDEN, error),
            ),
        ]);
        let endpoint = endpoint(Options {
            scenario,
            ..Options::default()
        })
        .await;
        let frames = 500;
        let camera = FastCamera::new(frames, Duration::from_millis(2));
        let summary = stream(config(&endpoint.url()), camera)
            .await
            .expect("a run");
        assert_eq!(summary.exit, Exit::Persisted, "{error}: {}", summary.report);
        assert_whole(&endpoint.view().state(), frames);
    }
}

#[tokio::test]
async fn another_producer_on_the_stream_is_waited_for() {
    let busy = refusal(StatusCode::BAD_REQUEST, "ConnectionLimitExceededException");
    let endpoint = endpoint(Options {
        scenario: Scenario::of([
            (Trigger::bytes(1, 100_001), Action::Break(Break::Reset)),
            (Trigger::call("PutMedia", Nth::From(2)), busy),
        ]),
        ..Options::default()
    })
    .await;
    let frames = frames_in(scaled(Duration::from_secs(30)));
    let camera = FastCamera::new(frames, pace());
    let run = stream(scaled_config(&endpoint.url()), camera);
    let fault = async {
        let mut view = endpoint.view();
        view.wait_until(|state| state.count("PutMedia") == 2).await;
        sleep(scaled(Duration::from_secs(10))).await;
        endpoint.follow(Scenario::default()).expect("no rules");
        let refused = view.state().count("PutMedia");
        let next = view.wait_until(|state| state.count("PutMedia") > refused);
        timeout(recovery(), next).await.expect("it tries again");
        refused
    };
    let (summary, tries) = tokio::join!(run, fault);
    let summary = summary.expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_whole(&endpoint.view().state(), frames);
    assert!(
        (3..=10).contains(&tries),
        "waits that grow, not {tries} tries"
    );
}

/// `operation` is not permitted for 20 s.
async fn waits_for_permission(operation: &str) {
    // DescribeStream may be missing for ever; CreateStream is needed where the stream is not there.
    let denied = refusal(StatusCode::FORBIDDEN, "AccessDeniedException");
    let endpoint = endpoint(Options {
        scenario: Scenario::of([(Trigger::call(operation, Nth::Each), denied)]),
        ..Options::default()
    })
    .await;
    let frames = frames_in(scaled(Duration::from_secs(40)));
    let mut config = scaled_config(&endpoint.url());
    config.session.longest_wait = scaled(Duration::from_secs(5));
    let run = stream(config, FastCamera::new(frames, pace()));
    let fault = async {
        sleep(scaled(Duration::from_secs(20))).await;
        endpoint.follow(Scenario::default()).expect("no rules");
        endpoint.view().state().count(operation)
    };
    let (summary, tries) = tokio::join!(run, fault);
    let summary = summary.expect("a run");
    let exit = summary.exit;
    assert_eq!(exit, Exit::Persisted, "{operation}: {}", summary.report);
    assert_whole(&endpoint.view().state(), frames);
    assert!(tries <= 15, "{operation}: {tries} tries");
}

#[tokio::test]
async fn a_missing_permission_is_asked_for_slowly_until_it_is_there() {
    tokio::join!(
        waits_for_permission("DescribeStream"),
        waits_for_permission("GetDataEndpoint"),
        waits_for_permission("PutMedia"),
    );
}

#[tokio::test]
async fn a_certificate_that_is_expired_or_of_another_name_gets_no_video() {
    for (certificate, advice) in [
        (Certificate::new("127.0.0.1", 2001), "clock"),
        (Certificate::good("somewhere.else"), "address"),
    ] {
        let media = endpoint(Options {
            tls: Some(certificate.server()),
            ..Options::default()
        })
        .await;
        let proxy = Proxy::to(&media.url());
        let control = endpoint(Options {
            advertise: Some(proxy.url("https")),
            ..Options::default()
        })
        .await;
        let mut config = scaled_config(&control.url());
        config.ca_file = Some(certificate.ca_file());
        config.grace = Duration::from_secs(1);
        let camera = FastCamera::new(200, Duration::from_millis(5));
        let summary = stream(config, camera).await.expect("a run");
        assert_eq!(summary.exit, Exit::Untrusted, "{}", summary.report);
        let failure = summary.report.failure.expect("it failed");
        assert!(failure.contains(advice), "{failure}");
        assert!(media.view().state().calls.is_empty());
        for connection in proxy.passed() {
            // A ClientHello and an alert.
            assert!(connection.up < 1_000, "{} bytes", connection.up);
        }
        assert!(!proxy.passed().is_empty());
    }
}

/// The program is told to stop while `phase` goes on: it ends in time, and says what is true.
async fn stops(phase: Phase) {
    const GRACE: Duration = Duration::from_secs(2);
    let forever = Duration::from_mins(1);
    let secure = (phase == Phase::Handshake).then(|| Certificate::good("127.0.0.1"));
    let endpoint = endpoint(Options {
        scenario: phase.scenario(forever),
        tls: secure.as_ref().map(Certificate::server),
        ..Options::default()
    })
    .await;
    let scheme = if secure.is_some() { "https" } else { "http" };
    let proxy = Proxy::to(&endpoint.url());
    let ca = secure.as_ref().map(Certificate::ca_file);
    let ca = ca.as_ref().map(|path| path.to_str().expect("ASCII"));
    let mut arguments = vec!["--grace", "2"];
    arguments.extend(ca.iter().flat_map(|path| ["--ca-file", path]));
    let known = Credential::default();
    let producer = Producer::start(&proxy.url(scheme), &known, &arguments);
    let stop = async {
        sleep(Duration::from_millis(3_500)).await;
        producer.terminate();
        Clock.now()
    };
    let asked = tokio::select! {
        asked = stop => asked,
        () = phase.fail(&endpoint, &proxy, forever) => unreachable!("it is stopped long before"),
    };
    let ended = producer.end().await;
    let took = asked.elapsed();
    let what = format!(
        "{phase:?}: {:?} {}\n{}",
        ended.status, ended.report, ended.stderr
    );
    assert!(took < GRACE + Duration::from_secs(1), "{took:?}, {what}");
    assert_eq!(ended.status.code(), Some(Exit::Unsent as i32), "{what}");
    let frames = |of: &str| ended.report[of]["frames"].as_u64().expect("a number");
    assert!(frames("captured") >= 75, "{what}");
    assert_eq!(
        frames("captured"),
        frames("persisted") + frames("dropped"),
        "{what}"
    );
    let left = &ended.report["dropped"]["by_reason"]["not_sent_in_time"]["frames"];
    assert_eq!(left.as_u64(), Some(frames("dropped")), "{what}");
    let view = endpoint.view();
    let state = view.state();
    let stored: usize = state.persisted(STREAM).map(|one| one.frame_count).sum();
    assert!(frames("persisted") <= stored as u64, "{stored} {what}");
    if phase != Phase::Acks {
        assert_eq!(frames("persisted"), stored as u64, "{what}");
    }
    let failure = ended.report["failure"].as_str().unwrap_or_default();
    assert!(
        !failure.is_empty() && ended.stderr.contains(failure),
        "{what}"
    );
}

#[tokio::test]
async fn a_signal_during_any_fault_ends_the_program_in_time_with_a_true_report() {
    let mut runs = JoinSet::new();
    for phase in Phase::ALL {
        runs.spawn(stops(phase));
    }
    while let Some(run) = runs.join_next().await {
        run.expect("stopped");
    }
}

/// A server's certificate, and the CA that has signed it.
pub struct Certificate {
    ca: NamedTempFile,
    server: Arc<ServerConfig>,
}

impl Certificate {
    pub fn good(name: &str) -> Self {
        Self::new(name, 2099)
    }

    pub fn new(name: &str, last_year: i32) -> Self {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer =
            CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("signed");
        let key = KeyPair::generate().expect("a key");
        let mut leaf = CertificateParams::new([name.to_owned()]).expect("a name");
        leaf.not_after = date_time_ymd(last_year, 1, 1);
        let leaf = leaf.signed_by(&key, &issuer).expect("signed");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .expect("they go together");
        let ca = NamedTempFile::new().expect("a file");
        std::fs::write(ca.path(), issuer.pem()).expect("written");
        Self {
            ca,
            server: Arc::new(server),
        }
    }

    pub fn ca_file(&self) -> std::path::PathBuf {
        self.ca.path().to_owned()
    }

    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}
