//! Nothing goes wrong: every frame arrives, as it was captured, when it was captured.

use std::time::Duration;

use kvs_producer_app::app::Exit;
use kvs_producer_app::local::Options;
use kvs_producer_app::local::view::Closed;

use crate::rig::{
    FastCamera, SPACING, STREAM, assert_whole, clip, config, endpoint, hand_camera, stream,
};

#[tokio::test]
async fn every_frame_is_persisted_once_in_order_with_its_time() {
    let endpoint = endpoint(Options::default()).await;
    let camera = FastCamera::new(250, Duration::from_millis(1));
    let summary = stream(config(&endpoint.url()), camera)
        .await
        .expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    let view = endpoint.view();
    let state = view.state();
    assert_whole(&state, 250);
    let counts = summary.report.counts;
    assert_eq!(
        (counts.captured, counts.sent),
        (counts.persisted, counts.persisted)
    );
    assert_eq!(
        (
            counts.persisted.frames,
            counts.fragments_persisted,
            counts.resent.frames
        ),
        (250, 5, 0)
    );
    assert_eq!(summary.report.connections, 1);
    assert_eq!(state.connections[0].closed, Some(Closed::Completed));
    for (call, times) in [
        ("DescribeStream", 1),
        ("CreateStream", 1),
        ("GetDataEndpoint", 2),
        ("PutMedia", 1),
    ] {
        assert_eq!(state.count(call), times, "{call}");
    }
}

#[tokio::test]
async fn to_a_stream_that_is_there_the_data_endpoint_is_all_that_is_asked_for() {
    let endpoint = endpoint(Options::default()).await;
    let mut config = config(&endpoint.url());
    config.session.poll = Duration::from_secs(1);
    let view = endpoint.view();
    let calls = || view.state().calls.values().sum::<u64>();
    for expected in [5, 2] {
        let before = calls();
        let camera = FastCamera::new(100, Duration::from_millis(1));
        let summary = stream(config.clone(), camera).await.expect("a run");
        assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
        assert_eq!(calls() - before, expected);
    }
}

#[tokio::test]
async fn a_frame_is_on_the_wire_before_the_next_is_captured() {
    let endpoint = endpoint(Options::default()).await;
    let (shutter, camera) = hand_camera();
    let run = stream(config(&endpoint.url()), camera);
    let mut view = endpoint.view();
    let test = async {
        let units = clip();
        let mut sent = 0;
        for (index, unit) in units.iter().take(20).enumerate() {
            let at = SPACING * u32::try_from(index).expect("few");
            shutter
                .send((at, unit.clone()))
                .expect("the camera is there");
            sent += unit.len() as u64;
            // Lengths take the place of start codes and the delimiter may go: what arrives is at least most of it.
            view.wait_until(|state| {
                state
                    .connections
                    .first()
                    .is_some_and(|one| one.bytes >= sent * 9 / 10)
            })
            .await;
        }
        assert_eq!(
            view.state().persisted(STREAM).count(),
            0,
            "the fragment is not closed yet"
        );
        drop(shutter);
    };
    let (summary, ()) = tokio::join!(run, test);
    assert_eq!(summary.expect("a run").exit, Exit::Persisted);
    assert_whole(&endpoint.view().state(), 20);
}

#[tokio::test]
async fn tags_and_retention_reach_the_stream_that_is_created() {
    let endpoint = endpoint(Options::default()).await;
    let mut config = config(&endpoint.url());
    config.aws.tags = vec![("site".into(), "gate-3".into())];
    config.session.tag = true;
    config.aws.retention_hours = 0;
    let view = endpoint.view();
    // The second time it is there, and what it retains is learnt while media flows.
    for tagged in [1, 2] {
        let camera = FastCamera::new(100, Duration::from_millis(1));
        let summary = stream(config.clone(), camera).await.expect("a run");
        // Nothing is ever PERSISTED where nothing is retained: RECEIVED is all there is.
        assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
        assert_eq!(view.state().count("TagStream"), tagged);
        assert_eq!(view.state().count("DescribeStream"), tagged);
        assert_eq!(view.state().persisted(STREAM).count(), 0);
        let counts = summary.report.counts;
        assert_eq!((counts.fragments_persisted, counts.resent.frames), (2, 0));
    }
}
