//! The search for the container of a run whose owner has died.
//!
//! [`decide`] maps the files of a run and one answer of the engine to the next step. It does no I/O.
//! [`Monitor::locate`] asks the engine and carries the decisions out.

use tokio::time::sleep;

use crate::audit::{Event, Gap, GapReason};
use crate::capture::Capture;
use crate::error::{Result, RuntimeError};
use crate::monitor::Monitor;
use crate::monitor::output::Source;
use crate::monitor::recover::POLL_INTERVAL;
use crate::monitor::recover::audit::OpenAudit;
use crate::monitor::unconfirmed::{Judgment, Unconfirmed, lost_track};
use crate::monitor::wait::{self, Backoff, Ended, is_other_execution};
use crate::monitor::watch::WatchOutcome;
use crate::outcome::Ending;
use crate::root::RunFile;
use crate::runtime::{ContainerStatus, Continuity, Inspection};
use crate::spec::{Backstop, ContainerId};
use crate::state::Transition;
use crate::timestamp::Timestamp;

/// The location of a run's container.
pub(super) enum Located {
    Running(Source, Option<Timestamp>),
    Ended(Box<WatchOutcome>),
}

impl Located {
    /// A container that never ran, or that no longer exists.
    fn absent(ending: Ending, file: &RunFile) -> Self {
        // This ending is noted only before the removal of a container that the engine lost track
        // of. Without it, `Lost` has another cause.
        let untracked = matches!(
            (&ending, &file.ending_if_missing),
            (Ending::Lost { .. }, Some(Ending::Lost { .. }))
        );
        Self::Ended(Box::new(WatchOutcome::unobserved(ending, untracked)))
    }

    /// A container that ended while no manager watched it.
    fn unwatched(ending: Ending, started_again: bool, inspection: Inspection) -> Self {
        Self::Ended(Box::new(WatchOutcome::untapped(Ended {
            ending,
            interrupted: true,
            engine_restarted: false,
            started_again,
            untracked: inspection.status == ContainerStatus::Created && !started_again,
            inspection: Some(inspection),
        })))
    }
}

/// The knowledge about the container before the engine is asked.
struct Known<'a> {
    file: &'a RunFile,
    /// True if the audit file has a `started` record, or output.
    ran: bool,
    /// The start time in the `started` record.
    started_at: Option<Timestamp>,
    id: IdState,
    /// True if the owner cannot have asked the engine to start the container.
    start_ruled_out: bool,
    /// The judgment on a container that the engine reports as created; `None`: not asked for yet.
    judgment: Option<Judgment>,
    /// True if a container ends with the process that started it.
    process_bound: bool,
}

/// The reliability of the container id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IdState {
    /// The files of the run have no id.
    Missing,
    /// The id may come from a damaged file.
    ///
    /// A definitive inspection error is followed by a search by label.
    Unverified,
    /// A search by label has confirmed the id, so the next definitive error holds.
    Verified,
}

impl IdState {
    /// The state after a search by label.
    fn after_search(self) -> Self {
        match self {
            Self::Missing => Self::Unverified,
            Self::Unverified | Self::Verified => Self::Verified,
        }
    }
}

/// The answer of the engine about the container.
#[derive(Debug)]
enum Inspected {
    /// There is no id to ask about.
    NoId,
    Found(Box<Inspection>),
    NotFound,
    /// A definitive error other than "not found".
    Rejected(RuntimeError),
    /// An error that does not prove anything, such as a timeout.
    Inconclusive(RuntimeError),
}

/// The next step.
#[derive(Debug)]
enum Decision {
    /// Search the engine for a container with the labels of the run.
    Search(IfUnlabeled),
    /// Inspect the container again after a pause. A node may stay silent for hours.
    InspectAgain,
    /// Judge whether a container that the engine reports as created ran.
    Judge(Box<Inspection>),
    /// Remove a container that was not started, so that it never will be.
    RemoveUnstarted(Ending),
    /// Return the error. The recovery is retried later.
    Fail(RuntimeError),
    /// End the search.
    Conclude(Conclusion),
}

