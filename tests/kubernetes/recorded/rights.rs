//! The rights of the user.

use moat::runtime::{LogsRequest, Runtime, RuntimeError};

use super::answers::{NAMESPACE, forbidden_exec, ok, pod, reviewed, running, status};
use super::{Recorded, assert_inconclusive, container, create, spec};

testkit::trials! {
    super::recorded:
        missing_rights_are_named_before_a_request,
        one_of_the_rights_of_an_exec_is_not_enough,
        a_review_without_an_answer_is_inconclusive,
        a_refused_exec_names_its_right,
        refusals_of_a_starting_server_are_inconclusive,
        a_refusal_is_definitive_after_a_review,
        a_log_without_the_right_to_read_it_is_inconclusive,
}

async fn missing_rights_are_named_before_a_request(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    for right in ["create pods", "watch pods", "create configmaps"] {
        recorded
            .server
            .answer(&format!("review {right}"), [reviewed(false)]);
    }
    let error = cluster.prepare(&spec()).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Rejected { .. }), "{error:?}");
    let error = error.to_string();
    let named = "create pods, watch pods, create configmaps;";
    assert!(error.contains(named), "{error}");
    assert!(error.contains(&format!("namespace {NAMESPACE}")), "{error}");
    let mut operations = recorded.server.operations();
    operations.retain(|operation| !operation.starts_with("review "));
    assert_eq!(operations, ["get version"]);

    // The rights are asked for again once they were missing, and then not any more.
    for right in ["create pods", "watch pods", "create configmaps"] {
        recorded
            .server
            .answer(&format!("review {right}"), [reviewed(true)]);
    }
    cluster.prepare(&spec()).await.unwrap();
    cluster.prepare(&spec()).await.unwrap();
    assert_eq!(recorded.server.count("review create pods"), 2);
}

async fn one_of_the_rights_of_an_exec_is_not_enough(recorded: &Recorded) {
    for missing in ["create", "get"] {
        let cluster = recorded.connect().await;
        for verb in ["create", "get"] {
            let operation = format!("review {verb} pods/exec");
            recorded
                .server
                .answer(&operation, [reviewed(verb != missing)]);
        }
        let error = cluster.prepare(&spec()).await.unwrap_err();
        assert!(error.is_definitive(), "{error:?}");
        let named = format!("to: {missing} pods/exec;");
        assert!(error.to_string().contains(&named), "{error}");
    }
}

async fn a_review_without_an_answer_is_inconclusive(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let failed = status(503, "ServiceUnavailable", "the webhook did not answer");
    recorded.server.answer("review get pods", [failed]);
    assert_inconclusive(cluster.prepare(&spec()).await);
    assert_eq!(recorded.server.count("get configmaps"), 0);
}

/// Up to 1.34, an exec needs the right `get`; from 1.35 on, `create`.
async fn a_refused_exec_names_its_right(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    recorded
        .server
        .answer("get pods", [ok(&pod(12, running()))]);
    for verb in ["get", "create"] {
        for operation in ["exec tap", "exec release", "exec signal"] {
            recorded.server.answer(operation, [forbidden_exec(verb)]);
        }
        let named = format!("cannot {verb} resource \"pods/exec\"");
        let attached = cluster.attach(&container(), false).await.map(|_| ());
        for answer in [attached, cluster.start(&container()).await] {
            let error = answer.unwrap_err();
            assert!(matches!(error, RuntimeError::Rejected { .. }), "{error:?}");
            assert!(error.to_string().contains(&named), "{error}");
        }
        // The right to signal says nothing about a container that runs.
        let error = assert_inconclusive(cluster.signal(&container(), "TERM").await);
        assert!(error.contains(&named), "{error}");
    }
}

/// A server that starts does not know the rights of its users yet.
async fn refusals_of_a_starting_server_are_inconclusive(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let forbidden = status(403, "Forbidden", "User \"moat\" cannot create resource");
    for operation in ["review get pods", "create pods", "get pods", "list pods"] {
        recorded.server.answer(operation, [forbidden.clone()]);
    }
    recorded
        .server
        .answer("exec release", [forbidden_exec("create")]);
    let errors = [
        assert_inconclusive(cluster.prepare(&spec()).await),
        assert_inconclusive(create(&cluster).await),
        assert_inconclusive(cluster.inspect(&container()).await),
        assert_inconclusive(cluster.start(&container()).await),
        assert_inconclusive(cluster.remove(&container(), false).await),
    ];
    for error in errors {
        assert!(error.contains("does not know the rights"), "{error}");
        assert!(error.contains("cannot create resource"), "{error}");
    }
}

async fn a_refusal_is_definitive_after_a_review(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let forbidden = status(403, "Forbidden", "User \"moat\" cannot create resource");
    // The server has read all rights by the time of the review.
    let answers = [forbidden.clone(), ok(&pod(12, running()))];
    recorded.server.answer("create pods", answers);
    create(&cluster).await.unwrap();

    recorded.server.answer("create pods", [forbidden]);
    recorded.server.answer("review get pods", [reviewed(false)]);
    let error = create(&cluster).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Rejected { .. }), "{error:?}");
}

/// The run would have a gap, although the pod has all output.
async fn a_log_without_the_right_to_read_it_is_inconclusive(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let container = container();
    let read = async || cluster.logs(&container, LogsRequest::all(false)).await;
    let forbidden = status(403, "Forbidden", "User \"moat\" cannot get resource");
    recorded.server.answer("get pods", [forbidden]);
    assert_inconclusive(read().await.map(|_| ()));
    recorded
        .server
        .answer("get pods", [ok(&pod(12, running()))]);
    recorded.server.answer("exec tap", [forbidden_exec("get")]);
    assert_inconclusive(read().await.map(|_| ()));
}
