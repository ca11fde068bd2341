//! The API server: requests, watches, and the programs that a kubelet runs.

pub(super) mod client;
pub(super) mod connection;
pub(super) mod pod;
pub(super) mod rights;
pub(super) mod watch;
