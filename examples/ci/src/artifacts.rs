//! The artifacts of steps: files that are copied out of a container that has ended.

use std::io;
use std::path::Path;

use moat::run::CopyOptions;
use moat::runtime::RuntimeError;
use moat::{Error, Run};

use crate::build::Build;
use crate::earlier;
use crate::pipeline::{Artifact, Pipeline, Step};
use crate::report::CollectedArtifact;
use crate::view::View;

/// Maximum number of bytes of one artifact.
const MAX_BYTES: u64 = 4 << 30;
/// Maximum number of files, directories and links of one artifact.
const MAX_ENTRIES: u64 = 100_000;

/// The artifacts of one step.
pub struct Artifacts<'a> {
    step: &'a Step,
    /// The directory of the reports.
    out: &'a Path,
    view: &'a View<'a>,
}

/// Removes the artifacts of an earlier build, except those of steps whose results are taken over.
pub fn remove(pipeline: &Pipeline, build: &Build, out: &Path) -> io::Result<()> {
    for (index, step) in pipeline.steps.iter().enumerate() {
        if !step.artifacts.is_empty()
            && earlier::source(pipeline, build, index, step, out).is_none()
        {
            remove_dir(&out.join(step.artifacts_path()))?;
        }
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl<'a> Artifacts<'a> {
    pub fn new(step: &'a Step, out: &'a Path, view: &'a View<'a>) -> Self {
        Self { step, out, view }
    }

    /// Copies the artifacts from the container of a run that has ended.
    ///
    /// Without a container, an earlier process has copied them.
    ///
    /// # Errors
    ///
    /// A text about the first artifact that cannot be copied. One that does not exist is no error.
    pub async fn collect(&self, run: &Run) -> Result<Vec<CollectedArtifact>, String> {
        match run.inspect().await {
            Err(Error::Runtime(RuntimeError::NotFound { .. })) => {}
            Err(error) => return Err(format!("cannot copy artifacts: {}", error.chain())),
            Ok(_) => self.copy(run).await?,
        }
        Ok(self.find())
    }

    async fn copy(&self, run: &Run) -> Result<(), String> {
        let dir = self.out.join(self.step.artifacts_path());
        let failed = |path: &Path, error: io::Error| {
            format!("cannot copy artifacts to {}: {error}", path.display())
        };
        remove_dir(&dir).map_err(|error| failed(&dir, error))?;
        for artifact in &self.step.artifacts {
            let target = dir.join(&artifact.target);
            let parent = target.parent().unwrap_or(&dir);
            std::fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
            self.copy_one(run, artifact, &target).await?;
        }
        Ok(())
    }

    async fn copy_one(&self, run: &Run, artifact: &Artifact, to: &Path) -> Result<(), String> {
        let (step, path) = (&self.step.name, &artifact.path);
        let options = CopyOptions::new()
            .max_bytes(MAX_BYTES)
            .max_entries(MAX_ENTRIES)
            .skip_special(true);
        match run.copy_from_with(&artifact.source, to, options).await {
            Ok(progress) if progress.skipped > 0 => {
                let skipped = progress.skipped;
                let plural = if skipped == 1 { "" } else { "s" };
                let text =
                    format!("without {skipped} special file{plural} or outward link{plural}");
                self.view
                    .message(&format!("{step}: artifact {path}: {text}"));
            }
            Ok(_) => {}
            Err(Error::Runtime(RuntimeError::NotFound { .. })) => {
                self.view
                    .warn(&format!("{step}: artifact {path} was not found"));
            }
            Err(error) => return Err(format!("artifact {path}: {}", error.chain())),
        }
        Ok(())
    }

    /// The artifacts that were copied, and those that were not.
    fn find(&self) -> Vec<CollectedArtifact> {
        let dir = self.step.artifacts_path();
        let find = |artifact: &Artifact| {
            let copy = dir.join(&artifact.target);
            CollectedArtifact {
                path: artifact.path.clone(),
                copy: self
                    .out
                    .join(&copy)
                    .symlink_metadata()
                    .is_ok()
                    .then_some(copy),
            }
        };
        self.step.artifacts.iter().map(find).collect()
    }
}
