//! Attaches the terminal of this process to a run: raw mode, resize, always restored.
//!
//! ```no_run
//! use moat::run::AttachOptions;
//! use moat::spec::Stdin;
//! use moat::terminal::{SessionEnd, Terminal};
//! use moat::{Docker, Manager, RunSpec, ShutdownMode};
//!
//! # #[tokio::main]
//! # async fn main() -> moat::Result<()> {
//! let manager = Manager::open("runs", Docker::connect().await?).await?;
//! let terminal = Terminal::open()?;
//! let spec = RunSpec::new("busybox").cmd(["sh"]).tty(true).stdin(Stdin::Open);
//! let options = AttachOptions::new().with_input().window(terminal.size()?);
//! let (run, attachment) = manager.start_attached(spec, options).await?;
//!
//! match terminal.attach(attachment).await? {
//!     SessionEnd::Ended(outcome) => println!("{outcome}"),
//!     SessionEnd::Detached => println!("{} is still running", run.id()),
//!     SessionEnd::Signal(number) => println!("signal {number}; {} is still running", run.id()),
//!     _ => {}
//! }
//! manager.shutdown(ShutdownMode::Leave).await;
//! # Ok(())
//! # }
//! ```

mod key_events;
mod keys;
mod modes;

use std::fs::{File, OpenOptions};
use std::future::{pending, poll_fn};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use crossterm::terminal;
use futures::StreamExt;
use rustix::process;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use self::keys::KeyMatcher;
pub use self::keys::{DetachKeys, ParseKeysError};
use self::modes::ModeTracker;
use crate::error::{Error, Result};
use crate::outcome::Outcome;
use crate::run::attach::{AttachHandle, Attached, Attachment, Input};
use crate::spec::WindowSize;

/// The controlling terminal of a process, independent of its standard streams.
const PATH: &str = "/dev/tty";
/// The maximum size of the typed input that waits for the container, in bytes.
const MAX_PENDING_BYTES: usize = 1 << 20;
/// The time without accepted input after which typed input past the limit is dropped.
///
/// The terminal is still read, because the detach keys may come next.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// The timeout for writing the input that was typed before the detach keys.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(100);
/// The maximum number of attempts to restore a terminal that accepts no output.
const MAX_RESTORE_ATTEMPTS: u32 = 100;
/// The pause between attempts to restore a terminal.
const RESTORE_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// The signals that end a session, and by default the process.
const END_SIGNALS: [SignalKind; 4] = [
    SignalKind::terminate(),
    SignalKind::hangup(),
    SignalKind::interrupt(),
    SignalKind::quit(),
];

/// The terminal of this process.
///
/// [`attach`](Self::attach) connects it to a run.
#[derive(Debug)]
pub struct Terminal {
    keys: DetachKeys,
}

/// The reason that a session ended. The terminal is restored in all cases.
#[derive(Debug)]
#[non_exhaustive]
pub enum SessionEnd {
    /// The run has ended.
    Ended(Box<Outcome>),
    /// The detach keys were typed, or the terminal is gone. The run continues.
    Detached,
    /// The process received SIGTERM, SIGHUP, SIGINT or SIGQUIT: this number.
    ///
    /// The run continues. The signal did not terminate the process, so the caller must
    /// handle it.
    Signal(i32),
}

impl Terminal {
    /// Opens the terminal of this process.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the process has no terminal, or if standard input or output is
    /// not a terminal.
    pub fn open() -> Result<Self> {
        for (name, is_terminal) in [
            ("stdin", io::stdin().is_terminal()),
            ("stdout", io::stdout().is_terminal()),
        ] {
            if !is_terminal {
                let reason = io::Error::new(io::ErrorKind::Unsupported, "not a terminal");
                return Err(Error::storage("use as a terminal", name, reason));
            }
        }
        open_device()?;
        Ok(Self {
            keys: DetachKeys::default(),
        })
    }

    /// Sets the keys that detach. Default: `ctrl-p,ctrl-q`.
    ///
    /// A partial match is held back until the next key.
    pub fn detach_keys(mut self, keys: DetachKeys) -> Self {
        self.keys = keys;
        self
    }

