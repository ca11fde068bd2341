//! Looks after the runs of a root, those of other processes too.
//!
//! ```sh
//! cargo run --example runs -- list [--json]          # what there is
//! cargo run --example runs -- wait ID                # its end; exits with its code
//! cargo run --example runs -- stop ID                # stops it with its grace
//! cargo run --example runs -- logs ID [--follow]     # its output, from the start
//! cargo run --example runs -- attach ID              # sits in front of it; exits with its code
//! cargo run --example runs -- exec ID -- CMD...      # a further process in it; exits with its code
//! cargo run --example runs -- verify ID|PATH         # exits 0 for a sealed, undamaged file alone
//! cargo run --example runs -- recover                # seals what a crash has left behind
//! cargo run --example runs -- remove ID              # its container, if kept, and its dir
//! ```
//!
//! `--root DIR`, before or after the word, says where the runs are, and `--runtime process` that
//! they are local processes: those of another process can be waited for, and not stopped. `list`, `verify` and `logs`
//! without `--follow` read files alone, and need no engine. All but `recover` and `remove` work
//! while another process owns the run. Errors exit with 125.
//!
//! `attach` in front of a run with a terminal, and `exec --interactive --tty`, need this example
//! built with `--features terminal`. `ctrl-p ctrl-q` leaves, and exits with 0. A run goes on, and is
//! audited by its owner. A further process is audited by who started it: it may go on, but nothing
//! of it is recorded from there on, and its audit is sealed as lost.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand, ValueEnum};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
#[cfg(feature = "docker")]
use moat::Docker;
use moat::audit::{self, LogState};
use moat::manager::RecoveryMode;
use moat::outcome::Stream;
use moat::root::RunInfo;
use moat::run::{AttachOptions, Attached, Attachment};
use moat::spec::{ExecSpec, Stdin, WindowSize};
use moat::{Error, LocalProcess, Manager, Outcome, Root, RunId, Runtime, ShutdownMode};
use tokio::io::AsyncWriteExt;

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
    /// What runs them
    #[arg(long, value_enum, default_value_t, global = true)]
    runtime: RuntimeArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum RuntimeArg {
    /// The engine of DOCKER_HOST, or of this machine
    #[cfg(feature = "docker")]
    #[cfg_attr(feature = "docker", default)]
    Docker,
    /// Local processes
    #[cfg_attr(not(feature = "docker"), default)]
    Process,
}

impl RuntimeArg {
    async fn open(self) -> moat::Result<Arc<dyn Runtime>> {
        Ok(match self {
            #[cfg(feature = "docker")]
            Self::Docker => Arc::new(Docker::connect().await?),
            Self::Process => Arc::new(LocalProcess::new()),
        })
    }
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
    /// Sits in front of a run: at its terminal, or else with its output from the start
    Attach {
        /// The run
        id: RunId,
    },
    /// Runs a further process in a run's container, with an audit of its own
    Exec {
        /// Pass standard input on to it
        #[arg(long, short)]
        interactive: bool,
        /// Give it a terminal
        #[arg(long, short)]
        tty: bool,
        /// A variable of the environment
        #[arg(long, value_name = "K=V")]
        env: Vec<String>,
        /// The working directory in the container
        #[arg(long, value_name = "DIR")]
        workdir: Option<String>,
        /// `user`, `uid`, `user:group` or `uid:gid`
        #[arg(long, value_name = "U")]
        user: Option<String>,
        /// The run
        id: RunId,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        cmd: Vec<String>,
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

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(error);
            return ExitCode::from(FAILED);
        }
    };
    let code = runtime.block_on(run());
    // A read of standard input may go on for ever.
    runtime.shutdown_background();
    code
}

