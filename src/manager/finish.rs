//! From the end of a container to the seal: evidence, replay, and the last record.

use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::exit::Backoff;
use super::monitor::{Monitor, Watched};
use super::root::{Root, RunFile};
use crate::capture::{Capture, Progress, PumpEnd, Reading, Signals, TAIL_RECORDS, Tail};
use crate::runtime::{Fidelity, LogsRequest, RuntimeError};
use crate::sink::{
    Event as Record, Gap, GapReason, RecordRef, Resume, ResumeCause, Resumed, Stop, Visit,
};
use crate::{
    Backstop, ContainerId, Ending, Error, Evidence, KeepContainer, Result, RunId, Seal, Stream,
    Timestamp, Verdict,
};

/// A tap that ended longer than this before its container is not taken for whole.
const EARLY: Duration = Duration::from_secs(1);
/// How much earlier than it says an engine may give up on output.
const MARGIN: Duration = Duration::from_millis(200);
/// How long the tail of the engine's log may take, and how large it may be.
const TAIL_TIME: Duration = Duration::from_secs(30);
const TAIL_BYTES: usize = 8 << 20;
/// How often the removal of a container is tried before it is left to the next opening.
const REMOVALS: u32 = 3;

/// What one try to get at the rest of the output came to.
struct Rest {
    evidence: Evidence,
    gaps: Vec<Gap>,
}

impl Monitor {
    /// Captures the rest, and seals the file: tries until it succeeds.
    pub(super) async fn finish(
        &mut self,
        mut file: RunFile,
        mut capture: Capture,
        mut watched: Watched,
    ) -> RunFile {
        let mut backoff = Backoff::new();
        let seal = loop {
            match self.try_finish(&file, &mut capture, &mut watched).await {
                Ok(seal) => break seal,
                Err(error) => {
                    self.stands_in_the_way(&error);
                    self.write_down_the_end(&mut file, &watched).await;
                    backoff.pause().await;
                }
            }
        };
        file.seal = Some(seal);
        self.close(&file, capture.progress.last_lines()).await;
        file
    }

    /// Writes down how a run has ended that cannot be sealed yet: the container may be gone when
    /// it can be, and other processes wait for it.
    async fn write_down_the_end(&mut self, file: &mut RunFile, watched: &Watched) {
        if file.ending.is_some() {
            return;
        }
        file.ending = Some(watched.ended.ending.clone());
        let ended = file.clone();
        let written = self
            .context
            .on_disk("record the end in", move |root| root.write_run(&ended))
            .await;
        if written.is_err() {
            file.ending = None;
        }
    }

    /// Writes down that a run is sealed, and tells everyone.
    pub(super) async fn close(&mut self, file: &RunFile, last_lines: Vec<String>) {
        let sealed = file.clone();
        let recorded = self
            .context
            .on_disk("record the end in", move |root| root.write_run(&sealed))
            .await;
        if let Err(error) = recorded {
            // The seal is in the audit file, which wins; the next opening writes it down.
            tracing::warn!(run = %self.place.run, error = %error.chain(), "run.json is behind");
        }
        self.status.send_modify(|status| {
            status.seal = file.seal.clone();
            status.problem = None;
            status.last_lines = last_lines;
            status.settled = true;
            status.elsewhere = false;
        });
    }

