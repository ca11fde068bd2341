//! Connections that a proxy ends cleanly, in output that repeats itself. `MOAT_SOAK=1` selects the
//! long form.

use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use moat::spec::{Backstop, ExecSpec};
use moat::{Docker, Manager, Outcome, ShutdownMode};
use testkit::deadline::within;
use testkit::proxy::{Fault, Proxy};
use testkit::sequence;

use crate::load::quick_or_soak;
use crate::stage::{Stage, end, read};

testkit::trials! {
    crate::on_engine:
        no_cut_run_is_complete,
        no_cut_exec_is_complete,
}

/// The number of proxies, each with one run at a time.
const LANES: u64 = 4;
/// The longest prefix that passes a proxy, in frames. An engine sends short output in few frames.
const MAX_FRAMES: usize = 16;

/// Output that repeats itself: the steps of the workload, and what they print.
struct Repeating {
    steps: Vec<String>,
    printed: Vec<u8>,
}

impl Repeating {
    fn random(rng: &mut Rng) -> Self {
        let mut output = Self {
            steps: Vec::new(),
            printed: Vec::new(),
        };
        let times = rng.usize(2..6);
        match rng.u8(0..4) {
            0 => output.same(rng.usize(1..5000)),
            1 => {
                let lines = rng.u64(1..200);
                (0..times).for_each(|_| output.block(lines));
            }
            // Longer than the part of a log that is compared byte for byte. After the pause, a
            // frame begins with the second block.
            2 => {
                output.block(2000);
                output.add("sleep 0.05", b"");
                output.block(2000);
            }
            _ => {
                let lines = rng.u64(60..80);
                for _ in 0..times {
                    output.block(lines);
                    output.add("sleep 0.01", b"");
                    output.add("echo other", b"other\n");
                }
            }
        }
        output
    }

    fn add(&mut self, step: &str, printed: &[u8]) {
        self.steps.push(step.into());
        self.printed.extend_from_slice(printed);
    }

    fn block(&mut self, lines: u64) {
        let printed = sequence::lines("out", lines, 64);
        self.add(&format!("lines {lines}"), &printed);
    }

    fn same(&mut self, lines: usize) {
        self.add(
            &format!("yes same {lines}"),
            "same\n".repeat(lines).as_bytes(),
        );
    }

    fn command(&self) -> String {
        self.steps.join(" + ")
    }

    /// The output as a terminal sends it.
    fn on_terminal(&self) -> Vec<u8> {
        let text = String::from_utf8(self.printed.clone()).unwrap();
        text.replace('\n', "\r\n").into_bytes()
    }
}

/// A manager behind a proxy.
struct Lane {
    proxy: Proxy,
    manager: Manager,
}

impl Lane {
    async fn new(stage: &Stage, number: u64) -> Self {
        let dir = stage.dir.path().join(format!("proxy-{number}"));
        std::fs::create_dir(&dir).unwrap();
        let proxy = Proxy::listen(&dir).unwrap();
        let docker = Docker::connect_to(&proxy.address()).await.unwrap();
        let root = stage.dir.path().join(format!("root-{number}"));
        let manager = Manager::open(root, docker).await.unwrap();
        Self { proxy, manager }
    }
}

/// Checks a seal against the output of the container. Returns true if output is missing.
fn check(outcome: &Outcome, stream: &str, printed: &[u8], case: &str) -> bool {
    let audit = read(outcome);
    let found = audit.stream(stream);
    let same = printed
        .iter()
        .zip(found)
        .take_while(|(a, b)| a == b)
        .count();
    assert!(
        same == found.len(),
        "{case}: after {same} bytes, {:?}: {}",
        String::from_utf8_lossy(&found[same..found.len().min(same + 300)]),
        audit.end
    );
    let is_cut = found.len() < printed.len();
    let verdict = audit.verdict();
    assert!(!is_cut || verdict != "complete", "{case}: {}", audit.end);
    is_cut
}

/// A busy engine sends the same output in fewer frames, so fewer cuts lose output.
fn assert_some_cut(cuts: u64) {
    assert!(cuts > 0, "no cut lost output");
}

/// Calls `cut_one` with each number below `count`, in [`LANES`] lanes.
async fn in_lanes(stage: &Stage, count: u64, cut_one: impl AsyncFn(&Lane, u64)) {
    let next = AtomicU64::new(0);
    let lanes = (0..LANES).map(async |number| {
        let lane = Lane::new(stage, number).await;
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                break;
            }
            cut_one(&lane, at).await;
        }
        lane.manager.shutdown(ShutdownMode::Leave).await;
    });
    futures::future::join_all(lanes).await;
}

async fn no_cut_run_is_complete(stage: &Stage) {
    let cuts = AtomicU64::new(0);
    let count = quick_or_soak(64, 2000);
    in_lanes(stage, count, async |lane, seed| {
        let mut rng = Rng::with_seed(seed);
        let output = Repeating::random(&mut rng);
        let frames = rng.usize(0..MAX_FRAMES);
        let (tty, backstop) = (rng.u8(0..4) == 0, rng.bool());
        let command = output.command();
        let case = format!("{command:?} cut after {frames} frames, terminal {tty}, {backstop}");
        lane.proxy.fault("attach", Fault::CutAtFrame(frames));
        let spec = stage.spec(&command).tty(tty).backstop(match backstop {
            true => Backstop::Engine,
            false => Backstop::None,
        });
        let outcome = end(&lane.manager.start(spec).await.unwrap()).await;
        let (stream, printed) = match tty {
            true => ("tty", output.on_terminal()),
            false => ("stdout", output.printed.clone()),
        };
        let is_cut = check(&outcome, stream, &printed, &case);
        cuts.fetch_add(u64::from(is_cut), Ordering::Relaxed);
        assert!(!backstop || !is_cut, "{case}: the log had all of it");
        let verdict = outcome.sealed().unwrap().verdict;
        assert!(!backstop || verdict == moat::Verdict::Complete, "{case}");
    })
    .await;
    let cuts = cuts.into_inner();
    println!("{count} runs, {cuts} without all of their output");
    assert_some_cut(cuts);
}

async fn no_cut_exec_is_complete(stage: &Stage) {
    let cuts = AtomicU64::new(0);
    let count = quick_or_soak(32, 500);
    in_lanes(stage, count, async |lane, seed| {
        let mut rng = Rng::with_seed(seed);
        let output = Repeating::random(&mut rng);
        let frames = rng.usize(0..MAX_FRAMES);
        let command = output.command();
        let case = format!("{command:?} cut after {frames} frames");
        let run = lane.manager.start(stage.spec("hold")).await.unwrap();
        lane.proxy.fault("start", Fault::CutAtFrame(frames));
        let program = ["/workload"].into_iter().chain(command.split(' '));
        let exec = run.exec(ExecSpec::new(program)).await.unwrap();
        let outcome = within(60, "the end of the exec", exec.wait())
            .await
            .unwrap();
        let is_cut = check(&outcome, "stdout", &output.printed, &case);
        cuts.fetch_add(u64::from(is_cut), Ordering::Relaxed);
        run.kill().await.unwrap();
        end(&run).await;
        lane.proxy.fault("start", Fault::CutAtFrame(usize::MAX));
    })
    .await;
    let cuts = cuts.into_inner();
    println!("{count} execs, {cuts} without all of their output");
    assert_some_cut(cuts);
}
