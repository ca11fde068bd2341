//! Lines for a log: what a step has printed comes in one piece, when it has ended.

use std::io::Write;

use moat::Outcome;

use crate::github::{self, Fence};
use crate::lines::Tail;
use crate::report::{Status, Step};

pub struct Groups {
    /// Whether GitHub's runner reads it.
    pub github: bool,
}

impl Groups {
    pub fn say(&self, line: &str) {
        self.print([self.plain(line)]);
    }

    fn plain(&self, line: &str) -> String {
        match self.github {
            true => github::plain(line),
            false => line.to_owned(),
        }
    }

    /// Shows what a run has printed, in one piece.
    pub fn output(&self, title: &str, outcome: &Outcome, tail: moat::Result<Tail>) {
        let (before, lines) = match tail {
            Ok(tail) => (tail.before, tail.lines),
            Err(error) => (
                0,
                [format!("its output cannot be read: {}", error.chain())].into(),
            ),
        };
        let elsewhere = (before > 0).then(|| {
            let audit = outcome.audit.as_deref().unwrap_or(std::path::Path::new(""));
            format!("[{before} lines before these: {}]", audit.display())
        });
        let lines = elsewhere.into_iter().chain(lines);
        if self.github {
            let fence = Fence::new();
            let open = [github::group(title), fence.open()].into_iter();
            let close = [fence.close(), github::END_GROUP.into()];
            self.print(open.chain(lines).chain(close));
        } else {
            self.print([format!("--- {title}")].into_iter().chain(lines));
        }
    }

    pub fn done(&self, step: &Step, line: &str) {
        let title = &step.name;
        let said = match (self.github, step.status) {
            (false, _) | (true, Status::Passed | Status::Skipped | Status::Cancelled) => {
                self.plain(line)
            }
            (true, Status::AllowedFailure) => github::warning(title, line),
            (true, Status::Failed | Status::TimedOut) => github::error(title, line),
        };
        self.print([said]);
    }

    /// Lines that nothing comes between. Who reads them may have gone: the build goes on.
    fn print(&self, lines: impl IntoIterator<Item = String>) {
        let mut out = std::io::stdout().lock();
        for line in lines {
            let _ = writeln!(out, "{line}");
        }
        let _ = out.flush();
    }
}
