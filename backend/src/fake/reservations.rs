//! The reservation of one fake namespace: who is registered, who holds, who may write.
//!
//! Source: NVMe Base Specification 2.0, 8.19 "Reservations" (the sections of the commands are 7.2 to 7.5), reduced to the two types that
//! [`ReservationType`] names. Every change is one atomic step; draining the commands of preempted hosts is the medium's work.

use crate::device::{DeviceError, Registrant, ReservationKey, ReservationOp, ReservationReport, ReservationType};

/// A Host Identifier (128 bits, as paired controllers need: Base 2.0, 5.27.1.19).
pub(super) type HostId = [u8; 16];

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Held {
    Nobody,
    /// Write Exclusive has one holder.
    By(HostId),
    /// Write Exclusive - All Registrants: every registrant holds.
    ByAllRegistrants,
}

#[derive(Debug)]
pub(super) struct Reservations {
    /// In the order of registration; a few at most.
    registrants: Vec<(HostId, ReservationKey)>,
    held: Held,
    persistent: bool,
}

impl Reservations {
    pub(super) const fn new() -> Self {
        Self { registrants: Vec::new(), held: Held::Nobody, persistent: false }
    }

    /// May commands of the write group (Write, Write Zeroes, Flush: Base 2.0, figure "Command Behavior in the Presence of a Reservation") of `host` run?
    /// Reads always may, with these types.
    pub(super) fn may_write(&self, host: &HostId) -> bool {
        match self.held {
            Held::Nobody => true,
            Held::By(holder) => holder == *host,
            Held::ByAllRegistrants => self.key(host).is_some(),
        }
    }

    /// Is this host, which may write, the only one that may?
    pub(super) fn writes_alone(&self, host: &HostId) -> bool {
        match self.held {
            Held::Nobody => false,
            Held::By(holder) => holder == *host,
            Held::ByAllRegistrants => self.registrants.iter().all(|(registrant, _)| registrant == host),
        }
    }

    /// Executes one reservation command of `host`.
    pub(super) fn apply(&mut self, host: &HostId, op: ReservationOp) -> Result<(), DeviceError> {
        match op {
            ReservationOp::Register { key } => self.register(host, key),
            ReservationOp::Acquire { key, rtype } => {
                self.registered(host, key).and_then(|()| self.acquire(host, rtype))
            }
            ReservationOp::PreemptAndAbort { key, victim, rtype } => {
                self.registered(host, key).and_then(|()| self.preempt(host, victim, rtype))
            }
            ReservationOp::Release { key, rtype } => {
                self.registered(host, key).and_then(|()| self.release(host, rtype))
            }
            ReservationOp::Unregister { key } => self.registered(host, key).map(|()| self.remove(|h, _| h == host)),
        }
    }

    /// What a Reservation Report says.
    pub(super) fn report(&self) -> ReservationReport {
        let rtype = match self.held {
            Held::Nobody => None,
            Held::By(_) => Some(1),
            Held::ByAllRegistrants => Some(5),
        };
        let registrants =
            self.registrants.iter().map(|&(host, key)| Registrant { host, key, holder: self.holds(&host) });
        ReservationReport { rtype, persistent: self.persistent, registrants: registrants.collect() }
    }

    fn key(&self, host: &HostId) -> Option<ReservationKey> {
        self.registrants.iter().find(|(h, _)| h == host).map(|&(_, key)| key)
    }

    fn holds(&self, host: &HostId) -> bool {
        match self.held {
            Held::Nobody => false,
            Held::By(holder) => holder == *host,
            Held::ByAllRegistrants => true,
        }
    }

    /// Everything but Register needs the current key (CRKEY).
    fn registered(&self, host: &HostId, key: ReservationKey) -> Result<(), DeviceError> {
        if self.key(host) == Some(key) { Ok(()) } else { Err(DeviceError::ReservationConflict) }
    }

    fn register(&mut self, host: &HostId, key: ReservationKey) -> Result<(), DeviceError> {
        if key == ReservationKey(0) {
            return Err(DeviceError::Rejected);
        }
        self.persistent = true;
        match self.registrants.iter_mut().find(|(h, _)| h == host) {
            Some((_, old)) => *old = key,
            None => self.registrants.push((*host, key)),
        }
        Ok(())
    }

    fn acquire(&mut self, host: &HostId, rtype: ReservationType) -> Result<(), DeviceError> {
        match (self.held, rtype) {
            (Held::Nobody, _) => self.hold(host, rtype),
            (Held::By(holder), ReservationType::WriteExclusive) if holder == *host => {}
            (Held::ByAllRegistrants, ReservationType::WriteExclusiveAllRegistrants) => {}
            (Held::By(_) | Held::ByAllRegistrants, _) => return Err(DeviceError::ReservationConflict),
        }
        Ok(())
    }

