//! What is refused before anything is made, each by the name of its field.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Component, Path};
use std::time::Duration;

use serde_json::Value;

use super::{Backstop, Gpus, InvalidSpec, Mount, RunSpec, Settings, Stdin};

/// Docker refuses less than 6 MiB.
const LEAST_MEMORY: u64 = 6 << 20;
/// What the record of a run may have, as JSON, in bytes. It is one line of the audit, and that may
/// have 16 MiB.
const LARGEST: usize = 4 << 20;
/// How deep a patch may be nested. No engine has a setting that is a tenth as deep.
const DEEPEST: usize = 100;
/// What a deadline can be told apart from 'never'.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600 * 100);

macro_rules! refuse {
    ($field:expr, $($reason:tt)*) => {
        return Err(InvalidSpec::new($field, format!($($reason)*)))
    };
}

impl RunSpec {
    /// Checks all that can be checked without an engine.
    ///
    /// # Errors
    ///
    /// [`InvalidSpec`], which names the first field that is wrong and says why.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        self.settings.validate()?;
        check_env(self.environment())?;
        if let Some(patch) = &self.patch {
            if !patch.is_object() {
                refuse!("engine_patch", "a patch is a JSON object");
            }
            if is_deeper(patch, DEEPEST) {
                refuse!("engine_patch", "it is nested more than {DEEPEST} deep");
            }
        }
        self.validate_size()
    }

    fn validate_size(&self) -> Result<(), InvalidSpec> {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(&self.settings) else {
            return Ok(());
        };
        fields.insert("env".into(), self.env_names().collect());
        let size = |value: &Value| value.to_string().len();
        let sizes = || fields.iter().map(|(field, value)| (size(value), field));
        if sizes().map(|(size, _)| size).sum::<usize>() > LARGEST
            && let Some((size, field)) = sizes().max()
        {
            refuse!(
                field,
                "{size} bytes of it are to be recorded, and a run's record has at most {LARGEST}"
            );
        }
        Ok(())
    }
}

/// Checks variables of an environment.
pub(super) fn check_env<'a>(
    env: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), InvalidSpec> {
    for (name, value) in env {
        // The value is a secret, and so is what stands in the place of a name that is none.
        if name.is_empty() {
            refuse!("env", "a variable has an empty name");
        }
        if name.contains('=') || name.contains('\0') {
            refuse!("env", "a variable's name has '=' or a NUL byte in it");
        }
        if value.contains('\0') {
            refuse!("env", "the value of {} has a NUL byte in it", Shown(name));
        }
    }
    Ok(())
}

/// A value in an error: quoted, and no longer than a line.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 100;
        match self.0.char_indices().nth(MOST) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}... ({} bytes)", &self.0[..end], self.0.len()),
        }
    }
}

/// Whether `value` is nested more than `levels` deep.
fn is_deeper(value: &Value, levels: usize) -> bool {
    let deeper = |value: &Value| levels == 0 || is_deeper(value, levels - 1);
    match value {
        Value::Array(values) => values.iter().any(deeper),
        Value::Object(values) => values.values().any(deeper),
        _ => false,
    }
}

impl Settings {
    pub(super) fn validate(&self) -> Result<(), InvalidSpec> {
        self.validate_process()?;
        self.validate_mounts()?;
        self.validate_network()?;
        self.validate_limits()?;
        self.validate_policies()
    }

