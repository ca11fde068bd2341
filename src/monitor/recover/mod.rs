//! Taking over runs whose owner has gone. Recovery starts nothing.

pub(crate) mod foreign;

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::Instrument;

use crate::audit::{
    Action, Event as Record, Gap, GapReason, Interaction, Resume, ResumeCause, Started,
};
use crate::capture::Capture;
use crate::disk;
use crate::error::{Error, Result};
use crate::monitor::context::Context;
use crate::monitor::entry::{Entry, GivenUp, Pipe, lock};
use crate::monitor::output::Source;
use crate::monitor::recover::foreign::LOOK;
use crate::monitor::seal::{may_remove, read, reading};
use crate::monitor::wait::{self, Backoff, Ended, another};
use crate::monitor::{Monitor, WatchOutcome, exec};
use crate::outcome::Ending;
use crate::root::{Root, RunFile};
use crate::runtime::{
    ContainerStatus, Continuity, EngineInfo, Inspection, OwnedContainer, Runtime,
};
use crate::sink::Resumed;
use crate::spec::{Backstop, ContainerId, RunId, RunRecord, Settings, Stdin};
use crate::state::Transition;
use crate::timestamp::Timestamp;

/// How long one whose log or engine does not answer keeps others from being taken over.
const HELD: Duration = Duration::from_secs(2);

/// So many runs are looked at by one thread.
const FEW: usize = 256;

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// What is not sealed.
#[derive(Default)]
struct Unsealed {
    runs: Vec<RunId>,
    /// Runs that are, of which a further process is not.
    execs: Vec<RunId>,
}

impl Unsealed {
    fn among(root: &Root, runs: &[RunId]) -> Self {
        let mut open = Self::default();
        for run in runs {
            // What cannot be read is for its monitor to say.
            if !matches!(root.read_run(run), Ok(Some(file)) if file.seal.is_some()) {
                open.runs.push(run.clone());
            } else if !root.open_execs(run).is_empty() {
                open.execs.push(run.clone());
            }
        }
        open
    }

    fn and(mut self, other: Self) -> Self {
        self.runs.extend(other.runs);
        self.execs.extend(other.execs);
        self
    }
}

/// Takes over every run that is not sealed, and sweeps up containers that sealed runs left.
pub(crate) async fn scan(context: Arc<Context>) {
    let closing = context.closing.clone();
    tokio::select! {
        () = scan_all(&context) => {}
        () = closing.cancelled() => {}
    }
}

async fn scan_all(context: &Arc<Context>) {
    let listed = context
        .on_disk("list", |root| {
            root.sweep();
            let runs = root.runs()?;
            // Many are read by all cores.
            let share = runs.len().div_ceil(cores()).max(FEW);
            Ok(thread::scope(|scope| {
                let shares = runs.chunks(share).map(|share| {
                    let look = || Unsealed::among(root, share);
                    // Where no thread is to be had, it is done here.
                    thread::Builder::new()
                        .spawn_scoped(scope, look)
                        .map_err(|_| look())
                });
                let shares: Vec<_> = shares.collect();
                let parts = shares.into_iter().map(|share| match share {
                    Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                    Err(part) => part,
                });
                parts.fold(Unsealed::default(), Unsealed::and)
            }))
        })
        .await;
    let Unsealed {
        runs: unsealed,
        execs: unsealed_execs,
    } = listed.unwrap_or_else(|error| {
        tracing::error!(error = %error.chain(), "cannot list the runs to recover");
        Default::default()
    });
    for run in unsealed_execs {
        exec::seal_lost(context, &run).await;
    }
    let entries = unsealed.iter().map(|run| take_over(context, run)).collect();
    context.scanned.send_replace(Some(entries));

    let mut backoff = Backoff::new();
    let found = loop {
        match context.runtime.find(context.root.id()).await {
            Ok(found) => break found,
            Err(error) if error.is_definitive() => {
                tracing::warn!(%error, "cannot look for containers that were left");
                break Vec::new();
            }
            Err(error) => tracing::warn!(%error, "cannot look for containers that were left yet"),
        }
        backoff.pause().await;
    };
    for found in found {
        sweep(context, found).await;
    }
    context.swept.send_replace(true);
}

