//! Live output for subscribers.
//!
//! No byte is lost or repeated at the seam with the log, and no subscriber blocks the capture.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep};

use crate::outcome::{PerStream, Stream};

/// The number of bytes, including overhead, that may always wait for one subscriber.
const RESERVED_BYTES: usize = 1 << 20;
/// The maximum number of bytes that wait for one subscriber, including overhead.
///
/// A subscriber that lags reads the log instead, which costs more than the capture itself.
const MAX_WAITING_BYTES: usize = 8 << 20;
/// The number of bytes that wait for all subscribers of this process, from which on each may have
/// only [`RESERVED_BYTES`].
const MAX_TOTAL_BYTES: usize = 64 << 20;
/// The maximum time between two waits for continuous output.
const IDLE_THRESHOLD: Duration = Duration::from_millis(3);
/// The pause before a wait for continuous output.
///
/// Each wait wakes a thread, which costs more than the output of one read. Output after a silence
/// is delivered without a pause.
const GATHER_PAUSE: Duration = Duration::from_millis(1);
/// The bytes that wait for all subscribers of this process.
static TOTAL_WAITING: AtomicUsize = AtomicUsize::new(0);
/// The memory of a waiting chunk, besides its bytes.
const CHUNK_OVERHEAD_BYTES: usize = 128;

/// A chunk of a stream, and its offset in the stream.
#[derive(Debug, Clone)]
pub(crate) struct LiveChunk {
    pub(crate) stream: Stream,
    /// The number of bytes of the stream before the chunk.
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
}

impl LiveChunk {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// The memory of the chunk while it waits.
    fn cost(&self) -> usize {
        self.bytes.len() + CHUNK_OVERHEAD_BYTES
    }
}

/// The hub to which a capture publishes the output that it receives.
///
/// A subscriber reads the log to its end, then the pending chunks, then the live chunks. Every
/// chunk has its offset in the stream, so overlaps are cut, and missing bytes are known exactly.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Output that was received and is not in the log yet.
    pending: VecDeque<LiveChunk>,
    subscribers: Vec<Subscriber>,
    /// The number of bytes received of each stream.
    received: PerStream<u64>,
    /// The number of bytes of each stream that are in the log.
    logged: PerStream<u64>,
    /// A capture publishes here.
    started: bool,
    closed: bool,
}

impl Inner {
    fn subscribe(&mut self) -> Option<LiveReceiver> {
        if self.closed {
            return None;
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let lagged = Arc::new(AtomicBool::new(false));
        self.subscribers.push(Subscriber {
            sender,
            waiting: Arc::clone(&waiting),
            lagged: Arc::clone(&lagged),
        });
        Some(LiveReceiver {
            receiver,
            waiting,
            lagged,
            last_wait: None,
        })
    }
}

#[derive(Debug)]
struct Subscriber {
    sender: mpsc::UnboundedSender<LiveChunk>,
    waiting: Arc<AtomicUsize>,
    lagged: Arc<AtomicBool>,
}

impl Subscriber {
    /// Sends a chunk, unless the subscriber lags.
    ///
    /// Returns false if the subscriber is gone.
    fn send(&self, chunk: &LiveChunk) -> bool {
        let cost = chunk.cost();
        let waiting = self.waiting.load(Ordering::Relaxed);
        let limit = match TOTAL_WAITING.load(Ordering::Relaxed) + cost {
            ..=MAX_TOTAL_BYTES => MAX_WAITING_BYTES,
            _ => RESERVED_BYTES,
        };
        if waiting > 0 && waiting + cost > limit {
            self.lagged.store(true, Ordering::Relaxed);
            return !self.sender.is_closed();
        }
        count_waiting(&self.waiting, cost);
        let sent = self.sender.send(chunk.clone()).is_ok();
        if !sent {
            count_taken(&self.waiting, cost);
        }
        sent
    }
}

fn count_waiting(waiting: &AtomicUsize, cost: usize) {
    waiting.fetch_add(cost, Ordering::Relaxed);
    TOTAL_WAITING.fetch_add(cost, Ordering::Relaxed);
}

fn count_taken(waiting: &AtomicUsize, cost: usize) {
    waiting.fetch_sub(cost, Ordering::Relaxed);
    TOTAL_WAITING.fetch_sub(cost, Ordering::Relaxed);
}

/// The live chunks of one subscriber.
#[derive(Debug)]
pub(crate) struct LiveReceiver {
    receiver: mpsc::UnboundedReceiver<LiveChunk>,
    waiting: Arc<AtomicUsize>,
    lagged: Arc<AtomicBool>,
    /// When the last wait for output ended.
    last_wait: Option<Instant>,
}

impl Drop for LiveReceiver {
    fn drop(&mut self) {
        self.receiver.close();
        while self.try_next().is_some() {}
    }
}

impl LiveReceiver {
    /// Returns true if chunks were dropped because too many were waiting.
    ///
    /// Otherwise bytes missing before a chunk are in the log: another owner of the run has written
    /// them.
    pub(crate) fn has_lagged(&self) -> bool {
        self.lagged.load(Ordering::Relaxed)
    }

    /// The next chunk; `None` after the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<LiveChunk> {
        if let Some(chunk) = self.try_next() {
            return Some(chunk);
        }
        if self
            .last_wait
            .is_some_and(|last| last.elapsed() < IDLE_THRESHOLD)
        {
            sleep(GATHER_PAUSE).await;
        }
        let chunk = self.receiver.recv().await;
        self.last_wait = Some(Instant::now());
        Some(self.taken(chunk?))
    }

