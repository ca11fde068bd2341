//! The one task per run: the only waiter on its container, the only writer of its state.

pub(crate) mod context;
pub(crate) mod entry;
pub(crate) mod exec;
pub(crate) mod output;
pub(crate) mod recover;
pub(crate) mod seal;
pub(crate) mod start;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod tasks;
pub(crate) mod wait;

use std::any::Any;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use crate::audit::{Event as Record, RecordRef, Start};
use crate::capture::{Capture, CaptureStats, Counts, Hub, Progress, Signals, until};
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::monitor::context::Context;
use crate::monitor::entry::{Entry, Pipe, Status, StopRequest, lock};
use crate::monitor::output::{PumpOutcome, Source, pump};
use crate::monitor::seal::{UNSEALED, persist_ending};
use crate::monitor::start::StartAck;
use crate::monitor::stats::sample;
use crate::monitor::stop::Stopper;
use crate::monitor::wait::Ended;
use crate::outcome::{Ending, StopCause};
use crate::root::{Lock, RunFile};
use crate::runtime::EngineInfo;
use crate::sink::{RunLog, RunPlace};
use crate::spec::{ContainerId, LimitAction, RunRecord, Secrets, Settings};
use crate::state::{State, Transition};
use crate::timestamp::Timestamp;

/// How often the subscribers are told how much was printed.
const TELL: Duration = Duration::from_secs(1);

/// How long the start of a run waits until it is recorded, while the run goes on.
const RECORDED: Duration = Duration::from_secs(2);

/// What a run's handles send to its monitor.
pub(crate) struct Inbox {
    pub(crate) stops: mpsc::UnboundedReceiver<StopRequest>,
    pub(crate) notes: mpsc::UnboundedReceiver<Record>,
    /// Records of input, until the watch takes it.
    pub(crate) typed: Option<mpsc::Receiver<Record>>,
}

/// The task of one run.
pub(crate) struct Monitor {
    pub(crate) context: Arc<Context>,
    pub(crate) place: RunPlace,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) stops: mpsc::UnboundedReceiver<StopRequest>,
    pub(crate) notes: mpsc::UnboundedReceiver<Record>,
    pub(crate) typed: Option<mpsc::Receiver<Record>>,
    pub(crate) pipe: Arc<Mutex<Pipe>>,
    pub(crate) hub: Arc<Hub>,
    /// When the engine was asked to start the container, and when it had answered.
    pub(crate) launched: Option<Launch>,
    /// Held while this task owns the run.
    pub(crate) lock: Option<Lock>,
    pub(crate) stopper: Stopper,
    /// What must be taken out of what the engine says.
    pub(crate) secrets: Secrets,
    /// Who has the container.
    pub(crate) engine: Option<EngineInfo>,
    /// What asks the container to stop, where the spec does not say.
    pub(crate) image_signal: Option<String>,
    /// Held while its container may run, where so many may be at once.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// When a container was started, by the clocks of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Launch {
    pub(crate) at: Instant,
    pub(crate) asked: Timestamp,
    pub(crate) answered: Timestamp,
}

/// What was seen of a run up to its end.
pub(crate) struct WatchOutcome {
    pub(crate) ended: Ended,
    pub(crate) at: Instant,
    /// When the tap ended; `None`: there was none.
    pub(crate) tap_ended: Option<Instant>,
    /// Whether that was a clean end.
    pub(crate) eof: bool,
    /// Records that were not written yet.
    pub(crate) left: Vec<Record>,
}

impl Monitor {
    pub(crate) fn new(
        context: Arc<Context>,
        place: RunPlace,
        status: watch::Sender<Status>,
        inbox: Inbox,
        pipe: Arc<Mutex<Pipe>>,
        hub: Arc<Hub>,
    ) -> Self {
        Self {
            context,
            place,
            status,
            stops: inbox.stops,
            notes: inbox.notes,
            typed: inbox.typed,
            pipe,
            hub,
            launched: None,
            lock: None,
            stopper: Stopper::default(),
            secrets: Secrets::default(),
            engine: None,
            image_signal: None,
            permit: None,
        }
    }

    /// What all that the run's task logs is in: its field `run` is the run's id, and `exec` the
    /// number of a further process.
    pub(crate) fn span(&self) -> tracing::Span {
        tracing::error_span!("run", run = %self.place.run, exec = self.place.exec)
    }

