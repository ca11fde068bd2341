//! The reader of an attachment: the audit file first, then live output.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::mem;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::audit::{Reader, Record};
use crate::capture::{LiveChunk, LiveReceiver, Unlogged};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::outcome::{PerStream, Stream};
use crate::run::Run;
use crate::run::attach::live::LiveOutput;
use crate::run::attach::{AttachOptions, Attached};
use crate::runtime::Chunk;

/// The interval between reads of an audit file that another process writes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The length of the rest of a log that is read after the subscription, in bytes of output.
///
/// The output during that time waits in memory. If more is left to read, the subscription would lag.
/// If it had to wait for the end of the log, it would race with the capture.
const SHORT_REST_BYTES: u64 = 4 << 20;
/// The maximum number of live chunks that are delivered together.
const MAX_ITEMS: usize = 64;
/// The approximate number of bytes of output in one read of the audit file.
const BATCH_BYTES: usize = 64 * 1024;

/// The current source of output, with the data that reading it needs.
///
/// From the start: `History`, `Seam`, `Live`, `Tail`, `Done`. Live only: `Skip` in
/// place of the first two. `Engine` bypasses the audit file.
pub(super) enum Stage {
    /// The engine's live output.
    Engine(LiveOutput),
    /// The output so far, which is dropped.
    Skip,
    /// The audit file. Live output is subscribed to near its end.
    History,
    /// The audit file up to the start of the subscription.
    Seam(Subscription),
    /// Live output.
    Live(Subscription),
    /// The rest of the audit file, after the run or its monitor has ended.
    Tail {
        /// The time at which the run was first seen ended without a seal.
        unsealed_since: Option<Instant>,
    },
    /// The end of the output.
    Done,
}

impl Stage {
    const TAIL: Self = Self::Tail {
        unsealed_since: None,
    };

    /// Returns the first stage of an attachment with these options.
    pub(super) fn first(options: AttachOptions) -> Self {
        match options.live_only {
            true => Self::Skip,
            false => Self::History,
        }
    }
}

/// Live output that has not been delivered.
pub(super) struct Subscription {
    /// The number of bytes of each stream that precede the subscription.
    start: PerStream<u64>,
    /// Chunks that precede those in `receiver`.
    pending: VecDeque<LiveChunk>,
    /// `None` after the capture has ended.
    receiver: Option<LiveReceiver>,
}

impl Subscription {
    fn live_only(start: PerStream<u64>, receiver: Option<LiveReceiver>) -> Self {
        Self {
            start,
            pending: VecDeque::new(),
            receiver,
        }
    }

    /// Returns true if chunks were dropped because too many were waiting.
    fn has_lagged(&self) -> bool {
        self.receiver.as_ref().is_some_and(LiveReceiver::has_lagged)
    }

    /// Returns the next chunk if one is waiting.
    fn try_next(&mut self) -> Option<LiveChunk> {
        let waiting = self.pending.pop_front();
        waiting.or_else(|| self.receiver.as_mut()?.try_next())
    }

    /// Returns the next chunk, or `None` at the end of the live output.
    async fn next(&mut self, run: &Run) -> Result<Option<LiveChunk>> {
        if let Some(chunk) = self.pending.pop_front() {
            return Ok(Some(chunk));
        }
        match &mut self.receiver {
            Some(receiver) if !run.owned_elsewhere() => tokio::select! {
                biased;
                chunk = receiver.next() => Ok(chunk),
                () = seal_overdue(run) => Err(not_sealed(run)),
            },
            _ => Ok(None),
        }
    }
}

/// Resolves once a run has ended and is not sealed within its manager's timeout.
async fn seal_overdue(run: &Run) {
    let mut snapshot = run.entry.snapshot.clone();
    let ended = snapshot.wait_for(|snapshot| snapshot.state.ending().is_some());
    if ended.await.is_err() {
        std::future::pending::<()>().await;
    }
    sleep(run.inner.context.seal_timeout).await;
    if run.entry.snapshot.borrow().seal.is_some() {
        std::future::pending::<()>().await;
    }
}

fn not_sealed(run: &Run) -> Error {
    Error::NotSealed {
        run: run.id().clone(),
    }
}

/// Output to deliver, and the position in each stream.
#[derive(Default)]
struct Delivery {
    /// Bytes of each stream that were delivered or reported as lagged.
    position: PerStream<u64>,
    items: Vec<Attached>,
}

impl Delivery {
    /// Adds the part of `chunk` after the current position, and any gap before it.
    fn push(&mut self, chunk: LiveChunk) {
        let position = self.position[chunk.stream];
        let end = chunk.end();
        if end <= position {
            return;
        }
        if chunk.offset > position {
            self.items.push(Attached::Lagged {
                stream: chunk.stream,
                bytes: chunk.offset - position,
            });
        }
        let overlap = position.saturating_sub(chunk.offset) as usize;
        self.position[chunk.stream] = end;
        if !chunk.bytes.is_empty() {
            let bytes = chunk.bytes.slice(overlap..);
            self.items
                .push(Attached::Chunk(Chunk::new(chunk.stream, bytes)));
        }
    }

