//! The one place that reads the time.
//!
//! Two clocks: the monotonic one, which cameras stamp their buffers with and which never steps, and the wall clock, which
//! names fragments and signatures and may be wrong.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::frame::MediaTime;

/// The process's clocks. A value and not a global, so that whoever needs the time has to be given it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock;

impl Clock {
    /// For waiting and for deadlines.
    pub fn now(self) -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place that reads the time"
        )]
        Instant::now()
    }

    /// CLOCK_MONOTONIC, the clock that V4L2 drivers stamp their buffers with.
    pub fn monotonic(self) -> Duration {
        let now = clock_gettime(ClockId::Monotonic);
        // The kernel guarantees both fields non-negative for this clock.
        Duration::new(
            now.tv_sec.unsigned_abs(),
            u32::try_from(now.tv_nsec).unwrap_or(0),
        )
    }

    /// CLOCK_BOOTTIME: as [`Self::monotonic`], and it goes on while the machine sleeps.
    pub fn boottime(self) -> Duration {
        let now = clock_gettime(ClockId::Boottime);
        Duration::new(
            now.tv_sec.unsigned_abs(),
            u32::try_from(now.tv_nsec).unwrap_or(0),
        )
    }

    /// [`Self::monotonic`] as media time.
    pub fn media(self) -> MediaTime {
        MediaTime::from_monotonic(self.monotonic())
    }

    /// The wall clock: time since the Unix epoch; zero for a clock that stands before it.
    pub fn wall(self) -> Duration {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place that reads the time"
        )]
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }

    /// A number in `0.0..1.0` for spreading waits.
    pub fn jitter(self) -> f64 {
        fastrand::f64()
    }
}
