//! Run containers with an audit file for every run.

#![cfg_attr(not(test), deny(clippy::unwrap_used))]

mod capture;
mod disk;
mod error;
mod manager;
mod outcome;
pub mod runtime;
pub mod sink;
mod spec;
mod state;
mod timestamp;

pub use error::{Error, Result};
pub use manager::{
    Attached, Attachment, Manager, ManagerBuilder, Recovery, Root, Run, RunInfo, Shutdown,
};
pub use outcome::{
    Ending, Evidence, Exit, Outcome, PerStream, Seal, SealState, StopCause, Stream, Verdict,
};
#[cfg(feature = "docker")]
pub use runtime::docker::Docker;
pub use runtime::{Runtime, RuntimeError};
pub use sink::{Jsonl, LogSink};
pub use spec::{
    Backstop, ContainerId, Credentials, Device, Gpus, KeepContainer, LimitAction, Mount,
    OutputLimit, Port, Protocol, Pull, PullProgress, RootId, RunId, RunRecord, RunSpec, Settings,
    Stdin, Ulimit,
};
pub use state::State;
pub use timestamp::{ParseTimestampError, Timestamp};
