//! Groups: the networks and volumes that a manager owns, and the runs that end with them.
//!
//! A network or a volume outside of a group is a group without members. Each group has a file in the
//! root, which its owner keeps locked. The file exists before the engine is asked for anything, so
//! the next opening of the root finds what a dead owner has left.

mod members;
mod recover;
mod removal;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Result, RuntimeError};
use crate::monitor::context::Context;
use crate::monitor::entry::lock;
use crate::monitor::wait::Backoff;
use crate::root::{GroupRecord, Lock};
use crate::runtime::ResourceRequest;
use crate::spec::{GroupId, ResourceKind, ResourceSpec};
use crate::timestamp::Timestamp;

pub(crate) use self::recover::{end_unused, recover};

/// The time after a request that is not answered in which the engine may still carry it out.
///
/// A loaded engine takes over 30 s for a creation.
const LATE_CREATION_PERIOD: Duration = Duration::from_secs(75);

/// The groups of a manager, by their ids.
pub(crate) type Groups = std::collections::HashMap<GroupId, Arc<OwnedGroup>>;

/// A group that this manager owns.
#[derive(Debug)]
pub(crate) struct OwnedGroup {
    pub(crate) record: GroupRecord,
    /// `None` once this manager has given up the group.
    lock: Mutex<Option<Lock>>,
    /// The time until which the engine may carry out a request for a resource that it has not
    /// answered; `None`: it has answered all. Held while the engine is asked.
    creation: tokio::sync::Mutex<Option<Instant>>,
    /// Set once no handle is left, before the members are stopped. From then on, no member starts.
    is_ending: AtomicBool,
    /// True once the group has ended. Held while it is being ended.
    is_ended: tokio::sync::Mutex<bool>,
}

impl OwnedGroup {
    fn new(record: GroupRecord, lock: Lock) -> Self {
        Self {
            record,
            lock: Mutex::new(Some(lock)),
            creation: tokio::sync::Mutex::default(),
            is_ending: AtomicBool::new(false),
            is_ended: tokio::sync::Mutex::new(false),
        }
    }

    /// Returns a group whose owner has died.
    fn recovered(record: GroupRecord, lock: Lock) -> Self {
        let age = Timestamp::now().since(record.created);
        let rest = LATE_CREATION_PERIOD.checked_sub(age);
        Self {
            creation: tokio::sync::Mutex::new(rest.map(|rest| Instant::now() + rest)),
            is_ending: AtomicBool::new(true),
            ..Self::new(record, lock)
        }
    }

    /// Returns true if a handle of the group exists. Only then can a run become a member.
    pub(crate) fn has_owner(&self) -> bool {
        !self.is_ending.load(Ordering::Acquire)
    }

    /// Ends the group: stops its members, waits for the runs that use its resources, and removes the
    /// resources.
    ///
    /// Concurrent calls end the group once. After an error, the group keeps its file, and another
    /// call or the next opening of the root tries again. A missing resource that the engine may
    /// still create is an error, too.
    pub(crate) async fn end(&self, context: &Context) -> Result<()> {
        self.is_ending.store(true, Ordering::Release);
        let mut is_ended = self.is_ended.lock().await;
        if *is_ended {
            return Ok(());
        }
        if lock(&self.lock).is_none() {
            return Err(Error::Closed);
        }
        // A creation in progress stops after its next answer.
        drop(self.creation.lock().await);
        if self.record.has_members {
            members::stop_all(context, &self.record).await?;
        }
        members::wait_for_users(context, &self.record).await;
        self.remove_resources(context).await?;
        let group = self.record.group.clone();
        let removed = context.on_disk("remove a group from", move |root| root.remove_group(&group));
        removed.await?;
        *is_ended = true;
        context.groups().remove(&self.record.group);
        Ok(())
    }

