//! The HTTP API.

mod audit;
mod auth;
mod exec;
mod files;
mod output;
mod sessions;
mod terminal;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::page;
use crate::problem::Problem;
use crate::sandbox::Sandbox;

/// The largest JSON body.
const MAX_JSON_BYTES: usize = 1 << 20;

#[derive(OpenApi)]
#[openapi(
    info(title = "moat-sandbox", description = "Containers for agents, with an audit file for each session and command."),
    components(schemas(output::End, output::Output)),
    modifiers(&Bearer),
    security(("bearer" = [])),
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}

/// All routes of the server.
pub fn router(sandbox: Arc<Sandbox>) -> Router {
    let (api, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(sessions::create, sessions::list))
        .routes(routes!(sessions::inspect, sessions::end))
        .routes(routes!(exec::start))
        .routes(routes!(exec::list))
        .routes(routes!(exec::kill))
        .routes(routes!(files::upload, files::download))
        .routes(routes!(terminal::open))
        .routes(routes!(audit::session))
        .routes(routes!(audit::exec))
        .routes(routes!(audit::verify))
        .split_for_parts();
    api.merge(page::routes())
        .route("/openapi.json", get(async || Json(document)))
        .route("/healthz", get(async || "ok\n"))
        .fallback(async || Problem::not_found("there is no such path: see /openapi.json"))
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
        .with_state(sandbox)
}

/// A file in the format of audit files.
fn jsonl(body: axum::body::Body) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/jsonl")], body)
}
