//! Checks AWS Signature Version 4 of what arrived, written apart from the producer's signer so that each checks the
//! other. Pure.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, Method};
use sha2::{Digest, Sha256};

use super::date;

/// How far a signature's date may be off, either way.
const TOLERANCE_SECONDS: i64 = 15 * 60;

/// The service's name in every scope, control and data plane alike.
const SERVICE: &str = "kinesisvideo";

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What the hash of an unsigned payload is replaced by.
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// An access key that the endpoint knows.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The public part.
    pub access_key_id: String,
    /// The secret part.
    pub secret_access_key: String,
    /// With temporary credentials: must come along in `x-amz-security-token`.
    pub session_token: Option<String>,
    /// Whether they still hold.
    pub validity: Validity,
}

/// Whether credentials still hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// They do.
    Valid,
    /// They did once: whoever shows them gets ExpiredTokenException.
    Expired,
}

impl Default for Credential {
    /// The built-in pair, good for nothing else.
    fn default() -> Self {
        Self {
            access_key_id: "AKIALOCALENDPOINT001".into(),
            secret_access_key: "localEndpointSecretKeyOpensNothingElse00".into(),
            session_token: None,
            validity: Validity::Valid,
        }
    }
}

impl Credential {
    /// The built-in temporary credentials: good only together with their session token.
    pub fn temporary() -> Self {
        Self {
            access_key_id: "ASIALOCALENDPOINT002".into(),
            session_token: Some("localEndpointSessionToken".into()),
            ..Self::default()
        }
    }

    /// The built-in temporary credentials whose time is over.
    pub fn expired() -> Self {
        Self {
            access_key_id: "ASIALOCALENDPOINT003".into(),
            session_token: Some("localEndpointExpiredToken".into()),
            validity: Validity::Expired,
            ..Self::default()
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("access_key_id", &self.access_key_id)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// A request as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The path as it stood on the request line.
    pub path: &'a str,
    /// What stood behind the `?`.
    pub query: Option<&'a str>,
    /// All its headers.
    pub headers: &'a HeaderMap,
    /// Its body.
    pub payload: Payload<'a>,
}

/// The body, as far as the signature covers it.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// It has no end yet: the hash is that of no bytes, or UNSIGNED-PAYLOAD.
    Endless,
}

/// Why a signature does not hold. The message goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is none.
    #[error("Missing Authentication Token")]
    Missing,
    /// A part of it is missing or cannot be read.
    #[error("Authorization header requires {0}")]
    Incomplete(&'static str),
    /// Nobody has this key, or the key does not go with this token.
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    /// The credentials are over.
    #[error("The security token included in the request is expired")]
    ExpiredToken,
    /// The client's clock, or the server's, is wrong.
    #[error("{0}")]
    Clock(String),
    /// Signed for another region, service or day.
    #[error("Credential should be scoped to {0}")]
    Scope(String),
    /// A header that must be signed is not.
    #[error("'{0}' must be a signed header")]
    Unsigned(&'static str),
    /// The signature is another one.
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key \
         and signing method. Consult the service documentation for details."
    )]
    Mismatch,
}

impl Refusal {
    /// The service's name of the exception.
    pub fn exception(&self) -> &'static str {
        match self {
            Self::Missing => "MissingAuthenticationTokenException",
            Self::Incomplete(_) => "IncompleteSignatureException",
            Self::UnknownKey => "UnrecognizedClientException",
            Self::ExpiredToken => "ExpiredTokenException",
            Self::Clock(_) | Self::Scope(_) | Self::Unsigned(_) | Self::Mismatch => {
                "InvalidSignatureException"
            }
        }
    }
}

