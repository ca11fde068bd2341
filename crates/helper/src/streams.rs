//! The pipes or the terminal of a process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use pty_process::Size;
use pty_process::blocking::{Command as PtyCommand, Pts};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Winsize, tcsetwinsize};

/// The streams that a process gets.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Layout {
    /// A terminal instead of pipes.
    pub(crate) tty: bool,
    /// An input. Without it, the input of a process without a terminal is empty.
    pub(crate) stdin: bool,
    /// The size of the terminal.
    pub(crate) window: Option<Window>,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) cols: u16,
    pub(crate) rows: u16,
}

impl Window {
    /// Reads `COLSxROWS`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (cols, rows) = text.split_once('x')?;
        Some(Self {
            cols: cols.parse().ok()?,
            rows: rows.parse().ok()?,
        })
    }
}

/// Sets the size of a terminal. The kernel sends SIGWINCH to its foreground processes.
pub(crate) fn resize(master: impl AsFd, window: Window) -> io::Result<()> {
    let size = Winsize {
        ws_col: window.cols,
        ws_row: window.rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(master, size)?)
}

/// The ends for the process.
pub(crate) enum Near {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal(Pts),
}

/// The ends for the reader of the output.
#[derive(Debug)]
pub(crate) enum Far {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// The master of a terminal.
    Terminal(OwnedFd),
}

/// Makes the streams. All file descriptors are close-on-exec.
pub(crate) fn open(layout: Layout) -> io::Result<(Near, Far)> {
    if layout.tty {
        let (master, slave) = pty_process::blocking::open().map_err(to_io)?;
        if let Some(window) = layout.window {
            master
                .resize(Size::new(window.rows, window.cols))
                .map_err(to_io)?;
        }
        return Ok((Near::Terminal(slave), Far::Terminal(master.into())));
    }
    let (near_stdin, far_stdin) = if layout.stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        (read, Some(write))
    } else {
        (empty_input()?, None)
    };
    let (far_stdout, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (far_stderr, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let near = Near::Pipes {
        stdin: near_stdin,
        stdout,
        stderr,
    };
    let far = Far::Pipes {
        stdin: far_stdin,
        stdout: far_stdout,
        stderr: far_stderr,
    };
    Ok((near, far))
}

/// Opens `/dev/null`, or a pipe that has ended where the image has no devices.
fn empty_input() -> io::Result<OwnedFd> {
    if let Ok(null) = File::open("/dev/null") {
        return Ok(null.into());
    }
    let (read, _write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok(read)
}

impl Near {
    /// Starts a process on these ends, in its own session if there is a terminal.
    ///
    /// # Errors
    ///
    /// The error of execve(2), or of the preparation. Another process may be started on the same
    /// ends.
    pub(crate) fn spawn(&self, mut command: Command) -> io::Result<Child> {
        match self {
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                command.stdin(Stdio::from(stdin.try_clone()?));
                command.stdout(Stdio::from(stdout.try_clone()?));
                command.stderr(Stdio::from(stderr.try_clone()?));
                command.spawn()
            }
            Self::Terminal(slave) => PtyCommand::from(command)
                .spawn_borrowed(slave)
                .map_err(to_io),
        }
    }

    /// Makes a user the owner of the terminal, if there is one.
    pub(crate) fn give_to(&self, uid: u32, gid: u32) {
        if let Self::Terminal(slave) = self {
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(uid),
                rustix::fs::Gid::from_raw(gid),
            );
            let _ = rustix::fs::fchown(slave, Some(uid), Some(gid));
        }
    }
}

fn to_io(error: pty_process::Error) -> io::Error {
    match error {
        pty_process::Error::Io(error) => error,
        pty_process::Error::Rustix(error) => error.into(),
    }
}

/// Waits until one of the file descriptors is readable or closed, or until the timeout. Returns
/// which ones are. An interrupted call returns none.
pub(crate) fn wait_readable(
    fds: &[std::os::fd::BorrowedFd<'_>],
    timeout_ms: Option<u64>,
) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    let timeout = timeout_ms.map(|ms| Timespec {
        tv_sec: (ms / 1000) as i64,
        tv_nsec: (ms % 1000 * 1_000_000) as _,
    });
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) => Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
        Err(rustix::io::Errno::INTR) => Ok(vec![false; fds.len()]),
        Err(error) => Err(error.into()),
    }
}

/// Reads from an output. Returns 0 at its end, none if there is nothing to read now.
pub(crate) fn read_output(fd: impl AsFd, buffer: &mut [u8]) -> Option<usize> {
    use rustix::io::Errno;
    match rustix::io::read(fd, buffer) {
        Ok(read) => Some(read),
        Err(Errno::AGAIN | Errno::INTR) => None,
        // EIO: the last process has closed the terminal.
        Err(_) => Some(0),
    }
}

/// Sends a signal. Returns false if it cannot be sent.
///
/// Real-time signals cannot be sent: rustix has no safe constructor for them.
pub(crate) fn kill(pid: Pid, signal: i32) -> bool {
    Signal::from_named_raw(signal).is_some_and(|signal| kill_process(pid, signal).is_ok())
}
