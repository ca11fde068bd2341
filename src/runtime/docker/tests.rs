//! Tests of the adapter against scripted responses on a socket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use futures::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use super::client::{CALL_TIMEOUT, NO_TIMEOUT, path_segment};
use super::connection::{Address, Dialer};
use super::errors::Kind;
use super::exec::RepeatedSizes;
use super::*;
use crate::outcome::Stream;
use crate::runtime::{Chunk, ContainerStatus};
use crate::spec::{Credentials, Pull, RunId, WindowSize};

/// A socket on which a test responds, byte by byte.
struct Socket {
    _dir: tempfile::TempDir,
    listener: UnixListener,
}

impl Socket {
    fn new() -> (Self, Docker) {
        Self::of_version("1.41")
    }

    /// Creates an engine with this API version.
    fn of_version(api: &str) -> (Self, Docker) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let address = format!("unix://{}", path.display());
        let parsed = Address::parse(&address, &Environment::default()).unwrap();
        let dialer = Dialer::new(parsed).unwrap();
        let docker = Docker {
            port_host: dialer.address().host().to_owned(),
            client: Client {
                bollard: dialer.client(NO_TIMEOUT).unwrap(),
                dialer,
                address,
                engine: EngineInfo {
                    api: api.into(),
                    ..EngineInfo::new("Docker Engine", "20.10")
                },
                podman: false,
                timeout: CALL_TIMEOUT,
                repeated_sizes: RepeatedSizes::default(),
            },
            source: None,
        };
        let socket = Self {
            _dir: dir,
            listener,
        };
        (socket, docker)
    }

    /// Accepts a connection, and reads its request.
    async fn request(&self) -> (UnixStream, String) {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        (stream, String::from_utf8(request).unwrap())
    }

    /// Responds to one request, and closes the connection.
    async fn respond(&self, response: impl AsRef<[u8]>) -> String {
        let (mut stream, request) = self.request().await;
        stream.write_all(response.as_ref()).await.unwrap();
        request
    }
}

const UPGRADED: &str =
    "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n\x01\0\0\0\0\0\0\x02hi";

fn json_response(status: u16, body: &serde_json::Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\n{body}")
}

static ID: LazyLock<ContainerId> = LazyLock::new(|| ContainerId::new("abc"));

type Items = Vec<Result<Chunk, RuntimeError>>;

async fn all(stream: OutputStream) -> Items {
    stream.collect().await
}

fn stdout(bytes: &'static str) -> Chunk {
    Chunk::new(Stream::Stdout, bytes)
}

#[test]
fn an_unsafe_container_id_is_refused() {
    for bad in ["", "..", "a/b", "a?b", "a b", "json#", "é", "../images/x"] {
        let error = path_segment(&ContainerId::new(bad)).unwrap_err();
        assert!(matches!(
            error.error("x", "y"),
            RuntimeError::Rejected { .. }
        ));
    }
    assert!(path_segment(&ContainerId::new("moat-01-a_b.c")).is_ok());
}

#[tokio::test]
async fn an_attach_resolves_once_the_engine_responds() {
    let (socket, docker) = Socket::new();
    let answered = AtomicBool::new(false);
    let engine = async {
        let (mut stream, request) = socket.request().await;
        sleep(Duration::from_millis(100)).await;
        answered.store(true, Ordering::SeqCst);
        stream.write_all(UPGRADED.as_bytes()).await.unwrap();
        request
    };
    let client = async {
        let output = docker.attach(&ID, false).await.unwrap();
        assert!(
            answered.load(Ordering::SeqCst),
            "resolved before the response"
        );
        all(output.stream).await
    };
    let (request, mut seen) = tokio::join!(engine, client);
    let line = "POST /v1.41/containers/abc/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\n";
    assert!(request.starts_with(line), "{request}");
    let request = request.to_ascii_lowercase();
    assert!(request.contains("upgrade: tcp\r\n"), "{request}");
    assert_eq!(seen.len(), 1);
    assert_eq!(seen.remove(0).unwrap(), stdout("hi"));
}

#[tokio::test]
async fn an_attach_works_without_an_upgrade() {
    let (socket, docker) = Socket::new();
    let answer = "HTTP/1.1 200 OK\r\n\r\n\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0";
    let (_, output) = tokio::join!(socket.respond(answer), docker.attach(&ID, false));
    let output = output.unwrap();
    assert!(!output.end_marker);
    let mut seen = all(output.stream).await;
    assert_eq!(seen.remove(0).unwrap(), stdout("hi"));
    let error = seen.remove(0).unwrap_err().to_string();
    assert!(error.contains("dangling frame"), "{error}");
    assert!(seen.is_empty(), "an item after an error");
}

