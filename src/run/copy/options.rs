//! The options and the progress of a copy.

use std::fmt;
use std::sync::Arc;

/// The default limit on the bytes of a copy: 4 GiB.
const MAX_BYTES: u64 = 4 << 30;
/// The default limit on the bytes that `Run::read_file` returns: 64 MiB.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// The default limit on the entries of a copy.
const MAX_ENTRIES: u64 = 100_000;

/// The options of a copy to or from a container.
///
/// ```
/// use moat::run::CopyOptions;
///
/// let options = CopyOptions::new()
///     .max_bytes(100 << 20)
///     .skip_special(true)
///     .progress(|progress| eprintln!("{} bytes", progress.bytes));
/// ```
#[derive(Clone, Default)]
pub struct CopyOptions {
    max_bytes: Option<u64>,
    max_entries: Option<u64>,
    pub(super) mode: Option<u32>,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) skip_special: bool,
    progress: Option<Arc<dyn Fn(CopyProgress) + Send + Sync>>,
}

impl CopyOptions {
    /// Creates the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of bytes in all files together.
    ///
    /// Default: 4 GiB, and 64 MiB for [`Run::read_file`](crate::run::Run::read_file).
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Sets the maximum number of files, directories and links. Default: 100,000.
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.max_entries = Some(entries);
        self
    }

    /// Sets the permission bits of all files, such as `0o640`.
    ///
    /// A directory also gets the execute bit wherever it has the read bit. Only the bits `0o777` are
    /// used. Default: the bits of the original file, or `0o644` for
    /// [`Run::write_file`](crate::run::Run::write_file). A copy from a container also applies the
    /// umask of this process to the default. It always gives this user full access to a
    /// directory. Windows ignores modes in a copy from a container.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode & 0o777);
        self
    }

    /// Sets the user id and group id of all files.
    ///
    /// Default: root in the container, and the user of this process on this machine. Another owner
    /// on this machine needs the privilege to change owners, and Windows ignores it. Where the
    /// container's own `tar` unpacks, as on a tmpfs with Docker, a container that does not run as
    /// root becomes the owner itself.
    pub fn owner(mut self, user: u32, group: u32) -> Self {
        self.owner = Some((user, group));
        self
    }

    /// Leaves out devices, FIFOs, sockets, and links that lead out of the copied directory.
    ///
    /// [`CopyProgress::skipped`] counts them. Default: false, so such a file fails the copy.
    pub fn skip_special(mut self, skip: bool) -> Self {
        self.skip_special = skip;
        self
    }

    /// Sets a function that is called after each entry and each part of at most 64 KiB.
    ///
    /// The copy waits for it, on a thread that no other work uses.
    pub fn progress(mut self, report: impl Fn(CopyProgress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(report));
        self
    }

    /// Uses the default limit of `Run::read_file`.
    pub(super) fn for_one_file(mut self) -> Self {
        self.max_bytes = self.max_bytes.or(Some(MAX_FILE_BYTES));
        self
    }

    pub(super) fn byte_limit(&self) -> u64 {
        self.max_bytes.unwrap_or(MAX_BYTES)
    }

    pub(super) fn entry_limit(&self) -> u64 {
        self.max_entries.unwrap_or(MAX_ENTRIES)
    }

    pub(super) fn report(&self, progress: CopyProgress) {
        if let Some(report) = &self.progress {
            report(progress);
        }
    }

    /// Returns the mode of a directory with the mode `mode` for its files.
    pub(super) fn dir_mode(mode: u32) -> u32 {
        mode | (mode & 0o444) >> 2
    }
}

impl fmt::Debug for CopyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyOptions")
            .field("max_bytes", &self.byte_limit())
            .field("max_entries", &self.entry_limit())
            .field("mode", &self.mode)
            .field("owner", &self.owner)
            .field("skip_special", &self.skip_special)
            .finish_non_exhaustive()
    }
}

/// The amount that was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CopyProgress {
    /// The number of files, directories and links, without the skipped ones.
    pub entries: u64,
    /// The number of bytes in the files.
    pub bytes: u64,
    /// The number of entries that were left out: see [`CopyOptions::skip_special`].
    pub skipped: u64,
}
