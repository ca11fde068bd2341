//! The pure state machine of a watched container: an input in, effects out.
//!
//! It does no I/O and reads no clock: [`watch`](super::watch) turns what happens into inputs, and
//! applies the effects in order. A run and an exec use the same machine.

use std::time::Duration;

use tokio::time::Instant;

use crate::audit::Event;
use crate::error::Error;
use crate::monitor::entry::StopRequest;
use crate::monitor::output::PumpOutcome;
use crate::monitor::seal::UNSEALED;
use crate::outcome::{Ending, StopCause, Usage};

/// Interval between two events with the output counts.
const COUNTS_INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for the `started` record before the start is acknowledged without it.
const START_RECORD_TIMEOUT: Duration = Duration::from_secs(2);

/// The end of a process, with its proof.
pub(super) trait ExitReport {
    fn ending(&self) -> &Ending;
}

/// Where a watched container stands, with exactly the data of that phase.
#[derive(Debug)]
pub(super) enum Phase<X> {
    /// The container runs, and its output is captured.
    Running {
        limits: Limits,
        silence: Option<Silence>,
        /// When a start that is not acknowledged yet is acknowledged at the latest.
        acknowledge_by: Option<Instant>,
    },
    /// The container runs. Its output has ended, so the start is acknowledged.
    Drained { limits: Limits, output: PumpOutcome },
    /// The container has ended. Its output has not.
    Exited {
        exit: X,
        at: Instant,
        /// When the ending goes to `run.json`, because the seal is overdue.
        persist_at: Option<Instant>,
        acknowledge_by: Option<Instant>,
    },
    /// The container and its output have ended.
    Done {
        exit: X,
        at: Instant,
        output: PumpOutcome,
    },
    /// The manager closes. The container may outlive it.
    Closing {
        container_runs: bool,
        output_open: bool,
    },
}

/// Limits of a running container. Each one asks for one stop at most, and is then disarmed.
#[derive(Debug, Default)]
pub(super) struct Limits {
    pub(super) time_limit_at: Option<Instant>,
    /// Whether the output limit stops the container. If not, it only cuts the log.
    pub(super) stop_at_output_limit: bool,
}

/// The armed limit on the time without output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    limit: Duration,
    /// When the limit expires, unless there was output since.
    at: Instant,
}

/// What a machine starts with.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) limits: Limits,
    pub(super) silence_limit: Option<Duration>,
    /// Whether a caller waits for the start to be recorded.
    pub(super) acknowledge_start: bool,
    /// Whether subscribers get the output counts.
    pub(super) publish_counts: bool,
}

/// An occurrence that the machine decides about.
#[derive(Debug)]
pub(super) enum Input<X> {
    /// The container has ended.
    Exited(X),
    /// All sources of output have ended.
    OutputEnded(PumpOutcome),
    /// The first records are written, or cannot be.
    Recorded,
    /// The output has reached its limit.
    OutputLimit,
    /// A handle asks for a stop.
    Stop(StopRequest),
    /// A handle has a record for the log.
    Note(Event),
    /// A sample of the resource usage.
    Usage(Usage),
    /// The manager closes.
    Closing,
    /// The start is not recorded in time.
    AcknowledgeDue,
    /// The container has run for as long as it may.
    TimeLimit,
    /// The silence limit may have expired: it has, unless there was output since.
    Silent { last_output: Option<Instant> },
    /// The run is not sealed in time after its end.
    SealOverdue,
    /// The output counts are to be published.
    CountsDue,
}

/// A deadline of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    Acknowledge,
    TimeLimit,
    Silence,
    SealOverdue,
    Counts,
}

/// An action for the watch loop.
#[derive(Debug)]
pub(super) enum Effect {
    /// Publishes the ending.
    PublishEnding(Ending),
    /// Tells the capture that the container has ended, so that a silent source is given up.
    LimitSilentOutput,
    /// Reports why the log cannot be written now.
    ReportBlocked(Error),
    /// Replies to the caller that waits for the start.
    AcknowledgeStart,
    /// Begins a stop, and records it.
    Stop(StopRequest),
    /// Queues a record for the log.
    Record(Event),
    /// Writes the ending to `run.json`.
    PersistEnding(Ending),
    /// Publishes a sample.
    PublishUsage(Usage),
    /// Publishes the output counts, if they have changed, and new gaps.
    PublishCounts,
    /// Returns the permit that limits how many containers run at once.
    ReleasePermit,
}

/// Effects, in the order in which they are applied.
pub(super) type Effects = Vec<Effect>;

/// Deadlines of the current phase. `None`: not armed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timers {
    pub(super) acknowledge: Option<Instant>,
    pub(super) time_limit: Option<Instant>,
    pub(super) silence: Option<Instant>,
    pub(super) seal_overdue: Option<Instant>,
    pub(super) counts: Option<Instant>,
}

/// Sources that the loop waits for in the current phase.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sources {
    /// The end of the container; stops, notes, samples and the stop in progress end with it.
    pub(super) container: bool,
    pub(super) output: bool,
    /// The first write to the log.
    pub(super) recorded: bool,
    pub(super) output_limit: bool,
}

