//! Where an engine listens: `DOCKER_HOST`, or a socket on this machine.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::RuntimeError;

/// The socket of an engine that was installed for the whole machine.
const SYSTEM_SOCKET: &str = "/var/run/docker.sock";

/// Where an engine listens, and how to speak with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) endpoint: Endpoint,
    /// The folder of `ca.pem`, `cert.pem` and `key.pem`, where TLS is asked for.
    pub(super) certificates: Option<PathBuf>,
}

/// The place to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

/// What the environment says; read in one place, so that the rest is a function of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Environment {
    host: Option<String>,
    tls_verify: bool,
    cert_path: Option<PathBuf>,
    config: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    home: Option<PathBuf>,
}

impl Environment {
    pub(super) fn read() -> Self {
        // An empty variable is one that is not set, as Docker's own client has it.
        let get = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = |name| get(name).map(PathBuf::from);
        Self {
            host: get("DOCKER_HOST").map(|host| host.to_string_lossy().into_owned()),
            tls_verify: get("DOCKER_TLS_VERIFY").is_some(),
            cert_path: path("DOCKER_CERT_PATH"),
            config: path("DOCKER_CONFIG"),
            runtime_dir: path("XDG_RUNTIME_DIR"),
            home: path("HOME"),
        }
    }

    /// The folder of Docker's configuration file.
    pub(super) fn config_dir(&self) -> Option<PathBuf> {
        let home = || Some(self.home.as_ref()?.join(".docker"));
        self.config.clone().or_else(home)
    }

    fn certificates(&self) -> PathBuf {
        let dir = || self.config_dir().unwrap_or_default();
        self.cert_path.clone().unwrap_or_else(dir)
    }
}

impl Address {
    /// The engine that the environment names, else the one on this machine.
    pub(super) fn local(environment: &Environment) -> Result<Self, RuntimeError> {
        if let Some(host) = &environment.host {
            return Self::parse(host, environment);
        }
        let mut sockets = vec![PathBuf::from(SYSTEM_SOCKET)];
        let user = environment.runtime_dir.iter();
        sockets.extend(user.map(|dir| dir.join("docker.sock")));
        let desktop = environment.home.iter();
        sockets.extend(desktop.map(|home| home.join(".docker/run/docker.sock")));
        match sockets.iter().find(|path| path.exists()) {
            Some(path) => Ok(Self::unix(path)),
            None => {
                let tried: Vec<_> = sockets.iter().map(|p| p.display().to_string()).collect();
                Err(unusable(
                    &Self::unix(Path::new(SYSTEM_SOCKET)).to_string(),
                    format!(
                        "there is no socket at {}: is the engine running? If it listens \
                         elsewhere, set DOCKER_HOST",
                        tried.join(" or ")
                    ),
                ))
            }
        }
    }

    /// The address that `text` names: `unix://`, `tcp://`, `http://` or `https://`.
    pub(super) fn parse(text: &str, environment: &Environment) -> Result<Self, RuntimeError> {
        let text = text.trim();
        let Some((scheme, rest)) = text.split_once("://") else {
            let like = if text.starts_with('/') {
                "unix://"
            } else {
                "tcp://"
            };
            return Err(unusable(
                &shown(text),
                format!("the address has no scheme: write {like}{}", shown(text)),
            ));
        };
        let refuse = |reason: String| Err(unusable(&shown(text), reason));
        let tls = match scheme {
            "unix" => {
                let path = Path::new(rest);
                if !path.is_absolute() {
                    return refuse("the path of the socket is not absolute".into());
                }
                return Ok(Self::unix(path));
            }
            "tcp" => environment.tls_verify,
            "http" => false,
            "https" => true,
            "ssh" => {
                return refuse(
                    "ssh:// is not supported: forward the engine's socket with `ssh -L`, and give \
                     that as unix:// or tcp://"
                        .into(),
                );
            }
            "npipe" => return refuse("npipe:// is not supported: give unix:// or tcp://".into()),
            _ => {
                return refuse(format!(
                    "{scheme}:// is not supported: give unix://, tcp://, http:// or https://"
                ));
            }
        };
        if tls && !cfg!(feature = "tls") {
            return refuse(
                "TLS is asked for, by https:// or DOCKER_TLS_VERIFY, and moat was built without \
                 its feature `tls`"
                    .into(),
            );
        }
        if rest.contains('@') {
            return refuse("a user in the address is not supported".into());
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !path.is_empty() {
            return refuse("a path in the address is not supported".into());
        }
        let (host, port) = match split_port(authority) {
            Some(parts) => parts,
            None => return refuse(format!("{authority:?} is not a host and a port")),
        };
        let port = match port {
            Some(port) => port,
            None if tls => 2376,
            None => 2375,
        };
        Ok(Self {
            endpoint: Endpoint::Tcp {
                host: host.to_owned(),
                port,
            },
            certificates: tls.then(|| environment.certificates()),
        })
    }

    fn unix(path: &Path) -> Self {
        Self {
            endpoint: Endpoint::Unix(path.to_owned()),
            certificates: None,
        }
    }

    /// Where the ports are that containers on the engine's host publish.
    pub(super) fn host(&self) -> &str {
        match &self.endpoint {
            Endpoint::Unix(_) => "127.0.0.1",
            Endpoint::Tcp { host, .. } => host,
        }
    }

    /// What the `Host` header says.
    pub(super) fn authority(&self) -> String {
        match &self.endpoint {
            Endpoint::Unix(_) => "localhost".to_owned(),
            Endpoint::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Endpoint::Tcp { host, port } => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
            Endpoint::Tcp { .. } if self.certificates.is_some() => {
                write!(f, "https://{}", self.authority())
            }
            Endpoint::Tcp { .. } => write!(f, "tcp://{}", self.authority()),
        }
    }
}

/// Host and port of `host`, `host:port`, `[::1]` or `[::1]:port`.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            match port {
                "" => (host, None),
                port => (host, Some(port.strip_prefix(':')?)),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || !host.chars().all(valid) {
        return None;
    }
    match port {
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => None,
            Ok(port) => Some((host, Some(port))),
        },
        None => Some((host, None)),
    }
}

