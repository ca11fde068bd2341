//! The scripted runtime, as the suite's stage.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use moat::conformance::{Behaviour, Capable, RuntimeStage};
use moat::runtime::Runtime;
use moat::runtime::scripted::{Link, Scripted};
use moat::{ExecSpec, Pull, RunSpec};

#[derive(Debug)]
pub struct Stage {
    engine: Scripted,
    specs: AtomicU64,
}

impl Stage {
    pub fn new() -> Self {
        let engine = Scripted::new();
        engine.lack_image("lacking");
        Self {
            engine,
            specs: AtomicU64::new(0),
        }
    }
}

#[async_trait]
impl RuntimeStage for Stage {
    async fn runtime(&self) -> Capable<Arc<dyn Runtime>> {
        Ok(Arc::new(self.engine.clone()))
    }

    fn spec(&self, behaviour: &Behaviour) -> Capable<RunSpec> {
        // Each spec has an image of its own, which stands for its script.
        let image = format!("script-{}", self.specs.fetch_add(1, Ordering::Relaxed));
        self.engine.image(&image, behaviour.into());
        Ok(RunSpec::new(image))
    }

    fn exec(&self, behaviour: &Behaviour) -> Capable<ExecSpec> {
        self.engine.next_exec(behaviour.into());
        Ok(ExecSpec::new(["any"]))
    }

    fn no_image(&self) -> Capable<RunSpec> {
        Ok(RunSpec::new("lacking").pull(Pull::Never))
    }

    async fn take_down(&self) -> Capable<()> {
        self.engine.link(Link::Down);
        Ok(())
    }

    async fn silence(&self) -> Capable<()> {
        self.engine.link(Link::Silent);
        Ok(())
    }

    async fn bring_back(&self) {
        self.engine.link(Link::Up);
    }
}
