//! The event log: the last things that happened at this director, for people. It lives in memory and ends with the process.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dyad_backend::device::DeviceId;
use dyad_backend::raid::GroupState;
use dyad_backend::raid::group::MemberState;
use dyad_reactor::ring::Receiver;
use dyad_reactor::{BootClock, Clock, Time};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::snapshot::{Happened, Happening};

/// Events that are kept; older ones make room.
const KEPT: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts from 1 in each run of the director.
    pub number: u64,
    /// When: milliseconds since 1970.
    pub unix_ms: u64,
    /// What.
    pub what: String,
}

/// The log.
#[derive(Debug, Default)]
pub(super) struct EventLog(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    number: u64,
}

impl EventLog {
    /// Notes what happened at a moment of this machine's clock.
    pub(super) fn note(&self, at: Time, what: &impl fmt::Display) {
        let unix_ms = unix_ms(BootClock.now().since(at));
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.number += 1;
        let event = Event { number: kept.number, unix_ms, what: what.to_string() };
        if kept.events.len() == KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back(event);
    }

    /// Notes what happened now.
    pub(super) fn note_now(&self, what: &impl fmt::Display) {
        self.note(BootClock.now(), what);
    }

    /// All that are kept, oldest first.
    pub(super) fn list(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).events.iter().cloned().collect()
    }

    /// Takes what the reactor says until it is gone.
    pub(super) async fn listen(&self, mut happened: Receiver<Happened>) {
        while let Some(Happened { at, what }) = happened.receive().await {
            self.note(at, &what);
        }
    }
}

/// The wall clock's time so long ago, in milliseconds.
#[expect(clippy::disallowed_types, reason = "people read it; nothing is decided by it")]
fn unix_ms(ago: Duration) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.saturating_sub(ago).as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Membership(state, serves, epoch) => {
                write!(f, "{state}, epoch {epoch}, {}", if *serves { "serves" } else { "does not serve" })
            }
            Self::Group(GroupState::Optimal) => write!(f, "the group has all its members"),
            Self::Group(GroupState::Degraded) => write!(f, "the group is degraded: replace the failed device"),
            Self::Group(GroupState::Lost) => write!(f, "the group is lost: more devices failed than it can spare"),
            Self::Member(device, state) => write!(f, "device {}: {}", hex(device), member_state(*state)),
        }
    }
}

/// A device's identity as people see it.
pub(super) fn hex(device: &DeviceId) -> String {
    device.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A member's state in one word.
pub(super) const fn member_state(state: MemberState) -> &'static str {
    match state {
        MemberState::Live => "live",
        MemberState::Failing => "failing",
        MemberState::Out => "out",
        MemberState::Preparing => "preparing",
        MemberState::Rebuilding => "rebuilding",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_last_events_and_their_numbers() {
        let log = EventLog::default();
        for number in 0..KEPT + 3 {
            log.note_now(&number);
        }
        let events = log.list();
        assert_eq!(events.len(), KEPT);
        assert_eq!((events[0].number, &*events[0].what), (4, "3"));
        assert!(events.windows(2).all(|pair| pair[0].number + 1 == pair[1].number));
    }

    #[test]
    fn what_happened_earlier_has_an_earlier_time() {
        let log = EventLog::default();
        log.note(Time::ZERO, &"boot");
        log.note_now(&"now");
        let events = log.list();
        assert!(events[0].unix_ms < events[1].unix_ms && events[1].unix_ms > 1_700_000_000_000, "{events:?}");
    }
}
