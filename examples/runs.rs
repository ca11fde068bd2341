//! Manages the runs of a root, including runs that other processes own.
//!
//! ```sh
//! cargo run --example runs -- list [--json]          # lists all runs
//! cargo run --example runs -- wait ID                # waits for the end; exits with its code
//! cargo run --example runs -- stop ID                # stops the run within its grace period
//! cargo run --example runs -- logs ID [--follow]     # prints the output from the start
//! cargo run --example runs -- attach ID              # attaches to the run; exits with its code
//! cargo run --example runs -- exec ID -- CMD...      # runs an exec; exits with its code
//! cargo run --example runs -- verify ID|PATH         # exits with 0 if sealed and intact
//! cargo run --example runs -- recover                # recovers and seals the runs of a crash
//! cargo run --example runs -- remove ID              # removes the directory and a kept container
//! ```
//!
//! `--root DIR` names the root. `--runtime process` selects local processes, and `--runtime
//! kubernetes` selects pods, in a build with `--features kube-earliest`. A local process of another
//! owner can be waited for, but not stopped. `list`, `verify` and `logs` without `--follow` only read
//! files, and need no engine. All commands except `recover` and `remove` work while
//! another process owns the run. Errors exit with 125.
//!
//! In a build with `--features sign`, `verify --allowed-signers FILE [--identity WHO]` also verifies the
//! signature.
//!
//! `exec --interactive --tty`, and `attach` to a run with a terminal, require a build with
//! `--features terminal`. `ctrl-p ctrl-q` detaches and exits with 0. A run continues, and its owner
//! records it. An exec is recorded by the process that started it: after a detach it may continue,
//! but its output is not recorded, and its audit is sealed as lost.

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
#[cfg(feature = "kube")]
use moat::Kubernetes;
use moat::audit::{self, LogState};
use moat::manager::RecoveryMode;
use moat::outcome::{StopCause, Stream};
use moat::root::RunInfo;
use moat::run::{AttachOptions, Attached, Attachment};
#[cfg(feature = "sign")]
use moat::sign::AllowedSigners;
use moat::spec::{ExecSpec, Stdin, WindowSize};
use moat::timestamp::Timestamp;
use moat::{Error, LocalProcess, Manager, Outcome, Root, RunId, Runtime, ShutdownMode};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

/// Exit code: `verify` found damage, or no seal.
const NOT_VERIFIED: u8 = 1;
/// Exit code: an error of moat or of the engine, or invalid arguments.
const FAILED: u8 = 125;

