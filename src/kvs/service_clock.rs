//! The service's clock: ours, corrected by what the service's answers say.
//!
//! A signature whose date is more than 15 minutes off is refused, and media is named by wall-clock time; a board without a
//! battery-backed clock boots in 1970. Every answer of the service has a `Date`. What it tells is kept as a distance to the
//! time since boot, which nobody sets: a wall clock that is put right, or wrong, between two answers changes nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use http::HeaderMap;
use http::header::DATE;
use tracing::warn;

use crate::clock::Clock;

/// A difference that the whole seconds of `Date` and a slow answer do not explain, in ms. Below it our own clock is better.
const NEWS_MS: u64 = 5_000;

/// See the module. Cheap to clone; all clones learn together.
#[derive(Debug, Clone)]
pub struct ServiceClock {
    clock: Clock,
    known: Arc<Mutex<Option<Known>>>,
}

/// What the last answers told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    /// The service's time less the time since boot, in ms.
    since_boot_ms: i64,
    /// How far the wall clock was behind when that was last news, in ms; negative when it was ahead.
    behind_ms: i64,
}

impl ServiceClock {
    /// A service clock that has heard nothing yet: ours.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            known: Arc::default(),
        }
    }

    /// Since the Unix epoch.
    pub fn now(&self) -> Duration {
        match *self.known.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(known) => shifted(self.clock.boottime(), known.since_boot_ms),
            None => self.clock.wall(),
        }
    }

    /// Whether the service has told its time.
    pub fn has_heard(&self) -> bool {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// How far this machine's clock was behind the service's when that was last news, in ms; negative when it was ahead.
    /// `None` while the service has not told its time.
    pub fn behind_ms(&self) -> Option<i64> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.map(|known| known.behind_ms)
    }

    /// Learns from an answer's headers. Only those of the service count, which have a request id: a metadata service on
    /// this machine has no better clock than we have.
    pub fn hear(&self, headers: &HeaderMap) {
        let of_service = ["x-amzn-requestid", "x-amz-requestid"]
            .iter()
            .any(|name| headers.contains_key(*name));
        let Some(theirs) = date(headers).filter(|_| of_service) else {
            return;
        };
        let (wall, boot) = (self.clock.wall(), self.clock.boottime());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *known;
        let after = learn(before, theirs, wall, boot);
        *known = Some(after);
        drop(known);
        tell(before, after);
    }
}

/// What is known after an answer. Pure.
fn learn(before: Option<Known>, theirs: Duration, wall: Duration, boot: Duration) -> Known {
    let behind_ms = difference_ms(theirs, wall);
    let by_service = difference_ms(theirs, boot);
    if behind_ms.unsigned_abs() <= NEWS_MS {
        // The wall clock is right, and more exact than whole seconds.
        return Known {
            since_boot_ms: difference_ms(wall, boot),
            behind_ms: 0,
        };
    }
    match before {
        Some(known) if known.since_boot_ms.abs_diff(by_service) <= NEWS_MS => {
            Known { behind_ms, ..known }
        }
        _ => Known {
            since_boot_ms: by_service,
            behind_ms,
        },
    }
}

fn tell(before: Option<Known>, after: Known) {
    let (was, is) = (before.map_or(0, |known| known.behind_ms), after.behind_ms);
    if was.abs_diff(is) <= NEWS_MS {
        return;
    }
    let by_s = is.unsigned_abs() / 1000;
    match is {
        0 => warn!("this machine's clock agrees with the service's again"),
        ..0 => warn!(
            by_s,
            "this machine's clock is ahead of the service's: going on with the service's time"
        ),
        1.. => warn!(
            by_s,
            "this machine's clock is behind the service's: going on with the service's time"
        ),
    }
}

fn shifted(time: Duration, by_ms: i64) -> Duration {
    let by = Duration::from_millis(by_ms.unsigned_abs());
    if by_ms < 0 {
        time.saturating_sub(by)
    } else {
        time + by
    }
}

fn difference_ms(one: Duration, other: Duration) -> i64 {
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    ms(one) - ms(other)
}

fn date(headers: &HeaderMap) -> Option<Duration> {
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    date.duration_since(UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer of a server whose clock is so far ahead of ours.
    fn answer(ahead: i64, request_id: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let date = httpdate::fmt_http_date(UNIX_EPOCH + shifted(Clock.wall(), ahead * 1000));
        headers.insert(DATE, date.parse().expect("ASCII"));
        if request_id {
            headers.insert("x-amzn-requestid", "1".parse().expect("ASCII"));
        }
        headers
    }

    fn off_s(clock: &ServiceClock) -> i64 {
        let off_ms = difference_ms(clock.now(), Clock.wall());
        (off_ms + off_ms.signum() * 500) / 1000
    }

    #[test]
    fn it_follows_the_service_and_comes_back_when_our_clock_is_set() {
        let clock = ServiceClock::new(Clock);
        for ahead in [3600, -7200, 1_800_000_000, 0] {
            clock.hear(&answer(ahead, true));
            assert!((off_s(&clock) - ahead).abs() <= 1, "{ahead}");
        }
    }

    #[test]
    fn a_wall_clock_that_steps_between_two_answers_changes_nothing() {
        let at = Duration::from_secs;
        // Three days behind at boot, then NTP sets it.
        let known = learn(None, at(1_000_000), at(740_800), at(100));
        assert_eq!(known.since_boot_ms, 999_900_000);
        let known = learn(Some(known), at(1_000_060), at(1_000_060), at(160));
        assert_eq!((known.since_boot_ms, known.behind_ms), (999_900_000, 0));
        // Somebody sets it a day ahead: the next answer tells, and the time goes on as it was.
        let known = learn(Some(known), at(1_000_120), at(1_086_520), at(220));
        assert_eq!(
            (known.since_boot_ms, known.behind_ms),
            (999_900_000, -86_400_000)
        );
    }

    #[test]
    fn small_differences_and_other_servers_do_not_count() {
        let clock = ServiceClock::new(Clock);
        clock.hear(&answer(4, true));
        clock.hear(&answer(3600, false));
        assert_eq!(off_s(&clock), 0);
    }
}
