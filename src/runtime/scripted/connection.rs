//! The connections to the scripted engine.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::fault::Break;
use super::output::truncate;
use crate::error::RuntimeError;
use crate::runtime::{Chunk, OutputStream};

/// The state of the link to the scripted engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Link {
    /// The engine answers.
    #[default]
    Up,
    /// The engine does not listen.
    ///
    /// Each call fails with [`RuntimeError::Unavailable`].
    Down,
    /// The engine accepts requests, but neither carries them out nor answers.
    ///
    /// A call fails with [`RuntimeError::Timeout`] after 30 s. Waits do not return, and streams
    /// yield nothing.
    Silent,
}

/// The state of all connections to the engine.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections {
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    link: Link,
    /// The number of times that all open connections broke.
    drops: u64,
}

impl State {
    fn answers(&self) -> bool {
        self.link != Link::Silent
    }
}

fn dropped(operation: &'static str) -> RuntimeError {
    RuntimeError::Broken {
        operation,
        reason: "the connection was dropped".into(),
    }
}

impl Connections {
    pub(super) fn set(&self, link: Link) {
        self.state.send_modify(|state| {
            state.link = link;
            state.drops += u64::from(link == Link::Down);
        });
    }

    pub(super) fn drop_all(&self) {
        self.state.send_modify(|state| state.drops += 1);
    }

    /// Waits until the engine answers, for at most `limit`. Fails if the engine is down.
    pub(super) async fn reach(&self, limit: Option<Duration>) -> Result<(), RuntimeError> {
        let mut state = self.state.subscribe();
        let answers = async { state.wait_for(State::answers).await.map(|state| state.link) };
        let link = match limit {
            None => answers.await,
            Some(after) => timeout(after, answers)
                .await
                .map_err(|_| RuntimeError::Timeout {
                    operation: "reach the engine",
                    after,
                })?,
        };
        match link {
            Ok(Link::Down) => Err(RuntimeError::Unavailable {
                address: "scripted".into(),
                reason: "the engine is down".into(),
            }),
            _ => Ok(()),
        }
    }

    /// Awaits `future`, and fails if the connection drops first.
    pub(super) async fn call<T>(
        &self,
        operation: &'static str,
        future: impl Future<Output = T>,
    ) -> Result<T, RuntimeError> {
        let mut state = self.state.subscribe();
        let drops = state.borrow().drops;
        let answer = async {
            let value = future.await;
            let mut state = self.state.subscribe();
            let _ = state.wait_for(State::answers).await;
            value
        };
        tokio::select! {
            biased;
            _ = state.wait_for(|state| state.drops != drops) => Err(dropped(operation)),
            value = answer => Ok(value),
        }
    }

    /// Returns `stream` over a connection, which can drop and which breaks at `cut`.
    pub(super) fn stream(&self, stream: OutputStream, cut: Option<(u64, Break)>) -> OutputStream {
        let state = self.state.subscribe();
        let drops = state.borrow().drops;
        let (remaining, how) = cut.unwrap_or((u64::MAX, Break::End));
        let connected = ConnectedStream {
            stream,
            remaining,
            how,
            state,
            drops,
            failed: false,
        };
        stream::unfold(connected, |mut connected| async move {
            let item = connected.next().await?;
            Some((item, connected))
        })
        .boxed()
    }
}

/// A stream over one connection.
struct ConnectedStream {
    stream: OutputStream,
    /// The number of bytes until the break.
    remaining: u64,
    how: Break,
    state: watch::Receiver<State>,
    /// The number of drops when the connection was opened.
    drops: u64,
    failed: bool,
}

impl ConnectedStream {
    const OPERATION: &str = "read output";

    async fn next(&mut self) -> Option<Result<Chunk, RuntimeError>> {
        if self.failed {
            return None;
        }
        let (drops, mut state) = (self.drops, self.state.clone());
        let mut silence = self.state.clone();
        let answer = async {
            let item = self.read().await;
            let _ = silence.wait_for(State::answers).await;
            item
        };
        let item = tokio::select! {
            biased;
            _ = state.wait_for(|state| state.drops != drops) => {
                Some(Err(dropped(Self::OPERATION)))
            }
            item = answer => item,
        };
        self.failed = matches!(item, Some(Err(_)));
        item
    }

    async fn read(&mut self) -> Option<Result<Chunk, RuntimeError>> {
        if self.remaining == 0 {
            return match self.how {
                Break::End => None,
                Break::Error => Some(Err(RuntimeError::Broken {
                    operation: Self::OPERATION,
                    reason: "the stream broke".into(),
                })),
                Break::Stall => std::future::pending().await,
            };
        }
        match self.stream.next().await {
            // A stall is permanent, even after the container's end.
            None if self.how == Break::Stall => std::future::pending().await,
            Some(Ok(chunk)) => Some(Ok(Chunk {
                bytes: truncate(&chunk.bytes, &mut self.remaining),
                ..chunk
            })),
            item => item,
        }
    }
}
