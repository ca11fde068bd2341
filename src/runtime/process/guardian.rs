//! What kills a process group when this process is no more.

use std::io;
use std::io::{PipeWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::Pid;

use super::output::Terminal;

/// It waits until the pipe ends, which is when the process at its other end has died, and kills its
/// own group, itself with it; before that, where it has a terminal, all that belongs to that.
///
/// A child with a terminal leaves the group for a session of its own before it is itself, and its
/// id is not known up to then. But at each moment it is in the group, or has the terminal as its
/// standard input, or is controlled by it. The guardian holds the terminal's other end, so that no
/// hang-up takes that away first. `/proc` is Linux's: elsewhere the id of the session has to do.
///
/// A terminal's number is not its own: each container counts its terminals from 0. So it counts
/// only together with a session that is known to be one of this terminal.
///
/// It ignores what its group may send to itself (`kill -USR1 0`), and says when it does. In `stat`, what comes before the last parenthesis is the process's name, and can be anything.
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
    # What was forked in the middle of one pass is found by the next.
    [ -n "$found" ] || [ $passes -lt 2 ] || break
done
kill -s KILL 0
"#;

/// The leader of a process group, which is guarded from its first process on: they join it.
///
/// Until it is reaped its id is that of no other group, so that it can be used to kill.
pub(super) struct Guardian {
    child: Child,
    /// It ends with this process, or when this is dropped.
    pipe: PipeWriter,
}

impl Guardian {
    pub(super) fn spawn(terminal: Option<&Terminal>) -> io::Result<Self> {
        let (ours, pipe) = io::pipe()?;
        let (mut ready, says_so) = io::pipe()?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", SCRIPT, "moat-guardian"])
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(ours)
            .stdout(Stdio::null())
            .stderr(says_so);
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

    /// The group: that of the guardian.
    pub(super) fn group(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Tells it who leads the terminal's session.
    pub(super) fn watch(&mut self, leader: Pid) -> io::Result<()> {
        writeln!(self.pipe, "{}", leader.as_raw_nonzero())
    }

    /// Kills what is left of the group, the guardian with it, and reaps that.
    pub(super) fn end(mut self) {
        let _ = rustix::process::kill_process_group(self.group(), rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }
}
