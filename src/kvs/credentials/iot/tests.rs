use std::fs;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::*;

const ENDPOINT: &str = "c1ab2cd3.credentials.iot.us-west-2.amazonaws.com";

fn inputs(directory: &Path) -> Inputs {
    Inputs {
        endpoint: Some(ENDPOINT.into()),
        certificate: Some(directory.join("cert.pem")),
        key: Some(directory.join("key.pem")),
        role_alias: Some("CameraRole".into()),
        thing: Some("gate".into()),
    }
}

fn options() -> Options {
    Options::new(inputs(Path::new("/etc/camera"))).expect("they make sense")
}

fn pair() -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(["gate".to_owned()])
        .expect("a name")
        .self_signed(&key)
        .expect("signed");
    (certificate.pem(), key.serialize_pem())
}

/// What comes of these two files.
fn identity(certificate: &str, key: &str) -> Result<CertifiedKey, String> {
    let directory = TempDir::new().expect("a directory");
    fs::write(directory.path().join("cert.pem"), certificate).expect("written");
    fs::write(directory.path().join("key.pem"), key).expect("written");
    let options = Options::new(inputs(directory.path())).expect("they make sense");
    options.identity().map_err(|error| {
        let text = error.to_string();
        assert!(!text.contains('\n'), "one line: {text}");
        text
    })
}

#[test]
fn an_endpoint_is_the_host_of_the_credentials_provider() {
    for text in [
        ENDPOINT,
        "https://c1ab2cd3.credentials.iot.us-west-2.amazonaws.com",
        "https://c1ab2cd3.credentials.iot.us-west-2.amazonaws.com/",
    ] {
        assert_eq!(host(text).expect(text), ENDPOINT);
    }
    for text in [
        "localhost:8443",
        "c1.credentials.iot.cn-northwest-1.amazonaws.com.cn",
        "c1.credentials.iot-fips.us-east-1.amazonaws.com",
    ] {
        assert_eq!(host(text).expect(text), text);
    }
    for text in [
        "",
        "http://x",
        "x/role-aliases/y",
        "me@x",
        "two words",
        "https://",
    ] {
        assert!(matches!(host(text), Err(Error::NoHost(_))), "{text:?}");
    }
    for text in [
        "c1ab2cd3-ats.iot.us-west-2.amazonaws.com",
        "kinesisvideo.us-west-2.amazonaws.com",
        "iot.cn-north-1.amazonaws.com.cn",
    ] {
        assert!(
            matches!(host(text), Err(Error::OtherService(_))),
            "{text:?}"
        );
    }
}

#[test]
fn names_are_those_of_aws_iot() {
    let with = |role_alias: &str, thing: &str| {
        Options::new(Inputs {
            role_alias: Some(role_alias.into()),
            thing: Some(thing.into()),
            ..inputs(Path::new("/"))
        })
    };
    assert!(with("a_B=c,d@e-1", "a_B:c-1").is_ok());
    for alias in [
        "",
        "a/b",
        "a?b",
        "arn:aws:iot:us-west-2:1:rolealias/x",
        &"x".repeat(129),
    ] {
        assert!(
            matches!(with(alias, "gate"), Err(Error::RoleAlias(_))),
            "{alias}"
        );
    }
    for thing in ["", "a b", "a\r\nx: y", "ä"] {
        assert!(
            matches!(with("role", thing), Err(Error::Thing(_))),
            "{thing}"
        );
    }
}

#[test]
fn a_certificate_and_its_key_go_together() {
    let (certificate, key) = pair();
    let chain = format!("{certificate}{}", pair().0);
    assert_eq!(identity(&chain, &key).expect("they do").cert.len(), 2);
    let (other, _) = pair();
    let error = identity(&other, &key).expect_err("they do not");
    assert!(
        error.starts_with("--iot-key ") && error.contains("does not belong to the certificate"),
        "{error}"
    );
}

