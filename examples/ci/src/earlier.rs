//! The state of a continued build: what earlier processes have done, and what is left to do.

use std::collections::BTreeMap;

use moat::RunId;
use moat::root::RunInfo;

use crate::build::{self, Build};
use crate::pipeline::{Pipeline, Step};

/// What earlier processes have done for a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Passed,
    /// All attempts failed, or it was cancelled.
    Failed,
    Running,
    None,
    /// It needs a step that did not pass.
    Skipped,
}

/// The build from which the result of a step is taken over.
///
/// The services and the workspace of that build are gone, so a step that used them runs again, unless
/// no step has to.
pub fn source<'a>(
    pipeline: &Pipeline,
    build: &'a Build,
    index: usize,
    step: &Step,
) -> Option<&'a Build> {
    let source = build.passed_in(index, &step.name)?;
    (!pipeline.shares(step) || all_passed(pipeline, build)).then_some(source)
}

/// Returns true if every step has passed in an earlier build.
pub fn all_passed(pipeline: &Pipeline, build: &Build) -> bool {
    let mut steps = pipeline.steps.iter().enumerate();
    steps.all(|(index, step)| build.passed_in(index, &step.name).is_some())
}

/// The number of steps that have ended, still run, or are left, on one line.
///
/// `runs` are the runs of the root, after their recovery. `None` for a new build.
pub fn describe(pipeline: &Pipeline, build: &Build, runs: Vec<RunInfo>) -> Option<String> {
    if build.retries().is_none() && build.earlier_runs() == 0 {
        return None;
    }
    let runs: BTreeMap<RunId, RunInfo> =
        runs.into_iter().map(|run| (run.run.clone(), run)).collect();
    let steps = pipeline.steps.iter().enumerate();
    let mut all: Vec<_> = steps
        .map(|(index, step)| progress(pipeline, build, index, step, &runs))
        .collect();
    skip_dependents(pipeline, &mut all);
    let count = |wanted: &[Progress]| all.iter().filter(|one| wanted.contains(one)).count();
    let ended = count(&[Progress::Passed, Progress::Failed]);
    let left = count(&[Progress::None]);
    let plural = if ended == 1 { "" } else { "s" };
    if let Some(retried) = build.retries().filter(|_| build.earlier_runs() == 0) {
        return Some(match ended == all.len() {
            true => format!("nothing to retry: all steps of build {} passed", retried.id),
            false => format!("retry: {ended} step{plural} passed before, {left} to run"),
        });
    }
    let running = count(&[Progress::Running]);
    let skipped = match count(&[Progress::Skipped]) {
        0 => String::new(),
        skipped => format!(", {skipped} skipped"),
    };
    Some(format!(
        "resumed: {ended} step{plural} finished before, {running} still running, {left} to run{skipped}"
    ))
}

fn progress(
    pipeline: &Pipeline,
    build: &Build,
    index: usize,
    step: &Step,
    runs: &BTreeMap<RunId, RunInfo>,
) -> Progress {
    if source(pipeline, build, index, step).is_some() {
        return Progress::Passed;
    }
    if pipeline.shares(step) {
        return Progress::None;
    }
    let mut failures = 0;
    for attempt in 1.. {
        let id = build.run_id(index, &step.name, attempt);
        let Some(run) = build.earlier_run(&id).and_then(|_| runs.get(&id)) else {
            break;
        };
        match &run.seal {
            None => return Progress::Running,
            Some(seal) if build::passed(seal) => return Progress::Passed,
            Some(seal) if build::ended_with_process(&seal.exit, seal.stopped) => {}
            Some(_) if failures == step.retries => return Progress::Failed,
            Some(_) => failures += 1,
        }
    }
    Progress::None
}

/// Marks the steps that need a failed step, also through other steps.
fn skip_dependents(pipeline: &Pipeline, all: &mut [Progress]) {
    let is_blocked = |all: &[Progress], step: &Step| {
        step.needs.iter().any(|&need| match all[need] {
            Progress::Failed => !pipeline.steps[need].allow_failure,
            Progress::Skipped => true,
            _ => false,
        })
    };
    // A step can come before the steps that it needs.
    for _ in 0..all.len() {
        for (index, step) in pipeline.steps.iter().enumerate() {
            if all[index] == Progress::None && is_blocked(all, step) {
                all[index] = Progress::Skipped;
            }
        }
    }
}
