//! Pods without the helper.

mod log;
mod state;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::container::reference;
use super::options::PodOptions;
use super::shared::Shared;
use super::{Kubernetes, template};
use crate::error::{Result, RuntimeError};
use crate::runtime::{
    Archive, AttachedOutput, Capabilities, ContainerStatus, Continuity, CreateRequest, Created,
    EngineInfo, Inspection, LabeledContainer, LogsRequest, OutputStream, OwnedContainer, Runtime,
    WaitStatus, signal, unsupported,
};
use crate::spec::{ContainerId, InvalidSpec, RootId, RunSpec};

pub(super) use self::state::{SIGTERM, inspection};

/// Pods of a Kubernetes cluster that run without moat's helper, made by
/// [`Kubernetes::without_helper`].
///
/// The output of such a pod comes from the kubelet's log. The kubelet rotates this log, so that a
/// slow reader loses output without a trace. The log merges standard output and standard error, may
/// change bytes, and is gone soon after the pod is deleted. Each run therefore has the one stream
/// [`Stream::Merged`](crate::outcome::Stream::Merged) and a possible gap,
/// [`GapReason::LogRotated`](crate::audit::GapReason::LogRotated). Once its pod exists, the verdict
/// of a run is never [`Verdict::Complete`](crate::outcome::Verdict::Complete).
///
/// A command still starts only after [`Runtime::start`]: its container waits for a Secret, which
/// holds its environment. A stop deletes the pod with the grace period of the spec. A finalizer
/// then keeps the exit code until moat removes the pod.
///
/// There is no input, terminal, exec, copy, port or resource usage. The only signals are `SIGTERM`,
/// and `SIGKILL` as a deletion with a grace period of 1 s. If no manager returns, nothing enforces
/// a time limit.
#[derive(Clone)]
pub struct PlainPods {
    shared: Arc<Shared>,
    options: PodOptions,
    patience: Duration,
}

impl PlainPods {
    pub(super) fn new(cluster: Kubernetes) -> Self {
        let options = PodOptions {
            plain: true,
            ..cluster.options
        };
        Self {
            // Plain pods need other rights, so that these are checked again.
            shared: Arc::new(Shared::new(cluster.shared.client.clone())),
            options,
            patience: cluster.patience,
        }
    }
}

impl fmt::Debug for PlainPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainPods")
            .field("address", &self.shared.client.address)
            .field("namespace", &self.shared.client.namespace)
            .finish_non_exhaustive()
    }
}

/// The address of the API server, and the namespace.
impl fmt::Display for PlainPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let client = &self.shared.client;
        write!(
            f,
            "Kubernetes at {}, namespace {}, without the helper",
            client.address, client.namespace
        )
    }
}

#[async_trait]
impl Runtime for PlainPods {
    fn name(&self) -> &'static str {
        "kubernetes-plain"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
            .with_attach_before_start()
            .with_logs()
            .with_log_rotates()
    }

    async fn engine(&self) -> Result<EngineInfo, RuntimeError> {
        self.shared.engine().await
    }

    fn validate(&self, spec: &RunSpec) -> Result<(), InvalidSpec> {
        template::check::check_plain(spec)
    }

    async fn prepare(&self, spec: &RunSpec) -> Result<(), RuntimeError> {
        self.shared.prepare(spec, &self.options).await
    }

    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
        self.shared.create(request, &self.options).await
    }

    async fn place(&self, container: &ContainerId, spec: &RunSpec) -> Result<(), RuntimeError> {
        let pod = reference(container, "place the pod")?;
        self.shared.place(&pod, spec, self.patience).await
    }

    async fn attach(
        &self,
        container: &ContainerId,
        _tty: bool,
    ) -> Result<AttachedOutput, RuntimeError> {
        const OPERATION: &str = "attach to the container";
        let pod = reference(container, OPERATION)?;
        let found = self.shared.pod(&pod).await;
        found.map_err(self.shared.error(OPERATION))?;
        let output = log::from_start(Arc::clone(&self.shared), pod);
        Ok(AttachedOutput::new(output))
    }

    async fn attach_running(
        &self,
        container: &ContainerId,
        _tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        const OPERATION: &str = "attach to the container";
        let pod = reference(container, OPERATION)?;
        let found = self.shared.pod(&pod).await;
        let found = found.map_err(self.shared.error(OPERATION))?;
        log::open(&self.shared, &found, log::LogRange::New).await
    }

    async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let pod = reference(container, "start the container")?;
        self.shared.start_plain(&pod).await
    }

    async fn wait(&self, container: &ContainerId) -> Result<WaitStatus, RuntimeError> {
        const OPERATION: &str = "wait for the container";
        let pod = reference(container, OPERATION)?;
        let ended = self.shared.wait_plain(&pod).await;
        ended.map_err(self.shared.error(OPERATION))
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Inspection, RuntimeError> {
        const OPERATION: &str = "inspect the container";
        let pod = reference(container, OPERATION)?;
        let found = self.shared.pod(&pod).await;
        found
            .map(|found| inspection(&found))
            .map_err(self.shared.error(OPERATION))
    }

    async fn continuity(&self, container: &ContainerId) -> Result<Continuity, RuntimeError> {
        const OPERATION: &str = "inspect the container";
        let pod = reference(container, OPERATION)?;
        let found = self
            .shared
            .pod(&pod)
            .await
            .map_err(self.shared.error(OPERATION))?;
        // The gap that each run has already covers output that a restart loses.
        Ok(match inspection(&found).status {
            // The kubelet reports a start late.
            ContainerStatus::Created if found.may_start() => Continuity::Unknown,
            _ => Continuity::Unbroken,
        })
    }

    async fn logs(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        let pod = reference(container, "read the container's log")?;
        log::read(&self.shared, &pod, request).await
    }

    async fn signal(&self, container: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        let pod = reference(container, "signal the container")?;
        self.shared.end_plain(&pod, signal::number(signal)).await
    }

    async fn remove(&self, container: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        let pod = reference(container, "remove the container")?;
        self.shared.remove(&pod, force).await
    }

    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError> {
        self.shared.find(root, true).await
    }

    async fn find_all(&self) -> Result<Vec<LabeledContainer>, RuntimeError> {
        self.shared.find_all(true).await
    }

    async fn copy_out(&self, _: &ContainerId, _: &str) -> Result<Archive, RuntimeError> {
        Err(unsupported(self.name(), "copy files out of the container"))
    }

    async fn copy_in(&self, _: &ContainerId, _: &str, _: Archive) -> Result<(), RuntimeError> {
        Err(unsupported(self.name(), "copy files into the container"))
    }
}
