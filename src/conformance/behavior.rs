//! The behavior of a container in a case.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;

use crate::outcome::Stream;

/// The behavior of a container, which a harness translates to a spec of its runtime.
///
/// The container performs its steps in order, and then exits with [`exit`](field@Self::exit),
/// unless [`waits_for_signal`](field@Self::waits_for_signal) is set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Behavior {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The exit code.
    pub exit: u8,
    /// The container waits for a signal after its steps.
    ///
    /// On SIGTERM, at any time, it exits with [`exit`](field@Self::exit).
    pub waits_for_signal: bool,
    /// The container ignores SIGTERM, from before its first step.
    pub ignores_sigterm: bool,
    /// The container has a terminal.
    pub tty: bool,
    /// The command does not exist, so the container cannot start.
    pub command_not_found: bool,
}

/// A step of a [`Behavior`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Prints these bytes and flushes them.
    Print(Stream, Bytes),
    /// Prints this number of lines, from 0: `%063d` and a newline, 64 bytes each.
    Lines(Stream, u32),
    /// Sleeps.
    Pause(Duration),
    /// Copies standard input to standard output until the input ends.
    ///
    /// Bytes are copied as they arrive. A terminal may echo them too.
    Echo,
}

impl Behavior {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn out(self, bytes: impl Into<Bytes>) -> Self {
        self.step(Step::Print(Stream::Stdout, bytes.into()))
    }

    pub(super) fn err(self, bytes: impl Into<Bytes>) -> Self {
        self.step(Step::Print(Stream::Stderr, bytes.into()))
    }

    pub(super) fn lines(self, stream: Stream, count: u32) -> Self {
        self.step(Step::Lines(stream, count))
    }

    pub(super) fn pause(self, duration: Duration) -> Self {
        self.step(Step::Pause(duration))
    }

    pub(super) fn echo(self) -> Self {
        self.step(Step::Echo)
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    pub(super) fn exit(mut self, code: u8) -> Self {
        self.exit = code;
        self
    }

    pub(super) fn waits_for_signal(mut self) -> Self {
        self.waits_for_signal = true;
        self
    }

    pub(super) fn ignores_sigterm(mut self) -> Self {
        self.ignores_sigterm = true;
        self
    }

    pub(super) fn tty(mut self) -> Self {
        self.tty = true;
        self
    }

    pub(super) fn command_not_found() -> Self {
        Self {
            command_not_found: true,
            ..Self::default()
        }
    }

    /// Returns all bytes that the steps print on `stream`.
    ///
    /// Newlines are `\n`, even with a terminal.
    pub fn printed(&self, stream: Stream) -> Vec<u8> {
        let mut bytes = Vec::new();
        for step in &self.steps {
            match step {
                Step::Print(on, text) if *on == stream => bytes.extend_from_slice(text),
                Step::Lines(on, count) if *on == stream => bytes.extend(lines(*count)),
                _ => {}
            }
        }
        bytes
    }

    /// Returns a `sh -c` command line with this behavior.
    ///
    /// It needs a POSIX shell with `printf`, `sleep` and `cat`. If
    /// [`command_not_found`](field@Self::command_not_found) is set, the command is a missing file.
    pub fn shell(&self) -> Vec<String> {
        if self.command_not_found {
            return vec!["/nonexistent/moat-conformance".into()];
        }
        let mut script = String::new();
        if self.ignores_sigterm {
            script.push_str("trap '' TERM\n");
        } else if self.waits_for_signal {
            let _ = writeln!(script, "trap 'exit {}' TERM", self.exit);
        }
        for step in &self.steps {
            step.write_script(&mut script);
        }
        if self.waits_for_signal {
            script.push_str("while :; do sleep 0.05; done\n");
        }
        let _ = writeln!(script, "exit {}", self.exit);
        vec!["sh".into(), "-c".into(), script]
    }
}

impl Step {
    fn write_script(&self, script: &mut String) {
        match self {
            Self::Print(stream, bytes) => {
                // Shells limit the length of a word.
                for part in bytes.chunks(1024) {
                    script.push_str("printf '");
                    for byte in part {
                        let _ = write!(script, "\\{byte:03o}");
                    }
                    let _ = writeln!(script, "'{}", redirection(*stream));
                }
            }
            Self::Lines(stream, count) => {
                let _ = writeln!(
                    script,
                    "i=0; while [ $i -lt {count} ]; do printf '%063d\\n' $i; i=$((i+1)); done{}",
                    redirection(*stream)
                );
            }
            Self::Pause(duration) => {
                let _ = writeln!(script, "sleep {}", duration.as_secs_f64());
            }
            Self::Echo => script.push_str("cat\n"),
        }
    }
}

/// Creates the script for [`Scripted`](crate::runtime::scripted::Scripted).
#[cfg(feature = "testing")]
impl From<&Behavior> for crate::runtime::scripted::Script {
    fn from(behavior: &Behavior) -> Self {
        let code = behavior.exit.into();
        let mut script = Self::new().exit(code).exit_on_term(code);
        for step in &behavior.steps {
            script = match step {
                Step::Print(stream, bytes) => script.print(*stream, bytes.clone()),
                Step::Lines(stream, count) => (0..*count).fold(script, |script, number| {
                    script.print(*stream, format!("{number:063}\n"))
                }),
                Step::Pause(duration) => script.pause(*duration),
                Step::Echo => script.echo(),
            };
        }
        if behavior.waits_for_signal {
            script = script.until_stopped();
        }
        if behavior.ignores_sigterm {
            script = script.ignore_term();
        }
        if behavior.command_not_found {
            script = script.fail_to_start("no such command");
        }
        script
    }
}

fn redirection(stream: Stream) -> &'static str {
    match stream {
        Stream::Stderr => " >&2",
        Stream::Stdout | Stream::Tty | Stream::Merged => "",
    }
}

/// Returns the output of [`Step::Lines`].
pub(super) fn lines(count: u32) -> Vec<u8> {
    let mut text = String::new();
    for number in 0..count {
        let _ = writeln!(text, "{number:063}");
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn shell_prints_exactly_the_printed_bytes() {
        let all: Vec<u8> = (0..=255).cycle().take(3000).collect();
        let behavior = Behavior::new()
            .out(all)
            .err("'quoted' \\ \"text\"")
            .pause(Duration::from_millis(10))
            .lines(Stream::Stdout, 20)
            .lines(Stream::Stderr, 3)
            .exit(7);
        let command = behavior.shell();
        let output = Command::new(&command[0]).args(&command[1..]).output();
        let output = output.expect("cannot run sh");
        assert_eq!(output.stdout, behavior.printed(Stream::Stdout));
        assert_eq!(output.stderr, behavior.printed(Stream::Stderr));
        assert_eq!(output.status.code(), Some(7));
    }
}
