//! Faults of calls and streams.

use crate::error::RuntimeError;

/// A fault of a call.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The call fails without an effect.
    Error(RuntimeError),
    /// The call takes effect, and its answer is lost.
    AnswerLost,
    /// The call takes no effect and is never answered.
    Hang,
    /// The call takes effect, and its stream breaks after this many bytes.
    ///
    /// A call without a stream ignores this fault.
    Stream(u64, Break),
}

/// The way in which a stream breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Break {
    /// The stream ends cleanly and is truncated.
    End,
    /// The stream ends with an error.
    Error,
    /// The stream yields nothing more, and does not end.
    Stall,
}

/// The part of a fault that applies after the call has taken effect.
#[derive(Debug, Default)]
pub(super) struct PendingFault {
    answer_lost: bool,
    /// The byte at which the call's stream breaks, and the way in which it breaks.
    pub(super) cut: Option<(u64, Break)>,
}

impl PendingFault {
    /// Converts `fault`. The future of [`Fault::Hang`] never resolves.
    pub(super) async fn new(fault: Option<Fault>) -> Result<Self, RuntimeError> {
        let (answer_lost, cut) = match fault {
            None => (false, None),
            Some(Fault::AnswerLost) => (true, None),
            Some(Fault::Stream(after, how)) => (false, Some((after, how))),
            Some(Fault::Error(error)) => return Err(error),
            Some(Fault::Hang) => std::future::pending().await,
        };
        Ok(Self { answer_lost, cut })
    }

    /// Answers the call. Fails if the fault loses the answer.
    pub(super) fn answer(&self, operation: &'static str) -> Result<(), RuntimeError> {
        if self.answer_lost {
            return Err(RuntimeError::Broken {
                operation,
                reason: "the answer was lost".into(),
            });
        }
        Ok(())
    }
}