    /// 8.19.7 "Preempting a Reservation or Registration".
    fn preempt(&mut self, host: &HostId, victim: ReservationKey, rtype: ReservationType) -> Result<(), DeviceError> {
        let all = victim == ReservationKey(0);
        match self.held {
            Held::ByAllRegistrants if all => {
                self.registrants.retain(|(h, _)| h == host);
                self.hold(host, rtype);
            }
            Held::By(holder) if self.key(&holder) == Some(victim) => {
                self.registrants.retain(|(h, key)| h == host || *key != victim);
                self.hold(host, rtype);
            }
            Held::Nobody | Held::By(_) if all => return Err(DeviceError::Rejected),
            Held::Nobody | Held::By(_) | Held::ByAllRegistrants => {
                if !self.registrants.iter().any(|(_, key)| *key == victim) {
                    return Err(DeviceError::ReservationConflict);
                }
                // A host that names its own key here ends its own registration with the others.
                self.remove(|_, key| *key == victim);
            }
        }
        Ok(())
    }

    fn release(&mut self, host: &HostId, rtype: ReservationType) -> Result<(), DeviceError> {
        match (self.held, rtype) {
            _ if !self.holds(host) => {}
            (Held::By(_), ReservationType::WriteExclusive)
            | (Held::ByAllRegistrants, ReservationType::WriteExclusiveAllRegistrants) => self.held = Held::Nobody,
            (Held::Nobody | Held::By(_) | Held::ByAllRegistrants, _) => return Err(DeviceError::Rejected),
        }
        Ok(())
    }

    /// Ends registrations; a reservation without a holder ends too.
    fn remove(&mut self, ends: impl Fn(&HostId, &ReservationKey) -> bool) {
        self.registrants.retain(|(host, key)| !ends(host, key));
        match self.held {
            Held::By(holder) if self.key(&holder).is_none() => self.held = Held::Nobody,
            Held::ByAllRegistrants if self.registrants.is_empty() => self.held = Held::Nobody,
            Held::Nobody | Held::By(_) | Held::ByAllRegistrants => {}
        }
    }

