//! The selection of a runtime: Docker, else Podman, else local processes if the caller allows it.

use std::fmt;
use std::sync::Arc;

use super::Runtime;
use crate::error::{Error, Result, RuntimeError};

/// The behavior of [`connect`] if no engine answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Fallback {
    /// [`connect`] fails.
    #[default]
    None,
    /// [`connect`] returns local processes, **without any isolation**.
    #[cfg(all(feature = "process", unix))]
    Process,
}

/// The kind of a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RuntimeKind {
    /// Docker.
    Docker,
    /// Podman, through its Docker-compatible socket.
    Podman,
    /// Local processes.
    Process,
}

/// The runtime that [`connect`] selected.
///
/// Its `Display` names the runtime and the reason.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Connected {
    /// The runtime, for [`Manager::open`](crate::manager::Manager::open).
    pub runtime: Arc<dyn Runtime>,
    /// The kind of the runtime.
    pub kind: RuntimeKind,
    /// The name, version and address: `Docker Engine 27.1.1 at tcp://db:2375`.
    pub description: String,
    /// The errors of the engines that were tried before, in order.
    pub skipped: Vec<String>,
}

impl fmt::Display for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)?;
        for (at, reason) in self.skipped.iter().enumerate() {
            f.write_str(if at == 0 { ", since " } else { "; and " })?;
            f.write_str(reason)?;
        }
        Ok(())
    }
}

/// Connects to the first runtime that is available.
///
/// 1. If `DOCKER_HOST` is set, only the engine that it names. A caller who names an engine does
///    not want another machine.
/// 2. Otherwise Docker's socket on this machine, then Podman's: the engine that `CONTAINER_HOST`
///    names, else `$XDG_RUNTIME_DIR/podman/podman.sock`, else `/run/podman/podman.sock`.
/// 3. Otherwise the `fallback`.
///
/// A malformed or unsupported address in `DOCKER_HOST`, or in `CONTAINER_HOST` where that is used,
/// is an error with every fallback.
///
/// Use one kind of runtime for each root: a manager ignores runs of another kind.
///
/// ```no_run
/// # async fn open() -> moat::Result<()> {
/// let connected = moat::connect(moat::Fallback::None).await?;
/// println!("{connected}"); // Docker Engine 27.1.1 at unix:///var/run/docker.sock
/// let manager = moat::Manager::open("runs", connected.runtime).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Runtime`], usually with [`RuntimeError::Unavailable`], which names the engines that
/// were tried. The timeout for each engine is 30 s.
///
/// # Cancel safety
///
/// The call changes nothing and is cancel-safe.
pub async fn connect(fallback: Fallback) -> Result<Connected> {
    let errors = match connect_engine(variable).await {
        Ok(connected) => return Ok(connected),
        Err(NoEngine::Misconfigured(error)) => return Err(error),
        Err(NoEngine::Unavailable(errors)) => errors,
    };
    match fallback {
        Fallback::None => Err(combine(errors)),
        #[cfg(all(feature = "process", unix))]
        Fallback::Process => Ok(Connected {
            runtime: Arc::new(super::process::LocalProcess::new()),
            kind: RuntimeKind::Process,
            description: "local processes, without any isolation".into(),
            skipped: chains(&errors),
        }),
    }
}

/// Returns the value of an environment variable. An empty variable counts as unset.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
    Some(value.to_string_lossy().into_owned())
}

/// The reason that there is no engine.
#[derive(Debug)]
enum NoEngine {
    /// A variable has an address that cannot be used.
    #[cfg_attr(not(feature = "docker"), expect(dead_code))]
    Misconfigured(Error),
    /// The errors of the engines that were tried, in order.
    Unavailable(Vec<Error>),
}

fn chains(errors: &[Error]) -> Vec<String> {
    errors.iter().map(Error::chain).collect()
}

/// Combines all errors into one.
fn combine(mut errors: Vec<Error>) -> Error {
    match errors.pop() {
        Some(error) if errors.is_empty() => error,
        last => {
            errors.extend(last);
            RuntimeError::Unavailable {
                address: "any known address".into(),
                reason: chains(&errors).join("; and "),
            }
            .into()
        }
    }
}

#[cfg(not(feature = "docker"))]
async fn connect_engine(_: impl Fn(&str) -> Option<String>) -> Result<Connected, NoEngine> {
    let error = RuntimeError::Unavailable {
        address: "any address".into(),
        reason: "moat was built without the feature `docker`".into(),
    };
    Err(NoEngine::Unavailable(vec![error.into()]))
}

