//! Runs one command, prints what it prints, how it ended, and where its audit is.
//!
//! ```sh
//! cargo run --example quickstart             # in busybox, if an engine has it; else as a process
//! cargo run --example quickstart -- IMAGE    # in an image of yours, pulled where it is missing
//! ```

use std::process::ExitCode;

use futures::StreamExt;
use moat::run::Attached;
use moat::runtime::RuntimeError;
use moat::runtime::connect::RuntimeKind;
use moat::spec::Pull;
use moat::{Error, Fallback, LocalProcess, Manager, RunSpec, Runtime, ShutdownMode};

const SCRIPT: &str = "echo hello, $NAME; echo and to stderr >&2; exit 3";

#[tokio::main]
async fn main() -> ExitCode {
    let done = match std::env::args().nth(1) {
        Some(image) => in_image(&image).await,
        None => in_whatever_is_there().await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            if is_no_image(&error) {
                eprintln!("{HOW_TO_GET_ONE}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn in_image(image: &str) -> moat::Result<()> {
    let there = moat::connect(Fallback::None).await?;
    println!("runtime: {there}");
    let spec = RunSpec::new(image)
        .cmd(["sh", "-c", SCRIPT])
        .network("none");
    run(there.runtime, spec).await
}

async fn in_whatever_is_there() -> moat::Result<()> {
    let there = moat::connect(Fallback::Process).await?;
    println!("runtime: {there}");
    let process = RunSpec::command(["sh", "-c", SCRIPT]);
    if there.choice == RuntimeKind::Process {
        return run(there.runtime, process).await;
    }
    let container = RunSpec::new("busybox").cmd(["sh", "-c", SCRIPT]);
    let container = container.network("none").pull(Pull::Never);
    match run(there.runtime, container).await {
        Err(error) if is_no_image(&error) => {
            println!(
                "runtime: a local process, without any isolation: {}",
                error.chain()
            );
            run(LocalProcess::new(), process).await
        }
        other => other,
    }
}

async fn run(runtime: impl Runtime, spec: RunSpec) -> moat::Result<()> {
    let manager = Manager::open("moat-runs", runtime).await?;
    let spec = spec
        .env("NAME", "stranger")
        .on_pull(|progress| eprintln!("pull: {}", progress.status));

    let run = manager.start(spec).await?;
    let mut output = run.attach().await?;
    while let Some(item) = output.next().await {
        if let Attached::Chunk(chunk) = item? {
            print!(
                "{}: {}",
                chunk.stream,
                String::from_utf8_lossy(&chunk.bytes)
            );
        }
    }
    let outcome = run.wait().await?;
    println!("{outcome}");
    if let Some(audit) = &outcome.audit {
        println!("audit: {}", audit.display());
    }
    manager.shutdown(ShutdownMode::Leave).await;
    Ok(())
}

fn is_no_image(error: &Error) -> bool {
    matches!(
        error,
        Error::NotStarted {
            source: RuntimeError::NoSuchImage { .. },
            ..
        }
    )
}

const HOW_TO_GET_ONE: &str = "\
Give an image that you have, or one to pull: cargo run --example quickstart -- busybox
Offline, Debian's package busybox-static makes one:
  tar -C /bin --transform 's,busybox,bin/sh,' -c busybox | docker import - busybox";
