//! The pure state machine of a watched container.
//!
//! The machine does no I/O and reads no clock. The loop in [`watch`](super::watch) feeds it inputs
//! and applies the effects that it returns, in order. Runs and execs use the same machine.

use std::time::Duration;

use tokio::time::Instant;

use crate::audit::Event;
use crate::error::Error;
use crate::monitor::entry::StopRequest;
use crate::monitor::output::PumpOutcome;
use crate::monitor::seal::PERSIST_ENDING_AFTER;
use crate::outcome::{Ending, StopCause, Usage};

/// Interval between two events with the output counts.
const COUNTS_INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for the `started` record before the start is acknowledged without it.
const START_RECORD_TIMEOUT: Duration = Duration::from_secs(2);

/// The report of an end, of a container or of an exec.
pub(super) trait ExitReport {
    fn ending(&self) -> &Ending;
}

/// The phase of a watch, with exactly the data that the phase needs.
///
/// In the watch of an exec, the container stands for the process of the exec.
#[derive(Debug)]
pub(super) enum Phase<X> {
    /// The container runs, and its output is captured.
    Running {
        limits: Limits,
        silence: Option<Silence>,
        /// Deadline for the acknowledgment of the start; `None` once it is acknowledged.
        acknowledge_by: Option<Instant>,
    },
    /// The container runs, but its output has ended. The start is acknowledged.
    Drained { limits: Limits, output: PumpOutcome },
    /// The container has ended, but its output has not.
    Exited {
        exit: X,
        at: Instant,
        /// When the seal is overdue and `run.json` gets the ending; `None` once it has.
        persist_at: Option<Instant>,
        acknowledge_by: Option<Instant>,
    },
    /// The container and its output have ended.
    Done {
        exit: X,
        at: Instant,
        output: PumpOutcome,
    },
    /// The manager closes. The container may still run.
    Closing {
        container_runs: bool,
        output_open: bool,
    },
}

/// Armed limits of a running container. A limit requests one stop and is then disarmed.
#[derive(Debug, Default)]
pub(super) struct Limits {
    pub(super) time_limit_at: Option<Instant>,
    /// Unset if the output limit only truncates the log.
    pub(super) stop_at_output_limit: bool,
}

/// The armed limit on the time without output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    limit: Duration,
    /// When the limit expires, unless the container has written output meanwhile.
    at: Instant,
}

/// The initial data of a machine. The default is for an exec: no limits, no events.
#[derive(Debug, Default)]
pub(super) struct Setup {
    pub(super) limits: Limits,
    pub(super) silence_limit: Option<Duration>,
    /// Set if a caller waits until the start is recorded.
    pub(super) acknowledge_start: bool,
    /// Set if the output counts are published.
    pub(super) publish_counts: bool,
}

/// An event that the machine reacts to.
#[derive(Debug)]
pub(super) enum Input<X> {
    /// The container has ended.
    Exited(X),
    /// All sources of output have ended.
    OutputEnded(PumpOutcome),
    /// The first write to the log has ended, with success or not.
    Recorded,
    /// The output has reached its limit.
    OutputLimit,
    /// A handle requests a stop.
    Stop(StopRequest),
    /// A handle has a record for the log.
    Note(Event),
    /// The resource usage was sampled.
    Usage(Usage),
    /// The manager closes.
    Closing,
    /// The start was not recorded in time.
    AcknowledgeDue,
    /// The time limit has expired.
    TimeLimit,
    /// The silence limit has expired, unless `last_output` postpones it.
    Silent { last_output: Option<Instant> },
    /// The run was not sealed in time after its end.
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

/// An action of the watch loop.
#[derive(Debug)]
pub(super) enum Effect {
    /// Publishes the ending.
    PublishEnding(Ending),
    /// Makes the capture give up a source that stays silent after the exit.
    LimitSilentOutput,
    /// Reports that the log is blocked.
    ReportBlocked(Error),
    /// Replies to the caller that waits for the start.
    AcknowledgeStart,
    /// Begins a stop and records it.
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
    /// The container's end. Until then, also stops, notes, samples and the stop in progress.
    pub(super) container: bool,
    pub(super) output: bool,
    /// The first write to the log.
    pub(super) recorded: bool,
    pub(super) output_limit: bool,
}

/// The state machine of one watched container.
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

    /// Applies an input, and returns the effects.
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

    /// Returns the deadlines that the loop turns into inputs.
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

    /// Returns the sources that the loop polls.
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
    /// Returns the timer that expires first.
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
    /// A placeholder while a phase is replaced.
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
                    persist_at: Some(now + PERSIST_ENDING_AFTER),
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
            // Reported now, and not at the seal: the container may run for a long time.
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

