//! The progress of a build on standard output and standard error.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, IsTerminal, Write};

use moat::{Events, Outcome, Run, RunId, Verdict};

use crate::build::EarlierRun;
use crate::groups::Groups;
use crate::lines::Tail;
use crate::mask::Mask;
use crate::pipeline::Pipeline;
use crate::progress::{Bars, plain};
use crate::report::{Report, StepResult};

pub struct View<'a> {
    pipeline: &'a Pipeline,
    mask: &'a Mask,
    style: Style,
}

enum Style {
    Bars(Bars),
    Groups(Groups),
}

/// Number of last lines of a failed attempt that a terminal shows.
const TAIL_LINES: usize = 20;

impl<'a> View<'a> {
    /// Progress bars on a terminal. Groups elsewhere, and for GitHub's runner.
    pub fn new(pipeline: &'a Pipeline, mask: &'a Mask) -> Self {
        let github = std::env::var("GITHUB_ACTIONS").is_ok_and(|value| value == "true");
        let style = match !github && io::stderr().is_terminal() {
            true => Style::Bars(Bars::new(pipeline)),
            false => Style::Groups(Groups { github }),
        };
        Self {
            pipeline,
            mask,
            style,
        }
    }

    pub fn message(&self, line: &str) {
        let line = self.mask.line(line);
        match &self.style {
            Style::Bars(bars) => bars.message(&line),
            Style::Groups(groups) => groups.message(&line),
        }
    }

    /// Shows that an attempt starts, or that an earlier process started it.
    pub fn attempt_started(
        &self,
        index: usize,
        run: &RunId,
        attempt: u32,
        earlier: Option<EarlierRun>,
    ) {
        let message = match earlier {
            None => "started",
            Some(EarlierRun::Open) => "resumed",
            Some(EarlierRun::Ended) => "already ended",
        };
        let message = match attempt {
            1 => message.to_owned(),
            _ => format!("{message}, attempt {attempt}"),
        };
        match &self.style {
            Style::Bars(bars) => bars.attempt_started(index, run, &message),
            Style::Groups(groups) => {
                groups.message(&format!("{}: {message}", self.pipeline.steps[index].name));
            }
        }
    }

    /// Shows events until the future is dropped.
    pub async fn follow_events(&self, mut events: Events) -> Infallible {
        if let Style::Bars(bars) = &self.style {
            while let Some(event) = events.next().await {
                bars.event(&event);
            }
        }
        pending().await
    }

    /// Shows the output of a run until the run has ended.
    pub async fn watch(&self, index: usize, run: &Run) {
        if let Style::Bars(bars) = &self.style {
            bars.watch(index, run, self.mask).await;
        }
    }

    pub async fn attempt_ended(&self, index: usize, attempt: u32, outcome: &Outcome) {
        let name = &self.pipeline.steps[index].name;
        let title = title(name, attempt, outcome);
        let title = self.mask.line(&title);
        match &self.style {
            Style::Bars(_) if outcome.success() => {}
            Style::Bars(bars) => {
                bars.message(&title);
                if let Ok(tail) = self.tail(outcome).await {
                    tail.last(TAIL_LINES)
                        .for_each(|line| bars.message(&format!("  {line}")));
                }
            }
            Style::Groups(groups) => groups.output(&title, outcome, self.tail(outcome).await),
        }
        match outcome.sealed() {
            None => self.message(&format!("{name}: the audit is not sealed yet")),
            Some(seal) if seal.verdict == Verdict::Gap => {
                self.message(&format!("{name}: output is missing, or may be"));
            }
            Some(_) => {}
        }
    }

    async fn tail(&self, outcome: &Outcome) -> moat::Result<Tail> {
        match &outcome.audit {
            Some(audit) => Tail::read(audit, self.mask).await,
            None => Ok(Tail::default()),
        }
    }

    pub fn step_ended(&self, index: usize, step: &StepResult) {
        match &self.style {
            Style::Bars(bars) => bars.step_ended(index, step, self.mask),
            Style::Groups(groups) => groups.step_ended(step, &self.mask.line(&step.summary())),
        }
    }

    /// Prints a line to standard output, to be read after the build.
    pub fn print(&self, line: &str) {
        let line = self.mask.line(line);
        match &self.style {
            // A closed stdout does not fail the build.
            Style::Bars(_) => drop(writeln!(io::stdout(), "{}", plain(&line))),
            Style::Groups(groups) => groups.message(&line),
        }
    }

    /// Shows the paths of the audit files.
    pub fn list_audits(&self, report: &Report) {
        for step in &report.steps {
            for attempt in &step.attempts {
                let audit = attempt.audit.display();
                self.message(&format!("audit of {}: {audit}", step.name));
            }
        }
    }
}

fn title(name: &str, attempt: u32, outcome: &Outcome) -> String {
    let number = match attempt {
        1 => String::new(),
        _ => format!(", attempt {attempt}"),
    };
    let seconds = outcome.duration().unwrap_or_default().as_secs_f64();
    format!("{name}{number}: {} ({seconds:.1} s)", outcome.ending)
}
