//! What a client and a running producer say to each other: one JSON object a line, in both directions. Pure.
//!
//! ```text
//!   -> {"v":1,"do":"reset","keep_buffer":true}
//!   <- {"v":1,"ok":true,"again":{"fragments":3}}
//!   -> {"v":1,"do":"dance"}
//!   <- {"v":1,"ok":false,"code":"KVS-E602","error":"there is no command \"dance\""}
//! ```
//!
//! Fields are added, never changed or taken away; a client leaves alone what it does not know. A version that the other side
//! does not speak is refused with a line that says so.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tracing::Level;

use crate::codec::FrameRate;
use crate::codes::Code;

/// The version of this protocol.
pub const VERSION: u64 = 1;

/// The longest line of a request, in bytes.
pub const MOST_REQUEST_BYTES: usize = 4 * 1024;

/// The longest line of an answer, in bytes: `status` has about 4000, as Prometheus text four times that.
pub const MOST_ANSWER_BYTES: usize = 256 * 1024;

/// What somebody wants of a running producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// How it is, with all figures.
    Status,
    /// The figures as Prometheus text.
    Metrics,
    /// How full the ring is.
    Buffer,
    /// To end well: send what is held and wait until it is persisted.
    Stop,
    /// To begin anew.
    Reset {
        /// Only the connections: what is held stays, and goes on from the last confirmed fragment.
        keep_buffer: bool,
    },
    /// To end at once.
    Free,
    /// To stop uploading.
    Pause,
    /// To go on with it.
    Resume,
    /// Another log level.
    Log(Level),
    /// Frames for the stream, which follow on the same connection as H.264 or H.265 Annex B.
    Put(Put),
}

/// How frames are put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Put {
    /// As fast as the service takes them, and not at the media's own pace.
    pub fast: bool,
    /// When the first frame was captured, since the Unix epoch; `None`: now.
    pub start: Option<Duration>,
    /// Frames a second; `None`: what the media says.
    pub fps: Option<FrameRate>,
}

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For [`crate::codes`].
    pub code: Code,
    /// In a line.
    pub message: String,
}

impl Refusal {
    /// A refusal for this reason.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// What came of a request: the answer's fields.
pub type Answer = Result<Map<String, Value>, Refusal>;

impl Request {
    /// The request on a line of its own.
    pub fn line(&self) -> String {
        let mut fields = json!({ "v": VERSION, "do": self.name() });
        match self {
            Self::Reset { keep_buffer } => fields["keep_buffer"] = (*keep_buffer).into(),
            Self::Log(level) => fields["level"] = level_name(*level).into(),
            Self::Put(put) => {
                fields["fast"] = put.fast.into();
                let start = put.start.map(|start| start.as_millis());
                fields["start_ms"] = start.and_then(|ms| u64::try_from(ms).ok()).into();
                fields["fps"] = put.fps.map(|fps| fps.to_string()).into();
            }
            _ => {}
        }
        format!("{fields}\n")
    }

    /// Reads a line.
    ///
    /// # Errors
    /// When it is no request that this version knows.
    pub fn parse(line: &[u8]) -> Result<Self, Refusal> {
        let malformed = |what: &str| Refusal::new(Code::MALFORMED_REQUEST, what);
        let fields: Value = serde_json::from_slice(line)
            .map_err(|error| malformed(&format!("the request is no JSON object: {error}")))?;
        let Value::Object(fields) = fields else {
            return Err(malformed("the request is no JSON object"));
        };
        match fields.get("v").map(Value::as_u64) {
            Some(Some(VERSION)) => {}
            None => return Err(malformed("the request has no version \"v\"")),
            Some(other) => {
                let other = other.map_or("another one".to_owned(), |version| version.to_string());
                return Err(Refusal::new(
                    Code::OTHER_VERSION,
                    format!(
                        "this producer speaks version {VERSION} of the control protocol, the request is of {other}"
                    ),
                ));
            }
        }
        let flag = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(malformed(&format!("{name:?} is true or false"))),
        };
        let number = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(malformed(&format!("{name:?} is a whole number"))),
            },
        };
        let Some(name) = fields.get("do").and_then(Value::as_str) else {
            return Err(malformed("the request does not say what to do: \"do\""));
        };
        Ok(match name {
            "status" => Self::Status,
            "metrics" => Self::Metrics,
            "buffer" => Self::Buffer,
            "stop" => Self::Stop,
            "reset" => Self::Reset {
                keep_buffer: flag("keep_buffer")?,
            },
            "free" => Self::Free,
            "pause" => Self::Pause,
            "resume" => Self::Resume,
            "log" => {
                let level = fields.get("level").and_then(Value::as_str);
                let level = level.and_then(|level| level_of(level).ok());
                Self::Log(
                    level.ok_or_else(|| {
                        malformed("\"level\" is error, warn, info, debug or trace")
                    })?,
                )
            }
            "put" => Self::Put(Put {
                fast: flag("fast")?,
                start: number("start_ms")?.map(Duration::from_millis),
                fps: match fields.get("fps") {
                    None | Some(Value::Null) => None,
                    Some(value) => {
                        let fps = value.as_str().and_then(|fps| fps.parse().ok());
                        Some(fps.ok_or_else(|| malformed("\"fps\" is a rate like \"30000/1001\""))?)
                    }
                },
            }),
            // What it was called is shown in part: it may be anything.
            other => {
                let shown: String = other.chars().take(40).collect();
                return Err(Refusal::new(
                    Code::UNKNOWN_COMMAND,
                    format!("there is no command {shown:?}"),
                ));
            }
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Metrics => "metrics",
            Self::Buffer => "buffer",
            Self::Stop => "stop",
            Self::Reset { .. } => "reset",
            Self::Free => "free",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Log(_) => "log",
            Self::Put(_) => "put",
        }
    }
}

