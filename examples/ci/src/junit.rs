//! The JUnit report, for CI systems.

use std::io::{self, Write};
use std::path::Path;

use moat::Outcome;
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestRerun, TestSuite};
use tempfile::NamedTempFile;

use crate::lines::Tail;
use crate::mask::Mask;
use crate::report::{Attempt, Report, Status, StepResult};
use crate::xml;

/// Number of last lines in the report of an attempt that did not pass.
const TAIL_LINES: usize = 20;

/// Writes one test suite with a test case for each step.
///
/// The suite has the name of the pipeline, which is the same for every build.
pub async fn write(name: &str, report: &Report, mask: &Mask, to: &Path) -> io::Result<()> {
    let mut suite = TestSuite::new(shown(name, mask));
    for step in &report.steps {
        suite.add_test_case(test_case(name, step, mask).await);
    }
    suite.set_time(report.steps.iter().map(StepResult::time).sum());
    let mut junit = quick_junit::Report::new(shown(&report.title, mask));
    junit.set_time(report.steps.iter().map(StepResult::time).sum());
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
        status.set_message(shown(detail, mask));
    }
    if let Some((_, earlier)) = step.attempts.split_last() {
        for attempt in earlier {
            status.add_rerun(rerun(attempt, mask).await);
        }
    }
    let mut case = TestCase::new(shown(&step.name, mask), status);
    case.set_classname(shown(name, mask));
    case.set_time(step.time());
    if let Some(attempt) = step.attempts.last() {
        let mut text = output(attempt, mask).await;
        if let Some(taken_over) = &step.taken_over {
            text.push_str(&format!("\n{taken_over}"));
        }
        case.set_system_out(shown(&text, mask));
    }
    case
}

/// An attempt before the last one.
async fn rerun(attempt: &Attempt, mask: &Mask) -> TestRerun {
    let mut rerun = TestRerun::new(NonSuccessKind::Failure);
    rerun.set_type(Status::Failed.to_string());
    if let Some(outcome) = &attempt.outcome {
        rerun.set_message(shown(&outcome.ending.to_string(), mask));
    }
    rerun.set_system_out(shown(&output(attempt, mask).await, mask));
    rerun
}

/// The masked text, without characters that quick-junit removes.
///
/// The removal of an escape code can reveal a secret, so the result is masked too.
fn shown(text: &str, mask: &Mask) -> String {
    let masked = mask.line(text);
    mask.line(&xml::text(&masked)).into_owned()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn mask() -> Mask {
        Mask::new(["s3cr3t".to_owned()])
    }

    #[test]
    fn a_removed_character_reveals_no_secret() {
        for c in ('\0'..='\u{a0}').filter(|c| !c.is_ascii_graphic()) {
            let text = shown(&format!("s3{c}cr3t \u{1b}[1ms3\u{1b}[Kcr3t"), &mask());
            let written = quick_junit::XmlString::new(&text);
            assert_eq!(written.as_str(), text, "{c:?}");
            assert!(!written.contains("s3cr3t"), "{c:?}: {written:?}");
            assert!(written.ends_with(" ***"), "{c:?}: {written:?}");
        }
    }

    #[tokio::test]
    async fn names_are_masked() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("junit.xml");
        let step = StepResult {
            name: "step s3cr3t".into(),
            needs: Vec::new(),
            status: Status::Skipped,
            detail: None,
            attempts: Vec::new(),
            taken_over: None,
            artifacts: Vec::new(),
            is_service: false,
        };
        let report = Report {
            title: "title s3cr3t".into(),
            steps: vec![step],
        };
        write("name s3cr3t", &report, &mask(), &to).await.unwrap();
        let text = std::fs::read_to_string(to).unwrap();
        assert!(!text.contains("s3cr3t"), "{text}");
        assert_eq!(text.matches("name ***").count(), 2, "{text}");
        assert!(
            text.contains("step ***") && text.contains("title ***"),
            "{text}"
        );
    }
}
