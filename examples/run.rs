//! Runs a command in a container, as `docker run` does, or as a local process.
//!
//! Writes an audit file.
//!
//! ```sh
//! cargo run --example run -- busybox -- sh -c 'echo out; echo err >&2; exit 7'
//! cargo run --example run -- --runtime process -- sh -c 'echo out; echo err >&2; exit 7'
//! cargo run --features kube-earliest --example run -- --runtime kubernetes busybox -- date
//! ```
//!
//! The container's output goes to stdout and stderr, live and byte for byte. The last line on
//! stderr is `audit: PATH`. Ctrl-C stops the run within its grace period, and a second Ctrl-C kills
//! it. With `--detach`, the program prints the id of the run and exits, and the container keeps
//! running. Use `cargo run --example runs` to manage it.
//!
//! Exit codes:
//!
//! - the container's exit code, if it exited
//! - 124: the time limit stopped the run
//! - 125: an error of moat or of the engine, or invalid arguments
//!
//! ```sh
//! seq 1 1000000 | cargo run --example run -- --interactive busybox -- cat
//! cargo run --features terminal --example run -- --interactive --tty busybox -- sh
//! ```
//!
//! `--interactive` forwards standard input to the container, including its end. With `--tty` as
//! well, the program attaches this terminal to the container. `ctrl-p ctrl-q` detaches and exits
//! with 0. To attach again, run `cargo run --features terminal --example runs -- attach ID`.

