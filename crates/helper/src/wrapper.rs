//! PID 1 of the container `main`: runs the command when the collector releases it.

use std::ffi::OsString;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use crate::frames::{self, Frame, FrameBuffer, failure};
use crate::options::Options;
use crate::protocol::Kind;
use crate::signals::{CHILD, FORWARDED, Signals, TERMINATING};
use crate::streams::{self, Far, Layout, Near, Window};

/// The exit code if the collector is gone before the release.
const EXIT_NO_COLLECTOR: i32 = 70;
/// The time between two attempts to connect, in milliseconds.
const CONNECT_INTERVAL_MS: u64 = 20;

/// The arguments of `run`.
#[derive(Debug)]
pub(crate) struct Settings {
    layout: Layout,
    gate: PathBuf,
    command: Vec<OsString>,
}

impl Settings {
    pub(crate) fn parse(mut options: Options) -> Result<Self, String> {
        let mut layout = Layout::default();
        let mut gate = None;
        while let Some(option) = options.next_option() {
            match option.as_str() {
                "tty" => layout.tty = true,
                "stdin" => layout.stdin = true,
                "window" => {
                    let window = Window::parse(&options.text("window")?);
                    layout.window = Some(window.ok_or("--window is not COLSxROWS")?);
                }
                "gate" => gate = Some(options.value("gate")?.into()),
                other => return Err(format!("unknown option --{other}")),
            }
        }
        let command = options.rest();
        if command.is_empty() {
            return Err("the command is missing".to_owned());
        }
        Ok(Self {
            layout,
            gate: gate.ok_or("--gate is missing")?,
            command,
        })
    }
}

/// Runs the command after its release. Returns its exit code.
pub(crate) fn run(settings: Settings) -> i32 {
    match Wrapper::connect(&settings).and_then(|wrapper| match wrapper {
        Ok(wrapper) => wrapper.run(&settings),
        Err(code) => Ok(code),
    }) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("moat-helper: {error}");
            EXIT_NO_COLLECTOR
        }
    }
}

struct Wrapper {
    /// None once the connection has broken.
    gate: Option<UnixStream>,
    received: FrameBuffer,
    signals: Signals,
}

/// An event that ends the wait for the release.
enum Gate {
    /// With the variables of the environment to add.
    Released(Vec<OsString>),
    Exit(i32),
}

impl Wrapper {
    /// Connects to the collector. Returns an exit code if a signal ends the wait.
    fn connect(settings: &Settings) -> io::Result<Result<Self, i32>> {
        let signals = Signals::register(FORWARDED.into_iter().chain([CHILD]))?;
        loop {
            if let Ok(gate) = UnixStream::connect(&settings.gate) {
                return Ok(Ok(Self {
                    gate: Some(gate),
                    received: FrameBuffer::default(),
                    signals,
                }));
            }
            streams::wait_readable(&[signals.as_fd()], Some(CONNECT_INTERVAL_MS))?;
            if let Some(code) = terminated(&signals.take()) {
                return Ok(Err(code));
            }
        }
    }

    fn run(mut self, settings: &Settings) -> io::Result<i32> {
        let (near, far) = streams::open(settings.layout)?;
        self.send_ready(&far)?;
        drop(far);
        loop {
            let environment = match self.wait_release()? {
                Gate::Released(environment) => environment,
                Gate::Exit(code) => return Ok(code),
            };
            if let Some(pid) = self.spawn(&near, &settings.command, &environment) {
                // The end of the output needs this process to have no copy.
                drop(near);
                self.send(&frames::stamped(Kind::Started, &[]));
                return self.supervise(pid);
            }
        }
    }

    /// Sends the collector its ends of the streams.
    fn send_ready(&mut self, far: &Far) -> io::Result<()> {
        let (names, fds) = match far {
            Far::Pipes {
                stdin: Some(stdin),
                stdout,
                stderr,
            } => (
                "stdout stderr stdin",
                vec![stdout.as_fd(), stderr.as_fd(), stdin.as_fd()],
            ),
            Far::Pipes { stdout, stderr, .. } => {
                ("stdout stderr", vec![stdout.as_fd(), stderr.as_fd()])
            }
            Far::Terminal(master) => ("tty", vec![master.as_fd()]),
        };
        let message = frames::stamped(Kind::Ready, names.as_bytes());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let gate = self.gate.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        // A message this small is sent whole.
        sendmsg(
            gate,
            &[IoSlice::new(&message)],
            &mut control,
            SendFlags::empty(),
        )?;
        Ok(())
    }

