//! moat on a Kubernetes cluster: the context that `MOAT_KUBE` names.
//!
//! Without it, the trials of a cluster are skipped. Those of `recorded` need none, and always run.
//! The trials that stop parts of the cluster, or mount directories of its node, need the cluster of
//! `tests/engines/kubernetes` on this machine, whose directory is in `MOAT_KUBE_DIR`.

#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "no other crate uses a test; tests spawn tasks as applications do"
)]

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use testkit::harness::{Harness, Trial, bounded};

mod access;
mod cluster;
mod crash;
mod disruptions;
mod embedder;
mod faults;
mod input;
mod kills;
mod late;
mod load;
mod nodes;
mod orphans;
mod output;
mod placement;
mod plain;
mod recorded;
mod recovery;
mod removal;
mod rights;
mod sharing;
mod stage;
mod watches;

use stage::Stage;

/// The maximum duration of a trial.
const BOUND: Duration = Duration::from_secs(600);
/// A trial that breaks the cluster runs alone.
static CLUSTER: RwLock<()> = RwLock::new(());

fn main() {
    // A trial may have started this program as a child.
    if embedder::role().or_else(crash::child::role).is_some() {
        return;
    }
    Harness::from_args(4)
        .trials(recorded::trials())
        .trials(rights::trials())
        .trials(output::trials())
        .trials(input::trials())
        .trials(removal::trials())
        .trials(recovery::trials())
        .trials(late::trials())
        .trials(sharing::trials())
        .trials(orphans::trials())
        .trials(load::trials())
        .trials(crash::trials())
        .trials(faults::trials())
        .trials(placement::trials())
        .trials(plain::trials())
        .trials(kills::trials())
        .trials(disruptions::trials())
        .trials(nodes::trials())
        .trials(watches::trials())
        .trials(access::trials())
        .run()
}

/// A trial on any cluster.
fn on_cluster(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    let run = move || {
        let _shared = CLUSTER.read().unwrap_or_else(PoisonError::into_inner);
        bounded(BOUND, async { trial(&Stage::new().await).await })
    };
    Trial::new(name, run).needs(cluster::need())
}

/// A trial whose pods mount a directory of this machine.
fn on_local_cluster(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    on_cluster(name, trial).needs(cluster::local())
}

/// A trial that stops parts of the cluster.
fn on_broken_cluster(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    let run = move || {
        let _alone = CLUSTER.write().unwrap_or_else(PoisonError::into_inner);
        bounded(BOUND, async { trial(&Stage::new().await).await })
    };
    Trial::new(name, run)
        .needs(cluster::need())
        .needs(cluster::local())
}
