//! The CI system that reads the output of this process.
//!
//! A system takes some lines as commands. Text of a step, or with a name from the pipeline, is
//! changed so that it contains no command, and is printed in a group where the system has groups.

mod azure;
mod buildkite;
mod github;
mod gitlab;
mod teamcity;

use std::borrow::Cow;
use std::path::Path;

use clap::ValueEnum;

use crate::codes::{self, Visible};

/// A CI system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CiSystem {
    Github,
    Gitlab,
    Azure,
    Teamcity,
    Buildkite,
    /// No CI system, or one without commands
    None,
}

/// The variable of each system, which is set for every job.
const VARIABLES: [(&str, CiSystem); 5] = [
    ("GITHUB_ACTIONS", CiSystem::Github),
    ("GITLAB_CI", CiSystem::Gitlab),
    ("TF_BUILD", CiSystem::Azure),
    ("TEAMCITY_VERSION", CiSystem::Teamcity),
    ("BUILDKITE", CiSystem::Buildkite),
];

/// The severity of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Warning,
    Error,
}

/// The lines around a group.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub open: Vec<String>,
    pub close: Vec<String>,
}

impl CiSystem {
    /// The system of this job. `lookup` returns the value of an environment variable.
    pub fn detect(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let is_set = |name: &str| {
            lookup(name)
                .is_some_and(|value| !["", "0", "false"].contains(&value.to_lowercase().as_str()))
        };
        let found = VARIABLES.iter().find(|(name, _)| is_set(name));
        found.map_or(Self::None, |(_, ci_system)| *ci_system)
    }

    /// Returns one line that contains no command.
    ///
    /// Colors remain. Other escape codes are removed, and control characters become spaces.
    pub fn neutralize(self, line: &str) -> String {
        let Visible { colored, text } = codes::visible(line);
        let neutral = match self {
            Self::Github => github::neutralize(&text),
            Self::Gitlab => gitlab::neutralize(&text),
            Self::Azure => azure::neutralize(&text),
            Self::Teamcity => teamcity::neutralize(&text),
            Self::Buildkite => buildkite::neutralize(&text),
            Self::None => Cow::Borrowed(text.as_str()),
        };
        // A color code must not hide a command from the check.
        if neutral == text {
            colored
        } else {
            neutral.into_owned()
        }
    }

    /// Starts a group. `expanded` is a hint for systems that collapse groups.
    pub fn group(self, title: &str, expanded: bool) -> Group {
        let title = self.neutralize(title);
        match self {
            Self::Github => github::group(&title),
            Self::Gitlab => gitlab::group(&title, expanded),
            Self::Azure => azure::group(&title),
            Self::Teamcity => teamcity::group(&title),
            Self::Buildkite => buildkite::group(&title, expanded),
            Self::None => Group {
                open: vec![format!("--- {title}")],
                close: Vec::new(),
            },
        }
    }

    /// A line that ends the last group, on a system whose groups have no end.
    pub fn heading(self, title: &str) -> Option<String> {
        let group = self.group(title, true).open;
        group.into_iter().next().filter(|_| self == Self::Buildkite)
    }

    /// The command that adds a Markdown file to the page of the job, on a system that has one.
    pub fn upload_summary(self, path: &Path) -> Option<String> {
        (self == Self::Azure).then(|| azure::upload_summary(path))
    }

    /// A message that the system shows with the result of the job, if it can.
    pub fn annotate(self, severity: Severity, title: &str, message: &str) -> String {
        let message = self.neutralize(message);
        match self {
            Self::Github => github::annotate(severity, &self.neutralize(title), &message),
            Self::Azure => azure::annotate(severity, &message),
            Self::Teamcity => teamcity::annotate(severity, &message),
            Self::Gitlab | Self::Buildkite | Self::None => message,
        }
    }
}

/// Inserts a space into each occurrence of `word`, `at` bytes after its start.
///
/// `word` is in lower case, and matches text in any case.
fn split_word<'a>(text: Cow<'a, str>, word: &str, at: usize) -> Cow<'a, str> {
    let lower = text.to_ascii_lowercase();
    let mut split = String::new();
    let mut copied = 0;
    for (start, _) in lower.match_indices(word) {
        split.push_str(&text[copied..start + at]);
        split.push(' ');
        copied = start + at;
    }
    if copied == 0 {
        return text;
    }
    split.push_str(&text[copied..]);
    Cow::Owned(split)
}

/// Trims what a system may take for white space at the start of a line.
fn trim_start(text: &str) -> &str {
    let is_blank = |c: char| c.is_whitespace() || matches!(c, '\u{200b}' | '\u{feff}');
    text.trim_start_matches(is_blank)
}

#[cfg(test)]
mod tests;
