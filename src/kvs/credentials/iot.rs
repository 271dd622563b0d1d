//! The credentials provider of AWS IoT Core: temporary credentials of a role, for the certificate of a thing.
//!
//! Five inputs have to go together, most of them with things that were set up somewhere else; so an error says which of them
//! is wrong, and what to do.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::Credentials;
use rustls::crypto::ring::sign::{RsaSigningKey, any_ecdsa_type};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{AlertDescription, ClientConfig};
use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

use super::{Secret, parse_end};
use crate::kvs::aws::{root_cause, tls_error};
use crate::kvs::failure::{self, Failure, FailureKind};
use crate::kvs::service_clock::ServiceClock;
use crate::kvs::transport::untrusted;

/// For TCP and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer that is read, in bytes: a session token has 1 to 2 kB.
const MAX_ANSWER_BYTES: usize = 32 * 1024;

/// How to find the endpoint, for errors.
const FIND_ENDPOINT: &str = "aws iot describe-endpoint --endpoint-type iot:CredentialProvider";

/// What was given of the five inputs.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Host of the credentials provider.
    pub endpoint: Option<String>,
    /// PEM file of the thing's certificate.
    pub certificate: Option<PathBuf>,
    /// PEM file of its private key.
    pub key: Option<PathBuf>,
    /// Name of the role alias.
    pub role_alias: Option<String>,
    /// Name of the thing.
    pub thing: Option<String>,
}

impl Inputs {
    /// Whether nothing was given.
    pub fn is_empty(&self) -> bool {
        self.missing().len() == 5
    }

    /// What is not given comes from the environment, under the names that AWS's own producers read.
    #[must_use]
    pub fn or_from(self, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        // A name with other characters than ASCII's is refused below, whatever became of them.
        let name = |name| variable(name).map(|value| value.to_string_lossy().into_owned());
        let path = |name| variable(name).map(PathBuf::from);
        Self {
            endpoint: self
                .endpoint
                .or_else(|| name("AWS_IOT_CORE_CREDENTIAL_ENDPOINT")),
            certificate: self.certificate.or_else(|| path("AWS_IOT_CORE_CERT")),
            key: self.key.or_else(|| path("AWS_IOT_CORE_PRIVATE_KEY")),
            role_alias: self.role_alias.or_else(|| name("AWS_IOT_CORE_ROLE_ALIAS")),
            thing: self.thing.or_else(|| name("AWS_IOT_CORE_THING_NAME")),
        }
    }

    fn missing(&self) -> Vec<&'static str> {
        [
            ("--iot-endpoint", self.endpoint.is_none()),
            ("--iot-cert", self.certificate.is_none()),
            ("--iot-key", self.key.is_none()),
            ("--iot-role-alias", self.role_alias.is_none()),
            ("--iot-thing", self.thing.is_none()),
        ]
        .into_iter()
        .filter_map(|(option, missing)| missing.then_some(option))
        .collect()
    }
}

/// What is wrong with the inputs, as far as this machine can tell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Some are not there.
    #[error("{} missing: credentials from AWS IoT need all of --iot-endpoint, --iot-cert, --iot-key, --iot-role-alias and \
             --iot-thing", are(.0))]
    Missing(Vec<&'static str>),
    /// The endpoint is no host's name.
    #[error(
        "--iot-endpoint {0:?}: that is no host's name; it is written like \
         c1ab2cd3.credentials.iot.us-west-2.amazonaws.com: {FIND_ENDPOINT}"
    )]
    NoHost(String),
    /// The endpoint is another service's.
    #[error(
        "--iot-endpoint {0:?}: that is another endpoint of AWS, and not the credentials provider's, which has .credentials.iot. \
         in its name: {FIND_ENDPOINT}"
    )]
    OtherService(String),
    /// There can be no such role alias.
    #[error(
        "--iot-role-alias {0:?}: a role alias has 1 to 128 letters, digits and _ = , @ -; give its name and not its ARN"
    )]
    RoleAlias(String),
    /// There can be no such thing.
    #[error(
        "--iot-thing {0:?}: a thing's name has 1 to 128 letters, digits and _ : -; give its name and not its ARN"
    )]
    Thing(String),
    /// A file cannot be read.
    #[error(
        "{option} {}: {source}; give the path of the PEM file that AWS IoT made for the thing, readable for this user",
        .path.display()
    )]
    Read {
        /// Which.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: io::Error,
    },
    /// A file has something else in it.
    #[error("{option} {}: {what}", .path.display())]
    Content {
        /// Which.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What it is, and what it should be.
        what: &'static str,
    },
    /// The key is another certificate's.
    #[error(
        "--iot-key {}: this key does not belong to the certificate of --iot-cert {}; give the two that were made together",
        .key.display(), .certificate.display()
    )]
    Mismatch {
        /// The file with the key.
        key: PathBuf,
        /// The file with the certificate.
        certificate: PathBuf,
    },
}

