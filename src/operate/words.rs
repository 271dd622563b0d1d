//! Answers of a running producer in words for people. Pure.

use std::fmt::Write;

use serde_json::Value;

use crate::report::megabytes;

/// `status`: a line on how it is, and a few on why.
pub fn status(answer: &Value) -> String {
    let text = |name: &str| answer[name].as_str().unwrap_or_default();
    let mut lines = Lines::default();
    let healthy = if answer["healthy"] == true {
        "healthy"
    } else {
        "NOT healthy"
    };
    let colon = if text("reason").is_empty() { "" } else { ": " };
    lines.out = format!(
        "{}: {}, {healthy}{colon}{}\n",
        text("channel"),
        text("state"),
        text("reason")
    );
    let frames = |what: &str| number(&answer[what]["frames"]);
    let ago = match answer["persisted_ago_s"].as_f64() {
        Some(ago) => format!("{ago:.1} s ago"),
        None => "nothing yet".into(),
    };
    lines.add(
        "persisted",
        &format!(
            "{ago}; {} of {} frames in {} fragments",
            frames("persisted"),
            frames("captured"),
            number(&answer["fragments_persisted"])
        ),
    );
    lines.add(
        "video",
        &format!(
            "{} fps, {} Mbit/s; camera opened {}, lost {} times",
            answer["fps"],
            megabytes(number(&answer["captured_bits_per_s"])),
            number(&answer["camera"]["opened"]),
            number(&answer["camera"]["lost"]),
        ),
    );
    lines.add("buffer", &fill(&answer["buffer"]));
    let latency = &answer["latency"];
    lines.add(
        "latency",
        &format!(
            "capture to wire {}, to PERSISTED {}",
            quantiles(&latency["to_wire"]),
            quantiles(&latency["to_persisted"])
        ),
    );
    let connections = &answer["connections"];
    let accepted = if connections["accepted"] == true {
        "the last one is up"
    } else {
        "none is up"
    };
    let failures = by_reason(&answer["failures"], Value::as_u64);
    lines.add(
        "connections",
        &format!(
            "{}, {accepted}; failures {failures}",
            number(&connections["opened"])
        ),
    );
    lines.add(
        "dropped",
        &by_reason(&answer["dropped"]["by_reason"], |amount| {
            amount["frames"].as_u64()
        }),
    );
    let clock = match answer["clock_behind_ms"].as_i64() {
        None => "the service has not told its time".to_owned(),
        Some(0) => "right".to_owned(),
        Some(ms) if ms < 0 => format!("{} s ahead of the service's", tenths(ms.unsigned_abs())),
        Some(ms) => format!("{} s behind the service's", tenths(ms.unsigned_abs())),
    };
    lines.add("clock", &clock);
    let up = answer["uptime_s"].as_f64().unwrap_or_default();
    lines.add("up", &format!("{up:.0} s, log level {}", text("log_level")));
    lines.out
}

/// `buffer`: one line.
pub fn buffer(answer: &Value) -> String {
    format!(
        "{}; the largest frame that fits has {} bytes\n",
        fill(answer),
        number(&answer["largest_frame_bytes"])
    )
}

/// What `stop` and `free` say: what was persisted and what was not.
pub fn end(answer: &Value) -> String {
    let report = &answer["report"];
    let frames = |what: &str| number(&report[what]["frames"]);
    let mut line = format!(
        "{}: ended; {} of {} frames persisted",
        report["stream"].as_str().unwrap_or_default(),
        frames("persisted"),
        frames("captured")
    );
    if frames("dropped") > 0 {
        let reasons = by_reason(&report["dropped"]["by_reason"], |amount| {
            amount["frames"].as_u64()
        });
        let _ = write!(line, "; not persisted: {reasons}");
    }
    if let Some(failure) = report["failure"].as_str() {
        let _ = write!(line, "; {failure}");
    }
    line.push('\n');
    line
}

/// What `reset` says.
pub fn reset(answer: &Value, keep_buffer: bool) -> String {
    if keep_buffer {
        let again = number(&answer["again"]["fragments"]);
        return format!("the connections are closed; {again} fragments are sent again\n");
    }
    let discarded = &answer["discarded"];
    format!(
        "begun anew; {} frames ({} MB) are thrown away, and the next key frame is the first\n",
        number(&discarded["frames"]),
        megabytes(number(&discarded["bytes"]))
    )
}

