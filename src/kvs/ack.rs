//! The service's acknowledgements: bytes of the response body to [`Ack`]s, however they are cut.
//!
//! One JSON object for each, with nothing or white space between them. A proxy may split or merge them.

use serde_json::Value;

use crate::frame::Timecode;

/// The longest acknowledgement that is accepted, in bytes. Real ones have some 150.
pub const MAX_ACK_BYTES: usize = 4096;

/// What the service says of a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AckKind {
    /// Its first bytes have arrived.
    Buffering,
    /// All its bytes have arrived, in the service's memory.
    Received,
    /// It is stored.
    Persisted,
    /// The service waits for data.
    Idle,
    /// It is not accepted, and the connection is at its end.
    Error {
        /// ErrorId; 0 when it is missing.
        id: u32,
        /// ErrorCode, the name of the id; empty when it is missing.
        code: String,
    },
}

/// One acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// What it says.
    pub kind: AckKind,
    /// Which fragment; missing in IDLE and in some errors.
    pub timecode: Option<Timecode>,
    /// The service's own number of the fragment: some 47 decimal digits.
    pub number: Option<String>,
}

/// Why bytes were not taken for an acknowledgement. The parser has skipped them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The object is not JSON, or is no acknowledgement.
    #[error("the service sent an acknowledgement that cannot be read ({reason}): {text}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
        /// Its beginning, made printable.
        text: String,
    },
    /// The object does not end.
    #[error("the service sent an acknowledgement of more than {MAX_ACK_BYTES} bytes")]
    TooLong,
    /// Something else than an object.
    #[error("the service sent something between its acknowledgements: {0}")]
    Stray(String),
}

/// Finds acknowledgements in a stream of bytes.
#[derive(Debug, Default)]
pub struct AckParser {
    object: Vec<u8>,
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The object was too long; its end is awaited.
    skipping: bool,
    /// Bytes outside any object, collected to be reported once.
    stray: Vec<u8>,
}

impl AckParser {
    /// Takes the next bytes and calls `found` for each acknowledgement that they end.
    pub fn push(&mut self, bytes: &[u8], mut found: impl FnMut(Result<Ack, Error>)) {
        for &byte in bytes {
            if self.depth == 0 {
                self.between(byte, &mut found);
            } else {
                self.inside(byte, &mut found);
            }
        }
    }

    fn between(&mut self, byte: u8, found: &mut impl FnMut(Result<Ack, Error>)) {
        let blank = byte.is_ascii_whitespace();
        if !blank && byte != b'{' {
            if self.stray.len() < 40 {
                self.stray.push(byte);
            }
            return;
        }
        if !self.stray.is_empty() {
            found(Err(Error::Stray(printable(&self.stray))));
            self.stray.clear();
        }
        if byte == b'{' {
            self.depth = 1;
            self.object.push(byte);
        }
    }

    fn inside(&mut self, byte: u8, found: &mut impl FnMut(Result<Ack, Error>)) {
        if self.object.len() < MAX_ACK_BYTES {
            self.object.push(byte);
        } else {
            self.skipping = true;
        }
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' => self.depth = self.depth.saturating_add(1),
            b'}' => self.depth -= 1,
            _ => {}
        }
        if self.depth == 0 {
            found(if self.skipping {
                Err(Error::TooLong)
            } else {
                read(&self.object)
            });
            self.object.clear();
            self.skipping = false;
        }
    }
}

fn read(object: &[u8]) -> Result<Ack, Error> {
    let malformed = |reason: String| Error::Malformed {
        reason,
        text: printable(object),
    };
    let value: Value =
        serde_json::from_slice(object).map_err(|error| malformed(error.to_string()))?;
    let event = value["EventType"]
        .as_str()
        .ok_or_else(|| malformed("no EventType".into()))?;
    let kind = match event {
        "BUFFERING" => AckKind::Buffering,
        "RECEIVED" => AckKind::Received,
        "PERSISTED" => AckKind::Persisted,
        "IDLE" => AckKind::Idle,
        "ERROR" => AckKind::Error {
            id: value["ErrorId"]
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .unwrap_or(0),
            code: value["ErrorCode"].as_str().unwrap_or_default().to_owned(),
        },
        other => return Err(malformed(format!("EventType {other:?}"))),
    };
    let timecode = value["FragmentTimecode"].as_u64().map(Timecode);
    if timecode.is_none() && !matches!(kind, AckKind::Idle | AckKind::Error { .. }) {
        return Err(malformed("no FragmentTimecode".into()));
    }
    let number = value["FragmentNumber"].as_str().map(str::to_owned);
    Ok(Ack {
        kind,
        timecode,
        number,
    })
}

