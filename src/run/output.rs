//! The output of a command in the container of a run.

use futures::StreamExt;

use crate::error::{Error, Result};
use crate::outcome::{Outcome, Stream};
use crate::run::attach::{AttachOptions, Attached};
use crate::run::{Exec, Run};
use crate::spec::ExecSpec;

/// The largest output that [`Run::output`] returns, over all streams: 16 MiB.
pub const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// The end and the output of a command: see [`Run::output`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// The outcome of the exec, with its exit code and its verdict.
    pub status: Outcome,
    /// The bytes of the standard output, or of the terminal.
    pub stdout: Vec<u8>,
    /// The bytes of the standard error.
    pub stderr: Vec<u8>,
}

impl Run {
    /// Runs a command in the container, and returns its exit code and its output.
    ///
    /// This is an [`exec`](Self::exec) without input, with a separate log. A command that fails is
    /// no error: see [`Output::status`]. The status also says if output may be missing. To bound the
    /// command, set a [`time_limit`](ExecSpec::time_limit).
    ///
    /// ```no_run
    /// # async fn run(run: moat::Run) -> moat::Result<()> {
    /// let output = run.output(["cat", "/etc/hostname"]).await?;
    /// assert_eq!(output.status.code(), Some(0));
    /// println!("{}", String::from_utf8_lossy(&output.stdout));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::OutputTooLong`] once the command has ended, if its output has more than
    ///   [`MAX_OUTPUT_BYTES`], 16 MiB, or if this call is slower than a sink without files. The log
    ///   has all of it.
    /// - Those of [`exec`](Self::exec), [`Exec::attach`] and [`Exec::wait`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, a command that was started keeps running, and its log is sealed.
    pub async fn output(&self, spec: impl Into<ExecSpec>) -> Result<Output> {
        let exec = self.exec(spec.into().interactive(false)).await?;
        self.read_output(&exec).await
    }

    async fn read_output(&self, exec: &Exec) -> Result<Output> {
        let mut attachment = exec.attach_with(AttachOptions::new().lossless()).await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut is_complete = true;
        while let Some(item) = attachment.next().await {
            match item? {
                Attached::Chunk(chunk)
                    if is_complete
                        && stdout.len() + stderr.len() + chunk.bytes.len() <= MAX_OUTPUT_BYTES =>
                {
                    let stream = match chunk.stream {
                        Stream::Stderr => &mut stderr,
                        _ => &mut stdout,
                    };
                    stream.extend_from_slice(&chunk.bytes);
                }
                _ => is_complete = false,
            }
        }
        let status = exec.wait().await?;
        match is_complete {
            true => Ok(Output {
                status,
                stdout,
                stderr,
            }),
            false => Err(Error::OutputTooLong {
                run: self.id().clone(),
                exec: exec.number(),
                limit: MAX_OUTPUT_BYTES,
                audit: exec.audit(),
            }),
        }
    }
}
