//! Tests of the program `moat-ci`.
//!
//! Each test runs a pipeline, and checks the output, the exit code and the files.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests spawn processes, and fail by panicking"
)]

use testkit::harness::{Harness, Trial};
use testkit::{busybox, cluster as kube, engine};

mod cluster;
mod commands;
mod environment;
mod fixture;
mod junit;
mod load;
mod resume;
mod retry;
mod shutdown;
mod steps;
mod summaries;
mod views;

use fixture::Fixture;

fn main() {
    Harness::from_args(4)
        .trials(steps::trials())
        .trials(views::trials())
        .trials(shutdown::trials())
        .trials(resume::trials())
        .trials(retry::trials())
        .trials(summaries::trials())
        .trials(junit::trials())
        .trials(commands::trials())
        .trials(load::trials())
        .trials(environment::trials())
        .trials(cluster::trials())
        .run()
}

/// A trial with local processes.
fn anywhere(name: &str, trial: fn(&Fixture)) -> Trial {
    Trial::new(name, move || {
        trial(&Fixture::new());
        Ok(())
    })
}

/// A trial with containers.
fn on_engine(name: &str, trial: fn(&Fixture)) -> Trial {
    let built = match cfg!(feature = "docker") {
        true => Ok(()),
        false => Err("built without the feature `docker`".into()),
    };
    anywhere(name, trial)
        .needs(&built)
        .needs(engine::need())
        .needs(busybox::need())
}

/// A trial with pods.
fn on_cluster(name: &str, trial: fn(&Fixture)) -> Trial {
    let built = match cfg!(feature = "kube") {
        true => Ok(()),
        false => Err("built without the feature `kube`".into()),
    };
    anywhere(name, trial)
        .needs(&built)
        .needs(kube::need())
        .needs(engine::need())
        .needs(busybox::need())
}

/// A trial whose pods mount a directory of this machine.
fn on_local_cluster(name: &str, trial: fn(&Fixture)) -> Trial {
    on_cluster(name, trial).needs(kube::local())
}
