//! The size of a terminal.

use moat::audit::Action;
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::spec::{ExecSpec, Stdin, WindowSize};
use moat::{Error, RunSpec};

use crate::attach::{all, audited, with_input};
use crate::bench::Bench;
use crate::records::actions;
use crate::stdin::{pipe, write_and_end};

#[tokio::test]
async fn each_size_change_is_recorded_once() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().until_stopped());
    let manager = bench.open_on_threads().await;
    let spec = RunSpec::new("any").tty(true).stdin(Stdin::Open);
    let size = WindowSize::new(80, 24);
    let (run, output) = manager
        .start_attached(spec, with_input().window(size))
        .await
        .unwrap();
    let other = WindowSize::new(100, 30);
    for size in [size, other, other] {
        output.resize(size).await.unwrap();
    }
    output.detach();
    run.kill().await.unwrap();
    let (_, path) = audited(&run).await;
    assert_eq!(bench.runtime.sizes(), [size, size, other, other]);
    assert_eq!(
        actions(&path),
        [Action::AttachInput, Action::Resize, Action::Detach]
    );
}

#[tokio::test]
async fn a_size_needs_a_terminal() {
    let error = RunSpec::new("any").window(WindowSize::new(1, 1)).validate();
    assert!(error.is_err());
    let error = pipe().tty(true).validate();
    assert!(error.is_err());
}

/// A pipe has one writer. A failed call does not take it.
#[tokio::test]
async fn a_refused_size_leaves_the_input_free() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().echo());
    bench.runtime.next_exec(Script::new().echo());
    let manager = bench.open_on_threads().await;
    let run = manager.start(pipe()).await.unwrap();
    let spec = ExecSpec::new(["any"]).interactive(true);
    let exec = run.exec(spec).await.unwrap();
    let refuse = || {
        let refused = RuntimeError::Rejected {
            operation: "resize the terminal",
            reason: "there is none".into(),
        };
        bench.runtime.fault(Call::Resize, Fault::Error(refused));
    };
    let with_size = with_input().window(WindowSize::new(80, 24));

    refuse();
    let error = exec.attach_with(with_size).await.unwrap_err();
    assert!(matches!(error, Error::Runtime(_)), "{error}");
    let mut output = exec.attach_with(with_input()).await.unwrap();
    write_and_end(&mut output).await;
    assert_eq!(all(output).await, b"typed\n");

    refuse();
    let error = run.attach_with(with_size).await.unwrap_err();
    assert!(matches!(error, Error::Runtime(_)), "{error}");
    let mut output = run.attach_with(with_input()).await.unwrap();
    write_and_end(&mut output).await;
    assert_eq!(all(output).await, b"typed\n");
    let (_, path) = audited(&run).await;
    assert_eq!(
        actions(&path),
        [Action::Exec, Action::AttachInput, Action::InputEnd]
    );
}
