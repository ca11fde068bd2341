//! A connection to an engine: a Unix socket, a TCP or TLS stream, or a process of ssh.

use std::io::{self, Read};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// The size of a full read, in bytes. After a full read, more data may already wait.
pub(crate) const FULL_READ_BYTES: usize = 64 << 10;

/// A bidirectional byte stream.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection to an engine.
pub(crate) enum Wire {
    Unix(Socket),
    /// A TCP or TLS stream, or a process of ssh.
    Other(Box<dyn Duplex>),
}

/// A Unix socket, registered with tokio's I/O driver or not.
pub(crate) enum Socket {
    /// Registered: arriving data wakes the reader.
    Tokio(UnixStream),
    /// Not registered: arriving data wakes no task.
    Std(std::os::unix::net::UnixStream),
    /// A conversion between the two failed.
    Closed,
}

impl Wire {
    /// Removes a Unix socket from tokio's I/O driver.
    ///
    /// This is for a reader that polls on a timer while the peer writes many small pieces, each of
    /// which would wake a thread. A read that finds no data registers the socket again. The method
    /// has no effect on other connections.
    pub(super) fn deregister(&mut self) {
        if let Self::Unix(socket @ Socket::Tokio(_)) = self
            && let Socket::Tokio(stream) = mem::replace(socket, Socket::Closed)
            && let Ok(stream) = stream.into_std()
        {
            *socket = Socket::Std(stream);
        }
    }

    /// Returns the stream, after it is registered with the I/O driver.
    fn duplex(&mut self) -> io::Result<Pin<&mut dyn Duplex>> {
        match self {
            Self::Unix(socket) => Ok(Pin::new(socket.registered()?)),
            Self::Other(stream) => Ok(Pin::new(stream)),
        }
    }
}

impl Socket {
    fn registered(&mut self) -> io::Result<&mut UnixStream> {
        if let Self::Std(_) = self
            && let Self::Std(stream) = mem::replace(self, Self::Closed)
        {
            *self = Self::Tokio(UnixStream::from_std(stream)?);
        }
        match self {
            Self::Tokio(stream) => Ok(stream),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Self::Unix(Socket::Std(stream)) = &mut *self {
            let room = buffer.remaining().min(FULL_READ_BYTES);
            match stream.read(buffer.initialize_unfilled_to(room)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
            }
        }
        self.duplex()?.poll_read(cx, buffer)
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
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    /// A deregistered socket and its peer.
    fn deregistered() -> (Wire, UnixStream) {
        let (ours, peer) = UnixStream::pair().unwrap();
        let mut wire = Wire::Unix(Socket::Tokio(ours));
        wire.deregister();
        assert!(matches!(wire, Wire::Unix(Socket::Std(_))));
        (wire, peer)
    }

    #[tokio::test]
    async fn a_read_without_data_registers_the_socket_again() {
        let (mut wire, mut peer) = deregistered();
        peer.write_all(b"one").await.unwrap();
        let mut buffer = [0; 8];
        assert_eq!(wire.read(&mut buffer).await.unwrap(), 3);
        assert!(matches!(wire, Wire::Unix(Socket::Std(_))));
        let (read, ()) = tokio::join!(
            timeout(Duration::from_secs(10), wire.read(&mut buffer)),
            async {
                // The reader has found no data and waits.
                tokio::task::yield_now().await;
                peer.write_all(b"two!").await.unwrap();
            }
        );
        assert_eq!(read.unwrap().unwrap(), 4);
        assert!(matches!(wire, Wire::Unix(Socket::Tokio(_))));
    }

    #[tokio::test]
    async fn a_deregistered_socket_yields_its_data_before_eof() {
        let (mut wire, mut peer) = deregistered();
        peer.write_all(b"last").await.unwrap();
        drop(peer);
        let mut all = Vec::new();
        wire.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"last");
    }

    #[tokio::test]
    async fn a_deregistered_socket_can_be_written_to() {
        let (mut wire, mut peer) = deregistered();
        wire.write_all(b"typed").await.unwrap();
        wire.shutdown().await.unwrap();
        let mut all = Vec::new();
        peer.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"typed");
    }
}
