//! The audit file and its default writer: format, damage, durability and resumption.

#![allow(unreachable_pub, reason = "no other crate uses a test")]

mod bytes;
mod damage;
mod durability;
mod follow;
mod golden;
mod resume;
