//! RAID groups: several devices of a pair that are one space of blocks and outlive some of them.
//!
//! [`Group`] is every level, with intent log and guards on the devices: what directors stand on. [`Raid1`] is legs
//! without either; the tests of the rooms above use it.
//!
//! What every level promises to the cache above:
//!
//! - A command is done when nothing of it is outstanding at any device, with or without success: the caller's memory is its own again. Dropping a command's
//!   future breaks that: the devices go on, and the legs may differ in those blocks. Wait for it.
//! - A write that succeeded is on every device of the group but those that are **on record** as failed ([`Raid1::failing`]). So whoever assembles the group
//!   later, here or at the partner, from the same record, reads it back.
//! - A write that failed, and one that a crash cut short, may be there in part, on some devices, block by block. It is the cache's to write it again: **the
//!   dirty slots, mirrored in both directors, are the intent log of [`Raid1`]**. Legs differ only where a slot is still
//!   dirty in a survivor. Where no survivor has it (a director that was alone died in the middle of a write), the new home reads and writes back
//!   the whole group before it serves.
//! - [`GroupError::Fenced`] means that somebody else is the home (PROTOCOLS 5.3): stop.
//! - After start nothing allocates. Waiting for queue room is first come, first served, per device.

pub mod geometry;
pub mod group;
mod join;
mod raid1;

pub use group::Group;
pub use raid1::{Counters, LEGS_MAX, NewGroupError, Raid1};

/// What a group can do now.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum GroupState {
    /// All devices are there.
    Optimal,
    /// It works without some of its devices; another failure may take it.
    Degraded,
    /// No device answers: nothing can be read or written until the group is assembled anew.
    Lost,
}

/// Why a command of a group failed.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// A reservation conflict: this director is not the home any more. Some devices may have done the write: they then had
    /// not been preempted yet, and the new home writes those blocks again.
    #[error("this director is fenced")]
    Fenced,
    /// These blocks cannot be read from, or written to, any device; others may.
    #[error("media error on every device of the group")]
    Media,
    /// No device answers.
    #[error("the group is lost")]
    Lost,
    /// A device failed and that was not put on record in time. Write again later.
    #[error("a device failed and that is not on record yet")]
    Unrecorded,
    /// The command names blocks or memory that are not there, or is too long: a fault of ours.
    #[error("the command does not fit the group")]
    Invalid,
}

#[cfg(test)]
mod tests;