/// A definitive location of the container.
#[derive(Debug)]
enum Conclusion {
    /// The container runs, or the engine lost track of it after its start. The watch finds its end.
    Running(Box<Inspection>),
    /// The container exited while no manager watched it.
    Exited(Ending, Box<Inspection>),
    /// The container was started although the record says that its start failed.
    StartedExternally(Ending, Box<Inspection>),
    /// The container was started again: its output belongs to another execution.
    StartedAgain(Ending, Box<Inspection>),
    /// The container does not exist, and the record has its ending.
    Missing(Ending),
    /// The container does not exist, and was never started.
    NotCreated(Ending),
    /// The container existed, and was removed externally or ended with its process.
    Vanished(Ending),
}

/// The step after a search that finds no container.
#[derive(Debug)]
enum IfUnlabeled {
    NotCreated(Ending),
    InspectAgain,
    Fail(RuntimeError),
}

impl Known<'_> {
    /// The ending in `run.json`, unless the audit file contradicts it.
    fn recorded(&self) -> Option<&Ending> {
        let recorded = self.file.ending.as_ref();
        recorded.filter(|ending| !(self.ran && ending.never_started()))
    }

    /// A recorded ending holds, whatever happened to the container since.
    fn ending_or(&self, ending: Ending) -> Ending {
        self.recorded().cloned().unwrap_or(ending)
    }

    /// The ending of a run whose container has no known id, and no label in the engine.
    fn ending_without_id(&self) -> Ending {
        match self.recorded() {
            None => not_created(),
            Some(ending) if ending.never_started() => ending.clone(),
            // The container existed, so `run.json` has lost its id.
            Some(ending) => Ending::Lost {
                reason: format!("run.json says \"{ending}\", but not which container it was"),
            },
        }
    }

    /// The conclusion for a container that is gone with its node.
    fn lost(&self, inspection: Box<Inspection>) -> Conclusion {
        match self.recorded() {
            Some(ending) if ending.never_started() => Conclusion::Missing(ending.clone()),
            None if self.start_ruled_out && !self.ran => Conclusion::Missing(failed_to_start()),
            _ => {
                let ending = self.ending_or(wait::observed_ending(&inspection, None));
                Conclusion::Exited(ending, inspection)
            }
        }
    }

    /// The conclusion for a container that does not exist.
    fn missing(&self) -> Conclusion {
        let if_missing = self.file.ending_if_missing.as_ref();
        // It assumes that nothing proves a start.
        let if_missing = if_missing.filter(|_| !self.ran);
        match self.recorded().or(if_missing) {
            Some(ending) => Conclusion::Missing(ending.clone()),
            None if self.start_ruled_out => Conclusion::NotCreated(not_created()),
            None if self.process_bound => Conclusion::Vanished(ended_with_process()),
            None => Conclusion::Vanished(Ending::Removed { code: None }),
        }
    }
}

/// Decides the next step. Only definitive answers of the engine end the search.
fn decide(known: &Known<'_>, inspected: Inspected) -> Decision {
    // An unverified id may come from a damaged file. It must not hide the real container.
    let is_unverified = known.id == IdState::Unverified;
    match inspected {
        Inspected::NoId => Decision::Search(IfUnlabeled::NotCreated(known.ending_without_id())),
        Inspected::NotFound if is_unverified => Decision::Search(IfUnlabeled::InspectAgain),
        Inspected::Rejected(error) if is_unverified => Decision::Search(IfUnlabeled::Fail(error)),
        Inspected::NotFound => Decision::Conclude(known.missing()),
        Inspected::Rejected(error) | Inspected::Inconclusive(error) => Decision::Fail(error),
        Inspected::Found(inspection) => decide_found(known, inspection),
    }
}

/// Decides the next step for a container that exists.
fn decide_found(known: &Known<'_>, inspection: Box<Inspection>) -> Decision {
    if is_other_execution(known.started_at, &inspection) {
        let ending = known.ending_or(started_again());
        return Decision::Conclude(Conclusion::StartedAgain(ending, inspection));
    }
    let silent_node = inspection.unreachable_since.is_some();
    match (inspection.status, known.recorded()) {
        // The last known state proves only that the container was started.
        (status, _) if silent_node && status != ContainerStatus::Running => Decision::InspectAgain,
        _ if inspection.lost.is_some() => Decision::Conclude(known.lost(inspection)),
        (ContainerStatus::Created, _) => decide_created(known, inspection),
        (ContainerStatus::Removing, _) => Decision::InspectAgain,
        (ContainerStatus::Running | ContainerStatus::Ended, Some(ending))
            if ending.never_started() =>
        {
            Decision::Conclude(Conclusion::StartedExternally(ending.clone(), inspection))
        }
        (ContainerStatus::Running, _) => Decision::Conclude(Conclusion::Running(inspection)),
        (ContainerStatus::Ended, _) => {
            let ending = known.ending_or(wait::observed_ending(&inspection, None));
            Decision::Conclude(Conclusion::Exited(ending, inspection))
        }
    }
}

