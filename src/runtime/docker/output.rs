//! An engine's answer as the output of a container.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::complaint::Complaint;
use super::demux::{Demux, Fault};
use super::transport::{Answer, FULL_READ};
use crate::error::RuntimeError;
use crate::runtime::Chunk;

/// How long output that keeps coming is left to gather before it is read again, at rest: an engine
/// writes each line by itself, and each write would wake a thread. The runtime's clock rounds it up
/// to about 1 ms; more would fill the socket. Output after a silence is read at once.
const GATHER: Duration = Duration::from_micros(200);
/// A shorter pause than this is no silence.
const SILENCE: Duration = Duration::from_millis(3);

/// The output that comes with an answer. Dropping it closes the connection.
pub(super) struct Output {
    /// `None` past the end of the bytes.
    answer: Option<Answer>,
    demux: Demux,
    /// Of a terminal's log, where the engine's error is not framed.
    complaint: Option<Complaint>,
    /// Set while output gathers.
    gather: Option<Pin<Box<Sleep>>>,
    /// When something was read last.
    read: Option<Instant>,
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
            complaint: None,
            gather: None,
            read: None,
            broken: None,
            operation,
            address,
        }
    }

    /// The same, of an engine's log.
    pub(super) fn of_log(
        answer: Answer,
        tty: bool,
        operation: &'static str,
        address: String,
    ) -> Self {
        Self {
            complaint: tty.then(Complaint::default),
            ..Self::new(answer, tty, operation, address)
        }
    }

    /// Takes what was held back, after the last bytes.
    fn release(&mut self) {
        match self.complaint.as_mut().map(Complaint::finish) {
            None => {}
            Some(Ok(held)) => self.demux.push(held),
            Some(Err(reason)) => {
                let operation = self.operation;
                self.broken = Some(RuntimeError::Rejected { operation, reason });
            }
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
                    let operation = this.operation;
                    let error = match fault {
                        // It has answered, and will not get any further another time.
                        Fault::Engine(reason) => RuntimeError::Rejected { operation, reason },
                        fault => RuntimeError::Broken {
                            operation,
                            reason: fault.to_string(),
                        },
                    };
                    return Poll::Ready(Some(Err(error)));
                }
                None => {}
            }
            let Some(answer) = &mut this.answer else {
                return Poll::Ready(this.broken.take().map(Err));
            };
            let gathering = this.gather.as_mut().map(|sleep| sleep.as_mut().poll(cx));
            let data = match gathering {
                Some(Poll::Pending) => Poll::Pending,
                Some(Poll::Ready(())) | None => {
                    this.gather = None;
                    answer.poll_data(cx)
                }
            };
            match data {
                Poll::Ready(Some(Ok(bytes))) => {
                    let now = Instant::now();
                    let last = this.read.replace(now);
                    let flows = last.is_some_and(|last| now - last < SILENCE);
                    if answer.is_raw() && flows && bytes.len() < FULL_READ {
                        answer.rest();
                        this.gather = Some(Box::pin(sleep_until(now + GATHER)));
                    }
                    let bytes = match &mut this.complaint {
                        Some(complaint) => complaint.push(bytes),
                        None => bytes,
                    };
                    this.demux.push(bytes);
                }
                Poll::Ready(Some(Err(failure))) => {
                    this.answer = None;
                    this.release();
                    this.broken = Some(failure.error(this.operation, &this.address));
                    this.demux.flush();
                }
                Poll::Ready(None) => {
                    this.answer = None;
                    this.release();
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
