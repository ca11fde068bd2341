//! Bad input: hostile values in a spec, and files that are not what moat has written.
#![cfg(feature = "testing")]
#![allow(unreachable_pub)]

mod files;
mod records;
mod specs;
mod stage;
