//! Lines of output in bounded memory.
//!
//! Lines are masked after they are joined, so a secret that is split between two pieces is found.

use std::collections::VecDeque;
use std::path::Path;

use futures::StreamExt;
use moat::audit::{Event, Follow, Gap, Record};
use moat::outcome::{PerStream, Stream};

use crate::mask::Mask;

/// Maximum number of bytes that are kept of a line.
const MAX_LINE_BYTES: usize = 64 << 10;
/// Maximum number of lines in a [`Tail`].
const MAX_LINES: usize = 1000;
/// Maximum number of bytes in a [`Tail`].
const MAX_BYTES: usize = 1 << 20;

/// Joins the pieces of a line.
#[derive(Debug, Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    truncated: bool,
}

impl LineBuffer {
    pub fn push(&mut self, piece: &[u8]) {
        let room = MAX_LINE_BYTES - self.bytes.len();
        self.truncated |= piece.len() > room;
        self.bytes
            .extend_from_slice(&piece[..piece.len().min(room)]);
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the masked line, and starts the next one.
    pub fn take(&mut self, mask: &Mask) -> String {
        let mut bytes = mask.bytes(&self.bytes);
        if self.truncated {
            // The mask cannot find a secret that the end of the buffer cuts in two.
            let end = bytes.len().saturating_sub(mask.longest());
            bytes.to_mut().truncate(end);
        }
        let mut line = String::from_utf8_lossy(&bytes).into_owned();
        if self.truncated {
            line.push_str(" [...]");
        }
        self.bytes.clear();
        self.truncated = false;
        line
    }
}

/// The lines of an audit file, and one for each gap.
#[derive(Debug)]
pub struct Lines<'a> {
    open: PerStream<LineBuffer>,
    mask: &'a Mask,
}

impl<'a> Lines<'a> {
    pub fn new(mask: &'a Mask) -> Self {
        let open = PerStream::default();
        Self { open, mask }
    }

    /// Adds a record. Returns the lines that it completes, masked.
    pub fn push(&mut self, record: Record) -> Vec<String> {
        match record {
            Record::Output(output) => {
                let line = &mut self.open[output.stream];
                line.push(&output.bytes);
                let is_complete = !output.partial;
                is_complete
                    .then(|| line.take(self.mask))
                    .into_iter()
                    .collect()
            }
            Record::Event(Event::Gap(gap)) => self.push_gap(&gap),
            _ => Vec::new(),
        }
    }

    /// Returns the open lines that end at the gap, and a line about it.
    ///
    /// After a possible gap, a line may continue. Its parts are joined, so that a secret across the
    /// gap is masked.
    fn push_gap(&mut self, gap: &Gap) -> Vec<String> {
        let is_cut = |stream: &Stream| gap.stream.is_none_or(|cut| cut == *stream);
        let cut = Stream::ALL.into_iter().filter(is_cut);
        let cut = cut.filter(|_| !gap.possible);
        let mut lines: Vec<_> = cut.filter_map(|stream| self.flush(stream)).collect();
        let verb = if gap.possible { "may be" } else { "is" };
        lines.push(format!("[output {verb} missing: {}]", gap.reason));
        lines
    }

    /// The last line of each stream, if no newline ended it.
    pub fn rest(mut self) -> impl Iterator<Item = String> {
        let streams = Stream::ALL.into_iter();
        streams.filter_map(move |stream| self.flush(stream))
    }

    fn flush(&mut self, stream: Stream) -> Option<String> {
        let line = &mut self.open[stream];
        (!line.is_empty()).then(|| line.take(self.mask))
    }
}

/// The last lines of an audit file.
#[derive(Debug, Default)]
pub struct Tail {
    pub lines: VecDeque<String>,
    bytes: usize,
    /// Number of earlier lines, which were dropped.
    pub omitted: u64,
}

impl Tail {
    /// Reads the audit file up to its current end.
    pub async fn read(audit: &Path, mask: &Mask) -> moat::Result<Self> {
        let mut tail = Self::default();
        let mut lines = Lines::new(mask);
        let mut records = Follow::new(audit).wait(false).into_stream();
        while let Some(record) = records.next().await {
            for line in lines.push(record?) {
                tail.push(line);
            }
        }
        lines.rest().for_each(|line| tail.push(line));
        Ok(tail)
    }

    /// The last `count` lines.
    pub fn last(&self, count: usize) -> impl Iterator<Item = &str> {
        let skipped = self.lines.len().saturating_sub(count);
        self.lines.iter().skip(skipped).map(String::as_str)
    }

    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > MAX_LINES || self.bytes > MAX_BYTES {
            let Some(first) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= first.len();
            self.omitted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use moat::audit::{GapReason, Output};
    use moat::timestamp::Timestamp;

    use super::*;

    fn open(stream: Stream, text: &str) -> Record {
        let mut output = Output::new(Timestamp::now(), stream, text);
        output.partial = true;
        Record::Output(output)
    }

    fn gap(stream: Option<Stream>, possible: bool) -> Record {
        let mut gap = Gap::new(GapReason::LateDrain);
        (gap.stream, gap.possible) = (stream, possible);
        Record::Event(Event::Gap(gap))
    }

    /// The lines of a secret on standard output and of a warning, with a gap in the secret.
    fn lines_around(gap: Record) -> Vec<String> {
        let mask = Mask::new(["s3cr3t".to_owned()]);
        let mut lines = Lines::new(&mask);
        let rest = Output::new(Timestamp::now(), Stream::Stdout, "cr3t");
        let records = [
            open(Stream::Stdout, "s3"),
            open(Stream::Stderr, "warn"),
            gap,
            Record::Output(rest),
        ];
        let records = records.into_iter();
        let mut shown: Vec<_> = records.flat_map(|record| lines.push(record)).collect();
        shown.extend(lines.rest());
        shown
    }

    #[test]
    fn a_gap_ends_the_open_line() {
        let is_missing = "[output is missing: late_drain]";
        assert_eq!(
            lines_around(gap(Some(Stream::Stdout), false)),
            ["s3", is_missing, "cr3t", "warn"]
        );
        assert_eq!(
            lines_around(gap(None, false)),
            ["s3", "warn", is_missing, "cr3t"]
        );
    }

    #[test]
    fn a_possible_gap_leaves_the_line_open() {
        assert_eq!(
            lines_around(gap(None, true)),
            ["[output may be missing: late_drain]", "***", "warn"]
        );
    }
}
