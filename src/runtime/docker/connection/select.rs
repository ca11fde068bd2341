//! The engines to try, in order: the selection of Docker's CLI, then well-known sockets.

use std::path::{Path, PathBuf};

use super::address::Address;
use super::context;
use super::environment::Environment;
use crate::error::RuntimeError;

/// The address of Docker's CLI if TLS is required and no engine is named.
const TLS_DEFAULT: &str = "tcp://localhost:2376";

/// An engine to try.
#[derive(Debug)]
pub(crate) enum Candidate {
    /// An engine that the caller or the user named. If it does not answer, no other one is tried.
    Named {
        address: Result<Address, RuntimeError>,
        /// The source of the address: `from DOCKER_HOST`. `None`: the caller.
        source: Option<String>,
        /// The environment variable that names the engine, if one does.
        variable: Option<&'static str>,
        /// False: only the user's configuration file names the engine. If it does not answer, local
        /// processes may take its place, if the caller allows them.
        is_explicit: bool,
    },
    /// A well-known socket. If it does not answer, the next candidate is tried.
    Socket(PathBuf),
    /// The reason that a setting of the user is ignored.
    Ignored(String),
}

impl Candidate {
    /// Replaces an address without TLS by an error.
    pub(crate) fn require_tls(&mut self) {
        if let Self::Named { address, .. } = self
            && let Ok(plain) = address
            && plain.certificates.is_none()
        {
            *address = Err(RuntimeError::Unavailable {
                address: plain.to_string(),
                reason: "certificates are given, but the address does not use TLS: give tcp:// \
                         or https://"
                    .into(),
            });
        }
    }
}

/// The engine that the caller requests. Default: the one of Docker's CLI.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Requested<'a> {
    pub(crate) address: Option<&'a str>,
    pub(crate) context: Option<&'a str>,
    /// Also try the engines of Podman.
    pub(crate) podman: bool,
}

/// Returns the engines to try, in order.
pub(crate) fn candidates(requested: Requested<'_>, environment: &Environment) -> Vec<Candidate> {
    if let Some(text) = requested.address {
        return vec![named(text, environment, None)];
    }
    if let Some(name) = requested.context
        && name != context::DEFAULT
    {
        return vec![in_context(name, None, environment)];
    }
    if let Some(host) = &environment.docker_host {
        return vec![named(host, environment, Some("DOCKER_HOST"))];
    }
    let mut candidates = Vec::new();
    let current = match requested.context {
        Some(_) => None,
        None => current_context(environment).unwrap_or_else(|reason| {
            candidates.push(Candidate::Ignored(reason));
            None
        }),
    };
    if let Some((name, source)) = current {
        let mut found = in_context(&name, Some(&source), environment);
        if let Candidate::Named {
            is_explicit,
            variable,
            address,
            ..
        } = &mut found
        {
            if environment.docker_context.is_some() {
                *variable = Some("DOCKER_CONTEXT");
            }
            *is_explicit = variable.is_some() || address.is_err();
        }
        return vec![found];
    }
    if environment.uses_tls() {
        let mut default = named(TLS_DEFAULT, environment, None);
        if let Candidate::Named { source, .. } = &mut default {
            *source = Some("the default with TLS".to_owned());
        }
        candidates.push(default);
        return candidates;
    }
    candidates.extend(sockets(environment.docker_sockets()));
    if requested.podman {
        match &environment.container_host {
            Some(host) => candidates.push(named(host, environment, Some("CONTAINER_HOST"))),
            None => candidates.extend(sockets(environment.podman_sockets())),
        }
    }
    candidates
}

fn sockets(paths: Vec<PathBuf>) -> impl Iterator<Item = Candidate> {
    paths.into_iter().map(Candidate::Socket)
}

/// Returns the name and the source of the current context, unless it is the default.
///
/// # Errors
///
/// The reason that the configuration file cannot be used.
fn current_context(environment: &Environment) -> Result<Option<(String, String)>, String> {
    let found = match (&environment.docker_context, environment.config_dir()) {
        (Some(name), _) => Some((name.clone(), "DOCKER_CONTEXT".to_owned())),
        (None, Some(dir)) => {
            let source = context::config_file(&dir).display().to_string();
            context::current(&dir)?.map(|name| (name, source))
        }
        (None, None) => None,
    };
    Ok(found.filter(|(name, _)| name != context::DEFAULT))
}

/// Returns the engine at the address `text`, which `variable` or the caller gives.
fn named(text: &str, environment: &Environment, variable: Option<&'static str>) -> Candidate {
    Candidate::Named {
        address: Address::parse(text, environment),
        source: variable.map(|name| format!("from {name}")),
        variable,
        is_explicit: true,
    }
}

/// Returns the engine of the context `name`, which was found in `source`.
fn in_context(name: &str, source: Option<&str>, environment: &Environment) -> Candidate {
    let dir = environment.config_dir();
    let found = match &dir {
        Some(dir) => context::load(dir, name),
        None => Err("there is no home directory to look it up in: set DOCKER_CONFIG".into()),
    };
    match found {
        Ok(found) => {
            let environment = environment.with_context_tls(found.tls, found.certificates);
            Candidate::Named {
                address: match found.host {
                    Some(host) => Address::parse(&host, &environment),
                    None => Ok(Address::local(&environment.system_socket())),
                },
                source: Some(match source {
                    Some(source) => format!("context {name:?}, from {source}"),
                    None => format!("context {name:?}"),
                }),
                variable: None,
                is_explicit: true,
            }
        }
        Err(reason) => Candidate::Named {
            address: Err(RuntimeError::Unavailable {
                address: format!("the address of context {name:?}"),
                reason,
            }),
            source: source.map(|source| format!("from {source}")),
            variable: None,
            is_explicit: true,
        },
    }
}

