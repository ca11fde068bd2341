//! Real programs in a real terminal, through the examples, as users start them.

use std::fs;
use std::path::{Path, PathBuf};

use moat::Root;
use moat::state::RunStatus;
use pty_process::blocking::Command;
use rustix::process::Signal;
use testkit::audit::Audit;
use testkit::examples::program as example;

use crate::screen::Screen;
use crate::stage::{Stage, actions, assert_bytes, assert_nothing_missed};

testkit::trials! {
    crate::on_busybox:
        a_shell_survives_a_detach,
        an_editor_is_redrawn_on_attach,
        top_is_shown_live,
        terminal_modes_of_a_dead_program_are_reset,
        a_signal_restores_the_terminal,
        detach_keys_work_when_input_is_not_read,
        sigtstp_restores_the_terminal,
        detach_works_while_waiting_for_the_end,
        a_panic_restores_the_terminal,
        an_error_restores_the_terminal,
        an_exec_has_its_own_terminal,
        piped_input_takes_bounded_memory,
}

/// `run --interactive --tty IMAGE -- CMD` in a terminal.
fn run(stage: &Stage, options: &[&str], cmd: &[&str]) -> Screen {
    let command = Command::new(example("run"))
        .arg("--root")
        .arg(stage.root())
        .args(["--name", "one", "--network", "none", "--grace", "1"])
        .args(["--interactive", "--tty"])
        .args(options)
        .arg(&stage.image)
        .arg("--")
        .args(cmd);
    Screen::start(command)
}

fn runs(stage: &Stage, arguments: &[&str]) -> Screen {
    let command = Command::new(example("runs"))
        .arg("--root")
        .arg(stage.root())
        .args(arguments);
    Screen::start(command)
}

/// Attaches until the redrawn screen shows `part`, and returns the number of tries.
///
/// An engine may answer before it passes output on. Output in between is lost, and nothing redraws
/// it.
fn reattach(stage: &Stage, part: &str) -> (Screen, usize) {
    let mut tries = 1;
    loop {
        let screen = runs(stage, &["attach", "one"]);
        if screen.comes_to_show(part) {
            return (screen, tries);
        }
        assert!(
            tries < 5,
            "no {part:?} on this screen:\n{}",
            screen.contents()
        );
        tries += 1;
    }
}

fn audit_path(stage: &Stage) -> PathBuf {
    stage.root().join("one/logs.jsonl")
}

fn tty_of(path: &Path) -> (Audit, String) {
    let audit = Audit::read(path).unwrap();
    let tty = String::from_utf8_lossy(audit.stream("tty")).into_owned();
    (audit, tty)
}

/// Stops the run and waits for its seal.
fn stop(stage: &Stage) {
    let mut screen = runs(stage, &["stop", "one"]);
    assert_eq!(screen.code(), Some(0), "{}", screen.contents());
}

async fn a_shell_survives_a_detach(stage: &Stage) {
    let mut screen = run(stage, &[], &["sh"]);
    screen.shows("/ #");
    assert!(screen.is_raw());
    // Line editing: the shell gets each key as it is typed.
    screen.type_in("echo hellx\x7fo; stty size\r");
    screen.shows("\nhello\n24 80\n");
    screen.resize(30, 100);
    screen.type_in("clear; until [ \"$(stty size)\" = '30 100' ]; do :; done; stty size\r");
    screen.shows("30 100\n");
    // Outside raw mode, this key would end the container.
    screen.type_in("echo g''o; cat\r");
    screen.shows("\ngo\n");
    screen.type_in("to cat\r");
    screen.shows("to cat\nto cat\n");
    screen.type_in("\x03");
    screen.shows("^C\n");
    screen.type_in("echo le''ft\r");
    screen.shows("left\n");
    screen.type_in("\x10");
    screen.type_in("\x11");
    assert_eq!(screen.code(), Some(0), "{}", screen.contents());
    screen.is_as_it_was();
    screen.shows("detached from one");

    let root = Root::open(stage.root()).unwrap();
    let info = root.info(&"one".parse().unwrap()).unwrap();
    assert_eq!(info.status, RunStatus::Running);
    assert_eq!(stage.containers().await.len(), 1);

    let (mut screen, tries) = reattach(stage, "/ #");
    // The redraw makes the terminal one row smaller for a moment.
    screen.type_in("until [ \"$(stty size)\" = '24 80' ]; do :; done; echo ba''ck; stty size\r");
    screen.shows("back\n24 80\n");
    screen.type_in("exit 3\r");
    assert_eq!(screen.code(), Some(3), "{}", screen.contents());
    screen.is_as_it_was();

    let (audit, tty) = tty_of(&audit_path(stage));
    for text in ["\nhello\r\n", "30 100\r\n", "\nleft\r\n", "\nback\r\n"] {
        assert!(tty.contains(text), "{tty}");
    }
    assert_eq!(audit.end["exit"]["code"], 3);
    assert_eq!(audit.verdict(), "complete");
    let done = actions(&audit);
    assert_eq!(done.first().unwrap(), "attach_input");
    assert_eq!(done.iter().filter(|action| *action == "detach").count(), 1);
    let attached = done.iter().filter(|action| *action == "attach_input");
    assert!((2..=1 + tries).contains(&attached.count()), "{done:?}");
    assert!(done.contains(&"resize".into()));
    assert!(audit.all("stdin").is_empty());
}

