//! The camera falls silent, or reading it goes wrong: the stream goes on when it is back.

use std::time::Duration;

use kvs_producer_app::app::Exit;
use kvs_producer_app::local::Options;
use kvs_producer_app::local::view::Closed;

use crate::rig::{SPACING, STREAM, clip, config, endpoint, hand_camera, stream};

#[tokio::test]
async fn silence_closes_the_fragment_and_lets_the_connection_go() {
    let endpoint = endpoint(Options::default()).await;
    let mut config = config(&endpoint.url());
    config.silence = Duration::from_millis(300);
    let (shutter, camera) = hand_camera();
    let units = clip();
    let push = move |range: std::ops::Range<usize>| {
        for index in range {
            let at = SPACING * u32::try_from(index).expect("few");
            shutter
                .send((at, units[index].clone()))
                .expect("the camera is there");
        }
    };
    let mut view = endpoint.view();
    let test = async move {
        push(0..75);
        let frames = |state: &kvs_producer_app::local::view::State| {
            state
                .persisted(STREAM)
                .map(|fragment| fragment.frame_count)
                .sum::<usize>()
        };
        view.wait_until(|state| frames(state) == 75).await;
        view.wait_until(|state| state.connections[0].closed == Some(Closed::Completed))
            .await;
        // What does not start with a key frame has lost its reference.
        push(75..100);
        push(100..150);
        view.wait_until(|state| state.connections.len() == 2).await;
        drop(push);
    };
    let (summary, ()) = tokio::join!(stream(config, camera), test);
    let summary = summary.expect("a run");
    assert_eq!(
        summary.report.counts.persisted.frames, 125,
        "{}",
        summary.report
    );
    assert_eq!(summary.exit, Exit::Dropped, "{}", summary.report);
}