#[cfg(feature = "docker")]
async fn connect_engine(variable: impl Fn(&str) -> Option<String>) -> Result<Connected, NoEngine> {
    use super::docker::{Docker, check_address};

    let check = |name| match variable(name) {
        Some(address) => check_address(&address, name)
            .map(|()| Some(address))
            .map_err(|error| NoEngine::Misconfigured(error.into())),
        None => Ok(None),
    };
    let docker_host = check("DOCKER_HOST")?;
    let mut errors = Vec::new();
    match Docker::connect().await {
        Ok(docker) => return Ok(connected(docker, &errors)),
        Err(error) => errors.push(error),
    }
    if docker_host.is_some() {
        return Err(NoEngine::Unavailable(errors));
    }
    let container_host = check("CONTAINER_HOST")?;
    let runtime_dir = variable("XDG_RUNTIME_DIR");
    let address = podman_address(container_host, runtime_dir, std::path::Path::exists);
    let podman = async { Docker::connect_to(&address?).await };
    match podman.await {
        Ok(docker) => return Ok(connected(docker, &errors)),
        Err(error) => errors.push(error),
    }
    Err(NoEngine::Unavailable(errors))
}

#[cfg(feature = "docker")]
fn connected(docker: super::docker::Docker, errors: &[Error]) -> Connected {
    let kind = match docker.is_podman() {
        true => RuntimeKind::Podman,
        false => RuntimeKind::Docker,
    };
    Connected {
        description: docker.to_string(),
        runtime: Arc::new(docker),
        kind,
        skipped: chains(errors),
    }
}

/// Returns the address of Podman.
#[cfg(feature = "docker")]
fn podman_address(
    host: Option<String>,
    runtime_dir: Option<String>,
    exists: impl Fn(&std::path::Path) -> bool,
) -> Result<String, RuntimeError> {
    if let Some(host) = host {
        return Ok(host);
    }
    let user = runtime_dir.map(|dir| format!("{dir}/podman/podman.sock"));
    let sockets: Vec<_> = user
        .into_iter()
        .chain(["/run/podman/podman.sock".into()])
        .collect();
    match sockets.iter().find(|path| exists(path.as_ref())) {
        Some(path) => Ok(format!("unix://{path}")),
        None => Err(RuntimeError::Unavailable {
            address: format!("unix://{}", sockets[0]),
            reason: format!("Podman has no socket at {}", sockets.join(" or ")),
        }),
    }
}

#[cfg(all(test, feature = "docker"))]
mod tests {
    use super::*;

    #[test]
    fn the_user_socket_of_podman_precedes_the_system() {
        let user = || Some("/run/user/1".to_owned());
        let found = podman_address(Some("tcp://db:1".into()), user(), |_| true);
        assert_eq!(found.unwrap(), "tcp://db:1");
        let found = podman_address(None, user(), |_| true);
        assert_eq!(found.unwrap(), "unix:///run/user/1/podman/podman.sock");
        let system = |path: &std::path::Path| path.starts_with("/run/podman");
        let found = podman_address(None, user(), system);
        assert_eq!(found.unwrap(), "unix:///run/podman/podman.sock");
        let none = podman_address(None, user(), |_| false)
            .unwrap_err()
            .to_string();
        assert!(none.contains("/run/user/1/podman/podman.sock or /run/podman"));
    }

    #[test]
    fn the_error_names_all_engines_that_were_tried() {
        let error = || {
            Error::from(RuntimeError::Unavailable {
                address: "here".into(),
                reason: "it is gone".into(),
            })
        };
        let one = "cannot reach the engine at here: it is gone";
        assert_eq!(combine(vec![error()]).to_string(), one);
        let two = combine(vec![error(), error()]).to_string();
        assert!(two.ends_with(&format!("{one}; and {one}")), "{two}");
    }

    #[tokio::test]
    async fn a_malformed_docker_host_is_an_error_with_every_fallback() {
        let mut addresses = vec!["tcp//x", "foo://bar", "unix://", "ssh://", " "];
        if !cfg!(feature = "tls") {
            addresses.push("https://host");
        }
        for address in addresses {
            let variable = |name: &str| (name == "DOCKER_HOST").then(|| address.to_owned());
            match connect_engine(variable).await {
                Err(NoEngine::Misconfigured(error)) => {
                    let error = error.to_string();
                    assert!(error.contains(" (from DOCKER_HOST): "), "{error}");
                }
                other => panic!("{address}: {other:?}"),
            }
        }
    }

    #[cfg(all(feature = "process", unix))]
    #[test]
    fn the_display_names_the_engines_that_were_skipped() {
        let mut connected = Connected {
            runtime: Arc::new(super::super::process::LocalProcess::new()),
            kind: RuntimeKind::Process,
            description: "local processes".into(),
            skipped: vec!["no Docker".into(), "no Podman".into()],
        };
        assert_eq!(
            connected.to_string(),
            "local processes, since no Docker; and no Podman"
        );
        connected.skipped.clear();
        assert_eq!(connected.to_string(), "local processes");
    }
}
