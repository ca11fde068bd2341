//! Continuity of an engine, from the events that it has in memory.
//!
//! An engine keeps events only in memory. If it still has the create event of a container, it has not
//! restarted since. A start event proves less: an engine that was killed while it started a container
//! emits that event once it finds the container again.

use serde::Deserialize;
use serde_json::Value;

use super::errors::Failure;
use crate::runtime::Continuity;
use crate::spec::ContainerId;

/// The number of events that an engine keeps.
const MAX_EVENTS: usize = 256;

/// An item of the response to `GET /events`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(default, rename = "Type")]
    kind: String,
    #[serde(default)]
    action: String,
    #[serde(default)]
    actor: Actor,
}

#[derive(Debug, Default, Deserialize)]
struct Actor {
    #[serde(default, rename = "ID")]
    id: String,
}

/// Decides continuity since the creation of a container, from one listing of the events.
///
/// The listing has all events in the engine's memory that are older than the request.
pub(super) fn continuity(json: &[u8], container: &ContainerId) -> Result<Continuity, Failure> {
    let mut count = 0;
    for event in serde_json::Deserializer::from_slice(json).into_iter() {
        let event: Event = event.map_err(|error| Failure::malformed(&error))?;
        if event.kind == "container"
            && event.action == "create"
            && event.actor.id == container.as_str()
        {
            return Ok(Continuity::Unbroken);
        }
        count += 1;
    }
    // An engine that has room for more events has not dropped any.
    Ok(match count {
        MAX_EVENTS.. => Continuity::Unknown,
        _ => Continuity::Broken,
    })
}

/// Confirms [`Continuity::Broken`] of the `first` listing with a second one.
///
/// A short listing does not prove that the memory had room. A listing leaves out events that are
/// newer than its request, and those events may have displaced the create event. The second listing
/// includes them. If both begin with the same event, the engine dropped no event in between.
pub(super) fn confirmed(
    first: &[u8],
    second: &[u8],
    container: &ContainerId,
) -> Result<Continuity, Failure> {
    let continuity = continuity(second, container)?;
    let dropped = match oldest(first)? {
        Some(event) => oldest(second)? != Some(event),
        None => false,
    };
    Ok(match continuity {
        Continuity::Broken if dropped => Continuity::Unknown,
        continuity => continuity,
    })
}

fn oldest(json: &[u8]) -> Result<Option<Value>, Failure> {
    let mut events = serde_json::Deserializer::from_slice(json).into_iter();
    let oldest = events.next().transpose();
    oldest.map_err(|error| Failure::malformed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(action: &str, id: &str) -> String {
        json!({"status": action, "id": id, "Type": "container", "Action": action,
            "Actor": {"ID": id, "Attributes": {"image": "x"}}, "time": 1, "timeNano": 1})
        .to_string()
            + "\n"
    }

    fn listed(events: &str) -> Continuity {
        continuity(events.as_bytes(), &ContainerId::new("mine")).unwrap()
    }

    #[test]
    fn a_create_event_in_memory_proves_continuity() {
        let created = event("create", "mine");
        let others = event("create", "other").repeat(300);
        assert_eq!(listed(&created), Continuity::Unbroken);
        assert_eq!(listed(&(others + &created)), Continuity::Unbroken);
        let started = created + &event("start", "mine");
        assert_eq!(listed(&started), Continuity::Unbroken);
    }

    #[test]
    fn a_missing_create_event_is_broken_or_unknown() {
        assert_eq!(listed(""), Continuity::Broken);
        // A restarted engine emits a start event for a container that it lost track of.
        let mine = event("start", "mine") + &event("die", "mine");
        assert_eq!(listed(&mine), Continuity::Broken);
        let others = event("create", "other");
        assert_eq!(listed(&others.repeat(MAX_EVENTS - 1)), Continuity::Broken);
        assert_eq!(listed(&others.repeat(MAX_EVENTS)), Continuity::Unknown);
        assert!(continuity(b"<html>", &ContainerId::new("mine")).is_err());
    }

    #[test]
    fn newer_events_may_have_displaced_the_create_event() {
        let mine = ContainerId::new("mine");
        let decide = |first: &str, second: &str| {
            confirmed(first.as_bytes(), second.as_bytes(), &mine).unwrap()
        };
        let others = event("die", "other").repeat(MAX_EVENTS - 2);
        let first = event("create", "other") + &others;
        assert_eq!(decide(&first, &first), Continuity::Broken);
        let more = first.clone() + &event("die", "other");
        assert_eq!(decide(&first, &more), Continuity::Unknown);
        assert_eq!(decide(&first, &others), Continuity::Unknown);
        assert_eq!(decide(&first, ""), Continuity::Unknown);
        assert_eq!(decide("", &others), Continuity::Broken);
        let late = others + &event("create", "mine");
        assert_eq!(decide(&first, &late), Continuity::Unbroken);
    }
}
