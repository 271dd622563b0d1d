//! A producer's figures at one moment: as JSON for `status` and as Prometheus text for collectors. Pure.
//!
//! They are those of the KVS producer libraries, and what an operator asks next: how late, how often, why. Counters count
//! from the start of the process, so rates are the collector's to make.

use std::fmt::{self, Write};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::health::{Health, State};
use crate::kvs::failure::FailureKind;
use crate::kvs::meters::{Histogram, Meters};
use crate::kvs::session::Call;
use crate::report::amount;
use crate::ring::{Counts, DropReason};

/// The ring at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Buffer {
    /// Memory for payload in all.
    pub total_bytes: usize,
    /// Of that, what a frame could be written to now.
    pub available_bytes: usize,
    /// Payload that was not handed to the network.
    pub unsent_bytes: usize,
    /// From the oldest frame held to the newest.
    pub held: Duration,
    /// From the oldest frame that was not handed to the network to the newest.
    pub unsent: Duration,
    /// How much media all of it holds at the rate of the last minute; `None` while nothing comes.
    pub capacity: Option<Duration>,
    /// Fragments held.
    pub fragments: usize,
    /// The largest frame that fits when all else is given up.
    pub largest_frame_bytes: usize,
}

impl Buffer {
    /// What is in use.
    pub fn used_bytes(&self) -> usize {
        self.total_bytes - self.available_bytes
    }

    /// As one JSON object, in bytes and seconds.
    pub fn json(&self) -> Value {
        json!({
            "total_bytes": self.total_bytes,
            "available_bytes": self.available_bytes,
            "used_bytes": self.used_bytes(),
            "unsent_bytes": self.unsent_bytes,
            "held_s": seconds(self.held),
            "unsent_s": seconds(self.unsent),
            "total_s": self.capacity.map(seconds),
            "available_s": self.capacity.map(|all| seconds(self.share(all))),
            "fragments": self.fragments,
            "largest_frame_bytes": self.largest_frame_bytes,
        })
    }

    /// The part of `all` that the available bytes are.
    fn share(&self, all: Duration) -> Duration {
        let part = |bytes: usize| u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        all * part(self.available_bytes) / part(self.total_bytes).max(1)
    }
}

/// How often it became tight, in episodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// The ring had 5 % or less to give.
    pub storage: u64,
    /// Frames waited longer than half of what the ring holds.
    pub latency: u64,
    /// Fragments were given up because the ring was full.
    pub overflow: u64,
}

/// What the source did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Camera {
    /// How often it was opened.
    pub opened: u64,
    /// How often it was lost.
    pub lost: u64,
}

/// What flows, averaged over the last few seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rates {
    /// Frames a second from the source.
    pub frames: f64,
    /// Payload from the source, in bits a second.
    pub captured_bits: f64,
    /// Payload handed to the network, in bits a second.
    pub sent_bits: f64,
}

/// A producer at one moment.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Name of the stream.
    pub channel: String,
    /// How it is.
    pub health: Health,
    /// Since its start.
    pub uptime: Duration,
    /// What became of every frame.
    pub counts: Counts,
    /// The ring.
    pub buffer: Buffer,
    /// How often it was tight.
    pub pressure: Pressure,
    /// The source.
    pub camera: Camera,
    /// What flows.
    pub rates: Rates,
    /// The network side.
    pub meters: Meters,
    /// PutMedia requests so far.
    pub connections: u64,
    /// Whether the service has accepted the one in use.
    pub streaming: bool,
    /// The fragment confirmed last, in ms since the Unix epoch.
    pub last_persisted_ms: Option<u64>,
    /// How far this machine's clock is behind the service's, in ms; `None` while the service has not told its time.
    pub clock_behind_ms: Option<i64>,
    /// What the log says.
    pub log_level: &'static str,
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

