//! The containers that a killed build has kept for their artifacts.

use std::collections::BTreeSet;
use std::path::Path;

use futures::future::join_all;
use moat::manager::PruneOptions;
use moat::root::RunInfo;
use moat::spec::KeepContainer;
use moat::{Manager, Root, Run, RunId};

use crate::build::{self, Build};
use crate::view::View;

/// Runs whose containers no process needs.
#[derive(Debug, Default)]
pub struct Leftovers {
    runs: Vec<RunId>,
}

impl Leftovers {
    /// Finds the runs in the root at `path`, before a manager opens it.
    ///
    /// Runs of `build` are among them if they are in a group, because their steps run again.
    pub fn find(path: &Path, build: &Build) -> moat::Result<Self> {
        if !path.join("root.json").exists() {
            return Ok(Self::default());
        }
        let infos = Root::open(path)?.list()?;
        // Their processes copy the artifacts.
        let live: BTreeSet<_> = infos.iter().filter(|info| info.owned).map(id_of).collect();
        let is_left = |info: &&RunInfo| {
            let id = id_of(info);
            let is_other = id != Some(build.id.as_str());
            id.is_some() && !live.contains(&id) && (is_other || is_member(info))
        };
        let runs = infos.iter().filter(|info| is_kept(info)).filter(is_left);
        Ok(Self {
            runs: runs.map(|info| info.run.clone()).collect(),
        })
    }

    /// Waits until the runs have ended, and removes their containers.
    pub async fn remove(&self, manager: &Manager, view: &View<'_>) {
        let removals = self.runs.iter().map(async |id| {
            if let Ok(run) = manager.get(id).await
                && run.wait().await.is_ok()
            {
                remove_container(&run, view).await;
            }
        });
        join_all(removals).await;
    }

    /// Removes the network and the volume of a build that a container has kept.
    pub async fn remove_environment(&self, manager: &Manager, view: &View<'_>) {
        if !self.runs.is_empty()
            && let Err(error) = manager.prune(PruneOptions::new()).await
        {
            let error = error.chain();
            view.message(&format!(
                "cannot remove what an earlier build left: {error}"
            ));
        }
    }
}

/// The id of the build.
fn id_of(info: &RunInfo) -> Option<&str> {
    build::label(info, build::BUILD)
}

fn is_kept(info: &RunInfo) -> bool {
    let keep = info.record.as_ref().map(|record| record.settings.keep);
    let is_gone = |seal: &moat::Seal| seal.container.is_none();
    keep == Some(KeepContainer::Always) && !info.seal.as_ref().is_some_and(is_gone)
}

fn is_member(info: &RunInfo) -> bool {
    let record = info.record.as_ref();
    record.is_some_and(|record| record.membership.is_some())
}

/// Removes the container of a run that has ended.
pub async fn remove_container(run: &Run, view: &View<'_>) {
    if let Err(error) = run.remove_container().await {
        let (run, error) = (run.id(), error.chain());
        view.message(&format!(
            "cannot remove the container of run {run}: {error}"
        ));
    }
}
