//! The one definition of healthy, and the state in a word. Pure.
//!
//! Healthy is a producer of which a fragment was PERSISTED within the last three fragments' time, at least 15 s. Nothing
//! else counts: a connection that is open and a camera that delivers are means.

use std::fmt;
use std::time::{Duration, Instant};

use crate::kvs::failure::{Failure, FailureKind};

/// Within how many fragments' time one has to be PERSISTED.
const FRAGMENTS: u32 = 3;

/// And within how long at least.
const LEAST: Duration = Duration::from_secs(15);

/// A camera that has brought nothing for so long is waited for.
const CAMERA_PATIENCE: Duration = Duration::from_secs(5);

/// A frame that waits longer than this to be handed to the network is behind. What a saturated uplink holds in the kernel
/// stays below it.
const BEHIND: Duration = Duration::from_secs(2);

/// A wall clock before 2025 was never set: a board without a battery boots in 1970, or at its firmware's date.
const SANE_WALL: Duration = Duration::from_hours(482_136);

/// What the producer is doing, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// No frame comes from the source.
    WaitingForCamera,
    /// On the way to a connection that the service accepts.
    Connecting,
    /// Media flows as it is captured.
    Streaming,
    /// Media flows, and older media than that of the moment.
    CatchingUp,
    /// Somebody has stopped uploading.
    Paused,
    /// The service, or a key's policy, does not permit it.
    NoPermission,
    /// The service finds this machine's clock wrong.
    ClockWrong,
    /// The source is at its end, and what is held is sent.
    Draining,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::WaitingForCamera,
        Self::Connecting,
        Self::Streaming,
        Self::CatchingUp,
        Self::Paused,
        Self::NoPermission,
        Self::ClockWrong,
        Self::Draining,
    ];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::WaitingForCamera => "waiting-for-camera",
            Self::Connecting => "connecting",
            Self::Streaming => "streaming",
            Self::CatchingUp => "catching-up",
            Self::Paused => "paused",
            Self::NoPermission => "no-permission",
            Self::ClockWrong => "clock-wrong",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known of a running producer.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The time.
    pub now: Instant,
    /// The same moment on the wall clock, since the Unix epoch.
    pub wall: Duration,
    /// When it was started, or uploading was resumed: until then nothing could be PERSISTED.
    pub since: Instant,
    /// Somebody has stopped uploading.
    pub paused: bool,
    /// The source is at its end.
    pub draining: bool,
    /// When the source last brought a frame.
    pub last_frame: Option<Instant>,
    /// Why it brings none.
    pub camera_trouble: Option<&'a str>,
    /// Whether the service has accepted the connection that carries media.
    pub streaming: bool,
    /// What failed last, unless a fragment was PERSISTED since.
    pub failure: Option<&'a Failure>,
    /// When a fragment was last PERSISTED (RECEIVED, where nothing is retained).
    pub last_persisted: Option<Instant>,
    /// How long a fragment of this stream is; zero while that is not known.
    pub fragment: Duration,
    /// Age of the oldest frame that was not handed to the network.
    pub behind: Duration,
}

/// How a producer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether media arrives where it should.
    pub healthy: bool,
    /// What it is doing.
    pub state: State,
    /// Why, in words for whoever has to do something about it; empty where the state says it all.
    pub reason: String,
    /// How long ago a fragment was PERSISTED.
    pub persisted_ago: Option<Duration>,
    /// How long ago that may be.
    pub limit: Duration,
}

impl Health {
    /// How the producer is that these facts are about.
    pub fn of(facts: &Facts<'_>) -> Self {
        let since = |at: Instant| facts.now.saturating_duration_since(at);
        let limit = LEAST.max(facts.fragment.saturating_mul(FRAGMENTS));
        let persisted_ago = facts.last_persisted.map(since);
        let healthy = persisted_ago.is_some_and(|ago| ago <= limit);
        let state = state(facts);
        let mut reason = reason(facts, state);
        if !healthy && reason.is_empty() && since(facts.since) > limit {
            reason = match persisted_ago {
                Some(ago) => format!("nothing was persisted for {} s", ago.as_secs()),
                None => "nothing was persisted so far".into(),
            };
        }
        Self {
            healthy,
            state,
            reason,
            persisted_ago,
            limit,
        }
    }