    fn validate_process(&self) -> Result<(), InvalidSpec> {
        let has_command = !self.cmd.is_empty() || self.entrypoint.iter().flatten().count() > 0;
        if self.image.is_empty() && !has_command {
            refuse!(
                "image",
                "it is empty; name an image, such as \"busybox:1.36\""
            );
        }
        image(&self.image)?;
        let entrypoint = self.entrypoint.iter().flatten();
        for (field, arguments) in [
            (
                "cmd",
                &mut self.cmd.iter() as &mut dyn Iterator<Item = &String>,
            ),
            ("entrypoint", &mut { entrypoint }),
        ] {
            for argument in arguments {
                if argument.contains('\0') {
                    refuse!(field, "{} has a NUL byte in it", Shown(argument));
                }
            }
        }
        if let Some(path) = &self.workdir {
            absolute("workdir", path)?;
        }
        if self.tty && self.stdin == Stdin::Pipe {
            refuse!(
                "stdin",
                "the input of a terminal has no end; use Stdin::Open with tty"
            );
        }
        if self.window.is_some() && !self.tty {
            refuse!("window", "without tty there is no terminal to have a size");
        }
        for (field, value) in [
            ("user", &self.user),
            ("hostname", &self.hostname),
            ("network", &self.network),
            ("platform", &self.platform),
            ("oci_runtime", &self.oci_runtime),
            ("stop_signal", &self.stop_signal),
        ] {
            if let Some(value) = value {
                word(field, value)?;
            }
        }
        if let Some(user) = &self.user
            && (user.split(':').count() > 2 || user.split(':').any(str::is_empty))
        {
            refuse!("user", "{} is neither a user nor user:group", Shown(user));
        }
        if let Some(name) = &self.hostname
            && (name.len() > 63 || !name.split('.').all(is_host_label))
        {
            refuse!(
                "hostname",
                "{} is not a host name: up to 63 letters, digits, '-' and '.', and each part \
                 between dots begins and ends with a letter or a digit",
                Shown(name)
            );
        }
        if let Some(platform) = &self.platform
            && (platform.split('/').count() > 3 || !platform.split('/').all(is_platform_part))
        {
            refuse!(
                "platform",
                "{} is not one: os[/arch[/variant]], such as \"linux/arm64\"",
                Shown(platform)
            );
        }
        if let Some(signal) = &self.stop_signal
            && !is_signal(signal)
        {
            refuse!(
                "stop_signal",
                "{} is not a signal: a name, such as \"SIGINT\", or a number from 1 to 64",
                Shown(signal)
            );
        }
        for (name, value) in &self.labels {
            if name.is_empty() {
                refuse!("labels", "a label has an empty name");
            }
            if name.contains('\0') || value.contains('\0') {
                refuse!(
                    "labels",
                    "{} has a NUL byte in its name or value",
                    Shown(name)
                );
            }
            if name.starts_with("moat.") {
                let name = Shown(name);
                refuse!("labels", "{name}: names under \"moat.\" are moat's own");
            }
        }
        Ok(())
    }

    fn validate_mounts(&self) -> Result<(), InvalidSpec> {
        let mut targets = HashSet::new();
        for mount in &self.mounts {
            let target = mount.target();
            absolute("mounts", target)?;
            let place: Vec<_> = Path::new(target).components().collect();
            if place.contains(&Component::ParentDir) {
                refuse!(
                    "mounts",
                    "{} has \"..\" in it; name the place that it leads to",
                    Shown(target)
                );
            }
            if place == [Component::RootDir] {
                refuse!(
                    "mounts",
                    "nothing can be mounted over \"/\" of the container"
                );
            }
            if !targets.insert(place) {
                refuse!("mounts", "{} is the target of two mounts", Shown(target));
            }
            match mount {
                Mount::Bind { source, .. } => {
                    let Some(source) = source.to_str() else {
                        refuse!("mounts", "{} is not UTF-8", source.display());
                    };
                    absolute("mounts", source)?;
                }
                Mount::Volume { name, .. } => {
                    let valid = name.len() > 1
                        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
                        && name
                            .chars()
                            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
                    if !valid {
                        refuse!(
                            "mounts",
                            "{} is not a volume's name: two or more letters, digits, '_', '.' \
                             and '-'; to mount a folder of the host, use bind",
                            Shown(name)
                        );
                    }
                }
                Mount::Tmpfs { size, .. } => {
                    if *size == Some(0) {
                        let target = Shown(target);
                        refuse!("mounts", "the tmpfs at {target} has a size of 0 bytes");
                    }
                }
            }
        }
        Ok(())
    }

