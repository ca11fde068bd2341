//! A sandbox for commands that are not trusted: no network, no root, a read-only image, and limits.

use std::time::Duration;

use moat::run::Output;
use moat::spec::{ExecSpec, LimitAction};
use moat::tokio_util::sync::CancellationToken;
use moat::{Manager, Result, RunSpec, Service};

const TIME_LIMIT: Duration = Duration::from_secs(5);
const OUTPUT_LIMIT_BYTES: u64 = 1 << 20;

/// A container that commands and files are sent to. Dropping it removes the container.
pub struct Sandbox(Service);

impl Sandbox {
    pub async fn new(manager: &Manager, image: &str) -> Result<Self> {
        let spec = RunSpec::new(image)
            .cmd(["sleep", "3600"])
            .init(true)
            .user("1000:1000")
            .network("none")
            .read_only(true)
            .tmpfs("/work", Some(16 << 20))
            .cap_drop("ALL")
            .security_opt("no-new-privileges")
            .memory(256 << 20)
            .pids_limit(64)
            .stop_grace(Duration::from_secs(1))
            .time_limit(Duration::from_secs(3600));
        Ok(Self(manager.service(spec, []).await?))
    }

    /// Runs a command, which is killed with all that it started at a limit, or by the token.
    pub async fn run(&self, script: &str, cancel: CancellationToken) -> Result<Output> {
        let spec = ExecSpec::new(["sh", "-c", script])
            .workdir("/work")
            .time_limit(TIME_LIMIT)
            .output_limit(OUTPUT_LIMIT_BYTES, LimitAction::Stop)
            .stop_when(cancel);
        self.0.output(spec).await
    }

    pub async fn write(&self, path: &str, content: impl Into<Vec<u8>>) -> Result<()> {
        self.0.write_file(path, content.into()).await
    }

    pub async fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.0.read_file(path).await
    }
}
