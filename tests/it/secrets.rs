//! Whatever happens, and however much is logged: no secret and no signature leaves but on the wire to the service.

use std::fs;
use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use kvs_producer_app::local::api::ApiError;
use kvs_producer_app::local::scenario::{Action, Break, Nth, Scenario, Trigger};
use kvs_producer_app::local::{Credential, Options, Validity};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::child::{Ended, Producer};
use crate::faults::Certificate;
use crate::proxy::Proxy;
use crate::rig::endpoint;

const SECRET: &str = "CanarySecretAccessKey/Of+No/Use0123456789";
const TOKEN: &str = "CanarySessionToken//////////wEaDOfNoUseAtAll==";

fn canary() -> Credential {
    Credential {
        access_key_id: "ASIACANARYCANARY0001".into(),
        secret_access_key: SECRET.into(),
        session_token: Some(TOKEN.into()),
        validity: Validity::Valid,
    }
}

/// All bytes of the files below `directory`.
fn files(directory: &Path, all: &mut Vec<u8>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        all.extend_from_slice(path.as_os_str().as_encoded_bytes());
        if path.is_dir() {
            files(&path, all);
        } else {
            all.extend(fs::read(&path).expect("readable"));
        }
    }
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack
        .windows(needle.len())
        .any(|bytes| bytes == needle.as_bytes())
}

struct Case {
    name: &'static str,
    scenario: Scenario,
    secure: bool,
    known: Credential,
    arguments: &'static [&'static str],
}

/// Streams for 3 s and looks for the canaries wherever the program can have left them.
async fn keeps_its_secrets(case: Case) -> Ended {
    let Case { name, .. } = case;
    let recordings = TempDir::new().expect("a directory");
    let certificate = case.secure.then(|| Certificate::good("127.0.0.1"));
    let endpoint = endpoint(Options {
        scenario: case.scenario,
        tls: certificate.as_ref().map(Certificate::server),
        credentials: vec![canary()],
        directory: Some(recordings.path().into()),
        ..Options::default()
    })
    .await;
    let proxy = Proxy::to(&endpoint.url());
    let ca = certificate.as_ref().map(Certificate::ca_file);
    let ca = ca.as_ref().map(|path| path.to_str().expect("ASCII"));
    let mut arguments = vec!["-vv", "--grace", "2"];
    arguments.extend(ca.iter().flat_map(|path| ["--ca-file", path]));
    arguments.extend(case.arguments);
    let scheme = if case.secure { "https" } else { "http" };
    let producer = Producer::start(&proxy.url(scheme), &case.known, &arguments);
    sleep(Duration::from_secs(1)).await;
    let mut written = producer.proc("cmdline");
    let limits = String::from_utf8(producer.proc("limits")).expect("text");
    sleep(Duration::from_secs(2)).await;
    producer.terminate();
    let ended = producer.end().await;
    for text in [&ended.stdout, &ended.stderr, &ended.report.to_string()] {
        written.extend_from_slice(text.as_bytes());
    }
    files(recordings.path(), &mut written);
    let signatures = proxy.signatures();
    assert!(
        case.secure || !signatures.is_empty(),
        "{name}: {signatures:?}"
    );
    let secrets = [SECRET, TOKEN].map(str::to_owned);
    for secret in secrets.iter().chain(&signatures) {
        assert!(
            !contains(&written, secret),
            "{name}: {secret}\n{}",
            ended.stderr
        );
    }
    let cores = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let values: Vec<_> = cores.expect("known").split_whitespace().collect();
    assert_eq!(values[4..6], ["0", "0"], "{name}: {cores:?}");
    assert!(
        ended.stderr.lines().count() >= 2,
        "{name}: {}",
        ended.stderr
    );
    ended
}

/// As the service words it: everything that was signed, the token included.
fn verbose_refusal() -> Action {
    let message = format!(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key \
         and signing method.\n\nThe Canonical String for this request should have been\n'POST\n/putMedia\n\n\
         host:127.0.0.1\nx-amz-security-token:{TOKEN}\n\nThe String-to-Sign should have been\n'AWS4-HMAC-SHA256'\n"
    );
    Action::Refuse(ApiError::new(
        StatusCode::FORBIDDEN,
        "SignatureDoesNotMatch",
        message,
    ))
}

#[tokio::test]
async fn no_output_has_a_secret_or_a_signature() {
    let denied = || {
        let message = "User is not authorized to perform this action";
        Action::Refuse(ApiError::new(
            StatusCode::FORBIDDEN,
            "AccessDeniedException",
            message,
        ))
    };
    let good = || Case {
        name: "all is well",
        scenario: Scenario::default(),
        secure: false,
        known: canary(),
        arguments: &[],
    };
    let wrong = Credential {
        secret_access_key: SECRET.to_lowercase(),
        ..canary()
    };
    let cases = [
        good(),
        Case {
            name: "JSON",
            arguments: &["--log-format", "json"],
            ..good()
        },
        Case {
            name: "TLS",
            secure: true,
            ..good()
        },
        Case {
            name: "the connection breaks",
            scenario: Scenario::of([(Trigger::bytes(1, 20_000), Action::Break(Break::Reset))]),
            ..good()
        },
        Case {
            name: "refused",
            scenario: Scenario::of([(Trigger::call("GetDataEndpoint", Nth::Each), denied())]),
            ..good()
        },
        Case {
            name: "403 in mid-stream",
            scenario: Scenario::of([(Trigger::bytes(1, 20_000), denied())]),
            ..good()
        },
        Case {
            name: "a refusal that tells what was signed",
            scenario: Scenario::of([
                (
                    Trigger::call("GetDataEndpoint", Nth::Only(1)),
                    verbose_refusal(),
                ),
                (Trigger::call("PutMedia", Nth::Each), verbose_refusal()),
            ]),
            arguments: &["--no-create"],
            ..good()
        },
        Case {
            name: "wrong keys",
            known: wrong,
            ..good()
        },
    ];
    let runs = cases.map(|case| Box::pin(keeps_its_secrets(case)));
    let mut tasks = tokio::task::JoinSet::new();
    for run in runs {
        tasks.spawn(run);
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("kept");
    }
}
