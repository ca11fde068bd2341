//! Sessions: create, list, inspect, end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use moat::outcome::StopCause;
use moat::root::RunInfo;
use moat::spec::LimitAction;
use moat::state::RunStatus;
use moat::timestamp::Timestamp;
use moat::{RunSpec, Verdict};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::auth::{Caller, Segments};
use crate::clients::Quota;
use crate::problem::Problem;
use crate::sandbox::{CLIENT_LABEL, IDLE_LABEL, Sandbox, label};

/// The main process of a session that names no command.
const WAIT: [&str; 2] = ["sleep", "2147483647"];
const NO_NETWORK: &str = "none";
/// The time for which a session may react to SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// A new session. What is absent has the client's quota as its value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSession {
    /// The image. Absent for local processes.
    image: Option<String>,
    /// The main process. The session ends with it. Default: a process that waits.
    cmd: Option<Vec<String>>,
    /// The environment of the main process and of commands. Its values are in no file of the server.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The working directory.
    workdir: Option<String>,
    /// The user: `user`, `uid`, `user:group` or `uid:gid`.
    user: Option<String>,
    /// Memory in bytes.
    memory_bytes: Option<u64>,
    /// CPUs.
    cpus: Option<f64>,
    /// Processes.
    pids: Option<u64>,
    /// True if the session has a network. Default: false.
    #[serde(default)]
    network: bool,
    /// Seconds after which a session without a command, a terminal or a transfer ends.
    idle_timeout_seconds: Option<u64>,
    /// Seconds after which the session ends.
    lifetime_seconds: Option<u64>,
}

/// A session.
#[derive(Serialize, ToSchema)]
pub struct Session {
    id: String,
    image: String,
    cmd: Vec<String>,
    state: SessionState,
    #[schema(value_type = Option<String>, format = DateTime)]
    created_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
    /// The exit code of the main process.
    code: Option<i64>,
    /// Its ending: `exited`, `failed to start`, `not created`, `removed`, `lost`.
    #[schema(value_type = Option<String>)]
    ending: Option<RunStatus>,
    /// Why the server stopped it: `requested`, `cancelled` (idle), `time_limit`, `output_limit`.
    #[schema(value_type = Option<String>)]
    stopped: Option<StopCause>,
    /// The verdict of its audit file: `complete`, `lossy`, `unproven`, `gap`. Null until it is sealed.
    #[schema(value_type = Option<String>)]
    verdict: Option<Verdict>,
    network: bool,
    memory_bytes: Option<u64>,
    cpus: Option<f64>,
    pids: Option<u64>,
    idle_timeout_seconds: Option<u64>,
    lifetime_seconds: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    Starting,
    Running,
    Ended,
}

impl From<RunStatus> for SessionState {
    fn from(status: RunStatus) -> Self {
        match status {
            RunStatus::Intended | RunStatus::Created => Self::Starting,
            RunStatus::Running => Self::Running,
            _ => Self::Ended,
        }
    }
}

impl From<RunInfo> for Session {
    fn from(info: RunInfo) -> Self {
        let state = SessionState::from(info.status);
        let idle = label(&info, IDLE_LABEL).and_then(|seconds| seconds.parse().ok());
        let created_at = info.record.as_ref().map(|record| record.created);
        let settings = info
            .record
            .map(|record| record.settings)
            .unwrap_or_default();
        Self {
            id: info.run.to_string(),
            image: settings.image,
            cmd: settings.cmd,
            state,
            created_at,
            started_at: info.started_at,
            ended_at: info.ended_at,
            code: info.seal.as_ref().and_then(|seal| seal.exit.code()),
            ending: (state == SessionState::Ended).then_some(info.status),
            stopped: info.stopped,
            verdict: info.seal.map(|seal| seal.verdict),
            network: settings.network.as_deref() != Some(NO_NETWORK),
            memory_bytes: settings.memory,
            cpus: settings.cpus,
            pids: settings.pids_limit,
            idle_timeout_seconds: idle,
            lifetime_seconds: settings.time_limit.map(|limit| limit.as_secs()),
        }
    }
}

/// The sessions of a client.
#[derive(Serialize, ToSchema)]
pub struct Sessions {
    sessions: Vec<Session>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only sessions in this state.
    state: Option<SessionState>,
}

/// Creates a session.
#[utoipa::path(post, path = "/sessions", request_body = NewSession, responses(
    (status = 201, body = Session, headers(("Location" = String))),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 429, body = Problem, content_type = "application/problem+json", description = "the quota of sessions"),
))]
pub async fn create(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    body: Result<Json<NewSession>, JsonRejection>,
) -> Result<impl IntoResponse, Problem> {
    let Json(new) = body?;
    if new.cmd.as_ref().is_some_and(Vec::is_empty) {
        return Err(Problem::field("cmd", "it is empty"));
    }
    let quota = &client.quota;
    let idle = within(
        "idle_timeout_seconds",
        new.idle_timeout_seconds,
        quota.idle_seconds,
    )?;
    let spec = match sandbox.is_local() {
        true => new.local(quota)?,
        false => new.container(quota)?,
    };
    let session = sandbox
        .create(&client, spec, Duration::from_secs(idle))
        .await?;
    let session = Session::from(sandbox.info(session.run.id()).await?);
    let location = format!("/sessions/{}", session.id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(session),
    ))
}

