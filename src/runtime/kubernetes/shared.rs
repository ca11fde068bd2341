//! The state that all clones of a runtime share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use tokio::sync::OnceCell;

use super::PodOptions;
use super::api::client::{Client, Failure};
use super::api::connection::Container;
use super::api::pod::{Pod, PodRef};
use super::api::rights;
use super::api::watch::Watches;
use super::commands::Execs;
use super::output;
use super::process::ProcessState;
use super::template::{self, helper};
use crate::error::RuntimeError;
use crate::runtime::{CreateRequest, Created, EngineInfo, LogsRequest, OutputStream};
use crate::spec::{RootId, RunSpec, RuntimeView};

/// The connection, the watches, and what is known about pods.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) watches: Watches,
    pub(super) execs: Execs,
    pods: Mutex<HashMap<String, Known>>,
    /// Set once all rights were there.
    rights: OnceCell<()>,
}

/// The knowledge of this process about a pod, by uid.
#[derive(Debug, Default)]
struct Known {
    root: Option<RootId>,
    process: Arc<ProcessState>,
    /// The environment of the command, as `NAME=value`, if this process has created the pod.
    environment: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    git_version: String,
}

impl Shared {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            watches: Watches::default(),
            execs: Execs::default(),
            pods: Mutex::default(),
            rights: OnceCell::new(),
        }
    }

    /// Returns the error of a request that failed.
    pub(super) fn error(&self, operation: &'static str) -> impl Fn(Failure) -> RuntimeError {
        let address = self.client.address.clone();
        move |failure| failure.error(operation, &address)
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn process(&self, pod: &PodRef) -> Arc<ProcessState> {
        let mut pods = self.pods();
        let known = pods.entry(pod.uid.clone()).or_default();
        Arc::clone(&known.process)
    }

    pub(super) fn root_of(&self, pod: &PodRef) -> Option<RootId> {
        self.pods().get(&pod.uid)?.root.clone()
    }

    pub(super) fn remember(&self, pod: &PodRef, root: &RootId) {
        let mut pods = self.pods();
        pods.entry(pod.uid.clone()).or_default().root = Some(root.clone());
    }

    pub(super) fn forget(&self, pod: &PodRef) {
        let known = self.pods().remove(&pod.uid);
        if let Some(root) = known.and_then(|known| known.root) {
            self.watches.forget(&root, pod);
        }
    }

    /// Forgets a pod that was only listed.
    pub(super) fn forget_unowned(&self, pod: &PodRef) {
        let mut pods = self.pods();
        if pods.get(&pod.uid).is_some_and(|known| known.root.is_none()) {
            pods.remove(&pod.uid);
        }
    }

    pub(super) fn environment(&self, pod: &PodRef) -> Vec<String> {
        let pods = self.pods();
        let known = pods.get(&pod.uid);
        known
            .map(|known| known.environment.clone())
            .unwrap_or_default()
    }

    pub(super) async fn version(&self) -> Result<String, Failure> {
        let version: Version = self.client.get("/version").await?;
        Ok(version.git_version)
    }

    /// Returns the version, and the UID of the namespace, which outlives its pods.
    pub(super) async fn engine(&self) -> Result<EngineInfo, RuntimeError> {
        let path = format!("/api/v1/namespaces/{}", self.client.namespace);
        let read = futures::try_join!(self.version(), self.client.get::<Pod>(&path));
        let (version, namespace) = read.map_err(self.error("read the version of the cluster"))?;
        let info = EngineInfo::new("Kubernetes", version);
        Ok(info.with_id(namespace.metadata.uid))
    }

    /// Checks the rights, and provides the helper.
    pub(super) async fn prepare(
        &self,
        spec: &RunSpec,
        options: &PodOptions,
    ) -> Result<(), RuntimeError> {
        const OPERATION: &str = "prepare the namespace";
        let error = |failure: Failure| failure.error(OPERATION, &self.client.address);
        let checked = self.rights.get_or_try_init(|| async {
            match rights::missing(&self.client, options)
                .await
                .map_err(error)?
            {
                None => Ok(()),
                Some(missing) => Err(RuntimeError::Rejected {
                    operation: OPERATION,
                    reason: format!(
                        "this user has no right in namespace {} to: {missing}; see the Role in \
                         docs/kubernetes.md",
                        self.client.namespace
                    ),
                }),
            }
        });
        checked.await?;
        if !options.plain && options.helper_image.is_none() {
            let platform = spec.settings().platform.as_deref();
            let arch = platform
                .and_then(super::template::check::arch)
                .unwrap_or(options.arch);
            helper::provide(&self.client, arch).await.map_err(error)?;
        }
        Ok(())
    }

    pub(super) async fn create(
        &self,
        request: CreateRequest<'_>,
        options: &PodOptions,
    ) -> Result<Created, RuntimeError> {
        const OPERATION: &str = "create the container";
        let body = template::pod::pod(&request, options);
        let created = self
            .client
            .post::<Pod>(&self.client.path("pods"), &body)
            .await;
        let pod = created.map_err(|failure| failure.error(OPERATION, &self.client.address))?;
        let reference = pod.reference();
        let view = RuntimeView::new(request.spec).environment();
        let variables = view.map(|(name, value)| format!("{name}={value}"));
        {
            let mut pods = self.pods();
            let known = pods.entry(reference.uid.clone()).or_default();
            known.root = Some(request.root.clone());
            known.environment = variables.collect();
        }
        // The watch starts before its first report is needed.
        self.watches.created(&self.client, request.root, pod);
        Ok(Created::new(reference.id()))
    }

    /// Attaches to the output of a pod.
    pub(super) async fn output(
        &self,
        pod: &PodRef,
        from: output::From,
        operation: &'static str,
    ) -> Result<OutputStream, RuntimeError> {
        let opened = output::open(&self.client, pod, from, true, self.process(pod)).await;
        match opened {
            Ok(output) => Ok(output),
            Err(failure) => Err(self.output_error(pod, failure, operation).await),
        }
    }

    /// Returns the error of output that cannot be read.
    ///
    /// A collector that runs has the output, even if the command has ended.
    async fn output_error(
        &self,
        pod: &PodRef,
        failure: Failure,
        operation: &'static str,
    ) -> RuntimeError {
        let address = &self.client.address;
        if failure.is_timeout() {
            return failure.error(operation, address);
        }
        match self.pod(pod).await {
            Err(missing) if missing.is_not_found() => missing.error(operation, address),
            Ok(found) if found.terminated(Container::Collector).is_some() => {
                match found.is_deleted() {
                    true => RuntimeError::NotFound {
                        operation,
                        reason: "the pod was deleted, and its spool with it".into(),
                    },
                    false => RuntimeError::Rejected {
                        operation,
                        reason: "the collector has ended, and its spool cannot be read".into(),
                    },
                }
            }
            _ => failure.error(operation, address),
        }
    }

    pub(super) async fn logs(
        &self,
        pod: &PodRef,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        const OPERATION: &str = "read the container's log";
        // A log that cannot be read is a gap.
        let error = |failure: Failure| failure.about_pod().error(OPERATION, &self.client.address);
        if !self.pod(pod).await.map_err(error)?.keeps_output() {
            return Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason: "the run has no backstop, so its output is not kept".into(),
            });
        }
        let from = match request.tail {
            Some(lines) => output::From::Tail(lines),
            None => output::From::Start,
        };
        let follow = request.follow && self.is_started(pod).await?;
        match output::open(&self.client, pod, from, follow, self.process(pod)).await {
            Ok(output) => Ok(output),
            Err(failure) => Err(self.output_error(pod, failure.about_pod(), OPERATION).await),
        }
    }

    /// Returns true if the command has started. The log of a command that has not started is empty.
    async fn is_started(&self, pod: &PodRef) -> Result<bool, RuntimeError> {
        const OPERATION: &str = "read the container's log";
        if self.process(pod).get().started_at.is_some() {
            return Ok(true);
        }
        match self.report(pod).await {
            Ok(report) => Ok(report.started_at.is_some()),
            Err(failure) => Err(self.unless_over(pod, failure, OPERATION).await),
        }
    }
}