    /// Returns the limits while they can stop the container.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::evidence::TapEndKind;
    use crate::outcome::Exit;

    impl ExitReport for Ending {
        fn ending(&self) -> &Ending {
            self
        }
    }

    type Case = (&'static str, fn(Instant) -> Machine<Ending>);

    const SILENCE_LIMIT: Duration = Duration::from_secs(60);
    const TIME_LIMIT: Duration = Duration::from_secs(600);

    fn ending() -> Ending {
        Ending::Exited(Exit::with_code(7))
    }

    fn running(now: Instant) -> Machine<Ending> {
        let setup = Setup {
            limits: Limits {
                time_limit_at: Some(now + TIME_LIMIT),
                stop_at_output_limit: true,
            },
            silence_limit: Some(SILENCE_LIMIT),
            acknowledge_start: true,
            publish_counts: true,
        };
        Machine::new(now, setup)
    }

    /// A recovered run, or an exec: the start is acknowledged, and there is no limit.
    fn unlimited(now: Instant) -> Machine<Ending> {
        let setup = Setup {
            limits: Limits::default(),
            silence_limit: None,
            acknowledge_start: false,
            publish_counts: false,
        };
        Machine::new(now, setup)
    }

    fn after(
        mut machine: Machine<Ending>,
        now: Instant,
        inputs: impl IntoIterator<Item = Input<Ending>>,
    ) -> Machine<Ending> {
        for input in inputs {
            machine.on(now, input);
        }
        machine
    }

    fn drained(now: Instant) -> Machine<Ending> {
        after(
            running(now),
            now,
            [Input::OutputEnded(PumpOutcome::default())],
        )
    }

    fn exited(now: Instant) -> Machine<Ending> {
        after(running(now), now, [Input::Exited(ending())])
    }

    const PHASES: [Case; 9] = [
        ("running", running),
        ("running, no limits", unlimited),
        ("drained", drained),
        ("drained, no limits", |now| {
            let end = Input::OutputEnded(PumpOutcome::default());
            after(unlimited(now), now, [end])
        }),
        ("exited", exited),
        ("exited, persisted", |now| {
            after(exited(now), now, [Input::Recorded, Input::SealOverdue])
        }),
        ("done", |now| {
            after(drained(now), now, [Input::Exited(ending())])
        }),
        ("closing, running", |now| {
            after(running(now), now, [Input::Closing])
        }),
        ("closing, exited", |now| {
            after(exited(now), now, [Input::Closing])
        }),
    ];

    /// Every input, at a time when all timers have expired.
    fn inputs() -> Vec<Input<Ending>> {
        let failed = PumpOutcome {
            failed: Some(Error::Stalled),
            ..PumpOutcome::default()
        };
        vec![
            Input::Exited(ending()),
            Input::OutputEnded(failed),
            Input::Recorded,
            Input::AcknowledgeDue,
            Input::OutputLimit,
            Input::Stop(StopRequest {
                cause: StopCause::Requested,
                grace: None,
            }),
            Input::Note(Event::note("a note")),
            Input::Usage(Usage::default()),
            Input::Closing,
            Input::TimeLimit,
            Input::Silent { last_output: None },
            Input::SealOverdue,
            Input::CountsDue,
        ]
    }

    /// The input's name. A new variant does not compile until it is in [`inputs`], too.
    fn input_name(input: &Input<Ending>) -> &'static str {
        match input {
            Input::Exited(_) => "exited",
            Input::OutputEnded(_) => "output ended",
            Input::Recorded => "recorded",
            Input::AcknowledgeDue => "acknowledge due",
            Input::OutputLimit => "output limit",
            Input::Stop(_) => "stop",
            Input::Note(_) => "note",
            Input::Usage(_) => "usage",
            Input::Closing => "closing",
            Input::TimeLimit => "time limit",
            Input::Silent { .. } => "silent",
            Input::SealOverdue => "seal overdue",
            Input::CountsDue => "counts due",
        }
    }

    fn effect_name(effect: &Effect) -> String {
        match effect {
            Effect::PublishEnding(ending) => {
                assert_eq!(*ending, self::ending());
                "publish ending".into()
            }
            Effect::LimitSilentOutput => "limit silent output".into(),
            Effect::ReportBlocked(Error::Stalled) => "report blocked".into(),
            Effect::ReportBlocked(error) => panic!("another error: {error}"),
            Effect::AcknowledgeStart => "acknowledge".into(),
            Effect::Stop(request) => {
                assert_eq!(request.grace, None);
                format!("stop {:?}", request.cause)
            }
            Effect::Record(_) => "record".into(),
            Effect::PersistEnding(ending) => {
                assert_eq!(*ending, self::ending());
                "persist ending".into()
            }
            Effect::PublishUsage(_) => "publish usage".into(),
            Effect::PublishCounts => "publish counts".into(),
            Effect::ReleasePermit => "release permit".into(),
        }
    }

