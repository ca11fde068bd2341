//! Pods whose run or root is gone, in this namespace and in others.

use std::time::Duration;

use moat::manager::{Orphan, OrphanReason, ReapAction, ReapOptions, ReapReport, ReapedContainer};
use moat::runtime::{ContainerStatus, LabeledContainer, Runtime};
use moat::spec::RootId;
use moat::{Ending, Kubernetes, Manager, RunId, ShutdownMode};
use serde_json::{Value, json};
use testkit::deadline::eventually;
use tokio::sync::Mutex;

use crate::cluster::{connect_as, kubectl_as, pods_in};
use crate::stage::{Stage, end, read};

testkit::trials! {
    crate::on_local_cluster:
        an_orphan_is_found_and_removed,
        a_dead_root_is_reaped,
        other_namespaces_are_reaped_with_the_right_to_list,
        listing_needs_no_right_beyond_the_namespace,
}

/// Held by the trial that reaps.
static REAPING: Mutex<()> = Mutex::const_new(());

async fn an_orphan_is_found_and_removed(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager.start(stage.spec("hold")).await.unwrap();
    assert!(manager.orphans().await.unwrap().is_empty());
    let dir = run.dir().to_owned();
    drop(run);
    manager.shutdown(ShutdownMode::Leave).await;
    std::fs::remove_dir_all(dir).unwrap();
    let manager = stage.manager().await;
    manager.wait_recovery().await.unwrap();
    let orphans = manager.orphans().await.unwrap();
    let [Orphan::Container(orphan)] = &orphans[..] else {
        panic!("{orphans:?}");
    };
    assert_eq!(orphan.reason, OrphanReason::NoRun);
    assert_eq!(orphan.status, ContainerStatus::Running);
    manager.remove_orphan(&orphans[0]).await.unwrap();
    assert!(manager.orphans().await.unwrap().is_empty());
    stage.is_clean().await;
}

/// A root whose manager is gone while its run goes on, in the namespace of a context. Dropped, it
/// removes its pod.
struct Abandoned {
    stage: Stage,
    context: &'static str,
    namespace: &'static str,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        // That of the tests is swept with the stage.
        if let Some(root) = testkit::engine::root_id(&self.stage.root()) {
            let selector = format!("moat.dev/root={root}");
            let deleted = std::panic::catch_unwind(|| {
                let arguments = ["delete", "pods", "--grace-period=1", "--wait=false", "-l"];
                self.admin(&[&arguments[..], &[&selector]].concat());
            });
            drop(deleted);
        }
    }
}

impl Abandoned {
    async fn new(context: &'static str, namespace: &'static str) -> Self {
        let stage = Stage::new().await;
        let this = Self {
            stage,
            context,
            namespace,
        };
        let manager = this.open().await;
        let limit = Duration::from_secs(3600);
        let spec = this.stage.spec("echo ready + hold").time_limit(limit);
        let spec = spec.id(RunId::new("abandoned").unwrap());
        manager.start(spec).await.unwrap();
        this.stage.audited("abandoned", "ready").await;
        manager.shutdown(ShutdownMode::Leave).await;
        this
    }

    async fn open(&self) -> Manager {
        let cluster = connect_as(self.context).await;
        Manager::open(self.stage.root(), cluster).await.unwrap()
    }

    fn admin(&self, arguments: &[&str]) -> String {
        kubectl_as("admin", &[&["-n", self.namespace], arguments].concat())
    }

    fn root(&self) -> RootId {
        RootId::try_from(self.stage.root_id()).unwrap()
    }

    fn pods(&self) -> Vec<Value> {
        pods_in(self.namespace, &self.stage.root_id())
    }

    /// Moves the deadline of the pod into the past.
    fn expire(&self, ago: Duration) {
        let deadline = moat::timestamp::Timestamp::now().saturating_sub(ago);
        let annotation = format!("moat.dev/deadline={deadline}");
        let pod = &self.pods()[0]["metadata"]["name"];
        let arguments = ["annotate", "--overwrite", "pod", pod.as_str().unwrap()];
        self.admin(&[&arguments[..], &[&annotation]].concat());
    }

    /// Returns what `runtime` lists of the root.
    async fn listed(&self, runtime: &Kubernetes) -> Option<LabeledContainer> {
        let mut all = runtime.find_all().await.unwrap().into_iter();
        all.find(|found| found.root == self.root())
    }

    /// Returns what was reaped of the root.
    fn reaped(&self, all: ReapReport) -> Option<ReapedContainer> {
        all.containers
            .into_iter()
            .find(|reaped| reaped.root == self.root())
    }

    /// Reaps until something of the root is reaped: a collector that does not answer within 10 s has
    /// a later deadline.
    async fn comes_to_be_reaped(
        &self,
        options: ReapOptions,
        runtime: &Kubernetes,
    ) -> ReapedContainer {
        eventually(120, &format!("{options:?} reaps the pod"), async || {
            self.reaped(options.run(runtime, None).await.unwrap())
        })
        .await
    }

