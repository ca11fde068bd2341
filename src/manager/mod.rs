//! The public face: [`Manager`].

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

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tracing::Instrument;

use crate::audit::Action;
use crate::error::{Error, Result};
use crate::events::{EventKind, Events};
use crate::monitor::context::{Context, ManagerInner};
use crate::monitor::entry::{Entry, RunSnapshot};
use crate::monitor::policy::is_permanent;
use crate::monitor::start::{self, InitialAttach};
use crate::monitor::{recover, seal};
use crate::outcome::{Outcome, Seal, StopCause};
use crate::root::{Root, RunFile, RunInfo};
use crate::run::Run;
use crate::run::attach::input::{Input, Session};
use crate::run::attach::{AttachOptions, Attachment};
use crate::runtime::Runtime;
use crate::spec::{RunId, RunSpec, Stdin};

/// What the files of a run say.
enum OnDisk {
    /// Its seal, and what is wrong with that.
    Sealed(Box<(Seal, Option<String>)>),
    /// `run.json` has no seal; `behind`: the audit has one.
    Unsealed { behind: bool },
}

/// Starts runs, watches them, and keeps the promise: every run leaves an audit file.
///
/// Cheap to clone. Each run has one monitor, a task of its own, which alone waits on the container
/// and alone writes the run's state. `stop`, a natural exit, any number of waiters and the end of
/// this process may race: the exit is what the engine says, once.
///
/// Dropping the last manager and the last [`Run`] stops the capture and releases the runs: their
/// containers go on, and the next [`open`](Self::open) of the root takes them over. Those of a
/// [`transient`](crate::runtime::Capabilities::process_bound) runtime end with it, and are sealed as
/// lost by that opening.
#[derive(Debug, Clone)]
pub struct Manager {
    inner: Arc<ManagerInner>,
}

/// What a shutdown does with the runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownMode {
    /// They go on, and the next opening of the root takes them over. Runs of a
    /// [`transient`](crate::runtime::Capabilities::process_bound) runtime cannot, and are stopped.
    Leave,
    /// They are stopped, with the grace of their specs, and sealed.
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
        let front = session.as_ref().map(|session| InitialAttach {
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
                    path: place.dir,
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
            Ok(Err(start::StartError::Nothing(error))) => Err(error),
            Ok(Err(start::StartError::Sealed(source))) => Err(Error::NotStarted {
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
                    Err(error) if is_permanent(&error) => None,
                    read => read?,
                };
                let Some(seal) = file.and_then(|file| file.seal) else {
                    return Ok(OnDisk::Unsealed {
                        behind: root.info(&run)?.seal.is_some(),
                    });
                };
                let held = root.verify_cached_seal(&run, seal);
                // It may have been removed since.
                match held.1.is_some() && !root.has(&run) {
                    true => Err(root.no_such_run(&run)),
                    false => Ok(OnDisk::Sealed(Box::new(held))),
                }
            })
            .await?;
        let behind = match sealed {
            OnDisk::Unsealed { behind } => behind,
            OnDisk::Sealed(held) => {
                let (seal, problem) = *held;
                let (_, snapshot) = watch::channel(RunSnapshot::sealed(seal, problem));
                return Ok(self.handle(Arc::new(Entry::sealed(context.place(id), snapshot))));
            }
        };
        let entry = recover::take_over(context, id);
        if behind {
            // It is sealed, which is soon written down: nobody is to take it for one that is not.
            let mut snapshot = entry.snapshot.clone();
            let _ = snapshot.wait_for(|snapshot| snapshot.ownership_known).await;
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
                entry.snapshot.borrow().add_to(info);
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
        let mut seal = run.entry.snapshot.borrow().seal.clone();
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
        context.event_bus.emit(run.id(), EventKind::Removed);
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
        if !seal::may_remove(seal, record.settings.keep) {
            recover::verify_engine_id(self.runtime(), id, [record.engine_id.as_deref(), None])
                .await?;
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
            // A monitor that has left has settled it one way or the other.
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

    /// Ends this manager, and waits until all its tasks have ended. Later calls, on any clone,
    /// fail with [`Error::Closed`] or see what is on disk.
    ///
    /// What was done to a run before this call (a stop, an attachment that was left, a resize) is
    /// recorded, unless the sink, or the engine, does not answer within 2 s.
    ///
    /// To stop the runs takes as long as the engine does: it is asked until it answers. Cancel-safe:
    /// dropped in the middle, the manager goes on, and can be shut down again.
    pub async fn shutdown(&self, how: ShutdownMode) {
        let context = self.context();
        // What cannot be left is stopped: it would end anyway, without a seal.
        let stop = how == ShutdownMode::Stop || context.runtime.capabilities().process_bound;
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
        context.event_bus.close();
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

impl Manager {
    /// What happens from now on to all runs that this manager has to do with: see [`Events`].
    pub fn events(&self) -> Events {
        Events::of(self.context().event_bus.subscribe(), None)
    }
}
