//! Networks and volumes that a manager owns, and groups.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use moat::manager::{Group, Orphan, PruneOptions, ReapAction, ReapOptions, RecoveryMode};
use moat::outcome::StopCause;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::runtime::{ResourceRequest, Runtime, RuntimeError};
use moat::sink::Memory;
use moat::spec::{GroupSpec, KeepContainer, NetworkSpec, ResourceKind, RunRecord, VolumeSpec};
use moat::{Error, Manager, Ready, Run, RunSpec, ShutdownMode};
use testkit::deadline::{eventually, within};

use crate::bench::{Bench, named, seal, sealed, spec};

/// Returns the number of networks and volumes on the engine.
async fn resources(bench: &Bench) -> usize {
    bench.runtime.find_resources().await.unwrap().len()
}

/// Returns the files of the groups in the root.
fn files(bench: &Bench) -> Vec<PathBuf> {
    let files = std::fs::read_dir(bench.root().join(".groups"));
    files.map_or(Vec::new(), |files| {
        files.map(|file| file.unwrap().path()).collect()
    })
}

fn both() -> GroupSpec {
    GroupSpec::new()
        .network(NetworkSpec::new())
        .volume(VolumeSpec::new(), "/work")
}

async fn group(bench: &Bench, manager: &Manager) -> Group {
    let group = manager.group(both()).await.unwrap();
    assert_eq!((resources(bench).await, files(bench).len()), (2, 1));
    group
}

async fn is_clean(bench: &Bench) {
    eventually(20, "the end of the groups", async || {
        (resources(bench).await == 0 && files(bench).is_empty()).then_some(())
    })
    .await;
}

fn endless() -> Script {
    Script::new().stdout("ready\n").until_stopped()
}

async fn service(bench: &Bench, group: &Group, name: &str) -> Run {
    bench.runtime.next(endless());
    let spec = named(name).stop_grace(Duration::ZERO);
    let service = group.service(name, spec, [Ready::line("ready")]).await;
    service.unwrap()
}

async fn member(bench: &Bench, group: &Group, name: &str) -> Run {
    bench.runtime.next(endless());
    let spec = named(name).stop_grace(Duration::ZERO);
    group.start(spec).await.unwrap()
}

fn unavailable() -> Fault {
    Fault::Error(RuntimeError::Unavailable {
        address: "the engine".into(),
        reason: "it restarts".into(),
    })
}

#[tokio::test]
async fn a_group_ends_its_runs_in_order_and_then_its_resources() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let group = group(&bench, &manager).await;
    let mut runs = Vec::new();
    for name in ["first", "second"] {
        runs.push(service(&bench, &group, name).await);
    }
    for name in ["one", "two"] {
        runs.push(member(&bench, &group, name).await);
    }
    let record = record(&bench, "first");
    assert_eq!(record.settings.network.as_deref(), group.network());
    assert_eq!(record.settings.network_aliases, ["first"]);
    assert_eq!(record.settings.mounts[0].target(), "/work");
    within(20, "the end", group.end()).await.unwrap();
    assert_eq!((resources(&bench).await, files(&bench).len()), (0, 0));
    assert_eq!(bench.runtime.containers(), 0);
    let mut ends = Vec::new();
    for run in &runs {
        let outcome = sealed(run).await;
        assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
        ends.push(seal(&outcome).ts);
    }
    let runs_end = ends[2].max(ends[3]);
    assert!(runs_end < ends[1] && ends[1] < ends[0], "{ends:?}");
}

fn record(bench: &Bench, run: &str) -> RunRecord {
    let runs = bench.view().list().unwrap();
    let found = runs.into_iter().find(|info| info.run.as_str() == run);
    found.unwrap().record.unwrap()
}

#[tokio::test]
async fn a_dropped_group_ends() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let group = group(&bench, &manager).await;
    let run = member(&bench, &group, "one").await;
    tokio::task::spawn_blocking(move || drop(group))
        .await
        .unwrap();
    // The drop has waited for the end.
    assert_eq!((resources(&bench).await, files(&bench).len()), (0, 0));
    let outcome = sealed(&run).await;
    assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
}

#[tokio::test]
async fn no_run_joins_a_group_that_has_ended() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let group = group(&bench, &manager).await;
    let late = group.join(spec());
    group.end().await.unwrap();
    let error = manager.start(late).await.unwrap_err();
    assert!(matches!(error, Error::InvalidSpec(_)), "{error}");
    assert_eq!(manager.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_shutdown_ends_groups_networks_and_volumes() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let group = group(&bench, &manager).await;
    let network = manager.network(NetworkSpec::new()).await.unwrap();
    let volume = manager.volume(VolumeSpec::new()).await.unwrap();
    let run = member(&bench, &group, "one").await;
    let used = spec().network(&network).volume(&volume, "/data");
    let other = bench.start(&manager, endless(), used.stop_grace(Duration::ZERO));
    let other = other.await;
    within(20, "the shutdown", manager.shutdown(ShutdownMode::Stop)).await;
    assert_eq!((resources(&bench).await, files(&bench).len()), (0, 0));
    for run in [run, other] {
        let outcome = sealed(&run).await;
        assert_eq!(seal(&outcome).stopped, Some(StopCause::Shutdown));
    }
    let error = manager.network(NetworkSpec::new()).await.unwrap_err();
    assert!(matches!(error, Error::Closed), "{error}");
}

