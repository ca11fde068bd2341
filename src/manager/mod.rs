//! The public face: [`Manager`], [`Run`], [`Root`].

mod attach;
mod exit;
mod finish;
mod monitor;
mod recover;
mod root;
mod run;
mod sources;
mod stop;
mod tasks;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use attach::{Attached, Attachment};
pub use root::{Root, RunInfo};
pub use run::Run;

use crate::capture::Hub;
use crate::disk::Disk;
use crate::runtime::{Engine, Runtime};
use crate::sink::{Jsonl, LogSink, RunPlace};
use crate::{Error, Outcome, Result, RunId, RunSpec, StopCause};
use monitor::Monitor;
use run::{Entry, Status};
use tasks::Tasks;

/// How many runs are taken over at once.
const RECOVERIES: usize = 8;
/// How long `wait` waits for the seal after the end of a run.
const PENDING_AFTER: Duration = Duration::from_secs(15);

/// Starts runs, watches them, and keeps the promise: every run leaves an audit file.
///
/// Cheap to clone. Each run has one monitor, a task of its own, which alone waits on the container
/// and alone writes the run's state. `stop`, a natural exit, any number of waiters and the end of
/// this process may race: the exit is what the engine says, once.
///
/// Dropping the last manager and the last [`Run`] stops the capture and releases the runs: their
/// containers go on, and the next [`open`](Self::open) of the root takes them over.
#[derive(Debug, Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    context: Arc<Context>,
    /// Ends all monitors when the last handle goes.
    _closes: DropGuard,
}

/// What all monitors of a manager share.
#[derive(Debug)]
pub(crate) struct Context {
    root: Root,
    runtime: Arc<dyn Runtime>,
    sink: Arc<dyn LogSink>,
    disk: Disk,
    engine: OnceCell<Engine>,
    tasks: Tasks,
    closing: CancellationToken,
    /// Of the runs that have a monitor.
    entries: Mutex<HashMap<RunId, Arc<Entry>>>,
    recoveries: Semaphore,
    /// What the scan at the opening has found; `None` until it is done.
    scanned: watch::Sender<Option<Vec<Arc<Entry>>>>,
    pending_after: Duration,
}

impl Context {
    fn entries(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does file I/O on the root, on a thread for it.
    async fn on_disk<T: Send + 'static>(
        &self,
        operation: &'static str,
        job: impl FnOnce(&Root) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let root = self.root.clone();
        self.disk
            .run(operation, self.root.path(), move || job(&root))
            .await
    }

    /// Who the engine is; asked once.
    async fn engine(&self) -> Engine {
        let engine = self.engine.get_or_try_init(|| self.runtime.engine()).await;
        engine.cloned().unwrap_or_default()
    }

    /// A new entry, and the monitor that goes with it.
    fn monitor(self: &Arc<Self>, place: RunPlace) -> (Arc<Entry>, Monitor) {
        let (status, receiver) = watch::channel(Status::new());
        let (stops, requests) = mpsc::unbounded_channel();
        let hub = Arc::new(Hub::default());
        let entry = Arc::new(Entry {
            place: place.clone(),
            status: receiver,
            stops,
            hub: Arc::clone(&hub),
        });
        let monitor = Monitor::new(Arc::clone(self), place, status, requests, hub);
        (entry, monitor)
    }

    fn place(&self, id: &RunId) -> RunPlace {
        RunPlace::new(id.clone(), self.root.folder(id))
    }
}

/// Which runs a manager takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Recovery {
    /// All that are not sealed and that no live process owns, from its opening on.
    #[default]
    All,
    /// Those that [`Manager::get`] is called for.
    OnDemand,
}

/// What a shutdown does with the runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shutdown {
    /// They go on, and the next opening of the root takes them over.
    Leave,
    /// They are stopped, with the grace of their specs, and sealed.
    Stop,
}

/// Opens a root, with settings.
#[derive(Debug)]
pub struct ManagerBuilder {
    root: PathBuf,
    runtime: Arc<dyn Runtime>,
    sink: Option<Arc<dyn LogSink>>,
    recovery: Recovery,
    pending_after: Duration,
    tasks_on: Option<Handle>,
}

impl ManagerBuilder {
    /// Where the records go. Default: [`Jsonl`], which writes `logs.jsonl` in the run's folder.
    pub fn sink(mut self, sink: impl LogSink) -> Self {
        self.sink = Some(Arc::new(sink));
        self
    }

