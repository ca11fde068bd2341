//! From a runtime's streams to records in a log. It knows no engine, and no file.

mod evidence;
mod fidelity;
mod hub;
mod lines;
mod progress;
mod pump;
mod replay;

pub(crate) use evidence::{TAIL_RECORDS, Tail};
pub(crate) use hub::{Hub, Piece, Pieces};
pub(crate) use progress::Progress;
pub(crate) use pump::{Capture, PumpEnd, Reading, Signals, until};
