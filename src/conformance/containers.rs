//! The clauses about the life of a container.

use std::time::Duration;

use super::bench::{Bench, eventually, within};
use super::{Behaviour, Stop, ensure, fail, skip, words};
use crate::error::RuntimeError;
use crate::runtime::{ContainerStatus, Continuity};
use crate::spec::{ContainerId, RootId, RunId};

/// Long enough for what must not happen to be seen.
const A_WHILE: Duration = Duration::from_millis(300);

/// What a call said, for an error.
fn said<T: std::fmt::Debug>(result: &Result<T, RuntimeError>) -> String {
    match result {
        Ok(value) => format!("it said {value:?}"),
        Err(error) => format!("it failed: {}", words(error)),
    }
}

fn ensure_conflict(result: Result<(), RuntimeError>) -> Result<(), Stop> {
    let conflict = matches!(result, Err(RuntimeError::Conflict { .. }));
    ensure(conflict, || format!("no Conflict: {}", said(&result)))
}

async fn ensure_gone(bench: &Bench, container: &ContainerId) -> Result<(), Stop> {
    let result = bench.runtime.inspect(container).await;
    let gone = matches!(result, Err(RuntimeError::NotFound { .. }));
    ensure(gone, || format!("it is still there: {}", said(&result)))
}

async fn ensure_status(
    bench: &Bench,
    container: &ContainerId,
    status: ContainerStatus,
) -> Result<(), Stop> {
    let inspection = bench.runtime.inspect(container).await?;
    ensure(inspection.status == status, || {
        format!("it is {:?} in the place of {status:?}", inspection.status)
    })
}

pub(crate) mod runtime {
    use super::*;

    pub(crate) async fn it_has_a_name(bench: &Bench) -> Result<(), Stop> {
        let name = bench.runtime.name();
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        ensure(!name.is_empty() && name.chars().all(lower), || {
            format!("{name:?}")
        })?;
        ensure(name == bench.runtime.name(), || "it changes".into())
    }

    pub(crate) async fn its_capabilities_do_not_change(bench: &Bench) -> Result<(), Stop> {
        let before = bench.can();
        bench.run_to_its_end(&Behaviour::new()).await?;
        ensure(bench.can() == before, || {
            format!("{before:?} became {:?}", bench.can())
        })
    }

    pub(crate) async fn the_engine_says_who_it_is(bench: &Bench) -> Result<(), Stop> {
        let engine = bench.runtime.engine().await?;
        ensure(!engine.name.is_empty(), || "it has no name".into())?;
        let again = bench.runtime.engine().await?;
        ensure(again == engine, || format!("{engine:?} became {again:?}"))
    }

    pub(crate) async fn what_it_cannot_do_is_refused_by_the_fields_name(
        bench: &Bench,
    ) -> Result<(), Stop> {
        bench.runtime.validate(&bench.spec(&Behaviour::new())?)?;
        let refused = bench.stage.refused().or_else(skip)?;
        match bench.runtime.validate(&refused) {
            Err(crate::spec::InvalidSpec { field, .. }) if !field.is_empty() => Ok(()),
            Err(error) => fail(format!("it fails in another way: {}", words(&error))),
            Ok(()) => fail("what it cannot do is not refused"),
        }
    }
}

pub(crate) mod prepare {
    use super::*;

    pub(crate) async fn an_image_that_is_there_is_prepared_again_and_again(
        bench: &Bench,
    ) -> Result<(), Stop> {
        let spec = bench.spec(&Behaviour::new())?;
        for _ in 0..2 {
            bench.runtime.prepare(&spec).await?;
        }
        Ok(())
    }

    pub(crate) async fn an_image_that_is_not_there_is_a_fact(bench: &Bench) -> Result<(), Stop> {
        let spec = bench.stage.no_image().or_else(skip)?;
        let result = bench.runtime.prepare(&spec).await;
        ensure(
            matches!(result, Err(RuntimeError::NoSuchImage { .. })),
            || said(&result),
        )
    }
}

pub(crate) mod create {
    use super::*;

