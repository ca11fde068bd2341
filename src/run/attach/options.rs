//! The settings of an attachment.

use crate::spec::WindowSize;

/// Settings for [`Run::attach_with`](crate::run::Run::attach_with).
///
/// The default is output only, from the first byte of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttachOptions {
    pub(super) live_only: bool,
    pub(crate) input: bool,
    pub(crate) window: Option<WindowSize>,
    pub(super) lossless: bool,
}

impl AttachOptions {
    /// Creates the default options: output only, from the first byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// Skips output from before the attachment.
    ///
    /// It also changes how the output of some runs with a terminal is read. The
    /// output of a run that was recovered, or that another process owns, arrives
    /// through a log, one line at a time. With this option and a terminal, it comes
    /// directly from the engine as it is printed, so prompts are visible. In that
    /// case lost output is reported as [`Lagged`](super::Attached::Lagged), even
    /// with [`lossless`](Self::lossless).
    pub fn live_only(mut self) -> Self {
        self.live_only = true;
        self
    }

    /// Connects standard input: see [`Attachment::input`](super::Attachment::input).
    ///
    /// [`Stdin::Pipe`](crate::spec::Stdin::Pipe) allows one writer for the life of
    /// the run, in the process that owns the run.
    /// [`Stdin::Open`](crate::spec::Stdin::Open) allows any number of writers, in
    /// any process.
    pub fn with_input(mut self) -> Self {
        self.input = true;
        self
    }

    /// Sets the size of the terminal.
    pub fn window(mut self, size: WindowSize) -> Self {
        self.window = Some(size);
        self
    }

    /// Delivers all output, as [`Attachment::lossless`] does.
    ///
    /// [`Attachment::lossless`]: super::Attachment::lossless
    pub fn lossless(mut self) -> Self {
        self.lossless = true;
        self
    }
}
