//! The images of an engine: their list, their description and their removal.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::platform::Platform;
use crate::error::RuntimeError;
use crate::runtime::ImageInfo;
use crate::runtime::docker::client::Client;
use crate::runtime::docker::connection::{Call, escaped};
use crate::runtime::docker::errors::{Failure, Refusal};
use crate::runtime::docker::inspect::{or_default, parse};
use crate::timestamp::Timestamp;

const LIST: &str = "list the images";
const INSPECT: &str = "inspect the image";
const REMOVE: &str = "remove the image";
/// The engine's placeholder for a missing part of a name.
const NONE: &str = "<none>";
/// How often the images are listed before the engine's refusal is the result.
const LIST_ATTEMPTS: usize = 5;

/// The fields of `GET /images/{name}/json` and of an entry of `GET /images/json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    repo_digests: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    size: u64,
    /// A text in the description of one image, and seconds since 1970 in a list.
    #[serde(default)]
    created: Value,
}

impl From<Image> for ImageInfo {
    fn from(image: Image) -> Self {
        let named = |names: Vec<String>| {
            let names = names.into_iter();
            names.filter(|name| !name.contains(NONE)).collect()
        };
        let mut info = Self::new(image.id);
        info.tags = named(image.repo_tags);
        info.digests = named(image.repo_digests);
        info.size = image.size;
        info.created = created(&image.created);
        info
    }
}

/// Parses the time of a build. The year 1 means that the image does not state it.
fn created(value: &Value) -> Option<Timestamp> {
    match value {
        Value::String(text) if !text.starts_with("0001-") => text.parse().ok(),
        Value::Number(seconds) => {
            let since = Duration::from_secs(seconds.as_u64().filter(|seconds| *seconds > 0)?);
            Some(SystemTime::UNIX_EPOCH.checked_add(since)?.into())
        }
        _ => None,
    }
}

/// Returns the path of an image.
///
/// A segment such as `..` could change which call the path means.
fn image_path(image: &str) -> Result<String, Failure> {
    let valid = |segment: &str| !matches!(segment, "" | "." | "..");
    match image.split('/').all(valid) {
        true => Ok(format!("/images/{}", escaped(image, b"/:@"))),
        false => {
            let message = format!("{image:?} is not the name of an image");
            Err(Failure::Refused(Refusal::new(400, &message)))
        }
    }
}

impl Client {
    pub(crate) async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        let listed = async {
            let json = self.fetch_image_list().await?;
            parse::<Vec<Image>>(&json)
        };
        let listed = listed.await.map_err(self.error(LIST))?;
        Ok(listed.into_iter().map(ImageInfo::from).collect())
    }

    /// Lists the images, again if the engine refuses.
    ///
    /// While an image is removed, Podman and Docker with containerd's store may find its name and then
    /// refuse the whole list, because its content is missing.
    async fn fetch_image_list(&self) -> Result<Bytes, Failure> {
        let mut attempt = 1;
        loop {
            let listed = self.fetch(Call::get(self.path("/images/json"))).await;
            match listed {
                Err(Failure::Refused(_)) if attempt < LIST_ATTEMPTS => attempt += 1,
                listed => return listed,
            }
        }
    }

    pub(crate) async fn image_inspect(&self, image: &str) -> Result<ImageInfo, RuntimeError> {
        let inspected = async {
            let path = format!("{}/json", image_path(image)?);
            let json = self.fetch(Call::get(self.path(&path))).await?;
            let mut info = ImageInfo::from(parse::<Image>(&json)?);
            let platform = Platform::of_image(&json).to_string();
            info.platform = Some(platform).filter(|platform| !platform.is_empty());
            Ok(info)
        };
        let inspected: Result<_, Failure> = inspected.await;
        inspected.map_err(|failure| self.image_error(INSPECT, image, failure))
    }

    pub(crate) async fn image_remove(&self, image: &str, force: bool) -> Result<(), RuntimeError> {
        let removed = async {
            let path = image_path(image)?;
            if force && self.podman {
                self.refuse_used(image).await?;
            }
            let call = Call::delete(self.path(&path)).query("force", &force.to_string());
            self.fetch(call).await
        };
        let removed = removed.await.map(drop);
        removed.map_err(|failure| self.image_error(REMOVE, image, failure))
    }

    /// Fails with status 409 if a container uses the image.
    ///
    /// With force, Podman removes the containers of an image as well.
    async fn refuse_used(&self, image: &str) -> Result<(), Failure> {
        let filters = json!({"ancestor": [image]}).to_string();
        let call = Call::get(self.path("/containers/json"));
        let call = call.query("all", "true").query("filters", &filters);
        let containers: Vec<Value> = parse(&self.fetch(call).await?)?;
        let Some(container) = containers.first() else {
            return Ok(());
        };
        let id = container["Id"].as_str().unwrap_or_default();
        let message = format!("the container {id} uses it");
        Err(Failure::Refused(Refusal::new(409, &message)))
    }

    /// Creates the error of a call about an image. It names the image and the remedy.
    fn image_error(&self, operation: &'static str, image: &str, failure: Failure) -> RuntimeError {
        if failure.refusal(Refusal::is_no_such_image).is_some() {
            let reason = format!("the engine has no image {image}: pull, load or build it there");
            return RuntimeError::NotFound { operation, reason };
        }
        let hint = match failure.refusal(|refusal| refusal.status == 409) {
            Some(_) => "; remove the containers that use it, or its other names, first",
            None => "",
        };
        let error = failure.error(operation, &self.address);
        error.map_reason(|reason| format!("{image}: {reason}{hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(json: Value) -> ImageInfo {
        parse::<Image>(json.to_string().as_bytes()).unwrap().into()
    }

    #[test]
    fn an_image_of_any_engine_is_read() {
        let listed = info(
            json!({"Id": "sha256:a", "RepoTags": ["x:1", "<none>:<none>"],
            "RepoDigests": ["x@sha256:b", "<none>@<none>"], "Size": 7, "Created": 1_700_000_000}),
        );
        let inspected = info(json!({"Id": "sha256:a", "RepoTags": ["x:1"],
            "RepoDigests": ["x@sha256:b"], "Size": 7, "Created": "2023-11-14T22:13:20Z"}));
        assert_eq!(listed, inspected);
        assert_eq!(listed.tags, ["x:1"]);
        assert_eq!(listed.created.unwrap().parts(), (1_700_000_000, 0));
        for unknown in [
            json!("0001-01-01T00:00:00Z"),
            json!(""),
            json!(0),
            json!(null),
        ] {
            let bare = json!({"Id": "a", "RepoTags": null, "Created": unknown});
            assert_eq!(info(bare), ImageInfo::new("a"));
        }
    }

    #[test]
    fn the_name_of_an_image_names_no_other_call() {
        let path = |name| image_path(name).ok();
        assert_eq!(path("a/b:1").as_deref(), Some("/images/a/b:1"));
        assert_eq!(path("a?b#c").as_deref(), Some("/images/a%3Fb%23c"));
        for name in ["", "..", "../containers/x", "a/../b", "a//b", "/a", "./a"] {
            assert_eq!(path(name), None, "{name}");
        }
    }
}
