//! A sink in front of several: one that counts, and others as far as they keep up.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::audit::{Batch, Event, RecordRef, Start};
use crate::error::{Error, Result};
use crate::outcome::Seal;
use crate::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};

/// How much waits for a best-effort sink, for each run; past it, the sink is given up for the run.
const ROOM: usize = 8 << 20;
/// How long a best-effort sink is waited for: at a resumption, and at the seal.
const GRACE: Duration = Duration::from_secs(1);
/// How much of a log is handed on at once when a best-effort sink catches up.
const PART: usize = 256 << 10;

/// A sink in front of several: one that is required, and others that get what it has taken.
///
/// What the required sink says is what the fan-out says: its errors, its seal, its path, its log at
/// a resumption. A best-effort sink that fails, panics, hangs or blocks harms neither it nor the
/// others: each has a thread of its own, and at most 8 MiB of a run wait for it. One that fails, or
/// has more to take than that, is given up for the run, with a warning through [`tracing`]; what it
/// has is a first part of the log. At a resumption it catches up from the required sink's log. At
/// the seal it is waited for, for 1 s at most.
///
/// A sink that keeps nothing ([`Console`](super::Console), [`Tracing`](super::Tracing)) is shown
/// what is new.
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
    /// A fan-out to this one alone.
    pub fn new(required: impl LogSink) -> Self {
        Self {
            required: Arc::new(required),
            branches: Vec::new(),
        }
    }

    /// And to this one, as far as it keeps up.
    pub fn best_effort(mut self, sink: impl LogSink) -> Self {
        match Thread::new() {
            Ok(thread) => self.branches.push(Branch {
                sink: Arc::new(sink),
                thread: Arc::new(thread),
                stuck: Arc::default(),
            }),
            Err(error) => {
                tracing::warn!(%error, "no thread for a best-effort sink: it gets nothing")
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
    /// Whether it was waited for in vain, and has sealed nothing since.
    stuck: Arc<AtomicBool>,
}

/// The thread that polls a best-effort sink. It ends when this is dropped, and the sink lets it.
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
    fn new() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("moat-fanout".into())
            .spawn(move || {
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })?;
        Ok(Self {
            handle,
            _stop: stop,
        })
    }
}

/// What a best-effort sink is handed of one run.
enum Item {
    Open(Box<Start>),
    Batch(Batch, usize),
    Sync,
    Seal(Box<Seal>),
}

/// The way of one run to one best-effort sink.
#[derive(Debug)]
struct Lane {
    branch: Branch,
    place: RunPlace,
    /// `None`: the sink was given up.
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
    /// To a log that is there, or to one that the first item opens.
    fn new(branch: &Branch, place: &RunPlace, log: Option<Box<dyn RunLog>>) -> Self {
        let (items, queue) = mpsc::unbounded_channel();
        let (finished, done) = oneshot::channel();
        let waiting = Arc::<AtomicUsize>::default();
        let carry = {
            let (branch, place) = (branch.clone(), place.clone());
            let waiting = Arc::clone(&waiting);
            async move {
                if let Err(error) = carry(&branch, &place, log, queue, &waiting).await {
                    given_up(&place, &error);
                }
                let _ = finished.send(());
            }
        };
        // Not a task of the manager's: it may hang, and its shutdown must not.
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
        // A sink that has failed has said so itself.
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
        if self.waiting.fetch_add(weight, Ordering::Relaxed) + weight > ROOM {
            given_up(&self.place, &"it takes too little");
            self.items = None;
            return;
        }
        self.send(Item::Batch(batch, weight));
    }

    /// Waits for the sink to be done, but not for long, and not again for one that is stuck.
    async fn finish(mut self) {
        self.items = None;
        let Some(done) = self.done.take() else { return };
        if self.branch.stuck.load(Ordering::Relaxed) {
            return;
        }
        if timeout(GRACE, done).await.is_err() {
            self.branch.stuck.store(true, Ordering::Relaxed);
        }
    }
}

fn given_up(place: &RunPlace, reason: &dyn fmt::Display) {
    tracing::warn!(run = %place.run, %reason, "a best-effort sink is given up for a run");
}

/// Hands what comes to the sink, until it fails or nothing more comes.
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

/// A best-effort sink's own log at a resumption.
enum OwnedContainer {
    /// It has none.
    Absent,
    /// It has so many records, and goes on; 0: it keeps nothing.
    Open(Box<dyn RunLog>, u64),
}

