//! The artifacts of a step, and their places on this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{InvalidPipeline, Step};

/// The directory of all artifacts, in that of the reports.
const DIR: &str = "artifacts";
/// Maximum length of a step's directory, in bytes. File systems allow 255.
const MAX_DIR_BYTES: usize = 200;

/// A file or directory of a step's container that is copied to this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// As in the file.
    pub path: String,
    /// The absolute path in the container.
    pub source: String,
    /// The path in the directory of the step.
    pub target: PathBuf,
}

impl Artifact {
    /// `workdir` is that of the step.
    pub(super) fn new(path: &str, workdir: Option<&str>) -> Result<Self, String> {
        let relative = path.trim_start_matches('/').trim_end_matches('/');
        for name in relative.split('/') {
            let is_plain = !matches!(name, "" | "." | "..") && !name.contains(['\\', ':']);
            if !is_plain || name.chars().any(char::is_control) {
                return Err(format!(
                    "{path:?}: each part must be a name without `\\`, `:` and control characters"
                ));
            }
        }
        let source = match (path.starts_with('/'), workdir) {
            (true, _) => format!("/{relative}"),
            (false, Some(dir)) => format!("{}/{relative}", dir.trim_end_matches('/')),
            (false, None) => {
                let reason = "a relative path needs `workdir`, or a `workspace` of the pipeline";
                return Err(format!("{path:?}: {reason}"));
            }
        };
        Ok(Self {
            path: path.to_owned(),
            source,
            target: relative.split('/').collect(),
        })
    }
}

impl Step {
    /// The directory of the step's artifacts, in that of the reports.
    pub fn artifacts_path(&self) -> PathBuf {
        Path::new(DIR).join(self.artifact_dir())
    }

    /// Returns true if each artifact is in `out`, the directory of the reports.
    pub fn has_artifacts_in(&self, out: &Path) -> bool {
        let dir = out.join(self.artifacts_path());
        let mut artifacts = self.artifacts.iter();
        artifacts.all(|artifact| dir.join(&artifact.target).symlink_metadata().is_ok())
    }

    /// The name of the directory with the step's artifacts: its name, with `-` for special
    /// characters.
    pub(super) fn artifact_dir(&self) -> String {
        let is_plain = |c: char| c.is_alphanumeric() || "_.".contains(c);
        let words = self.name.split(|c: char| !is_plain(c));
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        let mut dir = words.join("-");
        while dir.len() > MAX_DIR_BYTES {
            dir.pop();
        }
        dir
    }
}

/// Rejects artifacts that would replace each other.
pub(super) fn check(steps: &[Step]) -> Result<(), InvalidPipeline> {
    let mut dirs = BTreeMap::new();
    for step in steps.iter().filter(|step| !step.artifacts.is_empty()) {
        let invalid = |reason| Err(InvalidPipeline::step(&step.name, "artifacts", reason));
        if let Some(other) = dirs.insert(step.artifact_dir(), &step.name) {
            return invalid(format!("those of step {other:?} have the same directory"));
        }
        for (index, artifact) in step.artifacts.iter().enumerate() {
            let overlaps = |other: &&Artifact| {
                other.target.starts_with(&artifact.target)
                    || artifact.target.starts_with(&other.target)
            };
            if let Some(other) = step.artifacts[..index].iter().find(overlaps) {
                return invalid(format!("{:?} and {:?} overlap", other.path, artifact.path));
            }
        }
    }
    Ok(())
}
