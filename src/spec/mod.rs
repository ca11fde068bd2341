//! The specification of a run ([`RunSpec`]) and its record in files ([`RunRecord`]).
//!
//! These are two types, so that no secret reaches a file by mistake.

mod builder;
mod env;
mod exec;
mod id;
mod mount;
mod pull;
mod record;
mod resource;
mod secrets;
mod settings;
mod validate;
mod view;

pub use builder::RunSpec;
pub use exec::ExecSpec;
#[cfg(feature = "sign")]
pub(crate) use id::HEAD_SIGNATURE_FILE;
pub use id::{ContainerId, RootId, RunId};
pub(crate) use id::{LEDGER_FILE, ROOT_FILE};
pub use mount::{Mount, Relabel};
pub use pull::{Credentials, PlacementProgress, PullOptions, PullProgress};
pub use record::RunRecord;
pub(crate) use resource::ResourceSpec;
pub use resource::{GroupId, GroupSpec, Membership, NetworkSpec, ResourceKind, VolumeSpec};
pub(crate) use secrets::{MaskSource, MaskValues, Secrets};
pub use settings::{
    Backstop, Device, Gpus, HealthCheck, KeepContainer, LimitAction, OutputLimit, Port, Protocol,
    Pull, Settings, Stdin, Ulimit, WindowSize,
};
pub use validate::InvalidSpec;
pub use view::RuntimeView;
