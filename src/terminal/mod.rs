//! The terminal that this process has, in front of a run that has one too.
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
//!     SessionEnd::Detached => println!("{} goes on", run.id()),
//!     SessionEnd::Signal(number) => println!("signal {number}; {} goes on", run.id()),
//!     _ => {}
//! }
//! manager.shutdown(ShutdownMode::Leave).await;
//! # Ok(())
//! # }
//! ```

mod keys;
mod leftovers;

use std::fs::{File, OpenOptions};
use std::future::{pending, poll_fn};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use crossterm::terminal as device;
use futures::StreamExt;
use rustix::process::{Signal as Stop, getpid, kill_process};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use self::keys::Watch;
pub use self::keys::{DetachKeys, ParseKeysError};
use self::leftovers::Leftovers;
use crate::error::{Error, Result};
use crate::outcome::Outcome;
use crate::run::attach::input::{AttachHandle, Input};
use crate::run::attach::{Attached, Attachment};
use crate::spec::WindowSize;

/// The terminal that a process has, whatever its standard streams are.
const PATH: &str = "/dev/tty";
/// How much is typed ahead of a container that does not read.
const AHEAD: usize = 1 << 20;
/// How long a container takes nothing before what is typed further ahead is thrown away: the keys
/// that detach may be in it.
const STUCK: Duration = Duration::from_secs(1);
/// How often, and after which pauses, a terminal is told what it does not take at once.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);
/// What ends a process that does not look.
const ENDING: [SignalKind; 4] = [
    SignalKind::terminate(),
    SignalKind::hangup(),
    SignalKind::interrupt(),
    SignalKind::quit(),
];

/// The terminal of this process.
#[derive(Debug)]
pub struct Terminal {
    keys: DetachKeys,
}

/// Why nobody sits in front of a run any more. The terminal is as it was in any case.
#[derive(Debug)]
#[non_exhaustive]
pub enum SessionEnd {
    /// It has ended.
    Ended(Box<Outcome>),
    /// The detach keys were typed, or the terminal is gone. The run goes on.
    Detached,
    /// One of SIGTERM, SIGHUP, SIGINT and SIGQUIT came, and is for the caller to heed: with this
    /// number. The run goes on.
    Signal(i32),
}

impl Terminal {
    /// The terminal that this process has.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if standard input or output is none, or there is none.
    pub fn open() -> Result<Self> {
        for (name, is_one) in [
            ("stdin", io::stdin().is_terminal()),
            ("stdout", io::stdout().is_terminal()),
        ] {
            if !is_one {
                let reason = io::Error::new(io::ErrorKind::Unsupported, "it is not a terminal");
                return Err(Error::storage("use as a terminal", name, reason));
            }
        }
        open_device()?;
        Ok(Self {
            keys: DetachKeys::default(),
        })
    }

    /// The keys that detach. Default: `ctrl-p,ctrl-q`. The first of them does not reach the
    /// container before the next key.
    pub fn detach_keys(mut self, keys: DetachKeys) -> Self {
        self.keys = keys;
        self
    }

    /// Its size now.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if it does not tell.
    pub fn size(&self) -> Result<WindowSize> {
        let (columns, rows) = device::size().map_err(|error| failed("measure", error))?;
        Ok(WindowSize::new(columns, rows))
    }