    pub(crate) async fn it_makes_a_container_and_does_not_start_it(
        bench: &Bench,
    ) -> Result<(), Stop> {
        let container = bench.make(&Behaviour::new()).await?;
        tokio::time::sleep(A_WHILE).await;
        let inspection = bench.runtime.inspect(&container).await?;
        let still =
            inspection.status == ContainerStatus::Created && inspection.started_at.is_none();
        ensure(still, || format!("{inspection:?}"))
    }

    pub(crate) async fn it_can_be_found_from_then_on(bench: &Bench) -> Result<(), Stop> {
        let run = RunId::generate();
        let spec = bench.spec(&Behaviour::new())?;
        let container = bench.create(&bench.root, &run, &spec).await?;
        let found = bench.runtime.find(&bench.root).await?;
        let one = matches!(&found[..], [one] if one.container == container && one.run == run
            && one.status == ContainerStatus::Created);
        ensure(one, || {
            format!("{found:?} in the place of {container} for {run}")
        })
    }

    pub(crate) async fn the_engine_neither_removes_nor_restarts_it(
        bench: &Bench,
    ) -> Result<(), Stop> {
        let container = bench.run_to_its_end(&Behaviour::new().exit(1)).await?;
        let before = bench.ended(&container).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = bench.runtime.inspect(&container).await?;
        let same = after.status == ContainerStatus::Ended && after.started_at == before.started_at;
        ensure(same, || format!("{before:?} became {after:?}"))
    }

    pub(crate) async fn two_containers_of_one_name_are_refused(bench: &Bench) -> Result<(), Stop> {
        let run = RunId::generate();
        let spec = bench.spec(&Behaviour::new())?;
        bench.create(&bench.root, &run, &spec).await?;
        match bench.request(&bench.root, &run, &spec).await {
            Ok(second) => fail(format!("a second one was made: {second}")),
            Err(error) => ensure(error.is_definitive(), || words(&error)),
        }
    }
}

pub(crate) mod start {
    use super::*;

    pub(crate) async fn a_started_container_says_since_when(bench: &Bench) -> Result<(), Stop> {
        let container = bench.run(&Behaviour::new().hold()).await?;
        let inspection = bench.runtime.inspect(&container).await?;
        ensure(inspection.started_at.is_some(), || {
            format!("{inspection:?}")
        })
    }

    pub(crate) async fn what_cannot_start_is_rejected_and_does_not_run(
        bench: &Bench,
    ) -> Result<(), Stop> {
        let container = bench.make(&Behaviour::missing()).await?;
        let result = bench.runtime.start(&container).await;
        ensure(matches!(result, Err(RuntimeError::Rejected { .. })), || {
            said(&result)
        })?;
        ensure_status(bench, &container, ContainerStatus::Created).await?;
        bench.runtime.remove(&container, false).await?;
        Ok(())
    }

    pub(crate) async fn no_secret_is_in_the_error(bench: &Bench) -> Result<(), Stop> {
        const SECRET: &str = "bE7-unspeakable";
        let spec = bench.spec(&Behaviour::missing())?.env("TOKEN", SECRET);
        let container = bench.create(&bench.root, &RunId::generate(), &spec).await?;
        let Err(error) = bench.runtime.start(&container).await else {
            return fail("what cannot start was started");
        };
        let text = format!("{} {error:?} {:?}", words(&error), bench.runtime);
        ensure(!text.contains(SECRET), || {
            "the value of a variable is in it".into()
        })
    }
}

pub(crate) mod wait {
    use super::*;

    pub(crate) async fn it_ends_with_the_container_and_not_before(
        bench: &Bench,
    ) -> Result<(), Stop> {
        let container = bench.ready(Behaviour::new().exit(3)).await?;
        let mut wait = bench.runtime.wait(&container);
        if let Ok(answer) = tokio::time::timeout(A_WHILE, &mut wait).await {
            return fail(format!("while the container runs, {}", said(&answer)));
        }
        bench.runtime.signal(&container, "SIGTERM").await?;
        let status = within("tell the end", wait).await??;
        ensure(status.code == Some(3), || {
            format!("{status:?} in the place of 3")
        })
    }

    pub(crate) async fn it_tells_any_code(bench: &Bench) -> Result<(), Stop> {
        for code in [0, 7, 255] {
            let container = bench.run(&Behaviour::new().exit(code)).await?;
            let told = bench.wait(&container).await?;
            ensure(told == Some(code.into()), || {
                format!("{told:?} in the place of {code}")
            })?;
        }
        Ok(())
    }

