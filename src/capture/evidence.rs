//! The proof that a tap is complete: the captured output ends as the engine's log does.

use super::Progress;
use super::lines::LineAssembler;
use super::mask::{Masker, OutputMasker};
use crate::outcome::{PerStream, Stream};
use crate::runtime::{Chunk, LogFidelity, LogsRequest};

/// The number of records to compare at the end of a long log.
const TAIL_RECORDS: u32 = 64;

/// The end of an engine's log, by stream.
#[derive(Debug, Default)]
pub(crate) struct LogEnd {
    bytes: PerStream<Vec<u8>>,
    masker: OutputMasker,
}

impl LogEnd {
    /// Adds a chunk of the log's end.
    pub(crate) fn push(&mut self, chunk: &Chunk) {
        self.masker.push(chunk, &mut self.bytes[chunk.stream]);
    }

    /// Ends the log: no chunk follows.
    pub(crate) fn finish(&mut self) {
        for stream in Stream::ALL {
            self.masker.finish(stream, &mut self.bytes[stream]);
        }
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> usize {
        Stream::ALL
            .into_iter()
            .map(|stream| self.bytes[stream].len())
            .sum()
    }
}

/// The result of a comparison of a capture with the end of the engine's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// The log has all of the captured output, and nothing else.
    Equal,
    /// Both end with the same bytes. A tap that was cut at an earlier repetition of these bytes
    /// ends with them, too.
    ///
    /// The capture is complete if the log has exactly this number of records. With a masked value
    /// of several lines, the capture has fewer lines than the log.
    EqualEnd { records: u64 },
    /// The log ends with other bytes, or its end cannot be compared.
    Different,
}

/// The end that the engine's log must have if the capture is complete.
#[derive(Debug)]
pub(crate) struct ExpectedEnd {
    /// The last captured bytes, in their logged form.
    recent: PerStream<Vec<u8>>,
    /// True if these are all captured bytes.
    is_all: bool,
    /// The smallest number of records that can hold the captured output.
    ///
    /// An engine stores at most one line in a record, and a long line in several.
    records: u64,
}

impl ExpectedEnd {
    pub(super) fn new(
        progress: &Progress,
        lines: &LineAssembler,
        masker: &Masker,
        fidelity: LogFidelity,
    ) -> Self {
        let mut expected = Self {
            recent: PerStream::default(),
            is_all: true,
            records: 0,
        };
        for stream in Stream::ALL {
            let position = &progress.streams[stream];
            let (printed, from_log) = lines.open_parts(stream);
            // A tap is compared, so these bytes are as printed.
            let printed = [printed, &masker.end(stream)].concat();
            let recent = position.logged_recent(fidelity, (&printed, from_log));
            let unrecorded = (recent.len() - position.recent().len()) as u64;
            expected.is_all &= position.logged + unrecorded == recent.len() as u64;
            let has_open_line = recent.last().is_some_and(|byte| *byte != b'\n');
            expected.records += position.lines + u64::from(has_open_line);
            expected.recent[stream] = recent;
        }
        expected
    }

    /// Returns the request for the part of the log to compare: all of a short log.
    pub(crate) fn request(&self, tty: bool) -> LogsRequest {
        match self.is_all {
            true => LogsRequest::all(tty),
            false => LogsRequest::tail(tty, TAIL_RECORDS),
        }
    }

    /// Returns the log to compare, without a chunk.
    pub(super) fn empty_log_end(masker: &Masker, fidelity: LogFidelity) -> LogEnd {
        LogEnd {
            bytes: PerStream::default(),
            masker: masker.of_log(fidelity),
        }
    }

