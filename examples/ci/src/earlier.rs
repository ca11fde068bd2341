//! The state of a continued build: what earlier processes have done, and what is left to do.

use std::collections::BTreeMap;
use std::path::Path;

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
/// A step whose artifacts are not all in `out` runs again. The services and the workspace of that
/// build are gone, so a step that used them runs again, too, unless no step has to.
pub fn source<'a>(
    pipeline: &Pipeline,
    build: &'a Build,
    index: usize,
    step: &Step,
    out: &Path,
) -> Option<&'a Build> {
    let source = done_in(build, index, step, out)?;
    (!pipeline.shares(step) || all_done(pipeline, build, out)).then_some(source)
}

/// Returns true if every step has passed in an earlier build, and its artifacts are in `out`.
pub fn all_done(pipeline: &Pipeline, build: &Build, out: &Path) -> bool {
    let mut steps = pipeline.steps.iter().enumerate();
    steps.all(|(index, step)| done_in(build, index, step, out).is_some())
}

fn done_in<'a>(build: &'a Build, index: usize, step: &Step, out: &Path) -> Option<&'a Build> {
    let source = build.passed_in(index, &step.name)?;
    step.has_artifacts_in(out).then_some(source)
}

/// The number of steps that have ended, still run, or are left, on one line.
///
/// `runs` are the runs of the root, after their recovery.
pub fn describe(pipeline: &Pipeline, build: &Build, out: &Path, runs: Vec<RunInfo>) -> String {
    let runs: BTreeMap<RunId, RunInfo> =
        runs.into_iter().map(|run| (run.run.clone(), run)).collect();
    let steps = pipeline.steps.iter().enumerate();
    let progress = |(index, step)| match source(pipeline, build, index, step, out) {
        Some(_) => Progress::Passed,
        None if pipeline.shares(step) => Progress::None,
        None => progress(build, index, step, &runs),
    };
    let mut all: Vec<_> = steps.map(progress).collect();
    skip_dependents(pipeline, &mut all);
    let count = |wanted: &[Progress]| all.iter().filter(|one| wanted.contains(one)).count();
    let ended = count(&[Progress::Passed, Progress::Failed]);
    let left = count(&[Progress::None]);
    let plural = if ended == 1 { "" } else { "s" };
    if let Some(retried) = build.retries().filter(|_| !build.is_resumed()) {
        return match ended == all.len() {
            true => format!("nothing to retry: all steps of build {} passed", retried.id),
            false => format!("retry: {ended} step{plural} passed before, {left} to run"),
        };
    }
    let running = count(&[Progress::Running]);
    let skipped = match count(&[Progress::Skipped]) {
        0 => String::new(),
        skipped => format!(", {skipped} skipped"),
    };
    format!(
        "resumed: {ended} step{plural} finished before, {running} still running, {left} to run{skipped}"
    )
}

fn progress(build: &Build, index: usize, step: &Step, runs: &BTreeMap<RunId, RunInfo>) -> Progress {
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
