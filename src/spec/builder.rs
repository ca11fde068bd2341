//! The specification of a run, including its secrets.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::secrets::{MaskValues, Secret, SecretBytes};
use super::{
    Backstop, Credentials, Device, Gpus, HealthCheck, InvalidSpec, KeepContainer, LimitAction,
    Membership, OutputLimit, PlacementProgress, Port, Pull, PullProgress, RunId, Secrets, Settings,
    Stdin, Ulimit, WindowSize,
};

/// A callback for the progress of a pull.
type OnPull = Arc<dyn Fn(PullProgress) + Send + Sync>;
type OnPlacement = Arc<dyn Fn(PlacementProgress) + Send + Sync>;

/// The specification of a run: image, command and settings.
///
/// A spec has an image, or only a command for a runtime that starts local processes: see
/// [`new`](Self::new) and [`command`](Self::command).
///
/// [`Manager::start`](crate::manager::Manager::start) calls [`validate`](Self::validate) first. The
/// builder methods check nothing, and only `env_file` reads a file. Environment values, secret files, masks and registry credentials stay in
/// memory: no file, error or `Debug` output contains them. The command, the labels and all other settings are
/// recorded verbatim. As JSON, they have at most 4 MiB.
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
    id: Option<RunId>,
    pub(super) settings: Settings,
    pub(super) env: Vec<(String, Secret)>,
    /// The number of variables at the start of `env` that a call of `env` overrides.
    pub(super) default_env: usize,
    /// The first error of a file with variables.
    pub(super) env_error: Option<InvalidSpec>,
    pub(super) secret_files: Vec<(String, SecretBytes)>,
    pub(super) masks: MaskValues,
    pub(super) credentials: Option<Credentials>,
    pub(super) patch: Option<serde_json::Value>,
    pub(super) on_pull: Option<OnPull>,
    pub(super) on_placement: Option<OnPlacement>,
    stop_when: Option<CancellationToken>,
    is_cleanup: bool,
    pub(super) membership: Option<Membership>,
}

impl fmt::Debug for RunSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunSpec")
            .field("id", &self.id)
            .field("settings", &self.settings)
            .field("env", &self.env_names().collect::<Vec<_>>())
            .field("secret_files", &self.secret_files)
            .field("credentials", &self.credentials)
            .field("patch", &self.patch.as_ref().map(|_| "..."))
            .finish_non_exhaustive()
    }
}

fn strings<S: Into<String>>(values: impl IntoIterator<Item = S>) -> Vec<String> {
    values.into_iter().map(Into::into).collect()
}

