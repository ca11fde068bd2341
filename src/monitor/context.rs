//! State that all monitors of a manager share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::capture::{Hub, Masks};
use crate::disk::Disk;
use crate::error::{Result, RuntimeError};
use crate::events::EventBus;
use crate::monitor::entry::{Entry, PipeState, Role, RunSnapshot, STDIN_QUEUE_RECORDS, lock};
use crate::monitor::group::Groups;
use crate::monitor::tasks::Tasks;
use crate::monitor::{Inbox, Monitor};
use crate::root::Root;
use crate::runtime::{EngineInfo, Runtime};
use crate::sink::{LogSink, RunPlace};
use crate::spec::{MaskSource, RunId};

/// Time that a closing manager gives its tasks to carry out and record earlier requests.
///
/// A stalled sink or engine does not delay a shutdown for longer.
pub(crate) const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// The shared part of all handles of a manager.
#[derive(Debug)]
pub(crate) struct ManagerInner {
    pub(crate) context: Arc<Context>,
    /// Ends all monitors when the last handle is dropped.
    pub(crate) _closes: DropGuard,
}

/// State that all monitors of a manager share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) root: Root,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) sink: Arc<dyn LogSink>,
    pub(crate) disk: Disk,
    pub(crate) tasks: Tasks,
    pub(crate) closing: CancellationToken,
    /// Entries of the runs that have a monitor.
    pub(crate) entries: Mutex<HashMap<RunId, Arc<Entry>>>,
    /// The groups that this manager owns, until they have ended.
    pub(crate) groups: Mutex<Groups>,
    /// Limits how many runs are recovered at once.
    pub(crate) recoveries: Semaphore,
    /// Runs that the scan at the opening has found; `None` until the scan is done.
    pub(crate) scanned: watch::Sender<Option<Vec<Arc<Entry>>>>,
    /// Becomes true once the orphans that the opening found are removed.
    pub(crate) swept: watch::Sender<bool>,
    pub(crate) seal_timeout: Duration,
    pub(crate) event_bus: EventBus,
    /// Permits for running containers; `None`: their number is not limited.
    pub(crate) concurrency: Option<Arc<Semaphore>>,
    /// Number of shutdowns in progress that stop all runs. While it is not 0, no run starts.
    pub(crate) stopping: AtomicUsize,
    /// Number of cleanups in progress. While it is not 0, only runs that clean up start.
    pub(crate) cleaning: AtomicUsize,
    /// Number of the last attachment.
    pub(crate) attachments: AtomicU64,
    /// The engine's last answer about itself.
    pub(crate) last_engine: Mutex<Option<EngineInfo>>,
    /// The masks of runs that this manager did not start.
    pub(crate) masks: MaskSource,
}

impl ManagerInner {
    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Context {
    pub(crate) fn unsupported(&self, operation: &'static str) -> RuntimeError {
        RuntimeError::Unsupported {
            runtime: self.runtime.name(),
            operation,
        }
    }

    /// Returns the number of a new attachment, from 1.
    pub(crate) fn next_attachment(&self) -> u64 {
        self.attachments.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Asks the engine for its version and id.
    pub(crate) async fn ask_engine(&self) -> Result<EngineInfo, RuntimeError> {
        let engine = self.runtime.engine().await?;
        *lock(&self.last_engine) = Some(engine.clone());
        Ok(engine)
    }

    /// The engine as it last answered. By now, another engine may answer.
    pub(crate) fn last_engine(&self) -> Option<EngineInfo> {
        lock(&self.last_engine).clone()
    }

    pub(crate) fn entries(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Entry>>> {
        lock(&self.entries)
    }

    /// Runs file I/O on the root, on a thread of the disk pool.
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

    /// Resolves when the manager is closing and its grace period has elapsed.
    pub(crate) async fn shutdown_grace_elapsed(&self) {
        self.closing.cancelled().await;
        sleep(SHUTDOWN_GRACE).await;
    }

    /// Creates an entry and its monitor.
    pub(crate) fn monitor(self: &Arc<Self>, place: RunPlace, role: Role) -> (Arc<Entry>, Monitor) {
        let (snapshot, receiver) = watch::channel(RunSnapshot::new());
        let (stops, requests) = mpsc::unbounded_channel();
        let (notes, note_records) = mpsc::unbounded_channel();
        let (stdin_records, input_records) = mpsc::channel(STDIN_QUEUE_RECORDS);
        let hub = Arc::new(Hub::default());
        let pipe = Arc::<Mutex<PipeState>>::default();
        let masks = Arc::<OnceLock<Masks>>::default();
        let entry = Arc::new(Entry {
            place: place.clone(),
            role,
            snapshot: receiver,
            stops,
            notes,
            stdin_records,
            pipe: Arc::clone(&pipe),
            hub: Arc::clone(&hub),
            masks: Arc::clone(&masks),
        });
        let inbox = Inbox {
            stops: requests,
            notes: note_records,
            stdin_records: input_records,
        };
        let mut monitor = Monitor::new(Arc::clone(self), place, snapshot, inbox, pipe, hub);
        monitor.masks = masks;
        monitor.is_service = role.is_service;
        (entry, monitor)
    }

    /// Returns where the run with this id is stored.
    pub(crate) fn place(&self, id: &RunId) -> RunPlace {
        RunPlace::new(id.clone(), self.root.dir(id))
    }
}
