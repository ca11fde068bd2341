//! The contexts of Docker's CLI: the current one, and the endpoint of each.
//!
//! The files and their meaning are those of `cli/context/store` in docker/cli.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::environment::TlsMode;

/// The context that stands for the variables and the default sockets.
pub(super) const DEFAULT: &str = "default";

/// The endpoint of a context.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Context {
    /// The address. `None`: the system's socket.
    pub(super) host: Option<String>,
    pub(super) tls: TlsMode,
    /// The directory of `ca.pem`, `cert.pem` and `key.pem`.
    pub(super) certificates: PathBuf,
}

/// Returns the path of the CLI's configuration file.
pub(super) fn config_file(config_dir: &Path) -> PathBuf {
    config_dir.join("config.json")
}

/// Reads the name of the current context from the CLI's configuration file.
///
/// # Errors
///
/// The reason that the file cannot be used. The CLI then warns, and uses no context. Text after the
/// first JSON value is ignored, as by the CLI.
pub(super) fn current(config_dir: &Path) -> Result<Option<String>, String> {
    let Some(config) = configuration(config_dir)? else {
        return Ok(None);
    };
    match field(&config, "currentContext") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => Ok(Some(name.clone()).filter(|name| !name.is_empty())),
        Some(_) => {
            let file = config_file(config_dir);
            let reason = "currentContext is not a string";
            Err(format!("cannot read {}: {reason}", file.display()))
        }
    }
}

/// Reads the CLI's configuration file, a JSON object. Returns `None` if there is no such file.
///
/// # Errors
///
/// The errors of [`current`].
pub(super) fn configuration(config_dir: &Path) -> Result<Option<Value>, String> {
    let file = config_file(config_dir);
    let unusable = |reason: String| format!("cannot read {}: {reason}", file.display());
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(error.to_string())),
    };
    let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<Value>();
    let config = values.next().unwrap_or(Ok(Value::Null));
    let config = config.map_err(|error| unusable(malformed(&error)))?;
    match config.is_object() {
        true => Ok(Some(config)),
        false => Err(unusable("the file is not a JSON object".into())),
    }
}

/// Reads the endpoint of the context `name`.
///
/// # Errors
///
/// The reason that there is no such context, or that it cannot be used.
pub(super) fn load(config_dir: &Path, name: &str) -> Result<Context, String> {
    let store = config_dir.join("contexts");
    // The CLI derives the directory from the name, which can thus have any character.
    let id = directory(name);
    let file = store.join("meta").join(&id).join("meta.json");
    let unusable = |reason: String| format!("cannot read {}: {reason}", file.display());
    let text = fs::read(&file).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!(
            "there is no such context: {} does not exist; `docker context ls` lists all contexts",
            file.display()
        ),
        _ => unusable(error.to_string()),
    })?;
    let metadata: Value =
        serde_json::from_slice(&text).map_err(|error| unusable(malformed(&error)))?;
    let endpoint = field(&metadata, "Endpoints").and_then(|endpoints| endpoints.get("docker"));
    let endpoint = endpoint.filter(|endpoint| endpoint.is_object());
    let endpoint =
        endpoint.ok_or_else(|| unusable("the context has no endpoint for docker".into()))?;
    let host = match field(endpoint, "Host") {
        None | Some(Value::Null) => None,
        Some(Value::String(host)) => Some(host.clone()).filter(|host| !host.is_empty()),
        Some(_) => return Err(unusable("Host is not a string".into())),
    };
    let certificates = store.join("tls").join(&id).join("docker");
    Ok(Context {
        host,
        tls: match field(endpoint, "SkipTLSVerify") {
            Some(Value::Bool(true)) => TlsMode::Unverified,
            None | Some(Value::Bool(_) | Value::Null) => tls_mode(&certificates)?,
            Some(_) => return Err(unusable("SkipTLSVerify is not true or false".into())),
        },
        certificates,
    })
}

/// Returns a field of an object. Like the CLI, it ignores the case of the name.
pub(super) fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let object = object.as_object()?;
    let in_any_case = || {
        object
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
    };
    object.get(name).or_else(|| Some(in_any_case()?.1))
}

/// Returns the use of TLS: only with a directory for its files.
fn tls_mode(certificates: &Path) -> Result<TlsMode, String> {
    match fs::metadata(certificates) {
        Ok(found) if found.is_dir() => Ok(TlsMode::Verified),
        Ok(_) => Ok(TlsMode::Off),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(TlsMode::Off),
        Err(error) => Err(format!("cannot read {}: {error}", certificates.display())),
    }
}

