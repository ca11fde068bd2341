//! An exec in the container `main`, with frames on the standard streams.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::process::{Pid, WaitId, WaitIdOptions, getegid, geteuid, waitid};

use crate::frames::{self, decode_strings, failure, stamped};
use crate::protocol::Kind;
use crate::streams::{self, Far, Layout, Near, Window};
use crate::tally::{Tally, summary};
use crate::user;

/// The number of frames of input that wait for the process. Later signals and sizes are not
/// delayed.
const QUEUED_INPUT: usize = 64;
const READ_LEN: usize = 64 << 10;
const EPERM: i32 = 1;

/// Runs the exec that the first frame on the standard input describes. Returns the exit code.
///
/// `gate` is the collector's socket, which has the environment of the command.
pub(crate) fn run(gate: &Path) -> i32 {
    match start(gate) {
        Ok(running) => {
            running.finish();
            0
        }
        Err((operation, error)) => {
            let payload = failure(&operation, &error);
            let _ = frames::write(&mut io::stdout(), Kind::Failed, &payload);
            1
        }
    }
}

/// The operation that failed, and its error.
type Failure = (String, io::Error);

/// The description of an exec.
struct Spec {
    command: Vec<OsString>,
    env: Vec<OsString>,
    workdir: OsString,
    user: String,
    layout: Layout,
}

impl Spec {
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut strings = || {
            let strings = decode_strings(&mut bytes)?;
            Some(
                strings
                    .into_iter()
                    .map(OsString::from_vec)
                    .collect::<Vec<_>>(),
            )
        };
        let (command, env, place, features) = (strings()?, strings()?, strings()?, strings()?);
        let [workdir, user] = place.try_into().ok()?;
        let mut layout = Layout::default();
        for feature in features {
            match feature.to_str()? {
                "tty" => layout.tty = true,
                "stdin" => layout.stdin = true,
                window => layout.window = Some(Window::parse(window)?),
            }
        }
        (!command.is_empty()).then_some(Self {
            command,
            env,
            workdir,
            user: user.into_string().ok()?,
            layout,
        })
    }

    fn command(&self, gate: &Path) -> Result<(Command, Option<(u32, u32)>), Failure> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        frames::add_environment(&mut command, &container_environment(gate));
        frames::add_environment(&mut command, &self.env);
        if !self.workdir.is_empty() {
            // The error of the spawn would be taken for one of the program.
            let directory = std::fs::read_dir(&self.workdir);
            if let Err(error) = directory
                && error.kind() != io::ErrorKind::PermissionDenied
            {
                return Err((format!("chdir {}", self.workdir.to_string_lossy()), error));
            }
            command.current_dir(&self.workdir);
        }
        let user = self.user()?;
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        Ok((command, user))
    }

    /// The user to change to, if it is another one.
    fn user(&self) -> Result<Option<(u32, u32)>, Failure> {
        if self.user.is_empty() {
            return Ok(None);
        }
        let operation = || format!("user {}", self.user);
        let wanted = user::resolve(&self.user).map_err(|error| (operation(), error))?;
        if wanted == (geteuid().as_raw(), getegid().as_raw()) {
            Ok(None)
        } else if geteuid().is_root() {
            Ok(Some(wanted))
        } else {
            Err((operation(), io::Error::from_raw_os_error(EPERM)))
        }
    }
}

/// Asks the collector for the variables that the command of the container got.
fn container_environment(gate: &Path) -> Vec<OsString> {
    let ask = || {
        let mut collector = UnixStream::connect(gate)?;
        collector.write_all(&stamped(Kind::Spec, &[]))?;
        frames::read(&mut collector)
    };
    let answer = ask().ok().flatten();
    answer.map(|frame| frame.strings()).unwrap_or_default()
}

fn start(gate: &Path) -> Result<Running, Failure> {
    let fail = |operation: &str| {
        let operation = operation.to_owned();
        move |error| (operation, error)
    };
    let stdin = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(fail("read the input"))?;
    let mut stdin = File::from(stdin);
    let frame = frames::read(&mut stdin).map_err(fail("read the spec"))?;
    let spec = frame
        .filter(|frame| frame.kind == Kind::Spec)
        .and_then(|frame| Spec::decode(&frame.payload))
        .ok_or_else(|| fail("read the spec")(io::ErrorKind::InvalidData.into()))?;
    let stdout = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(fail("open the output"))?;
    let (command, user) = spec.command(gate)?;
    let (near, far) = streams::open(spec.layout).map_err(fail("make the streams"))?;
    if let Some((uid, gid)) = user {
        near.give_to(uid, gid);
    }
    let child = spawn(&near, command, &spec)?;
    drop(near);
    let answers = Arc::new(Answers(Mutex::new(Some(File::from(stdout)))));
    answers.send(Kind::Started, &[]);
    let process = Process {
        pid: Pid::from_child(&child),
        child: Mutex::new(Some(child)),
    };
    Ok(Running::new(
        spec.layout,
        far,
        stdin,
        Arc::new(process),
        answers,
    ))
}

fn spawn(near: &Near, command: Command, spec: &Spec) -> Result<Child, Failure> {
    let result = near.spawn(command);
    result.map_err(|error| (format!("exec {}", spec.command[0].to_string_lossy()), error))
}

