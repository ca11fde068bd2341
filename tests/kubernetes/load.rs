//! Many runs at once, and what they cost this process and the API server.
//!
//! The long forms run with `--include-ignored`, and print their figures. `MOAT_RUNS` sets the number
//! of runs.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use moat::{Error, Manager, Run, RunSpec, ShutdownMode};
use testkit::crash::number;
use testkit::deadline::{eventually, within};
use testkit::harness::{Trial, bounded};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::field::{Field, Visit};
use tracing::{Metadata, Subscriber, span};

use crate::cluster::{self, Down};
use crate::stage::{Stage, assert_both_streams, end, read};

/// The maximum duration of a long form.
const BOUND: Duration = Duration::from_secs(3600);
/// The name of a fault, and its start.
type Fault = (&'static str, fn() -> Down);
/// The faults that parts of the cluster have in turn while runs print. The kubelet of this cluster
/// includes the dockershim.
const FAULTS: [Fault; 5] = [
    ("SIGKILL of the API server", || Down::kill("api")),
    ("SIGKILL of the kubelet", || Down::kill("kubelet")),
    ("restart of etcd", || Down::stop("etcd")),
    ("restart of the API server", || Down::stop("api")),
    ("restart of the kubelet", || Down::stop("kubelet")),
];
/// The number of runs that end between two faults.
const RUNS_BETWEEN_FAULTS: usize = 4;

pub fn trials() -> Vec<Trial> {
    let long = Err("the long form runs with `--include-ignored`".into());
    vec![
        short("runs_that_wait_for_a_node_are_stopped", async |stage| {
            wait_for_a_node(stage, 40, Duration::ZERO).await;
        }),
        soak("runs_of_20000_lines", async |stage| {
            print_undisturbed(stage, runs(160), 20_000, 16).await;
        })
        .needs(&long),
        soak("runs_of_20000_lines_during_faults", async |stage| {
            print_during_faults(stage, runs(160), 20_000, 16).await;
        })
        .needs(cluster::local())
        .needs(&long),
        soak("short_runs", async |stage| {
            print_undisturbed(stage, runs(500), 20, 64).await;
        })
        .needs(&long),
        soak("waiting_runs", async |stage| {
            wait_for_a_node(stage, runs(500), Duration::from_secs(60)).await;
        })
        .needs(&long),
        soak("running_runs", async |stage| {
            run_until_stopped(stage, runs(100)).await;
        })
        .needs(&long),
    ]
}

fn short(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    crate::on_cluster(&format!("load::{name}"), trial)
}

fn soak(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    let run = move || {
        let _alone = crate::CLUSTER
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        bounded(BOUND, async { trial(&Stage::new().await).await })
    };
    Trial::new(&format!("load::{name}"), run).needs(cluster::need())
}

fn runs(default: u64) -> usize {
    let runs = number("MOAT_RUNS", default).unwrap();
    usize::try_from(runs).unwrap()
}

/// The progress of runs that print.
#[derive(Debug, Default)]
struct Progress {
    /// The runs that have started and are not sealed.
    running: usize,
    sealed: usize,
    /// True while a part of the cluster is down.
    broken: bool,
    /// The starts that failed because the API server did not answer.
    failed_starts: usize,
    /// The starts that failed because the kubelet gave the pod up.
    failed_pods: usize,
    /// The sealed runs whose output was read again.
    replayed: usize,
}

/// Runs on a cluster without faults.
async fn print_undisturbed(stage: &Stage, count: usize, lines: u64, width: usize) {
    let progress = watch::Sender::new(Progress::default());
    print_runs(stage, count, lines, width, &progress).await;
    let end = progress.send_replace(Progress::default());
    assert_eq!(end.failed_starts + end.failed_pods + end.replayed, 0);
    stage.is_clean().await;
}

/// Runs on a cluster whose parts have faults in turn.
async fn print_during_faults(stage: &Stage, count: usize, lines: u64, width: usize) {
    let progress = watch::Sender::new(Progress::default());
    let faults = break_parts(&progress, count);
    let ((), faults) = tokio::join!(print_runs(stage, count, lines, width, &progress), faults);
    let end = progress.send_replace(Progress::default());
    println!("faults while runs ran: {faults:#?}");
    println!("{end:?}");
    for (name, _) in FAULTS {
        assert!(faults.contains_key(name), "no {name} in {faults:?}");
    }
    stage.is_clean().await;
}

/// Breaks parts of the cluster in turn until all runs are sealed. Returns the number of faults of
/// each kind.
async fn break_parts(
    progress: &watch::Sender<Progress>,
    count: usize,
) -> BTreeMap<&'static str, u32> {
    let mut runs = progress.subscribe();
    let mut faults = BTreeMap::new();
    let mut next = 0;
    for (name, fault) in FAULTS.into_iter().cycle() {
        let is_due = |now: &Progress| now.sealed >= next && now.running > 0;
        let due = runs.wait_for(|now| now.sealed == count || is_due(now));
        let sealed = within(600, "the next fault", due).await.unwrap().sealed;
        if sealed == count {
            break;
        }
        next = sealed + RUNS_BETWEEN_FAULTS;
        progress.send_modify(|now| now.broken = true);
        let down = spawn_blocking(fault).await.unwrap();
        // The runs did not all end just before the part did.
        if progress.borrow().running > 0 {
            *faults.entry(name).or_default() += 1;
        }
        spawn_blocking(|| down.start()).await.unwrap();
        progress.send_modify(|now| now.broken = false);
    }
    faults
}