    fn validate_network(&self) -> Result<(), InvalidSpec> {
        let mode = self.network.as_deref().unwrap_or_default();
        let shared = mode == "host" || mode.starts_with("container:");
        for alias in &self.network_aliases {
            word("network_aliases", alias)?;
        }
        if !self.network_aliases.is_empty()
            && (shared || matches!(mode, "" | "default" | "bridge" | "none"))
        {
            refuse!(
                "network_aliases",
                "aliases need a network made by a user, not {}",
                Shown(if mode.is_empty() { "the default" } else { mode })
            );
        }
        if !self.ports.is_empty() && (shared || mode == "none") {
            let mode = Shown(mode);
            refuse!("ports", "no port can be published with network {mode}");
        }
        let mut taken = HashSet::new();
        for port in &self.ports {
            if let Some(host) = port.host.filter(|host| *host != 0)
                && !taken.insert((host, port.protocol, &port.address))
            {
                refuse!("ports", "port {host} of the host is given twice");
            }
            if port.container == 0 {
                refuse!("ports", "the container's port is 0");
            }
            if let Some(address) = &port.address
                && address.parse::<IpAddr>().is_err()
            {
                refuse!("ports", "{} is not an IP address", Shown(address));
            }
        }
        for (name, address) in &self.extra_hosts {
            word("extra_hosts", name)?;
            if name.contains(':') {
                refuse!("extra_hosts", "{} has ':' in it", Shown(name));
            }
            if address != "host-gateway" && address.parse::<IpAddr>().is_err() {
                refuse!(
                    "extra_hosts",
                    "{}, for {}, is neither an IP address nor \"host-gateway\"",
                    Shown(address),
                    Shown(name)
                );
            }
        }
        for address in &self.dns {
            if address.parse::<IpAddr>().is_err() {
                refuse!("dns", "{} is not an IP address", Shown(address));
            }
        }
        Ok(())
    }

    fn validate_limits(&self) -> Result<(), InvalidSpec> {
        for (field, unit, least, value) in [
            ("memory", " bytes", LEAST_MEMORY, self.memory),
            ("pids_limit", "", 1, self.pids_limit),
            ("shm_size", " bytes", 1, self.shm_size),
        ] {
            if let Some(value) = value {
                if value < least {
                    refuse!(field, "{value}{unit}: the least is {least}");
                }
                if value > i64::MAX as u64 {
                    refuse!(field, "{value}{unit}; leave it out for no limit");
                }
            }
        }
        if let Some(cpus) = self.cpus
            && !(0.01..=1_000_000.0).contains(&cpus)
        {
            refuse!(
                "cpus",
                "{cpus}: it is from 0.01 to 1000000; leave it out for no limit"
            );
        }
        for limit in &self.ulimits {
            word("ulimits", &limit.name)?;
            if limit.soft < -1 || limit.hard < -1 {
                let name = Shown(&limit.name);
                refuse!("ulimits", "{name}: a limit is -1 (none), 0 or more");
            }
            if limit.hard != -1 && (limit.soft == -1 || limit.soft > limit.hard) {
                refuse!(
                    "ulimits",
                    "{}: the soft limit {} is over the hard limit {}",
                    Shown(&limit.name),
                    limit.soft,
                    limit.hard
                );
            }
        }
        for device in &self.devices {
            absolute("devices", &device.host)?;
            absolute("devices", &device.container)?;
            let valid = !device.permissions.is_empty()
                && device.permissions.chars().all(|c| "rwm".contains(c));
            if !valid {
                refuse!(
                    "devices",
                    "{}: permissions are some of \"rwm\", not {}",
                    Shown(&device.host),
                    Shown(&device.permissions)
                );
            }
        }
        match &self.gpus {
            Some(Gpus::Count(0)) => refuse!("gpus", "a count of 0; leave it out for none"),
            Some(Gpus::Ids(ids)) if ids.is_empty() => {
                refuse!("gpus", "no id; leave it out for none")
            }
            Some(Gpus::Ids(ids)) => {
                for id in ids {
                    word("gpus", id)?;
                }
            }
            _ => {}
        }
        for (name, value) in &self.sysctls {
            word("sysctls", name)?;
            if value.contains('\0') {
                refuse!(
                    "sysctls",
                    "the value of {} has a NUL byte in it",
                    Shown(name)
                );
            }
        }
        for (field, values) in [
            ("cap_add", &self.cap_add),
            ("cap_drop", &self.cap_drop),
            ("security_opt", &self.security_opt),
        ] {
            if values.iter().any(|v| v.is_empty() || v.contains('\0')) {
                refuse!(field, "a value is empty or has a NUL byte in it");
            }
        }
        Ok(())
    }

