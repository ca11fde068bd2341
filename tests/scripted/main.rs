//! The manager and its runs on the scripted runtime, which can fail in ways that no engine can be made
//! to.

#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "no other crate uses a test; tests spawn tasks as applications do"
)]

mod abandoned;
mod attach;
mod audit_file;
mod bench;
#[cfg(feature = "blocking")]
mod blocking;
mod bundle;
mod console;
mod crowd;
mod damage;
mod error_text;
mod events;
mod evidence;
mod exec;
mod exit;
mod fanout;
mod follow;
mod foreign_files;
mod group;
mod images;
mod ledger;
mod limits;
mod lost_exec;
mod mask;
#[cfg(feature = "sign")]
mod mutations;
mod node;
mod orphans;
mod other_engine;
mod placement;
mod prune;
mod ready;
mod ready_checks;
#[cfg(feature = "tls")]
mod ready_tls;
mod records;
mod recovery;
mod removal;
mod runtime;
#[cfg(feature = "blocking")]
mod service;
mod shutdown;
#[cfg(feature = "sign")]
mod sign;
mod signals;
#[cfg(feature = "sign")]
mod signed_head;
mod sink_faults;
mod spec;
mod spec_cases;
mod start;
mod stdin;
mod stop;
mod stuck_tap;
mod tracing;
mod unanswered;
mod untracked;
mod usage;
mod window;
