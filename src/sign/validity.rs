//! The times of an `allowed_signers` file.

use jiff::civil::{Date, DateTime, date};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// Reads a time as `ssh-keygen` does: `YYYYMMDD[HHMM[SS]]`, in local time unless `Z` follows.
///
/// Returns seconds since 1970, or `None` if the text is no such time.
pub(super) fn parse(text: &str, zone: &TimeZone) -> Option<u64> {
    let upper = text.to_ascii_uppercase();
    let utc = upper.strip_suffix('Z').or(upper.strip_suffix("UTC"));
    let digits = utc.unwrap_or(&upper);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |from: usize, to: usize| digits.get(from..to).map_or(Ok(0), str::parse::<i16>);
    let (hour, minute, second) = match digits.len() {
        8 => (0, 0, 0),
        12 => (number(8, 10).ok()?, number(10, 12).ok()?, 0),
        14 => (
            number(8, 10).ok()?,
            number(10, 12).ok()?,
            number(12, 14).ok()?,
        ),
        _ => return None,
    };
    let (year, month) = (number(0, 4).ok()?, number(4, 6).ok()?);
    let day = number(6, 8).ok()?;
    if !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // The C library counts on from the end of a month: February 30 is in March.
    let first = Date::new(year, i8::try_from(month).ok()?, 1).ok()?;
    let time = first.to_datetime(jiff::civil::Time::midnight());
    let minutes = i64::from(hour) * 60 + i64::from(minute);
    let since_midnight = minutes * 60 + i64::from(second);
    let time = time
        .checked_add(i64::from(day - 1).days())
        .and_then(|time| time.checked_add(since_midnight.seconds()))
        .unwrap_or(DateTime::MAX);
    let seconds = match utc {
        // The last timestamp is on this day: all later times are equal to it.
        _ if time.date() >= date(9999, 12, 30) => Timestamp::MAX.as_second(),
        Some(_) => TimeZone::UTC.to_timestamp(time).ok()?.as_second(),
        None => local(time, zone)?,
    };
    u64::try_from(seconds).ok().filter(|seconds| *seconds != 0)
}

/// Converts a local time as `mktime` does without daylight saving time.
///
/// `ssh-keygen` does not let `mktime` find out about it, so its local times are in standard time
/// all year.
fn local(time: DateTime, zone: &TimeZone) -> Option<i64> {
    let found = zone.to_ambiguous_timestamp(time).later().ok()?;
    if !zone.to_offset_info(found).dst().is_dst() {
        return Some(found.as_second());
    }
    let standard = zone
        .preceding(found)
        .chain(zone.following(found))
        .find(|transition| !transition.dst().is_dst())?;
    let at = standard.offset().to_timestamp(time).ok()?;
    Some(at.as_second())
}
