//! Mounts: file systems in a container.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{InvalidSpec, RunSpec};

/// A file system that is mounted into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Mount {
    /// A file or directory of the engine's host.
    Bind {
        /// An absolute path on the engine's host. It must exist.
        source: PathBuf,
        /// An absolute path in the container.
        target: String,
        /// True if the container cannot write to it.
        read_only: bool,
        /// The label for SELinux; `None`: the files keep their labels.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        relabel: Option<Relabel>,
    },
    /// A named volume.
    ///
    /// The engine creates a missing volume. moat removes only volumes that a manager owns: see
    /// [`Manager::volume`](crate::manager::Manager::volume).
    Volume {
        /// The volume's name.
        name: String,
        /// An absolute path in the container.
        target: String,
        /// True if the container cannot write to it.
        read_only: bool,
        /// The label for SELinux; `None`: the engine's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        relabel: Option<Relabel>,
    },
    /// A file system in memory that ends with the container.
    Tmpfs {
        /// An absolute path in the container.
        target: String,
        /// The maximum size, in bytes.
        ///
        /// `None`: the engine's default, half of the memory.
        size: Option<u64>,
        /// True if the container cannot write to it.
        read_only: bool,
    },
}

/// The label that SELinux gives to the files of a mount.
///
/// The label is changed on the host, for the mounted directory and all that is in it, and stays
/// after the run. Do not relabel a directory of the system, such as `/usr` or `/home`: programs of
/// the host may lose access to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Relabel {
    /// All containers can use the files: Docker's option `z`.
    Shared,
    /// Only this container can use the files: Docker's option `Z`.
    Private,
}

impl Mount {
    /// Creates a mount of a file or directory of the engine's host: see [`RunSpec::bind`].
    pub fn bind(source: impl Into<PathBuf>, target: impl Into<String>) -> Self {
        Self::Bind {
            source: source.into(),
            target: target.into(),
            read_only: false,
            relabel: None,
        }
    }

    /// Creates a mount of a named volume.
    pub fn volume(name: impl Into<String>, target: impl Into<String>) -> Self {
        Self::Volume {
            name: name.into(),
            target: target.into(),
            read_only: false,
            relabel: None,
        }
    }

    /// Creates a file system in memory, limited to `size` bytes.
    pub fn tmpfs(target: impl Into<String>, size: Option<u64>) -> Self {
        Self::Tmpfs {
            target: target.into(),
            size,
            read_only: false,
        }
    }

    /// Makes the mount read-only for the container. Default: false.
    pub fn read_only(mut self, value: bool) -> Self {
        match &mut self {
            Self::Bind { read_only, .. }
            | Self::Volume { read_only, .. }
            | Self::Tmpfs { read_only, .. } => *read_only = value,
        }
        self
    }

    /// Relabels the files for SELinux, so that the container can use them. Default: no change.
    ///
    /// Without SELinux on the engine's host, it has no effect. A tmpfs is always labeled for its
    /// container. With this setting, a path with a colon is refused, and so is a Kubernetes volume.
    ///
    /// Docker creates a missing source of such a bind mount. moat refuses it instead, if the
    /// engine's files are within reach of this process.
    ///
    /// ```
    /// use moat::RunSpec;
    /// use moat::spec::{Mount, Relabel};
    ///
    /// let cache = Mount::bind("/srv/cache", "/cache").relabel(Relabel::Shared);
    /// let spec = RunSpec::new("busybox:1.36").mount(cache);
    /// # spec.validate().unwrap();
    /// ```
    pub fn relabel(mut self, value: Relabel) -> Self {
        match &mut self {
            Self::Bind { relabel, .. } | Self::Volume { relabel, .. } => *relabel = Some(value),
            Self::Tmpfs { .. } => {}
        }
        self
    }

