//! The audit file and its default writer, and the documents that describe them.

#![allow(unreachable_pub, reason = "no other crate uses a test")]

mod api;
mod auto_traits;
mod bytes;
mod contradictions;
mod damage;
mod docs;
mod durability;
mod follow;
mod golden;
mod resume;