/// Removes a container that nobody owns any more: of a run that is sealed, by policy; and one
/// that was never started, of a run that is not there.
async fn sweep(context: &Arc<Context>, found: OwnedContainer) {
    if context.entries().contains_key(&found.run) {
        return;
    }
    let run = found.run.clone();
    let known = context
        .on_disk("read", move |root| {
            if !root.has(&run) {
                return Ok(Some(None));
            }
            let _lock = root.lock(&run)?;
            Ok(root
                .read_run(&run)?
                .filter(|file| file.seal.is_some())
                .map(Some))
        })
        .await;
    let remove = match known {
        Ok(Some(None)) => found.status == ContainerStatus::Created,
        Ok(Some(Some(RunFile {
            record,
            seal: Some(seal),
            ..
        }))) => found.status == ContainerStatus::Created || may_remove(&seal, record.settings.keep),
        _ => false,
    };
    if remove {
        // Without force: what runs is not ours to end.
        let removed = context.runtime.remove(&found.container, false).await;
        tracing::info!(run = %found.run, container = %found.container, ?removed, "swept");
    }
}

/// The entry of a run that is not sealed; made, with a monitor that takes the run over, where
/// there is none.
pub(crate) fn take_over(context: &Arc<Context>, id: &RunId) -> Arc<Entry> {
    let mut entries = context.entries();
    if let Some(entry) = entries.get(id) {
        return Arc::clone(entry);
    }
    let (entry, monitor) = context.monitor(context.place(id));
    entries.insert(id.clone(), Arc::clone(&entry));
    drop(entries);
    let span = monitor.span();
    context.tasks.spawn(monitor.recover().instrument(span));
    entry
}

impl Monitor {
    /// Takes a run over, once no live process owns it, and sees it to its end.
    async fn recover(mut self) {
        let context = Arc::clone(&self.context);
        let sealed = tokio::select! {
            biased;
            sealed = AssertUnwindSafe(self.take_over_and_watch()).catch_unwind() => sealed,
            () = context.left() => Ok(None),
        };
        let sealed = self.unless_it_panicked(sealed);
        self.leave(sealed).await;
    }

    async fn take_over_and_watch(&mut self) -> Option<RunFile> {
        let context = Arc::clone(&self.context);
        // Where its owner has sealed it, that removes what is to be removed.
        let (permit, unwatched) = self.wait_for_ownership(&context.recoveries).await?;
        let mut permit = Some(permit);
        let mut backoff = Backoff::new();
        let mut opened = None;
        let taken = loop {
            // A stop is not held up by a log or an engine that does not answer.
            let mut stops = std::mem::replace(&mut self.stops, mpsc::unbounded_channel().1);
            let mut stopper = std::mem::take(&mut self.stopper);
            let tried = async {
                let tried = self.try_to_take_over(&mut opened);
                tokio::pin!(tried);
                tokio::select! {
                    biased;
                    tried = &mut tried => return tried,
                    () = sleep(HELD) => permit = None,
                }
                tried.await
            };
            let unwatched = unwatched.as_ref();
            let tried = stopper
                .meanwhile(&context, unwatched, &mut stops, tried)
                .await?;
            let ends = match &tried {
                Ok(_) => true,
                Err(error) => {
                    self.report_blocked(error);
                    // An engine that does not answer is waited for.
                    if !matches!(error, Error::Runtime(error) if !error.is_definitive()) {
                        self.mark_ownership_known();
                    }
                    self.give_up_if_permanent(error)
                }
            };
            if !ends {
                drop(permit.take());
                let again = async {
                    backoff.pause().await;
                    context.recoveries.acquire().await.ok()
                };
                permit = stopper
                    .meanwhile(&context, unwatched, &mut stops, again)
                    .await?;
            }
            (self.stops, self.stopper) = (stops, stopper);
            match tried {
                Ok(CaseResult::Sealed(file)) => return Some(*file),
                Ok(CaseResult::Taken(taken)) => break taken,
                Err(_) if ends => return None,
                Err(_) => {}
            }
        };
        drop(permit);
        let mut open = opened?;
        self.status.send_modify(|status| status.problem = None);
        let watched = match taken {
            Located::Ended(watched) => {
                self.publish(Transition::Ended(watched.ended.ending.clone()));
                *watched
            }
            Located::Running(source, started_at) => {
                self.publish(Transition::Started(started_at));
                self.mark_ownership_known();
                if let Some(places) = &context.concurrency {
                    self.permit = Arc::clone(places).try_acquire_owned().ok();
                }
                let (file, capture) = (&mut open.file, &mut open.capture);
                if let Some(container) = &file.record.container {
                    for stop in &capture.progress.stops {
                        self.stopper.carry_on(&context.runtime, container, stop);
                    }
                }
                self.watch(file, capture, source, started_at, None).await?
            }
        };
        self.finish(open.file, open.capture, watched).await
    }