    /// Returns the label of a mount that is relabeled, with its source and whether it is read-only.
    #[cfg(feature = "docker")]
    pub(crate) fn relabeled(&self) -> Option<(Relabel, std::borrow::Cow<'_, str>, bool)> {
        match self {
            Self::Bind {
                source,
                read_only,
                relabel: Some(relabel),
                ..
            } => Some((*relabel, source.to_string_lossy(), *read_only)),
            Self::Volume {
                name,
                read_only,
                relabel: Some(relabel),
                ..
            } => Some((*relabel, name.into(), *read_only)),
            _ => None,
        }
    }

    /// Returns the path in the container.
    pub fn target(&self) -> &str {
        match self {
            Self::Bind { target, .. }
            | Self::Volume { target, .. }
            | Self::Tmpfs { target, .. } => target,
        }
    }
}

/// Parses `SOURCE:TARGET[:OPTIONS]`, the syntax of `docker run --volume`.
///
/// A source with a path separator, `.` and `..` are a bind mount; other sources name a volume.
/// A relative path stays relative. [`RunSpec::validate`] refuses it, so make it absolute first.
///
/// Options are separated by commas: `ro`, `rw`, `z` and `Z` for SELinux (see [`Relabel`]), and
/// `cached`, `delegated` and `consistent`, which have no effect on Linux. Other options of Docker
/// are refused.
///
/// ```
/// use moat::spec::Mount;
///
/// let mount: Mount = "/srv/cache:/cache:ro".parse()?;
/// assert_eq!(mount.target(), "/cache");
/// assert!("/srv/cache:/cache:rx".parse::<Mount>().is_err());
/// # Ok::<(), moat::spec::InvalidSpec>(())
/// ```
impl FromStr for Mount {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let refuse = |reason: String| InvalidSpec::new("mounts", format!("{text:?}: {reason}"));
        let (source, rest) = split_source(text)
            .ok_or_else(|| refuse("it is not SOURCE:TARGET[:OPTIONS]".to_owned()))?;
        let (target, options) = match rest.split_once(':') {
            Some((target, options)) => (target, Some(options)),
            None => (rest, None),
        };
        if source.is_empty() || !target.starts_with('/') {
            let reason = "it is not SOURCE:TARGET[:OPTIONS] with an absolute TARGET";
            return Err(refuse(reason.to_owned()));
        }
        let options = options.map_or(Ok(Options::default()), Options::parse);
        let Options { mode, relabel } = options.map_err(refuse)?;
        let is_path = source.contains(['/', '\\']) || source == "." || source == "..";
        let mount = match is_path {
            true => Self::bind(source, target),
            false => Self::volume(source, target),
        };
        let mount = mount.read_only(mode == Some("ro"));
        Ok(match relabel {
            Some(relabel) => mount.relabel(relabel),
            None => mount,
        })
    }
}

/// Splits at the first colon that does not follow the letter of a Windows drive.
fn split_source(text: &str) -> Option<(&str, &str)> {
    let is_drive = text.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
        && (text[1..].starts_with(":\\") || text[1..].starts_with(":/"))
        && text[2..].contains(':');
    let from = if is_drive { 2 } else { 0 };
    let colon = from + text[from..].find(':')?;
    Some((&text[..colon], &text[colon + 1..]))
}

/// The options of a mount.
#[derive(Default)]
struct Options<'a> {
    /// `ro` or `rw`.
    mode: Option<&'a str>,
    relabel: Option<Relabel>,
}

impl<'a> Options<'a> {
    /// Parses options, separated by commas. An error has the reason.
    fn parse(options: &'a str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for option in options.split(',') {
            match option {
                "ro" | "rw" if parsed.mode.is_some_and(|mode| mode != option) => {
                    return Err("it is both `ro` and `rw`".to_owned());
                }
                "ro" | "rw" => parsed.mode = Some(option),
                "z" | "Z" => {
                    let relabel = match option {
                        "z" => Relabel::Shared,
                        _ => Relabel::Private,
                    };
                    if parsed.relabel.is_some_and(|other| other != relabel) {
                        return Err("it is both `z` and `Z`".to_owned());
                    }
                    parsed.relabel = Some(relabel);
                }
                "cached" | "delegated" | "consistent" => {}
                _ => {
                    return Err(format!(
                        "the option {option:?} is not supported; `ro`, `rw`, `z`, `Z`, `cached`, \
                         `delegated` and `consistent` are"
                    ));
                }
            }
        }
        Ok(parsed)
    }
}

