//! Looks after the runs of a root, those of other processes too.
//!
//! ```sh
//! cargo run --example runs -- list [--json]          # what there is
//! cargo run --example runs -- wait ID                # its end; exits with its code
//! cargo run --example runs -- stop ID                # stops it with its grace
//! cargo run --example runs -- logs ID [--follow]     # its output, from the start
//! cargo run --example runs -- verify ID|PATH         # exits 0 for a sealed, undamaged file alone
//! cargo run --example runs -- recover                # seals what a crash has left behind
//! cargo run --example runs -- remove ID              # its container, if kept, and its folder
//! ```
//!
//! `--root DIR`, before or after the word, says where the runs are. `list`, `verify` and `logs`
//! without `--follow` read files alone, and need no engine. All but `recover` and `remove` work
//! while another process owns the run. Errors exit with 125.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use moat::sink::audit::{self, LogState};
use moat::{
    Attached, Docker, Error, Manager, Outcome, Recovery, Root, RunId, RunInfo, Shutdown, Stream,
};

/// Exit code: `verify` found no seal, or damage.
const NOT_VERIFIED: u8 = 1;
/// Exit code: moat, the engine, or the arguments.
const FAILED: u8 = 125;

/// Looks after the runs of a root.
#[derive(Parser)]
struct Args {
    /// The folder that holds the runs
    #[arg(long, value_name = "DIR", default_value = "moat-runs", global = true)]
    root: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the runs
    List {
        /// As one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Waits for a run's end, and exits with its code
    Wait {
        /// The run
        id: RunId,
    },
    /// Stops a run with its grace
    Stop {
        /// The run
        id: RunId,
    },
    /// Prints a run's output from its start, stdout and stderr where they belong
    Logs {
        /// The run
        id: RunId,
        /// Go on until the run ends
        #[arg(long)]
        follow: bool,
    },
    /// Checks an audit file: its structure, its counts and its digests
    Verify {
        /// A run, or the path of an audit file
        #[arg(value_name = "ID|PATH")]
        target: String,
    },
    /// Lets every run that still runs go on to its end, and seals what has ended
    Recover,
    /// Removes a run: its container, if it was kept, and its folder
    Remove {
        /// The run
        id: RunId,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            let code = if error.use_stderr() { FAILED } else { 0 };
            return ExitCode::from(code);
        }
    };
    let done = match &args.command {
        Command::List { json } => list(&args.root, *json),
        Command::Wait { id } => wait(&args.root, id).await,
        Command::Stop { id } => stop(&args.root, id).await,
        Command::Logs { id, follow: false } => logs(&args.root, id),
        Command::Logs { id, follow: true } => follow(&args.root, id).await,
        Command::Verify { target } => verify(&args.root, target),
        Command::Recover => recover(&args.root).await,
        Command::Remove { id } => remove(&args.root, id).await,
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(error.chain());
            ExitCode::from(FAILED)
        }
    }
}

/// A manager that takes over only the runs that it is asked about.
async fn manager(root: &Path) -> moat::Result<Manager> {
    // A root that is not there is not made by asking about it.
    Root::open(root)?;
    Manager::builder(root, Docker::connect().await?)
        .recovery(Recovery::OnDemand)
        .open()
        .await
}

fn list(root: &Path, json: bool) -> moat::Result<u8> {
    let runs = Root::open(root)?.list()?;
    let mut out = io::stdout().lock();
    let written = if json {
        serde_json::to_writer_pretty(&mut out, &runs)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        table(&mut out, &runs)
    };
    printed(written)
}

fn table(out: &mut impl Write, runs: &[RunInfo]) -> io::Result<()> {
    let mut rows = vec![["RUN", "STATE", "CODE", "AUDIT", "IMAGE", "COMMAND"].map(String::from)];
    rows.extend(runs.iter().map(|info| {
        let code = info.seal.as_ref().and_then(|seal| seal.exit.code());
        let audit = match (&info.problem, &info.seal) {
            (Some(problem), _) => problem.clone(),
            (None, Some(seal)) => seal.verdict.to_string(),
            (None, None) => "unsealed".into(),
        };
        let settings = info.record.as_ref().map(|record| &record.settings);
        [
            info.run.to_string(),
            info.state.to_string(),
            code.map_or("-".into(), |code| code.to_string()),
            audit,
            settings.map_or("-".into(), |settings| settings.image.clone()),
            settings.map_or("-".into(), |settings| settings.cmd.join(" ")),
        ]
    }));
    let widths: [usize; 5] = std::array::from_fn(|column| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or_default()
    });
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            write!(out, "{cell:width$}  ")?;
        }
        // What a command holds must not reach the terminal as it is.
        writeln!(out, "{}", row[5].escape_debug())?;
    }
    Ok(())
}

