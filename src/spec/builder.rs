//! What to run, secrets included.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::secrets::Secret;
use super::{
    Backstop, Device, Gpus, KeepContainer, LimitAction, Mount, OutputLimit, Port, Pull, RunId,
    Secrets, Settings, Stdin, Ulimit, WindowSize,
};

/// How far the pull of an image has come: called for each report of the engine.
type OnPull = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// What to run: an image, a command, and all that a container can be told.
///
/// A spec has an image, or, where the runtime starts local processes, a command alone: see
/// [`new`](Self::new) and [`command`](Self::command).
///
/// Nothing is checked until [`validate`](Self::validate), which
/// [`Manager::start`](crate::manager::Manager::start) calls first of all. Values of the environment and
/// registry credentials are kept in memory only: they do not reach a file, an error, or the
/// `Debug` output. The command, the labels and all other settings are recorded verbatim; they may
/// have 4 MiB in all, as JSON.
///
/// ```
/// use std::time::Duration;
/// use moat::RunSpec;
///
/// let spec = RunSpec::new("busybox:1.36")
///     .cmd(["sh", "-c", "echo $GREETING"])
///     .env("GREETING", "hello")
///     .memory(256 << 20)
///     .time_limit(Duration::from_secs(60));
/// spec.validate()?;
/// # Ok::<(), moat::Error>(())
/// ```
#[derive(Clone)]
pub struct RunSpec {
    pub(super) id: Option<RunId>,
    pub(super) settings: Settings,
    pub(super) env: Vec<(String, Secret)>,
    pub(super) credentials: Option<Credentials>,
    pub(super) patch: Option<serde_json::Value>,
    pub(super) on_pull: Option<OnPull>,
    pub(super) stop_when: Option<CancellationToken>,
}

/// How far the pull of an image has come, as the engine reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PullProgress {
    /// The layer's id; `None` where the report is of the whole image.
    pub layer: Option<String>,
    /// What is happening, in the engine's words.
    pub status: String,
    /// Bytes done of this step.
    pub current: Option<u64>,
    /// Bytes of this step in all.
    pub total: Option<u64>,
}

impl PullProgress {
    /// A report of a runtime.
    pub fn new(status: impl Into<String>) -> Self {
        Self {
            layer: None,
            status: status.into(),
            current: None,
            total: None,
        }
    }
}

/// Credentials for an image registry. `Debug` does not show the password.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) username: String,
    pub(crate) password: Secret,
}

impl Credentials {
    /// A user name, and a password or token.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            username: username.into(),
            password: Secret(password.into()),
        }
    }

    /// The user name.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// The password or token: a secret.
    pub fn password(&self) -> &str {
        &self.password.0
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &self.password)
            .finish()
    }
}

impl fmt::Debug for RunSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunSpec")
            .field("id", &self.id)
            .field("settings", &self.settings)
            .field("env", &self.env_names().collect::<Vec<_>>())
            .field("credentials", &self.credentials)
            .field("patch", &self.patch.as_ref().map(|_| "..."))
            .finish_non_exhaustive()
    }
}

fn strings<S: Into<String>>(values: impl IntoIterator<Item = S>) -> Vec<String> {
    values.into_iter().map(Into::into).collect()
}

