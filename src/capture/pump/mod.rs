//! The pump: moves one source of output to the log, in bounded memory.

mod masking;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use self::masking::Masking;
use super::evidence::ExpectedEnd;
use super::hub::{Hub, LiveChunk};
use super::lines::LineAssembler;
use super::mask::{CapturedPart, Masker, Masks};
use super::progress::Progress;
use super::queue::{STALL_TIMEOUT, WriteScheduler};
use super::replay::Replay;
use super::signals::{Interest, Signal, Signals, until};
use super::source::{Reading, Source};
use super::stats::CaptureStats;
use crate::audit::{Batch, Event, Gap, GapReason};
use crate::error::{Error, RuntimeError};
use crate::outcome::{PerStream, Seal, Stream};
use crate::runtime::{Chunk, LogFidelity, LogsRequest, OutputStream};
use crate::sink::RunLog;

/// The longest silence of a source after the exit.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// The limit of the silence timeout of the engine's log, which doubles with each silent read.
const MAX_SILENCE_TIMEOUT: Duration = Duration::from_secs(320);

/// The reason why a pump ended.
#[derive(Debug)]
pub(crate) enum PumpEnd {
    /// The source reached its end.
    Eof,
    /// The source failed.
    Broken(RuntimeError),
    /// The source was silent for this long after the exit.
    Silent(Duration),
    /// The manager shut down. Everything queued is written.
    Shutdown,
    /// The sink finished no write for too long. The log is lost.
    Stalled,
    /// The sink failed. The log is lost.
    Sink(Error),
}

/// A timer of the pump.
#[derive(Debug, Clone, Copy)]
enum Timer {
    /// The next write is due.
    Write,
    /// The sink counts as stalled.
    Stall,
    /// The source counts as silent.
    Silence,
}

/// The capture of one run: its output so far, and the log to which the output goes.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) progress: Progress,
    pub(crate) hub: Arc<Hub>,
    stats: Arc<CaptureStats>,
    /// The log; `None` after a failure, until it is resumed.
    log: Option<Box<dyn RunLog>>,
    lines: LineAssembler,
    masker: Masker,
    /// The output limit, in bytes.
    limit: Option<u64>,
    /// The bytes past the limit.
    dropped: PerStream<u64>,
    /// When the last source ended, or was given up.
    source_ended: Option<Instant>,
    /// The lateness of the last source at its end.
    lateness: Duration,
    /// Set once a log was lost and resumed.
    resumed: bool,
    /// Set if a resumed log lacked output that had been received.
    lost: bool,
    /// The start and stop records, written or not: no other source can repeat them.
    lifecycle: Vec<Event>,
    /// The received notes and records of standard input that are not in the log yet.
    ///
    /// The capture holds the only copy.
    unacknowledged: VecDeque<Event>,
    /// The number of such records in the log when `unacknowledged` was last trimmed.
    acknowledged: u64,
    /// The silence timeout of a final read of the engine's log.
    ///
    /// A busy engine, or one with a torn log, needs time, and each new request makes it start over.
    log_silence_timeout: Duration,
    /// True until a read of the engine's log fails.
    ///
    /// The times of its records may be the reason: a later read does without them.
    log_times: bool,
}

impl Capture {
    /// Creates a capture that continues after `progress`.
    pub(crate) fn new(
        progress: Progress,
        hub: Arc<Hub>,
        log: Box<dyn RunLog>,
        limit: Option<u64>,
    ) -> Self {
        hub.start_at(progress.bytes());
        Self {
            lifecycle: progress.lifecycle(),
            unacknowledged: VecDeque::new(),
            acknowledged: progress.interactions,
            masker: Masker::new(Masks::None, progress.bytes()),
            progress,
            hub,
            stats: Arc::default(),
            log: Some(log),
            lines: LineAssembler::default(),
            limit,
            dropped: PerStream::default(),
            source_ended: None,
            lateness: Duration::ZERO,
            resumed: false,
            lost: false,
            log_silence_timeout: SILENCE_TIMEOUT,
            log_times: true,
        }
    }

    /// The statistics that other tasks may read while a pump runs.
    pub(crate) fn stats(&self) -> &Arc<CaptureStats> {
        &self.stats
    }

    /// When the last source ended, or was given up.
    pub(crate) fn source_ended(&self) -> Option<Instant> {
        self.source_ended
    }

