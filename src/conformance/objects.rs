//! The clauses of [`Runtime`](crate::runtime::Runtime) on images, networks and volumes.

use std::collections::BTreeMap;

use super::runtime_fixture::{RuntimeFixture, eventually};
use super::{Abort, Behavior, ensure, skip};
use crate::error::RuntimeError;
use crate::runtime::ResourceRequest;
use crate::spec::{ResourceKind, RootId, RunId};
use crate::timestamp::Timestamp;

pub(super) mod image {
    use crate::conformance::runtime_fixture::RuntimeFixture;
    use crate::conformance::{Abort, ensure, fail, skip};
    use crate::error::{RuntimeError, chain};
    use crate::spec::{RunId, RunSpec};

    async fn removable(fixture: &RuntimeFixture) -> Result<String, Abort> {
        match fixture.capabilities().images {
            true => Ok(fixture.harness.removable_image().await?),
            false => skip("the runtime does not manage images"),
        }
    }

    pub(crate) async fn is_listed_until_it_is_removed(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let name = removable(fixture).await?;
        let runtime = &fixture.runtime;
        let info = runtime.image_inspect(&name).await?;
        ensure(!info.id.is_empty(), || "the image has no id".into())?;
        let is_listed = async || {
            let listed = runtime.images().await?;
            Ok::<_, Abort>(listed.iter().any(|listed| listed.id == info.id))
        };
        ensure(is_listed().await?, || {
            format!("{name} is not listed before its removal")
        })?;
        runtime.image_remove(&name, false).await?;
        ensure(!is_listed().await?, || {
            format!("{name} is listed after its removal")
        })
    }

    pub(crate) async fn is_not_found_after_its_removal(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let name = removable(fixture).await?;
        let runtime = &fixture.runtime;
        runtime.image_remove(&name, true).await?;
        for (call, result) in [
            ("image_remove", runtime.image_remove(&name, false).await),
            (
                "image_inspect",
                runtime.image_inspect(&name).await.map(drop),
            ),
        ] {
            match result {
                Err(error) if error.is_not_found() => {
                    ensure(error.to_string().contains(&name), || {
                        format!("`{call}` does not name the image: {error}")
                    })?;
                }
                Err(error) => return fail(format!("`{call}`: {}", chain(&error))),
                Ok(()) => return fail(format!("`{call}` succeeded")),
            }
        }
        Ok(())
    }

    pub(crate) async fn conflicts_while_a_container_uses_it(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let name = removable(fixture).await?;
        let runtime = &fixture.runtime;
        let spec = RunSpec::new(&name);
        let container = fixture
            .create_with(&fixture.root, &RunId::generate(), &spec)
            .await?;
        match runtime.image_remove(&name, false).await {
            Err(RuntimeError::Conflict { .. }) => {}
            Err(error) => return fail(chain(&error)),
            Ok(()) => return fail("the image of a container was removed"),
        }
        runtime.inspect(&container).await?;
        runtime.remove(&container, false).await?;
        runtime.image_remove(&name, false).await?;
        Ok(())
    }
    pub(crate) async fn removal_keeps_every_container(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let name = removable(fixture).await?;
        let runtime = &fixture.runtime;
        let container = fixture
            .create_with(&fixture.root, &RunId::generate(), &RunSpec::new(&name))
            .await?;
        match runtime.image_remove(&name, true).await {
            Ok(()) | Err(RuntimeError::Conflict { .. }) => {}
            Err(error) => return fail(chain(&error)),
        }
        runtime.inspect(&container).await?;
        Ok(())
    }
}

/// Returns the kinds that the runtime supports.
fn kinds(fixture: &RuntimeFixture) -> Result<Vec<ResourceKind>, Abort> {
    let capabilities = fixture.capabilities();
    let network = capabilities.networks.then_some(ResourceKind::Network);
    let volume = capabilities.volumes.then_some(ResourceKind::Volume);
    let kinds: Vec<_> = network.into_iter().chain(volume).collect();
    match kinds.is_empty() {
        true => skip("the runtime has no networks and no volumes"),
        false => Ok(kinds),
    }
}

/// Creates a resource of a new root with a new name.
async fn create(
    fixture: &RuntimeFixture,
    kind: ResourceKind,
    deadline: Option<Timestamp>,
) -> Result<(String, RootId), Abort> {
    let root = RootId::generate();
    let name = root.container_name(&RunId::generate());
    let labels = BTreeMap::new();
    let mut request = ResourceRequest::new(kind, &name, &root, &labels);
    request.deadline = deadline;
    fixture.runtime.create_resource(request).await?;
    Ok((name, root))
}

pub(super) mod resources {
    use super::*;

    pub(crate) async fn are_found_until_they_are_removed(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        for kind in kinds(fixture)? {
            for deadline in [None, Some(Timestamp::now())] {
                let (name, root) = create(fixture, kind, deadline).await?;
                let found = fixture.runtime.find_resources().await?;
                let mut found = found.into_iter().filter(|found| found.name == name);
                let (first, second) = (found.next(), found.next());
                let removed = fixture.runtime.remove_resource(kind, &name).await;
                let is_it = first.as_ref().is_some_and(|found| {
                    (found.kind, &found.root, found.deadline) == (kind, &root, deadline)
                });
                ensure(is_it && second.is_none(), || {
                    format!("`find_resources` returned {first:?} and {second:?} for {kind} {name}")
                })?;
                removed?;
                let again = fixture.runtime.remove_resource(kind, &name).await;
                ensure(matches!(again, Err(RuntimeError::NotFound { .. })), || {
                    format!("a second removal of {kind} {name} returned {again:?}")
                })?;
                let found = fixture.runtime.find_resources().await?;
                ensure(found.iter().all(|found| found.name != name), || {
                    format!("`find_resources` returned {kind} {name} after its removal")
                })?;
            }
        }
        Ok(())
    }

    pub(crate) async fn are_kept_while_a_container_uses_them(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        for kind in kinds(fixture)? {
            let (name, _) = create(fixture, kind, None).await?;
            let spec = fixture.spec(&Behavior::new().waits_for_signal())?;
            let spec = match kind {
                ResourceKind::Network => spec.network(name.as_str()),
                ResourceKind::Volume => spec.volume(name.as_str(), "/moat-volume"),
            };
            let container = fixture
                .create_with(&fixture.root, &RunId::generate(), &spec)
                .await?;
            fixture.runtime.start(&container).await?;
            let early = fixture.runtime.remove_resource(kind, &name).await;
            fixture.runtime.remove(&container, true).await?;
            // An engine may release a network some time after the removal.
            eventually("the resource is removed", || async {
                match fixture.runtime.remove_resource(kind, &name).await {
                    Err(RuntimeError::Conflict { .. }) => Ok(None),
                    // Removed already, against the contract.
                    Err(RuntimeError::NotFound { .. }) => Ok(Some(())),
                    removed => Ok(Some(removed?)),
                }
            })
            .await?;
            ensure(matches!(early, Err(RuntimeError::Conflict { .. })), || {
                format!("the removal of {kind} {name} in use returned {early:?}")
            })?;
        }
        Ok(())
    }
}
