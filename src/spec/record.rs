//! The record of a run, which is written to files.

use serde::{Deserialize, Serialize};

use super::{ContainerId, Membership, RootId, RunId, RunSpec, Settings};
use crate::timestamp::Timestamp;

/// The record of a run in files.
///
/// It has the settings without secrets, and the state that recovery needs. It has the names of
/// environment variables, and never their values. The record is written to the file `run.json` in
/// the run's directory, and to the `start` record of the audit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunRecord {
    /// The run.
    pub run: RunId,
    /// The root of the run.
    pub root: RootId,
    /// The time at which the run was requested.
    pub created: Timestamp,
    /// The runtime's name: `docker`.
    pub runtime: String,
    /// The id of the engine that has the container.
    ///
    /// `None`: the engine was not asked yet, or reports no id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_id: Option<String>,
    /// The settings.
    #[serde(flatten)]
    pub settings: Settings,
    /// The names of the environment variables.
    #[serde(default)]
    pub env: Vec<String>,
    /// The paths of the secret files in the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_files: Vec<String>,
    /// True if the spec has an engine patch. The patch itself is not recorded.
    #[serde(default)]
    pub patched: bool,
    /// The group of the run, if it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub membership: Option<Membership>,
    /// The container, once it is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerId>,
    /// The end of the time limit, by the wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
}

impl RunRecord {
    pub(crate) fn new(run: RunId, root: RootId, runtime: &str, spec: &RunSpec) -> Self {
        Self {
            run,
            root,
            created: Timestamp::now(),
            runtime: runtime.to_owned(),
            engine_id: None,
            settings: spec.settings.clone(),
            env: spec.env_names().map(Into::into).collect(),
            secret_files: spec.secret_file_paths().map(Into::into).collect(),
            patched: spec.patch.is_some(),
            membership: spec.membership.clone(),
            container: None,
            deadline: None,
        }
    }

    /// Returns the name of the run's container.
    pub fn container_name(&self) -> String {
        self.root.container_name(&self.run)
    }
}
