//! The images, networks and volumes of an engine.

use std::collections::BTreeMap;

#[cfg(doc)]
use super::Runtime;
use crate::spec::{ResourceKind, RootId};
use crate::timestamp::Timestamp;

/// The arguments of [`Runtime::create_resource`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ResourceRequest<'a> {
    /// The kind of the resource.
    pub kind: ResourceKind,
    /// The name of the resource.
    pub name: &'a str,
    /// The root of the manager. The runtime keeps it in a label of the resource.
    pub root: &'a RootId,
    /// The time after which any manager may remove the resource; `None`: never.
    ///
    /// The runtime keeps it in a label of the resource.
    pub deadline: Option<Timestamp>,
    /// True if the containers of the network reach only each other.
    pub internal: bool,
    /// The labels of the caller.
    pub labels: &'a BTreeMap<String, String>,
}

impl<'a> ResourceRequest<'a> {
    /// Creates a request without a deadline, for a network that reaches the outside, or a volume.
    pub fn new(
        kind: ResourceKind,
        name: &'a str,
        root: &'a RootId,
        labels: &'a BTreeMap<String, String>,
    ) -> Self {
        Self {
            kind,
            name,
            root,
            deadline: None,
            internal: false,
            labels,
        }
    }
}

/// A network or a volume of any root, with the content of its labels.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LabeledResource {
    /// The kind of the resource.
    pub kind: ResourceKind,
    /// The name of the resource.
    pub name: String,
    /// The root that the resource was created for.
    pub root: RootId,
    /// The time after which any manager may remove the resource; `None`: never.
    pub deadline: Option<Timestamp>,
}

impl LabeledResource {
    /// Creates an entry of [`Runtime::find_resources`] without a deadline.
    pub fn new(kind: ResourceKind, name: impl Into<String>, root: RootId) -> Self {
        Self {
            kind,
            name: name.into(),
            root,
            deadline: None,
        }
    }
}

/// An image, as the engine describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// The engine's id, such as `sha256:4f01...`.
    pub id: String,
    /// The names with a tag, such as `busybox:1.36`. Empty for an image without a tag.
    pub tags: Vec<String>,
    /// The names with a digest of a registry, such as `busybox@sha256:9ae9...`.
    ///
    /// An image that was built or loaded on the engine has none.
    pub digests: Vec<String>,
    /// The platform, such as `linux/arm64`.
    ///
    /// `None`: the engine does not report it. [`Runtime::images`] does not ask for it.
    pub platform: Option<String>,
    /// The size of all layers in bytes, as the engine counts it.
    ///
    /// Images share layers, so the sum over several images exceeds the space that they use.
    pub size: u64,
    /// The time at which the image was built. `None`: the image does not state it.
    pub created: Option<Timestamp>,
}

impl ImageInfo {
    /// Creates the description of an image of which only the id is known.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            tags: Vec::new(),
            digests: Vec::new(),
            platform: None,
            size: 0,
            created: None,
        }
    }

    /// Adds a name with a tag.
    pub fn with_tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Adds a name with a digest.
    pub fn with_digest(mut self, digest: impl Into<String>) -> Self {
        self.digests.push(digest.into());
        self
    }

    /// Sets the platform.
    pub fn with_platform(mut self, platform: impl Into<String>) -> Self {
        self.platform = Some(platform.into());
        self
    }

    /// Sets the size in bytes.
    pub fn with_size(mut self, bytes: u64) -> Self {
        self.size = bytes;
        self
    }

    /// Sets the time at which the image was built.
    pub fn with_created(mut self, created: Timestamp) -> Self {
        self.created = Some(created);
        self
    }
}
