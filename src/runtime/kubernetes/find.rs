//! The pods of a root, and of all roots.

use futures::{StreamExt, stream};

use super::api::client::{Failure, encode};
use super::api::connection::Container;
use super::api::pod::{Pod, PodList, ROOT_LABEL};
use super::container::{inspection, last_report, may_be_released};
use super::plain;
use super::shared::Shared;
use crate::runtime::{ContainerStatus, LabeledContainer, OwnedContainer, RuntimeError};
use crate::spec::RootId;

/// The number of collectors that a search asks at once.
const MAX_QUESTIONS: usize = 16;
const LIST: &str = "list the containers";

impl Shared {
    /// Lists the pods with a label in this namespace.
    async fn list(&self, selector: &str) -> Result<Vec<Pod>, Failure> {
        self.list_at(&self.client.path("pods"), selector).await
    }

    /// Lists the pods with a label in all namespaces, or in this one if the user may not list all.
    async fn list_all(&self, selector: &str) -> Result<Vec<Pod>, Failure> {
        match self.list_at("/api/v1/pods", selector).await {
            Err(failure) if failure.is_forbidden() => self.list(selector).await,
            listed => listed,
        }
    }

    async fn list_at(&self, path: &str, selector: &str) -> Result<Vec<Pod>, Failure> {
        let path = format!("{path}?labelSelector={}", encode(selector));
        let list: PodList = self.client.get(&path).await?;
        Ok(list.items)
    }

    /// Returns the pods of a root, with the helper or without it.
    pub(super) async fn find(
        &self,
        root: &RootId,
        plain: bool,
    ) -> Result<Vec<OwnedContainer>, RuntimeError> {
        let pods = self.list(&format!("{ROOT_LABEL}={root}")).await;
        let pods = pods.map_err(self.error(LIST))?;
        let pods = pods.into_iter().filter(|pod| pod.is_plain() == plain);
        let pods = pods.filter_map(|pod| Some((pod.run()?, pod)));
        let found = stream::iter(pods).map(|(run, pod)| async move {
            let reference = pod.reference();
            self.remember(&reference, root);
            let status = self.status_of(&pod).await;
            OwnedContainer::new(reference.id(), run, status)
        });
        Ok(found.buffer_unordered(MAX_QUESTIONS).collect().await)
    }

    /// Returns the pods of all roots, with the helper or without it.
    pub(super) async fn find_all(
        &self,
        plain: bool,
    ) -> Result<Vec<LabeledContainer>, RuntimeError> {
        let pods = self.list_all(ROOT_LABEL).await;
        let pods = pods
            .map_err(self.error(LIST))?
            .into_iter()
            .filter(|pod| pod.is_plain() == plain)
            .filter_map(|pod| Some((pod.root()?, pod.run()?, pod)));
        let found = stream::iter(pods).map(|(root, run, pod)| async move {
            let reference = pod.reference();
            let status = self.status_of(&pod).await;
            let mut labeled = LabeledContainer::new(reference.id(), root, run, status);
            let started_at = match pod.is_plain() {
                true => plain::inspection(&pod).started_at,
                false => self.process(&reference).get().started_at,
            };
            labeled.deadline = pod.deadline(started_at);
            self.forget_unowned(&reference);
            labeled
        });
        Ok(found.buffer_unordered(MAX_QUESTIONS).collect().await)
    }

    /// Returns the status of a listed pod, whose collector is asked if it can answer.
    async fn status_of(&self, pod: &Pod) -> ContainerStatus {
        if pod.is_plain() {
            return plain::inspection(pod).status;
        }
        let reference = pod.reference();
        let state = self.process(&reference);
        let answers = pod.is_running(Container::Collector)
            && pod.unreachable_since().is_none()
            && state.get().finished_at.is_none();
        let report = match answers {
            true => self.report(&reference).await.ok(),
            false => last_report(pod),
        };
        let status = inspection(pod, report.as_ref(), &state).status;
        if status != ContainerStatus::Created || report.is_some() {
            return status;
        }
        // The command may have run, because the collector did not deny it.
        match pod.terminated(Container::Main) {
            Some(main) if may_be_released(main) => ContainerStatus::Ended,
            None if pod.is_placed() => ContainerStatus::Running,
            _ => status,
        }
    }
}
