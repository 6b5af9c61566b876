//! When a device is failed before it hurts: it errs too often, or it is much slower than its peers for seconds.
//!
//! Time is cut into windows. What a member is, is said by this table ([`Health::after`]) and nothing else:
//!
//! | state | what was seen | next |
//! |---|---|---|
//! | `Good` | a slow window | `Suspect(1)` |
//! | `Suspect(n)` | a slow window, n + 1 < [`SLOW_WINDOWS`] | `Suspect(n + 1)` |
//! | `Suspect(n)` | a slow window, n + 1 = [`SLOW_WINDOWS`] | `Bad(Slow)` |
//! | `Suspect(n)` | a window that was not slow | `Good` |
//! | `Good`, `Suspect(n)` | [`ERRORS_MAX`] points of errors | `Bad(Errs)` |
//!
//! A window is slow if the member's mean latency is more than [`SLOW_FACTOR`] times the median of the other members' and more than [`SLOW_FLOOR`]; what slows
//! all of them condemns none. A media error is one point, an aborted command [`ABORT_POINTS`]; one point is forgotten each [`FORGIVEN_EACH`].

use std::time::Duration;

use dyad_reactor::Time;

use crate::device::DeviceError;
use crate::raid::geometry::MEMBERS_MAX;

/// Of one window.
pub(super) const WINDOW: Duration = Duration::from_secs(1);
/// Times the median of the others.
pub(super) const SLOW_FACTOR: u32 = 8;
/// Below this nobody is slow.
pub(super) const SLOW_FLOOR: Duration = Duration::from_millis(20);
/// In so many windows, one after the other.
pub(super) const SLOW_WINDOWS: u8 = 3;
/// A mean of fewer commands says nothing.
const COMMANDS_LEAST: u32 = 4;
/// Points of errors at which a device is not worth keeping.
pub(super) const ERRORS_MAX: u32 = 32;
/// A command that had to be aborted has cost its host seconds.
pub(super) const ABORT_POINTS: u32 = 4;
/// One point is forgotten in this time.
pub(super) const FORGIVEN_EACH: Duration = Duration::from_secs(60);

