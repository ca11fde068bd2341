//! How far a capture has come, for its monitor to look at while the pump runs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::audit::{Batch, Event, Gap, RecordRef};
use crate::outcome::PerStream;

/// How far a capture has come. The pump writes it, and never waits for who looks at it.
#[derive(Debug, Default)]
pub(crate) struct CaptureStats {
    beat: Mutex<Beat>,
}

#[derive(Debug, Default)]
struct Beat {
    heard: Option<Instant>,
    counts: Counts,
    gaps: Vec<Gap>,
}

/// How much output there was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Bytes that were received, and are not past the limit.
    pub(crate) bytes: PerStream<u64>,
    /// Records of output that went to the log.
    pub(crate) records: u64,
}

impl CaptureStats {
    fn beat(&self) -> MutexGuard<'_, Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When something was last received; also what is past the limit.
    pub(crate) fn last_activity(&self) -> Option<Instant> {
        self.beat().heard
    }

    pub(crate) fn counts(&self) -> Counts {
        self.beat().counts
    }

    /// The gaps that were recorded since this was last asked for.
    pub(crate) fn take_gaps(&self) -> Vec<Gap> {
        std::mem::take(&mut self.beat().gaps)
    }

    /// Something was received, or, for some time to come, nothing can be: then nobody knows.
    pub(super) fn mark_activity(&self, until: Instant) {
        self.beat().heard = Some(until);
    }

    pub(super) fn set_received(&self, bytes: PerStream<u64>) {
        self.beat().counts.bytes = bytes;
    }

    /// What is on its way to the log, of which `records` are output in all.
    pub(super) fn record_batch(&self, batch: &Batch, records: u64) {
        let mut beat = self.beat();
        beat.counts.records = records;
        for record in batch.iter() {
            if let RecordRef::Event(Event::Gap(gap)) = record {
                beat.gaps.push(gap.clone());
            }
        }
    }
}