#[test]
fn what_is_wrong_with_a_file_is_told() {
    let (certificate, key) = pair();
    let cut = |text: &str| text[..text.len() / 2].to_owned();
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let damaged = key.replace("PRIVATE KEY", "RSA PRIVATE KEY");
    let no_certificate = certificate
        .lines()
        .take(2)
        .chain(certificate.lines().last())
        .collect::<Vec<_>>()
        .join("\n");
    for (certificate, key, option, says) in [
        (
            "hello",
            key.as_str(),
            "--iot-cert",
            "that is no certificate",
        ),
        (&key, &certificate, "--iot-cert", "the wrong way round"),
        (&cut(&certificate), &key, "--iot-cert", "cut off"),
        (&no_certificate, &key, "--iot-cert", "damaged"),
        (&certificate, "hello", "--iot-key", "that is no private key"),
        (
            &certificate,
            &certificate,
            "--iot-key",
            "the wrong way round",
        ),
        (&certificate, &cut(&key), "--iot-key", "cut off"),
        (&certificate, &encrypted, "--iot-key", "encrypted"),
        (&certificate, &damaged, "--iot-key", "cannot be used"),
    ] {
        let error = identity(certificate, key).expect_err(says);
        assert!(error.starts_with(option) && error.contains(says), "{error}");
        assert!(
            !error.contains(key.lines().nth(1).unwrap_or("\n")),
            "{error}"
        );
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let directory = TempDir::new().expect("a directory");
    let options = Options::new(inputs(directory.path())).expect("they make sense");
    let error = options.identity().expect_err("no files").to_string();
    let path = directory.path().join("cert.pem");
    assert!(
        error.starts_with(&format!("--iot-cert {}: No such file", path.display())),
        "{error}"
    );
    fs::write(path, pair().0).expect("written");
    let error = options.identity().expect_err("no key").to_string();
    assert!(error.starts_with("--iot-key "), "{error}");
}

#[test]
fn an_answer_has_credentials_and_when_they_end() {
    let body =
        br#"{"credentials":{"accessKeyId":"ASIA1","secretAccessKey":"s/+","sessionToken":"t==",
                    "expiration":"2025-01-02T03:04:05Z"}}"#;
    let granted = answer(&options(), 200, body).expect("all there");
    assert_eq!(
        (
            granted.access_key_id(),
            granted.secret_access_key(),
            granted.session_token()
        ),
        ("ASIA1", "s/+", Some("t=="))
    );
    assert_eq!(granted.expiry(), parse_end("2025-01-02T03:04:05Z"));
}

#[test]
fn an_answer_that_lacks_something_is_none_and_none_of_it_is_shown() {
    for body in [
        "",
        "<html>hush</html>",
        "{}",
        "[]",
        r#"{"credentials":{"accessKeyId":"A","secretAccessKey":"hush","sessionToken":"hush","expiration":"soon"}}"#,
        r#"{"credentials":{"accessKeyId":"A","secretAccessKey":"hush","expiration":"2025-01-02T03:04:05Z"}}"#,
        r#"{"credentials":{"accessKeyId":"A","secretAccessKey":"","sessionToken":"hush","expiration":"2025-01-02T03:04:05Z"}}"#,
    ] {
        let failure = answer(&options(), 200, body.as_bytes()).expect_err(body);
        assert!(
            failure.message.starts_with("--iot-endpoint ")
                && failure
                    .message
                    .contains("is that the credentials provider?"),
            "{}",
            failure.message
        );
        assert!(!failure.message.contains("hush"), "{}", failure.message);
    }
}

/// What the service has been seen to answer, and the input that it is about.
const REFUSALS: &[(u16, &str, &str, &str)] = &[
    (
        403,
        "Invalid thing name passed",
        "--iot-thing \"gate\"",
        "attach-thing-principal",
    ),
    (
        403,
        "Certificate is invalid on this endpoint",
        "--iot-cert /etc/camera/cert.pem",
        "same account and region",
    ),
    (
        403,
        "Access Denied",
        "--iot-role-alias \"CameraRole\"",
        "iot:AssumeRoleWithCertificate",
    ),
    (
        404,
        "Role alias does not exist",
        "--iot-role-alias \"CameraRole\"",
        "list-role-aliases",
    ),
    (
        400,
        "Unable to assume the role, or the role to assume does not exist",
        "--iot-role-alias \"CameraRole\"",
        "credentials.iot.amazonaws.com",
    ),
    (
        400,
        "The requested CredentialDurationSeconds exceeds the MaxSessionDuration set for the role",
        "--iot-role-alias \"CameraRole\"",
        "shorten the alias's duration",
    ),
    (400, "Something new", "--iot-endpoint", "refuses role alias"),
    (200, "Invalid thing name passed", "--iot-thing", "attach"),
    (403, "", "--iot-role-alias", "does not allow"),
];

#[test]
fn a_refusal_names_the_input_that_it_is_about() {
    for &(status, message, input, says) in REFUSALS {
        let body = serde_json::json!({ "message": message }).to_string();
        let failure = answer(&options(), status, body.as_bytes()).expect_err(message);
        assert_eq!(failure.kind, FailureKind::NoCredentials, "{message}");
        let text = failure.message;
        assert!(
            text.starts_with(input) && text.contains(says) && text.contains(message),
            "{text}"
        );
        assert!(text.contains(&status.to_string()), "{text}");
    }
}

#[test]
fn a_fault_of_the_service_is_no_fault_of_the_inputs() {
    for (status, kind) in [
        (429, FailureKind::Throttled),
        (500, FailureKind::Service),
        (503, FailureKind::Service),
    ] {
        let failure = answer(&options(), status, b"busy").expect_err("no 200");
        assert_eq!(failure.kind, kind);
    }
}
