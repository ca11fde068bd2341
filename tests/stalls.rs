//! Sinks that stall or fail for some runs, on the scripted runtime: whom that holds up, and whom not.
#![cfg(feature = "testing")]
#![allow(unreachable_pub)]

#[path = "support/deadline.rs"]
mod deadline;
#[path = "support/records.rs"]
mod records;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use moat::audit::{Action, Batch, Event, Reader, Record, Start};
use moat::outcome::StopCause;
use moat::run::{AttachOptions, Attachment, Exec, Input};
use moat::runtime::scripted::{Call, Fault, Link, Script, Scripted};
use moat::sink::{Jsonl, LogSink, RecordVisitor, Resumed, RunLog, RunPlace};
use moat::spec::{ExecSpec, Stdin, WindowSize};
use moat::{Error, Manager, Result, Root, Run, RunId, RunSpec, Runtime, Seal, ShutdownMode};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use deadline::{eventually, within};
use records::{actions, events};

/// How a sink is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    Stalls,
    Fails,
}

/// A sink that is moody with the runs in whose ids is `held`.
#[derive(Debug, Clone)]
struct Moody {
    inner: Jsonl,
    mood: watch::Sender<Mood>,
}

#[derive(Debug)]
struct MoodyLog {
    inner: Box<dyn RunLog>,
    sink: Moody,
    run: RunId,
}

impl Moody {
    fn new(mood: Mood) -> Self {
        Self {
            inner: Jsonl::new(),
            mood: watch::Sender::new(mood),
        }
    }

    async fn pass(&self, run: &RunId) -> Result<()> {
        if !run.as_str().contains("held") {
            return Ok(());
        }
        let mut mood = self.mood.subscribe();
        let _ = mood.wait_for(|mood| *mood != Mood::Stalls).await;
        if *mood.borrow() == Mood::Well {
            return Ok(());
        }
        Err(Error::Storage {
            operation: "reach",
            path: PathBuf::from("the moody sink"),
            source: std::io::Error::other("made for the test"),
        })
    }

    fn log(&self, place: &RunPlace, inner: Box<dyn RunLog>) -> Box<dyn RunLog> {
        Box::new(MoodyLog {
            inner,
            sink: self.clone(),
            run: place.run.clone(),
        })
    }
}

#[async_trait]
impl LogSink for Moody {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        self.pass(&place.run).await?;
        Ok(self.log(place, self.inner.open(place, start).await?))
    }

    async fn resume(&self, place: &RunPlace, visit: RecordVisitor) -> Result<Resumed> {
        self.pass(&place.run).await?;
        Ok(match self.inner.resume(place, visit).await? {
            Resumed::Open { log, torn } => Resumed::Open {
                log: self.log(place, log),
                torn,
            },
            other => other,
        })
    }

    fn path(&self, place: &RunPlace) -> Option<PathBuf> {
        self.inner.path(place)
    }
}

#[async_trait]
impl RunLog for MoodyLog {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        self.sink.pass(&self.run).await?;
        self.inner.append(batch).await
    }

    async fn sync(&mut self) -> Result<()> {
        self.inner.sync().await
    }

    async fn seal(&mut self, seal: Seal) -> Result<Seal> {
        self.sink.pass(&self.run).await?;
        self.inner.seal(seal).await
    }
}

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

    async fn open(&self, sink: &Moody) -> Manager {
        Manager::builder(self.dir.path().join("root"), self.runtime.clone())
            .sink(sink.clone())
            .seal_timeout(Duration::from_millis(200))
            .open()
            .await
            .unwrap()
    }

    /// Runs that a manager has started, and left.
    async fn leave(&self, ids: &[RunId]) {
        let manager = self.open(&Moody::new(Mood::Well)).await;
        for id in ids {
            let script = Script::new().stdout("a line\n").until_stopped();
            self.runtime.script(id, script);
            manager
                .start(RunSpec::new("any").id(id.clone()))
                .await
                .unwrap();
        }
        manager.shutdown(ShutdownMode::Leave).await;
    }
}

fn id(text: &str) -> RunId {
    RunId::new(text).unwrap()
}

