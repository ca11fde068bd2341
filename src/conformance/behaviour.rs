//! What a container of a trial is to do.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;

use crate::outcome::Stream;

/// What a container of a trial is to do, for the implementor to put in its own terms.
///
/// It does its steps one after the other, and then ends with [`exit`](field@Self::exit), unless
/// [`waits_for_signal`](Self::waits_for_signal) says that it waits for SIGTERM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Behaviour {
    /// What it does, in order.
    pub steps: Vec<Step>,
    /// The code that it ends with.
    pub exit: u8,
    /// Whether it waits for a signal behind its steps: on SIGTERM, at any time, it ends with
    /// [`exit`](field@Self::exit).
    pub waits_for_signal: bool,
    /// Whether it ignores SIGTERM. It has done so before its first step.
    pub ignores_sigterm: bool,
    /// Whether its output is a terminal's.
    pub tty: bool,
    /// Whether it cannot be started at all: its command is one that is not there.
    pub command_not_found: bool,
}

/// One thing that a container of a trial does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// It prints these bytes, and has flushed them when it goes on.
    Print(Stream, Bytes),
    /// It prints so many lines of 64 bytes, newline included: `%063d`, from 0 on.
    Lines(Stream, u32),
    /// It does nothing for a while.
    Pause(Duration),
    /// It prints on standard output, as they come, the bytes that it reads from its standard input,
    /// until that is at its end. A terminal may show them, too.
    Echo,
}

impl Behaviour {
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

    pub(super) fn hold(mut self) -> Self {
        self.waits_for_signal = true;
        self
    }

    pub(super) fn deaf(mut self) -> Self {
        self.ignores_sigterm = true;
        self
    }

    pub(super) fn tty(mut self) -> Self {
        self.tty = true;
        self
    }

    pub(super) fn missing() -> Self {
        Self {
            command_not_found: true,
            ..Self::default()
        }
    }

    /// All that is printed on one stream. A terminal's newlines are not `\r\n` yet.
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

    /// It as a command line: `sh -c`, with a script for any POSIX shell that has `printf` and
    /// `sleep`. One that [cannot be started](field@Self::command_not_found) is another command line.
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
            match step {
                Step::Print(stream, bytes) => {
                    // A shell takes only so long a word.
                    for part in bytes.chunks(1024) {
                        script.push_str("printf '");
                        for byte in part {
                            let _ = write!(script, "\\{byte:03o}");
                        }
                        let _ = writeln!(script, "'{}", to(*stream));
                    }
                }
                Step::Lines(stream, count) => {
                    let _ = writeln!(
                        script,
                        "i=0; while [ $i -lt {count} ]; do printf '%063d\\n' $i; i=$((i+1)); done{}",
                        to(*stream)
                    );
                }
                Step::Pause(duration) => {
                    let _ = writeln!(script, "sleep {}", duration.as_secs_f64());
                }
                Step::Echo => script.push_str("cat\n"),
            }
        }
        if self.waits_for_signal {
            script.push_str("while :; do sleep 0.05; done\n");
        }
        let _ = writeln!(script, "exit {}", self.exit);
        vec!["sh".into(), "-c".into(), script]
    }
}

/// The script of a container of [`Scripted`](crate::runtime::scripted::Scripted).
#[cfg(feature = "testing")]
impl From<&Behaviour> for crate::runtime::scripted::Script {
    fn from(behaviour: &Behaviour) -> Self {
        let code = behaviour.exit.into();
        let mut script = Self::new().exit(code).exit_on_term(code);
        for step in &behaviour.steps {
            script = match step {
                Step::Print(stream, bytes) => script.print(*stream, bytes.clone()),
                Step::Lines(stream, count) => (0..*count).fold(script, |script, number| {
                    script.print(*stream, format!("{number:063}\n"))
                }),
                Step::Pause(duration) => script.pause(*duration),
                Step::Echo => script.echo(),
            };
        }
        if behaviour.waits_for_signal {
            script = script.until_stopped();
        }
        if behaviour.ignores_sigterm {
            script = script.ignore_term();
        }
        if behaviour.command_not_found {
            script = script.fail_to_start("no such command");
        }
        script
    }
}

fn to(stream: Stream) -> &'static str {
    match stream {
        Stream::Stderr => " >&2",
        Stream::Stdout | Stream::Tty => "",
    }
}

/// What [`Step::Lines`] prints.
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
    fn a_shell_does_as_the_behaviour_says_byte_for_byte() {
        let all: Vec<u8> = (0..=255).cycle().take(3000).collect();
        let behaviour = Behaviour::new()
            .out(all)
            .err("'quoted' \\ \"text\"")
            .pause(Duration::from_millis(10))
            .lines(Stream::Stdout, 20)
            .lines(Stream::Stderr, 3)
            .exit(7);
        let words = behaviour.shell();
        let output = Command::new(&words[0]).args(&words[1..]).output();
        let output = output.expect("there is a shell");
        assert_eq!(output.stdout, behaviour.printed(Stream::Stdout));
        assert_eq!(output.stderr, behaviour.printed(Stream::Stderr));
        assert_eq!(output.status.code(), Some(7));
    }
}
