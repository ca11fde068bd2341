//! The file `run.json`.

use std::fs;
use std::io::ErrorKind;

use serde::{Deserialize, Serialize};

use crate::disk;
use crate::error::{Error, Result};
use crate::outcome::{Ending, Seal};
use crate::root::Root;
use crate::root::json_file::{MAX_RECORD_BYTES, parse, read, to_json_line};
use crate::spec::{RunId, RunRecord};

pub(crate) const RUN_FILE: &str = "run.json";

/// The contents of `run.json`: the record of a run, and the seal of a sealed run.
///
/// Where `run.json` and the audit file differ, the audit file wins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunFile {
    pub(crate) v: u32,
    #[serde(flatten)]
    pub(crate) record: RunRecord,
    /// The ending of a run that cannot be sealed yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ending: Option<Ending>,
    /// The ending of the run if its container is missing.
    ///
    /// The owner writes it before it removes a container that was not started. It is not definitive
    /// while the container exists, because the container may turn out to run.
    #[serde(rename = "if_gone", default, skip_serializing_if = "Option::is_none")]
    pub(crate) ending_if_missing: Option<Ending>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seal: Option<Seal>,
    /// True if a caller has removed the container of the sealed run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) container_removed: bool,
    /// The reason that a log of the run is not signed; `None` if nothing is to be signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unsigned: Option<String>,
}

impl RunFile {
    /// The file of a run that has not ended.
    pub(crate) fn new(record: RunRecord) -> Self {
        Self {
            v: 1,
            record,
            ending: None,
            ending_if_missing: None,
            seal: None,
            container_removed: false,
            unsigned: None,
        }
    }
}

impl RunFile {
    /// Returns true if the record has the facts of the audit file's `start` record.
    ///
    /// The container, the deadline and the id of the engine are known only later.
    pub(crate) fn has_record(&self, start: &RunRecord) -> bool {
        let early = |record: &RunRecord| RunRecord {
            container: None,
            deadline: None,
            engine_id: None,
            ..record.clone()
        };
        early(&self.record) == early(start)
    }
}

impl Root {
    /// Reads `run.json` of a run. Returns `None` if the file does not exist.
    pub(crate) fn read_run(&self, run: &RunId) -> Result<Option<RunFile>> {
        let path = self.dir(run).join(RUN_FILE);
        let bytes = match read(&path, MAX_RECORD_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let file: RunFile = parse(&path, &bytes)?;
        self.check_place(run, &file.record, &path)?;
        Ok(Some(file))
    }

    /// Replaces `run.json` of a run atomically.
    pub(crate) fn write_run(&self, file: &RunFile) -> Result<()> {
        let path = self.dir(&file.record.run).join(RUN_FILE);
        disk::write_atomic(&path, &to_json_line(file))
    }

    /// Renames a damaged `run.json`, and returns its new name.
    pub(crate) fn quarantine(&self, run: &RunId) -> Result<String> {
        let dir = self.dir(run);
        let unused_name = (1u64..)
            .map(|number| format!("{RUN_FILE}.damaged-{number}"))
            .find(|name| dir.join(name).symlink_metadata().is_err())
            .unwrap_or_default();
        let path = dir.join(RUN_FILE);
        fs::rename(&path, dir.join(&unused_name))
            .map_err(|error| Error::storage("quarantine", path, error))?;
        disk::sync_dir(&dir)?;
        Ok(unused_name)
    }
}