    fn hold(&mut self, host: &HostId, rtype: ReservationType) {
        self.held = match rtype {
            ReservationType::WriteExclusive => Held::By(*host),
            ReservationType::WriteExclusiveAllRegistrants => Held::ByAllRegistrants,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: HostId = [0xa; 16];
    const B: HostId = [0xb; 16];
    const KEY_A: ReservationKey = ReservationKey(0xa);
    const KEY_B: ReservationKey = ReservationKey(0xb);
    const ALL: ReservationKey = ReservationKey(0);
    const WE: ReservationType = ReservationType::WriteExclusive;
    const WE_AR: ReservationType = ReservationType::WriteExclusiveAllRegistrants;
    const CONFLICT: Result<(), DeviceError> = Err(DeviceError::ReservationConflict);

    /// Both registered, nothing held.
    fn two() -> Reservations {
        let mut r = Reservations::new();
        r.apply(&A, ReservationOp::Register { key: KEY_A }).expect("register A");
        r.apply(&B, ReservationOp::Register { key: KEY_B }).expect("register B");
        r
    }

    fn two_holding(rtype: ReservationType) -> Reservations {
        let mut r = two();
        r.apply(&A, ReservationOp::Acquire { key: KEY_A, rtype }).expect("acquire");
        r
    }

    fn keys(r: &Reservations) -> Vec<(ReservationKey, bool)> {
        r.report().registrants.iter().map(|r| (r.key, r.holder)).collect()
    }

    #[test]
    fn without_a_reservation_everybody_writes() {
        assert!(Reservations::new().may_write(&A));
        assert!(two().may_write(&[0; 16]));
        assert_eq!(two().report().rtype, None);
    }

    #[test]
    fn all_registrants_hold_and_write_and_late_registrants_join_them() {
        let mut r = two_holding(WE_AR);
        let late = [0xc; 16];
        assert!(r.may_write(&A) && r.may_write(&B) && !r.may_write(&late));
        r.apply(&late, ReservationOp::Register { key: ReservationKey(0xc) }).expect("register");
        assert!(r.may_write(&late));
        assert_eq!(keys(&r), [(KEY_A, true), (KEY_B, true), (ReservationKey(0xc), true)]);
        assert_eq!(r.report().rtype, Some(5));
        // It ends with its last holder, not before.
        r.apply(&A, ReservationOp::Unregister { key: KEY_A }).expect("unregister");
        r.apply(&B, ReservationOp::Unregister { key: KEY_B }).expect("unregister");
        assert_eq!(r.report().rtype, Some(5));
        r.apply(&late, ReservationOp::Unregister { key: ReservationKey(0xc) }).expect("unregister");
        assert_eq!(r.report().rtype, None);
    }

    #[test]
    fn write_exclusive_has_one_writer_and_registration_gives_no_access() {
        let r = two_holding(WE);
        assert!(r.may_write(&A) && !r.may_write(&B));
        assert_eq!(keys(&r), [(KEY_A, true), (KEY_B, false)]);
    }

    #[test]
    fn acquire_repeats_but_does_not_change_a_held_reservation() {
        for (held, other) in [(WE, WE_AR), (WE_AR, WE)] {
            let mut r = two_holding(held);
            assert_eq!(r.apply(&A, ReservationOp::Acquire { key: KEY_A, rtype: held }), Ok(()));
            assert_eq!(r.apply(&A, ReservationOp::Acquire { key: KEY_A, rtype: other }), CONFLICT);
        }
        assert_eq!(two_holding(WE).apply(&B, ReservationOp::Acquire { key: KEY_B, rtype: WE }), CONFLICT);
    }

    #[test]
    fn a_wrong_or_missing_key_changes_nothing() {
        let mut r = two_holding(WE_AR);
        let before = r.report();
        for host in [A, [9; 16]] {
            for key in [KEY_B, ReservationKey(77)] {
                assert_eq!(r.apply(&host, ReservationOp::Acquire { key, rtype: WE_AR }), CONFLICT);
                assert_eq!(r.apply(&host, ReservationOp::PreemptAndAbort { key, victim: ALL, rtype: WE }), CONFLICT);
                assert_eq!(r.apply(&host, ReservationOp::Release { key, rtype: WE_AR }), CONFLICT);
                assert_eq!(r.apply(&host, ReservationOp::Unregister { key }), CONFLICT);
            }
        }
        assert_eq!(r.apply(&A, ReservationOp::Register { key: ALL }), Err(DeviceError::Rejected));
        assert_eq!(r.report(), before);
    }

    #[test]
    fn preempting_all_registrants_leaves_one_writer() {
        let mut r = two_holding(WE_AR);
        assert_eq!(r.apply(&B, ReservationOp::PreemptAndAbort { key: KEY_B, victim: ALL, rtype: WE }), Ok(()));
        assert_eq!(keys(&r), [(KEY_B, true)]);
        assert!(!r.may_write(&A) && r.may_write(&B));
        r.apply(&A, ReservationOp::Register { key: KEY_A }).expect("register");
        assert!(!r.may_write(&A), "a later registration gives no write access");
    }

    #[test]
    fn preempting_one_key_of_all_registrants_keeps_the_type() {
        let mut r = two_holding(WE_AR);
        assert_eq!(r.apply(&B, ReservationOp::PreemptAndAbort { key: KEY_B, victim: KEY_A, rtype: WE }), Ok(()));
        assert_eq!(keys(&r), [(KEY_B, true)]);
        assert_eq!(r.report().rtype, Some(5));
    }

    #[test]
    fn preempting_the_holder_takes_its_place() {
        let mut r = two_holding(WE);
        assert_eq!(r.apply(&B, ReservationOp::PreemptAndAbort { key: KEY_B, victim: KEY_A, rtype: WE }), Ok(()));
        assert_eq!(keys(&r), [(KEY_B, true)]);
    }

    #[test]
    fn preempting_another_registrant_only_ends_its_registration() {
        let mut r = two_holding(WE);
        assert_eq!(r.apply(&A, ReservationOp::PreemptAndAbort { key: KEY_A, victim: KEY_B, rtype: WE_AR }), Ok(()));
        assert_eq!(keys(&r), [(KEY_A, true)]);
        assert_eq!(r.report().rtype, Some(1));
        assert_eq!(r.apply(&A, ReservationOp::PreemptAndAbort { key: KEY_A, victim: KEY_B, rtype: WE }), CONFLICT);
        assert_eq!(
            r.apply(&A, ReservationOp::PreemptAndAbort { key: KEY_A, victim: ALL, rtype: WE }),
            Err(DeviceError::Rejected)
        );
    }

    #[test]
    fn a_holder_changes_the_type_by_preempting_itself() {
        let mut r = two_holding(WE);
        assert_eq!(r.apply(&A, ReservationOp::PreemptAndAbort { key: KEY_A, victim: KEY_A, rtype: WE_AR }), Ok(()));
        assert_eq!(keys(&r), [(KEY_A, true), (KEY_B, true)]);
    }

    #[test]
    fn a_new_key_keeps_the_reservation() {
        let mut r = two_holding(WE);
        r.apply(&A, ReservationOp::Register { key: ReservationKey(0x1a) }).expect("replace");
        assert_eq!(keys(&r), [(ReservationKey(0x1a), true), (KEY_B, false)]);
        assert!(r.may_write(&A));
    }

    #[test]
    fn release_needs_the_right_type_and_is_nothing_for_others() {
        let mut r = two_holding(WE);
        assert_eq!(r.apply(&B, ReservationOp::Release { key: KEY_B, rtype: WE }), Ok(()));
        assert_eq!(r.report().rtype, Some(1));
        assert_eq!(r.apply(&A, ReservationOp::Release { key: KEY_A, rtype: WE_AR }), Err(DeviceError::Rejected));
        assert_eq!(r.apply(&A, ReservationOp::Release { key: KEY_A, rtype: WE }), Ok(()));
        assert_eq!((r.report().rtype, r.report().registrants.len()), (None, 2));
    }

    #[test]
    fn the_holder_that_unregisters_releases() {
        let mut r = two_holding(WE);
        assert_eq!(r.apply(&A, ReservationOp::Unregister { key: KEY_A }), Ok(()));
        assert_eq!(r.report().rtype, None);
    }
}
