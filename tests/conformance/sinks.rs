//! The harnesses of the sinks in this crate.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;

use moat::LogSink;
use moat::audit::LOG_FILE;
use moat::conformance::{SinkHarness, Unsupported};
use moat::sink::{Faulty, Memory, RunPlace, SinkCall, SinkFault};

fn unsupported(error: io::Error) -> Unsupported {
    error.to_string().into()
}

/// A sink with the logs of `Jsonl`.
pub struct JsonlHarness<F>(pub F);

impl<S: LogSink, F: Fn() -> S + Send + Sync + 'static> SinkHarness for JsonlHarness<F> {
    fn sink(&self) -> Arc<dyn LogSink> {
        Arc::new(self.0())
    }

    fn tear(&self, place: &RunPlace) -> Result<(), Unsupported> {
        let file = OpenOptions::new()
            .append(true)
            .open(place.dir.join(LOG_FILE));
        let torn = file.and_then(|mut file| file.write_all(b"{\"ts\":\"2026-01-01T00:0"));
        torn.map_err(unsupported)
    }

    fn damage(&self, place: &RunPlace) -> Result<(), Unsupported> {
        let path = place.dir.join(LOG_FILE);
        let text = fs::read_to_string(&path).map_err(unsupported)?;
        fs::write(&path, text.replace("line 1", "line 7")).map_err(unsupported)
    }

    fn spoil(&self, place: &RunPlace) -> Result<(), Unsupported> {
        // A log cannot be sealed if its file was removed.
        fs::remove_file(place.dir.join(LOG_FILE)).map_err(unsupported)
    }
}

/// The in-memory sink.
pub struct MemoryHarness(pub Memory);

impl SinkHarness for MemoryHarness {
    fn sink(&self) -> Arc<dyn LogSink> {
        Arc::new(self.0.clone())
    }

    fn spoil(&self, place: &RunPlace) -> Result<(), Unsupported> {
        self.0.fail(&place.run);
        Ok(())
    }
}

/// A sink with injected faults.
pub struct FaultyHarness(pub Faulty);

impl SinkHarness for FaultyHarness {
    fn sink(&self) -> Arc<dyn LogSink> {
        Arc::new(self.0.clone())
    }

    fn spoil(&self, place: &RunPlace) -> Result<(), Unsupported> {
        let run = place.run.clone();
        let fault = SinkFault::error().at(move |place| place.run == run);
        let calls = [SinkCall::Append, SinkCall::Sync, SinkCall::Seal];
        self.0.fault(fault.on(calls).times(1));
        Ok(())
    }
}
