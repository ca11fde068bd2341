//! Archives that the engine packs and unpacks.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::query_parameters::{DownloadFromContainerOptions, UploadToContainerOptions};
use futures::StreamExt;
use tokio::time::sleep;

use super::{COPY_IN, COPY_OUT, until_error};
use crate::error::RuntimeError;
use crate::runtime::Archive;
use crate::runtime::docker::client::{Client, path_segment};
use crate::runtime::docker::errors::{Failure, Refusal};
use crate::spec::ContainerId;

/// The number of requests for an archive, while the engine sends an empty one.
const DOWNLOAD_TRIES: usize = 10;
/// The pause after an empty archive.
const DOWNLOAD_RETRY_PAUSE: Duration = Duration::from_millis(100);

impl Client {
    /// Reads `path` as a tar archive. Resolves once the first bytes arrive.
    ///
    /// Podman unmounts a container shortly after its end. An archive that it makes meanwhile is empty.
    pub(in crate::runtime::docker) async fn download(
        &self,
        container: &ContainerId,
        path: &str,
    ) -> Result<Archive, RuntimeError> {
        let tries = async {
            for _ in 0..DOWNLOAD_TRIES {
                if let Some(archive) = self.try_download(container, path).await? {
                    return Ok(archive);
                }
                sleep(DOWNLOAD_RETRY_PAUSE).await;
            }
            let empty = Failure::Broken("the engine sent an empty archive".into());
            Err(self.error(COPY_OUT)(empty))
        };
        self.within_timeout(COPY_OUT, tries).await
    }

    /// Returns `None` if the archive is empty. A whole one has at least its end blocks.
    async fn try_download(
        &self,
        container: &ContainerId,
        path: &str,
    ) -> Result<Option<Archive>, RuntimeError> {
        let id = path_segment(container).map_err(self.error(COPY_OUT))?;
        let options = DownloadFromContainerOptions {
            path: path.to_owned(),
        };
        let address = self.address.clone();
        let mut archive = self
            .bollard
            .download_from_container(id, Some(options))
            .map(move |part| part.map_err(|error| file_error(error.into(), COPY_OUT, &address)))
            .boxed();
        // A refusal arrives as the first item.
        let Some(first) = archive.next().await.transpose()? else {
            return Ok(None);
        };
        let first = futures::stream::iter([Ok(first)]);
        Ok(Some(until_error(first.chain(archive))))
    }

    /// Unpacks `archive` at `path`, without a timeout.
    pub(in crate::runtime::docker) async fn upload(
        &self,
        container: &ContainerId,
        path: &str,
        archive: Archive,
    ) -> Result<(), RuntimeError> {
        let id = path_segment(container).map_err(self.error(COPY_IN))?;
        let options = UploadToContainerOptions {
            path: path.to_owned(),
            // Otherwise, a file replaces a directory and all that is in it.
            no_overwrite_dir_non_dir: Some("true".into()),
            ..UploadToContainerOptions::default()
        };
        // bollard only reports that the archive failed. The cause is kept here.
        let cause = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&cause);
        let parts = archive.map(move |part| {
            part.map_err(|error| {
                let text = error.to_string();
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                io::Error::other(text)
            })
        });
        let body = bollard::body_try_stream(parts);
        let uploaded = self.bollard.upload_to_container(id, Some(options), body);
        uploaded.await.map_err(|error| {
            let failure = file_error(error.into(), COPY_IN, &self.address);
            let mut cause = cause.lock().unwrap_or_else(PoisonError::into_inner);
            cause.take().unwrap_or(failure)
        })
    }
}

/// Creates the error of a copy.
///
/// A missing file is an error like a missing container, and the engine's message names it.
fn file_error(failure: Failure, operation: &'static str, address: &str) -> RuntimeError {
    match failure.refusal(Refusal::is_no_such_file) {
        Some(refusal) => RuntimeError::NotFound {
            operation,
            reason: refusal.message.clone(),
        },
        None => failure.error(operation, address),
    }
}
