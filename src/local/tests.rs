//! The endpoint over real sockets, with a client that writes HTTP by hand.

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

use super::acks::{AckError, EventType, Treatment};
use super::api::ApiError;
use super::samples::*;
use super::scenario::{Action, Break, Nth, Scenario, Trigger};
use super::sigv4::{Credential, Payload, Presented, authorize};
use super::view::{Closed, History};
use super::{Durations, Endpoint, Limits, Options, date};
use crate::clock::Clock;

const T0: u64 = 1_735_787_045_007;

/// Far more than anything here takes; a hang becomes a failure.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, future)
        .await
        .expect("it takes too long")
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A client with credentials and a clock.
#[derive(Clone)]
struct Client {
    address: SocketAddr,
    host: String,
    credential: Credential,
    seconds_ahead: i64,
    tls: Option<Arc<rustls::ClientConfig>>,
}

/// The head of an answer.
#[derive(Debug)]
struct Head {
    status: u16,
    headers: HeaderMap,
}

impl Head {
    fn exception(&self) -> &str {
        let kind = self.headers["x-amzn-errortype"].to_str().unwrap();
        kind.split(':').next().unwrap()
    }
}

impl Client {
    fn of(endpoint: &Endpoint) -> Self {
        let url = endpoint.url();
        let (_, address) = url.split_once("://").unwrap();
        Self {
            address: address.parse().unwrap(),
            host: address.to_owned(),
            credential: Credential::default(),
            seconds_ahead: 0,
            tls: None,
        }
    }

    async fn connect(&self) -> BufStream<Box<dyn Stream>> {
        let socket = TcpStream::connect(self.address).await.unwrap();
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(socket),
            Some(config) => {
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
                let name = ServerName::try_from("localhost").unwrap();
                Box::new(connector.connect(name, socket).await.unwrap())
            }
        };
        BufStream::new(stream)
    }

    /// The head of a request, signed over all its headers but the token.
    fn head(&self, path: &str, payload: Payload<'_>, more: &[(&str, &str)]) -> String {
        let now = i64::try_from(Clock.wall().as_secs()).unwrap() + self.seconds_ahead;
        let mut headers = HeaderMap::new();
        let mut set = |name: &str, value: &str| {
            let name = HeaderName::try_from(name).unwrap();
            headers.insert(name, HeaderValue::try_from(value).unwrap());
        };
        set("host", &self.host);
        set("x-amz-date", &date::amz(now));
        for (name, value) in more {
            set(name, value);
        }
        let mut signed: Vec<&str> = vec!["host", "x-amz-date"];
        signed.extend(
            more.iter()
                .map(|(name, _)| *name)
                .filter(|n| n.starts_with("x-amz")),
        );
        signed.sort_unstable();
        let request = Presented {
            method: &Method::POST,
            path,
            query: None,
            headers: &headers,
            payload,
        };
        let authorization = authorize(request, &self.credential, "eu-west-1", &signed);
        headers.insert("authorization", authorization.parse().unwrap());
        if let Some(token) = &self.credential.session_token {
            headers.insert("x-amz-security-token", token.parse().unwrap());
        }
        let lines = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()));
        format!("POST {path} HTTP/1.1\r\n{}\r\n", lines.collect::<String>())
    }

    async fn call(&self, operation: &str, body: Value) -> (Head, Value) {
        let mut stream = self.connect().await;
        self.call_on(&mut stream, operation, body).await
    }

    async fn call_on(
        &self,
        stream: &mut BufStream<Box<dyn Stream>>,
        operation: &str,
        body: Value,
    ) -> (Head, Value) {
        let body = body.to_string();
        let path = format!("/{}{}", operation[..1].to_lowercase(), &operation[1..]);
        let length = body.len().to_string();
        let more = [("content-length", length.as_str())];
        let head = self.head(&path, Payload::Whole(body.as_bytes()), &more);
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let head = read_head(stream).await.unwrap();
        let length = head.headers["content-length"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        (head, serde_json::from_slice(&body).unwrap())
    }

    async fn create(&self, name: &str, retention: u64) {
        let body = json!({"StreamName": name, "DataRetentionInHours": retention});
        let (head, answer) = self.call("CreateStream", body).await;
        assert_eq!(head.status, 200, "{answer}");
    }

    async fn put(&self, stream: &str) -> Put {
        self.put_with(&[
            ("x-amzn-stream-name", stream),
            ("x-amzn-fragment-timecode-type", "ABSOLUTE"),
            ("x-amzn-producer-start-timestamp", "1735787045.007"),
            ("x-amzn-fragment-acknowledgment-required", "1"),
        ])
        .await
    }

    async fn put_with(&self, headers: &[(&str, &str)]) -> Put {
        let mut headers = headers.to_vec();
        headers.push(("transfer-encoding", "chunked"));
        let head = self.head("/putMedia", Payload::Endless, &headers);
        let mut stream = self.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        Put {
            stream,
            answered: false,
        }
    }
}

