//! From the end of a container to the seal: evidence, replay, and the last record.

use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt;
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::audit::{Event as Record, Gap, GapReason, RecordRef, Resume, ResumeCause};
use crate::capture::{Capture, Progress, PumpEnd, Reading, Signals, TAIL_RECORDS, Tail};
use crate::error::{Error, Result, RuntimeError};
use crate::events::EventKind;
use crate::monitor::context::Context;
use crate::monitor::wait::{Backoff, Ended, another};
use crate::monitor::{Monitor, WatchOutcome};
use crate::outcome::{Ending, Evidence, Seal, Stream, Verdict};
use crate::root::RunFile;
use crate::runtime::{LogFidelity, LogsRequest};
use crate::sink::{RecordVisitor, Resumed};
use crate::spec::{Backstop, ContainerId, KeepContainer, RunRecord};
use crate::timestamp::Timestamp;

/// A tap that ended longer than this before its container is not taken for whole.
pub(crate) const EARLY: Duration = Duration::from_secs(1);
/// How long after its end a run may be unsealed before the end is written down.
pub(crate) const UNSEALED: Duration = Duration::from_secs(1);
/// How much earlier than it says an engine may give up on output.
const MARGIN: Duration = Duration::from_millis(200);
/// How long the tail of the engine's log may take, and how large it may be.
const TAIL_TIME: Duration = Duration::from_secs(30);
const TAIL_BYTES: usize = 8 << 20;
/// How often the removal of a container is tried before it is left to the next opening.
const REMOVALS: u32 = 3;

/// What one try to get at the rest of the output came to.
struct Remainder {
    evidence: Evidence,
    gaps: Vec<Gap>,
}

impl Monitor {
    /// Captures the rest, and seals the file: tries until it succeeds. `None`: the manager closes,
    /// and what stands in the way is left to the next opening.
    pub(crate) async fn finish(
        &mut self,
        mut file: RunFile,
        mut capture: Capture,
        mut watched: WatchOutcome,
    ) -> Option<RunFile> {
        let mut backoff = Backoff::new();
        let seal = loop {
            let mut ended = file.clone();
            let context = Arc::clone(&self.context);
            let ending = watched.ended.ending.clone();
            let tried = {
                let tried = self.try_finish(&file, &mut capture, &mut watched);
                tokio::pin!(tried);
                tokio::select! {
                    biased;
                    tried = &mut tried => tried,
                    () = sleep(UNSEALED) => {
                        persist_ending(&context, &mut ended, &ending).await;
                        tried.await
                    }
                }
            };
            file.ending = ended.ending;
            match tried {
                Ok(seal) => break seal,
                Err(error) => {
                    self.report_blocked(&error);
                    self.tell_gaps(capture.stats());
                    persist_ending(&self.context, &mut file, &ending).await;
                    let closing = &self.context.closing;
                    closing.run_until_cancelled(backoff.pause()).await?;
                }
            }
        };
        file.seal = Some(seal);
        self.tell_gaps(capture.stats());
        self.close(&file, capture.progress.last_lines()).await;
        Some(file)
    }

    /// Writes down that a run is sealed, and tells everyone.
    pub(crate) async fn close(&mut self, file: &RunFile, last_lines: Vec<String>) {
        let sealed = RunFile {
            ending_if_missing: None,
            ..file.clone()
        };
        let recorded = self
            .context
            .on_disk("record the end in", move |root| {
                root.sweep_run(&sealed.record.run);
                root.write_run(&sealed)
            })
            .await;
        if let Err(error) = recorded {
            // The seal is in the audit file, which wins; the next opening writes it down.
            tracing::warn!(run = %self.place.run, error = %error.chain(), "run.json is behind");
        }
        self.status.send_modify(|status| {
            status.seal = file.seal.clone();
            status.problem = None;
            status.last_lines = last_lines;
            status.ownership_known = true;
            status.elsewhere = false;
        });
        if let Some(seal) = &file.seal {
            self.emit(EventKind::from(seal));
        }
    }

