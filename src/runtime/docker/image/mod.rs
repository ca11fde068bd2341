//! Images: pulls, and the credentials of registries.

pub(super) mod credentials;
pub(super) mod pull;
