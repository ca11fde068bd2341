//! The conformance suite on the implementations of this crate, and on broken implementations.
//!
//! The trials on an engine are ignored if no engine answers, and fail if `MOAT_ENGINE=required` is
//! set. `DOCKER_HOST` selects the engine:
//! `cargo test --test conformance --all-features -- docker::`.

#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test has no callers, spawns like user code, and fails by panicking"
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
use moat::conformance::{self, Case, CaseResult, Failure};
use moat::sink::{Fanout, Jsonl, Memory};
#[cfg(feature = "process")]
use moat::{LocalProcess, RunSpec};

/// The clock of a case. With a paused clock, a test double takes no time.
#[derive(Clone, Copy, PartialEq)]
enum Clock {
    Real,
    Paused,
}

fn main() {
    let mut arguments = Arguments::from_args();
    // Cases mostly wait for the engine.
    arguments.test_threads.get_or_insert(8);
    let memory = Memory::new();
    let trials = [
        trials(
            "scripted",
            Clock::Paused,
            conformance::runtime(scripted::ScriptedHarness::new),
        ),
        #[cfg(feature = "docker")]
        engine::ignore_without_engine(trials(
            "docker",
            Clock::Real,
            conformance::runtime(engine::EngineHarness::new),
        )),
        #[cfg(feature = "process")]
        trials(
            "process",
            Clock::Real,
            conformance::runtime(|| {
                ShellHarness::new(LocalProcess::new(), RunSpec::command(["true"]))
            }),
        ),
        trials(
            "jsonl",
            Clock::Real,
            conformance::sink(sinks::JsonlHarness(Jsonl::new)),
        ),
        trials(
            "memory",
            Clock::Real,
            conformance::sink(sinks::MemoryHarness(memory)),
        ),
        trials(
            "fanout",
            Clock::Real,
            conformance::sink(sinks::JsonlHarness(|| {
                Fanout::new(Jsonl::new()).best_effort(Memory::new())
            })),
        ),
        broken_runtime::trials(),
        broken_sink::trials(),
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit();
}

/// Returns a trial for each case, with the name of the implementation.
fn trials(implementation: &str, clock: Clock, cases: Vec<Case>) -> Vec<Trial> {
    let trial = |case: Case| {
        let name = format!("{implementation}::{}", case.name());
        Trial::ignorable_test(name, move || match run(clock, case) {
            Ok(CaseResult::Passed) => Ok(Completion::Completed),
            Ok(CaseResult::Skipped(reason)) => Ok(Completion::ignored_with(reason)),
            Ok(other) => Err(Failed::from(format!("unknown result {other:?}"))),
            Err(failure) => Err(Failed::from(failure)),
        })
    };
    cases.into_iter().map(trial).collect()
}

fn run(clock: Clock, case: Case) -> Result<CaseResult, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(clock == Clock::Paused)
        .build()
        .unwrap()
        .block_on(case.run())
}

/// Returns a trial for each clause, which passes if the case fails on a broken implementation.
///
/// `cases` returns the cases of an implementation that violates the named clause.
fn broken(
    implementation: &str,
    cases: impl Fn(&'static str) -> Vec<Case> + Send + Clone + 'static,
) -> Vec<Trial> {
    // The suite skips these cases for every implementation.
    const ALWAYS_SKIPPED: [&str; 3] = [
        "append::survives_a_killed_process",
        "sync::survives_power_loss",
        "threads::are_not_blocked",
    ];
    let names = cases("").into_iter().map(|case| case.name());
    let names = names.filter(|name| !ALWAYS_SKIPPED.contains(name));
    let trial = |name: &'static str| {
        let cases = cases.clone();
        Trial::test(format!("broken_{implementation}::{name}"), move || {
            let mut cases = cases(name).into_iter();
            let case = cases.find(|case| case.name() == name).unwrap();
            match run(Clock::Paused, case) {
                Err(_) => Ok(()),
                Ok(result) => Err(Failed::from(format!(
                    "the broken implementation is not detected: {result:?}"
                ))),
            }
        })
    };
    names.map(trial).collect()
}