    async fn try_finish(
        &mut self,
        file: &RunFile,
        capture: &mut Capture,
        watched: &mut WatchOutcome,
    ) -> Result<Seal> {
        if capture.needs_log()
            && let Some(seal) = self.resume_log(file, capture).await?
        {
            return Ok(seal);
        }
        while let Ok(note) = self.notes.try_recv() {
            watched.left.push(note);
        }
        let mut left = watched.left.clone();
        let requests = self.foreign_records().await?;
        left.extend(requests.iter().map(|(_, record)| record.clone()));
        // An earlier try may have come so far.
        left.retain(|record| !capture.progress.contains(record));
        capture.write(left).await?;
        watched.left.clear();
        let recorded = requests.into_iter().map(|(path, _)| path).collect();
        self.forget_requests(recorded).await?;

        let mut rest = self.capture_rest(file, capture, watched).await?;
        rest.gaps.extend(self.late_drain(capture, watched));
        rest.gaps.extend(past_limit(capture, rest.evidence));
        if watched.ended.engine_restarted {
            rest.gaps.push(Gap::possible(GapReason::EngineRestarted));
        }
        capture.finish_lines().await?;
        let mut gaps = Vec::new();
        for gap in rest.gaps {
            if !capture.progress.has_gap(gap.reason, gap.stream) {
                gaps.push(Record::Gap(gap));
            }
        }
        capture.write(gaps).await?;
        let progress = &capture.progress;
        let seal = Seal {
            ts: Timestamp::now(),
            exit: watched.ended.ending.clone(),
            verdict: match progress {
                Progress { gaps: 1.., .. } => Verdict::Gap,
                Progress { lossy: true, .. } => Verdict::Lossy,
                _ => Verdict::Complete,
            },
            evidence: rest.evidence,
            records: progress.records,
            bytes: progress.bytes(),
            gaps: progress.gaps,
            stopped: progress.stopped.or(self.stopper.cause),
            container: file.record.container.clone(),
            image_digest: progress
                .started
                .as_ref()
                .and_then(|started| started.image_digest.clone()),
            // Of so few digits that it reads back as it was written.
            usage: self.status.borrow().usage.map(Box::new),
            capture_seconds: watched.at.elapsed().as_micros() as f64 / 1e6,
            sha256: String::new(),
        };
        capture.seal(seal).await
    }

    /// Opens the log again after the sink has failed. `Some`: it is sealed already.
    async fn resume_log(&mut self, file: &RunFile, capture: &mut Capture) -> Result<Option<Seal>> {
        let (progress, visit) = reading();
        let resumed = self.context.sink.resume(&self.place, visit).await?;
        let progress = read(&progress);
        if let Some(record) = &progress.record {
            self.check_place(record)?;
        }
        let mut records = Vec::new();
        match resumed {
            Resumed::Sealed(seal) => return Ok(Some(seal)),
            Resumed::Open { log, torn } => {
                capture.resume(progress, log);
                records.push(Record::Resume(Resume::new(ResumeCause::Sink, torn)));
            }
            Resumed::Absent => {
                self.make_place(file).await?;
                let (progress, log) = self.open_log(&file.record).await?;
                capture.resume(progress, log);
            }
        }
        records.extend(capture.unwritten());
        capture.write(records).await?;
        Ok(None)
    }

    /// Checks that a log that was read back is this run's.
    pub(crate) fn check_place(&self, record: &RunRecord) -> Result<()> {
        let path = self.context.sink.path(&self.place);
        let path = path.as_ref().unwrap_or(&self.place.dir);
        self.context.root.check_place(&self.place.run, record, path)
    }

    /// Makes the run's folder again, if someone has removed it.
    async fn make_place(&mut self, file: &RunFile) -> Result<()> {
        let file = file.clone();
        let lock = self
            .context
            .on_disk("make a folder again in", move |root| {
                let run = &file.record.run;
                if root.has(run) {
                    return Ok(None);
                }
                crate::disk::create_dir(&root.dir(run))?;
                let lock = root.lock(run)?;
                root.write_run(&file)?;
                Ok(Some(lock))
            })
            .await?;
        if lock.is_some() {
            self.lock = lock;
        }
        Ok(())
    }

