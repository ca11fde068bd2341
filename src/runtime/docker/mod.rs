//! Docker, and engines that implement its API, such as Podman.
//!
//! [`Docker`] is a [`Runtime`]: it runs each [`RunSpec`] in a container of the engine.
//!
//! ```no_run
//! use moat::runtime::docker::Docker;
//! use moat::{Manager, RunSpec};
//!
//! # async fn run() -> moat::Result<()> {
//! let docker = Docker::connect().await?;
//! println!("{docker}"); // Docker Engine 27.1.1 at unix:///var/run/docker.sock
//! let manager = Manager::open("runs", docker).await?;
//! let run = manager.start(RunSpec::new("busybox:1.36").cmd(["date"])).await?;
//! # let _ = run;
//! # Ok(())
//! # }
//! ```
//!
//! # Connecting
//!
//! [`Docker::connect`] uses the engine of Docker's CLI: `DOCKER_HOST`, the current context, else a
//! local socket. [`Docker::connect_to`] takes an address, and [`Docker::connect_with`] also takes a
//! context or TLS certificates. Each of them fails if the engine does not answer within 30 s. A
//! [`Docker`] value stays valid while the engine restarts: each call opens a new connection.
//!
//! `ssh://` runs `docker system dial-stdio` on a host, as Docker's CLI does: one process of `ssh` for
//! each connection. ssh never asks a question (`BatchMode`), so the host key must be known, and a key
//! must need no passphrase or be in an agent. An address of ssh has no password. The stderr of ssh is
//! part of the error if there is no connection.
//!
//! # Engines
//!
//! Docker Engine supports all optional operations of [`Runtime`]. Podman's Docker-compatible socket
//! supports [`exec`](Runtime::exec) from Podman 5 on: Podman 4.3 does not send the output of an
//! exec. [`Runtime::capabilities`] returns the features of a connected engine.
//!
//! # Output
//!
//! Calls with a short response use [bollard]. Output does not, for two reasons. bollard infers the
//! framing of a stream from its bytes, so that a container could forge frames and hide output. It
//! also does not report when the engine has responded to an attach, so that early output could be
//! lost. moat reads output, and other responses that it must see unmodified, over separate
//! connections to the same address.
//!
//! # Logging
//!
//! moat logs no secrets, but bollard does. At level `debug`, the target `bollard` logs each request
//! that creates a container, including its environment variables. If your program logs at that
//! level, exclude bollard with a filter such as `debug,bollard=info`.
//!
//! [bollard]: https://docs.rs/bollard

mod attach;
mod client;
mod connect;
mod connection;
mod container;
mod copy;
mod create;
mod errors;
mod events;
mod exec;
mod follow;
mod image;
mod inspect;
mod log_length;
pub(crate) mod output;
mod resource;
mod secrets;
mod stdin;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use self::client::Client;
pub use self::connect::ConnectOptions;
pub(super) use self::connect::NoEngine;
#[cfg(feature = "tls")]
pub(crate) use self::connection::AnyCertificate;
use self::connection::Environment;
use super::{
    Archive, AttachedOutput, Capabilities, Continuity, CreateRequest, Created, DrainLimit,
    EngineInfo, ExecId, ExecInspection, ImageInfo, InputWriter, Inspection, LabeledContainer,
    LabeledResource, LogsRequest, OutputStream, OwnedContainer, ResourceRequest, Runtime,
    StartedExec, WaitStatus,
};
use crate::error::{Result, RuntimeError};
use crate::outcome::Usage;
use crate::spec::{ContainerId, ExecSpec, InvalidSpec, ResourceKind, RootId, RunSpec, WindowSize};

/// The time for which the daemon keeps output for a reader after an exit, and the size of its
/// buffer for each reader.
const DRAIN_LIMIT: DrainLimit = DrainLimit::new(Duration::from_secs(2), 1_000_000);
/// The daemon discards the output that it has not read at the exit.
const NO_DRAIN: DrainLimit = DrainLimit::new(Duration::ZERO, 0);

/// The first version of Podman whose execs and health checks are supported without limits.
///
/// Podman 4.3 sends no output of an exec, and 4.4 to 4.9 were not tried.
const PODMAN_5: (u64, u64, u64) = (5, 0, 0);