async fn read_head(stream: &mut BufStream<Box<dyn Stream>>) -> Option<Head> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let mut headers = HeaderMap::new();
    loop {
        line.clear();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Some(Head { status, headers });
        };
        headers.insert(
            HeaderName::try_from(name).unwrap(),
            HeaderValue::try_from(value).unwrap(),
        );
    }
}

/// A PutMedia request under way.
struct Put {
    stream: BufStream<Box<dyn Stream>>,
    answered: bool,
}

impl Put {
    /// Sends one chunk; a server that is gone is seen when reading.
    async fn send(&mut self, bytes: &[u8]) {
        let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        let _ = self.stream.write_all(&chunk).await;
        let _ = self.stream.flush().await;
    }

    async fn end(&mut self) {
        let _ = self.stream.write_all(b"0\r\n\r\n").await;
        let _ = self.stream.flush().await;
    }

    async fn head(&mut self) -> Option<Head> {
        self.answered = true;
        soon(read_head(&mut self.stream)).await
    }

    /// The next chunk of the answer; `None` at its proper end, an error when it breaks off.
    async fn chunk(&mut self) -> Result<Option<Vec<u8>>, String> {
        if !self.answered {
            let head = self.head().await.ok_or("no answer")?;
            assert_eq!(head.status, 200);
        }
        soon(async {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line).await;
            if read.map_err(|error| error.kind().to_string())? == 0 {
                return Err("end of file".into());
            }
            let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
            let mut chunk = vec![0; length + 2];
            let read = self.stream.read_exact(&mut chunk).await;
            read.map_err(|error| error.kind().to_string())?;
            chunk.truncate(length);
            Ok((length > 0).then_some(chunk))
        })
        .await
    }

    /// The rest of the answer, and how it broke off if it did.
    async fn rest(&mut self) -> (String, Option<String>) {
        let mut text = Vec::new();
        loop {
            match self.chunk().await {
                Ok(Some(chunk)) => text.extend(chunk),
                Ok(None) => return (String::from_utf8(text).unwrap(), None),
                Err(error) => return (String::from_utf8(text).unwrap(), Some(error)),
            }
        }
    }

    /// The rest of the answer as `EVENT timecode` words.
    async fn acks(&mut self) -> Vec<String> {
        let (text, error) = self.rest().await;
        assert_eq!(error, None, "{text}");
        words(&text)
    }

    /// The next acknowledgement, alone in its chunk.
    async fn ack(&mut self) -> Value {
        let chunk = self.chunk().await.unwrap().expect("an acknowledgement");
        serde_json::from_slice(&chunk).unwrap()
    }
}

fn words(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| {
        let ack: Value = serde_json::from_str(line).unwrap();
        let event = ack["EventType"].as_str().unwrap().to_owned();
        match (&ack["ErrorId"], &ack["FragmentTimecode"]) {
            (Value::Null, Value::Null) => event,
            (Value::Null, timecode) => format!("{event} +{}", timecode.as_u64().unwrap() - T0),
            (id, Value::Null) => format!("{event} {id}"),
            (id, timecode) => format!("{event} {id} +{}", timecode.as_u64().unwrap() - T0),
        }
    });
    lines.collect()
}

/// What a fragment at `offset` is answered with.
fn all(offset: u64) -> Vec<String> {
    ["BUFFERING", "RECEIVED", "PERSISTED"]
        .map(|event| format!("{event} +{offset}"))
        .to_vec()
}

fn two_fragments() -> Vec<u8> {
    [
        header(),
        fragment(T0),
        fragment(T0 + 1000),
        end_of_fragment(),
    ]
    .concat()
}

/// An endpoint with a stream called `camera`.
async fn endpoint(options: Options) -> (Endpoint, Client) {
    let endpoint = Endpoint::start(options).await.unwrap();
    let client = Client::of(&endpoint);
    soon(client.create("camera", 24)).await;
    (endpoint, client)
}

async fn with_rules(rules: impl IntoIterator<Item = (Trigger, Action)>) -> (Endpoint, Client) {
    let scenario = Scenario::of(rules);
    endpoint(Options {
        scenario,
        ..Options::default()
    })
    .await
}

/// Sends two fragments and ends the request.
async fn send_two(client: &Client) -> Put {
    let mut put = client.put("camera").await;
    put.send(&two_fragments()).await;
    put.end().await;
    put
}

