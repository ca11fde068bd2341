//! Evidence of a complete audit, and gaps.

use std::path::PathBuf;
use std::time::Duration;

use moat::spec::{Backstop, ExecSpec};
use moat::{Docker, Manager, Outcome, RunSpec};
use testkit::deadline::within;
use testkit::proxy::{Fault, Proxy};
use testkit::{engine, sequence};

use crate::stage::{Stage, Watched, assert_bytes, assert_complete, end, printed, read};

testkit::trials! {
    crate::on_engine:
        a_late_answer_to_attach_loses_nothing,
        a_cut_tap_is_completed_from_the_log,
        a_tap_cut_in_equal_lines_keeps_each_line_once,
        a_viewer_gets_output_of_a_stuck_attachment,
        a_silent_tap_is_replaced_after_its_deadline,
        a_cut_tap_without_readable_log_is_a_gap,
        an_unreadable_log_does_not_prove_completeness,
        a_cut_tap_without_backstop_is_a_gap,
        a_lost_connection_loses_nothing,
        a_blocked_runtime_never_hides_a_loss,
        a_blocked_runtime_never_hides_a_loss_of_an_exec,
}

/// A manager that reaches the engine through a proxy.
pub async fn behind_proxy(stage: &Stage) -> (Proxy, Manager) {
    let proxy = Proxy::listen(stage.dir.path()).unwrap();
    let docker = Docker::connect_to(&proxy.address()).await.unwrap();
    let manager = Manager::open(stage.root(), docker).await.unwrap();
    (proxy, manager)
}

/// A container that is started before attach is answered prints before anyone listens.
async fn a_late_answer_to_attach_loses_nothing(stage: &Stage) {
    let (proxy, manager) = behind_proxy(stage).await;
    proxy.fault("attach", Fault::Late(Duration::from_secs(1)));
    let run = manager.start(stage.spec("lines 50")).await.unwrap();
    let audit = read(&end(&run).await);
    sequence::check(audit.stream("stdout"), "out", 50, 64).unwrap();
    assert_complete(&audit);
    let (attach, start) = (&proxy.seen("attach")[0], &proxy.seen("start")[0]);
    assert!(
        attach.answered.unwrap() <= start.asked,
        "started before the answer"
    );
}

/// A cut attach stream ends like a complete one.
async fn a_cut_tap_is_completed_from_the_log(stage: &Stage) {
    for bytes in [0, 1, 100, 5000, 20_000] {
        let (proxy, manager) = behind_proxy(stage).await;
        proxy.fault("attach", Fault::CutAfter(bytes));
        let run = manager
            .start(stage.spec("lines 400 --stream both"))
            .await
            .unwrap();
        let audit = read(&end(&run).await);
        sequence::check(audit.stream("stdout"), "out", 400, 64).unwrap();
        sequence::check(audit.stream("stderr"), "err", 400, 64).unwrap();
        assert_complete(&audit);
        // If the cut comes early, the tap may end without output, and the log is followed instead.
        let replayed = audit.evidence() == "replay";
        assert!(replayed || bytes == 0, "cut after {bytes} bytes");
        drop(run);
        manager.shutdown(moat::ShutdownMode::Leave).await;
        drop(proxy);
        std::fs::remove_file(stage.dir.path().join("proxy.sock")).unwrap();
    }
}

/// With equal lines, only their number shows what is missing.
async fn a_tap_cut_in_equal_lines_keeps_each_line_once(stage: &Stage) {
    let (proxy, manager) = behind_proxy(stage).await;
    proxy.fault("attach", Fault::CutAfter(3001));
    let run = manager.start(stage.spec("yes same 5000")).await.unwrap();
    let audit = read(&end(&run).await);
    assert_bytes(audit.stream("stdout"), "same\n".repeat(5000).as_bytes());
    assert_complete(&audit);
    assert_eq!(audit.evidence(), "replay");
}

