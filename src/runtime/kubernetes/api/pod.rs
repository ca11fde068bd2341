//! A pod as the API server reports it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::connection::Container;
use crate::spec::{ContainerId, RootId, RunId};
use crate::timestamp::Timestamp;

/// The label that holds the root of a run.
pub(crate) const ROOT_LABEL: &str = "moat.dev/root";
/// The annotation that holds the id of a run, which may not be a valid label.
pub(crate) const RUN_ANNOTATION: &str = "moat.dev/run";
/// The annotation that holds the deadline of a run.
pub(crate) const DEADLINE_ANNOTATION: &str = "moat.dev/deadline";

/// The annotation of a pod whose output is not kept once it was read.
pub(crate) const DISCARD_ANNOTATION: &str = "moat.dev/discard";

/// The annotation of a pod without the helper. It names the Secret that the command waits for.
pub(crate) const PLAIN_ANNOTATION: &str = "moat.dev/plain";
/// The annotation of a plain pod whose command may start. Its value changes with each attempt.
pub(crate) const START_ANNOTATION: &str = "moat.dev/start";
/// The finalizer of a plain pod that moat has ended. It keeps the exit code until the removal.
pub(crate) const FINALIZER: &str = "moat.dev/audit";
/// The reason of a container whose Secret does not exist yet.
const NO_SECRET: &str = "CreateContainerConfigError";

/// The time for which a pod may wait for its start before it counts as abandoned.
const MAX_PLACEMENT: Duration = Duration::from_secs(24 * 3600);

/// The identity of a pod. Its form as a [`ContainerId`] is `namespace/name/uid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodRef {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl PodRef {
    /// Parses the id of a container. Returns none if it is not a pod's.
    pub(crate) fn parse(id: &ContainerId) -> Option<Self> {
        let mut parts = id.as_str().split('/');
        let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
        parts.next().is_none().then(|| Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        })
    }

    /// Returns the path of the pod, which may be in another namespace than that of new pods.
    pub(crate) fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", self.namespace, self.name)
    }

    pub(crate) fn id(&self) -> ContainerId {
        let Self {
            namespace,
            name,
            uid,
        } = self;
        ContainerId::new(format!("{namespace}/{name}/{uid}"))
    }
}

/// The parts of a pod that moat reads.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Pod {
    pub(crate) metadata: Metadata,
    pub(crate) status: Status,
}

/// The answer to a list of pods.
#[derive(Debug, Deserialize)]
pub(crate) struct PodList {
    pub(crate) metadata: ListMetadata,
    pub(crate) items: Vec<Pod>,
}

/// The part of a list's metadata that a watch starts from.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListMetadata {
    pub(crate) resource_version: String,
}

/// The parts of an object's metadata that moat reads.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) finalizers: Vec<String>,
    pub(crate) creation_timestamp: Option<Timestamp>,
    pub(crate) deletion_timestamp: Option<Timestamp>,
    /// 0 once the kubelet has confirmed that no container runs.
    pub(crate) deletion_grace_period_seconds: Option<u64>,
}

/// The parts of a pod's status that moat reads.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    pub(crate) phase: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) container_statuses: Vec<ContainerStatus>,
    pub(crate) init_container_statuses: Vec<ContainerStatus>,
}

/// A condition of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Condition {
    pub(crate) r#type: String,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) last_transition_time: Option<Timestamp>,
}

/// The status of a container of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerStatus {
    pub(crate) name: String,
    #[serde(rename = "imageID")]
    pub(crate) image_id: String,
    #[serde(rename = "containerID")]
    pub(crate) container_id: String,
    pub(crate) state: State,
    pub(crate) last_state: State,
}

/// The state of a container of a pod. At most one field is set.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct State {
    pub(crate) waiting: Option<Waiting>,
    pub(crate) running: Option<Running>,
    pub(crate) terminated: Option<Terminated>,
}

/// The reason for which a container does not run yet.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// A container that runs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Running {
    pub(crate) started_at: Option<Timestamp>,
}

/// A container that has ended.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Terminated {
    pub(crate) exit_code: i64,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
}

