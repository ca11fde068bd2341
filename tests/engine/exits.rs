//! Every way in which a run can end.

use std::time::{Duration, Instant};

use moat::outcome::StopCause;
use moat::runtime::RuntimeError;
use moat::spec::{KeepContainer, Pull};
use moat::state::State;
use moat::{Ending, Error, Exit, RunSpec, ShutdownMode};

use crate::stage::{Stage, Watched, assert_bytes, assert_complete, end, printed, read, seal};
use crate::support::{engine, sequence};

pub async fn a_run_that_prints_and_ends_leaves_a_complete_audit(stage: &Stage) {
    let (outcome, audit) = stage.run(stage.spec("lines 200 --stream both")).await;
    assert!(outcome.success(), "{outcome}");
    sequence::check(audit.stream("stdout"), "out", 200, 64).unwrap();
    sequence::check(audit.stream("stderr"), "err", 200, 64).unwrap();
    assert_complete(&audit);
    assert!(["tail", "replay"].contains(&audit.evidence()));
    assert_eq!(audit.all("started").len(), 1);
    assert_eq!(seal(&outcome).records, 400);
    assert!(seal(&outcome).image_digest.is_some());
    assert!(outcome.duration().is_some());
    assert_eq!(outcome.last_lines.len(), 20);
    // Which stream comes last is not promised.
    let last = [
        sequence::line("out", 200, 64),
        sequence::line("err", 200, 64),
    ];
    assert!(last.contains(&outcome.last_lines[19]));
}

/// The client of the engine tells a code other than zero as an error.
pub async fn a_non_zero_exit_code_is_in_the_outcome_and_in_the_seal(stage: &Stage) {
    let (outcome, audit) = stage.run(stage.spec("echo out + warn err + exit 7")).await;
    assert_eq!(outcome.code(), Some(7));
    assert!(!outcome.success());
    assert_eq!(audit.end["exit"]["code"], 7);
    assert_bytes(audit.stream("stdout"), b"out\n");
    assert_bytes(audit.stream("stderr"), b"err\n");
    assert_complete(&audit);
}

/// Invariant 7: an empty file says that nothing was printed, not that nobody looked.
pub async fn a_run_without_output_is_complete_and_empty(stage: &Stage) {
    let (outcome, audit) = stage.run(stage.spec("exit 0")).await;
    assert!(outcome.success());
    assert!(audit.streams.is_empty());
    assert_complete(&audit);
}

pub async fn a_missing_image_fails_the_start_and_leaves_a_sealed_audit(stage: &Stage) {
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
        moat::state::RunStatus::NotCreated
    );
}

