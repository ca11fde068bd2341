//! A child process, from its command to its exit status.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};

use super::dispositions;
use super::guardian::Guardian;
use super::output::ChildEnds;
use crate::error::RuntimeError;
use crate::spec::{RunSpec, RuntimeView, Stdin};

const OPERATION: &str = "start the process";
/// Maximum number of scans of a session.
///
/// A process that is forked during one scan is found by the next.
const MAX_SESSION_SCANS: usize = 10;

/// The settings of a process to start. The environment may hold secrets.
pub(super) struct Plan {
    argv: Vec<String>,
    env: BTreeMap<OsString, OsString>,
    workdir: Option<PathBuf>,
    stdin: Stdin,
    tty: bool,
}

impl Plan {
    pub(super) fn new(spec: &RunSpec) -> Self {
        let settings = spec.settings();
        let entrypoint = settings.entrypoint.iter().flatten();
        let mut env = BTreeMap::new();
        for name in ["PATH", "HOME"] {
            if let Some(value) = std::env::var_os(name) {
                env.insert(name.into(), value);
            }
        }
        if settings.tty {
            env.insert("TERM".into(), "xterm".into());
        }
        for (name, value) in RuntimeView::new(spec).environment() {
            env.insert(name.into(), value.into());
        }
        Self {
            argv: entrypoint.chain(&settings.cmd).cloned().collect(),
            env,
            workdir: settings.workdir.as_ref().map(PathBuf::from),
            stdin: settings.stdin,
            tty: settings.tty,
        }
    }

    pub(super) fn tty(&self) -> bool {
        self.tty
    }

