//! The watch loop: feeds the state machine of a container, and applies its effects.

use std::pin::{Pin, pin};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::audit::Event;
use crate::capture::{Capture, CaptureStats, Counts, Signals, until};
use crate::error::Result;
use crate::events::EventKind;
use crate::monitor::Monitor;
use crate::monitor::entry::{PipeState, StopRequest, lock};
use crate::monitor::evidence::TapEndKind;
use crate::monitor::launch::StartCheck;
use crate::monitor::machine::{Effect, ExitReport, Input, Limits, Machine, Phase, Setup, Timer};
use crate::monitor::output::{PumpOutcome, Source, pump};
use crate::monitor::run_file::persist_ending;
use crate::monitor::start::{StartAck, StartError};
use crate::monitor::stats::sample;
use crate::monitor::stop::DEFAULT_SIGNAL;
use crate::monitor::wait::{self, Ended};
use crate::outcome::{Ending, Usage};
use crate::root::RunFile;
use crate::runtime::InputWriter;
use crate::spec::{ContainerId, LimitAction, Settings};
use crate::state::Transition;
use crate::timestamp::Timestamp;

/// The end of a run, as its monitor has observed it.
pub(super) struct WatchOutcome {
    pub(super) ended: Ended,
    /// When the monitor observed the end.
    pub(super) at: Instant,
    /// When and how the tap ended; `None` without a tap.
    pub(super) tap_end: Option<(Instant, TapEndKind)>,
    /// Records that are not written yet.
    pub(super) unwritten: Vec<Event>,
}

impl WatchOutcome {
    /// The end of a run that no wait has observed.
    pub(super) fn unobserved(ending: Ending, untracked: bool) -> Self {
        Self::untapped(Ended {
            ending,
            interrupted: false,
            engine_restarted: false,
            started_again: false,
            untracked,
            inspection: None,
        })
    }

    /// The end of a container without a tap.
    pub(super) fn untapped(ended: Ended) -> Self {
        Self {
            ended,
            at: Instant::now(),
            tap_end: None,
            unwritten: Vec::new(),
        }
    }
}

impl ExitReport for Ended {
    fn ending(&self) -> &Ending {
        &self.ending
    }
}

/// The objects that the effects of a machine act on.
pub(super) struct Target<'a> {
    container: &'a ContainerId,
    settings: &'a Settings,
    stop_signal: String,
    /// `run.json`; `None` for an exec, which has none.
    file: Option<&'a mut RunFile>,
    /// Records on their way to the log.
    records: mpsc::UnboundedSender<Event>,
    exited: CancellationToken,
    recorded: CancellationToken,
    output_limit: CancellationToken,
    stats: Arc<CaptureStats>,
    published_counts: Counts,
    start: Option<StartReply>,
}

/// A caller that waits for the start of a run.
struct StartReply {
    reply: oneshot::Sender<Result<Option<InputWriter>, StartError>>,
    input: Option<InputWriter>,
}

/// The end of a watch.
pub(super) enum WatchEnd<X> {
    /// The container and its output have ended.
    Done {
        exit: X,
        at: Instant,
        output: PumpOutcome,
    },
    /// The manager closes. These records of stops are not written yet.
    Closing(Vec<Event>),
}

impl<'a> Target<'a> {
    /// Returns a target, and the signals that connect its pump.
    pub(super) fn new(
        monitor: &mut Monitor,
        capture: &Capture,
        container: &'a ContainerId,
        settings: &'a Settings,
        file: Option<&'a mut RunFile>,
    ) -> (Self, Signals) {
        let (records, received) = mpsc::unbounded_channel();
        let stop_signal = settings.stop_signal.clone();
        let stop_signal = stop_signal.or(monitor.image_signal.take());
        let signals = Signals {
            events: received,
            stdin_records: monitor
                .stdin_records
                .take()
                .unwrap_or_else(|| mpsc::channel(1).1),
            exited: CancellationToken::new(),
            shutdown: monitor.context.closing.clone(),
            limit: CancellationToken::new(),
            recorded: CancellationToken::new(),
        };
        let target = Self {
            container,
            settings,
            stop_signal: stop_signal.unwrap_or_else(|| DEFAULT_SIGNAL.into()),
            file,
            records,
            exited: signals.exited.clone(),
            recorded: signals.recorded.clone(),
            output_limit: signals.limit.clone(),
            stats: Arc::clone(capture.stats()),
            published_counts: Counts::default(),
            start: None,
        };
        (target, signals)
    }

    /// Queues a record for the log.
    pub(super) fn record(&self, record: Event) {
        let _ = self.records.send(record);
    }

