//! Builds that are resumed after their harness was killed.

use std::fs;
use std::process::Command;

use crate::fixture::{
    Fixture, Process, assert_code, assert_running_build_refuses, resumed, run, text, wait_for_line,
    wait_for_text,
};
use testkit::deadline::wait_for;
use testkit::engine;

testkit::trials! {
    crate::anywhere:
        resume_reruns_only_interrupted_runs,
        resume_reruns_runs_that_never_started,
        resume_does_not_add_retries,
        a_changed_pipeline_cannot_be_resumed,
        a_running_build_cannot_be_resumed,
        resume_without_a_build_starts_one;
    crate::on_engine:
        resume_recovers_running_containers,
        the_next_build_stops_leftover_containers,
}

/// The number of lines in a file. A step adds one line per attempt.
fn count_lines(fixture: &Fixture, name: &str) -> usize {
    let text = fs::read_to_string(fixture.path().join(name));
    text.unwrap_or_default().lines().count()
}

/// Waits until the run is sealed.
fn wait_for_seal(fixture: &Fixture, run: &str) {
    wait_for_text(fixture, run, "\"type\":\"end\"");
}

fn resume_recovers_running_containers(fixture: &Fixture) {
    recover_running(fixture, Fixture::docker);
    fixture.assert_no_containers();
}

/// Kills a build while a step runs, and resumes it.
pub fn recover_running(fixture: &Fixture, build: fn(&Fixture, &str) -> Command) {
    let pipeline = "[[step]]\nname = 'first'\ncommands = ['echo once']\n\
        [[step]]\nname = 'slow'\nneeds = ['first']\n\
        commands = ['for i in $(seq 100); do echo line $i; sleep 0.1; done']\n\
        [[step]]\nname = 'last'\nneeds = ['slow']\ncommands = ['echo last']\n";
    let process = Process::start(build(fixture, pipeline));
    wait_for_line(fixture, "slow 1", "line 20");
    process.kill();
    let before = fixture.runs();
    assert_eq!(before.keys().collect::<Vec<_>>(), ["first 1", "slow 1"]);
    let first = fs::read(&before["first 1"]).unwrap();

    let out = run(resumed(build(fixture, pipeline)), 0);
    assert!(out.contains("first: already ended") && out.contains("slow: resumed"));
    let left = "\nresumed: 1 step finished before, 1 still running, 1 to run\n";
    assert!(out.contains(left), "{out}");
    let page = fs::read_to_string(fixture.path().join("out/report.html")).unwrap();
    for taken_over in [
        "ended before the build was resumed",
        "was running when the build was resumed",
    ] {
        assert_eq!(
            page.matches(&format!("\"{taken_over}\"")).count(),
            1,
            "{taken_over}"
        );
    }
    let audits = fixture.audits();
    assert_eq!(
        audits.keys().collect::<Vec<_>>(),
        ["first 1", "last 1", "slow 1"]
    );
    let lines: String = (1..=100).map(|i| format!("line {i}\n")).collect();
    assert_eq!(text(audits["slow 1"].stream("stdout")), lines);
    assert_eq!(audits["slow 1"].all("resume").len(), 1);
    assert_eq!(fs::read(&before["first 1"]).unwrap(), first);
    assert!(fixture.statuses().values().all(|status| status == "passed"));

    // Nothing is left to do.
    run(resumed(build(fixture, pipeline)), 0);
    assert_eq!(fixture.runs().len(), 3);
}

fn the_next_build_stops_leftover_containers(fixture: &Fixture) {
    stop_leftovers(fixture, Fixture::docker, |root| {
        let address = engine::address();
        let containers = engine::containers(&address, root);
        engine::block_on(containers).unwrap().len()
    });
    fixture.assert_no_containers();
}

/// Kills a build while its step runs, and starts another build.
pub fn stop_leftovers(
    fixture: &Fixture,
    build: fn(&Fixture, &str) -> Command,
    count_containers: impl Fn(&str) -> usize,
) {
    let old = "[[step]]\nname = 'old'\ngrace = 3\n\
        commands = [\"trap '' TERM\", 'echo started', 'while :; do sleep 0.1; done']\n";
    let process = Process::start(build(fixture, old));
    wait_for_line(fixture, "old 1", "started");
    process.kill();
    let root = engine::root_id(&fixture.root()).unwrap();
    assert_eq!(count_containers(&root), 1, "the container still runs");
    let mut command = build(fixture, "[[step]]\nname = 'new'\nexec = ['true']\n");
    command.args(["--heartbeat", "1"]);
    let out = run(command, 0);
    let (_, waiting) = out.split_once("of an earlier build\n").unwrap();
    assert!(waiting.starts_with("no step running\n"), "{out}");
    assert_eq!(fixture.audits().len(), 2);
}