/// Lists the client's sessions, the newest first.
#[utoipa::path(get, path = "/sessions", params(Filter), responses((status = 200, body = Sessions)))]
pub async fn list(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<Sessions>, Problem> {
    let Query(filter) = filter?;
    let is_wanted = |info: &RunInfo| {
        let state = SessionState::from(info.status);
        label(info, CLIENT_LABEL) == Some(client.name.as_str())
            && filter.state.is_none_or(|wanted| wanted == state)
    };
    let mut runs = sandbox.manager.list().await?;
    runs.retain(is_wanted);
    // Ids begin with the time of their creation.
    runs.sort_by(|a, b| b.run.as_str().cmp(a.run.as_str()));
    let sessions = runs.into_iter().map(Session::from).collect();
    Ok(Json(Sessions { sessions }))
}

/// Describes a session.
#[utoipa::path(get, path = "/sessions/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = Session),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
pub async fn inspect(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    Segments(id): Segments<String>,
) -> Result<Json<Session>, Problem> {
    Ok(Json(sandbox.find(&client, &id).await?.into()))
}

/// Ends a session, and waits until its audit file is sealed.
///
/// The audit files stay. Success also if the session had ended.
#[utoipa::path(delete, path = "/sessions/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = Session),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
pub async fn end(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    Segments(id): Segments<String>,
) -> Result<Json<Session>, Problem> {
    let run = sandbox.find(&client, &id).await?.run;
    if let Ok(session) = sandbox.live_session(&client, &id).await {
        session.begin_end();
        match session.run.stop(None).await {
            Ok(_) | Err(moat::Error::Ended { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // The next request finds it ended, and a server that ends leaves nothing behind.
        session.run.wait_removed().await?;
    }
    Ok(Json(sandbox.info(&run).await?.into()))
}

impl NewSession {
    /// The spec of a container.
    fn container(self, quota: &Quota) -> Result<RunSpec, Problem> {
        let image = self.image.as_deref().filter(|image| !image.is_empty());
        let image = image.ok_or_else(|| Problem::field("image", "it is missing"))?;
        let mut spec = RunSpec::new(image)
            .cmd(
                self.cmd
                    .clone()
                    .unwrap_or_else(|| WAIT.map(String::from).to_vec()),
            )
            .detached(true)
            .init(true)
            .memory(within(
                "memory_bytes",
                self.memory_bytes,
                quota.memory_bytes,
            )?)
            .cpus(within("cpus", self.cpus, quota.cpus)?)
            .pids_limit(within("pids", self.pids, quota.pids)?)
            .security_opt("no-new-privileges")
            .cap_drop("NET_RAW")
            .cap_drop("MKNOD");
        match (self.network, quota.network) {
            (true, false) => {
                return Err(Problem::field(
                    "network",
                    "the client is not allowed to use a network",
                ));
            }
            (true, true) => {}
            (false, _) => spec = spec.network(NO_NETWORK),
        }
        if let Some(workdir) = &self.workdir {
            spec = spec.workdir(workdir);
        }
        self.common(spec, quota)
    }

    /// The spec of a local process. It has no limits on resources.
    fn local(self, quota: &Quota) -> Result<RunSpec, Problem> {
        let refused = [
            ("image", self.image.is_some()),
            ("workdir", self.workdir.is_some()),
            ("memory_bytes", self.memory_bytes.is_some()),
            ("cpus", self.cpus.is_some()),
            ("pids", self.pids.is_some()),
        ];
        if let Some((name, _)) = refused.iter().find(|(_, is_set)| *is_set) {
            return Err(Problem::field(name, "a local process has none"));
        }
        if self.network && !quota.network {
            return Err(Problem::field(
                "network",
                "the client is not allowed to use a network",
            ));
        }
        let cmd = self
            .cmd
            .clone()
            .unwrap_or_else(|| WAIT.map(String::from).to_vec());
        self.common(RunSpec::command(cmd), quota)
    }

    fn common(self, spec: RunSpec, quota: &Quota) -> Result<RunSpec, Problem> {
        let lifetime = within(
            "lifetime_seconds",
            self.lifetime_seconds,
            quota.lifetime_seconds,
        )?;
        let mut spec = spec
            .stop_grace(STOP_GRACE)
            .output_limit(quota.output_bytes, LimitAction::Stop)
            .time_limit(Duration::from_secs(lifetime));
        for (name, value) in self.env {
            spec = spec.env(name, value);
        }
        if let Some(user) = self.user {
            spec = spec.user(user);
        }
        Ok(spec)
    }
}

/// A value that a request may set, up to the client's quota. Default: the quota.
pub fn within<T>(name: &str, value: Option<T>, quota: T) -> Result<T, Problem>
where
    T: PartialOrd + Default + std::fmt::Display + Copy,
{
    let value = value.unwrap_or(quota);
    match value > T::default() && value <= quota {
        true => Ok(value),
        false => Err(Problem::field(
            name,
            format!("it must be more than 0, and at most {quota}"),
        )),
    }
}