/// The parts of an `authorization` header.
struct Authorization<'a> {
    access_key_id: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
    terminator: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn parse(value: &'a str) -> Result<Self, Refusal> {
        let fields = value
            .strip_prefix(ALGORITHM)
            .ok_or(Refusal::Incomplete("the algorithm AWS4-HMAC-SHA256."))?;
        let field = |name: &str| {
            let named = fields.split(',').map(str::trim);
            let mut values = named.filter_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            values.next()
        };
        let credential =
            field("Credential").ok_or(Refusal::Incomplete("'Credential' parameter."))?;
        let mut parts = credential.rsplitn(5, '/');
        let mut part = || {
            parts
                .next()
                .ok_or(Refusal::Incomplete("a 'Credential' of five parts."))
        };
        let (terminator, service, region) = (part()?, part()?, part()?);
        let (date, access_key_id) = (part()?, part()?);
        Ok(Self {
            access_key_id,
            date,
            region,
            service,
            terminator,
            signed_headers: field("SignedHeaders")
                .ok_or(Refusal::Incomplete("'SignedHeaders' parameter."))?,
            signature: field("Signature").ok_or(Refusal::Incomplete("'Signature' parameter."))?,
        })
    }
}

/// Checks the signature of `request` at `now` (seconds since the Unix epoch) and tells the region it was signed for.
///
/// # Errors
/// The first thing that is wrong, in the order in which the service looks: header, key, token, scope, clock, signature.
pub fn verify(
    request: Presented<'_>,
    credentials: &[Credential],
    region: Option<&str>,
    now: i64,
) -> Result<String, Refusal> {
    let header = |name: &str| request.headers.get(name).and_then(|v| v.to_str().ok());
    let authorization = header("authorization").ok_or(Refusal::Missing)?;
    let authorization = Authorization::parse(authorization)?;

    let known = credentials
        .iter()
        .filter(|known| known.access_key_id == authorization.access_key_id);
    let token = header("x-amz-security-token");
    let credential = known
        .into_iter()
        .find(|known| known.session_token.as_deref() == token)
        .ok_or(Refusal::UnknownKey)?;
    if credential.validity == Validity::Expired {
        return Err(Refusal::ExpiredToken);
    }

    if authorization.service != SERVICE {
        return Err(Refusal::Scope(format!("correct service: '{SERVICE}'.")));
    }
    if authorization.terminator != "aws4_request" {
        return Err(Refusal::Scope("a terminator: 'aws4_request'.".into()));
    }
    if let Some(region) = region
        && authorization.region != region
    {
        return Err(Refusal::Scope(format!(
            "a valid region, not '{}'.",
            authorization.region
        )));
    }

    let signed_at = header("x-amz-date").ok_or(Refusal::Incomplete(
        "existence of either a 'X-Amz-Date' or a 'Date' header.",
    ))?;
    check_clock(signed_at, &authorization, now)?;

    let signed: Vec<&str> = authorization.signed_headers.split(';').collect();
    for must in ["host", "x-amz-date"] {
        if !signed.contains(&must) {
            return Err(Refusal::Unsigned(must));
        }
    }
    let canonical = canonical(request, &signed)?;
    let text = string_to_sign(&canonical, signed_at, &authorization);
    let key = signing_key(
        &credential.secret_access_key,
        authorization.date,
        authorization.region,
    );
    let signature = unhex(authorization.signature).ok_or(Refusal::Mismatch)?;
    mac(&key, &text)
        .verify_slice(&signature)
        .map_err(|_| Refusal::Mismatch)?;
    Ok(authorization.region.to_owned())
}

fn check_clock(
    signed_at: &str,
    authorization: &Authorization<'_>,
    now: i64,
) -> Result<(), Refusal> {
    let time = date::parse_amz(signed_at).ok_or(Refusal::Incomplete("a date of ISO 8601 form."))?;
    if !signed_at.starts_with(authorization.date) {
        return Err(Refusal::Scope(format!("the day of '{signed_at}'.")));
    }
    let (server, earliest, latest) = (
        date::amz(now),
        date::amz(now - TOLERANCE_SECONDS),
        date::amz(now + TOLERANCE_SECONDS),
    );
    if time < now - TOLERANCE_SECONDS {
        return Err(Refusal::Clock(format!(
            "Signature expired: {signed_at} is now earlier than {earliest} ({server} - 15 min.)"
        )));
    }
    if time > now + TOLERANCE_SECONDS {
        return Err(Refusal::Clock(format!(
            "Signature not yet current: {signed_at} is still later than {latest} ({server} + 15 min.)"
        )));
    }
    Ok(())
}

