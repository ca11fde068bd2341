//! The end of a run.

use std::time::Duration;

use moat::spec::KeepContainer;
use moat::state::State;
use moat::{Ending, Exit};
use testkit::{engine, sequence};

use crate::stage::{
    Stage, Watched, assert_bytes, assert_complete, end, is_removed_or_killed, printed, read, seal,
};

testkit::trials! {
    crate::on_engine:
        a_normal_run_leaves_a_complete_audit,
        the_exit_code_is_in_outcome_and_seal,
        a_run_without_output_is_complete,
        an_external_removal_keeps_the_output,
        out_of_memory_is_told_from_a_kill,
        a_child_out_of_memory_keeps_the_exit_code,
        all_waiters_get_the_same_outcome,
        closed_output_does_not_end_the_run,
}

async fn a_normal_run_leaves_a_complete_audit(stage: &Stage) {
    let (outcome, audit) = stage.run(stage.spec("lines 200 --stream both")).await;
    assert!(outcome.success(), "{outcome}");
    sequence::check(audit.stream("stdout"), "out", 200, 64).unwrap();
    sequence::check(audit.stream("stderr"), "err", 200, 64).unwrap();
    assert_complete(&audit);
    assert!(["end_marker", "tail", "replay"].contains(&audit.evidence()));
    assert_eq!(audit.all("started").len(), 1);
    assert_eq!(seal(&outcome).records, 400);
    assert!(seal(&outcome).image_digest.is_some());
    assert!(outcome.duration().is_some());
    assert_eq!(outcome.last_lines.len(), 20);
    // The order between streams is not promised.
    let last = [
        sequence::line("out", 200, 64),
        sequence::line("err", 200, 64),
    ];
    assert!(last.contains(&outcome.last_lines[19]));
}

/// The engine's client reports a non-zero code as an error.
async fn the_exit_code_is_in_outcome_and_seal(stage: &Stage) {
    let (outcome, audit) = stage.run(stage.spec("echo out + warn err + exit 7")).await;
    assert_eq!(outcome.code(), Some(7));
    assert!(!outcome.success());
    assert_eq!(audit.end["exit"]["code"], 7);
    assert_bytes(audit.stream("stdout"), b"out\n");
    assert_bytes(audit.stream("stderr"), b"err\n");
    assert_complete(&audit);
}

/// Invariant 7: an empty file means that nothing was printed, not that nothing was captured.
async fn a_run_without_output_is_complete(stage: &Stage) {
    let (outcome, audit) = stage.run(stage.spec("exit 0")).await;
    assert!(outcome.success());
    assert!(audit.streams.is_empty());
    assert_complete(&audit);
}

/// The open stream still delivers everything. A later request finds no log.
async fn an_external_removal_keeps_the_output(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager
        .start(stage.spec("lines 300 + echo all + sleep 600"))
        .await
        .unwrap();
    printed(&run, "all\n").await;
    let containers = stage.containers().await;
    engine::remove(&stage.docker, &containers[0]).await.unwrap();
    let outcome = end(&run).await;
    let audit = read(&outcome);
    assert!(
        is_removed_or_killed(&outcome.ending),
        "{}\n{:?}",
        audit.end,
        audit.all("gap")
    );
    let mut expected = sequence::lines("out", 300, 64);
    expected.extend_from_slice(b"all\n");
    assert_bytes(audit.stream("stdout"), &expected);
    // The log is gone, so no log confirms what the tap delivered.
    assert_ne!(audit.evidence(), "tail");
}

/// A container that the kernel killed for its memory need not exit with 137, and a code of 137 need
/// not mean that.
async fn out_of_memory_is_told_from_a_kill(stage: &Stage) {
    let spec = stage
        .spec("echo x + alloc 256")
        .memory(16 << 20)
        .keep(KeepContainer::Always);
    let (outcome, audit) = stage.run(spec).await;
    let Ending::Exited(Exit {
        oom_killed, code, ..
    }) = outcome.ending
    else {
        panic!("{outcome}");
    };
    assert_eq!(code, Some(137));
    // The engine gets the event separately from the exit, and may miss it.
    assert!(
        oom_killed || !stage.found_out_of_memory().await,
        "{outcome}"
    );
    assert_eq!(audit.end["exit"]["oom_killed"], oom_killed);
    assert_bytes(audit.stream("stdout"), b"x\n");
}

async fn a_child_out_of_memory_keeps_the_exit_code(stage: &Stage) {
    let spec = stage
        .spec("oom-child 256")
        .memory(16 << 20)
        .keep(KeepContainer::Always);
    let (outcome, audit) = stage.run(spec).await;
    let Ending::Exited(exit) = &outcome.ending else {
        panic!("{outcome}");
    };
    assert_eq!(exit.code, Some(0));
    assert_bytes(audit.stream("stdout"), b"the child ended by signal 9\n");
    // moat reports what the engine says, which may learn it later. moat infers nothing.
    assert!(!exit.oom_killed || stage.found_out_of_memory().await);
}

async fn all_waiters_get_the_same_outcome(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager
        .start(stage.gated("await /gate/go + exit 9"))
        .await
        .unwrap();
    let waiters: Vec<_> = (0..50)
        .map(|_| {
            let run = run.clone();
            tokio::spawn(async move { run.wait().await.unwrap() })
        })
        .collect();
    // A waiter that gives up does not affect the others.
    let gave_up = tokio::time::timeout(Duration::from_millis(20), run.wait()).await;
    assert!(gave_up.is_err());
    stage.open_gate("go");
    let first = end(&run).await;
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), first);
    }
    assert_eq!(manager.wait(run.id()).await.unwrap(), first);
    assert_eq!(first.code(), Some(9));
    assert!(matches!(run.state(), State::Ended { .. }));
}

/// The end of the output is not the end of the container.
async fn closed_output_does_not_end_the_run(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage.gated("echo last + close-stdio + await /gate/go + exit 6");
    let run = manager.start(spec).await.unwrap();
    printed(&run, "last\n").await;
    let early = tokio::time::timeout(Duration::from_millis(500), run.wait_exit()).await;
    assert!(early.is_err(), "{early:?}");
    stage.open_gate("go");
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(6));
    assert_complete(&read(&outcome));
    assert_bytes(
        Watched::all(run.attach().await.unwrap()).await.stdout(),
        b"last\n",
    );
}
