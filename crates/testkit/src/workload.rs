//! The only program in the test image. Its output is a function of its arguments (`sequence.rs`),
//! so that a test knows every byte.
//!
//! Plain `rustc` compiles it to a static program that uses the standard library only. Arguments
//! are steps, separated by `+` and done in order: `lines 10 + await /go + exit 7`.

#![allow(
    unsafe_code,
    reason = "signal handlers, without a dependency on a crate"
)]

#[allow(dead_code, reason = "the tests use the rest")]
mod sequence;

use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, exit};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

const USAGE: &str = "\
steps, separated by `+`:
  lines N [--stream out|err|both] [--width W] [--from F] [--burst B] [--delay-ms D]
  bytes N [--seed S]          bytes that look random, and follow from the seed
  long N [--utf8]             one line of N bytes
  fill N                      N bytes of one line without a newline, fast
  progress N                  a progress bar of N steps
  split                       a character in two halves, with a pause between them
  tty-hostile                 bytes that look like a frame of a stream
  yes TEXT N [--burst B]      N lines that are all the same, B in a write
  echo TEXT | warn TEXT       a line on stdout, on stderr
  hex HEX [--stream err]      these bytes
  count N [--stream err]      N lines of 63 digits, from 0
  print TEXT                  TEXT without a newline
  cat                         stdin to stdout
  env NAME                    the value of a variable
  read PATH | write PATH TEXT | stat PATH
  pwd | whoami                the working directory; uid:gid
  await PATH                  waits until the file exists
  listen PORT                 prints a line, and greets each connection, forever
  dial NAME PORT              prints what a server sends; the address is that of NAME in /etc/hosts
  serve PORT                  waits for a free port, and sends back what each connection sends
  sleep SECONDS
  trap [--exit CODE]          waits for SIGTERM, prints a line, and exits
  on-term CODE                from now on, exits with this code on SIGTERM
  hold                        sleeps forever
  ignore-term                 from now on, SIGTERM is ignored
  alloc MIB                   allocates memory and writes to it
  oom-child MIB               the same in a child; this process survives
  close-stdio                 closes stdout and stderr
  exit CODE";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        eprintln!("{USAGE}");
        exit(2);
    }
    for step in arguments.split(|argument| argument == "+") {
        if let Err(error) = run(&Step(step)) {
            eprintln!("workload: {}: {error}", step.join(" "));
            exit(3);
        }
    }
}

/// One step: its name, and its arguments.
struct Step<'a>(&'a [String]);

impl Step<'_> {
    fn text(&self, at: usize) -> &str {
        match self.0.get(at) {
            Some(text) => text,
            None => usage("an argument is missing"),
        }
    }

    fn number(&self, at: usize) -> u64 {
        parse(self.text(at))
    }

    fn option(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|argument| argument == name)?;
        Some(self.text(at + 1))
    }

    fn option_number(&self, name: &str, default: u64) -> u64 {
        self.option(name).map_or(default, parse)
    }
}

fn parse(text: &str) -> u64 {
    match text.parse() {
        Ok(number) => number,
        Err(_) => usage(&format!("{text:?} is not a number")),
    }
}

fn usage(problem: &str) -> ! {
    eprintln!("workload: {problem}\n{USAGE}");
    exit(2);
}

