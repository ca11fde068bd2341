//! Builds that run the failed steps of the last build again.

use std::fs;

use crate::fixture::{
    Fixture, Process, assert_code, assert_running_build_refuses, resumed, retried, run, text,
    wait_for_line,
};

testkit::trials! {
    crate::anywhere:
        a_retry_runs_only_steps_that_did_not_pass,
        a_retry_without_failures_runs_nothing,
        a_retry_can_be_resumed_and_retried,
        a_retry_runs_interrupted_steps,
        a_changed_pipeline_cannot_be_retried,
        a_running_build_cannot_be_retried,
        a_retry_without_a_build_starts_one;
    crate::on_engine:
        a_retry_stops_containers_of_the_last_build,
}

/// Steps that add a line to a file of their name. `bad` and `may` fail until the file `go` exists.
fn pipeline(fixture: &Fixture) -> String {
    let dir = fixture.path().display();
    format!(
        "[[step]]\nname = 'first'\ncommands = ['echo x >> {dir}/first']\n\
         [[step]]\nname = 'flaky'\nretries = 1\n\
         commands = ['echo x >> {dir}/flaky', 'test $(wc -l < {dir}/flaky) -gt 1']\n\
         [[step]]\nname = 'bad'\nneeds = ['first']\ncommands = ['echo x >> {dir}/bad', 'test -e {dir}/go']\n\
         [[step]]\nname = 'may'\nallow_failure = true\ncommands = ['echo x >> {dir}/may', 'test -e {dir}/go']\n\
         [[step]]\nname = 'after'\nneeds = ['bad', 'may']\ncommands = ['echo x >> {dir}/after']\n"
    )
}

/// The number of attempts at each step of [`pipeline`].
fn counts(fixture: &Fixture) -> [usize; 5] {
    ["first", "flaky", "bad", "may", "after"].map(|name| {
        let text = fs::read_to_string(fixture.path().join(name));
        text.unwrap_or_default().lines().count()
    })
}

fn release(fixture: &Fixture) {
    fs::write(fixture.path().join("go"), "").unwrap();
}

fn out(fixture: &Fixture, name: &str) -> String {
    fs::read_to_string(fixture.path().join("out").join(name)).unwrap()
}

fn a_retry_runs_only_steps_that_did_not_pass(fixture: &Fixture) {
    let pipeline = pipeline(fixture);
    run(fixture.process(&pipeline), 1);
    assert_eq!(counts(fixture), [1, 2, 1, 1, 0]);
    let before = fixture.runs();
    let shown = run(retried(fixture.process(&pipeline)), 1);
    assert!(
        shown.contains("\nretry: 2 steps passed before, 3 to run\n"),
        "{shown}"
    );
    assert_eq!(counts(fixture), [1, 2, 2, 2, 0]);
    let statuses = fixture.statuses();
    assert_eq!(statuses["first"], "passed");
    assert_eq!(statuses["bad"], "failed: exited with code 1");
    assert_eq!(
        statuses["after"],
        "skipped: it needs bad, which did not pass"
    );

    release(fixture);
    let shown = run(retried(fixture.process(&pipeline)), 0);
    assert!(shown.contains("first: already ended\n"), "{shown}");
    assert_eq!(counts(fixture), [1, 2, 3, 3, 1]);
    assert!(fixture.statuses().values().all(|status| status == "passed"));
    // The reports have the output and the attempts of the steps that passed before.
    let junit = out(fixture, "junit.xml");
    assert_eq!(junit.matches("<flakyFailure").count(), 1, "{junit}");
    assert_eq!(
        junit.matches("\ntaken over from build ").count(),
        2,
        "{junit}"
    );
    let first = before["first 1"].display().to_string();
    assert!(junit.contains(&first), "{junit}");
    let page = out(fixture, "report.html");
    assert_eq!(page.matches("\"taken over from build ").count(), 2);
    assert_eq!(page.matches("\"taken_over\":null").count(), 3);
}

fn a_retry_without_failures_runs_nothing(fixture: &Fixture) {
    let pipeline = pipeline(fixture);
    release(fixture);
    run(fixture.process(&pipeline), 0);
    let runs = fixture.runs();
    fs::remove_dir_all(fixture.path().join("out")).unwrap();
    let shown = run(retried(fixture.process(&pipeline)), 0);
    let (_, rest) = shown
        .split_once("\nnothing to retry: all steps of build ")
        .unwrap();
    assert!(rest.contains(" passed\n"), "{shown}");
    assert_eq!(fixture.runs(), runs);
    assert_eq!(fixture.statuses().len(), 5);
    assert!(fixture.statuses().values().all(|status| status == "passed"));
    assert!(!out(fixture, "report.html").is_empty());
}

