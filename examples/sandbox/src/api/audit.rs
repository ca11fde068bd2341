//! The audit files of a session and its commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use moat::audit::{LogState, Verification};
use moat::root::{ExecInfo, RunInfo};
use moat::spec::RunRecord;
use moat::{RunId, Seal, Verdict};
use serde::Serialize;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use utoipa::ToSchema;

use super::auth::{Caller, Segments};
use super::jsonl;
use crate::problem::Problem;
use crate::sandbox::{Sandbox, label, on_disk};
use crate::session::SESSION_LABEL;

/// The audit file of a command.
pub struct ExecFile {
    pub id: String,
    pub audit: PathBuf,
    pub record: Option<RunRecord>,
    pub seal: Option<Seal>,
    pub problem: Option<String>,
}

/// The audit files of the commands of a session, the first one first.
pub fn exec_files(sandbox: &Sandbox, session: &RunId) -> moat::Result<Vec<ExecFile>> {
    let root = sandbox.manager.root();
    if sandbox.is_local() {
        let mut runs = root.list()?;
        runs.retain(|info| label(info, SESSION_LABEL) == Some(session.as_str()));
        let file = |info: RunInfo| ExecFile {
            id: info.run.to_string(),
            audit: root.audit(&info.run),
            record: info.record,
            seal: info.seal,
            problem: info.problem,
        };
        return Ok(runs.into_iter().map(file).collect());
    }
    let file = |info: ExecInfo| ExecFile {
        id: info.number.to_string(),
        audit: info.audit,
        record: info.record,
        seal: info.seal,
        problem: info.problem,
    };
    Ok(root.execs(session)?.into_iter().map(file).collect())
}

fn verify_exec(sandbox: &Sandbox, session: &RunId, exec: &str) -> moat::Result<Verification> {
    let root = sandbox.manager.root();
    match exec.parse() {
        Ok(number) => root.verify_exec(session, number),
        Err(_) => root.verify(&RunId::new(exec)?),
    }
}

/// The audit file of a session.
#[utoipa::path(get, path = "/sessions/{id}/audit", params(("id" = String, Path)), responses(
    (status = 200, body = String, content_type = "application/jsonl"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
pub async fn session(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    Segments(id): Segments<String>,
) -> Result<impl IntoResponse, Problem> {
    let session = sandbox.find(&client, &id).await?.run;
    send(sandbox.manager.root().audit(&session)).await
}

/// The audit file of a command.
#[utoipa::path(get, path = "/sessions/{id}/execs/{exec}/audit",
    params(("id" = String, Path), ("exec" = String, Path)), responses(
    (status = 200, body = String, content_type = "application/jsonl"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
pub async fn exec(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    Segments((id, exec)): Segments<(String, String)>,
) -> Result<impl IntoResponse, Problem> {
    let session = sandbox.find(&client, &id).await?.run;
    let files = on_disk(move || exec_files(&sandbox, &session)).await?;
    match files.into_iter().find(|file| file.id == exec) {
        Some(file) => send(file.audit).await,
        None => Err(Problem::no_exec(&exec)),
    }
}

/// Sends a file up to its present end.
async fn send(path: PathBuf) -> Result<impl IntoResponse, Problem> {
    let cannot = |error| Problem::internal(format!("cannot read {}: {error}", path.display()));
    let file = File::open(&path).await.map_err(cannot)?;
    let length = file.metadata().await.map_err(cannot)?.len();
    Ok(jsonl(Body::from_stream(ReaderStream::new(
        file.take(length),
    ))))
}

/// The audit files of a session and its commands, as they were verified.
#[derive(Serialize, ToSchema)]
pub struct Verified {
    /// True if no file is damaged.
    verified: bool,
    files: Vec<VerifiedFile>,
}

#[derive(Serialize, ToSchema)]
pub struct VerifiedFile {
    file: String,
    /// The command, or null for the session itself.
    exec: Option<String>,
    state: FileState,
    /// The verdict of the file. Null: it is not sealed.
    #[schema(value_type = Option<String>)]
    verdict: Option<Verdict>,
    /// The damage, and its line.
    damage: Option<String>,
    /// The bytes of output.
    bytes: u64,
    gaps: u64,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum FileState {
    Sealed,
    Unsealed,
    Damaged,
}

impl VerifiedFile {
    fn new(exec: Option<String>, audit: &Path, found: &Verification) -> Self {
        let (state, damage) = match &found.state {
            LogState::Sealed(_) => (FileState::Sealed, None),
            LogState::Unsealed { .. } => (FileState::Unsealed, None),
            LogState::Damaged(damage) => (FileState::Damaged, Some(damage.to_string())),
            other => (
                FileState::Damaged,
                Some(format!("unknown state: {other:?}")),
            ),
        };
        let verdict = match &found.state {
            LogState::Sealed(seal) => Some(seal.verdict),
            _ => None,
        };
        let name = audit.file_name().unwrap_or_default();
        Self {
            file: name.to_string_lossy().into_owned(),
            exec,
            state,
            verdict,
            damage,
            bytes: found.bytes.total(),
            gaps: found.gaps,
        }
    }
}

/// Verifies the audit files of a session and its commands.
#[utoipa::path(get, path = "/sessions/{id}/verify", params(("id" = String, Path)), responses(
    (status = 200, body = Verified),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
pub async fn verify(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    Segments(id): Segments<String>,
) -> Result<Json<Verified>, Problem> {
    let session = sandbox.find(&client, &id).await?.run;
    let files = on_disk(move || {
        let root = sandbox.manager.root();
        let found = root.verify(&session)?;
        let mut files = vec![VerifiedFile::new(None, &root.audit(&session), &found)];
        for ExecFile { id, audit, .. } in exec_files(&sandbox, &session)? {
            let found = verify_exec(&sandbox, &session, &id)?;
            files.push(VerifiedFile::new(Some(id), &audit, &found));
        }
        Ok(files)
    });
    let files = files.await?;
    let verified = files.iter().all(|file| file.damage.is_none());
    Ok(Json(Verified { verified, files }))
}
