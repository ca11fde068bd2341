//! Support that the tests of moat share.

#![allow(dead_code, reason = "shared with other tests")]

#[path = "../../../../tests/support/audit.rs"]
pub mod audit;
#[path = "../../../../tests/support/busybox.rs"]
pub mod busybox;
#[path = "../../../../tests/support/engine.rs"]
pub mod engine;
#[path = "../../../../tests/support/example.rs"]
pub mod example;
#[path = "../../../../tests/support/image.rs"]
pub mod image;