/// A proxy stops forwarding, and keeps the connection open.
async fn a_viewer_gets_output_of_a_stuck_attachment(stage: &Stage) {
    let (proxy, manager) = behind_proxy(stage).await;
    proxy.fault("attach", Fault::SilentAfter(0));
    let spec = stage
        .gated("lines 100 + await /gate/go")
        .silence_limit(Duration::from_secs(120));
    let run = manager.start(spec).await.unwrap();
    let mut output = run.attach().await.unwrap();
    let mut watched = Watched::default();
    let seen = watched.until(&mut output, "\n");
    within(60, "the first line", seen).await;
    assert!(run.state().ending().is_none());
    stage.open_gate("go");
    let audit = read(&end(&run).await);
    sequence::check(audit.stream("stdout"), "out", 100, 64).unwrap();
    assert_eq!(audit.evidence(), "replay");
}

/// On a container that has ended, an engine never ends an attach stream.
async fn a_silent_tap_is_replaced_after_its_deadline(stage: &Stage) {
    let (proxy, manager) = behind_proxy(stage).await;
    proxy.fault("attach", Fault::SilentAfter(3000));
    let run = manager
        .start(stage.spec("lines 400 + exit 3"))
        .await
        .unwrap();
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(3));
    let audit = read(&outcome);
    sequence::check(audit.stream("stdout"), "out", 400, 64).unwrap();
    assert_complete(&audit);
    assert_eq!(audit.evidence(), "replay");
}

/// Invariant 7.
async fn a_cut_tap_without_readable_log_is_a_gap(stage: &Stage) {
    let (proxy, manager) = behind_proxy(stage).await;
    proxy.fault("attach", Fault::CutAfter(3000));
    proxy.fault("logs", Fault::Refuse(501));
    let run = manager.start(stage.spec("lines 400")).await.unwrap();
    let audit = read(&end(&run).await);
    let all = sequence::lines("out", 400, 64);
    assert!(all.starts_with(audit.stream("stdout")));
    assert_eq!(audit.verdict(), "gap");
    assert!(
        audit
            .all("gap")
            .iter()
            .any(|gap| gap["reason"] == "log_unreadable")
    );
}

/// Invariant 7: the tap ended, which proves nothing.
async fn an_unreadable_log_does_not_prove_completeness(stage: &Stage) {
    let (proxy, manager) = behind_proxy(stage).await;
    proxy.fault("logs", Fault::Refuse(501));
    let run = manager.start(stage.spec("lines 400")).await.unwrap();
    let audit = read(&end(&run).await);
    sequence::check(audit.stream("stdout"), "out", 400, 64).unwrap();
    assert!(
        !["tail", "replay"].contains(&audit.evidence()),
        "{}",
        audit.end
    );
}

/// Output without a backstop is lost, and recorded as lost.
async fn a_cut_tap_without_backstop_is_a_gap(stage: &Stage) {
    let (proxy, manager) = behind_proxy(stage).await;
    let spec = stage
        .gated("lines 100 + await /gate/go + lines 100 --from 101 + sleep 10")
        .backstop(Backstop::None);
    let run = manager.start(spec).await.unwrap();
    printed(&run, "out 00000100 ").await;
    proxy.cut();
    stage.open_gate("go");
    let audit = read(&end(&run).await);
    let all = sequence::lines("out", 200, 64);
    let found = audit.stream("stdout");
    assert!(found.len() >= 100 * 65 && all.starts_with(found));
    assert_eq!(audit.verdict(), "gap");
    assert!(
        audit
            .all("gap")
            .iter()
            .any(|gap| gap["reason"] == "no_backstop")
    );
}

/// Invariant 10: an unreachable engine does not mean that the container has ended.
async fn a_lost_connection_loses_nothing(stage: &Stage) {
    let (proxy, manager) = behind_proxy(stage).await;
    let spec = stage.gated("lines 200 + await /gate/go + lines 200 --from 201 + exit 5");
    let run = manager.start(spec).await.unwrap();
    printed(&run, "out 00000200 ").await;
    proxy.down();
    stage.open_gate("go");
    // The container ends while moat cannot see it.
    stage.container_ended().await;
    assert!(run.state().ending().is_none(), "{:?}", run.state());
    proxy.up();
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(5));
    let audit = read(&outcome);
    sequence::check(audit.stream("stdout"), "out", 400, 64).unwrap();
    assert_complete(&audit);
}

