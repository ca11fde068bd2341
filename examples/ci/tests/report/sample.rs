//! Reports for the tests, and a pipeline with every kind of result.

use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use crate::audit::Audit;
use moat_ci::mask::Mask;
use moat_ci::report::{Attempt, Report, Status, StepResult};

/// A report in a temporary directory.
pub(crate) struct ReportPage {
    pub(crate) dir: TempDir,
    pub(crate) page: PathBuf,
}

impl ReportPage {
    pub(crate) fn html(&self) -> String {
        std::fs::read_to_string(&self.page).unwrap()
    }
}

pub(crate) fn step(name: &str, status: Status, attempts: Vec<Attempt>) -> StepResult {
    StepResult {
        name: name.into(),
        needs: vec![],
        status,
        detail: None,
        attempts,
        taken_over: None,
        artifacts: vec![],
        is_service: false,
    }
}

/// A report of the steps that `steps` returns.
///
/// Their audits are in the directory.
pub(crate) fn written(mask: &Mask, steps: impl FnOnce(&Path) -> Vec<StepResult>) -> ReportPage {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("report.html");
    let report = Report {
        title: "a pipeline".into(),
        steps: steps(dir.path()),
    };
    report.write(mask, &page).unwrap();
    ReportPage { dir, page }
}

/// A report of one step with one attempt.
pub(crate) fn of_one(attempt: impl FnOnce(&Path) -> Attempt) -> ReportPage {
    written(&Mask::new([]), |dir| {
        vec![step("build", Status::Passed, vec![attempt(dir)])]
    })
}

/// A realistic pipeline: every status, retries, gaps, colors, both streams.
pub(crate) fn pipeline(dir: &Path) -> Vec<StepResult> {
    let fetch = Audit::new("fetch", 0)
        .later(180)
        .started()
        .later(90)
        .out("Cloning into 'moat'...")
        .later(400)
        .print("stderr", "Receiving objects:  12% (148/1204)\rReceiving objects:  57% (688/1204)\rReceiving objects: 100% (1204/1204), done.\n")
        .later(730)
        .out("HEAD is now at 1a0116e")
        .sealed(dir, 0);
    let mut lint = Audit::new("lint", 1_500).later(210).started();
    for name in [
        "bytes", "memchr", "serde", "tokio", "hyper", "bollard", "moat",
    ] {
        lint = lint.later(310).err(&format!(
            "\x1b[0m\x1b[0m\x1b[1m\x1b[32m    Checking\x1b[0m {name} v1.2.3"
        ));
    }
    let lint = lint
        .later(200)
        .err("\x1b[0m\x1b[1m\x1b[33mwarning\x1b[0m\x1b[0m\x1b[1m: unused variable: `bytes`\x1b[0m")
        .err("\x1b[0m  \x1b[0m\x1b[1m\x1b[38;5;12m--> \x1b[0msrc/lib.rs:12:9")
        .sealed(dir, 1);
    let mut build = Audit::new("build", 1_520).later(350).started();
    for number in 1..=240 {
        build = build.later(24).out(&format!(
            "\x1b[32m   Compiling\x1b[0m crate-{number} v0.{}.{}",
            number % 17,
            number % 5
        ));
    }
    let build = build
        .event("stop", json!({"cause": "requested", "signal": "SIGWINCH"}))
        .event(
            "gap",
            json!({"stream": "stdout", "reason": "log_unreadable", "possible": false, "bytes": 1234,
            "detail": "the engine's log was deleted"}),
        )
        .later(40)
        .out("\x1b[1;32m    Finished\x1b[0m release profile [optimized] in 6.1 s")
        .sealed(dir, 0);
    let flaky = |number: u64, code| {
        Audit::new(&format!("flaky-{number}"), 7_900 + 1_700 * number)
            .later(150)
            .started()
            .later(500)
            .out("connecting to db:5432")
            .later(600)
            .err(if code == 0 {
                "connected"
            } else {
                "\x1b[31mconnection refused\x1b[0m"
            })
            .sealed(dir, code)
    };
    let mut test = Audit::new("test", 7_950)
        .later(260)
        .started()
        .out("running 412 tests");
    for number in 1..=412 {
        test = test.later(11);
        test = match number % 97 {
            0 => test.out(&format!(
                "test engine::case_{number} ... \x1b[31mFAILED\x1b[0m"
            )),
            _ => test.out(&format!("test engine::case_{number} ... \x1b[32mok\x1b[0m")),
        };
        if number % 50 == 0 {
            test = test.err(&format!(
                "\x1b[2mwarning: case_{number} took longer than a second\x1b[0m"
            ));
        }
    }
    let test = test
        .out("failures:")
        .err("thread 'case_97' panicked at tests/engine/output.rs:12:5:")
        .err("assertion `left == right` failed")
        .err("  left: \x1b[48;5;52m\"a line\"\x1b[0m")
        .err(" right: \x1b[48;2;0;70;20m\"another\"\x1b[0m")
        .out("test result: \x1b[1;31mFAILED\x1b[0m. 408 passed; 4 failed")
        .ended(dir, json!({"state": "exited", "code": 101}),
            json!({"usage": {"memory": 312_000_000, "cpu_seconds": 8.25, "pids": 14, "samples": 9}}));
    let mut soak = Audit::new("soak", 8_000).later(200).started();
    for number in 0..8 {
        soak = soak.later(600).out(&format!("round {number}"));
    }
    let soak = soak
        .later(900)
        .event(
            "stop",
            json!({"cause": "time_limit", "signal": "SIGTERM", "grace_seconds": 10.0}),
        )
        .later(80)
        .event("gap", json!({"reason": "late_drain", "possible": true}))
        .ended(
            dir,
            json!({"state": "exited", "code": 143}),
            json!({"stopped": "time_limit"}),
        );
    let docs = Audit::new("docs", 8_050)
        .later(100)
        .started()
        .later(2_000)
        .out("Documenting moat v0.1.0")
        .later(1_200)
        .event("note", json!({"text": "a shutdown was requested"}))
        .event("gap", json!({"reason": "removed", "possible": true}))
        .ended(
            dir,
            json!({"state": "lost", "reason": "the container was gone"}),
            json!({}),
        );
    let mut build = build;
    build.command = "set -eu\ncargo build --release --all-features\ncargo doc --no-deps".into();
    let needs = |names: &[&str], step: StepResult| StepResult {
        needs: names.iter().map(ToString::to_string).collect(),
        ..step
    };
    let why = |detail: &str, step: StepResult| StepResult {
        detail: Some(detail.into()),
        ..step
    };
    vec![
        step("fetch", Status::Passed, vec![fetch]),
        needs(
            &["fetch"],
            why(
                "exited with code 1",
                step("lint", Status::AllowedFailure, vec![lint]),
            ),
        ),
        needs(&["fetch"], step("build", Status::Passed, vec![build])),
        needs(
            &["build"],
            why("exit 101", step("test", Status::Failed, vec![test])),
        ),
        needs(
            &["build"],
            why(
                "passed at its third attempt",
                step(
                    "test-db",
                    Status::Passed,
                    vec![flaky(0, 2), flaky(1, 2), flaky(2, 0)],
                ),
            ),
        ),
        needs(
            &["build"],
            why(
                "its time limit of 6 s was reached",
                step("soak", Status::TimedOut, vec![soak]),
            ),
        ),
        needs(
            &["build", "lint"],
            step("docs", Status::Cancelled, vec![docs]),
        ),
        needs(
            &["test", "test-db", "soak", "docs"],
            why(
                "needs test, which failed",
                step("publish", Status::Skipped, vec![]),
            ),
        ),
    ]
}
