//! A tab of headless Chromium, driven through its DevTools protocol.
//!
//! Messages end with a zero byte. Chromium reads them from descriptor 3, and writes to descriptor 4.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::deadline::wait_for;

use crate::browser;

/// The time within which Chromium answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The colors of a page, and its width in pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    pub(crate) dark: bool,
    pub(crate) width: u32,
}

pub(crate) struct Tab {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<Value>,
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

impl Tab {
    /// Opens the page with a fragment.
    pub(crate) fn open(page: &Path, fragment: &str, screen: Screen) -> Self {
        let mut tab = Self::start();
        let target = tab.call("Target.createTarget", &json!({"url": "about:blank"}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let session = tab.call("Target.attachToTarget", &target);
        tab.session = session["sessionId"].as_str().map(str::to_owned);
        let size =
            json!({"width": screen.width, "height": 800, "deviceScaleFactor": 1, "mobile": false});
        tab.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if screen.dark { "dark" } else { "light" };
        let scheme = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        tab.call("Emulation.setEmulatedMedia", &json!({"features": scheme}));
        let url = format!("file://{}#{fragment}", page.display());
        tab.call("Page.navigate", &json!({"url": url}));
        wait_for("the page", || {
            let ready = "location.protocol === 'file:' && document.readyState === 'complete'";
            // The answer is an error while one page replaces the other.
            let answer = tab.answer("Runtime.evaluate", &json!({"expression": ready}));
            answer["result"]["result"]["value"] == true
        });
        tab
    }

    fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh"])
            .arg(browser::name().expect("MOAT_CHROMIUM=required, but PATH has no Chromium"))
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
            .unwrap();
        let mut messages = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while messages
                .read_until(0, &mut message)
                .is_ok_and(|read| read > 0)
            {
                let message = std::mem::take(&mut message);
                let answer =
                    serde_json::from_slice(message.strip_suffix(b"\0").unwrap_or(&message));
                if sender.send(answer.unwrap()).is_err() {
                    break;
                }
            }
        });
        Self {
            requests: child.stdin.take().unwrap(),
            child,
            answers,
            session: None,
            next: 0,
            _profile: profile,
        }
    }

    /// Calls a method, and returns its result.
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
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
        write!(self.requests, "{request}\0").unwrap();
        loop {
            let answer = self.answers.recv_timeout(ANSWER_TIMEOUT).expect(method);
            if answer["id"] == self.next {
                return answer;
            }
        }
    }

    /// The value of an expression in the page.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", &params);
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        answer["result"]["value"].clone()
    }

    /// Presses a key. `code` is its code on Windows.
    pub(crate) fn press(&mut self, key: &str, code: u32) {
        for kind in ["rawKeyDown", "keyUp"] {
            let event =
                json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", &event);
        }
    }
}
