//! The services of a pipeline, and how they become ready.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use moat::spec::{KeepContainer, Mount};
use moat::{Port, Ready, RunSpec};
use serde::Deserialize;

use super::file::{PipelineTable, check_secrets, mount, seconds};
use super::{Command, InvalidPipeline, with_inputs};

/// Default time in which a service becomes ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A container that runs while the steps do.
#[derive(Debug)]
pub struct Service {
    /// The name of its host in the network of the build.
    pub name: String,
    pub image: Option<String>,
    /// `None`: the image's own.
    pub command: Option<Command>,
    pub env: BTreeMap<String, String>,
    pub secrets: Vec<String>,
    pub mounts: Vec<Mount>,
    pub grace: Option<Duration>,
    ready: ReadyTable,
    ready_timeout: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceTable {
    name: String,
    image: Option<String>,
    commands: Option<Vec<String>>,
    exec: Option<Vec<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    secrets: Vec<String>,
    #[serde(default)]
    mounts: Vec<String>,
    grace: Option<f64>,
    #[serde(default)]
    ready: ReadyTable,
    ready_timeout: Option<f64>,
}

/// The conditions under which a service is ready. All must be met.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadyTable {
    /// The port accepts connections.
    port: Option<u16>,
    /// `GET` of the URL's path at the port succeeds.
    http: Option<HttpTable>,
    /// The command succeeds in the container.
    exec: Option<Vec<String>>,
    /// The output has the text.
    line: Option<String>,
    /// The health check of the image passes.
    #[serde(default)]
    healthy: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpTable {
    port: u16,
    path: String,
}

impl Service {
    /// The name in the reports.
    pub fn title(&self) -> String {
        format!("service {}", self.name)
    }

    /// The run of this service. `host` is that of the engine.
    pub fn spec(&self, secrets: &BTreeMap<String, String>, host: &str) -> RunSpec {
        let mut spec = RunSpec::new(self.image.as_deref().unwrap_or_default());
        if let Some(command) = &self.command {
            spec = command.apply(spec);
        }
        spec = with_inputs(spec, &self.env, &self.secrets, &self.mounts, secrets);
        if let Some(grace) = self.grace {
            spec = spec.stop_grace(grace);
        }
        for port in self.ready.ports() {
            let port = Port::tcp(port);
            // Other machines need no access, unless the engine is on one.
            spec = spec.port(match host {
                "127.0.0.1" | "localhost" => port.address("127.0.0.1"),
                _ => port,
            });
        }
        // A kept container would keep the network and the workspace.
        spec.keep(KeepContainer::Never)
    }

    /// The condition under which the service is ready; `None`: once it has started.
    pub fn ready(&self) -> Option<Ready> {
        let conditions: Vec<_> = self.ready.conditions().collect();
        let limited = conditions
            .into_iter()
            .map(|condition| condition.within(self.ready_timeout));
        let limited: Vec<_> = limited.collect();
        (!limited.is_empty()).then(|| Ready::all(limited).within(self.ready_timeout))
    }
}

impl ReadyTable {
    fn check(&self) -> Result<(), &'static str> {
        let is_path =
            |path: &str| path.starts_with('/') && path.chars().all(|c| c.is_ascii_graphic());
        if self.ports().contains(&0) {
            return Err("0 is not a port");
        }
        if self.http.as_ref().is_some_and(|http| !is_path(&http.path)) {
            return Err(
                "the path of http must start with `/`, and have neither spaces nor special letters",
            );
        }
        if self.exec.as_ref().is_some_and(Vec::is_empty) {
            return Err("exec is empty");
        }
        if self.line.as_ref().is_some_and(String::is_empty) {
            return Err("line is empty");
        }
        Ok(())
    }

    fn ports(&self) -> BTreeSet<u16> {
        let http = self.http.as_ref().map(|http| http.port);
        self.port.into_iter().chain(http).collect()
    }

