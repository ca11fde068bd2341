//! What steers GitHub's runner, and what keeps others from doing so.
//!
//! The runner reads its commands from the output of the job: `::error::...` at the start of a line,
//! and `##[...]` anywhere in it.

use uuid::Uuid;

/// Opens a group that can be folded away.
pub fn group(title: &str) -> String {
    format!("::group::{}", data(title))
}

pub const END_GROUP: &str = "::endgroup::";

/// Between its two lines the runner takes no commands: whoever prints there cannot know the word
/// that ends it, which is made when their output is over.
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
    format!("::error title={}::{}", property(title), data(message))
}

pub fn warning(title: &str, message: &str) -> String {
    format!("::warning title={}::{}", property(title), data(message))
}

/// A line of our own that is no command, whatever is in it.
pub fn plain(line: &str) -> String {
    let line = line.replace(['\r', '\n'], " ").replace("##[", "## [");
    match line.trim_start().starts_with("::") {
        true => format!(". {line}"),
        false => line,
    }
}

fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_message_cannot_end_it_or_add_a_property() {
        let said = error("a,file=x::b", "100%\n::set-output name=x::y\r");
        assert_eq!(
            said,
            "::error title=a%2Cfile=x%3A%3Ab::100%25%0A::set-output name=x::y%0D"
        );
    }

    #[test]
    fn a_line_of_our_own_is_no_command() {
        assert_eq!(plain("a\n::error::b"), "a ::error::b");
        assert_eq!(plain(" ::error::b"), ".  ::error::b");
        assert_eq!(plain("x ##[error]b"), "x ## [error]b");
    }

    #[test]
    fn no_two_fences_are_alike() {
        assert_ne!(Fence::new().open(), Fence::new().open());
        let fence = Fence::new();
        assert!(fence.open().ends_with(fence.close().trim_matches(':')));
    }
}
