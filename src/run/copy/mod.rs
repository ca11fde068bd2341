//! Files to and from the container of a run.

mod failure;
mod local;
mod options;
mod pack;
mod pipe;
mod unpack;

pub use self::options::{CopyOptions, CopyProgress};

use std::io;
use std::path::Path;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use self::failure::Failure;
use self::pack::Source;
use self::pipe::Part;
use self::unpack::Unpacked;
#[cfg(doc)]
use crate::error::RuntimeError;
use crate::error::{CopyError, Error, Result};
use crate::run::Run;
use crate::runtime::Archive;

/// The maximum number of symbolic links that lead to a file, as in Linux.
const MAX_LINKS: usize = 40;

impl Run {
    /// Copies a file or directory of this machine into the container.
    ///
    /// `into` is the name of the copy, and not the directory that receives it:
    /// `copy_to("target/app", "/work/server")` creates `/work/server`. Its parent must exist.
    ///
    /// The call uses the default [`CopyOptions`]: see [`copy_to_with`](Self::copy_to_with).
    ///
    /// # Errors
    ///
    /// Those of [`copy_to_with`](Self::copy_to_with).
    ///
    /// # Cancel safety
    ///
    /// That of [`copy_to_with`](Self::copy_to_with).
    pub async fn copy_to(&self, path: impl AsRef<Path>, into: &str) -> Result<CopyProgress> {
        self.copy_to_with(path, into, CopyOptions::new()).await
    }

    /// Copies a file or directory of this machine into the container, with options.
    ///
    /// `into` is an absolute path. A file or link of that name is replaced, and a directory is merged
    /// with a copied directory. A file does not replace a directory, nor the reverse. A link at
    /// `path` is followed; links in a directory are copied as links. The files are streamed.
    ///
    /// As with [`copy_in`](Self::copy_in), the engine creates the files, and a tmpfs needs a running
    /// container and, with Docker, `tar` in it.
    ///
    /// # Errors
    ///
    /// - [`Error::Copy`] if the copy is beyond a limit, or `path` has a special file.
    /// - [`Error::Storage`] if a file of this machine cannot be read.
    /// - [`Error::Runtime`] with the errors of [`copy_in`](Self::copy_in). It holds
    ///   [`RuntimeError::NotFound`] if the parent of `into` does not exist.
    ///
    /// After an error, the container may have some of the files, and the last one may be incomplete.
    ///
    /// # Cancel safety
    ///
    /// Not cancel-safe: a dropped call leaves the same as an error.
    pub async fn copy_to_with(
        &self,
        path: impl AsRef<Path>,
        into: &str,
        options: CopyOptions,
    ) -> Result<CopyProgress> {
        let source = Source::Path(path.as_ref().to_owned());
        self.upload(source, into, options).await
    }

    /// Copies a file or directory of the container to this machine.
    ///
    /// `into` is the name of the copy, and not the directory that receives it:
    /// `copy_from("/work/out", "results")` creates `results`. Its parent must exist.
    ///
    /// ```no_run
    /// # async fn results(run: &moat::Run) -> moat::Result<()> {
    /// run.copy_to("fixtures", "/work/in").await?;
    /// run.write_file("/work/config.toml", "threads = 2\n").await?;
    /// let outcome = run.wait().await?; // the spec has KeepContainer::Always
    /// run.copy_from("/work/out", "target/results").await?;
    /// let report = run.read_file("/work/report.json").await?;
    /// run.remove_container().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The call uses the default [`CopyOptions`]: see [`copy_from_with`](Self::copy_from_with).
    ///
    /// # Errors
    ///
    /// Those of [`copy_from_with`](Self::copy_from_with).
    ///
    /// # Cancel safety
    ///
    /// That of [`copy_from_with`](Self::copy_from_with).
    pub async fn copy_from(&self, path: &str, into: impl AsRef<Path>) -> Result<CopyProgress> {
        self.copy_from_with(path, into, CopyOptions::new()).await
    }

