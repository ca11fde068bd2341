//! Chromium without a screen: what a page is once its script has run.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Whether a browser is there, or must be.
pub(crate) fn is_expected() -> bool {
    std::env::var("MOAT_CHROMIUM").is_ok_and(|value| value == "required") || name().is_some()
}

fn name() -> Option<&'static str> {
    let dirs = std::env::var_os("PATH")?;
    let there = |name: &&str| std::env::split_paths(&dirs).any(|dir| dir.join(name).exists());
    NAMES.into_iter().find(there)
}

/// A page, as it stands in the browser.
pub(crate) struct Dom {
    pub(crate) html: String,
    /// What the browser's console has.
    pub(crate) console: Vec<String>,
}

/// Opens the file with this fragment.
pub(crate) fn open(page: &Path, fragment: &str) -> Dom {
    let name = name().expect("MOAT_CHROMIUM=required, and no Chromium is on the path");
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str| File::create(place.path().join(name)).unwrap();
    let mut child = Command::new(name)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=5000"])
        .arg("--window-size=1400,900")
        .arg(format!("--user-data-dir={}", place.path().display()))
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
            panic!("the browser has not shown the page in time");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let read = |name: &str| std::fs::read(place.path().join(name)).unwrap();
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

/// A part of the page: what is between its tags, without the tags in it.
pub(crate) struct Row {
    pub(crate) class: String,
    pub(crate) html: String,
    pub(crate) text: String,
}

impl Dom {
    /// The rows of output that are in the document, from the first to the last.
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

    /// The text of the element with this id, which holds no element of its own kind.
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
