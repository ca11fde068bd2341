//! A process that embeds moat and is killed: this program, started again.

use std::path::PathBuf;

use moat::{Manager, RunId};
use serde::{Deserialize, Serialize};
use testkit::child::{self, Process};

use crate::cluster;
use crate::stage::{Stage, gated};

const ROLE: &str = "kube_embedder";

#[derive(Serialize, Deserialize)]
struct Orders {
    root: PathBuf,
    image: String,
    gate: PathBuf,
    id: String,
    steps: String,
    spool_limit: Option<u64>,
    kubeconfig: Option<PathBuf>,
}

/// Plays the embedder if this process is one. It runs until it is killed.
pub fn role() -> Option<()> {
    let orders: Orders = child::orders(ROLE)?;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async move {
        let mut cluster = cluster::connect_with(orders.kubeconfig).await;
        if let Some(bytes) = orders.spool_limit {
            cluster = cluster.spool_limit(bytes);
        }
        let manager = Manager::open(&orders.root, cluster).await.unwrap();
        let id = RunId::new(orders.id).unwrap();
        let spec = gated(&orders.image, &orders.gate, &orders.steps).id(id);
        let _run = manager.start(spec).await.unwrap();
        std::future::pending::<()>().await;
    });
    Some(())
}

/// A process that embeds moat. Dropped, it is killed with SIGKILL.
pub struct Embedder(Process);

impl Embedder {
    /// Starts a run with gates in a child process.
    pub fn start(stage: &Stage, id: &str, steps: &str) -> Self {
        Self::start_with(stage, id, steps, |_| {})
    }

    /// The same with a limit of the spool, in bytes.
    pub fn with_spool_limit(stage: &Stage, id: &str, steps: &str, limit: u64) -> Self {
        Self::start_with(stage, id, steps, |orders| orders.spool_limit = Some(limit))
    }

    /// The same with another kubeconfig.
    pub fn with_kubeconfig(stage: &Stage, id: &str, steps: &str, path: PathBuf) -> Self {
        Self::start_with(stage, id, steps, |orders| orders.kubeconfig = Some(path))
    }

    fn start_with(stage: &Stage, id: &str, steps: &str, set: impl FnOnce(&mut Orders)) -> Self {
        let mut orders = Orders {
            root: stage.root(),
            image: stage.image.clone(),
            gate: stage.gate(),
            id: id.into(),
            steps: steps.into(),
            spool_limit: None,
            kubeconfig: None,
        };
        set(&mut orders);
        Self(Process::start(ROLE, &orders))
    }

    /// Kills it with SIGKILL.
    pub fn kill(self) {
        assert!(self.0.kill(), "the embedder ended before it was killed");
    }
}
