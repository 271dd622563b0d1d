//! What a failure means: the service's error names and ERROR acknowledgements to what to do about them.
//!
//! The tables follow the API reference (common errors, the errors of each operation, PutMedia's ERROR acknowledgements).

use std::time::Duration;

use crate::codes::Code;

/// What went wrong, as far as it decides what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// No name, no route, refused, reset, timed out, cut.
    Network,
    /// The server took no bytes, or sent no answer or acknowledgement, for too long.
    Stalled,
    /// The server's certificate is not trusted, expired, or of another name.
    Untrusted,
    /// No provider has credentials.
    NoCredentials,
    /// The service does not know or no longer accepts the credentials.
    BadCredentials,
    /// The credentials are good and their policy does not allow the call.
    NotPermitted,
    /// The signature's date is too far off the service's clock.
    Clock,
    /// There is no such stream.
    NotFound,
    /// The stream is there and not ACTIVE.
    NotActive,
    /// Too many calls.
    Throttled,
    /// Another PutMedia of the stream is open: another producer's, or our own that the service has not seen end.
    ConnectionLimit,
    /// The endpoint is not this stream's.
    WrongEndpoint,
    /// The service's own fault.
    Service,
    /// The account has all the streams it may have.
    StreamLimit,
    /// The service took the fragment for bad: it was skipped.
    FragmentRefused,
    /// The stream's KMS key cannot be used.
    Key,
    /// The service finds the request itself wrong: settings, or a fault of this program.
    Invalid,
}

/// How soon to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pace {
    /// At once, then with doubling waits.
    Soon,
    /// Only somebody's action helps: slowly, for ever.
    Slow,
}

impl FailureKind {
    /// All of them, in the order of the metrics.
    pub const ALL: [Self; 17] = [
        Self::Network,
        Self::Stalled,
        Self::Untrusted,
        Self::NoCredentials,
        Self::BadCredentials,
        Self::NotPermitted,
        Self::Clock,
        Self::NotFound,
        Self::NotActive,
        Self::Throttled,
        Self::ConnectionLimit,
        Self::WrongEndpoint,
        Self::Service,
        Self::StreamLimit,
        Self::FragmentRefused,
        Self::Key,
        Self::Invalid,
    ];

    /// Its label in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Stalled => "stalled",
            Self::Untrusted => "untrusted",
            Self::NoCredentials => "no_credentials",
            Self::BadCredentials => "bad_credentials",
            Self::NotPermitted => "not_permitted",
            Self::Clock => "clock",
            Self::NotFound => "not_found",
            Self::NotActive => "not_active",
            Self::Throttled => "throttled",
            Self::ConnectionLimit => "connection_limit",
            Self::WrongEndpoint => "wrong_endpoint",
            Self::Service => "service",
            Self::StreamLimit => "stream_limit",
            Self::FragmentRefused => "fragment_refused",
            Self::Key => "key",
            Self::Invalid => "invalid",
        }
    }

    /// The code of a failure of which nothing more is known.
    pub fn code(self) -> Code {
        match self {
            Self::Network => Code::NETWORK,
            Self::Stalled => Code::STALLED,
            Self::Untrusted => Code::UNTRUSTED,
            Self::NoCredentials => Code::NO_CREDENTIALS,
            Self::BadCredentials => Code::of_answer(401, "", ""),
            Self::NotPermitted => Code::of_answer(403, "AccessDenied", ""),
            Self::Clock => Code::of_answer(400, "RequestExpired", ""),
            Self::NotFound => Code::of_answer(404, "ResourceNotFound", ""),
            Self::NotActive => Code::of_error_ack(4008, ""),
            Self::Throttled => Code::of_answer(400, "Throttling", ""),
            Self::ConnectionLimit => Code::of_answer(400, "ConnectionLimitExceeded", ""),
            Self::WrongEndpoint => Code::of_answer(400, "InvalidEndpoint", ""),
            Self::Service => Code::of_answer(500, "", ""),
            Self::StreamLimit => Code::of_answer(400, "AccountStreamLimitExceeded", ""),
            Self::FragmentRefused => Code::of_error_ack(4006, ""),
            Self::Key => Code::of_error_ack(4503, ""),
            Self::Invalid => Code::of_answer(400, "", ""),
        }
    }

    /// How soon to try again.
    pub fn pace(self) -> Pace {
        match self {
            Self::Network
            | Self::Stalled
            | Self::NotFound
            | Self::NotActive
            | Self::Throttled
            | Self::ConnectionLimit
            | Self::WrongEndpoint
            | Self::Service
            | Self::Clock
            | Self::FragmentRefused => Pace::Soon,
            Self::Untrusted
            | Self::NoCredentials
            | Self::BadCredentials
            | Self::NotPermitted
            | Self::StreamLimit
            | Self::Key
            | Self::Invalid => Pace::Slow,
        }
    }

    /// Whether a fresh data endpoint may be the cure.
    pub fn wants_endpoint(self) -> bool {
        matches!(
            self,
            Self::Network
                | Self::Stalled
                | Self::Untrusted
                | Self::NotFound
                | Self::NotActive
                | Self::WrongEndpoint
        )
    }

    /// Whether fresh credentials may be the cure.
    pub fn wants_credentials(self) -> bool {
        matches!(
            self,
            Self::NoCredentials | Self::BadCredentials | Self::NotPermitted
        )
    }

    /// Whether the stream has to be described anew.
    pub fn wants_describe(self) -> bool {
        matches!(self, Self::NotFound | Self::NotActive)
    }
}

