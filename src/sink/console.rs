//! A sink that prints many runs to one terminal.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::audit::{Batch, Event, RecordRef, Start};
use crate::error::{Result, SinkError};
use crate::outcome::{Seal, Stream};
use crate::sink::printable::{describe, printable};
use crate::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};
use crate::spec::RunId;

/// A sink that prints the lines of many runs, each with the name and color of its run.
///
/// ```text
/// build | compiling
/// build ! warning: unused variable
/// test  | 1 passed
/// build * exited with code 0; audit complete
/// ```
///
/// `|` marks standard output and terminals, `!` standard error, and `*` messages of moat. A partial
/// line ends in `…`. Characters that could move the cursor, change colors or ring the bell are
/// escaped, so a container cannot alter the lines of another.
///
/// `Console` stores nothing: a resumed run starts with an empty log. Alone it leaves no audit file,
/// and a suspended terminal blocks its writes. Use it in a
/// [`Fanout::best_effort`](super::Fanout::best_effort).
#[derive(Clone)]
pub struct Console {
    out: Arc<Mutex<Out>>,
}

struct Out {
    writer: Box<dyn Write + Send>,
    colors: bool,
    /// The length of the longest name so far, for alignment.
    width: usize,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// Creates a sink that prints to standard output.
    ///
    /// Uses colors if standard output is a terminal and `NO_COLOR` is not set.
    pub fn stdout() -> Self {
        let colors = io::stdout().is_terminal();
        Self::to(io::stdout()).colors(colors && colors_allowed())
    }

    /// Creates a sink that prints to standard error.
    ///
    /// Uses colors if standard error is a terminal and `NO_COLOR` is not set.
    pub fn stderr() -> Self {
        let colors = io::stderr().is_terminal();
        Self::to(io::stderr()).colors(colors && colors_allowed())
    }

    /// Creates a sink that prints to any writer, without colors.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        let out = Out {
            writer: Box::new(out),
            colors: false,
            width: 0,
        };
        Self {
            out: Arc::new(Mutex::new(out)),
        }
    }

    /// Enables or disables colors, for all clones of the sink.
    #[must_use]
    pub fn colors(self, colors: bool) -> Self {
        self.lock().colors = colors;
        self
    }

    fn lock(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, place: &RunPlace) -> ConsoleLog {
        let run = &place.run;
        let name = match place.exec {
            None => run.to_string(),
            Some(number) => format!("{run} exec-{number}"),
        };
        let mut out = self.lock();
        out.width = out.width.max(name.len());
        ConsoleLog {
            console: self.clone(),
            run: run.clone(),
            name,
        }
    }
}

fn colors_allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[async_trait]
impl LogSink for Console {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        let log = self.log(place);
        let mut batch = Batch::new();
        batch.push_event(Event::Start(Box::new(start.clone())));
        log.print("open", &batch)?;
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
struct ConsoleLog {
    console: Console,
    run: RunId,
    /// The displayed name: the run's id, and the number of the exec if it is an exec's log.
    name: String,
}

impl ConsoleLog {
    /// Prints whole lines with one write, so that the lines of two runs do not mix.
    fn print(&self, operation: &'static str, batch: &Batch) -> Result<()> {
        let mut out = self.console.lock();
        let name = format!("{:width$}", self.name, width = out.width);
        // One of the colors from red to cyan, by the hash of the run's id.
        let color = 31
            + self.run.as_str().bytes().fold(0u32, |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(byte.into())
            }) % 6;
        let mut text = String::new();
        for record in batch.iter() {
            let (mark, line) = match record {
                RecordRef::Event(event) => ('*', describe(event)),
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
            text.push_str(&if out.colors {
                format!("\x1b[{color}m{name} {mark}\x1b[0m {line}\n")
            } else {
                format!("{name} {mark} {line}\n")
            });
        }
        let written = out.writer.write_all(text.as_bytes());
        written.and_then(|()| out.writer.flush()).map_err(|error| {
            SinkError::from(error)
                .operation(operation)
                .run(&self.run)
                .into()
        })
    }
}

#[async_trait]
impl RunLog for ConsoleLog {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        self.print("append to", &batch)
    }

    async fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    async fn seal(&mut self, seal: Seal) -> Result<Seal> {
        let mut batch = Batch::new();
        batch.push_event(Event::End(Box::new(seal.clone())));
        self.print("seal", &batch)?;
        Ok(seal)
    }
}