    /// Returns a sender of records for the log.
    pub(super) fn recorder(&self) -> mpsc::UnboundedSender<Event> {
        self.records.clone()
    }

    fn acknowledge_start(&mut self, monitor: &Monitor) {
        if let Some(StartReply { reply, input }) = self.start.take()
            && let Err(Ok(Some(_))) = reply.send(Ok(input))
        {
            // The caller is gone, and the only writer of the pipe with it.
            *lock(&monitor.pipe) = PipeState::Ended;
            self.record(Event::note(
                "the writer of the input was dropped before the start",
            ));
        }
    }

    /// Returns the machine's input for an expired timer.
    fn expired<X>(&self, timer: Timer) -> Input<X> {
        match timer {
            Timer::Acknowledge => Input::AcknowledgeDue,
            Timer::TimeLimit => Input::TimeLimit,
            Timer::Silence => Input::Silent {
                last_output: self.stats.last_activity(),
            },
            Timer::SealOverdue => Input::SealOverdue,
            Timer::Counts => Input::CountsDue,
        }
    }
}

impl Monitor {
    /// Watches a started container and captures its output until both have ended.
    ///
    /// With `ack`, the start is recorded first, and then acknowledged. Returns `None` if the
    /// manager closes, after pending stops were sent and recorded.
    pub(super) async fn watch(
        &mut self,
        file: &mut RunFile,
        capture: &mut Capture,
        source: Source,
        started_at: Option<Timestamp>,
        ack: Option<StartAck>,
    ) -> Option<WatchOutcome> {
        let context = Arc::clone(&self.context);
        let Some(container) = file.record.container.clone() else {
            let ending = Ending::Lost {
                reason: "its container is unknown".into(),
            };
            return Some(WatchOutcome::unobserved(ending, false));
        };
        let settings = file.record.settings.clone();
        let machine = machine_of_run(file, ack.is_some());
        let (mut target, mut signals) =
            Target::new(self, capture, &container, &settings, Some(file));
        let mut check = StartCheck::Done;
        if let Some(ack) = ack {
            check = ack.check;
            target.record(Event::Started(Box::new(ack.started)));
            target.start = Some(StartReply {
                reply: ack.reply,
                input: ack.input,
            });
        }
        let (calls, secrets) = (self.calls.clone(), self.secrets.clone());
        let stats = Arc::clone(capture.stats());
        let exit = pin!(async {
            let ended = wait::wait_for_end(&calls, &container, started_at, &stats, check);
            let mut ended = ended.await;
            ended.ending = ended.ending.redacted(|reason| secrets.redact(reason));
            ended
        });
        // Boxed, because the future of each run stays in memory until the run ends.
        let mut output = Box::pin(pump(
            &context,
            capture,
            source,
            &container,
            &settings,
            &mut signals,
        ));
        let watched = self
            .drive(machine, &mut target, exit, output.as_mut())
            .await;
        drop(output);
        match watched {
            WatchEnd::Done { exit, at, output } => Some(WatchOutcome {
                ended: exit,
                at,
                tap_end: output.tap_end,
                unwritten: signals.drain(),
            }),
            WatchEnd::Closing(stops) => {
                let mut unwritten = signals.drain();
                unwritten.extend(stops);
                self.flush_on_shutdown(capture, unwritten).await;
                None
            }
        }
    }

    /// Drives a machine until its container and its output have ended, or the manager closes.
    pub(super) async fn drive<X: ExitReport>(
        &mut self,
        mut machine: Machine<X>,
        target: &mut Target<'_>,
        mut exit: Pin<&mut impl Future<Output = X>>,
        mut output: Pin<&mut impl Future<Output = PumpOutcome>>,
    ) -> WatchEnd<X> {
        let context = Arc::clone(&self.context);
        let (run, container) = (self.place.run.clone(), target.container.clone());
        let interval = target.settings.sample;
        let next_sample = || {
            sample(
                Arc::clone(&context),
                run.clone(),
                container.clone(),
                interval,
            )
        };
        let mut sampler = pin!(next_sample());
        while machine.is_watching() {
            let sources = machine.sources();
            let timer = machine.timers().next();
            let input = tokio::select! {
                () = context.closing.cancelled() => Input::Closing,
                exit = &mut exit, if sources.container => Input::Exited(exit),
                output = &mut output, if sources.output => Input::OutputEnded(output),
                () = target.recorded.cancelled(), if sources.recorded => Input::Recorded,
                () = target.output_limit.cancelled(), if sources.output_limit => Input::OutputLimit,
                Some(request) = self.stops.recv(), if sources.container => Input::Stop(request),
                Some(record) = self.notes.recv(), if sources.container => Input::Note(record),
                () = self.stopper.proceed(), if sources.container => continue,
                usage = &mut sampler, if sources.container => {
                    sampler.set(next_sample());
                    Input::Usage(usage)
                }
                Some(timer) = expiry(timer) => target.expired(timer),
            };
            for effect in machine.on(Instant::now(), input) {
                self.apply(effect, target).await;
            }
        }
        self.leave_watch(machine, target, output).await
    }

