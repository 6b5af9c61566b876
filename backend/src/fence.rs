//! Fencing: who may write to the devices of a pair, held at the devices themselves (PROTOCOLS 5.1 to 5.4).
//!
//! Every director registers a key that says which epoch and which director it belongs to. In `both` the reservation of every namespace is
//! Write Exclusive - All Registrants; in `solo` it is Write Exclusive held by the survivor, so that a later registration gives no write access.
//! Two transitions lead there:
//!
//! - [`take_over`]: the winner of `both -> solo` (or of a take-over from `settled`) puts everybody else out, before its first I/O.
//! - [`join_both`]: the holder changes back first, then the other registers: both call it. The order is enforced: while the reservation is held
//!   exclusively, the joining director gets [`FenceFailure::HeldExclusively`] and asks again.
//!
//! Both look at the Reservation Report, do the one step that [`next`] (the table) names, and look again, until the goal is there. So they may be repeated
//! after a crash at any point, and a second director may finish what a first began. They end with a pass in which no namespace needed a step.
//!
//! **Why a slow old winner cannot put a new one out.** A director registers first, then reads the report, and gives up if it shows a higher epoch. Whoever
//! won later removes its registration, so its Preempt and Abort, which names the registered key, fails, and the next report tells it why. If the old winner
//! came first, the new one starts over.
//!
//! Take-over ends with a Preempt and Abort made by this call even when nobody is left to preempt: an earlier one, whose issuer died, may still be
//! aborting, and what it aborts could reach the media until then.

use dyad_nvme::types::NamespaceId;

use crate::device::{
    Device, DeviceError, DeviceId, Registrant, ReservationKey, ReservationOp, ReservationReport, ReservationType,
};

/// Raw reservation types of the report (Base 2.0, "Reservation Type Encoding").
const RTYPE_WRITE_EXCLUSIVE: u8 = 1;
const RTYPE_WRITE_EXCLUSIVE_ALL_REGISTRANTS: u8 = 5;

/// No namespace needs more: register, acquire, preempt each of the few registrants, and as many again when somebody interferes.
const STEPS_MAX: u32 = 32;

/// One to do it, one to see that it is done, and some for interference.
const PASSES_MAX: u32 = 8;

/// The number of an ownership of a pair. It only grows.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(u64);

impl Epoch {
    /// The largest: keys have 48 bits for it.
    pub const MAX: Self = Self((1 << 48) - 1);