fn run(step: &Step<'_>) -> io::Result<()> {
    match step.text(0) {
        "lines" => lines(step)?,
        "bytes" => bytes(step.number(1), step.option_number("--seed", 1))?,
        "long" => {
            let utf8 = step.0.iter().any(|argument| argument == "--utf8");
            out(&sequence::long(step.number(1) as usize, utf8))?;
            out(b"\n")?;
        }
        "fill" => fill(step.number(1))?,
        "progress" => out(&sequence::progress(step.number(1)))?,
        "split" => {
            let (first, second) = sequence::SPLIT.as_bytes().split_at(sequence::SPLIT_AT);
            out(first)?;
            std::thread::sleep(Duration::from_millis(200));
            out(second)?;
        }
        "tty-hostile" => out(sequence::TTY_HOSTILE)?,
        "yes" => {
            let line = format!("{}\n", step.text(1));
            let (mut left, burst) = (step.number(2), step.option_number("--burst", 1));
            while left > 0 {
                let lines = left.min(burst);
                out(line.repeat(lines as usize).as_bytes())?;
                left -= lines;
            }
        }
        "echo" => out(format!("{}\n", step.text(1)).as_bytes())?,
        "warn" => err(format!("{}\n", step.text(1)).as_bytes())?,
        "print" => out(step.text(1).as_bytes())?,
        "hex" => {
            let digits = step.text(1);
            let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16);
            let bytes: Result<Vec<u8>, _> = (0..digits.len()).step_by(2).map(byte).collect();
            on(step, &bytes.unwrap_or_else(|_| usage("not hexadecimal")))?;
        }
        "count" => {
            let lines: String = (0..step.number(1)).map(|n| format!("{n:063}\n")).collect();
            on(step, lines.as_bytes())?;
        }
        "cat" => {
            io::copy(&mut io::stdin(), &mut io::stdout())?;
            io::stdout().flush()?;
        }
        "env" => {
            let value = std::env::var(step.text(1)).unwrap_or_else(|_| "(unset)".into());
            out(format!("{value}\n").as_bytes())?;
        }
        "read" => {
            let mut content = Vec::new();
            std::fs::File::open(step.text(1))?.read_to_end(&mut content)?;
            out(&content)?;
        }
        "write" => std::fs::write(step.text(1), step.text(2))?,
        "stat" => {
            let found = std::fs::metadata(step.text(1))?;
            let text = format!("{:o} {} bytes\n", found.mode(), found.len());
            out(text.as_bytes())?;
        }
        "pwd" => {
            let directory = std::env::current_dir()?;
            out(format!("{}\n", directory.display()).as_bytes())?;
        }
        "whoami" => {
            let me = std::fs::metadata("/proc/self")?;
            out(format!("{}:{}\n", me.uid(), me.gid()).as_bytes())?;
        }
        "await" => {
            while !std::path::Path::new(step.text(1)).exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        "listen" => {
            let listener = std::net::TcpListener::bind(("0.0.0.0", step.number(1) as u16))?;
            out(format!("listening on {}\n", step.number(1)).as_bytes())?;
            let mut connections = Vec::new();
            for connection in listener.incoming() {
                let mut connection = connection?;
                // The client may have closed it.
                let _ = connection.write_all(b"hello\n");
                connections.push(connection);
            }
        }
        "dial" => {
            let hosts = std::fs::read_to_string("/etc/hosts")?;
            let names = |line: &&str| line.split_whitespace().skip(1).any(|n| n == step.text(1));
            let address = hosts
                .lines()
                .find(names)
                .and_then(|line| line.split_whitespace().next());
            let Some(address) = address else {
                usage(&format!("{} is not in /etc/hosts: {hosts}", step.text(1)));
            };
            let address = address
                .parse::<std::net::IpAddr>()
                .map_err(io::Error::other)?;
            let mut stream = std::net::TcpStream::connect((address, step.number(2) as u16))?;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes)?;
            out(&bytes)?;
        }
        "serve" => serve(step.number(1) as u16)?,
        "sleep" => std::thread::sleep(Duration::from_secs_f64(
            step.text(1)
                .parse()
                .unwrap_or_else(|_| usage("not a number of seconds")),
        )),
        "trap" => {
            handle_term(on_term as *const () as usize);
            out(b"ready\n")?;
            while !TERM.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            out(b"caught SIGTERM\n")?;
            exit(step.option_number("--exit", 0) as i32);
        }
        "on-term" => {
            CODE.store(step.number(1) as i32, Ordering::SeqCst);
            handle_term(exit_on_term as *const () as usize);
        }
        "hold" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        "ignore-term" => handle_term(SIG_IGN),
        "alloc" => alloc(step.number(1)),
        "oom-child" => {
            let status = Command::new("/proc/self/exe")
                .args(["alloc", step.text(1)])
                .status()?;
            let signal = status.signal().unwrap_or(0);
            out(format!("the child ended by signal {signal}\n").as_bytes())?;
        }
        "close-stdio" => {
            io::stdout().flush()?;
            // SAFETY: this process has no other owner of these descriptors and does not write to
            // them again.
            drop(unsafe { [OwnedFd::from_raw_fd(1), OwnedFd::from_raw_fd(2)] });
        }
        "exit" => exit(step.number(1) as i32),
        other => usage(&format!("there is no step {other:?}")),
    }
    Ok(())
}