async fn an_editor_is_redrawn_on_attach(stage: &Stage) {
    let mut screen = run(stage, &["--detach-keys", "ctrl-x,d"], &["vi", "/tmp/note"]);
    screen.shows("~\n~\n");
    screen.type_in("ihello from vi\x1b");
    screen.shows("hello from vi");
    screen.resize(12, 60);
    // The requested keys work, in one piece or two.
    screen.type_in("\x18");
    screen.type_in("d");
    assert_eq!(screen.code(), Some(0), "{}", screen.contents());
    screen.is_as_it_was();

    let (mut screen, _) = reattach(stage, "hello from vi\n~\n");
    screen.type_in(":w\r");
    screen.shows("'/tmp/note' 1L");
    screen.type_in(":q\r");
    assert_eq!(screen.code(), Some(0), "{}", screen.contents());
    screen.is_as_it_was();
    let (audit, tty) = tty_of(&audit_path(stage));
    assert_eq!(audit.verdict(), "complete");
    assert!(tty.contains("hello from vi"));
}

async fn top_is_shown_live(stage: &Stage) {
    let mut screen = run(stage, &[], &["top", "-d", "1"]);
    screen.shows("Mem:");
    screen.shows("top -d 1");
    screen.type_in("q");
    assert_eq!(screen.code(), Some(0), "{}", screen.contents());
    screen.is_as_it_was();
}

async fn terminal_modes_of_a_dead_program_are_reset(stage: &Stage) {
    const MESS: &str =
        "printf '\\033[?1049h\\033[?25l\\033[?1000h\\033[?2004h\\033[3;9r\\033[31mmess'";
    for end in ["exit 4", "sleep 600"] {
        let script = format!("{MESS}; {end}");
        let options = ["--name", if end == "exit 4" { "dead" } else { "left" }];
        let mut screen = run_named(stage, &options, &["sh", "-c", &script]);
        if end == "sleep 600" {
            screen.is("the mess", |screen| {
                screen.alternate_screen() && screen.contents().contains("mess")
            });
            assert!(screen.is_raw());
            screen.type_in("\x10\x11");
        }
        let code = screen.code();
        assert_eq!(code, Some(if end == "exit 4" { 4 } else { 0 }));
        screen.is_as_it_was();
    }
    let mut screen = runs(stage, &["stop", "left"]);
    assert_eq!(screen.code(), Some(0));
}

fn run_named(stage: &Stage, options: &[&str], cmd: &[&str]) -> Screen {
    let command = Command::new(example("run"))
        .arg("--root")
        .arg(stage.root())
        .args([
            "--network",
            "none",
            "--grace",
            "1",
            "--interactive",
            "--tty",
        ])
        .args(options)
        .arg(&stage.image)
        .arg("--")
        .args(cmd);
    Screen::start(command)
}

async fn a_signal_restores_the_terminal(stage: &Stage) {
    let mut screen = run(
        stage,
        &[],
        &["sh", "-c", "printf '\\033[?1049hready'; sleep 600"],
    );
    screen.shows("ready");
    assert!(screen.is_raw());
    screen.signal(Signal::TERM);
    assert_eq!(screen.code(), Some(143), "{}", screen.contents());
    screen.is_as_it_was();
    let (audit, _) = tty_of(&audit_path(stage));
    assert_eq!(audit.end["stopped"], "requested");
}

/// More than terminal, engine and container buffer together, about 100 KiB each.
async fn detach_keys_work_when_input_is_not_read(stage: &Stage) {
    let script = "stty raw -echo; echo ready; sleep 600";
    let mut screen = run(stage, &[], &["sh", "-c", script]);
    screen.shows("ready");
    let mut typed = vec![b'x'; 4 << 20];
    typed.extend(b"\x10\x11");
    screen.type_on(typed);
    assert_eq!(screen.code(), Some(0), "{}", screen.contents());
    screen.is_as_it_was();
    screen.shows("detached from one");
    stop(stage);
}

async fn sigtstp_restores_the_terminal(stage: &Stage) {
    let script = "printf '\\033[?1049hready'; read go; printf '\\033[?1049l'; \
                  until size=$(stty size); [ \"$size\" = '30 100' ]; do :; done; \
                  echo \"$size\"; exit 4";
    let mut screen = run(stage, &[], &["sh", "-c", script]);
    screen.shows("ready");
    assert!(screen.is_raw());
    screen.signal(Signal::TSTP);
    screen.is_stopped();
    screen.is_as_it_was();
    screen.resize(30, 100);
    screen.signal(Signal::CONT);
    screen.is("a raw terminal", |_| screen.is_raw());
    screen.type_in("go\r");
    screen.shows("30 100\n");
    assert_eq!(screen.code(), Some(4), "{}", screen.contents());
    screen.is_as_it_was();
}

