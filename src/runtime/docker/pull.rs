//! Making sure that an image is there.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde::Deserialize;
use tokio::time::timeout;

use super::credentials::{self, Header};
use super::errors::{Failure, Refusal};
use super::transport::{Call, escaped, exchange};
use super::{BOUND, Docker, accepted};
use crate::error::RuntimeError;
use crate::spec::{Pull, PullProgress, RunSpec, RuntimeView};

const OPERATION: &str = "pull the image";
/// How long a pull may go on without a report.
const STALL: Duration = Duration::from_secs(60);
/// The longest report.
const LONGEST: usize = 1 << 20;

/// One line of the answer to a pull.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Report {
    id: Option<String>,
    status: Option<String>,
    progress_detail: Option<Detail>,
    error: Option<String>,
    error_detail: Option<ErrorDetail>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Detail {
    current: Option<u64>,
    total: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorDetail {
    message: Option<String>,
}

impl Docker {
    pub(super) async fn prepare_image(&self, spec: &RunSpec) -> Result<(), RuntimeError> {
        let settings = spec.settings();
        let image = settings.image.as_str();
        if settings.pull != Pull::Always && self.has_image(image).await? {
            return Ok(());
        }
        let missing = |reason: String| RuntimeError::NoSuchImage {
            image: image.to_owned(),
            reason,
        };
        if settings.pull == Pull::Never {
            return Err(missing(
                "the engine does not have it, and the pull policy is Never: pull, load or build \
                 it on that engine first"
                    .into(),
            ));
        }
        if is_id(image) {
            if self.has_image(image).await? {
                return Ok(());
            }
            return Err(missing(
                "the engine does not have it, and an id cannot be pulled: give its name".into(),
            ));
        }
        let Header { value, trouble } =
            credentials::header(image, RuntimeView::new(spec).credentials()).await;
        let pulled = self.pull(spec, value).await;
        let Err(failure) = pulled else {
            if self.has_image(image).await? {
                return Ok(());
            }
            return Err(missing("the pull ended without it".into()));
        };
        Err(match &failure {
            Failure::Refused(refusal) => {
                let mut reason = refusal.message.clone();
                if let Some(trouble) = trouble {
                    reason.push_str("; ");
                    reason.push_str(&trouble);
                }
                if let Some(hint) = hint(refusal) {
                    reason.push_str("; ");
                    reason.push_str(hint);
                }
                // With Always, an older image may well be there.
                if settings.pull == Pull::Missing || refusal.status == 404 || is_missing(refusal) {
                    missing(reason)
                } else {
                    RuntimeError::Rejected {
                        operation: OPERATION,
                        reason,
                    }
                }
            }
            _ => failure.error(OPERATION, &self.address),
        })
    }

    async fn has_image(&self, image: &str) -> Result<bool, RuntimeError> {
        let path = format!("/images/{}/json", escaped(image, b"/:@"));
        // That it is there is all that matters: what the answer says of it is not read.
        match accepted(&self.dial, Call::get(self.path(&path))).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.refusal(Refusal::is_no_image).is_some() => Ok(false),
            Err(failure) => Err(failure.error("inspect the image", &self.address)),
        }
    }

    async fn pull(&self, spec: &RunSpec, auth: Option<String>) -> Result<(), Failure> {
        let (name, tag) = reference(&spec.settings().image);
        let mut call = Call::post(self.path("/images/create"))
            .query("fromImage", name)
            .query("tag", tag)
            .auth(auth);
        if let Some(platform) = &spec.settings().platform {
            call = call.query("platform", platform);
        }
        // The head can come with the first report only.
        let answer = exchange(&self.dial, call, STALL).await?;
        let mut answer = answer.accepted(BOUND).await?;
        let mut buffer = BytesMut::new();
        loop {
            let data = timeout(STALL, answer.data()).await;
            let data = data.map_err(|_| Failure::Timeout(STALL))?;
            let Some(data) = data.transpose()? else {
                break;
            };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
                report(spec, &buffer[..end])?;
                buffer.advance(end + 1);
            }
            if buffer.len() > LONGEST {
                return Err(Failure::Broken("a report without an end".into()));
            }
        }
        report(spec, &buffer)
    }
}

/// Passes a line of the answer on; an error in it is that of the pull.
fn report(spec: &RunSpec, line: &[u8]) -> Result<(), Failure> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(());
    }
    let Ok(report) = serde_json::from_slice::<Report>(line) else {
        return Err(Failure::Broken("a report that is not JSON".into()));
    };
    let detail = report.error_detail.and_then(|detail| detail.message);
    if let Some(error) = detail.or(report.error) {
        return Err(Failure::Refused(Refusal::new(500, &error)));
    }
    if let Some(status) = report.status {
        let detail = report.progress_detail.unwrap_or_default();
        let mut progress = PullProgress::new(status);
        progress.layer = report.id;
        progress.current = detail.current;
        progress.total = detail.total;
        RuntimeView::new(spec).report_pull(progress);
    }
    Ok(())
}