    fn conditions(&self) -> impl Iterator<Item = Ready> {
        #[cfg(any(feature = "docker", feature = "kube"))]
        let http = |http: &HttpTable| Ready::http(http.port, &http.path);
        // No other runtime has services.
        #[cfg(not(any(feature = "docker", feature = "kube")))]
        let http = |http: &HttpTable| Ready::line(&http.path);
        let conditions = [
            self.line.as_ref().map(Ready::line),
            self.port.map(Ready::port),
            self.http.as_ref().map(http),
            self.exec.clone().map(Ready::exec),
            self.healthy.then(Ready::healthy),
        ];
        conditions.into_iter().flatten()
    }
}

/// The services of the pipeline, in the order of the file.
pub(super) fn services(
    table: &PipelineTable,
    image: Option<&str>,
    dir: &Path,
) -> Result<Vec<Service>, InvalidPipeline> {
    let mut names = BTreeSet::new();
    for service in &table.services {
        check_name(service)?;
        if !names.insert(&service.name) {
            return Err(service.invalid("name", "another service has the same name"));
        }
    }
    if table.network.is_some() && !table.services.is_empty() {
        let reason = "steps join the network of the services; set it in the steps that do not";
        return Err(InvalidPipeline::field("network", reason));
    }
    let image = image.or(table.image.as_deref());
    let services = table.services.iter();
    services.map(|service| service.read(image, dir)).collect()
}

/// Checks the name of a service, which is a name of its host.
fn check_name(service: &ServiceTable) -> Result<(), InvalidPipeline> {
    let name = &service.name;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let has_edges = !name.starts_with('-') && !name.ends_with('-');
    match has_edges && (1..=63).contains(&name.len()) && name.chars().all(plain) {
        true => Ok(()),
        false => Err(service.invalid(
            "name",
            "must be 1 to 63 lowercase letters, digits and `-`, and neither start nor end with `-`",
        )),
    }
}

impl ServiceTable {
    /// `image` is for a service that names none.
    fn read(&self, image: Option<&str>, dir: &Path) -> Result<Service, InvalidPipeline> {
        let mounts = self.mounts.iter().map(|text| mount(text, dir));
        let mounts = mounts.collect::<Result<_, _>>();
        let secrets = check_secrets(&self.secrets, &self.env);
        secrets.map_err(|reason| self.invalid("secrets", reason))?;
        let checked = self.ready.check();
        checked.map_err(|reason| self.invalid("ready", reason))?;
        let ready_timeout = seconds(self.ready_timeout);
        let ready_timeout =
            ready_timeout.map_err(|reason| self.invalid("ready_timeout", reason))?;
        Ok(Service {
            name: self.name.clone(),
            image: self.image.as_deref().or(image).map(str::to_owned),
            command: self.command()?,
            env: self.env.clone(),
            secrets: self.secrets.clone(),
            mounts: mounts.map_err(|reason| self.invalid("mounts", reason))?,
            grace: seconds(self.grace).map_err(|reason| self.invalid("grace", reason))?,
            ready: self.ready.clone(),
            ready_timeout: ready_timeout.unwrap_or(READY_TIMEOUT),
        })
    }

    fn command(&self) -> Result<Option<Command>, InvalidPipeline> {
        match (&self.commands, &self.exec) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(self.invalid("exec", "the service also has commands")),
            (Some(list), None) if list.is_empty() => {
                Err(self.invalid("commands", "the list is empty"))
            }
            (None, Some(list)) if list.is_empty() => Err(self.invalid("exec", "the list is empty")),
            (Some(lines), None) => Ok(Some(Command::Script(lines.join("\n")))),
            (None, Some(words)) => Ok(Some(Command::Exec(words.clone()))),
        }
    }

    fn invalid(&self, field: &str, reason: impl Into<String>) -> InvalidPipeline {
        InvalidPipeline::service(&self.name, field, reason)
    }
}