    /// Ends the group, and tries again for as long as the engine may create a resource.
    pub(crate) async fn end_patiently(&self, context: &Context) -> Result<()> {
        let mut backoff = Backoff::new();
        loop {
            let may_appear = self.may_appear().await;
            let ended = self.end(context).await;
            if ended.is_ok() || !may_appear {
                return ended;
            }
            backoff.pause().await;
        }
    }

    /// Returns true if the engine may still create a resource of the group.
    async fn may_appear(&self) -> bool {
        let late = *self.creation.lock().await;
        late.is_some_and(|until| Instant::now() < until)
    }

    /// Gives up the group. Any manager can then take it over.
    pub(crate) fn release(&self) {
        *lock(&self.lock) = None;
    }

    /// Returns true if a run of this manager uses the group.
    pub(crate) async fn is_used(&self, context: &Context) -> bool {
        members::is_used(context, &self.record).await
    }
}

impl Context {
    pub(crate) fn groups(&self) -> MutexGuard<'_, Groups> {
        lock(&self.groups)
    }

    /// Records a new group. The engine is not asked for its resources yet.
    ///
    /// The end of a group with members stops them.
    pub(crate) async fn record_group(
        &self,
        resources: &[ResourceSpec],
        has_members: bool,
    ) -> Result<Arc<OwnedGroup>> {
        let kinds: Vec<_> = resources.iter().map(|spec| spec.kind).collect();
        self.check_supported(&kinds)?;
        let engine_id = match kinds.is_empty() {
            true => None,
            false => self.ask_engine().await?.id,
        };
        let record = GroupRecord {
            v: 1,
            group: GroupId::generate(),
            root: self.root.id().clone(),
            created: Timestamp::now(),
            runtime: self.runtime.name().to_owned(),
            engine_id,
            resources: kinds,
            has_members,
        };
        let created = self.on_disk("create a group in", move |root| {
            let lock = root.create_group(&record)?;
            Ok(Arc::new(OwnedGroup::new(record, lock)))
        });
        let group = created.await?;
        let id = group.record.group.clone();
        self.groups().insert(id, Arc::clone(&group));
        Ok(group)
    }

    fn check_supported(&self, kinds: &[ResourceKind]) -> Result<(), RuntimeError> {
        let capabilities = self.runtime.capabilities();
        for kind in kinds {
            let (is_supported, operation) = match kind {
                ResourceKind::Network => (capabilities.networks, "create a network"),
                ResourceKind::Volume => (capabilities.volumes, "create a volume"),
            };
            if !is_supported {
                let runtime = self.runtime.name();
                return Err(RuntimeError::Unsupported { runtime, operation });
            }
        }
        Ok(())
    }

    /// Creates the resources of a recorded group.
    pub(crate) async fn create_resources(
        &self,
        group: &OwnedGroup,
        resources: &[ResourceSpec],
    ) -> Result<()> {
        let mut late = group.creation.lock().await;
        let record = &group.record;
        let name = record.resource_name();
        for spec in resources {
            let mut request = ResourceRequest::new(spec.kind, &name, &record.root, &spec.labels);
            let deadline = |after| record.created.saturating_add(after);
            request.deadline = spec.expires_after.map(deadline);
            request.internal = spec.internal;
            self.check_group_open(group)?;
            // If this future is dropped, the request is not answered.
            *late = Some(Instant::now() + LATE_CREATION_PERIOD);
            let created = self.runtime.create_resource(request).await;
            let is_answered = created
                .as_ref()
                .err()
                .is_none_or(RuntimeError::is_definitive);
            *late = (!is_answered).then(|| Instant::now() + LATE_CREATION_PERIOD);
            created?;
        }
        self.check_group_open(group)
    }

    /// Fails if the manager is shut down, or the group is being ended.
    fn check_group_open(&self, group: &OwnedGroup) -> Result<()> {
        // A shutdown refuses new groups before it ends the groups that exist.
        let is_stopping = self.stopping.load(Ordering::Acquire) > 0;
        if self.closing.is_cancelled() || is_stopping || !group.has_owner() {
            return Err(Error::Closed);
        }
        Ok(())
    }
}
