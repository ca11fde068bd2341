//! The client and the path of a request.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use axum::http::request::Parts;

use serde::de::DeserializeOwned;

use crate::clients::Client;
use crate::problem::Problem;
use crate::sandbox::Sandbox;

/// The client whose token the request has.
pub struct Caller(pub Arc<Client>);

impl FromRequestParts<Arc<Sandbox>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut Parts,
        sandbox: &Arc<Sandbox>,
    ) -> Result<Self, Self::Rejection> {
        let token = bearer(parts).or_else(|| subprotocol(parts));
        let client = token.and_then(|token| sandbox.clients.by_token(token));
        client
            .map(|client| Self(Arc::clone(client)))
            .ok_or_else(Problem::unauthorized)
    }
}

/// The variable parts of the path of a request.
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Sandbox>> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut Parts,
        sandbox: &Arc<Sandbox>,
    ) -> Result<Self, Self::Rejection> {
        match Path::from_request_parts(parts, sandbox).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(rejection) => Err(Problem::bad_request(rejection.body_text())),
        }
    }
}

fn bearer(parts: &Parts) -> Option<&str> {
    let (scheme, token) = parts
        .headers
        .get(AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The token of a browser's WebSocket, which cannot set other headers.
fn subprotocol(parts: &Parts) -> Option<&str> {
    let offered = parts.headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    offered
        .split(',')
        .find_map(|protocol| protocol.trim().strip_prefix("bearer."))
}
