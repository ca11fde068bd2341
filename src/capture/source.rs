//! One source of output: a live tap, or the engine's log read from its start.

use std::future::poll_fn;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::Fuse;
use tokio::time::Instant;

use super::pump::PumpEnd;
use super::replay::Replay;
use crate::audit::GapReason;
use crate::error::RuntimeError;
use crate::outcome::{PerStream, Stream};
use crate::runtime::{Chunk, OutputStream};

/// The purpose of a read of the engine's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The read may end before the log does, so missing bytes prove nothing.
    Preview,
    /// The log of a container that has exited.
    Final {
        /// True if the tap reached its end. Then bytes are only possibly missing.
        whole_tap: bool,
    },
}

/// The source that a pump reads, until it ends.
pub(super) struct Source {
    stream: Fuse<OutputStream>,
    replay: Option<(Replay, Reading)>,
    /// The bytes of each stream received so far, also from earlier sources.
    pub(super) received: PerStream<u64>,
    last_read: Instant,
    pace: Pace,
    /// Silence counts only after the container has exited.
    exited: bool,
    silence_timeout: Duration,
    end: Option<PumpEnd>,
}

impl Source {
    pub(super) fn new(
        stream: OutputStream,
        replay: Option<(Replay, Reading)>,
        received: PerStream<u64>,
        exited: bool,
        silence_timeout: Duration,
    ) -> Self {
        Self {
            stream: stream.fuse(),
            replay,
            received,
            last_read: Instant::now(),
            pace: Pace::new(Instant::now()),
            exited,
            silence_timeout,
            end: None,
        }
    }

    /// Waits for the next item of the stream. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<Chunk, RuntimeError>> {
        let (stream, pace) = (&mut self.stream, &mut self.pace);
        let item = poll_fn(|cx| {
            let item = stream.poll_next_unpin(cx);
            pace.on_poll(Instant::now(), item.is_pending());
            item
        });
        let item = item.await;
        self.last_read = Instant::now();
        item
    }

    /// The longest time for which the last output may have waited for this reader.
    ///
    /// The caller must poll [`next`](Self::next) at least every 500 ms.
    pub(super) fn lateness(&self) -> Duration {
        self.last_read
            .saturating_duration_since(self.pace.caught_up)
    }

    /// When the stream was last read.
    pub(super) fn last_read(&self) -> Instant {
        self.last_read
    }

    pub(super) fn is_replay(&self) -> bool {
        self.replay.is_some()
    }

    /// The purpose of the read, if the source is the engine's log.
    pub(super) fn reading(&self) -> Option<Reading> {
        self.replay.as_ref().map(|(_, reading)| *reading)
    }

    /// Returns the part of `chunk` that is not captured yet.
    ///
    /// If the log differs from the capture, the reason is returned once per stream, as an error.
    pub(super) fn unseen(&mut self, chunk: Chunk) -> Result<Chunk, (Stream, GapReason)> {
        let bytes = match &mut self.replay {
            None => return Ok(chunk),
            Some((replay, _)) => replay.push(&chunk),
        };
        let bytes = bytes.map_err(|reason| (chunk.stream, reason))?;
        Ok(Chunk { bytes, ..chunk })
    }

    /// Returns true once the source is at or past the captured position of the stream.
    pub(super) fn has_passed(&self, stream: Stream) -> bool {
        let replay = self.replay.as_ref();
        replay.is_none_or(|(replay, _)| replay.has_passed(stream))
    }

    /// Returns true while the source waits for the container's exit.
    pub(super) fn awaits_exit(&self) -> bool {
        !self.exited
    }

    /// Starts the silence timeout: the container has exited.
    pub(super) fn mark_exited(&mut self) {
        self.exited = true;
        self.last_read = Instant::now();
    }

    pub(super) fn silence_timeout(&self) -> Duration {
        self.silence_timeout
    }

    /// When the source counts as silent.
    ///
    /// `None` before the exit, and after the source's end.
    pub(super) fn silence_deadline(&self) -> Option<Instant> {
        (self.exited && !self.has_ended()).then(|| self.last_read + self.silence_timeout)
    }

    /// Ends the source: it is not read again.
    pub(super) fn end(&mut self, end: PumpEnd) {
        self.end = Some(end);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Takes the end of a source that has ended.
    pub(super) fn take_end(&mut self) -> Option<PumpEnd> {
        self.end.take()
    }

    /// Returns the replay, and the purpose that the read has after `end`.
    ///
    /// Only a log that was read to its end can be too short, so any other read is a preview.
    pub(super) fn into_replay(self, end: &PumpEnd) -> Option<(Replay, Reading)> {
        let (replay, reading) = self.replay?;
        match end {
            PumpEnd::Eof => Some((replay, reading)),
            _ => Some((replay, Reading::Preview)),
        }
    }
}