    /// The epoch with this number, up to [`Epoch::MAX`].
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        if number <= Self::MAX.0 { Some(Self(number)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// Tells the directors of an array apart.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirectorId(pub u8);

/// What a director's reservation key says. Never zero.
///
/// The eight bytes, as NVMe carries a key (little-endian):
///
/// | byte | content |
/// |---|---|
/// | 0-5 | epoch, little-endian |
/// | 6 | director |
/// | 7 | D7h: a key of Dyad, version 1 |
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct FenceKey {
    /// Of which ownership.
    pub epoch: Epoch,
    /// Whose.
    pub director: DirectorId,
}

impl FenceKey {
    const TAG: u8 = 0xd7;

    /// As the device takes it.
    #[must_use]
    pub const fn to_reservation_key(self) -> ReservationKey {
        let [a, b, c, d, e, f, ..] = self.epoch.0.to_le_bytes();
        ReservationKey(u64::from_le_bytes([a, b, c, d, e, f, self.director.0, Self::TAG]))
    }

    /// `None` if it is not a key of Dyad.
    #[must_use]
    pub const fn from_reservation_key(key: ReservationKey) -> Option<Self> {
        let [a, b, c, d, e, f, director, tag] = key.0.to_le_bytes();
        if tag != Self::TAG {
            return None;
        }
        let epoch = Epoch(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]));
        Some(Self { epoch, director: DirectorId(director) })
    }
}

/// A namespace could not be brought to where it has to be. Nothing may be written to it.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{device:?} (namespace {namespace:?}): {why}")]
pub struct FenceError {
    /// Which device.
    pub device: DeviceId,
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Why.
    pub why: FenceFailure,
}

/// Why a namespace could not be fenced, or joined.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FenceFailure {
    /// The pair has gone on without us: stop (PROTOCOLS 2.3, 5.3).
    #[error("epoch {} of director {} is registered there: ours is over", .by.epoch.0, .by.director.0)]
    Superseded {
        /// The key that says so.
        by: FenceKey,
    },
    /// The other director has not changed back yet: ask again after it has.
    #[error("director {} holds it alone since epoch {}", .by.director.0, .by.epoch.0)]
    HeldExclusively {
        /// The holder.
        by: FenceKey,
    },
    /// A system other than Dyad is registered: an operator has to say that it may lose the device.
    #[error("the key {:#018x} of another system is registered there", .key.0)]
    ForeignKey {
        /// Its key.
        key: ReservationKey,
    },
    /// A reservation of a type that Dyad does not use.
    #[error("another system holds a reservation of type {rtype} there")]
    ForeignReservation {
        /// The raw type.
        rtype: u8,
    },
    /// Such a device cannot be in a pair (PROTOCOLS 5.5).
    #[error("the device has no reservations: it cannot be in a pair")]
    Unsupported,
    /// The device did not do its part.
    #[error("the device failed: {0}")]
    Device(#[from] DeviceError),
    /// The reservation kept changing, or did not stay as it was made.
    #[error("the reservation does not settle")]
    Unsettled,
}

/// Puts everybody else out of these devices: afterwards nobody but `me` writes to them, and nothing that others sent before can still land.
///
/// For the winner of an epoch, before its first I/O. Repeat it after any failure; a device that stays unreachable is first failed out of its
/// group, durably, and then left out of `devices` (PROTOCOLS 5.4).
///
/// # Errors
/// The first device that could not be fenced, and why. Others may or may not have been.
pub async fn take_over<D: Device>(devices: &[D], me: FenceKey) -> Result<(), FenceError> {
    fence(devices, me, Goal::Sole).await
}

/// Makes `me` one of the two that write to these devices. Called by both directors in the transition to `both`; if one holds the devices
/// exclusively, this lets the other in, and before puts out whoever registered with an earlier epoch.
///
/// # Errors
/// The first device that could not be joined, and why. Others may or may not have been.
pub async fn join_both<D: Device>(devices: &[D], me: FenceKey) -> Result<(), FenceError> {
    fence(devices, me, Goal::Both).await
}

/// The highest epoch that a director has registered: a registry that is behind it was restored, or is not this pair's (PROTOCOLS 2.3).
#[must_use]
pub fn highest_epoch(report: &ReservationReport) -> Option<Epoch> {
    report.registrants.iter().filter_map(|r| FenceKey::from_reservation_key(r.key)).map(|key| key.epoch).max()
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Goal {
    /// Write Exclusive, held by me, nobody else registered.
    Sole,
    /// Write Exclusive - All Registrants, and I am one.
    Both,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Step {
    Do(ReservationOp),
    Reached,
}

async fn fence<D: Device>(devices: &[D], me: FenceKey, goal: Goal) -> Result<(), FenceError> {
    // The first ones may have changed while the last ones were made: done is when all of them needed nothing.
    for pass in 0..PASSES_MAX {
        let mut quiet = true;
        for device in devices {
            let info = device.info();
            let steps = converge(device, me, goal, pass > 0).await;
            quiet &= steps.map_err(|why| FenceError { device: info.id, namespace: info.namespace, why })? == 0;
        }
        if quiet {
            return Ok(());
        }
    }
    let info = devices[0].info();
    Err(FenceError { device: info.id, namespace: info.namespace, why: FenceFailure::Unsettled })
}

/// Brings one namespace to the goal; returns how many steps it took.
async fn converge<D: Device>(device: &D, me: FenceKey, goal: Goal, drained: bool) -> Result<u32, FenceFailure> {
    if !device.info().reservations {
        return Err(FenceFailure::Unsupported);
    }
    let mut drained = drained;
    for steps in 0..STEPS_MAX {
        let report = match device.reservation_report().await {
            Err(DeviceError::Aborted) => continue,
            report => report?,
        };
        let op = match next(goal, me, &report, drained)? {
            Step::Reached => return Ok(steps),
            Step::Do(op) => op,
        };
        match device.reserve(op).await {
            Ok(()) => match op {
                ReservationOp::PreemptAndAbort { .. } => drained = true,
                ReservationOp::Acquire { .. } => drained = false, // until now everybody could write
                ReservationOp::Register { .. } | ReservationOp::Release { .. } | ReservationOp::Unregister { .. } => {}
            },
            // Somebody was there between the report and us, or the outcome is unknown: look again.
            Err(DeviceError::ReservationConflict | DeviceError::Aborted) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(FenceFailure::Unsettled)
}

/// What stands in a report, as far as it matters here.
#[derive(Debug, Copy, Clone)]
enum Held {
    Free,
    ByMe,
    By(FenceKey),
    ByAllRegistrants,
}

/// The table: the next step towards the goal from what the report shows. `drained`: a Preempt and Abort has completed since we began.
fn next(goal: Goal, me: FenceKey, report: &ReservationReport, drained: bool) -> Result<Step, FenceFailure> {
    use ReservationType::{WriteExclusive, WriteExclusiveAllRegistrants};

    let key = me.to_reservation_key();
    let mut registered = false;
    let mut earlier = None;
    for registrant in &report.registrants {
        let other = parse(registrant)?;
        if other == me {
            registered = true;
        } else if other.epoch > me.epoch || (other.epoch == me.epoch && goal == Goal::Sole) {
            return Err(FenceFailure::Superseded { by: other });
        } else if other.epoch < me.epoch {
            earlier = Some(other.to_reservation_key());
        }
    }

    let acquire = |rtype| Step::Do(ReservationOp::Acquire { key, rtype });
    let preempt = |victim, rtype| Step::Do(ReservationOp::PreemptAndAbort { key, victim, rtype });
    Ok(match (goal, held(me, report)?) {
        // Registered only when that gives us what is ours: never while the other one holds it alone.
        (Goal::Both, Held::By(by)) if by.director != me.director => return Err(FenceFailure::HeldExclusively { by }),
        _ if !registered || !report.persistent => Step::Do(ReservationOp::Register { key }),

        (Goal::Sole, Held::Free) => acquire(WriteExclusive),
        (Goal::Sole, Held::By(holder)) => preempt(holder.to_reservation_key(), WriteExclusive),
        (Goal::Sole, Held::ByAllRegistrants) => preempt(ReservationKey(0), WriteExclusive),
        (Goal::Sole, Held::ByMe) => match earlier {
            Some(victim) => preempt(victim, WriteExclusive),
            None if !drained => preempt(key, WriteExclusive),
            None => Step::Reached,
        },

        (Goal::Both, Held::Free) => acquire(WriteExclusiveAllRegistrants),
        (Goal::Both, Held::By(by)) => return Err(FenceFailure::HeldExclusively { by }),
        (Goal::Both, Held::ByMe) => match earlier {
            Some(victim) => preempt(victim, WriteExclusive),
            None => preempt(key, WriteExclusiveAllRegistrants), // a holder preempts itself to change the type at once
        },
        (Goal::Both, Held::ByAllRegistrants) => Step::Reached,
    })
}

fn held(me: FenceKey, report: &ReservationReport) -> Result<Held, FenceFailure> {
    match report.rtype {
        None => Ok(Held::Free),
        Some(RTYPE_WRITE_EXCLUSIVE_ALL_REGISTRANTS) => Ok(Held::ByAllRegistrants),
        Some(RTYPE_WRITE_EXCLUSIVE) => {
            let holder = report.registrants.iter().find(|r| r.holder).ok_or(FenceFailure::Unsettled)?;
            let holder = parse(holder)?;
            Ok(if holder == me { Held::ByMe } else { Held::By(holder) })
        }
        Some(rtype) => Err(FenceFailure::ForeignReservation { rtype }),
    }
}

fn parse(registrant: &Registrant) -> Result<FenceKey, FenceFailure> {
    FenceKey::from_reservation_key(registrant.key).ok_or(FenceFailure::ForeignKey { key: registrant.key })
}

#[cfg(test)]
mod tests;
