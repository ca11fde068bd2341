//! The tables of a pipeline file, and the step that a table describes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use moat::spec::{InvalidSpec, Mount};
use serde::Deserialize;

use super::matrix::{Cell, cell_name, fill};
use super::service::ServiceTable;
use super::{Artifact, Command, InvalidPipeline, Step};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PipelineTable {
    pub(super) name: Option<String>,
    pub(super) image: Option<String>,
    pub(super) network: Option<String>,
    pub(super) workspace: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default, rename = "service")]
    pub(super) services: Vec<ServiceTable>,
    #[serde(default, rename = "step")]
    pub(super) steps: Vec<StepTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StepTable {
    pub(super) name: String,
    image: Option<String>,
    commands: Option<Vec<String>>,
    exec: Option<Vec<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    secrets: Vec<String>,
    #[serde(default)]
    mounts: Vec<String>,
    network: Option<String>,
    workdir: Option<String>,
    #[serde(default)]
    pub(super) needs: Vec<String>,
    timeout: Option<f64>,
    silence: Option<f64>,
    grace: Option<f64>,
    #[serde(default)]
    retries: u32,
    #[serde(default)]
    allow_failure: bool,
    #[serde(default)]
    artifacts: Vec<String>,
    #[serde(default)]
    pub(super) matrix: BTreeMap<String, Vec<String>>,
}

impl StepTable {
    /// The step for one cell of the matrix, without its dependencies.
    pub(super) fn cell(
        &self,
        cell: &Cell<'_>,
        pipeline: &PipelineTable,
        image: Option<&str>,
        dir: &Path,
    ) -> Result<Step, InvalidPipeline> {
        let command = self.command(cell)?;
        let env = self.env(pipeline, cell)?;
        let named = self.image.as_ref().or(pipeline.image.as_ref());
        let image = match (image, named) {
            (Some(image), _) => Some(image.to_owned()),
            (None, Some(image)) => Some(self.fill("image", image, cell)?),
            (None, None) => None,
        };
        let mount = |text: &String| {
            mount(&self.fill("mounts", text, cell)?, dir)
                .map_err(|reason| self.invalid("mounts", reason))
        };
        let network = self.network.as_ref().or(pipeline.network.as_ref());
        let workdir = self.workdir.as_ref().or(pipeline.workspace.as_ref());
        let workdir = workdir.map(|path| self.fill("workdir", path, cell));
        let workdir = workdir.transpose()?;
        let artifact = |path: &String| {
            Artifact::new(&self.fill("artifacts", path, cell)?, workdir.as_deref())
                .map_err(|reason| self.invalid("artifacts", reason))
        };
        Ok(Step {
            name: cell_name(&self.name, cell),
            needs: Vec::new(),
            image,
            command,
            env,
            secrets: self.secrets.clone(),
            mounts: self.mounts.iter().map(mount).collect::<Result<_, _>>()?,
            network: network
                .map(|mode| self.fill("network", mode, cell))
                .transpose()?,
            timeout: self.seconds("timeout", self.timeout)?,
            silence: self.seconds("silence", self.silence)?,
            grace: self.seconds("grace", self.grace)?,
            retries: self.retries,
            allow_failure: self.allow_failure,
            artifacts: self
                .artifacts
                .iter()
                .map(artifact)
                .collect::<Result<_, _>>()?,
            workdir,
        })
    }

    fn command(&self, cell: &Cell<'_>) -> Result<Command, InvalidPipeline> {
        let fill_all = |field: &str, texts: &[String]| {
            let filled = texts.iter().map(|text| self.fill(field, text, cell));
            filled.collect::<Result<Vec<_>, _>>()
        };
        match (&self.commands, &self.exec) {
            (Some(lines), None) if !lines.is_empty() => {
                Ok(Command::Script(fill_all("commands", lines)?.join("\n")))
            }
            (None, Some(words)) if !words.is_empty() => Ok(Command::Exec(fill_all("exec", words)?)),
            (Some(_), Some(_)) => Err(self.invalid("exec", "the step also has commands")),
            (_, Some(_)) => Err(self.invalid("exec", "the list is empty")),
            _ => Err(self.invalid("commands", "the step has no commands")),
        }
    }

    fn env(
        &self,
        pipeline: &PipelineTable,
        cell: &Cell<'_>,
    ) -> Result<BTreeMap<String, String>, InvalidPipeline> {
        let mut env = BTreeMap::new();
        for (name, value) in pipeline.env.iter().chain(&self.env) {
            env.insert(name.clone(), self.fill("env", value, cell)?);
        }
        check_secrets(&self.secrets, &env).map_err(|reason| self.invalid("secrets", reason))?;
        Ok(env)
    }

    fn seconds(
        &self,
        field: &str,
        value: Option<f64>,
    ) -> Result<Option<Duration>, InvalidPipeline> {
        seconds(value).map_err(|reason| self.invalid(field, reason))
    }

    fn fill(&self, field: &str, text: &str, cell: &Cell<'_>) -> Result<String, InvalidPipeline> {
        fill(text, cell).map_err(|reason| self.invalid(field, reason))
    }

    fn invalid(&self, field: &str, reason: impl Into<String>) -> InvalidPipeline {
        InvalidPipeline::step(&self.name, field, reason)
    }
}

/// Checks a step's name.
///
/// Names appear in paths, in XML and in commands for CI systems, so only plain characters are
/// allowed.
pub(super) fn check_name(name: &str) -> Result<(), InvalidPipeline> {
    let plain = |c: char| c.is_alphanumeric() || " _.-/".contains(c);
    let fits = name.chars().count() <= 100;
    match name.starts_with(char::is_alphanumeric) && fits && name.chars().all(plain) {
        true => Ok(()),
        false => Err(InvalidPipeline::step(
            name,
            "name",
            "must be 1 to 100 letters, digits, spaces and `_.-/`, and start with a letter or a digit",
        )),
    }
}

/// Rejects a secret with the name of a variable.
pub(super) fn check_secrets(
    secrets: &[String],
    env: &BTreeMap<String, String>,
) -> Result<(), String> {
    match secrets.iter().find(|name| env.contains_key(*name)) {
        Some(name) => Err(format!("{name} is also in env")),
        None => Ok(()),
    }
}

pub(super) fn seconds(value: Option<f64>) -> Result<Option<Duration>, String> {
    let time = value.map(Duration::try_from_secs_f64).transpose();
    time.map_err(|error| error.to_string())
}

/// Parses a mount in Docker's syntax. A relative source is relative to `dir`.
pub(super) fn mount(text: &str, dir: &Path) -> Result<Mount, String> {
    let mut mount = text.parse().map_err(|InvalidSpec { reason, .. }| reason)?;
    if let Mount::Bind { source, .. } = &mut mount {
        *source = std::path::absolute(dir.join(&*source)).map_err(|error| error.to_string())?;
    }
    Ok(mount)
}
