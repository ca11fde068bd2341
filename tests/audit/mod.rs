//! What the tests of the audit file share, and those of its default writer.

mod durability;
pub(crate) mod golden;
mod resume;
