//! The life of a session.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::shell;
use crate::fixture::Server;
use testkit::deadline::eventually;
use testkit::engine;

testkit::trials! {
    crate::on_engine:
        a_session_has_no_network_unless_asked,
        limits_are_applied,
        a_session_is_listed_and_inspected,
        an_ended_session_stays_listed,
        the_audit_has_the_output_of_the_main_process,
        the_quota_of_sessions_holds_at_once,
        an_idle_session_is_cancelled,
        the_lifetime_ends_a_session,
        an_unknown_image_leaves_no_session,
        old_sessions_are_removed,
        sessions_survive_a_restart,
        sessions_stop_with_the_server_if_asked;
    crate::on_process:
        bad_requests_name_the_field,
        limits_beyond_the_quota_name_the_field,
        a_session_is_listed_and_inspected,
        an_ended_session_stays_listed,
        the_quota_of_sessions_holds_at_once,
        an_idle_session_is_cancelled,
        sessions_end_with_the_server,
}

async fn a_session_has_no_network_unless_asked(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    assert_eq!(alice.session(&id).await["network"], false);
    let addresses = alice.shell(&id, "ip -o addr; ip route").await;
    for line in addresses.ok().lines() {
        assert!(line.contains(" lo "), "{line}");
    }
    let refused = server.spec(json!({"network": true}));
    let detail = alice.post("/sessions", &refused).await.detail(400);
    assert!(detail.contains("network"), "{detail}");
}

async fn limits_are_applied(server: &mut Server) {
    let alice = server.alice();
    let limits = json!({"memory_bytes": 64 << 20, "cpus": 0.5, "pids": 32});
    let id = server.session_of(&alice, limits).await;
    let host = inspect_only_container(server).await["HostConfig"].take();
    assert_eq!(host["Memory"], 64 << 20);
    assert_eq!(host["NanoCpus"], 500_000_000);
    assert_eq!(host["PidsLimit"], 32);
    let session = alice.end(&id).await;
    assert_eq!(session["memory_bytes"], 64 << 20);
    server.assert_no_containers().await;

    // Without limits in the request, those of the quota apply.
    server.session().await;
    let host = inspect_only_container(server).await["HostConfig"].take();
    assert_eq!(host["Memory"], 512 << 20);
    assert_eq!(host["NanoCpus"], 1_000_000_000);
    assert_eq!(host["PidsLimit"], 128);
}

async fn inspect_only_container(server: &Server) -> Value {
    let containers = server.containers().await;
    assert_eq!(containers.len(), 1);
    let found = engine::inspect(&engine::address(), &containers[0]).await;
    found.unwrap()
}

async fn a_session_is_listed_and_inspected(server: &mut Server) {
    let alice = server.alice();
    let spec = server.spec(json!({"idle_timeout_seconds": 100, "lifetime_seconds": 200}));
    let answer = alice.post("/sessions", &spec).await;
    let created = answer.expect(201);
    let first = created["id"].as_str().unwrap();
    assert_eq!(answer.headers["location"], format!("/sessions/{first}"));
    assert_eq!(created["idle_timeout_seconds"], 100);
    assert_eq!(created["lifetime_seconds"], 200);

    let session = alice.session(first).await;
    assert_eq!(session["state"], "running");
    assert_eq!(session["ended_at"], Value::Null);
    assert_eq!(session["verdict"], Value::Null);
    let second = server.session().await;
    assert_eq!(alice.sessions("").await, [second.as_str(), first]);
    alice.end(&second).await;
    assert_eq!(alice.sessions("?state=running").await, [first]);
    assert_eq!(alice.sessions("?state=ended").await, [second.as_str()]);
    assert!(server.bob().sessions("").await.is_empty());
    alice.get("/sessions?state=other").await.expect(400);
}

async fn an_ended_session_stays_listed(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let ended = alice.end(&id).await;
    assert_eq!(ended["state"], "ended");
    assert_eq!(ended["stopped"], "requested");
    assert_eq!(ended["verdict"], "complete");
    assert!(ended["ended_at"].is_string(), "{ended}");
    assert_eq!(alice.session(&id).await, ended);
    assert_eq!(alice.sessions("?state=ended").await, [id.as_str()]);
    let path = format!("/sessions/{id}/exec");
    alice.post(&path, &shell("true")).await.detail(409);
    alice.end(&id).await;
}

