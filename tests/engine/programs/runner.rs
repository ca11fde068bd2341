//! A CI runner: a service, a workspace, and a matrix of steps that run in parallel.

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use moat::spec::{GroupSpec, NetworkSpec, VolumeSpec};
use moat::{Manager, Outcome, Ready, Result, RunSpec};

/// A job: `script` runs for each cell, with the workspace at `/work` and the cell in `CELL`.
pub struct Job<'a> {
    pub image: &'a str,
    pub service: &'a str,
    /// Succeeds in the service once it is ready.
    pub ready: &'a str,
    pub script: &'a str,
    pub cells: &'a [&'a str],
    pub workspace: &'a Path,
    pub artifacts: &'a Path,
}

fn shell(image: &str, script: &str) -> RunSpec {
    let spec = RunSpec::new(image)
        .cmd(["sh", "-c", script])
        .workdir("/work");
    spec.init(true).stop_grace(Duration::from_secs(1))
}

/// Runs a job, and returns the outcome of each cell. `/work/out` is copied to `artifacts`.
pub async fn run(manager: &Manager, job: &Job<'_>) -> Result<Vec<Outcome>> {
    let spec = GroupSpec::new()
        .network(NetworkSpec::new())
        .volume(VolumeSpec::new(), "/work");
    let group = manager.group(spec).await?;
    let keeper = shell(job.image, "exec sleep 86400").read_only(true);
    let keeper = group.service("workspace", keeper, []).await?;
    keeper.copy_to(job.workspace, "/work/source").await?;
    keeper.output(["mkdir", "/work/out"]).await?;
    let serves = Ready::exec(["sh", "-c", job.ready]).within(Duration::from_secs(60));
    group
        .service("service", shell(job.image, job.service), [serves])
        .await?;
    let steps = job.cells.iter().map(async |cell| {
        let step = shell(job.image, job.script).env("CELL", *cell);
        group
            .start(step.time_limit(Duration::from_secs(600)))
            .await?
            .wait()
            .await
    });
    let outcomes = join_all(steps).await.into_iter().collect();
    keeper.copy_from("/work/out", job.artifacts).await?;
    group.end().await?;
    outcomes
}
