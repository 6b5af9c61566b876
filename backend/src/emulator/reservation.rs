//! The reservation of one namespace: who is registered, who holds, what others may do (Base 8.19, commands 7.2 to 7.5).
//!
//! Every change is one step. Aborting the commands of preempted hosts is the subsystem's work; [`Preempted`] tells it whose.

use dyad_nvme::Status;
use dyad_nvme::opcode::nvm;
use dyad_nvme::reservation::{
    AcquireAction, AcquireData, RegisterAction, RegisterData, ReleaseAction, ReportHeader, ReportRegistrant,
    ReservationType,
};
use dyad_nvme::types::HostId;

/// Hosts that may be registered on one namespace.
const REGISTRANTS_MAX: usize = 64;

/// Who is behind a controller. Without a Host Identifier every controller's host is another one, and ends with the controller's reset (Base 5.27.1.25).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Host {
    Identified(HostId),
    Unidentified { port: usize },
}

impl Host {
    fn id(self) -> HostId {
        match self {
            Self::Identified(id) => id,
            Self::Unidentified { .. } => HostId::NONE,
        }
    }
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
struct Registrant {
    host: Host,
    key: u64,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Held {
    Nobody,
    By(Host, ReservationType),
    /// One of the two All Registrants types: every registrant holds.
    ByAll(ReservationType),
}

/// Registrants, reservation, and whether they survive power loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reservations {
    registrants: Vec<Registrant>,
    held: Held,
    persistent: bool,
    generation: u32,
}

/// What a change did to others; they are to be notified (Base 8.19.9).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Effects {
    /// Their registrations ended.
    pub(super) unregistered: Vec<Host>,
    /// A reservation that gave them access was released.
    pub(super) released: Vec<Host>,
    /// The reservation was taken from others while they stay registered.
    pub(super) preempted: Vec<Host>,
}

/// What a command may need.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Always,
}

impl Access {
    /// Base figure "Command Behavior in the Presence of a Reservation".
    pub(super) const fn of(opcode: u8) -> Self {
        match opcode {
            nvm::READ | nvm::COMPARE | nvm::VERIFY => Self::Read,
            nvm::RESERVATION_REGISTER
            | nvm::RESERVATION_REPORT
            | nvm::RESERVATION_ACQUIRE
            | nvm::RESERVATION_RELEASE => Self::Always,
            _ => Self::Write,
        }
    }
}

impl Reservations {
    pub(super) const fn new() -> Self {
        Self { registrants: Vec::new(), held: Held::Nobody, persistent: false, generation: 0 }
    }

    /// May `host` run a command that needs `access`?
    #[inline]
    pub(super) fn permits(&self, host: Host, access: Access) -> bool {
        let rtype = match self.held {
            Held::Nobody => return true,
            Held::By(holder, _) if holder == host => return true,
            Held::By(_, rtype) | Held::ByAll(rtype) => rtype,
        };
        match access {
            Access::Always => true,
            Access::Read if !rtype.excludes_reads() => true,
            Access::Read | Access::Write => rtype.registrants_access() && self.key(host).is_some(),
        }
    }

    pub(super) const fn persistent(&self) -> bool {
        self.persistent
    }

    /// Feature 83h.
    pub(super) fn set_persistent(&mut self, persistent: bool) {
        self.persistent = persistent;
    }

    /// Reservation Register (Base 7.3).
    pub(super) fn register(
        &mut self,
        host: Host,
        action: RegisterAction,
        ignore_existing: bool,
        persist: Option<bool>,
        keys: RegisterData,
    ) -> Result<Effects, Status> {
        let existing = self.key(host);
        let matches = ignore_existing || existing == Some(keys.current);
        let mut effects = Effects::default();
        match (action, existing) {
            (RegisterAction::Register, None) => self.add(host, keys.new)?,
            (RegisterAction::Register, Some(key)) if key == keys.new => {}
            (RegisterAction::Register, Some(_)) => return Err(Status::RESERVATION_CONFLICT),
            (RegisterAction::Replace, Some(_)) if matches => {
                if keys.new == 0 {
                    return Err(Status::INVALID_FIELD);
                }
                let registrant = self.registrants.iter_mut().find(|r| r.host == host).expect("it has a key");
                registrant.key = keys.new;
            }
            (RegisterAction::Replace, None) if ignore_existing => self.add(host, keys.new)?,
            (RegisterAction::Unregister, Some(_)) if matches => {
                self.remove(|r| r.host == host, &mut effects);
            }
            (RegisterAction::Replace | RegisterAction::Unregister, _) => return Err(Status::RESERVATION_CONFLICT),
        }
        self.persistent = persist.unwrap_or(self.persistent);
        self.generation = self.generation.wrapping_add(1);
        effects.unregistered.retain(|h| *h != host);
        Ok(effects)
    }

