//! The page: a client of the API for a browser.

use axum::Router;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The terminal emulator sets inline styles. Scripts come from the server only.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    connect-src 'self'; img-src 'self' data:; font-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

/// Name, content type and content.
const ASSETS: [(&str, &str, &str); 5] = [
    ("page.css", CSS, include_str!("page/page.css")),
    ("page.js", SCRIPT, include_str!("page/page.js")),
    (
        "xterm.min.css",
        CSS,
        include_str!("page/xterm/xterm.min.css"),
    ),
    (
        "xterm.min.js",
        SCRIPT,
        include_str!("page/xterm/xterm.min.js"),
    ),
    (
        "xterm-addon-fit.min.js",
        SCRIPT,
        include_str!("page/xterm/xterm-addon-fit.min.js"),
    ),
];

/// `GET /` and `GET /assets/{file}`. Neither needs a token.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route(
            "/",
            get(async || file(HTML, include_str!("page/index.html"))),
        )
        .route("/assets/{file}", get(asset))
}

async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, content)) => file(kind, content),
        None => not_found(),
    }
}

fn file(kind: &'static str, content: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The files of two versions of the server must not mix.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content).into_response()
}

fn not_found() -> Response {
    let problem = r#"{"title": "Not Found", "status": 404, "detail": "no such file"}"#;
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (StatusCode::NOT_FOUND, kind, problem).into_response()
}
