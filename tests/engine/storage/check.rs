//! Assertions about a run whose audit could not be written for a while.

use std::time::Duration;

use moat::audit::{LogState, verify};
use moat::outcome::SealState;
use moat::state::RunStatus;
use moat::{Manager, Outcome, Run};
use testkit::audit::Audit;
use testkit::deadline::{eventually, within};
use testkit::sequence;

use crate::stage::{Stage, assert_nothing_missed, end, read};

/// The time that `wait` waits for a seal in these trials.
pub const SEAL_TIMEOUT: Duration = Duration::from_millis(300);

/// Asserts that the exit with `code` is reported everywhere, that the pending seal has a reason
/// with `reason` in it, that the audit does not verify as sealed, and that the container is kept.
pub async fn assert_pending(stage: &Stage, manager: &Manager, run: &Run, code: i64, reason: &str) {
    // If the exit is reported before the first failure, the reason comes later.
    eventually(60, reason, async || {
        let outcome = within(60, "the exit", run.wait()).await.unwrap();
        assert_eq!(outcome.code(), Some(code), "{outcome}");
        match outcome.seal {
            SealState::Pending { reason: found } => found.contains(reason).then_some(()),
            sealed => panic!("not pending: {sealed:?}"),
        }
    })
    .await;
    assert!(
        run.problem()
            .is_some_and(|problem| problem.contains(reason))
    );
    let listed = manager.list().await.unwrap();
    let info = listed.iter().find(|info| info.run == *run.id());
    let info = info.expect("the run is listed");
    assert_eq!(info.status, RunStatus::Exited, "{info:?}");
    assert!(info.seal.is_none(), "{info:?}");
    if let Ok(found) = verify(run.audit().unwrap()) {
        assert!(!matches!(found.state, LogState::Sealed(_)), "{found:?}");
    }
    assert_eq!(stage.containers().await.len(), 1, "the container is kept");
}

/// Waits for the seal of a run. Asserts that its audit has lines 1 to `count` on each of the
/// `streams` and misses nothing, and that nothing else is left of the run.
pub async fn assert_whole(stage: &Stage, run: &Run, streams: &[&str], count: u64) -> Audit {
    let (_, audit) = assert_sealed(stage, run).await;
    assert_nothing_missed(&audit);
    for stream in streams {
        let found = audit.stream(&format!("std{stream}"));
        sequence::check(found, stream, count, 64).unwrap();
    }
    stage.is_clean().await;
    audit
}

/// Waits for the seal of a run and reads its audit.
pub async fn assert_sealed(stage: &Stage, run: &Run) -> (Outcome, Audit) {
    let outcome = end(run).await;
    let audit = read(&outcome);
    assert_files(stage, run).await;
    (outcome, audit)
}

/// Waits until a sealed run has no other files than it should.
async fn assert_files(stage: &Stage, run: &Run) {
    let names = |dir| {
        std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>()
    };
    let is_known = |name: &String| {
        ["lock", "logs.jsonl", "run.json"].contains(&&**name) || name.starts_with("torn-")
    };
    // The copy of the seal is written after the outcome.
    let only_known = async || {
        let known = names(run.dir().to_owned()).iter().all(is_known);
        let is_temporary = |name: &String| name.starts_with('.') && name != ".ledger-reserve";
        let hidden = names(stage.root()).iter().any(is_temporary);
        (known && !hidden).then_some(())
    };
    eventually(60, "the removal of temporary files", only_known).await;
}
