//! The options of [`Docker::connect_with`](crate::runtime::docker::Docker::connect_with).

use std::path::PathBuf;

use crate::error::RuntimeError;
use crate::runtime::docker::connection::{Candidate, Environment, Requested, candidates};

/// The parameters of a connection to an engine.
///
/// The default is the connection of [`Docker::connect`](crate::runtime::docker::Docker::connect).
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
    context: Option<String>,
    certificates: Option<PathBuf>,
}

impl ConnectOptions {
    /// Sets the address: `unix://`, `tcp://`, `http://`, `https://` or `ssh://`, and on Windows
    /// `npipe://`.
    ///
    /// Default: see [`Docker::connect`](crate::runtime::docker::Docker::connect). An address excludes a
    /// [`context`](Self::context).
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// Uses the engine of a context of Docker's CLI, as `docker --context` does.
    ///
    /// `DOCKER_CONTEXT` is ignored, and so is `DOCKER_HOST`, unless the name is `default`. That
    /// stands for no context: `DOCKER_HOST`, else a local socket.
    pub fn context(mut self, name: impl Into<String>) -> Self {
        self.context = Some(name.into());
        self
    }

    /// Requires TLS, with the certificates in `dir`.
    ///
    /// The directory holds `ca.pem` and, for a client certificate, `cert.pem` and `key.pem`. The
    /// address must be `tcp://` or `https://`. Requires the feature `tls`. Default: see
    /// [`Docker::connect`](crate::runtime::docker::Docker::connect).
    pub fn certificates(mut self, dir: impl Into<PathBuf>) -> Self {
        self.certificates = Some(dir.into());
        self
    }

    /// Returns the engines to try, in order.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Unavailable`] if the options contradict each other.
    pub(in crate::runtime::docker) fn candidates(
        self,
        environment: Environment,
    ) -> Result<Vec<Candidate>, RuntimeError> {
        if let (Some(_), Some(name)) = (&self.address, &self.context) {
            return Err(RuntimeError::Unavailable {
                address: format!("the address of context {name:?}"),
                reason: "an address is given, too: give either an address or a context".into(),
            });
        }
        let requires_tls = self.certificates.is_some();
        let environment = match self.certificates {
            Some(dir) => environment.with_certificates(dir),
            None => environment,
        };
        let requested = Requested {
            address: self.address.as_deref(),
            context: self.context.as_deref(),
            podman: false,
        };
        let mut candidates = candidates(requested, &environment);
        if requires_tls {
            candidates.iter_mut().for_each(Candidate::require_tls);
        }
        Ok(candidates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::docker::connection::Address;
    #[cfg(feature = "tls")]
    use crate::runtime::docker::connection::Certificates;

    /// Returns the address of the one engine.
    fn resolve(options: ConnectOptions) -> Result<Address, RuntimeError> {
        let mut candidates = options.candidates(Environment::default())?;
        match (candidates.pop(), candidates.is_empty()) {
            (Some(Candidate::Named { address, .. }), true) => address,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn certificates_require_a_tls_address() {
        for address in ["unix:///x.sock", "http://db"] {
            let options = ConnectOptions::default().address(address);
            assert!(resolve(options.clone()).is_ok());
            let error = resolve(options.certificates("/certs")).unwrap_err();
            let error = error.to_string();
            let expected = if cfg!(feature = "tls") {
                "does not use TLS"
            } else {
                "TLS"
            };
            assert!(error.contains(expected), "{address}: {error}");
        }
    }

    #[test]
    fn an_address_excludes_a_context() {
        let options = ConnectOptions::default().address("tcp://db").context("db");
        let error = resolve(options).unwrap_err().to_string();
        assert!(error.contains("either an address or a context"), "{error}");
    }

    #[cfg(feature = "tls")]
    #[test]
    fn certificates_enable_tls() {
        for (address, shown) in [
            (Some("tcp://db"), "https://db:2376"),
            (Some("https://db"), "https://db:2376"),
            (None, "https://localhost:2376"),
        ] {
            let options = ConnectOptions {
                address: address.map(str::to_owned),
                ..ConnectOptions::default()
            };
            let address = resolve(options.certificates("/certs")).unwrap();
            assert_eq!(address.to_string(), shown);
            let certificates = address.certificates.unwrap();
            assert_eq!(certificates, Certificates::verified("/certs".as_ref()));
        }
    }
}