    /// Reports the output up to the end of a sealed log that was not delivered.
    fn finish(&mut self, sealed: Option<PerStream<u64>>) {
        for stream in Stream::ALL {
            self.push(LiveChunk {
                stream,
                offset: sealed.map_or(0, |end| end[stream]),
                bytes: Bytes::new(),
            });
        }
    }

    /// Returns true if no output before `start` is left to deliver.
    fn reaches(&self, start: &PerStream<u64>) -> bool {
        let delivered = |stream| self.position[stream] >= start[stream];
        Stream::ALL.into_iter().all(delivered)
    }

    fn has_gap_before(&self, chunk: &LiveChunk) -> bool {
        chunk.offset > self.position[chunk.stream]
    }
}

/// The output records of an audit file, read in batches.
#[derive(Default)]
struct OutputFile {
    reader: Option<Reader>,
    /// Bytes of each stream that were read.
    position: PerStream<u64>,
}

impl OutputFile {
    /// Reads the next batch. The batch is empty at the current end of the file.
    async fn next(&mut self, disk: &Disk, path: PathBuf) -> Result<Vec<LiveChunk>> {
        let reader = self.reader.take();
        let file = path.clone();
        let read = disk.run("read", &path, move || {
            let Some(mut reader) = open(reader, &file)? else {
                return Ok(None);
            };
            let batch = read_batch(&mut reader)?;
            Ok(Some((reader, batch)))
        });
        let Some((reader, batch)) = read.await? else {
            return Ok(Vec::new());
        };
        self.reader = Some(reader);
        let chunks = batch.into_iter().map(|(stream, bytes)| {
            let offset = self.position[stream];
            self.position[stream] += bytes.len() as u64;
            LiveChunk {
                stream,
                offset,
                bytes: bytes.into(),
            }
        });
        Ok(chunks.collect())
    }
}

