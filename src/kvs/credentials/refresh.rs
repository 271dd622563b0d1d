//! When credentials are fetched again: well before they end, and again and again while whoever has them is down.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// The durations.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// New ones are fetched at least this long before the end, or after half of their life where that is shorter.
    pub lead: Duration,
    /// Credentials that end soon however often they are fetched are kept for this long.
    pub least_use: Duration,
    /// The range of the wait after the second failure in a row, doubling from there; the least after the first.
    pub first_wait: Duration,
    /// The longest wait between tries.
    pub longest_wait: Duration,
    /// How often it is looked whether anything is due: a machine that has slept, or whose clock was put right, has other
    /// plans than it had.
    pub look_every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // The session wants 3 minutes of life for a new connection.
            lead: Duration::from_mins(5),
            least_use: Duration::from_secs(10),
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_mins(1),
            look_every: Duration::from_mins(1),
        }
    }
}

/// A fifth of their life before credentials end they are fetched again, where that is more than [`Settings::lead`].
const LEAD_PART: u32 = 5;

/// Up to another tenth of their life earlier, by chance: cameras that were switched on together do not ask together.
const SPREAD_PART: u32 = 10;

/// What surrounds a decision.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The time, for waiting.
    pub at: Instant,
    /// Since the Unix epoch, by the service's clock; `None` while nobody has told it, and our own may be years off.
    pub wall: Option<Duration>,
    /// By chance, in `0.0..1.0`.
    pub jitter: f64,
}

/// Credentials at hand.
#[derive(Debug)]
struct Granted {
    at: Instant,
    /// Since the Unix epoch; `None` where they do not end, as far as anybody says.
    until: Option<Duration>,
    spread: f64,
}

impl Granted {
    fn left(&self, now: Now) -> Option<Duration> {
        Some(self.until?.saturating_sub(now.wall?))
    }
}

/// See the module. Pure.
#[derive(Debug)]
pub struct Refresh {
    settings: Settings,
    granted: Option<Granted>,
    backoff: Backoff,
    retry_at: Option<Instant>,
}

