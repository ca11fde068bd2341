//! Headless Chromium: a page after its script has run.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testkit::chromium;

/// The document of a page in the browser.
pub(crate) struct Dom {
    pub(crate) html: String,
    /// The messages in the browser's console.
    pub(crate) console: Vec<String>,
}

/// Opens the page with a fragment.
pub(crate) fn open(page: &Path, fragment: &str) -> Dom {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| File::create(dir.path().join(name)).unwrap();
    let mut child = Command::new(chromium::program())
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=5000"])
        .arg("--window-size=1400,900")
        .arg(format!("--user-data-dir={}", dir.path().display()))
        .arg(format!("file://{}#{fragment}", page.display()))
        .stdin(Stdio::null())
        .stdout(file("dom"))
        .stderr(file("log"))
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the browser did not exit within 120 s");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let log = String::from_utf8_lossy(&read("log")).into_owned();
    assert!(status.success(), "{status}: {log}");
    Dom {
        html: String::from_utf8_lossy(&read("dom")).into_owned(),
        console: log
            .lines()
            .filter(|line| line.contains("CONSOLE"))
            .map(Into::into)
            .collect(),
    }
}

/// A row of output: its class, its HTML, and its text without tags.
pub(crate) struct Row {
    pub(crate) class: String,
    pub(crate) html: String,
    pub(crate) text: String,
}

impl Dom {
    /// The rows of output in the document, in order.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let shown = self.html.split_once(r#"<div id="space""#).unwrap().1;
        let shown = shown.split_once(r#"<p id="none""#).unwrap().0;
        shown
            .split(r#"<div class="row "#)
            .skip(1)
            .map(|row| {
                let (class, html) = row.split_once('"').unwrap();
                let html = html.split_once("</div>").unwrap().0;
                let body = html.split_once("</b><span>").unwrap().1;
                Row {
                    class: class.into(),
                    html: html.into(),
                    text: text(body),
                }
            })
            .collect()
    }

    /// The text of the element with this id.
    ///
    /// It must not contain an element with the same tag.
    pub(crate) fn text(&self, id: &str) -> String {
        let at = self.html.find(&format!(r#" id="{id}""#)).expect(id);
        let open = self.html[..at].rfind('<').unwrap();
        let tag = self.html[open + 1..].split([' ', '>']).next().unwrap();
        let inner = self.html[at..].split_once('>').unwrap().1;
        text(inner.split_once(&format!("</{tag}>")).unwrap().0)
    }
}

fn text(html: &str) -> String {
    let mut text = String::new();
    for piece in html.split('<') {
        text.push_str(piece.split_once('>').map_or(piece, |(_, text)| text));
    }
    [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&nbsp;", "\u{a0}"),
        ("&quot;", "\""),
        ("&amp;", "&"),
    ]
    .into_iter()
    .fold(text, |text, (entity, character)| {
        text.replace(entity, character)
    })
}