    /// Ends a watch. If the manager closes, pending stops are sent first.
    async fn leave_watch<X: ExitReport>(
        &mut self,
        mut machine: Machine<X>,
        target: &mut Target<'_>,
        output: Pin<&mut impl Future<Output = PumpOutcome>>,
    ) -> WatchEnd<X> {
        let sources = machine.sources();
        let mut stops = self.take_stops(&mut machine, target);
        if let Phase::Done { exit, at, output } = machine.into_phase() {
            return WatchEnd::Done { exit, at, output };
        }
        let output = async {
            if sources.output {
                output.await;
            }
        };
        // An engine that does not answer must not use up the time for the records.
        if let Some(report) = self.calls.report() {
            output.await;
            stops.push(Event::note(format!("the manager was shut down: {report}")));
        } else {
            tokio::join!(output, self.stopper.proceed_until_signaled());
        }
        WatchEnd::Closing(stops)
    }

    /// Begins the stops that were requested before the manager closes. Returns their records.
    fn take_stops<X: ExitReport>(
        &mut self,
        machine: &mut Machine<X>,
        target: &Target<'_>,
    ) -> Vec<Event> {
        let mut stops = Vec::new();
        while machine.sources().container
            && let Ok(request) = self.stops.try_recv()
        {
            for effect in machine.on(Instant::now(), Input::Stop(request)) {
                if let Effect::Stop(request) = effect {
                    stops.push(self.stop_target(request, target));
                }
            }
        }
        stops
    }

    async fn apply(&mut self, effect: Effect, target: &mut Target<'_>) {
        match effect {
            Effect::PublishEnding(ending) => self.publish(Transition::Ended(ending)),
            Effect::LimitSilentOutput => target.exited.cancel(),
            Effect::ReportBlocked(error) => self.report_blocked(&error),
            Effect::AcknowledgeStart => target.acknowledge_start(self),
            Effect::Stop(request) => {
                let stop = self.stop_target(request, target);
                target.record(stop);
            }
            Effect::Record(record) => target.record(record),
            Effect::PersistEnding(ending) => {
                if let Some(file) = target.file.as_deref_mut() {
                    persist_ending(&self.context, file, &ending).await;
                }
            }
            Effect::PublishUsage(usage) => self.publish_usage(usage),
            Effect::PublishCounts => self.publish_counts(target),
            Effect::ReleasePermit => self.permit = None,
        }
    }

    fn stop_target(&mut self, request: StopRequest, target: &Target<'_>) -> Event {
        self.stop(
            target.container,
            request,
            &target.stop_signal,
            target.settings,
        )
    }

    fn publish_usage(&self, usage: Usage) {
        self.snapshot.send_modify(|snapshot| {
            let peak = snapshot.usage.map_or(usage, |peak| peak.merge(usage));
            snapshot.usage = Some(peak);
        });
        self.emit(EventKind::Usage { usage });
    }

    /// Publishes the output counts, if they have changed, and new gaps.
    fn publish_counts(&self, target: &mut Target<'_>) {
        let counts = target.stats.counts();
        if counts != target.published_counts {
            let Counts { bytes, records, .. } = counts;
            self.emit(EventKind::Output { bytes, records });
            target.published_counts = counts;
        }
        self.emit_gaps(&target.stats);
    }
}

/// Returns the machine of a run, with the limits of its spec.
fn machine_of_run(file: &RunFile, acknowledge_start: bool) -> Machine<Ended> {
    let settings = &file.record.settings;
    let now = Instant::now();
    let time_limit_at = file.record.deadline;
    let time_limit_at = time_limit_at.map(|deadline| now + deadline.since(Timestamp::now()));
    let output_limit = settings.output_limit;
    let setup = Setup {
        limits: Limits {
            time_limit_at,
            stop_at_output_limit: output_limit
                .is_some_and(|limit| limit.action == LimitAction::Stop),
        },
        silence_limit: settings.silence_limit,
        acknowledge_start,
        publish_counts: true,
    };
    Machine::new(now, setup)
}

/// Resolves when the timer expires; never, without one. Cancel-safe.
async fn expiry(timer: Option<(Instant, Timer)>) -> Option<Timer> {
    let (at, timer) = timer.unzip();
    until(at).await;
    timer
}
