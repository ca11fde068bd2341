//! Containers that the engine reports as created, although their start was requested.
//!
//! An engine that was restarted during the start can lose track of the container. After SIGKILL,
//! Docker reports such a container as created while its program runs, writes its output to the log,
//! and removes it without an error. [`next`] decides without I/O what the facts prove.

use std::pin::Pin;
use std::time::Duration;

use futures::stream::Peekable;
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, timeout};

use crate::error::RuntimeError;
use crate::monitor::Monitor;
use crate::monitor::launch::LaunchError;
use crate::monitor::output::Source;
use crate::monitor::wait::Backoff;
use crate::outcome::Ending;
use crate::root::RunFile;
use crate::runtime::{
    AttachedOutput, ContainerStatus, Continuity, Inspection, LogsRequest, OutputStream, Runtime,
};
use crate::spec::ContainerId;

/// Time for which an engine may report a container that was started as created.
///
/// Docker 20.10 corrects its report within 2 s of its restart, or never.
pub(super) const UNTRACKED_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time until the first output in the engine's log.
const FIRST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(5);

/// The tap of a container whose start is not confirmed.
pub(super) type PendingTap = Peekable<OutputStream>;

/// The source of output of a container whose start is not confirmed.
pub(super) enum PendingSource {
    Tap {
        stream: PendingTap,
        end_marker: bool,
    },
    Other(Source),
}

impl PendingSource {
    pub(super) fn new(source: Source) -> Self {
        match source {
            Source::Tap(output) => Self::Tap {
                stream: output.stream.peekable(),
                end_marker: output.end_marker,
            },
            other => Self::Other(other),
        }
    }

    pub(super) fn tap(&mut self) -> Option<&mut PendingTap> {
        match self {
            Self::Tap { stream, .. } => Some(stream),
            Self::Other(_) => None,
        }
    }
}

impl From<PendingSource> for Source {
    fn from(pending: PendingSource) -> Self {
        match pending {
            PendingSource::Tap { stream, end_marker } => Self::Tap(AttachedOutput {
                stream: stream.boxed(),
                end_marker,
            }),
            PendingSource::Other(source) => source,
        }
    }
}

/// The ending of a container that its engine lost track of.
pub(super) fn lost_track() -> Ending {
    Ending::Lost {
        reason: "the engine was restarted while it started the container, and no longer knows \
                 whether it ran"
            .into(),
    }
}

/// The facts about a container that the engine reports as created.
#[derive(Debug, Clone, Copy)]
struct Facts {
    /// `None`: not asked yet.
    continuity: Option<Continuity>,
    /// True if the tap or the engine's log has output; `None`: not read yet.
    has_output: Option<bool>,
    /// [`UNTRACKED_TIMEOUT`] has passed.
    overdue: bool,
}

/// The conclusion from the engine's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgment {
    /// The container has not run. Once it is removed, it never will.
    NeverRan,
    /// The container has output, so it ran, and may still run.
    Ran,
    /// Nothing shows that the container ran, and nothing proves that it did not.
    Unknown,
    /// The engine may still correct its report.
    TooEarly,
}

/// The next step of a judgment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    AskContinuity,
    ReadOutput,
    Conclude(Judgment),
}

/// Decides the next step.
fn next(facts: Facts) -> Step {
    match (facts.continuity, facts.has_output) {
        (None, _) => Step::AskContinuity,
        // The engine has known the container since its creation.
        (Some(Continuity::Unbroken), _) => Step::Conclude(Judgment::NeverRan),
        (Some(_), None) => Step::ReadOutput,
        (Some(_), Some(true)) => Step::Conclude(Judgment::Ran),
        (Some(_), Some(false)) if facts.overdue => Step::Conclude(Judgment::Unknown),
        (Some(_), Some(false)) => Step::Conclude(Judgment::TooEarly),
    }
}

/// A start that is not confirmed.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed {
    /// When the engine first reported the container as created without proof.
    since: Option<Instant>,
}

impl Unconfirmed {
    /// Judges a container that `inspection` reports as created.
    ///
    /// # Errors
    ///
    /// An inconclusive error of the engine. The caller inspects the container again.
    pub(super) async fn judge(
        &mut self,
        runtime: &dyn Runtime,
        container: &ContainerId,
        inspection: &Inspection,
        tty: bool,
        mut tap: Option<&mut PendingTap>,
    ) -> Result<Judgment, RuntimeError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let mut facts = Facts {
            continuity: None,
            has_output: None,
            overdue: since.elapsed() >= UNTRACKED_TIMEOUT,
        };
        loop {
            match next(facts) {
                Step::AskContinuity => {
                    facts.continuity = Some(match runtime.continuity(container).await {
                        Ok(continuity) => continuity,
                        Err(error) if error.is_definitive() => Continuity::Unknown,
                        Err(error) => return Err(error),
                    });
                }
                Step::ReadOutput => {
                    let tapped = tap.as_deref_mut().is_some_and(has_output);
                    let logged = match inspection.log.fidelity {
                        Some(_) if !tapped => has_log(runtime, container, tty).await?,
                        _ => false,
                    };
                    facts.has_output = Some(tapped || logged);
                }
                Step::Conclude(judgment) => return Ok(judgment),
            }
        }
    }
}

