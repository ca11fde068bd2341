//! Whether the tap was whole: its last bytes against the last records of the engine's log.

use super::Progress;
use super::fidelity::log_records;
use super::lines::LineAssembler;
use crate::outcome::{PerStream, Stream};
use crate::runtime::{Chunk, LogFidelity};

/// How many of the log's last records are compared.
pub(crate) const TAIL_RECORDS: u32 = 64;

/// The last records of an engine's log, by stream.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    bytes: PerStream<Vec<u8>>,
}

impl Tail {
    /// Adds a part of it.
    pub(crate) fn push(&mut self, chunk: &Chunk) {
        self.bytes[chunk.stream].extend_from_slice(&chunk.bytes);
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> usize {
        Stream::ALL.iter().map(|s| self.bytes[*s].len()).sum()
    }

    /// Whether the tail shows that every byte of the log is in the records, or open in `lines`.
    ///
    /// Where it is the whole log, the two must be equal. Otherwise each stream must end with what
    /// the tail has of it, and the tail must not repeat itself: identical lines agree with a tap
    /// that was cut at any of them.
    pub(crate) fn agrees(
        &self,
        progress: &Progress,
        lines: &LineAssembler,
        fidelity: LogFidelity,
    ) -> bool {
        let records: usize = Stream::ALL
            .iter()
            .map(|stream| log_records(&self.bytes[*stream]))
            .sum();
        let is_all = records < TAIL_RECORDS as usize;
        Stream::ALL.iter().all(|stream| {
            let tail = &self.bytes[*stream];
            let position = &progress.streams[*stream];
            let ours = position.logged_recent(fidelity, lines.open_parts(*stream));
            let all = position.logged + (ours.len() - position.recent().len()) as u64;
            let has_all = all == ours.len() as u64;
            if has_all && (is_all || tail.len() > ours.len()) {
                return &ours == tail;
            }
            let common = ours.len().min(tail.len());
            let comparable = common > 0 || (tail.is_empty() && !is_all);
            comparable
                && ours.ends_with(&tail[tail.len() - common..])
                && !repeats(tail)
                && !came_before(&ours, tail)
        })
    }
}

/// Whether `tail` is also somewhere in `ours` before its end: then a tap that was cut at the one
/// place looks like a whole one at the other.
fn came_before(ours: &[u8], tail: &[u8]) -> bool {
    !tail.is_empty()
        && tail.len() < ours.len()
        && memchr::memmem::find(&ours[..ours.len() - 1], tail).is_some()
}

/// Whether the lines of `tail` are of a period of at most half of their number.
fn repeats(tail: &[u8]) -> bool {
    let lines: Vec<&[u8]> = tail.split_inclusive(|byte| *byte == b'\n').collect();
    (1..=lines.len() / 2).any(|period| {
        lines[period..]
            .iter()
            .zip(&lines)
            .all(|(later, earlier)| later == earlier)
    })
}

#[cfg(test)]
mod tests {
    use super::super::fidelity::logged;
    use super::*;
    use crate::audit::Batch;
    use crate::timestamp::Timestamp;

    fn captured(bytes: &[u8]) -> (Progress, LineAssembler) {
        let mut lines = LineAssembler::default();
        let mut progress = Progress::default();
        let mut batch = Batch::new();
        lines.push(Timestamp::now(), Stream::Stdout, bytes, &mut batch);
        progress.observe_batch(&batch);
        (progress, lines)
    }

    fn agrees(captured_bytes: &[u8], log: &[u8]) -> bool {
        let (progress, lines) = captured(captured_bytes);
        // The engine counts records of 16 KiB; a stand-in that takes the last lines will do.
        let lines_of_log: Vec<&[u8]> = log.split_inclusive(|b| *b == b'\n').collect();
        let from = lines_of_log.len().saturating_sub(TAIL_RECORDS as usize);
        let mut tail = Tail::default();
        for line in &lines_of_log[from..] {
            let mut bytes = Vec::new();
            logged(LogFidelity::Utf8Lossy, 0, line, &mut bytes);
            tail.push(&Chunk {
                stream: Stream::Stdout,
                bytes: bytes.into(),
            });
        }
        tail.agrees(&progress, &lines, LogFidelity::Utf8Lossy)
    }

    fn numbered(lines: usize) -> Vec<u8> {
        (0..lines)
            .flat_map(|n| format!("line {n}\n").into_bytes())
            .collect()
    }

    #[test]
    fn a_whole_tap_is_proven_by_the_tail_also_with_an_open_line_and_bad_bytes() {
        for (what, output) in [
            ("nothing", Vec::new()),
            ("short", numbered(3)),
            ("long", numbered(50_000)),
            ("open line", [numbered(1000), b"prompt> ".to_vec()].concat()),
            (
                "bad bytes",
                [numbered(1000), b"\xff\xfe x\n".to_vec()].concat(),
            ),
            ("identical but few", b"y\n".repeat(20)),
            (
                "long lines",
                (0..9)
                    .flat_map(|n| {
                        [
                            n.to_string().as_bytes(),
                            "é".repeat(20_000).as_bytes(),
                            b"\n",
                        ]
                        .concat()
                    })
                    .collect(),
            ),
        ] {
            assert!(agrees(&output, &output), "{what}");
        }
    }

    /// Invariant 7.
    #[test]
    fn a_tap_that_was_cut_is_never_proven() {
        let output = numbered(2000);
        for cut in [0, 1, 7, output.len() / 2, output.len() - 1] {
            assert!(!agrees(&output[..cut], &output), "cut at {cut}");
        }
        let short = numbered(3);
        for cut in 0..short.len() {
            assert!(!agrees(&short[..cut], &short), "cut at {cut}");
        }
        let identical = b"y\n".repeat(100_000);
        assert!(!agrees(&identical[..2000], &identical));
        let cycle = b"a\nb\nc\n".repeat(1000);
        assert!(!agrees(&cycle[..600], &cycle));
        let block = numbered(100);
        assert!(!agrees(&block.repeat(3), &block.repeat(4)));
    }

    #[test]
    fn a_log_that_lost_its_end_is_no_proof() {
        let output = numbered(2000);
        assert!(!agrees(&output, &output[..output.len() - 9]));
        assert!(!agrees(&output, b""));
    }
}
