//! Pods that never start.

use std::time::Duration;

use moat::runtime::RuntimeError;
use moat::spec::Pull;
use moat::{Error, Kubernetes, Manager, RunSpec};
use serde_json::{Value, json};

use crate::cluster::{self, Object, connect, connect_in};
use crate::stage::{Stage, read};

testkit::trials! {
    crate::on_cluster:
        a_missing_image_is_an_error,
        an_invalid_image_name_is_an_error_at_once,
        an_image_that_must_not_be_pulled_is_an_error_at_once,
        a_missing_priority_class_is_an_error,
        a_missing_runtime_class_is_an_error;
    crate::on_local_cluster:
        an_exhausted_quota_is_an_error,
        a_quota_that_needs_requests_is_an_error,
        an_exceeded_limit_range_is_an_error,
        a_missing_namespace_is_an_error,
}

/// Starts a run that the cluster never starts. Returns the error, after a check of the audit.
async fn refused(stage: &Stage, cluster: Kubernetes, spec: RunSpec) -> RuntimeError {
    let manager = Manager::open(stage.root(), cluster).await.unwrap();
    let error = manager.start(spec).await.unwrap_err();
    println!("{}", error.chain());
    let Error::NotStarted { outcome, source } = error else {
        panic!("{error:?}");
    };
    assert!(outcome.ending.never_started(), "{outcome}");
    let audit = read(&outcome);
    assert!(audit.streams.is_empty(), "{:?}", audit.streams);
    assert_eq!(audit.verdict(), "complete", "{}", audit.end);
    assert_eq!(audit.evidence(), "never_started");
    // The audit names the cause, too.
    let reason = audit.end["exit"]["reason"].as_str().unwrap();
    let cause = source.to_string();
    assert!(reason.contains(&cause), "{cause:?} is not in {reason:?}");
    source
}

#[track_caller]
fn assert_names(error: &RuntimeError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[track_caller]
fn assert_image(error: &RuntimeError, name: &str, cause: &str) {
    let RuntimeError::NoSuchImage { image, reason } = error else {
        panic!("{error:?}");
    };
    assert_eq!(image, name);
    assert!(reason.starts_with(cause), "{reason:?}");
}

async fn a_missing_image_is_an_error(stage: &Stage) {
    // No registry listens there.
    let name = "127.0.0.1:9/moat/none:1";
    let cluster = connect().await.patience(Duration::from_secs(10));
    let spec = RunSpec::new(name).cmd(["/never"]).network("host");
    let error = refused(stage, cluster, spec).await;
    assert_image(&error, name, "ErrImagePull");
    assert_names(&error, &["connection refused"]);
    stage.is_clean().await;
}

async fn an_invalid_image_name_is_an_error_at_once(stage: &Stage) {
    let name = "No:Such:Image";
    let cluster = connect().await.patience(Duration::from_secs(3600));
    let spec = RunSpec::new(name).cmd(["/never"]).network("host");
    let error = refused(stage, cluster, spec).await;
    assert_image(&error, name, "InvalidImageName");
    stage.is_clean().await;
}

async fn an_image_that_must_not_be_pulled_is_an_error_at_once(stage: &Stage) {
    let name = "moat-test-none:1";
    let cluster = connect().await.patience(Duration::from_secs(3600));
    let spec = RunSpec::new(name).cmd(["/never"]).network("host");
    let error = refused(stage, cluster, spec.pull(Pull::Never)).await;
    assert_image(&error, name, "ErrImageNeverPull");
    stage.is_clean().await;
}

async fn a_missing_priority_class_is_an_error(stage: &Stage) {
    let patch = json!({"spec": {"priorityClassName": "moat-none"}});
    let cluster = connect().await.patch(patch).unwrap();
    let error = refused(stage, cluster, stage.spec("echo never")).await;
    assert_names(&error, &["create the container", "moat-none"]);
    stage.is_clean().await;
}

async fn a_missing_runtime_class_is_an_error(stage: &Stage) {
    let spec = stage.spec("echo never").oci_runtime("moat-none");
    let error = refused(stage, connect().await, spec).await;
    assert_names(&error, &["create the container", "moat-none"]);
    stage.is_clean().await;
}

/// Refuses a run in a namespace with this object.
async fn refused_by(stage: &Stage, kind: &str, spec: &Value, run: RunSpec) -> RuntimeError {
    let namespace = Object::namespace();
    let object = json!({
        "apiVersion": "v1", "kind": kind, "spec": spec,
        "metadata": {"name": "moat-limits", "namespace": namespace.name},
    });
    cluster::create(&[], &object);
    if kind == "ResourceQuota" {
        // Nothing is refused before the controller has counted.
        testkit::deadline::eventually(60, "the quota", async || {
            let path = ["get", "quota", "moat-limits", "-n", &namespace.name];
            let hard = cluster::admin(&[&path[..], &["-o", "jsonpath={.status.hard}"]].concat());
            (!hard.is_empty()).then_some(())
        })
        .await;
    }
    let cluster = connect_in("moat", &namespace.name).await;
    let error = refused(stage, cluster, run).await;
    let left = cluster::pods_in(&namespace.name, &stage.root_id());
    assert!(left.is_empty(), "{left:?}");
    error
}

async fn an_exhausted_quota_is_an_error(stage: &Stage) {
    let quota = json!({"hard": {"pods": "0"}});
    let error = refused_by(stage, "ResourceQuota", &quota, stage.spec("echo never")).await;
    assert_names(&error, &["exceeded quota", "moat-limits"]);
}

async fn a_quota_that_needs_requests_is_an_error(stage: &Stage) {
    let quota = json!({"hard": {"requests.cpu": "4"}});
    let error = refused_by(stage, "ResourceQuota", &quota, stage.spec("echo never")).await;
    assert_names(&error, &["failed quota", "must specify requests.cpu"]);
}

async fn an_exceeded_limit_range_is_an_error(stage: &Stage) {
    let range = json!({"limits": [{"type": "Container", "max": {"memory": "32Mi"}}]});
    let spec = stage.spec("echo never").memory(64 << 20);
    let error = refused_by(stage, "LimitRange", &range, spec).await;
    assert_names(&error, &["maximum memory usage per Container is 32Mi"]);
}

async fn a_missing_namespace_is_an_error(stage: &Stage) {
    let name = cluster::unique("none");
    let cluster = connect_in("admin", &name).await;
    let error = refused(stage, cluster, stage.spec("echo never")).await;
    assert_names(&error, &[&name, "not found"]);
}