/// Returns the name of a context's directory.
pub(crate) fn directory(name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Describes the error without serde's message, which can quote the file: it has credentials.
fn malformed(error: &serde_json::Error) -> String {
    format!(
        "it is malformed at line {} column {}",
        error.line(),
        error.column()
    )
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn store(name: &str, metadata: &str) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let meta = dir.path().join("contexts/meta").join(directory(name));
        fs::create_dir_all(&meta).unwrap();
        fs::write(meta.join("meta.json"), metadata).unwrap();
        dir
    }

    #[test]
    fn a_directory_is_named_as_dockers_cli_names_it() {
        // The directory that `docker context create rootless` makes.
        let id = "12b961af5feb3e9d39f93b2cefb9a1a944f18d02cca0cac2f04f5a982240605f";
        assert_eq!(directory("rootless"), id);
    }

    #[test]
    fn the_current_context_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(current(dir.path()), Ok(None));
        for (text, name) in [
            (
                r#"{"auths":{},"currentContext":"rootless"}"#,
                Some("rootless"),
            ),
            (r#"{"CURRENTCONTEXT":"rootless"} more"#, Some("rootless")),
            (r#"{"currentContext":""}"#, None),
            (r#"{"currentContext":null}"#, None),
            ("{}", None),
        ] {
            fs::write(config_file(dir.path()), text).unwrap();
            assert_eq!(current(dir.path()), Ok(name.map(str::to_owned)), "{text}");
        }
    }

    #[test]
    fn a_malformed_config_file_is_reported_without_its_text() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "",
            "s3cr3t",
            r#"{"auths":"s3cr3t""#,
            r#"["s3cr3t"]"#,
            r#"{"currentContext":["s3cr3t"]}"#,
        ] {
            fs::write(config_file(dir.path()), text).unwrap();
            let error = current(dir.path()).unwrap_err();
            assert!(error.contains("config.json: "), "{error}");
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }

    #[test]
    fn an_endpoint_is_read() {
        for (metadata, host, tls) in [
            (
                r#"{"Name":"x","Metadata":{"Description":"d"},"Endpoints":
                   {"docker":{"Host":"unix:///x.sock","SkipTLSVerify":false},"kubernetes":7}}"#,
                Some("unix:///x.sock"),
                TlsMode::Off,
            ),
            (
                r#"{"endpoints":{"docker":{"host":"tcp://db","SkipTLSVerify":true}}}"#,
                Some("tcp://db"),
                TlsMode::Unverified,
            ),
            (r#"{"Endpoints":{"docker":{}}}"#, None, TlsMode::Off),
            (
                r#"{"Endpoints":{"docker":{"Host":""}}}"#,
                None,
                TlsMode::Off,
            ),
        ] {
            let dir = store("x", metadata);
            let context = load(dir.path(), "x").unwrap();
            assert_eq!(context.host.as_deref(), host, "{metadata}");
            assert_eq!(context.tls, tls, "{metadata}");
        }
    }

    #[test]
    fn a_directory_of_tls_files_enables_tls() {
        let dir = store("x", r#"{"endpoints":{"docker":{"HOST":"tcp://db"}}}"#);
        let files = dir
            .path()
            .join("contexts/tls")
            .join(directory("x"))
            .join("docker");
        fs::create_dir_all(&files).unwrap();
        let context = load(dir.path(), "x").unwrap();
        assert_eq!(context.tls, TlsMode::Verified);
        assert_eq!(context.certificates, files);
    }

    #[test]
    fn an_unusable_context_is_an_error_with_its_file() {
        for (metadata, reason) in [
            ("", "malformed"),
            (
                r#"{"Endpoints":{"docker":{"Host":7}}}"#,
                "Host is not a string",
            ),
            ("{}", "no endpoint for docker"),
            (r#"{"Endpoints":{"docker":null}}"#, "no endpoint for docker"),
        ] {
            let dir = store("x", metadata);
            let error = load(dir.path(), "x").unwrap_err();
            assert!(error.contains("meta.json: "), "{error}");
            assert!(error.contains(reason), "{error}");
        }
        let dir = store("x", "{}");
        let error = load(dir.path(), "y").unwrap_err();
        assert!(error.starts_with("there is no such context: /"), "{error}");
    }
}