/// Waiting for the next exit of a container that cannot start never ends.
pub async fn a_missing_command_fails_the_start_and_leaves_no_container(stage: &Stage) {
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

pub async fn a_stop_lets_the_container_end_by_itself(stage: &Stage) {
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

pub async fn a_container_that_ignores_the_stop_signal_is_killed_after_the_grace(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager
        .start(stage.spec("deaf + echo ready + sleep 600"))
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

/// The engine answers 'not modified' to a stop of what has stopped.
pub async fn a_stop_of_a_run_that_has_ended_tells_the_same_outcome(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager.start(stage.spec("exit 5")).await.unwrap();
    let ended = end(&run).await;
    assert_eq!(run.stop(None).await.unwrap(), ended);
    assert_eq!(run.kill().await.unwrap(), ended);
    assert_eq!(seal(&ended).stopped, None);
}

pub async fn a_kill_does_not_wait(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage
        .spec("deaf + echo ready + sleep 600")
        .stop_grace(Duration::from_secs(60));
    let run = manager.start(spec).await.unwrap();
    printed(&run, "ready\n").await;
    let asked = Instant::now();
    let outcome = run.kill().await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(50));
    assert_eq!(outcome.code(), Some(137));
    assert_eq!(seal(&outcome).stopped, Some(StopCause::Killed));
}

pub async fn a_run_past_its_time_limit_is_stopped_and_says_so(stage: &Stage) {
    let spec = stage
        .spec("deaf + echo ready + sleep 600")
        // It counts from the creation.
        .time_limit(Duration::from_secs(5))
        .stop_grace(Duration::from_millis(500));
    let (outcome, audit) = stage.run(spec).await;
    assert_eq!(seal(&outcome).stopped, Some(StopCause::TimeLimit));
    assert_eq!(outcome.code(), Some(137));
    assert_eq!(audit.all("stop")[0]["cause"], "time_limit");
    assert_bytes(audit.stream("stdout"), b"ready\n");
}

/// The open stream still delivers all; what is asked for later is gone.
pub async fn a_container_removed_by_others_is_sealed_as_removed_with_what_it_printed(
    stage: &Stage,
) {
    let manager = stage.manager().await;
    let run = manager
        .start(stage.spec("lines 300 + echo all + sleep 600"))
        .await
        .unwrap();
    printed(&run, "all\n").await;
    let containers = stage.containers().await;
    engine::remove(&stage.docker, &containers[0]).await.unwrap();
    let outcome = end(&run).await;
    let audit = read(&outcome);
    assert!(
        matches!(outcome.ending, Ending::Removed { .. }),
        "{}\n{:?}",
        audit.end,
        audit.all("gap")
    );
    let mut expected = sequence::lines("out", 300, 64);
    expected.extend_from_slice(b"all\n");
    assert_bytes(audit.stream("stdout"), &expected);
    // The log went with the container: nothing stands behind the tap's word any more.
    assert_ne!(audit.evidence(), "tail");
}

/// A container that was killed for want of memory need not exit with 137, nor the other way round.
pub async fn a_container_out_of_memory_is_told_from_one_that_was_killed(stage: &Stage) {
    let spec = stage
        .spec("echo x + alloc 256")
        .memory(16 << 20)
        .keep(KeepContainer::Always);
    let (outcome, audit) = stage.run(spec).await;
    let Ending::Exited(Exit {
        oom_killed, code, ..
    }) = outcome.ending
    else {
        panic!("{outcome}");
    };
    assert_eq!(code, Some(137));
    // The engine hears of it beside the end, and may miss it.
    assert!(
        oom_killed || !stage.found_out_of_memory().await,
        "{outcome}"
    );
    assert_eq!(audit.end["exit"]["oom_killed"], oom_killed);
    assert_bytes(audit.stream("stdout"), b"x\n");
}

pub async fn a_child_out_of_memory_does_not_change_the_exit_code(stage: &Stage) {
    let spec = stage
        .spec("oom-child 256")
        .memory(16 << 20)
        .keep(KeepContainer::Always);
    let (outcome, audit) = stage.run(spec).await;
    let Ending::Exited(exit) = &outcome.ending else {
        panic!("{outcome}");
    };
    assert_eq!(exit.code, Some(0));
    assert_bytes(audit.stream("stdout"), b"the child ended by signal 9\n");
    // It is what the engine says, which may hear of it later: nothing is inferred.
    assert!(!exit.oom_killed || stage.found_out_of_memory().await);
}

pub async fn a_terminal_is_one_stream_as_the_terminal_gave_it(stage: &Stage) {
    let (outcome, audit) = stage.run(stage.spec("lines 50 + warn end").tty(true)).await;
    assert!(outcome.success());
    // The terminal's line discipline makes CR LF of LF.
    let mut expected = Vec::new();
    for number in 1..=50 {
        expected.extend_from_slice(sequence::line("out", number, 64).as_bytes());
        expected.extend_from_slice(b"\r\n");
    }
    expected.extend_from_slice(b"end\r\n");
    assert_bytes(audit.stream("tty"), &expected);
    assert_eq!(audit.streams.len(), 1);
    assert_complete(&audit);
}

pub async fn a_detached_run_goes_on_and_is_sealed_by_the_next_manager(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage
        .gated("lines 100 + await /gate/go + lines 100 --from 101 + exit 2")
        .detached(true);
    let run = manager.start(spec).await.unwrap();
    let id = run.id().clone();
    drop(run);
    manager.shutdown(ShutdownMode::Leave).await;
    stage.open_gate("go");
    let manager = stage.manager().await;
    let outcome = end(&manager.get(&id).await.unwrap()).await;
    assert_eq!(outcome.code(), Some(2));
    let audit = read(&outcome);
    sequence::check(audit.stream("stdout"), "out", 200, 64).unwrap();
    assert_complete(&audit);
}

/// Invariant 6. The container ignores the signal, so its own exit code is the only true one.
pub async fn stop_wait_and_a_natural_exit_at_once_agree_on_the_exit(stage: &Stage) {
    let manager = stage.manager().await;
    for delay in [0, 5, 20, 60, 100, 140] {
        let run = manager
            .start(stage.spec("deaf + sleep 0.1 + exit 4"))
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
            assert_eq!(outcome.code(), Some(4), "after {delay} ms: {outcome}");
        }
        read(&stopped[0]);
    }
}

pub async fn any_number_of_waiters_get_the_same_outcome(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager
        .start(stage.gated("await /gate/go + exit 9"))
        .await
        .unwrap();
    let waiters: Vec<_> = (0..50)
        .map(|_| {
            let run = run.clone();
            tokio::spawn(async move { run.wait().await.unwrap() })
        })
        .collect();
    // One that gives up takes nothing from the others.
    let gave_up = tokio::time::timeout(Duration::from_millis(20), run.wait()).await;
    assert!(gave_up.is_err());
    stage.open_gate("go");
    let first = end(&run).await;
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), first);
    }
    assert_eq!(manager.wait(run.id()).await.unwrap(), first);
    assert_eq!(first.code(), Some(9));
    assert!(matches!(run.state(), State::Ended { .. }));
}

/// The end of the output is not the end of the container.
pub async fn a_container_that_closes_its_output_early_is_waited_for(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage.gated("echo last + close-stdio + await /gate/go + exit 6");
    let run = manager.start(spec).await.unwrap();
    printed(&run, "last\n").await;
    let early = tokio::time::timeout(Duration::from_millis(500), run.wait_exit()).await;
    assert!(early.is_err(), "{early:?}");
    stage.open_gate("go");
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(6));
    assert_complete(&read(&outcome));
    assert_bytes(
        Watched::all(run.attach().await.unwrap()).await.stdout(),
        b"last\n",
    );
}
