//! The replay of an engine's log, except for the output that is already captured.

use bytes::Bytes;
use memchr::memchr_iter;

use super::Progress;
use super::lines::LineAssembler;
use crate::audit::{Batch, GapReason};
use crate::outcome::{PerStream, Stream};
use crate::runtime::{Chunk, LogFidelity};
use crate::timestamp::Timestamp;

/// A read of the engine's log that skips the captured output.
///
/// The replay skips captured lines by counting newlines, because the log may have changed the bytes
/// of a line. Then it compares the last bytes before the position in their logged form.
#[derive(Debug)]
pub(super) struct Replay {
    streams: PerStream<Skip>,
}

#[derive(Debug, Default)]
struct Skip {
    /// The number of complete lines left to skip.
    lines: u64,
    /// The number of bytes of the log left to skip after these lines.
    open: u64,
    /// The bytes that the log should have before the position.
    expected: Vec<u8>,
    /// The bytes that the log has before the position.
    seen: Vec<u8>,
    /// The incomplete character that was removed from the open line. The log repeats it.
    held: Vec<u8>,
    /// Set if the log may have split other characters than those of `expected`.
    ///
    /// It splits lines by their length, which masked lines do not have.
    other_splits: bool,
    /// Set if such a split makes the position in the open line unknown.
    unknown_open: bool,
    state: SkipState,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum SkipState {
    #[default]
    Skipping,
    /// At or past the position: all further bytes are new.
    Passed,
    /// The log differs from the capture: none of its bytes are used.
    Differs,
}

impl Replay {
    /// Creates a replay that continues after `progress` and the open lines of `lines`.
    pub(super) fn new(
        progress: &Progress,
        lines: &mut LineAssembler,
        fidelity: LogFidelity,
    ) -> Self {
        let mut streams = PerStream::<Skip>::default();
        for stream in Stream::ALL {
            // The log has the whole character, or a replacement.
            let held = match fidelity {
                LogFidelity::Utf8Lossy => lines.take_incomplete(stream),
                LogFidelity::Lossless | LogFidelity::Rotated => Vec::new(),
            };
            let position = &progress.streams[stream];
            let skip = &mut streams[stream];
            skip.lines = position.lines;
            skip.expected = position.logged_recent(fidelity, lines.open_parts(stream));
            let open = skip.expected.len() - position.recent().len();
            skip.open = position.open_logged + open as u64;
            skip.held = held;
            skip.other_splits = progress.is_masked() && fidelity == LogFidelity::Utf8Lossy;
            let unrecorded = lines.open(stream);
            skip.unknown_open = skip.other_splits && position.may_be_split(unrecorded);
            if skip.lines == 0 && skip.open == 0 {
                skip.state = SkipState::Passed;
            }
        }
        Self { streams }
    }

    /// Returns the new part of `chunk`.
    ///
    /// If the log differs from the capture, the reason is returned once per stream, as an error.
    pub(super) fn push(&mut self, chunk: &Chunk) -> Result<Bytes, GapReason> {
        let skip = &mut self.streams[chunk.stream];
        match skip.state {
            SkipState::Passed => Ok(chunk.bytes.clone()),
            SkipState::Differs => Ok(Bytes::new()),
            SkipState::Skipping => {
                let passed = skip.pass(&chunk.bytes);
                if skip.lines > 0 || skip.open > 0 {
                    return Ok(Bytes::new());
                }
                let agrees = skip.agrees();
                skip.seen = Vec::new();
                if agrees {
                    skip.state = SkipState::Passed;
                    Ok(chunk.bytes.slice(passed..))
                } else {
                    skip.state = SkipState::Differs;
                    Err(GapReason::LogDiffers)
                }
            }
        }
    }

    /// Returns true once the log is at or past the position of the stream.
    pub(super) fn has_passed(&self, stream: Stream) -> bool {
        self.streams[stream].state == SkipState::Passed
    }

