//! The progress of a log, derived from its records.

use std::collections::{HashSet, VecDeque};

use memchr::memchr;

use super::fidelity::{logged, replace_invalid};
use crate::audit::{
    Action, Batch, Event, ExecCreated, GapReason, Interaction, RecordRef, Started, Stop,
};
use crate::outcome::{PerStream, Seal, StopCause, Stream};
use crate::runtime::LogFidelity;
use crate::spec::RunRecord;

/// The number of last bytes of a stream to compare with the engine's log.
const RECENT_BYTES: usize = 64 * 1024;
/// The limits of the last lines in an outcome.
const LAST_LINES: usize = 20;
const LAST_LINES_BYTES: usize = 4 * 1024;

/// The progress of a log.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The run's settings, from the start record.
    pub(crate) record: Option<RunRecord>,
    /// The record of an exec that moat may have to kill.
    pub(crate) exec_created: Option<ExecCreated>,
    /// The record of the started container.
    pub(crate) started: Option<Started>,
    /// The log's seal.
    pub(crate) seal: Option<Seal>,
    /// The number of output records.
    pub(crate) records: u64,
    /// The number of gaps.
    pub(crate) gaps: u64,
    /// The recorded gaps: each is recorded once.
    known_gaps: HashSet<(GapReason, Option<Stream>)>,
    /// Set if a record is marked as lossy.
    pub(crate) lossy: bool,
    /// The cause of the first stop.
    pub(crate) stopped: Option<StopCause>,
    /// The last action on the standard input, and the id of its process.
    pub(crate) input: Option<(Action, u32)>,
    /// The number of notes and of records of standard input.
    pub(super) interactions: u64,
    /// The recorded stops.
    pub(crate) stops: Vec<Stop>,
    /// The position in each stream.
    pub(super) streams: PerStream<Position>,
    last_lines: VecDeque<Vec<u8>>,
}

/// A position in one stream.
#[derive(Debug, Default)]
pub(super) struct Position {
    /// The number of complete lines.
    pub(super) lines: u64,
    /// The number of bytes, including newlines.
    pub(super) bytes: u64,
    /// The number of bytes of the open line that are in records.
    pub(super) open: u64,
    /// The length of those bytes in the engine's log.
    pub(super) open_logged: u64,
    /// The length of all bytes in the engine's log.
    pub(super) logged: u64,
    /// Set if the open line has bytes from a log that replaces bytes.
    ///
    /// These bytes are as logged.
    replaced: bool,
    /// Set if records of the open line have bytes beyond ASCII, and the output is masked.
    open_is_wide: bool,
    /// Set if records of the open line may have the replacement of a masked value.
    open_may_be_masked: bool,
    /// The last bytes, in their logged form.
    recent: Vec<u8>,
}

impl Position {
    /// The last bytes in their logged form: all bytes, or at least `RECENT_BYTES`.
    pub(super) fn recent(&self) -> &[u8] {
        &self.recent
    }

    /// Appends the logged form of printed bytes that follow the records.
    fn logged_next(&self, fidelity: LogFidelity, bytes: &[u8], out: &mut Vec<u8>) {
        match fidelity {
            // The log's record boundaries are unknown here. Replaced bytes stay as they are.
            LogFidelity::Utf8Lossy if self.replaced => replace_invalid(bytes, out),
            _ => logged(fidelity, self.open, bytes, out),
        }
    }

    /// Returns true if the log may split characters of the open line at unknown places.
    ///
    /// The log splits lines by their length before a value in them was masked.
    pub(super) fn may_be_split(&self, unrecorded: &[u8]) -> bool {
        let is_wide = self.open_is_wide || !unrecorded.is_ascii();
        is_wide && (self.open_may_be_masked || memchr(b'*', unrecorded).is_some())
    }

    /// The logged form of the recent bytes and of an open line.
    pub(super) fn logged_recent(
        &self,
        fidelity: LogFidelity,
        (printed, from_log): (&[u8], &[u8]),
    ) -> Vec<u8> {
        let mut recent = self.recent.clone();
        self.logged_next(fidelity, printed, &mut recent);
        recent.extend_from_slice(from_log);
        recent
    }

