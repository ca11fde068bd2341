//! Operations on the pod of a run.

use std::sync::Arc;
use std::time::Duration;

use futures::TryFutureExt;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::api::client::{CALL_TIMEOUT, Failure};
use super::api::connection::{Container, Frame};
use super::api::pod::{Pod, PodRef, Terminated, image_digest};
use super::api::watch::Seen;
use super::process::{Phase, Process, ProcessState, Report};
use super::protocol::{Kind, encode_strings};
use crate::error::RuntimeError;
use crate::runtime::{ContainerStatus, Inspection, LogConfig, LogFidelity, WaitStatus};
use crate::spec::ContainerId;

/// Timeout of a question to the collector, which a lost node never answers.
const STATE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time for which the end of a container waits for the kubelet's report.
///
/// The report took 1 to 2 s, and more than 10 s on a loaded machine.
const REPORT_TIMEOUT: Duration = Duration::from_secs(20);
/// Exit code of a command that SIGKILL ended, such as the one of the out-of-memory killer.
const KILLED: i64 = 137;
pub(super) const SIGKILL: i32 = 9;
/// Exit code of a wrapper whose collector ended before it released the command.
const NEVER_RELEASED: i64 = 70;
/// The time after which the server is asked about a pod that is being removed, in case the watch is
/// late; doubled with each question, up to the maximum.
const REMOVAL_POLL_INTERVAL: Duration = Duration::from_secs(1);
const MAX_REMOVAL_POLL_INTERVAL: Duration = Duration::from_secs(4);

/// Returns the pod of a container's id.
pub(super) fn reference(id: &ContainerId, operation: &'static str) -> Result<PodRef, RuntimeError> {
    PodRef::parse(id).ok_or_else(|| RuntimeError::NotFound {
        operation,
        reason: format!("{id} is not the id of a pod"),
    })
}

impl Shared {
    /// Reads a pod from the server. A pod of the same name with another uid is another pod.
    pub(super) async fn pod(&self, pod: &PodRef) -> Result<Pod, Failure> {
        if let Some(root) = self.root_of(pod)
            && self.watches.is_gone(&root, pod)
        {
            return Err(not_found(pod));
        }
        let found: Pod = self.client.get(&pod.path()).await?;
        match found.metadata.uid == pod.uid {
            true => Ok(found),
            false => Err(not_found(pod)),
        }
    }

    /// Subscribes to the reports about a pod.
    pub(super) async fn reports(&self, pod: &PodRef) -> Result<watch::Receiver<Seen>, Failure> {
        let root = match self.root_of(pod) {
            Some(root) => root,
            None => {
                let found = self.pod(pod).await?;
                let root = found.root().ok_or_else(|| not_found(pod))?;
                self.remember(pod, &root);
                root
            }
        };
        let reports = self.watches.subscribe(&self.client, &root, pod);
        // The watch may have reported the end of the pod before, which it does not repeat.
        let is_unknown = matches!(*reports.borrow(), Seen::Unknown);
        if is_unknown
            && let Err(failure) = self.pod(pod).await
            && failure.is_not_found()
        {
            self.watches.remove(&root, pod);
        }
        Ok(reports)
    }

    /// Asks the collector for the state of the command.
    pub(super) async fn report(&self, pod: &PodRef) -> Result<Report, Failure> {
        let answer = timeout(STATE_TIMEOUT, self.client.ask(pod, &["state"], None)).await;
        let answer = answer.unwrap_or(Err(Failure::Timeout(STATE_TIMEOUT)))?;
        if answer.kind() != Kind::Report {
            return Err(Failure::Broken("an invalid answer of the collector".into()));
        }
        let report = Report::parse(&answer.text());
        self.process(pod).record(&report);
        Ok(report)
    }

