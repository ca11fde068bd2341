//! The conformance suite on what comes with moat, and on implementors that break one clause each.
//!
//! The trials on an engine are listed as ignored where none answers, and fail where one is promised
//! by `MOAT_ENGINE=required`. `DOCKER_HOST` says which engine: `cargo test --test conformance
//! --all-features -- docker::`.

#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "nobody reaches into a test; tests spawn as their users do, and fail by panicking"
)]

#[cfg(feature = "docker")]
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod support;

mod broken_runtime;
mod broken_sink;
#[cfg(feature = "docker")]
mod engine;
mod scripted;
mod sinks;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
#[cfg(feature = "process")]
use moat::conformance::ShellHarness;
use moat::conformance::{self, CaseResult};
use moat::sink::{Fanout, Jsonl, Memory};
#[cfg(feature = "process")]
use moat::{LocalProcess, RunSpec};

/// By which clock a row is tried: a double's takes no time.
#[derive(Clone, Copy, PartialEq)]
enum Clock {
    Real,
    Paused,
}

fn main() {
    let mut arguments = Arguments::from_args();
    // Trials wait for the engine more than they compute.
    arguments.test_threads.get_or_insert(8);
    let memory = Memory::new();
    // One row for each implementor.
    let rows = [
        row(
            "scripted",
            Clock::Paused,
            conformance::runtime(scripted::Stage::new),
        ),
        #[cfg(feature = "docker")]
        engine::row(|| {
            row(
                "docker",
                Clock::Real,
                conformance::runtime(engine::Stage::new),
            )
        }),
        #[cfg(feature = "process")]
        row(
            "process",
            Clock::Real,
            conformance::runtime(|| {
                ShellHarness::new(LocalProcess::new(), RunSpec::command(["true"]))
            }),
        ),
        row(
            "jsonl",
            Clock::Real,
            conformance::sink(sinks::OfJsonl(Jsonl::new)),
        ),
        row(
            "memory",
            Clock::Real,
            conformance::sink(sinks::OfMemory(memory)),
        ),
        row(
            "fanout",
            Clock::Real,
            conformance::sink(sinks::OfJsonl(|| {
                Fanout::new(Jsonl::new()).best_effort(Memory::new())
            })),
        ),
        broken_runtime::rows(),
        broken_sink::rows(),
    ];
    libtest_mimic::run(&arguments, rows.into_iter().flatten().collect()).exit();
}

fn row(implementor: &str, clock: Clock, trials: Vec<conformance::Case>) -> Vec<Trial> {
    let trial = |trial: conformance::Case| {
        let name = format!("{implementor}::{}", trial.name());
        Trial::ignorable_test(name, move || match run(clock, trial) {
            Ok(CaseResult::Passed) => Ok(Completion::Completed),
            Ok(CaseResult::Skipped(reason)) => Ok(Completion::ignored_with(reason)),
            Ok(other) => Err(Failed::from(format!("{other:?}"))),
            Err(failure) => Err(Failed::from(failure)),
        })
    };
    trials.into_iter().map(trial).collect()
}

fn run(clock: Clock, trial: conformance::Case) -> Result<CaseResult, conformance::Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(clock == Clock::Paused)
        .build()
        .unwrap()
        .block_on(trial.run())
}

/// A row that shows that each clause can fail: a trial is green if the clause of its name is red on
/// the implementor that `broken` gives for it.
fn red(
    implementor: &str,
    broken: impl Fn(&'static str) -> Vec<conformance::Case> + Send + Clone + 'static,
) -> Vec<Trial> {
    // What these say of themselves cannot be tried.
    const NEVER_TRIED: [&str; 3] = [
        "append::records_survive_the_death_of_the_process",
        "sync::synced_records_survive_the_power_failing",
        "threads::the_one_that_polls_is_not_blocked",
    ];
    let names = broken("").into_iter().map(|trial| trial.name());
    let names = names.filter(|name| !NEVER_TRIED.contains(name));
    let trial = |name: &'static str| {
        let broken = broken.clone();
        Trial::test(format!("broken_{implementor}::{name}"), move || {
            let mut trials = broken(name).into_iter();
            let trial = trials.find(|trial| trial.name() == name).unwrap();
            match run(Clock::Paused, trial) {
                Err(_) => Ok(()),
                Ok(tried) => Err(Failed::from(format!("it is broken, and passes: {tried:?}"))),
            }
        })
    };
    names.map(trial).collect()
}
