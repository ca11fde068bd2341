//! A connection through `ssh`, as Docker's CLI opens it: `ssh HOST docker system dial-stdio`.
//!
//! `dial-stdio` connects its stdin and stdout to the engine's socket. Each connection has a process
//! of `ssh`, whose pipes are the connection. A task waits for the process, so that none is left.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt;
use futures::future::Shared;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep, timeout};

use super::address::{decoded, split_port};
use crate::runtime::docker::errors::Unreachable;

/// The program, and the arguments before those of the connection.
pub(super) const SSH: &[&str] = &["ssh"];
/// The options of each connection.
///
/// `BatchMode`: ssh would ask for a passphrase or about a host key on the terminal of this process,
/// which a library does not own, and in CI it would wait for an answer forever.
const OPTIONS: &[&str] = &["-o", "ConnectTimeout=30", "-o", "BatchMode=yes", "-T"];
/// Characters that `ssh` refuses in a user, because a `ProxyCommand` passes them to a shell.
const SHELL_CHARACTERS: &str = "'`\"$;&<>|(){}";
/// The part of ssh's stderr that an error shows: its last bytes.
const MAX_STDERR_BYTES: usize = 2 << 10;
/// The time that ssh has to end a closed connection in an orderly way, before it is killed.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// The time for a closed connection with input, which ssh may still have to deliver.
const INPUT_GRACE: Duration = Duration::from_secs(30);
/// The timeout for the exit of a process that has closed its stdout.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout for the end of the stderr of a process that has exited.
///
/// A connection that `ControlPersist` keeps in the background can hold the pipe open.
const STDERR_TIMEOUT: Duration = Duration::from_millis(200);

/// An address after `ssh://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SshAddress {
    user: Option<String>,
    pub(super) host: String,
    port: Option<u16>,
    /// The path of the engine's socket. `None`: the engine that `docker` uses on the host.
    socket: Option<String>,
}

impl SshAddress {
    /// Parses `[user@]host[:port][/path]`.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        if rest.contains(['?', '#']) {
            return Err("a query or a fragment in the address is not supported".into());
        }
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (user, authority) = match authority.rsplit_once('@') {
            Some((user, authority)) => (Some(parse_user(user)?), authority),
            None => (None, authority),
        };
        let (host, port) = match authority {
            "" => return Err("the address has no host: write ssh://[user@]host[:port]".into()),
            _ if authority.starts_with('-') => return Err("the host begins with \"-\"".into()),
            _ => split_port(authority)
                // Not quoted: it can be a part of a password with a slash.
                .ok_or("the address has no valid host and port")?,
        };
        let socket = decoded(path).filter(|path| !path.contains(char::is_control));
        let socket = socket.ok_or("the path in the address is not the path of a socket")?;
        Ok(Self {
            user,
            host: host.to_owned(),
            port,
            // As in Docker's CLI, a path of slashes is no path.
            socket: Some(socket).filter(|path| !path.trim_matches('/').is_empty()),
        })
    }

    /// Returns the arguments that select the host.
    fn host_arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(user) = &self.user {
            arguments.extend(["-l".to_owned(), user.clone()]);
        }
        if let Some(port) = self.port {
            arguments.extend(["-p".to_owned(), port.to_string()]);
        }
        arguments.extend(["--".to_owned(), self.host.clone()]);
        arguments
    }

    /// Returns the arguments of `ssh`.
    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<_> = OPTIONS.iter().map(|&option| option.to_owned()).collect();
        arguments.extend(self.host_arguments());
        // A shell on the host parses the command.
        arguments.push(match &self.socket {
            Some(path) => {
                let host = quoted(&format!("--host=unix://{path}"));
                format!("docker {host} system dial-stdio")
            }
            None => "docker system dial-stdio".to_owned(),
        });
        arguments
    }

    /// Returns a command with which a user can find out why there is no connection.
    fn check_command(&self) -> String {
        let host = self.host_arguments().join(" ");
        format!("ssh -o BatchMode=yes {host} docker version")
    }
}

/// Parses the part of an address before `@`.
fn parse_user(user: &str) -> Result<String, String> {
    if user.contains(':') {
        return Err(
            "a password in the address is not supported: use a key, or an agent of ssh".into(),
        );
    }
    let invalid = |c: char| c.is_control() || c.is_whitespace() || SHELL_CHARACTERS.contains(c);
    decoded(user)
        .filter(|user| !user.is_empty() && !user.starts_with('-') && !user.contains(invalid))
        .ok_or_else(|| "the user in the address is not valid".into())
}