impl Refresh {
    /// Nothing is at hand yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            granted: None,
            backoff: Backoff::new(settings.first_wait, settings.longest_wait),
            retry_at: None,
        }
    }

    /// Credentials have come that are good until then. Returns how many tries had failed before.
    pub fn granted(&mut self, until: Option<Duration>, now: Now) -> u32 {
        let failures = self.backoff.failures();
        self.backoff.reset();
        self.retry_at = None;
        self.granted = Some(Granted {
            at: now.at,
            until,
            spread: now.jitter.clamp(0.0, 1.0),
        });
        failures
    }

    /// A try has failed. Returns how many have in a row.
    pub fn failed(&mut self, now: Now) -> u32 {
        let wait = self.backoff.next_wait(now.jitter);
        self.retry_at = Some(now.at + wait.max(self.settings.first_wait));
        self.backoff.failures()
    }

    /// How long until the next try: none when it is due. `None` where nothing is at hand, because whoever needs credentials
    /// asks for the first, and where it is not known that they end.
    pub fn wait(&self, now: Now) -> Option<Duration> {
        let granted = self.granted.as_ref()?;
        if let Some(at) = self.retry_at {
            return Some(at.saturating_duration_since(now.at));
        }
        let left = granted.left(now)?;
        let age = now.at.saturating_duration_since(granted.at);
        let life = left + age;
        let spread = (life / SPREAD_PART).mul_f64(granted.spread);
        let lead = self.settings.lead.max(life / LEAD_PART) + spread;
        let due = left.saturating_sub(lead.min(life / 2));
        Some(due.max(self.settings.least_use.saturating_sub(age)))
    }

    /// How long those at hand are good for; `None` where that is not known.
    pub fn left(&self, now: Now) -> Option<Duration> {
        self.granted.as_ref()?.left(now)
    }

    /// Whether there are any at hand that have not ended, as far as that is known.
    pub fn has_good(&self, now: Now) -> bool {
        self.granted.is_some() && self.left(now).is_none_or(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const MINUTE: Duration = Duration::from_mins(1);

    /// A world in which time passes only when the test says so.
    struct World {
        start: Instant,
        passed: Duration,
        refresh: Refresh,
    }

    /// 2025-01-02T03:04:05Z
    const EPOCH: Duration = Duration::from_secs(1_735_787_045);

    impl World {
        fn new() -> Self {
            Self {
                start: Clock.now(),
                passed: Duration::ZERO,
                refresh: Refresh::new(Settings::default()),
            }
        }

        fn now(&self, jitter: f64) -> Now {
            Now {
                at: self.start + self.passed,
                wall: Some(EPOCH + self.passed),
                jitter,
            }
        }

        fn grant(&mut self, life: Duration, jitter: f64) -> u32 {
            let now = self.now(jitter);
            self.refresh.granted(Some(EPOCH + self.passed + life), now)
        }

        fn wait(&self) -> Duration {
            self.refresh.wait(self.now(0.0)).expect("they end")
        }
    }

    #[test]
    fn they_are_fetched_five_minutes_or_a_fifth_of_their_life_before_the_end() {
        let mut world = World::new();
        for (life, wait) in [(15, 10), (60, 48), (720, 576), (6, 3)] {
            world.grant(life * MINUTE, 0.0);
            assert_eq!(world.wait(), wait * MINUTE, "{life} min");
        }
    }

    #[test]
    fn cameras_that_start_together_do_not_ask_together() {
        let mut world = World::new();
        let mut waits = Vec::new();
        for jitter in [0.0, 0.5, 1.0] {
            world.grant(60 * MINUTE, jitter);
            waits.push(world.wait());
        }
        assert_eq!(waits, [48 * MINUTE, 45 * MINUTE, 42 * MINUTE]);
    }

    #[test]
    fn the_same_ones_again_are_asked_for_more_and_more_often_but_never_without_a_pause() {
        let mut world = World::new();
        let end = 60 * MINUTE;
        world.grant(end, 0.0);
        let mut tries = 0;
        while world.passed < end {
            let wait = world.wait();
            assert!(wait >= Duration::from_secs(10), "{wait:?}");
            world.passed += wait;
            world.grant(end.saturating_sub(world.passed), 0.0);
            tries += 1;
        }
        assert!((5..20).contains(&tries), "{tries} tries");
    }

    #[test]
    fn an_hour_without_the_provider_costs_nothing_as_long_as_the_old_ones_last() {
        let mut world = World::new();
        let life = 6 * 60 * MINUTE;
        world.grant(life, 0.5);
        world.passed += world.wait();
        let down_at = world.passed;
        let mut tries = 0;
        while world.passed < down_at + 60 * MINUTE {
            assert!(world.refresh.has_good(world.now(0.5)));
            tries += 1;
            assert_eq!(world.refresh.failed(world.now(0.5)), tries);
            let wait = world.wait();
            assert!((Duration::from_secs(1)..=MINUTE).contains(&wait));
            world.passed += wait;
        }
        assert!((60..150).contains(&tries), "{tries} tries");
        // It is back: the next try, at most a minute later, brings new ones, and all is as before.
        assert_eq!(world.grant(life, 0.0), tries);
        assert_eq!(world.wait(), life * 4 / 5);
    }

    #[test]
    fn they_are_good_until_they_end_and_asked_for_after_that_too() {
        let mut world = World::new();
        world.grant(15 * MINUTE, 0.0);
        world.passed = Duration::from_secs(15 * 60 - 1);
        world.refresh.failed(world.now(0.0));
        assert!(world.refresh.has_good(world.now(0.0)));
        world.passed = 15 * MINUTE;
        assert!(!world.refresh.has_good(world.now(0.0)));
        assert_eq!(world.wait(), Duration::ZERO);
    }

    #[test]
    fn what_has_no_end_and_what_nobody_has_asked_for_is_left_alone() {
        let mut world = World::new();
        assert_eq!(world.refresh.wait(world.now(0.0)), None);
        assert!(!world.refresh.has_good(world.now(0.0)));
        let now = world.now(0.0);
        world.refresh.granted(None, now);
        assert_eq!(world.refresh.wait(world.now(0.0)), None);
        assert!(world.refresh.has_good(world.now(0.0)));
    }

    #[test]
    fn a_clock_that_may_be_years_off_decides_nothing() {
        let mut world = World::new();
        let unknown = Now {
            wall: None,
            ..world.now(0.0)
        };
        world.refresh.granted(Some(EPOCH + 60 * MINUTE), unknown);
        assert_eq!(world.refresh.wait(unknown), None);
        assert!(world.refresh.has_good(unknown));
        // The service has told the time, 12 minutes later.
        world.passed = 12 * MINUTE;
        assert_eq!(world.wait(), 36 * MINUTE);
    }
}
