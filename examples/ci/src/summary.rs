//! The summary of a build in Markdown, for the page of a job in a CI system.
//!
//! Output of a step is in a code block that it cannot end. All other text has no Markdown and no HTML.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use moat::Outcome;

use crate::ci_system::CiSystem;
use crate::lines::Tail;
use crate::mask::Mask;
use crate::report::{Report, StepResult};

/// Name of the file in the directory of `--out`, for a system that takes the path of a file.
pub const FILE: &str = "summary.md";

/// Maximum size of the summaries of a job's step, in bytes. GitHub refuses more than 1 MiB.
const MAX_BYTES: usize = 1_000_000;
/// Number of last lines of a failed step.
const TAIL_LINES: usize = 20;
/// Maximum number of characters of a line, a name or a reason.
const MAX_CHARS: usize = 500;

/// Gives the CI system a summary, if the system takes one.
///
/// Returns a command for the system, to be printed as it is. `lookup` returns the value of an
/// environment variable.
///
/// # Errors
///
/// [`io::Error`] if the file cannot be written. The message has its path.
pub async fn publish(
    ci_system: CiSystem,
    lookup: impl Fn(&str) -> Option<String>,
    out: &Path,
    report: &Report,
    totals: &str,
    mask: &Mask,
) -> io::Result<Option<String>> {
    let (path, append) = match ci_system {
        CiSystem::Github => match lookup("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()) {
            Some(path) => (PathBuf::from(path), true),
            None => return Ok(None),
        },
        CiSystem::Azure => (std::path::absolute(out.join(FILE))?, false),
        _ => return Ok(None),
    };
    let in_path = |error| io::Error::other(format!("{}: {error}", path.display()));
    // The steps of a job can have written to the file before.
    let used = match append {
        true => fs::metadata(&path).map_or(0, |file| file.len() as usize),
        false => 0,
    };
    let text = markdown(report, totals, mask, MAX_BYTES.saturating_sub(used)).await;
    let mut options = OpenOptions::new();
    let file = options
        .create(true)
        .append(append)
        .write(true)
        .truncate(!append)
        .open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(in_path)?;
    Ok(ci_system.upload_summary(&path))
}

/// A heading, the totals, the failures, and a table of the steps, in at most `max_bytes` bytes.
pub async fn markdown(report: &Report, totals: &str, mask: &Mask, max_bytes: usize) -> String {
    let failures = report.steps.iter().filter(|step| step.status.fails_build());
    let failures: Vec<_> = failures.collect();
    let verdict = if failures.is_empty() {
        "Passed"
    } else {
        "Failed"
    };
    let mut text = Bounded::default();
    let title = inline(&report.title, mask);
    text.push(
        &format!("\n## {verdict}: {title}\n\n{}\n", inline(totals, mask)),
        max_bytes,
    );
    // The table needs room too.
    let max_failures = max_bytes / 2;
    for (index, step) in failures.iter().enumerate() {
        if !text.push(&failure(step, mask).await, max_failures) {
            let more = failures.len() - index;
            text.push(
                &format!("\n{more} more failed: see the report.\n"),
                max_bytes,
            );
            break;
        }
    }
    text.push(
        "\n### Steps\n\n| Step | Result | Time | Attempts | Reason |\n",
        max_bytes,
    );
    text.push("| --- | --- | --- | --- | --- |\n", max_bytes);
    for (index, step) in report.steps.iter().enumerate() {
        // Leaves room for the last line.
        if !text.push(&table_row(step, mask), max_bytes.saturating_sub(100)) {
            let more = report.steps.len() - index;
            text.push(
                &format!("\n{more} more steps: see the report.\n"),
                max_bytes,
            );
            break;
        }
    }
    text.0
}

/// The result of a step, its last lines, and its audit file.
async fn failure(step: &StepResult, mask: &Mask) -> String {
    let mut text = format!("\n### {}\n", inline(&step.summary(), mask));
    let Some(attempt) = step.attempts.last() else {
        return text;
    };
    if !attempt.outcome.as_ref().is_some_and(Outcome::success) {
        let lines = match Tail::read(&attempt.audit, mask).await {
            Ok(tail) => tail.last(TAIL_LINES).map(|line| mask.plain(line)).collect(),
            Err(error) => vec![mask.plain(&format!("cannot read the output: {}", error.chain()))],
        };
        text.push_str(&fenced(&lines));
    }
    let audit = inline(&attempt.audit.display().to_string(), mask);
    text + &format!("\naudit: {audit}\n")
}

fn table_row(step: &StepResult, mask: &Mask) -> String {
    let reasons = [
        step.detail.clone(),
        step.taken_over.as_ref().map(ToString::to_string),
    ];
    let reasons: Vec<_> = reasons.into_iter().flatten().collect();
    let (name, reason) = (inline(&step.name, mask), inline(&reasons.join("; "), mask));
    let (seconds, attempts) = (step.time().as_secs_f64(), step.attempts.len());
    format!(
        "| {name} | {} | {seconds:.1} s | {attempts} | {reason} |\n",
        step.status
    )
}

/// Text without meaning in Markdown and HTML: all punctuation is written as references.
fn inline(text: &str, mask: &Mask) -> String {
    let mut inline = String::new();
    for c in shortened(&mask.plain(text)).chars() {
        match c.is_ascii_punctuation() {
            true => inline.push_str(&format!("&#{};", u32::from(c))),
            false => inline.push(c),
        }
    }
    inline
}

/// A code block. Its fence is longer than any in the lines, so none of them ends it.
fn fenced(lines: &[String]) -> String {
    let lines: Vec<_> = lines.iter().map(|line| shortened(line)).collect();
    let text = lines.join("\n");
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat((longest + 1).max(3));
    format!("\n{fence}text\n{text}\n{fence}\n")
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{} [...]", &text[..end]),
        None => text.to_owned(),
    }
}

#[derive(Default)]
struct Bounded(String);

impl Bounded {
    /// Adds the piece, unless the text would then have more than `max_bytes` bytes.
    fn push(&mut self, piece: &str, max_bytes: usize) -> bool {
        let fits = self.0.len() + piece.len() <= max_bytes;
        if fits {
            self.0.push_str(piece);
        }
        fits
    }
}

#[cfg(test)]
mod tests;