/// A failure: what it is, and one line for whoever has to do something about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What it is.
    pub kind: FailureKind,
    /// Which text explains it.
    pub code: Code,
    /// What failed, where, and what the other side said.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: kind.code(),
            message: message.into(),
        }
    }

    /// The same, when more is known of what it is.
    #[must_use]
    pub fn with_code(self, code: Code) -> Self {
        Self { code, ..self }
    }
}

/// What of a service's message may be shown: its first line, of bounded length. Where a signature does not match, the
/// lines behind it repeat all that was signed, a session token included.
pub fn words(message: &str) -> &str {
    const MOST_BYTES: usize = 400;
    let line = message.lines().next().unwrap_or_default();
    &line[..line.floor_char_boundary(MOST_BYTES)]
}

/// What an error answer means. `error` is the exception's name (`x-amzn-ErrorType` up to a colon), empty when it is missing.
pub fn of_answer(status: u16, error: &str, message: &str) -> FailureKind {
    use FailureKind as K;
    match error.trim_end_matches("Exception") {
        "ResourceNotFound" => K::NotFound,
        "AccessDenied" => K::NotPermitted,
        // An expired token and a missing permission look the same here.
        "NotAuthorized" => K::NotPermitted,
        "UnrecognizedClient"
        | "InvalidClientTokenId"
        | "ExpiredToken"
        | "MissingAuthenticationToken"
        | "InvalidAccessKeyId" => K::BadCredentials,
        "RequestExpired" | "RequestTimeTooSkewed" => K::Clock,
        "InvalidSignature" | "IncompleteSignature" | "SignatureDoesNotMatch"
            if message.contains("expired") || message.contains("not yet current") =>
        {
            K::Clock
        }
        "InvalidSignature" | "IncompleteSignature" | "SignatureDoesNotMatch" => K::BadCredentials,
        "ConnectionLimitExceeded" => K::ConnectionLimit,
        "ClientLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "LimitExceeded" => K::Throttled,
        "AccountStreamLimitExceeded" | "DeviceStreamLimitExceeded" => K::StreamLimit,
        "InvalidEndpoint" => K::WrongEndpoint,
        "ResourceInUse" => K::NotActive,
        "ServiceUnavailable" | "InternalFailure" | "InternalServerError" => K::Service,
        "InvalidArgument"
        | "InvalidDevice"
        | "InvalidResourceFormat"
        | "Validation"
        | "ValidationError"
        | "TagsPerResourceExceededLimit" => K::Invalid,
        _ => match status {
            401 => K::BadCredentials,
            403 => K::NotPermitted,
            404 => K::NotFound,
            408 | 429 => K::Throttled,
            400..=499 => K::Invalid,
            _ => K::Service,
        },
    }
}

