//! Attachments: the output of a run, from the first byte to the last.

pub(crate) mod input;
mod live;
mod options;
pub(crate) mod session;
mod viewer;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use futures::future::BoxFuture;

pub use self::input::Input;
pub use self::options::AttachOptions;
pub use self::session::AttachHandle;
use self::session::{Recording, Session};
use self::viewer::{Stage, Viewer};
use crate::audit::Action;
use crate::error::Result;
use crate::outcome::{Outcome, Stream};
use crate::run::Run;
use crate::runtime::Chunk;
use crate::runtime::exclusive::Exclusive;
use crate::spec::WindowSize;

/// An item of an [`Attachment`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attached {
    /// Output.
    Chunk(Chunk),
    /// Output that was dropped because the attachment was polled too slowly.
    ///
    /// The audit file contains it.
    Lagged {
        /// The stream.
        stream: Stream,
        /// The number of bytes dropped.
        bytes: u64,
    },
}

/// A step of the viewer: the viewer after it, and true if more steps follow.
type ViewerStep = BoxFuture<'static, (Viewer, Result<bool>)>;

/// The output of a run: a stream of all output so far, and then of live output.
///
/// The stream ends after the last byte. It ends early with an error in these cases:
///
/// - [`Error::NotSealed`]: the run has ended and is not sealed within the timeout of
///   [`Run::wait`].
/// - [`Error::Runtime`]: the terminal output came directly from the engine
///   ([`AttachOptions::live_only`]), and the connection was lost while the container was
///   running. The audit file has the missing output. Attach again to continue.
/// - [`Error::Storage`] or [`Error::Damaged`]: the audit file cannot be read.
///
/// An attachment that is not polled never blocks the container or the log. It lags, and
/// reports the number of bytes that it dropped. Output captured by another process
/// appears once it is in the audit file, one line at a time.
///
/// Dropping the attachment detaches it. The run continues.
///
/// # Cancel safety
///
/// Dropping a future of `StreamExt::next` loses no output.
///
/// [`Error::NotSealed`]: crate::error::Error::NotSealed
/// [`Error::Runtime`]: crate::error::Error::Runtime
/// [`Error::Storage`]: crate::error::Error::Storage
/// [`Error::Damaged`]: crate::error::Error::Damaged
#[must_use = "streams do nothing unless polled"]
pub struct Attachment {
    /// The viewer between two steps. `None` during a step and after the last.
    viewer: Option<Viewer>,
    step: Exclusive<Option<ViewerStep>>,
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
    /// Delivers all output, however slowly the attachment is polled.
    ///
    /// Output that would be reported as [`Attached::Lagged`] is read from the audit file
    /// instead. Has no effect if the sink writes no file.
    pub fn lossless(mut self) -> Self {
        if let Some(viewer) = &mut self.viewer {
            viewer.set_lossless();
        }
        self
    }

    /// Takes the standard input, once, if [`AttachOptions::with_input`] was set.
    ///
    /// An input that is not taken is dropped with the attachment.
    pub fn input(&mut self) -> Option<Input> {
        self.input.take()
    }

    /// Returns a handle for use in other tasks.
    ///
    /// The session counts as attached while a handle exists.
    pub fn handle(&self) -> AttachHandle {
        AttachHandle(Arc::clone(&self.session))
    }

    /// Resizes the terminal: see [`AttachHandle::resize`].
    ///
    /// # Errors
    ///
    /// Those of [`AttachHandle::resize`].
    ///
    /// # Cancel safety
    ///
    /// That of [`AttachHandle::resize`].
    pub async fn resize(&self, size: WindowSize) -> Result<()> {
        self.session.resize(size).await
    }

    /// Detaches. The run continues.
    ///
    /// Equivalent to dropping the attachment. The session ends once its input and
    /// handles are dropped too.
    pub fn detach(self) {}

    /// Waits for the outcome of the run or exec: see [`Run::wait`].
    ///
    /// # Errors
    ///
    /// Those of [`Run::wait`].
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn outcome(&self) -> Result<Outcome> {
        self.session.run.wait().await
    }

    pub(super) async fn open(run: Run, options: AttachOptions) -> Result<Self> {
        let interactive = options.input || options.window.is_some();
        if interactive || options.live_only {
            run.wait_ownership().await;
        }
        let active = !run.is_over();
        let recording = match (active, interactive) {
            (false, _) => Recording::Never,
            (true, false) => Recording::UnlessOwnedElsewhere,
            (true, true) => Recording::Always,
        };
        let session = Session::new(run, None, recording);
        let mut stage = Stage::first(options);
        if options.live_only && active && !session.run.entry.snapshot.borrow().tapped {
            let live = session.connect_live().await?;
            stage = live.map_or(stage, Stage::Engine);
        }
        // The size is set first: a pipe has one writer, which a failed call must not use up.
        if let Some(size) = options.window {
            session.resize(size).await?;
        }
        let mut input = None;
        if options.input {
            input = Some(session.connect_input().await?);
        } else {
            session.record_note(Action::Attach, "attached without input");
        }
        Ok(Self::at_stage(stage, session, options, input))
    }

    pub(crate) fn new(session: Arc<Session>, options: AttachOptions, input: Option<Input>) -> Self {
        Self::at_stage(Stage::first(options), session, options, input)
    }

    fn at_stage(
        stage: Stage,
        session: Arc<Session>,
        options: AttachOptions,
        input: Option<Input>,
    ) -> Self {
        let attachment = Self {
            viewer: Some(Viewer::new(session.run.clone(), stage)),
            step: Exclusive::new(None),
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

impl futures::Stream for Attachment {
    type Item = Result<Attached>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(item)));
            }
            if self.failed {
                return Poll::Ready(None);
            }
            let this = &mut *self;
            let step = this.step.get_mut();
            if step.is_none()
                && let Some(viewer) = this.viewer.take()
            {
                *step = Some(Box::pin(viewer.step()));
            }
            let Some(pending) = step else {
                return Poll::Ready(None);
            };
            let (mut viewer, more) = std::task::ready!(pending.as_mut().poll(cx));
            *step = None;
            self.ready.extend(viewer.take_items());
            match more {
                Ok(true) => self.viewer = Some(viewer),
                Ok(false) => {}
                Err(error) => {
                    self.failed = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}
