//! A build: one execution of a pipeline.
//!
//! The labels of a run name its build, its step and its attempt. There is no other state of a build
//! that could contradict them.

use std::collections::BTreeMap;
use std::path::Path;

use moat::outcome::StopCause;
use moat::root::RunInfo;
use moat::{Ending, Outcome, Root, RunId, RunSpec};

/// Label: the id of the build.
pub const BUILD: &str = "ci.build";
const PIPELINE: &str = "ci.pipeline";
const STEP: &str = "ci.step";
const ATTEMPT: &str = "ci.attempt";
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
}

/// The state of a run that an earlier process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlierRun {
    /// Not sealed. It may still be running.
    Open,
    /// Sealed.
    Ended,
}

/// The reason why a build cannot be resumed.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    #[error(
        "cannot resume build {build}: the file or the image was changed. \
         Undo the change, or start a new build without --resume"
    )]
    Changed { build: String },
    #[error("cannot resume build {build}: another process owns its run {run}")]
    Owned { build: String, run: RunId },
    #[error("cannot resume build {build}: it was started with --runtime {runtime}")]
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
        }
    }

    /// The last build in the root at `path`, or `None` if there is no build.
    pub fn last(path: &Path, digest: &str, runtime: &str) -> Result<Option<Self>, ResumeError> {
        if !path.join("root.json").exists() {
            return Ok(None);
        }
        let runs = Root::open(path)?.list()?;
        // Generated ids sort by time.
        let last = runs.iter().filter_map(|run| label(run, BUILD)).max();
        let Some(build) = last.map(str::to_owned) else {
            return Ok(None);
        };
        let runs: Vec<_> = runs
            .into_iter()
            .filter(|run| label(run, BUILD) == Some(&build))
            .collect();
        for run in &runs {
            if label(run, PIPELINE) != Some(digest) {
                return Err(ResumeError::Changed { build });
            }
            if run.owned {
                let run = run.run.clone();
                return Err(ResumeError::Owned { build, run });
            }
            match &run.record {
                Some(record) if record.runtime != runtime => {
                    let runtime = record.runtime.clone();
                    return Err(ResumeError::Runtime { build, runtime });
                }
                _ => {}
            }
        }
        let earlier = runs.into_iter().map(|run| (run.run.clone(), run));
        Ok(Some(Self {
            id: RunId::new(build).map_err(moat::Error::from)?,
            digest: digest.into(),
            earlier: earlier.collect(),
        }))
    }

    /// The id of an attempt at a step.
    ///
    /// The same arguments always give the same id.
    pub fn run_id(&self, index: usize, step: &str, attempt: u32) -> RunId {
        let slug = slug(step, MAX_SLUG_CHARS);
        RunId::new(format!("{}-{index:03}-{slug}-{attempt}", self.id))
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

    /// The number of runs that an earlier process started.
    pub fn earlier_runs(&self) -> usize {
        self.earlier.len()
    }

    /// Adds the labels from which [`last`](Self::last) finds the build.
    pub fn label(&self, spec: RunSpec, step: &str, attempt: u32) -> RunSpec {
        spec.label(BUILD, self.id.as_str())
            .label(PIPELINE, &self.digest)
            .label(STEP, slug(step, MAX_LABEL_CHARS))
            .label(ATTEMPT, attempt.to_string())
    }

    /// Returns true if the run of an earlier process does not count as an attempt.
    ///
    /// It never started, or it ended because that process ended.
    pub fn interrupted(&self, outcome: &Outcome) -> bool {
        let ended_with_process = match &outcome.ending {
            Ending::Lost { .. } => true,
            // Includes a refusal by the engine: its cause may be fixed before the resume.
            ending if ending.never_started() => true,
            _ => outcome.stopped() == Some(StopCause::Shutdown),
        };
        ended_with_process && self.earlier_run(&outcome.run).is_some()
    }
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
