//! A daemon or a connection that is slow, frozen or gone.

use std::fs;
use std::time::{Duration, Instant};

use moat::{Ending, Error, Manager, Run, ShutdownMode};
use testkit::deadline::{eventually, within};
use testkit::proxy::{Fault, Proxy};

use super::check::{assert_all_lines, assert_whole, sealed, show};
use super::daemon::{Daemon, kill};
use crate::stage::{assert_complete, printed, read, seal};

testkit::trials! {
    crate::daemon::on_daemon:
        a_frozen_daemon_loses_nothing,
        a_stop_is_retried_until_the_daemon_thaws,
        a_start_at_a_frozen_daemon_fails,
        a_start_at_a_briefly_frozen_daemon_succeeds,
        a_create_after_its_timeout_never_runs,
        a_start_after_its_timeout_is_captured,
        a_missing_socket_loses_nothing,
        a_slow_connection_loses_nothing,
        a_frozen_connection_loses_nothing,
        an_unanswered_wait_does_not_hang_the_run,
}

/// Longer than the timeout of a call.
const LONG: Duration = Duration::from_secs(32);

/// The container's process does not depend on the daemon. It continues until its pipe is full.
async fn a_frozen_daemon_loses_nothing() {
    let daemon = Daemon::new().await;
    let steps = "lines 1500 --burst 10 --delay-ms 5 + await /gate/go \
                 + lines 2500 --from 1501 --burst 10 --delay-ms 5 + exit 5";
    let (_manager, run) = daemon.start_until(steps, "out 00000500 ").await;
    daemon.freeze();
    daemon.open_gate("go");
    tokio::time::sleep(LONG).await;
    assert!(run.state().ending().is_none(), "{:?}", run.state());
    daemon.thaw();
    assert_whole(&run, 5, 4000).await;
}

async fn a_stop_is_retried_until_the_daemon_thaws() {
    let daemon = Daemon::new().await;
    let (_manager, run) = daemon
        .start_until("lines 100 + trap --exit 3", "ready\n")
        .await;
    daemon.freeze();
    let stop = run.stop(Some(Duration::from_secs(60)));
    let (outcome, ()) = tokio::join!(stop, async {
        tokio::time::sleep(LONG).await;
        assert!(run.state().ending().is_none(), "{:?}", run.state());
        daemon.thaw();
    });
    let outcome = outcome.unwrap();
    let audit = read(&outcome);
    show(&outcome, &audit);
    assert_eq!(outcome.code(), Some(3));
    assert_complete(&audit);
}

/// The engine may still carry out the request. Its result is removed, or never runs.
async fn a_start_at_a_frozen_daemon_fails() {
    let daemon = Daemon::new().await;
    let manager = daemon.manager().await;
    daemon.freeze();
    let asked = Instant::now();
    let started = manager.start(daemon.spec("write /gate/ran x + sleep 600"));
    let (started, ()) = tokio::join!(within(120, "the start", started), async {
        tokio::time::sleep(LONG * 2).await;
        daemon.thaw();
    });
    let Err(Error::NotStarted { outcome, source }) = started else {
        panic!("a frozen daemon has started a container");
    };
    println!("after {:.0} s: {source}", asked.elapsed().as_secs_f64());
    assert!(!source.is_definitive(), "{source}");
    assert!(outcome.ending.never_started(), "{outcome}");
    seal(&outcome);
    // The next manager removes the late result.
    manager.shutdown(ShutdownMode::Leave).await;
    let manager = daemon.manager().await;
    manager.wait_recovery().await.unwrap();
    daemon.is_clean().await;
    assert!(!daemon.path().join("gate/ran").exists());
}

/// A short freeze is only slow.
async fn a_start_at_a_briefly_frozen_daemon_succeeds() {
    let daemon = Daemon::new().await;
    let manager = daemon.manager().await;
    daemon.freeze();
    let started = manager.start(daemon.spec("lines 100 + exit 5"));
    let (run, ()) = tokio::join!(started, async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        daemon.thaw();
    });
    assert_whole(&run.unwrap(), 5, 100).await;
}

/// Freezes the daemon when a request is about to reach it, and thaws it after the request's
/// timeout.
async fn frozen_at(operation: &str) -> (Daemon, Proxy, Manager, Result<Run, Error>) {
    let daemon = Daemon::new().await;
    let proxy = Proxy::for_socket(daemon.socket(), daemon.path()).unwrap();
    let manager = daemon.manager_at(&proxy.address()).await;
    let (came, mut has_come) = tokio::sync::mpsc::unbounded_channel();
    let pid = daemon.pid();
    proxy.before(operation, move || {
        kill("STOP", pid);
        let _ = came.send(());
    });
    let started = manager.start(daemon.spec("lines 100 + write /gate/ran x + exit 5"));
    let (started, ()) = tokio::join!(within(120, "the start", started), async {
        has_come.recv().await.unwrap();
        tokio::time::sleep(LONG).await;
        daemon.thaw();
    });
    (daemon, proxy, manager, started)
}

