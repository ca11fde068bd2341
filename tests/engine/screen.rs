//! A pseudo-terminal, a program in it, and its screen.

use std::io::{Read, Write};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pty_process::blocking::{Command, Pts, Pty};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, Termios, tcgetattr};

/// The time that the screen has to show something.
const BOUND: Duration = Duration::from_secs(30);

pub struct Screen {
    pty: Arc<Pty>,
    pts: Pts,
    child: Child,
    before: Termios,
    parser: Arc<Mutex<vt100::Parser>>,
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Screen {
    /// Starts a program in a terminal of 24 rows and 80 columns.
    pub fn start(command: Command) -> Self {
        let (pty, pts) = pty_process::blocking::open().unwrap();
        pty.resize(pty_process::Size::new(24, 80)).unwrap();
        let before = tcgetattr(&pts).unwrap();
        let mut command = command.env("TERM", "xterm");
        let child = command.spawn_borrowed(&pts).unwrap();
        let pty = Arc::new(pty);
        let (rows, columns) = (24.try_into().unwrap(), 80.try_into().unwrap());
        let parser = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 1000)));
        let (from, to) = (Arc::clone(&pty), Arc::clone(&parser));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = (&*from).read(&mut bytes) {
                to.lock().unwrap().process(&bytes[..count]);
            }
        });
        Self {
            pty,
            pts,
            child,
            before,
            parser,
        }
    }

    /// Types text.
    pub fn type_in(&self, text: &str) {
        (&*self.pty).write_all(text.as_bytes()).unwrap();
    }

    /// Types in the background, however long the program does not read.
    pub fn type_on(&self, text: Vec<u8>) {
        let pty = Arc::clone(&self.pty);
        std::thread::spawn(move || (&*pty).write_all(&text));
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        self.parser
            .lock()
            .unwrap()
            .screen_mut()
            .set_size(rows.try_into().unwrap(), columns.try_into().unwrap());
        self.pty
            .resize(pty_process::Size::new(rows, columns))
            .unwrap();
    }

    /// The text of the screen, without spaces at the ends of lines.
    pub fn contents(&self) -> String {
        text(self.parser.lock().unwrap().screen())
    }

    #[track_caller]
    pub fn is(&self, what: &str, fact: impl Fn(&vt100::Screen) -> bool) {
        let begin = Instant::now();
        while !fact(self.parser.lock().unwrap().screen()) {
            assert!(
                begin.elapsed() < BOUND,
                "{what} does not appear on this screen:\n{}",
                self.contents()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits a while for `part` on the screen; `false` if it does not appear.
    pub fn comes_to_show(&self, part: &str) -> bool {
        let begin = Instant::now();
        while !self.contents().contains(part) {
            if begin.elapsed() > BOUND / 3 {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Waits for text on the screen.
    #[track_caller]
    pub fn shows(&self, part: &str) {
        self.is(part, |screen| text(screen).contains(part));
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Waits until a signal has stopped the program.
    #[track_caller]
    pub fn is_stopped(&self) {
        let path = format!("/proc/{}/stat", self.child.id());
        self.is("the stop", |_| {
            let stat = std::fs::read_to_string(&path).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        });
    }

    /// Waits for the end of the program and returns its exit code.
    #[track_caller]
    pub fn code(&mut self) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(
                begin.elapsed() < BOUND,
                "it does not end:\n{}",
                self.contents()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// True if the terminal is in raw mode.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.pts).unwrap().local_modes;
        !modes.contains(LocalModes::ICANON)
    }

    /// Asserts that the terminal and its screen are as before the program.
    #[track_caller]
    pub fn is_as_it_was(&self) {
        let now = tcgetattr(&self.pts).unwrap();
        let of = |termios: &Termios| {
            (
                termios.input_modes,
                termios.output_modes,
                termios.control_modes,
                termios.local_modes,
            )
        };
        assert_eq!(of(&now), of(&self.before));
        self.is("a screen as it was", |screen| {
            !screen.alternate_screen()
                && !screen.hide_cursor()
                && !screen.bracketed_paste()
                && !screen.application_cursor()
                && !screen.application_keypad()
                && screen.mouse_protocol_mode() == vt100::MouseProtocolMode::None
                && screen.fgcolor() == vt100::Color::Default
                && !screen.inverse()
        });
    }
}

fn text(screen: &vt100::Screen) -> String {
    let contents = screen.contents();
    let lines: Vec<_> = contents.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}