impl Terminated {
    /// Returns true if the container may have run.
    ///
    /// One that could not be started has the start time 0. A kubelet that was restarted after it had
    /// created a container, and before it started it, reports an end with code 0, without a time and
    /// a reason. It does not report that this container runs, even if it starts later.
    pub(crate) fn has_run(&self) -> bool {
        let epoch = Timestamp::from(std::time::UNIX_EPOCH);
        match self.started_at {
            Some(started) => started != epoch,
            None => self.exit_code != 0 || !self.reason.is_empty(),
        }
    }
}

impl Pod {
    pub(crate) fn reference(&self) -> PodRef {
        let Metadata {
            namespace,
            name,
            uid,
            ..
        } = &self.metadata;
        PodRef {
            namespace: namespace.clone(),
            name: name.clone(),
            uid: uid.clone(),
        }
    }

    pub(crate) fn root(&self) -> Option<RootId> {
        let root = self.metadata.labels.get(ROOT_LABEL)?;
        RootId::try_from(root.clone()).ok()
    }

    pub(crate) fn run(&self) -> Option<RunId> {
        RunId::new(self.metadata.annotations.get(RUN_ANNOTATION)?).ok()
    }

    /// Returns the latest time at which the manager ends the pod.
    ///
    /// The recorded deadline counts from the creation. The time limit of a run counts from the
    /// start of the command, so the time until the start is added.
    pub(crate) fn deadline(&self, started_at: Option<Timestamp>) -> Option<Timestamp> {
        let deadline: Timestamp = self
            .metadata
            .annotations
            .get(DEADLINE_ANNOTATION)?
            .parse()
            .ok()?;
        let placement = match (started_at, self.metadata.creation_timestamp) {
            (Some(started), Some(created)) => started.since(created),
            _ => MAX_PLACEMENT,
        };
        Some(deadline.saturating_add(placement))
    }

    /// Returns true if the collector keeps the output after it was read.
    pub(crate) fn keeps_output(&self) -> bool {
        !self.metadata.annotations.contains_key(DISCARD_ANNOTATION)
    }

    pub(crate) fn container(&self, container: Container) -> Option<&ContainerStatus> {
        let statuses = &self.status.container_statuses;
        statuses
            .iter()
            .find(|status| status.name == container.name())
    }

    pub(crate) fn is_running(&self, container: Container) -> bool {
        let status = self.container(container);
        status.is_some_and(|status| status.state.running.is_some())
    }

    pub(crate) fn terminated(&self, container: Container) -> Option<&Terminated> {
        self.container(container)?.state.terminated.as_ref()
    }

    /// Returns true if all containers are up, so that the collector can be reached.
    pub(crate) fn is_placed(&self) -> bool {
        self.is_running(Container::Main) && self.is_running(Container::Collector)
    }

    /// Returns true if the pod has no helper.
    pub(crate) fn is_plain(&self) -> bool {
        self.secret().is_some()
    }

    /// Returns the name of the Secret that the command of a plain pod waits for.
    pub(crate) fn secret(&self) -> Option<&str> {
        let secret = self.metadata.annotations.get(PLAIN_ANNOTATION);
        secret.map(String::as_str)
    }

    /// Returns true if the command of a plain pod may start at any time.
    pub(crate) fn may_start(&self) -> bool {
        self.metadata.annotations.contains_key(START_ANNOTATION)
    }

    /// Returns true if the kubelet no longer knows how the main container has ended.
    ///
    /// A kubelet that ends a deleted pod may remove the container before it reads the exit code. It
    /// then reports the container as waiting, and its end as an earlier one, with an invented code.
    pub(crate) fn has_lost_end(&self) -> bool {
        let main = self.container(Container::Main);
        self.is_over() && main.is_some_and(|main| main.last_state.terminated.is_some())
    }

    /// Returns true if moat's finalizer keeps the pod.
    pub(crate) fn is_kept(&self) -> bool {
        let mut finalizers = self.metadata.finalizers.iter();
        finalizers.any(|name| name == FINALIZER)
    }

