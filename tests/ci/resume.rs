//! What becomes of a build whose harness was killed.

use std::fs;
use std::process::Command;

use crate::place::{Place, Process, assert_code, audited, printed, run, text, wait_for};
use crate::support::engine;

fn resumed(mut command: Command) -> Command {
    command.arg("--resume");
    command
}

/// What a step does is counted in a file of its name.
fn counted(place: &Place, name: &str) -> usize {
    let text = fs::read_to_string(place.path().join(name));
    text.unwrap_or_default().lines().count()
}

/// Waits until a run is sealed.
fn sealed(place: &Place, run: &str) {
    audited(place, run, "\"type\":\"end\"");
}

pub fn a_container_of_a_killed_harness_is_picked_up_and_its_audit_is_whole(place: &Place) {
    let pipeline = "[[step]]\nname = 'first'\ncommands = ['echo once']\n\
        [[step]]\nname = 'slow'\nneeds = ['first']\n\
        commands = ['for i in $(seq 100); do echo line $i; sleep 0.1; done']\n\
        [[step]]\nname = 'last'\nneeds = ['slow']\ncommands = ['echo last']\n";
    let process = Process::start(place.docker(pipeline));
    printed(place, "slow 1", "line 20");
    process.kill();
    let before = place.runs();
    assert_eq!(before.keys().collect::<Vec<_>>(), ["first 1", "slow 1"]);
    let first = fs::read(&before["first 1"]).unwrap();

    let out = run(resumed(place.docker(pipeline)), 0);
    assert!(out.contains("first: has ended before") && out.contains("slow: is gone on with"));
    let audits = place.audits();
    assert_eq!(
        audits.keys().collect::<Vec<_>>(),
        ["first 1", "last 1", "slow 1"]
    );
    let lines: String = (1..=100).map(|i| format!("line {i}\n")).collect();
    assert_eq!(text(audits["slow 1"].stream("stdout")), lines);
    assert_eq!(audits["slow 1"].all("resume").len(), 1);
    assert_eq!(fs::read(&before["first 1"]).unwrap(), first);
    assert!(place.statuses().values().all(|status| status == "passed"));
    place.assert_no_containers();

    // All that there is to do was done.
    run(resumed(place.docker(pipeline)), 0);
    assert_eq!(place.runs().len(), 3);
}

pub fn what_a_killed_harness_has_left_is_stopped_by_the_next_build(place: &Place) {
    let old = "[[step]]\nname = 'old'\ngrace = 0.3\ncommands = ['echo begun', 'sleep 600']\n";
    let process = Process::start(place.docker(old));
    printed(place, "old 1", "begun");
    process.kill();
    let root = engine::root_id(&place.root()).unwrap();
    let docker = engine::connect().unwrap();
    let left = engine::block_on(engine::containers(&docker, &root)).unwrap();
    assert_eq!(left.len(), 1, "its container goes on");
    let out = run(place.docker("[[step]]\nname = 'new'\nexec = ['true']\n"), 0);
    assert!(out.contains("of an earlier build is stopped"), "{out}");
    assert_eq!(place.audits().len(), 2);
    place.assert_no_containers();
}

pub fn what_ended_with_a_killed_harness_is_run_again_and_nothing_else(place: &Place) {
    let dir = place.path().display();
    let pipeline = format!(
        "[[step]]\nname = 'first'\ncommands = ['echo x >> {dir}/first']\n\
         [[step]]\nname = 'slow'\nneeds = ['first']\n\
         commands = ['echo x >> {dir}/slow', 'echo begun', \
         'while ! test -e {dir}/go; do sleep 0.02; done']\n\
         [[step]]\nname = 'last'\nneeds = ['slow']\ncommands = ['echo x >> {dir}/last']\n"
    );
    let process = Process::start(place.process(&pipeline));
    printed(place, "slow 1", "begun");
    sealed(place, "first 1");
    process.kill();
    fs::write(place.path().join("go"), "").unwrap();
    run(resumed(place.process(&pipeline)), 0);
    let counts = ["first", "slow", "last"].map(|name| counted(place, name));
    assert_eq!(counts, [1, 2, 1]);
    let audits = place.audits();
    let runs = ["first 1", "last 1", "slow 1", "slow 2"];
    assert_eq!(audits.keys().collect::<Vec<_>>(), runs);
    assert_eq!(audits["slow 1"].end["exit"]["state"], "lost");
    assert!(place.statuses().values().all(|status| status == "passed"));
}

