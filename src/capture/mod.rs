//! Capture: from a runtime's streams to records in a log.
//!
//! This module knows no engine and no file. A [`Capture`] pumps one source after another into a
//! run's log, and publishes the same bytes to live subscribers.

mod evidence;
mod fidelity;
mod hub;
mod lines;
mod mask;
mod progress;
mod pump;
mod queue;
mod replay;
mod signals;
mod source;
mod stats;

pub(crate) use evidence::Comparison;
pub(crate) use hub::{Hub, LiveChunk, LiveReceiver, Unlogged};
#[cfg(any(test, fuzzing, feature = "__bench"))]
pub(crate) use lines::LineAssembler;
#[cfg(any(test, fuzzing))]
pub(crate) use lines::MAX_RECORD_BYTES;
pub(crate) use mask::{Masks, OutputMasker};
pub(crate) use progress::Progress;
pub(crate) use pump::{Capture, Masking, PumpEnd};
pub(crate) use signals::{Signals, until};
pub(crate) use source::Reading;
pub(crate) use stats::{CaptureStats, Counts};