/// The canonical request, over the headers of `signed`.
fn canonical(request: Presented<'_>, signed: &[&str]) -> Result<String, Refusal> {
    if !signed.is_sorted() {
        return Err(Refusal::Incomplete("'SignedHeaders' in order."));
    }
    let mut text = format!(
        "{}\n{}\n{}\n",
        request.method,
        encode(request.path.as_bytes(), Slash::Keep),
        canonical_query(request.query.unwrap_or_default())
    );
    for name in signed {
        let mut values = Vec::new();
        for value in request.headers.get_all(*name) {
            let value = String::from_utf8_lossy(value.as_bytes());
            values.push(value.split_whitespace().collect::<Vec<_>>().join(" "));
        }
        if values.is_empty() {
            return Err(Refusal::Mismatch);
        }
        text.push_str(name);
        text.push(':');
        text.push_str(&values.join(","));
        text.push('\n');
    }
    text.push('\n');
    text.push_str(&signed.join(";"));
    text.push('\n');
    text.push_str(&payload_hash(request));
    Ok(text)
}

fn payload_hash(request: Presented<'_>) -> String {
    match request.payload {
        Payload::Whole(body) => hex(&Sha256::digest(body)),
        Payload::Endless => match request.headers.get("x-amz-content-sha256") {
            Some(value) if value.as_bytes() == UNSIGNED.as_bytes() => UNSIGNED.into(),
            _ => hex(&Sha256::digest([])),
        },
    }
}

/// The parameters decoded, encoded the one canonical way, and sorted.
fn canonical_query(query: &str) -> String {
    let mut parameters = BTreeMap::<_, Vec<_>>::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let canonical = |text: &str| encode(&decode(text), Slash::Encode);
        let values = parameters.entry(canonical(name)).or_default();
        values.push(canonical(value));
    }
    let mut pairs = Vec::new();
    for (name, mut values) in parameters {
        values.sort();
        pairs.extend(values.iter().map(|value| format!("{name}={value}")));
    }
    pairs.join("&")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slash {
    Keep,
    Encode,
}

/// Percent-encodes all but the unreserved characters of RFC 3986, in upper-case hex.
fn encode(bytes: &[u8], slash: Slash) -> String {
    let mut text = String::new();
    for &byte in bytes {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if plain || (byte == b'/' && slash == Slash::Keep) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}"); // writing to a String cannot fail
        }
    }
    text
}

