//! What a CI harness needs of a manager, on the scripted runtime.
#![cfg(feature = "testing")]
#![allow(unreachable_pub, clippy::disallowed_methods)]

#[path = "support/deadline.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod deadline;

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use moat::audit::{Follow, Record};
use moat::events::{EventKind, RunEvent};
use moat::manager::{
    OrphanReason, PruneOptions, PruneReport, ReapAction, ReapOptions, ReapedContainer, Signal,
    SkipReason,
};
use moat::outcome::{StopCause, Stream};
use moat::runtime::scripted::{Call, Script, Scripted};
use moat::spec::ExecSpec;
use moat::state::State;
use moat::{Ending, Error, Events, Manager, Outcome, Run, RunId, RunSpec, ShutdownMode};
use rustix::process::{getpid, kill_process};
use tokio_util::sync::CancellationToken;

use deadline::within;

struct Bench {
    runtime: Scripted,
    manager: Manager,
    dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        Self::with_room_for(None).await
    }

    async fn with_room_for(runs: Option<usize>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Scripted::new();
        let builder = Manager::builder(dir.path().join("root"), runtime.clone());
        // Some of the clocks are paused.
        let mut builder = builder.runtime_handle(tokio::runtime::Handle::current());
        if let Some(runs) = runs {
            builder = builder.max_concurrent(runs);
        }
        Self {
            runtime,
            manager: builder.open().await.unwrap(),
            dir,
        }
    }

    async fn start(&self, script: Script, spec: RunSpec) -> Run {
        self.runtime.next(script);
        self.manager.start(spec).await.unwrap()
    }
}

fn spec() -> RunSpec {
    RunSpec::new("any")
}

