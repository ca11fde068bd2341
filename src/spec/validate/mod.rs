//! Checks that refuse an invalid spec before anything is created, and name the field.

/// Returns an `InvalidSpec` for a field, with a formatted reason.
macro_rules! refuse {
    ($field:expr, $($reason:tt)*) => {
        return Err($crate::spec::InvalidSpec::new($field, format!($($reason)*)))
    };
}

mod invalid;
mod limits;
mod mounts;
mod network;
mod process;
mod secret_files;

use std::fmt;

use serde_json::Value;

pub use self::invalid::InvalidSpec;
pub(super) use self::process::{check_env, check_labels};
use super::{RunSpec, Settings};

/// The maximum size of a run's record as JSON, in bytes.
///
/// The record is one line of the audit, and a line has at most 16 MiB.
const MAX_RECORD_BYTES: usize = 4 << 20;
/// The maximum nesting of a patch.
///
/// No engine has settings with a tenth of that depth.
const MAX_PATCH_DEPTH: usize = 100;

impl RunSpec {
    /// Checks the spec as far as this is possible without an engine.
    ///
    /// # Errors
    ///
    /// [`InvalidSpec`], which names the first invalid field and the reason.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        self.settings.validate()?;
        if let Some(error) = &self.env_error {
            return Err(error.clone());
        }
        check_env(self.environment())?;
        self.validate_secret_files()?;
        self.masks.check()?;
        if let Some(patch) = &self.patch {
            if !patch.is_object() {
                refuse!("engine_patch", "a patch must be a JSON object");
            }
            if is_deeper(patch, MAX_PATCH_DEPTH) {
                refuse!(
                    "engine_patch",
                    "it is nested more than {MAX_PATCH_DEPTH} levels deep"
                );
            }
        }
        self.validate_size()
    }

    fn validate_size(&self) -> Result<(), InvalidSpec> {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(&self.settings) else {
            return Ok(());
        };
        fields.insert("env".into(), self.env_names().collect());
        fields.insert("secret_files".into(), self.secret_file_paths().collect());
        let size = |value: &Value| value.to_string().len();
        let sizes = || fields.iter().map(|(field, value)| (size(value), field));
        if sizes().map(|(size, _)| size).sum::<usize>() > MAX_RECORD_BYTES
            && let Some((size, field)) = sizes().max()
        {
            refuse!(
                field,
                "it takes {size} bytes of the run's record, which may have at most {MAX_RECORD_BYTES}"
            );
        }
        Ok(())
    }
}

impl Settings {
    pub(super) fn validate(&self) -> Result<(), InvalidSpec> {
        self.validate_process()?;
        self.validate_mounts()?;
        self.validate_network()?;
        self.validate_resources()?;
        self.validate_health_check()?;
        self.validate_policies()
    }
}

/// Returns true if `value` is nested more than `levels` deep.
fn is_deeper(value: &Value, levels: usize) -> bool {
    let deeper = |value: &Value| levels == 0 || is_deeper(value, levels - 1);
    match value {
        Value::Array(values) => values.iter().any(deeper),
        Value::Object(values) => values.values().any(deeper),
        _ => false,
    }
}

/// A value in an error message: quoted, and truncated to 100 characters.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX_CHARS: usize = 100;
        match self.0.char_indices().nth(MAX_CHARS) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}... ({} bytes)", &self.0[..end], self.0.len()),
        }
    }
}

/// Checks a path. `object` names its place in the field: `the target`.
fn check_absolute_path(field: &str, object: &str, path: &str) -> Result<(), InvalidSpec> {
    if path.contains('\0') {
        refuse!(field, "{object} {} contains a NUL byte", Quoted(path));
    }
    if !path.starts_with('/') {
        refuse!(field, "{object} {} is not an absolute path", Quoted(path));
    }
    Ok(())
}

