//! Which errors are definitive, and which requests are repeated.

use std::time::{Duration, Instant};

use moat::runtime::{Runtime, RuntimeError};

use super::answers::{POD, busy, list, not_found, ok, page, pod, running, status, waiting};
use super::server::Answer;
use super::{Recorded, assert_inconclusive, container, create};

testkit::trials! {
    super::recorded:
        refused_credentials_are_inconclusive,
        errors_of_the_server_are_inconclusive,
        refusals_are_definitive,
        the_page_of_a_proxy_is_inconclusive,
        a_redirect_is_inconclusive,
        a_torn_answer_is_inconclusive,
        a_kubelet_without_the_pod_is_inconclusive,
        a_busy_server_is_asked_again_when_it_says,
        a_failed_creation_is_sent_once,
}

async fn refused_credentials_are_inconclusive(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let refused = status(401, "Unauthorized", "Unauthorized");
    for operation in ["get pods", "create pods", "list pods"] {
        recorded.server.answer(operation, [refused.clone()]);
    }
    let errors = [
        assert_inconclusive(cluster.inspect(&container()).await),
        assert_inconclusive(create(&cluster).await),
        assert_inconclusive(cluster.find_all().await),
        assert_inconclusive(cluster.remove(&container(), true).await),
    ];
    for error in errors {
        assert!(error.contains("Unauthorized"), "{error}");
    }
}

async fn errors_of_the_server_are_inconclusive(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    for (code, reason, message) in [
        (500, "InternalError", "etcdserver: leader changed"),
        (
            503,
            "ServiceUnavailable",
            "the server is currently unable to handle the request",
        ),
        (
            504,
            "Timeout",
            "Timeout: request did not complete within requested timeout 34s",
        ),
        (410, "Gone", "the resource is gone"),
    ] {
        let failed = status(code, reason, message);
        recorded.server.answer("get pods", [failed.clone()]);
        recorded.server.answer("create pods", [failed]);
        let error = assert_inconclusive(cluster.inspect(&container()).await);
        assert!(error.contains(message), "{error}");
        assert_inconclusive(create(&cluster).await);
    }
}

async fn refusals_are_definitive(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    for (code, reason, message) in [
        (400, "BadRequest", "container moat is not valid for pod x"),
        (
            403,
            "Forbidden",
            "exceeded quota: pods, used: pods=4, limited: pods=4",
        ),
        (404, "NotFound", "namespaces \"ci\" not found"),
        (409, "AlreadyExists", "pods \"x\" already exists"),
        (
            422,
            "Invalid",
            "Pod \"x\" is invalid: spec.containers[0].image: Required value",
        ),
    ] {
        recorded
            .server
            .answer("create pods", [status(code, reason, message)]);
        let error = create(&cluster).await.unwrap_err();
        assert!(error.is_definitive(), "{error:?}");
        assert!(error.to_string().contains(message), "{error}");
        let variant = match code {
            404 => matches!(error, RuntimeError::NotFound { .. }),
            409 => matches!(error, RuntimeError::Conflict { .. }),
            _ => matches!(error, RuntimeError::Rejected { .. }),
        };
        assert!(variant, "{error:?}");
    }
    recorded.server.answer("get pods", [not_found()]);
    let error = cluster.inspect(&container()).await.unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
}

async fn the_page_of_a_proxy_is_inconclusive(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let html = format!(
        "<html>\r\n<head><title>Bad Gateway</title></head>\r\n{}</html>",
        "<p>nginx</p>\r\n".repeat(100)
    );
    for code in [403, 404, 409, 422, 502, 503] {
        let page = page(code, &html);
        recorded.server.answer("get pods", [page.clone()]);
        recorded.server.answer("create pods", [page.clone()]);
        recorded.server.answer("exec release", [page]);
        let errors = [
            assert_inconclusive(cluster.inspect(&container()).await),
            assert_inconclusive(create(&cluster).await),
            assert_inconclusive(cluster.start(&container()).await),
        ];
        for error in errors {
            assert!(error.contains(&code.to_string()), "{error}");
            assert!(error.contains("<title>Bad Gateway</title>"), "{error}");
            assert!(error.contains("not of Kubernetes"), "{error}");
            assert!(error.len() < 400 && !error.contains('\n'), "{error}");
        }
    }
    // The page of a login, in the place of a list.
    recorded
        .server
        .answer("list pods", [page(200, "<html>Please log in</html>")]);
    let error = assert_inconclusive(cluster.find_all().await);
    assert!(error.contains("Please log in"), "{error}");
}

