//! Whom to trust: the built-in roots, and an extra file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, KeyProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use webpki::ring as algorithms;

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

/// The roots that AWS's endpoints chain to: the five that Amazon Trust Services names for trust stores of one's own
/// (<https://www.amazontrust.com/repository>), and for the regions in China DigiCert's. A camera speaks to nobody else, and
/// whom it need not trust cannot deceive it; all of Mozilla's would be 75 kB more.
const ROOTS: &[u8] = include_bytes!("roots.pem");

/// The one client configuration for all connections: TLS 1.2 and 1.3 on ring, HTTP/1.1, AWS's roots compiled in, and those
/// of `ca_file` beside them.
///
/// # Errors
/// When `ca_file` is given and of no use.
pub fn client_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    add(&mut roots, CertificateDer::pem_slice_iter(ROOTS)).expect("they are roots");
    if let Some(path) = ca_file {
        let file = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, error))?;
        match add(&mut roots, file) {
            Ok(0) => return Err(Error::Empty(path.into())),
            Ok(_) => {}
            Err(Unusable::Text(error)) => return Err(unreadable(path, error)),
            Err(Unusable::Certificate(source)) => {
                return Err(Error::Certificate {
                    path: path.into(),
                    source,
                });
            }
        }
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Why a certificate cannot be a root.
#[derive(Debug)]
enum Unusable {
    Text(pem::Error),
    Certificate(rustls::Error),
}

/// Adds certificates to `roots`, and says how many.
fn add(
    roots: &mut RootCertStore,
    certificates: impl Iterator<Item = Result<CertificateDer<'static>, pem::Error>>,
) -> Result<usize, Unusable> {
    let before = roots.len();
    for certificate in certificates {
        let certificate = certificate.map_err(Unusable::Text)?;
        roots.add(certificate).map_err(Unusable::Certificate)?;
    }
    Ok(roots.len() - before)
}

fn unreadable(path: &Path, error: pem::Error) -> Error {
    Error::Read {
        path: path.into(),
        reason: match error {
            pem::Error::Io(error) => error.to_string(),
            other => other.to_string(),
        },
    }
}

/// ring without what no service's certificate has and no client needs, which is 50 kB of a camera's flash.
fn provider() -> CryptoProvider {
    CryptoProvider {
        signature_verification_algorithms: SIGNATURES,
        key_provider: &NoKeys,
        ..ring::default_provider()
    }
}

/// What certificates of the web's PKI are signed with: ECDSA and RSA. Ed25519 is not among it (CA/Browser Forum, Baseline
/// Requirements, section 7.1.3.2).
static SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        algorithms::ECDSA_P256_SHA256,
        algorithms::ECDSA_P256_SHA384,
        algorithms::ECDSA_P384_SHA256,
        algorithms::ECDSA_P384_SHA384,
        algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
        algorithms::RSA_PKCS1_2048_8192_SHA256,
        algorithms::RSA_PKCS1_2048_8192_SHA384,
        algorithms::RSA_PKCS1_2048_8192_SHA512,
    ],
    // TLS 1.2 leaves the curve open, hence two of each.
    mapping: &[
        (
            SignatureScheme::ECDSA_NISTP384_SHA384,
            &[algorithms::ECDSA_P384_SHA384, algorithms::ECDSA_P256_SHA384],
        ),
        (
            SignatureScheme::ECDSA_NISTP256_SHA256,
            &[algorithms::ECDSA_P256_SHA256, algorithms::ECDSA_P384_SHA256],
        ),
        (
            SignatureScheme::RSA_PSS_SHA512,
            &[algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY],
        ),
        (
            SignatureScheme::RSA_PSS_SHA384,
            &[algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY],
        ),
        (
            SignatureScheme::RSA_PSS_SHA256,
            &[algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY],
        ),
        (
            SignatureScheme::RSA_PKCS1_SHA512,
            &[algorithms::RSA_PKCS1_2048_8192_SHA512],
        ),
        (
            SignatureScheme::RSA_PKCS1_SHA384,
            &[algorithms::RSA_PKCS1_2048_8192_SHA384],
        ),
        (
            SignatureScheme::RSA_PKCS1_SHA256,
            &[algorithms::RSA_PKCS1_2048_8192_SHA256],
        ),
    ],
};

/// The one key that there may be, a device's for AWS IoT, is read by `credentials::iot`.
#[derive(Debug)]
struct NoKeys;

impl KeyProvider for NoKeys {
    fn load_private_key(
        &self,
        _: PrivateKeyDer<'static>,
    ) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        Err(rustls::Error::General(
            "private keys are read elsewhere".to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mozilla's programme has not distrusted one of them, nor given it limits that would be missing here.
    #[test]
    fn every_built_in_root_is_mozillas_too() {
        let mut roots = RootCertStore::empty();
        let added = add(&mut roots, CertificateDer::pem_slice_iter(ROOTS)).expect("roots");
        assert_eq!(added, 7);
        for root in &roots.roots {
            let theirs = webpki_roots::TLS_SERVER_ROOTS;
            assert!(theirs.contains(root), "{:?}", root.subject);
        }
    }

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