/// A connection to Docker, or to an engine that implements its API.
///
/// Clones share only the address: each call opens its own connection.
///
/// ```no_run
/// # async fn run() -> moat::Result<()> {
/// let docker = moat::runtime::docker::Docker::connect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Docker {
    client: Client,
    /// The host on which published ports are reached.
    port_host: String,
    /// The setting that named the engine, if one did: `from DOCKER_HOST`.
    source: Option<String>,
}

impl fmt::Debug for Docker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Docker")
            .field("address", &self.client.address)
            .field("engine", &self.client.engine)
            .finish_non_exhaustive()
    }
}

/// The engine's name, version and address, and the setting that named it, if one did.
impl fmt::Display for Docker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EngineInfo { name, version, .. } = &self.client.engine;
        write!(f, "{name} {version} at {}", self.client.address)?;
        match &self.source {
            Some(source) => write!(f, " ({source})"),
            None => Ok(()),
        }
    }
}

impl Docker {
    /// Connects to the engine that Docker's CLI uses, else to the first local one that answers.
    ///
    /// 1. `DOCKER_HOST`: a `unix://`, `tcp://`, `http://`, `ssh://` or, with the feature `tls`,
    ///    `https://` address. On Windows, `npipe://` is in place of `unix://`.
    /// 2. The context that `DOCKER_CONTEXT` names.
    /// 3. The current context in Docker's configuration file: `config.json` in `DOCKER_CONFIG`, else
    ///    in `~/.docker`.
    /// 4. The first of these sockets that answers: `/var/run/docker.sock`,
    ///    `$XDG_RUNTIME_DIR/docker.sock`, `~/.docker/run/docker.sock`,
    ///    `~/.docker/desktop/docker.sock`, and those of Colima, OrbStack and Rancher Desktop. On
    ///    Windows, the pipe `//./pipe/docker_engine`.
    ///
    /// The system's socket precedes the user's, since Docker's CLI uses it if there is no context.
    /// A socket that does not exist, may not be opened or does not answer is skipped. The context
    /// named `default` stands for no context. An engine that a variable or a context names is the
    /// only one: if it does not answer, or if the context does not exist, that is an error. A
    /// malformed configuration file is ignored with a warning, as Docker's CLI does.
    ///
    /// # TLS
    ///
    /// The engine of a context is reached as the context states: with TLS if the context has TLS
    /// files, or if it skips the verification of the engine's certificate. The variables below have
    /// no effect on it. If the verification is skipped, moat logs a warning.
    ///
    /// Otherwise TLS is used for `https://`, and for `tcp://` if `DOCKER_TLS_VERIFY` is set. With
    /// `DOCKER_TLS` in its place, the engine's certificate is not verified. If one of the two is
    /// set, and no engine is named, the address is `tcp://localhost:2376`. The directory
    /// `DOCKER_CERT_PATH` holds `ca.pem` and, for a client certificate, `cert.pem` and `key.pem`.
    /// Default: the directory of Docker's configuration file.
    ///
    /// The engine's certificate must be signed by that CA. Unlike Docker's CLI, moat does not trust
    /// the CAs of the system.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Unavailable`]: the engine cannot be reached, or did not answer within 30 s. If
    /// several sockets exist, the timeout of each is 5 s. The error names the engine and the setting
    /// that named it, or each address that was tried, with the reason.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect on the engine.
    pub async fn connect() -> Result<Self> {
        Self::connect_with(ConnectOptions::default()).await
    }

    /// Connects to the engine at `address`.
    ///
    /// `address` is a `unix://`, `tcp://`, `http://`, `https://` or `ssh://` address. `DOCKER_HOST`
    /// and all contexts are ignored. The variables for TLS apply as for [`connect`](Self::connect).
    ///
    /// # Errors
    ///
    /// The errors of [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect on the engine.
    pub async fn connect_to(address: &str) -> Result<Self> {
        Self::connect_with(ConnectOptions::default().address(address)).await
    }

