//! All public types are `Send` and `Sync`, and all public futures are `Send`.
//!
//! The compiler checks the lists. The tests compare the lists with the snapshot of the public API.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use moat::runtime::Runtime;

use crate::api;

/// Types that are `Send` only, because they hold a stream or a writer of an implementor.
///
/// A runtime or a sink passes them to moat, which has no other reference to them. With a bound
/// `Sync`, a stream could not be an async block that awaits a boxed future.
const SEND_ONLY: [&str; 3] = [
    "moat::runtime::AttachedOutput",
    "moat::runtime::StartedExec",
    "moat::sink::Resumed",
];

fn send_sync<T: Send + Sync>() {}

fn send<T: Send>(_: T) {}

/// Stands for an argument of a call that is compiled and not executed.
fn any<T>() -> T {
    unreachable!()
}

/// Asserts that the types are `Send` and `Sync`, and lists their modules and names.
macro_rules! types {
    ($($(#[$cfg:meta])* $($module:ident)::+ {
        $($type:ident $(<$argument:tt>)?),* $(,)?
    })*) => {
        const TYPES: &[(&str, &[&str])] = &[
            $((stringify!($($module)::+), &[$(stringify!($type)),*])),*
        ];

        const _: fn() = || {
            $($(#[$cfg])* {
                use $($module)::+::*;
                $(send_sync::<$type $(<$argument>)?>();)*
            })*
        };
    };
}

/// Asserts that the futures are `Send`, and lists the names of their functions.
macro_rules! futures {
    ($($(#[$cfg:meta])* {
        $($($segment:ident)::+ ($($argument:ty),*);)*
    })*) => {
        const FUTURES: &[&str] = &[$($(stringify!($($segment)::+),)*)*];

        const _: fn() = || {
            $($(#[$cfg])* {
                $(send($($segment)::+($(any::<$argument>()),*));)*
            })*
        };
    };
}

types! {
    moat {
        Ending, Error, Events, Exit, Fallback, Manager, ManagerBuilder, Outcome, Port,
        Ready, Root, Run, RunId, RunSpec, Seal, Service, ShutdownMode, Verdict,
    }
    #[cfg(feature = "docker")]
    moat { Docker }
    #[cfg(feature = "kube")]
    moat { Kubernetes }
    #[cfg(all(feature = "process", unix))]
    moat { LocalProcess }
    moat::audit {
        Action, Batch, Damage, Event, ExecCreated, Follow, Gap, GapReason, Interaction, LogState, Output,
        Reader<File>, Record, RecordRef<'static>, Records, Resume, ResumeCause, Start,
        Started, StdinChunk, Stop, TruncatedTail, Verification,
    }
    #[cfg(feature = "blocking")]
    moat::blocking {
        Archive, AttachHandle, Attachment, Connection, ConnectionReader, ConnectionWriter, Events,
        Exec, Group, Image, Input, Manager, Network, OutputReader, Run, Service, Volume,
    }
    #[cfg(feature = "conformance")]
    moat::conformance { Behavior, Case, CaseResult, Failure, ShellHarness, Step, Unsupported }
    moat::events { EventKind, Events, RunEvent }
    moat::manager {
        Group, Image, Manager, ManagerBuilder, Network, Orphan, OrphanedContainer, OrphanReason, PruneOptions, PruneReport, ReapAction, ReapedContainer, ReapedResource, ReapOptions, ReapReport, RecoveryMode, Service, ShutdownMode, Signal, SkipReason, Volume,
    }
    moat::outcome {
        Ending, Evidence, Exit, Outcome, PerStream<u64>, Seal, SealState, StopCause, Stream,
        Usage, Verdict,
    }
    moat::bundle { BundleVerification }
    moat::root {
        ExecInfo, Finding, FindingKind, FoundRun, Head, LedgerEntry, LedgerLine, LedgerReader, RemovalReason,
        Remover, Root, RootVerification, RunBegun, RunInfo, RunQuery, RunSealed, VerifyOptions,
    }
    moat::run {
        AttachHandle, AttachOptions, Attached, Attachment, CopyError, CopyOptions, CopyProgress, Exec,
        Input, LineMatch, Output, Ready, Run,
    }
    #[cfg(feature = "http")]
    moat::run { HttpCheck }
    #[cfg(feature = "tls")]
    moat::run { HttpTls }
    moat::runtime {
        Capabilities, Chunk, Connection, ContainerStatus, Continuity,
        CreateRequest<'static>, Created, DrainLimit, EngineInfo, ExecId, ExecInspection,
        Health, ImageInfo, Inspection, LabeledContainer, LabeledResource, LogConfig, LogFidelity, LogsRequest, OwnedContainer, PublishedPort, ResourceRequest<'static>, RuntimeError, WaitStatus,
    }
    moat::runtime::connect { Connected, Fallback, RuntimeKind }
    #[cfg(feature = "docker")]
    moat::runtime::docker { ConnectOptions, Docker }
    #[cfg(feature = "kube")]
    moat::runtime::kubernetes { ClusterOptions, Kubernetes, PlainPods }
    #[cfg(all(feature = "process", unix))]
    moat::runtime::process { LocalProcess }
    #[cfg(feature = "testing")]
    moat::runtime::scripted { Break, Call, Fault, Link, Script, Scripted, Source }
    #[cfg(feature = "sign")]
    moat::sign { AllowedSigners, SignError, SignatureError, SigningKey, VerifiedSigner }
    moat::sink { Console, Durability, Fanout, Jsonl, Memory, RunPlace, SinkError, Tracing }
    #[cfg(feature = "testing")]
    moat::sink { Faulty, SinkCall, SinkFault }
    moat::spec {
        Backstop, ContainerId, Credentials, Device, ExecSpec, Gpus, GroupId, GroupSpec, HealthCheck, InvalidSpec, KeepContainer, LimitAction, Membership, Mount, NetworkSpec, OutputLimit, PlacementProgress, Port, Protocol, Pull, PullOptions, PullProgress, Relabel, ResourceKind, RootId, RunId, RunRecord, RunSpec, RuntimeView<'static>, Settings, Stdin, Ulimit, VolumeSpec, WindowSize,
    }
    moat::state { ParseRunStatusError, RunStatus, State }
    #[cfg(all(feature = "terminal", unix))]
    moat::terminal { DetachKeys, ParseKeysError, SessionEnd, Terminal }
    moat::timestamp { ParseTimestampError, Timestamp }
}

