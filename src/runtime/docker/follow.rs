//! Following the log of a container of Podman.
//!
//! With `follow=1`, Podman sometimes skips or mixes bytes of a log that grows. Without it, Podman
//! sends the file as it is. Then only the last record can be wrong, because its writer has not
//! finished it: Podman ends such a record with a newline. So the log is read again and again, and the
//! last line waits until it no longer changes.

use std::collections::VecDeque;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::{Instant, sleep};

use super::client::Client;
use crate::error::RuntimeError;
use crate::outcome::{PerStream, Stream};
use crate::runtime::{Chunk, ContainerStatus, LogsRequest, OutputStream};
use crate::spec::ContainerId;
use crate::timestamp::Timestamp;

/// The shortest pause between two reads.
const MIN_PAUSE: Duration = Duration::from_millis(300);
/// The pause after a read, as a multiple of the duration of the read.
const PAUSE_PER_READ: u32 = 4;
/// The time for which the last line must not change.
///
/// Podman's writer passes a record to the kernel in one call.
const SETTLE_TIME: Duration = Duration::from_secs(1);
/// The longest part of a line that waits. A record has at most 8 KiB.
const MAX_HELD_BYTES: usize = 16 << 10;

/// The state of a followed log.
struct Follow {
    client: Client,
    container: ContainerId,
    request: LogsRequest,
    /// The current read, and when it began.
    read: Option<(OutputStream, Instant)>,
    /// The pause before the next read.
    pause: Duration,
    /// True once the container has ended. The read that begins then is the last one.
    has_ended: bool,
    positions: PerStream<Position>,
    ready: VecDeque<Chunk>,
}

/// Bytes to return, and the time of the last one.
type Returned = (Vec<u8>, Option<Timestamp>);

/// The position in one stream.
#[derive(Debug, Default)]
struct Position {
    /// The number of returned bytes.
    returned: usize,
    /// The number of bytes of the current read to skip.
    skip: usize,
    /// The bytes of the current read that are not returned.
    held: Vec<u8>,
    /// The time of the last held byte.
    time: Option<Timestamp>,
    /// The held bytes at the end of an earlier read, and when that read ended.
    settling: Option<(Vec<u8>, Instant)>,
}

impl Client {
    /// Follows the log of a container of Podman.
    pub(super) async fn follow_log(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        let mut follow = Follow {
            client: self.clone(),
            container: container.clone(),
            request: LogsRequest {
                follow: false,
                ..request
            },
            read: None,
            pause: Duration::ZERO,
            has_ended: false,
            positions: PerStream::default(),
            ready: VecDeque::new(),
        };
        follow.start_read().await?;
        let chunks = stream::try_unfold(follow, async |mut follow: Follow| {
            let chunk = follow.next().await?;
            Ok(chunk.map(|chunk| (chunk, follow)))
        });
        Ok(chunks.boxed())
    }
}

impl Follow {
    async fn next(&mut self) -> Result<Option<Chunk>, RuntimeError> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            match &mut self.read {
                Some((read, _)) => match read.next().await {
                    Some(chunk) => self.push(chunk?),
                    None => self.finish_read(),
                },
                None if self.has_ended => return Ok(None),
                None => {
                    sleep(self.pause).await;
                    self.start_read().await?;
                }
            }
        }
    }

    async fn start_read(&mut self) -> Result<(), RuntimeError> {
        let began = Instant::now();
        // In this order: a read that begins after the end has all output.
        let inspection = self.client.inspect(&self.container).await?;
        self.has_ended = match inspection.status {
            ContainerStatus::Created | ContainerStatus::Ended => true,
            ContainerStatus::Running | ContainerStatus::Removing => false,
        };
        for stream in Stream::ALL {
            self.positions[stream].start_read();
        }
        let read = self.client.read_log(&self.container, self.request).await?;
        self.read = Some((read, began));
        Ok(())
    }

    fn push(&mut self, chunk: Chunk) {
        let position = &mut self.positions[chunk.stream];
        let lines = position.push(&chunk.bytes, chunk.logged_at);
        self.add(chunk.stream, lines);
    }

    fn finish_read(&mut self) {
        let now = Instant::now();
        if let Some((_, began)) = self.read.take() {
            self.pause = MIN_PAUSE.max((now - began) * PAUSE_PER_READ);
        }
        for stream in Stream::ALL {
            let line = self.positions[stream].finish_read(now, self.has_ended);
            self.add(stream, line);
        }
    }

    fn add(&mut self, stream: Stream, (bytes, logged_at): Returned) {
        if !bytes.is_empty() {
            self.ready.push_back(Chunk {
                logged_at,
                ..Chunk::new(stream, bytes)
            });
        }
    }
}

