//! One root. The process that starts its runs is killed, and so are the processes that recover them,
//! until one is left alone.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use moat::{Root, RunId, ShutdownMode};
use testkit::audit::contains;
use testkit::child::Process;
use testkit::crash::{self, Planned, Tally};
use testkit::deadline::eventually;

use super::child::Orders;
use super::plan::{Death, Plan};
use crate::cluster;
use crate::stage::Stage;

/// The most time for a process that is not killed, in seconds.
const ENDED_WITHIN: u64 = 300;
/// The time for the removal of pods.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(120);
/// The interval between polls of the pods.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// The states of the runs whose process was killed, and their number.
static KILLED: Mutex<BTreeMap<&str, u32>> = Mutex::new(BTreeMap::new());

/// Returns the states of the runs whose process was killed.
pub fn killed() -> BTreeMap<&'static str, u32> {
    let killed = KILLED.lock().unwrap_or_else(PoisonError::into_inner);
    killed.clone()
}

/// The stage of a round. Dropped, it removes the pods of its root, also after a failure.
pub struct Round(Stage);

impl Round {
    pub async fn new() -> Self {
        let stage = Stage::new().await;
        // The root is created in advance, so that the processes are killed while they start their
        // runs.
        let manager = stage.manager().await;
        manager.shutdown(ShutdownMode::Leave).await;
        Self(stage)
    }

    /// Plays the plan to its end and returns what is left.
    pub async fn play(&self, plan: &Plan) -> Tally {
        let mut tally = Tally::default();
        let mut runs = plan.runs.as_slice();
        for death in &plan.deaths {
            if self.die(&plan.runs, runs, death).await {
                tally.kills += 1;
            }
            runs = &[];
        }
        self.0.open_gate("go");
        self.judge(&plan.runs, &mut tally).await;
        tally
    }

    /// Starts a process and kills it. `false` if it ended before.
    async fn die(&self, planned: &[Planned], runs: &[Planned], death: &Death) -> bool {
        let mut process = Orders::new(&self.0, runs).start();
        self.reach(&mut process, death).await;
        let lived = process.kill();
        if lived {
            let mut killed = KILLED.lock().unwrap_or_else(PoisonError::into_inner);
            for run in planned {
                *killed.entry(self.state(run)).or_default() += 1;
            }
        }
        lived
    }

    /// Waits until the moment of a death, or the end of the process.
    async fn reach(&self, process: &mut Process, death: &Death) {
        if let Some(record) = death.record {
            eventually(ENDED_WITHIN, "a record", async || {
                let audit = self.audit("run-0");
                let is_there = contains(&audit, record.as_bytes());
                // A sealed run has no more records.
                let is_sealed = self.record("run-0").contains("\"seal\"");
                (is_there || is_sealed || !process.is_alive()).then_some(())
            })
            .await;
        }
        let moment = Duration::from_millis(death.after_ms);
        let _ = tokio::time::timeout(moment, process.ended(ENDED_WITHIN)).await;
    }

    fn audit(&self, run: &str) -> Vec<u8> {
        let path = self.0.root().join(run).join("logs.jsonl");
        fs::read(path).unwrap_or_default()
    }

    fn record(&self, run: &str) -> String {
        let path = self.0.root().join(run).join("run.json");
        fs::read_to_string(path).unwrap_or_default()
    }

    /// What the files of a run show about its progress.
    fn state(&self, run: &Planned) -> &'static str {
        let audit = self.audit(&run.id);
        let has = |text: &str| contains(&audit, text.as_bytes());
        let record = self.record(&run.id);
        match () {
            () if audit.is_empty() => "1 without an audit",
            () if record.contains("\"seal\"") => "7 sealed",
            () if has("\"type\":\"end\"") => "6 with an end",
            () if self.0.gate().join(format!("done-{}", run.id)).exists() => {
                "5 with all output printed"
            }
            () if has("\"type\":\"started\"") => "4 started",
            () if record.contains("\"container\":\"") => "3 created",
            () => "2 intended",
        }
    }

    /// Lets one process seal everything, and compares the result with the known output.
    async fn judge(&self, runs: &[Planned], tally: &mut Tally) {
        let stage = &self.0;
        let kept = || crash::kept(&stage.root(), runs);
        // A request whose sender was killed may still be in progress. The next process to open the
        // root finds its result.
        let mut left = 0;
        for _ in 0..3 {
            let status = Orders::new(stage, &[]).start().ended(ENDED_WITHIN).await;
            if !status.success() {
                tally.problem(format!("the last one to open the root ended with {status}"));
            }
            left = self.cleaned(kept()).await;
            if left == kept() {
                break;
            }
        }
        tally.containers(left, kept());
        tally.check(&stage.root(), &stage.gate(), runs, |run| {
            is_sealed(stage, run)
        });
    }

    /// Waits until the cluster has at most `kept` pods of the root that are not deleted. Returns
    /// their number. A kubelet can take minutes for the rest.
    async fn cleaned(&self, kept: usize) -> usize {
        let begin = Instant::now();
        loop {
            let mut pods = cluster::pods(&self.0.root_id());
            pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
            let left = pods.len();
            if left <= kept || begin.elapsed() >= REMOVAL_TIMEOUT {
                return left;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// Returns an error if moat does not report a run as sealed.
pub fn is_sealed(stage: &Stage, run: &str) -> Result<(), String> {
    let root = Root::open(stage.root()).unwrap();
    let info = root.info(&RunId::new(run).unwrap()).unwrap();
    match info.seal.is_none() || info.owned || info.problem.is_some() {
        true => Err(format!("it is not sealed: {info:?}")),
        false => Ok(()),
    }
}
