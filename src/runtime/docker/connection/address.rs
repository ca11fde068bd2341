//! The address of an engine: a Unix socket or a named pipe, a TCP port with or without TLS, or a
//! host of ssh.

use std::fmt;
use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::local::{DEFAULT_ADDRESS, SCHEME};
use super::ssh::SshAddress;
use crate::error::RuntimeError;

/// The port of an engine without TLS.
const PLAIN_PORT: u16 = 2375;
/// The port of an engine with TLS.
const TLS_PORT: u16 = 2376;

/// The address of an engine, and its TLS certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(super) endpoint: Endpoint,
    /// `None`: no TLS.
    pub(crate) certificates: Option<Certificates>,
}

/// A socket or pipe of this machine, a TCP port, or an engine on a host of ssh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// The path of a Unix socket, or of a named pipe on Windows.
    Local(PathBuf),
    Tcp {
        host: String,
        port: u16,
    },
    Ssh(SshAddress),
}

/// The certificate files of a connection with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certificates {
    /// The directory of `ca.pem`, `cert.pem` and `key.pem`.
    pub(super) dir: PathBuf,
    /// False: any certificate of the engine is accepted.
    pub(super) verify: bool,
}

impl Certificates {
    pub(crate) fn verified(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            verify: true,
        }
    }
}

impl Address {
    /// Parses a `unix://`, `tcp://`, `http://`, `https://` or `ssh://` address.
    pub(crate) fn parse(text: &str, environment: &Environment) -> Result<Self, RuntimeError> {
        let text = text.trim();
        Self::try_parse(text, environment).map_err(|reason| RuntimeError::Unavailable {
            address: match text {
                "" => "\"\"".to_owned(),
                text => redacted(text),
            },
            reason,
        })
    }

    fn try_parse(text: &str, environment: &Environment) -> Result<Self, String> {
        if text.is_empty() {
            return Err(format!("the address is empty: give {}", schemes()));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(missing_scheme(text));
        };
        let tls = match scheme {
            SCHEME => {
                let path = Path::new(rest);
                if rest.is_empty() {
                    return Err(format!(
                        "the address has no socket: give its path, such as {SCHEME}://{DEFAULT_ADDRESS}"
                    ));
                }
                if !path.is_absolute() {
                    return Err("the path of the socket is not absolute".into());
                }
                return Ok(Self::local(path));
            }
            "ssh" => {
                return Ok(Self {
                    endpoint: Endpoint::Ssh(SshAddress::parse(rest)?),
                    certificates: None,
                });
            }
            "tcp" => environment.uses_tls(),
            "http" => false,
            "https" => true,
            _ => return Err(unsupported_scheme(scheme)),
        };
        if tls && !cfg!(feature = "tls") {
            return Err(
                "TLS is required (by https://, DOCKER_TLS_VERIFY, DOCKER_TLS, a context or \
                 certificates), but moat was built without its feature `tls`"
                    .into(),
            );
        }
        let (host, port) = host_and_port(rest)?;
        let default_port = if tls { TLS_PORT } else { PLAIN_PORT };
        Ok(Self {
            endpoint: Endpoint::Tcp {
                host: host.to_owned(),
                port: port.unwrap_or(default_port),
            },
            certificates: tls.then(|| environment.certificates()),
        })
    }

    /// Returns the address of a Unix socket, or of a named pipe on Windows.
    pub(crate) fn local(path: &Path) -> Self {
        Self {
            endpoint: Endpoint::Local(path.to_owned()),
            certificates: None,
        }
    }

    /// Returns the host on which the engine's containers publish their ports.
    pub(crate) fn host(&self) -> &str {
        match &self.endpoint {
            Endpoint::Local(_) => "127.0.0.1",
            Endpoint::Tcp { host, .. } => host,
            Endpoint::Ssh(address) => &address.host,
        }
    }

    /// Returns the value of the `Host` header.
    pub(super) fn authority(&self) -> String {
        match &self.endpoint {
            Endpoint::Local(_) | Endpoint::Ssh(_) => "localhost".to_owned(),
            Endpoint::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Endpoint::Tcp { host, port } => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Local(path) => write!(f, "{SCHEME}://{}", path.display()),
            Endpoint::Tcp { .. } if self.certificates.is_some() => {
                write!(f, "https://{}", self.authority())
            }
            Endpoint::Tcp { .. } => write!(f, "tcp://{}", self.authority()),
            Endpoint::Ssh(address) => address.fmt(f),
        }
    }
}

/// Returns the supported schemes, as errors list them.
fn schemes() -> String {
    format!("{SCHEME}://, tcp://, http://, https:// or ssh://")
}