    /// Ends the replay, and returns the streams whose position the log did not reach.
    ///
    /// The held incomplete characters of streams that the log did not continue go back to `lines`.
    pub(super) fn finish(self, lines: &mut LineAssembler, batch: &mut Batch) -> Vec<Stream> {
        let mut shorter = Vec::new();
        // The held bytes are as printed.
        lines.set_replacing_log(false);
        for stream in Stream::ALL {
            let skip = &self.streams[stream];
            if skip.state != SkipState::Passed {
                lines.push(Timestamp::now(), stream, &skip.held, batch);
            }
            if skip.state == SkipState::Skipping {
                shorter.push(stream);
            }
        }
        shorter
    }
}

impl Skip {
    /// Returns true if the log ends at the position as the capture does.
    fn agrees(&self) -> bool {
        if self.unknown_open {
            return false;
        }
        if shares_suffix(&self.seen, &self.expected) {
            return true;
        }
        self.other_splits
            && shares_suffix(&without_splits(&self.seen), &without_splits(&self.expected))
    }

    /// Skips bytes up to the position, and returns their number.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut passed = 0;
        if self.lines > 0 {
            match memchr_iter(b'\n', bytes).nth((self.lines - 1) as usize) {
                Some(end) => {
                    self.lines = 0;
                    passed = end + 1;
                }
                None => {
                    self.lines -= memchr_iter(b'\n', bytes).count() as u64;
                    passed = bytes.len();
                }
            }
        }
        if self.lines == 0 {
            let open = (bytes.len() - passed).min(usize::try_from(self.open).unwrap_or(usize::MAX));
            self.open -= open as u64;
            passed += open;
        }
        self.remember(&bytes[..passed]);
        passed
    }

    /// Keeps the last bytes before the position.
    fn remember(&mut self, bytes: &[u8]) {
        let keep = self.expected.len();
        let bytes = &bytes[bytes.len().saturating_sub(keep)..];
        if self.seen.len() + bytes.len() > 2 * keep {
            let drop = (self.seen.len() + bytes.len() - keep).min(self.seen.len());
            self.seen.drain(..drop);
        }
        self.seen.extend_from_slice(bytes);
    }
}

/// Returns true if the shorter of both is the end of the longer one.
fn shares_suffix(seen: &[u8], expected: &[u8]) -> bool {
    let common = seen.len().min(expected.len());
    seen.ends_with(&expected[expected.len() - common..])
}

/// Returns `bytes` with one byte in place of all adjacent bytes beyond ASCII.
///
/// A log that replaces invalid bytes, or splits characters, does not change this form. The first
/// byte is left out, because it may be a part of a character.
fn without_splits(bytes: &[u8]) -> Vec<u8> {
    let mut form: Vec<_> = bytes.iter().map(|byte| (*byte).min(0x80)).collect();
    form.dedup_by(|byte, previous| *byte == 0x80 && *previous == 0x80);
    form.drain(..form.len().min(1));
    form
}

#[cfg(test)]
mod tests {
    use super::super::fidelity::logged;
    use super::*;
    use crate::audit::{RecordRef, Started};
    use proptest::prelude::*;

