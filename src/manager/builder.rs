//! The settings for opening a root.

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
#[cfg(feature = "sign")]
use crate::monitor::signature::head::sign_heads;
use crate::monitor::tasks::Tasks;
use crate::root::Root;
use crate::runtime::Runtime;
use crate::sink::{Jsonl, LogSink};
use crate::spec::{MaskSource, MaskValues, RunRecord};

/// The maximum number of concurrent recoveries.
const MAX_CONCURRENT_RECOVERIES: usize = 8;
/// The default timeout for the seal after the end of a run.
const SEAL_TIMEOUT: Duration = Duration::from_secs(15);

/// The runs that a manager recovers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RecoveryMode {
    /// Recovers all runs that are not sealed and that no live process owns.
    ///
    /// Recovery begins when the manager is opened. It also ends the groups that have no live owner,
    /// and removes their networks and volumes.
    #[default]
    All,
    /// Recovers a run when [`Manager::get`] is called for it. Groups are left as they are.
    OnDemand,
}

/// Settings for opening a root. Created by [`Manager::builder`].
#[derive(Debug)]
pub struct ManagerBuilder {
    root: PathBuf,
    runtime: Arc<dyn Runtime>,
    sink: Option<Arc<dyn LogSink>>,
    recovery: RecoveryMode,
    seal_timeout: Duration,
    runtime_handle: Option<Handle>,
    max_concurrent: Option<usize>,
    masks: MaskSource,
}

impl ManagerBuilder {
    /// Sets the sink for records.
    ///
    /// Default: [`Jsonl`], which writes `logs.jsonl` in the directory of the run.
    pub fn sink(mut self, sink: impl LogSink) -> Self {
        self.sink = Some(Arc::new(sink));
        self
    }

    /// Selects the runs to recover. Default: [`RecoveryMode::All`].
    pub fn recovery(mut self, mode: RecoveryMode) -> Self {
        self.recovery = mode;
        self
    }

    /// Sets the timeout for the seal after the end of a run. Default: 15 s.
    ///
    /// See [`Run::wait`](crate::run::Run::wait).
    pub fn seal_timeout(mut self, timeout: Duration) -> Self {
        self.seal_timeout = timeout;
        self
    }

    /// Limits the number of concurrent new runs. Default: no limit.
    ///
    /// [Services](crate::manager::Service) do not count, and never wait: other runs depend on them, and
    /// waiting services could block all runs.
    ///
    /// The minimum is 1. A start beyond the limit waits until a run has ended. Waiting starts
    /// proceed in the order of their calls.
    ///
    /// A waiting run is listed as `intended`, has its audit file, and can be stopped. Its
    /// image is pulled after the wait. Recovered runs never wait. Each takes a free place, if
    /// there is one.
    pub fn max_concurrent(mut self, runs: usize) -> Self {
        self.max_concurrent = Some(runs.clamp(1, Semaphore::MAX_PERMITS));
        self
    }

