//! The credentials for an image registry, and the progress before the start of a container.

use std::fmt;
use std::time::Duration;

use super::secrets::Secret;
use super::{Pull, RunSpec};

/// The default of [`RunSpec::pull_retries`].
pub(super) const DEFAULT_PULL_RETRIES: u32 = 2;
/// The default of [`RunSpec::pull_stall_timeout`].
pub(super) const DEFAULT_PULL_STALL_TIMEOUT: Duration = Duration::from_secs(60);

impl RunSpec {
    /// Sets how many times a pull that failed is retried. Default: 2.
    ///
    /// Only a transient failure is retried: the engine cannot reach the registry, the registry
    /// answers with status 429 or 5xx, the connection to the engine breaks, or the pull
    /// [stalls](Self::pull_stall_timeout). An image that is missing, or to which access is denied,
    /// fails at once. The pause before the first retry is 1 s. It doubles up to 30 s, and a stop of
    /// the run ends it. Each pause is reported like the progress of a pull.
    ///
    /// With the default, a failure of the registry for about 3 s does not fail a run, and one that
    /// lasts is reported soon. A node of a cluster retries by its own rules, so a pod refuses this
    /// setting.
    pub fn pull_retries(mut self, retries: u32) -> Self {
        self.settings.pull_retries = retries;
        self
    }

    /// Sets the time after which a pull without progress fails. Default: 60 s. Minimum: 1 s.
    ///
    /// The time starts again with each report of the engine. A pull that makes progress has no
    /// limit. A pod refuses this setting.
    pub fn pull_stall_timeout(mut self, timeout: Duration) -> Self {
        self.settings.pull_stall_timeout = timeout;
        self
    }
}

/// The progress of an image pull, as the engine reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PullProgress {
    /// The id of the layer; `None` for a report about the whole image.
    pub layer: Option<String>,
    /// The engine's status message.
    pub status: String,
    /// The completed bytes of this step.
    pub current: Option<u64>,
    /// The total bytes of this step.
    pub total: Option<u64>,
    /// True if the pull failed and the engine's image is used: see
    /// [`Pull::Newer`](super::Pull::Newer).
    ///
    /// The status is the reason. The run records it as a warning.
    pub fallback: bool,
}

impl PullProgress {
    /// Creates a report that has only a status.
    pub fn new(status: impl Into<String>) -> Self {
        Self {
            layer: None,
            status: status.into(),
            current: None,
            total: None,
            fallback: false,
        }
    }

    /// Creates a report that the engine's image is used, for this reason.
    pub fn fallback(reason: impl Into<String>) -> Self {
        Self {
            fallback: true,
            ..Self::new(reason)
        }
    }
}

/// The options of a pull without a run: see [`Image::pull`](crate::manager::Image::pull).
///
/// Those that are not set are those of a run: see [`RunSpec`].
#[derive(Debug, Clone)]
pub struct PullOptions {
    spec: RunSpec,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl PullOptions {
    /// Creates options that pull the image whether or not the engine has it.
    pub fn new() -> Self {
        Self {
            spec: RunSpec::new("").pull(Pull::Always),
        }
    }

    /// Sets the pull policy. Default: [`Pull::Always`].
    pub fn policy(mut self, policy: Pull) -> Self {
        self.spec = self.spec.pull(policy);
        self
    }

    /// Sets the platform, `os[/arch[/variant]]`: see [`RunSpec::platform`].
    pub fn platform(mut self, platform: impl Into<String>) -> Self {
        self.spec = self.spec.platform(platform);
        self
    }

    /// Sets the credentials for the registry: see [`RunSpec::credentials`].
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.spec = self.spec.credentials(credentials);
        self
    }

    /// Sets the number of retries. Default: 2. See [`RunSpec::pull_retries`].
    pub fn retries(mut self, retries: u32) -> Self {
        self.spec = self.spec.pull_retries(retries);
        self
    }

    /// Sets the time after which a pull without progress fails. Default: 60 s.
    ///
    /// See [`RunSpec::pull_stall_timeout`].
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.spec = self.spec.pull_stall_timeout(timeout);
        self
    }

    /// Sets a callback for the progress. The runtime calls it in its tasks, so it must not block.
    pub fn on_progress(mut self, report: impl Fn(PullProgress) + Send + Sync + 'static) -> Self {
        self.spec = self.spec.on_pull(report);
        self
    }

    /// Returns a spec that pulls `image` with these options.
    pub(crate) fn spec(self, image: &str) -> RunSpec {
        let mut spec = self.spec;
        spec.settings.image = image.to_owned();
        spec
    }
}

/// The progress of the placement of a container, as the engine reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlacementProgress {
    /// The engine's word for what the container waits for, such as `Unschedulable`.
    pub reason: String,
    /// The engine's explanation. It may be empty.
    pub message: String,
}

impl PlacementProgress {
    /// Creates a report.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// Credentials for an image registry. The `Debug` output omits the password.
#[derive(Clone)]
pub struct Credentials {
    username: String,
    pub(super) password: Secret,
}

impl Credentials {
    /// Creates credentials from a user name and a password or token.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            username: username.into(),
            password: Secret(password.into()),
        }
    }

    /// Returns the user name.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// Returns the password or token, which is a secret.
    pub fn password(&self) -> &str {
        &self.password.0
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &self.password)
            .finish()
    }
}