const _: fn() = || {
    send(any::<moat::runtime::AttachedOutput>());
    send(any::<moat::runtime::StartedExec>());
    send(any::<moat::sink::Resumed>());
};

futures! {
    {
        moat::connect(moat::Fallback);
        moat::ManagerBuilder::open(moat::ManagerBuilder);
        moat::Service::stop(moat::Service);
        moat::manager::Group::end(moat::manager::Group);
        moat::manager::Group::service(
            &moat::manager::Group, &str, moat::RunSpec, [moat::Ready; 1]
        );
        moat::manager::Group::start(&moat::manager::Group, moat::RunSpec);
        moat::manager::Network::remove(moat::manager::Network);
        moat::manager::Volume::remove(moat::manager::Volume);
        moat::events::Events::next(&mut moat::Events);
        moat::manager::Image::exists(&moat::manager::Image);
        moat::manager::Image::inspect(&moat::manager::Image);
        moat::manager::Image::pull(&moat::manager::Image, moat::spec::PullOptions);
        moat::manager::Image::remove(&moat::manager::Image, bool);
        moat::manager::Manager::attach(&moat::Manager, &moat::RunId);
        moat::manager::Manager::get(&moat::Manager, &moat::RunId);
        moat::manager::Manager::group(&moat::Manager, moat::spec::GroupSpec);
        moat::manager::Manager::images(&moat::Manager);
        moat::manager::Manager::list(&moat::Manager);
        moat::manager::Manager::network(&moat::Manager, moat::spec::NetworkSpec);
        moat::manager::Manager::open(PathBuf, Arc<dyn Runtime>);
        moat::manager::Manager::orphans(&moat::Manager);
        moat::manager::Manager::prune(&moat::Manager, moat::manager::PruneOptions);
        moat::manager::Manager::reap(&moat::Manager, moat::manager::ReapOptions);
        moat::manager::Manager::remove(&moat::Manager, &moat::RunId);
        moat::manager::Manager::remove_orphan(&moat::Manager, &moat::manager::Orphan);
        moat::manager::Manager::service(&moat::Manager, moat::RunSpec, [moat::Ready; 1]);
        moat::manager::Manager::shutdown(&moat::Manager, moat::ShutdownMode);
        moat::manager::Manager::start(&moat::Manager, moat::RunSpec);
        moat::manager::Manager::start_attached(
            &moat::Manager, moat::RunSpec, moat::run::AttachOptions
        );
        moat::manager::Manager::stop(&moat::Manager, &moat::RunId, Option<Duration>);
        moat::manager::Manager::stop_on_signals(&moat::Manager);
        moat::manager::Manager::stop_on_signals_with_cleanup(&moat::Manager, Duration);
        moat::manager::Manager::volume(&moat::Manager, moat::spec::VolumeSpec);
        moat::manager::Manager::wait(&moat::Manager, &moat::RunId);
        moat::manager::Manager::wait_recovery(&moat::Manager);
        moat::manager::ReapOptions::run(
            &moat::manager::ReapOptions, &dyn Runtime, Option<&moat::spec::RootId>
        );
        moat::run::AttachHandle::outcome(&moat::run::AttachHandle);
        moat::run::AttachHandle::resize(&moat::run::AttachHandle, moat::spec::WindowSize);
        moat::run::Attachment::outcome(&moat::run::Attachment);
        moat::run::Attachment::resize(&moat::run::Attachment, moat::spec::WindowSize);
        moat::run::Exec::attach(&moat::run::Exec);
        moat::run::Exec::attach_with(&moat::run::Exec, moat::run::AttachOptions);
        moat::run::Exec::kill(&moat::run::Exec);
        moat::run::Exec::wait(&moat::run::Exec);
        moat::run::Run::attach(&moat::Run);
        moat::run::Run::attach_with(&moat::Run, moat::run::AttachOptions);
        moat::run::Run::connect(&moat::Run, u16);
        moat::run::Run::copy_from(&moat::Run, &str, &Path);
        moat::run::Run::copy_from_with(&moat::Run, &str, &Path, moat::run::CopyOptions);
        moat::run::Run::copy_in(&moat::Run, &str, moat::runtime::Archive);
        moat::run::Run::copy_out(&moat::Run, &str);
        moat::run::Run::copy_to(&moat::Run, &Path, &str);
        moat::run::Run::copy_to_with(&moat::Run, &Path, &str, moat::run::CopyOptions);
        moat::run::Run::exec(&moat::Run, moat::spec::ExecSpec);
        moat::run::Run::inspect(&moat::Run);
        moat::run::Run::kill(&moat::Run);
        moat::run::Run::last_lines(&moat::Run, usize);
        moat::run::Run::output(&moat::Run, moat::spec::ExecSpec);
        moat::run::Run::port(&moat::Run, u16);
        moat::run::Run::port_on(&moat::Run, &str, u16);
        moat::run::Run::read_file(&moat::Run, &str);
        moat::run::Run::read_file_with(&moat::Run, &str, moat::run::CopyOptions);
        moat::run::Run::remove_container(&moat::Run);
        moat::run::Run::stop(&moat::Run, Option<Duration>);
        moat::run::Run::wait(&moat::Run);
        moat::run::Run::wait_exit(&moat::Run);
        moat::run::Run::wait_ready(&moat::Run, moat::Ready);
        moat::run::Run::wait_removed(&moat::Run);
        moat::run::Run::write_file(&moat::Run, &str, Vec<u8>);
        moat::run::Run::write_file_with(&moat::Run, &str, Vec<u8>, moat::run::CopyOptions);
        moat::runtime::connect::connect(moat::Fallback);
    }
    #[cfg(feature = "sign")]
    {
        moat::sign::SigningKey::sign(&moat::sign::SigningKey, &str, &[u8]);
    }
    #[cfg(feature = "conformance")]
    {
        moat::conformance::Case::run(moat::conformance::Case);
    }
    #[cfg(feature = "docker")]
    {
        moat::runtime::docker::Docker::connect();
        moat::runtime::docker::Docker::connect_to(&str);
        moat::runtime::docker::Docker::connect_with(moat::runtime::docker::ConnectOptions);
    }
    #[cfg(feature = "kube")]
    {
        moat::runtime::kubernetes::Kubernetes::connect();
        moat::runtime::kubernetes::Kubernetes::connect_with(
            moat::runtime::kubernetes::ClusterOptions
        );
    }
    #[cfg(all(feature = "terminal", unix))]
    {
        moat::terminal::Terminal::attach(&moat::terminal::Terminal, moat::run::Attachment);
    }
    #[cfg(feature = "testing")]
    {
        moat::sink::Faulty::wait_fault(&moat::sink::Faulty);
    }
}