/// The head of the response to a request for a WebSocket.
fn websocket_head(request: &str) -> String {
    let key = request
        .lines()
        .find_map(|line| line.strip_prefix("sec-websocket-key: "));
    let accept = attach::websocket_accept(key.expect("a key"));
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// Attaches through WebSockets that carry `frames`, one of each stream.
async fn attach_by_websockets(frames: [&[u8]; 2]) -> (Vec<String>, Items) {
    let (socket, docker) = Socket::of_version("1.42");
    let engine = async {
        let mut lines = Vec::new();
        for _ in 0..2 {
            let (mut stream, request) = socket.request().await;
            let head = websocket_head(&request);
            stream.write_all(head.as_bytes()).await.unwrap();
            let is_stderr = request.contains("stderr=1");
            stream
                .write_all(frames[usize::from(is_stderr)])
                .await
                .unwrap();
            lines.push(request.lines().next().unwrap().to_owned());
        }
        lines
    };
    let client = async {
        let output = docker.attach(&ID, false).await.unwrap();
        assert!(output.end_marker);
        all(output.stream).await
    };
    let (mut lines, mut seen) = tokio::join!(engine, client);
    lines.sort();
    seen.sort_by_key(|item| {
        item.as_ref()
            .map_or(Stream::Tty as u8, |chunk| chunk.stream as u8)
    });
    (lines, seen)
}

#[tokio::test]
async fn a_websocket_per_stream_marks_the_end() {
    let frames: [&[u8]; 2] = [b"\x82\x02hi\x82\x01!\x88\x02\x03\xe8", b"\x88\x02\x03\xe8"];
    let (lines, seen) = attach_by_websockets(frames).await;
    let path = "GET /v1.42/containers/abc/attach/ws?stream=1";
    let expected = ["stderr", "stdout"].map(|stream| format!("{path}&{stream}=1 HTTP/1.1"));
    assert_eq!(lines, expected);
    let seen: Result<Vec<_>, _> = seen.into_iter().collect();
    assert_eq!(seen.unwrap(), [stdout("hi!")]);
}

#[tokio::test]
async fn a_websocket_without_its_close_ends_with_an_error() {
    let frames: [&[u8]; 2] = [b"\x82\x02hi\x82\x02!", b"\x88\x02\x03\xe8"];
    let (_, mut seen) = attach_by_websockets(frames).await;
    assert_eq!(seen.remove(0).unwrap(), stdout("hi!"));
    let error = seen.remove(0).unwrap_err().to_string();
    assert!(error.contains("without a Close frame"), "{error}");
    assert!(seen.is_empty(), "an item after an error");
}

#[tokio::test]
async fn a_terminal_has_one_websocket() {
    let (socket, docker) = Socket::new();
    let engine = async {
        let (mut stream, request) = socket.request().await;
        let head = websocket_head(&request);
        stream.write_all(head.as_bytes()).await.unwrap();
        let frames = b"\x82\x02hi\x88\x02\x03\xe8";
        stream.write_all(frames).await.unwrap();
        // The connection stays open: the Close frame is the end.
        (stream, request)
    };
    let client = async { all(docker.attach(&ID, true).await.unwrap().stream).await };
    let ((_stream, request), mut seen) = tokio::join!(engine, client);
    let line = "GET /v1.41/containers/abc/attach/ws?stream=1&stdout=1 HTTP/1.1\r\n";
    assert!(request.starts_with(line), "{request}");
    let chunk = seen.remove(0).unwrap();
    assert_eq!((chunk.stream, &*chunk.bytes), (Stream::Tty, &b"hi"[..]));
    assert!(seen.is_empty());
}

#[tokio::test]
async fn without_websockets_the_connection_is_raw() {
    let refused = json_response(403, &json!({"message": "not for you"}));
    let other_key = "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let not_upgraded = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for answer in [refused.as_str(), other_key, not_upgraded] {
        let (socket, docker) = Socket::of_version("1.51");
        let engine = async {
            let first = socket.respond(answer).await;
            let second = socket.respond(answer).await;
            assert!(first.contains("/attach/ws?") && second.contains("/attach/ws?"));
            socket.respond(UPGRADED).await
        };
        let client = async {
            let output = docker.attach(&ID, false).await.unwrap();
            assert!(!output.end_marker);
            all(output.stream).await
        };
        let (request, mut seen) = tokio::join!(engine, client);
        assert!(request.starts_with("POST /v1.51/containers/abc/attach?"));
        assert_eq!(seen.remove(0).unwrap(), stdout("hi"));
    }
}