/// An answer on a line of its own.
pub fn answer_line(answer: &Answer) -> String {
    let fields = match answer {
        Ok(fields) => {
            let mut fields = fields.clone();
            fields.insert("v".into(), VERSION.into());
            fields.insert("ok".into(), true.into());
            fields.into()
        }
        Err(refusal) => json!({
            "v": VERSION,
            "ok": false,
            "code": refusal.code.to_string(),
            "error": refusal.message,
        }),
    };
    format!("{fields}\n")
}

/// Reads an answer's line. The outer error is for a line that is none.
///
/// # Errors
/// What is wrong with the line.
pub fn parse_answer(line: &[u8]) -> Result<Answer, &'static str> {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(line) else {
        return Err("the answer is no JSON object");
    };
    match fields.get("ok").and_then(Value::as_bool) {
        Some(true) => {
            fields.remove("v");
            fields.remove("ok");
            Ok(Ok(fields))
        }
        Some(false) => {
            let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
            // A code that a later version knows.
            let code = Code::of(text("code")).unwrap_or(Code::FAULT);
            Ok(Err(Refusal::new(code, text("error"))))
        }
        None => Err("the answer does not say \"ok\""),
    }
}

/// A log level's name.
pub fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// The log level of this name.
///
/// # Errors
/// When there is none, a line that lists them.
pub fn level_of(name: &str) -> Result<Level, &'static str> {
    [
        Level::ERROR,
        Level::WARN,
        Level::INFO,
        Level::DEBUG,
        Level::TRACE,
    ]
    .into_iter()
    .find(|level| level_name(*level) == name)
    .ok_or("a log level is error, warn, info, debug or trace")
}

/// Bytes that come in pieces, as lines of bounded length.
#[derive(Debug)]
pub struct Lines {
    held: Vec<u8>,
    most: usize,
}

/// A line is longer than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {0} bytes")]
pub struct TooLong(pub usize);