    /// Puts the terminal in front of a run that has one: what is typed goes to the input, what is
    /// printed to the screen, changes of the size to the run.
    ///
    /// Meanwhile the terminal is raw: `ctrl-c` is the container's. It is as it was when this
    /// returns, is dropped, or panics, and also when the process panics elsewhere in the same
    /// thread; and what a program told it and has not taken back (the alternate screen, the mouse,
    /// bracketed paste, a hidden cursor, a scroll region, colours) is undone. From the first call
    /// on the process itself has to heed the signals that [`SessionEnd::Signal`] names, and SIGTSTP.
    ///
    /// The keys that detach work whatever the run does. What is typed waits for a program that
    /// takes it slowly; of one that has taken nothing for a second, what is more than 1 MiB ahead is
    /// thrown away. `ctrl-z` is the container's, too; a SIGTSTP from outside gives the terminal
    /// back and stops the process, and when that goes on, whatever it was stopped by, the terminal
    /// is raw again, and the run is told its size. A program that had the alternate screen draws on
    /// the main one from there on.
    ///
    /// An attachment that was not made with this size is told it, in two steps, so that a program
    /// that fills the screen draws it again.
    ///
    /// Cancel-safe, in that the terminal is brought back.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the terminal cannot be used; those of [`Attachment`].
    pub async fn attach(&self, mut attachment: Attachment) -> Result<SessionEnd> {
        #[allow(
            deprecated,
            reason = "it asks for a type that keeps its descriptor, which a file does"
        )]
        let tty = AsyncFd::new(open_device()?).map_err(|error| failed("open", error))?;
        let mut signals = Signals::new()?;
        let mut changes = listen(SignalKind::window_change())?;
        let mut job = Job {
            stop: listen(SignalKind::from_raw(Stop::TSTP.as_raw()))?,
            go_on: listen(SignalKind::from_raw(Stop::CONT.as_raw()))?,
        };
        let input = attachment.input();
        let control = attachment.control();
        let raw = Raw::enter()?;
        if self.size().is_ok_and(|size| control.window() != Some(size)) {
            self.draw_again(&control).await;
        }
        // Who sits here can leave while the end is waited for, too: the output may come to its end
        // long before that is known.
        let ended = async {
            show(&tty, &mut attachment, &raw).await?;
            control.outcome().await
        };
        let mut sitting = pin!(async {
            tokio::select! {
                outcome = ended => Ok(SessionEnd::Ended(Box::new(outcome?))),
                () = pass_on(&tty, input, Watch::new(self.keys.clone())) => Ok(SessionEnd::Detached),
                number = signals.next() => Ok(SessionEnd::Signal(number)),
                never = self.follow(&mut changes, &control) => match never {},
                error = self.stop_and_go_on(&mut job, &raw, &control) => Err(error),
            }
        });
        poll_fn(|cx| {
            raw.is_polled_here();
            sitting.as_mut().poll(cx)
        })
        .await
    }

    /// Tells the run the size, in two steps: a program that fills the screen draws it again.
    async fn draw_again(&self, control: &AttachHandle) {
        if let Ok(size) = self.size() {
            let other = WindowSize::new(size.columns, size.rows.saturating_sub(1).max(1));
            // It may have ended.
            let _ = control.resize(other).await;
            let _ = control.resize(size).await;
        }
    }

    /// Stops this process when it is asked to, with its terminal as it was, and has it raw again
    /// when the process goes on, whatever it was stopped by.
    async fn stop_and_go_on(&self, job: &mut Job, raw: &Raw, control: &AttachHandle) -> Error {
        loop {
            tokio::select! {
                Some(()) = job.stop.recv() => {
                    raw.undo();
                    // The handler of SIGTSTP has taken the place of its effect.
                    let stopped = kill_process(getpid(), Stop::STOP);
                    if let Err(error) = stopped {
                        return failed("give back", error.into());
                    }
                }
                Some(()) = job.go_on.recv() => {
                    if let Err(error) = raw.again() {
                        return error;
                    }
                    self.draw_again(control).await;
                }
                else => pending::<()>().await,
            }
        }
    }

    async fn follow(
        &self,
        changes: &mut Signal,
        control: &AttachHandle,
    ) -> std::convert::Infallible {
        loop {
            if changes.recv().await.is_none() {
                pending::<()>().await;
            }
            if let Ok(size) = self.size() {
                // It may have ended.
                let _ = control.resize(size).await;
            }
        }
    }
}

fn failed(operation: &'static str, error: io::Error) -> Error {
    Error::storage(operation, PATH, error)
}

/// A description of the terminal that nobody shares: that it never blocks is nobody else's matter.
fn open_device() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(PATH)
        .map_err(|error| failed("open", error))
}

/// Shows what is printed, to its end.
async fn show(tty: &AsyncFd<File>, output: &mut Attachment, raw: &Raw) -> Result<()> {
    while let Some(item) = output.next().await {
        let Attached::Chunk(chunk) = item? else {
            // The screen is what it is; who wants all of it catches up.
            continue;
        };
        raw.leftovers().feed(&chunk.bytes);
        let mut left = &chunk.bytes[..];
        while !left.is_empty() {
            let write = |mut file: &File| file.write(left);
            let written = tty.async_io(Interest::WRITABLE, |file| write(file)).await;
            match written {
                Ok(count) => left = &left[count..],
                // A terminal that is gone is for the one who reads it to see.
                Err(_) => break,
            }
        }
    }
    Ok(())
}