    pub(super) async fn start(&self, pod: &PodRef) -> Result<(), RuntimeError> {
        const OPERATION: &str = "start the container";
        let mut environment = Vec::new();
        encode_strings(&mut environment, &self.environment(pod));
        let body = Some((Kind::Spec, environment.as_slice()));
        let answer = self.client.ask(pod, &["release"], body).await;
        let answer = answer.map_err(|failure| failure.error(OPERATION, &self.client.address))?;
        match answer.kind() {
            Kind::Started => {
                self.process(pod).observe(&answer);
                Ok(())
            }
            Kind::Failed => {
                let reason = answer.failure();
                self.process(pod).set_error(reason.clone());
                Err(RuntimeError::Rejected {
                    operation: OPERATION,
                    reason,
                })
            }
            Kind::Refused => Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason: answer.text(),
            }),
            _ => Err(RuntimeError::Broken {
                operation: OPERATION,
                reason: "an invalid answer of the collector".into(),
            }),
        }
    }

    pub(super) async fn wait(&self, pod: &PodRef) -> Result<WaitStatus, Failure> {
        let state = self.process(pod);
        let mut ended = state.subscribe();
        let mut reports = self.reports(pod).await?;
        loop {
            let seen = reports.borrow_and_update().clone();
            match seen {
                // The output may have told the end of a pod that was deleted since.
                Seen::Gone => match state.get() {
                    Process {
                        finished_at: Some(_),
                        code,
                        ..
                    } => return Ok(WaitStatus::new(code)),
                    _ => return Err(not_found(pod)),
                },
                Seen::Pod(found) if has_ended(&found) => {
                    let code = self.exit_code(pod, &found).await;
                    return Ok(WaitStatus::new(code));
                }
                _ => {}
            }
            let process = *ended.borrow_and_update();
            if process.finished_at.is_some() && !matches!(process.code, None | Some(KILLED)) {
                return Ok(WaitStatus::new(process.code));
            }
            let changed = async {
                tokio::select! {
                    changed = reports.changed() => changed.is_ok(),
                    changed = ended.changed() => changed.is_ok(),
                }
            };
            // The kubelet reports the reason of a kill soon after the end.
            if process.finished_at.is_some() {
                match timeout(REPORT_TIMEOUT, changed).await {
                    Ok(true) => {}
                    _ => return Ok(WaitStatus::new(process.code)),
                }
            } else if !changed.await {
                return Err(not_found(pod));
            }
        }
    }

    /// Returns the exit code of a command that has ended.
    async fn exit_code(&self, pod: &PodRef, found: &Pod) -> Option<i64> {
        let known = self.process(pod).get();
        if known.code.is_some() {
            return known.code;
        }
        if found.is_running(Container::Collector)
            && let Ok(report) = self.report(pod).await
            && report.code.is_some()
        {
            return report.code;
        }
        found
            .terminated(Container::Main)
            .map(|ended| ended.exit_code)
    }

    pub(super) async fn inspect(&self, pod: &PodRef) -> Result<Inspection, Failure> {
        let found = self.pod(pod).await?;
        let state = self.process(pod);
        let answers = found.is_running(Container::Collector);
        let report = match (answers, found.is_placed()) {
            (true, placed) => match self.report(pod).await {
                Ok(report) => Some(report),
                // Only the collector knows if a command whose start is not recorded has run.
                Err(failure)
                    if found.unreachable_since().is_none()
                        && (placed || has_ended(&found) && state.get().started_at.is_none()) =>
                {
                    return Err(failure);
                }
                Err(_) => None,
            },
            (false, _) => last_report(&found).inspect(|report| state.record(report)),
        };
        Ok(inspection(&found, report.as_ref(), &state))
    }

    pub(super) async fn signal(&self, pod: &PodRef, number: i32) -> Result<(), RuntimeError> {
        const OPERATION: &str = "signal the container";
        let request = ["signal", &number.to_string()];
        match self.client.ask(pod, &request, None).await {
            Ok(answer) => done(OPERATION, &answer),
            // Without the collector, only the kubelet reaches the command.
            Err(_) if number == SIGKILL && self.lacks_collector(pod).await => {
                let deleted = self.delete(pod, Some(1)).await;
                deleted.map_err(|failure| failure.error(OPERATION, &self.client.address))
            }
            Err(failure) => Err(self.unless_over(pod, failure, OPERATION).await),
        }
    }

    /// Returns true if the collector has ended before the command.
    async fn lacks_collector(&self, pod: &PodRef) -> bool {
        let found = self.pod(pod).await;
        found.is_ok_and(|found| {
            found.is_running(Container::Main) && found.terminated(Container::Collector).is_some()
        })
    }

    pub(super) async fn resize(
        &self,
        pod: &PodRef,
        columns: u16,
        rows: u16,
    ) -> Result<(), RuntimeError> {
        const OPERATION: &str = "resize the terminal";
        let request = ["resize", &columns.to_string(), &rows.to_string()];
        match self.client.ask(pod, &request, None).await {
            Ok(answer) => done(OPERATION, &answer),
            Err(failure) => Err(self.unless_over(pod, failure, OPERATION).await),
        }
    }

    /// Returns the error of a request to a container that may not run any more.
    ///
    /// A failed request itself proves nothing: only the pod's state does.
    pub(super) async fn unless_over(
        &self,
        pod: &PodRef,
        failure: Failure,
        operation: &'static str,
    ) -> RuntimeError {
        if failure.is_timeout() {
            return failure.error(operation, &self.client.address);
        }
        match self.pod(pod).await {
            Err(missing) if missing.is_not_found() => {
                missing.error(operation, &self.client.address)
            }
            Ok(found) if !found.is_placed() => RuntimeError::Conflict {
                operation,
                reason: "the container is not running".into(),
            },
            _ => failure.inconclusive(operation, &self.client.address),
        }
    }

    /// Removes a pod whose command does not run and never will.
    pub(super) async fn remove(&self, pod: &PodRef, force: bool) -> Result<(), RuntimeError> {
        const OPERATION: &str = "remove the container";
        let error = |failure: Failure| failure.error(OPERATION, &self.client.address);
        let (_unwatched, no_reports) = watch::channel(Seen::Unknown);
        let mut reports = match self.root_of(pod) {
            Some(root) => self.watches.subscribe(&self.client, &root, pod),
            // A pod of a foreign root is not worth a watch.
            None => no_reports,
        };
        let mut found = match self.pod(pod).await {
            Ok(found) => found,
            Err(failure) => {
                if failure.is_not_found() {
                    self.forget(pod);
                }
                return Err(error(failure));
            }
        };
        if found.is_running(Container::Collector) {
            match self.close(pod, force).await? {
                Closed::Ended => {}
                // The collector does not answer: the kubelet ends the containers.
                Closed::Unknown if force => {}
                Closed::Unknown => {
                    found = self
                        .collector_ended(pod)
                        .await
                        .ok_or(RuntimeError::Broken {
                            operation: OPERATION,
                            reason: "the collector does not answer, so the command may run".into(),
                        })?;
                }
            }
        }
        let is_open = found.is_running(Container::Main) && !found.is_running(Container::Collector);
        let has_started = || found.is_plain() || self.has_started(pod, &found);
        if is_open && !force && has_started() && !self.has_exited(pod) {
            return Err(running());
        }
        if found.is_plain() && !force {
            found = self.refuse_start(pod, found).await?;
        }
        // Containers that never ran have nothing to end, and a kubelet that waits for an image is
        // slow to say so.
        let grace = u64::from(found.has_run());
        self.delete(pod, Some(grace)).await.map_err(error)?;
        if found.is_kept() {
            self.set_kept(pod, false).await.map_err(error)?;
        }
        let gone = timeout(CALL_TIMEOUT, self.wait_gone(pod, &mut reports)).await;
        match gone {
            Ok(gone) => gone.map_err(error)?,
            Err(_) => return Err(error(Failure::Timeout(CALL_TIMEOUT))),
        }
        self.forget(pod);
        Ok(())
    }

    /// Ends the collector, unless the command runs. With `force`, kills the command first.
    async fn close(&self, pod: &PodRef, force: bool) -> Result<Closed, RuntimeError> {
        let deadline = Instant::now() + CALL_TIMEOUT;
        loop {
            let Ok(answer) = self.client.ask(pod, &["quit"], None).await else {
                return Ok(match self.has_exited(pod) {
                    true => Closed::Ended,
                    false => Closed::Unknown,
                });
            };
            match answer.kind() {
                Kind::Done => return Ok(Closed::Ended),
                Kind::Refused if !force => return Err(running()),
                Kind::Refused if Instant::now() < deadline => {
                    let _ = self.signal(pod, SIGKILL).await;
                    sleep(Duration::from_millis(20)).await;
                }
                _ => return Ok(Closed::Unknown),
            }
        }
    }

    /// Waits until the server reports the end of the collector or the command, and returns the pod.
    ///
    /// The answer of a collector that ends can be lost with its container, and the server reports
    /// the end later.
    async fn collector_ended(&self, pod: &PodRef) -> Option<Pod> {
        let deadline = Instant::now() + REPORT_TIMEOUT;
        while Instant::now() < deadline {
            if let Ok(found) = self.pod(pod).await
                && (!found.is_running(Container::Collector) || has_ended(&found))
            {
                return Some(found);
            }
            sleep(REMOVAL_POLL_INTERVAL).await;
        }
        None
    }

    /// Returns true if the collector has reported the end of the command.
    fn has_exited(&self, pod: &PodRef) -> bool {
        self.process(pod).get().finished_at.is_some()
    }

    fn has_started(&self, pod: &PodRef, found: &Pod) -> bool {
        let reported = last_report(found).is_some_and(|report| report.started_at.is_some());
        reported || self.process(pod).get().started_at.is_some() || may_have_run(found)
    }

    /// Deletes the pod with this UID. Returns success if the pod is gone or was replaced.
    ///
    /// `grace` is in seconds. Default: that of the pod.
    pub(super) async fn delete(&self, pod: &PodRef, grace: Option<u64>) -> Result<(), Failure> {
        let mut options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions",
            "preconditions": {"uid": pod.uid},
        });
        if let Some(grace) = grace {
            options["gracePeriodSeconds"] = json!(grace);
        }
        match self.client.delete(&pod.path(), &options).await {
            Err(failure) if failure.is_not_found() || failure.is_conflict() => Ok(()),
            deleted => deleted,
        }
    }

    /// Waits until the server does not have the deleted pod any more.
    ///
    /// A kubelet deletes the pod from the server once it has removed the containers, which can be a
    /// minute after their end. So once the containers have ended, moat itself deletes the pod.
    async fn wait_gone(
        &self,
        pod: &PodRef,
        reports: &mut watch::Receiver<Seen>,
    ) -> Result<(), Failure> {
        let mut interval = REMOVAL_POLL_INTERVAL;
        let mut end_reported = false;
        loop {
            let news = reports.wait_for(|seen| match seen {
                Seen::Unknown => false,
                Seen::Pod(pod) => !end_reported && pod.has_stopped(),
                Seen::Gone => true,
            });
            let is_gone = news.map_ok(|seen| matches!(*seen, Seen::Gone));
            match timeout(interval, is_gone).await {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) => end_reported = true,
                // There are no more reports.
                Ok(Err(_)) => sleep(interval).await,
                Err(_) => {}
            }
            interval = (interval * 2).min(MAX_REMOVAL_POLL_INTERVAL);
            match self.pod(pod).await {
                Err(failure) if failure.is_not_found() => return Ok(()),
                Ok(found) if found.has_stopped() => {
                    // Repeated, until the pod is gone.
                    let _ = self.delete(pod, Some(0)).await;
                }
                _ => {}
            }
        }
    }
}