    /// Opens the run's log, if it is not in `opened`, and finds its container. The log stays there
    /// for the next try, unless it has failed: it was resumed once.
    async fn try_to_take_over(&mut self, opened: &mut Option<Box<Open>>) -> Result<CaseResult> {
        let run = self.place.run.clone();
        let there = self.context.on_disk("look for", move |root| {
            let there = root.has(&run).then_some(());
            there.ok_or_else(|| root.no_such_run(&run))
        });
        there.await?;
        if let Some(open) = opened {
            // It may be another one since the last try.
            self.verify_run_engine(&open.file.record, open.capture.progress.started.as_ref())
                .await?;
        }
        let mut open = match opened.take() {
            Some(open) if !open.capture.needs_log() => open,
            _ => {
                match self.open_audit().await? {
                    Audit::Sealed(file) => return Ok(CaseResult::Sealed(file)),
                    Audit::Open(open) => {
                        // The run is this runtime's, and so are its further processes.
                        exec::seal_lost(&self.context, &self.place.run).await;
                        open
                    }
                }
            }
        };
        let taken = self.locate(&mut open).await;
        *opened = Some(open);
        Ok(CaseResult::Taken(taken?))
    }

    pub(crate) fn mark_ownership_known(&self) {
        self.status
            .send_modify(|status| status.ownership_known = true);
    }

    /// Whether nothing can be done about an error here; that is told.
    pub(crate) fn give_up_if_permanent(&self, error: &Error) -> bool {
        let given_up = match error {
            Error::NoSuchRun { .. } => GivenUp::Removed,
            Error::OtherRuntime { .. } => GivenUp::OtherRuntime,
            Error::OtherEngine { engine, here, .. } => {
                let engines = Some((engine.clone(), here.clone()));
                self.status
                    .send_modify(|status| status.other_engine = engines);
                GivenUp::OtherEngine
            }
            error if error.is_lasting() => GivenUp::Damaged,
            _ => return false,
        };
        self.status
            .send_modify(|status| status.given_up = Some(given_up));
        true
    }

