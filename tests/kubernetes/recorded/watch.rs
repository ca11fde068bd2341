//! The watch of a root's pods.

use std::time::Duration;

use moat::Kubernetes;
use moat::runtime::{Runtime, RuntimeError, WaitStatus};
use testkit::deadline::{eventually, within};

use super::answers::{
    bookmark, ended, event, expired, list, not_found, ok, page, pod, report, running, status,
};
use super::server::{Answer, Step};
use super::{Recorded, container};

testkit::trials! {
    super::recorded:
        a_silent_watch_hides_no_placement,
        a_watch_that_ends_continues_at_its_version,
        a_bookmark_moves_the_version,
        an_expired_watch_lists_again,
        a_broken_watch_lists_again,
        a_list_that_fails_concludes_nothing,
        a_watch_that_ends_at_once_is_not_flooded,
        a_pod_that_a_list_lacks_is_gone,
        a_pod_that_was_gone_before_is_not_found,
}

/// Waits for the recorded pod in a task.
async fn wait(recorded: &Recorded) -> tokio::task::JoinHandle<Result<WaitStatus, RuntimeError>> {
    let cluster: Kubernetes = recorded.connect().await;
    let found = pod(11, running());
    recorded.server.answer("get pods", [ok(&found)]);
    recorded
        .server
        .answer("exec state", [report("phase exited\nexit 7\n")]);
    tokio::spawn(async move { cluster.wait(&container()).await })
}

/// The versions that the watches have started from.
fn versions(recorded: &Recorded) -> Vec<String> {
    let requests = recorded.server.requests("watch pods");
    let versions = requests.iter().map(|request| {
        assert_eq!(request.query("allowWatchBookmarks"), Some("true"));
        request.query("resourceVersion").unwrap().to_owned()
    });
    versions.collect()
}

async fn code(waiting: tokio::task::JoinHandle<Result<WaitStatus, RuntimeError>>) -> Option<i64> {
    within(20, "the end of the pod", waiting)
        .await
        .unwrap()
        .unwrap()
        .code
}

async fn a_watch_that_ends_continues_at_its_version(recorded: &Recorded) {
    recorded
        .server
        .answer("list pods", [list(10, &[pod(9, running())])]);
    recorded.server.answer(
        "watch pods",
        [
            Answer::Watch(vec![event("MODIFIED", &pod(12, running())), Step::Close]),
            Answer::Watch(vec![Step::Close]),
            Answer::Watch(vec![event("MODIFIED", &pod(15, ended(7)))]),
        ],
    );
    let waiting = wait(recorded).await;
    assert_eq!(code(waiting).await, Some(7));
    assert_eq!(versions(recorded), ["10", "12", "12"]);
    let lists = recorded.server.requests("list pods");
    assert_eq!(lists.len(), 1);
    let selector = format!("moat.dev/root={}", super::ROOT);
    assert_eq!(lists[0].query("labelSelector"), Some(&*selector));
}

async fn a_bookmark_moves_the_version(recorded: &Recorded) {
    recorded
        .server
        .answer("list pods", [list(10, &[pod(9, running())])]);
    recorded.server.answer(
        "watch pods",
        [
            Answer::Watch(vec![bookmark(40), Step::Close]),
            Answer::Watch(vec![event("MODIFIED", &pod(45, ended(7)))]),
        ],
    );
    let waiting = wait(recorded).await;
    assert_eq!(code(waiting).await, Some(7));
    assert_eq!(versions(recorded), ["10", "40"]);
}

async fn an_expired_watch_lists_again(recorded: &Recorded) {
    recorded.server.answer(
        "list pods",
        [
            list(10, &[pod(9, running())]),
            list(30, &[pod(9, running())]),
            list(50, &[pod(48, ended(7))]),
        ],
    );
    recorded.server.answer(
        "watch pods",
        [
            Answer::Watch(vec![event("MODIFIED", &pod(12, running())), expired()]),
            status(410, "Expired", "too old resource version: 30 (49)"),
            Answer::Watch(Vec::new()),
        ],
    );
    let waiting = wait(recorded).await;
    assert_eq!(code(waiting).await, Some(7));
    assert_eq!(versions(recorded)[..2], ["10", "30"]);
    assert_eq!(recorded.server.count("list pods"), 3);
}

