//! A custom runtime that wraps another one and forbids privileged containers.
//!
//! It runs the conformance suite on itself, with a scripted engine:
//! `cargo run --example custom_runtime --features conformance,testing`.

use std::sync::Arc;

use moat::conformance::{self, Behavior, RuntimeHarness, Unsupported};
use moat::runtime::scripted::Scripted;
use moat::runtime::{RuntimeError, *};
use moat::spec::{ContainerId as Id, InvalidSpec, RootId};
use moat::{RunId, RunSpec};

#[derive(Debug, Clone)]
struct Unprivileged<R>(R);

type Result<T, E = RuntimeError> = std::result::Result<T, E>;

#[rustfmt::skip] // most methods forward one call
#[async_trait::async_trait]
impl<R: Runtime> Runtime for Unprivileged<R> {
    fn validate(&self, spec: &RunSpec) -> std::result::Result<(), InvalidSpec> {
        if spec.settings().privileged {
            return Err(InvalidSpec::new("privileged", "the policy forbids it"));
        }
        self.0.validate(spec)
    }

    fn name(&self) -> &'static str { "unprivileged" }
    /// Only what is forwarded below: no input and no execs.
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE.with_attach_before_start().with_logs()
    }

    async fn engine(&self) -> Result<EngineInfo> { self.0.engine().await }
    async fn prepare(&self, spec: &RunSpec) -> Result<()> { self.0.prepare(spec).await }
    async fn create(&self, request: CreateRequest<'_>) -> Result<Created> {
        self.0.create(request).await
    }
    async fn place(&self, id: &Id, spec: &RunSpec) -> Result<()> { self.0.place(id, spec).await }
    async fn attach(&self, id: &Id, tty: bool) -> Result<AttachedOutput> { self.0.attach(id, tty).await }
    async fn start(&self, id: &Id) -> Result<()> { self.0.start(id).await }
    async fn wait(&self, id: &Id) -> Result<WaitStatus> { self.0.wait(id).await }
    async fn inspect(&self, id: &Id) -> Result<Inspection> { self.0.inspect(id).await }
    // Forwarded too: the default would hide the answer of the inner runtime.
    async fn continuity(&self, id: &Id) -> Result<Continuity> { self.0.continuity(id).await }
    async fn logs(&self, id: &Id, request: LogsRequest) -> Result<OutputStream> {
        self.0.logs(id, request).await
    }
    async fn log_has_exactly(&self, id: &Id, tty: bool, records: u64) -> Result<bool> {
        self.0.log_has_exactly(id, tty, records).await
    }
    async fn signal(&self, id: &Id, signal: &str) -> Result<()> { self.0.signal(id, signal).await }
    async fn remove(&self, id: &Id, force: bool) -> Result<()> { self.0.remove(id, force).await }
    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>> { self.0.find(root).await }
    async fn copy_out(&self, id: &Id, path: &str) -> Result<Archive> {
        self.0.copy_out(id, path).await
    }
    async fn copy_in(&self, id: &Id, path: &str, tar: Archive) -> Result<()> {
        self.0.copy_in(id, path, tar).await
    }
}

/// The test setup: scripted containers, and a spec that is rejected.
struct Harness(Unprivileged<Scripted>);

#[async_trait::async_trait]
impl RuntimeHarness for Harness {
    async fn runtime(&self) -> Result<Arc<dyn Runtime>, Unsupported> {
        Ok(Arc::new(self.0.clone()))
    }

    fn spec(&self, behavior: &Behavior) -> Result<RunSpec, Unsupported> {
        let image = RunId::generate().to_string();
        self.0.0.image(&image, behavior.into());
        Ok(RunSpec::new(image))
    }

    fn refused(&self) -> Result<RunSpec, Unsupported> {
        Ok(RunSpec::new("any").privileged(true))
    }
}

#[tokio::main]
async fn main() -> Result<(), conformance::Failure> {
    for case in conformance::runtime(|| Harness(Unprivileged(Scripted::new()))) {
        println!("{} {}", case.name(), case.run().await?);
    }
    Ok(())
}