fn check_word(field: &str, value: &str) -> Result<(), InvalidSpec> {
    if value.is_empty() {
        refuse!(field, "it is empty; leave it out for the default");
    }
    if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let value = Quoted(value);
        refuse!(field, "{value} contains a space or a control character");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spec::{
        Backstop, Credentials, Device, Gpus, LimitAction, Port, RootId, RunId, RunRecord,
    };

    fn refused(spec: RunSpec) -> (String, String) {
        match spec.validate() {
            Err(InvalidSpec { field, reason }) => (field, reason),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    fn spec() -> RunSpec {
        RunSpec::new("busybox")
    }

    #[test]
    fn an_invalid_value_names_its_field() {
        let device = |permissions: &str| {
            let mut spec = spec().device("/dev/null");
            spec.settings.devices = vec![Device::new("/dev/null", "/dev/null", permissions)];
            spec
        };
        for (field, bad) in [
            ("image", RunSpec::new("")),
            ("image", RunSpec::new("a b")),
            ("cmd", spec().cmd(["a\0b"])),
            ("entrypoint", spec().entrypoint(["a\0b"])),
            ("env", spec().env("", "x")),
            ("env", spec().env("A=B", "x")),
            ("env", spec().env("A", "x\0")),
            ("workdir", spec().workdir("relative")),
            ("user", spec().user("")),
            ("hostname", spec().hostname("a b")),
            ("mounts", spec().bind("relative", "/x")),
            ("mounts", spec().bind("/x", "relative")),
            ("mounts", spec().bind("/x", "/")),
            ("mounts", spec().volume("../x", "/x")),
            ("mounts", spec().volume("vol", "/x").tmpfs("/x/", None)),
            ("mounts", spec().tmpfs("/x", Some(0))),
            ("secret_files", spec().secret_file("token", "x")),
            ("network", spec().network("a b")),
            ("network_aliases", spec().network_alias("db")),
            ("ports", spec().network("host").port(Port::tcp(80))),
            ("ports", spec().port(Port::tcp(0))),
            ("ports", spec().port(Port::tcp(80).address("localhost"))),
            ("extra_hosts", spec().extra_host("db", "nowhere")),
            ("dns", spec().dns("nowhere")),
            ("memory", spec().memory(1)),
            ("cpus", spec().cpus(f64::NAN)),
            ("cpus", spec().cpus(-1.0)),
            ("pids_limit", spec().pids_limit(0)),
            ("ulimits", spec().ulimit("nofile", 10, 5)),
            ("ulimits", spec().ulimit("", 1, 5)),
            ("shm_size", spec().shm_size(0)),
            ("devices", spec().device("null")),
            ("devices", device("x")),
            ("gpus", spec().gpus(Gpus::Count(0))),
            ("sysctls", spec().sysctl("", "1")),
            ("cap_add", spec().cap_add("")),
            ("cap_drop", spec().cap_drop("")),
            ("security_opt", spec().security_opt("")),
            ("platform", spec().platform("")),
            ("oci_runtime", spec().oci_runtime("a b")),
            ("labels", spec().label("moat.run", "x")),
            ("labels", spec().label("", "x")),
            ("stop_signal", spec().stop_signal("")),
            ("time_limit", spec().time_limit(Duration::ZERO)),
            ("time_limit", spec().time_limit(Duration::MAX)),
            (
                "silence_limit",
                spec().silence_limit(Duration::from_millis(999)),
            ),
            ("silence_limit", spec().silence_limit(Duration::MAX)),
            (
                "pull_stall_timeout",
                spec().pull_stall_timeout(Duration::from_millis(999)),
            ),
            ("sample", spec().sample(Duration::from_millis(99))),
            ("sample", spec().sample(Duration::MAX)),
            ("stop_grace", spec().stop_grace(Duration::MAX)),
            ("output_limit", spec().output_limit(0, LimitAction::Stop)),
            ("engine_patch", spec().engine_patch(serde_json::json!([1]))),
            ("backstop", spec().backstop(Backstop::None).detached(true)),
        ] {
            let (named, reason) = refused(bad);
            assert_eq!(named, field, "{reason}");
        }
    }

    #[test]
    fn a_reason_names_the_wrong_value() {
        for (bad, expected) in [
            (spec().bind("here", "/x"), "the source \"here\" is not"),
            (spec().bind("/x", "here"), "the target \"here\" is not"),
            (spec().env("A=B", "x"), "after \"A\""),
            (
                spec().silence_limit(Duration::from_millis(999)),
                "999ms: the range is 1 s",
            ),
            (RunSpec::new(""), "the image and the command are empty"),
        ] {
            let (_, reason) = refused(bad);
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn common_settings_are_accepted() {
        spec()
            .cmd(["sh", "-c", "echo"])
            .env("EMPTY", "")
            .bind("/tmp", "/a")
            .volume("cache", "/b")
            .tmpfs("/c", Some(1 << 20))
            .network("mine")
            .network_alias("db")
            .port(Port::tcp(80).host(8080).address("127.0.0.1"))
            .extra_host("host", "host-gateway")
            .ulimit("core", -1, -1)
            .user("1000:1000")
            .hostname("a_b")
            .validate()
            .unwrap();
    }

    #[test]
    fn debug_errors_and_records_hold_no_secret() {
        let spec = spec()
            .env("TOKEN", "s3cr3t")
            .env("A=s3cr3t", "s3cr3t")
            .secret_file("/run/secrets/token", "file-s3cr3t")
            .credentials(Credentials::new("me", "s3cr3t"))
            .engine_patch(serde_json::json!({"Env": ["X=s3cr3t"]}));
        let echoed = spec.secrets().redact("cannot write \"file-s3cr3t\"");
        assert_eq!(echoed, "cannot write \"***\"");
        let (_, reason) = refused(spec.clone());
        let mut recorded = spec.clone();
        recorded.env.truncate(1);
        let record = RunRecord::new(RunId::generate(), RootId::generate(), "docker", &recorded);
        let debug = format!("{spec:?}");
        let persisted = serde_json::to_string(&record).unwrap();
        for text in [debug, reason, persisted] {
            assert!(!text.contains("s3cr3t"), "{text}");
        }
    }
}
