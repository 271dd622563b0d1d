//! Credentials as fleets have them: from AWS IoT over mutual TLS, and from a file that somebody keeps up to date.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use http::StatusCode;
use kvs_producer_app::app::{Config, Exit, Summary};
use kvs_producer_app::kvs::credentials::iot::{Inputs, Options as IotOptions};
use kvs_producer_app::kvs::credentials::{Provider, refresh};
use kvs_producer_app::local::api::ApiError;
use kvs_producer_app::local::scenario::{Action, Scenario, Trigger};
use kvs_producer_app::local::{Credential, Endpoint, Options};
use tempfile::TempDir;

use crate::canary;
use crate::child::Producer;
use crate::credentials_provider::{ALIAS, Answer, CredentialsProvider, THING, end};
use crate::rig::{self, FastCamera, assert_whole, endpoint, stream};
use crate::support::{self, Program};

const HOUR: i64 = 3600;

fn known() -> Credential {
    Credential::temporary()
}

/// Streams to `endpoint` with what `provider` has, refreshing in fractions of a second.
fn config(endpoint: &Endpoint, provider: Provider) -> Config {
    let mut config = rig::config(&endpoint.url());
    config.aws.credentials = None;
    config.aws.provider = provider;
    config.aws.refresh = refresh::Settings {
        lead: Duration::from_secs(1),
        least_use: Duration::from_millis(100),
        first_wait: Duration::from_millis(50),
        longest_wait: Duration::from_millis(400),
        look_every: Duration::from_millis(50),
    };
    config.session.credential_margin = Duration::from_millis(500);
    config
}

fn iot(endpoint: &Endpoint, provider: &CredentialsProvider) -> Config {
    let mut config = config(endpoint, Provider::Iot(provider.options()));
    config.ca_file = Some(provider.file("ca.pem"));
    config
}

#[tokio::test]
async fn a_thing_streams_with_the_credentials_of_its_role() {
    let provider = CredentialsProvider::start([Answer::Grant(known(), HOUR)]).await;
    let endpoint = endpoint(Options::default()).await;
    let camera = FastCamera::new(150, Duration::from_millis(1));
    let summary = stream(iot(&endpoint, &provider), camera)
        .await
        .expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_whole(&endpoint.view().state(), 150);
    assert_eq!(provider.asked().len(), 1);
}

/// What a file's run comes to that gets no credentials.
async fn fails(provider: &CredentialsProvider, change: impl FnOnce(&mut Config)) -> Summary {
    let endpoint = endpoint(Options::default()).await;
    let mut config = iot(&endpoint, provider);
    config.session.give_up = true;
    config.session.patience = Some(Duration::from_secs(2));
    change(&mut config);
    let camera = FastCamera::new(150, Duration::from_millis(1));
    let summary = Box::pin(stream(config, camera)).await.expect("a run");
    assert!(
        endpoint.view().state().calls.is_empty(),
        "nothing is said without them"
    );
    summary
}

fn with(change: impl FnOnce(&mut Inputs), provider: &CredentialsProvider) -> Provider {
    let mut inputs = provider.inputs();
    change(&mut inputs);
    Provider::Iot(IotOptions::new(inputs).expect("they make sense"))
}

#[track_caller]
fn assert_told(summary: &Summary, exit: Exit, parts: &[&str]) {
    let failure = summary.report.failure.clone().unwrap_or_default();
    assert_eq!(summary.exit, exit, "{failure}");
    for part in parts {
        assert!(failure.contains(part), "{part:?} is not in: {failure}");
    }
    assert!(!failure.contains('\n'), "{failure}");
}

#[tokio::test]
async fn a_certificate_that_the_provider_does_not_know_is_named() {
    let provider = CredentialsProvider::start([Answer::Grant(known(), HOUR)]).await;
    let stranger = with(
        |inputs| {
            inputs.certificate = Some(provider.file("stranger.cert.pem"));
            inputs.key = Some(provider.file("stranger.key.pem"));
        },
        &provider,
    );
    let summary = fails(&provider, |config| config.aws.provider = stranger).await;
    assert_told(
        &summary,
        Exit::NotPermitted,
        &[
            "--iot-cert",
            "stranger.cert.pem",
            "does not accept",
            "active",
        ],
    );
}

