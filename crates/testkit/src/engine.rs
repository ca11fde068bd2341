//! The engine that tests run on.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{RemoveContainerOptionsBuilder, RemoveVolumeOptions};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

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

/// True if the engine is Podman.
///
/// # Panics
///
/// If the engine does not answer.
pub fn is_podman() -> bool {
    static PODMAN: OnceLock<bool> = OnceLock::new();
    *PODMAN.get_or_init(|| {
        let version = block_on(async { get(&address(), "/version").await });
        let version = version.expect("the engine answers");
        let components = version["Components"].as_array().into_iter().flatten();
        components
            .into_iter()
            .any(|found| found["Name"] == "Podman Engine")
    })
}

/// An engine that is not Podman, which is skipped for this reason.
pub fn unless_podman(reason: &str) -> Need {
    match need() {
        Ok(()) if is_podman() => Err(reason.into()),
        need => need.clone(),
    }
}

/// Containers with a network whose ports this machine reaches.
///
/// The engines of `tests/engines/` have none, and say so by `MOAT_ENGINE_NETWORK=none`.
pub fn network() -> &'static Need {
    static NEED: OnceLock<Need> = OnceLock::new();
    NEED.get_or_init(|| match std::env::var("MOAT_ENGINE_NETWORK") {
        Ok(network) if network == "none" => Err("the engine has no network".into()),
        _ => need().clone(),
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

/// Lets `command` find no engine: the current context of its configuration leads nowhere.
///
/// # Panics
///
/// If the configuration cannot be written to `directory`.
pub fn hide(command: &mut std::process::Command, directory: &Path) {
    let context = "nowhere";
    let digest = Sha256::digest(context);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let config = directory.join("docker-config");
    let meta = config.join("contexts/meta").join(digest);
    std::fs::create_dir_all(&meta).expect("a directory can be created");
    let write = |path: PathBuf, json: Value| {
        std::fs::write(path, json.to_string()).expect("a file can be written");
    };
    let endpoint = json!({"Host": "unix:///nowhere/docker.sock"});
    let metadata = json!({"Name": context, "Endpoints": {"docker": endpoint}});
    write(meta.join("meta.json"), metadata);
    write(
        config.join("config.json"),
        json!({"currentContext": context}),
    );
    command
        .env("DOCKER_CONFIG", config)
        .env_remove("DOCKER_HOST")
        .env_remove("DOCKER_CONTEXT");
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
    let json: Value = serde_json::from_str(&text).ok()?;
    ["id", "root"]
        .iter()
        .find_map(|key| Some(json.get(key)?.as_str()?.to_owned()))
}

/// The ids of all containers of a root, in any state.
///
/// Read without bollard, which does not know Podman's state `stopped`.
///
/// # Errors
///
/// If the engine does not answer.
pub async fn containers(engine: &str, root: &str) -> Result<Vec<String>, String> {
    let filters = format!("%7B%22label%22%3A%5B%22moat.root%3D{root}%22%5D%7D");
    let found = get(engine, &format!("/containers/json?all=1&filters={filters}")).await?;
    let ids = found.as_array().into_iter().flatten();
    let ids = ids.filter_map(|found| Some(found["Id"].as_str()?.to_owned()));
    Ok(ids.collect())
}

/// What the engine reports of a container.
///
/// # Errors
///
/// If the engine does not answer, or has no such container.
pub async fn inspect(engine: &str, container: &str) -> Result<Value, String> {
    get(engine, &format!("/containers/{container}/json")).await
}

/// The response to a request without a body.
async fn get(engine: &str, path: &str) -> Result<Value, String> {
    let failed = |error: std::io::Error| format!("cannot get {path} from {engine}: {error}");
    let response = match engine.split_once("://") {
        Some(("unix", socket)) => {
            let stream = UnixStream::connect(socket).await.map_err(failed)?;
            exchange(stream, path).await.map_err(failed)?
        }
        Some((_, host)) => {
            let stream = TcpStream::connect(host).await.map_err(failed)?;
            exchange(stream, path).await.map_err(failed)?
        }
        None => return Err(format!("{engine} is no address")),
    };
    let body = response.split_once("\r\n\r\n").unwrap_or_default().1;
    match response.split(' ').nth(1) {
        Some("200") => serde_json::from_str(body).map_err(|error| format!("{path}: {error}")),
        _ => Err(format!("cannot get {path}: {response}")),
    }
}

/// HTTP/1.0: the response ends with the connection.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &str,
) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: engine\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    Ok(response)
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

/// The names of all networks and of all volumes of a root.
async fn resources(engine: &str, root: &str) -> Result<(Vec<String>, Vec<String>), String> {
    let filters = format!("filters=%7B%22label%22%3A%5B%22moat.root%3D{root}%22%5D%7D");
    let networks = get(engine, &format!("/networks?{filters}")).await?;
    let volumes = get(engine, &format!("/volumes?{filters}")).await?;
    let names = |found: &Value| -> Vec<String> {
        let found = found.as_array().into_iter().flatten();
        found
            .filter_map(|found| Some(found["Name"].as_str()?.to_owned()))
            .collect()
    };
    Ok((names(&networks), names(&volumes["Volumes"])))
}

/// The containers, networks and volumes of a root.
///
/// # Errors
///
/// If the engine does not answer.
pub async fn left(engine: &str, root: &str) -> Result<Vec<String>, String> {
    let (networks, volumes) = resources(engine, root).await?;
    let containers = containers(engine, root).await?;
    Ok([containers, networks, volumes].concat())
}

/// Removes all containers of the root in `directory`, and its networks and volumes.
pub fn sweep(directory: &Path) {
    let Some(root) = root_id(directory) else {
        return;
    };
    block_on(async {
        let Ok(docker) = connect() else { return };
        for container in containers(&address(), &root).await.unwrap_or_default() {
            if let Err(error) = remove(&docker, &container).await {
                eprintln!("{error}");
            }
        }
        let (networks, volumes) = resources(&address(), &root).await.unwrap_or_default();
        for network in networks {
            if let Err(error) = docker.remove_network(&network).await {
                eprintln!("{error}");
            }
        }
        for volume in volumes {
            if let Err(error) = docker
                .remove_volume(&volume, None::<RemoveVolumeOptions>)
                .await
            {
                eprintln!("{error}");
            }
        }
    });
}
