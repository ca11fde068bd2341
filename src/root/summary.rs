//! A summary of an audit file, read from both of its ends.

use std::fs;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use crate::audit::Event;
use crate::audit::line::{self, Line};
use crate::audit::line_reader::MAX_LINE_BYTES;
use crate::audit::scan::{ends_as_seal, newline_lost};
use crate::disk;
use crate::error::{Error, Result};
use crate::outcome::Seal;
use crate::spec::RunRecord;
use crate::timestamp::Timestamp;

/// The number of bytes to read from each end of an audit file.
const EDGE_BYTES: u64 = 64 * 1024;

/// The records near the start and at the end of an audit file.
#[derive(Default)]
pub(crate) struct AuditSummary {
    pub(crate) record: Option<RunRecord>,
    /// The start of the container by the engine's clock, or else the time of its record.
    pub(super) started_at: Option<Timestamp>,
    /// The id of the engine that started the container.
    pub(crate) engine_id: Option<String>,
    pub(crate) seal: Option<Seal>,
    /// The damage that is visible in the parts that were read.
    pub(super) problem: Option<String>,
}

impl AuditSummary {
    /// Reads both ends of an audit file. Returns `None` if the file does not exist.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let mut file = match disk::open_to_read(path) {
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => return Ok(None),
            opened => opened?,
        };
        let failed = |error| Error::storage("read", path, error);
        let length = file.metadata().map_err(failed)?.len();
        let mut head = Vec::new();
        file.by_ref()
            .take(EDGE_BYTES.min(length))
            .read_to_end(&mut head)
            .map_err(failed)?;
        let mut summary = Self::default();
        let zeros_problem = summary.add_head(&head);
        let last = last_line(&mut file, length).map_err(failed)?;
        summary.add_last_line(&last, zeros_problem);
        Ok(Some(summary))
    }

    /// Adds the records at the start of the file.
    ///
    /// Returns the problem with a line that has zero bytes. A power failure leaves such lines where
    /// records were not synced, so they are damage only in a sealed file.
    fn add_head(&mut self, head: &[u8]) -> Option<String> {
        let lines = head.split_inclusive(|byte| *byte == b'\n');
        let lines = lines.take_while(|line| line.ends_with(b"\n"));
        for (index, text) in lines.enumerate() {
            match line::parse(text) {
                Ok(Line::Event(Event::Start(start))) if index == 0 => {
                    self.record = Some(start.record);
                }
                Ok(Line::Event(Event::Started(started))) => {
                    self.started_at = Some(started.started_at.unwrap_or(started.ts));
                    self.engine_id = started.engine_id;
                }
                Ok(_) if index > 0 => {}
                Ok(_) => {
                    let problem = "the audit file does not begin with a start record";
                    self.problem = Some(problem.to_owned());
                }
                Err(bad) => {
                    let problem = format!("line {} of the audit file: {}", index + 1, bad.reason());
                    if line::has_zeros(text) {
                        return Some(problem);
                    }
                    self.problem = Some(problem);
                    return None;
                }
            }
        }
        None
    }

    /// Adds the seal, or the problem with the last line.
    ///
    /// If the file is sealed, `zeros_problem` is a problem too.
    fn add_last_line(&mut self, last: &[u8], zeros_problem: Option<String>) {
        let problem = match line::parse(last) {
            Ok(Line::Event(Event::End(seal))) if line::split_seal(last).is_some() => {
                self.seal = Some(*seal);
                self.problem = self.problem.take().or(zeros_problem);
                return;
            }
            Ok(Line::Event(Event::End(_))) => {
                "the end record of the audit file has no digest".to_owned()
            }
            Ok(Line::Unknown(_)) if ends_as_seal(last) => {
                "the end record of the audit file is damaged".to_owned()
            }
            Err(_) if newline_lost(last) => {
                "the end record of the audit file has lost its newline".to_owned()
            }
            Err(bad)
                if self.problem.is_none() && last.ends_with(b"\n") && !line::has_zeros(last) =>
            {
                format!("the last line of the audit file: {}", bad.reason())
            }
            _ => return,
        };
        self.problem = Some(problem);
    }
}

/// Reads the last line. It has no newline if the file ends in an incomplete record.
fn last_line(file: &mut fs::File, length: u64) -> io::Result<Vec<u8>> {
    let mut wanted = EDGE_BYTES;
    loop {
        let from = length.saturating_sub(wanted);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.by_ref().take(length - from).read_to_end(&mut bytes)?;
        let without_newline = bytes.len() - usize::from(bytes.ends_with(b"\n"));
        match memchr::memrchr(b'\n', &bytes[..without_newline]) {
            Some(newline) => return Ok(bytes.split_off(newline + 1)),
            None if from == 0 || wanted > MAX_LINE_BYTES as u64 => return Ok(bytes),
            None => wanted *= 4,
        }
    }
}