async fn wait(root: &Path, id: &RunId) -> moat::Result<u8> {
    let manager = manager(root).await?;
    let outcome = manager.wait(id).await?;
    manager.shutdown(Shutdown::Leave).await;
    say(&outcome);
    Ok(code(&outcome))
}

async fn stop(root: &Path, id: &RunId) -> moat::Result<u8> {
    let manager = manager(root).await?;
    let outcome = manager.stop(id, None).await?;
    manager.shutdown(Shutdown::Leave).await;
    say(&outcome);
    Ok(0)
}

fn code(outcome: &Outcome) -> u8 {
    outcome.code().map_or(FAILED, |code| code as u8)
}

fn logs(root: &Path, id: &RunId) -> moat::Result<u8> {
    let root = Root::open(root)?;
    root.info(id)?;
    for record in audit::Reader::open(root.audit(id))? {
        if let audit::Record::Output(output) = record? {
            let mut bytes = output.bytes;
            if !output.partial {
                bytes.push(b'\n');
            }
            if let Err(error) = print(output.stream, &bytes) {
                return printed(Err(error));
            }
        }
    }
    Ok(0)
}

async fn follow(root: &Path, id: &RunId) -> moat::Result<u8> {
    let manager = manager(root).await?;
    let mut output = manager.attach(id).await?.catching_up();
    while let Some(item) = output.next().await {
        match item? {
            Attached::Chunk(chunk) => {
                if let Err(error) = print(chunk.stream, &chunk.bytes) {
                    return printed(Err(error));
                }
            }
            Attached::Missed { stream, bytes } => {
                complain(format_args!(
                    "{bytes} bytes of {stream} came too fast to be shown here"
                ));
            }
            _ => {}
        }
    }
    manager.shutdown(Shutdown::Leave).await;
    Ok(0)
}

fn verify(root: &Path, target: &str) -> moat::Result<u8> {
    let path = match target.parse::<RunId>() {
        Ok(id) if !target.contains('/') && !Path::new(target).exists() => {
            Root::open(root)?.audit(&id)
        }
        _ => PathBuf::from(target),
    };
    let found = audit::verify(&path)?;
    let (words, code) = match &found.state {
        LogState::Sealed(seal) => (
            format!("whole and sealed; {}, audit {}", seal.exit, seal.verdict),
            0,
        ),
        LogState::Unsealed { torn } => (
            format!("not sealed; its last {torn} bytes are torn"),
            NOT_VERIFIED,
        ),
        LogState::Damaged(damage) => (format!("damaged at {damage}"), NOT_VERIFIED),
        _ => ("in a state that is not known here".into(), NOT_VERIFIED),
    };
    say(format_args!("{}: {words}", path.display()));
    say(format_args!(
        "{} lines, {} records of output, {} bytes, {} gaps",
        found.lines,
        found.records,
        found.bytes.total(),
        found.gaps
    ));
    Ok(code)
}

async fn recover(root: &Path) -> moat::Result<u8> {
    Root::open(root)?;
    let manager = Manager::open(root, Docker::connect().await?).await?;
    let mut worst = 0;
    let mut waiting: FuturesUnordered<_> = manager
        .recovered()
        .await?
        .into_iter()
        .map(|run| async move { run.wait().await })
        .collect();
    while let Some(outcome) = waiting.next().await {
        match outcome {
            Ok(outcome) => say(&outcome),
            Err(error) => {
                complain(error.chain());
                worst = FAILED;
            }
        }
    }
    manager.shutdown(Shutdown::Leave).await;
    Ok(worst)
}

async fn remove(root: &Path, id: &RunId) -> moat::Result<u8> {
    let manager = manager(root).await?;
    manager.remove(id).await?;
    manager.shutdown(Shutdown::Leave).await;
    Ok(0)
}

fn print(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        Stream::Stderr => io::stderr().write_all(bytes),
        Stream::Stdout | Stream::Tty => {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
    }
}

/// A reader that has seen enough, such as `head`, is no error.
fn printed(written: io::Result<()>) -> moat::Result<u8> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::storage("write to", "stdout", error))
        }
        _ => Ok(0),
    }
}

/// A line on stdout, whether or not anybody reads it.
fn say(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// A line on stderr, whether or not anybody reads it.
fn complain(text: impl Display) {
    let _ = writeln!(io::stderr(), "runs: {text}");
}
