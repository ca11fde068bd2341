//! A small CI harness that runs the steps of a pipeline in parallel.
//!
//! Steps run in containers, in pods or as local processes. The program writes a report, a JUnit file, and an
//! audit file for each run.
//!
//! ```sh
//! cargo run -p moat-ci -- examples/pipelines/demo.toml --runtime process
//! cargo run -p moat-ci -- examples/pipelines/demo.toml --image busybox
//! cargo run -p moat-ci --features kube -- examples/pipelines/demo.toml --runtime kubernetes
//! ```
//!
//! Exit codes:
//!
//! - 0: all steps passed
//! - 1: a step or a service did not pass, or the reports could not be written
//! - 2: no step was started
//! - 130, 143, 129: Ctrl-C, SIGTERM, SIGHUP; all runs were stopped and sealed
//!
//! `--resume` continues the build of a killed harness. `--retry-failed` runs the failed steps of the
//! last build again. See `docs/ci.md`.

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use futures::FutureExt;
#[cfg(feature = "docker")]
use moat::Docker;
#[cfg(feature = "kube")]
use moat::Kubernetes;
use moat::manager::Signal;
use moat::outcome::StopCause;
use moat::{LocalProcess, Manager, Outcome, Runtime, ShutdownMode};
use moat_ci::artifacts;
use moat_ci::build::Build;
use moat_ci::ci_system::CiSystem;
use moat_ci::junit;
use moat_ci::leftovers::Leftovers;
use moat_ci::mask::Mask;
use moat_ci::pipeline::Pipeline;
use moat_ci::report::{Report, Status, StepResult};
use moat_ci::schedule::Schedule;
use moat_ci::summary;
use moat_ci::view::{View, ViewOptions};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Exit code: a step did not pass, or the reports could not be written.
const FAILED: u8 = 1;
/// Exit code: no step was started.
const INVALID: u8 = 2;

/// The time in which a signal that was sent before the end reaches its task.
const SIGNAL_DELIVERY_TIME: Duration = Duration::from_millis(20);

/// File names in the directory of `--out`.
const PAGE: &str = "report.html";
const JUNIT: &str = "junit.xml";

/// Runs a pipeline
///
/// Writes a report, a JUnit file, and an audit file for each run.
#[derive(Parser)]
struct Args {
    /// The pipeline file
    pipeline: PathBuf,
    /// Directory of the runs
    #[arg(long, value_name = "DIR", default_value = "ci-runs")]
    root: PathBuf,
    /// Runtime of the steps
    #[arg(long, value_enum, default_value_t)]
    runtime: RuntimeArg,
    /// Maximum number of steps that run at the same time [default: number of CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Directory of report.html, junit.xml and the artifacts
    #[arg(long, value_name = "DIR", default_value = "ci-report")]
    out: PathBuf,
    /// Image that replaces every image of the pipeline, except those of services
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Continue the last build of this root
    #[arg(long)]
    resume: bool,
    /// Run the steps of the last build of this root again that did not pass, as a new build
    #[arg(long, conflicts_with = "resume")]
    retry_failed: bool,
    /// CI system that reads the output [default: from the environment]
    #[arg(long, value_enum, value_name = "NAME")]
    ci: Option<CiSystem>,
    /// Print each line of output at once, with the name of its step
    #[arg(long)]
    stream: bool,
    /// Seconds between two lines about the running steps, unless a terminal shows them; 0: none
    #[arg(long, value_name = "SECS", default_value_t = 60)]
    heartbeat: u32,
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
    /// Local processes, without images or isolation
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
            Self::Process => Arc::new(LocalProcess::new()),
        })
    }
}

impl Args {
    fn view(&self) -> ViewOptions {
        let period = Duration::from_secs(self.heartbeat.into());
        ViewOptions {
            ci_system: self.ci_system(),
            stream: self.stream,
            heartbeat: Some(period).filter(|period| !period.is_zero()),
        }
    }

    fn ci_system(&self) -> CiSystem {
        let detect = || CiSystem::detect(|name| std::env::var(name).ok());
        self.ci.unwrap_or_else(detect)
    }

    fn jobs(&self) -> io::Result<usize> {
        match self.jobs {
            Some(jobs) => Ok(jobs.into()),
            None => Ok(std::thread::available_parallelism()?.get()),
        }
    }

    /// The build to continue, a retry of the last build, or a new build.
    fn build(
        &self,
        pipeline: &Pipeline,
        runtime: &dyn Runtime,
        view: &View<'_>,
    ) -> Result<Build, Box<dyn Error>> {
        let last = match self.resume || self.retry_failed {
            true => Build::last(&self.root, &pipeline.digest, runtime.name())?,
            false => None,
        };
        let Some(last) = last else {
            return Ok(Build::new(&pipeline.digest));
        };
        if self.retry_failed {
            view.message(&format!("retrying build {}", last.id));
            return Ok(Build::retry(last));
        }
        let runs = last.earlier_runs();
        let plural = if runs == 1 { "" } else { "s" };
        view.message(&format!("resuming build {}: {runs} run{plural}", last.id));
        Ok(last)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            print_error(args.ci_system(), &error.to_string());
            ExitCode::from(INVALID)
        }
    }
}

/// Prints an error, which can contain lines of the pipeline file.
///
/// A closed stderr is ignored.
fn print_error(ci_system: CiSystem, error: &str) {
    let mut err = io::stderr().lock();
    for line in format!("moat-ci: {error}").lines() {
        let _ = writeln!(err, "{}", ci_system.neutralize(line));
    }
}

