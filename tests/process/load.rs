//! Many runs, one after the other and at once.

use std::fs;

use moat::outcome::Stream;
use moat::{RunSpec, ShutdownMode, Verdict};
use testkit::deadline::eventually;

use crate::place::{Place, seal, text};

#[tokio::test]
async fn a_thousand_short_runs_lose_nothing() {
    let place = Place::new();
    let manager = place.open().await;
    for round in 0..100 {
        let runs = (0..10).map(|n| {
            let text = format!("{round} {n}");
            let manager = manager.clone();
            async move {
                let spec = RunSpec::command(["echo", &text]);
                let outcome = manager.start(spec).await.unwrap().wait().await.unwrap();
                assert_eq!(self::text(&outcome, Stream::Stdout), format!("{text}\n"));
                assert_eq!(seal(&outcome).verdict, Verdict::Complete);
                assert!(outcome.success());
            }
        });
        futures::future::join_all(runs).await;
    }
    // The records of their containers are gone, too.
    let left = async || {
        let root = manager.root().id().clone();
        let found = manager.runtime().find(&root).await.unwrap();
        found.is_empty().then_some(())
    };
    eventually(20, "the removal of all", left).await;
    manager.shutdown(ShutdownMode::Leave).await;
    assert_eq!(children(), Vec::<String>::new(), "zombies, or guardians");
}

/// The children of this process that run `echo`, zombies included.
fn children() -> Vec<String> {
    // Tests share this process. No other test runs `echo`.
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let parent = rest.split(' ').nth(1);
        if parent == Some(&*std::process::id().to_string()) && name.ends_with("(echo") {
            found.push(id);
        }
    }
    found
}
