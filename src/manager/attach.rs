//! Looking at a run's output, from its first byte to its last.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context as Poller, Poll};

use futures::Stream as Items;
use futures::future::BoxFuture;
use tokio::time::{Duration, Instant, sleep};

use super::run::Run;
use crate::capture::{Piece, Pieces};
use crate::runtime::Chunk;
use crate::sink::audit::{Reader, Record};
use crate::{Error, PerStream, Result, Stream};

/// How often the file of a run that another process owns is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// About how many bytes of the file are read at once.
const AT_ONCE: usize = 64 * 1024;

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
/// last byte; with [`Error::NotSealed`] where the run has ended, and cannot be sealed within the
/// bound that [`Run::wait`] has too.
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
    /// Reads what came too fast from the audit file, in place of telling that it was missed: all of
    /// the output comes, however slowly it is taken. Without a file it is told all the same.
    pub fn catching_up(mut self) -> Self {
        if let Some(viewer) = &mut self.state {
            viewer.catches_up = viewer.file().is_some();
        }
        self
    }

    pub(super) fn new(run: Run) -> Result<Self> {
        Ok(Self {
            state: Some(Viewer {
                run,
                ended: None,
                reader: None,
                catches_up: false,
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

/// Resolves when a run has ended, and was not sealed within the bound of its manager.
async fn overdue(run: &Run) {
    let mut status = run.entry.status.clone();
    if status
        .wait_for(|status| status.state.ending().is_some())
        .await
        .is_err()
    {
        std::future::pending::<()>().await;
    }
    sleep(run.inner.context.pending_after).await;
    if run.entry.status.borrow().seal.is_some() {
        std::future::pending::<()>().await;
    }
}

struct Viewer {
    run: Run,
    /// Since when the run is seen to have ended, and not to be sealed.
    ended: Option<Instant>,
    reader: Option<Reader>,
    /// Whether what came too fast is read from the file.
    catches_up: bool,
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
                    (None, Some(receiver)) if !self.run.owned_elsewhere() => tokio::select! {
                        biased;
                        piece = receiver.next() => piece,
                        () = overdue(&self.run) => return Err(self.not_sealed()),
                    },
                    _ => None,
                };
                match piece {
                    Some(piece) if self.catches_up && piece.offset > self.seen[piece.stream] => {
                        let gone = self.run.entry.status.has_changed().is_err();
                        if self.read_file().await? {
                            self.put_back(piece);
                        } else if gone {
                            self.show(piece);
                        } else {
                            // What is missing is on its way to the file.
                            self.put_back(piece);
                            sleep(LOOK).await;
                        }
                    }
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
                    let ended = self.run.entry.status.borrow().state.ending().is_some();
                    let since = *self.ended.get_or_insert_with(Instant::now);
                    if !ended {
                        self.ended = None;
                    } else if since.elapsed() > self.run.inner.context.pending_after {
                        return Err(self.not_sealed());
                    }
                }
            }
        }
        Ok(true)
    }

    fn not_sealed(&self) -> Error {
        Error::NotSealed {
            run: self.run.id().clone(),
        }
    }

    fn put_back(&mut self, piece: Piece) {
        if let Some((pending, _)) = &mut self.live {
            pending.push_front(piece);
        }
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
        let Some(path) = self.file() else {
            return Ok(false);
        };
        let reader = self.reader.take();
        let file = path.clone();
        let read = context.disk.run("read", &path, move || {
            let mut reader = match reader {
                Some(reader) => reader,
                None => match Reader::open(&file) {
                    // It is about to be made.
                    Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => {
                        return Ok(None);
                    }
                    other => other?,
                },
            };
            let mut outputs: Vec<(Stream, Vec<u8>)> = Vec::new();
            let mut taken = 0;
            for record in reader.by_ref() {
                let Record::Output(mut output) = record? else {
                    continue;
                };
                if !output.partial {
                    output.bytes.push(b'\n');
                }
                taken += output.bytes.len();
                match outputs.last_mut() {
                    Some((stream, bytes)) if *stream == output.stream => {
                        bytes.append(&mut output.bytes);
                    }
                    _ => outputs.push((output.stream, output.bytes)),
                }
                if taken >= AT_ONCE {
                    break;
                }
            }
            Ok(Some((reader, outputs)))
        });
        let Some((reader, outputs)) = read.await? else {
            return Ok(false);
        };
        self.reader = Some(reader);
        let more = !outputs.is_empty();
        for (stream, bytes) in outputs {
            let offset = self.in_file[stream];
            self.in_file[stream] += bytes.len() as u64;
            let bytes = bytes.into();
            self.show(Piece {
                stream,
                offset,
                bytes,
            });
        }
        Ok(more)
    }

    /// The file that the sink writes, if it writes one.
    fn file(&self) -> Option<PathBuf> {
        self.run.inner.context.sink.path(&self.run.entry.place)
    }
}