/// Only the sender of the request would start the container.
async fn a_create_after_its_timeout_never_runs() {
    let (daemon, proxy, manager, started) = frozen_at("create").await;
    let Err(Error::NotStarted { outcome, source }) = started else {
        panic!("it was started");
    };
    println!("{source}");
    assert!(
        matches!(outcome.ending, Ending::NotCreated { .. }),
        "{outcome}"
    );
    assert_eq!(read(&outcome).evidence(), "never_started");
    eventually(60, "the answer that came too late", async || {
        proxy.seen("create")[0].answered.is_some().then_some(())
    })
    .await;
    manager.shutdown(ShutdownMode::Leave).await;
    let manager = daemon.manager().await;
    manager.wait_recovery().await.unwrap();
    daemon.is_clean().await;
    assert!(!daemon.path().join("gate/ran").exists());
}

/// Invariant 10: an unanswered start may have happened.
async fn a_start_after_its_timeout_is_captured() {
    let (daemon, _proxy, _manager, started) = frozen_at("start").await;
    // After the thaw, the daemon may serve another request first. Then nothing runs.
    if let Err(Error::NotStarted { outcome, .. }) = &started {
        assert!(outcome.ending.never_started(), "{outcome}");
        daemon.is_clean().await;
        assert!(!daemon.path().join("gate/ran").exists());
        return;
    }
    let (outcome, audit) = sealed(&started.unwrap()).await;
    assert_eq!(outcome.code(), Some(5));
    assert_all_lines(&audit, 100);
    assert_complete(&audit);
}

/// Invariant 10. Open connections stay open; new ones fail.
async fn a_missing_socket_loses_nothing() {
    let daemon = Daemon::new().await;
    let steps = "lines 200 + await /gate/go + lines 200 --from 201 + write /gate/done x + exit 5";
    let (_manager, run) = daemon.start_until(steps, "out 00000200 ").await;
    let aside = daemon.path().join("aside.sock");
    fs::rename(daemon.socket(), &aside).unwrap();
    daemon.open_gate("go");
    daemon.gate_opens("done").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    // The engine's report of the exit is not confirmed yet.
    let ending = run.state().ending().cloned();
    assert!(ending.is_none(), "{ending:?}");
    fs::rename(&aside, daemon.socket()).unwrap();
    assert_whole(&run, 5, 400).await;
}

/// A bad connection: 20 kB per second, and a delay of a fifth of a second.
async fn a_slow_connection_loses_nothing() {
    let daemon = Daemon::new().await;
    let proxy = Proxy::for_socket(daemon.socket(), daemon.path()).unwrap();
    let slow = Fault::Slow {
        per_second: 20_000,
        late: Duration::from_millis(200),
    };
    for operation in ["attach", "start", "wait", "json", "logs", "create"] {
        proxy.fault(operation, slow.clone());
    }
    let manager = daemon.manager_at(&proxy.address()).await;
    let run = manager
        .start(daemon.spec("lines 2000 + exit 5"))
        .await
        .unwrap();
    assert_whole(&run, 5, 2000).await;
}

/// Nothing passes and nothing breaks: neither side notices.
async fn a_frozen_connection_loses_nothing() {
    let daemon = Daemon::new().await;
    let proxy = Proxy::for_socket(daemon.socket(), daemon.path()).unwrap();
    let manager = daemon.manager_at(&proxy.address()).await;
    let steps = "lines 200 + await /gate/go + lines 200 --from 201 + exit 5";
    let run = manager.start(daemon.spec(steps)).await.unwrap();
    printed(&run, "out 00000200 ").await;
    proxy.freeze();
    daemon.open_gate("go");
    daemon.container_ended(&daemon.container().await).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(run.state().ending().is_none(), "{:?}", run.state());
    proxy.thaw();
    assert_whole(&run, 5, 400).await;
}

/// A call that neither breaks nor answers times out and is retried.
async fn an_unanswered_wait_does_not_hang_the_run() {
    let daemon = Daemon::new().await;
    let proxy = Proxy::for_socket(daemon.socket(), daemon.path()).unwrap();
    proxy.fault("wait", Fault::Hang);
    let manager = daemon.manager_at(&proxy.address()).await;
    let run = manager
        .start(daemon.spec("lines 100 + exit 5"))
        .await
        .unwrap();
    let (outcome, audit) = sealed(&run).await;
    assert!(matches!(outcome.ending, Ending::Exited(_)), "{outcome}");
    assert_eq!(outcome.code(), Some(5));
    assert_all_lines(&audit, 100);
    assert_complete(&audit);
    eventually(90, "the removal", async || {
        (!proxy.seen("DELETE").is_empty()).then_some(())
    })
    .await;
}
