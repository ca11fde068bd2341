//! Two hundred runs at once on an engine that fails at random. Managers replace each other, and
//! callers wait for, stop, kill, read and remove the runs.
//!
//! `MOAT_SEED` selects the sequence, and `MOAT_SOAK=1` plays a hundred sequences. The order of work
//! on the disk threads is not part of the seed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use futures::StreamExt;
use futures::future::join_all;
use moat::audit::{Event, Gap, GapReason, LogState, Reader, Record, verify};
use moat::outcome::Stream;
use moat::run::Attached;
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script, Scripted};
use moat::spec::KeepContainer;
use moat::{Ending, Error, Manager, Outcome, Result, Run, RunId, RunSpec, ShutdownMode, Verdict};
use tokio::time::{Instant, sleep};

use crate::bench::raise_descriptor_limit;

const RUNS: usize = 200;
const SEED: u64 = 20_261_124;
/// The time during which the engine fails.
const FAULT_TIME: Duration = Duration::from_secs(3);
/// The maximum time of a sequence, by the real clock. A paused clock runs ahead while a thread writes
/// a file.
const BOUND: Duration = Duration::from_secs(90);
const NEVER: Duration = Duration::from_secs(1 << 30);

/// The behavior of a container, and the calls on its run.
#[derive(Debug, Clone)]
struct Plan {
    id: RunId,
    units: Vec<(Stream, String)>,
    pause: Duration,
    code: i64,
    runs_on: bool,
    ignores_term: bool,
    fails: bool,
    tap_cut: Option<u64>,
    tap_stays: bool,
    log_cut: Option<u64>,
    begins: Duration,
    actions: Vec<(Duration, CallerAction)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallerAction {
    Wait,
    Stop(Option<Duration>),
    Kill,
    Attach { slow: bool },
    Remove,
}

impl Plan {
    fn random(rng: &mut Rng, number: usize) -> Self {
        let one_in = |rng: &mut Rng, many: u32| rng.u32(0..many) == 0;
        let units: Vec<_> = (0..rng.usize(0..40))
            .map(|unit| {
                let stream = [Stream::Stdout, Stream::Stderr][rng.usize(0..2)];
                let newline = if one_in(rng, 5) { "" } else { "\n" };
                (stream, format!("run {number} unit {unit}{newline}"))
            })
            .collect();
        let printed: usize = units.iter().map(|(_, unit)| unit.len()).sum();
        let within = |rng: &mut Rng| rng.u64(0..=printed as u64);
        let mut actions = vec![(Duration::ZERO, CallerAction::Wait)];
        for _ in 0..rng.usize(0..6) {
            let grace = Duration::from_millis(rng.u64(0..400));
            let action = match rng.u32(0..10) {
                0 | 1 => CallerAction::Wait,
                2 => CallerAction::Stop(None),
                3 => CallerAction::Stop(Some(grace)),
                4 => CallerAction::Kill,
                5 => CallerAction::Remove,
                _ => CallerAction::Attach {
                    slow: one_in(rng, 3),
                },
            };
            actions.push((Duration::from_millis(rng.u64(0..900)), action));
        }
        let runs_on = one_in(rng, 4);
        if runs_on {
            actions.push((Duration::from_millis(rng.u64(0..1500)), CallerAction::Kill));
        }
        Self {
            id: RunId::new(format!("run-{number}")).unwrap(),
            pause: Duration::from_millis(rng.u64(0..20)),
            code: rng.i64(0..5),
            ignores_term: one_in(rng, 8),
            fails: one_in(rng, 16),
            tap_cut: one_in(rng, 6).then(|| within(rng)),
            tap_stays: one_in(rng, 10),
            log_cut: one_in(rng, 12).then(|| within(rng)),
            begins: Duration::from_millis(rng.u64(0..500)),
            units,
            runs_on,
            actions,
        }
    }

    fn script(&self) -> Script {
        let mut script = Script::new().exit(self.code);
        for (stream, unit) in &self.units {
            script = script.print(*stream, unit.clone()).pause(self.pause);
        }
        if self.runs_on {
            script = script.until_stopped();
        }
        if self.ignores_term {
            script = script.ignore_term();
        }
        if self.fails {
            script = script.fail_to_start("as planned");
        }
        if let Some(bytes) = self.tap_cut {
            script = script.cut_attachment_after(bytes);
        }
        if self.tap_stays {
            script = script.attachment_never_ends();
        }
        if let Some(bytes) = self.log_cut {
            script = script.cut_log_after(bytes);
        }
        script
    }

