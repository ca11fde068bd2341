//! The cluster and its parts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use bollard::{API_DEFAULT_VERSION, Docker};
use moat::Kubernetes;
use moat::runtime::kubernetes::ClusterOptions;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
pub use testkit::cluster::{
    REMOVAL_TIMEOUT, context, kubectl, kubectl_as, local, need, pods, sweep,
};

/// The address of the Docker that has the containers of the pods.
pub const DOCKER: &str = "unix:///var/run/docker.sock";

/// Connects to the Docker that has the containers of the pods.
pub fn docker() -> Docker {
    Docker::connect_with_unix(DOCKER, 30, API_DEFAULT_VERSION).unwrap()
}

/// Connects to the cluster in the context of the tests.
pub async fn connect() -> Kubernetes {
    connect_with(None).await
}

/// The same with another kubeconfig.
pub async fn connect_with(kubeconfig: Option<PathBuf>) -> Kubernetes {
    let mut options = ClusterOptions::default().context(context());
    if let Some(path) = kubeconfig {
        options = options.kubeconfig(path);
    }
    Kubernetes::connect_with(options).await.unwrap()
}

/// Connects to the cluster in another context.
pub async fn connect_as(context: &str) -> Kubernetes {
    let options = ClusterOptions::default().context(context);
    Kubernetes::connect_with(options).await.unwrap()
}

/// Connects to a namespace of the cluster in another context.
pub async fn connect_in(context: &str, namespace: &str) -> Kubernetes {
    let options = ClusterOptions::default();
    let options = options.context(context).namespace(namespace);
    Kubernetes::connect_with(options).await.unwrap()
}

/// Runs kubectl with every right, and returns its output.
#[track_caller]
pub fn admin(arguments: &[&str]) -> String {
    kubectl_as("admin", arguments)
}

/// Runs `kubectl create` for an object with every right, and returns its output.
#[track_caller]
pub fn create(arguments: &[&str], object: &Value) -> String {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), object.to_string()).unwrap();
    let path = file.path().to_str().expect("a path in UTF-8");
    admin(&[&["create", "-f", path], arguments].concat())
}

/// Returns the pods of a root in a namespace.
pub fn pods_in(namespace: &str, root: &str) -> Vec<Value> {
    let selector = format!("moat.dev/root={root}");
    let list = admin(&[
        "get", "pods", "-o", "json", "-n", namespace, "-l", &selector,
    ]);
    let mut list: Value = serde_json::from_str(&list).expect("kubectl prints JSON");
    match list["items"].take() {
        Value::Array(pods) => pods,
        other => panic!("{other}"),
    }
}

/// A name of this trial for an object of the cluster.
pub fn unique(kind: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("moat-{kind}-{}-{number}", std::process::id())
}

/// An object of the cluster. Dropped, it is deleted.
pub struct Object {
    kind: &'static str,
    pub name: String,
    namespace: Option<String>,
}

impl Object {
    /// Creates an object.
    #[track_caller]
    pub fn create(kind: &'static str, object: &Value) -> Self {
        create(&[], object);
        let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
        Self {
            kind,
            name: text("name").expect("a name"),
            namespace: text("namespace"),
        }
    }

    /// Creates a namespace in which the user of the tests has the rights that moat needs.
    #[track_caller]
    pub fn namespace() -> Self {
        let name = unique("ns");
        let namespace = Self::create(
            "namespace",
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        );
        let rule = |resource: &str, verbs: &[&str]| json!({"apiGroups": [""], "resources": [resource], "verbs": verbs});
        let mut own = rule("namespaces", &["get"]);
        own["resourceNames"] = json!([name]);
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "moat", "namespace": name},
            "rules": [
                rule("pods", &["create", "get", "list", "watch", "delete"]),
                rule("pods/exec", &["create", "get"]),
                rule("configmaps", &["create", "get"]),
                own,
            ],
        });
        let user = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "moat"});
        create(&[], &role);
        create(&[], &binding("moat", &name, &user));
        namespace
    }

    /// Deletes the object, and returns without waiting for its end.
    pub fn delete(&self) {
        let mut arguments = vec!["delete", self.kind, &self.name, "--wait=false"];
        if let Some(namespace) = &self.namespace {
            arguments.extend(["--namespace", namespace]);
        }
        arguments.extend([
            "--ignore-not-found",
            "--context",
            "admin",
            "--request-timeout",
            "20s",
        ]);
        // The cluster may be down.
        let _ = Command::new("kubectl").args(arguments).output();
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        self.delete();
    }
}

/// A binding of the role `moat` of a namespace.
pub fn binding(name: &str, namespace: &str, subject: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "moat"},
        "subjects": [subject],
    })
}

/// A part of the cluster that does not run. Dropped, it is started again.
pub struct Down(&'static str);

impl Down {
    /// Ends a part with SIGKILL.
    pub fn kill(part: &'static str) -> Self {
        control("kill", part);
        Self(part)
    }

    /// Ends a part with SIGTERM, and waits for its end.
    pub fn stop(part: &'static str) -> Self {
        control("stop", part);
        Self(part)
    }

    /// Starts the part, and returns once it answers.
    pub fn start(self) {}
}

impl Drop for Down {
    fn drop(&mut self) {
        control("start", self.0);
    }
}

fn control(action: &str, part: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engines/kubernetes");
    let output = Command::new(&script).args([action, part]).output();
    let output = output.expect("tests/engines/kubernetes runs");
    if !output.status.success() {
        let problem = format!(
            "cannot {action} {part}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        // A second panic would abort the tests.
        match std::thread::panicking() {
            true => eprintln!("{problem}"),
            false => panic!("{problem}"),
        }
    }
}
