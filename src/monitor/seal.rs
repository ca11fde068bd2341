//! The seal of a run: final records, evidence for the output, and the seal.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use tokio::time::{Duration, sleep, timeout};

use crate::audit::{Event, Gap, RecordRef, Resume, ResumeCause};
use crate::capture::{Capture, Comparison, Progress, PumpEnd, Reading, Signals};
use crate::error::{Error, Result, RuntimeError};
use crate::events::EventKind;
use crate::monitor::Monitor;
use crate::monitor::context::Context;
use crate::monitor::entry::lock;
use crate::monitor::evidence::{
    Decision, EndFacts, EndingKind, EngineLog, Finding, OutputTotals, ReplayEnd, TapEnd,
    after_replay, after_tail, conclude, container_end, decide, without_container,
};
use crate::monitor::run_file::persist_ending;
use crate::monitor::wait::{Backoff, Ended, is_other_execution};
use crate::monitor::watch::WatchOutcome;
use crate::outcome::{Ending, Evidence, Seal, StopCause, Usage, Verdict};
use crate::root::RunFile;
use crate::runtime::{LogFidelity, LogsRequest};
use crate::sink::{Resumed, RunPlace};
use crate::spec::{Backstop, ContainerId, RunRecord};
use crate::timestamp::Timestamp;

/// Time from the end of a run until its ending is persisted without a seal.
pub(super) const PERSIST_ENDING_AFTER: Duration = Duration::from_secs(1);
/// Maximum duration of a read of the tail of the engine's log.
const TAIL_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of the tail of the engine's log, in bytes.
const MAX_TAIL_BYTES: usize = 8 << 20;

/// Facts for a seal that the records of the log do not contain.
pub(super) struct SealFacts {
    pub(super) ending: Ending,
    pub(super) evidence: Evidence,
    pub(super) container: Option<ContainerId>,
    pub(super) stopped: Option<StopCause>,
    pub(super) usage: Option<Usage>,
    /// The number of masked values in the output.
    pub(super) masked: Option<u64>,
    /// Time from the end of the container to the end of the capture. Zero for an exec.
    pub(super) captured: Duration,
}

/// Builds the seal of a run's log or of an exec's log. The log adds its digest.
pub(super) fn build_seal(progress: &Progress, facts: SealFacts) -> Seal {
    let verdict = Verdict::of(progress.gaps, progress.lossy, facts.evidence);
    let started = progress.started.as_ref();
    Seal {
        ts: Timestamp::now(),
        exit: facts.ending,
        verdict,
        evidence: facts.evidence,
        records: progress.records,
        bytes: progress.bytes(),
        gaps: progress.gaps,
        masked: facts.masked,
        stopped: facts.stopped,
        container: facts.container,
        image_digest: started.and_then(|started| started.image_digest.clone()),
        usage: facts.usage.map(Box::new),
        // Microseconds have few enough digits to read back as they were written.
        capture_seconds: facts.captured.as_micros() as f64 / 1e6,
        sha256: String::new(),
    }
}

impl Monitor {
    /// Captures the rest of the output and seals the log, with retries.
    ///
    /// Returns `None` if the manager closes first. The next opening of the root
    /// then seals the run.
    pub(super) async fn finish(
        &mut self,
        mut file: RunFile,
        mut capture: Capture,
        mut watched: WatchOutcome,
    ) -> Option<RunFile> {
        let mut backoff = Backoff::new();
        let cause = capture.progress.stopped.or(self.stopper.cause);
        self.snapshot
            .send_modify(|snapshot| snapshot.stop_cause = cause);
        let seal = loop {
            let sealed = self.finish_once(&mut file, &mut capture, &mut watched);
            match sealed.await {
                Ok(seal) => break seal,
                Err(error) => {
                    self.report_blocked(&error);
                    self.emit_gaps(capture.stats());
                    persist_ending(&self.context, &mut file, &watched.ended.ending).await;
                    let closing = &self.context.closing;
                    closing.run_until_cancelled(backoff.pause()).await?;
                }
            }
        };
        file.seal = Some(seal);
        #[cfg(feature = "sign")]
        self.context.mark_to_sign(&mut file);
        self.emit_gaps(capture.stats());
        // No caller waits for the copy of a seal that an audit file holds.
        let has_audit_file = self.context.sink.path(&self.place).is_some();
        if !has_audit_file {
            self.persist_seal(&file).await;
        }
        self.publish_seal(&file, capture.progress.last_lines());
        if has_audit_file {
            self.persist_seal(&file).await;
        }
        Some(file)
    }

