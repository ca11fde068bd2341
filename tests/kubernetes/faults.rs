//! Parts of the cluster that die while runs print.

use moat::{Manager, Run, RunId};
use testkit::deadline::eventually;

use crate::cluster::Down;
use crate::stage::{Stage, assert_both_streams, end, read};

testkit::trials! {
    crate::on_broken_cluster:
        a_killed_api_server_loses_nothing,
        a_run_may_end_without_the_api_server,
        a_killed_kubelet_loses_nothing,
        a_run_may_end_without_the_kubelet,
        a_restarted_etcd_loses_nothing,
}

const RUNS: usize = 3;
/// Lines of each stream before and after the gate.
const LINES: u64 = 500;

/// Runs that print on both streams for about 10 s, and then for as long after a gate.
async fn start(stage: &Stage, manager: &Manager) -> Vec<Run> {
    let steps = format!(
        "lines {LINES} --stream both --delay-ms 20 + await /gate/go \
         + lines {LINES} --stream both --delay-ms 5 --from {} + write /gate/end-ID x + exit 4",
        LINES + 1
    );
    let mut runs = Vec::new();
    for number in 0..RUNS {
        let steps = steps.replace("ID", &number.to_string());
        let id = RunId::new(format!("run-{number}")).unwrap();
        runs.push(manager.start(stage.gated(&steps).id(id)).await.unwrap());
    }
    for number in 0..RUNS {
        stage
            .audited(&format!("run-{number}"), "out 00000020 ")
            .await;
    }
    runs
}

/// Waits until all commands have printed everything.
async fn commands_ended(stage: &Stage) {
    for number in 0..RUNS {
        let end = stage.gate().join(format!("end-{number}"));
        eventually(120, "the end of a command", async || {
            end.exists().then_some(())
        })
        .await;
    }
}

async fn check(stage: &Stage, runs: &[Run]) {
    for run in runs {
        let outcome = end(run).await;
        assert_eq!(outcome.code(), Some(4), "{outcome}");
        let audit = read(&outcome);
        assert_both_streams(&audit, 2 * LINES);
    }
    stage.is_clean().await;
}

async fn a_killed_api_server_loses_nothing(stage: &Stage) {
    let manager = stage.manager().await;
    let runs = start(stage, &manager).await;
    Down::kill("api").start();
    stage.open_gate("go");
    check(stage, &runs).await;
}

async fn a_run_may_end_without_the_api_server(stage: &Stage) {
    let manager = stage.manager().await;
    let runs = start(stage, &manager).await;
    let api = Down::kill("api");
    stage.open_gate("go");
    commands_ended(stage).await;
    api.start();
    check(stage, &runs).await;
}

async fn a_killed_kubelet_loses_nothing(stage: &Stage) {
    let manager = stage.manager().await;
    let runs = start(stage, &manager).await;
    Down::kill("kubelet").start();
    stage.open_gate("go");
    check(stage, &runs).await;
}

async fn a_run_may_end_without_the_kubelet(stage: &Stage) {
    let manager = stage.manager().await;
    let runs = start(stage, &manager).await;
    let kubelet = Down::stop("kubelet");
    stage.open_gate("go");
    commands_ended(stage).await;
    kubelet.start();
    check(stage, &runs).await;
}

async fn a_restarted_etcd_loses_nothing(stage: &Stage) {
    let manager = stage.manager().await;
    let runs = start(stage, &manager).await;
    Down::stop("etcd").start();
    stage.open_gate("go");
    check(stage, &runs).await;
}