    fn rebuilt(batch: &Batch) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in batch.iter() {
            if let RecordRef::Output {
                bytes: line,
                partial,
                ..
            } = record
            {
                bytes.extend_from_slice(line);
                if !partial {
                    bytes.push(b'\n');
                }
            }
        }
        bytes
    }

    /// Captures `first` bytes of `output` by a tap, and the rest by replays.
    ///
    /// The replays read the given lengths of the log in turn, then the whole log. With `crash`,
    /// bytes without a record are lost before each replay.
    fn resume(
        output: &[u8],
        first: usize,
        crash: bool,
        fidelity: LogFidelity,
        chunk: usize,
        parts: &[usize],
    ) -> (Vec<u8>, bool) {
        let now = Timestamp::now();
        let mut lines = LineAssembler::default();
        let mut progress = Progress::default();
        progress.started = Some(Started {
            ts: now,
            container: crate::spec::ContainerId::new("c"),
            started_at: None,
            image_digest: None,
            log: crate::runtime::LogConfig {
                fidelity: Some(fidelity),
                ..Default::default()
            },
            engine: String::new(),
            engine_version: String::new(),
            engine_id: None,
            warnings: Vec::new(),
        });
        let mut batch = Batch::new();
        lines.push(now, Stream::Stdout, &output[..first], &mut batch);
        progress.observe_batch(&batch);
        let mut bytes = rebuilt(&batch);
        let mut log = Vec::new();
        logged(fidelity, 0, output, &mut log);
        let mut wrong = false;
        for (n, part) in parts.iter().chain([&usize::MAX]).enumerate() {
            if crash {
                lines = LineAssembler::default();
            }
            let log = &log[..log.len().min(*part)];
            let mut replay = Replay::new(&progress, &mut lines, fidelity);
            lines.set_replacing_log(fidelity == LogFidelity::Utf8Lossy);
            let mut batch = Batch::new();
            for part in log.chunks(chunk) {
                match replay.push(&Chunk::new(Stream::Stdout, Bytes::copy_from_slice(part))) {
                    Ok(new) => lines.push(now, Stream::Stdout, &new, &mut batch),
                    Err(_) => wrong = true,
                }
            }
            let shorter = replay.finish(&mut lines, &mut batch);
            if n == parts.len() {
                wrong |= !shorter.is_empty();
                lines.finish(&mut batch);
            }
            progress.observe_batch(&batch);
            bytes.extend(rebuilt(&batch));
        }
        (bytes, wrong)
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(
            prop_oneof![
                Just("x".to_string()),
                Just("é€🦀".to_string()),
                Just("\n".to_string()),
                Just("🦀".repeat(5000)),
                Just("ab".repeat(9000)),
                "[a-z]{0,40}\n",
            ],
            0..40,
        )
        .prop_map(|parts| parts.concat().into_bytes())
    }

    proptest! {
        /// A replay may start after any byte, in the same process or in another one.
        #[test]
        fn a_replay_continues_where_the_capture_ended(
            output in text(),
            first in any::<usize>(),
            crash in any::<bool>(),
            chunk in 1usize..70_000,
            parts in prop::collection::vec(0usize..200_000, 0..3),
        ) {
            let first = first % (output.len() + 1);
            let (bytes, wrong) = resume(&output, first, crash, LogFidelity::Lossless, chunk, &parts);
            prop_assert!(!wrong);
            prop_assert!(bytes == output);

            // A replacing log keeps the number of lines. Without replacements it keeps all bytes.
            let (bytes, wrong) = resume(&output, first, crash, LogFidelity::Utf8Lossy, chunk, &parts);
            prop_assert!(!wrong);
            let lines = |bytes: &[u8]| memchr_iter(b'\n', bytes).count();
            prop_assert_eq!(lines(&bytes), lines(&output));
            if !String::from_utf8_lossy(&bytes).contains('\u{FFFD}') {
                prop_assert!(bytes == output);
            }
        }

        #[test]
        fn a_replay_of_random_bytes_loses_no_line(
            output in prop::collection::vec(any::<u8>(), 0..5000),
            first in any::<usize>(),
            crash in any::<bool>(),
            parts in prop::collection::vec(0usize..10_000, 0..3),
        ) {
            let first = first % (output.len() + 1);
            let (bytes, wrong) = resume(&output, first, crash, LogFidelity::Utf8Lossy, 997, &parts);
            prop_assert!(!wrong);
            prop_assert_eq!(
                memchr_iter(b'\n', &bytes).count(),
                memchr_iter(b'\n', &output).count()
            );
        }
    }

    #[test]
    fn a_shorter_or_different_log_is_detected() {
        let mut lines = LineAssembler::default();
        let mut progress = Progress::default();
        let mut batch = Batch::new();
        lines.push(Timestamp::now(), Stream::Stdout, b"a\nb\nc\n", &mut batch);
        progress.observe_batch(&batch);
        let chunk = |bytes: &'static [u8]| Chunk::new(Stream::Stdout, Bytes::from_static(bytes));

        let mut replay = Replay::new(&progress, &mut lines, LogFidelity::Lossless);
        assert_eq!(replay.push(&chunk(b"a\nb\n")), Ok(Bytes::new()));
        assert_eq!(replay.finish(&mut lines, &mut batch), [Stream::Stdout]);

        let mut replay = Replay::new(&progress, &mut lines, LogFidelity::Lossless);
        assert_eq!(
            replay.push(&chunk(b"a\nX\nc\nd\n")),
            Err(GapReason::LogDiffers)
        );
        assert_eq!(replay.push(&chunk(b"e\n")), Ok(Bytes::new()));
    }
}
