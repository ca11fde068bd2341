//! Stopping and killing runs.

use std::time::{Duration, Instant};

use moat::outcome::StopCause;
use testkit::engine;

use crate::stage::{Stage, assert_bytes, assert_complete, end, printed, read, seal};

testkit::trials! {
    crate::on_engine:
        a_stop_lets_the_container_exit,
        the_grace_period_ends_in_a_kill,
        a_stop_after_the_end_returns_the_outcome,
        a_kill_has_no_grace_period,
        stop_wait_and_exit_agree_in_a_race,
}

async fn a_stop_lets_the_container_exit(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager.start(stage.spec("trap --exit 3")).await.unwrap();
    printed(&run, "ready\n").await;
    let outcome = run.stop(Some(Duration::from_secs(60))).await.unwrap();
    assert_eq!(outcome.code(), Some(3));
    assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
    let audit = read(&outcome);
    assert_bytes(audit.stream("stdout"), b"ready\ncaught SIGTERM\n");
    assert_eq!(audit.all("stop")[0]["signal"], "SIGTERM");
    assert_complete(&audit);
}

async fn the_grace_period_ends_in_a_kill(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager
        .start(stage.spec("ignore-term + echo ready + sleep 600"))
        .await
        .unwrap();
    printed(&run, "ready\n").await;
    let asked = Instant::now();
    let outcome = run.stop(Some(Duration::from_secs(1))).await.unwrap();
    assert!(asked.elapsed() >= Duration::from_secs(1));
    assert_eq!(outcome.code(), Some(137));
    let audit = read(&outcome);
    assert_bytes(audit.stream("stdout"), b"ready\n");
    assert_complete(&audit);
}

/// The engine answers 'not modified' to a stop of a stopped container.
async fn a_stop_after_the_end_returns_the_outcome(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager.start(stage.spec("exit 5")).await.unwrap();
    let ended = end(&run).await;
    assert_eq!(run.stop(None).await.unwrap(), ended);
    assert_eq!(run.kill().await.unwrap(), ended);
    assert_eq!(seal(&ended).stopped, None);
}

async fn a_kill_has_no_grace_period(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage
        .spec("ignore-term + echo ready + sleep 600")
        .stop_grace(Duration::from_secs(60));
    let run = manager.start(spec).await.unwrap();
    printed(&run, "ready\n").await;
    let asked = Instant::now();
    let outcome = run.kill().await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(50));
    assert_eq!(outcome.code(), Some(137));
    assert_eq!(seal(&outcome).stopped, Some(StopCause::Killed));
}

/// Invariant 6. The container ignores the signal, so its own exit code is the only correct one.
async fn stop_wait_and_exit_agree_in_a_race(stage: &Stage) {
    let manager = stage.manager().await;
    for delay in [0, 5, 20, 60, 100, 140] {
        let run = manager
            .start(stage.spec("ignore-term + sleep 0.1 + exit 4"))
            .await
            .unwrap();
        let stops = (0..3).map(|_| async {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            run.stop(Some(Duration::from_secs(30))).await.unwrap()
        });
        let waits = (0..3).map(|_| async { run.wait().await.unwrap() });
        let (stopped, waited) = tokio::join!(
            futures::future::join_all(stops),
            futures::future::join_all(waits)
        );
        for outcome in stopped.iter().chain(&waited) {
            assert_eq!(outcome, &stopped[0]);
            // Podman answers a start before the program runs. SIGTERM then ends runc, with code 2.
            let early = engine::is_podman() && outcome.code() == Some(2);
            assert!(
                outcome.code() == Some(4) || early,
                "after {delay} ms: {outcome}"
            );
        }
        read(&stopped[0]);
    }
}
