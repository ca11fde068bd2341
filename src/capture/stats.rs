//! Statistics of a capture, for the monitor to read while a pump runs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::audit::{Batch, Event, Gap, RecordRef};
use crate::outcome::PerStream;

/// Statistics of a capture. The pump writes them, and never waits for a reader.
#[derive(Debug, Default)]
pub(crate) struct CaptureStats {
    inner: Mutex<Inner>,
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

    pub(super) fn set_received(&self, bytes: PerStream<u64>) {
        self.lock().counts.bytes = bytes;
    }

    /// Counts a batch on its way to the log, and sets the total of records.
    pub(super) fn record_batch(&self, batch: &Batch, records: u64) {
        let mut inner = self.lock();
        inner.counts.records = records;
        for record in batch.iter() {
            if let RecordRef::Event(Event::Gap(gap)) = record {
                inner.gaps.push(gap.clone());
            }
        }
    }
}