async fn a_broken_watch_lists_again(recorded: &Recorded) {
    let Step::Send(line) = event("MODIFIED", &pod(12, ended(9))) else {
        unreachable!("an event is sent");
    };
    let part = line[..line.len() / 2].to_vec();
    recorded.server.answer(
        "list pods",
        [
            list(10, &[pod(9, running())]),
            list(20, &[pod(9, running())]),
            list(30, &[pod(9, running())]),
            list(50, &[pod(48, ended(7))]),
        ],
    );
    recorded.server.answer(
        "watch pods",
        [
            // The connection of a server that is killed. The version is still known.
            Answer::Watch(vec![Step::Send(part), Step::Cut]),
            Answer::Watch(vec![Step::Send(b"upstream timed out\n".to_vec())]),
            page(502, "<html>Bad Gateway</html>"),
            Answer::Cut,
            Answer::Watch(Vec::new()),
        ],
    );
    let waiting = wait(recorded).await;
    assert_eq!(code(waiting).await, Some(7));
    assert_eq!(versions(recorded)[..4], ["10", "10", "20", "30"]);
}

async fn a_list_that_fails_concludes_nothing(recorded: &Recorded) {
    recorded.server.answer(
        "list pods",
        [
            status(500, "InternalError", "etcdserver: leader changed"),
            page(404, "404 page not found"),
            page(200, "<html>Please log in</html>"),
            Answer::Torn(r#"{"kind": "PodList", "items": []"#.into()),
            status(
                403,
                "Forbidden",
                "User \"moat\" cannot list resource \"pods\"",
            ),
        ],
    );
    let waiting = wait(recorded).await;
    eventually(20, "five lists", async || {
        (recorded.server.count("list pods") >= 5).then_some(())
    })
    .await;
    assert!(!waiting.is_finished());
    assert_eq!(recorded.server.count("watch pods"), 0);
    recorded
        .server
        .answer("list pods", [list(50, &[pod(48, ended(7))])]);
    assert_eq!(code(waiting).await, Some(7));
}

async fn a_watch_that_ends_at_once_is_not_flooded(recorded: &Recorded) {
    recorded
        .server
        .answer("list pods", [list(10, &[pod(9, running())])]);
    recorded
        .server
        .answer("watch pods", [Answer::Watch(vec![Step::Close])]);
    let waiting = wait(recorded).await;
    eventually(20, "five watches", async || {
        (recorded.server.count("watch pods") >= 5).then_some(())
    })
    .await;
    let watches = recorded.server.requests("watch pods");
    let elapsed = watches[4].received - watches[0].received;
    assert!(elapsed >= Duration::from_millis(800), "{elapsed:?}");
    // Nor is a version that stays too old.
    recorded
        .server
        .answer("watch pods", [Answer::Watch(vec![expired()])]);
    let before = recorded.server.count("list pods");
    eventually(20, "five lists", async || {
        (recorded.server.count("list pods") >= before + 5).then_some(())
    })
    .await;
    let lists = recorded.server.requests("list pods");
    let elapsed = lists[before + 4].received - lists[before].received;
    assert!(elapsed >= Duration::from_millis(800), "{elapsed:?}");
    assert!(!waiting.is_finished());
    waiting.abort();
}

async fn a_pod_that_a_list_lacks_is_gone(recorded: &Recorded) {
    recorded
        .server
        .answer("list pods", [list(10, &[pod(9, running())]), list(30, &[])]);
    let expires = vec![Step::Await("expired"), expired()];
    recorded.server.answer(
        "watch pods",
        [Answer::Watch(expires), Answer::Watch(Vec::new())],
    );
    let waiting = wait(recorded).await;
    eventually(20, "the watch", async || {
        (recorded.server.count("watch pods") == 1).then_some(())
    })
    .await;
    assert!(!waiting.is_finished());
    recorded.server.open("expired");
    let error = within(20, "the end", waiting).await.unwrap().unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
}

/// The watch reports the deletion of a pod once.
async fn a_pod_that_was_gone_before_is_not_found(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    recorded.server.answer("get pods", [ok(&pod(9, running()))]);
    recorded
        .server
        .answer("list pods", [list(10, &[pod(9, running())])]);
    let deleted = event("DELETED", &pod(12, running()));
    recorded
        .server
        .answer("watch pods", [Answer::Watch(vec![deleted])]);
    for attempt in ["the first wait", "the second wait"] {
        let waited = within(20, attempt, cluster.wait(&container())).await;
        let error = waited.unwrap_err();
        assert!(error.is_not_found(), "{error:?}");
        recorded.server.answer("get pods", [not_found()]);
    }
}

/// The watch is silent, so the server is asked after 10 s.
async fn a_silent_watch_hides_no_placement(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let pending = pod(12, super::answers::waiting("ContainerCreating"));
    recorded
        .server
        .answer("list pods", [list(12, std::slice::from_ref(&pending))]);
    recorded
        .server
        .answer("get pods", [ok(&pending), ok(&pod(14, running()))]);
    let spec = super::spec();
    let container = container();
    let placed = within(20, "the placement", cluster.place(&container, &spec)).await;
    placed.unwrap();
}
