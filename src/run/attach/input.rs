//! Writing to a container, and what is recorded of those who sit in front of it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as Poller, Poll, ready};

use futures::future::BoxFuture;
use tokio::io::AsyncWrite;
use tokio_util::sync::PollSender;

use crate::audit::{Action, Event as Record, Interaction, StdinChunk};
use crate::error::{Error, Result};
use crate::monitor::entry::{Pipe, close_stdin, lock};
use crate::monitor::exec::StdinSlot;
use crate::outcome::Outcome;
use crate::run::Run;
use crate::runtime::{ExecId, InputWriter};
use crate::spec::{Stdin, WindowSize};
use crate::state::State;
use crate::timestamp::Timestamp;

/// The most bytes of input in one record.
const RECORD: usize = 16 << 10;

/// Somebody in front of a run: from the attachment to when the last part of it is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) run: Run,
    number: u64,
    /// Of a further process in the container.
    exec: Option<ExecId>,
    /// Whether what it does is recorded.
    recorded: bool,
    /// Whether its begin was, and so its end is.
    begun: AtomicBool,
    /// Whether it has the input, or may change a size.
    acts: bool,
    window: Mutex<Option<WindowSize>>,
}

impl Session {
    pub(crate) fn new(run: Run, exec: Option<ExecId>, recorded: bool, acts: bool) -> Arc<Self> {
        Arc::new(Self {
            number: run.inner.context().next_attachment(),
            run,
            exec,
            recorded,
            begun: AtomicBool::new(false),
            acts,
            window: Mutex::default(),
        })
    }

    /// It is there from the start of the run, which records that, and its terminal has this size.
    pub(crate) fn starts_with(&self, size: Option<WindowSize>) {
        *lock(&self.window) = size;
        self.begun.store(true, Ordering::Relaxed);
    }

    /// A record of what was done here.
    pub(crate) fn record(&self, action: Action, text: impl Into<String>) -> Record {
        Record::Note {
            ts: Timestamp::now(),
            text: text.into(),
            interaction: Some(Interaction::new(action, self.number)),
        }
    }

    pub(crate) fn record_note(&self, action: Action, text: impl Into<String>) {
        // Who only looks on at a run of another process reads its files.
        if self.recorded && (self.acts || !self.run.owned_elsewhere()) {
            if matches!(action, Action::Attach | Action::AttachInput) {
                self.begun.store(true, Ordering::Relaxed);
            }
            self.run.record_note(self.record(action, text));
        }
    }

    /// Whether the manager has closed: what is done from here on nobody would record.
    pub(crate) fn is_closed(&self) -> bool {
        self.run.inner.context().closing.is_cancelled()
    }

    pub(crate) async fn resize(&self, size: WindowSize) -> Result<()> {
        if self.is_closed() {
            return Err(Error::Closed);
        }
        let runtime = &self.run.inner.context().runtime;
        match &self.exec {
            None => runtime.resize(&self.run.container()?, size).await?,
            Some(exec) => runtime.exec_resize(exec, size).await?,
        }
        if lock(&self.window).replace(size) != Some(size) {
            self.record_note(Action::Resize, format!("the terminal is {size} now"));
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.begun.load(Ordering::Relaxed) && !self.run.is_over() {
            self.record_note(Action::Detach, "detached; the run goes on");
        }
    }
}

/// What can be done to an attachment from beside it, while it is read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AttachHandle(pub(crate) Arc<Session>);

impl AttachHandle {
    /// Sets the size of the terminal. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`], where there is no terminal, and when the container has ended;
    /// [`Error::Closed`], when the manager is shut down.
    pub async fn resize(&self, size: WindowSize) -> Result<()> {
        self.0.resize(size).await
    }

    /// The size that was set here last, or by the start.
    #[cfg(feature = "terminal")]
    pub(crate) fn window(&self) -> Option<WindowSize> {
        *lock(&self.0.window)
    }

