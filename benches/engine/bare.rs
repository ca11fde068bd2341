//! The simplest reader of a container's output: a socket and the standard library. It discards its
//! input.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::log_options;

/// Sends a request, and returns the connection and the head of the response.
fn call(method: &str, path: &str, body: &str, upgrade: bool) -> (UnixStream, String) {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let socket = host
        .strip_prefix("unix://")
        .unwrap_or("/var/run/docker.sock");
    let mut stream = UnixStream::connect(socket).unwrap();
    let connection = match upgrade {
        true => "Connection: Upgrade\r\nUpgrade: tcp",
        false => "Connection: close",
    };
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: docker\r\n{connection}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        seen.push(byte[0]);
    }
    (stream, String::from_utf8(seen).unwrap())
}

fn answer(method: &str, path: &str, body: &str) -> String {
    let (mut stream, head) = call(method, path, body, false);
    assert!(head.starts_with("HTTP/1.1 2"), "{method} {path}: {head}");
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn discard(mut stream: UnixStream) -> u64 {
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return bytes,
            count => bytes += count as u64,
        }
    }
}

/// Create, attach, start, read to the end, wait, remove.
pub fn attach(image: &str, driver: &str, cmd: &[String]) -> u64 {
    let log: HashMap<_, _> = log_options(driver).collect();
    let body = serde_json::json!({
        "Image": image,
        "Cmd": cmd,
        "HostConfig": {
            "NetworkMode": "none",
            "LogConfig": { "Type": driver, "Config": log },
        },
    });
    let body = body.to_string();
    let created = answer("POST", "/containers/create", &body);
    let id = created.split("\"Id\":\"").nth(1).unwrap()[..64].to_owned();
    let query = "stream=1&stdout=1&stderr=1";
    let (stream, head) = call(
        "POST",
        &format!("/containers/{id}/attach?{query}"),
        "",
        true,
    );
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    answer("POST", &format!("/containers/{id}/start"), "");
    let bytes = discard(stream);
    answer("POST", &format!("/containers/{id}/wait"), "");
    answer("DELETE", &format!("/containers/{id}?v=1"), "");
    bytes
}

/// Reads the engine's log of a container.
pub fn logs(container: &str) -> u64 {
    let query = "stdout=1&stderr=1";
    let (stream, head) = call(
        "GET",
        &format!("/containers/{container}/logs?{query}"),
        "",
        false,
    );
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    discard(stream)
}

/// Does the I/O of a seal: asks for the end of the log, if there is one, and writes and syncs twice.
/// Returns the time since `begin`.
pub fn seal(mut file: File, log: Option<&str>, begin: Instant) -> Duration {
    if let Some(container) = log {
        let query = "stdout=1&stderr=1&tail=64";
        let path = format!("/containers/{container}/logs?{query}");
        // The container may be removed by now.
        let (stream, _) = call("GET", &path, "", false);
        discard(stream);
    }
    for _ in 0..2 {
        file.write_all(&[b'x'; 1000]).unwrap();
        file.sync_data().unwrap();
    }
    begin.elapsed()
}
