//! Managers, which start, recover and shut down runs.

mod builder;
mod prune;
mod reap;
mod service;
mod signals;

pub use builder::{ManagerBuilder, RecoveryMode};
pub use prune::{PruneOptions, PruneReport, SkipReason};
pub use reap::{Orphan, OrphanReason, ReapAction, ReapOptions, ReapedContainer};
pub use service::Service;
pub use signals::Signal;

use std::collections::hash_map;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{oneshot, watch};
use tracing::Instrument;

use crate::audit::Action;
use crate::error::{Error, Result};
use crate::events::{EventKind, Events};
use crate::monitor::context::{Context, ManagerInner};
use crate::monitor::entry::{Entry, RunSnapshot};
use crate::monitor::policy::is_permanent;
use crate::monitor::recover;
use crate::monitor::start::{InitialAttach, StartError};
use crate::outcome::{Outcome, Seal, StopCause};
use crate::root::{Root, RunFile, RunInfo};
use crate::run::Run;
use crate::run::attach::session::{NO_STDIN_IN_RUNTIME, NO_STDIN_IN_SPEC, Recording, Session};
use crate::run::attach::{AttachOptions, Attachment, Input};
use crate::runtime::{InputWriter, Runtime};
use crate::spec::{RunId, RunSpec, Settings, Stdin};

/// The state of a run on disk.
enum OnDisk {
    /// The run is sealed. The text describes a mismatch between the seal and the audit file.
    Sealed(Box<(Seal, Option<String>)>),
    /// `run.json` has no seal.
    Unsealed {
        /// The audit file has a seal, which `run.json` lacks.
        sealed_in_audit: bool,
    },
}

/// Starts runs, watches them, and makes sure that every run leaves an audit file.
///
/// Cheap to clone. Each run has one monitor, a task that alone waits for the container
/// and writes the state of the run. Stops, natural exits, waiters and the end of this
/// process may race: every caller sees the one exit that the engine reports.
///
/// Dropping the last manager and the last [`Run`] stops the capture and releases the
/// runs. Their containers keep running, and the next [`open`](Self::open) of the root
/// recovers them. Containers of a [`process_bound`] runtime end with the process; that
/// opening seals them as lost.
///
/// [`process_bound`]: crate::runtime::Capabilities::process_bound
#[derive(Debug, Clone)]
pub struct Manager {
    inner: Arc<ManagerInner>,
}

/// The treatment of active runs during [`Manager::shutdown`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownMode {
    /// Leaves them running, to be recovered by the next opening of the root.
    ///
    /// Runs of a [`process_bound`](crate::runtime::Capabilities::process_bound) runtime
    /// cannot be recovered, and are stopped.
    Leave,
    /// Stops them, with the grace period of their specs, and seals them.
    Stop,
}

impl Manager {
    fn context(&self) -> &Arc<Context> {
        &self.inner.context
    }

    fn handle(&self, entry: Arc<Entry>) -> Run {
        Run {
            inner: Arc::clone(&self.inner),
            entry,
        }
    }

    /// Returns the root.
    pub fn root(&self) -> &Root {
        &self.context().root
    }

    /// Returns the runtime.
    pub fn runtime(&self) -> &dyn Runtime {
        &*self.context().runtime
    }

    /// Starts a run and returns once the engine has started it.
    ///
    /// The start is also recorded, unless the sink does not accept records for 2 s. If
    /// [`max_concurrent`](ManagerBuilder::max_concurrent) runs are active, the start waits
    /// for one to end.
    ///
    /// Before the engine is asked to create the container, the audit file exists and is
    /// synced, so it survives a power loss.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidSpec`], [`Error::RunExists`], [`Error::Storage`] or
    ///   [`Error::Closed`]. Nothing was created.
    /// - [`Error::NotStarted`], with the outcome of the sealed run.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves no orphan: the run is listed, and either proceeds or is
    /// sealed.
    pub async fn start(&self, spec: RunSpec) -> Result<Run> {
        Ok(self.launch(spec, None).await?.0)
    }