    /// Waits for the end of what it is attached to: see [`Run::wait`].
    ///
    /// # Errors
    ///
    /// As for [`Run::wait`].
    pub async fn outcome(&self) -> Result<Outcome> {
        self.0.run.wait().await
    }
}

/// The standard input of a container, or of a further process in it.
///
/// It has a connection of its own to the engine: whatever becomes of it, output goes on. A write
/// waits until the engine takes the bytes, and that is when the container does; so read the output
/// meanwhile, in another task or with `select!`, or a container that prints what it reads comes to
/// a stop. Once the container has ended, or the manager is shut down, a write fails with
/// [`io::ErrorKind::BrokenPipe`].
///
/// Shutting it down ends the input of [`Stdin::Pipe`], and nothing else. [`Stdin::Open`] has no
/// end: there it fails with [`io::ErrorKind::Unsupported`], and in front of a terminal it is the
/// program's own matter what ends its input, `ctrl-d` as a rule.
///
/// Dropped before that, a pipe is at its end for the container all the same, and the audit says so.
#[must_use = "the input of a pipe ends when it is dropped"]
pub struct Input {
    /// `None` only while it is dropped.
    writer: Option<InputWriter>,
    mode: Stdin,
    ended: bool,
    /// Whether its end is recorded.
    told: bool,
    /// Where what was written is recorded.
    typed: Option<PollSender<Record>>,
    /// Resolves with the end of the run; `None`: it has.
    over: Option<BoxFuture<'static, ()>>,
    /// Where a terminal's input goes back to, for the next one.
    home: Option<Arc<StdinSlot>>,
    session: Arc<Session>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("run", self.session.run.id())
            .field("mode", &self.mode)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Input {
    pub(crate) fn new(
        writer: InputWriter,
        mode: Stdin,
        record: bool,
        session: &Arc<Session>,
    ) -> Self {
        let entry = &session.run.entry;
        let mut snapshot = entry.snapshot.clone();
        Self {
            writer: Some(writer),
            mode,
            ended: false,
            told: false,
            typed: record.then(|| PollSender::new(entry.typed.clone())),
            over: Some(Box::pin(async move {
                // The end of its monitor is none of the container's.
                let ended = snapshot.wait_for(|snapshot| snapshot.state.ending().is_some());
                if ended.await.is_err() {
                    std::future::pending::<()>().await;
                }
            })),
            home: None,
            session: Arc::clone(session),
        }
    }

    /// When it is dropped, the writer goes back there.
    pub(crate) fn return_to(mut self, home: Arc<StdinSlot>) -> Self {
        self.home = Some(home);
        self
    }

    fn is_over(&mut self, poller: &mut Poller<'_>) -> bool {
        if let Some(over) = &mut self.over
            && over.as_mut().poll(poller).is_ready()
        {
            self.over = None;
        }
        self.over.is_none()
    }
}

fn broken(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, reason)
}

impl AsyncWrite for Input {
    fn poll_write(
        self: Pin<&mut Self>,
        poller: &mut Poller<'_>,
        mut bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(Err(broken("the input was ended")));
        }
        if this.is_over(poller) {
            return Poll::Ready(Err(broken("the container has ended")));
        }
        if this.session.is_closed() {
            return Poll::Ready(Err(broken("the manager is shut down")));
        }
        if let Some(typed) = &mut this.typed {
            // What cannot be recorded is not written.
            ready!(typed.poll_reserve(poller)).map_err(|_| broken("the audit takes no more"))?;
            bytes = &bytes[..bytes.len().min(RECORD)];
        }
        let Some(writer) = &mut this.writer else {
            return Poll::Ready(Err(broken("the input was ended")));
        };
        let written = ready!(writer.as_mut().poll_write(poller, bytes))?;
        if let Some(typed) = &mut this.typed {
            let record = Record::Stdin(StdinChunk::new(&bytes[..written]));
            typed
                .send_item(record)
                .map_err(|_| broken("the audit takes no more"))?;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().writer {
            Some(writer) => writer.as_mut().poll_flush(poller),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.mode != Stdin::Pipe {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "an input that stays open has no end: drop it to leave",
            )));
        }
        if this.ended {
            return Poll::Ready(Ok(()));
        }
        if this.session.is_closed() {
            return Poll::Ready(Err(broken("the manager is shut down")));
        }
        let over = this.is_over(poller);
        // Before the container sees it, which may end at once, and its run with it.
        if !over && !std::mem::replace(&mut this.told, true) {
            let text = "the input is at its end";
            this.session.record_note(Action::InputEnd, text);
        }
        if let Some(writer) = &mut this.writer {
            match ready!(writer.as_mut().poll_shutdown(poller)) {
                // Nobody is there any more who could see it.
                Err(_) if over => {}
                result => result?,
            }
        }
        this.ended = true;
        *lock(&this.session.run.entry.pipe) = Pipe::Ended;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else {
            return;
        };
        if self.mode == Stdin::Pipe && !self.ended {
            // As an end is: before the container sees it.
            if !self.session.run.is_over() {
                let text =
                    "the writer of the input has gone before its end; the container sees one";
                self.session.record_note(Action::InputLost, text);
            }
            close_stdin(writer);
            *lock(&self.session.run.entry.pipe) = Pipe::Ended;
        } else if let Some(home) = &self.home {
            *lock(&home.writer) = Some(writer);
        }
    }
}

