//! GitHub Actions.
//!
//! The runner takes `::error::...` at the start of a line and `##[...]` anywhere as commands.

use std::borrow::Cow;

use uuid::Uuid;

use super::{Group, Severity, split_word, trim_start};

pub(super) fn neutralize(text: &str) -> Cow<'_, str> {
    let text = split_word(Cow::Borrowed(text), "##[", 2);
    match trim_start(&text).starts_with("::") {
        true => Cow::Owned(format!(". {text}")),
        false => text,
    }
}

/// A group in which the runner accepts no commands.
///
/// The last line but one contains a random token. It is generated after the container has ended,
/// so the container's output cannot contain it.
pub(super) fn group(title: &str) -> Group {
    let token = Uuid::new_v4();
    Group {
        open: vec![
            format!("::group::{}", escape_data(title)),
            format!("::stop-commands::{token}"),
        ],
        close: vec![format!("::{token}::"), "::endgroup::".into()],
    }
}

pub(super) fn annotate(severity: Severity, title: &str, message: &str) -> String {
    let command = match severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    let (title, message) = (escape_property(title), escape_data(message));
    format!("::{command} title={title}::{message}")
}

fn escape_data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

fn escape_property(text: &str) -> String {
    escape_data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_add_a_property_or_a_command() {
        let message = "100%\n::set-output name=x::y\r";
        assert_eq!(
            annotate(Severity::Error, "a,file=x::b", message),
            "::error title=a%2Cfile=x%3A%3Ab::100%25%0A::set-output name=x::y%0D"
        );
    }

    #[test]
    fn every_group_has_its_own_token() {
        assert_ne!(group("a").open, group("a").open);
        let group = group("a");
        assert!(group.open[1].ends_with(group.close[0].trim_matches(':')));
    }
}
