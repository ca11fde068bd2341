//! Removing old runs.

use std::time::Duration;

use moat::manager::{PruneOptions, PruneReport, SkipReason};
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::spec::KeepContainer;
use moat::{Error, Manager, RunId, ShutdownMode};

use crate::bench::{Bench, named, sealed, spec};

/// The runs that a prune removed.
fn ids(pruned: &PruneReport) -> Vec<&str> {
    let removed = pruned.removed.iter();
    removed.map(|(run, _)| run.as_str()).collect()
}

/// The runs that a prune kept, and the reasons.
fn kept(pruned: &PruneReport) -> Vec<(&str, &SkipReason)> {
    let kept = pruned.kept.iter();
    kept.map(|(run, reason)| (run.as_str(), reason)).collect()
}

#[tokio::test]
async fn prune_removes_the_oldest_sealed_runs() {
    let bench = Bench::new();
    let manager = bench.open().await;
    for name in ["a", "b", "c", "d"] {
        sealed(&bench.start(&manager, Script::new(), named(name)).await).await;
    }
    let live = bench
        .start(&manager, Script::new().until_stopped(), named("0-live"))
        .await;
    let damaged = bench.file("d", "logs.jsonl");
    std::fs::write(&damaged, b"{}\n").unwrap();
    let all = PruneOptions::new()
        .older_than(Duration::ZERO)
        .keep(0)
        .max_bytes(0);
    let unbounded = manager.prune(PruneOptions::new()).await.unwrap();
    assert!(unbounded.removed.is_empty());
    let dry = manager.prune(all.dry_run(true)).await.unwrap();
    assert_eq!(ids(&dry), ["a", "b", "c"]);
    assert_eq!(manager.root().runs().unwrap().len(), 5);
    let pruned = manager.prune(PruneOptions::new().keep(2)).await.unwrap();
    assert_eq!(ids(&pruned), ["a"]);
    assert_eq!(pruned.kept.len(), 4);
    let recent = manager
        .prune(PruneOptions::new().older_than(Duration::from_secs(3600)))
        .await;
    assert!(recent.unwrap().removed.is_empty());
    // Room for the runs that stay and for `c`.
    let fits = PruneOptions::new().max_bytes(dry.bytes_left + dry.removed[2].1);
    assert_eq!(ids(&manager.prune(fits).await.unwrap()), ["b"]);
    let pruned = manager.prune(all).await.unwrap();
    assert_eq!(ids(&pruned), ["c"]);
    let why = kept(&pruned);
    assert!(
        matches!(
            why[..],
            [
                ("0-live", SkipReason::NotSealed),
                ("d", SkipReason::Damaged(_))
            ]
        ),
        "{why:?}"
    );
    assert_eq!(manager.root().runs().unwrap().len(), 2);
    live.kill().await.unwrap();
}

#[tokio::test]
async fn a_failed_removal_costs_no_newer_run() {
    let bench = Bench::new();
    let manager = bench.open().await;
    for name in ["a", "b", "c"] {
        let spec = named(name).keep(KeepContainer::Always);
        sealed(&bench.start(&manager, Script::new(), spec).await).await;
    }
    let busy = RuntimeError::Broken {
        operation: "remove the container",
        reason: "the engine is busy".into(),
    };
    bench.runtime.fault(Call::Remove, Fault::Error(busy));
    let pruned = manager.prune(PruneOptions::new().keep(1)).await.unwrap();
    assert_eq!(ids(&pruned), ["b"]);
    let kept = kept(&pruned);
    assert!(
        matches!(
            kept[..],
            [("a", SkipReason::Failed(_)), ("c", SkipReason::Recent)]
        ),
        "{kept:?}"
    );
}

#[tokio::test]
async fn a_dry_run_predicts_refusals() {
    let bench = Bench::new();
    let manager = bench.open().await;
    bench.runtime.set_engine_id("one");
    let kept = || spec().keep(KeepContainer::Always);
    let of_one = bench.start(&manager, Script::new(), kept()).await;
    sealed(&of_one).await;
    let without_container = bench.start(&manager, Script::new(), named("plain")).await;
    sealed(&without_container).await;
    manager.shutdown(ShutdownMode::Leave).await;
    bench.runtime.set_engine_id("two");
    let root = bench.root();
    let other = Manager::open(root, bench.runtime.clone()).await.unwrap();
    let owned = other.root().dir(&RunId::new("owned").unwrap());
    bench.runtime.next(Script::new());
    sealed(&other.start(named("owned")).await.unwrap()).await;
    other.shutdown(ShutdownMode::Leave).await;
    let root = bench.root();
    let other = Manager::open(root, bench.runtime.clone()).await.unwrap();
    // As if another process owned the run.
    let lock = std::fs::File::open(owned.join("lock")).unwrap();
    lock.lock().unwrap();
    let all = PruneOptions::new().keep(0);
    for bounds in [all.dry_run(true), all] {
        let pruned = other.prune(bounds).await.unwrap();
        let removed: Vec<_> = pruned.removed.iter().map(|(run, _)| run).collect();
        assert_eq!(removed, [without_container.id()]);
        let why = |id: &RunId| {
            pruned
                .kept
                .iter()
                .find(|(run, _)| run == id)
                .map(|(_, why)| why)
        };
        assert!(matches!(
            why(of_one.id()),
            Some(SkipReason::Failed(Error::OtherEngine { .. }))
        ));
        assert!(matches!(
            why(&RunId::new("owned").unwrap()),
            Some(SkipReason::Failed(Error::Owned { .. }))
        ));
    }
    drop(lock);
    assert_eq!(other.root().runs().unwrap().len(), 2);
}
