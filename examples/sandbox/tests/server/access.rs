//! Tokens, other people's sessions, and the description of the API.

use std::collections::BTreeSet;
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Answer, Client, shell};
use crate::fixture::Server;

testkit::trials! {
    crate::on_engine:
        another_client_reaches_no_session;
    crate::on_process:
        no_call_works_without_a_token,
        another_client_reaches_no_session,
        unknown_sessions_are_not_found,
        the_description_names_every_call,
        public_paths_need_no_token,
        a_printed_token_is_accepted,
}

/// Every call of the API that needs a token, with a query and a body.
const CALLS: [(&str, &str, &str, Option<&str>); 13] = [
    ("POST", "/sessions", "", Some("{}")),
    ("GET", "/sessions", "", None),
    ("GET", "/sessions/{id}", "", None),
    ("DELETE", "/sessions/{id}", "", None),
    (
        "POST",
        "/sessions/{id}/exec",
        "",
        Some(r#"{"cmd": ["true"]}"#),
    ),
    ("GET", "/sessions/{id}/execs", "", None),
    ("DELETE", "/sessions/{id}/execs/{exec}", "", None),
    ("GET", "/sessions/{id}/execs/{exec}/audit", "", None),
    (
        "PUT",
        "/sessions/{id}/files",
        "?path=/tmp/moat-test",
        Some("content"),
    ),
    ("GET", "/sessions/{id}/files", "?path=/tmp/moat-test", None),
    ("GET", "/sessions/{id}/terminal", "", None),
    ("GET", "/sessions/{id}/audit", "", None),
    ("GET", "/sessions/{id}/verify", "", None),
];

/// Calls with the ids of a session and of a command. A terminal is asked for as a browser does.
async fn call(
    client: &Client,
    (method, path, query, body): (&str, &str, &str, Option<&str>),
    session: &str,
    exec: &str,
) -> Answer {
    let path = path.replace("{id}", session).replace("{exec}", exec);
    let method: Method = method.parse().unwrap();
    let mut request = client.request(method, &format!("{path}{query}"));
    if path.ends_with("/terminal") {
        request = request
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    }
    if let Some(body) = body {
        request = request
            .header("content-type", "application/json")
            .body(body.to_owned());
    }
    client.send(request).await
}

async fn no_call_works_without_a_token(server: &mut Server) {
    let id = server.session().await;
    let output = server.alice().shell(&id, "true").await;
    let mut wrong = vec![server.stranger(), Client::new(server.address(), "")];
    let token = server.alice().token().to_owned();
    wrong.push(Client::new(server.address(), &token[1..]));
    wrong.push(Client::new(
        server.address(),
        &token.to_lowercase().repeat(2),
    ));
    for client in wrong {
        for one in CALLS {
            let answer = call(&client, one, &id, &output.id).await;
            answer.detail(401);
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
    }
    for header in ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", &token, ""] {
        let url = format!("http://{}/sessions", server.address());
        let request = reqwest::Client::new()
            .get(url)
            .header("authorization", header);
        server.alice().send(request).await.detail(401);
    }
    assert_eq!(server.alice().sessions("?state=running").await, [id]);
}

async fn another_client_reaches_no_session(server: &mut Server) {
    let (alice, bob) = (server.alice(), server.bob());
    let id = server.session().await;
    let command = alice.start(&id, &shell("exec sleep 600")).await;
    let session = alice.session(&id).await;
    let mut tried = 0;
    for one in CALLS {
        if one.1.contains("{id}") {
            call(&bob, one, &id, &command.id).await.detail(404);
            tried += 1;
        }
    }
    assert_eq!(tried, 11);
    assert!(bob.sessions("").await.is_empty());
    assert_eq!(alice.session(&id).await, session);
    let execs = alice
        .get(&format!("/sessions/{id}/execs"))
        .await
        .expect(200);
    assert_eq!(execs["execs"].as_array().unwrap().len(), 1);
    assert_eq!(execs["execs"][0]["state"], "running");
    assert_ne!(alice.fetch(&id, "/tmp/moat-test").await.status, 200);

    // Another session of the same client is no way to the command either.
    let other = server.session().await;
    alice
        .delete(&format!("/sessions/{other}/execs/{}", command.id))
        .await
        .detail(404);
    alice
        .get(&format!("/sessions/{other}/execs/{}/audit", command.id))
        .await
        .detail(404);
    alice
        .delete(&format!("/sessions/{id}/execs/{}", command.id))
        .await
        .expect(204);
    command.end().await;
}

async fn unknown_sessions_are_not_found(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let commands = alice.shell(&id, "true").await;
    for unknown in [
        "01m0000000000000000000000000000000",
        "%2e%2e%2froot",
        "..%2f",
        "%00",
        "%ff",
        "root.json",
        &commands.id,
        &"x".repeat(5000),
    ] {
        for one in CALLS {
            if one.1.contains("{id}") {
                let answer = call(&alice, one, unknown, "1").await;
                let status = answer.status.as_u16();
                assert!([400, 404].contains(&status), "{one:?} {unknown}: {answer}");
            }
        }
    }
    for unknown in ["0", "2", "..%2f", "-1", "1e9", "logs", &id] {
        let path = format!("/sessions/{id}/execs/{unknown}/audit");
        let answer = alice.get(&path).await;
        assert!(
            [400, 404].contains(&answer.status.as_u16()),
            "{unknown}: {answer}"
        );
    }
    assert_eq!(alice.sessions("?state=running").await, [id]);
}

async fn the_description_names_every_call(server: &mut Server) {
    let answer = server.stranger().get("/openapi.json").await;
    let description: Value = serde_json::from_slice(answer.bytes()).unwrap();
    let version = description["openapi"].as_str().unwrap();
    assert!(version.starts_with("3."), "{version}");
    let mut documented = BTreeSet::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["responses"].is_object(), "{method} {path}");
            documented.insert((method.to_uppercase(), path.clone()));
        }
    }
    let calls = CALLS.map(|(method, path, _, _)| (method.to_owned(), path.to_owned()));
    let (api, public): (BTreeSet<_>, BTreeSet<_>) = documented
        .into_iter()
        .partition(|(_, path)| path.starts_with("/sessions"));
    assert_eq!(api, BTreeSet::from(calls));
    for (method, path) in public {
        assert_eq!(method, "GET");
        assert_eq!(server.stranger().get(&path).await.status, 200, "{path}");
    }
    for (method, path) in api {
        let one = (method.as_str(), path.as_str(), "", None);
        call(&server.stranger(), one, "1", "1").await.detail(401);
    }
    references_exist(&description, &description);
}

