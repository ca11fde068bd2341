//! The clauses of [`Runtime`](crate::runtime::Runtime) on the life cycle of a container.

use std::time::Duration;

use super::runtime_fixture::{RuntimeFixture, eventually, within};
use super::{Abort, Behavior, ensure, fail};
use crate::error::{RuntimeError, chain};
use crate::runtime::{ContainerStatus, Continuity};
use crate::spec::{ContainerId, RootId, RunId};

/// The time for which a case watches for a change that must not happen.
pub(super) const OBSERVATION: Duration = Duration::from_millis(300);

/// Describes the result of a call for a failure.
pub(super) fn describe<T: std::fmt::Debug>(result: &Result<T, RuntimeError>) -> String {
    match result {
        Ok(value) => format!("the call returned {value:?}"),
        Err(error) => format!("the call failed: {}", chain(error)),
    }
}

fn ensure_conflict(result: Result<(), RuntimeError>) -> Result<(), Abort> {
    let conflict = matches!(result, Err(RuntimeError::Conflict { .. }));
    ensure(conflict, || {
        format!("expected Conflict, but {}", describe(&result))
    })
}

async fn ensure_gone(fixture: &RuntimeFixture, container: &ContainerId) -> Result<(), Abort> {
    let result = fixture.runtime.inspect(container).await;
    let gone = matches!(result, Err(RuntimeError::NotFound { .. }));
    ensure(gone, || {
        format!("the container still exists: {}", describe(&result))
    })
}

async fn ensure_status(
    fixture: &RuntimeFixture,
    container: &ContainerId,
    status: ContainerStatus,
) -> Result<(), Abort> {
    let inspection = fixture.runtime.inspect(container).await?;
    ensure(inspection.status == status, || {
        format!(
            "the status is {:?} instead of {status:?}",
            inspection.status
        )
    })
}

pub(super) mod name {
    use super::*;

    pub(crate) async fn is_lowercase_and_constant(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let name = fixture.runtime.name();
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        ensure(!name.is_empty() && name.chars().all(lower), || {
            format!("invalid name {name:?}")
        })?;
        ensure(name == fixture.runtime.name(), || "the name changes".into())
    }
}

pub(super) mod capabilities {
    use super::*;

    pub(crate) async fn are_constant(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let before = fixture.capabilities();
        fixture.run_to_exit(&Behavior::new()).await?;
        ensure(fixture.capabilities() == before, || {
            format!(
                "the capabilities changed from {before:?} to {:?}",
                fixture.capabilities()
            )
        })
    }
}

pub(super) mod engine {
    use super::*;

    pub(crate) async fn identifies_the_engine(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let engine = fixture.runtime.engine().await?;
        ensure(!engine.name.is_empty(), || "the engine has no name".into())?;
        let again = fixture.runtime.engine().await?;
        ensure(again == engine, || {
            format!("the answer changed from {engine:?} to {again:?}")
        })
    }
}

pub(super) mod validate {
    use super::*;

    pub(crate) async fn rejects_unsupported_fields(fixture: &RuntimeFixture) -> Result<(), Abort> {
        fixture.runtime.validate(&fixture.spec(&Behavior::new())?)?;
        let refused = fixture.harness.refused()?;
        match fixture.runtime.validate(&refused) {
            Err(crate::spec::InvalidSpec { field, .. }) if !field.is_empty() => Ok(()),
            Err(error) => fail(format!("the error names no field: {}", chain(&error))),
            Ok(()) => fail("the unsupported spec is accepted"),
        }
    }
}

pub(super) mod prepare {
    use super::*;

    pub(crate) async fn is_idempotent(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let spec = fixture.spec(&Behavior::new())?;
        for _ in 0..2 {
            fixture.runtime.prepare(&spec).await?;
        }
        Ok(())
    }

    pub(crate) async fn reports_a_missing_image(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let spec = fixture.harness.no_image()?;
        let mut result = fixture.runtime.prepare(&spec).await;
        if result.is_ok() {
            // An engine may pull the image only when it places the container.
            let run = RunId::generate();
            let container = fixture.try_create(&fixture.root, &run, &spec).await?;
            result = fixture
                .placed(fixture.runtime.place(&container, &spec))
                .await?;
        }
        ensure(
            matches!(result, Err(RuntimeError::NoSuchImage { .. })),
            || describe(&result),
        )
    }
}

