//! Attachments to the output of a container.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures::StreamExt;
use futures::stream::select;
use sha1::{Digest, Sha1};
use ulid::Ulid;

use super::client::Client;
use super::connection::{Answer, Call};
use super::errors::{Failure, Refusal};
use super::inspect;
use super::output::Output;
use crate::error::RuntimeError;
use crate::outcome::Stream;
use crate::runtime::{AttachedOutput, ContainerStatus, OutputStream};
use crate::spec::ContainerId;

const OPERATION: &str = "attach to the container";

/// The first API version whose WebSockets carry one stream each.
///
/// Older ones combine stdout and stderr, without a mark.
const SEPARATE_STREAMS_API: (u32, u32) = (1, 42);
/// The constant that a server appends to the key of a WebSocket (RFC 6455, section 1.3).
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

impl Client {
    /// Attaches to a container that has not started.
    ///
    /// The engine marks the end of a WebSocket, but not the end of a raw connection.
    pub(super) async fn attach(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<AttachedOutput, RuntimeError> {
        let websockets = self.attach_by_websocket(container, tty).await;
        match websockets.map_err(self.error(OPERATION))? {
            Some(stream) => Ok(AttachedOutput::new(stream).with_end_marker()),
            None => Ok(AttachedOutput::new(self.attach_raw(container, tty).await?)),
        }
    }

    /// Attaches through a WebSocket per stream.
    ///
    /// Returns `None` if the engine has no WebSocket with the stream alone, or if a proxy refuses
    /// it. The raw attachment then reports any other error.
    async fn attach_by_websocket(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<Option<OutputStream>, Failure> {
        if self.podman {
            return Ok(None);
        }
        if tty {
            // A terminal has one stream. The engine delivers it as stdout.
            let output = self.websocket(container, "stdout", Stream::Tty).await?;
            return Ok(output.map(StreamExt::boxed));
        }
        if self.api_version() < SEPARATE_STREAMS_API {
            return Ok(None);
        }
        let (stdout, stderr) = tokio::try_join!(
            self.websocket(container, "stdout", Stream::Stdout),
            self.websocket(container, "stderr", Stream::Stderr),
        )?;
        let both = stdout.zip(stderr);
        Ok(both.map(|(stdout, stderr)| select(stdout, stderr).boxed()))
    }

    /// Attaches to one stream. Returns `None` if the answer is not a WebSocket.
    async fn websocket(
        &self,
        container: &ContainerId,
        parameter: &str,
        stream: Stream,
    ) -> Result<Option<Output>, Failure> {
        let key = BASE64_STANDARD.encode(Ulid::generate().to_bytes());
        let expected = websocket_accept(&key);
        let call = Call::get(self.container_path(container, "/attach/ws")?)
            .query("stream", "1")
            .query(parameter, "1")
            .websocket(key);
        let accepted = |answer: Answer| {
            let output = Output::of_websocket;
            let address = self.address.clone();
            let is_websocket = answer.is_websocket(&expected);
            is_websocket.then(|| output(answer, stream, OPERATION, address))
        };
        match self.send(call).await {
            Ok(answer) => Ok(accepted(answer)),
            Err(Failure::Refused(_)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Attaches to a container that runs.
    pub(super) async fn attach_running(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        let attachable = self.check_attachable(container).await;
        attachable.map_err(self.error(OPERATION))?;
        self.attach_raw(container, tty).await
    }

    /// Refuses to attach to a container of Podman that has ended. Returns true if the container is
    /// Podman's and has a terminal.
    ///
    /// Podman would prepare the container for another start, and forget its exit code. That still
    /// happens if the container ends between this check and the attachment: an inspection then
    /// reports the end without a code.
    pub(super) async fn check_attachable(&self, container: &ContainerId) -> Result<bool, Failure> {
        if !self.podman {
            return Ok(false);
        }
        let call = Call::get(self.container_path(container, "/json")?);
        let json = self.fetch(call).await?;
        match inspect::inspection(&json, self.podman)?.status {
            ContainerStatus::Created | ContainerStatus::Running => inspect::has_terminal(&json),
            _ => {
                let ended = Refusal::new(409, "the container has ended");
                Err(Failure::Refused(ended))
            }
        }
    }

    /// Attaches through a raw connection.
    pub(super) async fn attach_raw(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        let answer = async {
            let call = Call::post(self.container_path(container, "/attach")?)
                .query("stream", "1")
                .query("stdout", "1")
                .query("stderr", "1")
                .upgrade();
            self.send(call).await
        };
        let answer = answer.await.map_err(|failure| match &failure {
            // Podman prepares the container on attach, and fails as a start would.
            Failure::Refused(refusal)
                if self.podman && refusal.message_contains("preparing container") =>
            {
                RuntimeError::Rejected {
                    operation: OPERATION,
                    reason: refusal.message.clone(),
                }
            }
            _ => failure.error(OPERATION, &self.address),
        })?;
        Ok(Output::new(answer, tty, OPERATION, self.address.clone()).boxed())
    }
}

/// Returns the value with which a server accepts the key of a WebSocket.
pub(super) fn websocket_accept(key: &str) -> String {
    BASE64_STANDARD.encode(Sha1::digest(format!("{key}{WEBSOCKET_GUID}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455, section 1.3.
    #[test]
    fn a_server_accepts_a_key_with_its_digest() {
        let accept = websocket_accept("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
