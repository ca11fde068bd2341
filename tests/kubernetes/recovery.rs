//! Runs whose process is killed.

use std::fs;

use moat::{Root, RunId};
use testkit::deadline::{eventually, within};
use testkit::sequence;

use crate::cluster;
use crate::embedder::Embedder;
use crate::stage::{Stage, assert_complete, end, read};

testkit::trials! {
    crate::on_local_cluster:
        killed_embedders_lose_nothing,
        equal_output_is_kept_once,
        a_freed_spool_is_a_gap,
}

const LINES: u64 = 300;

/// The moment of a kill.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// The audit file has this text.
    Audited(&'static str),
    /// The pod exists.
    Created,
    /// The command has printed everything.
    Printed,
}

/// From the first record to the removal of the pod.
const MOMENTS: [Moment; 10] = [
    Moment::Audited("\"type\":\"start\""),
    Moment::Created,
    Moment::Created,
    Moment::Audited("\"type\":\"started\""),
    Moment::Audited("out 00000001 "),
    Moment::Audited("err 00000100 "),
    Moment::Audited("out 00000200 "),
    Moment::Audited("out 00000299 "),
    Moment::Printed,
    Moment::Audited("\"type\":\"end\""),
];

impl Moment {
    async fn wait(self, stage: &Stage, id: &str) {
        match self {
            Self::Audited(text) => stage.audited(id, text).await,
            Self::Created => {
                eventually(60, "the pod", async || {
                    let root = testkit::engine::root_id(&stage.root())?;
                    let pods = cluster::pods(&root);
                    let names = pods.iter().map(|pod| pod["metadata"]["name"].as_str());
                    names.flatten().any(|name| name.contains(id)).then_some(())
                })
                .await;
            }
            Self::Printed => {
                let path = stage.gate().join(format!("done-{id}"));
                eventually(120, "the end of the command", async || {
                    path.exists().then_some(())
                })
                .await;
            }
        }
    }
}

async fn killed_embedders_lose_nothing(stage: &Stage) {
    let kills = MOMENTS.iter().enumerate().map(async |(number, moment)| {
        let id = format!("kill-{number}");
        let steps = format!(
            "write /gate/began-{id} x + lines {LINES} --stream both --delay-ms 10 \
             + write /gate/done-{id} x + exit 5"
        );
        let embedder = Embedder::start(stage, &id, &steps);
        moment.wait(stage, &id).await;
        embedder.kill();
    });
    futures::future::join_all(kills).await;

    let manager = stage.manager().await;
    within(120, "the recovery", manager.wait_recovery())
        .await
        .unwrap();
    let mut began = 0;
    for (number, moment) in MOMENTS.iter().enumerate() {
        let id = format!("kill-{number}");
        let run = manager.get(&RunId::new(&*id).unwrap()).await.unwrap();
        let outcome = end(&run).await;
        let audit = read(&outcome);
        let state = audit.end["exit"]["state"].as_str().unwrap();
        println!("{id}, {moment:?}: {outcome}");
        if stage.gate().join(format!("began-{id}")).exists() {
            began += 1;
            assert_eq!(outcome.code(), Some(5), "{id}: {outcome}");
            sequence::check(audit.stream("stdout"), "out", LINES, 64).unwrap();
            sequence::check(audit.stream("stderr"), "err", LINES, 64).unwrap();
        } else {
            assert!(
                ["not_created", "failed_to_start"].contains(&state),
                "{id}: {}",
                audit.end
            );
            assert!(audit.streams.is_empty(), "{id}");
        }
        assert_complete(&audit);
        assert_eq!(audit.all("start").len(), 1, "{id}");
        let known = ["run.json", "logs.jsonl", "lock"];
        let dir = Root::open(stage.root()).unwrap().dir(&run.id().clone());
        for entry in fs::read_dir(dir).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let is_known = known.contains(&name.as_str()) || name.starts_with("torn-");
            assert!(is_known, "{id}: the file {name} is left");
        }
    }
    // A kill after `started` never undoes the start.
    assert!(began >= 7, "only {began} commands began");
    stage.is_clean().await;
}

async fn equal_output_is_kept_once(stage: &Stage) {
    let steps = "yes same 300 + await /gate/go + yes same 300";
    let embedder = Embedder::start(stage, "same", steps);
    stage.audited("same", "\"line\":\"same\"").await;
    embedder.kill();
    stage.open_gate("go");
    let manager = stage.manager().await;
    manager.wait_recovery().await.unwrap();
    let run = manager.get(&RunId::new("same").unwrap()).await.unwrap();
    let audit = read(&end(&run).await);
    let expected = "same\n".repeat(600);
    crate::stage::assert_bytes(audit.stream("stdout"), expected.as_bytes());
    assert_complete(&audit);
    stage.is_clean().await;
}

/// The spool has freed its beginning when the owner dies. All bytes are equal, so that a shifted
/// replay would fit.
async fn a_freed_spool_is_a_gap(stage: &Stage) {
    const BYTES: u64 = 90 << 20;
    const LATER: u64 = 1 << 20;
    let steps = format!("fill {BYTES} + write /gate/filled x + await /gate/go + fill {LATER}");
    let embedder = Embedder::with_spool_limit(stage, "freed", &steps, 1 << 20);
    let path = stage.root().join("freed/logs.jsonl");
    eventually(300, "the capture of the output", async || {
        let len = fs::metadata(&path).map_or(0, |file| file.len());
        (stage.gate().join("filled").exists() && len > BYTES).then_some(())
    })
    .await;
    embedder.kill();
    stage.open_gate("go");
    let manager = stage.manager().await;
    manager.wait_recovery().await.unwrap();
    let run = manager.get(&RunId::new("freed").unwrap()).await.unwrap();
    let audit = read(&end(&run).await);
    let found = audit.stream("stdout").len() as u64;
    println!("{found} of {} bytes, {:?}", BYTES + LATER, audit.all("gap"));
    // The owner has dropped at most what it had read and not written.
    assert!(
        (BYTES / 2..=BYTES + LATER).contains(&found),
        "{found} bytes"
    );
    assert_eq!(audit.verdict(), "gap", "{found} bytes: {}", audit.end);
    assert!(audit.stream("stdout").iter().all(|byte| *byte == b'x'));
}