#[tokio::test]
async fn a_truncated_log_ends_with_an_error() {
    let (socket, docker) = Socket::new();
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                  a\r\n\x01\0\0\0\0\0\0\x02hi\r\n";
    let request = LogsRequest::all(false);
    let (_, log) = tokio::join!(socket.respond(answer), docker.logs(&ID, request));
    let mut seen = all(log.unwrap()).await;
    assert_eq!(seen.remove(0).unwrap(), stdout("hi"));
    assert!(matches!(seen.remove(0), Err(RuntimeError::Broken { .. })));
    assert!(seen.is_empty(), "an item after an error");
}

/// A proxy that uses HTTP/1.0 ends the connection where it is cut off, too.
#[tokio::test]
async fn a_log_without_a_marked_end_is_refused() {
    for head in ["HTTP/1.0 200 OK", "HTTP/1.1 200 OK\r\nConnection: close"] {
        let (socket, docker) = Socket::new();
        let answer = format!("{head}\r\n\r\n\x01\0\0\0\0\0\0\x02hi");
        let request = LogsRequest::all(false);
        let (_, log) = tokio::join!(socket.respond(answer), docker.logs(&ID, request));
        let error = log.err().unwrap();
        assert!(error.is_definitive(), "{error:?}");
        assert!(
            error.to_string().contains("does not mark its end"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_log_of_many_lines_becomes_few_chunks() {
    let (socket, docker) = Socket::new();
    let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..10_000 {
        answer.extend_from_slice(b"58\r\n\x01\0\0\0\0\0\0\x50");
        answer.extend_from_slice(&[b'x'; 80]);
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(b"0\r\n\r\n");
    let log = async { all(docker.logs(&ID, LogsRequest::all(false)).await.unwrap()).await };
    let (_, seen) = tokio::join!(socket.respond(answer), log);
    let chunks = seen.len();
    let bytes: usize = seen
        .into_iter()
        .map(|chunk| chunk.unwrap().bytes.len())
        .sum();
    assert_eq!(bytes, 800_000);
    assert!(chunks < 500, "{chunks}");
}

#[tokio::test]
async fn a_refused_attach_has_the_engines_message() {
    for (status, message, kind) in [
        (404, "No such container: abc", Kind::NotFound),
        (409, "container abc is paused", Kind::Conflict),
        (500, "no", Kind::Rejected),
    ] {
        let (socket, docker) = Socket::new();
        let answer = json_response(status, &json!({"message": message}));
        let (_, output) = tokio::join!(socket.respond(answer), docker.attach(&ID, false));
        let error = output.err().unwrap();
        assert_eq!(Kind::of(&error), kind);
        assert!(error.to_string().contains(message));
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_engine_is_an_inconclusive_timeout() {
    let (socket, docker) = Socket::new();
    let silent = async {
        let held = socket.request().await;
        std::future::pending::<()>().await;
        drop(held);
    };
    let client = async {
        let started = Instant::now();
        let error = docker.attach(&ID, false).await.err().unwrap();
        assert_eq!(started.elapsed().as_secs(), 30);
        error
    };
    let error = tokio::select! {
        () = silent => unreachable!(),
        error = client => error,
    };
    assert!(matches!(error, RuntimeError::Timeout { .. }), "{error}");
    assert!(!error.is_definitive());
}

/// Creates a container on an engine that takes `late` to answer.
async fn create_late(limit: Duration, late: Duration) -> Result<Created, RuntimeError> {
    let (socket, docker) = Socket::new();
    let docker = docker.with_timeout(limit).unwrap();
    let engine = async {
        let (mut stream, _) = socket.request().await;
        sleep(late).await;
        let created = json_response(201, &json!({"Id": "abc", "Warnings": []}));
        // The client may have gone.
        let _ = stream.write_all(created.as_bytes()).await;
    };
    let (root, run) = (RootId::generate(), RunId::generate());
    let spec = RunSpec::new("x");
    let request = CreateRequest::new("moat-x", &root, &run, &spec);
    let ((), created) = tokio::join!(engine, docker.create(request));
    created
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_a_call_can_be_set() {
    let seconds = Duration::from_secs;
    let created = create_late(seconds(60), seconds(45)).await;
    assert_eq!(created.unwrap().container, *ID);
    for limit in [CALL_TIMEOUT, seconds(2)] {
        let error = create_late(limit, seconds(45)).await.unwrap_err();
        assert!(
            matches!(error, RuntimeError::Timeout { after, .. } if after == limit),
            "{error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_timeout_bounds_calls_without_bollard() {
    let (socket, docker) = Socket::new();
    let limit = Duration::from_secs(45);
    let docker = docker.with_timeout(limit).unwrap();
    let silent = async {
        let held = socket.request().await;
        std::future::pending::<()>().await;
        drop(held);
    };
    let started = Instant::now();
    let error = tokio::select! {
        () = silent => unreachable!(),
        inspected = docker.inspect(&ID) => inspected.unwrap_err(),
    };
    assert!(matches!(error, RuntimeError::Timeout { after, .. } if after == limit));
    assert_eq!(started.elapsed().as_secs(), 45);
}

#[tokio::test]
async fn a_timeout_of_zero_is_refused() {
    let (_socket, docker) = Socket::new();
    let error = docker.with_timeout(Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("it is zero"), "{error}");
}

#[tokio::test]
async fn an_incomplete_wait_is_an_error() {
    let (socket, docker) = Socket::new();
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"StatusCode\"";
    let (_, status) = tokio::join!(socket.respond(cut), docker.wait(&ID));
    assert!(matches!(status, Err(RuntimeError::Broken { .. })));
    let none = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let (_, status) = tokio::join!(socket.respond(none), docker.wait(&ID));
    assert!(matches!(status, Err(RuntimeError::Broken { .. })));
    let late = json_response(200, &json!({"StatusCode": 7}));
    let (_, status) = tokio::join!(socket.respond(late), docker.wait(&ID));
    assert_eq!(status.unwrap().code, Some(7));
}

#[tokio::test]
async fn podmans_states_are_understood() {
    let (socket, docker) = Socket::new();
    let answer = json_response(200, &json!({"State": {"Status": "stopped", "ExitCode": 3}}));
    let (_, seen) = tokio::join!(socket.respond(answer), docker.inspect(&ID));
    let seen = seen.unwrap();
    assert_eq!((seen.status, seen.code), (ContainerStatus::Ended, Some(3)));
}

/// Creates an engine that is Podman.
fn podman(version: &str) -> (Socket, Docker) {
    let (socket, mut docker) = Socket::new();
    docker.client.podman = true;
    docker.client.engine.version = version.into();
    (socket, docker)
}

#[tokio::test]
async fn podman_runs_execs_from_version_5_on() {
    for (version, execs) in [("4.9.3", false), ("5.0.0", true), ("5.8.6", true)] {
        let (_socket, docker) = podman(version);
        assert_eq!(docker.capabilities().exec, execs, "{version}");
    }
}

/// Podman would prepare it for another start, and forget its exit code.
#[tokio::test]
async fn an_ended_container_of_podman_is_not_attached_to() {
    let (socket, docker) = podman("5.8.6");
    let ended = json_response(200, &json!({"State": {"Status": "exited", "ExitCode": 7}}));
    let (_, attached) = tokio::join!(socket.respond(&ended), docker.attach_running(&ID, false));
    assert!(matches!(attached, Err(RuntimeError::Conflict { .. })));
    let (_, input) = tokio::join!(socket.respond(&ended), docker.stdin(&ID));
    assert!(matches!(input, Err(RuntimeError::Conflict { .. })));
}

/// Podman ends the input of a terminal without its output, and stops reading the input of a client
/// that does not read.
#[tokio::test]
async fn the_output_beside_an_input_of_podman_is_read() {
    let (socket, docker) = podman("5.8.6");
    for (tty, stdout) in [(false, "&stdout=0&"), (true, "&stdout=1&")] {
        let arrived = tokio::sync::Notify::new();
        let engine = async {
            let state = json!({"State": {"Status": "running"}, "Config": {"Tty": tty}});
            socket.respond(json_response(200, &state)).await;
            let (mut stream, request) = socket.request().await;
            assert!(
                request.contains(stdout) && request.contains("&stderr=0&"),
                "{request}"
            );
            stream.write_all(UPGRADED.as_bytes()).await.unwrap();
            if tty {
                // More than the buffers of a socket.
                stream.write_all(&[b'x'; 4 << 20]).await.unwrap();
            }
            assert_eq!(stream.read_u8().await.unwrap(), b'!');
            arrived.notify_one();
            // The connection is closed, with or without unread output.
            assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)));
        };
        let client = async {
            let mut input = docker.stdin(&ID).await.unwrap();
            input.write_all(b"!").await.unwrap();
            input.flush().await.unwrap();
            arrived.notified().await;
        };
        tokio::join!(engine, client);
    }
}

/// Podman may set the first of two sizes twice.
#[tokio::test(start_paused = true)]
async fn the_last_size_of_a_terminal_is_set_again_on_podman() {
    let (socket, docker) = podman("5.8.6");
    let next = async || {
        let request = socket.respond("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let request = request.await;
        let (_, size) = request.split_once("?").unwrap();
        size.split_once(' ').unwrap().0.to_owned()
    };
    let engine = async {
        let mut sizes = Vec::new();
        for _ in 0..4 {
            sizes.push(next().await);
        }
        sizes
    };
    let client = async {
        docker.resize(&ID, WindowSize::new(80, 23)).await.unwrap();
        docker.resize(&ID, WindowSize::new(80, 24)).await.unwrap();
    };
    let both = async { tokio::join!(engine, client) };
    let (sizes, ()) = timeout(Duration::from_secs(60), both).await.unwrap();
    assert_eq!(sizes, ["h=23&w=80", "h=24&w=80", "h=24&w=80", "h=24&w=80"]);
    let more = timeout(Duration::from_secs(60), next());
    assert!(more.await.is_err(), "nothing more is sent");
}

#[tokio::test(start_paused = true)]
async fn an_empty_archive_is_requested_again() {
    let (socket, docker) = Socket::new();
    let empty = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let container = || json_response(200, &json!({"State": {"Status": "running"}}));
    let engine = async {
        socket.respond(container()).await;
        socket.respond(empty).await;
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntar";
        socket.respond(whole).await;
    };
    let ((), archive) = tokio::join!(engine, docker.copy_out(&ID, "/file"));
    let bytes: Vec<_> = archive.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(bytes.concat(), b"tar");
    let engine = async {
        socket.respond(container()).await;
        loop {
            socket.respond(empty).await;
        }
    };
    let empty = tokio::select! {
        archive = docker.copy_out(&ID, "/file") => archive,
        () = engine => unreachable!(),
    };
    assert!(matches!(empty, Err(RuntimeError::Broken { .. })));
}

/// Serves a list of images after `refusals` refusals. Returns what moat makes of it.
async fn images_after(refusals: usize) -> Result<Vec<ImageInfo>, RuntimeError> {
    let (socket, docker) = Socket::new();
    let engine = async {
        for _ in 0..refusals {
            let removed = json!({"message": "content digest sha256:abc: not found"});
            socket.respond(json_response(404, &removed)).await;
        }
        let images = json!([{"Id": "sha256:def"}]);
        socket.respond(json_response(200, &images)).await;
        std::future::pending().await
    };
    tokio::select! {
        images = docker.images() => images,
        () = engine => unreachable!(),
    }
}

#[tokio::test]
async fn a_removal_during_the_list_of_images_is_retried() {
    let images = images_after(4).await.unwrap();
    assert_eq!(images, [ImageInfo::new("sha256:def")]);
    let refused = images_after(5).await.unwrap_err();
    assert!(refused.to_string().contains("list the images"), "{refused}");
}

#[tokio::test]
async fn a_concurrent_removal_is_awaited() {
    let (socket, docker) = Socket::new();
    let engine = async {
        let busy = json!({"message": "removal of container abc is already in progress"});
        socket.respond(json_response(409, &busy)).await;
        let here = json!({"State": {"Status": "removing"}});
        socket.respond(json_response(200, &here)).await;
        let gone = json!({"message": "No such container: abc"});
        socket.respond(json_response(404, &gone)).await;
    };
    let ((), removed) = tokio::join!(engine, docker.remove(&ID, false));
    removed.unwrap();
}

/// Events during a request are not in its response, and displace older events.
#[tokio::test]
async fn events_displaced_during_a_request_are_unknown() {
    let event = |id: &str| json!({"Type": "container", "Action": "die", "Actor": {"ID": id}});
    let (first, second) = (event("1").to_string(), event("2").to_string());
    for (answers, expected) in [
        ([first.clone(), second], Continuity::Unknown),
        ([first.clone(), first], Continuity::Broken),
    ] {
        let (socket, docker) = Socket::new();
        let engine = async {
            for answer in answers {
                let length = answer.len();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                let request = socket.respond(head + &answer).await;
                assert!(request.starts_with("GET /v1.41/events?since=1&until="));
            }
            std::future::pending::<()>().await
        };
        let continuity = tokio::select! {
            () = engine => unreachable!(),
            continuity = docker.continuity(&ID) => continuity.unwrap(),
        };
        assert_eq!(continuity, expected);
    }
}

#[tokio::test]
async fn a_log_that_is_removed_with_its_container_is_not_found() {
    let (socket, docker) = Socket::new();
    let gone = json!({"message": "No such container: abc"});
    let engine = async {
        let marked = json!({"message": "container which is dead or marked for removal"});
        socket.respond(json_response(409, &marked)).await;
        socket.respond(json_response(404, &gone)).await;
    };
    let ((), log) = tokio::join!(engine, docker.logs(&ID, LogsRequest::all(false)));
    assert!(log.err().unwrap().is_not_found());
}

#[tokio::test]
async fn a_pull_sends_credentials_and_reports_progress() {
    let (socket, docker) = Socket::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let spec = RunSpec::new("registry.test:5000/a/b")
        .credentials(Credentials::new("me", "~~~???>>>"))
        .platform("linux/arm64")
        .on_pull(move |progress| sink.lock().unwrap().push(progress.status));
    let engine = async {
        let missing = json!({"message": "No such image: registry.test:5000/a/b"});
        let asked = socket.respond(json_response(404, &missing)).await;
        let pull = socket
            .respond("HTTP/1.1 200 OK\r\n\r\n{\"status\":\"Pulling\"}\r\n{\"status\":\"Done\"}\r\n")
            .await;
        socket.respond(json_response(200, &json!({}))).await;
        (asked, pull)
    };
    let ((asked, pull), prepared) = tokio::join!(engine, docker.prepare(&spec));
    prepared.unwrap();
    assert!(
        asked.starts_with("GET /v1.41/images/registry.test:5000/a/b/json "),
        "{asked}"
    );
    let line = "POST /v1.41/images/create?fromImage=registry.test%3A5000%2Fa%2Fb&tag=latest\
                &platform=linux%2Farm64 HTTP/1.1";
    assert!(pull.starts_with(line), "{pull}");
    let lower = pull.to_ascii_lowercase();
    let at = lower.find("x-registry-auth: ").unwrap() + "x-registry-auth: ".len();
    let value = pull[at..].lines().next().unwrap();
    assert!(!value.contains(['+', '/']), "{value}");
    assert_eq!(*seen.lock().unwrap(), ["Pulling", "Done"]);
}

/// Prepares an image for arm64, where each inspection finds one of these architectures. Returns
/// the operations.
async fn prepare_arm64(
    pull: Pull,
    found: &[&str],
) -> (Vec<&'static str>, Result<(), RuntimeError>) {
    let (socket, docker) = Socket::new();
    let spec = RunSpec::new("registry.test/x")
        .credentials(Credentials::new("me", "secret"))
        .platform("linux/arm64")
        .pull(pull);
    let operations = Mutex::new(Vec::new());
    let engine = async {
        let mut found = found.iter();
        loop {
            let (mut stream, request) = socket.request().await;
            let is_pull = request.starts_with("POST ");
            let answer = match is_pull {
                true => json!({"status": "Done"}),
                false => json!({"Os": "linux", "Architecture": found.next().unwrap()}),
            };
            let operation = if is_pull { "pull" } else { "inspect" };
            operations.lock().unwrap().push(operation);
            let answer = json_response(200, &answer);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    };
    let prepared = tokio::select! {
        () = engine => unreachable!(),
        prepared = docker.prepare(&spec) => prepared,
    };
    (operations.into_inner().unwrap(), prepared)
}

#[tokio::test]
async fn an_image_of_another_platform_is_pulled() {
    let (operations, prepared) = prepare_arm64(Pull::Missing, &["amd64", "arm64"]).await;
    prepared.unwrap();
    assert_eq!(operations, ["inspect", "pull", "inspect"]);
    let (operations, prepared) = prepare_arm64(Pull::Missing, &["arm64"]).await;
    prepared.unwrap();
    assert_eq!(operations, ["inspect"]);
}

#[tokio::test]
async fn an_image_of_another_platform_is_no_such_image() {
    for (pull, found) in [
        (Pull::Never, &["amd64"][..]),
        (Pull::Missing, &["amd64", "amd64"]),
        (Pull::Always, &["amd64"]),
    ] {
        let (_, prepared) = prepare_arm64(pull, found).await;
        let error = prepared.unwrap_err();
        assert!(
            matches!(error, RuntimeError::NoSuchImage { .. }),
            "{error:?}"
        );
        let text = "has the image for linux/amd64 and not for linux/arm64";
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test]
async fn an_image_of_several_platforms_is_there_for_each() {
    for (status, is_there) in [(200, true), (404, false)] {
        let (socket, docker) = Socket::of_version("1.49");
        let spec = RunSpec::new("x").platform("linux/arm64").pull(Pull::Never);
        let engine = async {
            let other = json!({"Os": "linux", "Architecture": "amd64"});
            socket.respond(json_response(200, &other)).await;
            let answer = json!({"message": "no such platform"});
            socket.respond(json_response(status, &answer)).await
        };
        let (request, prepared) = tokio::join!(engine, docker.prepare(&spec));
        assert!(
            request.starts_with("GET /v1.49/images/x/json?platform=%7B"),
            "{request}"
        );
        assert_eq!(prepared.is_ok(), is_there, "{prepared:?}");
    }
}

#[tokio::test]
async fn an_error_within_a_pull_has_a_hint() {
    let (socket, docker) = Socket::new();
    let spec = RunSpec::new("registry.test/x")
        .credentials(Credentials::new("me", "secret"))
        .pull(Pull::Always);
    let answer = "HTTP/1.1 200 OK\r\n\r\n{\"status\":\"Pulling\"}\r\n\
                  {\"errorDetail\":{\"message\":\"manifest unknown\"},\"error\":\"x\"}\r\n";
    let (_, prepared) = tokio::join!(socket.respond(answer), docker.prepare(&spec));
    let error = prepared.unwrap_err();
    assert!(
        matches!(error, RuntimeError::NoSuchImage { .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("check the name and the tag"),
        "{error}"
    );
}

/// Prepares an image for arm64 whose pull fails with `error`, and which the engine has for `found`.
/// Returns the reports of a fallback.
async fn prepare_newer(
    error: &str,
    found: Option<&str>,
) -> (Vec<String>, Result<(), RuntimeError>) {
    let (socket, docker) = Socket::new();
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    let spec = RunSpec::new("registry.test/x")
        .credentials(Credentials::new("me", "secret"))
        .platform("linux/arm64")
        .pull(Pull::Newer)
        .on_pull(move |progress| {
            if progress.fallback {
                sink.lock().unwrap().push(progress.status);
            }
        });
    let engine = async {
        let error = json!({"message": error});
        let pull = socket.respond(json_response(500, &error)).await;
        assert!(pull.starts_with("POST "), "{pull}");
        let answer = match found {
            Some(found) => json_response(200, &json!({"Os": "linux", "Architecture": found})),
            None => json_response(404, &json!({"message": "No such image: x"})),
        };
        socket.respond(answer).await;
    };
    let ((), prepared) = tokio::join!(engine, docker.prepare(&spec));
    let reports = reports.lock().unwrap().clone();
    (reports, prepared)
}

#[tokio::test]
async fn a_failed_pull_falls_back_to_the_local_image() {
    let (reports, prepared) = prepare_newer("manifest unknown", Some("arm64")).await;
    prepared.unwrap();
    let reason = "the local image registry.test/x is used, because the pull failed: \
                  manifest unknown";
    assert_eq!(reports, [reason]);
}

#[tokio::test]
async fn without_a_local_image_a_failed_pull_is_the_error() {
    for found in [None, Some("amd64")] {
        let (reports, prepared) = prepare_newer("manifest unknown", found).await;
        let error = prepared.unwrap_err();
        assert!(
            matches!(error, RuntimeError::NoSuchImage { .. }),
            "{error:?}"
        );
        let text = "cannot find image registry.test/x: manifest unknown";
        assert!(error.to_string().starts_with(text), "{error}");
        assert_eq!(reports, [""; 0]);
    }
}

/// Pulls an image, while each pull fails with `error`. Returns the number of pulls, their
/// reports, and the error.
async fn pull_always(retries: u32, error: &str) -> (usize, Vec<String>, RuntimeError) {
    let (socket, docker) = Socket::new();
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    let spec = RunSpec::new("registry.test/x")
        .credentials(Credentials::new("me", "secret"))
        .pull(Pull::Always)
        .pull_retries(retries)
        .on_pull(move |progress| sink.lock().unwrap().push(progress.status));
    let mut pulls = 0;
    let answer = json_response(500, &json!({"message": error}));
    let engine = async {
        loop {
            socket.respond(&answer).await;
            pulls += 1;
        }
    };
    let prepared = tokio::select! {
        () = engine => unreachable!(),
        prepared = docker.prepare(&spec) => prepared,
    };
    let reports = reports.lock().unwrap().clone();
    (pulls, reports, prepared.unwrap_err())
}

#[tokio::test(start_paused = true)]
async fn a_pull_is_retried_after_growing_pauses() {
    let error = "dial tcp: connection refused";
    let started = Instant::now();
    let (pulls, reports, failed) = pull_always(6, error).await;
    assert_eq!(pulls, 7);
    let reported = |seconds| format!("Retrying in {seconds} s: {error}");
    assert_eq!(reports, [1, 2, 4, 8, 16, 30].map(reported));
    assert_eq!(started.elapsed().as_secs(), 61);
    assert!(failed.to_string().contains(error), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn a_denied_pull_is_not_retried() {
    for error in ["manifest unknown", "access denied", "unauthorized"] {
        let (pulls, reports, failed) = pull_always(6, error).await;
        assert_eq!((pulls, reports.len()), (1, 0), "{failed}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_pull_without_progress_times_out() {
    let (socket, docker) = Socket::new();
    let spec = RunSpec::new("registry.test/x")
        .credentials(Credentials::new("me", "secret"))
        .pull(Pull::Always)
        .pull_retries(0);
    let engine = async {
        let (mut stream, _) = socket.request().await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        for _ in 0..5 {
            sleep(Duration::from_secs(50)).await;
            stream.write_all(b"{\"status\":\"x\"}\n").await.unwrap();
        }
        std::future::pending::<()>().await;
    };
    let started = Instant::now();
    let prepared = tokio::select! {
        () = engine => unreachable!(),
        prepared = docker.prepare(&spec) => prepared,
    };
    let error = prepared.unwrap_err();
    assert!(
        matches!(error, RuntimeError::Timeout { after, .. } if after.as_secs() == 60),
        "{error}"
    );
    assert!(
        started.elapsed() >= Duration::from_secs(300),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn podman_is_recognized() {
    let (socket, docker) = Socket::new();
    let engine = async {
        socket
            .respond("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
            .await;
        let version = json!({"Version": "4.3.1", "ApiVersion": "1.41",
            "Components": [{"Name": "Podman Engine", "Version": "4.3.1"}]});
        socket.respond(json_response(200, &version)).await;
        socket.respond(json_response(200, &version)).await;
    };
    let connecting =
        Docker::connect_with(ConnectOptions::default().address(&docker.client.address));
    let ((), connected) = tokio::join!(engine, connecting);
    let client = connected.unwrap().client;
    assert!(client.podman);
    assert_eq!(client.engine.name, "Podman Engine");
    assert_eq!(client.engine.api, "1.41");
}

#[tokio::test]
async fn another_server_is_not_an_engine() {
    for answer in [
        "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!",
        "SSH-2.0-OpenSSH\r\n",
        "",
    ] {
        let (socket, docker) = Socket::new();
        let connect = Docker::connect_to(&docker.client.address);
        let (_, connected) = tokio::join!(socket.respond(answer), connect);
        let error = connected.unwrap_err();
        assert!(
            matches!(
                error,
                crate::error::Error::Runtime(RuntimeError::Unavailable { .. })
            ),
            "{error:?}"
        );
    }
}

#[test]
fn newer_versions_wait_for_their_readers() {
    for (version, drain) in [
        ("20.10.24+dfsg1", Some(DRAIN_LIMIT)),
        ("23.0.18", Some(DRAIN_LIMIT)),
        ("24.0.0-rc.1", Some(NO_DRAIN)),
        ("24.0.5", Some(NO_DRAIN)),
        ("24.0.6", None),
        ("25.0.0", None),
        ("28.5.2+dfsg4", None),
        ("library-import", Some(DRAIN_LIMIT)),
    ] {
        assert_eq!(drain_limit(version), drain, "{version}");
    }
}
