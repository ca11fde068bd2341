//! The standard input of a container.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio_util::task::AbortOnDropHandle;

use super::client::Client;
use super::connection::{Answer, Call};
use super::errors::Failure;
use crate::error::RuntimeError;
use crate::runtime::InputWriter;
use crate::spec::ContainerId;

/// The detach keys of an attachment, escaped for a query.
///
/// Engines search stdin for detach keys, by default `ctrl-p,ctrl-q`. These keys do not reach the
/// container, and the first of them is delayed until the next key. The search cannot be disabled.
/// moat therefore sets a sequence that does not occur in text input: its bytes are not valid UTF-8.
const UNUSED_DETACH_KEYS: &str = "%FF,%FE,%FF,%FF,%FE,%FE,%FF,%FE,%FF,%FF,%FE,%FE,%FF,%FE,%FF,%FF";

impl Client {
    pub(super) async fn connect_stdin(
        &self,
        container: &ContainerId,
    ) -> Result<InputWriter, RuntimeError> {
        let writer = async {
            // Podman closes the input of a terminal whose output is not requested.
            let with_output = self.check_attachable(container).await?;
            let answer = self.attach_stdin(container, with_output).await?;
            match with_output {
                true => Drained::new(answer).map(|drained| Box::pin(drained) as InputWriter),
                false => answer.writer(),
            }
        };
        writer
            .await
            .map_err(self.error("attach to the container's stdin"))
    }

    async fn attach_stdin(
        &self,
        container: &ContainerId,
        with_output: bool,
    ) -> Result<Answer, Failure> {
        let call = Call::post(self.container_path(container, "/attach")?)
            .query("stream", "1")
            .query("stdin", "1")
            // Podman takes a missing parameter for a request of that stream. It stops reading the
            // input once the unread output fills its buffers.
            .query("stdout", if with_output { "1" } else { "0" })
            .query("stderr", "0")
            .escaped_query("detachKeys", UNUSED_DETACH_KEYS)
            .upgrade();
        self.send(call).await
    }
}

/// An input whose connection also carries output, which is read and discarded.
struct Drained {
    input: InputWriter,
    /// Reads the output until it ends or the input is dropped.
    reader: AbortOnDropHandle<()>,
}

impl Drained {
    fn new(answer: Answer) -> Result<Self, Failure> {
        let (mut output, input) = answer.split()?;
        #[expect(clippy::disallowed_methods, reason = "the task ends with the input")]
        let reader = tokio::spawn(async move { while let Some(Ok(_)) = output.data().await {} });
        Ok(Self {
            input,
            reader: AbortOnDropHandle::new(reader),
        })
    }
}

impl AsyncWrite for Drained {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.reader.is_finished() {
            // The container has ended. Podman may read no more.
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.input.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_shutdown(cx)
    }
}