    /// What other processes left to be recorded: requests to stop the run, and what they did to it.
    async fn foreign_records(&mut self) -> Result<Vec<(PathBuf, Record)>> {
        let run = self.place.run.clone();
        self.context
            .on_disk("read the requests in", move |root| Ok(root.left(&run)))
            .await
    }

    async fn forget_requests(&mut self, recorded: Vec<PathBuf>) -> Result<()> {
        if recorded.is_empty() {
            return Ok(());
        }
        self.context
            .on_disk("remove the requests in", move |_| {
                for path in recorded {
                    let _ = std::fs::remove_file(path);
                }
                Ok(())
            })
            .await
    }

    /// Gets what the tap did not give, or proves that there is nothing.
    async fn capture_rest(
        &mut self,
        file: &RunFile,
        capture: &mut Capture,
        watched: &WatchOutcome,
    ) -> Result<Remainder> {
        let rest = |evidence| Remainder {
            evidence,
            gaps: Vec::new(),
        };
        let gap = |evidence, reason| Remainder {
            evidence,
            gaps: vec![Gap::new(reason)],
        };
        let ended = &watched.ended;
        let Some(container) = file.record.container.clone() else {
            return Ok(match &ended.ending {
                Ending::Lost { .. } => gap(Evidence::None, GapReason::LogUnreadable),
                _ => rest(Evidence::NeverStarted),
            });
        };
        if ended.ending.never_started() {
            return Ok(rest(Evidence::NeverStarted));
        }
        // What it gave may be lost again.
        let whole = self.tap_is_whole(watched) && !capture.has_lost();
        let without_log = |reason| match whole {
            true => rest(Evidence::Eof),
            // One that came to an end before its time may have had nothing more to give.
            false => Remainder {
                evidence: Evidence::None,
                gaps: vec![Gap {
                    possible: watched.eof,
                    ..Gap::new(reason)
                }],
            },
        };
        if matches!(ended.ending, Ending::Removed { .. }) {
            return Ok(without_log(GapReason::Removed));
        }
        if ended.started_again {
            return Ok(without_log(GapReason::StartedAgain));
        }
        let backstop = file.record.settings.backstop;
        if backstop == Backstop::None || !self.context.runtime.capabilities().logs {
            return Ok(without_log(GapReason::NoBackstop));
        }
        let fidelity = match self.fidelity(capture, watched, &container).await {
            Ok(Some(fidelity)) => fidelity,
            Ok(None) => return Ok(without_log(GapReason::LogUnreadable)),
            Err(error) if error.is_not_found() => return Ok(without_log(GapReason::Removed)),
            Err(error) => return Err(error.into()),
        };
        let tty = file.record.settings.tty;
        if capture.limit_reached() && !capture.was_resumed() && whole {
            // How much is past the limit is known; the log has nothing to add.
            return Ok(rest(Evidence::Eof));
        }
        if whole && !ended.interrupted && self.tail_agrees(capture, &container, tty, fidelity).await
        {
            return Ok(rest(Evidence::Tail));
        }
        capture.forget_dropped();
        match self.replay(capture, &container, tty, fidelity, whole).await {
            Ok(()) if self.was_started_again(&container, ended).await? => {
                Ok(gap(Evidence::None, GapReason::StartedAgain))
            }
            Ok(()) => Ok(rest(Evidence::Replay)),
            Err(Error::Runtime(error)) if error.is_not_found() => {
                Ok(without_log(GapReason::Removed))
            }
            Err(Error::Runtime(error)) if error.is_definitive() => Ok(Remainder {
                evidence: Evidence::None,
                gaps: vec![Gap {
                    possible: whole,
                    detail: Some(self.secrets.redact(&error.to_string())),
                    ..Gap::new(GapReason::LogUnreadable)
                }],
            }),
            Err(error) => Err(error),
        }
    }