fn resume_reruns_only_interrupted_runs(fixture: &Fixture) {
    let dir = fixture.path().display();
    let pipeline = format!(
        "[[step]]\nname = 'first'\ncommands = ['echo x >> {dir}/first']\n\
         [[step]]\nname = 'slow'\nneeds = ['first']\n\
         commands = ['echo x >> {dir}/slow', 'echo started', \
         'while ! test -e {dir}/go; do sleep 0.02; done']\n\
         [[step]]\nname = 'last'\nneeds = ['slow']\ncommands = ['echo x >> {dir}/last']\n"
    );
    let process = Process::start(fixture.process(&pipeline));
    wait_for_line(fixture, "slow 1", "started");
    wait_for_seal(fixture, "first 1");
    process.kill();
    fs::write(fixture.path().join("go"), "").unwrap();
    let out = run(resumed(fixture.process(&pipeline)), 0);
    let left = "\nresumed: 1 step finished before, 0 still running, 2 to run\n";
    assert!(out.contains(left), "{out}");
    let counts = ["first", "slow", "last"].map(|name| count_lines(fixture, name));
    assert_eq!(counts, [1, 2, 1]);
    let audits = fixture.audits();
    let runs = ["first 1", "last 1", "slow 1", "slow 2"];
    assert_eq!(audits.keys().collect::<Vec<_>>(), runs);
    assert_eq!(audits["slow 1"].end["exit"]["state"], "lost");
    assert!(fixture.statuses().values().all(|status| status == "passed"));
}

fn resume_does_not_add_retries(fixture: &Fixture) {
    let dir = fixture.path().display();
    let pipeline = format!(
        "[[step]]\nname = 'bad'\nretries = 1\ncommands = ['echo x >> {dir}/bad', 'exit 3']\n\
         [[step]]\nname = 'never'\nneeds = ['bad']\nexec = ['true']\n\
         [[step]]\nname = 'long'\ncommands = ['while ! test -e {dir}/go; do sleep 0.02; done']\n"
    );
    let process = Process::start(fixture.process(&pipeline));
    wait_for_seal(fixture, "bad 2");
    wait_for("the start of `long`", || {
        fixture.runs().contains_key("long 1")
    });
    process.kill();
    fs::write(fixture.path().join("go"), "").unwrap();
    let out = run(resumed(fixture.process(&pipeline)), 1);
    let left = "\nresumed: 1 step finished before, 0 still running, 1 to run, 1 skipped\n";
    assert!(out.contains(left), "{out}");
    assert_eq!(count_lines(fixture, "bad"), 2);
    let statuses = fixture.statuses();
    assert_eq!(statuses["bad"], "failed: exited with code 3");
    assert_eq!(statuses["long"], "passed");
}

/// One run was queued, and one was refused by the runtime.
fn resume_reruns_runs_that_never_started(fixture: &Fixture) {
    let dir = fixture.path().display();
    let pipeline = format!(
        "[[step]]\nname = 'step'\nmatrix = {{ n = ['1', '2'] }}\n\
         commands = ['echo started', 'while ! test -e {dir}/go; do sleep 0.02; done']\n\
         [[step]]\nname = 'refused'\nneeds = ['step']\nexec = ['{dir}/program']\n"
    );
    let process = Process::start(fixture.process_one_job(&pipeline));
    let has_started = |n| {
        let audit = fixture
            .runs()
            .get(&format!("step-n-{n} 1"))
            .map(fs::read_to_string);
        audit.map(|audit| audit.unwrap().contains("\"line\":\"started\""))
    };
    wait_for("a running step and a queued step", || {
        let started = [has_started(1), has_started(2)];
        started.contains(&Some(true)) && started.contains(&Some(false))
    });
    process.kill();
    fs::write(fixture.path().join("go"), "").unwrap();
    run(resumed(fixture.process_one_job(&pipeline)), 1);
    let audits = fixture.audits();
    let state = |run: &str| {
        audits[run].end["exit"]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let mut states = [state("step-n-1 1"), state("step-n-2 1")];
    states.sort();
    assert_eq!(states, ["lost", "not_created"]);
    let statuses = fixture.statuses();
    assert_eq!(
        [&statuses["step (n=1)"], &statuses["step (n=2)"]],
        ["passed"; 2]
    );
    assert!(statuses["refused"].starts_with("failed: "), "{statuses:?}");

    std::os::unix::fs::symlink("/bin/true", fixture.path().join("program")).unwrap();
    run(resumed(fixture.process_one_job(&pipeline)), 0);
    assert_eq!(fixture.runs().len(), 6);
}

fn a_changed_pipeline_cannot_be_resumed(fixture: &Fixture) {
    let pipeline = "[[step]]\nname = 'a'\ncommands = ['echo a']\n";
    run(fixture.process(pipeline), 0);
    let changed = pipeline.replace("echo a", "echo b");
    let output = resumed(fixture.process(&changed)).output().unwrap();
    assert_code(&output, 2);
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("the file or the image was changed"),
        "{stderr}"
    );
    let mut command = resumed(fixture.process(pipeline));
    let output = command.args(["--image", "other"]).output().unwrap();
    assert_code(&output, 2);
    assert_eq!(fixture.runs().len(), 1);
    run(resumed(fixture.process(pipeline)), 0);
}

fn a_running_build_cannot_be_resumed(fixture: &Fixture) {
    assert_running_build_refuses(fixture, resumed);
}

fn resume_without_a_build_starts_one(fixture: &Fixture) {
    let pipeline = "[[step]]\nname = 'a'\ncommands = ['echo a']\n";
    run(resumed(fixture.process(pipeline)), 0);
    assert_eq!(fixture.audits().len(), 1);
}
