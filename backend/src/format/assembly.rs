//! From the superblocks of the devices that are there to a group, or to the reason why there is none.
//!
//! The newest superblock among the devices decides who is a member and in which state. A device is left out, with its reason, when what it says of
//! itself contradicts that; a group is refused when without the devices left out its level has not all data, when it is older than what is on
//! record elsewhere (the registry knows the last sequence: all newer members may be missing), or when devices contradict each other about who they
//! are. Nothing here writes: a refused group is as it was.

use super::superblock::Found;
use super::{Block, FormatError, GroupId, MemberState, Superblock};
use crate::device::DeviceId;
use crate::raid::geometry::{Geometry, MEMBERS_MAX};
use dyad_nvme::types::BlockCount;

/// A device, and what is where its superblocks would be.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// The device's own name.
    pub device: DeviceId,
    /// Its size.
    pub blocks: BlockCount,
    /// Copies 0 and 1; `None` if the block could not be read. Where copy 1 is, copy 0 says; else it is the device's last block.
    pub copies: [Option<&'a Block>; 2],
}

/// What is on record about the group elsewhere.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its name.
    pub group: GroupId,
    /// The greatest sequence that is known to have been written.
    pub sequence: u64,
}

/// Why a device is not used.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Excluded {
    /// Neither copy can be read.
    #[error("its superblocks cannot be read: {0}")]
    Unreadable(FormatError),
    /// It belongs to another group.
    #[error("it is a member of the group {0:?}")]
    Foreign(GroupId),
    /// Its superblock was written for another device: a copy of that device's contents.
    #[error("it carries the superblock of {0:?}")]
    CopyOf(DeviceId),
    /// The newest superblock does not know it.
    #[error("it was replaced in the group")]
    Replaced,
    /// The group went on without it.
    #[error("it is stale: the group is at {newest} and went on without it at {own}")]
    Stale {
        /// Its last sequence.
        own: u64,
        /// The group's.
        newest: u64,
    },
    /// It does not reach as far as the group's blocks.
    #[error("it has {0:?} blocks, fewer than the group uses")]
    TooSmall(BlockCount),
}

/// Why there is no group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssemblyError {
    /// No device has a superblock of it.
    #[error("no device has a superblock of this group")]
    NotFound,
    /// One device was handed in twice, or two say that they are the same member.
    #[error("{0:?} and {1:?} both are member {2}")]
    Duplicate(DeviceId, DeviceId, usize),
    /// Superblocks of the same sequence say different things.
    #[error("{0:?} and {1:?} have superblocks of the same sequence that differ")]
    Conflict(DeviceId, DeviceId),
    /// All that is there is older than what is known to have been written.
    #[error("the newest superblock found is {found}, but {expected} was written: newer members are missing")]
    Outdated {
        /// The newest found.
        found: u64,
        /// What is on record.
        expected: u64,
    },
    /// Without the members that are missing or not usable, data is missing.
    #[error("{usable} of {members} members are usable, too few for {geometry:?}")]
    TooFew {
        /// Members that are there, and in sync.
        usable: usize,
        /// Members of the group.
        members: usize,
        /// What the group is.
        geometry: Geometry,
    },
}

/// A group that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembly {
    /// The newest superblock.
    pub superblock: Superblock,
    /// For each member the candidate that is it (place in the list) and may be used, in sync or to be rebuilt.
    pub members: heapless::Vec<Option<usize>, MEMBERS_MAX>,
    /// Some members have the superblock before the newest: the newest must be on all of them before the next change is made.
    pub uneven: bool,
    /// Candidates that are not used.
    pub excluded: Vec<(DeviceId, Excluded)>,
}

/// Finds the group among the candidates.
///
/// # Errors
/// [`AssemblyError`].
pub fn assemble(candidates: &[Candidate<'_>], expected: Expected) -> Result<Assembly, AssemblyError> {
    let mut excluded = Vec::new();
    let mut found: Vec<(usize, Found)> = Vec::new();
    for (at, candidate) in candidates.iter().enumerate() {
        match examine(candidate, expected.group) {
            Ok(own) => found.push((at, own)),
            Err(why) => excluded.push((candidate.device, why)),
        }
    }
    let name = |at: usize| candidates[at].device;
    let (newest_at, newest) = found.iter().max_by_key(|(_, f)| f.superblock.sequence).ok_or(AssemblyError::NotFound)?;
    let (newest_at, newest) = (*newest_at, newest.superblock.clone());
    if newest.sequence < expected.sequence {
        return Err(AssemblyError::Outdated { found: newest.sequence, expected: expected.sequence });
    }
    let mut members: heapless::Vec<Option<usize>, MEMBERS_MAX> = newest.members.iter().map(|_| None).collect();
    let mut uneven = false;
    for (at, own) in found {
        if own.superblock.sequence == newest.sequence && own.superblock != newest {
            return Err(AssemblyError::Conflict(name(newest_at), name(at)));
        }
        match judge(&candidates[at], &own, &newest) {
            Ok(member) => match members[member] {
                Some(other) => return Err(AssemblyError::Duplicate(name(other), name(at), member)),
                None => {
                    members[member] = Some(at);
                    uneven |= own.superblock.sequence < newest.sequence;
                }
            },
            Err(why) => excluded.push((name(at), why)),
        }
    }
    let in_sync = |m: usize| members[m].is_some() && newest.members[m].state == MemberState::InSync;
    let usable = (0..members.len()).filter(|m| in_sync(*m)).count();
    if !newest.geometry.survives(|m| !in_sync(m)) {
        return Err(AssemblyError::TooFew { usable, members: members.len(), geometry: newest.geometry });
    }
    Ok(Assembly { superblock: newest, members, uneven, excluded })
}

/// The newer of a device's two copies: one may be torn.
fn examine(candidate: &Candidate<'_>, group: GroupId) -> Result<Found, Excluded> {
    let read = |copy: usize, place: u64| match candidate.copies[copy] {
        Some(block) => Superblock::decode(block, place),
        None => Err(FormatError::Checksum),
    };
    let found = match (read(0, 0), read(1, 1)) {
        (Ok(first), Ok(last)) if last.superblock.sequence > first.superblock.sequence => last,
        (Ok(first), _) => first,
        (Err(_), Ok(last)) => last,
        (Err(why), Err(_)) => return Err(Excluded::Unreadable(why)),
    };
    let written_for = found.superblock.members[found.member].device;
    if found.superblock.group != group {
        Err(Excluded::Foreign(found.superblock.group))
    } else if written_for != candidate.device {
        Err(Excluded::CopyOf(written_for))
    } else {
        Ok(found)
    }
}

/// Which member of the newest superblock's group the device is.
fn judge(candidate: &Candidate<'_>, own: &Found, newest: &Superblock) -> Result<usize, Excluded> {
    let member =
        newest.members.iter().position(|record| record.device == candidate.device).ok_or(Excluded::Replaced)?;
    let sequence = own.superblock.sequence;
    if newest.layout.last.0 >= candidate.blocks.0 {
        return Err(Excluded::TooSmall(candidate.blocks));
    }
    // A change is on all members that stay before the next one is made: who missed two was not there.
    let stale = newest.members[member].state == MemberState::Out || sequence + 1 < newest.sequence;
    if stale { Err(Excluded::Stale { own: sequence, newest: newest.sequence }) } else { Ok(member) }
}
