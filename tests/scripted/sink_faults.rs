//! Sinks that stall or fail: which runs they delay, and which they do not.

use std::time::Duration;

use futures::StreamExt;
use moat::audit::{Action, Event, Reader, Record};
use moat::run::{AttachOptions, Attachment, Exec, Input};
use moat::runtime::scripted::{Call, Link, Script};
use moat::sink::{Faulty, Jsonl, SinkCall, SinkFault};
use moat::spec::{ExecSpec, Stdin, WindowSize};
use moat::state::RunStatus;
use moat::{Error, Manager, Outcome, Root, Run, RunId, RunSpec, ShutdownMode};
use testkit::deadline::{eventually, within};
use tokio::io::AsyncWriteExt;

use crate::bench::{Bench, sealed};
use crate::records::{actions, typed};

/// A sink without faults.
pub fn sound() -> Faulty {
    Faulty::new(Jsonl::new())
}

/// The logs of the runs with `held` in their ids stall.
pub fn stalls() -> SinkFault {
    held(SinkFault::stall())
}

/// The logs of the runs with `held` in their ids fail.
pub fn fails() -> SinkFault {
    held(SinkFault::error())
}

fn held(fault: SinkFault) -> SinkFault {
    let calls = [
        SinkCall::Open,
        SinkCall::Resume,
        SinkCall::Append,
        SinkCall::Seal,
    ];
    fault
        .on(calls)
        .at(|place| place.run.as_str().contains("held"))
}

pub async fn open(bench: &Bench, sink: &Faulty) -> Manager {
    bench
        .builder()
        .sink(sink.clone())
        .seal_timeout(Duration::from_millis(200))
        .open()
        .await
        .unwrap()
}