    pub(crate) async fn it_answers_at_once_for_one_that_has_ended(
        bench: &Bench,
    ) -> Result<(), Stop> {
        let container = bench.run(&Behaviour::new().exit(9)).await?;
        bench.ended(&container).await?;
        for _ in 0..2 {
            let told = bench.wait(&container).await?;
            ensure(told == Some(9), || format!("{told:?} in the place of 9"))?;
        }
        Ok(())
    }

    pub(crate) async fn dropped_it_can_be_asked_for_again(bench: &Bench) -> Result<(), Stop> {
        let container = bench.ready(Behaviour::new().exit(4)).await?;
        for _ in 0..3 {
            let wait = bench.runtime.wait(&container);
            let _ = tokio::time::timeout(Duration::from_millis(50), wait).await;
        }
        ensure_status(bench, &container, ContainerStatus::Running).await?;
        bench.runtime.signal(&container, "SIGTERM").await?;
        let told = bench.wait(&container).await?;
        ensure(told == Some(4), || format!("{told:?} in the place of 4"))
    }
}

pub(crate) mod inspect {
    use super::*;

    pub(crate) async fn it_follows_the_life_of_a_container(bench: &Bench) -> Result<(), Stop> {
        let container = bench.make(&Behaviour::new().out("ready\n").hold()).await?;
        ensure_status(bench, &container, ContainerStatus::Created).await?;
        bench.runtime.start(&container).await?;
        ensure_status(bench, &container, ContainerStatus::Running).await?;
        bench.runtime.signal(&container, "SIGKILL").await?;
        bench.wait(&container).await?;
        bench.ended(&container).await.map(drop)
    }

    pub(crate) async fn the_code_is_there_at_the_end_alone(bench: &Bench) -> Result<(), Stop> {
        let container = bench.ready(Behaviour::new().exit(5)).await?;
        let runs = bench.runtime.inspect(&container).await?;
        ensure(runs.code.is_none() && runs.finished_at.is_none(), || {
            format!("while it runs: {runs:?}")
        })?;
        bench.runtime.signal(&container, "SIGTERM").await?;
        let ended = bench.ended(&container).await?;
        ensure(ended.code == Some(5), || {
            format!("{:?} in the place of 5", ended.code)
        })
    }

    pub(crate) async fn its_end_is_not_before_its_start(bench: &Bench) -> Result<(), Stop> {
        let behaviour = Behaviour::new().pause(Duration::from_millis(100));
        let container = bench.run_to_its_end(&behaviour).await?;
        let ended = bench.ended(&container).await?;
        match (ended.started_at, ended.finished_at) {
            (Some(start), Some(end)) if start < end => Ok(()),
            (start, end) => fail(format!("it started at {start:?}, and ended at {end:?}")),
        }
    }
}

pub(crate) mod continuity {
    use super::*;

    pub(crate) async fn an_engine_that_was_not_restarted_is_not_broken(
        bench: &Bench,
    ) -> Result<(), Stop> {
        let container = bench.run(&Behaviour::new().hold()).await?;
        let told = bench.runtime.continuity(&container).await?;
        ensure(told != Continuity::Broken, || format!("{told:?}"))
    }
}

pub(crate) mod signal {
    use super::*;

    pub(crate) async fn it_reaches_the_first_process(bench: &Bench) -> Result<(), Stop> {
        let container = bench.ready(Behaviour::new().exit(6)).await?;
        bench.runtime.signal(&container, "SIGTERM").await?;
        let told = bench.wait(&container).await?;
        ensure(told == Some(6), || format!("{told:?} in the place of 6"))
    }

    pub(crate) async fn kill_ends_what_ignores_the_rest(bench: &Bench) -> Result<(), Stop> {
        let container = bench.ready(Behaviour::new().deaf()).await?;
        bench.runtime.signal(&container, "SIGTERM").await?;
        tokio::time::sleep(A_WHILE).await;
        ensure_status(bench, &container, ContainerStatus::Running).await?;
        bench.runtime.signal(&container, "SIGKILL").await?;
        let told = bench.wait(&container).await?;
        ensure(told == Some(137), || {
            format!("{told:?} in the place of 137")
        })
    }

