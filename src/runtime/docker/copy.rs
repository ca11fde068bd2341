//! Files to and from a container, as tar archives.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::query_parameters::{DownloadFromContainerOptions, UploadToContainerOptions};
use futures::StreamExt;
use tokio::time::{sleep, timeout};

use super::client::{CALL_TIMEOUT, Client, path_segment};
use super::errors::Failure;
use crate::error::RuntimeError;
use crate::runtime::Archive;
use crate::spec::ContainerId;

/// The number of requests for an archive, while the engine sends an empty one.
const DOWNLOAD_TRIES: usize = 10;
/// The pause after an empty archive.
const DOWNLOAD_RETRY_PAUSE: Duration = Duration::from_millis(100);

impl Client {
    /// Reads `path` as a tar archive. Resolves once the first bytes arrive.
    ///
    /// Podman unmounts a container shortly after its end. An archive that it makes meanwhile is empty.
    pub(super) async fn download(
        &self,
        container: &ContainerId,
        path: &str,
    ) -> Result<Archive, RuntimeError> {
        const OPERATION: &str = "copy out of the container";
        let tries = async {
            for _ in 0..DOWNLOAD_TRIES {
                if let Some(archive) = self.try_download(OPERATION, container, path).await? {
                    return Ok(archive);
                }
                sleep(DOWNLOAD_RETRY_PAUSE).await;
            }
            let empty = Failure::Broken("the engine sent an empty archive".into());
            Err(self.error(OPERATION)(empty))
        };
        let archive = timeout(CALL_TIMEOUT, tries).await;
        archive.unwrap_or_else(|_| Err(self.error(OPERATION)(Failure::Timeout(CALL_TIMEOUT))))
    }

    /// Returns `None` if the archive is empty. A whole one has at least its end blocks.
    async fn try_download(
        &self,
        operation: &'static str,
        container: &ContainerId,
        path: &str,
    ) -> Result<Option<Archive>, RuntimeError> {
        let id = path_segment(container).map_err(self.error(operation))?;
        let options = DownloadFromContainerOptions {
            path: path.to_owned(),
        };
        let address = self.address.clone();
        let mut archive = self
            .bollard
            .download_from_container(id, Some(options))
            .map(move |part| part.map_err(|e| Failure::from(e).error(operation, &address)))
            .boxed();
        // A refusal arrives as the first item.
        let Some(first) = archive.next().await.transpose()? else {
            return Ok(None);
        };
        let first = futures::stream::iter([Ok(first)]);
        // The stream ends after its first error.
        let mut broken = false;
        let parts = first.chain(archive).take_while(move |part| {
            let open = !broken;
            broken = part.is_err();
            std::future::ready(open)
        });
        Ok(Some(parts.boxed()))
    }

    /// Unpacks `archive` at `path`, without a timeout.
    pub(super) async fn upload(
        &self,
        container: &ContainerId,
        path: &str,
        archive: Archive,
    ) -> Result<(), RuntimeError> {
        const OPERATION: &str = "copy into the container";
        let id = path_segment(container).map_err(self.error(OPERATION))?;
        let options = UploadToContainerOptions {
            path: path.to_owned(),
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
            let failure = Failure::from(error).error(OPERATION, &self.address);
            let mut cause = cause.lock().unwrap_or_else(PoisonError::into_inner);
            cause.take().unwrap_or(failure)
        })
    }
}
