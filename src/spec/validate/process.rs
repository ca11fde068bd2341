//! Checks of the image, the command, the environment and the labels.

use std::collections::BTreeMap;

use super::{Quoted, check_absolute_path, check_word};
use crate::spec::{InvalidSpec, Settings, Stdin};

/// The maximum length of a host name. Linux refuses a longer one.
const MAX_HOSTNAME_BYTES: usize = 64;

/// Checks the variables of an environment.
pub(in crate::spec) fn check_env<'a>(
    env: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), InvalidSpec> {
    for (name, value) in env {
        if name.is_empty() {
            refuse!("env", "a variable has an empty name");
        }
        // The value is a secret, as may be the text after a stray '=' or NUL byte in the name.
        if let Some((start, _)) = name.split_once(['=', '\0']) {
            refuse!(
                "env",
                "the name of a variable contains '=' or a NUL byte, after {}; give the name and \
                 the value separately",
                Quoted(start)
            );
        }
        if value.contains('\0') {
            refuse!("env", "the value of {} contains a NUL byte", Quoted(name));
        }
    }
    Ok(())
}

impl Settings {
    pub(super) fn validate_process(&self) -> Result<(), InvalidSpec> {
        self.validate_command()?;
        self.validate_terminal()?;
        self.validate_identity()?;
        check_labels(&self.labels)
    }

    fn validate_command(&self) -> Result<(), InvalidSpec> {
        let entrypoint = || self.entrypoint.iter().flatten();
        if self.image.is_empty() && self.cmd.is_empty() && entrypoint().count() == 0 {
            refuse!(
                "image",
                "the image and the command are empty; name an image, such as \"busybox:1.36\", or \
                 give the command of a local process"
            );
        }
        check_image(&self.image)?;
        let cmd = self.cmd.iter().map(|argument| ("cmd", argument));
        let entrypoint = entrypoint().map(|argument| ("entrypoint", argument));
        for (field, argument) in cmd.chain(entrypoint) {
            if argument.contains('\0') {
                refuse!(field, "{} contains a NUL byte", Quoted(argument));
            }
        }
        if let Some(path) = &self.workdir {
            check_absolute_path("workdir", "the path", path)?;
        }
        Ok(())
    }

    fn validate_terminal(&self) -> Result<(), InvalidSpec> {
        if self.tty && self.stdin == Stdin::Pipe {
            refuse!(
                "stdin",
                "the input of a terminal has no end; use Stdin::Open with tty"
            );
        }
        if self.window.is_some() && !self.tty {
            refuse!("window", "a window size needs a terminal; set tty");
        }
        Ok(())
    }

    fn validate_identity(&self) -> Result<(), InvalidSpec> {
        for (field, value) in [
            ("user", &self.user),
            ("hostname", &self.hostname),
            ("network", &self.network),
            ("platform", &self.platform),
            ("oci_runtime", &self.oci_runtime),
            ("stop_signal", &self.stop_signal),
        ] {
            if let Some(value) = value {
                check_word(field, value)?;
            }
        }
        if let Some(user) = &self.user
            && (user.split(':').count() > 2 || user.split(':').any(str::is_empty))
        {
            refuse!("user", "{} is neither a user nor user:group", Quoted(user));
        }
        if let Some(name) = &self.hostname
            && name.len() > MAX_HOSTNAME_BYTES
        {
            refuse!(
                "hostname",
                "{} has {} bytes; the maximum of Linux is {MAX_HOSTNAME_BYTES}",
                Quoted(name),
                name.len()
            );
        }
        if let Some(platform) = &self.platform
            && (platform.split('/').count() > 3 || !platform.split('/').all(is_platform_part))
        {
            refuse!(
                "platform",
                "{} is not os[/arch[/variant]], such as \"linux/arm64\"",
                Quoted(platform)
            );
        }
        if let Some(signal) = &self.stop_signal
            && !is_signal(signal)
        {
            refuse!(
                "stop_signal",
                "{} is not a signal: a name, such as \"SIGINT\", or a number from 1 to 64",
                Quoted(signal)
            );
        }
        Ok(())
    }
}

pub(in crate::spec) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), InvalidSpec> {
    for (name, value) in labels {
        if name.is_empty() {
            refuse!("labels", "a label has an empty name");
        }
        if name.contains('\0') || value.contains('\0') {
            refuse!(
                "labels",
                "{} contains a NUL byte in its name or value",
                Quoted(name)
            );
        }
        if name.starts_with("moat.") {
            let name = Quoted(name);
            refuse!("labels", "{name}: names under \"moat.\" are reserved");
        }
    }
    Ok(())
}

fn check_image(name: &str) -> Result<(), InvalidSpec> {
    if name.is_empty() {
        // A runtime that needs an image refuses this itself.
        return Ok(());
    }
    if let Some(bad) = name
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !"._-/:@+[]".contains(*c))
    {
        refuse!(
            "image",
            "{} contains {bad:?}; an image is named \"registry:5000/team/name:tag\" or \
             \"name@sha256:...\"",
            Quoted(name)
        );
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        refuse!(
            "image",
            "{} has an empty, \".\" or \"..\" part between slashes",
            Quoted(name)
        );
    }
    Ok(())
}

fn is_platform_part(part: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    !part.is_empty() && part.chars().all(ok)
}

/// Returns true if `signal` has the form of a signal's name or number.
///
/// Which names exist is for the engine to check.
fn is_signal(signal: &str) -> bool {
    if signal.bytes().all(|b| b.is_ascii_digit()) {
        return signal
            .parse()
            .is_ok_and(|number: u64| (1..=64).contains(&number));
    }
    let ok = |c: char| c.is_ascii_alphanumeric() || "+-".contains(c);
    signal.starts_with(|c: char| c.is_ascii_alphabetic()) && signal.chars().all(ok)
}