fn are(options: &[&str]) -> String {
    match options {
        [one] => format!("{one} is"),
        [more @ .., last] => format!("{} and {last} are", more.join(", ")),
        [] => "nothing is".to_owned(),
    }
}

/// The five inputs, of which each makes sense for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    endpoint: String,
    certificate: PathBuf,
    key: PathBuf,
    role_alias: String,
    thing: String,
}

impl Options {
    /// Reads no file yet.
    ///
    /// # Errors
    /// When one is missing, or makes no sense.
    pub fn new(inputs: Inputs) -> Result<Self, Error> {
        let missing = inputs.missing();
        let (Some(endpoint), Some(certificate), Some(key), Some(role_alias), Some(thing)) = (
            inputs.endpoint,
            inputs.certificate,
            inputs.key,
            inputs.role_alias,
            inputs.thing,
        ) else {
            return Err(Error::Missing(missing));
        };
        if !is_name(&role_alias, "_=,@-") {
            return Err(Error::RoleAlias(role_alias));
        }
        if !is_name(&thing, "_:-") {
            return Err(Error::Thing(thing));
        }
        Ok(Self {
            endpoint: host(&endpoint)?,
            certificate,
            key,
            role_alias,
            thing,
        })
    }

    /// Host of the credentials provider, with its port where it is not 443.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The file with the private key.
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// Name of the thing.
    pub fn thing(&self) -> &str {
        &self.thing
    }

    /// Certificate and key, as they are in their files now: whoever renews them need not tell anybody.
    ///
    /// # Errors
    /// When a file cannot be read, has something else in it, or the two do not go together.
    pub fn identity(&self) -> Result<CertifiedKey, Error> {
        let read = |option, path: &Path| {
            Secret::read(path).map_err(|source| Error::Read {
                option,
                path: path.into(),
                source,
            })
        };
        let certificates = read("--iot-cert", &self.certificate)?;
        let certificates =
            parse_certificates(certificates.as_bytes()).map_err(|what| Error::Content {
                option: "--iot-cert",
                path: self.certificate.clone(),
                what,
            })?;
        let key = read("--iot-key", &self.key)?;
        let bad_key = |what| Error::Content {
            option: "--iot-key",
            path: self.key.clone(),
            what,
        };
        let mut key = parse_key(key.as_bytes()).map_err(bad_key)?;
        // AWS IoT takes no other kinds.
        let signing = any_ecdsa_type(&key)
            .or_else(|_| RsaSigningKey::new(&key).map(|key| Arc::new(key) as Arc<dyn SigningKey>));
        key.zeroize();
        let signing = signing.map_err(|_| {
            bad_key("this kind of private key cannot be used: it is RSA of 2048 bits or more, P-256 or P-384")
        })?;
        let identity = CertifiedKey::new(certificates, signing);
        match identity.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
                Ok(identity)
            }
            Err(rustls::Error::InconsistentKeys(_)) => Err(Error::Mismatch {
                key: self.key.clone(),
                certificate: self.certificate.clone(),
            }),
            Err(_) => Err(Error::Content {
                option: "--iot-cert",
                path: self.certificate.clone(),
                what: "the certificate in it is damaged: fetch it again",
            }),
        }
    }
}

/// Whether it can be a name of AWS IoT's with these characters beside letters and digits. Then it needs no quoting in a path
/// or header.
fn is_name(text: &str, others: &str) -> bool {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || others.contains(letter);
    (1..=128).contains(&text.len()) && text.chars().all(allowed)
}

/// The host (and port) of an endpoint as people give it.
fn host(text: &str) -> Result<String, Error> {
    let host = text.strip_prefix("https://").unwrap_or(text);
    let host = host.strip_suffix('/').unwrap_or(host);
    let authority: Option<http::uri::Authority> = host.parse().ok();
    let name = authority
        .as_ref()
        .map(http::uri::Authority::host)
        .filter(|name| !name.is_empty() && !host.contains('@'))
        .ok_or_else(|| Error::NoHost(text.into()))?;
    // Others are somebody's own name for it, or a test's.
    let of_aws = name.contains(".amazonaws.com") || name.ends_with(".api.aws");
    if of_aws && !name.contains("credentials") {
        return Err(Error::OtherService(text.into()));
    }
    Ok(host.to_owned())
}

