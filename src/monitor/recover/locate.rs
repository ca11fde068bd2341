//! The search for the container of a run whose owner has died.
//!
//! [`decide`] maps the files of a run and one answer of the engine to the next step. It does no I/O.
//! [`Monitor::locate`] asks the engine and carries the decisions out.

use tokio::time::sleep;

use crate::audit::{Event, Gap, GapReason};
use crate::capture::Capture;
use crate::error::{Result, RuntimeError};
use crate::monitor::output::Source;
use crate::monitor::recover::POLL_INTERVAL;
use crate::monitor::recover::audit::OpenAudit;
use crate::monitor::wait::{self, Ended, another};
use crate::monitor::{Monitor, WatchOutcome};
use crate::outcome::Ending;
use crate::root::RunFile;
use crate::runtime::{Continuity, Inspection, Status as Phase};
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
    fn never(ending: Ending) -> Self {
        Self::Ended(Box::new(WatchOutcome::never(ending)))
    }

    /// A container that ended while no manager watched it.
    fn unwatched(ending: Ending, started_again: bool, inspection: Inspection) -> Self {
        Self::Ended(Box::new(WatchOutcome::untapped(Ended {
            ending,
            interrupted: true,
            engine_restarted: false,
            started_again,
            inspection: Some(inspection),
        })))
    }
}

/// The knowledge about the container before the engine is asked.
struct Known<'a> {
    file: &'a RunFile,
    /// The start time that the audit file records.
    started_at: Option<Timestamp>,
    id: IdState,
    /// True if the owner cannot have asked the engine to start the container.
    start_ruled_out: bool,
    /// True if a container ends with the process that started it.
    process_bound: bool,
}

/// The reliability of the container id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IdState {
    /// The files of the run have no id.
    Missing,
    /// The engine has not confirmed the id. It may come from a damaged file.
    Unverified,
    /// A search by label found this id, or no container at all.
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
    /// Inspect the container again after [`POLL_INTERVAL`].
    InspectAgain,
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
    /// A recorded ending holds, whatever happened to the container since.
    fn ending_or(&self, ending: Ending) -> Ending {
        self.file.ending.clone().unwrap_or(ending)
    }

    /// The conclusion for a container that does not exist.
    fn missing(&self) -> Conclusion {
        let recorded = self.file.ending.as_ref();
        match recorded.or(self.file.ending_if_missing.as_ref()) {
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
        Inspected::NoId => {
            Decision::Search(IfUnlabeled::NotCreated(known.ending_or(not_created())))
        }
        Inspected::NotFound if is_unverified => Decision::Search(IfUnlabeled::InspectAgain),
        Inspected::Rejected(error) if is_unverified => Decision::Search(IfUnlabeled::Fail(error)),
        Inspected::NotFound => Decision::Conclude(known.missing()),
        Inspected::Rejected(error) | Inspected::Inconclusive(error) => Decision::Fail(error),
        Inspected::Found(inspection) => decide_found(known, inspection),
    }
}

/// Decides the next step for a container that exists.
fn decide_found(known: &Known<'_>, inspection: Box<Inspection>) -> Decision {
    if another(known.started_at, &inspection) {
        let ending = known.ending_or(started_again());
        return Decision::Conclude(Conclusion::StartedAgain(ending, inspection));
    }
    match (inspection.status, &known.file.ending) {
        (Phase::Created, _) => Decision::RemoveUnstarted(known.ending_or(failed_to_start())),
        (Phase::Removing, _) => Decision::InspectAgain,
        (Phase::Running | Phase::Ended, Some(ending)) if ending.never_started() => {
            Decision::Conclude(Conclusion::StartedExternally(ending.clone(), inspection))
        }
        (Phase::Running, _) => Decision::Conclude(Conclusion::Running(inspection)),
        (Phase::Ended, _) => {
            let exit = Ending::Exited(wait::exit(&inspection, None));
            Decision::Conclude(Conclusion::Exited(known.ending_or(exit), inspection))
        }
    }
}

/// Decides if an engine restart may have lost output.
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
        self.update_run_file(&mut open.file, &mut open.capture)
            .await?;
        Ok(located)
    }

    async fn find_container(&mut self, open: &mut OpenAudit) -> Result<Located> {
        let process_bound = self.context.runtime.capabilities().process_bound;
        let started = open.capture.progress.started.as_ref();
        let started_at = started.and_then(|started| started.started_at);
        let has_id = open.file.record.container.is_some();
        // The id is on disk before the engine is asked to start the container. So an intact record
        // without an id proves that the container was never started.
        let start_ruled_out = !has_id && open.is_intact;
        let mut id = match has_id {
            true => IdState::Unverified,
            false => IdState::Missing,
        };
        loop {
            let inspected = self.inspect(&open.file).await;
            let known = Known {
                file: &open.file,
                started_at,
                id,
                start_ruled_out,
                process_bound,
            };
            let ending = match decide(&known, inspected) {
                Decision::Search(if_unlabeled) => {
                    id = id.after_search();
                    self.search_by_label(&mut open.file, if_unlabeled).await?
                }
                Decision::InspectAgain => {
                    sleep(POLL_INTERVAL).await;
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
                return Ok(Located::never(ending));
            }
        }
    }

    /// Inspects the container that the record names, and publishes that it exists.
    async fn inspect(&mut self, file: &RunFile) -> Inspected {
        let Some(container) = &file.record.container else {
            return Inspected::NoId;
        };
        match self.context.runtime.inspect(container).await {
            Ok(inspection) => {
                self.publish(Transition::Created(container.clone()));
                Inspected::Found(Box::new(inspection))
            }
            Err(error) if error.is_not_found() => Inspected::NotFound,
            Err(error) if error.is_definitive() => Inspected::Rejected(error),
            Err(error) => Inspected::Inconclusive(error),
        }
    }

    /// Searches the engine for the container of this run. Returns an ending if the search is over.
    async fn search_by_label(
        &mut self,
        file: &mut RunFile,
        if_unlabeled: IfUnlabeled,
    ) -> Result<Option<Ending>> {
        let containers = self.context.runtime.find(self.context.root.id()).await?;
        let labeled = containers.into_iter().find(|it| it.run == self.place.run);
        match (labeled, if_unlabeled) {
            (Some(labeled), _) => file.record.container = Some(labeled.container),
            (None, IfUnlabeled::InspectAgain) => {}
            (None, IfUnlabeled::NotCreated(ending)) => return Ok(Some(ending)),
            (None, IfUnlabeled::Fail(error)) => return Err(error.into()),
        }
        Ok(None)
    }

    /// Removes a container that was not started. Returns `None` after a pause if the container was
    /// started or removed meanwhile.
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
            Conclusion::Missing(ending) => Ok(Located::never(ending)),
            Conclusion::NotCreated(ending) => {
                file.record.container = None;
                Ok(Located::never(ending))
            }
            Conclusion::Vanished(ending) => {
                if let Some(container) = &file.record.container {
                    self.publish(Transition::Created(container.clone()));
                }
                Ok(Located::never(ending))
            }
        }
    }

    /// Records the execution of a container that has run: its start, and an engine restart.
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
        if capture.progress.started.is_none() {
            let started = self.started(container, Some(inspection), Vec::new()).await;
            let started = Event::Started(Box::new(started));
            capture.write(vec![started]).await?;
        }
        self.record_restart(capture, container).await
    }

    /// Records a gap if the engine was restarted since it started the container.
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