/// Why a device is failed.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Complaint {
    /// It is much slower than its peers.
    Slow,
    /// It errs too often.
    Errs,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Health {
    Good,
    Suspect(u8),
    Bad(Complaint),
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Seen {
    SlowWindow,
    FairWindow,
    TooManyErrors,
}

impl Health {
    const fn after(self, seen: Seen) -> Self {
        match (self, seen) {
            (Self::Good, Seen::SlowWindow) => Self::Suspect(1),
            (Self::Suspect(n), Seen::SlowWindow) if n + 1 < SLOW_WINDOWS => Self::Suspect(n + 1),
            (Self::Suspect(_), Seen::SlowWindow) => Self::Bad(Complaint::Slow),
            (Self::Good | Self::Suspect(_), Seen::FairWindow) => Self::Good,
            (Self::Good | Self::Suspect(_), Seen::TooManyErrors) => Self::Bad(Complaint::Errs),
            (Self::Bad(why), _) => Self::Bad(why),
        }
    }
}

#[derive(Debug, Copy, Clone)]
struct Vital {
    health: Health,
    commands: u32,
    took: Duration,
    points: u32,
    forgiven: Time,
}

/// Watches the members of a group.
#[derive(Debug)]
pub(super) struct Watch {
    window_ends: Time,
    members: heapless::Vec<Vital, MEMBERS_MAX>,
}

impl Watch {
    pub(super) fn new(members: usize, now: Time) -> Self {
        let fresh = Vital { health: Health::Good, commands: 0, took: Duration::ZERO, points: 0, forgiven: now };
        Self { window_ends: now + WINDOW, members: (0..members).map(|_| fresh).collect() }
    }

    /// Another device is in the member's place.
    pub(super) fn forget(&mut self, member: usize, now: Time) {
        self.members[member] =
            Vital { health: Health::Good, commands: 0, took: Duration::ZERO, points: 0, forgiven: now };
    }

    /// A command of a member ended. Returns a member that must go, and why; each once.
    pub(super) fn observe(
        &mut self,
        now: Time,
        member: usize,
        outcome: Result<(), DeviceError>,
        took: Duration,
    ) -> Option<(usize, Complaint)> {
        let judged = if now >= self.window_ends { self.close_window(now) } else { None };
        let vital = &mut self.members[member];
        vital.commands += 1;
        vital.took += took;
        let points = match outcome {
            Err(DeviceError::Media) => 1,
            Err(DeviceError::Aborted) => ABORT_POINTS,
            Ok(()) | Err(DeviceError::ReservationConflict | DeviceError::Rejected | DeviceError::Gone) => 0,
        };
        if points > 0 {
            while vital.points > 0 && now.since(vital.forgiven) >= FORGIVEN_EACH {
                vital.points -= 1;
                vital.forgiven = vital.forgiven + FORGIVEN_EACH;
            }
            if vital.points == 0 {
                vital.forgiven = now;
            }
            vital.points += points;
            if vital.points >= ERRORS_MAX
                && let Some(complaint) = self.see(member, Seen::TooManyErrors)
            {
                return Some((member, complaint));
            }
        }
        judged
    }

    /// At most one member goes in a window: whatever slows several of them is not theirs.
    fn close_window(&mut self, now: Time) -> Option<(usize, Complaint)> {
        self.window_ends = now + WINDOW;
        let mean = |vital: &Vital| (vital.commands >= COMMANDS_LEAST).then(|| vital.took / vital.commands);
        let means: heapless::Vec<Option<Duration>, MEMBERS_MAX> = self.members.iter().map(mean).collect();
        let mut gone = None;
        for member in 0..means.len() {
            let mut others: heapless::Vec<Duration, MEMBERS_MAX> =
                means.iter().enumerate().filter(|(m, _)| *m != member).filter_map(|(_, mean)| *mean).collect();
            others.sort_unstable();
            let (Some(own), Some(median)) = (means[member], others.get(others.len() / 2)) else { continue };
            let slow = own > SLOW_FLOOR && own > *median * SLOW_FACTOR;
            let complaint = self.see(member, if slow { Seen::SlowWindow } else { Seen::FairWindow });
            gone = gone.or(complaint.map(|complaint| (member, complaint)));
        }
        for vital in &mut self.members {
            (vital.commands, vital.took) = (0, Duration::ZERO);
        }
        gone
    }

    /// What is wrong with the member, if that is new.
    fn see(&mut self, member: usize, seen: Seen) -> Option<Complaint> {
        let before = self.members[member].health;
        let after = before.after(seen);
        self.members[member].health = after;
        match after {
            Health::Bad(complaint) if before != after => Some(complaint),
            Health::Good | Health::Suspect(_) | Health::Bad(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_micros(100);
    const SLOW: Duration = Duration::from_millis(50);

    /// Windows in which members take these times.
    fn windows(watch: &mut Watch, from: u64, count: u64, took: &[Duration]) -> Option<(usize, Complaint)> {
        let mut gone = None;
        for window in from..from + count {
            for command in 0..10 {
                let now = Time::ZERO + WINDOW * u32::try_from(window).expect("few") + Duration::from_millis(command);
                for (member, took) in took.iter().enumerate() {
                    gone = gone.or(watch.observe(now, member, Ok(()), *took));
                }
            }
        }
        gone
    }

    #[test]
    fn a_member_that_is_slow_for_three_windows_goes_and_one_slow_window_is_forgiven() {
        let mut watch = Watch::new(3, Time::ZERO);
        assert_eq!(windows(&mut watch, 0, 3, &[FAST, SLOW, FAST]), None);
        assert_eq!(windows(&mut watch, 3, 1, &[FAST, FAST, FAST]), Some((1, Complaint::Slow)), "the third has ended");
        let mut watch = Watch::new(3, Time::ZERO);
        assert_eq!(windows(&mut watch, 0, 2, &[FAST, SLOW, FAST]), None);
        assert_eq!(windows(&mut watch, 2, 1, &[FAST, FAST, FAST]), None);
        assert_eq!(windows(&mut watch, 3, 2, &[FAST, SLOW, FAST]), None);
        assert_eq!(windows(&mut watch, 5, 5, &[FAST, FAST, FAST]), None);
    }

    #[test]
    fn what_slows_all_of_them_condemns_none() {
        let mut watch = Watch::new(2, Time::ZERO);
        assert_eq!(windows(&mut watch, 0, 20, &[SLOW, SLOW * 3]), None);
        let mut alone = Watch::new(1, Time::ZERO);
        assert_eq!(windows(&mut alone, 0, 20, &[SLOW]), None);
    }

    #[test]
    fn errors_add_up_and_are_forgotten() {
        let mut watch = Watch::new(2, Time::ZERO);
        let media = Err(DeviceError::Media);
        for n in 1..ERRORS_MAX {
            assert_eq!(watch.observe(Time::ZERO, 0, media, FAST), None, "{n}");
        }
        assert_eq!(watch.observe(Time::ZERO, 0, media, FAST), Some((0, Complaint::Errs)));
        assert_eq!(watch.observe(Time::ZERO, 0, media, FAST), None, "said once");
        for n in 0..10 * ERRORS_MAX {
            assert_eq!(watch.observe(Time::ZERO + FORGIVEN_EACH * n, 1, media, FAST), None);
        }
        for n in 0..ERRORS_MAX / ABORT_POINTS {
            let gone = watch.observe(Time::ZERO + FORGIVEN_EACH * 1000, 1, Err(DeviceError::Aborted), FAST);
            assert_eq!(gone.is_some(), n + 1 == ERRORS_MAX / ABORT_POINTS);
        }
    }
}
