//! Policies: which errors are permanent, and which containers are removed.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::time::Instant;

use crate::disk;
use crate::error::{Error, Result, RuntimeError};
use crate::events::EventKind;
use crate::monitor::Monitor;
use crate::monitor::context::Context;
use crate::monitor::recover::verify_engine_id;
use crate::monitor::wait::Backoff;
use crate::outcome::{Seal, Verdict};
use crate::root::RunFile;
use crate::spec::{ContainerId, KeepContainer, RunId};

/// The time for which a removal is repeated before it is left to the next opening of the root.
pub(crate) const REMOVAL_PERIOD: Duration = Duration::from_secs(60);
/// The attempts that a closing manager waits for.
const CLOSING_ATTEMPTS: u32 = 3;

/// Returns true if retrying cannot resolve `error`: the files or the setup must change first.
pub(crate) fn is_permanent(error: &Error) -> bool {
    match error {
        Error::Damaged { .. }
        | Error::InvalidSpec(_)
        | Error::NoSuchRun { .. }
        | Error::OtherRuntime { .. }
        | Error::OtherEngine { .. } => true,
        Error::Storage { source, .. } => {
            disk::is_irregular(source) || source.kind() == ErrorKind::Unsupported
        }
        _ => false,
    }
}

impl Context {
    /// Returns true if the policy `keep` removes the container of a run with this seal.
    pub(crate) fn may_remove(&self, seal: &Seal, keep: KeepContainer) -> bool {
        if seal.exit.never_started() {
            return true;
        }
        // A log that rotates is a gap of each run, and its container cannot resolve it.
        let log_rotates = self.runtime.capabilities().log_rotates;
        let gap = seal.verdict == Verdict::Gap && !log_rotates;
        match keep {
            KeepContainer::Never => true,
            KeepContainer::OnGap => !gap,
            KeepContainer::OnFailure => !gap && seal.exit.success(),
            KeepContainer::Always => false,
        }
    }

    /// Fails if the container of a sealed run belongs to another runtime or engine.
    ///
    /// Removing the run would leave that container as an orphan.
    pub(crate) async fn refuse_out_of_reach(&self, id: &RunId, seal: &Seal) -> Result<()> {
        let run = id.clone();
        let read = self.on_disk("read", move |root| root.read_run(&run)).await;
        let Ok(Some(file)) = read else {
            return Ok(());
        };
        if file.container_removed {
            return Ok(());
        }
        let record = file.record;
        if record.runtime != self.runtime.name() {
            return Err(Error::OtherRuntime {
                run: id.clone(),
                runtime: record.runtime,
            });
        }
        if !self.may_remove(seal, record.settings.keep) {
            verify_engine_id(&*self.runtime, id, [record.engine_id.as_deref(), None]).await?;
        }
        Ok(())
    }
}

impl Monitor {
    /// Removes the container of a sealed run if its policy says so (invariant 3).
    pub(super) async fn remove_by_policy(&mut self, file: &RunFile) {
        let (Some(seal), Some(container)) = (&file.seal, &file.record.container) else {
            return;
        };
        if !self.context.may_remove(seal, file.record.settings.keep) {
            return;
        }
        let problem = match remove_patiently(&self.context, &self.place.run, container).await {
            Ok(true) => {
                let container = container.clone();
                self.emit(EventKind::ContainerRemoved { container });
                return;
            }
            Ok(false) => return,
            Err(error) => self.secrets.redact(&error.to_string()),
        };
        let message = format!("the container {container} was not removed: {problem}");
        self.emit(EventKind::Warning { message });
    }
}

/// Removes a container. Returns false if it did not exist.
async fn remove_patiently(
    context: &Context,
    run: &RunId,
    container: &ContainerId,
) -> Result<bool, RuntimeError> {
    let deadline = Instant::now() + REMOVAL_PERIOD;
    let mut backoff = Backoff::new();
    let mut attempts = 0;
    loop {
        attempts += 1;
        // Without force: a container that runs was started again externally.
        let error = match context.runtime.remove(container, false).await {
            Ok(()) => return Ok(true),
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => error,
        };
        tracing::warn!(%run, %container, %error, "cannot remove the container");
        // A closing manager leaves a second 30 s to the next opening.
        let timed_out = matches!(error, RuntimeError::Timeout { .. });
        let hurried = context.closing.is_cancelled() && (timed_out || attempts >= CLOSING_ATTEMPTS);
        if error.is_definitive() || hurried || Instant::now() >= deadline {
            return Err(error);
        }
        backoff.pause().await;
    }
}
