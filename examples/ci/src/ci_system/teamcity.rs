//! TeamCity.
//!
//! The agent takes `##teamcity[...]` as a service message.

use std::borrow::Cow;

use super::{Group, Severity, split_word};

pub(super) fn neutralize(text: &str) -> Cow<'_, str> {
    split_word(Cow::Borrowed(text), "##teamcity", 2)
}

pub(super) fn group(title: &str) -> Group {
    let title = escape(title);
    Group {
        open: vec![format!("##teamcity[blockOpened name='{title}']")],
        close: vec![format!("##teamcity[blockClosed name='{title}']")],
    }
}

pub(super) fn annotate(severity: Severity, message: &str) -> String {
    let status = match severity {
        Severity::Warning => "WARNING",
        Severity::Error => "ERROR",
    };
    format!(
        "##teamcity[message text='{}' status='{status}']",
        escape(message)
    )
}

/// Escapes the value of an attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '|' | '\'' | '[' | ']' => escaped.extend(['|', c]),
            '\n' => escaped.push_str("|n"),
            '\r' => escaped.push_str("|r"),
            _ => escaped.push(c),
        }
    }
    escaped
}