    /// Returns the current size of the terminal.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the terminal does not report its size.
    pub fn size(&self) -> Result<WindowSize> {
        let (columns, rows) = terminal::size().map_err(|error| failed("measure", error))?;
        Ok(WindowSize::new(columns, rows))
    }

    /// Attaches the terminal to a run that has one, until the session ends.
    ///
    /// Typed input is passed to the run, output to the screen, and size changes to the run.
    ///
    /// # Raw mode
    ///
    /// During the session the terminal is in raw mode, so `ctrl-c` and `ctrl-z` reach the
    /// container. The terminal is restored when this future returns, is dropped or panics,
    /// and when other code on its thread panics. Modes that a program has set and not
    /// reset are restored too: the alternate screen, the mouse, bracketed paste, a hidden
    /// cursor, a scroll region, colors.
    ///
    /// # Signals
    ///
    /// From the first call on, the signals in [`SessionEnd::Signal`] and SIGTSTP no longer
    /// have their default effect, so the process must handle them.
    ///
    /// On an external SIGTSTP, the terminal is restored and the process is stopped. When the
    /// process continues after any stop, the terminal is raw again and its size is set on
    /// the run. A program that used the alternate screen then draws on the main screen.
    ///
    /// # Input
    ///
    /// The detach keys work even if the run does not read its input. Typed input waits for a
    /// slow program. If the program has read nothing for 1 s, input past 1 MiB is dropped.
    ///
    /// # Size
    ///
    /// If the attachment was not opened with the size of the terminal, the size is set in
    /// two steps, so that a full-screen program redraws.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the terminal cannot be used, and the errors of [`Attachment`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call restores the terminal and detaches.
    pub async fn attach(&self, mut attachment: Attachment) -> Result<SessionEnd> {
        #[allow(
            deprecated,
            reason = "its replacement needs a type that keeps its descriptor, which a file does"
        )]
        let tty = AsyncFd::new(open_device()?).map_err(|error| failed("open", error))?;
        let mut signals = EndSignals::new()?;
        let mut size_changes = listen(SignalKind::window_change())?;
        let mut job = JobSignals {
            stop: listen(SignalKind::from_raw(process::Signal::TSTP.as_raw()))?,
            resume: listen(SignalKind::from_raw(process::Signal::CONT.as_raw()))?,
        };
        let input = attachment.input();
        let handle = attachment.handle();
        let raw = RawMode::enter()?;
        if self.size().is_ok_and(|size| handle.window() != Some(size)) {
            self.redraw(&handle).await;
        }
        let mut typed = TypedInput::new(input, KeyMatcher::new(self.keys.clone()));
        // Detaching works during the wait for the outcome too: the output may end long
        // before the outcome is known.
        let ended = async {
            show(&tty, &mut attachment, &raw).await?;
            handle.outcome().await
        };
        let mut session = pin!(async {
            tokio::select! {
                outcome = ended => Ok(SessionEnd::Ended(Box::new(outcome?))),
                () = typed.relay(&tty) => Ok(SessionEnd::Detached),
                number = signals.next() => Ok(SessionEnd::Signal(number)),
                never = self.follow_size(&mut size_changes, &handle) => match never {},
                error = self.handle_job_signals(&mut job, &raw, &handle) => Err(error),
            }
        });
        poll_fn(|cx| {
            raw.mark_thread();
            session.as_mut().poll(cx)
        })
        .await
    }

    /// Sets the size on the run in two steps, so that a full-screen program redraws.
    async fn redraw(&self, handle: &AttachHandle) {
        if let Ok(size) = self.size() {
            let other = WindowSize::new(size.columns, size.rows.saturating_sub(1).max(1));
            // Errors are ignored: the run may have ended.
            let _ = handle.resize(other).await;
            let _ = handle.resize(size).await;
        }
    }

    /// Stops this process on SIGTSTP, with the terminal restored.
    ///
    /// Returns to raw mode when the process continues.
    async fn handle_job_signals(
        &self,
        job: &mut JobSignals,
        raw: &RawMode,
        handle: &AttachHandle,
    ) -> Error {
        loop {
            tokio::select! {
                Some(()) = job.stop.recv() => {
                    raw.suspend();
                    // The handler of SIGTSTP replaces its default effect.
                    let stopped = process::kill_process(process::getpid(), process::Signal::STOP);
                    if let Err(error) = stopped {
                        return failed("stop the process at", error.into());
                    }
                }
                Some(()) = job.resume.recv() => {
                    if let Err(error) = raw.resume() {
                        return error;
                    }
                    self.redraw(handle).await;
                }
                else => pending::<()>().await,
            }
        }
    }

    /// Sets each new size of the terminal on the run.
    async fn follow_size(
        &self,
        changes: &mut Signal,
        handle: &AttachHandle,
    ) -> std::convert::Infallible {
        loop {
            if changes.recv().await.is_none() {
                pending::<()>().await;
            }
            if let Ok(size) = self.size() {
                // Errors are ignored: the run may have ended.
                let _ = handle.resize(size).await;
            }
        }
    }
}