    /// A sink or a runtime of the caller's own can panic. The run is then as if its owner had
    /// died: whoever asks for it next takes it over.
    pub(crate) fn unless_it_panicked<T>(
        &self,
        result: Result<Option<T>, Box<dyn Any + Send>>,
    ) -> Option<T> {
        result.unwrap_or_else(|_| {
            tracing::error!(run = %self.place.run, "its monitor panicked");
            None
        })
    }

    /// Gives the run up: sealed, in which case its container is removed by policy, or not.
    pub(crate) async fn leave(mut self, sealed: Option<RunFile>) {
        self.hub.close();
        if let Some(file) = sealed {
            self.remove_by_policy(&file).await;
        }
        self.forget();
        // Who subscribes from here on sees that nothing more will come.
        self.stops.close();
        self.emit(EventKind::Released);
    }

    /// Frees the run's name: what asks for it from here on finds what is on the disk.
    pub(crate) fn forget(&mut self) {
        self.lock = None;
        let mut entries = self.context.entries();
        let ours = |entry: &Arc<Entry>| Arc::ptr_eq(&entry.hub, &self.hub);
        if entries.get(&self.place.run).is_some_and(ours) {
            entries.remove(&self.place.run);
        }
    }

    /// Tells everyone of a change.
    pub(crate) fn publish(&self, event: Transition) {
        let mut told = None;
        self.status.send_modify(|status| {
            let state = std::mem::replace(&mut status.state, crate::state::State::Intended);
            let after = state.clone().after(event);
            told = (after != state).then(|| happening(&after)).flatten();
            status.state = after;
        });
        if let Some(told) = told {
            self.emit(told);
        }
    }

    /// Tells the subscribers, who are told of runs: the end of a further process is not the run's.
    pub(crate) fn emit(&self, kind: EventKind) {
        if self.place.exec.is_none() {
            self.context.event_bus.emit(&self.place.run, kind);
        }
    }

    /// Tells the subscribers of what was recorded as missing.
    pub(crate) fn tell_gaps(&self, pulse: &CaptureStats) {
        for gap in pulse.take_gaps() {
            self.emit(EventKind::Gap { gap });
        }
    }

    /// Makes the run's log, with its first record, and says how far it has come.
    pub(crate) async fn open_log(
        &mut self,
        record: &RunRecord,
    ) -> Result<(Progress, Box<dyn RunLog>)> {
        let start = Start::new(record.clone());
        let log = self.context.sink.open(&self.place, &start).await?;
        let mut progress = Progress::default();
        progress.observe(RecordRef::Event(&Record::Start(Box::new(start))));
        Ok((progress, log))
    }

    /// The capture of the run, which goes on after `progress`.
    pub(crate) fn capture(
        &self,
        file: &RunFile,
        progress: Progress,
        log: Box<dyn RunLog>,
    ) -> Capture {
        let limit = file.record.settings.output_limit.map(|limit| limit.bytes);
        Capture::new(progress, Arc::clone(&self.hub), log, limit)
    }

