//! The errors of the API, as RFC 9457 describes them.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use moat::Error;
use moat::run::CopyError;
use moat::runtime::RuntimeError;
use serde::Serialize;
use utoipa::ToSchema;

/// An error of the API.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// The text of the status.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The problem and its remedy.
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: detail.into(),
        }
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// The field of a request that has a wrong value.
    pub fn field(name: &str, reason: impl AsRef<str>) -> Self {
        Self::bad_request(format!("{name}: {}", reason.as_ref()))
    }

    pub fn unauthorized() -> Self {
        let detail = "send the header `Authorization: Bearer TOKEN` with a valid token";
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    /// A session that does not exist, or is another client's.
    pub fn no_session(id: &str) -> Self {
        Self::not_found(format!("there is no session {id:?}"))
    }

    pub fn no_exec(id: &str) -> Self {
        Self::not_found(format!("the session has no command {id:?}"))
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "the path has no such method",
        )
    }

    pub fn timeout(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, detail)
    }

    pub fn ended(id: &str) -> Self {
        Self::new(StatusCode::CONFLICT, format!("the session {id} has ended"))
    }

    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    pub fn too_many(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, detail)
    }

    pub fn unsupported(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, detail)
    }

    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }

    fn copy(error: &CopyError) -> Self {
        match error {
            CopyError::TooManyBytes { max_bytes } => {
                Self::too_large(format!("path: the file has more than {max_bytes} bytes"))
            }
            CopyError::InvalidArchive(_) => Self::new(StatusCode::BAD_GATEWAY, error.to_string()),
            _ => Self::field("path", error.to_string()),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (status, kind, Json(self)).into_response();
        let kind = header::HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        if status == StatusCode::UNAUTHORIZED {
            let scheme = header::HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::InvalidSpec(_) => StatusCode::BAD_REQUEST,
            Error::NoSuchRun { .. } => StatusCode::NOT_FOUND,
            Error::Ended { .. } | Error::NoInput { .. } => StatusCode::CONFLICT,
            Error::Copy { source, .. } => return Self::copy(source),
            Error::NotStarted { source, .. } | Error::Runtime(source) => runtime_status(source),
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.chain())
    }
}

fn runtime_status(error: &RuntimeError) -> StatusCode {
    match error {
        RuntimeError::NotFound { .. } => StatusCode::NOT_FOUND,
        RuntimeError::Conflict { .. } => StatusCode::CONFLICT,
        RuntimeError::NoSuchImage { .. } | RuntimeError::Rejected { .. } => StatusCode::BAD_REQUEST,
        RuntimeError::Unsupported { .. } => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::BAD_GATEWAY,
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Self::too_large("the body is too large"),
            _ => Self::bad_request(rejection.body_text()),
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}