impl Monitor {
    /// Finds out if a container runs although its start failed. Returns the source
    /// of its output if it ran.
    ///
    /// Only a definitive answer decides: a removal without force succeeds only if
    /// the container does not run. An engine that was restarted since the creation
    /// gives no such answer, so output of the container decides there.
    pub(super) async fn confirm_start(
        &mut self,
        file: &mut RunFile,
        container: &ContainerId,
        source: Source,
        error: RuntimeError,
    ) -> Result<Source, LaunchError> {
        let calls = self.calls.clone();
        let tty = file.record.settings.tty;
        let mut source = PendingSource::new(source);
        let mut unconfirmed = Unconfirmed::default();
        let mut backoff = Backoff::new();
        loop {
            let judged = match calls.inspect(container).await {
                Ok(inspection) if inspection.status != ContainerStatus::Created => {
                    Ok(Judgment::Ran)
                }
                // The engine has answered that it did not start the container.
                Ok(_) if error.is_definitive() => Ok(Judgment::NeverRan),
                // The node may have started the container since it last answered.
                Ok(inspection) if inspection.unreachable_since.is_some() => Ok(Judgment::TooEarly),
                Ok(inspection) => {
                    let judged = unconfirmed.judge(
                        calls.runtime(),
                        container,
                        &inspection,
                        tty,
                        source.tap(),
                    );
                    judged.await
                }
                Err(missing) if missing.is_not_found() => {
                    // An earlier removal may have succeeded without an answer.
                    let ending = file.ending_if_missing.clone();
                    let ending = ending.unwrap_or(Ending::Removed { code: None });
                    return Err(LaunchError::Ended(ending, error));
                }
                Err(error) => Err(error),
            };
            let ending = match judged {
                Ok(Judgment::Ran) => {
                    if file.ending_if_missing.take().is_some() {
                        self.persist_run_file(file).await;
                    }
                    return Ok(source.into());
                }
                Ok(Judgment::NeverRan) => Some(self.failed_to_start(&error)),
                Ok(Judgment::Unknown) => Some(lost_track()),
                Ok(Judgment::TooEarly) => None,
                Err(error) => {
                    tracing::warn!(%container, %error, "cannot inspect the container yet");
                    None
                }
            };
            if let Some(ending) = ending
                && let Some(ending) = self.remove_failed(file, container, ending, &error).await
            {
                return Err(LaunchError::Ended(ending, error));
            }
            backoff.pause().await;
        }
    }

    /// Removes a container whose start failed with `error`. Returns `ending` if the
    /// container will never run.
    async fn remove_failed(
        &mut self,
        file: &mut RunFile,
        container: &ContainerId,
        ending: Ending,
        error: &RuntimeError,
    ) -> Option<Ending> {
        match self.remove_unstarted(file, container, ending.clone()).await {
            Ok(()) => Some(ending),
            Err(removal) if removal.is_not_found() => Some(ending),
            // The container runs by now.
            Err(RuntimeError::Conflict { .. }) => None,
            Err(removal) if error.is_definitive() && removal.is_definitive() => {
                tracing::warn!(%container, error = %removal, "cannot remove the container");
                Some(ending)
            }
            Err(_) => None,
        }
    }
}

/// Returns true if a tap has output that was not read yet.
fn has_output(tap: &mut PendingTap) -> bool {
    matches!(Pin::new(tap).peek().now_or_never(), Some(Some(Ok(_))))
}

/// Returns true if the engine's log of the container has output.
async fn has_log(
    runtime: &dyn Runtime,
    container: &ContainerId,
    tty: bool,
) -> Result<bool, RuntimeError> {
    let read = async {
        let mut log = runtime.logs(container, LogsRequest::tail(tty, 1)).await?;
        log.next().await.transpose()
    };
    let after = FIRST_OUTPUT_TIMEOUT;
    let read = timeout(after, read).await.unwrap_or({
        Err(RuntimeError::Timeout {
            operation: "read the container's log",
            after,
        })
    });
    match read {
        Ok(output) => Ok(output.is_some()),
        Err(error) if error.is_definitive() => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unbroken_engine_proves_that_a_container_never_ran() {
        use Continuity::{Broken, Unbroken, Unknown};
        use Judgment::{NeverRan, Ran, TooEarly};
        use Step::{AskContinuity, Conclude, ReadOutput};
        for overdue in [false, true] {
            let silent = match overdue {
                true => Judgment::Unknown,
                false => TooEarly,
            };
            for has_output in [None, Some(false), Some(true)] {
                let step = |continuity| {
                    next(Facts {
                        continuity,
                        has_output,
                        overdue,
                    })
                };
                assert_eq!(step(None), AskContinuity);
                assert_eq!(step(Some(Unbroken)), Conclude(NeverRan));
                let expected = match has_output {
                    None => ReadOutput,
                    Some(true) => Conclude(Ran),
                    Some(false) => Conclude(silent),
                };
                assert_eq!(step(Some(Broken)), expected);
                assert_eq!(step(Some(Unknown)), expected);
            }
        }
    }
}
