//! A server that gives agents sandboxes: containers in which they run commands.
//!
//! ```sh
//! moat-sandbox token alice >>clients.toml    # prints the token
//! moat-sandbox --clients clients.toml
//! ```
//!
//! Each session and each command has an audit file. Sessions outlive the server: its next start takes
//! them over.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
#[cfg(feature = "docker")]
use moat::Docker;
use moat::manager::PruneOptions;
use moat::{LocalProcess, Manager};
use moat_sandbox::clients::{Clients, new_token};
use moat_sandbox::sandbox::Sandbox;
use moat_sandbox::server::Timeouts;
use moat_sandbox::{api, server};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const PRUNE_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Serves sandboxes for agents
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// The file of the clients, with their tokens and quotas
    #[arg(long, value_name = "FILE", default_value = "clients.toml")]
    clients: PathBuf,
    /// Directory of the sessions
    #[arg(long, value_name = "DIR", default_value = "sandbox-runs")]
    root: PathBuf,
    /// Address to listen on. The server has no TLS: put a proxy before it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: String,
    /// Runtime of the sessions. Local processes are isolated from nothing
    #[arg(long, value_enum, default_value_t)]
    runtime: RuntimeArg,
    /// Seconds for the headers of a request, and for a pause in its body
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    read_timeout: u64,
    /// Seconds for which a client may read nothing of what is sent to it
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    write_timeout: u64,
    /// Remove the audit files of sessions that ended before this number of days [default: never]
    #[arg(long, value_name = "DAYS")]
    keep_days: Option<u32>,
    /// Stop all sessions when the server ends
    #[arg(long)]
    stop_sessions: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Create a token: its table for the clients file on stdout, the token itself on stderr
    Token {
        /// The name of the client
        name: String,
    },
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum RuntimeArg {
    #[cfg(feature = "docker")]
    #[cfg_attr(feature = "docker", default)]
    Docker,
    #[cfg_attr(not(feature = "docker"), default)]
    Process,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.action {
        Some(Action::Token { name }) => token(name),
        None => serve(&args).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("moat-sandbox: {error}");
            ExitCode::FAILURE
        }
    }
}

fn token(name: &str) -> Result<(), String> {
    let (token, table) = new_token(name)?;
    print!("{table}");
    eprintln!("{token}");
    Ok(())
}

async fn serve(args: &Args) -> Result<(), String> {
    let clients = Clients::read(&args.clients)?;
    let listener = listen(&args.listen).await?;
    let stop = stop_signal().map_err(|error| format!("cannot handle signals: {error}"))?;
    let _lock = lock(&args.root)?;
    let opened = tokio::select! {
        opened = open(args, clients) => opened,
        () = stop.cancelled() => return Ok(()),
    };
    let sandbox = opened.map_err(|error| error.chain())?;
    if let Some(days) = args.keep_days {
        tokio::spawn(remove_old(Arc::clone(&sandbox), DAY * days));
    }
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    println!("listening on http://{address}");
    let router = api::router(Arc::clone(&sandbox));
    let timeouts = Timeouts {
        read: Duration::from_secs(args.read_timeout),
        write: Duration::from_secs(args.write_timeout),
    };
    let served = tokio::spawn(server::serve(listener, router, timeouts, stop.clone()));
    stop.cancelled().await;
    // Requests in progress end with their commands.
    sandbox.end_commands().await;
    let _ = served.await;
    sandbox.shutdown(!args.stop_sessions).await;
    Ok(())
}

async fn listen(address: &str) -> Result<TcpListener, String> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| format!("cannot listen on {address}: {error}"))
}

/// Locks the directory of the sessions. The lock ends with the process.
///
/// A second server would not know which sessions are in use.
fn lock(directory: &Path) -> Result<File, String> {
    let path = directory.join("lock");
    let opened = fs::create_dir_all(directory).and_then(|()| File::create(&path));
    let file = opened.map_err(|error| format!("cannot create {}: {error}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(format!("another server uses {}", directory.display()))
        }
        Err(TryLockError::Error(error)) => Err(format!("cannot lock {}: {error}", path.display())),
    }
}

async fn open(args: &Args, clients: Clients) -> moat::Result<Arc<Sandbox>> {
    let root = args.root.join("runs");
    let manager = match args.runtime {
        #[cfg(feature = "docker")]
        RuntimeArg::Docker => Manager::open(root, Docker::connect().await?).await?,
        RuntimeArg::Process => Manager::open(root, LocalProcess::new()).await?,
    };
    // The processes of sessions work there, so the path must be absolute.
    let work = manager.root().path().with_file_name("work");
    Sandbox::open(manager, clients, work).await
}

/// Removes the sessions that ended longer ago than `age`, now and every hour.
async fn remove_old(sandbox: Arc<Sandbox>, age: Duration) {
    loop {
        let options = PruneOptions::new().older_than(age);
        if let Err(error) = sandbox.manager.prune(options).await {
            eprintln!("cannot remove old sessions: {}", error.chain());
        }
        sleep(PRUNE_INTERVAL).await;
    }
}

/// A token that Ctrl-C and SIGTERM cancel. A second signal ends the server at once.
fn stop_signal() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if cancelled.is_cancelled() {
                std::process::exit(1);
            }
            cancelled.cancel();
        }
    });
    Ok(stop)
}
