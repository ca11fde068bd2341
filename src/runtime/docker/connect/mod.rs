//! The choice of the engine: the options of a caller, and the search without them.

mod options;
mod search;

pub use self::options::ConnectOptions;
pub(in crate::runtime) use self::search::NoEngine;
