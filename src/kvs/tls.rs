//! Whom to trust: the built-in roots, and an extra file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{ClientConfig, RootCertStore};

/// Why the extra CA file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read, or is no PEM.
    #[error("cannot read the CA file {}: {reason}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's word, or what is wrong with the text.
        reason: String,
    },
    /// It has no certificate.
    #[error("the CA file {} has no certificate: it must hold PEM blocks BEGIN CERTIFICATE", .0.display())]
    Empty(PathBuf),
    /// A certificate in it cannot be used as a root.
    #[error("the CA file {} has a certificate that cannot be used", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// The one client configuration for all connections: TLS 1.2 and 1.3 on ring, HTTP/1.1, Mozilla's roots compiled in (which
/// have Amazon's), and those of `ca_file` beside them.
///
/// # Errors
/// When `ca_file` is given and of no use.
pub fn client_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if let Some(path) = ca_file {
        let unreadable = |error: pem::Error| Error::Read {
            path: path.into(),
            reason: match error {
                pem::Error::Io(error) => error.to_string(),
                other => other.to_string(),
            },
        };
        let before = roots.len();
        for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
            let certificate = certificate.map_err(unreadable)?;
            roots
                .add(certificate)
                .map_err(|source| Error::Certificate {
                    path: path.into(),
                    source,
                })?;
        }
        if roots.len() == before {
            return Err(Error::Empty(path.into()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_of_no_use_is_named() {
        let missing = client_config(Some(Path::new("/nowhere/ca.pem"))).expect_err("no such file");
        assert!(missing.to_string().contains("/nowhere/ca.pem"), "{missing}");
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "hello").expect("written");
        assert!(matches!(
            client_config(Some(file.path())),
            Err(Error::Empty(_))
        ));
    }

    #[test]
    fn an_extra_ca_comes_beside_the_built_in_ones() {
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a certificate");
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), ca.cert.pem()).expect("written");
        client_config(Some(file.path())).expect("usable");
    }
}