/// Returns the error of an operation on the terminal.
fn failed(operation: &'static str, error: io::Error) -> Error {
    Error::storage(operation, PATH, error)
}

/// Opens the terminal with a separate file description.
///
/// Non-blocking mode then does not affect other users of the terminal.
fn open_device() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(PATH)
        .map_err(|error| failed("open", error))
}

/// Writes the output to the terminal until the output ends.
async fn show(tty: &AsyncFd<File>, output: &mut Attachment, raw: &RawMode) -> Result<()> {
    while let Some(item) = output.next().await {
        let Attached::Chunk(chunk) = item? else {
            // Dropped output cannot be shown. A lossless attachment drops none.
            continue;
        };
        raw.modes().feed(&chunk.bytes);
        let mut unwritten = &chunk.bytes[..];
        while !unwritten.is_empty() {
            let write = |mut file: &File| file.write(unwritten);
            let written = tty.async_io(Interest::WRITABLE, |file| write(file)).await;
            match written {
                Ok(count) => unwritten = &unwritten[count..],
                // If the terminal is gone, reading it ends the session.
                Err(_) => break,
            }
        }
    }
    Ok(())
}

/// Typed input that waits for the container.
///
/// The terminal is always read, so that the detach keys work even if the container is
/// stuck. Then input past a limit is dropped.
struct TypedInput {
    /// `None` if the run has no input, or has ended.
    input: Option<Input>,
    matcher: KeyMatcher,
    pending: Vec<u8>,
    last_write: Instant,
}

/// One read from the terminal, or one write to the container.
enum Transfer {
    Read(io::Result<usize>),
    Write(io::Result<usize>),
}

impl TypedInput {
    fn new(input: Option<Input>, matcher: KeyMatcher) -> Self {
        Self {
            input,
            matcher,
            pending: Vec::new(),
            last_write: Instant::now(),
        }
    }

    /// Relays typed input until the detach keys are typed or the terminal is gone.
    async fn relay(&mut self, tty: &AsyncFd<File>) {
        let mut typed = [0; 4096];
        loop {
            match self.transfer(tty, &mut typed).await {
                Transfer::Read(Ok(0) | Err(_)) => return,
                Transfer::Read(Ok(count)) => {
                    if self.push(&typed[..count]) {
                        return self.flush().await;
                    }
                }
                Transfer::Write(Ok(count)) => {
                    self.pending.drain(..count);
                    self.last_write = Instant::now();
                }
                // The container has ended. The rest of its output may still arrive.
                Transfer::Write(Err(_)) => {
                    self.input = None;
                    self.pending.clear();
                }
            }
        }
    }

    /// Reads from the terminal or writes to the container, whichever is ready first.
    async fn transfer(&mut self, tty: &AsyncFd<File>, typed: &mut [u8]) -> Transfer {
        let is_full = self.pending.len() >= MAX_PENDING_BYTES;
        let drop_after = self.last_write + STALL_TIMEOUT;
        let read = async {
            if is_full {
                sleep_until(drop_after).await;
            }
            tty.async_io(Interest::READABLE, |mut file| file.read(typed))
                .await
        };
        let write = async {
            match &mut self.input {
                Some(input) if !self.pending.is_empty() => input.write(&self.pending).await,
                _ => pending().await,
            }
        };
        tokio::select! {
            read = read => Transfer::Read(read),
            written = write => Transfer::Write(written),
        }
    }

