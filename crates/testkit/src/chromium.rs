//! A tab of headless Chromium, driven through its DevTools protocol.
//!
//! Messages end with a zero byte. Chromium reads them from descriptor 3, and writes to descriptor 4.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::deadline::wait_for;
use crate::harness::{self, Need};

mod checks;

const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// The time within which Chromium answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The time within which a page does what a test waits for.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The bit of the Shift key in the modifiers of an event.
const SHIFT: u32 = 8;

/// A browser that is installed, or required by `MOAT_CHROMIUM=required`.
pub fn need() -> Need {
    match harness::is_required("MOAT_CHROMIUM") || installed().is_some() {
        true => Ok(()),
        false => Err("no Chromium (set MOAT_CHROMIUM=required to fail instead)".into()),
    }
}

/// The name of the browser's program.
///
/// # Panics
///
/// If no browser is installed.
pub fn program() -> &'static str {
    installed().expect("MOAT_CHROMIUM=required, but PATH has no Chromium")
}

fn installed() -> Option<&'static str> {
    let path = std::env::var_os("PATH")?;
    let exists = |name: &&str| std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    NAMES.into_iter().find(exists)
}

/// The colors of a page, and its width in pixels.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    /// True for light text on a dark page.
    pub dark: bool,
    /// The width of the page in pixels. The height is 800.
    pub width: u32,
}

impl Screen {
    /// A light page of 1280 pixels.
    pub const WIDE: Self = Self {
        dark: false,
        width: 1280,
    };
    /// A light page of 360 pixels, as on a telephone.
    pub const NARROW: Self = Self {
        dark: false,
        width: 360,
    };
}

/// A tab with one page. Its methods panic if the browser fails.
#[derive(Debug)]
pub struct Tab {
    child: Child,
    requests: ChildStdin,
    messages: Receiver<Value>,
    /// Messages that answer no request.
    events: Vec<Value>,
    session: Option<String>,
    next: u64,
    _profile: TempDir,
}

