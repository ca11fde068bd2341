//! Image pulls, by the spec's pull policy.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::credentials::{self, Header};
use super::platform::Platform;
use crate::error::RuntimeError;
use crate::runtime::docker::client::Client;
use crate::runtime::docker::connection::{Call, escaped, exchange};
use crate::runtime::docker::errors::{Failure, Refusal};
use crate::spec::{Pull, PullProgress, RunSpec, RuntimeView};

const OPERATION: &str = "pull the image";
/// The pause before the first retry. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause before a retry.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The first API version that inspects an image of a given platform.
const INSPECT_PLATFORM_API: (u32, u32) = (1, 49);
/// The maximum size of a progress report.
const MAX_REPORT_BYTES: usize = 1 << 20;

/// Parts of messages of an engine that cannot reach the registry.
const NO_CONNECTION: &[&str] = &[
    "no such host",
    "dial tcp",
    "timeout",
    "connection refused",
    "network is",
    "lookup",
];
/// Parts of messages about a registry that fails, or breaks the connection.
const REGISTRY_FAILURE: &[&str] = &[
    "status: 5",
    "status code 5",
    "parsing http 5",
    "parsing http 429",
    "internal server error",
    "bad gateway",
    "service unavailable",
    "gateway time",
    "too many requests",
    "toomanyrequests",
    "deadline exceeded",
    "connection reset",
    "broken pipe",
    ": eof",
    "unexpected eof",
];

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
        let can_be_pulled = !is_id(image);
        let pulls_first = matches!(settings.pull, Pull::Always | Pull::Newer);
        if !pulls_first || !can_be_pulled {
            let absence = match self.absence(spec).await? {
                None => return Ok(()),
                Some(absence) => absence,
            };
            if settings.pull == Pull::Never {
                let reason = format!(
                    "{absence}, and the pull policy is Never: pull, load or build the image on \
                     that engine first"
                );
                return Err(no_such_image(image, reason));
            }
            if !can_be_pulled {
                let reason =
                    format!("{absence}, and an image id cannot be pulled: give the image's name");
                return Err(no_such_image(image, reason));
            }
        }
        let header = credentials::header(image, RuntimeView::new(spec).credentials()).await;
        let Header {
            value,
            lookup_error,
        } = header;
        if let Err(failure) = self.pull_with_retries(spec, value).await {
            if settings.pull == Pull::Newer && self.falls_back(spec, &failure).await {
                return Ok(());
            }
            return Err(match &failure {
                Failure::Refused(refusal) => refused(spec, refusal, lookup_error),
                _ => failure.error(OPERATION, &self.address),
            });
        }
        match self.absence(spec).await? {
            None => Ok(()),
            Some(absence) => {
                let reason = format!("the pull succeeded, but {absence}");
                Err(no_such_image(image, reason))
            }
        }
    }

    /// Returns true if the engine has the image that it could not pull. Reports that it is used.
    async fn falls_back(&self, spec: &RunSpec, failure: &Failure) -> bool {
        match self.absence(spec).await {
            Ok(None) => {}
            Ok(Some(_)) => return false,
            Err(error) => {
                tracing::warn!(%error, "cannot look for the local image after a failed pull");
                return false;
            }
        }
        let image = &spec.settings().image;
        let reason = format!(
            "the local image {image} is used, because the pull failed: {}",
            cause(failure)
        );
        RuntimeView::new(spec).report_pull(PullProgress::fallback(reason));
        true
    }

    /// Returns `None` if the engine has the image for the platform of `spec`, else what it has.
    async fn absence(&self, spec: &RunSpec) -> Result<Option<String>, RuntimeError> {
        let settings = spec.settings();
        let path = format!("/images/{}/json", escaped(&settings.image, b"/:@"));
        let inspected = match self.fetch(Call::get(self.path(&path))).await {
            Ok(json) => Platform::of_image(&json),
            Err(failure) if failure.refusal(Refusal::is_no_such_image).is_some() => {
                return Ok(Some("the engine does not have the image".into()));
            }
            Err(failure) => return Err(failure.error("inspect the image", &self.address)),
        };
        let Some(asked) = settings.platform.as_deref().map(Platform::parse) else {
            return Ok(None);
        };
        if asked.accepts(&inspected) || self.has_also(&path, &asked).await? {
            return Ok(None);
        }
        let absence = format!("the engine has the image for {inspected} and not for {asked}");
        Ok(Some(absence))
    }

    /// Returns true if the engine has the image for this platform among others.
    ///
    /// An inspection without a platform describes one of them.
    async fn has_also(&self, path: &str, platform: &Platform) -> Result<bool, RuntimeError> {
        if self.podman || self.api_version() < INSPECT_PLATFORM_API {
            return Ok(false);
        }
        let call = Call::get(self.path(path)).query("platform", &platform.to_json());
        match self.fetch(call).await {
            Ok(_) => Ok(true),
            Err(Failure::Refused(refusal)) if refusal.status == 404 => Ok(false),
            Err(failure) => Err(failure.error("inspect the image", &self.address)),
        }
    }

    /// Pulls the image, and retries transient failures.
    async fn pull_with_retries(&self, spec: &RunSpec, auth: Option<String>) -> Result<(), Failure> {
        let mut retries = spec.settings().pull_retries;
        let mut pause = FIRST_PAUSE;
        loop {
            let failure = match self.pull(spec, auth.clone()).await {
                Err(failure) if retries > 0 && is_transient(&failure) => failure,
                pulled => return pulled,
            };
            let status = format!("Retrying in {} s: {}", pause.as_secs(), cause(&failure));
            RuntimeView::new(spec).report_pull(PullProgress::new(status));
            sleep(pause).await;
            retries -= 1;
            pause = MAX_PAUSE.min(pause * 2);
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
        let stall_timeout = spec.settings().pull_stall_timeout;
        // Some engines send the response head with the first report.
        let answer = exchange(&self.dialer, call, stall_timeout).await?;
        let mut answer = answer.error_for_status(self.timeout).await?;
        let mut buffer = BytesMut::new();
        loop {
            let data = timeout(stall_timeout, answer.data()).await;
            let data = data.map_err(|_| Failure::Timeout(stall_timeout))?;
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

/// Returns the cause of a failed pull.
fn cause(failure: &Failure) -> String {
    match failure {
        Failure::Unreachable(reason) | Failure::Broken(reason) => reason.clone(),
        Failure::Timeout(limit) => format!("no progress for {} s", limit.as_secs_f64()),
        Failure::Refused(refusal) => refusal.text(),
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
    if settings.pull != Pull::Always || refusal.status == 404 || is_missing(refusal) {
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

/// Returns true if another attempt may succeed.
fn is_transient(failure: &Failure) -> bool {
    match failure {
        Failure::Unreachable(_) | Failure::Timeout(_) | Failure::Broken(_) => true,
        Failure::Refused(refusal) => {
            let contains_any =
                |texts: &[&str]| texts.iter().any(|text| refusal.message_contains(text));
            !is_missing(refusal)
                && (matches!(refusal.status, 429 | 502..=504)
                    || contains_any(NO_CONNECTION)
                    || contains_any(REGISTRY_FAILURE))
        }
    }
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
    if contains_any(NO_CONNECTION) {
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
    fn only_a_transient_failure_is_retried() {
        let of =
            |status, message: &str| is_transient(&Failure::Refused(Refusal::new(status, message)));
        for message in [
            "dial tcp: lookup registry: no such host",
            "Get \"https://r.test/v2/\": net/http: TLS handshake timeout",
            "dial tcp 127.0.0.1:5000: connect: connection refused",
            "received unexpected HTTP status: 503 Service Unavailable",
            "unexpected status from HEAD request to http://r.test/v2/x: 502 Bad Gateway",
            "toomanyrequests: You have reached your pull rate limit",
            "read tcp 10.0.0.1:443: read: connection reset by peer",
            "unexpected EOF",
            "error parsing HTTP 429 response body: invalid character 'r'",
        ] {
            assert!(of(500, message), "{message}");
        }
        assert!(of(503, "starting"));
        for message in [
            "manifest unknown",
            "manifest for x:503 not found: manifest unknown",
            "pull access denied for x, repository does not exist",
            "unauthorized: authentication required",
            "no matching manifest for linux/arm64 in the manifest list entries",
            "tls: failed to verify certificate: x509: unknown authority",
            "write /var/lib/docker/tmp/x: no space left on device",
            "invalid reference format",
        ] {
            assert!(!of(500, message), "{message}");
        }
        assert!(is_transient(&Failure::Timeout(Duration::from_secs(60))));
        assert!(is_transient(&Failure::Broken("reset".into())));
    }

    #[test]
    fn a_failed_pull_has_a_hint() {
        let of = |message: &str| hint(&Refusal::new(500, message)).unwrap();
        assert!(of("pull access denied for x, repository does not exist").contains("docker login"));
        assert!(of("manifest for x:9 not found").contains("tag"));
        assert!(of("dial tcp: lookup registry: no such host").contains("network"));
    }
}
