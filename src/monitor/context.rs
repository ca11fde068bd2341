//! What all monitors of a manager share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::capture::Hub;
use crate::disk::Disk;
use crate::error::Result;
use crate::events::EventBus;
use crate::monitor::entry::{Entry, Pipe, RunSnapshot, TYPED};
use crate::monitor::tasks::Tasks;
use crate::monitor::{Inbox, Monitor};
use crate::root::Root;
use crate::runtime::Runtime;
use crate::sink::{LogSink, RunPlace};
use crate::spec::RunId;

/// How long a manager that closes waits for what was asked of it before: a sink, or an engine, that
/// stalls holds it up no longer.
const LEAVE: Duration = Duration::from_secs(2);
#[derive(Debug)]
pub(crate) struct ManagerInner {
    pub(crate) context: Arc<Context>,
    /// Ends all monitors when the last handle goes.
    pub(crate) _closes: DropGuard,
}

/// What all monitors of a manager share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) root: Root,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) sink: Arc<dyn LogSink>,
    pub(crate) disk: Disk,
    pub(crate) tasks: Tasks,
    pub(crate) closing: CancellationToken,
    /// Of the runs that have a monitor.
    pub(crate) entries: Mutex<HashMap<RunId, Arc<Entry>>>,
    pub(crate) recoveries: Semaphore,
    /// What the scan at the opening has found; `None` until it is done.
    pub(crate) scanned: watch::Sender<Option<Vec<Arc<Entry>>>>,
    /// Whether the containers that nobody owned at the opening were removed.
    pub(crate) swept: watch::Sender<bool>,
    pub(crate) seal_timeout: Duration,
    /// What happens to runs.
    pub(crate) event_bus: EventBus,
    /// How many runs may be under way at once; `None`: any number.
    pub(crate) concurrency: Option<Arc<Semaphore>>,
    /// How many shutdowns that stop all runs are under way: while any is, nothing is started.
    pub(crate) stopping: AtomicUsize,
    pub(crate) attachments: AtomicU64,
}

impl ManagerInner {
    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Context {
    /// The number of the next attachment, from 1.
    pub(crate) fn next_attachment(&self) -> u64 {
        self.attachments.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn entries(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does file I/O on the root, on a thread for it.
    pub(crate) async fn on_disk<T: Send + 'static>(
        &self,
        operation: &'static str,
        job: impl FnOnce(&Root) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let root = self.root.clone();
        self.disk
            .run(operation, self.root.path(), move || job(&root))
            .await
    }

    /// Resolves when the manager has closed, and what was to be recorded before that has had its
    /// time.
    pub(crate) async fn left(&self) {
        self.closing.cancelled().await;
        sleep(LEAVE).await;
    }

    /// A new entry, and the monitor that goes with it.
    pub(crate) fn monitor(self: &Arc<Self>, place: RunPlace) -> (Arc<Entry>, Monitor) {
        let (snapshot, receiver) = watch::channel(RunSnapshot::new());
        let (stops, requests) = mpsc::unbounded_channel();
        let (notes, noted) = mpsc::unbounded_channel();
        let (typed, received) = mpsc::channel(TYPED);
        let hub = Arc::new(Hub::default());
        let pipe = Arc::<Mutex<Pipe>>::default();
        let entry = Arc::new(Entry {
            place: place.clone(),
            snapshot: receiver,
            stops,
            notes,
            typed,
            pipe: Arc::clone(&pipe),
            hub: Arc::clone(&hub),
        });
        let inbox = Inbox {
            stops: requests,
            notes: noted,
            typed: Some(received),
        };
        let monitor = Monitor::new(Arc::clone(self), place, snapshot, inbox, pipe, hub);
        (entry, monitor)
    }

    pub(crate) fn place(&self, id: &RunId) -> RunPlace {
        RunPlace::new(id.clone(), self.root.dir(id))
    }
}
