//! The pump: from one source of output to the log, within bounds of memory and time.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::hub::{Hub, Piece};
use super::lines::Lines;
use super::progress::Progress;
use super::pulse::CaptureStats;
use super::replay::Replay;
use crate::audit::{Batch, Event, Gap, GapReason};
use crate::error::{Error, RuntimeError};
use crate::outcome::{PerStream, Stream};
use crate::runtime::{Chunk, LogFidelity, OutputStream};
use crate::sink::RunLog;
use crate::timestamp::Timestamp;

/// Where the source is no longer read, until half of it is written.
const MOST_QUEUED: usize = 2 << 20;
/// How long a source may stay unread: past it the sink is taken to be stalled.
const MOST_BLOCKED: Duration = Duration::from_secs(2);
/// How long after the exit a source may stay silent.
const MOST_SILENT: Duration = Duration::from_secs(10);
/// How long a log may be silent at most, that was silent before.
const MOST_PATIENCE: Duration = Duration::from_secs(320);
/// With so many entries in the queue no input is taken.
const MOST_TYPED: usize = 64;
/// What an entry of the queue takes, beside its bytes.
const ENTRY: usize = 128;
/// About how many bytes of output go to the sink at once.
const BATCH: usize = 256 << 10;
/// How long after the beginning of a write less than a batch waits for more: each write wakes a
/// thread, which costs more than what is written. What comes after a silence is written at once.
const PACE: Duration = Duration::from_millis(10);

/// What a pump and its monitor tell each other while it runs.
#[derive(Debug)]
pub(crate) struct Signals {
    /// Records of the monitor's, to be written in between.
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    /// Records of input, taken no faster than they are written.
    pub(crate) typed: mpsc::Receiver<Event>,
    /// Set by the monitor: the container has ended.
    pub(crate) exited: CancellationToken,
    /// Set by the manager, which closes: what is queued is to be written, and no more is read.
    pub(crate) leaving: CancellationToken,
    /// Set by the pump: the output limit was reached.
    pub(crate) limit: CancellationToken,
    /// Set by the pump: the first records were written, or could not be.
    pub(crate) recorded: CancellationToken,
}

impl Signals {
    /// Of a container that has ended, with nothing to record in between.
    pub(crate) fn after_the_end() -> Self {
        let exited = CancellationToken::new();
        exited.cancel();
        Self {
            events: mpsc::unbounded_channel().1,
            typed: mpsc::channel(1).1,
            exited,
            leaving: CancellationToken::new(),
            limit: CancellationToken::new(),
            recorded: CancellationToken::new(),
        }
    }

    /// The records that no pump has taken yet.
    pub(crate) fn queued(&mut self) -> Vec<Event> {
        let events = std::iter::from_fn(|| self.events.try_recv().ok());
        let typed = std::iter::from_fn(|| self.typed.try_recv().ok());
        events.chain(typed).collect()
    }
}

/// What a reading of the engine's log is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// It may end anywhere: what it has is taken, and what it has not says nothing.
    Preview,
    /// It is the whole log of a container that has ended.
    Final {
        /// Whether the tap came to its end: then it is only possible that something is missing.
        whole_tap: bool,
    },
}

/// How a pump ended.
#[derive(Debug)]
pub(crate) enum PumpEnd {
    /// The source came to a clean end.
    Eof,
    /// The source broke.
    Broken(RuntimeError),
    /// After the exit the source neither went on nor ended, for so long.
    Silent(Duration),
    /// It was left, with all written that was queued.
    Left,
    /// The sink did not take anything for too long. The log is lost.
    Stalled,
    /// The sink failed. The log is lost.
    Sink(Error),
}

