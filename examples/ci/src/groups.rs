//! Output for logs: one block for each attempt, after its end.

use std::io::Write;
use std::path::Path;

use moat::Outcome;

use crate::github::{self, Fence};
use crate::lines::Tail;
use crate::report::{Status, StepResult};

pub struct Groups {
    /// True if GitHub's runner reads the output.
    pub github: bool,
}

impl Groups {
    pub fn message(&self, line: &str) {
        self.print([self.neutralize(line)]);
    }

    fn neutralize(&self, line: &str) -> String {
        match self.github {
            true => github::neutralize(line),
            false => line.to_owned(),
        }
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
        if self.github {
            let fence = Fence::new();
            let open = [github::group(title), fence.open()].into_iter();
            let close = [fence.close(), github::END_GROUP.into()];
            self.print(open.chain(lines).chain(close));
        } else {
            self.print([format!("--- {title}")].into_iter().chain(lines));
        }
    }

    /// Prints the result of a step. `line` is its summary.
    pub fn step_ended(&self, step: &StepResult, line: &str) {
        let title = &step.name;
        let line = match (self.github, step.status) {
            (false, _) | (true, Status::Passed | Status::Skipped | Status::Cancelled) => {
                self.neutralize(line)
            }
            (true, Status::AllowedFailure) => github::warning(title, line),
            (true, Status::Failed | Status::TimedOut) => github::error(title, line),
        };
        self.print([line]);
    }

    /// Prints lines without interleaving.
    ///
    /// A closed stdout does not fail the build.
    fn print(&self, lines: impl IntoIterator<Item = String>) {
        let mut out = std::io::stdout().lock();
        for line in lines {
            let _ = writeln!(out, "{line}");
        }
        let _ = out.flush();
    }
}
