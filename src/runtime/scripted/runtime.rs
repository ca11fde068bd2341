//! The [`Runtime`] implementation of the scripted engine.

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use tokio::io::SimplexStream;
use tokio::time::Instant;

use super::call::Call;
use super::container::{CODE_ON_KILL, Container};
use super::engine::Scripted;
use super::fault::Break;
use super::input::Input;
use super::output;
use crate::error::RuntimeError;
use crate::outcome::Usage;
use crate::runtime::{
    Archive, AttachedOutput, Capabilities, Connection, ContainerStatus, Continuity, CreateRequest,
    Created, EngineInfo, ExecId, ExecInspection, Health, ImageInfo, InputWriter, Inspection,
    LabeledContainer, LabeledResource, LogFidelity, LogsRequest, OutputStream, OwnedContainer,
    ResourceRequest, Runtime, StartedExec, WaitStatus, unsupported,
};
use crate::spec::{
    ContainerId, ExecSpec, InvalidSpec, ResourceKind, RootId, RunSpec, RuntimeView, Stdin,
    WindowSize,
};

/// The exit code of a process that SIGTERM ended.
const CODE_ON_TERM: i64 = 143;
/// The bytes that a port that echoes holds until they are read.
const ECHO_BUFFER: usize = 1 << 16;

fn not_running(operation: &'static str) -> RuntimeError {
    RuntimeError::Conflict {
        operation,
        reason: "the container is not running".into(),
    }
}

impl Scripted {
    /// Returns the live output of a container or an exec, which breaks at `cut`.
    fn attached(&self, container: Container, cut: Option<(u64, Break)>) -> AttachedOutput {
        let end_markers = self.world().end_markers;
        let cut = cut.map(|(bytes, how)| match how {
            // The reader misses the marker.
            Break::End if end_markers => (bytes, Break::Error),
            how => (bytes, how),
        });
        let output = self.connections.stream(output::live(container, false), cut);
        let output = AttachedOutput::new(output);
        match end_markers {
            true => output.with_end_marker(),
            false => output,
        }
    }

    /// Returns a container that is placed.
    fn placed(&self, id: &ContainerId, operation: &'static str) -> Result<Container, RuntimeError> {
        let container = self.world().container(id)?;
        if container.is_placed() {
            return Ok(container);
        }
        Err(RuntimeError::Conflict {
            operation,
            reason: "the container is not placed".into(),
        })
    }
}

