//! Tests of the server, over HTTP and WebSocket.
//!
//! `SANDBOX_KILLS=30` kills the server 30 times instead of 3 in the trial of crashes.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests spawn tasks, and fail by panicking"
)]

use std::time::Duration;

use testkit::harness::{Harness, Trial, bounded};
use testkit::{busybox, engine};

mod access;
mod audits;
mod client;
mod crash;
mod exec;
mod files;
mod fixture;
mod hostile;
mod places;
mod sessions;
mod terminal;

use fixture::{Runtime, Server};

fn main() {
    Harness::from_args(6)
        .trials(sessions::trials())
        .trials(exec::trials())
        .trials(crash::trials())
        .trials(access::trials())
        .trials(hostile::trials())
        .trials(places::trials())
        .trials(files::trials())
        .trials(terminal::trials())
        .trials(audits::trials())
        .run()
}

/// A trial against a server of this runtime.
fn trial(
    name: &str,
    runtime: Runtime,
    trial: impl AsyncFnOnce(&mut Server) + Send + 'static,
) -> Trial {
    Trial::new(name, move || {
        bounded(Duration::from_secs(600), async move {
            let mut server = Server::start(runtime).await;
            trial(&mut server).await;
            server.end().await;
        })
    })
}

/// A trial whose sessions are containers.
fn on_engine(name: &str, run: impl AsyncFnOnce(&mut Server) + Send + 'static) -> Trial {
    let built = match cfg!(feature = "docker") {
        true => Ok(()),
        false => Err("built without the feature `docker`".into()),
    };
    trial(name, Runtime::Docker, run)
        .needs(&built)
        .needs(engine::need())
        .needs(busybox::need())
}

/// A trial whose sessions are local processes.
fn on_process(name: &str, run: impl AsyncFnOnce(&mut Server) + Send + 'static) -> Trial {
    trial(&format!("{name}_on_process"), Runtime::Process, run)
}
