//! The order, the attempts and the results of steps.

use std::fs;
use std::time::{Duration, Instant};

use crate::fixture::{Fixture, Process, assert_code, run, text, wait_for_line};

testkit::trials! {
    crate::anywhere:
        the_demo_passes_as_local_processes,
        independent_steps_run_in_parallel,
        jobs_limits_the_number_of_running_steps,
        a_failed_step_skips_only_its_dependents,
        an_allowed_failure_does_not_fail_the_build,
        a_failed_step_is_retried_up_to_its_limit,
        a_matrix_runs_one_step_per_cell,
        limits_stop_hanging_and_silent_steps,
        an_invalid_pipeline_creates_nothing;
    crate::on_engine:
        the_demo_passes_in_containers,
}

pub const DEMO: &str = include_str!("../../../pipelines/demo.toml");

pub fn assert_demo_passed(fixture: &Fixture, out: &str) {
    let statuses = fixture.statuses();
    assert_eq!(statuses.len(), 7);
    assert_eq!(statuses["audit"], "failed (allowed): exited with code 3");
    assert!(
        statuses
            .iter()
            .all(|(step, status)| step == "audit" || status == "passed")
    );
    let audits = fixture.audits();
    assert_eq!(
        audits["build 1"]
            .stream("stdout")
            .split(|&b| b == b'\n')
            .count(),
        7
    );
    for path in fixture.runs().values() {
        assert!(out.contains(path.to_str().unwrap()), "{out}");
    }
    for file in ["report.html", "junit.xml"] {
        let file = fixture.path().join("out").join(file);
        assert!(
            file.exists() && out.contains(file.to_str().unwrap()),
            "{out}"
        );
    }
}

fn the_demo_passes_as_local_processes(fixture: &Fixture) {
    assert_demo_passed(fixture, &run(fixture.process(DEMO), 0));
}

fn the_demo_passes_in_containers(fixture: &Fixture) {
    assert_demo_passed(fixture, &run(fixture.docker(DEMO), 0));
    fixture.assert_no_containers();
}

/// Neither step can end before both have printed a line.
fn independent_steps_run_in_parallel(fixture: &Fixture) {
    let step = |name| {
        format!(
            "[[step]]\nname = '{name}'\ntimeout = 60\n\
             commands = ['echo started', 'while ! test -e {dir}/go; do sleep 0.02; done']\n",
            dir = fixture.path().display()
        )
    };
    let process = Process::start(fixture.process(&[step("a"), step("b")].concat()));
    wait_for_line(fixture, "a 1", "started");
    wait_for_line(fixture, "b 1", "started");
    fs::write(fixture.path().join("go"), "").unwrap();
    assert_eq!(process.end().0, 0);
    let audits = fixture.audits();
    let span = |run: &str| {
        let audit = &audits[run];
        let time = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let exit = &audit.end["exit"];
        (time(&exit["started_at"]), time(&exit["finished_at"]))
    };
    let (a, b) = (span("a 1"), span("b 1"));
    assert!(a.0 < b.1 && b.0 < a.1, "{a:?} {b:?}");
}

/// A second step at the same time would find the lock.
fn jobs_limits_the_number_of_running_steps(fixture: &Fixture) {
    let pipeline = format!(
        "[[step]]\nname = 'one'\nmatrix = {{ n = ['1', '2', '3'] }}\n\
         commands = ['mkdir {dir}/lock', 'sleep 0.1', 'rmdir {dir}/lock']\n",
        dir = fixture.path().display()
    );
    run(fixture.process_one_job(&pipeline), 0);
    assert_eq!(fixture.audits().len(), 3);
}

fn a_failed_step_skips_only_its_dependents(fixture: &Fixture) {
    let out = run(
        fixture.process(
            "[[step]]\nname = 'bad'\ncommands = ['echo broken >&2', 'exit 7', 'echo not here']\n\
             [[step]]\nname = 'after'\nneeds = ['bad']\nexec = ['true']\n\
             [[step]]\nname = 'later'\nneeds = ['after']\nexec = ['true']\n\
             [[step]]\nname = 'other'\nexec = ['echo', 'a  b']\n",
        ),
        1,
    );
    let statuses = fixture.statuses();
    assert_eq!(statuses["bad"], "failed: exited with code 7");
    assert_eq!(
        statuses["after"],
        "skipped: it needs bad, which did not pass"
    );
    assert_eq!(
        statuses["later"],
        "skipped: it needs after, which did not pass"
    );
    assert_eq!(statuses["other"], "passed");
    let audits = fixture.audits();
    assert_eq!(audits.keys().collect::<Vec<_>>(), ["bad 1", "other 1"]);
    assert_eq!(audits["other 1"].stream("stdout"), b"a  b\n");
    assert!(
        out.contains("\nbroken\n") && !out.contains("not here"),
        "{out}"
    );
}

