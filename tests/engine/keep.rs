//! Containers that are kept, and removed.

use std::path::Path;
use std::sync::{Arc, Mutex};

use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::ListVolumesOptions;
use futures::TryStreamExt;
use moat::spec::{KeepContainer, LimitAction};
use moat::{Error, RunId};
use serde_json::json;
use testkit::deadline::{eventually, within};

use crate::evidence::behind_proxy;
use crate::stage::{Stage, assert_complete, end, printed, read, seal};

testkit::trials! {
    crate::on_engine:
        a_sealed_run_has_no_container,
        a_kept_container_is_removed_with_its_run,
        a_failed_run_can_keep_its_container,
        a_gap_keeps_the_container,
        anonymous_volumes_go_with_the_container,
        files_can_be_copied_out_of_a_kept_container,
        a_network_can_go_once_its_run_is_removed,
        the_seal_comes_before_the_removal,
}

async fn a_sealed_run_has_no_container(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("lines 10 + exit 1")).await;
    assert_complete(&audit);
    stage.is_clean().await;
}

async fn a_kept_container_is_removed_with_its_run(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage.spec("echo x").keep(KeepContainer::Always);
    let run = manager.start(spec).await.unwrap();
    let id = run.id().clone();
    let removed_early = manager.remove(&id).await;
    if let Err(error) = &removed_early {
        assert!(matches!(error, Error::NotSealed { .. }), "{error}");
        end(&run).await;
        assert_eq!(stage.containers().await.len(), 1);
        drop(run);
        manager.remove(&id).await.unwrap();
    }
    stage.is_clean().await;
    assert!(!stage.root().join(id.as_str()).exists());
    assert!(matches!(
        manager.get(&id).await,
        Err(Error::NoSuchRun { .. })
    ));
}

async fn a_failed_run_can_keep_its_container(stage: &Stage) {
    let keep = |steps: &str| stage.spec(steps).keep(KeepContainer::OnFailure);
    let manager = stage.manager().await;
    let run = manager.start(keep("exit 1")).await.unwrap();
    end(&run).await;
    let run = manager.start(keep("exit 0")).await.unwrap();
    end(&run).await;
    eventually(90, "the removal of one container", async || {
        (stage.containers().await.len() == 1).then_some(())
    })
    .await;
}

async fn a_gap_keeps_the_container(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage
        .spec("lines 100")
        .output_limit(1000, LimitAction::Drop);
    let run = manager.start(spec).await.unwrap();
    let audit = read(&end(&run).await);
    assert_eq!(audit.verdict(), "gap");
    manager.shutdown(moat::ShutdownMode::Leave).await;
    assert_eq!(stage.containers().await.len(), 1);
}

async fn anonymous_volumes_go_with_the_container(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage
        .gated("write /scratch/file data + echo written + await /gate/go")
        .engine_patch(json!({"Volumes": {"/scratch": {}}}));
    let run = manager.start(spec).await.unwrap();
    printed(&run, "written\n").await;
    let container = stage.containers().await.remove(0);
    let found = stage.inspect(&container).await;
    let mut mounts = found["Mounts"].as_array().unwrap().iter();
    let volume = mounts.find_map(|mount| mount["Name"].as_str()).unwrap();
    stage.open_gate("go");
    end(&run).await;
    stage.is_clean().await;
    // Volumes are removed after the container.
    eventually(60, "the removal of the volume", async || {
        let found = stage.docker.list_volumes(None::<ListVolumesOptions>).await;
        let mut volumes = found.unwrap().volumes.unwrap_or_default().into_iter();
        (!volumes.any(|found| found.name == volume)).then_some(())
    })
    .await;
}

async fn files_can_be_copied_out_of_a_kept_container(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage
        .spec("write /work/report.txt passed + exit 1")
        .keep(KeepContainer::OnFailure);
    let run = manager.start(spec).await.unwrap();
    end(&run).await;
    let archive = run.copy_out("/work/report.txt").await.unwrap();
    let chunks: Vec<bytes::Bytes> = archive.try_collect().await.unwrap();
    let bytes = chunks.concat();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.path().unwrap().as_ref(), Path::new("report.txt"));
    let mut content = String::new();
    std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
    assert_eq!(content, "passed");
}

async fn a_network_can_go_once_its_run_is_removed(stage: &Stage) {
    let manager = stage.manager().await;
    let name = format!("moat-test-{}", RunId::generate());
    for round in 0..3 {
        let request = NetworkCreateRequest {
            name: name.clone(),
            ..Default::default()
        };
        stage.docker.create_network(request).await.unwrap();
        let spec = stage.spec("lines 10").network(&name);
        let started = manager.start(spec).await;
        let removed = match &started {
            Ok(run) => within(120, "the removal", run.wait_removed()).await,
            Err(_) => Ok(true),
        };
        let result = stage.docker.remove_network(&name).await;
        assert!(removed.unwrap(), "round {round}");
        started.unwrap();
        result.unwrap();
    }
}

/// Invariant 3.
async fn the_seal_comes_before_the_removal(stage: &Stage) {
    let (proxy, manager) = behind_proxy(stage).await;
    let id = RunId::generate();
    let path = stage.root().join(id.as_str()).join("logs.jsonl");
    let found = Arc::new(Mutex::new(Vec::new()));
    let seen = found.clone();
    proxy.before("DELETE", move || {
        let audit = std::fs::read_to_string(&path).unwrap_or_default();
        let last = audit.lines().last().unwrap_or_default().to_owned();
        seen.lock().unwrap().push(last);
    });
    let run = manager.start(stage.spec("lines 100").id(id)).await.unwrap();
    seal(&end(&run).await);
    stage.is_clean().await;
    let found = found.lock().unwrap();
    assert!(!found.is_empty());
    assert!(
        found.iter().all(|last| last.contains(r#""type":"end""#)),
        "{found:?}"
    );
}