    /// Reservation Acquire (Base 7.2).
    pub(super) fn acquire(
        &mut self,
        host: Host,
        action: AcquireAction,
        rtype: ReservationType,
        keys: AcquireData,
    ) -> Result<Effects, Status> {
        if self.key(host) != Some(keys.current) {
            return Err(Status::RESERVATION_CONFLICT);
        }
        match action {
            AcquireAction::Acquire => self.take(host, rtype).map(|()| Effects::default()),
            AcquireAction::Preempt | AcquireAction::PreemptAndAbort => self.preempt(host, rtype, keys.preempt),
        }
    }

    fn take(&mut self, host: Host, rtype: ReservationType) -> Result<(), Status> {
        match self.held {
            Held::Nobody => self.hold(host, rtype),
            Held::By(holder, held) if holder == host && held == rtype => {}
            Held::ByAll(held) if held == rtype => {}
            Held::By(..) | Held::ByAll(_) => return Err(Status::RESERVATION_CONFLICT),
        }
        Ok(())
    }

    /// Base 8.19.7.
    fn preempt(&mut self, host: Host, rtype: ReservationType, victim: u64) -> Result<Effects, Status> {
        let all = victim == 0;
        let mut effects = Effects::default();
        let known = self.registrants.iter().any(|r| r.key == victim);
        match self.held {
            Held::ByAll(held) if all => {
                self.end_registrations(|r| r.host != host, &mut effects);
                self.change_holder(host, held, rtype, &mut effects);
            }
            Held::By(holder, held) if self.key(holder) == Some(victim) => {
                self.end_registrations(|r| r.host != host && r.key == victim, &mut effects);
                self.change_holder(host, held, rtype, &mut effects);
            }
            Held::Nobody | Held::By(..) if all => return Err(Status::INVALID_FIELD),
            Held::Nobody | Held::By(..) | Held::ByAll(_) if !known => return Err(Status::RESERVATION_CONFLICT),
            // A host that names its own key here ends its own registration with the others.
            Held::Nobody | Held::By(..) | Held::ByAll(_) => self.remove(|r| r.key == victim, &mut effects),
        }
        self.generation = self.generation.wrapping_add(1);
        effects.unregistered.retain(|h| *h != host);
        Ok(effects)
    }

    /// Reservation Release (Base 7.4).
    pub(super) fn release(
        &mut self,
        host: Host,
        action: ReleaseAction,
        rtype: Option<ReservationType>,
        key: u64,
    ) -> Result<Effects, Status> {
        if self.key(host) != Some(key) {
            return Err(Status::RESERVATION_CONFLICT);
        }
        let mut effects = Effects::default();
        match action {
            ReleaseAction::Release => {
                let held = match self.held {
                    Held::By(holder, held) if holder == host => held,
                    Held::ByAll(held) => held,
                    Held::Nobody | Held::By(..) => return Ok(effects),
                };
                if rtype != Some(held) {
                    return Err(Status::INVALID_FIELD);
                }
                self.end_reservation(&mut effects);
                effects.released.retain(|h| *h != host);
            }
            ReleaseAction::Clear => {
                effects.unregistered.extend(self.registrants.drain(..).map(|r| r.host).filter(|h| *h != host));
                self.held = Held::Nobody;
                self.generation = self.generation.wrapping_add(1);
            }
        }
        Ok(effects)
    }

    /// Reservation Report (Base 7.5). `port_of` tells through which controller a host is reached.
    pub(super) fn report(&self, extended: bool, port_of: impl Fn(Host) -> Option<u16>) -> Vec<u8> {
        let rtype = match self.held {
            Held::Nobody => 0,
            Held::By(_, rtype) | Held::ByAll(rtype) => rtype.to_bits(),
        };
        let header = ReportHeader {
            generation: self.generation,
            rtype,
            registrants: u16::try_from(self.registrants.len()).expect("bounded"),
            persistent: self.persistent,
        };
        let head = if extended { ReportHeader::BYTES } else { ReportHeader::SHORT_BYTES };
        let mut report = header.to_bytes()[..head].to_vec();
        for Registrant { host, key } in &self.registrants {
            let holder = match self.held {
                Held::Nobody => false,
                Held::By(holder, _) => holder == *host,
                Held::ByAll(_) => true,
            };
            let controller = port_of(*host).unwrap_or(0xffff);
            let registrant = ReportRegistrant { controller, holder, key: *key, host: host.id() };
            if extended {
                report.extend_from_slice(&registrant.to_bytes());
            } else {
                report.extend_from_slice(&registrant.to_short_bytes());
            }
        }
        report
    }

    /// The controller of `port` was reset, and a host without identifier has gone with it.
    pub(super) fn forget_unidentified(&mut self, port: usize) {
        self.remove(|r| r.host == Host::Unidentified { port }, &mut Effects::default());
    }

