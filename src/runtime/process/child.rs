//! One child process: from its command to its exit status.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};

use super::guardian::Guardian;
use super::output::Ends;
use crate::error::RuntimeError;
use crate::spec::{RunSpec, Stdin};

const OPERATION: &str = "start the process";
/// How often a session is looked through for what came up meanwhile.
const SWEEPS: usize = 10;

/// What to start. It holds secrets.
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
        for (name, value) in spec.environment() {
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
}

/// A process that was started, and has not been reaped.
pub(super) struct Child {
    child: std::process::Child,
    guardian: Guardian,
    /// Held open, and silent.
    _stdin: Option<io::PipeWriter>,
    living: Living,
}

/// What can be signalled of a process until it is reaped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Living {
    first: Pid,
    /// The group of its guardian. One with a terminal is in a session of its own instead.
    group: Pid,
    tty: bool,
}

impl Child {
    /// Starts it. It is in the guardian's group before it is itself, so that nothing that it ever
    /// does goes unguarded.
    pub(super) fn spawn(plan: &Plan, ends: Ends) -> Result<Self, RuntimeError> {
        let refused = |reason: String| RuntimeError::Rejected {
            operation: OPERATION,
            reason,
        };
        let Some((program, arguments)) = plan.argv.split_first() else {
            return Err(refused("there is no command".into()));
        };
        // Otherwise it could not be told from a missing program.
        if let Some(path) = &plan.workdir
            && let Err(error) = std::fs::read_dir(path)
            && error.kind() != io::ErrorKind::PermissionDenied
        {
            let path = path.display();
            return Err(refused(format!("its working directory {path}: {error}")));
        }
        let mut guardian = Guardian::spawn(ends.terminal())
            .map_err(|error| refused(format!("/bin/sh, which guards it: {error}")))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(&plan.env)
            .process_group(guardian.group().as_raw_nonzero().get());
        if let Some(path) = &plan.workdir {
            command.current_dir(path);
        }
        let spawned = match ends {
            Ends::Pipes(stdout, stderr) => {
                command.stdout(stdout).stderr(stderr);
                with_stdin(command, plan.stdin)
            }
            Ends::Terminal(pts, _) => pty_process::blocking::Command::from(command)
                .spawn(pts)
                .map(|child| (child, None))
                .map_err(|error| match error {
                    pty_process::Error::Io(error) => error,
                    error => io::Error::other(error),
                }),
        };
        let (child, stdin) = match spawned {
            Ok(spawned) => spawned,
            Err(error) => {
                guardian.end();
                return Err(refused(format!("cannot run {program:?}: {error}")));
            }
        };
        let first = Pid::from_child(&child);
        let group = guardian.group();
        if plan.tty {
            // A guardian that is gone has taken nothing along: the session is its own.
            let _ = guardian.watch(first);
        }
        Ok(Self {
            child,
            guardian,
            _stdin: stdin,
            living: Living {
                first,
                group,
                tty: plan.tty,
            },
        })
    }

    pub(super) fn living(&self) -> Living {
        self.living
    }

    /// Waits until the first process has ended, and does not reap it: its id stays its own.
    pub(super) fn wait(&self) {
        let id = WaitId::Pid(self.living.first);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = waitid(id.clone(), options) {}
    }

    /// Kills what the first process has left, and reaps it. `None`: something else in this process
    /// has reaped it, and knows its status.
    pub(super) fn reap(mut self) -> Option<ExitStatus> {
        self.living.kill();
        let status = self.child.wait().ok();
        self.guardian.end();
        status
    }
}

fn with_stdin(
    mut command: Command,
    stdin: Stdin,
) -> io::Result<(std::process::Child, Option<io::PipeWriter>)> {
    match stdin {
        Stdin::None => Ok((command.stdin(Stdio::null()).spawn()?, None)),
        // `check` refuses a pipe, whose end nobody could send.
        Stdin::Pipe | Stdin::Open => {
            let (read, write) = io::pipe()?;
            Ok((command.stdin(read).spawn()?, Some(write)))
        }
    }
}

impl Living {
    /// Sends a signal to the first process; SIGKILL to all.
    pub(super) fn signal(self, signal: Signal) -> io::Result<()> {
        if signal == Signal::KILL {
            self.kill();
            return Ok(());
        }
        Ok(kill_process(self.first, signal)?)
    }

    /// Kills all: the group, and the session of one with a terminal.
    pub(super) fn kill(self) {
        if self.tty {
            let _ = kill_process_group(self.first, Signal::KILL);
            self.kill_session();
        }
        let _ = kill_process_group(self.group, Signal::KILL);
    }

    /// Kills what is in the session and not in its leader's group: the jobs of a shell.
    fn kill_session(self) {
        for _ in 0..SWEEPS {
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

/// Whether a process is in the session of `leader`, and has not ended.
///
/// `getsid` is none for those of another namespace, which rustix does not foresee.
fn is_alive_in(id: Pid, leader: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", id.as_raw_nonzero()));
    // Before that is the process's name, which can hold anything.
    let Some((_, fields)) = stat.as_deref().unwrap_or_default().rsplit_once(") ") else {
        return false;
    };
    let mut fields = fields.split(' ');
    let ended = fields.next().is_none_or(|state| matches!(state, "Z" | "X"));
    let session = fields.nth(2).and_then(|session| session.parse().ok());
    !ended && session == Some(leader.as_raw_nonzero().get())
}
