//! Execs, and the sizes of terminals.

mod kill;
mod size;

use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

use self::kill::MARKER;
pub(super) use self::size::RepeatedSizes;
use crate::error::RuntimeError;
use crate::runtime::docker::client::{Client, path_segment};
use crate::runtime::docker::connection::Call;
use crate::runtime::docker::errors::{Failure, Refusal};
use crate::runtime::docker::output::Output;
use crate::runtime::{AttachedOutput, ExecId, ExecInspection, StartedExec};
use crate::spec::{ContainerId, ExecSpec, Stdin};

/// The detach keys of an exec, as of an attachment: the JSON body must be valid UTF-8.
const UNUSED_DETACH_KEYS_UTF8: &str =
    "ctrl-@,ctrl-^,ctrl-@,ctrl-@,ctrl-^,ctrl-^,ctrl-@,ctrl-^,ctrl-@,ctrl-@,ctrl-^,ctrl-@";

/// The reason for an exec that is created and not started.
const ID_NOT_RECORDED: &str = "moat cannot record the id of the exec";

/// The response to `POST /containers/{id}/exec`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreatedExec {
    id: String,
}

/// The response to `GET /exec/{id}/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ExecState {
    running: bool,
    #[serde(default)]
    exit_code: Option<i64>,
    #[serde(default)]
    process_config: ProcessConfig,
}

/// The process of an exec in its inspection.
#[derive(Default, Deserialize)]
struct ProcessConfig {
    #[serde(default)]
    user: String,
}

/// Returns the id that the engine gave an exec, and the value of its marker.
pub(super) fn id_and_marker(exec: &ExecId) -> (&str, &str) {
    exec.as_str().split_once('.').unwrap_or((exec.as_str(), ""))
}

impl Client {
    pub(super) fn exec_path(&self, exec: &ExecId, path: &str) -> Result<String, Failure> {
        // Exec ids have the format of container ids.
        let id = ContainerId::new(id_and_marker(exec).0);
        Ok(self.path(&format!("/exec/{}{path}", path_segment(&id)?)))
    }

    pub(super) async fn start_exec(
        &self,
        container: &ContainerId,
        spec: &ExecSpec,
    ) -> Result<StartedExec, RuntimeError> {
        let marker = ulid::Ulid::generate().to_string().to_ascii_lowercase();
        self.start_marked_exec(container, spec, &marker).await
    }

    /// Starts an exec with a marker in its environment; without one if `marker` is empty.
    pub(super) async fn start_marked_exec(
        &self,
        container: &ContainerId,
        spec: &ExecSpec,
        marker: &str,
    ) -> Result<StartedExec, RuntimeError> {
        const OPERATION: &str = "start an exec in the container";
        let started = async {
            let settings = spec.settings("");
            let call = Call::post(self.container_path(container, "/exec")?);
            let created = self.fetch(call.json(&exec_body(spec, marker))).await?;
            let CreatedExec { id } = serde_json::from_slice(&created)
                .map_err(|error| Failure::Broken(error.to_string()))?;
            let id = ExecId::new(format!("{id}.{marker}"));
            if !spec.report_id(id.as_str()).await {
                return Err(Failure::Refused(Refusal::new(500, ID_NOT_RECORDED)));
            }
            let call = Call::post(self.exec_path(&id, "/start")?)
                .json(&json!({"Detach": false, "Tty": settings.tty}))
                .upgrade();
            let answer = self.send(call).await?;
            let (answer, input) = if settings.stdin == Stdin::None {
                (answer, None)
            } else {
                let (answer, input) = answer.split()?;
                (answer, Some(input))
            };
            let output = Output::new(answer, settings.tty, OPERATION, self.address.clone());
            let mut exec = StartedExec::new(id, AttachedOutput::new(output.boxed()));
            exec.input = input;
            Ok(exec)
        };
        started.await.map_err(self.error(OPERATION))
    }

    pub(super) async fn inspect_exec(&self, exec: &ExecId) -> Result<ExecInspection, RuntimeError> {
        let state = self.exec_state(exec).await?;
        Ok(match state.running {
            true => ExecInspection::RUNNING,
            false => ExecInspection::ended(state.exit_code),
        })
    }

    /// Returns the user of an exec. Empty: the container's.
    pub(super) async fn exec_user(&self, exec: &ExecId) -> Result<String, RuntimeError> {
        Ok(self.exec_state(exec).await?.process_config.user)
    }

    async fn exec_state(&self, exec: &ExecId) -> Result<ExecState, RuntimeError> {
        let state = async {
            let call = Call::get(self.exec_path(exec, "/json")?);
            let json = self.fetch(call).await?;
            serde_json::from_slice(&json).map_err(|error| Failure::malformed(&error))
        };
        state.await.map_err(self.error("inspect the exec"))
    }
}

/// The body of `POST /containers/{id}/exec`.
fn exec_body(spec: &ExecSpec, marker: &str) -> Value {
    let settings = spec.settings("");
    let marker = Some((MARKER, marker)).filter(|(_, marker)| !marker.is_empty());
    let env: Vec<_> = spec
        .environment()
        .chain(marker)
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut body = json!({
        "AttachStdin": settings.stdin != Stdin::None,
        "AttachStdout": true,
        "AttachStderr": true,
        "DetachKeys": UNUSED_DETACH_KEYS_UTF8,
        "Tty": settings.tty,
        "Cmd": settings.cmd,
        "Env": env,
        "WorkingDir": settings.workdir.unwrap_or_default(),
        "User": settings.user.unwrap_or_default(),
    });
    if let Some(size) = settings.window {
        // Engines before API 1.42 ignore it.
        body["ConsoleSize"] = json!([size.rows, size.columns]);
    }
    body
}