    /// Tries once to seal the log, and persists the ending if that takes long.
    async fn finish_once(
        &mut self,
        file: &mut RunFile,
        capture: &mut Capture,
        watched: &mut WatchOutcome,
    ) -> Result<Seal> {
        let context = Arc::clone(&self.context);
        let ending = watched.ended.ending.clone();
        // `try_finish` borrows the file, so the ending goes to a copy.
        let mut ended = file.clone();
        let sealed = {
            let sealed = self.try_finish(file, capture, watched);
            tokio::pin!(sealed);
            tokio::select! {
                biased;
                sealed = &mut sealed => sealed,
                () = sleep(PERSIST_ENDING_AFTER) => {
                    persist_ending(&context, &mut ended, &ending).await;
                    sealed.await
                }
            }
        };
        file.ending = ended.ending;
        sealed
    }

    /// Publishes the seal.
    pub(super) fn publish_seal(&mut self, file: &RunFile, last_lines: Vec<String>) {
        self.snapshot.send_modify(|snapshot| {
            snapshot.seal = file.seal.clone();
            snapshot.problem = None;
            snapshot.last_lines = last_lines;
            snapshot.ownership_known = true;
            snapshot.owned_elsewhere = false;
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
        self.write_pending(capture, watched).await?;
        let finding = self.find_evidence(file, capture, watched).await?;
        capture.finish_lines().await?;
        let gaps = finding.gaps.into_iter().map(Gap::from);
        // An earlier attempt may have written some of the gaps.
        let gaps = gaps.filter(|gap| !capture.progress.has_gap(gap.reason, gap.stream));
        let gaps = gaps.map(Event::Gap).collect();
        capture.write(gaps).await?;
        let progress = &capture.progress;
        let facts = SealFacts {
            ending: watched.ended.ending.clone(),
            evidence: finding.evidence,
            container: file.record.container.clone(),
            stopped: progress.stopped.or(self.stopper.cause),
            usage: self.snapshot.borrow().usage,
            masked: capture.masking().count,
            captured: watched.at.elapsed(),
        };
        let seal = build_seal(progress, facts);
        capture.seal(seal).await
    }

    /// Writes the records that the pump has not written, and the records of other processes.
    async fn write_pending(
        &mut self,
        capture: &mut Capture,
        watched: &mut WatchOutcome,
    ) -> Result<()> {
        while let Ok(note) = self.notes.try_recv() {
            watched.unwritten.push(note);
        }
        let mut pending = watched.unwritten.clone();
        let requests = self.foreign_records().await?;
        pending.extend(requests.iter().map(|(_, record)| record.clone()));
        // An earlier attempt may have written some of the records.
        pending.retain(|record| !capture.progress.contains(record));
        capture.write(pending).await?;
        watched.unwritten.clear();
        let recorded = requests.into_iter().map(|(path, _)| path).collect();
        self.remove_requests(recorded).await
    }

    /// Opens the log again after the sink has failed.
    ///
    /// Returns the seal if the log is already sealed.
    async fn resume_log(&mut self, file: &RunFile, capture: &mut Capture) -> Result<Option<Seal>> {
        let (resumed, progress) = reopen_log(&self.context, &self.place).await?;
        if let Some(record) = &progress.record {
            self.check_place(record)?;
        }
        let mut records = Vec::new();
        match resumed {
            Resumed::Sealed(seal) => return Ok(Some(seal)),
            Resumed::Open { log, torn } => {
                capture.resume(progress, log);
                records.push(Event::Resume(Resume::new(ResumeCause::Sink, torn)));
            }
            Resumed::Absent => {
                self.restore_run_dir(file).await?;
                let (progress, log) = self.open_log(&file.record).await?;
                capture.resume(progress, log);
            }
        }
        records.extend(capture.unwritten());
        capture.write(records).await?;
        Ok(None)
    }

    /// Checks that a log that was read back belongs to this run.
    pub(super) fn check_place(&self, record: &RunRecord) -> Result<()> {
        let path = self.context.sink.path(&self.place);
        let path = path.as_ref().unwrap_or(&self.place.dir);
        self.context.root.check_place(&self.place.run, record, path)
    }

    /// Reads the records that other processes left for the run: stop requests and
    /// notes.
    async fn foreign_records(&mut self) -> Result<Vec<(PathBuf, Event)>> {
        let run = self.place.run.clone();
        self.context
            .on_disk("read the requests in", move |root| {
                Ok(root.pending_requests(&run))
            })
            .await
    }

    async fn remove_requests(&mut self, recorded: Vec<PathBuf>) -> Result<()> {
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

    /// Captures output that the tap did not deliver, or proves that the tap
    /// delivered everything.
    async fn find_evidence(
        &mut self,
        file: &RunFile,
        capture: &mut Capture,
        watched: &WatchOutcome,
    ) -> Result<Finding> {
        let mut facts = self.end_facts(file, capture, watched);
        let finding = match &file.record.container {
            None => without_container(facts.ending),
            Some(container) => {
                let tty = file.record.settings.tty;
                let log = LogSource { container, tty };
                self.settle(&mut facts, log, capture, &watched.ended)
                    .await?
            }
        };
        capture
            .finish_masking(finding.evidence != Evidence::None)
            .await?;
        let totals = OutputTotals {
            received: capture.received(),
            dropped: capture.dropped(),
        };
        Ok(conclude(&facts, &totals, finding))
    }

    /// Does the I/O that the decisions ask for until one settles the evidence.
    async fn settle(
        &mut self,
        facts: &mut EndFacts,
        log: LogSource<'_>,
        capture: &mut Capture,
        ended: &Ended,
    ) -> Result<Finding> {
        let mut decision = decide(facts);
        loop {
            decision = match decision {
                Decision::Settled(finding) => return Ok(finding),
                Decision::InspectLog => {
                    facts.log = self.inspect_log(log.container, capture).await?;
                    decide(facts)
                }
                Decision::CompareTail(fidelity) => {
                    let agrees = self.tail_agrees(capture, log, fidelity).await;
                    after_tail(agrees, fidelity)
                }
                Decision::Replay(fidelity) => {
                    // The replay delivers the bytes past the limit again.
                    capture.forget_dropped();
                    let whole_tap = facts.tap_seems_whole();
                    let replayed = self.replay(capture, log, fidelity, whole_tap).await;
                    let end = self.replay_end(replayed, log.container, ended).await?;
                    Decision::Settled(after_replay(facts, end))
                }
            };
        }
    }

    /// Collects the facts at the end of the run.
    fn end_facts(&self, file: &RunFile, capture: &Capture, watched: &WatchOutcome) -> EndFacts {
        let ended = &watched.ended;
        let capabilities = self.context.runtime.capabilities();
        let container_end = container_end(watched.at, &ended.ending, self.start_times);
        let started = capture.progress.started.as_ref();
        EndFacts {
            ending: EndingKind::new(ended),
            tap: watched
                .tap_end
                .map(|(at, kind)| TapEnd::new(kind, at, container_end, capture.lateness())),
            lost_records: capture.has_lost(),
            masking: capture.masking(),
            started_again: ended.started_again,
            backstop: file.record.settings.backstop != Backstop::None && capabilities.logs,
            log: match (&ended.inspection, started) {
                (Some(inspection), _) => EngineLog::from(capture.readable(inspection.log.fidelity)),
                (None, Some(started)) if !started.log.driver.is_empty() => {
                    EngineLog::from(capture.readable(started.log.fidelity))
                }
                _ => EngineLog::Unknown,
            },
            limit_reached: capture.limit_reached(),
            resumed: capture.was_resumed(),
            interrupted: ended.interrupted,
            engine_restarted: ended.engine_restarted,
            drain: capabilities.drain,
            log_rotates: capabilities.log_rotates && file.record.container.is_some(),
        }
    }

    async fn inspect_log(
        &mut self,
        container: &ContainerId,
        capture: &mut Capture,
    ) -> Result<EngineLog> {
        match self.context.runtime.inspect(container).await {
            Ok(inspection) => Ok(EngineLog::from(capture.readable(inspection.log.fidelity))),
            Err(error) if error.is_not_found() => Ok(EngineLog::Removed),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns true if the end of the engine's log shows that the capture has all of
    /// the log.
    async fn tail_agrees(
        &mut self,
        capture: &mut Capture,
        log: LogSource<'_>,
        fidelity: LogFidelity,
    ) -> bool {
        let expected = capture.expected_end(fidelity);
        let mut end = capture.empty_log_end(fidelity);
        let runtime = &self.context.runtime;
        let compared = async {
            let logs = runtime.logs(log.container, expected.request(log.tty));
            let mut stream = logs.await.ok()?;
            while let Some(chunk) = stream.next().await {
                end.push(&chunk.ok()?);
                if end.len() > MAX_TAIL_BYTES {
                    return None;
                }
            }
            end.finish();
            match expected.compare(&end) {
                Comparison::Equal => Some(true),
                Comparison::EqualEnd { records } => {
                    let proof = runtime.log_has_exactly(log.container, log.tty, records);
                    proof.await.ok()
                }
                Comparison::Different => None,
            }
        };
        matches!(timeout(TAIL_TIMEOUT, compared).await, Ok(Some(true)))
    }

    /// Reads the engine's log from its start, and captures what the log has after
    /// the captured output.
    async fn replay(
        &mut self,
        capture: &mut Capture,
        log: LogSource<'_>,
        fidelity: LogFidelity,
        whole_tap: bool,
    ) -> Result<()> {
        let mut signals = Signals::after_exit();
        let request = capture.with_times(LogsRequest::all(log.tty));
        let opened = self.context.runtime.logs(log.container, request).await;
        let stream = opened.inspect_err(|_| capture.forgo_times())?;
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

    /// Classifies the end of a replay. Errors that a retry may resolve stay errors.
    async fn replay_end(
        &mut self,
        replayed: Result<()>,
        container: &ContainerId,
        ended: &Ended,
    ) -> Result<ReplayEnd> {
        match replayed {
            Ok(()) => Ok(ReplayEnd::Complete {
                started_again: self.was_started_again(container, ended).await?,
            }),
            Err(Error::Runtime(error)) if error.is_not_found() => Ok(ReplayEnd::Removed),
            Err(Error::Runtime(error)) if error.is_definitive() => Ok(ReplayEnd::Refused {
                reason: self.secrets.redact(&error.to_string()),
            }),
            Err(error) => Err(error),
        }
    }

    /// Returns true if the container was started again since it ended. Its log
    /// then may hold output of that execution.
    async fn was_started_again(
        &mut self,
        container: &ContainerId,
        ended: &Ended,
    ) -> Result<bool, RuntimeError> {
        let then = ended.inspection.as_ref().and_then(|then| then.started_at);
        match self.context.runtime.inspect(container).await {
            Ok(now) => Ok(is_other_execution(then, &now)),
            Err(error) if error.is_definitive() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Where the engine's log of a run is read from.
#[derive(Clone, Copy)]
struct LogSource<'a> {
    container: &'a ContainerId,
    tty: bool,
}

/// Opens a log again, and returns the progress that its records show.
pub(super) async fn reopen_log(context: &Context, place: &RunPlace) -> Result<(Resumed, Progress)> {
    let progress = Arc::new(Mutex::new(Progress::default()));
    let seen = Arc::clone(&progress);
    let visit = Box::new(move |record: RecordRef<'_>| lock(&seen).observe(record));
    let resumed = context.sink.resume(place, visit).await?;
    let progress = std::mem::take(&mut *lock(&progress));
    Ok((resumed, progress))
}
