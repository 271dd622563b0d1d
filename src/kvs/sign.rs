//! The signed headers of PutMedia: AWS Signature Version 4 over the head alone, because the body has no end.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;

use crate::frame::Timecode;

/// The service's name in the credential scope, for control plane and data plane alike.
const SERVICE: &str = "kinesisvideo";

/// What one PutMedia request says of itself.
#[derive(Debug, Clone, Copy)]
pub struct PutMedia<'a> {
    /// Name of the stream.
    pub stream: &'a str,
    /// Host of the data endpoint, with its port where it is not the scheme's own.
    pub host: &'a str,
    /// Region of the stream: the credential scope's.
    pub region: &'a str,
    /// Wall clock at the start of the connection: the producer's start timestamp.
    pub start: Timecode,
    /// When it is signed, since the Unix epoch: the service's clock as far as it is known. More than 15 min off is refused.
    pub signed_at: Duration,
}

/// Why a request could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The signer refused it.
    #[error("the PutMedia request cannot be signed")]
    Sign(#[from] aws_sigv4::http_request::SigningError),
    /// A value holds characters that a header must not have.
    #[error("a header of the PutMedia request has a forbidden character")]
    Header(#[from] http::Error),
}

/// The headers to send, `host` included, in the order of the service's documentation. `authorization` and
/// `x-amz-security-token` are marked sensitive.
///
/// # Errors
/// When a value cannot stand in a header.
pub fn headers(
    request: &PutMedia<'_>,
    credentials: &Credentials,
) -> Result<http::HeaderMap, Error> {
    let start = start_timestamp(request.start);
    let fixed = [
        ("host", request.host),
        ("x-amzn-fragment-acknowledgment-required", "1"),
        ("x-amzn-fragment-timecode-type", "ABSOLUTE"),
        ("x-amzn-producer-start-timestamp", &start),
        ("x-amzn-stream-name", request.stream),
    ];
    // Host is signed from its header; the scheme plays no part.
    let uri = format!("https://{}/putMedia", request.host);
    let signable = SignableRequest::new("POST", uri, fixed.into_iter(), SignableBody::Bytes(&[]))?;
    let identity = credentials.clone().into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region(request.region)
        .name(SERVICE)
        .time(SystemTime::UNIX_EPOCH + request.signed_at)
        .settings(SigningSettings::default())
        .build()
        .expect("all that the builder asks for is given");
    let (instructions, _signature) = sign(signable, &params.into())?.into_parts();

    let mut signed = http::Request::builder().method("POST").uri("/putMedia");
    for (name, value) in fixed {
        signed = signed.header(name, value);
    }
    let mut signed = signed.body(())?;
    instructions.apply_to_request_http1x(&mut signed);
    let mut headers = std::mem::take(signed.headers_mut());
    for secret in ["authorization", "x-amz-security-token"] {
        if let Some(value) = headers.get_mut(secret) {
            value.set_sensitive(true);
        }
    }
    Ok(headers)
}

/// Unix seconds with exactly three decimals. (Printing both parts as plain numbers, as other producers do, turns 5 ms into
/// half a second.)
fn start_timestamp(start: Timecode) -> String {
    format!("{}.{:03}", start.0 / 1000, start.0 % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_published_algorithm() {
        let credentials = Credentials::new(
            "AKIDEXAMPLE",
            "exampleSecretKeyForTestsOnly",
            Some("exampleSessionToken".into()),
            None,
            "test",
        );
        let request = PutMedia {
            stream: "camera-1",
            host: "s-1234abcd.kinesisvideo.us-west-2.amazonaws.com",
            region: "us-west-2",
            start: Timecode(1_735_787_045_007),
            signed_at: Duration::from_secs(1_735_787_045),
        };
        let headers = headers(&request, &credentials).expect("plain values");
        assert_eq!(headers["x-amz-date"], "20250102T030405Z");
        assert_eq!(headers["x-amzn-producer-start-timestamp"], "1735787045.007");
        assert_eq!(headers["x-amz-security-token"], "exampleSessionToken");
        let authorization = headers["authorization"].to_str().expect("ASCII");
        assert_eq!(
            authorization,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20250102/us-west-2/kinesisvideo/aws4_request, \
             SignedHeaders=host;x-amz-date;x-amz-security-token;x-amzn-fragment-acknowledgment-required;\
             x-amzn-fragment-timecode-type;x-amzn-producer-start-timestamp;x-amzn-stream-name, \
             Signature=6d568446b2f8b13f13e132d39cf7344d8177906fa1a3bb6d64e5fdd9f3d96729"
        );
        assert!(
            headers["authorization"].is_sensitive()
                && headers["x-amz-security-token"].is_sensitive()
        );
    }

    #[test]
    fn milliseconds_are_padded() {
        assert_eq!(
            start_timestamp(Timecode(1_735_787_045_005)),
            "1735787045.005"
        );
        assert_eq!(start_timestamp(Timecode(7)), "0.007");
    }
}