async fn sealed(run: &Run) -> moat::Outcome {
    eventually(20, "the seal", async || {
        let outcome = run.wait().await.unwrap();
        outcome.sealed().is_some().then_some(outcome)
    })
    .await
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
async fn runs_that_cannot_be_taken_over_yet_keep_no_other_from_it() {
    for mood in [Mood::Fails, Mood::Stalls] {
        let bench = Bench::new();
        let well = id("10-well");
        let mut ids: Vec<_> = (0..20).map(|n| id(&format!("{n:02}-held"))).collect();
        ids.push(well.clone());
        bench.leave(&ids).await;
        let manager = bench.open(&Moody::new(mood)).await;
        eventually(20, "the taking over of the one that is well", async || {
            let info = manager.root().info(&well).unwrap();
            info.owned.then_some(())
        })
        .await;
        let run = manager.get(&well).await.unwrap();
        let stopped = within(20, "the stop of the one that is well", run.stop(None)).await;
        assert_eq!(stopped.unwrap().code(), Some(143), "{mood:?}");
        // What a slow disk has not sealed when the stop returns is sealed beside the others.
        sealed(&run).await;
    }
}

#[tokio::test]
async fn a_stop_reaches_the_container_while_the_log_of_its_run_cannot_be_opened() {
    for mood in [Mood::Fails, Mood::Stalls] {
        let bench = Bench::new();
        let held = id("held");
        bench.leave(std::slice::from_ref(&held)).await;
        let sink = Moody::new(mood);
        let manager = bench.open(&sink).await;
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
            sink.mood.send_replace(Mood::Well);
        };
        within(40, "the stop", async { tokio::join!(stop, reached) }).await;
        let outcome = sealed(&run).await;
        let records = Reader::open(outcome.audit.as_ref().unwrap()).unwrap();
        let is_stop = |record: &Record| matches!(record, Record::Event(Event::Stop(_)));
        assert_eq!(records.map(|r| r.unwrap()).filter(is_stop).count(), 1);
        assert!(outcome.sealed().unwrap().stopped.is_some(), "{outcome}");
    }
}

#[tokio::test]
async fn a_run_that_is_removed_by_others_while_it_is_taken_over_is_given_up() {
    let bench = Bench::new();
    let held = id("held");
    bench.leave(std::slice::from_ref(&held)).await;
    let sink = Moody::new(Mood::Fails);
    let manager = bench.open(&sink).await;
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
    sink.mood.send_replace(Mood::Well);
    let next = eventually(20, "the name to be free", async || {
        manager
            .start(RunSpec::new("any").id(held.clone()))
            .await
            .ok()
    })
    .await;
    sealed(&next).await;
}

/// What was told of the end stays, whatever becomes of the process and of the container.
#[tokio::test]
async fn an_exit_is_written_down_while_a_sink_stalls() {
    let bench = Bench::new();
    let held = id("held");
    let script = Script::new().stdout("a line\n").until_stopped();
    bench.runtime.script(&held, script.exit_on_term(7));
    let sink = Moody::new(Mood::Well);
    let manager = bench.open(&sink).await;
    let spec = RunSpec::new("any").id(held.clone());
    let run = manager.start(spec).await.unwrap();
    sink.mood.send_replace(Mood::Stalls);
    let found = bench.runtime.find(manager.root().id()).await.unwrap();
    let ended = bench.runtime.signal(&found[0].container, "SIGTERM");
    ended.await.unwrap();
    let outcome = within(20, "the end", run.wait()).await.unwrap();
    assert_eq!(outcome.code(), Some(7));
    assert!(outcome.sealed().is_none(), "{outcome}");
    let root = Root::open(manager.root().path()).unwrap();
    eventually(60, "what other processes see", async || {
        (root.info(&held).unwrap().status == moat::state::RunStatus::Exited).then_some(())
    })
    .await;

    manager.shutdown(ShutdownMode::Leave).await;
    bench.runtime.remove_externally(&held);
    let next = bench.open(&Moody::new(Mood::Well)).await;
    let outcome = sealed(&next.get(&held).await.unwrap()).await;
    assert_eq!(outcome.code(), Some(7), "{outcome}");
}

/// What a manager that closes may take to write what is left to say; what takes longer is lost.
const LEAVE: Duration = Duration::from_secs(2);

/// Plays a round again while it says that the machine was too slow for it.
async fn in_time(round: impl AsyncFn() -> bool) {
    for _ in 0..5 {
        if round().await {
            return;
        }
    }
    panic!("each of five rounds took too long");
}

