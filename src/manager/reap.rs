//! Orphans: what no run needs on the engine, in this root and in abandoned roots.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result, RuntimeError};
use crate::manager::Manager;
use crate::monitor::context::Context;
use crate::root::{Root, RunFile};
use crate::runtime::{ContainerStatus, LabeledContainer, LabeledResource, OwnedContainer, Runtime};
use crate::spec::{ContainerId, RootId, RunId};
use crate::timestamp::Timestamp;

/// A container, a network or a volume of this root that recovery does not remove.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Orphan {
    /// A container.
    Container(OrphanedContainer),
    /// A network or a volume without a readable file in the root.
    ///
    /// The file was removed or damaged, or the root was restored from a copy.
    Resource(LabeledResource),
}

/// A container of this root that recovery does not remove.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OrphanedContainer {
    /// The container.
    pub container: ContainerId,
    /// The run that the container was created for.
    pub run: RunId,
    /// The status of the container.
    pub status: ContainerStatus,
    /// Why the container is an orphan.
    pub reason: OrphanReason,
}

/// The reason that a container is an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrphanReason {
    /// The run is not in the root.
    ///
    /// It was removed, or the root was restored from a copy.
    NoRun,
    /// The run is sealed, and the removal of the container failed.
    Left,
}

/// Settings for [`Manager::reap`], which ends containers, networks and volumes past their deadline.
///
/// The containers may belong to any root of any process on any machine. The deadline is a
/// label that is written when the container is created. It is the sum of the time limit,
/// the grace period of a stop, and two minutes for the engine. An engine that places its
/// containers later advances it by the time of the placement. A live owner ends its container
/// before the deadline.
///
/// These containers are never touched:
///
/// - containers without a time limit, which have no deadline
/// - containers that moat did not create
/// - containers with an unreadable label
/// - containers of the manager's own root, which recovery handles
///
/// A network or a volume has a deadline if its spec has one:
/// [`NetworkSpec::expires_after`](crate::spec::NetworkSpec::expires_after). It is removed
/// [`remove_after`](Self::remove_after) its deadline, unless a container uses it.
///
/// The deadline uses the clock of the machine that created the container. It is compared
/// with the clock of the machine that reaps. The margins must exceed the clock difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReapOptions {
    stop_after: Duration,
    remove_after: Duration,
    dry_run: bool,
}

impl Default for ReapOptions {
    fn default() -> Self {
        Self {
            stop_after: Duration::from_secs(600),
            remove_after: Duration::from_secs(86_400),
            dry_run: false,
        }
    }
}

impl ReapOptions {
    /// Creates options with the default margins.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long after its deadline a running container is killed.
    ///
    /// Default: 10 minutes. Minimum: 1 minute.
    pub fn stop_after(mut self, margin: Duration) -> Self {
        self.stop_after = margin.max(Duration::from_secs(60));
        self
    }

    /// Sets how long after its deadline a container, a network or a volume is removed.
    ///
    /// The policy of the run is ignored. Removal deletes the output that the engine has kept.
    /// If the root is opened again, the run is sealed as `removed`, with a gap.
    ///
    /// Default: 1 day. Minimum: 1 minute.
    pub fn remove_after(mut self, margin: Duration) -> Self {
        self.remove_after = margin.max(Duration::from_secs(60));
        self
    }

    /// Reports what would be ended or removed, and changes nothing. Default: false.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Reaps without a manager, except what belongs to `root`.
    ///
    /// With a manager, use [`Manager::reap`].
    ///
    /// # Errors
    ///
    /// [`RuntimeError`] if the engine cannot list its containers, networks or volumes.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. A dropped call has reaped some of them.
    pub async fn run(
        &self,
        runtime: &dyn Runtime,
        root: Option<&RootId>,
    ) -> Result<ReapReport, RuntimeError> {
        // Both lists precede every removal, so that an error loses no report.
        let containers = runtime.find_all().await?;
        let resources = find_resources(runtime).await?;
        Ok(ReapReport {
            containers: self.reap_containers(runtime, root, containers).await,
            // Later: a container that was removed uses no network and no volume.
            resources: self.reap_resources(runtime, root, resources).await,
        })
    }

    async fn reap_containers(
        &self,
        runtime: &dyn Runtime,
        root: Option<&RootId>,
        containers: Vec<LabeledContainer>,
    ) -> Vec<ReapedContainer> {
        let now = Timestamp::now();
        let mut reaped = Vec::new();
        for labeled in containers {
            if Some(&labeled.root) == root {
                continue;
            }
            let Some(deadline) = labeled.deadline else {
                continue;
            };
            let Some(due) = self.due(labeled.status, now.since(deadline)) else {
                continue;
            };
            let result = match self.dry_run {
                true => Ok(()),
                false => end(runtime, &labeled.container, due).await,
            };
            reaped.push(ReapedContainer {
                deadline,
                action: match result {
                    Err(error) => ReapAction::Failed(error),
                    Ok(()) if due.is_removal() => ReapAction::Removed,
                    Ok(()) => ReapAction::Stopped,
                },
                container: labeled.container,
                root: labeled.root,
                run: labeled.run,
            });
        }
        reaped
    }

