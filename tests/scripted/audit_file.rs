//! Audit files that cannot be written or were removed.

use std::time::Duration;

use futures::StreamExt;
use moat::audit::{GapReason, LogState};
use moat::manager::RecoveryMode;
use moat::outcome::Stream;
use moat::runtime::scripted::Script;
use moat::spec::{Backstop, ExecSpec};
use moat::state::RunStatus;
use moat::{Error, RunId, ShutdownMode, Verdict};
use testkit::deadline::eventually;

use crate::bench::{Bench, check, named, seal, sealed, spec};
use crate::records::{gaps, text};

/// The file of another run, of another root, or of an exec is not the file of the run.
#[tokio::test]
async fn a_file_in_another_place_is_named_with_both_ids() {
    let bench = Bench::new();
    let manager = bench.open().await;
    for name in ["mine", "other"] {
        let script = Script::new().stdout("x\n").until_stopped();
        let run = bench.start(&manager, script, named(name)).await;
        bench.runtime.next_exec(Script::new().exit(0));
        let exec = run.exec(ExecSpec::new(["true"])).await.unwrap();
        exec.wait().await.unwrap();
        run.stop(None).await.unwrap();
        sealed(&run).await;
    }
    manager.shutdown(ShutdownMode::Leave).await;
    let elsewhere = Bench::new();
    check(&elsewhere.run(Script::new(), named("mine")).await);

    let root = bench.view();
    let mine = RunId::new("mine").unwrap();
    let found = root.verify(&mine).unwrap();
    assert!(matches!(found.state, LogState::Sealed(_)), "{found:?}");
    assert_eq!(found.start.unwrap().record.run, mine);

    let roots = (elsewhere.view().id().clone(), root.id().clone());
    let cases = [
        (
            bench.file("other", "logs.jsonl"),
            "it belongs to run other, but is in the directory of run mine".to_owned(),
        ),
        (
            elsewhere.file("mine", "logs.jsonl"),
            format!("it belongs to root {}, but is in root {}", roots.0, roots.1),
        ),
        (
            bench.file("mine", "exec-1.jsonl"),
            "it belongs to exec 1, but is the file of run mine".to_owned(),
        ),
    ];
    for (file, reason) in cases {
        std::fs::copy(file, root.audit(&mine)).unwrap();
        let found = root.verify(&mine).unwrap();
        let LogState::Damaged(damage) = found.state else {
            panic!("{reason}");
        };
        assert_eq!((damage.line, damage.offset), (1, 0));
        assert_eq!(damage.reason, reason);
        assert_eq!((found.lines, found.records), (0, 0));
    }
    let missing = root.verify(&RunId::new("missing").unwrap());
    assert!(matches!(missing, Err(Error::NoSuchRun { .. })));
}

#[tokio::test(start_paused = true)]
async fn execs_are_listed_and_verified() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let run = bench
        .start(&manager, Script::new().until_stopped(), named("mine"))
        .await;
    for code in [0, 3] {
        bench
            .runtime
            .next_exec(Script::new().stdout("x\n").exit(code));
        let exec = run.exec(ExecSpec::new(["test", &code.to_string()]));
        exec.await.unwrap().wait().await.unwrap();
    }
    bench.runtime.next_exec(Script::new().until_stopped());
    run.exec(ExecSpec::new(["wait"])).await.unwrap();

    let (root, mine) = (bench.view(), RunId::new("mine").unwrap());
    let execs = root.execs(&mine).unwrap();
    let summary = |exec: &moat::root::ExecInfo| {
        let record = exec.record.as_ref().unwrap();
        let code = exec.seal.as_ref().map(|seal| seal.exit.code());
        (exec.number, record.settings.cmd.join(" "), code)
    };
    assert_eq!(
        execs.iter().map(summary).collect::<Vec<_>>(),
        [
            (1, "test 0".to_owned(), Some(Some(0))),
            (2, "test 3".to_owned(), Some(Some(3))),
            (3, "wait".to_owned(), None),
        ]
    );
    let verified = root.verify_exec(&mine, 2).unwrap();
    assert!(matches!(verified.state, LogState::Sealed(_)));
    assert_eq!(verified.records, 1);

    for (file, reason) in [
        (
            "exec-1.jsonl",
            "it belongs to exec 1, but is the file of exec 2",
        ),
        (
            "logs.jsonl",
            "it belongs to run mine, but is the file of exec 2",
        ),
    ] {
        std::fs::copy(bench.file("mine", file), &execs[1].audit).unwrap();
        let LogState::Damaged(damage) = root.verify_exec(&mine, 2).unwrap().state else {
            panic!("{reason}");
        };
        assert_eq!(damage.reason, reason);
    }
    std::fs::write(&execs[1].audit, "no record\n").unwrap();
    assert!(root.execs(&mine).unwrap()[1].problem.is_some());
    let missing = RunId::new("missing").unwrap();
    assert!(matches!(root.execs(&missing), Err(Error::NoSuchRun { .. })));
    run.stop(None).await.unwrap();
    manager.shutdown(ShutdownMode::Leave).await;
}

