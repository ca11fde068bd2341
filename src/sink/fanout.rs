//! A sink that forwards to one required sink and to best-effort sinks.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io, thread};

use async_trait::async_trait;
use futures::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::audit::{Batch, Event, RecordRef, Start};
use crate::error::{Error, Result};
use crate::outcome::Seal;
use crate::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};

/// Bytes of one run that may wait for a best-effort sink before the sink is dropped for the run.
const QUEUE_LIMIT: usize = 8 << 20;
/// Longest wait for a best-effort sink when a run is resumed and when it is sealed.
const BEST_EFFORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval between two attempts to resume a log that is still open.
const OWNED_RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// Size in bytes of the batches with which a best-effort sink catches up.
const CATCH_UP_BATCH: usize = 256 << 10;

/// A sink that forwards records to one required sink and to best-effort sinks.
///
/// The required sink decides: its errors, seal, path and resumed log are those of the fan-out.
/// Best-effort sinks get the records that the required sink has accepted. Each one runs on its own
/// thread, so a best-effort sink that fails, panics or blocks affects no other sink.
///
/// A best-effort sink that fails, or has more than 8 MiB of a run waiting, is dropped for that run
/// with a warning through [`tracing`]. Its log is then a prefix of the required one, and catches up
/// when the run is resumed. The seal waits at most 1 s for best-effort sinks.
///
/// Sinks that store nothing ([`Console`](super::Console), [`Tracing`](super::Tracing)) do not catch
/// up: they get new records only.
///
/// ```
/// use moat::sink::{Console, Fanout, Jsonl, Tracing};
///
/// let sink = Fanout::new(Jsonl::new())
///     .best_effort(Console::stderr())
///     .best_effort(Tracing::new());
/// # drop(sink);
/// ```
#[derive(Debug, Clone)]
pub struct Fanout {
    required: Arc<dyn LogSink>,
    branches: Vec<Branch>,
}

impl Fanout {
    /// Creates a fan-out with one required sink.
    pub fn new(required: impl LogSink) -> Self {
        Self {
            required: Arc::new(required),
            branches: Vec::new(),
        }
    }

    /// Adds a best-effort sink.
    ///
    /// If no thread can be started for the sink, it gets nothing, and a warning is emitted.
    pub fn best_effort(mut self, sink: impl LogSink) -> Self {
        match Thread::start(thread::Builder::new()) {
            Ok(thread) => self.branches.push(Branch {
                sink: Arc::new(sink),
                thread: Arc::new(thread),
                stuck: Arc::default(),
            }),
            Err(error) => {
                tracing::warn!(%error, "cannot start a thread for a best-effort sink")
            }
        }
        self
    }
}

/// A best-effort sink.
#[derive(Debug, Clone)]
struct Branch {
    sink: Arc<dyn LogSink>,
    thread: Arc<Thread>,
    /// Set when a wait for the sink timed out, until the sink seals a log.
    stuck: Arc<AtomicBool>,
}

/// The thread that polls a best-effort sink. Ends after `Thread` is dropped, unless the sink blocks.
struct Thread {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Thread")
    }
}

impl Thread {
    fn start(builder: thread::Builder) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (built, handle) = std::sync::mpsc::channel();
        // The thread builds the runtime: a failed start would drop it here, and dropping a runtime
        // panics in async code.
        let run = move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            match runtime.enable_all().build() {
                Ok(runtime) => {
                    let _ = built.send(Ok(runtime.handle().clone()));
                    let _ = runtime.block_on(stopped);
                    runtime.shutdown_background();
                }
                Err(error) => {
                    let _ = built.send(Err(error));
                }
            }
        };
        builder.name("moat-fanout".into()).spawn(run)?;
        Ok(Self {
            handle: handle.recv().map_err(io::Error::other)??,
            _stop: stop,
        })
    }
}

/// A call on the log of a best-effort sink.
enum Item {
    Open(Box<Start>),
    Batch(Batch, usize),
    Sync,
    Seal(Box<Seal>),
}

/// The queue from one run to one best-effort sink.
#[derive(Debug)]
struct Lane {
    branch: Branch,
    place: RunPlace,
    /// `None`: the sink is dropped for this run.
    items: Option<mpsc::UnboundedSender<Item>>,
    waiting: Arc<AtomicUsize>,
    done: Option<oneshot::Receiver<()>>,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Item")
    }
}

