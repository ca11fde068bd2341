//! Processes that run by an exec.

mod support;

use std::io::Read as _;
use std::process::{Child, Stdio};

use support::protocol::{Kind, encode_strings};
use support::{Frame, bytes_of, eventually, helper, kinds, read_frame, read_frames, send, sha256};

struct Exec(Child);

impl Exec {
    fn start(command: &[&str], env: &[&str], place: [&str; 2], features: &[&str]) -> Self {
        let mut exec = helper();
        exec.args(["exec", "/nonexistent"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut exec = Self(exec.spawn().unwrap());
        let mut spec = Vec::new();
        for strings in [command, env, &place, features] {
            encode_strings(&mut spec, strings);
        }
        exec.send(Kind::Spec, &spec);
        exec
    }

    fn sh(script: &str, features: &[&str]) -> Self {
        Self::start(&["sh", "-c", script], &[], ["", ""], features)
    }

    fn send(&mut self, kind: Kind, payload: &[u8]) {
        send(self.0.stdin.as_mut().unwrap(), kind, payload);
    }

    fn next(&mut self) -> Frame {
        read_frame(self.0.stdout.as_mut().unwrap()).unwrap()
    }

    fn all(mut self) -> Vec<Frame> {
        let frames = read_frames(self.0.stdout.as_mut().unwrap());
        self.0.wait().unwrap();
        frames
    }
}

#[test]
fn output_and_exit_are_reported() {
    let exec = Exec::start(
        &["sh", "-c", "echo $GREETING; pwd >&2; exit 3"],
        &["GREETING=a=b"],
        ["/", ""],
        &[],
    );
    let frames = exec.all();
    assert_eq!(frames[0].kind, Kind::Started);
    assert_eq!(bytes_of(&frames, Kind::Stdout), b"a=b\n");
    assert_eq!(bytes_of(&frames, Kind::Stderr), b"/\n");
    let exited = frames
        .iter()
        .find(|frame| frame.kind == Kind::Exited)
        .unwrap();
    assert_eq!(exited.code(), 3);
    let (out, err) = (sha256(b"a=b\n"), sha256(b"/\n"));
    let end = frames.last().unwrap();
    assert_eq!(
        end.text(),
        format!("stdout 4 {out}\nstderr 2 {err}\nexit 3\n")
    );
}

#[test]
fn input_arrives_and_ends() {
    let mut bytes = vec![0; 3_000_000];
    std::fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    let mut exec = Exec::sh("cat", &["stdin"]);
    let mut stdin = exec.0.stdin.take().unwrap();
    let copy = bytes.clone();
    let writer = std::thread::spawn(move || {
        for part in copy.chunks(1 << 20) {
            send(&mut stdin, Kind::Data, part);
        }
        send(&mut stdin, Kind::Close, &[]);
        stdin
    });
    let frames = exec.all();
    assert!(bytes_of(&frames, Kind::Stdout) == bytes);
    drop(writer.join());
}

#[test]
fn without_input_there_is_an_empty_one() {
    assert_eq!(
        bytes_of(&Exec::sh("cat; echo $?", &[]).all(), Kind::Stdout),
        b"0\n"
    );
}

#[test]
fn a_connection_that_ends_is_no_end_of_the_input() {
    let mut exec = Exec::sh(
        "read line; echo got $line; read line; echo more",
        &["stdin"],
    );
    exec.send(Kind::Data, b"one\n");
    drop(exec.0.stdin.take());
    while exec.next().kind != Kind::Stdout {}
    assert!(exec.0.try_wait().unwrap().is_none());
    exec.0.kill().unwrap();
    exec.0.wait().unwrap();
}

#[test]
fn a_terminal_can_be_resized() {
    let script = "test -t 0 && stty size; trap 'stty size; exit 4' WINCH; echo up; \
                  while :; do sleep 0.01; done";
    let mut exec = Exec::sh(script, &["tty", "stdin", "81x25"]);
    let mut seen = String::new();
    while !seen.contains("up") {
        let frame = exec.next();
        seen.push_str(if frame.kind == Kind::Tty {
            str::from_utf8(&frame.payload).unwrap()
        } else {
            ""
        });
    }
    assert!(seen.contains("25 81\r\n"), "{seen}");
    exec.send(Kind::Resize, &[100, 0, 30, 0]);
    let frames = exec.all();
    assert!(bytes_of(&frames, Kind::Tty).starts_with(b"30 100\r\n"));
    assert!(
        frames
            .iter()
            .any(|frame| frame.kind == Kind::Exited && frame.code() == 4)
    );
}

#[test]
fn signals_reach_the_process() {
    let mut exec = Exec::sh("echo up; exec sleep 1000", &[]);
    while exec.next().kind != Kind::Stdout {}
    exec.send(Kind::Signal, &15_i32.to_le_bytes());
    let frames = exec.all();
    assert_eq!(kinds(&frames), [Kind::Exited, Kind::End]);
    assert_eq!(frames[0].code(), 143);
}

#[test]
fn the_exit_does_not_wait_for_open_output() {
    let frames = Exec::sh("(sleep 0.3; echo late) & exit 5", &[]).all();
    let expected = [Kind::Started, Kind::Exited, Kind::Stdout, Kind::End];
    assert_eq!(kinds(&frames), expected);
}

#[test]
fn failures_are_reported() {
    let user = if rustix::process::geteuid().is_root() {
        ""
    } else {
        "0"
    };
    for (command, workdir, user, errno, text) in [
        ("/nope", "", "", 2, "exec /nope: No such file or directory"),
        ("nope", "", "", 2, "exec nope: No such file or directory"),
        (
            "/etc/passwd",
            "",
            "",
            13,
            "exec /etc/passwd: Permission denied",
        ),
        (
            "sh",
            "/nope",
            "",
            2,
            "chdir /nope: No such file or directory",
        ),
        (
            "sh",
            "",
            "no-such-user",
            0,
            "user no-such-user: no such user or group",
        ),
        ("/nope", "", user, if user.is_empty() { 2 } else { 1 }, ""),
    ] {
        let frames = Exec::start(&[command], &[], [workdir, user], &[]).all();
        assert_eq!(kinds(&frames), [Kind::Failed]);
        let (found, message) = frames[0].failure();
        assert_eq!(found, errno, "{message}");
        assert!(message == text || text.is_empty(), "{message}");
    }
    let mut no_spec = helper();
    let output = no_spec
        .args(["exec", "/nonexistent"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(
        read_frame(&mut output.stdout.as_slice()).unwrap().kind,
        Kind::Failed
    );
}

#[test]
fn root_may_change_the_user() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let frames = Exec::start(&["id"], &[], ["", "12345:54321"], &[]).all();
    let text = String::from_utf8(bytes_of(&frames, Kind::Stdout)).unwrap();
    assert_eq!(text, "uid=12345 gid=54321 groups=54321\n");
    let frames = Exec::start(
        &["sh", "-c", "id -u; echo x >/dev/tty"],
        &[],
        ["", "12345"],
        &["tty"],
    )
    .all();
    assert_eq!(bytes_of(&frames, Kind::Tty), b"12345\r\nx\r\n");
}

#[test]
fn the_process_outlives_its_reader() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    let script = format!("head -c 3000000 /dev/zero; echo x > {}", mark.display());
    let mut exec = Exec::sh(&script, &[]);
    assert_eq!(exec.next().kind, Kind::Started);
    drop(exec.0.stdout.take());
    eventually("the end", || exec.0.try_wait().unwrap());
    assert!(mark.exists());
}
