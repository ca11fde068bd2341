//! Connections and archives as readers and writers.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};

use bytes::{Buf, Bytes};
use futures::stream::{self, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::mpsc;

use super::wait;
use crate::error::{Result, RuntimeError};
use crate::runtime::exclusive::Exclusive;

/// The most bytes of an archive in one chunk.
const CHUNK_BYTES: usize = 64 << 10;

/// A [`crate::runtime::Connection`] that blocks.
///
/// Drop closes the connection.
#[derive(Debug)]
pub struct Connection(pub(super) crate::runtime::Connection);

impl Connection {
    /// Splits the connection, for a thread that reads and one that writes.
    ///
    /// The connection is closed once both parts are dropped.
    pub fn split(self) -> (ConnectionReader, ConnectionWriter) {
        let (reader, writer) = split(self.0);
        (ConnectionReader(reader), ConnectionWriter(writer))
    }

    /// Closes the direction to the container.
    ///
    /// # Errors
    ///
    /// The errors of a write.
    pub fn shutdown(&mut self) -> io::Result<()> {
        wait(self.0.shutdown())
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        wait(self.0.read(buffer))
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        wait(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        wait(self.0.flush())
    }
}

/// The part of a [`Connection`] that reads.
#[derive(Debug)]
pub struct ConnectionReader(ReadHalf<crate::runtime::Connection>);

impl Read for ConnectionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        wait(self.0.read(buffer))
    }
}

/// The part of a [`Connection`] that writes.
#[derive(Debug)]
pub struct ConnectionWriter(WriteHalf<crate::runtime::Connection>);

impl ConnectionWriter {
    /// Closes the direction to the container.
    ///
    /// # Errors
    ///
    /// The errors of a write.
    pub fn shutdown(&mut self) -> io::Result<()> {
        wait(self.0.shutdown())
    }
}

impl Write for ConnectionWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        wait(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        wait(self.0.flush())
    }
}

/// A tar archive from a container, which is read as it is received.
pub struct Archive {
    chunks: Exclusive<crate::runtime::Archive>,
    /// The part of the last chunk that was not read.
    rest: Bytes,
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive").finish_non_exhaustive()
    }
}

impl Archive {
    pub(super) fn new(archive: crate::runtime::Archive) -> Self {
        Self {
            chunks: Exclusive::new(archive),
            rest: Bytes::new(),
        }
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match wait(self.chunks.get_mut().next()) {
                Some(bytes) => self.rest = bytes.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        Ok(read_from(&mut self.rest, buffer))
    }
}

/// Moves bytes from the front of `rest` to `buffer`, and returns their number.
pub(super) fn read_from(rest: &mut Bytes, buffer: &mut [u8]) -> usize {
    let length = rest.len().min(buffer.len());
    rest.copy_to_slice(&mut buffer[..length]);
    length
}

/// The sender of the chunks of an archive.
pub(super) struct Chunks(mpsc::Sender<Result<Bytes, RuntimeError>>);

/// Returns the two ends of an archive that another thread reads.
pub(super) fn channel() -> (Chunks, crate::runtime::Archive) {
    let (sender, receiver) = mpsc::channel(1);
    let archive = stream::unfold(receiver, |mut receiver| async {
        let chunk = receiver.recv().await?;
        Some((chunk, receiver))
    });
    (Chunks(sender), archive.boxed())
}

impl Chunks {
    /// Sends all bytes of `archive`, unless the receiver is dropped first.
    ///
    /// An error of `archive` is sent too: otherwise, its bytes would look like a whole archive.
    pub(super) fn send_all(&self, mut archive: impl Read) -> Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let length = match archive.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    let _ = wait(self.0.send(Err(unreadable(&error))));
                    return Err(unreadable(&error).into());
                }
            };
            let chunk = Bytes::copy_from_slice(&buffer[..length]);
            if wait(self.0.send(Ok(chunk))).is_err() {
                return Ok(());
            }
        }
    }
}

fn unreadable(error: &io::Error) -> RuntimeError {
    RuntimeError::Rejected {
        operation: "read the archive",
        reason: error.to_string(),
    }
}