#[tokio::test]
async fn a_removed_audit_is_restored_before_the_seal() {
    for whole_directory in [false, true] {
        let bench = Bench::new();
        bench.runtime.next(
            Script::new()
                .stdout("one\n")
                .pause(Duration::from_millis(200))
                .stdout("two\n")
                .exit(7),
        );
        let manager = bench.open().await;
        let run = manager.start(spec()).await.unwrap();
        if whole_directory {
            std::fs::remove_dir_all(run.dir()).unwrap();
        } else {
            std::fs::remove_file(run.audit().unwrap()).unwrap();
        }
        let outcome = sealed(&run).await;
        check(&outcome);
        assert_eq!(outcome.code(), Some(7));
        assert_eq!(text(&outcome, Stream::Stdout), "one\ntwo\n");
        manager.shutdown(ShutdownMode::Leave).await;
        assert_eq!(bench.runtime.containers(), 0);
    }
}

/// Without a backstop, the lost part of the log cannot be read again.
#[tokio::test]
async fn a_removed_audit_without_backstop_is_a_gap() {
    let bench = Bench::new();
    bench.runtime.next(
        Script::new()
            .stdout("one\n")
            .pause(Duration::from_millis(200))
            .stdout("two\n"),
    );
    let manager = bench.open().await;
    let bare = spec().backstop(Backstop::None);
    let run = manager.start(bare).await.unwrap();
    std::fs::remove_file(run.audit().unwrap()).unwrap();
    let outcome = sealed(&run).await;
    check(&outcome);
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
    assert_eq!(gaps(&outcome), [GapReason::NoBackstop]);
}

/// While the disk refuses, nothing is captured or sealed. The exit is still reported, and does not
/// change.
#[tokio::test]
async fn an_unsealed_exit_is_recorded_and_stays() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().stdout("x\n").until_stopped().exit_on_term(7));
    let manager = bench
        .builder()
        .seal_timeout(Duration::from_millis(300))
        .open()
        .await
        .unwrap();
    let run = manager.start(spec()).await.unwrap();
    // A directory in place of the audit file.
    let audit = run.audit().unwrap();
    std::fs::remove_file(&audit).unwrap();
    std::fs::create_dir(&audit).unwrap();
    let mut attachment = run.attach().await.unwrap();
    let outcome = run.stop(None).await.unwrap();
    assert_eq!(outcome.code(), Some(7));
    assert!(outcome.sealed().is_none(), "{outcome}");
    // The attachment ends with an error.
    while let Some(Ok(_)) = attachment.next().await {}
    // On a slow disk, the exit is reported before it is recorded.
    eventually(60, "the exit on record", async || {
        let info = manager.root().info(run.id()).unwrap();
        (info.status == RunStatus::Exited).then_some(())
    })
    .await;

    manager.shutdown(ShutdownMode::Leave).await;
    let info = manager.root().info(run.id()).unwrap();
    assert_eq!(info.status, RunStatus::Exited);
    assert!(info.problem.unwrap().contains("a directory"));
    bench.runtime.remove_externally(run.id());
    std::fs::remove_dir(&audit).unwrap();
    let next = bench.open().await;
    let outcome = next.wait(run.id()).await.unwrap();
    assert_eq!(outcome.code(), Some(7), "{outcome}");
    check(&outcome);
}

/// The audit is sealed, but writing the record failed.
#[tokio::test]
async fn a_sealed_run_with_a_stale_record_is_removable() {
    let bench = Bench::new();
    let outcome = bench.run(Script::new().stdout("x\n"), spec()).await;
    let record = bench.root().join(outcome.run.as_str()).join("run.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json.as_object_mut().unwrap().remove("seal");
    std::fs::write(&record, json.to_string()).unwrap();
    let manager = bench
        .builder()
        .recovery(RecoveryMode::OnDemand)
        .open()
        .await
        .unwrap();
    manager.remove(&outcome.run).await.unwrap();
    assert!(manager.list().await.unwrap().is_empty());
}