/// What is captured of a run, and where it goes.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) progress: Progress,
    pub(crate) hub: Arc<Hub>,
    /// How far it has come.
    pulse: Arc<CaptureStats>,
    /// The log; `None` after a failure, until it is resumed.
    log: Option<Box<dyn RunLog>>,
    pub(super) lines: Lines,
    /// The most bytes that are captured.
    limit: Option<u64>,
    /// Bytes past the limit.
    dropped: PerStream<u64>,
    /// When the last source ended, or was given up.
    source_ended: Option<Instant>,
    /// Whether the log was lost in between.
    resumed: bool,
    /// Whether it had less then than was received.
    lost: bool,
    /// What was to be recorded of the start and of stops, in a log that was lost or not.
    said: Vec<Event>,
    /// What was done in front of the run, and input, that a pump has taken and that is not written
    /// yet: nobody else has it.
    taken: VecDeque<Event>,
    /// How many such records the log had when it was asked last.
    written: u64,
    /// How long the engine's log may be silent when it is read to its end. An engine that has much
    /// to do, or a log that is torn, takes its time; to ask anew makes it begin anew.
    patience: Duration,
}

impl Capture {
    /// A capture that goes on after `progress`.
    pub(crate) fn new(
        progress: Progress,
        hub: Arc<Hub>,
        log: Box<dyn RunLog>,
        limit: Option<u64>,
    ) -> Self {
        hub.goes_on_after(progress.bytes());
        Self {
            said: progress.said(),
            taken: VecDeque::new(),
            written: progress.done,
            progress,
            hub,
            pulse: Arc::default(),
            log: Some(log),
            lines: Lines::default(),
            limit,
            dropped: PerStream::default(),
            source_ended: None,
            resumed: false,
            lost: false,
            patience: MOST_SILENT,
        }
    }

    /// How far it has come, for others to look at.
    pub(crate) fn pulse(&self) -> &Arc<CaptureStats> {
        &self.pulse
    }

    /// When the last source ended, or was given up.
    pub(crate) fn source_ended(&self) -> Option<Instant> {
        self.source_ended
    }

    /// Takes a log that was resumed after a failure, and what was read back from it.
    pub(crate) fn resume(&mut self, progress: Progress, log: Box<dyn RunLog>) {
        let has_less = |stream| progress.streams[stream].bytes < self.received(stream);
        self.lost |= Stream::ALL.into_iter().any(has_less);
        self.progress = progress;
        self.forget_written();
        self.lines = Lines::default();
        self.log = Some(log);
        self.resumed = true;
    }

    /// What was said of the run, and done to it, and the log that was resumed does not say.
    pub(crate) fn unwritten(&self) -> Vec<Event> {
        let missing = |event: &&Event| !self.progress.has(event);
        let said = self.said.iter().filter(missing);
        said.chain(&self.taken).cloned().collect()
    }

    /// Whether a log was lost with output that was received.
    pub(crate) fn has_lost(&self) -> bool {
        self.lost
    }

    /// Keeps what only the monitor can say, for a log that is resumed.
    fn keep(&mut self, event: &Event) {
        if matches!(event, Event::Started(_) | Event::Stop(_)) && !self.said.contains(event) {
            self.said.push(event.clone());
        }
    }

    /// Keeps what a pump has taken until it is written.
    fn take(&mut self, event: &Event) {
        self.keep(event);
        if matches!(event, Event::Note { .. } | Event::Stdin(_)) {
            self.taken.push_back(event.clone());
        }
    }

    /// Forgets what was taken and is in the log: it is written in its order.
    fn forget_written(&mut self) {
        let more = self.progress.done.saturating_sub(self.written) as usize;
        self.written = self.progress.done;
        self.taken.drain(..more.min(self.taken.len()));
    }

    /// Whether the log must be resumed before anything can be written.
    pub(crate) fn needs_log(&self) -> bool {
        self.log.is_none()
    }

    /// The lines that are open.
    pub(crate) fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Bytes of each stream past the output limit.
    pub(crate) fn dropped(&self) -> PerStream<u64> {
        self.dropped
    }

    /// Whether the log was lost, and what it did not take with it.
    pub(crate) fn was_resumed(&self) -> bool {
        self.resumed
    }

