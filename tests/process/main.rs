//! Runs of local processes, which need no engine.

#![cfg(all(feature = "process", target_os = "linux"))]
#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "no other crate uses a test; tests spawn tasks as applications do"
)]

mod embedder;
mod exit;
mod ledger;
mod limits;
mod load;
mod output;
mod place;
mod runtime;
#[cfg(feature = "sign")]
mod sign;
mod signals;
mod start;
mod stop;
