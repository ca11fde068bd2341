//! PID 1 of the container `moat`: captures the output of `main` and serves it to moat.
//!
//! Threads: [`capture`] alone reads the output and writes the spool. Each control connection has
//! a thread, so that a slow client blocks nothing else. The main thread handles signals.

mod capture;
mod control;
mod dial;
mod spool;
mod state;
mod stdin;
mod tap;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::umask;

use self::state::Shared;
use crate::frames::now_micros;
use crate::options::Options;
use crate::signals::{Signals, TERMINATING};
use crate::streams;

/// The exit code if there is a spool already: another collector has run in this pod.
const EXIT_RESTARTED: i32 = 71;
/// The exit code if the spool or a socket cannot be made.
const EXIT_NO_SOCKET: i32 = 72;
/// The longest sleep before the clock is read again, since it may be set.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// The length of a termination message that Kubernetes keeps.
const MAX_TERMINATION_MESSAGE: usize = 4096;

/// The treatment of the command's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// The input ends when its writer ends it.
    Pipe,
    /// The input never ends.
    Open,
}

/// The arguments of `serve`.
#[derive(Debug)]
pub(crate) struct Settings {
    gate: PathBuf,
    control: PathBuf,
    spool: PathBuf,
    limit: u64,
    discard: bool,
    stdin: Option<Input>,
    stdin_grace: Duration,
    /// Seconds after the start of the command at which it is killed.
    kill_after: Option<u64>,
    /// Seconds after the start of the command at which the collector exits.
    exit_after: Option<u64>,
    /// Seconds after which the collector exits if the command was not released.
    release_within: Option<u64>,
    termination_log: PathBuf,
}

impl Settings {
    pub(crate) fn parse(mut options: Options) -> Result<Self, String> {
        let mut settings = Self {
            gate: PathBuf::new(),
            control: PathBuf::new(),
            spool: PathBuf::new(),
            limit: 0,
            discard: false,
            stdin: None,
            stdin_grace: Duration::from_secs(30),
            kill_after: None,
            exit_after: None,
            release_within: None,
            termination_log: "/dev/termination-log".into(),
        };
        while let Some(option) = options.next_option() {
            settings.set(&option, &mut options)?;
        }
        if !options.rest().is_empty() {
            return Err("an argument is not an option".to_owned());
        }
        let paths = [&settings.gate, &settings.control, &settings.spool];
        if settings.limit == 0 || paths.iter().any(|path| path.as_os_str().is_empty()) {
            return Err("--gate, --control, --spool or --limit is missing".to_owned());
        }
        Ok(settings)
    }

    fn set(&mut self, option: &str, options: &mut Options) -> Result<(), String> {
        let path = |value: OsString| PathBuf::from(value);
        match option {
            "gate" => self.gate = path(options.value(option)?),
            "control" => self.control = path(options.value(option)?),
            "spool" => self.spool = path(options.value(option)?),
            "termination-log" => self.termination_log = path(options.value(option)?),
            "limit" => self.limit = options.number(option)?,
            "discard" => self.discard = true,
            "kill-after" => self.kill_after = Some(options.number(option)?),
            "exit-after" => self.exit_after = Some(options.number(option)?),
            "release-within" => self.release_within = Some(options.number(option)?),
            "stdin-grace-ms" => self.stdin_grace = Duration::from_millis(options.number(option)?),
            "stdin" => {
                self.stdin = Some(match options.text(option)?.as_str() {
                    "pipe" => Input::Pipe,
                    "open" => Input::Open,
                    other => return Err(format!("--stdin {other} is neither pipe nor open")),
                });
            }
            other => return Err(format!("unknown option --{other}")),
        }
        Ok(())
    }
}

/// Captures and serves until `quit`, SIGTERM or a deadline. Returns the exit code.
pub(crate) fn run(settings: Settings) -> i32 {
    match start(&settings) {
        Ok((shared, signals)) => wait_termination(&shared, &signals),
        Err((code, message)) => {
            eprintln!("moat-helper: {message}");
            write_termination(&settings.termination_log, &message);
            code
        }
    }
}

