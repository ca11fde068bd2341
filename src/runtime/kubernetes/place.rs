//! The wait until the cluster has placed a pod.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::api::client::Failure;
use super::api::connection::Container;
use super::api::pod::{Pod, PodRef};
use super::api::watch::Seen;
use super::container::not_found;
use super::shared::Shared;
use crate::error::RuntimeError;
use crate::spec::{PlacementProgress, RunSpec, RuntimeView};

/// The default time for which a pod may wait for the same reason.
pub(super) const DEFAULT_PATIENCE: Duration = Duration::from_secs(60);
/// The time after which the server is asked, in case the watch is late; doubled up to the maximum,
/// because hundreds of pods can wait for a node.
const MIN_POLL_INTERVAL: Duration = Duration::from_secs(10);
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(160);
const OPERATION: &str = "place the pod";

/// Reasons that a retry cannot resolve.
const PERMANENT: &[&str] = &["ErrImageNeverPull", "InvalidImageName"];
/// The reason of a pull that failed. Its message has the cause.
const PULL_ERROR: &str = "ErrImagePull";
/// Reasons about the image of a pod.
const IMAGE: &[&str] = &[
    PULL_ERROR,
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
];
/// Reasons that are part of every start.
const NORMAL: &[&str] = &["", "ContainerCreating", "PodInitializing"];

/// The reason for which a pod waits, and since when.
struct Waiting {
    reason: String,
    since: Instant,
    /// The message of the last attempt to pull the image. A pause between attempts has none.
    pull_error: Option<String>,
}

impl Shared {
    /// Waits until a pod only waits for the start of its command.
    ///
    /// Kubernetes retries failures forever. No reason is final until the pod is deleted by its UID.
    pub(super) async fn place(
        &self,
        pod: &PodRef,
        spec: &RunSpec,
        patience: Duration,
    ) -> Result<(), RuntimeError> {
        let error = |failure: Failure| failure.error(OPERATION, &self.client.address);
        let mut reports = self.reports(pod).await.map_err(error)?;
        let mut waiting: Option<Waiting> = None;
        let mut interval = MIN_POLL_INTERVAL;
        let mut poll = Instant::now() + interval;
        loop {
            let seen = reports.borrow_and_update().clone();
            match seen {
                Seen::Gone => return Err(error(not_found(pod))),
                Seen::Pod(found) if found.can_start() => return Ok(()),
                Seen::Pod(found) => {
                    self.check(pod, &found)?;
                    self.observe(&found, &mut waiting, spec);
                    if let Some(waiting) = &waiting
                        && waiting.is_final(patience)
                    {
                        let pull_error = waiting.pull_error.as_deref();
                        return Err(self.give_up(pod, &found, spec, pull_error).await);
                    }
                }
                Seen::Unknown => {}
            }
            let deadline = match &waiting {
                Some(waiting) if !waiting.is_normal() => poll.min(waiting.since + patience),
                _ => poll,
            };
            match timeout_at(deadline, reports.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(error(not_found(pod))),
                Err(_) if Instant::now() >= poll => {
                    interval = (interval * 2).min(MAX_POLL_INTERVAL);
                    poll = Instant::now() + interval;
                    match self.pod(pod).await {
                        Ok(found) if found.can_start() => return Ok(()),
                        Err(failure) if failure.is_not_found() => return Err(error(failure)),
                        Ok(found) => {
                            self.check(pod, &found)?;
                            self.observe(&found, &mut waiting, spec);
                        }
                        Err(_) => {}
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// Fails if the pod will never be placed.
    fn check(&self, pod: &PodRef, found: &Pod) -> Result<(), RuntimeError> {
        let ended = [Container::Main, Container::Collector]
            .into_iter()
            .find_map(|container| found.terminated(container).map(|ended| (container, ended)));
        let reason = match (ended, found.is_over()) {
            (Some((container, ended)), _) => {
                let name = container.name();
                let message = match ended.message.as_str() {
                    "" => found.disruption().unwrap_or_default(),
                    message => message.to_owned(),
                };
                format!("its container {name} ended: {} {message}", ended.reason)
            }
            (None, over) if over || found.is_deleted() => found
                .disruption()
                .unwrap_or_else(|| "the pod has failed".into()),
            (None, _) => return Ok(()),
        };
        let name = &pod.name;
        Err(RuntimeError::Rejected {
            operation: OPERATION,
            reason: format!("{name}: {}", reason.trim()),
        })
    }

    /// Reports a new reason to the spec's listener.
    fn observe(&self, found: &Pod, waiting: &mut Option<Waiting>, spec: &RunSpec) {
        let Some((reason, message)) = found.waits_for() else {
            // The last reason is over: a node was found.
            *waiting = None;
            return;
        };
        let changed = waiting
            .as_ref()
            .is_none_or(|waiting| waiting.reason != reason);
        if !changed {
            return;
        }
        // The kubelet alternates between an attempt and a pause: both are one reason.
        let same = waiting
            .as_ref()
            .is_some_and(|waiting| is_image(&waiting.reason) && is_image(&reason));
        let (since, pull_error) = match waiting.take() {
            Some(waiting) if same => (waiting.since, waiting.pull_error),
            _ => (Instant::now(), None),
        };
        let pull_error = match reason.as_str() {
            PULL_ERROR => Some(message.clone()),
            _ => pull_error,
        };
        let progress = PlacementProgress::new(reason.clone(), message);
        RuntimeView::new(spec).report_placement(progress);
        *waiting = Some(Waiting {
            reason,
            since,
            pull_error,
        });
    }

    /// Deletes a pod that exceeded its patience, and returns the error of its placement.
    async fn give_up(
        &self,
        pod: &PodRef,
        found: &Pod,
        spec: &RunSpec,
        pull_error: Option<&str>,
    ) -> RuntimeError {
        if let Err(failure) = self.delete(pod, Some(0)).await {
            return failure.inconclusive(OPERATION, &self.client.address);
        }
        let (mut reason, mut message) = found.waits_for().unwrap_or_default();
        if let Some(pull_error) = pull_error
            && is_image(&reason)
        {
            (reason, message) = (PULL_ERROR.to_owned(), pull_error.to_owned());
        }
        let text = match message.as_str() {
            "" => reason.clone(),
            message => format!("{reason}: {message}"),
        };
        match is_image(&reason) {
            true => RuntimeError::NoSuchImage {
                image: spec.settings().image.clone(),
                reason: text,
            },
            false => RuntimeError::Rejected {
                operation: OPERATION,
                reason: text,
            },
        }
    }
}

impl Waiting {
    fn is_final(&self, patience: Duration) -> bool {
        let reason = self.reason.as_str();
        PERMANENT.contains(&reason) || (!self.is_normal() && self.since.elapsed() >= patience)
    }

    /// Returns true if every start waits for this.
    fn is_normal(&self) -> bool {
        NORMAL.contains(&self.reason.as_str())
    }
}

fn is_image(reason: &str) -> bool {
    IMAGE.contains(&reason)
}
