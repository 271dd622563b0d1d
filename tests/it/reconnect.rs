//! Connections end in every way: no frame is missing, none is out of order, none is sent twice without need.

use std::time::Duration;

use http::StatusCode;
use kvs_producer_app::app::{Exit, Summary};
use kvs_producer_app::local::acks::EventType;
use kvs_producer_app::local::api::ApiError;
use kvs_producer_app::local::scenario::{Action, Break, Nth, Scenario, Trigger};
use kvs_producer_app::local::{Durations, Endpoint, Options};

use crate::rig::{FastCamera, assert_whole, config, endpoint, stream};

const FRAMES: usize = 500;

async fn run(scenario: Scenario) -> (Endpoint, Summary) {
    let endpoint = endpoint(Options {
        scenario,
        ..Options::default()
    })
    .await;
    let camera = FastCamera::new(FRAMES, Duration::from_millis(2));
    let summary = stream(config(&endpoint.url()), camera)
        .await
        .expect("a run");
    (endpoint, summary)
}

/// All frames are there although the first connection ended by `rule`.
async fn survives(trigger: Trigger, action: Action) -> Summary {
    let what = format!("{trigger:?} {action:?}");
    let (endpoint, summary) = run(Scenario::of([(trigger, action)])).await;
    assert_eq!(summary.exit, Exit::Persisted, "{what}: {}", summary.report);
    assert_whole(&endpoint.view().state(), FRAMES);
    assert!(
        summary.report.connections >= 2,
        "{what}: {}",
        summary.report
    );
    summary
}

#[tokio::test]
async fn a_cut_in_the_middle_of_a_frame() {
    let summary = survives(Trigger::bytes(1, 100_001), Action::Break(Break::Cut)).await;
    assert!(summary.report.counts.resent.frames > 0);
}

#[tokio::test]
async fn a_reset_in_the_header() {
    survives(Trigger::bytes(1, 100), Action::Break(Break::Reset)).await;
}

#[tokio::test]
async fn a_reset_when_an_acknowledgement_is_due() {
    for event in [
        EventType::Buffering,
        EventType::Received,
        EventType::Persisted,
    ] {
        survives(Trigger::ack(1, 3, event), Action::Break(Break::Reset)).await;
    }
}

#[tokio::test]
async fn a_server_that_stops_reading() {
    survives(Trigger::bytes(1, 150_000), Action::Break(Break::Stall)).await;
}

#[tokio::test]
async fn a_server_that_reads_and_acknowledges_nothing_more() {
    survives(Trigger::bytes(1, 150_000), Action::Break(Break::BlackHole)).await;
}

#[tokio::test]
async fn a_server_that_is_gone_for_a_while() {
    let outage = Action::Outage(Duration::from_millis(800));
    survives(Trigger::bytes(1, 120_000), outage).await;
}

#[tokio::test]
async fn the_services_own_age_limit() {
    let age = Durations {
        connection_age: Duration::from_millis(300),
        ..Durations::default()
    };
    let endpoint = endpoint(Options {
        durations: age,
        ..Options::default()
    })
    .await;
    let camera = FastCamera::new(FRAMES, Duration::from_millis(2));
    let summary = stream(config(&endpoint.url()), camera)
        .await
        .expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_whole(&endpoint.view().state(), FRAMES);
}

#[tokio::test]
async fn refusals_of_every_call() {
    let refuse = |status: u16, kind: &str| {
        let status = StatusCode::from_u16(status).expect("a status");
        Action::Refuse(ApiError::new(status, kind, "as the test wants it"))
    };
    let first = |operation| Trigger::call(operation, Nth::Only(1));
    let (endpoint, summary) = run(Scenario::of([
        (
            first("DescribeStream"),
            refuse(400, "ClientLimitExceededException"),
        ),
        (first("CreateStream"), refuse(500, "InternalFailure")),
        (first("GetDataEndpoint"), refuse(503, "ServiceUnavailable")),
        (
            first("PutMedia"),
            refuse(400, "ConnectionLimitExceededException"),
        ),
        (
            Trigger::call("PutMedia", Nth::Only(2)),
            refuse(404, "ResourceNotFoundException"),
        ),
        (
            Trigger::call("PutMedia", Nth::Only(3)),
            refuse(400, "InvalidEndpointException"),
        ),
    ]))
    .await;
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_whole(&endpoint.view().state(), FRAMES);
    assert_eq!(endpoint.view().state().count("PutMedia"), 4);
}

#[tokio::test]
async fn a_fragment_that_is_refused_for_its_own_sake_is_skipped_and_counted() {
    use kvs_producer_app::local::acks::AckError;
    use kvs_producer_app::ring::DropReason;
    let refusal = AckError::known(4006).expect("documented");
    let (endpoint, summary) = run(Scenario::of([(
        Trigger::ack(1, 3, EventType::Received),
        Action::ErrorAck(refusal),
    )]))
    .await;
    assert_eq!(summary.exit, Exit::Dropped, "{}", summary.report);
    let counts = summary.report.counts;
    assert_eq!(counts.dropped_for(DropReason::Refused).frames, 50);
    assert_eq!(counts.persisted.frames, FRAMES as u64 - 50);
    let view = endpoint.view();
    let state = view.state();
    assert_eq!(
        state
            .persisted(crate::rig::STREAM)
            .map(|one| one.frame_count)
            .sum::<usize>(),
        FRAMES - 50
    );
}

#[tokio::test]
async fn a_fragment_that_failed_for_the_services_sake_is_sent_again() {
    use kvs_producer_app::local::acks::AckError;
    for id in [4000, 5000, 5001] {
        let refusal = AckError::known(id).expect("documented");
        survives(
            Trigger::ack(1, 3, EventType::Received),
            Action::ErrorAck(refusal),
        )
        .await;
    }
}
