//! A live session: its run, its commands, and the time since it was last used.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use moat::tokio_util::sync::CancellationToken;
use moat::{Manager, Run};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::clients::Client;
use crate::command::{Command, CommandSpec};
use crate::problem::Problem;

/// The label of a command's run: the id of its session.
pub const SESSION_LABEL: &str = "sandbox.session";

/// The users of a session, and the time of the last change.
#[derive(Debug, Clone, Copy)]
struct Use {
    users: usize,
    since: Instant,
    /// True once the server stops the session. It has no new users then.
    is_ending: bool,
}

/// A session whose container runs.
#[derive(Debug)]
pub struct Session {
    pub run: Run,
    pub client: Arc<Client>,
    idle_timeout: Duration,
    /// The working directory of commands, if they are local processes.
    directory: Option<PathBuf>,
    usage: watch::Sender<Use>,
    /// The tokens of the running commands, by their ids.
    commands: Mutex<HashMap<String, CancellationToken>>,
    /// Ends all commands.
    end: CancellationToken,
}

impl Session {
    pub fn new(
        run: Run,
        client: Arc<Client>,
        idle_timeout: Duration,
        directory: Option<PathBuf>,
    ) -> Self {
        let now = Use {
            users: 0,
            since: Instant::now(),
            is_ending: false,
        };
        Self {
            run,
            client,
            idle_timeout,
            directory,
            usage: watch::Sender::new(now),
            commands: Mutex::default(),
            end: CancellationToken::new(),
        }
    }

    /// Marks the session as used until the guard is dropped.
    ///
    /// # Errors
    ///
    /// A problem if the session has ended, or is being stopped.
    pub fn begin_use(self: &Arc<Self>) -> Result<InUse, Problem> {
        let begun = self.usage.send_if_modified(|usage| {
            usage.users += usize::from(!usage.is_ending);
            !usage.is_ending
        });
        match begun {
            true => Ok(InUse(Arc::clone(self))),
            false => Err(Problem::ended(self.run.id().as_str())),
        }
    }

    /// Refuses new users. The caller stops the session.
    pub fn begin_end(&self) {
        self.usage.send_modify(|usage| usage.is_ending = true);
    }

    /// Refuses new users if there is no user.
    fn begin_end_if_unused(&self) -> bool {
        self.usage.send_if_modified(|usage| {
            usage.is_ending |= usage.users == 0;
            usage.is_ending
        })
    }

    /// Waits until the session has ended, and stops it once it is idle.
    pub async fn supervise(&self) {
        let idle = CancellationToken::new();
        self.run.stop_when(idle.clone());
        tokio::select! {
            _ = self.run.wait() => {}
            () = self.until_idle() => {
                idle.cancel();
                let _ = self.run.wait().await;
            }
        }
        self.begin_end();
        self.end.cancel();
    }

    async fn until_idle(&self) {
        let mut usage = self.usage.subscribe();
        loop {
            let Use { users, since, .. } = *usage.borrow_and_update();
            tokio::select! {
                () = sleep_until(since + self.idle_timeout), if users == 0 => {
                    if self.begin_end_if_unused() {
                        return;
                    }
                }
                changed = usage.changed() => if changed.is_err() { return },
            }
        }
    }

    /// A token that ends a command, and that the end of the session cancels.
    pub fn command_token(&self) -> CancellationToken {
        self.end.child_token()
    }

    /// Starts a command, which is listed until [`end_command`](Self::end_command).
    pub async fn start(&self, manager: &Manager, spec: CommandSpec) -> Result<Command, Problem> {
        let cancel = spec.cancel.clone();
        let command = match &self.directory {
            None => match self.run.exec(spec.exec()).await {
                Ok(exec) => Command::Exec(exec),
                // It ended during the call.
                Err(_) if self.has_ended() => return Err(Problem::ended(self.run.id().as_str())),
                Err(error) => return Err(error.into()),
            },
            Some(directory) => {
                let spec = spec
                    .run(directory)
                    .label(SESSION_LABEL, self.run.id().as_str());
                Command::Run(manager.start(spec).await?)
            }
        };
        self.commands().insert(command.id(), cancel);
        Ok(command)
    }

    fn has_ended(&self) -> bool {
        self.run.wait_exit().now_or_never().is_some()
    }

    pub fn end_command(&self, id: &str) {
        self.commands().remove(id);
    }

    /// Kills a command. Returns false if no such command runs.
    pub fn kill_command(&self, id: &str) -> bool {
        let commands = self.commands();
        commands.get(id).map(CancellationToken::cancel).is_some()
    }

    /// Kills all commands. Returns false if no command runs.
    pub fn kill_commands(&self) -> bool {
        self.end.cancel();
        !self.commands().is_empty()
    }

    pub fn remove_directory(&self) {
        if let Some(directory) = &self.directory {
            let _ = std::fs::remove_dir_all(directory);
        }
    }

    fn commands(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The use of a session, which is not idle while it exists.
#[derive(Debug)]
pub struct InUse(Arc<Session>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.usage.send_modify(|usage| {
            usage.users -= 1;
            usage.since = Instant::now();
        });
    }
}
