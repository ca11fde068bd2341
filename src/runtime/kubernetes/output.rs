//! The output of a pod, read from its collector.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;

use super::api::client::{Client, Failure};
use super::api::connection::{Container, Frame, Frames, Input, next_alive};
use super::api::pod::{Pod, PodRef};
use super::process::ProcessState;
use super::protocol::Kind;
use crate::outcome::Stream;
use crate::runtime::{Chunk, OutputStream};

/// The operation of a stream, as errors name it.
const OPERATION: &str = "read the container's output";
/// The received bytes after which the collector is informed.
const ACK_INTERVAL: u64 = 1 << 20;
/// The pause before a broken connection is opened again, doubled up to the maximum.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// The part of the spool to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// All output.
    Start,
    /// Output from now on.
    Now,
    /// About this number of lines at the end.
    Tail(u32),
}

/// A reader of a pod's spool, which survives a broken connection.
struct Reader {
    client: Client,
    pod: PodRef,
    follow: bool,
    /// The output is read by the run's owner, so the collector may free it.
    owned: bool,
    /// The offset of the next frame.
    offset: u64,
    acked: u64,
    connection: Option<(Frames, Input)>,
    state: Arc<ProcessState>,
}

/// Opens the output of a pod.
pub(super) async fn open(
    client: &Client,
    pod: &PodRef,
    from: From,
    follow: bool,
    state: Arc<ProcessState>,
) -> Result<OutputStream, Failure> {
    let mut reader = Reader {
        client: client.clone(),
        pod: pod.clone(),
        follow,
        owned: from == From::Start,
        offset: 0,
        acked: 0,
        connection: None,
        state,
    };
    let opened = super::api::client::with_timeout(reader.connect(from)).await?;
    if from == From::Start && opened > 0 {
        return Err(missing_start(opened));
    }
    reader.offset = opened;
    let chunks = stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(reader))),
            Ok(None) => None,
            Err(failure) => {
                // A stream that ends early is broken, whatever the reason.
                let error = failure.inconclusive(OPERATION, &reader.client.address);
                Some((Err(error), None))
            }
        }
    });
    match from {
        From::Tail(lines) => Ok(last_lines(chunks.boxed(), lines).await),
        From::Start | From::Now => Ok(chunks.boxed()),
    }
}

/// Returns the last lines of an output, whose beginning has a few more.
async fn last_lines(mut output: OutputStream, lines: u32) -> OutputStream {
    let mut chunks = Vec::new();
    while let Some(chunk) = output.next().await {
        match chunk {
            Ok(chunk) => chunks.push(chunk),
            Err(error) => {
                chunks.clear();
                return stream::iter([Err(error)]).boxed();
            }
        }
    }
    let mut left = lines;
    let mut kept: Vec<Chunk> = Vec::new();
    for (index, chunk) in chunks.iter().enumerate().rev() {
        // The end of the last line ends no earlier line.
        let is_last = index + 1 == chunks.len();
        let bytes = &chunk.bytes;
        let searched = bytes.len() - usize::from(is_last && bytes.ends_with(b"\n"));
        let mut start = 0;
        for end in memchr::memrchr_iter(b'\n', &bytes[..searched]) {
            left = left.saturating_sub(1);
            if left == 0 {
                start = end + 1;
                break;
            }
        }
        let bytes = bytes.slice(start..);
        if !bytes.is_empty() {
            kept.push(Chunk::new(chunk.stream, bytes));
        }
        if left == 0 {
            break;
        }
    }
    kept.reverse();
    stream::iter(kept.into_iter().map(Ok)).boxed()
}

/// Returns the failure of a spool whose beginning was freed to make room.
fn missing_start(offset: u64) -> Failure {
    Failure::refused(
        422,
        format!("the collector has freed the output before byte {offset} of its spool"),
    )
}

