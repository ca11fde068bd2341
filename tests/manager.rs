//! The manager on the scripted runtime: what an engine cannot be made to do.
#![cfg(feature = "testing")]
#![allow(unreachable_pub)]

#[path = "support/deadline.rs"]
mod deadline;
#[path = "support/records.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod records;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use moat::audit::{Event, GapReason, LogState, Reader, Record, verify};
use moat::manager::RecoveryMode;
use moat::outcome::{Evidence, StopCause, Stream};
use moat::run::{AttachOptions, Attached};
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script, Scripted};
use moat::spec::{Backstop, KeepContainer, LimitAction, Stdin};
use moat::{
    Ending, Error, Manager, Outcome, Root, Run, RunId, RunSpec, Seal, ShutdownMode, Verdict,
};
use tokio::io::AsyncWriteExt;
use tokio::task::unconstrained;

use deadline::{eventually, within};
use records::events;

struct Bench {
    runtime: Scripted,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            runtime: Scripted::new(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    async fn open(&self) -> Manager {
        // Some of the clocks are paused.
        Manager::builder(self.root(), self.runtime.clone())
            .runtime_handle(tokio::runtime::Handle::current())
            .open()
            .await
            .unwrap()
    }

    /// Runs a script to its end, and checks what holds for every run.
    async fn run(&self, script: Script, spec: RunSpec) -> Outcome {
        self.runtime.next(script);
        let manager = self.open().await;
        let outcome = match manager.start(spec).await {
            Ok(run) => sealed(&run).await,
            Err(Error::NotStarted { outcome, .. }) => {
                sealed(&manager.get(&outcome.run).await.unwrap()).await
            }
            Err(error) => panic!("{}", error.chain()),
        };
        manager.shutdown(ShutdownMode::Leave).await;
        check(&outcome);
        outcome
    }
}

/// Starts a run, as far as to a call that hangs.
async fn start_up_to(call: Call, bench: &Bench, manager: &Manager, spec: RunSpec) {
    bench.runtime.fault(call, Fault::Hang);
    let called = async || (bench.runtime.calls(call) > 0).then_some(());
    tokio::select! {
        started = manager.start(spec) => panic!("{started:?}"),
        () = eventually(60, "the call", called) => {}
    }
}

/// Waits until nothing of a manager that has left writes to the log any more, and holds its lock.
/// Without a tick of a paused clock, which would run past all that is due meanwhile.
fn let_go(audit: &Path) {
    let begun = std::time::Instant::now();
    while std::fs::File::open(audit).unwrap().try_lock().is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is held");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for the seal. A paused clock runs ahead while a thread writes a file, past any bound.
async fn sealed(run: &Run) -> Outcome {
    loop {
        let outcome = run.wait().await.unwrap();
        if outcome.sealed().is_some() {
            return outcome;
        }
    }
}

fn spec() -> RunSpec {
    RunSpec::new("any")
}

/// The process that was asked for the stop dies before the grace is over.
#[tokio::test]
async fn a_stop_outlives_the_process_that_was_asked_for_it() {
    // A first manager that is held up for that long before it leaves kills, too.
    for (grace, closed) in [(5.0, Duration::ZERO), (2.0, Duration::from_millis(2100))] {
        let bench = Bench::new();
        let script = Script::new().stdout("a\n").ignore_term().until_stopped();
        bench.runtime.next(script);
        let manager = bench.open().await;
        let run = manager.start(spec()).await.unwrap();
        let (id, audit) = (run.id().clone(), run.audit().unwrap());
        let asked = std::time::Instant::now();
        let stops = || {
            let is_stop = |event: &Event| matches!(event, Event::Stop(_));
            events(&audit).into_iter().filter(is_stop).count()
        };
        let recorded = async {
            while bench.runtime.calls(Call::Signal) == 0 || stops() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            stopped = run.stop(Some(Duration::from_secs_f64(grace))) => panic!("{stopped:?}"),
            () = recorded => {}
        }
        manager.shutdown(ShutdownMode::Leave).await;
        assert_eq!(bench.runtime.calls(Call::Signal), 1);
        tokio::time::sleep(closed).await;

        let manager = bench.open().await;
        let run = manager.get(&id).await.unwrap();
        let outcome = tokio::time::timeout(Duration::from_secs(60), run.wait());
        let outcome = outcome.await.unwrap().unwrap();
        assert!(asked.elapsed().as_secs_f64() >= grace);
        check(&outcome);
        assert_eq!(outcome.code(), Some(137));
        assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
        assert_eq!(
            bench.runtime.calls(Call::Signal),
            2,
            "a signal was sent twice"
        );
        assert_eq!(stops(), 1);
    }
}

/// The folder of a run: its files, and what they hold.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

/// A run that was left, and the manager that its root is opened with against engine `B`.
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
    manager.shutdown(ShutdownMode::Leave).await;
    let_go(&Root::open(bench.root()).unwrap().audit(&id));
    let other = Scripted::new();
    other.set_engine_id("B");
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(bench.root(), dir.path().join("root")).unwrap();
    let other = Bench {
        runtime: other,
        dir,
    };
    (id, other)
}

/// What one engine does not find may live on another one.
#[tokio::test]
async fn a_run_of_another_engine_is_left_alone() {
    // Also before its container's id is written down, or its start.
    for call in [
        None,
        Some(Call::Create),
        Some(Call::Tap),
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

/// One that does not answer may be any, and one that does not say who it is, is taken for the one.
#[tokio::test(start_paused = true)]
async fn only_an_engine_that_says_so_is_another_one() {
    let bench = Bench::new();
    let (id, _) = left_on_a(&bench, None).await;
    for _ in 0..3 {
        bench.runtime.fault(Call::Engine, Fault::AnswerLost);
    }
    let manager = bench.open().await;
    let run = manager.wait_recovery().await.unwrap().remove(0);
    assert_eq!(run.problem(), None);
    manager.shutdown(ShutdownMode::Leave).await;
    let_go(&run.audit().unwrap());

    let refuses = RuntimeError::Rejected {
        operation: "tell its version",
        reason: "made for the test".into(),
    };
    bench.runtime.fault(Call::Engine, Fault::Error(refuses));
    let manager = bench.open().await;
    manager.stop(&id, Some(Duration::ZERO)).await.unwrap();
    let outcome = sealed(&manager.get(&id).await.unwrap()).await;
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

#[tokio::test]
async fn a_flipped_bit_makes_no_run_another_engines() {
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

/// It is the other one that has it. What was removed from there keeps no run from its removal.
#[tokio::test]
async fn a_container_that_is_kept_on_another_engine_is_not_left_behind() {
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

fn seal(outcome: &Outcome) -> &Seal {
    outcome.sealed().unwrap_or_else(|| panic!("{outcome}"))
}

/// The file is there, sealed, undamaged, and says what the outcome says.
fn check(outcome: &Outcome) {
    let path = outcome.audit.as_ref().unwrap();
    let verification = verify(path).unwrap();
    match verification.state {
        LogState::Sealed(sealed) => assert_eq!(*sealed, *seal(outcome)),
        other => panic!("{other:?}"),
    }
}

fn gaps(outcome: &Outcome) -> Vec<GapReason> {
    events(outcome.audit.as_ref().unwrap())
        .into_iter()
        .filter_map(|event| match event {
            Event::Gap(gap) => Some(gap.reason),
            _ => None,
        })
        .collect()
}

fn text(outcome: &Outcome, stream: Stream) -> String {
    let mut text = String::new();
    for record in Reader::open(outcome.audit.as_ref().unwrap()).unwrap() {
        if let Record::Output(output) = record.unwrap()
            && output.stream == stream
        {
            text.push_str(std::str::from_utf8(&output.bytes).unwrap());
            if !output.partial {
                text.push('\n');
            }
        }
    }
    text
}

fn numbered(lines: usize) -> String {
    (0..lines).map(|n| format!("line {n}\n")).collect()
}

fn broken(operation: &'static str) -> Fault {
    Fault::Error(RuntimeError::Broken {
        operation,
        reason: "made for the test".into(),
    })
}

#[tokio::test]
async fn a_run_leaves_a_sealed_file_with_both_streams_and_the_exit() {
    let bench = Bench::new();
    let script = Script::new().stdout("out\n").stderr("err").exit(7);
    let outcome = bench.run(script, spec()).await;
    assert_eq!(outcome.code(), Some(7));
    assert_eq!(text(&outcome, Stream::Stdout), "out\n");
    assert_eq!(text(&outcome, Stream::Stderr), "err");
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(seal(&outcome).evidence, Evidence::Tail);
    assert_eq!(outcome.last_lines, ["out", "err"]);
    assert_eq!(bench.runtime.containers(), 0);
}

/// Invariant 1.
#[tokio::test]
async fn the_file_is_there_before_the_engine_is_asked_for_a_container() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let id = RunId::new("early").unwrap();
    start_up_to(Call::Create, &bench, &manager, spec().id(id.clone())).await;
    let audit = Root::open(bench.root()).unwrap().audit(&id);
    assert!(matches!(events(&audit)[..], [Event::Start(_)]));
}

#[tokio::test]
async fn what_cannot_start_is_sealed_with_the_reason_and_its_container_removed() {
    let bench = Bench::new();
    let outcome = bench
        .run(Script::new().fail_to_start("no such command"), spec())
        .await;
    assert!(matches!(&outcome.ending, Ending::FailedToStart { reason }
        if reason.contains("no such command")));
    assert_eq!(seal(&outcome).evidence, Evidence::NeverStarted);
    assert_eq!(bench.runtime.containers(), 0);

    bench.runtime.fault(
        Call::Create,
        Fault::Error(RuntimeError::Rejected {
            operation: "create the container",
            reason: "bad env TOKEN=s3cr3t-value".into(),
        }),
    );
    let outcome = bench
        .run(Script::new(), spec().env("TOKEN", "s3cr3t-value"))
        .await;
    let text = std::fs::read_to_string(outcome.audit.as_ref().unwrap()).unwrap();
    assert!(matches!(
        outcome.ending,
        Ending::NotCreated { aborted: false, .. }
    ));
    assert!(
        text.contains("bad env ***") && !text.contains("s3cr3t"),
        "{text}"
    );
}

/// Invariant 7: by content, also where the lines repeat themselves.
#[tokio::test]
async fn a_tap_that_ends_early_without_an_error_is_made_up_for_by_the_log() {
    for output in [numbered(500), "y\n".repeat(5000)] {
        for cut in [0, 1, 1000, output.len() as u64 - 1] {
            let bench = Bench::new();
            let script = Script::new().stdout(output.clone()).cut_tap_after(cut);
            let outcome = bench.run(script, spec()).await;
            assert_eq!(text(&outcome, Stream::Stdout), output);
            assert_eq!(seal(&outcome).verdict, Verdict::Complete);
            assert_eq!(seal(&outcome).evidence, Evidence::Replay);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_tap_that_does_not_end_with_its_container_is_given_up() {
    let bench = Bench::new();
    let script = Script::new().stdout(numbered(500)).tap_never_ends();
    let outcome = bench.run(script, spec()).await;
    assert_eq!(text(&outcome, Stream::Stdout), numbered(500));
    assert_eq!(seal(&outcome).evidence, Evidence::Replay);
}

#[tokio::test]
async fn a_log_that_has_less_than_was_captured_is_a_gap_and_nothing_is_taken_back() {
    let bench = Bench::new();
    let script = Script::new().stdout(numbered(500)).cut_log_after(700);
    let outcome = bench.run(script, spec()).await;
    assert_eq!(text(&outcome, Stream::Stdout), numbered(500));
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
    assert_eq!(gaps(&outcome), [GapReason::LogShorter]);
    assert_eq!(bench.runtime.containers(), 1, "it is kept for a human");
}

#[tokio::test]
async fn without_a_backstop_the_evidence_is_the_end_of_the_tap_alone() {
    let bench = Bench::new();
    let bare = spec().backstop(Backstop::None);
    let outcome = bench.run(Script::new().stdout("all\n"), bare.clone()).await;
    assert_eq!(seal(&outcome).evidence, Evidence::Eof);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

/// Invariant 6: many at once, and the exit is the same for all.
#[tokio::test]
async fn a_stop_that_races_with_the_natural_exit_keeps_the_real_one() {
    for _ in 0..50 {
        let bench = Bench::new();
        bench.runtime.next(
            Script::new()
                .stdout("x\n")
                .pause(Duration::from_millis(2))
                .exit(3),
        );
        let manager = bench.open().await;
        let run = manager.start(spec()).await.unwrap();
        let waiters: Vec<_> = (0..8).map(|_| run.wait()).collect();
        let (waited, stopped, killed) = tokio::join!(
            futures::future::join_all(waiters),
            run.stop(Some(Duration::ZERO)),
            run.kill()
        );
        let stopped = stopped.unwrap();
        assert_eq!(killed.unwrap().ending, stopped.ending);
        for outcome in waited {
            assert_eq!(outcome.unwrap().ending, stopped.ending);
        }
        assert!([3, 137, 143].contains(&stopped.code().unwrap()));
        check(&stopped);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_sends_the_signal_then_kills_after_the_grace() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().until_stopped().ignore_term());
    let manager = bench.open().await;
    let run = manager.start(spec()).await.unwrap();
    let begun = tokio::time::Instant::now();
    let stop = run.stop(Some(Duration::from_secs(130)));
    let (_, after) = tokio::join!(stop, async {
        run.wait_exit().await.unwrap();
        begun.elapsed()
    });
    let outcome = sealed(&run).await;
    assert_eq!(after.as_secs(), 130);
    assert_eq!(outcome.code(), Some(137));
    assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
}

#[tokio::test(start_paused = true)]
async fn the_time_limit_stops_a_run_and_says_so() {
    let bench = Bench::new();
    let limited = spec().time_limit(Duration::from_secs(5));
    let outcome = bench.run(Script::new().until_stopped(), limited).await;
    assert_eq!(outcome.code(), Some(143));
    assert_eq!(seal(&outcome).stopped, Some(StopCause::TimeLimit));
}

#[tokio::test(start_paused = true)]
async fn the_output_limit_drops_or_stops_and_leaves_a_gap() {
    for (action, code) in [(LimitAction::Drop, 0), (LimitAction::Stop, 143)] {
        let bench = Bench::new();
        let script = Script::new()
            .stdout(numbered(100))
            .pause(Duration::from_secs(60));
        let outcome = bench.run(script, spec().output_limit(100, action)).await;
        assert_eq!(outcome.code(), Some(code));
        assert_eq!(seal(&outcome).bytes.stdout, 100);
        assert_eq!(text(&outcome, Stream::Stdout), numbered(100)[..100]);
        assert_eq!(gaps(&outcome), [GapReason::OutputLimit]);
    }
}

/// Invariant 10.
#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_answer_changes_nothing() {
    let bench = Bench::new();
    for _ in 0..5 {
        bench.runtime.fault(Call::Wait, broken("wait"));
        bench.runtime.fault(Call::Logs, broken("read the log"));
    }
    let script = Script::new()
        .stdout(numbered(100))
        .pause(Duration::from_secs(9))
        .exit(4);
    let outcome = bench.run(script, spec()).await;
    assert_eq!(outcome.code(), Some(4));
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(seal(&outcome).evidence, Evidence::Replay);
}

/// Invariant 7: what dies in an engine's memory is in no log, and no tap shows it.
#[tokio::test(start_paused = true)]
async fn an_engine_that_was_restarted_under_a_run_is_a_possible_gap() {
    let bench = Bench::new();
    // The first ones may be asked for before the start has returned.
    for _ in 0..20 {
        bench.runtime.fault(Call::Wait, broken("wait"));
    }
    let script = Script::new().stdout("x\n");
    bench.runtime.next(script.pause(Duration::from_secs(9)));
    let manager = bench.open().await;
    let run = manager.start(spec()).await.unwrap();
    bench.runtime.restart();
    let outcome = sealed(&run).await;
    check(&outcome);
    assert_eq!(gaps(&outcome), [GapReason::EngineRestarted]);
    drop(run);

    // One that does not say whether it was, may have been.
    bench.runtime.fault(Call::Wait, broken("wait"));
    bench
        .runtime
        .fault(Call::Continuity, broken("tell its events"));
    bench.runtime.next(Script::new().pause(Duration::ZERO));
    let outcome = sealed(&manager.start(spec()).await.unwrap()).await;
    check(&outcome);
    assert_eq!(gaps(&outcome), [GapReason::EngineRestarted]);
}

/// It had all of the output when it told how the container ended.
#[tokio::test(start_paused = true)]
async fn an_engine_that_was_restarted_after_it_told_of_the_end_is_no_gap() {
    let bench = Bench::new();
    let script = Script::new().stdout("x\n");
    bench.runtime.next(script.pause(Duration::from_secs(1)));
    let run = bench.open().await.start(spec()).await.unwrap();
    for _ in 0..5 {
        bench.runtime.fault(Call::Inspect, broken("inspect"));
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    bench.runtime.restart();
    let outcome = sealed(&run).await;
    check(&outcome);
    assert_eq!(gaps(&outcome), []);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

/// The same, while no manager was there.
#[tokio::test(start_paused = true)]
async fn an_engine_that_was_restarted_while_nobody_watched_is_a_possible_gap() {
    // Not so short that the clock runs past its end while its start is written down.
    for length in [4, 60] {
        let bench = Bench::new();
        let script = Script::new().stdout("x\n");
        bench
            .runtime
            .next(script.pause(Duration::from_secs(length)));
        let manager = bench.open().await;
        let id = manager.start(spec()).await.unwrap().id().clone();
        manager.shutdown(ShutdownMode::Leave).await;
        bench.runtime.restart();
        tokio::time::sleep(Duration::from_secs(5)).await;
        for _ in 0..2 {
            let manager = bench.open().await;
            manager.wait_recovery().await.unwrap();
            manager.shutdown(ShutdownMode::Leave).await;
        }
        let manager = bench.open().await;
        let outcome = sealed(&manager.get(&id).await.unwrap()).await;
        check(&outcome);
        assert_eq!(gaps(&outcome), [GapReason::EngineRestarted]);
    }
}

/// A tap that ends early is no reason to see nothing for as long as the container runs.
#[tokio::test(start_paused = true)]
async fn what_is_printed_after_the_tap_has_ended_is_seen_before_the_end() {
    let bench = Bench::new();
    let script = Script::new()
        .stdout("one\n")
        .pause(Duration::from_secs(5))
        .stdout("two\n");
    bench.runtime.next(script.until_stopped().cut_tap_after(4));
    let manager = bench.open().await;
    let run = manager.start(spec()).await.unwrap();
    let mut attachment = run.attach().await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"two\n") {
        match attachment.next().await.unwrap().unwrap() {
            Attached::Chunk(chunk) => seen.extend_from_slice(&chunk.bytes),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, b"one\ntwo\n");
    run.kill().await.unwrap();
    let outcome = sealed(&run).await;
    check(&outcome);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_of_create_or_start_leaves_no_orphan() {
    let bench = Bench::new();
    bench.runtime.fault(Call::Create, Fault::AnswerLost);
    let outcome = bench.run(Script::new(), spec()).await;
    assert!(matches!(outcome.ending, Ending::NotCreated { .. }));
    assert_eq!(bench.runtime.containers(), 0);

    bench.runtime.fault(Call::Start, Fault::AnswerLost);
    let outcome = bench
        .run(Script::new().stdout("ran\n").exit(2), spec())
        .await;
    assert_eq!(
        outcome.code(),
        Some(2),
        "it runs, whatever became of the answer"
    );
    assert_eq!(text(&outcome, Stream::Stdout), "ran\n");
}

/// Invariant 6: what another process was told meanwhile, and what is sealed, is the same.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_the_removal_of_what_never_started_changes_no_ending() {
    let bench = Bench::new();
    bench.runtime.fault(Call::Remove, Fault::AnswerLost);
    let script = Script::new().fail_to_start("no such command");
    let outcome = bench.run(script, spec()).await;
    assert!(
        matches!(outcome.ending, Ending::FailedToStart { .. }),
        "{outcome}"
    );
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(bench.runtime.containers(), 0);
}

#[tokio::test]
async fn a_container_removed_by_others_is_said_to_be_removed() {
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

/// Invariant 4: the next opening goes on where the file ends.
#[tokio::test(start_paused = true)]
async fn a_manager_that_leaves_is_followed_by_the_next_one_without_loss_or_doubles() {
    let bench = Bench::new();
    let mut script = Script::new();
    // More than the clock can run ahead in three rounds.
    for n in 0..120 {
        script = script
            .stdout(format!("line {n}\n"))
            .stderr(format!("part {n}"))
            .pause(Duration::from_secs(1));
    }
    bench.runtime.next(script.exit(5));
    let manager = bench.open().await;
    let run = manager.start(spec()).await.unwrap();
    let (id, audit) = (run.id().clone(), run.audit().unwrap());
    drop(run);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(7)).await;
        // Once politely, later not.
        manager.shutdown(ShutdownMode::Leave).await;
        let_go(&audit);
        let next = bench.open().await;
        let runs = next.wait_recovery().await.unwrap();
        assert_eq!(runs.len(), 1);
        assert_eq!(runs[0].state().status(), moat::state::RunStatus::Running);
        tokio::time::sleep(Duration::from_secs(2)).await;
        next.shutdown(ShutdownMode::Leave).await;
        let_go(&audit);
    }
    let last = bench.open().await;
    let outcome = sealed(&last.get(&id).await.unwrap()).await;
    assert_eq!(outcome.code(), Some(5));
    assert_eq!(text(&outcome, Stream::Stdout), numbered(120));
    let parts: String = (0..120).map(|n| format!("part {n}")).collect();
    assert_eq!(text(&outcome, Stream::Stderr), parts);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    check(&outcome);
    last.shutdown(ShutdownMode::Leave).await;
    assert_eq!(bench.runtime.containers(), 0);
}

#[tokio::test]
async fn a_run_that_ended_while_nobody_watched_is_sealed_by_the_next_opening() {
    let bench = Bench::new();
    bench.runtime.next(
        Script::new()
            .pause(Duration::from_millis(30))
            .stdout("late\n")
            .exit(9),
    );
    let manager = bench.open().await;
    let id = manager.start(spec()).await.unwrap().id().clone();
    drop(manager);
    tokio::time::sleep(Duration::from_millis(60)).await;
    let next = bench.open().await;
    let outcome = next.wait(&id).await.unwrap();
    assert_eq!(outcome.code(), Some(9));
    assert_eq!(text(&outcome, Stream::Stdout), "late\n");
    check(&outcome);
}

#[tokio::test]
async fn a_run_that_never_came_to_its_container_is_sealed_as_aborted() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let id = RunId::new("cut").unwrap();
    start_up_to(Call::Create, &bench, &manager, spec().id(id.clone())).await;
    manager.shutdown(ShutdownMode::Leave).await;

    // And one that has a folder, and nothing else.
    let bare = RunId::new("bare").unwrap();
    std::fs::create_dir(bench.root().join(bare.as_str())).unwrap();

    let next = bench.open().await;
    for id in [id, bare] {
        let outcome = next.wait(&id).await.unwrap();
        assert!(
            matches!(outcome.ending, Ending::NotCreated { aborted: true, .. }),
            "{outcome}"
        );
        check(&outcome);
    }
}

/// Recovery starts nothing: a container that was made, and not started, goes.
#[tokio::test]
async fn a_container_that_was_not_started_is_removed_by_the_next_opening() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let id = RunId::new("made").unwrap();
    start_up_to(Call::Start, &bench, &manager, spec().id(id.clone())).await;
    manager.shutdown(ShutdownMode::Leave).await;
    assert_eq!(bench.runtime.containers(), 1);

    let next = bench.open().await;
    let outcome = next.wait(&id).await.unwrap();
    assert!(matches!(outcome.ending, Ending::FailedToStart { .. }));
    assert_eq!(bench.runtime.containers(), 0);
    check(&outcome);
}

#[tokio::test]
async fn a_container_that_was_started_again_is_another_execution() {
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
    assert_eq!(bench.runtime.containers(), 1, "it is not ours to end");
}

#[tokio::test]
async fn two_managers_on_one_root_have_one_owner_for_each_run() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().stdout("x\n").until_stopped());
    let first = bench.open().await;
    let run = first.start(spec()).await.unwrap();

    let second = bench.open().await;
    let seen = second.wait_recovery().await.unwrap();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].owned_elsewhere());
    assert!(matches!(
        second.remove(run.id()).await,
        Err(Error::NotSealed { .. })
    ));

    // A stop of the one that does not own it goes to the engine, and is recorded by the owner.
    let stopped = seen[0].stop(None).await.unwrap();
    let outcome = run.wait().await.unwrap();
    assert_eq!(stopped.ending, outcome.ending);
    let stops: Vec<_> = events(outcome.audit.as_ref().unwrap())
        .into_iter()
        .filter_map(|event| match event {
            Event::Stop(stop) => Some(stop.by_pid),
            _ => None,
        })
        .collect();
    assert_eq!(stops, [Some(std::process::id())]);
    check(&outcome);
}

#[tokio::test]
async fn a_second_manager_goes_on_when_the_first_one_leaves() {
    let bench = Bench::new();
    bench.runtime.next(
        Script::new()
            .stdout("a\n")
            .pause(Duration::from_millis(200))
            .stdout("b\n"),
    );
    let first = bench.open().await;
    let id = first.start(spec()).await.unwrap().id().clone();
    let second = bench.open().await;
    let waiting = second.get(&id).await.unwrap();
    first.shutdown(ShutdownMode::Leave).await;
    let outcome = waiting.wait().await.unwrap();
    assert_eq!(text(&outcome, Stream::Stdout), "a\nb\n");
    check(&outcome);
}

#[tokio::test(start_paused = true)]
async fn a_kill_that_was_asked_of_a_looker_on_goes_on_when_he_becomes_the_owner() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().until_stopped());
    let first = bench.open().await;
    let id = first.start(spec()).await.unwrap().id().clone();
    let second = bench.open().await;
    let run = second.get(&id).await.unwrap();
    second.wait_recovery().await.unwrap();
    assert!(run.owned_elsewhere());
    for _ in 0..100_000 {
        bench.runtime.fault(Call::Signal, broken("send a signal"));
    }
    let (outcome, ()) = tokio::join!(run.kill(), async {
        while bench.runtime.calls(Call::Signal) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        first.shutdown(ShutdownMode::Leave).await;
        while run.owned_elsewhere() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bench.runtime.clear_faults();
    });
    drop(outcome);
    assert_eq!(sealed(&run).await.code(), Some(137));
}

#[tokio::test]
async fn a_name_is_taken_once_and_a_removed_run_is_gone() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let id = RunId::new("twice").unwrap();
    let run = manager.start(spec().id(id.clone())).await.unwrap();
    run.wait().await.unwrap();
    assert!(matches!(
        manager.start(spec().id(id.clone())).await,
        Err(Error::RunExists { .. })
    ));
    let dir = run.dir().to_owned();
    // Its monitor may still be at the container.
    while let Err(error) = manager.remove(&id).await {
        assert!(matches!(error, Error::Owned { .. }), "{error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!dir.exists());
    assert!(matches!(
        manager.wait(&id).await,
        Err(Error::NoSuchRun { .. })
    ));
}

async fn watch(mut attachment: moat::run::Attachment) -> (String, u64) {
    let (mut seen, mut missed) = (String::new(), 0);
    while let Some(item) = attachment.next().await {
        match item.unwrap() {
            Attached::Chunk(chunk) => seen.push_str(std::str::from_utf8(&chunk.bytes).unwrap()),
            Attached::Lagged { bytes, .. } => missed += bytes,
            _ => {}
        }
    }
    (seen, missed)
}

#[tokio::test]
async fn whoever_looks_on_sees_everything_once_whenever_he_comes() {
    let bench = Bench::new();
    let mut script = Script::new();
    for n in 0..200 {
        script = script
            .stdout(format!("line {n}"))
            .pause(Duration::from_millis(1))
            .stdout("\n");
    }
    bench.runtime.next(script);
    let manager = bench.open().await;
    let run = manager.start(spec()).await.unwrap();
    let mut viewers = Vec::new();
    for n in 0..8 {
        let attachment = run.attach().await.unwrap();
        viewers.push(async move {
            tokio::time::sleep(Duration::from_millis(40 * n)).await;
            watch(attachment).await
        });
    }
    for seen in futures::future::join_all(viewers).await {
        assert_eq!(seen, (numbered(200), 0));
    }
    let late = manager.attach(run.id()).await.unwrap();
    assert_eq!(watch(late).await, (numbered(200), 0));
}

#[tokio::test]
async fn one_who_does_not_look_is_told_what_he_missed_and_the_audit_has_it_all() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().echo());
    let manager = bench.open().await;
    let run = manager.start(spec().stdin(Stdin::Open)).await.unwrap();
    let front = run.attach_with(AttachOptions::new().with_input()).await;
    let mut input = front.unwrap().input().unwrap();
    let mut all = String::from("line 0\nline 1\nline 2");
    input.write_all(all.as_bytes()).await.unwrap();

