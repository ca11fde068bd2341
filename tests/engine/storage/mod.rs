//! Audits that cannot be written: a full disk, files that are changed externally, no file
//! descriptors, and sinks that fail, stall or panic.

use std::sync::OnceLock;
use std::time::Duration;

use check::SEAL_TIMEOUT;
use moat::{Docker, Manager, Run, RunSpec};
use testkit::engine;
use testkit::harness::{Need, Trial, bounded};

use crate::stage::{Stage, printed};

mod check;
pub mod descriptors;
mod disk;
mod files;
mod full;
#[cfg(feature = "testing")]
mod sink;

/// The most time that a trial may take.
const BOUND: Duration = Duration::from_secs(240);

pub fn trials() -> Vec<Trial> {
    let mut trials = full::trials();
    trials.extend(files::trials());
    #[cfg(feature = "testing")]
    trials.extend(sink::trials());
    trials.extend(descriptors::trials());
    trials
}

/// A manager of the trial's root with a short seal timeout.
async fn open(stage: &Stage) -> Manager {
    let docker = Docker::connect().await.unwrap();
    Manager::builder(stage.root(), docker)
        .seal_timeout(SEAL_TIMEOUT)
        .open()
        .await
        .unwrap()
}

/// Starts a run, and waits until it has printed its first hundred lines.
async fn start(manager: &Manager, spec: RunSpec) -> Run {
    let run = manager.start(spec).await.unwrap();
    printed(&run, "out 00000100 ").await;
    run
}

fn on_engine(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    let run = move || bounded(BOUND, async { trial(&Stage::new().await).await });
    Trial::new(name, run).needs(engine::need())
}

/// A trial that mounts a file system.
fn on_small_disk(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    static MOUNTS: OnceLock<Need> = OnceLock::new();
    let mounts = || match disk::Disk::is_possible() {
        true => Ok(()),
        false => Err("this user may not mount a file system".into()),
    };
    on_engine(name, trial).needs(MOUNTS.get_or_init(mounts))
}

/// A trial that makes files immutable.
fn on_immutable(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    static CHATTR: OnceLock<Need> = OnceLock::new();
    let chattr = || match files::is_possible() {
        true => Ok(()),
        false => Err("this user may not make a file immutable".into()),
    };
    on_engine(name, trial).needs(CHATTR.get_or_init(chattr))
}
