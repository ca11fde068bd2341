//! A sink that fails, stalls or panics.

use std::time::Duration;

use moat::sink::{Faulty, Jsonl, SinkCall, SinkFault};
use moat::state::RunStatus;
use moat::{Docker, Error, Manager, Run, RunId, RunSpec, ShutdownMode};
use testkit::deadline::{eventually, within};
use testkit::sequence;

use super::check::{SEAL_TIMEOUT, assert_pending, assert_sealed, assert_whole};
use super::start;
use crate::stage::{Stage, assert_complete, printed};

testkit::trials! {
    crate::storage::on_engine:
        a_stall_blocks_neither_container_nor_stop,
        a_stall_at_the_first_record_blocks_nothing,
        a_stalled_sink_does_not_delay_shutdown,
        temporary_failures_lose_nothing,
        a_failed_open_refuses_the_run,
        a_permanent_failure_keeps_the_container,
        a_panic_loses_nothing,
}

/// All calls on an open log.
const ALL: &[SinkCall] = &[
    SinkCall::Append,
    SinkCall::Sync,
    SinkCall::Seal,
    SinkCall::Resume,
];

const FAILED: &str = "injected fault";

/// More lines than all buffers between a container and a sink hold: 13 MB.
const MANY: u64 = 200_000;

async fn manager(stage: &Stage, sink: &Faulty) -> Manager {
    let docker = Docker::connect().await.unwrap();
    Manager::builder(stage.root(), docker)
        .sink(sink.clone())
        .seal_timeout(SEAL_TIMEOUT)
        .open()
        .await
        .unwrap()
}

/// A run of a thousand lines on both streams: a hundred, and the rest after a gate.
fn thousand(stage: &Stage) -> RunSpec {
    stage.gated(
        "lines 100 --stream both + await /gate/go \
         + lines 900 --from 101 --stream both --burst 10 + exit 7",
    )
}

/// Asserts that the container continues and can be stopped while the sink is stalled.
async fn assert_not_blocked(stage: &Stage, manager: &Manager, sink: &Faulty, run: &Run) {
    eventually(60, "the end of the container's output", async || {
        stage.dir.path().join("gate/done").exists().then_some(())
    })
    .await;
    // The first process of a container ignores signals without a handler.
    let stop = run.stop(Some(Duration::from_secs(2)));
    let outcome = within(60, "the stop", stop).await.unwrap();
    assert_eq!(outcome.code(), Some(137), "{outcome}");
    assert_pending(stage, manager, run, 137, "the sink").await;
    sink.clear_faults();
    let audit = assert_whole(stage, run, &["out"], MANY).await;
    let stops = audit.all("stop");
    assert_eq!(stops.len(), 1, "{stops:?}");
    assert_eq!(audit.all("started").len(), 1);
}

/// Invariant 9.
async fn a_stall_blocks_neither_container_nor_stop(stage: &Stage) {
    let sink = Faulty::new(Jsonl::new());
    let manager = manager(stage, &sink).await;
    let steps = format!(
        "lines 100 + await /gate/go + lines {} --from 101 --burst 1000 \
         + write /gate/done x + await /gate/never",
        MANY - 100
    );
    let run = start(&manager, stage.gated(&steps)).await;
    sink.fault(SinkFault::stall().on([SinkCall::Append]));
    stage.open_gate("go");
    assert_not_blocked(stage, &manager, &sink, &run).await;
}

/// The same before any output.
async fn a_stall_at_the_first_record_blocks_nothing(stage: &Stage) {
    let sink = Faulty::new(Jsonl::new());
    let manager = manager(stage, &sink).await;
    sink.fault(SinkFault::stall().on([SinkCall::Append]));
    let steps = format!("lines {MANY} --burst 1000 + write /gate/done x + await /gate/never");
    let run = within(20, "the start", manager.start(stage.gated(&steps)))
        .await
        .unwrap();
    assert_not_blocked(stage, &manager, &sink, &run).await;
}

async fn a_stalled_sink_does_not_delay_shutdown(stage: &Stage) {
    let sink = Faulty::new(Jsonl::new());
    let first = manager(stage, &sink).await;
    let run = start(&first, thousand(stage)).await;
    sink.fault(SinkFault::stall().on(ALL.iter().copied()));
    stage.open_gate("go");
    within(20, "a call of the sink", sink.wait_fault()).await;
    within(10, "the shutdown", first.shutdown(ShutdownMode::Leave)).await;

    let next = manager(stage, &Faulty::new(Jsonl::new())).await;
    let run = next.get(run.id()).await.unwrap();
    assert_whole(stage, &run, &["out", "err"], 1000).await;
}

