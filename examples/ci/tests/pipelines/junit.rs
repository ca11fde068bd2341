//! The form of `junit.xml`, checked by a validator.
//!
//! The validator is `xmllint`. Without it the trial is skipped. With `MOAT_CHROMIUM=required`, which
//! also demands the browser of the other report, it fails.

use std::fs;
use std::path::Path;
use std::process::Command;

use testkit::harness::Trial;

use crate::fixture::{Fixture, Process, text, wait_for_text};

testkit::trials! {
    validated:
        the_junit_file_matches_the_schema_of_jenkins,
}

fn validated(name: &str, trial: fn(&Fixture)) -> Trial {
    let is_required = std::env::var("MOAT_CHROMIUM").is_ok_and(|value| value == "required");
    let version = Command::new("xmllint").arg("--version").output();
    let validator = match is_required || version.is_ok() {
        true => Ok(()),
        false => Err("no xmllint (set MOAT_CHROMIUM=required to fail instead)".into()),
    };
    crate::anywhere(name, trial).needs(&validator)
}

/// Returns the problems that the validator finds in the file, if any.
fn validate(file: &Path) -> Result<(), String> {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pipelines/junit.xsd");
    let mut command = Command::new("xmllint");
    command.args(["--noout", "--nonet", "--schema", schema]);
    let output = command.arg(file).output().expect("xmllint is required");
    match output.status.success() {
        true => Ok(()),
        false => Err(text(&output.stderr)),
    }
}

/// Every result of a step. `held` waits for the signal that stops the build.
fn pipeline(fixture: &Fixture) -> String {
    let odd = "printf 'x\\001\\033[31m ]]> <z>\\377 \\357\\277\\277 '; printf 'no newline'";
    format!(
        "name = 'p\u{ffff}<\"'\n\
         [[step]]\nname = 'pass'\ncommands = ['echo passed']\n\
         [[step]]\nname = 'fail'\nretries = 1\nmatrix = {{ key = ['\u{fffe}&<\u{a0}'] }}\n\
         commands = [\"\"\"{}\"\"\", 'exit 3']\n\
         [[step]]\nname = 'flaky'\nretries = 2\n\
         commands = ['echo x >> {file}', 'test $(wc -l < {file}) -gt 2']\n\
         [[step]]\nname = 'timeout'\ntimeout = 1\nretries = 1\ncommands = ['sleep 600']\n\
         [[step]]\nname = 'allowed'\nallow_failure = true\nretries = 1\ncommands = ['exit 4']\n\
         [[step]]\nname = 'skipped'\nneeds = ['fail']\nexec = ['true']\n\
         [[step]]\nname = 'refused'\nexec = ['/no/such/program']\n\
         [[step]]\nname = 'held'\ncommands = ['echo started', 'sleep 600']\n",
        odd.replace('\\', "\\\\"),
        file = fixture.path().join("flaky").display()
    )
}

fn the_junit_file_matches_the_schema_of_jenkins(fixture: &Fixture) {
    let process = Process::start(fixture.process(&pipeline(fixture)));
    let ended = [
        "pass 1",
        "fail-key 2",
        "flaky 3",
        "timeout 2",
        "allowed 2",
        "refused 1",
    ];
    for run in ended {
        wait_for_text(fixture, run, "\"type\":\"end\"");
    }
    wait_for_text(fixture, "held 1", "\"line\":\"started\"");
    process.signal("TERM");
    assert_eq!(process.end().0, 143);
    let file = fixture.path().join("out/junit.xml");
    let junit = fs::read_to_string(&file).unwrap();
    for element in [
        "failure",
        "error",
        "skipped",
        "flakyFailure",
        "rerunFailure",
    ] {
        assert!(
            junit.contains(&format!("<{element} ")),
            "{element}: {junit}"
        );
    }
    validate(&file).unwrap();

    // The validator finds what Jenkins refuses.
    for (text, invalid) in [
        ("<testsuites ", "<testsuites skipped=\"1\" "),
        (" type=\"failed\"", ""),
        ("<testcase name=\"pass\"", "<testcase "),
        ("</testcase>", "<properties/></testcase>"),
    ] {
        let file = fixture.path().join("invalid.xml");
        fs::write(&file, junit.replacen(text, invalid, 1)).unwrap();
        let problem = validate(&file).unwrap_err();
        assert!(problem.contains("validity error"), "{text}: {problem}");
    }
}