fn out(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Prints on the stream that the step names.
fn on(step: &Step<'_>, bytes: &[u8]) -> io::Result<()> {
    match step.option("--stream") {
        Some("err") => err(bytes),
        _ => out(bytes),
    }
}

fn err(bytes: &[u8]) -> io::Result<()> {
    io::stderr().lock().write_all(bytes)
}

fn lines(step: &Step<'_>) -> io::Result<()> {
    let from = step.option_number("--from", 1);
    let until = from + step.number(1);
    let width = step.option_number("--width", 64) as usize;
    let burst = step.option_number("--burst", 1).max(1);
    let delay = Duration::from_millis(step.option_number("--delay-ms", 0));
    let streams: &[&str] = match step.option("--stream").unwrap_or("out") {
        "out" => &["out"],
        "err" => &["err"],
        "both" => &["out", "err"],
        other => usage(&format!("there is no stream {other:?}")),
    };
    let mut next = from;
    while next < until {
        let last = until.min(next + burst);
        for &stream in streams {
            let mut text = String::new();
            for number in next..last {
                text.push_str(&sequence::line(stream, number, width));
                text.push('\n');
            }
            match stream {
                "err" => err(text.as_bytes())?,
                _ => out(text.as_bytes())?,
            }
        }
        next = last;
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
    }
    Ok(())
}

fn bytes(count: u64, seed: u64) -> io::Result<()> {
    let mut noise = sequence::Noise::new(seed);
    let mut buffer = [0; 64 << 10];
    let mut remaining = count;
    while remaining > 0 {
        let part = &mut buffer[..remaining.min(64 << 10) as usize];
        noise.fill(part);
        out(part)?;
        remaining -= part.len() as u64;
    }
    Ok(())
}

fn fill(count: u64) -> io::Result<()> {
    let buffer = [b'x'; 64 << 10];
    let mut remaining = count;
    while remaining > 0 {
        let part = &buffer[..remaining.min(64 << 10) as usize];
        out(part)?;
        remaining -= part.len() as u64;
    }
    Ok(())
}

/// Containers in the host's network share its ports, so the port may be in use.
fn serve(port: u16) -> io::Result<()> {
    let listener = loop {
        match std::net::TcpListener::bind(("127.0.0.1", port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                std::thread::sleep(Duration::from_millis(50));
            }
            bound => break bound?,
        }
    };
    for connection in listener.incoming() {
        let connection = connection?;
        std::thread::spawn(move || {
            // The client may have closed it.
            let _ = io::copy(&mut &connection, &mut &connection);
        });
    }
    Ok(())
}

fn alloc(mebibytes: u64) {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    for at in 0..mebibytes {
        // Not zero: a page of zeros need not take memory.
        blocks.push(vec![1 + (at % 255) as u8; 1 << 20]);
    }
    std::hint::black_box(&blocks);
}

const SIGTERM: i32 = 15;
const SIG_IGN: usize = 1;
static TERM: AtomicBool = AtomicBool::new(false);

static CODE: AtomicI32 = AtomicI32::new(0);

extern "C" fn exit_on_term(_: i32) {
    unsafe extern "C" {
        fn _exit(code: i32) -> !;
    }
    // SAFETY: `_exit` is async-signal-safe.
    unsafe { _exit(CODE.load(Ordering::SeqCst)) };
}

extern "C" fn on_term(_: i32) {
    TERM.store(true, Ordering::SeqCst);
}

fn handle_term(handler: usize) {
    unsafe extern "C" {
        fn signal(signum: i32, handler: usize) -> usize;
    }
    // SAFETY: the handler is SIG_IGN or a function that is async-signal-safe.
    unsafe { signal(SIGTERM, handler) };
}
