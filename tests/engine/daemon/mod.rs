//! Faults of the engine itself, on daemons that the trials start.

use std::sync::OnceLock;
use std::time::Duration;

use testkit::engine;
use testkit::harness::{Need, Trial, bounded};

mod check;
#[allow(clippy::module_inception, reason = "the daemon of a trial")]
mod daemon;
mod external;
mod logs;
mod restarts;
mod silence;

/// The most time that a trial may take.
const BOUND: Duration = Duration::from_secs(300);

pub fn trials() -> Vec<Trial> {
    let mut trials = restarts::trials();
    trials.extend(logs::trials());
    trials.extend(external::trials());
    trials.extend(silence::trials());
    trials
}

fn on_daemon(name: &str, trial: impl AsyncFnOnce() + Send + 'static) -> Trial {
    static NEED: OnceLock<Need> = OnceLock::new();
    let need = || match engine::is_required() || daemon::is_possible() {
        true => Ok(()),
        false => Err("no daemon can be started: it takes root, dockerd and containerd".into()),
    };
    Trial::new(name, move || bounded(BOUND, trial())).needs(NEED.get_or_init(need))
}
