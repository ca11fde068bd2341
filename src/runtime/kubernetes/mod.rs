//! Pods of a Kubernetes cluster.
//!
//! [`Kubernetes`] is a [`Runtime`]: it runs each [`RunSpec`] in a pod. The cluster schedules the
//! pod, and moat reads its output.
//!
//! ```no_run
//! use moat::runtime::kubernetes::Kubernetes;
//! use moat::{Manager, RunSpec};
//!
//! # async fn run() -> moat::Result<()> {
//! let cluster = Kubernetes::connect().await?;
//! let manager = Manager::open("runs", cluster).await?;
//! let run = manager.start(RunSpec::new("busybox:1.36").cmd(["date"])).await?;
//! # let _ = run;
//! # Ok(())
//! # }
//! ```
//!
//! # How output stays whole
//!
//! A kubelet rotates its log, and an attachment can miss the start or the end of the output. moat
//! uses neither. A pod has two containers of the same image. In `main`,
//! a small static program starts the command once moat has attached. In `moat`, the same program
//! reads the output of the command from pipes or a terminal, and keeps it in a spool with the exact bytes of each
//! stream. moat reads the spool by offset. Restarts of the API server, the kubelet, containerd or
//! this process therefore lose and duplicate nothing.
//!
//! The program comes with moat. A ConfigMap of the namespace, named by the program's digest, brings
//! it into the pods. The image of a run needs no shell. Where the program is not allowed,
//! [`Kubernetes::without_helper`] reads the kubelet's log.
//!
//! # The command
//!
//! A spec needs a command, because the API does not return the command of an image. As in a pod, the
//! command replaces the image's entrypoint. The values of the environment reach the command
//! through the collector, so they are in no object of the cluster.
//!
//! # Limits
//!
//! Output that was not read is lost with its node or its pod, and the run has a gap. The command is
//! not process 1 of its container. Files cannot be copied out of a container that has ended.

mod api;
mod commands;
mod connect;
mod container;
mod find;
mod options;
mod output;
mod place;
mod plain;
mod process;
mod protocol;
mod shared;
mod template;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use self::api::client::Client;
use self::container::reference;
pub use self::options::ClusterOptions;
use self::options::PodOptions;
pub use self::plain::PlainPods;
use self::shared::Shared;
use super::{
    Archive, AttachedOutput, Capabilities, Connection, Continuity, CreateRequest, Created,
    EngineInfo, ExecId, ExecInspection, InputWriter, Inspection, LabeledContainer, LogsRequest,
    OutputStream, OwnedContainer, Runtime, StartedExec, WaitStatus, signal,
};
use crate::error::{Result, RuntimeError, chain};
use crate::outcome::Usage;
use crate::spec::{ContainerId, ExecSpec, InvalidSpec, RootId, RunSpec, WindowSize};

/// A connection to a Kubernetes cluster, and the settings of its pods.
///
/// Clones share one connection and one watch for each root.
#[derive(Clone)]
pub struct Kubernetes {
    shared: Arc<Shared>,
    options: PodOptions,
    patience: Duration,
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubernetes")
            .field("address", &self.shared.client.address)
            .field("namespace", &self.shared.client.namespace)
            .finish_non_exhaustive()
    }
}

/// The address of the API server, and the namespace.
impl fmt::Display for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Client {
            address, namespace, ..
        } = &self.shared.client;
        write!(f, "Kubernetes at {address}, namespace {namespace}")
    }
}

impl Kubernetes {
    /// Connects to the cluster of kubectl's current context, or of this program's own pod.
    ///
    /// The context is that of `KUBECONFIG`, else of `~/.kube/config`. Without a kubeconfig, the
    /// program must run in a pod, and its service account is used.
    /// [`ClusterOptions`] selects another kubeconfig or context.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Unavailable`]: there is no configuration, or the API server did not answer
    /// within 30 s.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect on the cluster.
    pub async fn connect() -> Result<Self> {
        Self::connect_with(ClusterOptions::default()).await
    }

    /// Connects with explicit parameters.
    ///
    /// # Errors
    ///
    /// The errors of [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect on the cluster.
    pub async fn connect_with(options: ClusterOptions) -> Result<Self> {
        let invalid = |reason: String| RuntimeError::Unavailable {
            address: "the Kubernetes cluster".into(),
            reason,
        };
        let mut config = config(&options).await.map_err(invalid)?;
        // A repeated request is moat's decision, and a watch may be silent for minutes.
        config.default_retry = false;
        config.read_timeout = None;
        config.write_timeout = None;
        let address = config.cluster_url.to_string();
        let namespace = options
            .namespace
            .unwrap_or_else(|| config.default_namespace.clone());
        let kube = kube::Client::try_from(config).map_err(|error| invalid(chain(&error)))?;
        let client = Client::new(kube, address, namespace);
        let shared = Shared::new(client);
        shared.version().await.map_err(|failure| {
            failure.error("connect to the API server", &shared.client.address)
        })?;
        Ok(Self {
            shared: Arc::new(shared),
            options: PodOptions::default(),
            patience: place::DEFAULT_PATIENCE,
        })
    }

