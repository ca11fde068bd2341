//! The watch for the end of an exec and of its output.

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{ExecOutcome, broken_exec, wait_exec};
use crate::audit::{Event, Gap, GapReason};
use crate::capture::{CaptureStats, PumpEnd};
use crate::error::{RuntimeError, chain};
use crate::monitor::entry::lock;
use crate::outcome::Evidence;
use crate::runtime::{ExecId, Runtime};
use crate::spec::{ContainerId, Secrets};

/// Interval at which a running exec is inspected.
const INSPECT_INTERVAL: Duration = Duration::from_millis(500);

/// Time without output after the end of an exec, after which its output ends.
const DRAIN_SILENCE: Duration = Duration::from_secs(2);

/// Time between the last sign that an exec was running and the end of its output, after which the
/// engine may have cut the output.
///
/// Docker cuts it 2 s after the end of the exec, which may have ended right after that sign. Docker 28
/// answers an inspection meanwhile only after the cut.
const ENGINE_CUT: Duration = Duration::from_millis(1750);

/// Longest time after the end of an exec for which its output is captured.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The detail of the gap of an exec whose output was cut.
const HELD_OPEN: &str = "the output was still open after the end of the exec: a background process \
                         may hold it. Later output is not captured";

/// Records each reason for which the exec could not be killed. Never resolves.
pub(super) async fn report_kill_failures(
    mut failures: watch::Receiver<Option<Arc<RuntimeError>>>,
    records: mpsc::UnboundedSender<Event>,
    secrets: &Secrets,
) {
    let mut reported = None;
    while failures.changed().await.is_ok() {
        let failure = failures.borrow_and_update().clone();
        let text = failure.map(|error| secrets.redact(&chain(&*error)));
        if text != reported
            && let Some(text) = &text
        {
            let _ = records.send(Event::note(format!("the exec continues: {text}")));
        }
        reported = text;
    }
    pending().await
}

/// The watch for the end of an exec.
pub(super) struct ExecWatch<'a> {
    pub(super) runtime: &'a dyn Runtime,
    pub(super) container: &'a ContainerId,
    pub(super) id: &'a ExecId,
    pub(super) stats: Arc<CaptureStats>,
    /// Cancelled to end the output while another process holds it open.
    pub(super) cut: CancellationToken,
    /// True if the engine cuts the output some time after the end of the exec.
    pub(super) engine_cuts: bool,
    /// When the last inspection began that found the exec running. At first, its start.
    pub(super) last_running: Mutex<Instant>,
}

impl ExecWatch<'_> {
    /// Waits for the end of the exec and of its output. Never resolves if the manager closes.
    pub(super) async fn end(
        &self,
        tap_end: oneshot::Receiver<PumpEnd>,
        end_marker: bool,
        secrets: &Secrets,
        closing: &CancellationToken,
    ) -> ExecOutcome {
        match self.output_end(tap_end).await {
            Some(end) if !closing.is_cancelled() => match broken_exec(end, secrets) {
                Some(outcome) => outcome,
                None => self.exit(end_marker, self.may_be_cut()).await,
            },
            // The watch ends because the manager closes. The next opening seals the log.
            _ => pending().await,
        }
    }

    /// Waits for the end of the output. A background process does not delay it.
    async fn output_end(&self, mut tap_end: oneshot::Receiver<PumpEnd>) -> Option<PumpEnd> {
        tokio::select! {
            biased;
            end = &mut tap_end => return end.ok(),
            () = self.drained() => self.cut.cancel(),
        }
        tap_end.await.ok()
    }

    /// Waits for the end of the exec, and for the rest of its output.
    async fn drained(&self) {
        loop {
            sleep(INSPECT_INTERVAL).await;
            let begun = Instant::now();
            match self.runtime.exec_inspect(self.id).await {
                Ok(inspection) if inspection.running => *lock(&self.last_running) = begun,
                Ok(_) => break,
                Err(_) => {}
            }
        }
        let ended = Instant::now();
        loop {
            let now = Instant::now();
            let last_output = match self.stats.is_writing() {
                true => now,
                false => self.stats.last_activity().map_or(ended, |at| at.max(ended)),
            };
            let drained_at = (last_output + DRAIN_SILENCE).min(ended + DRAIN_TIMEOUT);
            if drained_at <= now {
                return;
            }
            sleep_until(drained_at).await;
        }
    }

    /// Returns true if the output that ends now may have been cut.
    fn may_be_cut(&self) -> bool {
        let by_engine = lock(&self.last_running).elapsed() >= ENGINE_CUT;
        self.cut.is_cancelled() || (self.engine_cuts && by_engine)
    }

    /// Waits for the end of an exec whose output has ended cleanly, or was cut.
    async fn exit(&self, end_marker: bool, cut: bool) -> ExecOutcome {
        let exit = wait_exec(self.runtime, self.container, self.id, end_marker);
        let mut exit = exit.await;
        if cut {
            exit.evidence = Evidence::None;
            exit.gaps = vec![Gap {
                detail: Some(HELD_OPEN.into()),
                ..Gap::possible(GapReason::NoBackstop)
            }];
        }
        exit
    }
}