fn start(settings: &Settings) -> Result<(Arc<Shared>, Signals), (i32, String)> {
    let signals =
        Signals::register(TERMINATING).map_err(|error| failed("catch signals", &error))?;
    let spool = create_spool(&settings.spool)?;
    let gate = bind(&settings.gate, Mode::from_raw_mode(0o111))?;
    let control = bind(&settings.control, Mode::from_raw_mode(0o177))?;
    umask(Mode::from_raw_mode(0o077));
    let shared = Shared::new(spool, settings).map_err(|error| failed("make an event", &error))?;
    let shared = Arc::new(shared);
    let other = Arc::clone(&shared);
    thread::spawn(move || capture::accept(&other, &gate));
    let other = Arc::clone(&shared);
    thread::spawn(move || control::serve(&other, &control));
    if let Some(seconds) = settings.kill_after {
        after_start(seconds, Arc::clone(&shared), |shared| {
            control::kill(&shared)
        });
    }
    if let Some(seconds) = settings.exit_after {
        after_start(seconds, Arc::clone(&shared), |shared| quit(&shared));
    }
    if let Some(seconds) = settings.release_within {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            sleep_until(now_micros().saturating_add(seconds.saturating_mul(1_000_000)));
            if shared.lock().expire() {
                quit(&shared);
            }
        });
    }
    Ok((shared, signals))
}

fn failed(operation: &str, error: &io::Error) -> (i32, String) {
    (EXIT_NO_SOCKET, format!("cannot {operation}: {error}"))
}

fn create_spool(path: &Path) -> Result<File, (i32, String)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(|error| {
        let message = format!("cannot create the spool {}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::AlreadyExists => (EXIT_RESTARTED, message),
            _ => (EXIT_NO_SOCKET, message),
        }
    })
}

/// Binds a socket. The mask applies to the mode 0777.
fn bind(path: &Path, mask: Mode) -> Result<UnixListener, (i32, String)> {
    umask(mask);
    UnixListener::bind(path).map_err(|error| failed(&format!("bind {}", path.display()), &error))
}

/// Calls `action` a number of seconds after the start of the command.
fn after_start(seconds: u64, shared: Arc<Shared>, action: fn(Arc<Shared>)) {
    thread::spawn(move || {
        let mut state = shared.lock();
        let started = loop {
            match state.started_micros {
                Some(micros) => break micros,
                None => state = shared.wait(state),
            }
        };
        drop(state);
        sleep_until(started.saturating_add(seconds.saturating_mul(1_000_000)));
        action(shared);
    });
}

/// Sleeps until a time in microseconds since 1970.
fn sleep_until(deadline: u64) {
    loop {
        let left = deadline.saturating_sub(now_micros());
        if left == 0 {
            return;
        }
        thread::sleep(Duration::from_micros(left).min(MAX_SLEEP));
    }
}

/// Waits for SIGTERM, and then until a client has received all output. Ends this process.
fn wait_termination(shared: &Shared, signals: &Signals) -> ! {
    while signals.take().is_empty() {
        if streams::wait_readable(&[signals.as_fd()], None).is_err() {
            break;
        }
    }
    // The kubelet may kill this process before the output is received.
    drop(leave_message(shared));
    let mut state = shared.lock();
    while state.was_released() && !state.is_delivered() {
        state = shared.wait(state);
    }
    drop(state);
    quit(shared)
}

/// Leaves a termination message and ends this process.
fn quit(shared: &Shared) -> ! {
    let _message = leave_message(shared);
    exit(0)
}

/// Writes the present counts to the termination log. A thread that ends this process must keep the
/// guard: the exit could interrupt another thread's write.
fn leave_message(shared: &Shared) -> MutexGuard<'_, PathBuf> {
    let path = shared.termination_log.lock();
    let path = path.unwrap_or_else(PoisonError::into_inner);
    let message = shared.lock().summary();
    write_termination(&path, &message);
    path
}

fn write_termination(path: &Path, message: &str) {
    let message = &message.as_bytes()[..message.len().min(MAX_TERMINATION_MESSAGE)];
    if let Ok(mut file) = OpenOptions::new().write(true).truncate(true).open(path) {
        let _ = file.write_all(message);
    }
}