    /// Connects with explicit parameters.
    ///
    /// Parameters that are not set come from the environment, as for
    /// [`connect`](Self::connect).
    ///
    /// # Errors
    ///
    /// The errors of [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect on the engine.
    pub async fn connect_with(options: ConnectOptions) -> Result<Self> {
        let candidates = options.candidates(Environment::read())?;
        match Self::first_of(candidates).await {
            Ok((docker, _)) => Ok(docker),
            Err(no_engine) => Err(RuntimeError::from(no_engine).into()),
        }
    }

    /// Sets the host, by name or address, on which published ports are reached.
    ///
    /// Default: the host of a `tcp://`, `https://` or `ssh://` address, else `127.0.0.1`.
    ///
    /// Set it if the host of an `ssh://` address is an alias in ssh's configuration, which only ssh
    /// can resolve.
    ///
    /// Set it if this process runs in a container and uses the engine of its host: there
    /// `127.0.0.1` is the container. The host is the gateway of the container's network. Its name
    /// is `host.docker.internal` if the container was started with
    /// `--add-host host.docker.internal:host-gateway`.
    pub fn with_port_host(mut self, host: impl Into<String>) -> Self {
        self.port_host = host.into();
        self
    }

    /// Sets the timeout of each call to the engine. Default: 30 s.
    ///
    /// Raise it for an engine under so much load that it takes longer for a call, such as the
    /// creation of a container. Clones that were made before keep their timeout.
    ///
    /// It bounds a call until the response has arrived, or, for output and archives, its first
    /// bytes. Opening a connection has at most 30 s of it. Not affected: waiting for a container,
    /// copying into one, a pull, and the time that [`connect`](Self::connect) takes.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Rejected`]: the timeout is zero.
    ///
    /// ```no_run
    /// # async fn run() -> moat::Result<()> {
    /// use moat::runtime::docker::Docker;
    /// use std::time::Duration;
    ///
    /// let docker = Docker::connect().await?.with_timeout(Duration::from_secs(120))?;
    /// # let _ = docker;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_timeout(mut self, timeout: Duration) -> Result<Self> {
        if timeout.is_zero() {
            let error = RuntimeError::Rejected {
                operation: "set the timeout of the engine's calls",
                reason: "it is zero, so that every call would fail; set a longer one".into(),
            };
            return Err(error.into());
        }
        self.client.timeout = timeout;
        Ok(self)
    }

    pub(super) fn is_podman(&self) -> bool {
        self.client.podman
    }
}

/// Returns the limit past which a version of Docker discards output of a container.
///
/// Since 24.0.0, the daemon waits for its readers after an exit. Until 24.0.5, containerd's client
/// closed the output first.
fn drain_limit(version: &str) -> Option<DrainLimit> {
    match version_numbers(version) {
        (24, 0, ..6) => Some(NO_DRAIN),
        (24.., ..) => None,
        _ => Some(DRAIN_LIMIT),
    }
}

/// Returns the first three numbers of an engine's version.
///
/// A version in another form counts as an old one.
fn version_numbers(version: &str) -> (u64, u64, u64) {
    let mut numbers = version
        .split(['.', '-', '+', '~'])
        .map(|part| part.parse().ok());
    let mut number = || numbers.next().flatten().unwrap_or(0);
    (number(), number(), number())
}