/// A sink that is slow, and does at last what it was asked for. `false`: too late.
async fn shut_down_while_the_sink_stalls(manager: &Manager, sink: &Moody) -> bool {
    let begin = Instant::now();
    let recover = async {
        sink.mood.send_replace(Mood::Well);
    };
    // The shutdown has begun when the sink is well again.
    let closed = async { tokio::join!(manager.shutdown(ShutdownMode::Leave), recover) };
    within(20, "the shutdown", closed).await;
    begin.elapsed() < LEAVE
}

/// Sits in front of something, changes its size, and leaves.
async fn visit(attachment: Attachment) {
    attachment.resize(WindowSize::new(100, 30)).await.unwrap();
}

fn stops(path: &Path) -> usize {
    let is_stop = |event: &&Event| matches!(event, Event::Stop(_));
    events(path).iter().filter(is_stop).count()
}

#[tokio::test]
async fn what_was_done_to_a_run_before_a_shutdown_is_in_its_audit() {
    for recovered in [false, true] {
        in_time(async || {
            let bench = Bench::new();
            let held = id("held");
            let script = Script::new().stdout("a line\n").until_stopped();
            bench.runtime.script(&held, script);
            let sink = Moody::new(Mood::Well);
            let mut manager = bench.open(&sink).await;
            let spec = RunSpec::new("any").id(held.clone()).tty(true);
            let mut run = manager.start(spec.stdin(Stdin::Open)).await.unwrap();
            if recovered {
                manager.shutdown(ShutdownMode::Leave).await;
                manager = bench.open(&sink).await;
                manager.wait_recovery().await.unwrap();
                run = manager.get(&held).await.unwrap();
            }
            sink.mood.send_replace(Mood::Stalls);
            let options = AttachOptions::new().with_input();
            visit(run.attach_with(options).await.unwrap()).await;
            // Once it was polled, it goes on.
            assert!(run.stop(None).now_or_never().is_none());
            if !shut_down_while_the_sink_stalls(&manager, &sink).await {
                return false;
            }

            assert_eq!(bench.runtime.calls(Call::Signal), 1, "{recovered}");
            let audit = run.audit().unwrap();
            let done = [Action::AttachInput, Action::Resize, Action::Detach];
            assert_eq!(actions(&audit), done, "{recovered}");
            assert_eq!(stops(&audit), 1, "{recovered}");
            let next = bench.open(&Moody::new(Mood::Well)).await;
            let run = next.get(&held).await.unwrap();
            let outcome = within(20, "the seal", sealed(&run)).await;
            assert_eq!(outcome.code(), Some(143), "{outcome}");
            let stopped = outcome.sealed().unwrap().stopped;
            assert_eq!(stopped, Some(StopCause::Requested));
            assert_eq!(stops(&audit), 1);
            true
        })
        .await;
    }
}

#[tokio::test]
async fn what_was_done_to_a_further_process_before_a_shutdown_is_in_its_audit() {
    in_time(async || {
        let bench = Bench::new();
        let held = id("held");
        bench.runtime.script(&held, Script::new().until_stopped());
        bench.runtime.next_exec(Script::new().until_stopped());
        let sink = Moody::new(Mood::Well);
        let manager = bench.open(&sink).await;
        let run = manager.start(RunSpec::new("any").id(held.clone()));
        let run = run.await.unwrap();
        let spec = ExecSpec::new(["any"]).interactive(true);
        let exec = run.exec(spec).await.unwrap();
        sink.mood.send_replace(Mood::Stalls);
        let options = AttachOptions::new().with_input();
        let mut attachment = exec.attach_with(options).await.unwrap();
        let mut input = attachment.input().unwrap();
        input.shutdown().await.unwrap();
        drop((input, attachment));
        if !shut_down_while_the_sink_stalls(&manager, &sink).await {
            return false;
        }

        let done = [Action::AttachInput, Action::InputEnd, Action::Detach];
        assert_eq!(actions(&exec.audit().unwrap()), done);
        assert_eq!(actions(&run.audit().unwrap()), [Action::Exec]);
        true
    })
    .await;
}