    /// Whether a service manager should take the process for alive.
    ///
    /// A restart empties the ring and cures no camera, no network, no policy: only a producer that is not healthy and
    /// cannot say why is one that a restart may help.
    pub fn is_alive(&self, facts: &Facts<'_>) -> bool {
        let young = facts.now.saturating_duration_since(facts.since) <= self.limit;
        let explained = facts.failure.is_some()
            || matches!(
                self.state,
                State::Paused | State::Draining | State::WaitingForCamera
            );
        self.healthy || young || explained
    }
}

impl fmt::Display for Health {
    /// `streaming`, `connecting: cannot resolve ..`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.state)?;
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        Ok(())
    }
}

fn camera_is_silent(facts: &Facts<'_>) -> bool {
    let last = facts.last_frame.unwrap_or(facts.since);
    facts.last_frame.is_none()
        || facts.camera_trouble.is_some()
        || facts.now.saturating_duration_since(last) >= CAMERA_PATIENCE
}

/// What somebody has asked for comes first, then what only somebody can cure, then what stands still.
fn state(facts: &Facts<'_>) -> State {
    if facts.draining {
        return State::Draining;
    }
    if facts.paused {
        return State::Paused;
    }
    let cured = facts.failure.and_then(|failure| match failure.kind {
        FailureKind::Clock => Some(State::ClockWrong),
        // No certificate is valid in 1970.
        FailureKind::Untrusted if facts.wall < SANE_WALL => Some(State::ClockWrong),
        FailureKind::NoCredentials
        | FailureKind::BadCredentials
        | FailureKind::NotPermitted
        | FailureKind::Key => Some(State::NoPermission),
        _ => None,
    });
    if let Some(state) = cured {
        return state;
    }
    if camera_is_silent(facts) {
        return State::WaitingForCamera;
    }
    if !facts.streaming {
        return State::Connecting;
    }
    // After a failure what was not confirmed goes out again.
    if facts.behind > BEHIND || facts.failure.is_some() {
        return State::CatchingUp;
    }
    State::Streaming
}

