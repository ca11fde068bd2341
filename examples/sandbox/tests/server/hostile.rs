//! Clients that break the protocol, hold connections, or send without end.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::shell;
use crate::fixture::Server;
use testkit::deadline::{eventually, within};

testkit::trials! {
    crate::on_engine:
        an_endless_upload_is_cut,
        a_stalled_upload_is_cut;
    crate::on_process:
        large_json_is_refused,
        many_headers_are_refused,
        slow_headers_are_cut,
        a_stalled_body_is_cut,
        idle_connections_do_not_block_others,
        dots_in_a_path_are_not_resolved,
        a_reader_that_never_reads_is_cut,
        garbage_is_refused,
}

/// Checks that the server works for alice.
async fn assert_serves(server: &Server) {
    let alice = server.alice();
    let id = server.session().await;
    assert_eq!(alice.shell(&id, "echo fine").await.ok(), "fine\n");
    alice.end(&id).await;
}

pub async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.address()).await.unwrap()
}

/// The head of a request of alice, without the empty line at its end.
pub fn head(server: &Server, method: &str, path: &str) -> String {
    let token = server.alice().token().to_owned();
    format!("{method} {path} HTTP/1.1\r\nHost: server\r\nAuthorization: Bearer {token}\r\n")
}

/// Reads until the server closes the connection.
async fn closed(stream: &mut TcpStream, seconds: u64) -> Vec<u8> {
    let mut response = Vec::new();
    // A reset is an end, too.
    let _ = within(seconds, "the close", stream.read_to_end(&mut response)).await;
    response
}

/// The status of a response.
fn status(response: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(response);
    let status = text
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    status.unwrap_or_default().parse().unwrap_or_default()
}

async fn large_json_is_refused(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let large = "x".repeat(2 << 20);
    for (path, body) in [
        ("/sessions".to_owned(), json!({"image": large})),
        (
            format!("/sessions/{id}/exec"),
            json!({"cmd": ["cat"], "stdin": large}),
        ),
    ] {
        alice.post(&path, &body).await.detail(413);
    }
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let request = alice.request(reqwest::Method::POST, "/sessions");
    let request = request.header("content-type", "application/json");
    alice.send(request.body(nested)).await.detail(400);
    assert_serves(server).await;
}

async fn an_endless_upload_is_cut(server: &mut Server) {
    server.restart_with_quota("file_bytes = 1000000").await;
    let alice = server.alice();
    let id = server.session().await;
    let path = format!("/sessions/{id}/files?path=/tmp/endless");
    let head = head(server, "PUT", &path);
    let (mut reader, mut writer) = connect(server).await.into_split();
    let head = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    let sender = tokio::spawn(async move {
        writer.write_all(head.as_bytes()).await.unwrap();
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        let mut sent = 0;
        while writer.write_all(chunk.as_bytes()).await.is_ok() {
            sent += 0x10000;
        }
        sent
    });
    let mut response = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = within(20, "the response", reader.read(&mut buffer)).await {
        response.extend_from_slice(&buffer[..length]);
    }
    assert_eq!(
        status(&response),
        413,
        "{}",
        String::from_utf8_lossy(&response)
    );
    let sent = within(20, "the end of the upload", sender).await.unwrap();
    assert!(sent < 40_000_000, "{sent}");
    alice.fetch(&id, "/tmp/endless").await.detail(404);
    assert_eq!(alice.shell(&id, "ls -A /tmp").await.ok(), "");
    assert_no_temporary_files(server).await;
    assert_serves(server).await;
}

async fn assert_no_temporary_files(server: &Server) {
    eventually(10, "the removal of temporary files", async || {
        (fs::read_dir(server.temporary()).unwrap().count() == 0).then_some(())
    })
    .await;
}

async fn a_stalled_upload_is_cut(server: &mut Server) {
    server.restart_with(&TIMEOUTS).await;
    let id = server.session().await;
    let path = format!("/sessions/{id}/files?path=/tmp/stalled");
    let mut stream = connect(server).await;
    let head = head(server, "PUT", &path);
    let head = format!("{head}Content-Length: 1000\r\n\r\nbegin");
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(status(&closed(&mut stream, 15).await), 408);
    assert_eq!(server.alice().shell(&id, "ls -A /tmp").await.ok(), "");
    assert_no_temporary_files(server).await;
}

/// The time limits of the server, shortened.
const TIMEOUTS: [&str; 4] = ["--read-timeout", "1", "--write-timeout", "1"];