/// Decides the next step for a container that the engine reports as created.
fn decide_created(known: &Known<'_>, inspection: Box<Inspection>) -> Decision {
    match known.recorded() {
        Some(ending) if ending.never_started() => {
            return Decision::RemoveUnstarted(ending.clone());
        }
        // It ran, and the engine lost track of it.
        Some(ending) => {
            return Decision::Conclude(Conclusion::Exited(ending.clone(), inspection));
        }
        None if known.ran => return Decision::Conclude(Conclusion::Running(inspection)),
        None if known.start_ruled_out => return Decision::RemoveUnstarted(failed_to_start()),
        None => {}
    }
    match known.judgment {
        None => Decision::Judge(inspection),
        Some(Judgment::NeverRan) => Decision::RemoveUnstarted(failed_to_start()),
        Some(Judgment::Ran) => Decision::Conclude(Conclusion::Running(inspection)),
        Some(Judgment::Unknown) => Decision::RemoveUnstarted(lost_track()),
        Some(Judgment::TooEarly) => Decision::InspectAgain,
    }
}

/// Returns a gap if an engine restart may have lost output.
///
/// An engine that cannot tell is not evidence of a restart, but an engine that does not answer is
/// asked again.
fn restart_gap(continuity: Result<Continuity, RuntimeError>) -> Result<Option<Gap>, RuntimeError> {
    match continuity {
        Ok(Continuity::Broken) => Ok(Some(Gap::possible(GapReason::EngineRestarted))),
        Ok(Continuity::Unbroken | Continuity::Unknown) => Ok(None),
        Err(error) if error.is_definitive() => Ok(None),
        Err(error) => Err(error),
    }
}

fn not_created() -> Ending {
    Ending::NotCreated {
        reason: "the process that started the run ended before it created the container".into(),
        aborted: true,
    }
}

fn failed_to_start() -> Ending {
    Ending::FailedToStart {
        reason: "the process that started the run ended before it started the container".into(),
    }
}

fn started_again() -> Ending {
    Ending::Lost {
        reason: "the container was started again externally".into(),
    }
}

fn ended_with_process() -> Ending {
    Ending::Lost {
        reason: "the container ended with the process that started it".into(),
    }
}

impl Monitor {
    /// Locates the container of the run, and records what its location proves.
    pub(super) async fn locate(&mut self, open: &mut OpenAudit) -> Result<Located> {
        let located = self.find_container(open).await?;
        let OpenAudit { file, capture, .. } = open;
        if let Located::Ended(outcome) = &located {
            self.record_implied_start(file, capture, &outcome.ended.ending)
                .await?;
        }
        // A container with the labels of the run may be another one.
        if let Some(started) = &capture.progress.started {
            file.record.container = Some(started.container.clone());
        }
        self.update_run_file(file, capture).await?;
        Ok(located)
    }

    async fn find_container(&mut self, open: &mut OpenAudit) -> Result<Located> {
        let process_bound = self.context.runtime.capabilities().process_bound;
        let started = open.capture.progress.started.as_ref();
        let ran = started.is_some() || open.capture.progress.records > 0;
        let started_at = started.and_then(|started| started.started_at);
        // An earlier attempt may have recorded a start by someone else.
        let start_ruled_out = open.start_ruled_out && !ran;
        let mut unconfirmed = Unconfirmed::default();
        let mut judgment = None;
        let mut backoff = Backoff::new();
        let mut id = match open.file.record.container {
            Some(_) => IdState::Unverified,
            None => IdState::Missing,
        };
        loop {
            let inspected = self.inspect(&open.file).await;
            let known = Known {
                file: &open.file,
                ran,
                started_at,
                id,
                start_ruled_out,
                // It holds for one answer of the engine.
                judgment: judgment.take(),
                process_bound,
            };
            let ending = match decide(&known, inspected) {
                Decision::Search(if_unlabeled) => {
                    id = id.after_search();
                    self.search_by_label(&mut open.file, if_unlabeled).await?
                }
                Decision::InspectAgain => {
                    backoff.pause().await;
                    None
                }
                Decision::Judge(inspection) => {
                    let judged = self.judge(&open.file, &inspection, &mut unconfirmed);
                    judgment = Some(judged.await?);
                    None
                }
                Decision::RemoveUnstarted(ending) => {
                    self.try_remove_unstarted(&mut open.file, ending).await?
                }
                Decision::Fail(error) => return Err(error.into()),
                Decision::Conclude(conclusion) => {
                    return self.conclude(open, started_at, conclusion).await;
                }
            };
            if let Some(ending) = ending {
                return Ok(Located::absent(ending, &open.file));
            }
        }
    }

