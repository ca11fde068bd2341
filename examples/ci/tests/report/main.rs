//! Tests of the HTML report: the file, and its page in a browser.
//!
//! The browser is headless Chromium. Without Chromium the trials of the page are skipped. With
//! `MOAT_CHROMIUM=required` they fail.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use testkit::chromium;
use testkit::harness::{Harness, Trial, anywhere};

mod access;
mod audit;
mod browser;
mod file;
mod page;
mod sample;

fn main() {
    // A process that only writes a report, so that its memory can be measured.
    if let Some(audit) = std::env::var_os(file::WRITE_REPORT_OF) {
        return file::write_report_of(audit.as_ref());
    }
    Harness::from_args(2)
        .trials(file::trials())
        .trials(page::trials())
        .trials(access::trials())
        .run()
}

/// A trial in a headless browser.
fn in_browser(name: &str, trial: fn()) -> Trial {
    anywhere(name, trial).needs(&chromium::need())
}