#[tokio::test]
async fn two_fragments_are_acknowledged_shown_and_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let (endpoint, client) = endpoint(Options {
        directory: Some(directory.path().to_owned()),
        history: History::Payloads,
        ..Options::default()
    })
    .await;
    let acks = send_two(&client).await.acks().await;
    let mut expected = all(0);
    expected.extend(all(1000));
    assert_eq!(acks, expected);

    let mut view = endpoint.view();
    soon(view.wait_until(|state| {
        state
            .connection(1)
            .is_some_and(|c| c.closed == Some(Closed::Completed))
    }))
    .await;
    {
        let state = view.state();
        let persisted: Vec<_> = state.persisted("camera").collect();
        assert_eq!(persisted.len(), 2);
        assert!(persisted[0].number < persisted[1].number);
        let frame = &persisted[1].frames[1];
        assert_eq!((frame.at_ms, frame.key), (T0 + 1040, false));
        assert_eq!(frame.payload.as_ref().map(bytes::Bytes::len), Some(13));
        let connection = state.connection(1).unwrap();
        assert_eq!(connection.acks.len(), 6);
        assert_eq!(connection.bytes, two_fragments().len() as u64);
        assert_eq!(
            (state.count("PutMedia"), state.count("CreateStream")),
            (1, 1)
        );
    }
    let recording = directory.path().join("camera/20250102T030405.007Z.mkv");
    assert_eq!(fs::read(recording).unwrap(), two_fragments());
}

#[tokio::test]
async fn answer_comes_while_the_request_is_being_sent() {
    let (_endpoint, client) = endpoint(Options::default()).await;
    let mut put = client.put("camera").await;
    let head = put.head().await.unwrap();
    assert_eq!(head.status, 200);
    assert_eq!(head.headers["content-type"], "application/json");
    assert!(head.headers.contains_key("x-amzn-requestid"));
    put.send(&header()).await;
    let whole = fragment(T0);
    let (first, rest) = whole.split_at(20);
    put.send(first).await;
    assert_eq!(put.ack().await["EventType"], "BUFFERING");
    put.send(rest).await;
    put.send(&end_of_fragment()).await;
    assert_eq!(put.ack().await["EventType"], "RECEIVED");
    let persisted = put.ack().await;
    assert_eq!(persisted["EventType"], "PERSISTED");
    assert_eq!(persisted["FragmentNumber"].as_str().unwrap().len(), 47);
    put.end().await;
    assert_eq!(put.chunk().await, Ok(None));
}

#[tokio::test]
async fn chunks_may_be_cut_anywhere() {
    let (endpoint, client) = endpoint(Options::default()).await;
    let body = [header(), fragment(T0), end_of_fragment()].concat();
    for cut in 1..body.len() {
        let mut put = client.put("camera").await;
        put.send(&body[..cut]).await;
        put.send(&body[cut..]).await;
        put.end().await;
        assert_eq!(put.acks().await, all(0), "cut at {cut}");
    }
    let mut put = client.put("camera").await;
    for byte in &body {
        put.send(&[*byte]).await;
    }
    put.end().await;
    assert_eq!(put.acks().await, all(0));
    let view = endpoint.view();
    assert_eq!(
        view.state().persisted("camera").count(),
        1,
        "the others are repetitions"
    );
    let repeated = &view.state().streams["camera"].fragments;
    assert!(repeated[1..].iter().all(|fragment| fragment.duplicate));
}

#[tokio::test]
async fn unmarked_fragment_is_whole_at_the_end_of_the_body_only() {
    let (endpoint, client) = endpoint(Options::default()).await;
    let body = [header(), fragment(T0)].concat();
    let mut put = client.put("camera").await;
    put.send(&body).await;
    assert_eq!(put.ack().await["EventType"], "BUFFERING");
    drop(put);
    let mut view = endpoint.view();
    soon(view.wait_until(|state| state.connections[0].closed == Some(Closed::Lost))).await;
    assert_eq!(view.state().persisted("camera").count(), 0);

    let mut put = client.put("camera").await;
    put.send(&body).await;
    put.end().await;
    assert_eq!(put.acks().await, all(0));
}

#[tokio::test]
async fn interim_answer_to_expect_continue() {
    let (_endpoint, client) = endpoint(Options::default()).await;
    let mut put = client
        .put_with(&[
            ("x-amzn-stream-name", "camera"),
            ("x-amzn-fragment-timecode-type", "ABSOLUTE"),
            ("expect", "100-continue"),
        ])
        .await;
    assert_eq!(put.head().await.unwrap().status, 100);
    assert_eq!(put.head().await.unwrap().status, 200);
    put.send(&two_fragments()).await;
    put.end().await;
    assert_eq!(put.acks().await.len(), 6);
}

#[tokio::test]
async fn without_retention_nothing_is_persisted() {
    let (endpoint, client) = endpoint(Options::default()).await;
    client.create("live", 0).await;
    let mut put = client.put("live").await;
    put.send(&[header(), fragment(T0)].concat()).await;
    put.end().await;
    assert_eq!(put.acks().await, ["BUFFERING +0", "RECEIVED +0"]);
    let view = endpoint.view();
    assert_eq!(view.state().streams["live"].fragments_total, 1);
    assert_eq!(view.state().persisted("live").count(), 0);
}

