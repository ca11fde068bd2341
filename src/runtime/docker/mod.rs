//! The adapter to Docker, and to engines that speak its protocol, such as Podman.
//!
//! Requests with a short answer go through [bollard]. Output does not: bollard takes a stream
//! apart by guessing the framing from its bytes, so that a container could hide what it prints,
//! and it does not tell when the engine has answered. Output, and whatever else has to be seen as
//! the engine sends it, comes over connections of their own to the same address.
//!
//! # Logging
//!
//! moat logs no secret. bollard does: with the level `debug` of the target `bollard`, it logs each
//! request to create a container, with its environment. Where a program logs at that level, leave
//! bollard out of it, with a filter such as `debug,bollard=info`.
//!
//! [bollard]: https://docs.rs/bollard

mod address;
mod check;
mod complaint;
mod copy;
mod create;
mod credentials;
pub(crate) mod demux;
mod dial;
mod errors;
mod events;
mod input;
mod inspect;
mod output;
mod patch;
mod pull;
#[cfg(test)]
mod tests;
#[cfg(feature = "tls")]
mod tls;
mod transport;

use std::fmt;
use std::future::Future;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bollard::query_parameters::{
    CreateContainerOptions, KillContainerOptions, RemoveContainerOptions, StartContainerOptions,
};
use futures::StreamExt;
use tokio::time::{sleep, timeout};

use self::address::{Address, Environment};
use self::create::Log;
use self::dial::Dial;
use self::errors::{Failure, Refusal};
use self::output::Output;
use self::transport::{Answer, Call, exchange};
use super::{
    Archive, Capabilities, Continuity, CreateRequest, Created, DrainLimit, EngineInfo, ExecId,
    ExecInspection, InputWriter, Inspection, LabeledContainer, LogsRequest, OutputStream,
    OwnedContainer, Runtime, StartedExec, WaitStatus,
};
use crate::error::{Result, RuntimeError};
use crate::outcome::Usage;
use crate::spec::{ContainerId, ExecSpec, InvalidSpec, RootId, RunSpec, WindowSize};

/// The bound of each call that has one.
const BOUND: Duration = Duration::from_secs(30);
/// bollard's own bound: one that is never reached, so that ours decides.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often a container is looked at whose removal is under way.
const GLANCE: Duration = Duration::from_millis(100);

/// Docker, or an engine that speaks its protocol.
///
/// Clones share nothing but the address: each request has a connection of its own.
///
/// ```no_run
/// # async fn run() -> moat::Result<()> {
/// let docker = moat::runtime::docker::Docker::connect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Docker {
    client: bollard::Docker,
    dial: Dial,
    /// The address, as errors show it.
    address: String,
    /// Where the ports that containers publish are reached.
    host: String,
    engine: EngineInfo,
    podman: bool,
}

impl fmt::Debug for Docker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Docker")
            .field("address", &self.address)
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

/// The engine's name, its version and its address.
impl fmt::Display for Docker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EngineInfo { name, version, .. } = &self.engine;
        write!(f, "{name} {version} at {}", self.address)
    }
}

impl Docker {
    /// Connects to the engine that the environment names, else to the one on this machine.
    ///
    /// `DOCKER_HOST` is one of `unix://`, `tcp://`, `http://` and, with the feature `tls`,
    /// `https://`. TLS is spoken for `https://`, and for `tcp://` where `DOCKER_TLS_VERIFY` is set,
    /// with `ca.pem`, `cert.pem` and `key.pem` from the folder `DOCKER_CERT_PATH` (default: that of
    /// Docker's configuration file); an engine without a certificate of that CA is refused.
    ///
    /// Without `DOCKER_HOST` it is the first socket that exists of `/var/run/docker.sock`,
    /// `$XDG_RUNTIME_DIR/docker.sock` and `~/.docker/run/docker.sock`. Contexts of Docker's own
    /// client are not looked at.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Unavailable`] says why the engine cannot be reached, and what to do about
    /// it; [`RuntimeError::Timeout`]: it did not answer within 30 s.
    ///
    /// # Cancel safety
    ///
    /// It changes nothing, and can be dropped.
    pub async fn connect() -> Result<Self> {
        Self::open(Address::local(&Environment::read())?).await
    }

