//! Answers of Kubernetes 1.20, trimmed to the parts that matter.

use serde_json::{Value, json};

use super::protocol::{self, Kind};
use super::server::{Answer, Step};

/// The namespace of the kubeconfig.
pub const NAMESPACE: &str = "ci";
/// The name of the pod.
pub const POD: &str = "moat-01kb1mmye5r1wh26bcy5s0bnjv";
/// The UID of the pod.
pub const UID: &str = "3f1c6a52-0f0e-4c1c-a3f2-5d6a1d9f7e10";
/// The root of the pod's run.
pub const ROOT: &str = "5f1c9a2b7d3e4f60a1b2";
/// The run of the pod.
pub const RUN: &str = "01kb1mmye5r1wh26bcy5s0bnjv";
/// The time of all frames, in microseconds since 1970.
pub const MICROS: u64 = 1_764_000_000_000_000;

/// Returns the answer to an operation for which the test has none.
pub fn usual(operation: &str) -> Answer {
    match operation {
        "get version" => ok(&json!({"major": "1", "minor": "20", "gitVersion": "v1.20.2"})),
        "get namespaces" => ok(&json!({
            "kind": "Namespace", "apiVersion": "v1",
            "metadata": {"name": NAMESPACE, "uid": "7d3e7a0c-5f6e-4a51-9f4e-6f2f7d1b8a11"},
            "status": {"phase": "Active"},
        })),
        "get configmaps" => ok(&json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {}})),
        "list pods" => list(10, &[]),
        "watch pods" => Answer::Watch(Vec::new()),
        review if review.starts_with("review ") => reviewed(true),
        other => status(500, "InternalError", &format!("no answer to {other:?}")),
    }
}

pub fn ok(body: &Value) -> Answer {
    json_answer(200, body)
}

fn json_answer(code: u16, body: &Value) -> Answer {
    Answer::Http {
        code,
        header: "Content-Type: application/json\r\n".into(),
        body: body.to_string(),
    }
}

/// An answer that is not of Kubernetes.
pub fn page(code: u16, body: &str) -> Answer {
    Answer::Http {
        code,
        header: "Content-Type: text/html\r\n".into(),
        body: body.into(),
    }
}

/// The answer of a server that is too busy, before it has read the request.
pub fn busy(seconds: u32) -> Answer {
    Answer::Http {
        code: 429,
        header: format!("Content-Type: text/plain\r\nRetry-After: {seconds}\r\n"),
        body: "Too many requests, please try again later.\n".into(),
    }
}

fn status_body(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

pub fn status(code: u16, reason: &str, message: &str) -> Answer {
    json_answer(code, &status_body(code, reason, message))
}

pub fn not_found() -> Answer {
    status(404, "NotFound", &format!("pods {POD:?} not found"))
}

/// The refusal of an exec whose user lacks a right.
pub fn forbidden_exec(verb: &str) -> Answer {
    let message = format!(
        "pods {POD:?} is forbidden: User \"moat\" cannot {verb} resource \"pods/exec\" in API \
         group \"\" in the namespace {NAMESPACE:?}"
    );
    status(403, "Forbidden", &message)
}

/// The answer to a review of a right.
pub fn reviewed(allowed: bool) -> Answer {
    let body = json!({
        "kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "status": {"allowed": allowed},
    });
    json_answer(201, &body)
}

/// The pod with this status.
pub fn pod(version: u64, status: Value) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": POD, "namespace": NAMESPACE, "uid": UID,
            "resourceVersion": version.to_string(),
            "creationTimestamp": "2026-11-26T10:00:00Z",
            "labels": {"moat.dev/root": ROOT},
            "annotations": {"moat.dev/run": RUN},
        },
        "spec": {"restartPolicy": "Never", "nodeName": "node"},
        "status": status,
    })
}

/// A pod of the same name that was created later.
pub fn replacement(version: u64, status: Value) -> Value {
    let mut pod = pod(version, status);
    pod["metadata"]["uid"] = json!("9b0d9a0e-9d5b-4e0e-8a57-1f9b5f8a2c33");
    pod
}

/// The status of a pod whose containers have these states.
fn with_states(phase: &str, main: &Value, collector: &Value) -> Value {
    let scheduled = json!({
        "type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-26T10:00:00Z",
    });
    json!({
        "phase": phase,
        "conditions": [scheduled],
        "containerStatuses": [
            {"name": "main", "image": "app:1", "imageID": "", "state": main},
            {"name": "moat", "image": "app:1", "imageID": "", "state": collector},
        ],
        "qosClass": "BestEffort",
    })
}

