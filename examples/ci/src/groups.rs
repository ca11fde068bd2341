//! Output for logs: one block for each attempt after its end, or each line at once.

use std::io::Write;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use moat::audit::Follow;
use moat::{Outcome, Run};
use tokio::time::sleep;

use crate::ci_system::{CiSystem, Group, Severity};
use crate::lines::{Lines, Tail};
use crate::mask::Mask;
use crate::report::{Status, StepResult};

pub struct Groups<'a> {
    pub ci_system: CiSystem,
    pub mask: &'a Mask,
    /// True if each line is printed at once. There are no blocks then.
    pub live: bool,
}

/// Maximum time without a record after which an audit file that is not sealed has ended.
const UNSEALED_TIMEOUT: Duration = Duration::from_secs(1);

impl Groups<'_> {
    pub fn message(&self, line: &str) {
        self.print([self.neutralize(line)]);
    }

    /// The line, masked, without a command for the CI system.
    fn neutralize(&self, line: &str) -> String {
        self.ci_system.neutralize(&self.mask.visible(line))
    }

    /// Prints the last lines of an attempt as one block.
    pub fn output(&self, title: &str, outcome: &Outcome, tail: moat::Result<Tail>) {
        let (omitted, lines) = match tail {
            Ok(tail) => (tail.omitted, tail.lines),
            Err(error) => (
                0,
                [format!("cannot read the output: {}", error.chain())].into(),
            ),
        };
        let note = (omitted > 0).then(|| {
            let audit = outcome.audit.as_deref().unwrap_or(Path::new(""));
            let plural = if omitted == 1 { "" } else { "s" };
            format!("[{omitted} earlier line{plural}: {}]", audit.display())
        });
        let lines = note.into_iter().chain(lines);
        let lines = lines.map(|line| self.neutralize(&line));
        let group = self.group(title, !outcome.success());
        let open = group.open.into_iter();
        self.print(open.chain(lines).chain(group.close));
    }

    /// Starts a group. Its title is masked before it is escaped.
    fn group(&self, title: &str, expanded: bool) -> Group {
        self.ci_system.group(&self.mask.visible(title), expanded)
    }

    /// Prints each line of a run with the name of its step, until the run has ended.
    pub async fn stream_run(&self, name: &str, run: &Run) {
        let Some(audit) = run.audit() else { return };
        let print = |line: String| self.message(&format!("{name} | {line}"));
        let mut lines = Lines::new(self.mask);
        let mut records = Follow::new(audit).into_stream();
        let mut outcome = pin!(run.wait().fuse());
        let mut is_over = false;
        loop {
            let record = tokio::select! {
                record = records.next() => record,
                _ = &mut outcome, if !is_over => {
                    is_over = true;
                    continue;
                }
                // The records end after the seal. Without a seal, they never end.
                () = sleep(UNSEALED_TIMEOUT), if is_over => break,
            };
            match record {
                Some(Ok(record)) => lines.push(record).into_iter().for_each(print),
                Some(Err(error)) => {
                    print(format!("cannot read the output: {}", error.chain()));
                    break;
                }
                None => break,
            }
        }
        lines.rest().for_each(print);
    }

    /// Prints the result of a step. `line` is its summary.
    pub fn step_ended(&self, step: &StepResult, line: &str) {
        let severity = match step.status {
            Status::Passed | Status::Skipped | Status::Cancelled => return self.message(line),
            Status::AllowedFailure => Severity::Warning,
            Status::Failed | Status::TimedOut => Severity::Error,
        };
        self.print([self.annotate(severity, &step.name, line)]);
    }

    /// Prints a problem that does not fail the build.
    pub fn warn(&self, message: &str) {
        self.print([self.annotate(Severity::Warning, "moat-ci", message)]);
    }

    /// A message for the CI system. Its texts are masked before they are escaped.
    fn annotate(&self, severity: Severity, title: &str, message: &str) -> String {
        let [title, message] = [title, message].map(|text| self.mask.visible(text));
        self.ci_system.annotate(severity, &title, &message)
    }

    /// Prints the last lines of the build.
    pub fn summary(&self, lines: impl Iterator<Item = String>) {
        let heading = self.ci_system.heading("Summary").into_iter();
        self.print(heading.chain(lines.map(|line| self.neutralize(&line))));
    }

    /// Prints lines without interleaving.
    ///
    /// A closed stdout does not fail the build.
    pub fn print(&self, lines: impl IntoIterator<Item = String>) {
        let mut out = std::io::stdout().lock();
        for line in lines {
            let _ = writeln!(out, "{line}");
        }
        let _ = out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(ci_system: CiSystem, mask: &Mask) -> Groups<'_> {
        Groups {
            ci_system,
            mask,
            live: false,
        }
    }

    #[test]
    fn a_color_hides_no_secret() {
        let mask = Mask::new(["s3cr3t".to_owned()]);
        let groups = groups(CiSystem::None, &mask);
        for (line, shown) in [
            ("\x1b[1ma \x1b[01;31m\x1b[Ks3\x1b[m\x1b[Kcr3t b", "a *** b"),
            ("s3\x1b[38:2::255:0:0mcr3t", "***"),
            ("s3\x1b]0;title\x07cr3t", "***"),
            ("\x1b[1ms3cr3t\x1b[m", "\x1b[1m***\x1b[m"),
            ("\x1b[1ms3\x1b[mcr", "\x1b[1ms3\x1b[mcr"),
        ] {
            assert_eq!(groups.neutralize(line), shown);
        }
    }

    #[test]
    fn a_secret_changes_no_command() {
        let mask = Mask::new(["error", "title", "group"].map(str::to_owned));
        let annotate =
            |ci_system| groups(ci_system, &mask).annotate(Severity::Error, "a", "an error");
        assert_eq!(annotate(CiSystem::Github), "::error title=a::an ***");
        assert_eq!(
            annotate(CiSystem::Azure),
            "##vso[task.logissue type=error]an ***"
        );
        let group = groups(CiSystem::Azure, &mask).group("a group", true);
        assert_eq!(group.open, ["##[group]a ***"]);
    }

    #[test]
    fn an_escaped_secret_is_masked() {
        let mask = Mask::new(["user:pass".to_owned(), "50%".to_owned(), "[a]".to_owned()]);
        let name = "user:pass 50% [a] us\x1b[mer:pass";
        for ci_system in [CiSystem::Github, CiSystem::Azure, CiSystem::Teamcity] {
            let groups = groups(ci_system, &mask);
            let line = groups.annotate(Severity::Error, name, name);
            assert!(line.contains("*** *** *** ***"), "{line}");
            assert!(!line.contains("pass") && !line.contains("50"), "{line}");
            let opened = groups.group(name, true).open;
            assert!(opened[0].contains("*** *** *** ***"), "{opened:?}");
        }
    }
}
