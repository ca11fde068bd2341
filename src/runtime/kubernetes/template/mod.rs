//! The pod of a run, made from its spec.

pub(super) mod check;
pub(super) mod helper;
pub(super) mod pod;