fn fill(buffer: &Value) -> String {
    let bytes = |name: &str| mebibytes(number(&buffer[name]));
    let mut text = format!(
        "{} of {} MiB available, {} used",
        bytes("available_bytes"),
        bytes("total_bytes"),
        bytes("used_bytes")
    );
    if let (Some(available), Some(total)) =
        (buffer["available_s"].as_f64(), buffer["total_s"].as_f64())
    {
        let _ = write!(text, "; {available:.1} of {total:.1} s");
    }
    let held = buffer["held_s"].as_f64().unwrap_or_default();
    let unsent = buffer["unsent_s"].as_f64().unwrap_or_default();
    let _ = write!(
        text,
        "; holds {held:.1} s in {} fragments, {unsent:.1} s of it not sent",
        number(&buffer["fragments"])
    );
    text
}

/// `1000 ms (99 %: 2500 ms)`: the bounds that half of them, and nearly all, stay below.
fn quantiles(histogram: &Value) -> String {
    let bound = |name: &str| match histogram[name].as_u64() {
        Some(ms) => format!("under {ms} ms"),
        None => "over 5 min".to_owned(),
    };
    if number(&histogram["count"]) == 0 {
        return "nothing yet".into();
    }
    format!("{} (99 %: {})", bound("p50_ms"), bound("p99_ms"))
}

/// `53: ring_full 50, refused 3`.
fn by_reason(reasons: &Value, count: impl Fn(&Value) -> Option<u64>) -> String {
    let mut named = Vec::new();
    let mut all = 0;
    for (name, value) in reasons.as_object().into_iter().flatten() {
        let count = count(value).unwrap_or_default();
        all += count;
        if count > 0 {
            named.push(format!("{name} {count}"));
        }
    }
    if named.is_empty() {
        return "0".into();
    }
    format!("{all}: {}", named.join(", "))
}

#[derive(Default)]
struct Lines {
    out: String,
}

impl Lines {
    fn add(&mut self, name: &str, text: &str) {
        let _ = writeln!(self.out, "  {name:<12}{text}");
    }
}

fn number(value: &Value) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts that JSON carries as fractions are whole and positive"
    )]
    let whole = |number: f64| number as u64;
    value
        .as_u64()
        .or(value.as_f64().map(whole))
        .unwrap_or_default()
}

fn mebibytes(bytes: u64) -> String {
    tenths(bytes * 1000 / (1024 * 1024))
}

/// Thousandths with one decimal.
fn tenths(thousandths: u64) -> String {
    let tenths = (thousandths + 50) / 100;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::metrics::tests::metrics;
    use super::*;

    #[test]
    fn people_read_how_it_is_and_why() {
        assert_eq!(
            status(&metrics().json()),
            "cam: catching-up, healthy: 3.1 s behind
  persisted   1.2 s ago; 0 of 1000 frames in 0 fragments
  video       25.0 fps, 4.0 Mbit/s; camera opened 2, lost 1 times
  buffer      0.5 of 2.0 MiB available, 1.5 used; 1.0 of 4.0 s; holds 3.0 s in 2 fragments, 2.0 s of it not sent
  latency     capture to wire under 50 ms (99 %: under 2500 ms), to PERSISTED nothing yet
  connections 2, the last one is up; failures 1: stalled 1
  dropped     50: ring_full 50
  clock       5.5 s ahead of the service's
  up          120 s, log level info
"
        );
    }

    #[test]
    fn a_producer_that_knows_nothing_yet_is_shown_without_a_fault() {
        let text = status(&json!({}));
        assert!(text.contains("NOT healthy"), "{text}");
        assert!(text.contains("nothing yet"), "{text}");
    }

    #[test]
    fn an_end_says_what_was_not_persisted() {
        let report = json!({
            "stream": "cam",
            "captured": { "frames": 100 },
            "persisted": { "frames": 90 },
            "dropped": { "frames": 10, "by_reason": { "not_sent_in_time": { "frames": 10 } } },
            "failure": "cannot reach it",
        });
        assert_eq!(
            end(&json!({ "report": report })),
            "cam: ended; 90 of 100 frames persisted; not persisted: 10: not_sent_in_time 10; cannot reach it\n"
        );
    }
}
