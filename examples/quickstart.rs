//! Runs one command in a container, prints what it prints, how it ended, and where its audit is.
//!
//! ```sh
//! cargo run --example quickstart             # in busybox, if the engine has it
//! cargo run --example quickstart -- IMAGE    # in an image of yours, pulled where it is missing
//! ```

use futures::StreamExt;
use moat::runtime::RuntimeError;
use moat::{Attached, Docker, Error, Manager, Pull, RunSpec, Shutdown};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    match quickstart().await {
        Ok(()) => return std::process::ExitCode::SUCCESS,
        Err(
            error @ Error::NotStarted {
                source: RuntimeError::NoSuchImage { .. },
                ..
            },
        ) => {
            eprintln!("{}\n{HOW_TO_GET_ONE}", error.chain());
        }
        Err(error) => eprintln!("{}", error.chain()),
    }
    std::process::ExitCode::FAILURE
}

async fn quickstart() -> moat::Result<()> {
    let (image, pull) = match std::env::args().nth(1) {
        Some(image) => (image, Pull::Missing),
        None => ("busybox".into(), Pull::Never),
    };
    let manager = Manager::open("moat-runs", Docker::connect().await?).await?;
    let spec = RunSpec::new(image)
        .cmd([
            "sh",
            "-c",
            "echo hello, $NAME; echo and to stderr >&2; exit 3",
        ])
        .env("NAME", "stranger")
        .network("none")
        .pull(pull)
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
    manager.shutdown(Shutdown::Leave).await;
    Ok(())
}

const HOW_TO_GET_ONE: &str = "\
Give an image that you have, or one to pull: cargo run --example quickstart -- busybox
Offline, Debian's package busybox-static makes one:
  tar -C /bin --transform 's,busybox,bin/sh,' -c busybox | docker import - busybox";