    fn wait_release(&mut self) -> io::Result<Gate> {
        loop {
            let (signals, frames) = self.wait()?;
            if let Some(code) = terminated(&signals) {
                return Ok(Gate::Exit(code));
            }
            reap(None);
            for frame in frames {
                match frame.kind {
                    Kind::Release => return Ok(Gate::Released(frame.strings())),
                    Kind::Signal => self.send(&frames::stamped(Kind::Refused, b"not running")),
                    _ => {}
                }
            }
            if self.gate.is_none() {
                return Ok(Gate::Exit(EXIT_NO_COLLECTOR));
            }
        }
    }

    /// Starts the command, or reports why it cannot be started.
    fn spawn(&mut self, near: &Near, argv: &[OsString], environment: &[OsString]) -> Option<Pid> {
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]);
        frames::add_environment(&mut command, environment);
        match near.spawn(command) {
            Ok(child) => Some(Pid::from_child(&child)),
            Err(error) => {
                let operation = format!("exec {}", argv[0].to_string_lossy());
                self.send(&frames::stamped(Kind::Failed, &failure(&operation, &error)));
                None
            }
        }
    }

    /// Forwards signals until the command ends. Returns its exit code.
    ///
    /// This is the only thread, and children are reaped nowhere else: a signal can never reach
    /// another process that got the command's PID.
    fn supervise(mut self, pid: Pid) -> io::Result<i32> {
        loop {
            if let Some(code) = reap(Some(pid)) {
                self.send(&frames::stamped(Kind::Exited, &code.to_le_bytes()));
                return Ok(code);
            }
            let (signals, frames) = self.wait()?;
            for signal in signals.into_iter().filter(|signal| *signal != CHILD) {
                streams::kill(pid, signal);
            }
            for frame in frames.iter().filter(|frame| frame.kind == Kind::Signal) {
                let sent = frame
                    .number()
                    .is_some_and(|signal| streams::kill(pid, signal));
                let answer = match sent {
                    true => frames::stamped(Kind::Done, &[]),
                    false => frames::stamped(Kind::Refused, b"the signal cannot be sent"),
                };
                self.send(&answer);
            }
        }
    }

    /// Waits for signals and frames.
    fn wait(&mut self) -> io::Result<(Vec<i32>, Vec<Frame>)> {
        let mut fds = vec![self.signals.as_fd()];
        fds.extend(self.gate.as_ref().map(|gate| gate.as_fd()));
        let ready = streams::wait_readable(&fds, None)?;
        if ready.get(1) == Some(&true) {
            self.receive();
        }
        let mut frames = Vec::new();
        loop {
            match self.received.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => {
                    self.gate = None;
                    break;
                }
            }
        }
        Ok((self.signals.take(), frames))
    }

    fn receive(&mut self) {
        let mut bytes = [0; 4096];
        let read = self.gate.as_mut().map(|gate| gate.read(&mut bytes));
        match read {
            Some(Ok(read)) if read > 0 => self.received.push(&bytes[..read]),
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => self.gate = None,
        }
    }

    /// Sends a frame. A broken connection is dropped: the command runs on without the collector.
    fn send(&mut self, frame: &[u8]) {
        if let Some(gate) = &mut self.gate
            && gate.write_all(frame).is_err()
        {
            self.gate = None;
        }
    }
}

/// Returns the exit code if one of the signals ends a process that waits.
fn terminated(signals: &[i32]) -> Option<i32> {
    let signal = TERMINATING.iter().find(|signal| signals.contains(signal))?;
    Some(128 + signal)
}

/// Reaps all children that have ended. Returns the exit code of `command` if it is one of them.
fn reap(command: Option<Pid>) -> Option<i32> {
    let mut code = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if Some(pid) == command {
            code = Some(exit_code(status));
        }
    }
    code
}

fn exit_code(status: WaitStatus) -> i32 {
    match status.terminating_signal() {
        Some(signal) => 128 + signal,
        None => status.exit_status().unwrap_or(0),
    }
}