pub(super) mod create {
    use super::*;

    pub(crate) async fn does_not_start_the_container(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.create(&Behavior::new()).await?;
        tokio::time::sleep(OBSERVATION).await;
        let inspection = fixture.runtime.inspect(&container).await?;
        let unstarted =
            inspection.status == ContainerStatus::Created && inspection.started_at.is_none();
        ensure(unstarted, || format!("`inspect` returned {inspection:?}"))
    }

    pub(crate) async fn makes_the_container_findable(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let run = RunId::generate();
        let spec = fixture.spec(&Behavior::new())?;
        let container = fixture.create_with(&fixture.root, &run, &spec).await?;
        let found = fixture.runtime.find(&fixture.root).await?;
        let one = matches!(&found[..], [one] if one.container == container && one.run == run
            && one.status == ContainerStatus::Created);
        ensure(one, || {
            format!("`find` returned {found:?} instead of {container} for {run}")
        })
    }

    pub(crate) async fn disables_autoremove_and_restart(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.run_to_exit(&Behavior::new().exit(1)).await?;
        let before = fixture.wait_ended(&container).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = fixture.runtime.inspect(&container).await?;
        let same = after.status == ContainerStatus::Ended && after.started_at == before.started_at;
        ensure(same, || {
            format!("the container changed from {before:?} to {after:?}")
        })
    }

    pub(crate) async fn rejects_a_duplicate_name(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let run = RunId::generate();
        let spec = fixture.spec(&Behavior::new())?;
        fixture.create_with(&fixture.root, &run, &spec).await?;
        match fixture.try_create(&fixture.root, &run, &spec).await {
            Ok(second) => fail(format!("a second container was created: {second}")),
            Err(error) => ensure(error.is_definitive(), || chain(&error)),
        }
    }
}

pub(super) mod start {
    use super::*;

    pub(crate) async fn sets_the_start_time(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = fixture.start(&Behavior::new().waits_for_signal()).await?;
        let inspection = fixture.runtime.inspect(&container).await?;
        ensure(inspection.started_at.is_some(), || {
            format!("`inspect` returned {inspection:?}")
        })
    }

    pub(crate) async fn rejects_an_unstartable_container(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.create(&Behavior::command_not_found()).await?;
        let result = fixture.runtime.start(&container).await;
        ensure(matches!(result, Err(RuntimeError::Rejected { .. })), || {
            describe(&result)
        })?;
        ensure_status(fixture, &container, ContainerStatus::Created).await?;
        fixture.runtime.remove(&container, false).await?;
        Ok(())
    }

    pub(crate) async fn leaks_no_secret_in_its_error(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        const SECRET: &str = "bE7-unspeakable";
        let spec = fixture
            .spec(&Behavior::command_not_found())?
            .env("TOKEN", SECRET);
        let container = fixture
            .create_with(&fixture.root, &RunId::generate(), &spec)
            .await?;
        let Err(error) = fixture.runtime.start(&container).await else {
            return fail("a container that cannot start was started");
        };
        let text = format!("{} {error:?} {:?}", chain(&error), fixture.runtime);
        ensure(!text.contains(SECRET), || {
            "the error contains the value of a variable".into()
        })
    }
}

pub(super) mod wait {
    use super::*;

    pub(crate) async fn returns_when_the_container_exits(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.start_ready(Behavior::new().exit(3)).await?;
        let mut wait = fixture.runtime.wait(&container);
        if let Ok(answer) = tokio::time::timeout(OBSERVATION, &mut wait).await {
            return fail(format!(
                "`wait` ended while the container runs: {}",
                describe(&answer)
            ));
        }
        fixture.runtime.signal(&container, "SIGTERM").await?;
        let status = within("`wait` after the exit", wait).await??;
        ensure(status.code == Some(3), || {
            format!("`wait` returned {status:?} instead of 3")
        })
    }

