//! Managers, runs and services for code that is not async.

use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;

use moat::audit::Record;
use moat::events::EventKind;
use moat::manager::PruneOptions;
use moat::outcome::Stream;
use moat::run::Attached;
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Script, Scripted};
use moat::sink::Memory;
use moat::spec::{ExecSpec, PullOptions, RunId};
use moat::state::{RunStatus, State};
use moat::tokio_util::sync::CancellationToken;
use moat::{Ending, Error, Ready, ShutdownMode, blocking};

use crate::attach::with_input;
use crate::bench::named;
use crate::ready::{SECOND, endless};
use crate::stdin::pipe;

fn open(root: &Path, engine: &Scripted) -> blocking::Manager {
    blocking::Manager::open(root, engine.clone()).unwrap()
}

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
fn a_condition_may_block() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let manager = open(dir.path(), &engine);
    engine.next(Script::new().stdout("up\n").until_stopped());
    let up = |run: &blocking::Run| match run.last_lines(1)?.is_empty() {
        true => Err("no line".into()),
        false => Ok(()),
    };
    let service = manager.service(named("db"), [blocking::ready_fn("it printed", up)]);
    let service = service.unwrap();
    for (failure, expected) in [(false, "no leader"), (true, "the check panicked")] {
        let check = move |_: &blocking::Run| match failure {
            true => panic!("as a check with a fault"),
            false => Err("no leader".into()),
        };
        let late = blocking::ready_fn("it has a leader", check).within(SECOND);
        let error = service.wait_ready(late).unwrap_err().to_string();
        assert!(
            error.contains(&format!("before it has a leader ({expected})")),
            "{error}"
        );
    }
    service.stop().unwrap();
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

#[test]
fn a_blocking_attachment_is_an_iterator() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    engine.next(Script::new().stdout("out\n").stderr("err\n").exit(3));
    let manager = open(dir.path(), &engine);
    let run = manager.start(named("printer")).unwrap();
    let mut printed: Vec<_> = run
        .attach()
        .unwrap()
        .map(|item| match item.unwrap() {
            Attached::Chunk(chunk) => (chunk.stream, chunk.bytes),
            other => panic!("{other:?}"),
        })
        .collect();
    printed.sort();
    let expected = [
        (Stream::Stdout, "out\n".into()),
        (Stream::Stderr, "err\n".into()),
    ];
    assert_eq!(printed, expected);
    let attachment = manager.attach(run.id()).unwrap();
    assert_eq!(attachment.outcome().unwrap().code(), Some(3));
    let mut text = String::new();
    let mut stderr = attachment.into_reader(Stream::Stderr);
    stderr.read_to_string(&mut text).unwrap();
    assert_eq!(text, "err\n");
    assert!(matches!(run.wait_exit().unwrap(), Ending::Exited(_)));
    let records = run.follow().unwrap().records().unwrap();
    let output = records.filter(|record| matches!(record, Ok(Record::Output(_))));
    assert_eq!(output.count(), 2);
}

/// Without an audit file, the output before the attachment is gone.
#[test]
fn a_reader_reports_dropped_output() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    engine.next(Script::new().stdout("gone\n").stderr("err\n"));
    let builder = moat::Manager::builder(dir.path(), engine.clone()).sink(Memory::new());
    let manager = blocking::Manager::open_with(builder).unwrap();
    let run = manager.start(named("printer")).unwrap();
    run.wait().unwrap();
    let mut stdout = run.attach().unwrap().into_reader(Stream::Stdout);
    let error = stdout.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read stdout: 5 bytes were dropped"
    );
}

#[test]
fn a_blocking_input_is_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    engine.next(Script::new().echo());
    let manager = open(dir.path(), &engine);
    let (run, mut output) = manager.start_attached(pipe(), with_input()).unwrap();
    let mut input = output.input().unwrap();
    assert!(output.input().is_none());
    let typing = thread::spawn(move || {
        input.write_all(b"typed\n").unwrap();
        input.flush().unwrap();
        input.shutdown().unwrap();
    });
    let handle = output.handle();
    let mut text = String::new();
    let mut stdout = output.into_reader(Stream::Stdout);
    stdout.read_to_string(&mut text).unwrap();
    typing.join().unwrap();
    assert_eq!(text, "typed\n");
    assert_eq!(handle.outcome().unwrap().code(), Some(0));
    assert!(run.problem().is_none());
}

#[test]
fn a_blocking_connection_reads_and_writes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new().with_connect();
    engine.next(endless().listen(80));
    let manager = open(dir.path(), &engine);
    let run = manager.start(named("db")).unwrap();
    let mut connection = run.connect(80).unwrap();
    connection.write_all(b"one").unwrap();
    let mut echoed = [0; 3];
    connection.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"one");
    let (mut reader, mut writer) = connection.split();
    let reading = thread::spawn(move || {
        let mut echoed = Vec::new();
        reader.read_to_end(&mut echoed).unwrap();
        echoed
    });
    writer.write_all(b"two").unwrap();
    writer.shutdown().unwrap();
    assert_eq!(reading.join().unwrap(), b"two");
    let refused = run.connect(81).unwrap_err();
    assert!(matches!(
        refused,
        Error::Runtime(RuntimeError::Rejected { .. })
    ));
    run.kill().unwrap();
}

