//! The runtime without a manager.

use moat::runtime::{ContainerStatus, CreateRequest, RuntimeError};
use moat::spec::RootId;
use moat::{LocalProcess, RunId, RunSpec, Runtime};
use testkit::deadline::within;

use crate::place::sh;

struct Direct {
    runtime: LocalProcess,
    root: RootId,
}

impl Direct {
    fn new() -> Self {
        Self {
            runtime: LocalProcess::new(),
            root: RootId::generate(),
        }
    }

    async fn create(&self, spec: &RunSpec) -> moat::spec::ContainerId {
        let run = RunId::generate();
        let name = format!("name-{run}");
        let request = CreateRequest::new(&name, &self.root, &run, spec);
        self.runtime.create(request).await.unwrap().container
    }
}

#[tokio::test]
async fn a_process_is_found_until_its_removal() {
    let direct = Direct::new();
    let container = direct.create(&sh("exit 9")).await;
    let runtime = &direct.runtime;
    let found = runtime.find(&direct.root).await.unwrap();
    assert_eq!(
        (&found[0].container, found[0].status),
        (&container, ContainerStatus::Created)
    );
    assert!(runtime.find(&RootId::generate()).await.unwrap().is_empty());
    let early = runtime.signal(&container, "SIGTERM").await;
    assert!(matches!(early, Err(RuntimeError::Conflict { .. })));

    runtime.start(&container).await.unwrap();
    let again = runtime.start(&container).await;
    assert!(matches!(again, Err(RuntimeError::Conflict { .. })));
    let status = runtime.wait(&container).await.unwrap();
    assert_eq!(status.code, Some(9));
    let inspection = runtime.inspect(&container).await.unwrap();
    assert_eq!(
        (inspection.status, inspection.code),
        (ContainerStatus::Ended, Some(9))
    );
    let late = runtime.signal(&container, "SIGTERM").await;
    assert!(matches!(late, Err(RuntimeError::Conflict { .. })));

    runtime.remove(&container, false).await.unwrap();
    for gone in [
        runtime.remove(&container, false).await.err(),
        runtime.inspect(&container).await.err(),
        runtime.wait(&container).await.err(),
        runtime.start(&container).await.err(),
        runtime.attach(&container, false).await.err(),
    ] {
        assert!(
            matches!(gone, Some(RuntimeError::NotFound { .. })),
            "{gone:?}"
        );
    }
    assert!(runtime.find(&direct.root).await.unwrap().is_empty());
}

#[tokio::test]
async fn only_force_removes_a_running_process() {
    let direct = Direct::new();
    let container = direct.create(&RunSpec::command(["sleep", "600"])).await;
    direct.runtime.start(&container).await.unwrap();
    let refused = direct.runtime.remove(&container, false).await;
    assert!(matches!(refused, Err(RuntimeError::Conflict { .. })));
    within(20, "its removal", direct.runtime.remove(&container, true))
        .await
        .unwrap();

    let container = direct.create(&sh("true")).await;
    direct.runtime.remove(&container, false).await.unwrap();
    assert!(direct.runtime.start(&container).await.is_err());
}

/// The process must not end with SIGPIPE or wait for a reader that is gone.
#[tokio::test]
async fn a_dropped_tap_does_not_disturb_the_process() {
    for tty in [false, true] {
        let direct = Direct::new();
        let script = "seq 100000; seq 100000 >&2; exit 8";
        let container = direct.create(&sh(script).tty(tty)).await;
        let tap = direct.runtime.attach(&container, tty).await.unwrap();
        let second = direct.runtime.attach(&container, tty).await.err();
        assert!(matches!(second, Some(RuntimeError::Conflict { .. })));
        direct.runtime.start(&container).await.unwrap();
        drop(tap);
        let status = within(20, "its end", direct.runtime.wait(&container))
            .await
            .unwrap();
        assert_eq!(status.code, Some(8), "tty: {tty}");

        // The same without a tap.
        let container = direct.create(&sh(script).tty(tty)).await;
        direct.runtime.start(&container).await.unwrap();
        let status = within(20, "its end", direct.runtime.wait(&container))
            .await
            .unwrap();
        assert_eq!(status.code, Some(8), "tty: {tty}");
    }
}
