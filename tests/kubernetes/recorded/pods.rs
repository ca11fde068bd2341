//! The identity, the placement and the removal of a pod.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use moat::runtime::{ContainerStatus, Runtime, RuntimeError};
use serde_json::json;
use testkit::deadline::{eventually, within};

use super::answers::{
    POD, UID, answered, ended, event, expired, list, not_found, ok, over, pod, replacement,
    running, silent_collector, start_error, status, waiting,
};
use super::protocol::Kind;
use super::server::{Answer, Step};
use super::{Recorded, assert_inconclusive, container, create, spec};

testkit::trials! {
    super::recorded:
        another_pod_of_the_name_is_not_the_runs,
        a_removal_names_the_uid,
        a_failed_deletion_removes_nothing,
        a_pod_that_is_over_is_removed_at_once,
        a_removal_survives_an_outage,
        a_start_in_1970_is_no_start,
        a_collector_that_never_ran_keeps_no_pod,
        an_image_that_cannot_be_pulled_is_one_reason,
        an_unusable_image_name_is_final_at_once,
        a_failed_deletion_ends_no_placement,
        a_placement_survives_an_outage,
}

/// The answer to a deletion.
fn deleted() -> Answer {
    ok(&json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
}

async fn another_pod_of_the_name_is_not_the_runs(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    recorded
        .server
        .answer("get pods", [ok(&replacement(20, running()))]);
    let answers = [
        cluster.inspect(&container()).await.map(|_| ()),
        cluster.wait(&container()).await.map(|_| ()),
        cluster.remove(&container(), true).await,
        cluster.place(&container(), &spec()).await,
    ];
    for answer in answers {
        let error = answer.unwrap_err();
        assert!(error.is_not_found(), "{error:?}");
    }
    assert_eq!(recorded.server.count("delete pods"), 0);
    assert_eq!(recorded.server.count("exec quit"), 0);
}

async fn a_removal_names_the_uid(recorded: &Recorded) {
    let quit = answered(Kind::Done, &[]);
    let conflict = status(
        409,
        "Conflict",
        "Operation cannot be fulfilled on Pod \"x\": the UID in the precondition (3f1c) does not match \
         the UID in record (9b0d). The object might have been deleted and then recreated",
    );
    for (answer, after) in [
        (deleted(), not_found()),
        // The pod was replaced between the question and the deletion.
        (conflict, ok(&replacement(20, running()))),
        (not_found(), not_found()),
    ] {
        let cluster = recorded.connect().await;
        // The watch asks for the root, and the removal for the state.
        let found = ok(&pod(12, ended(7)));
        recorded
            .server
            .answer("get pods", [found.clone(), found, after]);
        recorded.server.answer("exec quit", [quit.clone()]);
        recorded.server.answer("delete pods", [answer]);
        within(20, "the removal", cluster.remove(&container(), false))
            .await
            .unwrap();
    }
    let requests = recorded.server.requests("delete pods");
    assert_eq!(requests.len(), 3);
    for request in requests {
        assert_eq!(request.body["preconditions"], json!({"uid": UID}));
        assert_eq!(request.body["gracePeriodSeconds"], 1);
    }
}

async fn a_failed_deletion_removes_nothing(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    recorded.server.answer("get pods", [ok(&pod(12, ended(7)))]);
    recorded
        .server
        .answer("exec quit", [answered(Kind::Done, &[])]);
    recorded.server.answer(
        "delete pods",
        [status(500, "InternalError", "etcd is gone")],
    );
    assert_inconclusive(cluster.remove(&container(), false).await);
    let message = format!("pods {POD:?} is forbidden: User \"moat\" cannot delete resource");
    recorded
        .server
        .answer("delete pods", [status(403, "Forbidden", &message)]);
    let error = cluster.remove(&container(), false).await.unwrap_err();
    assert!(error.to_string().contains("cannot delete"), "{error}");
}

/// Kubernetes 1.20 removes some deleted pods a minute after their end.
async fn a_pod_that_is_over_is_removed_at_once(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let found = ok(&pod(12, ended(7)));
    // Its containers still run.
    let evicted = ok(&pod(13, json!({"phase": "Failed", "reason": "Evicted"})));
    let over = ok(&pod(14, over(7)));
    recorded.server.answer(
        "get pods",
        [found.clone(), found, evicted, over, not_found()],
    );
    recorded
        .server
        .answer("exec quit", [answered(Kind::Done, &[])]);
    recorded.server.answer("delete pods", [deleted()]);
    within(30, "the removal", cluster.remove(&container(), false))
        .await
        .unwrap();
    assert_eq!(recorded.graces(), [1, 0]);
}

/// The watch reports the end of the pod, and the server does not answer questions about it.
async fn a_removal_survives_an_outage(recorded: &Recorded) {
    let server = &recorded.server;
    let found = pod(12, ended(7));
    server.answer("create pods", [ok(&found)]);
    server.answer("list pods", [list(12, std::slice::from_ref(&found))]);
    let over = pod(13, over(7));
    server.answer(
        "watch pods",
        [Answer::Watch(vec![event("MODIFIED", &over)])],
    );
    server.answer("get pods", [ok(&found), Answer::Cut]);
    server.answer("exec quit", [answered(Kind::Done, &[])]);
    server.answer("delete pods", [deleted()]);
    let cluster = recorded.connect().await;
    create(&cluster).await.unwrap();
    let removing = tokio::spawn(async move { cluster.remove(&container(), false).await });
    let questions = eventually(20, "three failed questions", async || {
        let questions = server.requests("get pods");
        (questions.len() >= 4).then_some(questions)
    })
    .await;
    let elapsed = questions[3].received - questions[1].received;
    assert!(elapsed >= Duration::from_secs(2), "{elapsed:?}");
    server.answer("get pods", [ok(&over), not_found()]);
    let removed = within(20, "the removal", removing).await.unwrap();
    removed.unwrap();
    assert_eq!(recorded.graces(), [1, 0]);
}

async fn a_start_in_1970_is_no_start(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let failed = pod(12, start_error());
    recorded.server.answer("get pods", [ok(&failed)]);
    recorded.server.answer("list pods", [list(12, &[failed])]);
    let inspection = cluster.inspect(&container()).await.unwrap();
    assert_eq!(inspection.status, ContainerStatus::Created);
    assert_eq!((inspection.started_at, inspection.code), (None, None));
    let found = cluster.find_all().await.unwrap();
    assert_eq!(found[0].status, ContainerStatus::Created);
    let error = cluster.place(&container(), &spec()).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Rejected { .. }), "{error:?}");
    assert!(
        error.to_string().contains("no such file or directory"),
        "{error}"
    );
}