/// Passes on what is typed, until the keys that detach are, or the terminal is gone.
///
/// The terminal is always read, so that the keys are seen whatever the container does: one that is
/// slow holds up what is typed, and one that is stuck makes it be thrown away, from a bound on.
async fn pass_on(tty: &AsyncFd<File>, mut input: Option<Input>, mut watch: Watch) {
    let mut typed = [0; 4096];
    let mut ahead = Vec::new();
    let mut taken = Instant::now();
    loop {
        let write = async {
            match &mut input {
                Some(input) if !ahead.is_empty() => input.write(&ahead).await,
                _ => pending().await,
            }
        };
        let read = async {
            if ahead.len() >= AHEAD {
                sleep_until(taken + STUCK).await;
            }
            tty.async_io(Interest::READABLE, |mut file| file.read(&mut typed))
                .await
        };
        enum Done {
            Read(io::Result<usize>),
            StdinChunk(io::Result<usize>),
        }
        let done = tokio::select! {
            read = read => Done::Read(read),
            written = write => Done::StdinChunk(written),
        };
        match done {
            Done::Read(Ok(0) | Err(_)) => return,
            Done::Read(Ok(count)) => {
                if watch.feed(&typed[..count], &mut ahead) {
                    // What was typed before the keys is still meant for the container.
                    if let Some(input) = &mut input {
                        let _ = tokio::time::timeout(PAUSE * 10, input.write_all(&ahead)).await;
                    }
                    return;
                }
                if input.is_none() {
                    ahead.clear();
                }
                ahead.truncate(AHEAD);
            }
            Done::StdinChunk(Ok(count)) => {
                ahead.drain(..count);
                taken = Instant::now();
            }
            // The container has ended; the last of its output is on its way.
            Done::StdinChunk(Err(_)) => {
                input = None;
                ahead.clear();
            }
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| failed("listen for signals at", error))
}

/// What a shell does with the jobs in its terminal.
struct Job {
    stop: Signal,
    go_on: Signal,
}

struct Signals(Vec<(SignalKind, Signal)>);

impl Signals {
    fn new() -> Result<Self> {
        ENDING
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

/// What is to be undone, and for whom; one at a time.
static NOW: Mutex<Option<Now>> = Mutex::new(None);

struct Now {
    leftovers: Arc<Mutex<Leftovers>>,
    /// Which thread sits in front of it.
    thread: ThreadId,
}

/// The terminal is raw while this lives.
struct Raw(Arc<Mutex<Leftovers>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Raw {
    fn enter() -> Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // Before the message is printed, which the alternate screen would take with it;
                // and where nothing is unwound there is no later.
                let here = std::thread::current().id();
                let ours = lock(&NOW).as_ref().is_some_and(|now| now.thread == here);
                if ours || cfg!(panic = "abort") {
                    restore();
                }
                before(panic);
            }));
        });
        let mut now = lock(&NOW);
        if now.is_some() {
            let reason = io::Error::new(io::ErrorKind::ResourceBusy, "it is in use already");
            return Err(failed("use", reason));
        }
        device::enable_raw_mode().map_err(|error| failed("set up", error))?;
        let leftovers = Arc::<Mutex<Leftovers>>::default();
        *now = Some(Now {
            leftovers: Arc::clone(&leftovers),
            thread: std::thread::current().id(),
        });
        Ok(Self(leftovers))
    }

    fn leftovers(&self) -> MutexGuard<'_, Leftovers> {
        lock(&self.0)
    }

    /// Brings the terminal back for now.
    fn undo(&self) {
        let undo = self.leftovers().undo();
        give_back(&undo);
    }

    /// Makes the terminal raw, also where a shell has changed it meanwhile.
    fn again(&self) -> Result<()> {
        let _ = device::disable_raw_mode();
        device::enable_raw_mode().map_err(|error| failed("set up", error))
    }

    fn is_polled_here(&self) {
        if let Some(now) = &mut *lock(&NOW) {
            now.thread = std::thread::current().id();
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Brings the terminal back, if it is not as it was.
fn restore() {
    let Some(now) = lock(&NOW).take() else {
        return;
    };
    let undo = lock(&now.leftovers).undo();
    give_back(&undo);
}

/// Tells the terminal what undoes what a program left behind, and that it is not raw.
fn give_back(undo: &[u8]) {
    if let Ok(mut tty) = open_device() {
        let mut left = undo;
        for _ in 0..TRIES {
            if left.is_empty() {
                break;
            }
            match tty.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(PAUSE)
                }
                Err(_) => break,
            }
        }
    }
    let _ = device::disable_raw_mode();
}
