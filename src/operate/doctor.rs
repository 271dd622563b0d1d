//! `doctor`: looks at everything that streaming needs, one line each, with the remedy where something is missing.
//!
//! Nothing is changed: no stream is created and no media sent. PutMedia is tried with an empty body, unless a producer runs,
//! whose connection that would take.

use std::collections::HashSet;
use std::fmt;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::client;
use super::protocol::Request;
use crate::app::{self, Config, Device, Exit};
use crate::clock::Clock;
use crate::frame::Timecode;
use crate::kvs::aws::Aws;
use crate::kvs::failure::{Failure, FailureKind};
use crate::kvs::session::{Call, Event, Reply};
use crate::kvs::tls;
use crate::kvs::transport::{self, Route, Sockets, Start};
use crate::kvs::upload::{Handle, UploadBody};
use crate::ring::shared::Reader;
use crate::ring::{ConnectionId, MIN_BUDGET_BYTES, Ring};
use crate::source::v4l2::devices;

/// A clock that is off by less is no trouble, in ms.
const CLOCK_TOLERANCE_MS: u64 = 5_000;

/// What the program takes beside its buffer, in KiB.
const PROGRAM_KIB: u64 = 8 * 1024;

/// For a PutMedia that is tried.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is as it should be.
    Good,
    /// It is in the way of streaming.
    Bad,
    /// It could not be looked at, or is no trouble by itself.
    Open,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: String,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.verdict {
            Verdict::Good => '✓',
            Verdict::Bad => '✗',
            Verdict::Open => '-',
        };
        write!(f, "{mark} {:<12}{}", self.name, self.found)?;
        if !self.remedy.is_empty() {
            write!(f, " → {}", self.remedy)?;
        }
        Ok(())
    }
}

fn good(name: &'static str, found: impl Into<String>) -> Check {
    Check {
        name,
        verdict: Verdict::Good,
        found: found.into(),
        remedy: String::new(),
    }
}

fn bad(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check {
        name,
        verdict: Verdict::Bad,
        found: found.into(),
        remedy: remedy.into(),
    }
}

fn open(name: &'static str, found: impl Into<String>) -> Check {
    Check {
        verdict: Verdict::Open,
        ..good(name, found)
    }
}

fn failed(name: &'static str, failure: &Failure) -> Check {
    let remedy = failure.code.entry().remedy;
    let found = format!("{} [{}]", failure.message, failure.code);
    bad(name, found, remedy)
}

/// All checks as JSON.
pub fn json(checks: &[Check]) -> Value {
    let checks = checks.iter().map(|check| {
        json!({
            "check": check.name,
            "good": match check.verdict {
                Verdict::Good => Some(true),
                Verdict::Bad => Some(false),
                Verdict::Open => None,
            },
            "found": check.found,
            "remedy": check.remedy,
        })
    });
    checks.collect()
}

/// What the exit code says of them.
pub fn exit(checks: &[Check]) -> Exit {
    let bad = checks.iter().any(|check| check.verdict == Verdict::Bad);
    if bad {
        Exit::Unhealthy
    } else {
        Exit::Persisted
    }
}

/// Looks at everything; `told` hears of each check as it is done.
///
/// # Errors
/// When there is no runtime.
pub fn run(config: &Config, told: &mut dyn FnMut(&Check)) -> Result<Vec<Check>, app::Error> {
    app::block_on(look(config, told))
}

async fn look(config: &Config, told: &mut dyn FnMut(&Check)) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut add = |check: Check| {
        told(&check);
        checks.push(check);
    };
    let producer = client::find(&config.control, &config.aws.stream)
        .and_then(|path| client::ask(&path, &Request::Status, None))
        .ok()
        .map(Value::Object);
    add(match &producer {
        Some(status) => state(status),
        None => open("producer", "none runs for this channel here"),
    });
    add(source(config, producer.is_some()));
    match service(config, producer.is_some(), &mut add).await {
        Ok(()) => {}
        Err(check) => add(check),
    }
    add(uplink(producer.as_ref()));
    add(ring(config, producer.as_ref()));
    add(memory(config));
    checks
}

fn state(status: &Value) -> Check {
    let text = |name: &str| status[name].as_str().unwrap_or_default();
    let found = format!("{} {}", text("state"), text("reason"));
    if status["healthy"] == true {
        good("producer", found.trim())
    } else {
        bad("producer", found.trim(), "see what follows")
    }
}