    pub(crate) async fn returns_any_exit_code(fixture: &RuntimeFixture) -> Result<(), Abort> {
        for code in [0, 7, 255] {
            let container = fixture.start(&Behavior::new().exit(code)).await?;
            let got = fixture.wait(&container).await?;
            ensure(got == Some(code.into()), || {
                format!("the exit code is {got:?} instead of {code}")
            })?;
        }
        Ok(())
    }

    pub(crate) async fn returns_at_once_after_the_exit(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.start(&Behavior::new().exit(9)).await?;
        fixture.wait_ended(&container).await?;
        for _ in 0..2 {
            let code = fixture.wait(&container).await?;
            ensure(code == Some(9), || {
                format!("the exit code is {code:?} instead of 9")
            })?;
        }
        Ok(())
    }

    pub(crate) async fn is_cancel_safe(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = fixture.start_ready(Behavior::new().exit(4)).await?;
        for _ in 0..3 {
            let wait = fixture.runtime.wait(&container);
            let _ = tokio::time::timeout(Duration::from_millis(50), wait).await;
        }
        ensure_status(fixture, &container, ContainerStatus::Running).await?;
        fixture.runtime.signal(&container, "SIGTERM").await?;
        let code = fixture.wait(&container).await?;
        ensure(code == Some(4), || {
            format!("the exit code is {code:?} instead of 4")
        })
    }
}

pub(super) mod inspect {
    use super::*;

    pub(crate) async fn reports_each_status_in_order(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture
            .create(&Behavior::new().out("ready\n").waits_for_signal())
            .await?;
        ensure_status(fixture, &container, ContainerStatus::Created).await?;
        fixture.runtime.start(&container).await?;
        ensure_status(fixture, &container, ContainerStatus::Running).await?;
        fixture.runtime.signal(&container, "SIGKILL").await?;
        fixture.wait(&container).await?;
        fixture.wait_ended(&container).await.map(drop)
    }

    pub(crate) async fn reports_the_code_only_after_the_exit(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.start_ready(Behavior::new().exit(5)).await?;
        let running = fixture.runtime.inspect(&container).await?;
        ensure(
            running.code.is_none() && running.finished_at.is_none(),
            || format!("while the container runs: {running:?}"),
        )?;
        fixture.runtime.signal(&container, "SIGTERM").await?;
        let ended = fixture.wait_ended(&container).await?;
        ensure(ended.code == Some(5), || {
            format!("the exit code is {:?} instead of 5", ended.code)
        })
    }

    pub(crate) async fn orders_start_and_finish_times(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let behavior = Behavior::new().pause(Duration::from_millis(100));
        let container = fixture.run_to_exit(&behavior).await?;
        let ended = fixture.wait_ended(&container).await?;
        match (ended.started_at, ended.finished_at) {
            (Some(start), Some(end)) if start < end => Ok(()),
            (start, end) => fail(format!("started at {start:?}, finished at {end:?}")),
        }
    }
}

pub(super) mod continuity {
    use super::*;

    pub(crate) async fn is_not_broken_before_the_start(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.create(&Behavior::new()).await?;
        ensure_not_broken(fixture, &container).await
    }

    pub(crate) async fn is_not_broken_without_a_restart(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.start(&Behavior::new().waits_for_signal()).await?;
        ensure_not_broken(fixture, &container).await
    }

    async fn ensure_not_broken(
        fixture: &RuntimeFixture,
        container: &ContainerId,
    ) -> Result<(), Abort> {
        let continuity = fixture.runtime.continuity(container).await?;
        ensure(continuity != Continuity::Broken, || {
            format!("`continuity` returned {continuity:?}")
        })
    }
}

pub(super) mod signal {
    use super::*;

    pub(crate) async fn reaches_the_first_process(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = fixture.start_ready(Behavior::new().exit(6)).await?;
        fixture.runtime.signal(&container, "SIGTERM").await?;
        let code = fixture.wait(&container).await?;
        ensure(code == Some(6), || {
            format!("the exit code is {code:?} instead of 6")
        })
    }