async fn the_audit_has_the_output_of_the_main_process(server: &mut Server) {
    let alice = server.alice();
    let main = json!({
        "cmd": ["sh", "-c", "echo $WORD; pwd; id -u; exit 7"],
        "env": {"WORD": "blue"}, "workdir": "/tmp", "user": "1000",
    });
    let id = server.session_of(&alice, main).await;
    let ended = eventually(20, "the end of the session", async || {
        let session = alice.session(&id).await;
        (session["state"] == "ended").then_some(session)
    })
    .await;
    assert_eq!(ended["code"], 7);
    assert_eq!(ended["ending"], "exited");
    assert_eq!(ended["stopped"], Value::Null);
    let path = format!("/sessions/{id}/audit");
    let audit = crate::audits::parse(server, alice.get(&path).await.bytes());
    assert_eq!(audit.stream("stdout"), b"blue\n/tmp\n1000\n");
    assert_eq!(audit.verdict(), "complete");
}

async fn bad_requests_name_the_field(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let exec = format!("/sessions/{id}/exec");
    for (path, body, field) in [
        ("/sessions", json!({"shape": 1}), "shape"),
        ("/sessions", json!({"pids": "many"}), "pids"),
        ("/sessions", json!({"cmd": []}), "cmd"),
        ("/sessions", json!({"env": {"A=B": "c"}}), "env"),
        ("/sessions", json!({"image": "busybox"}), "image"),
        ("/sessions", json!({"cpus": -1.0}), "cpus"),
        ("/sessions", json!({"memory_bytes": -1}), "memory_bytes"),
        (
            "/sessions",
            json!({"idle_timeout_seconds": 0}),
            "idle_timeout_seconds",
        ),
        (
            "/sessions",
            json!({"lifetime_seconds": 0}),
            "lifetime_seconds",
        ),
        (&exec, json!({}), "cmd"),
        (&exec, json!({"cmd": []}), "cmd"),
        (&exec, json!({"cmd": "true"}), "cmd"),
        (&exec, json!({"cmd": ["true"], "shell": true}), "shell"),
        (
            &exec,
            json!({"cmd": ["true"], "time_limit_seconds": 0}),
            "time_limit_seconds",
        ),
        (&exec, json!({"cmd": ["a\u{0}b"]}), "cmd"),
    ] {
        let detail = alice.post(path, &body).await.detail(400);
        assert!(detail.contains(field), "{body}: {detail}");
    }
    let request = alice.request(reqwest::Method::POST, "/sessions");
    let request = request.header("content-type", "application/json");
    alice.send(request.body("{\"image\": ")).await.detail(400);
    assert_eq!(alice.sessions("").await, [id]);
}

async fn limits_beyond_the_quota_name_the_field(server: &mut Server) {
    let alice = server.alice();
    for (field, value) in [
        ("memory_bytes", json!(536_870_913)),
        ("cpus", json!(1.5)),
        ("pids", json!(129)),
        ("lifetime_seconds", json!(86_401)),
        ("idle_timeout_seconds", json!(1801)),
    ] {
        let body = server.spec(json!({field: value}));
        let detail = alice.post("/sessions", &body).await.detail(400);
        assert!(detail.contains(field), "{detail}");
    }
    let id = server.session().await;
    for (field, value) in [
        ("time_limit_seconds", json!(3601)),
        ("output_limit_bytes", json!(67_108_865)),
    ] {
        let body = json!({"cmd": ["true"], field: value});
        let path = format!("/sessions/{id}/exec");
        let detail = alice.post(&path, &body).await.detail(400);
        assert!(detail.contains(field), "{detail}");
    }
}

