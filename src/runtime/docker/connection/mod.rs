//! Connections to an engine: its address, TLS, and HTTP exchanges on dedicated connections.

mod address;
mod call;
mod dialer;
mod local;
mod ssh;
#[cfg(feature = "tls")]
mod tls;
mod transport;
mod wire;

pub(super) use self::address::{Address, Environment};
pub(super) use self::call::{Call, escaped};
pub(super) use self::dialer::Dialer;
pub(super) use self::transport::{Answer, exchange};
pub(super) use self::wire::FULL_READ_BYTES;
