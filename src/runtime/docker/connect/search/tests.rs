//! Tests of the search against engines on sockets in a directory.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::runtime::docker::ConnectOptions;
use crate::runtime::docker::connection::context_directory;

/// A machine: its sockets, and the directories of a user, are in a temporary directory.
struct Machine {
    dir: TempDir,
    environment: Environment,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let environment = Environment {
            root: dir.path().to_owned(),
            home: Some(dir.path().join("home")),
            runtime_dir: Some(dir.path().join("user")),
            ..Environment::default()
        };
        Self { dir, environment }
    }

    fn path(&self, path: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// Starts an engine of this version at `path`.
    fn engine(&self, path: &str, version: &'static str) -> PathBuf {
        let path = self.path(path);
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), version);
            }
        });
        path
    }

    /// Leaves the socket of an engine that has ended at `path`.
    fn dead(&self, path: &str) {
        drop(UnixListener::bind(self.path(path)).unwrap());
    }

    /// Creates a context, and returns its name.
    fn context(&self, name: &str, host: &Path) {
        let id = context_directory(name);
        let file = self.path(&format!("home/.docker/contexts/meta/{id}/meta.json"));
        let host = format!("unix://{}", host.display());
        let metadata = serde_json::json!({ "Endpoints": { "docker": { "Host": host } } });
        fs::write(file, metadata.to_string()).unwrap();
    }

    fn use_context(&self, name: &str) {
        let config = serde_json::json!({ "currentContext": name });
        let file = self.path("home/.docker/config.json");
        fs::write(file, config.to_string()).unwrap();
    }

    /// Searches as `moat::connect` does.
    async fn find(&self) -> Result<(Docker, Vec<String>), NoEngine> {
        let requested = Requested {
            podman: true,
            ..Requested::default()
        };
        let candidates = candidates(requested, &self.environment);
        Docker::first_within(candidates, Duration::from_millis(500)).await
    }

    async fn found(&self) -> (String, Vec<String>) {
        let (docker, skipped) = self.find().await.unwrap();
        (docker.to_string(), skipped)
    }

    /// Returns the error of a named engine.
    async fn refused(&self) -> String {
        match self.find().await {
            Err(NoEngine::Named(error)) => error.to_string(),
            other => panic!("{:?}", other.map(|(docker, _)| docker.to_string())),
        }
    }
}

/// Answers one request on a connection, as an engine does.
fn answer(mut stream: UnixStream, version: &str) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        request.push(byte[0]);
    }
    let body = match request.starts_with(b"GET /_ping") {
        true => "OK".to_owned(),
        false => serde_json::json!({ "ApiVersion": "1.41", "Version": version }).to_string(),
    };
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
}

#[tokio::test]
async fn the_system_engine_precedes_the_users() {
    let machine = Machine::new();
    machine.engine("user/docker.sock", "user");
    let system = machine.engine("var/run/docker.sock", "system");
    let (docker, skipped) = machine.found().await;
    let expected = format!("Docker Engine system at unix://{}", system.display());
    assert_eq!(docker, expected);
    assert!(skipped.is_empty(), "{skipped:?}");
}

#[tokio::test]
async fn a_dead_system_socket_hides_no_rootless_engine() {
    let machine = Machine::new();
    machine.dead("var/run/docker.sock");
    machine.engine("user/docker.sock", "user");
    let (docker, skipped) = machine.found().await;
    assert!(docker.starts_with("Docker Engine user at "), "{docker}");
    let [dead] = &skipped[..] else {
        panic!("{skipped:?}")
    };
    assert!(
        dead.contains("var/run/docker.sock: nothing listens at"),
        "{dead}"
    );
}