    /// The longest time for which the engine may have held the end of the last source, because this
    /// process did not read it.
    pub(crate) fn lateness(&self) -> Duration {
        self.lateness
    }

    /// Continues with a resumed log and its progress.
    pub(crate) fn resume(&mut self, progress: Progress, log: Box<dyn RunLog>) {
        let received = self.received();
        let has_less = |stream: &Stream| progress.streams[*stream].bytes < received[*stream];
        let lost: Vec<_> = Stream::ALL.into_iter().filter(has_less).collect();
        self.lost |= !lost.is_empty();
        self.lost |= self.masker.reset(progress.bytes(), &lost);
        self.progress = progress;
        self.trim_unacknowledged();
        self.lines = LineAssembler::default();
        self.log = Some(log);
        self.resumed = true;
    }

    /// The start, stop, note and input records that a resumed log lacks.
    pub(crate) fn unwritten(&self) -> Vec<Event> {
        let missing = |event: &&Event| !self.progress.contains(event);
        let lifecycle = self.lifecycle.iter().filter(missing);
        lifecycle.chain(&self.unacknowledged).cloned().collect()
    }

    /// Returns true if a log was lost together with output that had been received.
    pub(crate) fn has_lost(&self) -> bool {
        self.lost
    }

    /// Keeps a start or stop record for a log that is resumed.
    fn keep_lifecycle(&mut self, event: &Event) {
        let is_lifecycle = matches!(
            event,
            Event::ExecCreated(_) | Event::Started(_) | Event::Stop(_)
        );
        if matches!(event, Event::Started(_)) {
            // A later start replaces the record of an earlier one.
            self.lifecycle
                .retain(|kept| !matches!(kept, Event::Started(_)));
        }
        if is_lifecycle && !self.lifecycle.contains(event) {
            self.lifecycle.push(event.clone());
        }
    }

    /// Queues a record, and keeps a copy until it is written.
    fn enqueue(&mut self, event: Event, writes: &mut WriteScheduler) {
        self.keep_lifecycle(&event);
        if matches!(event, Event::Note { .. } | Event::Stdin(_)) {
            self.unacknowledged.push_back(event.clone());
        }
        writes.push_event(event);
    }

    /// Drops the copies of records that are in the log. The log has them in the same order.
    fn trim_unacknowledged(&mut self) {
        let written = self.progress.interactions.saturating_sub(self.acknowledged) as usize;
        self.acknowledged = self.progress.interactions;
        self.unacknowledged
            .drain(..written.min(self.unacknowledged.len()));
    }

    /// Returns true if the log must be resumed before the next write.
    pub(crate) fn needs_log(&self) -> bool {
        self.log.is_none()
    }

    /// The end that the engine's log must have if the capture is complete.
    pub(crate) fn expected_end(&self, fidelity: LogFidelity) -> ExpectedEnd {
        ExpectedEnd::new(&self.progress, &self.lines, &self.masker, fidelity)
    }

    /// The bytes of each stream past the output limit.
    pub(crate) fn dropped(&self) -> PerStream<u64> {
        self.dropped
    }

    /// Returns true if the log was lost and resumed.
    pub(crate) fn was_resumed(&self) -> bool {
        self.resumed
    }

    /// Resets the count of bytes past the limit: the next source repeats them.
    pub(crate) fn forget_dropped(&mut self) {
        self.dropped = PerStream::default();
    }

    /// Returns true if the output limit was reached.
    pub(crate) fn limit_reached(&self) -> bool {
        self.dropped.total() > 0
    }

    /// Writes events. After an error the log is lost.
    pub(crate) async fn write(&mut self, events: Vec<Event>) -> Result<(), Error> {
        let mut batch = Batch::new();
        for event in events {
            self.keep_lifecycle(&event);
            batch.push_event(event);
        }
        self.append(batch).await
    }

    /// Ends every stream, and writes the open lines. After an error the log is lost.
    pub(crate) async fn finish_lines(&mut self) -> Result<(), Error> {
        let mut batch = Batch::new();
        self.lines.finish(&mut batch);
        self.append(batch).await
    }