    /// Counts a record.
    ///
    /// At least `following` bytes of the stream follow it in the same batch.
    fn observe(
        &mut self,
        bytes: &[u8],
        partial: bool,
        lossy: bool,
        (fidelity, is_masked): (LogFidelity, bool),
        following: usize,
    ) {
        if partial && is_masked {
            self.open_is_wide |= !bytes.is_ascii();
            self.open_may_be_masked |= memchr(b'*', bytes).is_some();
        }
        // Only the following bytes are kept. The logged length of ASCII is known without encoding
        // it, wherever the log splits it.
        if following >= RECENT_BYTES && (fidelity != LogFidelity::Utf8Lossy || bytes.is_ascii()) {
            self.recent.clear();
            self.replaced |= lossy;
            self.count(bytes.len(), bytes.len(), partial);
            return;
        }
        if self.recent.len() + 4 * bytes.len() > 2 * RECENT_BYTES {
            let from = self.recent.len().saturating_sub(RECENT_BYTES);
            self.recent.drain(..from);
        }
        self.replaced |= lossy;
        let mut recent = std::mem::take(&mut self.recent);
        let before = recent.len();
        if bytes.is_ascii() {
            recent.extend_from_slice(bytes);
        } else {
            self.logged_next(fidelity, bytes, &mut recent);
        }
        self.count(bytes.len(), recent.len() - before, partial);
        if !partial {
            recent.push(b'\n');
        }
        self.recent = recent;
    }

    /// Counts a record of `bytes` bytes, whose logged form has `logged` bytes.
    fn count(&mut self, bytes: usize, logged: usize, partial: bool) {
        self.bytes += bytes as u64;
        self.logged += logged as u64;
        if partial {
            self.open += bytes as u64;
            self.open_logged += logged as u64;
        } else {
            self.bytes += 1;
            self.logged += 1;
            self.lines += 1;
            self.open = 0;
            self.open_logged = 0;
            self.replaced = false;
            self.open_is_wide = false;
            self.open_may_be_masked = false;
        }
    }
}

impl Progress {
    /// Counts the records of a batch.
    pub(crate) fn observe_batch(&mut self, batch: &Batch) {
        let mut following = batch.output_bytes();
        for record in batch.iter() {
            if let RecordRef::Output { stream, bytes, .. } = record {
                following[stream] -= bytes.len();
                self.observe_counts(record, following[stream]);
            } else {
                self.observe_counts(record, 0);
            }
        }
        let skip = batch.len().saturating_sub(LAST_LINES);
        for record in batch.iter().skip(skip) {
            self.observe_last(record);
        }
    }

    /// Counts one record.
    pub(crate) fn observe(&mut self, record: RecordRef<'_>) {
        self.observe_counts(record, 0);
        self.observe_last(record);
    }

    fn observe_counts(&mut self, record: RecordRef<'_>, following: usize) {
        match record {
            RecordRef::Output {
                stream,
                bytes,
                partial,
                lossy,
                ..
            } => {
                self.records += 1;
                self.lossy |= lossy;
                let log = (self.fidelity(), self.is_masked());
                self.streams[stream].observe(bytes, partial, lossy, log, following);
            }
            RecordRef::Event(event) => self.observe_event(event),
        }
    }

    fn observe_event(&mut self, event: &Event) {
        match event {
            Event::Start(start) => self.record = Some(start.record.clone()),
            Event::ExecCreated(created) => self.exec_created = Some(created.clone()),
            Event::Started(started) => self.started = Some((**started).clone()),
            Event::Gap(gap) => {
                self.gaps += 1;
                self.known_gaps.insert((gap.reason, gap.stream));
            }
            Event::Stop(stop) => {
                self.stopped.get_or_insert(stop.cause);
                self.stops.push(stop.clone());
            }
            Event::Stdin(_) => self.interactions += 1,
            Event::Note { interaction, .. } => {
                self.interactions += 1;
                if let Some(Interaction { action, pid, .. }) = interaction
                    && matches!(
                        action,
                        Action::AttachInput | Action::InputEnd | Action::InputLost
                    )
                {
                    self.input = Some((*action, *pid));
                }
            }
            Event::End(seal) => self.seal = Some((**seal).clone()),
            Event::Resume(_) | Event::Check { .. } => {}
        }
    }

