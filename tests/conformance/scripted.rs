//! The scripted runtime for the suite.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use moat::RunSpec;
use moat::conformance::{Behaviour, RuntimeHarness, Unsupported};
use moat::runtime::Runtime;
use moat::runtime::scripted::{Link, Scripted};
use moat::spec::{ExecSpec, Pull};

#[derive(Debug)]
pub struct Stage {
    engine: Scripted,
    specs: AtomicU64,
}

impl Stage {
    pub fn new() -> Self {
        let engine = Scripted::new();
        engine.remove_image("lacking");
        Self {
            engine,
            specs: AtomicU64::new(0),
        }
    }
}

#[async_trait]
impl RuntimeHarness for Stage {
    async fn runtime(&self) -> Unsupported<Arc<dyn Runtime>> {
        Ok(Arc::new(self.engine.clone()))
    }

    fn spec(&self, behaviour: &Behaviour) -> Unsupported<RunSpec> {
        // Each spec has a separate image, which selects its script.
        let image = format!("script-{}", self.specs.fetch_add(1, Ordering::Relaxed));
        self.engine.image(&image, behaviour.into());
        Ok(RunSpec::new(image))
    }

    fn exec(&self, behaviour: &Behaviour) -> Unsupported<ExecSpec> {
        self.engine.next_exec(behaviour.into());
        Ok(ExecSpec::new(["any"]))
    }

    fn no_image(&self) -> Unsupported<RunSpec> {
        Ok(RunSpec::new("lacking").pull(Pull::Never))
    }

    async fn take_down(&self) -> Unsupported<()> {
        self.engine.link(Link::Down);
        Ok(())
    }

    async fn silence(&self) -> Unsupported<()> {
        self.engine.link(Link::Silent);
        Ok(())
    }

    async fn bring_back(&self) {
        self.engine.link(Link::Up);
    }
}