fn parse_certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(if contains(text, "PRIVATE KEY-----") {
            "that is a private key: are --iot-cert and --iot-key the wrong way round?"
        } else {
            "that is no certificate: it must hold PEM blocks BEGIN CERTIFICATE"
        }),
        Ok(certificates) => Ok(certificates),
        Err(_) => Err("the PEM text in it is damaged or cut off: fetch it again"),
    }
}

fn parse_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, &'static str> {
    use rustls::pki_types::pem::Error;
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        Error::NoItemsFound if contains(text, "BEGIN ENCRYPTED PRIVATE KEY-----") => {
            "the key is encrypted, and nobody is here to type its password: openssl pkey -in FILE -out FILE2 takes it off"
        }
        Error::NoItemsFound if contains(text, "BEGIN CERTIFICATE-----") => {
            "that is a certificate: are --iot-cert and --iot-key the wrong way round?"
        }
        Error::NoItemsFound => {
            "that is no private key: it must hold a PEM block BEGIN PRIVATE KEY, BEGIN RSA PRIVATE KEY or BEGIN EC PRIVATE KEY"
        }
        _ => "the PEM text in it is damaged or cut off: fetch it again",
    })
}

fn contains(text: &[u8], part: &str) -> bool {
    text.windows(part.len())
        .any(|bytes| bytes == part.as_bytes())
}

/// The provider.
#[derive(Debug)]
pub struct Iot {
    options: Options,
    tls: ClientConfig,
    clock: ServiceClock,
}

impl Iot {
    /// The provider that trusts whom `tls` trusts, and tells `clock` the time.
    pub fn new(options: Options, tls: &ClientConfig, clock: ServiceClock) -> Self {
        let mut tls = tls.clone();
        // A session that was begun with one certificate is not gone on with under another.
        tls.resumption = rustls::client::Resumption::disabled();
        Self {
            options,
            tls,
            clock,
        }
    }

    /// Where it is and what it is asked for.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Asks for credentials. Whoever calls it bounds the time.
    ///
    /// # Errors
    /// Which of the five inputs is wrong, or what else, in one line.
    pub async fn fetch(&self) -> Result<Credentials, Failure> {
        let inputs = |error: Error| Failure::new(FailureKind::NoCredentials, error.to_string());
        let identity = self.options.identity().map_err(inputs)?;
        let mut tls = self.tls.clone();
        tls.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(identity));
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| self.unreachable(&error))?;
        let url = format!(
            "https://{}/role-aliases/{}/credentials",
            self.options.endpoint, self.options.role_alias
        );
        let mut response = client
            .get(url)
            .header("x-amzn-iot-thingname", &self.options.thing)
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        self.clock.hear(response.headers());
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_ANSWER_BYTES));
        while let Some(part) = response
            .chunk()
            .await
            .map_err(|error| self.unreachable(&error))?
        {
            if body.len() + part.len() > MAX_ANSWER_BYTES {
                return Err(unreadable(&self.options, 200));
            }
            body.extend_from_slice(&part);
        }
        answer(&self.options, response.status().as_u16(), &body)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let endpoint = &self.options.endpoint;
        let certificate = self.options.certificate.display();
        match tls_error(error) {
            Some(reason @ rustls::Error::InvalidCertificate(_)) => {
                let why = untrusted(endpoint, reason);
                return Failure::new(FailureKind::Untrusted, format!("--iot-endpoint: {why}"));
            }
            Some(rustls::Error::AlertReceived(alert)) => {
                let why = rejection(*alert);
                let message = format!(
                    "--iot-cert {certificate}: --iot-endpoint {endpoint} does not accept the certificate ({alert:?}): {why}"
                );
                return Failure::new(FailureKind::NoCredentials, message);
            }
            _ => {}
        }
        let cause = root_cause(error);
        let advice = if crate::chain(error).to_string().contains("dns error") {
            "; is its name right, and the network up?".to_owned()
        } else if error.is_connect() || error.is_timeout() {
            String::new()
        } else {
            // Some servers hang up on a certificate that they do not like.
            format!(
                "; is that the right endpoint, and the certificate of --iot-cert {certificate} active there?"
            )
        };
        let message = format!("--iot-endpoint: cannot reach {endpoint}: {cause}{advice}");
        Failure::new(FailureKind::Network, message)
    }
}

