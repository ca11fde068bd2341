//! A small CI harness: runs the steps of a pipeline in containers, or as local processes, side by
//! side, and leaves a report, a JUnit file, and an audit file for each run.
//!
//! ```sh
//! cargo run --example ci -- examples/pipelines/demo.toml --runtime process
//! cargo run --example ci -- examples/pipelines/demo.toml --image busybox
//! ```
//!
//! The exit code is 0 where all steps have passed, 1 where one has not, 2 where nothing could be
//! begun, and 130 or 143 after Ctrl-C or SIGTERM: then all that ran was stopped, and is sealed. What
//! a killed harness has left is gone on with by `--resume`. See `docs/ci.md`.

#![allow(unreachable_pub, reason = "nobody reaches into a program")]

mod build;
mod github;
mod groups;
mod junit;
mod lines;
mod mask;
mod pipeline;
mod progress;
mod report;
mod rows;
mod schedule;
mod view;

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use futures::FutureExt;
#[cfg(feature = "docker")]
use moat::Docker;
use moat::{LocalProcess, Manager, Runtime, ShutdownMode};
use tokio::task::unconstrained;

use build::Build;
use mask::Mask;
use pipeline::Pipeline;
use report::{Report, Status, Step};
use schedule::Schedule;
use view::View;

/// Exit code: a step has not passed, or the reports could not be written.
const FAILED: u8 = 1;
/// Exit code: nothing was begun.
const INVALID: u8 = 2;

/// The reports, in the folder of `--out`.
const PAGE: &str = "report.html";
const JUNIT: &str = "junit.xml";

/// Runs a pipeline, and leaves a report, a JUnit file, and an audit file for each run.
#[derive(Parser)]
struct Args {
    /// The pipeline
    pipeline: PathBuf,
    /// The folder that holds the runs
    #[arg(long, value_name = "DIR", default_value = "ci-runs")]
    root: PathBuf,
    /// What runs them
    #[arg(long, value_enum, default_value_t)]
    runtime: RuntimeArg,
    /// How many steps run at once [default: as many as there are CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Where report.html and junit.xml go
    #[arg(long, value_name = "DIR", default_value = "ci-report")]
    out: PathBuf,
    /// An image in the place of all that the pipeline names
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Go on with the last build of this root
    #[arg(long)]
    resume: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum RuntimeArg {
    /// The engine of DOCKER_HOST, or of this machine
    #[cfg(feature = "docker")]
    #[cfg_attr(feature = "docker", default)]
    Docker,
    /// Local processes, without images or any isolation
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

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("ci: {error}");
            ExitCode::from(INVALID)
        }
    }
}

async fn run(args: &Args) -> Result<u8, Box<dyn Error>> {
    let pipeline = Pipeline::read(&args.pipeline, args.image.as_deref())?;
    let secrets = pipeline.secrets(|name| std::env::var(name).ok())?;
    let mask = Mask::new(secrets.values().cloned());
    let runtime = args.runtime.open().await.map_err(|error| error.chain())?;
    let images = args.runtime != RuntimeArg::Process;
    pipeline.check(&*runtime, images, &secrets)?;
    let left = match args.resume {
        true => Build::last(&args.root, &pipeline.digest, runtime.name())?,
        false => None,
    };
    let view = View::new(&pipeline, &mask);
    let build = match left {
        Some(build) => {
            view.say(&format!(
                "build {} goes on: it has {} runs",
                build.id,
                build.count()
            ));
            build
        }
        None => Build::new(&pipeline.digest),
    };
    let jobs = match args.jobs {
        Some(jobs) => jobs.into(),
        None => std::thread::available_parallelism()?.get(),
    };
    let manager = Manager::builder(&args.root, runtime)
        .max_concurrent(jobs)
        .open()
        .await
        .map_err(|error| error.chain())?;
    clear(&args.out).map_err(|error| unwritable(&args.out, &error))?;
    let signals = manager.stop_on_signals()?;
    let schedule = Schedule {
        manager: &manager,
        pipeline: &pipeline,
        build: &build,
        secrets: &secrets,
        images,
        view: &view,
    };

    let work = schedule.run();
    tokio::pin!(work, signals);
    let (signal, steps) = tokio::select! {
        biased;
        // By then all runs are stopped: what is left is to say so.
        signal = &mut signals => (Some(signal), work.await),
        steps = &mut work => {
            manager.shutdown(ShutdownMode::Stop).await;
            // The steps may be at their end before the stop of all runs is.
            (unconstrained(signals).now_or_never(), steps)
        }
    };

    let report = Report {
        title: format!("{}, build {}", pipeline.name, build.id),
        steps,
    };
    let written = write(args, &pipeline.name, &report, &mask).await;
    view.name_audits(&report);
    let whole = match written {
        Ok(paths) => {
            paths.iter().for_each(|path| view.print(path));
            true
        }
        Err(error) => {
            eprintln!("ci: {}", unwritable(&args.out, &error));
            false
        }
    };
    let green = |step: &Step| {
        use Status::{AllowedFailure, Passed};
        matches!(step.status, Passed | AllowedFailure)
    };
    Ok(match signal {
        Some(signal) => signal.exit_code() as u8,
        None if whole && report.steps.iter().all(green) => 0,
        None => FAILED,
    })
}

/// Takes away what an earlier build has left: whoever finds a report finds one of this build.
fn clear(out: &Path) -> io::Result<()> {
    std::fs::create_dir_all(out)?;
    for name in [PAGE, JUNIT] {
        match std::fs::remove_file(out.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn unwritable(out: &Path, error: &io::Error) -> String {
    format!("cannot write the reports to {}: {error}", out.display())
}

/// Writes the reports, and says where they are.
async fn write(args: &Args, name: &str, report: &Report, mask: &Mask) -> io::Result<[String; 2]> {
    let page = args.out.join(PAGE);
    report.write(mask, &page)?;
    let junit = args.out.join(JUNIT);
    junit::write(name, report, mask, &junit).await?;
    Ok([
        format!("report: {}", page.display()),
        format!("junit: {}", junit.display()),
    ])
}
