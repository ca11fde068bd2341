//! Managers, which start, recover and shut down runs.

mod builder;
mod group;
mod image;
mod prune;
mod reap;
mod service;
mod shutdown;
mod signals;

pub use builder::{ManagerBuilder, RecoveryMode};
pub use group::{Group, Network, Volume};
pub use image::Image;
pub use prune::{PruneOptions, PruneReport, SkipReason};
pub use reap::{
    Orphan, OrphanReason, OrphanedContainer, ReapAction, ReapOptions, ReapReport, ReapedContainer,
    ReapedResource,
};
pub use service::Service;
pub use shutdown::ShutdownMode;
pub use signals::Signal;

use std::collections::hash_map;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tracing::Instrument;

use crate::audit::Action;
use crate::error::{Error, Result};
use crate::events::{EventKind, Events};
use crate::monitor::context::{Context, ManagerInner};
use crate::monitor::entry::{Entry, Role, RunSnapshot};
use crate::monitor::policy::is_permanent;
use crate::monitor::recover;
use crate::monitor::start::{InitialAttach, StartError};
use crate::outcome::{Outcome, Seal};
use crate::root::RemovalReason;
use crate::root::{Root, RunInfo};
use crate::run::Run;
use crate::run::attach::session::{NO_STDIN_IN_RUNTIME, NO_STDIN_IN_SPEC, Recording, Session};
use crate::run::attach::{AttachOptions, Attachment, Input};
use crate::runtime::{InputWriter, Runtime};
use crate::spec::{InvalidSpec, Membership, RunId, RunSpec, Settings, Stdin};

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
        Ok(self.launch(spec, None, false).await?.0)
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
        match self.launch(spec, Some(options), false).await? {
            (run, Some(attachment)) => Ok((run, attachment)),
            (_, None) => Err(Error::Closed),
        }
    }

    async fn launch(
        &self,
        spec: RunSpec,
        attach: Option<AttachOptions>,
        is_service: bool,
    ) -> Result<(Run, Option<Attachment>)> {
        let context = self.context();
        let role = Role {
            is_service,
            is_cleanup: spec.is_cleanup(),
        };
        self.check_open(role)?;
        spec.validate()?;
        context.runtime.validate(&spec)?;
        let id = spec.run_id().cloned().unwrap_or_else(RunId::generate);
        let (entry, monitor) = context.monitor(context.place(&id), role);
        let run = self.handle(Arc::clone(&entry));
        let pending = match attach {
            Some(options) => Some(PendingAttachment::new(&run, spec.settings(), options)?),
            None => None,
        };
        self.register(id, entry, spec.membership())?;
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

    /// Fails if the manager refuses new runs of this role.
    fn check_open(&self, role: Role) -> Result<()> {
        let context = self.context();
        let is_cleaning = context.cleaning.load(Ordering::Acquire) > 0;
        if context.closing.is_cancelled()
            || context.stopping.load(Ordering::Acquire) > 0
            || (is_cleaning && !role.is_cleanup)
        {
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// Fails if no run can join the group any more.
    fn check_group(&self, membership: &Membership) -> Result<()> {
        let groups = self.context().groups();
        let group = groups.get(&membership.group);
        if group.is_some_and(|group| group.has_owner()) {
            return Ok(());
        }
        let group = &membership.group;
        let reason = format!("the group {group} has ended, or belongs to another manager");
        Err(InvalidSpec::new("group", reason).into())
    }

    /// Claims the id of a new run in this manager.
    fn register(
        &self,
        id: RunId,
        entry: Arc<Entry>,
        membership: Option<&Membership>,
    ) -> Result<()> {
        let mut entries = self.context().entries();
        // Checked under the lock. A shutdown refuses new runs before it takes the lock to find the
        // runs to stop, so it finds every run that passes this check.
        self.check_open(entry.role)?;
        if let Some(membership) = membership {
            // Checked under the lock, too: the end of a group finds every run that passes it.
            self.check_group(membership)?;
        }
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
    /// The directory includes the audit file. While the run is being signed, the call waits for the
    /// signer: at most 10 s for a signer that does not answer.
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
        self.remove_for(id, RemovalReason::Removed).await
    }

    async fn remove_for(&self, id: &RunId, reason: RemovalReason) -> Result<()> {
        let context = self.context();
        let run = self.get(id).await?;
        let seal = run.seal().await?;
        if let Some(container) = &seal.container {
            context.refuse_out_of_reach(id, &seal).await?;
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
                root.remove(&id, reason)
            })
            .await?;
        context.event_bus.emit(run.id(), EventKind::Removed);
        Ok(())
    }

    /// Waits until the recovery at the opening is complete, and returns the runs.
    ///
    /// These are the runs that were not sealed at the opening. Each is recovered, owned by
    /// another live process, or cannot be recovered: then [`Run::problem`] says why. The
    /// removal of containers without an owner is also complete, and [groups] without an owner have
    /// ended, with their runs. A network or a volume that a run outside of a group still uses is
    /// not waited for. If the engine does not answer, this waits for it.
    ///
    /// [groups]: crate::manager::Group
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the manager is shut down first.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn wait_recovery(&self) -> Result<Vec<Run>> {
        tokio::select! {
            biased;
            () = self.context().closing.cancelled() => Err(Error::Closed),
            recovered = self.recovered() => recovered,
        }
    }

    /// Waits as [`wait_recovery`](Self::wait_recovery), also if the manager is shut down first.
    async fn recovered(&self) -> Result<Vec<Run>> {
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
        swept
            .wait_for(|swept| *swept)
            .await
            .map_err(|_| Error::Closed)?;
        Ok(runs)
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
