//! A build: one execution of a pipeline.
//!
//! The labels of a run name its build, its step and its attempt. There is no other state of a build
//! that could contradict them.
//!
//! A retry is a new build. Its runs also name the build that it retries, whose passed steps it takes
//! over.

use std::collections::BTreeMap;
use std::path::Path;

use moat::outcome::StopCause;
use moat::root::RunInfo;
use moat::{Ending, Outcome, Root, RunId, RunSpec, Seal};

/// Label: the id of the build.
pub const BUILD: &str = "ci.build";
const PIPELINE: &str = "ci.pipeline";
const STEP: &str = "ci.step";
const SERVICE: &str = "ci.service";
const ATTEMPT: &str = "ci.attempt";
/// Label: the id of the build that this build retries.
const RETRIES: &str = "ci.retries";
/// Maximum length of a step's name in a run id, in characters.
///
/// A run id has at most 64 characters.
const MAX_SLUG_CHARS: usize = 24;
/// Maximum length of a label's value, in characters: that of a pod's labels.
const MAX_LABEL_CHARS: usize = 63;

/// One execution of a pipeline.
#[derive(Debug)]
pub struct Build {
    pub id: RunId,
    /// [`Pipeline::digest`](crate::pipeline::Pipeline::digest).
    digest: String,
    /// The runs that an earlier process started.
    earlier: BTreeMap<RunId, RunInfo>,
    /// The build that this build retries.
    retries: Option<Box<Self>>,
}

/// The state of a run that an earlier process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlierRun {
    /// Not sealed. It may still be running.
    Open,
    /// Sealed.
    Ended,
}

/// The reason why a build cannot be resumed or retried.
#[derive(Debug, thiserror::Error)]
pub enum ContinueError {
    #[error(
        "cannot continue build {build}: the file or the image was changed. \
         Undo the change, or start a new build without --resume and --retry-failed"
    )]
    Changed { build: String },
    #[error("cannot continue build {build}: another process owns its run {run}")]
    Owned { build: String, run: RunId },
    #[error("cannot continue build {build}: it was started with --runtime {runtime}")]
    Runtime { build: String, runtime: String },
    #[error(transparent)]
    Root(#[from] moat::Error),
}

impl Build {
    pub fn new(digest: &str) -> Self {
        Self {
            id: RunId::generate(),
            digest: digest.into(),
            earlier: BTreeMap::new(),
            retries: None,
        }
    }

    /// A build that takes over the passed steps of `build`, and runs the others again.
    pub fn retry(build: Self) -> Self {
        let new = Self::new(&build.digest);
        Self {
            retries: Some(Box::new(build)),
            ..new
        }
    }

    /// The last build in the root at `path`, or `None` if there is no build.
    pub fn last(path: &Path, digest: &str, runtime: &str) -> Result<Option<Self>, ContinueError> {
        if !path.join("root.json").exists() {
            return Ok(None);
        }
        let runs = Root::open(path)?.list()?;
        // Generated ids sort by time.
        let last = runs.iter().filter_map(|run| label(run, BUILD)).max();
        let last = last.map(|build| Self::load(&runs, build, digest, runtime));
        last.transpose()
    }

    /// Loads a build and the builds that it retries.
    fn load(
        runs: &[RunInfo],
        build: &str,
        digest: &str,
        runtime: &str,
    ) -> Result<Self, ContinueError> {
        let is_of_build = |run: &&RunInfo| label(run, BUILD) == Some(build);
        let runs_of_build: Vec<_> = runs.iter().filter(is_of_build).collect();
        for run in &runs_of_build {
            check(run, build, digest, runtime)?;
        }
        let mut retried = runs_of_build.iter().filter_map(|run| label(run, RETRIES));
        // A build is older than its retry. Foreign labels must not form a cycle.
        let retried = retried.next().filter(|retried| *retried < build);
        let retries = retried.map(|retried| Self::load(runs, retried, digest, runtime));
        let earlier = runs_of_build.into_iter().cloned();
        Ok(Self {
            id: RunId::new(build).map_err(moat::Error::from)?,
            digest: digest.into(),
            earlier: earlier.map(|run| (run.run.clone(), run)).collect(),
            retries: retries.transpose()?.map(Box::new),
        })
    }

    /// The build that this build retries.
    pub fn retries(&self) -> Option<&Self> {
        self.retries.as_deref()
    }

    /// The build from which this build takes over the result of a step that passed there.
    pub fn passed_in(&self, index: usize, step: &str) -> Option<&Self> {
        let retried = self.retries()?;
        let runs = (1..).map_while(|attempt| {
            let id = retried.run_id(index, step, attempt);
            retried.earlier.get(&id)
        });
        match runs.last() {
            Some(last) => last.seal.as_ref().is_some_and(passed).then_some(retried),
            None => retried.passed_in(index, step),
        }
    }

