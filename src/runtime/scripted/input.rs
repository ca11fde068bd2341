//! The input of the scripted containers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use super::container::Container;
use crate::outcome::Stream;
use crate::runtime::ContainerStatus;

/// A writer to the input of a container.
#[derive(Debug)]
pub(super) struct Input {
    container: Container,
    /// True if the end of this writer ends the container's input.
    ends_input: bool,
}

impl Input {
    pub(super) fn new(container: Container, ends_input: bool) -> Self {
        Self {
            container,
            ends_input,
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.ends_input) && self.container.script.echoes {
            self.container.exit(self.container.script.code);
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.end();
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.container.status() == ContainerStatus::Ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.container.script.echoes {
            let bytes = Bytes::copy_from_slice(bytes);
            self.container.print_now(Stream::Stdout, bytes);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}