impl Reader {
    /// Connects to the collector, and returns the offset of the next frame.
    async fn connect(&mut self, from: From) -> Result<u64, Failure> {
        let (offset, count) = (self.offset.to_string(), tail_count(from));
        let mut request = match from {
            From::Start => vec!["tap", &offset],
            From::Now => vec!["tap", "end"],
            From::Tail(_) => vec!["tail", &count],
        };
        if self.follow && !matches!(from, From::Tail(_)) {
            request.push("follow");
        }
        let (mut frames, input) = self.client.control(&self.pod, &request).await?;
        let Some(hello) = frames.next().await? else {
            return Err(frames.cut_off());
        };
        let offset = match hello.kind() {
            Kind::Hello => hello.offset(),
            Kind::Refused => return Err(Failure::Broken(hello.text())),
            Kind::Failed => return Err(Failure::Broken(hello.failure())),
            _ => None,
        };
        let offset = offset.ok_or_else(|| Failure::Broken("an invalid answer".into()))?;
        self.connection = Some((frames, input));
        Ok(offset)
    }

    /// Returns the next piece of output; none at the proven end.
    async fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        loop {
            let Some((frames, input)) = &mut self.connection else {
                self.reconnect().await?;
                continue;
            };
            let frame = match next_alive(frames, input).await {
                Ok(Some(frame)) => frame,
                Ok(None) | Err(_) => {
                    self.connection = None;
                    continue;
                }
            };
            let stream = match frame.kind() {
                Kind::Pause => return Ok(None),
                Kind::Stdout => Stream::Stdout,
                Kind::Stderr => Stream::Stderr,
                Kind::Tty => Stream::Tty,
                kind => {
                    self.offset += frame.len();
                    self.state.observe(&frame);
                    if kind == Kind::End {
                        self.acknowledge().await;
                        return Ok(None);
                    }
                    continue;
                }
            };
            self.offset += frame.len();
            if self.owned && self.offset - self.acked >= ACK_INTERVAL {
                self.acknowledge().await;
            }
            let Frame { payload, .. } = frame;
            return Ok(Some(Chunk::new(stream, payload)));
        }
    }

    async fn acknowledge(&mut self) {
        if !self.owned {
            return;
        }
        if let Some((_, input)) = &mut self.connection {
            // A broken connection is noticed by the next read.
            let _ = input.send(Kind::Ack, &self.offset.to_le_bytes()).await;
            self.acked = self.offset;
        }
    }

    /// Opens the connection again, for as long as the collector may be reached.
    async fn reconnect(&mut self) -> Result<(), Failure> {
        let mut pause = MIN_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
            match super::api::client::with_timeout(self.connect(From::Start)).await {
                Ok(offset) if offset == self.offset => return Ok(()),
                Ok(offset) => return Err(missing_start(offset)),
                Err(failure) => {
                    tracing::debug!(pod = %self.pod.name, ?failure, "the output is out of reach");
                }
            }
            self.check_collector().await?;
        }
    }

    /// Fails if the collector will never answer again.
    async fn check_collector(&mut self) -> Result<(), Failure> {
        let pod: Pod = match self.client.get(&self.pod.path()).await {
            Ok(pod) => pod,
            Err(failure) if failure.is_not_found() => return Err(failure),
            Err(_) => return Ok(()),
        };
        let gone = pod.metadata.uid != self.pod.uid;
        let ended = pod.terminated(Container::Collector);
        match (gone, ended) {
            (true, _) => Err(Failure::Broken("the pod was removed".into())),
            (_, Some(ended)) => Err(Failure::Broken(format!(
                "the collector ended with code {} ({})",
                ended.exit_code, ended.reason
            ))),
            (false, None) if pod.is_over() && !pod.is_running(Container::Collector) => {
                Err(Failure::Broken("the pod has ended".into()))
            }
            (false, None) => Ok(()),
        }
    }
}

fn tail_count(from: From) -> String {
    match from {
        From::Tail(lines) => lines.to_string(),
        From::Start | From::Now => String::new(),
    }
}
