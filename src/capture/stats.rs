//! Statistics of a capture, for the monitor to read while a pump runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::audit::{Batch, Event, Gap, RecordRef};
use crate::outcome::PerStream;

/// Statistics of a capture. The pump writes them, and never waits for a reader.
#[derive(Debug, Default)]
pub(crate) struct CaptureStats {
    inner: Mutex<Inner>,
    is_writing: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    last_activity: Option<Instant>,
    counts: Counts,
    gaps: Vec<Gap>,
}

/// The amount of output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// The number of bytes received, up to the output limit.
    pub(crate) bytes: PerStream<u64>,
    /// The number of output records that went to the log.
    pub(crate) records: u64,
    /// The number of complete lines in these records.
    pub(crate) lines: u64,
}

impl CaptureStats {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When output was last received, including output past the limit.
    pub(crate) fn last_activity(&self) -> Option<Instant> {
        self.lock().last_activity
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Takes the gaps recorded since the last call.
    pub(crate) fn take_gaps(&self) -> Vec<Gap> {
        std::mem::take(&mut self.lock().gaps)
    }

    /// Marks output as received now.
    ///
    /// A later `until` marks a time during which the source is not read, so that its output cannot
    /// be seen.
    pub(super) fn mark_activity(&self, until: Instant) {
        self.lock().last_activity = Some(until);
    }

    /// Sets the last activity to `at` if it is `before`. Returns true if it was.
    pub(crate) fn replace_activity(&self, before: Option<Instant>, at: Instant) -> bool {
        let mut inner = self.lock();
        let is_same = inner.last_activity == before;
        if is_same {
            inner.last_activity = Some(at);
        }
        is_same
    }

    /// Returns true while received output waits for the log.
    ///
    /// Its lines are not counted yet.
    pub(crate) fn is_writing(&self) -> bool {
        self.is_writing.load(Ordering::Relaxed)
    }

    pub(super) fn set_writing(&self, is_writing: bool) {
        self.is_writing.store(is_writing, Ordering::Relaxed);
    }

    pub(super) fn set_received(&self, bytes: PerStream<u64>) {
        self.lock().counts.bytes = bytes;
    }

    /// Counts a batch on its way to the log, and sets the totals of records and lines.
    pub(super) fn record_batch(&self, batch: &Batch, records: u64, lines: u64) {
        let mut inner = self.lock();
        inner.counts.records = records;
        inner.counts.lines = lines;
        for record in batch.iter() {
            if let RecordRef::Event(Event::Gap(gap)) = record {
                inner.gaps.push(gap.clone());
            }
        }
    }
}