#[tokio::test]
async fn a_network_is_removed_after_its_last_run() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let network = manager.network(NetworkSpec::new()).await.unwrap();
    let volume = manager.volume(VolumeSpec::new()).await.unwrap();
    let used = spec().network(&network).volume(&volume, "/data");
    let run = bench.start(&manager, endless(), used).await;
    // The drop does not wait, because the run may live for long.
    drop(network);
    let removal = tokio::spawn(volume.remove());
    assert!(run.state().ending().is_none());
    assert_eq!(resources(&bench).await, 2);
    run.kill().await.unwrap();
    within(20, "the removal", removal).await.unwrap().unwrap();
    is_clean(&bench).await;
    assert_eq!(bench.runtime.calls(Call::RemoveResource), 2, "no conflict");
}

#[tokio::test]
async fn the_next_opening_ends_a_group_with_its_runs() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let group = group(&bench, &manager).await;
    let network = manager.network(NetworkSpec::new()).await.unwrap();
    service(&bench, &group, "service").await;
    member(&bench, &group, "one").await;
    let used = named("apart").network(&network);
    bench.start(&manager, endless(), used).await;
    manager.shutdown(ShutdownMode::Leave).await;
    assert_eq!(bench.runtime.containers(), 3);
    assert_eq!(
        resources(&bench).await,
        3,
        "a closed manager removes nothing"
    );
    let again = bench.open().await;
    let recovered = within(20, "recovery", again.wait_recovery()).await;
    assert_eq!(recovered.unwrap().len(), 3);
    // The run outside of the group continues, and so does its network.
    assert_eq!(
        (resources(&bench).await, bench.runtime.containers()),
        (1, 1)
    );
    for name in ["service", "one"] {
        let run = again.get(&name.parse().unwrap()).await.unwrap();
        let outcome = sealed(&run).await;
        assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
    }
    let apart = again.get(&"apart".parse().unwrap()).await.unwrap();
    apart.kill().await.unwrap();
    is_clean(&bench).await;
    // Handles of a manager that is shut down end nothing.
    drop((group, network, manager));
}

#[tokio::test]
async fn a_live_owner_keeps_its_group() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let group = group(&bench, &manager).await;
    let other = bench.open().await;
    other.wait_recovery().await.unwrap();
    let pruned = other.prune(PruneOptions::new()).await.unwrap();
    assert_eq!(pruned.ended_groups, []);
    assert_eq!(resources(&bench).await, 2);
    group.end().await.unwrap();
}

/// The engine creates the network after the manager has given up.
#[tokio::test]
async fn a_late_creation_leaves_nothing() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    bench.runtime.fault(Call::CreateResource, Fault::AnswerLost);
    let error = manager.network(NetworkSpec::new()).await.unwrap_err();
    assert!(matches!(error, Error::Runtime(_)), "{error}");
    is_clean(&bench).await;
    bench.runtime.fault(Call::CreateResource, unavailable());
    let removals = bench.runtime.calls(Call::RemoveResource);
    manager.network(NetworkSpec::new()).await.unwrap_err();
    // It is missing at the first removal, and looked for again.
    eventually(20, "another removal", async || {
        (bench.runtime.calls(Call::RemoveResource) >= removals + 2).then_some(())
    })
    .await;
    let file = &files(&bench)[0];
    let group = file.file_stem().unwrap().to_str().unwrap();
    let (root, labels) = (manager.root().id(), BTreeMap::new());
    let name = root.container_name(&group.parse().unwrap());
    let late = ResourceRequest::new(ResourceKind::Network, &name, root, &labels);
    bench.runtime.create_resource(late).await.unwrap();
    is_clean(&bench).await;
}

#[tokio::test]
async fn a_refused_creation_leaves_nothing() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let refused = RuntimeError::Rejected {
        operation: "create the volume",
        reason: "no space".into(),
    };
    bench
        .runtime
        .fault(Call::CreateResource, Fault::Error(refused));
    let error = manager.group(both()).await.unwrap_err();
    assert!(error.to_string().contains("no space"), "{error}");
    assert_eq!((resources(&bench).await, files(&bench).len()), (0, 0));
}

