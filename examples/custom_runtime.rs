//! A runtime of your own: the rules of a house, around any other runtime. No container of it is
//! privileged. It tries itself by the conformance suite, with a scripted engine behind it:
//! `cargo run --example custom_runtime --features conformance,testing`.

use std::sync::Arc;

use moat::conformance::{self, Behaviour, RuntimeHarness, Unsupported};
use moat::runtime::scripted::Scripted;
use moat::runtime::{RuntimeError, *};
use moat::spec::{ContainerId as Id, RootId};
use moat::{Error, RunId, RunSpec};

#[derive(Debug, Clone)]
struct House<R>(R);

type Said<T> = Result<T, RuntimeError>;

#[rustfmt::skip] // most of it hands on, one call a line
#[async_trait::async_trait]
impl<R: Runtime> Runtime for House<R> {
    fn validate(&self, spec: &RunSpec) -> moat::Result<()> {
        if spec.settings().privileged {
            let (field, reason) = ("privileged".into(), "not in this house".into());
            return Err(Error::InvalidSpec { field, reason });
        }
        self.0.validate(spec)
    }

    fn name(&self) -> &'static str { "house" }
    /// What is passed on below: no input, and no further processes.
    fn capabilities(&self) -> Capabilities { Capabilities::NONE.with_tap().with_logs() }

    async fn engine(&self) -> Said<EngineInfo> { self.0.engine().await }
    async fn prepare(&self, spec: &RunSpec) -> Said<()> { self.0.prepare(spec).await }
    async fn create(&self, what: CreateRequest<'_>) -> Said<Created> { self.0.create(what).await }
    async fn attach(&self, id: &Id, tty: bool) -> Said<OutputStream> { self.0.attach(id, tty).await }
    async fn start(&self, id: &Id) -> Said<()> { self.0.start(id).await }
    async fn wait(&self, id: &Id) -> Said<WaitStatus> { self.0.wait(id).await }
    async fn inspect(&self, id: &Id) -> Said<Inspection> { self.0.inspect(id).await }
    // It has a default, which would answer in the place of the runtime within.
    async fn continuity(&self, id: &Id) -> Said<Continuity> { self.0.continuity(id).await }
    async fn logs(&self, id: &Id, what: LogsRequest) -> Said<OutputStream> {
        self.0.logs(id, what).await
    }
    async fn signal(&self, id: &Id, signal: &str) -> Said<()> { self.0.signal(id, signal).await }
    async fn remove(&self, id: &Id, force: bool) -> Said<()> { self.0.remove(id, force).await }
    async fn find(&self, root: &RootId) -> Said<Vec<OwnedContainer>> { self.0.find(root).await }
    async fn copy_out(&self, id: &Id, path: &str) -> Said<Archive> {
        self.0.copy_out(id, path).await
    }
    async fn copy_in(&self, id: &Id, path: &str, tar: Archive) -> Said<()> {
        self.0.copy_in(id, path, tar).await
    }
}

/// What the suite needs of it: containers that do as they are told, and a spec that is refused.
struct Stage(House<Scripted>);

#[async_trait::async_trait]
impl RuntimeHarness for Stage {
    async fn runtime(&self) -> Unsupported<Arc<dyn Runtime>> {
        Ok(Arc::new(self.0.clone()))
    }

    fn spec(&self, behaviour: &Behaviour) -> Unsupported<RunSpec> {
        let image = RunId::generate().to_string();
        self.0.0.image(&image, behaviour.into());
        Ok(RunSpec::new(image))
    }

    fn refused(&self) -> Unsupported<RunSpec> {
        Ok(RunSpec::new("any").privileged(true))
    }
}

#[tokio::main]
async fn main() -> Result<(), conformance::Failure> {
    for trial in conformance::runtime(|| Stage(House(Scripted::new()))) {
        println!("{} {}", trial.name(), trial.run().await?);
    }
    Ok(())
}
