//! A process without file descriptors: this program, started again.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use moat::{Docker, Error, Manager, RunId, RunSpec, ShutdownMode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use testkit::child;
use testkit::deadline::{eventually, within};
use tokio::time::timeout;

use super::check::assert_whole;
use crate::stage::{Stage, printed};

testkit::trials! {
    crate::storage::on_engine:
        no_descriptors_lose_no_output,
}

/// The role of this process as a child.
const ROLE: &str = "descriptors";

const RUN: &str = "old";

/// The orders of the child.
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    root: PathBuf,
    gate: PathBuf,
    image: String,
}

/// Follows the orders if this process is in that role.
pub fn role() -> Option<()> {
    let orders = child::orders(ROLE)?;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(obey(orders));
    Some(())
}

async fn obey(orders: Orders) {
    let docker = Docker::connect().await.unwrap();
    let manager = Manager::open(&orders.root, docker).await.unwrap();
    let steps = "lines 100 --stream both + await /gate/go \
                 + lines 900 --from 101 --stream both --burst 10 + exit 7";
    let spec = RunSpec::new(&orders.image)
        .id(RunId::new(RUN).unwrap())
        .cmd(steps.split_whitespace())
        .network("none")
        .bind(&orders.gate, "/gate");
    let run = manager.start(spec).await.unwrap();
    printed(&run, "out 00000100 ").await;
    // Open descriptors stay open.
    let before = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(3),
        ..before
    };
    setrlimit(Resource::Nofile, none).unwrap();
    let id = RunId::new("new").unwrap();
    let refused = manager.start(RunSpec::new(&orders.image).id(id)).await;
    assert!(matches!(refused, Err(Error::Storage { .. })), "{refused:?}");
    println!("none are left");
    // The exit may be known by now, or later.
    let _ = timeout(Duration::from_secs(3), run.wait()).await;
    setrlimit(Resource::Nofile, before).unwrap();
    let listed = manager.list().await.unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    while run.wait().await.unwrap().sealed().is_none() {}
    manager.shutdown(ShutdownMode::Leave).await;
}

async fn no_descriptors_lose_no_output(stage: &Stage) {
    let orders = Orders {
        root: stage.root(),
        gate: stage.dir.path().join("gate"),
        image: stage.image.clone(),
    };
    let mut child = child::command(ROLE, &orders)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut word = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut word).unwrap();
    assert_eq!(word, "none are left\n");
    stage.open_gate("go");
    let status = eventually(60, "the end of the process", async || {
        child.try_wait().unwrap()
    })
    .await;
    assert!(status.success(), "{status}");
    let manager = stage.manager().await;
    let run = within(60, "the run", manager.get(&RunId::new(RUN).unwrap())).await;
    let run = run.unwrap();
    assert_eq!(run.wait().await.unwrap().code(), Some(7));
    assert_whole(stage, &run, &["out", "err"], 1000).await;
}