    /// Connects to the engine at `address`: `unix://`, `tcp://`, `http://` or `https://`.
    ///
    /// But for `DOCKER_HOST`, the environment holds as it does for [`connect`](Self::connect).
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// It changes nothing, and can be dropped.
    pub async fn connect_to(address: &str) -> Result<Self> {
        Self::open(Address::parse(address, &Environment::read())?).await
    }

    /// Takes a client that the caller already has, and the address that it is connected to.
    ///
    /// Output is read over connections of moat's own to `address`, which must lead to the same
    /// engine: see the [module's documentation](self). The client's own time limit is not used.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// It changes nothing, and can be dropped.
    pub async fn with_client(client: bollard::Docker, address: &str) -> Result<Self> {
        let address = Address::parse(address, &Environment::read())?;
        let dial = Dial::new(address)?;
        Ok(Self::greet(client.with_timeout(NEVER), dial).await?)
    }

    async fn open(address: Address) -> Result<Self> {
        let dial = Dial::new(address)?;
        let client = dial.client(NEVER)?;
        Ok(Self::greet(client, dial).await?)
    }

    /// Asks who is there, by both ways, and settles on a version of the protocol.
    async fn greet(client: bollard::Docker, dial: Dial) -> Result<Self, RuntimeError> {
        const OPERATION: &str = "tell its version";
        let address = dial.address().to_string();
        let strange = |failure| strange(failure).error(OPERATION, &address);
        let ping = async {
            let answer = exchange(&dial, Call::get("/_ping"), BOUND).await?;
            answer.accepted(BOUND).await
        };
        ping.await.map_err(strange)?;
        let greeting = async {
            let client = client.negotiate_version().await?;
            let version = client.version().await?;
            Ok((client, version))
        };
        let (client, version) = bounded(greeting).await.map_err(strange)?;
        let components = version.components.unwrap_or_default();
        let podman = components.iter().any(|c| c.name == "Podman Engine");
        let name = if podman {
            "Podman Engine"
        } else {
            "Docker Engine"
        };
        let mut engine = EngineInfo::new(name, version.version.unwrap_or_default());
        engine.api = client.client_version().to_string();
        Ok(Self {
            client,
            host: dial.address().host().to_owned(),
            dial,
            address,
            engine,
            podman,
        })
    }