    pub(crate) async fn sigkill_ends_any_container(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = fixture
            .start_ready(Behavior::new().ignores_sigterm())
            .await?;
        fixture.runtime.signal(&container, "SIGTERM").await?;
        tokio::time::sleep(OBSERVATION).await;
        ensure_status(fixture, &container, ContainerStatus::Running).await?;
        fixture.runtime.signal(&container, "SIGKILL").await?;
        let code = fixture.wait(&container).await?;
        ensure(code == Some(137), || {
            format!("the exit code is {code:?} instead of 137")
        })
    }

    pub(crate) async fn conflicts_before_the_start(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = fixture.create(&Behavior::new()).await?;
        ensure_conflict(fixture.runtime.signal(&container, "SIGTERM").await)?;
        ensure_status(fixture, &container, ContainerStatus::Created).await
    }

    pub(crate) async fn conflicts_after_the_exit(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = fixture.run_to_exit(&Behavior::new()).await?;
        fixture.wait_ended(&container).await?;
        ensure_conflict(fixture.runtime.signal(&container, "SIGKILL").await)
    }
}

pub(super) mod remove {
    use super::*;

    pub(crate) async fn removes_a_created_container(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = fixture.create(&Behavior::new()).await?;
        fixture.runtime.remove(&container, false).await?;
        ensure_gone(fixture, &container).await?;
        let start = fixture.runtime.start(&container).await;
        ensure(start.is_err(), || {
            "the removed container was started".into()
        })
    }

    pub(crate) async fn conflicts_with_a_running_container(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.start_ready(Behavior::new()).await?;
        ensure_conflict(fixture.runtime.remove(&container, false).await)?;
        ensure_status(fixture, &container, ContainerStatus::Running).await
    }

    pub(crate) async fn force_removes_a_running_container(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.start_ready(Behavior::new()).await?;
        fixture.runtime.remove(&container, true).await?;
        ensure_gone(fixture, &container).await
    }

    pub(crate) async fn removes_an_ended_container(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = fixture.run_to_exit(&Behavior::new()).await?;
        fixture.wait_ended(&container).await?;
        fixture.runtime.remove(&container, false).await?;
        ensure_gone(fixture, &container).await
    }

    pub(crate) async fn ends_pending_waits(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = fixture.start_ready(Behavior::new()).await?;
        let mut wait = fixture.runtime.wait(&container);
        // Polls the future, so that the call is in flight.
        let _ = tokio::time::timeout(OBSERVATION, &mut wait).await;
        fixture.runtime.remove(&container, true).await?;
        match within("the pending wait", wait).await? {
            Err(error) => ensure(error.is_not_found() || !error.is_definitive(), || {
                chain(&error)
            }),
            Ok(_) => Ok(()),
        }
    }
}

pub(super) mod find {
    use super::*;

    pub(crate) async fn returns_only_containers_of_the_root(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let spec = fixture.spec(&Behavior::new())?;
        let other = RootId::generate();
        let ours = fixture
            .create_with(&fixture.root, &RunId::generate(), &spec)
            .await?;
        let theirs = fixture
            .create_with(&other, &RunId::generate(), &spec)
            .await?;
        for (root, container) in [(&fixture.root, ours), (&other, theirs)] {
            let found = fixture.runtime.find(root).await?;
            let one = matches!(&found[..], [one] if one.container == container);
            ensure(one, || {
                format!("`find` returned {found:?} instead of {container}")
            })?;
        }
        let none = fixture.runtime.find(&RootId::generate()).await?;
        ensure(none.is_empty(), || {
            format!("`find` returned {none:?} for an unused root")
        })
    }

    pub(crate) async fn returns_containers_in_every_state(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let created = fixture.create(&Behavior::new()).await?;
        let running = fixture.start_ready(Behavior::new()).await?;
        let ended = fixture.run_to_exit(&Behavior::new()).await?;
        let expected = [
            (created, ContainerStatus::Created),
            (running, ContainerStatus::Running),
            (ended, ContainerStatus::Ended),
        ];
        eventually(
            "`find` returns all three containers with their states",
            || async {
                let found = fixture.runtime.find(&fixture.root).await?;
                let all = expected.iter().all(|(container, status)| {
                    found
                        .iter()
                        .any(|found| found.container == *container && found.status == *status)
                });
                Ok((all && found.len() == 3).then_some(()))
            },
        )
        .await
    }
}
