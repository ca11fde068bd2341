//! Release, signals and ends.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use support::protocol::Kind;
use support::{
    Options, Pod, bytes_of, eventually, kinds, read_frame, read_frames, send, signal, value,
};

const MARK: &str = "echo x > $MARK; exec sleep 1000";

#[test]
fn nothing_runs_before_the_release() {
    let mut pod = Pod::sh(MARK);
    pod.wait_phase("ready");
    assert!(!pod.path("mark").exists());
    assert_eq!(pod.ask("signal 15").kind, Kind::Refused);
    signal(pod.main.as_ref().unwrap(), Signal::TERM);
    assert_eq!(pod.main_exit().code(), Some(143));
    pod.wait_phase("ended");
    assert!(!pod.path("mark").exists());
    assert_eq!(pod.ask("release").kind, Kind::Refused);
    let frames = pod.request("tap 0 follow");
    assert_eq!(kinds(&frames), [Kind::Hello, Kind::End]);
    assert_eq!(value(&frames[1].text(), "exit").unwrap(), "unknown");
}

#[test]
fn the_wrapper_waits_for_the_collector() {
    let mut pod = Pod::serve(&[]);
    pod.ask("state");
    // As if the container `moat` came later.
    let mut early = support::helper();
    early
        .arg("run")
        .arg("--gate")
        .arg(pod.path("later"))
        .args(["--", "true"]);
    let mut early = early.spawn().unwrap();
    signal(&early, Signal::TERM);
    let status = eventually("the end", || early.try_wait().unwrap());
    // SIGTERM may come before the handler is there.
    assert_ne!(status.code(), Some(0));

    // A release before there is a wrapper waits.
    let mut release = pod.connect_release(&[]);
    pod.run(&[], &["true"]);
    assert_eq!(read_frame(&mut release).unwrap().kind, Kind::Started);
    assert!(pod.main_exit().success());
}

#[test]
fn a_client_that_is_gone_releases_nothing() {
    let mut pod = Pod::serve(&[]);
    let release = pod.connect_release(&[]);
    pod.ask("state");
    drop(release);
    // The wait of 200 ms is longer than the time to see the end of the client.
    let release = pod.connect_release(&[]);
    release.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(read_frames(&mut &release).len(), 0);
    let gone = std::time::Instant::now() + std::time::Duration::from_millis(500);
    eventually("the look", || {
        (std::time::Instant::now() > gone).then_some(())
    });
    pod.run(&[], &["sh", "-c", MARK]);
    pod.wait_phase("ready");
    assert_eq!(kinds(&pod.request("tap 0")), [Kind::Hello, Kind::Pause]);
    assert!(!pod.path("mark").exists());
}

#[test]
fn a_failed_start_is_reported_and_repeated() {
    let mut pod = Pod::with(Options {
        serve: &[],
        run: &[],
        command: &["/nope", "x"],
    });
    for _ in 0..2 {
        let failed = pod.ask("release");
        assert_eq!(failed.kind, Kind::Failed);
        assert_eq!(
            failed.failure(),
            (2, "exec /nope: No such file or directory".to_owned())
        );
        assert_eq!(pod.state("phase").unwrap(), "ready");
    }
    signal(&pod.serve, Signal::TERM);
    assert_eq!(pod.serve_exit().code(), Some(0));
    assert_eq!(pod.main_exit().code(), Some(70));
}

#[test]
fn a_second_release_can_start_what_failed() {
    let mut pod = Pod::serve(&[]);
    let program = pod.path("program");
    pod.run(&[], &[program.to_str().unwrap()]);
    assert_eq!(pod.ask("release").failure().0, 2);
    fs::write(&program, "#!/bin/sh\necho here; exit 3\n").unwrap();
    assert_eq!(pod.ask("release").failure().0, 13);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    pod.release();
    assert_eq!(bytes_of(&pod.all(), Kind::Stdout), b"here\n");
    assert_eq!(pod.main_exit().code(), Some(3));
}

