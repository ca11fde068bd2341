//! Networks and volumes.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::connection::{Call, escaped};
use super::create;
use super::errors::{Failure, Refusal};
use super::inspect::{or_default, parse};
use crate::error::RuntimeError;
use crate::runtime::{LabeledResource, ResourceRequest};
use crate::spec::{ResourceKind, RootId};

const LIST: &str = "list the networks and volumes";

/// An entry of the lists of networks and volumes: the fields that moat reads.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: HashMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Volumes {
    #[serde(default, deserialize_with = "or_default")]
    volumes: Vec<Listed>,
}

impl Client {
    pub(super) async fn create_resource(
        &self,
        request: ResourceRequest<'_>,
    ) -> Result<(), RuntimeError> {
        let mut labels = request.labels.clone();
        labels.insert(create::ROOT_LABEL.into(), request.root.to_string());
        if let Some(deadline) = request.deadline {
            labels.insert(create::DEADLINE_LABEL.into(), deadline.to_string());
        }
        let (path, operation, body) = match request.kind {
            ResourceKind::Network => (
                "/networks/create",
                "create the network",
                json!({
                    "Name": request.name,
                    // Engines before API 1.44 accept a second network of the same name otherwise.
                    "CheckDuplicate": true,
                    "Driver": "bridge",
                    "Internal": request.internal,
                    "Labels": labels,
                }),
            ),
            ResourceKind::Volume => (
                "/volumes/create",
                "create the volume",
                json!({"Name": request.name, "Labels": labels}),
            ),
        };
        let created = self.fetch(Call::post(self.path(path)).json(&body)).await;
        match created {
            Ok(_) => Ok(()),
            Err(Failure::Refused(refusal)) if is_out_of_addresses(&refusal) => {
                Err(RuntimeError::Rejected {
                    operation,
                    reason: format!(
                        "{}; remove networks that are not needed, or give the engine more \
                         addresses with `default-address-pools`",
                        refusal.message
                    ),
                })
            }
            Err(failure) => Err(failure.error(operation, &self.address)),
        }
    }

    pub(super) async fn remove_resource(
        &self,
        kind: ResourceKind,
        name: &str,
    ) -> Result<(), RuntimeError> {
        let (path, operation) = match kind {
            ResourceKind::Network => ("/networks/", "remove the network"),
            ResourceKind::Volume => ("/volumes/", "remove the volume"),
        };
        let path = self.path(&format!("{path}{}", escaped(name, b"")));
        let Err(failure) = self.fetch(Call::delete(path)).await else {
            return Ok(());
        };
        let reason = |refusal: &Refusal| refusal.message.clone();
        Err(match &failure {
            Failure::Refused(refusal) if refusal.status == 404 => RuntimeError::NotFound {
                operation,
                reason: reason(refusal),
            },
            Failure::Refused(refusal) if is_in_use(refusal) => RuntimeError::Conflict {
                operation,
                reason: reason(refusal),
            },
            _ => failure.error(operation, &self.address),
        })
    }

    pub(super) async fn find_resources(&self) -> Result<Vec<LabeledResource>, RuntimeError> {
        let filters = json!({"label": [create::ROOT_LABEL]}).to_string();
        let call = |path| Call::get(self.path(path)).query("filters", &filters);
        let found = async {
            let networks: Vec<Listed> = parse(&self.fetch(call("/networks")).await?)?;
            let volumes: Volumes = parse(&self.fetch(call("/volumes")).await?)?;
            let networks = networks
                .iter()
                .map(|listed| (ResourceKind::Network, listed));
            let volumes = volumes.volumes.iter();
            let volumes = volumes.map(|listed| (ResourceKind::Volume, listed));
            let all = networks.chain(volumes);
            Ok(all
                .filter_map(|(kind, listed)| labeled(kind, listed))
                .collect())
        };
        found.await.map_err(self.error(LIST))
    }
}

/// Returns a resource with valid labels of moat.
fn labeled(kind: ResourceKind, listed: &Listed) -> Option<LabeledResource> {
    let label = |name| listed.labels.get(name).map(String::as_str);
    let root = RootId::try_from(label(create::ROOT_LABEL)?.to_owned()).ok()?;
    // A deadline that cannot be parsed never expires.
    let deadline = label(create::DEADLINE_LABEL).and_then(|at| at.parse().ok());
    Some(LabeledResource {
        deadline,
        ..LabeledResource::new(kind, listed.name.as_str(), root)
    })
}

/// Returns true if a container uses the resource.
///
/// Docker reports a network in use as status 403, and Podman as 500 in some versions.
fn is_in_use(refusal: &Refusal) -> bool {
    let texts = [
        "active endpoints",
        "in use",
        "being used",
        "associated containers",
    ];
    refusal.status == 409 || texts.iter().any(|text| refusal.message_contains(text))
}

/// Returns true if the engine has no addresses for another network.
fn is_out_of_addresses(refusal: &Refusal) -> bool {
    let texts = [
        "fully subnetted",
        "could not find an available",
        "non-overlapping",
    ];
    texts.iter().any(|text| refusal.message_contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusals_of_engines_are_recognized() {
        for (status, message) in [
            (
                403,
                "error while removing network: network x id y has active endpoints",
            ),
            (409, "remove x: volume is in use - [a]"),
            (500, "network x is being used"),
            (500, "\"x\" has associated containers with it"),
        ] {
            assert!(is_in_use(&Refusal::new(status, message)), "{message}");
        }
        assert!(!is_in_use(&Refusal::new(500, "no such file or directory")));
        for message in [
            "all predefined address pools have been fully subnetted",
            "could not find an available, non-overlapping IPv4 address pool",
        ] {
            assert!(
                is_out_of_addresses(&Refusal::new(500, message)),
                "{message}"
            );
        }
    }
}
