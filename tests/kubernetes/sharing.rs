//! Processes that share a root, or a namespace.

use moat::ShutdownMode;
use testkit::audit::Audit;
use testkit::crash::{Planned, Tally};

use crate::crash::child::Orders;
use crate::crash::round::is_sealed;
use crate::stage::{Stage, end};

testkit::trials! {
    crate::on_local_cluster:
        processes_do_not_touch_the_runs_of_others,
}

/// The number of runs of each process.
const RUNS: usize = 3;

fn runs(owner: &str) -> Vec<Planned> {
    (0..RUNS)
        .map(|number| Planned {
            id: format!("{owner}-{number}"),
            lines: 2_000,
            ..Planned::lasting()
        })
        .collect()
}

/// Two processes share a root, and a third one has its own root in the same namespace. While the
/// first two run, a manager opens each root: the third process is dead by then.
async fn processes_do_not_touch_the_runs_of_others(stage: &Stage) {
    let other = Stage::new().await;
    let (first, second, third) = (runs("first"), runs("second"), runs("third"));
    let mut processes = [
        Orders::new(stage, &first).start(),
        Orders::new(stage, &second).start(),
    ];
    let dead = Orders::new(&other, &third).start();
    for run in first.iter().chain(&second) {
        stage.audited(&run.id, "out 00000050 ").await;
    }
    for run in &third {
        other.audited(&run.id, "out 00000050 ").await;
    }
    assert!(dead.kill(), "the third process has ended");
    let (manager, heir) = (stage.manager().await, other.manager().await);
    let owned = manager.wait_recovery().await.unwrap();
    assert_eq!(owned.len(), 2 * RUNS);
    for run in &owned {
        assert!(run.owned_elsewhere(), "{:?}", run.id());
    }
    assert!(manager.orphans().await.unwrap().is_empty());
    let taken = heir.wait_recovery().await.unwrap();
    assert_eq!(taken.len(), RUNS);
    stage.open_gate("go");
    other.open_gate("go");
    for run in &taken {
        end(run).await;
    }
    for process in &mut processes {
        let status = process.ended(300).await;
        assert!(status.success(), "{status}");
    }
    for run in &owned {
        end(run).await;
    }

    let all = [first, second].concat();
    for (stage, runs) in [(stage, &all), (&other, &third)] {
        let mut tally = Tally::default();
        tally.check(&stage.root(), &stage.gate(), runs, |run| {
            is_sealed(stage, run)
        });
        println!("{tally}");
        tally.clean().unwrap();
        stage.is_clean().await;
    }
    // A process that took a run over would have recorded it.
    for run in &all {
        let audit = Audit::read(&stage.root().join(&run.id).join("logs.jsonl")).unwrap();
        let kinds: Vec<_> = audit.events.iter().map(|event| &event["type"]).collect();
        assert!(audit.all("resume").is_empty(), "{kinds:?}");
        assert_eq!(audit.all("started").len(), 1, "{kinds:?}");
    }
    for run in &third {
        let audit = Audit::read(&other.root().join(&run.id).join("logs.jsonl")).unwrap();
        assert_eq!(audit.all("resume").len(), 1, "{:?}", audit.events);
    }
    manager.shutdown(ShutdownMode::Leave).await;
    heir.shutdown(ShutdownMode::Leave).await;
}