    /// Returns true if the pod waits for nothing but the start of its command.
    ///
    pub(crate) fn can_start(&self) -> bool {
        let Some(secret) = self.secret() else {
            return self.is_placed();
        };
        let Some(status) = self.container(Container::Main) else {
            return false;
        };
        match &status.state.waiting {
            Some(Waiting { reason, message }) => {
                let is_missing = message.contains("not found");
                reason == NO_SECRET && is_missing && message.contains(secret)
            }
            None => status.state.running.is_some(),
        }
    }

    /// The statuses of all containers, those of initialization first.
    fn statuses(&self) -> impl Iterator<Item = &ContainerStatus> {
        let init = self.status.init_container_statuses.iter();
        init.chain(&self.status.container_statuses)
    }

    /// Returns true if a container of the pod runs or has run.
    pub(crate) fn has_run(&self) -> bool {
        self.statuses()
            .any(|status| status.state.running.is_some() || status.state.terminated.is_some())
    }

    /// Returns true if no container of the pod will run any more.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.status.phase.as_str(), "Failed" | "Succeeded")
    }

    /// Returns true if the kubelet reports that all containers of the pod have ended.
    ///
    /// During an eviction, it reports the end of the pod without its containers, which still run.
    pub(crate) fn has_stopped(&self) -> bool {
        let is_reported = !self.status.container_statuses.is_empty();
        let is_running = |status: &ContainerStatus| status.state.running.is_some();
        self.is_over() && is_reported && !self.statuses().any(is_running)
    }

    /// Returns true if the pod was deleted, and the kubelet ends its containers.
    pub(crate) fn is_deleted(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Returns true if the cluster gave the pod up, because its node is gone.
    pub(crate) fn is_collected(&self) -> bool {
        let disrupted = self.condition("DisruptionTarget");
        disrupted.is_some_and(|condition| condition.reason == "DeletionByPodGC")
    }

    fn condition(&self, name: &str) -> Option<&Condition> {
        let mut conditions = self.status.conditions.iter();
        conditions.find(|condition| condition.r#type == name)
    }

    /// Returns the reason and the message for which the pod is not placed yet.
    pub(crate) fn waits_for(&self) -> Option<(String, String)> {
        if let Some(scheduled) = self.condition("PodScheduled")
            && scheduled.status == "False"
        {
            return Some((scheduled.reason.clone(), scheduled.message.clone()));
        }
        let waiting = self
            .statuses()
            .filter_map(|status| status.state.waiting.as_ref());
        // The containers of a pod wait for the same image. The message of a back-off is the best.
        let waiting = waiting.max_by_key(|waiting| waiting.message.len())?;
        Some((waiting.reason.clone(), waiting.message.clone()))
    }

    /// Returns the time since which the node of a running pod has not reported.
    ///
    /// The node controller then sets the condition `Ready` to `False`, and leaves the statuses of
    /// the containers.
    pub(crate) fn unreachable_since(&self) -> Option<Timestamp> {
        let ready = self.condition("Ready")?;
        let runs = self.is_placed() || self.is_plain() && self.is_running(Container::Main);
        let silent = ready.status != "True" && runs;
        silent.then_some(ready.last_transition_time).flatten()
    }

    /// Returns the reason for which the pod was ended from outside, such as an eviction.
    pub(crate) fn disruption(&self) -> Option<String> {
        if let Some(condition) = self.condition("DisruptionTarget")
            && condition.status == "True"
        {
            return Some(format!("{}: {}", condition.reason, condition.message));
        }
        match (self.status.reason.as_str(), self.status.message.as_str()) {
            ("", _) => self.is_deleted().then(|| "the pod was deleted".to_owned()),
            (reason, "") => Some(reason.to_owned()),
            (reason, message) => Some(format!("{reason}: {message}")),
        }
    }
}

/// Returns the digest of an image, without the engine's prefix.
pub(crate) fn image_digest(image_id: &str) -> Option<String> {
    let digest = image_id.rsplit_once("sha256:")?.1;
    Some(format!("sha256:{digest}"))
}
