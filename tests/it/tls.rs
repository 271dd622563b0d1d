//! Over real TLS, with a CA of the test's own.

use std::sync::Arc;
use std::time::Duration;

use kvs_producer_app::app::{Config, Exit};
use kvs_producer_app::local::view::Closed;
use kvs_producer_app::local::{Endpoint, Options};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::NamedTempFile;

use crate::rig::{FastCamera, assert_whole, config, endpoint, stream};

/// An endpoint with a certificate for `name`, and the file of the CA that has signed it.
async fn secure_endpoint(name: &str) -> (Endpoint, NamedTempFile) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("no names");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("signed");
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new([name.to_owned()])
        .expect("a name")
        .signed_by(&key, &issuer)
        .expect("signed");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .expect("they go together");
    let file = NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), ca_certificate.pem()).expect("written");
    (
        endpoint(Options {
            tls: Some(Arc::new(tls)),
            ..Options::default()
        })
        .await,
        file,
    )
}

fn finite(endpoint: &Endpoint, ca: Option<&NamedTempFile>) -> Config {
    let mut config = config(&endpoint.url());
    config.ca_file = ca.map(|file| file.path().to_owned());
    config.session.give_up = true;
    config
}

#[tokio::test]
async fn calls_and_media_go_through_tls_with_an_extra_ca() {
    let (endpoint, ca) = secure_endpoint("127.0.0.1").await;
    assert!(endpoint.url().starts_with("https://"));
    let camera = FastCamera::new(150, Duration::from_millis(1));
    let summary = stream(finite(&endpoint, Some(&ca)), camera)
        .await
        .expect("a run");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_whole(&endpoint.view().state(), 150);
    assert_eq!(
        endpoint.view().state().connections[0].closed,
        Some(Closed::Completed)
    );
}

#[tokio::test]
async fn a_certificate_of_an_unknown_ca_gets_no_call_and_no_video() {
    let (endpoint, _ca) = secure_endpoint("127.0.0.1").await;
    let camera = FastCamera::new(150, Duration::from_millis(1));
    let summary = stream(finite(&endpoint, None), camera)
        .await
        .expect("a run");
    assert_eq!(summary.exit, Exit::Untrusted);
    let failure = summary.report.failure.expect("it failed");
    assert!(failure.contains("--ca-file"), "{failure}");
    assert!(endpoint.view().state().calls.is_empty());
}

#[tokio::test]
async fn a_certificate_for_another_name_gets_no_call_and_no_video() {
    let (endpoint, ca) = secure_endpoint("somewhere.else").await;
    let camera = FastCamera::new(150, Duration::from_millis(1));
    let summary = stream(finite(&endpoint, Some(&ca)), camera)
        .await
        .expect("a run");
    assert_eq!(summary.exit, Exit::Untrusted);
    let failure = summary.report.failure.expect("it failed");
    assert!(
        failure.contains("is the endpoint's address right"),
        "{failure}"
    );
    assert!(endpoint.view().state().calls.is_empty());
}
