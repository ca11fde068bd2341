//! The guardian, which kills a process group after the death of this process.

use std::io::{self, PipeWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::Pid;

use super::output::Terminal;

/// The guardian's script.
///
/// It reads a pipe until the process at the other end dies, and then kills its process group,
/// including itself. With a terminal, it first kills every process of the terminal.
///
/// A child with a terminal leaves the group for a new session before `exec`, and its id is unknown
/// until `spawn` returns. But at each moment the child is in the group, has the terminal as its
/// standard input, or is controlled by the terminal. The guardian holds the other end of the
/// terminal, so that no hang-up detaches the child first. The search needs a Linux `/proc`. On
/// other systems, the guardian relies on the id of the session.
///
/// A terminal number is not unique: each container numbers its terminals from 0. So a number
/// counts only in a session that is known to use this terminal.
///
/// The guardian ignores signals that a process may send to its whole group (`kill -USR1 0`). Once it
/// ignores them, it prints `ready`. In `/proc/PID/stat`, the text before the last parenthesis is the
/// process's name, which can contain any character.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT PIPE ALRM TERM USR1 USR2 TSTP TTIN TTOU
echo ready >&2
exec 2>/dev/null
terminal=$1 number=$2 leader= passes=0
while read -r line; do leader=$line; done
[ -z "$leader" ] || kill -s KILL -- "-$leader"
sessions=" $leader "
while [ -n "$terminal" ] && [ $passes -lt 20 ]; do
    passes=$((passes + 1)) found=
    for stat in /proc/[0-9]*/stat; do
        pid=${stat#/proc/} pid=${pid%/stat}
        [ "$pid" != $$ ] || continue
        read -r line <"$stat" || continue
        set -- ${line##*) }
        [ "$1" != Z ] || continue
        if [ "/proc/$pid/fd/0" -ef "$terminal" ]; then
            [ "$5" != "$number" ] || sessions="$sessions $4 "
        elif [ "$3" != $$ ]; then
            [ "$5" = "$number" ] || continue
            case $sessions in *" $4 "*) ;; *) continue ;; esac
        fi
        kill -s KILL "$pid" && found=yes
    done
    # A process that is forked during one pass is found by the next.
    [ -n "$found" ] || [ $passes -lt 2 ] || break
done
kill -s KILL 0
"#;

/// The leader of a process group, which the child joins.
///
/// Until the guardian is reaped, the id of the group is not reused, so the group can be killed.
pub(super) struct Guardian {
    child: Child,
    /// The pipe that the guardian reads. It closes on drop, or when this process dies.
    pipe: PipeWriter,
}

impl Guardian {
    /// Starts a guardian, and waits until it ignores signals.
    pub(super) fn spawn(terminal: Option<&Terminal>) -> io::Result<Self> {
        let (stdin, pipe) = io::pipe()?;
        let (mut ready, ready_writer) = io::pipe()?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", SCRIPT, "moat-guardian"])
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(ready_writer);
        if let Some(Terminal { path, number, pty }) = terminal {
            command.arg(path).arg(number.to_string());
            command.stdout(pty.try_clone()?);
        }
        let guardian = Self {
            child: command.spawn()?,
            pipe,
        };
        drop(command);
        if let Err(error) = ready.read_exact(&mut [0]) {
            guardian.end();
            return Err(error);
        }
        Ok(guardian)
    }

    /// Returns the process group of the guardian.
    pub(super) fn group(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends the guardian the id of the terminal's session leader.
    pub(super) fn watch(&mut self, leader: Pid) -> io::Result<()> {
        writeln!(self.pipe, "{}", leader.as_raw_nonzero())
    }

    /// Kills the remaining processes of the group, and reaps the guardian.
    pub(super) fn end(mut self) {
        let _ = rustix::process::kill_process_group(self.group(), rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }
}