#[test]
fn blocking_events_end_with_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    engine.next(endless());
    let manager = open(dir.path(), &engine);
    let all = manager.events();
    let run = manager.start(named("db")).unwrap();
    let events = run.events();
    let token = CancellationToken::new();
    run.stop_when(token.clone());
    let kinds = thread::spawn(move || events.map(|event| event.kind).collect::<Vec<_>>());
    token.cancel();
    let kinds = kinds.join().unwrap();
    assert_eq!(kinds.last(), Some(&EventKind::Released));
    manager.remove(run.id()).unwrap();
    manager.shutdown(ShutdownMode::Stop);
    let last = all.last().map(|event| event.kind);
    assert_eq!(last, Some(EventKind::Removed));
}

#[test]
fn a_blocking_manager_lists_and_prunes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let manager = open(dir.path(), &engine);
    for name in ["first", "second"] {
        engine.next(endless());
        manager.start(named(name)).unwrap();
    }
    let (first, second) = (RunId::new("first").unwrap(), RunId::new("second").unwrap());
    assert_eq!(manager.stop(&first, None).unwrap().code(), Some(143));
    assert_eq!(manager.wait(&first).unwrap().code(), Some(143));
    let listed = manager.list().unwrap();
    let status: Vec<_> = listed.iter().map(|info| (&info.run, info.status)).collect();
    let expected = [(&first, RunStatus::Exited), (&second, RunStatus::Running)];
    assert_eq!(status, expected);
    assert_eq!(manager.root().path(), dir.path());
    assert_eq!(manager.runtime().name(), "scripted");
    // Until then, the container of the run may be an orphan.
    assert!(manager.get(&first).unwrap().wait_removed().unwrap());
    assert!(manager.orphans().unwrap().is_empty());
    let pruned = manager.prune(PruneOptions::new().keep(0)).unwrap();
    let removed: Vec<_> = pruned.removed.into_iter().map(|(run, _)| run).collect();
    assert_eq!(removed, [first]);
    manager.shutdown(ShutdownMode::Stop);
}

#[test]
fn a_blocking_exec_has_output_and_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    engine.next(endless());
    engine.next_exec(Script::new().stdout("up\n").exit(7));
    let manager = open(dir.path(), &engine);
    let service = manager.service(named("db"), []).unwrap();
    let run = service.release();
    let exec = run.exec(ExecSpec::new(["probe"])).unwrap();
    assert_eq!(exec.number(), 1);
    let mut text = String::new();
    let mut stdout = exec.attach().unwrap().into_reader(Stream::Stdout);
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "up\n");
    assert_eq!(exec.wait().unwrap().code(), Some(7));
    assert!(matches!(run.state(), State::Running { .. }));
    let unsupported = run.copy_in("/", &b"archive"[..]).unwrap_err();
    assert!(matches!(
        unsupported,
        Error::Runtime(RuntimeError::Unsupported { .. })
    ));
    run.copy_out("/").unwrap_err();
    run.stop(None).unwrap();
}

/// An attachment that is not read lags. A reader reads what it missed from the audit file.
#[test]
fn a_slow_blocking_reader_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    engine.next(Script::new().echo());
    let manager = open(dir.path(), &engine);
    let (run, mut output) = manager.start_attached(pipe(), with_input()).unwrap();
    let mut input = output.input().unwrap();
    let mut stdout = output.into_reader(Stream::Stdout);
    let mut all = b"line 0".to_vec();
    input.write_all(&all).unwrap();
    let mut seen = vec![0; all.len()];
    stdout.read_exact(&mut seen).unwrap();
    for number in 1..100 {
        let flood = format!("\nline {number}{}", "x".repeat(160_000));
        input.write_all(flood.as_bytes()).unwrap();
        all.extend_from_slice(flood.as_bytes());
    }
    let mut records = run.follow().unwrap().records().unwrap();
    let is_near_end = |record| match record {
        Ok(Record::Output(output)) => output.bytes.starts_with(b"line 98"),
        _ => false,
    };
    assert!(records.any(is_near_end));
    // An attachment learns of the gap with the next item, for which there must be room.
    let start = seen.len();
    seen.resize(start + (2 << 20), 0);
    stdout.read_exact(&mut seen[start..]).unwrap();
    input.write_all(b"\nthe end\n").unwrap();
    all.extend_from_slice(b"\nthe end\n");
    input.shutdown().unwrap();
    stdout.read_to_end(&mut seen).unwrap();
    assert!(seen == all, "{} bytes of {}", seen.len(), all.len());
}

#[test]
fn images_need_no_async() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let manager = open(dir.path(), &engine);
    engine.image("worker:1", Script::new());
    let image = manager.image("worker:1");
    assert_eq!(image.name(), "worker:1");
    let info = image.inspect().unwrap();
    assert_eq!(manager.images().unwrap(), std::slice::from_ref(&info));
    assert!(image.remove(false).unwrap());
    assert!(!image.exists().unwrap());
    assert_eq!(image.pull(PullOptions::new()).unwrap(), info);
}
