//! How it goes, in one line: rates over the time since the last look. Pure.

use std::fmt;
use std::time::{Duration, Instant};

use crate::frame::{MediaTime, Timecode};
use crate::ring::{Counts, DropReason, Fill};

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
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

impl Look {
    /// Whether nothing but time has passed since `before`.
    pub fn is_still(&self, before: &Self) -> bool {
        let (at, media) = (before.at, before.media);
        *before == Self { at, media, ..*self }
    }

    /// Age of the oldest frame that was not handed to the network.
    pub fn behind(&self) -> Duration {
        let ms = self
            .fill
            .oldest_unsent
            .map_or(0, |oldest| self.media.0.saturating_sub(oldest.0));
        Duration::from_millis(ms)
    }
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
        Self {
            running: now.at - start,
            fps: per(frames, seconds),
            megabits: per(bytes * 8, seconds) / 1e6,
            fill_percent: used * 100 / now.fill.total_bytes.max(1),
            behind: now.behind(),
            dropped: now.counts.dropped_in_all().frames,
            last_persisted: now.last_persisted,
            connections: now.connections,
            streaming: now.streaming,
        }
    }
}

/// When nothing was given up for so long, an episode of overflow is over.
const QUIET: Duration = Duration::from_secs(10);

/// Makes episodes of the ring's overflow: two lines in the log for each, however long it lasts.
#[derive(Debug, Default)]
pub struct Overflow {
    seen: u64,
    episode: Option<Episode>,
}

#[derive(Debug)]
struct Episode {
    began: Instant,
    last: Instant,
    frames_before: u64,
}

/// A turn that is worth a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Frames are being given up.
    Began,
    /// No more are.
    Ended {
        /// How many were.
        frames: u64,
        /// From the first to the last.
        lasted: Duration,
    },
}

impl Overflow {
    /// Whether an episode goes on.
    pub fn goes_on(&self) -> bool {
        self.episode.is_some()
    }

    /// Takes a look; says when it has turned.
    pub fn look(&mut self, now: &Look) -> Option<Turn> {
        let frames = now.counts.dropped_for(DropReason::RingFull).frames;
        let before = std::mem::replace(&mut self.seen, frames);
        match &mut self.episode {
            None if frames > before => {
                self.episode = Some(Episode {
                    began: now.at,
                    last: now.at,
                    frames_before: before,
                });
                Some(Turn::Began)
            }
            Some(episode) if frames > before => {
                episode.last = now.at;
                None
            }
            Some(episode) if now.at - episode.last >= QUIET => {
                let ended = Turn::Ended {
                    frames: frames - episode.frames_before,
                    lasted: episode.last - episode.began,
                };
                self.episode = None;
                Some(ended)
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

    fn look(at: Instant, given_up: u64) -> Look {
        let mut counts = Counts::default();
        counts.dropped[DropReason::RingFull as usize].frames = given_up;
        let fill = Fill {
            total_bytes: 1,
            available_bytes: 1,
            oldest_unsent: None,
            unsent_bytes: 0,
            oldest: None,
            newest: None,
            fragments: 0,
        };
        let media = MediaTime(0);
        Look {
            at,
            media,
            counts,
            fill,
            connections: 0,
            streaming: false,
            last_persisted: None,
        }
    }

    #[test]
    fn an_overflow_is_two_lines_however_long_it_lasts() {
        let start = Clock.now();
        let mut overflow = Overflow::default();
        let mut turns = Vec::new();
        for second in 0..200 {
            // Given up every third second from 10 to 100.
            let given_up = if second < 10 {
                0
            } else {
                (second.min(100) - 7) / 3 * 25
            };
            turns.extend(overflow.look(&look(start + Duration::from_secs(second), given_up)));
        }
        let lasted = Duration::from_secs(90);
        assert_eq!(
            turns,
            [
                Turn::Began,
                Turn::Ended {
                    frames: 775,
                    lasted
                }
            ]
        );
        assert_eq!(
            overflow.look(&look(start + Duration::from_mins(5), 800)),
            Some(Turn::Began)
        );
    }

    #[test]
    fn time_alone_is_no_movement() {
        let start = Clock.now();
        let later = Look {
            media: MediaTime(7),
            ..look(start + Duration::from_secs(1), 3)
        };
        assert!(later.is_still(&look(start, 3)));
        assert!(!later.is_still(&look(start, 2)));
    }

    #[test]
    fn rates_are_those_since_the_last_look() {
        let start = Clock.now();
        let fill = Fill {
            total_bytes: 2000,
            available_bytes: 1500,
            oldest_unsent: Some(MediaTime(8_500)),
            unsent_bytes: 0,
            oldest: None,
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
