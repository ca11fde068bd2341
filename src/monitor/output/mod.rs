//! The sources of a run's output while its container runs.

mod tap_check;

use std::ops::ControlFlow;
use std::pin::pin;

use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::tap_check::TapCheck;
use crate::capture::{Capture, PumpEnd, Reading, Signals};
use crate::error::{Error, RuntimeError};
use crate::monitor::context::Context;
use crate::monitor::evidence::{EOF_TOLERANCE, TapEndKind};
use crate::monitor::wait::Backoff;
use crate::runtime::{
    AttachedOutput, Capabilities, DrainLimit, LogFidelity, LogsRequest, OutputStream,
};
use crate::spec::{Backstop, ContainerId, Settings};

/// Longest time between two polls of output that the engine may cut off.
///
/// The engine does not report when an exec ended, or a container that was removed. How long the end
/// of the output waited for this process is bounded by the last poll that found no output.
const READ_PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// A source of output.
pub(super) enum Source {
    Tap(AttachedOutput),
    /// The engine's log, read from its start, and followed.
    Follow,
    None,
}

/// The end of all sources.
#[derive(Debug, Default)]
pub(super) struct PumpOutcome {
    /// When and how the tap ended.
    pub(super) tap_end: Option<(Instant, TapEndKind)>,
    /// The error of the sink, if the sink ended the capture.
    pub(super) failed: Option<Error>,
}

/// Captures the tap, then the engine's log if there is no tap or the tap breaks.
///
/// Output from the engine's log is only a preview: the log is read again after the exit.
pub(super) async fn pump(
    context: &Context,
    capture: &mut Capture,
    source: Source,
    container: &ContainerId,
    settings: &Settings,
    signals: &mut Signals,
) -> PumpOutcome {
    if capture.needs_log() {
        return PumpOutcome::default();
    }
    let outcome = match source {
        Source::None => return PumpOutcome::default(),
        Source::Follow => PumpOutcome::default(),
        Source::Tap(mut output) => {
            let Capabilities {
                attach_keepalive,
                log_rotates,
                ..
            } = context.runtime.capabilities();
            // An attachment to a log that rotates is that log.
            if has_log(context, settings) && !attach_keepalive && !log_rotates {
                let check = TapCheck::new(context, capture, container, settings, signals);
                output.stream = check.guard(output.stream);
            }
            match tap(context, capture, output, container, signals).await {
                ControlFlow::Continue(outcome) => outcome,
                ControlFlow::Break(outcome) => return outcome,
            }
        }
    };
    if !has_log(context, settings) {
        return outcome;
    }
    match follow(context, capture, container, settings.tty, signals).await {
        Some(end) => outcome.with_failure(end),
        None => outcome,
    }
}

/// Returns true if the engine keeps a log of the container.
fn has_log(context: &Context, settings: &Settings) -> bool {
    context.runtime.capabilities().logs && settings.backstop != Backstop::None
}

/// Captures the tap. Breaks if the engine's log must not be followed after it.
async fn tap(
    context: &Context,
    capture: &mut Capture,
    output: AttachedOutput,
    container: &ContainerId,
    signals: &mut Signals,
) -> ControlFlow<PumpOutcome, PumpOutcome> {
    let AttachedOutput {
        stream, end_marker, ..
    } = output;
    let drain = context.runtime.capabilities().drain;
    let end = read_tap(capture, stream, drain, signals).await;
    let kind = TapEndKind::new(&end, end_marker);
    let outcome = PumpOutcome {
        tap_end: capture.source_ended().map(|at| (at, kind)),
        ..PumpOutcome::default()
    };
    match end {
        PumpEnd::Eof if end_marker => ControlFlow::Break(outcome),
        PumpEnd::Eof => {
            // A container may close its output long before it ends. The tap of an engine that is
            // killed, or that a proxy cuts, ends in the same way.
            tokio::select! {
                () = exited_or_closing(context, &signals.exited) => ControlFlow::Break(outcome),
                () = sleep(EOF_TOLERANCE) => ControlFlow::Continue(outcome),
            }
        }
        PumpEnd::Broken(error) => {
            tracing::warn!(%container, %error, "the tap broke");
            ControlFlow::Continue(outcome)
        }
        PumpEnd::Silent(_) => {
            tracing::warn!(%container, "the tap did not end");
            ControlFlow::Continue(outcome)
        }
        end => ControlFlow::Break(outcome.with_failure(end)),
    }
}

/// Captures a tap until its end.
///
/// If the engine may cut off output, each [`READ_PROBE_INTERVAL`] polls the tap, which shows how
/// late it is read.
pub(super) async fn read_tap(
    capture: &mut Capture,
    stream: OutputStream,
    drain: Option<DrainLimit>,
    signals: &mut Signals,
) -> PumpEnd {
    let mut tap = pin!(capture.tap(stream, signals));
    loop {
        tokio::select! {
            end = &mut tap => return end,
            () = sleep(READ_PROBE_INTERVAL), if drain.is_some() => {}
        }
    }
}

/// Captures the engine's log until the container has ended or the manager closes.
///
/// Returns the end of the capture if it cannot continue.
async fn follow(
    context: &Context,
    capture: &mut Capture,
    container: &ContainerId,
    tty: bool,
    signals: &mut Signals,
) -> Option<PumpEnd> {
    let exited = signals.exited.clone();
    let mut backoff = Backoff::new();
    loop {
        let request = capture.with_times(LogsRequest::follow(tty));
        let followed = tokio::select! {
            followed = follow_log(context, capture, container, request) => followed,
            () = exited_or_closing(context, &exited) => return None,
        };
        match followed {
            Ok(Some((fidelity, stream))) => {
                // The log is read from its start: bytes past the output limit come again.
                capture.forget_dropped();
                let replay = capture.replay(stream, fidelity, Reading::Preview, signals);
                let end = replay.await;
                if !matches!(end, PumpEnd::Eof | PumpEnd::Silent(_) | PumpEnd::Broken(_)) {
                    return Some(end);
                }
            }
            Ok(None) => return None,
            Err(error) => {
                tracing::warn!(%container, %error, "cannot follow the engine's log: retrying");
                capture.forgo_times();
            }
        }
        tokio::select! {
            () = backoff.pause() => {}
            () = exited_or_closing(context, &exited) => return None,
        }
    }
}

/// Opens the engine's log. Returns `None` if the engine keeps no readable log.
async fn follow_log(
    context: &Context,
    capture: &mut Capture,
    container: &ContainerId,
    request: LogsRequest,
) -> Result<Option<(LogFidelity, OutputStream)>, RuntimeError> {
    let inspection = context.runtime.inspect(container).await?;
    let Some(fidelity) = capture.readable(inspection.log.fidelity) else {
        return Ok(None);
    };
    let stream = context.runtime.logs(container, request).await?;
    Ok(Some((fidelity, stream)))
}

async fn exited_or_closing(context: &Context, exited: &CancellationToken) {
    tokio::select! {
        () = exited.cancelled() => {}
        () = context.closing.cancelled() => {}
    }
}

impl PumpOutcome {
    fn with_failure(mut self, end: PumpEnd) -> Self {
        self.failed = match end {
            PumpEnd::Sink(error) => Some(error),
            PumpEnd::Stalled => Some(Error::Stalled),
            _ => None,
        };
        self
    }
}