impl Lane {
    /// Queues for an open log, or for a log that the first item opens.
    fn new(branch: &Branch, place: &RunPlace, log: Option<Box<dyn RunLog>>) -> Self {
        let (items, queue) = mpsc::unbounded_channel();
        let (finished, done) = oneshot::channel();
        let waiting = Arc::<AtomicUsize>::default();
        let carry = {
            let (branch, place) = (branch.clone(), place.clone());
            let waiting = Arc::clone(&waiting);
            async move {
                if let Err(error) = carry(&branch, &place, log, queue, &waiting).await {
                    report_dropped(&place, &error);
                }
                let _ = finished.send(());
            }
        };
        // Not on the manager's tracker: the sink may hang, and the shutdown must not.
        branch.thread.handle.spawn(carry);
        Self {
            branch: branch.clone(),
            place: place.clone(),
            items: Some(items),
            waiting,
            done: Some(done),
        }
    }

    fn send(&mut self, item: Item) {
        // A sink that failed has already been reported.
        if self
            .items
            .as_ref()
            .is_some_and(|items| items.send(item).is_err())
        {
            self.items = None;
        }
    }

    fn batch(&mut self, batch: Batch) {
        let weight = batch.weight();
        if self.items.is_none() || batch.is_empty() {
            return;
        }
        if self.waiting.fetch_add(weight, Ordering::Relaxed) + weight > QUEUE_LIMIT {
            report_dropped(&self.place, &"it is too slow");
            self.items = None;
            return;
        }
        self.send(Item::Batch(batch, weight));
    }

    /// Waits for the sink to finish, up to the timeout, and not at all for a stuck sink.
    async fn finish(mut self) {
        self.items = None;
        let Some(done) = self.done.take() else { return };
        if self.branch.stuck.load(Ordering::Relaxed) {
            return;
        }
        if timeout(BEST_EFFORT_TIMEOUT, done).await.is_err() {
            self.branch.stuck.store(true, Ordering::Relaxed);
        }
    }
}

fn report_dropped(place: &RunPlace, reason: &dyn fmt::Display) {
    tracing::warn!(run = %place.run, %reason, "a best-effort sink is dropped for a run");
}

/// Forwards items to the sink until it fails or the queue closes.
async fn carry(
    branch: &Branch,
    place: &RunPlace,
    mut log: Option<Box<dyn RunLog>>,
    mut queue: mpsc::UnboundedReceiver<Item>,
    waiting: &AtomicUsize,
) -> Result<()> {
    while let Some(item) = queue.recv().await {
        match (item, &mut log) {
            (Item::Open(start), log) => *log = Some(branch.sink.open(place, &start).await?),
            (Item::Batch(batch, weight), Some(log)) => {
                log.append(batch).await?;
                waiting.fetch_sub(weight, Ordering::Relaxed);
            }
            (Item::Sync, Some(log)) => log.sync().await?,
            (Item::Seal(seal), Some(log)) => {
                log.seal(*seal).await?;
                branch.stuck.store(false, Ordering::Relaxed);
            }
            (_, None) => {}
        }
    }
    Ok(())
}

/// The log of a best-effort sink when a run is resumed.
enum BranchLog {
    Absent,
    /// The log and the number of its records. A sink that stores nothing has 0.
    Open(Box<dyn RunLog>, u64),
}

impl Branch {
    /// Opens the sink's log of a run. `None`: the log is sealed, or the sink is dropped.
    async fn open_log(&self, place: &RunPlace) -> Option<BranchLog> {
        if self.stuck.load(Ordering::Relaxed) {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        let (sink, resumed_place) = (Arc::clone(&self.sink), place.clone());
        let task = self.thread.handle.spawn(async move {
            let _ = answer.send(resume_branch(&*sink, &resumed_place).await);
        });
        match timeout(BEST_EFFORT_TIMEOUT, answered).await {
            Ok(Ok(Ok(log))) => return log,
            Ok(Ok(Err(error))) => report_dropped(place, &error),
            Ok(Err(_)) => report_dropped(place, &"it panicked"),
            Err(_) => {
                task.abort();
                self.stuck.store(true, Ordering::Relaxed);
                report_dropped(place, &"it does not answer in time");
            }
        }
        None
    }
}

/// Resumes the log of a best-effort sink. `None`: it is sealed.
async fn resume_branch(sink: &dyn LogSink, place: &RunPlace) -> Result<Option<BranchLog>> {
    loop {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let visit: RecordVisitor = Box::new(move |record| {
            counted.fetch_add(usize::from(is_shared(&record)), Ordering::Relaxed);
        });
        match sink.resume(place, visit).await {
            // The last items of the previous log are still queued.
            Err(Error::Owned { .. }) => sleep(OWNED_RETRY_INTERVAL).await,
            Err(error) => return Err(error),
            Ok(Resumed::Absent) => return Ok(Some(BranchLog::Absent)),
            Ok(Resumed::Sealed(_)) => return Ok(None),
            Ok(Resumed::Open { log, .. }) => {
                let count = count.load(Ordering::Relaxed) as u64;
                return Ok(Some(BranchLog::Open(log, count)));
            }
        }
    }
}

/// Returns true for records that every sink stores. Digests and seals are per sink.
fn is_shared(record: &RecordRef<'_>) -> bool {
    !matches!(
        record,
        RecordRef::Event(Event::Check { .. } | Event::End(_))
    )
}

/// A best-effort sink that gets the records that it missed.
struct CatchUp {
    lane: Lane,
    /// Number of records that the sink already has.
    has: u64,
    batch: Batch,
}

impl CatchUp {
    fn new(branch: &Branch, place: &RunPlace, log: BranchLog) -> Self {
        let (log, has) = match log {
            BranchLog::Absent => (None, 0),
            BranchLog::Open(log, 0) => (Some(log), u64::MAX),
            BranchLog::Open(log, has) => (Some(log), has),
        };
        Self {
            lane: Lane::new(branch, place, log),
            has,
            batch: Batch::new(),
        }
    }

