//! How the scripted engine is reached, and what becomes of what is open when it is not.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::Break;
use crate::error::RuntimeError;
use crate::runtime::{Chunk, OutputStream};

/// How the scripted engine is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Link {
    /// It answers.
    #[default]
    Up,
    /// Nobody listens: each call fails with [`RuntimeError::Unavailable`].
    Down,
    /// It takes requests, and neither carries them out nor answers: a call fails with
    /// [`RuntimeError::Timeout`] after 30 s, what is unbounded waits, and streams give nothing.
    Silent,
}

/// The connections to the engine, all at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections {
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    link: Link,
    /// How often all that was open broke.
    drops: u64,
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

    /// Waits until the engine can be asked, within `bound` if there is one.
    pub(super) async fn reach(&self, bound: Option<Duration>) -> Result<(), RuntimeError> {
        let mut state = self.state.subscribe();
        let answers = state.wait_for(|state| state.link != Link::Silent);
        let link = match bound {
            None => answers.await.map(|state| state.link),
            Some(after) => match timeout(after, answers).await {
                Ok(state) => state.map(|state| state.link),
                Err(_) => {
                    return Err(RuntimeError::Timeout {
                        operation: "answer",
                        after,
                    });
                }
            },
        };
        match link {
            Ok(Link::Down) => Err(RuntimeError::Unavailable {
                address: "scripted".into(),
                reason: "it is down".into(),
            }),
            _ => Ok(()),
        }
    }

    /// What `future` gives, unless its connection is dropped before.
    pub(super) async fn hold<T>(
        &self,
        operation: &'static str,
        future: impl Future<Output = T>,
    ) -> Result<T, RuntimeError> {
        let mut state = self.state.subscribe();
        let drops = state.borrow().drops;
        let answer = async {
            let value = future.await;
            let mut state = self.state.subscribe();
            let _ = state.wait_for(|state| state.link != Link::Silent).await;
            value
        };
        tokio::select! {
            biased;
            _ = state.wait_for(|state| state.drops != drops) => Err(dropped(operation)),
            value = answer => Ok(value),
        }
    }

    /// `stream`, over a connection that can be dropped, and that breaks at `cut` if it is given.
    pub(super) fn carry(&self, stream: OutputStream, cut: Option<(u64, Break)>) -> OutputStream {
        struct Carried {
            stream: OutputStream,
            room: u64,
            how: Break,
            state: watch::Receiver<State>,
            drops: u64,
            over: bool,
        }
        const OPERATION: &str = "give output";
        let state = self.state.subscribe();
        let drops = state.borrow().drops;
        let (room, how) = cut.unwrap_or((u64::MAX, Break::End));
        let carried = Carried {
            stream,
            room,
            how,
            state,
            drops,
            over: false,
        };
        stream::unfold(carried, |mut at| async move {
            if at.over {
                return None;
            }
            let next = async {
                if at.room == 0 {
                    return match at.how {
                        Break::End => None,
                        Break::Error => Some(Err(RuntimeError::Broken {
                            operation: OPERATION,
                            reason: "the stream broke off".into(),
                        })),
                        Break::Stall => std::future::pending().await,
                    };
                }
                match at.stream.next().await {
                    // Also at the container's end: a stall is for ever.
                    None if at.how == Break::Stall => std::future::pending().await,
                    next => next,
                }
            };
            let mut silence = at.state.clone();
            let answer = async {
                let next = next.await;
                let _ = silence.wait_for(|state| state.link != Link::Silent).await;
                next
            };
            let drops = at.drops;
            let next = tokio::select! {
                biased;
                _ = at.state.wait_for(|state| state.drops != drops) => Some(Err(dropped(OPERATION))),
                next = answer => next,
            };
            let chunk = match next? {
                Err(error) => {
                    at.over = true;
                    return Some((Err(error), at));
                }
                Ok(chunk) => chunk,
            };
            let take = at.room.min(chunk.bytes.len() as u64);
            at.room -= take;
            let chunk = Chunk {
                stream: chunk.stream,
                bytes: chunk.bytes.slice(..take as usize),
            };
            Some((Ok(chunk), at))
        })
        .boxed()
    }
}
