//! The life of a plain pod, as the kubelet reports it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::super::api::client::{CALL_TIMEOUT, Failure, with_timeout};
use super::super::api::connection::Container;
use super::super::api::pod::{
    FINALIZER, Metadata, Pod, PodRef, START_ANNOTATION, Terminated, image_digest,
};
use super::super::api::watch::Seen;
use super::super::container::{SIGKILL, has_ended, lost, not_found, running};
use super::super::shared::Shared;
use crate::error::RuntimeError;
use crate::runtime::{ContainerStatus, Inspection, LogConfig, LogFidelity, WaitStatus};

/// The signal of a regular stop.
pub(in super::super) const SIGTERM: i32 = 15;
/// The time after which the kubelet is told of the Secret again.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(1);
/// The pause before a pod that is being deleted is looked at again.
const CONFIRMATION_INTERVAL: Duration = Duration::from_millis(300);
/// The reasons of a container that could not be started: of containerd, and of Docker.
const NOT_STARTED: [&str; 2] = ["StartError", "ContainerCannotRun"];
/// The reason of a container whose end the kubelet has missed.
const UNKNOWN: &str = "ContainerStatusUnknown";
/// The number of attempts to change the finalizers of a pod that others change as well.
const MAX_CHANGES: u32 = 5;

impl Shared {
    /// Creates the Secret that the command waits for, and waits until the command runs.
    pub(super) async fn start_plain(&self, pod: &PodRef) -> Result<(), RuntimeError> {
        const OPERATION: &str = "start the container";
        let error = &self.error(OPERATION);
        match with_timeout(self.release_plain(pod)).await.map_err(error)? {
            Ok(()) => Ok(()),
            Err(reason) => Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason,
            }),
        }
    }

    /// Returns the reason if the command cannot start.
    async fn release_plain(&self, pod: &PodRef) -> Result<Result<(), String>, Failure> {
        let mut reports = self.reports(pod).await?;
        let found = self.pod(pod).await?;
        // From now on, the command may run although the kubelet does not report it yet.
        self.announce_start(pod, 0).await?;
        let secrets = format!("/api/v1/namespaces/{}/secrets", pod.namespace);
        let secret = secret(&found, &self.environment(pod));
        match self.client.post::<Value>(&secrets, &secret).await {
            // The answer to an earlier request was lost.
            Err(failure) if failure.is_conflict() => {}
            created => created.map(drop)?,
        }
        let mut attempts = 0;
        loop {
            let seen = reports.borrow_and_update().clone();
            match seen {
                Seen::Gone => return Err(not_found(pod)),
                Seen::Pod(found) => {
                    if let Some(result) = start_result(&found) {
                        return Ok(result);
                    }
                    // The kubelet may have started the command before.
                    if found.is_deleted() {
                        let reason = found.disruption().unwrap_or_default();
                        return Err(Failure::Broken(reason));
                    }
                }
                Seen::Unknown => {}
            }
            if timeout(ATTEMPT_INTERVAL, reports.changed()).await.is_err() {
                attempts += 1;
                // Without this, the kubelet looks after 10 to 15 s.
                let _ = self.announce_start(pod, attempts).await;
            }
        }
    }

    /// Changes the annotation of the start, which makes the kubelet look at the pod.
    async fn announce_start(&self, pod: &PodRef, attempt: u32) -> Result<(), Failure> {
        let annotations = json!({START_ANNOTATION: attempt.to_string()});
        let patch = json!({"metadata": {"uid": pod.uid, "annotations": annotations}});
        self.client.patch(&pod.path(), &patch).await
    }

    /// Waits until the command has started, or never will, and returns the pod.
    pub(super) async fn wait_plain_start(&self, pod: &PodRef) -> Result<Arc<Pod>, Failure> {
        let is_started = |seen: &Seen| match seen {
            Seen::Pod(found) => start_result(found).is_some() || is_confirmed(found),
            Seen::Gone => true,
            Seen::Unknown => false,
        };
        let mut reports = self.reports(pod).await?;
        match reports.wait_for(is_started).await.as_deref() {
            Ok(Seen::Pod(found)) => Ok(Arc::clone(found)),
            _ => Err(not_found(pod)),
        }
    }

    pub(super) async fn wait_plain(&self, pod: &PodRef) -> Result<WaitStatus, Failure> {
        let mut reports = self.reports(pod).await?;
        let is_over = |seen: &Seen| match seen {
            Seen::Pod(found) => has_ended(found),
            Seen::Gone => true,
            Seen::Unknown => false,
        };
        match reports.wait_for(is_over).await.as_deref() {
            Ok(Seen::Pod(found)) => {
                let main = found.terminated(Container::Main);
                Ok(WaitStatus::new(main.and_then(exit_code)))
            }
            _ => Err(not_found(pod)),
        }
    }

    /// Ends the command by deleting its pod. A finalizer keeps the pod, and with it the exit code.
    pub(super) async fn end_plain(
        &self,
        pod: &PodRef,
        signal: Option<i32>,
    ) -> Result<(), RuntimeError> {
        const OPERATION: &str = "signal the container";
        let error = &self.error(OPERATION);
        let grace = match signal {
            // The grace period of the pod.
            Some(SIGTERM) => None,
            Some(SIGKILL) => Some(1),
            _ => {
                return Err(RuntimeError::Rejected {
                    operation: OPERATION,
                    reason: "a pod without moat's helper gets only SIGTERM and SIGKILL".into(),
                });
            }
        };
        let found = self.pod(pod).await.map_err(error)?;
        if !found.is_running(Container::Main) {
            return Err(RuntimeError::Conflict {
                operation: OPERATION,
                reason: "the container is not running".into(),
            });
        }
        // A pod that is being deleted accepts no new finalizer.
        if !found.is_deleted() {
            self.set_kept(pod, true).await.map_err(error)?;
        }
        self.delete(pod, grace).await.map_err(error)
    }

    /// Deletes a pod whose command was asked to start and did not yet, and returns its last state.
    ///
    /// Fails if the command has started meanwhile: the finalizer keeps the pod until the kubelet
    /// has confirmed the deletion, so that its last report is seen.
    pub(in super::super) async fn refuse_start(
        &self,
        pod: &PodRef,
        found: Pod,
    ) -> Result<Pod, RuntimeError> {
        let error = &self.error("remove the container");
        if has_ended(&found) || !found.may_start() {
            return Ok(found);
        }
        // A pod that is being deleted accepts no new finalizer.
        if !found.is_deleted() {
            self.set_kept(pod, true).await.map_err(error)?;
            self.delete(pod, Some(1)).await.map_err(error)?;
        }
        let deadline = Instant::now() + CALL_TIMEOUT;
        while Instant::now() < deadline {
            let found = match self.pod(pod).await {
                // Somebody else has deleted it, and nothing is known about its command.
                Err(failure) if failure.is_not_found() => {
                    return Err(error(Failure::Broken("the pod was deleted".into())));
                }
                found => found.map_err(error)?,
            };
            if inspection(&found).status != ContainerStatus::Created {
                return Err(running());
            }
            if is_confirmed(&found) {
                return Ok(found);
            }
            sleep(CONFIRMATION_INTERVAL).await;
        }
        Err(error(Failure::Timeout(CALL_TIMEOUT)))
    }

    /// Adds the finalizer to a pod, or removes it. A pod that does not exist is not kept.
    pub(in super::super) async fn set_kept(&self, pod: &PodRef, kept: bool) -> Result<(), Failure> {
        let mut changes = 0;
        loop {
            let found = match self.pod(pod).await {
                Err(failure) if failure.is_not_found() && !kept => return Ok(()),
                found => found?,
            };
            if found.is_kept() == kept {
                return Ok(());
            }
            let mut finalizers = found.metadata.finalizers;
            match kept {
                true => finalizers.push(FINALIZER.to_owned()),
                false => finalizers.retain(|name| name != FINALIZER),
            }
            let patch = json!({"metadata": {
                "uid": pod.uid,
                "resourceVersion": found.metadata.resource_version,
                "finalizers": finalizers,
            }});
            changes += 1;
            match self.client.patch(&pod.path(), &patch).await {
                // A concurrent change.
                Err(failure) if failure.is_conflict() && changes < MAX_CHANGES => {}
                Err(failure) if failure.is_conflict() => {
                    return Err(Failure::Broken("the pod changes too often".into()));
                }
                // The pod was deleted meanwhile.
                Err(failure) if failure.is_invalid() && kept => return Ok(()),
                patched => return patched,
            }
        }
    }
}