impl Metrics {
    /// One JSON object. Durations in seconds unless the name says otherwise, sizes in bytes of payload.
    pub fn json(&self) -> Value {
        let (counts, meters, health) = (&self.counts, &self.meters, &self.health);
        let mut dropped = amount(counts.dropped_in_all());
        dropped["by_reason"] = by(DropReason::ALL, DropReason::name, |reason| {
            amount(counts.dropped_for(reason))
        });
        json!({
            "channel": self.channel,
            "version": env!("CARGO_PKG_VERSION"),
            "healthy": health.healthy,
            "state": health.state.name(),
            "reason": health.reason,
            "persisted_ago_s": health.persisted_ago.map(seconds),
            "persisted_limit_s": seconds(health.limit),
            "last_persisted_ms": self.last_persisted_ms,
            "uptime_s": seconds(self.uptime),
            "fps": (self.rates.frames * 10.0).round() / 10.0,
            "captured_bits_per_s": self.rates.captured_bits.round(),
            "sent_bits_per_s": self.rates.sent_bits.round(),
            "captured": amount(counts.captured),
            "sent": amount(counts.sent),
            "resent": amount(counts.resent),
            "persisted": amount(counts.persisted),
            "dropped": dropped,
            "fragments_persisted": counts.fragments_persisted,
            "fragments_dropped": counts.fragments_evicted,
            "buffer": self.buffer.json(),
            "pressure": {
                "storage": self.pressure.storage,
                "latency": self.pressure.latency,
                "overflow": self.pressure.overflow,
                "stale": meters.stalls,
            },
            "camera": { "opened": self.camera.opened, "lost": self.camera.lost },
            "connections": {
                "opened": self.connections,
                "open": meters.active(),
                "accepted": self.streaming,
                "ended": meters.ended,
                "lived_s": seconds(Duration::from_millis(meters.lived_ms)),
            },
            "failures": by(FailureKind::ALL, FailureKind::name, |kind| meters.lost[kind as usize].into()),
            "acks": {
                "buffering": meters.acks_buffering,
                "received": meters.acks_received,
                "persisted": meters.acks_persisted,
                "error": meters.acks_error,
            },
            "calls": by(Call::ALL, Call::name, |call| {
                let mut times = quantiles(&meters.calls[call as usize]);
                times["failed"] = meters.calls_failed[call as usize].into();
                times
            }),
            "latency": {
                "to_wire": quantiles(&meters.to_wire),
                "to_persisted": quantiles(&meters.to_persisted),
                "to_accepted": quantiles(&meters.accepted),
            },
            "clock_behind_ms": self.clock_behind_ms,
            "log_level": self.log_level,
        })
    }

    /// Prometheus text exposition, version 0.0.4.
    pub fn prometheus(&self) -> String {
        let mut text = Text {
            out: String::with_capacity(12 * 1024),
            channel: escaped(&self.channel),
        };
        self.write_state(&mut text);
        self.write_frames(&mut text);
        self.write_buffer(&mut text);
        self.write_network(&mut text);
        text.out
    }

    fn write_state(&self, text: &mut Text) {
        let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
        text.gauge("info", "The program.");
        text.sample("info", &version, 1);
        text.gauge(
            "healthy",
            "Whether a fragment was persisted within the limit.",
        );
        text.sample("healthy", "", u8::from(self.health.healthy));
        text.gauge("state", "What the producer does: 1 for the state it is in.");
        for state in State::ALL {
            let label = format!("state=\"{}\"", state.name());
            text.sample("state", &label, u8::from(state == self.health.state));
        }
        text.gauge("uptime_seconds", "Since the start.");
        text.sample("uptime_seconds", "", seconds(self.uptime));
        if let Some(ms) = self.last_persisted_ms {
            text.gauge(
                "last_persisted_timestamp_seconds",
                "Time of the fragment that was persisted last.",
            );
            let time = seconds(Duration::from_millis(ms));
            text.sample("last_persisted_timestamp_seconds", "", time);
        }
        if let Some(ago) = self.health.persisted_ago {
            text.gauge("persisted_age_seconds", "Since a fragment was persisted.");
            text.sample("persisted_age_seconds", "", seconds(ago));
        }
        text.gauge(
            "persisted_limit_seconds",
            "How long ago that may be for the producer to be healthy.",
        );
        text.sample("persisted_limit_seconds", "", seconds(self.health.limit));
        if let Some(ms) = self.clock_behind_ms {
            text.gauge(
                "clock_behind_seconds",
                "How far this machine's clock is behind the service's; negative when it is ahead.",
            );
            let sign = if ms < 0 { -1.0 } else { 1.0 };
            let off = seconds(Duration::from_millis(ms.unsigned_abs()));
            text.sample("clock_behind_seconds", "", sign * off);
        }
    }