#[tokio::test]
async fn a_wrong_thing_or_role_alias_is_named() {
    let provider = CredentialsProvider::start([Answer::Grant(known(), HOUR)]).await;
    let thing = with(|inputs| inputs.thing = Some("another".into()), &provider);
    let summary = fails(&provider, |config| config.aws.provider = thing).await;
    assert_told(
        &summary,
        Exit::NotPermitted,
        &[
            "--iot-thing \"another\"",
            "not attached",
            "Invalid thing name",
        ],
    );
    let alias = with(|inputs| inputs.role_alias = Some("Typo".into()), &provider);
    let summary = fails(&provider, |config| config.aws.provider = alias).await;
    assert_told(
        &summary,
        Exit::NotPermitted,
        &["--iot-role-alias \"Typo\"", "404", "list-role-aliases"],
    );
}

#[tokio::test]
async fn a_role_that_cannot_be_had_is_named() {
    let refusal = "Unable to assume the role, or the role to assume does not exist";
    let provider = CredentialsProvider::start([Answer::Refuse(400, refusal)]).await;
    let summary = fails(&provider, |_| {}).await;
    assert_told(
        &summary,
        Exit::NotPermitted,
        &["--iot-role-alias \"CameraRole\"", "does not trust", refusal],
    );
}

#[tokio::test]
async fn credentials_that_have_expired_already_are_not_used() {
    let provider = CredentialsProvider::start([Answer::Grant(known(), -60)]).await;
    let summary = fails(&provider, |_| {}).await;
    let name = format!("from --iot-endpoint {}", provider.endpoint());
    assert_told(
        &summary,
        Exit::NotPermitted,
        &[&name, "had expired when they came"],
    );
}

#[tokio::test]
async fn a_provider_that_is_not_who_it_should_be_gets_no_request() {
    let provider = CredentialsProvider::start([Answer::Grant(known(), HOUR)]).await;
    let summary = fails(&provider, |config| config.ca_file = None).await;
    assert_told(&summary, Exit::Untrusted, &["--iot-endpoint", "--ca-file"]);
}

#[tokio::test]
async fn a_provider_that_is_away_or_something_else_is_named() {
    let provider = CredentialsProvider::start([Answer::Down]).await;
    let summary = fails(&provider, |_| {}).await;
    let reached = ["--iot-endpoint: cannot reach", &provider.endpoint()];
    assert_told(&summary, Exit::Unsent, &reached);
    // Something that speaks no TLS.
    let other = endpoint(Options::default()).await;
    let address = other.url().replace("http://", "");
    let elsewhere = with(|inputs| inputs.endpoint = Some(address.clone()), &provider);
    let summary = fails(&provider, |config| config.aws.provider = elsewhere).await;
    assert_told(
        &summary,
        Exit::Unsent,
        &["--iot-endpoint: cannot reach", &address],
    );
}

#[tokio::test]
async fn a_slow_provider_is_waited_for_and_a_silent_one_is_given_up() {
    let slow = async {
        let slow = Answer::Slow(Duration::from_secs(2), known(), HOUR);
        let provider = CredentialsProvider::start([slow]).await;
        let endpoint = endpoint(Options::default()).await;
        let camera = FastCamera::new(150, Duration::from_millis(1));
        let summary = stream(iot(&endpoint, &provider), camera)
            .await
            .expect("a run");
        assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    };
    let silent = async {
        let provider = CredentialsProvider::start([Answer::Silent]).await;
        let summary = fails(&provider, |config| {
            config.session.patience = Some(Duration::from_millis(100));
        });
        assert_told(
            &summary.await,
            Exit::Unsent,
            &["no answer from --iot-endpoint", "for 10 s"],
        );
    };
    tokio::join!(slow, silent);
}