/// The status of a pod that waits.
pub fn waiting(reason: &str) -> Value {
    let message = match reason {
        "ErrImagePull" => {
            "rpc error: code = Unknown desc = Error response from daemon: Get \
             \"https://nope.invalid/v2/\": dial tcp: lookup nope.invalid on 10.0.0.53:53: no such \
             host"
        }
        "ImagePullBackOff" => "Back-off pulling image \"app:1\"",
        "ErrImageNeverPull" => "Container image \"app:1\" is not present with pull policy of Never",
        _ => "",
    };
    let state = json!({"waiting": {"reason": reason, "message": message}});
    with_states("Pending", &state, &state)
}

/// The status of a pod whose containers run.
pub fn running() -> Value {
    let state = json!({"running": {"startedAt": "2026-11-26T10:00:02Z"}});
    with_states("Running", &state, &state)
}

/// The state of a container that has ended.
fn ended_state(code: i64, reason: &str) -> Value {
    json!({"terminated": {
        "exitCode": code, "reason": reason, "containerID": "docker://2ab7",
        "startedAt": "2026-11-26T10:00:02Z", "finishedAt": "2026-11-26T10:00:09Z",
    }})
}

/// The status of a pod whose command has ended, and whose collector runs.
pub fn ended(code: i64) -> Value {
    let collector = json!({"running": {"startedAt": "2026-11-26T10:00:02Z"}});
    with_states("Running", &ended_state(code, "Error"), &collector)
}

/// The status of a pod whose containers have both ended.
pub fn over(code: i64) -> Value {
    let main = ended_state(code, "Error");
    with_states("Failed", &main, &ended_state(1, "Error"))
}

/// The status of a pod whose command waits, and whose collector has ended without a report.
pub fn silent_collector(code: i64) -> Value {
    let main = json!({"running": {"startedAt": "2026-11-26T10:00:02Z"}});
    let collector = json!({"terminated": {
        "exitCode": code, "containerID": "docker://2ab7", "startedAt": null, "finishedAt": null,
    }});
    with_states("Running", &main, &collector)
}

/// The status of a pod whose main container could not be started, as containerd reports it.
pub fn start_error() -> Value {
    let main = json!({"terminated": {
        "exitCode": 128, "reason": "StartError", "containerID": "containerd://2ab7",
        "message": "failed to create containerd task: exec: \"/nope\": no such file or directory",
        "startedAt": "1970-01-01T00:00:00Z", "finishedAt": "2026-11-26T10:00:03Z",
    }});
    let collector = json!({"waiting": {"reason": "PodInitializing"}});
    with_states("Failed", &main, &collector)
}

pub fn list(version: u64, pods: &[Value]) -> Answer {
    ok(&json!({
        "kind": "PodList", "apiVersion": "v1",
        "metadata": {"resourceVersion": version.to_string()},
        "items": pods,
    }))
}

/// An event of a watch.
pub fn event(kind: &str, object: &Value) -> Step {
    let mut line = json!({"type": kind, "object": object}).to_string();
    line.push('\n');
    Step::Send(line.into_bytes())
}

pub fn bookmark(version: u64) -> Step {
    let object = json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
        "spec": {"containers": null}, "status": {},
    });
    event("BOOKMARK", &object)
}

/// The event of a watch whose version is too old.
pub fn expired() -> Step {
    let message = "too old resource version: 12 (4711)";
    event("ERROR", &status_body(410, "Expired", message))
}

/// Bytes on the standard output of an exec.
pub fn stdout(bytes: &[u8]) -> Step {
    Step::Send([&[1], bytes].concat())
}

/// Bytes on the standard error of an exec.
pub fn stderr(text: &str) -> Step {
    Step::Send([&[2], text.as_bytes()].concat())
}

/// The report about the end of an exec.
pub fn exec_status(code: i64) -> Step {
    let body = match code {
        0 => json!({"metadata": {}, "status": "Success"}),
        code => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
    };
    Step::Send([&[3], body.to_string().as_bytes()].concat())
}

/// A frame of the helper.
pub fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    protocol::frame(kind, MICROS, payload)
}

/// The collector's answer to a request for its output.
pub fn hello(offset: usize) -> Step {
    stdout(&frame(Kind::Hello, &(offset as u64).to_le_bytes()))
}

/// An answer of the collector.
pub fn answered(kind: Kind, payload: &[u8]) -> Answer {
    Answer::Exec(vec![
        stdout(&frame(kind, payload)),
        exec_status(0),
        Step::Close,
    ])
}

/// The collector's report about the command.
pub fn report(text: &str) -> Answer {
    answered(Kind::Report, text.as_bytes())
}
