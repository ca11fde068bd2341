//! A disk without room.

use std::time::Duration;

use moat::manager::PruneOptions;
use moat::root::VerifyOptions;
use moat::{Error, Run, ShutdownMode};
use testkit::deadline::{eventually, within};
use testkit::sequence;

use super::check::{assert_pending, assert_sealed, assert_whole};
use super::disk::{Disk, PAGE};
use super::{open, start};
use crate::stage::{Stage, assert_complete, printed};

testkit::trials! {
    crate::storage::on_small_disk:
        a_disk_full_at_the_start_refuses_the_run,
        a_disk_full_during_output_loses_nothing,
        a_disk_full_at_the_seal_is_retried,
        a_stop_works_on_a_full_disk,
        the_next_manager_retries_a_full_disk,
        runs_are_removed_from_a_full_disk,
}

const FULL: &str = "No space left";

/// With room for nothing, for the record of the intent, for the first record of the audit, and for
/// later records.
async fn a_disk_full_at_the_start_refuses_the_run(stage: &Stage) {
    let disk = Disk::mount(&stage.root());
    let manager = open(stage).await;
    for pages in 0..6 {
        disk.fill(pages);
        let started = manager.start(stage.spec("lines 10 --stream both")).await;
        match started {
            Err(Error::Storage { .. }) => {
                assert!(pages < 3, "there was room for the first record");
                assert!(manager.list().await.unwrap().is_empty());
                disk.free();
            }
            Err(Error::NotStarted { outcome, .. }) => {
                assert!(outcome.ending.never_started(), "{outcome}");
                disk.free();
                let run = manager.get(&outcome.run).await.unwrap();
                assert_whole(stage, &run, &["out", "err"], 0).await;
                manager.remove(run.id()).await.unwrap();
            }
            Ok(run) => {
                disk.free();
                assert_whole(stage, &run, &["out", "err"], 10).await;
                manager.remove(run.id()).await.unwrap();
            }
            Err(error) => panic!("{pages} pages: {}", error.chain()),
        }
        stage.is_clean().await;
    }
    assert!(manager.list().await.unwrap().is_empty());
}

async fn a_disk_full_during_output_loses_nothing(stage: &Stage) {
    let disk = Disk::mount(&stage.root());
    let manager = open(stage).await;
    let steps = "lines 100 --stream both + await /gate/full \
                 + lines 4900 --from 101 --stream both --burst 10 + exit 7";
    let run = start(&manager, stage.gated(steps)).await;
    disk.fill(20);
    stage.open_gate("full");
    assert_pending(stage, &manager, &run, 7, FULL).await;
    disk.free();
    let audit = assert_whole(stage, &run, &["out", "err"], 5000).await;
    let resumed = audit.all("resume");
    assert!(resumed.iter().all(|resume| resume["cause"] == "sink"));
    assert!(!resumed.is_empty());
    assert_eq!(audit.evidence(), "replay");
}

/// The whole output is in the file, and its last page has no room for the seal.
async fn a_disk_full_at_the_seal_is_retried(stage: &Stage) {
    let disk = Disk::mount(&stage.root());
    let manager = open(stage).await;
    let steps = "lines 100 --stream both + await /gate/text + read /gate/padding \
                 + await /gate/end + exit 7";
    let run = start(&manager, stage.gated(steps)).await;
    printed_in_file(&run, "err 00000100 ").await;
    let length = run.audit().unwrap().metadata().unwrap().len();
    // A record takes about 80 bytes in addition to its text.
    let room = 2 * PAGE - length % PAGE;
    let padding = "p".repeat(room as usize - 300);
    std::fs::write(stage.dir.path().join("gate/padding"), padding).unwrap();
    stage.open_gate("text");
    printed(&run, "pppp").await;
    disk.fill(0);
    stage.open_gate("end");
    assert_pending(stage, &manager, &run, 7, FULL).await;
    disk.free();
    let (outcome, audit) = assert_sealed(stage, &run).await;
    assert_complete(&audit);
    assert_eq!(outcome.code(), Some(7));
    let lines = sequence::lines("out", 100, 64);
    assert!(audit.stream("stdout").starts_with(&lines));
    assert_eq!(
        audit.stream("stdout").len(),
        lines.len() + room as usize - 300
    );
    stage.is_clean().await;
}