    /// The phase, its open sources and its armed timers.
    fn phase(machine: &Machine<Ending>) -> String {
        let name = match &machine.phase {
            Phase::Running { .. } => "running",
            Phase::Drained { .. } => "drained",
            Phase::Exited { .. } => "exited",
            Phase::Done { .. } => "done",
            Phase::Closing { .. } => "closing",
        };
        let (timers, sources) = (machine.timers(), machine.sources());
        let waits = [
            ("container", sources.container),
            ("output", sources.output),
            ("recorded", sources.recorded),
            ("output limit", sources.output_limit),
            ("acknowledge", timers.acknowledge.is_some()),
            ("time limit", timers.time_limit.is_some()),
            ("silence", timers.silence.is_some()),
            ("seal", timers.seal_overdue.is_some()),
            ("counts", timers.counts.is_some()),
        ];
        let waits = waits.iter().filter(|(_, armed)| *armed);
        let waits: Vec<_> = waits.map(|(name, _)| *name).collect();
        format!("{name} [{}]", waits.join(", "))
    }

    fn table() -> String {
        let now = Instant::now();
        let mut table = String::new();
        for (name, make) in PHASES {
            table += &format!("{name}: {}\n", phase(&make(now)));
            for input in inputs() {
                let mut machine = make(now);
                let before = phase(&machine);
                let row = input_name(&input);
                let effects = machine.on(now + TIME_LIMIT, input);
                let effects: Vec<_> = effects.iter().map(effect_name).collect();
                let after = phase(&machine);
                let next = if after == before { "" } else { &after };
                if !effects.is_empty() || !next.is_empty() {
                    let row = format!("  {row}: {} -> {next}", effects.join(", "));
                    table += row.replace(":  ->", ": ->").trim_end_matches(" -> ");
                    table.push('\n');
                }
            }
        }
        table
    }

    /// An input that is not listed under a phase changes nothing in it.
    const TABLE: &str = "\
running: running [container, output, recorded, output limit, acknowledge, time limit, silence, counts]
  exited: publish ending, limit silent output -> exited [output, recorded, acknowledge, seal, counts]
  output ended: report blocked, acknowledge -> drained [container, output limit, time limit, counts]
  recorded: acknowledge -> running [container, output, output limit, time limit, silence, counts]
  acknowledge due: acknowledge -> running [container, output, output limit, time limit, silence, counts]
  output limit: stop OutputLimit -> running [container, output, recorded, acknowledge, time limit, silence, counts]
  stop: stop Requested
  note: record
  usage: publish usage
  closing: -> closing [container, output]
  time limit: stop TimeLimit -> running [container, output, recorded, output limit, acknowledge, silence, counts]
  silent: stop SilenceLimit -> running [container, output, recorded, output limit, acknowledge, time limit, counts]
  counts due: publish counts
running, no limits: running [container, output]
  exited: publish ending, limit silent output -> exited [output, seal]
  output ended: report blocked -> drained [container]
  stop: stop Requested
  note: record
  usage: publish usage
  closing: -> closing [container, output]
  counts due: publish counts
drained: drained [container, output limit, time limit, counts]
  exited: publish ending, publish counts, release permit -> done []
  output limit: stop OutputLimit -> drained [container, time limit, counts]
  stop: stop Requested
  note: record
  usage: publish usage
  closing: -> closing [container]
  time limit: stop TimeLimit -> drained [container, output limit, counts]
  counts due: publish counts
drained, no limits: drained [container]
  exited: publish ending, publish counts, release permit -> done []
  stop: stop Requested
  note: record
  usage: publish usage
  closing: -> closing [container]
  counts due: publish counts
exited: exited [output, recorded, acknowledge, seal, counts]
  output ended: report blocked, acknowledge, publish counts, release permit -> done []
  recorded: acknowledge -> exited [output, seal, counts]
  acknowledge due: acknowledge -> exited [output, seal, counts]
  note: record
  closing: -> closing [output]
  seal overdue: persist ending -> exited [output, recorded, acknowledge, counts]
  counts due: publish counts
exited, persisted: exited [output, counts]
  output ended: report blocked, publish counts, release permit -> done []
  note: record
  closing: -> closing [output]
  counts due: publish counts
done: done []
  note: record
closing, running: closing [container, output]
  output ended: -> closing [container]
  stop: stop Requested
  note: record
closing, exited: closing [output]
  output ended: -> closing []
  note: record
";