async fn the_quota_of_sessions_holds_at_once(server: &mut Server) {
    server.restart_with_quota("sessions = 2").await;
    let alice = server.alice();
    let spec = server.spec(json!({}));
    let posts = (0..6).map(|_| alice.post("/sessions", &spec));
    let answers = futures::future::join_all(posts).await;
    let (created, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|one| one.status == 201);
    assert_eq!(created.len(), 2);
    for answer in refused {
        let detail = answer.detail(429);
        assert!(detail.contains("sessions"), "{detail}");
    }
    server.session_of(&server.bob(), json!({})).await;
    let ids = alice.sessions("").await;
    assert_eq!(ids.len(), 2);
    alice.end(&ids[0]).await;
    server.session().await;
}

async fn an_idle_session_is_cancelled(server: &mut Server) {
    let alice = server.alice();
    let idle = server
        .session_of(&alice, json!({"idle_timeout_seconds": 1}))
        .await;
    let busy = server
        .session_of(&alice, json!({"idle_timeout_seconds": 1}))
        .await;
    let mut command = alice
        .start(&busy, &shell("echo begun; exec sleep 600"))
        .await;
    command.wait_for("begun").await;
    let ended = eventually(20, "the end of the idle session", async || {
        let session = alice.session(&idle).await;
        (session["state"] == "ended").then_some(session)
    })
    .await;
    assert_eq!(ended["stopped"], "cancelled");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(alice.session(&busy).await["state"], "running");
    alice
        .delete(&format!("/sessions/{busy}/execs/{}", command.id))
        .await
        .expect(204);
    command.end().await;
    eventually(20, "the end of the session that is idle now", async || {
        (alice.session(&busy).await["stopped"] == "cancelled").then_some(())
    })
    .await;
}

async fn the_lifetime_ends_a_session(server: &mut Server) {
    let alice = server.alice();
    let id = server
        .session_of(&alice, json!({"lifetime_seconds": 3}))
        .await;
    let command = alice.start(&id, &shell("exec sleep 600")).await;
    eventually(20, "the end of the session", async || {
        (alice.session(&id).await["stopped"] == "time_limit").then_some(())
    })
    .await;
    command.rest().await;
}

async fn an_unknown_image_leaves_no_session(server: &mut Server) {
    let alice = server.alice();
    let spec = json!({"image": "moat-test-absent.invalid/none:1"});
    let answer = alice.post("/sessions", &spec).await;
    assert!(
        [400, 404, 502].contains(&answer.status.as_u16()),
        "{answer}"
    );
    answer.detail(answer.status.as_u16());
    assert!(alice.sessions("?state=running").await.is_empty());
    assert!(server.containers().await.is_empty());
}

async fn old_sessions_are_removed(server: &mut Server) {
    let alice = server.alice();
    let (ended, running) = (server.session().await, server.session().await);
    alice.end(&ended).await;
    server.restart_with(&["--keep-days", "0"]).await;
    let alice = server.alice();
    eventually(20, "the removal of an old session", async || {
        let answer = alice.get(&format!("/sessions/{ended}")).await;
        (answer.status == 404).then_some(())
    })
    .await;
    assert_eq!(alice.session(&running).await["state"], "running");
}

async fn sessions_survive_a_restart(server: &mut Server) {
    let id = server.session().await;
    let alice = server.alice();
    alice
        .put(&id, "/tmp/note", b"kept".to_vec())
        .await
        .expect(204);
    let before = alice.session(&id).await;
    server.stop();
    assert_eq!(server.containers().await.len(), 1);
    server.spawn().await;
    let alice = server.alice();
    assert_eq!(alice.session(&id).await, before);
    assert_eq!(alice.shell(&id, "cat /tmp/note").await.ok(), "kept");
    assert_eq!(alice.end(&id).await["verdict"], "complete");
}

async fn sessions_stop_with_the_server_if_asked(server: &mut Server) {
    server.restart_with(&["--stop-sessions"]).await;
    let id = server.session().await;
    server.stop();
    assert!(server.containers().await.is_empty());
    server.spawn().await;
    assert_eq!(server.alice().session(&id).await["state"], "ended");
}

async fn sessions_end_with_the_server(server: &mut Server) {
    let id = server.session().await;
    server.stop();
    server.spawn().await;
    let session = server.alice().session(&id).await;
    assert_eq!(session["state"], "ended");
    assert!(server.alice().sessions("?state=running").await.is_empty());
}