pub fn a_step_that_had_failed_before_is_not_tried_more_often(place: &Place) {
    let dir = place.path().display();
    let pipeline = format!(
        "[[step]]\nname = 'bad'\nretries = 1\ncommands = ['echo x >> {dir}/bad', 'exit 3']\n\
         [[step]]\nname = 'long'\ncommands = ['while ! test -e {dir}/go; do sleep 0.02; done']\n"
    );
    let process = Process::start(place.process(&pipeline));
    sealed(place, "bad 2");
    wait_for("the long one", || place.runs().contains_key("long 1"));
    process.kill();
    fs::write(place.path().join("go"), "").unwrap();
    run(resumed(place.process(&pipeline)), 1);
    assert_eq!(counted(place, "bad"), 2);
    let statuses = place.statuses();
    assert_eq!(statuses["bad"], "failed: exited with code 3");
    assert_eq!(statuses["long"], "passed");
}

/// One that waited for its turn, and one that its engine has refused.
pub fn what_never_came_to_run_is_run_again(place: &Place) {
    let dir = place.path().display();
    let pipeline = format!(
        "[[step]]\nname = 'step'\nmatrix = {{ n = ['1', '2'] }}\n\
         commands = ['echo begun', 'while ! test -e {dir}/go; do sleep 0.02; done']\n\
         [[step]]\nname = 'refused'\nneeds = ['step']\nexec = ['{dir}/program']\n"
    );
    let process = Process::start(place.process_alone(&pipeline));
    let begun = |n| {
        let audit = place
            .runs()
            .get(&format!("step (n={n}) 1"))
            .map(fs::read_to_string);
        audit.map(|audit| audit.unwrap().contains("\"line\":\"begun\""))
    };
    wait_for("one that runs and one that waits", || {
        let begun = [begun(1), begun(2)];
        begun.contains(&Some(true)) && begun.contains(&Some(false))
    });
    process.kill();
    fs::write(place.path().join("go"), "").unwrap();
    run(resumed(place.process_alone(&pipeline)), 1);
    let audits = place.audits();
    let state = |run: &str| {
        audits[run].end["exit"]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let mut states = [state("step (n=1) 1"), state("step (n=2) 1")];
    states.sort();
    assert_eq!(states, ["lost", "not_created"]);
    let statuses = place.statuses();
    assert_eq!(
        [&statuses["step (n=1)"], &statuses["step (n=2)"]],
        ["passed"; 2]
    );
    assert!(statuses["refused"].starts_with("failed: "), "{statuses:?}");

    std::os::unix::fs::symlink("/bin/true", place.path().join("program")).unwrap();
    run(resumed(place.process_alone(&pipeline)), 0);
    assert_eq!(place.runs().len(), 6);
}

pub fn a_changed_pipeline_is_not_gone_on_with(place: &Place) {
    let pipeline = "[[step]]\nname = 'a'\ncommands = ['echo a']\n";
    run(place.process(pipeline), 0);
    let changed = pipeline.replace("echo a", "echo b");
    let output = resumed(place.process(&changed)).output().unwrap();
    assert_code(&output, 2);
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("the file or the image was changed"),
        "{stderr}"
    );
    let mut command = resumed(place.process(pipeline));
    let output = command.args(["--image", "other"]).output().unwrap();
    assert_code(&output, 2);
    assert_eq!(place.runs().len(), 1);
    run(resumed(place.process(pipeline)), 0);
}

pub fn a_build_that_is_under_way_is_not_gone_on_with(place: &Place) {
    let pipeline = "[[step]]\nname = 'a'\ncommands = ['echo begun', 'sleep 600']\n";
    let process = Process::start(place.process(pipeline));
    printed(place, "a 1", "begun");
    let output = resumed(place.process(pipeline)).output().unwrap();
    assert_code(&output, 2);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("another process is at its run"), "{stderr}");
    process.signal("TERM");
    assert_eq!(process.end().0, 143);
}

pub fn without_a_build_there_is_nothing_to_go_on_with(place: &Place) {
    let pipeline = "[[step]]\nname = 'a'\ncommands = ['echo a']\n";
    run(resumed(place.process(pipeline)), 0);
    assert_eq!(place.audits().len(), 1);
}