/// Checks that each `$ref` leads to a part of the description.
fn references_exist(description: &Value, value: &Value) {
    match value {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(description.pointer(pointer).is_some(), "{reference}");
            }
            fields
                .values()
                .for_each(|value| references_exist(description, value));
        }
        Value::Array(values) => values
            .iter()
            .for_each(|value| references_exist(description, value)),
        _ => {}
    }
}

async fn public_paths_need_no_token(server: &mut Server) {
    let stranger = server.stranger();
    assert_eq!(stranger.get("/healthz").await.status, 200);
    assert_ne!(stranger.get("/").await.status, 401);
    let alice = server.alice();
    alice.get("/other").await.detail(404);
    alice.get("/assets/../../Cargo.toml").await.detail(404);
    alice
        .get("/assets/%2e%2e/%2e%2e/clients.toml")
        .await
        .detail(404);
    alice.delete("/sessions").await.detail(405);
    alice.post("/healthz", &json!({})).await.detail(405);
}

async fn a_printed_token_is_accepted(server: &mut Server) {
    let printed = Command::new(env!("CARGO_BIN_EXE_moat-sandbox"))
        .args(["token", "carol"])
        .output()
        .unwrap();
    assert!(printed.status.success());
    let token = String::from_utf8(printed.stderr).unwrap();
    server.stop();
    let clients = server.dir().join("carol.toml");
    std::fs::write(&clients, printed.stdout).unwrap();
    server.use_clients(clients);
    server.spawn().await;
    let carol = Client::new(server.address(), token.trim());
    assert!(carol.sessions("").await.is_empty());
    server.stop();
    server.use_own_clients();
    server.spawn().await;
}