#[tokio::test]
async fn acknowledgements_can_be_declined() {
    let (_endpoint, client) = endpoint(Options::default()).await;
    let mut put = client
        .put_with(&[
            ("x-amzn-stream-name", "camera"),
            ("x-amzn-fragment-timecode-type", "ABSOLUTE"),
            ("x-amzn-fragment-acknowledgment-required", "0"),
        ])
        .await;
    put.send(&two_fragments()).await;
    put.end().await;
    assert!(put.acks().await.is_empty());
}

#[tokio::test]
async fn relative_timecodes_and_the_stream_s_arn() {
    let (endpoint, client) = endpoint(Options::default()).await;
    let (_, described) = client
        .call("DescribeStream", json!({"StreamName": "camera"}))
        .await;
    let mut put = client
        .put_with(&[
            (
                "x-amzn-stream-arn",
                described["StreamInfo"]["StreamARN"].as_str().unwrap(),
            ),
            ("x-amzn-fragment-timecode-type", "RELATIVE"),
            ("x-amzn-producer-start-timestamp", "1735787045.007"),
        ])
        .await;
    put.send(&[header(), fragment(0)].concat()).await;
    assert_eq!(put.ack().await["FragmentTimecode"], 0);
    put.end().await;
    put.rest().await;
    let view = endpoint.view();
    let state = view.state();
    assert_eq!(
        state.persisted("camera").next().unwrap().frames[0].at_ms,
        T0
    );
}

#[tokio::test]
async fn refusals_of_put_media() {
    let (endpoint, client) = endpoint(Options::default()).await;
    let head = client.put("nobody").await.head().await.unwrap();
    assert_eq!(
        (head.status, head.exception()),
        (404, "ResourceNotFoundException")
    );

    let short = [
        ("x-amzn-stream-name", "camera"),
        ("x-amzn-fragment-timecode-type", "ABSOLUTE"),
        ("x-amzn-producer-start-timestamp", "1735787045.7"),
    ];
    let head = client.put_with(&short).await.head().await.unwrap();
    assert_eq!(
        (head.status, head.exception()),
        (400, "InvalidArgumentException")
    );

    let mut first = client.put("camera").await;
    first.head().await.unwrap();
    let head = client.put("camera").await.head().await.unwrap();
    assert_eq!(
        (head.status, head.exception()),
        (400, "ConnectionLimitExceededException")
    );
    first.end().await;
    assert_eq!(first.chunk().await, Ok(None));
    assert_eq!(client.put("camera").await.head().await.unwrap().status, 200);
    assert_eq!(endpoint.view().state().errors.len(), 3);
}

#[tokio::test]
async fn connection_that_is_ending_makes_room() {
    // Longer than a new connection would wait for the old one.
    let late = Action::Delay(Duration::from_millis(500));
    let last = Trigger::ack(1, 2, EventType::Persisted);
    let (endpoint, client) = with_rules([(last, late)]).await;
    let mut first = client.put("camera").await;
    first.send(&two_fragments()).await;
    first.head().await.unwrap();
    // The second begins before the server can know that the first is at its end.
    let mut second = client.put("camera").await;
    first.end().await;
    assert_eq!(second.head().await.unwrap().status, 200);
    assert_eq!(endpoint.view().state().connections[0].closed, None);
    assert_eq!(first.acks().await.len(), 6);
}

#[tokio::test]
async fn calls_per_second_are_limited_when_asked_for() {
    let limits = Limits {
        calls_per_second: Some(5),
        ..Limits::default()
    };
    let (_endpoint, client) = endpoint(Options {
        limits,
        ..Options::default()
    })
    .await;
    for call in 1..=6 {
        let mut put = client.put("camera").await;
        put.end().await;
        let head = put.head().await.unwrap();
        if call == 6 {
            assert_eq!(head.exception(), "ClientLimitExceededException");
        } else {
            assert_eq!(head.status, 200);
        }
    }
}

#[tokio::test]
async fn who_is_not_allowed_hears_why() {
    let (_endpoint, client) = endpoint(Options::default()).await;
    let with = |credential: Credential, seconds_ahead| Client {
        credential,
        seconds_ahead,
        ..client.clone()
    };
    let unknown = Credential {
        access_key_id: "AKIANOBODY".into(),
        ..Credential::default()
    };
    let wrong = Credential {
        secret_access_key: "wrong".into(),
        ..Credential::default()
    };
    let robbed = Credential {
        session_token: None,
        ..Credential::temporary()
    };
    let temporary = with(Credential::temporary(), 0);
    assert_eq!(temporary.call("ListStreams", json!({})).await.0.status, 200);
    for (credential, ahead, exception) in [
        (robbed, 0, "UnrecognizedClientException"),
        (unknown, 0, "UnrecognizedClientException"),
        (wrong, 0, "InvalidSignatureException"),
        (Credential::expired(), 0, "ExpiredTokenException"),
        (Credential::default(), 1200, "InvalidSignatureException"),
        (Credential::default(), -1200, "InvalidSignatureException"),
    ] {
        let client = with(credential, ahead);
        let (head, answer) = client.call("ListStreams", json!({})).await;
        assert_eq!(
            (head.status, head.exception()),
            (403, exception),
            "{answer}"
        );
        let head = client.put("camera").await.head().await.unwrap();
        assert_eq!((head.status, head.exception()), (403, exception));
    }
}

