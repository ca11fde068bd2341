//! The detection of an attachment that delivers nothing while the container writes.
//!
//! A proxy that stops forwarding, and keeps its connections open, has no other symptom. The engine's
//! log shows the output that the attachment does not deliver.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::capture::{Capture, CaptureStats, Signals};
use crate::error::RuntimeError;
use crate::monitor::context::Context;
use crate::runtime::{ContainerStatus, LogsRequest, OutputStream, Runtime};
use crate::spec::{ContainerId, Settings};

/// The silence of an attachment before the first check.
const FIRST_CHECK: Duration = Duration::from_secs(10);
/// The longest interval of the checks. It doubles while the attachment stays silent.
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(300);
/// The time after a check in which output that is in the log may still arrive.
const DELIVERY_TIME: Duration = Duration::from_secs(5);
/// The timeout of a check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);
/// The part of a silence limit between two checks.
///
/// A run is not stopped for silence if it has written output two checks before the limit, even if the
/// output does not arrive.
const SILENCE_LIMIT_PART: u32 = 6;
/// The shortest interval of the checks.
const MIN_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest delivery time, unless the silence limit is less than twice as long.
const MIN_DELIVERY_TIME: Duration = Duration::from_secs(2);

/// The number of captured lines up to which the lines of the log are counted.
///
/// The engine takes about 5 us for each line that it sends. The end of a longer log is compared with
/// that of the last check, which does not detect a repetition of the same line.
const MAX_COUNTED_LINES: u64 = 10_000;
/// The number of compared records at the end of a longer log.
const COMPARED_RECORDS: u32 = 100;
/// The number of bytes after which a check gives up.
const MAX_LOG_BYTES: usize = 8 << 20;

/// The check of one attachment.
pub(super) struct TapCheck {
    runtime: Arc<dyn Runtime>,
    container: ContainerId,
    tty: bool,
    stats: Arc<CaptureStats>,
    /// Set if the capture has the lines of the log. Masked output may have fewer.
    counts_lines: bool,
    /// Cancelled once output is dropped. The log then has more than the capture.
    limit: CancellationToken,
    first_check: Duration,
    max_interval: Duration,
    delivery_time: Duration,
}

/// The end of a log.
#[derive(Debug, Default, PartialEq, Eq)]
struct LogEnd {
    bytes: Vec<u8>,
    lines: u64,
}

/// The end of a long log at the last check during a silence.
#[derive(Debug, Default)]
struct LongLog {
    end: Option<LogEnd>,
    /// The log had grown since the check before. An engine may write its log late, after the
    /// attachment has delivered the output.
    has_grown: bool,
}

impl TapCheck {
    pub(super) fn new(
        context: &Context,
        capture: &Capture,
        container: &ContainerId,
        settings: &Settings,
        signals: &Signals,
    ) -> Self {
        let limit = settings.silence_limit.unwrap_or(Duration::MAX);
        let interval = (limit / SILENCE_LIMIT_PART).max(MIN_CHECK_INTERVAL);
        let delivery_time = (limit / SILENCE_LIMIT_PART).max(MIN_DELIVERY_TIME.min(limit / 2));
        Self {
            runtime: Arc::clone(&context.runtime),
            container: container.clone(),
            tty: settings.tty,
            stats: Arc::clone(capture.stats()),
            counts_lines: !capture.masking().spans_lines,
            limit: signals.limit.clone(),
            first_check: interval.min(FIRST_CHECK),
            max_interval: interval.min(MAX_CHECK_INTERVAL),
            delivery_time: delivery_time.min(DELIVERY_TIME),
        }
    }