#[tokio::test]
async fn credentials_are_renewed_in_the_background_and_before_they_end() {
    let provider = CredentialsProvider::start([Answer::Grant(known(), 4)]).await;
    let endpoint = endpoint(Options::default()).await;
    let config = iot(&endpoint, &provider);
    let camera = FastCamera::new(1500, Duration::from_millis(6));
    let summary = stream(config, camera).await.expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_whole(&endpoint.view().state(), 1500);
    assert_eq!(summary.report.counts.resent.frames, 0);
    let asked = provider.asked();
    assert!((3..=9).contains(&asked.len()), "{} times", asked.len());
    for pair in asked.windows(2) {
        let life = pair[1] - pair[0];
        assert!(life < Duration::from_secs(4), "in time: {life:?}");
    }
}

#[tokio::test]
async fn a_stream_goes_on_while_its_provider_is_down_even_past_the_end() {
    let provider = CredentialsProvider::start([Answer::Grant(known(), 2), Answer::Down]).await;
    let endpoint = endpoint(Options::default()).await;
    let camera = FastCamera::new(1000, Duration::from_millis(6));
    let mut config = iot(&endpoint, &provider);
    config.session.credential_margin = Duration::from_secs(1);
    let back = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        provider.change(Answer::Grant(known(), HOUR));
        provider.asked().len()
    };
    let (summary, tries) = tokio::join!(stream(config, camera), back);
    let summary = summary.expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_whole(&endpoint.view().state(), 1000);
    assert_eq!(summary.report.counts.resent.frames, 0);
    assert!(tries >= 5, "it is tried again");
    assert_eq!(provider.asked().len(), tries + 1, "until it is back");
    assert!(
        summary.report.connections <= 2,
        "another is no better: {}",
        summary.report
    );
}

#[tokio::test]
async fn what_the_service_refuses_in_the_middle_is_fetched_anew_at_once() {
    let refused = ApiError::new(
        StatusCode::FORBIDDEN,
        "ExpiredTokenException",
        "The security token included in the request is expired",
    );
    let scenario = Scenario::of([(Trigger::bytes(1, 100_000), Action::Refuse(refused))]);
    let second = Credential::default();
    let second = Credential {
        access_key_id: "ASIASECOND0000000001".into(),
        session_token: Some("localEndpointSessionToken".into()),
        ..second
    };
    let provider = CredentialsProvider::start([
        Answer::Grant(known(), HOUR),
        Answer::Grant(second.clone(), HOUR),
    ])
    .await;
    let endpoint = endpoint(Options {
        scenario,
        credentials: vec![known(), second],
        ..Options::default()
    })
    .await;
    let camera = FastCamera::new(500, Duration::from_millis(2));
    let summary = stream(iot(&endpoint, &provider), camera)
        .await
        .expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_whole(&endpoint.view().state(), 500);
    assert_eq!(provider.asked().len(), 2);
}

#[tokio::test]
async fn a_credential_file_is_read_again_when_it_changes() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("credentials");
    let write = |known: &Credential, life: Option<i64>| {
        let Credential {
            access_key_id,
            secret_access_key,
            ..
        } = known;
        let line = match life {
            None => format!("CREDENTIALS {access_key_id} {secret_access_key}\n"),
            Some(life) => {
                let token = known.session_token.as_deref().unwrap_or_default();
                let end = end(life);
                format!("CREDENTIALS {access_key_id} {end} {secret_access_key} {token}\n")
            }
        };
        let next = directory.path().join("next");
        fs::write(&next, line).expect("written");
        fs::rename(next, &path).expect("renamed");
    };
    let endpoint = endpoint(Options::default()).await;
    let config = config(&endpoint, Provider::File(path.clone()));
    let camera = FastCamera::new(1500, Duration::from_millis(4));
    let change = async {
        let wait = || tokio::time::sleep(Duration::from_millis(700));
        // Not there yet; then with keys that are refused; then in both forms.
        wait().await;
        write(&Credential::expired(), Some(HOUR));
        wait().await;
        write(&known(), Some(3));
        wait().await;
        write(&Credential::default(), None);
    };
    let (summary, ()) = tokio::join!(stream(config, camera), change);
    let summary = summary.expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_whole(&endpoint.view().state(), 1500);
}