    /// Adds a label to all pods.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.labels.insert(name.into(), value.into());
        self
    }

    /// Adds a label that the nodes of all pods must have.
    pub fn node_selector(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.node_selector.insert(name.into(), value.into());
        self
    }

    /// Sets the architecture of pods whose spec has no platform: `amd64` or `arm64`.
    ///
    /// Default: `amd64`. The pods run on nodes of this architecture only.
    ///
    /// # Panics
    ///
    /// For another architecture, because moat has no helper for it.
    pub fn arch(mut self, arch: &str) -> Self {
        let known = template::check::arch(&format!("linux/{arch}"));
        self.options.arch = known.unwrap_or_else(|| panic!("moat has no helper for {arch}"));
        self
    }

    /// Sets the service account of all pods, and mounts its token.
    ///
    /// Default: the namespace's default account, without a token.
    pub fn service_account(mut self, name: impl Into<String>) -> Self {
        self.options.service_account = Some(name.into());
        self
    }

    /// Adds a secret of the namespace that has the credentials of a registry.
    pub fn image_pull_secret(mut self, name: impl Into<String>) -> Self {
        self.options.image_pull_secrets.push(name.into());
        self
    }

    /// Adds a toleration, as in the API of Kubernetes.
    pub fn toleration(mut self, toleration: Value) -> Self {
        self.options.tolerations.push(toleration);
        self
    }

    /// Sets the resources of the command's container, as in the API of Kubernetes.
    ///
    /// The memory and CPU limits of a spec replace those limits.
    pub fn resources(mut self, resources: Value) -> Self {
        self.options.resources = Some(resources);
        self
    }

    /// Sets the resources of the collector's container. Default: none.
    ///
    /// The collector has used 1.1 MiB after 97 MB of output. The limit also counts the cached pages
    /// of the spool.
    pub fn helper_resources(mut self, resources: Value) -> Self {
        self.options.helper_resources = resources;
        self
    }

    /// Sets the security context of all containers, as in the API of Kubernetes.
    pub fn security_context(mut self, context: Value) -> Self {
        self.options.security_context = Some(context);
        self
    }

    /// Merges a patch into all pods: objects by key, and lists of named objects by name.
    ///
    /// [`RunSpec::engine_patch`] is merged afterwards, for one run.
    ///
    /// # Errors
    ///
    /// [`InvalidSpec`]: the patch breaks what moat relies on, such as `restartPolicy`.
    pub fn patch(mut self, patch: Value) -> Result<Self, InvalidSpec> {
        template::check::check_patch("patch", &patch)?;
        self.options.patch = Some(patch);
        Ok(self)
    }

    /// Uses the helper from an image instead of the ConfigMap.
    ///
    /// The image has the program at `/moat-helper`. moat then needs no rights on ConfigMaps.
    pub fn helper_image(mut self, image: impl Into<String>) -> Self {
        self.options.helper_image = Some(image.into());
        self
    }

    /// Runs the pods without the helper, for a user who may not use `pods/exec`, or for a cluster
    /// that refuses foreign programs.
    ///
    /// The output then comes from the kubelet's log: see [`PlainPods`] for the limitations. No run is
    /// proven complete.
    pub fn without_helper(self) -> PlainPods {
        PlainPods::new(self)
    }

    /// Sets the maximum size of a spool, in bytes. Default: 4 GiB.
    ///
    /// At the limit, output that moat has read is freed, except for the last 64 MiB. If there is
    /// none, the command blocks, as on a full pipe.
    pub fn spool_limit(mut self, bytes: u64) -> Self {
        self.options.spool_limit = bytes;
        self
    }

    /// Sets the time for which a pod may wait for the same reason, such as an image that cannot be
    /// pulled. Default: 60 s.
    ///
    /// Kubernetes retries forever. After this time, moat removes the pod, and the start fails.
    /// `ContainerCreating` and `PodInitializing` have no limit.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// Reads the configuration of the cluster.
async fn config(options: &ClusterOptions) -> Result<Config, String> {
    let selected = KubeConfigOptions {
        context: options.context.clone(),
        ..KubeConfigOptions::default()
    };
    let read = match (&options.kubeconfig, &options.context) {
        (Some(path), _) => {
            let file = Kubeconfig::read_from(path)
                .map_err(|error| format!("kubeconfig {}: {}", path.display(), chain(&error)))?;
            Config::from_custom_kubeconfig(file, &selected).await
        }
        (None, Some(_)) => Config::from_kubeconfig(&selected).await,
        (None, None) => return Config::infer().await.map_err(|error| chain(&error)),
    };
    read.map_err(|error| chain(&error))
}

