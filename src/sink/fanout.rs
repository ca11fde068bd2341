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

/// The bytes of a run that may wait for a best-effort sink. At more, the sink is dropped for the
/// run.
const MAX_QUEUED_BYTES: usize = 8 << 20;
/// The longest wait for a best-effort sink, when a run is resumed and when it is sealed.
const BEST_EFFORT_TIMEOUT: Duration = Duration::from_secs(1);
/// The interval between two attempts to resume a log that is still open.
const OWNED_RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// The size of the batches with which a best-effort sink catches up.
const CATCH_UP_BATCH_BYTES: usize = 256 << 10;

/// A sink that forwards records to one required sink and to best-effort sinks.
///
/// The required sink decides: its errors, seal, path, signing key and resumed log are those of the
/// fan-out. The logs of best-effort sinks are not signed.
/// Best-effort sinks get the records that the required sink has accepted. Each best-effort sink
/// runs on a separate thread: if it fails, panics or blocks, no other sink is affected.
///
/// A best-effort sink that fails, or for which more than 8 MiB of a run are queued, is dropped for
/// that run with a warning through [`tracing`]. Its log is then a prefix of the required log, and
/// catches up when the run is resumed. The seal waits at most 1 s for best-effort sinks.
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
    /// If no thread can be started for the sink, a warning is emitted and the sink gets no records.
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

/// The thread that polls a best-effort sink. It ends after the drop, unless the sink blocks it.
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

/// A queued call on the log of a best-effort sink.
enum Call {
    Open(Box<Start>),
    /// The records, and their weight.
    Append(Batch, usize),
    Sync,
    Seal(Box<Seal>),
}

/// The queue from one run to one best-effort sink.
#[derive(Debug)]
struct Lane {
    branch: Branch,
    place: RunPlace,
    /// The queue; `None` once the sink is dropped for this run.
    calls: Option<mpsc::UnboundedSender<Call>>,
    /// The bytes in the queue.
    queued: Arc<AtomicUsize>,
    /// Completes once all queued calls have been made, or one has failed.
    done: Option<oneshot::Receiver<()>>,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Call")
    }
}

impl Lane {
    /// Creates the queue for an open log, or for a log that the first call opens.
    fn new(branch: &Branch, place: &RunPlace, log: Option<Box<dyn RunLog>>) -> Self {
        let (calls, queue) = mpsc::unbounded_channel();
        let (finished, done) = oneshot::channel();
        let queued = Arc::<AtomicUsize>::default();
        let forward = {
            let (branch, place) = (branch.clone(), place.clone());
            let queued = Arc::clone(&queued);
            async move {
                if let Err(error) = forward(&branch, &place, log, queue, &queued).await {
                    report_dropped(&place, &error);
                }
                let _ = finished.send(());
            }
        };
        // Not on the manager's tracker: the sink may hang, and the shutdown must not.
        branch.thread.handle.spawn(forward);
        Self {
            branch: branch.clone(),
            place: place.clone(),
            calls: Some(calls),
            queued,
            done: Some(done),
        }
    }

    fn send(&mut self, call: Call) {
        if let Some(calls) = &self.calls
            && calls.send(call).is_err()
        {
            // The sink has failed, and `forward` has reported that.
            self.calls = None;
        }
    }

    /// Queues records, or drops the sink for this run if too many bytes are queued.
    fn append(&mut self, batch: Batch) {
        let weight = batch.weight();
        if self.calls.is_none() || batch.is_empty() {
            return;
        }
        if self.queued.fetch_add(weight, Ordering::Relaxed) + weight > MAX_QUEUED_BYTES {
            report_dropped(&self.place, &"it is too slow");
            self.calls = None;
            return;
        }
        self.send(Call::Append(batch, weight));
    }

