//! Looking at a run's output, from its first byte to its last.

pub(crate) mod input;
mod live;

pub use input::{AttachHandle, Input};

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};

use futures::Stream as Items;
use futures::future::BoxFuture;
use tokio::time::{Duration, Instant, sleep};

use crate::audit::{Action, Reader, Record};
use crate::capture::{Piece, Pieces};
use crate::error::{Error, Result};
use crate::monitor::entry::{Pipe, lock};
use crate::outcome::{Outcome, PerStream, Stream};
use crate::run::Run;
use crate::run::attach::input::Session;
use crate::run::attach::live::LiveOutput;
use crate::runtime::Chunk;
use crate::spec::{Settings, Stdin, WindowSize};

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
    Lagged {
        /// The stream.
        stream: Stream,
        /// How many.
        bytes: u64,
    },
}

/// How to sit in front of a run.
///
/// Default: look on, from the first byte that was printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttachOptions {
    live_only: bool,
    pub(crate) input: bool,
    pub(crate) window: Option<WindowSize>,
    lossless: bool,
}

impl AttachOptions {
    /// To look on, from the first byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only what comes from now on: nothing of what was printed before.
    ///
    /// Without this, of a run that was taken over, or that another process owns, output comes a
    /// line at a time, since it comes by way of a log. With it, and a terminal, it comes from the
    /// engine as it is printed, so that prompts are seen; what is missed is then only told.
    pub fn live_only(mut self) -> Self {
        self.live_only = true;
        self
    }

    /// With the standard input: [`Attachment::input`].
    ///
    /// Of [`Stdin::Pipe`] there is one, in the process that owns the run, once. Of
    /// [`Stdin::Open`] there are as many as one likes, in any process.
    pub fn with_input(mut self) -> Self {
        self.input = true;
        self
    }

    /// Gives the terminal this size.
    pub fn window(mut self, size: WindowSize) -> Self {
        self.window = Some(size);
        self
    }

    /// As [`Attachment::lossless`].
    pub fn lossless(mut self) -> Self {
        self.lossless = true;
        self
    }
}

/// A run's output: a stream of all that was printed so far, then of what comes. It ends after the
/// last byte; with [`Error::NotSealed`] where the run has ended, and cannot be sealed within the
/// bound that [`Run::wait`] has too. Where a terminal's output comes from the engine by a connection
/// of its own ([`AttachOptions::live_only`]), and that is lost while the container goes on, it ends
/// with [`Error::Runtime`]: what is missed is in the audit file, and one can attach again.
///
/// One that is not polled harms nobody: it is told what it missed. What another process captures
/// is seen when it has reached the audit file, a line at a time. Cancel-safe: nothing is lost
/// between two polls. Dropping it detaches, and the run goes on.
#[must_use = "streams do nothing unless polled"]
pub struct Attachment {
    state: Option<Viewer>,
    next: Option<BoxFuture<'static, (Viewer, Result<bool>)>>,
    ready: VecDeque<Attached>,
    failed: bool,
    input: Option<Input>,
    session: Arc<Session>,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachment").finish_non_exhaustive()
    }
}

impl Attachment {
    /// Reads what came too fast from the audit file, in place of telling that it was missed: all of
    /// the output comes, however slowly it is taken. Without a file it is told all the same.
    pub fn lossless(mut self) -> Self {
        if let Some(viewer) = &mut self.state {
            viewer.lossless = viewer.file().is_some();
        }
        self
    }

    /// The standard input, if it was asked for: once. What it was not taken for is left behind
    /// when the attachment is dropped.
    pub fn input(&mut self) -> Option<Input> {
        self.input.take()
    }

    /// What can be done from beside it. While there is one, it counts as attached.
    pub fn control(&self) -> AttachHandle {
        AttachHandle(Arc::clone(&self.session))
    }