/// Numbers of lines, of which some end with output left in the pipe, because the connection is full.
fn large_counts() -> Vec<u64> {
    (0..12).map(|step| 19_400 + step * 100).collect()
}

/// A manager whose tasks the caller's thread can block.
async fn on_this_thread(root: PathBuf, docker: Docker) -> Manager {
    let builder = Manager::builder(root, docker);
    let builder = builder.runtime_handle(tokio::runtime::Handle::current());
    builder.open().await.unwrap()
}

/// Asserts that each audit has all lines of its count, or a gap.
fn assert_no_hidden_loss(outcomes: &[Outcome], counts: &[u64]) {
    let mut lies = Vec::new();
    for (outcome, lines) in outcomes.iter().zip(counts) {
        let audit = read(outcome);
        let checked = sequence::check(audit.stream("stdout"), "out", *lines, 64);
        if let (Err(missing), true) = (checked, audit.verdict() != "gap") {
            lies.push(format!("{missing}\n{}", audit.end));
        }
    }
    assert!(
        lies.is_empty(),
        "{} of {}:\n{}",
        lies.len(),
        counts.len(),
        lies.join("\n")
    );
}

/// An old engine drops output that is not read within 2 s of the exit, in its log and in its streams.
/// Both then agree and are incomplete.
async fn a_blocked_runtime_never_hides_a_loss(stage: &Stage) {
    let counts = large_counts();
    let (image, root) = (stage.image.clone(), stage.root());
    let gate = stage.dir.path().join("gate");
    let expected = counts.clone();
    let outcomes = engine::block_on(async move {
        let docker = Docker::connect().await.unwrap();
        let manager = on_this_thread(root, docker).await;
        let mut runs = Vec::new();
        for lines in counts {
            let steps = format!("await /gate/go + lines {lines} --burst 50");
            let spec = RunSpec::new(&image).cmd(steps.split(' ')).network("none");
            runs.push(manager.start(spec.bind(&gate, "/gate")).await.unwrap());
        }
        std::fs::write(gate.join("go"), "").unwrap();
        // This is the only thread of the runtime.
        std::thread::sleep(Duration::from_secs(8));
        futures::future::join_all(runs.iter().map(end)).await
    });
    assert_no_hidden_loss(&outcomes, &expected);
}

/// Each engine drops the output of an exec after 2 s.
async fn a_blocked_runtime_never_hides_a_loss_of_an_exec(stage: &Stage) {
    let counts = large_counts();
    let (image, root) = (stage.image.clone(), stage.root());
    let gate = stage.dir.path().join("gate");
    let expected = counts.clone();
    let outcomes = engine::block_on(async move {
        let docker = Docker::connect().await.unwrap();
        let manager = on_this_thread(root, docker).await;
        let spec = RunSpec::new(&image).cmd(["hold"]).network("none");
        let run = manager.start(spec.bind(&gate, "/gate")).await.unwrap();
        let mut execs = Vec::new();
        for lines in counts {
            let steps = format!("/workload await /gate/go + lines {lines} --burst 50");
            let exec = run.exec(ExecSpec::new(steps.split(' '))).await;
            execs.push(exec.unwrap());
        }
        std::fs::write(gate.join("go"), "").unwrap();
        // This is the only thread of the runtime.
        std::thread::sleep(Duration::from_secs(8));
        let ended = execs.iter().map(|exec| within(60, "its end", exec.wait()));
        let outcomes = futures::future::join_all(ended).await;
        run.kill().await.unwrap();
        end(&run).await;
        outcomes.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    });
    assert_no_hidden_loss(&outcomes, &expected);
}