/// Undoes percent-encoding; a `%` without two hex digits stands for itself.
fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                digit(*high).zip(digit(*low))
            }
            _ => None,
        };
        if let Some((high, low)) = escaped {
            bytes.push(u8::try_from(high * 16 + low).expect("two hex digits fit"));
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

fn string_to_sign(canonical: &str, signed_at: &str, authorization: &Authorization<'_>) -> String {
    format!(
        "{ALGORITHM}\n{signed_at}\n{}/{}/{SERVICE}/aws4_request\n{}",
        authorization.date,
        authorization.region,
        hex(&Sha256::digest(canonical))
    )
}

fn signing_key(secret: &str, day: &str, region: &str) -> Vec<u8> {
    let first = format!("AWS4{secret}").into_bytes();
    [day, region, SERVICE, "aws4_request"]
        .iter()
        .fold(first, |key, part| {
            mac(&key, part).finalize().into_bytes().to_vec()
        })
}

fn mac(key: &[u8], text: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    mac
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let digits = text.as_bytes().chunks(2);
    let bytes = digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    bytes.collect()
}

/// Signs like a client, for this crate's tests of the endpoint: all the request's headers but the token.
#[cfg(test)]
pub(super) fn authorize(
    request: Presented<'_>,
    credential: &Credential,
    region: &str,
    signed: &[&str],
) -> String {
    let signed_at = request.headers["x-amz-date"].to_str().unwrap();
    let authorization = Authorization {
        access_key_id: &credential.access_key_id,
        date: &signed_at[..8],
        region,
        service: SERVICE,
        terminator: "aws4_request",
        signed_headers: &signed.join(";"),
        signature: "",
    };
    let canonical = canonical(request, signed).unwrap();
    let key = signing_key(&credential.secret_access_key, authorization.date, region);
    let text = string_to_sign(&canonical, signed_at, &authorization);
    format!(
        "{ALGORITHM} Credential={}/{}/{region}/{SERVICE}/aws4_request, SignedHeaders={}, Signature={}",
        credential.access_key_id,
        authorization.date,
        authorization.signed_headers,
        hex(&mac(&key, &text).finalize().into_bytes())
    )
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const NOW: i64 = 1_735_787_045; // 2025-01-02 03:04:05 UTC
    const REGION: &str = "us-west-2";
    const BODY: &[u8] = br#"{"StreamName":"camera-1"}"#;

    fn credential(token: Option<&str>) -> Credential {
        Credential {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: "exampleSecretKeyForTestsOnly".into(),
            session_token: token.map(Into::into),
            validity: Validity::Valid,
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        });
        pairs.collect()
    }

    fn describe() -> HeaderMap {
        headers(&[
            ("host", "kinesisvideo.us-west-2.amazonaws.com"),
            ("user-agent", "kvs-producer/0.1"),
            ("x-amz-date", "20250102T030405Z"),
            ("content-type", "application/json"),
        ])
    }

    fn put_media() -> HeaderMap {
        headers(&[
            ("connection", "keep-alive"),
            ("host", "s-1234abcd.kinesisvideo.us-west-2.amazonaws.com"),
            ("transfer-encoding", "chunked"),
            ("user-agent", "kvs-producer/0.1"),
            ("x-amz-date", "20250102T030405Z"),
            ("x-amzn-fragment-acknowledgment-required", "1"),
            ("x-amzn-fragment-timecode-type", "ABSOLUTE"),
            ("x-amzn-producer-start-timestamp", "1735787045.007"),
            ("x-amzn-stream-name", "camera-1"),
        ])
    }

    const DESCRIBE_SIGNED: &str = "host;user-agent;x-amz-date";
    const C_SDK_SIGNED: &str = "connection;host;transfer-encoding;user-agent;x-amz-date;\
        x-amzn-fragment-acknowledgment-required;x-amzn-fragment-timecode-type;x-amzn-producer-start-timestamp;\
        x-amzn-stream-name";
    const OUR_SIGNED: &str = "host;x-amz-date;x-amz-security-token;x-amzn-fragment-acknowledgment-required;\
        x-amzn-fragment-timecode-type;x-amzn-producer-start-timestamp;x-amzn-stream-name";

    fn request<'a>(
        path: &'a str,
        headers: &'a HeaderMap,
        payload: Payload<'a>,
        method: &'a Method,
    ) -> Presented<'a> {
        Presented {
            method,
            path,
            query: None,
            headers,
            payload,
        }
    }

    fn with_authorization(headers: &mut HeaderMap, signed: &str, signature: &str) {
        let value = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20250102/us-west-2/kinesisvideo/aws4_request, \
             SignedHeaders={signed}, Signature={signature}"
        );
        headers.insert("authorization", value.parse().unwrap());
    }

    fn check(
        headers: &HeaderMap,
        path: &str,
        payload: Payload<'_>,
        now: i64,
    ) -> Result<String, Refusal> {
        let token = headers
            .get("x-amz-security-token")
            .map(|token| token.to_str().unwrap());
        let request = request(path, headers, payload, &Method::POST);
        verify(request, &[credential(token)], Some(REGION), now)
    }

    /// Canonical-request hash and signature of the three published vectors.
    #[test]
    fn check_vectors() {
        let key = signing_key("exampleSecretKeyForTestsOnly", "20250102", REGION);
        assert_eq!(
            hex(&key),
            "63f5c8f3c241ea1abbb75f06f564dcbac4819edd8a5b30fa32ea16b5bab33e9f"
        );
        let mut with_token = put_media();
        with_token.insert(
            "x-amz-security-token",
            HeaderValue::from_static("exampleSessionToken"),
        );
        let vectors = [
            (
                describe(),
                "/describeStream",
                Payload::Whole(BODY),
                DESCRIBE_SIGNED,
                "d355c0084d6c3c31516792aeaa177b0b048b6f6c2db75871488872d7c22384ec",
                "b6a5a9d8b60fe75d366e58914806c7abab2a85a8b349a03b4773585f2b3b0b4e",
            ),
            (
                put_media(),
                "/putMedia",
                Payload::Endless,
                C_SDK_SIGNED,
                "8f35975ea0517c466f6c124b43dc9b1d312433993802283159159e91f1204aaf",
                "271fb92d5875a99a489605bf06f188283f0af78bebe9d67eb8bbeae0edb6a618",
            ),
            (
                with_token,
                "/putMedia",
                Payload::Endless,
                OUR_SIGNED,
                "8979d53f0e79310bf31ca6f61b5173cd47b036caa690306e80c55a5dad6b3825",
                "6d568446b2f8b13f13e132d39cf7344d8177906fa1a3bb6d64e5fdd9f3d96729",
            ),
        ];
        for (mut headers, path, payload, signed, hash, signature) in vectors {
            let names: Vec<&str> = signed.split(';').collect();
            let text = canonical(request(path, &headers, payload, &Method::POST), &names).unwrap();
            assert_eq!(hex(&Sha256::digest(&text)), hash, "{text}");
            with_authorization(&mut headers, signed, signature);
            assert_eq!(check(&headers, path, payload, NOW), Ok(REGION.into()));
        }
    }

    fn signed_describe() -> HeaderMap {
        let mut headers = describe();
        with_authorization(
            &mut headers,
            DESCRIBE_SIGNED,
            "b6a5a9d8b60fe75d366e58914806c7abab2a85a8b349a03b4773585f2b3b0b4e",
        );
        headers
    }

    #[test]
    fn another_body_header_or_path_does_not_match() {
        let headers = signed_describe();
        let refused = Err(Refusal::Mismatch);
        assert_eq!(
            check(&headers, "/describeStream", Payload::Whole(b"{}"), NOW),
            refused
        );
        assert_eq!(
            check(&headers, "/deleteStream", Payload::Whole(BODY), NOW),
            refused
        );
        let mut other = headers.clone();
        other.insert("user-agent", HeaderValue::from_static("somebody"));
        assert_eq!(
            check(&other, "/describeStream", Payload::Whole(BODY), NOW),
            refused
        );
        other.remove("user-agent");
        assert_eq!(
            check(&other, "/describeStream", Payload::Whole(BODY), NOW),
            refused
        );
        for signature in ["", "b6", "zz", "b6a5a9d8b60fé"] {
            let mut other = describe();
            with_authorization(&mut other, DESCRIBE_SIGNED, "SIGNATURE");
            let text = other["authorization"]
                .to_str()
                .unwrap()
                .replace("SIGNATURE", signature);
            other.insert(
                "authorization",
                HeaderValue::from_bytes(text.as_bytes()).unwrap(),
            );
            assert!(check(&other, "/describeStream", Payload::Whole(BODY), NOW).is_err());
        }
    }

    #[test]
    fn clock_may_be_15_minutes_off_and_no_more() {
        let headers = signed_describe();
        let at = |now| check(&headers, "/describeStream", Payload::Whole(BODY), now);
        for off in [-900, 900] {
            assert!(at(NOW + off).is_ok());
        }
        let late = at(NOW + 901).unwrap_err();
        assert_eq!(late.exception(), "InvalidSignatureException");
        assert_eq!(
            late.to_string(),
            "Signature expired: 20250102T030405Z is now earlier than 20250102T030406Z (20250102T031906Z - 15 min.)"
        );
        let early = at(NOW - 901).unwrap_err();
        assert!(
            early
                .to_string()
                .starts_with("Signature not yet current: 20250102T030405Z")
        );
    }

    #[test]
    fn keys_and_tokens() {
        let headers = signed_describe();
        let request = request(
            "/describeStream",
            &headers,
            Payload::Whole(BODY),
            &Method::POST,
        );
        let with = |known: &[Credential]| verify(request, known, None, NOW);

        assert_eq!(with(&[]), Err(Refusal::UnknownKey));
        // A key that came with a token is nothing without it.
        assert_eq!(with(&[credential(Some("t"))]), Err(Refusal::UnknownKey));
        let mut wrong = credential(None);
        wrong.secret_access_key.push('x');
        assert_eq!(with(&[wrong]), Err(Refusal::Mismatch));
        let mut expired = credential(None);
        expired.validity = Validity::Expired;
        assert_eq!(with(&[expired]), Err(Refusal::ExpiredToken));
        assert_eq!(with(&[credential(None)]), Ok(REGION.into()));
    }

    #[test]
    fn header_must_be_whole() {
        let with = |value: &'static str| {
            let mut headers = describe();
            headers.insert("authorization", HeaderValue::from_static(value));
            check(&headers, "/describeStream", Payload::Whole(BODY), NOW).unwrap_err()
        };
        let missing = check(&describe(), "/describeStream", Payload::Whole(BODY), NOW);
        assert_eq!(missing, Err(Refusal::Missing));
        for value in [
            "Basic abc",
            "AWS4-HMAC-SHA256",
            "AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature=00",
            "AWS4-HMAC-SHA256 Credential=A/20250102/us-west-2/kinesisvideo/aws4_request, Signature=00",
            "AWS4-HMAC-SHA256 Credential=A/20250102/us-west-2/kinesisvideo/aws4_request, SignedHeaders=host",
        ] {
            assert!(matches!(with(value), Refusal::Incomplete(_)), "{value}");
        }
        let scopes = [
            "20250102/eu-west-1/kinesisvideo/aws4_request",
            "20250102/us-west-2/kinesis/aws4_request",
            "20250102/us-west-2/kinesisvideo/aws5_request",
            "20250101/us-west-2/kinesisvideo/aws4_request",
        ];
        for scope in scopes {
            let mut headers = describe();
            let value = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{scope}, SignedHeaders=host;x-amz-date, Signature=00"
            );
            headers.insert("authorization", value.parse().unwrap());
            let refused = check(&headers, "/describeStream", Payload::Whole(BODY), NOW);
            assert!(matches!(refused, Err(Refusal::Scope(_))), "{scope}");
        }
        assert_eq!(
            with(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20250102/us-west-2/kinesisvideo/aws4_request, \
                 SignedHeaders=x-amz-date, Signature=00"
            ),
            Refusal::Unsigned("host")
        );
    }

    #[test]
    fn payload_may_be_declared_unsigned_where_it_is_endless() {
        let mut headers = put_media();
        headers.insert("x-amz-content-sha256", HeaderValue::from_static(UNSIGNED));
        let names = ["host", "x-amz-content-sha256", "x-amz-date"];
        let endless = request("/putMedia", &headers, Payload::Endless, &Method::POST);
        let text = canonical(endless, &names).unwrap();
        assert!(text.ends_with("\nUNSIGNED-PAYLOAD"), "{text}");
        let whole = Presented {
            payload: Payload::Whole(BODY),
            ..endless
        };
        assert!(!canonical(whole, &names).unwrap().ends_with(UNSIGNED));
        let value = authorize(endless, &credential(None), REGION, &names);
        headers.insert("authorization", value.parse().unwrap());
        assert!(check(&headers, "/putMedia", Payload::Endless, NOW).is_ok());
    }

    #[test]
    fn header_values_are_trimmed_folded_and_joined() {
        let mut headers = HeaderMap::new();
        headers.append("x-tag", HeaderValue::from_static("  a   b "));
        headers.append("x-tag", HeaderValue::from_static("c\t d"));
        let request = request("/p", &headers, Payload::Endless, &Method::POST);
        let text = canonical(request, &["x-tag"]).unwrap();
        assert!(
            text.starts_with("POST\n/p\n\nx-tag:a b,c d\n\nx-tag\n"),
            "{text}"
        );
    }

    #[test]
    fn query_is_decoded_encoded_and_sorted() {
        assert_eq!(canonical_query(""), "");
        assert_eq!(
            canonical_query("b=2&a=%7e+x%2f&&a=%41&c&d=%zz"),
            "a=A&a=~%2Bx%2F&b=2&c=&d=%25zz"
        );
        assert_eq!(encode("/a b/é".as_bytes(), Slash::Keep), "/a%20b/%C3%A9");
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", credential(Some("exampleSessionToken")));
        assert!(!shown.contains("Secret") && !shown.contains("exampleSessionToken"));
    }
}
