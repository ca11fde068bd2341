//! The engine that tests run on.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder};

use crate::harness::{self, Need};

/// True with `MOAT_ENGINE=required`: without an engine, trials fail and are not skipped.
pub fn is_required() -> bool {
    harness::is_required("MOAT_ENGINE")
}

/// An engine that answers, or is required.
pub fn need() -> &'static Need {
    static NEED: OnceLock<Need> = OnceLock::new();
    NEED.get_or_init(|| match is_required() || answers() {
        true => Ok(()),
        false => Err(format!(
            "no Docker engine answered at {} (set MOAT_ENGINE=required to fail instead)",
            address()
        )),
    })
}

/// The address of the engine, as in `DOCKER_HOST`.
pub fn address() -> String {
    std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into())
}

fn answers() -> bool {
    block_on(async {
        let Ok(docker) = connect() else { return false };
        let ping = tokio::time::timeout(Duration::from_secs(5), docker.ping());
        matches!(ping.await, Ok(Ok(_)))
    })
}

/// A client that is independent of moat.
///
/// # Errors
///
/// If the address of the engine is not usable.
pub fn connect() -> Result<Docker, String> {
    Docker::connect_with_defaults().map_err(|error| format!("cannot reach an engine: {error}"))
}

/// Runs `future` on a separate thread. The caller may be async code.
///
/// # Panics
///
/// If `future` panics.
pub fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be made")
                .block_on(future)
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The id of the root in `directory`, if there is one.
pub fn root_id(directory: &Path) -> Option<String> {
    let text = std::fs::read_to_string(directory.join("root.json")).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    ["id", "root"]
        .iter()
        .find_map(|key| Some(json.get(key)?.as_str()?.to_owned()))
}

/// The ids of all containers of a root, in any state.
///
/// # Errors
///
/// If the engine does not answer.
pub async fn containers(docker: &Docker, root: &str) -> Result<Vec<String>, String> {
    let label = format!("moat.root={root}");
    let options = ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&[("label", vec![label.as_str()])].into())
        .build();
    let found = docker
        .list_containers(Some(options))
        .await
        .map_err(|error| format!("cannot list containers: {error}"))?;
    Ok(found.into_iter().filter_map(|found| found.id).collect())
}

/// Removes a container without moat.
///
/// # Errors
///
/// If the engine refuses. A container that is gone is not an error.
pub async fn remove(docker: &Docker, container: &str) -> Result<(), String> {
    let options = RemoveContainerOptionsBuilder::new()
        .force(true)
        .v(true)
        .build();
    match docker.remove_container(container, Some(options)).await {
        // Removed, or its removal is in progress.
        Err(Error::DockerResponseServerError {
            status_code: 404 | 409,
            ..
        })
        | Ok(()) => Ok(()),
        Err(error) => Err(format!("cannot remove {container}: {error}")),
    }
}

/// Removes all containers of the root in `directory`.
pub fn sweep(directory: &Path) {
    let Some(root) = root_id(directory) else {
        return;
    };
    block_on(async {
        let Ok(docker) = connect() else { return };
        for container in containers(&docker, &root).await.unwrap_or_default() {
            if let Err(error) = remove(&docker, &container).await {
                eprintln!("{error}");
            }
        }
    });
}
