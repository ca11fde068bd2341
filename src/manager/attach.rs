//! Looking at a run's output, from its first byte to its last.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context as Poller, Poll};

use futures::Stream as Items;
use futures::future::BoxFuture;
use tokio::time::{Duration, sleep};

use super::run::Run;
use crate::capture::{Piece, Pieces};
use crate::runtime::Chunk;
use crate::sink::Output;
use crate::sink::audit::{Reader, Record};
use crate::{Error, PerStream, Result, Stream};

/// How often the file of a run that another process owns is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// About how many bytes of the file are read at once.
const AT_ONCE: usize = 256 * 1024;

/// What a looker-on sees.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attached {
    /// Output.
    Chunk(Chunk),
    /// So many bytes of a stream came faster than they were taken. They are in the audit file.
    Missed {
        /// The stream.
        stream: Stream,
        /// How many.
        bytes: u64,
    },
}

/// A run's output: a stream of all that was printed so far, then of what comes. It ends after the
/// last byte.
///
/// One that is not polled harms nobody: it is told what it missed. What another process captures
/// is seen when it has reached the audit file, a line at a time. Cancel-safe: nothing is lost
/// between two polls.
#[must_use = "streams do nothing unless polled"]
pub struct Attachment {
    state: Option<Viewer>,
    next: Option<BoxFuture<'static, (Viewer, Result<bool>)>>,
    ready: VecDeque<Attached>,
    failed: bool,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachment").finish_non_exhaustive()
    }
}

impl Attachment {
    pub(super) fn new(run: Run) -> Result<Self> {
        Ok(Self {
            state: Some(Viewer {
                run,
                reader: None,
                in_file: PerStream::default(),
                seen: PerStream::default(),
                live: None,
                stage: Stage::History,
                out: Vec::new(),
            }),
            next: None,
            ready: VecDeque::new(),
            failed: false,
        })
    }
}

impl Items for Attachment {
    type Item = Result<Attached>;

    fn poll_next(mut self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(item)));
            }
            if self.failed {
                return Poll::Ready(None);
            }
            if self.next.is_none() {
                match self.state.take() {
                    Some(viewer) => self.next = Some(Box::pin(viewer.step())),
                    None => return Poll::Ready(None),
                }
            }
            let Some(next) = &mut self.next else {
                return Poll::Ready(None);
            };
            let (mut viewer, more) = std::task::ready!(next.as_mut().poll(poller));
            self.next = None;
            self.ready.extend(viewer.out.drain(..));
            match more {
                Ok(true) => self.state = Some(viewer),
                Ok(false) => {}
                Err(error) => {
                    self.failed = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The file up to its end; then what comes live is subscribed to.
    History,
    /// The file once more: what was written before the subscription.
    Seam,
    /// What comes.
    Live,
    /// The file's last part, after the end of the run or of its monitor.
    Last,
}

struct Viewer {
    run: Run,
    reader: Option<Reader>,
    /// How many bytes of each stream the part of the file has that was read.
    in_file: PerStream<u64>,
    /// How many bytes of each stream were seen or said to be missed.
    seen: PerStream<u64>,
    live: Option<(VecDeque<Piece>, Option<Pieces>)>,
    stage: Stage,
    out: Vec<Attached>,
}

impl Viewer {
    /// Does one step; `false`: it was the last.
    async fn step(mut self) -> (Self, Result<bool>) {
        let result = self.try_step().await;
        (self, result)
    }

    async fn try_step(&mut self) -> Result<bool> {
        match self.stage {
            Stage::History => {
                if !self.read_file().await? {
                    let (pending, receiver) = self.run.entry.hub.subscribe();
                    self.live = Some((pending.into(), receiver));
                    self.stage = Stage::Seam;
                }
            }
            Stage::Seam => {
                if !self.read_file().await? {
                    self.stage = Stage::Live;
                }
            }
            Stage::Live => {
                let Some((pending, receiver)) = &mut self.live else {
                    self.stage = Stage::Last;
                    return Ok(true);
                };
                let piece = match (pending.pop_front(), receiver) {
                    (Some(piece), _) => Some(piece),
                    (None, Some(receiver)) if !self.run.owned_elsewhere() => receiver.next().await,
                    _ => None,
                };
                match piece {
                    Some(piece) => self.show(piece),
                    None => {
                        self.live = None;
                        self.stage = Stage::Last;
                    }
                }
            }
            Stage::Last => {
                let status = self.run.entry.status.clone();
                let over = status.borrow().seal.is_some() || status.has_changed().is_err();
                if !self.read_file().await? {
                    if over {
                        return Ok(false);
                    }
                    if !self.run.owned_elsewhere() && status.borrow().state.ending().is_none() {
                        // It was taken over: what comes is seen live.
                        let (pending, receiver) = self.run.entry.hub.subscribe();
                        if receiver.is_some() {
                            self.live = Some((pending.into(), receiver));
                            self.stage = Stage::Seam;
                            return Ok(true);
                        }
                    }
                    sleep(LOOK).await;
                }
            }
        }
        Ok(true)
    }

    fn show(&mut self, piece: Piece) {
        let seen = self.seen[piece.stream];
        let end = piece.end();
        if end <= seen {
            return;
        }
        if piece.offset > seen {
            self.out.push(Attached::Missed {
                stream: piece.stream,
                bytes: piece.offset - seen,
            });
        }
        let from = seen.saturating_sub(piece.offset) as usize;
        self.seen[piece.stream] = end;
        self.out.push(Attached::Chunk(Chunk {
            stream: piece.stream,
            bytes: piece.bytes.slice(from..),
        }));
    }

    /// Shows what comes next in the file; `false`: it is at its end.
    async fn read_file(&mut self) -> Result<bool> {
        let context = &self.run.inner.context;
        let Some(path) = context.sink.path(&self.run.entry.place) else {
            return Ok(false);
        };
        let reader = self.reader.take();
        let file = path.clone();
        let read = context.disk.run("read", &path, move || {
            let mut reader = match reader {
                Some(reader) => reader,
                None => match Reader::open(&file) {
                    // It is about to be made.
                    Err(Error::Storage { source, .. })
                        if source.kind() == std::io::ErrorKind::NotFound =>
                    {
                        return Ok(None);
                    }
                    other => other?,
                },
            };
            let mut outputs = Vec::new();
            let mut bytes = 0;
            for record in reader.by_ref() {
                if let Record::Output(output) = record? {
                    bytes += output.bytes.len() + 1;
                    outputs.push(output);
                    if bytes >= AT_ONCE {
                        break;
                    }
                }
            }
            Ok(Some((reader, outputs)))
        });
        let Some((reader, outputs)) = read.await? else {
            return Ok(false);
        };
        self.reader = Some(reader);
        let more = !outputs.is_empty();
        for output in outputs {
            self.show_record(output);
        }
        Ok(more)
    }

    fn show_record(&mut self, output: Output) {
        let mut bytes = output.bytes;
        if !output.partial {
            bytes.push(b'\n');
        }
        let offset = self.in_file[output.stream];
        self.in_file[output.stream] += bytes.len() as u64;
        self.show(Piece {
            stream: output.stream,
            offset,
            bytes: bytes.into(),
        });
    }
}
