//! What one sees of a build while it goes on.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, IsTerminal, Write};

use moat::{Events, Outcome, Run, RunId, Verdict};

use crate::build::Left;
use crate::groups::Groups;
use crate::lines::Tail;
use crate::mask::Mask;
use crate::pipeline::Pipeline;
use crate::progress::{self, Bars};
use crate::report::{Report, Status, Step};

pub struct View<'a> {
    pipeline: &'a Pipeline,
    mask: &'a Mask,
    shape: Shape,
}

enum Shape {
    Bars(Bars),
    Groups(Groups),
}

/// How many of the last lines of an attempt that has not passed are shown above the bars.
const LINES: usize = 20;

impl<'a> View<'a> {
    /// Bars for a terminal; else, and for GitHub's runner, groups.
    pub fn new(pipeline: &'a Pipeline, mask: &'a Mask) -> Self {
        let github = std::env::var("GITHUB_ACTIONS").is_ok_and(|value| value == "true");
        let shape = match !github && std::io::stderr().is_terminal() {
            true => Shape::Bars(Bars::new(pipeline)),
            false => Shape::Groups(Groups { github }),
        };
        Self {
            pipeline,
            mask,
            shape,
        }
    }

    pub fn say(&self, line: &str) {
        let line = self.mask.line(line);
        match &self.shape {
            Shape::Bars(bars) => bars.say(&line),
            Shape::Groups(groups) => groups.say(&line),
        }
    }

    /// An attempt at a step is begun, or found to have been.
    pub fn begin(&self, place: usize, run: &RunId, attempt: u32, left: Option<Left>) {
        let what = match left {
            None => "begins",
            Some(Left::Open) => "is gone on with",
            Some(Left::Ended) => "has ended before",
        };
        let what = match attempt {
            1 => what.to_owned(),
            _ => format!("{what}, attempt {attempt}"),
        };
        match &self.shape {
            Shape::Bars(bars) => bars.begin(place, run, &what),
            Shape::Groups(groups) => {
                groups.say(&format!("{}: {what}", self.pipeline.steps[place].name));
            }
        }
    }

    /// Shows what happens to runs, as far as it is of interest.
    pub async fn tell(&self, mut events: Events) -> Infallible {
        if let Shape::Bars(bars) = &self.shape {
            while let Some(event) = events.next().await {
                bars.told(&event);
            }
        }
        pending().await
    }

    /// Shows what a run prints, until it has ended.
    pub async fn watch(&self, place: usize, run: &Run) {
        if let Shape::Bars(bars) = &self.shape {
            bars.watch(place, run, self.mask).await;
        }
    }

    /// An attempt has ended.
    pub async fn attempted(&self, place: usize, attempt: u32, outcome: &Outcome) {
        let name = &self.pipeline.steps[place].name;
        let title = title(name, attempt, outcome);
        let title = self.mask.line(&title);
        match &self.shape {
            Shape::Bars(_) if outcome.success() => {}
            Shape::Bars(bars) => {
                bars.say(&title);
                if let Ok(tail) = self.tail(outcome).await {
                    tail.last(LINES)
                        .for_each(|line| bars.say(&format!("  {line}")));
                }
            }
            Shape::Groups(groups) => groups.output(&title, outcome, self.tail(outcome).await),
        }
        match outcome.sealed() {
            None => self.say(&format!("{name}: its audit could not be sealed yet")),
            Some(seal) if seal.verdict == Verdict::Gap => {
                self.say(&format!(
                    "{name}: something of its output is missing, or may be"
                ));
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

    pub fn done(&self, place: usize, step: &Step) {
        match &self.shape {
            Shape::Bars(bars) => bars.done(place, step, self.mask),
            Shape::Groups(groups) => groups.done(step, &self.mask.line(&line(step))),
        }
    }

    /// Prints a line for those who look for it when all is over: below the bars.
    pub fn print(&self, line: &str) {
        let line = self.mask.line(line);
        match &self.shape {
            // Who reads it may have gone.
            Shape::Bars(_) => drop(writeln!(io::stdout(), "{}", progress::plain(&line))),
            Shape::Groups(groups) => groups.say(&line),
        }
    }

    /// Prints where the audit files are.
    pub fn name_audits(&self, report: &Report) {
        for step in &report.steps {
            for attempt in &step.attempts {
                self.say(&format!(
                    "audit of {}: {}",
                    step.name,
                    attempt.audit.display()
                ));
            }
        }
    }
}

fn title(name: &str, attempt: u32, outcome: &Outcome) -> String {
    let again = match attempt {
        1 => String::new(),
        _ => format!(", attempt {attempt}"),
    };
    let took = outcome.duration().unwrap_or_default().as_secs_f64();
    format!("{name}{again}: {} ({took:.1} s)", outcome.ending)
}

/// What became of a step, in a line.
pub fn line(step: &Step) -> String {
    let status = word(step.status);
    match &step.detail {
        Some(detail) => format!("{}: {status}: {detail}", step.name),
        None => format!("{}: {status}", step.name),
    }
}

pub fn word(status: Status) -> &'static str {
    match status {
        Status::Passed => "passed",
        Status::Failed => "failed",
        Status::AllowedFailure => "failed, as it may",
        Status::TimedOut => "timed out",
        Status::Cancelled => "cancelled",
        Status::Skipped => "skipped",
    }
}
