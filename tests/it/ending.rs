//! However it ends, it ends in time, and the report says what is true.

use std::time::{Duration, Instant};

use kvs_producer_app::app::Exit;
use kvs_producer_app::local::Options;
use kvs_producer_app::local::scenario::{Action, Break, Nth, Scenario, Trigger};
use kvs_producer_app::ring::DropReason;

use crate::rig::{FastCamera, assert_whole, config, endpoint, stream};

#[tokio::test]
async fn the_last_fragment_is_closed_and_awaited() {
    let endpoint = endpoint(Options::default()).await;
    // 130 frames: the third group of pictures is cut short.
    let summary = stream(
        config(&endpoint.url()),
        FastCamera::new(130, Duration::from_millis(1)),
    )
    .await
    .expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_whole(&endpoint.view().state(), 130);
}

#[tokio::test]
async fn a_service_that_never_confirms_does_not_hold_the_end_up() {
    let scenario = Scenario::of([(
        Trigger::Bytes {
            connection: Nth::Each,
            after: 1,
        },
        Action::Break(Break::BlackHole),
    )]);
    let endpoint = endpoint(Options {
        scenario,
        ..Options::default()
    })
    .await;
    let mut config = config(&endpoint.url());
    config.grace = Duration::from_millis(1500);
    #[expect(
        clippy::disallowed_methods,
        reason = "a test that bounds how long a run takes"
    )]
    let before = Instant::now();
    let summary = stream(config, FastCamera::new(100, Duration::from_millis(1)))
        .await
        .expect("a run");
    assert!(before.elapsed() < Duration::from_secs(10));
    assert_eq!(summary.exit, Exit::Unsent, "{}", summary.report);
    let counts = summary.report.counts;
    assert_eq!(counts.dropped_for(DropReason::NotSentInTime).frames, 100);
    assert_eq!(counts.persisted.frames, 0);
}

#[tokio::test]
async fn a_missing_stream_that_may_not_be_created_is_one_clear_line() {
    let endpoint = endpoint(Options::default()).await;
    let mut config = config(&endpoint.url());
    config.session.create = false;
    config.session.give_up = true;
    let summary = stream(config, FastCamera::new(100, Duration::from_millis(1)))
        .await
        .expect("a run");
    assert_eq!(summary.exit, Exit::Refused);
    let failure = summary.report.failure.expect("it failed");
    assert!(
        failure.contains("--no-create") && failure.contains("camera-1"),
        "{failure}"
    );
}