fn reason(facts: &Facts<'_>, state: State) -> String {
    match (state, facts.failure) {
        (State::WaitingForCamera, _) => match (facts.camera_trouble, facts.last_frame) {
            (Some(trouble), _) => trouble.to_owned(),
            (None, Some(at)) => format!(
                "no frame for {} s",
                facts.now.saturating_duration_since(at).as_secs()
            ),
            (None, None) => "no frame so far".into(),
        },
        (State::Paused, None) => "the buffer keeps the last seconds".into(),
        (_, Some(failure)) => failure.message.clone(),
        (State::CatchingUp, None) => format!("{:.1} s behind", facts.behind.as_secs_f32()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    /// A producer that streams, an hour after its start.
    fn streaming(now: Instant) -> Facts<'static> {
        Facts {
            now,
            wall: SANE_WALL,
            since: before(now, Duration::from_hours(1)),
            paused: false,
            draining: false,
            last_frame: Some(now),
            camera_trouble: None,
            streaming: true,
            failure: None,
            last_persisted: Some(before(now, Duration::from_secs(2))),
            fragment: Duration::from_secs(2),
            behind: Duration::from_millis(100),
        }
    }

    fn now() -> Instant {
        Clock.now() + Duration::from_hours(2)
    }

    fn before(now: Instant, time: Duration) -> Instant {
        now.checked_sub(time).expect("`now` is hours ahead")
    }

    #[test]
    fn persisted_within_15_s_is_healthy_whatever_else() {
        let now = now();
        for (ago, healthy) in [(0, true), (15, true), (16, false)] {
            let last_persisted = Some(before(now, Duration::from_secs(ago)));
            let facts = Facts {
                last_persisted,
                ..streaming(now)
            };
            assert_eq!(Health::of(&facts).healthy, healthy, "{ago} s");
        }
        let facts = Facts {
            last_persisted: None,
            ..streaming(now)
        };
        assert!(!Health::of(&facts).healthy);
        assert_eq!(Health::of(&facts).reason, "nothing was persisted so far");
    }

    #[test]
    fn long_fragments_have_the_time_of_three() {
        let now = now();
        let facts = Facts {
            fragment: Duration::from_secs(10),
            last_persisted: Some(before(now, Duration::from_secs(30))),
            ..streaming(now)
        };
        assert!(Health::of(&facts).healthy);
        let facts = Facts {
            fragment: Duration::from_secs(9),
            ..facts
        };
        let health = Health::of(&facts);
        assert!(!health.healthy);
        assert_eq!(health.reason, "nothing was persisted for 30 s");
    }

    #[test]
    fn every_failure_leads_to_a_state_with_its_words() {
        use FailureKind as K;
        let now = now();
        for (kind, on, off) in [
            (K::Network, State::CatchingUp, State::Connecting),
            (K::Stalled, State::CatchingUp, State::Connecting),
            (K::Untrusted, State::CatchingUp, State::Connecting),
            (K::NoCredentials, State::NoPermission, State::NoPermission),
            (K::BadCredentials, State::NoPermission, State::NoPermission),
            (K::NotPermitted, State::NoPermission, State::NoPermission),
            (K::Key, State::NoPermission, State::NoPermission),
            (K::Clock, State::ClockWrong, State::ClockWrong),
            (K::NotFound, State::CatchingUp, State::Connecting),
            (K::Throttled, State::CatchingUp, State::Connecting),
        ] {
            let failure = Failure::new(kind, "these words");
            for (streaming_now, state) in [(true, on), (false, off)] {
                let facts = Facts {
                    failure: Some(&failure),
                    streaming: streaming_now,
                    ..streaming(now)
                };
                let health = Health::of(&facts);
                assert_eq!(health.state, state, "{kind:?}");
                assert_eq!(health.reason, "these words");
            }
        }
    }

    #[test]
    fn a_certificate_that_is_refused_in_1970_is_the_clocks_fault() {
        let now = now();
        let failure = Failure::new(FailureKind::Untrusted, "expired");
        let facts = Facts {
            failure: Some(&failure),
            streaming: false,
            wall: Duration::from_mins(1),
            ..streaming(now)
        };
        assert_eq!(Health::of(&facts).state, State::ClockWrong);
    }

    #[test]
    fn what_was_asked_for_comes_before_what_stands_still() {
        let now = now();
        let failure = Failure::new(FailureKind::Network, "away");
        let mut facts = Facts {
            failure: Some(&failure),
            last_frame: None,
            streaming: false,
            ..streaming(now)
        };
        assert_eq!(Health::of(&facts).state, State::WaitingForCamera);
        facts.paused = true;
        assert_eq!(Health::of(&facts).state, State::Paused);
        facts.draining = true;
        assert_eq!(Health::of(&facts).state, State::Draining);
    }

    #[test]
    fn a_camera_is_missed_after_5_s_and_lateness_after_2() {
        let now = now();
        let facts = Facts {
            last_frame: Some(before(now, Duration::from_secs(5))),
            ..streaming(now)
        };
        let health = Health::of(&facts);
        assert_eq!(health.to_string(), "waiting-for-camera: no frame for 5 s");
        let facts = Facts {
            camera_trouble: Some("/dev/video0 is gone"),
            ..streaming(now)
        };
        assert_eq!(
            Health::of(&facts).to_string(),
            "waiting-for-camera: /dev/video0 is gone"
        );
        let facts = Facts {
            behind: Duration::from_millis(2500),
            ..streaming(now)
        };
        assert_eq!(Health::of(&facts).to_string(), "catching-up: 2.5 s behind");
        assert_eq!(Health::of(&streaming(now)).to_string(), "streaming");
    }

    #[test]
    fn only_what_cannot_be_explained_is_worth_a_restart() {
        let now = now();
        let stuck = Facts {
            last_persisted: Some(before(now, Duration::from_mins(1))),
            ..streaming(now)
        };
        assert!(!Health::of(&stuck).is_alive(&stuck));
        let failure = Failure::new(FailureKind::Network, "away");
        let cut = Facts {
            failure: Some(&failure),
            ..stuck
        };
        let unplugged = Facts {
            last_frame: None,
            ..stuck
        };
        let young = Facts {
            since: now,
            ..stuck
        };
        let paused = Facts {
            paused: true,
            ..stuck
        };
        for facts in [cut, unplugged, young, paused, streaming(now)] {
            assert!(Health::of(&facts).is_alive(&facts), "{facts:?}");
        }
    }
}
