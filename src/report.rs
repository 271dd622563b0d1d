//! What it came to: the report at the end, for programs and for people. Pure.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::codes::Code;
use crate::ring::{Amount, Counts, DropReason};

/// A run's results.
#[derive(Debug, Clone)]
pub struct Report {
    /// Name of the stream.
    pub stream: String,
    /// What became of every frame.
    pub counts: Counts,
    /// PutMedia requests.
    pub connections: u64,
    /// From start to end.
    pub duration: Duration,
    /// Why it ended, when it did not end well.
    pub failure: Option<String>,
    /// Which text explains that.
    pub code: Option<Code>,
}

impl Report {
    /// The report as one JSON object. Durations in seconds, sizes in bytes of payload.
    pub fn json(&self) -> Value {
        let counts = &self.counts;
        let mut dropped = amount(counts.dropped_in_all());
        dropped["by_reason"] = DropReason::ALL
            .into_iter()
            .map(|reason| (reason.name().to_owned(), amount(counts.dropped_for(reason))))
            .collect::<serde_json::Map<_, _>>()
            .into();
        json!({
            "stream": self.stream,
            "duration_s": (self.duration.as_secs_f64() * 1000.0).round() / 1000.0,
            "captured": amount(counts.captured),
            "sent": amount(counts.sent),
            "resent": amount(counts.resent),
            "persisted": amount(counts.persisted),
            "dropped": dropped,
            "camera": {
                "dropped_by_driver": counts.camera.dropped_by_driver,
                "damaged": counts.camera.damaged,
                "void": counts.camera.void,
            },
            "fragments_persisted": counts.fragments_persisted,
            "connections": self.connections,
            "failure": self.failure,
            "code": self.code.map(|code| code.to_string()),
        })
    }
}

/// Frames and bytes as JSON.
pub fn amount(amount: Amount) -> Value {
    json!({ "frames": amount.frames, "bytes": amount.bytes })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        write!(
            f,
            "{}: {} of {} frames persisted in {} ({} MB, {}, {:.1} s)",
            self.stream,
            counts.persisted.frames,
            counts.captured.frames,
            counted(counts.fragments_persisted, "fragment"),
            megabytes(counts.persisted.bytes),
            counted(self.connections, "connection"),
            self.duration.as_secs_f32(),
        )?;
        let mut before = "; dropped ";
        for reason in DropReason::ALL {
            let dropped = counts.dropped_for(reason).frames;
            if dropped > 0 {
                write!(f, "{before}{dropped} ({})", reason.name())?;
                before = ", ";
            }
        }
        match counts.camera.frames() {
            0 => Ok(()),
            lost => write!(f, "; the camera lost {}", counted(lost, "frame")),
        }
    }
}

fn counted(number: u64, what: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {what}{ending}")
}

/// Bytes in units of a million, with one decimal.
pub fn megabytes(bytes: u64) -> String {
    let tenths = (bytes + 50_000) / 100_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::CameraLosses;

    fn report() -> Report {
        let mut counts = Counts {
            captured: Amount {
                frames: 10,
                bytes: 1000,
            },
            persisted: Amount {
                frames: 7,
                bytes: 700,
            },
            fragments_persisted: 2,
            camera: CameraLosses {
                dropped_by_driver: 3,
                damaged: 1,
                void: 5,
            },
            ..Counts::default()
        };
        counts.dropped[DropReason::RingFull as usize] = Amount {
            frames: 2,
            bytes: 200,
        };
        counts.dropped[DropReason::BeforeKeyFrame as usize] = Amount {
            frames: 1,
            bytes: 100,
        };
        Report {
            stream: "cam".into(),
            counts,
            connections: 1,
            duration: Duration::from_millis(1234),
            failure: None,
            code: None,
        }
    }

    #[test]
    fn people_read_one_line() {
        assert_eq!(
            report().to_string(),
            "cam: 7 of 10 frames persisted in 2 fragments (0.0 MB, 1 connection, 1.2 s); \
             dropped 1 (before_key_frame), 2 (ring_full); the camera lost 4 frames"
        );
    }

    #[test]
    fn programs_read_every_reason() {
        let json = report().json();
        assert_eq!(json["dropped"]["frames"], 3);
        assert_eq!(json["dropped"]["by_reason"]["ring_full"]["bytes"], 200);
        assert_eq!(
            json["dropped"]["by_reason"]
                .as_object()
                .map(serde_json::Map::len),
            Some(DropReason::ALL.len())
        );
        assert_eq!(json["duration_s"], 1.234);
        assert_eq!(
            json["camera"],
            json!({ "dropped_by_driver": 3, "damaged": 1, "void": 5 })
        );
    }
}