#[tokio::test]
async fn a_network_is_recorded_before_the_engine_is_asked() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    bench.runtime.fault(Call::CreateResource, Fault::Hang);
    let owner = manager.clone();
    let created = tokio::spawn(async move { owner.network(NetworkSpec::new()).await });
    eventually(20, "the request", async || {
        (bench.runtime.calls(Call::CreateResource) == 1).then_some(())
    })
    .await;
    assert_eq!(files(&bench).len(), 1);
    created.abort();
    assert!(created.await.unwrap_err().is_cancelled());
    // The engine may still create it.
    within(60, "the shutdown", manager.shutdown(ShutdownMode::Stop)).await;
    assert_eq!(files(&bench).len(), 1);
}

/// The engine does not answer about a member.
#[tokio::test(start_paused = true)]
async fn a_stuck_member_does_not_keep_the_others() {
    let bench = Bench::new();
    let builder = bench.builder_here().sink(Memory::new());
    let manager = builder.open().await.unwrap();
    let group = manager.group(both()).await.unwrap();
    let service = service(&bench, &group, "service").await;
    let stuck = member(&bench, &group, "stuck").await;
    bench.runtime.silence_node(stuck.id());
    match group.end().await.unwrap_err() {
        Error::Unanswered { run, .. } => assert_eq!(run, *stuck.id()),
        error => panic!("{error}"),
    }
    assert!(service.state().ending().is_some());
    assert_eq!(files(&bench).len(), 1);
    bench.runtime.restore_node(stuck.id());
    sealed(&stuck).await;
    stuck.wait_removed().await.unwrap();
    let pruned = manager.prune(PruneOptions::new()).await.unwrap();
    assert_eq!(pruned.ended_groups.len(), 1);
}

#[tokio::test]
async fn a_dropped_network_keeps_no_manager_alive() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let network = manager.network(NetworkSpec::new()).await.unwrap();
    let used = named("apart").network(&network);
    let run = bench.start(&manager, endless(), used).await;
    let id = run.id().clone();
    drop((run, network, manager));
    eventually(20, "the release of the run", async || {
        (!bench.view().info(&id).unwrap().owned).then_some(())
    })
    .await;
    let again = bench.open().await;
    again.wait_recovery().await.unwrap();
    assert_eq!(resources(&bench).await, 1);
    again.get(&id).await.unwrap().kill().await.unwrap();
    is_clean(&bench).await;
}

/// A manager that only looks takes no group from the next opening, also without an engine.
#[tokio::test]
async fn a_prune_leaves_groups_to_the_next_opening() {
    let bench = Bench::new();
    bench.runtime.set_engine_id("one");
    let manager = bench.open().await;
    let group = group(&bench, &manager).await;
    manager.shutdown(ShutdownMode::Leave).await;
    let on_demand = || bench.builder_here().recovery(RecoveryMode::OnDemand);
    let other = on_demand().open().await.unwrap();
    bench.runtime.fault(Call::Engine, unavailable());
    let none = within(20, "the prune", other.prune(PruneOptions::new())).await;
    assert_eq!(none.unwrap().ended_groups, []);
    let dry = other
        .prune(PruneOptions::new().dry_run(true))
        .await
        .unwrap();
    assert_eq!(dry.ended_groups, std::slice::from_ref(group.id()));
    let again = bench.open().await;
    again.wait_recovery().await.unwrap();
    assert_eq!((resources(&bench).await, files(&bench).len()), (0, 0));
    let error = group.end().await.unwrap_err();
    assert!(matches!(error, Error::Closed), "{error}");
}

