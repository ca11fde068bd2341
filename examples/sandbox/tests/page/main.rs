//! Tests of the page, in headless Chromium.
//!
//! Without Chromium the trials are skipped. With `MOAT_CHROMIUM=required` they fail.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests spawn tasks, and fail by panicking"
)]

use testkit::harness::{Harness, Need, Trial, anywhere};
use testkit::{busybox, chromium, engine};

mod access;
mod files;
mod fixture;
mod sessions;
mod terminal;

fn main() {
    Harness::from_args(2)
        .trials(files::trials())
        .trials(sessions::trials())
        .trials(terminal::trials())
        .trials(access::trials())
        .run()
}

/// A trial in a browser, with sessions that are local processes.
fn in_browser(name: &str, trial: fn()) -> Trial {
    let built: Need = match cfg!(feature = "process") {
        true => Ok(()),
        false => Err("built without the feature `process`".into()),
    };
    anywhere(name, trial).needs(&built).needs(&chromium::need())
}

/// A trial in a browser, with sessions that are containers.
fn on_engine(name: &str, trial: fn()) -> Trial {
    let built: Need = match cfg!(feature = "docker") {
        true => Ok(()),
        false => Err("built without the feature `docker`".into()),
    };
    anywhere(name, trial)
        .needs(&built)
        .needs(&chromium::need())
        .needs(engine::need())
        .needs(busybox::need())
}
