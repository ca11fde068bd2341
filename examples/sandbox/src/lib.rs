//! The parts of the sandbox server.

pub mod api;
pub mod body;
pub mod clients;
pub mod command;
pub mod page;
pub mod problem;
pub mod sandbox;
pub mod server;
pub mod session;
