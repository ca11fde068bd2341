//! The sink for events of `tracing`.

use std::sync::{Arc, Mutex};

use moat::runtime::scripted::Script;
use moat::sink::Tracing;
use tracing::field::{Field, Visit as VisitFields};
use tracing::span;

use crate::bench::run_into;

/// Collects the events of one target.
struct Collector(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl VisitFields for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!("{field}={value:?} "));
    }
}

impl tracing::Subscriber for Collector {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "moat::output"
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn each_line_is_an_event_of_tracing() {
    let events = Arc::<Mutex<Vec<String>>>::default();
    tracing::subscriber::set_global_default(Collector(Arc::clone(&events))).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let script = Script::new().stdout("fine\n").stderr("\x1b[2Jnot\n");
    runtime.block_on(run_into(Tracing::new(), "traced", script));
    let mut events = events.lock().unwrap().clone();
    events.retain(|event| event.contains("run=traced"));
    events.sort();
    assert_eq!(
        events,
        [
            "message=\\x1b[2Jnot run=traced stream=\"stderr\" partial=false ",
            "message=fine run=traced stream=\"stdout\" partial=false ",
        ]
    );
}