async fn a_redirect_is_inconclusive(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let redirect = Answer::Http {
        code: 302,
        header: "Location: https://login.example.com/\r\n".into(),
        body: String::new(),
    };
    recorded.server.answer("get pods", [redirect.clone()]);
    recorded.server.answer("exec release", [redirect]);
    let error = assert_inconclusive(cluster.inspect(&container()).await);
    assert!(error.contains("https://login.example.com/"), "{error}");
    let error = assert_inconclusive(cluster.start(&container()).await);
    assert!(error.contains("302"), "{error}");
}

async fn a_torn_answer_is_inconclusive(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let whole = pod(12, running()).to_string();
    for answer in [
        Answer::Torn(whole[..whole.len() / 2].into()),
        Answer::Torn(String::new()),
        Answer::Cut,
        page(200, &whole[..whole.len() / 2]),
    ] {
        recorded.server.answer("get pods", [answer.clone()]);
        recorded.server.answer("list pods", [answer]);
        assert_inconclusive(cluster.inspect(&container()).await);
        assert_inconclusive(cluster.find_all().await);
    }
}

/// A kubelet that was restarted does not know its pods yet.
async fn a_kubelet_without_the_pod_is_inconclusive(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    recorded
        .server
        .answer("get pods", [ok(&pod(12, running()))]);
    for unknown in [
        page(404, "pod does not exist"),
        page(500, "container not found (\"moat\")"),
    ] {
        for operation in ["exec release", "exec tap", "exec signal"] {
            recorded.server.answer(operation, [unknown.clone()]);
        }
        assert_inconclusive(cluster.start(&container()).await);
        assert_inconclusive(cluster.signal(&container(), "TERM").await);
        let attached = cluster.attach(&container(), false).await;
        assert_inconclusive(attached.map(|_| ()));
    }
}

async fn a_busy_server_is_asked_again_when_it_says(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    recorded.server.answer(
        "get pods",
        [busy(2), ok(&pod(12, waiting("ContainerCreating")))],
    );
    let created = pod(11, serde_json::json!({"phase": "Pending"}));
    recorded
        .server
        .answer("create pods", [busy(2), ok(&created)]);
    let start = Instant::now();
    let (inspected, created) = tokio::join!(
        async {
            let container = container();
            cluster.inspect(&container).await
        },
        create(&cluster)
    );
    inspected.unwrap();
    created.unwrap();
    for operation in ["get pods", "create pods"] {
        let requests = recorded.server.requests(operation);
        assert_eq!(requests.len(), 2, "{operation}");
        let pause = requests[1].received - requests[0].received;
        assert!(pause >= Duration::from_secs(2), "{operation}: {pause:?}");
        assert_eq!(requests[0].body, requests[1].body);
    }
    assert!(start.elapsed() < Duration::from_secs(10));
}

async fn a_failed_creation_is_sent_once(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let failures = [
        status(500, "InternalError", "etcdserver: request timed out"),
        status(503, "ServiceUnavailable", "the server is shutting down"),
        status(504, "Timeout", "Timeout: request did not complete"),
        page(502, "<html>Bad Gateway</html>"),
        Answer::Cut,
        Answer::Torn(String::new()),
    ];
    for (sent, failure) in failures.into_iter().enumerate() {
        recorded
            .server
            .answer("create pods", [failure, list(1, &[])]);
        assert_inconclusive(create(&cluster).await);
        let requests = recorded.server.requests("create pods");
        assert_eq!(requests.len(), sent + 1);
        assert_eq!(requests[sent].body["metadata"]["name"], POD);
    }
}
