//! Opens connections to an engine, for moat's own calls and for bollard.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bollard::ClientVersion;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::address::{Address, Endpoint};
use super::local::{self, LocalStream};
use super::ssh::{SSH, SshConnection};
use super::wire::Wire;
use crate::error::RuntimeError;
use crate::runtime::docker::errors::Unreachable;

/// The newest API version that bollard implements.
const NEWEST_API: &ClientVersion = bollard::API_DEFAULT_VERSION;

/// Opens connections to one engine.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    address: Address,
    /// The program that opens connections to `ssh://`, and its first arguments.
    ssh: Vec<String>,
    #[cfg(feature = "tls")]
    tls: Option<super::tls::Tls>,
}

impl Dialer {
    /// Reads the certificates that `address` names, if any.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Unavailable`] if the certificates cannot be used.
    pub(crate) fn new(address: Address) -> Result<Self, RuntimeError> {
        Ok(Self {
            ssh: SSH.iter().map(|&argument| argument.to_owned()).collect(),
            #[cfg(feature = "tls")]
            tls: match &address.certificates {
                Some(certificates) => {
                    let tls =
                        super::tls::Tls::load(certificates).map_err(|Unreachable(reason)| {
                            RuntimeError::Unavailable {
                                address: address.to_string(),
                                reason,
                            }
                        })?;
                    Some(tls)
                }
                None => None,
            },
            address,
        })
    }

    /// Opens connections to `ssh://` with another program.
    #[cfg(test)]
    pub(super) fn with_ssh(mut self, program: Vec<String>) -> Self {
        self.ssh = program;
        self
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Returns the paths of the root directories of the engine's threads that this process can read.
    pub(crate) async fn roots_of_engine(&self) -> Vec<PathBuf> {
        match &self.address.endpoint {
            Endpoint::Local(path) => local::roots_of_engine(path).await,
            _ => Vec::new(),
        }
    }

    /// Opens a connection, without a timeout.
    pub(super) async fn open(&self) -> Result<Wire, Unreachable> {
        match &self.address.endpoint {
            Endpoint::Local(path) => {
                let stream = LocalStream::connect(path).await;
                Ok(Wire::Local(
                    stream.map_err(|error| socket_error(path, &error))?,
                ))
            }
            Endpoint::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await;
                let stream = stream.map_err(|error| tcp_error(&error))?;
                // Requests are small and latency-bound: Nagle's algorithm only delays them.
                let _ = stream.set_nodelay(true);
                #[cfg(feature = "tls")]
                if let Some(tls) = &self.tls {
                    return Ok(Wire::Other(tls.wrap(stream, host).await?));
                }
                Ok(Wire::Other(Box::new(stream)))
            }
            Endpoint::Ssh(address) => {
                let connection = SshConnection::open(&self.ssh, address)?;
                Ok(Wire::Other(Box::new(connection)))
            }
        }
    }

    /// Returns a bollard client that connects through this dialer.
    pub(crate) fn client(&self, timeout: Duration) -> Result<bollard::Docker, RuntimeError> {
        let client: Client<Self, _> = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(self.clone());
        let send = move |request: bollard::BollardRequest| {
            let response = client.request(request);
            async move { response.await.map_err(|e| io::Error::other(e).into()) }
        };
        bollard::Docker::connect_with_custom_transport(
            send,
            Some(format!("http://{}", self.address.authority())),
            timeout.as_secs(),
            NEWEST_API,
        )
        .map_err(|error| RuntimeError::Unavailable {
            address: self.address.to_string(),
            reason: error.to_string(),
        })
    }
}

impl tower_service::Service<hyper::Uri> for Dialer {
    type Response = TokioIo<Wire>;
    type Error = Unreachable;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Unreachable>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unreachable>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: hyper::Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move { dialer.open().await.map(TokioIo::new) })
    }
}

fn socket_error(path: &Path, error: &io::Error) -> Unreachable {
    let path = path.display();
    Unreachable(match error.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no socket at {path}: is the engine running, and is this its socket?")
        }
        io::ErrorKind::ConnectionRefused => {
            format!("nothing listens at {path}: is the engine running?")
        }
        io::ErrorKind::PermissionDenied => format!(
            "permission to connect to {path} is denied: add the user to the group that owns the \
             socket and log in again, or use an engine of the user"
        ),
        _ => error.to_string(),
    })
}

fn tcp_error(error: &io::Error) -> Unreachable {
    Unreachable(match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "connection refused: is the engine running, and does it listen on this port?".into()
        }
        _ => error.to_string(),
    })
}
