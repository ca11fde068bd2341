//! The scripted engine, and the methods with which a test controls it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use super::call::Call;
use super::connection::{Connections, Link};
use super::container::Container;
use super::fault::{Fault, PendingFault};
use super::script::Script;
use super::world::World;
use crate::error::RuntimeError;
use crate::spec::{ContainerId, RunId, WindowSize};

/// The timeout of each call that has one.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A runtime whose containers follow scripts.
///
/// Clones share one engine, which outlives its managers.
#[derive(Debug, Clone, Default)]
pub struct Scripted {
    world: Arc<Mutex<World>>,
    pub(super) connects: bool,
    pub(super) connections: Connections,
}

impl Scripted {
    /// Creates an engine without containers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`Capabilities::connect`](crate::runtime::Capabilities::connect), for this value and
    /// its later clones. Default: false.
    pub fn with_connect(mut self) -> Self {
        self.connects = true;
        self
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the script of the containers of `image`.
    ///
    /// A script of [`next`](Self::next) precedes it. The call restores an image that
    /// [`remove_image`](Self::remove_image) removed. The engine has every image, and
    /// [`Runtime::images`](crate::runtime::Runtime::images) lists those with a script.
    pub fn image(&self, image: impl Into<String>, script: Script) {
        let image = image.into();
        let mut world = self.world();
        world.restore_image(&image);
        world.image_scripts.insert(image, script);
    }

    /// Removes an image. The engine cannot pull it either.
    ///
    /// [`image`](Self::image) restores it.
    pub fn remove_image(&self, image: impl Into<String>) {
        self.world().missing_images.insert(image.into());
    }

    /// Queues the script of the next container.
    ///
    /// Default: the script of the [`image`](Self::image), else [`Script::new`].
    pub fn next(&self, script: Script) {
        self.world().next_scripts.push_back(script);
    }

    /// Queues the script of the next exec. Default: [`Script::new`].
    pub fn next_exec(&self, script: Script) {
        self.world().next_exec_scripts.push_back(script);
    }

    /// Sets the script of the container of `run`.
    ///
    /// It precedes all other scripts.
    pub fn script(&self, run: &RunId, script: Script) {
        self.world().run_scripts.insert(run.clone(), script);
    }

    /// Returns the sizes to which terminals were resized, in order.
    pub fn sizes(&self) -> Vec<WindowSize> {
        self.world().sizes.clone()
    }

    /// Queues a fault for the next call of this kind.
    pub fn fault(&self, call: Call, fault: Fault) {
        let mut world = self.world();
        world.faults.entry(call).or_default().push_back(fault);
    }

    /// Removes all queued faults.
    pub fn clear_faults(&self) {
        self.world().faults.clear();
    }

    /// Sets the id of the engine. Default: none.
    pub fn set_engine_id(&self, id: impl Into<String>) {
        self.world().engine_id = Some(id.into());
    }

    /// Sets [`AttachedOutput::end_marker`] of later attachments and execs. Default: false.
    ///
    /// With the marker, an attachment that [`Break::End`] cuts ends with an error.
    ///
    /// [`AttachedOutput::end_marker`]: crate::runtime::AttachedOutput::end_marker
    /// [`Break::End`]: super::Break::End
    pub fn set_end_markers(&self, end_markers: bool) {
        self.world().end_markers = end_markers;
    }

    /// Sets the state of the link.
    ///
    /// [`Link::Down`] also breaks all open connections.
    pub fn link(&self, link: Link) {
        self.connections.set(link);
    }

    /// Breaks all open streams and waits. The engine stays reachable.
    pub fn drop_connections(&self) {
        self.connections.drop_all();
    }

    /// Returns the number of calls of this kind, including those that failed.
    pub fn calls(&self, call: Call) -> u64 {
        self.world().calls.get(&call).copied().unwrap_or_default()
    }

    /// Returns the number of containers.
    pub fn containers(&self) -> usize {
        self.world().containers.len()
    }

    /// Restarts the engine.
    ///
    /// Containers continue to run. Calls and streams fail only if a [`fault`](Self::fault) makes
    /// them fail.
    pub fn restart(&self) {
        self.world().restarts += 1;
    }

    /// Restarts the engine, which loses track of the container of `run`.
    ///
    /// Docker does so if it is killed while it starts a container. The engine reports that the
    /// container was not started, although its script continues. It still writes the log of the
    /// container, and removes the container without an error.
    pub fn lose_track(&self, run: &RunId) {
        self.restart();
        for container in self.world().containers.values() {
            if container.run == *run {
                container.lose_track();
            }
        }
    }

    /// Silences the node of the container of `run`, as a network that is cut off does.
    ///
    /// The container continues to run, and its streams and calls wait. The engine reports the last
    /// status that it has seen, and [`Inspection::unreachable_since`].
    /// [`restore_node`](Self::restore_node) ends the silence.
    ///
    /// [`Inspection::unreachable_since`]: crate::runtime::Inspection::unreachable_since
    pub fn silence_node(&self, run: &RunId) {
        self.for_each_container(run, Container::silence);
    }

    /// Ends the silence of a node. Streams and calls continue.
    pub fn restore_node(&self, run: &RunId) {
        self.for_each_container(run, Container::restore);
    }

    /// Loses the container of `run` with its node: see
    /// [`Inspection::lost`](crate::runtime::Inspection::lost).
    pub fn lose_node(&self, run: &RunId, reason: impl Into<String>) {
        self.world().lost.insert(run.clone(), reason.into());
        self.for_each_container(run, Container::lose);
    }

    fn for_each_container(&self, run: &RunId, change: impl Fn(&Container)) {
        let world = self.world();
        let containers = world.containers.values();
        containers
            .filter(|container| container.run == *run)
            .for_each(change);
    }

    /// Returns a container whose node answers within the timeout of a call.
    pub(super) async fn reach_node(
        &self,
        id: &ContainerId,
        operation: &'static str,
    ) -> Result<Container, RuntimeError> {
        let container = self.world().container(id)?;
        let reached = timeout(CALL_TIMEOUT, container.reachable()).await;
        reached.map_err(|_| RuntimeError::Timeout {
            operation,
            after: CALL_TIMEOUT,
        })?;
        self.world().container(id)
    }

    /// Moves the deadlines of all containers, networks and volumes into the past by `by`.
    pub fn advance_deadlines(&self, by: Duration) {
        let mut world = self.world();
        let World {
            containers,
            resources,
            ..
        } = &mut *world;
        let containers = containers.values_mut().map(|found| &mut found.deadline);
        let resources = resources.iter_mut().map(|found| &mut found.deadline);
        for deadline in containers.chain(resources) {
            *deadline = deadline.map(|deadline| deadline.saturating_sub(by));
        }
    }

    /// Removes the container of `run` with force, as another client would.
    pub fn remove_externally(&self, run: &RunId) {
        self.world().containers.retain(|_, container| {
            let is_other = container.run != *run;
            if !is_other {
                container.remove();
            }
            is_other
        });
    }

    /// Starts the container of `run` again, as another client would.
    pub fn start_externally(&self, run: &RunId) {
        let world = self.world();
        for container in world.containers.values() {
            if container.run == *run {
                container.start_again();
            }
        }
    }

    /// Counts a call, waits until the engine answers, and returns the call's fault.
    pub(super) async fn enter(&self, call: Call) -> Result<PendingFault, RuntimeError> {
        let fault = self.world().count(call);
        let limit = (!matches!(call, Call::Wait | Call::Place)).then_some(CALL_TIMEOUT);
        self.connections.reach(limit).await?;
        PendingFault::new(fault).await
    }
}
