//! Azure Pipelines.
//!
//! The agent takes `##vso[...]` anywhere in a line as a command, and `##[...]` as a format.

use std::borrow::Cow;
use std::path::Path;

use super::{Group, Severity, split_word};

pub(super) fn neutralize(text: &str) -> Cow<'_, str> {
    let text = split_word(Cow::Borrowed(text), "##vso", 2);
    split_word(text, "##[", 2)
}

pub(super) fn group(title: &str) -> Group {
    Group {
        open: vec![format!("##[group]{title}")],
        close: vec!["##[endgroup]".into()],
    }
}

pub(super) fn annotate(severity: Severity, message: &str) -> String {
    let kind = match severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    format!("##vso[task.logissue type={kind}]{}", escape(message))
}

pub(super) fn upload_summary(path: &Path) -> String {
    format!(
        "##vso[task.uploadsummary]{}",
        escape(&path.display().to_string())
    )
}

fn escape(text: &str) -> String {
    text.replace('%', "%AZP25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}