/// Starts runs with a manager that then leaves them.
async fn leave(bench: &Bench, ids: &[RunId]) {
    let manager = open(bench, &sound()).await;
    for id in ids {
        let script = Script::new().stdout("a line\n").until_stopped();
        bench.runtime.script(id, script);
        manager
            .start(RunSpec::new("any").id(id.clone()))
            .await
            .unwrap();
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

/// Waits for the seal, by the real clock.
pub async fn sealed_soon(run: &Run) -> Outcome {
    within(20, "seal", sealed(run)).await
}

pub fn id(text: &str) -> RunId {
    RunId::new(text).unwrap()
}

async fn sealed_exec(exec: &Exec) -> moat::Outcome {
    loop {
        let outcome = exec.wait().await.unwrap();
        if outcome.sealed().is_some() {
            return outcome;
        }
    }
}

#[tokio::test]
async fn blocked_recoveries_do_not_block_others() {
    for fault in [fails(), stalls()] {
        let bench = Bench::new();
        let well = id("10-well");
        let mut ids: Vec<_> = (0..20).map(|n| id(&format!("{n:02}-held"))).collect();
        ids.push(well.clone());
        leave(&bench, &ids).await;
        let shown = format!("{fault:?}");
        let sink = sound();
        sink.fault(fault);
        let manager = open(&bench, &sink).await;
        eventually(20, "the recovery of the other run", async || {
            let info = manager.root().info(&well).unwrap();
            info.owned.then_some(())
        })
        .await;
        let run = manager.get(&well).await.unwrap();
        let stopped = within(20, "the stop of the other run", run.stop(None)).await;
        assert_eq!(stopped.unwrap().code(), Some(143), "{shown}");
        // On a slow disk, the run is sealed after the stop returns.
        sealed_soon(&run).await;
    }
}

#[tokio::test]
async fn a_stop_works_while_the_log_cannot_be_opened() {
    for fault in [fails(), stalls()] {
        let bench = Bench::new();
        let held = id("held");
        leave(&bench, std::slice::from_ref(&held)).await;
        let sink = sound();
        sink.fault(fault);
        let manager = open(&bench, &sink).await;
        let run = manager.get(&held).await.unwrap();
        let stop = async {
            let outcome = run.stop(None).await.unwrap();
            assert_eq!(outcome.code(), Some(143), "{outcome}");
        };
        let reached = async {
            eventually(20, "the signal", async || {
                (bench.runtime.calls(Call::Signal) > 0).then_some(())
            })
            .await;
            sink.clear_faults();
        };
        within(40, "the stop", async { tokio::join!(stop, reached) }).await;
        let outcome = sealed_soon(&run).await;
        let records = Reader::open(outcome.audit.as_ref().unwrap()).unwrap();
        let is_stop = |record: &Record| matches!(record, Record::Event(Event::Stop(_)));
        assert_eq!(records.map(|r| r.unwrap()).filter(is_stop).count(), 1);
        assert!(outcome.sealed().unwrap().stopped.is_some(), "{outcome}");
    }
}

#[tokio::test]
async fn a_run_removed_during_recovery_is_dropped() {
    let bench = Bench::new();
    let held = id("held");
    leave(&bench, std::slice::from_ref(&held)).await;
    let sink = sound();
    sink.fault(fails());
    let manager = open(&bench, &sink).await;
    let run = manager.get(&held).await.unwrap();
    eventually(20, "the reason", async || run.problem()).await;
    std::fs::remove_dir_all(run.dir()).unwrap();
    let error = within(20, "the end", run.wait()).await.unwrap_err();
    assert!(
        matches!(error, Error::NoSuchRun { .. }),
        "{}",
        error.chain()
    );
    bench.runtime.remove_externally(&held);
    bench.runtime.script(&held, Script::new());
    sink.clear_faults();
    let next = eventually(20, "the name to be free", async || {
        manager
            .start(RunSpec::new("any").id(held.clone()))
            .await
            .ok()
    })
    .await;
    sealed_soon(&next).await;
}

/// A reported exit stays, even if the process and the container are gone.
#[tokio::test]
async fn an_exit_is_recorded_while_a_sink_stalls() {
    let bench = Bench::new();
    let held = id("held");
    let script = Script::new().stdout("a line\n").until_stopped();
    bench.runtime.script(&held, script.exit_on_term(7));
    let sink = sound();
    let manager = open(&bench, &sink).await;
    let spec = RunSpec::new("any").id(held.clone());
    let run = manager.start(spec).await.unwrap();
    sink.fault(stalls());
    bench.terminate_externally(&manager).await;
    let outcome = within(20, "the end", run.wait()).await.unwrap();
    assert_eq!(outcome.code(), Some(7));
    assert!(outcome.sealed().is_none(), "{outcome}");
    let root = Root::open(manager.root().path()).unwrap();
    eventually(60, "the exit for other processes", async || {
        (root.info(&held).unwrap().status == RunStatus::Exited).then_some(())
    })
    .await;

    manager.shutdown(ShutdownMode::Leave).await;
    bench.runtime.remove_externally(&held);
    let next = open(&bench, &sound()).await;
    let outcome = sealed_soon(&next.get(&held).await.unwrap()).await;
    assert_eq!(outcome.code(), Some(7), "{outcome}");
}

/// Invariant 9: once an exec has started, nothing waits for the sink.
#[tokio::test]
async fn a_stalled_sink_does_not_block_exec() {
    let bench = Bench::new();
    let held = id("held");
    bench.runtime.script(&held, Script::new().until_stopped());
    bench
        .runtime
        .next_exec(Script::new().stdout("out\n").exit(7));
    let sink = sound();
    let manager = open(&bench, &sink).await;
    let run = manager.start(RunSpec::new("any").id(held.clone()));
    let run = run.await.unwrap();
    // The log is open when the engine is asked, and stalls once it has answered.
    bench.runtime.link(Link::Silent);
    let stall = async {
        eventually(20, "the request", async || {
            (bench.runtime.calls(Call::Exec) > 0).then_some(())
        })
        .await;
        sink.fault(stalls());
        bench.runtime.link(Link::Up);
    };
    let exec = async { tokio::join!(run.exec(ExecSpec::new(["any"])), stall).0 };
    let exec = within(20, "the process", exec).await.unwrap();
    let mut output = exec.attach().await.unwrap();
    let first = within(20, "its output", output.next()).await;
    assert!(first.unwrap().is_ok());
    sink.clear_faults();
    let outcome = within(20, "its seal", sealed_exec(&exec)).await;
    assert_eq!(outcome.code(), Some(7), "{outcome}");
}

/// Writes input and resizes the terminal. The log of `run` fails in between.
async fn type_while_the_sink_fails(attachment: &mut Attachment, run: &Run, sink: &Faulty) -> Input {
    let mut input = attachment.input().unwrap();
    input.write_all(b"before\n").await.unwrap();
    eventually(20, "the first input", async || {
        (typed(&run.audit().unwrap()) == b"before\n").then_some(())
    })
    .await;
    sink.fault(fails());
    attachment.resize(WindowSize::new(100, 30)).await.unwrap();
    input.write_all(b"typed\n").await.unwrap();
    input
}

#[tokio::test]
async fn actions_during_a_sink_failure_are_recorded() {
    let bench = Bench::new();
    let held = id("held");
    bench.runtime.script(&held, Script::new().echo());
    let sink = sound();
    let manager = open(&bench, &sink).await;
    let spec = RunSpec::new("any").id(held).tty(true).stdin(Stdin::Open);
    let options = AttachOptions::new().with_input();
    let started = manager.start_attached(spec.record_stdin(true), options);
    let (run, mut attachment) = started.await.unwrap();
    let input = type_while_the_sink_fails(&mut attachment, &run, &sink).await;
    eventually(20, "the failure", async || run.problem()).await;
    drop((input, attachment));
    sink.clear_faults();
    let killed = within(20, "the end", run.kill()).await.unwrap();
    assert_eq!(killed.code(), Some(137), "{killed}");
    sealed_soon(&run).await;
    let audit = run.audit().unwrap();
    let done = [Action::AttachInput, Action::Resize, Action::Detach];
    assert_eq!(actions(&audit), done);
    assert_eq!(typed(&audit), b"before\ntyped\n");
}

#[tokio::test]
async fn exec_input_during_a_sink_failure_is_recorded() {
    let bench = Bench::new();
    let held = id("held");
    bench.runtime.script(&held, Script::new().until_stopped());
    // The exec prints nothing, so its log can only fail at its input.
    bench.runtime.next_exec(Script::new().until_stopped());
    let sink = sound();
    let manager = open(&bench, &sink).await;
    let run = manager.start(RunSpec::new("any").id(held)).await.unwrap();
    let spec = ExecSpec::new(["any"]).interactive(true).record_stdin(true);
    let exec = run.exec(spec).await.unwrap();
    let options = AttachOptions::new().with_input();
    let mut attachment = exec.attach_with(options).await.unwrap();
    let audit = exec.audit().unwrap();
    eventually(20, "the first action", async || {
        (actions(&audit) == [Action::AttachInput]).then_some(())
    })
    .await;
    let mut input = attachment.input().unwrap();
    sink.fault(fails());
    input.write_all(b"typed\n").await.unwrap();
    let outcome = within(20, "the end", exec.wait()).await.unwrap();
    assert!(outcome.sealed().is_none(), "{outcome}");
    sink.clear_faults();
    within(20, "the seal", sealed_exec(&exec)).await;
    assert_eq!(typed(&audit), b"typed\n");
}
