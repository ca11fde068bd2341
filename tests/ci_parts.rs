//! The parts of the example `ci` that have tests of their own: cargo runs none in an example.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "the example uses all of it; tests fail by panicking"
)]

#[path = "../examples/ci/github.rs"]
mod github;
#[path = "../examples/ci/pipeline.rs"]
mod pipeline;