/// The name of an image, and its digest or tag. Without one of them the engine would pull all tags.
fn reference(image: &str) -> (&str, &str) {
    if let Some((name, digest)) = image.split_once('@') {
        return (split_tag(name).0, digest);
    }
    let (name, tag) = split_tag(image);
    (name, tag.unwrap_or("latest"))
}

/// A colon before the last slash is that of the registry's port.
fn split_tag(image: &str) -> (&str, Option<&str>) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (image, None),
    }
}

fn is_id(image: &str) -> bool {
    let digest = image.strip_prefix("sha256:").unwrap_or(image);
    let hex = digest.bytes().all(|b| b.is_ascii_hexdigit());
    hex && (digest.len() == 64 || digest.len() < image.len())
}

/// Whether it says that the registry has no such image, or does not show it.
fn is_missing(refusal: &Refusal) -> bool {
    [
        "manifest unknown",
        "no matching manifest",
        "not found",
        "does not exist",
        "access denied",
        "access to the resource is denied",
        "unauthorized",
    ]
    .iter()
    .any(|text| refusal.says(text))
}

/// What to do about a pull that failed.
fn hint(refusal: &Refusal) -> Option<&'static str> {
    let says = |texts: &[&str]| texts.iter().any(|text| refusal.says(text));
    if says(&["denied", "unauthorized", "authentication required"]) {
        return Some(
            "check the name; log in with `docker login` or give RunSpec::credentials; an image \
             that is in no registry has to be loaded or built on that engine",
        );
    }
    if says(&["no matching manifest"]) {
        return Some("the image is not made for that platform");
    }
    if says(&["manifest unknown", "not found"]) {
        return Some("check the name and the tag");
    }
    if says(&[
        "no such host",
        "dial tcp",
        "timeout",
        "connection refused",
        "network is",
        "lookup",
    ]) {
        return Some(
            "the engine cannot reach the registry: check its network, or load the image there \
             with `docker load`",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_name_alone_means_its_latest_tag_and_never_all_tags() {
        for (image, name, tag) in [
            ("busybox", "busybox", "latest"),
            ("busybox:1", "busybox", "1"),
            ("registry:5000/a/b", "registry:5000/a/b", "latest"),
            ("registry:5000/a/b:1", "registry:5000/a/b", "1"),
            ("a@sha256:0", "a", "sha256:0"),
            ("registry:5000/a:1@sha256:0", "registry:5000/a", "sha256:0"),
        ] {
            assert_eq!(reference(image), (name, tag), "{image}");
        }
    }

    #[test]
    fn an_id_is_told_from_a_name() {
        assert!(is_id("sha256:abc"));
        assert!(is_id(&"a".repeat(64)));
        assert!(!is_id("abc"));
        assert!(!is_id("busybox"));
        assert!(!is_id("a@sha256:abc"));
    }

    #[test]
    fn reports_are_passed_on_and_an_error_among_them_is_the_pulls() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let spec = RunSpec::new("x").on_pull(move |progress| sink.lock().unwrap().push(progress));
        report(
            &spec,
            b"{\"status\":\"Pulling from library/x\",\"id\":\"latest\"}\r",
        )
        .unwrap();
        report(
            &spec,
            b"{\"status\":\"Downloading\",\"progressDetail\":{\"current\":1,\"total\":2},\"id\":\"a\"}",
        )
        .unwrap();
        report(
            &spec,
            b"{\"status\":\"Pull complete\",\"progressDetail\":{}}",
        )
        .unwrap();
        report(&spec, b"").unwrap();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 3);
        assert_eq!((seen[1].current, seen[1].total), (Some(1), Some(2)));
        for line in [
            r#"{"errorDetail":{"message":"manifest unknown"},"error":"manifest unknown"}"#,
            r#"{"error":"manifest unknown"}"#,
        ] {
            let failure = report(&spec, line.as_bytes()).unwrap_err();
            assert!(failure.refusal(is_missing).is_some(), "{failure:?}");
        }
        assert!(matches!(report(&spec, b"<html>"), Err(Failure::Broken(_))));
    }

    #[test]
    fn a_failed_pull_says_what_to_do() {
        let of = |message: &str| hint(&Refusal::new(500, message)).unwrap();
        assert!(of("pull access denied for x, repository does not exist").contains("docker login"));
        assert!(of("manifest for x:9 not found").contains("tag"));
        assert!(of("dial tcp: lookup registry: no such host").contains("network"));
    }
}
