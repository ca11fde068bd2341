//! What is refused before anything is made, each by the name of its field.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Component, Path};
use std::time::Duration;

use super::{Backstop, Gpus, Mount, RunSpec, Settings};
use crate::{Error, Result};

/// Docker refuses less than 6 MiB.
const LEAST_MEMORY: u64 = 6 << 20;
/// What a deadline can be told apart from 'never'.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600 * 100);

macro_rules! refuse {
    ($field:expr, $($reason:tt)*) => {
        return Err(Error::invalid($field, format!($($reason)*)))
    };
}

impl RunSpec {
    /// Checks all that can be checked without an engine.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSpec`], which names the first field that is wrong and says why.
    pub fn validate(&self) -> Result<()> {
        self.settings.validate()?;
        for (name, value) in self.environment() {
            // The value is a secret, and so is what stands in the place of a name that is none.
            if name.is_empty() {
                refuse!("env", "a variable has an empty name");
            }
            if name.contains('=') || name.contains('\0') {
                refuse!("env", "a variable's name has '=' or a NUL byte in it");
            }
            if value.contains('\0') {
                refuse!("env", "the value of {name:?} has a NUL byte in it");
            }
        }
        if self.patch.as_ref().is_some_and(|patch| !patch.is_object()) {
            refuse!("engine_patch", "a patch is a JSON object");
        }
        Ok(())
    }
}

impl Settings {
    fn validate(&self) -> Result<()> {
        self.validate_process()?;
        self.validate_mounts()?;
        self.validate_network()?;
        self.validate_limits()?;
        self.validate_policies()
    }