#[test]
fn a_terminal_survives_a_failed_start() {
    let mut pod = Pod::serve(&[]);
    let program = pod.path("program");
    pod.run(&["--tty"], &[program.to_str().unwrap()]);
    assert_eq!(pod.ask("release").failure().0, 2);
    fs::write(&program, "#!/bin/sh\ntest -t 1 && echo terminal\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    pod.release();
    assert_eq!(bytes_of(&pod.all(), Kind::Tty), b"terminal\r\n");
}

#[test]
fn releases_at_once_start_once() {
    let pod = Pod::sh("echo x >> $MARK");
    let mut clients: Vec<_> = (0..8).map(|_| pod.connect_release(&[])).collect();
    let starts: Vec<_> = clients
        .iter_mut()
        .map(|client| read_frame(client).unwrap())
        .collect();
    assert!(starts.iter().all(|frame| frame.kind == Kind::Started));
    assert!(starts.iter().all(|frame| frame.micros == starts[0].micros));
    assert_eq!(pod.all()[0].micros, starts[0].micros);
    assert_eq!(fs::read_to_string(pod.path("mark")).unwrap(), "x\n");
    assert_eq!(pod.ask("release").micros, starts[0].micros);
    assert_eq!(
        pod.state("started_micros").unwrap(),
        starts[0].micros.to_string()
    );
}

#[test]
fn exit_codes_are_reported() {
    for (script, code) in [("exit 7", 7), ("kill -9 $$", 137), ("kill -SEGV $$", 139)] {
        let mut pod = Pod::sh(script);
        pod.release();
        let frames = pod.all();
        let exited = frames
            .iter()
            .find(|frame| frame.kind == Kind::Exited)
            .unwrap();
        assert_eq!(exited.code(), code);
        assert_eq!(
            value(&frames.last().unwrap().text(), "exit").unwrap(),
            code.to_string()
        );
        assert_eq!(pod.main_exit().code(), Some(code));
        assert_eq!(pod.state("exit").unwrap(), code.to_string());
    }
}

#[test]
fn signals_reach_the_command() {
    let script = "trap 'echo usr1' USR1; trap 'echo term; exit 5' TERM; echo up; \
                  while :; do sleep 0.01; done";
    let mut pod = Pod::sh(script);
    let mut tap = pod.connect("tap 0 follow");
    pod.release();
    let mut next = || loop {
        let frame = read_frame(&mut tap).unwrap();
        if frame.kind == Kind::Stdout {
            break frame.text();
        }
    };
    assert_eq!(next(), "up\n");
    assert_eq!(pod.ask("signal 10").kind, Kind::Done);
    assert_eq!(next(), "usr1\n");
    // Through the wrapper itself, as the kubelet does.
    signal(pod.main.as_ref().unwrap(), Signal::USR1);
    assert_eq!(next(), "usr1\n");
    assert_eq!(pod.ask("signal 999").kind, Kind::Refused);
    signal(pod.main.as_ref().unwrap(), Signal::TERM);
    assert_eq!(next(), "term\n");
    assert_eq!(pod.main_exit().code(), Some(5));
    pod.wait_phase("ended");
    assert_eq!(pod.ask("signal 9").kind, Kind::Refused);
}

#[test]
fn the_command_gets_clean_signals_and_streams() {
    // The tests may have descriptors of their caller.
    let mut direct = std::process::Command::new("sh");
    direct
        .args(["-c", "ls /proc/self/fd"])
        .stdin(std::process::Stdio::null());
    let expected = direct.output().unwrap().stdout;
    let pod = Pod::sh("ls /proc/self/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status >&2");
    pod.release();
    let frames = pod.all();
    assert_eq!(bytes_of(&frames, Kind::Stdout), expected);
    let masks = String::from_utf8(bytes_of(&frames, Kind::Stderr)).unwrap();
    for line in masks.lines() {
        let mask = u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap();
        // glibc ignores its two internal signals in what it spawns.
        assert_eq!(mask & !0x1_8000_0000, 0, "{line}");
    }
}

#[test]
fn orphans_are_reaped_and_their_output_is_awaited() {
    let script = "(sleep 0.5; echo late) & exit 4";
    let mut pod = Pod::sh(script);
    pod.release();
    assert_eq!(pod.main_exit().code(), Some(4));
    pod.wait_phase("exited");
    let frames = pod.all();
    let expected = [Kind::Started, Kind::Exited, Kind::Stdout, Kind::End];
    assert_eq!(kinds(&frames), expected);
    assert!(frames[3].micros > frames[1].micros + 100_000);
}

#[test]
fn a_killed_wrapper_leaves_an_unknown_exit() {
    let mut pod = Pod::sh("echo before; exec sleep 0.3");
    pod.release();
    let mut tap = pod.connect("tap 0 follow");
    while read_frame(&mut tap).unwrap().kind != Kind::Stdout {}
    signal(pod.main.as_ref().unwrap(), Signal::KILL);
    pod.main_exit();
    let frames = pod.all();
    assert_eq!(kinds(&frames), [Kind::Started, Kind::Stdout, Kind::End]);
    assert_eq!(value(&frames[2].text(), "exit").unwrap(), "unknown");
    assert_eq!(pod.ask("signal 9").kind, Kind::Refused);
}

#[test]
fn further_wrappers_are_rejected() {
    let pod = Pod::sh("exec sleep 1000");
    pod.wait_phase("ready");
    let mut second = support::helper();
    second
        .arg("run")
        .arg("--gate")
        .arg(pod.path("gate"))
        .args(["--", "true"]);
    let mut second = second.spawn().unwrap();
    let status = eventually("the end", || second.try_wait().unwrap());
    assert_eq!(status.code(), Some(70));
    pod.release();
}

#[test]
fn quit_leaves_a_message() {
    let mut pod = Pod::sh("echo hello; exit 2");
    pod.release();
    let end = pod.all().pop().unwrap().text();
    assert_eq!(pod.ask("quit").kind, Kind::Done);
    assert_eq!(pod.serve_exit().code(), Some(0));
    assert!(pod.termination().starts_with(&end));
}

#[test]
fn quit_is_refused_while_the_command_runs() {
    let mut pod = Pod::sh("echo hello; exec sleep 1000");
    pod.release();
    assert_eq!(pod.ask("quit").kind, Kind::Refused);
    pod.ask("signal 9");
    assert_eq!(pod.main_exit().code(), Some(137));
    eventually("the end", || {
        (pod.ask("quit").kind == Kind::Done).then_some(())
    });
    assert_eq!(pod.serve_exit().code(), Some(0));
}

#[test]
fn the_environment_comes_with_the_release() {
    let pod = Pod::sh("echo $GREETING");
    pod.release_with(&["GREETING=hello"]);
    assert_eq!(bytes_of(&pod.all(), Kind::Stdout), b"hello\n");
}

#[test]
fn sigterm_waits_for_the_output_to_be_received() {
    let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done";
    let mut pod = Pod::sh(script);
    pod.release();
    eventually("the trap", || {
        (bytes_of(&pod.request("tail 1"), Kind::Stdout) == b"up\n").then_some(())
    });
    signal(&pod.serve, Signal::TERM);
    eventually("the early message", || {
        pod.termination().contains("end no").then_some(())
    });
    signal(pod.main.as_ref().unwrap(), Signal::TERM);
    pod.wait_phase("ended");
    assert!(pod.serve.try_wait().unwrap().is_none());
    // A reader that is not the owner.
    let frames = pod.all();
    assert_eq!(bytes_of(&frames, Kind::Stdout), b"up\nbye\n");
    pod.request("tail 1");
    assert!(pod.serve.try_wait().unwrap().is_none());
    let end: u64 = pod.state("end").unwrap().parse().unwrap();
    let mut owner = pod.connect("tap 0 follow");
    send(&mut owner, Kind::Ack, &end.to_le_bytes());
    assert_eq!(pod.serve_exit().code(), Some(0));
    assert!(
        pod.termination()
            .starts_with(&frames.last().unwrap().text())
    );
}

#[test]
fn the_deadline_kills_the_command() {
    let mut pod = Pod::with(Options {
        serve: &["--kill-after", "1"],
        run: &[],
        command: &["sh", "-c", "trap '' TERM; while :; do sleep 0.01; done"],
    });
    pod.release();
    assert_eq!(pod.main_exit().code(), Some(137));
    assert_eq!(
        value(&pod.all().pop().unwrap().text(), "exit").unwrap(),
        "137"
    );
}

#[test]
fn an_unreleased_command_never_runs() {
    let mut pod = Pod::with(Options {
        serve: &["--release-within", "1"],
        run: &[],
        command: &["sh", "-c", MARK],
    });
    pod.wait_phase("ready");
    assert_eq!(pod.serve_exit().code(), Some(0));
    assert_eq!(pod.main_exit().code(), Some(70));
    assert!(!pod.path("mark").exists());
    assert!(pod.termination().contains("end no"));
}

#[test]
fn the_collector_exits_after_the_deadline() {
    let mut pod = Pod::with(Options {
        serve: &["--kill-after", "1", "--exit-after", "2"],
        run: &[],
        command: &["sleep", "1000"],
    });
    pod.release();
    assert_eq!(pod.main_exit().code(), Some(137));
    assert_eq!(pod.serve_exit().code(), Some(0));
    assert!(pod.termination().contains("exit 137"));
}

#[test]
fn a_restarted_collector_exits() {
    let mut pod = Pod::serve(&[]);
    pod.ask("state");
    pod.serve.kill().unwrap();
    pod.serve.wait().unwrap();
    pod.serve = support::serve_command(pod.dir.path(), &[]).spawn().unwrap();
    assert_eq!(pod.serve_exit().code(), Some(71));
    assert!(pod.termination().starts_with("cannot create the spool"));
}

#[test]
fn the_sockets_have_their_modes() {
    let pod = Pod::serve(&[]);
    pod.ask("state");
    let mode = |name| fs::metadata(pod.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("gate"), mode("control"), mode("spool")),
        (0o666, 0o600, 0o600)
    );
    let _ = UnixStream::connect(pod.path("gate")).unwrap();
}