impl Position {
    fn start_read(&mut self) {
        self.skip = self.returned;
        self.held.clear();
    }

    /// Adds bytes of the current read, and returns those before the last line.
    fn push(&mut self, bytes: &[u8], time: Option<Timestamp>) -> Returned {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let (held, held_time) = (self.held.len(), self.time);
        self.held.extend_from_slice(&bytes[skipped..]);
        self.time = time;
        let line = self.held.strip_suffix(b"\n").unwrap_or(&self.held);
        let last_line = memchr::memrchr(b'\n', line).map_or(0, |at| at + 1);
        let end = last_line.max(self.held.len().saturating_sub(MAX_HELD_BYTES));
        let time = if end > held { time } else { held_time };
        (self.take(end), time)
    }

    /// Ends the current read, and returns the last line if it is complete.
    fn finish_read(&mut self, now: Instant, is_last: bool) -> Returned {
        let since = match self.settling.take() {
            Some((held, since)) if held == self.held => since,
            _ => now,
        };
        if is_last || now - since >= SETTLE_TIME {
            return (self.take(self.held.len()), self.time);
        }
        self.settling = Some((self.held.clone(), since));
        (Vec::new(), None)
    }

    fn take(&mut self, end: usize) -> Vec<u8> {
        self.returned += end;
        self.held.drain(..end).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    /// What Podman sends of the first `size` bytes of a log of records.
    ///
    /// A record is part of a line, or its rest and a newline.
    fn sent(records: &[(Vec<u8>, bool)], mut size: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        for (text, ends_line) in records {
            if size == 0 {
                break;
            }
            // The newline is the last byte of a record in the file, and is sent in any case.
            let written = text.len().min(size);
            size = size.saturating_sub(text.len() + 1);
            sent.extend_from_slice(&text[..written]);
            if *ends_line {
                sent.push(b'\n');
            }
        }
        sent
    }

    fn records() -> impl Strategy<Value = Vec<(Vec<u8>, bool)>> {
        let short = "[ab]{0,5}".prop_map(String::into_bytes);
        let text = prop_oneof![4 => short, 1 => Just(vec![b'a'; 8192])];
        prop::collection::vec((text, any::<bool>()), 0..12)
    }

    proptest! {
        /// Each read may end inside a record, and the last one has all of them.
        #[test]
        fn each_byte_is_returned_once(
            records in records(),
            sizes in prop::collection::vec(0usize..40_000, 0..5),
            chunk in 100usize..10_000,
        ) {
            let mut sizes = sizes;
            sizes.sort_unstable();
            let mut position = Position::default();
            let mut returned = Vec::new();
            let now = Instant::now();
            for size in sizes.iter().chain([&usize::MAX]) {
                position.start_read();
                for part in sent(&records, *size).chunks(chunk) {
                    returned.extend(position.push(part, None).0);
                }
                returned.extend(position.finish_read(now, *size == usize::MAX).0);
            }
            prop_assert!(returned == sent(&records, usize::MAX));
        }
    }

    #[test]
    fn each_line_has_its_time() {
        let mut position = Position::default();
        let times = [1, 2].map(|at| Timestamp::from(UNIX_EPOCH + Duration::from_secs(at)));
        position.start_read();
        let held = (Vec::new(), None);
        assert_eq!(position.push(b"a\n", Some(times[0])), held);
        let first = (b"a\n".to_vec(), Some(times[0]));
        assert_eq!(position.push(b"b\n", Some(times[1])), first);
        let second = (b"b\n".to_vec(), Some(times[1]));
        assert_eq!(position.finish_read(Instant::now(), true), second);
    }

    #[test]
    fn a_prompt_is_returned_once_it_has_settled() {
        let mut position = Position::default();
        let start = Instant::now();
        for (seconds, text, expected) in [
            (0, "a\nNa", ""),
            (1, "a\nName: ", ""),
            (2, "a\nName: ", "Name: "),
            (3, "a\nName: ", ""),
            (4, "a\nName: x\n", ""),
            (5, "a\nName: x\n", "x\n"),
        ] {
            position.start_read();
            let (lines, _) = position.push(text.as_bytes(), None);
            assert_eq!(lines, if seconds == 0 { &b"a\n"[..] } else { b"" });
            let at = start + Duration::from_secs(seconds);
            let (settled, _) = position.finish_read(at, false);
            assert_eq!(settled, expected.as_bytes(), "after {seconds} s");
        }
    }
}