    /// Reads what there is of the run, and opens its log.
    async fn open_audit(&mut self) -> Result<Audit> {
        let context = Arc::clone(&self.context);
        let run = self.place.run.clone();
        let file = context
            .on_disk("read", move |root| root.read_run(&run))
            .await;
        let recorded = matches!(file, Ok(Some(_)));
        // One flipped bit makes no run another runtime's: both of its files have to say so.
        let ours = |record: &RunRecord| record.runtime == context.runtime.name();
        let (mut is_ours, mut has_met) = (false, false);
        if let Ok(Some(RunFile { record, seal, .. })) = &file {
            let run = self.place.run.clone();
            let audited = context.on_disk("look at", move |root| Ok(root.audited(&run)));
            let audited = audited.await?;
            is_ours = seal.is_some() || ours(record) || audited.record.as_ref().is_some_and(ours);
            if !is_ours {
                self.is_ours(record)?;
            }
            // What is sealed needs no engine.
            if seal.is_none() && audited.seal.is_none() {
                let ids = [audited.engine_id.as_deref(), record.engine_id.as_deref()];
                has_met = self.verify_engine_id(ids).await?;
            }
        }
        let (progress, visit) = reading();
        let resumed = context.sink.resume(&self.place, visit).await?;
        let progress = read(&progress);
        if let Some(record) = &progress.record {
            self.check_place(record)?;
            if !is_ours && !matches!(resumed, Resumed::Sealed(_)) {
                self.is_ours(record)?;
            }
            if !has_met && !matches!(resumed, Resumed::Sealed(_)) {
                self.verify_run_engine(record, progress.started.as_ref())
                    .await?;
            }
        }
        let (mut file, note) = self.believed(file, progress.record.as_ref()).await?;
        let recorded = recorded && note.is_none();
        if let Some(started) = &progress.started {
            file.record.container = Some(started.container.clone());
            if started.engine_id.is_some() {
                file.record.engine_id = started.engine_id.clone();
            }
        }
        let capture = match resumed {
            Resumed::Sealed(seal) => {
                if file.record.container.is_none() {
                    file.record.container = seal.container.clone();
                }
                exec::seal_lost(&context, &self.place.run).await;
                self.publish(Transition::Ended(seal.exit.clone()));
                file.seal = Some(seal);
                // Last: whoever is told of the seal may close the manager, and what comes behind
                // it, the removal of the container, is not to be cut off.
                self.close(&file, progress.last_lines()).await;
                return Ok(Audit::Sealed(Box::new(file)));
            }
            Resumed::Open { log, torn } => {
                let mut capture = self.capture(&file, progress, log);
                let resume = Resume::new(ResumeCause::Reopened, torn);
                let mut records = vec![Record::Resume(resume)];
                records.extend(note);
                records.extend(self.lost_input(&file, capture.progress.input));
                capture.write(records).await?;
                capture
            }
            Resumed::Absent => {
                let (progress, log) = self.open_log(&file.record).await?;
                self.capture(&file, progress, log)
            }
        };
        Ok(Audit::Open(Box::new(Open {
            file,
            recorded,
            capture,
        })))
    }

    /// What became of a pipe's input whose writer was in the process that has gone.
    fn lost_input(&self, file: &RunFile, input: Option<(Action, u32)>) -> Option<Record> {
        if file.record.settings.stdin != Stdin::Pipe {
            return None;
        }
        let (action, pid) = input?;
        *lock(&self.pipe) = Pipe::Ended;
        (action == Action::AttachInput).then(|| Record::Note {
            ts: Timestamp::now(),
            text: format!(
                "the writer of the input, in process {pid}, died before its end; the container \
                 saw one"
            ),
            interaction: Some(Interaction::new(Action::InputLost, 0)),
        })
    }

    /// Refuses a run of another runtime: what this one does not find may live all the same.
    pub(crate) fn is_ours(&self, record: &RunRecord) -> Result<()> {
        if record.runtime == self.context.runtime.name() {
            return Ok(());
        }
        let runtime = record.runtime.clone();
        self.status
            .send_modify(|status| status.other_runtime = Some(runtime.clone()));
        Err(Error::OtherRuntime {
            run: self.place.run.clone(),
            runtime,
        })
    }

    /// Refuses a run of another engine: see [`meet`].
    async fn verify_engine_id(&mut self, recorded: [Option<&str>; 2]) -> Result<bool> {
        let met = verify_engine_id(&*self.context.runtime, &self.place.run, recorded).await?;
        let has_met = met.is_some();
        self.engine = met.or(self.engine.take());
        Ok(has_met)
    }

