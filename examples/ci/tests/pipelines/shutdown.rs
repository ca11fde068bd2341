//! Builds that are stopped or killed, and builds that cannot start.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use crate::fixture::{
    CI_VARIABLES, Fixture, Process, assert_code, on_terminal, run, text, wait_for_line,
    wait_for_text,
};

testkit::trials! {
    crate::anywhere:
        a_signal_stops_and_seals_local_processes,
        a_hangup_stops_and_seals_local_processes,
        a_closed_terminal_seals_and_reports,
        a_hangup_under_nohup_is_ignored,
        a_signal_seals_runs_while_stdout_is_full,
        a_killed_build_leaves_no_earlier_report,
        nothing_runs_if_reports_cannot_be_written;
    crate::on_engine:
        a_signal_stops_and_seals_containers,
}

pub const PIPELINE: &str = "\
    [[step]]\nname = 'quick'\ncommands = ['echo done']\n\
    [[step]]\nname = 'long'\ngrace = 30\nneeds = ['quick']\n\
    commands = [\"trap 'echo stopping; exit 5' TERM\", 'echo started', 'while :; do sleep 0.1; done']\n\
    [[step]]\nname = 'stubborn'\ngrace = 0.3\nneeds = ['quick']\n\
    commands = [\"trap '' TERM\", 'echo started', 'while :; do sleep 0.1; done']\n\
    [[step]]\nname = 'after'\nneeds = ['long']\nexec = ['true']\n";

/// Stops a build of [`PIPELINE`] with a signal.
pub fn stop(fixture: &Fixture, process: Process, signal: &str, code: i32) {
    wait_for_line(fixture, "long 1", "started");
    wait_for_line(fixture, "stubborn 1", "started");
    process.signal(signal);
    let (found, out) = process.end();
    assert_eq!(found, code, "{out}");
    let audits = fixture.audits();
    assert_eq!(
        audits.keys().collect::<Vec<_>>(),
        ["long 1", "quick 1", "stubborn 1"]
    );
    assert_eq!(audits["long 1"].stream("stdout"), b"started\nstopping\n");
    assert_eq!(audits["long 1"].end["stopped"], "shutdown");
    let statuses = fixture.statuses();
    assert_eq!(statuses["quick"], "passed");
    assert_eq!(statuses["long"], "cancelled: its manager was shut down");
    assert_eq!(statuses["stubborn"], "cancelled: its manager was shut down");
    assert_eq!(
        statuses["after"],
        "skipped: it needs long, which did not pass"
    );
    assert!(fixture.path().join("out/report.html").exists());
}

fn a_signal_stops_and_seals_local_processes(fixture: &Fixture) {
    let process = Process::start(fixture.process(PIPELINE));
    stop(fixture, process, "TERM", 143);
}

fn a_hangup_stops_and_seals_local_processes(fixture: &Fixture) {
    let process = Process::start(fixture.process(PIPELINE));
    stop(fixture, process, "HUP", 129);
}

/// The kernel sends SIGHUP, and each later write to the terminal fails.
fn a_closed_terminal_seals_and_reports(fixture: &Fixture) {
    let step = "[[step]]\nname = 'a'\ngrace = 10\ncommands = [\"trap 'echo bye; exit 5' TERM\", \
        'echo ready', 'while :; do sleep 0.1; done']\n";
    let pipeline = fixture.pipeline(step);
    let (mut pty, pts, command) = on_terminal(fixture, pipeline, 24);
    let mut child = command.spawn(pts).unwrap();
    let (mut shown, mut bytes) = (String::new(), [0; 4096]);
    while !shown.contains("ready") {
        let read = pty.read(&mut bytes).unwrap();
        shown.push_str(&text(&bytes[..read]));
    }
    drop(pty);
    assert_eq!(child.wait().unwrap().code(), Some(129));
    assert_eq!(fixture.audits()["a 1"].stream("stdout"), b"ready\nbye\n");
    assert_eq!(
        fixture.statuses()["a"],
        "cancelled: its manager was shut down"
    );
    assert!(fixture.path().join("out/report.html").exists());
}

/// The second signal is the first one that counts.
fn a_hangup_under_nohup_is_ignored(fixture: &Fixture) {
    let command = fixture.process(PIPELINE);
    let mut nohup = Command::new("nohup");
    nohup.arg(command.get_program()).args(command.get_args());
    for name in CI_VARIABLES {
        nohup.env_remove(name);
    }
    nohup.stdin(Stdio::null());
    let process = Process::start(nohup);
    wait_for_line(fixture, "long 1", "started");
    process.signal("HUP");
    stop(fixture, process, "TERM", 143);
}

/// The step prints much more than a pipe holds, and nothing reads the pipe.
fn a_signal_seals_runs_while_stdout_is_full(fixture: &Fixture) {
    let pipeline = "[[step]]\nname = 'a'\ngrace = 30\ncommands = [\
        \"trap 'echo stopping; exit 5' TERM\", 'seq 1 100000', 'echo started', \
        'while :; do sleep 0.1; done']\n";
    let mut command = fixture.process(pipeline);
    command.arg("--stream");
    let process = Process::start(command);
    wait_for_line(fixture, "a 1", "started");
    process.signal("TERM");
    wait_for_text(fixture, "a 1", "\"type\":\"end\"");
    assert_eq!(fixture.audits()["a 1"].end["stopped"], "shutdown");
    let (code, out) = process.end();
    assert_eq!(code, 143);
    assert!(out.contains("\na | stopping\n"));
    assert_eq!(
        fixture.statuses()["a"],
        "cancelled: its manager was shut down"
    );
}

fn a_signal_stops_and_seals_containers(fixture: &Fixture) {
    let process = Process::start(fixture.docker(PIPELINE));
    stop(fixture, process, "INT", 130);
    fixture.assert_no_containers();
}

/// A killed build writes no reports.
///
/// Those of an earlier build could be mistaken for its own.
fn a_killed_build_leaves_no_earlier_report(fixture: &Fixture) {
    run(
        fixture.process("[[step]]\nname = 'a'\nexec = ['true']\n"),
        0,
    );
    let out = fixture.path().join("out");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
    fs::write(out.join("unrelated"), "").unwrap();
    let process = Process::start(
        fixture.process("[[step]]\nname = 'b'\ncommands = ['echo started', 'sleep 600']\n"),
    );
    wait_for_line(fixture, "b 1", "started");
    process.kill();
    let files: Vec<_> = fs::read_dir(&out).unwrap().flatten().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(files[0].file_name(), "unrelated");
}

fn nothing_runs_if_reports_cannot_be_written(fixture: &Fixture) {
    fs::write(fixture.path().join("out"), "a file").unwrap();
    let mut command = fixture.process("[[step]]\nname = 'a'\nexec = ['true']\n");
    let output = command.output().unwrap();
    assert_code(&output, 2);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("cannot write the reports to "), "{stderr}");
    assert!(fixture.runs().is_empty());
}