    /// Starts a run and attaches to it before the container's process starts.
    ///
    /// The attachment has the output, and the input if `options` request it.
    ///
    /// A terminal has the size in `options`, or else the size in the spec. Engines that set
    /// the size when they create the container (Docker from API 1.42 on) apply it before
    /// the first instruction of the process. Older engines set it once the process runs:
    /// the terminal is 0 by 0 for some milliseconds, and then the process gets SIGWINCH.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start), and [`Error::NoInput`]. Then nothing was created.
    ///
    /// # Cancel safety
    ///
    /// That of [`start`](Self::start).
    pub async fn start_attached(
        &self,
        mut spec: RunSpec,
        options: AttachOptions,
    ) -> Result<(Run, Attachment)> {
        if let Some(size) = options.window {
            spec = spec.window(size);
        }
        match self.launch(spec, Some(options)).await? {
            (run, Some(attachment)) => Ok((run, attachment)),
            (_, None) => Err(Error::Closed),
        }
    }

    async fn launch(
        &self,
        spec: RunSpec,
        attach: Option<AttachOptions>,
    ) -> Result<(Run, Option<Attachment>)> {
        let context = self.context();
        self.check_open()?;
        spec.validate()?;
        context.runtime.validate(&spec)?;
        let id = spec.run_id().cloned().unwrap_or_else(RunId::generate);
        let (entry, monitor) = context.monitor(context.place(&id));
        let run = self.handle(Arc::clone(&entry));
        let pending = match attach {
            Some(options) => Some(PendingAttachment::new(&run, spec.settings(), options)?),
            None => None,
        };
        self.register(id, entry)?;
        let (reply, started) = oneshot::channel();
        let token = spec.stop_token().cloned();
        let span = monitor.span();
        let initial = pending.as_ref().map(PendingAttachment::initial_attach);
        context
            .tasks
            .spawn(monitor.run_new(spec, initial, reply).instrument(span));
        if let Some(token) = token {
            run.stop_when(token);
        }
        match started.await {
            Ok(Ok(writer)) => Ok((run, pending.map(|pending| pending.attachment(writer)))),
            Ok(Err(StartError::NoRun(error))) => Err(error),
            Ok(Err(StartError::NotStarted(source))) => Err(Error::NotStarted {
                outcome: Box::new(run.wait().await?),
                source,
            }),
            Err(_) => Err(Error::Closed),
        }
    }

    /// Fails if the manager refuses new runs.
    fn check_open(&self) -> Result<()> {
        let context = self.context();
        if context.closing.is_cancelled() || context.stopping.load(Ordering::Acquire) > 0 {
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// Claims the id of a new run in this manager.
    fn register(&self, id: RunId, entry: Arc<Entry>) -> Result<()> {
        let mut entries = self.context().entries();
        // Checked under the lock. A shutdown refuses new runs before it takes the lock to find the
        // runs to stop, so it finds every run that passes this check.
        self.check_open()?;
        match entries.entry(id) {
            hash_map::Entry::Occupied(occupied) => Err(Error::RunExists {
                run: occupied.key().clone(),
                path: entry.place.dir.clone(),
            }),
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(entry);
                Ok(())
            }
        }
    }

    /// Returns a handle to a run, and recovers the run if no live process owns it.
    ///
    /// Sealed runs need no recovery.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRun`] if the run does not exist; [`Error::Storage`] or
    /// [`Error::Damaged`] if its file cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. A recovery that has begun proceeds.
    pub async fn get(&self, id: &RunId) -> Result<Run> {
        let context = self.context();
        if let Some(entry) = context.entries().get(id) {
            return Ok(self.handle(Arc::clone(entry)));
        }
        let run = id.clone();
        let on_disk = context.on_disk("read", move |root| OnDisk::read(root, &run));
        let sealed_in_audit = match on_disk.await? {
            OnDisk::Unsealed { sealed_in_audit } => sealed_in_audit,
            OnDisk::Sealed(sealed) => {
                let (seal, problem) = *sealed;
                let (_, status) = watch::channel(RunSnapshot::sealed(seal, problem));
                return Ok(self.handle(Arc::new(Entry::sealed(context.place(id), status))));
            }
        };
        let entry = recover::take_over(context, id);
        if sealed_in_audit {
            // The recovery is about to copy the seal to `run.json`. Without the wait, the
            // caller would see the run as not sealed.
            let mut snapshot = entry.snapshot.clone();
            let _ = snapshot.wait_for(|snapshot| snapshot.ownership_known).await;
        }
        Ok(self.handle(entry))
    }

    /// Lists all runs in the root, sorted by id.
    ///
    /// For runs of this manager, the list has their current status even if the disk is
    /// full.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the root cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn list(&self) -> Result<Vec<RunInfo>> {
        let context = self.context();
        let mut listed = context.on_disk("list", Root::list).await?;
        let entries = context.entries();
        for info in &mut listed {
            if let Some(entry) = entries.get(&info.run) {
                entry.snapshot.borrow().add_to(info);
            }
        }
        Ok(listed)
    }