async fn run(args: &Args) -> Result<u8, Box<dyn Error>> {
    let pipeline = Pipeline::read(&args.pipeline, args.image.as_deref())?;
    let secrets = pipeline.secrets(|name| std::env::var(name).ok())?;
    let mask = Mask::new(secrets.values().cloned());
    let runtime = args.runtime.open().await.map_err(|error| error.chain())?;
    let images = args.runtime != RuntimeArg::Process;
    pipeline.check(&*runtime, images, &secrets)?;
    let view = View::new(&pipeline, &mask, args.view());
    let build = args.build(&pipeline, &*runtime, &view)?;
    let leftovers = Leftovers::find(&args.root, &build).map_err(|error| error.chain())?;
    let manager = Manager::builder(&args.root, Arc::clone(&runtime))
        .max_concurrent(args.jobs()?)
        .open()
        .await
        .map_err(|error| error.chain())?;
    remove_reports(&args.out).map_err(|error| write_error(&args.out, &error))?;
    if !build.is_resumed() {
        artifacts::remove(&pipeline, &build, &args.out)
            .map_err(|error| write_error(&args.out, &error))?;
    }
    let schedule = Schedule {
        manager: &manager,
        runtime: &runtime,
        pipeline: &pipeline,
        build: &build,
        leftovers: &leftovers,
        secrets: &secrets,
        images,
        out: &args.out,
        view: &view,
    };
    let mut signals = Signals::listen(&manager)?;
    let report = Report {
        title: title(&pipeline, &build),
        steps: run_steps(&manager, &schedule, &mut signals).await,
    };
    view.finish();
    let written = write_reports(args, &pipeline.name, &report, &mask).await;
    view.list_audits(&report);
    match &written {
        Ok(paths) => paths.iter().for_each(|path| view.print(path)),
        Err(error) => print_error(args.ci_system(), &write_error(&args.out, error)),
    }
    publish_summary(args, &report, &view, &mask).await;
    view.summary(&report);
    Ok(match signals.arrived().await {
        Some(signal) => signal.exit_code() as u8,
        None if written.is_ok() && report.steps.iter().all(passed) => 0,
        None => FAILED,
    })
}

fn title(pipeline: &Pipeline, build: &Build) -> String {
    let retry = match build.retries() {
        Some(retried) => format!(", retry of {}", retried.id),
        None => String::new(),
    };
    format!("{}, build {}{retry}", pipeline.name, build.id)
}

/// Runs all steps. A signal stops all runs.
async fn run_steps(
    manager: &Manager,
    schedule: &Schedule<'_>,
    signals: &mut Signals,
) -> Vec<StepResult> {
    let steps = schedule.run().await;
    manager.shutdown(ShutdownMode::Stop).await;
    // The last step can end before the task of the signal does.
    if steps.iter().any(interrupted) {
        signals.wait().await;
    }
    steps
}

/// Returns true if a signal stopped the step.
///
/// Until the steps end, only a signal shuts the manager down.
fn interrupted(step: &StepResult) -> bool {
    let outcome = step.attempts.last().and_then(|last| last.outcome.as_ref());
    let cause = outcome.and_then(Outcome::stopped);
    step.status == Status::Cancelled && cause.is_none_or(|cause| cause == StopCause::Shutdown)
}

/// The task that stops all runs on a signal.
///
/// It runs even while the main task is blocked, as by an output that no process reads.
struct Signals {
    task: JoinHandle<Signal>,
    arrived: Option<Signal>,
}

impl Signals {
    fn listen(manager: &Manager) -> moat::Result<Self> {
        #[allow(
            clippy::disallowed_methods,
            reason = "at the end of the process, the task may still wait for a signal"
        )]
        let task = tokio::spawn(manager.stop_on_signals()?);
        Ok(Self {
            task,
            arrived: None,
        })
    }

    /// Waits until a signal has stopped all runs.
    async fn wait(&mut self) {
        if self.arrived.is_none() {
            let signal = (&mut self.task).await;
            self.arrived = Some(signal.expect("the task does not panic"));
        }
    }

    /// The signal that arrived, if any.
    async fn arrived(&mut self) -> Option<Signal> {
        sleep(SIGNAL_DELIVERY_TIME).await;
        // Not ready if no signal arrived.
        let _ = self.wait().now_or_never();
        self.arrived
    }
}

/// Returns true if the step does not fail the build.
fn passed(step: &StepResult) -> bool {
    matches!(step.status, Status::Passed | Status::AllowedFailure)
}

/// Removes the reports of an earlier build.
///
/// If this build is killed, no report is left that could be mistaken for its own.
fn remove_reports(out: &Path) -> io::Result<()> {
    std::fs::create_dir_all(out)?;
    for name in [PAGE, JUNIT, summary::FILE] {
        match std::fs::remove_file(out.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Gives the CI system a summary. A failure is only shown.
async fn publish_summary(args: &Args, report: &Report, view: &View<'_>, mask: &Mask) {
    let lookup = |name: &str| std::env::var(name).ok();
    let totals = view.totals();
    match summary::publish(args.ci_system(), lookup, &args.out, report, &totals, mask).await {
        Ok(command) => command.into_iter().for_each(|line| view.command(line)),
        Err(error) => view.warn(&format!("cannot write the summary of the job: {error}")),
    }
}

fn write_error(out: &Path, error: &io::Error) -> String {
    format!("cannot write the reports to {}: {error}", out.display())
}

/// Writes the reports, and returns a line with the path of each.
async fn write_reports(
    args: &Args,
    name: &str,
    report: &Report,
    mask: &Mask,
) -> io::Result<[String; 2]> {
    let page = args.out.join(PAGE);
    report.write(mask, &page)?;
    let junit = args.out.join(JUNIT);
    junit::write(name, report, mask, &junit).await?;
    Ok([
        format!("report: {}", page.display()),
        format!("junit: {}", junit.display()),
    ])
}
