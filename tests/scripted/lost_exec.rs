//! Execs whose owner has died while their container runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moat::audit::{Event, ExecCreated, LogState, verify};
use moat::outcome::Evidence;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::runtime::{ExecId, RuntimeError};
use moat::sink::{SinkCall, SinkFault};
use moat::spec::{ContainerId, ExecSpec, LimitAction};
use moat::{Ending, Error, Manager, RunId, Runtime, ShutdownMode, Verdict};
use testkit::deadline::{eventually, within};
use tokio_util::sync::CancellationToken;

use crate::bench::{Bench, named};
use crate::records::events;
use crate::sink_faults::{open, sound};

const RUN: &str = "run";

fn limited() -> ExecSpec {
    ExecSpec::new(["any"]).time_limit(Duration::from_secs(3600))
}

/// Leaves an exec that runs, and returns its log.
async fn left(bench: &Bench, spec: ExecSpec) -> PathBuf {
    let manager = bench.open_on_threads().await;
    let script = Script::new().until_stopped();
    let run = bench.start(&manager, script.clone(), named(RUN)).await;
    bench.runtime.next_exec(script);
    let exec = run.exec(spec).await.unwrap();
    let path = exec.audit().unwrap();
    eventually(60, "the start of the exec", async || {
        let log = fs::read_to_string(&path).unwrap();
        log.contains(r#""type":"started""#).then_some(())
    })
    .await;
    manager.shutdown(ShutdownMode::Leave).await;
    path
}

/// Opens the root again, and waits for the recovery.
async fn recovered(bench: &Bench) -> Manager {
    let manager = bench.open_on_threads().await;
    let recovery = within(60, "the recovery", manager.wait_recovery()).await;
    assert_eq!(recovery.unwrap().len(), 1);
    manager
}

/// Returns the records of a log that is sealed with a gap and an unknown ending.
fn lost(path: &Path) -> Vec<Event> {
    let state = verify(path).unwrap().state;
    let LogState::Sealed(seal) = state else {
        panic!("not sealed: {state:?}");
    };
    assert_eq!((seal.verdict, seal.gaps), (Verdict::Gap, 1));
    assert!(matches!(seal.exit, Ending::Lost { .. }), "{}", seal.exit);
    assert_eq!(seal.stopped, None);
    events(path)
}

fn created(events: &[Event]) -> Option<&ExecCreated> {
    events.iter().find_map(|event| match event {
        Event::ExecCreated(created) => Some(created),
        _ => None,
    })
}

fn has_note(events: &[Event], part: &str) -> bool {
    events
        .iter()
        .any(|event| matches!(event, Event::Note { text, .. } if text.contains(part)))
}

async fn container(bench: &Bench) -> ContainerId {
    let found = bench.runtime.find(bench.view().id()).await.unwrap();
    found[0].container.clone()
}

async fn is_running(bench: &Bench, created: &ExecCreated) -> bool {
    let id = ExecId::new(&*created.id);
    bench.runtime.exec_inspect(&id).await.unwrap().running
}

/// Ends the run, whose container still runs.
async fn ends_run(manager: &Manager) {
    let run = manager.get(&RunId::new(RUN).unwrap()).await.unwrap();
    assert!(run.state().ending().is_none());
    run.kill().await.unwrap();
}

#[tokio::test]
async fn an_exec_with_a_limit_is_killed() {
    let any = || ExecSpec::new(["any"]);
    for (spec, has_token) in [
        (limited(), false),
        (any().silence_limit(Duration::from_secs(3600)), false),
        (any().output_limit(1 << 20, LimitAction::Stop), false),
        (any().stop_when(CancellationToken::new()), true),
    ] {
        let bench = Bench::new();
        let path = left(&bench, spec).await;
        let manager = recovered(&bench).await;
        let events = lost(&path);
        let created = created(&events).unwrap();
        assert_eq!(created.stop_token, has_token);
        assert!(!is_running(&bench, created).await);
        assert!(
            has_note(&events, "were killed: its owner died"),
            "{events:?}"
        );
        ends_run(&manager).await;
    }
}

#[tokio::test]
async fn an_exec_without_a_limit_that_stops_it_continues() {
    let any = ExecSpec::new(["any"]);
    let dropped = any.clone().output_limit(1 << 20, LimitAction::Drop);
    for spec in [any, dropped] {
        let bench = Bench::new();
        let path = left(&bench, spec).await;
        let manager = recovered(&bench).await;
        let events = lost(&path);
        assert!(created(&events).is_none());
        assert!(!has_note(&events, ""), "{events:?}");
        assert_eq!(bench.runtime.calls(Call::ExecKill), 0);
        ends_run(&manager).await;
    }
}

/// The owner died after the engine had started the exec, and before it recorded that.
#[tokio::test]
async fn an_exec_is_killed_without_a_record_of_its_start() {
    let bench = Bench::new();
    let path = left(&bench, limited()).await;
    let log = fs::read_to_string(&path).unwrap();
    let first: String = log.split_inclusive('\n').take(2).collect();
    assert!(first.contains("exec_created") && !first.contains(r#""started""#));
    fs::write(&path, first).unwrap();
    let manager = recovered(&bench).await;
    let events = lost(&path);
    assert!(!is_running(&bench, created(&events).unwrap()).await);
    assert!(has_note(&events, "were killed"), "{events:?}");
    ends_run(&manager).await;
}

#[tokio::test]
async fn an_exec_that_ended_without_its_owner_is_not_killed() {
    let bench = Bench::new();
    let path = left(&bench, limited()).await;
    let id = ExecId::new(&*created(&events(&path)).unwrap().id);
    let container = container(&bench).await;
    bench.runtime.exec_kill(&container, &id).await.unwrap();
    let manager = recovered(&bench).await;
    let events = lost(&path);
    assert!(!has_note(&events, ""), "{events:?}");
    assert_eq!(bench.runtime.calls(Call::ExecKill), 1);
    ends_run(&manager).await;
}

#[tokio::test]
async fn an_exec_of_an_ended_container_is_not_killed() {
    let bench = Bench::new();
    let path = left(&bench, limited()).await;
    let container = container(&bench).await;
    let ended = bench.runtime.signal(&container, "SIGKILL");
    ended.await.unwrap();
    recovered(&bench).await;
    assert!(!has_note(&lost(&path), ""));
    assert_eq!(bench.runtime.calls(Call::ExecKill), 0);
}

#[tokio::test]
async fn a_refused_kill_leaves_a_note() {
    let refused = RuntimeError::Rejected {
        operation: "kill the exec",
        reason: "a process of the exec is still alive".into(),
    };
    for (fault, part) in [
        (
            Fault::Error(refused),
            "a process of the exec is still alive",
        ),
        (Fault::Hang, "has not done so within 15s"),
    ] {
        let bench = Bench::new();
        let path = left(&bench, limited()).await;
        bench.runtime.fault(Call::ExecKill, fault);
        let manager = recovered(&bench).await;
        let events = lost(&path);
        assert!(is_running(&bench, created(&events).unwrap()).await);
        assert!(
            has_note(&events, "the exec continues without"),
            "{events:?}"
        );
        assert!(has_note(&events, part), "{events:?}");
        ends_run(&manager).await;
    }
}

#[tokio::test]
async fn a_kill_without_an_answer_is_noted() {
    let bench = Bench::new();
    let path = left(&bench, limited()).await;
    bench.runtime.fault(Call::ExecKill, Fault::AnswerLost);
    let manager = recovered(&bench).await;
    let events = lost(&path);
    assert!(!is_running(&bench, created(&events).unwrap()).await);
    assert!(has_note(&events, "were killed"), "{events:?}");
    ends_run(&manager).await;
}

/// Nothing could kill it after the death of its owner.
#[tokio::test]
async fn an_exec_whose_id_cannot_be_recorded_is_not_started() {
    let (bench, sink) = (Bench::new(), sound());
    let manager = open(&bench, &sink).await;
    let script = Script::new().until_stopped();
    let run = bench.start(&manager, script.clone(), named(RUN)).await;
    let fault = SinkFault::error().on([SinkCall::Append]).times(1);
    sink.fault(fault.at(|place| place.exec.is_some()));
    bench.runtime.next_exec(script);
    let error = within(60, "the refusal", run.exec(limited())).await;
    let Error::NotStarted { outcome, source } = error.unwrap_err() else {
        panic!("the exec has started");
    };
    assert!(source.to_string().contains("not recorded"), "{source}");
    assert!(matches!(outcome.ending, Ending::FailedToStart { .. }));
    let path = outcome.audit.unwrap();
    let state = eventually(60, "the seal", async || {
        match verify(&path).unwrap().state {
            LogState::Sealed(seal) => Some(seal),
            _ => None,
        }
    });
    assert_eq!(state.await.evidence, Evidence::None);
    run.kill().await.unwrap();
}
