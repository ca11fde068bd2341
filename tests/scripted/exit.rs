//! The end of a run, and its container after that.

use moat::audit::GapReason;
use moat::outcome::Stream;
use moat::runtime::scripted::Script;
use moat::spec::KeepContainer;
use moat::{Ending, ShutdownMode};

use crate::bench::{Bench, check, named, sealed, spec};
use crate::records::{gaps, text};

#[tokio::test]
async fn an_external_removal_is_recorded() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().stdout("x\n").until_stopped());
    let manager = bench.open().await;
    let run = manager.start(spec()).await.unwrap();
    bench.runtime.remove_externally(run.id());
    let outcome = run.wait().await.unwrap();
    assert_eq!(outcome.ending, Ending::Removed { code: Some(137) });
    assert_eq!(text(&outcome, Stream::Stdout), "x\n");
    check(&outcome);
}

#[tokio::test]
async fn a_restarted_container_is_another_execution() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().stdout("first\n").until_stopped());
    let manager = bench.open().await;
    let id = manager.start(spec()).await.unwrap().id().clone();
    manager.shutdown(ShutdownMode::Leave).await;
    bench.runtime.start_externally(&id);
    let next = bench.open().await;
    let outcome = next.wait(&id).await.unwrap();
    assert!(matches!(outcome.ending, Ending::Lost { .. }));
    assert_eq!(gaps(&outcome), [GapReason::StartedAgain]);
    next.shutdown(ShutdownMode::Leave).await;
    assert_eq!(bench.runtime.containers(), 1, "it was started externally");
}

#[tokio::test]
async fn the_policy_decides_which_containers_stay() {
    for (keep, code, kept) in [
        (KeepContainer::Never, 1, 0),
        (KeepContainer::OnGap, 1, 0),
        (KeepContainer::OnFailure, 0, 0),
        (KeepContainer::OnFailure, 1, 1),
        (KeepContainer::Always, 0, 1),
    ] {
        let bench = Bench::new();
        bench.run(Script::new().exit(code), spec().keep(keep)).await;
        assert_eq!(bench.runtime.containers(), kept, "{keep:?} {code}");
    }
}

#[tokio::test]
async fn a_failed_run_is_an_error_with_its_last_lines() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let script = Script::new()
        .stdout("one\n")
        .stderr("\x1b[31mtwo\n")
        .exit(3);
    let run = bench.start(&manager, script, named("broken")).await;
    let error = sealed(&run).await.into_result().unwrap_err();
    assert_eq!(
        error.to_string(),
        "run broken exited with code 3; its last lines:\n  one\n  \\u{1b}[31mtwo"
    );
    let fine = bench.start(&manager, Script::new(), spec()).await;
    assert!(sealed(&fine).await.into_result().is_ok());
}
