//! What the tests on a real engine stand on.

pub mod audit;
pub mod busybox;
pub mod deadline;
pub mod engine;
pub mod example;
pub mod image;
pub mod proxy;
pub mod sequence;
pub mod trial;
