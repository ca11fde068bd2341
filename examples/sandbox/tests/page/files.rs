//! The files of the page, as the server sends them.

use crate::fixture::Server;
use testkit::engine::block_on;

testkit::trials! {
    crate::anywhere:
        each_file_has_its_type_and_the_policy,
        an_unknown_file_is_not_found,
}

/// Local processes if the build has them. The files are the same.
const RUNTIME: &str = if cfg!(feature = "process") {
    "process"
} else {
    "docker"
};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    connect-src 'self'; img-src 'self' data:; font-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

fn each_file_has_its_type_and_the_policy() {
    let server = Server::start(RUNTIME);
    for (path, kind, part) in [
        ("/", "text/html", "<title>Sandbox</title>"),
        ("/assets/page.js", "text/javascript", "'use strict'"),
        ("/assets/page.css", "text/css", "light-dark("),
        ("/assets/xterm.min.js", "text/javascript", "AddonManager"),
        ("/assets/xterm.min.css", "text/css", ".xterm-screen"),
        (
            "/assets/xterm-addon-fit.min.js",
            "text/javascript",
            "FitAddon",
        ),
    ] {
        let url = format!("{}{path}", server.address);
        block_on(async {
            let response = reqwest::get(url).await.unwrap();
            assert_eq!(response.status(), 200, "{path}");
            let header = |name: &str| response.headers()[name].to_str().unwrap();
            assert_eq!(header("content-type"), format!("{kind}; charset=utf-8"));
            assert_eq!(header("content-security-policy"), POLICY);
            assert_eq!(header("x-content-type-options"), "nosniff");
            assert_eq!(header("referrer-policy"), "no-referrer");
            assert_eq!(header("cache-control"), "no-cache");
            assert!(response.text().await.unwrap().contains(part), "{path}");
        });
    }
}

fn an_unknown_file_is_not_found() {
    let server = Server::start(RUNTIME);
    for name in ["LICENSE", "..%2fpage.rs", "%2e%2e%2fpage.rs"] {
        let url = format!("{}/assets/{name}", server.address);
        block_on(async {
            let response = reqwest::get(url).await.unwrap();
            assert_eq!(response.status(), 404, "{name}");
            let kind = &response.headers()["content-type"];
            assert_eq!(kind, "application/problem+json", "{name}");
        });
    }
}
