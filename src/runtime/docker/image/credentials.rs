//! Registry credentials: from the spec, else from Docker's configuration.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::runtime::docker::connection::Environment;
use crate::spec::Credentials;

/// The key of Docker Hub in Docker's configuration.
const HUB: &str = "https://index.docker.io/v1/";
/// The timeout of a credential helper.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// The encoded credentials of a pull.
#[derive(Default)]
pub(super) struct Header {
    /// The value of `X-Registry-Auth`. `None`: no credentials.
    pub(super) value: Option<String>,
    /// The error of the lookup, for the error of a failed pull.
    pub(super) lookup_error: Option<String>,
}

/// Returns the key of an image's registry in Docker's configuration.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => match first {
            "docker.io" | "index.docker.io" => HUB,
            registry => registry,
        },
        _ => HUB,
    }
}

/// Looks up the credentials for an image.
///
/// A failed lookup is not an error: many images need no credentials.
pub(super) async fn header(image: &str, given: Option<&Credentials>) -> Header {
    let registry = registry(image).to_owned();
    if let Some(given) = given {
        let (name, password) = (given.username().to_owned(), given.password().to_owned());
        let found = DockerCredential::UsernamePassword(name, password);
        return Header {
            value: Some(encoded(found, &registry)),
            lookup_error: None,
        };
    }
    let Some(dir) = Environment::read().config_dir() else {
        return Header::default();
    };
    let found = match look_up(dir.join("config.json"), registry.clone()).await {
        Ok(found) => found,
        Err(lookup_error) => {
            tracing::warn!(
                registry,
                error = lookup_error,
                "cannot look up registry credentials"
            );
            return Header {
                value: None,
                lookup_error: Some(lookup_error),
            };
        }
    };
    Header {
        value: found.map(|found| encoded(found, &registry)),
        lookup_error: None,
    }
}

/// Looks a registry up on a dedicated thread.
///
/// A credential helper is a process that may hang. On tokio's blocking pool, a hung thread would
/// block the shutdown of the runtime.
async fn look_up(config: PathBuf, registry: String) -> Result<Option<DockerCredential>, String> {
    let (send, found) = oneshot::channel();
    let thread = std::thread::Builder::new().name("moat-credentials".into());
    let spawned = thread.spawn(move || {
        // The receiver is dropped after the timeout.
        let _ = send.send(read(&config, &registry));
    });
    spawned.map_err(|error| format!("cannot start a thread for the credential helper: {error}"))?;
    match timeout(HELPER_TIMEOUT, found).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => Err("the lookup of credentials panicked".into()),
        Err(_) => Err(format!(
            "the credential helper did not respond within {} s",
            HELPER_TIMEOUT.as_secs()
        )),
    }
}

/// Reads a registry's credentials from the configuration file.
///
/// Errors do not quote the output of a helper.
fn read(config: &Path, registry: &str) -> Result<Option<DockerCredential>, String> {
    let file = match File::open(config) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot read {}: {error}", config.display())),
    };
    use CredentialRetrievalError as E;
    match docker_credential::get_credential_from_reader(file, registry) {
        Ok(found) => Ok(Some(found)),
        Err(E::NoCredentialConfigured) => Ok(None),
        // This is how a helper reports that it has no credentials.
        Err(E::HelperFailure {
            ref stdout,
            ref stderr,
            ..
        }) if [stdout, stderr]
            .iter()
            .any(|s| s.contains("credentials not found")) =>
        {
            Ok(None)
        }
        Err(E::HelperFailure { helper, .. }) => {
            Err(format!("the credential helper {helper} failed"))
        }
        Err(E::HelperCommunicationError) => {
            Err("the credential helper in Docker's configuration cannot be run".into())
        }
        Err(E::MalformedHelperResponse) => {
            Err("the response of the credential helper is malformed".into())
        }
        Err(_) => Err(format!("cannot parse {}", config.display())),
    }
}

/// Encodes the value of `X-Registry-Auth`: JSON in URL-safe Base64.
///
/// With the standard alphabet, engines silently ignore some passwords.
fn encoded(found: DockerCredential, registry: &str) -> String {
    let json: Value = match found {
        DockerCredential::IdentityToken(token) => {
            json!({"identitytoken": token, "serveraddress": registry})
        }
        DockerCredential::UsernamePassword(username, password) => {
            json!({"username": username, "password": password, "serveraddress": registry})
        }
    };
    URL_SAFE.encode(json.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn decoded(value: &str) -> Value {
        serde_json::from_slice(&URL_SAFE.decode(value).unwrap()).unwrap()
    }

    #[test]
    fn an_image_without_a_host_is_on_docker_hub() {
        for (image, key) in [
            ("busybox", HUB),
            ("library/busybox:1", HUB),
            ("docker.io/library/busybox", HUB),
            ("registry.test/x", "registry.test"),
            ("registry:5000/x@sha256:abc", "registry:5000"),
            ("localhost/x", "localhost"),
        ] {
            assert_eq!(registry(image), key, "{image}");
        }
    }

    #[tokio::test]
    async fn credentials_of_the_spec_are_url_safe() {
        let given = Credentials::new("me", "~~~???>>>ÿ");
        let header = header("registry.test/x", Some(&given)).await;
        let value = header.value.unwrap();
        assert!(!value.contains(['+', '/']), "{value}");
        assert_eq!(
            decoded(&value),
            json!({"username": "me", "password": "~~~???>>>ÿ", "serveraddress": "registry.test"})
        );
    }

    fn config(json: &Value) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(json.to_string().as_bytes()).unwrap();
        file
    }

    #[test]
    fn credentials_are_found_by_registry() {
        let auth = base64::engine::general_purpose::STANDARD.encode("me:s3cr3t");
        let file = config(&json!({"auths": {HUB: {"auth": auth}}}));
        let found = read(file.path(), HUB).unwrap();
        let expected = DockerCredential::UsernamePassword("me".into(), "s3cr3t".into());
        assert_eq!(found, Some(expected));
        assert_eq!(read(file.path(), "registry.test").unwrap(), None);
        assert_eq!(
            read(Path::new("/nonexistent/config.json"), HUB).unwrap(),
            None
        );
    }

    #[test]
    fn a_failed_lookup_is_not_quoted() {
        let file = config(&json!({"auths": {HUB: {"auth": "s3cr3t"}}}));
        let error = read(file.path(), HUB).unwrap_err();
        assert!(!error.contains("s3cr3t"), "{error}");
        let file = config(&json!({"credsStore": "moat-nonexistent"}));
        let error = read(file.path(), HUB).unwrap_err();
        assert!(error.contains("cannot be run"), "{error}");
    }
}
