//! Keeps a log short where the same is said again and again: a camera that is offline for a weekend has other uses for its
//! disk. Pure.

use std::time::{Duration, Instant};

/// What was not said for so long is news again.
const FORGET: Duration = Duration::from_mins(30);

/// After the first time it is said again when so long has passed, then after twice that, and so on.
const FIRST_AGAIN: Duration = Duration::from_mins(1);

/// It is said at least so often.
const LONGEST: Duration = Duration::from_mins(30);

/// Kinds that are remembered; when there are more, the one that was said longest ago is forgotten.
const MOST: usize = 16;

/// What was said of which kind, and when.
#[derive(Debug)]
pub struct Repeats<K> {
    said: Vec<Said<K>>,
}

#[derive(Debug)]
struct Said<K> {
    kind: K,
    at: Instant,
    last: Instant,
    wait: Duration,
    unsaid: u64,
}

impl<K> Default for Repeats<K> {
    fn default() -> Self {
        Self { said: Vec::new() }
    }
}

impl<K: PartialEq> Repeats<K> {
    /// Whether something of this kind is to be said, and how often it happened unsaid since it last was.
    pub fn say(&mut self, kind: K, now: Instant) -> Option<u64> {
        self.said
            .retain(|said| now.saturating_duration_since(said.last) < FORGET);
        let Some(said) = self.said.iter_mut().find(|said| said.kind == kind) else {
            if self.said.len() == MOST {
                self.said.remove(0);
            }
            self.said.push(Said {
                kind,
                at: now,
                last: now,
                wait: FIRST_AGAIN,
                unsaid: 0,
            });
            return Some(0);
        };
        said.last = now;
        if now.saturating_duration_since(said.at) < said.wait {
            said.unsaid += 1;
            return None;
        }
        said.at = now;
        said.wait = (said.wait * 2).min(LONGEST);
        Some(std::mem::take(&mut said.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_is_said_and_what_follows_is_counted() {
        let start = Clock.now();
        let mut repeats = Repeats::default();
        assert_eq!(repeats.say("a", start), Some(0));
        assert_eq!(repeats.say("b", after(start, 1)), Some(0));
        for second in 1..60 {
            assert_eq!(repeats.say("a", after(start, second)), None);
        }
        assert_eq!(repeats.say("a", after(start, 60)), Some(59));
        assert_eq!(repeats.say("a", after(start, 120)), None);
        assert_eq!(repeats.say("a", after(start, 180)), Some(1));
    }

    #[test]
    fn what_was_quiet_for_long_is_news() {
        let start = Clock.now();
        let mut repeats = Repeats::default();
        repeats.say("a", start);
        assert_eq!(repeats.say("a", after(start, 30)), None);
        assert_eq!(repeats.say("a", after(start, 30 + 1800)), Some(0));
    }

    #[test]
    fn an_hour_of_outage_is_a_few_lines_of_each_kind() {
        let start = Clock.now();
        let mut repeats = Repeats::default();
        let mut lines = 0;
        // A flapping link: every second something else of five kinds.
        for second in 0..3600 {
            lines += u32::from(repeats.say(second % 5, after(start, second)).is_some());
        }
        assert!((25..=35).contains(&lines), "{lines}");
        // And not silence for ever.
        let more = (3600..36_000).filter(|second| repeats.say(0, after(start, *second)).is_some());
        assert!(more.count() >= 17);
    }

    #[test]
    fn memory_is_bounded() {
        let start = Clock.now();
        let mut repeats = Repeats::default();
        for kind in 0..1000 {
            assert_eq!(repeats.say(kind, start), Some(0));
        }
        assert_eq!(repeats.said.len(), MOST);
        assert_eq!(repeats.say(999, start), None, "the newest are known");
    }
}