/// The stopped owner cannot report the exit.
async fn detach_works_while_waiting_for_the_end(stage: &Stage) {
    let mut owner = run(stage, &[], &["sh"]);
    owner.shows("/ #");
    let (mut other, _) = reattach(stage, "/ #");
    owner.signal(Signal::STOP);
    other.type_in("exit 3\r");
    stage.container_ended().await;
    other.type_in("\x10\x11");
    assert_eq!(other.code(), Some(0), "{}", other.contents());
    other.is_as_it_was();
    owner.signal(Signal::CONT);
    assert_eq!(owner.code(), Some(3), "{}", owner.contents());
    let (audit, _) = tty_of(&audit_path(stage));
    assert_eq!(audit.verdict(), "complete");
}

async fn a_panic_restores_the_terminal(_: &Stage) {
    // A backtrace would be longer than the screen.
    let command = terminal_child("panic").env("RUST_BACKTRACE", "0");
    let mut screen = Screen::start(command);
    assert_eq!(screen.code(), Some(101), "{}", screen.contents());
    screen.is_as_it_was();
    screen.shows("a panic while the terminal is attached");
}

async fn an_error_restores_the_terminal(_: &Stage) {
    let mut screen = Screen::start(terminal_child("error"));
    assert_eq!(screen.code(), Some(9), "{}", screen.contents());
    screen.is_as_it_was();
}

async fn an_exec_has_its_own_terminal(stage: &Stage) {
    let screen = run(stage, &[], &["sh"]);
    screen.shows("/ #");
    screen.type_in("touch /tmp/here; echo do''ne\r");
    screen.shows("\ndone\n");
    let mut other = runs(
        stage,
        &["exec", "-it", "--workdir", "/tmp", "one", "--", "sh"],
    );
    other.shows("/tmp #");
    other.type_in("ls; stty size\r");
    other.shows("here\n24 80\n");
    other.type_in("exit 6\r");
    assert_eq!(other.code(), Some(6), "{}", other.contents());
    other.is_as_it_was();
    let mut plain = runs(
        stage,
        &["exec", "one", "--", "sh", "-c", "echo pl''ain; exit 5"],
    );
    plain.shows("plain");
    assert_eq!(plain.code(), Some(5), "{}", plain.contents());
    drop(screen);
    stop(stage);
    let dir = stage.root().join("one");
    let (audit, tty) = tty_of(&dir.join("exec-1.jsonl"));
    assert_eq!(
        (audit.end["exit"]["code"].as_i64(), audit.verdict()),
        (Some(6), "unproven")
    );
    assert!(tty.contains("here"), "{tty}");
    let audit = Audit::read(&dir.join("exec-2.jsonl")).unwrap();
    assert_eq!(audit.stream("stdout"), b"plain\n");
    // The owner was killed. The next process recorded the requests that were left for it.
    let audit = Audit::read(&audit_path(stage)).unwrap();
    assert_eq!(
        actions(&audit)
            .iter()
            .filter(|action| *action == "exec")
            .count(),
        2
    );
}

/// `run --interactive IMAGE -- cat <FILE`
async fn piped_input_takes_bounded_memory(stage: &Stage) {
    // Long lines: a debug build needs 15 s for a million short ones on a busy machine, and `run` waits
    // no longer for the seal.
    let all: String = (0..100_000).map(|n| format!("{n:069}\n")).collect();
    let [input, output, errors] = ["in", "out", "err"].map(|name| stage.dir.path().join(name));
    fs::write(&input, &all).unwrap();
    let mut child = std::process::Command::new(example("run"))
        .arg("--root")
        .arg(stage.root())
        .args(["--name", "one", "--network", "none", "--interactive"])
        .arg(&stage.image)
        .args(["--", "cat"])
        .stdin(fs::File::open(&input).unwrap())
        .stdout(fs::File::create(&output).unwrap())
        .stderr(fs::File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let peak = testkit::examples::peak(&mut child);
    let code = child.wait().unwrap().code();
    assert_eq!(code, Some(0), "{}", fs::read_to_string(&errors).unwrap());
    assert_bytes(&fs::read(&output).unwrap(), all.as_bytes());
    assert!(peak > 0 && peak < 40 << 10, "{peak} KiB resident");
    let audit = Audit::read(&audit_path(stage)).unwrap();
    assert_nothing_missed(&audit);
    assert_bytes(audit.stream("stdout"), all.as_bytes());
}

/// This program as a process that attaches its terminal to a run, and then fails in this way.
fn terminal_child(failure: &str) -> Command {
    let (role, orders) = testkit::child::variable(crate::terminal_child::ROLE, &failure);
    Command::new(std::env::current_exe().unwrap()).env(role, orders)
}