    /// The next chunk, if one is waiting.
    pub(crate) fn try_next(&mut self) -> Option<LiveChunk> {
        let chunk = self.receiver.try_recv().ok()?;
        Some(self.taken(chunk))
    }

    fn taken(&self, chunk: LiveChunk) -> LiveChunk {
        count_taken(&self.waiting, chunk.cost());
        chunk
    }
}

/// The output of a hub from the end of the log on.
#[derive(Debug)]
pub(crate) struct Unlogged {
    /// The number of bytes of each stream that are in the log.
    pub(crate) logged: PerStream<u64>,
    /// The chunks that were received and are not in the log yet.
    pub(crate) pending: VecDeque<LiveChunk>,
    /// The chunks that follow; `None` if the hub is closed.
    pub(crate) receiver: Option<LiveReceiver>,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a chunk to every subscriber that keeps up.
    ///
    /// For the others, the offset of the next chunk shows what they missed.
    pub(super) fn publish(&self, chunk: LiveChunk) {
        let mut inner = self.lock();
        inner
            .subscribers
            .retain(|subscriber| subscriber.send(&chunk));
        inner.received[chunk.stream] = chunk.end();
        inner.pending.push_back(chunk);
    }

    /// Publishes bytes that go to no log. Returns false if no subscriber is left.
    pub(crate) fn publish_ephemeral(&self, stream: Stream, bytes: Bytes) -> bool {
        let offset = self.lock().received[stream];
        self.publish(LiveChunk {
            stream,
            offset,
            bytes,
        });
        let mut inner = self.lock();
        inner.pending.clear();
        !inner.subscribers.is_empty()
    }

    /// Sets the number of bytes of each stream that were received earlier.
    pub(super) fn start_at(&self, bytes: PerStream<u64>) {
        let mut inner = self.lock();
        (inner.received, inner.logged) = (bytes, bytes);
        inner.started = true;
    }

    /// Returns the number of bytes of each stream in the log; `None` before there is a capture.
    pub(crate) fn logged_bytes(&self) -> Option<PerStream<u64>> {
        let inner = self.lock();
        inner.started.then_some(inner.logged)
    }

    /// Returns the number of bytes received of each stream, and the live chunks.
    ///
    /// There are no live chunks if the hub is closed.
    pub(crate) fn subscribe_live(&self) -> (PerStream<u64>, Option<LiveReceiver>) {
        let mut inner = self.lock();
        (inner.received, inner.subscribe())
    }

    /// Drops pending chunks that are in the log now.
    pub(super) fn mark_logged(&self, bytes: PerStream<u64>) {
        let mut inner = self.lock();
        inner.logged = bytes;
        inner
            .pending
            .retain(|chunk| chunk.end() > bytes[chunk.stream]);
    }

    /// Subscribes to the output that is not in the log yet.
    pub(crate) fn subscribe(&self) -> Unlogged {
        let mut inner = self.lock();
        Unlogged {
            logged: inner.logged,
            pending: inner.pending.clone(),
            receiver: inner.subscribe(),
        }
    }

    /// Ends the output for every subscriber.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.subscribers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(offset: u64, bytes: &'static [u8]) -> LiveChunk {
        LiveChunk {
            stream: Stream::Stdout,
            offset,
            bytes: Bytes::from_static(bytes),
        }
    }

    #[test]
    fn a_subscriber_gets_pending_then_live_output() {
        let hub = Hub::default();
        hub.publish(chunk(0, b"one\n"));
        hub.publish(chunk(4, b"two"));
        hub.mark_logged(PerStream {
            stdout: 4,
            ..PerStream::default()
        });
        let Unlogged {
            logged,
            pending,
            receiver,
        } = hub.subscribe();
        let mut receiver = receiver.unwrap();
        assert_eq!((logged.stdout, pending.len()), (4, 1));
        assert_eq!((pending[0].offset, &pending[0].bytes[..]), (4, &b"two"[..]));
        hub.publish(chunk(7, b"!\n"));
        hub.close();
        assert_eq!(receiver.receiver.try_recv().unwrap().offset, 7);
        assert!(receiver.receiver.try_recv().is_err());
        assert!(hub.subscribe().receiver.is_none());
    }

    #[test]
    fn a_live_subscriber_gets_the_current_offsets() {
        let hub = Hub::default();
        hub.start_at(PerStream {
            stderr: 9,
            ..PerStream::default()
        });
        hub.publish(chunk(0, b"one\n"));
        let (before, receiver) = hub.subscribe_live();
        assert_eq!((before.stdout, before.stderr), (4, 9));
        hub.publish(chunk(4, b"two\n"));
        assert_eq!(receiver.unwrap().receiver.try_recv().unwrap().offset, 4);
    }

    #[test]
    fn a_stuck_subscriber_takes_bounded_memory() {
        let hub = Hub::default();
        let receiver = hub.subscribe().receiver;
        for n in 0..100_000 {
            hub.publish(chunk(n, b"x"));
            hub.mark_logged(PerStream {
                stdout: n + 1,
                ..PerStream::default()
            });
        }
        assert!(receiver.unwrap().receiver.len() * CHUNK_OVERHEAD_BYTES <= MAX_WAITING_BYTES);
        assert!(hub.lock().pending.is_empty());
    }
}
