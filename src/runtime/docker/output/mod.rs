//! The output of a container or exec, read from an engine's answer.

pub(crate) mod chunks;
pub(crate) mod demux;
mod log_error;
pub(crate) mod websocket;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::time::{Instant, Sleep, sleep_until};

use self::demux::{Demux, HEADER_BYTES};
use self::log_error::LogErrorFilter;
use self::websocket::WebSocketFrames;
use super::connection::{Answer, FULL_READ_BYTES};
use super::errors::Failure;
use crate::error::RuntimeError;
use crate::outcome;
use crate::runtime::Chunk;

/// The pause between two reads of continuous output.
///
/// An engine writes each line separately, and each write would wake a thread. tokio's timer rounds
/// the pause up to about 1 ms. During a longer pause of fast output, the socket could fill up. Output
/// after an idle period is read without a pause.
const READ_PAUSE: Duration = Duration::from_micros(200);
/// The longest pause. The pause doubles while less than [`SLOW_BYTES`] arrive in it.
const MAX_READ_PAUSE: Duration = Duration::from_millis(5);
const SLOW_BYTES: usize = 4 << 10;
/// The number of bytes between two pauses from which on reading continues without one.
///
/// Output this fast would fill the socket during a pause, and would have to wait.
const FAST_BYTES: usize = 96 << 10;
/// The maximum time from a pause to the next output, if output is continuous.
const IDLE_THRESHOLD: Duration = Duration::from_millis(3);

/// An error in the framing. The output ends after it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramingError {
    #[error("{0:02x?} is not a frame header")]
    Header([u8; HEADER_BYTES]),
    #[error("dangling frame: the output ended inside a frame")]
    Dangling,
    #[error("a record of the log does not begin with its time")]
    Time,
    #[error("the engine reports an error: {0}")]
    Engine(String),
    #[error("the connection is not a WebSocket: {0}")]
    WebSocket(&'static str),
    #[error("the connection ended without a Close frame")]
    NoCloseFrame,
    #[error("the engine closed the connection with status {status}: {reason:?}")]
    Closed { status: u16, reason: String },
}

/// The parser of an answer's bytes.
enum Parser {
    Demux(Demux),
    WebSocket(WebSocketFrames),
}

impl Parser {
    fn push(&mut self, bytes: Bytes) {
        match self {
            Self::Demux(demux) => demux.push(bytes),
            Self::WebSocket(frames) => frames.push(bytes),
        }
    }

    fn flush(&mut self) {
        match self {
            Self::Demux(demux) => demux.flush(),
            Self::WebSocket(frames) => frames.flush(),
        }
    }

    fn finish(&mut self) {
        match self {
            Self::Demux(demux) => demux.finish(),
            Self::WebSocket(frames) => frames.finish(),
        }
    }

    fn pop(&mut self) -> Option<Result<Chunk, FramingError>> {
        match self {
            Self::Demux(demux) => demux.pop(),
            Self::WebSocket(frames) => frames.pop(),
        }
    }

    /// Returns true once no more bytes are needed.
    fn has_ended(&self) -> bool {
        match self {
            Self::Demux(_) => false,
            Self::WebSocket(frames) => frames.has_ended(),
        }
    }
}

/// The output in an answer. Dropping it closes the connection.
pub(super) struct Output {
    /// `None` after the last byte.
    answer: Option<Answer>,
    parser: Parser,
    /// Set for a terminal's log, in which the engine's error has no frame.
    log_error: Option<LogErrorFilter>,
    /// Set while reading is paused.
    pause: Option<Pin<Box<Sleep>>>,
    /// The length of the last pause.
    last_pause: Duration,
    last_read: Option<Instant>,
    /// The number of bytes read since the last pause, or since a read that found no more data.
    gathered: usize,
    /// The connection's error, reported after the data before it.
    broken: Option<RuntimeError>,
    operation: &'static str,
    address: String,
}

impl Output {
    pub(super) fn new(answer: Answer, tty: bool, operation: &'static str, address: String) -> Self {
        Self::with_parser(answer, Parser::Demux(Demux::new(tty)), operation, address)
    }

    /// Creates the output of a WebSocket that carries one stream.
    pub(super) fn of_websocket(
        answer: Answer,
        stream: outcome::Stream,
        operation: &'static str,
        address: String,
    ) -> Self {
        let parser = Parser::WebSocket(WebSocketFrames::new(stream));
        Self::with_parser(answer, parser, operation, address)
    }