async fn run() -> ExitCode {
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
        Command::Wait { id } => wait(&args, id).await,
        Command::Stop { id } => stop(&args, id).await,
        Command::Logs { id, follow: false } => logs(&args.root, id),
        Command::Logs { id, follow: true } => follow(&args, id).await,
        Command::Attach { id } => attach(&args, id).await,
        Command::Exec { id, .. } => exec(&args, id).await,
        Command::Verify { target } => verify(&args.root, target),
        Command::Recover => recover(&args).await,
        Command::Remove { id } => remove(&args, id).await,
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
async fn manager(args: &Args) -> moat::Result<Manager> {
    // A root that is not there is not made by asking about it.
    Root::open(&args.root)?;
    Manager::builder(&args.root, args.runtime.open().await?)
        .recovery(RecoveryMode::OnDemand)
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
            info.status.to_string(),
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

async fn wait(args: &Args, id: &RunId) -> moat::Result<u8> {
    let manager = manager(args).await?;
    let outcome = manager.wait(id).await?;
    manager.shutdown(ShutdownMode::Leave).await;
    say(&outcome);
    Ok(code(&outcome))
}

async fn stop(args: &Args, id: &RunId) -> moat::Result<u8> {
    let manager = manager(args).await?;
    let outcome = manager.stop(id, None).await?;
    manager.shutdown(ShutdownMode::Leave).await;
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

async fn follow(args: &Args, id: &RunId) -> moat::Result<u8> {
    let manager = manager(args).await?;
    let output = manager.attach(id).await?.lossless();
    let code = show(output).await?;
    manager.shutdown(ShutdownMode::Leave).await;
    Ok(code)
}

async fn attach(args: &Args, id: &RunId) -> moat::Result<u8> {
    let manager = manager(args).await?;
    let record = Root::open(&args.root)?.info(id)?.record;
    let settings = record.map(|record| record.settings).unwrap_or_default();
    let mut options = AttachOptions::new();
    if settings.stdin == Stdin::Open {
        options = options.with_input();
    }
    let code = if settings.tty {
        let left = format!("{id} goes on");
        sit(&left, |_| async {
            manager
                .get(id)
                .await?
                .attach_with(options.live_only())
                .await
        })
        .await?
    } else {
        let attachment = manager
            .get(id)
            .await?
            .attach_with(options.lossless())
            .await?;
        look(attachment).await?
    };
    manager.shutdown(ShutdownMode::Leave).await;
    Ok(code)
}

async fn exec(args: &Args, id: &RunId) -> moat::Result<u8> {
    let Command::Exec {
        interactive,
        tty,
        env,
        workdir,
        user,
        cmd,
        ..
    } = &args.command
    else {
        return Ok(FAILED);
    };
    let mut spec = ExecSpec::new(cmd).interactive(*interactive).tty(*tty);
    for variable in env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        spec = spec.env(name, value);
    }
    if let Some(path) = workdir {
        spec = spec.workdir(path);
    }
    if let Some(user) = user {
        spec = spec.user(user);
    }
    let mut options = AttachOptions::new().lossless();
    if *interactive {
        options = options.with_input();
    }
    let manager = manager(args).await?;
    let run = manager.get(id).await?;
    let code = if *tty && *interactive {
        let begin = |size| async move {
            let exec = run.exec(spec.window(size)).await?;
            exec.attach_with(options.window(size)).await
        };
        let left = "left; nothing that the process does from here on is in its audit";
        sit(left, begin).await?
    } else {
        let exec = run.exec(spec).await?;
        look(exec.attach_with(options).await?).await?
    };
    manager.shutdown(ShutdownMode::Leave).await;
    Ok(code)
}

/// Prints what is printed and passes on what is typed, without a terminal.
async fn look(mut output: Attachment) -> moat::Result<u8> {
    let control = output.control();
    let input = output.input();
    let shown = show(output);
    tokio::pin!(shown);
    let pass_on = async {
        let Some(mut input) = input else { return };
        let copied = tokio::io::copy(&mut tokio::io::stdin(), &mut input).await;
        if copied.is_ok() {
            // One that stays open has no end.
            let _ = input.shutdown().await;
        }
    };
    tokio::select! {
        shown = &mut shown => shown,
        () = pass_on => shown.await,
    }?;
    Ok(code(&control.outcome().await?))
}

/// Puts this terminal in front of what `begin` attaches to; `left` is what to say of leaving it.
#[cfg(feature = "terminal")]
async fn sit<F: Future<Output = moat::Result<Attachment>>>(
    left: &str,
    begin: impl FnOnce(WindowSize) -> F,
) -> moat::Result<u8> {
    use moat::terminal::{SessionEnd, Terminal};

    let terminal = Terminal::open()?;
    let attachment = begin(terminal.size()?).await?;
    Ok(match terminal.attach(attachment).await? {
        SessionEnd::Ended(outcome) => code(&outcome),
        SessionEnd::Signal(number) => 128 + number as u8,
        _ => {
            say(left);
            0
        }
    })
}

#[cfg(not(feature = "terminal"))]
async fn sit<F>(_: &str, _: impl FnOnce(WindowSize) -> F) -> moat::Result<u8> {
    Err(Error::InvalidSpec {
        field: "tty".into(),
        reason: "this example has to be built with `--features terminal`".into(),
    })
}

async fn show(mut output: Attachment) -> moat::Result<u8> {
    while let Some(item) = output.next().await {
        match item? {
            Attached::Chunk(chunk) => {
                if let Err(error) = print(chunk.stream, &chunk.bytes) {
                    return printed(Err(error));
                }
            }
            Attached::Lagged { stream, bytes } => {
                complain(format_args!(
                    "{bytes} bytes of {stream} came too fast to be shown here"
                ));
            }
            _ => {}
        }
    }
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

async fn recover(args: &Args) -> moat::Result<u8> {
    Root::open(&args.root)?;
    let manager = Manager::open(&args.root, args.runtime.open().await?).await?;
    let mut worst = 0;
    let mut waiting: FuturesUnordered<_> = manager
        .wait_recovery()
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
    manager.shutdown(ShutdownMode::Leave).await;
    Ok(worst)
}

async fn remove(args: &Args, id: &RunId) -> moat::Result<u8> {
    let manager = manager(args).await?;
    manager.remove(id).await?;
    manager.shutdown(ShutdownMode::Leave).await;
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
