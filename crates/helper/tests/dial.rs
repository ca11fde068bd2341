//! Connections to ports of the pod.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use support::protocol::Kind;
use support::{Options, Pod, bytes_of, read_frame, read_frames, send};

/// A pod whose command runs, and a listener on a port.
fn pod() -> (Pod, TcpListener, String) {
    let pod = Pod::with(Options {
        serve: &["--stdin", "open"],
        run: &["--stdin"],
        command: &["cat"],
    });
    pod.release();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let request = format!("dial {}", listener.local_addr().unwrap().port());
    (pod, listener, request)
}

/// Connects through the collector, and returns both ends.
fn connect(pod: &Pod, listener: &TcpListener, request: &str) -> (UnixStream, TcpStream) {
    let mut client = pod.connect(request);
    assert_eq!(read_frame(&mut client).unwrap().kind, Kind::Done);
    let (server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(support::DEADLINE)).unwrap();
    (client, server)
}

#[test]
fn both_directions_carry_all_bytes_and_end_alone() {
    let (pod, listener, request) = pod();
    let (mut client, mut server) = connect(&pod, &listener, &request);
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
    let echo = std::thread::spawn(move || {
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        server.write_all(&received).unwrap();
    });
    for part in bytes.chunks(50_000) {
        send(&mut client, Kind::Data, part);
    }
    send(&mut client, Kind::Close, &[]);
    let mut frames = Vec::new();
    while frames
        .last()
        .is_none_or(|last: &support::Frame| last.kind == Kind::Data)
    {
        frames.push(read_frame(&mut client).unwrap());
    }
    assert_eq!(frames.pop().unwrap().kind, Kind::Close);
    assert!(bytes_of(&frames, Kind::Data) == bytes);
    echo.join().unwrap();
}

#[test]
fn a_client_that_is_gone_closes_the_connection() {
    let (pod, listener, request) = pod();
    let (client, mut server) = connect(&pod, &listener, &request);
    drop(client);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_server_on_ipv6_is_found() {
    let (pod, _, _) = pod();
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let request = format!("dial {}", listener.local_addr().unwrap().port());
    connect(&pod, &listener, &request);
}

#[test]
fn a_server_that_resets_the_connection_is_reported() {
    let (pod, listener, request) = pod();
    let (mut client, server) = connect(&pod, &listener, &request);
    send(&mut client, Kind::Data, b"unread");
    server.peek(&mut [0]).unwrap();
    drop(server);
    let end = read_frame(&mut client).unwrap();
    assert!([Kind::Failed, Kind::Close].contains(&end.kind), "{end:?}");
    client.shutdown(Shutdown::Write).unwrap();
    assert!(read_frames(&mut client).is_empty());
}

#[test]
fn a_closed_port_is_a_failure() {
    let (pod, listener, request) = pod();
    drop(listener);
    let (errno, text) = pod.ask(&request).failure();
    assert_eq!(errno, 111);
    assert!(text.starts_with("connect to port "), "{text}");
}

#[test]
fn only_a_command_that_runs_is_dialed() {
    let pod = Pod::sh("true");
    assert_eq!(pod.ask("dial 80").kind, Kind::Refused);
    pod.release();
    pod.wait_phase("ended");
    assert_eq!(pod.ask("dial 80").kind, Kind::Refused);
    for port in ["0x50", "65536", ""] {
        assert_eq!(pod.ask(&format!("dial {port}")).kind, Kind::Refused);
    }
}