async fn many_headers_are_refused(server: &mut Server) {
    for (name, count, length) in [("many", 10_000, 10), ("long", 1, 2 << 20)] {
        let mut stream = connect(server).await;
        let mut request = head(server, "GET", "/sessions");
        for number in 0..count {
            request.push_str(&format!("X-{number}: {}\r\n", "x".repeat(length)));
        }
        request.push_str("\r\n");
        let _ = stream.write_all(request.as_bytes()).await;
        let response = closed(&mut stream, 15).await;
        assert!(
            [0, 431].contains(&status(&response)),
            "{name}: {}",
            status(&response)
        );
    }
    assert_serves(server).await;
}

async fn slow_headers_are_cut(server: &mut Server) {
    server.restart_with(&TIMEOUTS).await;
    let mut silent = connect(server).await;
    let mut half = connect(server).await;
    half.write_all(b"GET /sessions HTTP/1.1\r\nHost: ser")
        .await
        .unwrap();
    let mut idle = connect(server).await;
    let request = format!("{}\r\n", head(server, "GET", "/sessions"));
    idle.write_all(request.as_bytes()).await.unwrap();
    let slow = async {
        let (mut reader, mut writer) = connect(server).await.into_split();
        let start = Instant::now();
        let mut byte = [0];
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        loop {
            tokio::select! {
                _ = reader.read(&mut byte) => return start.elapsed(),
                _ = ticks.tick() => if writer.write_all(b"G").await.is_err() {
                    return start.elapsed();
                },
            }
        }
    };
    let took = within(15, "the cut of slow headers", slow).await;
    assert!(took > Duration::from_millis(500), "{took:?}");
    closed(&mut silent, 15).await;
    closed(&mut half, 15).await;
    assert_eq!(status(&closed(&mut idle, 15).await), 200);
    assert_serves(server).await;
}

async fn a_stalled_body_is_cut(server: &mut Server) {
    server.restart_with(&TIMEOUTS).await;
    for body in [
        "Content-Length: 1000\r\n\r\n{\"im",
        "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"ima",
    ] {
        let mut stream = connect(server).await;
        let head = head(server, "POST", "/sessions");
        let request = format!("{head}Content-Type: application/json\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        closed(&mut stream, 15).await;
    }
    assert_serves(server).await;
}

async fn a_reader_that_never_reads_is_cut(server: &mut Server) {
    server.restart_with(&TIMEOUTS).await;
    let alice = server.alice();
    let id = server.session().await;
    let before = server.memory();
    let line = "x".repeat(4000);
    let body = shell(&format!("yes {line} | head -c 40000000; exec sleep 600")).to_string();
    let path = format!("/sessions/{id}/exec");
    let request = format!(
        "{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        head(server, "POST", &path),
        body.len()
    );
    let mut stuck = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(server).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stuck.push(stream);
    }
    let execs = format!("/sessions/{id}/execs");
    let mut peak = before;
    eventually(30, "the end of the commands", async || {
        peak = peak.max(server.memory());
        let start = Instant::now();
        alice.session(&id).await;
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        let list = alice.get(&execs).await.expect(200);
        let execs = list["execs"].as_array().unwrap();
        let ended = execs.iter().filter(|one| one["state"] == "ended");
        (ended.count() == 3).then_some(())
    })
    .await;
    let grown = peak.saturating_sub(before) >> 20;
    assert!(grown < 64, "{grown} MiB");
    drop(stuck);
    assert_serves(server).await;
}

async fn idle_connections_do_not_block_others(server: &mut Server) {
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(connect(server).await);
    }
    let start = Instant::now();
    assert_serves(server).await;
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    drop(idle);
}

async fn garbage_is_refused(server: &mut Server) {
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
        .take(5000)
        .collect();
    for garbage in [
        noise.as_slice(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET /sessions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /sessions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /sessions HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"\0\0\0\0",
    ] {
        let mut stream = connect(server).await;
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let response = closed(&mut stream, 20).await;
        let status = status(&response);
        assert!(
            status == 0 || (400..600).contains(&status),
            "{status} to {garbage:?}"
        );
    }
    assert_serves(server).await;
}

async fn dots_in_a_path_are_not_resolved(server: &mut Server) {
    let id = server.session().await;
    for path in [
        format!("/sessions/{id}/execs/../audit"),
        format!("/sessions/{id}/execs/%2e%2e/audit"),
        format!("/sessions/../sessions/{id}"),
        "/sessions/%2e%2e/verify".into(),
        "/assets/../clients.toml".into(),
        "/assets/%2e%2e/%2e%2e/clients.toml".into(),
        "//sessions".into(),
    ] {
        let mut stream = connect(server).await;
        let request = format!("{}Connection: close\r\n\r\n", head(server, "GET", &path));
        stream.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(status(&closed(&mut stream, 15).await), 404, "{path}");
    }
}