/// Returns true if there may be a socket at `path`.
pub(crate) fn may_exist(path: &Path) -> bool {
    // A pipe of Windows cannot be looked for without a connection to it, and a directory that may
    // not be read may hold the socket.
    cfg!(windows) || path.try_exists().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::environment::TlsMode;
    use super::*;

    fn shown(requested: Requested<'_>, environment: &Environment) -> Vec<String> {
        let shown = candidates(requested, environment).into_iter();
        let shown = shown.map(|candidate| match candidate {
            Candidate::Named {
                address, source, ..
            } => {
                let address = match address {
                    Ok(address) => address.to_string(),
                    Err(error) => error.to_string(),
                };
                format!("{address} ({})", source.unwrap_or_default())
            }
            Candidate::Socket(path) => path.display().to_string(),
            Candidate::Ignored(reason) => reason,
        });
        shown.collect()
    }

    fn with_context(name: &str, host: &str) -> (tempfile::TempDir, Environment) {
        let dir = tempfile::tempdir().unwrap();
        let meta = dir
            .path()
            .join("contexts/meta")
            .join(context::directory(name));
        fs::create_dir_all(&meta).unwrap();
        let metadata = serde_json::json!({ "Endpoints": { "docker": { "Host": host } } });
        fs::write(meta.join("meta.json"), metadata.to_string()).unwrap();
        let environment = Environment {
            config: Some(dir.path().to_owned()),
            root: "/".into(),
            ..Environment::default()
        };
        (dir, environment)
    }

    #[test]
    fn a_named_engine_is_the_only_candidate() {
        let (_dir, mut environment) = with_context("x", "tcp://x");
        environment.docker_context = Some("x".into());
        let default = Requested::default();
        let by_context = ["tcp://x:2375 (context \"x\", from DOCKER_CONTEXT)"];
        assert_eq!(shown(default, &environment), by_context);

        environment.docker_host = Some("tcp://host".into());
        let by_host = ["tcp://host:2375 (from DOCKER_HOST)"];
        assert_eq!(shown(default, &environment), by_host);

        let mut requested = Requested {
            context: Some("x"),
            ..default
        };
        let by_caller = ["tcp://x:2375 (context \"x\")"];
        assert_eq!(shown(requested, &environment), by_caller);
        requested.context = Some("default");
        assert_eq!(shown(requested, &environment), by_host);
        requested.address = Some("tcp://given");
        assert_eq!(shown(requested, &environment), ["tcp://given:2375 ()"]);
    }

    #[test]
    fn the_default_context_stands_for_the_sockets() {
        let (_dir, mut environment) = with_context("x", "tcp://x");
        environment.docker_context = Some("default".into());
        let sockets = ["/var/run/docker.sock"];
        assert_eq!(shown(Requested::default(), &environment), sockets);
        environment.docker_context = Some("x".into());
        let requested = Requested {
            context: Some("default"),
            podman: true,
            ..Requested::default()
        };
        let sockets = ["/var/run/docker.sock", "/run/podman/podman.sock"];
        assert_eq!(shown(requested, &environment), sockets);
        environment.container_host = Some("tcp://podman:1".into());
        let named = [
            "/var/run/docker.sock",
            "tcp://podman:1 (from CONTAINER_HOST)",
        ];
        assert_eq!(shown(requested, &environment), named);
    }

    #[test]
    fn a_context_without_a_host_means_the_system_socket() {
        let (_dir, mut environment) = with_context("x", "");
        environment.docker_context = Some("x".into());
        let found = shown(Requested::default(), &environment);
        let expected = ["unix:///var/run/docker.sock (context \"x\", from DOCKER_CONTEXT)"];
        assert_eq!(found, expected);
    }

    #[cfg(feature = "tls")]
    #[test]
    fn the_tls_of_a_context_is_not_that_of_the_variables() {
        let (dir, mut environment) = with_context("x", "tcp://x");
        environment.docker_context = Some("x".into());
        environment.tls = TlsMode::Verified;
        environment.cert_path = Some("/certs".into());
        let address =
            |environment: &Environment| match candidates(Requested::default(), environment)
                .remove(0)
            {
                Candidate::Named { address, .. } => address.unwrap(),
                other => panic!("{other:?}"),
            };
        assert_eq!(address(&environment).certificates, None);

        let files = dir
            .path()
            .join("contexts/tls")
            .join(context::directory("x"));
        let files = files.join("docker");
        fs::create_dir_all(&files).unwrap();
        let certificates = address(&environment).certificates.unwrap();
        assert_eq!((certificates.dir, certificates.verify), (files, true));

        let given = environment.with_certificates("/given".into());
        let certificates = address(&given).certificates.unwrap();
        assert_eq!(certificates.dir, Path::new("/given"));
    }

    #[test]
    fn tls_without_a_host_means_the_local_port() {
        let environment = Environment {
            tls: TlsMode::Verified,
            ..Environment::default()
        };
        let found = shown(Requested::default(), &environment);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].ends_with(" (the default with TLS)"), "{found:?}");
        let built = found[0].starts_with("https://localhost:2376 ");
        assert_eq!(built, cfg!(feature = "tls"), "{found:?}");
    }
}
