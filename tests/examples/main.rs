//! The examples, started as users start them: exit codes, streams, and what they leave.

#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "no other crate uses a test; tests spawn tasks as applications do"
)]
use testkit::harness::{Harness, Trial};
use testkit::{busybox, cluster as kube, engine};

mod cluster;
mod in_tests;
mod local;
mod place;
mod quickstart;
mod run;
mod runs;

use place::Place;

fn main() {
    Harness::from_args(4)
        .trials(quickstart::trials())
        .trials(run::trials())
        .trials(runs::trials())
        .trials(local::trials())
        .trials(in_tests::trials())
        .trials(cluster::trials())
        .run()
}

fn anywhere(name: &str, trial: fn(&Place)) -> Trial {
    Trial::new(name, move || {
        trial(&Place::default());
        Ok(())
    })
}

fn on_engine(name: &str, trial: fn(&Place)) -> Trial {
    let built = match cfg!(feature = "docker") {
        true => Ok(()),
        false => Err("built without the feature `docker`".into()),
    };
    anywhere(name, trial).needs(&built).needs(engine::need())
}

fn on_cluster(name: &str, trial: fn(&Place)) -> Trial {
    let built = match cfg!(feature = "kube") {
        true => Ok(()),
        false => Err("built without the feature `kube-earliest`".into()),
    };
    anywhere(name, trial)
        .needs(&built)
        .needs(kube::need())
        .needs(engine::need())
}

/// A trial that needs busybox, of an example for code that is not async.
fn with_busybox(name: &str, trial: fn(&Place)) -> Trial {
    let built = match cfg!(feature = "blocking") {
        true => Ok(()),
        false => Err("built without the feature `blocking`".into()),
    };
    let installed = match busybox::is_installed() {
        true => Ok(()),
        false => Err("no static busybox on this machine".into()),
    };
    on_engine(name, trial)
        .needs(&built)
        .needs(&installed)
        .needs(engine::network())
}

fn in_namespaces(name: &str, trial: fn(&Place)) -> Trial {
    let namespaces = match local::has_namespaces() {
        true => Ok(()),
        false => Err("this user may not make namespaces, or `script` is missing".into()),
    };
    anywhere(name, trial).needs(&namespaces)
}
