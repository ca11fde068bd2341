//! The scripted runtime for the suite.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use moat::RunSpec;
use moat::conformance::{Behavior, RuntimeHarness, Unsupported};
use moat::runtime::Runtime;
use moat::runtime::scripted::{Link, Script, Scripted};
use moat::spec::{ExecSpec, Pull};

#[derive(Debug)]
pub struct ScriptedHarness {
    engine: Scripted,
    specs: AtomicU64,
}

impl ScriptedHarness {
    pub fn new() -> Self {
        let engine = Scripted::new().with_connect();
        engine.remove_image("missing");
        engine.set_end_markers(true);
        Self {
            engine,
            specs: AtomicU64::new(0),
        }
    }
}

#[async_trait]
impl RuntimeHarness for ScriptedHarness {
    async fn runtime(&self) -> Result<Arc<dyn Runtime>, Unsupported> {
        Ok(Arc::new(self.engine.clone()))
    }

    fn spec(&self, behavior: &Behavior) -> Result<RunSpec, Unsupported> {
        // Each spec has a separate image, which selects its script.
        let image = format!("script-{}", self.specs.fetch_add(1, Ordering::Relaxed));
        self.engine.image(&image, behavior.into());
        Ok(RunSpec::new(image))
    }

    fn exec(&self, behavior: &Behavior) -> Result<ExecSpec, Unsupported> {
        self.engine.next_exec(behavior.into());
        Ok(ExecSpec::new(["any"]))
    }

    fn no_image(&self) -> Result<RunSpec, Unsupported> {
        Ok(RunSpec::new("missing").pull(Pull::Never))
    }

    async fn removable_image(&self) -> Result<String, Unsupported> {
        let image = format!("removable-{}", self.specs.fetch_add(1, Ordering::Relaxed));
        self.engine.image(&image, Script::new());
        Ok(image)
    }

    fn listening(&self, port: u16) -> Result<RunSpec, Unsupported> {
        let image = format!("listening-{port}");
        let script = Script::new().until_stopped().listen(port);
        self.engine.image(&image, script);
        Ok(RunSpec::new(image))
    }

    async fn take_down(&self) -> Result<(), Unsupported> {
        self.engine.link(Link::Down);
        Ok(())
    }

    async fn silence(&self) -> Result<(), Unsupported> {
        self.engine.link(Link::Silent);
        Ok(())
    }

    async fn bring_back(&self) {
        self.engine.link(Link::Up);
    }
}