    /// Forwards the record with this number, unless the sink has it.
    fn record(&mut self, number: u64, record: RecordRef<'_>) {
        if number < self.has {
            return;
        }
        match record {
            RecordRef::Event(Event::Start(start)) => self.lane.send(Item::Open(start.clone())),
            record => self.batch.push(record),
        }
        if self.batch.weight() > CATCH_UP_BATCH {
            self.lane.batch(std::mem::take(&mut self.batch));
        }
    }

    fn finish(mut self) -> Lane {
        self.lane.batch(std::mem::take(&mut self.batch));
        self.lane
    }
}

#[async_trait]
impl LogSink for Fanout {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        let required = self.required.open(place, start).await?;
        let lanes = self.branches.iter().map(|branch| {
            let mut lane = Lane::new(branch, place, None);
            lane.send(Item::Open(Box::new(start.clone())));
            lane
        });
        Ok(Box::new(FanoutLog {
            lanes: lanes.collect(),
            required,
        }))
    }

    async fn resume(&self, place: &RunPlace, mut visit: RecordVisitor) -> Result<Resumed> {
        let found = join_all(self.branches.iter().map(|branch| branch.open_log(place))).await;
        let catch_ups = self
            .branches
            .iter()
            .zip(found)
            .filter_map(|(branch, found)| Some(CatchUp::new(branch, place, found?)));
        let catch_ups = Arc::new(Mutex::new(catch_ups.collect::<Vec<_>>()));
        let both: RecordVisitor = {
            let catch_ups = Arc::clone(&catch_ups);
            let mut number = 0;
            Box::new(move |record| {
                visit(record);
                if !is_shared(&record) {
                    return;
                }
                for branch in &mut *catch_ups.lock().unwrap_or_else(PoisonError::into_inner) {
                    branch.record(number, record);
                }
                number += 1;
            })
        };
        let resumed = self.required.resume(place, both).await?;
        let catch_ups =
            std::mem::take(&mut *catch_ups.lock().unwrap_or_else(PoisonError::into_inner));
        let lanes = catch_ups.into_iter().map(CatchUp::finish).collect();
        Ok(match resumed {
            Resumed::Open { log, torn } => Resumed::Open {
                log: Box::new(FanoutLog {
                    required: log,
                    lanes,
                }),
                torn,
            },
            Resumed::Sealed(seal) => {
                finish(lanes, &seal).await;
                Resumed::Sealed(seal)
            }
            Resumed::Absent => Resumed::Absent,
        })
    }

    fn path(&self, place: &RunPlace) -> Option<PathBuf> {
        self.required.path(place)
    }
}

async fn finish(lanes: Vec<Lane>, seal: &Seal) {
    join_all(lanes.into_iter().map(|mut lane| {
        lane.send(Item::Seal(Box::new(seal.clone())));
        lane.finish()
    }))
    .await;
}

#[derive(Debug)]
struct FanoutLog {
    required: Box<dyn RunLog>,
    lanes: Vec<Lane>,
}

#[async_trait]
impl RunLog for FanoutLog {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        if self.lanes.is_empty() {
            return self.required.append(batch).await;
        }
        // Only after the required sink has accepted the records, so that each log is a prefix of it.
        let copy = batch.clone();
        self.required.append(batch).await?;
        for lane in &mut self.lanes {
            lane.batch(copy.clone());
        }
        Ok(())
    }

    async fn sync(&mut self) -> Result<()> {
        self.required.sync().await?;
        for lane in &mut self.lanes {
            lane.send(Item::Sync);
        }
        Ok(())
    }

    async fn seal(&mut self, seal: Seal) -> Result<Seal> {
        let sealed = self.required.seal(seal).await?;
        finish(std::mem::take(&mut self.lanes), &sealed).await;
        Ok(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_that_cannot_start_is_an_error() {
        // No address space has room for this stack.
        let builder = thread::Builder::new().stack_size(1 << 60);
        assert!(Thread::start(builder).is_err());
    }
}