    /// Inspects the container that the record names, and publishes that it exists.
    async fn inspect(&mut self, file: &RunFile) -> Inspected {
        let Some(container) = &file.record.container else {
            return Inspected::NoId;
        };
        match self.calls.inspect(container).await {
            Ok(inspection) => {
                self.publish(Transition::Created(container.clone()));
                Inspected::Found(Box::new(inspection))
            }
            Err(error) if error.is_not_found() => Inspected::NotFound,
            Err(error) if error.is_definitive() => Inspected::Rejected(error),
            Err(error) => Inspected::Inconclusive(error),
        }
    }

    /// Judges whether a container that the engine reports as created ran.
    async fn judge(
        &mut self,
        file: &RunFile,
        inspection: &Inspection,
        unconfirmed: &mut Unconfirmed,
    ) -> Result<Judgment, RuntimeError> {
        let Some(container) = &file.record.container else {
            return Ok(Judgment::NeverRan);
        };
        let (runtime, tty) = (&*self.context.runtime, file.record.settings.tty);
        unconfirmed
            .judge(runtime, container, inspection, tty, None)
            .await
    }

    /// Searches the engine for the container of this run by label.
    ///
    /// Returns the ending of the run if the engine has no such container.
    async fn search_by_label(
        &mut self,
        file: &mut RunFile,
        if_unlabeled: IfUnlabeled,
    ) -> Result<Option<Ending>> {
        let found = self.context.runtime.find(self.context.root.id());
        let containers = self.calls.track("list the containers", found).await?;
        let labeled = containers.into_iter().find(|it| it.run == self.place.run);
        match (labeled, if_unlabeled) {
            (Some(labeled), _) => file.record.container = Some(labeled.container),
            (None, IfUnlabeled::InspectAgain) => {}
            (None, IfUnlabeled::NotCreated(ending)) => return Ok(Some(ending)),
            (None, IfUnlabeled::Fail(error)) => return Err(error.into()),
        }
        Ok(None)
    }

