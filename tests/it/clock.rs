//! This machine's clock is wrong: signatures and media go by the service's.

use std::time::Duration;

use kvs_producer_app::app::Exit;
use kvs_producer_app::clock::Clock;
use kvs_producer_app::local::Options;
use kvs_producer_app::local::scenario::{Action, Scenario, Trigger};

use crate::rig::{FastCamera, STREAM, assert_whole, config, endpoint, stream};

#[tokio::test]
async fn hours_off_in_either_direction_the_stream_has_the_services_time() {
    for skew_s in [-6 * 3600_i64, 6 * 3600] {
        let scenario = Scenario::of([(Trigger::Start, Action::ClockSkew(skew_s))]);
        let endpoint = endpoint(Options {
            scenario,
            ..Options::default()
        })
        .await;
        let camera = FastCamera::new(100, Duration::from_millis(1));
        let summary = stream(config(&endpoint.url()), camera)
            .await
            .expect("a run");
        assert_eq!(
            summary.exit,
            Exit::Persisted,
            "{skew_s}: {}",
            summary.report
        );
        let view = endpoint.view();
        let state = view.state();
        assert_whole(&state, 100);
        let first = state.persisted(STREAM).next().expect("whole").timecode;
        let service_ms = i64::try_from(Clock.wall().as_millis()).expect("this age") + skew_s * 1000;
        let off_ms = i64::try_from(first).expect("this age") - service_ms;
        assert!(
            off_ms.abs() < 60_000,
            "{skew_s}: {off_ms} ms off the service's clock"
        );
        assert!(
            state.errors.len() <= 2,
            "learnt from the first refusal: {:?}",
            state.errors
        );
    }
}
