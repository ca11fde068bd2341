//! The runtime that is there: Docker, else Podman, else local processes, where the caller allows
//! that.

use std::fmt;
use std::sync::Arc;

use super::Runtime;
use crate::error::{Error, Result, RuntimeError};

/// What to do where no engine answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Fallback {
    /// [`connect`] fails.
    #[default]
    None,
    /// Commands run as local processes, **without any isolation**.
    #[cfg(feature = "process")]
    Process,
}

/// What [`connect`] has settled on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RuntimeKind {
    /// Docker.
    Docker,
    /// Podman, by its Docker-compatible socket.
    Podman,
    /// Local processes.
    Process,
}

/// The runtime that was there, and why it was chosen: its `Display` says both.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Connected {
    /// The runtime, for [`Manager::open`](crate::manager::Manager::open).
    pub runtime: Arc<dyn Runtime>,
    /// What it is.
    pub choice: RuntimeKind,
    /// Its name, version and place, for people: `Docker Engine 27.1.1 at unix:///run/docker.sock`.
    pub chosen: String,
    /// What was tried before it, in order, and why it was not that.
    pub skipped: Vec<String>,
}

impl fmt::Display for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chosen)?;
        for (at, reason) in self.skipped.iter().enumerate() {
            f.write_str(if at == 0 { ", since " } else { "; and " })?;
            f.write_str(reason)?;
        }
        Ok(())
    }
}

/// Connects to the runtime that is there.
///
/// 1. Where `DOCKER_HOST` is set, the engine that it names, and no other one: who names an engine
///    does not mean another machine.
/// 2. Otherwise Docker's socket on this machine, then Podman's: the engine that `CONTAINER_HOST`
///    names, else `$XDG_RUNTIME_DIR/podman/podman.sock`, else `/run/podman/podman.sock`.
/// 3. Otherwise what `fallback` says.
///
/// A root is best kept to one kind of runtime: a manager leaves runs of another kind alone.
///
/// ```no_run
/// # async fn open() -> moat::Result<()> {
/// let there = moat::connect(moat::Fallback::None).await?;
/// println!("{there}"); // Docker Engine 27.1.1 at unix:///var/run/docker.sock
/// let manager = moat::Manager::open("runs", there.runtime).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Runtime`], most often with [`RuntimeError::Unavailable`]: it says what was tried. Each
/// engine has 30 s to answer.
///
/// # Cancel safety
///
/// It changes nothing, and can be dropped.
pub async fn connect(fallback: Fallback) -> Result<Connected> {
    let errors = match engine().await {
        Ok(connected) => return Ok(connected),
        Err(errors) => errors,
    };
    match fallback {
        Fallback::None => Err(all(errors)),
        #[cfg(feature = "process")]
        Fallback::Process => Ok(Connected {
            runtime: Arc::new(super::process::LocalProcess::new()),
            choice: RuntimeKind::Process,
            chosen: "local processes, without any isolation".into(),
            skipped: chains(&errors),
        }),
    }
}

fn chains(errors: &[Error]) -> Vec<String> {
    errors.iter().map(Error::chain).collect()
}

/// All errors as one.
fn all(mut errors: Vec<Error>) -> Error {
    match errors.pop() {
        Some(error) if errors.is_empty() => error,
        last => {
            errors.extend(last);
            RuntimeError::Unavailable {
                address: "the addresses that are known".into(),
                reason: chains(&errors).join("; and "),
            }
            .into()
        }
    }
}

#[cfg(not(feature = "docker"))]
async fn engine() -> Result<Connected, Vec<Error>> {
    let error = RuntimeError::Unavailable {
        address: "any address".into(),
        reason: "moat was built without its feature `docker`".into(),
    };
    Err(vec![error.into()])
}

#[cfg(feature = "docker")]
async fn engine() -> Result<Connected, Vec<Error>> {
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
    let user = get("XDG_RUNTIME_DIR");
    let address = podman(get("CONTAINER_HOST"), user, std::path::Path::exists);
    let connecting = async { Docker::connect_to(&address?).await };
    match connecting.await {
        Ok(docker) => return Ok(connected(docker, &errors)),
        Err(error) => errors.push(error),
    }
    Err(errors)
}

#[cfg(feature = "docker")]
fn connected(docker: super::docker::Docker, errors: &[Error]) -> Connected {
    let choice = match docker.is_podman() {
        true => RuntimeKind::Podman,
        false => RuntimeKind::Docker,
    };
    Connected {
        chosen: docker.to_string(),
        runtime: Arc::new(docker),
        choice,
        skipped: chains(errors),
    }
}

/// Where Podman listens.
#[cfg(feature = "docker")]
fn podman(
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
            reason: format!("there is no socket of Podman at {}", sockets.join(" or ")),
        }),
    }
}

#[cfg(all(test, feature = "docker"))]
mod tests {
    use super::*;

    #[test]
    fn podman_is_where_its_environment_says_else_at_its_sockets_the_users_first() {
        let user = || Some("/run/user/1".to_owned());
        let found = podman(Some("tcp://db:1".into()), user(), |_| true);
        assert_eq!(found.unwrap(), "tcp://db:1");
        let found = podman(None, user(), |_| true);
        assert_eq!(found.unwrap(), "unix:///run/user/1/podman/podman.sock");
        let system = |path: &std::path::Path| path.starts_with("/run/podman");
        let found = podman(None, user(), system);
        assert_eq!(found.unwrap(), "unix:///run/podman/podman.sock");
        let none = podman(None, user(), |_| false).unwrap_err().to_string();
        assert!(none.contains("/run/user/1/podman/podman.sock or /run/podman"));
    }

    #[test]
    fn what_was_tried_is_in_the_error() {
        let error = || {
            Error::from(RuntimeError::Unavailable {
                address: "here".into(),
                reason: "it is gone".into(),
            })
        };
        let one = "cannot reach the engine at here: it is gone";
        assert_eq!(all(vec![error()]).to_string(), one);
        let two = all(vec![error(), error()]).to_string();
        assert!(two.ends_with(&format!("{one}; and {one}")), "{two}");
    }

    #[cfg(feature = "process")]
    #[test]
    fn what_was_chosen_is_told_with_what_was_tried_before() {
        let mut connected = Connected {
            runtime: Arc::new(super::super::process::LocalProcess::new()),
            choice: RuntimeKind::Process,
            chosen: "local processes".into(),
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
