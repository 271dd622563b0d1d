//! Stable codes for what goes wrong, each with what it is, the likely cause and what to do. Pure.
//!
//! A code is never given another meaning and never reused. ERROR acknowledgements have the service's own number; the other
//! numbers only group: 1 the program, 2 the source, 3 the way to the service, 4 and 5 the service's answers, 6 commands.

use std::fmt;

/// A code: `KVS-E4004`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(u16);

/// What a code stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    code: u16,
    /// The service's name for it, or ours, in a few words.
    pub title: &'static str,
    /// What has happened, and why that may be.
    pub cause: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Code {
    /// A fault of this program.
    pub const FAULT: Self = Self(100);
    /// Options that make no sense.
    pub const USAGE: Self = Self(101);
    /// The operating system refused something that is needed.
    pub const SYSTEM: Self = Self(102);
    /// No camera, no such file, or it failed.
    pub const SOURCE: Self = Self(201);
    /// Nothing that can be streamed.
    pub const NO_MEDIA: Self = Self(202);
    /// Frames had to be dropped.
    pub const DROPPED: Self = Self(203);
    /// The service is not reached.
    pub const NETWORK: Self = Self(301);
    /// The connection stands still.
    pub const STALLED: Self = Self(302);
    /// The certificate is not accepted.
    pub const UNTRUSTED: Self = Self(303);
    /// Nobody has credentials.
    pub const NO_CREDENTIALS: Self = Self(304);
    /// The time to drain was over.
    pub const UNSENT: Self = Self(305);
    /// No producer runs.
    pub const NO_PRODUCER: Self = Self(601);
    /// No such command.
    pub const UNKNOWN_COMMAND: Self = Self(602);
    /// A request that is none.
    pub const MALFORMED_REQUEST: Self = Self(603);
    /// Client and producer are of different versions.
    pub const OTHER_VERSION: Self = Self(604);
    /// A producer runs already.
    pub const TAKEN: Self = Self(605);
    /// Somebody else's producer.
    pub const NOT_YOURS: Self = Self(606);
    /// The producer does not answer.
    pub const NO_ANSWER: Self = Self(607);
    /// It cannot be done now.
    pub const NOT_NOW: Self = Self(608);

    /// The code that is written so: `KVS-E4004`, in any case, or only its number.
    pub fn of(text: &str) -> Option<Self> {
        let upper = text.trim().to_ascii_uppercase();
        let number = upper.strip_prefix("KVS-E").or(upper.strip_prefix('E'));
        let code: u16 = number.unwrap_or(&upper).parse().ok()?;
        ENTRIES
            .binary_search_by_key(&code, |entry| entry.code)
            .is_ok()
            .then_some(Self(code))
    }

    /// What it stands for.
    pub fn entry(self) -> &'static Entry {
        let index = ENTRIES.binary_search_by_key(&self.0, |entry| entry.code);
        &ENTRIES[index.unwrap_or_default()]
    }

    /// The code of an error answer. `error` is the exception's name, empty when it is missing.
    pub fn of_answer(status: u16, error: &str, message: &str) -> Self {
        Self(match error.trim_end_matches("Exception") {
            "NotAuthorized" => 401,
            "AccessDenied" => 403,
            "ResourceNotFound" => 404,
            "ClientLimitExceeded" => 411,
            "ConnectionLimitExceeded" => 412,
            "AccountStreamLimitExceeded" => 413,
            "DeviceStreamLimitExceeded" => 414,
            "ResourceInUse" => 415,
            "InvalidArgument" | "Validation" | "ValidationError" => 416,
            "InvalidDevice" => 417,
            "InvalidResourceFormat" => 418,
            "InvalidEndpoint" => 419,
            "TagsPerResourceExceededLimit" => 420,
            "Throttling" | "TooManyRequests" | "LimitExceeded" => 421,
            "VersionMismatch" => 422,
            "NoDataRetention" => 423,
            "RequestExpired" | "RequestTimeTooSkewed" => 424,
            "InvalidSignature" | "SignatureDoesNotMatch" | "IncompleteSignature"
                if message.contains("expired") || message.contains("not yet current") =>
            {
                425
            }
            "InvalidSignature" | "SignatureDoesNotMatch"
                if message.contains("scoped to a valid region") =>
            {
                427
            }
            "InvalidSignature" | "SignatureDoesNotMatch" => 426,
            "IncompleteSignature" => 428,
            "InvalidClientTokenId" | "InvalidAccessKeyId" => 429,
            "UnrecognizedClient" => 430,
            "ExpiredToken" => 431,
            "MissingAuthenticationToken" => 432,
            "InternalFailure" | "InternalServerError" => 500,
            "ServiceUnavailable" => 503,
            _ => match status {
                401 => 441,
                403 => 442,
                404 => 443,
                408 | 429 => 444,
                400..=499 => 445,
                _ => 501,
            },
        })
    }

    /// The code of an ERROR acknowledgement. The name decides where it is known: the service has used one id for two things.
    pub fn of_error_ack(id: u32, name: &str) -> Self {
        let by_name = ENTRIES
            .iter()
            .find(|entry| entry.code >= 4000 && entry.title == name);
        let by_id = || {
            let id = u16::try_from(id)
                .ok()
                .filter(|id| (4000..=5001).contains(id))?;
            ENTRIES.iter().find(|entry| entry.code == id)
        };
        Self(by_name.or_else(by_id).map_or(4999, |entry| entry.code))
    }

    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        ENTRIES.iter().map(|entry| Self(entry.code))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KVS-E{}", self.0)
    }
}