    let mut attachment = run.attach().await.unwrap();
    let mut patient = run.attach().await.unwrap().lossless();
    // They see the start of it, and then look away. The file has no line that is not whole: they
    // are at what comes live.
    let mut seen = String::new();
    let mut seen_patiently = String::new();
    for (attachment, seen) in [
        (&mut attachment, &mut seen),
        (&mut patient, &mut seen_patiently),
    ] {
        let start = async {
            while *seen != all {
                see(seen, attachment.next().await);
            }
        };
        within(60, "the start of it", start).await;
    }
    for n in 2..100 {
        let flood = match n {
            2 => "\n".to_owned(),
            _ => format!("line {n}{}\n", "x".repeat(40_000)),
        };
        input.write_all(flood.as_bytes()).await.unwrap();
        all.push_str(&flood);
    }
    let audit = run.audit().unwrap();
    eventually(60, "the flood's last line", async || {
        let text = std::fs::read_to_string(&audit).unwrap();
        text.contains("line 99x").then_some(())
    })
    .await;
    // He is told with the next thing that he sees, for which there must be room.
    while let Some(item) = unconstrained(attachment.next()).now_or_never() {
        see(&mut seen, item);
    }
    let end = "the end\n";
    input.write_all(end.as_bytes()).await.unwrap();
    all.push_str(end);
    let ((rest, missed), patiently, outcome) =
        tokio::join!(watch(attachment), watch(patient), run.kill());
    assert_eq!(
        (seen_patiently + &patiently.0, patiently.1),
        (all.clone(), 0)
    );
    assert!(missed > 0);
    assert_eq!((seen.len() + rest.len()) as u64 + missed, all.len() as u64);
    assert_eq!(text(&outcome.unwrap(), Stream::Stdout), all);
}

