//! Starts of runs, and failed starts.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moat::runtime::RuntimeError;
use moat::spec::Pull;
use moat::state::RunStatus;
use moat::{Docker, Ending, Error, Manager, RunId, RunSpec, ShutdownMode};

use testkit::deadline::eventually;
use testkit::proxy::{Fault, Proxy};

use crate::evidence::behind_proxy;
use crate::stage::{Stage, assert_bytes, assert_complete, end, read};

testkit::trials! {
    crate::on_engine:
        a_missing_image_leaves_a_sealed_audit,
        a_missing_command_leaves_no_container,
        a_taken_run_id_is_refused,
        an_unwritable_root_is_an_error_with_its_path,
        the_audit_file_comes_before_the_container,
        a_slow_create_passes_with_a_longer_timeout,
        a_slow_create_fails_with_a_shorter_timeout,
}

async fn a_missing_image_leaves_a_sealed_audit(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = RunSpec::new("moat-test-nothing:here").pull(Pull::Never);
    let Err(Error::NotStarted { outcome, source }) = manager.start(spec).await else {
        panic!("a run without an image started");
    };
    assert!(
        matches!(source, RuntimeError::NoSuchImage { .. }),
        "{source}"
    );
    assert!(source.to_string().contains("moat-test-nothing:here"));
    assert!(matches!(
        outcome.ending,
        Ending::NotCreated { aborted: false, .. }
    ));
    let audit = read(&outcome);
    assert_eq!(audit.evidence(), "never_started");
    assert!(audit.streams.is_empty());
    assert!(stage.containers().await.is_empty());
    assert_eq!(
        manager.list().await.unwrap()[0].status,
        RunStatus::NotCreated
    );
}

/// Waiting for the next exit of a container that cannot start never returns.
async fn a_missing_command_leaves_no_container(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage.spec("exit 0").entrypoint(["/nonexistent"]);
    let Err(Error::NotStarted { outcome, source }) = manager.start(spec).await else {
        panic!("a run without a command started");
    };
    assert!(source.to_string().contains("/nonexistent"), "{source}");
    assert!(matches!(outcome.ending, Ending::FailedToStart { .. }));
    assert_eq!(read(&outcome).evidence(), "never_started");
    stage.is_clean().await;
}

async fn a_taken_run_id_is_refused(stage: &Stage) {
    let manager = stage.manager().await;
    let id = RunId::new("twice").unwrap();
    let first = manager
        .start(stage.spec("echo first").id(id.clone()))
        .await
        .unwrap();
    end(&first).await;
    let before = std::fs::read(first.audit().unwrap()).unwrap();
    let error = manager
        .start(stage.spec("echo second").id(id.clone()))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::RunExists { run, .. } if *run == id),
        "{error}"
    );
    assert_bytes(&std::fs::read(first.audit().unwrap()).unwrap(), &before);
    stage.is_clean().await;
}

/// Also for root, which ignores permissions.
async fn an_unwritable_root_is_an_error_with_its_path(stage: &Stage) {
    let file = stage.dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for root in [file.join("root"), PathBuf::from("/proc/moat-root")] {
        let docker = Docker::connect().await.unwrap();
        let error = Manager::open(&root, docker).await.unwrap_err();
        assert!(matches!(error, Error::Storage { .. }), "{error}");
        let text = error.chain();
        let named = root.parent().unwrap().to_str().unwrap();
        assert!(text.contains(named), "{text}");
    }
}

/// Invariant 1.
async fn the_audit_file_comes_before_the_container(stage: &Stage) {
    let (proxy, manager) = behind_proxy(stage).await;
    let id = RunId::generate();
    let dir = stage.root().join(id.as_str());
    let found = Arc::new(Mutex::new(Vec::new()));
    let seen = found.clone();
    proxy.before("create", move || {
        let audit = std::fs::read_to_string(dir.join("logs.jsonl")).unwrap_or_default();
        let run = dir.join("run.json").exists();
        seen.lock().unwrap().push((audit, run));
    });
    let run = manager.start(stage.spec("exit 0").id(id)).await.unwrap();
    assert_complete(&read(&end(&run).await));
    let found = found.lock().unwrap();
    let (audit, has_run) = &found[0];
    assert!(audit.starts_with(r#"{"type":"start","v":1,"#), "{audit:?}");
    assert!(audit.ends_with("}\n"), "{audit:?}");
    assert!(has_run);
}

/// A manager whose calls have this timeout, and whose creates reach the engine 3 s late.
async fn with_slow_creates(stage: &Stage, timeout: Duration) -> (Proxy, Manager) {
    let proxy = Proxy::listen(stage.dir.path()).unwrap();
    let docker = Docker::connect_to(&proxy.address()).await.unwrap();
    let docker = docker.with_timeout(timeout).unwrap();
    let manager = Manager::open(stage.root(), docker).await.unwrap();
    proxy.fault("create", Fault::Late(Duration::from_secs(3)));
    (proxy, manager)
}

async fn a_slow_create_passes_with_a_longer_timeout(stage: &Stage) {
    let (proxy, manager) = with_slow_creates(stage, Duration::from_secs(60)).await;
    let run = manager.start(stage.spec("lines 10")).await.unwrap();
    assert_complete(&read(&end(&run).await));
    let create = &proxy.seen("create")[0];
    let took = create.answered.unwrap() - create.asked;
    assert!(took >= Duration::from_secs(3), "{took:?}");
    stage.is_clean().await;
}

/// The engine creates the container after the start has failed. The next opening removes it.
async fn a_slow_create_fails_with_a_shorter_timeout(stage: &Stage) {
    let limit = Duration::from_secs(1);
    let (proxy, manager) = with_slow_creates(stage, limit).await;
    let Err(Error::NotStarted { outcome, source }) = manager.start(stage.spec("exit 0")).await
    else {
        panic!("a run with a create of 3 s started");
    };
    assert!(
        matches!(source, RuntimeError::Timeout { after, .. } if after == limit),
        "{source}"
    );
    assert!(
        matches!(outcome.ending, Ending::NotCreated { .. }),
        "{outcome}"
    );
    assert_eq!(read(&outcome).evidence(), "never_started");
    eventually(60, "the late create", async || {
        proxy.seen("create")[0].answered.map(drop)
    })
    .await;
    assert_eq!(stage.containers().await.len(), 1);
    manager.shutdown(ShutdownMode::Leave).await;
    stage.manager().await.wait_recovery().await.unwrap();
    stage.is_clean().await;
}