    fn write_frames(&self, text: &mut Text) {
        let counts = &self.counts;
        for (name, help, amount) in [
            ("captured", "from the source", counts.captured),
            ("sent", "handed to the network", counts.sent),
            ("resent", "handed to the network again", counts.resent),
            ("persisted", "confirmed by the service", counts.persisted),
        ] {
            for (unit, value) in [("frames", amount.frames), ("bytes", amount.bytes)] {
                let name = format!("{name}_{unit}_total");
                text.counter(&name, &format!("{unit} {help}."));
                text.sample(&name, "", value);
            }
        }
        for unit in ["frames", "bytes"] {
            let name = format!("dropped_{unit}_total");
            text.counter(
                &name,
                &format!("{unit} that will never be persisted, by reason."),
            );
            for reason in DropReason::ALL {
                let dropped = counts.dropped_for(reason);
                let value = if unit == "frames" {
                    dropped.frames
                } else {
                    dropped.bytes
                };
                text.sample(&name, &format!("reason=\"{}\"", reason.name()), value);
            }
        }
        text.counter("persisted_fragments_total", "Fragments confirmed.");
        text.sample("persisted_fragments_total", "", counts.fragments_persisted);
        text.counter(
            "dropped_fragments_total",
            "Whole fragments given up because the ring was full.",
        );
        text.sample("dropped_fragments_total", "", counts.fragments_evicted);
        for (name, help, value) in [
            (
                "frame_rate",
                "Frames a second from the source.",
                self.rates.frames,
            ),
            (
                "captured_bits_per_second",
                "Payload from the source.",
                self.rates.captured_bits,
            ),
            (
                "sent_bits_per_second",
                "Payload handed to the network.",
                self.rates.sent_bits,
            ),
        ] {
            text.gauge(name, help);
            text.sample(name, "", (value * 10.0).round() / 10.0);
        }
        for (name, help, value) in [
            (
                "camera_opened_total",
                "How often the source was opened.",
                self.camera.opened,
            ),
            (
                "camera_lost_total",
                "How often the source was lost.",
                self.camera.lost,
            ),
        ] {
            text.counter(name, help);
            text.sample(name, "", value);
        }
    }

    fn write_buffer(&self, text: &mut Text) {
        let buffer = &self.buffer;
        for (name, help, value) in [
            ("buffer_bytes", "Memory for payload.", buffer.total_bytes),
            (
                "buffer_available_bytes",
                "Memory that a frame could be written to now.",
                buffer.available_bytes,
            ),
            (
                "buffer_used_bytes",
                "Memory that is in use.",
                buffer.used_bytes(),
            ),
            (
                "buffer_unsent_bytes",
                "Payload that was not handed to the network.",
                buffer.unsent_bytes,
            ),
            (
                "buffer_fragments",
                "Fragments in the ring.",
                buffer.fragments,
            ),
            (
                "buffer_largest_frame_bytes",
                "The largest frame that can be stored.",
                buffer.largest_frame_bytes,
            ),
        ] {
            text.gauge(name, help);
            text.sample(name, "", value);
        }
        for (name, help, value) in [
            (
                "buffer_held_seconds",
                "From the oldest frame held to the newest.",
                Some(buffer.held),
            ),
            (
                "buffer_unsent_seconds",
                "From the oldest frame not handed to the network to the newest.",
                Some(buffer.unsent),
            ),
            (
                "buffer_capacity_seconds",
                "What the ring holds at the present rate.",
                buffer.capacity,
            ),
        ] {
            let Some(value) = value else { continue };
            text.gauge(name, help);
            text.sample(name, "", seconds(value));
        }
        text.counter("pressure_total", "How often it became tight, by where.");
        for (kind, value) in [
            ("storage", self.pressure.storage),
            ("latency", self.pressure.latency),
            ("overflow", self.pressure.overflow),
            ("stale", self.meters.stalls),
        ] {
            text.sample("pressure_total", &format!("kind=\"{kind}\""), value);
        }
    }

