//! TLS of an HTTP request.

use std::sync::Arc;
use std::{fmt, io};

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, Error, RootCertStore};

use crate::runtime::Connection;
use crate::runtime::docker::AnyCertificate;
use crate::spec::InvalidSpec;

/// The TLS options of an [`HttpCheck`](crate::run::HttpCheck).
///
/// ```
/// use moat::run::{HttpCheck, HttpTls};
///
/// # fn check(ca: &str) -> HttpCheck {
/// HttpCheck::new(9200, "/").tls(HttpTls::ca(ca).server_name("es01"))
/// # }
/// ```
#[derive(Clone)]
pub struct HttpTls {
    /// `None`: any certificate is accepted.
    ca: Option<Vec<u8>>,
    server_name: String,
}

/// Without the PEM, which may contain a key.
impl fmt::Debug for HttpTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTls")
            .field("verifies", &self.ca.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}

impl HttpTls {
    /// Trusts the CA certificates in `pem`, and no others.
    ///
    /// A server that uses a CA certificate as its own is refused: use [`insecure`](Self::insecure).
    pub fn ca(pem: impl Into<Vec<u8>>) -> Self {
        Self {
            ca: Some(pem.into()),
            server_name: "localhost".into(),
        }
    }

    /// Accepts any certificate. The server must still have the key of its certificate.
    pub fn insecure() -> Self {
        Self {
            ca: None,
            server_name: "localhost".into(),
        }
    }

    /// Sets the name or IP address that the certificate must have, which is also sent to the
    /// server. Default: `localhost`.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = name.into();
        self
    }

    pub(super) fn validate(&self) -> Result<(), InvalidSpec> {
        self.name()?;
        self.connector().map(drop)
    }

    fn name(&self) -> Result<ServerName<'static>, InvalidSpec> {
        let name = &self.server_name;
        ServerName::try_from(name.clone())
            .map_err(|_| InvalidSpec::new("server_name", format!("{name:?} is not a server name")))
    }

    fn connector(&self) -> Result<TlsConnector, InvalidSpec> {
        // The provider is explicit: rustls panics if a program links two and has installed none.
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| InvalidSpec::new("tls", error.to_string()))?;
        let config = match &self.ca {
            Some(pem) => config.with_root_certificates(roots(pem)?),
            None => config
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate::new(provider))),
        };
        Ok(TlsConnector::from(Arc::new(config.with_no_client_auth())))
    }

    /// Performs the handshake, and returns the reason if it fails.
    pub(super) async fn wrap(&self, connection: Connection) -> Result<Connection, String> {
        let name = self.name().map_err(|error| error.to_string())?;
        let connector = self.connector().map_err(|error| error.to_string())?;
        let stream = connector.connect(name, connection).await;
        stream.map(Connection::new).map_err(|error| failure(&error))
    }
}

/// Reads the CA certificates. No error contains the PEM, which may contain a key.
fn roots(pem: &[u8]) -> Result<RootCertStore, InvalidSpec> {
    let invalid = |reason| InvalidSpec::new("ca", reason);
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| invalid("the text is not PEM"))?;
    if certificates.is_empty() {
        return Err(invalid("it contains no certificate in PEM"));
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let added = roots.add(certificate);
        added.map_err(|_| invalid("a certificate is invalid"))?;
    }
    Ok(roots)
}

fn failure(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match cause {
        Some(Error::InvalidMessage(_)) => format!("the server does not use TLS: {error}"),
        _ => format!("TLS: {error}"),
    }
}