enum Closed {
    /// The command does not run and never will.
    Ended,
    /// The collector did not answer.
    Unknown,
}

pub(super) fn running() -> RuntimeError {
    RuntimeError::Conflict {
        operation: "remove the container",
        reason: "the container is running".into(),
    }
}

fn done(operation: &'static str, answer: &Frame) -> Result<(), RuntimeError> {
    match answer.kind() {
        Kind::Done => Ok(()),
        _ => Err(refusal(operation, answer)),
    }
}

/// Returns the error of an answer that is not the expected one.
pub(super) fn refusal(operation: &'static str, answer: &Frame) -> RuntimeError {
    match answer.kind() {
        Kind::Refused => RuntimeError::Conflict {
            operation,
            reason: answer.text(),
        },
        Kind::Failed => RuntimeError::Rejected {
            operation,
            reason: answer.failure(),
        },
        _ => RuntimeError::Broken {
            operation,
            reason: "an invalid answer of the collector".into(),
        },
    }
}

/// Returns the report that a collector left at its end.
pub(super) fn last_report(pod: &Pod) -> Option<Report> {
    let ended = pod.terminated(Container::Collector)?;
    // A collector that was killed leaves no report.
    (!ended.message.is_empty()).then(|| Report::parse(&ended.message))
}

/// Returns true unless the end of `main` shows that its wrapper never started the command.
pub(super) fn may_be_released(main: &Terminated) -> bool {
    main.exit_code != NEVER_RELEASED && main.has_run()
}

