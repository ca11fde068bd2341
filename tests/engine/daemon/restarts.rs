//! Restarts of the daemon.

use std::time::{Duration, Instant};

use moat::{Ending, Error, RunId, ShutdownMode};
use testkit::audit::Audit;
use testkit::deadline::eventually;
use testkit::proxy::Proxy;
use testkit::sequence;
use tokio::time::timeout;

use super::check::{assert_gap, assert_lines_in_order, sealed};
use super::daemon::{self, Daemon, Kind};
use crate::stage::{assert_bytes, assert_complete, printed};

testkit::trials! {
    crate::daemon::on_daemon:
        a_restart_during_output_loses_nothing,
        a_kill_during_output_is_a_possible_gap,
        a_live_restore_during_output_is_a_possible_gap,
        a_kill_with_live_restore_is_a_possible_gap,
        a_restart_during_silence_loses_nothing,
        a_kill_during_silence_loses_no_output,
        a_live_restore_during_silence_loses_no_line,
        a_kill_with_live_restore_in_silence_is_lossless,
        output_lost_in_daemon_memory_is_a_gap,
        output_lost_in_memory_without_owner_is_a_gap,
        a_kill_under_load_records_each_lost_line,
        an_exit_while_the_daemon_is_down_keeps_its_code,
        a_kill_during_a_start_is_a_possible_gap,
        a_kill_with_live_restore_in_a_start_is_a_gap,
}

const LIVE: Kind = Kind {
    live_restore: true,
    disk: None,
};

/// The signal that ends the daemon.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Term,
    Kill,
}

async fn restart(daemon: &mut Daemon, by: By) {
    restart_and(daemon, by, |_| {}).await;
}

/// The same; `then` runs while the daemon ends or is gone.
async fn restart_and(daemon: &mut Daemon, by: By, then: impl FnOnce(&Daemon)) {
    match by {
        By::Term => daemon.terminate(then).await,
        By::Kill => {
            daemon.kill().await;
            then(daemon);
        }
    }
    daemon.start().await;
}

/// A daemon that gets SIGTERM waits for its containers and their output, and reports that it waits.
/// Sometimes it is gone before the report. Then nothing shows that it was not killed.
fn assert_waited_for(audit: &Audit) {
    match audit.all("gap").len() {
        0 => assert_complete(audit),
        _ => assert_gap(audit, "engine_restarted", true),
    }
    assert!(audit.all("gap").len() <= 1, "{:?}", audit.all("gap"));
}

/// In the middle of 3,000 lines. All of them are printed, half of them later.
async fn during_output(kind: Kind, by: By) {
    let mut daemon = Daemon::of(kind).await;
    let manager = daemon.manager().await;
    let steps = "lines 1500 --burst 10 --delay-ms 5 + await /gate/go \
                 + lines 1500 --from 1501 --burst 10 --delay-ms 5 + exit 5";
    let run = manager.start(daemon.spec(steps)).await.unwrap();
    printed(&run, "out 00000500 ").await;
    restart_and(&mut daemon, by, |daemon| daemon.open_gate("go")).await;
    let (outcome, audit) = sealed(&run).await;
    let missing = assert_lines_in_order(&audit, 3000);
    assert_eq!(outcome.code(), Some(5), "{}", audit.end);
    if by == By::Term && !kind.live_restore {
        assert_eq!(missing, 0);
        // From Docker 23 on, the daemon marks the end of the output also on its way out.
        let evidence = audit.evidence();
        assert!(["replay", "end_marker"].contains(&evidence), "{evidence}");
        assert_waited_for(&audit);
    } else {
        assert_gap(&audit, "engine_restarted", true);
    }
}

async fn a_restart_during_output_loses_nothing() {
    during_output(Kind::default(), By::Term).await;
}

async fn a_kill_during_output_is_a_possible_gap() {
    during_output(Kind::default(), By::Kill).await;
}

