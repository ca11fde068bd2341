//! The environment variables that select an engine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::address::Certificates;
use super::local::DEFAULT_ADDRESS;

/// The environment variables that select an engine.
///
/// Only [`read`](Self::read) accesses the environment, so that the other functions depend on their
/// arguments and the file system alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    pub(crate) docker_host: Option<String>,
    pub(crate) docker_context: Option<String>,
    pub(crate) container_host: Option<String>,
    pub(crate) tls: TlsMode,
    pub(crate) cert_path: Option<PathBuf>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) runtime_dir: Option<PathBuf>,
    pub(crate) home: Option<PathBuf>,
    pub(crate) config_home: Option<PathBuf>,
    pub(crate) colima_home: Option<PathBuf>,
    /// The user's own directory for temporary files.
    pub(crate) temp_dir: Option<PathBuf>,
    /// The directory that holds `var/run` and `run`: `/`, except in tests.
    pub(crate) root: PathBuf,
    /// The certificates that the caller requires, in place of all others.
    pub(crate) given_certificates: Option<PathBuf>,
}

/// The use of TLS for `tcp://`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum TlsMode {
    #[default]
    Off,
    /// The engine's certificate is not checked.
    Unverified,
    Verified,
}

impl Environment {
    pub(crate) fn read() -> Self {
        // Docker's CLI treats an empty variable as unset.
        let get = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = |name| get(name).map(PathBuf::from);
        let text = |name| get(name).map(|value: OsString| value.to_string_lossy().into_owned());
        Self {
            docker_host: text("DOCKER_HOST"),
            docker_context: text("DOCKER_CONTEXT"),
            container_host: text("CONTAINER_HOST"),
            tls: match (get("DOCKER_TLS_VERIFY"), get("DOCKER_TLS")) {
                (Some(_), _) => TlsMode::Verified,
                (None, Some(_)) => TlsMode::Unverified,
                (None, None) => TlsMode::Off,
            },
            cert_path: path("DOCKER_CERT_PATH"),
            config: path("DOCKER_CONFIG"),
            runtime_dir: path("XDG_RUNTIME_DIR"),
            home: std::env::home_dir().filter(|home| !home.as_os_str().is_empty()),
            config_home: path("XDG_CONFIG_HOME"),
            colima_home: path("COLIMA_HOME"),
            // On other systems, all users share one directory: another user could put a socket
            // there.
            temp_dir: path("TMPDIR").filter(|_| cfg!(target_os = "macos")),
            root: PathBuf::from("/"),
            given_certificates: None,
        }
    }

    /// Requires TLS, with the certificates in `dir`.
    pub(crate) fn with_certificates(mut self, dir: PathBuf) -> Self {
        self.given_certificates = Some(dir);
        self
    }

    /// Sets the TLS of a context, for which the variables have no effect.
    pub(super) fn with_context_tls(&self, tls: TlsMode, certificates: PathBuf) -> Self {
        Self {
            tls,
            cert_path: Some(certificates),
            ..self.clone()
        }
    }

    /// Returns the directory of Docker's configuration file.
    pub(crate) fn config_dir(&self) -> Option<PathBuf> {
        let home = || Some(self.home.as_ref()?.join(".docker"));
        self.config.clone().or_else(home)
    }

    /// Returns true if `tcp://` means TLS.
    pub(super) fn uses_tls(&self) -> bool {
        self.given_certificates.is_some() || self.tls != TlsMode::Off
    }

    /// Returns the certificates of a connection with TLS.
    pub(super) fn certificates(&self) -> Certificates {
        if let Some(dir) = &self.given_certificates {
            return Certificates::verified(dir);
        }
        let dir = || self.config_dir().unwrap_or_default();
        Certificates {
            dir: self.cert_path.clone().unwrap_or_else(dir),
            verify: self.tls != TlsMode::Unverified,
        }
    }

    /// Returns the socket of an engine that is installed system-wide.
    pub(super) fn system_socket(&self) -> PathBuf {
        match cfg!(windows) {
            true => PathBuf::from(DEFAULT_ADDRESS),
            false => self.root.join(DEFAULT_ADDRESS.trim_start_matches('/')),
        }
    }

