//! The helper program, which a ConfigMap brings into the pods.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::api::client::{Client, Failure};

const AMD64: &[u8] = include_bytes!("../helper/moat-helper-amd64");
const ARM64: &[u8] = include_bytes!("../helper/moat-helper-arm64");

fn program(arch: &str) -> &'static [u8] {
    match arch {
        "arm64" => ARM64,
        _ => AMD64,
    }
}

/// Returns the name of the ConfigMap, which has the digest of its content.
pub(crate) fn config_map(arch: &str) -> String {
    let digest = Sha256::digest(program(arch));
    let hex: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("moat-helper-{arch}-{hex}")
}

/// Creates the ConfigMap of the helper, if it does not exist.
pub(crate) async fn provide(client: &Client, arch: &str) -> Result<(), Failure> {
    let name = config_map(arch);
    match client
        .get::<Value>(&client.path(&format!("configmaps/{name}")))
        .await
    {
        Err(failure) if failure.is_not_found() => {}
        answer => return answer.map(drop),
    }
    let body = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "moat"}},
        "binaryData": {"moat-helper": STANDARD.encode(program(arch))},
        "immutable": true,
    });
    match client
        .post::<Value>(&client.path("configmaps"), &body)
        .await
    {
        // Another process has created it meanwhile.
        Err(failure) if failure.is_conflict() => Ok(()),
        answer => answer.map(drop),
    }
}
