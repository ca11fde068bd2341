//! What is written to the containers of the scripted runtime.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::Container;
use crate::outcome::Stream;
use crate::runtime::ContainerStatus;

/// The input of a container.
#[derive(Debug)]
pub(super) struct Input {
    container: Container,
    /// Whether its end is that of the container's input.
    ends: bool,
}

impl Input {
    pub(super) fn new(container: Container, ends: bool) -> Self {
        Self { container, ends }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.ends) && self.container.script.echoes {
            let code = self.container.script.code;
            self.container.life.send_modify(|life| {
                life.ended.get_or_insert((Instant::now(), code));
            });
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
        let container = &self.container;
        let life = *container.life.borrow();
        if container.status(life) == ContainerStatus::Ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if let (true, Some((started, _))) = (container.script.echoes, life.started) {
            let print = (
                started.elapsed(),
                Stream::Stdout,
                Bytes::copy_from_slice(bytes),
            );
            container.prints().push(print);
            container.life.send_modify(|_| {});
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
