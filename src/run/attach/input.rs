//! The standard input of a container.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};

use tokio::io::AsyncWrite;
use tokio_util::sync::PollSender;

use crate::audit::{Action, Event, StdinChunk};
use crate::monitor::entry::{PipeState, close_stdin, lock};
use crate::monitor::exec::StdinSlot;
use crate::run::attach::session::Session;
use crate::runtime::InputWriter;
use crate::runtime::exclusive::Exclusive;
use crate::spec::Stdin;

/// The most bytes of input in one record.
const MAX_RECORD_BYTES: usize = 16 << 10;

/// The standard input of a container or of an exec.
///
/// It has its own connection to the engine, so a failure of the input does not affect
/// the output. A write waits until the container takes the bytes. Read the output at
/// the same time, in another task or with `select!`: otherwise a container that prints
/// its input blocks. After the end of the container, or a shutdown of the manager, a
/// write fails with [`io::ErrorKind::BrokenPipe`].
///
/// Shutting the input down closes the stdin of a [`Stdin::Pipe`] container. The stdin of
/// a [`Stdin::Open`] container cannot be closed: there, a shutdown fails with
/// [`io::ErrorKind::Unsupported`]. A program in a terminal usually ends its input on
/// `ctrl-d`.
///
/// Dropping the input of a pipe before a shutdown also closes it, and the audit records
/// that the writer was lost.
#[must_use = "the input of a pipe ends when it is dropped"]
pub struct Input {
    /// `None` only during the drop.
    writer: Exclusive<Option<InputWriter>>,
    mode: Stdin,
    /// The input was shut down.
    closed: bool,
    /// The audit has a record of the shutdown.
    end_recorded: bool,
    /// The destination of records, if the input is recorded.
    records: Option<PollSender<Event>>,
    /// Resolves when the run ends. `None` once it has ended.
    run_end: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    /// The slot to which the drop returns the writer, for the next session.
    slot: Option<Arc<StdinSlot>>,
    session: Arc<Session>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("run", self.session.run.id())
            .field("mode", &self.mode)
            .field("closed", &self.closed)
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
            writer: Exclusive::new(Some(writer)),
            mode,
            closed: false,
            end_recorded: false,
            records: record.then(|| PollSender::new(entry.stdin_records.clone())),
            run_end: Some(Box::pin(async move {
                // The end of a monitor is not the end of the container.
                let ended = snapshot.wait_for(|snapshot| snapshot.state.ending().is_some());
                if ended.await.is_err() {
                    std::future::pending::<()>().await;
                }
            })),
            slot: None,
            session: Arc::clone(session),
        }
    }

    /// Returns the writer to `slot` on drop.
    pub(crate) fn return_to(mut self, slot: Arc<StdinSlot>) -> Self {
        self.slot = Some(slot);
        self
    }

    fn poll_run_ended(&mut self, cx: &mut task::Context<'_>) -> bool {
        if let Some(end) = &mut self.run_end
            && end.as_mut().poll(cx).is_ready()
        {
            self.run_end = None;
        }
        self.run_end.is_none()
    }
}

fn broken_pipe(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, reason)
}

const CLOSED: &str = "the input is closed";
const SHUT_DOWN: &str = "the manager is shut down";
const NOT_RECORDED: &str = "the audit no longer records input";

