//! A sink that shows many runs on one terminal.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use crate::audit::{Batch, Event, RecordRef, Start};
use crate::error::{Result, SinkError};
use crate::outcome::{Seal, Stream};
use crate::sink::printable::{printable, said};
use crate::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};
use crate::spec::RunId;

/// The lines of many runs on one terminal, each behind its run's name, in a colour of its own.
///
/// ```text
/// build | compiling
/// build ! warning: unused variable
/// test  | 1 passed
/// build * exited with code 0; audit complete
/// ```
///
/// `|` is for standard output and terminals, `!` for standard error, `*` for what moat says. A part
/// of a line ends in `…`. Whatever could move the cursor, change colours or ring a bell is spelled
/// out, so no container can touch the lines of another.
///
/// It keeps nothing, so it is no full sink: a run that is resumed has an empty log here, and goes
/// on. Alone it leaves no audit, and writing to a terminal that someone has halted blocks; it is
/// made for [`Fanout::best_effort`](super::Fanout).
#[derive(Clone)]
pub struct Console {
    out: Arc<Mutex<Out>>,
}

struct Out {
    to: Box<dyn Write + Send>,
    colours: bool,
    /// The longest name so far, so that lines stand below each other.
    width: usize,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// On standard output; in colour if that is a terminal and `NO_COLOR` is not set.
    pub fn stdout() -> Self {
        let colours = io::stdout().is_terminal();
        Self::to(io::stdout()).colours(colours && plain_is_not_asked_for())
    }

    /// On standard error; in colour if that is a terminal and `NO_COLOR` is not set.
    pub fn stderr() -> Self {
        let colours = io::stderr().is_terminal();
        Self::to(io::stderr()).colours(colours && plain_is_not_asked_for())
    }

    /// On anything that can be written to, without colours.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        let out = Out {
            to: Box::new(out),
            colours: false,
            width: 0,
        };
        Self {
            out: Arc::new(Mutex::new(out)),
        }
    }

    /// With colours, or without.
    pub fn colours(self, colours: bool) -> Self {
        self.out
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .colours = colours;
        self
    }

    fn log(&self, place: &RunPlace) -> Log {
        let run = &place.run;
        let name = match place.exec {
            None => run.to_string(),
            Some(number) => format!("{run} exec-{number}"),
        };
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.width = out.width.max(name.len());
        Log {
            console: self.clone(),
            run: run.clone(),
            name,
        }
    }
}

fn plain_is_not_asked_for() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[async_trait]
impl LogSink for Console {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        let log = self.log(place);
        let mut batch = Batch::new();
        batch.push_event(Event::Start(Box::new(start.clone())));
        log.show("open", &batch)?;
        Ok(Box::new(log))
    }

    async fn resume(&self, place: &RunPlace, _visit: RecordVisitor) -> Result<Resumed> {
        Ok(Resumed::Open {
            log: Box::new(self.log(place)),
            torn: None,
        })
    }
}

#[derive(Debug)]
struct Log {
    console: Console,
    run: RunId,
    /// Who prints: the run, and which further process in its container.
    name: String,
}

impl Log {
    /// Writes whole lines, at once.
    fn show(&self, operation: &'static str, batch: &Batch) -> Result<()> {
        let mut out = self
            .console
            .out
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let name = format!("{:width$}", self.name, width = out.width);
        // The colours from red to cyan, by the name.
        let colour = 31
            + self.run.as_str().bytes().fold(0u32, |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(byte.into())
            }) % 6;
        let mut text = String::new();
        for record in batch.iter() {
            let (mark, line) = match record {
                RecordRef::Event(event) => ('*', said(event)),
                RecordRef::Output {
                    stream,
                    bytes,
                    partial,
                    ..
                } => {
                    let mark = if stream == Stream::Stderr { '!' } else { '|' };
                    let end = if partial { "\u{2026}" } else { "" };
                    (mark, printable(bytes) + end)
                }
            };
            text.push_str(&if out.colours {
                format!("\x1b[{colour}m{name} {mark}\x1b[0m {line}\n")
            } else {
                format!("{name} {mark} {line}\n")
            });
        }
        let written = out.to.write_all(text.as_bytes());
        written.and_then(|()| out.to.flush()).map_err(|error| {
            SinkError::from(error)
                .operation(operation)
                .run(&self.run)
                .into()
        })
    }
}

#[async_trait]
impl RunLog for Log {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        self.show("append to", &batch)
    }

    async fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    async fn seal(&mut self, seal: Seal) -> Result<Seal> {
        let mut batch = Batch::new();
        batch.push_event(Event::End(Box::new(seal.clone())));
        self.show("seal", &batch)?;
        Ok(seal)
    }
}