/// Invariant 9: once a process runs, nothing waits for the sink.
#[tokio::test]
async fn a_sink_that_stalls_holds_up_no_further_process() {
    let bench = Bench::new();
    let held = id("held");
    bench.runtime.script(&held, Script::new().until_stopped());
    bench
        .runtime
        .next_exec(Script::new().stdout("out\n").exit(7));
    let sink = Moody::new(Mood::Well);
    let manager = bench.open(&sink).await;
    let run = manager.start(RunSpec::new("any").id(held.clone()));
    let run = run.await.unwrap();
    // Its log is open when the engine is asked, and stalls when it has answered.
    bench.runtime.link(Link::Silent);
    let stall = async {
        eventually(20, "the request", async || {
            (bench.runtime.calls(Call::Exec) > 0).then_some(())
        })
        .await;
        sink.mood.send_replace(Mood::Stalls);
        bench.runtime.link(Link::Up);
    };
    let exec = async { tokio::join!(run.exec(ExecSpec::new(["any"])), stall).0 };
    let exec = within(20, "the process", exec).await.unwrap();
    let mut output = exec.attach().await.unwrap();
    let first = within(20, "its output", output.next()).await;
    assert!(first.unwrap().is_ok());
    sink.mood.send_replace(Mood::Well);
    let outcome = within(20, "its seal", sealed_exec(&exec)).await;
    assert_eq!(outcome.code(), Some(7), "{outcome}");
}

fn typed(path: &Path) -> Vec<u8> {
    let written = events(path).into_iter().filter_map(|event| match event {
        Event::Stdin(written) => Some(written.bytes),
        _ => None,
    });
    written.flatten().collect()
}

/// Types into something, changes its size, and is told by the log of `run` that it has failed.
async fn type_while_the_sink_fails(attachment: &mut Attachment, run: &Run, sink: &Moody) -> Input {
    let mut input = attachment.input().unwrap();
    input.write_all(b"before\n").await.unwrap();
    eventually(20, "what was typed before", async || {
        (typed(&run.audit().unwrap()) == b"before\n").then_some(())
    })
    .await;
    sink.mood.send_replace(Mood::Fails);
    attachment.resize(WindowSize::new(100, 30)).await.unwrap();
    input.write_all(b"typed\n").await.unwrap();
    input
}

#[tokio::test]
async fn what_was_done_while_a_sink_failed_is_recorded_when_it_is_well() {
    let bench = Bench::new();
    let held = id("held");
    bench.runtime.script(&held, Script::new().echo());
    let sink = Moody::new(Mood::Well);
    let manager = bench.open(&sink).await;
    let spec = RunSpec::new("any").id(held).tty(true).stdin(Stdin::Open);
    let options = AttachOptions::new().with_input();
    let started = manager.start_attached(spec.record_stdin(true), options);
    let (run, mut attachment) = started.await.unwrap();
    let input = type_while_the_sink_fails(&mut attachment, &run, &sink).await;
    eventually(20, "the failure", async || run.problem()).await;
    drop((input, attachment));
    sink.mood.send_replace(Mood::Well);
    let killed = within(20, "the end", run.kill()).await.unwrap();
    assert_eq!(killed.code(), Some(137), "{killed}");
    sealed(&run).await;
    let audit = run.audit().unwrap();
    let done = [Action::AttachInput, Action::Resize, Action::Detach];
    assert_eq!(actions(&audit), done);
    assert_eq!(typed(&audit), b"before\ntyped\n");
}

#[tokio::test]
async fn what_was_typed_into_a_further_process_while_a_sink_failed_is_recorded_when_it_is_well() {
    let bench = Bench::new();
    let held = id("held");
    bench.runtime.script(&held, Script::new().until_stopped());
    // It prints nothing: what was typed is all that its log can fail at.
    bench.runtime.next_exec(Script::new().until_stopped());
    let sink = Moody::new(Mood::Well);
    let manager = bench.open(&sink).await;
    let run = manager.start(RunSpec::new("any").id(held)).await.unwrap();
    let spec = ExecSpec::new(["any"]).interactive(true).record_stdin(true);
    let exec = run.exec(spec).await.unwrap();
    let options = AttachOptions::new().with_input();
    let mut attachment = exec.attach_with(options).await.unwrap();
    let audit = exec.audit().unwrap();
    eventually(20, "what was done before", async || {
        (actions(&audit) == [Action::AttachInput]).then_some(())
    })
    .await;
    let mut input = attachment.input().unwrap();
    sink.mood.send_replace(Mood::Fails);
    input.write_all(b"typed\n").await.unwrap();
    let outcome = within(20, "the end", exec.wait()).await.unwrap();
    assert!(outcome.sealed().is_none(), "{outcome}");
    sink.mood.send_replace(Mood::Well);
    within(20, "the seal", sealed_exec(&exec)).await;
    assert_eq!(typed(&audit), b"typed\n");
}

