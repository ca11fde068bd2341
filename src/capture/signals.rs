//! Signals between a pump and the monitor that runs it.

use std::future::pending;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::audit::Event;

/// The signals between a running pump and its monitor.
#[derive(Debug)]
pub(crate) struct Signals {
    /// The monitor's records, to be written between records of output.
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    /// Records of standard input, received no faster than the sink writes them.
    pub(crate) stdin_records: mpsc::Receiver<Event>,
    /// Cancelled by the monitor once the container has exited.
    pub(crate) exited: CancellationToken,
    /// Cancelled by the manager on shutdown.
    ///
    /// The pump then writes its queue, and reads no more.
    pub(crate) shutdown: CancellationToken,
    /// Cancelled by the pump when the output limit is reached.
    pub(crate) limit: CancellationToken,
    /// Cancelled by the pump when its first write has finished, or has failed.
    pub(crate) recorded: CancellationToken,
}

/// One signal for the pump.
#[derive(Debug)]
pub(super) enum Signal {
    /// A record to write.
    Record(Event),
    /// The manager shuts down.
    Shutdown,
    /// The container has exited.
    Exited,
}

/// The signals, besides the monitor's records, that a pump can act on now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interest {
    pub(super) stdin: bool,
    pub(super) shutdown: bool,
    pub(super) exit: bool,
}

impl Signals {
    /// Signals for a container that has exited, without records to write in between.
    pub(crate) fn after_exit() -> Self {
        let exited = CancellationToken::new();
        exited.cancel();
        Self {
            events: mpsc::unbounded_channel().1,
            stdin_records: mpsc::channel(1).1,
            exited,
            shutdown: CancellationToken::new(),
            limit: CancellationToken::new(),
            recorded: CancellationToken::new(),
        }
    }

    /// Takes the records that no pump has received.
    pub(crate) fn drain(&mut self) -> Vec<Event> {
        let events = std::iter::from_fn(|| self.events.try_recv().ok());
        let stdin_records = std::iter::from_fn(|| self.stdin_records.try_recv().ok());
        events.chain(stdin_records).collect()
    }

    /// Waits for the next signal, the monitor's records first. Cancel-safe.
    pub(super) async fn next(&mut self, interest: Interest) -> Signal {
        tokio::select! {
            biased;
            Some(event) = self.events.recv() => Signal::Record(event),
            Some(event) = self.stdin_records.recv(), if interest.stdin => Signal::Record(event),
            () = self.shutdown.cancelled(), if interest.shutdown => Signal::Shutdown,
            () = self.exited.cancelled(), if interest.exit => Signal::Exited,
            else => pending().await,
        }
    }
}

/// Waits until `deadline`, or forever without one. Cancel-safe.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn interest(stdin: bool, shutdown: bool, exit: bool) -> Interest {
        Interest {
            stdin,
            shutdown,
            exit,
        }
    }

    fn text(signal: Option<Signal>) -> String {
        match signal {
            Some(Signal::Record(Event::Note { text, .. })) => text,
            other => format!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn records_come_first_and_only_wanted_signals() {
        let (events, received) = mpsc::unbounded_channel();
        let (stdin, stdin_records) = mpsc::channel(1);
        let mut signals = Signals {
            events: received,
            stdin_records,
            ..Signals::after_exit()
        };
        signals.shutdown.cancel();
        stdin.try_send(Event::note("input")).unwrap();
        events.send(Event::note("event")).unwrap();

        let all = interest(true, true, true);
        let none = interest(false, false, false);
        let now = |signals: &mut Signals, interest| text(signals.next(interest).now_or_never());
        assert_eq!(now(&mut signals, none), "event");
        assert_eq!(now(&mut signals, none), "None");
        assert_eq!(
            now(&mut signals, interest(false, true, true)),
            "Some(Shutdown)"
        );
        assert_eq!(
            now(&mut signals, interest(false, false, true)),
            "Some(Exited)"
        );
        assert_eq!(now(&mut signals, all), "input");
        assert_eq!(now(&mut signals, all), "Some(Shutdown)");

        // Closed channels wake nothing.
        drop((events, stdin));
        assert_eq!(now(&mut signals, none), "None");
        assert!(signals.drain().is_empty());
    }
}
