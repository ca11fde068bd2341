//! A sandbox server for agents.
fn main() {}
