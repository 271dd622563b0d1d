//! What the local endpoint reads from the network: media, signatures, scenarios. Any bytes, any cut: no panic.

#![no_main]

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use kvs_producer_app::local::media::{Keep, Reader, TimecodeType};
use kvs_producer_app::local::scenario::Scenario;
use kvs_producer_app::local::sigv4::{Credential, Payload, Presented, verify};
use kvs_producer_app::local::{Limits, media};
use libfuzzer_sys::fuzz_target;

const HEADERS: [&str; 5] = [
    "authorization",
    "x-amz-date",
    "x-amz-security-token",
    "host",
    "x-amz-content-sha256",
];

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (kind, cut, bytes) = input;
    match kind % 3 {
        0 => body(usize::from(cut).max(1), bytes),
        1 => signature(bytes),
        _ => drop(Scenario::parse(&String::from_utf8_lossy(bytes))),
    }
});

fn body(cut: usize, bytes: &[u8]) {
    let mut reader = Reader::new(Limits::default(), TimecodeType::Absolute, Keep::Description);
    let mut events: Vec<media::Event> = Vec::new();
    let wall = Duration::from_secs(1_735_787_045);
    for portion in bytes.chunks(cut) {
        if reader
            .push(portion, Instant::now(), wall, &mut events)
            .is_err()
        {
            return;
        }
    }
    let _ = reader.finish(&mut events);
}

fn signature(bytes: &[u8]) {
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let path = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let mut headers = HeaderMap::new();
    for (name, value) in HEADERS.iter().zip(&mut lines) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let (path, query) = path
        .split_once('?')
        .map_or((path.as_str(), None), |(path, query)| (path, Some(query)));
    let request = Presented {
        method: &Method::POST,
        path,
        query,
        headers: &headers,
        payload: Payload::Whole(lines.next().unwrap_or_default()),
    };
    let _ = verify(
        request,
        &[Credential::default(), Credential::temporary()],
        Some("us-west-2"),
        1_735_787_045,
    );
}