fn source(config: &Config, runs: bool) -> Check {
    let name = "camera";
    let path = match &config.device {
        Device::Stdin => return open(name, "standard input cannot be looked into"),
        #[cfg(feature = "local")]
        Device::Demo => return good(name, "the built-in clip"),
        Device::Path(path) => Some(path.display().to_string()),
        Device::AnyCamera | Device::NamedCamera(_) => None,
    };
    let word = match &config.device {
        Device::NamedCamera(word) => word.as_str(),
        _ => "",
    };
    if let Some(path) = path.as_ref().filter(|path| !path.starts_with("/dev/")) {
        return match std::fs::File::open(path) {
            Ok(_) => good(name, path.as_str()),
            Err(error) => bad(name, format!("{path}: {error}"), "is the path right?"),
        };
    }
    let devices: Vec<_> = devices::all().iter().map(devices::Device::json).collect();
    let meant = |device: &&Value| match &path {
        Some(path) => {
            let links = device["links"].as_array().into_iter().flatten();
            device["path"] == path.as_str() || links.into_iter().any(|link| link == path.as_str())
        }
        None => device["card"].as_str().unwrap_or_default().contains(word),
    };
    let mut meant: Vec<_> = devices.iter().filter(meant).collect();
    meant.sort_by_key(|device| device["usable"] != true);
    let text = |device: &Value, name: &str| device[name].as_str().unwrap_or_default().to_owned();
    match meant.first() {
        None => bad(
            name,
            "there is no such camera",
            "plug it in, load its driver, or see `kvsProducerApp devices`",
        ),
        Some(device) if device["usable"] == true => good(
            name,
            format!(
                "{} ({}): {}",
                text(device, "path"),
                text(device, "card"),
                text(device, "codec")
            ),
        ),
        // The one that runs has it open.
        Some(device) if runs => open(name, text(device, "path")),
        Some(device) => bad(name, text(device, "path"), text(device, "why_not")),
    }
}

/// Everything on the way to the service; what is in the way ends it.
async fn service(config: &Config, runs: bool, add: &mut dyn FnMut(Check)) -> Result<(), Check> {
    let usage = |error: &dyn std::error::Error| {
        bad("settings", crate::chain(error).to_string(), "see --help")
    };
    let tls = tls::client_config(config.ca_file.as_deref()).map_err(|error| usage(&error))?;
    let aws = Aws::load(config.aws.clone(), &tls, Clock)
        .await
        .map_err(|error| usage(&error))?;
    add(dns(aws.place()));
    let limit = |call| config.session.limit(call);
    let credentials = aws
        .call(Call::Credentials, None, limit(Call::Credentials))
        .await;
    match &credentials {
        Ok(_) => add(good("credentials", "there are some")),
        Err(failure) => return Err(failed("credentials", failure)),
    }
    add(match aws.who(limit(Call::Describe)).await {
        Ok(arn) => good("identity", arn),
        // Streaming does without: a device may have no way to that service.
        Err(why) => open(
            "identity",
            format!("the Security Token Service does not tell: {why}"),
        ),
    });
    let found = aws.look_at().await;
    if let Err(failure) = &found
        && matches!(
            failure.kind,
            FailureKind::Network | FailureKind::Stalled | FailureKind::Untrusted
        )
    {
        let name = match failure.kind {
            FailureKind::Untrusted => "TLS",
            _ => "network",
        };
        return Err(failed(name, failure));
    }
    let tls_found = match aws.place().strip_prefix("http://") {
        Some(_) => open("TLS", "none: the endpoint is http"),
        None => good("TLS", "the service's certificate is accepted"),
    };
    add(tls_found);
    add(clock(aws.clock().behind_ms()));
    match found {
        Ok(stream) => {
            add(good("permission", "DescribeStream"));
            let found = format!(
                "{}, keeps media for {} h",
                stream.status, stream.retention_hours
            );
            add(if stream.status == "DELETING" {
                bad(
                    "stream",
                    found,
                    "wait until it is gone, or take another name",
                )
            } else {
                good("stream", found)
            });
        }
        Err(failure) if failure.kind == FailureKind::NotFound => {
            let remedy = "kvsProducerApp create makes it; so does streaming, without --no-create";
            return Err(if config.session.create {
                open("stream", format!("there is none yet: {remedy}"))
            } else {
                bad("stream", "there is none", remedy)
            });
        }
        Err(failure) if failure.kind == FailureKind::NotPermitted => {
            add(open(
                "permission",
                format!("DescribeStream: {}", denied(&failure)),
            ));
        }
        Err(failure) => return Err(failed("stream", &failure)),
    }
    let endpoint = aws.call(Call::Endpoint, None, limit(Call::Endpoint)).await;
    let origin = match endpoint {
        Ok(Reply::Endpoint(origin)) => origin,
        Ok(_) => return Ok(()),
        Err(failure) => return Err(permission("GetDataEndpoint", &failure)),
    };
    add(good("permission", "GetDataEndpoint"));
    add(good("endpoint", origin.as_str()));
    add(if runs {
        open(
            "permission",
            "PutMedia is not tried: the producer that runs has the connection",
        )
    } else {
        match put_media(&aws, &tls, &origin).await {
            Ok(()) => good("permission", "PutMedia"),
            Err(failure) => permission("PutMedia", &failure),
        }
    });
    Ok(())
}

