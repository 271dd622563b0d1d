//! `kvsProducerApp local-endpoint`: the endpoint as a program of its own, so that other producers can be pointed at it.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};

use super::scenario::{self, Scenario};
use super::view::History;
use super::{Endpoint, Options, Reach};
use crate::shutdown::Shutdown;

/// Runs a KVS-compatible endpoint until it is stopped
#[derive(Debug, Clone, clap::Args)]
pub struct LocalEndpointArgs {
    /// Address and port to listen on
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4566")]
    pub listen: SocketAddr,

    /// Directory for recordings; without it nothing is recorded
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// JSON file that says how to misbehave
    #[arg(long, value_name = "FILE")]
    pub scenario: Option<PathBuf>,

    /// Certificate chain in PEM; makes the endpoint speak TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Take only requests that are signed for this region
    #[arg(long, value_name = "REGION")]
    pub only_region: Option<String>,

    /// Listen on other than loopback addresses as well
    #[arg(long)]
    pub allow_remote: bool,
}

/// Why the command fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint does not start.
    #[error(transparent)]
    Start(#[from] super::Error),
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// The operating system's word.
        source: io::Error,
    },
    /// The scenario is none.
    #[error("{}", .path.display())]
    Scenario {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it, and where.
        source: scenario::Error,
    },
    /// A PEM file has no certificate or key.
    #[error("{} is not the PEM file that is needed", .path.display())]
    Pem {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// Certificate and key do not go together.
    #[error("the certificate and the key cannot be used together")]
    Tls(#[from] rustls::Error),
    /// The URL cannot be printed.
    #[error("cannot write to standard output")]
    Print(#[source] io::Error),
}

/// Starts the endpoint, prints how to reach it, and serves until `shutdown`.
///
/// # Errors
/// When it cannot start.
pub async fn run(args: LocalEndpointArgs, shutdown: Shutdown) -> Result<(), Error> {
    let options = options(args)?;
    let credential = options.credentials[0].clone();
    let region = options.region.clone();
    let endpoint = Endpoint::start(options).await?;
    // Lines for a shell: `eval "$(..)"`, or an EnvironmentFile.
    let lines = format!(
        "AWS_ENDPOINT_URL_KINESIS_VIDEO={}\nAWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={}\nAWS_REGION={}\n",
        endpoint.url(),
        credential.access_key_id,
        credential.secret_access_key,
        region.as_deref().unwrap_or("us-west-2"), // without one any will do
    );
    let mut out = io::stdout();
    out.write_all(lines.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Error::Print)?;
    endpoint.serve_until(shutdown).await;
    Ok(())
}

/// The scenario in a file; without one, a service that behaves well.
///
/// # Errors
/// When the file cannot be read, or is no scenario.
pub fn scenario(path: Option<PathBuf>) -> Result<Scenario, Error> {
    let Some(path) = path else {
        return Ok(Scenario::default());
    };
    let text = fs::read_to_string(&path).map_err(|source| Error::Read {
        path: path.clone(),
        source,
    })?;
    Scenario::parse(&text).map_err(|source| Error::Scenario { path, source })
}

fn options(args: LocalEndpointArgs) -> Result<Options, Error> {
    let scenario = scenario(args.scenario)?;
    let tls = match (args.tls_cert, args.tls_key) {
        (Some(certificate), Some(key)) => Some(Arc::new(tls(&certificate, &key)?)),
        _ => None,
    };
    Ok(Options {
        listen: args.listen,
        reach: if args.allow_remote {
            Reach::Anyone
        } else {
            Reach::Loopback
        },
        directory: args.dir,
        scenario,
        tls,
        region: args.only_region,
        history: History::Recent,
        ..Options::default()
    })
}

fn tls(certificate: &Path, key: &Path) -> Result<ServerConfig, Error> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        |source| match source {
            pem::Error::Io(source) => Error::Read { path, source },
            source => Error::Pem { path, source },
        }
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(wrong(certificate))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(wrong(key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: LocalEndpointArgs,
    }

    fn parse(words: &[&str]) -> Result<LocalEndpointArgs, clap::Error> {
        let words = ["local-endpoint"].iter().chain(words);
        Line::try_parse_from(words).map(|line| line.args)
    }

    #[test]
    fn certificate_and_key_come_together() {
        assert!(parse(&["--tls-cert", "c.pem"]).is_err());
        assert!(parse(&["--tls-cert", "c.pem", "--tls-key", "k.pem"]).is_ok());
    }

    #[test]
    fn mistakes_are_one_clear_line() {
        let dir = tempfile::tempdir().unwrap();
        let bad = dir.path().join("bad.json");
        fs::write(&bad, r#"{"rules": [{"when": "start", "then": "cut"}]}"#).unwrap();
        let path = bad.to_str().unwrap();
        let line = |words: &[&str]| {
            let error = options(parse(words).unwrap()).unwrap_err();
            crate::chain(&error).to_string()
        };
        assert!(line(&["--scenario", path]).contains("bad.json: scenario, rules[0]: this action"));
        assert!(
            line(&["--scenario", "/no/such"]).starts_with("cannot read /no/such: No such file")
        );
        let tls = line(&["--tls-cert", path, "--tls-key", path]);
        assert!(tls.contains("bad.json is not the PEM file"), "{tls}");
    }

    #[tokio::test]
    async fn only_loopback_unless_told_otherwise() {
        let args = parse(&["--listen", "0.0.0.0:0"]).unwrap();
        let (_trigger, shutdown) = crate::shutdown::pair().expect("descriptors are left");
        let error = run(args, shutdown).await.unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("0.0.0.0:0 is not a loopback address")
        );
    }
}