    /// Forgets what came past the limit: it comes again.
    pub(crate) fn forget_dropped(&mut self) {
        self.dropped = PerStream::default();
    }

    /// Whether the output limit was reached.
    pub(crate) fn limit_reached(&self) -> bool {
        self.dropped.total() > 0
    }

    /// Writes events. After an error the log is lost.
    pub(crate) async fn write(&mut self, events: Vec<Event>) -> Result<(), Error> {
        let mut batch = Batch::new();
        for event in events {
            self.keep(&event);
            batch.push_event(event);
        }
        self.append(batch).await
    }

    /// Ends every stream, and writes what is open. After an error the log is lost.
    pub(crate) async fn finish_lines(&mut self) -> Result<(), Error> {
        let mut batch = Batch::new();
        self.lines.finish(Timestamp::now(), &mut batch);
        self.append(batch).await
    }

    /// Writes the seal. After an error the log is lost.
    pub(crate) async fn seal(
        &mut self,
        seal: crate::outcome::Seal,
    ) -> Result<crate::outcome::Seal, Error> {
        let mut log = self.take_log()?;
        let seal = log.seal(seal).await?;
        self.hub.logged(self.progress.bytes());
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
        self.log = Some(log);
        self.forget_written();
        self.hub.logged(self.progress.bytes());
        Ok(())
    }

    fn observe(&mut self, batch: &Batch) {
        self.progress.observe_batch(batch);
        self.pulse.recorded(batch, self.progress.records);
    }

    fn take_log(&mut self) -> Result<Box<dyn RunLog>, Error> {
        // A monitor resumes the log before it writes; this is for a mistake in that.
        self.log.take().ok_or(Error::Closed)
    }

    /// How many bytes of a stream were received: in records, or open.
    fn received(&self, stream: Stream) -> u64 {
        self.progress.streams[stream].bytes + self.lines.open(stream).len() as u64
    }

    /// Pumps a live tap into the log until it ends.
    pub(crate) async fn tap(&mut self, source: OutputStream, signals: &mut Signals) -> PumpEnd {
        self.lines.set_replacing_log(false);
        self.pump(source, None, signals).await
    }

