//! A process that embeds moat and is killed: this program, started again.

use std::path::PathBuf;

use moat::{Error, Manager, RunId, RunSpec, ShutdownMode};
use serde::{Deserialize, Serialize};
use testkit::child::{self, Process};
use testkit::crash::Planned;

use crate::cluster;
use crate::stage::{Stage, end, gated};

/// The role of this process as a child.
const ROLE: &str = "kube_crash";

/// The orders of the child.
#[derive(Debug, Serialize, Deserialize)]
pub struct Orders {
    pub root: PathBuf,
    pub gate: PathBuf,
    pub image: String,
    /// The context of the cluster. `None`: that of the tests.
    pub context: Option<String>,
    /// A label that the nodes of the pods must have.
    pub node_label: Option<String>,
    /// The runs to start. Empty: recover all runs of the root.
    pub runs: Vec<Planned>,
}

impl Orders {
    /// Orders to start these runs in the root of a stage.
    pub fn new(stage: &Stage, runs: &[Planned]) -> Self {
        Self {
            root: stage.root(),
            gate: stage.gate(),
            image: stage.image.clone(),
            context: None,
            node_label: None,
            runs: runs.to_vec(),
        }
    }

    /// Starts a child with these orders.
    pub fn start(&self) -> Process {
        Process::start(ROLE, self)
    }
}

/// Follows the orders if this process is in that role. It ends once its runs are sealed.
pub fn role() -> Option<()> {
    let orders = child::orders(ROLE)?;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(obey(orders));
    Some(())
}

async fn obey(orders: Orders) {
    let mut cluster = match &orders.context {
        Some(context) => cluster::connect_as(context).await,
        None => cluster::connect().await,
    };
    if let Some(label) = &orders.node_label {
        cluster = cluster.node_selector(label, "");
    }
    let manager = Manager::open(&orders.root, cluster).await.unwrap();
    let starts = orders
        .runs
        .iter()
        .map(|run| manager.start(spec(&orders, run)));
    let started = futures::future::join_all(starts).await;
    for (run, started) in orders.runs.iter().zip(started) {
        match started {
            Err(Error::NotStarted { .. }) if run.missing => {}
            Ok(started) if !run.missing => drop(end(&started).await),
            started => panic!("{run:?}: {started:?}"),
        }
    }
    if orders.runs.is_empty() {
        manager.wait_recovery().await.unwrap();
        for info in manager.list().await.unwrap() {
            end(&manager.get(&info.run).await.unwrap()).await;
        }
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

fn spec(orders: &Orders, run: &Planned) -> RunSpec {
    let spec = gated(&orders.image, &orders.gate, &run.command().join(" "))
        .id(RunId::new(&run.id).unwrap())
        .keep(run.keep.setting())
        .tty(run.tty);
    match run.missing {
        true => spec.entrypoint(run.command()),
        false => spec,
    }
}