/// Waits until the audit has `text`.
async fn printed_in_file(run: &Run, text: &str) {
    eventually(60, text, async || {
        let audit = std::fs::read_to_string(run.audit().unwrap()).unwrap();
        audit.contains(text).then_some(())
    })
    .await;
}

/// A stop needs the disk only for its record, which is written later.
async fn a_stop_works_on_a_full_disk(stage: &Stage) {
    let disk = Disk::mount(&stage.root());
    let manager = open(stage).await;
    let steps = "lines 100 + await /gate/full + lines 1900 --from 101 --burst 10 \
                 + write /gate/done x + await /gate/never";
    let run = start(&manager, stage.gated(steps)).await;
    disk.fill(4);
    stage.open_gate("full");
    eventually(60, "the failure of the disk", async || run.problem()).await;
    eventually(60, "the end of the container's output", async || {
        stage.dir.path().join("gate/done").exists().then_some(())
    })
    .await;
    let stop = run.stop(Some(Duration::from_secs(2)));
    let outcome = within(60, "the stop", stop).await.unwrap();
    assert!(outcome.sealed().is_none(), "{outcome}");
    disk.free();
    let audit = assert_whole(stage, &run, &["out"], 2000).await;
    // The first process of a container ignores signals without a handler.
    assert_eq!(audit.end["exit"]["code"], 137);
    let stops = audit.all("stop");
    assert_eq!(stops.len(), 1, "{stops:?}");
    assert_eq!(stops[0]["cause"], "requested");
    assert_eq!(audit.end["stopped"], "requested");
}

/// The recovering manager knows of the exit from the engine only.
async fn the_next_manager_retries_a_full_disk(stage: &Stage) {
    let disk = Disk::mount(&stage.root());
    let first = open(stage).await;
    let steps = "lines 100 --stream both + await /gate/full \
                 + lines 900 --from 101 --stream both --burst 10 + exit 7";
    let run = start(&first, stage.gated(steps)).await;
    disk.fill(4);
    stage.open_gate("full");
    assert_pending(stage, &first, &run, 7, FULL).await;
    within(10, "the shutdown", first.shutdown(ShutdownMode::Leave)).await;

    let next = open(stage).await;
    within(20, "the recovery", next.wait_recovery())
        .await
        .unwrap();
    let run = next.get(run.id()).await.unwrap();
    eventually(60, FULL, async || {
        run.problem().filter(|problem| problem.contains(FULL))
    })
    .await;
    assert_eq!(stage.containers().await.len(), 1);
    disk.free();
    assert_whole(stage, &run, &["out", "err"], 1000).await;
}

/// The lines of the removals do not fit into the last page of the ledger.
async fn runs_are_removed_from_a_full_disk(stage: &Stage) {
    let disk = Disk::mount(&stage.root());
    let manager = open(stage).await;
    for _ in 0..12 {
        let run = manager.start(stage.spec("lines 1")).await.unwrap();
        within(60, "the removal of the container", run.wait_removed())
            .await
            .unwrap();
    }
    disk.fill(0);
    let pruned = manager.prune(PruneOptions::new().keep(0)).await.unwrap();
    assert_eq!(pruned.removed.len(), 12, "{:?}", pruned.kept);
    let verified = manager.root().verify_all(&VerifyOptions::new()).unwrap();
    assert_eq!(verified.findings, []);
    disk.free();
    assert!(stage.root().join(".ledger-reserve").exists());
    manager.shutdown(ShutdownMode::Leave).await;
}
