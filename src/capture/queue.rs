//! The queue of received output, and the schedule by which the sink writes it.

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::lines::LineAssembler;
use crate::audit::{Batch, Event, OutputTime};
use crate::error::Error;
use crate::outcome::Stream;
use crate::runtime::Chunk;
use crate::sink::RunLog;
use crate::timestamp::Timestamp;

/// The queue size that pauses the source, until half of it is written.
const PAUSE_BYTES: usize = 2 << 20;
/// The longest pause of a source. After this time, the sink counts as stalled.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(2);
/// The queue length at which records of standard input have to wait.
const MAX_ENTRIES_FOR_STDIN: usize = 64;
/// The memory of an entry, besides its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 128;
/// The approximate size of a write.
const BATCH_BYTES: usize = 256 << 10;
/// The interval between writes smaller than a batch.
///
/// Each write wakes a thread, which costs more than the write itself. Output after a silence is
/// written at once.
const WRITE_INTERVAL: Duration = Duration::from_millis(10);

type AppendFuture = BoxFuture<'static, Result<Box<dyn RunLog>, Error>>;

/// The write scheduler: a queue, and at most one write in flight.
#[derive(Default)]
pub(super) struct WriteScheduler {
    queue: Queue,
    in_flight: Option<AppendFuture>,
}

impl WriteScheduler {
    /// Returns true if no write is in flight and the queue is empty.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.queue.entries.is_empty()
    }

    /// Returns true while the queue is too large for the source to be read.
    pub(super) fn is_paused(&self) -> bool {
        self.queue.paused_since.is_some()
    }

    /// Returns true if the queue has room for a record of standard input.
    ///
    /// Standard input can wait without loss.
    pub(super) fn has_room_for_stdin(&self) -> bool {
        self.queue.entries.len() < MAX_ENTRIES_FOR_STDIN
    }

    /// When the next write is due, if one is queued and none is in flight.
    pub(super) fn due(&self, source_ended: bool) -> Option<Instant> {
        match self.in_flight {
            Some(_) => None,
            None => self.queue.due(source_ended),
        }
    }

    /// When the sink counts as stalled, if the source is paused.
    pub(super) fn stall_deadline(&self) -> Option<Instant> {
        self.queue.paused_since.map(|since| since + STALL_TIMEOUT)
    }

    pub(super) fn push_event(&mut self, event: Event) {
        self.queue.push_event(event);
    }

    pub(super) fn push_chunk(&mut self, chunk: Chunk) {
        self.queue.push_chunk(chunk);
    }

    /// Takes the next batch off the queue. The batch is empty if its chunks end no line.
    pub(super) fn next_batch(&mut self, lines: &mut LineAssembler) -> Batch {
        self.queue.next_batch(lines)
    }

    /// Starts the write of `batch`. No other write may be in flight.
    pub(super) fn start(&mut self, mut log: Box<dyn RunLog>, batch: Batch) {
        debug_assert!(self.in_flight.is_none(), "two writes in flight");
        self.in_flight = Some(Box::pin(async move {
            log.append(batch).await?;
            Ok(log)
        }));
    }

    /// Waits for the write in flight, and returns the log.
    ///
    /// Without one it waits forever. Cancel-safe.
    pub(super) async fn finished(&mut self) -> Result<Box<dyn RunLog>, Error> {
        let Some(write) = &mut self.in_flight else {
            return pending().await;
        };
        let result = write.await;
        self.in_flight = None;
        // A sink that finishes writes is slow, not stalled.
        self.queue.paused_since = self.queue.paused_since.map(|_| Instant::now());
        result
    }
}

/// The chunks and records that no write has taken.
#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The number of events, which are written without delay.
    events: usize,
    /// When the source was paused, or a write last finished since then.
    paused_since: Option<Instant>,
    last_write: Option<Instant>,
}

#[derive(Debug)]
enum Entry {
    Chunk(OutputTime, Stream, Bytes),
    Event(Event),
}

