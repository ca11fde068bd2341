//! Opening a root.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::events::EventBus;
use crate::manager::Manager;
use crate::monitor::context::{Context, ManagerInner};
use crate::monitor::recover;
use crate::monitor::tasks::Tasks;
use crate::root::Root;
use crate::runtime::Runtime;
use crate::sink::{Jsonl, LogSink};

/// How many runs are taken over at once.
const RECOVERIES: usize = 8;
/// How long `wait` waits for the seal after the end of a run.
const SEAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Which runs a manager takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RecoveryMode {
    /// All that are not sealed and that no live process owns, from its opening on.
    #[default]
    All,
    /// Those that [`Manager::get`] is called for.
    OnDemand,
}

/// Opens a root, with settings.
#[derive(Debug)]
pub struct ManagerBuilder {
    root: PathBuf,
    runtime: Arc<dyn Runtime>,
    sink: Option<Arc<dyn LogSink>>,
    recovery: RecoveryMode,
    seal_timeout: Duration,
    runtime_handle: Option<Handle>,
    max_concurrent: Option<usize>,
}

impl ManagerBuilder {
    /// Where the records go. Default: [`Jsonl`], which writes `logs.jsonl` in the run's folder.
    pub fn sink(mut self, sink: impl LogSink) -> Self {
        self.sink = Some(Arc::new(sink));
        self
    }

    /// Which runs are taken over. Default: all.
    pub fn recovery(mut self, recovery: RecoveryMode) -> Self {
        self.recovery = recovery;
        self
    }

    /// How long [`Run::wait`](crate::run::Run::wait) waits for the seal after the end of a run. Default: 15 s.
    pub fn seal_timeout(mut self, bound: Duration) -> Self {
        self.seal_timeout = bound;
        self
    }

    /// How many containers of new runs may be under way at once: a start beyond that waits until
    /// one has ended, in the order of the calls. At least 1. Default: any number.
    ///
    /// A run that waits is there already: it is listed as `intended`, has its audit file, and can
    /// be stopped; its image is pulled when its turn comes. One that was taken over runs in any
    /// case, and counts where there is room.
    pub fn max_concurrent(mut self, runs: usize) -> Self {
        self.max_concurrent = Some(runs.clamp(1, Semaphore::MAX_PERMITS));
        self
    }

    /// Sets the async runtime for the manager's tasks. Default: one worker thread that belongs to
    /// the manager, so that other work of the process cannot delay a capture. An engine discards
    /// output that is not read in time. A second thread keeps that runtime until all tasks ended.
    ///
    /// For tests with a paused clock, which has to be that of the tasks.
    pub fn runtime_handle(mut self, runtime: Handle) -> Self {
        self.runtime_handle = Some(runtime);
        self
    }

    /// Opens the root, and makes it where it is missing. See [`Manager::open`]. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the root cannot be made or read; [`Error::Damaged`] if it is not one.
    pub async fn open(self) -> Result<Manager> {
        let disk = Disk::new();
        let path = self.root.clone();
        let root = disk
            .run("open", &self.root, move || Root::open_or_create(path))
            .await?;
        let closing = CancellationToken::new();
        let tasks = match self.runtime_handle {
            Some(runtime) => Tasks::on(runtime),
            None => Tasks::on_own_threads(closing.clone())
                .map_err(|error| Error::storage("start threads for", &self.root, error))?,
        };
        let context = Arc::new(Context {
            root,
            runtime: self.runtime,
            sink: self.sink.unwrap_or_else(|| Arc::new(Jsonl::new())),
            disk,
            tasks,
            closing: closing.clone(),
            entries: Mutex::default(),
            recoveries: Semaphore::new(RECOVERIES),
            scanned: watch::Sender::new(None),
            swept: watch::Sender::new(self.recovery == RecoveryMode::OnDemand),
            seal_timeout: self.seal_timeout,
            event_bus: EventBus::new(),
            concurrency: self
                .max_concurrent
                .map(|runs| Arc::new(Semaphore::new(runs))),
            stopping: AtomicUsize::new(0),
            attachments: AtomicU64::new(0),
        });
        if self.recovery == RecoveryMode::All {
            context.tasks.spawn(recover::scan(Arc::clone(&context)));
        } else {
            context.scanned.send_replace(Some(Vec::new()));
        }
        Ok(Manager {
            inner: Arc::new(ManagerInner {
                context,
                _closes: closing.drop_guard(),
            }),
        })
    }
}

impl Manager {
    /// Opens a root with the default settings, and makes it where it is missing.
    ///
    /// It returns at once; what a process that died has left behind is taken over in the
    /// background: a run whose container still runs is watched again, all others are sealed.
    /// [`recovered`](Self::wait_recovery) waits for that. Recovery starts nothing, and leaves runs of
    /// other runtimes alone.
    ///
    /// The runtime may be shared: an `Arc<dyn Runtime>`, as [`connect`](crate::runtime::connect::connect()) gives it.
    ///
    /// # Errors
    ///
    /// As for [`ManagerBuilder::open`].
    pub async fn open(root: impl Into<PathBuf>, runtime: impl Runtime) -> Result<Self> {
        Self::builder(root, runtime).open().await
    }

    /// Opens a root with other settings.
    pub fn builder(root: impl Into<PathBuf>, runtime: impl Runtime) -> ManagerBuilder {
        ManagerBuilder {
            root: root.into(),
            runtime: Arc::new(runtime),
            sink: None,
            recovery: RecoveryMode::All,
            seal_timeout: SEAL_TIMEOUT,
            runtime_handle: None,
            max_concurrent: None,
        }
    }
}