impl Run {
    /// Waits until it is known where the run is: a moment, for one that is being taken over.
    pub(crate) async fn is_placed(&self) {
        let mut snapshot = self.entry.snapshot.clone();
        let placed = snapshot.wait_for(|snapshot| {
            snapshot.ownership_known
                || !matches!(snapshot.state, State::Intended | State::Created { .. })
        });
        // Whose monitor has gone is placed for good.
        let _ = placed.await;
    }

    /// Leaves a record for the audit: with this run's monitor, or, where another process has that,
    /// beside the audit, for it to take.
    pub(crate) fn record_note(&self, note: Record) {
        if !self.owned_elsewhere() {
            // One that has gone has nothing to record any more.
            let _ = self.entry.notes.send(note);
            return;
        }
        let context = Arc::clone(self.inner.context());
        let run = self.id().clone();
        self.inner.context().tasks.spawn(async move {
            let leave = context.on_disk("leave a note in", {
                let run = run.clone();
                move |root| root.leave_note(&run, &note)
            });
            let left = tokio::select! {
                biased;
                left = leave => left,
                () = context.shutdown_grace_elapsed() => Err(Error::Closed),
            };
            if let Err(error) = left {
                tracing::warn!(%run, error = %error.chain(), "no note was left");
            }
        });
    }

    /// Whether nothing can happen to it any more that would be recorded.
    pub(crate) fn is_over(&self) -> bool {
        let snapshot = self.entry.snapshot.borrow();
        snapshot.state.ending().is_some() || snapshot.seal.is_some()
    }

    pub(crate) fn no_input(&self, reason: &'static str) -> Error {
        Error::NoInput {
            run: self.id().clone(),
            reason,
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use futures::executor::block_on;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::audit::{Reader, Record as Read};
    use crate::manager::Manager;
    use crate::runtime::Runtime;
    use crate::runtime::scripted::{Script, Scripted};
    use crate::spec::RunSpec;

    /// An input at whose end its run ends, and is sealed before that is answered.
    struct Last {
        engine: Scripted,
        run: Run,
        fails: bool,
    }

    impl AsyncWrite for Last {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Poller<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<io::Result<()>> {
            if std::mem::take(&mut self.fails) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let container = self.run.container().unwrap();
            block_on(async {
                self.engine.signal(&container, "SIGKILL").await.unwrap();
                while self.run.wait().await.unwrap().sealed().is_none() {}
            });
            Poll::Ready(Ok(()))
        }
    }

    /// What is recorded of an input of a run that ends with it.
    async fn recorded(fails: bool, end: impl AsyncFnOnce(Input)) -> Vec<Action> {
        let dir = tempfile::tempdir().unwrap();
        let engine = Scripted::new();
        engine.next(Script::new().until_stopped());
        let root = dir.path().join("root");
        let manager = Manager::open(root, engine.clone()).await.unwrap();
        let run = manager.start(RunSpec::new("any")).await.unwrap();
        let last = Last {
            engine,
            run: run.clone(),
            fails,
        };
        let session = Session::new(run.clone(), None, true, true);
        end(Input::new(Box::pin(last), Stdin::Pipe, false, &session)).await;
        run.wait().await.unwrap();
        let records = Reader::open(run.audit().unwrap()).unwrap();
        let done = records.filter_map(|record| match record.unwrap() {
            Read::Event(Record::Note { interaction, .. }) => Some(interaction?.action),
            _ => None,
        });
        done.collect()
    }

    #[tokio::test]
    async fn the_end_of_an_input_is_recorded_also_where_it_is_that_of_the_run() {
        let ended = recorded(false, async |mut input| input.shutdown().await.unwrap());
        assert_eq!(ended.await, [Action::InputEnd]);
        let dropped = recorded(false, async |input| drop(input));
        assert_eq!(dropped.await, [Action::InputLost]);
    }

    #[tokio::test]
    async fn an_end_of_the_input_that_failed_is_recorded_once_and_followed_by_the_loss() {
        let again = recorded(true, async |mut input| {
            input.shutdown().await.unwrap_err();
            input.shutdown().await.unwrap();
        });
        assert_eq!(again.await, [Action::InputEnd]);
        let given_up = recorded(true, async |mut input| {
            input.shutdown().await.unwrap_err();
        });
        assert_eq!(given_up.await, [Action::InputEnd, Action::InputLost]);
    }
}