/// As root, the socket is not forbidden, and the system's engine is found.
#[tokio::test]
async fn a_forbidden_system_socket_hides_no_rootless_engine() {
    let machine = Machine::new();
    let system = machine.engine("var/run/docker.sock", "system");
    fs::set_permissions(&system, fs::Permissions::from_mode(0o000)).unwrap();
    machine.engine("user/docker.sock", "user");
    let (docker, skipped) = machine.found().await;
    if rustix::process::geteuid().is_root() {
        assert!(docker.starts_with("Docker Engine system at "), "{docker}");
        return;
    }
    assert!(docker.starts_with("Docker Engine user at "), "{docker}");
    let [forbidden] = &skipped[..] else {
        panic!("{skipped:?}")
    };
    assert!(forbidden.contains("is denied"), "{forbidden}");
}

#[tokio::test]
async fn a_hung_socket_is_skipped() {
    let machine = Machine::new();
    let _hung = UnixListener::bind(machine.path("var/run/docker.sock")).unwrap();
    machine.engine("run/podman/podman.sock", "podman");
    let (docker, skipped) = machine.found().await;
    assert!(docker.starts_with("Docker Engine podman at "), "{docker}");
    assert!(skipped[0].contains("did not answer within"), "{skipped:?}");
}

#[test]
fn a_socket_has_less_time_if_there_is_another() {
    let machine = Machine::new();
    let sockets = || candidates(Requested::default(), &machine.environment);
    assert_eq!(socket_timeout(&sockets()), CALL_TIMEOUT);
    machine.dead("var/run/docker.sock");
    assert_eq!(socket_timeout(&sockets()), CALL_TIMEOUT);
    machine.dead("user/docker.sock");
    assert_eq!(socket_timeout(&sockets()), SOCKET_TIMEOUT);
}

#[tokio::test]
async fn the_current_context_precedes_the_sockets() {
    let mut machine = Machine::new();
    machine.engine("var/run/docker.sock", "system");
    machine.context("mine", &machine.engine("mine.sock", "mine"));
    machine.use_context("mine");
    let (docker, skipped) = machine.found().await;
    assert!(docker.starts_with("Docker Engine mine at "), "{docker}");
    let source = format!(
        "(context \"mine\", from {})",
        machine.path("home/.docker/config.json").display()
    );
    assert!(docker.ends_with(&source), "{docker}");
    assert!(skipped.is_empty(), "{skipped:?}");

    machine.environment.docker_context = Some("default".into());
    let (docker, _) = machine.found().await;
    assert!(docker.starts_with("Docker Engine system at "), "{docker}");
}

#[tokio::test]
async fn docker_host_precedes_every_context() {
    let mut machine = Machine::new();
    machine.context("mine", &machine.engine("mine.sock", "mine"));
    machine.use_context("mine");
    let host = machine.engine("host.sock", "host");
    machine.environment.docker_host = Some(format!("unix://{}", host.display()));
    machine.environment.docker_context = Some("mine".into());
    let (docker, _) = machine.found().await;
    assert!(docker.starts_with("Docker Engine host at "), "{docker}");
    assert!(docker.ends_with(" (from DOCKER_HOST)"), "{docker}");
}

#[tokio::test]
async fn an_option_precedes_docker_host() {
    let mut machine = Machine::new();
    machine.context("mine", &machine.engine("mine.sock", "mine"));
    machine.environment.docker_host = Some("unix:///nowhere".into());
    let options = ConnectOptions::default().context("mine");
    let candidates = options.candidates(machine.environment.clone()).unwrap();
    let (docker, _) = Docker::first_of(candidates).await.unwrap();
    assert!(
        docker.to_string().ends_with("(context \"mine\")"),
        "{docker}"
    );
}