/// What to do with a fragment that an ERROR acknowledgement names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It may be good: it is sent again.
    Resend,
    /// It is bad in itself: it is dropped and counted.
    Skip,
}

/// What an ERROR acknowledgement means. The name decides where it is known: the service has used one id for two things.
pub fn of_error_ack(id: u32, code: &str) -> (Verdict, FailureKind) {
    use FailureKind as K;
    use Verdict::{Resend, Skip};
    match (code, id) {
        ("STREAM_READ_ERROR" | "MAX_CONNECTION_DURATION_REACHED", _) | ("", 4000 | 4003) => {
            (Resend, K::Network)
        }
        (
            "MAX_FRAGMENT_SIZE_REACHED"
            | "MAX_FRAGMENT_DURATION_REACHED"
            | "MIN_FRAGMENT_DURATION_REACHED"
            | "FRAGMENT_TIMECODE_LESSER_THAN_PREVIOUS"
            | "INVALID_MKV_DATA"
            | "FRAGMENT_METADATA_LIMIT_REACHED"
            | "INVALID_FRAGMENT_METADATA"
            | "FRAMES_MISSING_FOR_TRACK",
            _,
        )
        | ("", 4001 | 4002 | 4004 | 4006 | 4009 | 4011) => (Skip, K::FragmentRefused),
        ("MORE_THAN_ALLOWED_TRACKS_FOUND" | "TRACK_NUMBER_MISMATCH", _)
        | ("", 4005 | 4010 | 4012) => (Resend, K::Invalid),
        ("INVALID_PRODUCER_TIMESTAMP", _) | ("", 4007) => (Resend, K::Clock),
        ("STREAM_NOT_ACTIVE", _) | ("", 4008) => (Resend, K::NotActive),
        ("STREAM_DELETED", _) | ("", 4507) => (Resend, K::NotFound),
        (code, id) if code.starts_with("KMS_KEY_") || (4500..=4506).contains(&id) => {
            (Resend, K::Key)
        }
        _ => (Resend, K::Service),
    }
}

