//! The input and the terminal of the command.

mod support;

use std::io::Read as _;
use std::os::unix::net::UnixStream;

use support::protocol::Kind;
use support::{Options, Pod, bytes_of, eventually, kinds, read_frame, send, value};

fn piped(serve: &[&str], script: &str) -> Pod {
    Pod::with(Options {
        serve,
        run: &["--stdin"],
        command: &["sh", "-c", script],
    })
}

fn terminal(run: &[&str], script: &str) -> Pod {
    Pod::with(Options {
        serve: &["--stdin", "pipe"],
        run: &[&["--tty", "--stdin"], run].concat(),
        command: &["sh", "-c", script],
    })
}

/// Opens the input. Returns the number of bytes written before.
fn open(pod: &Pod) -> (UnixStream, u64) {
    let mut stdin = pod.connect("stdin");
    let hello = read_frame(&mut stdin).unwrap();
    assert_eq!(hello.kind, Kind::Hello);
    (stdin, hello.offset())
}

/// Reads terminal output until it contains a text.
fn expect(tap: &mut UnixStream, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        let frame = read_frame(tap).unwrap_or_else(|| panic!("no {text:?} in {seen:?}"));
        if matches!(frame.kind, Kind::Tty | Kind::Stdout) {
            seen.push_str(&frame.text());
        }
    }
    seen
}

#[test]
fn binary_input_arrives_and_ends() {
    let mut bytes = vec![0; 3_000_000];
    std::fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    let pod = piped(&["--stdin", "pipe"], "cat");
    let (mut stdin, _) = open(&pod);
    pod.release();
    for part in bytes.chunks(100_000) {
        send(&mut stdin, Kind::Data, part);
    }
    send(&mut stdin, Kind::Close, &[]);
    assert_eq!(read_frame(&mut stdin).unwrap().kind, Kind::Done);
    assert!(read_frame(&mut stdin).is_none());
    assert!(bytes_of(&pod.all(), Kind::Stdout) == bytes);
    assert_eq!(pod.ask("stdin").kind, Kind::Refused);
}

#[test]
fn input_before_the_start_is_kept() {
    let pod = piped(&["--stdin", "pipe"], "cat");
    let (mut stdin, _) = open(&pod);
    send(&mut stdin, Kind::Data, b"early");
    send(&mut stdin, Kind::Close, &[]);
    assert_eq!(read_frame(&mut stdin).unwrap().kind, Kind::Done);
    pod.release();
    assert_eq!(bytes_of(&pod.all(), Kind::Stdout), b"early");
}

#[test]
fn a_broken_connection_ends_the_input_after_the_grace() {
    let pod = piped(&["--stdin", "pipe", "--stdin-grace-ms", "300"], "cat");
    pod.release();
    let (mut stdin, _) = open(&pod);
    send(&mut stdin, Kind::Data, b"one ");
    drop(stdin);
    // Another writer within the grace. The count tells it what arrived.
    let mut again = eventually("the first bytes", || {
        let (stdin, written) = open(&pod);
        (written == 4).then_some(stdin)
    });
    send(&mut again, Kind::Data, b"two");
    drop(again);
    let frames = pod.all();
    assert_eq!(bytes_of(&frames, Kind::Stdout), b"one two");
    let (started, exited) = (
        &frames[0],
        frames.iter().find(|frame| frame.kind == Kind::Exited),
    );
    assert!(exited.unwrap().micros - started.micros > 250_000);
}

#[test]
fn an_open_input_outlives_its_writers() {
    let pod = piped(&["--stdin", "open", "--stdin-grace-ms", "1"], "head -n 3");
    pod.release();
    for close in [true, false, false] {
        let (mut stdin, _) = open(&pod);
        send(&mut stdin, Kind::Data, b"line\n");
        if close {
            send(&mut stdin, Kind::Close, &[]);
            assert_eq!(read_frame(&mut stdin).unwrap().kind, Kind::Done);
        }
    }
    assert_eq!(bytes_of(&pod.all(), Kind::Stdout), b"line\nline\nline\n");
}

#[test]
fn input_without_a_reader_is_refused() {
    let pod = piped(
        &["--stdin", "pipe"],
        "exec <&-; echo closed; exec sleep 1000",
    );
    let mut tap = pod.connect("tap 0 follow");
    let (mut stdin, _) = open(&pod);
    pod.release();
    expect(&mut tap, "closed");
    send(&mut stdin, Kind::Data, b"x");
    assert_eq!(read_frame(&mut stdin).unwrap().kind, Kind::Refused);
    assert_eq!(pod.ask("stdin").kind, Kind::Refused);
}