    /// When the container ended, by this machine's clock.
    ///
    /// The start, by the engine's clock, was between the request for it and its answer: if it
    /// was not, the engine's clock is off by what is missing.
    fn container_ended(&self, watched: &WatchOutcome) -> Instant {
        let Ending::Exited(exit) = &watched.ended.ending else {
            return watched.at;
        };
        match (exit.started_at, exit.finished_at, self.launched) {
            (Some(started), Some(finished), Some(launched)) => {
                let here = started.clamp(launched.asked, launched.answered.max(launched.asked));
                launched.at + here.since(launched.asked) + finished.since(started)
            }
            _ => watched.at,
        }
    }

    /// Whether the tap came to a clean end, and no earlier than the container.
    fn tap_is_whole(&self, watched: &WatchOutcome) -> bool {
        let ended = self.container_ended(watched);
        watched.eof && watched.tap_ended.is_some_and(|at| at + EARLY > ended)
    }

    /// What the engine may have given up on: it reads for some time after the end, and a client
    /// that was still connected then may have been what it waited for.
    fn late_drain(&self, capture: &mut Capture, watched: &WatchOutcome) -> Vec<Gap> {
        let drain = self.context.runtime.capabilities().drain;
        let (Some(drain), Some(tap_ended)) = (drain, watched.tap_ended) else {
            return Vec::new();
        };
        let lag = tap_ended.saturating_duration_since(self.container_ended(watched));
        if lag + MARGIN < drain.timeout {
            return Vec::new();
        }
        let bytes = capture.progress.bytes();
        let open = |stream| capture.lines().open(stream).len() as u64;
        Stream::ALL
            .into_iter()
            .filter(|stream| bytes[*stream] + open(*stream) >= drain.buffer)
            .map(|stream| Gap {
                stream: Some(stream),
                detail: Some(format!("read {:.1} s after the end", lag.as_secs_f64())),
                ..Gap::possible(GapReason::LateDrain)
            })
            .collect()
    }

    /// What the engine's log does to the bytes; `None`: it cannot be read.
    async fn fidelity(
        &mut self,
        capture: &mut Capture,
        watched: &WatchOutcome,
        container: &ContainerId,
    ) -> Result<Option<LogFidelity>, RuntimeError> {
        if let Some(inspection) = &watched.ended.inspection {
            return Ok(inspection.log.fidelity);
        }
        match &capture.progress.started {
            Some(started) if !started.log.driver.is_empty() => Ok(started.log.fidelity),
            _ => Ok(self.context.runtime.inspect(container).await?.log.fidelity),
        }
    }

