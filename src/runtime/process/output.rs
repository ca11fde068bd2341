//! A child's output: the ends that it gets, and the tap on the others.

use std::ffi::OsString;
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream as OfChunks};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::container::Life;
use crate::error::RuntimeError;
use crate::outcome::Stream;
use crate::runtime::Chunk;

/// The most bytes of a chunk.
const CHUNK: usize = 64 << 10;
/// How long after the end of the run its output may stay open. All that could write to it was
/// killed then, but for what has left the group.
const LINGER: Duration = Duration::from_secs(2);
/// No pipe holds more: what comes after that was written later.
const MOST_HELD: usize = 1 << 20;
/// What a thread needs that only reads.
const STACK: usize = 128 << 10;

/// The ends that a child gets.
pub(super) enum Ends {
    Pipes(PipeWriter, PipeWriter),
    Terminal(pty_process::blocking::Pts, Terminal),
}

impl Ends {
    pub(super) fn terminal(&self) -> Option<&Terminal> {
        match self {
            Self::Pipes(..) => None,
            Self::Terminal(_, terminal) => Some(terminal),
        }
    }
}

/// A terminal, as its guardian knows it.
pub(super) struct Terminal {
    /// The path of the child's end.
    pub(super) path: OsString,
    /// Its number, as `/proc` has it.
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

/// The ends that are read.
pub(super) type Sources = Vec<(Stream, OwnedFd)>;

/// Makes both. `Err`: this process may not have more of them.
pub(super) fn open(tty: bool) -> io::Result<(Ends, Sources)> {
    if tty {
        let (pty, pts) = pty_process::blocking::open().map_err(io::Error::other)?;
        pty.resize(pty_process::Size::new(24, 80))
            .map_err(io::Error::other)?;
        let pty = OwnedFd::from(pty);
        let terminal = Terminal::new(&pty, &pts)?;
        return Ok((Ends::Terminal(pts, terminal), vec![(Stream::Tty, pty)]));
    }
    let (stdout, to_stdout) = io::pipe()?;
    let (stderr, to_stderr) = io::pipe()?;
    let sources = vec![
        (Stream::Stdout, stdout.into()),
        (Stream::Stderr, stderr.into()),
    ];
    Ok((Ends::Pipes(to_stdout, to_stderr), sources))
}

/// The output of a container. It ends when nobody can write any more, and the container has ended:
/// a process may close its output long before.
pub(super) fn tap(
    sources: Sources,
    life: watch::Receiver<Life>,
) -> io::Result<impl OfChunks<Item = Result<Chunk, RuntimeError>> + Send> {
    let mut open = Vec::new();
    for (stream, source) in sources {
        rustix::io::ioctl_fionbio(&source, true)?;
        #[allow(
            deprecated,
            reason = "sound for an OwnedFd, whose descriptor is its own; what replaces it is unsafe"
        )]
        open.push((stream, AsyncFd::new(source)?));
    }
    let tap = Tap {
        open,
        life,
        scratch: vec![0; CHUNK],
        given_up: None,
        late: 0,
    };
    Ok(stream::unfold(tap, |mut tap| async move {
        let chunk = tap.next().await?;
        Some((chunk, tap))
    }))
}

struct Tap {
    /// Those that have not ended; the first one is read first.
    open: Vec<(Stream, AsyncFd<OwnedFd>)>,
    life: watch::Receiver<Life>,
    scratch: Vec<u8>,
    /// When to give the rest up; `None` while the container runs.
    given_up: Option<Instant>,
    /// Bytes that came after that.
    late: usize,
}

impl Tap {
    async fn next(&mut self) -> Option<Result<Chunk, RuntimeError>> {
        loop {
            if self.open.is_empty() {
                let _ = self.life.wait_for(Life::is_over).await;
                return None;
            }
            if self.is_late() {
                return self.rest();
            }
            let given_up = self.given_up;
            let mut life = self.life.clone();
            tokio::select! {
                biased;
                chunk = poll_fn(|cx| self.poll_read(cx)) => match chunk {
                    Some(chunk) => return Some(Ok(chunk)),
                    None => continue,
                },
                _ = life.wait_for(Life::is_over), if given_up.is_none() => {
                    self.given_up = Some(Instant::now() + LINGER);
                }
                () = until(given_up) => {}
            }
        }
    }

