//! Small JSON files: `root.json`, `run.json` and the requests of other processes.

use std::io::{self, ErrorKind, Read};
use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::audit::line_reader::MAX_LINE_BYTES;
use crate::disk;
use crate::error::{Error, Result};

/// The size limit of `root.json` and `run.json`.
///
/// A run's record is also the first line of its audit file, so the limit of a line holds for both.
pub(super) const MAX_RECORD_BYTES: u64 = MAX_LINE_BYTES as u64;

/// The version that this library reads and writes.
const VERSION: u64 = 1;

/// Reads the first `max_bytes` bytes of a file.
pub(super) fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    // Nearly all of these files fit into 4 KiB, and are read with a single call.
    let mut bytes = Vec::with_capacity(4 << 10);
    disk::open_to_read(path)?
        .take(max_bytes)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::storage("read", path, error))?;
    Ok(bytes)
}

/// Parses the contents of a file, and refuses any version but [`VERSION`].
pub(super) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Version {
        v: u64,
    }
    let damaged = |error: serde_json::Error| Error::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    // The library writes `v` first, so one pass is enough. A second `v` later in the file is a
    // duplicate field, which fails in either case.
    if bytes.starts_with(br#"{"v":1,"#) {
        return serde_json::from_slice(bytes).map_err(damaged);
    }
    let Version { v } = serde_json::from_slice(bytes).map_err(damaged)?;
    if v != VERSION {
        let reason = format!("version {v} is not supported; this library reads version {VERSION}");
        let unsupported = io::Error::new(ErrorKind::Unsupported, reason);
        return Err(Error::storage("read", path, unsupported));
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

/// Serializes a value as a line of JSON.
pub(super) fn to_json_line(value: &impl Serialize) -> Vec<u8> {
    // Serialization fails only for maps with non-string keys, and these types have none.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