    fn with_parser(
        answer: Answer,
        parser: Parser,
        operation: &'static str,
        address: String,
    ) -> Self {
        Self {
            answer: Some(answer),
            parser,
            log_error: None,
            pause: None,
            last_pause: Duration::ZERO,
            last_read: None,
            gathered: 0,
            broken: None,
            operation,
            address,
        }
    }

    /// Creates the output of an engine's log.
    ///
    /// With `timestamps`, each record begins with its time. The log has no terminal then.
    pub(super) fn of_log(
        answer: Answer,
        tty: bool,
        timestamps: bool,
        operation: &'static str,
        address: String,
    ) -> Self {
        let demux = match timestamps {
            true => Demux::with_timestamps(),
            false => Demux::new(tty),
        };
        Self {
            log_error: tty.then(LogErrorFilter::default),
            ..Self::with_parser(answer, Parser::Demux(demux), operation, address)
        }
    }

    /// Polls for data, unless reading is paused.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        match &mut self.answer {
            Some(answer) => answer.poll_data(cx),
            None => Poll::Ready(None),
        }
    }

    /// Pauses reading if output is continuous and no more of it waits.
    fn schedule_pause(&mut self, read_bytes: usize) {
        let now = Instant::now();
        let last = self.last_read.replace(now);
        let continuous = last.is_some_and(|last| now - last < self.last_pause + IDLE_THRESHOLD);
        self.gathered += read_bytes;
        if read_bytes >= FULL_READ_BYTES {
            return;
        }
        let gathered = std::mem::take(&mut self.gathered);
        let last_pause = std::mem::take(&mut self.last_pause);
        if let Some(answer) = &mut self.answer
            && answer.is_raw()
            && continuous
            && gathered < FAST_BYTES
        {
            answer.deregister();
            let longer = (2 * last_pause).clamp(READ_PAUSE, MAX_READ_PAUSE);
            self.last_pause = if gathered < SLOW_BYTES {
                longer
            } else {
                READ_PAUSE
            };
            self.pause = Some(Box::pin(sleep_until(now + self.last_pause)));
        }
    }

    fn push(&mut self, bytes: Bytes) {
        self.schedule_pause(bytes.len());
        let bytes = match &mut self.log_error {
            Some(filter) => filter.push(bytes),
            None => bytes,
        };
        self.parser.push(bytes);
        if self.parser.has_ended() {
            self.answer = None;
        }
    }

    /// Handles the end of the connection, clean or with a failure.
    fn close(&mut self, failure: Option<Failure>) {
        self.answer = None;
        match self.log_error.as_mut().map(LogErrorFilter::finish) {
            None => {}
            Some(Ok(held)) => self.parser.push(held),
            Some(Err(reason)) => {
                let operation = self.operation;
                self.broken = Some(RuntimeError::Rejected { operation, reason });
            }
        }
        match failure {
            Some(failure) => {
                self.broken = Some(failure.error(self.operation, &self.address));
                self.parser.flush();
            }
            None => self.parser.finish(),
        }
    }

    /// Ends the output after a framing error.
    fn fail(&mut self, error: FramingError) -> RuntimeError {
        (self.answer, self.broken) = (None, None);
        let operation = self.operation;
        match error {
            // The engine has answered; a retry would not read more.
            FramingError::Engine(reason) => RuntimeError::Rejected { operation, reason },
            error => RuntimeError::Broken {
                operation,
                reason: error.to_string(),
            },
        }
    }

    /// Takes the next chunk or framing error from the parser.
    fn pop(&mut self) -> Option<Result<Chunk, RuntimeError>> {
        let item = self.parser.pop()?;
        Some(item.map_err(|error| self.fail(error)))
    }
}

impl Stream for Output {
    type Item = Result<Chunk, RuntimeError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(item) = this.pop() {
                return Poll::Ready(Some(item));
            }
            if this.answer.is_none() {
                return Poll::Ready(this.broken.take().map(Err));
            }
            match this.poll_data(cx) {
                Poll::Ready(Some(Ok(bytes))) => this.push(bytes),
                Poll::Ready(Some(Err(failure))) => this.close(Some(failure)),
                Poll::Ready(None) => this.close(None),
                // Small pieces are merged only with data that has already arrived.
                Poll::Pending => {
                    this.parser.flush();
                    return match this.pop() {
                        Some(item) => Poll::Ready(Some(item)),
                        None => Poll::Pending,
                    };
                }
            }
        }
    }
}