    /// Waits for a run: [`get`](Self::get), then [`Run::wait`].
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get) and [`Run::wait`].
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn wait(&self, id: &RunId) -> Result<Outcome> {
        self.get(id).await?.wait().await
    }

    /// Stops a run: [`get`](Self::get), then [`Run::stop`].
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get) and [`Run::stop`].
    ///
    /// # Cancel safety
    ///
    /// A stop that was requested proceeds even if the future is dropped.
    pub async fn stop(&self, id: &RunId, grace: Option<Duration>) -> Result<Outcome> {
        self.get(id).await?.stop(grace).await
    }

    /// Attaches to the output of a run: [`get`](Self::get), then [`Run::attach`].
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get) and [`Run::attach`].
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn attach(&self, id: &RunId) -> Result<Attachment> {
        self.get(id).await?.attach().await
    }

    /// Subscribes to the events of all runs, from now on: see [`Events`].
    pub fn events(&self) -> Events {
        Events::new(self.context().event_bus.subscribe(), None)
    }

    /// Removes a sealed run: its container, if it was kept, and its directory.
    ///
    /// The directory includes the audit file.
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get), and:
    ///
    /// - [`Error::NotSealed`] if the run is not sealed.
    /// - [`Error::Owned`] while another process uses the run.
    /// - [`Error::OtherRuntime`] if the container belongs to another runtime.
    /// - [`Error::OtherEngine`] if the container was kept on another engine.
    /// - [`Error::Runtime`] if the container cannot be removed. The directory remains.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. A dropped call leaves the run in place or removes it. Call it again to
    /// complete the removal.
    pub async fn remove(&self, id: &RunId) -> Result<()> {
        let context = self.context();
        let run = self.get(id).await?;
        let seal = self.seal_of(&run).await?;
        if let Some(container) = &seal.container {
            self.refuse_out_of_reach(id, &seal).await?;
            match context.runtime.remove(container, true).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        // The monitor may still be removing the container.
        run.released().await;
        let id = id.clone();
        context
            .on_disk("remove", move |root| {
                let _lock = root.lock(&id)?;
                root.remove(&id)
            })
            .await?;
        context.event_bus.emit(run.id(), EventKind::Removed);
        Ok(())
    }

    /// Returns the seal from the snapshot of a run, or else from its file.
    async fn seal_of(&self, run: &Run) -> Result<Seal> {
        let known = run.entry.snapshot.borrow().seal.clone();
        if let Some(seal) = known {
            return Ok(seal);
        }
        // A new monitor may not have read the seal yet.
        let id = run.id().clone();
        let file = self
            .context()
            .on_disk("read", move |root| root.read_run(&id))
            .await?;
        file.and_then(|file| file.seal)
            .ok_or_else(|| Error::NotSealed {
                run: run.id().clone(),
            })
    }

    /// Fails if the container of a run belongs to another runtime or engine.
    ///
    /// Removing the run would leave that container as an orphan.
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
        if !self.context().may_remove(seal, record.settings.keep) {
            recover::verify_engine_id(self.runtime(), id, [record.engine_id.as_deref(), None])
                .await?;
        }
        Ok(())
    }

    /// Waits until the recovery at the opening is complete, and returns the runs.
    ///
    /// These are the runs that were not sealed at the opening. Each is recovered, owned by
    /// another live process, or cannot be recovered: then [`Run::problem`] says why. The
    /// removal of containers without an owner is also complete. If the engine does not
    /// answer, this waits for it.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the manager is shut down first.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn wait_recovery(&self) -> Result<Vec<Run>> {
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
            let mut snapshot = run.entry.snapshot.clone();
            // An error means that the monitor has exited, so the ownership is final.
            let _ = snapshot.wait_for(|snapshot| snapshot.ownership_known).await;
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

    /// Shuts the manager down, and waits until all its tasks have ended.
    ///
    /// Later calls on any clone fail with [`Error::Closed`], or return the state on disk.
    ///
    /// Actions before this call (stops, detachments, resizes) are recorded, unless the sink
    /// or the engine does not respond within 2 s.
    ///
    /// Stopping takes the grace period of each run, and longer if its container does not end.
    /// A run whose engine does not answer about it 30 s after its grace period is left to the
    /// next opening of the root, which completes the stop: see [`Error::Unanswered`]. Its audit
    /// file has a note.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. A dropped call leaves the manager running. It can be shut down again.
    pub async fn shutdown(&self, mode: ShutdownMode) {
        let context = self.context();
        // Process-bound runs are always stopped: they would end anyway, without a seal.
        let stop = mode == ShutdownMode::Stop || context.runtime.capabilities().process_bound;
        // Refuses new runs until all are stopped.
        let _stopping = stop.then(|| StartsRefused::new(context));
        if stop {
            self.stop_all(StopCause::Shutdown, None).await;
        }
        context.closing.cancel();
        context.tasks.wait().await;
        context.event_bus.close();
    }

    /// Stops all runs that this manager owns, and waits until they are sealed.
    async fn stop_all(&self, cause: StopCause, grace: Option<Duration>) {
        let entries: Vec<_> = self.context().entries().values().cloned().collect();
        let stops = entries.into_iter().map(|entry| {
            let run = self.handle(entry);
            async move {
                if !run.owned_elsewhere() {
                    // Fails only for a run that cannot be recovered.
                    let _ = run.request(cause, grace).await;
                }
            }
        });
        join_all(stops).await;
    }
}

