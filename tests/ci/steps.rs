//! Which steps run, when, and what becomes of them.

use std::fs;
use std::time::{Duration, Instant};

use crate::place::{Place, Process, assert_code, printed, run, text};

const DEMO: &str = include_str!("../../examples/pipelines/demo.toml");

fn is_demo_green(place: &Place, out: &str) {
    let statuses = place.statuses();
    assert_eq!(statuses.len(), 7);
    assert_eq!(statuses["audit"], "failed, as it may: exited with code 3");
    assert!(
        statuses
            .iter()
            .all(|(step, status)| step == "audit" || status == "passed")
    );
    let audits = place.audits();
    assert_eq!(
        audits["build 1"]
            .stream("stdout")
            .split(|&b| b == b'\n')
            .count(),
        7
    );
    for path in place.runs().values() {
        assert!(out.contains(path.to_str().unwrap()), "{out}");
    }
    for file in ["report.html", "junit.xml"] {
        let file = place.path().join("out").join(file);
        assert!(
            file.exists() && out.contains(file.to_str().unwrap()),
            "{out}"
        );
    }
}

pub fn the_demo_is_green_as_local_processes(place: &Place) {
    is_demo_green(place, &run(place.process(DEMO), 0));
}

pub fn the_demo_is_green_in_containers(place: &Place) {
    is_demo_green(place, &run(place.docker(DEMO), 0));
    place.assert_no_containers();
}

/// Neither can end before both have printed something.
pub fn steps_that_need_nothing_of_each_other_run_at_once(place: &Place) {
    let step = |name| {
        format!(
            "[[step]]\nname = '{name}'\ntimeout = 60\n\
             commands = ['echo begun', 'while ! test -e {dir}/go; do sleep 0.02; done']\n",
            dir = place.path().display()
        )
    };
    let process = Process::start(place.process(&[step("a"), step("b")].concat()));
    printed(place, "a 1", "begun");
    printed(place, "b 1", "begun");
    fs::write(place.path().join("go"), "").unwrap();
    assert_eq!(process.end().0, 0);
    let audits = place.audits();
    let span = |run: &str| {
        let audit = &audits[run];
        let time = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let exit = &audit.end["exit"];
        (time(&exit["started_at"]), time(&exit["finished_at"]))
    };
    let (a, b) = (span("a 1"), span("b 1"));
    assert!(a.0 < b.1 && b.0 < a.1, "{a:?} {b:?}");
}

/// Whoever is second would see the first.
pub fn no_more_steps_run_at_once_than_there_are_jobs(place: &Place) {
    let pipeline = format!(
        "[[step]]\nname = 'one'\nmatrix = {{ n = ['1', '2', '3'] }}\n\
         commands = ['mkdir {dir}/lock', 'sleep 0.1', 'rmdir {dir}/lock']\n",
        dir = place.path().display()
    );
    run(place.process_alone(&pipeline), 0);
    assert_eq!(place.audits().len(), 3);
}

pub fn what_needs_a_failed_step_is_skipped_and_the_rest_goes_on(place: &Place) {
    let out = run(
        place.process(
            "[[step]]\nname = 'bad'\ncommands = ['echo broken >&2', 'exit 7', 'echo not here']\n\
             [[step]]\nname = 'after'\nneeds = ['bad']\nexec = ['true']\n\
             [[step]]\nname = 'later'\nneeds = ['after']\nexec = ['true']\n\
             [[step]]\nname = 'other'\nexec = ['echo', 'a  b']\n",
        ),
        1,
    );
    let statuses = place.statuses();
    assert_eq!(statuses["bad"], "failed: exited with code 7");
    assert_eq!(
        statuses["after"],
        "skipped: it needs bad, which has not passed"
    );
    assert_eq!(
        statuses["later"],
        "skipped: it needs after, which has not passed"
    );
    assert_eq!(statuses["other"], "passed");
    let audits = place.audits();
    assert_eq!(audits.keys().collect::<Vec<_>>(), ["bad 1", "other 1"]);
    assert_eq!(audits["other 1"].stream("stdout"), b"a  b\n");
    assert!(
        out.contains("\nbroken\n") && !out.contains("not here"),
        "{out}"
    );
}

pub fn a_failure_that_is_allowed_is_told_and_fails_nothing(place: &Place) {
    let out = run(
        place.process(
            "[[step]]\nname = 'bad'\nallow_failure = true\ncommands = ['exit 7']\n\
             [[step]]\nname = 'after'\nneeds = ['bad']\nexec = ['true']\n",
        ),
        0,
    );
    assert!(
        out.contains("bad: failed, as it may: exited with code 7"),
        "{out}"
    );
    let junit = place.junit();
    assert_eq!((junit.tests, junit.failures, junit.errors), (2, 0, 0));
    assert_eq!(place.statuses()["after"], "passed");
}