async fn a_live_restore_during_output_is_a_possible_gap() {
    during_output(LIVE, By::Term).await;
}

async fn a_kill_with_live_restore_is_a_possible_gap() {
    during_output(LIVE, By::Kill).await;
}

/// While the container waits for a signal or at a gate.
async fn during_silence(kind: Kind, by: By) {
    let mut daemon = Daemon::of(kind).await;
    let manager = daemon.manager().await;
    let steps = match kind.live_restore {
        true => "lines 200 + await /gate/go + lines 200 --from 201 + exit 3",
        false => "lines 200 + trap --exit 3",
    };
    let run = manager.start(daemon.spec(steps)).await.unwrap();
    let last = ["ready\n", "out 00000200 "][usize::from(kind.live_restore)];
    printed(&run, last).await;
    // The log may not have what the tap has.
    let log = daemon.log_of(&daemon.container().await);
    eventually(60, "the daemon's log", async || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.contains(last.trim_end()).then_some(())
    })
    .await;
    restart(&mut daemon, by).await;
    daemon.open_gate("go");
    let (outcome, audit) = sealed(&run).await;
    assert_eq!(outcome.code(), Some(3), "{}", audit.end);
    let mut expected = sequence::lines("out", if kind.live_restore { 400 } else { 200 }, 64);
    if !kind.live_restore {
        expected.extend_from_slice(b"ready\ncaught SIGTERM\n");
    }
    assert_bytes(audit.stream("stdout"), &expected);
    if by == By::Term && !kind.live_restore {
        assert_waited_for(&audit);
    } else {
        assert_gap(&audit, "engine_restarted", true);
    }
}

async fn a_restart_during_silence_loses_nothing() {
    during_silence(Kind::default(), By::Term).await;
}

/// The next daemon stops the containers that it finds.
async fn a_kill_during_silence_loses_no_output() {
    during_silence(Kind::default(), By::Kill).await;
}

async fn a_live_restore_during_silence_loses_no_line() {
    during_silence(LIVE, By::Term).await;
}

async fn a_kill_with_live_restore_in_silence_is_lossless() {
    during_silence(LIVE, By::Kill).await;
}

/// Output that a daemon has read from a container but not written to its log is lost with the
/// daemon. The log does not show it.
async fn output_lost_in_daemon_memory_is_a_gap() {
    let mut daemon = Daemon::of(LIVE).await;
    let proxy = Proxy::for_socket(daemon.socket(), daemon.path()).unwrap();
    let manager = daemon.manager_at(&proxy.address()).await;
    let steps = "lines 100 + await /gate/1 + print half + write /gate/printed x \
                 + await /gate/2 + echo -whole + lines 100 --from 101";
    let run = manager.start(daemon.spec(steps)).await.unwrap();
    printed(&run, "out 00000100 ").await;
    // From now on only the log has the output. It does not get half a line.
    proxy.cut();
    daemon.open_gate("1");
    daemon.gate_opens("printed").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    restart(&mut daemon, By::Kill).await;
    daemon.open_gate("2");
    let (_, audit) = sealed(&run).await;
    assert_gap(&audit, "engine_restarted", true);
}

/// The same without an owner.
async fn output_lost_in_memory_without_owner_is_a_gap() {
    let mut daemon = Daemon::of(LIVE).await;
    let manager = daemon.manager().await;
    let steps = "lines 100 + await /gate/1 + print half + write /gate/printed x \
                 + await /gate/2 + echo -whole + lines 100 --from 101";
    let id = RunId::new("one").unwrap();
    let run = manager
        .start(daemon.spec(steps).id(id.clone()))
        .await
        .unwrap();
    printed(&run, "out 00000100 ").await;
    drop(run);
    manager.shutdown(ShutdownMode::Leave).await;
    daemon.open_gate("1");
    daemon.gate_opens("printed").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    restart(&mut daemon, By::Kill).await;
    let manager = daemon.manager().await;
    let run = manager.get(&id).await.unwrap();
    manager.wait_recovery().await.unwrap();
    daemon.open_gate("2");
    let (_, audit) = sealed(&run).await;
    assert_gap(&audit, "engine_restarted", true);
}