    /// Adds typed bytes. Returns true if the detach keys were typed.
    fn push(&mut self, typed: &[u8]) -> bool {
        if self.matcher.feed(typed, &mut self.pending) {
            return true;
        }
        if self.input.is_none() {
            self.pending.clear();
        }
        self.pending.truncate(MAX_PENDING_BYTES);
        false
    }

    /// Writes the input that was typed before the detach keys.
    async fn flush(&mut self) {
        if let Some(input) = &mut self.input {
            let write = input.write_all(&self.pending);
            let _ = tokio::time::timeout(FLUSH_TIMEOUT, write).await;
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| failed("listen for signals at", error))
}

/// The signals for job control: SIGTSTP and SIGCONT.
struct JobSignals {
    stop: Signal,
    resume: Signal,
}

/// The signals that end the session, with their streams.
struct EndSignals(Vec<(SignalKind, Signal)>);

impl EndSignals {
    fn new() -> Result<Self> {
        END_SIGNALS
            .into_iter()
            .map(|kind| Ok((kind, listen(kind)?)))
            .collect::<Result<_>>()
            .map(Self)
    }

    async fn next(&mut self) -> i32 {
        poll_fn(|cx| {
            for (kind, signal) in &mut self.0 {
                if let std::task::Poll::Ready(Some(())) = signal.poll_recv(cx) {
                    return std::task::Poll::Ready(kind.as_raw_value());
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// The session in progress. A process has one at a time.
static SESSION: Mutex<Option<RawSession>> = Mutex::new(None);

struct RawSession {
    modes: Arc<Mutex<ModeTracker>>,
    /// The thread that last polled the session.
    thread: ThreadId,
}

/// Keeps the terminal in raw mode, and restores it on drop.
struct RawMode(Arc<Mutex<ModeTracker>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RawMode {
    fn enter() -> Result<Self> {
        restore_on_panic();
        let mut session = lock(&SESSION);
        if session.is_some() {
            let reason = io::Error::new(io::ErrorKind::ResourceBusy, "already in use");
            return Err(failed("use", reason));
        }
        terminal::enable_raw_mode().map_err(|error| failed("set up", error))?;
        let modes = Arc::<Mutex<ModeTracker>>::default();
        *session = Some(RawSession {
            modes: Arc::clone(&modes),
            thread: std::thread::current().id(),
        });
        Ok(Self(modes))
    }

    fn modes(&self) -> MutexGuard<'_, ModeTracker> {
        lock(&self.0)
    }

    /// Restores the terminal until [`resume`](Self::resume).
    fn suspend(&self) {
        let sequences = self.modes().restore();
        restore_device(&sequences);
    }

    /// Returns to raw mode, even if a shell has changed the terminal since.
    fn resume(&self) -> Result<()> {
        let _ = terminal::disable_raw_mode();
        terminal::enable_raw_mode().map_err(|error| failed("set up", error))
    }

    /// Marks this thread as the one whose panic ends the session.
    fn mark_thread(&self) {
        if let Some(session) = &mut *lock(&SESSION) {
            session.thread = std::thread::current().id();
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Installs a panic hook, once, that restores the terminal of a session.
fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // Before the message is printed: leaving the alternate screen would erase it.
            // With `panic = "abort"`, no destructor runs later.
            let here = std::thread::current().id();
            let ours = lock(&SESSION)
                .as_ref()
                .is_some_and(|session| session.thread == here);
            if ours || cfg!(panic = "abort") {
                restore();
            }
            previous(panic);
        }));
    });
}

/// Ends the session, if any, and restores the terminal.
fn restore() {
    let Some(session) = lock(&SESSION).take() else {
        return;
    };
    let sequences = lock(&session.modes).restore();
    restore_device(&sequences);
}

/// Writes `sequences` to the terminal, and leaves raw mode.
fn restore_device(sequences: &[u8]) {
    if let Ok(mut tty) = open_device() {
        write_with_retries(&mut tty, sequences);
    }
    let _ = terminal::disable_raw_mode();
}

/// Writes to a non-blocking terminal, with a limited number of retries.
fn write_with_retries(tty: &mut File, mut bytes: &[u8]) {
    for _ in 0..MAX_RESTORE_ATTEMPTS {
        if bytes.is_empty() {
            return;
        }
        match tty.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(RESTORE_RETRY_INTERVAL);
            }
            Err(_) => return,
        }
    }
}