    /// Writes the seal. After an error the log is lost.
    pub(crate) async fn seal(&mut self, seal: Seal) -> Result<Seal, Error> {
        let mut log = self.take_log()?;
        let seal = log.seal(seal).await?;
        self.hub.mark_logged(self.progress.bytes());
        self.hub.close();
        Ok(seal)
    }

    async fn append(&mut self, batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut log = self.take_log()?;
        self.observe(&batch);
        log.append(batch).await?;
        self.acknowledge(log);
        Ok(())
    }

    /// Takes the log back after a write.
    fn acknowledge(&mut self, log: Box<dyn RunLog>) {
        self.log = Some(log);
        self.trim_unacknowledged();
        self.hub.mark_logged(self.progress.bytes());
    }

    fn observe(&mut self, batch: &Batch) {
        self.progress.observe_batch(batch);
        let Progress { records, .. } = self.progress;
        self.stats
            .record_batch(batch, records, self.progress.lines());
    }

    fn take_log(&mut self) -> Result<Box<dyn RunLog>, Error> {
        // The monitor resumes the log before it writes. This guards against a bug there.
        self.log.take().ok_or(Error::Closed)
    }

    /// The number of bytes received of each stream, in records or in its open line.
    pub(crate) fn received(&self) -> PerStream<u64> {
        let mut received = self.progress.bytes();
        for stream in Stream::ALL {
            received[stream] += self.lines.open(stream).len() as u64;
        }
        received
    }

    /// Pumps a live tap into the log until it ends.
    pub(crate) async fn tap(&mut self, source: OutputStream, signals: &mut Signals) -> PumpEnd {
        self.lines.set_replacing_log(false);
        self.masker.begin_tap();
        self.pump(source, None, signals).await
    }

    /// Pumps the engine's log into the log, except for the output that is already captured.
    pub(crate) async fn replay(
        &mut self,
        source: OutputStream,
        fidelity: LogFidelity,
        reading: Reading,
        signals: &mut Signals,
    ) -> PumpEnd {
        let replay = Replay::new(&self.progress, &mut self.lines, fidelity);
        self.lines
            .set_replacing_log(fidelity == LogFidelity::Utf8Lossy);
        self.masker.begin_log(fidelity);
        let end = self.pump(source, Some((replay, reading)), signals).await;
        self.log_times &= !matches!(end, PumpEnd::Broken(_) | PumpEnd::Silent(_));
        end
    }

    /// Does without the times of the engine's log, because a read of it failed.
    pub(crate) fn forgo_times(&mut self) {
        self.log_times = false;
    }

    /// Returns the request for a log to [replay](Self::replay).
    pub(crate) fn with_times(&self, request: LogsRequest) -> LogsRequest {
        request.with_timestamps(self.log_times)
    }

    async fn pump(
        &mut self,
        stream: OutputStream,
        replay: Option<(Replay, Reading)>,
        signals: &mut Signals,
    ) -> PumpEnd {
        let mut source = self.open_source(stream, replay, signals);
        let mut writes = WriteScheduler::default();
        loop {
            if let Err(error) = self.start_write(&mut writes, source.has_ended()) {
                return PumpEnd::Sink(error);
            }
            self.stats.set_writing(!writes.is_idle());
            if writes.is_idle()
                && let Some(end) = source.take_end()
            {
                return match self.finish_replay(source.into_replay(&end)).await {
                    Ok(()) => end,
                    Err(error) => PumpEnd::Sink(error),
                };
            }
            if writes.is_paused() {
                // Output may arrive unread until then, so the run does not count as silent.
                self.stats.mark_activity(Instant::now() + STALL_TIMEOUT);
            }
            let is_readable = !source.has_ended() && !writes.is_paused();
            let interest = Interest {
                stdin: !source.has_ended() && writes.has_room_for_stdin(),
                shutdown: !source.has_ended(),
                exit: source.awaits_exit(),
            };
            let timer = next_timer(&source, &writes);
            tokio::select! {
                biased;
                result = writes.finished() => {
                    signals.recorded.cancel();
                    match result {
                        Ok(log) => self.acknowledge(log),
                        Err(error) => return PumpEnd::Sink(error),
                    }
                }
                signal = signals.next(interest) => {
                    self.on_signal(signal, &mut source, &mut writes, signals);
                }
                item = source.next(), if is_readable => {
                    self.on_item(item, &mut source, &mut writes, signals);
                }
                () = until(timer.map(|(due, _)| due)) => {
                    if let Some(end) = self.on_timer(timer.map(|(_, timer)| timer), &mut source) {
                        return end;
                    }
                }
            }
        }
    }