impl OnDisk {
    fn read(root: &Root, run: &RunId) -> Result<Self> {
        if !root.has(run) {
            return Err(root.no_such_run(run));
        }
        let file = match root.read_run(run) {
            // The recovery may restore the file from the audit.
            Err(error) if is_permanent(&error) => None,
            read => read?,
        };
        let Some(seal) = file.and_then(|file| file.seal) else {
            return Ok(Self::Unsealed {
                sealed_in_audit: root.info(run)?.seal.is_some(),
            });
        };
        let (seal, problem) = root.verify_cached_seal(run, seal);
        // The run may have been removed since.
        if problem.is_some() && !root.has(run) {
            return Err(root.no_such_run(run));
        }
        Ok(Self::Sealed(Box::new((seal, problem))))
    }
}

/// The attachment of a run that has not started.
struct PendingAttachment {
    session: Arc<Session>,
    options: AttachOptions,
    stdin: Stdin,
    record_stdin: bool,
}

impl PendingAttachment {
    fn new(run: &Run, settings: &Settings, options: AttachOptions) -> Result<Self> {
        if options.input && settings.stdin == Stdin::None {
            return Err(run.no_input(NO_STDIN_IN_SPEC));
        }
        if options.input && !run.context().runtime.capabilities().stdin {
            return Err(run.no_input(NO_STDIN_IN_RUNTIME));
        }
        let session = Session::new(run.clone(), None, Recording::Always);
        session.starts_with(settings.window);
        Ok(Self {
            session,
            options,
            stdin: settings.stdin,
            record_stdin: settings.record_stdin,
        })
    }

    fn initial_attach(&self) -> InitialAttach {
        let (action, text) = match self.options.input {
            true => (
                Action::AttachInput,
                "attached with input, before the container started",
            ),
            false => (
                Action::Attach,
                "attached without input, before the container started",
            ),
        };
        InitialAttach {
            input: self.options.input,
            note: self.session.record(action, text),
        }
    }

    fn attachment(self, writer: Option<InputWriter>) -> Attachment {
        let Self {
            session,
            options,
            stdin,
            record_stdin,
        } = self;
        let input = writer.map(|writer| Input::new(writer, stdin, record_stdin, &session));
        Attachment::new(session, options, input)
    }
}

/// A guard during whose life the manager refuses new runs.
struct StartsRefused<'a>(&'a AtomicUsize);

impl<'a> StartsRefused<'a> {
    fn new(context: &'a Context) -> Self {
        context.stopping.fetch_add(1, Ordering::AcqRel);
        Self(&context.stopping)
    }
}

impl Drop for StartsRefused<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::runtime::scripted::Scripted;

    #[tokio::test]
    async fn a_shutdown_refuses_a_start_in_progress() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let manager = Manager::open(root, Scripted::new()).await.unwrap();
        let register = |id: RunId| {
            let context = manager.context();
            let (entry, _) = context.monitor(context.place(&id));
            manager.register(id, entry)
        };
        let stopping = StartsRefused::new(manager.context());
        let refused = register(RunId::generate());
        assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
        drop(stopping);
        register(RunId::generate()).unwrap();
    }
}
