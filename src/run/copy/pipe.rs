//! The bounded pipe between an archive and the thread that packs or unpacks it.
//!
//! An explicit end follows the last byte. A pipe that is closed without it was interrupted.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;
use std::thread;

use bytes::{Buf, Bytes, BytesMut};
use futures::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};

use crate::error::RuntimeError;
use crate::runtime::Archive;

/// The most bytes in one part.
pub(super) const PART_BYTES: usize = 64 << 10;
/// The number of parts that wait in a pipe.
const QUEUE_PARTS: usize = 4;
/// The size of the empty blocks that end an archive, in bytes.
const END_BYTES: u64 = 1024;

pub(super) enum Part {
    Bytes(Bytes),
    End,
}

pub(super) fn channel() -> (mpsc::Sender<Part>, mpsc::Receiver<Part>) {
    mpsc::channel(QUEUE_PARTS)
}

/// Runs a job on a new thread. A blocked file delays neither a runtime nor the audit files.
pub(super) fn on_thread<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (done, result) = oneshot::channel();
    thread::Builder::new()
        .name("moat-copy".into())
        .spawn(move || done.send(job()).ok())?;
    Ok(result)
}

/// Passes an archive on, until its end or until the reader has ended.
pub(super) async fn send(
    mut archive: Archive,
    parts: mpsc::Sender<Part>,
) -> Result<(), RuntimeError> {
    while let Some(part) = archive.next().await {
        if parts.send(Part::Bytes(part?)).await.is_err() {
            return Ok(());
        }
    }
    let _ = parts.send(Part::End).await;
    Ok(())
}

/// Returns the archive that a [`PartWriter`] writes.
pub(super) fn archive(parts: mpsc::Receiver<Part>) -> Archive {
    stream::unfold(Some(parts), |parts| async {
        let mut parts = parts?;
        match parts.recv().await {
            Some(Part::Bytes(bytes)) => Some((Ok(bytes), Some(parts))),
            Some(Part::End) => None,
            None => Some((Err(interrupted()), None)),
        }
    })
    .boxed()
}

fn interrupted() -> RuntimeError {
    RuntimeError::Rejected {
        operation: "read the files to copy",
        reason: "the copy was interrupted".into(),
    }
}

/// Reads an archive that [`send`] passes on.
pub(super) struct PartReader {
    parts: mpsc::Receiver<Part>,
    rest: Bytes,
    ended: bool,
    meter: Rc<Meter>,
}

/// What a [`PartReader`] has read, and may read.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// The number of zero bytes since the last other byte, or since the end of the last entry.
    zeros: Cell<u64>,
    /// The number of bytes that may be read before the limit is set again.
    allowance: Cell<u64>,
}

impl Meter {
    /// Begins the content of an entry, which has its own limit.
    pub(super) fn begin_content(&self) {
        self.allowance.set(u64::MAX);
    }

    /// Begins the headers of an entry, or the end of the archive.
    pub(super) fn begin_header(&self, allowance: u64) {
        self.zeros.set(0);
        self.allowance.set(allowance);
    }
}

impl PartReader {
    pub(super) fn new(parts: mpsc::Receiver<Part>, meter: Rc<Meter>) -> Self {
        Self {
            parts,
            rest: Bytes::new(),
            ended: false,
            meter,
        }
    }

    /// Reads the bytes after the entries to the end.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink())?;
        match self.meter.zeros.get() >= END_BYTES {
            true => Ok(()),
            false => Err(io::Error::new(ErrorKind::UnexpectedEof, "it has no end")),
        }
    }
}

impl Read for PartReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.parts.blocking_recv() {
                Some(Part::Bytes(bytes)) => self.rest = bytes,
                Some(Part::End) => self.ended = true,
                None => return Err(io::Error::other("it was interrupted")),
            }
        }
        let length = self.rest.len().min(buffer.len());
        let allowance = &self.meter.allowance;
        let left = allowance.get().checked_sub(length as u64);
        let left = left.ok_or_else(|| io::Error::other("a header is too long"))?;
        allowance.set(left);
        let read = &mut buffer[..length];
        self.rest.copy_to_slice(read);
        let zeros = &self.meter.zeros;
        zeros.set(match read.iter().rposition(|&byte| byte != 0) {
            Some(last) => (length - last - 1) as u64,
            None => zeros.get() + length as u64,
        });
        Ok(length)
    }
}

/// Writes an archive that [`archive`] returns.
pub(super) struct PartWriter {
    parts: mpsc::Sender<Part>,
    buffer: BytesMut,
}

impl PartWriter {
    pub(super) fn new(parts: mpsc::Sender<Part>) -> Self {
        Self {
            parts,
            buffer: BytesMut::new(),
        }
    }

    /// Sends the end. A reader that has seen the end of the archive may be gone.
    pub(super) fn finish(mut self) {
        let _ = self.flush();
        let _ = self.parts.blocking_send(Part::End);
    }
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PART_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..length]);
        if self.buffer.len() == PART_BYTES {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = self.buffer.split().freeze();
        if bytes.is_empty() {
            return Ok(());
        }
        let sent = self.parts.blocking_send(Part::Bytes(bytes));
        sent.map_err(|_| ErrorKind::BrokenPipe.into())
    }
}
