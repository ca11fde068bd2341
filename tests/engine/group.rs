//! Networks and volumes that a manager owns, and groups, also of a process that is killed.

use std::ops::AddAssign;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use moat::audit::{LogState, verify};
use moat::manager::Group;
use moat::runtime::{Runtime, RuntimeError};
use moat::spec::{GroupSpec, NetworkSpec, VolumeSpec};
use moat::{Docker, Error, Manager, Ready, Run, RunSpec, ShutdownMode};
use testkit::child::{self, Process};
use testkit::crash::number;
use testkit::deadline::{eventually, within};
use testkit::engine::{self, block_on};
use testkit::harness::{Failed, Trial};

use crate::stage::{Stage, end, read};

/// The role of this process as the owner of groups.
const ROLE: &str = "group";
/// A fixed seed, so that the kills in CI have the same course each time.
const SEED: u64 = 20_261_128;
const KILLS: u64 = 8;
const SOAK_KILLS: u64 = 50;
/// The number of processes that are killed at a time.
const AT_ONCE: u64 = 2;
/// The longest life of a killed process, in milliseconds. A group ends once in that time, and another
/// begins.
const LIFE_MS: std::ops::Range<u64> = 0..6_000;

testkit::trials! {
    crate::on_busybox:
        runs_of_a_group_share_names_and_files,
        a_network_is_removed_after_its_last_run,
        a_shutdown_removes_networks_and_volumes;
    on_any_engine:
        a_kill_at_any_moment_leaves_nothing;
    in_the_long_form:
        kills_at_many_moments_leave_nothing,
}

fn on_any_engine(name: &str, trial: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    Trial::new(name, trial).needs(engine::need())
}

fn in_the_long_form(
    name: &str,
    trial: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    let is_long = Err("the long form runs with `--include-ignored`".into());
    on_any_engine(name, trial).needs(&is_long)
}

fn both() -> GroupSpec {
    GroupSpec::new()
        .network(NetworkSpec::new())
        .volume(VolumeSpec::new(), "/work")
}

/// Returns the names of the networks and volumes of the root.
async fn resources(root: &Path) -> Vec<String> {
    let root = engine::root_id(root).expect("the root has an id");
    let docker = Docker::connect().await.unwrap();
    let found = docker.find_resources().await.unwrap().into_iter();
    let found = found.filter(|found| found.root.as_str() == root);
    found.map(|found| found.name).collect()
}

fn shell(stage: &Stage, script: &str) -> RunSpec {
    let spec = RunSpec::new(&stage.image).cmd(["sh", "-c", script]);
    spec.init(true).stop_grace(Duration::from_secs(1))
}

async fn runs_of_a_group_share_names_and_files(stage: &Stage) {
    let manager = stage.manager().await;
    let group = manager.group(both()).await.unwrap();
    assert_eq!(resources(&stage.root()).await.len(), 2);
    let server = "echo shared > /work/page; echo serving; exec httpd -f -p 8080 -h /work";
    let server = shell(stage, server);
    let web = group.service("web", server, [Ready::line("serving")]).await;
    let web = web.unwrap();
    let client = "until wget -q -O - http://web:8080/page; do sleep 0.1; done; cat /work/page";
    let client = group.start(shell(stage, client)).await.unwrap();
    let outcome = end(&client).await;
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    let output = read(&outcome).stream("stdout").to_vec();
    assert_eq!(String::from_utf8_lossy(&output), "shared\nshared\n");
    assert!(web.state().ending().is_none());
    within(90, "the end of the group", group.end())
        .await
        .unwrap();
    assert!(end(&web).await.sealed().is_some());
    assert_eq!(resources(&stage.root()).await, [""; 0]);
    assert!(stage.containers().await.is_empty());
}

async fn a_network_is_removed_after_its_last_run(stage: &Stage) {
    let manager = stage.manager().await;
    let network = manager.network(NetworkSpec::new().internal(true)).await;
    let volume = manager
        .volume(VolumeSpec::new().label("by", "a test"))
        .await;
    let (network, volume) = (network.unwrap(), volume.unwrap());
    let spec = shell(stage, "echo ready; sleep 600");
    let spec = spec.network(&network).volume(&volume, "/data");
    let run = manager.start(spec).await.unwrap();
    run.wait_ready(Ready::line("ready")).await.unwrap();
    // The engine protects what a container uses, even from a manager that does not know the run.
    let docker = Docker::connect().await.unwrap();
    let all = docker.find_resources().await.unwrap();
    let names = [network.name().to_owned(), volume.name().to_owned()];
    let own: Vec<_> = all
        .iter()
        .filter(|found| names.contains(&found.name))
        .collect();
    assert_eq!(own.len(), 2);
    for found in own {
        let refused = docker.remove_resource(found.kind, &found.name).await;
        assert!(
            matches!(refused, Err(RuntimeError::Conflict { .. })),
            "{refused:?}"
        );
    }
    drop(network);
    let removal = tokio::spawn(volume.remove());
    run.kill().await.unwrap();
    within(90, "the removal", removal).await.unwrap().unwrap();
    eventually(90, "the removal of the network", async || {
        resources(&stage.root()).await.is_empty().then_some(())
    })
    .await;
}

async fn a_shutdown_removes_networks_and_volumes(stage: &Stage) {
    let manager = stage.manager().await;
    let group = manager.group(both()).await.unwrap();
    let service = shell(stage, "echo ready; sleep 600");
    let service = group.service("one", service, [Ready::line("ready")]).await;
    let service = service.unwrap();
    within(90, "the shutdown", manager.shutdown(ShutdownMode::Stop)).await;
    assert_eq!(resources(&stage.root()).await, [""; 0]);
    assert!(end(&service).await.sealed().is_some());
    let error = group.start(shell(stage, "true")).await.unwrap_err();
    assert!(matches!(error, Error::Closed), "{error}");
}