    /// Sets the size of the terminal: see [`AttachHandle::resize`]. Cancel-safe.
    ///
    /// # Errors
    ///
    /// As for [`AttachHandle::resize`].
    pub async fn resize(&self, size: WindowSize) -> Result<()> {
        self.session.resize(size).await
    }

    /// Leaves; the run goes on. The same as to drop it, with all that was taken from it.
    pub fn detach(self) {}

    /// Waits for the end of what it is attached to, and says how it was: see [`Run::wait`].
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// As for [`Run::wait`].
    pub async fn outcome(&self) -> Result<Outcome> {
        self.session.run.wait().await
    }

    pub(crate) async fn open(run: Run, options: AttachOptions) -> Result<Self> {
        let acts = options.input || options.window.is_some();
        if acts || options.live_only {
            run.is_placed().await;
        }
        let live = !run.is_over();
        let session = Session::new(run, None, live, acts);
        let mut direct = None;
        if options.live_only && live && !session.run.entry.snapshot.borrow().tapped {
            direct = session.watch().await?;
        }
        // A pipe has one writer, which a call that fails must not use up.
        if let Some(size) = options.window {
            session.resize(size).await?;
        }
        let mut input = None;
        if options.input {
            input = Some(session.connect().await?);
        } else {
            session.record_note(Action::Attach, "attached, to look on");
        }
        let mut attachment = Self::new(session, options, input);
        if let (Some(_), Some(viewer)) = (&direct, &mut attachment.state) {
            viewer.direct = direct;
            viewer.stage = Stage::LiveOutput;
        }
        Ok(attachment)
    }

    pub(crate) fn new(session: Arc<Session>, options: AttachOptions, input: Option<Input>) -> Self {
        let attachment = Self {
            state: Some(Viewer {
                run: session.run.clone(),
                ended: None,
                reader: None,
                lossless: false,
                in_file: PerStream::default(),
                seen: PerStream::default(),
                direct: None,
                live: None,
                stage: match options.live_only {
                    true => Stage::Now,
                    false => Stage::History,
                },
                out: Vec::new(),
            }),
            next: None,
            ready: VecDeque::new(),
            failed: false,
            input,
            session,
        };
        match options.lossless {
            true => attachment.lossless(),
            false => attachment,
        }
    }
}

impl Session {
    pub(crate) async fn settings(&self) -> Result<Settings> {
        let id = self.run.id().clone();
        let context = self.run.inner.context();
        let read = context.on_disk("read", move |root| root.read_run(&id));
        let file = read.await?;
        Ok(file.map(|file| file.record.settings).unwrap_or_default())
    }

    /// Connects to the standard input of the run.
    async fn connect(self: &Arc<Self>) -> Result<Input> {
        let run = &self.run;
        let context = run.inner.context();
        if run.is_over() {
            return Err(run.no_input("the run has ended"));
        }
        if self.is_closed() {
            return Err(Error::Closed);
        }
        let settings = self.settings().await?;
        let elsewhere = run.owned_elsewhere();
        if settings.stdin == Stdin::None {
            return Err(run.no_input("the spec asks for none"));
        }
        if !context.runtime.capabilities().stdin {
            return Err(run.no_input("the engine cannot do that"));
        }
        if elsewhere && settings.record_stdin {
            return Err(
                run.no_input("it is recorded, which only the process that owns the run can")
            );
        }
        if settings.stdin == Stdin::Pipe {
            if elsewhere {
                return Err(run.no_input("it is a pipe of the process that owns the run"));
            }
            let mut pipe = lock(&run.entry.pipe);
            match *pipe {
                Pipe::Free => *pipe = Pipe::Taken,
                Pipe::Taken => return Err(run.no_input("it is a pipe, and has its writer")),
                Pipe::Ended => return Err(run.no_input("it has ended")),
            }
        }
        // Before the engine is asked: were this process to die now, its writer would have gone.
        self.record_note(Action::AttachInput, "attached, with the input");
        let connecting = Connecting(&run.entry.pipe);
        let writer = context.runtime.stdin(&run.container()?).await?;
        std::mem::forget(connecting);
        let record = settings.record_stdin;
        Ok(Input::new(writer, settings.stdin, record, self))
    }
}

