//! Secrets stay out of the files of a root.

use std::path::Path;

use moat::Error;
use serde_json::json;

use crate::stage::{Stage, end};

testkit::trials! {
    crate::on_engine:
        no_file_of_the_root_has_a_secret,
        a_bad_variable_never_reaches_the_engine,
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