    /// Pumps an engine's log, read from its start, into the log, without what is there already.
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
        self.pump(source, Some((replay, reading)), signals).await
    }

    async fn pump(
        &mut self,
        source: OutputStream,
        mut replay: Option<(Replay, Reading)>,
        signals: &mut Signals,
    ) -> PumpEnd {
        let mut source = source.fuse();
        self.source_ended = None;
        let mut received = PerStream::default();
        for stream in Stream::ALL {
            received[stream] = self.received(stream);
        }
        let mut queue = Queue::default();
        let mut writing: Option<BoxFuture<'static, Result<Box<dyn RunLog>, Error>>> = None;
        let mut end = None;
        let mut last_chunk = Instant::now();
        let mut silence_counts = signals.exited.is_cancelled();
        let is_final = matches!(replay, Some((_, Reading::Final { .. })));
        let most_silent = if is_final { self.patience } else { MOST_SILENT };

        loop {
            let due = queue.due(end.is_some());
            if writing.is_none() && due.is_some_and(|due| due <= Instant::now()) {
                let batch = queue.batch(&mut self.lines);
                self.observe(&batch);
                if !batch.is_empty() {
                    let mut log = match self.take_log() {
                        Ok(log) => log,
                        Err(error) => return PumpEnd::Sink(error),
                    };
                    writing = Some(Box::pin(async move {
                        log.append(batch).await?;
                        Ok(log)
                    }));
                }
                continue;
            }
            if writing.is_none()
                && queue.is_empty()
                && let Some(end) = end.take()
            {
                if let Some((replay, reading)) = replay {
                    // Only a log that was read to its end can be too short.
                    let reading = match end {
                        PumpEnd::Eof => reading,
                        _ => Reading::Preview,
                    };
                    if let Err(error) = self.finish_replay(replay, reading).await {
                        return PumpEnd::Sink(error);
                    }
                }
                return end;
            }
            if queue.paused {
                // What the container prints meanwhile is not heard.
                self.pulse.mark_activity(Instant::now() + MOST_BLOCKED);
            }
            // Nobody is held up by a log that is read slowly.
            let blocked = queue
                .blocked_since
                .filter(|_| replay.is_none())
                .map(|since| since + MOST_BLOCKED);
            let silent = (silence_counts && end.is_none() && !queue.paused)
                .then(|| last_chunk + most_silent);
            tokio::select! {
                biased;
                result = optional(writing.as_mut()) => {
                    writing = None;
                    signals.recorded.cancel();
                    match result {
                        Ok(log) => self.log = Some(log),
                        Err(error) => return PumpEnd::Sink(error),
                    }
                    self.forget_written();
                    // It is slow, and not stalled.
                    queue.blocked_since = queue.blocked_since.map(|_| Instant::now());
                    self.hub.logged(self.progress.bytes());
                }
                Some(event) = signals.events.recv() => {
                    self.take(&event);
                    queue.push_event(event);
                }
                Some(event) = signals.typed.recv(), if end.is_none() && queue.has_room() => {
                    self.take(&event);
                    queue.push_event(event);
                }
                () = signals.leaving.cancelled(), if end.is_none() => {
                    for event in signals.queued() {
                        self.take(&event);
                        queue.push_event(event);
                    }
                    end = Some(PumpEnd::Left);
                }
                () = signals.exited.cancelled(), if !silence_counts => {
                    silence_counts = true;
                    last_chunk = Instant::now();
                }
                chunk = source.next(), if end.is_none() && !queue.paused => {
                    last_chunk = Instant::now();
                    match chunk {
                        None => {
                            self.source_ended = Some(last_chunk);
                            end = Some(PumpEnd::Eof);
                        }
                        Some(Err(error)) => {
                            self.source_ended = Some(last_chunk);
                            end = Some(PumpEnd::Broken(error));
                        }
                        Some(Ok(chunk)) => {
                            self.pulse.mark_activity(last_chunk);
                            let bytes = match &mut replay {
                                None => Ok(chunk.bytes),
                                Some((replay, _)) => replay.push(&chunk),
                            };
                            match bytes {
                                Ok(bytes) => self.accept(
                                    Chunk { stream: chunk.stream, bytes },
                                    &mut received,
                                    &mut queue,
                                    signals,
                                ),
                                Err(reason) => {
                                    let reading = replay.as_ref().map(|(_, reading)| *reading);
                                    if let Some(gap) = self.gap(chunk.stream, reason, reading) {
                                        queue.push_event(gap);
                                    }
                                }
                            }
                        }
                    }
                }
                () = until(due), if writing.is_none() => {}
                () = until(blocked) => {
                    self.source_ended = Some(Instant::now());
                    return PumpEnd::Stalled;
                }
                () = until(silent) => {
                    self.source_ended = Some(Instant::now());
                    if is_final {
                        self.patience = (self.patience * 2).min(MOST_PATIENCE);
                    }
                    end = Some(PumpEnd::Silent(most_silent));
                }
            }
        }
    }

    /// Shows a chunk to those who look on, and queues it, up to the limit.
    fn accept(
        &mut self,
        mut chunk: Chunk,
        received: &mut PerStream<u64>,
        queue: &mut Queue,
        signals: &Signals,
    ) {
        if let Some(limit) = self.limit {
            let room = limit.saturating_sub(received.total());
            if chunk.bytes.len() as u64 > room {
                let past = chunk.bytes.split_off(room as usize);
                self.dropped[chunk.stream] += past.len() as u64;
                signals.limit.cancel();
            }
        }
        if chunk.bytes.is_empty() {
            return;
        }
        let offset = received[chunk.stream];
        received[chunk.stream] += chunk.bytes.len() as u64;
        self.pulse.received(*received);
        self.hub.publish(Piece {
            stream: chunk.stream,
            offset,
            bytes: chunk.bytes.clone(),
        });
        queue.push_chunk(chunk.stream, chunk.bytes);
    }

    async fn finish_replay(&mut self, replay: Replay, reading: Reading) -> Result<(), Error> {
        let mut batch = Batch::new();
        for stream in replay.finish(&mut self.lines, &mut batch) {
            if let Some(gap) = self.gap(stream, GapReason::LogShorter, Some(reading)) {
                batch.push_event(gap);
            }
        }
        self.append(batch).await
    }

    /// The log has less than the capture, or other bytes: a gap, if it is the final reading that
    /// says so, and none such is recorded yet.
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

