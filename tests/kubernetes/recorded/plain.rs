//! Pods without the helper.

use futures::StreamExt;
use moat::RunSpec;
use moat::outcome::Stream;
use moat::runtime::kubernetes::PlainPods;
use moat::runtime::{Chunk, ContainerStatus, CreateRequest, LogsRequest, Runtime, RuntimeError};
use moat::spec::RootId;
use serde_json::{Value, json};
use testkit::deadline::within;

use super::answers::{
    POD, ROOT, RUN, UID, event, list, not_found, ok, over, page, pod, reviewed, running,
    start_error, status,
};
use super::server::{Answer, Step};
use super::{Recorded, assert_inconclusive, container, spec};

testkit::trials! {
    super::recorded:
        the_rights_are_those_of_plain_pods,
        the_environment_is_in_a_secret_of_the_pod,
        a_command_that_cannot_start_is_refused,
        a_log_that_is_only_an_error_is_refused,
        an_error_after_output_breaks_the_log,
        a_log_that_is_cut_is_broken,
        a_stop_keeps_the_pod,
        a_removal_waits_for_a_late_start,
        the_pod_of_another_runtime_is_not_found,
}

/// The name of the Secret that the command waits for.
const SECRET: &str = "moat-01kb1mmyeb0d5vqk2m1s9r6x7w";

async fn connect(recorded: &Recorded) -> PlainPods {
    recorded.connect().await.without_helper()
}

/// The recorded pod as one without the helper.
fn plain(version: u64, status: Value) -> Value {
    let mut pod = pod(version, status);
    pod["metadata"]["annotations"]["moat.dev/plain"] = json!(SECRET);
    let containers = pod.pointer_mut("/status/containerStatuses");
    if let Some(containers) = containers.and_then(Value::as_array_mut) {
        containers.truncate(1);
        containers[0]["containerID"] = json!("docker://2ab7");
    }
    pod
}

/// The status of a pod whose Secret does not exist.
fn held() -> Value {
    let mut status = running();
    status["phase"] = json!("Pending");
    status["containerStatuses"][0]["state"] = json!({"waiting": {
        "reason": "CreateContainerConfigError", "message": format!("secret {SECRET:?} not found"),
    }});
    status
}

async fn the_rights_are_those_of_plain_pods(recorded: &Recorded) {
    let pods = connect(recorded).await;
    for right in ["patch pods", "get pods/log", "create secrets"] {
        let operation = format!("review {right}");
        recorded.server.answer(&operation, [reviewed(false)]);
    }
    let error = pods.prepare(&spec()).await.unwrap_err().to_string();
    let named = "to: patch pods, get pods/log, create secrets;";
    assert!(error.contains(named), "{error}");
    assert_eq!(recorded.server.count("review create pods/exec"), 0);
    assert_eq!(recorded.server.count("get configmaps"), 0);
}

async fn the_environment_is_in_a_secret_of_the_pod(recorded: &Recorded) {
    let pods = connect(recorded).await;
    let server = &recorded.server;
    server.answer("create pods", [ok(&plain(11, json!({"phase": "Pending"})))]);
    server.answer("list pods", [list(11, &[plain(11, held())])]);
    let events = vec![
        Step::Await("started"),
        event("MODIFIED", &plain(12, running())),
    ];
    server.answer("watch pods", [Answer::Watch(events)]);
    server.answer("create secrets", [ok(&json!({"kind": "Secret"}))]);
    server.answer("patch pods", [ok(&plain(11, held()))]);
    server.answer("get pods", [ok(&plain(11, held()))]);

    let root = RootId::try_from(ROOT.to_owned()).unwrap();
    let run = moat::RunId::new(RUN).unwrap();
    let spec: RunSpec = spec().env("SECRET", "value");
    let request = CreateRequest::new(POD, &root, &run, &spec);
    let created = pods.create(request).await.unwrap();
    let placed = within(20, "the placement", pods.place(&created.container, &spec));
    placed.await.unwrap();
    let body = server.requests("create pods")[0].body.clone();
    assert!(!body.to_string().contains("value\""), "{body}");
    assert_eq!(body["spec"]["containers"].as_array().unwrap().len(), 1);

    let start = pods.start(&created.container);
    let opened = async {
        // The kubelet is told of the Secret.
        testkit::deadline::eventually(20, "a patch", async || {
            (server.count("patch pods") > 0).then_some(())
        })
        .await;
        server.open("started");
    };
    let (started, ()) = tokio::join!(within(20, "the start", start), opened);
    started.unwrap();
    let secret = server.requests("create secrets")[0].body.clone();
    assert_eq!(secret["metadata"]["name"], json!(SECRET));
    assert_eq!(secret["data"], json!({"SECRET": "dmFsdWU="}));
    let owner = &secret["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["uid"]),
        (&json!("Pod"), &json!(UID))
    );
}

async fn a_command_that_cannot_start_is_refused(recorded: &Recorded) {
    let pods = connect(recorded).await;
    let server = &recorded.server;
    let failed = plain(12, start_error());
    server.answer("get pods", [ok(&failed)]);
    server.answer("list pods", [list(12, &[failed])]);
    server.answer("patch pods", [ok(&plain(12, held()))]);
    // An earlier request has created it.
    server.answer(
        "create secrets",
        [status(409, "AlreadyExists", "it exists")],
    );
    let container = container();
    let start = within(20, "the answer", pods.start(&container));
    let error = start.await.unwrap_err();
    assert!(matches!(error, RuntimeError::Rejected { .. }), "{error:?}");
    assert!(error.to_string().contains("/nope"), "{error}");
    let seen = pods.inspect(&container).await.unwrap();
    assert_eq!(seen.status, ContainerStatus::Created);
    let mut log = pods
        .logs(&container, LogsRequest::all(false))
        .await
        .unwrap();
    assert!(log.next().await.is_none());
}