    /// The whole output on a stream, if the container is not stopped.
    fn printed(&self, stream: Stream) -> String {
        let units = self.units.iter().filter(|(of, _)| *of == stream);
        units.map(|(_, unit)| unit.as_str()).collect()
    }

    fn is_removed(&self) -> bool {
        self.actions
            .iter()
            .any(|(_, action)| *action == CallerAction::Remove)
    }
}

/// The open managers of one root: one or two.
struct Managers(RefCell<Vec<Manager>>);

impl Managers {
    /// Calls `act` with one manager, and with another if that one is closed.
    async fn with<T>(&self, rng: &mut Rng, act: impl AsyncFn(Manager) -> Result<T>) -> Result<T> {
        loop {
            let manager = {
                let open = self.0.borrow();
                open[rng.usize(0..open.len())].clone()
            };
            match act(manager).await {
                // A manager closes before or after it leaves the list.
                Err(Error::Closed) => tokio::task::yield_now().await,
                result => return result,
            }
        }
    }
}

struct Crowd {
    runtime: Scripted,
    root: PathBuf,
    paused: bool,
    _dir: tempfile::TempDir,
}

impl Crowd {
    fn new(paused: bool) -> Self {
        raise_descriptor_limit();
        // In memory where possible: every run is synced.
        let memory = Path::new("/dev/shm");
        let dir = match memory.is_dir() {
            true => tempfile::tempdir_in(memory).unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        Self {
            runtime: Scripted::new(),
            root: dir.path().join("root"),
            paused,
            _dir: dir,
        }
    }

    async fn open(&self) -> Manager {
        let mut builder = Manager::builder(&self.root, self.runtime.clone()).seal_timeout(NEVER);
        if self.paused {
            builder = builder.runtime_handle(tokio::runtime::Handle::current());
        }
        builder.open().await.unwrap()
    }

    /// Injects faults into random calls for a while.
    async fn inject_faults(&self, mut rng: Rng) {
        let end = Instant::now() + FAULT_TIME;
        while Instant::now() < end {
            sleep(Duration::from_millis(rng.u64(0..6))).await;
            let call = [
                Call::Prepare,
                Call::Create,
                Call::Attach,
                Call::Start,
                Call::Wait,
                Call::Inspect,
                Call::Continuity,
                Call::Logs,
                Call::Signal,
                Call::Remove,
                Call::Find,
            ][rng.usize(0..11)];
            let operation = "be of any use";
            let fault = match rng.u32(0..4) {
                0 => Fault::Error(RuntimeError::Timeout {
                    operation,
                    after: Duration::from_secs(30),
                }),
                1 => Fault::Error(RuntimeError::Broken {
                    operation,
                    reason: "injected fault".into(),
                }),
                // Only a wait may hang for ever: moat also inspects the container every 30 s.
                2 if call == Call::Wait && self.paused => Fault::Hang,
                _ => Fault::AnswerLost,
            };
            self.runtime.fault(call, fault);
        }
        self.runtime.clear_faults();
    }

    /// Opens managers that overlap and replace each other.
    async fn replace_managers(&self, managers: &Managers, mut rng: Rng) {
        for _ in 0..rng.usize(1..4) {
            sleep(Duration::from_millis(rng.u64(100..700))).await;
            let next = self.open().await;
            managers.0.borrow_mut().push(next);
            sleep(Duration::from_millis(rng.u64(0..300))).await;
            let first = managers.0.borrow_mut().remove(0);
            first.shutdown(ShutdownMode::Leave).await;
        }
    }

    async fn play(&self, seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let plans: Vec<_> = (0..RUNS).map(|at| Plan::random(&mut rng, at)).collect();
        let first = self.open().await;
        let managers = Managers(RefCell::new(vec![first]));
        let runs: Vec<_> = plans
            .iter()
            .map(|plan| {
                self.runtime.script(&plan.id, plan.script());
                drive(plan, &managers, rng.fork())
            })
            .collect();
        let (faults, replacements) = (rng.fork(), rng.fork());
        tokio::join!(
            join_all(runs),
            self.inject_faults(faults),
            self.replace_managers(&managers, replacements)
        );
        for manager in managers.0.into_inner() {
            manager.shutdown(ShutdownMode::Stop).await;
        }
        let last = self.open().await;
        last.wait_recovery().await.unwrap();
        let infos = last.list().await.unwrap();
        let mut kept = 0;
        let by_id: BTreeMap<_, _> = plans.iter().map(|plan| (plan.id.clone(), plan)).collect();
        for info in &infos {
            assert_eq!(info.problem, None, "{info:?}");
            let run = last.get(&info.run).await.unwrap();
            let outcome = run.wait().await.unwrap();
            check(by_id[&info.run], &outcome);
            kept += usize::from(outcome.sealed().unwrap().verdict == Verdict::Gap);
        }
        let left = plans.iter().filter(|plan| !plan.is_removed()).count();
        assert!(infos.len() >= left, "{} of {left} runs", infos.len());
        last.shutdown(ShutdownMode::Leave).await;
        assert!(self.runtime.containers() <= kept, "a container is left");
    }
}

/// Starts a run, and calls on it what the plan says.
async fn drive(plan: &Plan, managers: &Managers, mut rng: Rng) {
    sleep(plan.begins).await;
    let spec = RunSpec::new("any")
        .id(plan.id.clone())
        .keep(KeepContainer::OnGap)
        .stop_grace(Duration::from_millis(300));
    let started = managers
        .with(&mut rng, async |manager| {
            match manager.start(spec.clone()).await {
                // A manager that closed during the start has left the run to the next one.
                Err(Error::RunExists { .. }) => manager.get(&plan.id).await,
                Err(Error::NotStarted { outcome, .. }) => manager.get(&outcome.run).await,
                started => started,
            }
        })
        .await;
    drop(started.unwrap());
    let actions = plan.actions.iter().map(|(after, action)| {
        let mut rng = rng.fork();
        async move {
            sleep(*after).await;
            let done = managers.with(&mut rng, async |manager| {
                let run = manager.get(&plan.id).await?;
                let ending = match action {
                    CallerAction::Wait => run.wait().await?.ending,
                    CallerAction::Stop(grace) => run.stop(*grace).await?.ending,
                    CallerAction::Kill => run.kill().await?.ending,
                    CallerAction::Attach { slow } => {
                        return follow_output(plan, &run, *slow).await.map(|()| None);
                    }
                    CallerAction::Remove => {
                        let ending = run.wait().await?.ending;
                        drop(run);
                        match manager.remove(&plan.id).await {
                            // A failed removal is not retried.
                            Ok(()) | Err(Error::Runtime(_) | Error::Owned { .. }) => ending,
                            Err(error) => return Err(error),
                        }
                    }
                };
                Ok(Some(ending))
            });
            let Some(done) = within(BOUND, done).await else {
                let root = managers.0.borrow()[0].root().clone();
                panic!("{action:?} hangs: {plan:?}\n{:?}", root.info(&plan.id));
            };
            match done {
                Ok(ending) => ending,
                // Another caller has removed the run.
                Err(Error::NoSuchRun { .. } | Error::Storage { .. }) if plan.is_removed() => None,
                Err(error) => panic!("{action:?}: {}: {plan:?}", error.chain()),
            }
        }
    });
    let endings = join_all(actions).await;
    // Invariant 6: every caller gets the same ending.
    let endings: Vec<Ending> = endings.into_iter().flatten().collect();
    assert!(
        endings.windows(2).all(|two| two[0] == two[1]),
        "{plan:?}: {endings:?}"
    );
}

/// `None` after more than `bound` by the real clock.
async fn within<T>(bound: Duration, future: impl Future<Output = T>) -> Option<T> {
    let begin = std::time::Instant::now();
    tokio::pin!(future);
    while begin.elapsed() < bound {
        tokio::select! {
            done = &mut future => return Some(done),
            () = sleep(Duration::from_millis(100)) => {}
        }
    }
    None
}

/// Follows the output to its end, or until the manager is closed: each byte once and in order.
async fn follow_output(plan: &Plan, run: &Run, slow: bool) -> Result<()> {
    let mut attachment = run.attach().await?;
    let mut seen = BTreeMap::<_, String>::new();
    while let Some(item) = attachment.next().await {
        match item? {
            Attached::Chunk(chunk) => {
                let text = std::str::from_utf8(&chunk.bytes).unwrap();
                seen.entry(chunk.stream).or_default().push_str(text);
            }
            // The file was removed.
            Attached::Lagged { .. } if plan.is_removed() => return Ok(()),
            // The buffer has room for the whole output.
            missed => panic!("{plan:?}: {missed:?} after {seen:?}"),
        }
        if slow {
            sleep(Duration::from_millis(30)).await;
        }
    }
    for (stream, seen) in seen {
        let printed = plan.printed(stream);
        assert!(printed.starts_with(&seen), "{plan:?} {stream}: {seen:?}");
    }
    Ok(())
}

/// Checks the audit of a run against the known output of its container.
fn check(plan: &Plan, outcome: &Outcome) {
    let seal = outcome.sealed().unwrap();
    let audit = outcome.audit.as_ref().unwrap();
    match verify(audit).unwrap().state {
        LogState::Sealed(found) => assert_eq!(*found, *seal),
        other => panic!("{plan:?}: {other:?}"),
    }
    let mut found = BTreeMap::<_, String>::new();
    let mut gaps = Vec::<Gap>::new();
    let (mut starts, mut ends) = (0, 0);
    for record in Reader::open(audit).unwrap() {
        match record.unwrap() {
            Record::Output(output) => {
                let text = found.entry(output.stream).or_default();
                text.push_str(std::str::from_utf8(&output.bytes).unwrap());
                text.extend((!output.partial).then_some('\n'));
            }
            Record::Event(Event::Gap(gap)) => gaps.push(gap),
            Record::Event(Event::Start(_)) => starts += 1,
            Record::Event(Event::End(_)) => ends += 1,
            _ => {}
        }
    }
    let all = format!("{plan:?}\n{outcome}\n{gaps:?}\n{found:?}");
    assert_eq!((starts, ends), (1, 1), "{all}");
    assert_eq!(seal.verdict == Verdict::Gap, !gaps.is_empty(), "{all}");
    for gap in &gaps {
        match gap.reason {
            GapReason::LogShorter => assert!(plan.log_cut.is_some(), "{all}"),
            // The engine was unreachable and may have been restarted.
            GapReason::EngineRestarted => assert!(gap.possible, "{all}"),
            // The owner died, or its removal was not answered.
            GapReason::Removed => {}
            _ => panic!("{all}"),
        }
    }
    let natural = match &outcome.ending {
        Ending::Exited(exit) => {
            let code = exit.code.unwrap();
            assert!([plan.code, 137, 143].contains(&code), "{all}");
            assert!(!plan.fails, "{all}");
            code == plan.code && !plan.runs_on
        }
        ending if ending.never_started() => {
            assert!(found.is_empty() && gaps.is_empty(), "{all}");
            return;
        }
        Ending::Removed { .. } => false,
        _ => panic!("{all}"),
    };
    for stream in [Stream::Stdout, Stream::Stderr] {
        let (printed, found) = (plan.printed(stream), found.remove(&stream));
        let found = found.unwrap_or_default();
        assert!(printed.starts_with(&found), "{all}");
        if natural && gaps.is_empty() && plan.log_cut.is_none() {
            assert_eq!(found, printed, "{all}");
        }
    }
}

fn seed() -> u64 {
    let seed = std::env::var("MOAT_SEED").ok();
    seed.map_or(SEED, |seed| seed.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn every_run_on_a_failing_engine_has_a_true_seal() {
    let sequences = match std::env::var_os("MOAT_SOAK") {
        Some(_) => 100,
        None => 4,
    };
    for seed in seed()..seed() + sequences {
        println!("seed {seed}");
        Crowd::new(true).play(seed).await;
    }
}

/// The real clock and threads allow interleavings that a paused clock does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_run_on_real_threads_has_a_true_seal() {
    Crowd::new(false).play(seed()).await;
}
