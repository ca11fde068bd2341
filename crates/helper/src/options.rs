//! The command line.

use std::collections::VecDeque;
use std::ffi::OsString;

/// The arguments of a subcommand that were not read yet.
#[derive(Debug)]
pub(crate) struct Options(VecDeque<OsString>);

impl Options {
    pub(crate) fn new(args: Vec<OsString>) -> Self {
        Self(args.into())
    }

    /// Returns the next `--option`, or none at the first argument that is not an option. The
    /// argument `--` is skipped.
    pub(crate) fn next_option(&mut self) -> Option<String> {
        let option = self.0.front()?.to_str()?.strip_prefix("--")?.to_owned();
        self.0.pop_front();
        (!option.is_empty()).then_some(option)
    }

    /// Returns the value of an option.
    ///
    /// # Errors
    ///
    /// There are no more arguments.
    pub(crate) fn value(&mut self, option: &str) -> Result<OsString, String> {
        let value = self.0.pop_front();
        value.ok_or_else(|| format!("--{option} needs a value"))
    }

    /// Returns the value of an option as text.
    ///
    /// # Errors
    ///
    /// There are no more arguments, or the next one is not UTF-8.
    pub(crate) fn text(&mut self, option: &str) -> Result<String, String> {
        let value = self.value(option)?.into_string();
        value.map_err(|value| format!("--{option}: {value:?} is not UTF-8"))
    }

    /// Returns the value of an option as a number.
    ///
    /// # Errors
    ///
    /// There are no more arguments, or the next one is not a number.
    pub(crate) fn number(&mut self, option: &str) -> Result<u64, String> {
        let value = self.text(option)?;
        let number = value.parse();
        number.map_err(|_| format!("--{option}: {value:?} is not a number"))
    }

    /// Returns the next argument.
    ///
    /// # Errors
    ///
    /// There are no more arguments.
    pub(crate) fn operand(&mut self, name: &str) -> Result<OsString, String> {
        self.0
            .pop_front()
            .ok_or_else(|| format!("{name} is missing"))
    }

    /// Returns all other arguments.
    pub(crate) fn rest(self) -> Vec<OsString> {
        self.0.into()
    }
}