/// Manages the runs of a root.
#[derive(Parser)]
struct Args {
    /// Directory of the runs
    #[arg(long, value_name = "DIR", default_value = "moat-runs", global = true)]
    root: PathBuf,
    /// Runtime of the runs
    #[arg(long, value_enum, default_value_t, global = true)]
    runtime: RuntimeArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum RuntimeArg {
    /// Containers on the engine of Docker's CLI, or a local engine
    #[cfg(feature = "docker")]
    #[cfg_attr(feature = "docker", default)]
    Docker,
    /// Pods, in the current context of the kubeconfig
    #[cfg(feature = "kube")]
    Kubernetes,
    /// Pods without moat's helper: output from the kubelet's log, which is never proven complete
    #[cfg(feature = "kube")]
    KubernetesPlain,
    /// Local processes
    #[cfg_attr(not(feature = "docker"), default)]
    Process,
}

impl RuntimeArg {
    async fn open(self) -> moat::Result<Arc<dyn Runtime>> {
        Ok(match self {
            #[cfg(feature = "docker")]
            Self::Docker => Arc::new(Docker::connect().await?),
            #[cfg(feature = "kube")]
            Self::Kubernetes => Arc::new(Kubernetes::connect().await?),
            #[cfg(feature = "kube")]
            Self::KubernetesPlain => Arc::new(Kubernetes::connect().await?.without_helper()),
            Self::Process => Arc::new(LocalProcess::new()),
        })
    }
}

#[derive(Subcommand)]
enum Command {
    /// Lists all runs
    List {
        /// Print all fields, as one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Waits for the end of a run, and exits with its code
    Wait {
        /// Id of the run
        id: RunId,
    },
    /// Stops a run within its grace period
    Stop {
        /// Id of the run
        id: RunId,
    },
    /// Prints the output of a run from its start, to stdout and stderr
    Logs {
        /// Id of the run
        id: RunId,
        /// Continue until the run ends
        #[arg(long)]
        follow: bool,
    },
    /// Attaches to a run: to its terminal, or to its output from the start
    Attach {
        /// Id of the run
        id: RunId,
    },
    /// Runs an exec in the container of a run, with its own audit
    Exec {
        /// Forward standard input to the exec
        #[arg(long, short)]
        interactive: bool,
        /// Allocate a terminal for the exec
        #[arg(long, short)]
        tty: bool,
        /// Environment variable
        #[arg(long, value_name = "K=V")]
        env: Vec<String>,
        /// Working directory in the container
        #[arg(long, value_name = "DIR")]
        workdir: Option<String>,
        /// `user`, `uid`, `user:group` or `uid:gid`
        #[arg(long, value_name = "U")]
        user: Option<String>,
        /// Id of the run
        id: RunId,
        /// Command and arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        cmd: Vec<String>,
    },
    /// Verifies an audit file: its structure, its counts, its digests and its seal
    Verify {
        /// Id of a run, whose file must belong to the run, or path of an audit file
        #[arg(value_name = "ID|PATH")]
        target: String,
        /// Also verify the signature, with this file in the format of `ssh-keygen`
        #[cfg(feature = "sign")]
        #[arg(long, value_name = "FILE")]
        allowed_signers: Option<PathBuf>,
        /// Accept this signer only
        #[cfg(feature = "sign")]
        #[arg(long, value_name = "WHO", requires = "allowed_signers")]
        identity: Option<String>,
    },
    /// Recovers all runs, waits for their end, and seals them
    Recover,
    /// Removes a run: its directory, and its container if it was kept
    Remove {
        /// Id of the run
        id: RunId,
    },
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(error);
            return ExitCode::from(FAILED);
        }
    };
    let code = runtime.block_on(run());
    // A read of standard input may never return.
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
    let result = match &args.command {
        Command::List { json } => list(&args.root, *json),
        Command::Wait { id } => wait(&args, id).await,
        Command::Stop { id } => stop(&args, id).await,
        Command::Logs { id, follow: false } => logs(&args.root, id),
        Command::Logs { id, follow: true } => follow(&args, id).await,
        Command::Attach { id } => attach(&args, id).await,
        Command::Exec { id, .. } => exec(&args, id).await,
        #[cfg(not(feature = "sign"))]
        Command::Verify { target } => verify(&args.root, target).map(|(_, code)| code),
        #[cfg(feature = "sign")]
        Command::Verify {
            target,
            allowed_signers,
            identity,
        } => verify(&args.root, target).and_then(|(path, code)| match allowed_signers {
            Some(file) => {
                verify_signature(&path, file, identity.as_deref()).map(|signed| code.max(signed))
            }
            None => Ok(code),
        }),
        Command::Recover => recover(&args).await,
        Command::Remove { id } => remove(&args, id).await,
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            print_error(error.chain());
            ExitCode::from(FAILED)
        }
    }
}

/// Opens a manager that recovers only the run that a command names.
async fn manager(args: &Args) -> moat::Result<Manager> {
    // The manager would create a missing root.
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
        runs.iter().try_for_each(|info| {
            serde_json::to_writer(&mut out, info)?;
            writeln!(out)
        })
    } else {
        table(&mut out, &runs)
    };
    ignore_closed_stdout(written)
}

