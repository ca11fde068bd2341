//! Workflow commands for GitHub's runner.
//!
//! Text from other sources is changed so that it contains no command.
//!
//! The runner reads commands from the output of the job: `::error::...` at the start of a line, and
//! `##[...]` anywhere in a line.

use uuid::Uuid;

/// Starts a collapsible group.
pub fn group(title: &str) -> String {
    format!("::group::{}", escape_data(title))
}

/// Ends a group.
pub const END_GROUP: &str = "::endgroup::";

/// A pair of lines between which the runner accepts no commands.
///
/// The closing line contains a random token. It is generated after the container has ended, so the
/// container's output cannot contain it.
pub struct Fence(Uuid);

impl Fence {
    pub fn new() -> Self {
        Self(Uuid::new_v4())
    }

    pub fn open(&self) -> String {
        format!("::stop-commands::{}", self.0)
    }

    pub fn close(&self) -> String {
        format!("::{}::", self.0)
    }
}

pub fn error(title: &str, message: &str) -> String {
    let (title, message) = (escape_property(title), escape_data(message));
    format!("::error title={title}::{message}")
}

pub fn warning(title: &str, message: &str) -> String {
    let (title, message) = (escape_property(title), escape_data(message));
    format!("::warning title={title}::{message}")
}

/// Changes a line so that it contains no command.
pub fn neutralize(line: &str) -> String {
    let line = line.replace(['\r', '\n'], " ").replace("##[", "## [");
    match line.trim_start().starts_with("::") {
        true => format!(". {line}"),
        false => line,
    }
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
        let line = error("a,file=x::b", "100%\n::set-output name=x::y\r");
        assert_eq!(
            line,
            "::error title=a%2Cfile=x%3A%3Ab::100%25%0A::set-output name=x::y%0D"
        );
    }

    #[test]
    fn a_neutralized_line_has_no_command() {
        assert_eq!(neutralize("a\n::error::b"), "a ::error::b");
        assert_eq!(neutralize(" ::error::b"), ".  ::error::b");
        assert_eq!(neutralize("x ##[error]b"), "x ## [error]b");
    }

    #[test]
    fn every_fence_has_its_own_token() {
        assert_ne!(Fence::new().open(), Fence::new().open());
        let fence = Fence::new();
        assert!(fence.open().ends_with(fence.close().trim_matches(':')));
    }
}
