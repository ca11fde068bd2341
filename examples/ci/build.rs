//! One run of a pipeline: which runs are its, as their labels in the root say.
//!
//! Nothing else is kept of it: what is written down twice can differ.

use std::collections::BTreeMap;
use std::path::Path;

use moat::outcome::StopCause;
use moat::root::RunInfo;
use moat::{Ending, Outcome, Root, RunId, RunSpec};

/// The id of the build that a run is of.
pub const BUILD: &str = "ci.build";
const PIPELINE: &str = "ci.pipeline";
const STEP: &str = "ci.step";
const ATTEMPT: &str = "ci.attempt";
/// The most characters of a step's name in the name of a run, which has 64.
const SLUG: usize = 24;

/// One run of a pipeline.
#[derive(Debug)]
pub struct Build {
    pub id: RunId,
    /// [`Pipeline::digest`](crate::pipeline::Pipeline::digest).
    digest: String,
    /// The runs of it that an earlier process has left.
    left: BTreeMap<RunId, RunInfo>,
}

/// Where an earlier process has left a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It may run, and is not sealed.
    Open,
    Ended,
}

/// Why a build cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum NoResume {
    #[error(
        "build {build} is not of this pipeline as it is now: the file or the image was changed. \
         Change it back, or start anew without --resume"
    )]
    Changed { build: String },
    #[error("build {build} is not left over: another process is at its run {run}")]
    Owned { build: String, run: RunId },
    #[error("build {build} was run with --runtime {runtime}")]
    Runtime { build: String, runtime: String },
    #[error(transparent)]
    Root(#[from] moat::Error),
}

impl Build {
    pub fn new(digest: &str) -> Self {
        Self {
            id: RunId::generate(),
            digest: digest.into(),
            left: BTreeMap::new(),
        }
    }

    /// The last build in the root at `path`; `None`: there is none.
    pub fn last(path: &Path, digest: &str, runtime: &str) -> Result<Option<Self>, NoResume> {
        if !path.join("root.json").exists() {
            return Ok(None);
        }
        let runs = Root::open(path)?.list()?;
        // Their ids sort by time.
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
                return Err(NoResume::Changed { build });
            }
            if run.owned {
                let run = run.run.clone();
                return Err(NoResume::Owned { build, run });
            }
            match &run.record {
                Some(record) if record.runtime != runtime => {
                    let runtime = record.runtime.clone();
                    return Err(NoResume::Runtime { build, runtime });
                }
                _ => {}
            }
        }
        Ok(Some(Self {
            id: RunId::new(build)?,
            digest: digest.into(),
            left: runs.into_iter().map(|run| (run.run.clone(), run)).collect(),
        }))
    }

    /// The name of an attempt at a step: the same one whenever it is asked for.
    pub fn run(&self, place: usize, step: &str, attempt: u32) -> RunId {
        let dash = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let slug: String = step.chars().take(SLUG).map(dash).collect();
        let slug = slug.trim_end_matches('-');
        RunId::new(format!("{}-{place:03}-{slug}-{attempt}", self.id))
            .expect("letters, digits and dashes, and fewer than 64")
    }

    /// Where an earlier process has left this run, if it has begun it.
    pub fn left(&self, run: &RunId) -> Option<Left> {
        let info = self.left.get(run)?;
        Some(match info.seal {
            Some(_) => Left::Ended,
            None => Left::Open,
        })
    }

    /// How many runs an earlier process has left of it.
    pub fn count(&self) -> usize {
        self.left.len()
    }

    pub fn label(&self, spec: RunSpec, step: &str, attempt: u32) -> RunSpec {
        spec.label(BUILD, self.id.as_str())
            .label(PIPELINE, &self.digest)
            .label(STEP, step)
            .label(ATTEMPT, attempt.to_string())
    }

    /// Whether a run says nothing of its step: it never came to run, or ended because an earlier
    /// process did.
    pub fn interrupted(&self, outcome: &Outcome) -> bool {
        let ended_with_it = match &outcome.ending {
            Ending::Lost { .. } => true,
            // Also where the engine refused it: whoever resumes may have seen to that.
            ending if ending.never_started() => true,
            _ => outcome.stopped() == Some(StopCause::ShutdownMode),
        };
        ended_with_it && self.left(&outcome.run).is_some()
    }
}

/// What a run's record says under `name`.
pub fn label<'a>(run: &'a RunInfo, name: &str) -> Option<&'a str> {
    let labels = &run.record.as_ref()?.settings.labels;
    labels.get(name).map(String::as_str)
}