impl AsyncWrite for Input {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        mut bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Err(broken_pipe(CLOSED)));
        }
        if this.poll_run_ended(cx) {
            return Poll::Ready(Err(broken_pipe("the container has ended")));
        }
        if this.session.is_closed() {
            return Poll::Ready(Err(broken_pipe(SHUT_DOWN)));
        }
        if let Some(records) = &mut this.records {
            // The record is reserved first: input that cannot be recorded is not written.
            ready!(records.poll_reserve(cx)).map_err(|_| broken_pipe(NOT_RECORDED))?;
            bytes = &bytes[..bytes.len().min(MAX_RECORD_BYTES)];
        }
        let Some(writer) = this.writer.get_mut() else {
            return Poll::Ready(Err(broken_pipe(CLOSED)));
        };
        let written = ready!(writer.as_mut().poll_write(cx, bytes))?;
        if let Some(records) = &mut this.records {
            let record = Event::Stdin(StdinChunk::new(&bytes[..written]));
            records
                .send_item(record)
                .map_err(|_| broken_pipe(NOT_RECORDED))?;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().writer.get_mut() {
            Some(writer) => writer.as_mut().poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.mode != Stdin::Pipe {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "an open stdin cannot be closed: drop the input to detach",
            )));
        }
        if this.closed {
            return Poll::Ready(Ok(()));
        }
        if this.session.is_closed() {
            return Poll::Ready(Err(broken_pipe(SHUT_DOWN)));
        }
        let ended = this.poll_run_ended(cx);
        // Recorded before the container sees the end: it may exit at once, which ends the run.
        if !ended && !std::mem::replace(&mut this.end_recorded, true) {
            this.session
                .record_note(Action::InputEnd, "the input was closed");
        }
        if let Some(writer) = this.writer.get_mut() {
            match ready!(writer.as_mut().poll_shutdown(cx)) {
                // No process is left to see the end of the input.
                Err(_) if ended => {}
                result => result?,
            }
        }
        this.closed = true;
        *lock(&this.session.run.entry.pipe) = PipeState::Ended;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let Some(writer) = self.writer.get_mut().take() else {
            return;
        };
        if self.mode == Stdin::Pipe && !self.closed {
            // Recorded before the container sees the end, as in `poll_shutdown`.
            if !self.session.run.is_over() {
                let text = "the writer was dropped before the input was closed, which closed it";
                self.session.record_note(Action::InputLost, text);
            }
            close_stdin(writer);
            *lock(&self.session.run.entry.pipe) = PipeState::Ended;
        } else if let Some(slot) = &self.slot {
            *lock(&slot.writer) = Some(writer);
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use futures::executor::block_on;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::audit::{Reader, Record};
    use crate::manager::Manager;
    use crate::run::Run;
    use crate::run::attach::session::Recording;
    use crate::runtime::Runtime;
    use crate::runtime::scripted::{Script, Scripted};
    use crate::spec::RunSpec;

    /// An input whose shutdown ends and seals the run before it returns.
    struct EndingInput {
        engine: Scripted,
        run: Run,
        fail_once: bool,
    }

    impl AsyncWrite for EndingInput {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut task::Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            _: &mut task::Context<'_>,
        ) -> Poll<io::Result<()>> {
            if std::mem::take(&mut self.fail_once) {
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

    /// Returns the recorded actions of an input whose end is the end of the run.
    async fn recorded(fail_once: bool, end: impl AsyncFnOnce(Input)) -> Vec<Action> {
        let dir = tempfile::tempdir().unwrap();
        let engine = Scripted::new();
        engine.next(Script::new().until_stopped());
        let root = dir.path().join("root");
        let manager = Manager::open(root, engine.clone()).await.unwrap();
        let run = manager.start(RunSpec::new("any")).await.unwrap();
        let writer = EndingInput {
            engine,
            run: run.clone(),
            fail_once,
        };
        let session = Session::new(run.clone(), None, Recording::Always);
        end(Input::new(Box::pin(writer), Stdin::Pipe, false, &session)).await;
        run.wait().await.unwrap();
        let records = Reader::open(run.audit().unwrap()).unwrap();
        let done = records.filter_map(|record| match record.unwrap() {
            Record::Event(Event::Note { interaction, .. }) => Some(interaction?.action),
            _ => None,
        });
        done.collect()
    }

    #[tokio::test]
    async fn an_input_end_that_ends_the_run_is_recorded() {
        let ended = recorded(false, async |mut input| input.shutdown().await.unwrap());
        assert_eq!(ended.await, [Action::InputEnd]);
        let dropped = recorded(false, async |input| drop(input));
        assert_eq!(dropped.await, [Action::InputLost]);
    }

    #[tokio::test]
    async fn a_failed_input_end_is_recorded_once() {
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
