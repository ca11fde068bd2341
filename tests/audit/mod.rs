//! What the tests of the audit file share, and those of its default writer.

pub(crate) mod golden;
