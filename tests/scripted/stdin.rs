//! Standard input of a run.

use moat::audit::{Action, Event};
use moat::run::Attachment;
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::spec::Stdin;
use moat::{Ending, Error, RunSpec, ShutdownMode, Verdict};
use tokio::io::AsyncWriteExt;

use crate::attach::{all, audited, printed, with_input};
use crate::bench::{Bench, seal};
use crate::records::{actions, events};

pub fn pipe() -> RunSpec {
    RunSpec::new("any").stdin(Stdin::Pipe)
}

pub async fn write_and_end(output: &mut Attachment) {
    let mut input = output.input().unwrap();
    input.write_all(b"typed\n").await.unwrap();
    input.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_container_sees_input_and_its_end() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().stdout("first\n").echo().exit(4));
    let manager = bench.open_on_threads().await;
    let (run, mut output) = manager.start_attached(pipe(), with_input()).await.unwrap();
    let mut input = output.input().unwrap();
    input.write_all(b"second\n").await.unwrap();
    input.shutdown().await.unwrap();
    input.shutdown().await.unwrap();
    assert_eq!(all(output).await, b"first\nsecond\n");
    let (outcome, path) = audited(&run).await;
    assert_eq!(outcome.code(), Some(4));
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(actions(&path), [Action::AttachInput, Action::InputEnd]);
}

/// The record exists before the container starts and before there is a writer.
#[tokio::test]
async fn unreachable_stdin_fails_the_start() {
    let bench = Bench::new();
    let refused = RuntimeError::Rejected {
        operation: "attach to the container's input",
        reason: "it does not want to".into(),
    };
    bench.runtime.fault(Call::Stdin, Fault::Error(refused));
    let manager = bench.open_on_threads().await;
    let error = manager
        .start_attached(pipe(), with_input())
        .await
        .unwrap_err();
    let Error::NotStarted { outcome, .. } = error else {
        panic!("{error}");
    };
    assert!(matches!(outcome.ending, Ending::FailedToStart { .. }));
    assert_eq!(bench.runtime.calls(Call::Start), 0);
    assert_eq!(bench.runtime.containers(), 0);
    assert_eq!(
        actions(outcome.audit.as_ref().unwrap()),
        [Action::AttachInput]
    );
}

#[tokio::test]
async fn input_without_stdin_in_the_spec_is_refused() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let started = manager
        .start_attached(RunSpec::new("any"), with_input())
        .await;
    assert!(matches!(started, Err(Error::NoInput { .. })));
    assert_eq!(bench.runtime.calls(Call::Create), 0);
    assert!(manager.list().await.unwrap().is_empty());
}

/// The recovering manager knows that the end of input came from a lost writer.
#[tokio::test]
async fn a_writer_lost_with_its_process_is_recorded() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().echo());
    let first = bench.open_on_threads().await;
    let (run, mut output) = first.start_attached(pipe(), with_input()).await.unwrap();
    let mut input = output.input().unwrap();
    input.write_all(b"half\n").await.unwrap();
    printed(&mut output, b"half\n").await;
    let id = run.id().clone();
    // As if the process had died: nothing more is recorded.
    first.shutdown(ShutdownMode::Leave).await;
    drop((run, output));

    let second = bench.open_on_threads().await;
    second.wait_recovery().await.unwrap();
    let run = second.get(&id).await.unwrap();
    let error = run.attach_with(with_input()).await.unwrap_err();
    assert!(matches!(error, Error::NoInput { .. }), "{error}");
    drop(input);
    let (outcome, path) = audited(&run).await;
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(actions(&path), [Action::AttachInput, Action::InputLost]);
}

/// The record has the input that the engine accepted.
#[tokio::test]
async fn input_is_recorded_on_request() {
    for record in [false, true] {
        let bench = Bench::new();
        bench.runtime.next(Script::new().echo());
        let manager = bench.open_on_threads().await;
        let spec = pipe().record_stdin(record);
        let (run, mut output) = manager.start_attached(spec, with_input()).await.unwrap();
        let mut input = output.input().unwrap();
        for _ in 0..100 {
            input.write_all(b"typed\n").await.unwrap();
        }
        input.shutdown().await.unwrap();
        assert_eq!(all(output).await.len(), 600);
        let (_, path) = audited(&run).await;
        let typed: Vec<u8> = events(&path)
            .into_iter()
            .filter_map(|event| match event {
                Event::Stdin(written) => Some(written.bytes),
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(
            typed,
            if record {
                b"typed\n".repeat(100)
            } else {
                Vec::new()
            }
        );
    }
}