fn a_retry_can_be_resumed_and_retried(fixture: &Fixture) {
    let dir = fixture.path().display();
    let pipeline = format!(
        "[[step]]\nname = 'first'\ncommands = ['echo x >> {dir}/first']\n\
         [[step]]\nname = 'quick'\ncommands = ['echo x >> {dir}/quick', 'test $(wc -l < {dir}/quick) -gt 1']\n\
         [[step]]\nname = 'bad'\nneeds = ['first']\ncommands = ['echo x >> {dir}/bad', \
         'test $(wc -l < {dir}/bad) -gt 1', 'echo started', \
         'while ! test -e {dir}/go; do sleep 0.02; done', 'test $(wc -l < {dir}/bad) -gt 3']\n"
    );
    run(fixture.process(&pipeline), 1);
    // The retry is killed in its only step that is left, and resumed.
    let process = Process::start(retried(fixture.process(&pipeline)));
    wait_for_record_of_retry(fixture, "quick", "\"type\":\"end\"");
    wait_for_record_of_retry(fixture, "bad", "\"line\":\"started\"");
    process.kill();
    release(fixture);
    let shown = run(resumed(fixture.process(&pipeline)), 1);
    let line = "\nresumed: 2 steps finished before, 0 still running, 1 to run\n";
    assert!(shown.contains(line), "{shown}");
    assert_eq!(fixture.statuses()["bad"], "failed: exited with code 1");
    let page = out(fixture, "report.html");
    assert!(page.contains("\"taken over from build ") && page.contains("\"ended before the build"));
    // `first` passed two builds ago, and `quick` in the last one.
    let shown = run(retried(fixture.process(&pipeline)), 0);
    assert!(
        shown.contains("\nretry: 2 steps passed before, 1 to run\n"),
        "{shown}"
    );
    for (name, count) in [("first", 1), ("quick", 2), ("bad", 4)] {
        let text = fs::read_to_string(fixture.path().join(name)).unwrap();
        assert_eq!(text.lines().count(), count, "{name}");
    }
}

/// Waits until the audit of a run of the second build contains the record.
fn wait_for_record_of_retry(fixture: &Fixture, step: &str, record: &str) {
    testkit::deadline::wait_for(record, || {
        let dirs = fs::read_dir(fixture.root()).unwrap().flatten();
        let audits = dirs.map(|dir| fs::read_to_string(dir.path().join("logs.jsonl")));
        let mut audits = audits.flatten();
        audits.any(|audit| {
            let label = format!("\"ci.step\":\"{step}\"");
            audit.contains(&label) && audit.contains("\"ci.retries\"") && audit.contains(record)
        })
    });
}

fn a_retry_runs_interrupted_steps(fixture: &Fixture) {
    let dir = fixture.path().display();
    let pipeline = format!(
        "[[step]]\nname = 'a'\ncommands = ['echo started', 'while ! test -e {dir}/go; do sleep 0.02; done']\n\
         [[step]]\nname = 'b'\nneeds = ['a']\ncommands = ['true']\n"
    );
    let process = Process::start(fixture.process(&pipeline));
    wait_for_line(fixture, "a 1", "started");
    process.signal("TERM");
    assert_eq!(process.end().0, 143);
    release(fixture);
    let shown = run(retried(fixture.process(&pipeline)), 0);
    assert!(
        shown.contains("\nretry: 0 steps passed before, 2 to run\n"),
        "{shown}"
    );
    assert!(fixture.statuses().values().all(|status| status == "passed"));
}

fn a_changed_pipeline_cannot_be_retried(fixture: &Fixture) {
    let pipeline = "[[step]]\nname = 'a'\ncommands = ['exit 1']\n";
    run(fixture.process(pipeline), 1);
    let changed = pipeline.replace("exit 1", "exit 0");
    let mut other_image = retried(fixture.process(pipeline));
    other_image.args(["--image", "other"]);
    for mut command in [retried(fixture.process(&changed)), other_image] {
        let output = command.output().unwrap();
        assert_code(&output, 2);
        let stderr = text(&output.stderr);
        assert!(
            stderr.contains("the file or the image was changed"),
            "{stderr}"
        );
    }
    assert_eq!(fixture.runs().len(), 1);
    let output = resumed(retried(fixture.process(pipeline)))
        .output()
        .unwrap();
    assert_code(&output, 2);
}

fn a_running_build_cannot_be_retried(fixture: &Fixture) {
    assert_running_build_refuses(fixture, retried);
}

fn a_retry_without_a_build_starts_one(fixture: &Fixture) {
    run(retried(fixture.process(&pipeline(fixture))), 1);
    assert_eq!(counts(fixture), [1, 2, 1, 1, 0]);
}

fn a_retry_stops_containers_of_the_last_build(fixture: &Fixture) {
    let pipeline = "[[step]]\nname = 'a'\ncommands = ['echo a']\n\
        [[step]]\nname = 'b'\nneeds = ['a']\ngrace = 0.5\n\
        commands = ['echo started', 'test \"$GO\" || sleep 600']\nsecrets = ['GO']\n";
    let mut command = fixture.docker(pipeline);
    command.env("GO", "");
    let process = Process::start(command);
    wait_for_line(fixture, "b 1", "started");
    process.kill();
    let mut command = retried(fixture.docker(pipeline));
    command.env("GO", "1");
    let shown = run(command, 0);
    assert!(shown.contains(" of an earlier build\n"), "{shown}");
    assert!(
        shown.contains("\nretry: 1 step passed before, 1 to run\n"),
        "{shown}"
    );
    assert!(fixture.statuses().values().all(|status| status == "passed"));
    fixture.assert_no_containers();
}
