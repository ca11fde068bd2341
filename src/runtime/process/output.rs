//! The output of a child, and the tap that reads it.

use std::ffi::OsString;
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::container::Lifecycle;
use crate::error::RuntimeError;
use crate::outcome::Stream;
use crate::runtime::Chunk;

/// Maximum size of a chunk.
const CHUNK_BYTES: usize = 64 << 10;
/// Maximum time that the output may stay open after the end of the process.
///
/// At the end, every process that could write is killed, except those outside the group.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum capacity of a pipe. Bytes beyond it were written after the deadline.
const MAX_PIPE_BYTES: usize = 1 << 20;
/// Stack size of a thread that only reads.
const STACK_BYTES: usize = 128 << 10;

/// The ends of the output that a child writes.
pub(super) enum ChildEnds {
    Pipes(PipeWriter, PipeWriter),
    Terminal(pty_process::blocking::Pts, Terminal),
}

impl ChildEnds {
    pub(super) fn terminal(&self) -> Option<&Terminal> {
        match self {
            Self::Pipes(..) => None,
            Self::Terminal(_, terminal) => Some(terminal),
        }
    }
}

/// The terminal of a child, as its guardian identifies it.
pub(super) struct Terminal {
    /// The path of the child's end.
    pub(super) path: OsString,
    /// The terminal's device number, as `/proc/PID/stat` shows it.
    pub(super) number: u32,
    /// The other end.
    pub(super) pty: OwnedFd,
}

impl Terminal {
    fn new(pty: &OwnedFd, pts: &pty_process::blocking::Pts) -> io::Result<Self> {
        let device = rustix::fs::fstat(pts)?.st_rdev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let path = rustix::pty::ptsname(pty, Vec::new())?;
        Ok(Self {
            path: OsString::from_vec(path.into_bytes()),
            number: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
            pty: pty.try_clone()?,
        })
    }
}

/// The ends of the output that this process reads.
pub(super) type Sources = Vec<(Stream, OwnedFd)>;

/// Opens the pipes or the terminal of a child.
///
/// # Errors
///
/// Fails if this process cannot open more files or terminals.
pub(super) fn open(tty: bool) -> io::Result<(ChildEnds, Sources)> {
    if tty {
        let (pty, pts) = pty_process::blocking::open().map_err(io::Error::other)?;
        pty.resize(pty_process::Size::new(24, 80))
            .map_err(io::Error::other)?;
        let pty = OwnedFd::from(pty);
        let terminal = Terminal::new(&pty, &pts)?;
        return Ok((ChildEnds::Terminal(pts, terminal), vec![(Stream::Tty, pty)]));
    }
    let (stdout, to_stdout) = io::pipe()?;
    let (stderr, to_stderr) = io::pipe()?;
    let sources = vec![
        (Stream::Stdout, stdout.into()),
        (Stream::Stderr, stderr.into()),
    ];
    Ok((ChildEnds::Pipes(to_stdout, to_stderr), sources))
}

/// Returns the output of a container.
///
/// The stream ends once every write end is closed and the container has ended. A process may
/// close its output long before its end.
pub(super) fn tap(
    sources: Sources,
    life: watch::Receiver<Lifecycle>,
) -> io::Result<impl futures::Stream<Item = Result<Chunk, RuntimeError>> + Send> {
    let mut open = Vec::new();
    for (stream, source) in sources {
        rustix::io::ioctl_fionbio(&source, true)?;
        #[allow(
            deprecated,
            reason = "sound for an OwnedFd, which owns its descriptor; the replacement is unsafe"
        )]
        open.push((stream, AsyncFd::new(source)?));
    }
    let tap = Tap {
        open,
        life,
        scratch: vec![0; CHUNK_BYTES],
        deadline: None,
        late_bytes: 0,
    };
    Ok(stream::unfold(tap, |mut tap| async move {
        let chunk = tap.next().await?;
        Some((chunk, tap))
    }))
}

struct Tap {
    /// The sources that have not ended, in the order in which they are read next.
    open: Vec<(Stream, AsyncFd<OwnedFd>)>,
    life: watch::Receiver<Lifecycle>,
    scratch: Vec<u8>,
    /// The time at which open sources are abandoned. `None` while the container runs.
    deadline: Option<Instant>,
    /// The number of bytes read after the deadline.
    late_bytes: usize,
}

impl Tap {
    async fn next(&mut self) -> Option<Result<Chunk, RuntimeError>> {
        loop {
            if self.open.is_empty() {
                let _ = self.life.wait_for(Lifecycle::is_over).await;
                return None;
            }
            if self.is_overdue() {
                return self.read_remainder();
            }
            let deadline = self.deadline;
            let mut life = self.life.clone();
            tokio::select! {
                biased;
                chunk = poll_fn(|cx| self.poll_read(cx)) => match chunk {
                    Some(chunk) => return Some(Ok(chunk)),
                    None => continue,
                },
                _ = life.wait_for(Lifecycle::is_over), if deadline.is_none() => {
                    self.deadline = Some(Instant::now() + LINGER_TIMEOUT);
                }
                () = sleep_until_some(deadline) => {}
            }
        }
    }