#[async_trait]
impl Runtime for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = Capabilities::NONE
            .with_attach_before_start()
            .with_logs()
            .with_stdin()
            .with_stdin_reattach()
            .with_exec()
            .with_exec_kill()
            .with_ports()
            .with_networks()
            .with_volumes()
            .with_images();
        match self.connects {
            true => capabilities.with_connect(),
            false => capabilities,
        }
    }

    async fn engine(&self) -> Result<EngineInfo, RuntimeError> {
        let fault = self.enter(Call::Engine).await?;
        fault.answer("query the engine's version")?;
        let engine = EngineInfo::new("Scripted", "1");
        Ok(match self.world().engine_id.clone() {
            Some(id) => engine.with_id(id),
            None => engine,
        })
    }

    fn validate(&self, _spec: &RunSpec) -> Result<(), InvalidSpec> {
        Ok(())
    }

    async fn prepare(&self, spec: &RunSpec) -> Result<(), RuntimeError> {
        let fault = self.enter(Call::Prepare).await?;
        self.world().pull(spec);
        self.world().check_image(spec)?;
        fault.answer("find the image")
    }

    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
        let fault = self.enter(Call::Create).await?;
        let container = {
            let mut world = self.world();
            world.check_image(request.spec)?;
            world.create(&request)?
        };
        fault.answer("create the container")?;
        Ok(Created::new(container))
    }

    async fn place(&self, id: &ContainerId, spec: &RunSpec) -> Result<(), RuntimeError> {
        let fault = self.enter(Call::Place).await?;
        let container = self.world().container(id)?;
        let (view, called) = (RuntimeView::new(spec), Instant::now());
        container
            .place(|progress| view.report_placement(progress))
            .await;
        self.world().delay(id, called.elapsed())?;
        fault.answer("place the container")
    }

    async fn attach(&self, id: &ContainerId, _tty: bool) -> Result<AttachedOutput, RuntimeError> {
        let fault = self.enter(Call::Attach).await?;
        let container = self.placed(id, "attach to the container")?;
        fault.answer("attach to the container")?;
        let cut = fault.cut.or(container.script.attachment);
        Ok(self.attached(container, cut))
    }

    async fn attach_running(
        &self,
        id: &ContainerId,
        _tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        const OPERATION: &str = "attach to the running container";
        let fault = self.enter(Call::AttachRunning).await?;
        let container = self.reach_node(id, OPERATION).await?;
        fault.answer(OPERATION)?;
        let started = container.life.borrow().started;
        let (started, _) = started.ok_or_else(|| not_running(OPERATION))?;
        let output = output::live_from_now(container, started);
        Ok(self.connections.stream(output, fault.cut))
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        const OPERATION: &str = "start the container";
        let fault = self.enter(Call::Start).await?;
        self.reach_node(id, OPERATION).await?;
        let container = self.placed(id, OPERATION)?;
        if let Some(reason) = container.script.start_error.clone() {
            return Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason,
            });
        }
        container.start();
        fault.answer(OPERATION)
    }

    async fn wait(&self, id: &ContainerId) -> Result<WaitStatus, RuntimeError> {
        const OPERATION: &str = "wait for the container";
        let fault = self.enter(Call::Wait).await?;
        let container = self.world().container(id)?;
        let mut life = container.life.subscribe();
        let end = async {
            tokio::select! {
                biased;
                // As Docker does for a container that was not started.
                _ = container.untracked() => Some(0),
                code = container.wait_end(&mut life) => code,
            }
        };
        let end = async {
            let code = end.await;
            container.reachable().await;
            let lost = container.life.borrow().lost;
            match lost {
                true => None,
                false => code,
            }
        };
        let code = self.connections.call(OPERATION, end).await?;
        fault.answer(OPERATION)?;
        Ok(WaitStatus::new(code))
    }

    async fn inspect(&self, id: &ContainerId) -> Result<Inspection, RuntimeError> {
        let fault = self.enter(Call::Inspect).await?;
        fault.answer("inspect the container")?;
        let container = self.world().container(id)?;
        let life = *container.life.borrow();
        let mut inspection = Inspection::new(container.status_in(life));
        if inspection.status != ContainerStatus::Created {
            inspection.started_at = life.started.map(|(_, wall)| wall);
        }
        if inspection.status == ContainerStatus::Ended
            && let (Some((started, wall)), Some((end, code))) = (life.started, container.end(life))
        {
            inspection.code = (!life.lost).then_some(code);
            inspection.finished_at = Some(wall.saturating_add(end - started));
        }
        if inspection.status == ContainerStatus::Running {
            inspection.ports = container.script.ports.clone();
        }
        inspection.unreachable_since = life.silent.map(|(since, _)| since);
        if life.lost {
            inspection.lost = self.world().lost.get(&container.run).cloned();
        }
        let changes = &container.script.health;
        inspection.health = (!changes.is_empty()).then(|| {
            let elapsed = life.started.map(|(started, _)| started.elapsed());
            let past = changes.iter().rfind(|(after, _)| elapsed >= Some(*after));
            past.map_or(Health::Starting, |&(_, result)| result)
        });
        inspection.health_output = container.script.health_output.clone();
        inspection.image_digest = Some("sha256:scripted".into());
        inspection.log.driver = "scripted".into();
        inspection.log.fidelity = container.has_log.then_some(LogFidelity::Lossless);
        Ok(inspection)
    }

    async fn continuity(&self, id: &ContainerId) -> Result<Continuity, RuntimeError> {
        let fault = self.enter(Call::Continuity).await?;
        fault.answer("list the engine's events")?;
        let world = self.world();
        let restarts = world.container(id)?.life.borrow().restarts;
        Ok(match world.restarts == restarts {
            true => Continuity::Unbroken,
            false => Continuity::Broken,
        })
    }

    async fn logs(
        &self,
        id: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        const OPERATION: &str = "read the container's log";
        let fault = self.enter(Call::Logs).await?;
        let container = self.reach_node(id, OPERATION).await?;
        fault.answer(OPERATION)?;
        if container.life.borrow().lost {
            return Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason: "the node of the container is gone".into(),
            });
        }
        if !container.has_log {
            return Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason: "the container has no log".into(),
            });
        }
        if request.follow {
            let cut = fault.cut.or(container.script.follow);
            return Ok(self
                .connections
                .stream(output::live(container, request.timestamps), cut));
        }
        if container.life.borrow().started.is_none() {
            return Ok(stream::empty().boxed());
        }
        // `End` truncates the log itself. The other breaks affect the stream.
        let (cut, max_bytes) = match container.script.log {
            Some((bytes, Break::End)) => (fault.cut, bytes),
            cut => (fault.cut.or(cut), u64::MAX),
        };
        let mut lines = output::log_lines(&container, max_bytes, request.timestamps);
        if let Some(tail) = request.tail {
            lines.drain(..lines.len().saturating_sub(tail as usize));
        }
        let lines = stream::iter(lines.into_iter().map(Ok)).boxed();
        Ok(self.connections.stream(lines, cut))
    }

    async fn log_has_exactly(
        &self,
        id: &ContainerId,
        _tty: bool,
        records: u64,
    ) -> Result<bool, RuntimeError> {
        let fault = self.enter(Call::LogHasExactly).await?;
        let container = self.world().container(id)?;
        fault.answer("count the records of the log")?;
        let bytes = match container.script.log {
            Some((bytes, Break::End)) => bytes,
            _ => u64::MAX,
        };
        let lines = output::log_lines(&container, bytes, false);
        Ok(container.has_log && lines.len() as u64 == records)
    }

    async fn stdin(&self, id: &ContainerId) -> Result<InputWriter, RuntimeError> {
        let fault = self.enter(Call::Stdin).await?;
        let container = self.placed(id, "attach to the container's input")?;
        fault.answer("attach to the container's input")?;
        let ends_input = container.stdin == Stdin::Pipe;
        Ok(Box::pin(Input::new(container, ends_input)))
    }

    async fn resize(&self, id: &ContainerId, size: WindowSize) -> Result<(), RuntimeError> {
        let fault = self.enter(Call::Resize).await?;
        {
            let mut world = self.world();
            world.container(id)?;
            world.sizes.push(size);
        }
        fault.answer("resize the container's terminal")
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<StartedExec, RuntimeError> {
        const OPERATION: &str = "run an exec in the container";
        let fault = self.enter(Call::Exec).await?;
        let container = self.reach_node(id, OPERATION).await?;
        if !container.is_running() {
            return Err(not_running(OPERATION));
        }
        let script = self.world().next_exec_scripts.pop_front();
        let script = script.unwrap_or_default();
        if let Some(reason) = script.start_error {
            return Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason,
            });
        }
        let settings = spec.settings("");
        let exec = Container::new("", container.root, container.run, script, &settings);
        let id = self.world().add_exec(exec.clone());
        if !spec.report_id(id.as_str()).await {
            return Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason: "the id of the exec is not recorded".into(),
            });
        }
        exec.start();
        fault.answer(OPERATION)?;
        let cut = fault.cut.or(exec.script.attachment);
        let output = self.attached(exec.clone(), cut);
        let started = StartedExec::new(id, output);
        Ok(match exec.stdin {
            Stdin::None => started,
            stdin => started.with_input(Box::pin(Input::new(exec, stdin == Stdin::Pipe))),
        })
    }

    async fn exec_inspect(&self, id: &ExecId) -> Result<ExecInspection, RuntimeError> {
        let fault = self.enter(Call::ExecInspect).await?;
        fault.answer("inspect the exec")?;
        let exec = self.world().exec(id)?;
        let life = *exec.life.borrow();
        Ok(match (exec.status_in(life), exec.end(life)) {
            (ContainerStatus::Ended, end) => ExecInspection::ended(end.map(|(_, code)| code)),
            _ => ExecInspection::RUNNING,
        })
    }

    async fn exec_kill(&self, _: &ContainerId, id: &ExecId) -> Result<(), RuntimeError> {
        let fault = self.enter(Call::ExecKill).await?;
        self.world().exec(id)?.exit(CODE_ON_KILL);
        fault.answer("kill the exec")
    }

    async fn exec_resize(&self, id: &ExecId, size: WindowSize) -> Result<(), RuntimeError> {
        let fault = self.enter(Call::Resize).await?;
        {
            let mut world = self.world();
            world.exec(id)?;
            world.sizes.push(size);
        }
        fault.answer("resize the exec's terminal")
    }

    async fn create_resource(&self, request: ResourceRequest<'_>) -> Result<(), RuntimeError> {
        let fault = self.enter(Call::CreateResource).await?;
        self.world().create_resource(&request)?;
        fault.answer("create the resource")
    }

    async fn remove_resource(&self, kind: ResourceKind, name: &str) -> Result<(), RuntimeError> {
        let fault = self.enter(Call::RemoveResource).await?;
        self.world().remove_resource(kind, name)?;
        fault.answer("remove the resource")
    }

    async fn find_resources(&self) -> Result<Vec<LabeledResource>, RuntimeError> {
        let fault = self.enter(Call::FindResources).await?;
        fault.answer("list the resources")?;
        Ok(self.world().resources.clone())
    }

    async fn signal(&self, id: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        const OPERATION: &str = "send a signal to the container";
        let fault = self.enter(Call::Signal).await?;
        let container = self.reach_node(id, OPERATION).await?;
        if !container.is_running() {
            return Err(not_running(OPERATION));
        }
        if signal == "SIGKILL" {
            container.exit(CODE_ON_KILL);
        } else if !container.script.ignores_term {
            container.exit(container.script.code_on_term.unwrap_or(CODE_ON_TERM));
        }
        fault.answer(OPERATION)
    }

    async fn remove(&self, id: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        const OPERATION: &str = "remove the container";
        let fault = self.enter(Call::Remove).await?;
        let container = self.reach_node(id, OPERATION).await?;
        if !force && container.is_running() {
            return Err(RuntimeError::Conflict {
                operation: OPERATION,
                reason: "the container is running".into(),
            });
        }
        self.world().containers.remove(id);
        container.remove();
        fault.answer(OPERATION)
    }

    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError> {
        let fault = self.enter(Call::Find).await?;
        fault.answer("list the containers")?;
        let world = self.world();
        let containers = world.containers.iter();
        let owned = containers.filter(|(_, container)| container.root == *root);
        let found = owned.map(|(id, container)| {
            OwnedContainer::new(id.clone(), container.run.clone(), container.status())
        });
        Ok(found.collect())
    }

    async fn find_all(&self) -> Result<Vec<LabeledContainer>, RuntimeError> {
        let fault = self.enter(Call::FindAll).await?;
        fault.answer("list the containers of all roots")?;
        let world = self.world();
        let found = world.containers.iter().map(|(id, container)| {
            let (root, run) = (container.root.clone(), container.run.clone());
            LabeledContainer {
                deadline: container.deadline,
                ..LabeledContainer::new(id.clone(), root, run, container.status())
            }
        });
        Ok(found.collect())
    }

    async fn stats(&self, id: &ContainerId) -> Result<Usage, RuntimeError> {
        const OPERATION: &str = "sample the container's usage";
        let fault = self.enter(Call::Stats).await?;
        fault.answer(OPERATION)?;
        let container = self.reach_node(id, OPERATION).await?;
        let life = *container.life.borrow();
        match (life.started, container.status_in(life)) {
            (Some((started, _)), ContainerStatus::Running) => {
                let cpu = started.elapsed().mul_f64(container.script.cpus);
                Ok(Usage::new(container.script.memory, cpu, 1))
            }
            _ => Err(not_running(OPERATION)),
        }
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        let fault = self.enter(Call::Images).await?;
        fault.answer("list the images")?;
        Ok(self.world().images())
    }

    async fn image_inspect(&self, image: &str) -> Result<ImageInfo, RuntimeError> {
        let fault = self.enter(Call::ImageInspect).await?;
        fault.answer("inspect the image")?;
        self.world().image(image)
    }

    async fn image_remove(&self, image: &str, force: bool) -> Result<(), RuntimeError> {
        let fault = self.enter(Call::ImageRemove).await?;
        self.world().remove_image(image, force)?;
        fault.answer("remove the image")
    }

    async fn copy_out(&self, _id: &ContainerId, _path: &str) -> Result<Archive, RuntimeError> {
        Err(unsupported(self.name(), "copy files out of a container"))
    }

    async fn copy_in(
        &self,
        _id: &ContainerId,
        _path: &str,
        _archive: Archive,
    ) -> Result<(), RuntimeError> {
        Err(unsupported(self.name(), "copy files into a container"))
    }

    async fn connect(&self, id: &ContainerId, port: u16) -> Result<Connection, RuntimeError> {
        const OPERATION: &str = "connect to the container's port";
        let fault = self.enter(Call::Connect).await?;
        if !self.connects {
            return Err(unsupported(self.name(), "connect to a container's port"));
        }
        let container = self.reach_node(id, OPERATION).await?;
        if !container.is_running() {
            return Err(not_running(OPERATION));
        }
        if !container.script.listens_on.contains(&port) {
            return Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason: format!("nothing listens on port {port}"),
            });
        }
        fault.answer(OPERATION)?;
        // Bytes written to it can be read from it.
        Ok(Connection::new(SimplexStream::new_unsplit(ECHO_BUFFER)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::scripted::{Fault, Script};
    use crate::spec::RunId;

    #[tokio::test]
    async fn a_lost_answer_fails_reads() {
        let engine = Scripted::new();
        engine.next(Script::new().until_stopped());
        let (root, run, spec) = (RootId::generate(), RunId::generate(), RunSpec::new("x"));
        let request = CreateRequest::new("name", &root, &run, &spec);
        let container = engine.create(request).await.unwrap().container;
        engine.start(&container).await.unwrap();

        engine.fault(Call::FindAll, Fault::AnswerLost);
        let lost = engine.find_all().await;
        assert!(matches!(lost, Err(RuntimeError::Broken { .. })), "{lost:?}");
        assert_eq!(engine.find_all().await.unwrap().len(), 1);

        engine.fault(Call::Stats, Fault::AnswerLost);
        let lost = engine.stats(&container).await;
        assert!(matches!(lost, Err(RuntimeError::Broken { .. })), "{lost:?}");
        engine.stats(&container).await.unwrap();
    }
}
