//! The signals of Linux, by name and number.

/// The names from number 1 on.
#[rustfmt::skip]
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The number of the last realtime signal.
#[cfg(feature = "kube")]
const LAST: i32 = 64;

/// Returns the name of a signal, such as `SIGTERM`, or none for a realtime signal.
#[cfg(feature = "docker")]
pub(super) fn name(number: u64) -> Option<String> {
    let index = usize::try_from(number.checked_sub(1)?).ok()?;
    NAMES.get(index).map(|name| format!("SIG{name}"))
}

/// Returns the number of a signal such as `SIGTERM`, `TERM` or `15`.
#[cfg(feature = "kube")]
pub(super) fn number(name: &str) -> Option<i32> {
    let bare = name.strip_prefix("SIG").unwrap_or(name);
    match (1..).zip(NAMES).find(|(_, known)| *known == bare) {
        Some((number, _)) => Some(number),
        None => name
            .parse()
            .ok()
            .filter(|number| (1..=LAST).contains(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "docker")]
    #[test]
    fn numbers_have_names() {
        assert_eq!(name(15).as_deref(), Some("SIGTERM"));
        assert_eq!(name(31).as_deref(), Some("SIGSYS"));
        for number in [0, 32, 64, u64::MAX] {
            assert_eq!(name(number), None, "{number}");
        }
    }

    #[cfg(feature = "kube")]
    #[test]
    fn names_and_numbers_have_numbers() {
        for text in ["SIGTERM", "TERM", "15"] {
            assert_eq!(number(text), Some(15), "{text}");
        }
        assert_eq!(number("SIGSYS"), Some(31));
        assert_eq!(number("34"), Some(34));
        for text in ["", "SIG", "sigterm", "SIGNOPE", "0", "-15", "65", "SIG15"] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}