/// The orders of a process that owns groups.
#[derive(serde::Serialize, serde::Deserialize)]
struct Orders {
    root: String,
    image: String,
}

/// Plays the owner of groups if this process is one. It runs until it is killed.
pub fn role() -> Option<()> {
    let orders: Orders = child::orders(ROLE)?;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async move {
        let docker = Docker::connect().await.unwrap();
        let manager = Manager::open(&orders.root, docker).await.unwrap();
        loop {
            let group = manager.group(both()).await.unwrap();
            live(&group, &orders.image).await;
            group.end().await.unwrap();
        }
    });
    Some(())
}

/// Two services and three parallel runs.
async fn live(group: &Group, image: &str) {
    let spec = |steps: &str| RunSpec::new(image).cmd(steps.split(' '));
    let service = || spec("on-term 0 + echo ready + hold").stop_grace(Duration::from_secs(1));
    for name in ["first", "second"] {
        let ready = [Ready::line("ready")];
        group.service(name, service(), ready).await.unwrap();
    }
    let run = || group.start(spec("lines 200 + sleep 0.5 + lines 200"));
    let (one, two, three) = tokio::join!(run(), run(), run());
    for run in [one, two, three] {
        let run: Run = run.unwrap();
        run.wait().await.unwrap();
    }
}

fn a_kill_at_any_moment_leaves_nothing() -> Result<(), Failed> {
    kill(KILLS)
}

fn kills_at_many_moments_leave_nothing() -> Result<(), Failed> {
    kill(number("MOAT_KILLS", SOAK_KILLS)?)
}

/// Kills owners of groups at random moments, and reopens their roots.
fn kill(times: u64) -> Result<(), Failed> {
    let seed = number("MOAT_SEED", SEED)?;
    let failures = Mutex::new(Vec::new());
    let found = Mutex::new(Found::default());
    thread::scope(|scope| {
        for lane in 0..AT_ONCE {
            let (failures, found) = (&failures, &found);
            scope.spawn(move || {
                for round in (lane..times).step_by(AT_ONCE as usize) {
                    let life = fastrand::Rng::with_seed(seed + round).u64(LIFE_MS);
                    match block_on(kill_after(Duration::from_millis(life))) {
                        Ok(left) => *found.lock().unwrap() += left,
                        Err(error) => failures
                            .lock()
                            .unwrap()
                            .push(format!("after {life} ms: {error}")),
                    }
                }
            });
        }
    });
    let (failures, found) = (failures.into_inner().unwrap(), found.into_inner().unwrap());
    println!("{times} kills: {found:?}");
    if !failures.is_empty() {
        return Err(failures.join("; ").into());
    }
    // Otherwise the kills were too early or too late to mean anything.
    match found.resources > 0 && found.containers > 0 {
        true => Ok(()),
        false => Err("no kill left a resource and a container".into()),
    }
}

/// What killed processes have left on the engine, and the runs that were sealed after that.
#[derive(Debug, Default)]
struct Found {
    containers: usize,
    resources: usize,
    runs: usize,
}

impl AddAssign for Found {
    fn add_assign(&mut self, other: Self) {
        self.containers += other.containers;
        self.resources += other.resources;
        self.runs += other.runs;
    }
}

/// Returns the containers, and the networks and volumes, that are left after a recovery.
///
/// An engine may create a container late, for the request of the killed process.
async fn left(stage: &Stage) -> (Vec<String>, Vec<String>) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let left = (stage.containers().await, resources(&stage.root()).await);
        if (left.0.is_empty() && left.1.is_empty()) || Instant::now() > deadline {
            return left;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn kill_after(life: Duration) -> Result<Found, String> {
    let stage = Stage::new().await;
    let root = stage.root();
    let orders = Orders {
        root: root.to_str().unwrap().to_owned(),
        image: stage.image.clone(),
    };
    // Its root exists, so that a kill before its first step leaves one, too.
    stage.manager().await.shutdown(ShutdownMode::Stop).await;
    let owner = Process::start(ROLE, &orders);
    // The moment of the kill is the point of this trial.
    tokio::time::sleep(life).await;
    owner.kill();
    let found = Found {
        containers: stage.containers().await.len(),
        resources: resources(&root).await.len(),
        runs: 0,
    };
    let manager = stage.manager().await;
    let recovery = manager.wait_recovery();
    let recovered = tokio::time::timeout(Duration::from_secs(120), recovery).await;
    recovered
        .map_err(|_| "the recovery takes over 120 s")?
        .map_err(|error| error.chain())?;
    let (containers, networks) = left(&stage).await;
    if !containers.is_empty() || !networks.is_empty() {
        let mut states = Vec::new();
        for container in &containers {
            let found = stage.inspect(container).await;
            states.push(format!("{}: {}", found["Name"], found["State"]));
        }
        return Err(format!("left: {states:?}, {networks:?}"));
    }
    let runs = manager.list().await.map_err(|error| error.chain())?;
    for run in &runs {
        let state = verify(manager.root().audit(&run.run)).unwrap().state;
        if !matches!(state, LogState::Sealed(_)) {
            return Err(format!("run {} is not sealed: {state:?}", run.run));
        }
    }
    manager.shutdown(ShutdownMode::Stop).await;
    Ok(Found {
        runs: runs.len(),
        ..found
    })
}
