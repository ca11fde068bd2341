//! Ends that come from outside.

use std::fs;

use crate::place::{Place, Process, assert_code, printed, run, text};

const PIPELINE: &str = "\
    [[step]]\nname = 'quick'\ncommands = ['echo done']\n\
    [[step]]\nname = 'long'\ngrace = 30\nneeds = ['quick']\n\
    commands = [\"trap 'echo asked; exit 5' TERM\", 'echo begun', 'while :; do sleep 0.1; done']\n\
    [[step]]\nname = 'deaf'\ngrace = 0.3\nneeds = ['quick']\n\
    commands = [\"trap '' TERM\", 'echo begun', 'while :; do sleep 0.1; done']\n\
    [[step]]\nname = 'after'\nneeds = ['long']\nexec = ['true']\n";

fn stop(place: &Place, process: Process, signal: &str, code: i32) {
    printed(place, "long 1", "begun");
    printed(place, "deaf 1", "begun");
    process.signal(signal);
    let (found, out) = process.end();
    assert_eq!(found, code, "{out}");
    let audits = place.audits();
    assert_eq!(
        audits.keys().collect::<Vec<_>>(),
        ["deaf 1", "long 1", "quick 1"]
    );
    assert_eq!(audits["long 1"].stream("stdout"), b"begun\nasked\n");
    assert_eq!(audits["long 1"].end["stopped"], "shutdown");
    let statuses = place.statuses();
    assert_eq!(statuses["quick"], "passed");
    assert_eq!(statuses["long"], "cancelled: its manager was shut down");
    assert_eq!(statuses["deaf"], "cancelled: its manager was shut down");
    assert_eq!(
        statuses["after"],
        "skipped: it needs long, which has not passed"
    );
    assert!(place.path().join("out/report.html").exists());
}

pub fn a_signal_stops_all_local_processes_and_every_audit_is_sealed(place: &Place) {
    let process = Process::start(place.process(PIPELINE));
    stop(place, process, "TERM", 143);
}

pub fn a_signal_stops_all_containers_and_every_audit_is_sealed(place: &Place) {
    let process = Process::start(place.docker(PIPELINE));
    stop(place, process, "INT", 130);
    place.assert_no_containers();
}

/// One that is killed says nothing: what an earlier one has said would be taken for its word.
pub fn no_report_of_an_earlier_build_is_taken_for_that_of_a_killed_one(place: &Place) {
    run(place.process("[[step]]\nname = 'a'\nexec = ['true']\n"), 0);
    let out = place.path().join("out");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
    fs::write(out.join("of-others"), "").unwrap();
    let process = Process::start(
        place.process("[[step]]\nname = 'b'\ncommands = ['echo begun', 'sleep 600']\n"),
    );
    printed(place, "b 1", "begun");
    process.kill();
    let left: Vec<_> = fs::read_dir(&out).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0].file_name(), "of-others");
}

pub fn where_no_report_can_be_written_nothing_is_run(place: &Place) {
    fs::write(place.path().join("out"), "a file").unwrap();
    let mut command = place.process("[[step]]\nname = 'a'\nexec = ['true']\n");
    let output = command.output().unwrap();
    assert_code(&output, 2);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("cannot write the reports to "), "{stderr}");
    assert!(place.runs().is_empty());
}
