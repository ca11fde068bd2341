//! Image pulls, by the spec's pull policy.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde::Deserialize;
use tokio::time::timeout;

use super::credentials::{self, Header};
use crate::error::RuntimeError;
use crate::runtime::docker::client::{CALL_TIMEOUT, Client};
use crate::runtime::docker::connection::{Call, escaped, exchange};
use crate::runtime::docker::errors::{Failure, Refusal};
use crate::spec::{Pull, PullProgress, RunSpec, RuntimeView};

const OPERATION: &str = "pull the image";
/// The maximum time without a progress report.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The maximum size of a progress report.
const MAX_REPORT_BYTES: usize = 1 << 20;

/// One line of the response to a pull.
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

impl Client {
    pub(crate) async fn prepare_image(&self, spec: &RunSpec) -> Result<(), RuntimeError> {
        let settings = spec.settings();
        let image = settings.image.as_str();
        if settings.pull != Pull::Always && self.has_image(image).await? {
            return Ok(());
        }
        if settings.pull == Pull::Never {
            let reason = "the engine does not have the image, and the pull policy is Never: pull, \
                          load or build the image on that engine first";
            return Err(no_such_image(image, reason));
        }
        if is_id(image) {
            if self.has_image(image).await? {
                return Ok(());
            }
            let reason = "the engine does not have the image, and an image id cannot be pulled: \
                          give the image's name";
            return Err(no_such_image(image, reason));
        }
        let header = credentials::header(image, RuntimeView::new(spec).credentials()).await;
        let Header {
            value,
            lookup_error,
        } = header;
        let pulled = self.pull(spec, value).await;
        pulled.map_err(|failure| match &failure {
            Failure::Refused(refusal) => refused(spec, refusal, lookup_error),
            _ => failure.error(OPERATION, &self.address),
        })?;
        if self.has_image(image).await? {
            return Ok(());
        }
        let reason = "the pull succeeded, but the engine does not have the image";
        Err(no_such_image(image, reason))
    }

    async fn has_image(&self, image: &str) -> Result<bool, RuntimeError> {
        let path = format!("/images/{}/json", escaped(image, b"/:@"));
        // Only the status matters: the body is not read.
        match self.send(Call::get(self.path(&path))).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.refusal(Refusal::is_no_such_image).is_some() => Ok(false),
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
        // Some engines send the response head with the first report.
        let answer = exchange(&self.dialer, call, STALL_TIMEOUT).await?;
        let mut answer = answer.error_for_status(CALL_TIMEOUT).await?;
        let mut buffer = BytesMut::new();
        loop {
            let data = timeout(STALL_TIMEOUT, answer.data()).await;
            let data = data.map_err(|_| Failure::Timeout(STALL_TIMEOUT))?;
            let Some(data) = data.transpose()? else {
                break;
            };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
                report(spec, &buffer[..end])?;
                buffer.advance(end + 1);
            }
            if buffer.len() > MAX_REPORT_BYTES {
                return Err(Failure::Broken(format!(
                    "a progress report is longer than {MAX_REPORT_BYTES} bytes"
                )));
            }
        }
        report(spec, &buffer)
    }
}

fn no_such_image(image: &str, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::NoSuchImage {
        image: image.to_owned(),
        reason: reason.into(),
    }
}

/// Returns the error of a refused pull, with the error of a failed credential lookup and a hint.
fn refused(spec: &RunSpec, refusal: &Refusal, lookup_error: Option<String>) -> RuntimeError {
    let settings = spec.settings();
    let mut reason = refusal.message.clone();
    for note in [lookup_error.as_deref(), hint(refusal)]
        .into_iter()
        .flatten()
    {
        reason.push_str("; ");
        reason.push_str(note);
    }
    // With `Pull::Always`, the engine may still have an older image.
    if settings.pull == Pull::Missing || refusal.status == 404 || is_missing(refusal) {
        no_such_image(&settings.image, reason)
    } else {
        RuntimeError::Rejected {
            operation: OPERATION,
            reason,
        }
    }
}

/// Reports one line of the response. An error line is the pull's error.
fn report(spec: &RunSpec, line: &[u8]) -> Result<(), Failure> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(());
    }
    let Ok(report) = serde_json::from_slice::<Report>(line) else {
        return Err(Failure::Broken("a progress report is not JSON".into()));
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

/// Splits an image into its name, and its digest or tag.
///
/// The tag defaults to `latest`: without a tag, the engine pulls all tags.
fn reference(image: &str) -> (&str, &str) {
    if let Some((name, digest)) = image.split_once('@') {
        return (split_tag(name).0, digest);
    }
    let (name, tag) = split_tag(image);
    (name, tag.unwrap_or("latest"))
}

/// Splits a tag off. A colon before the last slash starts the registry's port.
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

/// Returns true if the registry has no such image, or denies access to it.
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
    .any(|text| refusal.message_contains(text))
}

/// Returns a hint for a refused pull, if one is known.
fn hint(refusal: &Refusal) -> Option<&'static str> {
    let contains_any = |texts: &[&str]| texts.iter().any(|text| refusal.message_contains(text));
    if contains_any(&["denied", "unauthorized", "authentication required"]) {
        return Some(
            "check the name; log in with `docker login` or set RunSpec::credentials; an \
             image that is in no registry must be loaded or built on that engine",
        );
    }
    if contains_any(&["no matching manifest"]) {
        return Some("the image is not available for that platform");
    }
    if contains_any(&["manifest unknown", "not found"]) {
        return Some("check the name and the tag");
    }
    if contains_any(&[
        "no such host",
        "dial tcp",
        "timeout",
        "connection refused",
        "network is",
        "lookup",
    ]) {
        return Some(
            "the engine cannot reach the registry: check its network, or load the image on that \
             engine with `docker load`",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_name_without_a_tag_means_latest() {
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
    fn an_id_is_not_a_name() {
        assert!(is_id("sha256:abc"));
        assert!(is_id(&"a".repeat(64)));
        assert!(!is_id("abc"));
        assert!(!is_id("busybox"));
        assert!(!is_id("a@sha256:abc"));
    }

    #[test]
    fn progress_is_reported_and_an_error_fails_the_pull() {
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
    fn a_failed_pull_has_a_hint() {
        let of = |message: &str| hint(&Refusal::new(500, message)).unwrap();
        assert!(of("pull access denied for x, repository does not exist").contains("docker login"));
        assert!(of("manifest for x:9 not found").contains("tag"));
        assert!(of("dial tcp: lookup registry: no such host").contains("network"));
    }
}