    /// Copies a file or directory of the container to this machine, with options.
    ///
    /// `path` is absolute, and a link there is followed: a `..` in its target removes the name before
    /// it. `into` must not be a directory. A copied
    /// file replaces a file or link of that name; a copied directory replaces nothing. The copy
    /// appears under its name when it is complete, by a rename. It is not synced to the medium.
    ///
    /// **The container is not trusted.** The copy is refused if it has a name that is absolute, has
    /// `..` or occurs twice, a link that leads out of the copy, or a special file: see
    /// [`CopyOptions::skip_special`]. In the target of a link, `..` is allowed only at the front. The
    /// container must not be able to write to the parent of `into`.
    ///
    /// The container may have ended, as with [`copy_out`](Self::copy_out).
    ///
    /// # Errors
    ///
    /// - [`Error::Copy`] if the copy is beyond a limit or refused, or `into` exists.
    /// - [`Error::Storage`] if a file of this machine cannot be written.
    /// - [`Error::Runtime`] with the errors of [`copy_out`](Self::copy_out). It holds
    ///   [`RuntimeError::NotFound`] if `path` does not exist.
    ///
    /// An error leaves nothing behind. If this process is killed, a directory `.moat-copy-ID`
    /// remains next to `into`.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. A dropped call leaves nothing behind, unless the copy was complete. A thread
    /// removes the incomplete copy shortly afterwards.
    pub async fn copy_from_with(
        &self,
        path: &str,
        into: impl AsRef<Path>,
        options: CopyOptions,
    ) -> Result<CopyProgress> {
        let into = into.as_ref().to_owned();
        let ((), progress) = self
            .download(path, move |parts| unpack::unpack(parts, &into, &options))
            .await?;
        Ok(progress)
    }

