//! Lines of output in bounded memory.
//!
//! Lines are masked after they are joined, so a secret that is split between two pieces is found.

use std::collections::VecDeque;
use std::path::Path;

use futures::StreamExt;
use moat::audit::{Event, Follow, Record};
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
        let mut open = PerStream::<LineBuffer>::default();
        let mut records = Follow::new(audit).wait(false).into_stream();
        while let Some(record) = records.next().await {
            match record? {
                Record::Output(output) => {
                    let line = &mut open[output.stream];
                    line.push(&output.bytes);
                    if !output.partial {
                        tail.push(line.take(mask));
                    }
                }
                Record::Event(Event::Gap(gap)) => {
                    let verb = if gap.possible { "may be" } else { "is" };
                    tail.push(format!("[output {verb} missing: {:?}]", gap.reason));
                }
                _ => {}
            }
        }
        for stream in Stream::ALL {
            if !open[stream].is_empty() {
                tail.push(open[stream].take(mask));
            }
        }
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