/// What waits for the sink.
#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Whether the source is not read for now.
    paused: bool,
    blocked_since: Option<Instant>,
    /// How many events there are: they do not wait for more.
    events: usize,
    /// When the last write began.
    written: Option<Instant>,
}

#[derive(Debug)]
enum Entry {
    Chunk(Timestamp, Stream, Bytes),
    Event(Event),
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether there is room for input, which nobody loses that has to wait.
    fn has_room(&self) -> bool {
        self.entries.len() < MOST_TYPED
    }

    /// When the next batch is to be written; `None`: there is none.
    fn due(&self, ended: bool) -> Option<Instant> {
        if self.is_empty() {
            return None;
        }
        let now = Instant::now();
        let at_once = ended || self.events > 0 || self.bytes >= BATCH;
        let paced = self.written.map(|written| written + PACE);
        Some(paced.filter(|_| !at_once).unwrap_or(now))
    }

    fn push_event(&mut self, event: Event) {
        self.events += 1;
        self.entries.push_back(Entry::Event(event));
    }

    fn push_chunk(&mut self, stream: Stream, bytes: Bytes) {
        self.bytes += bytes.len() + ENTRY;
        self.entries
            .push_back(Entry::Chunk(Timestamp::now(), stream, bytes));
        if self.bytes >= MOST_QUEUED && !self.paused {
            self.paused = true;
            self.blocked_since = Some(Instant::now());
        }
    }

    /// The next batch. Chunks that end no line leave it empty.
    fn batch(&mut self, lines: &mut Lines) -> Batch {
        let mut batch = Batch::with_room(self.bytes.min(BATCH));
        let mut taken = 0;
        while taken < BATCH
            && let Some(entry) = self.entries.pop_front()
        {
            match entry {
                Entry::Chunk(ts, stream, bytes) => {
                    taken += bytes.len() + ENTRY;
                    lines.push(ts, stream, &bytes, &mut batch);
                }
                Entry::Event(event) => {
                    self.events -= 1;
                    batch.push_event(event);
                }
            }
        }
        self.written = Some(Instant::now());
        self.bytes -= taken;
        if self.bytes < MOST_QUEUED / 2 {
            self.paused = false;
            self.blocked_since = None;
        }
        batch
    }
}

async fn optional<T>(future: Option<&mut BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

/// Resolves at `deadline`, if there is one. Cancel-safe.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures::stream;
    use tokio::time::sleep;

    use super::*;
    use crate::outcome::Seal;

    #[derive(Debug)]
    struct Nowhere;

    #[async_trait]
    impl RunLog for Nowhere {
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

    /// An engine that retries a torn record 20,000 times begins anew with each request.
    #[tokio::test(start_paused = true)]
    async fn a_log_that_was_silent_for_too_long_is_given_longer() {
        let log = Box::new(Nowhere);
        let mut capture = Capture::new(Progress::default(), Arc::default(), log, None);
        let mut signals = Signals::after_the_end();
        let mut silences = Vec::new();
        let reading = Reading::Final { whole_tap: false };
        loop {
            let late = stream::once(async {
                sleep(Duration::from_secs(70)).await;
                let bytes = Bytes::from_static(b"late\n");
                let stream = Stream::Stdout;
                Ok(Chunk { stream, bytes })
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