fn table(out: &mut impl Write, runs: &[RunInfo]) -> io::Result<()> {
    let header = [
        "RUN", "STATE", "CODE", "STARTED", "ENDED", "STOPPED", "AUDIT", "IMAGE", "COMMAND",
    ];
    let mut rows = vec![header.map(String::from)];
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
            seconds(info.started_at),
            seconds(info.ended_at),
            info.stopped.map_or("-".into(), name),
            audit,
            settings.map_or("-".into(), |settings| settings.image.clone()),
            settings.map_or("-".into(), |settings| settings.cmd.join(" ")),
        ]
    }));
    // The path in a problem, an image and a command may contain escape codes for the terminal.
    for cell in rows.iter_mut().flatten() {
        *cell = cell.escape_debug().to_string();
    }
    let widths: [usize; 8] = std::array::from_fn(|column| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or_default()
    });
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            write!(out, "{cell:width$}  ")?;
        }
        writeln!(out, "{}", row[8])?;
    }
    Ok(())
}

/// The name of the cause in the audit file, such as `time_limit`.
///
/// Its `Display` is a sentence.
fn name(cause: StopCause) -> String {
    match serde_json::to_value(cause) {
        Ok(Value::String(name)) => name,
        _ => "unknown".into(),
    }
}

/// Shows a time to the second.
fn seconds(time: Option<Timestamp>) -> String {
    time.map_or("-".into(), |time| format!("{}Z", &time.to_string()[..19]))
}

async fn wait(args: &Args, id: &RunId) -> moat::Result<u8> {
    let manager = manager(args).await?;
    let outcome = manager.wait(id).await?;
    manager.shutdown(ShutdownMode::Leave).await;
    print_line(&outcome);
    Ok(exit_code(&outcome))
}

async fn stop(args: &Args, id: &RunId) -> moat::Result<u8> {
    let manager = manager(args).await?;
    let outcome = manager.stop(id, None).await?;
    manager.shutdown(ShutdownMode::Leave).await;
    print_line(&outcome);
    Ok(0)
}