    fn observe_last(&mut self, record: RecordRef<'_>) {
        if let RecordRef::Output { bytes, .. } = record {
            let oldest = match self.last_lines.len() {
                LAST_LINES => self.last_lines.pop_front(),
                _ => None,
            };
            let mut line = oldest.unwrap_or_default();
            line.clear();
            line.extend_from_slice(&bytes[..bytes.len().min(LAST_LINES_BYTES)]);
            self.last_lines.push_back(line);
        }
    }

    /// The fidelity of the engine's log.
    ///
    /// An unrecorded fidelity counts as the lower one.
    pub(super) fn fidelity(&self) -> LogFidelity {
        let known = self
            .started
            .as_ref()
            .and_then(|started| started.log.fidelity);
        known.unwrap_or(LogFidelity::Utf8Lossy)
    }

    /// Returns true if the output is masked.
    pub(super) fn is_masked(&self) -> bool {
        let record = self.record.as_ref();
        record.is_some_and(|record| record.settings.masks > 0)
    }

    /// The start and stop records, which no other source can repeat.
    pub(super) fn lifecycle(&self) -> Vec<Event> {
        let created = self.exec_created.clone().map(Event::ExecCreated);
        let started = self.started.clone().map(Box::new).map(Event::Started);
        let stops = self.stops.iter().cloned().map(Event::Stop);
        created.into_iter().chain(started).chain(stops).collect()
    }

    /// Returns true if the log has this start or stop record.
    pub(crate) fn contains(&self, event: &Event) -> bool {
        match event {
            Event::ExecCreated(created) => self.exec_created.as_ref() == Some(created),
            Event::Started(started) => {
                let known = self.started.as_ref();
                known.is_some_and(|known| known.container == started.container)
            }
            Event::Stop(stop) => self.stops.contains(stop),
            _ => false,
        }
    }

    /// Returns true if the log has a gap of this reason and stream.
    pub(crate) fn has_gap(&self, reason: GapReason, stream: Option<Stream>) -> bool {
        self.known_gaps.contains(&(reason, stream))
    }

    /// The number of complete lines in records, over all streams.
    pub(super) fn lines(&self) -> u64 {
        let streams = Stream::ALL.into_iter();
        streams.map(|stream| self.streams[stream].lines).sum()
    }

    /// The number of bytes of each stream in records.
    pub(crate) fn bytes(&self) -> PerStream<u64> {
        PerStream {
            stdout: self.streams.stdout.bytes,
            stderr: self.streams.stderr.bytes,
            tty: self.streams.tty.bytes,
            merged: self.streams.merged.bytes,
        }
    }

    /// The last lines: at most 20 lines, and 4 KiB in total.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        let mut bytes = 0;
        let mut lines: Vec<_> = self
            .last_lines
            .iter()
            .rev()
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .take_while(|line| {
                bytes += line.len();
                bytes <= LAST_LINES_BYTES
            })
            .collect();
        lines.reverse();
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timestamp::Timestamp;

    fn output(bytes: &[u8], partial: bool) -> RecordRef<'_> {
        RecordRef::Output {
            ts: Timestamp::now(),
            stream: Stream::Stdout,
            bytes,
            partial,
            lossy: false,
            engine_time: false,
        }
    }

    #[test]
    fn the_position_counts_lines_bytes_and_the_open_line() {
        let mut progress = Progress::default();
        progress.observe(output(b"one", false));
        progress.observe(output(b"tw", true));
        let position = &progress.streams.stdout;
        assert_eq!((position.lines, position.bytes, position.open), (1, 6, 2));
        progress.observe(output(b"o", false));
        let position = &progress.streams.stdout;
        assert_eq!((position.lines, position.bytes, position.open), (2, 8, 0));
        assert_eq!(position.recent(), b"one\ntwo\n");
    }

    #[test]
    fn recent_bytes_are_bounded_and_the_last_ones() {
        let mut position = Position::default();
        let mut all = Vec::new();
        for n in 0..20_000 {
            let line = format!("{n}");
            position.observe(
                line.as_bytes(),
                false,
                false,
                (LogFidelity::Utf8Lossy, false),
                0,
            );
            all.extend_from_slice(line.as_bytes());
            all.push(b'\n');
            assert!(position.recent.len() <= 2 * RECENT_BYTES + 10);
            assert!(position.recent.len() >= all.len().min(RECENT_BYTES));
        }
        assert!(all.ends_with(position.recent()));
    }
}
