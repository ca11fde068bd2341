//! The parts of the sandbox server.
