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
    /// [`Runtime::exec_kill`].
    ExecKill,
    /// [`Runtime::signal`].
    Signal,
    /// [`Runtime::remove`].
    Remove,
    /// [`Runtime::find`].
    Find,
    /// [`Runtime::find_all`].
    FindAll,
    /// [`Runtime::create_resource`].
    CreateResource,
    /// [`Runtime::remove_resource`].
    RemoveResource,
    /// [`Runtime::find_resources`].
    FindResources,
    /// [`Runtime::stats`].
    Stats,
    /// [`Runtime::connect`].
    Connect,
    /// [`Runtime::images`].
    Images,
    /// [`Runtime::image_inspect`].
    ImageInspect,
    /// [`Runtime::image_remove`].
    ImageRemove,
}
