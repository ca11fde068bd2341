//! A runtime and a sink that kill this process at a given point of a call.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use moat::audit::{Batch, Start};
use moat::outcome::Usage;
use moat::runtime::{
    Archive, AttachedOutput, Capabilities, Connection, Continuity, CreateRequest, Created,
    EngineInfo, ExecId, ExecInspection, ImageInfo, InputWriter, Inspection, LabeledContainer,
    LabeledResource, LogsRequest, OutputStream, OwnedContainer, ResourceRequest, Runtime,
    RuntimeError, StartedExec, WaitStatus,
};
use moat::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};
use moat::spec::{ContainerId, ExecSpec, ResourceKind, RootId, WindowSize};
use moat::{Result, RunSpec, Seal};
use rustix::process::{Signal, getpid, kill_process};

/// The point at which this process is killed.
#[derive(Debug)]
pub struct Trap {
    /// `before`, `during` or `after` the call.
    when: String,
    call: String,
    nth: u32,
    after: Duration,
    /// The directory with the gate that a long run waits for.
    gate: PathBuf,
    reached: AtomicU32,
}

impl Trap {
    pub fn new(point: &str, nth: u32, after_ms: u64, gate: &Path) -> Self {
        let (when, call) = point.split_once(' ').unwrap();
        Self {
            when: when.into(),
            call: call.into(),
            nth,
            after: Duration::from_millis(after_ms),
            gate: gate.to_owned(),
            reached: AtomicU32::new(0),
        }
    }

    fn springs(&self, when: &str, call: &str) -> bool {
        self.when == when
            && self.call == call
            && self.reached.fetch_add(1, Ordering::Relaxed) + 1 == self.nth
    }
}

/// Ends this process as SIGKILL does.
fn die() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    loop {
        std::thread::park();
    }
}

/// A runtime or a sink that kills this process at the point of the trap.
#[derive(Debug)]
pub struct Saboteur<T> {
    inner: T,
    trap: Arc<Option<Trap>>,
}

impl<T> Saboteur<T> {
    pub fn new(inner: T, trap: &Arc<Option<Trap>>) -> Self {
        Self {
            inner,
            trap: Arc::clone(trap),
        }
    }

    fn is_trapped_at(&self, call: &str) -> bool {
        let trap = self.trap.as_ref().as_ref();
        trap.is_some_and(|trap| trap.call == call)
    }

    fn reach(&self, when: &str, call: &str) {
        if self
            .trap
            .as_ref()
            .as_ref()
            .is_some_and(|trap| trap.springs(when, call))
        {
            die();
        }
    }

    async fn call<R>(&self, name: &str, call: impl Future<Output = R>) -> R {
        self.reach("before", name);
        let dies = match self.trap.as_ref() {
            Some(trap) if trap.springs("during", name) => Some(trap.after),
            _ => None,
        };
        let result = match dies {
            Some(after) => tokio::select! {
                _ = call => die(),
                () = tokio::time::sleep(after) => die(),
            },
            None => call.await,
        };
        self.reach("after", name);
        result
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: Runtime> Runtime for Saboteur<T> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn host(&self) -> String {
        self.inner.host()
    }

    async fn engine(&self) -> Result<EngineInfo, RuntimeError> {
        self.inner.engine().await
    }

    fn validate(&self, spec: &RunSpec) -> Result<(), moat::spec::InvalidSpec> {
        self.inner.validate(spec)
    }

    async fn prepare(&self, spec: &RunSpec) -> Result<(), RuntimeError> {
        self.call("prepare", self.inner.prepare(spec)).await
    }

    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
        self.call("create", self.inner.create(request)).await
    }

    async fn place(&self, container: &ContainerId, spec: &RunSpec) -> Result<(), RuntimeError> {
        self.inner.place(container, spec).await
    }

    async fn attach(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<AttachedOutput, RuntimeError> {
        let mut output = self.call("tap", self.inner.attach(container, tty)).await?;
        if self.is_trapped_at("evidence") {
            // A marked end needs no other evidence.
            output.end_marker = false;
        }
        Ok(output)
    }

    async fn attach_running(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        self.inner.attach_running(container, tty).await
    }

    async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        self.call("start", self.inner.start(container)).await
    }

