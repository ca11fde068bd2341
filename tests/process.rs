//! Local processes: what moat promises, where there is no engine.
#![cfg(all(feature = "process", target_os = "linux"))]
#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "nobody reaches into a test; tests spawn as their users do"
)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use moat::audit::{Event, GapReason, LogState, Reader, Record, verify};
use moat::outcome::{Evidence, StopCause, Stream};
use moat::runtime::{ContainerStatus, CreateRequest, RuntimeError};
use moat::spec::{LimitAction, RootId, Stdin};
use moat::{
    Ending, Error, Exit, LocalProcess, Manager, Outcome, Root, Run, RunId, RunSpec, Runtime, Seal,
    ShutdownMode, Verdict,
};

#[path = "support/deadline.rs"]
mod deadline;

use deadline::{eventually, within};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The path of a file beside the root.
    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    async fn open(&self) -> Manager {
        Manager::open(self.root(), LocalProcess::new())
            .await
            .unwrap()
    }

    /// Runs a command to its end, and checks what holds for every run.
    async fn run(&self, spec: RunSpec) -> Outcome {
        let manager = self.open().await;
        let outcome = match manager.start(spec).await {
            Ok(run) => within(300, "the seal", run.wait()).await.unwrap(),
            Err(Error::NotStarted { outcome, .. }) => *outcome,
            Err(error) => panic!("{}", error.chain()),
        };
        manager.shutdown(ShutdownMode::Leave).await;
        check(&outcome);
        outcome
    }
}

fn sh(script: &str) -> RunSpec {
    RunSpec::command(["sh", "-c", script])
}

fn seal(outcome: &Outcome) -> &Seal {
    outcome.sealed().unwrap()
}

fn check(outcome: &Outcome) {
    let found = verify(outcome.audit.as_ref().unwrap()).unwrap();
    match found.state {
        LogState::Sealed(found) => assert_eq!(&*found, seal(outcome)),
        state => panic!("{state:?}"),
    }
}

fn bytes(outcome: &Outcome, stream: Stream) -> Vec<u8> {
    let mut all = Vec::new();
    for record in Reader::open(outcome.audit.as_ref().unwrap()).unwrap() {
        if let Record::Output(output) = record.unwrap()
            && output.stream == stream
        {
            all.extend_from_slice(&output.bytes);
            if !output.partial {
                all.push(b'\n');
            }
        }
    }
    all
}

fn text(outcome: &Outcome, stream: Stream) -> String {
    String::from_utf8(bytes(outcome, stream)).unwrap()
}

fn gaps(outcome: &Outcome) -> Vec<(GapReason, bool)> {
    Reader::open(outcome.audit.as_ref().unwrap())
        .unwrap()
        .filter_map(|record| match record.unwrap() {
            Record::Event(Event::Gap(gap)) => Some((gap.reason, gap.possible)),
            _ => None,
        })
        .collect()
}

fn exit(outcome: &Outcome) -> &Exit {
    match &outcome.ending {
        Ending::Exited(exit) => exit,
        other => panic!("{other}"),
    }
}

/// Waits until a file has a line, and gives it.
async fn line(path: &str) -> String {
    eventually(20, path, async || {
        let text = fs::read_to_string(path).ok()?;
        text.contains('\n').then(|| text.trim().to_owned())
    })
    .await
}

/// Whether a process is there, and has not ended.
fn lives(id: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned());
    state.is_some_and(|state| !state.starts_with(['Z', 'X']))
}

