//! Applies `RunSpec::engine_patch` to the body of a create request.
//!
//! A patch is refused if it breaks a guarantee of moat, or if a part of it would be lost. Errors name
//! only paths, because values may be secrets.

use bollard::models::ContainerCreateBody;
use serde_json::{Map, Value};

use crate::spec::InvalidSpec;

const FIELD: &str = "engine_patch";

/// The paths that cannot be patched, each with the reason or the alternative.
const RESERVED: [(&[&str], &str); 10] = [
    (&["Image"], "the image is recorded: set it by RunSpec::new"),
    (&["Tty"], "set it by RunSpec::tty"),
    (&["OpenStdin"], "set it by RunSpec::stdin"),
    (&["StdinOnce"], "moat sets it"),
    (&["AttachStdin"], "moat sets it"),
    (&["AttachStdout"], "moat sets it"),
    (&["AttachStderr"], "moat sets it"),
    (
        &["HostConfig", "LogConfig"],
        "moat reads the engine's log; see RunSpec::backstop",
    ),
    (
        &["HostConfig", "AutoRemove"],
        "moat removes the container after the seal; see RunSpec::keep",
    ),
    (
        &["HostConfig", "RestartPolicy"],
        "a run is one execution of a container",
    ),
];

/// Merges `patch` into `body`, as a JSON merge patch (RFC 7396).
///
/// # Errors
///
/// [`InvalidSpec`] for `engine_patch`, with the path that is refused.
pub(crate) fn apply_patch(
    body: ContainerCreateBody,
    patch: &Value,
) -> Result<ContainerCreateBody, InvalidSpec> {
    let Value::Object(entries) = patch else {
        return refuse("the patch is not a JSON object");
    };
    check_reserved(entries)?;
    let base = serde_json::to_value(body)
        .map_err(|_| InvalidSpec::new(FIELD, "cannot convert the request to JSON"))?;
    let mut merged = base.clone();
    merge(&mut merged, patch);
    let Ok(body) = serde_json::from_value::<ContainerCreateBody>(merged.clone()) else {
        let path = invalid_path(&base, patch).unwrap_or_default();
        return refuse(&format!(
            "{} has another type in the engine's API",
            shown(&path)
        ));
    };
    let kept = serde_json::to_value(&body)
        .map_err(|_| InvalidSpec::new(FIELD, "cannot convert the request to JSON"))?;
    let mut path = Vec::new();
    if lost(patch, &merged, &kept, &mut path) {
        return refuse(&format!(
            "{} is not a field of the engine's API",
            shown(&path)
        ));
    }
    Ok(body)
}

fn refuse<T>(reason: &str) -> Result<T, InvalidSpec> {
    Err(InvalidSpec::new(FIELD, reason))
}

fn shown(path: &[String]) -> String {
    match path {
        [] => "the patch".to_owned(),
        path => path.join("."),
    }
}

/// Refuses a patch of reserved paths and labels.
fn check_reserved(patch: &Map<String, Value>) -> Result<(), InvalidSpec> {
    for (path, reason) in RESERVED {
        let mut object = patch;
        for (depth, key) in path.iter().enumerate() {
            match object.get(*key) {
                None => break,
                Some(Value::Object(inner)) if depth + 1 < path.len() => object = inner,
                // The path itself, or a value that replaces one of its parents.
                Some(_) => {
                    let path = path[..=depth].join(".");
                    return refuse(&format!("{path} cannot be patched: {reason}"));
                }
            }
        }
    }
    match patch.get("Labels") {
        None => Ok(()),
        Some(Value::Object(labels)) => match labels.keys().find(|k| k.starts_with("moat.")) {
            Some(label) => refuse(&format!(
                "Labels.{label} cannot be patched: names that start with \"moat.\" are reserved"
            )),
            None => Ok(()),
        },
        Some(_) => refuse("Labels cannot be replaced as a whole: they include moat's labels"),
    }
}

/// Applies a JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(target) = target {
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
    }
}

/// Returns the first path in the patch that alone makes the body invalid.
fn invalid_path(base: &Value, patch: &Value) -> Option<Vec<String>> {
    fn visit(base: &Value, patch: &Value, path: &mut Vec<String>) -> bool {
        let alone = path.iter().rev().fold(patch.clone(), |value, key| {
            Value::Object(Map::from_iter([(key.clone(), value)]))
        });
        let mut merged = base.clone();
        merge(&mut merged, &alone);
        if serde_json::from_value::<ContainerCreateBody>(merged).is_ok() {
            return false;
        }
        for (key, value) in patch.as_object().into_iter().flatten() {
            path.push(key.clone());
            if visit(base, value, path) {
                return true;
            }
            path.pop();
        }
        true
    }
    let mut path = Vec::new();
    visit(base, patch, &mut path).then_some(path)
}

/// Returns true if a value that `patch` set in `merged` is missing in `kept`.
///
/// If so, `path` is the path of that value.
fn lost(patch: &Value, merged: &Value, kept: &Value, path: &mut Vec<String>) -> bool {
    let Value::Object(entries) = patch else {
        return !covers(kept, merged);
    };
    for (key, value) in entries {
        if value.is_null() {
            continue;
        }
        path.push(key.clone());
        match (merged.get(key), kept.get(key)) {
            (Some(merged), Some(kept)) if !lost(value, merged, kept, path) => {}
            _ => return true,
        }
        path.pop();
    }
    false
}