/// Each call, and all calls, several times in a row.
async fn temporary_failures_lose_nothing(stage: &Stage) {
    let sink = Faulty::new(Jsonl::new());
    let manager = manager(stage, &sink).await;
    for calls in [&[SinkCall::Append], &[SinkCall::Seal], ALL] as [&[SinkCall]; 3] {
        let _ = std::fs::remove_file(stage.dir.path().join("gate/go"));
        let run = start(&manager, thousand(stage)).await;
        sink.fault(SinkFault::error().on(calls.iter().copied()).times(3));
        stage.open_gate("go");
        let audit = assert_whole(stage, &run, &["out", "err"], 1000).await;
        assert!(!audit.all("resume").is_empty(), "{calls:?} did not fail");
        assert_eq!(audit.all("started").len(), 1);
    }
}

async fn a_failed_open_refuses_the_run(stage: &Stage) {
    let sink = Faulty::new(Jsonl::new());
    let manager = manager(stage, &sink).await;
    let spec = || stage.spec("lines 10").id(RunId::new("same").unwrap());
    sink.fault(SinkFault::error().on([SinkCall::Open]).times(1));
    let error = manager.start(spec()).await.unwrap_err();
    assert!(matches!(error, Error::Sink(_)), "{}", error.chain());
    assert!(error.chain().contains(FAILED));
    assert!(manager.list().await.unwrap().is_empty());
    assert!(stage.containers().await.is_empty());
    let run = manager.start(spec()).await.unwrap();
    assert_whole(stage, &run, &["out"], 10).await;
}

/// The failure is reported, and the next manager recovers everything.
async fn a_permanent_failure_keeps_the_container(stage: &Stage) {
    let sink = Faulty::new(Jsonl::new());
    let first = manager(stage, &sink).await;
    let run = start(&first, thousand(stage)).await;
    let stopped = first.start(stage.spec("lines 10 + trap --exit 9")).await;
    let stopped = stopped.unwrap();
    printed(&stopped, "ready").await;
    sink.fault(SinkFault::error().on(ALL.iter().copied()));
    let outcome = within(60, "the stop", stopped.stop(None)).await.unwrap();
    assert_eq!(outcome.code(), Some(9), "{outcome}");
    assert!(outcome.sealed().is_none(), "{outcome}");
    stage.open_gate("go");
    within(20, "the end", run.wait_exit()).await.unwrap();
    eventually(60, "the reason", async || run.problem()).await;
    assert_eq!(stage.containers().await.len(), 2, "both are kept");
    let listed = first.list().await.unwrap();
    assert!(
        listed
            .iter()
            .all(|info| info.status == RunStatus::Exited && info.seal.is_none()),
        "{listed:?}"
    );
    within(10, "the shutdown", first.shutdown(ShutdownMode::Stop)).await;

    let next = manager(stage, &Faulty::new(Jsonl::new())).await;
    let stopped = next.get(stopped.id()).await.unwrap();
    let (outcome, audit) = assert_sealed(stage, &stopped).await;
    assert_eq!(outcome.code(), Some(9));
    assert_complete(&audit);
    let run = next.get(run.id()).await.unwrap();
    assert_whole(stage, &run, &["out", "err"], 1000).await;
}

/// In each call. Then the run is requested again, as if its owner had died.
async fn a_panic_loses_nothing(stage: &Stage) {
    let sink = Faulty::new(Jsonl::new());
    let manager = manager(stage, &sink).await;
    for call in [SinkCall::Append, SinkCall::Seal] {
        let _ = std::fs::remove_file(stage.dir.path().join("gate/go"));
        let run = start(&manager, thousand(stage)).await;
        let other = start(&manager, thousand(stage)).await;
        sink.fault(SinkFault::panic().on([call]).times(1));
        stage.open_gate("go");
        for run in [run, other] {
            let run = eventually(60, "the seal", async || {
                let run = manager.get(run.id()).await.unwrap();
                let outcome = run.wait().await.ok()?;
                outcome.sealed().is_some().then_some(run)
            })
            .await;
            let (_, audit) = assert_sealed(stage, &run).await;
            assert_complete(&audit);
            for stream in ["out", "err"] {
                let found = audit.stream(&format!("std{stream}"));
                sequence::check(found, stream, 1000, 64).unwrap();
            }
        }
        stage.is_clean().await;
    }
}
