//! Secrets stay out of the files of a root.

use std::path::Path;

use moat::{Docker, Error, Manager, RunId, ShutdownMode};
use serde_json::{Value, json};
use testkit::deadline::{eventually, within};

use crate::embedder::Embedder;
use crate::stage::{Stage, Watched, assert_bytes, assert_complete, end, printed, read};

testkit::trials! {
    crate::on_engine:
        no_file_of_the_root_has_a_secret,
        a_bad_variable_never_reaches_the_engine,
        a_secret_file_is_there_before_the_command,
        an_unknown_owner_of_a_secret_file_is_an_error,
        a_masked_secret_reaches_no_reader,
        a_masked_secret_survives_no_kill,
}

const SECRET: &str = "s3cr3t-value-of-a-token";

/// Asserts that no file under the directory has the secret.
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

/// Invariant 11. Output of the container is recorded; this one prints no value.
async fn no_file_of_the_root_has_a_secret(stage: &Stage) {
    let spec = stage
        .spec("stat /proc/self/environ")
        .env("TOKEN", SECRET)
        .engine_patch(json!({"Labels": {"hidden": SECRET}}));
    let (outcome, _) = stage.run(spec).await;
    assert!(outcome.success(), "{outcome}");
    // An engine repeats a variable without a name in its error, with its value.
    let manager = stage.manager().await;
    let spec = stage
        .spec("exit 0")
        .engine_patch(json!({"Env": [format!("={SECRET}")]}));
    let error = manager.start(spec).await.unwrap_err();
    let text = format!("{} {error:?}", error.chain());
    assert!(!text.contains(SECRET), "{text}");
    assert_no_secret(&stage.root());
}

async fn a_bad_variable_never_reaches_the_engine(stage: &Stage) {
    let manager = stage.manager().await;
    for name in ["", "A=B", "NUL\0"] {
        let error = manager
            .start(stage.spec("exit 0").env(name, SECRET))
            .await
            .unwrap_err();
        assert!(matches!(&error, Error::InvalidSpec(refused) if refused.field == "env"));
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

/// The anonymous volumes of a container.
fn volumes(found: &Value) -> Vec<String> {
    let mounts = found["Mounts"].as_array().unwrap().iter();
    let volumes = mounts.filter(|mount| mount["Type"] == "volume");
    volumes
        .map(|mount| mount["Name"].as_str().unwrap().to_owned())
        .collect()
}

async fn a_secret_file_is_there_before_the_command(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage
        .spec("read /run/secrets/token + stat /run/secrets/token + stat /keys/empty + hold")
        .user("1000:1001")
        .read_only(true)
        .cap_drop("ALL")
        .secret_file("/run/secrets/token", "not printed by name\n")
        .secret_file("/run/secrets/other", SECRET)
        .secret_file("/keys/empty", "");
    let run = manager.start(spec).await.unwrap();
    printed(&run, "100400 0 bytes").await;
    let container = stage.containers().await.remove(0);
    let found = stage.inspect(&container).await;
    assert!(!found.to_string().contains(SECRET));
    let volumes = volumes(&found);
    assert_eq!(volumes.len(), 2, "{volumes:?}");
    run.kill().await.unwrap();
    let outcome = end(&run).await;
    let audit = read(&outcome);
    let expected = "not printed by name\n100400 20 bytes\n100400 0 bytes\n";
    assert_bytes(audit.stream("stdout"), expected.as_bytes());
    let recorded = json!(["/run/secrets/token", "/run/secrets/other", "/keys/empty"]);
    assert_eq!(audit.all("start")[0]["secret_files"], recorded);
    assert_no_secret(&stage.root());
    // An engine lists no container whose volumes it still removes.
    let removed = within(90, "the removal", run.wait_removed()).await;
    assert!(removed.unwrap());
    for volume in volumes {
        let error = stage.docker.inspect_volume(&volume).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no such volume"), "{text}");
    }
}

async fn an_unknown_owner_of_a_secret_file_is_an_error(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage
        .spec("exit 0")
        .user("nobody-of-that-name")
        .secret_file("/run/secrets/token", SECRET);
    let error = manager.start(spec).await.unwrap_err();
    let text = format!("{} {error:?}", error.chain());
    assert!(text.contains("/etc/passwd"), "{text}");
    assert!(!text.contains(SECRET), "{text}");
    stage.is_clean().await;
    assert_no_secret(&stage.root());
}

/// The steps that print the secret and a newline, so often, in chunks of this length.
///
/// The command has no secret: it is recorded.
fn print_secrets(times: usize, chunk: usize) -> String {
    let output = format!("{SECRET}\n").repeat(times);
    let steps = output.as_bytes().chunks(chunk).map(|chunk| {
        let hex: String = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("hex {hex}")
    });
    steps.collect::<Vec<_>>().join(" + ")
}

async fn a_masked_secret_reaches_no_reader(stage: &Stage) {
    for (times, detached) in [(1000, false), (10, true)] {
        let manager = stage.manager().await;
        let spec = stage.spec(&print_secrets(times, 7)).detached(detached);
        let run = manager.start(spec.mask([SECRET])).await.unwrap();
        let attachment = run.attach().await.unwrap();
        let watched = within(60, "the output", Watched::all(attachment)).await;
        let expected = "***\n".repeat(times);
        assert_bytes(watched.stdout(), expected.as_bytes());
        let outcome = end(&run).await;
        let audit = read(&outcome);
        assert_bytes(audit.stream("stdout"), expected.as_bytes());
        assert_complete(&audit);
        assert_eq!(outcome.sealed().unwrap().masked, Some(times as u64));
        manager.shutdown(ShutdownMode::Stop).await;
        assert_no_secret(&stage.root());
    }
}

/// The owner is killed while the container prints. The engine's log has the plain output.
async fn a_masked_secret_survives_no_kill(stage: &Stage) {
    for (id, tty, newline) in [("plain", false, "\n"), ("tty", true, "\r\n")] {
        let first = print_secrets(500, 5);
        let steps = format!("{first} + await /gate/{id} + {}", print_secrets(500, 11));
        let embedder = Embedder::start_masked(stage, id, &steps, SECRET, tty);
        let path = stage.root().join(id).join("logs.jsonl");
        eventually(30, "a masked line", async || {
            let audit = std::fs::read_to_string(&path).unwrap_or_default();
            audit.contains(r#""line":"***"#).then_some(())
        })
        .await;
        embedder.kill();
        stage.open_gate(id);
        let docker = Docker::connect().await.unwrap();
        let manager = Manager::builder(stage.root(), docker).masks(|_| [SECRET]);
        let manager = manager.open().await.unwrap();
        let recovery = within(60, "the recovery", manager.wait_recovery());
        recovery.await.unwrap();
        let run = manager.get(&RunId::new(id).unwrap()).await.unwrap();
        let outcome = end(&run).await;
        let audit = read(&outcome);
        let stream = if tty { "tty" } else { "stdout" };
        let expected = format!("***{newline}").repeat(1000);
        assert_bytes(audit.stream(stream), expected.as_bytes());
        assert_complete(&audit);
        assert_eq!(audit.evidence(), "replay");
        assert_eq!(outcome.sealed().unwrap().masked, Some(1000));
        manager.shutdown(ShutdownMode::Stop).await;
        assert_no_secret(&stage.root());
    }
}