    /// Returns the sockets of Docker, in the order in which they are tried.
    ///
    /// The system's socket comes first, since Docker's CLI uses it if there is no context.
    pub(super) fn docker_sockets(&self) -> Vec<PathBuf> {
        if cfg!(windows) {
            return vec![self.system_socket()];
        }
        let home = |path: &str| Some(self.home.as_ref()?.join(path));
        let join = |dir: &Option<PathBuf>, path: &str| Some(dir.as_ref()?.join(path));
        let colima = match &self.colima_home {
            Some(dir) => [Some(dir.join("default/docker.sock")), None],
            None => [
                home(".colima/default/docker.sock"),
                join(&self.config_home, "colima/default/docker.sock")
                    .or_else(|| home(".config/colima/default/docker.sock")),
            ],
        };
        let own = [
            join(&self.runtime_dir, "docker.sock"), // rootless
            home(".docker/run/docker.sock"),        // rootless, Docker Desktop on macOS
            home(".docker/desktop/docker.sock"),    // Docker Desktop on Linux
        ];
        let others = [home(".orbstack/run/docker.sock"), home(".rd/docker.sock")];
        let user = own.into_iter().chain(colima).chain(others).flatten();
        std::iter::once(self.system_socket()).chain(user).collect()
    }

    /// Returns the sockets of Podman, in the order in which they are tried.
    ///
    /// The user's come first, since Podman's CLI uses the user's engine.
    pub(super) fn podman_sockets(&self) -> Vec<PathBuf> {
        if cfg!(windows) {
            return Vec::new();
        }
        let home = self.home.as_deref();
        let machine = |path: &str| Some(home?.join(".local/share/containers/podman").join(path));
        let temp_dir = self.temp_dir.as_deref();
        let in_temp_dir = |dir: &Path| dir.join("podman/podman-machine-default-api.sock");
        let user = [
            self.runtime_dir
                .as_ref()
                .map(|dir| dir.join("podman/podman.sock")),
            temp_dir.map(in_temp_dir),
            machine("machine/podman.sock"),
            machine("machine/podman-machine-default/podman.sock"),
            machine("machine/qemu/podman.sock"),
        ];
        let system = self.root.join("run/podman/podman.sock");
        user.into_iter().flatten().chain([system]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(sockets: &[PathBuf]) -> Vec<&str> {
        sockets.iter().map(|path| path.to_str().unwrap()).collect()
    }

    fn user() -> Environment {
        Environment {
            home: Some("/home/me".into()),
            runtime_dir: Some("/run/user/1".into()),
            root: "/".into(),
            ..Environment::default()
        }
    }

    #[test]
    fn certificates_are_found_where_dockers_cli_finds_them() {
        let mut environment = Environment {
            home: Some("/home/me".into()),
            ..Environment::default()
        };
        let dir = |environment: &Environment| environment.certificates().dir;
        assert_eq!(dir(&environment), Path::new("/home/me/.docker"));
        environment.config = Some("/config".into());
        assert_eq!(dir(&environment), Path::new("/config"));
        environment.cert_path = Some("/certs".into());
        assert_eq!(dir(&environment), Path::new("/certs"));
        let environment = environment.with_certificates("/given".into());
        assert_eq!(dir(&environment), Path::new("/given"));
    }

    #[test]
    fn only_docker_tls_alone_skips_the_check() {
        for (tls, used, verify) in [
            (TlsMode::Off, false, true),
            (TlsMode::Unverified, true, false),
            (TlsMode::Verified, true, true),
        ] {
            let environment = Environment {
                tls,
                ..Environment::default()
            };
            assert_eq!(environment.uses_tls(), used, "{tls:?}");
            assert_eq!(environment.certificates().verify, verify, "{tls:?}");
            let given = environment.with_certificates("/certs".into());
            assert!(given.uses_tls() && given.certificates().verify, "{tls:?}");
        }
    }

    #[test]
    fn the_system_socket_of_docker_precedes_the_users() {
        assert_eq!(
            shown(&user().docker_sockets()),
            [
                "/var/run/docker.sock",
                "/run/user/1/docker.sock",
                "/home/me/.docker/run/docker.sock",
                "/home/me/.docker/desktop/docker.sock",
                "/home/me/.colima/default/docker.sock",
                "/home/me/.config/colima/default/docker.sock",
                "/home/me/.orbstack/run/docker.sock",
                "/home/me/.rd/docker.sock",
            ]
        );
        let colima = Environment {
            colima_home: Some("/colima".into()),
            home: None,
            runtime_dir: None,
            ..user()
        };
        assert_eq!(
            shown(&colima.docker_sockets()),
            ["/var/run/docker.sock", "/colima/default/docker.sock"]
        );
    }

    #[test]
    fn the_user_sockets_of_podman_precede_the_system() {
        let environment = Environment {
            temp_dir: Some("/tmp/me".into()),
            ..user()
        };
        assert_eq!(
            shown(&environment.podman_sockets()),
            [
                "/run/user/1/podman/podman.sock",
                "/tmp/me/podman/podman-machine-default-api.sock",
                "/home/me/.local/share/containers/podman/machine/podman.sock",
                "/home/me/.local/share/containers/podman/machine/podman-machine-default/podman.sock",
                "/home/me/.local/share/containers/podman/machine/qemu/podman.sock",
                "/run/podman/podman.sock",
            ]
        );
    }
}