    fn open_source(
        &mut self,
        stream: OutputStream,
        replay: Option<(Replay, Reading)>,
        signals: &Signals,
    ) -> Source {
        self.source_ended = None;
        let received = self.received();
        let silence_timeout = match replay {
            Some((_, Reading::Final { .. })) => self.log_silence_timeout,
            _ => SILENCE_TIMEOUT,
        };
        let exited = signals.exited.is_cancelled();
        Source::new(stream, replay, received, exited, silence_timeout)
    }

    /// Starts the next write if it is due.
    ///
    /// Batches without a whole line are not written.
    fn start_write(
        &mut self,
        writes: &mut WriteScheduler,
        source_ended: bool,
    ) -> Result<(), Error> {
        while let Some(due) = writes.due(source_ended)
            && due <= Instant::now()
        {
            let batch = writes.next_batch(&mut self.lines);
            self.observe(&batch);
            if !batch.is_empty() {
                writes.start(self.take_log()?, batch);
            }
        }
        Ok(())
    }

    fn on_signal(
        &mut self,
        signal: Signal,
        source: &mut Source,
        writes: &mut WriteScheduler,
        signals: &mut Signals,
    ) {
        match signal {
            Signal::Record(event) => self.enqueue(event, writes),
            Signal::Exited => source.mark_exited(),
            Signal::Shutdown => {
                for event in signals.drain() {
                    self.enqueue(event, writes);
                }
                source.end(PumpEnd::Shutdown);
            }
        }
    }

    fn on_item(
        &mut self,
        item: Option<Result<Chunk, RuntimeError>>,
        source: &mut Source,
        writes: &mut WriteScheduler,
        signals: &Signals,
    ) {
        let chunk = match item {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => {
                self.source_ended = Some(source.last_read());
                return source.end(PumpEnd::Broken(error));
            }
            None => {
                self.source_ended = Some(source.last_read());
                self.lateness = source.lateness();
                return source.end(PumpEnd::Eof);
            }
        };
        self.stats.mark_activity(source.last_read());
        let Some((chunk, offsets)) = self.masker.mask(chunk) else {
            return self.limit_discarded(signals);
        };
        let (stream, length) = (chunk.stream, chunk.bytes.len());
        match source.unseen(chunk) {
            Ok(chunk) if source.has_passed(stream) => {
                let new = chunk.bytes.len();
                let (skipped, kept) = (length - new, self.accept(chunk, source, writes, signals));
                let part = CapturedPart { skipped, new, kept };
                self.masker.count(stream, &offsets, part);
            }
            Ok(_) => self.masker.count_skipped(stream, &offsets),
            Err((stream, reason)) => {
                if let Some(gap) = self.gap(stream, reason, source.reading()) {
                    writes.push_event(gap);
                }
            }
        }
    }

    /// Handles an elapsed timer.
    ///
    /// Returns the end if the pump cannot write its queue.
    fn on_timer(&mut self, timer: Option<Timer>, source: &mut Source) -> Option<PumpEnd> {
        match timer {
            // The next iteration starts the write.
            Some(Timer::Write) | None => None,
            Some(Timer::Stall) => {
                self.source_ended = Some(Instant::now());
                Some(PumpEnd::Stalled)
            }
            Some(Timer::Silence) => {
                self.source_ended = Some(Instant::now());
                if let Some(Reading::Final { .. }) = source.reading() {
                    let doubled = self.log_silence_timeout * 2;
                    self.log_silence_timeout = doubled.min(MAX_SILENCE_TIMEOUT);
                }
                source.end(PumpEnd::Silent(source.silence_timeout()));
                None
            }
        }
    }

    /// Publishes a chunk to live subscribers and queues it, up to the output limit.
    ///
    /// Returns the number of its bytes up to the limit.
    fn accept(
        &mut self,
        chunk: Chunk,
        source: &mut Source,
        writes: &mut WriteScheduler,
        signals: &Signals,
    ) -> usize {
        let length = chunk.bytes.len();
        let chunk = self.admit(chunk, &mut source.received);
        let kept = chunk.bytes.len();
        if kept < length {
            signals.limit.cancel();
        }
        if kept > 0 {
            writes.push_chunk(chunk);
        }
        kept
    }

