//! Connections are renewed in time, at a fragment boundary: no gap, no overlap, nothing sent twice.

use std::time::Duration;

use kvs_producer_app::app::Exit;
use kvs_producer_app::local::Options;
use kvs_producer_app::local::view::Closed;

use crate::rig::{FastCamera, STREAM, assert_whole, config, endpoint, stream};

#[tokio::test]
async fn a_connection_is_renewed_before_its_age_limit() {
    let endpoint = endpoint(Options::default()).await;
    let mut config = config(&endpoint.url());
    config.session.connection_age = Duration::from_millis(300);
    let summary = stream(config, FastCamera::new(1000, Duration::from_millis(2)))
        .await
        .expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    let view = endpoint.view();
    let state = view.state();
    assert_whole(&state, 1000);
    assert!(summary.report.connections >= 4, "{}", summary.report);
    assert_eq!(summary.report.counts.resent.frames, 0, "no overlap");
    let refused: Vec<_> = state
        .errors
        .iter()
        .filter(|error| error.operation == "PutMedia")
        .collect();
    assert!(refused.is_empty(), "never two at once: {refused:?}");
    assert!(
        state
            .connections
            .iter()
            .all(|one| one.closed == Some(Closed::Completed)),
        "read to the last"
    );
    assert!(state.persisted(STREAM).all(|fragment| !fragment.duplicate));
}