    fn write_network(&self, text: &mut Text) {
        let meters = &self.meters;
        text.counter("connections_total", "PutMedia requests.");
        text.sample("connections_total", "", self.connections);
        text.gauge("connections_open", "PutMedia requests that are open.");
        text.sample("connections_open", "", meters.active());
        text.gauge(
            "accepted",
            "Whether the service has accepted the one in use.",
        );
        text.sample("accepted", "", u8::from(self.streaming));
        text.counter(
            "connections_ended_total",
            "PutMedia requests that have ended.",
        );
        text.sample("connections_ended_total", "", meters.ended);
        text.counter("connections_lived_seconds_total", "How long those lived.");
        let lived = seconds(Duration::from_millis(meters.lived_ms));
        text.sample("connections_lived_seconds_total", "", lived);
        text.counter(
            "failures_total",
            "Failures that made it start again, by cause.",
        );
        for kind in FailureKind::ALL {
            let label = format!("cause=\"{}\"", kind.name());
            text.sample("failures_total", &label, meters.lost[kind as usize]);
        }
        text.counter("acks_total", "Acknowledgements, by kind.");
        for (kind, value) in [
            ("buffering", meters.acks_buffering),
            ("received", meters.acks_received),
            ("persisted", meters.acks_persisted),
            ("error", meters.acks_error),
        ] {
            text.sample("acks_total", &format!("kind=\"{kind}\""), value);
        }
        text.counter(
            "calls_failed_total",
            "Calls of the control plane that failed.",
        );
        for call in Call::ALL {
            let label = format!("call=\"{}\"", call.name());
            text.sample(
                "calls_failed_total",
                &label,
                meters.calls_failed[call as usize],
            );
        }
        text.family(
            "call_seconds",
            "histogram",
            "How long calls of the control plane took.",
        );
        for call in Call::ALL {
            let label = format!("call=\"{}\"", call.name());
            text.histogram("call_seconds", &label, &meters.calls[call as usize]);
        }
        for (name, help, histogram) in [
            (
                "accept_seconds",
                "From the start of a PutMedia connection to its 200.",
                &meters.accepted,
            ),
            (
                "capture_to_wire_seconds",
                "From the capture of a fragment's first frame to its being handed to the connection.",
                &meters.to_wire,
            ),
            (
                "capture_to_persisted_seconds",
                "From the capture of a fragment's first frame to PERSISTED.",
                &meters.to_persisted,
            ),
        ] {
            text.family(name, "histogram", help);
            text.histogram(name, "", histogram);
        }
    }
}

fn by<T: Copy, const N: usize>(
    all: [T; N],
    name: impl Fn(T) -> &'static str,
    value: impl Fn(T) -> Value,
) -> Value {
    let entries = all
        .into_iter()
        .map(|one| (name(one).to_owned(), value(one)));
    entries.collect::<Map<_, _>>().into()
}

