//! How it goes, in one line: rates over the time since the last look. Pure.

use std::fmt;
use std::time::{Duration, Instant};

use crate::frame::{MediaTime, Timecode};
use crate::ring::{Counts, DropReason, Fill};

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// When.
    pub at: Instant,
    /// The same moment on the media's clock.
    pub media: MediaTime,
    /// What became of every frame so far.
    pub counts: Counts,
    /// How full the ring is.
    pub fill: Fill,
    /// Connections opened so far.
    pub connections: u64,
    /// Whether the service has accepted the connection in use.
    pub streaming: bool,
    /// The fragment confirmed last.
    pub last_persisted: Option<Timecode>,
}

/// One line on how it goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Since the start.
    pub running: Duration,
    /// Frames a second that came from the source.
    pub fps: f64,
    /// Payload that came from the source, in Mbit/s.
    pub megabits: f64,
    /// How much of the ring is in use, in percent.
    pub fill_percent: usize,
    /// Age of the oldest frame that was not handed to the network.
    pub behind: Duration,
    /// Frames that will never be persisted.
    pub dropped: u64,
    /// The fragment confirmed last.
    pub last_persisted: Option<Timecode>,
    /// Connections opened so far.
    pub connections: u64,
    /// Whether media flows.
    pub streaming: bool,
}

impl Line {
    /// What happened between two looks of a run that began at `start`.
    pub fn between(start: Instant, before: &Look, now: &Look) -> Self {
        let seconds = (now.at - before.at).as_secs_f64().max(0.001);
        let frames = now.counts.captured.frames - before.counts.captured.frames;
        let bytes = now.counts.captured.bytes - before.counts.captured.bytes;
        let used = now.fill.total_bytes - now.fill.available_bytes;
        let behind_ms = now
            .fill
            .oldest_unsent
            .map_or(0, |oldest| now.media.0.saturating_sub(oldest.0));
        Self {
            running: now.at - start,
            fps: per(frames, seconds),
            megabits: per(bytes * 8, seconds) / 1e6,
            fill_percent: used * 100 / now.fill.total_bytes.max(1),
            behind: Duration::from_millis(behind_ms),
            dropped: now.counts.dropped_in_all().frames,
            last_persisted: now.last_persisted,
            connections: now.connections,
            streaming: now.streaming,
        }
    }
}

/// An episode of a ring that is too small begins, or has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// A first fragment was given up.
    Begins,
    /// None was given up for [`CALM`].
    Ended {
        /// Fragments given up.
        fragments: u64,
        /// Frames in them, and single frames.
        frames: u64,
    },
}

/// How long no fragment is given up until an episode counts as over: longer than a fragment may be.
const CALM: Duration = Duration::from_secs(30);

/// Finds the episodes in a series of looks: one line in the log for each end of one, not for each frame.
#[derive(Debug, Default)]
pub struct Overflows {
    /// Fragments and frames given up by the last look.
    seen: (u64, u64),
    /// What was given up before the episode that is on, and when something was last.
    episode: Option<((u64, u64), Instant)>,
}

impl Overflows {
    /// What the next look tells.
    pub fn look(&mut self, now: &Look) -> Option<Overflow> {
        let given_up = (
            now.counts.fragments_evicted,
            now.counts.dropped_for(DropReason::RingFull).frames,
        );
        let before = std::mem::replace(&mut self.seen, given_up);
        match &mut self.episode {
            None if given_up != before => {
                self.episode = Some((before, now.at));
                Some(Overflow::Begins)
            }
            Some((_, last)) if given_up != before => {
                *last = now.at;
                None
            }
            Some((start, last)) if now.at - *last >= CALM => {
                let (fragments, frames) = (given_up.0 - start.0, given_up.1 - start.1);
                self.episode = None;
                Some(Overflow::Ended { fragments, frames })
            }
            _ => None,
        }
    }
}

fn per(amount: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let amount = amount as f64;
    amount / seconds
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.running.as_secs();
        write!(
            f,
            "{:02}:{:02}:{:02}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        )?;
        write!(f, "  {:.1} fps  {:.2} Mbit/s", self.fps, self.megabits)?;
        write!(
            f,
            "  buffer {} %  behind {:.1} s",
            self.fill_percent,
            self.behind.as_secs_f32()
        )?;
        if self.dropped > 0 {
            write!(f, "  dropped {}", self.dropped)?;
        }
        match self.last_persisted {
            Some(timecode) => write!(f, "  persisted {timecode}")?,
            None => f.write_str("  nothing persisted yet")?,
        }
        write!(f, "  connection {}", self.connections)?;
        f.write_str(if self.streaming {
            ""
        } else {
            " (not connected)"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::ring::Amount;

    #[test]
    fn an_episode_is_one_line_at_its_beginning_and_one_at_its_end() {
        let mut look = Look {
            at: Clock.now(),
            media: MediaTime(0),
            counts: Counts::default(),
            fill: Fill {
                total_bytes: 1,
                available_bytes: 0,
                oldest_unsent: None,
                newest: None,
                fragments: 0,
            },
            connections: 1,
            streaming: true,
            last_persisted: None,
        };
        let mut overflows = Overflows::default();
        let mut told = Vec::new();
        for second in 0..200 {
            // A fragment of 50 frames every 2 s, twice for a minute.
            if second % 100 < 60 && second % 2 == 0 {
                look.counts.fragments_evicted += 1;
                look.counts.dropped[DropReason::RingFull as usize].frames += 50;
            }
            look.at += Duration::from_secs(1);
            told.extend(overflows.look(&look));
        }
        let ended = Overflow::Ended {
            fragments: 30,
            frames: 1500,
        };
        assert_eq!(told, [Overflow::Begins, ended, Overflow::Begins, ended]);
    }

    #[test]
    fn rates_are_those_since_the_last_look() {
        let start = Clock.now();
        let fill = Fill {
            total_bytes: 2000,
            available_bytes: 1500,
            oldest_unsent: Some(MediaTime(8_500)),
            newest: None,
            fragments: 1,
        };
        let before = Look {
            at: start + Duration::from_hours(1),
            media: MediaTime(9_000),
            counts: Counts {
                captured: Amount {
                    frames: 100,
                    bytes: 1_000_000,
                },
                ..Counts::default()
            },
            fill,
            connections: 2,
            streaming: true,
            last_persisted: Some(Timecode(1_700_000_000_000)),
        };
        let now = Look {
            at: before.at + Duration::from_secs(2),
            media: MediaTime(11_000),
            counts: Counts {
                captured: Amount {
                    frames: 150,
                    bytes: 2_000_000,
                },
                ..Counts::default()
            },
            ..before
        };
        assert_eq!(
            Line::between(start, &before, &now).to_string(),
            "01:00:02  25.0 fps  4.00 Mbit/s  buffer 25 %  behind 2.5 s  persisted 1700000000000  connection 2"
        );
    }
}
