//! A Kubernetes cluster: the context that `MOAT_KUBE` names, through kubectl.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::Need;

/// The time for the removal of pods. A kubelet that was restarted takes up to 100 s for each.
pub const REMOVAL_TIMEOUT: Duration = Duration::from_secs(240);
/// The time between two listings of pods.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Returns the value of an environment variable that is not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A cluster.
pub fn need() -> &'static Need {
    static NEED: OnceLock<Need> = OnceLock::new();
    NEED.get_or_init(|| match variable("MOAT_KUBE") {
        Some(_) => Ok(()),
        None => Err("MOAT_KUBE names no context of a cluster".into()),
    })
}

/// A cluster of `tests/engines/kubernetes` on this machine.
pub fn local() -> &'static Need {
    static NEED: OnceLock<Need> = OnceLock::new();
    NEED.get_or_init(|| match variable("MOAT_KUBE_DIR") {
        Some(_) => Ok(()),
        None => Err("MOAT_KUBE_DIR names no cluster of tests/engines/kubernetes".into()),
    })
}

/// The context of the tests.
///
/// # Panics
///
/// Without `MOAT_KUBE`.
pub fn context() -> String {
    variable("MOAT_KUBE").expect("MOAT_KUBE names a context")
}

/// Runs kubectl in the context of the tests, and returns its output.
///
/// # Panics
///
/// If it fails.
#[track_caller]
pub fn kubectl(arguments: &[&str]) -> String {
    kubectl_as(&context(), arguments)
}

/// Runs kubectl in another context, and returns its output.
///
/// # Panics
///
/// If it fails.
#[track_caller]
pub fn kubectl_as(context: &str, arguments: &[&str]) -> String {
    let output = run(context, arguments).expect("kubectl runs");
    assert!(
        output.status.success(),
        "kubectl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("kubectl prints text")
}

fn run(context: &str, arguments: &[&str]) -> std::io::Result<Output> {
    let mut command = Command::new("kubectl");
    command.args(["--request-timeout", "20s", "--context", context]);
    command.args(arguments).output()
}

/// Writes a kubeconfig for programs that use its current context: that of the tests.
///
/// # Panics
///
/// If the context does not exist.
pub fn write_kubeconfig(path: &Path) {
    let config = kubectl(&["config", "view", "--minify", "--flatten"]);
    fs::write(path, config).expect("the kubeconfig can be written");
}

/// Returns the pods of a root.
///
/// # Panics
///
/// If the cluster does not answer.
pub fn pods(root: &str) -> Vec<Value> {
    let list = kubectl(&["get", "pods", "-o", "json", "-l", &selector(root)]);
    let mut list: Value = serde_json::from_str(&list).expect("kubectl prints JSON");
    match list["items"].take() {
        Value::Array(pods) => pods,
        other => panic!("{other}"),
    }
}

/// Waits until the cluster has no pod of a root.
///
/// # Panics
///
/// After [`REMOVAL_TIMEOUT`].
#[track_caller]
pub fn wait_for_removal(root: &str) {
    let deadline = Instant::now() + REMOVAL_TIMEOUT;
    loop {
        let pods = pods(root);
        if pods.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "pods are left: {pods:#?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Removes the pods of a root, if the cluster answers.
pub fn sweep(root: &str) {
    let Some(context) = variable("MOAT_KUBE") else {
        return;
    };
    let selector = selector(root);
    let delete = ["delete", "pods", "--grace-period=1", "--wait=false", "-l"];
    let _ = run(&context, &[&delete[..], &[&selector]].concat());
}

fn selector(root: &str) -> String {
    format!("moat.dev/root={root}")
}
