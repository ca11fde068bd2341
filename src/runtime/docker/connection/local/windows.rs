//! A named pipe of Windows. Compiled, but not tested.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::windows::named_pipe::{ClientOptions, NamedPipeClient};
use tokio::time::sleep;

/// The scheme of the addresses.
pub(crate) const SCHEME: &str = "npipe";
/// The pipe of Docker Desktop, and of an engine that is installed as a service.
pub(crate) const DEFAULT_ADDRESS: &str = "//./pipe/docker_engine";

/// All instances of the pipe are in use.
const ERROR_PIPE_BUSY: i32 = 231;
/// The pause before the next attempt. The caller has a timeout.
const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Podman is on another machine, even where that is a virtual one.
pub(crate) async fn roots_of_engine(_: &Path) -> Vec<PathBuf> {
    Vec::new()
}

/// A named pipe.
pub(crate) struct LocalStream {
    pipe: NamedPipeClient,
    is_shut_down: bool,
}

impl LocalStream {
    pub(crate) async fn connect(path: &Path) -> io::Result<Self> {
        loop {
            match ClientOptions::new().open(path) {
                Ok(pipe) => {
                    return Ok(Self {
                        pipe,
                        is_shut_down: false,
                    });
                }
                Err(error) if error.raw_os_error() == Some(ERROR_PIPE_BUSY) => {
                    sleep(BUSY_RETRY_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Does nothing: a pipe stays registered with tokio's I/O driver.
    pub(crate) fn deregister(&mut self) {}
}

impl AsyncRead for LocalStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(cx, buffer)
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match (bytes.is_empty(), self.is_shut_down) {
            // An empty message would end the input.
            (true, _) => Poll::Ready(Ok(0)),
            (false, true) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            (false, false) => Pin::new(&mut self.pipe).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    /// Ends the input. A pipe has no half-close: Docker reads an empty message as the end.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut_down {
            ready!(Pin::new(&mut self.pipe).poll_write(cx, &[]))?;
            self.is_shut_down = true;
        }
        Pin::new(&mut self.pipe).poll_flush(cx)
    }
}
