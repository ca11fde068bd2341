//! Files to and from a container, as tar archives.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bollard::query_parameters::{DownloadFromContainerOptions, UploadToContainerOptions};
use futures::StreamExt;
use tokio::time::timeout;

use super::errors::Failure;
use super::{BOUND, Docker, checked};
use crate::error::RuntimeError;
use crate::runtime::Archive;
use crate::spec::ContainerId;

impl Docker {
    /// A tar archive of what is at `path`. It resolves when its first bytes are there.
    pub(super) async fn download(
        &self,
        container: &ContainerId,
        path: &str,
    ) -> Result<Archive, RuntimeError> {
        const OPERATION: &str = "copy out of the container";
        let id = checked(container).map_err(self.error(OPERATION))?;
        let options = DownloadFromContainerOptions {
            path: path.to_owned(),
        };
        let address = self.address.clone();
        let mut archive = self
            .client
            .download_from_container(id, Some(options))
            .map(move |part| part.map_err(|e| Failure::from(e).error(OPERATION, &address)))
            .boxed();
        // A refusal comes in the place of the first bytes.
        let first = timeout(BOUND, archive.next()).await;
        let first = first.map_err(|_| Failure::Timeout(BOUND).error(OPERATION, &self.address))?;
        let first = first.transpose()?;
        let first = futures::stream::iter(first.map(Ok));
        // After an error there is nothing.
        let mut broken = false;
        let parts = first.chain(archive).take_while(move |part| {
            let go_on = !broken;
            broken = part.is_err();
            std::future::ready(go_on)
        });
        Ok(parts.boxed())
    }

    /// Unpacks `archive` at `path`. Unbounded in time.
    pub(super) async fn upload(
        &self,
        container: &ContainerId,
        path: &str,
        archive: Archive,
    ) -> Result<(), RuntimeError> {
        const OPERATION: &str = "copy into the container";
        let id = checked(container).map_err(self.error(OPERATION))?;
        let options = UploadToContainerOptions {
            path: path.to_owned(),
            ..UploadToContainerOptions::default()
        };
        // The archive's own error is the one to tell: the client only says that it had one.
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
        let uploaded = self.client.upload_to_container(id, Some(options), body);
        uploaded.await.map_err(|error| {
            let failure = Failure::from(error).error(OPERATION, &self.address);
            let mut cause = cause.lock().unwrap_or_else(PoisonError::into_inner);
            cause.take().unwrap_or(failure)
        })
    }
}