    /// Whether someone has started the container again since it ended: its log has, or may have,
    /// what that execution printed too.
    async fn was_started_again(
        &mut self,
        container: &ContainerId,
        ended: &Ended,
    ) -> Result<bool, RuntimeError> {
        let then = ended.inspection.as_ref().and_then(|then| then.started_at);
        match self.context.runtime.inspect(container).await {
            Ok(now) => Ok(another(then, &now)),
            Err(error) if error.is_definitive() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the tail of the engine's log shows that the capture has all of it.
    async fn tail_agrees(
        &mut self,
        capture: &mut Capture,
        container: &ContainerId,
        tty: bool,
        fidelity: LogFidelity,
    ) -> bool {
        let read = async {
            let request = LogsRequest::tail(tty, TAIL_RECORDS);
            let mut stream = self.context.runtime.logs(container, request).await.ok()?;
            let mut tail = Tail::default();
            while let Some(chunk) = stream.next().await {
                tail.push(&chunk.ok()?);
                if tail.len() > TAIL_BYTES {
                    return None;
                }
            }
            Some(tail)
        };
        match timeout(TAIL_TIME, read).await {
            Ok(Some(tail)) => tail.agrees(&capture.progress, capture.lines(), fidelity),
            _ => false,
        }
    }

    /// Reads the engine's log from its start, and captures what comes after what there is.
    async fn replay(
        &mut self,
        capture: &mut Capture,
        container: &ContainerId,
        tty: bool,
        fidelity: LogFidelity,
        whole_tap: bool,
    ) -> Result<()> {
        let mut signals = Signals::after_exit();
        let request = LogsRequest::all(tty);
        let stream = self.context.runtime.logs(container, request).await?;
        let end = capture
            .replay(stream, fidelity, Reading::Final { whole_tap }, &mut signals)
            .await;
        match end {
            PumpEnd::Eof => Ok(()),
            PumpEnd::Broken(error) => Err(error.into()),
            PumpEnd::Silent(after) => Err(RuntimeError::Timeout {
                operation: "read the container's log",
                after,
            }
            .into()),
            PumpEnd::Stalled => Err(Error::Stalled),
            PumpEnd::Sink(error) => Err(error),
            PumpEnd::Shutdown => Err(Error::Closed),
        }
    }

    /// Removes the container of a sealed run, as the policy says (invariant 3).
    pub(crate) async fn remove_by_policy(&mut self, file: &RunFile) {
        let (Some(seal), Some(container)) = (&file.seal, &file.record.container) else {
            return;
        };
        if !may_remove(seal, file.record.settings.keep) {
            return;
        }
        let mut backoff = Backoff::new();
        for _ in 0..REMOVALS {
            // Without force: one that runs was started again by someone, and is theirs.
            match self.context.runtime.remove(container, false).await {
                Ok(()) => {
                    let container = container.clone();
                    self.emit(EventKind::ContainerRemoved { container });
                    return;
                }
                Err(error) if error.is_not_found() => return,
                Err(error) => {
                    tracing::warn!(run = %self.place.run, %container, %error, "cannot remove it");
                    if error.is_definitive() {
                        return;
                    }
                }
            }
            backoff.pause().await;
        }
    }
}

/// Writes down how a run has ended that cannot be sealed yet: the container may be gone when it
/// can be, and other processes wait for it.
pub(crate) async fn persist_ending(context: &Context, file: &mut RunFile, ending: &Ending) {
    if file.ending.is_some() {
        return;
    }
    file.ending = Some(ending.clone());
    let ended = file.clone();
    let written = context
        .on_disk("record the end in", move |root| root.write_run(&ended))
        .await;
    if written.is_err() {
        file.ending = None;
    }
}

/// What came past the output limit. Where nothing shows how much there was, that is not said.
fn past_limit(capture: &Capture, evidence: Evidence) -> Vec<Gap> {
    let dropped = capture.dropped();
    Stream::ALL
        .into_iter()
        .filter(|stream| dropped[*stream] > 0)
        .map(|stream| Gap {
            stream: Some(stream),
            bytes: (evidence != Evidence::None).then_some(dropped[stream]),
            ..Gap::new(GapReason::OutputLimit)
        })
        .collect()
}

/// Whether the container of a run with this seal is removed.
pub(crate) fn may_remove(seal: &Seal, keep: KeepContainer) -> bool {
    if seal.exit.never_started() {
        return true;
    }
    let gap = seal.verdict == Verdict::Gap;
    match keep {
        KeepContainer::Never => true,
        KeepContainer::OnGap => !gap,
        KeepContainer::OnFailure => !gap && seal.exit.success(),
        KeepContainer::Always => false,
    }
}

/// A visitor for a log that is read back, and where what it sees can be fetched from.
pub(crate) fn reading() -> (Arc<std::sync::Mutex<Progress>>, RecordVisitor) {
    let progress = Arc::new(std::sync::Mutex::new(Progress::default()));
    let seen = Arc::clone(&progress);
    let visit = Box::new(move |record: RecordRef<'_>| {
        if let Ok(mut progress) = seen.lock() {
            progress.observe(record);
        }
    });
    (progress, visit)
}

/// What a visitor has seen.
pub(crate) fn read(progress: &std::sync::Mutex<Progress>) -> Progress {
    progress
        .lock()
        .map(|mut progress| std::mem::take(&mut *progress))
        .unwrap_or_default()
}