/// A megabyte is in transit through the daemon when it is killed.
async fn a_kill_under_load_records_each_lost_line() {
    let mut daemon = Daemon::of(LIVE).await;
    let manager = daemon.manager().await;
    let spec = daemon.spec("lines 300000 --burst 500 + await /gate/go");
    let run = manager.start(spec).await.unwrap();
    let audit = run.dir().join("logs.jsonl");
    eventually(30, "two megabytes", async || {
        (audit.metadata().ok()?.len() > 2 << 20).then_some(())
    })
    .await;
    restart(&mut daemon, By::Kill).await;
    daemon.open_gate("go");
    let (_, audit) = sealed(&run).await;
    assert_lines_in_order(&audit, 300_000);
    assert_eq!(audit.verdict(), "gap", "{}", audit.end);
}

/// Invariant 10: the next daemon knows the exit. Until then it is unknown.
async fn an_exit_while_the_daemon_is_down_keeps_its_code() {
    let mut daemon = Daemon::of(LIVE).await;
    let manager = daemon.manager().await;
    let steps = "lines 100 + await /gate/go + lines 100 --from 101 + write /gate/done x + exit 5";
    let run = manager.start(daemon.spec(steps)).await.unwrap();
    printed(&run, "out 00000100 ").await;
    daemon.kill().await;
    daemon.open_gate("go");
    daemon.gate_opens("done").await;
    assert!(run.state().ending().is_none(), "{:?}", run.state());
    daemon.start().await;
    let (outcome, audit) = sealed(&run).await;
    assert!(matches!(outcome.ending, Ending::Exited(_)), "{outcome}");
    assert_lines_in_order(&audit, 200);
    assert_gap(&audit, "engine_restarted", true);
}

/// The daemon is killed when the program has begun, and before it has noted the start. It then often
/// reports that the container was not started, also while the program runs.
async fn killed_during_a_start(kind: Kind) {
    let mut daemon = Daemon::of(kind).await;
    let manager = daemon.manager().await;
    for round in 0..5 {
        let began = format!("began-{round}");
        let steps = format!("echo first + write /gate/{began} x + sleep 2 + echo last");
        let id = RunId::new(format!("round-{round}")).unwrap();
        let start = manager.start(daemon.spec(&steps).id(id.clone()));
        let (gate, pid) = (daemon.path().join("gate").join(began), daemon.pid());
        // Some milliseconds later, the daemon has noted the start.
        let killed = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !gate.exists() {
                assert!(Instant::now() < deadline, "the program did not begin");
            }
            daemon::kill("KILL", pid);
        });
        let restarted = async {
            killed.await.unwrap();
            daemon.kill().await;
            daemon.start().await;
        };
        let run = match tokio::join!(start, restarted).0 {
            Ok(run) => run,
            Err(Error::NotStarted { .. }) => manager.get(&id).await.unwrap(),
            Err(error) => panic!("{}", error.chain()),
        };
        let exit = timeout(Duration::from_secs(40), run.wait_exit());
        if exit.await.is_err() {
            // Rarely, Docker 20.10 reports a container as running whose program has ended.
            run.stop(None).await.unwrap();
        }
        let (outcome, audit) = sealed(&run).await;
        assert!(!outcome.ending.never_started(), "{outcome}");
        assert_ne!(audit.evidence(), "never_started");
        assert_gap(&audit, "engine_restarted", true);
    }
}

async fn a_kill_during_a_start_is_a_possible_gap() {
    killed_during_a_start(Kind::default()).await;
}

async fn a_kill_with_live_restore_in_a_start_is_a_gap() {
    killed_during_a_start(LIVE).await;
}