#[tokio::test]
async fn the_engine_is_asked_again_if_it_does_not_answer() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let network = manager.network(NetworkSpec::new()).await.unwrap();
    for _ in 0..3 {
        bench.runtime.fault(Call::RemoveResource, unavailable());
    }
    within(20, "the removal", network.remove()).await.unwrap();
    assert_eq!((resources(&bench).await, files(&bench).len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_kept_container_keeps_its_volume_until_a_prune() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let group = group(&bench, &manager).await;
    let id = group.id().clone();
    bench.runtime.next(Script::new());
    let kept = spec().keep(KeepContainer::Always);
    let run = group.start(kept).await.unwrap();
    sealed(&run).await;
    let error = group.end().await.unwrap_err();
    assert!(
        matches!(&error, Error::Runtime(RuntimeError::Conflict { .. })),
        "{error}"
    );
    assert_eq!((resources(&bench).await, files(&bench).len()), (1, 1));
    run.remove_container().await.unwrap();
    let dry = manager.prune(PruneOptions::new().dry_run(true)).await;
    assert_eq!(dry.unwrap().ended_groups, std::slice::from_ref(&id));
    assert_eq!(resources(&bench).await, 1);
    let pruned = manager.prune(PruneOptions::new()).await.unwrap();
    assert_eq!(pruned.ended_groups, [id]);
    assert_eq!((resources(&bench).await, files(&bench).len()), (0, 0));
}

#[tokio::test]
async fn a_resource_without_a_file_is_an_orphan() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let volume = manager.volume(VolumeSpec::new()).await.unwrap();
    let name = volume.name().to_owned();
    assert_eq!(manager.orphans().await.unwrap(), []);
    let file = &files(&bench)[0];
    let record = std::fs::read(file).unwrap();
    std::fs::write(file, "{\"v\":1,").unwrap();
    assert_eq!(manager.orphans().await.unwrap().len(), 1, "it is damaged");
    std::fs::remove_file(file).unwrap();
    let orphans = manager.orphans().await.unwrap();
    // A directory that cannot be read makes no orphans.
    let dir = file.parent().unwrap();
    std::fs::remove_dir(dir).unwrap();
    std::fs::write(dir, "").unwrap();
    let error = manager.orphans().await.unwrap_err();
    assert!(matches!(error, Error::Storage { .. }), "{error}");
    std::fs::remove_file(dir).unwrap();
    std::fs::create_dir(dir).unwrap();
    // The owner may have been restored since.
    std::fs::write(file, &record).unwrap();
    let refused = manager.remove_orphan(&orphans[0]).await.unwrap_err();
    assert!(refused.to_string().contains("has a file"), "{refused}");
    std::fs::remove_file(file).unwrap();
    let [Orphan::Resource(orphan)] = &orphans[..] else {
        panic!("{orphans:?}");
    };
    assert_eq!((orphan.kind, &orphan.name), (ResourceKind::Volume, &name));
    manager.remove_orphan(&orphans[0]).await.unwrap();
    manager.remove_orphan(&orphans[0]).await.unwrap();
    assert_eq!(resources(&bench).await, 0);
    volume.remove().await.unwrap();
}

#[tokio::test]
async fn only_expired_resources_of_other_roots_are_reaped() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let kept = manager.network(NetworkSpec::new()).await.unwrap();
    let expired = NetworkSpec::new().expires_after(Duration::ZERO);
    let expired = manager.network(expired).await.unwrap();
    let hasty = ReapOptions::new().remove_after(Duration::ZERO);
    // The margin is at least a minute.
    assert!(hasty.run(&bench.runtime, None).await.unwrap().is_empty());
    bench.runtime.advance_deadlines(Duration::from_secs(120));
    let own = Some(manager.root().id());
    assert!(hasty.run(&bench.runtime, own).await.unwrap().is_empty());
    let used = spec().network(&expired);
    let run = bench.start(&manager, endless(), used).await;
    let reaped = hasty.run(&bench.runtime, None).await.unwrap();
    assert!(matches!(reaped.resources[0].action, ReapAction::Failed(_)));
    run.kill().await.unwrap();
    let dry = hasty.dry_run(true).run(&bench.runtime, None).await.unwrap();
    assert_eq!(dry.resources.len(), 1);
    assert_eq!(resources(&bench).await, 2);
    let reaped = hasty.run(&bench.runtime, None).await.unwrap();
    assert_eq!(reaped.resources[0].resource.name, expired.name());
    assert!(matches!(reaped.resources[0].action, ReapAction::Removed));
    assert_eq!(resources(&bench).await, 1);
    // One that is gone is no error.
    expired.remove().await.unwrap();
    kept.remove().await.unwrap();
}

#[tokio::test]
async fn an_invalid_group_creates_nothing() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let relative = GroupSpec::new().volume(VolumeSpec::new(), "work");
    let label = GroupSpec::new().network(NetworkSpec::new().label("moat.root", "x"));
    for (spec, field) in [(relative, "volume"), (label, "labels")] {
        match manager.group(spec).await.unwrap_err() {
            Error::InvalidSpec(invalid) => assert_eq!(invalid.field, field),
            error => panic!("{error}"),
        }
    }
    assert_eq!((resources(&bench).await, files(&bench).len()), (0, 0));
    let group = group(&bench, &manager).await;
    let spec = group.join(spec().stop_grace(Duration::MAX));
    assert!(manager.start(spec).await.is_err());
    group.end().await.unwrap();
}

#[cfg(feature = "process")]
#[tokio::test]
async fn local_processes_have_no_networks() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let manager = Manager::open(&root, moat::LocalProcess::new())
        .await
        .unwrap();
    let error = manager.network(NetworkSpec::new()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Runtime(RuntimeError::Unsupported { .. })),
        "{error}"
    );
    // A group without a network still ends its runs.
    let group = manager.group(GroupSpec::new()).await.unwrap();
    let run = group
        .start(RunSpec::command(["sleep", "600"]))
        .await
        .unwrap();
    within(60, "the end", group.end()).await.unwrap();
    assert!(sealed(&run).await.sealed().is_some());
}
