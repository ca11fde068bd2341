//! Runs one command.
//!
//! Prints its output, how it ended, and the path of its audit file.
//!
//! ```sh
//! cargo run --example quickstart             # in busybox if an engine has it, else as a process
//! cargo run --example quickstart -- IMAGE    # in IMAGE, pulled if it is missing
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
    let result = match std::env::args().nth(1) {
        Some(image) => in_image(&image).await,
        None => in_container_or_process().await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            if is_no_image(&error) {
                eprintln!("{IMAGE_HINT}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn in_image(image: &str) -> moat::Result<()> {
    let connected = moat::connect(Fallback::None).await?;
    println!("runtime: {connected}");
    let spec = RunSpec::new(image)
        .cmd(["sh", "-c", SCRIPT])
        .network("none");
    run(connected.runtime, spec).await
}

async fn in_container_or_process() -> moat::Result<()> {
    let connected = moat::connect(Fallback::Process).await?;
    println!("runtime: {connected}");
    let process = RunSpec::command(["sh", "-c", SCRIPT]);
    if connected.kind == RuntimeKind::Process {
        return run(connected.runtime, process).await;
    }
    let container = RunSpec::new("busybox").cmd(["sh", "-c", SCRIPT]);
    let container = container.network("none").pull(Pull::Never);
    match run(connected.runtime, container).await {
        Err(error) if is_no_image(&error) => {
            println!(
                "runtime: a local process, without isolation: {}",
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

const IMAGE_HINT: &str = "\
Name an image that you have, or one to pull: cargo run --example quickstart -- busybox
Offline, make one from Debian's package busybox-static:
  tar -C /bin --transform 's,busybox,bin/sh,' -c busybox | docker import - busybox";