impl RunSpec {
    /// A run of `image`, with the image's own command.
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            id: None,
            settings: Settings {
                image: image.into(),
                ..Settings::default()
            },
            env: Vec::new(),
            credentials: None,
            patch: None,
            on_pull: None,
            stop_when: None,
        }
    }

    /// A run of a command without an image, for runtimes that need none, such as local processes.
    pub fn command<S: Into<String>>(cmd: impl IntoIterator<Item = S>) -> Self {
        Self::new("").cmd(cmd)
    }

    /// Names the run. Default: [`RunId::generate`].
    pub fn id(mut self, id: RunId) -> Self {
        self.id = Some(id);
        self
    }

    /// The command and its arguments, in place of the image's own. They are recorded verbatim.
    /// Docker's have less than 128 KiB each, which is what Linux takes.
    pub fn cmd<S: Into<String>>(mut self, cmd: impl IntoIterator<Item = S>) -> Self {
        self.settings.cmd = strings(cmd);
        self
    }

    /// The entrypoint, in place of the image's own; of nothing: none at all.
    pub fn entrypoint<S: Into<String>>(mut self, entrypoint: impl IntoIterator<Item = S>) -> Self {
        self.settings.entrypoint = Some(strings(entrypoint));
        self
    }

    /// Adds a variable to the environment. Its name is recorded, its value never. For Docker both
    /// have less than 128 KiB, which is what Linux takes.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), Secret(value.into())));
        self
    }

    /// The working directory, an absolute path in the container. Default: the image's own.
    pub fn workdir(mut self, path: impl Into<String>) -> Self {
        self.settings.workdir = Some(path.into());
        self
    }

    /// `user`, `uid`, `user:group` or `uid:gid`. Default: the image's own.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.settings.user = Some(user.into());
        self
    }

    /// The container's host name. Default: the engine's choice.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.settings.hostname = Some(name.into());
        self
    }

    /// Mounts a file or folder of the engine's host: both paths are absolute.
    pub fn bind(self, source: impl Into<PathBuf>, target: impl Into<String>) -> Self {
        self.mount(Mount::Bind {
            source: source.into(),
            target: target.into(),
            read_only: false,
        })
    }

    /// Mounts a named volume.
    pub fn volume(self, name: impl Into<String>, target: impl Into<String>) -> Self {
        self.mount(Mount::Volume {
            name: name.into(),
            target: target.into(),
            read_only: false,
        })
    }

    /// Mounts a file system in memory, of at most `size` bytes where that is given.
    pub fn tmpfs(self, target: impl Into<String>, size: Option<u64>) -> Self {
        self.mount(Mount::Tmpfs {
            target: target.into(),
            size,
            read_only: false,
        })
    }

    /// Adds a mount.
    pub fn mount(mut self, mount: Mount) -> Self {
        self.settings.mounts.push(mount);
        self
    }

    /// The network mode: `bridge`, `host`, `none`, `container:<id>` or a network's name.
    /// Default: the engine's own.
    pub fn network(mut self, mode: impl Into<String>) -> Self {
        self.settings.network = Some(mode.into());
        self
    }

    /// Adds a name for the container on its network, which must be one made by a user.
    pub fn network_alias(mut self, alias: impl Into<String>) -> Self {
        self.settings.network_aliases.push(alias.into());
        self
    }

    /// Offers a port of the container on the host.
    pub fn port(mut self, port: Port) -> Self {
        self.settings.ports.push(port);
        self
    }

    /// Adds a line to `/etc/hosts`. The address may be `host-gateway`.
    pub fn extra_host(mut self, name: impl Into<String>, address: impl Into<String>) -> Self {
        self.settings
            .extra_hosts
            .push((name.into(), address.into()));
        self
    }

    /// Adds the address of a DNS server.
    pub fn dns(mut self, address: impl Into<String>) -> Self {
        self.settings.dns.push(address.into());
        self
    }

    /// Memory limit, in bytes. Default: none.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.settings.memory = Some(bytes);
        self
    }

    /// CPU limit, in CPUs: `1.5` is one and a half. Default: none.
    pub fn cpus(mut self, cpus: f64) -> Self {
        self.settings.cpus = Some(cpus);
        self
    }

    /// The most processes that the container may have. Default: the engine's own.
    pub fn pids_limit(mut self, processes: u64) -> Self {
        self.settings.pids_limit = Some(processes);
        self
    }

    /// Adds a resource limit, as `setrlimit` has it: `ulimit("nofile", 1024, 4096)`.
    pub fn ulimit(mut self, name: impl Into<String>, soft: i64, hard: i64) -> Self {
        self.settings.ulimits.push(Ulimit::new(name, soft, hard));
        self
    }

    /// The size of `/dev/shm`, in bytes. Default: the engine's own, 64 MiB for Docker.
    pub fn shm_size(mut self, bytes: u64) -> Self {
        self.settings.shm_size = Some(bytes);
        self
    }

    /// Adds a device of the host, at the same path, to read, write and make nodes of.
    pub fn device(mut self, path: impl Into<String>) -> Self {
        let path = path.into();
        self.settings
            .devices
            .push(Device::new(path.clone(), path, "rwm"));
        self
    }

    /// GPUs that the container sees. Default: none.
    pub fn gpus(mut self, gpus: Gpus) -> Self {
        self.settings.gpus = Some(gpus);
        self
    }

    /// Sets a kernel parameter of the container's namespaces.
    pub fn sysctl(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.sysctls.insert(name.into(), value.into());
        self
    }

    /// Adds a capability.
    pub fn cap_add(mut self, capability: impl Into<String>) -> Self {
        self.settings.cap_add.push(capability.into());
        self
    }

    /// Drops a capability.
    pub fn cap_drop(mut self, capability: impl Into<String>) -> Self {
        self.settings.cap_drop.push(capability.into());
        self
    }

    /// Adds a security option, as the engine takes it: `no-new-privileges`, `seccomp=...`.
    pub fn security_opt(mut self, option: impl Into<String>) -> Self {
        self.settings.security_opt.push(option.into());
        self
    }

    /// Whether the container has the host's privileges. Default: no.
    pub fn privileged(mut self, privileged: bool) -> Self {
        self.settings.privileged = privileged;
        self
    }

    /// Whether the container's root file system is read-only. Default: no.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.settings.read_only = read_only;
        self
    }

    /// Whether an init process forwards signals and reaps orphans. Default: no.
    pub fn init(mut self, init: bool) -> Self {
        self.settings.init = init;
        self
    }

    /// `os[/arch[/variant]]`. Default: the engine's own.
    pub fn platform(mut self, platform: impl Into<String>) -> Self {
        self.settings.platform = Some(platform.into());
        self
    }

    /// The OCI runtime, by the name that the engine knows it by: `runsc`, say.
    pub fn oci_runtime(mut self, name: impl Into<String>) -> Self {
        self.settings.oci_runtime = Some(name.into());
        self
    }

    /// Adds a label. Labels are recorded verbatim; names under `moat.` are moat's own.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.labels.insert(name.into(), value.into());
        self
    }

    /// Whether the container has a terminal; its output is then one stream, `tty`. Default: no.
    pub fn tty(mut self, tty: bool) -> Self {
        self.settings.tty = tty;
        self
    }

    /// What the container's standard input is. Default: [`Stdin::None`].
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.settings.stdin = stdin;
        self
    }

    /// Whether the audit has what is written to the container's standard input: passwords that
    /// are typed with it. Default: no, it never has.
    pub fn record_stdin(mut self, record: bool) -> Self {
        self.settings.record_stdin = record;
        self
    }

    /// The size that the terminal has when the container starts, as far as the engine can do that:
    /// see [`Manager::start_attached`](crate::manager::Manager::start_attached). Default: the engine's,
    /// which with Docker is 0 by 0.
    pub fn window(mut self, size: WindowSize) -> Self {
        self.settings.window = Some(size);
        self
    }

    /// The signal that asks the container to stop: `SIGINT`, say, or a number from 1 to 64.
    /// Default: the image's own, else `SIGTERM`.
    pub fn stop_signal(mut self, signal: impl Into<String>) -> Self {
        self.settings.stop_signal = Some(signal.into());
        self
    }

    /// How long a stop waits between that signal and SIGKILL. Default: 10 s.
    pub fn stop_grace(mut self, grace: Duration) -> Self {
        self.settings.stop_grace = grace;
        self
    }

    /// Stops the run when its container has been up for this long. Default: no limit.
    ///
    /// The deadline is persisted as wall-clock time. It is enforced by the process that owns the
    /// run, and where that has gone, by the next one that opens the root.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.settings.time_limit = Some(limit);
        self
    }

    /// Stops the run when its container has printed nothing for this long, from its start on.
    /// Default: no limit. At least a second.
    ///
    /// It is persisted. Where a run is taken over, it counts from then; while nobody can hear the
    /// container (the sink has failed, or there is neither a tap nor a log), it does not.
    pub fn silence_limit(mut self, limit: Duration) -> Self {
        self.settings.silence_limit = Some(limit);
        self
    }

    /// Samples the memory and the CPU time that the container uses this often while it runs; an
    /// engine forgets both at its end. Default: never. At least 100 ms; a second or more is usual.
    ///
    /// The most of each is in the seal and in [`Outcome::usage`](crate::outcome::Outcome::usage), each
    /// sample is an event. An engine that cannot tell is asked once, and a run that ends before
    /// the first sample has none. A local process is not sampled: that is refused.
    pub fn sample(mut self, interval: Duration) -> Self {
        self.settings.sample = Some(interval);
        self
    }

    /// Stops the run when `token` is cancelled, also before its container is there: see
    /// [`Run::stop_when`](crate::run::Run::stop_when). It is not persisted.
    pub fn stop_when(mut self, token: CancellationToken) -> Self {
        self.stop_when = Some(token);
        self
    }

    /// Limits the output, in bytes over all streams. Default: no limit.
    pub fn output_limit(mut self, bytes: u64, action: LimitAction) -> Self {
        self.settings.output_limit = Some(OutputLimit::new(bytes, action));
        self
    }

    /// When to pull the image. Default: [`Pull::Missing`].
    pub fn pull(mut self, pull: Pull) -> Self {
        self.settings.pull = pull;
        self
    }

    /// Credentials for the image's registry. Default: those of Docker's configuration file and
    /// its helpers.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// Called with the progress of a pull, on the runtime's threads: it must not block.
    pub fn on_pull(mut self, report: impl Fn(PullProgress) + Send + Sync + 'static) -> Self {
        self.on_pull = Some(Arc::new(report));
        self
    }

    /// Whether the container stays after the seal. Default: [`KeepContainer::OnGap`].
    pub fn keep(mut self, keep: KeepContainer) -> Self {
        self.settings.keep = keep;
        self
    }

    /// What stands behind the live tap. Default: [`Backstop::Engine`].
    pub fn backstop(mut self, backstop: Backstop) -> Self {
        self.settings.backstop = backstop;
        self
    }

    /// Says that the run is meant to outlive this process; it needs a backstop. Default: no.
    ///
    /// Every run of an engine survives the end of its manager; a local process does not, and
    /// refuses this. It only lets `validate` refuse what could not be captured then.
    pub fn detached(mut self, detached: bool) -> Self {
        self.settings.detached = detached;
        self
    }

    /// Merges `patch` over the engine's create request, as JSON merge patch (RFC 7396) has it:
    /// the way to what this builder has no method for. The engine's own names hold, for Docker
    /// those of `POST /containers/create`: `json!({"HostConfig": {"OomScoreAdj": 500}})`.
    ///
    /// What moat's promise stands on (terminal, log driver, restart policy, auto-remove, moat's
    /// labels) and what the engine does not know is refused, by name, when the run starts; so is
    /// what is nested more than 100 deep. The patch is not persisted: it may hold secrets.
    pub fn engine_patch(mut self, patch: serde_json::Value) -> Self {
        self.patch = Some(patch);
        self
    }

    /// The name of the run, if the caller chose one.
    pub fn run_id(&self) -> Option<&RunId> {
        self.id.as_ref()
    }

    /// All settings that are no secrets.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.env.iter().map(|(k, v)| (k.as_str(), v.0.as_str()))
    }

    /// The names of the environment's variables. What follows a stray `=` is no name.
    pub(super) fn env_names(&self) -> impl Iterator<Item = &str> {
        self.env
            .iter()
            .map(|(name, _)| name.split_once('=').map_or(name.as_str(), |(name, _)| name))
    }

    /// What stops the run when it is cancelled.
    pub(crate) fn stop_token(&self) -> Option<&CancellationToken> {
        self.stop_when.as_ref()
    }

    /// Has the progress of a pull reported to one more.
    pub(crate) fn also_on_pull(
        mut self,
        report: impl Fn(&PullProgress) + Send + Sync + 'static,
    ) -> Self {
        let asked = self.on_pull.take();
        self.on_pull(move |progress| {
            report(&progress);
            if let Some(asked) = &asked {
                asked(progress);
            }
        })
    }

    /// What must be taken out of anything that an engine says.
    pub(crate) fn secrets(&self) -> Secrets {
        let env = Secrets::values_of(&self.env);
        let password = self.credentials.iter().map(|c| c.password.0.clone());
        let mut patched = Vec::new();
        if let Some(patch) = &self.patch {
            leaves(patch, &mut patched);
        }
        let patched = patched
            .into_iter()
            .filter(|text| text.len() >= Secrets::ALONE);
        Secrets::new(env.chain(password).chain(patched))
    }
}

/// Collects the texts of `value`, and the part after `=` of those that have one.
fn leaves(value: &serde_json::Value, into: &mut Vec<String>) {
    use serde_json::Value;
    match value {
        Value::String(text) => {
            if let Some((_, value)) = text.split_once('=') {
                into.push(value.to_owned());
            }
            into.push(text.clone());
        }
        Value::Array(values) => values.iter().for_each(|value| leaves(value, into)),
        Value::Object(values) => values.values().for_each(|value| leaves(value, into)),
        _ => {}
    }
}
