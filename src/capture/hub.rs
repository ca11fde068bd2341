//! Live output for those who look on: nothing lost or doubled at the seam with the log, and no
//! looker-on can hold up the capture.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::outcome::{PerStream, Stream};

/// How many bytes wait for one looker-on, with what a piece itself takes.
const MAX_PENDING_BYTES: usize = 1 << 20;
const CHUNK_OVERHEAD_BYTES: usize = 128;

/// A part of a stream, and where in the stream it is.
#[derive(Debug, Clone)]
pub(crate) struct LiveChunk {
    pub(crate) stream: Stream,
    /// The number of bytes of the stream before it.
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
}

impl LiveChunk {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// How much it takes while it waits.
    fn cost(&self) -> usize {
        self.bytes.len() + CHUNK_OVERHEAD_BYTES
    }
}

/// Where a capture publishes what it receives.
///
/// The seam: a looker-on reads the log to its end, then takes what is pending here, then what
/// comes. Every piece says where in its stream it is, so what overlaps is cut, and what is missing
/// is known to the byte.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What was received and is not in the log yet.
    pending: VecDeque<LiveChunk>,
    watchers: Vec<Watcher>,
    /// How many bytes of each stream were received.
    received: PerStream<u64>,
    closed: bool,
}

impl Inner {
    fn watch(&mut self) -> Option<LiveReceiver> {
        if self.closed {
            return None;
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let behind = Arc::new(AtomicBool::new(false));
        self.watchers.push(Watcher {
            sender,
            waiting: Arc::clone(&waiting),
            behind: Arc::clone(&behind),
        });
        Some(LiveReceiver {
            receiver,
            waiting,
            behind,
        })
    }
}

#[derive(Debug)]
struct Watcher {
    sender: mpsc::UnboundedSender<LiveChunk>,
    waiting: Arc<AtomicUsize>,
    behind: Arc<AtomicBool>,
}

impl Watcher {
    /// `false`: it has gone. One that is behind gets nothing.
    fn show(&self, piece: &LiveChunk) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed);
        if waiting > 0 && waiting + piece.cost() > MAX_PENDING_BYTES {
            self.behind.store(true, Ordering::Relaxed);
            return !self.sender.is_closed();
        }
        self.waiting.fetch_add(piece.cost(), Ordering::Relaxed);
        self.sender.send(piece.clone()).is_ok()
    }
}

/// What comes, for one looker-on.
#[derive(Debug)]
pub(crate) struct LiveReceiver {
    receiver: mpsc::UnboundedReceiver<LiveChunk>,
    waiting: Arc<AtomicUsize>,
    behind: Arc<AtomicBool>,
}

impl LiveReceiver {
    /// Whether pieces were withheld because too many were waiting. Where none were, what is
    /// missing before a piece is in the log: another owner of the run has written it.
    pub(crate) fn has_lagged(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    /// The next piece; `None` after the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<LiveChunk> {
        let piece = self.receiver.recv().await?;
        self.waiting.fetch_sub(piece.cost(), Ordering::Relaxed);
        Some(piece)
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a piece to everyone who keeps up; the others find out from the next one.
    pub(super) fn publish(&self, piece: LiveChunk) {
        let mut inner = self.lock();
        inner.watchers.retain(|watcher| watcher.show(&piece));
        inner.received[piece.stream] = piece.end();
        inner.pending.push_back(piece);
    }

    /// Shows bytes that go to no log; `false`: nobody looks on any more.
    pub(crate) fn publish_ephemeral(&self, stream: Stream, bytes: Bytes) -> bool {
        let offset = self.lock().received[stream];
        self.publish(LiveChunk {
            stream,
            offset,
            bytes,
        });
        let mut inner = self.lock();
        inner.pending.clear();
        !inner.watchers.is_empty()
    }

    /// So much was received before.
    pub(super) fn start_at(&self, bytes: PerStream<u64>) {
        self.lock().received = bytes;
    }

    /// A receiver of what comes, `None` after the end, and how much of each stream came before.
    pub(crate) fn subscribe_live(&self) -> (PerStream<u64>, Option<LiveReceiver>) {
        let mut inner = self.lock();
        (inner.received, inner.watch())
    }

    /// Forgets what is in the log now.
    pub(super) fn mark_logged(&self, bytes: PerStream<u64>) {
        self.lock()
            .pending
            .retain(|piece| piece.end() > bytes[piece.stream]);
    }

    /// What is not in the log yet, and a receiver of what comes; `None` after the end.
    pub(crate) fn subscribe(&self) -> (Vec<LiveChunk>, Option<LiveReceiver>) {
        let mut inner = self.lock();
        let pending = inner.pending.iter().cloned().collect();
        (pending, inner.watch())
    }

    /// Ends it for everyone: nothing comes any more.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.watchers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, bytes: &'static [u8]) -> LiveChunk {
        LiveChunk {
            stream: Stream::Stdout,
            offset,
            bytes: Bytes::from_static(bytes),
        }
    }

    #[test]
    fn a_looker_on_gets_what_is_not_logged_yet_and_then_what_comes() {
        let hub = Hub::default();
        hub.publish(piece(0, b"one\n"));
        hub.publish(piece(4, b"two"));
        hub.mark_logged(PerStream {
            stdout: 4,
            ..PerStream::default()
        });
        let (pending, receiver) = hub.subscribe();
        let mut receiver = receiver.unwrap();
        assert_eq!(pending.len(), 1);
        assert_eq!((pending[0].offset, &pending[0].bytes[..]), (4, &b"two"[..]));
        hub.publish(piece(7, b"!\n"));
        hub.close();
        assert_eq!(receiver.receiver.try_recv().unwrap().offset, 7);
        assert!(receiver.receiver.try_recv().is_err());
        assert!(hub.subscribe().1.is_none());
    }

    #[test]
    fn one_who_wants_what_comes_is_told_how_much_was_before() {
        let hub = Hub::default();
        hub.start_at(PerStream {
            stderr: 9,
            ..PerStream::default()
        });
        hub.publish(piece(0, b"one\n"));
        let (before, receiver) = hub.subscribe_live();
        assert_eq!((before.stdout, before.stderr), (4, 9));
        hub.publish(piece(4, b"two\n"));
        assert_eq!(receiver.unwrap().receiver.try_recv().unwrap().offset, 4);
    }

    #[test]
    fn a_looker_on_that_does_not_read_holds_nothing_up() {
        let hub = Hub::default();
        let (_, receiver) = hub.subscribe();
        for n in 0..100_000 {
            hub.publish(piece(n, b"x"));
            hub.mark_logged(PerStream {
                stdout: n + 1,
                ..PerStream::default()
            });
        }
        assert!(receiver.unwrap().receiver.len() * CHUNK_OVERHEAD_BYTES <= MAX_PENDING_BYTES);
        assert!(hub.lock().pending.is_empty());
    }
}