#[async_trait]
impl Runtime for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
            .with_attach_before_start()
            .with_attach_keepalive()
            .with_logs()
            .with_stdin()
            .with_stdin_reattach()
            .with_exec()
            .with_connect()
    }

    async fn engine(&self) -> Result<EngineInfo, RuntimeError> {
        self.shared.engine().await
    }

    fn validate(&self, spec: &RunSpec) -> Result<(), InvalidSpec> {
        template::check::check(spec)
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
        let output = self
            .shared
            .output(&pod, output::From::Start, OPERATION)
            .await?;
        Ok(AttachedOutput::new(output).with_end_marker())
    }

    async fn attach_running(
        &self,
        container: &ContainerId,
        _tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        const OPERATION: &str = "attach to the container";
        let pod = reference(container, OPERATION)?;
        self.shared.output(&pod, output::From::Now, OPERATION).await
    }

    async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let pod = reference(container, "start the container")?;
        self.shared.start(&pod).await
    }

    async fn wait(&self, container: &ContainerId) -> Result<WaitStatus, RuntimeError> {
        const OPERATION: &str = "wait for the container";
        let pod = reference(container, OPERATION)?;
        self.shared
            .wait(&pod)
            .await
            .map_err(self.shared.error(OPERATION))
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Inspection, RuntimeError> {
        const OPERATION: &str = "inspect the container";
        let pod = reference(container, OPERATION)?;
        self.shared
            .inspect(&pod)
            .await
            .map_err(self.shared.error(OPERATION))
    }

    async fn continuity(&self, container: &ContainerId) -> Result<Continuity, RuntimeError> {
        // A collector is never restarted, and nothing else reads the output.
        reference(container, "inspect the container").map(|_| Continuity::Unbroken)
    }

    async fn stats(&self, container: &ContainerId) -> Result<Usage, RuntimeError> {
        let pod = reference(container, "read the container's resource usage")?;
        self.shared.stats(&pod).await
    }

    async fn logs(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        let pod = reference(container, "read the container's log")?;
        self.shared.logs(&pod, request).await
    }

    async fn stdin(&self, container: &ContainerId) -> Result<InputWriter, RuntimeError> {
        let pod = reference(container, "attach to the container's input")?;
        self.shared.stdin(&pod).await
    }

    async fn resize(&self, container: &ContainerId, size: WindowSize) -> Result<(), RuntimeError> {
        let pod = reference(container, "resize the terminal")?;
        self.shared.resize(&pod, size.columns, size.rows).await
    }

    async fn exec(
        &self,
        container: &ContainerId,
        spec: &ExecSpec,
    ) -> Result<StartedExec, RuntimeError> {
        let pod = reference(container, "start the exec")?;
        self.shared.exec(&pod, spec).await
    }

    async fn exec_inspect(&self, exec: &ExecId) -> Result<ExecInspection, RuntimeError> {
        self.shared.execs.inspect(exec)
    }

    async fn exec_resize(&self, exec: &ExecId, size: WindowSize) -> Result<(), RuntimeError> {
        self.shared.execs.resize(exec, size).await
    }

    async fn signal(&self, container: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        const OPERATION: &str = "signal the container";
        let pod = reference(container, OPERATION)?;
        let number = signal::number(signal).ok_or_else(|| RuntimeError::Rejected {
            operation: OPERATION,
            reason: format!("{signal:?} is not a signal"),
        })?;
        self.shared.signal(&pod, number).await
    }

    async fn remove(&self, container: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        let pod = reference(container, "remove the container")?;
        self.shared.remove(&pod, force).await
    }

    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError> {
        self.shared.find(root, false).await
    }

    async fn find_all(&self) -> Result<Vec<LabeledContainer>, RuntimeError> {
        self.shared.find_all(false).await
    }

    async fn copy_out(&self, container: &ContainerId, path: &str) -> Result<Archive, RuntimeError> {
        let pod = reference(container, "copy files out of the container")?;
        self.shared.copy_out(&pod, path).await
    }

    async fn copy_in(
        &self,
        container: &ContainerId,
        path: &str,
        archive: Archive,
    ) -> Result<(), RuntimeError> {
        let pod = reference(container, "copy files into the container")?;
        self.shared.copy_in(&pod, path, archive).await
    }

    async fn connect(
        &self,
        container: &ContainerId,
        port: u16,
    ) -> Result<Connection, RuntimeError> {
        let pod = reference(container, "connect to the port")?;
        self.shared.connect(&pod, port).await
    }
}
