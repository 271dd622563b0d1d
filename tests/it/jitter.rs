//! The network cannot stall the camera: how regularly the capture loop takes its frames does not depend on where they go.
//!
//! The benchmark of the README: `cargo test --test it jitter -- --nocapture` tells its figures.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvs_producer_app::clock::Clock;
use kvs_producer_app::local::Options;
use kvs_producer_app::local::scenario::{Action, Break, Nth, Scenario, Trigger};
use kvs_producer_app::source::{self, Packet, Read, Source, Wait};

use crate::rig::{FastCamera, config, endpoint, stream};

/// In each run: many more than the ring holds, so that it makes room as well.
const FRAMES: u32 = 500;
const EVERY: Duration = Duration::from_millis(4);

/// What is measured.
#[derive(Default)]
struct Figures {
    /// The frames' times: when each was taken from the camera.
    taken: Vec<Duration>,
    /// How long each was kept until the next was asked for.
    kept: Vec<Duration>,
}

/// Has a frame every [`EVERY`], like a driver with one buffer: what is asked for late is late.
struct Metronome {
    camera: FastCamera,
    first: Option<Instant>,
    lent: Option<Instant>,
    figures: Arc<Mutex<Figures>>,
}

impl Source for Metronome {
    fn describe(&self) -> String {
        "a camera that keeps time".into()
    }

    fn read(&mut self, wait: Wait<'_>) -> Result<Read<'_>, source::Error> {
        let now = Clock.now();
        let mut figures = self.figures.lock().expect("nobody panics");
        figures.kept.extend(self.lent.take().map(|lent| now - lent));
        let count = u32::try_from(figures.taken.len()).expect("few");
        let due = *self.first.get_or_insert(now) + EVERY * count;
        std::thread::sleep(due.saturating_duration_since(now));
        let read = self.camera.read(wait)?;
        let Read::Packet(packet) = read else {
            return Ok(read);
        };
        let at = Clock.monotonic();
        figures.taken.push(at);
        self.lent = Some(Clock.now());
        Ok(Read::Packet(Packet { at, ..packet }))
    }
}

/// How far each interval between two frames was off, and how long frames were kept, both sorted.
#[derive(Default)]
struct Run {
    jitter: Vec<Duration>,
    kept: Vec<Duration>,
    persisted: u64,
}

impl Run {
    async fn add(&mut self, scenario: Scenario) {
        let endpoint = endpoint(Options {
            scenario,
            ..Options::default()
        })
        .await;
        let mut config = config(&endpoint.url());
        config.buffer_bytes = 512 * 1024;
        config.grace = Duration::from_millis(200);
        let figures = Arc::default();
        let camera = Metronome {
            camera: FastCamera::new(FRAMES as usize, Duration::ZERO),
            first: None,
            lent: None,
            figures: Arc::clone(&figures),
        };
        let summary = stream(config, camera).await.expect("a run");
        self.persisted += summary.report.counts.persisted.frames;
        let figures = std::mem::take(&mut *figures.lock().expect("nobody panics"));
        let pairs = figures.taken.windows(2);
        self.jitter
            .extend(pairs.map(|pair| pair[1].saturating_sub(pair[0]).abs_diff(EVERY)));
        self.kept.extend(figures.kept);
        self.jitter.sort();
        self.kept.sort();
    }
}

#[tokio::test]
async fn frames_are_taken_as_regularly_while_the_network_is_a_black_hole() {
    let soon = Trigger::Bytes {
        connection: Nth::Each,
        after: 2000,
    };
    let hole = (soon, Action::Break(Break::BlackHole));
    let (mut well, mut blind) = (Run::default(), Run::default());
    // In turns, so that what else the machine does is shared by both.
    for _ in 0..2 {
        well.add(Scenario::default()).await;
        blind.add(Scenario::of([hole.clone()])).await;
    }
    assert!(
        well.persisted > 100 && blind.persisted == 0,
        "{} and {} persisted",
        well.persisted,
        blind.persisted
    );
    for (what, well, blind) in [
        (
            "the interval between two frames is off by",
            well.jitter,
            blind.jitter,
        ),
        ("a frame is kept for", well.kept, blind.kept),
    ] {
        assert!(well.len() >= 2 * FRAMES as usize - 2 && blind.len() == well.len());
        let percentile = |of: usize| {
            (
                well[(well.len() - 1) * of / 100],
                blind[(blind.len() - 1) * of / 100],
            )
        };
        for of in [50, 95, 99, 100] {
            let (well, blind) = percentile(of);
            println!("{what}: {of:3} % at most {well:9.1?}, in the black hole {blind:9.1?}");
        }
        // A busy machine takes the processor away in either run: what is compared has to allow for that.
        for of in [50, 95] {
            let (well, blind) = percentile(of);
            let most = 3 * well + Duration::from_millis(1);
            assert!(
                blind <= most,
                "{what}: {of} %: {blind:?}, more than {most:?}"
            );
        }
    }
}
