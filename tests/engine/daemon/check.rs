//! Checks of audits against the known output of a container.

use moat::{Outcome, Run};
use testkit::audit::Audit;
use testkit::sequence;

use crate::stage::{assert_complete, end, read};

/// Asserts that stdout has lines 1 to `count`, each at most once, whole and in order, and that an
/// audit without all of them has a gap. Returns how many are missing.
#[track_caller]
pub fn assert_lines_in_order(audit: &Audit, count: u64) -> u64 {
    let mut last = 0;
    let mut found = 0;
    let stdout = audit.stream("stdout");
    for line in stdout.split_inclusive(|&byte| byte == b'\n') {
        let text = String::from_utf8_lossy(line);
        let number = text.split(' ').nth(1).and_then(|text| text.parse().ok());
        let whole =
            number.filter(|&number| text == format!("{}\n", sequence::line("out", number, 64)));
        match whole {
            Some(number) => {
                assert!(number > last, "line {number} comes after line {last}");
                (last, found) = (number, found + 1);
            }
            // A part of a line may be missing if there is a gap.
            None => assert_eq!(audit.verdict(), "gap", "{text:?} after line {last}"),
        }
    }
    assert!(last <= count);
    let missing = count - found;
    if missing > 0 {
        assert_eq!(
            audit.verdict(),
            "gap",
            "{missing} lines are missing: {}",
            audit.end
        );
    }
    missing
}

/// Asserts that stdout has all lines 1 to `count`, whole and in order.
#[track_caller]
pub fn assert_all_lines(audit: &Audit, count: u64) {
    assert_eq!(assert_lines_in_order(audit, count), 0, "lines are missing");
}

/// Waits for the seal of a run. Asserts its exit code, and that its audit is complete with lines 1
/// to `count`.
pub async fn assert_whole(run: &Run, code: i64, count: u64) -> Audit {
    let (outcome, audit) = sealed(run).await;
    assert_eq!(outcome.code(), Some(code));
    assert_all_lines(&audit, count);
    assert_complete(&audit);
    audit
}

/// Asserts that there is a gap with this reason, and that it is possible or certain.
#[track_caller]
pub fn assert_gap(audit: &Audit, reason: &str, possible: bool) {
    assert_eq!(audit.verdict(), "gap", "{}", audit.end);
    let gaps = audit.all("gap");
    assert!(
        gaps.iter()
            .any(|gap| gap["reason"] == reason && gap["possible"] == possible),
        "no gap {reason:?}, possible: {possible}: {gaps:?}"
    );
}

/// Waits for the seal of a run and prints the effect of the fault.
pub async fn sealed(run: &Run) -> (Outcome, Audit) {
    let outcome = end(run).await;
    let audit = read(&outcome);
    show(&outcome, &audit);
    (outcome, audit)
}

/// Prints the effect of a fault, for `--nocapture`.
pub fn show(outcome: &Outcome, audit: &Audit) {
    let gaps: Vec<_> = audit
        .all("gap")
        .iter()
        .map(|gap| {
            let only = if gap["possible"] == true {
                "possible "
            } else {
                ""
            };
            format!("{only}{}", gap["reason"].as_str().unwrap_or_default())
        })
        .collect();
    let lines = audit
        .stream("stdout")
        .iter()
        .filter(|&&b| b == b'\n')
        .count();
    println!(
        "{}: {}; evidence {}; gaps {gaps:?}; {lines} lines; captured {:.1} s after the end",
        std::thread::current().name().unwrap_or_default(),
        outcome.ending,
        audit.evidence(),
        audit.end["capture_seconds"].as_f64().unwrap_or_default(),
    );
}
