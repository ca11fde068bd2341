//! Killing an exec and the processes that it started.
//!
//! The engine has no call for this. A second exec with the same user runs a script of the container's
//! own shell. The script kills all processes that have inherited the marker of the exec in their
//! environment, and all processes of a session that a marked process leads. It uses only what is
//! built into a shell, so the container needs `/bin/sh` and `/proc`, and no other program.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, sleep};

use super::id_and_marker;
use crate::error::RuntimeError;
use crate::runtime::docker::client::Client;
use crate::runtime::{ExecId, StartedExec};
use crate::spec::{ContainerId, ExecSpec};

/// The variable that marks the processes of an exec.
pub(super) const MARKER: &str = "MOAT_EXEC";

const OPERATION: &str = "kill the exec";

/// Longest time for which the script is repeated while the exec is still alive.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the engine to report the end of an exec whose container ends.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the engine to report the end of an exec whose processes are all dead.
///
/// Then the script is repeated. It finds no process if the exec has only begun.
const REPEAT_AFTER: Duration = Duration::from_millis(500);
/// Pause before the script is repeated, and between two inspections of a killed exec.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Longest output of the script that an error quotes, in bytes.
const MAX_REASON_BYTES: usize = 1 << 10;

/// Scans until no marked process is left. `read` skips the NUL bytes between variables.
///
/// The fields after the name in `stat` are the state, the parent, the group and the session. A
/// process that has ended has no environment.
///
/// Only a session that a marked process leads is killed: all of its members descend from that
/// process. The session of a marked process that does not lead it may be older than the exec. It is
/// 0 if its leader is outside of the container.
///
/// Exit code 1: a process is still alive after the last round.
const SCRIPT: &str = r#"
marker="MOAT_EXEC=$1"
is_marked() {
    line=
    while read -r line || [ -n "$line" ]; do
        case $line in *"$marker"*) return 0;; esac
    done 2>/dev/null </proc/"$1"/environ
    return 1
}
session_of() {
    session=
    stat=
    read -r stat 2>/dev/null </proc/"$1"/stat || return
    stat=${stat##*) }
    set -- $stat
    case $1 in Z|X) ;; *) session=$4;; esac
}
sessions=" "
round=0
while [ $round -lt 200 ]; do
    found=
    for dir in /proc/[0-9]*; do
        process=${dir#/proc/}
        session_of "$process"
        [ -n "$session" ] || continue
        case $sessions in
            *" $session "*) ;;
            *)
                is_marked "$process" || continue
                [ "$session" != "$process" ] || sessions="$sessions$session "
                ;;
        esac
        kill -KILL "$process" 2>/dev/null
        found=1
    done
    [ -n "$found" ] || exit 0
    round=$((round + 1))
done
exit 1
"#;