#[test]
fn every_public_type_is_asserted_to_be_sync() {
    let paths = |(module, names): &(&str, &[&str])| -> Vec<_> {
        let path = |name| format!("{}::{name}", module.replace(' ', ""));
        names.iter().map(path).collect()
    };
    let asserted: BTreeSet<_> = TYPES.iter().flat_map(paths).collect();
    let types: BTreeSet<_> = api::items(["struct ", "enum ", "union "]).collect();
    let missing: Vec<_> = types
        .iter()
        .filter(|name| !asserted.contains(*name) && !SEND_ONLY.contains(&name.as_str()))
        .collect();
    assert!(types.len() > 100, "{} types", types.len());
    assert!(missing.is_empty(), "not in the list of types: {missing:?}");
}

#[test]
fn every_public_future_is_asserted_to_be_send() {
    let functions: BTreeSet<_> = api::items(["async fn "])
        .chain(api::returning_futures())
        .collect();
    let asserted: BTreeSet<_> = FUTURES.iter().map(|name| name.replace(' ', "")).collect();
    let missing: Vec<_> = functions
        .iter()
        .filter(|name| !asserted.contains(*name))
        .collect();
    assert!(functions.len() > 40, "{} functions", functions.len());
    assert!(
        missing.is_empty(),
        "not in the list of futures: {missing:?}"
    );
}