    async fn reap_resources(
        &self,
        runtime: &dyn Runtime,
        root: Option<&RootId>,
        resources: Vec<LabeledResource>,
    ) -> Vec<ReapedResource> {
        let now = Timestamp::now();
        let mut reaped = Vec::new();
        for resource in resources {
            let is_due = |deadline| now.since(deadline) > self.remove_after;
            if Some(&resource.root) == root || !resource.deadline.is_some_and(is_due) {
                continue;
            }
            let removed = match self.dry_run {
                true => Ok(()),
                false => remove_resource(runtime, &resource).await,
            };
            reaped.push(ReapedResource {
                resource,
                action: removed.map_or_else(ReapAction::Failed, |()| ReapAction::Removed),
            });
        }
        reaped
    }

    /// Returns the action due for a container that is `overdue` past its deadline.
    ///
    /// `overdue` is zero before the deadline.
    fn due(&self, status: ContainerStatus, overdue: Duration) -> Option<Due> {
        let remove = overdue > self.remove_after;
        match status {
            ContainerStatus::Running if remove && overdue > self.stop_after => {
                Some(Due::Remove { force: true })
            }
            ContainerStatus::Running if overdue > self.stop_after => Some(Due::Kill),
            ContainerStatus::Created | ContainerStatus::Ended if remove => {
                Some(Due::Remove { force: false })
            }
            _ => None,
        }
    }
}

/// The action due for a container past its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Kill,
    Remove {
        /// Also removes a running container.
        force: bool,
    },
}

impl Due {
    fn is_removal(self) -> bool {
        matches!(self, Self::Remove { .. })
    }
}

/// The result of [`Manager::reap`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ReapReport {
    /// The containers past their deadline.
    pub containers: Vec<ReapedContainer>,
    /// The networks and volumes past their deadline.
    pub resources: Vec<ReapedResource>,
}

impl ReapReport {
    /// Returns true if nothing was past its deadline.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.resources.is_empty()
    }
}

/// A network or a volume past its deadline.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReapedResource {
    /// The network or the volume.
    pub resource: LabeledResource,
    /// The action taken, or in a dry run the action due.
    pub action: ReapAction,
}

/// A container past its deadline.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReapedContainer {
    /// The container.
    pub container: ContainerId,
    /// The root that the container was created for.
    pub root: RootId,
    /// The run that the container was created for.
    pub run: RunId,
    /// The deadline of the container.
    pub deadline: Timestamp,
    /// The action taken, or in a dry run the action due.
    pub action: ReapAction,
}

/// The action taken for a container, a network or a volume past its deadline.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReapAction {
    /// The container was running and was killed. It still exists, with its output.
    Stopped,
    /// It was removed. A container that was running was killed first.
    Removed,
    /// The action failed.
    Failed(RuntimeError),
}

/// Kills or removes a container. A container that does not exist is not an error.
async fn end(runtime: &dyn Runtime, container: &ContainerId, due: Due) -> Result<(), RuntimeError> {
    let result = match due {
        // Forced only if the container was seen running. A container started since is in use.
        Due::Remove { force } => runtime.remove(container, force).await,
        Due::Kill => match runtime.signal(container, "SIGKILL").await {
            Err(RuntimeError::Conflict { .. }) => Ok(()),
            killed => killed,
        },
    };
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        result => result,
    }
}

/// Lists the networks and volumes of all roots. A runtime without any has none.
///
/// An engine that refuses the list, such as one behind a proxy that allows only containers, has none
/// of moat either.
async fn find_resources(runtime: &dyn Runtime) -> Result<Vec<LabeledResource>, RuntimeError> {
    let capabilities = runtime.capabilities();
    if !capabilities.networks && !capabilities.volumes {
        return Ok(Vec::new());
    }
    match runtime.find_resources().await {
        Err(error) if error.is_definitive() => {
            tracing::warn!(%error, "cannot list networks and volumes");
            Ok(Vec::new())
        }
        found => found,
    }
}

/// Removes a network or a volume. One that does not exist is not an error.
async fn remove_resource(
    runtime: &dyn Runtime,
    resource: &LabeledResource,
) -> Result<(), RuntimeError> {
    match runtime.remove_resource(resource.kind, &resource.name).await {
        Err(error) if error.is_not_found() => Ok(()),
        removed => removed,
    }
}

