//! The masking of a capture.

use super::Capture;
use crate::audit::{Batch, GapReason};
use crate::capture::evidence::{ExpectedEnd, LogEnd};
use crate::capture::mask::{CapturedPart, MaskOffsets, Masker, Masks};
use crate::capture::replay::Replay;
use crate::capture::signals::Signals;
use crate::capture::source::Reading;
use crate::error::Error;
use crate::outcome::{PerStream, Stream};
use crate::runtime::{Chunk, LogFidelity};
use crate::timestamp::Timestamp;

/// The state of the masking of a capture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Masking {
    /// The number of replacements in the captured output. `None` if the run has no masks, or if the
    /// number is unknown.
    pub(crate) count: Option<u64>,
    /// Output must not be captured, because this process does not know the masks.
    pub(crate) is_missing: bool,
    /// Output was discarded for that reason, and the log has none.
    pub(crate) has_discarded: bool,
    /// A masked value contains a newline, so the capture may have fewer lines than the engine's log.
    pub(crate) spans_lines: bool,
}

impl Capture {
    /// Masks the output from now on.
    pub(crate) fn with_masks(mut self, masks: Masks) -> Self {
        self.masker = Masker::new(masks, self.progress.bytes());
        self
    }

    /// Returns the engine's log to compare with the expected end, without a chunk.
    pub(crate) fn empty_log_end(&self, fidelity: LogFidelity) -> LogEnd {
        ExpectedEnd::empty_log_end(&self.masker, fidelity)
    }

    /// The masking of the output.
    pub(crate) fn masking(&self) -> Masking {
        Masking {
            count: self.masker.count_all(),
            is_missing: self.masker.masks().is_missing(),
            // Without a record of output, the discarded output is not in the log.
            has_discarded: self.masker.has_discarded() && self.progress.records == 0,
            spans_lines: self.masker.spans_lines(),
        }
    }

    /// Returns the fidelity of the engine's log, unless the masked values cannot be found in it.
    pub(crate) fn readable(&self, fidelity: Option<LogFidelity>) -> Option<LogFidelity> {
        fidelity.filter(|fidelity| self.masker.can_read(*fidelity))
    }

    /// Captures the output that was held back for masking. After an error the log is lost.
    ///
    /// `is_end` is true if the streams certainly have no other bytes.
    pub(crate) async fn finish_masking(&mut self, is_end: bool) -> Result<(), Error> {
        let mut ends = Ends::new(self, Batch::new());
        self.lines
            .set_replacing_log(self.masker.reads_replacing_log());
        for stream in Stream::ALL {
            let (chunk, offsets) = self.masker.finish(stream, is_end);
            ends.capture(self, chunk, &offsets, 0);
        }
        self.lines.set_replacing_log(false);
        self.append(ends.batch).await
    }

    /// Applies the output limit to output that is discarded without the masks.
    ///
    /// The log is read from its start, so this is all of the output.
    pub(super) fn limit_discarded(&self, signals: &Signals) {
        let discarded = self.masker.discarded();
        if self.limit.is_some_and(|limit| discarded > limit) {
            signals.limit.cancel();
        }
    }

    /// Ends the masking of the engine's log, which was not read to its end if it is a preview.
    ///
    /// Output that is held back, and that is not captured yet, stays until
    /// [`finish_masking`](Self::finish_masking).
    pub(super) fn finish_replay_masking(
        &mut self,
        replay: &mut Replay,
        reading: Reading,
        batch: Batch,
    ) -> Batch {
        let mut ends = Ends::new(self, batch);
        for stream in Stream::ALL {
            let gap = match reading {
                Reading::Final { .. } => self.skip_end(stream, replay, &mut ends),
                Reading::Preview => None,
            };
            let is_shorter = self.masker.finish_log(stream, replay.has_passed(stream));
            let gap = gap.or(is_shorter.then_some(GapReason::LogShorter));
            let gap = gap.and_then(|reason| self.gap(stream, reason, Some(reading)));
            if let Some(gap) = gap {
                ends.batch.push_event(gap);
            }
        }
        ends.batch
    }

    /// Takes the end of a stream that is held back, and that precedes the captured position: an
    /// earlier attempt to seal the run has captured it.
    fn skip_end(
        &mut self,
        stream: Stream,
        replay: &mut Replay,
        ends: &mut Ends,
    ) -> Option<GapReason> {
        if replay.has_passed(stream) {
            return None;
        }
        let (chunk, offsets) = self.masker.finish(stream, true);
        if chunk.bytes.is_empty() {
            return None;
        }
        let length = chunk.bytes.len();
        match replay.push(&chunk) {
            Ok(bytes) if replay.has_passed(stream) => {
                let skipped = length - bytes.len();
                ends.capture(self, Chunk { bytes, ..chunk }, &offsets, skipped);
                None
            }
            Ok(_) => None,
            Err(reason) => Some(reason),
        }
    }
}