fn dns(place: &str) -> Check {
    let host = match place.strip_prefix("region ") {
        Some(region) if region.starts_with("cn-") => {
            format!("kinesisvideo.{region}.amazonaws.com.cn:443")
        }
        Some(region) => format!("kinesisvideo.{region}.amazonaws.com:443"),
        None => {
            let (scheme, rest) = place.split_once("://").unwrap_or(("https", place));
            let host = rest.split('/').next().unwrap_or_default();
            let port = if scheme == "http" { 80 } else { 443 };
            let has_port = host
                .rsplit(':')
                .next()
                .is_some_and(|end| end.parse::<u16>().is_ok());
            if has_port {
                host.to_owned()
            } else {
                format!("{host}:{port}")
            }
        }
    };
    match host.to_socket_addrs() {
        Ok(addresses) => {
            let addresses: HashSet<_> = addresses.map(|address| address.ip()).collect();
            good("DNS", format!("{host} has {} addresses", addresses.len()))
        }
        Err(error) => bad(
            "DNS",
            format!("{host}: {error}"),
            "is the network up, the region right, and a name server in /etc/resolv.conf?",
        ),
    }
}

fn clock(behind_ms: Option<i64>) -> Check {
    match behind_ms {
        None => open("clock", "the service has not told its time"),
        Some(ms) if ms.unsigned_abs() <= CLOCK_TOLERANCE_MS => good("clock", "right"),
        Some(ms) => {
            let side = if ms < 0 { "ahead" } else { "behind" };
            let by = ms.unsigned_abs() / 1000;
            bad(
                "clock",
                format!("{by} s {side}; signatures go on with the service's time"),
                "set it: NTP, or a battery",
            )
        }
    }
}

/// Tells apart what nobody has allowed from what somebody forbids.
fn denied(failure: &Failure) -> &'static str {
    if failure.message.contains("explicit deny") {
        "an explicit deny forbids it"
    } else {
        "no policy allows it"
    }
}

fn permission(call: &'static str, failure: &Failure) -> Check {
    if failure.kind != FailureKind::NotPermitted {
        return failed("permission", failure);
    }
    let remedy = if denied(failure).contains("explicit") {
        format!("find the statement with Effect Deny that covers kinesisvideo:{call}")
    } else {
        format!("allow kinesisvideo:{call} on the stream")
    };
    let found = format!("{call}: {} [{}]", denied(failure), failure.code);
    bad("permission", found, remedy)
}

