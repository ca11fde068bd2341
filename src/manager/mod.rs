//! The public face: [`Manager`], [`Run`], [`Root`].

mod attach;
#[cfg(test)]
mod crash;
mod direct;
mod elsewhere;
mod events;
mod exec;
mod exit;
mod finish;
mod input;
mod monitor;
mod orphans;
mod prune;
mod ready;
mod recover;
mod root;
mod run;
mod service;
mod signals;
mod sources;
mod start;
mod stop;
mod tasks;
mod usage;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument;

pub use attach::{AttachOptions, Attached, Attachment};
pub use events::{Events, Happening, RunEvent};
pub use exec::Exec;
pub use input::{Control, Input};
pub use orphans::{Orphan, Reap, Reaped, Reaping, Why};
pub use prune::{Kept, Prune, Pruned};
pub use ready::Ready;
pub use root::{Root, RunInfo};
pub use run::Run;
pub use service::Service;
pub use signals::Signal;

use crate::capture::Hub;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::outcome::{Outcome, Seal, StopCause};
use crate::runtime::Runtime;
use crate::sink::{Action, Jsonl, LogSink, RunPlace};
use crate::spec::{RunId, RunSpec, Stdin};
use events::Bulletin;
use input::{Pipe, Session};
use monitor::{Inbox, Monitor};
use root::RunFile;
use run::{Entry, Status};
use start::Front;
use tasks::Tasks;

/// How many runs are taken over at once.
const RECOVERIES: usize = 8;
/// How long `wait` waits for the seal after the end of a run.
const PENDING_AFTER: Duration = Duration::from_secs(15);
/// How long a manager that closes waits for what was asked of it before: a sink, or an engine, that
/// stalls holds it up no longer.
const LEAVE: Duration = Duration::from_secs(2);

/// Starts runs, watches them, and keeps the promise: every run leaves an audit file.
///
/// Cheap to clone. Each run has one monitor, a task of its own, which alone waits on the container
/// and alone writes the run's state. `stop`, a natural exit, any number of waiters and the end of
/// this process may race: the exit is what the engine says, once.
///
/// Dropping the last manager and the last [`Run`] stops the capture and releases the runs: their
/// containers go on, and the next [`open`](Self::open) of the root takes them over. Those of a
/// [`transient`](crate::runtime::Capabilities::transient) runtime end with it, and are sealed as
/// lost by that opening.
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
    tasks: Tasks,
    closing: CancellationToken,
    /// Of the runs that have a monitor.
    entries: Mutex<HashMap<RunId, Arc<Entry>>>,
    recoveries: Semaphore,
    /// What the scan at the opening has found; `None` until it is done.
    scanned: watch::Sender<Option<Vec<Arc<Entry>>>>,
    /// Whether the containers that nobody owned at the opening were removed.
    swept: watch::Sender<bool>,
    pending_after: Duration,
    /// What happens to runs.
    bulletin: Bulletin,
    /// How many runs may be under way at once; `None`: any number.
    places: Option<Arc<Semaphore>>,
    /// How many shutdowns that stop all runs are under way: while any is, nothing is started.
    stopping: AtomicUsize,
    attachments: AtomicU64,
}

