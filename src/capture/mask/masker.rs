//! The masking of a capture: one source of output after another.

use std::sync::Arc;

use super::stream::Masked;
use super::{MASK, MaskSet, Masks, StreamMasker};
use crate::outcome::{PerStream, Stream};
use crate::runtime::{Chunk, LogFidelity};

/// The offsets of the replacements in a chunk.
pub(in crate::capture) type MaskOffsets = Vec<usize>;

/// The masking of the output of one capture, and the count of its replacements.
pub(in crate::capture) struct Masker {
    masks: Masks,
    streams: PerStream<StreamMasker>,
    /// The state at the captured position, while a log is read again.
    captured: PerStream<StreamMasker>,
    /// The fidelity of the log that is the source; that of the tap is lossless.
    fidelity: LogFidelity,
    /// The number of replacements in the captured output; `None` if it is unknown.
    counts: PerStream<Option<u64>>,
    /// The number of replacements that the source has before the captured position.
    skipped: PerStream<u64>,
    /// True once the source has reached the captured position.
    passed: PerStream<bool>,
    /// True once the source has output after the captured position.
    continued: PerStream<bool>,
    /// True if output was discarded because the masks are unknown.
    has_discarded: bool,
    /// The number of bytes of the source that were discarded for that reason.
    discarded: u64,
}

/// The parts of a chunk, in bytes.
#[derive(Debug, Clone, Copy)]
pub(in crate::capture) struct CapturedPart {
    /// The bytes before the captured position.
    pub(in crate::capture) skipped: usize,
    /// The bytes after them.
    pub(in crate::capture) new: usize,
    /// The new bytes up to the output limit.
    pub(in crate::capture) kept: usize,
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { masks, counts, .. } = self;
        let mut masker = f.debug_struct("Masker");
        masker.field("masks", masks).field("counts", counts);
        masker.finish_non_exhaustive()
    }
}

impl Masker {
    /// Creates the masking of a capture that has captured this number of bytes.
    pub(in crate::capture) fn new(masks: Masks, captured: PerStream<u64>) -> Self {
        let mut masker = Self {
            masks,
            streams: PerStream::default(),
            captured: PerStream::default(),
            fidelity: LogFidelity::Lossless,
            counts: PerStream::default(),
            skipped: PerStream::default(),
            passed: PerStream::default(),
            continued: PerStream::default(),
            has_discarded: false,
            discarded: 0,
        };
        for stream in Stream::ALL {
            masker.counts[stream] = (captured[stream] == 0).then_some(0);
        }
        masker
    }

    /// Begins a tap, which continues at the captured position.
    pub(in crate::capture) fn begin_tap(&mut self) {
        self.fidelity = LogFidelity::Lossless;
        for stream in Stream::ALL {
            self.passed[stream] = true;
        }
    }

    /// Begins the engine's log, which is read from its start. The log repeats what is held back.
    pub(in crate::capture) fn begin_log(&mut self, fidelity: LogFidelity) {
        self.fidelity = fidelity;
        self.discarded = 0;
        self.captured = std::mem::take(&mut self.streams);
        self.skipped = PerStream::default();
        self.passed = PerStream::default();
        self.continued = PerStream::default();
    }

    /// Ends a log, which has not reached the captured position of a stream if `has_passed` is false.
    ///
    /// Returns true if the log ended within the bytes that were held back when it began. They are
    /// held back again.
    pub(in crate::capture) fn finish_log(&mut self, stream: Stream, has_passed: bool) -> bool {
        let captured = std::mem::take(&mut self.captured[stream]);
        let is_shorter = !self.continued[stream] && self.streams[stream].held() < captured.held();
        if !has_passed || is_shorter {
            self.streams[stream] = captured;
        }
        has_passed && is_shorter
    }

    /// Masks a chunk. Returns `None` if the masks are unknown.
    pub(in crate::capture) fn mask(&mut self, chunk: Chunk) -> Option<(Chunk, MaskOffsets)> {
        let stream = chunk.stream;
        match &self.masks {
            Masks::None => Some((chunk, MaskOffsets::new())),
            Masks::Known(set) => {
                let patterns = set.patterns(self.fidelity)?;
                let Masked { bytes, offsets } = self.streams[stream].push(patterns, chunk.bytes);
                Some((Chunk { bytes, ..chunk }, offsets))
            }
            Masks::Missing => {
                self.has_discarded |= !chunk.bytes.is_empty();
                self.discarded += chunk.bytes.len() as u64;
                None
            }
        }
    }

    /// Counts the replacements of a chunk that did not reach the captured position.
    pub(in crate::capture) fn count_skipped(&mut self, stream: Stream, offsets: &MaskOffsets) {
        self.skipped[stream] += offsets.len() as u64;
    }

    /// Counts the replacements of a chunk that is at or past the captured position.
    ///
    /// A replacement counts if its first byte is captured.
    pub(in crate::capture) fn count(
        &mut self,
        stream: Stream,
        offsets: &MaskOffsets,
        part: CapturedPart,
    ) {
        if matches!(self.masks, Masks::None) {
            return;
        }
        let CapturedPart { skipped, new, kept } = part;
        let between = |from: usize, to: usize| {
            let offsets = offsets.iter();
            offsets
                .filter(|offset| (from..to).contains(*offset))
                .count() as u64
        };
        if !self.passed[stream] {
            self.passed[stream] = true;
            self.counts[stream] = Some(self.skipped[stream] + between(0, skipped));
        }
        self.continued[stream] |= new > 0;
        if let Some(count) = &mut self.counts[stream] {
            *count += between(skipped, skipped + kept);
        }
    }

