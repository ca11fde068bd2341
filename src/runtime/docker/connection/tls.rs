//! TLS to a remote engine, with the certificate files of Docker's CLI.

use std::path::Path;
use std::sync::Arc;
use std::{fmt, io};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::address::Certificates;
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
    /// Reads `ca.pem` and, if present, `cert.pem` and `key.pem`.
    ///
    /// No other CA is trusted. Without verification, `ca.pem` is not read.
    pub(super) fn load(certificates: &Certificates) -> Result<Self, Unreachable> {
        let Certificates { dir, verify } = certificates;
        // The provider is explicit: rustls panics if a program links two and has installed none.
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| Unreachable(format!("TLS: {e}")))?;
        let config = if *verify {
            config.with_root_certificates(roots(&dir.join("ca.pem"))?)
        } else {
            let dir = dir.display();
            tracing::warn!(%dir, "the certificate of the engine is not verified, as configured");
            let verifier = Arc::new(AnyCertificate::new(provider));
            config
                .dangerous()
                .with_custom_certificate_verifier(verifier)
        };
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        let config = if cert.exists() || key.exists() {
            let chain = read_certificates(&cert)?;
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

/// Accepts every certificate of a server, as `SkipTLSVerify` of a context and
/// `HttpTls::insecure` require.
///
/// It still checks that the server has the key of its certificate.
#[derive(Debug)]
pub(crate) struct AnyCertificate(Arc<CryptoProvider>);

impl AnyCertificate {
    pub(crate) fn new(provider: Arc<CryptoProvider>) -> Self {
        Self(provider)
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Reads the CA that is trusted.
fn roots(ca: &Path) -> Result<RootCertStore, Unreachable> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(ca)? {
        roots.add(certificate).map_err(|e| unusable(ca, &e))?;
    }
    Ok(roots)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unreachable> {
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
            "there is no such file; DOCKER_CERT_PATH or the context sets its directory".into()
        }
        pem::Error::Io(error) => error.to_string(),
        _ => "the file is not PEM".into(),
    }
}

fn unusable(path: &Path, reason: &dyn fmt::Display) -> Unreachable {
    Unreachable(format!("TLS: cannot use {}: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;

    use super::*;

    /// A certificate for the host `engine`, signed with its own key, and valid until 2120.
    const CERTIFICATE: &str = "\
    MIIBNTCB3KADAgECAgEBMAoGCCqGSM49BAMCMBExDzANBgNVBAMMBmVuZ2luZTAgFw0yMDAxMDEwMDAw\
    MDBaGA8yMTIwMDEwMTAwMDAwMFowETEPMA0GA1UEAwwGZW5naW5lMFkwEwYHKoZIzj0CAQYIKoZIzj0D\
    AQcDQgAEesa4VZKmexA2To7MkiVqgZ3ChGLphYx79ONLDa+Z7BByCpEMNAMXp2tnhA/HDR39jEUBK3D9\
    dXoCDg+lxrkNn6MjMCEwEQYDVR0RBAowCIIGZW5naW5lMAwGA1UdEwEB/wQCMAAwCgYIKoZIzj0EAwID\
    SAAwRQIgCJNBsUl1wUHPDETLsjdbYRkaSZ7PVE6WRsY915HoV0MCIQDkmlqi60wyGptU//RojxTfI2Dm\
    Pg2dxnOkbXTh8n/BCA==";
    /// The key of that certificate, for these tests alone.
    const KEY: &str = "\
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgcFtQ2dNQqq32dOleq5KtsBHqrJKh0+hW\
    xczT0YtHZVahRANCAAR6xrhVkqZ7EDZOjsySJWqBncKEYumFjHv040sNr5nsEHIKkQw0Axena2eED8cN\
    Hf2MRQErcP11egIOD6XGuQ2f";

    fn der(base64: &str) -> Vec<u8> {
        STANDARD.decode(base64).unwrap()
    }

    fn server() -> TlsAcceptor {
        let chain = vec![CertificateDer::from(der(CERTIFICATE))];
        let key = PrivateKeyDer::try_from(der(KEY)).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key);
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }

    /// Connects to a server with the certificate above, and reads its greeting.
    async fn greeting(certificates: &Certificates, host: &str) -> Result<Vec<u8>, Unreachable> {
        let tls = Tls::load(certificates)?;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(mut stream) = server().accept(stream).await {
                stream.write_all(b"hello").await.unwrap();
                stream.shutdown().await.unwrap();
            }
        };
        let read = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let mut stream = tls.wrap(stream, host).await?;
            let mut greeting = Vec::new();
            stream.read_to_end(&mut greeting).await.unwrap();
            Ok(greeting)
        };
        tokio::join!(serve, read).1
    }

    #[tokio::test]
    async fn an_unverified_engine_may_have_any_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let mut certificates = Certificates {
            dir: dir.path().to_owned(),
            verify: false,
        };
        let read = greeting(&certificates, "other").await.unwrap();
        assert_eq!(read, b"hello");

        certificates.verify = true;
        let Unreachable(error) = greeting(&certificates, "engine").await.unwrap_err();
        assert!(error.contains("ca.pem: there is no such file"), "{error}");
    }

    #[tokio::test]
    async fn a_verified_engine_must_have_a_trusted_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::verified(dir.path());
        let body = CERTIFICATE;
        let pem = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        std::fs::write(dir.path().join("ca.pem"), pem).unwrap();
        let read = greeting(&certificates, "engine").await.unwrap();
        assert_eq!(read, b"hello");
        let Unreachable(error) = greeting(&certificates, "other").await.unwrap_err();
        assert!(error.contains("not valid for name"), "{error}");
    }
}
