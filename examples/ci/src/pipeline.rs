//! A pipeline: its steps, checked, with matrices expanded.

mod artifact;
mod file;
mod matrix;
mod service;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moat::spec::{InvalidSpec, Mount};
use moat::{RunSpec, Runtime};
use sha2::{Digest, Sha256};

pub use artifact::Artifact;
pub use service::Service;

use file::{PipelineTable, StepTable, check_name};

/// Length of a pipeline's digest. In hexadecimal, SHA-256 is too long for a label of a pod.
const DIGEST_BYTES: usize = 16;

/// The steps of a pipeline, and which of them depend on which.
#[derive(Debug)]
pub struct Pipeline {
    pub name: String,
    pub services: Vec<Service>,
    /// The path of the volume that all steps share.
    pub workspace: Option<String>,
    pub steps: Vec<Step>,
    /// A digest of the file and of the image override.
    ///
    /// A changed pipeline has another digest.
    pub digest: String,
}

/// One step, or one cell of a step's matrix.
#[derive(Debug)]
pub struct Step {
    /// `test`, or `test (os=a, version=2)`.
    pub name: String,
    /// Dependencies: indices into [`Pipeline::steps`].
    pub needs: Vec<usize>,
    pub image: Option<String>,
    pub command: Command,
    pub env: BTreeMap<String, String>,
    /// Names of environment variables of this process whose values are secrets.
    pub secrets: Vec<String>,
    pub mounts: Vec<Mount>,
    pub network: Option<String>,
    pub workdir: Option<String>,
    pub timeout: Option<Duration>,
    pub silence: Option<Duration>,
    pub grace: Option<Duration>,
    /// Maximum number of retries after a failure.
    pub retries: u32,
    pub allow_failure: bool,
    pub artifacts: Vec<Artifact>,
}

#[derive(Debug, Clone)]
pub enum Command {
    /// Lines for `sh -e`.
    Script(String),
    /// A program and its arguments.
    Exec(Vec<String>),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Script(script) => f.write_str(script),
            Self::Exec(words) => f.write_str(&words.join(" ")),
        }
    }
}

impl Command {
    /// Replaces the command of the image.
    fn apply(&self, spec: RunSpec) -> RunSpec {
        // The image's own entrypoint would get the script as its arguments.
        let spec = spec.entrypoint([""; 0]);
        match self {
            Self::Script(script) => spec.cmd(["sh", "-e", "-c", script]),
            Self::Exec(words) => spec.cmd(words),
        }
    }
}

/// An error in a pipeline.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPipeline {
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot parse {}: {source}", path.display())]
    Syntax {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    #[error("the pipeline has no steps")]
    NoSteps,
    #[error("step {step:?}: {field}: {reason}")]
    Step {
        step: String,
        field: String,
        reason: String,
    },
    #[error("service {service:?}: {field}: {reason}")]
    Service {
        service: String,
        field: String,
        reason: String,
    },
    #[error("{field}: {reason}")]
    Field { field: String, reason: String },
}

impl InvalidPipeline {
    fn field(field: &str, reason: impl Into<String>) -> Self {
        Self::Field {
            field: field.into(),
            reason: reason.into(),
        }
    }

    fn service(service: &str, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Service {
            service: service.into(),
            field: field.into(),
            reason: reason.into(),
        }
    }

    fn step(step: &str, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Step {
            step: step.into(),
            field: field.into(),
            reason: reason.into(),
        }
    }
}

