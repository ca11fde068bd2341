//! From a runtime's streams to records in a log. It knows no engine, and no file.

mod evidence;
mod fidelity;
mod hub;
mod lines;
mod progress;
mod pulse;
mod pump;
mod replay;

pub(crate) use evidence::{TAIL_RECORDS, Tail};
pub(crate) use hub::{Hub, Piece, Pieces};
#[cfg(any(test, fuzzing, feature = "__bench"))]
pub(crate) use lines::Lines;
#[cfg(any(test, fuzzing))]
pub(crate) use lines::PIECE;
pub(crate) use progress::Progress;
pub(crate) use pulse::{CaptureStats, Counts};
pub(crate) use pump::{Capture, PumpEnd, Reading, Signals, until};
