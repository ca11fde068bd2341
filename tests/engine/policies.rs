//! What stays and what goes, and what must never be written anywhere.

use std::path::{Path, PathBuf};

use bollard::query_parameters::ListVolumesOptions;
use futures::TryStreamExt;
use moat::spec::{KeepContainer, LimitAction, Mount};
use moat::{Docker, Error, Manager, RunId};
use serde_json::json;

use crate::stage::{Stage, assert_bytes, assert_complete, end, printed, read};
use crate::support::deadline::eventually;
use crate::support::sequence;

/// The daemon's own defaults can rotate a container's output away, and are merged in.
pub async fn the_engine_keeps_every_byte_by_our_own_log_settings(stage: &Stage) {
    let (outcome, audit) = stage
        .run(stage.spec("echo x").keep(KeepContainer::Always))
        .await;
    assert!(outcome.success());
    let container = stage.containers().await.remove(0);
    let found = stage
        .docker
        .inspect_container(&container, None)
        .await
        .unwrap();
    let host = found.host_config.unwrap();
    let log = host.log_config.unwrap();
    assert_eq!(log.typ.as_deref(), Some("json-file"));
    let options = log.config.unwrap();
    assert_eq!(options["mode"], "blocking");
    assert_eq!(options["max-file"], "1");
    assert!(!options["max-size"].is_empty() && options["max-size"] != "-1");
    assert_eq!(host.auto_remove, Some(false));
    assert_eq!(
        audit.all("started")[0]["log"]["options"]["mode"],
        "blocking"
    );
}

pub async fn a_container_is_removed_after_its_seal(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("lines 10 + exit 1")).await;
    assert_complete(&audit);
    stage.is_clean().await;
}

pub async fn a_container_is_kept_when_asked_for_and_removed_with_its_run(stage: &Stage) {
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

pub async fn a_failed_run_can_keep_its_container(stage: &Stage) {
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

pub async fn a_container_is_kept_when_its_audit_has_a_gap(stage: &Stage) {
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

pub async fn anonymous_volumes_are_removed_with_the_container(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage
        .gated("write /scratch/file data + echo written + await /gate/go")
        .engine_patch(json!({"Volumes": {"/scratch": {}}}));
    let run = manager.start(spec).await.unwrap();
    printed(&run, "written\n").await;
    let container = stage.containers().await.remove(0);
    let found = stage
        .docker
        .inspect_container(&container, None)
        .await
        .unwrap();
    let volume = found
        .mounts
        .unwrap()
        .into_iter()
        .find_map(|mount| mount.name)
        .unwrap();
    stage.open_gate("go");
    end(&run).await;
    stage.is_clean().await;
    // They go behind the container.
    eventually(60, "the removal of the volume", async || {
        let found = stage.docker.list_volumes(None::<ListVolumesOptions>).await;
        let mut volumes = found.unwrap().volumes.unwrap_or_default().into_iter();
        (!volumes.any(|found| found.name == volume)).then_some(())
    })
    .await;
}

pub async fn files_can_be_copied_out_of_a_kept_container(stage: &Stage) {
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

pub async fn a_taken_run_id_is_refused_and_the_first_run_untouched(stage: &Stage) {
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

/// Also for root, whom permissions do not stop.
pub async fn an_unwritable_root_is_an_error_that_names_the_path(stage: &Stage) {
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

const SECRET: &str = "s3cr3t-value-of-a-token";

/// Asserts that no file below `folder` holds the secret.
fn assert_no_secret(dir: &Path) {
    let mut files = 0;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            files += 1;
            let bytes = std::fs::read(&path).unwrap();
            let found = String::from_utf8_lossy(&bytes).contains(SECRET);
            assert!(!found, "{} holds the secret", path.display());
        }
    }
    assert!(files > 1, "there is nothing to look at");
}

/// Invariant 11. What the container itself prints is recorded: this one prints no value.
pub async fn secrets_are_in_no_file_of_the_root(stage: &Stage) {
    let spec = stage
        .spec("stat /proc/self/environ")
        .env("TOKEN", SECRET)
        .engine_patch(json!({"Labels": {"hidden": SECRET}}));
    let (outcome, _) = stage.run(spec).await;
    assert!(outcome.success(), "{outcome}");
    // An engine repeats a variable without a name in its refusal, value and all.
    let manager = stage.manager().await;
    let spec = stage
        .spec("exit 0")
        .engine_patch(json!({"Env": [format!("={SECRET}")]}));
    let error = manager.start(spec).await.unwrap_err();
    let text = format!("{} {error:?}", error.chain());
    assert!(!text.contains(SECRET), "{text}");
    assert_no_secret(&stage.root());
}

pub async fn a_bad_variable_is_refused_before_the_engine_can_echo_it(stage: &Stage) {
    let manager = stage.manager().await;
    for name in ["", "A=B", "NUL\0"] {
        let error = manager
            .start(stage.spec("exit 0").env(name, SECRET))
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::InvalidSpec(moat::spec::InvalidSpec { field, .. }) if field == "env")
        );
        assert!(!format!("{} {error:?}", error.chain()).contains(SECRET));
    }
    assert!(
        manager.list().await.unwrap().is_empty(),
        "something was made for it"
    );
    let run = manager
        .start(stage.spec("exit 0").env("GOOD", SECRET))
        .await
        .unwrap();
    end(&run).await;
    assert_no_secret(&stage.root());
}

pub async fn the_settings_reach_the_container(stage: &Stage) {
    let host = stage.dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "from the host\n").unwrap();
    let spec = stage
        .spec(
            "env GREETING + pwd + whoami + read /data/file + read /proc/sys/kernel/hostname \
             + write /memory/file x + stat /memory/file + exit 0",
        )
        .env("GREETING", "hello = world")
        .workdir("/work")
        .user("1000:1001")
        .hostname("moored")
        .mount(Mount::Bind {
            source: host,
            target: "/data".into(),
            read_only: true,
        })
        .tmpfs("/memory", Some(1 << 20))
        .memory(64 << 20)
        .pids_limit(50)
        .cap_drop("ALL")
        .read_only(true)
        .label("team", "blue")
        .keep(KeepContainer::Always);
    let (outcome, audit) = stage.run(spec).await;
    assert!(outcome.success(), "{outcome}\n{:?}", outcome.last_lines);
    let expected = "hello = world\n/work\n1000:1001\nfrom the host\nmoored\n100644 1 bytes\n";
    assert_bytes(audit.stream("stdout"), expected.as_bytes());
    let container = stage.containers().await.remove(0);
    let found = stage
        .docker
        .inspect_container(&container, None)
        .await
        .unwrap();
    let host = found.host_config.unwrap();
    assert_eq!(host.memory, Some(64 << 20));
    assert_eq!(host.pids_limit, Some(50));
    assert_eq!(found.config.unwrap().labels.unwrap()["team"], "blue");
    // Two roots never collide, whatever their runs are called.
    let name = found.name.unwrap();
    assert!(
        name.starts_with("/moat-") && name.ends_with(outcome.run.as_str()),
        "{name}"
    );
    let other = stage.dir.path().join("other");
    let docker = Docker::connect().await.unwrap();
    let manager = Manager::open(other, docker).await.unwrap();
    let run = manager
        .start(stage.spec("lines 1").id(outcome.run))
        .await
        .unwrap();
    let audit = read(&end(&run).await);
    sequence::check(audit.stream("stdout"), "out", 1, 64).unwrap();
}
