//! The proxies of containers in the configuration file of Docker's CLI.

use std::path::Path;

use serde_json::Value;

use super::context::{self, field};
use super::environment::Environment;
use super::local;
use crate::spec::{InvalidSpec, RunSpec};

/// The field that errors name.
const FIELD: &str = "proxies_from_docker_config";
/// The entry for engines without one of their own.
const DEFAULT: &str = "default";
/// The settings of an entry, each with the variable that it sets.
const SETTINGS: [(&str, &str); 5] = [
    ("httpProxy", "HTTP_PROXY"),
    ("httpsProxy", "HTTPS_PROXY"),
    ("noProxy", "NO_PROXY"),
    ("ftpProxy", "FTP_PROXY"),
    ("allProxy", "ALL_PROXY"),
];

impl RunSpec {
    /// Sets the proxies of Docker's configuration file, as `docker run` does.
    ///
    /// The file is `config.json` in `DOCKER_CONFIG`, else in `~/.docker`. Its entry `proxies` has
    /// the settings of the engine that Docker's CLI uses, by its address, else those of `default`.
    /// They become `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`, `FTP_PROXY` and `ALL_PROXY`, also in
    /// lower case. [`env`](Self::env) and [`env_file`](Self::env_file) override each of them. As for
    /// `env`, no value is recorded: the address of a proxy may have a password.
    ///
    /// Default: no proxy. Unlike the credentials of a registry, which only the engine gets, the
    /// variables are visible to the container, so moat sets them on request only.
    ///
    /// The file is read during this call, which blocks. A missing file has no proxies. If the file
    /// is malformed, [`validate`](Self::validate) returns the error, and so does the start of the
    /// run.
    pub fn proxies_from_docker_config(self) -> Self {
        self.with_missing_env(proxies(&Environment::read()))
    }
}

/// Returns the variables for the proxies.
fn proxies(environment: &Environment) -> Result<Vec<(String, String)>, InvalidSpec> {
    let Some(dir) = environment.config_dir() else {
        return Ok(Vec::new());
    };
    read(&dir, environment).map_err(|reason| InvalidSpec::new(FIELD, reason))
}

fn read(dir: &Path, environment: &Environment) -> Result<Vec<(String, String)>, String> {
    let Some(config) = context::configuration(dir)? else {
        return Ok(Vec::new());
    };
    let Some(entries) = field(&config, "proxies") else {
        return Ok(Vec::new());
    };
    let entry = entries
        .get(engine(dir, environment))
        .or_else(|| entries.get(DEFAULT));
    let mut variables = Vec::new();
    for (setting, variable) in SETTINGS {
        match entry.and_then(|entry| field(entry, setting)) {
            None | Some(Value::Null) => {}
            Some(Value::String(value)) if value.is_empty() => {}
            Some(Value::String(value)) => {
                variables.push((variable.to_owned(), value.clone()));
                variables.push((variable.to_lowercase(), value.clone()));
            }
            Some(_) => {
                let file = context::config_file(dir);
                return Err(format!("{}: {setting} is not a string", file.display()));
            }
        }
    }
    Ok(variables)
}

/// Returns the address of the engine of Docker's CLI, as the CLI writes it.
fn engine(dir: &Path, environment: &Environment) -> String {
    let system = || format!("{}://{}", local::SCHEME, local::DEFAULT_ADDRESS);
    if let Some(host) = &environment.docker_host {
        return host.clone();
    }
    let name = match &environment.docker_context {
        Some(name) => Some(name.clone()),
        None => context::current(dir).ok().flatten(),
    };
    let context = name.filter(|name| name != context::DEFAULT);
    let host = context.and_then(|name| context::load(dir, &name).ok()?.host);
    host.unwrap_or_else(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_config(text: &str) -> (tempfile::TempDir, Environment) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let environment = Environment {
            config: Some(dir.path().to_owned()),
            ..Environment::default()
        };
        (dir, environment)
    }

    fn found(text: &str, docker_host: Option<&str>) -> Vec<(String, String)> {
        let (_dir, mut environment) = with_config(text);
        environment.docker_host = docker_host.map(Into::into);
        proxies(&environment).unwrap()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    const CONFIG: &str = r#"{"auths": {}, "proxies": {
        "default": {"httpProxy": "http://me:s3cr3t@proxy:1", "noProxy": "a,b", "ftpProxy": ""},
        "tcp://engine:2375": {"allProxy": "socks5://other:2"}
    }}"#;

    #[test]
    fn the_entry_of_the_engine_or_the_default_is_used() {
        let default = [
            pair("HTTP_PROXY", "http://me:s3cr3t@proxy:1"),
            pair("http_proxy", "http://me:s3cr3t@proxy:1"),
            pair("NO_PROXY", "a,b"),
            pair("no_proxy", "a,b"),
        ];
        assert_eq!(found(CONFIG, None), default);
        assert_eq!(found(CONFIG, Some("tcp://nowhere:1")), default);
        let other = [
            pair("ALL_PROXY", "socks5://other:2"),
            pair("all_proxy", "socks5://other:2"),
        ];
        assert_eq!(found(CONFIG, Some("tcp://engine:2375")), other);
        assert_eq!(found(r#"{"proxies": {}}"#, None), []);
        assert_eq!(found("{}", None), []);
        assert_eq!(proxies(&Environment::default()), Ok(Vec::new()));
    }

    #[test]
    fn a_malformed_file_is_an_error_without_its_text() {
        for text in [
            r#"{"proxies": {"default": {"httpProxy": ["s3cr3t"]}}}"#,
            r#"{"proxies": {"default": {"httpProxy": "s3cr3t"#,
        ] {
            let (_dir, environment) = with_config(text);
            let spec = RunSpec::new("x").with_missing_env(proxies(&environment));
            let error = spec.validate().unwrap_err();
            assert_eq!(error.field, FIELD);
            assert!(error.reason.contains("config.json"), "{error}");
            assert!(!error.reason.contains("s3cr3t"), "{error}");
        }
    }

    #[test]
    fn the_variables_of_the_spec_override_a_proxy() {
        let (_dir, environment) = with_config(CONFIG);
        let spec = RunSpec::new("x")
            .env("HTTP_PROXY", "before")
            .with_missing_env(proxies(&environment))
            .env("no_proxy", "after");
        let view = crate::spec::RuntimeView::new(&spec);
        let mut env: Vec<_> = view.environment().collect();
        env.sort_unstable();
        let expected = [
            ("HTTP_PROXY", "before"),
            ("NO_PROXY", "a,b"),
            ("http_proxy", "http://me:s3cr3t@proxy:1"),
            ("no_proxy", "after"),
        ];
        assert_eq!(env, expected);
        assert!(!format!("{spec:?}").contains("s3cr3t"));
    }
}