    fn is_overdue(&self) -> bool {
        self.deadline.is_some_and(|at| at <= Instant::now())
    }

    /// Reads the bytes that the sources hold at the deadline, and then ends.
    ///
    /// No more than a pipe's capacity can have been there at the deadline.
    fn read_remainder(&mut self) -> Option<Result<Chunk, RuntimeError>> {
        while let Some((stream, source)) = self.open.first() {
            match read_confirmed(|| rustix::io::read(source, self.scratch.as_mut_slice())) {
                Ok(read @ 1..) if self.late_bytes < MAX_PIPE_BYTES => {
                    self.late_bytes += read;
                    let chunk = self.chunk(*stream, read);
                    return Some(Ok(chunk));
                }
                Ok(0) | Err(Errno::IO) => {
                    self.open.remove(0);
                }
                Err(Errno::INTR) => {}
                _ => return Some(Err(self.abandon())),
            }
        }
        None
    }

    /// Abandons the sources that are still open.
    fn abandon(&mut self) -> RuntimeError {
        self.open.clear();
        RuntimeError::Broken {
            operation: "read the output of the process",
            reason: "a process outside the process group holds the output open".into(),
        }
    }

    fn chunk(&self, stream: Stream, read: usize) -> Chunk {
        Chunk::new(stream, Bytes::copy_from_slice(&self.scratch[..read]))
    }

    /// Reads a chunk from a source that is ready. Yields `None` if a source has ended.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Chunk>> {
        for at in 0..self.open.len() {
            match self.poll_source(at, cx) {
                Poll::Pending => {}
                Poll::Ready(0) => {
                    self.open.remove(at);
                    return Poll::Ready(None);
                }
                Poll::Ready(read) => {
                    let chunk = self.chunk(self.open[at].0, read);
                    // The other source is read next.
                    self.open.rotate_left(at + 1);
                    return Poll::Ready(Some(chunk));
                }
            }
        }
        Poll::Pending
    }

    /// Reads a source into the scratch buffer. Yields 0 if the source has ended.
    fn poll_source(&mut self, at: usize, cx: &mut Context<'_>) -> Poll<usize> {
        let (_, source) = &self.open[at];
        let scratch = self.scratch.as_mut_slice();
        loop {
            let Ok(mut ready) = ready!(source.poll_read_ready(cx)) else {
                return Poll::Ready(0);
            };
            let read = ready
                .try_io(|source| Ok(read_confirmed(|| rustix::io::read(source, &mut *scratch))?));
            match read {
                Err(_would_block) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // Once the child's end of a terminal is closed, a read fails.
                Ok(read) => return Poll::Ready(read.unwrap_or(0)),
            }
        }
    }
}

/// Reads, and reads once more if a terminal reports its end.
///
/// Linux first looks for bytes, and then checks whether the other end is closed. If bytes are
/// written and the end is closed between the two steps, the read fails with `EIO` although there
/// are bytes. This was so for 2 of 400,000 terminals.
fn read_confirmed(
    mut read: impl FnMut() -> rustix::io::Result<usize>,
) -> rustix::io::Result<usize> {
    match read() {
        Err(Errno::IO) => read(),
        answer => answer,
    }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// An early drop of the tap must neither end the process with SIGPIPE nor block it.
impl Drop for Tap {
    fn drop(&mut self) {
        if !self.life.borrow().is_over() {
            let sources = self.open.drain(..);
            drain(sources.map(|(_, source)| source.into_inner()).collect());
        }
    }
}

/// Reads and discards the sources until they end.
pub(super) fn drain(sources: Vec<OwnedFd>) {
    for source in sources {
        // If no thread can be started, the process gets SIGPIPE.
        let _ = std::thread::Builder::new()
            .name("moat-drain".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let _ = rustix::io::ioctl_fionbio(&source, false);
                let _ = io::copy(&mut File::from(source), &mut io::sink());
            });
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::read_confirmed;

    fn read_answers(answers: [Result<usize, Errno>; 2]) -> Result<usize, Errno> {
        let mut answers = answers.into_iter();
        read_confirmed(|| answers.next().unwrap())
    }

    #[test]
    fn a_terminal_may_deliver_bytes_after_its_first_end() {
        assert_eq!(read_answers([Err(Errno::IO), Ok(5)]), Ok(5));
        assert_eq!(
            read_answers([Err(Errno::IO), Err(Errno::IO)]),
            Err(Errno::IO)
        );
        assert_eq!(read_answers([Err(Errno::AGAIN), Ok(5)]), Err(Errno::AGAIN));
        assert_eq!(read_answers([Ok(0), Ok(5)]), Ok(0));
    }
}
