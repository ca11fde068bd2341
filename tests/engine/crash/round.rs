//! One root. The process that starts its runs is killed, and so are the processes that recover them,
//! until one is left alone.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use testkit::crash::{self, Planned, Tally};
use testkit::deadline::eventually;
use testkit::proxy::{Fault, Proxy};
use testkit::{engine, image};

use super::child::{self, Orders, cleaned};
use super::plan::{Deadly, Plan};

/// The most time for a process that is not killed, in seconds.
const ENDED_WITHIN: u64 = 90;
/// The delay of a request whose sender is killed.
const UNDER_WAY: Duration = Duration::from_secs(5);

/// The directory of a round, and the engine. Dropped, it removes the containers of its root, also
/// after a failure.
pub struct Round {
    dir: TempDir,
    image: String,
    address: Option<String>,
    /// The proxy between the engine and the process that starts the runs.
    proxy: Option<Proxy>,
}

impl Drop for Round {
    fn drop(&mut self) {
        engine::sweep(&self.root());
    }
}

impl Round {
    pub async fn new() -> Self {
        let docker = engine::connect().unwrap();
        let image = image::provide(&docker).await.unwrap();
        let dir = tempfile::Builder::new()
            .prefix("moat-crash-")
            .tempdir()
            .unwrap();
        fs::create_dir(dir.path().join("gate")).unwrap();
        // The root is created in advance, so that the processes are killed while they start their
        // runs.
        moat::Manager::open(
            dir.path().join("root"),
            moat::Docker::connect().await.unwrap(),
        )
        .await
        .unwrap()
        .shutdown(moat::ShutdownMode::Leave)
        .await;
        Self {
            dir,
            image,
            address: None,
            proxy: None,
        }
    }

    /// Puts a proxy in front of the engine for the process that starts the runs. The proxy sees
    /// requests whose sender is dead.
    fn watch(&mut self) -> &Proxy {
        let proxy = Proxy::listen(self.dir.path()).unwrap();
        self.address = Some(proxy.address());
        self.proxy.insert(proxy)
    }

    /// Waits until the engine has answered each request for a container.
    async fn settled(&self) {
        let Some(proxy) = &self.proxy else { return };
        eventually(60, "the answer to a create", async || {
            let seen = proxy.seen("create");
            seen.iter()
                .all(|seen| seen.answered.is_some())
                .then_some(())
        })
        .await;
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn orders(&self, runs: &[Planned], death: Option<Deadly>) -> Orders {
        Orders {
            root: self.root(),
            gate: self.dir.path().join("gate"),
            image: self.image.clone(),
            address: self.address.clone(),
            runs: runs.to_vec(),
            death,
        }
    }

    /// Plays the plan to its end and returns what is left.
    pub async fn play(&mut self, plan: &Plan) -> Tally {
        if plan.may_outlive() {
            self.watch();
        }
        let mut kills = 0;
        let mut runs = plan.runs.as_slice();
        for death in &plan.deaths {
            kills += u32::from(self.die(&self.orders(runs, Some(death.clone()))).await);
            runs = &[];
            // Recovering processes reach the engine directly.
            self.address = None;
        }
        fs::write(self.dir.path().join("gate/go"), "").unwrap();
        self.judge(&plan.runs, kills).await
    }

    /// Starts a process and waits until it dies. `false` if it ended by itself.
    async fn die(&self, orders: &Orders) -> bool {
        let mut process = child::start(orders);
        match orders.death {
            Some(Deadly::Moment(after)) => {
                let moment = Duration::from_millis(after);
                // This kill comes at any moment, so the process may end before.
                let _ = tokio::time::timeout(moment, process.ended(ENDED_WITHIN)).await;
                process.kill()
            }
            _ => {
                use std::os::unix::process::ExitStatusExt;
                let status = process.ended(ENDED_WITHIN).await;
                assert!(
                    status.success() || status.signal().is_some(),
                    "{status}: {orders:?}"
                );
                status.signal().is_some()
            }
        }
    }

    /// Lets one process seal everything, and compares the result with the known output.
    async fn judge(&self, runs: &[Planned], kills: u32) -> Tally {
        let mut tally = Tally {
            kills,
            ..Tally::default()
        };
        let kept = || crash::kept(&self.root(), runs);
        // A request whose sender was killed may still be in progress. The next process to open the
        // root finds its result.
        for _ in 0..3 {
            self.settled().await;
            let status = child::start(&self.orders(&[], None))
                .ended(ENDED_WITHIN)
                .await;
            if !status.success() {
                tally.problem(format!("the last one to open the root ended with {status}"));
            }
            self.settled().await;
            let bound = Duration::from_secs(60);
            if cleaned(&self.root(), kept(), bound).await == kept() {
                break;
            }
        }
        let left = cleaned(&self.root(), kept(), Duration::ZERO).await;
        tally.containers(left, kept());
        let gate = self.dir.path().join("gate");
        tally.check(&self.root(), &gate, runs, |run| self.is_sealed(run));
        let root = moat::Root::open(self.root()).unwrap();
        let verified = root.verify_all(&moat::root::VerifyOptions::new()).unwrap();
        assert!(verified.is_intact(), "{:?}", verified.findings);
        tally
    }

    fn is_sealed(&self, run: &str) -> Result<(), String> {
        let root = moat::Root::open(self.root()).unwrap();
        let info = root.info(&moat::RunId::new(run).unwrap()).unwrap();
        match info.seal.is_none() || info.owned || info.problem.is_some() {
            true => Err(format!("it is not sealed: {info:?}")),
            false => Ok(()),
        }
    }

    /// Kills the process that starts a run during its request for `operation`. The request reaches
    /// the engine after another process has recovered the run.
    pub async fn killed_while_under_way(operation: &str) -> Tally {
        let mut round = Self::new().await;
        round.watch().fault(operation, Fault::Late(UNDER_WAY));
        let run = Planned::plain();
        let process = child::start(&round.orders(std::slice::from_ref(&run), None));
        let seen = |round: &Self| round.proxy.as_ref().unwrap().seen(operation);
        eventually(60, "the request", async || seen(&round).pop()).await;
        assert!(process.kill(), "the process had ended");
        round.address = None;
        let mut first = child::start(&round.orders(&[], None));
        let status = first.ended(ENDED_WITHIN).await;
        assert!(status.success(), "{status}");
        eventually(60, "the answer to the request", async || {
            seen(&round).iter().find_map(|seen| seen.answered)
        })
        .await;
        round.judge(&[run], 1).await
    }
}
