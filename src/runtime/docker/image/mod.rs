//! Images: pulls, and the credentials of registries.

mod credentials;
mod pull;
