//! What is persisted of a run.

use serde::{Deserialize, Serialize};

use super::{ContainerId, RootId, RunId, RunSpec, Settings};
use crate::timestamp::Timestamp;

/// What is persisted of a run: what to run, without secrets, and what recovery needs.
///
/// It is the file `run.json` in the run's folder, and the body of the audit's `start` record.
/// The names of environment variables are in it, their values never.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunRecord {
    /// The run.
    pub run: RunId,
    /// The root that it is in.
    pub root: RootId,
    /// When it was asked for.
    pub created: Timestamp,
    /// The runtime's name: `docker`.
    pub runtime: String,
    /// What tells the engine that has the container from all others; `None`: it was not asked
    /// yet, or does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_id: Option<String>,
    /// What to run.
    #[serde(flatten)]
    pub settings: Settings,
    /// The names of the environment variables.
    #[serde(default)]
    pub env: Vec<String>,
    /// Whether the create request was patched: what with is not recorded.
    #[serde(default)]
    pub patched: bool,
    /// The container, once the engine has made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerId>,
    /// When the time limit ends, by the wall clock.
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
            patched: spec.patch.is_some(),
            container: None,
            deadline: None,
        }
    }

    /// The name of the run's container.
    pub fn container_name(&self) -> String {
        self.root.container_name(&self.run)
    }
}