/// Quotes an argument for a POSIX shell, if it needs quotes.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    match argument.chars().all(plain) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

impl fmt::Display for SshAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(self.socket.as_deref().unwrap_or_default())
    }
}

/// A connection to an engine: a process of `ssh`.
pub(super) struct SshConnection {
    /// `None` after a shutdown.
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    /// Each direction waits for the exit with its own waker.
    read_end: ExitWait,
    write_end: ExitWait,
    has_read: bool,
    /// Bytes that no response acknowledges were written, or the end of the input was.
    has_input: bool,
    check_command: String,
    /// Sends the time that the process has to end, from `drop`.
    close: Option<oneshot::Sender<Duration>>,
}

/// The end of a process of `ssh`.
#[derive(Debug, Clone)]
struct Exit {
    /// `None` if it is not known.
    status: Option<ExitStatus>,
    stderr: String,
}

impl SshConnection {
    /// Starts `program`, a program with its first arguments, for a connection to `address`.
    ///
    /// The first read reports an error if ssh does not reach the engine.
    pub(super) fn open(program: &[String], address: &SshAddress) -> Result<Self, Unreachable> {
        let (name, first) = program.split_first().expect("a program has a name");
        let mut command = Command::new(name);
        command
            .args(first)
            .args(address.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // If the runtime ends before the keeper does.
            .kill_on_drop(true);
        leave_terminal(&mut command);
        let mut child = command.spawn().map_err(|error| {
            Unreachable(match error.kind() {
                io::ErrorKind::NotFound => format!("there is no program {name:?} on the PATH"),
                _ => format!("cannot start {name:?}: {error}"),
            })
        })?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            unreachable!("the pipes were requested above");
        };
        let (close, closed) = oneshot::channel();
        let (exit, exited) = oneshot::channel();
        #[expect(
            clippy::disallowed_methods,
            reason = "ends with the process, and the drop of the connection ends the process"
        )]
        tokio::spawn(keep(child, stderr, closed, exit));
        let exited = exited.shared();
        Ok(Self {
            stdin: Some(stdin),
            stdout,
            read_end: ExitWait::new(exited.clone()),
            write_end: ExitWait::new(exited),
            has_read: false,
            has_input: false,
            check_command: address.check_command(),
            close: Some(close),
        })
    }

    /// Returns the error of a connection that has ended.
    fn error(&self, exit: &Exit) -> io::Error {
        let status = match exit.status {
            Some(status) => format!("ssh ended with {status}"),
            None => "ssh closed the connection, and its exit status is not known".into(),
        };
        let cause = match exit.stderr.as_str() {
            "" => status,
            stderr if self.has_read => format!("{status}: {stderr}"),
            stderr => stderr.to_owned(),
        };
        if self.has_read {
            return io::Error::new(io::ErrorKind::ConnectionReset, cause);
        }
        let check = &self.check_command;
        let reason = format!("{cause}: does `{check}` succeed, without a question?");
        io::Error::other(Unreachable(reason))
    }

    /// Returns the error of a failed write, which the exit of ssh may explain.
    fn poll_write_error(
        &mut self,
        cx: &mut Context<'_>,
        error: io::Error,
    ) -> Poll<io::Result<usize>> {
        if self.has_read {
            return Poll::Ready(Err(error));
        }
        let exit = ready!(self.write_end.poll(cx));
        Poll::Ready(Err(self.error(&exit)))
    }

    /// Writes with `write`.
    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut ChildStdin>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Some(stdin) = &mut self.stdin else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        match ready!(write(Pin::new(stdin), cx)) {
            Ok(count) => {
                // Bytes after the first response are input of a container or an exec.
                self.has_input |= self.has_read;
                Poll::Ready(Ok(count))
            }
            Err(error) => self.poll_write_error(cx, error),
        }
    }
}

impl Drop for SshConnection {
    fn drop(&mut self) {
        // As with a socket, written bytes still arrive. The drop of the pipes ends the input.
        let grace = match self.has_input {
            true => INPUT_GRACE,
            false => CLOSE_GRACE,
        };
        if let Some(close) = self.close.take() {
            let _ = close.send(grace);
        }
    }
}

