//! The proof that a log has a certain number of records.
//!
//! The engine cannot count the records of a log, but it finds its last `n` quickly: it searches the
//! file backwards for newlines (0.5 s for 150 MB, of which a replay takes 5 s). If the last `n`
//! records begin as the whole log does, and the last `n - 1` do not, then the log has `n`. The time
//! stamps of the records tell equal lines apart. Only the first bytes of each are read.

use futures::StreamExt;

use super::client::Client;
use super::output::Output;
use crate::error::RuntimeError;
use crate::outcome::Stream;
use crate::runtime::{LogsRequest, OutputStream};
use crate::spec::ContainerId;

const OPERATION: &str = "find the start of the container's log";

/// The numbers of bytes to compare, in this order. The engine takes 5 us for each line that it sends.
const COMPARED_BYTES: [usize; 2] = [4 << 10, 64 << 10];

impl Client {
    /// Returns true if the log has exactly this number of records.
    ///
    /// `false` proves nothing.
    pub(super) async fn log_has_exactly(
        &self,
        container: &ContainerId,
        tty: bool,
        records: u64,
    ) -> Result<bool, RuntimeError> {
        let Ok(tail) = u32::try_from(records) else {
            return Ok(false);
        };
        if self.podman {
            return Ok(false);
        }
        let compared = async {
            for bytes in COMPARED_BYTES {
                let start = |request| self.log_start(container, request, bytes);
                let whole = start(LogsRequest::all(tty));
                let last = start(LogsRequest::tail(tty, tail));
                let fewer = start(LogsRequest::tail(tty, tail.saturating_sub(1)));
                let (whole, last, fewer) = tokio::try_join!(whole, last, fewer)?;
                if !whole.has_same_bytes(&last) {
                    return Ok(false);
                }
                if whole.is_also_start_of(&last) {
                    return Ok(!whole.has_same_bytes(&fewer));
                }
            }
            Ok(false)
        };
        self.within_timeout(OPERATION, compared).await
    }

    async fn log_start(
        &self,
        container: &ContainerId,
        request: LogsRequest,
        bytes: usize,
    ) -> Result<LogStart, RuntimeError> {
        let answer = self.open_log(container, &request, true).await;
        let answer = answer.map_err(self.error(OPERATION))?;
        let output = Output::of_log(answer, request.tty, false, OPERATION, self.address.clone());
        LogStart::read(output.boxed(), bytes).await
    }
}

/// The first bytes of a log, in which each record begins with its time stamp and a space.
#[derive(Debug, Default)]
struct LogStart {
    /// The bytes of consecutive records of one stream.
    runs: Vec<(Stream, Vec<u8>)>,
    bytes: usize,
    /// True if the log ends here.
    is_all: bool,
}

impl LogStart {
    /// Reads at most `limit` bytes.
    async fn read(mut log: OutputStream, limit: usize) -> Result<Self, RuntimeError> {
        let mut start = Self::default();
        while let Some(chunk) = log.next().await {
            let chunk = chunk?;
            start.push(chunk.stream, &chunk.bytes, limit);
            if start.bytes == limit {
                return Ok(start);
            }
        }
        start.is_all = true;
        Ok(start)
    }

    fn push(&mut self, stream: Stream, bytes: &[u8], limit: usize) {
        let bytes = &bytes[..bytes.len().min(limit - self.bytes)];
        self.bytes += bytes.len();
        match self.runs.last_mut() {
            Some((last, run)) if *last == stream => run.extend_from_slice(bytes),
            _ => self.runs.push((stream, bytes.to_vec())),
        }
    }

    /// Returns true if `last`, the end of the same log, begins at the first record.
    ///
    /// Some engines give the records of one read the same time stamp. A later record of that read
    /// may look like the first, but fewer records with this time stamp follow it. The time stamp
    /// must therefore change in the compared part, unless that part is everything.
    fn is_also_start_of(&self, last: &Self) -> bool {
        self.has_same_bytes(last) && (self.is_all || self.time_stamp_changes())
    }

    fn has_same_bytes(&self, other: &Self) -> bool {
        self.runs == other.runs && self.is_all == other.is_all
    }

    fn time_stamp_changes(&self) -> bool {
        let mut first = None;
        for (_, run) in &self.runs {
            for record in run.split_inclusive(|byte| *byte == b'\n') {
                // The last record may be cut off in its time stamp.
                let Some(end) = memchr::memchr(b' ', record) else {
                    continue;
                };
                let time_stamp = &record[..end];
                if *first.get_or_insert(time_stamp) != time_stamp {
                    return true;
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log with a record per entry: the time stamp, and the stream.
    fn log(records: &[(u32, Stream)]) -> Vec<(Stream, Vec<u8>)> {
        let record = |(at, stream): &(u32, Stream)| {
            let line = format!("2026-11-26T18:00:00.{at:09}Z {}\n", "same ".repeat(100));
            (*stream, line.into_bytes())
        };
        records.iter().map(record).collect()
    }

    fn start(records: &[(Stream, Vec<u8>)], limit: usize) -> LogStart {
        let mut start = LogStart::default();
        for (stream, record) in records {
            start.push(*stream, record, limit);
        }
        start.is_all = start.bytes < limit;
        start
    }

    /// Checks that only as many records as the log has begin where the log does.
    fn check(records: &[(Stream, Vec<u8>)], is_provable: bool) {
        let provable = COMPARED_BYTES.map(|limit| {
            let whole = start(records, limit);
            for from in 1..records.len() {
                let last = start(&records[from..], limit);
                assert!(!whole.is_also_start_of(&last), "from record {from}");
            }
            whole.is_also_start_of(&whole)
        });
        assert_eq!(provable.contains(&true), is_provable);
    }

    #[test]
    fn only_the_whole_log_begins_as_the_log_does() {
        const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];
        for length in [2, 60, 2000] {
            let each = (0..length).map(|at| (at, Stream::Stdout));
            check(&log(&each.collect::<Vec<_>>()), true);
            // Seven records of each read have the same time stamp.
            let reads = (0..length).map(|at| (at / 7, Stream::Stdout));
            check(&log(&reads.collect::<Vec<_>>()), true);
            let mixed = (0..length).map(|at| (at / 7, STREAMS[at as usize / 5 % 2]));
            check(&log(&mixed.collect::<Vec<_>>()), true);
        }
    }

    #[test]
    fn equal_records_of_one_time_stamp_prove_nothing() {
        let records = log(&[(0, Stream::Stdout); 2000]);
        check(&records[..1], true);
        check(&records, false);
    }
}
