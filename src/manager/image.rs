//! Images of the engine.

use std::fmt;
use std::sync::Arc;

use super::Manager;
use crate::error::{Result, RuntimeError};
use crate::monitor::context::Context;
use crate::runtime::ImageInfo;
use crate::spec::PullOptions;

/// A handle to an image of the engine, by its name or id.
///
/// Created by [`Manager::image`]. A run does not need it: its spec has a pull policy.
///
/// ```no_run
/// # async fn run(manager: &moat::Manager) -> moat::Result<()> {
/// use moat::spec::{Pull, PullOptions};
///
/// let image = manager.image("postgres:17");
/// let options = PullOptions::new().policy(Pull::Missing);
/// let info = image.pull(options.on_progress(|report| println!("{}", report.status))).await?;
/// println!("{} {:?} {} bytes", info.id, info.platform, info.size);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Image {
    context: Arc<Context>,
    name: String,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Image {
    /// Returns the name or id of the image, as the caller gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns true if the engine has the image, for any platform.
    ///
    /// # Errors
    ///
    /// Those of [`inspect`](Self::inspect), except for an image that is missing.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn exists(&self) -> Result<bool> {
        match self.context.runtime.image_inspect(&self.name).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the engine's description of the image.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`](crate::Error::Runtime) with:
    ///
    /// - [`RuntimeError::NotFound`]: the engine does not have the image.
    /// - [`RuntimeError::Unsupported`]: the runtime does not manage images.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn inspect(&self) -> Result<ImageInfo> {
        Ok(self.context.runtime.image_inspect(&self.name).await?)
    }

    /// Pulls the image by the policy in `options`, and returns its description.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidSpec`](crate::Error::InvalidSpec): the name or an option is invalid.
    /// - [`Error::Runtime`](crate::Error::Runtime) with [`RuntimeError::NoSuchImage`]: the image
    ///   does not exist, or access to it is denied.
    /// - [`Error::Runtime`](crate::Error::Runtime) with [`RuntimeError::Timeout`]: the pull made no
    ///   progress.
    /// - Those of [`inspect`](Self::inspect).
    ///
    /// # Cancel safety
    ///
    /// A dropped call ends the pull, or leaves it to the engine. It can be made again.
    pub async fn pull(&self, options: PullOptions) -> Result<ImageInfo> {
        let runtime = &self.context.runtime;
        if !runtime.capabilities().images {
            let (runtime, operation) = (runtime.name(), "pull an image");
            return Err(RuntimeError::Unsupported { runtime, operation }.into());
        }
        let spec = options.spec(&self.name);
        spec.validate()?;
        runtime.validate(&spec)?;
        let secrets = spec.secrets();
        let prepared = runtime.prepare(&spec).await;
        prepared.map_err(|error| error.map_reason(|reason| secrets.redact(reason)))?;
        self.inspect().await
    }

    /// Removes the image. Returns false if the engine does not have it.
    ///
    /// By a name, only that name is removed while the image has others. With `force`, an image is
    /// removed by its id although it has several names, and its name although a container uses it.
    /// The container is not affected, and the engine keeps the layers that it needs. Podman refuses
    /// to remove an image that a container uses, also with `force`.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`](crate::Error::Runtime) with:
    ///
    /// - [`RuntimeError::Conflict`]: a container uses the image, or the id has several names.
    /// - [`RuntimeError::Unsupported`]: the runtime does not manage images.
    ///
    /// # Cancel safety
    ///
    /// The engine may still carry out a dropped call. It can be made again.
    pub async fn remove(&self, force: bool) -> Result<bool> {
        match self.context.runtime.image_remove(&self.name, force).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Manager {
    /// Returns a handle to an image of the engine, by name or id. Makes no call.
    pub fn image(&self, name: impl Into<String>) -> Image {
        Image {
            context: Arc::clone(self.context()),
            name: name.into(),
        }
    }

    /// Lists all images of the engine, in the engine's order.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`](crate::Error::Runtime), for example with
    /// [`RuntimeError::Unsupported`]: the runtime does not manage images.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn images(&self) -> Result<Vec<ImageInfo>> {
        Ok(self.context().runtime.images().await?)
    }
}