    /// Which runs are taken over. Default: all.
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.recovery = recovery;
        self
    }

    /// How long [`Run::wait`] waits for the seal after the end of a run. Default: 15 s.
    pub fn pending_after(mut self, bound: Duration) -> Self {
        self.pending_after = bound;
        self
    }

    /// Where the manager's tasks run. Default: two threads of the manager's own, so that nothing
    /// that the process does elsewhere can hold up a capture: an engine gives up on output that is
    /// not taken from it in time.
    ///
    /// For tests with a paused clock, which has to be that of the tasks.
    pub fn tasks_on(mut self, runtime: Handle) -> Self {
        self.tasks_on = Some(runtime);
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
        let tasks = match self.tasks_on {
            Some(runtime) => Tasks::on(runtime),
            None => Tasks::on_own_threads(closing.clone())
                .map_err(|error| Error::storage("start threads for", &self.root, error))?,
        };
        let context = Arc::new(Context {
            root,
            runtime: self.runtime,
            sink: self.sink.unwrap_or_else(|| Arc::new(Jsonl::new())),
            disk,
            engine: OnceCell::new(),
            tasks,
            closing: closing.clone(),
            entries: Mutex::default(),
            recoveries: Semaphore::new(RECOVERIES),
            scanned: watch::Sender::new(None),
            pending_after: self.pending_after,
        });
        if self.recovery == Recovery::All {
            context.tasks.spawn(recover::scan(Arc::clone(&context)));
        } else {
            context.scanned.send_replace(Some(Vec::new()));
        }
        Ok(Manager {
            inner: Arc::new(Inner {
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
    /// [`recovered`](Self::recovered) waits for that. Recovery starts nothing.
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
            recovery: Recovery::All,
            pending_after: PENDING_AFTER,
            tasks_on: None,
        }
    }

    fn context(&self) -> &Arc<Context> {
        &self.inner.context
    }

    fn handle(&self, entry: Arc<Entry>) -> Run {
        Run {
            inner: Arc::clone(&self.inner),
            entry,
        }
    }

    /// The root.
    pub fn root(&self) -> &Root {
        &self.context().root
    }

    /// The runtime.
    pub fn runtime(&self) -> &dyn Runtime {
        &*self.context().runtime
    }

    /// Starts a run, and returns when its container runs.
    ///
    /// The audit file is there, and will be after the power fails, before the engine is asked for
    /// anything. Dropping this future in the middle leaves a run that is listed and goes on, or is
    /// sealed: never an orphan.
    ///
    /// # Errors
    ///
    /// Before anything is made: [`Error::InvalidSpec`], [`Error::RunExists`], [`Error::Storage`],
    /// [`Error::Closed`]. After that: [`Error::NotStarted`], with what is known of the run.
    pub async fn start(&self, spec: RunSpec) -> Result<Run> {
        let context = self.context();
        if context.closing.is_cancelled() {
            return Err(Error::Closed);
        }
        spec.validate()?;
        context.runtime.validate(&spec)?;
        let id = spec.run_id().cloned().unwrap_or_else(RunId::generate);
        let place = context.place(&id);
        let (entry, monitor) = context.monitor(place.clone());
        {
            let mut entries = context.entries();
            if entries.contains_key(&id) {
                return Err(Error::RunExists {
                    run: id,
                    path: place.folder,
                });
            }
            entries.insert(id, Arc::clone(&entry));
        }
        let (reply, started) = oneshot::channel();
        context.tasks.spawn(monitor.run_new(spec, reply));
        let run = self.handle(entry);
        match started.await {
            Ok(Ok(())) => Ok(run),
            Ok(Err(monitor::NoStart::Nothing(error))) => Err(error),
            Ok(Err(monitor::NoStart::Sealed(source))) => Err(Error::NotStarted {
                outcome: Box::new(run.wait().await?),
                source,
            }),
            Err(_) => Err(Error::Closed),
        }
    }

    /// The handle of a run. One that is not sealed and that no live process owns is taken over.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRun`]; [`Error::Storage`] or [`Error::Damaged`] if its record cannot be read.
    pub async fn get(&self, id: &RunId) -> Result<Run> {
        let context = self.context();
        if let Some(entry) = context.entries().get(id) {
            return Ok(self.handle(Arc::clone(entry)));
        }
        let run = id.clone();
        let file = context
            .on_disk("read", move |root| {
                if !root.folder(&run).is_dir() {
                    return Err(root.no_such_run(&run));
                }
                match root.read_run(&run) {
                    // The audit may have what is needed.
                    Err(Error::Damaged { .. }) => Ok(None),
                    read => read,
                }
            })
            .await?;
        if let Some(seal) = file.and_then(|file| file.seal) {
            let (_, status) = watch::channel(Status::sealed(seal));
            let hub = Arc::new(Hub::default());
            hub.close();
            return Ok(self.handle(Arc::new(Entry {
                place: context.place(id),
                status,
                stops: mpsc::unbounded_channel().0,
                hub,
            })));
        }
        Ok(self.handle(recover::take_over(context, id)))
    }

    /// What can be seen of all runs, sorted by their ids. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the root cannot be read.
    pub async fn list(&self) -> Result<Vec<RunInfo>> {
        self.context().on_disk("list", Root::list).await
    }

    /// Waits for a run: see [`Run::wait`].
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get) and [`Run::wait`].
    pub async fn wait(&self, id: &RunId) -> Result<Outcome> {
        self.get(id).await?.wait().await
    }

    /// Stops a run: see [`Run::stop`].
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get) and [`Run::stop`].
    pub async fn stop(&self, id: &RunId, grace: Option<Duration>) -> Result<Outcome> {
        self.get(id).await?.stop(grace).await
    }

    /// Kills a run: see [`Run::kill`].
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get) and [`Run::kill`].
    pub async fn kill(&self, id: &RunId) -> Result<Outcome> {
        self.get(id).await?.kill().await
    }

    /// Looks at the output of a run: see [`Run::attach`].
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get) and [`Run::attach`].
    pub async fn attach(&self, id: &RunId) -> Result<Attachment> {
        self.get(id).await?.attach().await
    }

    /// Removes a sealed run: its container, if that was kept, and its folder with the audit file.
    ///
    /// Cancel-safe: the run is there, or it is gone, and can be removed again.
    ///
    /// # Errors
    ///
    /// [`Error::NotSealed`]; [`Error::Owned`] while another process is at it;
    /// [`Error::Runtime`] if the container cannot be removed: then the folder stays.
    pub async fn remove(&self, id: &RunId) -> Result<()> {
        let context = self.context();
        let run = self.get(id).await?;
        let Some(seal) = run.entry.status.borrow().seal.clone() else {
            return Err(Error::NotSealed { run: id.clone() });
        };
        if let Some(container) = &seal.container {
            match context.runtime.remove(container, true).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        // Its monitor may still be at the removal of the container.
        run.entry.stops.closed().await;
        let id = id.clone();
        context
            .on_disk("remove", move |root| {
                let _lock = root.lock(&id)?;
                root.remove(&id)
            })
            .await
    }

    /// Waits until the runs that the opening found unsealed are taken over, are seen to be owned
    /// by another live process, or cannot be taken over ([`Run::problem`] says why), and gives
    /// them. An engine that does not answer is waited for.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the manager is shut down before that.
    pub async fn recovered(&self) -> Result<Vec<Run>> {
        let mut scanned = self.context().scanned.subscribe();
        let found = scanned
            .wait_for(Option::is_some)
            .await
            .map_err(|_| Error::Closed)?
            .clone()
            .unwrap_or_default();
        let mut runs = Vec::new();
        for entry in found {
            let run = self.handle(entry);
            let mut status = run.entry.status.clone();
            // A monitor that has left has settled it one way or the other.
            let _ = status.wait_for(|status| status.settled).await;
            runs.push(run);
        }
        if self.context().closing.is_cancelled() {
            return Err(Error::Closed);
        }
        Ok(runs)
    }

    /// Ends this manager, and waits until all its tasks have ended. Later calls, on any clone,
    /// fail with [`Error::Closed`] or see what is on disk.
    ///
    /// To stop the runs takes as long as the engine does: it is asked until it answers. Cancel-safe:
    /// dropped in the middle, the manager goes on, and can be shut down again.
    pub async fn shutdown(&self, how: Shutdown) {
        let context = self.context();
        if how == Shutdown::Stop {
            let entries: Vec<_> = context.entries().values().cloned().collect();
            let stops = entries.into_iter().map(|entry| {
                let run = self.handle(entry);
                async move {
                    if !run.owned_elsewhere() {
                        // It fails only for a run that cannot be taken over.
                        let _ = run.request(StopCause::Shutdown, None).await;
                    }
                }
            });
            futures::future::join_all(stops).await;
        }
        context.closing.cancel();
        context.tasks.wait().await;
    }
}