impl Lines {
    /// For lines of at most so many bytes.
    pub fn new(most: usize) -> Self {
        let held = Vec::new();
        Self { held, most }
    }

    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    ///
    /// # Errors
    /// When it is too long, whether its end has come or not.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let end = memchr::memchr(b'\n', &self.held);
        if end.unwrap_or(self.held.len()) > self.most {
            return Err(TooLong(self.most));
        }
        let Some(end) = end else { return Ok(None) };
        let rest = self.held.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.held, rest);
        line.pop();
        Ok(Some(line))
    }

    /// What came behind the last whole line.
    pub fn into_rest(self) -> Vec<u8> {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Request> {
        vec![
            Request::Status,
            Request::Metrics,
            Request::Buffer,
            Request::Stop,
            Request::Reset { keep_buffer: true },
            Request::Reset { keep_buffer: false },
            Request::Free,
            Request::Pause,
            Request::Resume,
            Request::Log(Level::DEBUG),
            Request::Put(Put {
                fast: true,
                start: Some(Duration::from_millis(1_700_000_000_123)),
                fps: FrameRate::new(30_000, 1001),
            }),
            Request::Put(Put::default()),
        ]
    }

    #[test]
    fn what_is_written_is_read_again() {
        for request in all() {
            let line = request.line();
            let line = line.strip_suffix('\n').expect("a line");
            assert!(!line.contains('\n') && line.len() < MOST_REQUEST_BYTES);
            assert_eq!(Request::parse(line.as_bytes()), Ok(request));
        }
    }

    #[test]
    fn the_lines_are_these() {
        let reset = Request::Reset { keep_buffer: true };
        assert_eq!(
            reset.line(),
            "{\"do\":\"reset\",\"keep_buffer\":true,\"v\":1}\n"
        );
        let fields = Map::from_iter([("paused".to_owned(), true.into())]);
        assert_eq!(
            answer_line(&Ok(fields)),
            "{\"ok\":true,\"paused\":true,\"v\":1}\n"
        );
        let refusal = Refusal::new(Code::UNKNOWN_COMMAND, "there is no command \"x\"");
        assert_eq!(
            answer_line(&Err(refusal)),
            "{\"code\":\"KVS-E602\",\"error\":\"there is no command \\\"x\\\"\",\"ok\":false,\"v\":1}\n"
        );
    }

    #[test]
    fn garbage_is_refused_with_a_word() {
        for (line, code, words) in [
            (&b"\xff\xfe"[..], Code::MALFORMED_REQUEST, "no JSON"),
            (b"[1]", Code::MALFORMED_REQUEST, "no JSON object"),
            (b"{}", Code::MALFORMED_REQUEST, "no version"),
            (b"{\"v\":2,\"do\":\"status\"}", Code::OTHER_VERSION, "of 2"),
            (
                b"{\"v\":\"1\",\"do\":\"status\"}",
                Code::OTHER_VERSION,
                "another",
            ),
            (b"{\"v\":1}", Code::MALFORMED_REQUEST, "what to do"),
            (
                b"{\"v\":1,\"do\":\"dance\"}",
                Code::UNKNOWN_COMMAND,
                "\"dance\"",
            ),
            (
                b"{\"v\":1,\"do\":\"log\",\"level\":\"loud\"}",
                Code::MALFORMED_REQUEST,
                "level",
            ),
            (
                b"{\"v\":1,\"do\":\"reset\",\"keep_buffer\":1}",
                Code::MALFORMED_REQUEST,
                "keep_buffer",
            ),
            (
                b"{\"v\":1,\"do\":\"put\",\"start_ms\":-1}",
                Code::MALFORMED_REQUEST,
                "start_ms",
            ),
        ] {
            let refusal = Request::parse(line).expect_err("no request");
            assert_eq!(refusal.code, code, "{refusal:?}");
            assert!(refusal.message.contains(words), "{refusal:?}");
        }
        let long = format!("{{\"v\":1,\"do\":\"{}\"}}", "x".repeat(3000));
        let refusal = Request::parse(long.as_bytes()).expect_err("no request");
        assert!(refusal.message.len() < 100);
    }

    #[test]
    fn deep_nesting_is_refused_and_overflows_no_stack() {
        let deep = "[".repeat(MOST_REQUEST_BYTES);
        assert!(Request::parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn answers_are_read_again_and_garbage_is_none() {
        let fields = Map::from_iter([("again".to_owned(), json!({ "fragments": 3 }))]);
        let line = answer_line(&Ok(fields.clone()));
        assert_eq!(parse_answer(line.trim_end().as_bytes()), Ok(Ok(fields)));
        let refusal = Refusal::new(Code::MALFORMED_REQUEST, "no");
        let line = answer_line(&Err(refusal.clone()));
        assert_eq!(parse_answer(line.as_bytes()), Ok(Err(refusal)));
        assert!(parse_answer(b"{}").is_err() && parse_answer(b"HTTP/1.1 200").is_err());
    }

    #[test]
    fn lines_come_out_however_they_are_cut() {
        let text = b"one\n\ntwo\nrest";
        for cut in 1..text.len() {
            let mut lines = Lines::new(3);
            let mut got = Vec::new();
            for piece in text.chunks(cut) {
                lines.push(piece);
                while let Ok(Some(line)) = lines.next_line() {
                    got.push(line);
                }
            }
            assert_eq!(got, [&b"one"[..], b"", b"two"], "cut {cut}");
            assert_eq!(lines.next_line(), Err(TooLong(3)));
            assert_eq!(lines.into_rest(), b"rest");
        }
    }

    #[test]
    fn levels_have_their_names() {
        for level in ["error", "warn", "info", "debug", "trace"] {
            assert_eq!(level_of(level).map(level_name), Ok(level));
        }
        assert!(level_of("INFO").is_err() && level_of("").is_err());
    }
}
