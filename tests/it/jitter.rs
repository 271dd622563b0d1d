//! The network cannot stall the camera: how long the capture loop keeps a frame does not depend on where it goes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvs_producer_app::clock::Clock;
use kvs_producer_app::local::Options;
use kvs_producer_app::local::scenario::{Action, Break, Nth, Scenario, Trigger};
use kvs_producer_app::source::{self, Read, Source};

use crate::rig::{FastCamera, config, endpoint, stream};

const FRAMES: usize = 1000;
const EVERY: Duration = Duration::from_millis(3);

/// Notes how long each of its frames was kept.
struct Watched {
    camera: FastCamera,
    lent: Option<Instant>,
    kept: Arc<Mutex<Vec<Duration>>>,
}

impl Source for Watched {
    fn describe(&self) -> String {
        "a camera with a stop watch".into()
    }

    fn read(&mut self) -> Result<Read<'_>, source::Error> {
        if let Some(lent) = self.lent.take() {
            let kept = Clock.now() - lent;
            self.kept.lock().expect("nobody panics").push(kept);
        }
        let read = self.camera.read();
        self.lent = Some(Clock.now());
        read
    }
}

/// How long frames are kept, sorted, and how many are persisted in the end.
async fn run(scenario: Scenario) -> (Vec<Duration>, u64) {
    let endpoint = endpoint(Options {
        scenario,
        ..Options::default()
    })
    .await;
    let mut config = config(&endpoint.url());
    // Full after a while, and so making room as well.
    config.buffer_bytes = 512 * 1024;
    config.grace = Duration::from_millis(200);
    let kept = Arc::default();
    let camera = Watched {
        camera: FastCamera::new(FRAMES, EVERY),
        lent: None,
        kept: Arc::clone(&kept),
    };
    let summary = stream(config, camera).await.expect("a run");
    let mut kept = std::mem::take(&mut *kept.lock().expect("nobody panics"));
    kept.sort();
    (kept, summary.report.counts.persisted.frames)
}

#[tokio::test]
async fn frames_are_kept_no_longer_while_the_network_is_a_black_hole() {
    let (well, all) = run(Scenario::default()).await;
    let soon = Trigger::Bytes {
        connection: Nth::Each,
        after: 2000,
    };
    let hole = (soon, Action::Break(Break::BlackHole));
    let (blind, none) = run(Scenario::of([hole])).await;
    assert!(all > 300 && none == 0, "{all} and {none} persisted");
    assert!(well.len() >= FRAMES && blind.len() >= FRAMES);
    let percentile = |kept: &[Duration], of: usize| kept[kept.len() * of / 100];
    println!(
        "kept for: median {:?} and {:?} in the black hole, 95th percentile {:?} and {:?}, longest {:?} and {:?}",
        percentile(&well, 50),
        percentile(&blind, 50),
        percentile(&well, 95),
        percentile(&blind, 95),
        well[well.len() - 1],
        blind[blind.len() - 1],
    );
    // A busy machine takes the processor away in either run: what is compared has to allow for that.
    for of in [50, 95] {
        let most = 3 * percentile(&well, of) + Duration::from_millis(1);
        let took = percentile(&blind, of);
        assert!(
            took <= most,
            "{of}th percentile: {took:?}, more than {most:?}"
        );
    }
}