#[tokio::test]
async fn one_connection_serves_many_calls() {
    let (endpoint, client) = endpoint(Options::default()).await;
    let mut stream = client.connect().await;
    for _ in 0..3 {
        let (head, answer) = client
            .call_on(
                &mut stream,
                "GetDataEndpoint",
                json!({"StreamName": "camera", "APIName": "PUT_MEDIA"}),
            )
            .await;
        assert_eq!(head.status, 200);
        assert_eq!(answer["DataEndpoint"], endpoint.url());
    }
    let (head, answer) = client
        .call("DescribeStream", json!({"StreamName": "x"}))
        .await;
    assert_eq!(
        (head.status, head.exception()),
        (404, "ResourceNotFoundException")
    );
    assert!(answer["Message"].is_string());
    // By another name: the data endpoint is reached the same way.
    let port = client.address.port();
    let by_name = Client {
        host: format!("localhost:{port}"),
        ..client.clone()
    };
    let ask = json!({"StreamName": "camera", "APIName": "PUT_MEDIA"});
    let (_, answer) = by_name.call("GetDataEndpoint", ask).await;
    assert_eq!(answer["DataEndpoint"], format!("http://localhost:{port}"));
    let (head, _) = client.call("FlyAway", json!({})).await;
    assert_eq!(head.exception(), "UnknownOperationException");
    assert_eq!(endpoint.view().state().accepted, 5);
}

#[tokio::test]
async fn broken_rule_ends_the_answer_with_its_error() {
    let (endpoint, client) = endpoint(Options::default()).await;
    let mut put = client.put("camera").await;
    put.send(&[header(), fragment(T0 + 40), fragment(T0 + 10)].concat())
        .await;
    let acks = put.acks().await;
    assert_eq!(acks[..3], all(40));
    assert_eq!(acks[3..], ["BUFFERING +10", "ERROR 4004 +10"]);
    let mut view = endpoint.view();
    soon(view.wait_until(|state| {
        matches!(&state.connections[0].closed,
            Some(Closed::Refused(error, _)) if *error == AckError::TIMECODE_LESSER)
    }))
    .await;
    // Not even the beginning of a fragment.
    let mut put = client.put("camera").await;
    put.send(b"GARBAGE GARBAGE").await;
    assert_eq!(put.acks().await, ["ERROR 4006"]);
    // A start that no clock shows.
    let mut put = client
        .put_with(&[
            ("x-amzn-stream-name", "camera"),
            ("x-amzn-fragment-timecode-type", "RELATIVE"),
            ("x-amzn-producer-start-timestamp", "12.000"),
        ])
        .await;
    assert_eq!(put.acks().await, ["ERROR 4007"]);
}

#[tokio::test]
async fn stream_must_be_there_and_active() {
    let (_endpoint, client) =
        with_rules([(Trigger::Start, Action::Creating(Duration::from_millis(300)))]).await;
    assert_eq!(client.put("camera").await.acks().await, ["ERROR 4008"]);
    tokio::time::sleep(Duration::from_millis(350)).await;
    let mut put = client.put("camera").await;
    put.send(&[header(), fragment(T0)].concat()).await;
    assert_eq!(put.ack().await["EventType"], "BUFFERING");
    let (_, described) = client
        .call("DescribeStream", json!({"StreamName": "camera"}))
        .await;
    let arn = &described["StreamInfo"]["StreamARN"];
    let (head, _) = client.call("DeleteStream", json!({"StreamARN": arn})).await;
    assert_eq!(head.status, 200);
    put.send(&fragment(T0 + 1000)).await;
    let acks = put.acks().await;
    assert_eq!(acks, ["RECEIVED +0", "ERROR 4008 +1000"]);
}

#[tokio::test]
async fn silence_is_met_with_idle_and_then_the_end() {
    let durations = Durations {
        idle_ack: Duration::from_millis(40),
        idle_close: Duration::from_millis(200),
        ..Durations::default()
    };
    let (endpoint, client) = endpoint(Options {
        durations,
        ..Options::default()
    })
    .await;
    let mut put = client.put("camera").await;
    put.send(&[header(), fragment(T0)].concat()).await;
    let acks = put.acks().await;
    assert_eq!(acks[..2], ["BUFFERING +0", "IDLE"]);
    assert!(
        acks.iter().filter(|ack| *ack == "IDLE").count() >= 2,
        "{acks:?}"
    );
    assert_eq!(acks[acks.len() - 1], "IDLE", "it was never closed");
    let mut view = endpoint.view();
    soon(view.wait_until(|state| state.connections[0].closed == Some(Closed::Idle))).await;
    assert_eq!(view.state().persisted("camera").count(), 0);
}