    #[test]
    fn every_input_has_its_effects_in_every_phase() {
        let table = table();
        let actual: Vec<_> = table.lines().collect();
        let expected: Vec<_> = TABLE.lines().collect();
        assert_eq!(actual, expected, "the table is now:\n{table}");
    }

    #[test]
    fn output_moves_the_silence_limit() {
        let start = Instant::now();
        let mut machine = running(start);
        let silence = |machine: &Machine<_>| machine.timers().silence;
        assert_eq!(silence(&machine), Some(start + SILENCE_LIMIT));

        let last = start + Duration::from_secs(20);
        let heard = Input::Silent {
            last_output: Some(last),
        };
        assert!(machine.on(start + SILENCE_LIMIT, heard).is_empty());
        assert_eq!(silence(&machine), Some(last + SILENCE_LIMIT));

        // Output before the watch began does not shorten the limit.
        let before = start.checked_sub(Duration::from_secs(9));
        let heard = Input::Silent {
            last_output: before,
        };
        assert!(machine.on(start + SILENCE_LIMIT, heard).is_empty());
        assert_eq!(silence(&machine), Some(last + SILENCE_LIMIT));

        let heard = Input::Silent {
            last_output: Some(last),
        };
        let effects = machine.on(last + SILENCE_LIMIT, heard);
        assert!(
            matches!(&effects[..], [Effect::Stop(stop)] if stop.cause == StopCause::SilenceLimit)
        );
        assert_eq!(silence(&machine), None);
    }

    #[test]
    fn a_limit_asks_for_one_stop() {
        let now = Instant::now();
        for make in [running, drained] {
            let mut machine = make(now);
            assert_eq!(machine.on(now, Input::TimeLimit).len(), 1);
            assert_eq!(machine.on(now, Input::OutputLimit).len(), 1);
            assert!(machine.on(now, Input::TimeLimit).is_empty());
            assert!(machine.on(now, Input::OutputLimit).is_empty());
        }
    }

    #[test]
    fn limits_survive_the_end_of_the_output() {
        let now = Instant::now();
        let mut machine = running(now);
        machine.on(now, Input::TimeLimit);
        let mut machine = after(machine, now, [Input::OutputEnded(PumpOutcome::default())]);
        assert_eq!(machine.timers().time_limit, None);
        assert_eq!(machine.on(now, Input::OutputLimit).len(), 1);
    }

    #[test]
    fn a_start_is_acknowledged_once() {
        let now = Instant::now();
        for input in [Input::Recorded, Input::AcknowledgeDue] {
            let mut machine = after(running(now), now, [input]);
            assert!(machine.on(now, Input::Recorded).is_empty());
            machine.on(now, Input::Exited(ending()));
            let effects = machine.on(now, Input::OutputEnded(PumpOutcome::default()));
            let names: Vec<_> = effects.iter().map(effect_name).collect();
            assert_eq!(names, ["publish counts", "release permit"]);
        }
    }

    #[test]
    fn the_first_timer_to_expire_is_next() {
        let now = Instant::now();
        let next = |machine: &Machine<_>| machine.timers().next();
        let counts = now + COUNTS_INTERVAL;
        let mut machine = running(now);
        assert_eq!(next(&machine), Some((counts, Timer::Counts)));

        machine.on(now + SILENCE_LIMIT, Input::CountsDue);
        let acknowledge = now + START_RECORD_TIMEOUT;
        assert_eq!(next(&machine), Some((acknowledge, Timer::Acknowledge)));

        machine.on(now, Input::Recorded);
        assert_eq!(next(&machine), Some((now + SILENCE_LIMIT, Timer::Silence)));

        machine.on(now, Input::Exited(ending()));
        assert_eq!(
            next(&machine),
            Some((now + PERSIST_ENDING_AFTER, Timer::SealOverdue))
        );
        assert_eq!(next(&unlimited(now)), None);
    }

    #[test]
    fn the_end_keeps_the_exit_and_the_output() {
        let now = Instant::now();
        let later = now + Duration::from_secs(3);
        let output = || {
            Input::OutputEnded(PumpOutcome {
                tap_end: Some((now, TapEndKind::Clean)),
                failed: None,
            })
        };
        let exit = || Input::Exited(ending());
        for (inputs, expected_at) in [([exit(), output()], now), ([output(), exit()], later)] {
            let [first, second] = inputs;
            let machine = after(running(now), now, [first]);
            let machine = after(machine, later, [second]);
            let Phase::Done { exit, at, output } = machine.into_phase() else {
                panic!("the watch is not done");
            };
            assert_eq!((exit, at), (ending(), expected_at));
            assert_eq!(output.tap_end, Some((now, TapEndKind::Clean)));
        }
    }
}