    /// Lets `runtime` kill the command and remove the pod, and checks the audit afterwards.
    async fn is_reaped_by(&self, runtime: &Kubernetes) {
        let listed = self.listed(runtime).await.expect("the pod is listed");
        let id = listed.container.as_str();
        assert!(id.starts_with(&format!("{}/", self.namespace)), "{id}");
        assert_eq!(listed.status, ContainerStatus::Running);
        let minute = Duration::from_secs(60);
        let kill = ReapOptions::new().stop_after(minute);
        // It reaps the overdue pods of other trials, too.
        let _alone = REAPING.lock().await;
        let reaped = kill.run(runtime, None).await.unwrap();
        assert!(self.reaped(reaped).is_none(), "it is not past its deadline");

        self.expire(Duration::from_secs(7200));
        self.comes_to_be_reaped(kill.dry_run(true), runtime).await;
        let reaped = self.comes_to_be_reaped(kill, runtime).await;
        let action = &reaped.action;
        assert!(matches!(action, ReapAction::Stopped), "{action:?}");
        eventually(60, "the end of the command", async || {
            let listed = self.listed(runtime).await.expect("the pod stays");
            (listed.status == ContainerStatus::Ended).then_some(())
        })
        .await;

        let remove = kill.remove_after(minute);
        let reaped = self.comes_to_be_reaped(remove, runtime).await;
        let action = &reaped.action;
        assert!(matches!(action, ReapAction::Removed), "{action:?}");
        assert!(self.pods().is_empty(), "{:?}", self.pods());
        assert!(self.listed(runtime).await.is_none());

        let manager = self.open().await;
        manager.wait_recovery().await.unwrap();
        let id = RunId::new("abandoned").unwrap();
        let outcome = end(&manager.get(&id).await.unwrap()).await;
        assert!(
            matches!(outcome.ending, Ending::Removed { .. }),
            "{outcome}"
        );
        let audit = read(&outcome);
        assert_eq!(audit.verdict(), "gap");
        assert_eq!(audit.stream("stdout"), b"ready\n");
    }
}

async fn a_dead_root_is_reaped(_: &Stage) {
    let abandoned = Abandoned::new("moat", "default").await;
    abandoned.is_reaped_by(&connect_as("moat").await).await;
}

async fn listing_needs_no_right_beyond_the_namespace(_: &Stage) {
    let (here, there) = (
        Abandoned::new("moat", "default").await,
        Abandoned::new("moat-tests", "moat-tests").await,
    );
    let moat = connect_as("moat").await;
    assert!(here.listed(&moat).await.is_some());
    assert!(there.listed(&moat).await.is_none());
    let admin = connect_as("admin").await;
    assert!(here.listed(&admin).await.is_some());
    // The administrator has a namespace, too, and reaps in all of them.
    there.is_reaped_by(&admin).await;
}

/// The right to list all pods, and moat's Role in another namespace, for the user `nobody`.
struct Rights(String);

impl Drop for Rights {
    fn drop(&mut self) {
        let removed = std::panic::catch_unwind(|| kubectl_as("admin", &["delete", "-f", &self.0]));
        drop(removed);
    }
}

impl Rights {
    fn give(stage: &Stage) -> Self {
        let name = stage.dir.path().file_name().unwrap();
        let name = name.to_str().unwrap().to_lowercase();
        let subject = json!({"kind": "User", "name": "nobody",
            "apiGroup": "rbac.authorization.k8s.io"});
        let object = |kind: &str, namespace: Option<&str>, rest: Value| {
            let mut object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
                "metadata": {"name": name, "namespace": namespace}});
            for (key, value) in rest.as_object().unwrap() {
                object[key] = value.clone();
            }
            object
        };
        let role = |kind: &str, name: &str| json!({"kind": kind, "name": name, "apiGroup": "rbac.authorization.k8s.io"});
        let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            object("ClusterRole", None, json!({"rules": rules})),
            object("ClusterRoleBinding", None, json!({
                "roleRef": role("ClusterRole", &name), "subjects": [subject]})),
            object("RoleBinding", Some("moat-tests"), json!({
                "roleRef": role("Role", "moat"), "subjects": [subject]})),
        ]});
        let path = stage.dir.path().join("rights.json");
        std::fs::write(&path, list.to_string()).unwrap();
        let path = path.to_str().unwrap().to_owned();
        kubectl_as("admin", &["apply", "-f", &path]);
        Self(path)
    }
}

async fn other_namespaces_are_reaped_with_the_right_to_list(stage: &Stage) {
    let _rights = Rights::give(stage);
    let abandoned = Abandoned::new("moat-tests", "moat-tests").await;
    let nobody = connect_as("nobody").await;
    eventually(30, "the rights", async || {
        nobody.find_all().await.is_ok().then_some(())
    })
    .await;
    abandoned.is_reaped_by(&nobody).await;
}
