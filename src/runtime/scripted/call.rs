//! The methods of a runtime, as names for faults and counters.

#[cfg(doc)]
use crate::runtime::Runtime;

/// A method of the [`Runtime`] trait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Call {
    /// [`Runtime::engine`].
    Engine,
    /// [`Runtime::prepare`].
    Prepare,
    /// [`Runtime::create`].
    Create,
    /// [`Runtime::place`].
    Place,
    /// [`Runtime::attach`].
    Attach,
    /// [`Runtime::attach_running`].
    AttachRunning,
    /// [`Runtime::start`].
    Start,
    /// [`Runtime::wait`].
    Wait,
    /// [`Runtime::inspect`].
    Inspect,
    /// [`Runtime::continuity`].
    Continuity,
    /// [`Runtime::logs`].
    Logs,
    /// [`Runtime::log_has_exactly`].
    LogHasExactly,
    /// [`Runtime::stdin`].
    Stdin,
    /// [`Runtime::resize`] and [`Runtime::exec_resize`].
    Resize,
    /// [`Runtime::exec`].
    Exec,
    /// [`Runtime::exec_inspect`].
    ExecInspect,
    /// [`Runtime::signal`].
    Signal,
    /// [`Runtime::remove`].
    Remove,
    /// [`Runtime::find`].
    Find,
    /// [`Runtime::find_all`].
    FindAll,
    /// [`Runtime::stats`].
    Stats,
    /// [`Runtime::connect`].
    Connect,
}