/// The standard output. After an error, frames are dropped: the process must not block.
struct Answers(Mutex<Option<File>>);

impl Answers {
    fn send(&self, kind: Kind, payload: &[u8]) {
        let mut output = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut *output
            && file.write_all(&stamped(kind, payload)).is_err()
        {
            *output = None;
        }
    }
}

/// The process. `child` is `None` after it was reaped.
struct Process {
    pid: Pid,
    child: Mutex<Option<Child>>,
}

impl Process {
    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a signal unless the process was reaped.
    fn kill(&self, signal: i32) {
        if self.lock().is_some() {
            streams::kill(self.pid, signal);
        }
    }

    /// Waits for the end. Returns the exit code.
    fn wait(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        // Without the lock, and without reaping.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let interrupted = Some(rustix::io::Errno::INTR);
        while waitid(WaitId::Pid(self.pid), options).err() == interrupted {}
        let mut child = self.lock();
        let status = child.as_mut().and_then(|child| child.wait().ok());
        *child = None;
        let signal = status.and_then(|status| status.signal());
        let code = status.and_then(|status| status.code());
        signal.map_or(code.unwrap_or(0), |signal| 128 + signal)
    }
}

struct Running {
    outputs: Vec<(Tally, Option<OwnedFd>)>,
    answers: Arc<Answers>,
    waiter: thread::JoinHandle<i32>,
}

impl Running {
    fn new(
        layout: Layout,
        far: Far,
        stdin: File,
        process: Arc<Process>,
        answers: Arc<Answers>,
    ) -> Self {
        let mut master = None;
        let (outputs, input) = match far {
            Far::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let outputs = vec![
                    (Tally::new(Kind::Stdout), Some(stdout)),
                    (Tally::new(Kind::Stderr), Some(stderr)),
                ];
                (outputs, stdin)
            }
            Far::Terminal(fd) => {
                master = fd.try_clone().ok();
                let input = fd.try_clone().ok().filter(|_| layout.stdin);
                (vec![(Tally::new(Kind::Tty), Some(fd))], input)
            }
        };
        let (sender, receiver) = sync_channel(QUEUED_INPUT);
        thread::spawn(move || write_input(input, &receiver));
        let waiter = {
            let (process, answers) = (Arc::clone(&process), Arc::clone(&answers));
            thread::spawn(move || {
                let code = process.wait();
                answers.send(Kind::Exited, &code.to_le_bytes());
                code
            })
        };
        thread::spawn(move || read_requests(stdin, sender, master, &process));
        Self {
            outputs,
            answers,
            waiter,
        }
    }

    /// Copies the output until its end.
    fn finish(mut self) {
        let mut buffer = vec![0; READ_LEN];
        while self.outputs.iter().any(|(_, fd)| fd.is_some()) {
            let open: Vec<_> = self
                .outputs
                .iter_mut()
                .filter(|(_, fd)| fd.is_some())
                .collect();
            let fds: Vec<_> = open
                .iter()
                .filter_map(|(_, fd)| Some(fd.as_ref()?.as_fd()))
                .collect();
            let Ok(ready) = streams::wait_readable(&fds, None) else {
                break;
            };
            for ((tally, fd), _) in open.into_iter().zip(ready).filter(|(_, ready)| *ready) {
                match fd
                    .as_ref()
                    .and_then(|fd| streams::read_output(fd, &mut buffer))
                {
                    Some(0) => *fd = None,
                    Some(len) => {
                        tally.add(&buffer[..len]);
                        self.answers.send(tally.kind, &buffer[..len]);
                    }
                    None => {}
                }
            }
        }
        let code = self.waiter.join().ok();
        let text = summary(self.outputs.iter().map(|(tally, _)| tally), code);
        self.answers.send(Kind::End, text.as_bytes());
    }
}

/// Writes the input of the process until the sender is dropped, and ends it.
fn write_input(input: Option<OwnedFd>, receiver: &Receiver<Vec<u8>>) {
    let mut input = input.map(File::from);
    for bytes in receiver {
        if let Some(file) = &mut input
            && file.write_all(&bytes).is_err()
        {
            input = None;
        }
    }
}

/// Carries out the frames from the standard input. Its end without `Close` leaves the input of the
/// process open: a connection that breaks is no end.
fn read_requests(
    mut stdin: File,
    sender: SyncSender<Vec<u8>>,
    master: Option<OwnedFd>,
    process: &Process,
) {
    let mut sender = Some(sender);
    while let Ok(Some(frame)) = frames::read(&mut stdin) {
        match frame.kind {
            Kind::Data => {
                if let Some(sender) = &sender {
                    let _ = sender.send(frame.payload);
                }
            }
            Kind::Close => sender = None,
            Kind::Resize => {
                if let (Some(master), Some((cols, rows))) = (&master, frame.window()) {
                    let _ = streams::resize(master, Window { cols, rows });
                }
            }
            Kind::Signal => {
                if let Some(signal) = frame.number() {
                    process.kill(signal);
                }
            }
            _ => {}
        }
    }
    // The process ends this thread by its own end.
    loop {
        thread::park();
        std::hint::black_box(&sender);
    }
}
