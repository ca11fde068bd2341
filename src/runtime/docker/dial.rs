//! Opening a connection to the engine: one way for the client, the tap and the log reader.

use std::future::Future;
use std::io::{self, Read};
use std::mem;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bollard::ClientVersion;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::address::{Address, Endpoint};
use super::errors::Unreachable;
use super::transport::FULL_READ;
use crate::error::RuntimeError;

/// Opens connections to one engine.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    address: Address,
    #[cfg(feature = "tls")]
    tls: Option<super::tls::Tls>,
}

impl Dial {
    /// # Errors
    ///
    /// [`RuntimeError::Unavailable`] where the certificates for TLS cannot be used.
    pub(super) fn new(address: Address) -> Result<Self, RuntimeError> {
        Ok(Self {
            #[cfg(feature = "tls")]
            tls: match &address.certificates {
                Some(dir) => {
                    let tls = super::tls::Tls::load(dir).map_err(|Unreachable(reason)| {
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

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Opens a connection. Unbounded in time.
    pub(super) async fn open(&self) -> Result<Wire, Unreachable> {
        match &self.address.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                let stream = stream.map_err(|error| no_socket(path, &error))?;
                Ok(Wire::Unix(Socket::Watched(stream)))
            }
            Endpoint::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await;
                let stream = stream.map_err(|error| no_port(&error))?;
                // Requests are small, and wait for nothing.
                let _ = stream.set_nodelay(true);
                #[cfg(feature = "tls")]
                if let Some(tls) = &self.tls {
                    return Ok(Wire::Other(tls.wrap(stream, host).await?));
                }
                Ok(Wire::Other(Box::new(stream)))
            }
        }
    }

    /// A client that connects through it; its own bound on requests is `bound`.
    pub(super) fn client(&self, bound: Duration) -> Result<bollard::Docker, RuntimeError> {
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
            bound.as_secs(),
            NEWEST,
        )
        .map_err(|error| RuntimeError::Unavailable {
            address: self.address.to_string(),
            reason: error.to_string(),
        })
    }
}

const NEWEST: &ClientVersion = bollard::API_DEFAULT_VERSION;

impl tower_service::Service<hyper::Uri> for Dial {
    type Response = TokioIo<Wire>;
    type Error = Unreachable;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Unreachable>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unreachable>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: hyper::Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move { dial.open().await.map(TokioIo::new) })
    }
}

fn no_socket(path: &Path, error: &io::Error) -> Unreachable {
    let path = path.display();
    Unreachable(match error.kind() {
        io::ErrorKind::NotFound => format!(
            "there is no socket at {path}: is the engine running? If it listens elsewhere, set \
             DOCKER_HOST"
        ),
        io::ErrorKind::ConnectionRefused => {
            format!("nothing listens at {path}: is the engine running?")
        }
        io::ErrorKind::PermissionDenied => format!(
            "permission to connect to {path} is denied: add the user to the group that owns it, \
             `docker` as a rule, and log in again, or set DOCKER_HOST to the user's own engine"
        ),
        _ => error.to_string(),
    })
}

fn no_port(error: &io::Error) -> Unreachable {
    Unreachable(match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "connection refused: is the engine running, and does it listen there?".into()
        }
        _ => error.to_string(),
    })
}

/// Bytes to and from an engine.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection to an engine, of whichever kind.
pub(super) enum Wire {
    Unix(Socket),
    Other(Box<dyn Duplex>),
}

/// A local socket, which the runtime watches or not.
pub(super) enum Socket {
    Watched(UnixStream),
    /// What arrives wakes nobody.
    Resting(std::os::unix::net::UnixStream),
    /// Between the two: left behind by an error alone.
    Lost,
}

impl Wire {
    /// Has nobody woken by what arrives, until a read finds nothing there: for a reader that looks
    /// by itself, at times, at a peer that writes in many small pieces. For a local socket; other
    /// connections stay as they are.
    pub(super) fn rest(&mut self) {
        if let Self::Unix(socket @ Socket::Watched(_)) = self
            && let Socket::Watched(stream) = mem::replace(socket, Socket::Lost)
            && let Ok(stream) = stream.into_std()
        {
            *socket = Socket::Resting(stream);
        }
    }

    fn duplex(&mut self) -> io::Result<Pin<&mut dyn Duplex>> {
        match self {
            Self::Unix(socket) => Ok(Pin::new(socket.watched()?)),
            Self::Other(stream) => Ok(Pin::new(stream)),
        }
    }
}

impl Socket {
    fn watched(&mut self) -> io::Result<&mut UnixStream> {
        if let Self::Resting(_) = self
            && let Self::Resting(stream) = mem::replace(self, Self::Lost)
        {
            *self = Self::Watched(UnixStream::from_std(stream)?);
        }
        match self {
            Self::Watched(stream) => Ok(stream),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Self::Unix(Socket::Resting(stream)) = &mut *self {
            let room = into.remaining().min(FULL_READ);
            match stream.read(into.initialize_unfilled_to(room)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    into.advance(count);
                    return Poll::Ready(Ok(()));
                }
            }
        }
        self.duplex()?.poll_read(cx, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.duplex()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.duplex()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.duplex()?.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.duplex()?.poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Other(stream) => stream.is_write_vectored(),
        }
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    /// The two ends: one of ours at rest, and the peer's.
    fn resting() -> (Wire, UnixStream) {
        let (ours, peer) = UnixStream::pair().unwrap();
        let mut wire = Wire::Unix(Socket::Watched(ours));
        wire.rest();
        assert!(matches!(wire, Wire::Unix(Socket::Resting(_))));
        (wire, peer)
    }

    #[tokio::test]
    async fn what_arrives_at_rest_is_there_and_what_comes_later_wakes_the_reader() {
        let (mut wire, mut peer) = resting();
        peer.write_all(b"one").await.unwrap();
        let mut buffer = [0; 8];
        assert_eq!(wire.read(&mut buffer).await.unwrap(), 3);
        assert!(matches!(wire, Wire::Unix(Socket::Resting(_))));
        let (read, ()) = tokio::join!(
            timeout(Duration::from_secs(10), wire.read(&mut buffer)),
            async {
                // The reader has found nothing, and waits.
                tokio::task::yield_now().await;
                peer.write_all(b"two!").await.unwrap();
            }
        );
        assert_eq!(read.unwrap().unwrap(), 4);
        assert!(matches!(wire, Wire::Unix(Socket::Watched(_))));
    }

    #[tokio::test]
    async fn an_end_at_rest_is_seen_after_what_came_before_it() {
        let (mut wire, mut peer) = resting();
        peer.write_all(b"last").await.unwrap();
        drop(peer);
        let mut all = Vec::new();
        wire.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"last");
    }

    #[tokio::test]
    async fn a_connection_at_rest_can_be_written_to() {
        let (mut wire, mut peer) = resting();
        wire.write_all(b"typed").await.unwrap();
        wire.shutdown().await.unwrap();
        let mut all = Vec::new();
        peer.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"typed");
    }
}
