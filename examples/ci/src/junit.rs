//! The report that CI systems read.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use moat::Outcome;
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestRerun, TestSuite};
use tempfile::NamedTempFile;

use crate::lines::Tail;
use crate::mask::Mask;
use crate::report::{Attempt, Report, Status, Step};
use crate::view::word;

/// How many of the last lines of an attempt that has not passed are in it.
const LINES: usize = 20;

/// Writes one test suite, with a test case for each step. Its name is the pipeline's, the same for each build.
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
    // Under another name first: who finds one at `to` finds a whole one.
    let mut file = NamedTempFile::new_in(to.parent().unwrap_or(Path::new(".")))?;
    file.write_all(as_jenkins_has_it(&text).as_bytes())?;
    file.persist(to)?;
    Ok(())
}

/// The schema of Jenkins has no room for what is skipped in all: each suite counts its own.
fn as_jenkins_has_it(text: &str) -> String {
    let Some(at) = text.find("<testsuite ") else {
        return text.to_owned();
    };
    let (head, suites) = text.split_at(at);
    let attributes = head
        .split(' ')
        .filter(|word| !word.starts_with("skipped=\""));
    attributes.collect::<Vec<_>>().join(" ") + suites
}

async fn test_case(name: &str, step: &Step, mask: &Mask) -> TestCase {
    let failure = |kind| {
        let mut status = TestCaseStatus::non_success(kind);
        status.set_type(word(step.status));
        status
    };
    let mut status = match step.status {
        Status::Passed => TestCaseStatus::success(),
        Status::Failed | Status::TimedOut => failure(NonSuccessKind::Failure),
        Status::Cancelled => failure(NonSuccessKind::Error),
        // A failure that is allowed makes no build red.
        Status::AllowedFailure | Status::Skipped => {
            let mut status = TestCaseStatus::skipped();
            status.set_type(word(step.status));
            status
        }
    };
    if let Some(detail) = &step.detail {
        status.set_message(mask.line(detail));
    }
    let last = step.attempts.len().saturating_sub(1);
    for (number, attempt) in step.attempts.iter().enumerate() {
        if number != last {
            status.add_rerun(earlier(attempt, mask).await);
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

/// An attempt that was not the last one.
async fn earlier(attempt: &Attempt, mask: &Mask) -> TestRerun {
    let mut rerun = TestRerun::new(NonSuccessKind::Failure);
    rerun.set_type(word(Status::Failed));
    if let Some(outcome) = &attempt.outcome {
        rerun.set_message(mask.line(&outcome.ending.to_string()));
    }
    rerun.set_system_out(output(attempt, mask).await);
    rerun
}

/// Where the audit is, and the last lines where it has not passed.
async fn output(attempt: &Attempt, mask: &Mask) -> String {
    let audit = format!("audit: {}", attempt.audit.display());
    if attempt.outcome.as_ref().is_some_and(Outcome::success) {
        return audit;
    }
    match Tail::read(&attempt.audit, mask).await {
        Ok(tail) => {
            let lines = tail.last(LINES).chain([audit.as_str()]);
            lines.collect::<Vec<_>>().join("\n")
        }
        Err(error) => format!("{}\n{audit}", error.chain()),
    }
}

fn time(step: &Step) -> Duration {
    let outcomes = step
        .attempts
        .iter()
        .filter_map(|attempt| attempt.outcome.as_ref());
    outcomes.filter_map(Outcome::duration).sum()
}
