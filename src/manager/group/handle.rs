//! The end of a group with its handle.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::monitor::entry::{Role, lock};
use crate::monitor::group::OwnedGroup;
use crate::spec::ResourceSpec;

/// The longest time for which `Drop` waits, in addition to the grace periods of the members.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time for which `Drop` waits.
const MAX_DROP_TIMEOUT: Duration = Duration::from_secs(3600);

/// The grace periods of the members.
#[derive(Debug, Default)]
pub(super) struct Graces {
    /// The longest one of a run. The runs are stopped at once.
    longest: Duration,
    /// The sum of those of the services, which are stopped one by one.
    services: Duration,
}

impl Graces {
    pub(super) fn add_run(&mut self, grace: Duration) {
        self.longest = self.longest.max(grace);
    }

    pub(super) fn add_service(&mut self, grace: Duration) {
        self.services = self.services.saturating_add(grace);
    }

    fn drop_timeout(&self) -> Duration {
        let graces = self.longest.saturating_add(self.services);
        graces.saturating_add(REMOVAL_TIMEOUT).min(MAX_DROP_TIMEOUT)
    }
}

/// A group that ends when the handle is dropped.
#[derive(Debug)]
pub(super) struct GroupHandle {
    pub(super) manager: Manager,
    pub(super) group: Arc<OwnedGroup>,
    pub(super) name: String,
    pub(super) graces: Mutex<Graces>,
    is_created: bool,
    has_ended: bool,
}

impl GroupHandle {
    /// Records a group, and creates its resources.
    ///
    /// A dropped call ends the group.
    pub(super) async fn create(
        manager: &Manager,
        resources: Vec<ResourceSpec>,
        has_members: bool,
    ) -> Result<Self> {
        resources.iter().try_for_each(ResourceSpec::validate)?;
        manager.check_open(Role::default())?;
        let context = manager.context();
        let group = context.record_group(&resources, has_members).await?;
        let mut handle = Self {
            manager: manager.clone(),
            name: group.record.resource_name(),
            group,
            graces: Mutex::default(),
            is_created: false,
            has_ended: false,
        };
        if let Err(error) = context.create_resources(&handle.group, &resources).await {
            if matches!(&error, Error::Runtime(error) if error.is_definitive()) {
                // The error of the creation says more than one of the removal.
                let _ = handle.end().await;
            }
            return Err(error);
        }
        handle.is_created = true;
        Ok(handle)
    }

    /// Ends the group. A dropped call ends it as dropping the handle does.
    pub(super) async fn end(&mut self) -> Result<()> {
        let ended = self.group.end(self.manager.context()).await;
        self.has_ended = true;
        ended
    }
}

impl Drop for GroupHandle {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let (ended, end) = mpsc::channel();
        let group = Arc::clone(&self.group);
        let manager = self.manager.clone();
        let tasks = &self.manager.context().tasks;
        tasks.spawn(end_on_drop(manager, group, ended));
        // Nothing waits for a group whose creation has failed.
        if tasks.is_dedicated() && self.is_created {
            let timeout = lock(&self.graces).drop_timeout();
            let _ = end.recv_timeout(timeout);
        }
    }
}

/// Ends a group. Dropping `waiting` ends the wait of the thread that dropped the handle.
async fn end_on_drop(manager: Manager, group: Arc<OwnedGroup>, waiting: Sender<()>) {
    let context = Arc::clone(manager.context());
    // The manager stays open until the group has ended.
    let mut kept = Some((manager, waiting));
    let end = async {
        // The runs that use a network without members are not stopped, and may run for long. They
        // keep neither the thread nor the manager.
        if !group.record.has_members && group.is_used(&context).await {
            kept = None;
        }
        group.end_patiently(&context).await
    };
    if let Some(Err(error)) = context.closing.run_until_cancelled(end).await {
        let id = &group.record.group;
        tracing::warn!(group = %id, error = %error.chain(), "cannot end a group");
    }
    drop(kept);
}
