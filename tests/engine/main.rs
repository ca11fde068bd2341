//! moat on a real engine, and on daemons that trials start.
//!
//! Without an engine the trials are skipped; with `MOAT_ENGINE=required` they fail. `MOAT_SOAK=1`
//! selects long forms.

#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "no other crate uses a test; tests spawn tasks as applications do"
)]
use std::time::Duration;

use testkit::harness::{Completion, Harness, Trial, bounded, skip};
use testkit::{busybox, engine};

mod attach;
#[cfg(feature = "blocking")]
mod blocking;
mod copies;
mod crash;
mod cuts;
mod daemon;
mod embedder;
mod evidence;
mod exec;
mod exit;
mod files;
mod group;
mod keep;
mod limits;
mod load;
mod orphans;
mod output;
mod programs;
mod pulls;
mod recovery;
#[cfg(all(feature = "terminal", feature = "testing"))]
mod screen;
mod secrets;
mod service;
#[cfg(feature = "sign")]
mod sign;
mod spec;
mod ssh;
mod stage;
mod start;
mod stdin;
mod stop;
mod storage;
#[cfg(all(feature = "terminal", feature = "testing"))]
mod terminal;
#[cfg(all(feature = "terminal", feature = "testing"))]
mod terminal_child;
mod unread;
mod usage;

use stage::Stage;

fn main() {
    // A trial may have started this program as a child.
    if plays_a_role() {
        return;
    }
    let harness = Harness::from_args(4)
        .trials(start::trials())
        .trials(pulls::trials())
        .trials(stop::trials())
        .trials(unread::trials())
        .trials(exit::trials())
        .trials(limits::trials())
        .trials(output::trials())
        .trials(attach::trials())
        .trials(cuts::trials())
        .trials(stdin::trials())
        .trials(exec::trials())
        .trials(evidence::trials())
        .trials(recovery::trials())
        .trials(keep::trials())
        .trials(files::trials())
        .trials(copies::trials())
        .trials(group::trials())
        .trials(programs::trials())
        .trials(orphans::trials())
        .trials(usage::trials())
        .trials(secrets::trials())
        .trials(spec::trials())
        .trials(service::trials())
        .trials(ssh::trials())
        .trials(load::trials());
    #[cfg(feature = "sign")]
    let harness = harness.trials(sign::trials());
    #[cfg(feature = "blocking")]
    let harness = harness.trials(blocking::trials());
    #[cfg(all(feature = "terminal", feature = "testing"))]
    let harness = harness.trials(terminal::trials());
    #[cfg(not(all(feature = "terminal", feature = "testing")))]
    let harness = harness.note(
        "not built: the trials of `terminal` and of faulty sinks, which need `--all-features`",
    );
    harness
        .trials(storage::trials())
        .trials(daemon::trials())
        .trials(crash::trials())
        .run()
}

fn plays_a_role() -> bool {
    #[cfg(all(feature = "terminal", feature = "testing"))]
    if terminal_child::role().is_some() {
        return true;
    }
    embedder::role()
        .or_else(storage::descriptors::role)
        .or_else(crash::child::role)
        .or_else(exec::role)
        .or_else(group::role)
        .or_else(ssh::role)
        .is_some()
}

/// A trial on the engine, with the workload as its image.
fn on_engine(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    let run = move || {
        bounded(bound(Duration::from_secs(300)), async {
            trial(&Stage::new().await).await;
        })
    };
    Trial::new(name, run).needs(engine::need())
}

/// A trial that finds out if the engine fits, and is skipped with the reason if it does not.
fn on_engine_or_skip<E: AsRef<str> + Send + 'static>(
    name: &str,
    trial: impl AsyncFnOnce(&Stage) -> Result<(), E> + Send + 'static,
) -> Trial {
    let run = move || {
        let mut found = Ok(());
        bounded(Duration::from_secs(180), async {
            found = trial(&Stage::new().await).await;
        })?;
        Ok(match found {
            Ok(()) => Completion::Completed,
            Err(reason) => skip(reason.as_ref()),
        })
    };
    Trial::skippable(name, run).needs(engine::need())
}

/// A trial on the engine, with busybox as its image.
fn on_busybox(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    let run = move || {
        bounded(bound(Duration::from_secs(180)), async {
            let mut stage = Stage::new().await;
            stage.image = busybox::provide(&stage.docker).await.unwrap();
            trial(&stage).await;
        })
    };
    Trial::new(name, run)
        .needs(engine::need())
        .needs(busybox::need())
}

/// The most time for a trial, with room for the long forms.
fn bound(quick: Duration) -> Duration {
    if load::is_soak() { quick * 20 } else { quick }
}
