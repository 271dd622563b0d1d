//! AWS IoT's credentials provider as far as a producer sees it: mutual TLS, one request, one answer.

use std::collections::VecDeque;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use kvs_producer_app::clock::Clock;
use kvs_producer_app::kvs::credentials::iot::{Inputs, Options};
use kvs_producer_app::local::Credential;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

pub const THING: &str = "gate-camera";
pub const ALIAS: &str = "CameraRole";

/// What the provider does when it is asked by the right certificate, for the right thing and alias.
#[derive(Debug, Clone)]
pub enum Answer {
    /// It grants credentials that end so many seconds from now, or have ended.
    Grant(Credential, i64),
    /// The same, after a while.
    Slow(Duration, Credential, i64),
    /// It refuses.
    Refuse(u16, &'static str),
    /// It hangs up at once, before TLS.
    Down,
    /// It never answers.
    Silent,
}

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(ca, key).expect("signed"))
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new([name.to_owned()]).expect("a name");
        (leaf.signed_by(&key, &self.0).expect("signed"), key)
    }
}

/// The provider, and the files of a thing that it knows.
pub struct CredentialsProvider {
    address: SocketAddr,
    files: TempDir,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<Instant>>>,
    task: JoinHandle<()>,
}

impl Drop for CredentialsProvider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl CredentialsProvider {
    /// Gives these answers, and the last of them for ever.
    pub async fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let (authority, things) = (Authority::new(), Authority::new());
        let (leaf, key) = authority.sign("127.0.0.1");
        let mut roots = RootCertStore::empty();
        roots.add(things.0.der().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .expect("it has a root");
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .expect("they go together");
        let acceptor = TlsAcceptor::from(Arc::new(tls));

        let files = TempDir::new().expect("a directory");
        let write = |name: &str, text: String| {
            let path = files.path().join(name);
            fs::write(&path, text).expect("written");
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("ours");
        };
        write("ca.pem", authority.0.pem());
        for (name, authority) in [("thing", &things), ("stranger", &Authority::new())] {
            let (certificate, key) = authority.sign(name);
            write(&format!("{name}.cert.pem"), certificate.pem());
            write(&format!("{name}.key.pem"), key.serialize_pem());
        }

        let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let task = {
            let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
            #[expect(clippy::disallowed_methods, reason = "the test's own server")]
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    asked.lock().expect("whole").push(Clock.now());
                    let answer = {
                        let mut answers = answers.lock().expect("whole");
                        let answer = answers.front().expect("one at least").clone();
                        if answers.len() > 1 {
                            answers.pop_front();
                        }
                        answer
                    };
                    let serve = serve(stream, acceptor.clone(), answer);
                    #[expect(clippy::disallowed_methods, reason = "the test's own server")]
                    tokio::spawn(serve);
                }
            })
        };
        Self {
            address,
            files,
            answers,
            asked,
            task,
        }
    }

    /// From now on it does this.
    pub fn change(&self, answer: Answer) {
        *self.answers.lock().expect("whole") = [answer].into();
    }

    /// When it was asked so far.
    pub fn asked(&self) -> Vec<Instant> {
        self.asked.lock().expect("whole").clone()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// What leads to it.
    pub fn inputs(&self) -> Inputs {
        Inputs {
            endpoint: Some(self.endpoint()),
            certificate: Some(self.file("thing.cert.pem")),
            key: Some(self.file("thing.key.pem")),
            role_alias: Some(ALIAS.into()),
            thing: Some(THING.into()),
        }
    }

    pub fn options(&self) -> Options {
        Options::new(self.inputs()).expect("they make sense")
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, answer: Answer) {
    if matches!(answer, Answer::Down) {
        return;
    }
    let Ok(mut stream) = acceptor.accept(stream).await else {
        return;
    };
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_buf(&mut request).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    let (status, body) = respond(&String::from_utf8_lossy(&request), answer).await;
    let (length, date) = (
        body.len(),
        httpdate::fmt_http_date(UNIX_EPOCH + Clock.wall()),
    );
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nx-amzn-RequestId: 1\r\ndate: {date}\r\ncontent-length: {length}\r\n\r\n"
    );
    // The producer may be gone.
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(body.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn respond(request: &str, answer: Answer) -> (u16, String) {
    let refuse = |status, message: &str| {
        (
            status,
            serde_json::json!({ "message": message }).to_string(),
        )
    };
    if !request.starts_with(&format!(
        "GET /role-aliases/{ALIAS}/credentials HTTP/1.1\r\n"
    )) {
        return refuse(404, "Role alias does not exist");
    }
    if !request.contains(&format!("\r\nx-amzn-iot-thingname: {THING}\r\n")) {
        return refuse(403, "Invalid thing name passed");
    }
    let (known, life) = match answer {
        Answer::Grant(known, life) => (known, life),
        Answer::Slow(time, known, life) => {
            tokio::time::sleep(time).await;
            (known, life)
        }
        Answer::Refuse(status, message) => return refuse(status, message),
        Answer::Down | Answer::Silent => std::future::pending().await,
    };
    (200, grant(&known, life))
}

/// `life` seconds from now, as the providers write it.
pub fn end(life: i64) -> String {
    let now = i64::try_from(Clock.wall().as_secs()).expect("not that far");
    DateTime::from_secs(now + life)
        .fmt(Format::DateTime)
        .expect("a year with four digits")
}

fn grant(known: &Credential, life: i64) -> String {
    serde_json::json!({ "credentials": {
        "accessKeyId": known.access_key_id,
        "secretAccessKey": known.secret_access_key,
        "sessionToken": known.session_token,
        "expiration": end(life),
    }})
    .to_string()
}
