//! The options of [`Docker::connect_with`](super::Docker::connect_with).

use std::path::PathBuf;

use super::connection::{Address, Environment};
use crate::error::RuntimeError;

/// The parameters of a connection to an engine.
///
/// The default is the connection of [`Docker::connect`](super::Docker::connect).
///
/// ```no_run
/// use moat::runtime::docker::{ConnectOptions, Docker};
///
/// # async fn run() -> moat::Result<()> {
/// let options = ConnectOptions::default()
///     .address("tcp://builder:2376")
///     .certificates("/etc/docker/certs");
/// let docker = Docker::connect_with(options).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    address: Option<String>,
    certificates: Option<PathBuf>,
}

impl ConnectOptions {
    /// Sets the address: `unix://`, `tcp://`, `http://` or `https://`.
    ///
    /// Default: `DOCKER_HOST`, else the first socket that exists.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// Requires TLS, with the certificates in `dir`.
    ///
    /// The directory holds `ca.pem` and, for a client certificate, `cert.pem` and `key.pem`. The
    /// address must be `tcp://` or `https://`. Requires the feature `tls`. Default: see
    /// [`Docker::connect`](super::Docker::connect).
    pub fn certificates(mut self, dir: impl Into<PathBuf>) -> Self {
        self.certificates = Some(dir.into());
        self
    }

    /// Returns true if the address is that of `DOCKER_HOST`.
    pub(super) fn uses_docker_host(&self, environment: &Environment) -> bool {
        self.address.is_none() && environment.docker_host().is_some()
    }

    pub(super) fn resolve(self, environment: Environment) -> Result<Address, RuntimeError> {
        let environment = match &self.certificates {
            Some(dir) => environment.with_certificates(dir.clone()),
            None => environment,
        };
        let address = match &self.address {
            Some(address) => Address::parse(address, &environment)?,
            None => Address::local(&environment)?,
        };
        if self.certificates.is_some() && address.certificates.is_none() {
            return Err(RuntimeError::Unavailable {
                address: address.to_string(),
                reason: "certificates are given, but the address does not use TLS: give tcp:// \
                         or https://"
                    .into(),
            });
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(options: ConnectOptions) -> Result<Address, RuntimeError> {
        options.resolve(Environment::default())
    }

    #[test]
    fn certificates_require_a_tls_address() {
        for address in ["unix:///x.sock", "http://db"] {
            let options = ConnectOptions::default().address(address);
            assert!(resolve(options.clone()).is_ok());
            let error = resolve(options.certificates("/certs")).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("does not use TLS"), "{address}: {error}");
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn certificates_enable_tls() {
        for address in ["tcp://db", "https://db"] {
            let options = ConnectOptions::default().address(address);
            let address = resolve(options.certificates("/certs")).unwrap();
            assert_eq!(address.to_string(), "https://db:2376");
            assert_eq!(address.certificates, Some("/certs".into()));
        }
    }
}