/// What the server's alert says of our certificate (RFC 8446 section 6.2).
fn rejection(alert: AlertDescription) -> &'static str {
    use AlertDescription as A;
    match alert {
        A::CertificateExpired => {
            "it has expired, or this machine and the service differ on the date: give a new one"
        }
        A::CertificateRevoked => "it is revoked: give a new one",
        A::CertificateRequired => {
            "it did not arrive: does the file hold the thing's own certificate first?"
        }
        _ => {
            "is it registered and active in the account and region of the endpoint? aws iot describe-certificate tells"
        }
    }
}

/// What the provider's answer comes to. Pure.
fn answer(options: &Options, status: u16, body: &[u8]) -> Result<Credentials, Failure> {
    let mut said: Value = serde_json::from_slice(body).unwrap_or_default();
    // Errors have come with 200 as well.
    if let Some(message) = said["message"].as_str().or(said["Message"].as_str()) {
        return Err(refusal(options, status, failure::words(message)));
    }
    if status != 200 {
        return Err(refusal(options, status, ""));
    }
    let mut granted = said.get_mut("credentials");
    // Moved and not copied: what holds them from here on overwrites them at its end.
    let mut take = |name: &str| match granted.as_mut()?.get_mut(name)?.take() {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    };
    let (id, secret, token, end) = (
        take("accessKeyId"),
        take("secretAccessKey").map(Zeroizing::new),
        take("sessionToken").map(Zeroizing::new),
        take("expiration").and_then(|end| parse_end(&end)),
    );
    match (id, secret, token, end) {
        (Some(id), Some(mut secret), Some(mut token), Some(end)) => Ok(Credentials::new(
            id,
            std::mem::take(&mut *secret),
            Some(std::mem::take(&mut *token)),
            Some(end),
            "Iot",
        )),
        _ => Err(unreadable(options, status)),
    }
}

fn unreadable(options: &Options, status: u16) -> Failure {
    let endpoint = &options.endpoint;
    let message = format!(
        "--iot-endpoint {endpoint}: the answer ({status}) has no credentials in it; is that the credentials provider? \
         {FIND_ENDPOINT}"
    );
    Failure::new(FailureKind::NoCredentials, message)
}

/// Which input a refusal is about. The messages are those of the service, of which the documentation has few.
fn refusal(options: &Options, status: u16, message: &str) -> Failure {
    let Options {
        endpoint,
        role_alias,
        thing,
        ..
    } = options;
    let certificate = options.certificate.display();
    let has = |part| message.contains(part);
    let (kind, what) = match status {
        429 => (
            FailureKind::Throttled,
            format!("--iot-endpoint {endpoint} is asked too often"),
        ),
        500.. => (
            FailureKind::Service,
            format!("--iot-endpoint {endpoint} has a fault"),
        ),
        _ if has("thing name") => (
            FailureKind::NoCredentials,
            format!(
                "--iot-thing {thing:?}: the certificate of --iot-cert {certificate} is not attached to a thing of this name; \
                 give its name, or attach it: aws iot attach-thing-principal"
            ),
        ),
        _ if has("ertificate") => (
            FailureKind::NoCredentials,
            format!(
                "--iot-cert {certificate}: the certificate is not accepted at --iot-endpoint {endpoint}; is it active, and are \
                 both of the same account and region?"
            ),
        ),
        404 => (
            FailureKind::NoCredentials,
            format!(
                "--iot-role-alias {role_alias:?}: there is none of this name in the account and region of --iot-endpoint \
                 {endpoint}: aws iot list-role-aliases"
            ),
        ),
        _ if has("CredentialDurationSeconds") => (
            FailureKind::NoCredentials,
            format!(
                "--iot-role-alias {role_alias:?}: it grants credentials for longer than its role allows; shorten the alias's \
                 duration, or raise the role's maximum"
            ),
        ),
        _ if has("assume") => (
            FailureKind::NoCredentials,
            format!(
                "--iot-role-alias {role_alias:?}: its role is gone, or does not trust credentials.iot.amazonaws.com to assume it"
            ),
        ),
        403 => (
            FailureKind::NoCredentials,
            format!(
                "--iot-role-alias {role_alias:?}: the policy of the certificate of --iot-cert {certificate} does not allow \
                 iot:AssumeRoleWithCertificate on this alias, or the certificate is not active"
            ),
        ),
        _ => (
            FailureKind::NoCredentials,
            format!(
                "--iot-endpoint {endpoint} refuses role alias {role_alias:?} for thing {thing:?}"
            ),
        ),
    };
    let colon = if message.is_empty() { "" } else { ": " };
    Failure::new(
        kind,
        format!("{what} (the answer was {status}{colon}{message})"),
    )
}

#[cfg(test)]
mod tests;
