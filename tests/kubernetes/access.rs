//! Credentials that expire, and watches that end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use moat::RunId;
use serde_json::{Value, json};
use testkit::deadline::eventually;

use crate::cluster::{self, Down, Object, admin, create};
use crate::embedder::Embedder;
use crate::stage::{Stage, assert_both_streams, end, read};

testkit::trials! {
    crate::on_broken_cluster:
        an_expired_token_loses_nothing,
}

const LINES: u64 = 300;

/// Returns a new token of a service account.
fn token(account: &str) -> String {
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": 3600},
    });
    let path = format!("/api/v1/namespaces/default/serviceaccounts/{account}/token");
    let answer = create(&["--raw", &path], &request);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

/// A kubeconfig whose user gets tokens from a program.
struct Credentials {
    token: PathBuf,
    /// Has one line for each call of the program.
    calls: PathBuf,
    kubeconfig: PathBuf,
}

impl Credentials {
    fn new(directory: &Path) -> Self {
        let path = |name: &str| directory.join(name);
        let new = Self {
            token: path("token"),
            calls: path("calls"),
            kubeconfig: path("kubeconfig"),
        };
        // A client asks for a new token 10 s before the old one expires.
        let plugin = format!(
            "#!/bin/sh\n\
             echo >>{calls}\n\
             printf '{{\"apiVersion\":\"client.authentication.k8s.io/v1beta1\",\
             \"kind\":\"ExecCredential\",\"status\":{{\"token\":\"%s\",\
             \"expirationTimestamp\":\"%s\"}}}}' \
             \"$(cat {token})\" \"$(date -u -d '+11 seconds' +%Y-%m-%dT%H:%M:%SZ)\"\n",
            calls = new.calls.display(),
            token = new.token.display(),
        );
        fs::write(path("plugin"), plugin).unwrap();
        fs::set_permissions(path("plugin"), fs::Permissions::from_mode(0o700)).unwrap();
        let context = cluster::context();
        let config = ["config", "view", "--raw", "--minify", "-o", "json"];
        let config = cluster::kubectl(&config);
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config["current-context"] = json!(context);
        config["users"][0]["user"] = json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "command": path("plugin"), "interactiveMode": "Never",
        }});
        fs::write(&new.kubeconfig, config.to_string()).unwrap();
        new
    }

    fn set(&self, token: &str) {
        fs::write(&self.token, token).unwrap();
    }

    fn calls(&self) -> u64 {
        fs::metadata(&self.calls).map_or(0, |file| file.len())
    }

    /// Returns true if the server refuses the present token.
    fn is_refused(&self) -> bool {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        let output = command.args(["get", "pods"]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        !output.status.success() && error.contains("Unauthorized")
    }
}

fn account(name: &str) -> Object {
    let metadata = json!({"name": name, "namespace": "default"});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata});
    Object::create("serviceaccount", &account)
}

async fn an_expired_token_loses_nothing(stage: &Stage) {
    let name = cluster::unique("account");
    let subject = json!({"kind": "ServiceAccount", "name": name, "namespace": "default"});
    let binding = cluster::binding(&name, "default", &subject);
    let _binding = Object::create("rolebinding", &binding);
    let first = account(&name);
    let credentials = Credentials::new(stage.dir.path());
    credentials.set(&token(&name));

    let steps = format!(
        "lines {LINES} --stream both --delay-ms 10 + await /gate/go \
         + lines {LINES} --stream both --from {} + write /gate/end x + exit 4",
        LINES + 1
    );
    let kubeconfig = credentials.kubeconfig.clone();
    let embedder = Embedder::with_kubeconfig(stage, "expired", &steps, kubeconfig);
    stage.audited("expired", "err 00000020 ").await;

    // All connections break, and no new one is accepted.
    admin(&["delete", "serviceaccount", &first.name, "-n", "default"]);
    Down::kill("api").start();
    eventually(60, "the refusal of the token", async || {
        credentials.is_refused().then_some(())
    })
    .await;
    stage.open_gate("go");
    let ended = stage.gate().join("end");
    eventually(120, "the end of the command", async || {
        ended.exists().then_some(())
    })
    .await;
    let calls = credentials.calls();
    eventually(120, "refused requests", async || {
        (credentials.calls() >= calls + 6).then_some(())
    })
    .await;
    let path = stage.root().join("expired/logs.jsonl");
    let audit = fs::read_to_string(&path).unwrap();
    for conclusion in ["\"type\":\"end\"", "\"type\":\"gap\""] {
        assert!(!audit.contains(conclusion), "{conclusion}: {audit}");
    }

    let _second = account(&name);
    credentials.set(&token(&name));
    stage.audited("expired", "\"type\":\"end\"").await;
    embedder.kill();
    let manager = stage.manager().await;
    let run = manager.get(&RunId::new("expired").unwrap()).await.unwrap();
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(4), "{outcome}");
    let audit = read(&outcome);
    assert_both_streams(&audit, 2 * LINES);
    assert!(audit.all("resume").is_empty(), "{:?}", audit.events);
    stage.is_clean().await;
}