    async fn try_finish(
        &mut self,
        file: &RunFile,
        capture: &mut Capture,
        watched: &mut Watched,
    ) -> Result<Seal> {
        if capture.needs_log()
            && let Some(seal) = self.resume_log(file, capture, watched).await?
        {
            return Ok(seal);
        }
        let mut left = watched.left.clone();
        let requests = self.foreign_stops().await?;
        left.extend(requests.iter().map(|(_, stop)| Record::Stop(stop.clone())));
        capture.write(left).await?;
        watched.left.clear();
        let recorded = requests.into_iter().map(|(path, _)| path).collect();
        self.forget_requests(recorded).await?;

        let mut rest = self.capture_rest(file, capture, watched).await?;
        rest.gaps.extend(self.late_drain(capture, watched));
        rest.gaps.extend(past_limit(capture, rest.evidence));
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
            capture_seconds: watched.at.elapsed().as_micros() as f64 / 1e6,
            sha256: String::new(),
        };
        capture.seal(seal).await
    }

    /// Opens the log again after the sink has failed. `Some`: it is sealed already.
    async fn resume_log(
        &mut self,
        file: &RunFile,
        capture: &mut Capture,
        watched: &Watched,
    ) -> Result<Option<Seal>> {
        let started = capture.progress.started.clone();
        let (progress, visit) = reading();
        match self.context.sink.resume(&self.place, visit).await? {
            Resumed::Sealed(seal) => return Ok(Some(seal)),
            Resumed::Open { log, torn } => {
                capture.resume(read(&progress), log);
                let resume = Resume::new(ResumeCause::Sink, torn);
                capture.write(vec![Record::Resume(resume)]).await?;
            }
            Resumed::Absent => {
                self.make_place(file).await?;
                let (progress, log) = self.open_log(&file.record).await?;
                capture.resume(progress, log);
            }
        }
        if capture.progress.started.is_none()
            && !watched.ended.ending.never_started()
            && let Some(started) = started
        {
            capture
                .write(vec![Record::Started(Box::new(started))])
                .await?;
        }
        Ok(None)
    }

    /// Makes the run's folder again, if someone has removed it.
    async fn make_place(&mut self, file: &RunFile) -> Result<()> {
        let file = file.clone();
        let lock = self
            .context
            .on_disk("make a folder again in", move |root| {
                let run = &file.record.run;
                if root.folder(run).is_dir() {
                    return Ok(None);
                }
                crate::disk::create_folder(&root.folder(run))?;
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

    /// What other processes left as requests to stop the run.
    async fn foreign_stops(&mut self) -> Result<Vec<(PathBuf, Stop)>> {
        let run = self.place.run.clone();
        self.context
            .on_disk("read the requests in", move |root| Ok(root.stops(&run)))
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
        watched: &Watched,
    ) -> Result<Rest> {
        let rest = |evidence| Rest {
            evidence,
            gaps: Vec::new(),
        };
        let gap = |evidence, reason| Rest {
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
        let whole = self.tap_is_whole(watched);
        let without_log = |reason| match whole {
            true => rest(Evidence::Eof),
            // One that came to an end before its time may have had nothing more to give.
            false => Rest {
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
            Ok(()) => Ok(rest(Evidence::Replay)),
            Err(Error::Runtime(error)) if error.is_not_found() => {
                Ok(without_log(GapReason::Removed))
            }
            Err(Error::Runtime(error)) if error.is_fact() => Ok(Rest {
                evidence: Evidence::None,
                gaps: vec![Gap {
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
    fn container_ended(&self, watched: &Watched) -> Instant {
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
    fn tap_is_whole(&self, watched: &Watched) -> bool {
        let ended = self.container_ended(watched);
        watched.eof && watched.tap_ended.is_some_and(|at| at + EARLY > ended)
    }

    /// What the engine may have given up on: it reads for some time after the end, and a client
    /// that was still connected then may have been what it waited for.
    fn late_drain(&self, capture: &mut Capture, watched: &Watched) -> Vec<Gap> {
        let drain = self.context.runtime.capabilities().drain;
        let (Some(drain), Some(tap_ended)) = (drain, watched.tap_ended) else {
            return Vec::new();
        };
        let lag = tap_ended.saturating_duration_since(self.container_ended(watched));
        if lag + MARGIN < drain.within {
            return Vec::new();
        }
        let bytes = capture.progress.bytes();
        let open = |stream| capture.lines().open(stream).len() as u64;
        Stream::ALL
            .into_iter()
            .filter(|stream| bytes[*stream] + open(*stream) >= drain.buffer)
            .map(|stream| Gap {
                stream: Some(stream),
                possible: true,
                detail: Some(format!("read {:.1} s after the end", lag.as_secs_f64())),
                ..Gap::new(GapReason::LateDrain)
            })
            .collect()
    }

    /// What the engine's log does to the bytes; `None`: it cannot be read.
    async fn fidelity(
        &mut self,
        capture: &mut Capture,
        watched: &Watched,
        container: &ContainerId,
    ) -> Result<Option<Fidelity>, RuntimeError> {
        if let Some(inspection) = &watched.ended.inspection {
            return Ok(inspection.log.fidelity);
        }
        match &capture.progress.started {
            Some(started) if !started.log.driver.is_empty() => Ok(started.log.fidelity),
            _ => Ok(self.context.runtime.inspect(container).await?.log.fidelity),
        }
    }

    /// Whether the tail of the engine's log shows that the capture has all of it.
    async fn tail_agrees(
        &mut self,
        capture: &mut Capture,
        container: &ContainerId,
        tty: bool,
        fidelity: Fidelity,
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
        fidelity: Fidelity,
        whole_tap: bool,
    ) -> Result<()> {
        let exited = CancellationToken::new();
        exited.cancel();
        let mut signals = Signals {
            events: mpsc::unbounded_channel().1,
            exited,
            limit: CancellationToken::new(),
        };
        let request = LogsRequest::all(tty);
        let stream = self.context.runtime.logs(container, request).await?;
        let end = capture
            .replay(stream, fidelity, Reading::Final { whole_tap }, &mut signals)
            .await;
        match end {
            PumpEnd::Eof => Ok(()),
            PumpEnd::Broken(error) => Err(error.into()),
            PumpEnd::Silent => Err(RuntimeError::Timeout {
                operation: "read the container's log",
                after: Duration::from_secs(10),
            }
            .into()),
            PumpEnd::Stalled => Err(Error::Stalled),
            PumpEnd::Sink(error) => Err(error),
        }
    }

    /// Removes the container of a sealed run, as the policy says (invariant 3).
    pub(super) async fn remove_by_policy(&mut self, file: &RunFile) {
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
                Ok(()) => return,
                Err(error) if error.is_not_found() => return,
                Err(error) => {
                    tracing::warn!(run = %self.place.run, %container, %error, "cannot remove it");
                    if error.is_fact() {
                        return;
                    }
                }
            }
            backoff.pause().await;
        }
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
pub(super) fn may_remove(seal: &Seal, keep: KeepContainer) -> bool {
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
pub(super) fn reading() -> (Arc<std::sync::Mutex<Progress>>, Visit) {
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
pub(super) fn read(progress: &std::sync::Mutex<Progress>) -> Progress {
    progress
        .lock()
        .map(|mut progress| std::mem::take(&mut *progress))
        .unwrap_or_default()
}

impl Root {
    /// The requests to stop a run that other processes have left.
    fn stops(&self, run: &RunId) -> Vec<(PathBuf, Stop)> {
        let Ok(entries) = std::fs::read_dir(self.folder(run)) else {
            return Vec::new();
        };
        let mut stops = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            let is_request = path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with("stop-") && name.ends_with(".json"));
            if is_request
                && let Ok(bytes) = std::fs::read(&path)
                && let Ok(stop) = serde_json::from_slice(&bytes)
            {
                stops.push((path, stop));
            }
        }
        stops
    }

    /// Leaves a request to stop a run, for its owner to record.
    pub(super) fn leave_stop(&self, run: &RunId, stop: &Stop) -> Result<()> {
        let name = format!("stop-{}.json", RunId::generate());
        let bytes = serde_json::to_vec(stop).unwrap_or_default();
        crate::disk::write_atomic(&self.folder(run).join(name), &bytes)
    }
}
