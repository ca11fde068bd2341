//! The parts of the CI harness `moat-ci`. `docs/ci.md` describes the program.
//!
//! Each module depends only on modules that precede it in the table in `docs/ci.md`.

pub mod artifacts;
pub mod build;
pub mod ci_system;
mod codes;
mod earlier;
mod environment;
mod groups;
pub mod junit;
pub mod leftovers;
mod lines;
pub mod mask;
pub mod pipeline;
mod progress;
pub mod report;
pub mod rows;
pub mod schedule;
pub mod summary;
mod tracker;
pub mod view;
mod xml;
