//! The proof that a tap is complete: the captured output ends as the engine's log does.

use super::Progress;
use super::fidelity::count_log_records;
use super::lines::LineAssembler;
use crate::outcome::{PerStream, Stream};
use crate::runtime::{Chunk, LogFidelity};

/// The number of records to compare at the end of the log.
pub(crate) const TAIL_RECORDS: u32 = 64;

/// The last records of an engine's log, by stream.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    bytes: PerStream<Vec<u8>>,
}

impl Tail {
    /// Adds a chunk of the log's end.
    pub(crate) fn push(&mut self, chunk: &Chunk) {
        self.bytes[chunk.stream].extend_from_slice(&chunk.bytes);
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> usize {
        Stream::ALL
            .into_iter()
            .map(|stream| self.bytes[stream].len())
            .sum()
    }

    /// Returns true if the tail proves that the capture is complete.
    ///
    /// Then every byte of the log is in a record, or in an open line of `lines`.
    ///
    /// If the tail is the whole log, the capture must equal it. Otherwise each captured stream must
    /// end with its tail, and the tail must not repeat itself: a tap that was cut at one of many
    /// identical lines ends with the same bytes.
    pub(crate) fn agrees(
        &self,
        progress: &Progress,
        lines: &LineAssembler,
        fidelity: LogFidelity,
    ) -> bool {
        let records: usize = Stream::ALL
            .into_iter()
            .map(|stream| count_log_records(&self.bytes[stream]))
            .sum();
        let is_whole_log = records < TAIL_RECORDS as usize;
        Stream::ALL.into_iter().all(|stream| {
            let tail = &self.bytes[stream];
            let position = &progress.streams[stream];
            let captured = position.logged_recent(fidelity, lines.open_parts(stream));
            let total = position.logged + (captured.len() - position.recent().len()) as u64;
            let has_all = total == captured.len() as u64;
            if has_all && (is_whole_log || tail.len() > captured.len()) {
                return &captured == tail;
            }
            let common = captured.len().min(tail.len());
            let comparable = common > 0 || (tail.is_empty() && !is_whole_log);
            comparable
                && captured.ends_with(&tail[tail.len() - common..])
                && !repeats(tail)
                && !occurs_earlier(&captured, tail)
        })
    }
}

/// Returns true if `tail` also occurs in `captured` before its end.
///
/// Then a tap that was cut at the earlier position ends with the same bytes as a complete one.
fn occurs_earlier(captured: &[u8], tail: &[u8]) -> bool {
    !tail.is_empty()
        && tail.len() < captured.len()
        && memchr::memmem::find(&captured[..captured.len() - 1], tail).is_some()
}

/// Returns true if `tail` repeats with a period of at most half its lines.
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
        // The engine counts records of 16 KiB. The last lines are close enough for this test.
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
    fn the_tail_proves_a_complete_tap() {
        for (case, output) in [
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
            assert!(agrees(&output, &output), "{case}");
        }
    }

    #[test]
    fn the_tail_never_proves_a_cut_tap() {
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
    fn a_log_without_its_end_proves_nothing() {
        let output = numbered(2000);
        assert!(!agrees(&output, &output[..output.len() - 9]));
        assert!(!agrees(&output, b""));
    }
}