/// Starts a run, again after a fault that made the start fail. No command ran then.
async fn start(manager: &Manager, spec: &RunSpec, progress: &watch::Sender<Progress>) -> Run {
    let mut faults = progress.subscribe();
    loop {
        let (outcome, source) = match manager.start(spec.clone()).await {
            Ok(run) => return run,
            Err(Error::NotStarted { outcome, source }) => (outcome, source),
            Err(error) => panic!("{}", error.chain()),
        };
        assert!(outcome.ending.never_started(), "{outcome}: {source}");
        // A kubelet that was restarted may report a container as ended that it had not started.
        let gave_up = source.to_string().contains("its container");
        assert!(gave_up || !source.is_definitive(), "{source}");
        progress.send_modify(|now| match gave_up {
            true => now.failed_pods += 1,
            false => now.failed_starts += 1,
        });
        let repaired = faults.wait_for(|now| !now.broken);
        within(120, "the end of a fault", repaired).await.unwrap();
    }
}

/// Runs that print on both streams, `width` at a time. Every byte is checked.
async fn print_runs(
    stage: &Stage,
    count: usize,
    lines: u64,
    width: usize,
    progress: &watch::Sender<Progress>,
) {
    let costs = Costs::begin();
    let cluster = cluster::connect().await.patience(Duration::from_secs(3600));
    let manager = Manager::builder(stage.root(), cluster).max_concurrent(width);
    let manager = manager.open().await.unwrap();
    costs.report("before the first run");
    let begin = Instant::now();
    let runs = (0..count).map(|number| {
        let spec = stage.spec(&format!(
            "lines {lines} --stream both + exit {}",
            number % 256
        ));
        let manager = manager.clone();
        async move {
            let run = start(&manager, &spec, progress).await;
            progress.send_modify(|now| now.running += 1);
            let outcome = end(&run).await;
            progress.send_modify(|now| {
                now.running -= 1;
                now.sealed += 1;
            });
            assert_eq!(outcome.code(), Some(number as i64 % 256), "{outcome}");
            let checked = spawn_blocking(move || {
                let audit = read(&outcome);
                assert_both_streams(&audit, lines);
                audit.evidence().to_owned()
            });
            match checked.await.unwrap().as_str() {
                "end_marker" => {}
                "replay" => progress.send_modify(|now| now.replayed += 1),
                other => panic!("evidence {other}"),
            }
        }
    });
    let mut ended = stream::iter(runs).buffer_unordered(count);
    let mut done = 0;
    while ended.next().await.is_some() {
        done += 1;
        if done % 50 == 0 {
            costs.report(&format!(
                "{done} runs, {:.0} s",
                begin.elapsed().as_secs_f64()
            ));
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{count} runs of {lines} lines on each stream, {width} at a time: all complete, {} lines, \
         {seconds:.0} s",
        2 * lines * count as u64
    );
    costs.report("at the end");
    costs.per_run(count);
}

/// Runs that are all started at once and get no node, until they are stopped. In between, their
/// costs are measured for a time.
async fn wait_for_a_node(stage: &Stage, count: usize, watched: Duration) {
    let costs = Costs::begin();
    let cluster = cluster::connect().await.patience(Duration::from_secs(3600));
    let cluster = cluster.node_selector("moat.test/no-node", "");
    let manager = Manager::builder(stage.root(), cluster).max_concurrent(count);
    let manager = manager.open().await.unwrap();
    costs.report("before the first run");
    let begin = Instant::now();
    let starts = (0..count).map(|_| {
        let (manager, spec) = (manager.clone(), stage.spec("echo never"));
        tokio::spawn(async move { manager.start(spec).await })
    });
    let starts: Vec<_> = starts.collect();
    eventually(600, "the pods", async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        (cluster::pods(&stage.root_id()).len() == count).then_some(())
    })
    .await;
    println!(
        "{count} pods exist after {:.0} s",
        begin.elapsed().as_secs_f64()
    );
    costs.report("while all wait");
    costs.per_run(count);
    tokio::time::sleep(watched).await;
    costs.report(&format!("{} s later", watched.as_secs()));
    let begin = Instant::now();
    manager.shutdown(ShutdownMode::Stop).await;
    println!(
        "all were stopped within {:.0} s",
        begin.elapsed().as_secs_f64()
    );
    for start in starts {
        let started = start.await.unwrap();
        assert!(started.is_err(), "{started:?}");
    }
    costs.report("at the end");
    costs.per_run(count);
    are_sealed(stage, count);
    stage.is_clean().await;
}

