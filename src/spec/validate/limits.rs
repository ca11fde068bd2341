//! Checks of resources, devices, privileges and the policies of a run.

use std::time::Duration;

use super::{Quoted, check_absolute_path, check_word};
use crate::spec::{Backstop, Gpus, InvalidSpec, Settings};

/// The minimum memory limit, in bytes. Docker refuses less.
const MIN_MEMORY_BYTES: u64 = 6 << 20;
/// The maximum duration in a policy, 100 years.
///
/// A longer limit is equivalent to no limit.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600 * 100);

impl Settings {
    pub(super) fn validate_resources(&self) -> Result<(), InvalidSpec> {
        self.validate_limits()?;
        self.validate_devices()?;
        self.validate_privileges()
    }

    fn validate_limits(&self) -> Result<(), InvalidSpec> {
        for (field, unit, min, value) in [
            ("memory", " bytes", MIN_MEMORY_BYTES, self.memory),
            ("pids_limit", "", 1, self.pids_limit),
            ("shm_size", " bytes", 1, self.shm_size),
        ] {
            if let Some(value) = value {
                if value < min {
                    refuse!(field, "{value}{unit}: the minimum is {min}");
                }
                if value > i64::MAX as u64 {
                    refuse!(field, "{value}{unit}: too large; leave it out for no limit");
                }
            }
        }
        if let Some(cpus) = self.cpus
            && !(0.01..=1_000_000.0).contains(&cpus)
        {
            refuse!(
                "cpus",
                "{cpus}: the range is 0.01 to 1000000; leave it out for no limit"
            );
        }
        for limit in &self.ulimits {
            check_word("ulimits", &limit.name)?;
            if limit.soft < -1 || limit.hard < -1 {
                let name = Quoted(&limit.name);
                refuse!("ulimits", "{name}: a limit is -1 (none), 0 or more");
            }
            if limit.hard != -1 && (limit.soft == -1 || limit.soft > limit.hard) {
                refuse!(
                    "ulimits",
                    "{}: the soft limit {} exceeds the hard limit {}",
                    Quoted(&limit.name),
                    limit.soft,
                    limit.hard
                );
            }
        }
        Ok(())
    }

    fn validate_devices(&self) -> Result<(), InvalidSpec> {
        for device in &self.devices {
            check_absolute_path("devices", "the path on the host", &device.host)?;
            check_absolute_path("devices", "the path in the container", &device.container)?;
            let valid = !device.permissions.is_empty()
                && device.permissions.chars().all(|c| "rwm".contains(c));
            if !valid {
                refuse!(
                    "devices",
                    "{}: permissions must be one or more of \"rwm\", not {}",
                    Quoted(&device.host),
                    Quoted(&device.permissions)
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
                    check_word("gpus", id)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn validate_privileges(&self) -> Result<(), InvalidSpec> {
        for (name, value) in &self.sysctls {
            check_word("sysctls", name)?;
            if value.contains('\0') {
                refuse!(
                    "sysctls",
                    "the value of {} contains a NUL byte",
                    Quoted(name)
                );
            }
        }
        for (field, values) in [
            ("cap_add", &self.cap_add),
            ("cap_drop", &self.cap_drop),
            ("security_opt", &self.security_opt),
        ] {
            if values.iter().any(|v| v.is_empty() || v.contains('\0')) {
                refuse!(field, "a value is empty or contains a NUL byte");
            }
        }
        Ok(())
    }

    pub(super) fn validate_health_check(&self) -> Result<(), InvalidSpec> {
        const FIELD: &str = "health_check";
        let Some(check) = &self.health_check else {
            return Ok(());
        };
        let Some(command) = &check.command else {
            return Ok(());
        };
        if command.first().is_none_or(|program| program.is_empty()) {
            refuse!(
                FIELD,
                "the command is empty; to switch a check off, use `HealthCheck::none`"
            );
        }
        if command.iter().any(|argument| argument.contains('\0')) {
            refuse!(FIELD, "an argument of the command contains a NUL byte");
        }
        if check.retries == 0 {
            refuse!(FIELD, "0 retries: the minimum is 1");
        }
        for (name, time) in [
            ("interval", check.interval),
            ("timeout", check.timeout),
            ("start period", check.start_period),
        ] {
            let is_unset = name == "start period" && time.is_zero();
            if !is_unset && !(Duration::from_millis(1)..=MAX_DURATION).contains(&time) {
                refuse!(
                    FIELD,
                    "a {name} of {time:?}: the range is 1 ms to 100 years"
                );
            }
        }
        Ok(())
    }

    pub(super) fn validate_policies(&self) -> Result<(), InvalidSpec> {
        if self.time_limit == Some(Duration::ZERO) {
            refuse!("time_limit", "it is zero; leave it out for no limit");
        }
        if let Some(limit) = self.time_limit
            && limit > MAX_DURATION
        {
            refuse!(
                "time_limit",
                "{limit:?} is over 100 years; leave it out for no limit"
            );
        }
        if let Some(limit) = self.silence_limit
            && !(Duration::from_secs(1)..=MAX_DURATION).contains(&limit)
        {
            refuse!(
                "silence_limit",
                "{limit:?}: the range is 1 s to 100 years; leave it out for no limit"
            );
        }
        let stall_timeout = self.pull_stall_timeout;
        if !(Duration::from_secs(1)..=MAX_DURATION).contains(&stall_timeout) {
            refuse!(
                "pull_stall_timeout",
                "{stall_timeout:?}: the range is 1 s to 100 years"
            );
        }
        if let Some(interval) = self.sample
            && !(Duration::from_millis(100)..=MAX_DURATION).contains(&interval)
        {
            refuse!("sample", "{interval:?}: the range is 100 ms to 100 years");
        }
        if self.stop_grace > MAX_DURATION {
            refuse!("stop_grace", "{:?} is over 100 years", self.stop_grace);
        }
        if self.output_limit.is_some_and(|limit| limit.bytes == 0) {
            refuse!("output_limit", "it is zero; leave it out for no limit");
        }
        if self.backstop == Backstop::None && self.detached {
            refuse!(
                "backstop",
                "a detached run needs the engine's log: without it, output after the end of this \
                 process is lost"
            );
        }
        Ok(())
    }
}