/// Returns the Secret of a pod, with the environment of its command. It ends with the pod.
fn secret(pod: &Pod, environment: &[String]) -> Value {
    let variables = environment.iter().filter_map(|variable| {
        let (name, value) = variable.split_once('=')?;
        Some((name.to_owned(), json!(STANDARD.encode(value))))
    });
    let Metadata { name, uid, .. } = &pod.metadata;
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": pod.secret(), "ownerReferences": [owner]},
        "data": variables.collect::<Map<String, Value>>(),
    })
}

/// Returns the result of a start, if it is known.
fn start_result(pod: &Pod) -> Option<Result<(), String>> {
    if pod.is_running(Container::Main) || pod.has_lost_end() {
        return Some(Ok(()));
    }
    match pod.terminated(Container::Main) {
        Some(ended) if has_run(ended) => Some(Ok(())),
        Some(ended) => Some(Err(failure(ended))),
        None if pod.is_over() => {
            let reason = pod.disruption();
            Some(Err(reason.unwrap_or_else(|| "the pod has failed".into())))
        }
        None => None,
    }
}

fn has_run(ended: &Terminated) -> bool {
    ended.has_run() && !NOT_STARTED.contains(&ended.reason.as_str())
}

/// Returns the exit code, unless the kubelet has invented it.
fn exit_code(ended: &Terminated) -> Option<i64> {
    (ended.reason != UNKNOWN).then_some(ended.exit_code)
}

