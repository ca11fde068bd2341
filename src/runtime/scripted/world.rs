//! The state of the scripted engine.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::call::Call;
use super::container::Container;
use super::fault::Fault;
use super::script::Script;
use crate::error::RuntimeError;
use crate::runtime::{CreateRequest, ExecId};
use crate::spec::{ContainerId, RunId, RunSpec, WindowSize};

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) next_scripts: VecDeque<Script>,
    pub(super) run_scripts: HashMap<RunId, Script>,
    pub(super) image_scripts: HashMap<String, Script>,
    pub(super) missing_images: HashSet<String>,
    pub(super) faults: HashMap<Call, VecDeque<Fault>>,
    pub(super) calls: HashMap<Call, u64>,
    pub(super) containers: HashMap<ContainerId, Container>,
    pub(super) next_exec_scripts: VecDeque<Script>,
    execs: HashMap<ExecId, Container>,
    pub(super) sizes: Vec<WindowSize>,
    /// The number of containers and execs that were created.
    created: u64,
    pub(super) restarts: u64,
    pub(super) engine_id: Option<String>,
    /// The reason for each run whose container is gone with its node.
    pub(super) lost: HashMap<RunId, String>,
    pub(super) end_markers: bool,
}

impl World {
    /// Counts a call, and takes its fault from the queue.
    pub(super) fn count(&mut self, call: Call) -> Option<Fault> {
        *self.calls.entry(call).or_default() += 1;
        self.faults.get_mut(&call).and_then(VecDeque::pop_front)
    }

    pub(super) fn check_image(&self, spec: &RunSpec) -> Result<(), RuntimeError> {
        let image = &spec.settings().image;
        if self.missing_images.contains(image) {
            return Err(RuntimeError::NoSuchImage {
                image: image.clone(),
                reason: "the test removed it".into(),
            });
        }
        Ok(())
    }

    pub(super) fn create(
        &mut self,
        request: &CreateRequest<'_>,
    ) -> Result<ContainerId, RuntimeError> {
        let has_name = |container: &Container| container.name == request.name;
        if self.containers.values().any(has_name) {
            return Err(RuntimeError::Conflict {
                operation: "create the container",
                reason: format!("the name {} is in use", request.name),
            });
        }
        self.created += 1;
        let id = ContainerId::new(format!("scripted-{}", self.created));
        let settings = request.spec.settings();
        let script = match self.run_scripts.get(request.run) {
            Some(script) => script.clone(),
            None => {
                let of_image = self.image_scripts.get(&settings.image).cloned();
                self.next_scripts
                    .pop_front()
                    .or(of_image)
                    .unwrap_or_default()
            }
        };
        let (root, run) = (request.root.clone(), request.run.clone());
        let mut container = Container::new(request.name, root, run, script, settings);
        container.deadline = request.deadline;
        container
            .life
            .send_modify(|life| life.restarts = self.restarts);
        self.containers.insert(id.clone(), container);
        Ok(id)
    }

    pub(super) fn add_exec(&mut self, exec: Container) -> ExecId {
        self.created += 1;
        let id = ExecId::new(format!("exec-{}", self.created));
        self.execs.insert(id.clone(), exec);
        id
    }

    pub(super) fn container(&self, id: &ContainerId) -> Result<Container, RuntimeError> {
        let container = self.containers.get(id).cloned();
        container.ok_or_else(|| RuntimeError::NotFound {
            operation: "find the container",
            reason: format!("no such container: {id}"),
        })
    }

    /// Advances the deadline of a container by the time of its placement.
    pub(super) fn delay(&mut self, id: &ContainerId, by: Duration) -> Result<(), RuntimeError> {
        self.container(id)?;
        if let Some(container) = self.containers.get_mut(id) {
            let deadline = container.deadline;
            container.deadline = deadline.map(|deadline| deadline.saturating_add(by));
        }
        Ok(())
    }

    pub(super) fn exec(&self, id: &ExecId) -> Result<Container, RuntimeError> {
        let exec = self.execs.get(id).cloned();
        exec.ok_or_else(|| RuntimeError::NotFound {
            operation: "find the exec",
            reason: format!("no such exec: {id}"),
        })
    }
}
