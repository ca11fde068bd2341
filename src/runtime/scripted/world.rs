//! The state of the scripted engine.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::call::Call;
use super::container::Container;
use super::fault::Fault;
use super::script::Script;
use crate::error::RuntimeError;
use crate::runtime::{CreateRequest, ExecId, ImageInfo, LabeledResource, ResourceRequest};
use crate::spec::{ContainerId, Pull, ResourceKind, RunId, RunSpec, WindowSize};

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) next_scripts: VecDeque<Script>,
    pub(super) run_scripts: HashMap<RunId, Script>,
    pub(super) image_scripts: HashMap<String, Script>,
    /// Images that the engine cannot pull.
    pub(super) missing_images: HashSet<String>,
    /// Images that a call removed, and that a pull restores.
    removed_images: HashSet<String>,
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
    pub(super) resources: Vec<LabeledResource>,
}

impl World {
    /// Counts a call, and takes its fault from the queue.
    pub(super) fn count(&mut self, call: Call) -> Option<Fault> {
        *self.calls.entry(call).or_default() += 1;
        self.faults.get_mut(&call).and_then(VecDeque::pop_front)
    }

    pub(super) fn check_image(&self, spec: &RunSpec) -> Result<(), RuntimeError> {
        let image = &spec.settings().image;
        if self.has_image(image) {
            return Ok(());
        }
        Err(RuntimeError::NoSuchImage {
            image: image.clone(),
            reason: "it was removed".into(),
        })
    }

    pub(super) fn restore_image(&mut self, image: &str) {
        self.missing_images.remove(image);
        self.removed_images.remove(image);
    }

    fn has_image(&self, image: &str) -> bool {
        !self.missing_images.contains(image) && !self.removed_images.contains(image)
    }

    /// Pulls an image that was removed, if its policy allows a pull.
    pub(super) fn pull(&mut self, spec: &RunSpec) {
        if spec.settings().pull != Pull::Never {
            self.removed_images.remove(&spec.settings().image);
        }
    }

    /// Returns the images that have a script.
    pub(super) fn images(&self) -> Vec<ImageInfo> {
        let mut names: Vec<_> = self.image_scripts.keys().collect();
        names.retain(|name| self.has_image(name));
        names.sort();
        names.into_iter().map(|name| image_info(name)).collect()
    }

    pub(super) fn image(&self, name: &str) -> Result<ImageInfo, RuntimeError> {
        match self.has_image(name) {
            true => Ok(image_info(name)),
            false => Err(RuntimeError::NotFound {
                operation: "find the image",
                reason: format!("no such image: {name}"),
            }),
        }
    }

    pub(super) fn remove_image(&mut self, name: &str, force: bool) -> Result<(), RuntimeError> {
        self.image(name)?;
        let mut containers = self.containers.values();
        if !force && containers.any(|container| container.image == name) {
            return Err(RuntimeError::Conflict {
                operation: "remove the image",
                reason: format!("{name}: a container uses it; remove the container first"),
            });
        }
        self.removed_images.insert(name.to_owned());
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

    pub(super) fn create_resource(
        &mut self,
        request: &ResourceRequest<'_>,
    ) -> Result<(), RuntimeError> {
        if self.resource(request.kind, request.name).is_some() {
            return Err(RuntimeError::Conflict {
                operation: "create the resource",
                reason: format!("the name {} is in use", request.name),
            });
        }
        let mut resource = LabeledResource::new(request.kind, request.name, request.root.clone());
        resource.deadline = request.deadline;
        self.resources.push(resource);
        Ok(())
    }

    /// Removes a resource that no container uses.
    pub(super) fn remove_resource(
        &mut self,
        kind: ResourceKind,
        name: &str,
    ) -> Result<(), RuntimeError> {
        const OPERATION: &str = "remove the resource";
        let Some(at) = self.resource(kind, name) else {
            return Err(RuntimeError::NotFound {
                operation: OPERATION,
                reason: format!("no such {kind}: {name}"),
            });
        };
        let uses = |container: &Container| {
            let used = container.resources.iter();
            let uses = used
                .filter(|(used, _)| *used == kind)
                .any(|(_, used)| used == name);
            // An ended container has left its network, and still has its volumes.
            uses && (kind == ResourceKind::Volume || container.is_running())
        };
        if self.containers.values().any(uses) {
            return Err(RuntimeError::Conflict {
                operation: OPERATION,
                reason: format!("a container uses the {kind} {name}"),
            });
        }
        self.resources.remove(at);
        Ok(())
    }

    fn resource(&self, kind: ResourceKind, name: &str) -> Option<usize> {
        let is_it = |resource: &LabeledResource| resource.kind == kind && resource.name == name;
        self.resources.iter().position(is_it)
    }
}

fn image_info(name: &str) -> ImageInfo {
    ImageInfo::new(format!("scripted:{name}"))
        .with_tag(name)
        .with_platform("linux/amd64")
}
