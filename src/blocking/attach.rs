//! Attachments and events: iterators over output, and writers of input.

use std::io::{self, Read, Write};

use bytes::Bytes;
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use super::io::read_from;
use super::wait;
use crate::error::Result;
use crate::events::RunEvent;
use crate::outcome::{Outcome, Stream};
use crate::run::Attached;
use crate::spec::WindowSize;

/// A [`crate::run::Attachment`] whose calls block: an iterator over the output.
///
/// [`into_reader`](Self::into_reader) reads the bytes of one stream.
#[derive(Debug)]
#[must_use = "iterators do nothing unless consumed"]
pub struct Attachment(pub(super) crate::run::Attachment);

impl Attachment {
    /// Delivers all output: see [`crate::run::Attachment::lossless`].
    pub fn lossless(self) -> Self {
        Self(self.0.lossless())
    }

    /// Takes the standard input, once: see [`crate::run::Attachment::input`].
    pub fn input(&mut self) -> Option<Input> {
        self.0.input().map(Input)
    }

    /// Returns a handle for use in other threads.
    pub fn handle(&self) -> AttachHandle {
        AttachHandle(self.0.handle())
    }

    /// Reads the bytes of one stream, and skips the other.
    ///
    /// The reader delivers all output, as [`lossless`](Self::lossless) does.
    pub fn into_reader(self, stream: Stream) -> OutputReader {
        OutputReader {
            attachment: self.lossless(),
            stream,
            rest: Bytes::new(),
        }
    }

    /// Resizes the terminal: see [`crate::run::Attachment::resize`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Attachment::resize`].
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        wait(self.0.resize(size))
    }

    /// Detaches. The run continues.
    pub fn detach(self) {
        self.0.detach();
    }

    /// Waits for the outcome of the run or exec: see [`crate::run::Attachment::outcome`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Attachment::outcome`].
    pub fn outcome(&self) -> Result<Outcome> {
        wait(self.0.outcome())
    }
}

impl Iterator for Attachment {
    type Item = Result<Attached>;

    fn next(&mut self) -> Option<Result<Attached>> {
        wait(self.0.next())
    }
}

/// The bytes of one stream of a run, which [`Attachment::into_reader`] returns.
///
/// A read fails with an error of the [`Attachment`], or if output was dropped. Output is dropped
/// only if the run has no audit file, or if the attachment reads directly from the engine.
#[derive(Debug)]
pub struct OutputReader {
    attachment: Attachment,
    stream: Stream,
    /// The part of the last chunk that was not read.
    rest: Bytes,
}

impl OutputReader {
    /// Returns the next bytes of the stream, or `None` at the end.
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        for item in &mut self.attachment {
            match item.map_err(io::Error::other)? {
                Attached::Chunk(chunk) if chunk.stream == self.stream => {
                    return Ok(Some(chunk.bytes));
                }
                Attached::Lagged { stream, bytes } if stream == self.stream => {
                    let reason = format!("cannot read {stream}: {bytes} bytes were dropped");
                    return Err(io::Error::other(reason));
                }
                Attached::Chunk(_) | Attached::Lagged { .. } => {}
            }
        }
        Ok(None)
    }
}

impl Read for OutputReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.next_chunk()? {
                Some(bytes) => self.rest = bytes,
                None => return Ok(0),
            }
        }
        Ok(read_from(&mut self.rest, buffer))
    }
}

/// A [`crate::run::AttachHandle`] whose calls block.
#[derive(Debug, Clone)]
pub struct AttachHandle(crate::run::AttachHandle);

impl AttachHandle {
    /// Resizes the terminal: see [`crate::run::AttachHandle::resize`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::AttachHandle::resize`].
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        wait(self.0.resize(size))
    }

    /// Waits for the outcome of the run or exec: see [`crate::run::AttachHandle::outcome`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::AttachHandle::outcome`].
    pub fn outcome(&self) -> Result<Outcome> {
        wait(self.0.outcome())
    }
}

/// A [`crate::run::Input`] whose writes block.
///
/// A write waits until the container takes the bytes. Read the output at the same time, in another
/// thread.
#[derive(Debug)]
#[must_use = "the input of a pipe ends when it is dropped"]
pub struct Input(crate::run::Input);

impl Input {
    /// Closes the stdin of the container: see [`crate::run::Input`].
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] if the stdin cannot be closed, and the errors of a write.
    pub fn shutdown(&mut self) -> io::Result<()> {
        wait(self.0.shutdown())
    }
}

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        wait(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        wait(self.0.flush())
    }
}

/// An iterator over events: see [`crate::events::Events`].
#[derive(Debug)]
#[must_use = "iterators do nothing unless consumed"]
pub struct Events(pub(super) crate::events::Events);

impl Iterator for Events {
    type Item = RunEvent;

    fn next(&mut self) -> Option<RunEvent> {
        wait(self.0.next())
    }
}