    /// Removes a container that was not started.
    ///
    /// Returns `None`, after a pause, if the container was started or removed meanwhile.
    async fn try_remove_unstarted(
        &mut self,
        file: &mut RunFile,
        ending: Ending,
    ) -> Result<Option<Ending>> {
        let Some(container) = file.record.container.clone() else {
            return Ok(Some(ending));
        };
        let removed = self.remove_unstarted(file, &container, ending.clone());
        match removed.await {
            Ok(()) => return Ok(Some(ending)),
            Err(RuntimeError::Conflict { .. }) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        sleep(POLL_INTERVAL).await;
        Ok(None)
    }

    /// Records what the location of the container proves.
    async fn conclude(
        &mut self,
        open: &mut OpenAudit,
        started_at: Option<Timestamp>,
        conclusion: Conclusion,
    ) -> Result<Located> {
        let OpenAudit { file, capture, .. } = open;
        match conclusion {
            Conclusion::Running(inspection) => {
                let started_at = started_at.or(inspection.started_at);
                self.record_execution(file, capture, *inspection).await?;
                let source = match file.record.settings.backstop {
                    Backstop::Engine => Source::Follow,
                    Backstop::None => Source::None,
                };
                Ok(Located::Running(source, started_at))
            }
            Conclusion::Exited(ending, inspection) => {
                self.record_execution(file, capture, (*inspection).clone())
                    .await?;
                Ok(Located::unwatched(ending, false, *inspection))
            }
            Conclusion::StartedExternally(ending, inspection) => {
                file.ending_if_missing = None;
                Ok(Located::unwatched(ending, true, *inspection))
            }
            Conclusion::StartedAgain(ending, inspection) => {
                Ok(Located::unwatched(ending, true, *inspection))
            }
            Conclusion::Missing(ending) => Ok(Located::absent(ending, file)),
            Conclusion::NotCreated(ending) => {
                file.record.container = None;
                Ok(Located::absent(ending, file))
            }
            Conclusion::Vanished(ending) => {
                if let Some(container) = &file.record.container {
                    self.publish(Transition::Created(container.clone()));
                }
                Ok(Located::absent(ending, file))
            }
        }
    }

    /// Records the start of a container, and an engine restart since.
    async fn record_execution(
        &mut self,
        file: &mut RunFile,
        capture: &mut Capture,
        inspection: Inspection,
    ) -> Result<()> {
        // The container did run, so the ending that assumes otherwise is void. The start request
        // of the dead owner won over the removal.
        file.ending_if_missing = None;
        let Some(container) = &file.record.container else {
            return Ok(());
        };
        self.image_signal = inspection.stop_signal.clone();
        let is_lost = inspection.lost.is_some();
        let started = capture.progress.started.as_ref();
        // The id in a damaged record may be another one.
        if started.is_none_or(|started| started.container != *container) {
            let started = self.started(container, Some(inspection), Vec::new()).await;
            let started = Event::Started(Box::new(started));
            capture.write(vec![started]).await?;
        }
        if is_lost {
            return Ok(());
        }
        self.record_restart(capture, container).await
    }

    /// Records the start of a container that is gone, if the ending of the run implies the start.
    ///
    /// The owner persisted the ending, and died before it wrote the record of the start.
    async fn record_implied_start(
        &mut self,
        file: &RunFile,
        capture: &mut Capture,
        ending: &Ending,
    ) -> Result<()> {
        let Some(container) = &file.record.container else {
            return Ok(());
        };
        if capture.progress.started.is_some() || !ending.proves_start() {
            return Ok(());
        }
        let mut started = self.started(container, None, Vec::new()).await;
        if let Ending::Exited(exit) = ending {
            started.started_at = exit.started_at;
        }
        capture.write(vec![Event::Started(Box::new(started))]).await
    }

    /// Records a gap if the engine was restarted since it created the container.
    async fn record_restart(
        &mut self,
        capture: &mut Capture,
        container: &ContainerId,
    ) -> Result<()> {
        if capture.progress.has_gap(GapReason::EngineRestarted, None) {
            return Ok(());
        }
        let continuity = self.context.runtime.continuity(container).await;
        match restart_gap(continuity)? {
            Some(gap) => capture.write(vec![Event::Gap(gap)]).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Exit;
    use crate::spec::{RootId, RunId, RunRecord, RunSpec};

    /// The kind of an engine's answer.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Seen {
        NoId,
        NotFound,
        Rejected,
        Inconclusive,
        Created,
        Running,
        Exited,
        Removing,
        SilentCreated,
        SilentRunning,
        SilentEnded,
        Lost,
    }

    /// The recorded start, compared with the start time that the engine reports.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Start {
        NotRecorded,
        /// The record has no time.
        Untimed,
        NotReported,
        Same,
        Other,
    }

    /// The ending in `run.json`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Recorded {
        Nothing,
        Exit,
        FailedStart,
    }

    #[derive(Debug, Clone, Copy)]
    struct Case {
        seen: Seen,
        id: IdState,
        recorded: Recorded,
        has_ending_if_missing: bool,
        start: Start,
        start_ruled_out: bool,
        has_output: bool,
        judgment: Option<Judgment>,
        process_bound: bool,
    }

    const JUDGMENTS: [Option<Judgment>; 5] = [
        None,
        Some(Judgment::NeverRan),
        Some(Judgment::Ran),
        Some(Judgment::Unknown),
        Some(Judgment::TooEarly),
    ];

    impl Case {
        /// Every combination that can occur. Only a missing id is not inspected.
        fn all() -> Vec<Self> {
            use {IdState::*, Recorded::*, Seen::*, Start::*};
            let mut inspections = vec![(NoId, Missing)];
            for seen in [
                NotFound,
                Rejected,
                Inconclusive,
                Created,
                Running,
                Exited,
                Removing,
                SilentCreated,
                SilentRunning,
                SilentEnded,
                Lost,
            ] {
                inspections.extend([(seen, Unverified), (seen, Verified)]);
            }
            let mut cases = Vec::new();
            for (seen, id) in inspections {
                for recorded in [Nothing, Exit, FailedStart] {
                    for start in [NotRecorded, Untimed, NotReported, Same, Other] {
                        for judgment in JUDGMENTS {
                            cases.extend((0..16).map(|bits| Self {
                                seen,
                                id,
                                recorded,
                                has_ending_if_missing: bits & 1 > 0,
                                start,
                                start_ruled_out: bits & 2 > 0,
                                has_output: bits & 8 > 0,
                                judgment,
                                process_bound: bits & 4 > 0,
                            }));
                        }
                    }
                }
            }
            cases
        }