impl AsyncRead for SshConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stdout).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            this.has_read = true;
            return Poll::Ready(Ok(()));
        }
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // Only the exit status tells the end of the stream from a connection that broke.
        let exit = ready!(this.read_end.poll(cx));
        let is_clean = this.has_read && exit.status.is_some_and(|status| status.success());
        Poll::Ready(match is_clean {
            true => Ok(()),
            false => Err(this.error(&exit)),
        })
    }
}

impl AsyncWrite for SshConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stdin, cx| stdin.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stdin, cx| stdin.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stdin
            .as_ref()
            .is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stdin {
            Some(stdin) => Pin::new(stdin).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Closes ssh's stdin. `dial-stdio` then ends the input of its connection, and reads on.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(stdin) = &mut self.stdin {
            let flushed = ready!(Pin::new(stdin).poll_flush(cx));
            self.has_input = true;
            self.stdin = None;
            flushed?;
        }
        Poll::Ready(Ok(()))
    }
}

/// A wait for the exit of a process that has closed a pipe.
struct ExitWait {
    exited: Shared<oneshot::Receiver<Exit>>,
    timeout: Option<Pin<Box<Sleep>>>,
    exit: Option<Exit>,
}

impl ExitWait {
    fn new(exited: Shared<oneshot::Receiver<Exit>>) -> Self {
        Self {
            exited,
            timeout: None,
            exit: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Exit> {
        if let Some(exit) = &self.exit {
            return Poll::Ready(exit.clone());
        }
        let unknown = Exit {
            status: None,
            stderr: String::new(),
        };
        let timeout = self
            .timeout
            .get_or_insert_with(|| Box::pin(sleep(EXIT_TIMEOUT)));
        let exit = match self.exited.poll_unpin(cx) {
            Poll::Ready(exit) => exit.unwrap_or(unknown),
            Poll::Pending => {
                ready!(timeout.poll_unpin(cx));
                unknown
            }
        };
        self.exit = Some(exit.clone());
        Poll::Ready(exit)
    }
}

/// Reads the stderr of a process and waits for its exit. The drop of the connection ends the
/// process after the grace period that `closed` receives.
async fn keep(
    mut child: Child,
    mut stderr: ChildStderr,
    closed: oneshot::Receiver<Duration>,
    exit: oneshot::Sender<Exit>,
) {
    let mut tail = Tail::default();
    let grace = tokio::select! {
        status = wait(&mut child, &mut stderr, &mut tail) => {
            let _ = exit.send(Exit { status, stderr: tail.text() });
            return;
        }
        grace = closed => grace.unwrap_or_default(),
    };
    let ended = timeout(grace, wait(&mut child, &mut stderr, &mut tail));
    if ended.await.is_err() {
        // SIGKILL, and a wait for the process, which leaves no zombie.
        let _ = child.kill().await;
    }
}

/// Waits for the exit of a process, and reads its stderr meanwhile so that it never blocks.
///
/// # Cancel safety
///
/// `tail` has the stderr that was read, and the wait can be repeated.
async fn wait(child: &mut Child, stderr: &mut ChildStderr, tail: &mut Tail) -> Option<ExitStatus> {
    let status = tokio::select! {
        status = child.wait() => status,
        () = tail.read(stderr) => child.wait().await,
    };
    let _ = timeout(STDERR_TIMEOUT, tail.read(stderr)).await;
    status.ok()
}

/// The last bytes of a process's stderr.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    /// Reads until the end of the pipe, or an error.
    async fn read(&mut self, stderr: &mut ChildStderr) {
        let mut buffer = [0; 1 << 10];
        while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
            self.0.extend_from_slice(&buffer[..count]);
            let excess = self.0.len().saturating_sub(MAX_STDERR_BYTES);
            self.0.drain(..excess);
        }
    }

    /// Returns the text on one line.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join("; ")
    }
}

/// Puts the process into a separate process group.
///
/// Ctrl-C signals the foreground process group. It must not cut the connection of a capture, which
/// may have to record the end of its run.
fn leave_terminal(command: &mut Command) {
    #[cfg(unix)]
    command.process_group(0);
    #[cfg(windows)]
    {
        const CREATE_NO_WINDOW: u32 = 0x0800_0000;
        command.creation_flags(CREATE_NO_WINDOW);
    }
}

#[cfg(test)]
mod tests;
