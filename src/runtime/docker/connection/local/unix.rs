//! A Unix socket.

use std::io::{self, Read};
use std::mem;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use crate::runtime::docker::connection::FULL_READ_BYTES;

/// The scheme of the addresses.
pub(crate) const SCHEME: &str = "unix";
/// The socket of an engine that is installed system-wide.
pub(crate) const DEFAULT_ADDRESS: &str = "/var/run/docker.sock";

/// The programs that listen at the socket of a local engine. Others forward it from elsewhere.
const LISTENERS: [&str; 3] = ["podman", "dockerd", "systemd"];

/// Returns the paths of the root directories of the engine's threads: the files that it can mount.
///
/// A thread that has entered a container, to copy files, keeps the root of that container.
///
/// Returns no path if the service is on another machine, or if its files are out of reach.
pub(crate) async fn roots_of_engine(socket: &Path) -> Vec<PathBuf> {
    let process = async {
        let stream = UnixStream::connect(socket).await.ok()?;
        let process = stream.peer_cred().ok()?.pid()?;
        let process = Path::new("/proc").join(process.to_string());
        let name = std::fs::read_to_string(process.join("comm")).ok()?;
        LISTENERS.contains(&name.trim()).then_some(process)
    };
    let Some(process) = process.await else {
        return Vec::new();
    };
    let threads = std::fs::read_dir(process.join("task"));
    let roots = threads.into_iter().flatten().flatten();
    roots
        .map(|thread| thread.path().join("root"))
        .filter(|root| std::fs::metadata(root.join("proc")).is_ok())
        .collect()
}

/// A Unix socket, registered with tokio's I/O driver or not.
pub(crate) enum LocalStream {
    /// Registered: arriving data wakes the reader.
    Tokio(UnixStream),
    /// Not registered: arriving data wakes no task.
    Std(std::os::unix::net::UnixStream),
    /// A conversion between the two failed.
    Closed,
}

impl LocalStream {
    pub(crate) async fn connect(path: &Path) -> io::Result<Self> {
        UnixStream::connect(path).await.map(Self::Tokio)
    }

    /// Removes the socket from tokio's I/O driver, until a read finds no data.
    pub(crate) fn deregister(&mut self) {
        if let Self::Tokio(_) = self
            && let Self::Tokio(stream) = mem::replace(self, Self::Closed)
            && let Ok(stream) = stream.into_std()
        {
            *self = Self::Std(stream);
        }
    }

    /// Returns the socket, after it is registered with the I/O driver.
    fn registered(&mut self) -> io::Result<Pin<&mut UnixStream>> {
        if let Self::Std(_) = self
            && let Self::Std(stream) = mem::replace(self, Self::Closed)
        {
            *self = Self::Tokio(UnixStream::from_std(stream)?);
        }
        match self {
            Self::Tokio(stream) => Ok(Pin::new(stream)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Self::Std(stream) = &mut *self {
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
        self.registered()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.registered()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.registered()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.registered()?.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.registered()?.poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    /// A deregistered socket and its peer.
    fn deregistered() -> (LocalStream, UnixStream) {
        let (ours, peer) = UnixStream::pair().unwrap();
        let mut wire = LocalStream::Tokio(ours);
        wire.deregister();
        assert!(matches!(wire, LocalStream::Std(_)));
        (wire, peer)
    }

    #[tokio::test]
    async fn a_read_without_data_registers_the_socket_again() {
        let (mut wire, mut peer) = deregistered();
        peer.write_all(b"one").await.unwrap();
        let mut buffer = [0; 8];
        assert_eq!(wire.read(&mut buffer).await.unwrap(), 3);
        assert!(matches!(wire, LocalStream::Std(_)));
        let (read, ()) = tokio::join!(
            timeout(Duration::from_secs(10), wire.read(&mut buffer)),
            async {
                // The reader has found no data and waits.
                tokio::task::yield_now().await;
                peer.write_all(b"two!").await.unwrap();
            }
        );
        assert_eq!(read.unwrap().unwrap(), 4);
        assert!(matches!(wire, LocalStream::Tokio(_)));
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