pub fn a_failed_step_is_tried_again_as_often_as_it_may_be(place: &Place) {
    let step = |name, passes_at: u32| {
        format!(
            "[[step]]\nname = '{name}'\nretries = 2\n\
             commands = ['echo x >> {file}', 'test $(wc -l < {file}) -ge {passes_at}']\n",
            file = place.path().join(name).display()
        )
    };
    run(
        place.process(&[step("late", 3), step("never", 4)].concat()),
        1,
    );
    let statuses = place.statuses();
    assert_eq!(statuses["late"], "passed");
    assert_eq!(statuses["never"], "failed: exited with code 1");
    assert_eq!(place.audits().len(), 6);
    for name in ["late", "never"] {
        assert_eq!(
            fs::read_to_string(place.path().join(name)).unwrap(),
            "x\nx\nx\n"
        );
    }
    let junit = fs::read_to_string(place.path().join("out/junit.xml")).unwrap();
    assert_eq!(junit.matches("<flakyFailure").count(), 2, "{junit}");
    assert_eq!(junit.matches("<rerunFailure").count(), 2, "{junit}");
}

pub fn a_matrix_is_a_step_for_each_cell(place: &Place) {
    run(
        place.process(
            "[[step]]\nname = 'test'\nmatrix = { os = ['a', 'b'], n = ['1', '2'] }\n\
             env = { WHERE = 'on ${{ matrix.os }}' }\ncommands = ['echo $WHERE: ${{ matrix.n }}']\n\
             [[step]]\nname = 'ship'\nneeds = ['test']\nexec = ['true']\n",
        ),
        0,
    );
    let audits = place.audits();
    assert_eq!(audits.len(), 5);
    for (os, n) in [("a", 1), ("a", 2), ("b", 1), ("b", 2)] {
        let audit = &audits[&format!("test (n={n}, os={os}) 1")];
        assert_eq!(text(audit.stream("stdout")), format!("on {os}: {n}\n"));
    }
}

pub fn a_step_that_hangs_or_is_silent_is_stopped(place: &Place) {
    let begun = Instant::now();
    run(
        place.process(
            "[[step]]\nname = 'hangs'\ntimeout = 1\ncommands = ['while :; do echo on; sleep 0.2; done']\n\
             [[step]]\nname = 'silent'\nsilence = 1\ncommands = ['echo on; sleep 600']\n\
             [[step]]\nname = 'deaf'\ntimeout = 1\ngrace = 0.5\n\
             commands = [\"trap '' TERM\", 'while :; do sleep 1; done']\n",
        ),
        1,
    );
    assert!(begun.elapsed() < Duration::from_secs(60));
    let statuses = place.statuses();
    assert_eq!(statuses["hangs"], "timed out: its time limit was reached");
    assert_eq!(
        statuses["silent"],
        "timed out: it printed nothing for too long"
    );
    assert_eq!(statuses["deaf"], "timed out: its time limit was reached");
    assert_eq!(place.audits()["silent 1"].end["stopped"], "silence_limit");
}

pub fn what_is_wrong_is_said_before_anything_is_made(place: &Place) {
    for (pipeline, said) in [
        (
            "[[step]]\nname = 'a'\n",
            "step \"a\": commands: there are none",
        ),
        (
            "[[step]]\nname = 'a'\nexec = ['x']\ntimeout = 'x'",
            "invalid type: string",
        ),
        (
            "[[step]]\nname = 'a'\nexec = ['x']\nsecrets = ['MOAT_TEST_NO_SUCH']",
            "step \"a\": secrets: MOAT_TEST_NO_SUCH is not in the environment",
        ),
        (
            "[[step]]\nname = 'a'\nexec = ['x']\nmounts = ['/tmp:/x']",
            "step \"a\": mounts: a local process cannot have it",
        ),
        (
            "[[step]]\nname = 'a'\nexec = ['x']\n[[step]]\nname = 'b'\nexec = ['x']\nsilence = 0.1",
            "step \"b\": silence_limit: ",
        ),
    ] {
        let output = place.process(pipeline).output().unwrap();
        assert_code(&output, 2);
        let stderr = text(&output.stderr);
        assert!(stderr.contains(said), "{stderr}");
        assert!(!place.root().exists() && !place.path().join("out").exists());
    }
}