/// Returns true if `kept` contains all of `wanted`. Null means absent.
fn covers(kept: &Value, wanted: &Value) -> bool {
    match (kept, wanted) {
        (Value::Object(kept), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| covers(kept.get(key).unwrap_or(&Value::Null), value)),
        (Value::Array(kept), Value::Array(wanted)) => {
            kept.len() == wanted.len() && kept.iter().zip(wanted).all(|(k, w)| covers(k, w))
        }
        (kept, wanted) => kept == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LogDriver, draft};
    use super::*;
    use crate::spec::RunSpec;
    use serde_json::json;

    fn patched(patch: Value) -> std::result::Result<Value, String> {
        let spec = RunSpec::new("busybox").env("A", "b").label("team", "x");
        apply_patch(draft(&spec, LogDriver::JsonFile), &patch)
            .map(|body| serde_json::to_value(body).unwrap())
            .map_err(|error| {
                let text = error.to_string();
                assert!(text.starts_with("invalid engine_patch: "), "{text}");
                text
            })
    }

    #[test]
    fn a_patch_adds_replaces_and_removes() {
        let body = patched(json!({
            "HostConfig": {"OomScoreAdj": 500, "Tmpfs": {"/x": "size=1m"}, "Init": null},
            "Env": ["X=y"],
            "Labels": {"team": null, "new": "1"},
            "Healthcheck": {"Test": ["NONE"]},
            "ExposedPorts": {"80/tcp": {}},
        }))
        .unwrap();
        assert_eq!(body["HostConfig"]["OomScoreAdj"], 500);
        assert_eq!(body["HostConfig"]["Tmpfs"]["/x"], "size=1m");
        assert_eq!(body["HostConfig"].get("Init"), None);
        assert_eq!(body["HostConfig"]["LogConfig"]["Type"], "json-file");
        assert_eq!(body["Env"], json!(["X=y"]));
        assert_eq!(body["Labels"], json!({"new": "1"}));
        assert_eq!(body["Healthcheck"], json!({"Test": ["NONE"]}));
        assert_eq!(body["ExposedPorts"], json!({"80/tcp": {}}));
    }

    #[test]
    fn reserved_paths_are_refused() {
        for (patch, path) in [
            (json!({"Image": "x"}), "Image"),
            (json!({"Tty": true}), "Tty"),
            (json!({"Tty": null}), "Tty"),
            (json!({"OpenStdin": true}), "OpenStdin"),
            (json!({"StdinOnce": true}), "StdinOnce"),
            (json!({"AttachStdin": true}), "AttachStdin"),
            (json!({"AttachStdout": false}), "AttachStdout"),
            (json!({"AttachStderr": null}), "AttachStderr"),
            (json!({"HostConfig": null}), "HostConfig"),
            (json!({"HostConfig": []}), "HostConfig"),
            (
                json!({"HostConfig": {"LogConfig": {}}}),
                "HostConfig.LogConfig",
            ),
            (
                json!({"HostConfig": {"AutoRemove": true}}),
                "HostConfig.AutoRemove",
            ),
            (
                json!({"HostConfig": {"RestartPolicy": {"Name": "always"}}}),
                "HostConfig.RestartPolicy",
            ),
            (json!({"Labels": null}), "Labels"),
            (json!({"Labels": "x"}), "Labels"),
            (json!({"Labels": {"moat.run": "x"}}), "Labels.moat.run"),
            (json!({"Labels": {"moat.root": null}}), "Labels.moat.root"),
            (json!([]), "object"),
            (json!(null), "object"),
        ] {
            let error = patched(patch.clone()).unwrap_err();
            assert!(error.contains(path), "{patch}: {error}");
        }
    }

    #[test]
    fn unknown_fields_are_refused_without_their_values() {
        for (patch, path) in [
            (json!({"Hostnme": "s3cr3t"}), "Hostnme"),
            (json!({"hostconfig": {"Privileged": true}}), "hostconfig"),
            (json!({"HostConfig": {"Oops": "s3cr3t"}}), "HostConfig.Oops"),
            (
                json!({"HostConfig": {"Mounts": [{"Type": "tmpfs", "Oops": "s3cr3t"}]}}),
                "HostConfig.Mounts",
            ),
            (
                json!({"Healthcheck": {"Tset": ["s3cr3t"]}}),
                "Healthcheck.Tset",
            ),
            (json!({"Env": "s3cr3t"}), "Env"),
            (
                json!({"HostConfig": {"Memory": "s3cr3t"}}),
                "HostConfig.Memory",
            ),
            (
                json!({"Env": ["A=b"], "HostConfig": {"CgroupnsMode": "s3cr3t"}}),
                "HostConfig.CgroupnsMode",
            ),
            (json!({"HostConfig": {"Dns": [1]}}), "HostConfig.Dns"),
        ] {
            let error = patched(patch.clone()).unwrap_err();
            assert!(error.contains(path), "{patch}: {error}");
            assert!(!error.contains("s3cr3t"), "{patch}: {error}");
        }
    }

    #[test]
    fn merging_follows_the_examples_of_rfc_7396() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!([1, 2]),
                json!({"a": "b", "c": null}),
                json!({"a": "b"}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, &patch);
            assert_eq!(merged, result, "{target} {patch}");
        }
    }
}