/// Begins a PutMedia that has no media.
async fn put_media(aws: &Aws, tls: &Arc<ClientConfig>, origin: &str) -> Result<(), Failure> {
    let ring = Reader::new(Ring::new(MIN_BUDGET_BYTES));
    ring.with(Ring::close);
    let id = ConnectionId(0);
    let (sender, mut events) = mpsc::unbounded_channel();
    let wall = u64::try_from(aws.clock().now().as_millis()).unwrap_or(u64::MAX);
    let headers = aws
        .put_media(origin, Timecode(wall))
        .map_err(|error| Failure::new(FailureKind::Invalid, crate::chain(&error).to_string()))?;
    let body = UploadBody::new(id, ring, Handle::default(), sender.clone());
    let (start, started) = oneshot::channel();
    let mut start = Some((start, Start { headers, body }));
    let route = Route {
        id,
        origin: origin.to_owned(),
        tls: Arc::clone(tls),
        patience: PATIENCE,
        clock: aws.clock().clone(),
        sockets: Sockets::default(),
    };
    let mut task = JoinSet::new();
    task.spawn(transport::run(route, started, sender));
    let answered = async {
        while let Some(event) = events.recv().await {
            match event {
                Event::Opened(_) => {
                    if let Some((sender, start)) = start.take() {
                        // Where the connection is gone already, its Lost is on the way.
                        let _ = sender.send(start);
                    }
                }
                Event::Accepted(_) => return Ok(()),
                Event::Lost(_, failure) => return Err(failure),
                _ => {}
            }
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, answered)
        .await
        .unwrap_or_else(|_| {
            let message = format!("PutMedia: no answer from {origin}");
            Err(Failure::new(FailureKind::Stalled, message))
        })
}

fn uplink(producer: Option<&Value>) -> Check {
    let name = "uplink";
    let Some(status) = producer else {
        return open(name, "not measured: no producer runs");
    };
    let rate = |name: &str| status[name].as_f64().unwrap_or_default() / 1e6;
    let behind = status["buffer"]["unsent_s"].as_f64().unwrap_or_default();
    let (camera, sent) = (rate("captured_bits_per_s"), rate("sent_bits_per_s"));
    let found =
        format!("{sent:.1} Mbit/s go out, {camera:.1} come from the camera, {behind:.1} s wait");
    if behind > 2.0 && sent < camera {
        bad(name, found, "lower --bitrate, or find a faster uplink")
    } else {
        good(name, found)
    }
}

/// Two groups of pictures have to fit: while one is sent the next needs room.
fn ring(config: &Config, producer: Option<&Value>) -> Check {
    let name = "buffer";
    let running = producer.and_then(|status| status["buffer"]["total_s"].as_f64());
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let bits = config.buffer_bytes as f64 * 8.0;
    let asked = config
        .camera
        .bitrate
        .map(|bitrate| bits / f64::from(bitrate));
    let Some(holds) = running.or(asked) else {
        return open(
            name,
            "how long it lasts is known when a producer runs, or with --bitrate",
        );
    };
    let gop = config
        .camera
        .gop
        .unwrap_or(Duration::from_secs(2))
        .as_secs_f64();
    let found = format!("holds {holds:.1} s; a key frame comes every {gop:.1} s");
    if holds < 2.0 * gop {
        bad(name, found, "give a larger --buffer, or a shorter --gop")
    } else {
        good(name, found)
    }
}

fn memory(config: &Config) -> Check {
    let name = "memory";
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let needs = config.buffer_bytes as u64 / 1024 + PROGRAM_KIB;
    match available {
        None => open(name, "the kernel does not tell how much is free"),
        Some(free) => {
            let found = format!("{} MiB free, {} needed", free / 1024, needs / 1024);
            if free < needs {
                bad(
                    name,
                    found,
                    "give a smaller --buffer, or end something else",
                )
            } else {
                good(name, found)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_mark_and_what_to_do() {
        assert_eq!(good("clock", "right").to_string(), "✓ clock       right");
        assert_eq!(
            bad("clock", "9 s ahead", "set it").to_string(),
            "✗ clock       9 s ahead → set it"
        );
        assert_eq!(open("stream", "?").to_string(), "- stream      ?");
    }

    #[test]
    fn missing_and_forbidden_are_told_apart() {
        let refused = |message: &str| Failure::new(FailureKind::NotPermitted, message);
        let missing = permission(
            "PutMedia",
            &refused("not authorized to perform: x because no identity-based policy allows it"),
        );
        assert!(
            missing.remedy.starts_with("allow kinesisvideo:PutMedia"),
            "{missing}"
        );
        let forbidden = permission(
            "PutMedia",
            &refused(
                "not authorized to perform: x with an explicit deny in a resource-based policy",
            ),
        );
        assert!(forbidden.remedy.contains("Effect Deny"), "{forbidden}");
    }

    #[test]
    fn a_clock_that_is_off_is_told_by_how_much() {
        assert_eq!(clock(Some(-4_000)).verdict, Verdict::Good);
        let check = clock(Some(-90_500));
        assert_eq!(check.verdict, Verdict::Bad);
        assert!(check.found.starts_with("90 s ahead"), "{check}");
    }

    #[test]
    fn one_bad_check_is_a_bad_end() {
        let checks = [good("a", ""), open("b", "")];
        assert_eq!(exit(&checks), Exit::Persisted);
        assert_eq!(exit(&[good("a", ""), bad("b", "", "")]), Exit::Unhealthy);
    }
}