impl RunSpec {
    /// Mounts a file or directory of the engine's host.
    ///
    /// Both paths are absolute. A missing `source` fails the start. Podman creates it instead if
    /// its files are out of this process's reach. With Podman, a comma, a quote or a line break in
    /// a path is refused.
    pub fn bind(self, source: impl Into<PathBuf>, target: impl Into<String>) -> Self {
        self.mount(Mount::bind(source, target))
    }

    /// Mounts a named volume. A [`Volume`](crate::manager::Volume) can be given by reference.
    pub fn volume(self, name: impl Into<String>, target: impl Into<String>) -> Self {
        self.mount(Mount::volume(name, target))
    }

    /// Mounts a file system in memory, limited to `size` bytes.
    pub fn tmpfs(self, target: impl Into<String>, size: Option<u64>) -> Self {
        self.mount(Mount::tmpfs(target, size))
    }

    /// Adds a mount.
    pub fn mount(mut self, mount: Mount) -> Self {
        self.settings.mounts.push(mount);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str, target: &str, read_only: bool) -> Mount {
        Mount::bind(source, target).read_only(read_only)
    }

    #[test]
    fn the_syntax_of_docker_is_parsed() {
        for (text, mount) in [
            ("/tmp:/data", bind("/tmp", "/data", false)),
            ("/tmp:/data:rw", bind("/tmp", "/data", false)),
            ("/tmp:/data:ro", bind("/tmp", "/data", true)),
            ("/tmp:/data:ro,cached", bind("/tmp", "/data", true)),
            ("/tmp:/data:delegated", bind("/tmp", "/data", false)),
            (".:/data", bind(".", "/data", false)),
            ("./x:/data", bind("./x", "/data", false)),
            (r"C:\x:/data:ro", bind(r"C:\x", "/data", true)),
            ("c:/x:/data", bind("c:/x", "/data", false)),
            (
                "cache:/data:ro",
                Mount::volume("cache", "/data").read_only(true),
            ),
            (
                "/tmp:/data:z",
                bind("/tmp", "/data", false).relabel(Relabel::Shared),
            ),
            (
                "./x:/data:ro,Z",
                bind("./x", "/data", true).relabel(Relabel::Private),
            ),
            (
                "cache:/data:z,rw",
                Mount::volume("cache", "/data").relabel(Relabel::Shared),
            ),
        ] {
            assert_eq!(text.parse(), Ok(mount), "{text}");
        }
    }

    #[test]
    fn an_unknown_form_is_refused() {
        for (text, expected) in [
            ("", "is not SOURCE:TARGET"),
            ("/data", "is not SOURCE:TARGET"),
            (":/data", "is not SOURCE:TARGET"),
            ("é:", "absolute TARGET"),
            ("/tmp:data", "absolute TARGET"),
            ("/tmp:", "absolute TARGET"),
            ("/tmp:/data:z,Z", "both `z` and `Z`"),
            ("/tmp:/data:zZ", "the option \"zZ\""),
            ("/tmp:/data:", "the option \"\""),
            ("/tmp:/data:ro,", "the option \"\""),
            ("/tmp:/data:RO", "the option \"RO\""),
            ("/tmp:/data:ro:rw", "the option \"ro:rw\""),
            ("/tmp:/data:rshared", "the option \"rshared\""),
            ("/tmp:/data:nocopy", "the option \"nocopy\""),
            ("/tmp:/data:ro,rw", "both `ro` and `rw`"),
        ] {
            let InvalidSpec { field, reason } = text.parse::<Mount>().unwrap_err();
            assert_eq!(field, "mounts");
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