    fn validate_process(&self) -> Result<()> {
        if self.image.trim().is_empty() {
            refuse!(
                "image",
                "it is empty; name an image, such as \"busybox:1.36\""
            );
        }
        if self
            .image
            .chars()
            .any(|c| c.is_whitespace() || c.is_control())
        {
            refuse!(
                "image",
                "{:?} has a space or a control character in it",
                self.image
            );
        }
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
                    refuse!(field, "{argument:?} has a NUL byte in it");
                }
            }
        }
        if let Some(path) = &self.workdir {
            absolute("workdir", path)?;
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
        if let Some(name) = &self.hostname
            && (name.len() > 63
                || !name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'))
        {
            refuse!(
                "hostname",
                "{name:?} is not a host name: up to 63 letters, digits, '-' and '.'"
            );
        }
        for name in self.labels.keys() {
            if name.is_empty() || name.contains('\0') {
                refuse!("labels", "{name:?} is empty or has a NUL byte in it");
            }
            if name.starts_with("moat.") {
                refuse!("labels", "{name:?}: names under \"moat.\" are moat's own");
            }
        }
        Ok(())
    }

    fn validate_mounts(&self) -> Result<()> {
        let mut targets = HashSet::new();
        for mount in &self.mounts {
            let target = mount.target();
            absolute("mounts", target)?;
            if Path::new(target).components().eq([Component::RootDir]) {
                refuse!(
                    "mounts",
                    "nothing can be mounted over \"/\" of the container"
                );
            }
            let place: Vec<_> = Path::new(target).components().collect();
            if !targets.insert(place) {
                refuse!("mounts", "{target:?} is the target of two mounts");
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
                            "{name:?} is not a volume's name: two or more letters, digits, '_', \
                             '.' and '-'; to mount a folder of the host, use bind"
                        );
                    }
                }
                Mount::Tmpfs { size, .. } => {
                    if *size == Some(0) {
                        refuse!("mounts", "the tmpfs at {target:?} has a size of 0 bytes");
                    }
                }
            }
        }
        Ok(())
    }

    fn validate_network(&self) -> Result<()> {
        let mode = self.network.as_deref().unwrap_or_default();
        let shared = mode == "host" || mode.starts_with("container:");
        if let Some(alias) = self.network_aliases.iter().find(|alias| alias.is_empty()) {
            refuse!("network_aliases", "{alias:?} is empty");
        }
        if !self.network_aliases.is_empty()
            && (shared || matches!(mode, "" | "default" | "bridge" | "none"))
        {
            refuse!(
                "network_aliases",
                "aliases need a network made by a user, not {:?}",
                if mode.is_empty() { "the default" } else { mode }
            );
        }
        if !self.ports.is_empty() && (shared || mode == "none") {
            refuse!("ports", "no port can be published with network {mode:?}");
        }
        for port in &self.ports {
            if port.container == 0 {
                refuse!("ports", "the container's port is 0");
            }
            if let Some(address) = &port.address
                && address.parse::<IpAddr>().is_err()
            {
                refuse!("ports", "{address:?} is not an IP address");
            }
        }
        for (name, address) in &self.extra_hosts {
            word("extra_hosts", name)?;
            if address != "host-gateway" && address.parse::<IpAddr>().is_err() {
                refuse!(
                    "extra_hosts",
                    "{address:?}, for {name:?}, is neither an IP address nor \"host-gateway\""
                );
            }
        }
        for address in &self.dns {
            if address.parse::<IpAddr>().is_err() {
                refuse!("dns", "{address:?} is not an IP address");
            }
        }
        Ok(())
    }

    fn validate_limits(&self) -> Result<()> {
        if let Some(memory) = self.memory
            && !(LEAST_MEMORY..=i64::MAX as u64).contains(&memory)
        {
            refuse!("memory", "{memory} bytes: the least is {LEAST_MEMORY}");
        }
        if let Some(cpus) = self.cpus
            && !(0.01..=1_000_000.0).contains(&cpus)
        {
            refuse!("cpus", "{cpus}: a limit is at least 0.01 CPUs");
        }
        if let Some(limit) = self.pids_limit
            && !(1..=i64::MAX as u64).contains(&limit)
        {
            refuse!("pids_limit", "{limit}: the least is 1");
        }
        if let Some(size) = self.shm_size
            && !(1..=i64::MAX as u64).contains(&size)
        {
            refuse!("shm_size", "{size} bytes: the least is 1");
        }
        for limit in &self.ulimits {
            word("ulimits", &limit.name)?;
            if limit.soft < -1 || limit.hard < -1 {
                refuse!("ulimits", "{}: a limit is -1 (none), 0 or more", limit.name);
            }
            if limit.hard != -1 && (limit.soft == -1 || limit.soft > limit.hard) {
                refuse!(
                    "ulimits",
                    "{}: the soft limit {} is over the hard limit {}",
                    limit.name,
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
                    "{:?}: permissions are some of \"rwm\", not {:?}",
                    device.host,
                    device.permissions
                );
            }
        }
        match &self.gpus {
            Some(Gpus::Count(0)) => refuse!("gpus", "a count of 0; leave it out for none"),
            Some(Gpus::Ids(ids)) if ids.is_empty() || ids.iter().any(String::is_empty) => {
                refuse!("gpus", "no id, or an empty one")
            }
            _ => {}
        }
        for (name, value) in &self.sysctls {
            word("sysctls", name)?;
            if value.contains('\0') {
                refuse!("sysctls", "the value of {name:?} has a NUL byte in it");
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

    fn validate_policies(&self) -> Result<()> {
        if self.time_limit == Some(Duration::ZERO) {
            refuse!("time_limit", "it is zero; leave it out for no limit");
        }
        if self.time_limit.is_some_and(|limit| limit > LONGEST) {
            refuse!(
                "time_limit",
                "it is over 100 years; leave it out for no limit"
            );
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

fn absolute(field: &str, path: &str) -> Result<()> {
    if path.contains('\0') {
        refuse!(field, "{path:?} has a NUL byte in it");
    }
    if !path.starts_with('/') {
        refuse!(field, "{path:?} is not an absolute path");
    }
    Ok(())
}

fn word(field: &str, value: &str) -> Result<()> {
    if value.is_empty() {
        refuse!(field, "it is empty; leave it out for the default");
    }
    if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        refuse!(field, "{value:?} has a space or a control character in it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, LimitAction, Port, RunSpec};

    fn refused(spec: RunSpec) -> (String, String) {
        match spec.validate() {
            Err(Error::InvalidSpec { field, reason }) => (field, reason),
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
            .credentials(crate::Credentials::new("me", "s3cr3t"))
            .engine_patch(serde_json::json!({"Env": ["X=s3cr3t"]}));
        let (_, reason) = refused(spec.clone());
        let record = crate::RunRecord::new(
            crate::RunId::generate(),
            crate::RootId::generate(),
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
