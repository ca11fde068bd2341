//! The JUnit report, for CI systems.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use moat::Outcome;
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestRerun, TestSuite};
use tempfile::NamedTempFile;

use crate::lines::Tail;
use crate::mask::Mask;
use crate::report::{Attempt, Report, Status, StepResult};

/// Number of last lines in the report of an attempt that did not pass.
const TAIL_LINES: usize = 20;

/// Writes one test suite with a test case for each step.
///
/// The suite has the name of the pipeline, which is the same for every build.
pub async fn write(name: &str, report: &Report, mask: &Mask, to: &Path) -> io::Result<()> {
    let mut suite = TestSuite::new(name);
    for step in &report.steps {
        suite.add_test_case(test_case(name, step, mask).await);
    }
    suite.set_time(report.steps.iter().map(time).sum());
    let mut junit = quick_junit::Report::new(&report.title);
    junit.set_time(report.steps.iter().map(time).sum());
    junit.add_test_suite(suite);
    let text = junit.to_string().map_err(io::Error::other)?;
    // Written under another name first, so that a file at `to` is always complete.
    let mut file = NamedTempFile::new_in(to.parent().unwrap_or(Path::new(".")))?;
    file.write_all(without_total_skipped(&text).as_bytes())?;
    file.persist(to)?;
    Ok(())
}

/// Removes the `skipped` attribute of the root element.
///
/// The schema of Jenkins does not allow it.
fn without_total_skipped(text: &str) -> String {
    let Some(at) = text.find("<testsuite ") else {
        return text.to_owned();
    };
    let (head, suites) = text.split_at(at);
    let attributes = head
        .split(' ')
        .filter(|word| !word.starts_with("skipped=\""));
    attributes.collect::<Vec<_>>().join(" ") + suites
}

async fn test_case(name: &str, step: &StepResult, mask: &Mask) -> TestCase {
    let failure = |kind| {
        let mut status = TestCaseStatus::non_success(kind);
        status.set_type(step.status.to_string());
        status
    };
    let mut status = match step.status {
        Status::Passed => TestCaseStatus::success(),
        Status::Failed | Status::TimedOut => failure(NonSuccessKind::Failure),
        Status::Cancelled => failure(NonSuccessKind::Error),
        // An allowed failure must not fail the build in the CI system.
        Status::AllowedFailure | Status::Skipped => {
            let mut status = TestCaseStatus::skipped();
            status.set_type(step.status.to_string());
            status
        }
    };
    if let Some(detail) = &step.detail {
        status.set_message(mask.line(detail));
    }
    if let Some((_, earlier)) = step.attempts.split_last() {
        for attempt in earlier {
            status.add_rerun(rerun(attempt, mask).await);
        }
    }
    let mut case = TestCase::new(&step.name, status);
    case.set_classname(name);
    case.set_time(time(step));
    if let Some(attempt) = step.attempts.last() {
        case.set_system_out(output(attempt, mask).await);
    }
    case
}

/// An attempt before the last one.
async fn rerun(attempt: &Attempt, mask: &Mask) -> TestRerun {
    let mut rerun = TestRerun::new(NonSuccessKind::Failure);
    rerun.set_type(Status::Failed.to_string());
    if let Some(outcome) = &attempt.outcome {
        rerun.set_message(mask.line(&outcome.ending.to_string()));
    }
    rerun.set_system_out(output(attempt, mask).await);
    rerun
}

/// The output of an attempt: the path of its audit file.
///
/// The last lines come before it if the attempt did not pass.
async fn output(attempt: &Attempt, mask: &Mask) -> String {
    let audit = format!("audit: {}", attempt.audit.display());
    if attempt.outcome.as_ref().is_some_and(Outcome::success) {
        return audit;
    }
    match Tail::read(&attempt.audit, mask).await {
        Ok(tail) => {
            let lines = tail.last(TAIL_LINES).chain([audit.as_str()]);
            lines.collect::<Vec<_>>().join("\n")
        }
        Err(error) => format!("cannot read the output: {}\n{audit}", error.chain()),
    }
}

fn time(step: &StepResult) -> Duration {
    let outcomes = step
        .attempts
        .iter()
        .filter_map(|attempt| attempt.outcome.as_ref());
    outcomes.filter_map(Outcome::duration).sum()
}