#[tokio::test]
async fn connection_grows_too_old() {
    let age = Action::ConnectionAge(Duration::from_millis(100));
    let (_endpoint, client) = with_rules([(Trigger::Start, age)]).await;
    let mut put = client.put("camera").await;
    put.send(&[header(), fragment(T0)].concat()).await;
    assert_eq!(put.acks().await, ["BUFFERING +0", "ERROR 4003 +0"]);
}

#[tokio::test]
async fn recording_that_fails_is_an_archival_error() {
    let directory = tempfile::tempdir().unwrap();
    let (_endpoint, client) = endpoint(Options {
        directory: Some(directory.path().to_owned()),
        ..Options::default()
    })
    .await;
    fs::write(directory.path().join("camera"), "in the way").unwrap();
    let acks = send_two(&client).await.acks().await;
    assert_eq!(acks, ["BUFFERING +0", "RECEIVED +0", "ERROR 5001 +0"]);
}

#[tokio::test]
async fn unusable_directory_or_address_does_not_start() {
    let missing = Options {
        directory: Some(PathBuf::from("/proc/nowhere")),
        ..Options::default()
    };
    let error = Endpoint::start(missing).await.unwrap_err();
    assert!(crate::chain(&error).to_string().contains("/proc/nowhere"));
    let (endpoint, client) = endpoint(Options::default()).await;
    let taken = Options {
        listen: client.address,
        ..Options::default()
    };
    let error = Endpoint::start(taken).await.unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");
    drop(endpoint);
}

#[tokio::test]
async fn dropping_the_endpoint_ends_its_connections() {
    let (endpoint, client) = endpoint(Options::default()).await;
    let mut put = client.put("camera").await;
    put.send(&header()).await;
    put.head().await.unwrap();
    drop(endpoint);
    assert!(put.chunk().await.is_err());
    assert!(TcpStream::connect(client.address).await.is_err());
}

