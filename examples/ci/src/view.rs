//! The progress of a build on standard output and standard error.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use moat::{Events, Outcome, Run, RunId, Verdict};
use tokio::time::sleep;

use crate::build::EarlierRun;
use crate::ci_system::CiSystem;
use crate::groups::Groups;
use crate::lines::Tail;
use crate::mask::Mask;
use crate::pipeline::Pipeline;
use crate::progress::Bars;
use crate::report::{Report, StepResult};
use crate::tracker::{Phase, Tracker};

pub struct View<'a> {
    pipeline: &'a Pipeline,
    mask: &'a Mask,
    style: Style<'a>,
    tracker: Tracker,
    heartbeat: Option<Duration>,
}

/// The form of the output.
#[derive(Debug, Clone, Copy)]
pub struct ViewOptions {
    /// The CI system that reads the output.
    pub ci_system: CiSystem,
    /// True if each line of output is printed at once.
    pub stream: bool,
    /// Time between two lines about the running steps. `None`: there are no such lines.
    ///
    /// A terminal shows the running steps anyway.
    pub heartbeat: Option<Duration>,
}

enum Style<'a> {
    Bars(Bars),
    Groups(Groups<'a>),
}

/// Number of last lines of a failed attempt that a terminal shows.
const TAIL_LINES: usize = 20;

impl<'a> View<'a> {
    /// Progress bars on a terminal. Lines elsewhere, for a CI system, and if they are streamed.
    ///
    /// The jobs of some CI systems have a terminal.
    pub fn new(pipeline: &'a Pipeline, mask: &'a Mask, options: ViewOptions) -> Self {
        let ViewOptions {
            ci_system, stream, ..
        } = options;
        let with_bars = ci_system == CiSystem::None && !stream && io::stderr().is_terminal();
        let style = match with_bars {
            true => Style::Bars(Bars::new(pipeline, mask)),
            false => Style::Groups(Groups {
                ci_system,
                mask,
                live: stream,
            }),
        };
        let tracker = Tracker::new(pipeline.steps.iter().map(|step| step.name.clone()));
        if let Style::Bars(bars) = &style {
            bars.arrange(&tracker);
        }
        Self {
            pipeline,
            mask,
            style,
            tracker,
            heartbeat: options.heartbeat,
        }
    }

    fn set_phase(&self, index: usize, phase: Phase) {
        self.tracker.set(index, phase);
        if let Style::Bars(bars) = &self.style {
            bars.arrange(&self.tracker);
        }
    }

    pub fn message(&self, line: &str) {
        match &self.style {
            Style::Bars(bars) => bars.message(&self.mask.plain(line)),
            Style::Groups(groups) => groups.message(line),
        }
    }

    /// Shows a problem that does not fail the build.
    pub fn warn(&self, message: &str) {
        let message = format!("warning: {message}");
        match &self.style {
            Style::Bars(bars) => bars.message(&self.mask.plain(&message)),
            Style::Groups(groups) => groups.warn(&message),
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
        self.set_phase(index, Phase::Waiting);
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

    /// Shows events, or the running steps, until the future is dropped.
    pub async fn follow_events(&self, mut events: Events) -> Infallible {
        match (&self.style, self.heartbeat) {
            (Style::Bars(bars), _) => {
                while let Some(event) = events.next().await {
                    bars.event(&event);
                }
            }
            (Style::Groups(_), Some(period)) => loop {
                sleep(period).await;
                self.message(&self.tracker.describe_running());
            },
            (Style::Groups(_), None) => {}
        }
        pending().await
    }

    /// Shows the output of a run that has started, until the run has ended.
    pub async fn watch(&self, index: usize, run: &Run) {
        let since = Instant::now();
        self.set_phase(index, Phase::Running { since });
        match &self.style {
            Style::Bars(bars) => bars.watch(index, run, self.mask).await,
            Style::Groups(groups) if groups.live => {
                groups
                    .stream_run(&self.pipeline.steps[index].name, run)
                    .await;
            }
            Style::Groups(_) => {}
        }
    }

    pub async fn attempt_ended(&self, index: usize, attempt: u32, outcome: &Outcome) {
        self.run_ended(&self.pipeline.steps[index].name, attempt, outcome)
            .await;
    }

    /// Shows the end of a run of a step or a service, and its last lines.
    pub async fn run_ended(&self, name: &str, attempt: u32, outcome: &Outcome) {
        let title = title(name, attempt, outcome);
        match &self.style {
            Style::Bars(_) if outcome.success() => {}
            Style::Bars(bars) => {
                bars.message(&self.mask.plain(&title));
                if let Ok(tail) = self.tail(outcome).await {
                    tail.last(TAIL_LINES)
                        .for_each(|line| bars.message(&self.mask.plain(&format!("  {line}"))));
                }
            }
            Style::Groups(groups) if groups.live => groups.message(&title),
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
            Style::Groups(groups) => groups.step_ended(step, &step.summary()),
        }
        self.set_phase(index, Phase::Ended(step.status));
    }

    /// Shows the result of a service that failed.
    pub fn service_failed(&self, service: &StepResult) {
        match &self.style {
            Style::Bars(bars) => bars.message(&self.mask.plain(&service.summary())),
            Style::Groups(groups) => groups.step_ended(service, &service.summary()),
        }
    }

    /// Prints a line to standard output, to be read after the build.
    pub fn print(&self, line: &str) {
        match &self.style {
            // A closed stdout does not fail the build.
            Style::Bars(_) => drop(writeln!(io::stdout(), "{}", self.mask.plain(line))),
            Style::Groups(groups) => groups.message(line),
        }
    }

    /// Ends the display of running steps.
    pub fn finish(&self) {
        if let Style::Bars(bars) = &self.style {
            bars.finish(&self.tracker);
        }
    }

    /// Shows the failures and the totals. They are the last lines of the build.
    pub fn summary(&self, report: &Report) {
        let failures = report.steps.iter().filter(|step| step.status.fails_build());
        match &self.style {
            Style::Bars(_) => {
                let mut err = io::stderr().lock();
                for line in failures.map(StepResult::summary).chain([self.totals()]) {
                    let _ = writeln!(err, "{}", self.mask.plain(&line));
                }
            }
            Style::Groups(groups) => {
                let failures = failures.flat_map(|step| {
                    let audit = step.attempts.last().map(|last| last.audit.display());
                    let audit = audit.map(|audit| format!("  audit: {audit}"));
                    [Some(step.summary()), audit].into_iter().flatten()
                });
                groups.summary(failures.chain([self.totals()]));
            }
        }
    }

    /// The number of steps in each state, on one line.
    pub fn totals(&self) -> String {
        self.tracker.totals()
    }

    /// Prints a command for the CI system.
    pub fn command(&self, line: String) {
        if let Style::Groups(groups) = &self.style {
            groups.print([line]);
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
