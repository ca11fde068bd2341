//! Buildkite.
//!
//! `---`, `+++` or `~~~` at the start of a line starts a group, and `^^^ +++` expands the current
//! group. Color codes before them do not matter.

use std::borrow::Cow;

use super::{Group, trim_start};

pub(super) fn neutralize(text: &str) -> Cow<'_, str> {
    let start = trim_start(text);
    match ["---", "+++", "~~~", "^^^"]
        .iter()
        .any(|marker| start.starts_with(marker))
    {
        true => Cow::Owned(format!(". {text}")),
        false => Cow::Borrowed(text),
    }
}

/// A group. It ends where the next group starts.
pub(super) fn group(title: &str, expanded: bool) -> Group {
    let marker = if expanded { "+++" } else { "---" };
    Group {
        open: vec![format!("{marker} {title}")],
        close: Vec::new(),
    }
}
