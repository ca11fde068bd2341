//! TLS to a remote engine, with the certificate files of Docker's CLI.

use std::path::Path;
use std::sync::Arc;
use std::{fmt, io};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::wire::Duplex;
use crate::runtime::docker::errors::Unreachable;

/// The trusted CA and, if there is one, the client certificate.
#[derive(Clone)]
pub(super) struct Tls(TlsConnector);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads `ca.pem` and, if present, `cert.pem` and `key.pem` from `dir`.
    ///
    /// No other CA is trusted.
    pub(super) fn load(dir: &Path) -> Result<Self, Unreachable> {
        let mut roots = RootCertStore::empty();
        let ca = dir.join("ca.pem");
        for certificate in certificates(&ca)? {
            roots.add(certificate).map_err(|e| unusable(&ca, &e))?;
        }
        // The provider is explicit: rustls panics if a program links two and has installed none.
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| Unreachable(format!("TLS: {e}")))?
            .with_root_certificates(roots);
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        let config = if cert.exists() || key.exists() {
            let chain = certificates(&cert)?;
            let secret =
                PrivateKeyDer::from_pem_file(&key).map_err(|e| unusable(&key, &redacted(&e)))?;
            config
                .with_client_auth_cert(chain, secret)
                .map_err(|e| unusable(&cert, &e))?
        } else {
            config.with_no_client_auth()
        };
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Performs the TLS handshake on `stream`, and checks the certificate against `host`.
    pub(super) async fn wrap(
        &self,
        stream: TcpStream,
        host: &str,
    ) -> Result<Box<dyn Duplex>, Unreachable> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Unreachable(format!("TLS: {host:?} is not a valid server name")))?;
        match self.0.connect(name, stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(Unreachable(format!(
                "TLS: {error}: does the engine use TLS on this port, and do ca.pem, cert.pem and \
                 key.pem belong to it?"
            ))),
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unreachable> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(|e| unusable(path, &redacted(&e)))?;
    match found.is_empty() {
        true => Err(unusable(path, &"the file contains no certificate")),
        false => Ok(found),
    }
}

/// Describes the error without the content of the file, which may be a key.
fn redacted(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => {
            "there is no such file; DOCKER_CERT_PATH sets its directory".into()
        }
        pem::Error::Io(error) => error.to_string(),
        _ => "the file is not PEM".into(),
    }
}

fn unusable(path: &Path, reason: &dyn fmt::Display) -> Unreachable {
    Unreachable(format!("TLS: cannot use {}: {reason}", path.display()))
}
