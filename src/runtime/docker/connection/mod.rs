//! Connections to an engine: the selection of its address, TLS, and HTTP exchanges on dedicated
//! connections.

mod address;
mod call;
mod context;
mod dialer;
mod environment;
mod local;
mod proxies;
mod select;
mod ssh;
#[cfg(feature = "tls")]
mod tls;
mod transport;
mod wire;

pub(super) use self::address::Address;
#[cfg(all(test, feature = "tls"))]
pub(super) use self::address::Certificates;
pub(super) use self::call::{Call, escaped};
#[cfg(test)]
pub(super) use self::context::directory as context_directory;
pub(super) use self::dialer::Dialer;
pub(super) use self::environment::Environment;
pub(super) use self::select::{Candidate, Requested, candidates, may_exist};
#[cfg(feature = "tls")]
pub(crate) use self::tls::AnyCertificate;
pub(super) use self::transport::{Answer, exchange};
pub(super) use self::wire::FULL_READ_BYTES;