/// The address as it may be shown: what stands before an `@` can be a password.
fn shown(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((before, after)) => match before.split_once("://") {
            Some((scheme, _)) => format!("{scheme}://...@{after}"),
            None => format!("...@{after}"),
        },
        None => text.to_owned(),
    }
}

fn unusable(address: &str, reason: String) -> RuntimeError {
    RuntimeError::Unavailable {
        address: address.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address, String> {
        Address::parse(text, &Environment::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn each_kind_of_address_is_understood() {
        for (text, shown) in [
            ("unix:///run/x.sock", "unix:///run/x.sock"),
            ("tcp://db:1", "tcp://db:1"),
            ("tcp://db", "tcp://db:2375"),
            ("tcp://127.0.0.1:2375/", "tcp://127.0.0.1:2375"),
            ("http://[::1]:99", "tcp://[::1]:99"),
            ("tcp://[::1]", "tcp://[::1]:2375"),
            (" tcp://db:1\n", "tcp://db:1"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_a_remote_engine_publishes_is_looked_for_on_its_host() {
        for (text, host) in [
            ("unix:///run/x.sock", "127.0.0.1"),
            ("tcp://db:1", "db"),
            ("http://[::1]:99", "::1"),
        ] {
            assert_eq!(parse(text).unwrap().host(), host, "{text}");
        }
    }

    #[test]
    fn a_bad_address_is_refused_with_what_to_write_instead() {
        for (text, hint) in [
            ("/run/x.sock", "write unix:///run/x.sock"),
            ("db:2375", "write tcp://db:2375"),
            ("", "no scheme"),
            ("unix://x.sock", "not absolute"),
            ("ssh://me@db", "ssh -L"),
            (
                "npipe:////./pipe/docker_engine",
                "npipe:// is not supported",
            ),
            ("ftp://db", "ftp:// is not supported"),
            ("tcp://", "not a host and a port"),
            ("tcp://:1", "not a host and a port"),
            ("tcp://db:0", "not a host and a port"),
            ("tcp://db:99999", "not a host and a port"),
            ("tcp://::1", "not a host and a port"),
            ("tcp://[::1", "not a host and a port"),
            ("tcp://a b", "not a host and a port"),
            ("tcp://db:1/path", "path"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_not_shown() {
        for text in [
            "tcp://me:s3cr3t@db:1",
            "me:s3cr3t@db:1",
            "ssh://me:s3cr3t@db",
        ] {
            let error = parse(text).unwrap_err();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }

    #[test]
    fn tls_is_asked_for_by_the_scheme_or_the_environment() {
        let environment = Environment {
            tls_verify: true,
            cert_path: Some("/certs".into()),
            ..Environment::default()
        };
        for (text, shown) in [
            ("https://db", "https://db:2376"),
            ("tcp://db", "https://db:2376"),
            ("tcp://db:1", "https://db:1"),
        ] {
            let built = cfg!(feature = "tls");
            match Address::parse(text, &environment) {
                Ok(address) => {
                    assert!(built);
                    assert_eq!(address.to_string(), shown);
                    assert_eq!(address.certificates, Some("/certs".into()));
                }
                Err(error) => {
                    assert!(!built);
                    assert!(error.to_string().contains("feature `tls`"), "{error}");
                }
            }
        }
        let plain = Address::parse("http://db", &environment).unwrap();
        assert_eq!(plain.certificates, None);
        let socket = Address::parse("unix:///x", &environment).unwrap();
        assert_eq!(socket.certificates, None);
    }

    #[test]
    fn the_environment_comes_before_the_sockets_of_this_machine() {
        let environment = Environment {
            host: Some("unix:///nowhere.sock".into()),
            ..Environment::default()
        };
        let address = Address::local(&environment).unwrap();
        assert_eq!(address.to_string(), "unix:///nowhere.sock");
    }

    #[test]
    fn certificates_are_looked_for_where_dockers_client_does() {
        let mut environment = Environment {
            home: Some("/home/me".into()),
            ..Environment::default()
        };
        assert_eq!(environment.certificates(), Path::new("/home/me/.docker"));
        environment.config = Some("/config".into());
        assert_eq!(environment.certificates(), Path::new("/config"));
        environment.cert_path = Some("/certs".into());
        assert_eq!(environment.certificates(), Path::new("/certs"));
    }
}