    fn validate_policies(&self) -> Result<(), InvalidSpec> {
        if self.time_limit == Some(Duration::ZERO) {
            refuse!("time_limit", "it is zero; leave it out for no limit");
        }
        if self.time_limit.is_some_and(|limit| limit > LONGEST) {
            refuse!(
                "time_limit",
                "it is over 100 years; leave it out for no limit"
            );
        }
        if self
            .silence_limit
            .is_some_and(|limit| limit < Duration::from_secs(1) || limit > LONGEST)
        {
            refuse!(
                "silence_limit",
                "it is under a second or over 100 years; leave it out for no limit"
            );
        }
        if self
            .sample
            .is_some_and(|interval| interval < Duration::from_millis(100) || interval > LONGEST)
        {
            refuse!("sample", "it is under 100 ms or over 100 years");
        }
        if self.stop_grace > LONGEST {
            refuse!("stop_grace", "it is over 100 years");
        }
        if self.output_limit.is_some_and(|limit| limit.bytes == 0) {
            refuse!("output_limit", "it is zero; leave it out for no limit");
        }
        if self.backstop == Backstop::None && self.detached {
            refuse!(
                "backstop",
                "a detached run needs the engine's log behind it: without it, nothing that is \
                 printed after this process ends could be captured"
            );
        }
        Ok(())
    }
}

fn image(name: &str) -> Result<(), InvalidSpec> {
    if name.is_empty() {
        // No image: which a runtime that needs one refuses.
        return Ok(());
    }
    if let Some(bad) = name
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !"._-/:@+[]".contains(*c))
    {
        refuse!(
            "image",
            "{} has {bad:?} in it; images are named as \"registry:5000/team/name:tag\" or \
             \"name@sha256:...\" are",
            Shown(name)
        );
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        refuse!("image", "a part between slashes of {} is none", Shown(name));
    }
    Ok(())
}

fn is_host_label(label: &str) -> bool {
    label
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && label.starts_with(|c: char| c.is_ascii_alphanumeric())
        && label.ends_with(|c: char| c.is_ascii_alphanumeric())
}

fn is_platform_part(part: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    !part.is_empty() && part.chars().all(ok)
}

/// Whether it can be a signal: which names there are is the engine's matter.
fn is_signal(signal: &str) -> bool {
    if signal.bytes().all(|b| b.is_ascii_digit()) {
        return signal
            .parse()
            .is_ok_and(|number: u64| (1..=64).contains(&number));
    }
    let ok = |c: char| c.is_ascii_alphanumeric() || "+-".contains(c);
    signal.starts_with(|c: char| c.is_ascii_alphabetic()) && signal.chars().all(ok)
}

fn absolute(field: &str, path: &str) -> Result<(), InvalidSpec> {
    if path.contains('\0') {
        refuse!(field, "{} has a NUL byte in it", Shown(path));
    }
    if !path.starts_with('/') {
        refuse!(field, "{} is not an absolute path", Shown(path));
    }
    Ok(())
}

fn word(field: &str, value: &str) -> Result<(), InvalidSpec> {
    if value.is_empty() {
        refuse!(field, "it is empty; leave it out for the default");
    }
    if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let value = Shown(value);
        refuse!(field, "{value} has a space or a control character in it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Device, LimitAction, Port, RunSpec};

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
    fn each_bad_value_is_refused_by_the_name_of_its_field() {
        let device = |permissions: &str| {
            let mut spec = spec().device("/dev/null");
            spec.settings.devices = vec![Device {
                host: "/dev/null".into(),
                container: "/dev/null".into(),
                permissions: permissions.into(),
            }];
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
            ("hostname", spec().hostname("a_b")),
            ("mounts", spec().bind("relative", "/x")),
            ("mounts", spec().bind("/x", "relative")),
            ("mounts", spec().bind("/x", "/")),
            ("mounts", spec().volume("../x", "/x")),
            ("mounts", spec().volume("vol", "/x").tmpfs("/x/", None)),
            ("mounts", spec().tmpfs("/x", Some(0))),
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
    fn what_users_expect_is_accepted() {
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
            .validate()
            .unwrap();
    }

    #[test]
    fn no_secret_is_in_debug_output_an_error_or_what_is_persisted() {
        let spec = spec()
            .env("TOKEN", "s3cr3t")
            .env("A=s3cr3t", "s3cr3t")
            .credentials(crate::spec::Credentials::new("me", "s3cr3t"))
            .engine_patch(serde_json::json!({"Env": ["X=s3cr3t"]}));
        let (_, reason) = refused(spec.clone());
        let record = crate::spec::RunRecord::new(
            crate::spec::RunId::generate(),
            crate::spec::RootId::generate(),
            "docker",
            &RunSpec {
                env: spec.env[..1].to_vec(),
                ..spec.clone()
            },
        );
        let debug = format!("{spec:?}");
        let persisted = serde_json::to_string(&record).unwrap();
        for text in [debug, reason, persisted] {
            assert!(!text.contains("s3cr3t"), "{text}");
        }
    }
}