#[async_trait]
impl Runtime for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn capabilities(&self) -> Capabilities {
        let common = Capabilities::NONE
            .with_attach_before_start()
            .with_logs()
            .with_stdin()
            .with_copy_ended()
            .with_ports()
            .with_networks()
            .with_volumes()
            .with_images();
        if self.client.podman {
            // Each container and each exec has a separate monitor process, which reads until the
            // end of the output: there is no drain limit.
            return match version_numbers(&self.client.engine.version) >= PODMAN_5 {
                true => common.with_exec().with_exec_kill(),
                false => common,
            };
        }
        let docker = common
            .with_stdin_reattach()
            .with_exec()
            .with_exec_kill()
            .with_exec_drain(DRAIN_LIMIT);
        match drain_limit(&self.client.engine.version) {
            Some(drain) => docker.with_drain(drain),
            None => docker,
        }
    }

    fn host(&self) -> String {
        self.port_host.clone()
    }

    async fn engine(&self) -> Result<EngineInfo, RuntimeError> {
        self.client.engine_info().await
    }

    fn validate(&self, spec: &RunSpec) -> Result<(), InvalidSpec> {
        create::check(spec)?;
        if self.client.podman {
            create::check_podman(spec)?;
            if version_numbers(&self.client.engine.version) < PODMAN_5 {
                create::check_podman_4(spec.settings())?;
            }
        }
        Ok(())
    }

    async fn prepare(&self, spec: &RunSpec) -> Result<(), RuntimeError> {
        self.client.prepare_image(spec).await
    }

    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
        self.client.create(request).await
    }

    async fn attach(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<AttachedOutput, RuntimeError> {
        self.client.attach(container, tty).await
    }

    async fn attach_running(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        self.client.attach_running(container, tty).await
    }

    async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        self.client.start(container).await
    }

    async fn wait(&self, container: &ContainerId) -> Result<WaitStatus, RuntimeError> {
        self.client.wait(container).await
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Inspection, RuntimeError> {
        self.client.inspect(container).await
    }

    async fn continuity(&self, container: &ContainerId) -> Result<Continuity, RuntimeError> {
        self.client.continuity(container).await
    }

    async fn logs(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        self.client.logs(container, request).await
    }

    async fn log_has_exactly(
        &self,
        container: &ContainerId,
        tty: bool,
        records: u64,
    ) -> Result<bool, RuntimeError> {
        self.client.log_has_exactly(container, tty, records).await
    }

    async fn stdin(&self, container: &ContainerId) -> Result<InputWriter, RuntimeError> {
        self.client.connect_stdin(container).await
    }

    async fn resize(&self, container: &ContainerId, size: WindowSize) -> Result<(), RuntimeError> {
        let path = self.client.container_path(container, "/resize");
        self.client.resize_terminal(path, size).await
    }

    async fn exec(
        &self,
        container: &ContainerId,
        spec: &ExecSpec,
    ) -> Result<StartedExec, RuntimeError> {
        self.client.start_exec(container, spec).await
    }

    async fn exec_inspect(&self, exec: &ExecId) -> Result<ExecInspection, RuntimeError> {
        self.client.inspect_exec(exec).await
    }

    async fn exec_kill(&self, container: &ContainerId, exec: &ExecId) -> Result<(), RuntimeError> {
        self.client.kill_exec(container, exec).await
    }

    async fn exec_resize(&self, exec: &ExecId, size: WindowSize) -> Result<(), RuntimeError> {
        let path = self.client.exec_path(exec, "/resize");
        self.client.resize_terminal(path, size).await
    }

    async fn create_resource(&self, request: ResourceRequest<'_>) -> Result<(), RuntimeError> {
        self.client.create_resource(request).await
    }

    async fn remove_resource(&self, kind: ResourceKind, name: &str) -> Result<(), RuntimeError> {
        self.client.remove_resource(kind, name).await
    }

    async fn find_resources(&self) -> Result<Vec<LabeledResource>, RuntimeError> {
        self.client.find_resources().await
    }

    async fn signal(&self, container: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        self.client.signal(container, signal).await
    }

    async fn remove(&self, container: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        self.client.remove(container, force).await
    }

    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError> {
        self.client.find(root).await
    }

    async fn find_all(&self) -> Result<Vec<LabeledContainer>, RuntimeError> {
        self.client.find_all().await
    }

    async fn stats(&self, container: &ContainerId) -> Result<Usage, RuntimeError> {
        self.client.stats(container).await
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        self.client.images().await
    }

    async fn image_inspect(&self, image: &str) -> Result<ImageInfo, RuntimeError> {
        self.client.image_inspect(image).await
    }

    async fn image_remove(&self, image: &str, force: bool) -> Result<(), RuntimeError> {
        self.client.image_remove(image, force).await
    }

    async fn copy_out(&self, container: &ContainerId, path: &str) -> Result<Archive, RuntimeError> {
        self.client.copy_out(container, path).await
    }

    async fn copy_in(
        &self,
        container: &ContainerId,
        path: &str,
        archive: Archive,
    ) -> Result<(), RuntimeError> {
        self.client.copy_in(container, path, archive).await
    }
}
