//! The audit files of a session and its commands.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use moat::audit::{LogState, Verification, exec_file, verify as verify_file};
use moat::{RunId, Seal, Verdict};
use serde::Serialize;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use utoipa::ToSchema;

use super::auth::Caller;
use super::jsonl;
use crate::problem::Problem;
use crate::sandbox::{Sandbox, label};
use crate::session::SESSION_LABEL;

/// An audit file, as it was verified.
pub struct Audit {
    /// The command, or `None` for the session itself.
    pub exec: Option<String>,
    path: PathBuf,
    pub verification: Verification,
}

impl Audit {
    pub fn seal(&self) -> Option<&Seal> {
        match &self.verification.state {
            LogState::Sealed(seal) => Some(seal),
            _ => None,
        }
    }

    pub fn is_unsealed(&self) -> bool {
        matches!(self.verification.state, LogState::Unsealed { .. })
    }
}

/// Verifies all audit files of a session.
pub async fn audits(sandbox: &Arc<Sandbox>, session: &RunId) -> Result<Vec<Audit>, Problem> {
    let (sandbox, session) = (Arc::clone(sandbox), session.clone());
    let verified = tokio::task::spawn_blocking(move || {
        let root = sandbox.manager.root();
        let mut audits = vec![Audit {
            exec: None,
            path: root.audit(&session),
            verification: root.verify(&session)?,
        }];
        for (exec, path) in exec_files(&sandbox, &session)? {
            let verification = verify_file(&path)?;
            audits.push(Audit {
                exec: Some(exec),
                path,
                verification,
            });
        }
        Ok::<_, moat::Error>(audits)
    });
    match verified.await {
        Ok(audits) => Ok(audits?),
        Err(error) => Err(Problem::internal(error.to_string())),
    }
}

/// The ids and audit files of the commands of a session.
fn exec_files(sandbox: &Sandbox, session: &RunId) -> moat::Result<Vec<(String, PathBuf)>> {
    let root = sandbox.manager.root();
    if sandbox.is_local() {
        let mut runs = root.list()?;
        runs.retain(|info| label(info, SESSION_LABEL) == Some(session.as_str()));
        let file = |run: &RunId| (run.to_string(), root.audit(run));
        return Ok(runs.iter().map(|info| file(&info.run)).collect());
    }
    let directory = root.dir(session);
    let file = |number: u32| (number.to_string(), directory.join(exec_file(number)));
    Ok((1..)
        .map(file)
        .take_while(|(_, path)| path.exists())
        .collect())
}

/// The audit file of a session.
#[utoipa::path(get, path = "/sessions/{id}/audit", params(("id" = String, Path)), responses(
    (status = 200, body = String, content_type = "application/jsonl"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
pub async fn session(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    Path(id): Path<String>,
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
    Path((id, exec)): Path<(String, String)>,
) -> Result<impl IntoResponse, Problem> {
    let session = sandbox.find(&client, &id).await?.run;
    let files = {
        let sandbox = Arc::clone(&sandbox);
        tokio::task::spawn_blocking(move || exec_files(&sandbox, &session)).await
    };
    let files = files.map_err(|error| Problem::internal(error.to_string()))??;
    match files.into_iter().find(|(id, _)| *id == exec) {
        Some((_, path)) => send(path).await,
        None => Err(Problem::not_found(format!(
            "the session has no command {exec:?}"
        ))),
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
    /// Whether no file is damaged.
    verified: bool,
    files: Vec<VerifiedFile>,
}

#[derive(Serialize, ToSchema)]
pub struct VerifiedFile {
    file: String,
    /// The command, or null for the session itself.
    exec: Option<String>,
    state: FileState,
    /// What the file proves. Null: it is not sealed.
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

impl From<Audit> for VerifiedFile {
    fn from(audit: Audit) -> Self {
        let (state, damage) = match &audit.verification.state {
            LogState::Sealed(_) => (FileState::Sealed, None),
            LogState::Unsealed { .. } => (FileState::Unsealed, None),
            LogState::Damaged(damage) => (FileState::Damaged, Some(damage.to_string())),
            other => (
                FileState::Damaged,
                Some(format!("unknown state: {other:?}")),
            ),
        };
        let name = audit.path.file_name().unwrap_or_default();
        Self {
            file: name.to_string_lossy().into_owned(),
            state,
            verdict: audit.seal().map(|seal| seal.verdict),
            damage,
            bytes: audit.verification.bytes.total(),
            gaps: audit.verification.gaps,
            exec: audit.exec,
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
    Path(id): Path<String>,
) -> Result<Json<Verified>, Problem> {
    let session = sandbox.find(&client, &id).await?.run;
    let audits = audits(&sandbox, &session).await?;
    let files: Vec<_> = audits.into_iter().map(VerifiedFile::from).collect();
    let verified = files.iter().all(|file| file.damage.is_none());
    Ok(Json(Verified { verified, files }))
}
