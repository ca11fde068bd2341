//! What other processes leave for the owner of a run to record.

use std::path::PathBuf;

use crate::audit::{Event as Record, Stop};
use crate::disk;
use crate::error::Result;
use crate::root::{Root, read};
use crate::spec::RunId;

/// What is longer than this is no request to stop a run.
const LONGEST_REQUEST: u64 = 64 << 10;

impl Root {
    /// What other processes have left for the owner of a run to record, the oldest first.
    pub(crate) fn left(&self, run: &RunId) -> Vec<(PathBuf, Record)> {
        let Ok(entries) = std::fs::read_dir(self.dir(run)) else {
            return Vec::new();
        };
        let mut left = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let (stop, note) = (name.starts_with("stop-"), name.starts_with("note-"));
            if !(stop || note) || !name.ends_with(".json") {
                continue;
            }
            let Ok(bytes) = read(&path, LONGEST_REQUEST) else {
                continue;
            };
            let record = match stop {
                true => serde_json::from_slice(&bytes).ok().map(Record::Stop),
                // Nothing but notes is anybody else's to add.
                false => serde_json::from_slice(&bytes)
                    .ok()
                    .filter(|record| matches!(record, Record::Note { .. })),
            };
            left.extend(record.map(|record| (path, record)));
        }
        // Their names say the order of their files alone, which threads have made.
        left.sort_by_key(|(_, record)| match record {
            Record::Note { ts, .. } => Some(*ts),
            Record::Stop(stop) => Some(stop.ts),
            _ => None,
        });
        left
    }

    /// Leaves a note on a run, for its owner to record.
    pub(crate) fn leave_note(&self, run: &RunId, note: &Record) -> Result<()> {
        let name = format!("note-{}.json", RunId::generate());
        let bytes = serde_json::to_vec(note).unwrap_or_default();
        disk::write_atomic(&self.dir(run).join(name), &bytes)
    }

    /// Leaves a request to stop a run, for its owner to record.
    pub(crate) fn leave_stop(&self, run: &RunId, stop: &Stop) -> Result<()> {
        let name = format!("stop-{}.json", RunId::generate());
        let bytes = serde_json::to_vec(stop).unwrap_or_default();
        disk::write_atomic(&self.dir(run).join(name), &bytes)
    }
}
