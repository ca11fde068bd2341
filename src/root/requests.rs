//! Requests and notes that other processes leave for the owner of a run to record.

use std::path::PathBuf;

use crate::audit::{Event, Stop};
use crate::disk;
use crate::error::Result;
use crate::root::Root;
use crate::root::json_file::read;
use crate::spec::RunId;

/// The size limit of a request. Larger files are ignored.
const MAX_REQUEST_BYTES: u64 = 64 << 10;

impl Root {
    /// Reads the requests and notes that wait in the directory of a run, oldest first.
    pub(crate) fn pending_requests(&self, run: &RunId) -> Vec<(PathBuf, Event)> {
        let Ok(entries) = std::fs::read_dir(self.dir(run)) else {
            return Vec::new();
        };
        let mut pending = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let (stop, note) = (name.starts_with("stop-"), name.starts_with("note-"));
            if !(stop || note) || !name.ends_with(".json") {
                continue;
            }
            let Ok(bytes) = read(&path, MAX_REQUEST_BYTES) else {
                continue;
            };
            let record = match stop {
                true => serde_json::from_slice(&bytes).ok().map(Event::Stop),
                // Other processes may add notes, but no other kind of record.
                false => serde_json::from_slice(&bytes)
                    .ok()
                    .filter(|record| matches!(record, Event::Note { .. })),
            };
            pending.extend(record.map(|record| (path, record)));
        }
        // File names are ordered by when a writer thread created them, not by the request's time.
        pending.sort_by_key(|(_, record)| match record {
            Event::Note { ts, .. } => Some(*ts),
            Event::Stop(stop) => Some(stop.ts),
            _ => None,
        });
        pending
    }

    /// Writes a note for the owner of a run to record.
    pub(crate) fn leave_note(&self, run: &RunId, note: &Event) -> Result<()> {
        let name = format!("note-{}.json", RunId::generate());
        let bytes = serde_json::to_vec(note).unwrap_or_default();
        disk::write_atomic(&self.dir(run).join(name), &bytes)
    }

    /// Writes a stop request for the owner of a run to record.
    pub(crate) fn leave_stop(&self, run: &RunId, stop: &Stop) -> Result<()> {
        let name = format!("stop-{}.json", RunId::generate());
        let bytes = serde_json::to_vec(stop).unwrap_or_default();
        disk::write_atomic(&self.dir(run).join(name), &bytes)
    }
}