impl Client {
    pub(in crate::runtime::docker) async fn kill_exec(
        &self,
        container: &ContainerId,
        exec: &ExecId,
    ) -> Result<(), RuntimeError> {
        let (_, marker) = id_and_marker(exec);
        if marker.is_empty() {
            return Err(rejected("it has no marker"));
        }
        let user = match self.exec_user(exec).await {
            // The engine forgets execs that have ended.
            Err(error) if error.is_not_found() => return Ok(()),
            user => user?,
        };
        let deadline = Instant::now() + KILL_TIMEOUT;
        loop {
            match self.kill_marked(container, &user, marker).await {
                Ok(false) => return Err(rejected("a process of the exec is still alive")),
                Ok(true) if self.ends(exec, REPEAT_AFTER).await? => return Ok(()),
                // A process that does not run its program yet has no marker.
                Ok(true) if Instant::now() < deadline => {}
                Ok(true) => {
                    return Err(rejected(
                        "its process has another user, or has cleared its environment",
                    ));
                }
                Err(error @ RuntimeError::Unsupported { .. }) => return Err(error),
                // No shell starts in a container that ends, and the exec ends with it.
                Err(error) if error.is_definitive() && self.ends(exec, END_TIMEOUT).await? => {
                    return Ok(());
                }
                // The container is paused.
                Err(RuntimeError::Conflict { reason, .. }) => {
                    return Err(RuntimeError::Conflict {
                        operation: OPERATION,
                        reason,
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Does the same as [`repeat_script`](Self::repeat_script), within the timeout of a call.
    async fn kill_marked(
        &self,
        container: &ContainerId,
        user: &str,
        marker: &str,
    ) -> Result<bool, RuntimeError> {
        self.within_timeout(OPERATION, self.repeat_script(container, user, marker))
            .await
    }

    /// Repeats the script until no marked process is alive. Returns false if one stays alive.
    async fn repeat_script(
        &self,
        container: &ContainerId,
        user: &str,
        marker: &str,
    ) -> Result<bool, RuntimeError> {
        let mut spec = ExecSpec::new(["/bin/sh", "-c", SCRIPT, "sh", marker]).workdir("/");
        if !user.is_empty() {
            spec = spec.user(user);
        }
        let deadline = Instant::now() + KILL_TIMEOUT;
        loop {
            let (code, output) = match self.run_script(container, &spec).await {
                Err(RuntimeError::Rejected { reason, .. }) => return Err(no_shell(&reason)),
                ended => ended?,
            };
            match code {
                Some(0) => return Ok(true),
                Some(1) if Instant::now() < deadline => sleep(POLL_INTERVAL).await,
                Some(1) => return Ok(false),
                // The codes of engines for a program that cannot be run.
                Some(125..=127) => return Err(no_shell(&output)),
                _ => {
                    return Err(RuntimeError::Conflict {
                        operation: OPERATION,
                        reason: "the shell that kills it was killed".into(),
                    });
                }
            }
        }
    }

    /// Runs the script, and returns its exit code and the beginning of its output.
    async fn run_script(
        &self,
        container: &ContainerId,
        spec: &ExecSpec,
    ) -> Result<(Option<i64>, String), RuntimeError> {
        let script = self.start_marked_exec(container, spec, "").await?;
        let StartedExec { id, mut output, .. } = script;
        let mut message = Vec::new();
        while let Some(chunk) = output.stream.next().await.transpose()? {
            let rest = MAX_REASON_BYTES - message.len();
            message.extend(chunk.bytes.iter().take(rest));
        }
        let code = loop {
            let inspection = self.inspect_exec(&id).await?;
            if !inspection.running {
                break inspection.code;
            }
            sleep(POLL_INTERVAL).await;
        };
        Ok((code, String::from_utf8_lossy(&message).trim().to_owned()))
    }

    /// Waits until the engine reports the end of an exec. Returns false if it does not.
    async fn ends(&self, exec: &ExecId, within: Duration) -> Result<bool, RuntimeError> {
        let deadline = Instant::now() + within;
        loop {
            match self.inspect_exec(exec).await {
                Ok(inspection) if !inspection.running => return Ok(true),
                Err(error) if error.is_not_found() => return Ok(true),
                Ok(_) if Instant::now() > deadline => return Ok(false),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// Returns the error of an engine that cannot start the shell.
fn no_shell(reason: &str) -> RuntimeError {
    let text = reason.to_ascii_lowercase();
    if text.contains("no such file") || text.contains("not found") {
        return RuntimeError::Unsupported {
            runtime: "docker",
            operation: "kill an exec in a container without /bin/sh",
        };
    }
    rejected(&format!("cannot start /bin/sh: {reason}"))
}

fn rejected(reason: &str) -> RuntimeError {
    RuntimeError::Rejected {
        operation: OPERATION,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_shell_is_unsupported() {
        let missing = "exec: \"/bin/sh\": stat /bin/sh: no such file or directory: unknown";
        let unsupported = no_shell(missing);
        assert!(matches!(unsupported, RuntimeError::Unsupported { .. }));
        let refused = no_shell("fork/exec: resource temporarily unavailable");
        assert!(matches!(refused, RuntimeError::Rejected { .. }));
    }
}