impl Pipeline {
    /// Reads the file at `path`.
    ///
    /// `image`, if given, replaces every image in the file, except those of services.
    pub fn read(path: &Path, image: Option<&str>) -> Result<Self, InvalidPipeline> {
        let text = std::fs::read_to_string(path).map_err(|source| InvalidPipeline::Read {
            path: path.into(),
            source,
        })?;
        let table: PipelineTable =
            toml::from_str(&text).map_err(|source| InvalidPipeline::Syntax {
                path: path.into(),
                source: Box::new(source),
            })?;
        if table.steps.is_empty() {
            return Err(InvalidPipeline::NoSteps);
        }
        // Relative paths are relative to the file, not to the working directory.
        let dir = path.parent().unwrap_or(Path::new("."));
        if let Some(workspace) = &table.workspace
            && (!workspace.starts_with('/') || workspace.trim_end_matches('/').is_empty())
        {
            let reason = format!("{workspace:?} is not the absolute path of a directory below `/`");
            return Err(InvalidPipeline::field("workspace", reason));
        }
        let services = service::services(&table, image, dir)?;
        let steps = expand(&table, image, dir)?;
        check_cycles(&steps)?;
        artifact::check(&steps)?;
        check_titles(&services, &steps)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Self {
            name: table.name.unwrap_or(name.into_owned()),
            services,
            workspace: table.workspace,
            steps,
            digest: digest(&text, image),
        })
    }

    /// Checks every step against the runtime before any step starts.
    pub fn check(
        &self,
        runtime: &dyn Runtime,
        images: bool,
        secrets: &BTreeMap<String, String>,
    ) -> Result<(), InvalidPipeline> {
        self.check_support(runtime)?;
        let validate = |spec: RunSpec| {
            let spec = match &self.workspace {
                Some(path) => spec.volume("workspace", path),
                None => spec,
            };
            spec.validate().and_then(|()| runtime.validate(&spec))
        };
        for service in &self.services {
            validate(service.spec(secrets, &runtime.host())).map_err(
                |InvalidSpec { field, reason, .. }| {
                    InvalidPipeline::service(&service.name, field, reason)
                },
            )?;
        }
        for step in &self.steps {
            validate(step.spec(images, secrets)).map_err(
                |InvalidSpec { field, reason, .. }| {
                    InvalidPipeline::step(&step.name, field, reason)
                },
            )?;
        }
        Ok(())
    }

    /// Checks that the runtime has what services, the workspace and artifacts need.
    fn check_support(&self, runtime: &dyn Runtime) -> Result<(), InvalidPipeline> {
        let capabilities = runtime.capabilities();
        let lacks = |what| format!("the runtime {:?} {what}", runtime.name());
        if !self.services.is_empty() && !capabilities.networks {
            let reason = lacks("has no networks of a build");
            return Err(InvalidPipeline::field("service", reason));
        }
        if self.workspace.is_some() && !capabilities.volumes {
            let reason = lacks("has no volumes of a build");
            return Err(InvalidPipeline::field("workspace", reason));
        }
        let mut steps = self.steps.iter();
        match steps.find(|step| !step.artifacts.is_empty() && !capabilities.copy_ended) {
            Some(step) => {
                let reason = lacks("cannot copy files from a step that has ended");
                Err(InvalidPipeline::step(&step.name, "artifacts", reason))
            }
            None => Ok(()),
        }
    }

    /// Returns true if the step uses the network of the services, or the workspace.
    pub fn shares(&self, step: &Step) -> bool {
        self.workspace.is_some() || (!self.services.is_empty() && step.network.is_none())
    }

    /// The values of all secrets, by name.
    ///
    /// `lookup` returns the value of a variable.
    pub fn secrets(
        &self,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<BTreeMap<String, String>, InvalidPipeline> {
        let mut secrets = BTreeMap::new();
        let mut read = |names: &[String]| {
            for name in names {
                let missing = || format!("{name} is not set in the environment");
                let value = lookup(name).ok_or_else(missing)?;
                secrets.insert(name.clone(), value);
            }
            Ok(())
        };
        for service in &self.services {
            read(&service.secrets).map_err(|reason: String| {
                InvalidPipeline::service(&service.name, "secrets", reason)
            })?;
        }
        for step in &self.steps {
            read(&step.secrets)
                .map_err(|reason| InvalidPipeline::step(&step.name, "secrets", reason))?;
        }
        Ok(secrets)
    }
}

impl Step {
    /// The run of this step. `images` is false if the runtime has no images.
    pub fn spec(&self, images: bool, secrets: &BTreeMap<String, String>) -> RunSpec {
        let image = self.image.as_deref().filter(|_| images);
        let spec = self.command.apply(RunSpec::new(image.unwrap_or_default()));
        let mut spec = with_inputs(spec, &self.env, &self.secrets, &self.mounts, secrets);
        if let Some(mode) = &self.network {
            spec = spec.network(mode);
        }
        if let Some(workdir) = &self.workdir {
            spec = spec.workdir(workdir);
        }
        if let Some(limit) = self.timeout {
            spec = spec.time_limit(limit);
        }
        if let Some(limit) = self.silence {
            spec = spec.silence_limit(limit);
        }
        if let Some(grace) = self.grace {
            spec = spec.stop_grace(grace);
        }
        spec
    }
}

