//! Connections to an engine: its address, TLS, and HTTP requests whose responses stay unmodified.

pub(super) mod address;
pub(super) mod call;
pub(super) mod dial;
#[cfg(feature = "tls")]
mod tls;
pub(super) mod transport;
pub(super) mod wire;
