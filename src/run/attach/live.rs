//! What a terminal shows from now on, from the engine: for who looks on at a run that nobody here
//! has tapped.

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant, sleep};

use crate::capture::{Hub, Piece, Pieces};
use crate::error::{Result, RuntimeError};
use crate::outcome::Stream;
use crate::run::attach::input::Session;
use crate::runtime::{ContainerStatus, Runtime};
use crate::spec::ContainerId;

/// How long the engine has for the last bytes after the end of a container, and for its end after
/// the last bytes.
const DRAIN: Duration = Duration::from_secs(2);
/// How often a container is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// A connection to the output of a container that runs.
pub(crate) struct LiveOutput {
    pieces: Pieces,
    /// `None`: it was told.
    end: Option<oneshot::Receiver<End>>,
    broken: Option<RuntimeError>,
}

/// How a connection ended.
struct End {
    /// How much came by it.
    received: u64,
    broken: Option<RuntimeError>,
}

impl LiveOutput {
    /// The next piece; `None` after the last byte. Before that comes a piece without any bytes, which
    /// tells one who fell behind, as each next piece does.
    ///
    /// # Errors
    ///
    /// The connection ended before the container did: nobody knows what was missed.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>> {
        if let Some(piece) = self.pieces.next().await {
            return Ok(Some(piece));
        }
        if let Some(end) = self.end.take()
            && let Ok(End { received, broken }) = end.await
        {
            self.broken = broken;
            return Ok(Some(Piece {
                stream: Stream::Tty,
                offset: received,
                bytes: Bytes::new(),
            }));
        }
        self.broken
            .take()
            .map_or(Ok(None), |error| Err(error.into()))
    }
}

impl Session {
    /// Connects to the engine for what a terminal shows from now on.
    ///
    /// Where nobody here has tapped the container, its output comes by way of a log, a line at a
    /// time: neither a prompt nor the screen of an editor would be seen.
    pub(crate) async fn watch(&self) -> Result<Option<LiveOutput>> {
        let run = &self.run;
        if !self.settings().await?.tty {
            return Ok(None);
        }
        let context = run.inner.context();
        let (runtime, container) = (context.runtime.clone(), run.container()?);
        let mut stream = match runtime.attach_running(&container, true).await {
            Ok(stream) => stream,
            Err(RuntimeError::Unsupported { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let hub = Hub::default();
        let (_, pieces) = hub.subscribe_live();
        let (ended, end) = oneshot::channel();
        let mut snapshot = run.entry.snapshot.clone();
        let closing = context.closing.clone();
        // Always read, whoever looks on: a connection that is not read stops the container.
        context.tasks.spawn(async move {
            let over = async {
                let over = snapshot
                    .wait_for(|snapshot| snapshot.state.ending().is_some())
                    .await;
                drop(over);
                sleep(DRAIN).await;
            };
            let pass_on = async {
                loop {
                    match stream.next().await {
                        Some(Ok(chunk)) => {
                            if !hub.pass_on(chunk.stream, chunk.bytes) {
                                return None;
                            }
                        }
                        Some(Err(error)) => return Some(error),
                        None => return cut(&*runtime, &container).await,
                    }
                }
            };
            let broken = tokio::select! {
                broken = pass_on => broken,
                () = over => None,
                () = closing.cancelled() => None,
            };
            let (received, _) = hub.subscribe_live();
            let _ = ended.send(End {
                received: received[Stream::Tty],
                broken,
            });
        });
        Ok(pieces.map(|pieces| LiveOutput {
            pieces,
            end: Some(end),
            broken: None,
        }))
    }
}

/// Why a connection came to a clean end, if its container has not.
async fn cut(runtime: &dyn Runtime, container: &ContainerId) -> Option<RuntimeError> {
    let end = Instant::now();
    loop {
        match runtime.inspect(container).await {
            Ok(inspection) if inspection.status == ContainerStatus::Running => {}
            Err(error) if !error.is_not_found() => return Some(error),
            _ => return None,
        }
        if end.elapsed() > DRAIN {
            return Some(RuntimeError::Broken {
                operation: "look on at the container",
                reason: "the connection came to an end, and the container goes on".into(),
            });
        }
        sleep(LOOK).await;
    }
}