#[tokio::test]
async fn a_named_engine_that_is_dead_is_an_error() {
    let mut machine = Machine::new();
    machine.engine("var/run/docker.sock", "system");
    machine.dead("dead.sock");
    let dead = machine.path("dead.sock");
    let address = format!("unix://{}", dead.display());

    machine.environment.docker_host = Some(address.clone());
    let error = machine.refused().await;
    let expected = format!("{address} (from DOCKER_HOST): nothing listens");
    assert!(error.contains(&expected), "{error}");
    let remedy = "orrect DOCKER_HOST, or unset it if moat may use another engine";
    assert!(error.ends_with(remedy), "{error}");

    machine.environment.docker_host = None;
    machine.context("dead", &dead);
    machine.environment.docker_context = Some("dead".into());
    let error = machine.refused().await;
    let expected = format!("{address} (context \"dead\", from DOCKER_CONTEXT): nothing listens");
    assert!(error.contains(&expected), "{error}");
    let remedy = "orrect DOCKER_CONTEXT, or unset it if moat may use another engine";
    assert!(error.ends_with(remedy), "{error}");
}

/// Local processes may take its place, but no other engine.
#[tokio::test]
async fn a_dead_current_context_leaves_the_fallback() {
    let machine = Machine::new();
    machine.engine("var/run/docker.sock", "system");
    machine.dead("dead.sock");
    machine.context("dead", &machine.path("dead.sock"));
    machine.use_context("dead");
    match machine.find().await {
        Err(NoEngine::Unavailable { error, skipped }) => {
            assert_eq!(skipped, [error.to_string()]);
            assert!(error.to_string().contains("context \"dead\""), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_context_that_does_not_exist_is_an_error() {
    let machine = Machine::new();
    machine.engine("var/run/docker.sock", "system");
    machine.use_context("gone");
    let error = machine.refused().await;
    let expected = format!(
        "cannot reach the engine at the address of context \"gone\" (from {}): there is no such \
         context: ",
        machine.path("home/.docker/config.json").display()
    );
    assert!(error.starts_with(&expected), "{error}");
}

#[tokio::test]
async fn a_malformed_config_file_is_reported() {
    let machine = Machine::new();
    machine.engine("var/run/docker.sock", "system");
    fs::write(machine.path("home/.docker/config.json"), "{").unwrap();
    let (docker, skipped) = machine.found().await;
    assert!(docker.starts_with("Docker Engine system at "), "{docker}");
    assert!(
        skipped[0].contains("config.json: it is malformed"),
        "{skipped:?}"
    );
}

#[tokio::test]
async fn container_host_follows_dockers_sockets() {
    let mut machine = Machine::new();
    machine.environment.container_host = Some("foo://bar".into());
    let error = machine.refused().await;
    assert!(
        error.contains("foo://bar (from CONTAINER_HOST): "),
        "{error}"
    );

    machine.engine("user/docker.sock", "user");
    let (docker, skipped) = machine.found().await;
    assert!(docker.starts_with("Docker Engine user at "), "{docker}");
    let [missing] = &skipped[..] else {
        panic!("{skipped:?}")
    };
    assert!(missing.starts_with("there is no socket at "), "{missing}");
}

#[tokio::test]
async fn the_error_names_all_addresses_that_were_tried() {
    let machine = Machine::new();
    machine.dead("user/docker.sock");
    let Err(NoEngine::Unavailable { error, skipped }) = machine.find().await else {
        panic!("an engine was found")
    };
    assert_eq!(skipped.len(), 3, "{skipped:?}");
    let error = error.to_string();
    let expected = "cannot reach the engine at any known address: there is no socket at ";
    assert!(error.starts_with(expected), "{error}");
    for path in [
        "var/run/docker.sock",
        ".rd/docker.sock",
        "run/podman/podman.sock",
    ] {
        assert!(error.contains(path), "{error}");
    }
    assert!(
        error.contains("user/docker.sock: nothing listens at "),
        "{error}"
    );
}

#[tokio::test]
async fn a_malformed_docker_host_is_an_error() {
    let mut machine = Machine::new();
    machine.engine("var/run/docker.sock", "system");
    let mut addresses = vec!["tcp//x", "foo://bar", "unix://", " "];
    if !cfg!(feature = "tls") {
        addresses.push("https://host");
    }
    for address in addresses {
        machine.environment.docker_host = Some(address.into());
        let error = machine.refused().await;
        assert!(error.contains(" (from DOCKER_HOST): "), "{error}");
    }
}