    /// Sets the source of the values to mask in the output of runs that other managers have started.
    ///
    /// A run that was started with [`RunSpec::mask`](crate::RunSpec::mask) needs its values again
    /// when this manager recovers it, and when this manager starts an exec in it. No file has the
    /// values, so `values` returns them from where the program has its secrets. Its argument has the
    /// id, the labels and all other settings of the run. It must return the values that were passed
    /// to `RunSpec::mask` and no others; their order does not matter. It is called on a task of the
    /// manager, so it must not block.
    ///
    /// If it returns another number of distinct values than the run was started with, or without
    /// this setting, the manager records no output of the run. The run is sealed with a gap of the
    /// reason `masks_missing`, and an exec is refused. Other values of the same number cannot be
    /// detected: the output then has unmasked values, or a gap.
    ///
    /// ```
    /// # use std::collections::HashMap;
    /// # use moat::Manager;
    /// # fn open(secrets: HashMap<String, Vec<String>>, engine: impl moat::Runtime) {
    /// let builder = Manager::builder("runs", engine).masks(move |run| {
    ///     let pipeline = run.settings.labels.get("pipeline");
    ///     let values = pipeline.and_then(|pipeline| secrets.get(pipeline));
    ///     values.cloned().unwrap_or_default()
    /// });
    /// # }
    /// ```
    pub fn masks<I, V>(mut self, values: impl Fn(&RunRecord) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item = V>,
        V: Into<Vec<u8>>,
    {
        self.masks = MaskSource::new(move |run| {
            let mut masks = MaskValues::default();
            masks.extend(values(run));
            masks
        });
        self
    }

    /// Sets the tokio runtime for the manager's tasks.
    ///
    /// By default, one thread of the manager runs its tasks, so other work of the process cannot
    /// delay the capture. An engine drops output that is not read in time. A second thread waits
    /// for the shutdown.
    ///
    /// Use this in tests with a paused clock, which must be the clock of the tasks.
    pub fn runtime_handle(mut self, handle: Handle) -> Self {
        self.runtime_handle = Some(handle);
        self
    }

    /// Opens the root, and creates it if necessary: see [`Manager::open`].
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the root cannot be created or read; [`Error::Damaged`] if its
    /// `root.json` is malformed.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. The root may have been created.
    pub async fn open(self) -> Result<Manager> {
        let disk = Disk::new();
        let path = self.root.clone();
        let root = disk
            .run("open", &self.root, move || Root::open_or_create(path))
            .await?;
        let closing = CancellationToken::new();
        let tasks = match self.runtime_handle {
            Some(runtime) => Tasks::on(runtime),
            None => Tasks::on_dedicated_thread(closing.clone())
                .map_err(|error| Error::storage("start the threads of", &self.root, error))?,
        };
        let context = Arc::new(Context {
            root,
            runtime: self.runtime,
            sink: self.sink.unwrap_or_else(|| Arc::new(Jsonl::new())),
            disk,
            tasks,
            closing: closing.clone(),
            entries: Mutex::default(),
            groups: Mutex::default(),
            recoveries: Semaphore::new(MAX_CONCURRENT_RECOVERIES),
            scanned: watch::Sender::new(None),
            swept: watch::Sender::new(self.recovery == RecoveryMode::OnDemand),
            seal_timeout: self.seal_timeout,
            event_bus: EventBus::new(),
            concurrency: self
                .max_concurrent
                .map(|runs| Arc::new(Semaphore::new(runs))),
            stopping: AtomicUsize::new(0),
            cleaning: AtomicUsize::new(0),
            attachments: AtomicU64::new(0),
            last_engine: Mutex::default(),
            masks: self.masks,
        });
        #[cfg(feature = "sign")]
        context.tasks.spawn(sign_heads(Arc::clone(&context)));
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
    /// Opens a root with default settings, and creates it if it does not exist.
    ///
    /// An existing directory becomes a root: moat adds `root.json`. Use a directory for moat
    /// alone, because a subdirectory whose name is a valid [`RunId`](crate::spec::RunId) counts
    /// as a run.
    ///
    /// Returns without waiting for recovery. In the background, the manager recovers the runs
    /// that a dead process has left. If the container of a run still runs, the log is resumed.
    /// All other runs are sealed. The runs of a [`Group`](crate::manager::Group) are stopped, and
    /// networks and volumes without an owner are removed.
    /// [`wait_recovery`](Self::wait_recovery) waits for that.
    /// Recovery starts no container, and does not touch runs of other runtimes.
    ///
    /// The runtime may be shared: pass an `Arc<dyn Runtime>`, such as the one that
    /// [`connect`] returns.
    ///
    /// # Errors
    ///
    /// Those of [`ManagerBuilder::open`].
    ///
    /// # Cancel safety
    ///
    /// That of [`ManagerBuilder::open`].
    ///
    /// [`connect`]: crate::runtime::connect::connect()
    pub async fn open(root: impl Into<PathBuf>, runtime: impl Runtime) -> Result<Self> {
        Self::builder(root, runtime).open().await
    }

    /// Creates a builder with the settings for opening a root.
    pub fn builder(root: impl Into<PathBuf>, runtime: impl Runtime) -> ManagerBuilder {
        ManagerBuilder {
            root: root.into(),
            runtime: Arc::new(runtime),
            sink: None,
            recovery: RecoveryMode::All,
            seal_timeout: SEAL_TIMEOUT,
            runtime_handle: None,
            max_concurrent: None,
            masks: MaskSource::default(),
        }
    }
}
