//! Bundles: one run in a tar archive, with everything that vouches for it.
//!
//! [`Root::export`](crate::Root::export) writes the bundle of a sealed run, and [`verify`] checks a
//! bundle. A bundle needs neither the root nor moat: it has a README that says how to check all of
//! it with `tar`, `sha256sum` and `ssh-keygen`.
//!
//! ```no_run
//! use moat::{Root, RunId, bundle};
//!
//! let root = Root::open("runs")?;
//! root.export_to(&RunId::new("nightly")?, "nightly.tar")?;
//!
//! let verified = bundle::verify("nightly.tar")?;
//! assert!(verified.is_intact(), "{:?}", verified.problems);
//! # Ok::<(), moat::Error>(())
//! ```

mod export;
mod verify;

#[cfg(feature = "sign")]
pub use verify::verify_signed;
pub use verify::{BundleVerification, verify};

/// The text on how to check a bundle by hand.
const README: &str = include_str!("README.md");
const README_FILE: &str = "README.md";
/// The digests of all other files, in the format of `sha256sum`.
const SUMS_FILE: &str = "SHA256SUMS";