#[tokio::test]
async fn a_stop_before_a_shutdown_reaches_a_run_that_another_one_owns() {
    for overtaken in [false, true] {
        in_time(async || {
            let bench = Bench::new();
            let well = id("well");
            bench.runtime.script(&well, Script::new().until_stopped());
            let owner = bench.open(&Moody::new(Mood::Well)).await;
            let run = owner.start(RunSpec::new("any").id(well.clone()));
            let run = run.await.unwrap();
            let other = bench.open(&Moody::new(Mood::Well)).await;
            other.wait_recovery().await.unwrap();
            let theirs = other.get(&well).await.unwrap();
            assert!(theirs.owned_elsewhere());
            let before = bench.runtime.calls(Call::Inspect);
            if overtaken {
                // The image says which signal it is.
                bench.runtime.link(Link::Silent);
            }
            assert!(theirs.stop(None).now_or_never().is_none());
            if overtaken {
                eventually(20, "the question for the signal", async || {
                    (bench.runtime.calls(Call::Inspect) > before).then_some(())
                })
                .await;
                // The next look at the run's files is due before the answer comes.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let answer = async { bench.runtime.link(Link::Up) };
            let closed = async { tokio::join!(other.shutdown(ShutdownMode::Leave), answer) };
            let begin = Instant::now();
            within(20, "the shutdown", closed).await;
            if begin.elapsed() >= LEAVE {
                return false;
            }
            let outcome = within(20, "the seal", sealed(&run)).await;
            assert_eq!(outcome.code(), Some(143), "{outcome}");
            assert_eq!(stops(&run.audit().unwrap()), 1, "{overtaken}");
            true
        })
        .await;
    }
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_sink_that_stalls() {
    let bench = Bench::new();
    let held = id("held");
    bench.runtime.script(&held, Script::new().until_stopped());
    let sink = Moody::new(Mood::Well);
    let manager = bench.open(&sink).await;
    let run = manager.start(RunSpec::new("any").id(held.clone()));
    let run = run.await.unwrap();
    sink.mood.send_replace(Mood::Stalls);
    run.attach().await.unwrap().detach();
    within(10, "the shutdown", manager.shutdown(ShutdownMode::Leave)).await;
    assert!(actions(&run.audit().unwrap()).is_empty());
}

/// A stop that comes while a start is under way asks as any other does, before it kills.
#[tokio::test]
async fn a_stop_of_a_start_that_a_shutdown_cuts_off_has_its_grace() {
    in_time(async || {
        let bench = Bench::new();
        let well = id("well");
        bench.runtime.script(&well, Script::new().until_stopped());
        // The container runs, and what is asked about it is not answered.
        bench.runtime.fault(Call::Inspect, Fault::Hang);
        let manager = bench.open(&Moody::new(Mood::Well)).await;
        let start = manager.start(RunSpec::new("any").id(well.clone()));
        let stop = async {
            eventually(20, "the start", async || {
                (bench.runtime.calls(Call::Inspect) > 0).then_some(())
            })
            .await;
            let run = manager.get(&well).await.unwrap();
            assert!(run.stop(None).now_or_never().is_none());
            let begin = Instant::now();
            manager.shutdown(ShutdownMode::Leave).await;
            begin.elapsed() < LEAVE
        };
        let both = async { tokio::join!(start, stop) };
        let (started, in_time) = within(20, "the shutdown", both).await;
        // A start waits 5 s for that answer.
        if started.is_ok() || !in_time {
            return false;
        }
        assert!(matches!(started, Err(Error::Closed)));

        let next = bench.open(&Moody::new(Mood::Well)).await;
        let run = next.get(&well).await.unwrap();
        let outcome = within(20, "the seal", sealed(&run)).await;
        assert_eq!(outcome.code(), Some(143), "{outcome}");
        let stopped = outcome.sealed().unwrap().stopped;
        assert_eq!(stopped, Some(StopCause::Requested));
        assert_eq!(stops(&run.audit().unwrap()), 1);
        true
    })
    .await;
}
