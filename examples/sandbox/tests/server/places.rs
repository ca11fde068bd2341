//! The places in a quota: taken as long as something is in use, and given back after it.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::client::shell;
use crate::fixture::Server;
use crate::hostile::{connect, head};
use testkit::deadline::eventually;

testkit::trials! {
    crate::on_engine:
        a_disconnect_during_a_start_leaves_no_command,
        a_command_that_cannot_be_killed_ends_its_session,
        an_unread_download_keeps_its_place,
        an_unread_command_does_not_keep_its_session,
        a_second_server_is_refused;
    crate::on_process:
        a_place_is_free_once_the_exit_is_sent,
}

/// Sends a request, and returns its connection.
async fn sent(server: &Server, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = connect(server).await;
    let head = head(server, method, path);
    let length = body.len();
    let request =
        format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn a_disconnect_during_a_start_leaves_no_command(server: &mut Server) {
    server.restart_with_quota("execs = 3").await;
    let alice = server.alice();
    let id = server.session().await;
    let exec = format!("/sessions/{id}/exec");
    let body = shell("exec sleep 600").to_string();
    for milliseconds in 0..20 {
        let stream = sent(server, "POST", &exec, &body).await;
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        drop(stream);
    }
    // At most three commands may run, so one more proves that the places were given back.
    eventually(30, "free places", async || {
        let answers = [
            alice.post(&exec, &shell("true")).await,
            alice
                .post(&exec, &shell("ps | grep -c '[s]leep 600'"))
                .await,
        ];
        let [first, count] = answers;
        let is_idle = String::from_utf8_lossy(&count.body).contains(r#"{"text":"0\n"}"#);
        (first.status == 200 && is_idle).then_some(())
    })
    .await;
    let start = Instant::now();
    server.stop();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    server.spawn().await;
}

async fn a_command_that_cannot_be_killed_ends_its_session(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let body = json!({"cmd": ["env", "-i", "/bin/sleep", "600"], "time_limit_seconds": 1});
    let command = alice.start(&id, &body).await;
    let start = Instant::now();
    command.end().await;
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
    let session = eventually(10, "the end of the session", async || {
        let session = alice.session(&id).await;
        (session["state"] == "ended").then_some(session)
    })
    .await;
    assert_eq!(session["stopped"], "killed", "{session}");
}

async fn a_place_is_free_once_the_exit_is_sent(server: &mut Server) {
    server.restart_with_quota("execs = 8").await;
    let alice = server.alice();
    let id = server.session().await;
    let commands = (0..8).map(async |_| {
        for _ in 0..25 {
            alice.shell(&id, "true").await.ok();
        }
    });
    futures::future::join_all(commands).await;
}

async fn an_unread_download_keeps_its_place(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    alice
        .put(&id, "/tmp/big", vec![b'x'; 30 << 20])
        .await
        .expect(204);
    let path = format!("/sessions/{id}/files?path=/tmp/big");
    let unread = [
        sent(server, "GET", &path, "").await,
        sent(server, "GET", &path, "").await,
    ];
    for stream in &unread {
        stream.readable().await.unwrap();
    }
    let detail = alice.get(&path).await.detail(429);
    assert!(detail.contains("downloads"), "{detail}");
    drop(unread);
    eventually(20, "a free place", async || {
        (alice.get(&path).await.status == 200).then_some(())
    })
    .await;
}

async fn an_unread_command_does_not_keep_its_session(server: &mut Server) {
    server.restart_with_quota("sessions = 1\nexecs = 1").await;
    let alice = server.alice();
    let id = server.session().await;
    let line = "x".repeat(4000);
    let body = shell(&format!("yes {line} | head -c 30000000")).to_string();
    let exec = format!("/sessions/{id}/exec");
    let _unread = sent(server, "POST", &exec, &body).await;
    eventually(20, "a free place for a command", async || {
        let answer = alice.post(&exec, &shell("true")).await;
        (answer.status == 200).then_some(())
    })
    .await;
    alice.end(&id).await;
    eventually(5, "a free place for a session", async || {
        let created = alice.post("/sessions", &server.spec(json!({}))).await;
        (created.status == 201).then_some(())
    })
    .await;
}

async fn a_second_server_is_refused(server: &mut Server) {
    let id = server.session().await;
    let error = server.second_server();
    assert!(error.contains("another server uses"), "{error}");
    assert_eq!(server.alice().shell(&id, "echo fine").await.ok(), "fine\n");
}