/// A kubelet that was restarted before it started a container reports it as ended.
async fn a_collector_that_never_ran_keeps_no_pod(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let killed = pod(12, silent_collector(137));
    recorded.server.answer("get pods", [ok(&killed)]);
    recorded.server.answer("delete pods", [deleted()]);
    let error = cluster.remove(&container(), false).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Conflict { .. }), "{error:?}");
    assert_eq!(recorded.server.count("delete pods"), 0);

    let never = pod(12, silent_collector(0));
    recorded.server.answer("get pods", [ok(&never)]);
    let inspection = cluster.inspect(&container()).await.unwrap();
    assert_eq!(inspection.status, ContainerStatus::Created);
    recorded
        .server
        .answer("get pods", [ok(&never), not_found()]);
    cluster.remove(&container(), false).await.unwrap();
    assert_eq!(recorded.server.count("delete pods"), 1);
}

async fn an_image_that_cannot_be_pulled_is_one_reason(recorded: &Recorded) {
    const PATIENCE: Duration = Duration::from_millis(700);
    let cluster = recorded.connect().await.patience(PATIENCE);
    let pending = pod(12, waiting("ContainerCreating"));
    recorded.server.answer("get pods", [ok(&pending)]);
    recorded.server.answer("list pods", [list(12, &[pending])]);
    // Each attempt and each pause is shorter than the patience, and they do not end.
    let attempts = (0..300).flat_map(|attempt| {
        let reason = ["ErrImagePull", "ImagePullBackOff"][attempt % 2];
        let event = event("MODIFIED", &pod(20 + attempt as u64, waiting(reason)));
        [Step::Pause(Duration::from_millis(100)), event]
    });
    recorded
        .server
        .answer("watch pods", [Answer::Watch(attempts.collect())]);
    recorded.server.answer("delete pods", [deleted()]);
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&reasons);
    let spec = spec().on_placement(move |progress| seen.lock().unwrap().push(progress.reason));
    let start = Instant::now();
    let container = container();
    let placed = within(
        15,
        "the end of the patience",
        cluster.place(&container, &spec),
    );
    let error = placed.await.unwrap_err();
    let elapsed = start.elapsed();
    assert!(elapsed >= PATIENCE, "{elapsed:?}");
    assert!(
        matches!(error, RuntimeError::NoSuchImage { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("app:1"), "{error}");
    for reason in ["ContainerCreating", "ErrImagePull", "ImagePullBackOff"] {
        let reasons = reasons.lock().unwrap();
        assert!(reasons.iter().any(|seen| seen == reason), "{reasons:?}");
    }
    let requests = recorded.server.requests("delete pods");
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].body["preconditions"], json!({"uid": UID}));
}

async fn an_unusable_image_name_is_final_at_once(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let never = pod(12, waiting("ErrImageNeverPull"));
    recorded.server.answer("get pods", [ok(&never)]);
    recorded.server.answer("list pods", [list(12, &[never])]);
    recorded.server.answer("delete pods", [deleted()]);
    let container = container();
    let spec = spec();
    let placed = within(20, "the failure", cluster.place(&container, &spec)).await;
    let error = placed.unwrap_err();
    assert!(
        matches!(error, RuntimeError::NoSuchImage { .. }),
        "{error:?}"
    );
    assert_eq!(recorded.server.count("delete pods"), 1);
}

async fn a_failed_deletion_ends_no_placement(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let never = pod(12, waiting("ErrImageNeverPull"));
    recorded.server.answer("get pods", [ok(&never)]);
    recorded.server.answer("list pods", [list(12, &[never])]);
    let message = format!("pods {POD:?} is forbidden: User \"moat\" cannot delete resource");
    for failed in [
        status(403, "Forbidden", &message),
        status(500, "InternalError", "etcd is gone"),
        Answer::Cut,
    ] {
        recorded.server.answer("delete pods", [failed]);
        assert_inconclusive(cluster.place(&container(), &spec()).await);
    }
}

async fn a_placement_survives_an_outage(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let pending = pod(12, waiting("ContainerCreating"));
    recorded.server.answer("get pods", [ok(&pending)]);
    let failed = status(503, "ServiceUnavailable", "the server is shutting down");
    recorded.server.answer(
        "list pods",
        [
            failed.clone(),
            Answer::Cut,
            list(12, &[pending]),
            failed,
            list(14, &[pod(14, running())]),
        ],
    );
    recorded
        .server
        .answer("watch pods", [Answer::Watch(vec![expired()])]);
    let container = container();
    let spec = spec();
    let placed = within(20, "the placement", cluster.place(&container, &spec)).await;
    placed.unwrap();
}