    /// Has the ports that containers publish looked for on this host, by name or address.
    /// Default: the host of a `tcp://` address, else `127.0.0.1`.
    ///
    /// For a process that is itself in a container and speaks to the engine of its host: there
    /// `127.0.0.1` is the container, and the host is the gateway of its network, as
    /// `host.docker.internal` names it where the container was started with
    /// `--add-host host.docker.internal:host-gateway`.
    pub fn with_port_host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
        self
    }

    pub(super) fn is_podman(&self) -> bool {
        self.podman
    }

    /// The path of a call, with the version of the protocol that was settled on.
    fn path(&self, path: &str) -> String {
        format!("/v{}{path}", self.engine.api)
    }

    /// The path of a call about a container.
    fn container_path(&self, container: &ContainerId, path: &str) -> Result<String, Failure> {
        Ok(self.path(&format!("/containers/{}{path}", checked(container)?)))
    }

    fn error(&self, operation: &'static str) -> impl FnOnce(Failure) -> RuntimeError {
        let address = self.address.clone();
        move |failure| failure.error(operation, &address)
    }

    /// What tells this engine from others. Podman makes a new id up for each answer.
    async fn engine_id(&self) -> Result<Option<String>, Failure> {
        if self.podman {
            return Ok(None);
        }
        match whole(&self.dial, Call::get(self.path("/info"))).await {
            Ok(json) => Ok(inspect::engine_id(&json)),
            // As from a proxy that lets only some calls through.
            Err(Failure::Refused(_)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn inspect_once(&self, container: &ContainerId) -> Result<Inspection, Failure> {
        let call = Call::get(self.container_path(container, "/json")?);
        let json = whole(&self.dial, call).await?;
        inspect::inspection(&json, self.podman)
    }

    async fn wait_once(&self, container: &ContainerId) -> Result<WaitStatus, Failure> {
        let call = Call::post(self.container_path(container, "/wait")?);
        let call = call.query("condition", "not-running");
        // Some engines send the head of their answer only with the answer itself.
        let answer = exchange(&self.dial, call, NEVER).await?;
        let mut answer = answer.accepted(BOUND).await?;
        let mut json = Vec::new();
        while let Some(data) = answer.data().await {
            json.extend_from_slice(&data?);
            if let Some(status) = inspect::wait_status(&json)? {
                return Ok(status);
            }
            if json.len() > 64 << 10 {
                break;
            }
        }
        Err(Failure::Broken("the answer ended before it was one".into()))
    }

    /// Waits until a container is gone that is being removed.
    async fn watch_removal(&self, container: &ContainerId) -> Result<(), Failure> {
        loop {
            match self.inspect_once(container).await {
                Err(failure) if failure.refusal(Refusal::is_no_container).is_some() => {
                    return Ok(());
                }
                Err(failure @ (Failure::Unreachable(_) | Failure::Timeout(_))) => {
                    return Err(failure);
                }
                // In the middle of a removal an engine may have other errors.
                _ => sleep(GLANCE).await,
            }
        }
    }

    async fn create_once(&self, request: &CreateRequest<'_>, log: Log) -> Result<Created, Failure> {
        let mut body = create::body(request, log);
        if let Some(patch) = request.spec.patch() {
            body = patch::apply(body, patch)
                .map_err(|error| Failure::Refused(Refusal::new(400, &error.to_string())))?;
        }
        let options = CreateContainerOptions {
            name: Some(request.name.to_owned()),
            platform: request.spec.settings().platform.clone().unwrap_or_default(),
        };
        let created = bounded(self.client.create_container(Some(options), body)).await?;
        Ok(Created {
            container: ContainerId::new(created.id),
            warnings: created.warnings,
        })
    }
}

#[async_trait]
impl Runtime for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn capabilities(&self) -> Capabilities {
        let can = Capabilities::NONE.with_tap().with_logs().with_stdin();
        if self.podman {
            // A process of its own for each container reads until there is no more. What a further
            // process prints does not come: seen with 4.3.
            return can;
        }
        let can = can.with_exec();
        // The daemon waits for 2 s, and has a pipe of 1,000,000 bytes for each reader.
        can.with_drain(DrainLimit::new(Duration::from_secs(2), 1_000_000))
    }

    fn host(&self) -> String {
        self.host.clone()
    }

    async fn engine(&self) -> Result<EngineInfo, RuntimeError> {
        let asked = within(async {
            let version = self.client.version().await?;
            Ok((version.version.unwrap_or_default(), self.engine_id().await?))
        });
        let (version, id) = asked.await.map_err(self.error("tell its version"))?;
        // It can have been replaced by another version since.
        Ok(EngineInfo {
            version,
            id,
            ..self.engine.clone()
        })
    }

    fn validate(&self, spec: &RunSpec) -> Result<(), InvalidSpec> {
        check::check(spec)
    }

    async fn prepare(&self, spec: &RunSpec) -> Result<(), RuntimeError> {
        self.prepare_image(spec).await
    }

    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
        const OPERATION: &str = "create the container";
        let log = Log::of(request.spec.settings().backstop);
        let mut created = self.create_once(&request, log).await;
        // Where the engine's default for `json-file` is a buffer that can overflow, its size is
        // merged in, and refused together with our `blocking`. Another driver is left alone.
        let merged = |refusal: &Refusal| log == Log::JsonFile && refusal.says("max-buffer-size");
        if let Err(failure) = &created
            && failure.refusal(merged).is_some()
        {
            created = self.create_once(&request, Log::Local).await;
        }
        created.map_err(|failure| match failure.refusal(Refusal::is_no_image) {
            Some(refusal) => RuntimeError::NoSuchImage {
                image: request.spec.settings().image.clone(),
                reason: refusal.message.clone(),
            },
            None => failure.error(OPERATION, &self.address),
        })
    }

    async fn attach(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        const OPERATION: &str = "attach to the container";
        let answer = async {
            let call = Call::post(self.container_path(container, "/attach")?)
                .query("stream", "1")
                .query("stdout", "1")
                .query("stderr", "1")
                .upgrade();
            accepted(&self.dial, call).await
        };
        let answer = answer.await.map_err(|failure| match &failure {
            // Podman prepares the container for it, as a start does.
            Failure::Refused(refusal) if self.podman && refusal.says("preparing container") => {
                RuntimeError::Rejected {
                    operation: OPERATION,
                    reason: refusal.message.clone(),
                }
            }
            _ => failure.error(OPERATION, &self.address),
        })?;
        Ok(Output::new(answer, tty, OPERATION, self.address.clone()).boxed())
    }

    async fn attach_running(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        self.attach(container, tty).await
    }

    async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let start = async {
            let id = checked(container)?;
            bounded(
                self.client
                    .start_container(id, None::<StartContainerOptions>),
            )
            .await
        };
        start.await.map_err(self.error("start the container"))
    }

    async fn wait(&self, container: &ContainerId) -> Result<WaitStatus, RuntimeError> {
        let status = self.wait_once(container).await;
        status.map_err(self.error("wait for the container"))
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Inspection, RuntimeError> {
        let inspection = self.inspect_once(container).await;
        inspection.map_err(self.error("inspect the container"))
    }

    async fn continuity(&self, container: &ContainerId) -> Result<Continuity, RuntimeError> {
        if self.podman {
            // A process of its own for each container takes the output, and keeps it.
            return Ok(Continuity::Unbroken);
        }
        let remembered = async || {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let now = now.unwrap_or_default();
            // In whole seconds, it would leave out what has just started.
            let now = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
            let call = Call::get(self.path("/events"))
                .query("since", "1")
                .query("until", &now);
            whole(&self.dial, call).await
        };
        let events = async {
            let first = remembered().await?;
            match events::continuity(&first, container)? {
                Continuity::Broken => events::confirmed(&first, &remembered().await?, container),
                told => Ok(told),
            }
        };
        events.await.map_err(self.error("tell its events"))
    }

    async fn logs(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        const OPERATION: &str = "read the container's log";
        let answer = async {
            let follow = if request.follow { "1" } else { "0" };
            let tail = request.tail.map_or("all".to_owned(), |n| n.to_string());
            let call = Call::get(self.container_path(container, "/logs")?)
                .query("stdout", "1")
                .query("stderr", "1")
                .query("timestamps", "0")
                .query("follow", follow)
                .query("tail", &tail);
            match accepted(&self.dial, call).await {
                // The log goes with the container: once that is gone, its end is a fact.
                Err(failure) if failure.refusal(Refusal::is_marked_for_removal).is_some() => {
                    match within(self.watch_removal(container)).await {
                        Ok(()) => Err(Failure::Refused(Refusal::no_container(container))),
                        Err(_) => Err(failure),
                    }
                }
                answer => answer,
            }
        };
        let answer = answer.await.map_err(self.error(OPERATION))?;
        Ok(Output::of_log(answer, request.tty, OPERATION, self.address.clone()).boxed())
    }

    async fn stdin(&self, container: &ContainerId) -> Result<InputWriter, RuntimeError> {
        self.connect_stdin(container).await
    }

    async fn resize(&self, container: &ContainerId, size: WindowSize) -> Result<(), RuntimeError> {
        self.set_size(self.container_path(container, "/resize"), size)
            .await
    }

    async fn exec(
        &self,
        container: &ContainerId,
        spec: &ExecSpec,
    ) -> Result<StartedExec, RuntimeError> {
        self.start_exec(container, spec).await
    }

    async fn exec_inspect(&self, exec: &ExecId) -> Result<ExecInspection, RuntimeError> {
        self.inspect_exec(exec).await
    }

    async fn exec_resize(&self, exec: &ExecId, size: WindowSize) -> Result<(), RuntimeError> {
        self.set_size(self.exec_path(exec, "/resize"), size).await
    }

    async fn signal(&self, container: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        const OPERATION: &str = "signal the container";
        let kill = async {
            let id = checked(container)?;
            let signal = signal.to_owned();
            let options = KillContainerOptions { signal };
            bounded(self.client.kill_container(id, Some(options))).await
        };
        kill.await.map_err(|failure| match &failure {
            // Older engines answer with 500.
            Failure::Refused(refusal) if refusal.says("is not running") => RuntimeError::Conflict {
                operation: OPERATION,
                reason: refusal.message.clone(),
            },
            _ => failure.error(OPERATION, &self.address),
        })
    }

    async fn remove(&self, container: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        let remove = async {
            let id = checked(container)?;
            let options = RemoveContainerOptions {
                v: true,
                force,
                link: false,
            };
            let removed = bounded(self.client.remove_container(id, Some(options))).await;
            match removed {
                // That someone else is at it says nothing of whether it runs; its end does.
                Err(failure) if failure.refusal(Refusal::is_being_removed).is_some() => {
                    self.watch_removal(container).await
                }
                removed => removed,
            }
        };
        let removed = within(remove).await;
        removed.map_err(self.error("remove the container"))
    }

    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError> {
        let found = async {
            let label = format!("{}={root}", create::ROOT_LABEL);
            let filters = serde_json::json!({"label": [label]}).to_string();
            let call = Call::get(self.path("/containers/json"))
                .query("all", "1")
                .query("filters", &filters);
            inspect::found(&whole(&self.dial, call).await?)
        };
        found.await.map_err(self.error("list the containers"))
    }

    async fn find_all(&self) -> Result<Vec<LabeledContainer>, RuntimeError> {
        let found = async {
            let filters = serde_json::json!({"label": [create::ROOT_LABEL]}).to_string();
            let call = Call::get(self.path("/containers/json"))
                .query("all", "1")
                .query("filters", &filters);
            inspect::marked(&whole(&self.dial, call).await?)
        };
        found.await.map_err(self.error("list the containers"))
    }

    async fn stats(&self, container: &ContainerId) -> Result<Usage, RuntimeError> {
        let usage = async {
            let call = Call::get(self.container_path(container, "/stats")?)
                .query("stream", "0")
                .query("one-shot", "1");
            inspect::usage(&whole(&self.dial, call).await?)
        };
        let operation = "ask what the container uses";
        let usage = usage.await.map_err(self.error(operation))?;
        usage.ok_or_else(|| RuntimeError::Conflict {
            operation,
            reason: "it is not running".into(),
        })
    }

    async fn copy_out(&self, container: &ContainerId, path: &str) -> Result<Archive, RuntimeError> {
        self.download(container, path).await
    }

    async fn copy_in(
        &self,
        container: &ContainerId,
        path: &str,
        archive: Archive,
    ) -> Result<(), RuntimeError> {
        self.upload(container, path, archive).await
    }
}