impl Inner {
    fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Context {
    /// The number of the next attachment, from 1.
    fn next_attachment(&self) -> u64 {
        self.attachments.fetch_add(1, Ordering::Relaxed) + 1
    }

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

    /// Resolves when the manager has closed, and what was to be recorded before that has had its
    /// time.
    async fn left(&self) {
        self.closing.cancelled().await;
        sleep(LEAVE).await;
    }

    /// A new entry, and the monitor that goes with it.
    fn monitor(self: &Arc<Self>, place: RunPlace) -> (Arc<Entry>, Monitor) {
        let (status, receiver) = watch::channel(Status::new());
        let (stops, requests) = mpsc::unbounded_channel();
        let (notes, noted) = mpsc::unbounded_channel();
        let (typed, received) = mpsc::channel(input::TYPED);
        let hub = Arc::new(Hub::default());
        let pipe = Arc::<Mutex<Pipe>>::default();
        let entry = Arc::new(Entry {
            place: place.clone(),
            status: receiver,
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
        let monitor = Monitor::new(Arc::clone(self), place, status, inbox, pipe, hub);
        (entry, monitor)
    }

    fn place(&self, id: &RunId) -> RunPlace {
        RunPlace::new(id.clone(), self.root.folder(id))
    }
}

/// What the files of a run say.
enum Known {
    /// Its seal, and what is wrong with that.
    Sealed(Box<(Seal, Option<String>)>),
    /// `run.json` has no seal; `behind`: the audit has one.
    Unsealed { behind: bool },
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
    /// They go on, and the next opening of the root takes them over. Runs of a
    /// [`transient`](crate::runtime::Capabilities::transient) runtime cannot, and are stopped.
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
    max_concurrent: Option<usize>,
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
            tasks,
            closing: closing.clone(),
            entries: Mutex::default(),
            recoveries: Semaphore::new(RECOVERIES),
            scanned: watch::Sender::new(None),
            swept: watch::Sender::new(self.recovery == Recovery::OnDemand),
            pending_after: self.pending_after,
            bulletin: Bulletin::new(),
            places: self
                .max_concurrent
                .map(|runs| Arc::new(Semaphore::new(runs))),
            stopping: AtomicUsize::new(0),
            attachments: AtomicU64::new(0),
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
    /// [`recovered`](Self::recovered) waits for that. Recovery starts nothing, and leaves runs of
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
            recovery: Recovery::All,
            pending_after: PENDING_AFTER,
            tasks_on: None,
            max_concurrent: None,
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

    /// Starts a run, and returns when its container runs, and that is recorded (or the sink has not
    /// taken it for 2 s). Where [`max_concurrent`](ManagerBuilder::max_concurrent) runs are under
    /// way, it waits for its turn before that.
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
        Ok(self.launch(spec, None).await?.0)
    }

    /// Starts a run with someone in front of it: connected to the output, and, where `options` ask
    /// for it, to the input, before the container's process starts.
    ///
    /// A terminal has the size that `options`, or else the spec, give it. With an engine that is
    /// told the size when it makes the container (Docker from API 1.42 on) it is there at the
    /// process's first instruction. An older one can only be told once the process runs: then the
    /// terminal is 0 by 0 for some milliseconds, and the process gets SIGWINCH.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start), and [`Error::NoInput`], before anything is made.
    pub async fn start_attached(
        &self,
        mut spec: RunSpec,
        options: AttachOptions,
    ) -> Result<(Run, Attachment)> {
        if let Some(size) = options.window {
            spec = spec.window(size);
        }
        self.launch(spec, Some(options)).await.and_then(|started| {
            let (run, Some(attachment)) = started else {
                return Err(Error::Closed);
            };
            Ok((run, attachment))
        })
    }

    async fn launch(
        &self,
        spec: RunSpec,
        attach: Option<AttachOptions>,
    ) -> Result<(Run, Option<Attachment>)> {
        let context = self.context();
        if context.closing.is_cancelled() || context.stopping.load(Ordering::Acquire) > 0 {
            return Err(Error::Closed);
        }
        spec.validate()?;
        context.runtime.validate(&spec)?;
        let id = spec.run_id().cloned().unwrap_or_else(RunId::generate);
        let place = context.place(&id);
        let (entry, monitor) = context.monitor(place.clone());
        let run = self.handle(Arc::clone(&entry));
        let settings = spec.settings();
        let (stdin, record) = (settings.stdin, settings.record_stdin);
        let input = attach.is_some_and(|options| options.input);
        if input && stdin == Stdin::None {
            return Err(run.no_input("the spec asks for none"));
        }
        if input && !context.runtime.capabilities().stdin {
            return Err(run.no_input("the engine cannot do that"));
        }
        let session = attach.map(|_| Session::new(run.clone(), None, true, true));
        if let Some(session) = &session {
            session.starts_with(settings.window);
        }
        let front = session.as_ref().map(|session| Front {
            input,
            note: match input {
                true => session.record(
                    Action::AttachInput,
                    "attached from the start, with the input",
                ),
                false => session.record(Action::Attach, "attached from the start, to look on"),
            },
        });
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
        let token = spec.stop_token().cloned();
        let span = monitor.span();
        context
            .tasks
            .spawn(monitor.run_new(spec, front, reply).instrument(span));
        if let Some(token) = token {
            run.stop_when(token);
        }
        match started.await {
            Ok(Ok(writer)) => {
                let attachment = session.zip(attach).map(|(session, options)| {
                    let input = writer.map(|writer| Input::new(writer, stdin, record, &session));
                    Attachment::new(session, options, input)
                });
                Ok((run, attachment))
            }
            Ok(Err(start::NoStart::Nothing(error))) => Err(error),
            Ok(Err(start::NoStart::Sealed(source))) => Err(Error::NotStarted {
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
        let sealed = context
            .on_disk("read", move |root| {
                if !root.has(&run) {
                    return Err(root.no_such_run(&run));
                }
                let file = match root.read_run(&run) {
                    // The audit may have what is needed.
                    Err(error) if error.is_lasting() => None,
                    read => read?,
                };
                let Some(seal) = file.and_then(|file| file.seal) else {
                    return Ok(Known::Unsealed {
                        behind: root.info(&run)?.seal.is_some(),
                    });
                };
                let held = root.held_seal(&run, seal);
                // It may have been removed since.
                match held.1.is_some() && !root.has(&run) {
                    true => Err(root.no_such_run(&run)),
                    false => Ok(Known::Sealed(Box::new(held))),
                }
            })
            .await?;
        let behind = match sealed {
            Known::Unsealed { behind } => behind,
            Known::Sealed(held) => {
                let (seal, problem) = *held;
                let (_, status) = watch::channel(Status::sealed(seal, problem));
                return Ok(self.handle(Arc::new(Entry::sealed(context.place(id), status))));
            }
        };
        let entry = recover::take_over(context, id);
        if behind {
            // It is sealed, which is soon written down: nobody is to take it for one that is not.
            let mut status = entry.status.clone();
            let _ = status.wait_for(|status| status.settled).await;
        }
        Ok(self.handle(entry))
    }

    /// What can be seen of all runs, sorted by their ids; of those that this manager owns, what it
    /// knows beyond that: a disk that takes nothing hides no end. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the root cannot be read.
    pub async fn list(&self) -> Result<Vec<RunInfo>> {
        let context = self.context();
        let mut listed = context.on_disk("list", Root::list).await?;
        let entries = context.entries();
        for info in &mut listed {
            if let Some(entry) = entries.get(&info.run) {
                entry.status.borrow().add_to(info);
            }
        }
        Ok(listed)
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

    /// Sits in front of a run: see [`Run::attach_with`].
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get) and [`Run::attach_with`].
    pub async fn attach_with(&self, id: &RunId, options: AttachOptions) -> Result<Attachment> {
        self.get(id).await?.attach_with(options).await
    }

    /// Removes a sealed run: its container, if that was kept, and its folder with the audit file.
    ///
    /// Cancel-safe: the run is there, or it is gone, and can be removed again.
    ///
    /// # Errors
    ///
    /// [`Error::NotSealed`]; [`Error::Owned`] while another process is at it;
    /// [`Error::OtherRuntime`], if it has a container of another runtime; [`Error::OtherEngine`],
    /// if one was kept on another engine;
    /// [`Error::Runtime`] if the container cannot be removed: then the folder stays.
    pub async fn remove(&self, id: &RunId) -> Result<()> {
        let context = self.context();
        let run = self.get(id).await?;
        let mut seal = run.entry.status.borrow().seal.clone();
        if seal.is_none() {
            // A monitor that has just come may not have seen it yet.
            let id = id.clone();
            let file = context
                .on_disk("read", move |root| root.read_run(&id))
                .await;
            seal = file?.and_then(|file| file.seal);
        }
        let Some(seal) = seal else {
            return Err(Error::NotSealed { run: id.clone() });
        };
        if let Some(container) = &seal.container {
            self.refuse_out_of_reach(id, &seal).await?;
            match context.runtime.remove(container, true).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        // Its monitor may still be at the removal of the container.
        run.released().await;
        let id = id.clone();
        context
            .on_disk("remove", move |root| {
                let _lock = root.lock(&id)?;
                root.remove(&id)
            })
            .await?;
        context.bulletin.tell(run.id(), Happening::Removed);
        Ok(())
    }

    /// This runtime finds no container of another one, nor does this engine, which would then be
    /// left behind.
    async fn refuse_out_of_reach(&self, id: &RunId, seal: &Seal) -> Result<()> {
        let run = id.clone();
        let file = self
            .context()
            .on_disk("read", move |root| root.read_run(&run))
            .await;
        let Ok(Some(RunFile { record, .. })) = file else {
            return Ok(());
        };
        if record.runtime != self.runtime().name() {
            return Err(Error::OtherRuntime {
                run: id.clone(),
                runtime: record.runtime,
            });
        }
        if !finish::may_remove(seal, record.settings.keep) {
            recover::meet(self.runtime(), id, [record.engine_id.as_deref(), None]).await?;
        }
        Ok(())
    }

    /// Waits until the runs that the opening found unsealed are taken over, are seen to be owned
    /// by another live process, or cannot be taken over ([`Run::problem`] says why), and gives
    /// them; and until the containers are removed that nobody owned any more. An engine that does
    /// not answer is waited for.
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
        let mut swept = self.context().swept.subscribe();
        tokio::select! {
            _ = swept.wait_for(|swept| *swept) => {}
            () = self.context().closing.cancelled() => {}
        }
        if self.context().closing.is_cancelled() {
            return Err(Error::Closed);
        }
        Ok(runs)
    }

    /// Ends this manager, and waits until all its tasks have ended. Later calls, on any clone,
    /// fail with [`Error::Closed`] or see what is on disk.
    ///
    /// What was done to a run before this call (a stop, an attachment that was left, a resize) is
    /// recorded, unless the sink, or the engine, does not answer within 2 s.
    ///
    /// To stop the runs takes as long as the engine does: it is asked until it answers. Cancel-safe:
    /// dropped in the middle, the manager goes on, and can be shut down again.
    pub async fn shutdown(&self, how: Shutdown) {
        let context = self.context();
        // What cannot be left is stopped: it would end anyway, without a seal.
        let stop = how == Shutdown::Stop || context.runtime.capabilities().transient;
        // Nothing new is started meanwhile.
        let _stopping = stop.then(|| Stopping::of(context));
        if stop {
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
        context.bulletin.close();
    }
}

/// A shutdown that stops all runs, while it is under way.
struct Stopping<'a>(&'a AtomicUsize);

impl<'a> Stopping<'a> {
    fn of(context: &'a Context) -> Self {
        context.stopping.fetch_add(1, Ordering::AcqRel);
        Self(&context.stopping)
    }
}

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