        fn ran(&self) -> bool {
            self.start != Start::NotRecorded || self.has_output
        }

        /// A record of the start, or of output, refutes an ending without one.
        fn recorded(&self) -> Recorded {
            match self.recorded {
                Recorded::FailedStart if self.ran() => Recorded::Nothing,
                recorded => recorded,
            }
        }

        fn decide(&self, times: [Timestamp; 2]) -> Decision {
            let spec = RunSpec::new("image");
            let (run, root) = (RunId::generate(), RootId::generate());
            let mut file = RunFile::new(RunRecord::new(run, root, "scripted", &spec));
            file.ending = match self.recorded {
                Recorded::Nothing => None,
                Recorded::Exit => Some(Ending::Exited(exit(7))),
                Recorded::FailedStart => Some(failure("recorded")),
            };
            file.ending_if_missing = self.has_ending_if_missing.then(|| failure("if missing"));
            let (recorded, reported) = match self.start {
                Start::NotRecorded | Start::Untimed => (None, Some(times[0])),
                Start::NotReported => (Some(times[0]), None),
                Start::Same => (Some(times[0]), Some(times[0])),
                Start::Other => (Some(times[0]), Some(times[1])),
            };
            let inspection = |status| {
                let mut inspection = Inspection::new(status);
                inspection.started_at = reported;
                inspection.code = Some(3);
                inspection
            };
            let found = |status| Inspected::Found(Box::new(inspection(status)));
            let silent = |status| {
                Inspected::Found(Box::new(Inspection {
                    unreachable_since: Some(times[0]),
                    ..inspection(status)
                }))
            };
            let inspected = match self.seen {
                Seen::NoId => Inspected::NoId,
                Seen::NotFound => Inspected::NotFound,
                Seen::Rejected => Inspected::Rejected(rejected()),
                Seen::Inconclusive => Inspected::Inconclusive(inconclusive()),
                Seen::Created => found(ContainerStatus::Created),
                Seen::Running => found(ContainerStatus::Running),
                Seen::Exited => found(ContainerStatus::Ended),
                Seen::Removing => found(ContainerStatus::Removing),
                Seen::SilentCreated => silent(ContainerStatus::Created),
                Seen::SilentRunning => silent(ContainerStatus::Running),
                Seen::SilentEnded => silent(ContainerStatus::Ended),
                Seen::Lost => Inspected::Found(Box::new(Inspection {
                    lost: Some("a node".into()),
                    ..inspection(ContainerStatus::Ended)
                })),
            };
            let known = Known {
                file: &file,
                ran: self.ran(),
                started_at: recorded,
                id: self.id,
                start_ruled_out: self.start_ruled_out,
                judgment: self.judgment,
                process_bound: self.process_bound,
            };
            decide(&known, inspected)
        }
    }

    fn exit(code: i64) -> Exit {
        Exit {
            code: Some(code),
            ..Exit::default()
        }
    }

    fn failure(reason: &str) -> Ending {
        Ending::FailedToStart {
            reason: reason.into(),
        }
    }

    fn rejected() -> RuntimeError {
        RuntimeError::Conflict {
            operation: "inspect",
            reason: "rejected".into(),
        }
    }

    fn inconclusive() -> RuntimeError {
        RuntimeError::Broken {
            operation: "inspect",
            reason: "inconclusive".into(),
        }
    }