    /// Publishes a chunk to live subscribers, and returns its part up to the output limit.
    fn admit(&mut self, mut chunk: Chunk, received: &mut PerStream<u64>) -> Chunk {
        if let Some(limit) = self.limit {
            let room = limit.saturating_sub(received.total());
            if chunk.bytes.len() as u64 > room {
                let past = chunk.bytes.split_off(room as usize);
                self.dropped[chunk.stream] += past.len() as u64;
            }
        }
        if chunk.bytes.is_empty() {
            return chunk;
        }
        let offset = received[chunk.stream];
        received[chunk.stream] += chunk.bytes.len() as u64;
        self.stats.set_received(*received);
        self.hub.publish(LiveChunk {
            stream: chunk.stream,
            offset,
            bytes: chunk.bytes.clone(),
        });
        chunk
    }

    async fn finish_replay(&mut self, replay: Option<(Replay, Reading)>) -> Result<(), Error> {
        let Some((mut replay, reading)) = replay else {
            return Ok(());
        };
        let mut batch = self.finish_replay_masking(&mut replay, reading, Batch::new());
        for stream in replay.finish(&mut self.lines, &mut batch) {
            if let Some(gap) = self.gap(stream, GapReason::LogShorter, Some(reading)) {
                batch.push_event(gap);
            }
        }
        self.append(batch).await
    }

    /// The gap of an engine's log that is shorter than the capture, or differs from it.
    ///
    /// Only a final read proves a gap, and each gap is recorded once.
    fn gap(&self, stream: Stream, reason: GapReason, reading: Option<Reading>) -> Option<Event> {
        match reading {
            Some(Reading::Final { whole_tap }) if !self.progress.has_gap(reason, Some(stream)) => {
                Some(Event::Gap(Gap {
                    stream: Some(stream),
                    possible: whole_tap,
                    ..Gap::new(reason)
                }))
            }
            _ => None,
        }
    }
}

/// The timer that elapses first.
fn next_timer(source: &Source, writes: &WriteScheduler) -> Option<(Instant, Timer)> {
    // A slow read of the engine's log does not block the container, so it cannot stall.
    let stall = writes.stall_deadline().filter(|_| !source.is_replay());
    let silence = source.silence_deadline().filter(|_| !writes.is_paused());
    [
        (writes.due(source.has_ended()), Timer::Write),
        (stall, Timer::Stall),
        (silence, Timer::Silence),
    ]
    .into_iter()
    .filter_map(|(due, timer)| Some((due?, timer)))
    .min_by_key(|(due, _)| *due)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bytes::Bytes;
    use futures::stream;
    use tokio::time::sleep;

    use super::*;

    #[derive(Debug)]
    struct Discard;

    #[async_trait]
    impl RunLog for Discard {
        async fn append(&mut self, _: Batch) -> Result<(), Error> {
            Ok(())
        }

        async fn sync(&mut self) -> Result<(), Error> {
            Ok(())
        }

        async fn seal(&mut self, seal: Seal) -> Result<Seal, Error> {
            Ok(seal)
        }
    }

    /// An engine that retries a torn record 20,000 times starts over with each request.
    #[tokio::test(start_paused = true)]
    async fn each_silent_read_of_the_log_doubles_the_timeout() {
        let log = Box::new(Discard);
        let mut capture = Capture::new(Progress::default(), Arc::default(), log, None);
        let mut signals = Signals::after_exit();
        let mut silences = Vec::new();
        let reading = Reading::Final { whole_tap: false };
        loop {
            let late = stream::once(async {
                sleep(Duration::from_secs(70)).await;
                let bytes = Bytes::from_static(b"late\n");
                let stream = Stream::Stdout;
                Ok(Chunk::new(stream, bytes))
            });
            let read = capture.replay(Box::pin(late), LogFidelity::Lossless, reading, &mut signals);
            match read.await {
                PumpEnd::Silent(after) => silences.push(after.as_secs()),
                PumpEnd::Eof => break,
                end => panic!("{end:?}"),
            }
        }
        assert_eq!(silences, [10, 20, 40]);
        assert_eq!(capture.progress.bytes().stdout, 5);
    }
}
