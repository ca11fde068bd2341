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
//! cargo run --example runs -- find --label K=V       # finds runs, from the ledger alone
//! cargo run --example runs -- export ID FILE         # writes a bundle of the run, a tar archive
//! cargo run --example runs -- verify FILE.tar        # exits with 0 if the bundle is intact
//! cargo run --example runs -- verify [--head HEAD]   # compares all runs with the ledger
//! cargo run --example runs -- head                   # prints the head of the ledger, to be kept
//! cargo run --example runs -- history [ID]           # prints the ledger
//! cargo run --example runs -- recover                # recovers and seals the runs of a crash
//! cargo run --example runs -- remove ID              # removes the directory and a kept container
//! ```
//!
//! `--root DIR` names the root. `--runtime process` selects local processes, and `--runtime
//! kubernetes` selects pods, in a build with `--features kube-earliest`. A local process of another
//! owner can be waited for, but not stopped. `list`, `find`, `verify`, `head`, `history`, `export` and `logs` without
//! `--follow` only read files, and need no engine. All commands except `recover` and `remove` work while
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
use moat::bundle::{self, BundleVerification};
use moat::manager::RecoveryMode;
use moat::outcome::{StopCause, Stream};
use moat::root::{Head, LedgerEntry, RunInfo, RunQuery, VerifyOptions};
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

/// The signers that `verify` accepts.
#[derive(clap::Args)]
struct Signers {
    /// Also verify the signatures, with this file in the format of `ssh-keygen`
    #[cfg(feature = "sign")]
    #[arg(long, value_name = "FILE")]
    allowed_signers: Option<PathBuf>,
    /// Accept this signer only
    #[cfg(feature = "sign")]
    #[arg(long, value_name = "WHO", requires = "allowed_signers")]
    identity: Option<String>,
}

#[cfg(not(feature = "sign"))]
impl Signers {
    fn verify(&self, _: &Path) -> moat::Result<u8> {
        Ok(0)
    }

    fn verify_bundle(&self, path: &str) -> moat::Result<BundleVerification> {
        bundle::verify(path)
    }

    fn add_to(&self, options: VerifyOptions) -> moat::Result<VerifyOptions> {
        Ok(options)
    }
}

#[cfg(feature = "sign")]
impl Signers {
    /// Verifies the signature of an audit file.
    fn verify(&self, path: &Path) -> moat::Result<u8> {
        let allowed = self.read()?;
        allowed.map_or(Ok(0), |allowed| verify_signature(path, &allowed))
    }

    fn verify_bundle(&self, path: &str) -> moat::Result<BundleVerification> {
        match self.read()? {
            Some(allowed) => bundle::verify_signed(path, &allowed),
            None => bundle::verify(path),
        }
    }

    fn add_to(&self, options: VerifyOptions) -> moat::Result<VerifyOptions> {
        Ok(match self.read()? {
            Some(allowed) => options.signed_by(allowed),
            None => options,
        })
    }