    /// A decision with its data, in words.
    fn describe(decision: &Decision) -> String {
        match decision {
            Decision::Search(IfUnlabeled::NotCreated(it)) => format!("search, or {}", ending(it)),
            Decision::Search(IfUnlabeled::InspectAgain) => "search, or inspect again".into(),
            Decision::Search(IfUnlabeled::Fail(it)) => format!("search, or fail: {}", error(it)),
            Decision::InspectAgain => "inspect again".into(),
            Decision::Judge(_) => "judge".into(),
            Decision::RemoveUnstarted(it) => format!("remove: {}", ending(it)),
            Decision::Fail(it) => format!("fail: {}", error(it)),
            Decision::Conclude(Conclusion::Running(_)) => "running".into(),
            Decision::Conclude(Conclusion::Exited(it, _)) => format!("exited: {}", ending(it)),
            Decision::Conclude(Conclusion::StartedExternally(it, _)) => {
                format!("started externally: {}", ending(it))
            }
            Decision::Conclude(Conclusion::StartedAgain(it, _)) => {
                format!("started again: {}", ending(it))
            }
            Decision::Conclude(Conclusion::Missing(it)) => format!("missing: {}", ending(it)),
            Decision::Conclude(Conclusion::NotCreated(it)) => {
                format!("not created: {}", ending(it))
            }
            Decision::Conclude(Conclusion::Vanished(it)) => format!("vanished: {}", ending(it)),
        }
    }

