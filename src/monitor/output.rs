//! Where a run's output comes from while its container runs.

use tokio::time::{Instant, sleep};

use crate::capture::{Capture, PumpEnd, Reading, Signals};
use crate::error::{Error, RuntimeError};
use crate::monitor::context::Context;
use crate::monitor::evidence::EOF_TOLERANCE;
use crate::monitor::wait::Backoff;
use crate::runtime::{LogsRequest, OutputStream};
use crate::spec::{Backstop, ContainerId, Settings};

/// Where output comes from.
pub(crate) enum Source {
    Tap(OutputStream),
    /// The engine's log, read from its start and followed.
    Follow,
    None,
}

/// How the pumping of all sources ended.
#[derive(Debug, Default)]
pub(crate) struct PumpOutcome {
    /// When the tap ended.
    pub(crate) tap_ended: Option<Instant>,
    /// Whether that was a clean end.
    pub(crate) eof: bool,
    /// The sink's error, if that was it.
    pub(crate) failed: Option<Error>,
}

/// Pumps the tap; and where that breaks, or there is none, what the engine's log has and gets, as
/// a preview: only what is read again after the exit counts.
pub(crate) async fn pump(
    context: &Context,
    capture: &mut Capture,
    source: Source,
    container: &ContainerId,
    settings: &Settings,
    signals: &mut Signals,
) -> PumpOutcome {
    let exited = signals.exited.clone();
    let over = || async {
        tokio::select! {
            () = exited.cancelled() => {}
            () = context.closing.cancelled() => {}
        }
    };
    if capture.needs_log() {
        return PumpOutcome::default();
    }
    let mut pumped = PumpOutcome::default();
    match source {
        Source::None => return pumped,
        Source::Tap(stream) => {
            let end = capture.tap(stream, signals).await;
            pumped.tap_ended = capture.source_ended();
            match end {
                PumpEnd::Eof => {
                    pumped.eof = true;
                    // A container may close its output long before it ends; but so ends, too, the
                    // tap of an engine that is killed, or that a proxy cuts.
                    tokio::select! {
                        () = over() => return pumped,
                        () = sleep(EOF_TOLERANCE) => {}
                    }
                }
                PumpEnd::Broken(error) => tracing::warn!(%container, %error, "the tap broke"),
                PumpEnd::Silent(_) => tracing::warn!(%container, "the tap did not end"),
                end => return pumped.failed(end),
            }
        }
        Source::Follow => {}
    }
    if !context.runtime.capabilities().logs || settings.backstop == Backstop::None {
        return pumped;
    }
    let mut backoff = Backoff::new();
    loop {
        let follow = async {
            let inspection = context.runtime.inspect(container).await?;
            let Some(fidelity) = inspection.log.fidelity else {
                return Ok(None);
            };
            let request = LogsRequest::follow(settings.tty);
            let stream = context.runtime.logs(container, request).await?;
            Ok::<_, RuntimeError>(Some((fidelity, stream)))
        };
        let followed = tokio::select! {
            followed = follow => followed,
            () = over() => return pumped,
        };
        match followed {
            Ok(Some((fidelity, stream))) => {
                // It comes again.
                capture.forget_dropped();
                match capture
                    .replay(stream, fidelity, Reading::Preview, signals)
                    .await
                {
                    PumpEnd::Eof | PumpEnd::Silent(_) | PumpEnd::Broken(_) => {}
                    end => return pumped.failed(end),
                }
            }
            Ok(None) => return pumped,
            Err(error) => tracing::warn!(%container, %error, "cannot follow the engine's log yet"),
        }
        tokio::select! {
            () = backoff.pause() => {}
            () = over() => return pumped,
        }
    }
}

impl PumpOutcome {
    fn failed(mut self, end: PumpEnd) -> Self {
        self.failed = match end {
            PumpEnd::Sink(error) => Some(error),
            PumpEnd::Stalled => Some(Error::Stalled),
            _ => None,
        };
        self
    }
}