/// The times of the polls of a source.
struct Pace {
    /// When a poll last found no output: until then, every byte was read at once.
    caught_up: Instant,
    last_poll: Instant,
    /// The end of the last pause in which this process did not poll.
    resumed: Option<Instant>,
}

impl Pace {
    /// The time without a poll that counts as a pause.
    const PAUSE: Duration = Duration::from_secs(1);
    /// The time after a pause in which a poll that finds nothing does not count.
    ///
    /// Tasks may run before the runtime's I/O driver reports what has arrived, and the engine fills
    /// the emptied socket from its own buffer. On a busy machine, 250 ms were too short.
    const SETTLING: Duration = Duration::from_secs(5);

    fn new(now: Instant) -> Self {
        Self {
            caught_up: now,
            last_poll: now,
            resumed: None,
        }
    }

    fn on_poll(&mut self, now: Instant, found_nothing: bool) {
        if now - self.last_poll >= Self::PAUSE {
            self.resumed = Some(now);
        }
        self.last_poll = now;
        let is_settled = self.resumed.is_none_or(|at| now - at >= Self::SETTLING);
        if found_nothing && is_settled {
            self.caught_up = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;
    use crate::capture::lines::LineAssembler;
    use crate::capture::progress::Progress;
    use crate::runtime::LogFidelity;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn source(replay: Option<Reading>, exited: bool) -> Source {
        let mut lines = LineAssembler::default();
        let replay = replay.map(|reading| {
            let fidelity = LogFidelity::Lossless;
            let replay = Replay::new(&Progress::default(), &mut lines, fidelity);
            (replay, reading)
        });
        let stream = Box::pin(stream::pending());
        Source::new(stream, replay, PerStream::default(), exited, TIMEOUT)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_the_exit_to_the_end() {
        let mut source = source(None, false);
        assert!(source.awaits_exit());
        assert_eq!(source.silence_deadline(), None);

        tokio::time::advance(Duration::from_secs(60)).await;
        source.mark_exited();
        assert!(!source.awaits_exit());
        assert_eq!(source.silence_deadline(), Some(Instant::now() + TIMEOUT));

        source.end(PumpEnd::Silent(TIMEOUT));
        assert_eq!(source.silence_deadline(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_opened_after_the_exit_counts_from_its_start() {
        let source = source(None, true);
        assert!(!source.awaits_exit());
        assert_eq!(source.silence_deadline(), Some(Instant::now() + TIMEOUT));
    }

    #[test]
    fn a_reader_is_late_until_it_finds_no_output() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let caught_up = |polls: &[(u64, bool)]| {
            let mut pace = Pace::new(start);
            for (ms, found_nothing) in polls {
                pace.on_poll(at(*ms), *found_nothing);
            }
            pace.caught_up
        };
        assert_eq!(caught_up(&[(500, true), (900, false)]), at(500));
        // Without a pause, output that always waits is as late.
        let busy = [(500, true), (1000, false), (1500, false), (2000, false)];
        assert_eq!(caught_up(&busy), at(500));
        // After a pause, the first polls may find nothing too early.
        let resumed = [(500, true), (8000, true), (8001, true), (8002, false)];
        assert_eq!(caught_up(&resumed), at(500));
        let emptied = [(500, true), (8000, false), (8900, true), (9000, false)];
        assert_eq!(caught_up(&emptied), at(500));
        let settled: Vec<_> = (16..=27).map(|half| (half * 500, true)).collect();
        assert_eq!(caught_up(&settled), at(13_500));
    }

    #[tokio::test]
    async fn only_a_complete_final_read_proves_a_gap() {
        let last = Reading::Final { whole_tap: true };
        let broken = PumpEnd::Broken(RuntimeError::Broken {
            operation: "read the log",
            reason: "gone".into(),
        });
        for (reading, end, expected) in [
            (Some(last), PumpEnd::Eof, Some(last)),
            (Some(last), PumpEnd::Silent(TIMEOUT), Some(Reading::Preview)),
            (Some(last), PumpEnd::Shutdown, Some(Reading::Preview)),
            (Some(last), broken, Some(Reading::Preview)),
            (Some(Reading::Preview), PumpEnd::Eof, Some(Reading::Preview)),
            (None, PumpEnd::Eof, None),
        ] {
            let mut source = source(reading, true);
            assert!(!source.has_ended());
            source.end(end);
            assert!(source.has_ended());
            let end = source.take_end().unwrap();
            let reading = source.into_replay(&end).map(|(_, reading)| reading);
            assert_eq!(reading, expected, "{end:?}");
        }
    }
}