fn an_allowed_failure_does_not_fail_the_build(fixture: &Fixture) {
    let out = run(
        fixture.process(
            "[[step]]\nname = 'bad'\nallow_failure = true\ncommands = ['exit 7']\n\
             [[step]]\nname = 'after'\nneeds = ['bad']\nexec = ['true']\n",
        ),
        0,
    );
    assert!(
        out.contains("bad: failed (allowed): exited with code 7"),
        "{out}"
    );
    let junit = fixture.junit();
    assert_eq!((junit.tests, junit.failures, junit.errors), (2, 0, 0));
    assert_eq!(fixture.statuses()["after"], "passed");
}

fn a_failed_step_is_retried_up_to_its_limit(fixture: &Fixture) {
    let step = |name, passes_at: u32| {
        format!(
            "[[step]]\nname = '{name}'\nretries = 2\n\
             commands = ['echo x >> {file}', 'test $(wc -l < {file}) -ge {passes_at}']\n",
            file = fixture.path().join(name).display()
        )
    };
    run(
        fixture.process(&[step("late", 3), step("never", 4)].concat()),
        1,
    );
    let statuses = fixture.statuses();
    assert_eq!(statuses["late"], "passed");
    assert_eq!(statuses["never"], "failed: exited with code 1");
    assert_eq!(fixture.audits().len(), 6);
    for name in ["late", "never"] {
        assert_eq!(
            fs::read_to_string(fixture.path().join(name)).unwrap(),
            "x\nx\nx\n"
        );
    }
    let junit = fs::read_to_string(fixture.path().join("out/junit.xml")).unwrap();
    assert_eq!(junit.matches("<flakyFailure").count(), 2, "{junit}");
    assert_eq!(junit.matches("<rerunFailure").count(), 2, "{junit}");
}

fn a_matrix_runs_one_step_per_cell(fixture: &Fixture) {
    run(
        fixture.process(
            "[[step]]\nname = 'test'\nmatrix = { os = ['a', 'b'], n = ['1', '2'] }\n\
             env = { WHERE = 'on ${{ matrix.os }}' }\ncommands = ['echo $WHERE: ${{ matrix.n }}']\n\
             [[step]]\nname = 'ship'\nneeds = ['test']\nexec = ['true']\n",
        ),
        0,
    );
    let audits = fixture.audits();
    assert_eq!(audits.len(), 5);
    for (os, n) in [("a", 1), ("a", 2), ("b", 1), ("b", 2)] {
        let audit = &audits[&format!("test-n-{n}-os-{os} 1")];
        assert_eq!(text(audit.stream("stdout")), format!("on {os}: {n}\n"));
    }
}

fn limits_stop_hanging_and_silent_steps(fixture: &Fixture) {
    let started = Instant::now();
    run(
        fixture.process(
            "[[step]]\nname = 'hangs'\ntimeout = 1\ncommands = ['while :; do echo on; sleep 0.2; done']\n\
             [[step]]\nname = 'silent'\nsilence = 1\ncommands = ['echo on; sleep 600']\n\
             [[step]]\nname = 'stubborn'\ntimeout = 1\ngrace = 0.5\n\
             commands = [\"trap '' TERM\", 'while :; do sleep 1; done']\n",
        ),
        1,
    );
    assert!(started.elapsed() < Duration::from_secs(60));
    let statuses = fixture.statuses();
    assert_eq!(statuses["hangs"], "timed out: its time limit was reached");
    assert_eq!(
        statuses["silent"],
        "timed out: it printed nothing for too long"
    );
    assert_eq!(
        statuses["stubborn"],
        "timed out: its time limit was reached"
    );
    assert_eq!(fixture.audits()["silent 1"].end["stopped"], "silence_limit");
}

fn an_invalid_pipeline_creates_nothing(fixture: &Fixture) {
    for (pipeline, message) in [
        (
            "[[step]]\nname = 'a'\n",
            "step \"a\": commands: the step has no commands",
        ),
        (
            "[[step]]\nname = 'a'\nexec = ['x']\ntimeout = 'x'",
            "invalid type: string",
        ),
        (
            "[[step]]\nname = 'a'\nexec = ['x']\nsecrets = ['MOAT_TEST_NO_SUCH']",
            "step \"a\": secrets: MOAT_TEST_NO_SUCH is not set in the environment",
        ),
        (
            "[[step]]\nname = 'a'\nexec = ['x']\nmounts = ['/tmp:/x']",
            "step \"a\": mounts: a local process does not support this setting",
        ),
        (
            "network = 'none'\n[[step]]\nname = 'a'\nexec = ['x']",
            "step \"a\": network: a local process does not support this setting",
        ),
        (
            "[[step]]\nname = 'a'\nexec = ['x']\n[[step]]\nname = 'b'\nexec = ['x']\nsilence = 0.1",
            "step \"b\": silence_limit: ",
        ),
    ] {
        let output = fixture.process(pipeline).output().unwrap();
        assert_code(&output, 2);
        let stderr = text(&output.stderr);
        assert!(stderr.contains(message), "{stderr}");
        assert!(!fixture.root().exists() && !fixture.path().join("out").exists());
    }
}