const fn entry(code: u16, title: &'static str, cause: &'static str, remedy: &'static str) -> Entry {
    Entry {
        code,
        title,
        cause,
        remedy,
    }
}

/// In the order of the codes.
const ENTRIES: &[Entry] = &[
    entry(
        100,
        "a fault of this program",
        "Something happened that this program takes for impossible; it goes on where it can.",
        "Please report it, with the log lines around it.",
    ),
    entry(
        101,
        "wrong usage",
        "An option or an argument makes no sense; the line says which.",
        "See kvsProducerApp --help, and COMMAND --help for a command.",
    ),
    entry(
        102,
        "the system refuses",
        "A thread, a socket, a file or a signal handler was refused by the operating system.",
        "The line has its reason: often limits (ulimit -a), a full or read-only disk, or a service unit that allows too little.",
    ),
    entry(
        201,
        "the source failed",
        "There is no camera or file of that name, it may not be opened, it is in use, or it delivers nothing that can be streamed.",
        "kvsProducerApp devices lists the cameras and says why one cannot be used.",
    ),
    entry(
        202,
        "nothing could be streamed",
        "No decodable key frame came from the source: its parameter sets (SPS, PPS) are missing, or it makes no key frames.",
        "Let the encoder repeat SPS and PPS with each key frame, and make one every few seconds.",
    ),
    entry(
        203,
        "frames were dropped",
        "Frames were given up on the way; the report has them by reason.",
        "ring_full: a lower bitrate or a larger --buffer. camera_gap: look at the camera's cable and the processor's load. refused: the log names the fragment.",
    ),
    entry(
        301,
        "the service is not reached",
        "The name cannot be resolved, there is no route, or the connection was refused, reset or cut.",
        "Nothing, if the network is away for a while: the ring keeps what it can and sends it then. Else look at DNS, route and firewall (port 443 out), and whether the region is right.",
    ),
    entry(
        302,
        "the connection stands still",
        "The service took no bytes, or sent no answer or acknowledgement, for too long: a dead link, or an uplink far slower than the video.",
        "A new connection is made by itself. If it repeats, compare uplink and bitrate: kvsProducerApp doctor CHANNEL.",
    ),
    entry(
        303,
        "the certificate is not accepted",
        "This machine's clock is wrong, something in between answers in the service's place, or the CA is one of your own.",
        "Set the clock first. Then: is there a proxy that opens TLS? A CA of your own is given with --ca-file.",
    ),
    entry(
        304,
        "no credentials",
        "No provider of AWS credentials has any: environment, profile, role, web identity, container, instance metadata, IoT.",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role. A service has none of the login's environment: use its EnvironmentFile.",
    ),
    entry(
        305,
        "ended before everything was persisted",
        "The time to send what was held was over before the service had confirmed it.",
        "Give more time with --grace; the log says what was in the way.",
    ),
    entry(
        401,
        "NotAuthorizedException",
        "The credentials have expired, or their policy does not allow the call.",
        "Allow the call that is named on this stream; credentials that have expired are fetched again by themselves.",
    ),
    entry(
        403,
        "AccessDeniedException",
        "The policy of these credentials does not allow the call on this stream, or an explicit deny forbids it.",
        "Allow kinesisvideo:GetDataEndpoint and kinesisvideo:PutMedia, and DescribeStream and CreateStream if the stream is to be created; kvsProducerApp doctor CHANNEL tells which is missing.",
    ),
    entry(
        404,
        "ResourceNotFoundException",
        "There is no stream of this name in this region and account.",
        "Create it with kvsProducerApp create CHANNEL, leave out --no-create, or look at the region and the account.",
    ),
    entry(
        411,
        "ClientLimitExceededException",
        "Too many calls in a short time, by all clients of the account.",
        "Nothing: it is tried again with growing waits. If many cameras start at once, spread them.",
    ),
    entry(
        412,
        "ConnectionLimitExceededException",
        "Another PutMedia of this stream is open: another producer's, or our own that the service has not seen end.",
        "Nothing, if it passes within a minute. Else look for a second producer with this channel.",
    ),
    entry(
        413,
        "AccountStreamLimitExceededException",
        "The account has as many streams as it may have in this region.",
        "Delete streams that are not used, or have the quota raised.",
    ),
    entry(
        414,
        "DeviceStreamLimitExceededException",
        "The device has as many streams as it may have.",
        "Delete streams that are not used.",
    ),
    entry(
        415,
        "ResourceInUseException",
        "The stream is being created, changed or deleted by somebody.",
        "Nothing: it is looked at again until it is ACTIVE.",
    ),
    entry(
        416,
        "InvalidArgumentException",
        "The service finds a value of the request wrong; its words say which.",
        "Look at the channel's name, --retention (0 to 87600), --tag and --kms-key.",
    ),
    entry(
        417,
        "InvalidDeviceException",
        "The device name of the stream is not accepted.",
        "This program gives none: please report it.",
    ),
    entry(
        418,
        "InvalidResourceFormatException",
        "The name or ARN of the stream is not well-formed.",
        "A channel has 1 to 256 letters, digits, _ . and -.",
    ),
    entry(
        419,
        "InvalidEndpointException",
        "The data endpoint is not this stream's any more.",
        "Nothing: a new one is asked for. With an endpoint of your own, is AWS_ENDPOINT_URL right?",
    ),
    entry(
        420,
        "TagsPerResourceExceededLimitException",
        "The stream would have more than 50 tags.",
        "Give fewer with --tag, or remove some from the stream.",
    ),
    entry(
        421,
        "ThrottlingException",
        "Too many calls in a short time.",
        "Nothing: it is tried again with growing waits.",
    ),
    entry(
        422,
        "VersionMismatchException",
        "The stream was changed by somebody else in the same moment.",
        "Run the command again.",
    ),
    entry(
        423,
        "NoDataRetentionException",
        "The stream retains nothing, and what was asked for needs media that is retained.",
        "Raise the retention: kvsProducerApp create CHANNEL --retention 24.",
    ),
    entry(
        424,
        "RequestExpired",
        "The signature's date is more than 15 minutes off the service's clock.",
        "Signatures go on with the service's time by themselves. Set this machine's clock: NTP, or a battery.",
    ),
    entry(
        425,
        "InvalidSignatureException: expired or not yet current",
        "The signature's date is too far off the service's clock.",
        "Signatures go on with the service's time by themselves. Set this machine's clock: NTP, or a battery.",
    ),
    entry(
        426,
        "InvalidSignatureException",
        "The secret key does not belong to the key id, or something in between changes requests.",
        "Look at AWS_SECRET_ACCESS_KEY: one character too few, a blank, a quote too many?",
    ),
    entry(
        427,
        "InvalidSignatureException: another region",
        "The endpoint is of another region than the signature.",
        "Let --region (or AWS_REGION) and the endpoint's address be of one region.",
    ),
    entry(
        428,
        "IncompleteSignatureException",
        "A part of the signature did not arrive: something in between changes requests.",
        "Look for a proxy between this machine and the service.",
    ),
    entry(
        429,
        "InvalidClientTokenId",
        "The service does not know the key id: it was deleted or switched off, or is of another partition (China, GovCloud).",
        "Make a new key, or give the region that the key is for.",
    ),
    entry(
        430,
        "UnrecognizedClientException",
        "The service does not know these credentials: the key was deleted, or the session token is missing or broken.",
        "Credentials of a role need AWS_SESSION_TOKEN as well. Else make a new key.",
    ),
    entry(
        431,
        "ExpiredTokenException",
        "The session token has expired.",
        "Nothing where they are refreshed by a provider; fixed ones in the environment have to be replaced.",
    ),
    entry(
        432,
        "MissingAuthenticationToken",
        "The request came without a signature: something in between has removed it.",
        "Look for a proxy between this machine and the service.",
    ),
    entry(
        441,
        "401 without a name",
        "Somebody refused the credentials, and not in the service's way.",
        "Is the endpoint that of Kinesis Video Streams? A proxy or a portal answers like this.",
    ),
    entry(
        442,
        "403 without a name",
        "Somebody forbade the request, and not in the service's way.",
        "Is the endpoint that of Kinesis Video Streams? A proxy, a portal or a VPC endpoint's policy answers like this.",
    ),
    entry(
        443,
        "404 without a name",
        "There is nothing at this address.",
        "Is the endpoint that of Kinesis Video Streams?",
    ),
    entry(
        444,
        "a time-out or too many requests",
        "The service, or something in between, asks for patience (408 or 429).",
        "Nothing: it is tried again with growing waits.",
    ),
    entry(
        445,
        "the request is refused",
        "The service refused the request in a way that this program does not know; the line has its words.",
        "It is tried again slowly. If it stays, please report it.",
    ),
    entry(
        500,
        "InternalFailure",
        "The service had a fault of its own.",
        "Nothing: it is tried again with growing waits.",
    ),
    entry(
        501,
        "the service's fault",
        "The service, or something in between, answered with a 5xx.",
        "Nothing: it is tried again with growing waits.",
    ),
    entry(
        503,
        "ServiceUnavailable",
        "The service is overloaded or being worked on.",
        "Nothing: it is tried again with growing waits.",
    ),
    entry(
        601,
        "no producer runs",
        "Nobody listens on the control socket of this channel: no producer streams to it here, it was started with --no-control, or with another --control.",
        "Is the channel's name right? systemctl status kvsProducerApp@CHANNEL; give the same --control as the producer has.",
    ),
    entry(
        602,
        "no such command",
        "The running producer does not know the command: it is older than the client.",
        "Restart the producer with the version of the client.",
    ),
    entry(
        603,
        "a malformed request",
        "What came over the control socket is no request.",
        "A request is one JSON object on a line, with \"v\" and \"do\".",
    ),
    entry(
        604,
        "another version",
        "The running producer speaks another version of the control protocol.",
        "Restart the producer with the version of the client.",
    ),
    entry(
        605,
        "a producer runs already",
        "Another producer on this machine streams to this channel, and the service takes one at a time.",
        "Stop that one (kvsProducerApp stop CHANNEL), take another channel, or give --no-control if you know better.",
    ),
    entry(
        606,
        "not permitted",
        "The control socket is for the producer's own user and for root.",
        "Use sudo, or become the producer's user.",
    ),
    entry(
        607,
        "the producer does not answer",
        "It took the request and gave no answer in time.",
        "Look at its log. A producer that hangs is restarted by its watchdog, or with systemctl restart.",
    ),
    entry(
        608,
        "not now",
        "The producer is in a state in which this cannot be done; the line says in which.",
        "Wait until it is over, or end it first.",
    ),
    entry(
        4000,
        "STREAM_READ_ERROR",
        "The service failed to read what was sent.",
        "Nothing: it is sent again on a new connection.",
    ),
    entry(
        4001,
        "MAX_FRAGMENT_SIZE_REACHED",
        "A fragment had more than 50 MB.",
        "It was skipped. Lower the bitrate, or let the encoder make key frames more often.",
    ),
    entry(
        4002,
        "MAX_FRAGMENT_DURATION_REACHED",
        "A fragment was longer than 20 s.",
        "It was skipped. Let the encoder make key frames more often: every 1 to 10 s.",
    ),
    entry(
        4003,
        "MAX_CONNECTION_DURATION_REACHED",
        "The connection had lived as long as the service lets one live.",
        "Nothing: it goes on on a new one.",
    ),
    entry(
        4004,
        "FRAGMENT_TIMECODE_LESSER_THAN_PREVIOUS",
        "A fragment was not later than the one before it.",
        "It was skipped. Does another producer send to this stream? Was the clock set back?",
    ),
    entry(
        4005,
        "MORE_THAN_ALLOWED_TRACKS_FOUND",
        "The service found more tracks than it allows.",
        "This program sends one: please report it.",
    ),
    entry(
        4006,
        "INVALID_MKV_DATA",
        "The service found something that it takes for no Matroska.",
        "The fragment was skipped. If it repeats, please report it with the camera's name.",
    ),
    entry(
        4007,
        "INVALID_PRODUCER_TIMESTAMP",
        "The time that the media begins at makes no sense to the service.",
        "Set this machine's clock: NTP, or a battery.",
    ),
    entry(
        4008,
        "STREAM_NOT_ACTIVE",
        "The stream is being changed or deleted.",
        "Nothing if it comes back: what is held is sent then. Else create it anew.",
    ),
    entry(
        4009,
        "FRAGMENT_METADATA_LIMIT_REACHED",
        "A fragment had more than 10 tags, or too long ones.",
        "It was skipped. Put fewer tags on a fragment.",
    ),
    entry(
        4010,
        "TRACK_NUMBER_MISMATCH",
        "A frame was of a track that the header does not have.",
        "Please report it.",
    ),
    entry(
        4011,
        "FRAMES_MISSING_FOR_TRACK",
        "A fragment had no frame of a track that the header has.",
        "It was skipped. If it repeats, please report it.",
    ),
    entry(
        4012,
        "INVALID_FRAGMENT_METADATA",
        "A tag of a fragment has a name that is reserved.",
        "It was skipped. Names that begin with AWS are the service's own.",
    ),
    entry(
        4500,
        "KMS_KEY_ACCESS_DENIED",
        "The service may not use the stream's KMS key for these credentials.",
        "Allow kms:GenerateDataKey on the key, in its policy and in that of the role. What is held is sent then.",
    ),
    entry(
        4501,
        "KMS_KEY_DISABLED",
        "The stream's KMS key is disabled.",
        "Enable it: aws kms enable-key. What is held is sent then.",
    ),
    entry(
        4502,
        "KMS_KEY_VALIDATION_ERROR",
        "The service could not validate the stream's KMS key.",
        "Look at the key: does it exist in this region, and is it a symmetric one?",
    ),
    entry(
        4503,
        "KMS_KEY_UNAVAILABLE",
        "The stream's KMS key cannot be used now: it is in a custom key store that is not connected, or KMS is away.",
        "Look at the key's state. What is held is sent when it is back.",
    ),
    entry(
        4504,
        "KMS_KEY_INVALID_USAGE",
        "The stream's KMS key is not one for encrypting and decrypting.",
        "A stream needs a symmetric key with the usage ENCRYPT_DECRYPT.",
    ),
    entry(
        4505,
        "KMS_KEY_INVALID_STATE",
        "The stream's KMS key is in a state in which it cannot be used: it waits for its deletion, or for its material.",
        "aws kms cancel-key-deletion, or import its material. What is held is sent then.",
    ),
    entry(
        4506,
        "KMS_KEY_NOT_FOUND",
        "The stream's KMS key does not exist any more.",
        "A stream keeps its key for ever: delete the stream and create it with another one.",
    ),
    entry(
        4507,
        "STREAM_DELETED",
        "The stream was deleted.",
        "It is created anew, unless --no-create says otherwise.",
    ),
    entry(
        4900,
        "MIN_FRAGMENT_DURATION_REACHED",
        "A fragment was shorter than 1 s.",
        "It was skipped. If it repeats, please report it with the camera's name.",
    ),
    entry(
        4999,
        "an error that this program does not know",
        "The service sent an ERROR acknowledgement that is not documented.",
        "What it names is sent again. If it repeats, please report it.",
    ),
    entry(
        5000,
        "INTERNAL_ERROR",
        "The service had a fault of its own.",
        "Nothing: it is sent again on a new connection.",
    ),
    entry(
        5001,
        "ARCHIVAL_ERROR",
        "The service had received a fragment and could not store it.",
        "Nothing: it is sent again on a new connection.",
    ),
];

