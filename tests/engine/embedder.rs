//! A process that embeds moat and is killed: this program, started again.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use moat::{Docker, Manager, Ready, RunId, RunSpec};
use testkit::child::{self, Process};

use crate::stage::Stage;

/// The role of this process as an embedder.
const ROLE: &str = "embedder";

/// The orders of the embedder.
#[derive(serde::Serialize, serde::Deserialize)]
struct Orders {
    root: String,
    image: String,
    gate: String,
    /// The steps of the run to start. `None`: open the root and keep what is there.
    steps: Option<String>,
    id: String,
    tty: bool,
    time_limit: Option<f64>,
    /// Stop the run with this grace period once it has printed `ready`.
    stop: Option<f64>,
    /// The value to mask in the output.
    mask: Option<String>,
}

/// Plays the embedder if this process is one. It runs until it is killed.
pub fn role() -> Option<()> {
    let orders: Orders = child::orders(ROLE)?;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async move {
        let docker = Docker::connect().await.unwrap();
        let manager = Manager::open(&orders.root, docker).await.unwrap();
        let id = RunId::new(orders.id).unwrap();
        let run = match &orders.steps {
            Some(steps) => {
                let mut spec = RunSpec::new(orders.image)
                    .id(id)
                    .cmd(steps.split(' '))
                    .network("none")
                    .bind(&orders.gate, "/gate")
                    .tty(orders.tty)
                    .mask(orders.mask);
                if let Some(limit) = orders.time_limit {
                    spec = spec.time_limit(Duration::from_secs_f64(limit));
                }
                manager.start(spec).await.unwrap()
            }
            None => {
                manager.wait_recovery().await.unwrap();
                manager.get(&id).await.unwrap()
            }
        };
        println!("ready");
        std::io::stdout().flush().unwrap();
        // An embedder only waits; the tasks of the library do the rest.
        let _ = match orders.stop {
            Some(grace) => {
                run.wait_ready(Ready::line("ready")).await.unwrap();
                run.stop(Some(Duration::from_secs_f64(grace))).await
            }
            None => run.wait().await,
        };
        std::future::pending::<()>().await;
    });
    Some(())
}

/// A process that embeds moat. Dropped, it is killed with SIGKILL.
pub struct Embedder(Process);

impl Embedder {
    /// Starts a run in a child process, and returns once the run has started.
    pub fn start(stage: &Stage, id: &str, steps: &str) -> Self {
        Self::spawn(&orders(stage, id, Some(steps)))
    }

    /// The same with a terminal.
    pub fn start_tty(stage: &Stage, id: &str, steps: &str) -> Self {
        let mut orders = orders(stage, id, Some(steps));
        orders.tty = true;
        Self::spawn(&orders)
    }

    /// The same with a time limit in seconds.
    pub fn start_limited(stage: &Stage, id: &str, steps: &str, seconds: f64) -> Self {
        let mut orders = orders(stage, id, Some(steps));
        orders.time_limit = Some(seconds);
        Self::spawn(&orders)
    }

    /// The same for a run that prints `ready` and is then stopped with a grace period in seconds.
    pub fn start_and_stop(stage: &Stage, id: &str, steps: &str, grace: f64) -> Self {
        let mut orders = orders(stage, id, Some(steps));
        orders.stop = Some(grace);
        Self::spawn(&orders)
    }

    /// The same with a value to mask in the output.
    pub fn start_masked(stage: &Stage, id: &str, steps: &str, mask: &str, tty: bool) -> Self {
        let mut orders = orders(stage, id, Some(steps));
        (orders.mask, orders.tty) = (Some(mask.into()), tty);
        Self::spawn(&orders)
    }

    /// Opens the root in a child process, and returns once the run is recovered.
    pub fn take_over(stage: &Stage, id: &str) -> Self {
        Self::spawn(&orders(stage, id, None))
    }

    fn spawn(orders: &Orders) -> Self {
        let mut process = Process::spawn(child::command(ROLE, orders).stdout(Stdio::piped()));
        let stdout = process.stdout().unwrap();
        let mut word = String::new();
        BufReader::new(stdout).read_line(&mut word).unwrap();
        assert_eq!(word, "ready\n", "the embedder did not start");
        Self(process)
    }

    /// Kills it with SIGKILL.
    pub fn kill(self) {
        self.0.kill();
    }
}

fn orders(stage: &Stage, id: &str, steps: Option<&str>) -> Orders {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    Orders {
        root: text(&stage.root()),
        image: stage.image.clone(),
        gate: text(&stage.dir.path().join("gate")),
        steps: steps.map(Into::into),
        id: id.into(),
        tty: false,
        time_limit: None,
        stop: None,
        mask: None,
    }
}
