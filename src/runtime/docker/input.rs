//! Input, terminals, and further processes in a container.

use futures::StreamExt;
use serde::Deserialize;
use serde_json::json;

use super::errors::Failure;
use super::output::Output;
use super::transport::Call;
use super::{Docker, accepted, checked, whole};
use crate::error::RuntimeError;
use crate::runtime::{ExecId, ExecInspection, InputWriter, StartedExec};
use crate::spec::{ContainerId, ExecSpec, Stdin, WindowSize};

/// Keys that make an engine let go of a terminal, as a part of a query.
///
/// An engine looks for such keys in what is typed, `ctrl-p,ctrl-q` unless it is told others: they
/// would not reach the container, and the first of them would not until the next key. It cannot be
/// told to look for none. So it is given a sequence that nobody types, of bytes that are not in
/// UTF-8.
const NOBODYS_KEYS: &str = "%FF,%FE,%FF,%FF,%FE,%FE,%FF,%FE,%FF,%FF,%FE,%FE,%FF,%FE,%FF,%FF";
/// The same for the body of a request, which is text.
const NOBODYS_KEYS_AS_TEXT: &str =
    "ctrl-@,ctrl-^,ctrl-@,ctrl-@,ctrl-^,ctrl-^,ctrl-@,ctrl-^,ctrl-@,ctrl-@,ctrl-^,ctrl-@";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Made {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Looked {
    running: bool,
    #[serde(default)]
    exit_code: Option<i64>,
}

impl Docker {
    pub(super) async fn connect_stdin(
        &self,
        container: &ContainerId,
    ) -> Result<InputWriter, RuntimeError> {
        let writer = async {
            let call = Call::post(self.container_path(container, "/attach")?)
                .query("stream", "1")
                .query("stdin", "1")
                .literal_query("detachKeys", NOBODYS_KEYS)
                .upgrade();
            accepted(&self.dial, call).await?.writer()
        };
        writer
            .await
            .map_err(self.error("attach to the container's input"))
    }

    pub(super) async fn set_size(
        &self,
        path: Result<String, Failure>,
        size: WindowSize,
    ) -> Result<(), RuntimeError> {
        let resized = async {
            let call = Call::post(path?)
                .query("h", &size.rows.to_string())
                .query("w", &size.columns.to_string());
            whole(&self.dial, call).await.map(drop)
        };
        resized.await.map_err(self.error("resize the terminal"))
    }

    pub(super) fn exec_path(&self, exec: &ExecId, path: &str) -> Result<String, Failure> {
        // Its form is that of a container's id.
        let id = ContainerId::new(exec.as_str());
        Ok(self.path(&format!("/exec/{}{path}", checked(&id)?)))
    }

    pub(super) async fn start_exec(
        &self,
        container: &ContainerId,
        spec: &ExecSpec,
    ) -> Result<StartedExec, RuntimeError> {
        const OPERATION: &str = "run a further process in the container";
        let started = async {
            let set = spec.settings("");
            let stdin = set.stdin != Stdin::None;
            let env: Vec<_> = spec
                .environment()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let mut body = json!({
                "AttachStdin": stdin, "AttachStdout": true, "AttachStderr": true,
                "DetachKeys": NOBODYS_KEYS_AS_TEXT,
                "Tty": set.tty, "Cmd": set.cmd, "Env": env,
                "WorkingDir": set.workdir.unwrap_or_default(),
                "User": set.user.unwrap_or_default(),
            });
            if let Some(size) = set.window {
                // Engines before API 1.42 do not know it.
                body["ConsoleSize"] = json!([size.rows, size.columns]);
            }
            let call = Call::post(self.container_path(container, "/exec")?).json(&body);
            let made = whole(&self.dial, call).await?;
            let Made { id } = serde_json::from_slice(&made)
                .map_err(|error| Failure::Broken(error.to_string()))?;
            let id = ExecId::new(id);
            let call = Call::post(self.exec_path(&id, "/start")?)
                .json(&json!({"Detach": false, "Tty": set.tty}))
                .upgrade();
            let answer = accepted(&self.dial, call).await?;
            let (answer, input) = match stdin {
                true => answer
                    .split()
                    .map(|(answer, input)| (answer, Some(input)))?,
                false => (answer, None),
            };
            let output = Output::new(answer, set.tty, OPERATION, self.address.clone());
            let mut execed = StartedExec::new(id, output.boxed());
            execed.input = input;
            Ok(execed)
        };
        started.await.map_err(self.error(OPERATION))
    }

    pub(super) async fn inspect_exec(&self, exec: &ExecId) -> Result<ExecInspection, RuntimeError> {
        let looked = async {
            let call = Call::get(self.exec_path(exec, "/json")?);
            let json = whole(&self.dial, call).await?;
            let looked: Looked = serde_json::from_slice(&json)
                .map_err(|error| Failure::Broken(error.to_string()))?;
            Ok(match looked.running {
                true => ExecInspection::RUNNING,
                false => ExecInspection::ended(looked.exit_code),
            })
        };
        looked.await.map_err(self.error("inspect a process"))
    }
}