/// Returns true if the command may have run although its collector has left no report.
fn may_have_run(pod: &Pod) -> bool {
    let collector = pod.terminated(Container::Collector);
    let is_silent = collector.is_some_and(|ended| ended.message.is_empty() && ended.has_run());
    match pod.terminated(Container::Main) {
        Some(main) => is_silent && may_be_released(main),
        None => is_silent && pod.is_running(Container::Main) || lost(pod).is_some(),
    }
}

/// Returns true if the command of a pod runs no more, whatever the collector says.
pub(super) fn has_ended(pod: &Pod) -> bool {
    pod.terminated(Container::Main).is_some() || pod.is_over()
}

pub(super) fn not_found(pod: &PodRef) -> Failure {
    Failure::refused(404, format!("pod {} does not exist", pod.name))
}

/// Returns the reason for which the end of a container will never be known.
///
/// A pod that is over without an end of its containers was given up with its node. The kubelet may
/// report a pod that is being deleted in the same way, which says nothing about the node.
pub(super) fn lost(pod: &Pod) -> Option<String> {
    let unknown = pod.is_over() && pod.terminated(Container::Main).is_none();
    let given_up = !pod.is_deleted() || pod.is_collected();
    (unknown && given_up).then(|| {
        pod.disruption()
            .unwrap_or_else(|| "the node of the pod is gone".into())
    })
}

