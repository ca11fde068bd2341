//! Credentials for an image registry: the caller's, else those of Docker's configuration.

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

use super::address::Environment;
use crate::spec::Credentials;

/// The key of Docker Hub in Docker's configuration.
const HUB: &str = "https://index.docker.io/v1/";
/// How long a helper may take.
const BOUND: Duration = Duration::from_secs(30);

/// The credentials that were found, encoded as the engine wants them in a header.
#[derive(Default)]
pub(super) struct Header {
    pub(super) value: Option<String>,
    /// Why there are none though there should be some: for the error of a pull that fails.
    pub(super) trouble: Option<String>,
}

/// The key of an image's registry in Docker's configuration.
pub(super) fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => match first {
            "docker.io" | "index.docker.io" => HUB,
            registry => registry,
        },
        _ => HUB,
    }
}

/// The credentials for an image.
///
/// A helper that fails is no error: many images can be pulled without credentials.
pub(super) async fn header(image: &str, given: Option<&Credentials>) -> Header {
    let registry = registry(image).to_owned();
    if let Some(given) = given {
        let (name, password) = (given.username().to_owned(), given.password().to_owned());
        let found = DockerCredential::UsernamePassword(name, password);
        return Header {
            value: Some(encoded(found, &registry)),
            trouble: None,
        };
    }
    let Some(dir) = Environment::read().config_dir() else {
        return Header::default();
    };
    let found = match look_up(dir.join("config.json"), registry.clone()).await {
        Ok(found) => found,
        Err(trouble) => {
            tracing::warn!(registry, trouble, "no registry credentials");
            return Header {
                value: None,
                trouble: Some(trouble),
            };
        }
    };
    Header {
        value: found.map(|found| encoded(found, &registry)),
        trouble: None,
    }
}

/// Looks a registry up on a thread of its own: a helper is a process, which may hang, and a hung
/// thread of the runtime would hang its shutdown.
async fn look_up(config: PathBuf, registry: String) -> Result<Option<DockerCredential>, String> {
    let (send, found) = oneshot::channel();
    let thread = std::thread::Builder::new().name("moat-credentials".into());
    let spawned = thread.spawn(move || {
        // Nobody waits for it any more after the bound.
        let _ = send.send(read(&config, &registry));
    });
    spawned.map_err(|error| format!("no thread for the credential helper: {error}"))?;
    match timeout(BOUND, found).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => Err("the look-up of credentials failed".into()),
        Err(_) => Err(format!(
            "the credential helper did not answer within {} s",
            BOUND.as_secs()
        )),
    }
}

/// What the configuration has for a registry. No error quotes what a helper printed.
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
        // The helper's way to say that it has none.
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
            Err("the credential helper of Docker's configuration cannot be run".into())
        }
        Err(E::MalformedHelperResponse) => {
            Err("the credential helper's answer made no sense".into())
        }
        Err(_) => Err(format!("{} made no sense", config.display())),
    }
}

/// The value of `X-Registry-Auth`: JSON in the URL-safe alphabet, which is the one that engines
/// read; in the other one some passwords would be dropped without a word.
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
    fn an_image_without_a_host_is_docker_hubs() {
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
    async fn given_credentials_come_first_and_every_password_survives_the_encoding() {
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
    fn the_configuration_is_looked_up_by_registry() {
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
    fn a_configuration_or_helper_that_does_not_work_is_named_and_not_quoted() {
        let file = config(&json!({"auths": {HUB: {"auth": "s3cr3t"}}}));
        let error = read(file.path(), HUB).unwrap_err();
        assert!(!error.contains("s3cr3t"), "{error}");
        let file = config(&json!({"credsStore": "moat-nonexistent"}));
        let error = read(file.path(), HUB).unwrap_err();
        assert!(error.contains("cannot be run"), "{error}");
    }
}
