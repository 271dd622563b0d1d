//! Whatever fails, within ten seconds the producer's state and its reason are the right ones; and when it is over, it
//! streams and is healthy.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use kvs_producer_app::clock::Clock;
use kvs_producer_app::frame::Codec;
use kvs_producer_app::kvs::session::Settings;
use kvs_producer_app::local::Options;
use kvs_producer_app::local::acks::AckError;
use kvs_producer_app::local::api::ApiError;
use kvs_producer_app::local::scenario::{Action, Break, FragmentIndex, Nth, Scenario, Trigger};
use kvs_producer_app::producer::{Frame, Producer, Stream};
use serde_json::Value;

use crate::faults::Certificate;
use crate::proxy::{Door, Flow, Proxy, Rules};
use crate::rig::{STREAM, clip, config, endpoint};

/// How soon it has to be known.
const SOON: Duration = Duration::from_secs(10);

/// How soon it has to stream again.
const RECOVERY: Duration = Duration::from_secs(45);

/// Between two frames: 170 kB/s.
const SPACING: Duration = Duration::from_millis(5);

/// What goes wrong.
enum Fault {
    /// On the way.
    Network(fn(&mut Rules)),
    /// The connection breaks, and this is the way to a new one.
    Reconnecting(fn(&mut Rules)),
    /// The same, behind TLS.
    ReconnectingSecurely(fn(&mut Rules)),
    /// The connection breaks, and this is what becomes of a call.
    Call(&'static str, Action),
    /// The service answers each fragment with this error.
    Ack(u32, &'static str),
    /// The camera brings nothing.
    Camera,
}

/// The clip over and over, while `on`.
fn film(stream: &Stream, on: &AtomicBool, over: &AtomicBool) {
    let units = clip();
    for unit in units.iter().cycle() {
        std::thread::sleep(SPACING);
        if over.load(Ordering::Relaxed) {
            return;
        }
        let frame = Frame {
            codec: Codec::H264,
            data: unit,
            at: None,
        };
        if on.load(Ordering::Relaxed) && stream.put_frame(&frame).is_err() {
            return;
        }
    }
}

/// Waits until the status is as wanted.
fn wait_until(
    stream: &Stream,
    limit: Duration,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Duration {
    let start = Clock.now();
    loop {
        let status = stream.metrics().expect("it runs");
        let took = Clock.now() - start;
        if wanted(&status) {
            return took;
        }
        let (state, reason) = (&status["state"], &status["reason"]);
        assert!(
            took < limit,
            "{what}: after {took:?} it says {state}: {reason}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

async fn is_diagnosed(what: &'static str, fault: Fault, states: &[&str], words: &[&str]) {
    let secure = matches!(fault, Fault::ReconnectingSecurely(_));
    let certificate = secure.then(|| Certificate::good("127.0.0.1"));
    let endpoint = endpoint(Options {
        tls: certificate.as_ref().map(Certificate::server),
        ..Options::default()
    })
    .await;
    let proxy = Proxy::to(&endpoint.url());
    let mut settings = config(&proxy.url(if secure { "https" } else { "http" }));
    settings.ca_file = certificate.as_ref().map(Certificate::ca_file);
    // The real durations, but for a wait that the test would have to wait for.
    settings.session = Settings {
        longest_wait: Duration::from_secs(5),
        ..Settings::default()
    };
    let mut producer = Producer::new(STREAM).expect("a channel");
    *producer.config() = settings;
    let (states, words) = (
        states.iter().map(ToString::to_string).collect::<Vec<_>>(),
        words.iter().map(ToString::to_string).collect::<Vec<_>>(),
    );
    let started = tokio::task::spawn_blocking(move || producer.create().expect("it starts"));
    let stream = started.await.expect("no panic");
    let (on, over) = (AtomicBool::new(true), AtomicBool::new(false));
    tokio::task::yield_now().await;
    let handle = tokio::runtime::Handle::current();
    let work = tokio::task::spawn_blocking(move || {
        std::thread::scope(|scope| {
            let filming = scope.spawn(|| film(&stream, &on, &over));
            let streams =
                |status: &Value| status["state"] == "streaming" && status["healthy"] == true;
            wait_until(&stream, RECOVERY, what, streams);
            match fault {
                Fault::Network(rules) => proxy.set(rules),
                Fault::Reconnecting(rules) | Fault::ReconnectingSecurely(rules) => {
                    proxy.cut(rules);
                }
                Fault::Call(operation, action) => {
                    let rule = (Trigger::call(operation, Nth::Each), action);
                    handle
                        .block_on(async { endpoint.follow(Scenario::of([rule])) })
                        .expect("a rule");
                    proxy.cut(|_| {});
                }
                Fault::Ack(id, code) => {
                    let each = Trigger::Ack {
                        connection: Nth::Each,
                        fragment: FragmentIndex::OnConnection(Nth::Each),
                        event: None,
                    };
                    let error = AckError {
                        id,
                        code: code.into(),
                    };
                    let rule = (each, Action::ErrorAck(error));
                    handle
                        .block_on(async { endpoint.follow(Scenario::of([rule])) })
                        .expect("a rule");
                }
                Fault::Camera => on.store(false, Ordering::Relaxed),
            }
            let took = wait_until(&stream, SOON, what, |status| {
                let reason = status["reason"].as_str().expect("a text");
                states.iter().any(|state| status["state"] == state.as_str())
                    && words.iter().any(|word| reason.contains(word))
            });
            eprintln!("{what}: known after {took:?}");
            proxy.heal();
            handle
                .block_on(async { endpoint.follow(Scenario::default()) })
                .expect("no rules");
            on.store(true, Ordering::Relaxed);
            wait_until(&stream, RECOVERY, what, streams);
            over.store(true, Ordering::Relaxed);
            filming.join().expect("no panic");
        });
        stream.free().expect("a run");
    });
    work.await.expect("diagnosed");
}

#[tokio::test]
async fn faults_of_the_network_are_told_as_such() {
    let away = ["connecting", "catching-up"];
    tokio::join!(
        is_diagnosed(
            "connections are refused",
            Fault::Network(|rules| {
                rules.door = Door::Refuse;
                (rules.up, rules.down) = (Flow::Hold, Flow::Hold);
            }),
            &away,
            &["cannot reach", "cannot connect", "refused"],
        ),
        is_diagnosed(
            "nothing passes",
            Fault::Network(|rules| (rules.up, rules.down) = (Flow::Hold, Flow::Hold)),
            &away,
            &["no more bytes", "no acknowledgement", "no answer"],
        ),
        is_diagnosed(
            "nothing comes back",
            Fault::Network(|rules| rules.down = Flow::Hold),
            &away,
            &["no acknowledgement", "no answer"],
        ),
        is_diagnosed(
            "the uplink is slower than the camera",
            Fault::Network(|rules| rules.up = Flow::Rate(20_000)),
            &["catching-up"],
            &["behind", "no more bytes", "no acknowledgement"],
        ),
    );
}

#[tokio::test]
async fn what_stands_in_the_way_of_a_connection_is_told() {
    let long = Duration::from_mins(5);
    tokio::join!(
        is_diagnosed(
            "the data endpoint's name does not resolve",
            Fault::Reconnecting(|rules| rules.misname = true),
            &["connecting"],
            &["cannot resolve"],
        ),
        is_diagnosed(
            "nobody answers a SYN",
            Fault::Reconnecting(|rules| rules.door = Door::Swallow),
            &["connecting"],
            &["no connection", "no answer from"],
        ),
        is_diagnosed(
            "the TLS handshake stands still",
            Fault::ReconnectingSecurely(|rules| (rules.up, rules.down) = (Flow::Hold, Flow::Hold)),
            &["connecting"],
            &["no connection", "no answer from"],
        ),
        is_diagnosed(
            "GetDataEndpoint gets no answer",
            Fault::Call("GetDataEndpoint", Action::Delay(long)),
            &["connecting"],
            &["no answer from"],
        ),
        is_diagnosed(
            "PutMedia gets no answer",
            Fault::Call("PutMedia", Action::Break(Break::Stall)),
            &["connecting"],
            &["no answer to PutMedia"],
        ),
    );
}

#[tokio::test]
async fn what_the_service_refuses_is_told_with_its_name() {
    let refused = |operation, status, error| {
        let error = ApiError::new(status, error, "as the test wants it");
        Fault::Call(operation, Action::Refuse(error))
    };
    tokio::join!(
        is_diagnosed(
            "no permission",
            refused("PutMedia", StatusCode::FORBIDDEN, "AccessDeniedException"),
            &["no-permission"],
            &["AccessDenied"],
        ),
        is_diagnosed(
            "expired credentials",
            refused("PutMedia", StatusCode::FORBIDDEN, "ExpiredTokenException"),
            &["no-permission"],
            &["ExpiredToken"],
        ),
        is_diagnosed(
            "a wrong clock",
            refused("PutMedia", StatusCode::BAD_REQUEST, "RequestExpired"),
            &["clock-wrong"],
            &["RequestExpired"],
        ),
        is_diagnosed(
            "an overloaded service",
            refused(
                "PutMedia",
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailable"
            ),
            &["connecting"],
            &["ServiceUnavailable"],
        ),
        is_diagnosed(
            "another producer",
            refused(
                "PutMedia",
                StatusCode::BAD_REQUEST,
                "ConnectionLimitExceededException"
            ),
            &["connecting"],
            &["ConnectionLimitExceeded"],
        ),
    );
}

#[tokio::test]
async fn a_key_that_cannot_be_used_and_a_camera_that_is_away_are_told_apart() {
    tokio::join!(
        is_diagnosed(
            "a disabled key",
            Fault::Ack(4501, "KMS_KEY_DISABLED"),
            &["no-permission"],
            &["KMS_KEY_DISABLED"],
        ),
        is_diagnosed(
            "no camera",
            Fault::Camera,
            &["waiting-for-camera"],
            &["no frame"],
        ),
    );
}