#[test]
fn input_that_is_not_read_blocks_nothing_else() {
    let pod = piped(&["--stdin", "pipe"], "echo up; exec sleep 1000");
    let mut tap = pod.connect("tap 0 follow");
    pod.release();
    expect(&mut tap, "up");
    let (stdin, _) = open(&pod);
    stdin.set_nonblocking(true).unwrap();
    let bytes = support::protocol::frame(Kind::Data, 0, &[0; 60_000]);
    // Until the pipe and the sockets are full.
    while rustix::io::write(&stdin, &bytes).is_ok() {}
    assert_eq!(pod.ask("signal 9").kind, Kind::Done);
    assert_eq!(bytes_of(&pod.all(), Kind::Stdout), b"up\n");
    stdin.set_nonblocking(false).unwrap();
    let mut stdin = stdin;
    assert_eq!(read_frame(&mut stdin).unwrap().kind, Kind::Refused);
}

#[test]
fn without_an_input_there_is_an_empty_one() {
    let pod = Pod::sh("cat; echo $?");
    pod.release();
    assert_eq!(bytes_of(&pod.all(), Kind::Stdout), b"0\n");
    assert_eq!(pod.ask("stdin").kind, Kind::Refused);
    assert_eq!(pod.ask("resize 1 1").kind, Kind::Refused);
}

#[test]
fn a_terminal_has_a_size_and_a_session() {
    let script = "test -t 0 && test -t 1 && test -t 2 && tty >/dev/tty; stty size; \
                  trap 'stty size' WINCH; echo up; while :; do sleep 0.01; done";
    let pod = terminal(&["--window", "81x25"], script);
    let mut tap = pod.connect("tap 0 follow");
    pod.release();
    let text = expect(&mut tap, "up");
    assert!(
        text.starts_with("/dev/pts/") && text.contains("25 81\r\n"),
        "{text}"
    );
    assert_eq!(pod.ask("resize 100 30").kind, Kind::Done);
    expect(&mut tap, "30 100");
    // The interrupt character: the command has a controlling terminal.
    let (mut stdin, _) = open(&pod);
    send(&mut stdin, Kind::Data, b"\x03");
    send(&mut stdin, Kind::Close, &[]);
    assert_eq!(read_frame(&mut stdin).unwrap().kind, Kind::Done);
    let frames = support::read_frames(&mut tap);
    assert_eq!(
        value(&frames.last().unwrap().text(), "exit").unwrap(),
        "130"
    );
}

#[test]
fn a_terminals_output_ends_with_its_last_process() {
    let mut pod = terminal(&[], "(trap '' HUP; sleep 0.3; echo late) & echo early");
    pod.release();
    assert!(pod.main_exit().success());
    let frames = pod.all();
    let text = String::from_utf8(bytes_of(&frames, Kind::Tty)).unwrap();
    // The end of a session leader hangs the terminal up.
    assert!(text.starts_with("early\r\n"), "{text}");
    let end = frames.last().unwrap().text();
    assert!(end.starts_with(&format!("tty {} ", text.len())), "{end}");
    assert!(end.ends_with("exit 0\n"));
    assert_eq!(pod.ask("stdin").kind, Kind::Refused);
    assert_eq!(pod.ask("resize 1 1").kind, Kind::Refused);
}

#[test]
fn a_terminal_takes_input_from_several_writers() {
    let pod = terminal(&[], "stty -echo; echo up; read a; read b; echo got $a $b");
    let mut tap = pod.connect("tap 0 follow");
    pod.release();
    expect(&mut tap, "up");
    for line in ["one\n", "two\n"] {
        let (mut stdin, _) = open(&pod);
        send(&mut stdin, Kind::Data, line.as_bytes());
        send(&mut stdin, Kind::Close, &[]);
        assert_eq!(kinds(&support::read_frames(&mut stdin)), [Kind::Done]);
    }
    expect(&mut tap, "got one two");
}

#[test]
fn a_terminals_large_output_is_whole() {
    let pod = terminal(
        &[],
        "stty -onlcr; i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done",
    );
    pod.release();
    let expected: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
    assert!(bytes_of(&pod.all(), Kind::Tty) == expected.as_bytes());
}
