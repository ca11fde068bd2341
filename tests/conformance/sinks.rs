//! The sinks of moat for the suite.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::sync::Arc;

use moat::LogSink;
use moat::audit::LOG_FILE;
use moat::conformance::SinkHarness;
use moat::sink::{Faulty, Memory, RunPlace, SinkCall, SinkFault};

/// A sink with the logs of `Jsonl`.
pub struct OfJsonl<F>(pub F);

impl<S: LogSink, F: Fn() -> S + Send + Sync + 'static> SinkHarness for OfJsonl<F> {
    fn sink(&self) -> Arc<dyn LogSink> {
        Arc::new(self.0())
    }

    fn tear(&self, place: &RunPlace) -> Result<(), String> {
        let file = OpenOptions::new()
            .append(true)
            .open(place.dir.join(LOG_FILE));
        let torn = file.and_then(|mut file| file.write_all(b"{\"ts\":\"2026-01-01T00:0"));
        torn.map_err(|error| error.to_string())
    }

    fn damage(&self, place: &RunPlace) -> Result<(), String> {
        let path = place.dir.join(LOG_FILE);
        let text = fs::read_to_string(&path).map_err(|error| error.to_string())?;
        fs::write(&path, text.replace("line 1", "line 7")).map_err(|error| error.to_string())
    }

    fn spoil(&self, place: &RunPlace) -> Result<(), String> {
        // A file that was moved cannot be sealed.
        fs::remove_file(place.dir.join(LOG_FILE)).map_err(|error| error.to_string())
    }
}

/// The sink in memory.
pub struct OfMemory(pub Memory);

impl SinkHarness for OfMemory {
    fn sink(&self) -> Arc<dyn LogSink> {
        Arc::new(self.0.clone())
    }

    fn spoil(&self, place: &RunPlace) -> Result<(), String> {
        self.0.fail(&place.run);
        Ok(())
    }
}

/// A sink whose faults are injected.
pub struct OfFaulty(pub Faulty);

impl SinkHarness for OfFaulty {
    fn sink(&self) -> Arc<dyn LogSink> {
        Arc::new(self.0.clone())
    }

    fn spoil(&self, place: &RunPlace) -> Result<(), String> {
        let run = place.run.clone();
        let fault = SinkFault::error().at(move |place| place.run == run);
        let calls = [SinkCall::Append, SinkCall::Sync, SinkCall::Seal];
        self.0.fault(fault.on(calls).times(1));
        Ok(())
    }
}
