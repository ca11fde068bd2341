//! Lines of output, masked whole: a secret in two pieces is one all the same.

use std::collections::VecDeque;
use std::path::Path;

use futures::StreamExt;
use moat::audit::{Event, Follow, Record};
use moat::outcome::{PerStream, Stream};

use crate::mask::Mask;

/// The most bytes of a line that are looked at.
const LONGEST: usize = 64 << 10;
/// The most lines that a [`Tail`] has, and about the most bytes.
const MOST_LINES: usize = 1000;
const MOST_BYTES: usize = 1 << 20;

/// A line that comes in pieces.
#[derive(Debug, Default)]
pub struct Line {
    bytes: Vec<u8>,
    cut: bool,
}

impl Line {
    pub fn push(&mut self, piece: &[u8]) {
        let room = LONGEST - self.bytes.len();
        self.cut |= piece.len() > room;
        self.bytes
            .extend_from_slice(&piece[..piece.len().min(room)]);
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The line, which is over, masked. What comes next is another one.
    pub fn take(&mut self, mask: &Mask) -> String {
        let mut bytes = mask.bytes(&self.bytes);
        if self.cut {
            // The cut may go through a secret, which is not found then.
            let end = bytes.len().saturating_sub(mask.longest());
            bytes.to_mut().truncate(end);
        }
        let mut line = String::from_utf8_lossy(&bytes).into_owned();
        if self.cut {
            line.push_str(" [...]");
        }
        self.bytes.clear();
        self.cut = false;
        line
    }
}

/// The last lines of an audit file.
#[derive(Debug, Default)]
pub struct Tail {
    pub lines: VecDeque<String>,
    bytes: usize,
    /// How many came before them.
    pub before: u64,
}

impl Tail {
    /// Reads the file at `audit` through, as far as it goes.
    pub async fn read(audit: &Path, mask: &Mask) -> moat::Result<Self> {
        let mut tail = Self::default();
        let mut open = PerStream::<Line>::default();
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
                    let what = if gap.possible { "may be" } else { "is" };
                    tail.push(format!("[output {what} missing: {:?}]", gap.reason));
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

    /// The last of its lines.
    pub fn last(&self, lines: usize) -> impl Iterator<Item = &str> {
        let skipped = self.lines.len().saturating_sub(lines);
        self.lines.iter().skip(skipped).map(String::as_str)
    }

    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > MOST_LINES || self.bytes > MOST_BYTES {
            let Some(first) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= first.len();
            self.before += 1;
        }
    }
}