/// Returns true if the kubelet has confirmed that no container of a deleted pod runs.
fn is_confirmed(pod: &Pod) -> bool {
    pod.is_deleted() && (pod.is_over() || pod.metadata.deletion_grace_period_seconds == Some(0))
}

fn failure(ended: &Terminated) -> String {
    match ended.message.as_str() {
        "" => ended.reason.clone(),
        message => message.to_owned(),
    }
}

/// Returns the state of a plain pod.
pub(in super::super) fn inspection(pod: &Pod) -> Inspection {
    let main = pod.container(Container::Main);
    let ended = pod.terminated(Container::Main);
    let running = main.and_then(|main| main.state.running.as_ref());
    let ran = ended.filter(|ended| has_run(ended));
    let lost = lost(pod).filter(|_| !pod.has_lost_end());
    let status = match (running, ran, &lost) {
        (Some(_), _, _) => ContainerStatus::Running,
        (None, Some(_), _) | (None, None, Some(_)) => ContainerStatus::Ended,
        (None, None, None) if pod.has_lost_end() => ContainerStatus::Ended,
        (None, None, None) => ContainerStatus::Created,
    };
    let mut inspection = Inspection::new(status);
    inspection.started_at = match (running, ran) {
        (Some(running), _) => running.started_at,
        (None, ran) => ran.and_then(|ended| ended.started_at),
    };
    inspection.finished_at = ran.and_then(|ended| ended.finished_at);
    inspection.code = ran.and_then(exit_code);
    inspection.oom_killed = ran.is_some_and(|ended| ended.reason == "OOMKilled");
    inspection.error = match (ended, status) {
        (Some(ended), ContainerStatus::Created) => Some(failure(ended)),
        (_, ContainerStatus::Ended) if inspection.code.is_none() && pod.is_kept() => {
            Some("the kubelet has lost the exit code".into())
        }
        // moat has ended the pod itself.
        _ if pod.is_kept() => None,
        (_, ContainerStatus::Ended) => pod.disruption(),
        _ => None,
    };
    inspection.lost = lost.filter(|_| status == ContainerStatus::Ended && ran.is_none());
    inspection.image_digest = main.and_then(|main| image_digest(&main.image_id));
    inspection.log = LogConfig {
        driver: "kubelet".into(),
        fidelity: Some(LogFidelity::Rotated),
        ..LogConfig::default()
    };
    inspection.unreachable_since = pod.unreachable_since();
    inspection
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str, main: &Value) -> Pod {
        let metadata = json!({
            "deletionTimestamp": "2026-11-27T09:49:18Z", "finalizers": [FINALIZER],
        });
        let mut main = main.clone();
        main["name"] = json!("main");
        let status = json!({"phase": phase, "containerStatuses": [main]});
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    /// Seen on Kubernetes 1.20: a container that had run, in a pod that was deleted twice.
    #[test]
    fn an_end_that_the_kubelet_has_lost_is_an_end_without_a_code() {
        let waiting = json!({"waiting": {"reason": "ContainerCreating"}});
        let unknown = json!({"terminated": {"exitCode": 137, "reason": UNKNOWN}});
        let lost = pod("Failed", &json!({"state": waiting, "lastState": unknown}));
        // As newer kubelets report it.
        let newer = pod("Failed", &json!({"state": unknown}));
        for lost in [lost, newer] {
            let seen = inspection(&lost);
            assert_eq!((seen.status, seen.code), (ContainerStatus::Ended, None));
            assert_eq!(seen.lost, None);
            assert!(seen.error.unwrap().contains("exit code"));
        }
        let waits = inspection(&pod("Pending", &json!({"state": waiting})));
        assert_eq!(waits.status, ContainerStatus::Created);
        let known = json!({"terminated": {"exitCode": 3, "reason": "Error"}});
        let seen = inspection(&pod("Failed", &json!({"state": known})));
        assert_eq!((seen.code, seen.error), (Some(3), None));
    }
}