/// Gives the writing end of a pipe back if no connection comes about.
struct Connecting<'a>(&'a std::sync::Mutex<Pipe>);

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        let mut pipe = lock(self.0);
        if *pipe == Pipe::Taken {
            *pipe = Pipe::Free;
        }
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
    /// What comes from the engine, past the file.
    LiveOutput,
    /// Nothing of what there is so far, but what comes.
    Now,
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
    let mut snapshot = run.entry.snapshot.clone();
    if snapshot
        .wait_for(|snapshot| snapshot.state.ending().is_some())
        .await
        .is_err()
    {
        std::future::pending::<()>().await;
    }
    sleep(run.inner.context.seal_timeout).await;
    if run.entry.snapshot.borrow().seal.is_some() {
        std::future::pending::<()>().await;
    }
}

struct Viewer {
    run: Run,
    /// Since when the run is seen to have ended, and not to be sealed.
    ended: Option<Instant>,
    reader: Option<Reader>,
    /// Whether what came too fast is read from the file.
    lossless: bool,
    /// How many bytes of each stream the part of the file has that was read.
    in_file: PerStream<u64>,
    /// How many bytes of each stream were seen or said to be missed.
    seen: PerStream<u64>,
    /// What comes from the engine, past the file.
    direct: Option<LiveOutput>,
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
            Stage::LiveOutput => {
                let piece = match &mut self.direct {
                    Some(direct) => direct.next().await?,
                    None => None,
                };
                let Some(piece) = piece else {
                    return Ok(false);
                };
                self.show(piece);
            }
            Stage::Now if self.run.owned_elsewhere() => {
                // What there is so far is what the file has.
                while self.read_file().await? {
                    self.out.clear();
                }
                self.stage = Stage::Live;
            }
            Stage::Now => {
                let (before, receiver) = self.run.entry.hub.subscribe_live();
                self.seen = before;
                self.live = Some((VecDeque::new(), receiver));
                self.stage = Stage::Live;
            }
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
                    Some(piece) if piece.offset > self.seen[piece.stream] && self.is_in_file() => {
                        let gone = self.run.entry.snapshot.has_changed().is_err();
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
                let snapshot = self.run.entry.snapshot.clone();
                let over = snapshot.borrow().seal.is_some() || snapshot.has_changed().is_err();
                if !self.read_file().await? {
                    if over {
                        return Ok(false);
                    }
                    if !self.run.owned_elsewhere() && snapshot.borrow().state.ending().is_none() {
                        // It was taken over: what comes is seen live.
                        let (pending, receiver) = self.run.entry.hub.subscribe();
                        if receiver.is_some() {
                            self.live = Some((pending.into(), receiver));
                            self.stage = Stage::Seam;
                            return Ok(true);
                        }
                    }
                    sleep(LOOK).await;
                    let ended = self.run.entry.snapshot.borrow().state.ending().is_some();
                    let since = *self.ended.get_or_insert_with(Instant::now);
                    if !ended {
                        self.ended = None;
                    } else if since.elapsed() > self.run.inner.context.seal_timeout {
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

    /// Whether what is missing before a live piece is to be read from the file.
    fn is_in_file(&self) -> bool {
        let withheld = match &self.live {
            Some((_, Some(pieces))) => pieces.fell_behind(),
            _ => false,
        };
        self.lossless || !withheld && self.file().is_some()
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
            self.out.push(Attached::Lagged {
                stream: piece.stream,
                bytes: piece.offset - seen,
            });
        }
        let from = seen.saturating_sub(piece.offset) as usize;
        self.seen[piece.stream] = end;
        if piece.bytes.is_empty() {
            return;
        }
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