async fn a_log_that_is_only_an_error_is_refused(recorded: &Recorded) {
    let pods = connect(recorded).await;
    recorded
        .server
        .answer("get pods", [ok(&plain(12, over(0)))]);
    let text = "unable to retrieve container logs for docker://2ab7";
    recorded.server.answer("get log", [page(200, text)]);
    let read = pods.logs(&container(), LogsRequest::all(false)).await;
    let error = read.err().unwrap();
    assert!(
        error.is_definitive() && error.to_string().contains(text),
        "{error:?}"
    );
}

/// Follows a log to its end, which must be inconclusive, and returns the output before it.
async fn follow(recorded: &Recorded, status: Value, log: Answer) -> Vec<Chunk> {
    let pods = connect(recorded).await;
    let server = &recorded.server;
    server.answer("get pods", [ok(&plain(12, status))]);
    server.answer("get log", [log]);
    let log = pods.logs(&container(), LogsRequest::follow(false)).await;
    let mut chunks: Vec<_> = log.unwrap().collect().await;
    assert_inconclusive(chunks.pop().unwrap());
    chunks.into_iter().map(Result::unwrap).collect()
}

async fn an_error_after_output_breaks_the_log(recorded: &Recorded) {
    let text = "out\nrpc error: code = Unknown desc = Error: No such container: 2ab7";
    let chunks = follow(recorded, over(0), page(200, text)).await;
    assert!(chunks.iter().all(|chunk| chunk.stream == Stream::Merged));
    let bytes: Vec<u8> = chunks
        .iter()
        .flat_map(|chunk| chunk.bytes.to_vec())
        .collect();
    assert_eq!(bytes, b"out\n");
}

async fn a_log_that_is_cut_is_broken(recorded: &Recorded) {
    let log = Answer::Torn("out\n".into());
    let chunks = follow(recorded, running(), log).await;
    assert_eq!(chunks.len(), 1);
}

async fn a_stop_keeps_the_pod(recorded: &Recorded) {
    let pods = connect(recorded).await;
    let server = &recorded.server;
    server.answer("get pods", [ok(&plain(12, running()))]);
    server.answer("patch pods", [ok(&plain(13, running()))]);
    server.answer("delete pods", [ok(&plain(13, running()))]);
    let error = pods.signal(&container(), "INT").await.unwrap_err();
    assert!(matches!(error, RuntimeError::Rejected { .. }), "{error:?}");
    assert_eq!(server.count("patch pods") + server.count("delete pods"), 0);

    pods.signal(&container(), "TERM").await.unwrap();
    pods.signal(&container(), "KILL").await.unwrap();
    let operations = server.operations();
    let changes: Vec<_> = operations
        .iter()
        .filter(|operation| operation.starts_with("patch") || operation.starts_with("delete"))
        .collect();
    assert_eq!(changes[..2], ["patch pods", "delete pods"]);
    let patch = server.requests("patch pods")[0].body.clone();
    let expected = json!({
        "uid": UID, "resourceVersion": "12", "finalizers": ["moat.dev/audit"],
    });
    assert_eq!(patch["metadata"], expected);
    assert_eq!(recorded.graces(), [Value::Null, json!(1)]);
}

/// The answer to a request for the start was lost, so that the kubelet may start the command.
async fn a_removal_waits_for_a_late_start(recorded: &Recorded) {
    let pods = connect(recorded).await;
    let server = &recorded.server;
    server.answer("patch pods", [ok(&plain(13, held()))]);
    server.answer("delete pods", [ok(&plain(13, held()))]);
    let kept = |status: Value, grace: u64| {
        let mut pod = plain(14, status);
        pod["metadata"]["finalizers"] = json!(["moat.dev/audit"]);
        pod["metadata"]["deletionTimestamp"] = json!("2026-11-26T10:00:05Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        ok(&pod)
    };
    let held_pod = || {
        let mut pod = plain(12, held());
        pod["metadata"]["annotations"]["moat.dev/start"] = json!("0");
        ok(&pod)
    };
    let container = container();

    server.answer(
        "get pods",
        [held_pod(), held_pod(), kept(held(), 1), kept(over(3), 0)],
    );
    let error = pods.remove(&container, false).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Conflict { .. }), "{error:?}");
    let patches = server.requests("patch pods");
    assert_eq!(patches.len(), 1);
    assert_eq!(
        patches[0].body["metadata"]["finalizers"],
        json!(["moat.dev/audit"])
    );

    server.answer(
        "get pods",
        [
            held_pod(),
            held_pod(),
            kept(held(), 1),
            kept(held(), 0),
            kept(held(), 0),
            not_found(),
        ],
    );
    let removed = within(20, "the removal", pods.remove(&container, false));
    removed.await.unwrap();
    let patches = server.requests("patch pods");
    assert_eq!(
        patches.last().unwrap().body["metadata"]["finalizers"],
        json!([])
    );
    assert_eq!(patches.len(), 3);
}

async fn the_pod_of_another_runtime_is_not_found(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let root = RootId::try_from(ROOT.to_owned()).unwrap();
    let both = [pod(12, over(0)), plain(12, over(0))];
    recorded.server.answer("list pods", [list(12, &both)]);
    assert_eq!(cluster.find(&root).await.unwrap().len(), 1);
    assert_eq!(cluster.find_all().await.unwrap().len(), 1);
    let pods = cluster.without_helper();
    assert_eq!(pods.find(&root).await.unwrap().len(), 1);
    assert_eq!(pods.find_all().await.unwrap().len(), 1);
}
