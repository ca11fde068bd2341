//! Requests and notes that other processes leave for the owner of a run to record.

use std::fs;
use std::path::{Path, PathBuf};

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
        let entries = fs::read_dir(self.dir(run)).into_iter().flatten().flatten();
        let mut pending: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.path();
                let record = read_request(&path)?;
                Some((path, record))
            })
            .collect();
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

/// Reads a request or a note. Returns `None` for any other file.
fn read_request(path: &Path) -> Option<Event> {
    let name = path.file_name()?.to_str()?;
    let is_stop = name.starts_with("stop-");
    if !(is_stop || name.starts_with("note-")) || !name.ends_with(".json") {
        return None;
    }
    let bytes = read(path, MAX_REQUEST_BYTES).ok()?;
    if is_stop {
        return serde_json::from_slice(&bytes).ok().map(Event::Stop);
    }
    let record: Event = serde_json::from_slice(&bytes).ok()?;
    // Other processes may add notes, but no other kind of record.
    matches!(record, Event::Note { .. }).then_some(record)
}