/// The ends of the streams that were held back, as they are captured.
struct Ends {
    received: PerStream<u64>,
    batch: Batch,
}

impl Ends {
    fn new(capture: &Capture, batch: Batch) -> Self {
        Self {
            received: capture.received(),
            batch,
        }
    }

    /// Captures the end of a stream, after `skipped` bytes of it that are captured already.
    fn capture(
        &mut self,
        capture: &mut Capture,
        chunk: Chunk,
        offsets: &MaskOffsets,
        skipped: usize,
    ) {
        let (stream, new) = (chunk.stream, chunk.bytes.len());
        if skipped + new == 0 {
            return;
        }
        let chunk = capture.admit(chunk, &mut self.received);
        let kept = chunk.bytes.len();
        let part = CapturedPart { skipped, new, kept };
        capture.masker.count(stream, offsets, part);
        let (lines, now) = (&mut capture.lines, Timestamp::now());
        lines.push(now, stream, &chunk.bytes, &mut self.batch);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use bytes::Bytes;
    use futures::{FutureExt, StreamExt, stream};
    use proptest::prelude::*;

    use super::*;
    use crate::audit::{Event, RecordRef, Start};
    use crate::capture::fidelity::logged;
    use crate::capture::pump::PumpEnd;
    use crate::capture::{Comparison, Progress};
    use crate::outcome::Seal;
    use crate::runtime::{LogConfig, OutputStream};
    use crate::sink::RunLog;
    use crate::spec::{MaskValues, RootId, RunId, RunRecord, RunSpec};

    const VALUES: [&str; 4] = ["secret", "secret-2", "pässwörd", "two\nlines"];

    /// A log that keeps its output and its gaps.
    #[derive(Debug, Default, Clone)]
    struct Kept(Arc<Mutex<(Vec<u8>, Vec<GapReason>)>>);

    #[async_trait]
    impl RunLog for Kept {
        async fn append(&mut self, batch: Batch) -> Result<(), Error> {
            let (output, gaps) = &mut *self.0.lock().unwrap();
            for record in batch.iter() {
                match record {
                    RecordRef::Output { bytes, partial, .. } => {
                        output.extend_from_slice(bytes);
                        if !partial {
                            output.push(b'\n');
                        }
                    }
                    RecordRef::Event(Event::Gap(gap)) => gaps.push(gap.reason),
                    RecordRef::Event(_) => {}
                }
            }
            Ok(())
        }

        async fn sync(&mut self) -> Result<(), Error> {
            Ok(())
        }

        async fn seal(&mut self, seal: Seal) -> Result<Seal, Error> {
            Ok(seal)
        }
    }

    fn values() -> MaskValues {
        let mut values = MaskValues::default();
        values.extend(VALUES);
        values
    }

    /// A capture that continues a log with this output.
    fn capture(kept: &Kept, fidelity: LogFidelity) -> Capture {
        let spec = RunSpec::new("any").mask(VALUES);
        let record = RunRecord::new(RunId::generate(), RootId::generate(), "any", &spec);
        let mut progress = Progress::default();
        progress.observe(RecordRef::Event(&Start::new(record).into()));
        progress.started = Some(started(fidelity));
        let mut batch = Batch::new();
        let mut lines = crate::capture::LineAssembler::default();
        let recorded = kept.0.lock().unwrap().0.clone();
        lines.push(Timestamp::now(), Stream::Stdout, &recorded, &mut batch);
        lines.finish(&mut batch);
        progress.observe_batch(&batch);
        let masks = Masks::new(values());
        Capture::new(progress, Arc::default(), Box::new(kept.clone()), None).with_masks(masks)
    }

    fn started(fidelity: LogFidelity) -> crate::audit::Started {
        crate::audit::Started {
            ts: Timestamp::now(),
            container: crate::spec::ContainerId::new("c"),
            started_at: None,
            image_digest: None,
            log: LogConfig {
                fidelity: Some(fidelity),
                ..LogConfig::default()
            },
            engine: String::new(),
            engine_version: String::new(),
            engine_id: None,
            warnings: Vec::new(),
        }
    }

    fn source(bytes: &[u8], chunk: usize) -> OutputStream {
        let chunks: Vec<_> = bytes
            .chunks(chunk)
            .map(|bytes| Ok(Chunk::new(Stream::Stdout, Bytes::copy_from_slice(bytes))))
            .collect();
        stream::iter(chunks).boxed()
    }

    fn masked(output: &str) -> (String, u64) {
        let marked = output.replace("secret-2", "\0").replace("secret", "\0");
        let marked = marked.replace("pässwörd", "\0").replace("two\nlines", "\0");
        let count = marked.matches('\0').count() as u64;
        (marked.replace('\0', "***"), count)
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().build().unwrap();
        runtime.block_on(future)
    }

    /// Captures `tapped` bytes of `output` by a tap, `previewed` bytes of the log, and the whole log.
    ///
    /// With `crash`, another process continues after each of them.
    async fn resumed(
        output: &str,
        fidelity: LogFidelity,
        chunk: usize,
        (tapped, previewed): (usize, usize),
        crash: bool,
    ) -> (String, Vec<GapReason>, Option<u64>) {
        let mut log = Vec::new();
        logged(fidelity, 0, output.as_bytes(), &mut log);
        let kept = Kept::default();
        let mut signals = Signals::after_exit();
        let mut current = capture(&kept, fidelity);
        let tap = source(&output.as_bytes()[..tapped], chunk);
        assert!(matches!(current.tap(tap, &mut signals).await, PumpEnd::Eof));
        let previewed = previewed % (log.len() + 1);
        let reads = [
            (previewed, Reading::Preview),
            (log.len(), Reading::Final { whole_tap: false }),
        ];
        for (length, reading) in reads {
            if crash {
                current = capture(&kept, fidelity);
            }
            let source = source(&log[..length], chunk);
            let end = current.replay(source, fidelity, reading, &mut signals);
            assert!(matches!(end.await, PumpEnd::Eof));
        }
        current.finish_masking(true).await.unwrap();
        current.finish_lines().await.unwrap();
        let (bytes, gaps) = kept.0.lock().unwrap().clone();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (text, gaps, current.masking().count)
    }

    fn output() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            4 => prop::sample::select(VALUES.to_vec()).prop_map(String::from),
            3 => prop::sample::select(vec!["s", "secre", "two\n", "***", "é", "p", "\n"])
                .prop_map(String::from),
            2 => "[a-z ]{0,9}\n",
            1 => Just("x".repeat(9000)),
            1 => Just("é".repeat(9000)),
        ];
        prop::collection::vec(part, 0..25).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        /// The log is plain, and the capture is masked: wherever the tap, the process or the preview
        /// ended, each byte is there once, and each replacement is counted once.
        #[test]
        fn a_replay_continues_masked_output(
            output in output(),
            tapped in any::<usize>(),
            previewed in any::<usize>(),
            chunk in prop_oneof![1usize..40, Just(70_000)],
            crash in any::<bool>(),
        ) {
            let cut = (tapped % (output.len() + 1), previewed);
            let (expected, count) = masked(&output);
            let resumed = |fidelity| run(resumed(&output, fidelity, chunk, cut, crash));
            let (text, gaps, masked) = resumed(LogFidelity::Lossless);
            prop_assert_eq!(&text, &expected);
            prop_assert_eq!(gaps, []);
            prop_assert_eq!(masked, Some(count));

            // A log that splits characters never shows a value, nor the wrong place silently.
            let (text, gaps, masked) = resumed(LogFidelity::Utf8Lossy);
            for value in VALUES {
                prop_assert!(!text.contains(value));
            }
            if gaps.is_empty() {
                prop_assert_eq!(masked, Some(count));
                prop_assert_eq!(text.matches('\n').count(), expected.matches('\n').count());
                if !text.contains('\u{FFFD}') {
                    prop_assert_eq!(&text, &expected);
                }
            } else {
                prop_assert!(!output.is_ascii(), "{:?}", gaps);
            }
        }
    }

    #[test]
    fn a_value_that_the_log_splits_is_masked() {
        // The second byte of "ä" begins the next record of the log.
        let output = format!("{}pässwörd\n", "x".repeat((16 << 10) - 2));
        let (text, gaps, count) = run(resumed(&output, LogFidelity::Utf8Lossy, 999, (0, 0), false));
        assert_eq!(text, masked(&output).0);
        assert_eq!((gaps, count), (Vec::new(), Some(1)));
    }

    #[test]
    fn a_log_that_hides_a_value_is_unreadable() {
        let (lossy, lossless) = (LogFidelity::Utf8Lossy, LogFidelity::Lossless);
        for (value, is_readable) in [
            (b"ascii".to_vec(), true),
            ("ü".repeat(256).into(), true),
            ("ü".repeat(257).into(), false),
            (b"\xff\xfe".to_vec(), false),
        ] {
            let mut masks = MaskValues::default();
            masks.extend([value]);
            let kept = Kept::default();
            let capture = capture(&kept, lossy).with_masks(Masks::new(masks));
            let readable = capture.readable(Some(lossy));
            assert_eq!(readable, is_readable.then_some(lossy));
            assert_eq!(capture.readable(Some(lossless)), Some(lossless));
        }
    }

    #[test]
    fn a_log_that_ends_in_held_output_is_shorter() {
        // The tap has the beginning of a value, and the log ends before it, or in it.
        for (log, gaps) in [("a\n", 1), ("a\nsec", 1), ("a\nsecr", 0), ("a\nsecret", 0)] {
            let kept = Kept::default();
            let mut capture = capture(&kept, LogFidelity::Lossless);
            let mut signals = Signals::after_exit();
            run(async {
                capture.tap(source(b"a\nsecr", 9), &mut signals).await;
                let (log, reading) = (
                    source(log.as_bytes(), 9),
                    Reading::Final { whole_tap: false },
                );
                let read = capture.replay(log, LogFidelity::Lossless, reading, &mut signals);
                read.await;
                capture.finish_masking(true).await.unwrap();
                capture.finish_lines().await.unwrap();
            });
            let (output, found) = kept.0.lock().unwrap().clone();
            let expected = if log == "a\nsecret" {
                "a\n***"
            } else {
                "a\nsecr"
            };
            assert_eq!(String::from_utf8(output).unwrap(), expected);
            assert_eq!(found, vec![GapReason::LogShorter; gaps], "{log:?}");
        }
    }

    #[test]
    fn a_cut_value_is_not_shown() {
        for (is_end, expected) in [(true, "a secre"), (false, "a ***")] {
            let kept = Kept::default();
            let mut capture = capture(&kept, LogFidelity::Lossless);
            let mut signals = Signals::after_exit();
            run(async {
                capture.tap(source(b"a secre", 3), &mut signals).await;
                // A preview that does not reach the position changes nothing.
                let log = source(b"a sec", 9);
                let read =
                    capture.replay(log, LogFidelity::Lossless, Reading::Preview, &mut signals);
                read.await;
                capture.finish_masking(is_end).await.unwrap();
                capture.finish_lines().await.unwrap();
            });
            let (output, _) = kept.0.lock().unwrap().clone();
            assert_eq!(String::from_utf8(output).unwrap(), expected);
            assert_eq!(capture.masking().count, Some(u64::from(!is_end)));
        }
    }

    #[test]
    fn the_end_of_the_log_is_compared_masked() {
        let compare = |captured: &str, log: &str, values: &[&str]| {
            let mut masks = MaskValues::default();
            masks.extend(values.iter().copied());
            let kept = Kept::default();
            let capture = capture(&kept, LogFidelity::Utf8Lossy);
            let mut capture = capture.with_masks(Masks::new(masks));
            let mut signals = Signals::after_exit();
            run(capture.tap(source(captured.as_bytes(), 999), &mut signals));
            let expected = capture.expected_end(LogFidelity::Utf8Lossy);
            let mut end = capture.empty_log_end(LogFidelity::Utf8Lossy);
            let tail = expected.request(false).tail.unwrap_or(u32::MAX) as usize;
            let lines: Vec<_> = log.split_inclusive('\n').collect();
            for line in &lines[lines.len().saturating_sub(tail)..] {
                end.push(&Chunk::new(Stream::Stdout, line.as_bytes().to_vec()));
            }
            end.finish();
            match expected.compare(&end) {
                Comparison::Equal => true,
                Comparison::EqualEnd { records } => records == lines.len() as u64,
                Comparison::Different => false,
            }
        };
        let long = "a secret, and secret-2\n".repeat(20_000);
        for output in [
            "",
            "a secret\n",
            "a secret",
            "a secre",
            &long,
            &(long.clone() + "sec"),
        ] {
            assert!(compare(output, output, &["secret", "secret-2"]));
            let longer = format!("{output}secret\n");
            assert!(!compare(output, &longer, &["secret", "secret-2"]));
        }
        // The beginning of a value may precede the tail. The number of lines shows it.
        let lines = "one secret\ntwo\n".repeat(20_000);
        assert!(compare("one\ntwo\n", "one\ntwo\n", &["one\ntwo"]));
        assert!(!compare(&lines, &lines, &["secret\ntwo"]));
    }

    #[test]
    fn unknown_masks_record_nothing() {
        let kept = Kept::default();
        let mut capture = capture(&kept, LogFidelity::Lossless).with_masks(Masks::Missing);
        let mut signals = Signals::after_exit();
        assert!(!capture.masking().has_discarded);
        let log = source(b"secret\n", 3);
        let read = capture.replay(log, LogFidelity::Lossless, Reading::Preview, &mut signals);
        assert!(matches!(read.now_or_never(), Some(PumpEnd::Eof)));
        run(capture.finish_masking(false)).unwrap();
        run(capture.finish_lines()).unwrap();
        assert_eq!(kept.0.lock().unwrap().0, b"");
        assert!(capture.masking().has_discarded);
    }
}
