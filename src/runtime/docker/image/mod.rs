//! Images: pulls, the credentials of registries, and descriptions.

mod credentials;
mod info;
mod platform;
mod pull;