    async fn verify_run_engine(
        &mut self,
        record: &RunRecord,
        started: Option<&Started>,
    ) -> Result<bool> {
        let started = started.and_then(|started| started.engine_id.as_deref());
        self.verify_engine_id([started, record.engine_id.as_deref()])
            .await
    }

    /// Finds out where the run's container is, and writes down what that shows.
    async fn locate(&mut self, open: &mut Open) -> Result<Located> {
        let Open {
            file,
            recorded,
            capture,
        } = open;
        let found = self.find_out(file, *recorded, capture).await?;
        // What was written down of the end holds, whatever became of the container since.
        let taken = match (&file.ending, found) {
            (Some(ending), Located::Ended(mut watched)) => {
                watched.ended.ending = ending.clone();
                Located::Ended(watched)
            }
            (_, found) => found,
        };
        self.complete(file, capture).await?;
        Ok(taken)
    }

    /// What is to be run: the audit has what `run.json` had when the run began, and wins. What
    /// cannot be believed is moved aside, and that is noted.
    async fn believed(
        &mut self,
        file: Result<Option<RunFile>>,
        audited: Option<&RunRecord>,
    ) -> Result<(RunFile, Option<Record>)> {
        let Some(audited) = audited else {
            let file = file?.unwrap_or_else(|| self.unknown());
            return Ok((file, None));
        };
        let of_audit = || RunFile {
            v: 1,
            record: audited.clone(),
            ending: None,
            ending_if_missing: None,
            seal: None,
        };
        let (file, reason) = match file {
            Ok(None) => return Ok((of_audit(), None)),
            Ok(Some(mut file)) => {
                let (container, deadline, engine_id) = (
                    file.record.container.take(),
                    file.record.deadline.take(),
                    file.record.engine_id.take(),
                );
                let same = file.record == *audited;
                file.record = RunRecord {
                    container,
                    deadline,
                    engine_id,
                    ..audited.clone()
                };
                if same {
                    return Ok((file, None));
                }
                (file, "it is not what the audit file begins with".to_owned())
            }
            Err(Error::Damaged { reason, .. }) => (of_audit(), reason),
            Err(Error::Storage { source, .. }) if disk::is_irregular(&source) => {
                (of_audit(), source.to_string())
            }
            Err(error) => return Err(error),
        };
        let run = self.place.run.clone();
        let aside = self
            .context
            .on_disk("move a record aside in", move |root| root.quarantine(&run))
            .await?;
        tracing::warn!(run = %self.place.run, reason, "run.json was moved aside, to {aside}");
        let text = format!("run.json was damaged, and is {aside} now: {reason}");
        let note = Record::note(text);
        Ok((file, Some(note)))
    }

    /// Writes `run.json` again where it has less than is known now.
    async fn complete(&mut self, file: &mut RunFile, capture: &mut Capture) -> Result<()> {
        let started = capture.progress.started.as_ref();
        if let (None, Some(limit)) = (file.record.deadline, file.record.settings.time_limit) {
            let from = started.and_then(|started| started.started_at);
            let from = from.unwrap_or(file.record.created);
            file.record.deadline = Some(from.saturating_add(limit));
        }
        let known = file.clone();
        self.context
            .on_disk("record what is known in", move |root| {
                let run = &known.record.run;
                match root.read_run(run) {
                    Ok(Some(file)) if file == known => Ok(()),
                    _ => root.write_run(&known),
                }
            })
            .await
    }

    /// The record of a run whose process died before it was written.
    fn unknown(&self) -> RunFile {
        RunFile {
            v: 1,
            record: RunRecord {
                run: self.place.run.clone(),
                root: self.context.root.id().clone(),
                created: Timestamp::now(),
                runtime: self.context.runtime.name().to_owned(),
                engine_id: None,
                settings: Settings::default(),
                env: Vec::new(),
                patched: false,
                container: None,
                deadline: None,
            },
            ending: None,
            ending_if_missing: None,
            seal: None,
        }
    }

