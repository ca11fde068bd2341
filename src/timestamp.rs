//! Wall-clock time in nanoseconds, in the form of the audit file.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in wall-clock time, in UTC, with nanosecond resolution.
///
/// Clocks can step back, so timestamps do not order events.
///
/// `Display`, `FromStr` and serde use RFC 3339 with nine fractional digits:
/// `2026-11-22T18:23:25.491211661Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// The current time by this machine's clock.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now())
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
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not an RFC 3339 timestamp")]
pub struct ParseTimestampError {
    text: String,
    source: jiff::Error,
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
}