fn printable(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(200)];
    shown.escape_ascii().to_string().replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As logged from the service.
    const PERSISTED: &str = r#"{"EventType":"PERSISTED","FragmentTimecode":1663277247152,"FragmentNumber":"91343852333181432511524306419788296366724229586"}"#;
    const ERROR: &str = r#"{"EventType":"ERROR","FragmentTimecode":0,"FragmentNumber":"91343852333181571046918222741096071001568090649","ErrorCode":"FRAGMENT_TIMECODE_LESSER_THAN_PREVIOUS","ErrorId":4004}"#;

    fn parse(cuts: &[&[u8]]) -> Vec<Result<Ack, Error>> {
        let mut parser = AckParser::default();
        let mut all = Vec::new();
        for bytes in cuts {
            parser.push(bytes, |ack| all.push(ack));
        }
        all
    }

    fn ack(kind: AckKind, timecode: u64, number: &str) -> Ack {
        Ack {
            kind,
            timecode: Some(Timecode(timecode)),
            number: Some(number.into()),
        }
    }

    #[test]
    fn real_acknowledgements_are_read() {
        let both = format!("{PERSISTED}\r\n{ERROR}");
        let code = "FRAGMENT_TIMECODE_LESSER_THAN_PREVIOUS".into();
        assert_eq!(
            parse(&[both.as_bytes()]),
            [
                Ok(ack(
                    AckKind::Persisted,
                    1_663_277_247_152,
                    "91343852333181432511524306419788296366724229586"
                )),
                Ok(ack(
                    AckKind::Error { id: 4004, code },
                    0,
                    "91343852333181571046918222741096071001568090649"
                )),
            ]
        );
    }

    #[test]
    fn braces_and_quotes_in_strings_and_unknown_keys_do_not_confuse() {
        let text = r#"{"Note":"a } \" { b","Nested":{"x":[{}]},"EventType":"IDLE"}"#;
        assert_eq!(
            parse(&[text.as_bytes()]),
            [Ok(Ack {
                kind: AckKind::Idle,
                timecode: None,
                number: None
            })]
        );
    }

    #[test]
    fn after_every_kind_of_error_the_next_acknowledgement_is_read() {
        let long = format!("{{\"x\":\"{}\"}}", "y".repeat(2 * MAX_ACK_BYTES));
        for bad in [
            "{\"EventType\":\"PERSISTED\"}",
            "{\"EventType\":\"LATER\",\"FragmentTimecode\":1}",
            "{\"EventType\":}",
            "{}",
            "HTTP/1.1 ",
            &long,
        ] {
            let text = format!("{bad}{PERSISTED}");
            let all = parse(&[text.as_bytes()]);
            assert_eq!(all.len(), 2, "{bad:.40}: {all:?}");
            assert!(all[0].is_err() && all[1].is_ok(), "{bad:.40}: {all:?}");
        }
    }

    #[test]
    fn an_error_without_id_or_timecode_is_still_an_error() {
        let text = br#"{"EventType":"ERROR"}"#;
        let kind = AckKind::Error {
            id: 0,
            code: String::new(),
        };
        assert_eq!(
            parse(&[text]),
            [Ok(Ack {
                kind,
                timecode: None,
                number: None
            })]
        );
    }

    proptest! {
        #[test]
        fn the_cut_does_not_matter(cuts in proptest::collection::vec(0_usize..400, 0..12)) {
            let text = format!("{PERSISTED}\n {ERROR}{{\"EventType\":\"IDLE\"}}{PERSISTED}");
            let whole = parse(&[text.as_bytes()]);
            prop_assert_eq!(whole.len(), 4);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let parts: Vec<_> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(parse(&parts), whole);
        }

        #[test]
        fn any_bytes_are_survived_with_bounded_memory(bytes in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            let mut parser = AckParser::default();
            parser.push(&bytes, |_| {});
            prop_assert!(parser.object.capacity() <= 2 * MAX_ACK_BYTES && parser.stray.len() <= 40);
        }
    }
}