    fn read(&self) -> moat::Result<Option<AllowedSigners>> {
        let Some(file) = &self.allowed_signers else {
            return Ok(None);
        };
        let allowed = AllowedSigners::from_file(file)?;
        Ok(Some(match &self.identity {
            Some(identity) => allowed.identity(identity),
            None => allowed,
        }))
    }
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
    ///
    /// Without an argument, verifies the whole root: all audit files, and that no run was removed,
    /// added, replaced or re-dated by anything but moat.
    Verify {
        /// Id of a run, whose file must belong to the run, or path of an audit file or a bundle
        #[arg(value_name = "ID|PATH", conflicts_with = "heads")]
        target: Option<String>,
        /// Head of the ledger that was kept elsewhere; can be given several times
        #[arg(long = "head", value_name = "HEAD")]
        heads: Vec<Head>,
        #[command(flatten)]
        signers: Signers,
    },
    /// Prints the head of the ledger, to be kept elsewhere and passed to `verify` later
    Head,
    /// Prints the ledger: a line for each run that began, was sealed, or was removed
    History {
        /// Id of a run; default: all
        id: Option<RunId>,
    },
    /// Finds runs with all of these properties, without reading their files
    Find {
        /// Label of the run
        #[arg(long, value_name = "K=V")]
        label: Vec<String>,
        /// Image, as the spec named it
        #[arg(long)]
        image: Option<String>,
        /// Text in the command
        #[arg(long)]
        text: Option<String>,
        /// Exit code
        #[arg(long)]
        code: Option<i64>,
        /// Time of the request: this or later
        #[arg(long, value_name = "TIME")]
        since: Option<Timestamp>,
    },
    /// Writes a sealed run with everything that vouches for it to a tar archive
    Export {
        /// Id of the run
        id: RunId,
        /// Path of the archive, which must not exist
        file: PathBuf,
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
        Command::Verify {
            target,
            heads,
            signers,
        } => match target {
            Some(target) => verify(&args.root, target, signers),
            None => verify_root(&args.root, heads, signers),
        },
        Command::Export { id, file } => export(&args.root, id, file),
        Command::Find { .. } => find(&args),
        Command::Head => head(&args.root),
        Command::History { id } => history(&args.root, id.as_ref()),
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
fn verify(root: &Path, target: &str, signers: &Signers) -> moat::Result<u8> {
    let (path, found) = match target.parse::<RunId>() {
        Ok(id) if !target.contains('/') && !Path::new(target).exists() => {
            let root = Root::open(root)?;
            (root.audit(&id), root.verify(&id)?)
        }
        _ if target.ends_with(".tar") => return verify_bundle(target, signers),
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
    Ok(code.max(signers.verify(&path)?))
}

#[cfg(feature = "sign")]
fn verify_signature(path: &Path, allowed: &AllowedSigners) -> moat::Result<u8> {
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

fn verify_bundle(path: &str, signers: &Signers) -> moat::Result<u8> {
    let found = signers.verify_bundle(path)?;
    for problem in &found.problems {
        print_line(problem.escape_debug());
    }
    let (state, code) = match found.is_intact() {
        true => ("intact", 0),
        false => ("not intact", NOT_VERIFIED),
    };
    let run = found.run.as_ref().map_or("no run", RunId::as_str);
    print_line(format_args!("{path}: {state}; bundle of {run}"));
    Ok(code)
}

fn export(root: &Path, id: &RunId, path: &Path) -> moat::Result<u8> {
    Root::open(root)?.export_to(id, path).map(|()| 0)
}

/// Verifies all runs of a root, and prints what was changed.
fn verify_root(root: &Path, heads: &[Head], signers: &Signers) -> moat::Result<u8> {
    let heads = heads.iter().cloned();
    let options = heads.fold(VerifyOptions::new(), VerifyOptions::head);
    let found = Root::open(root)?.verify_all(&signers.add_to(options)?)?;
    for finding in &found.findings {
        print_line(finding.to_string().escape_debug());
    }
    let runs = count(found.runs as u64, "run");
    let lines = count(found.lines, "line");
    let intact = found.is_intact();
    let state = if intact { "intact" } else { "not intact" };
    print_line(format_args!(
        "{}: {state}; {runs}, {} sealed, {lines} of the ledger",
        root.display(),
        found.sealed
    ));
    Ok(if intact { 0 } else { NOT_VERIFIED })
}

fn find(args: &Args) -> moat::Result<u8> {
    let Command::Find {
        label,
        image,
        text,
        code,
        since,
    } = &args.command
    else {
        return Ok(FAILED);
    };
    let mut query = RunQuery::new();
    for label in label {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        query = query.label(key, value);
    }
    query = image.iter().fold(query, RunQuery::image);
    query = text.iter().fold(query, RunQuery::text);
    query = code.iter().copied().fold(query, RunQuery::code);
    query = since.iter().copied().fold(query, RunQuery::since);
    let mut out = io::stdout().lock();
    let mut found = Root::open(&args.root)?.find(&query)?.into_iter();
    let written = found.try_for_each(|found| {
        let (time, run) = (seconds(Some(found.begun.created)), &found.begun.run);
        let code = found.sealed.and_then(|sealed| sealed.code);
        let code = code.map_or("-".into(), |code| code.to_string());
        let cmd = found.begun.cmd.join(" ");
        writeln!(out, "{time}  {run}  {code}  {}", cmd.escape_debug())
    });
    ignore_closed_stdout(written)
}

fn head(root: &Path) -> moat::Result<u8> {
    match Root::open(root)?.head()? {
        Some(head) => print_line(head),
        None => print_error("the root has never had a run"),
    }
    Ok(0)
}

fn history(root: &Path, id: Option<&RunId>) -> moat::Result<u8> {
    let mut out = io::stdout().lock();
    for line in Root::open(root)?.ledger()? {
        let line = line?;
        if id.is_some() && line.entry.run() != id {
            continue;
        }
        let run = line.entry.run().map_or("-", RunId::as_str);
        let step = match &line.entry {
            LedgerEntry::Created { root } => format!("root {root}"),
            LedgerEntry::Begun(begun) => {
                let command = [begun.image.as_str()].into_iter();
                let command = command.chain(begun.cmd.iter().map(String::as_str));
                format!("began: {}", command.collect::<Vec<_>>().join(" ").trim())
            }
            LedgerEntry::Sealed(sealed) => match sealed.code {
                Some(code) => format!("{} with code {code}, {}", sealed.status, sealed.verdict),
                None => format!("{}, {}", sealed.status, sealed.verdict),
            },
            LedgerEntry::ExecSealed { exec, .. } => format!("exec {exec} sealed"),
            LedgerEntry::Removing { by, .. } => {
                let program = by.program.as_deref().unwrap_or("a program");
                format!("being removed by {program}, process {}", by.pid)
            }
            LedgerEntry::Removed { .. } => "removed".into(),
            other => format!("{other:?}"),
        };
        let (time, step) = (seconds(Some(line.ts)), step.escape_debug());
        if let Err(error) = writeln!(out, "{:>6}  {time}  {run}  {step}", line.number) {
            return ignore_closed_stdout(Err(error));
        }
    }
    Ok(0)
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