    /// Closes the queue, and waits for the sink to finish, up to the timeout.
    ///
    /// Does not wait for a stuck sink.
    async fn finish(mut self) {
        self.calls = None;
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

/// Makes the queued calls on the sink, until it fails or the queue closes.
async fn forward(
    branch: &Branch,
    place: &RunPlace,
    mut log: Option<Box<dyn RunLog>>,
    mut queue: mpsc::UnboundedReceiver<Call>,
    queued: &AtomicUsize,
) -> Result<()> {
    while let Some(call) = queue.recv().await {
        match (call, &mut log) {
            (Call::Open(start), log) => *log = Some(branch.sink.open(place, &start).await?),
            (Call::Append(batch, weight), Some(log)) => {
                log.append(batch).await?;
                queued.fetch_sub(weight, Ordering::Relaxed);
            }
            (Call::Sync, Some(log)) => log.sync().await?,
            (Call::Seal(seal), Some(log)) => {
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
    /// Opens the sink's log of a run.
    ///
    /// Returns `None` if the log is sealed, or the sink is dropped for the run.
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
                report_dropped(place, &"it did not answer in time");
            }
        }
        None
    }
}

/// Resumes the log of a best-effort sink. Returns `None` if the log is sealed.
async fn resume_branch(sink: &dyn LogSink, place: &RunPlace) -> Result<Option<BranchLog>> {
    loop {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let visit: RecordVisitor = Box::new(move |record| {
            counted.fetch_add(usize::from(is_shared(&record)), Ordering::Relaxed);
        });
        match sink.resume(place, visit).await {
            // The last calls on the previous log are still queued.
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

/// Returns true for records that all sinks store. Each sink has its own digests and seal.
fn is_shared(record: &RecordRef<'_>) -> bool {
    !matches!(
        record,
        RecordRef::Event(Event::Check { .. } | Event::End(_))
    )
}

/// A best-effort sink that receives the records that it missed.
struct CatchUp {
    lane: Lane,
    /// The number of records that the sink has stored.
    stored: u64,
    batch: Batch,
}

impl CatchUp {
    fn new(branch: &Branch, place: &RunPlace, log: BranchLog) -> Self {
        let (log, stored) = match log {
            BranchLog::Absent => (None, 0),
            // The sink stores nothing, so it gets new records only.
            BranchLog::Open(log, 0) => (Some(log), u64::MAX),
            BranchLog::Open(log, count) => (Some(log), count),
        };
        Self {
            lane: Lane::new(branch, place, log),
            stored,
            batch: Batch::new(),
        }
    }

    /// Forwards the record with this number, unless the sink has stored it.
    fn record(&mut self, number: u64, record: RecordRef<'_>) {
        if number < self.stored {
            return;
        }
        match record {
            RecordRef::Event(Event::Start(start)) => self.lane.send(Call::Open(start.clone())),
            record => self.batch.push(record),
        }
        if self.batch.weight() > CATCH_UP_BATCH_BYTES {
            self.lane.append(std::mem::take(&mut self.batch));
        }
    }

    fn finish(mut self) -> Lane {
        self.lane.append(std::mem::take(&mut self.batch));
        self.lane
    }
}

#[async_trait]
impl LogSink for Fanout {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        let required = self.required.open(place, start).await?;
        let lanes = self.branches.iter().map(|branch| {
            let mut lane = Lane::new(branch, place, None);
            lane.send(Call::Open(Box::new(start.clone())));
            lane
        });
        Ok(Box::new(FanoutLog {
            lanes: lanes.collect(),
            required,
        }))
    }

    async fn resume(&self, place: &RunPlace, mut visit: RecordVisitor) -> Result<Resumed> {
        let logs = join_all(self.branches.iter().map(|branch| branch.open_log(place))).await;
        let catch_ups = self
            .branches
            .iter()
            .zip(logs)
            .filter_map(|(branch, log)| Some(CatchUp::new(branch, place, log?)));
        let catch_ups = Arc::new(Mutex::new(catch_ups.collect::<Vec<_>>()));
        let visit_and_catch_up: RecordVisitor = {
            let catch_ups = Arc::clone(&catch_ups);
            let mut number = 0;
            Box::new(move |record| {
                visit(record);
                if !is_shared(&record) {
                    return;
                }
                for catch_up in &mut *catch_ups.lock().unwrap_or_else(PoisonError::into_inner) {
                    catch_up.record(number, record);
                }
                number += 1;
            })
        };
        let resumed = self.required.resume(place, visit_and_catch_up).await?;
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

    #[cfg(feature = "sign")]
    fn signing_key(&self) -> Option<crate::sign::SigningKey> {
        self.required.signing_key()
    }
}

/// Seals the logs of best-effort sinks, and waits for the sinks up to the timeout.
async fn finish(lanes: Vec<Lane>, seal: &Seal) {
    join_all(lanes.into_iter().map(|mut lane| {
        lane.send(Call::Seal(Box::new(seal.clone())));
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
        // The required sink accepts the records first, so each best-effort log is a prefix of its
        // log.
        let copy = batch.clone();
        self.required.append(batch).await?;
        for lane in &mut self.lanes {
            lane.append(copy.clone());
        }
        Ok(())
    }

    async fn sync(&mut self) -> Result<()> {
        self.required.sync().await?;
        for lane in &mut self.lanes {
            lane.send(Call::Sync);
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
