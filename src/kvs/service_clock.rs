//! The service's clock: ours, corrected by what the service's answers say.
//!
//! A signature whose date is more than 15 minutes off is refused, and media is named by wall-clock time; a board without a
//! battery-backed clock boots in 1970. Every answer of the service has a `Date`.

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
    /// How far our clock is behind, in ms; negative when it is ahead.
    behind_ms: Arc<Mutex<i64>>,
}

impl ServiceClock {
    /// A service clock that has heard nothing yet: ours.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            behind_ms: Arc::default(),
        }
    }

    /// Since the Unix epoch.
    pub fn now(&self) -> Duration {
        let behind = *self
            .behind_ms
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        shifted(self.clock.wall(), behind)
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
        let behind = difference_ms(theirs, self.clock.wall());
        let mut known = self
            .behind_ms
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.abs_diff(behind) > NEWS_MS {
            *known = behind;
            drop(known);
            tell(behind);
        }
    }
}

fn tell(behind_ms: i64) {
    let by_s = behind_ms.unsigned_abs() / 1000;
    match behind_ms {
        ..=-5000 => warn!(
            by_s,
            "this machine's clock is ahead of the service's: going on with the service's time"
        ),
        5000.. => warn!(
            by_s,
            "this machine's clock is behind the service's: going on with the service's time"
        ),
        _ => warn!("this machine's clock agrees with the service's again"),
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

fn difference_ms(theirs: Duration, ours: Duration) -> i64 {
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    ms(theirs) - ms(ours)
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
    fn small_differences_and_other_servers_do_not_count() {
        let clock = ServiceClock::new(Clock);
        clock.hear(&answer(4, true));
        clock.hear(&answer(3600, false));
        assert_eq!(off_s(&clock), 0);
    }
}
