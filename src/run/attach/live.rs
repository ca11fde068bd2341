//! The live output of a terminal, read directly from the engine.
//!
//! Used for a run that this process has not tapped. The output of such a run otherwise
//! arrives through a log, one line at a time, which shows no prompt and no editor.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{oneshot, watch};
use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::capture::{Hub, LiveChunk, LiveReceiver, Masks};
use crate::error::{Result, RuntimeError};
use crate::monitor::entry::RunSnapshot;
use crate::outcome::Stream;
use crate::run::attach::session::Session;
use crate::runtime::{ContainerStatus, OutputStream, Runtime};
use crate::spec::ContainerId;

/// The most time between the ends of the container and of its output, in either order.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval between inspections of the container after the last output.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A connection to the output of a running container.
pub(super) struct LiveOutput {
    receiver: LiveReceiver,
    /// `None` once the end was received.
    end: Option<oneshot::Receiver<End>>,
    error: Option<RuntimeError>,
}

/// The end of a connection.
struct End {
    /// The number of bytes received.
    received: u64,
    error: Option<RuntimeError>,
}

impl LiveOutput {
    /// Returns the next chunk, or `None` after the last byte.
    ///
    /// The last chunk is empty. Its offset reveals output that was dropped before it.
    ///
    /// # Errors
    ///
    /// The connection ended before the container did, so output may be missing.
    pub(super) async fn next(&mut self) -> Result<Option<LiveChunk>> {
        if let Some(chunk) = self.receiver.next().await {
            return Ok(Some(chunk));
        }
        if let Some(end) = self.end.take()
            && let Ok(End { received, error }) = end.await
        {
            self.error = error;
            return Ok(Some(LiveChunk {
                stream: Stream::Tty,
                offset: received,
                bytes: Bytes::new(),
            }));
        }
        self.error
            .take()
            .map_or(Ok(None), |error| Err(error.into()))
    }
}

impl Session {
    /// Connects to the engine for the terminal output from now on.
    ///
    /// Returns `None` if the run has no terminal, or the runtime cannot attach to it. Also if the
    /// output is masked, or if that is unknown: a value may have begun before.
    pub(super) async fn connect_live(&self) -> Result<Option<LiveOutput>> {
        let run = &self.run;
        let settings = self.settings().await?;
        if !settings.tty || !matches!(run.find_masks().await, Ok(Masks::None)) {
            return Ok(None);
        }
        let context = run.inner.context();
        let (runtime, container) = (context.runtime.clone(), run.container()?);
        let output = match runtime.attach_running(&container, true).await {
            Ok(output) => output,
            Err(RuntimeError::Unsupported { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let hub = Hub::default();
        let (_, receiver) = hub.subscribe_live();
        let (ended, end) = oneshot::channel();
        let relay = Relay {
            output,
            hub,
            runtime,
            container,
        };
        let snapshot = run.entry.snapshot.clone();
        let closing = context.closing.clone();
        // A task reads the connection at all times. A connection that is not read blocks the
        // container.
        context.tasks.spawn(async move {
            let _ = ended.send(relay.run(snapshot, closing).await);
        });
        Ok(receiver.map(|receiver| LiveOutput {
            receiver,
            end: Some(end),
            error: None,
        }))
    }
}

/// Relays output from the engine to one attachment.
struct Relay {
    output: OutputStream,
    hub: Hub,
    runtime: Arc<dyn Runtime>,
    container: ContainerId,
}

impl Relay {
    /// Relays output until the connection, the run or the manager ends.
    async fn run(
        mut self,
        mut snapshot: watch::Receiver<RunSnapshot>,
        closing: CancellationToken,
    ) -> End {
        let drained = async {
            let ended = snapshot.wait_for(|snapshot| snapshot.state.ending().is_some());
            drop(ended.await);
            sleep(DRAIN_TIMEOUT).await;
        };
        let error = tokio::select! {
            error = self.relay() => error,
            () = drained => None,
            () = closing.cancelled() => None,
        };
        let (received, _) = self.hub.subscribe_live();
        End {
            received: received[Stream::Tty],
            error,
        }
    }

    /// Relays output until the connection ends, and returns the error that ended it.
    async fn relay(&mut self) -> Option<RuntimeError> {
        while let Some(chunk) = self.output.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => return Some(error),
            };
            if !self.hub.publish_ephemeral(chunk.stream, chunk.bytes) {
                return None;
            }
        }
        premature_end(&*self.runtime, &self.container).await
    }
}

/// Returns an error if the container still runs after the end of its output.
async fn premature_end(runtime: &dyn Runtime, container: &ContainerId) -> Option<RuntimeError> {
    let end = Instant::now();
    loop {
        match runtime.inspect(container).await {
            Ok(inspection) if inspection.status == ContainerStatus::Running => {}
            Err(error) if !error.is_not_found() => return Some(error),
            _ => return None,
        }
        if end.elapsed() > DRAIN_TIMEOUT {
            return Some(RuntimeError::Broken {
                operation: "read the container's output",
                reason: "the connection ended while the container was running".into(),
            });
        }
        sleep(POLL_INTERVAL).await;
    }
}
