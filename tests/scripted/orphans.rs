//! Containers whose run is gone, and containers past their deadline.

use std::time::Duration;

use moat::manager::{Orphan, OrphanReason, ReapAction, ReapOptions, ReapedContainer};
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::{Ending, Manager, ShutdownMode};

use crate::bench::{Bench, named, sealed, spec};

#[tokio::test]
async fn kept_containers_are_not_orphans() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let gone = bench
        .start(&manager, Script::new().until_stopped(), named("gone"))
        .await;
    let live = bench
        .start(&manager, Script::new().until_stopped(), named("live"))
        .await;
    let kept = spec().keep(moat::spec::KeepContainer::Always);
    sealed(&bench.start(&manager, Script::new(), kept).await).await;
    assert_eq!(manager.orphans().await.unwrap(), []);
    manager.shutdown(ShutdownMode::Leave).await;
    std::fs::remove_dir_all(gone.dir()).unwrap();
    let again = bench.builder_here().open().await.unwrap();
    again.wait_recovery().await.unwrap();
    let orphans = again.orphans().await.unwrap();
    let [Orphan::Container(orphan)] = &orphans[..] else {
        panic!("{orphans:?}");
    };
    assert_eq!(
        (&orphan.run, orphan.reason),
        (gone.id(), OrphanReason::NoRun)
    );
    assert_eq!(bench.runtime.containers(), 3);
    again.remove_orphan(&orphans[0]).await.unwrap();
    again.remove_orphan(&orphans[0]).await.unwrap();
    assert_eq!(again.orphans().await.unwrap(), []);
    assert_eq!(bench.runtime.containers(), 2);
    again.get(live.id()).await.unwrap().kill().await.unwrap();
}

#[tokio::test]
async fn only_expired_containers_are_reaped() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let second = Duration::from_secs(1);
    // Longer than the manager takes to leave.
    let limited = || spec().time_limit(second * 60).stop_grace(second);
    let endless = || Script::new().until_stopped();
    let none = bench
        .start(&manager, endless(), spec().detached(true))
        .await;
    let late = bench.start(&manager, endless(), limited()).await;
    let soon = bench
        .start(&manager, endless(), spec().time_limit(second * 3600))
        .await;
    // As if the machine were gone.
    manager.shutdown(ShutdownMode::Leave).await;
    let other = tempfile::tempdir().unwrap();
    let reaper = Manager::builder(other.path().join("root"), bench.runtime.clone())
        .runtime_handle(tokio::runtime::Handle::current())
        .open()
        .await
        .unwrap();
    assert!(
        reaper.reap(ReapOptions::new()).await.unwrap().is_empty(),
        "too early"
    );
    // The deadline: limit, grace, and two minutes for the engine.
    bench
        .runtime
        .advance_deadlines(Duration::from_secs(60 + 1 + 120 + 61));
    let hasty = ReapOptions::new().stop_after(Duration::ZERO);
    let dry = reaper.reap(hasty.dry_run(true)).await.unwrap();
    assert_eq!(dry.containers.len(), 1);
    assert_eq!(bench.runtime.calls(Call::Signal), 0);
    assert!(reaper.reap(ReapOptions::new()).await.unwrap().is_empty());
    let reaped = reaper.reap(hasty).await.unwrap();
    assert!(matches!(
        reaped.containers[..],
        [ReapedContainer {
            action: ReapAction::Stopped,
            ..
        }]
    ));
    assert_eq!(&reaped.containers[0].run, late.id());
    assert!(
        reaper.reap(hasty).await.unwrap().is_empty(),
        "it has its output"
    );
    assert_eq!(bench.runtime.containers(), 3);
    // An error ends nothing, because nothing could report it.
    let down = RuntimeError::Unavailable {
        address: "the engine".into(),
        reason: "it restarts".into(),
    };
    bench.runtime.fault(Call::FindResources, Fault::Error(down));
    let unlisted = reaper.reap(hasty.remove_after(Duration::ZERO)).await;
    assert!(unlisted.is_err());
    assert_eq!(bench.runtime.containers(), 3);
    let reaped = reaper
        .reap(hasty.remove_after(Duration::ZERO))
        .await
        .unwrap();
    assert!(matches!(
        reaped.containers[..],
        [ReapedContainer {
            action: ReapAction::Removed,
            ..
        }]
    ));
    assert_eq!(bench.runtime.containers(), 2);

    let again = bench.builder_here().open().await.unwrap();
    assert!(again.reap(hasty).await.unwrap().is_empty(), "its own");
    let outcome = sealed(&again.get(late.id()).await.unwrap()).await;
    assert_eq!(outcome.ending, Ending::Removed { code: None });
    for run in [none, soon] {
        let outcome = again.get(run.id()).await.unwrap().kill().await.unwrap();
        assert_eq!(outcome.code(), Some(137));
    }
}