    /// Compares with the answer to the [`request`](Self::request).
    pub(crate) fn compare(&self, log: &LogEnd) -> Comparison {
        let agrees = |stream| {
            let (recent, log) = (&self.recent[stream], &log.bytes[stream]);
            if self.is_all {
                return recent == log;
            }
            match log.is_empty() {
                // The stream may be quiet. The end of its last line must be in the log's end.
                true => recent.last().is_none_or(|byte| *byte == b'\n'),
                false => {
                    let common = recent.len().min(log.len());
                    common > 0 && recent.ends_with(&log[log.len() - common..])
                }
            }
        };
        if log.len() == 0 && !self.is_all || !Stream::ALL.into_iter().all(agrees) {
            return Comparison::Different;
        }
        match self.is_all {
            true => Comparison::Equal,
            false => Comparison::EqualEnd {
                records: self.records,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fidelity::logged;
    use super::super::mask::Masks;
    use super::*;
    use crate::audit::Batch;
    use crate::timestamp::Timestamp;

    /// Output, by stream, in the order in which it was printed.
    type Output = Vec<(Stream, Vec<u8>)>;

    fn expected(output: &Output) -> ExpectedEnd {
        let mut lines = LineAssembler::default();
        let mut progress = Progress::default();
        let mut batch = Batch::new();
        for (stream, bytes) in output {
            lines.push(Timestamp::now(), *stream, bytes, &mut batch);
        }
        progress.observe_batch(&batch);
        let masker = Masker::new(Masks::None, PerStream::default());
        ExpectedEnd::new(&progress, &lines, &masker, LogFidelity::Utf8Lossy)
    }

    /// The records of a log of lines that are shorter than a record.
    fn records(output: &Output) -> Output {
        let lines = output.iter().flat_map(|(stream, bytes)| {
            let lines = bytes.split_inclusive(|byte| *byte == b'\n');
            lines.map(|line| (*stream, line.to_vec()))
        });
        lines.collect()
    }

    fn compare(captured: &Output, log: &Output) -> Comparison {
        let expected = expected(captured);
        let records = records(log);
        let tail = expected.request(false).tail.unwrap_or(u32::MAX) as usize;
        let mut end = LogEnd::default();
        for (stream, record) in &records[records.len().saturating_sub(tail)..] {
            let mut bytes = Vec::new();
            logged(LogFidelity::Utf8Lossy, 0, record, &mut bytes);
            end.push(&Chunk::new(*stream, bytes));
        }
        expected.compare(&end)
    }

    /// Returns true if the end of the log and its number of records prove that `captured` is
    /// complete.
    fn proves(captured: &Output, log: &Output) -> bool {
        match compare(captured, log) {
            Comparison::Equal => true,
            Comparison::EqualEnd { records: number } => records(log).len() as u64 == number,
            Comparison::Different => false,
        }
    }

    fn stdout(bytes: impl Into<Vec<u8>>) -> Output {
        vec![(Stream::Stdout, bytes.into())]
    }

    fn numbered(lines: usize) -> Vec<u8> {
        (0..lines)
            .flat_map(|n| format!("line {n}\n").into_bytes())
            .collect()
    }

    #[test]
    fn the_log_proves_a_complete_tap() {
        let both = |lines: usize| {
            vec![
                (Stream::Stderr, numbered(3)),
                (Stream::Stdout, numbered(lines)),
            ]
        };
        for (case, output) in [
            ("nothing", Vec::new()),
            ("short", stdout(numbered(3))),
            ("long", stdout(numbered(50_000))),
            (
                "open line",
                stdout([numbered(50_000), b"> ".to_vec()].concat()),
            ),
            (
                "bad bytes",
                stdout([numbered(50_000), b"\xff x\n".to_vec()].concat()),
            ),
            ("identical", stdout(b"y\n".repeat(100_000))),
            ("short, both streams", both(3)),
            ("long, one stream quiet", both(50_000)),
        ] {
            assert!(proves(&output, &output), "{case}");
        }
    }

    #[test]
    fn no_cut_tap_is_complete() {
        let block = |lines: usize, times: usize| numbered(lines).repeat(times);
        let foreign = |times: usize| [block(300, times), b"other\n".to_vec()].concat();
        for (case, output) in [
            ("numbered", numbered(30_000)),
            ("one line", b"y\n".repeat(100_000)),
            ("two lines", b"a\nb\n".repeat(50_000)),
            ("blocks of 64 lines", block(64, 400)),
            ("blocks of 4,096 lines", block(4096, 4)),
            ("blocks of 65,536 lines", block(65_536, 2)),
            ("a foreign line between blocks", foreign(60).repeat(3)),
            ("short blocks", block(20, 2)),
            ("short", b"y\n".repeat(20)),
        ] {
            let line_ends = output
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte == b'\n');
            let line_ends: Vec<_> = line_ends.map(|(at, _)| at + 1).collect();
            let step = line_ends.len().div_ceil(40);
            let cuts = line_ends.iter().rev().skip(1).step_by(step).copied();
            for cut in cuts.chain([0, 1, 3, output.len() / 2, output.len() - 1]) {
                let captured = stdout(&output[..cut]);
                assert!(
                    !proves(&captured, &stdout(&*output)),
                    "{case}, cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn an_open_line_that_the_end_does_not_show_proves_nothing() {
        let stderr = |text: &str| (Stream::Stderr, text.as_bytes().to_vec());
        let output = stdout(numbered(50_000)).swap_remove(0);
        let captured = vec![stderr("50 %"), output.clone()];
        assert!(!proves(&captured, &vec![stderr("50 %\n"), output.clone()]));
        let captured = vec![stderr("50 %\n"), output.clone()];
        assert!(proves(&captured, &captured));
    }

    #[test]
    fn a_log_without_its_end_proves_nothing() {
        for lines in [20, 50_000] {
            let output = numbered(lines);
            let cut = stdout(&output[..output.len() - 9]);
            assert!(!proves(&stdout(output.clone()), &cut));
            assert!(!proves(&stdout(output), &Vec::new()));
        }
    }

    #[test]
    fn long_lines_need_at_least_a_record_each() {
        let line = ["é".repeat(20_000).into_bytes(), b"\n".to_vec()].concat();
        let output = stdout(line.repeat(9));
        assert_eq!(expected(&output).records, 9);
    }
}