    /// Where the container is: only facts decide.
    async fn find_out(
        &mut self,
        file: &mut RunFile,
        recorded: bool,
        capture: &mut Capture,
    ) -> Result<Located> {
        let runtime = Arc::clone(&self.context.runtime);
        let started_at = capture
            .progress
            .started
            .as_ref()
            .and_then(|started| started.started_at);
        let mut unasked = false;
        let mut container = match file.record.container.clone() {
            Some(container) => container,
            None => match self.labelled().await? {
                // The engine is asked to start a container only when its id is written down; one
                // that is gone, and whose id was not, was never started. An engine gives a
                // creation up, too.
                Some(container) => {
                    unasked = recorded;
                    container
                }
                None => return Ok(Located::ended(not_created())),
            },
        };
        let mut sure = false;
        loop {
            file.record.container = Some(container.clone());
            let inspection = match runtime.inspect(&container).await {
                Ok(inspection) => inspection,
                // The id is from a file: one that was damaged must not hide a container.
                Err(error) if error.is_definitive() && !sure => {
                    sure = true;
                    match self.labelled().await? {
                        Some(found) => container = found,
                        None if error.is_not_found() => {}
                        None => return Err(error.into()),
                    }
                    continue;
                }
                Err(error) if error.is_not_found() => {
                    // Where this run's owner has removed it, that is written down.
                    return Ok(Located::ended(
                        match file.ending.as_ref().or(file.ending_if_missing.as_ref()) {
                            Some(ending) => ending.clone(),
                            None if unasked => {
                                file.record.container = None;
                                not_created()
                            }
                            None => {
                                self.publish(Transition::Created(container));
                                match runtime.capabilities().process_bound {
                                    true => Ending::Lost {
                                        reason: "it ended with the process that had started it"
                                            .into(),
                                    },
                                    false => Ending::Removed { code: None },
                                }
                            }
                        },
                    ));
                }
                Err(error) => return Err(error.into()),
            };
            self.publish(Transition::Created(container.clone()));
            if another(started_at, &inspection) {
                return Ok(Located::after_the_fact(Ended {
                    ending: Ending::Lost {
                        reason: "its container was started again by others".into(),
                    },
                    interrupted: true,
                    engine_restarted: false,
                    started_again: true,
                    inspection: Some(inspection),
                }));
            }
            if matches!(
                inspection.status,
                ContainerStatus::Running | ContainerStatus::Ended
            ) {
                // A start that was under way when its sender died has come first.
                file.ending_if_missing = None;
                if let Some(ending) = &file.ending
                    && ending.never_started()
                {
                    return Ok(Located::after_the_fact(Ended {
                        ending: ending.clone(),
                        interrupted: true,
                        engine_restarted: false,
                        started_again: true,
                        inspection: Some(inspection),
                    }));
                }
            }
            match inspection.status {
                ContainerStatus::Created => {
                    let ending = Ending::FailedToStart {
                        reason: "the process that started the run ended before its container was \
                                 started"
                            .into(),
                    };
                    match self
                        .remove_unstarted(file, &container, ending.clone())
                        .await
                    {
                        Ok(()) => return Ok(Located::ended(ending)),
                        Err(crate::error::RuntimeError::Conflict { .. }) => sleep(LOOK).await,
                        Err(error) if error.is_not_found() => sleep(LOOK).await,
                        Err(error) => return Err(error.into()),
                    }
                }
                ContainerStatus::Removing => sleep(LOOK).await,
                ContainerStatus::Running => {
                    let now = inspection.started_at;
                    self.record_started(capture, &container, inspection).await?;
                    self.record_restart(capture, &container).await?;
                    let source = match file.record.settings.backstop {
                        Backstop::Engine => Source::Follow,
                        Backstop::None => Source::None,
                    };
                    return Ok(Located::Running(source, started_at.or(now)));
                }
                ContainerStatus::Ended => {
                    let exit = wait::exit(&inspection, None);
                    self.record_started(capture, &container, inspection.clone())
                        .await?;
                    self.record_restart(capture, &container).await?;
                    return Ok(Located::after_the_fact(Ended {
                        ending: Ending::Exited(exit),
                        interrupted: true,
                        engine_restarted: false,
                        started_again: false,
                        inspection: Some(inspection),
                    }));
                }
            }
        }
    }