impl RunSpec {
    /// Creates a spec that runs the command of `image`.
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            id: None,
            settings: Settings {
                image: image.into(),
                ..Settings::default()
            },
            env: Vec::new(),
            default_env: 0,
            env_error: None,
            secret_files: Vec::new(),
            masks: MaskValues::default(),
            credentials: None,
            patch: None,
            on_pull: None,
            on_placement: None,
            stop_when: None,
            is_cleanup: false,
            membership: None,
        }
    }

    /// Creates a spec without an image, for a runtime of local processes.
    pub fn command<S: Into<String>>(cmd: impl IntoIterator<Item = S>) -> Self {
        Self::new("").cmd(cmd)
    }

    /// Sets the id of the run. Default: [`RunId::generate`].
    pub fn id(mut self, id: RunId) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets the command and its arguments. Default: the image's own.
    ///
    /// They are recorded verbatim. With Docker, each argument must be shorter than 128 KiB, the
    /// limit of Linux.
    pub fn cmd<S: Into<String>>(mut self, cmd: impl IntoIterator<Item = S>) -> Self {
        self.settings.cmd = strings(cmd);
        self
    }

    /// Sets the entrypoint.
    ///
    /// Default: the image's own. An empty one disables the image's entrypoint.
    pub fn entrypoint<S: Into<String>>(mut self, entrypoint: impl IntoIterator<Item = S>) -> Self {
        self.settings.entrypoint = Some(strings(entrypoint));
        self
    }

    /// Sets the working directory, an absolute path in the container.
    ///
    /// Default: the image's own.
    pub fn workdir(mut self, path: impl Into<String>) -> Self {
        self.settings.workdir = Some(path.into());
        self
    }

    /// Sets the user: `user`, `uid`, `user:group` or `uid:gid`.
    ///
    /// Default: the image's own.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.settings.user = Some(user.into());
        self
    }

    /// Sets the container's host name, of at most 64 bytes. Default: the engine's choice.
    ///
    /// Docker and Podman accept any text without spaces. A pod accepts lowercase letters, digits and
    /// `-`.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.settings.hostname = Some(name.into());
        self
    }

    /// Sets the network mode.
    ///
    /// A mode is `bridge`, `host`, `none`, `container:<id>` or a network's name. Default: the
    /// engine's own. A [`Network`](crate::manager::Network) can be given by reference.
    pub fn network(mut self, mode: impl Into<String>) -> Self {
        self.settings.network = Some(mode.into());
        self
    }

    /// Adds a name of the container on its network, which must be user-defined.
    pub fn network_alias(mut self, alias: impl Into<String>) -> Self {
        self.settings.network_aliases.push(alias.into());
        self
    }

    /// Publishes a port of the container on the host.
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

    /// Makes the engine's host reachable from the container, as `host.docker.internal`.
    ///
    /// A server on the host must listen on the address of the container's gateway, or on all
    /// addresses, and the host's firewall must let it through. The same as
    /// [`extra_host`](Self::extra_host) with the address `host-gateway`, which Docker 20.10 and
    /// Podman 4.7 support. A pod refuses it.
    ///
    /// With Docker, the name resolves without this call only on Docker Desktop.
    pub fn host_gateway(self) -> Self {
        self.extra_host("host.docker.internal", "host-gateway")
    }

    /// Adds the address of a DNS server.
    pub fn dns(mut self, address: impl Into<String>) -> Self {
        self.settings.dns.push(address.into());
        self
    }

    /// Limits the memory, in bytes. Default: no limit.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.settings.memory = Some(bytes);
        self
    }

    /// Limits the CPU usage, in CPUs: `1.5` is one and a half.
    ///
    /// Default: no limit.
    pub fn cpus(mut self, cpus: f64) -> Self {
        self.settings.cpus = Some(cpus);
        self
    }

    /// Limits the number of processes in the container.
    ///
    /// Default: the engine's limit.
    pub fn pids_limit(mut self, processes: u64) -> Self {
        self.settings.pids_limit = Some(processes);
        self
    }

    /// Adds a resource limit of `setrlimit`: `ulimit("nofile", 1024, 4096)`.
    pub fn ulimit(mut self, name: impl Into<String>, soft: i64, hard: i64) -> Self {
        self.settings.ulimits.push(Ulimit::new(name, soft, hard));
        self
    }

    /// Sets the size of `/dev/shm`, in bytes.
    ///
    /// Default: the engine's own, 64 MiB for Docker.
    pub fn shm_size(mut self, bytes: u64) -> Self {
        self.settings.shm_size = Some(bytes);
        self
    }

    /// Adds a device of the host at the same path, with permissions `rwm`.
    pub fn device(mut self, path: impl Into<String>) -> Self {
        let path = path.into();
        self.settings
            .devices
            .push(Device::new(path.clone(), path, "rwm"));
        self
    }

    /// Sets the GPUs that the container can use. Default: none.
    ///
    /// Podman finds them by their CDI names, such as `nvidia.com/gpu=0`, and refuses
    /// [`Gpus::Count`].
    pub fn gpus(mut self, gpus: Gpus) -> Self {
        self.settings.gpus = Some(gpus);
        self
    }

    /// Sets a kernel parameter of the container's namespaces.
    pub fn sysctl(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.sysctls.insert(name.into(), value.into());
        self
    }

    /// Adds a Linux capability, such as `NET_ADMIN`.
    pub fn cap_add(mut self, capability: impl Into<String>) -> Self {
        self.settings.cap_add.push(capability.into());
        self
    }

    /// Drops a Linux capability, or `ALL`.
    pub fn cap_drop(mut self, capability: impl Into<String>) -> Self {
        self.settings.cap_drop.push(capability.into());
        self
    }

    /// Adds a security option in the engine's syntax: `no-new-privileges`.
    pub fn security_opt(mut self, option: impl Into<String>) -> Self {
        self.settings.security_opt.push(option.into());
        self
    }

    /// Gives the container the host's privileges. Default: false.
    pub fn privileged(mut self, privileged: bool) -> Self {
        self.settings.privileged = privileged;
        self
    }

    /// Makes the container's root file system read-only. Default: false.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.settings.read_only = read_only;
        self
    }

    /// Sets the health check. Default: the image's own, if it has one.
    ///
    /// The engine runs the check, and moat records none of its output. Podman needs systemd for it.
    pub fn health_check(mut self, check: HealthCheck) -> Self {
        self.settings.health_check = Some(check);
        self
    }

    /// Adds an init process that forwards signals and reaps orphans.
    ///
    /// Default: false.
    pub fn init(mut self, init: bool) -> Self {
        self.settings.init = init;
        self
    }

    /// Sets the platform, `os[/arch[/variant]]`. Default: the engine's own.
    ///
    /// An image that the engine has for another platform counts as missing.
    pub fn platform(mut self, platform: impl Into<String>) -> Self {
        self.settings.platform = Some(platform.into());
        self
    }

    /// Sets the OCI runtime by the engine's name for it, such as `runsc`.
    ///
    /// Podman's Docker-compatible interface has no such setting, so it is refused there.
    pub fn oci_runtime(mut self, name: impl Into<String>) -> Self {
        self.settings.oci_runtime = Some(name.into());
        self
    }

    /// Adds a label.
    ///
    /// Labels are recorded verbatim. Names under `moat.` are reserved.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.labels.insert(name.into(), value.into());
        self
    }

    /// Gives the container a terminal.
    ///
    /// Its output is then one stream, `tty`. Default: false.
    pub fn tty(mut self, tty: bool) -> Self {
        self.settings.tty = tty;
        self
    }

    /// Sets the container's standard input. Default: [`Stdin::None`].
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.settings.stdin = stdin;
        self
    }

    /// Records the container's standard input in the audit. Default: false.
    ///
    /// The record includes all passwords that are typed.
    pub fn record_stdin(mut self, record: bool) -> Self {
        self.settings.record_stdin = record;
        self
    }

    /// Sets the size of the terminal when the container starts.
    ///
    /// Not every engine supports this. See
    /// [`Manager::start_attached`](crate::manager::Manager::start_attached). Default: the engine's
    /// size, which is 0 by 0 for Docker.
    pub fn window(mut self, size: WindowSize) -> Self {
        self.settings.window = Some(size);
        self
    }

    /// Sets the stop signal: a name such as `SIGINT`, or a number from 1 to 64.
    ///
    /// Default: the image's own, else `SIGTERM`.
    pub fn stop_signal(mut self, signal: impl Into<String>) -> Self {
        self.settings.stop_signal = Some(signal.into());
        self
    }

    /// Sets the time between the stop signal and SIGKILL. Default: 10 s.
    pub fn stop_grace(mut self, grace: Duration) -> Self {
        self.settings.stop_grace = grace;
        self
    }

    /// Stops the run when its container has run for `limit`. Default: no limit.
    ///
    /// The deadline is recorded as wall-clock time. The process that owns the run enforces it. If
    /// that process ends, the next process that opens the root enforces it.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.settings.time_limit = Some(limit);
        self
    }

    /// Stops the run when its container has written no output for `limit`.
    ///
    /// Default: no limit. Minimum: 1 s. The time starts with the container, and starts again when a
    /// manager recovers the run. It does not run while moat cannot receive output: the sink has
    /// failed, or there is neither an attachment nor a log.
    pub fn silence_limit(mut self, limit: Duration) -> Self {
        self.settings.silence_limit = Some(limit);
        self
    }

    /// Samples memory and CPU time of the running container at this interval.
    ///
    /// Default: never. Minimum: 100 ms; a second or more is usual. Sampling is necessary because an
    /// engine discards both values at the container's end.
    ///
    /// The maximum of each value is in the seal and in
    /// [`Outcome::usage`](crate::outcome::Outcome::usage). Each sample is an event. A run that ends
    /// before the first sample has none. If the engine does not support sampling, moat does not
    /// ask again. A local process does not support this setting.
    pub fn sample(mut self, interval: Duration) -> Self {
        self.settings.sample = Some(interval);
        self
    }

    /// Stops the run when `token` is cancelled.
    ///
    /// This also works before the container exists. See
    /// [`Run::stop_when`](crate::run::Run::stop_when). The token is not recorded.
    pub fn stop_when(mut self, token: CancellationToken) -> Self {
        self.stop_when = Some(token);
        self
    }

    /// Marks a run that cleans up after others. Default: false.
    ///
    /// Such a run can still start after a signal, and ends before the services: see
    /// [`Manager::stop_on_signals_with_cleanup`](crate::manager::Manager::stop_on_signals_with_cleanup).
    /// The mark is not recorded.
    pub fn cleanup(mut self, cleanup: bool) -> Self {
        self.is_cleanup = cleanup;
        self
    }

    /// Limits the output, in bytes over all streams. Default: no limit.
    ///
    /// Output past the limit is a gap. By default, a run with a gap keeps its container: see
    /// [`KeepContainer::OnGap`]. Set [`keep`](Self::keep) to have the container removed.
    pub fn output_limit(mut self, bytes: u64, action: LimitAction) -> Self {
        self.settings.output_limit = Some(OutputLimit::new(bytes, action));
        self
    }

    /// Sets the pull policy. Default: [`Pull::Missing`].
    pub fn pull(mut self, pull: Pull) -> Self {
        self.settings.pull = pull;
        self
    }

    /// Sets the credentials for the image's registry.
    ///
    /// Default: the credentials of Docker's configuration file and its helpers.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// Sets a callback for the progress of a pull.
    ///
    /// The runtime calls it in its tasks, so it must not block.
    pub fn on_pull(mut self, report: impl Fn(PullProgress) + Send + Sync + 'static) -> Self {
        self.on_pull = Some(Arc::new(report));
        self
    }

    /// Sets a callback for the progress of the placement, on an engine that places containers.
    ///
    /// The runtime calls it in its tasks, so it must not block.
    pub fn on_placement(
        mut self,
        report: impl Fn(PlacementProgress) + Send + Sync + 'static,
    ) -> Self {
        self.on_placement = Some(Arc::new(report));
        self
    }

    /// Sets the policy for keeping the container.
    ///
    /// Default: [`KeepContainer::OnGap`].
    pub fn keep(mut self, keep: KeepContainer) -> Self {
        self.settings.keep = keep;
        self
    }

    /// Sets the second source of output. Default: [`Backstop::Engine`].
    pub fn backstop(mut self, backstop: Backstop) -> Self {
        self.settings.backstop = backstop;
        self
    }

    /// Declares that the run may outlive this process. Default: false.
    ///
    /// `validate` then refuses a spec without a backstop, because output after the end of this
    /// process would be lost. The setting has no other effect: a container always survives the
    /// end of its manager. A local process does not, so the process runtime refuses this setting.
    pub fn detached(mut self, detached: bool) -> Self {
        self.settings.detached = detached;
        self
    }

    /// Merges `patch` into the engine's create request.
    ///
    /// `patch` is a JSON merge patch (RFC 7396). It reaches settings for which the builder has no
    /// method. The names are those of the engine. For Docker, they are the names of `POST
    /// /containers/create`: `json!({"HostConfig": {"OomScoreAdj": 500}})`.
    ///
    /// The start of the run refuses a patch that changes a setting on which moat relies: terminal,
    /// log driver, restart policy, auto-remove, or moat's labels. It also refuses unknown settings
    /// and more than 100 levels of nesting. The patch may hold secrets, so it is not recorded.
    pub fn engine_patch(mut self, patch: serde_json::Value) -> Self {
        self.patch = Some(patch);
        self
    }

    /// Returns the id of the run, if the caller set one.
    pub fn run_id(&self) -> Option<&RunId> {
        self.id.as_ref()
    }

    /// Returns all settings that are not secrets.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn is_cleanup(&self) -> bool {
        self.is_cleanup
    }

    /// Returns the token that stops the run.
    pub(crate) fn stop_token(&self) -> Option<&CancellationToken> {
        self.stop_when.as_ref()
    }

    /// Adds a callback for the progress of a pull.
    pub(crate) fn also_on_pull(
        mut self,
        report: impl Fn(&PullProgress) + Send + Sync + 'static,
    ) -> Self {
        let on_pull = self.on_pull.take();
        self.on_pull(move |progress| {
            report(&progress);
            if let Some(on_pull) = &on_pull {
                on_pull(progress);
            }
        })
    }

    /// Adds a callback for the progress of the placement.
    pub(crate) fn also_on_placement(
        mut self,
        report: impl Fn(&PlacementProgress) + Send + Sync + 'static,
    ) -> Self {
        let on_placement = self.on_placement.take();
        self.on_placement(move |progress| {
            report(&progress);
            if let Some(on_placement) = &on_placement {
                on_placement(progress);
            }
        })
    }

    /// Returns the values to redact in the engine's messages.
    pub(crate) fn secrets(&self) -> Secrets {
        let env = Secrets::values_of(&self.env);
        let password = self.credentials.iter().map(|c| c.password.0.clone());
        let mut patched = Vec::new();
        if let Some(patch) = &self.patch {
            collect_strings(patch, &mut patched);
        }
        let files = self.secret_files.iter();
        let files = files.filter_map(|(_, value)| String::from_utf8(value.0.clone()).ok());
        let texts = files.chain(patched);
        let texts = texts.filter(|text| text.len() >= Secrets::MIN_VALUE_BYTES);
        Secrets::new(env.chain(password).chain(texts)).with_masks(&self.masks)
    }
}

/// Collects the strings of `value`, and the part after `=` of each string.
fn collect_strings(value: &serde_json::Value, into: &mut Vec<String>) {
    use serde_json::Value;
    match value {
        Value::String(text) => {
            if let Some((_, value)) = text.split_once('=') {
                into.push(value.to_owned());
            }
            into.push(text.clone());
        }
        Value::Array(values) => values.iter().for_each(|value| collect_strings(value, into)),
        Value::Object(values) => values
            .values()
            .for_each(|value| collect_strings(value, into)),
        _ => {}
    }
}