#[tokio::test]
async fn acknowledgements_are_reshaped() {
    let buffering = |fragment| Trigger::ack(1, fragment, EventType::Buffering);
    let treat = Action::Treat;
    let first = |treatment| [(buffering(1), treat(treatment))];

    let (_endpoint, client) = with_rules(first(Treatment::Withhold)).await;
    let acks = send_two(&client).await.acks().await;
    assert_eq!(acks[..2], ["RECEIVED +0", "PERSISTED +0"]);

    let (_endpoint, client) = with_rules(first(Treatment::Duplicate)).await;
    let acks = send_two(&client).await.acks().await;
    assert_eq!(acks[..3], ["BUFFERING +0", "BUFFERING +0", "RECEIVED +0"]);

    let (_endpoint, client) = with_rules(first(Treatment::Reorder)).await;
    let acks = send_two(&client).await.acks().await;
    assert_eq!(acks[..3], ["RECEIVED +0", "BUFFERING +0", "PERSISTED +0"]);

    // Nothing comes behind the last one, and yet it goes out.
    let last = Trigger::ack(1, 2, EventType::Persisted);
    let (_endpoint, client) = with_rules([(last, treat(Treatment::Reorder))]).await;
    assert_eq!(send_two(&client).await.acks().await.len(), 6);

    let (_endpoint, client) = with_rules(first(Treatment::Split)).await;
    let mut put = send_two(&client).await;
    assert_eq!(put.chunk().await, Ok(Some(b"{".to_vec())));
    assert_eq!(put.chunk().await, Ok(Some(b"\"".to_vec())));

    let (_endpoint, client) = with_rules(first(Treatment::Merge)).await;
    let mut put = send_two(&client).await;
    let chunk = put.chunk().await.unwrap().unwrap();
    assert_eq!(
        words(&String::from_utf8(chunk).unwrap()),
        ["BUFFERING +0", "RECEIVED +0"]
    );

    let delay = Action::Delay(Duration::from_millis(150));
    let (_endpoint, client) = with_rules([(buffering(1), delay)]).await;
    let start = Clock.now();
    let acks = send_two(&client).await.acks().await;
    assert_eq!(acks.len(), 6);
    assert!(start.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn connection_is_cut_after_what_was_acknowledged() {
    for (how, end) in [
        (Break::Cut, "end of file"),
        (Break::Reset, "connection reset"),
    ] {
        let rule = (Trigger::ack(1, 2, EventType::Received), Action::Break(how));
        let (endpoint, client) = with_rules([rule]).await;
        let mut put = client.put("camera").await;
        put.send(&two_fragments()).await;
        let (text, error) = put.rest().await;
        assert_eq!(error.as_deref(), Some(end));
        assert_eq!(
            words(&text),
            [&all(0)[..], &["BUFFERING +1000".into()]].concat()
        );
        let mut view = endpoint.view();
        soon(view.wait_until(|state| state.connections[0].closed == Some(Closed::Broken))).await;
        assert_eq!(view.state().persisted("camera").count(), 1);
        // The next connection is a good one.
        assert_eq!(send_two(&client).await.acks().await.len(), 6);
        assert_eq!(view.state().persisted("camera").count(), 2);
    }
}

#[tokio::test]
async fn persisted_may_be_lost_on_the_way() {
    let rule = (
        Trigger::ack(1, 1, EventType::Persisted),
        Action::Break(Break::Cut),
    );
    let (endpoint, client) = with_rules([rule]).await;
    let (text, _) = send_two(&client).await.rest().await;
    assert_eq!(words(&text), ["BUFFERING +0", "RECEIVED +0"]);
    assert_eq!(endpoint.view().state().persisted("camera").count(), 1);
}

#[tokio::test]
async fn break_after_bytes_is_exact() {
    // One byte short of the first fragment's end.
    let end = [header(), fragment(T0), end_of_fragment()].concat().len() as u64;
    for (bytes, persisted) in [(end - 1, 0), (end, 1)] {
        let rule = (Trigger::bytes(1, bytes), Action::Break(Break::Reset));
        let (endpoint, client) = with_rules([rule]).await;
        let mut put = client.put("camera").await;
        put.send(&[header(), fragment(T0), end_of_fragment()].concat())
            .await;
        put.rest().await;
        let mut view = endpoint.view();
        soon(view.wait_until(|state| state.connections[0].closed.is_some())).await;
        assert_eq!(view.state().persisted("camera").count(), persisted);
        assert_eq!(view.state().connections[0].bytes, bytes);
    }
}

#[tokio::test]
async fn stalled_connection_takes_nothing_and_frees_the_stream() {
    let rule = (
        Trigger::ack(1, 1, EventType::Received),
        Action::Break(Break::Stall),
    );
    let (endpoint, client) = with_rules([rule]).await;
    let mut put = client.put("camera").await;
    put.send(&two_fragments()).await;
    assert_eq!(put.ack().await["EventType"], "BUFFERING");
    let silence = tokio::time::timeout(Duration::from_millis(100), put.stream.read_u8()).await;
    assert!(silence.is_err(), "not even an end");
    // What is sent fills the buffers of the kernel, and then stays.
    let flood = async {
        for _ in 0..1000 {
            put.send(&vec![0; 64 << 10]).await;
        }
    };
    let flooded = tokio::time::timeout(Duration::from_millis(300), flood).await;
    assert!(flooded.is_err(), "64 MB went somewhere");
    assert_eq!(send_two(&client).await.acks().await.len(), 6);
    let view = endpoint.view();
    assert_eq!(view.state().connections[0].closed, Some(Closed::Broken));
}

#[tokio::test]
async fn black_hole_reads_all_and_says_nothing() {
    let rule = (
        Trigger::ack(1, 2, EventType::Buffering),
        Action::Break(Break::BlackHole),
    );
    let (endpoint, client) = with_rules([rule]).await;
    let mut put = client.put("camera").await;
    put.send(&two_fragments()).await;
    for _ in 0..200 {
        put.send(&vec![0; 64 << 10]).await;
    }
    let mut view = endpoint.view();
    soon(view.wait_until(|state| state.connections[0].bytes > 200 * (64 << 10))).await;
    put.end().await;
    assert_eq!(put.acks().await, all(0));
    assert_eq!(view.state().persisted("camera").count(), 1);
}

#[tokio::test]
async fn errors_on_demand() {
    let error = |status: u16, exception: &str| ApiError {
        status: http::StatusCode::from_u16(status).unwrap(),
        exception: exception.into(),
        message: "as told".into(),
    };
    let (_endpoint, client) = with_rules([
        (
            Trigger::call("DescribeStream", Nth::Only(2)),
            Action::Refuse(error(503, "ServiceUnavailable")),
        ),
        (
            Trigger::call("PutMedia", Nth::Only(1)),
            Action::Refuse(error(401, "NotAuthorizedException")),
        ),
        (
            Trigger::bytes(1, 400),
            Action::Refuse(error(403, "AccessDeniedException")),
        ),
        (
            Trigger::ack(2, 1, EventType::Received),
            Action::ErrorAck(AckError::known(4500).unwrap()),
        ),
    ])
    .await;
    let describe = || client.call("DescribeStream", json!({"StreamName": "camera"}));
    assert_eq!(describe().await.0.status, 200);
    let (head, answer) = describe().await;
    assert_eq!((head.status, head.exception()), (503, "ServiceUnavailable"));
    assert_eq!(answer["Message"], "as told");
    assert_eq!(describe().await.0.status, 200);

    let head = client.put("camera").await.head().await.unwrap();
    assert_eq!(
        (head.status, head.exception()),
        (401, "NotAuthorizedException")
    );

    // In mid-stream: the head waits for 400 bytes.
    let mut put = client.put("camera").await;
    put.send(&header()).await;
    let early = tokio::time::timeout(Duration::from_millis(50), read_head(&mut put.stream)).await;
    assert!(early.is_err());
    put.send(&fragment(T0)).await;
    put.send(&fragment(T0 + 1000)).await;
    let head = put.head().await.unwrap();
    assert_eq!(
        (head.status, head.exception()),
        (403, "AccessDeniedException")
    );

    let acks = send_two(&client).await.acks().await;
    assert_eq!(acks, ["BUFFERING +0", "ERROR 4500 +0"]);
}

#[tokio::test]
async fn calls_are_delayed_and_cut() {
    let delay = Duration::from_millis(120);
    let (_endpoint, client) = with_rules([
        (
            Trigger::call("ListStreams", Nth::Only(1)),
            Action::Delay(delay),
        ),
        (
            Trigger::call("ListStreams", Nth::Only(2)),
            Action::Break(Break::Reset),
        ),
        (
            Trigger::call("ListStreams", Nth::Only(3)),
            Action::Break(Break::Stall),
        ),
        (Trigger::Accept(Nth::Only(5)), Action::Break(Break::Reset)),
    ])
    .await;
    let start = Clock.now();
    assert_eq!(client.call("ListStreams", json!({})).await.0.status, 200);
    assert!(start.elapsed() >= delay);

    let head = client.head(
        "/listStreams",
        Payload::Whole(b"{}"),
        &[("content-length", "2")],
    );
    let send = async || {
        let mut stream = client.connect().await;
        stream
            .write_all(format!("{head}{{}}").as_bytes())
            .await
            .unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await
    };
    let reset = soon(send()).await.unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    let stalled = tokio::time::timeout(Duration::from_millis(100), send()).await;
    assert!(stalled.is_err());

    let mut refused = TcpStream::connect(client.address).await.unwrap();
    let error = soon(refused.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn server_goes_away_and_comes_back() {
    let length = Duration::from_millis(300);
    let (endpoint, client) = with_rules([(Trigger::ack(1, 2, None), Action::Outage(length))]).await;
    let mut put = client.put("camera").await;
    put.send(&two_fragments()).await;
    let (text, error) = put.rest().await;
    assert_eq!(words(&text), all(0));
    assert!(error.is_some());
    assert!(TcpStream::connect(client.address).await.is_err());
    let back = async {
        while TcpStream::connect(client.address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(back).await;
    assert_eq!(send_two(&client).await.acks().await.len(), 6);
    let view = endpoint.view();
    assert_eq!(view.state().connections[0].closed, Some(Closed::Lost));
}

#[tokio::test]
async fn clock_of_the_server_can_be_wrong() {
    let (endpoint, client) = endpoint(Options::default()).await;
    let skew = [(Trigger::Start, Action::ClockSkew(-3600))];
    endpoint.follow(Scenario::of(skew)).unwrap();
    let (head, _) = client.call("ListStreams", json!({})).await;
    assert_eq!(head.exception(), "InvalidSignatureException");
    let told = head.headers["date"].to_str().unwrap();
    let told =
        aws_smithy_types::DateTime::from_str(told, aws_smithy_types::date_time::Format::HttpDate);
    let now = i64::try_from(Clock.wall().as_secs()).unwrap();
    assert!((told.unwrap().secs() - (now - 3600)).abs() <= 2);
    let behind = Client {
        seconds_ahead: -3600,
        ..client.clone()
    };
    assert_eq!(behind.call("ListStreams", json!({})).await.0.status, 200);
    endpoint.follow(Scenario::default()).unwrap();
    assert_eq!(client.call("ListStreams", json!({})).await.0.status, 200);
}

#[tokio::test]
async fn tls_works_and_breaks_like_plain() {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let certificate = made.cert.der().clone();
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let reset = (
        Trigger::ack(1, 2, EventType::Persisted),
        Action::Break(Break::Reset),
    );
    let endpoint = Endpoint::start(Options {
        tls: Some(Arc::new(server)),
        scenario: Scenario::of([reset]),
        ..Options::default()
    })
    .await
    .unwrap();
    assert!(endpoint.url().starts_with("https://127.0.0.1:"));
    let client = Client {
        tls: Some(Arc::new(config)),
        ..Client::of(&endpoint)
    };
    client.create("camera", 24).await;
    let mut put = client.put("camera").await;
    put.send(&two_fragments()).await;
    let (text, error) = put.rest().await;
    assert_eq!(words(&text).len(), 5);
    assert_eq!(error.as_deref(), Some("connection reset"));
    assert_eq!(send_two(&client).await.acks().await.len(), 6);
}
