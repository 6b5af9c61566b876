//! The pool of slices of every group, and the volumes striped over them (PROTOCOLS 8).
//!
//! A **volume** is a row of extents. A [`Description`] says where they are: **segments**, each an ordered list of groups over which its extents go round. The
//! n-th extent that a group has of a volume is at **position** n of the volume's **share** of the group. The share's table maps every so many positions
//! to a **slice**, a run of whole stripes; an entry without a slice reads as zeros.
//!
//! ```text
//! volume address --[Map: arithmetic on segments]--> group, position, block --[Pool of the group: share table]--> address in the group
//! ```
//!
//! Descriptions live in the registry; share tables in the system area of their group, where only the group's home changes them. So [`Pool`] is one group's,
//! and its home has it; [`Volume`] is a way to a volume all of whose groups have their home here.
//!
//! A volume changes in this order, whoever dies in between ([`Pool::reconcile`] goes on):
//!
//! | change | registry | every home | then |
//! |---|---|---|---|
//! | made, longer | [`Description::new`], `grown`, `with_groups` | [`Pool::ensure`] | hosts see it |
//! | shorter | `shrunk` | the cache drops what it has beyond; [`Pool::cut`] | `settled` |
//! | gone | `deleted` | the cache drops what it has; [`Pool::delete`] | the registry forgets it |
//!
//! Invariants:
//! - A slice belongs to at most one entry of one share. It is all zeros when it gets there, and whoever had it before has nothing in flight towards it.
//! - What [`Pool::admit`] admitted has its slice kept for it: after an acknowledgement no write fails for want of space.
//! - An entry is durable before anything is written to its slice. So a crash loses no acknowledged data, and leaves no old data in a free slice that
//!   counts as zeros.
//! - Requests name the generation that they mean. After a shrink or delete has returned, nothing of the generation before it reaches the devices.
//! - Growing moves nothing; new groups begin a new segment.
//!
//! What is durable, and when: `log` (the format is in `crate::format::share`).

mod description;
mod entries;
mod grace;
mod ground;
mod home;
mod log;
mod map;
mod on_group;
mod table;
#[cfg(test)]
mod tests;
mod volume;

pub use self::description::{
    Allocation, Description, DescriptionError, Extent, Name, Segment, ShareSpec, State, limits,
};
pub use self::grace::Pin;
pub use self::ground::{Facts, Ground, SHARE_BLOCKS_MAX};
pub use self::home::{Counters, OpenError, Pool, Reconciled, ShareId, Space};
pub use self::log::LogError;
pub use self::map::{Map, Part, Place};
pub use self::on_group::OnGroup;
pub use self::volume::{SEGMENTS_MAX, TRANSFER_BLOCKS_MAX, Volume, VolumeError};
pub use crate::format::VolumeUuid;
pub use crate::format::share::{Generation, SliceNumber};

use crate::raid::GroupError;

/// Why the pool did not do what it was asked for. Nothing of it was done, but where that is said.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// No slices are left: Capacity Exceeded.
    #[error("capacity exceeded: the group has too few free slices")]
    Full,
    /// The share log has no room for another volume.
    #[error("the group's share table has no room for another volume")]
    TooManyShares,
    /// This group has no share of such a volume: never made, or deleted.
    #[error("no such volume in this group")]
    UnknownVolume,
    /// The volume was shrunk or deleted since: ask for its description again.
    #[error("an old generation of the volume; it is {0:?} now")]
    OldGeneration(Generation),
    /// A generation that this home has not been told of yet.
    #[error("a generation of the volume that is not known here yet; it is {0:?}")]
    UnknownGeneration(Generation),
    /// Beyond the end of the share.
    #[error("position {0} is beyond the end of the volume's share")]
    OutOfRange(u64),
    /// Nobody admitted a write there.
    #[error("nothing was admitted there")]
    NotAdmitted,
    /// The extent does not divide the slice.
    #[error("extents of {extent} blocks do not divide slices of {slice} blocks")]
    Extent {
        /// As asked for.
        extent: u64,
        /// Those of the group.
        slice: u64,
    },
    /// More entries than a share may have.
    #[error("a share of {0} positions is too long")]
    TooLong(u64),
    /// The volume has a share here that is not what the request takes it for: made otherwise, longer or shorter than it could be.
    #[error("the volume has another share here")]
    Contradiction,
    /// The group failed. The pool is closed if the share log was concerned: open it again.
    #[error(transparent)]
    Group(#[from] GroupError),
}