/// A watched container.
#[derive(Debug)]
pub(super) struct Machine<X> {
    phase: Phase<X>,
    /// When the output counts are published next; `None`: never.
    counts_at: Option<Instant>,
}

impl<X: ExitReport> Machine<X> {
    pub(super) fn new(now: Instant, setup: Setup) -> Self {
        Self {
            phase: Phase::Running {
                limits: setup.limits,
                silence: setup.silence_limit.map(|limit| Silence {
                    limit,
                    at: now + limit,
                }),
                acknowledge_by: setup.acknowledge_start.then(|| now + START_RECORD_TIMEOUT),
            },
            counts_at: setup.publish_counts.then(|| now + COUNTS_INTERVAL),
        }
    }

    /// Takes an input, and returns what the loop must do.
    pub(super) fn on(&mut self, now: Instant, input: Input<X>) -> Effects {
        let mut effects = Effects::new();
        if matches!(input, Input::CountsDue) {
            self.counts_at = self.counts_at.map(|_| now + COUNTS_INTERVAL);
        }
        let before = std::mem::replace(&mut self.phase, Phase::CLOSED);
        self.phase = before.on(now, input, &mut effects);
        effects
    }

    /// Returns true until the container and its output have ended, or the manager closes.
    pub(super) fn is_watching(&self) -> bool {
        self.phase.is_watching()
    }

    pub(super) fn into_phase(self) -> Phase<X> {
        self.phase
    }

    /// Deadlines that the loop turns into inputs.
    pub(super) fn timers(&self) -> Timers {
        let timers = Timers {
            counts: self.counts_at,
            ..Timers::default()
        };
        match &self.phase {
            Phase::Running {
                limits,
                silence,
                acknowledge_by,
            } => Timers {
                acknowledge: *acknowledge_by,
                time_limit: limits.time_limit_at,
                silence: silence.map(|silence| silence.at),
                ..timers
            },
            Phase::Drained { limits, .. } => Timers {
                time_limit: limits.time_limit_at,
                ..timers
            },
            Phase::Exited {
                persist_at,
                acknowledge_by,
                ..
            } => Timers {
                acknowledge: *acknowledge_by,
                seal_overdue: *persist_at,
                ..timers
            },
            Phase::Done { .. } | Phase::Closing { .. } => Timers::default(),
        }
    }

    /// Sources that the loop polls.
    pub(super) fn sources(&self) -> Sources {
        match &self.phase {
            Phase::Running {
                limits,
                acknowledge_by,
                ..
            } => Sources {
                container: true,
                output: true,
                recorded: acknowledge_by.is_some(),
                output_limit: limits.stop_at_output_limit,
            },
            Phase::Drained { limits, .. } => Sources {
                container: true,
                output: false,
                recorded: false,
                output_limit: limits.stop_at_output_limit,
            },
            Phase::Exited { acknowledge_by, .. } => Sources {
                container: false,
                output: true,
                recorded: acknowledge_by.is_some(),
                output_limit: false,
            },
            Phase::Done { .. } => Sources::default(),
            Phase::Closing {
                container_runs,
                output_open,
            } => Sources {
                container: *container_runs,
                output: *output_open,
                ..Sources::default()
            },
        }
    }
}

impl Timers {
    /// The timer that expires first.
    pub(super) fn next(&self) -> Option<(Instant, Timer)> {
        [
            (self.acknowledge, Timer::Acknowledge),
            (self.time_limit, Timer::TimeLimit),
            (self.silence, Timer::Silence),
            (self.seal_overdue, Timer::SealOverdue),
            (self.counts, Timer::Counts),
        ]
        .into_iter()
        .filter_map(|(at, timer)| at.map(|at| (at, timer)))
        .min_by_key(|(at, _)| *at)
    }
}

impl<X: ExitReport> Phase<X> {
    /// Stands in while a phase is replaced.
    const CLOSED: Self = Self::Closing {
        container_runs: false,
        output_open: false,
    };

    fn on(self, now: Instant, input: Input<X>, effects: &mut Effects) -> Self {
        match input {
            Input::Exited(exit) => self.on_exit(now, exit, effects),
            Input::OutputEnded(output) => self.on_output_end(output, effects),
            Input::Recorded | Input::AcknowledgeDue => self.on_recorded(effects),
            Input::OutputLimit => self.on_output_limit(effects),
            Input::TimeLimit => self.on_time_limit(effects),
            Input::Silent { last_output } => self.on_silence(now, last_output, effects),
            Input::SealOverdue => self.on_seal_overdue(effects),
            Input::Closing => self.on_closing(),
            Input::Stop(request) => {
                if self.container_runs() {
                    effects.push(Effect::Stop(request));
                }
                self
            }
            Input::Note(record) => {
                effects.push(Effect::Record(record));
                self
            }
            Input::Usage(usage) => {
                if self.is_watching() && self.container_runs() {
                    effects.push(Effect::PublishUsage(usage));
                }
                self
            }
            Input::CountsDue => {
                if self.is_watching() {
                    effects.push(Effect::PublishCounts);
                }
                self
            }
        }
    }

