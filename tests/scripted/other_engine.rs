//! Runs of another engine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script, Scripted};
use moat::spec::KeepContainer;
use moat::{Error, Root, RunId, ShutdownMode, Verdict};
use testkit::deadline::eventually;

use crate::bench::{Bench, check, seal, sealed, spec};
use crate::recovery::{start_up_to, wait_until_unlocked};

/// The files in a run's directory and their content.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

/// A run that was left on engine `A`, and a bench for the same root with engine `B`.
async fn left_on_a(bench: &Bench, hangs: Option<Call>) -> (RunId, Bench) {
    bench.runtime.set_engine_id("A");
    bench
        .runtime
        .next(Script::new().stdout("a\n").until_stopped());
    let id = RunId::new("one").unwrap();
    let manager = bench.open().await;
    match hangs {
        None => {
            manager.start(spec().id(id.clone())).await.unwrap();
        }
        Some(call) => start_up_to(call, bench, &manager, spec().id(id.clone())).await,
    }
    if hangs == Some(Call::Attach) {
        // The id of the container is written meanwhile, also by a manager that leaves.
        let path = bench.file("one", "run.json");
        let record = || std::fs::read_to_string(&path).unwrap();
        let recorded = async || record().contains(r#""container":"#).then_some(());
        eventually(60, "the id of the container", recorded).await;
    }
    manager.shutdown(ShutdownMode::Leave).await;
    wait_until_unlocked(&Root::open(bench.root()).unwrap().audit(&id));
    let other = Scripted::new();
    other.set_engine_id("B");
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(bench.root(), directory.path().join("root")).unwrap();
    let other = Bench {
        runtime: other,
        directory,
    };
    (id, other)
}

/// The engine behind an address may be replaced between two runs of a manager.
#[tokio::test]
async fn a_run_records_the_engine_that_created_its_container() {
    let bench = Bench::new();
    let manager = bench.open().await;
    for (run, engine) in [("one", "A"), ("two", "B"), ("three", "A")] {
        bench.runtime.set_engine_id(engine);
        bench.runtime.next(Script::new());
        // The record is on the disk before the start.
        bench.runtime.fault(Call::Start, Fault::Hang);
        let path = bench.file(run, "run.json");
        let recorded = async || {
            let record = std::fs::read_to_string(&path).ok()?;
            record.contains("container").then_some(record)
        };
        let spec = spec().id(RunId::new(run).unwrap());
        let record = tokio::select! {
            started = manager.start(spec) => panic!("{started:?}"),
            record = eventually(60, "the record", recorded) => record,
        };
        let expected = format!(r#""engine_id":"{engine}""#);
        assert!(record.contains(&expected), "{record}");
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

/// A container that one engine does not have may be on another engine.
#[tokio::test]
async fn a_run_of_another_engine_is_left_alone() {
    // Also before the container's id or its start is recorded.
    for call in [
        None,
        Some(Call::Create),
        Some(Call::Attach),
        Some(Call::Inspect),
    ] {
        let bench = Bench::new();
        let (id, other) = left_on_a(&bench, call).await;
        let before = files(&bench.root().join(id.as_str()));

        let manager = other.open().await;
        let run = manager.wait_recovery().await.unwrap().remove(0);
        let problem = run.problem().unwrap();
        assert!(problem.contains("engine A") && problem.contains("engine B"));
        let refused = run.wait().await;
        assert!(
            matches!(&refused, Err(Error::OtherEngine { engine, here, .. })
                if engine == "A" && here == "B"),
            "{call:?}: {refused:?}"
        );
        manager.shutdown(ShutdownMode::Leave).await;
        let after = files(&bench.root().join(id.as_str()));
        assert!(before == after, "{call:?}: its files were touched");

        let manager = bench.open().await;
        let outcome = manager.stop(&id, Some(Duration::ZERO)).await.unwrap();
        check(&outcome);
        assert_eq!(seal(&outcome).verdict, Verdict::Complete, "{call:?}");
    }
}

/// An engine that does not answer, or has no id, is not treated as another engine.
#[tokio::test(start_paused = true)]
async fn only_a_different_engine_id_is_another_engine() {
    let bench = Bench::new();
    let (id, _) = left_on_a(&bench, None).await;
    for _ in 0..3 {
        bench.runtime.fault(Call::Engine, Fault::AnswerLost);
    }
    let manager = bench.open().await;
    let run = manager.wait_recovery().await.unwrap().remove(0);
    assert_eq!(run.problem(), None);
    manager.shutdown(ShutdownMode::Leave).await;
    wait_until_unlocked(&run.audit().unwrap());

    let refuses = RuntimeError::Rejected {
        operation: "tell its version",
        reason: "injected fault".into(),
    };
    bench.runtime.fault(Call::Engine, Fault::Error(refuses));
    let manager = bench.open().await;
    manager.stop(&id, Some(Duration::ZERO)).await.unwrap();
    let outcome = sealed(&manager.get(&id).await.unwrap()).await;
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

#[tokio::test]
async fn a_flipped_bit_does_not_change_the_engine() {
    let bench = Bench::new();
    let (id, _) = left_on_a(&bench, None).await;
    let path = bench.root().join(id.as_str()).join("run.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(r#""engine_id":"A""#), "{text}");
    std::fs::write(
        &path,
        text.replace(r#""engine_id":"A""#, r#""engine_id":"C""#),
    )
    .unwrap();
    let manager = bench.open().await;
    let outcome = manager.stop(&id, Some(Duration::ZERO)).await.unwrap();
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

/// The other engine has the container. A run without a container can be removed.
#[tokio::test]
async fn a_container_kept_elsewhere_blocks_remove() {
    for keep in [KeepContainer::Always, KeepContainer::Never] {
        let bench = Bench::new();
        bench.runtime.set_engine_id("A");
        let outcome = bench.run(Script::new(), spec().keep(keep)).await;
        bench.runtime.set_engine_id("B");
        let manager = bench.open().await;
        let removed = manager.remove(&outcome.run).await;
        match keep {
            KeepContainer::Always => {
                assert!(
                    matches!(removed, Err(Error::OtherEngine { .. })),
                    "{removed:?}"
                );
            }
            _ => removed.unwrap(),
        }
    }
}
