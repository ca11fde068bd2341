//! What to run ([`RunSpec`]), and what is persisted of it ([`RunRecord`]): two types, so that no
//! secret can reach a file by mistake.

mod builder;
mod exec;
mod id;
mod invalid;
mod record;
mod secrets;
mod settings;
mod validate;

pub use builder::{Credentials, PullProgress, RunSpec};
pub use exec::ExecSpec;
pub(crate) use id::ROOT_FILE;
pub use id::{ContainerId, RootId, RunId};
pub use invalid::InvalidSpec;
pub use record::RunRecord;
pub(crate) use secrets::Secrets;
pub use settings::{
    Backstop, Device, Gpus, KeepContainer, LimitAction, Mount, OutputLimit, Port, Protocol, Pull,
    Settings, Stdin, Ulimit, WindowSize,
};