    /// Fails if the working directory cannot be opened.
    ///
    /// `spawn` reports a missing directory and a missing program with the same error. A directory
    /// without read permission is accepted, because a process can still start in it.
    fn check_workdir(&self) -> Result<(), RuntimeError> {
        match self.workdir.as_ref().map(|path| (path, path.read_dir())) {
            Some((path, Err(error))) if error.kind() != io::ErrorKind::PermissionDenied => {
                let path = path.display();
                Err(rejected(format!(
                    "cannot open the working directory {path}: {error}"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Builds the command of a child that joins the process group `group`.
    fn command(&self, group: Pid) -> Result<Command, RuntimeError> {
        let Some((program, arguments)) = self.argv.split_first() else {
            return Err(rejected("the command is empty".into()));
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(&self.env)
            .process_group(group.as_raw_nonzero().get());
        if let Some(path) = &self.workdir {
            command.current_dir(path);
        }
        dispositions::reset_mask(&mut command)
            .map_err(|error| rejected(format!("cannot reset the signal mask: {error}")))?;
        Ok(command)
    }
}

/// A started process that is not reaped yet.
pub(super) struct Child {
    child: std::process::Child,
    guardian: Guardian,
    /// The write end of the standard input, held open and never written.
    _stdin: Option<io::PipeWriter>,
    live: LiveChild,
}

/// The identifiers by which a process is signaled until it is reaped.
#[derive(Debug, Clone, Copy)]
pub(super) struct LiveChild {
    first: Pid,
    /// The guardian's process group.
    ///
    /// A child with a terminal leads a separate session instead.
    group: Pid,
    tty: bool,
}

impl Child {
    /// Starts the process.
    ///
    /// The child joins the guardian's process group before `exec`, so it is guarded from its first
    /// instruction on.
    pub(super) fn spawn(plan: &Plan, ends: ChildEnds) -> Result<Self, RuntimeError> {
        plan.check_workdir()?;
        let mut guardian = Guardian::spawn(ends.terminal())
            .map_err(|error| rejected(format!("cannot start the guardian /bin/sh: {error}")))?;
        let spawned = plan
            .command(guardian.group())
            .and_then(|command| spawn_with(command, plan, ends));
        let (child, stdin) = match spawned {
            Ok(spawned) => spawned,
            Err(error) => {
                guardian.end();
                return Err(error);
            }
        };
        let first = Pid::from_child(&child);
        let group = guardian.group();
        if plan.tty {
            // The write fails only if the guardian has died. The child then runs unguarded.
            let _ = guardian.watch(first);
        }
        Ok(Self {
            child,
            guardian,
            _stdin: stdin,
            live: LiveChild {
                first,
                group,
                tty: plan.tty,
            },
        })
    }

    pub(super) fn live(&self) -> LiveChild {
        self.live
    }

    /// Waits until the first process has exited, without reaping it.
    ///
    /// Until it is reaped, its id is not reused.
    pub(super) fn wait(&self) {
        let id = WaitId::Pid(self.live.first);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = waitid(id.clone(), options) {}
    }

    /// Kills the remaining processes and reaps the first one.
    ///
    /// Returns `None` if other code in this process has already reaped it.
    pub(super) fn reap(mut self) -> Option<ExitStatus> {
        self.live.kill();
        let status = self.child.wait().ok();
        self.guardian.end();
        status
    }
}

fn rejected(reason: String) -> RuntimeError {
    RuntimeError::Rejected {
        operation: OPERATION,
        reason,
    }
}

/// Spawns the command with its output on `ends`.
fn spawn_with(
    mut command: Command,
    plan: &Plan,
    ends: ChildEnds,
) -> Result<(std::process::Child, Option<io::PipeWriter>), RuntimeError> {
    let program = command.get_program().to_owned();
    let spawned = match ends {
        ChildEnds::Pipes(stdout, stderr) => {
            command.stdout(stdout).stderr(stderr);
            spawn_with_stdin(command, plan.stdin)
        }
        ChildEnds::Terminal(pts, _) => pty_process::blocking::Command::from(command)
            .spawn(pts)
            .map(|child| (child, None))
            .map_err(|error| match error {
                pty_process::Error::Io(error) => error,
                error => io::Error::other(error),
            }),
    };
    spawned.map_err(|error| rejected(format!("cannot run {program:?}: {error}")))
}

fn spawn_with_stdin(
    mut command: Command,
    stdin: Stdin,
) -> io::Result<(std::process::Child, Option<io::PipeWriter>)> {
    match stdin {
        Stdin::None => Ok((command.stdin(Stdio::null()).spawn()?, None)),
        // `check` refuses `Stdin::Pipe`.
        Stdin::Pipe | Stdin::Open => {
            let (read, write) = io::pipe()?;
            Ok((command.stdin(read).spawn()?, Some(write)))
        }
    }
}

impl LiveChild {
    /// Sends a signal to the first process, or SIGKILL to all processes.
    pub(super) fn signal(self, signal: Signal) -> io::Result<()> {
        if signal == Signal::KILL {
            self.kill();
            return Ok(());
        }
        Ok(kill_process(self.first, signal)?)
    }

    /// Kills the process group and, with a terminal, the session.
    pub(super) fn kill(self) {
        if self.tty {
            let _ = kill_process_group(self.first, Signal::KILL);
            self.kill_session();
        }
        let _ = kill_process_group(self.group, Signal::KILL);
    }

    /// Kills the processes of the session outside the leader's group.
    ///
    /// The jobs of a shell are such processes.
    fn kill_session(self) {
        for _ in 0..MAX_SESSION_SCANS {
            let Ok(processes) = std::fs::read_dir("/proc") else {
                return;
            };
            let mut found = false;
            for entry in processes.flatten() {
                let id = entry.file_name().to_str().and_then(|id| id.parse().ok());
                if let Some(id) = id.and_then(Pid::from_raw)
                    && id != self.first
                    && is_alive_in(id, self.first)
                {
                    found |= kill_process(id, Signal::KILL).is_ok();
                }
            }
            if !found {
                return;
            }
        }
    }
}

/// Returns true if a process is in the session of `leader` and has not exited.
///
/// `getsid` returns 0 for a session of another namespace, which rustix does not expect.
fn is_alive_in(id: Pid, leader: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", id.as_raw_nonzero()));
    // The field before the state is the process's name, which can contain any character.
    let Some((_, fields)) = stat.as_deref().unwrap_or_default().rsplit_once(") ") else {
        return false;
    };
    let mut fields = fields.split(' ');
    let exited = fields.next().is_none_or(|state| matches!(state, "Z" | "X"));
    let session = fields.nth(2).and_then(|session| session.parse().ok());
    !exited && session == Some(leader.as_raw_nonzero().get())
}
