//! All sessions: those that run, and those that have ended.
//!
//! The root of moat is the only database: labels of a run say whose session it is. So the server can be
//! killed at any moment, and its next start finds all sessions.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moat::root::RunInfo;
use moat::{Manager, Run, RunId, RunSpec, ShutdownMode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use crate::clients::{Client, Clients};
use crate::problem::Problem;
use crate::session::Session;

/// The label of a session: the name of its client.
pub const CLIENT_LABEL: &str = "sandbox.client";
/// The label of a session: its idle timeout in seconds.
pub const IDLE_LABEL: &str = "sandbox.idle_seconds";
/// The longest time for which a shutdown waits for the end of the commands.
const COMMANDS_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct Sandbox {
    pub manager: Manager,
    pub clients: Clients,
    /// The directories of sessions that are local processes.
    work: PathBuf,
    live: Mutex<HashMap<RunId, Arc<Session>>>,
}

impl Sandbox {
    /// Takes over the sessions of an earlier server.
    pub async fn open(
        manager: Manager,
        clients: Clients,
        work: PathBuf,
    ) -> moat::Result<Arc<Self>> {
        let sandbox = Arc::new(Self {
            manager,
            clients,
            work,
            live: Mutex::default(),
        });
        for run in sandbox.manager.wait_recovery().await? {
            sandbox.take_over(run).await?;
        }
        sandbox.remove_old_directories().await;
        Ok(sandbox)
    }

    /// Removes the directories of local processes, which ended with the server that started them.
    async fn remove_old_directories(&self) {
        for entry in fs::read_dir(&self.work).into_iter().flatten().flatten() {
            let Ok(id) = entry.file_name().to_string_lossy().parse::<RunId>() else {
                continue;
            };
            // The session of another live server has an owner.
            if !self.info(&id).await.is_ok_and(|info| info.owned) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// True if sessions are local processes, whose commands are separate runs.
    pub fn is_local(&self) -> bool {
        !self.manager.runtime().capabilities().exec
    }

    async fn take_over(self: &Arc<Self>, run: Run) -> moat::Result<()> {
        let info = self.info(run.id()).await?;
        let client = label(&info, CLIENT_LABEL).and_then(|name| self.clients.by_name(name));
        match client {
            Some(client) => {
                let idle = label(&info, IDLE_LABEL).and_then(|seconds| seconds.parse().ok());
                let idle = Duration::from_secs(idle.unwrap_or(client.quota.idle_seconds));
                self.add(run, Arc::clone(client), idle, client.take_session().ok());
            }
            // A mistake in the file must end no session. Its lifetime does.
            None => eprintln!(
                "session {}: its client is not in the clients file",
                run.id()
            ),
        }
        Ok(())
    }

    /// Starts a session.
    ///
    /// A separate task starts it, so it is in the list even if the client has disconnected.
    pub async fn create(
        self: &Arc<Self>,
        client: &Arc<Client>,
        spec: RunSpec,
        idle: Duration,
    ) -> Result<Arc<Session>, Problem> {
        let place = client.take_session()?;
        let id = RunId::generate();
        let directory = self.directory(&id);
        let mut spec = spec
            .id(id)
            .label(CLIENT_LABEL, &client.name)
            .label(IDLE_LABEL, idle.as_secs().to_string());
        if let Some(directory) = &directory {
            let created = fs::create_dir_all(directory);
            created.map_err(|error| internal("create the directory of the session", &error))?;
            spec = spec.workdir(directory.to_string_lossy());
        }
        let (sandbox, client) = (Arc::clone(self), Arc::clone(client));
        let started = tokio::spawn(async move {
            match sandbox.manager.start(spec).await {
                Ok(run) => Ok(sandbox.add(run, client, idle, Some(place))),
                Err(error) => {
                    directory.map(fs::remove_dir_all);
                    Err(error)
                }
            }
        });
        match started.await {
            Ok(started) => Ok(started?),
            Err(error) => Err(internal("start the session", &error)),
        }
    }

    fn add(
        self: &Arc<Self>,
        run: Run,
        client: Arc<Client>,
        idle: Duration,
        place: Option<OwnedSemaphorePermit>,
    ) -> Arc<Session> {
        let id = run.id().clone();
        let directory = self.directory(&id);
        let session = Arc::new(Session::new(run, client, idle, directory));
        self.live().insert(id.clone(), Arc::clone(&session));
        let (sandbox, supervised) = (Arc::clone(self), Arc::clone(&session));
        tokio::spawn(async move {
            supervised.supervise().await;
            sandbox.live().remove(&id);
            supervised.remove_directory();
            // A slow reader of a command may keep the session longer.
            drop(place);
        });
        session
    }

    /// Finds a client's session, running or ended.
    pub async fn find(&self, client: &Client, id: &str) -> Result<RunInfo, Problem> {
        let run: RunId = id.parse().map_err(|_| Problem::no_session(id))?;
        let info = self.info(&run).await.map_err(|error| match error {
            moat::Error::NoSuchRun { .. } => Problem::no_session(id),
            error => error.into(),
        })?;
        match label(&info, CLIENT_LABEL) {
            Some(name) if name == client.name => Ok(info),
            _ => Err(Problem::no_session(id)),
        }
    }

    /// Finds a client's running session.
    pub async fn live_session(&self, client: &Client, id: &str) -> Result<Arc<Session>, Problem> {
        let run = id.parse::<RunId>().ok();
        let session = run.and_then(|run| self.live().get(&run).cloned());
        match session {
            Some(session) if session.client.name == client.name => Ok(session),
            _ => {
                self.find(client, id).await?;
                Err(Problem::ended(id))
            }
        }
    }

    pub async fn info(&self, run: &RunId) -> moat::Result<RunInfo> {
        let (root, run) = (self.manager.root().clone(), run.clone());
        on_disk(move || root.info(&run)).await
    }

    /// Kills all commands, and waits until they have ended.
    pub async fn end_commands(&self) {
        let sessions: Vec<_> = self.live().values().cloned().collect();
        let deadline = Instant::now() + COMMANDS_TIMEOUT;
        while sessions
            .iter()
            .filter(|session| session.kill_commands())
            .count()
            > 0
            && Instant::now() < deadline
        {
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Ends the server. Sessions continue if `leave` is true, unless they are local processes.
    pub async fn shutdown(&self, leave: bool) {
        let mode = match leave {
            true => ShutdownMode::Leave,
            false => ShutdownMode::Stop,
        };
        self.manager.shutdown(mode).await;
    }

    /// The working directory of a session whose commands are local processes.
    fn directory(&self, id: &RunId) -> Option<PathBuf> {
        self.is_local().then(|| self.work.join(id.as_str()))
    }

    fn live(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Session>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls a function that reads files.
pub async fn on_disk<T: Send + 'static>(
    read: impl FnOnce() -> moat::Result<T> + Send + 'static,
) -> moat::Result<T> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

pub fn label<'a>(info: &'a RunInfo, name: &str) -> Option<&'a str> {
    let record = info.record.as_ref()?;
    record.settings.labels.get(name).map(String::as_str)
}

fn internal(operation: &str, error: &dyn std::fmt::Display) -> Problem {
    Problem::internal(format!("cannot {operation}: {error}"))
}