impl Manager {
    /// Lists the containers, networks and volumes of this root that recovery does not remove.
    ///
    /// Containers that are kept by policy are not orphans, nor are containers of runs that
    /// are not sealed, nor networks and volumes with a file in the root.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`] if the engine cannot list its
    /// containers, networks or volumes; [`Error::Storage`] if the root cannot be
    /// read.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn orphans(&self) -> Result<Vec<Orphan>> {
        let context = self.context();
        // In this order: a run is in the root before its container is created, and a group before
        // its network.
        let containers = context.runtime.find(context.root.id()).await?;
        let resources = find_resources(&*context.runtime).await?;
        let policy = Arc::clone(context);
        let orphans = move |root: &Root| {
            let containers = containers.into_iter();
            let containers = containers.filter_map(|found| orphan(&policy, root, found));
            let recorded = root.recorded_resources()?;
            let resources = resources.into_iter().filter(|resource| {
                resource.root == *root.id() && !recorded.contains(&resource.name)
            });
            let containers = containers.map(Orphan::Container);
            Ok(containers.chain(resources.map(Orphan::Resource)).collect())
        };
        context.on_disk("list", orphans).await
    }

    /// Removes an orphan.
    ///
    /// A container without a run is removed even while it is running. The container of a
    /// sealed run is removed only if it is not running. A network or a volume that a container uses
    /// is not removed. An orphan that does not exist is not an error.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`] if the engine does not remove the
    /// orphan.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. The engine may already have been asked to remove the orphan.
    pub async fn remove_orphan(&self, orphan: &Orphan) -> Result<()> {
        let runtime = &*self.context().runtime;
        let orphan = match orphan {
            Orphan::Container(orphan) => orphan,
            Orphan::Resource(resource) => {
                self.check_unrecorded(resource).await?;
                return Ok(remove_resource(runtime, resource).await?);
            }
        };
        let force = orphan.reason == OrphanReason::NoRun;
        match runtime.remove(&orphan.container, force).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Fails if the root has a file for the resource, so that its owner may be alive.
    async fn check_unrecorded(&self, resource: &LabeledResource) -> Result<()> {
        let LabeledResource { kind, name, .. } = resource;
        let (kind, name) = (*kind, name.clone());
        let check = move |root: &Root| match root.recorded_resources()?.contains(&name) {
            true => Err(Error::Runtime(RuntimeError::Conflict {
                operation: "remove the orphan",
                reason: format!("the root has a file for the {kind} {name}"),
            })),
            false => Ok(()),
        };
        self.context().on_disk("check", check).await
    }

    /// Kills and removes what belongs to other roots and is past its deadline: containers, networks
    /// and volumes.
    ///
    /// Use this where a root may never be opened again, such as on machines that exist for
    /// one job and share an engine. See [`ReapOptions`] for what is affected.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`] if the engine cannot list its
    /// containers, networks or volumes.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. A dropped call has reaped some of them.
    pub async fn reap(&self, options: ReapOptions) -> Result<ReapReport> {
        let context = self.context();
        let own = Some(context.root.id());
        Ok(options.run(&*context.runtime, own).await?)
    }
}

/// Returns the container as an orphan, unless a monitor or an operator handles it.
fn orphan(context: &Context, root: &Root, found: OwnedContainer) -> Option<OrphanedContainer> {
    let OwnedContainer {
        container,
        run,
        status,
    } = found;
    let reason = match root.has(&run) {
        false => OrphanReason::NoRun,
        true => match root.read_run(&run) {
            Ok(Some(file)) if is_leftover(context, root, &run, status, &file) => OrphanReason::Left,
            _ => return None,
        },
    };
    Some(OrphanedContainer {
        container,
        run,
        status,
        reason,
    })
}

/// Returns true if the container should have been removed after the seal of its run.
fn is_leftover(
    context: &Context,
    root: &Root,
    run: &RunId,
    status: ContainerStatus,
    file: &RunFile,
) -> bool {
    matches!(root.is_owned(run), Ok(false))
        && status != ContainerStatus::Running
        && file
            .seal
            .as_ref()
            .is_some_and(|seal| context.may_remove(seal, file.record.settings.keep))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_ended_only_past_its_margins() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let options = ReapOptions::new()
            .stop_after(minutes(10))
            .remove_after(minutes(60));
        let late = ReapOptions::new()
            .stop_after(minutes(60))
            .remove_after(minutes(10));
        let (removed, forced) = (
            Some(Due::Remove { force: false }),
            Some(Due::Remove { force: true }),
        );
        for (options, overdue, running, ended) in [
            (options, minutes(0), None, None),
            (options, minutes(10), None, None),
            (options, minutes(11), Some(Due::Kill), None),
            (options, minutes(60), Some(Due::Kill), None),
            (options, minutes(61), forced, removed),
            (late, minutes(11), None, removed),
            (late, minutes(61), forced, removed),
        ] {
            assert_eq!(options.due(ContainerStatus::Running, overdue), running);
            assert_eq!(options.due(ContainerStatus::Ended, overdue), ended);
            assert_eq!(options.due(ContainerStatus::Created, overdue), ended);
            assert_eq!(options.due(ContainerStatus::Removing, overdue), None);
        }
    }
}
