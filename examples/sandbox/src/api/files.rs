//! Files up and down.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt, stream};
use moat::Run;
use moat::run::CopyOptions;
use moat::runtime::Archive;
use serde::Deserialize;
use utoipa::IntoParams;

use super::auth::{Caller, Segments};
use crate::body::is_timeout;
use crate::problem::Problem;
use crate::sandbox::Sandbox;

const TAR: &str = "application/x-tar";
/// The size of the parts in which a file is sent.
const PART_BYTES: usize = 64 << 10;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Target {
    /// The absolute path in the session.
    path: String,
    /// The mode of the file in octal, such as `755`. Default: 644.
    mode: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// The absolute path in the session.
    path: String,
    /// True for a tar archive, also of a directory. Default: false.
    #[serde(default)]
    archive: bool,
}

/// Writes a file, or unpacks a tar archive into a directory.
///
/// With the content type `application/x-tar`, `path` is the directory, which must exist.
#[utoipa::path(put, path = "/sessions/{id}/files", params(("id" = String, Path), Target),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses(
    (status = 204),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json", description = "the quota of a file"),
))]
pub async fn upload(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    Segments(id): Segments<String>,
    target: Result<Query<Target>, QueryRejection>,
    request: Request,
) -> Result<StatusCode, Problem> {
    let session = sandbox.live_session(&client, &id).await?;
    let Query(target) = target?;
    check(&target.path, &sandbox)?;
    let mode = mode(target.mode.as_deref())?;
    let _held = (client.take_transfer()?, session.begin_use()?);
    let is_archive = has_type(request.headers(), TAR);
    let content = receive(request.into_body(), client.quota.file_bytes).await?;
    match is_archive {
        true => {
            let archive: Archive = stream::iter([Ok(content)]).boxed();
            session.run.copy_in(&target.path, archive).await?;
        }
        false => {
            let options = CopyOptions::new()
                .mode(mode)
                .max_bytes(client.quota.file_bytes);
            session
                .run
                .write_file_with(&target.path, content, options)
                .await?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Reads a file, or a tar archive of a file or directory.
#[utoipa::path(get, path = "/sessions/{id}/files", params(("id" = String, Path), Wanted), responses(
    (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json", description = "the quota of a file"),
))]
pub async fn download(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    Segments(id): Segments<String>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Problem> {
    let session = sandbox.live_session(&client, &id).await?;
    let Query(wanted) = wanted?;
    check(&wanted.path, &sandbox)?;
    let held = (client.take_transfer()?, session.begin_use()?);
    let limit = client.quota.file_bytes;
    let (kind, content) = match wanted.archive {
        true => (TAR, read_archive(&session.run, &wanted.path, limit).await?),
        false => {
            let options = CopyOptions::new().max_bytes(limit);
            let content = session.run.read_file_with(&wanted.path, options).await?;
            ("application/octet-stream", content)
        }
    };
    Ok(([(header::CONTENT_TYPE, kind)], send(content.into(), held)).into_response())
}

/// A body that holds a guard until the client has read the last part of it.
fn send(content: Bytes, guard: impl Send + 'static) -> Body {
    let parts = stream::unfold((content, guard), async |(mut content, guard)| {
        let part = content.split_to(content.len().min(PART_BYTES));
        (!part.is_empty()).then_some((Ok::<_, Infallible>(part), (content, guard)))
    });
    Body::from_stream(parts.boxed())
}

fn check(path: &str, sandbox: &Sandbox) -> Result<(), Problem> {
    if sandbox.is_local() {
        return Err(Problem::unsupported(
            "local processes have the files of the server's machine",
        ));
    }
    let is_plain = |part: &str| part != "." && part != "..";
    match path.starts_with('/')
        && !path.contains(['\0', char::REPLACEMENT_CHARACTER])
        && path.split('/').all(is_plain)
    {
        true => Ok(()),
        false => Err(Problem::field(
            "path",
            "it must be absolute, without `.` or `..`",
        )),
    }
}

fn mode(text: Option<&str>) -> Result<u32, Problem> {
    let mode = u32::from_str_radix(text.unwrap_or("644"), 8).ok();
    mode.filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| Problem::field("mode", "it must be octal, such as 644"))
}

fn has_type(headers: &HeaderMap, wanted: &str) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let kind = value.and_then(|value| value.split(';').next());
    kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case(wanted))
}

async fn receive(body: Body, limit: u64) -> Result<Bytes, Problem> {
    let limit_bytes = usize::try_from(limit).unwrap_or(usize::MAX);
    to_bytes(body, limit_bytes).await.map_err(|error| {
        if is_length(&error) {
            Problem::too_large(format!("the body has more than {limit} bytes"))
        } else if is_timeout(&error) {
            Problem::timeout("the body did not arrive in time")
        } else {
            Problem::bad_request(format!("cannot read the body: {error}"))
        }
    })
}

fn is_length(error: &axum::Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

async fn read_archive(run: &Run, path: &str, limit: u64) -> Result<Vec<u8>, Problem> {
    let mut archive = run.copy_out(path).await?;
    let mut content = Vec::new();
    while let Some(bytes) = archive.try_next().await.map_err(moat::Error::from)? {
        if (content.len() + bytes.len()) as u64 > limit {
            return Err(Problem::too_large(format!(
                "the archive has more than {limit} bytes"
            )));
        }
        content.extend_from_slice(&bytes);
    }
    Ok(content)
}
