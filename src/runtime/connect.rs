//! The selection of a runtime: the engine of Docker's CLI, else a local Docker or Podman, else local
//! processes if the caller allows it.

use std::fmt;
use std::sync::Arc;

use super::Runtime;
use crate::error::{Result, RuntimeError};

/// The behavior of [`connect`] if no variable names an engine and no engine answers.
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
    /// The name, version and address, and the setting that named the engine, if one did.
    ///
    /// For example `Docker Engine 27.1.1 at tcp://db:2375 (from DOCKER_HOST)` or
    /// `Docker Engine 28.5.2 at unix:///run/user/1000/docker.sock (context "rootless", from
    /// /home/me/.docker/config.json)`.
    pub description: String,
    /// The addresses that were tried before, in order, each with the reason why it was skipped.
    ///
    /// Sockets that do not exist share one text. If Docker's configuration file is malformed, that
    /// is the first text.
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

/// Connects to the engine that Docker's CLI uses, else to the first local engine that answers.
///
/// 1. An engine that is named: by `DOCKER_HOST`, else by `DOCKER_CONTEXT`, else by the current
///    context of Docker's configuration file. See `Docker::connect` for the details.
/// 2. Otherwise the first socket that answers: Docker's, in the order of `Docker::connect`, then
///    Podman's: the engine that `CONTAINER_HOST` names, else `$XDG_RUNTIME_DIR/podman/podman.sock`,
///    the socket of Podman's default machine, and `/run/podman/podman.sock`.
/// 3. Otherwise the `fallback`.
///
/// An engine that is named is the only one: no other engine takes its place. If a variable names
/// it, and it cannot be used, that is an error with every fallback: a caller who names an engine
/// does not want a run without isolation. The same holds for `CONTAINER_HOST`, if no socket of
/// Docker answers. If only the configuration file names it, and it does not answer, the `fallback`
/// decides.
///
/// The timeout of a named engine is 30 s. If several sockets exist, the timeout of each is 5 s: an
/// engine that needs longer is skipped. Name the engine if a program must never use another one.
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
/// [`Error::Runtime`](crate::error::Error::Runtime) with [`RuntimeError::Unavailable`], which names
/// the engine and the setting that named it, or each address that was tried with its reason.
///
/// # Cancel safety
///
/// The call changes nothing and is cancel-safe.
pub async fn connect(fallback: Fallback) -> Result<Connected> {
    let unavailable = match connect_engine().await? {
        Ok(connected) => return Ok(connected),
        Err(unavailable) => unavailable,
    };
    match fallback {
        Fallback::None => Err(unavailable.0.into()),
        #[cfg(all(feature = "process", unix))]
        Fallback::Process => Ok(Connected {
            runtime: Arc::new(super::process::LocalProcess::new()),
            kind: RuntimeKind::Process,
            description: "local processes, without any isolation".into(),
            skipped: unavailable.1,
        }),
    }
}

/// An engine, or the error and the reasons that no local engine answers.
type Search = Result<Connected, (RuntimeError, Vec<String>)>;

/// Connects to an engine. The outer error is that of a named engine, which has no fallback.
#[cfg(not(feature = "docker"))]
async fn connect_engine() -> Result<Search, RuntimeError> {
    let reason = "moat was built without the feature `docker`";
    // A build without engines refuses the variables too: they ask for isolation.
    for variable in ["DOCKER_HOST", "DOCKER_CONTEXT"] {
        let value = std::env::var_os(variable).unwrap_or_default();
        let value = value.to_string_lossy();
        if !value.is_empty() && (variable, &*value) != ("DOCKER_CONTEXT", "default") {
            return Err(RuntimeError::Unavailable {
                // The value may have a password.
                address: format!("the address from {variable}"),
                reason: format!("{reason}; unset {variable} if a local process will do"),
            });
        }
    }
    let error = RuntimeError::Unavailable {
        address: "any address".into(),
        reason: reason.into(),
    };
    let skipped = vec![error.to_string()];
    Ok(Err((error, skipped)))
}

/// Connects to an engine. The outer error is that of a named engine, which has no fallback.
#[cfg(feature = "docker")]
async fn connect_engine() -> Result<Search, RuntimeError> {
    use super::docker::{Docker, NoEngine};

    match Docker::find().await {
        Ok((docker, skipped)) => Ok(Ok(Connected {
            description: docker.to_string(),
            kind: match docker.is_podman() {
                true => RuntimeKind::Podman,
                false => RuntimeKind::Docker,
            },
            runtime: Arc::new(docker),
            skipped,
        })),
        Err(NoEngine::Named(error)) => Err(error),
        Err(NoEngine::Unavailable { error, skipped }) => Ok(Err((error, skipped))),
    }
}

#[cfg(all(test, feature = "process", unix))]
mod tests {
    use super::*;

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