fn missing_scheme(text: &str) -> String {
    let text = redacted(text);
    for scheme in ["unix", "tcp", "https", "http", "ssh"] {
        // A scheme without its `://`, such as `tcp//db` or `unix:/run/x.sock`.
        let rest = text.strip_prefix(scheme).unwrap_or_default();
        let target = rest.trim_start_matches([':', '/']);
        if !target.is_empty() && rest[..rest.len() - target.len()].contains('/') {
            let root = if scheme == "unix" { "/" } else { "" };
            return format!("the scheme lacks its \"://\": write {scheme}://{root}{target}");
        }
    }
    let scheme = match text.starts_with('/') {
        true => "unix://",
        false => "tcp://",
    };
    format!("the address has no scheme: write {scheme}{text}")
}

fn unsupported_scheme(scheme: &str) -> String {
    match scheme {
        "unix" | "npipe" => {
            format!("{scheme}:// is not supported on this platform: give {SCHEME}:// or tcp://")
        }
        _ => format!("{scheme}:// is not supported: give {}", schemes()),
    }
}

/// Parses an address after its scheme: a host, and a port if there is one.
fn host_and_port(rest: &str) -> Result<(&str, Option<u16>), String> {
    if rest.contains('@') {
        return Err("a user in the address is not supported".into());
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !path.is_empty() {
        return Err("a path in the address is not supported".into());
    }
    split_port(authority).ok_or_else(|| format!("{authority:?} is not a host and a port"))
}

/// Splits `host`, `host:port`, `[::1]` or `[::1]:port`.
pub(super) fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
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

/// Decodes percent-encoded bytes. Returns `None` if the text is malformed or not UTF-8.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut decoded = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        decoded.push(u8::from_str_radix(digits, 16).ok()?);
        decoded.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(decoded).ok()
}

/// Returns the address without the part before `@`, which can contain a password.
fn redacted(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((before, after)) => match before.split_once("://") {
            Some((scheme, _)) => format!("{scheme}://...@{after}"),
            None => format!("...@{after}"),
        },
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::environment::TlsMode;
    use super::*;

    fn parse(text: &str) -> Result<Address, String> {
        Address::parse(text, &Environment::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn each_scheme_is_parsed() {
        for (text, shown) in [
            ("unix:///run/x.sock", "unix:///run/x.sock"),
            ("tcp://db:1", "tcp://db:1"),
            ("tcp://db", "tcp://db:2375"),
            ("tcp://127.0.0.1:2375/", "tcp://127.0.0.1:2375"),
            ("http://[::1]:99", "tcp://[::1]:99"),
            ("tcp://[::1]", "tcp://[::1]:2375"),
            (" tcp://db:1\n", "tcp://db:1"),
            ("ssh://me@db:22/run/x.sock", "ssh://me@db:22/run/x.sock"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn ports_are_published_on_the_engines_host() {
        for (text, host) in [
            ("unix:///run/x.sock", "127.0.0.1"),
            ("tcp://db:1", "db"),
            ("http://[::1]:99", "::1"),
            ("ssh://me@db:22", "db"),
        ] {
            assert_eq!(parse(text).unwrap().host(), host, "{text}");
        }
    }

    #[test]
    fn a_bad_address_is_refused_with_a_hint() {
        for (text, hint) in [
            ("/run/x.sock", "write unix:///run/x.sock"),
            ("db:2375", "write tcp://db:2375"),
            ("tcp//x", "write tcp://x"),
            ("https:/db:1", "write https://db:1"),
            ("unix:/run/x.sock", "write unix:///run/x.sock"),
            ("unix//run/x.sock", "write unix:///run/x.sock"),
            ("tcp:1", "write tcp://tcp:1"),
            ("", "at \"\": the address is empty"),
            (" ", "the address is empty"),
            ("unix://", "such as unix:///var/run/docker.sock"),
            ("unix://x.sock", "not absolute"),
            ("ssh//db", "write ssh://db"),
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
    fn errors_do_not_show_a_password() {
        for text in [
            "tcp://me:s3cr3t@db:1",
            "me:s3cr3t@db:1",
            "tcp//me:s3cr3t@db:1",
            "ssh://me:s3cr3t@db",
            "ssh://me:/s3cr3t@db",
            "ssh://me:s3cr3t@db?x",
            "ssh//me:s3cr3t@db",
        ] {
            let error = parse(text).unwrap_err();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }

    #[test]
    fn the_scheme_or_the_environment_selects_tls() {
        let environment = Environment {
            tls: TlsMode::Verified,
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
                    let certificates = Certificates::verified("/certs".as_ref());
                    assert_eq!(address.certificates, Some(certificates));
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
}