#[tokio::test]
async fn nothing_secret_is_said_and_a_key_that_all_can_read_is_warned_of() {
    for (mode, warned) in [(0o644, true), (0o600, false)] {
        let provider = CredentialsProvider::start([Answer::Grant(known(), HOUR)]).await;
        let endpoint = endpoint(Options::default()).await;
        let key = provider.file("thing.key.pem");
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("ours");
        let path = |name: &str| provider.file(name).display().to_string();
        let (certificate, key_path, ca) = (
            path("thing.cert.pem"),
            path("thing.key.pem"),
            path("ca.pem"),
        );
        let iot_endpoint = provider.endpoint();
        // The options come before the keys of the environment, which nobody knows.
        let nobody = Credential {
            access_key_id: "AKIANOBODY".into(),
            ..Credential::default()
        };
        let producer = Producer::start(
            &endpoint.url(),
            &nobody,
            &[
                "-vv",
                "--iot-endpoint",
                &iot_endpoint,
                "--iot-cert",
                &certificate,
                "--iot-key",
                &key_path,
                "--iot-role-alias",
                ALIAS,
                "--iot-thing",
                THING,
                "--ca-file",
                &ca,
            ],
        );
        while endpoint.view().state().persisted(rig::STREAM).count() < 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let line = producer.proc("cmdline");
        producer.terminate();
        let ended = producer.end().await;
        assert!(ended.status.success(), "{}", ended.stderr);
        let said = format!(
            "{}{}{}{}",
            ended.stdout,
            ended.stderr,
            ended.report,
            String::from_utf8_lossy(&line)
        );
        canary::assert_none_in(&said, "the output");
        let key = fs::read_to_string(&key).expect("there");
        for secret in key.lines().filter(|line| !line.starts_with("-----")) {
            assert!(!said.contains(secret), "the key is in: {said}");
        }
        let lines = ended.stderr.lines();
        let warnings = lines.filter(|line| line.contains("every user of this machine can read it"));
        assert_eq!(warnings.count(), usize::from(warned), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn inputs_that_make_no_sense_end_it_at_once() {
    let provider = CredentialsProvider::start([Answer::Grant(known(), HOUR)]).await;
    let path = |name: &str| provider.file(name).display().to_string();
    let (certificate, key, stranger) = (
        path("thing.cert.pem"),
        path("thing.key.pem"),
        path("stranger.key.pem"),
    );
    let other_service = "c1-ats.iot.us-west-2.amazonaws.com";
    let endpoint = provider.endpoint();
    for (endpoint, certificate, key, says) in [
        (
            endpoint.as_str(),
            "nowhere.pem",
            key.as_str(),
            "--iot-cert nowhere.pem: No such file",
        ),
        (
            &endpoint,
            &certificate,
            &stranger,
            "does not belong to the certificate",
        ),
        (&endpoint, &key, &certificate, "the wrong way round"),
        (
            other_service,
            &certificate,
            &key,
            "not the credentials provider's",
        ),
    ] {
        let arguments = [
            "--iot-endpoint",
            endpoint,
            "--iot-cert",
            certificate,
            "--iot-key",
            key,
            "--iot-role-alias",
            ALIAS,
            "--iot-thing",
            THING,
        ];
        let ended = Producer::start("http://127.0.0.1:1", &Credential::default(), &arguments)
            .end()
            .await;
        assert_eq!(
            ended.status.code(),
            Some(Exit::Usage as i32),
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
    assert!(provider.asked().is_empty());
}

#[test]
fn a_process_that_a_profile_names_gives_credentials() {
    let service = support::Endpoint::start([""; 0]);
    let Credential {
        access_key_id,
        secret_access_key,
        session_token,
        ..
    } = known();
    let granted = serde_json::json!({
        "Version": 1,
        "AccessKeyId": access_key_id,
        "SecretAccessKey": secret_access_key,
        "SessionToken": session_token,
        "Expiration": end(HOUR),
    });
    Program::new(["--fps=1000", "cam"])
        .file("clip", support::CLIP)
        .file("granted.json", granted.to_string())
        .file(
            "config",
            "[profile camera]\ncredential_process = cat granted.json\n",
        )
        .env("KVS_DEVICE", "clip")
        .env("AWS_REGION", "us-west-2")
        .env("AWS_CONFIG_FILE", "config")
        .env("AWS_PROFILE", "camera")
        .env("AWS_ENDPOINT_URL_KINESIS_VIDEO", service.url())
        .run()
        .expect(Exit::Persisted);
}