    fn ending(ending: &Ending) -> &'static str {
        match ending {
            Ending::Exited(exit) if exit.code == Some(7) => "recorded exit",
            Ending::Exited(_) => "observed exit",
            it if *it == failure("recorded") => "recorded failure",
            it if *it == failure("if missing") => "ending if missing",
            it if *it == not_created() => "never created",
            it if *it == failed_to_start() => "never started",
            it if *it == started_again() => "second execution",
            it if *it == ended_with_process() => "ended with its process",
            it if *it == lost_track() => "lost track",
            Ending::Removed { code: None } => "removed",
            Ending::Lost { reason } if reason.contains("which container") => "lost id",
            Ending::Lost { reason } if reason == "a node" => "lost node",
            _ => "another ending",
        }
    }

    fn error(error: &RuntimeError) -> &'static str {
        match error.is_definitive() {
            true => "definitive",
            false => "inconclusive",
        }
    }

    /// The answers, a condition, and the decision. Each case matches one row.
    type Row = (&'static [Seen], fn(&Case) -> bool, &'static str);

    const ROWS: &[Row] = {
        use {IdState::*, Recorded::*, Seen::*, Start::*};
        const FOUND: &[Seen] = &[
            Created,
            Running,
            Exited,
            Removing,
            SilentCreated,
            SilentRunning,
            SilentEnded,
            Lost,
        ];
        &[
            (
                &[NoId],
                |c| c.recorded() == Nothing,
                "search, or never created",
            ),
            (&[NoId], |c| c.recorded() == Exit, "search, or lost id"),
            (
                &[NoId],
                |c| c.recorded() == FailedStart,
                "search, or recorded failure",
            ),
            (
                &[NotFound],
                |c| c.id == Unverified,
                "search, or inspect again",
            ),
            (
                &[NotFound],
                |c| c.id == Verified && c.recorded() == Exit,
                "missing: recorded exit",
            ),
            (
                &[NotFound],
                |c| c.id == Verified && c.recorded() == FailedStart,
                "missing: recorded failure",
            ),
            (
                &[NotFound],
                |c| is_unrecorded(c) && ending_if_missing_holds(c),
                "missing: ending if missing",
            ),
            (
                &[NotFound],
                |c| is_unrecorded(c) && !ending_if_missing_holds(c) && c.start_ruled_out,
                "not created: never created",
            ),
            (
                &[NotFound],
                |c| may_have_run(c) && c.process_bound,
                "vanished: ended with its process",
            ),
            (
                &[NotFound],
                |c| may_have_run(c) && !c.process_bound,
                "vanished: removed",
            ),
            (
                &[Rejected],
                |c| c.id == Unverified,
                "search, or fail: definitive",
            ),
            (&[Rejected], |c| c.id == Verified, "fail: definitive"),
            (&[Inconclusive], |_| true, "fail: inconclusive"),
            (
                FOUND,
                |c| c.start == Other && c.recorded() == Nothing,
                "started again: second execution",
            ),
            (
                FOUND,
                |c| c.start == Other && c.recorded() == Exit,
                "started again: recorded exit",
            ),
            (
                &[Created],
                |c| c.start != Other && c.recorded() == Nothing && c.ran(),
                "running",
            ),
            (
                &[Created],
                |c| may_be_untracked(c) && c.start_ruled_out,
                "remove: never started",
            ),
            (&[Created], |c| is_judged(c, None), "judge"),
            (
                &[Created],
                |c| is_judged(c, Some(Judgment::NeverRan)),
                "remove: never started",
            ),
            (&[Created], |c| is_judged(c, Some(Judgment::Ran)), "running"),
            (
                &[Created],
                |c| is_judged(c, Some(Judgment::Unknown)),
                "remove: lost track",
            ),
            (
                &[Created],
                |c| is_judged(c, Some(Judgment::TooEarly)),
                "inspect again",
            ),
            (
                &[Created],
                |c| c.start != Other && c.recorded() == Exit,
                "exited: recorded exit",
            ),
            (
                &[Created],
                |c| c.recorded() == FailedStart,
                "remove: recorded failure",
            ),
            (
                &[Removing, SilentCreated, SilentEnded],
                |c| c.start != Other,
                "inspect again",
            ),
            (
                &[Lost],
                |c| c.start != Other && c.recorded() == FailedStart,
                "missing: recorded failure",
            ),
            (
                &[Lost],
                |c| may_be_untracked(c) && c.start_ruled_out,
                "missing: never started",
            ),
            (
                &[Lost],
                |c| {
                    c.start != Other
                        && c.recorded() == Nothing
                        && !(may_be_untracked(c) && c.start_ruled_out)
                },
                "exited: lost node",
            ),
            (
                &[Lost],
                |c| c.start != Other && c.recorded() == Exit,
                "exited: recorded exit",
            ),
            (
                &[Running, SilentRunning, Exited],
                |c| c.start != Other && c.recorded() == FailedStart,
                "started externally: recorded failure",
            ),
            (
                &[Running, SilentRunning],
                |c| c.start != Other && c.recorded() != FailedStart,
                "running",
            ),
            (
                &[Exited],
                |c| c.start != Other && c.recorded() == Nothing,
                "exited: observed exit",
            ),
            (
                &[Exited],
                |c| c.start != Other && c.recorded() == Exit,
                "exited: recorded exit",
            ),
        ]
    };

    fn is_unrecorded(case: &Case) -> bool {
        case.id == IdState::Verified && case.recorded() == Recorded::Nothing
    }

    /// The files of the run do not show that a container ran that the engine reports as created.
    fn may_be_untracked(case: &Case) -> bool {
        case.recorded() == Recorded::Nothing && !case.ran()
    }

    fn is_judged(case: &Case, judgment: Option<Judgment>) -> bool {
        may_be_untracked(case) && !case.start_ruled_out && case.judgment == judgment
    }

    fn may_have_run(case: &Case) -> bool {
        is_unrecorded(case) && !ending_if_missing_holds(case) && !case.start_ruled_out
    }

    fn ending_if_missing_holds(case: &Case) -> bool {
        case.has_ending_if_missing && !case.ran()
    }

    #[test]
    fn every_record_and_answer_has_one_decision() {
        let now = Timestamp::now();
        let later = now.saturating_add(POLL_INTERVAL);
        let cases = Case::all();
        assert_eq!(cases.len(), 23 * 3 * 5 * 16 * JUDGMENTS.len());
        for case in cases {
            let rows = ROWS
                .iter()
                .filter(|(seen, applies, _)| seen.contains(&case.seen) && applies(&case));
            let expected: Vec<_> = rows.map(|(.., expected)| *expected).collect();
            let decision = case.decide([now, later]);
            assert_eq!(vec![describe(&decision)], expected, "{case:?}");
        }
    }

    #[test]
    fn a_second_search_verifies_the_id() {
        let states = [IdState::Missing, IdState::Unverified, IdState::Verified];
        let expected = [IdState::Unverified, IdState::Verified, IdState::Verified];
        assert_eq!(states.map(IdState::after_search), expected);
    }

    #[test]
    fn only_a_restarted_engine_leaves_a_gap() {
        let gap = |continuity| restart_gap(continuity).map(|gap| gap.map(|gap| gap.reason));
        let restarted = gap(Ok(Continuity::Broken)).unwrap();
        assert_eq!(restarted, Some(GapReason::EngineRestarted));
        assert!(
            restart_gap(Ok(Continuity::Broken))
                .unwrap()
                .unwrap()
                .possible
        );
        for continuity in [Continuity::Unbroken, Continuity::Unknown] {
            assert_eq!(gap(Ok(continuity)).unwrap(), None);
        }
        assert_eq!(gap(Err(rejected())).unwrap(), None);
        assert!(gap(Err(inconclusive())).is_err());
    }
}