impl Drop for Tab {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[allow(
    clippy::missing_panics_doc,
    reason = "each method panics if the browser fails"
)]
impl Tab {
    /// Opens a page.
    pub fn open(url: &str, screen: Screen) -> Self {
        let mut tab = Self::start();
        let target = tab.call("Target.createTarget", &json!({"url": "about:blank"}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let session = tab.call("Target.attachToTarget", &target);
        tab.session = session["sessionId"].as_str().map(str::to_owned);
        tab.call("Runtime.enable", &json!({}));
        tab.call("Log.enable", &json!({}));
        tab.resize(screen.width);
        let scheme = if screen.dark { "dark" } else { "light" };
        let scheme = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        tab.call("Emulation.setEmulatedMedia", &json!({"features": scheme}));
        tab.call("Page.navigate", &json!({"url": url}));
        tab.wait_until_loaded("true");
        tab
    }

    /// Loads the page again.
    pub fn reload(&mut self) {
        self.evaluate("window.isOld = true");
        self.call("Page.reload", &json!({}));
        self.wait_until_loaded("!window.isOld");
    }

    /// Waits for a loaded page on which a condition holds.
    fn wait_until_loaded(&mut self, condition: &str) {
        let ready = format!(
            "{condition} && location.protocol !== 'about:' && document.readyState === 'complete'"
        );
        wait_for("the page", || {
            // The answer is an error while one page replaces the other.
            let answer = self.answer("Runtime.evaluate", &json!({"expression": ready}));
            answer["result"]["result"]["value"] == true
        });
    }

    fn start() -> Self {
        let profile = tempfile::tempdir().expect("a directory for the browser");
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh"])
            .arg(program())
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser starts");
        Self {
            requests: child.stdin.take().expect("a pipe"),
            messages: messages(child.stdout.take().expect("a pipe")),
            child,
            events: Vec::new(),
            session: None,
            next: 0,
            _profile: profile,
        }
    }

    /// Gives the page another width.
    pub fn resize(&mut self, width: u32) {
        let size = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Calls a method, and returns its result.
    pub fn call(&mut self, method: &str, params: &Value) -> Value {
        let answer = self.answer(method, params);
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Calls a method, and returns its answer: a result or an error.
    fn answer(&mut self, method: &str, params: &Value) -> Value {
        self.next += 1;
        let mut request = json!({"id": self.next, "method": method, "params": params});
        if let Some(session) = &self.session {
            request["sessionId"] = session.as_str().into();
        }
        write!(self.requests, "{request}\0").expect(method);
        loop {
            let message = self.messages.recv_timeout(ANSWER_TIMEOUT).expect(method);
            if message["id"] == self.next {
                return message;
            }
            self.events.push(message);
        }
    }

    /// The value of an expression in the page. A promise is awaited.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", &params);
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression in the page is true.
    pub fn wait(&mut self, expression: &str) {
        let start = Instant::now();
        while self.evaluate(expression) != true {
            if start.elapsed() > WAIT_TIMEOUT {
                let text = self.evaluate("document.body.innerText");
                let complaints = self.complaints();
                panic!("not true in time: {expression}\npage: {text:?}\n{complaints:#?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Presses a key. `code` is its code on Windows.
    pub fn press(&mut self, key: &str, code: u32) {
        self.strike(&json!({"key": key, "code": key, "windowsVirtualKeyCode": code}));
    }

    /// Presses a key together with the Shift key.
    pub fn press_with_shift(&mut self, key: &str, code: u32) {
        let key =
            json!({"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": SHIFT});
        self.strike(&key);
    }

    /// Types a text. A line feed is the Enter key.
    pub fn type_text(&mut self, text: &str) {
        for character in text.chars() {
            self.strike(&match character {
                '\n' => {
                    json!({"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"})
                }
                // The codes of other characters depend on the keyboard.
                one if one.is_ascii_alphanumeric() => {
                    let code = u32::from(one.to_ascii_uppercase());
                    json!({"key": one, "text": one, "windowsVirtualKeyCode": code})
                }
                one => json!({"key": one, "text": one}),
            });
        }
    }

    fn strike(&mut self, key: &Value) {
        let down = match key["text"].is_null() {
            true => "rawKeyDown",
            false => "keyDown",
        };
        for kind in [down, "keyUp"] {
            let mut event = key.clone();
            event["type"] = kind.into();
            self.call("Input.dispatchKeyEvent", &event);
        }
    }

    /// Gives a file to an `<input type="file">`.
    pub fn choose_file(&mut self, selector: &str, path: &std::path::Path) {
        let document = self.call("DOM.getDocument", &json!({}));
        let query = json!({"nodeId": document["root"]["nodeId"], "selector": selector});
        let node = self.call("DOM.querySelector", &query);
        let files = json!({"nodeId": node["nodeId"], "files": [path]});
        self.call("DOM.setFileInputFiles", &files);
    }

    /// A PNG image of the whole page.
    pub fn screenshot(&mut self) -> Vec<u8> {
        let image = self.call(
            "Page.captureScreenshot",
            &json!({"captureBeyondViewport": true}),
        );
        let data = image["data"].as_str().expect("an image");
        let image = base64::engine::general_purpose::STANDARD.decode(data);
        image.expect("an image")
    }

    /// Errors since the last call: of the console, uncaught exceptions, failed requests, and
    /// violations of the content security policy.
    pub fn complaints(&mut self) -> Vec<String> {
        self.evaluate("0");
        let events = std::mem::take(&mut self.events);
        events.iter().filter_map(complaint).collect()
    }
}

fn complaint(event: &Value) -> Option<String> {
    let params = &event["params"];
    match event["method"].as_str()? {
        "Runtime.consoleAPICalled" if params["type"] == "error" => Some(params["args"].to_string()),
        "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
        "Log.entryAdded" if params["entry"]["level"] == "error" => {
            let entry = &params["entry"];
            Some(format!("{} {}", entry["text"], entry["url"]))
        }
        _ => None,
    }
}

/// The messages of the browser, read by a thread.
fn messages(pipe: ChildStdout) -> Receiver<Value> {
    let mut pipe = BufReader::new(pipe);
    let (sender, messages) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        while pipe.read_until(0, &mut bytes).is_ok_and(|read| read > 0) {
            let message = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
            let message = serde_json::from_slice(message).expect("a message of the browser");
            bytes.clear();
            if sender.send(message).is_err() {
                break;
            }
        }
    });
    messages
}
