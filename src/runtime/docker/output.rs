//! An engine's answer as the output of a container.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;

use super::demux::Demux;
use super::transport::Answer;
use crate::RuntimeError;
use crate::runtime::Chunk;

/// The output that comes with an answer. Dropping it closes the connection.
pub(super) struct Output {
    /// `None` past the end of the bytes.
    answer: Option<Answer>,
    demux: Demux,
    /// How the connection broke: told after what had arrived before it did.
    broken: Option<RuntimeError>,
    operation: &'static str,
    address: String,
}

impl Output {
    pub(super) fn new(answer: Answer, tty: bool, operation: &'static str, address: String) -> Self {
        Self {
            answer: Some(answer),
            demux: Demux::new(tty),
            broken: None,
            operation,
            address,
        }
    }
}

impl Stream for Output {
    type Item = Result<Chunk, RuntimeError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match this.demux.pop() {
                Some(Ok(chunk)) => return Poll::Ready(Some(Ok(chunk))),
                Some(Err(fault)) => {
                    (this.answer, this.broken) = (None, None);
                    let reason = fault.to_string();
                    let operation = this.operation;
                    return Poll::Ready(Some(Err(RuntimeError::Broken { operation, reason })));
                }
                None => {}
            }
            let Some(answer) = &mut this.answer else {
                return Poll::Ready(this.broken.take().map(Err));
            };
            match answer.poll_data(cx) {
                Poll::Ready(Some(Ok(bytes))) => this.demux.push(bytes),
                Poll::Ready(Some(Err(failure))) => {
                    this.broken = Some(failure.error(this.operation, &this.address));
                    this.answer = None;
                    this.demux.flush();
                }
                Poll::Ready(None) => {
                    this.answer = None;
                    this.demux.finish();
                }
                // Small pieces wait for more of their kind only while more is there already.
                Poll::Pending => {
                    this.demux.flush();
                    if let Some(item) = this.demux.pop() {
                        // A flush makes chunks alone.
                        return Poll::Ready(item.ok().map(Ok));
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}