    /// Power was lost: without persistence everything is gone; hosts without identifier are gone anyway.
    pub(super) fn power_loss(&mut self) {
        if self.persistent {
            self.remove(|r| matches!(r.host, Host::Unidentified { .. }), &mut Effects::default());
        } else {
            *self = Self::new();
        }
    }

    fn key(&self, host: Host) -> Option<u64> {
        self.registrants.iter().find(|r| r.host == host).map(|r| r.key)
    }

    fn add(&mut self, host: Host, key: u64) -> Result<(), Status> {
        if key == 0 {
            return Err(Status::INVALID_FIELD);
        }
        if self.registrants.len() == REGISTRANTS_MAX {
            return Err(Status::INTERNAL_ERROR);
        }
        self.registrants.push(Registrant { host, key });
        Ok(())
    }

    fn hold(&mut self, host: Host, rtype: ReservationType) {
        self.held = if rtype.all_registrants() { Held::ByAll(rtype) } else { Held::By(host, rtype) };
    }

    fn change_holder(&mut self, host: Host, before: ReservationType, after: ReservationType, effects: &mut Effects) {
        self.hold(host, after);
        if before != after && before.registrants_access() {
            effects.preempted.extend(self.registrants.iter().map(|r| r.host).filter(|h| *h != host));
        }
    }

    fn end_registrations(&mut self, ends: impl Fn(&Registrant) -> bool, effects: &mut Effects) {
        effects.unregistered.extend(self.registrants.iter().filter(|r| ends(r)).map(|r| r.host));
        self.registrants.retain(|r| !ends(r));
    }

    /// Ends registrations; a reservation whose holder, or last holder, went ends too.
    fn remove(&mut self, ends: impl Fn(&Registrant) -> bool, effects: &mut Effects) {
        self.end_registrations(ends, effects);
        match self.held {
            Held::By(holder, _) if self.key(holder).is_none() => self.end_reservation(effects),
            Held::ByAll(_) if self.registrants.is_empty() => self.held = Held::Nobody,
            Held::Nobody | Held::By(..) | Held::ByAll(_) => {}
        }
    }

    fn end_reservation(&mut self, effects: &mut Effects) {
        if let Held::By(_, rtype) | Held::ByAll(rtype) = self.held
            && rtype.registrants_access()
        {
            effects.released.extend(self.registrants.iter().map(|r| r.host));
        }
        self.held = Held::Nobody;
    }
}

/// How reservations are kept where power loss does not reach: type (0), zero (1..4), generation (4..8), registrants (8..12), holder's place among them
/// or FFFFFFFFh (12..16), then per registrant Host Identifier (16 bytes) and key (8 bytes).
impl Reservations {
    /// What survives power loss; empty without persistence.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        if !self.persistent {
            return Vec::new();
        }
        let kept: Vec<_> = self.registrants.iter().filter(|r| matches!(r.host, Host::Identified(_))).collect();
        let (rtype, holder) = match self.held {
            Held::Nobody => (0, u32::MAX),
            Held::By(host, rtype) => match kept.iter().position(|r| r.host == host) {
                Some(at) => (rtype.to_bits(), u32::try_from(at).expect("bounded")),
                None => (0, u32::MAX),
            },
            Held::ByAll(rtype) => (if kept.is_empty() { 0 } else { rtype.to_bits() }, u32::MAX),
        };
        let mut bytes = vec![rtype, 0, 0, 0];
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(kept.len()).expect("bounded").to_le_bytes());
        bytes.extend_from_slice(&holder.to_le_bytes());
        for Registrant { host, key } in kept {
            bytes.extend_from_slice(&host.id().0);
            bytes.extend_from_slice(&key.to_le_bytes());
        }
        bytes
    }

    /// What [`Self::to_bytes`] kept; none if the bytes are not whole.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        use dyad_nvme::bytes::{array, u32_at, u64_at};
        let (head, rest) = bytes.split_at_checked(16)?;
        let count = usize::try_from(u32_at(head, 8)).ok()?;
        if count > REGISTRANTS_MAX || rest.len() != count * 24 {
            return None;
        }
        let registrants: Vec<_> = rest
            .chunks_exact(24)
            .map(|r| Registrant { host: Host::Identified(HostId(array(r, 0))), key: u64_at(r, 16) })
            .collect();
        let held = match ReservationType::from_bits(head[0]) {
            None => Held::Nobody,
            Some(rtype) if rtype.all_registrants() => Held::ByAll(rtype),
            Some(rtype) => Held::By(registrants.get(usize::try_from(u32_at(head, 12)).ok()?)?.host, rtype),
        };
        Some(Self { registrants, held, persistent: true, generation: u32_at(head, 4) })
    }
}

#[cfg(test)]
mod tests;