    pub(crate) async fn one_that_has_not_started_is_a_conflict(bench: &Bench) -> Result<(), Stop> {
        let container = bench.make(&Behaviour::new()).await?;
        ensure_conflict(bench.runtime.signal(&container, "SIGTERM").await)?;
        ensure_status(bench, &container, ContainerStatus::Created).await
    }

    pub(crate) async fn one_that_has_ended_is_a_conflict(bench: &Bench) -> Result<(), Stop> {
        let container = bench.run_to_its_end(&Behaviour::new()).await?;
        bench.ended(&container).await?;
        ensure_conflict(bench.runtime.signal(&container, "SIGKILL").await)
    }
}

pub(crate) mod remove {
    use super::*;

    pub(crate) async fn one_that_never_started_goes_without_force(
        bench: &Bench,
    ) -> Result<(), Stop> {
        let container = bench.make(&Behaviour::new()).await?;
        bench.runtime.remove(&container, false).await?;
        ensure_gone(bench, &container).await?;
        let start = bench.runtime.start(&container).await;
        ensure(start.is_err(), || "it could be started all the same".into())
    }

    pub(crate) async fn one_that_runs_is_a_conflict_without_force(
        bench: &Bench,
    ) -> Result<(), Stop> {
        let container = bench.ready(Behaviour::new()).await?;
        ensure_conflict(bench.runtime.remove(&container, false).await)?;
        ensure_status(bench, &container, ContainerStatus::Running).await
    }

    pub(crate) async fn one_that_runs_goes_by_force(bench: &Bench) -> Result<(), Stop> {
        let container = bench.ready(Behaviour::new()).await?;
        bench.runtime.remove(&container, true).await?;
        ensure_gone(bench, &container).await
    }

    pub(crate) async fn one_that_has_ended_goes_without_force(bench: &Bench) -> Result<(), Stop> {
        let container = bench.run_to_its_end(&Behaviour::new()).await?;
        bench.ended(&container).await?;
        bench.runtime.remove(&container, false).await?;
        ensure_gone(bench, &container).await
    }

    pub(crate) async fn its_waiters_are_not_left_waiting(bench: &Bench) -> Result<(), Stop> {
        let container = bench.ready(Behaviour::new()).await?;
        let mut wait = bench.runtime.wait(&container);
        // It is under way, and not only made.
        let _ = tokio::time::timeout(A_WHILE, &mut wait).await;
        bench.runtime.remove(&container, true).await?;
        match within("end the wait", wait).await? {
            Err(error) => ensure(error.is_not_found() || !error.is_definitive(), || {
                words(&error)
            }),
            Ok(_) => Ok(()),
        }
    }
}

pub(crate) mod find {
    use super::*;

    pub(crate) async fn it_finds_those_of_its_root_alone(bench: &Bench) -> Result<(), Stop> {
        let spec = bench.spec(&Behaviour::new())?;
        let other = RootId::generate();
        let ours = bench.create(&bench.root, &RunId::generate(), &spec).await?;
        let theirs = bench.create(&other, &RunId::generate(), &spec).await?;
        for (root, container) in [(&bench.root, ours), (&other, theirs)] {
            let found = bench.runtime.find(root).await?;
            let one = matches!(&found[..], [one] if one.container == container);
            ensure(one, || format!("{found:?} in the place of {container}"))?;
        }
        let none = bench.runtime.find(&RootId::generate()).await?;
        ensure(none.is_empty(), || format!("{none:?} in the place of none"))
    }

    pub(crate) async fn it_finds_them_in_every_state(bench: &Bench) -> Result<(), Stop> {
        let made = bench.make(&Behaviour::new()).await?;
        let runs = bench.ready(Behaviour::new()).await?;
        let ended = bench.run_to_its_end(&Behaviour::new()).await?;
        let expected = [
            (made, ContainerStatus::Created),
            (runs, ContainerStatus::Running),
            (ended, ContainerStatus::Ended),
        ];
        eventually("the three are found, each in its state", || async {
            let found = bench.runtime.find(&bench.root).await?;
            let all = expected.iter().all(|(container, status)| {
                found
                    .iter()
                    .any(|found| found.container == *container && found.status == *status)
            });
            Ok((all && found.len() == 3).then_some(()))
        })
        .await
    }
}
