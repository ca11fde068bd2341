//! The specification of a run ([`RunSpec`]) and its record in files ([`RunRecord`]).
//!
//! These are two types, so that no secret reaches a file by mistake.

mod builder;
mod exec;
mod id;
mod invalid;
mod pull;
mod record;
mod secrets;
mod settings;
mod validate;
mod view;

pub use builder::RunSpec;
pub use exec::ExecSpec;
pub(crate) use id::ROOT_FILE;
pub use id::{ContainerId, RootId, RunId};
pub use invalid::InvalidSpec;
pub use pull::{Credentials, PlacementProgress, PullProgress};
pub use record::RunRecord;
pub(crate) use secrets::Secrets;
pub use settings::{
    Backstop, Device, Gpus, KeepContainer, LimitAction, Mount, OutputLimit, Port, Protocol, Pull,
    Settings, Stdin, Ulimit, WindowSize,
};
pub use view::RuntimeView;
