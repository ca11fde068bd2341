//! Managers, runs and services for code that is not async.

use std::panic::{AssertUnwindSafe, catch_unwind};

use moat::runtime::scripted::{Script, Scripted};
use moat::state::State;
use moat::{Error, Ready, RunId, ShutdownMode, blocking};

use crate::bench::named;
use crate::ready::{SECOND, endless};

#[test]
fn a_plain_test_needs_no_async() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let manager = blocking::Manager::open(dir.path(), engine.clone()).unwrap();
    assert!(manager.wait_recovery().unwrap().is_empty());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    engine.next(Script::new().stdout("up\n").port(80, at).until_stopped());
    let ready = [Ready::line("up"), Ready::port(80)];
    let service = manager.service(named("db"), ready).unwrap();
    assert_eq!(service.port(80).unwrap(), at);
    assert_eq!(service.id().as_str(), "db");
    assert!(matches!(service.state(), State::Running { .. }));
    drop(service);
    assert_eq!(engine.containers(), 0);
    let run = manager.get(&RunId::new("db").unwrap()).unwrap();
    assert_eq!(run.last_lines(1).unwrap(), ["up"]);
    assert!(run.wait().unwrap().sealed().is_some());
    engine.next(endless());
    let run = manager.start(named("other")).unwrap();
    run.wait_ready(Ready::line("up").within(SECOND / 10))
        .unwrap_err();
    assert_eq!(run.stop(None).unwrap().code(), Some(143));
    assert_eq!(run.kill().unwrap().code(), Some(143));
    assert!(run.audit().unwrap().starts_with(run.dir()));
    assert!(!run.owned_elsewhere());
    manager.shutdown(ShutdownMode::Stop);
    assert!(matches!(manager.start(named("late")), Err(Error::Closed)));
}

#[test]
fn blocking_calls_panic_in_async_code() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let manager = blocking::Manager::open(dir.path(), engine.clone()).unwrap();
    engine.next(endless());
    let service = manager.service(named("db"), []).unwrap();
    let tokio = tokio::runtime::Runtime::new().unwrap();
    tokio.block_on(async {
        let refused = catch_unwind(AssertUnwindSafe(|| manager.start(named("other"))));
        let why = refused.unwrap_err();
        let why = why.downcast_ref::<&str>().unwrap();
        assert!(why.contains("use moat::Manager"), "{why}");
        drop(service);
        drop(manager);
    });
    assert_eq!(engine.containers(), 0);
}
