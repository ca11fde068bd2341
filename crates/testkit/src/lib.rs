//! Support for the tests and benchmarks of moat: an engine, images, a proxy, a browser, and the
//! `main` of the test targets.
//!
//! The crate does not depend on moat. Its reader of audit files follows
//! `docs/audit-format.md` and shares no code with the reader that it checks.

#![allow(
    clippy::disallowed_methods,
    reason = "the lints of moat's own tasks do not apply to tests"
)]

pub mod audit;
pub mod busybox;
pub mod child;
pub mod chromium;
pub mod cluster;
pub mod crash;
pub mod deadline;
pub mod engine;
pub mod examples;
pub mod harness;
pub mod image;
pub mod keygen;
pub mod proxy;
pub mod registry;
pub mod relay;
pub mod sequence;