    /// Watches a container that has started, and captures what it prints, until it has ended.
    /// Of a `new` one the start is recorded first, and then replied to. `None`: the manager closes,
    /// and what was asked for before is done, and recorded.
    pub(crate) async fn watch(
        &mut self,
        file: &mut RunFile,
        capture: &mut Capture,
        source: Source,
        started_at: Option<Timestamp>,
        new: Option<StartAck>,
    ) -> Option<WatchOutcome> {
        let context = Arc::clone(&self.context);
        let Some(container) = file.record.container.clone() else {
            return Some(WatchOutcome::never(Ending::Lost {
                reason: "its container is not known".into(),
            }));
        };
        let settings = file.record.settings.clone();
        let stop_signal = settings.stop_signal.clone().or(self.image_signal.take());
        let signal = stop_signal.unwrap_or_else(|| "SIGTERM".into());
        let deadline = file.record.deadline.map(|deadline| {
            let left = deadline.since(Timestamp::now());
            Instant::now() + left
        });
        let (events, received) = mpsc::unbounded_channel();
        let mut reply = new.map(|new| {
            let _ = events.send(Record::Started(Box::new(new.started)));
            (new.reply, new.input)
        });
        let pulse = Arc::clone(capture.stats());
        let recorded = CancellationToken::new();
        let (exited, limit) = (CancellationToken::new(), CancellationToken::new());
        let mut signals = Signals {
            events: received,
            stdin_records: self.typed.take().unwrap_or_else(|| mpsc::channel(1).1),
            exited: exited.clone(),
            shutdown: context.closing.clone(),
            limit: limit.clone(),
            recorded: recorded.clone(),
        };
        let exit = wait::wait(&*context.runtime, &container, started_at);
        let mut pump = Box::pin(pump(
            &context,
            capture,
            source,
            &container,
            &settings,
            &mut signals,
        ));
        tokio::pin!(exit);
        let stop_at_limit = settings
            .output_limit
            .is_some_and(|limit| limit.action == LimitAction::Stop);

        let mut ended: Option<(Ended, Instant)> = None;
        let mut pumped: Option<PumpOutcome> = None;
        let (mut timed_out, mut limited, mut silenced) = (false, false, false);
        let silence = settings.silence_limit;
        let mut silent_at = silence.map(|silence| Instant::now() + silence);
        let mut counted = Counts::default();
        let mut ticks = interval_at(Instant::now() + TELL, TELL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let sampler = sample(
            Arc::clone(&context),
            self.place.run.clone(),
            container.clone(),
            settings.sample,
        );
        tokio::pin!(sampler);
        let mut unsealed = None;
        let unrecorded = sleep(RECORDED);
        tokio::pin!(unrecorded);
        let over = loop {
            let mut request = None;
            let mut replied = false;
            tokio::select! {
                () = context.closing.cancelled() => break None,
                () = recorded.cancelled(), if reply.is_some() => replied = true,
                () = &mut unrecorded, if reply.is_some() => replied = true,
                mut seen = &mut exit, if ended.is_none() => {
                    seen.ending = seen.ending.redacted(|reason| self.secrets.redact(reason));
                    self.publish(Transition::Ended(seen.ending.clone()));
                    ended = Some((seen, Instant::now()));
                    unsealed = Some(Instant::now() + UNSEALED);
                    exited.cancel();
                }
                mut end = &mut pump, if pumped.is_none() => {
                    // A container may run for long yet: it is told now that its log waits.
                    if let Some(error) = end.failed.take() {
                        self.report_blocked(&error);
                    }
                    pumped = Some(end);
                }
                // Its log is slow, or stalls.
                () = until(unsealed), if unsealed.is_some() => {
                    unsealed = None;
                    if let Some((ended, _)) = &ended {
                        persist_ending(&context, file, &ended.ending).await;
                    }
                }
                Some(asked) = self.stops.recv(), if ended.is_none() => request = Some(asked),
                Some(note) = self.notes.recv(), if ended.is_none() => {
                    let _ = events.send(note);
                }
                () = self.stopper.proceed(), if ended.is_none() => {}
                () = until(deadline), if ended.is_none() && !timed_out => {
                    timed_out = true;
                    request = Some(StopRequest { cause: StopCause::TimeLimit, grace: None });
                }
                () = until(silent_at), if ended.is_none() && pumped.is_none() && !silenced => {
                    let heard = pulse.last_activity().zip(silence).map(|(heard, limit)| heard + limit);
                    silent_at = silent_at.max(heard);
                    silenced = silent_at.is_some_and(|at| at <= Instant::now());
                    let cause = StopCause::SilenceLimit;
                    request = silenced.then_some(StopRequest { cause, grace: None });
                }
                usage = &mut sampler, if ended.is_none() => {
                    let most = self.status.borrow().usage.map_or(usage, |most| most.most(usage));
                    self.status.send_modify(|status| status.usage = Some(most));
                    self.emit(EventKind::Usage { usage });
                    sampler.set(sample(Arc::clone(&context), self.place.run.clone(), container.clone(), settings.sample));
                }
                _ = ticks.tick() => {
                    self.tell_counts(&pulse, &mut counted);
                }
                () = limit.cancelled(), if ended.is_none() && stop_at_limit && !limited => {
                    limited = true;
                    request = Some(StopRequest { cause: StopCause::OutputLimit, grace: None });
                }
            }
            if let Some(request) = request {
                let _ = events.send(self.stop(&container, request, &signal, &settings));
            }
            if (replied || pumped.is_some())
                && let Some((reply, input)) = reply.take()
                && let Err(Ok(Some(_))) = reply.send(Ok(input))
            {
                // Nobody waits for it any more, and with it goes a pipe's input.
                *lock(&self.pipe) = Pipe::Ended;
                let _ = events.send(Record::note(
                    "the writer of the input has gone before the start",
                ));
            }
            match (ended.take(), pumped.take()) {
                (Some(ended), Some(pumped)) => break Some((ended, pumped)),
                (not_yet, nor) => (ended, pumped) = (not_yet, nor),
            }
        };
        let Some(((ended, at), pumped)) = over else {
            let mut stops = Vec::new();
            while ended.is_none()
                && let Ok(request) = self.stops.try_recv()
            {
                stops.push(self.stop(&container, request, &signal, &settings));
            }
            let pump = async {
                if pumped.is_none() {
                    pump.await;
                }
            };
            tokio::join!(pump, self.stopper.asked());
            let mut left = signals.drain();
            left.append(&mut stops);
            self.flush_on_shutdown(capture, left).await;
            return None;
        };
        drop(pump);
        self.tell_counts(&pulse, &mut counted);
        self.permit = None;
        Some(WatchOutcome {
            ended,
            at,
            tap_ended: pumped.tap_ended,
            eof: pumped.eof,
            left: signals.drain(),
        })
    }

    /// Begins a stop, and says what is to be recorded of it.
    pub(crate) fn stop(
        &mut self,
        container: &ContainerId,
        request: StopRequest,
        signal: &str,
        settings: &Settings,
    ) -> Record {
        let (runtime, grace) = (&self.context.runtime, settings.stop_grace);
        let stop = self
            .stopper
            .request(runtime, container, request, signal, grace);
        self.emit(EventKind::from(&stop));
        Record::Stop(stop)
    }

    /// Records what was to be recorded when the manager closes, if there is a log.
    pub(crate) async fn flush_on_shutdown(
        &mut self,
        capture: &mut Capture,
        mut records: Vec<Record>,
    ) {
        while let Ok(note) = self.notes.try_recv() {
            records.push(note);
        }
        if !capture.needs_log()
            && let Err(error) = capture.write(records).await
        {
            self.report_blocked(&error);
        }
    }

    /// Tells the subscribers how much was printed, if that has changed, and what is missing.
    fn tell_counts(&self, pulse: &CaptureStats, counted: &mut Counts) {
        let counts = pulse.counts();
        if counts != *counted {
            let Counts { bytes, records } = counts;
            self.emit(EventKind::Output { bytes, records });
            *counted = counts;
        }
        self.tell_gaps(pulse);
    }

    /// Says what keeps the run from being sealed.
    pub(crate) fn report_blocked(&self, error: &Error) {
        let reason = error.chain();
        tracing::warn!(run = %self.place.run, "{reason}");
        let told = self.status.borrow().problem.as_ref() == Some(&reason);
        if !told {
            let message = reason.clone();
            self.emit(EventKind::Warning { message });
        }
        self.status
            .send_modify(|status| status.problem = Some(reason));
    }
}

/// What is told of a run that has come to be in `state`.
fn happening(state: &State) -> Option<EventKind> {
    Some(match state {
        State::Intended => return None,
        State::Created { container } => EventKind::Created {
            container: container.clone(),
        },
        State::Running { started_at, .. } => EventKind::Started {
            started_at: *started_at,
        },
        State::Ended { ending, .. } => EventKind::Exited {
            ending: ending.clone(),
        },
    })
}

impl WatchOutcome {
    /// Of a container that never ran.
    pub(crate) fn never(ending: Ending) -> Self {
        Self::untapped(Ended {
            ending,
            interrupted: false,
            engine_restarted: false,
            started_again: false,
            inspection: None,
        })
    }

    /// Of a container that ended without a tap.
    pub(crate) fn untapped(ended: Ended) -> Self {
        Self {
            ended,
            at: Instant::now(),
            tap_ended: None,
            eof: false,
            left: Vec::new(),
        }
    }
}