    /// The container that the engine has for this run, by its labels.
    async fn labelled(&mut self) -> Result<Option<ContainerId>> {
        let found = self.context.runtime.find(self.context.root.id()).await?;
        let mine = found.into_iter().find(|found| found.run == self.place.run);
        Ok(mine.map(|found| found.container))
    }

    /// Writes the `started` record that the process which died did not come to.
    async fn record_started(
        &mut self,
        capture: &mut Capture,
        container: &ContainerId,
        inspection: Inspection,
    ) -> Result<()> {
        self.image_signal = inspection.stop_signal.clone();
        if capture.progress.started.is_some() {
            return Ok(());
        }
        let started = self.started(container, Some(inspection), Vec::new()).await;
        capture
            .write(vec![Record::Started(Box::new(started))])
            .await
    }

    /// Writes a gap if the engine is another process than the one that started the container.
    async fn record_restart(
        &mut self,
        capture: &mut Capture,
        container: &ContainerId,
    ) -> Result<()> {
        let gap = Gap::possible(GapReason::EngineRestarted);
        if capture.progress.has_gap(gap.reason, gap.stream) {
            return Ok(());
        }
        match self.context.runtime.continuity(container).await {
            Ok(Continuity::Broken) => capture.write(vec![Record::Gap(gap)]).await,
            Err(error) if !error.is_definitive() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Asks the engine who it is, if it is `recorded` which one has the run's container, and refuses to
/// be another one: what this one does not find may live all the same. One flipped bit makes no
/// engine another one: all that is recorded has to say so. An engine that does not answer may be
/// any; one that does not say who it is, is taken for the one.
pub(crate) async fn verify_engine_id(
    runtime: &dyn Runtime,
    run: &RunId,
    recorded: [Option<&str>; 2],
) -> Result<Option<EngineInfo>> {
    let recorded = || recorded.into_iter().flatten();
    let Some(first) = recorded().next() else {
        return Ok(None);
    };
    let engine = match runtime.engine().await {
        Ok(engine) => engine,
        Err(error) if error.is_definitive() => return Ok(Some(EngineInfo::default())),
        Err(error) => return Err(error.into()),
    };
    match &engine.id {
        Some(here) if recorded().all(|id| id != here) => Err(Error::OtherEngine {
            run: run.clone(),
            engine: first.to_owned(),
            here: here.clone(),
        }),
        _ => Ok(Some(engine)),
    }
}

fn not_created() -> Ending {
    Ending::NotCreated {
        reason: "the process that started the run ended before its container was made".into(),
        aborted: true,
    }
}

/// What a run has of an audit.
enum Audit {
    Sealed(Box<RunFile>),
    Open(Box<Open>),
}

/// An audit that goes on.
struct Open {
    file: RunFile,
    /// Whether that is what the run's owner has written down.
    recorded: bool,
    capture: Capture,
}

/// What a try to take a run over came to.
enum CaseResult {
    Sealed(Box<RunFile>),
    Taken(Located),
}

/// Where its container was found.
enum Located {
    Running(Source, Option<Timestamp>),
    Ended(Box<WatchOutcome>),
}

impl Located {
    fn ended(ending: Ending) -> Self {
        Self::Ended(Box::new(WatchOutcome::never(ending)))
    }

    /// It ended while nobody watched.
    fn after_the_fact(ended: Ended) -> Self {
        Self::Ended(Box::new(WatchOutcome::untapped(ended)))
    }
}
