//! GitLab CI/CD.
//!
//! `section_start:TIME:NAME`, a carriage return and `ESC[0K` start a section, anywhere in a line.

use std::borrow::Cow;
use std::time::SystemTime;

use uuid::Uuid;

use super::{Group, split_word};

pub(super) fn neutralize(text: &str) -> Cow<'_, str> {
    let text = split_word(Cow::Borrowed(text), "section_start:", "section_start".len());
    split_word(text, "section_end:", "section_end".len())
}

/// A section with a random name, which no other section of the job has.
pub(super) fn group(title: &str, expanded: bool) -> Group {
    let time = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |time| time.as_secs());
    let name = format!("moat_ci_{}", Uuid::new_v4().simple());
    let options = if expanded { "" } else { "[collapsed=true]" };
    Group {
        open: vec![format!(
            "\x1b[0Ksection_start:{time}:{name}{options}\r\x1b[0K{title}"
        )],
        close: vec![format!("\x1b[0Ksection_end:{time}:{name}\r\x1b[0K")],
    }
}