fn exit_code(outcome: &Outcome) -> u8 {
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
                return ignore_closed_stdout(Err(error));
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
        let message = format!("detached from {id}");
        attach_terminal(&message, |_| async {
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
        forward(attachment).await?
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
        let start = |size| async move {
            let exec = run.exec(spec.window(size)).await?;
            exec.attach_with(options.window(size)).await
        };
        let message = "detached; later output of the exec is not recorded";
        attach_terminal(message, start).await?
    } else {
        let exec = run.exec(spec).await?;
        forward(exec.attach_with(options).await?).await?
    };
    manager.shutdown(ShutdownMode::Leave).await;
    Ok(code)
}

/// Prints the output and forwards standard input, without a terminal.
///
/// Returns the exit code.
async fn forward(mut output: Attachment) -> moat::Result<u8> {
    let handle = output.handle();
    let input = output.input();
    let shown = show(output);
    tokio::pin!(shown);
    let forward_input = async {
        let Some(mut input) = input else { return };
        let copied = tokio::io::copy(&mut tokio::io::stdin(), &mut input).await;
        if copied.is_ok() {
            // Fails if the input stays open for later attachments.
            let _ = input.shutdown().await;
        }
    };
    tokio::select! {
        shown = &mut shown => shown,
        () = forward_input => shown.await,
    }?;
    Ok(exit_code(&handle.outcome().await?))
}

/// Attaches this terminal to the attachment that `start` opens.
///
/// Prints `detached` after a detach, and returns the exit code.
#[cfg(feature = "terminal")]
async fn attach_terminal<F: Future<Output = moat::Result<Attachment>>>(
    detached: &str,
    start: impl FnOnce(WindowSize) -> F,
) -> moat::Result<u8> {
    use moat::terminal::{SessionEnd, Terminal};

    let terminal = Terminal::open()?;
    let attachment = start(terminal.size()?).await?;
    Ok(match terminal.attach(attachment).await? {
        SessionEnd::Ended(outcome) => exit_code(&outcome),
        SessionEnd::Signal(number) => 128 + number as u8,
        _ => {
            print_line(detached);
            0
        }
    })
}

#[cfg(not(feature = "terminal"))]
async fn attach_terminal<F>(_: &str, _: impl FnOnce(WindowSize) -> F) -> moat::Result<u8> {
    Err(Error::from(moat::spec::InvalidSpec::new(
        "tty",
        "requires a build with `--features terminal`",
    )))
}

async fn show(mut output: Attachment) -> moat::Result<u8> {
    while let Some(item) = output.next().await {
        match item? {
            Attached::Chunk(chunk) => {
                if let Err(error) = print(chunk.stream, &chunk.bytes) {
                    return ignore_closed_stdout(Err(error));
                }
            }
            Attached::Lagged { stream, bytes } => {
                print_error(format_args!(
                    "{bytes} bytes of {stream} are not shown: the reader is too slow"
                ));
            }
            _ => {}
        }
    }
    Ok(0)
}

/// Verifies an audit file, and returns its path and the exit code.
fn verify(root: &Path, target: &str) -> moat::Result<(PathBuf, u8)> {
    let (path, found) = match target.parse::<RunId>() {
        Ok(id) if !target.contains('/') && !Path::new(target).exists() => {
            let root = Root::open(root)?;
            (root.audit(&id), root.verify(&id)?)
        }
        _ => (PathBuf::from(target), audit::verify(target)?),
    };
    let (text, code) = match &found.state {
        LogState::Sealed(seal) => (
            format!("sealed and intact; {}, audit {}", seal.exit, seal.verdict),
            0,
        ),
        LogState::Unsealed { torn: 0 } => ("not sealed".into(), NOT_VERIFIED),
        LogState::Unsealed { torn } => (
            format!(
                "not sealed; ends in {} of a partial record",
                count(*torn, "byte")
            ),
            NOT_VERIFIED,
        ),
        LogState::Damaged(damage) => (format!("damaged at {damage}"), NOT_VERIFIED),
        _ => ("in an unknown state".into(), NOT_VERIFIED),
    };
    print_line(format_args!("{}: {text}", path.display()));
    print_line(format_args!(
        "{}, {}, {}, {}",
        count(found.lines, "line"),
        count(found.records, "output record"),
        count(found.bytes.total(), "byte"),
        count(found.gaps, "gap")
    ));
    Ok((path, code))
}

#[cfg(feature = "sign")]
fn verify_signature(path: &Path, allowed: &Path, identity: Option<&str>) -> moat::Result<u8> {
    let mut allowed = AllowedSigners::from_file(allowed)?;
    if let Some(identity) = identity {
        allowed = allowed.identity(identity);
    }
    match allowed.verify_file(moat::sign::NAMESPACE, path) {
        Ok(signer) => {
            print_line(format_args!("signed by {signer}"));
            Ok(0)
        }
        Err(Error::Signature { source, .. }) => {
            print_line(format_args!("not signed by an allowed signer: {source}"));
            Ok(NOT_VERIFIED)
        }
        Err(error) => Err(error),
    }
}

fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

async fn recover(args: &Args) -> moat::Result<u8> {
    Root::open(&args.root)?;
    let manager = Manager::open(&args.root, args.runtime.open().await?).await?;
    let mut code = 0;
    let mut waiting: FuturesUnordered<_> = manager
        .wait_recovery()
        .await?
        .into_iter()
        .map(|run| async move { run.wait().await })
        .collect();
    while let Some(outcome) = waiting.next().await {
        match outcome {
            Ok(outcome) => print_line(&outcome),
            Err(error) => {
                print_error(error.chain());
                code = FAILED;
            }
        }
    }
    manager.shutdown(ShutdownMode::Leave).await;
    Ok(code)
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
        Stream::Stdout | Stream::Tty | Stream::Merged => {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
    }
}

/// Returns the result of a write to stdout.
///
/// A closed stdout, as in `runs logs ID | head`, is not an error.
fn ignore_closed_stdout(written: io::Result<()>) -> moat::Result<u8> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Storage {
            operation: "write to",
            path: "stdout".into(),
            source: error,
        }),
        _ => Ok(0),
    }
}

/// Prints a line on stdout. A closed stdout is ignored.
fn print_line(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Prints a line on stderr. A closed stderr is ignored.
fn print_error(text: impl Display) {
    let _ = writeln!(io::stderr(), "runs: {text}");
}
