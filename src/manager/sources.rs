//! Where a run's output comes from while its container runs.

use tokio::time::Instant;

use super::Context;
use super::exit::Backoff;
use crate::capture::{Capture, PumpEnd, Signals};
use crate::runtime::{LogsRequest, OutputStream, RuntimeError};
use crate::{Backstop, ContainerId, Error, Settings};

/// Where output comes from.
pub(super) enum Source {
    Tap(OutputStream),
    /// The engine's log, read from its start and followed.
    Follow,
    None,
}

/// How the pumping of all sources ended.
#[derive(Default)]
pub(super) struct Pumped {
    /// When the tap came to a clean end.
    pub(super) eof: Option<Instant>,
    /// The sink's error, if that was it.
    pub(super) failed: Option<Error>,
}

/// Pumps the tap; and where that breaks, or there is none, what the engine's log has and gets, as
/// a preview: only what is read again after the exit counts.
pub(super) async fn pump(
    context: &Context,
    capture: &mut Capture,
    source: Source,
    container: &ContainerId,
    settings: &Settings,
    signals: &mut Signals,
) -> Pumped {
    let exited = signals.exited.clone();
    if capture.needs_log() {
        return Pumped::default();
    }
    match source {
        Source::None => return Pumped::default(),
        Source::Tap(stream) => match capture.tap(stream, signals).await {
            PumpEnd::Eof => {
                return Pumped {
                    eof: Some(Instant::now()),
                    failed: None,
                };
            }
            PumpEnd::Broken(error) => tracing::warn!(%container, %error, "the tap broke"),
            PumpEnd::Silent => tracing::warn!(%container, "the tap did not end"),
            end => return Pumped::failed(end),
        },
        Source::Follow => {}
    }
    if !context.runtime.capabilities().logs || settings.backstop == Backstop::None {
        return Pumped::default();
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
            () = exited.cancelled() => return Pumped::default(),
        };
        match followed {
            Ok(Some((fidelity, stream))) => {
                match capture.replay(stream, fidelity, false, signals).await {
                    PumpEnd::Eof | PumpEnd::Silent | PumpEnd::Broken(_) => {}
                    end => return Pumped::failed(end),
                }
            }
            Ok(None) => return Pumped::default(),
            Err(error) => tracing::warn!(%container, %error, "cannot follow the engine's log yet"),
        }
        tokio::select! {
            () = backoff.pause() => {}
            () = exited.cancelled() => return Pumped::default(),
        }
    }
}

impl Pumped {
    fn failed(end: PumpEnd) -> Self {
        let failed = match end {
            PumpEnd::Sink(error) => Some(error),
            PumpEnd::Stalled => Some(Error::Stalled),
            _ => None,
        };
        Self { eof: None, failed }
    }
}