    fn container_runs(&self) -> bool {
        match self {
            Self::Running { .. } | Self::Drained { .. } => true,
            Self::Exited { .. } | Self::Done { .. } => false,
            Self::Closing { container_runs, .. } => *container_runs,
        }
    }

    fn is_watching(&self) -> bool {
        !matches!(self, Self::Done { .. } | Self::Closing { .. })
    }

    fn on_exit(self, now: Instant, exit: X, effects: &mut Effects) -> Self {
        match self {
            Self::Running { acknowledge_by, .. } => {
                effects.push(Effect::PublishEnding(exit.ending().clone()));
                effects.push(Effect::LimitSilentOutput);
                Self::Exited {
                    exit,
                    at: now,
                    persist_at: Some(now + UNSEALED),
                    acknowledge_by,
                }
            }
            Self::Drained { output, .. } => {
                effects.push(Effect::PublishEnding(exit.ending().clone()));
                Self::done(exit, now, output, effects)
            }
            // A container ends once.
            Self::Exited { .. } | Self::Done { .. } | Self::Closing { .. } => self,
        }
    }

    fn on_output_end(self, mut output: PumpOutcome, effects: &mut Effects) -> Self {
        if matches!(self, Self::Running { .. } | Self::Exited { .. }) {
            // The container may run for long yet: that its log is blocked is reported now.
            effects.extend(output.failed.take().map(Effect::ReportBlocked));
        }
        match self {
            Self::Running {
                limits,
                acknowledge_by,
                ..
            } => {
                effects.extend(acknowledge_by.map(|_| Effect::AcknowledgeStart));
                Self::Drained { limits, output }
            }
            Self::Exited {
                exit,
                at,
                acknowledge_by,
                ..
            } => {
                effects.extend(acknowledge_by.map(|_| Effect::AcknowledgeStart));
                Self::done(exit, at, output, effects)
            }
            Self::Closing { container_runs, .. } => Self::Closing {
                container_runs,
                output_open: false,
            },
            Self::Drained { .. } | Self::Done { .. } => self,
        }
    }

    fn done(exit: X, at: Instant, output: PumpOutcome, effects: &mut Effects) -> Self {
        effects.push(Effect::PublishCounts);
        effects.push(Effect::ReleasePermit);
        Self::Done { exit, at, output }
    }

    fn on_recorded(mut self, effects: &mut Effects) -> Self {
        match &mut self {
            Self::Running { acknowledge_by, .. } | Self::Exited { acknowledge_by, .. } => {
                let pending = acknowledge_by.take();
                effects.extend(pending.map(|_| Effect::AcknowledgeStart));
            }
            Self::Drained { .. } | Self::Done { .. } | Self::Closing { .. } => {}
        }
        self
    }

    /// The limits, while they can stop the container.
    fn limits(&mut self) -> Option<&mut Limits> {
        match self {
            Self::Running { limits, .. } | Self::Drained { limits, .. } => Some(limits),
            Self::Exited { .. } | Self::Done { .. } | Self::Closing { .. } => None,
        }
    }

    fn on_output_limit(mut self, effects: &mut Effects) -> Self {
        if let Some(limits) = self.limits()
            && std::mem::take(&mut limits.stop_at_output_limit)
        {
            effects.push(Effect::stop(StopCause::OutputLimit));
        }
        self
    }

    fn on_time_limit(mut self, effects: &mut Effects) -> Self {
        let limits = self.limits();
        if limits.is_some_and(|limits| limits.time_limit_at.take().is_some()) {
            effects.push(Effect::stop(StopCause::TimeLimit));
        }
        self
    }

    fn on_silence(
        mut self,
        now: Instant,
        last_output: Option<Instant>,
        effects: &mut Effects,
    ) -> Self {
        if let Self::Running {
            silence: armed @ Some(_),
            ..
        } = &mut self
            && let Some(silence) = armed
        {
            let since_output = last_output.map(|last| last + silence.limit);
            silence.at = since_output.map_or(silence.at, |at| at.max(silence.at));
            if silence.at <= now {
                *armed = None;
                effects.push(Effect::stop(StopCause::SilenceLimit));
            }
        }
        self
    }

    fn on_seal_overdue(mut self, effects: &mut Effects) -> Self {
        if let Self::Exited {
            exit, persist_at, ..
        } = &mut self
            && persist_at.take().is_some()
        {
            effects.push(Effect::PersistEnding(exit.ending().clone()));
        }
        self
    }

    fn on_closing(self) -> Self {
        let (container_runs, output_open) = match self {
            Self::Running { .. } => (true, true),
            Self::Drained { .. } => (true, false),
            Self::Exited { .. } => (false, true),
            Self::Done { .. } | Self::Closing { .. } => return self,
        };
        Self::Closing {
            container_runs,
            output_open,
        }
    }
}

impl Effect {
    /// A stop by a limit, with the grace of the spec.
    fn stop(cause: StopCause) -> Self {
        Self::Stop(StopRequest { cause, grace: None })
    }
}
