//! What a pipeline file says, checked, with its matrices written out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moat::spec::Mount;
use moat::{Error, RunSpec, Runtime};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// The most steps that a matrix may be written out as.
const MOST_CELLS: usize = 256;

/// A pipeline: steps, and which of them wait for which.
#[derive(Debug)]
pub struct Pipeline {
    pub name: String,
    pub steps: Vec<Step>,
    /// What tells this pipeline from all others, and from itself before it was changed.
    pub digest: String,
}

/// One step, or one cell of a step's matrix.
#[derive(Debug)]
pub struct Step {
    /// `test`, or `test (os=a, version=2)`.
    pub name: String,
    /// The places in [`Pipeline::steps`] of those that it waits for.
    pub needs: Vec<usize>,
    pub image: Option<String>,
    pub command: Command,
    pub env: BTreeMap<String, String>,
    /// The names of variables of this process whose values are secrets.
    pub secrets: Vec<String>,
    pub mounts: Vec<Mount>,
    pub workdir: Option<String>,
    pub timeout: Option<Duration>,
    pub silence: Option<Duration>,
    pub grace: Option<Duration>,
    /// How often it is tried again after it has failed.
    pub retries: u32,
    pub allow_failure: bool,
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

/// What is wrong with a pipeline.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: {source}", path.display())]
    Syntax {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    #[error("{field}: {reason}")]
    Pipeline { field: &'static str, reason: String },
    #[error("step {step:?}: {field}: {reason}")]
    Step {
        step: String,
        field: String,
        reason: String,
    },
}

impl Invalid {
    pub fn step(step: &str, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Step {
            step: step.into(),
            field: field.into(),
            reason: reason.into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PipelineTable {
    name: Option<String>,
    image: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default, rename = "step")]
    steps: Vec<StepTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepTable {
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
    workdir: Option<String>,
    #[serde(default)]
    needs: Vec<String>,
    timeout: Option<f64>,
    silence: Option<f64>,
    grace: Option<f64>,
    #[serde(default)]
    retries: u32,
    #[serde(default)]
    allow_failure: bool,
    #[serde(default)]
    matrix: BTreeMap<String, Vec<String>>,
}

impl Pipeline {
    /// Reads the file at `path`; `image` is in the place of every image that it names.
    pub fn read(path: &Path, image: Option<&str>) -> Result<Self, Invalid> {
        let text = std::fs::read_to_string(path).map_err(|source| Invalid::Read {
            path: path.into(),
            source,
        })?;
        let table: PipelineTable = toml::from_str(&text).map_err(|source| Invalid::Syntax {
            path: path.into(),
            source: Box::new(source),
        })?;
        if table.steps.is_empty() {
            return Err(Invalid::Pipeline {
                field: "step",
                reason: "there is none".into(),
            });
        }
        let mut digest = Sha256::new();
        digest.update(&text);
        digest.update([0]);
        digest.update(image.unwrap_or_default());

        // Relative paths are the file's, wherever the harness was started.
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut steps = Vec::new();
        let mut cells: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for step in &table.steps {
            check_name(&step.name)?;
            let first = steps.len();
            for cell in matrix(step)? {
                steps.push(step.cell(&cell, &table, image, dir)?);
            }
            if cells
                .insert(&step.name, (first..steps.len()).collect())
                .is_some()
            {
                return Err(Invalid::step(&step.name, "name", "another step has it"));
            }
        }
        for step in &table.steps {
            let mut needs = BTreeSet::new();
            for need in &step.needs {
                let Some(needed) = cells.get(need.as_str()) else {
                    let reason = format!("there is no step {need:?}");
                    return Err(Invalid::step(&step.name, "needs", reason));
                };
                needs.extend(needed);
            }
            for &at in &cells[step.name.as_str()] {
                steps[at].needs = needs.iter().copied().collect();
            }
        }
        refuse_cycles(&steps)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Self {
            name: table.name.unwrap_or(name.into_owned()),
            steps,
            digest: digest
                .finalize()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect(),
        })
    }

    /// Refuses what the runtime would refuse, while nothing runs yet.
    pub fn check(
        &self,
        runtime: &dyn Runtime,
        images: bool,
        secrets: &BTreeMap<String, String>,
    ) -> Result<(), Invalid> {
        for step in &self.steps {
            let spec = step.spec(images, secrets);
            match spec.validate().and_then(|()| runtime.validate(&spec)) {
                Ok(()) => {}
                Err(Error::InvalidSpec { field, reason }) => {
                    return Err(Invalid::step(&step.name, field, reason));
                }
                Err(other) => return Err(Invalid::step(&step.name, "spec", other.chain())),
            }
        }
        Ok(())
    }

    /// The names of all secrets, with their values by `lookup`.
    pub fn secrets(
        &self,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<BTreeMap<String, String>, Invalid> {
        let mut secrets = BTreeMap::new();
        for step in &self.steps {
            for name in &step.secrets {
                let Some(value) = lookup(name) else {
                    let reason = format!("{name} is not in the environment");
                    return Err(Invalid::step(&step.name, "secrets", reason));
                };
                secrets.insert(name.clone(), value);
            }
        }
        Ok(secrets)
    }
}

impl Step {
    /// What is to be run; without its image where `images` says that there are none.
    pub fn spec(&self, images: bool, secrets: &BTreeMap<String, String>) -> RunSpec {
        let image = self.image.as_deref().filter(|_| images);
        // The image's own entrypoint would get the script as its arguments.
        let mut spec = RunSpec::new(image.unwrap_or_default()).entrypoint([""; 0]);
        spec = match &self.command {
            Command::Script(script) => spec.cmd(["sh", "-e", "-c", script]),
            Command::Exec(words) => spec.cmd(words),
        };
        for (name, value) in &self.env {
            spec = spec.env(name, value);
        }
        for name in &self.secrets {
            spec = spec.env(name, secrets.get(name).map_or("", String::as_str));
        }
        for mount in &self.mounts {
            spec = spec.mount(mount.clone());
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

/// The values of one cell of a matrix, by key.
type Cell<'a> = BTreeMap<&'a str, &'a str>;

/// The cells of a step's matrix; one without any values where it has none.
fn matrix(step: &StepTable) -> Result<Vec<Cell<'_>>, Invalid> {
    let invalid = |reason: String| Err(Invalid::step(&step.name, "matrix", reason));
    let mut cells = vec![Cell::new()];
    for (key, values) in &step.matrix {
        if key.chars().any(char::is_control) {
            return invalid(format!("{key:?} has a control character"));
        }
        if values.is_empty() {
            return invalid(format!("{key} has no values"));
        }
        if cells.len() * values.len() > MOST_CELLS {
            return invalid(format!("it has more than {MOST_CELLS} cells"));
        }
        for (at, value) in values.iter().enumerate() {
            if value.chars().any(char::is_control) {
                return invalid(format!("{key}: {value:?} has a control character"));
            }
            if values[..at].contains(value) {
                return invalid(format!("{key} has {value:?} twice"));
            }
        }
        cells = cells
            .iter()
            .flat_map(|cell| {
                values.iter().map(move |value| {
                    let mut cell = cell.clone();
                    cell.insert(key, value);
                    cell
                })
            })
            .collect();
    }
    let mut names = BTreeSet::new();
    for cell in &cells {
        let name = cell_name(&step.name, cell);
        if names.contains(&name) {
            return invalid(format!("two cells are {name:?}"));
        }
        names.insert(name);
    }
    Ok(cells)
}

impl StepTable {
    fn cell(
        &self,
        cell: &Cell<'_>,
        pipeline: &PipelineTable,
        image: Option<&str>,
        dir: &Path,
    ) -> Result<Step, Invalid> {
        let invalid = |field: &str, reason: &str| Err(Invalid::step(&self.name, field, reason));
        let fill = |field: &str, text: &str| {
            fill(text, cell).map_err(|reason| Invalid::step(&self.name, field, reason))
        };
        let fill_all = |field: &str, texts: &[String]| {
            let filled = texts.iter().map(|text| fill(field, text));
            filled.collect::<Result<Vec<_>, _>>()
        };
        let command = match (&self.commands, &self.exec) {
            (Some(lines), None) if !lines.is_empty() => {
                Command::Script(fill_all("commands", lines)?.join("\n"))
            }
            (None, Some(words)) if !words.is_empty() => Command::Exec(fill_all("exec", words)?),
            (Some(_), Some(_)) => return invalid("exec", "it has commands, too"),
            (_, Some(_)) => return invalid("exec", "it is empty"),
            _ => return invalid("commands", "there are none"),
        };
        let mut env = BTreeMap::new();
        for (name, value) in pipeline.env.iter().chain(&self.env) {
            env.insert(name.clone(), fill("env", value)?);
        }
        if let Some(name) = self.secrets.iter().find(|name| env.contains_key(*name)) {
            return invalid("secrets", &format!("{name} is in env, too"));
        }
        let seconds = |field: &str, value: Option<f64>| {
            let limit = value.map(Duration::try_from_secs_f64).transpose();
            limit.map_err(|error| Invalid::step(&self.name, field, error.to_string()))
        };
        let named = self.image.as_ref().or(pipeline.image.as_ref());
        let image = match (image, named) {
            (Some(image), _) => Some(image.to_owned()),
            (None, Some(image)) => Some(fill("image", image)?),
            (None, None) => None,
        };
        Ok(Step {
            name: cell_name(&self.name, cell),
            needs: Vec::new(),
            image,
            command,
            env,
            secrets: self.secrets.clone(),
            mounts: self
                .mounts
                .iter()
                .map(|text| {
                    mount(&fill("mounts", text)?, dir)
                        .map_err(|reason| Invalid::step(&self.name, "mounts", reason))
                })
                .collect::<Result<_, _>>()?,
            workdir: (self.workdir.as_ref())
                .map(|path| fill("workdir", path))
                .transpose()?,
            timeout: seconds("timeout", self.timeout)?,
            silence: seconds("silence", self.silence)?,
            grace: seconds("grace", self.grace)?,
            retries: self.retries,
            allow_failure: self.allow_failure,
        })
    }
}

fn cell_name(step: &str, cell: &Cell<'_>) -> String {
    if cell.is_empty() {
        return step.to_owned();
    }
    let values: Vec<_> = cell.iter().map(|(key, v)| format!("{key}={v}")).collect();
    format!("{step} ({})", values.join(", "))
}

/// Names are in folders, in XML and in what steers GitHub's runner: they are plain.
fn check_name(name: &str) -> Result<(), Invalid> {
    let plain = |c: char| c.is_alphanumeric() || " _.-/".contains(c);
    let fits = name.chars().count() <= 100;
    match name.starts_with(char::is_alphanumeric) && fits && name.chars().all(plain) {
        true => Ok(()),
        false => Err(Invalid::step(
            name,
            "name",
            "it has 1 to 100 letters, digits, blanks and `_.-/`, and begins with one of the former",
        )),
    }
}

/// `text` with the values of `cell` in place of each `${{ matrix.KEY }}`.
fn fill(text: &str, cell: &Cell<'_>) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${{") {
        let Some((name, after)) = after.split_once("}}") else {
            return Err("`${{` without `}}`".into());
        };
        let name = name.trim();
        let value = name.strip_prefix("matrix.").and_then(|key| cell.get(key));
        let Some(value) = value else {
            return Err(format!(
                "there is no {name:?}: what is filled in is `matrix.KEY`"
            ));
        };
        filled.push_str(before);
        filled.push_str(value);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// `HOST:CONTAINER[:ro]`, where a host's part without a `/` is a volume.
fn mount(text: &str, dir: &Path) -> Result<Mount, String> {
    let (text, read_only) = match text.strip_suffix(":ro") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (source, target) = text
        .split_once(':')
        .ok_or_else(|| format!("{text:?} is not HOST:CONTAINER[:ro]"))?;
    let target = target.to_owned();
    Ok(if source.contains('/') || source == "." {
        let source = std::path::absolute(dir.join(source)).map_err(|error| error.to_string())?;
        Mount::Bind {
            source,
            target,
            read_only,
        }
    } else {
        Mount::Volume {
            name: source.into(),
            target,
            read_only,
        }
    })
}

/// Steps that wait for each other would wait for ever.
fn refuse_cycles(steps: &[Step]) -> Result<(), Invalid> {
    let mut left: BTreeSet<usize> = (0..steps.len()).collect();
    loop {
        let ready = |at: &usize| steps[*at].needs.iter().all(|need| !left.contains(need));
        let ready: Vec<usize> = left.iter().copied().filter(ready).collect();
        if ready.is_empty() {
            break;
        }
        left.retain(|at| !ready.contains(at));
    }
    let Some(&first) = left.first() else {
        return Ok(());
    };
    // Whoever is left needs another one that is left: going on, one comes twice.
    let mut path = vec![first];
    loop {
        let last = path[path.len() - 1];
        let next = steps[last].needs.iter().find(|need| left.contains(need));
        let Some(&next) = next else { return Ok(()) };
        if let Some(from) = path.iter().position(|&at| at == next) {
            path.drain(..from);
            path.push(next);
            break;
        }
        path.push(next);
    }
    let names: Vec<_> = path.iter().map(|&at| steps[at].name.as_str()).collect();
    let reason = format!("they go round in a circle: {}", names.join(" needs "));
    Err(Invalid::step(names[0], "needs", reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Pipeline, Invalid> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it.toml");
        std::fs::write(&path, text).unwrap();
        Pipeline::read(&path, None)
    }

    #[test]
    fn a_matrix_is_written_out_and_what_needs_it_needs_each_cell() {
        let pipeline = read(
            r#"
            [[step]]
            name = "test"
            image = "rust:${{ matrix.rust }}"
            commands = ["test ${{matrix.os}}"]
            matrix = { rust = ["1.89", "1.90"], os = ["a", "b"] }
            [[step]]
            name = "ship"
            exec = ["true"]
            needs = ["test"]
            "#,
        )
        .unwrap();
        let names: Vec<_> = pipeline.steps.iter().map(|step| &step.name).collect();
        let cells = [
            "test (os=a, rust=1.89)",
            "test (os=a, rust=1.90)",
            "test (os=b, rust=1.89)",
            "test (os=b, rust=1.90)",
        ];
        assert_eq!(names, [&cells[..], &["ship"]].concat());
        assert_eq!(pipeline.steps[4].needs, [0, 1, 2, 3]);
        assert_eq!(pipeline.steps[1].image.as_deref(), Some("rust:1.90"));
        assert_eq!(pipeline.steps[3].command.to_string(), "test b");
    }

    #[test]
    fn what_is_wrong_is_said_with_the_step_and_the_field() {
        let step = "[[step]]\nname = \"a\"\n";
        for (text, said) in [
            (String::new(), "step: there is none"),
            (step.into(), "step \"a\": commands: there are none"),
            (
                format!("{step}exec = [\"x\"]\ncommands = [\"y\"]"),
                "step \"a\": exec: it has commands, too",
            ),
            (
                format!("{step}exec = [\"x\"]\nneeds = [\"b\"]"),
                "step \"a\": needs: there is no step \"b\"",
            ),
            (
                format!("{step}exec = [\"x\"]\n{step}exec = [\"x\"]"),
                "step \"a\": name: another step has it",
            ),
            (
                format!("{step}exec = [\"x\"]\ntimeout = -1"),
                "step \"a\": timeout: ",
            ),
            (
                format!("{step}exec = [\"${{{{ matrix.b }}}}\"]"),
                "step \"a\": exec: there is no \"matrix.b\"",
            ),
            (
                format!("{step}exec = [\"x\"]\nmounts = [\"x\"]"),
                "step \"a\": mounts: \"x\" is not HOST:CONTAINER[:ro]",
            ),
            (
                format!("{step}exec = [\"x\"]\nmatrix = {{ k = [] }}"),
                "step \"a\": matrix: k has no values",
            ),
            (
                format!("{step}exec = [\"x\"]\nmatrix = {{ \"k\\n\" = [\"v\"] }}"),
                "step \"a\": matrix: \"k\\n\" has a control character",
            ),
            (
                format!(
                    "{step}exec = [\"x\"]\n\
                     matrix = {{ k = [\"1\", \"1, l=2\"], l = [\"3\", \"2, l=3\"] }}"
                ),
                "step \"a\": matrix: two cells are \"a (k=1, l=2, l=3)\"",
            ),
            (
                format!("{step}exec = [\"x\"]\nenv = {{ K = \"\" }}\nsecrets = [\"K\"]"),
                "step \"a\": secrets: K is in env, too",
            ),
            (
                "[[step]]\nname = \"::a\"\nexec = [\"x\"]".into(),
                "step \"::a\": name: it has",
            ),
            (
                format!("{step}exec = [\"x\"]\nneeds = [\"a\"]"),
                "step \"a\": needs: they go round in a circle: a needs a",
            ),
            (
                format!("{step}comands = [\"x\"]"),
                "unknown field `comands`",
            ),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_name_has_as_many_letters_in_any_script() {
        let named = |name: String| read(&format!("[[step]]\nname = \"{name}\"\nexec = [\"x\"]"));
        for letter in ["a", "\u{e9}", "\u{6f22}"] {
            assert!(named(letter.repeat(100)).is_ok(), "{letter}");
            assert!(named(letter.repeat(101)).is_err(), "{letter}");
        }
    }

    #[test]
    fn a_circle_is_named() {
        let step = |name, need| {
            format!("[[step]]\nname = \"{name}\"\nexec = [\"x\"]\nneeds = [\"{need}\"]\n")
        };
        let text = [step("a", "b"), step("b", "c"), step("c", "b")].concat();
        let error = read(&text).unwrap_err().to_string();
        assert!(error.ends_with("b needs c needs b"), "{error}");
    }
}