    async fn wait(&self, container: &ContainerId) -> Result<WaitStatus, RuntimeError> {
        if let Some(trap) = self.trap.as_ref()
            && (trap.when.as_str(), trap.call.as_str()) == ("after", "wait")
        {
            // Not before something waits for the exit.
            std::fs::write(trap.gate.join("go"), "").unwrap();
        }
        self.call("wait", self.inner.wait(container)).await
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Inspection, RuntimeError> {
        self.call("inspect", self.inner.inspect(container)).await
    }

    async fn continuity(&self, container: &ContainerId) -> Result<Continuity, RuntimeError> {
        self.inner.continuity(container).await
    }

    async fn stats(&self, container: &ContainerId) -> Result<Usage, RuntimeError> {
        self.inner.stats(container).await
    }

    async fn log_has_exactly(
        &self,
        container: &ContainerId,
        tty: bool,
        records: u64,
    ) -> Result<bool, RuntimeError> {
        self.inner.log_has_exactly(container, tty, records).await
    }

    async fn logs(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        let name = match request {
            LogsRequest { follow: true, .. } => "follow",
            _ if self.is_trapped_at("evidence") => "evidence",
            _ => "replay",
        };
        self.reach("before", name);
        let stream = self.inner.logs(container, request).await?;
        self.reach("after", name);
        let trap = Arc::clone(&self.trap);
        Ok(stream
            .inspect(move |_| {
                if trap
                    .as_ref()
                    .as_ref()
                    .is_some_and(|trap| trap.springs("during", name))
                {
                    die();
                }
            })
            .boxed())
    }

    async fn stdin(&self, container: &ContainerId) -> Result<InputWriter, RuntimeError> {
        self.call("stdin", self.inner.stdin(container)).await
    }

    async fn resize(&self, container: &ContainerId, size: WindowSize) -> Result<(), RuntimeError> {
        self.inner.resize(container, size).await
    }

    async fn exec(
        &self,
        container: &ContainerId,
        spec: &ExecSpec,
    ) -> Result<StartedExec, RuntimeError> {
        self.call("exec", self.inner.exec(container, spec)).await
    }

    async fn exec_inspect(&self, exec: &ExecId) -> Result<ExecInspection, RuntimeError> {
        self.inner.exec_inspect(exec).await
    }

    async fn exec_kill(&self, container: &ContainerId, exec: &ExecId) -> Result<(), RuntimeError> {
        self.inner.exec_kill(container, exec).await
    }

    async fn exec_resize(&self, exec: &ExecId, size: WindowSize) -> Result<(), RuntimeError> {
        self.inner.exec_resize(exec, size).await
    }

    async fn create_resource(&self, request: ResourceRequest<'_>) -> Result<(), RuntimeError> {
        self.inner.create_resource(request).await
    }

    async fn remove_resource(&self, kind: ResourceKind, name: &str) -> Result<(), RuntimeError> {
        self.inner.remove_resource(kind, name).await
    }

    async fn find_resources(&self) -> Result<Vec<LabeledResource>, RuntimeError> {
        self.inner.find_resources().await
    }

    async fn signal(&self, container: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        self.inner.signal(container, signal).await
    }

    async fn remove(&self, container: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        self.call("remove", self.inner.remove(container, force))
            .await
    }

    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError> {
        self.call("find", self.inner.find(root)).await
    }

    async fn find_all(&self) -> Result<Vec<LabeledContainer>, RuntimeError> {
        self.inner.find_all().await
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        self.inner.images().await
    }

    async fn image_inspect(&self, image: &str) -> Result<ImageInfo, RuntimeError> {
        self.inner.image_inspect(image).await
    }

    async fn image_remove(&self, image: &str, force: bool) -> Result<(), RuntimeError> {
        self.inner.image_remove(image, force).await
    }

    async fn copy_out(&self, container: &ContainerId, path: &str) -> Result<Archive, RuntimeError> {
        self.inner.copy_out(container, path).await
    }

    async fn copy_in(
        &self,
        container: &ContainerId,
        path: &str,
        archive: Archive,
    ) -> Result<(), RuntimeError> {
        self.inner.copy_in(container, path, archive).await
    }

    async fn connect(
        &self,
        container: &ContainerId,
        port: u16,
    ) -> Result<Connection, RuntimeError> {
        self.inner.connect(container, port).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: LogSink> LogSink for Saboteur<T> {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        let log = self.call("open", self.inner.open(place, start)).await?;
        Ok(Box::new(Saboteur::new(log, &self.trap)))
    }

    async fn resume(&self, place: &RunPlace, visit: RecordVisitor) -> Result<Resumed> {
        let resumed = self.call("resume", self.inner.resume(place, visit)).await?;
        Ok(match resumed {
            Resumed::Open { log, torn } => Resumed::Open {
                log: Box::new(Saboteur::new(log, &self.trap)),
                torn,
            },
            other => other,
        })
    }

    fn path(&self, place: &RunPlace) -> Option<PathBuf> {
        self.inner.path(place)
    }

    #[cfg(feature = "sign")]
    fn signing_key(&self) -> Option<moat::sign::SigningKey> {
        self.inner.signing_key()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl RunLog for Saboteur<Box<dyn RunLog>> {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        self.reach("before", "append");
        self.inner.append(batch).await?;
        self.reach("after", "append");
        Ok(())
    }

    async fn sync(&mut self) -> Result<()> {
        self.inner.sync().await
    }

    async fn seal(&mut self, seal: Seal) -> Result<Seal> {
        self.reach("before", "seal");
        let seal = self.inner.seal(seal).await?;
        self.reach("after", "seal");
        Ok(seal)
    }
}
