//! The clauses of [`Runtime`](crate::runtime::Runtime) on the placement of a container.

pub(super) mod place {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use crate::conformance::containers::{OBSERVATION, describe};
    use crate::conformance::runtime_fixture::RuntimeFixture;
    use crate::conformance::{Abort, Behavior, ensure};
    use crate::error::RuntimeError;
    use crate::runtime::ContainerStatus;
    use crate::spec::{ContainerId, RunId, RunSpec};

    /// Creates a container without placing it.
    async fn create(fixture: &RuntimeFixture) -> Result<(ContainerId, RunSpec), Abort> {
        let spec = fixture.spec(&Behavior::new().out("started\n"))?;
        fixture.runtime.prepare(&spec).await?;
        let run = RunId::generate();
        let container = fixture.try_create(&fixture.root, &run, &spec).await?;
        Ok((container, spec))
    }

    async fn ensure_unstarted(
        fixture: &RuntimeFixture,
        container: &ContainerId,
    ) -> Result<(), Abort> {
        let inspection = fixture.runtime.inspect(container).await?;
        let unstarted =
            inspection.status == ContainerStatus::Created && inspection.started_at.is_none();
        ensure(unstarted, || format!("`inspect` returned {inspection:?}"))
    }

    pub(crate) async fn does_not_start_the_container(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let (container, spec) = create(fixture).await?;
        ensure_unstarted(fixture, &container).await?;
        fixture.place(&container, &spec).await?;
        sleep(OBSERVATION).await;
        ensure_unstarted(fixture, &container).await
    }

    pub(crate) async fn can_be_repeated(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let (container, spec) = create(fixture).await?;
        for _ in 0..2 {
            fixture.place(&container, &spec).await?;
        }
        ensure_unstarted(fixture, &container).await
    }

    pub(crate) async fn is_cancel_safe(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let (container, spec) = create(fixture).await?;
        for wait in [Duration::ZERO, OBSERVATION] {
            let dropped = timeout(wait, fixture.runtime.place(&container, &spec)).await;
            dropped.unwrap_or(Ok(()))?;
        }
        fixture.place(&container, &spec).await?;
        fixture.runtime.start(&container).await?;
        fixture.wait(&container).await.map(drop)
    }

    pub(crate) async fn of_a_missing_container_is_not_found(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let (container, spec) = create(fixture).await?;
        fixture.runtime.remove(&container, false).await?;
        let placed = fixture.runtime.place(&container, &spec);
        let result = fixture.placed(placed).await?;
        // An engine that places a container at its creation need not look.
        let allowed = matches!(result, Ok(()) | Err(RuntimeError::NotFound { .. }));
        ensure(allowed, || describe(&result))
    }
}
