//! Chunks of output, merged from the small pieces that an engine sends.

use std::collections::VecDeque;

use bytes::Bytes;

use super::FramingError;
use crate::outcome::Stream;
use crate::runtime::Chunk;
use crate::timestamp::Timestamp;

/// The smallest piece that becomes a chunk without a copy, in bytes.
///
/// Smaller pieces are merged, because a chunk must not pin a read buffer of many times its size.
pub(super) const ZERO_COPY_BYTES: usize = 16 << 10;
/// The size at which merged pieces become a chunk, in bytes.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

/// The queue between a parser of frames and its reader.
///
/// Beyond the chunks that can be popped, it holds less than 64 KiB.
#[derive(Debug)]
pub(super) struct Chunks {
    /// Merged pieces of one stream, logged at one time, that are smaller than a chunk.
    merged: (Stream, Option<Timestamp>, Vec<u8>),
    ready: VecDeque<Result<Chunk, FramingError>>,
}

impl Chunks {
    pub(super) fn new() -> Self {
        Self {
            merged: (Stream::Tty, None, Vec::new()),
            ready: VecDeque::new(),
        }
    }

    /// Adds a piece. `following` is the number of bytes after it, of any stream.
    pub(super) fn push(
        &mut self,
        (stream, logged_at): (Stream, Option<Timestamp>),
        piece: Bytes,
        following: usize,
    ) {
        if (self.merged.0, self.merged.1) != (stream, logged_at) {
            self.flush();
            (self.merged.0, self.merged.1) = (stream, logged_at);
        }
        if piece.len() >= ZERO_COPY_BYTES {
            self.flush();
            self.ready.push_back(Ok(Chunk {
                logged_at,
                ..Chunk::new(stream, piece)
            }));
            return;
        }
        let merged = &mut self.merged.2;
        // A record with its own time is not merged with others.
        if merged.is_empty() && logged_at.is_none() {
            merged.reserve((piece.len() + following).min(CHUNK_BYTES));
        }
        merged.extend_from_slice(&piece);
        if merged.len() >= CHUNK_BYTES {
            self.flush();
        }
    }

    /// Returns the number of held bytes.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.merged.2.len()
    }

    /// Makes the held bytes available to [`pop`](Self::pop).
    pub(super) fn flush(&mut self) {
        let (stream, logged_at) = (self.merged.0, self.merged.1);
        let mut bytes = std::mem::take(&mut self.merged.2);
        if !bytes.is_empty() {
            // The chunk must not pin capacity that was reserved for another stream's bytes.
            if bytes.capacity() > 2 * bytes.len() {
                bytes.shrink_to_fit();
            }
            self.ready.push_back(Ok(Chunk {
                logged_at,
                ..Chunk::new(stream, bytes)
            }));
        }
    }

    /// Adds the error that ends the stream.
    pub(super) fn fail(&mut self, error: FramingError) {
        self.flush();
        self.ready.push_back(Err(error));
    }

    /// Returns the next chunk, or the error that ends the stream.
    pub(super) fn pop(&mut self) -> Option<Result<Chunk, FramingError>> {
        self.ready.pop_front()
    }
}