impl Branch {
    /// What the sink has of a run; `None`: all of it, or it is given up.
    async fn found(&self, place: &RunPlace) -> Option<OwnedContainer> {
        let (answer, answered) = oneshot::channel();
        let look = {
            let (sink, place) = (Arc::clone(&self.sink), place.clone());
            async move {
                let found = loop {
                    let count = Arc::new(AtomicUsize::new(0));
                    let counted = Arc::clone(&count);
                    let visit: RecordVisitor = Box::new(move |record| {
                        counted.fetch_add(usize::from(is_shared(&record)), Ordering::Relaxed);
                    });
                    match sink.resume(&place, visit).await {
                        // Its last items are on their way.
                        Err(Error::Owned { .. }) => sleep(Duration::from_millis(20)).await,
                        Err(error) => break Err(error),
                        Ok(Resumed::Absent) => break Ok(Some(OwnedContainer::Absent)),
                        Ok(Resumed::Sealed(_)) => break Ok(None),
                        Ok(Resumed::Open { log, .. }) => {
                            let count = count.load(Ordering::Relaxed) as u64;
                            break Ok(Some(OwnedContainer::Open(log, count)));
                        }
                    }
                };
                let _ = answer.send(found);
            }
        };
        if self.stuck.load(Ordering::Relaxed) {
            return None;
        }
        let task = self.thread.handle.spawn(look);
        match timeout(GRACE, answered).await {
            Ok(Ok(Ok(found))) => return found,
            Ok(Ok(Err(error))) => given_up(place, &error),
            Ok(Err(_)) => given_up(place, &"it panicked"),
            Err(_) => {
                task.abort();
                self.stuck.store(true, Ordering::Relaxed);
                given_up(place, &"it does not say what it has");
            }
        }
        None
    }
}

/// Whether a record is in each sink's log: digests are a file's own, and a seal is sealed.
fn is_shared(record: &RecordRef<'_>) -> bool {
    !matches!(
        record,
        RecordRef::Event(Event::Check { .. } | Event::End(_))
    )
}

/// A best-effort sink that gets what it has missed.
struct Behind {
    lane: Lane,
    /// How many of the records it has.
    has: u64,
    part: Batch,
}

impl Behind {
    fn new(branch: &Branch, place: &RunPlace, found: OwnedContainer) -> Self {
        let (log, has) = match found {
            OwnedContainer::Absent => (None, 0),
            OwnedContainer::Open(log, 0) => (Some(log), u64::MAX),
            OwnedContainer::Open(log, has) => (Some(log), has),
        };
        Self {
            lane: Lane::new(branch, place, log),
            has,
            part: Batch::new(),
        }
    }

    /// Shows it the record of this number.
    fn see(&mut self, number: u64, record: RecordRef<'_>) {
        if number < self.has {
            return;
        }
        match record {
            RecordRef::Event(Event::Start(start)) => self.lane.send(Item::Open(start.clone())),
            record => self.part.push(record),
        }
        if self.part.weight() > PART {
            self.lane.batch(std::mem::take(&mut self.part));
        }
    }

    fn caught_up(mut self) -> Lane {
        self.lane.batch(std::mem::take(&mut self.part));
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
        Ok(Box::new(Log {
            lanes: lanes.collect(),
            required,
        }))
    }

    async fn resume(&self, place: &RunPlace, mut visit: RecordVisitor) -> Result<Resumed> {
        let found = join_all(self.branches.iter().map(|branch| branch.found(place))).await;
        let behind = self
            .branches
            .iter()
            .zip(found)
            .filter_map(|(branch, found)| Some(Behind::new(branch, place, found?)));
        let behind = Arc::new(Mutex::new(behind.collect::<Vec<_>>()));
        let both: RecordVisitor = {
            let behind = Arc::clone(&behind);
            let mut number = 0;
            Box::new(move |record| {
                visit(record);
                if !is_shared(&record) {
                    return;
                }
                for branch in &mut *behind.lock().unwrap_or_else(PoisonError::into_inner) {
                    branch.see(number, record);
                }
                number += 1;
            })
        };
        let resumed = self.required.resume(place, both).await?;
        let behind = std::mem::take(&mut *behind.lock().unwrap_or_else(PoisonError::into_inner));
        let lanes = behind.into_iter().map(Behind::caught_up).collect();
        Ok(match resumed {
            Resumed::Open { log, torn } => Resumed::Open {
                log: Box::new(Log {
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
struct Log {
    required: Box<dyn RunLog>,
    lanes: Vec<Lane>,
}

#[async_trait]
impl RunLog for Log {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        if self.lanes.is_empty() {
            return self.required.append(batch).await;
        }
        // They get what the required one has taken, so that theirs is a first part of its log.
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
