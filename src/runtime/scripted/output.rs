//! The output of the scripted containers.

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::container::{Container, Life};
use crate::error::RuntimeError;
use crate::runtime::{Chunk, OutputStream};
use crate::timestamp::Timestamp;

/// Returns the output of `container` from its start. Each write appears at its time.
///
/// With `timestamps`, each chunk has the time of its write.
pub(super) fn live(container: Container, timestamps: bool) -> OutputStream {
    live_from(0, container, timestamps)
}

/// Returns the live output of a container that started at `started`.
pub(super) fn live_from_now(container: Container, started: Instant) -> OutputStream {
    let elapsed = started.elapsed();
    let prints = container.prints();
    let past = prints.iter().take_while(|print| print.after <= elapsed);
    let past = past.count();
    drop(prints);
    live_from(past, container, false)
}

fn live_from(next: usize, container: Container, timestamps: bool) -> OutputStream {
    let playback = Playback {
        life: container.life.subscribe(),
        container,
        next,
        timestamps,
        failed: false,
    };
    stream::unfold(playback, |mut playback| async move {
        match playback.next().await {
            Some(chunk) => Some((Ok(chunk), playback)),
            None if playback.life.borrow().lost && !playback.failed => {
                playback.failed = true;
                let error = RuntimeError::Broken {
                    operation: "read output",
                    reason: "the node of the container is gone".into(),
                };
                Some((Err(error), playback))
            }
            None => None,
        }
    })
    .filter(|chunk| {
        let empty = matches!(chunk, Ok(Chunk { bytes, .. }) if bytes.is_empty());
        std::future::ready(!empty)
    })
    .boxed()
}

/// A position in the output of a container.
struct Playback {
    container: Container,
    /// The index of the next write.
    next: usize,
    timestamps: bool,
    /// The stream has ended with an error.
    failed: bool,
    life: watch::Receiver<Life>,
}

impl Playback {
    async fn next(&mut self) -> Option<Chunk> {
        let ready = |life: &Life| life.started.is_some() || life.removed;
        let started = self.life.wait_for(ready).await.ok()?.started?;
        let next = self.next_print(started).await;
        self.container.reachable().await;
        next
    }

    async fn next_print(&mut self, (started, started_at): (Instant, Timestamp)) -> Option<Chunk> {
        self.wait_echo().await?;
        let print = self.container.prints().get(self.next).cloned();
        if let Some(print) = print
            && self.wait_due(started + print.after).await
        {
            self.next += 1;
            let stream = self.container.visible_stream(print.stream);
            return Some(Chunk {
                logged_at: self
                    .timestamps
                    .then(|| started_at.saturating_add(print.after)),
                ..Chunk::new(stream, print.bytes)
            });
        }
        self.container.wait_end(&mut self.life).await;
        None
    }

    /// Waits for input or the end, if the container echoes its input.
    async fn wait_echo(&mut self) -> Option<()> {
        let Self {
            container,
            next,
            life,
            ..
        } = self;
        if container.script.echoes {
            let ready =
                |life: &Life| container.prints().len() > *next || container.end(*life).is_some();
            life.wait_for(ready).await.ok()?;
        }
        Some(())
    }

    /// Waits until `due`. Returns false if the container ends earlier.
    async fn wait_due(&mut self, due: Instant) -> bool {
        let Self {
            container, life, ..
        } = self;
        let ended = |life: &Life| container.end(*life).is_some_and(|(end, _)| end < due);
        tokio::select! {
            biased;
            () = sleep_until(due) => {}
            _ = life.wait_for(ended) => {}
        }
        !ended(&life.borrow())
    }
}

/// Returns the lines that the log has now, from its first `max_bytes` bytes.
///
/// With `timestamps`, each has the time of its write.
pub(super) fn log_lines(container: &Container, max_bytes: u64, timestamps: bool) -> Vec<Chunk> {
    let life = *container.life.borrow();
    let Some((started, started_at)) = life.started else {
        return Vec::new();
    };
    let now = Instant::now();
    let end = container.end(life).map_or(now, |(end, _)| end.min(now));
    let mut remaining = max_bytes;
    let mut lines = Vec::new();
    for print in container.prints().iter() {
        if started + print.after > end {
            break;
        }
        let bytes = truncate(&print.bytes, &mut remaining);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let stream = container.visible_stream(print.stream);
            lines.push(Chunk {
                logged_at: timestamps.then(|| started_at.saturating_add(print.after)),
                ..Chunk::new(stream, bytes.slice_ref(line))
            });
        }
    }
    lines
}

/// Truncates `bytes` to `remaining` bytes, and reduces `remaining` by the length of the result.
pub(super) fn truncate(bytes: &Bytes, remaining: &mut u64) -> Bytes {
    let taken = (bytes.len() as u64).min(*remaining);
    *remaining -= taken;
    bytes.slice(..taken as usize)
}
