//! Credentials that the Security Token Service gives: for a web identity, and for the role of a profile.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread::{self, JoinHandle};

use hmac::{Hmac, KeyInit, Mac};
use kvs_producer_app::app::Exit;
use sha2::{Digest, Sha256};

use crate::support::{Endpoint, Program};

const CLIP: &[u8] = include_bytes!("../data/demo.h264");

/// Opens the local endpoint, which has these as its temporary credentials.
const GRANTED: &str = "<R><AssumeRoleResult><AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/camera/s</Arn>\
    </AssumedRoleUser><Credentials><AccessKeyId>ASIALOCALENDPOINT002</AccessKeyId>\
    <SecretAccessKey>localEndpointSecretKeyOpensNothingElse00</SecretAccessKey>\
    <SessionToken>localEndpointSessionToken</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>\
    </Credentials></AssumeRoleResult></R>";

const REFUSED: &str = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not for you</Message></Error></ErrorResponse>";

const ROLE: &str = "arn:aws:iam::123456789012:role/camera";

/// A request as the service got it.
struct Asked {
    headers: Vec<(String, String)>,
    form: Vec<(String, String)>,
    body: String,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find_map(|(known, value)| (known == name).then_some(value.as_str()))
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let mut form = self.form.iter();
        form.find_map(|(known, value)| (known == name).then_some(value.as_str()))
    }
}

/// A service that answers the first request with `answer`; its address, and what it was asked.
fn service(status: &'static str, answer: &'static str) -> (String, JoinHandle<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let asked = thread::Builder::new().spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
        let mut line = String::new();
        reader.read_line(&mut line).expect("a request line");
        assert_eq!(line, "POST / HTTP/1.1\r\n");
        let mut headers = Vec::new();
        loop {
            line.clear();
            reader.read_line(&mut line).expect("a header");
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = length.expect("a length").1.parse().expect("a number");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{answer}",
            answer.len()
        )
        .expect("a client that listens");
        let body = String::from_utf8(body).expect("a form");
        let url = reqwest::Url::parse(&format!("http://sts/?{body}")).expect("a form");
        Asked {
            headers,
            form: url.query_pairs().into_owned().collect(),
            body,
        }
    });
    (url, asked.expect("a thread"))
}

fn program(endpoint: &Endpoint, sts: &str) -> Program {
    Program::new(["--fps=1000", "--grace=1", "-D", "clip", "cam"])
        .file("clip", CLIP)
        .env("AWS_REGION", "us-west-2")
        .env("AWS_ENDPOINT_URL_KINESIS_VIDEO", endpoint.url())
        .env("AWS_ENDPOINT_URL_STS", sts)
}

fn web_identity(program: Program) -> Program {
    program
        .file("token", "the+token/of=a&device")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", "token")
        .env("AWS_ROLE_ARN", ROLE)
        .env("AWS_ROLE_SESSION_NAME", "front-door")
}

#[test]
fn a_web_identity_gets_a_role() {
    let endpoint = Endpoint::start([""; 0]);
    let (sts, asked) = service("200 OK", GRANTED);
    let run = web_identity(program(&endpoint, &sts)).run();
    let run = run.expect(Exit::Persisted);
    let asked = asked.join().expect("asked");
    assert_eq!(asked.parameter("Action"), Some("AssumeRoleWithWebIdentity"));
    assert_eq!(asked.parameter("Version"), Some("2011-06-15"));
    assert_eq!(asked.parameter("RoleArn"), Some(ROLE));
    assert_eq!(asked.parameter("RoleSessionName"), Some("front-door"));
    assert_eq!(
        asked.parameter("WebIdentityToken"),
        Some("the+token/of=a&device")
    );
    assert_eq!(asked.header("authorization"), None);
    assert!(!run.stderr.contains("the+token"), "{}", run.stderr);
}

#[test]
fn the_services_refusal_is_told() {
    let endpoint = Endpoint::start([""; 0]);
    let (sts, asked) = service("403 Forbidden", REFUSED);
    let run = web_identity(program(&endpoint, &sts)).run();
    asked.join().expect("asked");
    assert!(
        run.stderr.contains("AccessDenied: not for you"),
        "{}",
        run.stderr
    );
    assert!(!run.stderr.contains("the+token"), "{}", run.stderr);
}

#[test]
fn a_profile_assumes_its_role() {
    let config = format!(
        "[profile base]\naws_access_key_id = AKIABASE\naws_secret_access_key = base-secret\n\
         [profile camera]\nrole_arn = {ROLE}\nsource_profile = base\nexternal_id = door/1\n"
    );
    let endpoint = Endpoint::start([""; 0]);
    let (sts, asked) = service("200 OK", GRANTED);
    let host = sts.trim_start_matches("http://").to_owned();
    program(&endpoint, &sts)
        .file("config", config)
        .env("AWS_CONFIG_FILE", "config")
        .env("AWS_PROFILE", "camera")
        .run()
        .expect(Exit::Persisted);
    let asked = asked.join().expect("asked");
    assert_eq!(asked.parameter("Action"), Some("AssumeRole"));
    assert_eq!(asked.parameter("RoleArn"), Some(ROLE));
    assert_eq!(asked.parameter("ExternalId"), Some("door/1"));

    let date = asked.header("x-amz-date").expect("a date");
    let signed = "content-type;host;x-amz-date";
    let request = format!(
        "POST\n/\n\ncontent-type:application/x-www-form-urlencoded\nhost:{host}\nx-amz-date:{date}\n\n{signed}\n{}",
        hex(&Sha256::digest(&asked.body))
    );
    let day = &date[..8];
    let scope = format!("{day}/us-west-2/sts/aws4_request");
    let text = format!(
        "AWS4-HMAC-SHA256\n{date}\n{scope}\n{}",
        hex(&Sha256::digest(request))
    );
    let key = [day, "us-west-2", "sts", "aws4_request"]
        .iter()
        .fold(b"AWS4base-secret".to_vec(), |key, part| keyed(&key, part));
    assert_eq!(
        asked.header("authorization"),
        Some(&*format!(
            "AWS4-HMAC-SHA256 Credential=AKIABASE/{scope}, SignedHeaders={signed}, Signature={}",
            hex(&keyed(&key, &text))
        ))
    );
}

fn keyed(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[test]
fn doctor_says_who_it_is() {
    let endpoint = Endpoint::start([""; 0]);
    let caller = "<R><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/camera</Arn></GetCallerIdentityResult></R>";
    let (sts, asked) = service("200 OK", caller);
    let examine = |sts: &str| {
        let variables = endpoint.variables();
        let variables = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        Program::new(["doctor", "cam", "-D", "demo"])
            .envs(variables)
            .env("AWS_ENDPOINT_URL_STS", sts)
            .run()
            .expect(Exit::Persisted)
    };
    let run = examine(&sts);
    let asked = asked.join().expect("asked");
    assert_eq!(asked.parameter("Action"), Some("GetCallerIdentity"));
    assert!(asked.header("authorization").is_some(), "it is signed");
    let line = "✓ identity    arn:aws:iam::123456789012:user/camera\n";
    assert!(run.stdout.contains(line), "{}", run.stdout);

    let (sts, _) = service("403 Forbidden", REFUSED);
    let run = examine(&sts);
    let line = "does not tell: AccessDenied: not for you\n";
    assert!(run.stdout.contains(line), "{}", run.stdout);
}
