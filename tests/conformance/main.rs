//! The conformance suite on the runtimes and sinks of moat, and on implementors that break one
//! clause each.
//!
//! Without an engine, the trials of `docker` are skipped; with `MOAT_ENGINE=required` they fail.
//! `DOCKER_HOST` selects the engine: `cargo test --test conformance --all-features -- docker::`.

#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "no other crate uses a test; tests spawn tasks as applications do"
)]

mod broken_runtime;
mod broken_sink;
#[cfg(feature = "docker")]
mod engine;
#[cfg(all(feature = "docker", feature = "kube"))]
mod kubernetes;
mod scripted;
mod sinks;

#[cfg(feature = "process")]
use moat::conformance::{self, CaseResult, ShellHarness};
use moat::sink::{Fanout, Faulty, Jsonl, Memory};
#[cfg(feature = "process")]
use moat::{LocalProcess, RunSpec};
use testkit::harness::{Completion, Failed, Harness, Trial, skip};

/// The clock of a row. A double runs on a paused clock and takes no time.
#[derive(Clone, Copy, PartialEq)]
enum Clock {
    Real,
    Paused,
}

fn main() {
    let harness = Harness::from_args(8).trials(row(
        "scripted",
        Clock::Paused,
        conformance::runtime(scripted::ScriptedHarness::new),
    ));
    #[cfg(feature = "docker")]
    let harness = harness.trials(
        row(
            "docker",
            Clock::Real,
            conformance::runtime(engine::EngineHarness::new),
        )
        .map(|trial| trial.needs(testkit::engine::need())),
    );
    #[cfg(all(feature = "docker", feature = "kube"))]
    let harness = harness.trials(
        row(
            "kubernetes",
            Clock::Real,
            conformance::runtime(kubernetes::ClusterHarness::new),
        )
        .map(|trial| trial.needs(testkit::cluster::need())),
    );
    #[cfg(feature = "process")]
    let harness = harness.trials(row(
        "process",
        Clock::Real,
        conformance::runtime(|| ShellHarness::new(LocalProcess::new(), RunSpec::command(["true"]))),
    ));
    let fanout = || Fanout::new(Jsonl::new()).best_effort(Memory::new());
    harness
        .trials(row(
            "jsonl",
            Clock::Real,
            conformance::sink(sinks::JsonlHarness(Jsonl::new)),
        ))
        .trials(row(
            "memory",
            Clock::Real,
            conformance::sink(sinks::MemoryHarness(Memory::new())),
        ))
        .trials(row(
            "fanout",
            Clock::Real,
            conformance::sink(sinks::JsonlHarness(fanout)),
        ))
        .trials(row(
            "faulty",
            Clock::Real,
            conformance::sink(sinks::FaultyHarness(Faulty::new(Memory::new()))),
        ))
        .trials(broken_runtime::trials())
        .trials(broken_sink::trials())
        .run()
}

/// The trials of one implementor.
fn row(
    implementor: &str,
    clock: Clock,
    cases: Vec<conformance::Case>,
) -> impl Iterator<Item = Trial> {
    cases.into_iter().map(move |case| {
        let name = format!("{implementor}::{}", case.name());
        Trial::skippable(&name, move || match run(clock, case) {
            Ok(CaseResult::Passed) => Ok(Completion::Completed),
            Ok(CaseResult::Skipped(reason)) => Ok(skip(&reason)),
            Ok(other) => Err(Failed::from(format!("{other:?}"))),
            Err(failure) => Err(Failed::from(failure)),
        })
    })
}

fn run(clock: Clock, case: conformance::Case) -> Result<CaseResult, conformance::Failure> {
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
    implementor: &str,
    cases: impl Fn(&'static str) -> Vec<conformance::Case> + Send + Clone + 'static,
) -> impl Iterator<Item = Trial> {
    // The suite skips these cases for every implementation.
    const ALWAYS_SKIPPED: [&str; 3] = [
        "append::survives_a_killed_process",
        "sync::survives_power_loss",
        "threads::are_not_blocked",
    ];
    let names = cases("").into_iter().map(|case| case.name());
    let names = names.filter(|name| !ALWAYS_SKIPPED.contains(name));
    names.map(move |name| {
        let cases = cases.clone();
        Trial::new(&format!("broken_{implementor}::{name}"), move || {
            let mut cases = cases(name).into_iter();
            let case = cases.find(|case| case.name() == name).unwrap();
            match run(Clock::Paused, case) {
                Err(_) => Ok(()),
                Ok(result) => Err(Failed::from(format!(
                    "the broken implementation is not detected: {result:?}"
                ))),
            }
        })
    })
}