fn see(seen: &mut String, item: Option<moat::Result<Attached>>) {
    match item.unwrap().unwrap() {
        Attached::Chunk(chunk) => seen.push_str(std::str::from_utf8(&chunk.bytes).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn dropping_the_start_in_the_middle_leaves_a_run_that_is_watched() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().stdout("x\n").exit(6));
    let manager = bench.open().await;
    let id = RunId::new("dropped").unwrap();
    {
        let start = manager.start(spec().id(id.clone()));
        tokio::pin!(start);
        // Polled once: what it began goes on without it.
        let _ = futures::poll!(start.as_mut());
    }
    let outcome = loop {
        match manager.wait(&id).await {
            Ok(outcome) => break outcome,
            Err(Error::NoSuchRun { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{}", error.chain()),
        }
    };
    assert_eq!(outcome.code(), Some(6));
    check(&outcome);
}

#[tokio::test]
async fn a_container_is_kept_as_the_policy_says() {
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
async fn a_root_is_listed_without_an_engine_and_taken_over_on_demand() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().until_stopped());
    let manager = bench.open().await;
    manager.wait_recovery().await.unwrap();
    let (running, ended) = (RunId::new("a").unwrap(), RunId::new("b").unwrap());
    manager.start(spec().id(running.clone())).await.unwrap();
    bench.runtime.next(Script::new().exit(1));
    sealed(&manager.start(spec().id(ended)).await.unwrap()).await;
    let root = Root::open(bench.root()).unwrap();
    let list = root.list().unwrap();
    let states: Vec<_> = list
        .iter()
        .map(|info| (info.status.as_str(), info.owned))
        .collect();
    assert_eq!(states, [("running", true), ("exited", false)]);
    manager.shutdown(ShutdownMode::Leave).await;
    assert!(!root.info(&running).unwrap().owned);

    let next = Manager::builder(bench.root(), bench.runtime.clone())
        .recovery(RecoveryMode::OnDemand)
        .open()
        .await
        .unwrap();
    assert_eq!(
        bench.runtime.calls(Call::Find),
        1,
        "only at the first opening"
    );
    let outcome = next.get(&running).await.unwrap().kill().await.unwrap();
    assert_eq!(outcome.code(), Some(137));
}

/// A tap that was cut, and a limit that only the replay reaches.
#[tokio::test]
async fn what_a_replay_drops_past_the_limit_is_a_gap() {
    let bench = Bench::new();
    let script = Script::new()
        .stdout("0123456789\n")
        .stdout("x".repeat(54))
        .cut_tap_after(11);
    let limited = spec().output_limit(20, LimitAction::Drop);
    let outcome = bench.run(script, limited).await;
    assert_eq!(seal(&outcome).bytes.stdout, 20);
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
    assert_eq!(gaps(&outcome), [GapReason::OutputLimit]);
}

#[tokio::test]
async fn an_audit_that_someone_has_removed_is_made_again_before_it_is_sealed() {
    for whole_dir in [false, true] {
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
        if whole_dir {
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

#[tokio::test]
async fn one_bad_run_stops_no_other_and_garbage_in_its_record_does_not_hide_a_run() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().stdout("x\n").until_stopped());
    let manager = bench.open().await;
    let id = manager.start(spec()).await.unwrap().id().clone();
    manager.shutdown(ShutdownMode::Leave).await;
    std::fs::write(bench.root().join(id.as_str()).join("run.json"), "").unwrap();
    let bad = bench.root().join("bad");
    std::fs::create_dir(&bad).unwrap();
    std::fs::write(bad.join("run.json"), "garbage").unwrap();
    // And what a process has left that died while it removed a run.
    let half = bench.root().join(".removed-half");
    std::fs::create_dir(&half).unwrap();

    let next = bench.open().await;
    let runs = next.wait_recovery().await.unwrap();
    assert_eq!(runs.len(), 2);
    assert!(!half.exists());
    assert!(
        runs.iter()
            .any(|run| run.id().as_str() == "bad" && run.problem().is_some())
    );
    let outcome = next.stop(&id, None).await.unwrap();
    assert_eq!(outcome.code(), Some(143));
    check(&outcome);
}

/// Nothing is captured, and then nothing is sealed, while the disk refuses: the exit is told all
/// the same, to everyone, and stays what it was.
#[tokio::test]
async fn an_exit_that_cannot_be_sealed_yet_is_written_down_and_stays() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().stdout("x\n").until_stopped().exit_on_term(7));
    let manager = Manager::builder(bench.root(), bench.runtime.clone())
        .seal_timeout(Duration::from_millis(300))
        .open()
        .await
        .unwrap();
    let run = manager.start(spec()).await.unwrap();
    // Something that is no file in the place of the audit.
    let audit = run.audit().unwrap();
    std::fs::remove_file(&audit).unwrap();
    std::fs::create_dir(&audit).unwrap();
    let mut attachment = run.attach().await.unwrap();
    let outcome = run.stop(None).await.unwrap();
    assert_eq!(outcome.code(), Some(7));
    assert!(outcome.sealed().is_none(), "{outcome}");
    // It ends, with an error.
    while let Some(Ok(_)) = attachment.next().await {}
    // Where the disk is slow, it is told before it is written down.
    eventually(60, "the exit on record", async || {
        let info = manager.root().info(run.id()).unwrap();
        (info.status == moat::state::RunStatus::Exited).then_some(())
    })
    .await;

    manager.shutdown(ShutdownMode::Leave).await;
    let info = manager.root().info(run.id()).unwrap();
    assert_eq!(info.status, moat::state::RunStatus::Exited);
    assert!(info.problem.unwrap().contains("a folder"));
    bench.runtime.remove_externally(run.id());
    std::fs::remove_dir(&audit).unwrap();
    let next = bench.open().await;
    let outcome = next.wait(run.id()).await.unwrap();
    assert_eq!(outcome.code(), Some(7), "{outcome}");
    check(&outcome);
}

/// One whose record could not be written when it was sealed is sealed all the same.
#[tokio::test]
async fn a_sealed_run_whose_record_is_behind_can_be_removed_at_once() {
    let bench = Bench::new();
    let outcome = bench.run(Script::new().stdout("x\n"), spec()).await;
    let record = bench.root().join(outcome.run.as_str()).join("run.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json.as_object_mut().unwrap().remove("seal");
    std::fs::write(&record, json.to_string()).unwrap();
    let manager = Manager::builder(bench.root(), bench.runtime.clone())
        .recovery(RecoveryMode::OnDemand)
        .open()
        .await
        .unwrap();
    manager.remove(&outcome.run).await.unwrap();
    assert!(manager.list().await.unwrap().is_empty());
}

/// What the tap gave is not what is sealed, once its log was lost.
#[tokio::test]
async fn an_audit_that_was_removed_without_a_backstop_is_a_gap() {
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
