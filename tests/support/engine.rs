//! The engine that tests run against, if there is one.

use std::path::Path;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder};

/// Whether an engine answers, or must: with `MOAT_ENGINE=required` its absence is a failure.
pub fn is_expected() -> bool {
    std::env::var("MOAT_ENGINE").is_ok_and(|value| value == "required") || answers()
}

fn answers() -> bool {
    block_on(async {
        let Ok(docker) = connect() else { return false };
        let ping = tokio::time::timeout(Duration::from_secs(5), docker.ping());
        matches!(ping.await, Ok(Ok(_)))
    })
}

/// A client of its own, that moat knows nothing of.
pub fn connect() -> Result<Docker, String> {
    Docker::connect_with_defaults().map_err(|error| format!("cannot reach an engine: {error}"))
}

/// Runs `future` to its end, whether or not the caller is in an async context.
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

/// The id of the root in `folder`, if one was made there.
pub fn root_id(dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(dir.join("root.json")).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    ["id", "root"]
        .iter()
        .find_map(|key| Some(json.get(key)?.as_str()?.to_owned()))
}

/// The ids of all containers of a root, in every state.
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

/// Removes a container behind moat's back.
pub async fn remove(docker: &Docker, container: &str) -> Result<(), String> {
    let options = RemoveContainerOptionsBuilder::new()
        .force(true)
        .v(true)
        .build();
    match docker.remove_container(container, Some(options)).await {
        // Gone, or about to be.
        Err(Error::DockerResponseServerError {
            status_code: 404 | 409,
            ..
        })
        | Ok(()) => Ok(()),
        Err(error) => Err(format!("cannot remove {container}: {error}")),
    }
}

/// Removes all containers of the root in `folder`, whatever a test has left behind.
pub fn sweep(dir: &Path) {
    let Some(root) = root_id(dir) else { return };
    block_on(async {
        let Ok(docker) = connect() else { return };
        for container in containers(&docker, &root).await.unwrap_or_default() {
            if let Err(error) = remove(&docker, &container).await {
                eprintln!("{error}");
            }
        }
    });
}