/// Returns `reader`, or opens the file. `None` means that the file does not exist yet.
fn open(reader: Option<Reader>, path: &Path) -> Result<Option<Reader>> {
    if reader.is_some() {
        return Ok(reader);
    }
    match Reader::open(path) {
        Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Reads output records, and joins adjacent records of one stream.
fn read_batch(reader: &mut Reader) -> Result<Vec<(Stream, Vec<u8>)>> {
    let mut batch: Vec<(Stream, Vec<u8>)> = Vec::new();
    let mut total = 0;
    for record in reader {
        let Record::Output(mut output) = record? else {
            continue;
        };
        if !output.partial {
            output.bytes.push(b'\n');
        }
        total += output.bytes.len();
        match batch.last_mut() {
            Some((stream, bytes)) if *stream == output.stream => bytes.append(&mut output.bytes),
            _ => batch.push((output.stream, output.bytes)),
        }
        if total >= BATCH_BYTES {
            break;
        }
    }
    Ok(batch)
}

/// Returns true if output missing before a live chunk is in the audit file.
///
/// If no chunk was dropped, another owner of the run has written the missing output. If
/// chunks were dropped, only a lossless attachment reads them from the file.
fn gap_is_in_file(lossless: bool, has_file: bool, has_lagged: bool) -> bool {
    lossless || has_file && !has_lagged
}

/// The step after a read of the audit file's tail that found no output.
#[derive(Debug, PartialEq, Eq)]
enum AfterTail {
    /// No more output is written.
    Finish,
    /// This process has recovered the run: its output is live again.
    Subscribe,
    /// More output may be written.
    Poll,
}

/// Chooses the step after a read of the tail that found no output.
///
/// `is_final` must have been determined before that read.
fn after_tail(is_final: bool, owned_elsewhere: bool, ended: bool) -> AfterTail {
    match (is_final, owned_elsewhere || ended) {
        (true, _) => AfterTail::Finish,
        (false, false) => AfterTail::Subscribe,
        (false, true) => AfterTail::Poll,
    }
}

/// Reads the output of a run for one attachment.
pub(super) struct Viewer {
    run: Run,
    /// Output dropped by the subscription is read from the audit file.
    lossless: bool,
    file: OutputFile,
    delivery: Delivery,
    stage: Stage,
}

impl Viewer {
    pub(super) fn new(run: Run, stage: Stage) -> Self {
        Self {
            run,
            lossless: false,
            file: OutputFile::default(),
            delivery: Delivery::default(),
            stage,
        }
    }

    /// Reads dropped output from the audit file, if the run has one.
    pub(super) fn set_lossless(&mut self) {
        self.lossless = self.run.audit().is_some();
    }

    pub(super) fn take_items(&mut self) -> std::vec::Drain<'_, Attached> {
        self.delivery.items.drain(..)
    }

    /// Does one step. Returns false after the last step.
    pub(super) async fn step(mut self) -> (Self, Result<bool>) {
        let more = match self.advance().await {
            Ok(stage) => {
                self.stage = stage;
                Ok(!matches!(self.stage, Stage::Done))
            }
            Err(error) => Err(error),
        };
        (self, more)
    }

    /// Does one step and returns the next stage.
    async fn advance(&mut self) -> Result<Stage> {
        match mem::replace(&mut self.stage, Stage::Done) {
            Stage::Engine(live) => self.read_engine(live).await,
            Stage::Skip => self.skip().await,
            Stage::History if self.has_short_rest() => Ok(Stage::Seam(self.subscribe())),
            Stage::History => match self.read_file().await? {
                true => Ok(Stage::History),
                false => Ok(Stage::Seam(self.subscribe())),
            },
            Stage::Seam(subscription) => {
                let delivered = self.delivery.reaches(&subscription.start);
                match !delivered && self.read_file().await? {
                    true => Ok(Stage::Seam(subscription)),
                    false => Ok(Stage::Live(subscription)),
                }
            }
            Stage::Live(subscription) => self.read_live(subscription).await,
            Stage::Tail { unsealed_since } => self.read_tail(unsealed_since).await,
            Stage::Done => Ok(Stage::Done),
        }
    }

    async fn read_engine(&mut self, mut live: LiveOutput) -> Result<Stage> {
        let Some(chunk) = live.next().await? else {
            return Ok(Stage::Done);
        };
        self.delivery.push(chunk);
        Ok(Stage::Engine(live))
    }

    async fn skip(&mut self) -> Result<Stage> {
        // The hub of a run that was sealed earlier does not know its offsets.
        if self.run.entry.snapshot.borrow().seal.is_some() {
            return Ok(Stage::Done);
        }
        if self.run.owned_elsewhere() {
            while self.read_file().await? {
                self.delivery.items.clear();
            }
            return Ok(Stage::TAIL);
        }
        let (before, receiver) = self.run.entry.hub.subscribe_live();
        self.delivery.position = before;
        Ok(Stage::Live(Subscription::live_only(before, receiver)))
    }

    /// Returns true if this process captures the run, and little of its log is left to read.
    fn has_short_rest(&self) -> bool {
        let logged = self.run.entry.hub.logged_bytes();
        let delivered = self.delivery.position.total();
        logged.is_some_and(|bytes| bytes.total().saturating_sub(delivered) <= SHORT_REST_BYTES)
    }

    /// Returns true if the log may hold output that is not delivered.
    ///
    /// `sealed`: the number of bytes of each stream in a sealed log. Without a monitor, nothing
    /// counts the bytes of a log that is not sealed.
    fn has_rest(&self, sealed: Option<PerStream<u64>>, monitor_gone: bool) -> bool {
        let logged = match monitor_gone || self.run.owned_elsewhere() {
            true => None,
            false => self.run.entry.hub.logged_bytes(),
        };
        let end = sealed.or(logged);
        end.is_none_or(|end| !self.delivery.reaches(&end))
    }

    fn subscribe(&self) -> Subscription {
        let Unlogged {
            logged,
            pending,
            receiver,
        } = self.run.entry.hub.subscribe();
        Subscription {
            start: logged,
            pending,
            receiver,
        }
    }

    async fn read_live(&mut self, mut subscription: Subscription) -> Result<Stage> {
        let Some(mut chunk) = subscription.next(&self.run).await? else {
            return Ok(Stage::TAIL);
        };
        // Waiting chunks are delivered together.
        while !self.delivery.has_gap_before(&chunk) {
            self.delivery.push(chunk);
            if self.delivery.items.len() >= MAX_ITEMS {
                return Ok(Stage::Live(subscription));
            }
            chunk = match subscription.try_next() {
                Some(chunk) => chunk,
                None => return Ok(Stage::Live(subscription)),
            };
        }
        let has_file = self.run.audit().is_some();
        if !gap_is_in_file(self.lossless, has_file, subscription.has_lagged()) {
            self.delivery.push(chunk);
            return Ok(Stage::Live(subscription));
        }
        // In this order: a monitor writes its last output before it exits.
        let monitor_gone = self.run.entry.snapshot.has_changed().is_err();
        if self.read_file().await? {
            subscription.pending.push_front(chunk);
        } else if monitor_gone {
            self.delivery.push(chunk);
        } else {
            // The missing output has not been written yet.
            subscription.pending.push_front(chunk);
            sleep(POLL_INTERVAL).await;
        }
        Ok(Stage::Live(subscription))
    }

    async fn read_tail(&mut self, unsealed_since: Option<Instant>) -> Result<Stage> {
        let mut snapshot = self.run.entry.snapshot.clone();
        // In this order: the monitor publishes the seal before it is gone, and output is written
        // before both.
        let monitor_gone = snapshot.has_changed().is_err();
        let sealed = {
            let snapshot = snapshot.borrow_and_update();
            snapshot.seal.as_ref().map(|seal| seal.bytes)
        };
        let is_final = sealed.is_some() || monitor_gone;
        if self.has_rest(sealed, monitor_gone) && self.read_file().await? {
            return Ok(Stage::Tail { unsealed_since });
        }
        let ended = snapshot.borrow().state.ending().is_some();
        match after_tail(is_final, self.run.owned_elsewhere(), ended) {
            AfterTail::Finish => {
                self.delivery.finish(sealed);
                return Ok(Stage::Done);
            }
            AfterTail::Subscribe => {
                let subscription = self.subscribe();
                if subscription.receiver.is_some() {
                    return Ok(Stage::Seam(subscription));
                }
            }
            AfterTail::Poll => {}
        }
        let _ = timeout(POLL_INTERVAL, snapshot.changed()).await;
        if snapshot.borrow().state.ending().is_none() {
            return Ok(Stage::TAIL);
        }
        let since = unsealed_since.unwrap_or_else(Instant::now);
        if since.elapsed() > self.run.inner.context.seal_timeout {
            return Err(not_sealed(&self.run));
        }
        Ok(Stage::Tail {
            unsealed_since: Some(since),
        })
    }

    /// Delivers the next output in the audit file. Returns false at its current end.
    async fn read_file(&mut self) -> Result<bool> {
        let Some(path) = self.run.audit() else {
            return Ok(false);
        };
        let chunks = self.file.next(&self.run.inner.context.disk, path).await?;
        let more = !chunks.is_empty();
        for chunk in chunks {
            self.delivery.push(chunk);
        }
        Ok(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(offset: u64, bytes: &'static [u8]) -> LiveChunk {
        LiveChunk {
            stream: Stream::Stdout,
            offset,
            bytes: Bytes::from_static(bytes),
        }
    }

    fn delivered(bytes: &'static [u8]) -> Attached {
        Attached::Chunk(Chunk::new(Stream::Stdout, Bytes::from_static(bytes)))
    }

    fn lagged(bytes: u64) -> Attached {
        Attached::Lagged {
            stream: Stream::Stdout,
            bytes,
        }
    }

    #[test]
    fn overlaps_are_cut_and_gaps_are_counted() {
        for (chunk, items, position) in [
            (live(0, b"abcd"), vec![], 4),
            (live(2, b"cd"), vec![], 4),
            (live(2, b"cdef"), vec![delivered(b"ef")], 6),
            (live(4, b"ef"), vec![delivered(b"ef")], 6),
            (live(4, b""), vec![], 4),
            (live(7, b"hi"), vec![lagged(3), delivered(b"hi")], 9),
            (live(7, b""), vec![lagged(3)], 7),
        ] {
            let mut delivery = Delivery::default();
            delivery.position[Stream::Stdout] = 4;
            assert_eq!(delivery.has_gap_before(&chunk), chunk.offset > 4);
            delivery.push(chunk.clone());
            assert_eq!(delivery.items, items, "{chunk:?}");
            assert_eq!(delivery.position[Stream::Stdout], position, "{chunk:?}");
        }
    }

    #[test]
    fn a_gap_is_read_from_the_file_or_reported() {
        for (lossless, has_file, has_lagged, in_file) in [
            (false, false, false, false),
            (false, false, true, false),
            (false, true, false, true),
            (false, true, true, false),
            (true, true, false, true),
            (true, true, true, true),
        ] {
            assert_eq!(
                gap_is_in_file(lossless, has_file, has_lagged),
                in_file,
                "{lossless} {has_file} {has_lagged}"
            );
        }
    }

    #[test]
    fn the_tail_is_polled_until_it_is_final_or_live_again() {
        for (is_final, owned_elsewhere, ended, expected) in [
            (false, false, false, AfterTail::Subscribe),
            (false, false, true, AfterTail::Poll),
            (false, true, false, AfterTail::Poll),
            (false, true, true, AfterTail::Poll),
            (true, false, false, AfterTail::Finish),
            (true, false, true, AfterTail::Finish),
            (true, true, false, AfterTail::Finish),
            (true, true, true, AfterTail::Finish),
        ] {
            assert_eq!(
                after_tail(is_final, owned_elsewhere, ended),
                expected,
                "{is_final} {owned_elsewhere} {ended}"
            );
        }
    }
}