use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use futures::StreamExt;
#[cfg(feature = "docker")]
use moat::Docker;
#[cfg(feature = "kube")]
use moat::Kubernetes;
use moat::outcome::{StopCause, Stream};
use moat::run::{AttachOptions, Attached, Attachment, Input};
use moat::spec::{Backstop, KeepContainer, Mount, Stdin};
use moat::{
    Error, LocalProcess, Manager, Outcome, Run, RunId, RunSpec, Runtime, ShutdownMode, Verdict,
};
use tokio::io::{AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code: the time limit stopped the run.
const TIME_LIMIT: u8 = 124;
/// Exit code: an error of moat or of the engine, or invalid arguments.
const FAILED: u8 = 125;

/// Runs a command in a container or as a local process. Writes an audit file.
#[derive(Parser)]
#[command(override_usage = "run [OPTIONS] IMAGE [-- COMMAND...]
       run [OPTIONS] --runtime process -- COMMAND...")]
struct Args {
    /// Runtime of the command
    #[arg(long, value_enum, default_value_t)]
    runtime: RuntimeArg,
    /// Directory of the runs
    #[arg(long, value_name = "DIR", default_value = "moat-runs")]
    root: PathBuf,
    /// Name of the run [default: a unique id]
    #[arg(long, value_name = "ID", alias = "id")]
    name: Option<RunId>,
    /// Forward standard input to the container
    #[arg(long, short)]
    interactive: bool,
    /// Allocate a terminal for the container
    #[arg(long, short)]
    tty: bool,
    /// Keys that detach from the terminal [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Print the id of the run, and exit while the container runs
    #[arg(long)]
    detach: bool,
    /// Keep the container after it has ended
    #[arg(long)]
    keep: bool,
    /// Maximum time that the container may run
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Time between the stop signal and the kill
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    grace: Option<Duration>,
    /// Environment variable
    #[arg(long, value_name = "K=V", value_parser = variable)]
    env: Vec<(String, String)>,
    /// File with environment variables, a line each
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Environment variable of this program whose value is masked in the output
    #[arg(long, value_name = "NAME", value_parser = value_of)]
    mask_env: Vec<String>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`
    #[arg(long, value_name = "U")]
    user: Option<String>,
    /// Host directory or named volume, its path in the container, and `ro`, `rw`, `z` or `Z`
    #[arg(long, value_name = "SRC:DST[:OPTS]", value_parser = mount)]
    volume: Vec<Mount>,
    /// `bridge`, `host`, `none`, `container:<id>`, or the name of a network
    #[arg(long, value_name = "MODE")]
    network: Option<String>,
    /// Memory limit
    #[arg(long, value_name = "BYTES")]
    memory: Option<u64>,
    /// Second source of output, for recovery
    #[arg(long, value_enum, default_value_t = BackstopArg::Engine)]
    backstop: BackstopArg,
    /// Image, pulled if it is missing. For a local process, the command instead
    image: String,
    /// Command and arguments [default: those of the image]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cmd: Vec<String>,
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
    /// Local processes, without isolation
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

#[derive(Clone, Copy, ValueEnum)]
enum BackstopArg {
    /// The engine's log
    Engine,
    /// None: faster, but a crash loses output
    None,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Parses `NAME=VALUE`. Errors do not contain the text, which may be a secret.
fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.into(), value.into()))
}

fn value_of(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|error| error.to_string())
}

fn mount(text: &str) -> Result<Mount, String> {
    let mut mount = text.parse().map_err(|error| format!("{error}"))?;
    if let Mount::Bind { source, .. } = &mut mount {
        *source = std::path::absolute(&*source).map_err(|error| error.to_string())?;
    }
    Ok(mount)
}

impl Args {
    fn spec(&self, id: RunId) -> RunSpec {
        let spec = match self.runtime {
            RuntimeArg::Process => RunSpec::command([&self.image].into_iter().chain(&self.cmd)),
            #[cfg(feature = "docker")]
            RuntimeArg::Docker => RunSpec::new(&self.image).cmd(&self.cmd),
            #[cfg(feature = "kube")]
            RuntimeArg::Kubernetes | RuntimeArg::KubernetesPlain => {
                RunSpec::new(&self.image).cmd(&self.cmd)
            }
        };
        let mut spec = spec
            .id(id)
            .tty(self.tty)
            .stdin(match (self.interactive, self.tty) {
                (false, _) => Stdin::None,
                (true, false) => Stdin::Pipe,
                (true, true) => Stdin::Open,
            })
            .detached(self.detach)
            .mask(self.mask_env.clone())
            .backstop(match self.backstop {
                BackstopArg::Engine => Backstop::Engine,
                BackstopArg::None => Backstop::None,
            })
            .on_pull(|progress| {
                // Without byte counts: one line for each layer and status.
                if progress.current.is_none() {
                    let layer = progress.layer.unwrap_or_default();
                    log(format_args!("pull: {layer} {}", progress.status));
                }
            });
        spec = spec.on_placement(|progress| {
            log(format_args!(
                "place: {} {}",
                progress.reason, progress.message
            ));
        });
        if self.keep {
            spec = spec.keep(KeepContainer::Always);
        }
        if let Some(limit) = self.timeout {
            spec = spec.time_limit(limit);
        }
        if let Some(grace) = self.grace {
            spec = spec.stop_grace(grace);
        }
        for path in &self.env_file {
            spec = spec.env_file(path);
        }
        for (name, value) in &self.env {
            spec = spec.env(name, value);
        }
        if let Some(path) = &self.workdir {
            spec = spec.workdir(path);
        }
        if let Some(user) = &self.user {
            spec = spec.user(user);
        }
        for mount in &self.volume {
            spec = spec.mount(mount.clone());
        }
        if let Some(mode) = &self.network {
            spec = spec.network(mode);
        }
        if let Some(bytes) = self.memory {
            spec = spec.memory(bytes);
        }
        spec
    }
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            let code = if error.use_stderr() { FAILED } else { 0 };
            return ExitCode::from(code);
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            log(format_args!("run: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let result = runtime.block_on(run(&args));
    // A read of standard input may never return.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log(format_args!("run: {}", error.chain()));
            if let Error::NotStarted { outcome, .. } = &error {
                print_audit(outcome);
            }
            ExitCode::from(FAILED)
        }
    }
}

async fn run(args: &Args) -> moat::Result<u8> {
    if args.interactive && args.tty {
        return terminal(args).await;
    }
    let mut interrupts = Interrupts::new()?;
    let manager = Manager::open(&args.root, args.runtime.open().await?).await?;
    let id = args.name.clone().unwrap_or_else(RunId::generate);
    let mut options = AttachOptions::new().lossless();
    if args.interactive {
        options = options.with_input();
    }
    let (run, output) = tokio::select! {
        started = manager.start_attached(args.spec(id.clone()), options) => started?,
        () = interrupts.next() => {
            // moat completes the start in the background, so the run exists and can be stopped.
            let run = manager.get(&id).await?;
            run.stop(None).await?;
            let output = run.attach().await?;
            (run, output)
        }
    };
    if args.detach {
        let _ = writeln!(std::io::stdout(), "{id}");
        if let Some(audit) = run.audit() {
            log(format_args!("audit: {}", audit.display()));
        }
        manager.shutdown(ShutdownMode::Leave).await;
        return Ok(0);
    }
    let outcome = watch(&run, output, &mut interrupts).await?;
    manager.shutdown(ShutdownMode::Leave).await;
    let code = report(&outcome);
    print_audit(&outcome);
    Ok(code)
}

/// Prints the output of the run until its audit is sealed.
///
/// Interrupts stop the run.
async fn watch(
    run: &Run,
    mut output: Attachment,
    interrupts: &mut Interrupts,
) -> moat::Result<Outcome> {
    let input = output.input();
    let end = async {
        let print = print(output);
        tokio::pin!(print);
        // Both at once: a container such as `cat` stops reading when its output is not read.
        let printed = tokio::select! {
            printed = &mut print => printed,
            () = forward(input) => print.await,
        };
        match printed {
            // The outcome has the reason.
            Err(Error::NotSealed { .. }) => {}
            other => other?,
        }
        run.wait().await
    };
    tokio::pin!(end);
    let mut interrupted = 0;
    loop {
        let request = async {
            match interrupted {
                0 => std::future::pending().await,
                1 => run.stop(None).await,
                _ => run.kill().await,
            }
        };
        // Output is printed while the run stops.
        tokio::select! {
            outcome = &mut end => return outcome,
            Err(error) = request => return Err(error),
            () = interrupts.next() => interrupted += 1,
        }
        match interrupted {
            1 => log("run: stopping; press Ctrl-C again to kill"),
            2 => log("run: killing; press Ctrl-C again to exit without the remaining output"),
            _ => return run.wait().await,
        }
    }
}

/// Forwards standard input, including its end.
async fn forward(input: Option<Input>) {
    let Some(mut input) = input else { return };
    match tokio::io::copy(&mut tokio::io::stdin(), &mut input).await {
        Ok(_) => {
            if let Err(error) = input.shutdown().await {
                log(format_args!("run: cannot close the input: {error}"));
            }
        }
        // The container has ended, or has closed its input.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        Err(error) => log(format_args!("run: cannot forward the input: {error}")),
    }
}

/// Runs the command with this terminal attached to the container's.
#[cfg(feature = "terminal")]
async fn terminal(args: &Args) -> moat::Result<u8> {
    use moat::terminal::{SessionEnd, Terminal};

    let mut terminal = Terminal::open()?;
    if let Some(keys) = &args.detach_keys {
        let keys = keys.parse().map_err(|error| {
            Error::from(moat::spec::InvalidSpec::new(
                "detach-keys",
                format!("{error}"),
            ))
        })?;
        terminal = terminal.detach_keys(keys);
    }
    let manager = Manager::open(&args.root, args.runtime.open().await?).await?;
    let id = args.name.clone().unwrap_or_else(RunId::generate);
    let options = AttachOptions::new()
        .with_input()
        .lossless()
        .window(terminal.size()?);
    let (run, attachment) = manager
        .start_attached(args.spec(id.clone()), options)
        .await?;
    let code = match terminal.attach(attachment).await? {
        SessionEnd::Ended(outcome) => {
            let code = report(&outcome);
            print_audit(&outcome);
            code
        }
        SessionEnd::Signal(number) => {
            let outcome = run.stop(None).await?;
            report(&outcome);
            print_audit(&outcome);
            128 + number as u8
        }
        _ => {
            log(format_args!(
                "run: detached from {id}; `runs attach {id}` attaches again"
            ));
            0
        }
    };
    manager.shutdown(ShutdownMode::Leave).await;
    Ok(code)
}

#[cfg(not(feature = "terminal"))]
async fn terminal(_: &Args) -> moat::Result<u8> {
    Err(Error::from(moat::spec::InvalidSpec::new(
        "tty",
        "--interactive --tty requires a build with `--features terminal`",
    )))
}

/// Prints the output.
///
/// After stdout or stderr is closed, the rest is only in the audit.
async fn print(output: Attachment) -> moat::Result<()> {
    let mut stdout = Some(BufWriter::with_capacity(256 << 10, tokio::io::stdout()));
    let mut stderr = Some(BufWriter::new(tokio::io::stderr()));
    // Chunks that wait together are written together.
    let mut output = output.ready_chunks(64);
    while let Some(items) = output.next().await {
        let mut end = Ok(());
        for item in items {
            match item {
                Err(error) => end = Err(error),
                Ok(Attached::Chunk(chunk)) => match chunk.stream {
                    Stream::Stderr => write(&mut stderr, &chunk.bytes).await,
                    Stream::Stdout | Stream::Tty | Stream::Merged => {
                        write(&mut stdout, &chunk.bytes).await
                    }
                },
                Ok(Attached::Lagged { stream, bytes }) => {
                    log(format_args!(
                        "run: {bytes} bytes of {stream} are not shown: the reader is too slow"
                    ));
                }
                Ok(_) => {}
            }
        }
        flush(&mut stdout).await;
        flush(&mut stderr).await;
        end?;
    }
    Ok(())
}

async fn write(to: &mut Option<impl AsyncWrite + Unpin>, bytes: &[u8]) {
    if let Some(open) = to
        && open.write_all(bytes).await.is_err()
    {
        *to = None;
    }
}

async fn flush(to: &mut Option<impl AsyncWrite + Unpin>) {
    if let Some(open) = to
        && open.flush().await.is_err()
    {
        *to = None;
    }
}

/// Reports what the output does not show, and returns the exit code.
fn report(outcome: &Outcome) -> u8 {
    let Some(seal) = outcome.sealed() else {
        log(format_args!("run: {outcome}"));
        return FAILED;
    };
    if seal.verdict == Verdict::Gap {
        log(format_args!("run: {outcome}"));
    }
    if seal.stopped == Some(StopCause::TimeLimit) {
        return TIME_LIMIT;
    }
    match outcome.code() {
        Some(code) => code as u8,
        None => {
            log(format_args!("run: {}", outcome.ending));
            FAILED
        }
    }
}

fn print_audit(outcome: &Outcome) {
    if let Some(audit) = &outcome.audit {
        log(format_args!("audit: {}", audit.display()));
    }
}

/// Prints a line on stderr. A closed stderr is ignored.
fn log(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The signals of Ctrl-C, `kill` and a closed terminal.
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn new() -> moat::Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Error::Storage {
                operation: "listen for",
                path: "signals".into(),
                source: error,
            })
        };
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
