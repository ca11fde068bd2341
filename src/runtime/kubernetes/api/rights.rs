//! The rights that moat needs in a namespace.

use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::PodOptions;
use super::client::{Client, Failure};

/// A right: a verb on a resource of the core API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Right {
    verb: &'static str,
    resource: &'static str,
    subresource: &'static str,
}

const fn right(verb: &'static str, resource: &'static str) -> Right {
    Right {
        verb,
        resource,
        subresource: "",
    }
}

const fn subresource(verb: &'static str, subresource: &'static str) -> Right {
    Right {
        verb,
        resource: "pods",
        subresource,
    }
}

/// The rights without which no run can be started, watched and removed.
const NEEDED: &[Right] = &[
    right("create", "pods"),
    right("get", "pods"),
    right("list", "pods"),
    right("watch", "pods"),
    right("delete", "pods"),
    right("get", "namespaces"),
];
/// The rights to run the helper in a pod.
const EXEC: &[Right] = &[subresource("create", "exec"), subresource("get", "exec")];
/// The rights for the ConfigMap of the helper.
const CONFIG_MAP: &[Right] = &[right("create", "configmaps"), right("get", "configmaps")];

/// The rights for pods without the helper.
const PLAIN: &[Right] = &[
    right("patch", "pods"),
    subresource("get", "log"),
    right("create", "secrets"),
];

/// The path at which reviews are created.
pub(crate) const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

#[derive(Deserialize)]
struct Review {
    status: ReviewStatus,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct ReviewStatus {
    allowed: bool,
}

/// Returns the rights that are missing, as text; none if all are there.
pub(crate) async fn missing(
    client: &Client,
    options: &PodOptions,
) -> Result<Option<String>, Failure> {
    let groups: &[&[Right]] = match (options.plain, &options.helper_image) {
        (true, _) => &[NEEDED, PLAIN],
        (false, Some(_)) => &[NEEDED, EXEC],
        (false, None) => &[NEEDED, EXEC, CONFIG_MAP],
    };
    let reviews = groups.concat().into_iter().map(|right| async move {
        let allowed = review(client, right).await?;
        Ok::<_, Failure>((!allowed).then(|| right.to_string()))
    });
    let missing: Vec<_> = try_join_all(reviews).await?.into_iter().flatten().collect();
    Ok((!missing.is_empty()).then(|| missing.join(", ")))
}

async fn review(client: &Client, right: Right) -> Result<bool, Failure> {
    let body = request(&client.namespace, right);
    let review: Review = client.post(REVIEWS, &body).await?;
    Ok(review.status.allowed)
}

/// Returns the request for a review of the right to get pods.
pub(crate) fn review_of_pods(namespace: &str) -> Value {
    request(namespace, right("get", "pods"))
}

fn request(namespace: &str, right: Right) -> Value {
    // A namespace is its own name's resource.
    let name = match right.resource {
        "namespaces" => namespace,
        _ => "",
    };
    json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "namespace": namespace,
            "verb": right.verb,
            "resource": right.resource,
            "subresource": right.subresource,
            "name": name,
        }},
    })
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        match self.subresource {
            "" => Ok(()),
            subresource => write!(f, "/{subresource}"),
        }
    }
}
