//! The settings of a connection to a cluster, and of all of its pods.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

/// The limit of a spool, in bytes.
const DEFAULT_SPOOL_LIMIT: u64 = 4 << 30;

/// The settings that all pods of a runtime have.
#[derive(Debug, Clone)]
pub(super) struct PodOptions {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) node_selector: BTreeMap<String, String>,
    pub(super) service_account: Option<String>,
    pub(super) image_pull_secrets: Vec<String>,
    pub(super) tolerations: Vec<Value>,
    pub(super) resources: Option<Value>,
    pub(super) helper_resources: Value,
    pub(super) security_context: Option<Value>,
    pub(super) patch: Option<Value>,
    pub(super) helper_image: Option<String>,
    pub(super) arch: &'static str,
    pub(super) spool_limit: u64,
    /// The pods have no helper, and their output is read from the kubelet's log.
    pub(super) plain: bool,
}

impl Default for PodOptions {
    fn default() -> Self {
        Self {
            labels: BTreeMap::new(),
            node_selector: BTreeMap::new(),
            service_account: None,
            image_pull_secrets: Vec::new(),
            tolerations: Vec::new(),
            resources: None,
            helper_resources: serde_json::json!({}),
            security_context: None,
            patch: None,
            helper_image: None,
            arch: "amd64",
            spool_limit: DEFAULT_SPOOL_LIMIT,
            plain: false,
        }
    }
}

/// The cluster to connect to: see [`Kubernetes::connect_with`](super::Kubernetes::connect_with).
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) context: Option<String>,
    pub(super) namespace: Option<String>,
}

impl ClusterOptions {
    /// Sets the path of the kubeconfig. Default: `KUBECONFIG`, else `~/.kube/config`.
    ///
    /// A program that runs in a pod then uses the kubeconfig as well, and not its service account.
    pub fn kubeconfig(mut self, path: impl Into<PathBuf>) -> Self {
        self.kubeconfig = Some(path.into());
        self
    }

    /// Sets the context of the kubeconfig. Default: its current context.
    ///
    /// A program that runs in a pod then uses the kubeconfig as well, and not its service account.
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.context = Some(context.into());
        self
    }

    /// Sets the namespace of the pods. Default: that of the context or of the service account, else
    /// `default`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }
}