/// Runs that hold, all at once, until they are stopped.
async fn run_until_stopped(stage: &Stage, count: usize) {
    let costs = Costs::begin();
    let cluster = cluster::connect().await.patience(Duration::from_secs(3600));
    let manager = Manager::open(stage.root(), cluster.clone()).await.unwrap();
    costs.report("before the first run");
    let begin = Instant::now();
    let starts = (0..count).map(|_| manager.start(stage.spec("echo ready + trap")));
    let started = futures::future::join_all(starts).await;
    for run in started {
        run.unwrap();
    }
    println!(
        "{count} runs run after {:.0} s",
        begin.elapsed().as_secs_f64()
    );
    costs.report("while all run");
    costs.per_run(count);
    let root = moat::spec::RootId::try_from(stage.root_id()).unwrap();
    let begin = Instant::now();
    let found = moat::runtime::Runtime::find(&cluster, &root).await.unwrap();
    assert_eq!(found.len(), count);
    println!("a search took {:.2} s", begin.elapsed().as_secs_f64());
    let begin = Instant::now();
    manager.shutdown(ShutdownMode::Stop).await;
    println!(
        "all were stopped within {:.0} s",
        begin.elapsed().as_secs_f64()
    );
    costs.report("at the end");
    costs.per_run(count);
    // A stop is given up 30 s after its grace period. The next manager continues it.
    let manager = stage.manager().await;
    let left = manager.wait_recovery().await.unwrap();
    println!("{} runs were not stopped in time", left.len());
    for run in left {
        end(&run).await;
    }
    manager.shutdown(ShutdownMode::Leave).await;
    are_sealed(stage, count);
    stage.is_clean().await;
}

fn are_sealed(stage: &Stage, count: usize) {
    let root = moat::Root::open(stage.root()).unwrap();
    let infos = root.list().unwrap();
    assert_eq!(infos.len(), count);
    for info in infos {
        assert!(info.seal.is_some(), "{info:?}");
    }
}

/// The requests of this process, counted by verb and path.
#[derive(Debug, Clone, Default)]
struct Requests(Arc<Mutex<BTreeMap<String, u64>>>);

impl Requests {
    /// Counts from the first call on.
    fn counter() -> Self {
        static COUNTER: OnceLock<Requests> = OnceLock::new();
        let counter = COUNTER.get_or_init(|| {
            let requests = Self::default();
            // Without it, nothing is counted.
            let _ = tracing::subscriber::set_global_default(requests.clone());
            requests
        });
        counter.clone()
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The method and the URL of a request.
#[derive(Default)]
struct Fields(String, String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "http.method" => self.0 = format!("{value:?}"),
            "http.url" => self.1 = format!("{value:?}"),
            _ => {}
        }
    }
}

impl Fields {
    /// The kind of the request, without names.
    fn kind(&self) -> String {
        let (path, query) = self.1.split_once('?').unwrap_or((&self.1, ""));
        let words = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("command="));
        // The helper, `ctl` and its socket come first.
        let what = words.skip(3).find(|word| !word.is_empty());
        let parts: Vec<_> = path
            .split('/')
            .skip_while(|part| *part != "namespaces")
            .collect();
        let resource = match parts.as_slice() {
            [_, _, resource, _, subresource] => format!("{resource}/{subresource}"),
            [_, _, resource, _] => format!("{resource} by name"),
            [_, _, resource] => format!("{resource} of the namespace"),
            _ => path.rsplit('/').next().unwrap_or_default().to_owned(),
        };
        let watch = if query.contains("watch=true") {
            " watch"
        } else {
            ""
        };
        format!("{} {resource}{watch} {}", self.0, what.unwrap_or_default())
    }
}

impl Subscriber for Requests {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("kube_client")
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if !fields.0.is_empty() {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *counts.entry(fields.kind()).or_default() += 1;
        }
        span::Id::from_u64(1)
    }

    fn event(&self, _: &tracing::Event<'_>) {}
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// What this process costs.
struct Costs {
    requests: Requests,
    before: BTreeMap<String, u64>,
}

impl Costs {
    fn begin() -> Self {
        let requests = Requests::counter();
        let before = requests.counts();
        Self { requests, before }
    }

    fn total(&self) -> u64 {
        self.requests.counts().values().sum()
    }

    /// Prints the memory, the descriptors and the threads of this process.
    fn report(&self, when: &str) {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1))
                .unwrap_or("?")
        };
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
        println!(
            "{when}: VmRSS {} kB, VmHWM {} kB, {descriptors} descriptors, {} threads, {} requests",
            field("VmRSS:"),
            field("VmHWM:"),
            field("Threads:"),
            self.total() - self.before.values().sum::<u64>(),
        );
    }

    /// Prints the requests for each run.
    fn per_run(&self, runs: usize) {
        let mut sum = 0;
        for (kind, count) in self.requests.counts() {
            let count = count - self.before.get(&kind).copied().unwrap_or_default();
            sum += count;
            println!("  {kind}: {count}, {:.2} a run", count as f64 / runs as f64);
        }
        println!("  all: {sum}, {:.2} a run", sum as f64 / runs as f64);
    }
}