impl Queue {
    /// When the next batch is due; `None` if the queue is empty.
    fn due(&self, source_ended: bool) -> Option<Instant> {
        if self.entries.is_empty() {
            return None;
        }
        let now = Instant::now();
        let at_once = source_ended || self.events > 0 || self.bytes >= BATCH_BYTES;
        let paced = self.last_write.map(|last| last + WRITE_INTERVAL);
        Some(paced.filter(|_| !at_once).unwrap_or(now))
    }

    fn push_event(&mut self, event: Event) {
        self.events += 1;
        self.entries.push_back(Entry::Event(event));
    }

    fn push_chunk(&mut self, chunk: Chunk) {
        let time = match chunk.logged_at {
            Some(ts) => OutputTime {
                ts,
                engine_time: true,
            },
            None => Timestamp::now().into(),
        };
        self.bytes += chunk.bytes.len() + ENTRY_OVERHEAD_BYTES;
        self.entries
            .push_back(Entry::Chunk(time, chunk.stream, chunk.bytes));
        if self.bytes >= PAUSE_BYTES {
            self.paused_since.get_or_insert_with(Instant::now);
        }
    }

    fn next_batch(&mut self, lines: &mut LineAssembler) -> Batch {
        let mut batch = Batch::with_capacity(self.bytes.min(BATCH_BYTES));
        let mut taken = 0;
        while taken < BATCH_BYTES
            && let Some(entry) = self.entries.pop_front()
        {
            match entry {
                Entry::Chunk(time, stream, bytes) => {
                    taken += bytes.len() + ENTRY_OVERHEAD_BYTES;
                    lines.push(time, stream, &bytes, &mut batch);
                }
                Entry::Event(event) => {
                    self.events -= 1;
                    batch.push_event(event);
                }
            }
        }
        self.last_write = Some(Instant::now());
        self.bytes -= taken;
        if self.bytes < PAUSE_BYTES / 2 {
            self.paused_since = None;
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(queue: &mut Queue, bytes: usize) {
        let bytes = Bytes::from(vec![b'\n'; bytes]);
        queue.push_chunk(Chunk::new(Stream::Stdout, bytes));
    }

    #[tokio::test(start_paused = true)]
    async fn small_writes_are_paced_and_all_others_are_not() {
        let mut lines = LineAssembler::default();
        let mut queue = Queue::default();
        assert_eq!(queue.due(false), None);
        assert_eq!(queue.due(true), None);

        // After a silence.
        chunk(&mut queue, 1);
        let now = Instant::now();
        assert_eq!(queue.due(false), Some(now));
        assert_eq!(queue.next_batch(&mut lines).len(), 1);

        // Right after a write.
        chunk(&mut queue, 1);
        assert_eq!(queue.due(false), Some(now + WRITE_INTERVAL));
        assert_eq!(queue.due(true), Some(now));
        queue.push_event(Event::note("at once"));
        assert_eq!(queue.due(false), Some(now));
        assert_eq!(queue.next_batch(&mut lines).len(), 2);
        chunk(&mut queue, BATCH_BYTES);
        assert_eq!(queue.due(false), Some(now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_pauses_the_source_until_half_is_written() {
        let mut lines = LineAssembler::default();
        let mut writes = WriteScheduler::default();
        while !writes.is_paused() {
            assert_eq!(writes.stall_deadline(), None);
            chunk(&mut writes.queue, 64 << 10);
        }
        assert!(writes.queue.bytes >= PAUSE_BYTES);
        let deadline = Some(Instant::now() + STALL_TIMEOUT);
        tokio::time::advance(Duration::from_secs(1)).await;
        chunk(&mut writes.queue, 1);
        assert_eq!(writes.stall_deadline(), deadline);
        while writes.queue.bytes >= PAUSE_BYTES / 2 {
            assert!(writes.is_paused());
            writes.next_batch(&mut lines);
        }
        assert!(!writes.is_paused());
    }

    #[test]
    fn input_waits_while_the_queue_is_long() {
        let mut writes = WriteScheduler::default();
        for _ in 0..MAX_ENTRIES_FOR_STDIN {
            assert!(writes.has_room_for_stdin());
            writes.push_event(Event::note("input"));
        }
        assert!(!writes.has_room_for_stdin());
    }
}