/// Returns the state of a container from all that is known about its pod.
pub(super) fn inspection(
    pod: &Pod,
    report: Option<&Report>,
    state: &Arc<ProcessState>,
) -> Inspection {
    let Process {
        started_at,
        finished_at,
        code,
    } = state.get();
    let main = pod.terminated(Container::Main);
    let phase = report.map(|report| report.phase);
    let started =
        started_at.is_some() || report.map_or_else(|| may_have_run(pod), |report| report.released);
    // A wrapper that was killed reports no code: the kubelet does, a little later.
    let is_reported = phase == Some(Phase::Exited) || finished_at.is_some();
    let ended = has_ended(pod) || is_reported && code.is_some();
    let status = match (started, ended) {
        (false, _) => ContainerStatus::Created,
        (true, true) => ContainerStatus::Ended,
        (true, false) => ContainerStatus::Running,
    };
    let mut inspection = Inspection::new(status);
    inspection.started_at = started_at;
    inspection.error = state.error();
    if status == ContainerStatus::Ended {
        inspection.finished_at = finished_at.or(main.and_then(|main| main.finished_at));
        inspection.code = code.or(main.map(|main| main.exit_code));
        inspection.lost = lost(pod).filter(|_| inspection.code.is_none());
        inspection.oom_killed = main.is_some_and(|main| main.reason == "OOMKilled");
        if inspection.error.is_none() {
            inspection.error = pod.disruption();
        }
    }
    if let Some(status) = pod.container(Container::Main) {
        inspection.image_digest = image_digest(&status.image_id);
    }
    inspection.log = LogConfig {
        driver: "moat".into(),
        fidelity: pod.keeps_output().then_some(LogFidelity::Lossless),
        ..LogConfig::default()
    };
    inspection.unreachable_since = pod.unreachable_since();
    inspection
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_deleted_pod_is_lost_only_with_its_node() {
        let collected = json!([{
            "type": "DisruptionTarget", "status": "True",
            "reason": "DeletionByPodGC", "message": "the node is gone",
        }]);
        let deleted = json!({"deletionTimestamp": "2026-11-27T09:49:18Z"});
        let rows = [
            (json!({}), json!([]), Some("the node of the pod is gone")),
            (deleted.clone(), json!([]), None),
            (
                deleted,
                collected,
                Some("DeletionByPodGC: the node is gone"),
            ),
        ];
        for (metadata, conditions, expected) in rows {
            let status = json!({"phase": "Failed", "conditions": conditions});
            let pod = pod(json!({"metadata": metadata, "status": status}));
            assert_eq!(lost(&pod).as_deref(), expected);
        }
        let ended = json!([{
            "name": "main", "imageID": "", "state": {"terminated": {"exitCode": 3}},
        }]);
        let status = json!({"phase": "Failed", "containerStatuses": ended});
        assert_eq!(lost(&pod(json!({"status": status}))), None);
    }

    #[test]
    fn a_deletion_is_the_error_of_a_command_that_has_ended() {
        let state = Arc::new(ProcessState::default());
        let exited = "started_micros 1\nexited_micros 2\nexit 3\n";
        state.record(&Report::parse(exited));
        let mut seen = json!({"metadata": {}});
        assert_eq!(inspection(&pod(seen.clone()), None, &state).error, None);
        seen["metadata"]["deletionTimestamp"] = json!("2026-11-27T09:49:18Z");
        let now = inspection(&pod(seen), None, &state);
        assert_eq!(now.error.as_deref(), Some("the pod was deleted"));
        assert_eq!(now.code, Some(3));
    }
}