/// Adds environment variables, secrets and mounts. `values` has the value of each secret.
fn with_inputs(
    mut spec: RunSpec,
    env: &BTreeMap<String, String>,
    secrets: &[String],
    mounts: &[Mount],
    values: &BTreeMap<String, String>,
) -> RunSpec {
    for (name, value) in env {
        spec = spec.env(name, value);
    }
    for name in secrets {
        spec = spec.env(name, values.get(name).map_or("", String::as_str));
    }
    for mount in mounts {
        spec = spec.mount(mount.clone());
    }
    spec
}

fn digest(text: &str, image: Option<&str>) -> String {
    let mut digest = Sha256::new();
    digest.update(text);
    digest.update([0]);
    digest.update(image.unwrap_or_default());
    let digest = digest.finalize();
    let digest = &digest[..DIGEST_BYTES];
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Turns each table into a step, or into one step for each cell of its matrix.
fn expand(
    table: &PipelineTable,
    image: Option<&str>,
    dir: &Path,
) -> Result<Vec<Step>, InvalidPipeline> {
    let mut steps = Vec::new();
    let mut indices: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for step in &table.steps {
        check_name(&step.name)?;
        let first = steps.len();
        for cell in matrix::cells(step)? {
            steps.push(step.cell(&cell, table, image, dir)?);
        }
        let range = (first..steps.len()).collect();
        if indices.insert(&step.name, range).is_some() {
            let reason = "another step has the same name";
            return Err(InvalidPipeline::step(&step.name, "name", reason));
        }
    }
    for step in &table.steps {
        let needs = resolve_needs(step, &indices)?;
        for &index in &indices[step.name.as_str()] {
            steps[index].needs = needs.iter().copied().collect();
        }
    }
    Ok(steps)
}

/// The indices of the steps that `step` depends on.
///
/// A dependency with a matrix stands for all of its cells.
fn resolve_needs(
    step: &StepTable,
    indices: &BTreeMap<&str, Vec<usize>>,
) -> Result<BTreeSet<usize>, InvalidPipeline> {
    let mut needs = BTreeSet::new();
    for need in &step.needs {
        let Some(needed) = indices.get(need.as_str()) else {
            let reason = format!("there is no step {need:?}");
            return Err(InvalidPipeline::step(&step.name, "needs", reason));
        };
        needs.extend(needed);
    }
    Ok(needs)
}

/// Rejects a step with the name that a service has in the reports.
fn check_titles(services: &[Service], steps: &[Step]) -> Result<(), InvalidPipeline> {
    let is_taken = |step: &&Step| services.iter().any(|service| service.title() == step.name);
    match steps.iter().find(is_taken) {
        Some(step) => {
            let reason = "a service has this name in the reports";
            Err(InvalidPipeline::step(&step.name, "name", reason))
        }
        None => Ok(()),
    }
}

/// Rejects cyclic dependencies: such steps would wait for each other forever.
fn check_cycles(steps: &[Step]) -> Result<(), InvalidPipeline> {
    let mut blocked: BTreeSet<usize> = (0..steps.len()).collect();
    loop {
        let ready = |index: &usize| {
            steps[*index]
                .needs
                .iter()
                .all(|need| !blocked.contains(need))
        };
        let ready: Vec<usize> = blocked.iter().copied().filter(ready).collect();
        if ready.is_empty() {
            break;
        }
        blocked.retain(|index| !ready.contains(index));
    }
    let Some(&first) = blocked.first() else {
        return Ok(());
    };
    // Each blocked step needs another blocked step, so a walk along `needs` repeats a step.
    let mut path = vec![first];
    loop {
        let last = path[path.len() - 1];
        let next = steps[last].needs.iter().find(|need| blocked.contains(need));
        let Some(&next) = next else { return Ok(()) };
        if let Some(from) = path.iter().position(|&index| index == next) {
            path.drain(..from);
            path.push(next);
            break;
        }
        path.push(next);
    }
    let names: Vec<_> = path
        .iter()
        .map(|&index| steps[index].name.as_str())
        .collect();
    let reason = format!("the dependencies form a cycle: {}", names.join(" needs "));
    Err(InvalidPipeline::step(names[0], "needs", reason))
}