    /// The id of an attempt at a step.
    ///
    /// The same arguments always give the same id.
    pub fn run_id(&self, index: usize, step: &str, attempt: u32) -> RunId {
        let slug = slug(step, MAX_SLUG_CHARS);
        RunId::new(format!("{}-{index:03}-{slug}-{attempt}", self.id))
            .expect("letters, digits and dashes, and fewer than 64")
    }

    /// The id of a start of a service.
    ///
    /// The same arguments always give the same id.
    pub fn service_id(&self, index: usize, service: &str, number: u32) -> RunId {
        let slug = slug(service, MAX_SLUG_CHARS);
        RunId::new(format!("{}-s{index:02}-{slug}-{number}", self.id))
            .expect("letters, digits and dashes, and fewer than 64")
    }

    /// The state of a run that an earlier process started.
    ///
    /// `None` for any other run.
    pub fn earlier_run(&self, run: &RunId) -> Option<EarlierRun> {
        let info = self.earlier.get(run)?;
        Some(match info.seal {
            Some(_) => EarlierRun::Ended,
            None => EarlierRun::Open,
        })
    }

    /// Returns true if an earlier process began the build.
    pub fn is_resumed(&self) -> bool {
        !self.earlier.is_empty()
    }

    /// The number of runs that an earlier process started.
    pub fn earlier_runs(&self) -> usize {
        self.earlier.len()
    }

    /// Adds the labels from which [`last`](Self::last) finds the build.
    pub fn label(&self, spec: RunSpec, step: &str, attempt: u32) -> RunSpec {
        self.label_run(spec)
            .label(STEP, slug(step, MAX_LABEL_CHARS))
            .label(ATTEMPT, attempt.to_string())
    }

    /// Adds the labels of a service.
    pub fn label_service(&self, spec: RunSpec, service: &str, number: u32) -> RunSpec {
        self.label_run(spec)
            .label(SERVICE, service)
            .label(ATTEMPT, number.to_string())
    }

    fn label_run(&self, spec: RunSpec) -> RunSpec {
        let spec = match &self.retries {
            Some(retried) => spec.label(RETRIES, retried.id.as_str()),
            None => spec,
        };
        spec.label(BUILD, self.id.as_str())
            .label(PIPELINE, &self.digest)
    }

    /// Returns true if the run of an earlier process does not count as an attempt.
    ///
    /// It never started, or it ended because that process ended.
    pub fn interrupted(&self, outcome: &Outcome) -> bool {
        ended_with_process(&outcome.ending, outcome.stopped())
            && self.earlier_run(&outcome.run).is_some()
    }
}

/// Checks that the run of an earlier process can be continued.
fn check(run: &RunInfo, build: &str, digest: &str, runtime: &str) -> Result<(), ContinueError> {
    let build = build.to_owned();
    if label(run, PIPELINE) != Some(digest) {
        return Err(ContinueError::Changed { build });
    }
    if run.owned {
        let run = run.run.clone();
        return Err(ContinueError::Owned { build, run });
    }
    match &run.record {
        Some(record) if record.runtime != runtime => {
            let runtime = record.runtime.clone();
            Err(ContinueError::Runtime { build, runtime })
        }
        _ => Ok(()),
    }
}

/// Returns true if the ending is due to the end of the process that started the run.
pub fn ended_with_process(ending: &Ending, stopped: Option<StopCause>) -> bool {
    match ending {
        Ending::Lost { .. } => true,
        // Includes a refusal by the engine: its cause may be fixed before the resume.
        ending if ending.never_started() => true,
        _ => stopped == Some(StopCause::Shutdown),
    }
}

/// Returns true if the run passed its step.
pub fn passed(seal: &Seal) -> bool {
    seal.exit.success() && seal.stopped.is_none()
}

/// The words of a step's name, joined by dashes.
///
/// Run ids and the labels of pods allow few other characters.
fn slug(step: &str, max_chars: usize) -> String {
    let words = step.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let mut slug = words.join("-");
    slug.truncate(max_chars);
    slug.trim_end_matches('-').to_owned()
}

/// The value of a run's label.
pub fn label<'a>(run: &'a RunInfo, name: &str) -> Option<&'a str> {
    let labels = &run.record.as_ref()?.settings.labels;
    labels.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_valid_for_a_pod() {
        let name = format!("test/a.b ({}, os=\u{e9}t\u{e9})", "x".repeat(100));
        let spec = Build::new("0123").label(RunSpec::new("busybox"), &name, 2);
        let labels = &spec.settings().labels;
        assert_eq!(labels[STEP], format!("test-a-b-{}", "x".repeat(54)));
        assert_eq!(slug("test (os=a, version=2)", 63), "test-os-a-version-2");
        assert_eq!(slug("a (b)", 2), "a");
        assert_eq!(labels[ATTEMPT], "2");
    }
}
