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
    #[cfg(feature = "process")]
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
    let errors = match connect_engine().await {
        Ok(connected) => return Ok(connected),
        Err(errors) => errors,
    };
    match fallback {
        Fallback::None => Err(combine(errors)),
        #[cfg(feature = "process")]
        Fallback::Process => Ok(Connected {
            runtime: Arc::new(super::process::LocalProcess::new()),
            kind: RuntimeKind::Process,
            description: "local processes, without any isolation".into(),
            skipped: chains(&errors),
        }),
    }
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
async fn connect_engine() -> Result<Connected, Vec<Error>> {
    let error = RuntimeError::Unavailable {
        address: "any address".into(),
        reason: "moat was built without the feature `docker`".into(),
    };
    Err(vec![error.into()])
}

#[cfg(feature = "docker")]
async fn connect_engine() -> Result<Connected, Vec<Error>> {
    use super::docker::Docker;

    let mut errors = Vec::new();
    match Docker::connect().await {
        Ok(docker) => return Ok(connected(docker, &errors)),
        Err(error) => errors.push(error),
    }
    let get = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    if get("DOCKER_HOST").is_some() {
        return Err(errors);
    }
    let runtime_dir = get("XDG_RUNTIME_DIR");
    let address = podman_address(get("CONTAINER_HOST"), runtime_dir, std::path::Path::exists);
    let podman = async { Docker::connect_to(&address?).await };
    match podman.await {
        Ok(docker) => return Ok(connected(docker, &errors)),
        Err(error) => errors.push(error),
    }
    Err(errors)
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

    #[cfg(feature = "process")]
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
