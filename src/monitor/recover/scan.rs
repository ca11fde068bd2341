//! The scan of a root for unsealed runs and orphaned containers.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::time::sleep;

use crate::monitor::context::Context;
use crate::monitor::recover::take_over;
#[cfg(feature = "sign")]
use crate::monitor::signature;
use crate::monitor::wait::Backoff;
use crate::monitor::{exec, group};
use crate::root::{Root, RunFile};
use crate::runtime::{ContainerStatus, OwnedContainer};
use crate::spec::RunId;

/// Below this number of runs, another thread costs more than it saves.
const MIN_RUNS_PER_THREAD: usize = 256;

/// The pauses between the searches for containers that an engine creates late.
///
/// A loaded engine takes over 30 s for a creation.
const LATE_CREATIONS: [Duration; 3] = [
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(60),
];

/// The runs of a root that need recovery.
#[derive(Default)]
struct Unsealed {
    runs: Vec<RunId>,
    /// Sealed runs that have an unsealed exec.
    execs: Vec<RunId>,
    /// Sealed runs that are not signed, or have an exec that is not.
    unsigned: Vec<RunId>,
    /// True if the owner of a run died before it recorded a container.
    may_create: bool,
}

impl Unsealed {
    /// Reads all runs of a root. Large roots are read on all cores.
    fn read(root: &Root, runs: &[RunId]) -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let share = runs.len().div_ceil(cores).max(MIN_RUNS_PER_THREAD);
        thread::scope(|scope| {
            let shares = runs.chunks(share).map(|share| {
                let read = || Self::read_share(root, share);
                // If no thread can be started, the share is read on this one.
                thread::Builder::new()
                    .spawn_scoped(scope, read)
                    .map_err(|_| read())
            });
            let shares: Vec<_> = shares.collect();
            let parts = shares.into_iter().map(|share| match share {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(part) => part,
            });
            parts.fold(Self::default(), Self::merge)
        })
    }

    fn read_share(root: &Root, runs: &[RunId]) -> Self {
        let mut unsealed = Self::default();
        for run in runs {
            // A run that cannot be read counts as unsealed: its monitor reports the problem.
            let file = root.read_run(run);
            let file = file.as_ref().map(Option::as_ref).unwrap_or_default();
            if file.is_none_or(|file| file.seal.is_none()) {
                unsealed.runs.push(run.clone());
                unsealed.may_create |= file.is_none_or(|file| file.record.container.is_none());
                continue;
            }
            if !root.unsealed_execs(run).is_empty() {
                unsealed.execs.push(run.clone());
            }
            if file.is_some_and(|file| file.unsigned.is_some()) {
                unsealed.unsigned.push(run.clone());
            }
        }
        unsealed
    }

    fn merge(mut self, other: Self) -> Self {
        self.runs.extend(other.runs);
        self.execs.extend(other.execs);
        self.unsigned.extend(other.unsigned);
        self.may_create |= other.may_create;
        self
    }
}

/// Recovers every unsealed run, and removes orphaned containers.
pub(crate) async fn scan(context: Arc<Context>) {
    let closing = context.closing.clone();
    tokio::select! {
        () = scan_root(&context) => {}
        () = closing.cancelled() => {}
    }
}

async fn scan_root(context: &Arc<Context>) {
    let unsealed = context
        .on_disk("list the runs in", |root| {
            root.sweep();
            Ok(Unsealed::read(root, &root.runs()?))
        })
        .await
        .unwrap_or_else(|error| {
            tracing::error!(error = %error.chain(), "cannot list the runs to recover");
            Unsealed::default()
        });
    for run in unsealed.execs {
        exec::seal_lost_of_ended(context, &run).await;
    }
    let runs = unsealed.runs.iter();
    let entries = runs.map(|run| take_over(context, run)).collect();
    context.scanned.send_replace(Some(entries));

    #[cfg(feature = "sign")]
    retry_signatures(context, unsealed.unsigned);

    for container in owned_containers(context).await {
        remove_orphan(context, container).await;
    }
    if unsealed.may_create {
        let late = Arc::clone(context);
        context.tasks.spawn(async move {
            let closing = late.closing.clone();
            closing.run_until_cancelled(remove_late(&late)).await;
        });
    }
    group::recover(context).await;
    context.swept.send_replace(true);
}

/// Signs runs in the background: a signer that does not answer must not delay the recovery.
#[cfg(feature = "sign")]
fn retry_signatures(context: &Arc<Context>, runs: Vec<RunId>) {
    let context = Arc::clone(context);
    context.tasks.spawn({
        let context = Arc::clone(&context);
        async move {
            let closing = context.closing.clone();
            let signed = signature::retry_signatures(&context, runs);
            closing.run_until_cancelled(signed).await;
        }
    });
}

/// Lists the containers of the root.
///
/// Retries until the engine gives a definitive answer.
async fn owned_containers(context: &Context) -> Vec<OwnedContainer> {
    let mut backoff = Backoff::new();
    loop {
        match context.runtime.find(context.root.id()).await {
            Ok(containers) => return containers,
            Err(error) if error.is_definitive() => {
                tracing::warn!(%error, "cannot list orphaned containers");
                return Vec::new();
            }
            Err(error) => tracing::warn!(%error, "cannot list orphaned containers; retrying"),
        }
        backoff.pause().await;
    }
}

/// Removes the containers that the engine creates after the first search, for the request of an
/// owner that has died.
async fn remove_late(context: &Arc<Context>) {
    for delay in LATE_CREATIONS {
        sleep(delay).await;
        remove_orphans(context).await;
    }
}

/// Removes the containers without an owner, unless the engine does not answer.
pub(crate) async fn remove_orphans(context: &Context) {
    for container in context
        .runtime
        .find(context.root.id())
        .await
        .unwrap_or_default()
    {
        remove_orphan(context, container).await;
    }
}

/// Removes a container without an owner.
///
/// A container of a sealed run is removed by the policy of the run. A container of a run that does
/// not exist is removed only if it was never started.
async fn remove_orphan(context: &Context, orphan: OwnedContainer) {
    if context.entries().contains_key(&orphan.run) {
        return;
    }
    let run = orphan.run.clone();
    let run = context
        .on_disk("read a run in", move |root| {
            if !root.has(&run) {
                return Ok(OrphanRun::Missing);
            }
            let _lock = root.lock(&run)?;
            Ok(match root.read_run(&run)? {
                Some(file) if file.seal.is_some() => OrphanRun::Sealed(Box::new(file)),
                _ => OrphanRun::Unsealed,
            })
        })
        .await;
    let remove = match run {
        Ok(OrphanRun::Missing) => orphan.status == ContainerStatus::Created,
        // Its seal decides, and not its status: an engine that lost track of a container reports it
        // as created.
        Ok(OrphanRun::Sealed(file)) => file
            .seal
            .is_some_and(|seal| context.may_remove(&seal, file.record.settings.keep)),
        Ok(OrphanRun::Unsealed) | Err(_) => false,
    };
    if remove {
        // Without force: a running container is not removed.
        let OwnedContainer { run, container, .. } = &orphan;
        match context.runtime.remove(container, false).await {
            Ok(()) => tracing::info!(%run, %container, "removed an orphaned container"),
            Err(error) => {
                tracing::warn!(%run, %container, %error, "cannot remove an orphaned container");
            }
        }
    }
}

/// The run that the labels of an orphaned container name.
enum OrphanRun {
    Missing,
    Unsealed,
    Sealed(Box<RunFile>),
}
