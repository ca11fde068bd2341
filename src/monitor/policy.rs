//! Policies: which errors are permanent, and which containers are removed.

use std::io::ErrorKind;

use crate::disk;
use crate::error::{Error, RuntimeError};
use crate::events::EventKind;
use crate::monitor::Monitor;
use crate::monitor::wait::Backoff;
use crate::outcome::{Seal, Verdict};
use crate::root::RunFile;
use crate::spec::KeepContainer;

/// Attempts to remove a container before the removal is left to the next opening of the root.
const MAX_REMOVAL_ATTEMPTS: u32 = 3;

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

/// Returns true if the policy `keep` removes the container of a run with this seal.
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

impl Monitor {
    /// Removes the container of a sealed run if its policy says so (invariant 3).
    pub(super) async fn remove_by_policy(&mut self, file: &RunFile) {
        let (Some(seal), Some(container)) = (&file.seal, &file.record.container) else {
            return;
        };
        if !may_remove(seal, file.record.settings.keep) {
            return;
        }
        let mut backoff = Backoff::new();
        for _ in 0..MAX_REMOVAL_ATTEMPTS {
            // Without force: a container that runs was started again externally.
            match self.context.runtime.remove(container, false).await {
                Ok(()) => {
                    let container = container.clone();
                    self.emit(EventKind::ContainerRemoved { container });
                    return;
                }
                Err(error) if error.is_not_found() => return,
                Err(error) => {
                    tracing::warn!(
                        run = %self.place.run, %container, %error, "cannot remove the container"
                    );
                    // A closing manager leaves a second 30 s to the next opening.
                    let timed_out = matches!(error, RuntimeError::Timeout { .. });
                    if error.is_definitive() || timed_out && self.context.closing.is_cancelled() {
                        return;
                    }
                }
            }
            backoff.pause().await;
        }
    }
}
