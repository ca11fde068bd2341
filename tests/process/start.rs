//! Starting processes: what they get from the spec, and what is refused.

use std::fs;
use std::process::Command;
use std::time::Duration;

use moat::outcome::{Evidence, Stream};
use moat::spec::Stdin;
use moat::{Ending, Error, RunSpec, ShutdownMode, Verdict};

use crate::place::{Place, audited, check, seal, sh, text};

#[tokio::test]
async fn a_failed_start_is_sealed_with_its_reason() {
    let place = Place::new();
    fs::write(place.file("text"), "no program").unwrap();
    for (spec, reason) in [
        (
            RunSpec::command(["/nonexistent/program"]),
            "\"/nonexistent/program\"",
        ),
        (RunSpec::command(["moat-no-such-command"]), "No such file"),
        (RunSpec::command([place.file("text")]), "denied"),
        (
            sh("true").workdir("/nonexistent"),
            "working directory /nonexistent",
        ),
        (sh("true").tty(true).workdir("/nonexistent"), "/nonexistent"),
        (
            RunSpec::command(["/nonexistent/program"]).tty(true),
            "program",
        ),
    ] {
        let manager = place.open().await;
        match manager.start(spec).await {
            Err(Error::NotStarted { outcome, source }) => {
                assert!(source.to_string().contains(reason), "{source}");
                assert!(matches!(outcome.ending, Ending::FailedToStart { .. }));
                assert_eq!(seal(&outcome).evidence, Evidence::NeverStarted);
                assert_eq!(seal(&outcome).verdict, Verdict::Complete);
                check(&outcome);
            }
            other => panic!("{other:?}"),
        }
        manager.shutdown(ShutdownMode::Leave).await;
    }
}

#[tokio::test]
async fn unsupported_settings_are_refused() {
    let place = Place::new();
    let manager = place.open().await;
    for (field, spec) in [
        ("image", RunSpec::new("busybox").cmd(["true"])),
        ("memory", sh("true").memory(64 << 20)),
        ("mounts", sh("true").bind("/tmp", "/x")),
        ("user", sh("true").user("nobody")),
        ("detached", sh("true").detached(true)),
    ] {
        match manager.start(spec).await {
            Err(Error::InvalidSpec(refused)) => assert_eq!(refused.field, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    assert!(manager.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_environment_is_the_spec_plus_path_and_home() {
    let place = Place::new();
    let outcome = place.run(RunSpec::command(["env"]).env("A", "1")).await;
    let text = text(&outcome, Stream::Stdout);
    let mut names: Vec<_> = text
        .lines()
        .filter_map(|l| Some(l.split_once('=')?.0))
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["A", "HOME", "PATH"]);
    assert!(text.contains("A=1\n"));

    // The variables of the spec win, also in the lookup of the command.
    let place = Place::new();
    // A child writes the file. If this process had it open for writing, a concurrent fork could
    // inherit the descriptor, and the program could not be executed.
    let write = "printf '#!/bin/sh\\necho $HOME\\n' >\"$0\" && chmod 755 \"$0\"";
    let written = Command::new("sh")
        .args(["-c", write, &place.file("mine")])
        .status();
    assert!(written.unwrap().success());
    let spec = RunSpec::command(["mine"])
        .env("PATH", place.dir.path().to_str().unwrap())
        .env("HOME", "/here");
    assert_eq!(
        self::text(&place.run(spec).await, Stream::Stdout),
        "/here\n"
    );
}

#[tokio::test]
async fn entrypoint_command_and_workdir_take_effect() {
    let spec = RunSpec::command(["-c", "pwd; echo $0 $1", "zero", "a b"])
        .entrypoint(["sh"])
        .workdir("/usr");
    let place = Place::new();
    let outcome = place.run(spec).await;
    assert_eq!(text(&outcome, Stream::Stdout), "/usr\nzero a b\n");
}

#[tokio::test]
async fn stdin_is_empty_or_open() {
    let place = Place::new();
    let outcome = place.run(RunSpec::command(["cat"])).await;
    assert!(outcome.success());

    let place = Place::new();
    let manager = place.open().await;
    let spec = sh("echo ready; cat; echo ended").stdin(Stdin::Open);
    let run = manager
        .start(spec.stop_grace(Duration::ZERO))
        .await
        .unwrap();
    audited(&run, "ready").await;
    let outcome = run.stop(None).await.unwrap();
    assert_eq!(text(&outcome, Stream::Stdout), "ready\n");
}

#[tokio::test]
async fn a_terminal_controls_its_session() {
    let script = "test -t 0 && test -t 1 && test -t 2 && echo terminal; stty size; tty; \
                  echo $TERM; echo to the terminal >/dev/tty; exit 3";
    let place = Place::new();
    let outcome = place.run(sh(script).tty(true)).await;
    assert_eq!(outcome.code(), Some(3));
    let text = text(&outcome, Stream::Tty);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "terminal", "{text:?}");
    assert_eq!(lines[1], "24 80");
    assert!(lines[2].starts_with("/dev/pts/"));
    assert_eq!(lines[3..], ["xterm", "to the terminal"]);
    assert!(text.contains("terminal\r\n"), "{text:?}");
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(seal(&outcome).bytes.stdout, 0);
}