    /// Returns the stream. It ends with an error once a check finds output that does not arrive.
    pub(super) fn guard(self, stream: OutputStream) -> OutputStream {
        let mut stream = Some(stream);
        let mut stuck = Box::pin(self.wait_until_stuck());
        stream::poll_fn(move |cx| {
            let Some(inner) = &mut stream else {
                return Poll::Ready(None);
            };
            if let Poll::Ready(item) = inner.poll_next_unpin(cx) {
                return Poll::Ready(item);
            }
            match stuck.as_mut().poll(cx) {
                Poll::Ready(error) => {
                    stream = None;
                    Poll::Ready(Some(Err(error)))
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .boxed()
    }

    async fn wait_until_stuck(self) -> RuntimeError {
        let mut interval = self.first_check;
        let mut checked = Instant::now();
        let mut last_active = None;
        let mut long_log = LongLog::default();
        loop {
            let active = self.stats.last_activity();
            if active != last_active {
                interval = self.first_check;
                last_active = active;
                long_log = LongLog::default();
            }
            sleep_until(active.map_or(checked, |at| at.max(checked)) + interval).await;
            // The queue has lines that are not counted yet.
            if self.stats.last_activity() != active || self.stats.is_writing() {
                checked = Instant::now();
                continue;
            }
            // Boxed, because the future of each run stays in memory until the run ends.
            let check = Box::pin(timeout(CHECK_TIMEOUT, self.log_is_ahead(&mut long_log)));
            let is_ahead = matches!(check.await, Ok(Ok(true)));
            checked = Instant::now();
            interval = (interval * 2).min(self.max_interval);
            if is_ahead
                // The container is not silent, even if its output does not arrive.
                && self.stats.replace_activity(active, checked)
            {
                last_active = Some(checked);
                sleep(self.delivery_time).await;
                if self.is_idle_since(checked) {
                    return RuntimeError::Broken {
                        operation: "read the output of the container",
                        reason: "the engine's log has output that the attachment does not deliver"
                            .into(),
                    };
                }
            }
        }
    }

    /// Returns true if nothing has arrived since the check at `checked`.
    fn is_idle_since(&self, checked: Instant) -> bool {
        self.stats.last_activity() == Some(checked)
            && !self.stats.is_writing()
            && !self.limit.is_cancelled()
    }

    /// Returns true if the log certainly has output that was not received.
    ///
    /// A long log must have grown in two checks of this silence.
    async fn log_is_ahead(&self, long_log: &mut LongLog) -> Result<bool, RuntimeError> {
        let inspection = self.runtime.inspect(&self.container).await?;
        if inspection.status != ContainerStatus::Running
            || inspection.log.fidelity.is_none()
            || self.limit.is_cancelled()
        {
            return Ok(false);
        }
        let lines = self.stats.counts().lines;
        if lines > MAX_COUNTED_LINES || !self.counts_lines {
            let end = self.read_log_tail(COMPARED_RECORDS, true).await?;
            let has_grown = long_log.end.is_some() && end.is_some() && long_log.end != end;
            let had_grown = std::mem::replace(&mut long_log.has_grown, has_grown);
            long_log.end = end;
            return Ok(had_grown && has_grown);
        }
        // A log that replaces bytes keeps the number of lines.
        let end = self.read_log_tail(lines as u32 + 1, false).await?;
        Ok(end.is_some_and(|end| end.lines > lines))
    }

    /// Reads the last records of the log, and keeps their bytes if `keep` is true.
    ///
    /// `None`: they have too many bytes.
    async fn read_log_tail(
        &self,
        records: u32,
        keep: bool,
    ) -> Result<Option<LogEnd>, RuntimeError> {
        let request = LogsRequest::tail(self.tty, records);
        let mut log = self.runtime.logs(&self.container, request).await?;
        let mut end = LogEnd::default();
        let mut size = 0;
        while let Some(chunk) = log.next().await {
            let bytes = chunk?.bytes;
            size += bytes.len();
            if size > MAX_LOG_BYTES {
                return Ok(None);
            }
            end.lines += memchr::memchr_iter(b'\n', &bytes).count() as u64;
            if keep {
                end.bytes.extend_from_slice(&bytes);
            }
        }
        Ok(Some(end))
    }
}