    /// Returns the content of a file of the container, at most 64 MiB.
    ///
    /// `path` is absolute, and a link there is followed, as by [`copy_from_with`](Self::copy_from_with).
    ///
    /// # Errors
    ///
    /// Those of [`read_file_with`](Self::read_file_with).
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        self.read_file_with(path, CopyOptions::new()).await
    }

    /// Returns the content of a file of the container, with options.
    ///
    /// Only [`CopyOptions::max_bytes`] and [`CopyOptions::progress`] have an effect.
    ///
    /// # Errors
    ///
    /// - [`Error::Copy`] if `path` is not a regular file, or beyond the limit.
    /// - [`Error::Runtime`] with the errors of [`copy_out`](Self::copy_out). It holds
    ///   [`RuntimeError::NotFound`] if `path` does not exist.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn read_file_with(&self, path: &str, options: CopyOptions) -> Result<Vec<u8>> {
        let options = options.for_one_file();
        let (content, _) = self
            .download(path, move |parts| unpack::read_file(parts, &options))
            .await?;
        Ok(content)
    }

    /// Creates a file in the container, or replaces it.
    ///
    /// `path` is absolute, and its directory must exist. The file belongs to root and has the mode
    /// `0o644`: see [`CopyOptions::owner`].
    ///
    /// # Errors
    ///
    /// Those of [`copy_to_with`](Self::copy_to_with).
    ///
    /// # Cancel safety
    ///
    /// That of [`copy_to_with`](Self::copy_to_with).
    pub async fn write_file(&self, path: &str, bytes: impl Into<Bytes>) -> Result<()> {
        self.write_file_with(path, bytes, CopyOptions::new()).await
    }

    /// Creates a file in the container, or replaces it, with options.
    ///
    /// # Errors
    ///
    /// Those of [`copy_to_with`](Self::copy_to_with).
    ///
    /// # Cancel safety
    ///
    /// That of [`copy_to_with`](Self::copy_to_with).
    pub async fn write_file_with(
        &self,
        path: &str,
        bytes: impl Into<Bytes>,
        options: CopyOptions,
    ) -> Result<()> {
        let source = Source::Content(bytes.into());
        self.upload(source, path, options).await.map(|_| ())
    }

    /// Returns a tar archive of the file or directory at `path` in the container.
    ///
    /// On a tmpfs, which Docker does not see, the container's own `tar` packs the archive. Treat its
    /// names as untrusted. The archive of a directory above a tmpfs lacks the content of the tmpfs.
    ///
    /// The container may be running, or have ended if the runtime has
    /// [`Capabilities::copy_ended`](crate::runtime::Capabilities::copy_ended). To copy from a
    /// container after its run, keep the container: see
    /// [`KeepContainer`](crate::spec::KeepContainer).
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`] if the path cannot be read. It holds
    /// [`RuntimeError::NotFound`] if the file or the container does not exist.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. The archive is read as it is polled.
    pub async fn copy_out(&self, path: &str) -> Result<Archive> {
        let container = self.container()?;
        Ok(self.context().runtime.copy_out(&container, path).await?)
    }

    /// Unpacks a tar archive into the directory at `path` in the container.
    ///
    /// The engine unpacks the archive as root, with the owners that it names. Docker cannot do that on
    /// a tmpfs: there, the container's own `tar` unpacks it as the user of the container, while the
    /// container runs. An archive for a directory above a tmpfs must have no file on the tmpfs;
    /// symbolic links in its names are not followed for this check. A file does not replace a
    /// directory, nor the reverse.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`] if the archive cannot be unpacked. It holds:
    ///
    /// - [`RuntimeError::NotFound`] if the directory or the container does not exist.
    /// - [`RuntimeError::Conflict`] if the directory is on a tmpfs of a container that does not run.
    /// - [`RuntimeError::Rejected`] if the directory is on a tmpfs of a container without `tar`, or if
    ///   the archive has a file on a tmpfs below it. The files before that one are copied.
    ///
    /// # Cancel safety
    ///
    /// Not cancel-safe: a dropped call may leave part of the archive in the container.
    pub async fn copy_in(&self, path: &str, archive: Archive) -> Result<()> {
        let container = self.container()?;
        let runtime = &self.context().runtime;
        Ok(runtime.copy_in(&container, path, archive).await?)
    }

    /// Packs `source` on a thread, and sends it to the container.
    async fn upload(
        &self,
        source: Source,
        into: &str,
        options: CopyOptions,
    ) -> Result<CopyProgress> {
        let (parent, name) = split(into).map_err(|error| failed(error, into))?;
        let (parts, receiver) = pipe::channel();
        let packing = thread(into, move || pack::pack(&source, &name, parts, &options))?;
        let sent = self.copy_in(&parent, pipe::archive(receiver)).await;
        match (finished(into, packing).await?, sent) {
            (Err(Failure::Closed) | Ok(_), Err(error)) => Err(error),
            (Err(Failure::Closed), Ok(())) => {
                let failure = CopyError::InvalidArchive("it was not read to its end".into());
                Err(failed(failure, into))
            }
            (Err(failure), _) => Err(failure.at(into)),
            (Ok(progress), Ok(())) => Ok(progress),
        }
    }

    /// Reads `path` on a thread, and follows links.
    async fn download<T: Send + 'static>(
        &self,
        path: &str,
        unpack: impl Fn(mpsc::Receiver<Part>) -> Result<Unpacked<T>, Failure> + Clone + Send + 'static,
    ) -> Result<(T, CopyProgress)> {
        let mut place = path.to_owned();
        for _ in 0..MAX_LINKS {
            let (parent, name) = split(&place).map_err(|error| failed(error, path))?;
            let archive = self.copy_out(&join(&parent, &name)).await?;
            let (parts, receiver) = pipe::channel();
            let unpack = unpack.clone();
            let unpacking = thread(path, move || unpack(receiver))?;
            // At the same time: the thread reads the parts.
            let (sent, unpacked) =
                tokio::join!(pipe::send(archive, parts), finished(path, unpacking));
            sent?;
            match unpacked?.map_err(|failure| failure.at(path))? {
                Unpacked::Copied(value, progress) => return Ok((value, progress)),
                Unpacked::Link(target) => match target.to_str() {
                    Some(target) if target.starts_with('/') => place = target.to_owned(),
                    Some(target) => place = join(&parent, target),
                    None => return Err(failed(CopyError::InvalidPath("is not UTF-8"), path)),
                },
            }
        }
        Err(failed(CopyError::InvalidPath("has too many links"), path))
    }
}

fn failed(error: CopyError, path: &str) -> Error {
    Failure::from(error).at(path)
}

fn thread<T: Send + 'static>(
    path: &str,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>> {
    pipe::on_thread(job).map_err(|error| Error::storage("copy", path, error))
}

async fn finished<T>(path: &str, result: oneshot::Receiver<T>) -> Result<T> {
    let panicked = |_| Error::storage("copy", path, io::Error::other("the copy panicked"));
    result.await.map_err(panicked)
}

fn join(parent: &str, name: &str) -> String {
    format!("{}/{name}", parent.trim_end_matches('/'))
}

/// Returns the parent and the name of an absolute path, without `.`, `..` and empty parts.
fn split(path: &str) -> Result<(String, String), CopyError> {
    if !path.starts_with('/') {
        return Err(CopyError::InvalidPath("is not absolute"));
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    match parts.pop() {
        Some(name) => Ok((format!("/{}", parts.join("/")), name.to_owned())),
        None => Err(CopyError::InvalidPath("has no name")),
    }
}
