//! A connection to an engine on this machine: a Unix socket, or a named pipe of Windows.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub(super) use self::unix::{DEFAULT_ADDRESS, LocalStream, SCHEME, roots_of_engine};
#[cfg(windows)]
pub(super) use self::windows::{DEFAULT_ADDRESS, LocalStream, SCHEME, roots_of_engine};
