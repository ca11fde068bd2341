//! Answers of an API server that are rare on a cluster: errors, ends of watches, broken execs.
//!
//! These trials need no cluster. The server is in this process, and a kubeconfig names it.

mod answers;
mod connecting;
mod errors;
mod output;
mod plain;
mod pods;
#[allow(dead_code, reason = "the helper uses the rest")]
#[path = "../../../src/runtime/kubernetes/protocol.rs"]
mod protocol;
mod rights;
mod server;
mod watch;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use moat::runtime::kubernetes::{ClusterOptions, Kubernetes};
use moat::runtime::{CreateRequest, Created, Runtime, RuntimeError};
use moat::spec::{ContainerId, RootId};
use moat::{RunId, RunSpec};
use serde_json::Value;
use tempfile::TempDir;
use testkit::harness::{Trial, bounded};

use self::answers::{NAMESPACE, POD, ROOT, RUN, UID};
use self::server::Server;

/// The maximum duration of a trial.
const BOUND: Duration = Duration::from_secs(60);

/// The trials that need no cluster.
pub fn trials() -> impl Iterator<Item = Trial> {
    // The longest first.
    [
        watch::trials(),
        connecting::trials(),
        errors::trials(),
        output::trials(),
        plain::trials(),
        pods::trials(),
        rights::trials(),
    ]
    .into_iter()
    .flatten()
}

/// A trial with a server of recorded answers.
fn recorded(name: &str, trial: impl AsyncFnOnce(&Recorded) + Send + 'static) -> Trial {
    let run = move || bounded(BOUND, async { trial(&Recorded::new().await).await });
    Trial::new(name, run)
}

/// A server, and a kubeconfig that names it.
struct Recorded {
    server: Server,
    dir: TempDir,
}

impl Recorded {
    async fn new() -> Self {
        let server = Server::new().await;
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config"), kubeconfig(&server.address)).unwrap();
        Self { server, dir }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    async fn connect(&self) -> Kubernetes {
        let options = ClusterOptions::default().kubeconfig(self.kubeconfig());
        Kubernetes::connect_with(options).await.unwrap()
    }

    /// Returns the grace period of each deletion, in seconds.
    fn graces(&self) -> Vec<Value> {
        let deletions = self.server.requests("delete pods").into_iter();
        let graces = deletions.map(|deletion| deletion.body["gracePeriodSeconds"].clone());
        graces.collect()
    }
}

/// Returns a kubeconfig with the current context `ci` and the context `other`.
fn kubeconfig(address: &str) -> String {
    format!(
        r#"{{
            "apiVersion": "v1", "kind": "Config", "current-context": "ci",
            "clusters": [{{"name": "recorded", "cluster": {{"server": "{address}"}}}}],
            "users": [{{"name": "moat", "user": {{"token": "recorded"}}}}],
            "contexts": [
                {{"name": "ci", "context":
                    {{"cluster": "recorded", "user": "moat", "namespace": "{NAMESPACE}"}}}},
                {{"name": "other", "context":
                    {{"cluster": "recorded", "user": "moat", "namespace": "elsewhere"}}}}
            ]
        }}"#
    )
}

/// The id of the recorded pod.
fn container() -> ContainerId {
    ContainerId::new(format!("{NAMESPACE}/{POD}/{UID}"))
}

fn spec() -> RunSpec {
    RunSpec::new("app:1").cmd(["true"])
}

/// Creates the recorded pod.
async fn create(cluster: &Kubernetes) -> Result<Created, RuntimeError> {
    let root = RootId::try_from(ROOT.to_owned()).unwrap();
    let run = RunId::new(RUN).unwrap();
    let spec = spec();
    let request = CreateRequest::new(POD, &root, &run, &spec);
    cluster.create(request).await
}

#[track_caller]
fn assert_inconclusive<T: std::fmt::Debug>(answer: Result<T, RuntimeError>) -> String {
    let error = answer.unwrap_err();
    assert!(!error.is_definitive(), "{error:?}");
    error.to_string()
}