    fn is_late(&self) -> bool {
        self.given_up.is_some_and(|at| at <= Instant::now())
    }

    /// What is there after the time is up, which is no more than was there when it was; then the
    /// end.
    fn rest(&mut self) -> Option<Result<Chunk, RuntimeError>> {
        while let Some((stream, source)) = self.open.first() {
            match certain(|| rustix::io::read(source, self.scratch.as_mut_slice())) {
                Ok(read @ 1..) if self.late < MOST_HELD => {
                    self.late += read;
                    let chunk = self.chunk(*stream, read);
                    return Some(Ok(chunk));
                }
                Ok(0) | Err(Errno::IO) => {
                    self.open.remove(0);
                }
                Err(Errno::INTR) => {}
                _ => {
                    self.open.clear();
                    return Some(Err(RuntimeError::Broken {
                        operation: "read its output",
                        reason: "a process that has left its group holds it open".into(),
                    }));
                }
            }
        }
        None
    }

    fn chunk(&self, stream: Stream, read: usize) -> Chunk {
        Chunk {
            stream,
            bytes: Bytes::copy_from_slice(&self.scratch[..read]),
        }
    }

    /// A chunk of the one that has something; `None`: one of them has ended.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Chunk>> {
        for at in 0..self.open.len() {
            let (stream, source) = &self.open[at];
            let stream = *stream;
            loop {
                let mut ready = match source.poll_read_ready(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(ready)) => ready,
                    Poll::Ready(Err(_)) => {
                        self.open.remove(at);
                        return Poll::Ready(None);
                    }
                };
                let scratch = self.scratch.as_mut_slice();
                let read =
                    ready.try_io(|source| Ok(certain(|| rustix::io::read(source, &mut *scratch))?));
                match read {
                    Err(_would_block) => continue,
                    Ok(Ok(read @ 1..)) => {
                        let chunk = self.chunk(stream, read);
                        // The other one comes next.
                        self.open.rotate_left(at + 1);
                        return Poll::Ready(Some(chunk));
                    }
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                    // A terminal that nobody has open any more answers with an error.
                    Ok(Ok(0) | Err(_)) => {
                        self.open.remove(at);
                        return Poll::Ready(None);
                    }
                }
            }
        }
        Poll::Pending
    }
}

/// Reads, and once more before the end of a terminal is believed. Linux looks for bytes first, and
/// then whether the other end is closed: what is written and closed between the two is there, and
/// the answer is `EIO` all the same.
fn certain(mut read: impl FnMut() -> rustix::io::Result<usize>) -> rustix::io::Result<usize> {
    match read() {
        Err(Errno::IO) => read(),
        answer => answer,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A tap that is dropped early must neither end the process with SIGPIPE nor block it.
impl Drop for Tap {
    fn drop(&mut self) {
        if !self.life.borrow().is_over() {
            let sources = self.open.drain(..);
            drain(sources.map(|(_, source)| source.into_inner()).collect());
        }
    }
}

/// Reads and throws away, until the end.
pub(super) fn drain(sources: Vec<OwnedFd>) {
    for source in sources {
        // Where no thread can be had, the process sees a broken pipe.
        let _ = std::thread::Builder::new()
            .name("moat-drain".into())
            .stack_size(STACK)
            .spawn(move || {
                let _ = rustix::io::ioctl_fionbio(&source, false);
                let _ = io::copy(&mut File::from(source), &mut io::sink());
            });
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::certain;

    fn answered(answers: [Result<usize, Errno>; 2]) -> Result<usize, Errno> {
        let mut answers = answers.into_iter();
        certain(|| answers.next().unwrap())
    }

    #[test]
    fn the_last_bytes_of_a_terminal_may_come_behind_its_first_end() {
        assert_eq!(answered([Err(Errno::IO), Ok(5)]), Ok(5));
        assert_eq!(answered([Err(Errno::IO), Err(Errno::IO)]), Err(Errno::IO));
        assert_eq!(answered([Err(Errno::AGAIN), Ok(5)]), Err(Errno::AGAIN));
        assert_eq!(answered([Ok(0), Ok(5)]), Ok(0));
    }
}