/// How long to wait between tries that only somebody's action can help.
pub const SLOW_RETRY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWERS: &[(u16, &str, &str)] = &[
        (404, "ResourceNotFoundException", ""),
        (401, "NotAuthorizedException", ""),
        (403, "AccessDeniedException", ""),
        (400, "ClientLimitExceededException", ""),
        (400, "ConnectionLimitExceededException", ""),
        (400, "AccountStreamLimitExceededException", ""),
        (400, "DeviceStreamLimitExceededException", ""),
        (400, "ResourceInUseException", ""),
        (400, "InvalidArgumentException", ""),
        (400, "InvalidDeviceException", ""),
        (400, "InvalidResourceFormatException", ""),
        (400, "InvalidEndpointException", ""),
        (400, "TagsPerResourceExceededLimitException", ""),
        (400, "ThrottlingException", ""),
        (400, "VersionMismatchException", ""),
        (400, "NoDataRetentionException", ""),
        (503, "ServiceUnavailable", ""),
        (500, "InternalFailure", ""),
        (400, "RequestExpired", ""),
        (
            403,
            "InvalidSignatureException",
            "Signature expired: 20250102T030405Z is now earlier than",
        ),
        (
            403,
            "InvalidSignatureException",
            "Signature not yet current: 20250102T030405Z is still later than",
        ),
        (
            403,
            "InvalidSignatureException",
            "The request signature we calculated does not match",
        ),
        (
            403,
            "InvalidSignatureException",
            "Credential should be scoped to a valid region",
        ),
        (400, "IncompleteSignatureException", ""),
        (403, "MissingAuthenticationTokenException", ""),
        (403, "InvalidClientTokenId", ""),
        (403, "UnrecognizedClientException", ""),
        (403, "ExpiredTokenException", ""),
        (401, "", ""),
        (403, "", ""),
        (404, "", ""),
        (418, "", ""),
        (500, "", ""),
        (503, "", ""),
    ];

    const ACKS: &[(u32, &str)] = &[
        (4000, "STREAM_READ_ERROR"),
        (4001, "MAX_FRAGMENT_SIZE_REACHED"),
        (4002, "MAX_FRAGMENT_DURATION_REACHED"),
        (4003, "MAX_CONNECTION_DURATION_REACHED"),
        (4004, "FRAGMENT_TIMECODE_LESSER_THAN_PREVIOUS"),
        (4005, "MORE_THAN_ALLOWED_TRACKS_FOUND"),
        (4006, "INVALID_MKV_DATA"),
        (4007, "INVALID_PRODUCER_TIMESTAMP"),
        (4008, "STREAM_NOT_ACTIVE"),
        (4009, "FRAGMENT_METADATA_LIMIT_REACHED"),
        (4010, "TRACK_NUMBER_MISMATCH"),
        (4011, "FRAMES_MISSING_FOR_TRACK"),
        (4012, "INVALID_FRAGMENT_METADATA"),
        (4012, "MORE_THAN_ALLOWED_TRACKS_FOUND"),
        (0, "MIN_FRAGMENT_DURATION_REACHED"),
        (4500, "KMS_KEY_ACCESS_DENIED"),
        (4501, "KMS_KEY_DISABLED"),
        (4502, "KMS_KEY_VALIDATION_ERROR"),
        (4503, "KMS_KEY_UNAVAILABLE"),
        (4504, "KMS_KEY_INVALID_USAGE"),
        (4505, "KMS_KEY_INVALID_STATE"),
        (4506, "KMS_KEY_NOT_FOUND"),
        (4507, "STREAM_DELETED"),
        (5000, "INTERNAL_ERROR"),
        (5001, "ARCHIVAL_ERROR"),
        (7777, "SOMETHING_NEW"),
    ];

    /// Every exception and every ERROR acknowledgement that the service documents, with what is done about it.
    #[test]
    fn only_the_first_line_of_a_message_is_shown_and_not_all_of_a_long_one() {
        assert_eq!(
            words("It does not match.\n\nx-amz-security-token:secret"),
            "It does not match."
        );
        assert_eq!(words(""), "");
        assert_eq!(words(&"\u{e9}".repeat(1000)).len(), 400);
    }

    #[test]
    fn every_documented_error_has_its_reaction() {
        use std::fmt::Write;
        let mut table = String::new();
        for (status, error, message) in ANSWERS.iter().copied() {
            let kind = of_answer(status, error, message);
            let hint = if message.is_empty() { "" } else { " (" };
            let words = message
                .split_whitespace()
                .take(3)
                .collect::<Vec<_>>()
                .join(" ");
            let close = if message.is_empty() { "" } else { ")" };
            writeln!(
                table,
                "{status} {error}{hint}{words}{close}: {kind:?}, {:?}, {}",
                kind.pace(),
                Code::of_answer(status, error, message)
            )
            .expect("a String");
        }
        for (id, code) in ACKS.iter().copied() {
            let (verdict, kind) = of_error_ack(id, code);
            writeln!(
                table,
                "{id} {code}: {verdict:?}, {kind:?}, {:?}, {}",
                kind.pace(),
                Code::of_error_ack(id, code)
            )
            .expect("a String");
            if id != 4012 && id != 0 {
                assert_eq!(
                    of_error_ack(id, ""),
                    (verdict, kind),
                    "{id} without its name"
                );
            }
        }
        let golden = include_str!("../../tests/data/reactions.txt");
        assert!(
            table == golden,
            "tests/data/reactions.txt should be:\n{table}"
        );
    }
}
