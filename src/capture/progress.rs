//! How far a log has come: derived from its records, whether they were just written or read back.

use std::collections::{HashSet, VecDeque};

use super::fidelity::{logged, replace};
use crate::audit::{Action, Batch, Event, GapReason, RecordRef, Started, Stop};
use crate::outcome::{PerStream, Seal, StopCause, Stream};
use crate::runtime::LogFidelity;
use crate::spec::RunRecord;

/// How many of the last bytes of a stream are kept, to compare an engine's log with.
const RECENT: usize = 64 * 1024;
/// How many lines an outcome shows, and of how many bytes.
const LAST_LINES: usize = 20;
const LAST_BYTES: usize = 4 * 1024;

/// How far a log has come.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// What the log says is to be run.
    pub(crate) record: Option<RunRecord>,
    /// What the log says of the start.
    pub(crate) started: Option<Started>,
    /// The log's seal.
    pub(crate) seal: Option<Seal>,
    /// The number of output records.
    pub(crate) records: u64,
    /// The number of gaps.
    pub(crate) gaps: u64,
    /// Which gaps: each is recorded once.
    known_gaps: HashSet<(GapReason, Option<Stream>)>,
    /// Whether a record is marked lossy.
    pub(crate) lossy: bool,
    /// Why moat stopped the run: the first reason.
    pub(crate) stopped: Option<StopCause>,
    /// The last thing that became of the writing end of a pipe, and the process that it was.
    pub(crate) input: Option<(Action, u32)>,
    /// How many records there are of what was done in front of it, and of input.
    pub(crate) interactions: u64,
    /// All that the log says of stops.
    pub(crate) stops: Vec<Stop>,
    /// How far each stream has come.
    pub(crate) streams: PerStream<Position>,
    last_lines: VecDeque<String>,
}

/// How far one stream has come.
#[derive(Debug, Default)]
pub(crate) struct Position {
    /// Complete lines.
    pub(crate) lines: u64,
    /// All bytes, newlines included.
    pub(crate) bytes: u64,
    /// Bytes of the open line that are in records.
    pub(crate) open: u64,
    /// How many bytes the engine's log has of those.
    pub(super) open_logged: u64,
    /// How many bytes the engine's log has of all.
    pub(super) logged: u64,
    /// Whether the open line has bytes that came from a log which had replaced some: from there on
    /// the line is what the log has already.
    replaced: bool,
    /// The last bytes, as the engine's log has them.
    recent: Vec<u8>,
}

impl Position {
    /// The last bytes, as the engine's log has them: all that there are, or at least `RECENT`.
    pub(super) fn recent(&self) -> &[u8] {
        &self.recent
    }

    /// What the engine's log makes of printed bytes that come next, after the records.
    pub(super) fn logged_next(&self, fidelity: LogFidelity, bytes: &[u8], out: &mut Vec<u8>) {
        match fidelity {
            // Where its pieces end cannot be told any more; what it replaced is replaced.
            LogFidelity::Utf8Lossy if self.replaced => replace(bytes, out),
            _ => logged(fidelity, self.open, bytes, out),
        }
    }

    /// What the engine's log has of the recent bytes, and of those that are open in `lines`.
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

    /// Takes note of a record, behind which so many bytes of the stream are known already.
    fn observe(
        &mut self,
        bytes: &[u8],
        partial: bool,
        lossy: bool,
        fidelity: LogFidelity,
        behind: usize,
    ) {
        // Wherever a log cuts it, ASCII stays what it is; and nobody asks for it where what is
        // behind it is all that is kept.
        if behind >= RECENT && (fidelity == LogFidelity::Lossless || bytes.is_ascii()) {
            self.recent.clear();
            self.replaced |= lossy;
            self.count(bytes.len(), bytes.len(), partial);
            return;
        }
        if self.recent.len() + 4 * bytes.len() > 2 * RECENT {
            let from = self.recent.len().saturating_sub(RECENT);
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

    /// Counts a record of so many bytes, of which a log has made `logged`.
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
        }
    }
}

