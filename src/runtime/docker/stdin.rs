//! The standard input of a container.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use serde::Deserialize;
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
/// The response to `GET /containers/{id}/json`: whether the container has a terminal.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    config: Config,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    tty: bool,
}

impl Client {
    pub(super) async fn connect_stdin(
        &self,
        container: &ContainerId,
    ) -> Result<InputWriter, RuntimeError> {
        let writer = async {
            self.check_attachable(container).await?;
            // Podman closes the input of a terminal whose output is not requested.
            let drain = self.podman && self.has_terminal(container).await?;
            let answer = self.attach_stdin(container, drain).await?;
            match drain {
                true => Drained::new(answer).map(|drained| Box::pin(drained) as InputWriter),
                false => answer.writer(),
            }
        };
        writer
            .await
            .map_err(self.error("attach to the container's stdin"))
    }

    async fn attach_stdin(&self, container: &ContainerId, stdout: bool) -> Result<Answer, Failure> {
        let call = Call::post(self.container_path(container, "/attach")?)
            .query("stream", "1")
            .query("stdin", "1")
            // Podman takes a missing parameter for a request of that stream. It stops reading the
            // input once the unread output fills its buffers.
            .query("stdout", if stdout { "1" } else { "0" })
            .query("stderr", "0")
            .escaped_query("detachKeys", UNUSED_DETACH_KEYS)
            .upgrade();
        self.send(call).await
    }

    /// Returns true if the container has a terminal.
    async fn has_terminal(&self, container: &ContainerId) -> Result<bool, Failure> {
        let json = self.fetch(Call::get(self.container_path(container, "/json")?));
        let container: Container =
            serde_json::from_slice(&json.await?).map_err(|error| Failure::malformed(&error))?;
        Ok(container.config.tty)
    }
}

/// An input whose connection also carries output, which is read and discarded.
struct Drained {
    input: InputWriter,
    /// Reads the output until the input is dropped.
    _reader: AbortOnDropHandle<()>,
}

impl Drained {
    fn new(answer: Answer) -> Result<Self, Failure> {
        let (mut output, input) = answer.split()?;
        #[expect(clippy::disallowed_methods, reason = "the task ends with the input")]
        let reader = tokio::spawn(async move { while let Some(Ok(_)) = output.data().await {} });
        Ok(Self {
            input,
            _reader: AbortOnDropHandle::new(reader),
        })
    }
}

impl AsyncWrite for Drained {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.input.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_shutdown(cx)
    }
}