async fn dies(id: &str) {
    eventually(20, "the end of a process", async || {
        (!lives(id)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn both_streams_and_the_exit_code_are_in_a_complete_audit() {
    let place = Place::new();
    let outcome = place.run(sh("echo a; echo b >&2; exit 7")).await;
    assert_eq!(outcome.code(), Some(7));
    assert_eq!(text(&outcome, Stream::Stdout), "a\n");
    assert_eq!(text(&outcome, Stream::Stderr), "b\n");
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(seal(&outcome).evidence, Evidence::Eof);
    let exit = exit(&outcome);
    assert!(exit.started_at.unwrap() <= exit.finished_at.unwrap());
    assert_eq!(exit.error, None);
    let info = Root::open(place.root())
        .unwrap()
        .info(&outcome.run)
        .unwrap();
    assert_eq!(info.record.unwrap().runtime, "process");
}

#[tokio::test]
async fn each_byte_of_each_stream_is_captured_in_its_order() {
    let place = Place::new();
    let out = "i=0; while [ $i -lt 20000 ]; do echo out $i; i=$((i+1)); done";
    let err = "i=0; while [ $i -lt 20000 ]; do echo err $i >&2; i=$((i+1)); done";
    let raw = r"printf '\000\377\001 open'";
    let outcome = place
        .run(sh(&format!("({out}) & ({err}); wait; {raw}")))
        .await;
    let numbered = |name| -> String { (0..20_000).map(|n| format!("{name} {n}\n")).collect() };
    assert_eq!(text(&outcome, Stream::Stderr), numbered("err"));
    let mut expected = numbered("out").into_bytes();
    expected.extend_from_slice(b"\0\xff\x01 open");
    assert!(bytes(&outcome, Stream::Stdout) == expected);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

#[tokio::test]
async fn a_process_without_output_is_complete_and_empty() {
    let place = Place::new();
    let outcome = place.run(RunSpec::command(["true"])).await;
    assert!(outcome.success());
    assert_eq!(seal(&outcome).records, 0);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

/// Its end proves that there is no more, however early it comes.
#[tokio::test]
async fn output_that_is_closed_long_before_the_end_is_complete() {
    let place = Place::new();
    let outcome = place.run(sh("echo a; exec >&- 2>&-; sleep 1.5")).await;
    assert_eq!(text(&outcome, Stream::Stdout), "a\n");
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(seal(&outcome).evidence, Evidence::Eof);
}

#[tokio::test]
async fn a_process_that_a_signal_ended_has_its_code_and_its_name() {
    for (name, code) in [("KILL", 137), ("SEGV", 139), ("HUP", 129)] {
        let place = Place::new();
        let outcome = place.run(sh(&format!("kill -s {name} $$"))).await;
        assert_eq!(outcome.code(), Some(code), "{name}");
        let error = exit(&outcome).error.as_deref();
        assert_eq!(error, Some(&*format!("ended by SIG{name}")));
    }
}

#[tokio::test]
async fn what_cannot_be_started_is_sealed_with_the_reason() {
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
async fn what_a_process_cannot_have_is_refused_before_anything_is_made() {
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
            Err(Error::InvalidSpec(moat::spec::InvalidSpec { field: named, .. })) => {
                assert_eq!(named, field)
            }
            other => panic!("{field}: {other:?}"),
        }
    }
    assert!(manager.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_environment_is_the_specs_with_path_and_home_and_nothing_else() {
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

    // The spec's own hold, also for finding the command.
    let place = Place::new();
    // Written by a child: what another test forks meanwhile would have this process's file open
    // for writing, and nothing can be executed that is.
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
async fn entrypoint_command_and_working_directory_are_the_specs() {
    let spec = RunSpec::command(["-c", "pwd; echo $0 $1", "zero", "a b"])
        .entrypoint(["sh"])
        .workdir("/usr");
    let place = Place::new();
    let outcome = place.run(spec).await;
    assert_eq!(text(&outcome, Stream::Stdout), "/usr\nzero a b\n");
}

#[tokio::test]
async fn standard_input_is_at_its_end_or_open_and_silent() {
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

/// Waits until a line is in the audit.
async fn audited(run: &Run, text: &str) {
    let audit = run.audit().unwrap();
    eventually(20, text, async || {
        let line = format!("\"line\":\"{text}");
        fs::read_to_string(&audit)
            .unwrap_or_default()
            .contains(&line)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_terminal_is_a_real_one_of_a_size_and_controls_its_session() {
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

#[tokio::test]
async fn all_that_is_printed_on_a_terminal_right_before_the_end_is_captured() {
    let place = Place::new();
    for _ in 0..20 {
        let outcome = place.run(RunSpec::command(["seq", "5000"]).tty(true)).await;
        let expected: String = (1..=5000).map(|n| format!("{n}\r\n")).collect();
        assert_eq!(text(&outcome, Stream::Tty), expected);
        assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    }
}

#[tokio::test]
async fn a_stop_signals_the_first_process_and_lets_it_end() {
    for tty in [false, true] {
        let place = Place::new();
        let manager = place.open().await;
        let script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done";
        let spec = sh(script).stop_signal("SIGINT").tty(tty);
        let run = manager.start(spec).await.unwrap();
        audited(&run, "ready").await;
        let outcome = within(20, "the stop", run.stop(None)).await.unwrap();
        assert_eq!(outcome.code(), Some(5));
        assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
        assert_eq!(seal(&outcome).verdict, Verdict::Complete);
        let stream = if tty { Stream::Tty } else { Stream::Stdout };
        assert!(text(&outcome, stream).contains("caught"));
    }
}

/// Its guardian is in its group.
#[tokio::test]
async fn a_process_that_signals_its_own_group_is_guarded_all_the_same() {
    let place = Place::new();
    let script = format!(
        "trap '' HUP INT QUIT USR1 USR2 TERM TSTP; \
         for s in HUP INT QUIT USR1 USR2 TERM TSTP; do kill -s $s 0; done; \
         echo $$ >{}; while :; do sleep 1; done",
        place.file("first")
    );
    let embedder = Embedder::start(&place.root(), &script, false);
    let first = line(&place.file("first")).await;
    drop(embedder);
    dies(&first).await;
}

#[tokio::test]
async fn what_ignores_the_stop_is_killed_after_the_grace_with_its_grandchildren() {
    for tty in [false, true] {
        let place = Place::new();
        let manager = place.open().await;
        let script = format!(
            "trap '' TERM HUP; (trap '' TERM HUP; sh -c 'echo $$ >{0}; while :; do sleep 60; done' & wait) & \
             echo ready; while :; do sleep 0.05; done",
            place.file("grandchild")
        );
        let run = manager.start(sh(&script).tty(tty)).await.unwrap();
        audited(&run, "ready").await;
        let grandchild = line(&place.file("grandchild")).await;
        assert!(lives(&grandchild));
        let begin = Instant::now();
        let grace = Duration::from_millis(300);
        let outcome = within(20, "the stop", run.stop(Some(grace))).await.unwrap();
        assert!(begin.elapsed() >= grace);
        assert_eq!(outcome.code(), Some(137));
        assert_eq!(exit(&outcome).error.as_deref(), Some("ended by SIGKILL"));
        assert_eq!(seal(&outcome).verdict, Verdict::Complete, "tty: {tty}");
        dies(&grandchild).await;
    }
}

#[tokio::test]
async fn the_end_of_the_first_process_is_the_end_of_all() {
    for tty in [false, true] {
        let place = Place::new();
        // It holds the output open.
        let script = format!(
            "trap '' HUP; sleep 600 & echo $! >{}; echo done; exit 4",
            place.file("left")
        );
        let begin = Instant::now();
        let outcome = place.run(sh(&script).tty(tty)).await;
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "it was waited for"
        );
        assert_eq!(outcome.code(), Some(4));
        assert_eq!(seal(&outcome).verdict, Verdict::Complete, "tty: {tty}");
        dies(&line(&place.file("left")).await).await;
    }
}

/// They are in groups of their own, and in the terminal's session.
#[tokio::test]
async fn the_jobs_of_a_shell_with_job_control_end_with_their_terminal() {
    let place = Place::new();
    let script = format!(
        "set -m; trap '' HUP; sleep 600 & echo $! >{}; exit 0",
        place.file("job")
    );
    let outcome = place.run(sh(&script).tty(true)).await;
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    dies(&line(&place.file("job")).await).await;
}

/// As the documentation says.
#[tokio::test]
async fn what_escapes_by_setsid_is_not_killed_and_a_gap_where_it_holds_the_output_open() {
    let place = Place::new();
    let script = format!(
        "echo before; setsid sh -c 'echo $$ >{0}; while :; do echo late; sleep 0.1; done' & \
         while ! [ -s {0} ]; do sleep 0.01; done",
        place.file("escaped")
    );
    let outcome = place.run(sh(&script)).await;
    let escaped = line(&place.file("escaped")).await;
    assert_eq!(outcome.code(), Some(0));
    assert!(text(&outcome, Stream::Stdout).starts_with("before\n"));
    assert_eq!(gaps(&outcome), [(GapReason::NoBackstop, false)]);
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
    // Its next line went nowhere, and ended it: nothing held its output any more.
    dies(&escaped).await;

    let place = Place::new();
    let script = format!(
        "setsid sh -c 'echo $$ >{0}; exec sleep 600' >/dev/null 2>&1 & \
         while ! [ -s {0} ]; do sleep 0.01; done",
        place.file("escaped")
    );
    let outcome = place.run(sh(&script)).await;
    let escaped = line(&place.file("escaped")).await;
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert!(lives(&escaped), "it was killed, other than documented");
    Command::new("kill")
        .args(["-9", &escaped])
        .status()
        .unwrap();
}

#[tokio::test]
async fn the_time_limit_stops_a_process_and_says_so() {
    let spec = RunSpec::command(["sleep", "600"]).time_limit(Duration::from_millis(200));
    let place = Place::new();
    let outcome = place.run(spec).await;
    assert_eq!(outcome.code(), Some(143));
    assert_eq!(exit(&outcome).error.as_deref(), Some("ended by SIGTERM"));
    assert_eq!(seal(&outcome).stopped, Some(StopCause::TimeLimit));
}

#[tokio::test]
async fn the_silence_limit_stops_a_process_that_prints_nothing_more() {
    let spec = RunSpec::command(["sh", "-c", "echo once; exec sleep 600"])
        .silence_limit(Duration::from_secs(1));
    let place = Place::new();
    let outcome = place.run(spec).await;
    assert_eq!(outcome.code(), Some(143));
    assert_eq!(seal(&outcome).stopped, Some(StopCause::SilenceLimit));
}

#[tokio::test]
async fn the_output_limit_stops_a_process_and_leaves_a_gap() {
    let spec = RunSpec::command(["yes"]).output_limit(10_000, LimitAction::Stop);
    let place = Place::new();
    let outcome = place.run(spec).await;
    assert_eq!(seal(&outcome).stopped, Some(StopCause::OutputLimit));
    assert_eq!(
        gaps(&outcome).first().map(|gap| gap.0),
        Some(GapReason::OutputLimit)
    );
}

#[tokio::test]
async fn a_stop_wait_and_a_natural_exit_at_once_agree_on_the_exit() {
    let place = Place::new();
    let manager = place.open().await;
    for _ in 0..50 {
        let run = manager.start(sh("exit 3")).await.unwrap();
        let (stopped, waited) = tokio::join!(run.stop(None), run.wait());
        let (stopped, waited) = (stopped.unwrap(), waited.unwrap());
        assert_eq!(stopped.ending, waited.ending);
        assert!([Some(3), Some(143)].contains(&waited.code()), "{waited}");
        check(&waited);
    }
}

#[tokio::test]
async fn a_thousand_short_runs_lose_nothing() {
    let place = Place::new();
    let manager = place.open().await;
    for round in 0..100 {
        let runs = (0..10).map(|n| {
            let text = format!("{round} {n}");
            let manager = manager.clone();
            async move {
                let spec = RunSpec::command(["echo", &text]);
                let outcome = manager.start(spec).await.unwrap().wait().await.unwrap();
                assert_eq!(self::text(&outcome, Stream::Stdout), format!("{text}\n"));
                assert_eq!(seal(&outcome).verdict, Verdict::Complete);
                assert!(outcome.success());
            }
        });
        futures::future::join_all(runs).await;
    }
    // What stood for their containers is gone with them.
    let left = async || {
        let root = manager.root().id().clone();
        let found = manager.runtime().find(&root).await.unwrap();
        found.is_empty().then_some(())
    };
    eventually(20, "the removal of all", left).await;
    manager.shutdown(ShutdownMode::Leave).await;
    assert_eq!(children(), Vec::<String>::new(), "zombies, or guardians");
}

/// The ids of this process's children, dead ones too, that are of this test.
fn children() -> Vec<String> {
    // Tests run in threads of one process, so only those of this one's own making count: none of
    // the others runs `echo`.
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let parent = rest.split(' ').nth(1);
        if parent == Some(&*std::process::id().to_string()) && name.ends_with("(echo") {
            found.push(id);
        }
    }
    found
}

#[tokio::test]
async fn a_hundred_megabytes_are_captured_whole() {
    let spec = sh("head -c 100000000 /dev/zero | tr '\\0' 'x' | fold -w 99");
    // In memory where there is room: a disk that takes nothing for 2 s is rightly a gap.
    let memory = Path::new("/dev/shm");
    let place = match rustix::fs::statvfs(memory) {
        Ok(at) if at.f_bavail * at.f_frsize > 1 << 29 => Place {
            dir: tempfile::tempdir_in(memory).unwrap(),
        },
        _ => Place::new(),
    };
    let outcome = place.run(spec).await;
    assert!(outcome.success());
    let seal = seal(&outcome);
    // A newline after each 99 characters but the last ones.
    assert_eq!(seal.bytes.stdout, 100_000_000 + (100_000_000 - 1) / 99);
    assert_eq!(seal.verdict, Verdict::Complete);
}

#[tokio::test]
async fn shutting_down_stops_what_cannot_be_left_and_seals_it() {
    let place = Place::new();
    let manager = place.open().await;
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let run = manager.start(sh(script)).await.unwrap();
    audited(&run, "ready").await;
    let id = run.id().clone();
    within(20, "the shutdown", manager.shutdown(ShutdownMode::Leave)).await;
    let info = Root::open(place.root()).unwrap().info(&id).unwrap();
    let seal = info.seal.unwrap();
    assert_eq!(seal.exit.code(), Some(5));
    assert_eq!(seal.stopped, Some(StopCause::Shutdown));
    assert_eq!(seal.verdict, Verdict::Complete);
}

#[tokio::test]
async fn dropping_the_manager_kills_its_processes_and_the_next_opening_seals_them() {
    let place = Place::new();
    let manager = place.open().await;
    let script = format!(
        "sleep 600 & echo $! >{}; echo $$ >{}; echo ready; wait",
        place.file("grandchild"),
        place.file("first")
    );
    let run = manager.start(sh(&script)).await.unwrap();
    audited(&run, "ready").await;
    let id = run.id().clone();
    drop((run, manager));
    dies(&line(&place.file("first")).await).await;
    dies(&line(&place.file("grandchild")).await).await;
    lost(&place, &id).await;
}

/// The next opening says that the run is lost, and has what was captured.
async fn lost(place: &Place, id: &RunId) -> Outcome {
    let manager = place.open().await;
    let recovered = within(20, "the recovery", manager.wait_recovery())
        .await
        .unwrap();
    assert_eq!(recovered.len(), 1);
    let outcome = within(20, "the seal", recovered[0].wait()).await.unwrap();
    assert_eq!(&outcome.run, id);
    match &outcome.ending {
        Ending::Lost { reason } => assert!(reason.contains("ended with the process"), "{reason}"),
        other => panic!("{other}"),
    }
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
    assert_eq!(seal(&outcome).evidence, Evidence::None);
    assert_eq!(gaps(&outcome), [(GapReason::NoBackstop, false)]);
    let captured = bytes(&outcome, Stream::Stdout).len() + bytes(&outcome, Stream::Tty).len();
    assert!(captured >= "ready\n".len());
    check(&outcome);
    manager.shutdown(ShutdownMode::Leave).await;
    outcome
}

/// A process that embeds moat: this test's own program, started once more.
struct Embedder(Child);

impl Drop for Embedder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const ROLE: &str = "MOAT_TEST_EMBEDDER";
/// Separates the arguments of the command.
const SEPARATOR: &str = "\x1f";

impl Embedder {
    /// Starts `script` in a run of the root, and leaves it to itself.
    fn start(root: &Path, script: &str, tty: bool) -> Self {
        let command = Command::new(std::env::current_exe().unwrap());
        Self::spawn(command, root, &["sh", "-c", script], tty)
    }

    /// Runs `command` in an embedder that ignores `signals` from its start.
    fn ignoring(signals: &str, root: &Path, command: &[&str], tty: bool) -> Self {
        Self::spawn(ignoring(signals), root, command, tty)
    }

    /// Runs `command` in an embedder that blocks all signals.
    fn blocking(root: &Path, command: &[&str], tty: bool) -> Self {
        let mut embedder = Command::new(std::env::current_exe().unwrap());
        embedder.env("MOAT_TEST_BLOCK", "1");
        Self::spawn(embedder, root, command, tty)
    }

    fn spawn(mut embedder: Command, root: &Path, command: &[&str], tty: bool) -> Self {
        embedder
            .args(["--exact", "an_embedder_that_is_killed", "--nocapture"])
            .env(ROLE, root)
            .env("MOAT_TEST_COMMAND", command.join(SEPARATOR))
            .env("MOAT_TEST_TTY", if tty { "1" } else { "" })
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Of its own, as from a terminal's shell.
        embedder.process_group(0);
        Self(embedder.spawn().unwrap())
    }

    /// Waits for the end, and returns the seal and the output of the run.
    async fn end(mut self, root: &Path) -> (Seal, String) {
        let status = eventually(60, "the embedder's end", async || {
            self.0.try_wait().unwrap()
        });
        assert!(status.await.success());
        let root = Root::open(root).unwrap();
        let id = RunId::new("first").unwrap();
        let seal = root.info(&id).unwrap().seal.unwrap();
        let output = Reader::open(root.audit(&id)).unwrap();
        let lines = output.filter_map(|record| match record.unwrap() {
            Record::Output(output) => Some(String::from_utf8_lossy(&output.bytes).into_owned()),
            _ => None,
        });
        (seal, lines.collect::<Vec<_>>().join("\n").replace('\r', ""))
    }
}

/// Builds the command of this test binary in a shell that ignores `signals`.
fn ignoring(signals: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("trap '' {signals}; exec \"$0\" \"$@\"");
    command
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap());
    command
}

/// What such a process does; in this one it does nothing.
#[tokio::test]
async fn an_embedder_that_is_killed() {
    let Some(root) = std::env::var_os(ROLE) else {
        return;
    };
    let command = std::env::var("MOAT_TEST_COMMAND").unwrap();
    let tty = !std::env::var("MOAT_TEST_TTY").unwrap().is_empty();
    if std::env::var_os("MOAT_TEST_BLOCK").is_some() {
        // The manager's threads inherit the mask of this one.
        nix::sys::signal::SigSet::all().thread_block().unwrap();
    }
    let manager = Manager::open(root, LocalProcess::new()).await.unwrap();
    let id = RunId::new("first").unwrap();
    let spec = RunSpec::command(command.split(SEPARATOR)).tty(tty).id(id);
    let run = manager.start(spec).await.unwrap();
    run.wait().await.unwrap();
    manager.shutdown(ShutdownMode::Leave).await;
}

/// Signals that a background job or `nohup` ignores, and others. 40 is a real-time signal.
const IGNORED: &str = "HUP INT QUIT USR1 USR2 ALRM TERM CHLD TSTP WINCH 40";

/// Prints the ignored and blocked signals. A shell in front would unblock them.
const PRINT_SIGNALS: [&str; 4] = ["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"];

/// SIGTTIN and SIGTTOU, which the process runtime does not reset.
const TERMINAL_SIGNALS: u64 = 0x30_0000;

/// Returns the ignored signals in the output of `PRINT_SIGNALS`. None may be blocked.
fn ignored_signals(output: &str) -> u64 {
    let mask = |name: &str| {
        let mask = output.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
    };
    assert_eq!(mask("SigBlk:"), 0);
    // glibc ignores its two internal signals in a spawned process.
    mask("SigIgn:") & !0x1_8000_0000
}

#[tokio::test]
async fn ignored_signals_have_their_default_in_a_process() {
    for tty in [false, true] {
        let place = Place::new();
        let embedder = Embedder::ignoring(IGNORED, &place.root(), &PRINT_SIGNALS, tty);
        let (seal, output) = embedder.end(&place.root()).await;
        let ignored = ignored_signals(&output) & !TERMINAL_SIGNALS;
        assert_eq!(ignored, 0, "{ignored:x}");
        // With SIGCHLD ignored, the kernel would reap the process and discard its exit code.
        assert_eq!(seal.exit.code(), Some(0));
        assert_eq!(seal.verdict, Verdict::Complete);
    }
}

/// The documentation of the module gives the reason.
#[tokio::test]
async fn ignored_signals_of_terminals_stay_ignored() {
    for tty in [false, true] {
        let place = Place::new();
        let ignored = "TTIN TTOU PIPE";
        let embedder = Embedder::ignoring(ignored, &place.root(), &PRINT_SIGNALS, tty);
        let (_, output) = embedder.end(&place.root()).await;
        assert_eq!(ignored_signals(&output), TERMINAL_SIGNALS);
    }
}

#[tokio::test]
async fn blocked_signals_are_not_blocked_in_a_process() {
    for tty in [false, true] {
        let place = Place::new();
        let embedder = Embedder::blocking(&place.root(), &PRINT_SIGNALS, tty);
        let (seal, output) = embedder.end(&place.root()).await;
        assert_eq!(ignored_signals(&output) & !TERMINAL_SIGNALS, 0);
        assert_eq!(seal.exit.code(), Some(0));
    }
}

/// A background job ignores SIGINT and SIGQUIT, and `nohup` ignores SIGHUP.
#[tokio::test]
async fn a_stop_works_where_its_signal_is_ignored() {
    let mut command = ignoring("HUP INT QUIT TERM");
    command.args([
        "--exact",
        "a_stop_signals_the_first_process_and_lets_it_end",
    ]);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[tokio::test]
async fn an_embedder_still_ignores_its_signals() {
    let place = Place::new();
    let script = format!(
        "echo started >{}; while ! [ -e {} ]; do sleep 0.02; done; exit 6",
        place.file("started"),
        place.file("go")
    );
    let embedder = Embedder::ignoring(IGNORED, &place.root(), &["sh", "-c", &script], false);
    line(&place.file("started")).await;
    let id = embedder.0.id().to_string();
    for signal in IGNORED.split(' ') {
        let sent = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(sent.unwrap().success(), "{signal}");
    }
    fs::write(place.file("go"), "").unwrap();
    let (seal, _) = embedder.end(&place.root()).await;
    assert_eq!(seal.exit.code(), Some(6));
}

#[tokio::test]
async fn a_killed_embedder_takes_its_children_along_and_its_runs_are_sealed_as_lost() {
    for tty in [false, true] {
        let place = Place::new();
        // With a terminal, the job is in a group of its own.
        let script = format!(
            "trap '' HUP TERM; {} sh -c 'echo $$ >{}; while :; do sleep 60; done' & echo $$ >{}; \
             echo ready; while :; do sleep 0.05; done",
            if tty { "set -m;" } else { "" },
            place.file("grandchild"),
            place.file("first")
        );
        let mut embedder = Embedder::start(&place.root(), &script, tty);
        let first = line(&place.file("first")).await;
        let grandchild = line(&place.file("grandchild")).await;
        let root = Root::open(place.root()).unwrap();
        let id = RunId::new("first").unwrap();
        let audit = root.audit(&id);
        eventually(20, "its output", async || {
            fs::read_to_string(&audit)
                .ok()?
                .contains("\"line\":\"ready")
                .then_some(())
        })
        .await;
        assert!(lives(&first) && lives(&grandchild));
        embedder.0.kill().unwrap();
        embedder.0.wait().unwrap();
        dies(&first).await;
        dies(&grandchild).await;
        lost(&place, &id).await;
    }
}

/// Killed at any moment from its start on, it leaves no process and no unsealed run.
#[tokio::test]
async fn an_embedder_that_is_killed_at_any_moment_leaves_nothing_behind() {
    for round in 0..60_u32 {
        let place = Place::new();
        let marker = format!("moat-test-{}-{round}", std::process::id());
        let script = format!("trap '' HUP; echo ready; : {marker}; while :; do sleep 1; done");
        let tty = round % 2 == 1;
        let mut embedder = Embedder::start(&place.root(), &script, tty);
        let dir = place.root().join("first");
        eventually(20, "the run's folder", async || dir.exists().then_some(())).await;
        tokio::time::sleep(Duration::from_micros(u64::from(round) * 400)).await;
        embedder.0.kill().unwrap();
        embedder.0.wait().unwrap();
        eventually(20, "the end of all", async || {
            marked(&marker).is_empty().then_some(())
        })
        .await;
        let manager = place.open().await;
        for run in manager.wait_recovery().await.unwrap() {
            let outcome = within(20, "the seal", run.wait()).await.unwrap();
            assert!(outcome.sealed().is_some(), "{outcome}");
            check(&outcome);
        }
        manager.shutdown(ShutdownMode::Leave).await;
    }
}

/// The processes that have `marker` in their arguments.
fn marked(marker: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let has = |path: PathBuf| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(marker)
    };
    processes
        .filter(|entry| has(entry.path()))
        .filter_map(|entry| Some(entry.file_name().to_str()?.to_owned()))
        .collect()
}

#[tokio::test]
async fn a_process_of_another_embedder_can_be_followed_and_not_stopped() {
    let place = Place::new();
    let script = "echo ready; while ! [ -e go ]; do sleep 0.02; done; exit 6";
    let script = script.replace("go", &place.file("go"));
    let embedder = Embedder::start(&place.root(), &script, false);
    let id = RunId::new("first").unwrap();
    eventually(20, "the run", async || {
        let info = Root::open(place.root()).ok()?.info(&id).ok()?;
        (info.status == moat::state::RunStatus::Running).then_some(())
    })
    .await;
    let manager = place.open().await;
    let run = manager.get(&id).await.unwrap();
    let refused = within(20, "the refusal", run.stop(None)).await;
    assert!(matches!(refused, Err(Error::Owned { .. })), "{refused:?}");
    fs::write(place.file("go"), "").unwrap();
    let outcome = within(20, "its end", run.wait()).await.unwrap();
    assert_eq!(outcome.code(), Some(6));
    assert_eq!(seal(&outcome).stopped, None, "nothing has stopped it");
    let stops = Reader::open(outcome.audit.as_ref().unwrap()).unwrap();
    let stops = stops.filter(|record| matches!(record, Ok(Record::Event(Event::Stop(_)))));
    assert_eq!(stops.count(), 0);
    drop(embedder);
}

#[cfg(feature = "testing")]
#[tokio::test]
async fn a_run_of_another_runtime_is_left_alone() {
    use moat::runtime::scripted::{Script, Scripted};

    let place = Place::new();
    let scripted = Scripted::new();
    scripted.next(Script::new().stdout("a\n").until_stopped());
    let manager = Manager::open(place.root(), scripted.clone()).await.unwrap();
    let id = manager
        .start(RunSpec::new("any"))
        .await
        .unwrap()
        .id()
        .clone();
    manager.shutdown(ShutdownMode::Leave).await;

    let other = place.open().await;
    let run = other.wait_recovery().await.unwrap().remove(0);
    assert!(run.problem().unwrap().contains("scripted"));
    let refused = run.wait().await;
    assert!(
        matches!(refused, Err(Error::OtherRuntime { .. })),
        "{refused:?}"
    );
    other.shutdown(ShutdownMode::Leave).await;
    let info = Root::open(place.root()).unwrap().info(&id).unwrap();
    assert!(
        info.seal.is_none(),
        "it was sealed by a runtime that cannot know"
    );

    let manager = Manager::open(place.root(), scripted).await.unwrap();
    let outcome = manager.stop(&id, Some(Duration::ZERO)).await.unwrap();
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

// What follows is of the runtime alone.

struct Direct {
    runtime: LocalProcess,
    root: RootId,
}

impl Direct {
    fn new() -> Self {
        Self {
            runtime: LocalProcess::new(),
            root: RootId::generate(),
        }
    }

    async fn create(&self, spec: &RunSpec) -> moat::spec::ContainerId {
        let run = RunId::generate();
        let name = format!("name-{run}");
        let request = CreateRequest::new(&name, &self.root, &run, spec);
        self.runtime.create(request).await.unwrap().container
    }
}

#[tokio::test]
async fn a_process_is_found_from_its_making_to_its_removal() {
    let direct = Direct::new();
    let container = direct.create(&sh("exit 9")).await;
    let runtime = &direct.runtime;
    let found = runtime.find(&direct.root).await.unwrap();
    assert_eq!(
        (&found[0].container, found[0].status),
        (&container, ContainerStatus::Created)
    );
    assert!(runtime.find(&RootId::generate()).await.unwrap().is_empty());
    let early = runtime.signal(&container, "SIGTERM").await;
    assert!(matches!(early, Err(RuntimeError::Conflict { .. })));

    runtime.start(&container).await.unwrap();
    let again = runtime.start(&container).await;
    assert!(matches!(again, Err(RuntimeError::Conflict { .. })));
    let status = runtime.wait(&container).await.unwrap();
    assert_eq!(status.code, Some(9));
    let inspection = runtime.inspect(&container).await.unwrap();
    assert_eq!(
        (inspection.status, inspection.code),
        (ContainerStatus::Ended, Some(9))
    );
    let late = runtime.signal(&container, "SIGTERM").await;
    assert!(matches!(late, Err(RuntimeError::Conflict { .. })));

    runtime.remove(&container, false).await.unwrap();
    for gone in [
        runtime.remove(&container, false).await.err(),
        runtime.inspect(&container).await.err(),
        runtime.wait(&container).await.err(),
        runtime.start(&container).await.err(),
        runtime.attach(&container, false).await.err(),
    ] {
        assert!(
            matches!(gone, Some(RuntimeError::NotFound { .. })),
            "{gone:?}"
        );
    }
    assert!(runtime.find(&direct.root).await.unwrap().is_empty());
}

#[tokio::test]
async fn only_force_removes_what_runs_and_what_was_removed_never_starts() {
    let direct = Direct::new();
    let container = direct.create(&RunSpec::command(["sleep", "600"])).await;
    direct.runtime.start(&container).await.unwrap();
    let refused = direct.runtime.remove(&container, false).await;
    assert!(matches!(refused, Err(RuntimeError::Conflict { .. })));
    within(20, "its removal", direct.runtime.remove(&container, true))
        .await
        .unwrap();

    let container = direct.create(&sh("true")).await;
    direct.runtime.remove(&container, false).await.unwrap();
    assert!(direct.runtime.start(&container).await.is_err());
}

/// It must not end with SIGPIPE, nor wait for a reader that is gone.
#[tokio::test]
async fn a_tap_that_is_dropped_does_not_disturb_the_process() {
    for tty in [false, true] {
        let direct = Direct::new();
        let script = "seq 100000; seq 100000 >&2; exit 8";
        let container = direct.create(&sh(script).tty(tty)).await;
        let tap = direct.runtime.attach(&container, tty).await.unwrap();
        let second = direct.runtime.attach(&container, tty).await.err();
        assert!(matches!(second, Some(RuntimeError::Conflict { .. })));
        direct.runtime.start(&container).await.unwrap();
        drop(tap);
        let status = within(20, "its end", direct.runtime.wait(&container))
            .await
            .unwrap();
        assert_eq!(status.code, Some(8), "tty: {tty}");

        // So it is without one.
        let container = direct.create(&sh(script).tty(tty)).await;
        direct.runtime.start(&container).await.unwrap();
        let status = within(20, "its end", direct.runtime.wait(&container))
            .await
            .unwrap();
        assert_eq!(status.code, Some(8), "tty: {tty}");
    }
}