fn named(id: &str) -> RunSpec {
    spec().id(RunId::new(id).unwrap())
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

async fn all(mut events: Events) -> Vec<RunEvent> {
    let mut told = Vec::new();
    while let Some(event) = events.next().await {
        told.push(event);
    }
    told
}

/// The names of the events, as JSON has them.
fn words(events: &[RunEvent]) -> Vec<String> {
    let word = |event| serde_json::to_value(event).unwrap()["event"].clone();
    let words = events.iter().map(word);
    words
        .map(|word| word.as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn the_life_of_a_further_process_is_not_told_as_its_runs() {
    let bench = Bench::new().await;
    let run = bench.start(Script::new().until_stopped(), spec()).await;
    bench.runtime.next_exec(Script::new().exit(7));
    let events = run.events();
    let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
    assert_eq!(exec.wait().await.unwrap().code(), Some(7));
    run.kill().await.unwrap();
    let told = all(events).await;
    assert_eq!(
        words(&told),
        [
            "stop_requested",
            "exited",
            "sealed",
            "container_removed",
            "released"
        ],
        "{told:?}"
    );
}

#[tokio::test]
async fn the_life_of_a_run_is_told_in_order_and_each_event_is_a_line_of_json() {
    let bench = Bench::new().await;
    let events = bench.manager.events();
    let run = bench.start(Script::new().stdout("hello\n"), spec()).await;
    sealed(&run).await;
    bench.manager.shutdown(ShutdownMode::Leave).await;
    let told = all(events).await;
    let output = |event: &&RunEvent| matches!(event.kind, EventKind::Output { .. });
    let counts = &told.iter().rfind(output).unwrap().kind;
    let EventKind::Output { bytes, records } = counts else {
        unreachable!()
    };
    assert_eq!((bytes.total(), *records), (6, 1));
    let others: Vec<_> = told
        .iter()
        .filter(|event| !output(event))
        .cloned()
        .collect();
    assert_eq!(
        words(&others),
        [
            "intended",
            "created",
            "started",
            "exited",
            "sealed",
            "container_removed",
            "released"
        ]
        .map(String::from)
        .into_iter()
        .collect::<Vec<_>>()
    );
    for event in told {
        assert_eq!(event.run.as_ref(), Some(run.id()));
        let line = serde_json::to_string(&event).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<RunEvent>(&line).unwrap(), event);
    }
}

#[tokio::test]
async fn the_events_of_one_run_end_with_it_and_are_of_no_other() {
    let bench = Bench::new().await;
    let run = bench.start(Script::new().until_stopped(), spec()).await;
    let events = run.events();
    sealed(&bench.start(Script::new(), spec()).await).await;
    let stopped = run.stop(None).await.unwrap();
    assert_eq!(stopped.stopped(), Some(StopCause::Requested));
    let told = all(events).await;
    assert_eq!(
        words(&told),
        [
            "stop_requested",
            "exited",
            "sealed",
            "container_removed",
            "released"
        ]
    );
    assert!(
        told.iter()
            .all(|event| event.run.as_ref() == Some(run.id()))
    );
    assert_eq!(run.events().next().await, None, "it is over");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_prints_nothing_for_too_long_is_stopped_and_says_so() {
    let bench = Bench::new().await;
    let tick = Duration::from_secs(4);
    let script = Script::new()
        .pause(tick)
        .stdout("a\n")
        .pause(tick)
        .stderr("b\n")
        .until_stopped();
    let limit = Duration::from_secs(5);
    let run = bench.start(script, spec().silence_limit(limit)).await;
    let begun = tokio::time::Instant::now();
    let outcome = sealed(&run).await;
    assert_eq!(outcome.stopped(), Some(StopCause::SilenceLimit));
    assert!(begun.elapsed() >= 2 * tick + limit, "{:?}", begun.elapsed());
    assert_eq!(outcome.sealed().unwrap().records, 2);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_goes_on_printing_is_not_silent() {
    let bench = Bench::new().await;
    let mut script = Script::new();
    for _ in 0..20 {
        script = script.stdout(".").pause(Duration::from_secs(4));
    }
    let limited = spec().silence_limit(Duration::from_secs(5));
    let outcome = sealed(&bench.start(script, limited).await).await;
    assert_eq!((outcome.code(), outcome.stopped()), (Some(0), None));
}

#[tokio::test]
async fn a_token_stops_its_runs_also_those_that_have_not_started() {
    let bench = Bench::new().await;
    let token = CancellationToken::new();
    let run = bench
        .start(
            Script::new().until_stopped(),
            spec().stop_when(token.child_token()),
        )
        .await;
    let other = bench.start(Script::new().until_stopped(), spec()).await;
    token.cancel();
    let stopped = within(60, "the stop", sealed(&run)).await;
    assert_eq!(stopped.stopped(), Some(StopCause::Cancelled));
    let late = bench.manager.start(spec().stop_when(token.clone())).await;
    // It is stopped before its start, or right after it.
    let outcome = match late {
        Ok(run) => sealed(&run).await,
        Err(Error::NotStarted { outcome, .. }) => *outcome,
        Err(error) => panic!("{}", error.chain()),
    };
    assert_eq!(outcome.stopped(), Some(StopCause::Cancelled));
    assert!(matches!(other.state(), State::Running { .. }));
    other.stop_when(token);
    assert_eq!(sealed(&other).await.stopped(), Some(StopCause::Cancelled));
}

#[tokio::test]
async fn a_failed_run_is_an_error_that_shows_its_last_lines_and_steers_no_terminal() {
    let bench = Bench::new().await;
    let script = Script::new()
        .stdout("one\n")
        .stderr("\x1b[31mtwo\n")
        .exit(3);
    let run = bench.start(script, named("broken")).await;
    let error = sealed(&run).await.into_result().unwrap_err();
    assert_eq!(
        error.to_string(),
        "run broken exited with code 3; its last lines:\n  one\n  \\u{1b}[31mtwo"
    );
    let fine = bench.start(Script::new(), spec()).await;
    assert!(sealed(&fine).await.into_result().is_ok());
}

#[tokio::test]
async fn starts_beyond_the_room_wait_and_one_that_waits_can_be_stopped() {
    let bench = Bench::with_room_for(Some(1)).await;
    let mut events = bench.manager.events();
    let first = bench.start(Script::new().until_stopped(), named("a")).await;
    let start = |name: &'static str| {
        let manager = bench.manager.clone();
        tokio::spawn(async move { manager.start(named(name)).await })
    };
    let mut waits = async |name: &str| {
        let is_it = |event: &RunEvent| {
            event.kind == EventKind::Waiting && event.run.as_ref().unwrap().as_str() == name
        };
        let told = async { while !is_it(&events.next().await.unwrap()) {} };
        within(60, "the wait for a turn", told).await;
    };
    let second = start("b");
    waits("b").await;
    let third = start("c");
    waits("c").await;
    assert_eq!(bench.runtime.calls(Call::Prepare), 1);
    let stopped = bench
        .manager
        .stop(&RunId::new("b").unwrap(), None)
        .await
        .unwrap();
    assert!(matches!(stopped.ending, Ending::NotCreated { .. }));
    assert!(matches!(
        second.await.unwrap(),
        Err(Error::NotStarted { .. })
    ));
    assert!(!third.is_finished());
    first.stop(None).await.unwrap();
    let third = third.await.unwrap().unwrap();
    assert_eq!(sealed(&third).await.code(), Some(0));
    let verified = moat::audit::verify(bench.dir.path().join("root/b/logs.jsonl"));
    assert!(matches!(
        verified.unwrap().state,
        moat::audit::LogState::Sealed(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn what_a_run_uses_is_sampled_and_its_peaks_are_in_the_seal() {
    let bench = Bench::new().await;
    let script = Script::new()
        .uses(1 << 20, 0.5)
        .pause(Duration::from_secs(60));
    let events = bench.manager.events();
    let sampled = spec().sample(Duration::from_secs(10));
    let outcome = sealed(&bench.start(script, sampled).await).await;
    let usage = outcome.usage.unwrap();
    assert_eq!(outcome.sealed().unwrap().usage.as_deref(), Some(&usage));
    assert_eq!(usage.memory, 1 << 20);
    assert!(usage.samples >= 5, "{usage:?}");
    assert!((20.0..=30.0).contains(&usage.cpu_seconds), "{usage:?}");
    bench.manager.shutdown(ShutdownMode::Leave).await;
    let told = words(&all(events).await);
    let samples = told.iter().filter(|word| *word == "usage").count();
    assert_eq!(samples as u64, usage.samples);
    // One that does not ask for it is not sampled.
    let bench = Bench::new().await;
    let run = bench.start(Script::new().pause(Duration::from_secs(60)), spec());
    assert_eq!(sealed(&run.await).await.usage, None);
    assert_eq!(bench.runtime.calls(Call::Stats), 0);
}

fn texts(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| match record {
        Record::Output(output) => Some(String::from_utf8(output.bytes.clone()).unwrap()),
        _ => None,
    };
    records.iter().filter_map(text).collect()
}

async fn followed(follow: Follow) -> Vec<Record> {
    follow.into_stream().try_collect().await.unwrap()
}

#[tokio::test]
async fn a_live_run_is_followed_to_its_seal_and_an_ended_one_the_same() {
    let bench = Bench::new().await;
    let pause = Duration::from_millis(50);
    let script = Script::new()
        .stdout("a\n")
        .pause(pause)
        .stderr("b\n")
        .pause(pause)
        .stdout("c\n")
        .until_stopped();
    let run = bench.start(script, spec()).await;
    let mut live = run.follow().unwrap().into_stream();
    let mut records = Vec::new();
    while texts(&records).len() < 3 {
        records.push(live.next().await.unwrap().unwrap());
    }
    run.stop(None).await.unwrap();
    while let Some(record) = live.next().await {
        records.push(record.unwrap());
    }
    assert!(matches!(
        records.last(),
        Some(Record::Event(moat::audit::Event::End(_)))
    ));
    let again = followed(bench.manager.root().follow(run.id()).unwrap()).await;
    assert_eq!(again, records);
    let blocking: Vec<_> = run.follow().unwrap().records().unwrap().collect();
    let blocking: Vec<_> = blocking.into_iter().map(Result::unwrap).collect();
    assert_eq!(blocking, records);
    let rest = followed(run.follow().unwrap().from_record(3)).await;
    assert_eq!(rest, records[3..]);
    let stderr = followed(run.follow().unwrap().stream(Stream::Stderr)).await;
    assert_eq!(texts(&stderr), ["b"]);
    assert_eq!(stderr.len(), records.len() - 2);
    let last = followed(run.follow().unwrap().last(2)).await;
    assert_eq!(texts(&last), ["b", "c"]);
    let last = followed(run.follow().unwrap().last(1).stream(Stream::Stderr)).await;
    assert_eq!(texts(&last), ["b"]);
    let none = followed(run.follow().unwrap().last(0)).await;
    assert_eq!(none, records[records.len() - 1..]);
}

#[tokio::test]
async fn a_file_that_is_removed_or_replaced_under_its_follower_is_an_error_and_the_end() {
    let bench = Bench::new().await;
    let script = Script::new().stdout("a\n").until_stopped();
    let run = bench.start(script, spec()).await;
    let path = bench.dir.path().join("copy.jsonl");
    std::fs::copy(run.audit().unwrap(), &path).unwrap();
    for replace in [false, true] {
        let mut live = Follow::new(&path).into_stream();
        live.next().await.unwrap().unwrap();
        let aside = bench.dir.path().join(format!("aside-{replace}"));
        std::fs::rename(&path, &aside).unwrap();
        if replace {
            std::fs::copy(&aside, &path).unwrap();
        }
        let mut last = Ok(());
        while let Some(record) = live.next().await {
            last = record.map(drop);
        }
        match (last.unwrap_err(), replace) {
            (Error::Storage { .. }, false) => std::fs::rename(&aside, &path).unwrap(),
            (Error::Damaged { .. }, true) => {}
            (error, _) => panic!("{}", error.chain()),
        }
    }
    let now = followed(Follow::new(&path).wait(false)).await;
    assert!(!now.is_empty(), "what is there");
    run.kill().await.unwrap();
}

#[tokio::test]
async fn prune_removes_the_oldest_and_never_one_that_is_not_sealed_and_says_why() {
    let bench = Bench::new().await;
    for name in ["a", "b", "c", "d"] {
        sealed(&bench.start(Script::new(), named(name)).await).await;
    }
    let live = bench
        .start(Script::new().until_stopped(), named("0-live"))
        .await;
    let damaged = bench.dir.path().join("root/d/logs.jsonl");
    std::fs::write(&damaged, b"{}\n").unwrap();
    let ids = |pruned: &PruneReport| {
        let ids = pruned.removed.iter().map(|(run, _)| run.to_string());
        ids.collect::<Vec<_>>()
    };
    let all = PruneOptions::new()
        .older_than(Duration::ZERO)
        .keep(0)
        .max_bytes(0);
    let unbounded = bench.manager.prune(PruneOptions::new()).await.unwrap();
    assert!(unbounded.removed.is_empty());
    let dry = bench.manager.prune(all.dry_run(true)).await.unwrap();
    assert_eq!(ids(&dry), ["a", "b", "c"]);
    assert_eq!(bench.manager.root().runs().unwrap().len(), 5);
    let pruned = bench
        .manager
        .prune(PruneOptions::new().keep(2))
        .await
        .unwrap();
    assert_eq!(ids(&pruned), ["a"]);
    assert_eq!(pruned.kept.len(), 4);
    let recent = bench
        .manager
        .prune(PruneOptions::new().older_than(Duration::from_secs(3600)))
        .await;
    assert!(recent.unwrap().removed.is_empty());
    // Room for what stays, and for `c`.
    let fits = PruneOptions::new().max_bytes(dry.bytes_left + dry.removed[2].1);
    assert_eq!(ids(&bench.manager.prune(fits).await.unwrap()), ["b"]);
    let pruned = bench.manager.prune(all).await.unwrap();
    assert_eq!(ids(&pruned), ["c"]);
    let why: Vec<_> = pruned
        .kept
        .iter()
        .map(|(run, why)| (run.as_str(), why))
        .collect();
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
    assert_eq!(bench.manager.root().runs().unwrap().len(), 2);
    live.kill().await.unwrap();
}

#[tokio::test]
async fn a_dry_prune_foresees_what_a_real_one_is_refused() {
    let bench = Bench::new().await;
    bench.runtime.set_engine_id("one");
    let kept = || spec().keep(moat::spec::KeepContainer::Always);
    let of_one = bench.start(Script::new(), kept()).await;
    sealed(&of_one).await;
    let without_container = bench.start(Script::new(), named("plain")).await;
    sealed(&without_container).await;
    bench.manager.shutdown(ShutdownMode::Leave).await;
    bench.runtime.set_engine_id("two");
    let root = bench.dir.path().join("root");
    let other = Manager::open(root, bench.runtime.clone()).await.unwrap();
    let owned = other.root().dir(&RunId::new("owned").unwrap());
    bench.runtime.next(Script::new());
    sealed(&other.start(named("owned")).await.unwrap()).await;
    other.shutdown(ShutdownMode::Leave).await;
    let root = bench.dir.path().join("root");
    let other = Manager::open(root, bench.runtime.clone()).await.unwrap();
    // As another process has it that is at it.
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

#[tokio::test]
async fn containers_whose_run_is_gone_are_orphans_and_those_that_are_kept_are_none() {
    let bench = Bench::new().await;
    let gone = bench
        .start(Script::new().until_stopped(), named("gone"))
        .await;
    let live = bench
        .start(Script::new().until_stopped(), named("live"))
        .await;
    let kept = spec().keep(moat::spec::KeepContainer::Always);
    sealed(&bench.start(Script::new(), kept).await).await;
    assert_eq!(bench.manager.orphans().await.unwrap(), []);
    bench.manager.shutdown(ShutdownMode::Leave).await;
    std::fs::remove_dir_all(gone.dir()).unwrap();
    let again = Manager::builder(bench.dir.path().join("root"), bench.runtime.clone())
        .runtime_handle(tokio::runtime::Handle::current())
        .open()
        .await
        .unwrap();
    again.wait_recovery().await.unwrap();
    let orphans = again.orphans().await.unwrap();
    assert_eq!(orphans.len(), 1);
    assert_eq!(
        (&orphans[0].run, orphans[0].why),
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
async fn only_what_is_past_its_deadline_by_the_margin_is_reaped_and_its_audit_says_so() {
    let bench = Bench::new().await;
    let second = Duration::from_secs(1);
    // Not so short that it is over before its manager leaves.
    let limited = || spec().time_limit(second * 60).stop_grace(second);
    let endless = || Script::new().until_stopped();
    let none = bench.start(endless(), spec().detached(true)).await;
    let late = bench.start(endless(), limited()).await;
    let soon = bench
        .start(endless(), spec().time_limit(second * 3600))
        .await;
    // Its machine is gone.
    bench.manager.shutdown(ShutdownMode::Leave).await;
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
    // Its deadline: limit, grace, and two minutes for the engine.
    bench
        .runtime
        .advance_deadlines(Duration::from_secs(60 + 1 + 120 + 61));
    let hasty = ReapOptions::new().stop_after(Duration::ZERO);
    let dry = reaper.reap(hasty.dry_run(true)).await.unwrap();
    assert_eq!(dry.len(), 1);
    assert_eq!(bench.runtime.calls(Call::Signal), 0);
    assert!(reaper.reap(ReapOptions::new()).await.unwrap().is_empty());
    let reaped = reaper.reap(hasty).await.unwrap();
    assert!(matches!(
        reaped[..],
        [ReapedContainer {
            what: ReapAction::Stopped,
            ..
        }]
    ));
    assert_eq!(&reaped[0].run, late.id());
    assert!(
        reaper.reap(hasty).await.unwrap().is_empty(),
        "it has its output"
    );
    assert_eq!(bench.runtime.containers(), 3);
    let reaped = reaper
        .reap(hasty.remove_after(Duration::ZERO))
        .await
        .unwrap();
    assert!(matches!(
        reaped[..],
        [ReapedContainer {
            what: ReapAction::Removed,
            ..
        }]
    ));
    assert_eq!(bench.runtime.containers(), 2);

    let again = Manager::builder(bench.dir.path().join("root"), bench.runtime.clone())
        .runtime_handle(tokio::runtime::Handle::current())
        .open()
        .await
        .unwrap();
    assert!(again.reap(hasty).await.unwrap().is_empty(), "its own");
    let outcome = sealed(&again.get(late.id()).await.unwrap()).await;
    assert_eq!(outcome.ending, Ending::Removed { code: None });
    for run in [none, soon] {
        let outcome = again.get(run.id()).await.unwrap().kill().await.unwrap();
        assert_eq!(outcome.code(), Some(137));
    }
}

#[tokio::test]
async fn a_signal_stops_all_runs_and_seals_them_and_a_second_one_kills() {
    let bench = Bench::new().await;
    let raise = |signal| kill_process(getpid(), signal).unwrap();
    let stubborn = Script::new().until_stopped().ignore_term();
    let patient = spec().stop_grace(Duration::from_secs(3600));
    let run = bench.start(stubborn, patient).await;
    let quick = bench.start(Script::new().until_stopped(), spec()).await;
    let mut events = run.events();
    let signals = tokio::spawn(bench.manager.stop_on_signals().unwrap());
    raise(rustix::process::Signal::INT);
    let first = events.next().await.unwrap().kind;
    assert!(
        matches!(
            first,
            EventKind::StopRequested {
                cause: StopCause::ShutdownMode,
                ..
            }
        ),
        "{first:?}"
    );
    assert_eq!(
        sealed(&quick).await.stopped(),
        Some(StopCause::ShutdownMode)
    );
    assert!(matches!(
        bench.manager.start(spec()).await,
        Err(Error::Closed)
    ));
    assert!(!signals.is_finished());
    raise(rustix::process::Signal::TERM);
    let signal = within(60, "the kill", signals).await.unwrap();
    assert_eq!((signal, signal.exit_code()), (Signal::Interrupt, 130));
    let outcome = run.wait().await.unwrap();
    assert_eq!(outcome.code(), Some(137));
    assert_eq!(outcome.stopped(), Some(StopCause::ShutdownMode));
}