    /// Takes the bytes of a stream that are held back, masked.
    ///
    /// If it is not certain that they are the end of the stream, they may be the beginning of a
    /// value: they are replaced as a whole.
    pub(in crate::capture) fn finish(
        &mut self,
        stream: Stream,
        is_end: bool,
    ) -> (Chunk, MaskOffsets) {
        let held = &mut self.streams[stream];
        let patterns = self.masks.known().map(|set| set.patterns(self.fidelity));
        let Masked { bytes, offsets } = match patterns.flatten() {
            Some(patterns) if is_end => held.finish(patterns),
            _ if held.discard() => Masked {
                bytes: MASK.into(),
                offsets: vec![0],
            },
            _ => Masked::default(),
        };
        (Chunk::new(stream, bytes), offsets)
    }

    /// The end of a stream that is held back, masked, if the output ends here.
    pub(in crate::capture) fn end(&self, stream: Stream) -> Vec<u8> {
        let patterns = self.masks.known().map(|set| set.patterns(self.fidelity));
        match patterns.flatten() {
            Some(patterns) => self.streams[stream].end(patterns).bytes.to_vec(),
            None => Vec::new(),
        }
    }

    /// Drops the bytes that are held back, because their log was lost. `lost` are the streams whose
    /// captured output is lost, too, so that its count is unknown.
    ///
    /// Returns true if bytes were held back.
    pub(in crate::capture) fn reset(&mut self, logged: PerStream<u64>, lost: &[Stream]) -> bool {
        for stream in lost {
            self.counts[*stream] = (logged[*stream] == 0).then_some(0);
        }
        let mut has_discarded = false;
        for stream in Stream::ALL {
            has_discarded |= self.streams[stream].discard();
            has_discarded |= self.captured[stream].discard();
        }
        has_discarded
    }

    /// The number of replacements in the captured output. `None` if the run has no masks, or if the
    /// number is unknown.
    pub(in crate::capture) fn count_all(&self) -> Option<u64> {
        if matches!(self.masks, Masks::None) {
            return None;
        }
        Stream::ALL
            .into_iter()
            .map(|stream| self.counts[stream])
            .sum()
    }

    pub(in crate::capture) fn masks(&self) -> &Masks {
        &self.masks
    }

    /// True if output was discarded because the masks are unknown.
    pub(in crate::capture) fn has_discarded(&self) -> bool {
        self.has_discarded
    }

    /// The number of bytes of the source that were discarded because the masks are unknown.
    pub(in crate::capture) fn discarded(&self) -> u64 {
        self.discarded
    }

    /// Returns true if the values can be found in a log of this fidelity.
    pub(in crate::capture) fn can_read(&self, fidelity: LogFidelity) -> bool {
        let set = self.masks.known();
        set.is_none_or(|set| set.patterns(fidelity).is_some())
    }

    /// Returns true if the source is a log that replaces invalid UTF-8.
    pub(in crate::capture) fn reads_replacing_log(&self) -> bool {
        self.fidelity == LogFidelity::Utf8Lossy
    }

    /// Returns true if a value contains a newline.
    ///
    /// Then the masked output may have fewer lines than the engine's log.
    pub(in crate::capture) fn spans_lines(&self) -> bool {
        self.masks.known().is_some_and(|set| set.spans_lines)
    }

    /// Returns the masking of another read of the engine's log.
    pub(in crate::capture) fn of_log(&self, fidelity: LogFidelity) -> OutputMasker {
        OutputMasker::new(&self.masks, fidelity)
    }
}

/// The masking of output that is not captured.
#[derive(Default)]
pub(crate) struct OutputMasker {
    set: Option<(Arc<MaskSet>, LogFidelity)>,
    streams: PerStream<StreamMasker>,
}

impl std::fmt::Debug for OutputMasker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutputMasker").finish_non_exhaustive()
    }
}

impl OutputMasker {
    /// Masks output of this fidelity. The masks must not be missing.
    pub(crate) fn new(masks: &Masks, fidelity: LogFidelity) -> Self {
        Self {
            set: masks.known().map(|set| (Arc::clone(set), fidelity)),
            streams: PerStream::default(),
        }
    }

    /// Appends the masked bytes of a chunk.
    pub(crate) fn push(&mut self, chunk: &Chunk, out: &mut Vec<u8>) {
        let Some((set, fidelity)) = &self.set else {
            return out.extend_from_slice(&chunk.bytes);
        };
        // Values that cannot be found must not be shown.
        if let Some(patterns) = set.patterns(*fidelity) {
            let masked = self.streams[chunk.stream].push(patterns, chunk.bytes.clone());
            out.extend_from_slice(&masked.bytes);
        }
    }

    /// Appends the end of a stream.
    pub(crate) fn finish(&mut self, stream: Stream, out: &mut Vec<u8>) {
        if let Some((set, fidelity)) = &self.set
            && let Some(patterns) = set.patterns(*fidelity)
        {
            out.extend_from_slice(&self.streams[stream].end(patterns).bytes);
        }
    }
}