impl Progress {
    /// Takes note of a batch.
    pub(crate) fn observe_batch(&mut self, batch: &Batch) {
        let mut behind = batch.output_bytes();
        for record in batch.iter() {
            if let RecordRef::Output { stream, bytes, .. } = record {
                behind[stream] -= bytes.len();
                self.observe_counts(record, behind[stream]);
            } else {
                self.observe_counts(record, 0);
            }
        }
        let skip = batch.len().saturating_sub(LAST_LINES);
        for record in batch.iter().skip(skip) {
            self.observe_last(record);
        }
    }

    /// Takes note of one record.
    pub(crate) fn observe(&mut self, record: RecordRef<'_>) {
        self.observe_counts(record, 0);
        self.observe_last(record);
    }

    fn observe_counts(&mut self, record: RecordRef<'_>, behind: usize) {
        if let RecordRef::Event(Event::Note { .. } | Event::Stdin(_)) = record {
            self.interactions += 1;
        }
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
                let fidelity = self.fidelity();
                self.streams[stream].observe(bytes, partial, lossy, fidelity, behind);
            }
            RecordRef::Event(event) => match event {
                Event::Start(start) => self.record = Some(start.record.clone()),
                Event::Started(started) => self.started = Some((**started).clone()),
                Event::Gap(gap) => {
                    self.gaps += 1;
                    self.known_gaps.insert((gap.reason, gap.stream));
                }
                Event::Stop(stop) => {
                    self.stopped.get_or_insert(stop.cause);
                    self.stops.push(stop.clone());
                }
                Event::Note {
                    interaction: Some(done),
                    ..
                } if matches!(
                    done.action,
                    Action::AttachInput | Action::InputEnd | Action::InputLost
                ) =>
                {
                    self.input = Some((done.action, done.pid));
                }
                Event::End(seal) => self.seal = Some((**seal).clone()),
                _ => {}
            },
        }
    }

    fn observe_last(&mut self, record: RecordRef<'_>) {
        if let RecordRef::Output { bytes, .. } = record {
            if self.last_lines.len() == LAST_LINES {
                self.last_lines.pop_front();
            }
            let end = bytes.len().min(LAST_BYTES);
            self.last_lines
                .push_back(String::from_utf8_lossy(&bytes[..end]).into_owned());
        }
    }

    /// What the engine's log does to the bytes, as far as the log says.
    pub(super) fn fidelity(&self) -> LogFidelity {
        let known = self
            .started
            .as_ref()
            .and_then(|started| started.log.fidelity);
        known.unwrap_or(LogFidelity::Utf8Lossy)
    }

    /// What the log says of the run that no other source can say again.
    pub(super) fn lifecycle(&self) -> Vec<Event> {
        let started = self.started.clone().map(Box::new).map(Event::Started);
        let stops = self.stops.iter().cloned().map(Event::Stop);
        started.into_iter().chain(stops).collect()
    }

    /// Whether the log says this of the start, or of a stop.
    pub(crate) fn contains(&self, event: &Event) -> bool {
        match event {
            Event::Started(_) => self.started.is_some(),
            Event::Stop(stop) => self.stops.contains(stop),
            _ => false,
        }
    }

    /// Whether such a gap is recorded already.
    pub(crate) fn has_gap(&self, reason: GapReason, stream: Option<Stream>) -> bool {
        self.known_gaps.contains(&(reason, stream))
    }

    /// The bytes of each stream that are in records.
    pub(crate) fn bytes(&self) -> PerStream<u64> {
        PerStream {
            stdout: self.streams.stdout.bytes,
            stderr: self.streams.stderr.bytes,
            tty: self.streams.tty.bytes,
        }
    }

    /// The last lines: at most 20, and 4 KiB in all.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        let mut bytes = 0;
        let mut lines: Vec<_> = self
            .last_lines
            .iter()
            .rev()
            .take_while(|line| {
                bytes += line.len();
                bytes <= LAST_BYTES
            })
            .cloned()
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
    fn what_is_remembered_is_bounded_and_is_the_end() {
        let mut position = Position::default();
        let mut all = Vec::new();
        for n in 0..20_000 {
            let line = format!("{n}");
            position.observe(line.as_bytes(), false, false, LogFidelity::Utf8Lossy, 0);
            all.extend_from_slice(line.as_bytes());
            all.push(b'\n');
            assert!(position.recent.len() <= 2 * RECENT + 10);
            assert!(position.recent.len() >= all.len().min(RECENT));
        }
        assert!(all.ends_with(position.recent()));
    }
}
