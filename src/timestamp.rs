//! Wall-clock time in nanoseconds, in the form of the audit file.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::causes;

/// A point in wall-clock time, in UTC, with nanosecond resolution.
///
/// Clocks can step back, so timestamps do not order events.
///
/// `Display`, `FromStr` and serde use RFC 3339 with nine fractional digits:
/// `2026-11-22T18:23:25.491211661Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// The length of its text, in bytes.
    pub(crate) const LENGTH: usize = "2026-11-22T18:23:25.491211661Z".len();

    /// The current time by this machine's clock.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now())
    }

    /// The time in whole seconds, and the nanoseconds after it. From 1970 on, both are positive.
    pub(crate) fn parts(self) -> (i64, i32) {
        (self.0.as_second(), self.0.subsec_nanosecond())
    }

    /// Parses a time from 1970 on, in the form of [`Display`](fmt::Display).
    ///
    /// `None` leaves any other text to [`FromStr`], which is slower.
    pub(crate) fn parse_fixed(text: &[u8]) -> Option<Self> {
        let text: &[u8; Self::LENGTH] = text.try_into().ok()?;
        let number = |from: usize, length: usize| {
            text[from..from + length]
                .iter()
                .try_fold(0u64, |sum, byte| {
                    byte.is_ascii_digit()
                        .then(|| sum * 10 + u64::from(byte - b'0'))
                })
        };
        let marks = [4, 7, 10, 13, 16, 19, 29].map(|at| text[at]);
        if &marks != b"--T::.Z" {
            return None;
        }
        let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
        let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
        let nanosecond = u32::try_from(number(20, 9)?).ok()?;
        // Invalid times and leap seconds are left to the library.
        let valid = (1970..=9998).contains(&year)
            && (1..=12).contains(&month)
            && (1..=days_in(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !valid {
            return None;
        }
        let seconds = (days_since_1970(year, month, day) * 24 + hour) * 3600 + minute * 60 + second;
        Some((SystemTime::UNIX_EPOCH + Duration::new(seconds, nanosecond)).into())
    }

    /// Adds `duration`; on overflow, returns the latest representable time.
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.checked_add(duration).unwrap_or(jiff::Timestamp::MAX))
    }

    /// Subtracts `duration`; on overflow, returns the earliest representable time.
    pub fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.checked_sub(duration).unwrap_or(jiff::Timestamp::MIN))
    }

    /// The duration since `earlier`; zero if this time is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::try_from(self.0.duration_since(earlier.0)).unwrap_or_default()
    }
}

/// Saturates at the earliest and the latest representable time.
impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(match jiff::Timestamp::try_from(time) {
            Ok(timestamp) => timestamp,
            Err(_) if time < SystemTime::UNIX_EPOCH => jiff::Timestamp::MIN,
            Err(_) => jiff::Timestamp::MAX,
        })
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        time.0.into()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.9}", self.0)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The error for text that is not an RFC 3339 timestamp.
#[derive(thiserror::Error)]
#[error("{text:?} is not an RFC 3339 timestamp")]
pub struct ParseTimestampError {
    text: String,
    source: jiff::Error,
}

impl fmt::Debug for ParseTimestampError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        causes::fmt_debug(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse()
            .map(Self)
            .map_err(|source| ParseTimestampError {
                text: text.into(),
                source,
            })
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    /// The days of a common year before each month.
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let years = (year - 1970) * 365 + leaps(year - 1) - leaps(1969);
    let leap_day = u64::from(month > 2 && is_leap(year));
    years + BEFORE[month as usize - 1] + leap_day + day - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_round_trips() {
        let text = "2026-11-22T18:23:25.491211661Z";
        let time: Timestamp = text.parse().unwrap();
        assert_eq!(time.to_string(), text);
        let json = serde_json::to_string(&time).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), time);
    }

    #[test]
    fn a_whole_second_has_nine_fractional_digits() {
        let time: Timestamp = "2026-11-22T18:23:25Z".parse().unwrap();
        assert_eq!(time.to_string(), "2026-11-22T18:23:25.000000000Z");
    }

    #[test]
    fn a_system_time_out_of_range_saturates() {
        let far = Duration::from_secs(1 << 40);
        let past = Timestamp::from(SystemTime::UNIX_EPOCH - far);
        let future = Timestamp::from(SystemTime::UNIX_EPOCH + far);
        assert_eq!(
            (past.0, future.0),
            (jiff::Timestamp::MIN, jiff::Timestamp::MAX)
        );
    }

    #[test]
    fn a_clock_that_steps_back_gives_zero() {
        let early: Timestamp = "2026-11-22T18:23:25Z".parse().unwrap();
        let late = early.saturating_add(Duration::from_secs(3));
        assert_eq!(late.since(early), Duration::from_secs(3));
        assert_eq!(early.since(late), Duration::ZERO);
    }

    #[test]
    fn times_agree_with_the_library() {
        let text = |seconds: u64, nanos| {
            Timestamp::from(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)).to_string()
        };
        let day = 24 * 3600;
        for days in (0..366 * 80).chain(47_000..48_500) {
            let text = text(days * day + days % day, (days * 5471) as u32);
            let fast = Timestamp::parse_fixed(text.as_bytes());
            assert_eq!(fast, text.parse().ok(), "{text}");
        }
        for bad in [
            "2026-02-29T18:23:25.491211661Z",
            "2026-13-22T18:23:25.491211661Z",
            "2026-00-22T18:23:25.491211661Z",
            "2026-11-00T18:23:25.491211661Z",
            "2026-11-31T18:23:25.491211661Z",
            "2026-11-22T24:23:25.491211661Z",
            "2026-11-22T18:60:25.491211661Z",
            "2026-11-22T18:23:60.491211661Z",
            "2026-11-22T18:23:25.49121166 Z",
            "2026-11-22T18:23:25.491211661z",
            "2026-11-22 18:23:25.491211661Z",
            "1969-11-22T18:23:25.491211661Z",
        ] {
            assert_eq!(Timestamp::parse_fixed(bad.as_bytes()), None, "{bad}");
        }
    }
}