impl fmt::Display for Entry {
    /// For people, four lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "KVS-E{}: {}", self.code, self.title)?;
        writeln!(f, "  what:  {}", self.cause)?;
        writeln!(f, "  to do: {}", self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_none_stands_twice() {
        assert!(ENTRIES.windows(2).all(|pair| pair[0].code < pair[1].code));
        for (index, entry) in ENTRIES.iter().enumerate() {
            let same = |other: &Entry| other.cause == entry.cause && other.title == entry.title;
            assert!(!ENTRIES[..index].iter().any(same), "{}", entry.code);
            for text in [entry.cause, entry.remedy] {
                assert!(text.ends_with(['.', '?']), "{text}");
            }
        }
    }

    #[test]
    fn a_code_is_read_however_it_is_written() {
        for text in ["KVS-E4004", "kvs-e4004", "E4004", " 4004 "] {
            assert_eq!(Code::of(text), Some(Code(4004)), "{text:?}");
        }
        for text in ["", "KVS-E", "4998", "KVS-E70000", "-1", "KVS-4004"] {
            assert_eq!(Code::of(text), None, "{text:?}");
        }
    }

    #[test]
    fn every_named_code_is_in_the_table() {
        for code in [
            Code::FAULT,
            Code::USAGE,
            Code::SYSTEM,
            Code::SOURCE,
            Code::NO_MEDIA,
            Code::DROPPED,
            Code::NETWORK,
            Code::STALLED,
            Code::UNTRUSTED,
            Code::NO_CREDENTIALS,
            Code::UNSENT,
            Code::NO_PRODUCER,
            Code::UNKNOWN_COMMAND,
            Code::MALFORMED_REQUEST,
            Code::OTHER_VERSION,
            Code::TAKEN,
            Code::NOT_YOURS,
            Code::NO_ANSWER,
            Code::NOT_NOW,
        ] {
            assert_eq!(code.entry().code, code.0);
        }
    }

    #[test]
    fn an_acknowledgement_goes_by_its_name_before_its_id() {
        let code = |id, name| Code::of_error_ack(id, name).to_string();
        assert_eq!(code(4012, "MORE_THAN_ALLOWED_TRACKS_FOUND"), "KVS-E4005");
        assert_eq!(code(4012, "INVALID_FRAGMENT_METADATA"), "KVS-E4012");
        assert_eq!(code(4012, ""), "KVS-E4012");
        assert_eq!(code(0, "MIN_FRAGMENT_DURATION_REACHED"), "KVS-E4900");
        assert_eq!(code(7777, "SOMETHING_NEW"), "KVS-E4999");
        // An id is never taken for one of the codes that are not the service's own.
        assert_eq!(code(404, ""), "KVS-E4999");
        assert_eq!(code(u32::MAX, ""), "KVS-E4999");
    }

    /// All texts, as `explain` shows them.
    #[test]
    fn the_texts_are_these() {
        let all: Vec<_> = Code::all().map(|code| code.entry().to_string()).collect();
        let all = all.join("\n");
        let golden = include_str!("../tests/data/codes.txt");
        assert!(all == golden, "tests/data/codes.txt should be:\n{all}");
    }
}