/// At the first meeting, an answer that is none means that something else listens there.
fn strange(failure: Failure) -> Failure {
    match failure {
        Failure::Refused(refusal) => {
            let words: Vec<_> = refusal.message.split_whitespace().take(30).collect();
            Failure::Unreachable(format!(
                "what listens there did not tell its version, but HTTP status {}: {}",
                refusal.status,
                words.join(" ")
            ))
        }
        Failure::Broken(reason) => Failure::Unreachable(format!(
            "what listens there does not answer as an engine: {reason}: is the scheme right, \
             and, with TLS, does it accept cert.pem and key.pem?"
        )),
        failure => failure,
    }
}

/// The id as part of a path: one that holds anything else would make another call of it.
fn checked(container: &ContainerId) -> Result<&str, Failure> {
    let id = container.as_str();
    let valid = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(valid) {
        return Ok(id);
    }
    let message = format!("{id:?} is not the id of a container");
    Err(Failure::Refused(Refusal::new(400, &message)))
}

/// A call of the client, within the bound.
async fn bounded<T>(
    call: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<T, Failure> {
    within(async { Ok(call.await?) }).await
}

/// A call, or several for one purpose, within the bound.
async fn within<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let result = timeout(BOUND, call).await;
    result.unwrap_or(Err(Failure::Timeout(BOUND)))
}

/// An answer whose head has arrived, and is no error.
async fn accepted(dial: &Dial, call: Call) -> Result<Answer, Failure> {
    exchange(dial, call, BOUND).await?.accepted(BOUND).await
}

/// An answer as a whole.
async fn whole(dial: &Dial, call: Call) -> Result<bytes::Bytes, Failure> {
    within(async { accepted(dial, call).await?.whole(BOUND).await }).await
}
