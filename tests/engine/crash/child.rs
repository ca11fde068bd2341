//! A process that embeds moat and is killed: this program, started again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moat::sink::Jsonl;
use moat::{Docker, Error, Manager, RunId, RunSpec, ShutdownMode};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use testkit::child::{self, Process};
use testkit::crash::Planned;
use testkit::engine;

use super::plan::Deadly;
use super::saboteur::{Saboteur, Trap};

/// The role of this process as a child.
const ROLE: &str = "crash";

/// The orders of the child.
#[derive(Debug, Serialize, Deserialize)]
pub struct Orders {
    pub root: PathBuf,
    pub gate: PathBuf,
    pub image: String,
    /// The engine's address; `None`: the default.
    pub address: Option<String>,
    /// The runs to start. Empty: only recover.
    pub runs: Vec<Planned>,
    pub death: Option<Deadly>,
}

/// Follows the orders if this process is in that role. It ends once all runs of the root are
/// sealed.
pub fn role() -> Option<()> {
    let orders = child::orders(ROLE)?;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(obey(orders));
    Some(())
}

async fn obey(orders: Orders) {
    let docker = match &orders.address {
        Some(address) => Docker::connect_to(address).await.unwrap(),
        None => Docker::connect().await.unwrap(),
    };
    let mut trap = None;
    match orders.death {
        Some(Deadly::Torn(bytes)) => {
            let limit = Rlimit {
                current: Some(bytes),
                maximum: Some(bytes),
            };
            setrlimit(Resource::Fsize, limit).unwrap();
        }
        Some(Deadly::Point {
            name,
            nth,
            after_ms,
        }) => trap = Some(Trap::new(&name, nth, after_ms, &orders.gate)),
        Some(Deadly::Moment(_)) | None => {}
    }
    let trap = Arc::new(trap);
    let manager = Manager::builder(&orders.root, Saboteur::new(docker, &trap))
        .sink(Saboteur::new(Jsonl::new(), &trap))
        .open()
        .await
        .unwrap();
    let starts = orders.runs.iter().map(|run| {
        let mut spec = RunSpec::new(&orders.image)
            .id(RunId::new(&run.id).unwrap())
            .cmd(run.command())
            .tty(run.tty)
            .keep(run.keep.setting())
            .network("none")
            .bind(&orders.gate, "/gate");
        if run.missing {
            spec = spec.entrypoint(run.command());
        }
        manager.start(spec)
    });
    let started = futures::future::join_all(starts).await;
    for (run, started) in orders.runs.iter().zip(started) {
        match started {
            Err(Error::NotStarted { .. }) if run.missing => {}
            started => assert!(started.is_ok() && !run.missing, "{run:?}: {started:?}"),
        }
    }
    manager.wait_recovery().await.unwrap();
    for info in manager.list().await.unwrap() {
        let run = manager.get(&info.run).await.unwrap();
        while run.wait().await.unwrap().sealed().is_none() {}
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

/// Starts a child with these orders.
pub fn start(orders: &Orders) -> Process {
    Process::start(ROLE, orders)
}

/// Waits at most `bound` until the engine has at most `kept` containers of `root`. Returns their
/// number.
pub async fn cleaned(root: &Path, kept: usize, bound: Duration) -> usize {
    let id = engine::root_id(root).unwrap_or_default();
    let begin = Instant::now();
    loop {
        let left = engine::containers(&engine::address(), &id)
            .await
            .unwrap()
            .len();
        if left <= kept || begin.elapsed() >= bound {
            return left;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