fn quantiles(histogram: &Histogram) -> Value {
    json!({
        "count": histogram.count(),
        "p50_ms": histogram.quantile_ms(0.5),
        "p95_ms": histogram.quantile_ms(0.95),
        "p99_ms": histogram.quantile_ms(0.99),
        "mean_ms": histogram.sum_ms().checked_div(histogram.count()),
    })
}

/// A label's value: backslash, quote and line feed have to be escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Prometheus text as it grows.
struct Text {
    out: String,
    channel: String,
}

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP kvs_producer_{name} {help}"));
        self.line(format_args!("# TYPE kvs_producer_{name} {kind}"));
    }

    fn gauge(&mut self, name: &str, help: &str) {
        self.family(name, "gauge", help);
    }

    fn counter(&mut self, name: &str, help: &str) {
        self.family(name, "counter", help);
    }

    /// `label` is `name="value"`, or empty.
    fn sample(&mut self, name: &str, label: &str, value: impl fmt::Display) {
        let comma = if label.is_empty() { "" } else { "," };
        let channel = std::mem::take(&mut self.channel);
        self.line(format_args!(
            "kvs_producer_{name}{{channel=\"{channel}\"{comma}{label}}} {value}"
        ));
        self.channel = channel;
    }

    fn histogram(&mut self, name: &str, label: &str, histogram: &Histogram) {
        let comma = if label.is_empty() { "" } else { "," };
        let bucket = format!("{name}_bucket");
        for (bound_ms, count) in histogram.cumulative() {
            let bound = f64::from(bound_ms) / 1000.0;
            self.sample(&bucket, &format!("{label}{comma}le=\"{bound}\""), count);
        }
        let count = histogram.count();
        self.sample(&bucket, &format!("{label}{comma}le=\"+Inf\""), count);
        let sum = seconds(Duration::from_millis(histogram.sum_ms()));
        self.sample(&format!("{name}_sum"), label, sum);
        self.sample(&format!("{name}_count"), label, count);
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // A String takes everything.
        let _ = self.out.write_fmt(line);
        self.out.push('\n');
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::kvs::failure::Failure;
    use crate::ring::{Amount, ConnectionId};

    /// A producer with something in every figure.
    pub(in super::super) fn metrics() -> Metrics {
        let mut counts = Counts {
            captured: Amount {
                frames: 1000,
                bytes: 5_000_000,
            },
            ..Counts::default()
        };
        counts.dropped[DropReason::RingFull as usize] = Amount {
            frames: 50,
            bytes: 250_000,
        };
        let mut meters = Meters::default();
        let at = Clock.now();
        meters.opened(ConnectionId(0), at);
        meters.opened(ConnectionId(1), at);
        meters.ended(ConnectionId(0), at + Duration::from_millis(1500));
        meters.failed(&Failure::new(FailureKind::Stalled, ""));
        for ms in [3, 40, 2_100] {
            meters.to_wire.observe(Duration::from_millis(ms));
        }
        Metrics {
            channel: "cam".into(),
            health: Health {
                healthy: true,
                state: State::CatchingUp,
                reason: "3.1 s behind".into(),
                persisted_ago: Some(Duration::from_millis(1234)),
                limit: Duration::from_secs(15),
            },
            uptime: Duration::from_mins(2),
            counts,
            buffer: Buffer {
                total_bytes: 2048 * 1024,
                available_bytes: 512 * 1024,
                unsent_bytes: 1024 * 1024,
                held: Duration::from_secs(3),
                unsent: Duration::from_secs(2),
                capacity: Some(Duration::from_secs(4)),
                fragments: 2,
                largest_frame_bytes: 2_000_000,
            },
            pressure: Pressure::default(),
            camera: Camera { opened: 2, lost: 1 },
            rates: Rates {
                frames: 24.96,
                captured_bits: 4e6,
                sent_bits: 3.9e6,
            },
            meters,
            connections: 2,
            streaming: true,
            last_persisted_ms: Some(1_700_000_000_123),
            clock_behind_ms: Some(-5_500),
            log_level: "info",
        }
    }

    #[test]
    fn json_has_every_figure_by_name() {
        let json = metrics().json();
        assert_eq!(json["state"], "catching-up");
        assert_eq!(json["persisted_ago_s"], 1.234);
        assert_eq!(json["buffer"]["used_bytes"], 1536 * 1024);
        assert_eq!(json["buffer"]["available_s"], 1.0);
        assert_eq!(json["dropped"]["by_reason"]["ring_full"]["frames"], 50);
        assert_eq!(json["failures"]["stalled"], 1);
        assert_eq!(json["connections"]["lived_s"], 1.5);
        assert_eq!(json["latency"]["to_wire"]["p50_ms"], 50);
        assert_eq!(json["latency"]["to_persisted"]["p50_ms"], Value::Null);
        assert_eq!(json["fps"], 25.0);
    }

    #[test]
    fn prometheus_text_has_a_help_and_a_type_before_the_samples_of_each_name() {
        let text = metrics().prometheus();
        let mut typed: Vec<(&str, &str)> = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a kind");
                assert!(typed.iter().all(|(seen, _)| *seen != name), "twice: {name}");
                typed.push((name, kind));
            } else if !line.starts_with('#') {
                let (name, kind) = typed.last().expect("a type comes first");
                let sample = line.split('{').next().expect("a name");
                let suffix = sample.strip_prefix(name).expect("of the family before");
                assert_eq!(*kind == "histogram", !suffix.is_empty(), "{line}");
                assert_eq!(*kind == "counter", sample.ends_with("_total"), "{line}");
                assert!(line.contains("{channel=\"cam\""), "{line}");
            }
        }
        assert!(typed.len() > 40, "{}", typed.len());
        let dropped =
            "kvs_producer_dropped_frames_total{channel=\"cam\",reason=\"ring_full\"} 50\n";
        assert!(text.contains(dropped), "{text}");
        let bucket = "kvs_producer_capture_to_wire_seconds_bucket{channel=\"cam\",le=\"0.05\"} 2\n";
        assert!(text.contains(bucket), "{text}");
        assert!(text.contains("kvs_producer_clock_behind_seconds{channel=\"cam\"} -5.5\n"));
    }

    #[test]
    fn labels_cannot_break_out() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }

    /// The parser that Prometheus itself publishes reads the text, and finds the figures in it.
    #[test]
    fn a_real_parser_reads_it() {
        use std::io::Write as _;
        use std::process::{Command, Stdio};
        const PROGRAM: &str = "
import sys
from prometheus_client.parser import text_string_to_metric_families as parse
for family in parse(sys.stdin.read()):
    for sample in family.samples:
        print(family.type, sample.name, sample.labels.get('le', ''), float(sample.value))
";
        let python = std::env::var("KVS_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        let found = Command::new(&python)
            .args(["-c", "import prometheus_client"])
            .output();
        if !found.is_ok_and(|import| import.status.success()) {
            let required = std::env::var("KVS_TEST_TOOLS").is_ok_and(|word| word == "required");
            assert!(
                !required,
                "KVS_TEST_PYTHON names no Python with prometheus_client"
            );
            eprintln!("NOT TESTED: there is no prometheus_client to read the metrics with");
            return;
        }
        let mut child = Command::new(&python)
            .args(["-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it was there a moment ago");
        let text = metrics().prometheus();
        let mut input = child.stdin.take().expect("piped");
        input.write_all(text.as_bytes()).expect("it reads");
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "it does not parse");
        let read = String::from_utf8(output.stdout).expect("text");
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(read.lines().count(), samples, "every sample is read");
        for line in [
            "counter kvs_producer_captured_frames_total  1000.0",
            "gauge kvs_producer_healthy  1.0",
            "histogram kvs_producer_capture_to_wire_seconds_bucket +Inf 3.0",
        ] {
            assert!(read.lines().any(|read| read == line), "{line}\n{read}");
        }
    }
}
